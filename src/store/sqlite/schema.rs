//! The tables of the file and their version.

use rusqlite::Connection;

use super::fault::SqliteFault;
use super::head::write_store;
use super::rows::{each, one};
use crate::core::view::Revision;
use crate::store::Epoch;
use crate::store::sql::{StoreRow, TablesVersion};

/// The `PRAGMA application_id` of every keyward file: "kwrd" in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x6b77_7264;

const TABLES: &str = include_str!("schema.sql");

/// Returns the `application_id` of the file.
pub(super) fn application(conn: &Connection) -> Result<i32, SqliteFault> {
    Ok(conn.pragma_query_value(None, "application_id", |row| row.get(0))?)
}

/// Returns the versions of the file's tables, which `PRAGMA user_version` holds as one number.
fn version(conn: &Connection) -> Result<TablesVersion, SqliteFault> {
    let mut statement = conn.prepare_cached("PRAGMA user_version")?;
    let packed = statement.query_row([], |row| row.get(0))?;
    Ok(TablesVersion::unpacked(packed))
}

/// Returns a counter that changes with every commit of another connection, but not with commits of
/// `conn`.
pub(super) fn data_version(conn: &Connection) -> Result<i64, SqliteFault> {
    let mut statement = conn.prepare_cached("PRAGMA data_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Refuses a file that this build may not use.
pub(super) fn check_version(conn: &Connection) -> Result<(), SqliteFault> {
    Ok(version(conn)?.check()?)
}

/// Refuses a file whose tables have another version than this build.
pub(super) fn check_own_version(conn: &Connection) -> Result<(), SqliteFault> {
    Ok(version(conn)?.check_is_own()?)
}

/// Ends the use of the file by earlier builds. Does nothing if their use has ended. The caller commits.
pub(super) fn finish_upgrade(conn: &Connection) -> Result<(), SqliteFault> {
    check_own_version(conn)?;
    conn.pragma_update(None, "user_version", TablesVersion::NEW.packed())?;
    Ok(())
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
    tx.pragma_update(None, "user_version", TablesVersion::NEW.packed())?;
    tx.commit()?;
    Ok(())
}

/// The definition of a table or an index.
struct Definition {
    kind: String,
    name: String,
    table: String,
    sql: String,
}

/// Returns the definitions of all tables and indexes of a store.
fn definitions() -> Result<Vec<Definition>, SqliteFault> {
    let new = Connection::open_in_memory()?;
    new.execute_batch(TABLES)?;
    let mut all = Vec::new();
    let sql = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL";
    each(&new, sql, [], |row| {
        all.push(Definition {
            kind: row.get(0)?,
            name: row.get(1)?,
            table: row.get(2)?,
            sql: row.get(3)?,
        });
        Ok(true)
    })?;
    Ok(all)
}

/// Returns whether the definition of a table or an index is missing or differs.
pub(super) fn is_damaged(conn: &Connection) -> Result<bool, SqliteFault> {
    for known in definitions()? {
        let sql = "SELECT sql FROM sqlite_schema WHERE name = ?1";
        match one(conn, sql, [&known.name], |row| Ok(row.get::<_, String>(0)?)) {
            Ok(Some(found)) if found == known.sql => {}
            Err(fault) if !fault.is_damage() => return Err(fault),
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// Writes the definitions of all tables and indexes again, at the pages where their rows are.
pub(super) fn repair(conn: &Connection) -> Result<(), SqliteFault> {
    let sql = "UPDATE sqlite_schema SET type = ?1, tbl_name = ?3, sql = ?4 WHERE name = ?2";
    for known in definitions()? {
        let Definition {
            kind,
            name,
            table,
            sql: definition,
        } = known;
        conn.execute(sql, [kind, name, table, definition])?;
    }
    Ok(())
}

/// Returns 16 random bytes.
pub(super) fn random(conn: &Connection) -> Result<u128, SqliteFault> {
    let bytes: [u8; 16] = conn.query_row("SELECT randomblob(16)", [], |row| row.get(0))?;
    Ok(u128::from_be_bytes(bytes))
}
