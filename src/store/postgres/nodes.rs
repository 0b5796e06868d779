//! The registry of nodes in the database.

use tokio_postgres::Row as Columns;

use super::check::damage;
use super::fault::Fault;
use super::link::Tx;
use super::rows::exactly;
use crate::store::rows::{NODE_COLUMNS as COLUMNS, NodeRow};
use crate::store::{NodeId, NodeReport};

/// The row, if it is what was written.
fn read(row: &Columns) -> Result<Option<NodeRow>, Fault> {
    let what = "a node's row";
    let bytes = |column| -> Result<Option<[u8; 16]>, Fault> {
        let bytes: Option<&[u8]> = row.try_get(column)?;
        bytes.map(|bytes| exactly(bytes, what)).transpose()
    };
    let applied = (bytes(4)?, row.try_get(5)?, bytes(6)?);
    let read = NodeRow {
        node: exactly(row.try_get(0)?, what)?,
        beat: row.try_get(1)?,
        lease: row.try_get(2)?,
        label: row.try_get(3)?,
        applied: match applied {
            (Some(epoch), Some(revision), Some(tag)) => Some((epoch, revision, tag)),
            _ => None,
        },
        clock: row.try_get(7)?,
    };
    let sealed: i64 = row.try_get(8)?;
    Ok((read.seal() == sealed).then_some(read))
}

/// The node's beat; `None` if it is not there, or damaged: a new report heals it. What is there stays
/// as it is until the transaction ends.
async fn beat(tx: &Tx<'_>, node: NodeId) -> Result<Option<i64>, Fault> {
    let node = node.to_u128().to_be_bytes();
    let sql = format!("SELECT {COLUMNS} FROM $s.nodes WHERE node = $1 FOR UPDATE");
    let found = tx.query(&sql, &[&&node[..]]).await?;
    let read = |row| match read(row) {
        Err(Fault::Corrupt(_)) => Ok(None),
        read => read,
    };
    let stands = found.first().map(read).transpose()?;
    Ok(stands.flatten().map(|row| row.beat))
}

/// Writes a report, unless the same or a later one stands. The transaction is to be committed.
pub(super) async fn report(tx: &Tx<'_>, report: &NodeReport) -> Result<bool, Fault> {
    let row = NodeRow::of(report)?;
    let (epoch, revision, tag) = match &row.applied {
        Some((epoch, revision, tag)) => (Some(&epoch[..]), Some(*revision), Some(&tag[..])),
        None => (None, None, None),
    };
    let seal = row.seal();
    let node = &row.node[..];
    // Before its first report there is nothing to lock: whoever is faster puts it there.
    let sql = format!(
        "INSERT INTO $s.nodes ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (node) DO NOTHING"
    );
    let with: [super::link::Bound<'_>; 9] = [
        &node, &row.beat, &row.lease, &row.label, &epoch, &revision, &tag, &row.clock, &seal,
    ];
    if tx.execute(&sql, &with).await? == 1 {
        return Ok(true);
    }
    if beat(tx, report.node)
        .await?
        .is_some_and(|stands| stands >= row.beat)
    {
        return Ok(false);
    }
    let sql = "UPDATE $s.nodes SET beat = $2, lease = $3, label = $4, epoch = $5, revision = $6, \
               tag = $7, clock = $8, seal = $9 WHERE node = $1";
    if tx.execute(sql, &with).await? == 0 {
        return Err(Fault::Refused("the node was forgotten at the same time"));
    }
    Ok(true)
}

pub(super) async fn all(tx: &Tx<'_>) -> Result<Vec<NodeReport>, Fault> {
    let found = tx
        .query(&format!("SELECT {COLUMNS} FROM $s.nodes"), &[])
        .await?;
    let mut reports = Vec::new();
    for row in &found {
        // Left out, it would pass for a node that is gone.
        let stands = read(row)?.ok_or_else(|| Fault::corrupt("a node's row is damaged"))?;
        reports.push(stands.report()?);
    }
    Ok(reports)
}

/// Forgets a node that has not reported since. The transaction is to be committed.
pub(super) async fn forget(tx: &Tx<'_>, node: NodeId, upto: u64) -> Result<(), Fault> {
    let upto = i64::try_from(upto).unwrap_or(i64::MAX);
    if beat(tx, node).await?.is_none_or(|stands| stands <= upto) {
        let node = node.to_u128().to_be_bytes();
        tx.execute("DELETE FROM $s.nodes WHERE node = $1", &[&&node[..]])
            .await?;
    }
    Ok(())
}

/// The longest lease of any node.
pub(super) async fn longest_lease(tx: &Tx<'_>) -> Result<Option<i64>, Fault> {
    let found = tx.query("SELECT max(lease) FROM $s.nodes", &[]).await?;
    let longest = found.first().map(|row| row.try_get(0)).transpose()?;
    Ok(longest.flatten())
}

/// Names the rows that are damaged.
pub(super) async fn check(tx: &Tx<'_>) -> Result<Vec<String>, Fault> {
    let found = tx
        .query(&format!("SELECT {COLUMNS} FROM $s.nodes"), &[])
        .await?;
    let mut faults = Vec::new();
    for row in &found {
        let intact = match damage(read(row))? {
            Ok(Some(stands)) => stands.report().is_ok(),
            Ok(None) | Err(_) => false,
        };
        if !intact {
            let node = row.try_get::<_, &[u8]>(0)?.try_into();
            let node = NodeId::from_u128(node.map(u128::from_be_bytes).unwrap_or_default());
            faults.push(format!("node {node}: its row is damaged"));
        }
    }
    Ok(faults)
}
