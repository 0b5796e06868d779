//! The node registry, stored in the table `nodes`.

use std::time::Duration;

use super::fault::PostgresFault;
use super::rows::SqlParam;
use super::session::Session;
use crate::store::sql::{NODE_COLUMNS as COLUMNS, NodeRow};
use crate::store::{NodeId, NodeReport};

/// Locks the node's row, and returns the node's last beat. Returns `None` if the row is missing or damaged,
/// so that a new report replaces a damaged row.
async fn beat(session: &Session, node: NodeId) -> Result<Option<i64>, PostgresFault> {
    let node = node.to_u128().to_be_bytes();
    let sql = format!("SELECT {COLUMNS} FROM $s.nodes WHERE node = $1 FOR UPDATE");
    let found = session.query(&sql, &[&&node[..]]).await?;
    let row = found.first().and_then(|row| NodeRow::read(row).ok());
    Ok(row.map(|row| row.beat))
}

/// Writes a report and returns `true`. Returns `false` if the registry has a report of the node with the same
/// or a later beat. The caller commits the session.
pub(super) async fn report(session: &Session, report: &NodeReport) -> Result<bool, PostgresFault> {
    let row = NodeRow::of(report)?;
    let (epoch, revision, tag) = match &row.applied {
        Some((epoch, revision, tag)) => (Some(&epoch[..]), Some(*revision), Some(&tag[..])),
        None => (None, None, None),
    };
    let seal = row.seal();
    let node = &row.node[..];
    // If the node has not reported before, there is no row to lock. Two concurrent inserts may then run. The
    // unique index lets only one of them succeed.
    let sql = format!(
        "INSERT INTO $s.nodes ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
         ON CONFLICT (node) DO NOTHING"
    );
    let with: [SqlParam<'_>; 10] = [
        &node,
        &row.beat,
        &row.lease,
        &row.label,
        &epoch,
        &revision,
        &tag,
        &row.clock,
        &seal,
        &row.process,
    ];
    if session.execute(&sql, &with).await? == 1 {
        return Ok(true);
    }
    let before = beat(session, report.node).await?;
    if before.is_some_and(|before| before >= row.beat) {
        return Ok(false);
    }
    let sql = "UPDATE $s.nodes SET beat = $2, lease = $3, label = $4, epoch = $5, revision = $6, \
               tag = $7, clock = $8, seal = $9, process = $10 WHERE node = $1";
    if session.execute(sql, &with).await? == 0 {
        return Err(PostgresFault::Refused(
            "the node's report was removed concurrently",
        ));
    }
    Ok(true)
}

/// Reads all reports. Fails if a report is damaged. If it were skipped instead, callers would take its node
/// for stopped.
pub(super) async fn all(session: &Session) -> Result<Vec<NodeReport>, PostgresFault> {
    let sql = format!("SELECT {COLUMNS} FROM $s.nodes");
    let found = session.query(&sql, &[]).await?;
    let report = |row| Ok(NodeRow::read(row)?.report()?);
    found.iter().map(report).collect()
}

/// Removes a node's report, unless its beat is above `upto`. The caller commits the session.
pub(super) async fn forget(
    session: &Session,
    node: NodeId,
    upto: u64,
) -> Result<(), PostgresFault> {
    let upto = i64::try_from(upto).unwrap_or(i64::MAX);
    let before = beat(session, node).await?;
    if before.is_none_or(|before| before <= upto) {
        let node = node.to_u128().to_be_bytes();
        let sql = "DELETE FROM $s.nodes WHERE node = $1";
        session.execute(sql, &[&&node[..]]).await?;
    }
    Ok(())
}

/// Returns the longest [`NodeRow::former_lease`] of any node.
pub(super) async fn longest_lease(session: &Session) -> Result<Duration, PostgresFault> {
    let sql = format!("SELECT {COLUMNS} FROM $s.nodes");
    let mut longest = Duration::ZERO;
    for row in session.query(&sql, &[]).await? {
        longest = longest.max(NodeRow::former_lease(&row)?);
    }
    Ok(longest)
}

/// Replaces all reports by a single report. This report stands for all nodes that followed the former
/// history; see [`NodeRow::former`]. The caller must commit the session.
pub(super) async fn end_history(
    session: &Session,
    node: u128,
    longest: Duration,
) -> Result<(), PostgresFault> {
    session.execute("DELETE FROM $s.nodes", &[]).await?;
    let former = NodeRow::former(node, longest)?;
    report(session, &former.report()?).await.map(drop)
}
