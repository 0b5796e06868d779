//! Which nodes have a change: what a receipt can be asked.

use std::time::Duration;

use super::Keyward;
use crate::clock::Clock;
use crate::manager::Receipt;
use crate::replica::{Awaited, Confirmations};
use crate::store::{NodeId, StoreError};

/// How long nodes are given between two questions. A judgement: followers poll about as often.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// What nodes say of themselves; see [`Builder::registry`](crate::Builder::registry).
impl Keyward {
    /// Asks once which nodes act on a change, and which may still act on the state before. Without a
    /// registry nobody can be asked, and only the [bound](Receipt::bound) tells.
    ///
    /// What a node began before it said that it has the change may still end after that. As for
    /// [`no_later_than`](Receipt::no_later_than), all nodes are taken to have this one's policies. The
    /// receipt must be one of this process.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store or the registry did not answer. Never once the bound has passed:
    /// nobody needs to answer then.
    pub async fn confirmations(&self, receipt: &Receipt) -> Result<Confirmations, StoreError> {
        let asked = self.inner.replica.confirmations(&awaited(receipt)).await;
        self.inner.verifier.refresh();
        asked
    }

    /// Resolves when nobody can act on the state before a change any more: all nodes have it, or
    /// those that have not are past the bound, which the answer tells. `pause` waits for as long as
    /// it is told, by whatever timer the host has. Dropped, it can be called again.
    ///
    /// # Examples
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use std::sync::Arc;
    /// use keyward::store::MemoryStore;
    /// use keyward::{Actor, Keyward, ManualClock, NewKey, PepperRing, Reason, Role};
    ///
    /// let clock = Arc::new(ManualClock::at("2026-01-01T00:00:00Z".parse()?));
    /// let store = MemoryStore::new();
    /// let builder = Keyward::builder(store.clone(), PepperRing::generate()?);
    /// let keys = builder.registry(store).clock(clock.clone()).build().await?;
    ///
    /// let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    /// let key = keys.create(&admin, NewKey::new("export")).await?;
    /// let receipt = keys.revoke(&admin, key.id, Reason::Lost).await?;
    ///
    /// // With tokio: `keys.confirmed(&receipt, tokio::time::sleep)`.
    /// let pause = |time| { let clock = clock.clone(); async move { clock.advance(time) } };
    /// let confirmed = keys.confirmed(&receipt, pause).await;
    /// assert_eq!(confirmed.applied().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn confirmed<P, W>(&self, receipt: &Receipt, mut pause: P) -> Confirmations
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
            // Never nothing, or a clock that stands still would be asked for ever.
            pause(at_most.clamp(Duration::from_micros(1), ASK_EVERY)).await;
        }
    }

    /// Which node this is; `None` without a registry.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.inner.replica.node()
    }

    /// Stops being a node, before a clean end: records the first uses that were counted, and has the registry
    /// forget the node, so that no receipt waits for it. Keys are refused as stale from here on, unless the
    /// store lives in this process. A later [`sync`](Self::sync) registers it anew.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the registry. The entry lapses by itself then.
    pub async fn leave(&self) -> Result<(), StoreError> {
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
