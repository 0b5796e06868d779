//! The table that finds a presented key: 32-byte slots of plain atomics, two per cache line.
//!
//! One writer, any number of readers, no lock. Invariants:
//!
//! - A visible slot keeps its hash, row and digest half until it is marked [`GONE`]. Its value is
//!   one word, so no reader sees half a change.
//! - A segment that has a successor is never written again, and readers follow the successor. A
//!   reader that is already inside the old segment sees its final state, which is later than the
//!   start of its search.
//! - A new slot goes behind all others of its run, and no slot becomes free again. So a reader that
//!   passes a slot marked [`GONE`] finds its replacement further on. If slots were reused, the
//!   replacement could appear behind the reader, and a valid key would be missed.

use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::ledger::Parts;
use super::prefetch::prefetch;
use super::sync::{AtomicU32, AtomicU64, OnceLock, Ordering};

/// 64 slots in the first segment; 4 under loom, which explores every order.
const FIRST: usize = if cfg!(keyward_loom) { 4 } else { 64 };
/// At most 4096 slots per segment; a full one is split. A judgement: the writer then copies 128 KiB
/// in one go.
const LARGEST: usize = if cfg!(keyward_loom) { 8 } else { 4096 };
/// 20 splits: 2²⁰ segments, 2³² keys.
const DEEPEST: u32 = 20;

/// The name of a slot that never held a key.
const EMPTY: u64 = 0;
/// The name of a slot whose key is now in another slot. No row has this name: rows are numbered from 1.
const GONE: u64 = 1;

/// Returns how many of a segment's slots may be taken. A judgement: more would save memory, but
/// lengthen the search for an unknown id, which ends at a free slot.
const fn limit(slots: usize) -> usize {
    slots / 4 * 3
}

/// The keyed hash of a key's id or imported digest. The slot stores all of it, so a segment can be
/// rebuilt from its slots alone. Two keys with the same hash cost one more comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Hash(pub(super) u32);

impl Hash {
    /// Returns the segment at `depth` that this hash belongs to.
    const fn segment(self, depth: u32) -> usize {
        // Widened to 64 bits, so that a shift by 32 is defined.
        (self.0 as u64 >> (32 - depth)) as usize
    }

    /// Returns the first slot of the search, chosen by the bits that did not choose the segment.
    const fn home(self, depth: u32, slots: usize) -> usize {
        let rest = (self.0 << depth) as u64;
        ((rest * slots as u64) >> 32) as usize
    }

    const fn name(self, row: u32) -> u64 {
        (row as u64) << 32 | self.0 as u64
    }

    const fn of_name(name: u64) -> Self {
        Self(name as u32)
    }
}

/// Half of a digest: the part that is compared. 128 bits of an HMAC are as good as its key (RFC
/// 2104, section 5).
#[derive(Clone, Copy)]
pub(crate) struct Half([u64; 2]);

impl Half {
    /// The half in a slot that is found by id and compares no digest. The key of such a slot is
    /// imported, removed or unreadable.
    pub(super) const NONE: Self = Self([0; 2]);

    pub(crate) fn of(digest: &[u8; 32]) -> Self {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&digest[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        Self([word(0), word(8)])
    }

    pub(super) const fn to_u128(self) -> u128 {
        (self.0[1] as u128) << 64 | self.0[0] as u128
    }

    /// Returns the difference, folded into one word: zero if the halves are equal. Takes constant
    /// time.
    const fn difference(self, other: Self) -> u64 {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1])
    }
}

#[derive(Default)]
#[repr(align(32))]
struct Slot {
    /// The row's number and the hash in one word, or [`EMPTY`], or [`GONE`].
    name: AtomicU64,
    half: [AtomicU64; 2],
    value: AtomicU64,
}

/// The layout of a value: 67 million holders, 262,144 shapes, and hours until the year 2106.
const UNTIL_BITS: u32 = 20;
const HOLDER_BITS: u32 = 26;
const SHAPE_BITS: u32 = 18;

