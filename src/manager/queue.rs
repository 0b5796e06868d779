//! The commands of each tenant that wait. All that wait are executed as one batch, which every caller drives.
//!
//! A command whose caller is gone leaves the queue, and leaves its batch if no commit with it was sent. A
//! batch whose callers are all gone leaves the queue too, so that the next command starts a batch of its own.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::abandoned::AbandonedBatches;
use super::error::CommandError;
use super::receipt::{Committed, Receipt};
use crate::core::command::{Command, CommandOutcome, Denial, Request};
use crate::core::id::KeyId;
use crate::core::secret::KeyMaterial;
use crate::core::tenant::TenantId;
use crate::core::view::TenantView;
use crate::joint::Joint;

/// At most 64 commands in one commit.
const MAX_BATCH: usize = 64;

/// A command that waits for execution, or is being executed.
pub(super) struct Pending {
    pub(super) request: Request,
    material: Mutex<Arc<Vec<KeyMaterial>>>,
    progress: Mutex<Progress>,
    /// True once the caller is gone.
    left: AtomicBool,
    /// True once a commit with this command was sent, and its outcome is unknown.
    may_have_landed: AtomicBool,
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
            left: AtomicBool::new(false),
            may_have_landed: AtomicBool::new(false),
        }
    }

    /// Records that a commit with this command was sent, and that its outcome is unknown.
    pub(super) fn note_unknown_outcome(&self) {
        self.may_have_landed.store(true, Ordering::Release);
    }

    /// Returns whether the command must be decided: its caller waits, or it may have landed already.
    pub(super) fn is_wanted(&self) -> bool {
        !self.is_left() || self.may_have_landed.load(Ordering::Acquire)
    }

    /// Returns whether the command only issues keys. The next sync is early enough to learn of such a command.
    fn only_issues(&self) -> bool {
        matches!(
            self.request.command,
            Command::Create(_)
                | Command::Import(_)
                | Command::ProvisionTenant
                | Command::ProvisionResource(_)
        )
    }

    fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Returns whether the caller is gone.
    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
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

    fn is_settled(&self) -> bool {
        lock(&self.progress).result.is_some()
    }

    /// Takes the result; `None` if there is none yet.
    fn result(&self) -> Option<Result<Committed, CommandError>> {
        lock(&self.progress).result.take()
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

/// The commands of one tenant.
#[derive(Default)]
struct CommandQueue {
    /// The number of commands that entered so far.
    entered: u64,
    /// The commands that are in no batch yet, in the order of their arrival.
    waiting: BTreeMap<u64, Arc<Pending>>,
    current: Option<Batch>,
    /// The number of commands whose callers are still there.
    tickets: usize,
}

struct Batch {
    work: Arc<Joint<()>>,
    /// True once the next verification drives the batch too.
    abandoned: bool,
    commands: Vec<Arc<Pending>>,
}

impl Batch {
    /// Returns whether this process must learn of the batch's commit before the next sync: some command may
    /// end or narrow a key.
    fn must_be_learned_of(&self) -> bool {
        !self.commands.iter().all(|pending| pending.only_issues())
    }
}

impl CommandQueue {
    /// Takes the next batch from the commands that wait.
    fn next_batch(&mut self) -> Vec<Arc<Pending>> {
        let next = std::iter::from_fn(|| self.waiting.pop_first());
        next.take(MAX_BATCH).map(|(_, pending)| pending).collect()
    }
}

/// The queues in use.
#[derive(Default)]
pub(super) struct CommandQueues {
    by_tenant: Mutex<HashMap<TenantId, CommandQueue>>,
    abandoned: Arc<AbandonedBatches>,
}

impl CommandQueues {
    pub(super) fn abandoned(&self) -> &Arc<AbandonedBatches> {
        &self.abandoned
    }

    pub(super) fn enter(&self, tenant: &TenantId, pending: Pending) -> Ticket<'_> {
        let pending = Arc::new(pending);
        let mut by_tenant = lock(&self.by_tenant);
        let queue = by_tenant.entry(tenant.clone()).or_default();
        queue.entered += 1;
        queue.tickets += 1;
        queue.waiting.insert(queue.entered, pending.clone());
        Ticket {
            queues: self,
            tenant: tenant.clone(),
            number: queue.entered,
            pending,
        }
    }
}

