//! Confirmations: which nodes have applied a committed change.

use std::time::Duration;

use super::Keyward;
use crate::clock::Clock;
use crate::manager::Receipt;
use crate::observe::WithSources;
use crate::replica::{Awaited, Confirmations};
use crate::store::{NodeId, StoreError};

/// 250 ms: the longest pause between two reads of the registry, equal to the default poll interval of a
/// follower.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Confirmations of a change by all nodes; see [`KeywardBuilder::registry`](crate::KeywardBuilder::registry).
impl Keyward {
    /// Reads the registry once, and returns which nodes have applied a change and which may still act on the
    /// earlier state. Without a registry, the result depends only on whether the [bound](Receipt::bound) has
    /// passed.
    ///
    /// A verification that was in flight when its node reported the change may still use the earlier state. Judges
    /// each node by the staleness bound that the node reports. Does not wait for nodes that do not register. The
    /// receipt must be from this process.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store or the registry did not answer. Never fails once the bound has passed,
    /// because no answer is needed then.
    pub async fn confirmations(&self, receipt: &Receipt) -> Result<Confirmations, StoreError> {
        let asked = self.inner.replica.confirmations(&awaited(receipt)).await;
        self.inner.verifier.drop_stale_snapshot();
        asked
    }

    /// Resolves when every node either has applied a change or is past the staleness bound and fails closed.
    /// Returns the state of each node. `pause` must sleep for the given time, with a timer of the host. A
    /// call that was dropped can be repeated.
    ///
    /// # Examples
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use std::sync::Arc;
    /// use keyward::store::MemoryStore;
    /// use keyward::{Actor, Keyward, ManualClock, CreateKey, PepperRing, Reason, Role};
    ///
    /// let clock = Arc::new(ManualClock::at("2026-01-01T00:00:00Z".parse()?));
    /// let store = MemoryStore::new();
    /// let builder = Keyward::builder(store.clone(), PepperRing::generate()?);
    /// let keys = builder.registry(store).clock(clock.clone()).build().await?;
    ///
    /// let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    /// let key = keys.create(&admin, CreateKey::new("export")).await?;
    /// let receipt = keys.revoke(&admin, key.id, Reason::Lost).await?;
    ///
    /// // With tokio: `keys.wait_confirmed(&receipt, tokio::time::sleep)`.
    /// let pause = |time| { let clock = clock.clone(); async move { clock.advance(time) } };
    /// let confirmed = keys.wait_confirmed(&receipt, pause).await;
    /// assert_eq!(confirmed.applied().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn wait_confirmed<P, W>(&self, receipt: &Receipt, mut pause: P) -> Confirmations
    where
        P: FnMut(Duration) -> W + Send,
        W: Future<Output = ()> + Send,
    {
        loop {
            let at_most = match self.confirmations(receipt).await {
                Ok(confirmations) if confirmations.is_complete() => return confirmations,
                Ok(confirmations) => confirmations.at_most(),
                Err(error) => {
                    tracing::debug!(error = %WithSources(&error), "cannot read which nodes have applied a change");
                    awaited(receipt).left(self.inner.time.monotonic())
                }
            };
            // At least 1 µs: with a pause of zero, this loop would never end under a clock that does not
            // advance.
            pause(at_most.clamp(Duration::from_micros(1), ASK_EVERY)).await;
        }
    }

    /// Returns the id of this node; `None` without a registry.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.inner.replica.node()
    }

    /// Deregisters this node before a clean shutdown, so that no receipt waits for it. First records the
    /// first uses of successors that this process counted. After this call, keys are refused as stale, unless
    /// the store lives in this process. A later [`sync`](Self::sync) registers the node again.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the registry. The node's lease then expires by itself.
    pub async fn deregister(&self) -> Result<(), StoreError> {
        if let Err(error) = self.record_first_uses().await {
            tracing::warn!(error = %WithSources(&error), "cannot record first uses of successors before shutdown");
        }
        self.inner.replica.leave().await
    }
}

const fn awaited(receipt: &Receipt) -> Awaited {
    Awaited {
        epoch: receipt.epoch(),
        revision: receipt.revision(),
        returned: receipt.returned(),
        bound: receipt.bound(),
    }
}
