//! A hash table that finds the row of a key by the key's id or imported digest. A slot is 32 bytes of plain
//! atomics, two slots per cache line.
//!
//! The table has one writer, any number of readers, and no lock. Invariants:
//!
//! - A slot that readers can see keeps its hash, row and digest prefix until it is marked [`GONE`]. Its value
//!   is one atomic word, so no reader sees a partial change.
//! - If a segment is full, the writer fills a successor, and then links it to the old segment. Afterwards the
//!   writer never writes to the old segment again. Readers follow the link. A reader that is still in the old
//!   segment misses only changes made after its search began.
//! - A new slot is placed behind all others of its probe sequence, and no slot becomes free again. So a
//!   reader that passes a slot marked [`GONE`] finds the replacement further on. If slots were reused, the
//!   replacement could appear behind the reader, which would then miss a valid key.

use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::ledger::AttributeIds;
use super::memory::{self, prefetch};
use super::status_ids::FIT_IN_SLOT;
use super::sync::{AtomicU32, AtomicU64, OnceLock, Ordering};

/// The number of slots in the first segment: 64. Under loom, which explores every interleaving, only 4.
const FIRST: usize = if cfg!(keyward_loom) { 4 } else { 64 };
/// The number of slots from which a full segment is split in two: 8 MiB of slots. A segment has at most 14 MiB, and a
/// split copies that much. Few segments mean that the processor's cache keeps the whole directory, and large ones fill
/// huge pages.
///
/// Fewer in unit tests, so that they split many segments.
const LARGEST: usize = match (cfg!(keyward_loom), cfg!(test)) {
    (true, _) => 8,
    (_, true) => 4096,
    _ => 1 << 18,
};
/// The largest number of splits from which a segment can result: 14. This allows 2¹⁴ segments with 2³² slots
/// in total.
const DEEPEST: u32 = 14;

/// 32,768 slots, which is 1 MiB: replaced segments that may stay in memory however small the table is.
const SPARE_SLOTS: usize = 1 << 15;

/// The tag of a slot that never held a key.
const EMPTY: u64 = 0;
/// The tag of a slot that was replaced, because its key is now in another slot. No row has this tag, because
/// row numbers start at 1.
const GONE: u64 = 1;

/// Returns the number of slots of a segment that may be taken before the segment is replaced: three quarters.
///
/// A higher limit would save memory. But a search for an unknown id ends only at a free slot, so it would
/// take longer.
const fn limit(slots: usize) -> usize {
    slots / 4 * 3
}

/// The keyed hash of a key's id or imported digest. A slot stores the whole hash, so that the writer can
/// rebuild a segment from its slots alone. If two keys have the same hash, a search compares the digests of
/// both.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Hash(pub(super) u32);

impl Hash {
    /// Returns the index of the segment that contains this hash, if the first `depth` bits of a hash choose
    /// the segment.
    const fn segment(self, depth: u32) -> usize {
        // Convert to 64 bits first, because a 32-bit value cannot be shifted by 32.
        (self.0 as u64 >> (32 - depth)) as usize
    }

    /// Returns the index of the slot at which a search for this hash begins. The slot is chosen by the bits
    /// of the hash that did not choose the segment.
    const fn home(self, depth: u32, slots: usize) -> usize {
        let rest = (self.0 << depth) as u64;
        ((rest * slots as u64) >> 32) as usize
    }

    const fn tag(self, row: u32) -> u64 {
        (row as u64) << 32 | self.0 as u64
    }

    const fn of_tag(tag: u64) -> Self {
        Self(tag as u32)
    }
}

/// The first 128 bits of a digest: the part that the index stores and compares. RFC 2104, section 5, permits
/// an HMAC of half its length.
#[derive(Clone, Copy)]
pub(crate) struct DigestPrefix([u64; 2]);

