//! Clocks: the sources of time.
//!
//! Wall time decides expiry and grace. Monotonic time measures the staleness of a replica, and advances while
//! the machine is suspended.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_listener::Event;

use crate::core::time::Timestamp;

/// A source of wall and monotonic time.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the wall-clock time, which may jump. A [`Timekeeper`](crate::node::Timekeeper) ignores jumps
    /// back, and compares jumps forward with other clocks, if there are any (`docs/time.md`).
    fn now(&self) -> Timestamp;

    /// Returns the time since a fixed instant. Must never go back, and must advance while the machine is
    /// suspended.
    fn monotonic(&self) -> Duration;

    /// Reads both clocks. A verification calls this method, usually once, so an implementation may make it cheaper
    /// than two separate reads. If the clocks are read one after the other, the wall clock must be read
    /// first.
    fn read(&self) -> Reading {
        Reading {
            wall: self.now(),
            monotonic: self.monotonic(),
        }
    }

    /// Waits until the monotonic clock has advanced by `duration`.
    ///
    /// By default, a thread of the `futures-timer` crate wakes the caller, with any async runtime. A clock
    /// that a test moves should instead complete the wait once the test has moved it by `duration`.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(futures_timer::Delay::new(duration))
    }
}

/// The times of both clocks at one instant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reading {
    /// See [`Clock::now`].
    pub wall: Timestamp,
    /// See [`Clock::monotonic`].
    pub monotonic: Duration,
}

impl Reading {
    /// Reads the wall clock, then the monotonic clock. In this order, an interruption between the two reads
    /// never makes the wall clock seem further ahead than it is.
    ///
    /// Callers that hold a lock use this function instead of [`Clock::read`]. A simulated `Clock::read` lets
    /// other threads run first, which may need that lock.
    ///
    /// For callers that hold a lock: a simulated [`Clock::read`] lets other threads run first.
    pub(crate) fn of(clock: &dyn Clock) -> Self {
        let wall = clock.now();
        let monotonic = clock.monotonic();
        Self { wall, monotonic }
    }

    /// Returns the time since `earlier`: the longer of the times that the two clocks measured. The wall clock
    /// matters if a virtual machine is paused, because its monotonic clock may not count the pause. If the
    /// wall clock was set back, only the monotonic clock counts.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let monotonic = self.monotonic.saturating_sub(earlier.monotonic);
        monotonic.max(self.wall.since(earlier.wall))
    }
}

/// A [`Reading`] in whole microseconds, which are faster to compare than durations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct MicroReading {
    pub(crate) wall: i64,
    pub(crate) monotonic: i64,
}

impl MicroReading {
    #[inline]
    pub(crate) fn of(Reading { wall, monotonic }: Reading) -> Self {
        Self {
            wall: wall.as_micros(),
            monotonic: micros(monotonic),
        }
    }

    pub(crate) fn to_reading(self) -> Reading {
        Reading {
            wall: Timestamp::clamped(self.wall),
            monotonic: Duration::from_micros(self.monotonic.unsigned_abs()),
        }
    }

    /// Returns whether [`Reading::since`] is at most `bound` microseconds. A verification makes this check.
    #[inline]
    pub(crate) const fn is_within(self, bound: i64, earlier: Self) -> bool {
        // A monotonic clock beyond the last microsecond stands still, so it proves nothing.
        self.monotonic < i64::MAX
            && self.monotonic.saturating_sub(earlier.monotonic) <= bound
            && self.wall.saturating_sub(earlier.wall) <= bound
    }
}

/// Returns a time in whole microseconds. Cheaper than `as_micros`, which computes with 128 bits. 64 bits are enough
/// for 292,000 years.
#[inline]
pub(crate) fn micros(time: Duration) -> i64 {
    let whole = time.as_secs().saturating_mul(1_000_000);
    let micros = whole.saturating_add(time.subsec_micros().into());
    i64::try_from(micros).unwrap_or(i64::MAX)
}

/// 10 ms, in microseconds: the time for which a comparison of the two clocks is reused. A hundred comparisons per second
/// cost almost nothing, and a change of the wall clock shows at most 10 ms late.
const COMPARE_EVERY: i64 = 10_000;

