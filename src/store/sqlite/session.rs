//! Connections to the file that is currently at the path, and their transactions.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::fault::{OpenError, SqliteFault};
use super::file::{FileIdentity, StoreFile};
use super::schema;

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
    conn: Connection,
    identity: FileIdentity,
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
        let idle = self
            .idle()
            .pop()
            .filter(|connection| connection.identity == identity);
        let connection = match idle {
            Some(connection) => connection,
            None => self.open(identity)?,
        };
        // After a failure the connection is dropped, not reused, because its state is unknown.
        let read = snapshot(&connection.conn, read)?;
        let mut idle = self.idle();
        if idle.len() < IDLE {
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
            Err(error) => PathState::Refused(error.to_string()),
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
            PathState::Refused(error) => tracing::warn!(%path, %error, "store file is not used"),
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
        let conn = self.file.serve()?;
        conn.pragma_update(None, "query_only", true)?;
        Ok(PooledConnection { conn, identity })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<PooledConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction, which rolls back when dropped. `BEGIN` and `COMMIT` are cached statements, so that SQLite
/// parses them only once.
pub(super) struct Tx<'a> {
    conn: &'a Connection,
}

impl<'a> Tx<'a> {
    /// Begins a transaction whose snapshot is taken at its first read.
    fn deferred(conn: &'a Connection) -> Result<Self, SqliteFault> {
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

/// Runs `read` within one snapshot, after a check of the schema version.
pub(super) fn snapshot<T>(
    conn: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, SqliteFault>,
) -> Result<T, SqliteFault> {
    let tx = Tx::deferred(conn)?;
    schema::check_version(conn)?;
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
