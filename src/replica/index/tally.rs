//! Use counts: how often each key was used, and when it was last used. A count is one word per key. The words
//! are stored apart from the rows, so that many counts share a cache line.

use super::memory::prefetch;
use super::sync::{AtomicU64, Ordering};

/// The use count of one key.
#[derive(Default)]
pub(super) struct Tally(AtomicU64);

/// 64 seconds: the unit in which the time of a key's last use is stored.
const MINUTE: u32 = 64;
/// 1 January 2020 as Unix time: the time that is stored as zero. From there, 24 bits of 64-second units reach
/// to the year 2054.
const FIRST_MINUTE: u32 = 1_577_836_800;
const MINUTE_BITS: u32 = 24;
const MINUTES: u64 = (1 << MINUTE_BITS) - 1;
const MOST_USES: u64 = (1 << 40) - 1;

impl Tally {
    /// Prefetches the count.
    pub(super) fn prefetch(&self) {
        prefetch(&self.0);
    }

    /// Adds `uses` to the count. The last of these uses was at Unix time `second`.
    ///
    /// One word holds 40 bits of count, and 24 bits of time in units of 64 seconds.
    pub(super) fn count(&self, uses: u64, second: u32) {
        let minute = u64::from(second.saturating_sub(FIRST_MINUTE) / MINUTE).min(MINUTES);
        let more = |word: u64| {
            let count = (word >> MINUTE_BITS).saturating_add(uses).min(MOST_USES);
            count << MINUTE_BITS | (word & MINUTES).max(minute)
        };
        let mut known = self.0.load(Ordering::Relaxed);
        while let Err(other) =
            self.0
                .compare_exchange_weak(known, more(known), Ordering::Relaxed, Ordering::Relaxed)
        {
            known = other;
        }
    }

    /// Returns the number of uses, and the Unix time of the last use in seconds.
    pub(super) fn uses(&self) -> (u64, u32) {
        let word = self.0.load(Ordering::Relaxed);
        let last = (word & MINUTES) as u32 * MINUTE + FIRST_MINUTE;
        (word >> MINUTE_BITS, last)
    }
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;