/// A caller's place in a queue. Dropping it takes the command out of the queue.
pub(super) struct Ticket<'a> {
    queues: &'a CommandQueues,
    tenant: TenantId,
    number: u64,
    pending: Arc<Pending>,
}

impl Ticket<'_> {
    pub(super) fn result(&self) -> Option<Result<Committed, CommandError>> {
        self.pending.result()
    }

    /// Drives the tenant's current batch until it ends or is abandoned. Starts the next batch if there is
    /// none.
    pub(super) async fn drive(
        &self,
        begin: impl FnOnce(Vec<Arc<Pending>>) -> BoxFuture<'static, ()>,
    ) {
        let Some(work) = self.join(begin) else {
            return;
        };
        let mut wait = work.wait();
        // An abandoned commit may hold locks of the store that the batch needs.
        let mut abandoned = self.queues.abandoned.drive();
        poll_fn(|cx| {
            let _never = abandoned.poll_unpin(cx);
            // The poll registers the caller before the checks. The other order could miss the wake-up by the
            // caller who abandons the batch, or who polled the batch when it executed this command.
            let ended = wait.poll_unpin(cx).is_ready();
            match ended || self.pending.is_settled() || !self.is_current(&work) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    /// Joins the current batch, or begins one. `None` if no command waits.
    fn join(
        &self,
        begin: impl FnOnce(Vec<Arc<Pending>>) -> BoxFuture<'static, ()>,
    ) -> Option<Arc<Joint<()>>> {
        let mut by_tenant = lock(&self.queues.by_tenant);
        // A caller whose command was executed must not wait for the batch of another.
        if self.pending.is_settled() {
            return None;
        }
        let queue = by_tenant.entry(self.tenant.clone()).or_default();
        queue.current.take_if(|batch| batch.work.is_ended());
        if queue.current.is_none() {
            // A batch that panicked left this command without a result.
            queue.waiting.insert(self.number, self.pending.clone());
            let commands = queue.next_batch();
            if commands.is_empty() {
                return None;
            }
            queue.current = Some(Batch {
                work: Joint::new(begin(commands.clone())),
                abandoned: false,
                commands,
            });
        }
        queue.current.as_ref().map(|batch| batch.work.clone())
    }

    fn is_current(&self, work: &Arc<Joint<()>>) -> bool {
        let by_tenant = lock(&self.queues.by_tenant);
        let current = by_tenant.get(&self.tenant);
        current
            .and_then(|queue| queue.current.as_ref())
            .is_some_and(|batch| Arc::ptr_eq(&batch.work, work))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.pending.leave();
        let left = {
            let mut by_tenant = lock(&self.queues.by_tenant);
            let Some(queue) = by_tenant.get_mut(&self.tenant) else {
                return;
            };
            queue.waiting.remove(&self.number);
            queue.tickets -= 1;
            let is_left = |batch: &mut Batch| batch.commands.iter().all(|one| one.is_left());
            let left = queue.current.take_if(is_left);
            // Those who still wait for the batch may never be polled again. So a command that may end or narrow a
            // key hands its batch to the next verification too.
            if let Some(batch) = queue.current.as_mut().filter(|batch| !batch.abandoned)
                && batch
                    .commands
                    .iter()
                    .any(|one| Arc::ptr_eq(one, &self.pending))
                && !self.pending.only_issues()
                && !self.pending.is_settled()
            {
                batch.abandoned = self.queues.abandoned.add(&batch.work);
            }
            if queue.tickets == 0 {
                by_tenant.remove(&self.tenant);
            }
            left
        };
        // Without a caller, a batch must not delay the tenant's other commands: the store may never answer.
        if let Some(batch) = left.filter(|batch| !batch.work.is_ended()) {
            let kept = batch.abandoned
                || batch.must_be_learned_of() && self.queues.abandoned.add(&batch.work);
            if !kept {
                batch.work.cancel();
            }
            batch.work.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is safe to use: no code panics while it holds one of these locks, and every change
    // replaces a whole value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
