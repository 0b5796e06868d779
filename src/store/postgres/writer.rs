//! The single writer of a node: a task that applies all waiting commits in one transaction, which costs
//! one fsync. Each commit stays conditional, and gets its own answer.

use std::sync::Arc;

use event_listener::Event;
use tokio::sync::{mpsc, oneshot};

use super::fault::PostgresFault;
use super::session::{Database, Session, SessionMode};
use super::write::{CommitBatch, CommitResult};
use crate::observe::WithSources;
use crate::store::{Commit, CommitError, StoreError, StoreErrorKind};

/// 4,096 rows at most in one transaction, unless a single commit has more. This is enough to share the cost
/// of an fsync, and needs a few megabytes of memory at most.
const MAX_ROWS: usize = 4096;

/// 8 attempts to write a group of commits. The server may roll a group back because of other nodes'
/// transactions. Each attempt starts after the conflicting transaction has ended.
const ATTEMPTS: usize = 8;

const DOING: &str = "committing to the database";

/// A commit that waits or is being written, and the channel on which its caller waits for the answer.
struct QueuedCommit {
    commit: Commit,
    answer: oneshot::Sender<CommitResult>,
}

/// The handle of the writer task. After the handle is dropped, the task answers every queued commit and then
/// ends.
pub(super) struct PostgresWriter {
    queue: mpsc::UnboundedSender<QueuedCommit>,
}

impl PostgresWriter {
    /// Starts the task. After each group of commits that was written, the task notifies `landed`, and sends a
    /// hint to the other nodes.
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
                    // The channel has room for one hint. If it is full, the waiting hint also covers this
                    // group, so the send may fail.
                    let _ = hints.try_send(());
                }
                // Let the callers run that were just answered. If they commit again, their commits join the
                // next group.
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

/// Takes as many waiting commits as fit into one transaction. `None` if the handle was dropped and no commit
/// is left.
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
    // Drop the commits whose callers stopped waiting, because nothing of them has been written.
    group.retain(|queued| !queued.answer.is_closed());
    Some(group)
}

/// The verdicts of a durable group, or the fault that rolled the group back. After [`PostgresFault::Unknown`]
/// the group may or may not have been written.
type Outcome = Result<Vec<CommitResult>, PostgresFault>;

/// Writes a group of commits, and answers their callers. Returns whether some of the commits may have been
/// written.
async fn settle(database: &Arc<Database>, group: Vec<QueuedCommit>) -> bool {
    if group.is_empty() {
        return false;
    }
    match persist(database, &group).await {
        // Retry the commits of the group one by one, so that a commit that cannot be written does not fail
        // the others.
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
            tracing::error!(error = %WithSources(&refused), "commits may or may not be in the database");
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
                tracing::debug!(error = %WithSources(&fault), "trying again");
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
    // Judging the commits writes nothing durable. So if the timeout ends the judging, nothing was written.
    let judged = tokio::time::timeout(limit, judge).await;
    let (verdicts, accepted) = judged.unwrap_or(Err(PostgresFault::Late))?;
    if let Some((session, batch)) = accepted {
        let written = tokio::time::timeout(limit, batch.write(session)).await;
        written.unwrap_or_else(|_| Err(PostgresFault::Late.of_commit()))?;
    }
    Ok(verdicts)
}
