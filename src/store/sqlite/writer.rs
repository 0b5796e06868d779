//! The one writer: a thread that applies all commits that wait in one transaction, so that one wait
//! for the disk serves them all. Each stays conditional, and each gets its own answer.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rusqlite::{Connection, TransactionBehavior};

use super::fault::Fault;
use super::file::{Identity, check_journal};
use super::head::Head;
use super::pool::Pool;
use super::{schema, write};
use crate::core::view::Revision;
use crate::store::{Commit, CommitError, StoreError, StoreErrorKind};

/// How many commits one transaction takes along at most.
const MAX_GROUP: usize = 256;

const DOING: &str = "committing to the file";

type Answer = Result<Revision, CommitError>;

/// A commit on its way, and who waits for it. Nobody may wait any more.
pub(super) struct Job {
    pub(super) commit: Commit,
    pub(super) answer: async_channel::Sender<Answer>,
}

/// Starts the thread. It ends when the sender is gone and all that was sent is done.
pub(super) fn start(
    pool: Arc<Pool>,
    landed: impl Fn() + Send + 'static,
) -> std::io::Result<Sender<Job>> {
    let (sender, jobs) = channel();
    let writer = Writer { pool, conn: None };
    thread::Builder::new()
        .name("keyward-sqlite".to_owned())
        .spawn(move || writer.run(&jobs, landed))?;
    Ok(sender)
}

struct Writer {
    pool: Arc<Pool>,
    conn: Option<(Connection, Identity)>,
}

/// What became of a group.
enum Group {
    /// It is durable, each commit with its verdict.
    Durable(Vec<Answer>),
    /// Nothing was written, whatever the commits were.
    RolledBack(Fault),
    /// Nothing was written, since one of the commits could not be.
    Hindered(Fault),
    /// It may or may not have been written.
    Unknown(Fault),
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>, landed: impl Fn()) {
        while let Ok(first) = jobs.recv() {
            let mut group = vec![first];
            group.extend(jobs.try_iter().take(MAX_GROUP - 1));
            self.settle(group);
            landed();
        }
    }

    fn settle(&mut self, mut group: Vec<Job>) {
        match self.group(&group) {
            Group::Durable(answers) => {
                for (job, answer) in group.iter().zip(answers) {
                    tell(job, answer);
                }
            }
            // One commit that cannot be written must not stop those that came along with it.
            Group::Hindered(_) if group.len() > 1 => {
                for job in group.drain(..) {
                    self.settle(vec![job]);
                }
            }
            Group::RolledBack(fault) | Group::Hindered(fault) => {
                let error = fault.told(DOING);
                group
                    .iter()
                    .for_each(|job| tell(job, Err(error.clone().into())));
            }
            Group::Unknown(fault) => {
                let kind = StoreErrorKind::Indeterminate;
                let error = StoreError::new(kind, DOING).with_source(fault);
                tracing::error!(%error, "commit may or may not be on disk");
                group
                    .iter()
                    .for_each(|job| tell(job, Err(error.clone().into())));
            }
        }
    }

    fn group(&mut self, group: &[Job]) -> Group {
        // Taken out: after a fault nothing is assumed of the connection.
        let (mut conn, file) = match self.connection() {
            Ok(ready) => ready,
            Err(fault) => return Group::RolledBack(fault),
        };
        let (tx, mut head) = match begin(&mut conn) {
            Ok(begun) => begun,
            Err(fault) => return Group::RolledBack(fault),
        };
        let apply = |job: &Job| write::apply(&tx, &mut head, &job.commit);
        let answers: Vec<Answer> = match group.iter().map(apply).collect() {
            Ok(answers) => answers,
            Err(fault) => return Group::Hindered(fault),
        };
        let written = answers.iter().any(Result::is_ok);
        let ended = if written { tx.commit() } else { tx.rollback() };
        if let Err(error) = ended {
            let fault = Fault::from(error);
            return if !written || fault.certainly_rolled_back() {
                Group::RolledBack(fault)
            } else {
                Group::Unknown(fault)
            };
        }
        tracing::trace!(revision = %head.cursor.revision, commits = group.len(), "durable");
        self.conn = Some((conn, file));
        Group::Durable(answers)
    }

    /// The connection to the file that stands at the path now.
    fn connection(&mut self) -> Result<(Connection, Identity), Fault> {
        let file = self.pool.current()?;
        if let Some(ready) = self.conn.take().filter(|(_, own)| *own == file) {
            return Ok(ready);
        }
        let conn = self.pool.place.serve()?;
        self.pool.place.make_durable(&conn)?;
        Ok((conn, file))
    }
}

/// Begins a transaction that nobody else can begin meanwhile.
fn begin(conn: &mut Connection) -> Result<(rusqlite::Transaction<'_>, Head), Fault> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    check_journal(&tx)?;
    schema::check_version(&tx)?;
    let head = Head::read(&tx)?;
    Ok((tx, head))
}

fn tell(job: &Job, answer: Answer) {
    // Whoever asked may have stopped waiting.
    drop(job.answer.try_send(answer));
}