impl DigestPrefix {
    /// The placeholder for slots whose digest is never compared. These are slots that are found by id, and
    /// whose key is imported, removed or unreadable.
    pub(super) const NONE: Self = Self([0; 2]);

    #[inline]
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

    /// Returns zero if the two prefixes are equal. Takes the same time for all values.
    const fn difference(self, other: Self) -> u64 {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1])
    }
}

#[derive(Default)]
#[repr(align(32))]
struct TableSlot {
    /// The row number and the hash in one word, or [`EMPTY`] for a free slot, or [`GONE`] for a replaced
    /// slot.
    tag: AtomicU64,
    digest_prefix: [AtomicU64; 2],
    value: AtomicU64,
}

/// The widths of the four fields in a slot's value, in bits. They have room for 16 million owners, for 131,072 sets of
/// traits, for 31 statuses, and for hours until the year 2054.
const UNTIL_BITS: u32 = 18;
const STATUS_BITS: u32 = 5;
const OWNER_BITS: u32 = 24;
const TRAITS_BITS: u32 = 17;

/// The value of a slot: the time until which the key is valid without reading its row, and the numbers of what the key
/// shares with others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SlotValue {
    /// The hour until which the key is valid without reading its row. Until then the key is enabled, does not await its
    /// first use, and does not expire. Hours last 4096 seconds, and count from [`FIRST_HOUR`](Self::FIRST_HOUR).
    /// [`ASK`](Self::ASK) and [`NEVER`](Self::NEVER) are special values.
    pub(super) until: u32,
    pub(super) attribute_ids: AttributeIds,
}

impl SlotValue {
    /// A special value: only the row shows whether the key is valid.
    pub(super) const ASK: u32 = 0;
    /// A special value: the key never expires.
    pub(super) const NEVER: u32 = (1 << UNTIL_BITS) - 1;
    /// The slot value that says nothing about its key. A verification that finds it must read the key's row.
    pub(super) const ROW: Self = Self {
        until: Self::ASK,
        attribute_ids: AttributeIds {
            key_owner: 0,
            traits: 0,
            status: None,
        },
    };

    /// The unit of `until`: 4096 seconds, which is called an hour here. A power of two makes the division cheap.
    pub(super) const HOUR: i64 = 4096;
    /// January 2020, in hours since the Unix epoch. From there, 18 bits of hours reach to the year 2054.
    pub(super) const FIRST_HOUR: i64 = 1_577_836_800 / Self::HOUR;

    /// Packs the value into one word. If the attribute ids are too large for their fields, returns the word
    /// of [`ROW`](Self::ROW), so that lookups read the row.
    const fn to_word(self) -> u64 {
        let AttributeIds {
            key_owner,
            traits,
            status,
        } = self.attribute_ids;
        if key_owner >> OWNER_BITS != 0 || traits >> TRAITS_BITS != 0 {
            return 0;
        }
        const { assert!(FIT_IN_SLOT < 1 << STATUS_BITS) };
        // The field has zero for no copy, and otherwise the number plus 1.
        let status = match status {
            Some(status) if status < FIT_IN_SLOT => status + 1,
            _ => 0,
        };
        let until = (self.until as u64) << STATUS_BITS | status as u64;
        (until << OWNER_BITS | key_owner as u64) << TRAITS_BITS | traits as u64
    }

    #[inline]
    fn from_word(word: u64) -> Self {
        let part = |from: u32, bits: u32| (word >> from) as u32 & ((1 << bits) - 1);
        Self {
            until: part(TRAITS_BITS + OWNER_BITS + STATUS_BITS, UNTIL_BITS),
            attribute_ids: AttributeIds {
                key_owner: part(TRAITS_BITS, OWNER_BITS),
                traits: part(0, TRAITS_BITS),
                status: part(TRAITS_BITS + OWNER_BITS, STATUS_BITS).checked_sub(1),
            },
        }
    }
}