/// The last comparison: the microseconds by which the wall clock was ahead of the monotonic clock, and the
/// monotonic time in microseconds. Static, because a machine has one of each clock.
static AHEAD: AtomicI64 = AtomicI64::new(0);
static COMPARED: AtomicI64 = AtomicI64::new(NEVER);

/// The value of [`COMPARED`] before the first comparison: far in the future, so that no time is shortly after it.
const NEVER: i64 = i64::MAX;

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where wall time is read"
    )]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::UNIX_EPOCH.saturating_add(since)
    }

    /// Reads the monotonic clock, and derives the wall time from it if the clocks were compared less than 10
    /// ms ago.
    fn read(&self) -> Reading {
        let monotonic = self.monotonic();
        let micros = micros(monotonic);
        let compared = COMPARED.load(Ordering::Acquire);
        let known = (0..COMPARE_EVERY).contains(&micros.saturating_sub(compared));
        let derived = known.then(|| {
            let ahead = AHEAD.load(Ordering::Relaxed);
            Timestamp::from_micros(micros.saturating_add(ahead)).ok()
        });
        if let Some(wall) = derived.flatten() {
            return Reading { wall, monotonic };
        }
        let wall = self.now();
        let after = self.monotonic();
        // An interruption between the two reads makes the comparison invalid, so it is not stored. If two
        // threads store comparisons concurrently, a thread may combine an older difference with a newer time.
        // That difference is reused for at most another 10 ms.
        if after.saturating_sub(monotonic) < Duration::from_millis(1) {
            let ahead = wall.as_micros().saturating_sub(micros);
            AHEAD.store(ahead, Ordering::Relaxed);
            COMPARED.store(micros, Ordering::Release);
        }
        Reading {
            wall,
            monotonic: after,
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn monotonic(&self) -> Duration {
        // std's `Instant` is CLOCK_MONOTONIC here, which stops while the machine is suspended.
        let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(at.tv_nsec).unwrap_or_default();
        Duration::new(seconds, nanos)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where monotonic time is read"
    )]
    fn monotonic(&self) -> Duration {
        // On Windows `Instant` counts the time while the machine is suspended. On macOS and other systems it
        // may not.
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed() + Duration::from_secs(1)
    }
}

/// A clock that moves only when a test or demonstration moves it.
///
/// # Examples
///
/// ```
/// use keyward::{Clock, ManualClock, Timestamp, days};
///
/// let start: Timestamp = "2026-01-01T00:00:00Z".parse()?;
/// let clock = ManualClock::at(start);
/// clock.advance(days(91));
/// assert_eq!(clock.now().to_string(), "2026-04-02T00:00:00Z");
/// # Ok::<(), keyward::command::Invalid>(())
/// ```
#[derive(Debug)]
pub struct ManualClock(Arc<ManualTime>);

#[derive(Debug)]
struct ManualTime {
    reading: Mutex<Reading>,
    moved: Event,
}

