//! The registry of nodes: which processes verify keys of a store, and how far each has come.
//!
//! A registry holds what nodes say of themselves and judges nothing: whoever asks decides by a clock
//! of its own who is still there. It stands beside [`KeyStore`](super::KeyStore), so that a store can
//! be small; every shipped store is a registry as well.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Cursor, StoreError};
use crate::core::text::NodeLabel;
use crate::core::time::Timestamp;

/// A process that verifies keys, from its start to its end: random, so that a restarted one is
/// another.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(u128);

impl NodeId {
    /// The node of this number.
    #[must_use]
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }

    /// Its number.
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

/// What a node says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeReport {
    /// Which node.
    pub node: NodeId,
    /// What people call it.
    pub label: Option<NodeLabel>,
    /// Where it stood in the store's history when it sent this: no verification that it began since
    /// acts on an earlier state. `None` before it has read anything.
    pub applied: Option<Cursor>,
    /// For how long after it sent this it may go on accepting keys without another report. Kept to
    /// the microsecond.
    pub lease: Duration,
    /// The node's own time when it sent this.
    pub clock: Timestamp,
    /// Grows with every report of the node; at most `i64::MAX`.
    pub beat: u64,
}

/// Where nodes say that they are there. Reads no clock and forgets nobody by itself: an entry that
/// vanished would pass for a node that is gone.
///
/// A future that is dropped leaves nothing half done.
#[async_trait]
pub trait NodeRegistry: fmt::Debug + Send + Sync + 'static {
    /// Puts a report in the place of the node's earlier one. Tells whether it stands: `false` if the
    /// registry holds one of the same node with the same or a later beat, which stays as it is.
    ///
    /// - Every [`nodes`](Self::nodes) that begins after the return tells of it.
    /// - On return it is as durable as the store documents of commits.
    /// - It is no commit: the store's head and feed stay as they are.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; after `Indeterminate` the report may or may not stand.
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError>;

    /// Reads the latest report of every node, in any order.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError>;

    /// Forgets a node, unless it reported with a beat above `upto`. It may report again.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; after `Indeterminate` it may or may not be forgotten.
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
