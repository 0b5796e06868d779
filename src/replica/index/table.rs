//! The table by which a presented key is found: 32-byte slots of plain atomics, two to a cache line.
//!
//! One writer, any number of readers, no lock. Invariants:
//!
//! - What a slot is found and compared by never changes once the slot can be seen; what it leads to
//!   is one word, so that nobody sees half a change.
//! - A segment that has a successor is never written again: readers follow it, and one that was
//!   already there sees a state from after its own call began.
//! - A slot is taken behind all others of its run, and none is free again: whoever finds one left
//!   finds the one that took its place further on.

use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::ledger::Parts;
use super::prefetch::prefetch;
use super::sync::{AtomicU32, AtomicU64, OnceLock, Ordering};

/// How many slots the first segment has. Few where loom takes every order.
const FIRST: usize = if cfg!(keyward_loom) { 4 } else { 64 };
/// How many slots a segment has at most; one that is full is split. A judgement: what the
/// writer copies at once is 128 KiB.
const LARGEST: usize = if cfg!(keyward_loom) { 8 } else { 4096 };
/// The deepest split: 2²⁰ segments, 2³² keys.
const DEEPEST: u32 = 20;

/// No key was ever here.
const EMPTY: u64 = 0;
/// A key was here: rows are counted from 1.
const GONE: u64 = 1;

/// How many slots of a segment may be taken. A judgement: more would save memory and lengthen the
/// search for an unknown id, which ends at a free slot.
const fn limit(slots: usize) -> usize {
    slots / 4 * 3
}

/// The keyed hash of what a key is found by. All of it stands in the slot, so that a segment grows
/// by what it holds; that keys share one costs a comparison and nothing else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Hash(pub(super) u32);

impl Hash {
    /// Which of the segments at `depth` it belongs to.
    const fn segment(self, depth: u32) -> usize {
        // Wider, so that a shift by all 32 bits is one.
        (self.0 as u64 >> (32 - depth)) as usize
    }

    /// The first slot to look at, by the bits that did not choose the segment.
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

/// Half of a digest: what is compared. 128 bits of an HMAC are as good as its key (RFC 2104,
/// section 5).
#[derive(Clone, Copy)]
pub(crate) struct Half([u64; 2]);

impl Half {
    /// No key's: an id that leads to a key that is not compared here.
    pub(super) const NONE: Self = Self([0; 2]);

    pub(crate) fn of(digest: &[u8; 32]) -> Self {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&digest[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        Self([word(0), word(8)])
    }

    /// As one number.
    pub(super) const fn to_u128(self) -> u128 {
        (self.0[1] as u128) << 64 | self.0[0] as u128
    }

    /// What differs, folded into one word: zero if nothing does. Takes the same time for all.
    const fn difference(self, other: Self) -> u64 {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1])
    }
}

#[derive(Default)]
#[repr(align(32))]
struct Slot {
    /// The row's number and the hash, or [`EMPTY`], or [`GONE`].
    name: AtomicU64,
    half: [AtomicU64; 2],
    lead: AtomicU64,
}

/// How a word is shared out: 67 million holders, 262,144 shapes, and the year 2106.
const UNTIL_BITS: u32 = 20;
const HOLDER_BITS: u32 = 26;
const SHAPE_BITS: u32 = 18;

/// What a slot leads to: when to look at the row, and what the key shares with others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Lead {
    /// Before this hour since the epoch (of 4096 seconds) the key is enabled, used before and not
    /// expired: nothing else needs to be looked at. [`ASK`](Self::ASK) and [`NEVER`](Self::NEVER)
    /// are no hours.
    pub(super) until: u32,
    pub(super) parts: Parts,
}

impl Lead {
    /// The row says what the key is.
    pub(super) const ASK: u32 = 0;
    /// The key works until it is changed.
    pub(super) const NEVER: u32 = (1 << UNTIL_BITS) - 1;
    /// Nothing but the row says anything.
    pub(super) const ROW: Self = Self {
        until: Self::ASK,
        parts: Parts {
            holder: 0,
            shape: 0,
        },
    };

    /// Seconds of an hour.
    pub(super) const HOUR: i64 = 4096;

    /// As a word; only the row says anything of parts whose numbers do not fit.
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
    /// By how many bits of the hash it is chosen.
    depth: u32,
    slots: Box<[Slot]>,
    /// How many slots are not empty. The writer's own.
    taken: AtomicU32,
    next: OnceLock<Next>,
}

/// What took a segment's place.
enum Next {
    Larger(Arc<Segment>),
    Split([Arc<Segment>; 2]),
}

/// The segments as they were at some instant: whatever took their place is found from them.
#[derive(Clone)]
pub(crate) struct Directory {
    depth: u32,
    segments: Arc<[Arc<Segment>]>,
}

/// A slot that was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Found {
    pub(super) row: u32,
    pub(super) lead: Lead,
}

/// What a search came to.
pub(super) enum Search {
    /// The key, with what was presented for it.
    Match(Found),
    /// There are keys of this hash, of which none has what was presented. The first of them.
    NoMatch(Found),
    /// No key has this hash.
    Nothing,
}