/// The value of a slot: the hour until which the row need not be read, and the parts that
/// the key shares.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SlotValue {
    /// The hour until which the key works without a look at the row. Hours count from the epoch, and
    /// each lasts 4096 seconds. A key with such an hour is enabled, does not await its first use, and
    /// does not expire before that hour. [`ASK`](Self::ASK) and [`NEVER`](Self::NEVER) are not hours.
    pub(super) until: u32,
    pub(super) parts: Parts,
}

impl SlotValue {
    /// Only the row decides whether the key works.
    pub(super) const ASK: u32 = 0;
    /// The key works until it is changed.
    pub(super) const NEVER: u32 = (1 << UNTIL_BITS) - 1;
    /// Only the row describes the key.
    pub(super) const ROW: Self = Self {
        until: Self::ASK,
        parts: Parts {
            holder: 0,
            shape: 0,
        },
    };

    /// The length of an hour: 4096 seconds, a power of two.
    pub(super) const HOUR: i64 = 4096;

    /// Packs the value into a word. If the numbers of the parts do not fit, the row is read instead.
    const fn to_word(self) -> u64 {
        let Parts { holder, shape } = self.parts;
        if holder >> HOLDER_BITS != 0 || shape >> SHAPE_BITS != 0 {
            return 0;
        }
        let until = (self.until as u64) << (HOLDER_BITS + SHAPE_BITS);
        until | (holder as u64) << SHAPE_BITS | shape as u64
    }

    fn from_word(word: u64) -> Self {
        let part = |from: u32, bits: u32| (word >> from) as u32 & ((1 << bits) - 1);
        Self {
            until: part(HOLDER_BITS + SHAPE_BITS, UNTIL_BITS),
            parts: Parts {
                holder: part(SHAPE_BITS, HOLDER_BITS),
                shape: part(0, SHAPE_BITS),
            },
        }
    }
}

struct Segment {
    /// The number of leading bits of the hash that choose this segment.
    depth: u32,
    slots: Box<[Slot]>,
    /// The number of slots that are not empty. Only the writer uses it.
    taken: AtomicU32,
    next: OnceLock<Next>,
}

/// The successor of a segment.
enum Next {
    Larger(Arc<Segment>),
    Split([Arc<Segment>; 2]),
}

/// The segments at one instant. Readers follow successors from them.
#[derive(Clone)]
pub(crate) struct Directory {
    depth: u32,
    segments: Arc<[Arc<Segment>]>,
}

/// A slot that was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Found {
    pub(super) row: u32,
    pub(super) value: SlotValue,
}

/// The outcome of a search.
pub(super) enum Search {
    /// The key with the presented half.
    Match(Found),
    /// Keys of this hash exist, but none has the presented half. Holds the first of them.
    NoMatch(Found),
    /// No key has this hash.
    Nothing,
}

/// A search in progress.
pub(crate) struct Probe<'a> {
    segment: &'a Segment,
    hash: Hash,
}

impl Directory {
    /// Begins a search.
    #[inline]
    pub(super) fn probe(&self, hash: Hash) -> Probe<'_> {
        let segment = self.segments[hash.segment(self.depth)].newest(hash);
        Probe { segment, hash }
    }
}

impl Segment {
    fn new(depth: u32, slots: usize) -> Self {
        Self {
            depth,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            taken: AtomicU32::new(0),
            next: OnceLock::new(),
        }
    }

    /// Returns the newest successor of this segment for `hash`, or the segment itself. The load
    /// inside `get` is Acquire: a reader that sees a successor sees it completely filled.
    #[inline]
    fn newest(&self, hash: Hash) -> &Self {
        let mut newest = self;
        while let Some(next) = newest.next.get() {
            newest = match next {
                Next::Larger(larger) => larger,
                Next::Split(halves) => &halves[hash.segment(newest.depth + 1) & 1],
            };
        }
        newest
    }

    /// Returns the slots that may hold `hash`, in the order in which they are taken.
    #[inline]
    fn run(&self, hash: Hash) -> impl Iterator<Item = (&Slot, u64)> {
        let home = hash.home(self.depth, self.slots.len());
        let (before, from) = self.slots.split_at(home);
        let all = from.iter().chain(before);
        let named = all.map(|slot| (slot, slot.name.load(Ordering::Acquire)));
        named.take_while(|(_, name)| *name != EMPTY)
    }

