//! The outcome of a committed command, and the receipt of its commit.

use std::time::Duration;

use crate::core::command::CommandOutcome;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::Epoch;

/// The outcome and the receipt of a committed command.
#[derive(Debug)]
pub struct Committed {
    /// The outcome of the command.
    pub outcome: CommandOutcome,
    /// The receipt of the commit.
    pub receipt: Receipt,
}

/// The position and the time of a committed change, and the longest time until the change has reached every
/// verifier.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Receipt {
    pub(super) epoch: Option<Epoch>,
    pub(super) revision: Revision,
    pub(super) decided_at: Timestamp,
    pub(super) no_later_than: Timestamp,
    pub(super) returned: Duration,
    pub(super) bound: Duration,
}

impl Receipt {
    /// Merges the receipts of two commits. The merged receipt covers both this change and the later change.
    pub(super) fn and(self, later: Self) -> Self {
        let Self {
            epoch,
            revision: _,
            decided_at: _,
            no_later_than,
            returned,
            bound,
        } = self;
        Self {
            epoch: later.epoch.filter(|_| later.epoch == epoch),
            no_later_than: no_later_than.max(later.no_later_than),
            returned: returned.max(later.returned),
            bound: bound.max(later.bound),
            ..later
        }
    }

    /// Sets the epoch of the history that this process followed when it sent the command.
    pub(crate) const fn within(mut self, epoch: Option<Epoch>) -> Self {
        self.epoch = epoch;
        self
    }

    /// Raises the staleness bound to `bound`, if the present bound is shorter. For a verifier whose policies have
    /// a longer bound than those of this process.
    pub(crate) fn reaching(mut self, bound: Duration) -> Self {
        let more = bound.saturating_sub(self.bound);
        self.no_later_than = self.no_later_than.saturating_add(more);
        self.bound = self.bound.saturating_add(more);
        self
    }

    /// Returns the epoch of the history that this process followed when it sent the command. `None` if the
    /// process followed no store. After a restore, the store has a new epoch.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Returns the time at which the store's answer arrived, on this process's monotonic clock.
    pub(crate) const fn returned(&self) -> Duration {
        self.returned
    }

    /// Returns the staleness bound. After the store's answer, a verifier in another process may act on the
    /// state before the change for at most this time. With a
    /// [registry](crate::KeywardBuilder::registry), it is at least the bound of every node that reports
    /// another bound than this process.
    #[must_use]
    pub const fn bound(&self) -> Duration {
        self.bound
    }

    /// Returns the store's revision that contains the change.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the time with which the command was decided.
    #[must_use]
    pub const fn decided_at(&self) -> Timestamp {
        self.decided_at
    }

    /// Returns the time, on this node's clock, from which no verifier acts on the state before the change. In
    /// the process that made the change, this is already true when the call returns.
    ///
    /// Without a [registry](crate::KeywardBuilder::registry), all processes are assumed to have this process's
    /// policies. With a registry, the bounds that nodes reported count too. If the registry did not answer after
    /// the change, its last answer counts. Before its first answer, the longest bound that a policy may have
    /// counts.
    #[must_use]
    pub const fn no_later_than(&self) -> Timestamp {
        self.no_later_than
    }
}
