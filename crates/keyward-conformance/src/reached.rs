//! A guard against property tests that never reach the command under test.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the cases of a property test that reached the command under test. Panics on drop if no case did.
///
/// A property about a command also holds if the command is refused in every case. Such a test checks nothing:
/// its generator does not fit the policy. Create a `Reached` before the run, so that it is dropped after the
/// run, and note every result.
///
/// ```
/// use keyward::policy::Policy;
/// use keyward::store::MemoryStore;
/// use keyward::{Actor, Keyward, Need, PepperRing, profiles};
/// use keyward_conformance::proptest::prelude::*;
/// use keyward_conformance::{Reached, block_on, strategies};
///
/// let policy = Policy::new(profiles::guide())?;
/// let builder = Keyward::builder(MemoryStore::new(), PepperRing::generate()?);
/// let keys = block_on(builder.policy(policy.clone()).build())?;
/// let by = Actor::application("acme".try_into()?);
///
/// let created = Reached::new("a created key");
/// proptest!(|(draft in strategies::new_keys(&policy))| {
///     let made = block_on(keys.create(&by, draft));
///     created.note(made.is_ok());
///     if let Ok(key) = made {
///         let need = Need::any().or_publishable();
///         prop_assert!(keys.verify(key.secret.expose(), &need).is_ok());
///     }
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the check runs when this value is dropped, so drop it after the run"]
pub struct Reached {
    what: &'static str,
    noted: AtomicU64,
    reached: AtomicU64,
}

impl Reached {
    /// Creates a counter. The noun phrase `what` names the command's result in the panic message.
    pub const fn new(what: &'static str) -> Self {
        Self {
            what,
            noted: AtomicU64::new(0),
            reached: AtomicU64::new(0),
        }
    }

    /// Notes a case, which either reached the command's result or did not.
    pub fn note(&self, reached: bool) {
        self.noted.fetch_add(1, Ordering::Relaxed);
        self.reached
            .fetch_add(u64::from(reached), Ordering::Relaxed);
    }

    /// Returns the number of cases that reached the command's result.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        // A run that failed has its own message, and a second panic would abort the process.
        if std::thread::panicking() {
            return;
        }
        let (what, noted) = (self.what, self.noted.load(Ordering::Relaxed));
        assert!(
            self.count() > 0,
            "none of {noted} cases reached {what}: check that the generated values fit the policy"
        );
    }
}