    fn named(&self, hash: Hash) -> impl Iterator<Item = Found> {
        let own = move |(_, name): &(&Slot, u64)| *name != GONE && Hash::of_name(*name) == hash;
        self.run(hash)
            .filter(own)
            .map(|(slot, name)| slot.found(name))
    }

    /// Takes a free slot. One always exists: the writer makes room before it inserts.
    fn insert(&self, name: u64, half: Half, value: u64) {
        let hash = Hash::of_name(name);
        let home = hash.home(self.depth, self.slots.len());
        let (before, from) = self.slots.split_at(home);
        let mut all = from.iter().chain(before);
        let free = all.find(|slot| slot.name.load(Ordering::Relaxed) == EMPTY);
        if let Some(slot) = free {
            slot.half[0].store(half.0[0], Ordering::Relaxed);
            slot.half[1].store(half.0[1], Ordering::Relaxed);
            slot.value.store(value, Ordering::Relaxed);
            // The name is stored last, with Release. It pairs with the Acquire load in `run`: a
            // reader that sees the name sees the whole slot.
            slot.name.store(name, Ordering::Release);
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Slot {
    fn half(&self) -> Half {
        Half([
            self.half[0].load(Ordering::Relaxed),
            self.half[1].load(Ordering::Relaxed),
        ])
    }

    fn found(&self, name: u64) -> Found {
        Found {
            row: row_of(name),
            value: SlotValue::from_word(self.value.load(Ordering::Acquire)),
        }
    }
}

const fn row_of(name: u64) -> u32 {
    (name >> 32) as u32
}

impl<'a> Probe<'a> {
    /// Prefetches the slot at which the search begins.
    #[inline]
    pub(super) fn approach(&self) {
        let slots = &self.segment.slots;
        let home = self.hash.home(self.segment.depth, slots.len());
        slots.get(home).into_iter().for_each(prefetch);
    }

    /// Returns the slots of this hash, whatever their halves.
    pub(super) fn named(self) -> impl Iterator<Item = Found> + 'a {
        self.segment.named(self.hash)
    }

    /// Ends the search: looks for a key of this hash that has `half`.
    #[inline]
    pub(super) fn search(self, half: Half) -> Search {
        let Self { segment, hash } = self;
        let mut other = None;
        for (slot, name) in segment.run(hash) {
            if Hash::of_name(name) != hash || name == GONE {
                continue;
            }
            // One word, which reveals nothing except whether it is zero (trap 6).
            if bool::from(slot.half().difference(half).ct_eq(&0)) {
                return Search::Match(slot.found(name));
            }
            other = other.or(Some((slot, name)));
        }
        match other {
            Some((slot, name)) => Search::NoMatch(slot.found(name)),
            None => Search::Nothing,
        }
    }
}

/// The writer's side: the newest segment for each leading part of a hash.
pub(super) struct Table {
    depth: u32,
    segments: Vec<Arc<Segment>>,
    /// Whether a directory was handed out, so that its readers must be led on from replaced
    /// segments.
    handed_out: bool,
    /// The number of segments replaced since a directory was last handed out.
    replaced: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            depth: 0,
            segments: vec![Arc::new(Segment::new(0, FIRST))],
            handed_out: false,
            replaced: 0,
        }
    }
}

impl Table {
    /// Returns the segments as they are now. Readers follow later successors from them.
    pub(super) fn directory(&mut self) -> Directory {
        self.handed_out = true;
        self.replaced = 0;
        Directory {
            depth: self.depth,
            segments: self.segments.iter().cloned().collect(),
        }
    }

