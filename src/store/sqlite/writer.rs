//! The one writer: a thread that applies all commits that wait in one transaction, so that one wait
//! for the disk serves them all. Each stays conditional, and each gets its own answer.
//!
//! While no commit waits, the thread reads what decisions need: its connection keeps pages in memory
//! that every other one has to read again after each commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rusqlite::Connection;

use super::fault::Fault;
use super::file::{Identity, check_journal};
use super::head::Head;
use super::pool::Pool;
use super::tx::{Tx, snapshot};
use super::{schema, write};
use crate::core::view::Revision;
use crate::store::{Commit, CommitError, StoreError, StoreErrorKind};

/// How many commits one transaction takes along at most.
const MAX_GROUP: usize = 256;

const DOING: &str = "committing to the file";

type Answer = Result<Revision, CommitError>;

/// The way to the writer. The thread ends when this is gone and all that was sent is done.
pub(super) struct Writer {
    jobs: Sender<Job>,
    /// How many jobs have no answer yet.
    open: Arc<AtomicUsize>,
}

enum Job {
    Commit(Box<Order>),
    /// Anything else that the thread does with its connection.
    Own(Box<dyn FnOnce(&mut Thread) + Send>),
}

/// A commit on its way, and who waits for it. Nobody may wait any more.
struct Order {
    commit: Commit,
    answer: async_channel::Sender<Answer>,
}

impl Writer {
    pub(super) fn start(
        pool: Arc<Pool>,
        landed: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, jobs) = channel();
        let open = Arc::new(AtomicUsize::new(0));
        let thread = Thread {
            pool,
            ready: None,
            open: open.clone(),
        };
        thread::Builder::new()
            .name("keyward-sqlite".to_owned())
            .spawn(move || thread.run(&jobs, landed))?;
        Ok(Self { jobs: sender, open })
    }

    pub(super) async fn commit(&self, commit: Commit) -> Answer {
        let (answer, answered) = async_channel::bounded(1);
        let gone = |kind| StoreError::new(kind, DOING);
        self.open.fetch_add(1, Ordering::AcqRel);
        self.jobs
            .send(Job::Commit(Box::new(Order { commit, answer })))
            .map_err(|_| gone(StoreErrorKind::Unavailable))?;
        // The writer answers each job it takes, unless it came to an end on the way.
        let answer = answered.recv().await;
        answer.unwrap_or_else(|_| Err(gone(StoreErrorKind::Indeterminate).into()))
    }

    /// Reads within one snapshot, like [`Pool::read`]. Tells nothing if another job is under way,
    /// there is no connection to this file yet, or the read failed or told nothing: the pool is to be
    /// asked then.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<Option<T>, Fault> + Send + 'static,
    ) -> Option<T> {
        // Never behind a commit, which may wait for the disk.
        let free = self
            .open
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
        if free.is_err() {
            return None;
        }
        let (answer, answered) = async_channel::bounded(1);
        let job = move |thread: &mut Thread| {
            let read = thread.read(read);
            thread.close();
            // Whoever asked may have stopped waiting.
            drop(answer.try_send(read));
        };
        self.jobs.send(Job::Own(Box::new(job))).ok()?;
        answered.recv().await.ok()?
    }

    /// Writes something that is no commit, in a transaction of its own.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        write: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = async_channel::bounded(1);
        self.open.fetch_add(1, Ordering::AcqRel);
        let job = move |thread: &mut Thread| {
            let written = thread.write(write);
            thread.close();
            drop(answer.try_send(written));
        };
        let gone = |kind| StoreError::new(kind, doing);
        self.jobs
            .send(Job::Own(Box::new(job)))
            .map_err(|_| gone(StoreErrorKind::Unavailable))?;
        let written = answered.recv().await;
        let written = written.map_err(|_| gone(StoreErrorKind::Indeterminate))?;
        written.map_err(|failed| failed.told(doing))
    }
}

/// Why something that is no commit may not have been written.
enum Failed {
    /// It was certainly not.
    RolledBack(Fault),
    /// It may have been.
    Unknown(Fault),
}

impl Failed {
    fn told(self, doing: &'static str) -> StoreError {
        match self {
            Self::RolledBack(fault) => fault.told(doing),
            Self::Unknown(fault) => {
                StoreError::new(StoreErrorKind::Indeterminate, doing).with_source(fault)
            }
        }
    }
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::RolledBack(fault)
    }
}

struct Thread {
    pool: Arc<Pool>,
    ready: Option<Ready>,
    open: Arc<AtomicUsize>,
}

