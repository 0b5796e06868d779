//! The manager: loads the rows that a command needs, decides, commits, and retries after a
//! conflict.
//!
//! Concurrent commands for one tenant are decided together and committed as one, so that a hot
//! tenant does not conflict with itself. No runtime is needed: one of the waiting callers does the
//! work.

mod batch;
mod error;
mod lane;
mod sweep;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::batch::load_ancestry;
pub use self::error::CommandError;
use self::lane::{Lanes, Pending};
pub use self::sweep::BulkReceipt;
pub(crate) use self::sweep::lineage_of;
use crate::clock::Clock;
use crate::core::checked_time::CheckedTime;
use crate::core::command::{Outcome, Request};
use crate::core::decide;
use crate::core::id::KeyId;
use crate::core::pepper::PepperRing;
use crate::core::policy::{LivePolicies, Policy};
use crate::core::secret::KeyMaterial;
use crate::core::tenant::TenantId;
use crate::core::text::CommandId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::entropy::{Entropy, EntropyError};
use crate::store::{CommitTag, Epoch, KeyStore, Learnt};
use crate::timekeeper::Timekeeper;

/// The outcome of a command, and the time until its effect has reached every verifier.
#[derive(Debug)]
pub struct Committed {
    /// The outcome of the command.
    pub outcome: Outcome,
    /// The receipt of the commit.
    pub receipt: Receipt,
}

/// The position and time of a committed change, and the bound on its propagation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Receipt {
    epoch: Option<Epoch>,
    revision: Revision,
    decided_at: Timestamp,
    no_later_than: Timestamp,
    returned: Duration,
    bound: Duration,
}

impl Receipt {
    /// Returns one receipt for this change and a later change.
    fn and(self, later: Self) -> Self {
        let Self {
            epoch,
            revision: _,
            decided_at: _,
            no_later_than,
            returned,
            bound,
        } = self;
        Self {
            epoch: later.epoch.filter(|_| later.epoch == epoch),
            no_later_than: no_later_than.max(later.no_later_than),
            returned: returned.max(later.returned),
            bound: bound.max(later.bound),
            ..later
        }
    }

    /// Returns this receipt with the history that was followed when the change was requested.
    pub(crate) const fn within(mut self, epoch: Option<Epoch>) -> Self {
        self.epoch = epoch;
        self
    }

    /// Returns the store's history that this process followed when the change was requested; `None`
    /// if it followed none.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Returns the instant at which the store had answered, on this process's monotonic clock.
    pub(crate) const fn returned(&self) -> Duration {
        self.returned
    }

    /// Returns the longest time after the store's answer for which a verifier may act on the state
    /// before the change.
    #[must_use]
    pub const fn bound(&self) -> Duration {
        self.bound
    }

    /// Returns the store's revision that contains the change.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the instant for which the change was decided.
    #[must_use]
    pub const fn decided_at(&self) -> Timestamp {
        self.decided_at
    }

    /// Returns the instant, on this node's clock, from which no verifier acts on the state before
    /// the change. In the process that made the change, this holds as soon as the call returns.
    #[must_use]
    pub const fn no_later_than(&self) -> Timestamp {
        self.no_later_than
    }
}

/// A listener for batches that landed. It is called before any command of the batch returns.
pub type CommitListener = dyn Fn(&Learnt) + Send + Sync;

/// Returns the keys among its argument that were used in this process.
type UsedHere = dyn Fn(&[KeyId]) -> BTreeSet<KeyId> + Send + Sync;

/// Changes keys: loads, decides, commits, retries.
///
/// Usable on its own, or inside [`Keyward`](crate::Keyward).
pub struct KeyManager {
    store: Arc<dyn KeyStore>,
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    time: Arc<Timekeeper>,
    entropy: Arc<dyn Entropy>,
    landed: Option<Box<CommitListener>>,
    used: Option<Box<UsedHere>>,
    lanes: Lanes,
}

impl fmt::Debug for KeyManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            store,
            policies: _,
            peppers,
            time,
            entropy,
            used: _,
            landed: _,
            lanes: _,
        } = self;
        f.debug_struct("KeyManager")
            .field("store", store)
            .field("peppers", peppers)
            .field("time", time)
            .field("entropy", entropy)
            .finish_non_exhaustive()
    }
}

impl KeyManager {
    /// Creates a manager of the keys in `store`.
    pub fn new(
        store: Arc<dyn KeyStore>,
        policies: Arc<LivePolicies>,
        peppers: Arc<PepperRing>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let lanes = Lanes::default();
        let time = Arc::new(Timekeeper::new(clock, CheckedTime::ALLOWANCE));
        Self {
            store,
            policies,
            peppers,
            time,
            entropy,
            landed: None,
            used: None,
            lanes,
        }
    }

    /// Shares the time with the verifiers of this process.
    #[must_use]
    pub fn with_time(mut self, time: Arc<Timekeeper>) -> Self {
        self.time = time;
        self
    }

    /// Calls `listener` for every batch that lands, before any command of the batch returns.
    #[must_use]
    pub fn with_listener(mut self, listener: impl Fn(&Learnt) + Send + Sync + 'static) -> Self {
        self.landed = Some(Box::new(listener));
        self
    }

    /// Sets a function that returns the keys used in this process, among the keys of a command. The
    /// manager records a successor's first use along with the command, if it is not recorded yet.
    #[must_use]
    pub fn with_uses(
        mut self,
        used: impl Fn(&[KeyId]) -> BTreeSet<KeyId> + Send + Sync + 'static,
    ) -> Self {
        self.used = Some(Box::new(used));
        self
    }

    /// Carries out one command. If the future is dropped, the command may or may not land;
    /// repeating the same request returns its outcome.
    ///
    /// # Errors
    ///
    /// [`CommandError`] if the command was refused, or could not be carried out.
    pub async fn execute(&self, request: Request) -> Result<Committed, CommandError> {
        let tenant = request.tenant.clone();
        let policy = self.policy(&tenant);
        let needed = decide::keys_needed(&request.command, &policy);
        let pending = Arc::new(Pending::new(request, self.draw(needed)?));
        let lane = self.lanes.enter(&tenant);
        lane.queue(&pending);
        {
            let _turn = lane.turn().await;
            // An earlier turn may have carried this command out already.
            if !pending.is_settled() {
                let batch = lane.next_batch(&pending);
                self.settle(&tenant, &batch).await;
            }
        }
        drop(lane);
        pending.result()
    }

    /// Returns a random id for a command whose caller named none.
    ///
    /// # Errors
    ///
    /// [`EntropyError`] if there is no randomness.
    pub fn command_id(&self) -> Result<CommandId, EntropyError> {
        let id = KeyMaterial::draw(self.time.now(), |out| self.entropy.fill(out))?.id();
        CommandId::new(id.to_string()).map_err(|_| EntropyError)
    }

    fn policy(&self, tenant: &TenantId) -> Arc<Policy> {
        self.policies.load().of(tenant).clone()
    }

    fn draw(&self, count: usize) -> Result<Vec<KeyMaterial>, EntropyError> {
        let now = self.time.now();
        let draw = |_| KeyMaterial::draw(now, |out| self.entropy.fill(out));
        (0..count).map(draw).collect()
    }

    fn tag(&self) -> Result<CommitTag, EntropyError> {
        let mut tag = [0; 16];
        self.entropy.fill(&mut tag)?;
        Ok(CommitTag(u128::from_le_bytes(tag)))
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.time.now()
    }
}
