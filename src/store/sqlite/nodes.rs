//! The table `nodes`, which holds the latest report of each node.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::fault::SqliteFault;
use super::rows::{dialect, each, one};
use super::schema;
use crate::store::sql::{LONGEST_LEASE, NODE_COLUMNS as COLUMNS, NodeRow, lease};
use crate::store::{NodeId, NodeReport};

fn write(row: &NodeRow, conn: &Connection) -> Result<(), SqliteFault> {
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

/// Returns the beat (the report number) of the node's stored report. `None` if the row is missing or damaged.
/// So a new report always replaces a damaged row.
fn beat(conn: &Connection, node: NodeId) -> Result<Option<i64>, SqliteFault> {
    let sql = format!("SELECT {COLUMNS} FROM nodes WHERE node = ?1");
    let node = node.to_u128().to_be_bytes();
    let beat = one(conn, &sql, [node], |row| {
        Ok(NodeRow::read(row).ok().map(|row| row.beat))
    })?;
    Ok(beat.flatten())
}

pub(super) fn report(conn: &Connection, report: &NodeReport) -> Result<bool, SqliteFault> {
    let row = NodeRow::of(report)?;
    if beat(conn, report.node)?.is_some_and(|before| before >= row.beat) {
        return Ok(false);
    }
    write(&row, conn)?;
    Ok(true)
}

/// Reads all reports. Fails if a report is damaged: if the report were skipped, its node would be treated as
/// gone.
pub(super) fn all(conn: &Connection) -> Result<Vec<NodeReport>, SqliteFault> {
    let mut reports = Vec::new();
    each(conn, &format!("SELECT {COLUMNS} FROM nodes"), [], |row| {
        reports.push(NodeRow::read(row)?.report()?);
        Ok(true)
    })?;
    Ok(reports)
}

pub(super) fn forget(conn: &Connection, node: NodeId, upto: u64) -> Result<(), SqliteFault> {
    let upto = i64::try_from(upto).unwrap_or(i64::MAX);
    if beat(conn, node)?.is_none_or(|before| before <= upto) {
        conn.prepare_cached("DELETE FROM nodes WHERE node = ?1")?
            .execute([node.to_u128().to_be_bytes()])?;
    }
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
