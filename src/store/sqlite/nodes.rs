//! The table `nodes` of the store, which holds an entry for the nodes of a replaced history. The reports of the
//! present history are in the [registry](super::registry).

use std::time::Duration;

use rusqlite::{Connection, params};

use super::fault::SqliteFault;
use super::rows::{dialect, each, one};
use super::schema;
use crate::store::sql::{ENTRY_COLUMNS, LONGEST_LEASE, NodeRow, lease};
use crate::store::{NodeId, NodeReport};

fn write(row: &NodeRow, conn: &Connection) -> Result<(), SqliteFault> {
    let (epoch, revision, tag) = row.position();
    let sql = "INSERT OR REPLACE INTO nodes (node, beat, lease, label, epoch, revision, tag, clock, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    conn.prepare_cached(sql)?.execute(params![
        row.node,
        row.beat,
        row.lease,
        row.label,
        epoch,
        revision,
        tag,
        row.clock,
        row.seal()
    ])?;
    Ok(())
}

/// Reads all entries. Fails if an entry is damaged: if it were skipped, its nodes would be treated as gone.
pub(super) fn all(conn: &Connection) -> Result<Vec<NodeReport>, SqliteFault> {
    let mut reports = Vec::new();
    let sql = format!("SELECT {ENTRY_COLUMNS} FROM nodes");
    each(conn, &sql, [], |row| {
        reports.push(NodeRow::read(row)?.report()?);
        Ok(true)
    })?;
    Ok(reports)
}

/// Returns whether the entry of a node may be removed: its beat is `upto` or less, or it is damaged.
pub(super) fn may_forget(conn: &Connection, node: NodeId, upto: u64) -> Result<bool, SqliteFault> {
    let sql = format!("SELECT {ENTRY_COLUMNS} FROM nodes WHERE node = ?1");
    let node = node.to_u128().to_be_bytes();
    let may = one(conn, &sql, [node], |row| {
        let read = NodeRow::read(row).ok();
        Ok(read.is_none_or(|read| read.beat.unsigned_abs() <= upto))
    })?;
    Ok(may.unwrap_or_default())
}

/// Removes the entry of a node.
pub(super) fn forget(conn: &Connection, node: NodeId) -> Result<(), SqliteFault> {
    conn.prepare_cached("DELETE FROM nodes WHERE node = ?1")?
        .execute([node.to_u128().to_be_bytes()])?;
    Ok(())
}

pub(super) fn longest_lease(conn: &Connection) -> Result<Duration, SqliteFault> {
    let longest = one(conn, &dialect(LONGEST_LEASE), [], |row| Ok(lease(row, 0)?))?;
    Ok(longest.unwrap_or_default())
}

/// Replaces all reports with one entry for the nodes of the previous history. See [`NodeRow::former`].
pub(super) fn end_history(conn: &Connection, longest: Duration) -> Result<(), SqliteFault> {
    conn.execute("DELETE FROM nodes", [])?;
    write(&NodeRow::former(schema::random(conn)?, longest)?, conn)
}
