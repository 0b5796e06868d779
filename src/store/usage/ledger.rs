//! The ledger: boots, the numbers of their batches, and the gaps in what was counted. Pure.

use std::fmt;

use super::UsageBatch;
use crate::core::time::Timestamp;
use crate::core::view::Epoch;
use crate::store::{NodeId, StoreError};

/// The random id of a boot. A process draws a new one for each boot that it opens.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BootId(u128);

impl BootId {
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

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

/// A process that counts uses, from its start until its end, or until the store closed the boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Boot {
    /// The id of the boot.
    pub id: BootId,
    /// The node of the process. `None` without a registry.
    pub node: Option<NodeId>,
    /// The time at which the process opened the boot, by the clock of the process.
    pub opened_at: Timestamp,
    /// The number of the last batch, at most `i64::MAX`. Zero before the first batch.
    pub sequence: u64,
    /// The time until which the batches contain every use of the process, by the clock of the process.
    pub sent_until: Timestamp,
    /// The time at which the boot was closed. `None` while it is open.
    pub closed_at: Option<Timestamp>,
}

impl Boot {
    /// Decides about a batch of this boot. Returns the boot after the batch, or `None` if the batch was added already and
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// [`UsageError::Closed`] or [`UsageError::OutOfOrder`].
    pub fn admit(&self, batch: &UsageBatch) -> Result<Option<Self>, UsageError> {
        let Self { id, sequence, .. } = *self;
        if batch.sequence == sequence && sequence > 0 {
            return Ok(None);
        }
        if self.closed_at.is_some() {
            return Err(UsageError::Closed { boot: id, sequence });
        }
        // A store keeps the number in 63 bits.
        let next = sequence
            .checked_add(1)
            .filter(|next| i64::try_from(*next).is_ok());
        if next != Some(batch.sequence) {
            return Err(UsageError::OutOfOrder {
                boot: id,
                sequence,
                found: batch.sequence,
            });
        }
        Ok(Some(Self {
            sequence: batch.sequence,
            sent_until: self.sent_until.max(batch.sent_until),
            ..*self
        }))
    }

    /// Returns this boot, closed, and the gap that its end leaves.
    fn closed(&self, at: Timestamp) -> (Self, UsageGap) {
        let closed = Self {
            closed_at: Some(at),
            ..*self
        };
        let gap = UsageGap {
            from: self.sent_until,
            until: at.max(self.sent_until),
            boot: Some(self.id),
        };
        (closed, gap)
    }
}

/// A period of which uses may be missing.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct UsageGap {
    /// The start of the period.
    pub from: Timestamp,
    /// The end of the period.
    pub until: Timestamp,
    /// The boot whose uses may be missing. `None` if they may be of any process.
    pub boot: Option<BootId>,
}

/// A request to open a boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BootOpening {
    /// The new, random id.
    pub boot: BootId,
    /// The node of the process. `None` without a registry.
    pub node: Option<NodeId>,
    /// The epoch of the key store that the process uses. A new epoch means that a backup was restored, and that counts
    /// may be lost with it.
    pub history: Epoch,
    /// The time of the call.
    pub at: Timestamp,
    /// The time since which the process has uses that it has not sent. The first batches of the boot contain them.
    pub unsent_since: Timestamp,
    /// The boot of the same process that the store refused.
    pub replaces: Option<LostBoot>,
}

/// A boot that the store refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LostBoot {
    /// The id of the boot.
    pub boot: BootId,
    /// The time from which uses of the boot may be missing.
    pub since: Timestamp,
}

/// A request to close a boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BootClosing {
    /// The id of the boot.
    pub boot: BootId,
    /// The number that the boot must have.
    pub sequence: u64,
    /// The time of the call.
    pub at: Timestamp,
    /// Whether the batches contain every use of the boot. Otherwise the time since the last batch becomes a gap.
    pub is_complete: bool,
}

/// The boots of a usage store, and the periods of which uses may be missing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UsageLedger {
    /// The epoch of the key store whose uses are counted. `None` before the first boot.
    pub history: Option<Epoch>,
    /// The time since which uses are counted. `None` before the first boot.
    pub counted_since: Option<Timestamp>,
    /// The boots, ordered by id.
    pub boots: Vec<Boot>,
    /// The gaps, in order.
    pub gaps: Vec<UsageGap>,
}

/// The rows that a change of the ledger writes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LedgerChange {
    /// The new [`history`](UsageLedger::history) and [`counted_since`](UsageLedger::counted_since). `None` if they stay.
    pub head: Option<(Epoch, Timestamp)>,
    /// New boots, and boots to replace.
    pub boots: Vec<Boot>,
    /// New gaps.
    pub gaps: Vec<UsageGap>,
}

