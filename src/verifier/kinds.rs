//! Kinds of keys, and the cache in which a need remembers the kinds that met it.

use std::array;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// 18 bits for the number of a key's traits.
const TRAITS_BITS: u32 = 18;
/// 23 bits for the number of an owner's status.
const STATUS_BITS: u32 = 23;
/// 22 bits for the number of a snapshot.
const GENERATION_BITS: u32 = 22;
/// The uppermost bit, for a kind that suffices.
const SUFFICES: u64 = 1 << 63;

/// A combination of snapshot, traits and owner status, in one word. Either all keys of a kind meet a need, or
/// none of them does. A principal's key and a tenant's key never have the same kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Kind(NonZeroU64);

/// The number of a snapshot, unique within the process.
#[derive(Clone, Copy)]
pub(super) struct Generation(NonZeroU64);

impl Generation {
    /// Draws the next number. Returns `None` once all numbers are used up.
    pub(super) fn draw() -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let next = NonZeroU64::new(next).filter(|next| next.get() >> GENERATION_BITS == 0);
        next.map(Self)
    }

    /// Returns the kind of keys with these traits and this owner status. `None` if the numbers do not fit in
    /// one word.
    #[inline]
    pub(super) fn kind(self, traits: u32, status: u32) -> Option<Kind> {
        if traits >> TRAITS_BITS != 0 || status >> STATUS_BITS != 0 {
            return None;
        }
        let status = u64::from(status) << TRAITS_BITS;
        let generation = self.0.get() << (STATUS_BITS + TRAITS_BITS);
        NonZeroU64::new(generation | status | u64::from(traits)).map(Kind)
    }
}

/// 64 sets, and 4 places in each. So the cache takes 2 KiB. Most services issue fewer than 256 combinations
/// of scopes, class and role.
const SETS_BITS: u32 = 6;
const WAYS: usize = 4;

/// A lossy cache of the kinds that met a need. Every cached kind met the need. A kind may be evicted at any
/// time.
///
/// A place holds a whole kind, or 0. So no order between the loads and stores of different places matters.
#[derive(Default)]
pub(super) struct KindCache {
    /// One kind, stored inline so that a need that is used once allocates nothing.
    first: AtomicU64,
    /// All further kinds. Allocated when a second kind is added.
    more: OnceLock<Box<[KindSet; 1 << SETS_BITS]>>,
}

/// The places of all kinds with the same hash, in one half of a cache line.
#[derive(Default)]
#[repr(align(32))]
struct KindSet([AtomicU64; WAYS]);

impl Kind {
    /// Returns the same kind, marked as one that suffices: its keys [depend on their kind
    /// alone](crate::core::check::depends_on_kind_alone), and their class may be verified without reading the store.
    #[inline]
    pub(super) fn sufficing(self) -> Self {
        Self(self.0 | SUFFICES)
    }

    fn is_at(self, place: &AtomicU64) -> bool {
        place.load(Ordering::Relaxed) == self.0.get()
    }

    /// Returns whether a place holds no kind, or a kind of another snapshot. Such a kind is probably outdated.
    fn may_take(self, place: &AtomicU64) -> bool {
        let other = place.load(Ordering::Relaxed) ^ self.0.get();
        (other & !SUFFICES) >> (STATUS_BITS + TRAITS_BITS) != 0
    }

    /// Returns a hash with well mixed upper bits. Multiplicative hashing gives consecutive kinds different
    /// hashes (Knuth, volume 3, section 6.4).
    const fn hash(self) -> u64 {
        self.0.get().wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn set(self, sets: &[KindSet; 1 << SETS_BITS]) -> &[AtomicU64; WAYS] {
        &sets[(self.hash() >> (u64::BITS - SETS_BITS)) as usize].0
    }
}

impl KindCache {
    #[inline]
    pub(super) fn has(&self, kind: Kind) -> bool {
        let in_more = |sets: &Box<_>| kind.set(sets).iter().any(|place| kind.is_at(place));
        kind.is_at(&self.first) || self.more.get().is_some_and(in_more)
    }

