//! Use counts: how often each key was used, and when it was last used. A count is one word per key. The words
//! are stored apart from the rows, so that many counts share a cache line.
//!
//! A word counts accepted uses of one hour. All other uses, of another hour or outcome, are counted in a map. Both are
//! counted only until they are taken, to be sent to a usage store.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::chunks::Chunks;
use super::memory::prefetch;
use super::sync::{AtomicBool, AtomicU64, Ordering};
use crate::core::usage::outcome::UseOutcome;

/// 4 s: the unit in which the time of a use is stored.
const TICK: u32 = 4;
/// The number of ticks in an hour.
const HOUR: u32 = 60 * 60 / TICK;
/// 1 January 2020 as Unix time: the time that is stored as zero. From there, 28 bits of ticks reach to the year 2054.
const FIRST_TICK: u32 = 1_577_836_800;
const TICK_BITS: u32 = 28;
const LAST_TICK: u32 = (1 << TICK_BITS) - 1;
const MOST_USES: u64 = (1 << (u64::BITS - TICK_BITS)) - 1;
/// 2^20: the largest number of counts in the map, about 70 MB.
const MOST_COUNTS: usize = 1 << 20;
/// 2^12: the largest number of counts for which an emptied map keeps room.
const ROOM: usize = 1 << 12;

/// The time of a use, in ticks since 2020.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Tick(u32);

impl Tick {
    /// Returns the tick of a Unix time in seconds. Never zero, which stands for no use.
    pub(super) fn of(second: u32) -> Self {
        Self((second.saturating_sub(FIRST_TICK) / TICK).clamp(1, LAST_TICK))
    }

    /// Returns the Unix time in seconds, up to 4 seconds early.
    const fn second(self) -> u32 {
        self.0 * TICK + FIRST_TICK
    }

    /// Returns the number of whole hours since 2020.
    const fn hour(self) -> u32 {
        self.0 / HOUR
    }

    pub(super) const fn is_in_hour_of(self, other: Self) -> bool {
        self.hour() == other.hour()
    }

    /// Returns the tick as the lowest [`TICK_BITS`] bits of a number.
    pub(super) const fn bits(self) -> u32 {
        self.0
    }

    pub(super) const fn of_bits(bits: u32) -> Self {
        Self(bits & LAST_TICK)
    }
}

/// The use count of one key.
#[derive(Default)]
pub(super) struct Tally(AtomicU64);

impl Tally {
    /// Prefetches the count.
    pub(super) fn prefetch(&self) {
        prefetch(&self.0);
    }

    /// Adds `uses` to the count. The last of these uses was at `tick`.
    fn count(&self, uses: u64, tick: Tick) {
        let _other = self.count_hour(uses, tick, |_, _| true);
    }

    /// Adds `uses` to the count if `is_same` returns true for the last use so far and `tick`. Otherwise the count of the
    /// later hour stays in the word, and the other one is returned with its time.
    fn count_hour(
        &self,
        uses: u64,
        tick: Tick,
        is_same: impl Fn(Tick, Tick) -> bool,
    ) -> Option<(u64, Tick)> {
        let mut known = self.0.load(Ordering::Relaxed);
        loop {
            let (before, last) = unpacked(known);
            let (count, other) = if (before == 0 && last <= tick) || is_same(last, tick) {
                (before.saturating_add(uses).min(MOST_USES), None)
            } else if last < tick {
                (uses.min(MOST_USES), Some((before, last)))
            } else {
                return Some((uses, tick));
            };
            let word = count << TICK_BITS | u64::from(last.max(tick).bits());
            match self
                .0
                .compare_exchange_weak(known, word, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return other,
                Err(found) => known = found,
            }
        }
    }

    /// Returns the number of uses that were not taken, and the Unix time of the last use in seconds. `None` if the key
    /// was not used.
    pub(super) fn uses(&self) -> Option<(u64, u32)> {
        let (count, last) = unpacked(self.0.load(Ordering::Relaxed));
        (last > Tick::default()).then(|| (count, last.second()))
    }

    /// Takes the count. The time of the last use stays.
    fn take(&self) -> (u64, Tick) {
        // Most keys have nothing to take. A load does not take the cache line from a counting thread.
        match unpacked(self.0.load(Ordering::Relaxed)) {
            (0, last) => (0, last),
            _ => unpacked(self.0.fetch_and(u64::from(LAST_TICK), Ordering::Relaxed)),
        }
    }
}