struct TableSegment {
    /// The number of leading bits that all hashes in this segment have in common.
    depth: u32,
    slots: Box<[TableSlot]>,
    /// The number of slots that are not empty. Only the writer uses this number.
    taken: AtomicU32,
    next: OnceLock<Successor>,
}

/// The segment, or the two segments, that replace a full segment.
enum Successor {
    Larger(Arc<TableSegment>),
    Split([Arc<TableSegment>; 2]),
}

/// A snapshot of the table's segments. A reader starts at one of these segments, and follows its successors.
#[derive(Clone)]
pub(crate) struct Directory {
    depth: u32,
    segments: Arc<[Arc<TableSegment>]>,
}

/// The row number and the value of a slot that a search found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FoundSlot {
    pub(super) row: u32,
    pub(super) value: SlotValue,
}

/// The outcome of a search for a hash and a digest prefix.
#[derive(Clone, Copy)]
pub(crate) enum Search {
    /// A key with the presented digest prefix.
    Match(FoundSlot),
    /// One or several keys have this hash, but none has the presented digest prefix. Holds the first of these
    /// keys.
    NoMatch(FoundSlot),
    /// No key has this hash.
    Nothing,
}

/// A hash, and the segment in which to search for it.
pub(crate) struct Probe<'a> {
    segment: &'a TableSegment,
    hash: Hash,
}

impl Directory {
    /// Finds the segment in which to search for `hash`.
    #[inline]
    pub(super) fn probe(&self, hash: Hash) -> Probe<'_> {
        let segment = self.segments[hash.segment(self.depth)].newest(hash);
        Probe { segment, hash }
    }
}

impl TableSegment {
    fn new(depth: u32, slots: usize) -> Self {
        Self {
            depth,
            slots: memory::list(slots),
            taken: AtomicU32::new(0),
            next: OnceLock::new(),
        }
    }

    /// Returns the newest successor of this segment for `hash`, or the segment itself if it was not replaced.
    ///
    /// The writer fills a segment before it links the segment with `set`, and `get` loads with Acquire. So a
    /// reader that sees a successor sees all of its slots.
    #[inline]
    fn newest(&self, hash: Hash) -> &Self {
        let mut newest = self;
        while let Some(next) = newest.next.get() {
            newest = match next {
                Successor::Larger(larger) => larger,
                Successor::Split(halves) => &halves[hash.segment(newest.depth + 1) & 1],
            };
        }
        newest
    }

    /// Returns the taken slots of the segment, from the slot at which a search for `hash` begins up to the
    /// first free slot.
    #[inline]
    fn run(&self, hash: Hash) -> impl Iterator<Item = (&TableSlot, u64)> {
        let home = hash.home(self.depth, self.slots.len());
        let (before, from) = self.slots.split_at(home);
        let all = from.iter().chain(before);
        let candidates = all.map(|slot| (slot, slot.tag.load(Ordering::Acquire)));
        candidates.take_while(|(_, tag)| *tag != EMPTY)
    }

    fn candidates(&self, hash: Hash) -> impl Iterator<Item = FoundSlot> {
        let own = move |(_, tag): &(&TableSlot, u64)| *tag != GONE && Hash::of_tag(*tag) == hash;
        self.run(hash)
            .filter(own)
            .map(|(slot, tag)| slot.found(tag))
    }

