//! The registry of nodes in the file.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::fault::Fault;
use super::rows::{dialect, each, one};
use super::schema;
use crate::store::sql::{LONGEST_LEASE, NODE_COLUMNS as COLUMNS, NodeRow, lease};
use crate::store::{NodeId, NodeReport};

fn write(row: &NodeRow, conn: &Connection) -> Result<(), Fault> {
    let (epoch, revision, tag) = match row.applied {
        Some((epoch, revision, tag)) => (Some(epoch), Some(revision), Some(tag)),
        None => (None, None, None),
    };
    let sql = format!(
        "INSERT OR REPLACE INTO nodes ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
    );
    conn.prepare_cached(&sql)?.execute(params![
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

/// Returns the last beat of the node. `None` if the row is missing or damaged: a new report replaces
/// a damaged row.
fn beat(conn: &Connection, node: NodeId) -> Result<Option<i64>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM nodes WHERE node = ?1");
    let node = node.to_u128().to_be_bytes();
    let beat = one(conn, &sql, [node], |row| {
        Ok(NodeRow::read(row).ok().map(|row| row.beat))
    })?;
    Ok(beat.flatten())
}

pub(super) fn report(conn: &Connection, report: &NodeReport) -> Result<bool, Fault> {
    let row = NodeRow::of(report)?;
    if beat(conn, report.node)?.is_some_and(|before| before >= row.beat) {
        return Ok(false);
    }
    write(&row, conn)?;
    Ok(true)
}

/// Reads all reports. A damaged report is an error: without its report a node would count as gone.
pub(super) fn all(conn: &Connection) -> Result<Vec<NodeReport>, Fault> {
    let mut reports = Vec::new();
    each(conn, &format!("SELECT {COLUMNS} FROM nodes"), [], |row| {
        reports.push(NodeRow::read(row)?.report()?);
        Ok(true)
    })?;
    Ok(reports)
}

pub(super) fn forget(conn: &Connection, node: NodeId, upto: u64) -> Result<(), Fault> {
    let upto = i64::try_from(upto).unwrap_or(i64::MAX);
    if beat(conn, node)?.is_none_or(|before| before <= upto) {
        conn.prepare_cached("DELETE FROM nodes WHERE node = ?1")?
            .execute([node.to_u128().to_be_bytes()])?;
    }
    Ok(())
}

pub(super) fn longest_lease(conn: &Connection) -> Result<Duration, Fault> {
    let longest = one(conn, &dialect(LONGEST_LEASE), [], |row| Ok(lease(row, 0)?))?;
    Ok(longest.unwrap_or_default())
}

/// Replaces all reports by one entry for the nodes of a history that ended here; see
/// [`NodeRow::former`].
pub(super) fn end_history(conn: &Connection, longest: Duration) -> Result<(), Fault> {
    conn.execute("DELETE FROM nodes", [])?;
    write(&NodeRow::former(schema::random(conn)?, longest)?, conn)
}
