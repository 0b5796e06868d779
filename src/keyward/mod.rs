//! The facade: manager, replica and verifier wired for the common case.

mod answers;
mod builder;
mod look;
mod manage;
mod nodes;
mod recover;

use std::sync::Arc;

pub use self::answers::{Created, Imported, KeyList, LeakReport, Rotated, TimeRepaired};
pub use self::builder::KeywardBuilder;
pub use self::look::AuditError;
pub use self::recover::{Recovery, RecoveryError, RecoveryReport};
use crate::core::id::KeyId;
use crate::core::need::Need;
use crate::core::pepper::PepperRing;
use crate::core::policy::{LivePolicies, Policies};
use crate::core::rejection::VerifyError;
#[cfg(feature = "tokio")]
use crate::entropy::Entropy;
use crate::manager::KeyManager;
use crate::replica::{Freshness, Replica};
use crate::store::{KeyStore, StoreError};
use crate::timekeeper::Timekeeper;
use crate::verifier::{Credentials, Grant, Usage, Verifier};

/// API keys over a store: create, verify, rotate, revoke and audit them. Cheap to clone.
///
/// # Examples
///
/// ```
/// # pollster::block_on(async {
/// use keyward::store::MemoryStore;
/// use keyward::{Actor, Keyward, CreateKey, Need, PepperRing, Reason, Role, days};
///
/// let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
///
/// let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
/// let created = keys
///     .create(&admin, CreateKey::new("nightly export").scope("reports:read").expires_in(days(90)))
///     .await?;
///
/// let grant = keys.verify(created.secret.expose(), &Need::scope("reports:read")?)?;
/// assert_eq!(grant.key_id(), created.id);
///
/// keys.revoke(&admin, created.id, Reason::Lost).await?;
/// assert!(keys.verify(created.secret.expose(), &Need::any()).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Keyward {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    manager: KeyManager,
    replica: Arc<Replica>,
    verifier: Verifier,
    store: Arc<dyn KeyStore>,
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    time: Arc<Timekeeper>,
    #[cfg(feature = "tokio")]
    entropy: Arc<dyn Entropy>,
}

impl Keyward {
    /// Returns a builder over a store and the peppers. Everything else has a default: the
    /// [`standard`](crate::profiles::standard) policy, the machine's clocks and its randomness.
    pub fn builder(store: impl KeyStore, peppers: PepperRing) -> KeywardBuilder {
        KeywardBuilder::new(Arc::new(store), peppers)
    }

    /// Verifies a key (a `&str` or `&[u8]`), or a [pair](Credentials::Pair) of a secret key and its
    /// public half. Does no I/O and never waits.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]; show the client only [`VerifyError::public_message`].
    pub fn verify<'a>(
        &self,
        credentials: impl Into<Credentials<'a>>,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        self.inner.verifier.verify(credentials, need)
    }

    /// Verifies several keys for the same need. Returns one verdict for each key, in order, equal
    /// to the verdict of [`verify`](Self::verify). Among a million keys a batch is faster than
    /// single calls.
    #[must_use]
    pub fn verify_many<P: AsRef<[u8]>>(
        &self,
        presented: &[P],
        need: &Need,
    ) -> Vec<Result<Grant, VerifyError>> {
        self.inner.verifier.verify_many(presented, need)
    }

    /// Verifies against the store's latest state. Every command that returned before this call
    /// began is seen. Concurrent callers with the same key share a read that began after all of
    /// their calls.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]; [`StoreUnavailable`](VerifyError::StoreUnavailable) if the store did not
    /// answer, or if the caller holds no known key and
    /// [`ReadThroughLimits`](crate::node::ReadThroughLimits) are exceeded.
    pub async fn verify_fresh<'a>(
        &self,
        credentials: impl Into<Credentials<'a>> + Send,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        self.inner.verifier.verify_fresh(credentials, need).await
    }

    /// Verifies, and reads the store if this node cannot decide. The node cannot decide about a key
    /// that it does not know yet (rule A1-25), or whose class must see the latest state. Past the
    /// staleness bound, [`OnStale`](crate::node::OnStale) decides whether the store is read.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]. A refusal is never cached. Beyond the limits of
    /// [`ReadThroughLimits`](crate::node::ReadThroughLimits) the refusal is
    /// [`StoreUnavailable`](VerifyError::StoreUnavailable).
    pub async fn verify_or_fetch<'a>(
        &self,
        credentials: impl Into<Credentials<'a>> + Send,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        self.inner.verifier.verify_or_fetch(credentials, need).await
    }

    /// Returns the verifier, which can report whether the store has to be read.
    #[cfg(feature = "http")]
    pub(crate) fn verifier(&self) -> &Verifier {
        &self.inner.verifier
    }

    /// Returns the number of times that this process accepted a key since it started, and the time
    /// of the last use. Counted in memory only. `None` if the process does not know the key.
    #[must_use]
    pub fn usage(&self, key: KeyId) -> Option<Usage> {
        self.inner.verifier.uses(key)
    }

    /// Catches up with the store. Call it at least once within every staleness bound, or start a
    /// follower (`Keyward::follow`, feature `tokio`). A service whose store lives in its process
    /// need not call it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store, or of the registry if this node could not register.
    /// Verification continues until the staleness bound is passed, and then fails closed.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let synced = self.inner.replica.sync().await;
        self.inner.verifier.drop_stale_snapshot();
        synced
    }

    /// Returns an upper bound on how far this node is behind.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.inner.replica.freshness()
    }

    /// Replaces the policies, for decisions and verifications that begin after the call. If the new
    /// policies allow a longer staleness than any before, a node with a
    /// [registry](KeywardBuilder::registry) refuses keys as stale until its next
    /// [`sync`](Self::sync) has reported the new bound.
    pub fn set_policies(&self, policies: impl Into<Policies>) {
        let policies = policies.into();
        self.inner.replica.widen(policies.longest_bound());
        self.inner.policies.set(policies);
    }

    /// Returns the shortest staleness bound in force that is not zero.
    #[cfg(feature = "tokio")]
    pub(crate) fn shortest_bound(&self) -> Option<std::time::Duration> {
        self.inner.policies.shortest_bound()
    }

    /// Resolves when the store may have changes that are unknown here. A hint: see
    /// [`KeyStore::wait_past`].
    #[cfg(feature = "tokio")]
    pub(crate) async fn hint(&self) -> Result<(), StoreError> {
        match self.freshness().cursor {
            Some(cursor) => self.inner.store.wait_past(cursor).await,
            None => Ok(()),
        }
    }

    /// Returns the number of the store's answers so far, which grows while a sync is in progress.
    #[cfg(feature = "tokio")]
    pub(crate) fn answers(&self) -> u64 {
        self.inner.replica.answers()
    }

    /// Returns a random number for pacing.
    #[cfg(feature = "tokio")]
    pub(crate) fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        // Without randomness all nodes have the same pace, which is no reason to stop.
        let _ = self.inner.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Returns the manager, which takes commands as data.
    #[must_use]
    pub fn manager(&self) -> &KeyManager {
        &self.inner.manager
    }
}
