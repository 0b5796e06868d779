//! Connections and their transactions, and the check that the file is still the one that was opened.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::fault::{Fault, OpenError};
use super::file::{Identity, Place};
use super::schema;

/// 8 idle connections are kept. A judgement: more concurrent readers are rare.
const IDLE: usize = 8;

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) place: Place,
    idle: Mutex<Vec<Reader>>,
}

#[derive(Debug)]
struct Reader {
    conn: Connection,
    file: Identity,
}

impl Pool {
    pub(super) const fn new(place: Place) -> Self {
        Self {
            place,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Reads within one snapshot of the file that is at the path now, which may have replaced the one
    /// that was opened.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let file = self.current()?;
        let idle = self.idle().pop().filter(|reader| reader.file == file);
        let reader = match idle {
            Some(reader) => reader,
            None => self.open(file)?,
        };
        // After a failure the connection is closed: nothing is assumed of its state.
        let read = snapshot(&reader.conn, read)?;
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(reader);
        }
        Ok(read)
    }

    /// Returns the identity of the file at the path.
    pub(super) fn current(&self) -> Result<Identity, Fault> {
        let missing = || OpenError::NotFound {
            path: self.place.path.clone(),
        };
        Ok(self.place.look()?.ok_or_else(missing)?)
    }

    fn open(&self, file: Identity) -> Result<Reader, Fault> {
        let conn = self.place.serve()?;
        conn.pragma_update(None, "query_only", true)?;
        Ok(Reader { conn, file })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction; rolled back when dropped. `BEGIN` and `COMMIT` are cached statements, since SQLite
/// would otherwise parse them each time.
pub(super) struct Tx<'a> {
    conn: &'a Connection,
}

impl<'a> Tx<'a> {
    /// Begins a transaction whose snapshot is taken at its first read.
    fn deferred(conn: &'a Connection) -> Result<Self, Fault> {
        conn.prepare_cached("BEGIN")?.execute([])?;
        Ok(Self { conn })
    }

    /// Begins a transaction that excludes other writers.
    pub(super) fn immediate(conn: &'a Connection) -> Result<Self, Fault> {
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self { conn })
    }

    /// Commits the transaction durably. Fails with [`Fault::Unknown`] if the transaction may or may
    /// not be on disk.
    pub(super) fn commit(self) -> Result<(), Fault> {
        let committed = self.conn.prepare_cached("COMMIT")?.execute([]);
        committed.map(drop).map_err(Fault::of_commit)
    }

    pub(super) fn rollback(self) -> Result<(), Fault> {
        self.conn.prepare_cached("ROLLBACK")?.execute([])?;
        Ok(())
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        if !self.conn.is_autocommit() {
            // A connection that cannot roll back is not used again.
            drop(self.conn.execute_batch("ROLLBACK"));
        }
    }
}

/// Reads within one snapshot of a file whose version this build knows.
pub(super) fn snapshot<T>(
    conn: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let tx = Tx::deferred(conn)?;
    schema::check_version(conn)?;
    let read = read(conn)?;
    // A read has nothing to commit, so that no failure of it can have an unknown outcome.
    drop(tx);
    Ok(read)
}

/// Writes in a separate transaction, on a separate connection.
pub(super) fn write<T>(
    place: &Place,
    write: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let conn = place.open()?;
    place.make_durable(&conn)?;
    let tx = Tx::immediate(&conn)?;
    schema::check_version(&conn)?;
    let written = write(&conn)?;
    tx.commit()?;
    Ok(written)
}