/// A search under way.
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

    /// What took this segment's place for `hash`, or itself.
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

    /// The slots that `hash` may be in, in the order in which they are taken.
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

    /// Takes a free slot. There always is one: the writer makes room before it inserts.
    fn insert(&self, name: u64, half: Half, lead: u64) {
        let hash = Hash::of_name(name);
        let home = hash.home(self.depth, self.slots.len());
        let (before, from) = self.slots.split_at(home);
        let mut all = from.iter().chain(before);
        let free = all.find(|slot| slot.name.load(Ordering::Relaxed) == EMPTY);
        if let Some(slot) = free {
            slot.half[0].store(half.0[0], Ordering::Relaxed);
            slot.half[1].store(half.0[1], Ordering::Relaxed);
            slot.lead.store(lead, Ordering::Relaxed);
            // The last: whoever sees the name sees all of it.
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
            lead: Lead::from_word(self.lead.load(Ordering::Acquire)),
        }
    }
}

const fn row_of(name: u64) -> u32 {
    (name >> 32) as u32
}

impl<'a> Probe<'a> {
    /// Has the memory brought near that the search will look at.
    #[inline]
    pub(super) fn approach(&self) {
        let slots = &self.segment.slots;
        let home = self.hash.home(self.segment.depth, slots.len());
        slots.get(home).into_iter().for_each(prefetch);
    }

    /// The slots of this hash, whatever they are compared with.
    pub(super) fn named(self) -> impl Iterator<Item = Found> + 'a {
        self.segment.named(self.hash)
    }

    /// Ends the search: is there a key of this hash that has `half`?
    #[inline]
    pub(super) fn search(self, half: Half) -> Search {
        let Self { segment, hash } = self;
        let mut other = None;
        for (slot, name) in segment.run(hash) {
            if Hash::of_name(name) != hash || name == GONE {
                continue;
            }
            // One word that tells nothing but whether it is zero (trap 6).
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

/// The writer's side: the newest segment for each beginning of a hash.
pub(super) struct Table {
    depth: u32,
    segments: Vec<Arc<Segment>>,
    /// Whether anybody was told of the segments, and must be led on from those replaced.
    told: bool,
    /// How many were replaced since.
    replaced: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            depth: 0,
            segments: vec![Arc::new(Segment::new(0, FIRST))],
            told: false,
            replaced: 0,
        }
    }
}

impl Table {
    /// The segments as they are now. What takes their place later is found from them.
    pub(super) fn directory(&mut self) -> Directory {
        self.told = true;
        self.replaced = 0;
        Directory {
            depth: self.depth,
            segments: self.segments.iter().cloned().collect(),
        }
    }

    /// How many segments took another's place since the directory was last told: for as long as
    /// that is used, both are kept.
    pub(super) const fn replaced(&self) -> usize {
        self.replaced
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The slots of this hash.
    pub(super) fn named(&self, hash: Hash) -> impl Iterator<Item = Found> {
        self.segment(hash).named(hash)
    }

    /// Whether a slot of this hash and row is compared with `half`.
    pub(super) fn has(&self, hash: Hash, row: u32, half: Half) -> bool {
        let own = |(slot, name): (&Slot, u64)| {
            name == hash.name(row) && slot.half().difference(half) == 0
        };
        self.segment(hash).run(hash).any(own)
    }

    /// Makes the slot of this hash and row lead elsewhere.
    pub(super) fn lead(&self, hash: Hash, row: u32, lead: Lead) {
        if let Some(slot) = self.slot(hash, row) {
            slot.lead.store(lead.to_word(), Ordering::Release);
        }
    }

    /// Adds a slot.
    pub(super) fn insert(&mut self, hash: Hash, row: u32, half: Half, lead: Lead) {
        while self.segment(hash).is_full() {
            self.make_room(hash);
        }
        let segment = self.segment(hash);
        segment.insert(hash.name(row), half, lead.to_word());
    }

    /// Has the slot of this hash and row compared with `half` from now on. `tell` runs while both
    /// are there: whoever hears of the new one finds it.
    pub(super) fn replace(
        &mut self,
        hash: Hash,
        row: u32,
        half: Half,
        lead: Lead,
        tell: impl FnOnce(),
    ) {
        let old = self.slot(hash, row).map(Slot::half);
        // The new one first, so that a key that keeps its secret is found at any instant.
        self.insert(hash, row, half, lead);
        tell();
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

    /// Puts a larger segment in the place of the one that `hash` belongs to, or two.
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
        if self.told {
            self.replaced += 1;
            // Nobody else sets it.
            let _ = full.next.set(next);
        }
    }
}

impl Segment {
    fn is_full(&self) -> bool {
        let taken = self.taken.load(Ordering::Relaxed) as usize;
        taken >= limit(self.slots.len())
    }

    /// A copy of what belongs there, with a quarter more room than it takes.
    fn copy(&self, depth: u32, belongs: impl Fn(Hash) -> bool) -> Arc<Self> {
        let name = |slot: &Slot| slot.name.load(Ordering::Relaxed);
        let moves = |slot: &&Slot| {
            let name = name(slot);
            name != EMPTY && name != GONE && belongs(Hash::of_name(name))
        };
        let count = self.slots.iter().filter(moves).count();
        let copy = Self::new(depth, (count * 5 / 3).next_multiple_of(4).max(FIRST));
        for slot in self.slots.iter().filter(moves) {
            copy.insert(name(slot), slot.half(), slot.lead.load(Ordering::Relaxed));
        }
        Arc::new(copy)
    }
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;