    /// Returns how many segments were replaced since the directory was last handed out. The
    /// replaced ones are kept for as long as that directory is in use.
    pub(super) const fn replaced(&self) -> usize {
        self.replaced
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Returns the slots of this hash.
    pub(super) fn named(&self, hash: Hash) -> impl Iterator<Item = Found> {
        self.segment(hash).named(hash)
    }

    /// Returns whether a slot of this hash and row has `half`.
    pub(super) fn has(&self, hash: Hash, row: u32, half: Half) -> bool {
        let own = |(slot, name): (&Slot, u64)| {
            name == hash.name(row) && slot.half().difference(half) == 0
        };
        self.segment(hash).run(hash).any(own)
    }

    /// Changes the value of the slot of this hash and row.
    pub(super) fn set_value(&self, hash: Hash, row: u32, value: SlotValue) {
        if let Some(slot) = self.slot(hash, row) {
            slot.value.store(value.to_word(), Ordering::Release);
        }
    }

    /// Adds a slot.
    pub(super) fn insert(&mut self, hash: Hash, row: u32, half: Half, value: SlotValue) {
        while self.segment(hash).is_full() {
            self.make_room(hash);
        }
        let segment = self.segment(hash);
        segment.insert(hash.name(row), half, value.to_word());
    }

    /// Makes `half` the half of this hash and row. Calls `publish` while the old and the new slot both exist:
    /// a reader that sees the effect of `publish` finds the new slot.
    pub(super) fn replace(
        &mut self,
        hash: Hash,
        row: u32,
        half: Half,
        value: SlotValue,
        publish: impl FnOnce(),
    ) {
        let old = self.slot(hash, row).map(Slot::half);
        // The new slot comes first. In the other order, a reader between the two steps would find
        // neither, and reject a key that keeps its secret.
        self.insert(hash, row, half, value);
        publish();
        let Some(old) = old else { return };
        let segment = self.segment(hash);
        let own = |(slot, name): &(&Slot, u64)| {
            *name == hash.name(row) && slot.half().difference(old) == 0
        };
        if let Some((slot, _)) = segment.run(hash).find(own) {
            slot.name.store(GONE, Ordering::Release);
        }
    }

    fn segment(&self, hash: Hash) -> &Segment {
        &self.segments[hash.segment(self.depth)]
    }

    fn slot(&self, hash: Hash, row: u32) -> Option<&Slot> {
        let mut run = self.segment(hash).run(hash);
        let found = run.find(|(_, name)| *name == hash.name(row));
        found.map(|(slot, _)| slot)
    }

    /// Replaces the segment of `hash` by a larger one, or by two.
    fn make_room(&mut self, hash: Hash) {
        let full = self.segments[hash.segment(self.depth)].clone();
        let (depth, slots) = (full.depth, full.slots.len());
        let next = if slots < LARGEST || depth == DEEPEST {
            Next::Larger(full.copy(depth, |_| true))
        } else {
            let half = |bit| full.copy(depth + 1, move |hash| hash.segment(depth + 1) & 1 == bit);
            Next::Split([half(0), half(1)])
        };
        if full.depth == self.depth && matches!(next, Next::Split(_)) {
            let twice = |segment: &Arc<Segment>| [segment.clone(), segment.clone()];
            self.segments = self.segments.iter().flat_map(twice).collect();
            self.depth += 1;
        }
        let share = 1 << (self.depth - depth);
        let first = hash.segment(depth) * share;
        for (at, place) in self.segments[first..first + share].iter_mut().enumerate() {
            *place = match &next {
                Next::Larger(larger) => larger.clone(),
                Next::Split(halves) => halves[at * 2 / share].clone(),
            };
        }
        if self.handed_out {
            self.replaced += 1;
            // Only the writer sets `next`, so the call cannot fail.
            let _ = full.next.set(next);
        }
    }
}

impl Segment {
    fn is_full(&self) -> bool {
        let taken = self.taken.load(Ordering::Relaxed) as usize;
        taken >= limit(self.slots.len())
    }

    /// Returns a segment with copies of the slots for whose hash `belongs` is true. It has room for a quarter
    /// more keys.
    fn copy(&self, depth: u32, belongs: impl Fn(Hash) -> bool) -> Arc<Self> {
        let name = |slot: &Slot| slot.name.load(Ordering::Relaxed);
        let moves = |slot: &&Slot| {
            let name = name(slot);
            name != EMPTY && name != GONE && belongs(Hash::of_name(name))
        };
        let count = self.slots.iter().filter(moves).count();
        let copy = Self::new(depth, (count * 5 / 3).next_multiple_of(4).max(FIRST));
        for slot in self.slots.iter().filter(moves) {
            copy.insert(name(slot), slot.half(), slot.value.load(Ordering::Relaxed));
        }
        Arc::new(copy)
    }
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;
