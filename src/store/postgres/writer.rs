//! The single writer of a node: a task that applies all waiting commits in one transaction, which costs
//! one fsync. Each commit stays conditional, and gets its own answer.

use std::sync::Arc;

use event_listener::Event;
use tokio::sync::{mpsc, oneshot};

use super::fault::PostgresFault;
use super::session::{Database, Session, SessionMode};
use super::write::{CommitBatch, CommitResult};
use crate::store::{Commit, CommitError, StoreError, StoreErrorKind};

/// 4,096 rows in one transaction, unless one commit alone has more: enough to amortise the fsync, and a few megabytes at most.
const MAX_ROWS: usize = 4096;

/// 8 attempts at commits that the server rolled back because of other transactions. Each attempt starts after the conflicting transaction has ended.
const ATTEMPTS: usize = 8;

const DOING: &str = "committing to the database";

/// A commit in flight, and the channel of its caller, who may have stopped waiting.
struct QueuedCommit {
    commit: Commit,
    answer: oneshot::Sender<CommitResult>,
}

/// The handle of the task, which ends when the handle is dropped and every queued commit has its answer.
pub(super) struct PostgresWriter {
    queue: mpsc::UnboundedSender<QueuedCommit>,
}

impl PostgresWriter {
    /// Starts the task. The task notifies `landed` and sends a hint after every durable group.
    pub(super) fn start(
        database: Arc<Database>,
        runtime: &tokio::runtime::Handle,
        landed: Arc<Event>,
        hints: mpsc::Sender<()>,
    ) -> Self {
        let (queue, mut waiting) = mpsc::unbounded_channel();
        let task = async move {
            while let Some(group) = next_group(&mut waiting).await {
                if settle(&database, group).await {
                    landed.notify(usize::MAX);
                    // One hint in the channel covers all groups until it is received.
                    let _ = hints.try_send(());
                }
                // Callers that were answered may commit again: those commits join the next group.
                tokio::task::yield_now().await;
            }
        };
        drop(runtime.spawn(task));
        Self { queue }
    }

    pub(super) async fn commit(&self, commit: Commit) -> CommitResult {
        let (answer, answered) = oneshot::channel();
        let gone = |kind| StoreError::new(kind, DOING);
        self.queue
            .send(QueuedCommit { commit, answer })
            .map_err(|_| gone(StoreErrorKind::Unavailable))?;
        // The writer answers every commit, unless its task ends first.
        let answer = answered.await;
        answer.unwrap_or_else(|_| Err(gone(StoreErrorKind::Indeterminate).into()))
    }
}

/// Takes the waiting commits, as many as fit into one transaction. `None` if the handle was dropped and no
/// commit waits.
async fn next_group(
    waiting: &mut mpsc::UnboundedReceiver<QueuedCommit>,
) -> Option<Vec<QueuedCommit>> {
    let size = |queued: &QueuedCommit| {
        queued.commit.effects.puts.len() + queued.commit.effects.audit.len()
    };
    let first = waiting.recv().await?;
    let mut rows = size(&first);
    let mut group = vec![first];
    while rows < MAX_ROWS
        && let Ok(queued) = waiting.try_recv()
    {
        rows += size(&queued) + 1;
        group.push(queued);
    }
    // Drops commits whose callers stopped waiting. No work on these commits has started.
    group.retain(|queued| !queued.answer.is_closed());
    Some(group)
}

/// The verdicts of a durable group, or the fault that rolled the group back. After [`PostgresFault::Unknown`]
/// the group may or may not have been written.
type Outcome = Result<Vec<CommitResult>, PostgresFault>;

/// Writes a group and answers its commits. Returns whether anything may have been written.
async fn settle(database: &Arc<Database>, group: Vec<QueuedCommit>) -> bool {
    if group.is_empty() {
        return false;
    }
    match persist(database, &group).await {
        // A commit that cannot be written must not fail the others of its group.
        Err(fault) if fault.is_of_one_commit() && group.len() > 1 => {
            let mut landed = false;
            for queued in group {
                let alone = [queued];
                let outcome = persist(database, &alone).await;
                landed |= answer(alone.into(), outcome);
            }
            landed
        }
        outcome => answer(group, outcome),
    }
}

fn answer(group: Vec<QueuedCommit>, outcome: Outcome) -> bool {
    let mut landed = matches!(outcome, Err(PostgresFault::Unknown(_)));
    let verdicts = outcome.unwrap_or_else(|fault| {
        let refused = match fault.is_contention() {
            true => CommitError::Conflict,
            false => fault.into_error(DOING).into(),
        };
        if landed {
            tracing::error!(error = %refused, "commits may or may not be in the database");
        }
        vec![Err(refused); group.len()]
    });
    for (queued, verdict) in group.into_iter().zip(verdicts) {
        landed |= verdict.is_ok();
        // The caller may have stopped waiting.
        drop(queued.answer.send(verdict));
    }
    landed
}

/// Writes a group, and retries if the server rolled it back because of other transactions.
async fn persist(database: &Arc<Database>, group: &[QueuedCommit]) -> Outcome {
    let commits: Vec<&Commit> = group.iter().map(|queued| &queued.commit).collect();
    let mut outcome = once(database, &commits).await;
    for _ in 1..ATTEMPTS {
        match outcome {
            Err(fault) if fault.is_contention() => {
                tracing::debug!(%fault, "trying again");
                outcome = once(database, &commits).await;
            }
            outcome => return outcome,
        }
    }
    outcome
}

async fn once(database: &Arc<Database>, commits: &[&Commit]) -> Outcome {
    let limit = database.timeouts.request;
    let judge = async {
        let session = Session::begin(database, SessionMode::Commit).await?;
        let Some(mut batch) = CommitBatch::begin(&session, commits).await? else {
            session.end().await?;
            let outdated = |_: &&Commit| Err(CommitError::Conflict);
            return Ok((commits.iter().map(outdated).collect(), None));
        };
        let verdicts: Result<Vec<CommitResult>, PostgresFault> =
            commits.iter().map(|one| batch.add(one)).collect();
        let verdicts = verdicts?;
        if verdicts.iter().all(Result::is_err) {
            session.end().await?;
            return Ok((verdicts, None));
        }
        Ok::<_, PostgresFault>((verdicts, Some((session, batch))))
    };
    // Judging writes nothing durable. So after a timeout here nothing was written.
    let judged = tokio::time::timeout(limit, judge).await;
    let (verdicts, accepted) = judged.unwrap_or(Err(PostgresFault::Late))?;
    if let Some((session, batch)) = accepted {
        let written = tokio::time::timeout(limit, batch.write(session)).await;
        written.unwrap_or_else(|_| Err(PostgresFault::Late.of_commit()))?;
    }
    Ok(verdicts)
}
