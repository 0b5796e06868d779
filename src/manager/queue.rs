//! The waiting commands of each tenant. One of them at a time is the leader, which executes all waiting
//! commands as one batch.
//!
//! If the future of a waiting command is dropped, the command may still be executed, as if its reply had been
//! lost. If the leader's future is dropped before the end, another command of its batch becomes the leader.

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

/// A command that waits for execution, or is being executed.
pub(super) struct Pending {
    pub(super) request: Request,
    material: Mutex<Arc<Vec<KeyMaterial>>>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The outcome that was decided, stored before the commit is sent. If the reply to the commit is lost,
    /// the secrets of new keys are only here.
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

    /// Records that the command has nothing left to change.
    ///
    /// If an earlier attempt of the command created keys, its outcome is kept, because only that outcome
    /// contains their secrets. `keys` contains the keys that are stored.
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

    /// Sets the result of the command. The command was either committed with the decided outcome, or refused
    /// with `denied`.
    pub(super) fn land(&self, denied: Option<Denial>, receipt: Receipt, view: &TenantView) {
        let mut progress = lock(&self.progress);
        let tentative = progress.tentative.take();
        progress.result = Some(match (denied, tentative) {
            // The key exists because an earlier attempt of this command was committed, and its reply was
            // lost.
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
        // A leader sets the result of every command in its batch. If there is no result, no attempt is known
        // to have committed.
        result.unwrap_or(Err(CommandError::Contended { attempts: 0 }))
    }
}

/// Returns whether the stored key `id` is the key in `outcome`. Compares the fingerprints too, because a key
/// keeps its id if its secret is replaced.
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

    /// Returns the command `own`, and other commands that wait. `own` may be missing from the queue, because
    /// an earlier leader may have taken it and then been dropped.
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

/// The registration of a command with a queue. When the last registration is dropped, the queue is removed.
/// Commands that are left in it were dropped by their callers.
pub(super) struct QueueGuard<'a> {
    queues: &'a CommandQueues,
    tenant: TenantId,
    /// `None` only while the guard is dropped. The reference is released while `queues` is locked, so that
    /// the count of the remaining references is exact.
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
        // No other guard refers to this queue. No command can enter it now, because entering requires the
        // lock of `queues`, which is held here.
        if queues
            .get(&self.tenant)
            .is_some_and(|queue| Arc::strong_count(queue) == 1)
        {
            queues.remove(&self.tenant);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is safe to use: no code panics while it holds one of these locks, and every change
    // replaces a whole value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
