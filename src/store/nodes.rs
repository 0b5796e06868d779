//! The node registry: the processes that verify keys of a store, and the revision each process has applied.
//!
//! A registry only stores reports. The caller decides by its own clock which nodes are alive.
//!
//! [`NodeRegistry`] is a separate trait from [`KeyStore`](super::KeyStore), so that a minimal store need not
//! implement it. All stores of this crate implement both.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Cursor, StoreError};
use crate::core::text::NodeLabel;
use crate::core::time::Timestamp;

/// The random id of a process that verifies keys. A process gets a new id at every start.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(u128);

impl NodeId {
    /// Creates an id from a number.
    #[must_use]
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }

    /// Returns the id as a number.
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

/// A report that a node sends about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeReport {
    /// The id of the node.
    pub node: NodeId,
    /// The name that the application gave the node, for its operators.
    pub label: Option<NodeLabel>,
    /// The position in the store's history up to which the node had applied changes when it sent the report.
    /// Every verification that the node began after the report uses this state, or a later one. `None` if the
    /// node has not read the store yet.
    pub applied: Option<Cursor>,
    /// The time after this report during which the node may accept keys without another report. Stored with
    /// microsecond precision.
    pub lease: Duration,
    /// The time of the node's clock when the node sent the report.
    pub clock: Timestamp,
    /// The sequence number of the report, at most `i64::MAX`. Increases with each report of the node.
    pub beat: u64,
}

impl NodeReport {
    /// Returns whether the report is of no process, but stands for all nodes of a history that was replaced, for
    /// example by a restore. Its lease is the longest one that is known of these nodes, or zero if none is known.
    #[must_use]
    pub fn is_former(&self) -> bool {
        self.applied.is_none() && self.clock == Timestamp::UNIX_EPOCH
    }
}

/// Storage for the reports of nodes.
///
/// A registry reads no clock, and never drops a report by itself. Callers would take a node without a report
/// for stopped, although it may still accept keys.
///
/// If the caller drops a future, its operation takes effect completely or not at all.
#[async_trait]
pub trait NodeRegistry: fmt::Debug + Send + Sync + 'static {
    /// Stores a report in place of the node's earlier report, and returns `true`.
    ///
    /// - Returns `false` and changes nothing if the registry has a report of the node with the same or a
    ///   later beat.
    /// - Every call of [`nodes`](Self::nodes) that begins after the return includes the report.
    /// - On return the report is as durable as a commit of the store.
    /// - A report is not a commit of the store, so the store's head and its feed stay unchanged.
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

    /// Removes a node's report, unless the report's beat is above `upto`. The node may report again later.
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
