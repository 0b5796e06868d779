//! The single writer: a thread that applies all waiting commits in one transaction, which costs one
//! fsync. Each commit stays conditional, and gets its own answer.
//!
//! While no commit waits, the thread serves the reads of decisions: its connection keeps pages in memory,
//! while all other connections lose their pages with each commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rusqlite::Connection;

use super::fault::SqliteFault;
use super::file::{OpenFiles, StoreFile, check_journal};
use super::session::{Pool, Tx, snapshot};
use super::{head, schema, write};
use crate::core::view::Revision;
use crate::observe::{self, WithSources};
use crate::store::sql::Head;
use crate::store::{Commit, CommitError, StoreError, StoreErrorKind};

/// The largest number of commits in one transaction: 256.
const MAX_GROUP: usize = 256;

/// 64 MiB: the length of the log at which the writer waits for readers to empty it. SQLite's own checkpoints
/// keep the log at about 4 MiB while no reader prevents them.
const LOG_LONG: u64 = 64 << 20;

/// 16 MiB: the growth of a long log after which the writer waits for readers again.
const LOG_STEP: u64 = 16 << 20;

const DISK_FULL: &str = "the disk of the store is full, and the rest is reserved for commits that only revoke, \
                         disable or delete: free at least 10 MiB";

const DOING: &str = "committing to the file";

type Answer = Result<Revision, CommitError>;

/// The handle of the writer thread. The thread ends once the handle is dropped and all jobs are done.
pub(super) struct SqliteWriter {
    jobs: Sender<Job>,
    /// The number of jobs without an answer.
    open: Arc<AtomicUsize>,
}

enum Job {
    Commit(Box<SqliteCommit>),
    /// Any other work on the thread's connection.
    Own(Box<dyn FnOnce(&mut Thread) + Send>),
}

/// A commit in flight, and the channel of its caller, who may have stopped waiting.
struct SqliteCommit {
    commit: Commit,
    answer: async_channel::Sender<Answer>,
}

impl SqliteWriter {
    pub(super) fn start(
        pool: Arc<Pool>,
        reserve: std::io::Result<bool>,
        landed: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, jobs) = channel();
        let open = Arc::new(AtomicUsize::new(0));
        let thread = Thread {
            pool,
            ready: None,
            open: open.clone(),
            disk_full: false,
            reserve: ReserveState::of(&reserve),
            next_checkpoint: LOG_LONG,
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
            .send(Job::Commit(Box::new(SqliteCommit { commit, answer })))
            .map_err(|_| gone(StoreErrorKind::Unavailable))?;
        // An answer is missing only if the writer thread has ended. Then the commit may or may not be on
        // disk.
        let answer = answered.recv().await;
        answer.unwrap_or_else(|_| Err(gone(StoreErrorKind::Indeterminate).into()))
    }

    /// Reads within one snapshot, like [`Pool::read`]. Returns `None` if another job is in flight or there is
    /// no connection to this file yet. Also if the read failed, or found too many rows. In all these cases
    /// the caller reads through the pool.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<Option<T>, SqliteFault> + Send + 'static,
    ) -> Option<T> {
        // A read never queues behind a commit, which may wait for the disk.
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
            // Ignores a failed send, because the caller may have stopped waiting.
            drop(answer.try_send(read));
        };
        self.jobs.send(Job::Own(Box::new(job))).ok()?;
        answered.recv().await.ok()?
    }

    /// Runs a write that is not a commit, in a separate transaction. On a full disk, runs the write twice.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        write: impl Fn(&Connection) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = async_channel::bounded(1);
        self.open.fetch_add(1, Ordering::AcqRel);
        let job = move |thread: &mut Thread| {
            let mut written = thread.write(&write);
            if written.as_ref().is_err_and(SqliteFault::is_full) {
                thread.note_full();
                thread.restart_log();
                written = thread.write(&write);
            }
            thread.close();
            drop(answer.try_send(written));
        };
        let gone = |kind| StoreError::new(kind, doing);
        self.jobs
            .send(Job::Own(Box::new(job)))
            .map_err(|_| gone(StoreErrorKind::Unavailable))?;
        let written = answered.recv().await;
        let written = written.map_err(|_| gone(StoreErrorKind::Indeterminate))?;
        written.map_err(|fault| fault.into_error(doing))
    }
}

struct Thread {
    pool: Arc<Pool>,
    ready: Option<Ready>,
    open: Arc<AtomicUsize>,
    /// True from the first commit for which the disk was full, until the disk has room besides the whole reserve.
    disk_full: bool,
    reserve: ReserveState,
    /// The length of the log at which the thread empties the log.
    next_checkpoint: u64,
}

/// The state of the reserve when it was last examined.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ReserveState {
    Whole,
    /// The reserve lacks space, which a commit or another process has used. Until the reserve is whole again, only
    /// narrowing commits are written, because other commits would use the rest of the reserve.
    Short,
    /// The reserve cannot be opened. It is not waited for: it would refuse all other commits, and keep no space.
    Missing,
}