const fn unpacked(word: u64) -> (u64, Tick) {
    (word >> TICK_BITS, Tick::of_bits(word as u32))
}

/// Uses of one key with one outcome in one hour, which were taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TakenUses {
    /// The row of the key.
    pub(super) row: u32,
    pub(super) outcome: u8,
    pub(super) count: u64,
    /// The Unix time of the last of these uses, or of another time in their hour, in seconds.
    pub(super) second: u32,
}

/// The row, the outcome, and the hour since 2020.
type HourOf = (u32, u8, u32);

/// The use counts of all keys.
#[derive(Default)]
pub(super) struct Tallies {
    words: Chunks<Tally>,
    /// The counts that are in no word, each with the last tick of its uses. `None` if nothing takes the counts: words
    /// then count uses of any hour, and refusals are not counted.
    hours: Option<Mutex<HashMap<HourOf, (u64, Tick)>>>,
    /// True if something was counted since the counts were taken last.
    has_new: AtomicBool,
    /// The number of uses that were not counted, because the map was full.
    dropped: AtomicU64,
}

impl Tallies {
    /// Creates counts by hour, which the caller takes now and then.
    pub(super) fn by_hour() -> Self {
        Self {
            hours: Some(Mutex::default()),
            ..Self::default()
        }
    }

    pub(super) const fn is_by_hour(&self) -> bool {
        self.hours.is_some()
    }

    /// Returns empty counts of the same form.
    pub(super) fn like(&self) -> Self {
        match self.hours {
            Some(_) => Self::by_hour(),
            None => Self::default(),
        }
    }

    /// Allocates the count of a row.
    pub(super) fn reserve(&self, row: u32) {
        self.words.at(row);
    }

    pub(super) fn get(&self, row: u32) -> Option<&Tally> {
        self.words.get(row)
    }

    /// Adds uses of a row, the last of them at `tick`. Then the caller calls [`note_new`](Self::note_new).
    pub(super) fn add(&self, row: u32, outcome: u8, uses: u64, tick: Tick) {
        let is_accepted = outcome == UseOutcome::Accepted.code();
        let word = self.words.get(row).filter(|_| is_accepted);
        let Some(hours) = &self.hours else {
            word.inspect(|word| word.count(uses, tick));
            return;
        };
        let other = match word {
            Some(word) => word.count_hour(uses, tick, Tick::is_in_hour_of),
            // Also for row 0, that of an unknown key, so that timing does not reveal which keys exist.
            None => Some((uses, tick)),
        };
        if let Some((uses, tick)) = other {
            self.add_hour(hours, (row, outcome, tick.hour()), (uses, tick));
        }
    }

    /// Records that uses were added since the counts were taken.
    pub(super) fn note_new(&self) {
        self.has_new.store(true, Ordering::Release);
    }

    /// Returns whether uses were added since the counts were taken.
    pub(super) fn has_new(&self) -> bool {
        self.has_new.load(Ordering::Acquire)
    }

    fn add_hour(
        &self,
        hours: &Mutex<HashMap<HourOf, (u64, Tick)>>,
        of: HourOf,
        (uses, tick): (u64, Tick),
    ) {
        let mut hours = lock(hours);
        if hours.len() >= MOST_COUNTS && !hours.contains_key(&of) {
            self.dropped.fetch_add(uses, Ordering::Relaxed);
            return;
        }
        let (count, last) = hours.entry(of).or_default();
        *count = count.saturating_add(uses);
        *last = tick.max(*last);
    }

    /// Takes all counts of the rows up to the number that `rows` returns. The times of last uses stay.
    pub(super) fn take(&self, rows: impl FnOnce() -> u32) -> Vec<TakenUses> {
        // Acquire pairs with the Release store in `note_new`: a thread that takes the flag sees the count.
        if !self.has_new.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        let of_words = (1..=rows()).filter_map(|row| {
            let (count, last) = self.words.get(row)?.take();
            (count > 0).then(|| TakenUses {
                row,
                outcome: UseOutcome::Accepted.code(),
                count,
                second: last.second(),
            })
        });
        let mut taken: Vec<_> = of_words.collect();
        if let Some(hours) = &self.hours {
            let mut hours = lock(hours);
            // The next counts find room, and need not wait until the map has grown.
            let room = HashMap::with_capacity(hours.len().min(ROOM));
            let hours = std::mem::replace(&mut *hours, room).into_iter();
            taken.extend(hours.filter(|((row, ..), _)| *row > 0).map(
                |((row, outcome, _), (count, last))| TakenUses {
                    row,
                    outcome,
                    count,
                    second: last.second(),
                },
            ));
        }
        taken
    }

