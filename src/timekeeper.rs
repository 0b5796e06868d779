//! The time of this process, called *own time*: its wall clock without sudden jumps, compared with other
//! clocks.
//!
//! If the wall clock is set back, own time ignores the step and continues on the monotonic clock. If the wall
//! clock jumps ahead by more than the allowance, own time follows only while the wall clock stays ahead. The
//! jump becomes permanent after it has lasted for the allowance, or when another clock agrees.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, MicroReading, Reading, micros};
use crate::core::checked_time::{CheckedTime, contradiction};
use crate::core::time::Timestamp;
use crate::observe;

/// A special value for an offset or an instant that is absent.
const NONE: i64 = i64::MIN;

/// 1 second, in microseconds. When the own offset has changed by more than this, it is compared with the
/// other clocks again. Smaller changes do not matter, because allowances are minutes.
const JUDGE_AGAIN: u64 = 1_000_000;

/// 2 minutes: the least difference between two clocks that counts as a contradiction. Nodes report their clocks
/// every 10 s and read the reports every 30 s, so a report is up to 40 s old when it is compared.
pub(crate) const LEAST_ALLOWANCE: Duration = Duration::from_secs(2 * 60);

/// The time of a process. An offset is the number of microseconds by which a wall clock is ahead of this
/// process's monotonic clock.
pub struct Timekeeper {
    clock: Arc<dyn Clock>,
    allowance: Duration,
    /// The largest accepted offset of the wall clock. Own time never uses a smaller offset.
    anchor: AtomicI64,
    /// The monotonic time at which the current excursion began, or [`NONE`]. During an excursion the wall
    /// clock is ahead of the anchor by more than the allowance.
    ahead_since: AtomicI64,
    /// The smallest offset during the current excursion.
    least_ahead: AtomicI64,
    /// The offset of the other clocks if they contradict the own offset, or else [`NONE`].
    contradicting: AtomicI64,
    /// The own offset at its last comparison with the other clocks.
    judged_for: AtomicI64,
    references: Mutex<References>,
}

/// The last known offsets of other clocks, which serve as references.
#[derive(Debug, Default)]
struct References {
    server: Option<i64>,
    nodes: Vec<i64>,
    /// True if the last comparison found a clock too far from the own clock. A warning is logged when this
    /// becomes true.
    warned: bool,
}

impl References {
    fn all(&self) -> impl Iterator<Item = i64> {
        self.server.into_iter().chain(self.nodes.iter().copied())
    }
}

impl fmt::Debug for Timekeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timekeeper")
            .field("clock", &self.clock)
            .field("allowance", &self.allowance)
            .finish_non_exhaustive()
    }
}

/// As a clock, the timekeeper returns own time as wall time. All parts of the process read this clock.
impl Clock for Timekeeper {
    fn now(&self) -> Timestamp {
        self.own(Reading::of(&*self.clock)).wall
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    #[inline]
    fn read(&self) -> Reading {
        self.own(self.clock.read())
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.clock.sleep(duration)
    }
}

impl Timekeeper {
    /// Creates a timekeeper over `clock`. Other clocks may differ from `clock` by `allowance`, which is
    /// raised to at least two minutes.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, allowance: Duration) -> Self {
        Self {
            clock,
            allowance: allowance.max(LEAST_ALLOWANCE),
            anchor: AtomicI64::new(NONE),
            ahead_since: AtomicI64::new(NONE),
            least_ahead: AtomicI64::new(NONE),
            contradicting: AtomicI64::new(NONE),
            judged_for: AtomicI64::new(NONE),
            references: Mutex::default(),
        }
    }

    pub(crate) const fn allowance(&self) -> Duration {
        self.allowance
    }

    /// Reads the clocks without adjustment, so the wall time may jump. The staleness of a replica is measured
    /// with these readings.
    pub(crate) fn raw(&self) -> Reading {
        let reading = Reading::of(&*self.clock);
        self.own(reading);
        reading
    }