impl ManualTime {
    fn reading(&self) -> Reading {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ManualClock {
    /// Creates a clock that shows `wall`.
    #[must_use]
    pub fn at(wall: Timestamp) -> Self {
        // The monotonic clock starts at 1 s, because a lease that starts at zero counts as absent.
        let reading = Mutex::new(Reading {
            wall,
            monotonic: Duration::from_secs(1),
        });
        let moved = Event::new();
        Self(Arc::new(ManualTime { reading, moved }))
    }

    /// Advances both clocks.
    pub fn advance(&self, by: Duration) {
        self.change(|reading| {
            reading.wall = reading.wall.saturating_add(by);
            reading.monotonic = reading.monotonic.saturating_add(by);
        });
    }

    /// Sets only the wall clock, forwards or backwards, as an operator or a time server would.
    pub fn set_wall(&self, to: Timestamp) {
        self.change(|reading| reading.wall = to);
    }

    fn change(&self, change: impl FnOnce(&mut Reading)) {
        change(
            &mut self
                .0
                .reading
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.0.moved.notify(usize::MAX);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.0.reading().wall
    }

    fn monotonic(&self) -> Duration {
        self.0.reading().monotonic
    }

    fn read(&self) -> Reading {
        self.0.reading()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let time = self.0.clone();
        let until = time.reading().monotonic.saturating_add(duration);
        Box::pin(async move {
            loop {
                // Listens before the check, so that no move between the two is missed.
                let moved = time.moved.listen();
                if time.reading().monotonic >= until {
                    return;
                }
                moved.await;
            }
        })
    }
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn monotonic(&self) -> Duration {
        (**self).monotonic()
    }

    fn read(&self) -> Reading {
        (**self).read()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        (**self).sleep(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_agrees_with_the_calendar_and_goes_on() {
        let clock = SystemClock;
        assert!(clock.now() > "2025-01-01T00:00:00Z".parse().unwrap());
        let earlier = clock.monotonic();
        assert!(clock.monotonic() >= earlier && earlier > Duration::ZERO);
    }

    #[test]
    fn both_clocks_at_once_are_the_clocks_read_one_by_one() {
        let clock = SystemClock;
        for _ in 0..1000 {
            let before = (clock.now(), clock.monotonic());
            let Reading { wall, monotonic } = clock.read();
            let after = (clock.now(), clock.monotonic());
            assert!(before.1 <= monotonic && monotonic <= after.1);
            // The results may differ slightly: both reads round to microseconds, and the two clocks are read
            // one after the other.
            let slack = Duration::from_millis(5);
            assert!(
                wall.saturating_add(slack) >= before.0 && after.0.saturating_add(slack) >= wall
            );
        }
    }

    #[test]
    fn the_time_passed_is_the_longer_of_the_two_differences() {
        let second = Duration::from_secs;
        let at = |wall, monotonic| Reading {
            wall: Timestamp::UNIX_EPOCH.saturating_add(second(wall)),
            monotonic: second(monotonic),
        };
        assert_eq!(at(107, 17).since(at(100, 10)), second(7));
        assert_eq!(
            at(160, 17).since(at(100, 10)),
            second(60),
            "not all was counted"
        );
        assert_eq!(at(40, 17).since(at(100, 10)), second(7), "set back");
    }

    #[test]
    fn a_reading_is_within_a_bound_where_no_more_passed() {
        let at = |wall, monotonic| Reading {
            wall: Timestamp::UNIX_EPOCH.saturating_add(Duration::from_micros(wall)),
            monotonic: Duration::from_micros(monotonic),
        };
        let earlier = at(1_000_000, 1_000_000);
        let micro = Duration::from_micros(1);
        let instants = [0, 999_999, 1_000_000, 1_000_001, 2_000_000, 2_000_001];
        for (wall, monotonic) in instants.iter().flat_map(|w| instants.map(|m| (*w, m))) {
            let reading = at(wall, monotonic);
            let passed = reading.since(earlier);
            for bound in [
                Duration::ZERO,
                passed.saturating_sub(micro),
                passed,
                passed + micro / 2,
                Duration::MAX,
            ] {
                let [reading, earlier] = [reading, earlier].map(MicroReading::of);
                let within = reading.is_within(micros(bound), earlier);
                assert_eq!(within, passed <= bound, "{passed:?} of {bound:?}");
            }
        }
        let last = MicroReading::of(at(0, u64::MAX));
        assert!(!last.is_within(i64::MAX, last), "the clock stands still");
    }

    #[test]
    fn a_sleep_ends_when_the_clock_has_moved_far_enough() {
        let clock = ManualClock::at(Timestamp::UNIX_EPOCH);
        let mut sleep = clock.sleep(Duration::from_secs(5));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut is_over = || sleep.as_mut().poll(&mut context).is_ready();
        assert!(!is_over());
        clock.advance(Duration::from_secs(4));
        clock.set_wall(Timestamp::MAX);
        assert!(!is_over());
        clock.advance(Duration::from_secs(1));
        assert!(is_over());
    }

    #[test]
    fn moving_the_wall_clock_leaves_the_monotonic_one() {
        let clock = ManualClock::at(Timestamp::UNIX_EPOCH);
        let before = clock.monotonic();
        clock.set_wall(Timestamp::MAX);
        assert_eq!((clock.now(), clock.monotonic()), (Timestamp::MAX, before));
    }
}