    /// Fills the first free slot of the probe sequence. A free slot always exists, because the writer
    /// replaces a full segment before it inserts.
    fn insert(&self, tag: u64, digest_prefix: DigestPrefix, value: u64) {
        let hash = Hash::of_tag(tag);
        let home = hash.home(self.depth, self.slots.len());
        let (before, from) = self.slots.split_at(home);
        let mut all = from.iter().chain(before);
        let free = all.find(|slot| slot.tag.load(Ordering::Relaxed) == EMPTY);
        if let Some(slot) = free {
            slot.digest_prefix[0].store(digest_prefix.0[0], Ordering::Relaxed);
            slot.digest_prefix[1].store(digest_prefix.0[1], Ordering::Relaxed);
            slot.value.store(value, Ordering::Relaxed);
            // Store the tag last, with Release. This store pairs with the Acquire load in `run`: a reader
            // that sees the tag sees the whole slot. With the tag stored first, a reader could compare an
            // unset digest.
            slot.tag.store(tag, Ordering::Release);
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl TableSlot {
    #[inline]
    fn digest_prefix(&self) -> DigestPrefix {
        DigestPrefix([
            self.digest_prefix[0].load(Ordering::Relaxed),
            self.digest_prefix[1].load(Ordering::Relaxed),
        ])
    }

    #[inline]
    fn found(&self, tag: u64) -> FoundSlot {
        FoundSlot {
            row: row_of(tag),
            value: SlotValue::from_word(self.value.load(Ordering::Acquire)),
        }
    }
}

const fn row_of(tag: u64) -> u32 {
    (tag >> 32) as u32
}

impl<'a> Probe<'a> {
    /// Prefetches the slot at which the search begins, and the next cache line, where two of five searches end.
    #[inline]
    pub(super) fn prefetch(&self) {
        let slots = &self.segment.slots;
        let home = self.hash.home(self.segment.depth, slots.len());
        slots
            .iter()
            .skip(home)
            .step_by(2)
            .take(2)
            .for_each(prefetch);
    }

    /// Returns all slots with this hash, without comparing digest prefixes.
    pub(super) fn candidates(self) -> impl Iterator<Item = FoundSlot> + 'a {
        self.segment.candidates(self.hash)
    }

    /// Searches for a key with this hash and this digest prefix.
    #[inline]
    pub(super) fn search(self, digest_prefix: DigestPrefix) -> Search {
        let Self { segment, hash } = self;
        let mut other = None;
        for (slot, tag) in segment.run(hash) {
            if Hash::of_tag(tag) != hash || tag == GONE {
                continue;
            }
            // The comparison takes constant time. So timing reveals only whether the prefixes are equal, and
            // not in how many bits they differ (trap 6).
            if bool::from(slot.digest_prefix().difference(digest_prefix).ct_eq(&0)) {
                return Search::Match(slot.found(tag));
            }
            other = other.or(Some((slot, tag)));
        }
        match other {
            Some((slot, tag)) => Search::NoMatch(slot.found(tag)),
            None => Search::Nothing,
        }
    }
}

/// The writer's table: for each value of the leading hash bits, the newest segment.
pub(super) struct Table {
    depth: u32,
    segments: Vec<Arc<TableSegment>>,
    /// True if readers have a directory. If so, a replaced segment must be linked to its successor, so that
    /// these readers find it.
    published: bool,
    /// The number of slots in the segments replaced since the last call of `directory`.
    replaced: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            depth: 0,
            segments: vec![Arc::new(TableSegment::new(0, FIRST))],
            published: false,
            replaced: 0,
        }
    }
}

impl Table {
    /// Returns a snapshot of the current segments. Readers reach later segments through successors.
    pub(super) fn directory(&mut self) -> Directory {
        self.published = true;
        self.replaced = 0;
        Directory {
            depth: self.depth,
            segments: self.segments.iter().cloned().collect(),
        }
    }

    /// Returns whether readers should get a new directory. As long as the last one is in use, the segments that were
    /// replaced since stay in memory.
    pub(super) fn needs_new_directory(&self) -> bool {
        let all: usize = self.segments.iter().map(|own| own.slots.len()).sum();
        self.replaced > SPARE_SLOTS + all / 8
    }

    #[cfg(test)]
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Returns each segment once. A segment that is split less often than the others stands at several neighbouring
    /// places.
    fn distinct_segments(&self) -> impl Iterator<Item = &TableSegment> {
        let first = |(at, own): &(usize, &Arc<TableSegment>)| {
            *at == 0 || !Arc::ptr_eq(own, &self.segments[at - 1])
        };
        let segments = self.segments.iter().enumerate().filter(first);
        segments.map(|(_, segment)| &**segment)
    }

