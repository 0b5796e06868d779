//! The number of each key owner's current status, and a bit for each owner whose number has changed.
//!
//! A slot holds a copy of its owner's number. The copy is right as long as the owner's bit is not set. So most
//! verifications read one bit of the owner, and the bits of a million owners fit in a processor's second cache. A change
//! of a status sets one bit, and thereby reaches all keys of the owner.

use super::chunks::Chunks;
use super::sync::{AtomicU32, AtomicU64, Ordering};

/// 31 statuses have numbers that fit in a slot: the numbers below this one. Services have few roles.
pub(super) const FIT_IN_SLOT: u32 = 31;

/// The numbers, by the number of the key owner. Has one writer, and any number of readers without a lock.
#[derive(Default)]
pub(super) struct StatusIds {
    /// The number of each owner, plus 1. Zero if the owner has none yet.
    current: Chunks<AtomicU32>,
    /// A bit for each owner whose number has changed.
    changed: Chunks<AtomicU64>,
    /// The number of bits that are set. Only the writer uses it.
    count: AtomicU32,
}

impl StatusIds {
    /// Returns the owner's number. `None` if it was never set. `copy` is the number in a slot that was loaded before
    /// this call.
    ///
    /// The writer sets the bit before it confirms the change. A confirmation is stored with Release, and loaded with
    /// Acquire before the slot. So a reader of a confirmation finds the bit of each change that was confirmed.
    ///
    /// The load of a bit that is set, and the load of a number, pair with the Release operations in [`set`](Self::set). So
    /// a reader that gets a number sees the entry that the writer made before. A copy is as visible as the slot that has
    /// it.
    #[inline]
    pub(super) fn get(&self, key_owner: u32, copy: Option<u32>) -> Option<u32> {
        let (word, bit) = place(key_owner);
        let word = self.changed.get(word)?.load(Ordering::Acquire);
        match copy {
            Some(copy) if word & bit == 0 => Some(copy),
            _ => self.current(key_owner),
        }
    }

    fn current(&self, key_owner: u32) -> Option<u32> {
        let number = self.current.get(key_owner)?.load(Ordering::Acquire);
        number.checked_sub(1)
    }

    /// Sets the owner's number. A reader without a confirmation of the change may get the old number or the new one.
    pub(super) fn set(&self, key_owner: u32, status: u32) {
        let current = self.current.at(key_owner);
        let (word, bit) = place(key_owner);
        let changed = self.changed.at(word);
        let before = current.load(Ordering::Relaxed);
        let now = status.saturating_add(1);
        if before == now {
            return;
        }
        // First the number, and then the bit that leads to it. So a reader does not get the old number after the new one.
        current.store(now, Ordering::Release);
        let is_news = before != 0 && changed.load(Ordering::Relaxed) & bit == 0;
        if is_news {
            changed.fetch_or(bit, Ordering::Release);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of owners whose bits are set.
    pub(super) fn changed(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Clears the bits of the owners with numbers below `owners`. Before any reader gets the index, the caller must
    /// write the current numbers to all slots.
    pub(super) fn forget_changes(&self, owners: u32) {
        for word in 0..owners.div_ceil(u64::BITS) {
            if let Some(word) = self.changed.get(word) {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.count.store(0, Ordering::Relaxed);
    }
}

/// Returns the number of the word with the bit of an owner, and the bit.
#[inline]
const fn place(key_owner: u32) -> (u32, u64) {
    (key_owner / u64::BITS, 1 << (key_owner % u64::BITS))
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;

#[cfg(all(test, not(keyward_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_the_last_one_that_was_set() {
        let ids = StatusIds::default();
        assert_eq!((ids.get(7, None), ids.get(9, None)), (None, None));
        for status in [0, 1, 254, 3, 70_000, u32::MAX - 1, 0] {
            ids.set(7, status);
            assert_eq!((ids.get(7, None), ids.get(9, None)), (Some(status), None));
        }
    }

    proptest! {
        /// Slots copy the number when they are written, and again when the bits are cleared.
        #[test]
        fn a_copy_never_hides_a_change(
            steps in prop::collection::vec((0..3_usize, 0..4_u32, 0..5_u8), 0..60),
        ) {
            let ids = StatusIds::default();
            let owners = [63, 64, 1000];
            let (mut right, mut copies) = ([None; 3], [None; 3]);
            for (of, status, step) in steps {
                match step {
                    0 => copies[of] = right[of],
                    1 => {
                        ids.forget_changes(1001);
                        copies = right;
                    }
                    _ => {
                        ids.set(owners[of], status);
                        right[of] = Some(status);
                    }
                }
                for (of, owner) in owners.into_iter().enumerate() {
                    prop_assert_eq!(ids.get(owner, copies[of]), right[of]);
                }
            }
        }
    }

    #[test]
    fn each_owner_counts_once() {
        let ids = StatusIds::default();
        for (status, count) in [(0, 0), (1, 100), (1, 100), (2, 100)] {
            (0..100).for_each(|owner| ids.set(owner, status));
            assert_eq!(ids.changed(), count);
        }
        ids.forget_changes(100);
        assert_eq!(ids.changed(), 0);
        ids.set(70, 7);
        assert_eq!((ids.changed(), ids.get(70, Some(2))), (1, Some(7)));
    }
}