    /// Reads the clocks for a verification. Returns the unadjusted reading, and the time for checking a key's
    /// expiry. This time is the process's own time. If the clocks of the database server and the other nodes
    /// contradict it, it is their time instead.
    #[inline]
    pub(crate) fn judged(&self) -> (MicroReading, Timestamp) {
        let reading = MicroReading::of(self.clock.read());
        let MicroReading { wall, monotonic } = reading;
        let own = self.own_offset(wall, monotonic);
        if own.abs_diff(self.judged_for.load(Ordering::Acquire)) > JUDGE_AGAIN {
            self.judge_again(own);
        }
        let offset = match self.contradicting.load(Ordering::Relaxed) {
            NONE => own,
            contradicting => contradicting,
        };
        (reading, instant(offset, monotonic))
    }

    /// Returns the reading with own time in place of the wall time.
    #[inline]
    fn own(&self, Reading { wall, monotonic }: Reading) -> Reading {
        let micros = micros(monotonic);
        Reading {
            wall: instant(self.own_offset(wall.as_micros(), micros), micros),
            monotonic,
        }
    }

    /// Returns whether another clock agrees with `now`, which was read together with `monotonic`. If the
    /// other clocks contradict the own clock, `now` was derived from one of them, so a second one must agree.
    #[cold]
    pub(crate) fn confirms(&self, now: Timestamp, monotonic: i64) -> bool {
        let offset = now.as_micros().saturating_sub(monotonic);
        let allowed = self.allowed().unsigned_abs();
        let needed = match self.contradicting.load(Ordering::Relaxed) {
            NONE => 1,
            _ => 2,
        };
        let references = self.references();
        let agrees = |other: &i64| other.abs_diff(offset) <= allowed;
        references.all().filter(agrees).nth(needed - 1).is_some()
    }

    /// Returns the time for a decision.
    pub(crate) fn check(&self) -> CheckedTime {
        let Reading { wall, monotonic } = self.own(Reading::of(&*self.clock));
        let monotonic = micros(monotonic);
        let reference = self.judge(wall.as_micros() - monotonic, &self.references());
        let held = match self.ahead_since.load(Ordering::Relaxed) {
            NONE => wall,
            _ => instant(self.anchor.load(Ordering::Relaxed), monotonic),
        };
        CheckedTime {
            own: wall,
            held,
            reference: reference.map(|offset| instant(offset, monotonic)),
            allowance: self.allowance,
        }
    }

    /// Records the time of the store's server, from the response to a request. `sent` is the monotonic time
    /// of that request. Ignores a slow response, because its time may be as old as the request.
    pub(crate) fn saw_server(&self, said: Option<Timestamp>, sent: Duration) {
        let answered = self.clock.monotonic();
        let soon = answered.saturating_sub(sent) <= self.allowance / 4;
        if let Some(said) = said.filter(|_| soon) {
            let offset = said.as_micros() - micros(answered);
            self.note(|references| references.server = Some(offset));
        }
    }

    /// Records the times of other live nodes. Each time comes with the monotonic time at which this process
    /// read it.
    pub(crate) fn saw_nodes(&self, said: impl IntoIterator<Item = (Timestamp, Duration)>) {
        let offset = |(said, at): (Timestamp, Duration)| said.as_micros() - micros(at);
        let nodes: Vec<_> = said.into_iter().map(offset).collect();
        self.note(|references| references.nodes = nodes);
    }

    fn note(&self, change: impl FnOnce(&mut References)) {
        let Reading { wall, monotonic } = self.own(Reading::of(&*self.clock));
        let own = wall.as_micros() - micros(monotonic);
        let (ahead, warn) = {
            let mut references = self.references();
            change(&mut references);
            self.judge(own, &references);
            let furthest = references.all().max_by_key(|other| other.abs_diff(own));
            let ahead = furthest.map_or(0, |other| own.saturating_sub(other));
            // After a warning the threshold is halved. A difference that varies around the threshold is
            // therefore logged only once.
            let parts = if references.warned { 4 } else { 2 };
            let far = ahead.unsigned_abs() > self.allowed().unsigned_abs() / parts;
            let warned = std::mem::replace(&mut references.warned, far);
            (ahead, far && !warned)
        };
        let ahead_seconds = Duration::from_micros(ahead.unsigned_abs()).as_secs_f64();
        let ahead_seconds = ahead_seconds.copysign(if ahead < 0 { -1.0 } else { 1.0 });
        observe::clock_offset(ahead_seconds);
        if warn {
            tracing::warn!(
                ahead_seconds,
                "this node's clock differs from another clock"
            );
        }
    }

