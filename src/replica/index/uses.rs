//! Collects the uses of keys in memory, without a locked instruction in a verification. A refusal of a key is a use too.
//!
//! Each thread writes its uses to a ring of its own. When the ring is full, the thread adds them to the tallies of
//! their keys. It prefetches these tallies first, so that their memory arrives at the same time. A thread that reads
//! the tallies first drains every ring.
//!
//! A ring has one writer. So a thread has the number of its ring to itself until it ends.

use std::cell::Cell;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, pause};
use super::tally::{Tallies, Tick};

/// 64 rings. If more threads verify at the same time, the others add each use to its tally directly.
const RINGS: usize = 64;
/// 128 uses per ring, 1 KiB; 2 under loom, which explores every interleaving.
const LENGTH: u32 = if cfg!(keyward_loom) { 2 } else { 128 };

/// 28 bits hold the time of a use, and 4 bits its outcome.
const TIME_BITS: u32 = 28;

/// One use of a key: the key's row, the code of the outcome (below 16), and the time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Use {
    row: u32,
    outcome: u8,
    tick: Tick,
}

impl Use {
    /// Creates a use at a Unix time in seconds.
    #[inline]
    pub(super) fn new(row: u32, outcome: u8, second: u32) -> Self {
        let tick = Tick::of(second);
        Self { row, outcome, tick }
    }

    const fn to_word(self) -> u64 {
        (self.row as u64) << 32 | (self.outcome as u64) << TIME_BITS | self.tick.bits() as u64
    }

    const fn of_word(word: u64) -> Self {
        Self {
            row: (word >> 32) as u32,
            outcome: (word as u32 >> TIME_BITS) as u8,
            tick: Tick::of_bits(word as u32),
        }
    }

    /// Returns whether both uses can be added at once.
    fn adds_to(self, other: Self, by_hour: bool) -> bool {
        (self.row, self.outcome) == (other.row, other.outcome)
            && (!by_hour || self.tick.is_in_hour_of(other.tick))
    }

    /// Adds this use to the key's tally.
    fn add(self, tallies: &Tallies) {
        tallies.add(self.row, self.outcome, 1, self.tick);
        tallies.note_new();
    }
}

/// The rings of all threads. A ring is allocated with the first use that its thread observes.
pub(super) struct UseRings([OnceLock<Box<UseRing>>; RINGS]);

impl Default for UseRings {
    fn default() -> Self {
        Self(std::array::from_fn(|_| OnceLock::new()))
    }
}

impl UseRings {
    /// Notes a use. Its tally counts it after this thread's ring is full, or after [`drain`](Self::drain).
    #[inline]
    pub(super) fn note(&self, used: Use, tallies: &Tallies) {
        match self.0.get(own_number()) {
            Some(ring) => ring.get_or_init(Box::default).push(used, tallies),
            None => used.add(tallies),
        }
    }

    /// Adds all uses that were noted before this call to the tallies.
    pub(super) fn drain(&self, tallies: &Tallies) {
        for ring in self.0.iter().filter_map(OnceLock::get) {
            let mut spins = 0;
            while !ring.drain(tallies) {
                spins += 1;
                pause(spins);
            }
        }
    }
}

/// A ring with one writer. Both counters wrap around, and their difference is the number of uses in the ring.
///
/// Rings share no pair of cache lines, which processors load together.
#[repr(align(128))]
struct UseRing {
    uses: [AtomicU64; LENGTH as usize],
    /// The number of uses that the writer has written.
    written: AtomicU32,
    /// The number of uses that were added to the tallies.
    taken: AtomicU32,
    /// True while a thread drains the ring.
    is_draining: AtomicBool,
}

impl Default for UseRing {
    fn default() -> Self {
        Self {
            uses: std::array::from_fn(|_| AtomicU64::new(0)),
            written: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            is_draining: AtomicBool::new(false),
        }
    }
}

impl UseRing {
    /// Writes a use. Only the ring's own thread may call this method.
    #[inline]
    fn push(&self, used: Use, tallies: &Tallies) {
        let written = self.written.load(Ordering::Relaxed);
        // Acquire pairs with the Release store in `drain`: the thread that took a use has read it before this
        // thread writes over it.
        let taken = self.taken.load(Ordering::Acquire);
        if written.wrapping_sub(taken) == LENGTH && !self.drain(tallies) {
            // Another thread drains the ring. Do not wait for it.
            used.add(tallies);
            return;
        }
        self.place(written).store(used.to_word(), Ordering::Relaxed);
        // Release pairs with the Acquire load in `drain`: a thread that sees the count sees the use.
        self.written
            .store(written.wrapping_add(1), Ordering::Release);
    }

    /// Adds the uses in the ring to the tallies. Returns false if another thread is doing so.
    #[inline(never)]
    fn drain(&self, tallies: &Tallies) -> bool {
        // Acquire and Release order the draining threads. So a thread that drains an empty ring sees the tallies to
        // which the thread before it added the uses.
        if self
            .is_draining
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        let taken = self.taken.load(Ordering::Relaxed);
        let written = self.written.load(Ordering::Acquire);
        let length = written.wrapping_sub(taken);
        let at = |number: u32| {
            let place = self.place(taken.wrapping_add(number));
            Use::of_word(place.load(Ordering::Relaxed))
        };
        for number in 0..length {
            tallies
                .get(at(number).row)
                .inspect(|tally| tally.prefetch());
        }
        let mut more = 0;
        for number in 0..length {
            // Uses of one key that follow each other are one addition.
            let (used, next) = (at(number), number + 1);
            if next < length && at(next).adds_to(used, tallies.is_by_hour()) {
                more += 1;
            } else {
                tallies.add(used.row, used.outcome, 1 + more, used.tick);
                more = 0;
            }
        }
        if length > 0 {
            tallies.note_new();
        }
        self.taken.store(written, Ordering::Release);
        self.is_draining.store(false, Ordering::Release);
        true
    }

