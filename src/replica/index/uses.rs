//! Counts the uses of keys in memory, so that two processors rarely write to the same cache line.
//!
//! Each thread counts in a small table of counters. Several keys share one counter, but a counter holds the
//! count of one key at a time. If another key needs the counter, the displaced count is added to the tally of
//! its key. So a key in constant use costs one uncontended atomic operation per use.

use std::array;
use std::cell::Cell;
use std::sync::atomic::AtomicUsize;

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// 32 shards. Each thread has a shard; if there are more than 32 threads, some share one. 1 shard under loom,
/// which explores every interleaving.
const SHARDS: usize = if cfg!(keyward_loom) { 1 } else { 32 };
/// 64 counters per shard; 1 under loom.
const COUNTERS: usize = if cfg!(keyward_loom) { 1 } else { 64 };

/// The counters of one thread.
#[repr(align(128))]
struct CounterShard {
    /// For each counter, one word with the row number of a key and the number of its uses. Row 0 means that
    /// the counter is free.
    counts: [AtomicU64; COUNTERS],
    /// For each counter, the Unix time of the last use in seconds.
    seen: [AtomicU32; COUNTERS],
}

/// A number of uses, the time of the last of them, and the row of the key that was used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Counted {
    pub(super) row: u32,
    pub(super) uses: u32,
    pub(super) last: u32,
}

pub(super) struct UseCounters(Box<[CounterShard]>);

impl Default for UseCounters {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| CounterShard::default()).collect())
    }
}

impl Default for CounterShard {
    fn default() -> Self {
        Self {
            counts: array::from_fn(|_| AtomicU64::new(0)),
            seen: array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static OWN: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Returns the shard number of this thread.
#[inline]
fn shard_number() -> usize {
    OWN.with(|own| {
        own.get().unwrap_or_else(|| {
            let next = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
            own.set(Some(next));
            next
        })
    })
}

impl UseCounters {
    /// Counts one use of `row` at Unix time `second`. If the counter held the count of another row, returns
    /// that count. The caller must add it to the tally of its row.
    #[inline]
    pub(super) fn count(&self, row: u32, second: u32) -> Option<Counted> {
        self.0[shard_number()].count(row, second)
    }

    /// Takes all counts that no later use has displaced yet, and leaves the counters free.
    pub(super) fn take(&self) -> impl Iterator<Item = Counted> {
        self.0.iter().flat_map(|shard| {
            let counters = shard.counts.iter().zip(&shard.seen);
            counters.filter_map(|(count, seen)| {
                let last = seen.load(Ordering::Relaxed);
                counted(count.swap(0, Ordering::Relaxed), last)
            })
        })
    }
}

impl CounterShard {
    #[inline]
    fn count(&self, row: u32, second: u32) -> Option<Counted> {
        let at = row as usize % COUNTERS;
        let (count, seen) = (&self.counts[at], &self.seen[at]);
        let last = seen.load(Ordering::Relaxed);
        if last != second {
            seen.store(second, Ordering::Relaxed);
        }
        let known = count.load(Ordering::Relaxed);
        let more = known + 1;
        let order = Ordering::Relaxed;
        if row_of(known) == row
            && row_of(more) == row
            && count.compare_exchange(known, more, order, order).is_ok()
        {
            return None;
        }
        // Either the counter belongs to another key, or another thread changed the counter after `known` was
        // loaded. The swap takes the old count exactly once. So concurrent threads neither lose a use nor
        // count it twice.
        counted(count.swap(u64::from(row) << 32 | 1, order), last)
    }
}

#[inline]
fn counted(word: u64, last: u32) -> Option<Counted> {
    let (row, uses) = (row_of(word), word as u32);
    (row != 0).then_some(Counted { row, uses, last })
}

const fn row_of(word: u64) -> u32 {
    (word >> 32) as u32
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;

#[cfg(all(test, not(keyward_loom)))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_use_is_lost_or_counted_twice(rows in prop::collection::vec(1_u32..200, 0..500)) {
            let uses = UseCounters::default();
            let (mut expected, mut found) = (HashMap::new(), HashMap::new());
            let mut note = |counted: Counted| *found.entry(counted.row).or_default() += counted.uses;
            for (second, row) in (1..).zip(rows) {
                *expected.entry(row).or_insert(0) += 1;
                uses.count(row, second).into_iter().for_each(&mut note);
            }
            uses.take().for_each(&mut note);
            prop_assert_eq!(found, expected);
            prop_assert_eq!(uses.take().count(), 0);
        }
    }

    #[test]
    fn threads_that_share_a_counter_lose_nothing() {
        let shard = CounterShard::default();
        let total = AtomicU64::new(0);
        let add = |counted: Counted| total.fetch_add(counted.uses.into(), Ordering::Relaxed);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (shard, add) = (&shard, &add);
                scope.spawn(move || {
                    for use_ in 0..10_000_u32 {
                        // Alternate between two rows that share a counter, so that each displaces the other's
                        // count.
                        let row = 1 + (use_ / 3 + thread) % 2 * 64;
                        shard.count(row, 1).map(add);
                    }
                });
            }
        });
        shard
            .counts
            .iter()
            .filter_map(|count| counted(count.load(Ordering::Relaxed), 1))
            .for_each(|counted| {
                add(counted);
            });
        assert_eq!(total.into_inner(), 40_000);
    }

    #[test]
    fn a_displaced_count_carries_its_last_use() {
        let uses = UseCounters::default();
        assert_eq!(uses.count(7, 100), None);
        assert_eq!(uses.count(7, 105), None);
        let counted = Counted {
            row: 7,
            uses: 2,
            last: 105,
        };
        assert_eq!(uses.count(7 + 64, 200), Some(counted));
    }
}