    /// Returns all slots with a key: the hash, the digest prefix, and the row with its value.
    pub(super) fn slots(&self) -> impl Iterator<Item = (Hash, DigestPrefix, FoundSlot)> {
        let slots = self.distinct_segments().flat_map(|own| &own.slots);
        let tagged = slots.map(|slot| (slot, slot.tag.load(Ordering::Relaxed)));
        let taken = tagged.filter(|(_, tag)| *tag != EMPTY && *tag != GONE);
        taken.map(|(slot, tag)| (Hash::of_tag(tag), slot.digest_prefix(), slot.found(tag)))
    }

    /// Returns the slots with this hash.
    pub(super) fn candidates(&self, hash: Hash) -> impl Iterator<Item = FoundSlot> {
        self.segment(hash).candidates(hash)
    }

    /// Returns whether a slot with this hash and row has `digest_prefix`.
    pub(super) fn has(&self, hash: Hash, row: u32, digest_prefix: DigestPrefix) -> bool {
        let own = |(slot, tag): (&TableSlot, u64)| {
            tag == hash.tag(row) && slot.digest_prefix().difference(digest_prefix) == 0
        };
        self.segment(hash).run(hash).any(own)
    }

    /// Sets the value of the slot with this hash and row.
    pub(super) fn set_value(&self, hash: Hash, row: u32, value: SlotValue) {
        if let Some(slot) = self.slot(hash, row) {
            slot.value.store(value.to_word(), Ordering::Release);
        }
    }

    /// Writes the number of each owner's current status to the slots of its keys. Slots that are free, and those that
    /// say nothing about their key, stay as they are.
    pub(super) fn copy_statuses(&self, current: impl Fn(u32) -> Option<u32>) {
        for slot in self.distinct_segments().flat_map(|own| &own.slots) {
            let mut value = SlotValue::from_word(slot.value.load(Ordering::Relaxed));
            if value != SlotValue::ROW {
                value.attribute_ids.status = current(value.attribute_ids.key_owner);
                slot.value.store(value.to_word(), Ordering::Release);
            }
        }
    }

    /// Adds a slot. If the segment of the hash is full, replaces the segment first.
    pub(super) fn insert(
        &mut self,
        hash: Hash,
        row: u32,
        digest_prefix: DigestPrefix,
        value: SlotValue,
    ) {
        while self.segment(hash).is_full() {
            self.make_room(hash);
        }
        let segment = self.segment(hash);
        segment.insert(hash.tag(row), digest_prefix, value.to_word());
    }

    /// Replaces the digest prefix in the slot of this hash and row, by inserting a new slot and marking the
    /// old one as gone.
    ///
    /// Calls `publish` while both slots exist. So a reader that sees the effect of `publish` also finds the
    /// new slot.
    pub(super) fn replace(
        &mut self,
        hash: Hash,
        row: u32,
        digest_prefix: DigestPrefix,
        value: SlotValue,
        publish: impl FnOnce(),
    ) {
        let old = self.slot(hash, row).map(TableSlot::digest_prefix);
        // Insert the new slot before marking the old one. In the other order, a reader between the two steps
        // would find neither slot, and reject a valid key.
        self.insert(hash, row, digest_prefix, value);
        publish();
        let Some(old) = old else { return };
        let segment = self.segment(hash);
        let own = |(slot, tag): &(&TableSlot, u64)| {
            *tag == hash.tag(row) && slot.digest_prefix().difference(old) == 0
        };
        if let Some((slot, _)) = segment.run(hash).find(own) {
            // Release: a reader that sees `GONE` also sees the new slot.
            slot.tag.store(GONE, Ordering::Release);
        }
    }

