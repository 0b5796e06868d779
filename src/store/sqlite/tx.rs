//! Transactions whose statements are kept ready: SQLite would parse `BEGIN` and `COMMIT` each time.

use rusqlite::Connection;

use super::fault::Fault;
use super::schema;

/// A transaction; rolled back when dropped.
pub(super) struct Tx<'a> {
    conn: &'a Connection,
}

impl<'a> Tx<'a> {
    /// One that sees what stands at its first read.
    fn deferred(conn: &'a Connection) -> Result<Self, Fault> {
        conn.prepare_cached("BEGIN")?.execute([])?;
        Ok(Self { conn })
    }

    /// One that nobody else can write beside.
    pub(super) fn immediate(conn: &'a Connection) -> Result<Self, Fault> {
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self { conn })
    }

    pub(super) fn commit(self) -> rusqlite::Result<()> {
        self.conn.prepare_cached("COMMIT")?.execute([]).map(drop)
    }

    pub(super) fn rollback(self) -> rusqlite::Result<()> {
        self.conn.prepare_cached("ROLLBACK")?.execute([]).map(drop)
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        if !self.conn.is_autocommit() {
            // A connection that cannot even go back is not used again.
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
    tx.commit()?;
    Ok(read)
}
