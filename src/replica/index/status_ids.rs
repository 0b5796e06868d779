//! The number of each key owner's current status, in one byte where it fits.
//!
//! Every verification reads one of these numbers. As bytes, the numbers of a million owners fit in a processor's cache.

use super::chunks::Chunks;
use super::sync::{AtomicU8, AtomicU32, Ordering};

/// The byte of each number from 255 on.
const LONG: u8 = u8::MAX;

/// The numbers, by the number of the key owner. Has one writer, and any number of readers without a lock.
#[derive(Default)]
pub(super) struct StatusIds {
    short: Chunks<AtomicU8>,
    /// The numbers whose byte is [`LONG`].
    long: Chunks<AtomicU32>,
}

impl StatusIds {
    /// Returns the owner's number. `None` if no number was ever set near it.
    ///
    /// Both loads pair with the Release stores in [`set`](Self::set). So a reader that gets a number sees the entry
    /// that the writer made before it set the number.
    #[inline]
    pub(super) fn get(&self, key_owner: u32) -> Option<u32> {
        match self.short.get(key_owner)?.load(Ordering::Acquire) {
            LONG => Some(self.long.get(key_owner)?.load(Ordering::Acquire)),
            short => Some(short.into()),
        }
    }

    /// Sets the owner's number. A reader gets the old or the new number, and no other. Until this call returns, it may get
    /// the new number and then the old one.
    pub(super) fn set(&self, key_owner: u32, status: u32) {
        let short = u8::try_from(status).ok().filter(|short| *short != LONG);
        if short.is_none() {
            // First the number, and then the byte that leads to it.
            self.long.at(key_owner).store(status, Ordering::Release);
        }
        let byte = short.unwrap_or(LONG);
        self.short.at(key_owner).store(byte, Ordering::Release);
    }
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;

#[cfg(all(test, not(keyward_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_last_one_that_was_set() {
        let ids = StatusIds::default();
        assert_eq!(ids.get(7), None);
        for status in [0, 1, 254, 255, 256, 3, 70_000, u32::MAX, 254, 255, 0] {
            ids.set(7, status);
            ids.set(8, !status);
            assert_eq!((ids.get(7), ids.get(8)), (Some(status), Some(!status)));
        }
        assert_eq!(ids.get(9), Some(0), "never set, but near numbers that were");
    }
}
