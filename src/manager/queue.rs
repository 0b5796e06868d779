//! The commands of each tenant that wait. One of them at a time is the leader, which executes all waiting
//! commands as one batch.
//!
//! A command whose future is dropped while it waits may be executed nevertheless, like a command whose reply
//! was lost. If the leader is dropped midway, another command of its batch becomes the leader.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::CommandError;
use super::receipt::{Committed, Receipt};
use crate::core::command::{CommandOutcome, Denial, Request};
use crate::core::id::KeyId;
use crate::core::secret::KeyMaterial;
use crate::core::tenant::TenantId;
use crate::core::view::TenantView;

/// At most 64 commands in one commit.
const MAX_BATCH: usize = 64;

/// A command in flight.
pub(super) struct Pending {
    pub(super) request: Request,
    material: Mutex<Arc<Vec<KeyMaterial>>>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The decided outcome, stored before the commit. If the commit's reply is lost, the secret is
    /// kept here.
    tentative: Option<CommandOutcome>,
    result: Option<Result<Committed, CommandError>>,
}

impl Pending {
    pub(super) fn new(request: Request, material: Vec<KeyMaterial>) -> Self {
        let material = Mutex::new(Arc::new(material));
        Self {
            request,
            material,
            progress: Mutex::default(),
        }
    }

    pub(super) fn material(&self) -> Arc<Vec<KeyMaterial>> {
        lock(&self.material).clone()
    }

    pub(super) fn redraw(&self, material: Vec<KeyMaterial>) {
        *lock(&self.material) = Arc::new(material);
    }

    pub(super) fn decided(&self, outcome: CommandOutcome) {
        lock(&self.progress).tentative = Some(outcome);
    }

    /// Records that nothing is left to change. An earlier outcome stays if its keys have landed,
    /// that is, if `keys` contains them. Only that outcome has the keys' secrets.
    pub(super) fn unchanged(&self, outcome: CommandOutcome, keys: &[KeyId]) {
        let mut progress = lock(&self.progress);
        let landed = match &progress.tentative {
            Some(CommandOutcome::Issued { provisioned, .. }) => {
                !provisioned.is_empty() && provisioned.iter().all(|key| keys.contains(&key.id))
            }
            _ => false,
        };
        if !landed {
            progress.tentative = Some(outcome);
        }
    }

    /// Sets the result of the command: the decided outcome has landed, or the command was refused.
    pub(super) fn land(&self, denied: Option<Denial>, receipt: Receipt, view: &TenantView) {
        let mut progress = lock(&self.progress);
        let tentative = progress.tentative.take();
        progress.result = Some(match (denied, tentative) {
            // This command's own earlier attempt landed, but its reply was lost.
            (Some(Denial::AlreadyCreated { id }), Some(outcome)) if landed(&outcome, id, view) => {
                Ok(Committed { outcome, receipt })
            }
            (Some(denied), _) => Err(denied.into()),
            (None, outcome) => Ok(Committed {
                outcome: outcome.unwrap_or(CommandOutcome::Done),
                receipt,
            }),
        });
    }

    pub(super) fn settle(&self, result: Result<Committed, CommandError>) {
        lock(&self.progress).result.get_or_insert(result);
    }

    pub(super) fn is_settled(&self) -> bool {
        lock(&self.progress).result.is_some()
    }

    pub(super) fn result(&self) -> Result<Committed, CommandError> {
        let result = lock(&self.progress).result.take();
        // A leader always sets a result. Without a result, no commit is known to
        // have landed.
        result.unwrap_or(Err(CommandError::Contended { attempts: 0 }))
    }
}

/// Returns whether the stored key `id` is the one in `outcome`. Compares the fingerprint too,
/// because a replaced secret keeps the id.
fn landed(outcome: &CommandOutcome, id: KeyId, view: &TenantView) -> bool {
    let made = match outcome {
        CommandOutcome::Issued { key: Some(key), .. } => key,
        CommandOutcome::Rotated { successor, .. } => successor,
        _ => return false,
    };
    let stands = view.record(id).map(|record| record.fingerprint);
    made.id == id && stands == Some(made.fingerprint)
}

/// The waiting commands of one tenant, and the lock that makes one of them the leader.
#[derive(Default)]
struct CommandQueue {
    waiting: Mutex<Vec<Arc<Pending>>>,
    leadership: async_lock::Mutex<()>,
}

impl CommandQueue {
    fn push(&self, pending: Arc<Pending>) {
        lock(&self.waiting).push(pending);
    }

    async fn leadership(&self) -> async_lock::MutexGuard<'_, ()> {
        self.leadership.lock().await
    }

    /// Returns `own` and other waiting commands. `own` may be missing from the queue if its leader
    /// was dropped.
    fn next_batch(&self, own: &Arc<Pending>) -> Vec<Arc<Pending>> {
        let mut waiting = lock(&self.waiting);
        waiting.retain(|other| !Arc::ptr_eq(other, own) && !other.is_settled());
        let others = waiting.len().min(MAX_BATCH - 1);
        std::iter::once(own.clone())
            .chain(waiting.drain(..others))
            .collect()
    }
}

/// The queues in use.
#[derive(Default)]
pub(super) struct CommandQueues(Mutex<HashMap<TenantId, Arc<CommandQueue>>>);

impl CommandQueues {
    pub(super) fn enter(&self, tenant: &TenantId) -> QueueGuard<'_> {
        let queue = lock(&self.0).entry(tenant.clone()).or_default().clone();
        QueueGuard {
            queues: self,
            tenant: tenant.clone(),
            queue: Some(queue),
        }
    }
}

/// A command's registration with a queue. The last one to end removes the queue, with any dropped commands
/// in it.
pub(super) struct QueueGuard<'a> {
    queues: &'a CommandQueues,
    tenant: TenantId,
    /// `None` only during drop. The reference is dropped under the lock of `queues`, so that the
    /// count of the remaining guards is exact.
    queue: Option<Arc<CommandQueue>>,
}

impl QueueGuard<'_> {
    pub(super) fn push(&self, pending: &Arc<Pending>) {
        self.queue
            .iter()
            .for_each(|queue| queue.push(pending.clone()));
    }

    pub(super) async fn leadership(&self) -> Option<async_lock::MutexGuard<'_, ()>> {
        match &self.queue {
            Some(queue) => Some(queue.leadership().await),
            None => None,
        }
    }

    pub(super) fn next_batch(&self, own: &Arc<Pending>) -> Vec<Arc<Pending>> {
        self.queue
            .as_ref()
            .map_or_else(|| vec![own.clone()], |queue| queue.next_batch(own))
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        let mut queues = lock(&self.queues.0);
        drop(self.queue.take());
        // Only the map's own reference is left. Nobody can enter, because entering takes the lock
        // held here.
        if queues
            .get(&self.tenant)
            .is_some_and(|queue| Arc::strong_count(queue) == 1)
        {
            queues.remove(&self.tenant);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoning is ignored: no code panics under one of these locks, and each guards whole values
    // only.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