    fn segment(&self, hash: Hash) -> &TableSegment {
        &self.segments[hash.segment(self.depth)]
    }

    fn slot(&self, hash: Hash, row: u32) -> Option<&TableSlot> {
        let mut run = self.segment(hash).run(hash);
        let found = run.find(|(_, tag)| *tag == hash.tag(row));
        found.map(|(slot, _)| slot)
    }

    /// Replaces the full segment to which `hash` belongs, either by a larger segment or by two segments.
    fn make_room(&mut self, hash: Hash) {
        let full = self.segments[hash.segment(self.depth)].clone();
        let (depth, slots) = (full.depth, full.slots.len());
        let next = if slots < LARGEST || depth == DEEPEST {
            Successor::Larger(full.copy(depth, |_| true))
        } else {
            let split = |bit| full.copy(depth + 1, move |hash| hash.segment(depth + 1) & 1 == bit);
            Successor::Split([split(0), split(1)])
        };
        if full.depth == self.depth && matches!(next, Successor::Split(_)) {
            let twice = |segment: &Arc<TableSegment>| [segment.clone(), segment.clone()];
            self.segments = self.segments.iter().flat_map(twice).collect();
            self.depth += 1;
        }
        let share = 1 << (self.depth - depth);
        let first = hash.segment(depth) * share;
        for (at, place) in self.segments[first..first + share].iter_mut().enumerate() {
            *place = match &next {
                Successor::Larger(larger) => larger.clone(),
                Successor::Split(halves) => halves[at * 2 / share].clone(),
            };
        }
        if self.published {
            self.replaced += slots;
            // Only the writer sets `next`, so this call cannot fail.
            let _ = full.next.set(next);
        }
    }
}

impl TableSegment {
    fn is_full(&self) -> bool {
        let taken = self.taken.load(Ordering::Relaxed) as usize;
        taken >= limit(self.slots.len())
    }

    /// Returns a new segment with copies of those slots whose hash satisfies `belongs`. The new segment has
    /// room for a quarter more keys than it contains.
    fn copy(&self, depth: u32, belongs: impl Fn(Hash) -> bool) -> Arc<Self> {
        let tag = |slot: &TableSlot| slot.tag.load(Ordering::Relaxed);
        let moves = |slot: &&TableSlot| {
            let tag = tag(slot);
            tag != EMPTY && tag != GONE && belongs(Hash::of_tag(tag))
        };
        let count = self.slots.iter().filter(moves).count();
        let copy = Self::new(depth, (count * 5 / 3).next_multiple_of(4).max(FIRST));
        for slot in self.slots.iter().filter(moves) {
            copy.insert(
                tag(slot),
                slot.digest_prefix(),
                slot.value.load(Ordering::Relaxed),
            );
        }
        Arc::new(copy)
    }
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;

#[cfg(all(test, not(keyward_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A value that fits in a slot is read as it was written. A status that does not fit leaves the rest as it is.
        #[test]
        fn a_value_keeps_what_fits_in_its_word(
            until in 0_u32..1 << UNTIL_BITS,
            key_owner in 0_u32..1 << (OWNER_BITS + 1),
            traits in 0_u32..1 << (TRAITS_BITS + 1),
            status in prop_oneof![Just(None), (0_u32..40).prop_map(Some), Just(Some(u32::MAX))],
        ) {
            let value = SlotValue { until, attribute_ids: AttributeIds { key_owner, traits, status } };
            let fits = key_owner >> OWNER_BITS == 0 && traits >> TRAITS_BITS == 0;
            let status = status.filter(|status| *status < FIT_IN_SLOT);
            let kept = AttributeIds { key_owner, traits, status };
            let expected = match fits {
                true => SlotValue { until, attribute_ids: kept },
                false => SlotValue::ROW,
            };
            prop_assert_eq!(SlotValue::from_word(value.to_word()), expected);
        }
    }
}
