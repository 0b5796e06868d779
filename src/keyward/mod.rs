//! [`Keyward`]: one facade over the manager, the replica and the verifier.

mod build_error;
mod builder;
mod commands;
mod follow;
pub(crate) mod lease;
mod losses;
mod nodes;
mod outcomes;
mod peppers;
mod queries;
mod recover;
mod retention;
mod shared;
mod trail;
mod usage;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, OnceLock, Weak};

use async_lock::Mutex as AsyncMutex;
use futures_util::FutureExt;

pub use self::build_error::BuildError;
pub use self::builder::KeywardBuilder;
use self::follow::OwnFollower;
pub use self::follow::{Follow, FollowError, FollowOptions, FollowStatus};
#[cfg(feature = "tokio")]
pub use self::follow::{FollowStartError, Follower};
pub use self::outcomes::{Created, ImportedKey, KeyList, LeakReport, Rotated, TimeRepaired};
pub use self::recover::{Recovery, RecoveryError, RecoveryProgress, RecoveryReport, ReplayedTrail};
pub use self::retention::RetentionReport;
pub use self::shared::StoredPeppers;
pub use self::trail::{AuditError, PrunedAudit};
use self::usage::UsageSender;
pub use self::usage::{FlushError, KeyUsage, UnusedKeys, UsageFlush, UsageQueryError, UsedKeyList};
use crate::core::id::KeyId;
use crate::core::pepper::PepperRing;
use crate::core::policy::Policies;
use crate::core::rejection::VerifyError;
use crate::entropy::Entropy;
use crate::live_policies::LivePolicies;
use crate::manager::KeyManager;
use crate::observe::GaugePeriod;
use crate::replica::{Freshness, Replica};
use crate::store::usage::UsageStore;
use crate::store::{KeyStore, StoreError};
use crate::timekeeper::Timekeeper;
use crate::verifier::{Credentials, Grant, Need, Usage, Verifier};

/// Creates, verifies, rotates, revokes and audits API keys in a store. Cheap to clone.
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
    entropy: Arc<dyn Entropy>,
    /// The follower that the builder started. Empty if it started none.
    follower: OnceLock<OwnFollower>,
    /// Held while the policies are replaced, so that two calls replace them in the order of the store.
    replacing: AsyncMutex<()>,
    /// The time of the last count of keys per pepper for the gauges.
    pepper_gauges: GaugePeriod,
    /// `None` if this process sends no uses.
    usage: Option<UsageSender>,
    /// The usage store that answers questions.
    usage_store: Option<Arc<dyn UsageStore>>,
}

/// A reference to a [`Keyward`] that does not keep it alive.
#[derive(Clone, Debug)]
struct WeakKeyward {
    inner: Weak<Inner>,
}

impl WeakKeyward {
    /// Returns the [`Keyward`]. `None` if all its clones were dropped.
    fn upgrade(&self) -> Option<Keyward> {
        let inner = self.inner.upgrade()?;
        Some(Keyward { inner })
    }
}

impl Keyward {
    /// Returns a builder over a store and the peppers. Everything else has a default: the
    /// [`standard`](crate::profiles::standard) policy, the system's clocks and the system's randomness.
    pub fn builder(store: impl KeyStore, peppers: PepperRing) -> KeywardBuilder {
        KeywardBuilder::new(Arc::new(store), peppers)
    }

    /// Verifies a key (a `&str` or `&[u8]`), or a [pair](Credentials::Pair) of a secret key and its public
    /// half. Does no I/O and never waits for the store.
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

    /// Verifies several keys for the same need. Returns for each key, in order, the result that
    /// [`verify`](Self::verify) would return. With a million keys in the index, one batch is faster than
    /// single calls.
    #[must_use]
    pub fn verify_many<P: AsRef<[u8]>>(
        &self,
        presented: &[P],
        need: &Need,
    ) -> Vec<Result<Grant, VerifyError>> {
        self.inner.verifier.verify_many(presented, need)
    }

