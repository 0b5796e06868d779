//! Connections to the file that is currently at the path, and their transactions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::fault::{OpenError, SqliteFault};
use super::file::{FileIdentity, OpenFiles, StoreFile};
use super::schema;
use super::unlocked::ReadConnection;
use crate::observe::WithSources;

/// The largest number of idle connections to keep: 8, because more concurrent reads are rare.
const IDLE: usize = 8;

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) file: StoreFile,
    idle: Mutex<Vec<PooledConnection>>,
    seen: Mutex<PathHistory>,
}

/// The result of earlier examinations of the path.
#[derive(Debug)]
struct PathHistory {
    /// The object at the path when it was last examined. `None` before the first call.
    state: Option<PathState>,
    /// The file that was last used as the store.
    file: Option<FileIdentity>,
}

/// The object at the store's path.
#[derive(Clone, Debug, Eq, PartialEq)]
enum PathState {
    File(FileIdentity),
    Missing,
    /// An object that is not used as the store, and the reason.
    Refused(String),
}

#[derive(Debug)]
struct PooledConnection {
    opened: ReadConnection,
    files: OpenFiles,
    bound: ReadBound,
}

impl Pool {
    pub(super) const fn new(file: StoreFile) -> Self {
        Self {
            file,
            idle: Mutex::new(Vec::new()),
            seen: Mutex::new(PathHistory {
                state: None,
                file: None,
            }),
        }
    }