    fn references(&self) -> MutexGuard<'_, References> {
        self.references
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the allowance in microseconds.
    fn allowed(&self) -> i64 {
        i64::try_from(self.allowance.as_micros()).unwrap_or(i64::MAX)
    }

    /// Returns the offset of own time.
    #[inline]
    fn own_offset(&self, wall: i64, monotonic: i64) -> i64 {
        let offset = wall.saturating_sub(monotonic);
        let anchor = self.anchor.load(Ordering::Relaxed);
        if offset <= anchor && self.ahead_since.load(Ordering::Relaxed) == NONE {
            return anchor;
        }
        self.follow(offset, monotonic);
        offset.max(anchor)
    }

    /// Moves the anchor forward if the wall clock is within the allowance. After a larger jump ahead, moves
    /// it only once the jump has lasted for the allowance, or once another clock confirms the jump.
    #[cold]
    fn follow(&self, offset: i64, monotonic: i64) {
        let anchor = self.anchor.load(Ordering::Relaxed);
        let steps = anchor != NONE && offset > anchor.saturating_add(self.allowed());
        if !steps {
            self.anchor.fetch_max(offset, Ordering::Relaxed);
            self.ahead_since.store(NONE, Ordering::Relaxed);
            return;
        }
        let began = self.ahead_since.load(Ordering::Relaxed);
        let least = match began {
            NONE => offset,
            _ => self.least_ahead.load(Ordering::Relaxed).min(offset),
        };
        self.least_ahead.store(least, Ordering::Relaxed);
        if began == NONE {
            self.ahead_since.store(monotonic, Ordering::Relaxed);
        }
        let held = began != NONE && monotonic.saturating_sub(began) >= self.allowed();
        // If another thread holds the lock, this call skips the confirmation. That thread compares the own
        // clock with the other clocks anyway.
        let agrees = |other: i64| other.abs_diff(offset) <= self.allowed().unsigned_abs();
        let confirmed = || {
            self.references
                .try_lock()
                .is_ok_and(|others| others.all().any(agrees))
        };
        if held || confirmed() {
            self.anchor.fetch_max(least, Ordering::Relaxed);
            self.ahead_since.store(NONE, Ordering::Relaxed);
        }
    }

    #[cold]
    fn judge_again(&self, own: i64) {
        self.judge(own, &self.references());
    }

    fn judge(&self, own: i64, references: &References) -> Option<i64> {
        let others = (references.server, &*references.nodes);
        let contradicting = contradiction(own, others, self.allowed());
        // This store happens-before the release store of `judged_for`. A thread that loads the new
        // `judged_for` with acquire therefore also sees the new `contradicting`.
        self.contradicting
            .store(contradicting.unwrap_or(NONE), Ordering::Relaxed);
        self.judged_for.store(own, Ordering::Release);
        contradicting
    }
}