    /// Verifies against the store's latest state, which includes every command that returned before this call
    /// began. Concurrent calls with the same key share one read, which starts after all of these calls.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]; [`StoreUnavailable`](VerifyError::StoreUnavailable) if the store did not answer. Also
    /// if [`ReadThroughLimits`](crate::node::ReadThroughLimits) are exceeded, unless the caller presents the
    /// secret of a key that this node knows.
    pub async fn verify_fresh<'a>(
        &self,
        credentials: impl Into<Credentials<'a>> + Send,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        self.inner.verifier.verify_fresh(credentials, need).await
    }

    /// Verifies a key, and reads the store if this node cannot decide alone. A node cannot decide about a key
    /// that it does not know yet, or if the key's class requires the latest state. If this node has not
    /// synced within the staleness bound, [`OnStale`](crate::node::OnStale) selects whether to read the
    /// store.
    ///
    /// # Errors
    ///
    /// [`VerifyError`], which is never cached. [`StoreUnavailable`](VerifyError::StoreUnavailable) if
    /// [`ReadThroughLimits`](crate::node::ReadThroughLimits) are exceeded.
    pub async fn verify_or_fetch<'a>(
        &self,
        credentials: impl Into<Credentials<'a>> + Send,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        self.inner.verifier.verify_or_fetch(credentials, need).await
    }

    /// Returns the verifier. The HTTP layer uses it to try a verification without reading the store.
    #[cfg(feature = "http")]
    pub(crate) fn verifier(&self) -> &Verifier {
        &self.inner.verifier
    }

    /// Returns the number of times that this process accepted the key since it started, and the time of the
    /// last use. Counted in memory only. `None` if the process does not know the key.
    ///
    /// With a [usage store](KeywardBuilder::usage), the count leaves out what was sent to the store. See
    /// [`key_usage`](Self::key_usage).
    #[must_use]
    pub fn usage(&self, key: KeyId) -> Option<Usage> {
        self.inner.verifier.usage(key)
    }

    /// Reads the changes since the last sync from the store. Call this at least once within every staleness
    /// bound, or start a follower (`Keyward::follow`, feature `tokio`). Not needed if the store lives in this
    /// process.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store, or of the registry if this node could not register. Verification
    /// continues within the staleness bound, and then fails closed.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let replica = &self.inner.replica;
        // An abandoned commit may hold locks of the store that the sync needs.
        let mut abandoned = self.inner.manager.abandoned().drive();
        let mut sync = pin!(replica.sync());
        let synced = poll_fn(|cx| {
            let _never = abandoned.poll_unpin(cx);
            sync.as_mut().poll(cx)
        })
        .await;
        self.inner.verifier.drop_stale_snapshot();
        self.show_peppers();
        synced
    }

    /// Returns an upper bound on how far this node is behind the store. Also sets the gauges of the `metrics`
    /// feature, so that the gauges stay current while nothing syncs.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.inner.replica.show_gauges();
        self.inner.replica.freshness()
    }

    /// Replaces the policies, and stores them for the other processes, as the [builder](KeywardBuilder::policy)
    /// does. Affects commands and verifications that begin after this call returns.
    ///
    /// If the new staleness bound is longer than every earlier one, a node with a
    /// [registry](KeywardBuilder::registry) must report it first. Until the next [`sync`](Self::sync) has
    /// reported the bound, the node refuses keys as stale.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the store has other policies of the same version, or fails. The policies in use stay
    /// unchanged.
    pub async fn set_policies(&self, policies: impl Into<Policies>) -> Result<(), BuildError> {
        let policies = policies.into();
        let _replacing = self.inner.replacing.lock().await;
        let policies = shared::agree_on_policies(&*self.inner.store, policies).await?;
        self.inner.replica.widen(policies.longest_bound());
        self.inner.policies.set(policies);
        Ok(())
    }

    /// Returns the policies in use.
    #[must_use]
    pub fn policies(&self) -> Arc<Policies> {
        self.inner.policies.get()
    }

    /// Returns the shortest nonzero staleness bound of the current policies.
    pub(crate) fn shortest_bound(&self) -> Option<std::time::Duration> {
        self.inner.policies.shortest_bound()
    }

    /// Resolves when the store may have changes that this node has not read. Only a hint: see
    /// [`KeyStore::wait_past`].
    ///
    /// The future does not keep this [`Keyward`] alive.
    pub(crate) fn hint(&self) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let (cursor, store) = (self.freshness().cursor, self.inner.store.clone());
        async move {
            match cursor {
                Some(cursor) => store.wait_past(cursor).await,
                None => Ok(()),
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.inner.replica.is_closed()
    }

    fn downgrade(&self) -> WeakKeyward {
        let inner = Arc::downgrade(&self.inner);
        WeakKeyward { inner }
    }

    /// Returns the number of answers that this node has received from the store. A follower sees from this
    /// number that a long sync still makes progress.
    pub(crate) fn answers(&self) -> u64 {
        self.inner.replica.answers()
    }

    /// Returns a random number. A follower uses it to vary its pause after a failed sync.
    pub(crate) fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        // If the entropy source fails, the number is zero. All nodes then sync at the same pace, which is
        // safe.
        let _ = self.inner.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Returns the manager. It executes commands that the application builds as values, instead of by a
    /// method call.
    #[must_use]
    pub fn manager(&self) -> &KeyManager {
        &self.inner.manager
    }

    /// Returns the state of the follower that [`build`](crate::KeywardBuilder::build) started. `None` if it
    /// started none, or if the follower has ended: by [`close`](Self::close), by `follow` (feature `tokio`), by
    /// a panic of the store, or with its runtime.
    #[must_use]
    pub fn follow_status(&self) -> Option<FollowStatus> {
        let own = self.inner.follower.get()?;
        own.is_running().then(|| FollowStatus {
            freshness: self.freshness(),
            ..own.status()
        })
    }

    /// Ends the work of this process on the store. Call it when the process stops, after its last request.
    ///
    /// Ends the follower. If it ran the maintenance, runs it one last time, for at most 30 seconds. Sends the last uses
    /// to the usage store. Then
    /// [deregisters](Self::deregister) the node, and [closes](KeyStore::close) the store. So first uses of
    /// rotation successors are recorded, no receipt waits for this node, and a copy of an SQLite file is whole.
    ///
    /// Afterwards [`sync`](Self::sync) fails, and this node refuses keys as stale, unless the store lives in this
    /// process. Clones of this value are affected too. Dropping every clone instead only ends the follower.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store or the registry. Every change that was reported as committed is still
    /// durable. The call lasts as long as the store and the registry take to answer.
    pub async fn close(&self) -> Result<(), StoreError> {
        if let Some(own) = self.inner.follower.get() {
            own.stop();
            own.ended(self).await;
        }
        self.end_usage().await;
        self.inner.replica.close();
        let deregistered = self.deregister().await;
        let closed = self.inner.store.close().await;
        deregistered.and(closed)
    }
}
