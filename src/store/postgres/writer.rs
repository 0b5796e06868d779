//! The one writer of a node: a task that applies all commits that wait in one transaction, so that one
//! wait for the disk serves them all. Each stays conditional, and each gets its own answer.

use std::sync::Arc;

use event_listener::Event;
use tokio::sync::{mpsc, oneshot};

use super::exchange::Exchange;
use super::fault::Fault;
use super::link::Link;
use super::write::{Batch, Verdict};
use crate::store::{Commit, CommitError, StoreError, StoreErrorKind};

/// How many rows one transaction takes along, if it is more than one commit. A judgement.
const MAX_ROWS: usize = 4096;

/// How often commits are tried again that the server rolled back because of others. A judgement.
const ATTEMPTS: usize = 8;

const DOING: &str = "committing to the database";

/// A commit on its way, and who waits for it. Nobody may wait any more.
struct Order {
    commit: Commit,
    answer: oneshot::Sender<Verdict>,
}

/// The way to the writer. The task ends when this is gone and all that was sent is done.
pub(super) struct Writer {
    orders: mpsc::UnboundedSender<Order>,
}

impl Writer {
    /// Starts the task. `landed` hears of every commit that is durable, and so does whoever passes
    /// on `hints`.
    pub(super) fn start(
        link: Arc<Link>,
        runtime: &tokio::runtime::Handle,
        landed: Arc<Event>,
        hints: mpsc::Sender<()>,
    ) -> Self {
        let (orders, mut waiting) = mpsc::unbounded_channel();
        let task = async move {
            while let Some(group) = next_group(&mut waiting).await {
                if settle(&link, group).await {
                    landed.notify(usize::MAX);
                    // One that waits to be told stands for all that land meanwhile.
                    let _ = hints.try_send(());
                }
                // Those that were answered may have more: it comes along with what waits already.
                tokio::task::yield_now().await;
            }
        };
        drop(runtime.spawn(task));
        Self { orders }
    }

    pub(super) async fn commit(&self, commit: Commit) -> Verdict {
        let (answer, answered) = oneshot::channel();
        let gone = |kind| StoreError::new(kind, DOING);
        self.orders
            .send(Order { commit, answer })
            .map_err(|_| gone(StoreErrorKind::Unavailable))?;
        // The writer answers each order it takes, unless it came to an end on the way.
        let answer = answered.await;
        answer.unwrap_or_else(|_| Err(gone(StoreErrorKind::Indeterminate).into()))
    }
}

/// What waits, as much of it as fits into one transaction; `None` once there is nobody left who could
/// send anything.
async fn next_group(waiting: &mut mpsc::UnboundedReceiver<Order>) -> Option<Vec<Order>> {
    let size = |order: &Order| order.commit.effects.puts.len() + order.commit.effects.audit.len();
    let first = waiting.recv().await?;
    let mut rows = size(&first);
    let mut group = vec![first];
    while rows < MAX_ROWS
        && let Ok(order) = waiting.try_recv()
    {
        rows += size(&order) + 1;
        group.push(order);
    }
    // Whoever gave up was told nothing, and nothing of theirs was begun.
    group.retain(|order| !order.answer.is_closed());
    Some(group)
}

/// What became of a group.
enum Group {
    /// It is durable, each commit with its verdict.
    Durable(Vec<Verdict>),
    /// Nothing was written.
    RolledBack(Fault),
    /// It may or may not have been written.
    Unknown(Fault),
}

/// Sees that each order gets its answer. Tells whether anything was written.
async fn settle(link: &Link, group: Vec<Order>) -> bool {
    if group.is_empty() {
        return false;
    }
    match persist(link, &group).await {
        // One commit that cannot be written must not stop those that came along with it.
        Group::RolledBack(fault) if fault.is_of_one_commit() && group.len() > 1 => {
            let mut landed = false;
            for order in group {
                let alone = [order];
                let became = persist(link, &alone).await;
                landed |= tell(alone.into(), became);
            }
            landed
        }
        became => tell(group, became),
    }
}

fn tell(group: Vec<Order>, became: Group) -> bool {
    let mut landed = false;
    match became {
        Group::Durable(verdicts) => {
            for (order, verdict) in group.into_iter().zip(verdicts) {
                landed |= verdict.is_ok();
                // Whoever asked may have stopped waiting.
                drop(order.answer.send(verdict));
            }
        }
        Group::RolledBack(fault) if fault.is_contention() => {
            for order in group {
                drop(order.answer.send(Err(CommitError::Conflict)));
            }
        }
        Group::RolledBack(fault) => {
            let error = fault.told(DOING);
            for order in group {
                drop(order.answer.send(Err(error.clone().into())));
            }
        }
        Group::Unknown(fault) => {
            landed = true;
            let error = StoreError::new(StoreErrorKind::Indeterminate, DOING).with_source(fault);
            tracing::error!(%error, "commits may or may not be in the database");
            for order in group {
                drop(order.answer.send(Err(error.clone().into())));
            }
        }
    }
    landed
}

/// Writes a group, again if the server rolled it back because of others.
async fn persist(link: &Link, group: &[Order]) -> Group {
    let commits: Vec<&Commit> = group.iter().map(|order| &order.commit).collect();
    let mut became = once(link, &commits).await;
    for _ in 1..ATTEMPTS {
        match became {
            Group::RolledBack(fault) if fault.is_contention() => {
                tracing::debug!(%fault, "trying again");
                became = once(link, &commits).await;
            }
            became => return became,
        }
    }
    became
}

async fn once(link: &Link, commits: &[&Commit]) -> Group {
    let judge = async {
        let mut conn = link.connection().await?;
        let exchange = Exchange::new(link, conn.object()?);
        let Some(mut batch) = Batch::begin(&exchange, commits).await? else {
            let server = exchange.server();
            exchange.end();
            conn.give_back();
            link.prove(server.as_deref()).await?;
            let outdated = |_: &&Commit| Err(CommitError::Conflict);
            return Ok((commits.iter().map(outdated).collect(), None));
        };
        let server = exchange.server();
        let verdicts: Result<Vec<Verdict>, Fault> =
            commits.iter().map(|one| batch.add(one)).collect();
        let verdicts = verdicts?;
        if verdicts.iter().all(Result::is_err) {
            exchange.end();
            conn.give_back();
            link.prove(server.as_deref()).await?;
            return Ok((verdicts, None));
        }
        Ok::<_, Fault>((verdicts, Some((conn, batch, server))))
    };
    // Until this is over nothing can have been written, whatever becomes of the connection.
    let (verdicts, accepted) = match tokio::time::timeout(link.timeouts.request, judge).await {
        Ok(Ok(judged)) => judged,
        Ok(Err(fault)) => return Group::RolledBack(fault),
        Err(_) => return Group::RolledBack(Fault::Late),
    };
    let Some((mut conn, batch, server)) = accepted else {
        return Group::Durable(verdicts);
    };
    let write = async {
        batch.write(&Exchange::new(link, conn.object()?)).await?;
        let proven = link.prove(server.as_deref()).await;
        proven.map_err(|fault| Fault::Unknown(Box::new(fault)))
    };
    match tokio::time::timeout(link.timeouts.request, write).await {
        Ok(Ok(())) => {
            conn.give_back();
            Group::Durable(verdicts)
        }
        Ok(Err(fault @ Fault::Unknown(_))) => Group::Unknown(fault),
        Ok(Err(fault)) => Group::RolledBack(fault),
        Err(_) => Group::Unknown(Fault::Late.of_commit()),
    }
}
