//! The registry of nodes in the file.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row as Columns, params};

use super::fault::Fault;
use super::head::signed;
use super::rows::Seal;
use super::schema;
use crate::core::text::NodeLabel;
use crate::core::view::Revision;
use crate::store::{CommitTag, Cursor, Epoch, NodeId, NodeReport};

const COLUMNS: &str = "node, beat, lease, label, epoch, revision, tag, seal";

/// For how long nodes of a history that a restore ended may go on, at least. A judgement: staleness
/// bounds are shorter.
const FORMER_LEASE: Duration = Duration::from_secs(60 * 60);

/// A row as it stands in the file.
struct NodeRow {
    node: [u8; 16],
    beat: i64,
    lease: i64,
    label: Option<String>,
    applied: Option<([u8; 16], i64, [u8; 16])>,
}

impl NodeRow {
    fn of(report: &NodeReport) -> Result<Self, Fault> {
        let NodeReport {
            node,
            label,
            applied,
            lease,
            beat,
        } = report;
        let applied = applied.map(|cursor| {
            let Cursor {
                epoch,
                revision,
                tag,
            } = cursor;
            let revision = signed(revision.0)?;
            Ok::<_, Fault>((epoch.0.to_be_bytes(), revision, tag.0.to_be_bytes()))
        });
        Ok(Self {
            node: node.to_u128().to_be_bytes(),
            beat: signed(*beat)?,
            lease: i64::try_from(lease.as_micros()).unwrap_or(i64::MAX),
            label: label.as_ref().map(|label| label.as_str().to_owned()),
            applied: applied.transpose()?,
        })
    }

    /// The row, if it is what was written.
    fn read(row: &Columns<'_>) -> Result<Option<Self>, rusqlite::Error> {
        let applied = (row.get(4)?, row.get(5)?, row.get(6)?);
        let read = Self {
            node: row.get(0)?,
            beat: row.get(1)?,
            lease: row.get(2)?,
            label: row.get(3)?,
            applied: match applied {
                (Some(epoch), Some(revision), Some(tag)) => Some((epoch, revision, tag)),
                _ => None,
            },
        };
        let sealed: i64 = row.get(7)?;
        Ok((read.seal() == sealed).then_some(read))
    }

    fn seal(&self) -> i64 {
        let label = self.label.as_deref();
        let seal = Seal::default().bytes(self.node).number(self.beat);
        let seal = seal.number(self.lease).maybe(label);
        match &self.applied {
            Some((epoch, revision, tag)) => seal.bytes(epoch).number(*revision).bytes(tag),
            None => seal.number(-1),
        }
        .end()
    }

    fn write(&self, conn: &Connection) -> Result<(), Fault> {
        let (epoch, revision, tag) = match self.applied {
            Some((epoch, revision, tag)) => (Some(epoch), Some(revision), Some(tag)),
            None => (None, None, None),
        };
        let sql = format!(
            "INSERT OR REPLACE INTO nodes ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
        );
        conn.prepare_cached(&sql)?.execute(params![
            self.node,
            self.beat,
            self.lease,
            self.label,
            epoch,
            revision,
            tag,
            self.seal()
        ])?;
        Ok(())
    }

    fn report(self) -> Result<NodeReport, Fault> {
        let label = self.label.map(NodeLabel::new).transpose();
        Ok(NodeReport {
            node: NodeId::from_u128(u128::from_be_bytes(self.node)),
            label: label.map_err(|_| Fault::corrupt("a node's label is damaged"))?,
            applied: self.applied.map(|(epoch, revision, tag)| Cursor {
                epoch: Epoch(u128::from_be_bytes(epoch)),
                revision: Revision(revision.unsigned_abs()),
                tag: CommitTag(u128::from_be_bytes(tag)),
            }),
            lease: Duration::from_micros(self.lease.unsigned_abs()),
            beat: self.beat.unsigned_abs(),
        })
    }
}

/// The node's beat; `None` if it is not there, or damaged: a new report heals it.
fn beat(conn: &Connection, node: NodeId) -> Result<Option<i64>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM nodes WHERE node = ?1");
    let stands = conn
        .prepare_cached(&sql)?
        .query_row([node.to_u128().to_be_bytes()], NodeRow::read)
        .optional()?;
    Ok(stands.flatten().map(|row| row.beat))
}

pub(super) fn report(conn: &Connection, report: &NodeReport) -> Result<bool, Fault> {
    let row = NodeRow::of(report)?;
    if beat(conn, report.node)?.is_some_and(|stands| stands >= row.beat) {
        return Ok(false);
    }
    row.write(conn)?;
    Ok(true)
}

pub(super) fn all(conn: &Connection) -> Result<Vec<NodeReport>, Fault> {
    let mut statement = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM nodes"))?;
    let mut found = statement.query([])?;
    let mut reports = Vec::new();
    while let Some(row) = found.next()? {
        // Left out, it would pass for a node that is gone.
        let read = NodeRow::read(row)?.ok_or_else(|| Fault::corrupt("a node's row is damaged"))?;
        reports.push(read.report()?);
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
        let intact = match NodeRow::read(row).map_err(Fault::from) {
            Ok(Some(read)) => read.report().is_ok(),
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

/// Puts one entry that stands for all nodes of a history that a restore ended, and never reports: they
/// may go on for a while, and most of them are not in the backup.
pub(super) fn begin_anew(conn: &Connection) -> Result<(), Fault> {
    let leases = "SELECT max(lease) FROM nodes";
    let longest: Option<i64> = conn.query_row(leases, [], |row| row.get(0))?;
    let longest = Duration::from_micros(longest.unwrap_or_default().unsigned_abs());
    conn.execute("DELETE FROM nodes", [])?;
    let former = NodeReport {
        node: NodeId::from_u128(schema::random(conn)?),
        label: NodeLabel::new("all nodes before the restore").ok(),
        applied: None,
        lease: longest.max(FORMER_LEASE),
        beat: 1,
    };
    report(conn, &former).map(drop)
}
