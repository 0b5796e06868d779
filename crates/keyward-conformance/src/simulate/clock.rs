//! The clocks of a machine: a wall clock that can jump, and a monotonic clock whose rate can be wrong.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::world::{SimInstant, SimulatedWorld};
use keyward::clocks::Reading;
use keyward::rules::CheckedTime;
use keyward::{Clock, Timestamp};

/// 1,800,000,000 s after the Unix epoch, the time at which every run starts. The value has no meaning.
const START: i64 = 1_800_000_000;

/// A fault of a node's clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ClockFault {
    /// The monotonic clock reports wall time.
    Wall,
    /// The monotonic clock stands still while the machine is suspended.
    Stops,
}

/// The state of a machine's wall clock and monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockState {
    /// The rate error of the monotonic clock, in millionths. A positive error makes the clock fast.
    rate: i64,
    /// The simulated time at which the rate last changed. `shown` is the reading of the monotonic clock at
    /// that time, in nanoseconds.
    since: SimInstant,
    shown: u64,
    /// The offset of the wall clock from real time, in microseconds.
    ahead: i64,
    /// The total length of all suspends except the last one, in nanoseconds of the machine's own clock.
    suspended: u64,
    /// The start and the end of the last suspend, in simulated time.
    nap: (SimInstant, SimInstant),
}

impl ClockState {
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

    pub(super) fn monotonic(&self, now: SimInstant) -> Duration {
        Duration::from_nanos(self.shown + self.elapsed(self.since, now))
    }

    /// Returns the reading of the monotonic clock at `now`, as a node with this clock fault reads it.
    fn shown_by(&self, fault: Option<ClockFault>, now: SimInstant) -> Duration {
        match fault {
            None => self.monotonic(now),
            Some(ClockFault::Wall) => self.wall(now).since(Timestamp::UNIX_EPOCH),
            Some(ClockFault::Stops) => {
                let stopped = Duration::from_nanos(self.asleep(now));
                self.monotonic(now).saturating_sub(stopped)
            }
        }
    }

    pub(super) fn wall(&self, now: SimInstant) -> Timestamp {
        let micros = now.cast_signed().saturating_add(self.ahead);
        Timestamp::from_micros(START * 1_000_000 + micros).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Changes the rate error of the monotonic clock from `now` on, in millionths.
    pub(super) fn drift(&mut self, now: SimInstant, rate: i64) {
        self.shown += self.elapsed(self.since, now);
        (self.since, self.rate) = (now, rate);
    }

    pub(super) fn jump(&mut self, by: i64) {
        self.ahead = self.ahead.saturating_add(by);
    }

    /// Suspends the machine from `now` to `until`.
    pub(super) fn suspend(&mut self, now: SimInstant, until: SimInstant) {
        self.suspended = self.asleep(now);
        self.nap = (now, until);
    }

    fn asleep(&self, now: SimInstant) -> u64 {
        let (from, until) = self.nap;
        let end = until.min(now).max(from);
        self.suspended + self.elapsed(from, end)
    }

    /// Returns the nanoseconds by which the monotonic clock advances between two simulated times.
    fn elapsed(&self, from: SimInstant, to: SimInstant) -> u64 {
        let micros = to.saturating_sub(from);
        micros * 1_000_000_u64.saturating_add_signed(self.rate) / 1_000
    }
}

/// The time by which a node judges keys, derived from all clock readings since the node started. A second
/// implementation of [`CheckedTime`].
#[derive(Clone, Debug, Default)]
pub(super) struct NodeTime {
    /// The clock fault that the node has, if any.
    fault: Option<ClockFault>,
    /// The highest offset of the wall clock from the monotonic clock so far, in microseconds. A forward step
    /// of the wall clock counts only once it has lasted.
    anchor: Option<i64>,
    /// The readings since the wall clock stepped forward, which may still turn out to be temporary. Each
    /// reading is `(offset, monotonic)`.
    held: Vec<(i64, i64)>,
}

impl NodeTime {
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

    /// Returns the time by which the node judges keys at the simulated time `now`.
    pub(super) fn at(&self, clock: &ClockState, now: SimInstant) -> Timestamp {
        let (wall, monotonic) = (clock.wall(now), clock.shown_by(self.fault, now));
        let anchored = |anchor: i64| Timestamp::clamped(anchor + micros(monotonic));
        self.anchor
            .map_or(wall, |anchor| anchored(anchor).max(wall))
    }
}

fn micros(monotonic: Duration) -> i64 {
    i64::try_from(monotonic.as_micros()).unwrap_or(i64::MAX)
}

/// The clocks of a machine as its node reads them, including the node's clock fault.
#[derive(Clone)]
pub(super) struct SimulatedClock {
    world: Arc<SimulatedWorld>,
    machine: usize,
    fault: Option<ClockFault>,
}

impl fmt::Debug for SimulatedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimulatedClock")
            .field(&self.machine)
            .finish()
    }
}

impl SimulatedClock {
    /// Creates the clock of a node that starts, and resets `node_time` of its machine.
    pub(super) fn new(
        world: Arc<SimulatedWorld>,
        machine: usize,
        fault: Option<ClockFault>,
    ) -> Self {
        world.state().machines[machine].node_time = NodeTime {
            fault,
            ..NodeTime::default()
        };
        Self {
            world,
            machine,
            fault,
        }
    }
}

impl Clock for SimulatedClock {
    /// Never ends: in a simulation, the store answers or fails every call.
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }

    fn now(&self) -> Timestamp {
        let monotonic = self.monotonic();
        let mut state = self.world.state();
        let now = state.now;
        let machine = &mut state.machines[self.machine];
        let wall = machine.clock.wall(now);
        machine.node_time.note(wall, monotonic);
        wall
    }

    fn monotonic(&self) -> Duration {
        let state = self.world.state();
        state.machines[self.machine]
            .clock
            .shown_by(self.fault, state.now)
    }

    /// Verification calls this method after it has looked up the key. The simulation may preempt the thread
    /// between the lookup and the reading.
    fn read(&self) -> Reading {
        self.world.interrupt(self.machine);
        Reading {
            wall: self.now(),
            monotonic: self.monotonic(),
        }
    }
}