    pub(super) fn note(&self, kind: Kind) {
        let place = if kind.may_take(&self.first) {
            &self.first
        } else {
            let sets = self
                .more
                .get_or_init(|| Box::new(array::from_fn(|_| KindSet::default())));
            let set = kind.set(sets);
            let free = set.iter().find(|place| kind.may_take(place));
            free.unwrap_or(&set[(kind.hash() >> 32) as usize % WAYS])
        };
        place.store(kind.0.get(), Ordering::Relaxed);
    }
}

/// Copies only the first cached kind, because most clones are changed and used once.
impl Clone for KindCache {
    fn clone(&self) -> Self {
        Self {
            first: AtomicU64::new(self.first.load(Ordering::Relaxed)),
            more: OnceLock::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(generation: u64, numbers: std::ops::Range<u32>) -> impl Iterator<Item = Kind> {
        let generation = Generation(NonZeroU64::new(generation).unwrap());
        numbers.map(move |number| generation.kind(number % 7, number).unwrap())
    }

    #[test]
    fn a_kind_differs_by_each_of_its_parts() {
        let [one, two] = [1, 2].map(|number| Generation(NonZeroU64::new(number).unwrap()));
        assert_eq!(one.kind(3, 4), one.kind(3, 4));
        for other in [
            two.kind(3, 4),
            one.kind(4, 4),
            one.kind(3, 5),
            one.kind(4, 3),
        ] {
            assert!(other.is_some() && other != one.kind(3, 4));
        }
        assert!(
            one.kind((1 << TRAITS_BITS) - 1, (1 << STATUS_BITS) - 1)
                .is_some()
        );
        let sufficing = one.kind(3, 4).map(Kind::sufficing);
        assert_ne!(sufficing, one.kind(3, 4));
        assert_eq!(sufficing, sufficing.map(Kind::sufficing));
        assert_eq!(one.kind(1 << TRAITS_BITS, 0), None);
        assert_eq!(one.kind(0, 1 << STATUS_BITS), None);
    }

    #[test]
    fn generations_are_drawn_once() {
        let drawn = [(); 3].map(|()| Generation::draw().unwrap().kind(0, 0));
        assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2]);
    }

    #[test]
    fn a_memory_has_nothing_that_was_not_noted() {
        let cache = KindCache::default();
        kinds(1, 0..1000).for_each(|kind| cache.note(kind));
        assert!(!kinds(1, 1000..100_000).any(|kind| cache.has(kind)));
        assert!(!kinds(2, 0..1000).any(|kind| cache.has(kind)));
        assert!(kinds(1, 0..1000).any(|kind| cache.has(kind)));
    }

    /// A service with 55 combinations of traits and status. Direct-mapped, about ten of them would evict each
    /// other for as long as the need lives.
    #[test]
    fn a_few_dozen_kinds_do_not_evict_each_other() {
        let cache = KindCache::default();
        kinds(1, 0..55).for_each(|kind| cache.note(kind));
        assert_eq!(kinds(1, 0..55).filter(|kind| cache.has(*kind)).count(), 55);
    }

    #[test]
    fn a_sufficing_kind_is_not_found_as_another_and_makes_room_like_one() {
        let cache = KindCache::default();
        let all = || kinds(1, 0..2000);
        all().for_each(|kind| cache.note(kind.sufficing()));
        assert!(!all().any(|kind| cache.has(kind)));
        assert!(all().any(|kind| cache.has(kind.sufficing())));
        kinds(2, 0..55).for_each(|kind| cache.note(kind));
        assert_eq!(kinds(2, 0..55).filter(|kind| cache.has(*kind)).count(), 55);
    }

    #[test]
    fn kinds_of_an_earlier_snapshot_make_room() {
        let cache = KindCache::default();
        kinds(1, 0..2000).for_each(|kind| cache.note(kind));
        kinds(2, 0..55).for_each(|kind| cache.note(kind));
        assert_eq!(kinds(2, 0..55).filter(|kind| cache.has(*kind)).count(), 55);
    }

    #[test]
    fn one_kind_at_a_time_allocates_nothing() {
        let cache = KindCache::default();
        for kind in (1..20).flat_map(|generation| kinds(generation, 0..1)) {
            cache.note(kind);
            assert!(cache.has(kind) && cache.clone().has(kind));
        }
        assert!(cache.more.get().is_none());
    }
}