struct Ready {
    conn: Connection,
    file: Identity,
    /// Where the store stood after the last commit, with SQLite's mark of it: as long as that stays,
    /// nobody else wrote to the file.
    last: Option<(i64, Head)>,
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

impl Thread {
    fn run(mut self, jobs: &Receiver<Job>, landed: impl Fn()) {
        while let Ok(first) = jobs.recv() {
            let mut group = Vec::new();
            for job in std::iter::once(first).chain(jobs.try_iter().take(MAX_GROUP - 1)) {
                match job {
                    Job::Commit(order) => group.push(*order),
                    Job::Own(job) => job(&mut self),
                }
            }
            if !group.is_empty() {
                self.settle(group);
                landed();
            }
        }
    }

    /// A job has its answer.
    fn close(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    fn read<T>(&mut self, read: impl FnOnce(&Connection) -> Result<Option<T>, Fault>) -> Option<T> {
        let file = self.pool.current().ok()?;
        // Taken out: after a fault nothing is assumed of the connection.
        let ready = self.ready.take().filter(|ready| ready.file == file)?;
        // Commits go on, whatever becomes of a read.
        let read = catch_unwind(AssertUnwindSafe(|| snapshot(&ready.conn, read)));
        let read = read.ok()?.ok()?;
        self.ready = Some(ready);
        read
    }

    fn write<T>(
        &mut self,
        write: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, Failed> {
        let ready = self.ready()?;
        let (tx, ..) = begin(&ready)?;
        let written = write(&ready.conn)?;
        tx.commit().map_err(|error| {
            let fault = Fault::from(error);
            match fault.certainly_rolled_back() {
                true => Failed::RolledBack(fault),
                false => Failed::Unknown(fault),
            }
        })?;
        self.ready = Some(ready);
        Ok(written)
    }

    fn settle(&mut self, mut group: Vec<Order>) {
        match self.group(&group) {
            Group::Durable(answers) => {
                for (order, answer) in group.iter().zip(answers) {
                    self.tell(order, answer);
                }
            }
            // One commit that cannot be written must not stop those that came along with it.
            Group::Hindered(_) if group.len() > 1 => {
                for order in group.drain(..) {
                    self.settle(vec![order]);
                }
            }
            Group::RolledBack(fault) | Group::Hindered(fault) => {
                let error = fault.told(DOING);
                group
                    .iter()
                    .for_each(|order| self.tell(order, Err(error.clone().into())));
            }
            Group::Unknown(fault) => {
                let kind = StoreErrorKind::Indeterminate;
                let error = StoreError::new(kind, DOING).with_source(fault);
                tracing::error!(%error, "commit may or may not be on disk");
                group
                    .iter()
                    .for_each(|order| self.tell(order, Err(error.clone().into())));
            }
        }
    }

    fn tell(&self, order: &Order, answer: Answer) {
        // First: whoever hears of it may go on to read.
        self.close();
        // Whoever asked may have stopped waiting.
        drop(order.answer.try_send(answer));
    }

    fn group(&mut self, group: &[Order]) -> Group {
        // Taken out: after a fault nothing is assumed of the connection.
        let mut ready = match self.ready() {
            Ok(ready) => ready,
            Err(fault) => return Group::RolledBack(fault),
        };
        let (tx, version, mut head) = match begin(&ready) {
            Ok(begun) => begun,
            Err(fault) => return Group::RolledBack(fault),
        };
        let apply = |order: &Order| write::apply(&ready.conn, &mut head, &order.commit);
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
        ready.last = Some((version, head));
        self.ready = Some(ready);
        Group::Durable(answers)
    }

    /// The connection to the file that stands at the path now.
    fn ready(&mut self) -> Result<Ready, Fault> {
        let file = self.pool.current()?;
        if let Some(ready) = self.ready.take().filter(|ready| ready.file == file) {
            return Ok(ready);
        }
        let conn = self.pool.place.serve()?;
        self.pool.place.make_durable(&conn)?;
        let last = None;
        Ok(Ready { conn, file, last })
    }
}

/// Begins a transaction that nobody else can begin meanwhile, and tells where the store stands.
fn begin(ready: &Ready) -> Result<(Tx<'_>, i64, Head), Fault> {
    let conn = &ready.conn;
    let tx = Tx::immediate(conn)?;
    let version = schema::data_version(conn)?;
    if let Some((seen, head)) = ready.last
        && seen == version
    {
        return Ok((tx, version, head));
    }
    check_journal(conn)?;
    schema::check_version(conn)?;
    let head = Head::read(conn)?;
    Ok((tx, version, head))
}
