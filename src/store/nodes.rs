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
use serde::{Deserialize, Serialize};

use super::{Cursor, StoreError};
use crate::core::pepper::PepperRing;
use crate::core::text::{NodeLabel, PepperId};
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
    /// The node's build, start and peppers. `None` if they are unknown: the node's build reports none, or
    /// reports them in a form that this build cannot read.
    pub process: Option<NodeProcess>,
}

/// The version of the tables that this release creates and writes.
pub(super) const TABLES_VERSION: u32 = 1;

/// Returns the version of the tables that this build reads and writes. The commands that finish a rolling upgrade,
/// such as [`SqliteStore::finish_upgrade`](super::SqliteStore::finish_upgrade), end the use of a store by builds of
/// an earlier version.
///
/// With the `testing` feature, a process whose environment has `KEYWARD_TEST_NEXT_VERSION` acts as a build of the
/// next version.
#[must_use]
pub fn tables_version() -> u32 {
    #[cfg(feature = "testing")]
    {
        use std::sync::LazyLock;

        static IS_NEXT: LazyLock<bool> =
            LazyLock::new(|| std::env::var_os("KEYWARD_TEST_NEXT_VERSION").is_some());
        TABLES_VERSION + u32::from(*IS_NEXT)
    }
    #[cfg(not(feature = "testing"))]
    TABLES_VERSION
}

/// The build, the start and the peppers of a node's process.
///
/// The stores of this crate keep it as JSON, and ignore fields that they do not know. So builds of different
/// versions read each other's reports.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeProcess {
    /// The version of this crate, such as `0.1.0`.
    pub version: String,
    /// The [`tables_version`] of the build.
    pub tables: u32,
    /// The time of the node's clock when the process built its [`Keyward`](crate::Keyward).
    pub started: Timestamp,
    /// The staleness bound: the part of the lease for which the node accepts keys after the last confirmation.
    pub bound: Duration,
    /// The id of the pepper that digests new secrets.
    pub pepper: PepperId,
    /// The ids of all peppers that verify secrets, including the current one.
    pub peppers: Vec<PepperId>,
}

impl NodeProcess {
    /// Describes this process. The caller adds the bound.
    pub(crate) fn new(peppers: &PepperRing, started: Timestamp) -> Self {
        let all = std::iter::once(peppers.current()).chain(peppers.not_current());
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tables: tables_version(),
            started,
            bound: Duration::ZERO,
            pepper: peppers.current().id().clone(),
            peppers: all.map(|pepper| pepper.id().clone()).collect(),
        }
    }
}

impl NodeReport {
    /// 60 s: the shortest report allowance, and the default one. A read of the store confirms a node's index only
    /// if the registry accepted a report of the node at most this long before. So a registry outage of up to 60 s
    /// does not end freshness. See [`KeywardBuilder::report_allowance`](crate::KeywardBuilder::report_allowance).
    pub const ALLOWANCE: Duration = Duration::from_secs(60);

    /// Returns the staleness bound of the node: its lease without its report allowance. If the node does not
    /// report its bound, its allowance is [`ALLOWANCE`](Self::ALLOWANCE), or counts towards the bound.
    #[must_use]
    pub fn bound(&self) -> Duration {
        let longest = self.lease.saturating_sub(Self::ALLOWANCE);
        let reported = self.process.as_ref().map(|process| process.bound);
        reported.unwrap_or(longest)
    }

    /// Returns whether the report is of no process, but stands for all nodes of a history that was replaced, for
    /// example by a restore. Its lease is the longest known bound of these nodes with [`ALLOWANCE`], or zero if
    /// none is known.
    ///
    /// [`ALLOWANCE`]: Self::ALLOWANCE
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