    /// Runs `read` within one snapshot of the file that is currently at the path. A restored backup may have
    /// replaced the file since the store was opened.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, SqliteFault>,
    ) -> Result<T, SqliteFault> {
        let identity = self.current()?;
        let files = self.file.open_files(identity);
        let idle = {
            let mut idle = self.idle();
            // All connections of a process to one file share one index of the log. So a connection that still uses a
            // removed log would break a new one.
            idle.retain(|connection| connection.files.are_current(files, &connection.opened.conn));
            idle.pop()
        };
        let connection = match idle {
            Some(connection) => connection,
            None => self.open(identity)?,
        };
        let opened = &connection.opened;
        let read = connection
            .bound
            .hold(|| snapshot(&self.file, &opened.conn, read));
        opened.check_unchanged(&self.file)?;
        // After a failure the connection is dropped, not reused, because its state is unknown.
        let read = read?;
        let mut idle = self.idle();
        if opened.is_shared() && idle.len() < IDLE {
            idle.push(connection);
        }
        Ok(read)
    }

    /// Returns the identity of the file at the path. Logs once if another object is there than before.
    pub(super) fn current(&self) -> Result<FileIdentity, SqliteFault> {
        let found = self.file.identity();
        self.note(match &found {
            Ok(Some(file)) => PathState::File(*file),
            Ok(None) => PathState::Missing,
            Err(error) => PathState::Refused(WithSources(error).to_string()),
        });
        let gone = || OpenError::Gone {
            path: self.file.path.clone(),
        };
        Ok(found?.ok_or_else(gone)?)
    }

    /// Remembers the object at the path, and logs a change. Every call of a service fails while its file is
    /// missing, so a line for each call would hide the cause.
    fn note(&self, now: PathState) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.state.as_ref() == Some(&now) {
            return;
        }
        let path = self.file.path.display();
        match &now {
            PathState::Missing => tracing::warn!(
                %path,
                "store file was moved or removed while it was open: move it back with its -wal file, or \
                 restart with the new path"
            ),
            PathState::Refused(reason) => tracing::warn!(%path, reason, "store file is not used"),
            PathState::File(file) => match seen.file.replace(*file) {
                None => {}
                Some(last) if last == *file => {
                    tracing::warn!(%path, "store file is back, and is used again");
                }
                Some(_) => tracing::warn!(
                    %path,
                    "store file was replaced by another file, which is used from now on: if it was \
                     restored from a backup, run keyctl recover"
                ),
            },
        }
        seen.state = Some(now);
    }

    fn open(&self, identity: FileIdentity) -> Result<PooledConnection, SqliteFault> {
        let mut opened = self.file.open_to_read()?;
        self.file.check_recovered(&opened.conn)?;
        opened.conn.pragma_update(None, "query_only", true)?;
        let bound = ReadBound::of(&mut opened.conn, &self.file);
        Ok(PooledConnection {
            opened,
            files: self.file.open_files(identity),
            bound,
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<PooledConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 256 MiB: the length of the log beyond which the store ends long reads.
const LOG_MOST: u64 = 256 << 20;

/// 64 MiB: the growth of the log during a read, beyond which the read counts as long.
const LOG_GROWTH: u64 = 64 << 20;

/// 10,000 steps of SQLite's virtual machine between two measurements of the log, about a millisecond.
const LOOK_EVERY: i32 = 10_000;

/// Ends reads that make the log too long. SQLite cannot start the log over while a read uses an older state, so an
/// endless read would fill the disk.
///
/// Reads no clock. A read is long if the log grew by [`LOG_GROWTH`] during the read. So a short read is never
/// ended, even if another program makes the log long.
#[derive(Clone, Debug)]
pub(super) struct ReadBound {
    /// The length of the log when the present read was first examined. [`NOT_SEEN`](Self::NOT_SEEN) before that.
    began: Arc<AtomicU64>,
}

impl ReadBound {
    const NOT_SEEN: u64 = u64::MAX;

    /// Limits all later reads of a connection.
    pub(super) fn of(conn: &mut Connection, file: &StoreFile) -> Self {
        let bound = Self {
            began: Arc::new(AtomicU64::new(Self::NOT_SEEN)),
        };
        let (own, file) = (bound.clone(), file.clone());
        // Without the limit, a read still returns the right rows.
        drop(conn.progress_handler(LOOK_EVERY, Some(move || own.ends(file.log_bytes()))));
        bound
    }

    /// Returns whether the present read must end, for a log of `now` bytes.
    fn ends(&self, now: u64) -> bool {
        let first =
            self.began
                .compare_exchange(Self::NOT_SEEN, now, Ordering::Relaxed, Ordering::Relaxed);
        let began = first.map_or_else(|began| began, |_| now);
        now > LOG_MOST && now.saturating_sub(began) >= LOG_GROWTH
    }

    /// Returns whether the present read was examined.
    #[cfg(test)]
    pub(super) fn has_looked(&self) -> bool {
        self.began.load(Ordering::Relaxed) != Self::NOT_SEEN
    }

    /// Runs one read.
    pub(super) fn hold<T>(
        &self,
        read: impl FnOnce() -> Result<T, SqliteFault>,
    ) -> Result<T, SqliteFault> {
        self.began.store(Self::NOT_SEEN, Ordering::Relaxed);
        read().map_err(|fault| match fault.is_interrupt() {
            true => SqliteFault::Refused(
                "the log of the store grew past 256 MiB during the read, so the read was ended: repeat it while \
                 fewer changes are made",
            ),
            false => fault,
        })
    }
}

/// A transaction, which rolls back when dropped. `BEGIN` and `COMMIT` are cached statements, so that SQLite
/// parses them only once.
pub(super) struct Tx<'a> {
    conn: &'a Connection,
}

impl<'a> Tx<'a> {
    /// Begins a transaction whose snapshot is taken at its first read.
    pub(super) fn deferred(conn: &'a Connection) -> Result<Self, SqliteFault> {
        conn.prepare_cached("BEGIN")?.execute([])?;
        Ok(Self { conn })
    }

    /// Begins a transaction that excludes other writers.
    pub(super) fn immediate(conn: &'a Connection) -> Result<Self, SqliteFault> {
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self { conn })
    }

    /// Commits the transaction durably. Fails with [`SqliteFault::Unknown`] if the transaction may or may
    /// not be on disk.
    pub(super) fn commit(self) -> Result<(), SqliteFault> {
        let committed = self.conn.prepare_cached("COMMIT")?.execute([]);
        committed.map(drop).map_err(SqliteFault::of_commit)
    }

    pub(super) fn rollback(self) -> Result<(), SqliteFault> {
        self.conn.prepare_cached("ROLLBACK")?.execute([])?;
        Ok(())
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        if !self.conn.is_autocommit() {
            // If the rollback fails, the next `BEGIN` on this connection fails too. The caller then drops the
            // connection.
            drop(self.conn.execute_batch("ROLLBACK"));
        }
    }
}

/// Runs `read` within one snapshot, after a check of the schema version and of the mark of a restored file.
pub(super) fn snapshot<T>(
    file: &StoreFile,
    conn: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, SqliteFault>,
) -> Result<T, SqliteFault> {
    let tx = Tx::deferred(conn)?;
    schema::check_version(conn)?;
    file.check_mark(conn)?;
    let read = read(conn)?;
    // Rolls back instead of committing, because a failed `COMMIT` would be reported as an unknown outcome.
    drop(tx);
    Ok(read)
}

/// Runs `write` in a transaction on a new connection, and commits durably.
pub(super) fn write<T>(
    file: &StoreFile,
    write: impl FnOnce(&Connection) -> Result<T, SqliteFault>,
) -> Result<T, SqliteFault> {
    let conn = file.open()?;
    file.make_durable(&conn)?;
    let tx = Tx::immediate(&conn)?;
    schema::check_version(&conn)?;
    let written = write(&conn)?;
    tx.commit()?;
    Ok(written)
}
