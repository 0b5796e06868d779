//! The manager, which loads the rows that a command needs, decides, commits, and retries after a conflict.
//!
//! Concurrent commands for one tenant are decided together and committed as one commit. So a busy tenant does
//! not conflict with itself. No async runtime is needed, because one of the waiting callers does the work for
//! all of them.

mod batch;
mod error;
mod queue;
mod receipt;
mod sweep;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

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
use crate::core::policy::{LivePolicies, Policy};
use crate::core::secret::KeyMaterial;
use crate::core::tenant::TenantId;
use crate::core::text::CommandId;
use crate::core::time::Timestamp;
use crate::entropy::{Entropy, EntropyError};
use crate::store::{CommitTag, KeyStore, Learnt};
use crate::timekeeper::Timekeeper;

/// A listener for committed batches, called before any command of the batch returns.
pub type CommitListener = dyn Fn(&Learnt) + Send + Sync;

/// A function that gets key ids, and returns those keys among them that were used in this process.
type UsedHere = dyn Fn(&[KeyId]) -> BTreeSet<KeyId> + Send + Sync;

/// Executes commands that change keys: loads, decides, commits, and retries after a conflict.
///
/// Part of every [`Keyward`](crate::Keyward), and usable on its own.
pub struct KeyManager {
    store: Arc<dyn KeyStore>,
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    time: Arc<Timekeeper>,
    entropy: Arc<dyn Entropy>,
    landed: Option<Box<CommitListener>>,
    used: Option<Box<UsedHere>>,
    queues: CommandQueues,
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
            queues: _,
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
        let queues = CommandQueues::default();
        let time = Arc::new(Timekeeper::new(clock, CheckedTime::ALLOWANCE));
        Self {
            store,
            policies,
            peppers,
            time,
            entropy,
            landed: None,
            used: None,
            queues,
        }
    }

    /// Sets the source of time, which the verifiers of this process share.
    #[must_use]
    pub fn with_time(mut self, time: Arc<Timekeeper>) -> Self {
        self.time = time;
        self
    }

    /// Calls `listener` for every committed batch, before any command of the batch returns.
    #[must_use]
    pub fn with_listener(mut self, listener: impl Fn(&Learnt) + Send + Sync + 'static) -> Self {
        self.landed = Some(Box::new(listener));
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
        self.used = Some(Box::new(used));
        self
    }

    /// Executes one command. If the future is dropped, the command may or may not commit. Repeating the same
    /// request returns its outcome.
    ///
    /// # Errors
    ///
    /// [`CommandError`] if the command was denied, or could not be executed.
    pub async fn execute(&self, request: Request) -> Result<Committed, CommandError> {
        let tenant = request.tenant.clone();
        let policy = self.policy(&tenant);
        let needed = decide::keys_needed(&request.command, &policy);
        let pending = Arc::new(Pending::new(request, self.draw(needed)?));
        let queue = self.queues.enter(&tenant);
        queue.push(&pending);
        {
            let _leadership = queue.leadership().await;
            // The leader of an earlier batch may already have executed this command.
            if !pending.is_settled() {
                let batch = queue.next_batch(&pending);
                self.settle(&tenant, &batch).await;
            }
        }
        drop(queue);
        pending.result()
    }

    /// Returns a random command id, for a caller that did not choose one.
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
