//! How many reads go through to the store: so many at once, and so many a second over all keys.
//!
//! [`next`] is pure; the gate holds its state in one word, and reads the injected clock.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_lock::{Semaphore, SemaphoreGuardArc};

/// How many keys a verifier may read through the store: a flood of unknown ids must not become a
/// flood of reads. Beyond it a key is refused as
/// [`StoreUnavailable`](crate::Rejection::StoreUnavailable), never as a bad key.
///
/// What is asked for by a holder of a key that is known here does not count: a flood keeps nobody
/// out who holds a key of a class that is always verified against the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReadThrough {
    /// How many reads are on their way at once. Defaults to 16, a judgement.
    pub at_once: NonZeroU32,
    /// How many begin in a second, in the long run. Defaults to 1000, a judgement: many times what
    /// creating keys asks for, and a fraction of what a store can do.
    pub per_second: NonZeroU32,
    /// How many may begin together after a quiet time. Defaults to 100, a judgement.
    pub burst: NonZeroU32,
}

impl Default for ReadThrough {
    fn default() -> Self {
        const fn count(count: u32) -> NonZeroU32 {
            NonZeroU32::new(count).expect("no count here is zero")
        }
        Self {
            at_once: const { count(16) },
            per_second: const { count(1000) },
            burst: const { count(100) },
        }
    }
}

/// Lets reads through, within its bounds.
#[derive(Debug)]
pub(super) struct Gate {
    at_once: Arc<Semaphore>,
    /// Nanoseconds from one read to the next, in the long run.
    interval: u64,
    /// How many nanoseconds of intervals may be spent in advance.
    ahead: u64,
    /// When the bucket is full again, in nanoseconds of the monotonic clock.
    full_at: AtomicU64,
}

/// Leave to read, until it is dropped.
pub(super) type Permit = SemaphoreGuardArc;

impl Gate {
    pub(super) fn new(bounds: ReadThrough) -> Self {
        let ReadThrough {
            at_once,
            per_second,
            burst,
        } = bounds;
        // Rounded up, so that a second never holds more; 10⁹ a second are as good as any number.
        let interval = 1_000_000_000_u64.div_ceil(u64::from(per_second.get()));
        Self {
            at_once: Arc::new(Semaphore::new(at_once.get() as usize)),
            interval,
            ahead: interval.saturating_mul(u64::from(burst.get()) - 1),
            full_at: AtomicU64::new(0),
        }
    }

    /// Leave for one read, if there is any now.
    pub(super) fn admit(&self, now: Duration) -> Option<Permit> {
        // First: what cannot begin costs nothing of the rate.
        let permit = self.at_once.try_acquire_arc()?;
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let spend = |full_at| next(full_at, now, self.interval, self.ahead);
        let spent = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
        spent.is_ok().then_some(permit)
    }
}

/// When the bucket is full again if a read begins `now`; `None` if it may not. The generic cell rate
/// algorithm (ITU-T I.371), as virtual scheduling.
fn next(full_at: u64, now: u64, interval: u64, ahead: u64) -> Option<u64> {
    let from = full_at.max(now);
    (from - now <= ahead).then(|| from.saturating_add(interval))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bucket that holds `size` tokens, counted in nanoseconds of filling: the naive way.
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

    fn bounds(per_second: u32, burst: u32) -> ReadThrough {
        ReadThrough {
            per_second: count(per_second),
            burst: count(burst),
            ..ReadThrough::default()
        }
    }

    proptest! {
        #[test]
        fn it_lets_through_what_a_bucket_of_tokens_does(
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
    fn what_is_refused_for_being_too_many_at_once_costs_nothing_of_the_rate() {
        let one = ReadThrough {
            at_once: count(1),
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
