//! Limits on reads through the store: how many are in flight, and how many begin in a second, over
//! all keys.
//!
//! [`next`] is pure. The gate keeps the state of the rate limit in one atomic word, and takes the time as an
//! argument.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_lock::{Semaphore, SemaphoreGuardArc};

/// The limits on a verifier's reads through the store, so that a flood of unknown ids does not
/// become a flood of reads. Beyond these limits a key is refused as
/// [`Busy`](crate::VerifyError::Busy), never as a bad key. So is a wrong secret of a known key, which takes part
/// in the limits without a read: a refusal does not reveal which keys exist.
///
/// Reads for a caller who presents the secret of a known key do not count. So a flood of unknown ids never
/// locks out holders of keys that are always verified against the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ReadThroughLimits {
    /// The largest number of reads in flight. Defaults to 16.
    pub max_in_flight: NonZeroU32,
    /// The largest number of reads that begin per second, in the long run. Defaults to 1000: many times what
    /// the creation of keys needs, and a fraction of a store's capacity.
    pub per_second: NonZeroU32,
    /// The largest number of reads that may begin together after a quiet time. Defaults to 100.
    pub burst: NonZeroU32,
    /// The longest time that a verification waits for the store. Defaults to 5 s: longer than a busy store needs,
    /// and shorter than the patience of most clients.
    pub timeout: Duration,
}

impl ReadThroughLimits {
    /// Returns the limits after `change`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Default for ReadThroughLimits {
    fn default() -> Self {
        const fn count(count: u32) -> NonZeroU32 {
            NonZeroU32::new(count).expect("every default limit is above zero")
        }
        Self {
            max_in_flight: const { count(16) },
            per_second: const { count(1000) },
            burst: const { count(100) },
            timeout: Duration::from_secs(5),
        }
    }
}

/// A rate limiter for reads.
#[derive(Debug)]
pub(super) struct Gate {
    max_in_flight: Arc<Semaphore>,
    /// Nanoseconds from one read to the next, in the long run.
    interval: u64,
    /// The burst in nanoseconds: how far ahead of the rate a read may begin.
    ahead: u64,
    /// The time at which the bucket is full again, in nanoseconds of the monotonic clock.
    full_at: AtomicU64,
    timeout: Duration,
}

/// A permit for one read. Dropping the permit makes room for another read.
pub(super) type ReadPermit = SemaphoreGuardArc;

impl Gate {
    pub(super) fn new(bounds: ReadThroughLimits) -> Self {
        let ReadThroughLimits {
            max_in_flight,
            per_second,
            burst,
            timeout,
        } = bounds;
        // Rounded up, so that no second exceeds the limit. A limit above 10⁹ a second acts like 10⁹, because
        // the shortest interval is 1 ns.
        let interval = 1_000_000_000_u64.div_ceil(u64::from(per_second.get()));
        Self {
            max_in_flight: Arc::new(Semaphore::new(max_in_flight.get() as usize)),
            interval,
            ahead: interval.saturating_mul(u64::from(burst.get()) - 1),
            full_at: AtomicU64::new(0),
            timeout,
        }
    }

    /// Returns the longest time that a verification waits for its read.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns whether the limit on reads in flight is reached.
    pub(super) fn is_full(&self) -> bool {
        self.max_in_flight.try_acquire_arc().is_none()
    }

    /// Returns a permit for one read, if the limits allow one now.
    pub(super) fn admit(&self, now: Duration) -> Option<ReadPermit> {
        // Acquire the permit first. So a read that is refused because too many are in flight does not use up
        // the rate.
        let permit = self.max_in_flight.try_acquire_arc()?;
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let spend = |full_at| next(full_at, now, self.interval, self.ahead);
        let spent = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
        spent.is_ok().then_some(permit)
    }
}

/// Returns the time at which the bucket is full again if a read begins `now`; `None` if the read
/// may not begin. Uses the generic cell rate algorithm (ITU-T I.371), as virtual scheduling.
fn next(full_at: u64, now: u64, interval: u64, ahead: u64) -> Option<u64> {
    let from = full_at.max(now);
    (from - now <= ahead).then(|| from.saturating_add(interval))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A naive token bucket of `size` tokens. Its level is stored as the time in nanoseconds that filling
    /// took.
    struct Bucket {
        interval: u64,
        size: u64,
        filled: u64,
        last: u64,
    }

    impl Bucket {
        fn take(&mut self, now: u64) -> bool {
            self.filled = (self.filled + (now - self.last)).min(self.size * self.interval);
            self.last = now;
            let enough = self.filled >= self.interval;
            if enough {
                self.filled -= self.interval;
            }
            enough
        }
    }

    fn count(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    fn bounds(per_second: u32, burst: u32) -> ReadThroughLimits {
        ReadThroughLimits {
            per_second: count(per_second),
            burst: count(burst),
            ..ReadThroughLimits::default()
        }
    }

    proptest! {
        #[test]
        fn the_rate_limiter_admits_the_reads_that_a_token_bucket_admits(
            interval in 1..1000_u64,
            size in 1..20_u64,
            steps in prop::collection::vec(0..3000_u64, 1..200),
        ) {
            let mut bucket = Bucket { interval, size, filled: size * interval, last: 0 };
            let (mut now, mut full_at) = (0, 0);
            for step in steps {
                now += step;
                let then = next(full_at, now, interval, interval * (size - 1));
                prop_assert_eq!(then.is_some(), bucket.take(now));
                full_at = then.unwrap_or(full_at);
            }
        }
    }

    #[test]
    fn a_second_holds_the_burst_and_the_rate_and_no_more() {
        let gate = Gate::new(bounds(3, 2));
        let begun = |upto: u64| {
            let tries = (0..upto).map(|ms| gate.admit(Duration::from_millis(1000 + ms)));
            tries.filter(Option::is_some).count()
        };
        assert_eq!(
            begun(1000),
            2 + 2,
            "the third of the second comes at its end"
        );
    }

    #[test]
    fn a_read_refused_for_too_many_in_flight_uses_up_nothing_of_the_rate() {
        let one = ReadThroughLimits {
            max_in_flight: count(1),
            ..bounds(1, 2)
        };
        let gate = Gate::new(one);
        let now = Duration::from_secs(1);
        let permit = gate.admit(now).unwrap();
        assert!((0..10).all(|_| gate.admit(now).is_none()));
        drop(permit);
        assert!(gate.admit(now).is_some());
        assert!(gate.admit(now).is_none(), "and the burst is spent");
    }

    #[test]
    fn no_rate_and_no_time_overflows() {
        let most = Gate::new(bounds(u32::MAX, u32::MAX));
        assert!(most.admit(Duration::MAX).is_some());
        let slowest = Gate::new(bounds(1, u32::MAX));
        assert!(slowest.admit(Duration::MAX).is_some());
        assert!(slowest.admit(Duration::ZERO).is_none());
    }
}
