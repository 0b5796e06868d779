//! What the file looks like, and how an older file becomes that.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::fault::Fault;

/// "kwrd": what `PRAGMA application_id` says of our files.
pub(super) const APPLICATION_ID: i32 = 0x6b77_7264;

/// The version that this build writes, in `PRAGMA user_version`.
pub(super) const VERSION: i32 = 1;

/// Rows of one commit stand at `revision * 2^20` and on, so that the table is clustered on the
/// revision: a follower's read is one range, and a start reads the file from front to back.
pub(super) const PLACE_BITS: u32 = 20;

/// The steps from each version to the next. A released step is never edited.
const MIGRATIONS: [&str; VERSION as usize] = [include_str!("schema/1.sql")];

/// Brings the file to this build's version, in one transaction. A file that is up to date is only
/// read.
pub(super) fn migrate(conn: &mut Connection) -> Result<(), Fault> {
    if version(conn)? == VERSION {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    let from = usize::try_from(version(&tx)?).unwrap_or_default();
    for step in MIGRATIONS.iter().skip(from) {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()?;
    Ok(())
}

/// The version of the file's schema.
pub(super) fn version(conn: &Connection) -> Result<i32, Fault> {
    let mut statement = conn.prepare_cached("PRAGMA user_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Refuses what a newer version has made of the file meanwhile.
pub(super) fn check_version(conn: &Connection) -> Result<(), Fault> {
    match version(conn)? {
        VERSION => Ok(()),
        found => Err(Fault::Version { found }),
    }
}

/// Writes the tables of a new store, with a history of its own.
pub(super) fn create(conn: &mut Connection) -> Result<(), Fault> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    migrate(conn)?;
    conn.execute(
        "INSERT INTO store (one, epoch, floor, unrecovered) VALUES (1, randomblob(16), 0, 0)",
        [],
    )?;
    Ok(())
}

/// What is known of the store as a whole.
pub(super) struct Store {
    pub(super) epoch: u128,
    pub(super) floor: u64,
    pub(super) unrecovered: bool,
}

pub(super) fn store(conn: &Connection) -> Result<Store, Fault> {
    let sql = "SELECT epoch, floor, unrecovered FROM store WHERE one = 1";
    let found = conn
        .prepare_cached(sql)?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let (epoch, floor, unrecovered): ([u8; 16], i64, bool) =
        found.ok_or(Fault::corrupt("the store's own row is missing"))?;
    Ok(Store {
        epoch: u128::from_be_bytes(epoch),
        floor: u64::try_from(floor).map_err(|_| Fault::corrupt("the purge floor is negative"))?,
        unrecovered,
    })
}
