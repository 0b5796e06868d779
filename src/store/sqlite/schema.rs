//! What the file looks like, and how an older file becomes that.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::fault::Fault;
use crate::store::rows::{StoreRow, signed};

/// "kwrd": what `PRAGMA application_id` says of our files.
pub(super) const APPLICATION_ID: i32 = 0x6b77_7264;

/// The version that this build writes, in `PRAGMA user_version`.
pub(super) const VERSION: i32 = 2;

/// The steps from each version to the next. A released step is never edited.
const MIGRATIONS: [&str; VERSION as usize] =
    [include_str!("schema/1.sql"), include_str!("schema/2.sql")];

/// Brings the file to this build's version, in one transaction. A file that is up to date is only
/// read.
pub(super) fn migrate(conn: &mut Connection) -> Result<(), Fault> {
    if version(conn)? == VERSION {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    let from = version(&tx)?;
    if from > VERSION {
        return Err(Fault::version(from));
    }
    let from = usize::try_from(from).unwrap_or_default();
    for step in MIGRATIONS.iter().skip(from) {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()?;
    Ok(())
}

/// Whose the file says it is.
pub(super) fn application(conn: &Connection) -> Result<i32, Fault> {
    Ok(conn.pragma_query_value(None, "application_id", |row| row.get(0))?)
}

/// The version of the file's schema.
pub(super) fn version(conn: &Connection) -> Result<i32, Fault> {
    let mut statement = conn.prepare_cached("PRAGMA user_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Moves with every commit of another connection, and with none of this one.
pub(super) fn data_version(conn: &Connection) -> Result<i64, Fault> {
    let mut statement = conn.prepare_cached("PRAGMA data_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Refuses what a newer version has made of the file meanwhile.
pub(super) fn check_version(conn: &Connection) -> Result<(), Fault> {
    match version(conn)? {
        VERSION => Ok(()),
        found => Err(Fault::version(found)),
    }
}

/// Writes the tables of a new store, with a history of its own.
pub(super) fn create(conn: &mut Connection) -> Result<(), Fault> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    migrate(conn)?;
    let store = StoreRow {
        epoch: random(conn)?,
        floor: 0,
        unrecovered: false,
    };
    write_store(conn, &store)
}

/// 16 random bytes.
pub(super) fn random(conn: &Connection) -> Result<u128, Fault> {
    let bytes: [u8; 16] = conn.query_row("SELECT randomblob(16)", [], |row| row.get(0))?;
    Ok(u128::from_be_bytes(bytes))
}

/// What is known of the store as a whole.
pub(super) fn store(conn: &Connection) -> Result<StoreRow, Fault> {
    let sql = "SELECT epoch, floor, unrecovered, seal FROM store WHERE one = 1";
    let found = conn
        .prepare_cached(sql)?
        .query_row([], |row| {
            let epoch: [u8; 16] = row.get(0)?;
            let floor: i64 = row.get(1)?;
            let store = StoreRow {
                epoch: u128::from_be_bytes(epoch),
                floor: floor.unsigned_abs(),
                unrecovered: row.get(2)?,
            };
            Ok((store, row.get::<_, i64>(3)?))
        })
        .optional()?;
    let (store, sealed) = found.ok_or_else(|| Fault::corrupt("the store's own row is missing"))?;
    Ok(store.sealed(sealed)?)
}

pub(super) fn write_store(conn: &Connection, store: &StoreRow) -> Result<(), Fault> {
    let sql = "INSERT OR REPLACE INTO store (one, epoch, floor, unrecovered, seal) \
               VALUES (1, ?1, ?2, ?3, ?4)";
    let epoch = store.epoch.to_be_bytes();
    let (floor, seal) = (signed(store.floor)?, store.seal()?);
    conn.execute(sql, params![epoch, floor, store.unrecovered, seal])?;
    Ok(())
}
