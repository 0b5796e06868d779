//! The facade: manager, replica and verifier wired for the common case.

mod answers;
mod builder;
mod look;
mod manage;
mod nodes;
mod recover;

use std::sync::Arc;

pub use self::answers::{Created, Imported, KeyList, LeakReport, Rotated, TimeRepaired};
pub use self::builder::Builder;
pub use self::look::AuditError;
pub use self::recover::{Recovery, RecoveryError, RecoveryReport};
use crate::core::id::KeyId;
use crate::core::need::Need;
use crate::core::pepper::PepperRing;
use crate::core::policy::{LivePolicies, Policies};
use crate::core::rejection::Rejection;
#[cfg(feature = "tokio")]
use crate::entropy::Entropy;
use crate::manager::KeyManager;
use crate::replica::{Freshness, Replica};
use crate::store::{KeyStore, StoreError};
use crate::timekeeper::Timekeeper;
use crate::verifier::{Grant, Uses, Verifier};

/// API keys over a store: created, verified, rotated, revoked and audited. Cheap to clone.
///
/// # Examples
///
/// ```
/// # pollster::block_on(async {
/// use keyward::store::MemoryStore;
/// use keyward::{Actor, Keyward, NewKey, Need, PepperRing, Reason, Role, days};
///
/// let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
///
/// let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
/// let created = keys
///     .create(&admin, NewKey::new("nightly export").scope("reports:read").expires_in(days(90)))
///     .await?;
///
/// let grant = keys.verify(created.secret.expose(), &Need::scope("reports:read"))?;
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
    /// Starts from a store and the peppers. Everything else has a default: the
    /// [`standard`](crate::profiles::standard) policy, the machine's clocks and its randomness.
    pub fn builder(store: impl KeyStore, peppers: PepperRing) -> Builder {
        Builder::new(Arc::new(store), peppers)
    }

    /// Verifies what was presented. No I/O, no waiting.
    ///
    /// # Errors
    ///
    /// [`Rejection`] says why not; [`Rejection::public_message`] is what a client may be told.
    pub fn verify(&self, presented: impl AsRef<[u8]>, need: &Need) -> Result<Grant, Rejection> {
        self.inner.verifier.verify(presented, need)
    }

    /// Verifies several keys for the same need, and answers in their order: each as
    /// [`verify`](Self::verify) would. Among a million keys a batch takes less time than its keys one
    /// by one.
    #[must_use]
    pub fn verify_many<P: AsRef<[u8]>>(
        &self,
        presented: &[P],
        need: &Need,
    ) -> Vec<Result<Grant, Rejection>> {
        self.inner.verifier.verify_many(presented, need)
    }

    /// Verifies a secret key together with what goes with it: its own key id, or a publishable key
    /// of the same tenant and environment (rules A2-15, I-02).
    ///
    /// # Errors
    ///
    /// [`Rejection`], about the secret key first; about the other half only to a holder of the
    /// secret.
    pub fn verify_pair(
        &self,
        other: impl AsRef<[u8]>,
        secret: impl AsRef<[u8]>,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        self.inner.verifier.verify_pair(other, secret, need)
    }

    /// Verifies against the store's latest state: whatever returned before this call began is seen.
    /// Callers who ask for the same key at once share a read that began after all of their calls.
    ///
    /// # Errors
    ///
    /// [`Rejection`]; [`StoreUnavailable`](Rejection::StoreUnavailable) if the store did not answer,
    /// or if more than [`ReadThrough`](crate::ReadThrough) allows ask for keys that they do not hold,
    /// as far as is known here.
    pub async fn verify_fresh(
        &self,
        presented: impl AsRef<[u8]> + Send,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        self.inner.verifier.verify_fresh(presented, need).await
    }

    /// Verifies, and asks the store where this node cannot tell: for a key that it does not know
    /// yet (rule A1-25), for classes that must see the latest state, and past the bound if
    /// [`PastBound`](crate::PastBound) says so.
    ///
    /// # Errors
    ///
    /// [`Rejection`]. A refusal is never remembered. Beyond the bounds of
    /// [`ReadThrough`](crate::ReadThrough) it is
    /// [`StoreUnavailable`](Rejection::StoreUnavailable).
    pub async fn verify_or_fetch(
        &self,
        presented: impl AsRef<[u8]> + Send,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        self.inner.verifier.verify_or_fetch(presented, need).await
    }

    /// Verifies a pair as [`verify_pair`](Self::verify_pair) does, and asks the store where this node
    /// cannot tell, as [`verify_or_fetch`](Self::verify_or_fetch) does.
    ///
    /// # Errors
    ///
    /// As those two.
    pub async fn verify_pair_or_fetch(
        &self,
        other: impl AsRef<[u8]> + Send,
        secret: impl AsRef<[u8]> + Send,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        let verifier = &self.inner.verifier;
        verifier.verify_pair_or_fetch(other, secret, need).await
    }

    /// The verifier, for who needs to know whether the store must be asked.
    #[cfg(feature = "http")]
    pub(crate) fn verifier(&self) -> &Verifier {
        &self.inner.verifier
    }

    /// How often this process accepted a key since it started, and when last; `None` if it does not
    /// know the key. Counted in memory alone.
    #[must_use]
    pub fn uses(&self, key: KeyId) -> Option<Uses> {
        self.inner.verifier.uses(key)
    }

    /// Catches up with the store. A service whose store is shared with other processes calls this
    /// at least as often as its staleness bound asks for, or starts a follower that does
    /// (`Keyward::follow`, feature `tokio`); one whose store lives in the process need not.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store, or of the registry if this node could not register; verification
    /// goes on until the bound is passed, and then refuses.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let synced = self.inner.replica.sync().await;
        self.inner.verifier.refresh();
        synced
    }

    /// How far this node is behind, at most.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.inner.replica.freshness()
    }

    /// Puts other policies in force, for decisions and verifications that begin after the call. If
    /// they allow for a longer staleness than any before, a node with a
    /// [registry](Builder::registry) refuses as stale until its next [`sync`](Self::sync) has told it.
    pub fn set_policies(&self, policies: impl Into<Policies>) {
        let policies = policies.into();
        self.inner.replica.widen(policies.longest_bound());
        self.inner.policies.set(policies);
    }

    /// The shortest staleness bound in force that is not zero.
    #[cfg(feature = "tokio")]
    pub(crate) fn shortest_bound(&self) -> Option<std::time::Duration> {
        self.inner.policies.shortest_bound()
    }

    /// Resolves when the store may have more than is known here. A hint: see
    /// [`KeyStore::wait_past`].
    #[cfg(feature = "tokio")]
    pub(crate) async fn hint(&self) -> Result<(), StoreError> {
        match self.freshness().cursor {
            Some(cursor) => self.inner.store.wait_past(cursor).await,
            None => Ok(()),
        }
    }

    /// How often the store answered so far: while a sync goes on, ever more often.
    #[cfg(feature = "tokio")]
    pub(crate) fn answers(&self) -> u64 {
        self.inner.replica.answers()
    }

    /// Any number, to pace by.
    #[cfg(feature = "tokio")]
    pub(crate) fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        // Without randomness nodes are paced alike, which is no reason to stop.
        let _ = self.inner.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The manager, to give commands as data.
    #[must_use]
    pub fn manager(&self) -> &KeyManager {
        &self.inner.manager
    }
}
