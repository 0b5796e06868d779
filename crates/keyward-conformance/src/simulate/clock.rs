//! The clocks of a machine: a wall clock that jumps, and a monotonic one that drifts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::world::{Instant, World};
use keyward::rules::CheckedTime;
use keyward::time::Reading;
use keyward::{Clock, Timestamp};

/// The start of every run, in seconds since the epoch. Any instant works.
const START: i64 = 1_800_000_000;

/// A fault of a node's clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// The monotonic clock reports wall time.
    Wall,
    /// The monotonic clock stops while the machine is suspended.
    Stops,
}

/// The state of a machine's clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hands {
    /// The rate error of the monotonic clock, in millionths. Positive if the clock is fast.
    rate: i64,
    /// The instant of the last change of the rate, and the clock's value at that instant, in
    /// nanoseconds.
    since: Instant,
    shown: u64,
    /// The offset of the wall clock from real time, in microseconds.
    ahead: i64,
    /// The total time in suspend before `nap`, in nanoseconds of the machine's clock.
    suspended: u64,
    /// The start and the end of the last suspend.
    nap: (Instant, Instant),
}

impl Hands {
    pub(super) const fn new(rate: i64, shown: u64, ahead: i64) -> Self {
        Self {
            rate,
            since: 0,
            shown,
            ahead,
            suspended: 0,
            nap: (0, 0),
        }
    }

    pub(super) fn monotonic(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.shown + self.elapsed(self.since, now))
    }

    /// Returns the monotonic clock's value as the clock reports it with this fault.
    fn shown_by(&self, fault: Option<Fault>, now: Instant) -> Duration {
        match fault {
            None => self.monotonic(now),
            Some(Fault::Wall) => self.wall(now).since(Timestamp::UNIX_EPOCH),
            Some(Fault::Stops) => {
                let stopped = Duration::from_nanos(self.asleep(now));
                self.monotonic(now).saturating_sub(stopped)
            }
        }
    }

    pub(super) fn wall(&self, now: Instant) -> Timestamp {
        let micros = now.cast_signed().saturating_add(self.ahead);
        Timestamp::from_micros(START * 1_000_000 + micros).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Sets the rate error, in millionths.
    pub(super) fn drift(&mut self, now: Instant, rate: i64) {
        self.shown += self.elapsed(self.since, now);
        (self.since, self.rate) = (now, rate);
    }

    pub(super) fn jump(&mut self, by: i64) {
        self.ahead = self.ahead.saturating_add(by);
    }

    /// Suspends the machine until an instant.
    pub(super) fn suspend(&mut self, now: Instant, until: Instant) {
        self.suspended = self.asleep(now);
        self.nap = (now, until);
    }

    fn asleep(&self, now: Instant) -> u64 {
        let (from, until) = self.nap;
        let end = until.min(now).max(from);
        self.suspended + self.elapsed(from, end)
    }

    /// Returns the elapsed nanoseconds of the machine's clock.
    fn elapsed(&self, from: Instant, to: Instant) -> u64 {
        let micros = to.saturating_sub(from);
        micros * 1_000_000_u64.saturating_add_signed(self.rate) / 1_000
    }
}

/// A node's own time by the crate's rule: derived from all clock readings since the node's start.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnTime {
    /// The fault of the node's clock, if it has one.
    fault: Option<Fault>,
    /// The highest offset of the wall clock from the monotonic clock, in microseconds. Forward
    /// steps that did not last are left out.
    anchor: Option<i64>,
    /// The readings since the wall clock stepped forward, each as `(offset, monotonic)`.
    held: Vec<(i64, i64)>,
}

impl OwnTime {
    const ALLOWED: i64 = CheckedTime::ALLOWANCE.as_micros() as i64;

    fn note(&mut self, wall: Timestamp, monotonic: Duration) {
        let monotonic = micros(monotonic);
        let offset = wall.as_micros() - monotonic;
        let steps = |anchor: i64| offset > anchor + Self::ALLOWED;
        if !self.anchor.is_some_and(steps) {
            self.anchor = self.anchor.max(Some(offset));
            self.held.clear();
            return;
        }
        self.held.push((offset, monotonic));
        if monotonic - self.held[0].1 >= Self::ALLOWED {
            self.anchor = self.held.iter().map(|(offset, _)| *offset).min();
            self.held.clear();
        }
    }

    /// Returns the node's own time at `now`.
    pub(super) fn at(&self, hands: &Hands, now: Instant) -> Timestamp {
        let (wall, monotonic) = (hands.wall(now), hands.shown_by(self.fault, now));
        let anchored = |anchor: i64| Timestamp::clamped(anchor + micros(monotonic));
        self.anchor
            .map_or(wall, |anchor| anchored(anchor).max(wall))
    }
}

fn micros(monotonic: Duration) -> i64 {
    i64::try_from(monotonic.as_micros()).unwrap_or(i64::MAX)
}

/// A machine's clocks, as the machine's node reads them.
#[derive(Clone)]
pub(super) struct PlaceClock {
    world: Arc<World>,
    place: usize,
    fault: Option<Fault>,
}

impl fmt::Debug for PlaceClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlaceClock").field(&self.place).finish()
    }
}

impl PlaceClock {
    /// Creates the clocks of a machine on which a node starts.
    pub(super) fn new(world: Arc<World>, place: usize, fault: Option<Fault>) -> Self {
        world.state().places[place].own_time = OwnTime {
            fault,
            ..OwnTime::default()
        };
        Self {
            world,
            place,
            fault,
        }
    }
}

impl Clock for PlaceClock {
    fn now(&self) -> Timestamp {
        let monotonic = self.monotonic();
        let mut state = self.world.state();
        let now = state.now;
        let place = &mut state.places[self.place];
        let wall = place.hands.wall(now);
        place.own_time.note(wall, monotonic);
        wall
    }

    fn monotonic(&self) -> Duration {
        let state = self.world.state();
        state.places[self.place]
            .hands
            .shown_by(self.fault, state.now)
    }

    /// Only verification calls `read`, after the lookup. The simulation may preempt the thread just
    /// before the reading.
    fn read(&self) -> Reading {
        self.world.interrupt(self.place);
        Reading {
            wall: self.now(),
            monotonic: self.monotonic(),
        }
    }
}