    fn place(&self, number: u32) -> &AtomicU64 {
        &self.uses[(number % LENGTH) as usize]
    }
}

/// The numbers that threads have had, and have given back.
#[derive(Default)]
struct RingNumbers {
    drawn: usize,
    free: Vec<usize>,
}

static NUMBERS: Mutex<RingNumbers> = Mutex::new(RingNumbers {
    drawn: 0,
    free: Vec::new(),
});

/// The number of a thread's ring, until the thread ends.
///
/// The lock orders the threads that have the same number one after the other. So the next writer of a ring sees all
/// that the last one wrote.
struct OwnNumber(usize);

impl OwnNumber {
    fn take() -> Self {
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        Self(numbers.free.pop().unwrap_or_else(|| {
            numbers.drawn += 1;
            numbers.drawn - 1
        }))
    }
}

impl Drop for OwnNumber {
    fn drop(&mut self) {
        NUMBER.set(NONE);
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.free.push(self.0);
    }
}

/// The number of a thread that has none: before its first use, and after it has given its number back.
const NONE: usize = usize::MAX;

thread_local! {
    /// The number in [`OWN`], which is faster to read because it needs no destructor.
    static NUMBER: Cell<usize> = const { Cell::new(NONE) };
    static OWN: OwnNumber = OwnNumber::take();
}

/// Returns the number of this thread's ring.
#[inline]
fn own_number() -> usize {
    match NUMBER.get() {
        NONE => draw_number(),
        number => number,
    }
}

#[cold]
fn draw_number() -> usize {
    // Fails while the thread ends.
    let number = OWN.try_with(|own| own.0).unwrap_or(NONE);
    NUMBER.set(number);
    number
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;

#[cfg(all(test, not(keyward_loom)))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Returns tallies for the rows below 1,000.
    fn tallies() -> Tallies {
        let tallies = Tallies::default();
        (0..1_000).for_each(|row| tallies.reserve(row));
        tallies
    }

    const FIRST: u32 = 1_600_000_000;

    proptest! {
        #[test]
        fn no_use_is_lost_or_counted_twice(
            steps in prop::collection::vec((1_u32..200, prop::bool::weighted(0.02)), 0..1_000),
        ) {
            let (rings, tallies) = (UseRings::default(), tallies());
            let mut expected = HashMap::new();
            for (second, (row, drains)) in (FIRST..).zip(steps) {
                let (uses, last) = expected.entry(row).or_insert((0, 0));
                (*uses, *last) = (*uses + 1, second);
                rings.note(Use::new(row, 0, second), &tallies);
                if drains {
                    rings.drain(&tallies);
                }
            }
            rings.drain(&tallies);
            for row in 0..1_000 {
                let used = tallies.get(row).unwrap().uses();
                let rounded = |(uses, last): &(u64, u32)| (*uses, *last / 4 * 4);
                prop_assert_eq!(used, expected.get(&row).map(rounded));
            }
        }
    }

    #[test]
    fn a_ring_counts_its_uses_when_it_is_full_and_not_before() {
        let (rings, tallies) = (UseRings::default(), tallies());
        let count = || tallies.get(7).unwrap().uses().map_or(0, |(count, _)| count);
        let used = Use::new(7, 0, FIRST);
        (0..LENGTH).for_each(|_| rings.note(used, &tallies));
        assert_eq!(count(), 0);
        rings.note(used, &tallies);
        assert_eq!(count(), u64::from(LENGTH));
        rings.drain(&tallies);
        assert_eq!(count(), u64::from(LENGTH) + 1);
    }

    #[test]
    fn more_threads_than_rings_lose_nothing_while_others_drain() {
        let (rings, tallies) = (UseRings::default(), tallies());
        std::thread::scope(|scope| {
            for thread in 0..RINGS as u32 + 6 {
                let (rings, tallies) = (&rings, &tallies);
                scope.spawn(move || {
                    for second in FIRST..FIRST + 1_000 {
                        let row = 1 + (second / 3 + thread) % 2;
                        rings.note(Use::new(row, 0, second), tallies);
                        if thread == 0 && second % 10 == 0 {
                            rings.drain(tallies);
                        }
                    }
                });
            }
        });
        rings.drain(&tallies);
        let total: u64 = (0..1_000)
            .filter_map(|row| tallies.get(row).unwrap().uses())
            .map(|(count, _)| count)
            .sum();
        assert_eq!(total, (RINGS as u64 + 6) * 1_000);
    }

    #[test]
    fn threads_have_numbers_of_their_own_and_leave_them_to_later_threads() {
        let own = own_number();
        let other = || std::thread::spawn(own_number).join().unwrap();
        assert_eq!(own_number(), own);
        assert_ne!(other(), own);
        // Other tests run beside this one, and take numbers too.
        let highest = (0..1_000).map(|_| other()).max().unwrap();
        assert!(highest < 1_000, "{highest}");
    }
}
