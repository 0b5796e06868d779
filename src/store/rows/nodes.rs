//! What a node says of itself, as a row.

use std::time::Duration;

use super::seal::Seal;
use super::{RowFault, signed};
use crate::core::text::NodeLabel;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{CommitTag, Cursor, Epoch, NodeId, NodeReport};

/// The columns of `nodes`, in the order of [`NodeRow`], with its seal last.
pub(in crate::store) const NODE_COLUMNS: &str =
    "node, beat, lease, label, epoch, revision, tag, clock, seal";

/// For how long nodes of a history that a restore ended may go on, at least. A judgement: staleness
/// bounds are shorter.
const FORMER_LEASE: Duration = Duration::from_secs(60 * 60);

/// A node's row but its seal.
pub(in crate::store) struct NodeRow {
    pub(in crate::store) node: [u8; 16],
    pub(in crate::store) beat: i64,
    pub(in crate::store) lease: i64,
    pub(in crate::store) label: Option<String>,
    /// What it has applied: epoch, revision and tag.
    pub(in crate::store) applied: Option<([u8; 16], i64, [u8; 16])>,
    /// Its own time, in microseconds.
    pub(in crate::store) clock: i64,
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
        Ok(Self {
            node: node.to_u128().to_be_bytes(),
            beat: signed(*beat)?,
            lease: i64::try_from(lease.as_micros()).unwrap_or(i64::MAX),
            label: label.as_ref().map(|label| label.as_str().to_owned()),
            applied: applied.transpose()?,
            clock: clock.as_micros(),
        })
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

    pub(in crate::store) fn report(self) -> Result<NodeReport, RowFault> {
        let label = self.label.map(NodeLabel::new).transpose();
        Ok(NodeReport {
            node: NodeId::from_u128(u128::from_be_bytes(self.node)),
            label: label.map_err(|_| RowFault::corrupt("a node's label is damaged"))?,
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

    /// One entry that stands for all nodes of a history that a restore ended, and never reports: they
    /// may go on for a while, and most of them are not in the backup. `longest` is the longest lease
    /// that the backup knows of.
    pub(in crate::store) fn former(node: u128, longest: Option<i64>) -> Result<Self, RowFault> {
        let longest = Duration::from_micros(longest.unwrap_or_default().unsigned_abs());
        Self::of(&NodeReport {
            node: NodeId::from_u128(node),
            label: NodeLabel::new("all nodes before the restore").ok(),
            applied: None,
            lease: longest.max(FORMER_LEASE),
            clock: Timestamp::UNIX_EPOCH,
            beat: 1,
        })
    }
}
