//! The confirmations of a receipt by nodes.

use std::time::Duration;

use super::Keyward;
use crate::clock::Clock;
use crate::manager::Receipt;
use crate::replica::{Awaited, Confirmations};
use crate::store::{NodeId, StoreError};

/// 250 ms between two reads of the registry. A judgement: followers poll about as often.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The nodes' confirmations of a change; see
/// [`KeywardBuilder::registry`](crate::KeywardBuilder::registry).
impl Keyward {
    /// Reads once which nodes act on a change, and which may still act on the state before it.
    /// Without a registry only the [bound](Receipt::bound) decides.
    ///
    /// A verification that a node began before it reported the change may still end afterwards. As
    /// in [`no_later_than`](Receipt::no_later_than), all nodes are assumed to have this node's
    /// policies. The receipt must be from this process.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store or the registry did not answer. Never once the bound has passed,
    /// because no answer is needed then.
    pub async fn confirmations(&self, receipt: &Receipt) -> Result<Confirmations, StoreError> {
        let asked = self.inner.replica.confirmations(&awaited(receipt)).await;
        self.inner.verifier.drop_stale_snapshot();
        asked
    }

    /// Resolves when no node can act on the state before a change: every node has the change, or is
    /// past the staleness bound. The result has the answer of each node. `pause` sleeps for the
    /// given time, by the host's own timer. A dropped call can be repeated.
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
                    tracing::debug!(%error, "cannot ask who has a change");
                    awaited(receipt).left(self.inner.time.monotonic())
                }
            };
            // At least a microsecond, or a stopped clock would be polled without end.
            pause(at_most.clamp(Duration::from_micros(1), ASK_EVERY)).await;
        }
    }

    /// Returns the id of this node; `None` without a registry.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.inner.replica.node()
    }

    /// Deregisters this node before a clean shutdown. Records the counted first uses, and removes
    /// the node from the registry, so that no receipt waits for it. After this call keys are
    /// refused as stale, unless the store lives in this process. A later [`sync`](Self::sync)
    /// registers the node again.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the registry. The node's lease then expires by itself.
    pub async fn deregister(&self) -> Result<(), StoreError> {
        if let Err(error) = self.record_first_uses().await {
            tracing::warn!(%error, "cannot record at the end which keys were used");
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
