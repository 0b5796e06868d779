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
///
/// A gap can be empty, if the clock of the process that ended a boot is behind the clock of the boot's process. Uses may
/// be missing around it: a judgement widens each gap by the largest difference between two clocks.
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
    /// The time from which uses of the boot may be missing: the end of the last batch that was added.
    ///
    /// If the store does not know the boot, none of its batches is certain. Then it is the time at which the boot was
    /// opened, or the `since` of that opening if it replaced another boot. A restored backup may lack both boots, and
    /// the gap between them.
    pub since: Timestamp,
}

/// A request to close a boot.
///
/// Another process may close a boot only if the boot's process is no longer live. Uses that the process counts after
/// [`at`](Self::at) would be in no gap if it then ended without opening another boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BootClosing {
    /// The id of the boot.
    pub boot: BootId,
    /// The number that the boot must have.
    pub sequence: u64,
    /// The time of the call.
    pub at: Timestamp,
    /// True if the batches contain every use of the boot. Otherwise the time since the last batch becomes a gap.
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
        change.gaps.retain(|gap| !self.gaps.contains(gap));
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
        let leaves_gap = !closing.is_complete && !self.gaps.contains(&gap);
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u8) -> Timestamp {
        Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(seconds.into()))
    }

    fn id(n: u8) -> BootId {
        BootId::from_u128(n.into())
    }

    fn batch(n: u8, sequence: u64, sent_until: u8) -> UsageBatch {
        UsageBatch {
            boot: id(n),
            sequence,
            sent_until: at(sent_until),
            uses: Vec::new(),
        }
    }

    fn boot(n: u8, opened: u8) -> Boot {
        Boot {
            id: id(n),
            node: None,
            opened_at: at(opened),
            sequence: 0,
            sent_until: at(opened),
            closed_at: None,
        }
    }

    /// An event between a process, a network that keeps each message forever, and a store.
    #[derive(Clone, Debug)]
    enum LedgerEvent {
        /// The process sends its current batch, again if it was sent before.
        Send,
        /// The network delivers a message, and may lose the reply.
        Deliver {
            message: prop::sample::Index,
            loses_reply: bool,
        },
        /// The boot is closed.
        Close,
    }

    fn event() -> impl Strategy<Value = LedgerEvent> {
        let deliver = (any::<prop::sample::Index>(), any::<bool>());
        let deliver = deliver.prop_map(|(message, loses_reply)| LedgerEvent::Deliver {
            message,
            loses_reply,
        });
        prop_oneof![8 => Just(LedgerEvent::Send), 16 => deliver, 1 => Just(LedgerEvent::Close)]
    }

    proptest! {
        /// Batches with any numbers arrive in any order, any number of times, or never.
        #[test]
        fn each_batch_is_added_at_most_once_and_in_order(
            arriving in prop::collection::vec((0_u64..8, 0_u8..100), 0..60),
            close in 0_usize..80,
        ) {
            let mut boot = boot(1, 10);
            let mut added = BTreeSet::new();
            let mut ends = vec![boot.sent_until];
            for (place, (sequence, sent_until)) in arriving.into_iter().enumerate() {
                if place == close {
                    boot.closed_at = Some(at(100));
                }
                let last = added.last().copied();
                match boot.admit(&batch(1, sequence, sent_until)) {
                    Ok(Some(next)) => {
                        prop_assert!(added.insert(sequence), "added twice");
                        prop_assert_eq!(sequence, last.unwrap_or(0) + 1);
                        prop_assert!(boot.closed_at.is_none());
                        ends.push(at(sent_until));
                        boot = next;
                    }
                    Ok(None) => prop_assert_eq!(Some(sequence), last),
                    Err(UsageError::Closed { boot: of, sequence: known }) => {
                        prop_assert!(boot.closed_at.is_some() && Some(sequence) != last);
                        prop_assert_eq!((of, known), (boot.id, last.unwrap_or(0)));
                    }
                    Err(UsageError::OutOfOrder { boot: of, sequence: known, found }) => {
                        prop_assert!(!added.contains(&found) || Some(found) < last);
                        prop_assert!(found != last.unwrap_or(0) + 1);
                        prop_assert_eq!((of, known, found), (boot.id, last.unwrap_or(0), sequence));
                    }
                    Err(other) => prop_assert!(false, "{other:?}"),
                }
                prop_assert_eq!(boot.sequence, added.last().copied().unwrap_or(0));
                prop_assert_eq!(Some(boot.sent_until), ends.iter().copied().max());
            }
            prop_assert!(added.iter().copied().eq(1..=boot.sequence));
        }

        /// A process repeats a batch until a reply to it arrives, and only then sends the next one.
        #[test]
        fn a_process_with_one_batch_in_flight_loses_and_repeats_none(
            events in prop::collection::vec(event(), 0..120),
        ) {
            let mut boot = boot(1, 0);
            let (mut network, mut added) = (Vec::new(), Vec::new());
            let mut acknowledged = 0;
            for event in events {
                match event {
                    LedgerEvent::Send => network.push(acknowledged + 1),
                    LedgerEvent::Close => boot.closed_at = Some(at(100)),
                    LedgerEvent::Deliver { .. } if network.is_empty() => {}
                    LedgerEvent::Deliver { message, loses_reply } => {
                        let sequence = *message.get(&network);
                        let admitted = boot.admit(&batch(1, sequence, 0));
                        if let Ok(Some(next)) = admitted {
                            added.push(sequence);
                            boot = next;
                        }
                        let is_current = sequence == acknowledged + 1;
                        if is_current && !loses_reply {
                            match admitted {
                                Ok(_) => acknowledged = sequence,
                                // Then the process does not know about this batch, which may be added.
                                Err(error) => {
                                    let is_closed = matches!(error, UsageError::Closed { .. });
                                    prop_assert!(is_closed, "{error:?}");
                                }
                            }
                        }
                    }
                }
                let whole = [acknowledged, acknowledged + 1];
                prop_assert!(whole.contains(&(added.len() as u64)));
                prop_assert!(added.iter().copied().eq(1..=boot.sequence));
            }
        }
    }

    #[test]
    fn the_last_number_fits_in_63_bits() {
        let most = i64::MAX as u64;
        let last = Boot {
            sequence: most - 1,
            ..boot(1, 0)
        };
        let full = last.admit(&batch(1, most, 0)).unwrap().unwrap();
        assert_eq!(full.sequence, most);
        assert!(matches!(full.admit(&batch(1, most, 0)), Ok(None)));
        let more = full.admit(&batch(1, most + 1, 0));
        assert!(matches!(more, Err(UsageError::OutOfOrder { .. })));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open {
            boot: u8,
            history: u8,
            at: u8,
            replaces: Option<(u8, u8)>,
        },
        Close {
            boot: u8,
            late: u64,
            at: u8,
            is_complete: bool,
        },
        Add {
            boot: u8,
            sent_until: u8,
        },
        Prune {
            since: u8,
            closed_before: u8,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let history = prop_oneof![6 => Just(0_u8), 1 => 0_u8..3];
        let lost = prop::option::of((0_u8..12, 0_u8..100));
        let open = (0_u8..10, history, 0_u8..100, lost);
        let open = open.prop_map(|(boot, history, at, replaces)| Step::Open {
            boot,
            history,
            at,
            replaces,
        });
        let late = prop_oneof![4 => Just(0_u64), 1 => 0_u64..3];
        let close = (0_u8..10, late, 0_u8..100, any::<bool>());
        let close = close.prop_map(|(boot, late, at, is_complete)| Step::Close {
            boot,
            late,
            at,
            is_complete,
        });
        let add = (0_u8..10, 0_u8..100);
        let add = add.prop_map(|(boot, sent_until)| Step::Add { boot, sent_until });
        let prune = (0_u8..100, 0_u8..100);
        let prune = prune.prop_map(|(since, closed_before)| Step::Prune {
            since,
            closed_before,
        });
        prop_oneof![6 => open, 4 => close, 6 => add, 1 => prune]
    }

    /// The periods that must lie in gaps, and the gaps that may exist.
    #[derive(Debug, Default)]
    struct Owed {
        periods: Vec<(Timestamp, Timestamp)>,
        gaps: BTreeSet<UsageGap>,
    }

    impl Owed {
        fn owe(&mut self, from: Timestamp, until: Timestamp, boot: Option<BootId>) {
            let until = until.max(from);
            self.periods.push((from, until));
            self.gaps.insert(UsageGap { from, until, boot });
        }
    }

    fn open_boots(ledger: &UsageLedger) -> Vec<Boot> {
        let boots = ledger.boots.iter().copied();
        boots.filter(|boot| boot.closed_at.is_none()).collect()
    }

    /// Applies a step, and adds the gaps that it must leave to `owed`.
    fn take(ledger: &mut UsageLedger, step: &Step, owed: &mut Owed) -> Result<(), TestCaseError> {
        let before = ledger.clone();
        match *step {
            Step::Open {
                boot,
                history,
                at: time,
                replaces,
            } => {
                let opening = BootOpening {
                    boot: id(boot),
                    node: None,
                    history: Epoch(history.into()),
                    at: at(time),
                    unsent_since: at(time),
                    replaces: replaces.map(|(lost, since)| LostBoot {
                        boot: id(lost),
                        since: at(since),
                    }),
                };
                let is_known = before.boots.iter().any(|own| own.id == id(boot));
                let Some(change) = ledger.open(&opening) else {
                    prop_assert!(is_known);
                    return Ok(());
                };
                prop_assert!(!is_known);
                ledger.apply(change);
                prop_assert_eq!(ledger.open(&opening), None, "opening again changes nothing");
                let is_new = before.history.is_some_and(|own| own != opening.history);
                for own in open_boots(&before) {
                    let is_lost = opening.replaces.is_some_and(|lost| lost.boot == own.id);
                    let now = ledger.boots.iter().find(|boot| boot.id == own.id);
                    let is_open = now.is_some_and(|boot| boot.closed_at.is_none());
                    prop_assert_eq!(is_open, !is_new && !is_lost);
                    if !is_open {
                        owed.owe(own.sent_until, at(time), Some(own.id));
                    }
                }
                if let Some(lost) = opening.replaces {
                    owed.owe(lost.since, at(time), Some(lost.boot));
                }
                if is_new {
                    let sent = before.boots.iter().map(|boot| boot.sent_until).max();
                    let from = sent.or(before.counted_since).unwrap_or(at(time));
                    owed.owe(from, at(time), None);
                }
                prop_assert_eq!(ledger.history, Some(opening.history));
                let since = before.counted_since.unwrap_or(at(time));
                prop_assert_eq!(ledger.counted_since, Some(since));
            }
            Step::Close {
                boot,
                late,
                at: time,
                is_complete,
            } => {
                let own = open_boots(&before)
                    .into_iter()
                    .find(|own| own.id == id(boot));
                let sequence = own.map_or(0, |own| own.sequence) + late;
                let closing = BootClosing {
                    boot: id(boot),
                    sequence,
                    at: at(time),
                    is_complete,
                };
                let change = ledger.close(&closing);
                prop_assert_eq!(change.is_some(), own.is_some() && late == 0);
                let Some(own) = own.filter(|_| change.is_some()) else {
                    return Ok(());
                };
                ledger.apply(change.unwrap_or_default());
                prop_assert_eq!(ledger.close(&closing), None, "a boot is closed once");
                if !is_complete {
                    owed.owe(own.sent_until, at(time), Some(own.id));
                }
            }
            Step::Add { boot, sent_until } => {
                let own = open_boots(&before)
                    .into_iter()
                    .find(|own| own.id == id(boot));
                if let Some(own) = own {
                    let batch = batch(boot, own.sequence + 1, sent_until);
                    ledger.apply(LedgerChange {
                        boots: Vec::from_iter(own.admit(&batch).unwrap()),
                        ..LedgerChange::default()
                    });
                }
            }
            Step::Prune {
                since,
                closed_before,
            } => {
                ledger.prune(at(since), at(closed_before));
                prop_assert_eq!(open_boots(ledger), open_boots(&before));
                owed.periods.retain(|(_, until)| *until > at(since));
                owed.gaps.retain(|gap| gap.until > at(since));
            }
        }
        Ok(())
    }

    proptest! {
        /// Each period between the last batch of a boot that was closed uncleanly, replaced or lost, and the time of its
        /// end, lies in a gap. There are no other gaps.
        #[test]
        fn every_end_without_a_clean_close_leaves_its_gap(
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let (mut ledger, mut owed) = (UsageLedger::default(), Owed::default());
            let mut closed = BTreeMap::new();
            for step in steps {
                let before = ledger.clone();
                take(&mut ledger, &step, &mut owed)?;
                for (from, until) in &owed.periods {
                    let covers = |gap: &UsageGap| gap.from <= *from && *until <= gap.until;
                    prop_assert!(ledger.gaps.iter().any(covers), "{from} to {until}");
                }
                prop_assert!(ledger.gaps.iter().eq(&owed.gaps), "sorted, and none twice");
                prop_assert!(ledger.boots.is_sorted_by(|one, other| one.id < other.id));
                prop_assert!(before.counted_since <= ledger.counted_since);
                let is_pruning = matches!(step, Step::Prune { .. });
                for boot in &before.boots {
                    let now = ledger.boots.iter().find(|own| own.id == boot.id);
                    prop_assert!(now.is_some() || is_pruning, "a boot is gone");
                }
                for boot in ledger.boots.iter().filter(|boot| boot.closed_at.is_some()) {
                    let first = closed.entry(boot.id).or_insert(*boot);
                    prop_assert_eq!(&*first, boot, "a closed boot never changes");
                }
                // Ids of removed boots are free in this test, although a process draws a new one for each boot.
                closed.retain(|id, _| ledger.boots.iter().any(|boot| boot.id == *id));
            }
        }
    }
}
