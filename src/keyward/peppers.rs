//! Counts the keys under each pepper: for an operator during a rotation, in the log at start, and as gauges.

use super::Keyward;
use crate::clock::Clock;
use crate::core::pepper::PepperCount;
use crate::observe;

impl Keyward {
    /// Returns the number of live keys under each pepper of this process, and under each pepper that it lacks. A
    /// key is live if it is neither revoked nor expired. Imported keys need no pepper.
    ///
    /// Retire an old pepper only once no live key needs this pepper. The next use of a key moves the key to the
    /// current pepper. [`BulkFilter::pepper`](crate::command::BulkFilter::pepper) selects the other keys for a
    /// revocation.
    ///
    /// Reads every row of the local index, which takes about 50 ms for a million keys. Does not read the store, so
    /// the counts are as old as the last [`sync`](Self::sync). Keys whose stored bytes are corrupt are not
    /// counted.
    #[must_use]
    pub fn keys_by_pepper(&self) -> Vec<PepperCount> {
        let keys = self.inner.replica.keys_by_pepper();
        self.inner.peppers.count(keys)
    }

    /// Returns the peppers that live keys need and that this process cannot verify with.
    pub(super) fn unverifiable(&self) -> Vec<PepperCount> {
        let counts = self.keys_by_pepper().into_iter();
        counts.filter(PepperCount::is_unverifiable).collect()
    }

    /// Logs each pepper that live keys need and that this process cannot verify with.
    pub(super) fn log_unverifiable(&self) {
        for PepperCount {
            pepper,
            state,
            keys,
        } in self.unverifiable()
        {
            match state {
                Some(state) => tracing::error!(
                    %pepper, %state, keys,
                    "live keys need a pepper that this process has for audit entries only, so it refuses them; \
                     make the pepper live again, or revoke these keys"
                ),
                None => tracing::error!(
                    %pepper, keys,
                    "live keys need a pepper that this process lacks, so it refuses them; \
                     put back the pepper file that has it, or revoke these keys"
                ),
            }
        }
    }

    /// Exports the number of live keys under each pepper as gauges, at most once a minute. Does nothing without
    /// the feature `metrics`.
    pub(super) fn show_peppers(&self) {
        if !observe::IS_EXPORTED || !self.inner.pepper_gauges.begin(self.inner.time.monotonic()) {
            return;
        }
        let counts = self.keys_by_pepper();
        for count in &counts {
            // The id of a pepper that this process lacks is stored data, so it does not become a label.
            if let Some(state) = count.state {
                observe::keys_of_pepper(&count.pepper, state, count.keys);
            }
        }
        let unverifiable = counts.iter().filter(|count| count.is_unverifiable());
        observe::unverifiable_keys(unverifiable.map(|count| count.keys).sum());
    }
}
