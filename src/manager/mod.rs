//! The manager, which loads the rows that a command needs, decides, commits, and retries after a conflict.
//!
//! Concurrent commands for one tenant are decided together and committed as one, so that a busy tenant does
//! not conflict with itself. No async runtime is needed: each waiting caller that is polled drives the batch,
//! so a caller that is dropped, or kept and not polled, delays no other caller.

mod abandoned;
mod batch;
mod error;
mod queue;
mod receipt;
mod sweep;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;

pub(crate) use self::abandoned::AbandonedBatches;
pub(crate) use self::batch::load_ancestry;
pub use self::error::CommandError;
use self::queue::{CommandQueues, Pending};
pub use self::receipt::{Committed, Receipt};
pub use self::sweep::BulkReceipt;
pub(crate) use self::sweep::lineage_of;
use crate::clock::Clock;
use crate::core::checked_time::CheckedTime;
use crate::core::command::Request;
use crate::core::decide;
use crate::core::id::KeyId;
use crate::core::pepper::PepperRing;
use crate::core::secret::KeyMaterial;
use crate::core::text::CommandId;
use crate::entropy::{Entropy, EntropyError};
use crate::live_policies::LivePolicies;
use crate::store::{CommitTag, KeyStore, Learnt, StoreError};
use crate::timekeeper::Timekeeper;

/// A listener for committed batches, called before any command of the batch returns.
pub type CommitListener = dyn Fn(&Learnt) + Send + Sync;

/// A function that gets key ids, and returns those keys among them that were used in this process.
type UsedHere = dyn Fn(&[KeyId]) -> BTreeSet<KeyId> + Send + Sync;

/// A check before each attempt to execute a command. Fails if the store must not be used.
type HistoryCheck = dyn Fn() -> Result<(), StoreError> + Send + Sync;

/// Executes commands that change keys: loads, decides, commits, and retries after a conflict.
///
/// Part of every [`Keyward`](crate::Keyward), and usable on its own.
pub struct KeyManager {
    executor: Arc<BatchExecutor>,
    queues: CommandQueues,
}

/// Everything that a batch needs. A batch owns a reference, because it may outlive its callers.
#[derive(Clone)]
struct BatchExecutor {
    store: Arc<dyn KeyStore>,
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    time: Arc<Timekeeper>,
    entropy: Arc<dyn Entropy>,
    landed: Option<Arc<CommitListener>>,
    used: Option<Arc<UsedHere>>,
    history: Option<Arc<HistoryCheck>>,
}

impl fmt::Debug for KeyManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BatchExecutor {
            store,
            policies: _,
            peppers,
            time,
            entropy,
            used: _,
            landed: _,
            history: _,
        } = &*self.executor;
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
        let executor = BatchExecutor {
            store,
            policies,
            peppers,
            time: Arc::new(Timekeeper::new(clock, CheckedTime::ALLOWANCE)),
            entropy,
            landed: None,
            used: None,
            history: None,
        };
        Self {
            executor: Arc::new(executor),
            queues: CommandQueues::default(),
        }
    }

    /// Sets the source of time, which the verifiers of this process share.
    #[must_use]
    pub fn with_time(mut self, time: Arc<Timekeeper>) -> Self {
        Arc::make_mut(&mut self.executor).time = time;
        self
    }

    /// Calls `listener` for every committed batch, before any command of the batch returns.
    #[must_use]
    pub fn with_listener(mut self, listener: impl Fn(&Learnt) + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.executor).landed = Some(Arc::new(listener));
        self
    }

    /// Sets a function that gets key ids, and returns those keys among them that were used in this process.
    ///
    /// If a command loads a rotation successor that was used, but has no recorded first use, the manager
    /// records the first use in the same commit.
    #[must_use]
    pub fn with_uses(
        mut self,
        used: impl Fn(&[KeyId]) -> BTreeSet<KeyId> + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.executor).used = Some(Arc::new(used));
        self
    }

    /// Sets a check that runs before each command reads the store. If the check fails, the command is refused. The
    /// check fails if the store went back in time. Such a store may lose the commands that it accepts, and their
    /// answers would be false.
    #[must_use]
    pub(crate) fn with_history_check(
        mut self,
        check: impl Fn() -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.executor).history = Some(Arc::new(check));
        self
    }

    /// Executes one command. Repeating the same request returns its outcome.
    ///
    /// If the future is dropped before the command's commit was sent to the store, the command is not
    /// executed. Afterwards it may or may not commit. If it commits, this process learns of the commit at its
    /// next verification, command or sync, unless the command only issues keys: those are learned of by the
    /// next sync that reads the store.
    ///
    /// A future that is kept and not polled delays no other caller.
    ///
    /// # Errors
    ///
    /// [`CommandError`] if the command was denied, or could not be executed.
    pub async fn execute(&self, request: Request) -> Result<Committed, CommandError> {
        let tenant = request.tenant.clone();
        let policy = self.executor.policies.load().of(&tenant).clone();
        let needed = decide::keys_needed(&request.command, &policy);
        let pending = Pending::new(request, self.executor.draw(needed)?);
        let ticket = self.queues.enter(&tenant, pending);
        loop {
            if let Some(result) = ticket.result() {
                return result;
            }
            let executor = &self.executor;
            let begin = |batch| executor.clone().settle(tenant.clone(), batch).boxed();
            ticket.drive(begin).await;
        }
    }

    /// Returns a random command id, for a caller that did not choose one.
    ///
    /// # Errors
    ///
    /// [`EntropyError`] if there is no randomness.
    pub fn command_id(&self) -> Result<CommandId, EntropyError> {
        let BatchExecutor { time, entropy, .. } = &*self.executor;
        let id = KeyMaterial::draw(time.now(), |out| entropy.fill(out))?.id();
        CommandId::new(id.to_string()).map_err(|_| EntropyError)
    }

    /// Returns the batches whose callers are all gone, so that a verifier can take their results in.
    pub(crate) fn abandoned(&self) -> &Arc<AbandonedBatches> {
        self.queues.abandoned()
    }
}

impl BatchExecutor {
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
}
