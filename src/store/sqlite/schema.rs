//! The tables of the file and their version.

use rusqlite::Connection;

use super::fault::SqliteFault;
use super::head::write_store;
use crate::core::view::Revision;
use crate::store::Epoch;
use crate::store::sql::StoreRow;

/// The `PRAGMA application_id` of every keyward file: "kwrd" in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x6b77_7264;

/// The schema version that this build reads and writes. Each file stores its version in `PRAGMA
/// user_version`.
pub(super) const VERSION: i32 = 1;

const TABLES: &str = include_str!("schema.sql");

/// Returns the `application_id` of the file.
pub(super) fn application(conn: &Connection) -> Result<i32, SqliteFault> {
    Ok(conn.pragma_query_value(None, "application_id", |row| row.get(0))?)
}

/// Returns the version of the file's tables.
pub(super) fn version(conn: &Connection) -> Result<i32, SqliteFault> {
    let mut statement = conn.prepare_cached("PRAGMA user_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Returns a counter that changes with every commit of another connection, but not with commits of
/// `conn`.
pub(super) fn data_version(conn: &Connection) -> Result<i64, SqliteFault> {
    let mut statement = conn.prepare_cached("PRAGMA data_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Refuses a file with another schema version.
pub(super) fn check_version(conn: &Connection) -> Result<(), SqliteFault> {
    match version(conn)? {
        VERSION => Ok(()),
        found => Err(SqliteFault::version(found, VERSION)),
    }
}

/// Creates the tables of a new store, and gives the store a random epoch.
pub(super) fn create(conn: &mut Connection) -> Result<(), SqliteFault> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    let tx = conn.transaction()?;
    tx.execute_batch(TABLES)?;
    let store = StoreRow {
        epoch: Epoch(random(&tx)?),
        floor: Revision::ZERO,
        unrecovered: false,
    };
    write_store(&tx, &store)?;
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()?;
    Ok(())
}

/// Returns 16 random bytes.
pub(super) fn random(conn: &Connection) -> Result<u128, SqliteFault> {
    let bytes: [u8; 16] = conn.query_row("SELECT randomblob(16)", [], |row| row.get(0))?;
    Ok(u128::from_be_bytes(bytes))
}
