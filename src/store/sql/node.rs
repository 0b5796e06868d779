//! The table `nodes`: its columns and their decoding.
//!
//! The seal of a row does not cover the column `process`, so builds that do not know the column read the row. The
//! column has a seal of its own. A row without the column, which such a build wrote, has an unknown process.

use std::time::Duration;

use super::cells::{Cells, is_damaged};
use super::seal::Seal;
use super::{Cell, RowFault, signed};
use crate::core::text::{NodeLabel, TextOrigin};
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{CommitTag, Cursor, Epoch, NodeId, NodeProcess, NodeReport};

macro_rules! columns {
    ($process:literal) => {
        concat!(
            "node, beat, lease, label, epoch, revision, tag, clock, seal, ",
            $process
        )
    };
}

/// The columns of a report, in the order of [`NodeRow`], with the seal before the process.
pub(in crate::store) const NODE_COLUMNS: &str = columns!("process");

/// The columns of a table without the column `process`: the table `nodes` of a file, whose entries stand for the nodes
/// of a replaced history, and the registry of an earlier build.
pub(in crate::store) const ENTRY_COLUMNS: &str = columns!("NULL");

/// The row of a node, without its seal.
pub(in crate::store) struct NodeRow {
    pub(in crate::store) node: [u8; 16],
    pub(in crate::store) beat: i64,
    pub(in crate::store) lease: i64,
    pub(in crate::store) label: Option<String>,
    /// The epoch, revision and tag of the last commit that the node has applied.
    pub(in crate::store) applied: Option<([u8; 16], i64, [u8; 16])>,
    /// The reading of the node's clock at the time of the report, in microseconds.
    pub(in crate::store) clock: i64,
    /// The node's process as JSON, with a seal in front. `None` if the process is unknown.
    pub(in crate::store) process: Option<String>,
}

impl NodeRow {
    pub(in crate::store) fn of(report: &NodeReport) -> Result<Self, RowFault> {
        let NodeReport {
            node,
            label,
            applied,
            lease,
            clock,
            beat,
            process,
        } = report;
        let applied = applied.map(|cursor| {
            let Cursor {
                epoch,
                revision,
                tag,
            } = cursor;
            let revision = signed(revision.0)?;
            Ok::<_, RowFault>((epoch.0.to_be_bytes(), revision, tag.0.to_be_bytes()))
        });
        let node = node.to_u128().to_be_bytes();
        let process = process.as_ref().and_then(|process| {
            let json = serde_json::to_string(process).ok()?;
            Some(sealed(node, &json))
        });
        Ok(Self {
            node,
            beat: signed(*beat)?,
            lease: i64::try_from(lease.as_micros()).unwrap_or(i64::MAX),
            label: label.as_ref().map(|label| label.as_str().to_owned()),
            applied: applied.transpose()?,
            clock: clock.as_micros(),
            process,
        })
    }

    /// Decodes a row of [`NODE_COLUMNS`].
    pub(in crate::store) fn read(row: &impl Cells) -> Result<Self, RowFault> {
        let what = "a node's row";
        let applied = match row.cell(5) {
            Cell::Null => None,
            _ => Some((
                row.exactly(4, what)?,
                row.number(5, what)?,
                row.exactly(6, what)?,
            )),
        };
        let read = Self {
            node: row.exactly(0, what)?,
            beat: row.number(1, what)?,
            lease: row.number(2, what)?,
            label: match row.cell(3) {
                Cell::Null => None,
                _ => Some(row.text(3, what)?.to_owned()),
            },
            applied,
            clock: row.number(7, what)?,
            process: match row.cell(9) {
                Cell::Null => None,
                _ => Some(row.text(9, what)?.to_owned()),
            },
        };
        match row.number(8, what)? == read.seal() && read.is_process_whole() {
            true => Ok(read),
            false => Err(is_damaged(what)),
        }
    }

    /// Returns the node's id in a row of [`NODE_COLUMNS`] that may be damaged. Zero if the id cannot
    /// be read.
    pub(super) fn id(row: &impl Cells) -> NodeId {
        let node = row.exactly(0, "a node's row").map(u128::from_be_bytes);
        NodeId::from_u128(node.unwrap_or_default())
    }

