//! The registry of nodes: the processes that verify keys of a store, and the revision each has applied.
//!
//! A registry stores the reports of nodes and judges nothing: the caller decides by its own clock which
//! nodes are alive. [`KeyStore`](super::KeyStore) does not include the registry, so that a store can be
//! small. Every shipped store is a registry as well.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Cursor, StoreError};
use crate::core::text::NodeLabel;
use crate::core::time::Timestamp;

/// The random id of a process that verifies keys. A restarted process has another id.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(u128);

impl NodeId {
    /// Returns the node with this number.
    #[must_use]
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }

    /// Returns the node's number.
    #[must_use]
    pub const fn to_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

/// The report of a node about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeReport {
    /// The id of the node.
    pub node: NodeId,
    /// The name that people gave the node.
    pub label: Option<NodeLabel>,
    /// The node's position in the store's history when it sent the report. No verification that the node
    /// began afterwards uses an earlier state. `None` before the node has read anything.
    pub applied: Option<Cursor>,
    /// The time after this report for which the node may accept keys without sending another report.
    /// Stored to the microsecond.
    pub lease: Duration,
    /// The node's own time when it sent the report.
    pub clock: Timestamp,
    /// The number of the report, at most `i64::MAX`. The number grows with each report of the node.
    pub beat: u64,
}

/// The store of node reports. A registry reads no clock and drops no report by itself: a node without a
/// report would count as gone.
///
/// A dropped future leaves nothing half done.
#[async_trait]
pub trait NodeRegistry: fmt::Debug + Send + Sync + 'static {
    /// Replaces the node's earlier report, and returns `true`. Returns `false` and changes nothing if the
    /// registry holds a report of the node with the same or a later beat.
    ///
    /// - Every [`nodes`](Self::nodes) that begins after the return includes the report.
    /// - On return the report is as durable as a commit of the store.
    /// - A report is no commit: the store's head and feed do not change.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the report may or may not have been written.
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError>;

    /// Reads the latest report of every node, in any order.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError>;

    /// Removes a node's report, unless its beat is above `upto`. The node may report again.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the report may or may not have been removed.
    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError>;
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<R: NodeRegistry + ?Sized> NodeRegistry for Arc<R> {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        (**self).report(report).await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        (**self).nodes().await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        (**self).forget(node, upto).await
    }
}
