//! The clocks of a machine: a wall clock that jumps, and a monotonic one that drifts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::world::{Instant, World};
use crate::clock::{Clock, Reading};
use crate::core::time::Timestamp;

/// When runs begin, in seconds since the epoch. Any instant would do.
const START: i64 = 1_800_000_000;

/// What is wrong with a node's clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// Wall time is taken for monotonic time.
    Wall,
    /// The monotonic clock stops while the machine is suspended.
    Stops,
}

/// Where a machine's clocks stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hands {
    /// By how many millionths the monotonic clock is fast.
    rate: i64,
    /// When that was last changed, and what the clock showed then, in nanoseconds.
    since: Instant,
    shown: u64,
    /// By how many microseconds the wall clock is ahead.
    ahead: i64,
    /// For how long the machine was suspended so far, in nanoseconds of its own.
    suspended: u64,
    /// When it was suspended last, and until when.
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

    /// The machine is suspended until an instant.
    pub(super) fn suspend(&mut self, now: Instant, until: Instant) {
        self.suspended = self.asleep(now);
        self.nap = (now, until);
    }

    fn asleep(&self, now: Instant) -> u64 {
        let (from, until) = self.nap;
        let end = until.min(now).max(from);
        self.suspended + self.elapsed(from, end)
    }

    /// Nanoseconds of its own.
    fn elapsed(&self, from: Instant, to: Instant) -> u64 {
        let micros = to.saturating_sub(from);
        micros * 1_000_000_u64.saturating_add_signed(self.rate) / 1_000
    }
}

/// A machine's clocks, as its node reads them.
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
    pub(super) const fn new(world: Arc<World>, place: usize, fault: Option<Fault>) -> Self {
        Self {
            world,
            place,
            fault,
        }
    }
}

impl Clock for PlaceClock {
    fn now(&self) -> Timestamp {
        let state = self.world.state();
        state.places[self.place].hands.wall(state.now)
    }

    fn monotonic(&self) -> Duration {
        let state = self.world.state();
        let hands = &state.places[self.place].hands;
        match self.fault {
            None => hands.monotonic(state.now),
            Some(Fault::Wall) => hands.wall(state.now).since(Timestamp::UNIX_EPOCH),
            Some(Fault::Stops) => {
                let stopped = Duration::from_nanos(hands.asleep(state.now));
                hands.monotonic(state.now).saturating_sub(stopped)
            }
        }
    }

    /// Verifications alone read both, after they have looked the key up: a thread may be interrupted
    /// just before.
    fn read(&self) -> Reading {
        self.world.interrupt(self.place);
        Reading {
            wall: self.now(),
            monotonic: self.monotonic(),
        }
    }
}