    /// Takes the number of uses that were not counted.
    pub(super) fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }

    /// Counts uses that another list dropped.
    pub(super) fn add_dropped(&self, uses: u64) {
        self.dropped.fetch_add(uses, Ordering::Relaxed);
    }

    /// Records that a row was used at `second`, without counting a use. Does nothing if uses are counted that were not
    /// taken.
    pub(super) fn raise(&self, row: u32, second: u32) {
        if let Some(word) = self.words.get(row) {
            // A word with a count is larger than every time.
            let tick = Tick::of(second).bits().into();
            word.0.fetch_max(tick, Ordering::Relaxed);
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;

#[cfg(all(test, not(keyward_loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Uses in any order of time, and takes in between: each use is taken once, under its hour.
        #[test]
        fn each_use_is_taken_once_under_its_hour_and_outcome(
            uses in prop::collection::vec((1_u32..4, 0_u8..3, 0_u32..4 * HOUR, prop::bool::weighted(0.1)), 0..200),
        ) {
            let tallies = Tallies::by_hour();
            (1..4).for_each(|row| tallies.reserve(row));
            let (mut expected, mut taken) = (BTreeMap::new(), Vec::new());
            for (row, outcome, tick, takes) in uses {
                let tick = Tick::of(FIRST_TICK + tick * TICK);
                *expected.entry((row, outcome, tick.hour())).or_insert(0) += 1;
                tallies.add(row, outcome, 1, tick);
                tallies.note_new();
                if takes {
                    taken.extend(tallies.take(|| 3));
                }
            }
            taken.extend(tallies.take(|| 3));
            let mut found = BTreeMap::new();
            for TakenUses { row, outcome, count, second } in taken {
                *found.entry((row, outcome, Tick::of(second).hour())).or_insert(0) += count;
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(tallies.take(|| 3), Vec::new());
        }
    }

    #[test]
    fn a_taken_count_keeps_the_time_of_the_last_use() {
        let tallies = Tallies::by_hour();
        tallies.reserve(1);
        let word = tallies.get(1).unwrap();
        assert_eq!(word.uses(), None);
        // The first tick is not the tick of an unused key.
        tallies.add(1, 0, 1, Tick::of(0));
        assert_eq!(word.uses(), Some((1, FIRST_TICK + TICK)));
        let at = FIRST_TICK + 10 * TICK;
        tallies.add(1, 0, 2, Tick::of(at));
        tallies.note_new();
        assert_eq!(tallies.take(|| 1).len(), 1);
        assert_eq!(word.uses(), Some((0, at)));
        tallies.raise(1, at - TICK);
        assert_eq!(word.uses(), Some((0, at)));
        tallies.raise(1, at + TICK);
        assert_eq!(word.uses(), Some((0, at + TICK)));
    }

    #[test]
    fn refusals_count_only_if_counts_are_taken() {
        for (tallies, expected) in [(Tallies::by_hour(), 1), (Tallies::default(), 0)] {
            tallies.reserve(1);
            tallies.add(1, 4, 1, Tick::of(FIRST_TICK));
            // An unknown key has row 0.
            tallies.add(0, 4, 1, Tick::of(FIRST_TICK));
            tallies.note_new();
            assert_eq!(tallies.take(|| 1).len(), expected);
            assert_eq!(tallies.get(1).unwrap().uses(), None);
        }
    }

    #[test]
    fn a_full_map_drops_new_counts_and_says_how_many() {
        let tallies = Tallies::by_hour();
        for row in 1..=MOST_COUNTS as u32 + 1 {
            tallies.add(row, 4, 3, Tick::of(FIRST_TICK));
        }
        tallies.add(1, 4, 3, Tick::of(FIRST_TICK));
        tallies.note_new();
        assert_eq!(tallies.take_dropped(), 3);
        assert_eq!(tallies.take_dropped(), 0);
        let taken = tallies.take(|| 0);
        assert_eq!(taken.len(), MOST_COUNTS);
        assert_eq!(
            taken.iter().map(|taken| taken.count).sum::<u64>(),
            3 * (MOST_COUNTS as u64 + 1)
        );
    }
}