    fn process_json(&self) -> Option<&str> {
        Some(self.process.as_ref()?.split_once(' ')?.1)
    }

    fn is_process_whole(&self) -> bool {
        let resealed = self.process_json().map(|json| sealed(self.node, json));
        resealed == self.process
    }

    pub(in crate::store) fn seal(&self) -> i64 {
        let label = self.label.as_deref();
        let seal = Seal::default().bytes(self.node).number(self.beat);
        let seal = seal.number(self.lease).number(self.clock).maybe(label);
        match &self.applied {
            Some((epoch, revision, tag)) => seal.bytes(epoch).number(*revision).bytes(tag),
            None => seal.number(-1),
        }
        .end()
    }

    /// Returns the columns `epoch`, `revision` and `tag`.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) fn position(&self) -> (Option<[u8; 16]>, Option<i64>, Option<[u8; 16]>) {
        match self.applied {
            Some((epoch, revision, tag)) => (Some(epoch), Some(revision), Some(tag)),
            None => (None, None, None),
        }
    }

    /// Returns the process. `None` if it is unknown, or in the form of a later build.
    fn process(&self) -> Option<NodeProcess> {
        serde_json::from_str(self.process_json()?).ok()
    }

    pub(in crate::store) fn report(self) -> Result<NodeReport, RowFault> {
        let label = (self.label.as_deref())
            .map(|label| NodeLabel::from_origin(label, TextOrigin::Stored))
            .transpose();
        Ok(NodeReport {
            process: self.process(),
            node: NodeId::from_u128(u128::from_be_bytes(self.node)),
            label: label.map_err(|_| is_damaged("a node's label"))?,
            applied: self.applied.map(|(epoch, revision, tag)| Cursor {
                epoch: Epoch(u128::from_be_bytes(epoch)),
                revision: Revision(revision.unsigned_abs()),
                tag: CommitTag(u128::from_be_bytes(tag)),
            }),
            lease: Duration::from_micros(self.lease.unsigned_abs()),
            clock: Timestamp::clamped(self.clock),
            beat: self.beat.unsigned_abs(),
        })
    }

    /// Returns the lease that an entry for the nodes of a replaced history needs for the node of this row: its bound
    /// with the shortest allowance. Such a node accepts no key after its bound, because no read of the present
    /// history confirms it.
    pub(in crate::store) fn former_lease(row: &impl Cells) -> Result<Duration, RowFault> {
        let lease = lease(row, 2)?;
        let read = Self::read(row).and_then(Self::report);
        Ok(read.map_or(lease, |report| {
            lease.min(report.bound().saturating_add(NodeReport::ALLOWANCE))
        }))
    }

    /// Returns one entry that stands for all nodes of a replaced history. Those nodes may accept keys until
    /// their bounds end, and a backup does not list all of them. The argument `longest` is the longest known
    /// [`former_lease`](Self::former_lease), or zero.
    pub(in crate::store) fn former(node: u128, longest: Duration) -> Result<Self, RowFault> {
        Self::of(&NodeReport {
            node: NodeId::from_u128(node),
            label: NodeLabel::new("all nodes before the restore").ok(),
            applied: None,
            lease: longest,
            clock: Timestamp::UNIX_EPOCH,
            beat: 1,
            process: None,
        })
    }
}

/// Returns the text of the column `process`: a seal, and the process as JSON.
fn sealed(node: [u8; 16], json: &str) -> String {
    let seal = Seal::default().bytes(node).bytes(json).end();
    format!("{seal} {json}")
}

/// Returns the seal of a report and of the history that it belongs to.
#[cfg(feature = "sqlite")]
pub(in crate::store) fn history_seal(history: &[u8; 16], row: &NodeRow) -> i64 {
    Seal::default().bytes(history).number(row.seal()).end()
}

/// Selects the longest lease of any node in the table `nodes` of a file.
#[cfg(feature = "sqlite")]
pub(in crate::store) const LONGEST_LEASE: &str = "SELECT coalesce(max(lease), 0) FROM $s.nodes";

/// Decodes the longest lease from a column, in microseconds.
pub(in crate::store) fn lease(row: &impl Cells, column: usize) -> Result<Duration, RowFault> {
    let micros = row.number(column, "the lease of a node")?;
    Ok(Duration::from_micros(micros.unsigned_abs()))
}