impl ReserveState {
    const fn of(kept: &std::io::Result<bool>) -> Self {
        match kept {
            Ok(true) => Self::Whole,
            Ok(false) => Self::Short,
            Err(_) => Self::Missing,
        }
    }
}

struct Ready {
    conn: Connection,
    files: OpenFiles,
    /// The head after the last commit, with SQLite's data version. As long as the data version stays the
    /// same, no other connection has written to the file.
    last: Option<(i64, Head)>,
}

impl Thread {
    fn run(mut self, jobs: &Receiver<Job>, landed: impl Fn()) {
        while let Ok(first) = jobs.recv() {
            let mut group = Vec::new();
            for job in std::iter::once(first).chain(jobs.try_iter().take(MAX_GROUP - 1)) {
                match job {
                    Job::Commit(queued) => group.push(*queued),
                    Job::Own(job) => job(&mut self),
                }
            }
            // Leaves out commits whose callers stopped waiting. No work on these commits has started.
            let queued = group.len();
            group.retain(|queued: &SqliteCommit| !queued.answer.is_closed());
            (group.len()..queued).for_each(|_| self.close());
            if !group.is_empty() {
                self.settle(group, true);
                landed();
                self.bound_log();
            }
        }
    }

    /// Counts a job as answered, so that reads can use the connection when no other job is open.
    fn close(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    fn read<T>(
        &mut self,
        read: impl FnOnce(&Connection) -> Result<Option<T>, SqliteFault>,
    ) -> Option<T> {
        let files = self.pool.file.open_files(self.pool.current().ok()?);
        // Takes the connection out of `self`, so that a failure closes it.
        let ready = self
            .ready
            .take()
            .filter(|ready| ready.files.are_current(files, &ready.conn))?;
        // A read that panics must not end the writer.
        let read = catch_unwind(AssertUnwindSafe(|| {
            snapshot(&self.pool.file, &ready.conn, read)
        }));
        let read = read.ok()?.ok()?;
        self.ready = Some(ready);
        read
    }

    fn write<T>(
        &mut self,
        write: impl Fn(&Connection) -> Result<T, SqliteFault>,
    ) -> Result<T, SqliteFault> {
        let ready = self.ready()?;
        let (tx, ..) = begin(&self.pool.file, &ready)?;
        let written = write(&ready.conn)?;
        tx.commit()?;
        self.ready = Some(ready);
        Ok(written)
    }

    /// Writes and answers a group. On a full disk, waits for the readers of the log only if `may_wait` is true.
    fn settle(&mut self, group: Vec<SqliteCommit>, mut may_wait: bool) {
        self.refill_reserve();
        let narrows = group.iter().all(|queued| queued.commit.only_narrows());
        let is_refused = self.reserve == ReserveState::Short && !narrows;
        let mut written = match is_refused {
            true => Ok(Err(SqliteFault::Refused(DISK_FULL))),
            false => self.group(&group),
        };
        if is_refused || is_full(&written) {
            self.note_full();
        }
        let mut may_use_more = true;
        while is_full(&written) && may_use_more {
            // The log starts over in the space that it has, unless a reader prevents that.
            if may_wait {
                may_wait = self.restart_log();
            }
            // A full disk rolls the transaction back, so writing the same commits again is safe.
            written = self.group(&group);
            may_use_more = narrows && is_full(&written) && self.pool.file.free_reserve();
        }
        // One commit of the group cannot be written, or the disk has no space for all of them. Commits each one
        // separately, so that the others do not fail.
        let divisible = is_full(&written) || matches!(written, Ok(Err(_)));
        if divisible && group.len() > 1 {
            for queued in narrowing_first(group, |queued| queued.commit.only_narrows()) {
                self.settle(vec![queued], may_wait);
            }
            return;
        }
        let answers = match written {
            Ok(Ok(answers)) => {
                self.note_space(!narrows && answers.iter().any(Result::is_ok));
                answers
            }
            Ok(Err(fault)) | Err(fault) => {
                let error = fault.into_error(DOING);
                if error.kind() == StoreErrorKind::Indeterminate {
                    tracing::error!(error = %WithSources(&error), "commit may or may not be on disk");
                }
                vec![Err(error.into()); group.len()]
            }
        };
        for (queued, answer) in group.iter().zip(answers) {
            // Counts the commit as answered before the answer is sent, because the caller may read
            // immediately.
            self.close();
            // Ignores a failed send, because the caller may have stopped waiting.
            drop(queued.answer.try_send(answer));
        }
    }

    /// Logs that the disk is full, once until it has space again.
    fn note_full(&mut self) {
        if !std::mem::replace(&mut self.disk_full, true) {
            let path = self.pool.file.path.display();
            tracing::error!(
                %path,
                "disk of the store is full: free space. Until then only commits that revoke, disable or delete \
                 are sure to succeed"
            );
        }
    }

    /// Moves the commits of the log into the file, so that the log starts over in the space that it has. Waits for
    /// readers. Returns `false` if a reader of an older state prevents that.
    fn restart_log(&mut self) -> bool {
        let Ok(ready) = self.ready() else {
            return true;
        };
        let restarted = StoreFile::restart_log(&ready.conn);
        self.ready = Some(ready);
        restarted.unwrap_or(true)
    }

    /// Takes as much space as there is for the reserve, if the reserve lacks space.
    fn refill_reserve(&mut self) {
        if self.reserve == ReserveState::Whole && !self.pool.file.lacks_reserve() {
            return;
        }
        let kept = self.pool.file.keep_reserve();
        let before = std::mem::replace(&mut self.reserve, ReserveState::of(&kept));
        if let Err(error) = &kept
            && before != ReserveState::Missing
        {
            self.pool.file.log_no_reserve(error);
        }
    }

    /// Refills the reserve from the space that commits left. After a commit that did not only narrow, logs that the
    /// disk has space again, if there is room besides the whole reserve. Such a commit alone proves nothing: the log
    /// may have started over in its present space.
    fn note_space(&mut self, widened: bool) {
        self.refill_reserve();
        let is_whole = self.reserve != ReserveState::Short;
        if self.disk_full && widened && is_whole && self.pool.file.has_room() {
            let path = self.pool.file.path.display();
            tracing::info!(%path, "disk of the store has space again");
            self.disk_full = false;
        }
    }

    /// Measures the log. If the log is long, moves its commits into the file and empties it, which waits for
    /// readers for at most 250 ms. SQLite's own checkpoints never wait, so overlapping readers can prevent all of
    /// them.
    fn bound_log(&mut self) {
        let bytes = self.pool.file.log_bytes();
        observe::store_log(bytes);
        if bytes < self.next_checkpoint {
            return;
        }
        if let Ok(ready) = self.ready() {
            // If a reader prevents this, the thread tries again once the log has grown further.
            drop(StoreFile::empty_log(&ready.conn));
            self.ready = Some(ready);
        }
        let left = self.pool.file.log_bytes();
        self.next_checkpoint = LOG_LONG.max(left.saturating_add(LOG_STEP));
    }

    /// Writes a group in one transaction. If one of its commits cannot be written, nothing is written, and
    /// the fault is the inner error.
    fn group(
        &mut self,
        group: &[SqliteCommit],
    ) -> Result<Result<Vec<Answer>, SqliteFault>, SqliteFault> {
        // Takes the connection out of `self`, so that a failure closes it.
        let mut ready = self.ready()?;
        let (tx, version, mut head) = begin(&self.pool.file, &ready)?;
        let apply = |queued: &SqliteCommit| write::apply(&ready.conn, &mut head, &queued.commit);
        let answers: Vec<Answer> = match group.iter().map(apply).collect() {
            Ok(answers) => answers,
            Err(fault) => return Ok(Err(fault)),
        };
        match answers.iter().any(Result::is_ok) {
            true => tx.commit()?,
            false => tx.rollback()?,
        }
        tracing::trace!(revision = %head.last.revision, commits = group.len(), "durable");
        ready.last = Some((version, head));
        self.ready = Some(ready);
        Ok(Ok(answers))
    }

    /// Returns the connection to the file that is at the path now.
    fn ready(&mut self) -> Result<Ready, SqliteFault> {
        let (file, main) = (&self.pool.file, self.pool.current()?);
        let files = file.open_files(main);
        if let Some(ready) = self
            .ready
            .take()
            .filter(|ready| ready.files.are_current(files, &ready.conn))
        {
            return Ok(ready);
        }
        let conn = file.serve()?;
        file.make_durable(&conn)?;
        Ok(Ready {
            conn,
            files: file.open_files(main),
            last: None,
        })
    }
}

/// Puts the commits that only narrow before the others, so that they do not wait behind them for space.
fn narrowing_first<T>(group: Vec<T>, narrows: impl Fn(&T) -> bool) -> impl Iterator<Item = T> {
    let (first, last): (Vec<T>, Vec<T>) = group.into_iter().partition(narrows);
    first.into_iter().chain(last)
}

/// Returns whether the disk was full, so that nothing of the group was written.
fn is_full(written: &Result<Result<Vec<Answer>, SqliteFault>, SqliteFault>) -> bool {
    match written {
        Ok(Ok(_)) => false,
        Ok(Err(fault)) | Err(fault) => fault.is_full(),
    }
}

/// Begins a transaction that excludes other writers, and returns the head of the store.
fn begin<'a>(file: &StoreFile, ready: &'a Ready) -> Result<(Tx<'a>, i64, Head), SqliteFault> {
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
    file.check_mark(conn)?;
    let head = head::read(conn)?;
    Ok((tx, version, head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_that_only_narrow_come_before_others_and_keep_their_order() {
        let order: Vec<_> = narrowing_first(vec![1, 2, 3, 4, 5], |n| n % 2 == 0).collect();
        assert_eq!(order, [2, 4, 1, 3, 5]);
    }
}
