//! Detects faults in a poller's view of a change feed: changes that it missed, received twice, or received
//! out of order. A test with a broken feed proves that the faults are found.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use keyward::store::{Cursor, KeyStore, PostgresStore, Row};

use support::wait;

/// A change in a feed, as its revision and the number of the changed key or row.
pub type Event = (u64, u128);

/// The faults in the changes that a poller has received.
#[derive(Debug, Default)]
pub struct Faults {
    /// Changes that were written, but that the poller never received.
    pub missed: Vec<Event>,
    /// Changes that the poller received, although nobody wrote them.
    pub strange: Vec<Event>,
    /// Changes that the poller received twice, or after a change with a higher revision.
    pub late: Vec<Event>,
}

impl Faults {
    /// Finds the faults in the changes `seen`, which must include all of `last`, the newest change of each
    /// row. Older changes may be missing, because a feed may leave them out.
    pub fn of(seen: &[Event], last: &BTreeSet<Event>, written: &BTreeSet<Event>) -> Self {
        let mut faults = Self::default();
        let (mut known, mut at) = (BTreeSet::new(), 0);
        for event in seen {
            if event.0 < at || !known.insert(*event) {
                faults.late.push(*event);
            }
            if !written.contains(event) {
                faults.strange.push(*event);
            }
            at = at.max(event.0);
        }
        faults.missed = last.difference(&known).copied().collect();
        faults
    }

    #[track_caller]
    pub fn assert_none(&self) {
        let Self {
            missed,
            strange,
            late,
        } = self;
        let faults = [missed, strange, late].map(Vec::len);
        assert_eq!(faults, [0; 3], "{self:?}");
    }
}

/// Reads a page of the store's feed. Returns the changes of keys on the page, and the cursor for the next
/// page.
pub fn page(store: &PostgresStore, after: Cursor, limit: usize) -> (Vec<Event>, Cursor) {
    let limit = NonZeroUsize::new(limit).unwrap();
    let page = wait(store.changes(after, limit)).unwrap();
    let event = |row: &Row| match row {
        Row::Key(record) => Some(record.id.to_u128()),
        Row::Removed { key, .. } => Some(key.to_u128()),
        Row::Corrupt(_) => panic!("{row:?}"),
        _ => None,
    };
    let events = page.changes.iter();
    let events = events.filter_map(|change| Some((change.revision.0, event(&change.row)?)));
    (events.collect(), page.upto)
}

/// Polls until `over` has returned true and a later poll finds nothing. The function `poll` gets the revision
/// that the previous poll reached. Returns all changes and the number of polls.
pub fn watch(
    mut over: impl FnMut() -> bool,
    mut poll: impl FnMut(u64) -> (Vec<Event>, u64),
) -> (Vec<Event>, usize) {
    let (mut seen, mut at, mut polls) = (Vec::new(), 0, 0);
    loop {
        let last = over();
        let (page, upto) = poll(at);
        polls += 1;
        if last && page.is_empty() {
            return (seen, polls);
        }
        if let Some(first) = page.first() {
            assert!(first.0 > at, "revision {} is on two pages", first.0);
        }
        seen.extend(page);
        at = upto;
    }
}

#[test]
fn each_fault_of_a_feed_is_detected() {
    let written = BTreeSet::from([(1, 7), (2, 8), (3, 7)]);
    let last = BTreeSet::from([(2, 8), (3, 7)]);
    let faults = |seen: &[Event]| Faults::of(seen, &last, &written);
    faults(&[(1, 7), (2, 8), (3, 7)]).assert_none();
    faults(&[(2, 8), (3, 7)]).assert_none();
    assert_eq!(faults(&[(1, 7), (3, 7)]).missed, [(2, 8)]);
    assert_eq!(faults(&[(3, 7), (2, 8)]).late, [(2, 8)]);
    assert_eq!(faults(&[(2, 8), (2, 8), (3, 7)]).late, [(2, 8)]);
    assert_eq!(faults(&[(2, 8), (3, 7), (4, 9)]).strange, [(4, 9)]);
}