impl UsageLedger {
    /// Returns the change that opens a boot. `None` if the boot exists already.
    ///
    /// - A replaced boot is closed, and leaves a gap until `opening.at`.
    /// - If the key store has a new epoch, every open boot is closed and leaves such a gap, because the restored backup
    ///   may lack later batches. The boots that a backup lacks leave a gap since the newest batch of all boots.
    #[must_use]
    pub fn open(&self, opening: &BootOpening) -> Option<LedgerChange> {
        let at = opening.at;
        let unsent_since = opening.unsent_since.min(at);
        if self.boots.iter().any(|boot| boot.id == opening.boot) {
            return None;
        }
        let mut change = LedgerChange::default();
        let is_new_history = self.history.is_some_and(|known| known != opening.history);
        if is_new_history {
            let sent = self.boots.iter().map(|boot| boot.sent_until).max();
            let from = sent.or(self.counted_since).unwrap_or(at);
            change.gaps.push(UsageGap {
                from,
                until: at.max(from),
                boot: None,
            });
        }
        let replaced = |boot: &Boot| opening.replaces.is_some_and(|lost| lost.boot == boot.id);
        for boot in &self.boots {
            let is_open = boot.closed_at.is_none();
            if is_open && (is_new_history || replaced(boot)) {
                let (closed, gap) = boot.closed(at);
                change.boots.push(closed);
                change.gaps.push(gap);
            }
        }
        if let Some(lost) = opening.replaces {
            // The boot may be unknown, or may have been closed long before its process noticed.
            change.gaps.push(UsageGap {
                from: lost.since,
                until: at.max(lost.since),
                boot: Some(lost.boot),
            });
        }
        change.gaps.sort_unstable();
        change.gaps.dedup();
        change
            .gaps
            .retain(|gap| gap.from < gap.until && !self.gaps.contains(gap));
        if is_new_history || self.counted_since.is_none() {
            change.head = Some((opening.history, self.counted_since.unwrap_or(unsent_since)));
        }
        change.boots.push(Boot {
            id: opening.boot,
            node: opening.node,
            opened_at: at,
            sequence: 0,
            sent_until: unsent_since,
            closed_at: None,
        });
        Some(change)
    }

    /// Returns the change that closes a boot. `None` if the boot does not exist, is closed already, or is at another
    /// number.
    #[must_use]
    pub fn close(&self, closing: &BootClosing) -> Option<LedgerChange> {
        let boot = self.boots.iter().find(|boot| boot.id == closing.boot)?;
        if boot.closed_at.is_some() || boot.sequence != closing.sequence {
            return None;
        }
        let (closed, gap) = boot.closed(closing.at);
        let is_new = gap.from < gap.until && !self.gaps.contains(&gap);
        let leaves_gap = !closing.is_complete && is_new;
        Some(LedgerChange {
            head: None,
            boots: vec![closed],
            gaps: Vec::from_iter(leaves_gap.then_some(gap)),
        })
    }

    /// Applies a change to this ledger.
    pub fn apply(&mut self, change: LedgerChange) {
        if let Some((history, counted_since)) = change.head {
            (self.history, self.counted_since) = (Some(history), Some(counted_since));
        }
        for boot in change.boots {
            match self.boots.binary_search_by_key(&boot.id, |own| own.id) {
                Ok(place) => self.boots[place] = boot,
                Err(place) => self.boots.insert(place, boot),
            }
        }
        self.gaps.extend(change.gaps);
        self.gaps.sort_unstable();
    }

    /// Removes what a pruning removes: boots that were closed before `closed_before`, and gaps that ended at `since`. Then
    /// raises [`counted_since`](Self::counted_since) to `since`. A store that removes counts in several transactions does
    /// this first, so that no report takes a removed count for zero.
    pub fn prune(&mut self, since: Timestamp, closed_before: Timestamp) {
        self.boots
            .retain(|boot| boot.closed_at.is_none_or(|at| at >= closed_before));
        self.gaps.retain(|gap| gap.until > since);
        self.counted_since = self.counted_since.map(|known| known.max(since));
    }
}

/// The error of [`UsageStore::add`](super::UsageStore::add).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// The store has no such boot. It was removed, or the store lost it. Nothing was written.
    #[error("usage store has no boot {boot}: open a new boot")]
    UnknownBoot {
        /// The id of the boot.
        boot: BootId,
    },
    /// The boot was closed. Nothing was written.
    #[error("boot {boot} was closed after batch {sequence}: open a new boot")]
    Closed {
        /// The id of the boot.
        boot: BootId,
        /// The number of the last batch that was added.
        sequence: u64,
    },
    /// The batch is not the next one of its boot. Nothing was written.
    #[error("boot {boot} is at batch {sequence}, so batch {found} cannot follow: open a new boot")]
    OutOfOrder {
        /// The id of the boot.
        boot: BootId,
        /// The number of the last batch that was added.
        sequence: u64,
        /// The number of the refused batch.
        found: u64,
    },
    /// The store failed. After `Indeterminate` the batch may or may not have been added.
    #[error(transparent)]
    Store(#[from] StoreError),
}
