//! The registry of nodes in the file.

use rusqlite::{Connection, OptionalExtension, Row as Columns, params};

use super::fault::Fault;
use super::schema;
use crate::store::rows::{NODE_COLUMNS as COLUMNS, NodeRow};
use crate::store::{NodeId, NodeReport};

/// The row, if it is what was written.
fn read(row: &Columns<'_>) -> Result<Option<NodeRow>, rusqlite::Error> {
    let applied = (row.get(4)?, row.get(5)?, row.get(6)?);
    let read = NodeRow {
        node: row.get(0)?,
        beat: row.get(1)?,
        lease: row.get(2)?,
        label: row.get(3)?,
        applied: match applied {
            (Some(epoch), Some(revision), Some(tag)) => Some((epoch, revision, tag)),
            _ => None,
        },
        clock: row.get(7)?,
    };
    let sealed: i64 = row.get(8)?;
    Ok((read.seal() == sealed).then_some(read))
}

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

/// The node's beat; `None` if it is not there, or damaged: a new report heals it.
fn beat(conn: &Connection, node: NodeId) -> Result<Option<i64>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM nodes WHERE node = ?1");
    let stands = conn
        .prepare_cached(&sql)?
        .query_row([node.to_u128().to_be_bytes()], read)
        .optional()?;
    Ok(stands.flatten().map(|row| row.beat))
}

pub(super) fn report(conn: &Connection, report: &NodeReport) -> Result<bool, Fault> {
    let row = NodeRow::of(report)?;
    if beat(conn, report.node)?.is_some_and(|stands| stands >= row.beat) {
        return Ok(false);
    }
    write(&row, conn)?;
    Ok(true)
}

pub(super) fn all(conn: &Connection) -> Result<Vec<NodeReport>, Fault> {
    let mut statement = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM nodes"))?;
    let mut found = statement.query([])?;
    let mut reports = Vec::new();
    while let Some(row) = found.next()? {
        // Left out, it would pass for a node that is gone.
        let stands = read(row)?.ok_or_else(|| Fault::corrupt("a node's row is damaged"))?;
        reports.push(stands.report()?);
    }
    Ok(reports)
}

pub(super) fn forget(conn: &Connection, node: NodeId, upto: u64) -> Result<(), Fault> {
    let upto = i64::try_from(upto).unwrap_or(i64::MAX);
    if beat(conn, node)?.is_none_or(|stands| stands <= upto) {
        conn.prepare_cached("DELETE FROM nodes WHERE node = ?1")?
            .execute([node.to_u128().to_be_bytes()])?;
    }
    Ok(())
}

/// Names the rows that are damaged.
pub(super) fn check(conn: &Connection) -> Result<Vec<String>, Fault> {
    let mut statement = conn.prepare(&format!("SELECT {COLUMNS} FROM nodes"))?;
    let mut found = statement.query([])?;
    let mut faults = Vec::new();
    while let Some(row) = found.next()? {
        let intact = match read(row).map_err(Fault::from) {
            Ok(Some(stands)) => stands.report().is_ok(),
            Ok(None) => false,
            Err(fault) if fault.is_corrupt() => false,
            Err(fault) => return Err(fault),
        };
        if !intact {
            let node: Vec<u8> = row.get(0).unwrap_or_default();
            let node = node.try_into().map(u128::from_be_bytes);
            let node = NodeId::from_u128(node.unwrap_or_default());
            faults.push(format!("node {node}: its row is damaged"));
        }
    }
    Ok(faults)
}

/// The longest lease of any node.
pub(super) fn longest_lease(conn: &Connection) -> Result<Option<i64>, Fault> {
    let leases = "SELECT max(lease) FROM nodes";
    Ok(conn.query_row(leases, [], |row| row.get(0))?)
}

/// Puts one entry that stands for all nodes of a history that came to an end here, and never reports:
/// they may go on for a while, and most of them are not known here. `longest` is the longest of their
/// leases that is.
pub(super) fn begin_anew(conn: &Connection, longest: Option<i64>) -> Result<(), Fault> {
    conn.execute("DELETE FROM nodes", [])?;
    write(&NodeRow::former(schema::random(conn)?, longest)?, conn)
}