#[inline]
fn instant(offset: i64, monotonic: i64) -> Timestamp {
    Timestamp::clamped(offset.saturating_add(monotonic))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::ManualClock;

    const MINUTE: i64 = 60_000_000;
    const ALLOWED: i64 = 5 * MINUTE;
    /// The monotonic time at which a manual clock starts, in microseconds.
    const FIRST: i64 = 1_000_000;

    fn keeper() -> Timekeeper {
        let clock = ManualClock::at(Timestamp::UNIX_EPOCH);
        Timekeeper::new(Arc::new(clock), CheckedTime::ALLOWANCE)
    }

    fn reading(wall: i64, monotonic: i64) -> Reading {
        Reading {
            wall: Timestamp::clamped(wall),
            monotonic: Duration::from_micros(monotonic.unsigned_abs()),
        }
    }

    /// Computes own time directly from the rules, from all readings so far as `(wall, monotonic)`.
    fn by_the_rule(readings: &[(i64, i64)]) -> i64 {
        let mut anchor = None;
        let mut held: Vec<(i64, i64)> = Vec::new();
        for &(wall, monotonic) in readings {
            let offset = wall - monotonic;
            let steps = anchor.is_some_and(|anchor| offset > anchor + ALLOWED);
            if !steps {
                anchor = anchor.max(Some(offset));
                held.clear();
                continue;
            }
            held.push((offset, monotonic));
            if monotonic - held[0].1 >= ALLOWED {
                anchor = held.iter().map(|(offset, _)| *offset).min();
                held.clear();
            }
        }
        let (wall, monotonic) = readings[readings.len() - 1];
        wall.max(anchor.unwrap_or(i64::MIN).saturating_add(monotonic))
    }

    proptest! {
        #[test]
        fn own_time_is_by_the_rule(
            steps in prop::collection::vec((0..3 * MINUTE, -20 * MINUTE..20 * MINUTE), 1..40)
        ) {
            let keeper = keeper();
            let (mut wall, mut monotonic) = (1_000_000 * MINUTE, 0);
            let mut readings = Vec::new();
            for (passes, jumps) in steps {
                monotonic += passes;
                // Two of three readings do not jump.
                let jumps = if jumps % 3 == 0 { jumps } else { 0 };
                wall += passes + jumps;
                readings.push((wall, monotonic));
                let own = keeper.own(reading(wall, monotonic)).wall.as_micros();
                prop_assert_eq!(own, by_the_rule(&readings));
                prop_assert!(own >= wall);
            }
        }
    }

    /// A clock that advances by four minutes at each read, as if the thread were interrupted there.
    #[derive(Debug)]
    struct Interrupted(ManualClock);

    impl Clock for Interrupted {
        fn now(&self) -> Timestamp {
            self.0.advance(Duration::from_secs(240));
            self.0.now()
        }

        fn monotonic(&self) -> Duration {
            self.0.advance(Duration::from_secs(240));
            self.0.monotonic()
        }
    }

    #[test]
    fn an_interruption_between_two_clocks_puts_no_reading_ahead() {
        let clock = Arc::new(Interrupted(ManualClock::at(Timestamp::UNIX_EPOCH)));
        let keeper = Timekeeper::new(clock.clone(), CheckedTime::ALLOWANCE);
        for _ in 0..5 {
            let own = [keeper.now(), keeper.read().wall, keeper.check().own];
            assert!(own.into_iter().all(|own| own <= clock.0.now()), "{own:?}");
        }
    }

    #[test]
    fn a_step_that_a_reference_confirms_is_permanent_immediately() {
        let hour = 60 * MINUTE;
        let start = 1_000_000 * MINUTE;
        for (server, kept) in [(start + hour, true), (start, false)] {
            let keeper = keeper();
            keeper.own(reading(start, FIRST));
            keeper.saw_server(Some(Timestamp::clamped(server)), Duration::ZERO);
            keeper.own(reading(start + hour, FIRST));
            let after = keeper.own_offset(start, FIRST);
            assert_eq!(after + FIRST == start + hour, kept);
        }
    }

    #[test]
    fn a_contradicted_clock_gives_way_to_the_references() {
        let keeper = keeper();
        let start = 1_000_000 * MINUTE;
        keeper.saw_server(Some(Timestamp::clamped(start)), Duration::ZERO);
        let judged = |wall| {
            keeper.judge(wall - FIRST, &keeper.references());
            match keeper.contradicting.load(Ordering::Relaxed) {
                NONE => wall,
                contradicting => contradicting + FIRST,
            }
        };
        assert_eq!(judged(start + ALLOWED), start + ALLOWED);
        assert_eq!(judged(start + ALLOWED + 2_000_000), start);
        let confirms = || keeper.confirms(Timestamp::clamped(start), FIRST);
        assert!(!confirms(), "it is the server's own");
        keeper.saw_nodes([(Timestamp::clamped(start), Duration::from_secs(1))]);
        judged(start + ALLOWED + 2_000_000);
        assert!(confirms());
        let far = Timestamp::clamped(start + ALLOWED + 1);
        assert!(!keeper.confirms(far, FIRST));
    }

    #[test]
    fn the_allowance_has_a_least() {
        let clock = Arc::new(ManualClock::at(Timestamp::UNIX_EPOCH));
        let keeper = Timekeeper::new(clock, Duration::ZERO);
        assert_eq!(keeper.allowance(), LEAST_ALLOWANCE);
    }
}
