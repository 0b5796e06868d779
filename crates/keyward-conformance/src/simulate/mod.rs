//! Runs several nodes over one remote store in simulated time, and checks the propagation guarantee
//! at every step.
//!
//! One seed decides everything:
//!
//! - the latency of each message, and which messages are lost;
//! - when a node is cut off, stopped, suspended or restarted;
//! - how its wall clock jumps and its monotonic clock drifts;
//! - which commands are given, and when each key is presented to which node.
//!
//! The same seed produces the same run.
//!
//! The guarantee: **a key whose revocation returned at real time t is refused by every verifier from
//! t + B on**, B = L / (1 - ρ), where L is the staleness bound and ρ the rate error of a node's
//! monotonic clock. The check is stricter: it counts from the instant at which the change landed.
//!
//! The checks are themselves tested with nodes that are broken on purpose: see
//! [`Defect`].
//!
//! # Examples
//!
//! ```
//! use keyward_conformance::simulate::{Defect, Options, Simulation, Subject};
//!
//! let report = Simulation::new(7, Options::default()).run()?;
//! assert!(report.acceptances > 0);
//!
//! let broken = Options::default().of(Subject::Broken(Defect::ConnectedIsFresh));
//! let found = (0..100).find_map(|seed| Simulation::new(seed, broken.clone()).run().err());
//! println!("{}", found.expect("a hundred runs are enough"));
//! # Ok::<(), keyward_conformance::simulate::Violation>(())
//! ```

mod ambush;
mod clock;
mod dice;
mod drive;
mod fate;
mod ledger;
mod link;
mod node;
mod sketch;
mod world;

use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

pub use self::sketch::Defect;
use keyward::store::{KeyStore, MemoryStore};

/// A property that a simulation checks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Invariant {
    /// No node accepts a key that was ended or narrowed longer ago than the bound.
    NeverPastBound,
    /// A change applies immediately on the node that made it.
    AtOnceWhereApplied,
    /// A read through the store sees every commit that landed before the call.
    FreshWhenAsked,
    /// No tenant has more active keys than its cap, on whatever nodes they are created.
    CapKept,
    /// A key that was revoked or removed never comes back, neither in the store nor on a node that
    /// knew the end of the key.
    TombstonesStick,
    /// Every tenant's audit trail is one sealed chain.
    TrailIntact,
    /// A node that asks the store for a created key finds it.
    NewKeysAtOnce,
    /// No node refuses a key as revoked unless it was revoked.
    RefusedForAReason,
    /// After the faults end, every node confirms that it is current, and knows exactly what the
    /// store contains.
    FreshOnceHealed,
    /// The run makes progress, and revisions increase.
    Progress,
}

/// The nodes that a simulation runs.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Subject {
    /// The crate's own [`Keyward`](keyward::Keyward).
    #[default]
    Keyward,
    /// [`Keyward`](keyward::Keyward) on a clock that reports wall time as monotonic time. The
    /// simulation must find the broken clock.
    KeywardWithWallClock,
    /// [`Keyward`](keyward::Keyward) on a monotonic clock that stops in suspend. The simulation
    /// must find the broken clock.
    KeywardWithSleepyClock,
    /// A second, naive node.
    Sketch,
    /// The naive node with a defect. The simulation must find the defect.
    Broken(Defect),
}

/// A store for one run, and a function that compacts the tombstones of removed keys, if the store
/// can.
#[derive(Clone)]
pub struct Ground {
    store: Arc<dyn KeyStore>,
    compact: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ground").field(&self.store).finish()
    }
}

impl Ground {
    /// Wraps a store that never compacts.
    #[must_use]
    pub fn new(store: Arc<dyn KeyStore>) -> Self {
        let compact = Arc::new(|| {});
        Self { store, compact }
    }

    /// Sets the function that compacts the store; the run calls it at random times.
    #[must_use]
    pub fn compacted_by(mut self, compact: impl Fn() + Send + Sync + 'static) -> Self {
        self.compact = Arc::new(compact);
        self
    }
}

impl Default for Ground {
    /// Returns a [`MemoryStore`].
    fn default() -> Self {
        let store = MemoryStore::new();
        Self::new(Arc::new(store.clone())).compacted_by(move || store.compact())
    }
}

/// The nodes of a run, their store, and the run's length.
#[derive(Clone)]
pub struct Options {
    subject: Subject,
    ground: Arc<dyn Fn() -> Ground + Send + Sync>,
    span: Duration,
    reads_within_bound: bool,
    whole_pages: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("subject", &self.subject)
            .field("span", &self.span)
            .field("reads_within_bound", &self.reads_within_bound)
            .field("whole_pages", &self.whole_pages)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            subject: Subject::default(),
            ground: Arc::new(Ground::default),
            span: Duration::from_secs(30),
            reads_within_bound: false,
            whole_pages: false,
        }
    }
}

impl Options {
    /// Sets the nodes to run. Defaults to [`Subject::Keyward`].
    #[must_use]
    pub const fn of(mut self, subject: Subject) -> Self {
        self.subject = subject;
        self
    }

    /// Sets the source of stores; each run gets a fresh one. Defaults to [`MemoryStore`].
    #[must_use]
    pub fn over(mut self, ground: impl Fn() -> Ground + Send + Sync + 'static) -> Self {
        self.ground = Arc::new(ground);
        self
    }

    /// Makes the store return all rows on one page. By default, most runs have pages of one row or
    /// a few rows.
    #[must_use]
    pub const fn whole_pages(mut self) -> Self {
        self.whole_pages = true;
        self
    }

    /// Applies the bound to reads through the store too, measured up to the acceptance of the key.
    /// By default, the bound of a read is measured up to its request to the store, because a read
    /// has no lease.
    #[must_use]
    pub const fn reads_within_bound(mut self) -> Self {
        self.reads_within_bound = true;
        self
    }

    /// Sets the mean time during which faults happen. A run takes between half and one and a half
    /// times the mean. Defaults to 30 simulated seconds.
    #[must_use]
    pub const fn span(mut self, span: Duration) -> Self {
        self.span = span;
        self
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Simulation {
    seed: u64,
    options: Options,
}

/// The counts of one run, or of several runs whose reports were added.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The number of runs.
    pub runs: u64,
    /// The simulated time of all runs.
    pub simulated: Duration,
    /// The number of events.
    pub events: u64,
    /// The number of calls that the store carried out.
    pub calls: u64,
    /// The number of commits that landed.
    pub commits: u64,
    /// The number of commands that were given.
    pub commands: u64,
    /// The number of commands that returned without an error.
    pub returned: u64,
    /// The number of times that a key was presented.
    pub verifications: u64,
    /// The number of presented keys that were accepted.
    pub acceptances: u64,
    /// The number of presented keys that were refused because the node had not confirmed within its
    /// bound.
    pub stale: u64,
    /// The number of presented keys that were refused because the store did not answer.
    pub unavailable: u64,
    /// The number of times that a node was cut off.
    pub partitions: u64,
    /// The number of times that a node was stopped or suspended.
    pub pauses: u64,
    /// The number of times that a node was restarted.
    pub restarts: u64,
    /// The number of times that a clock was set or changed its rate.
    pub jumps: u64,
    /// The number of times that the store compacted its tombstones.
    pub compactions: u64,
    /// A hash of all events in their order: equal for equal seeds.
    pub mark: u64,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        let Self {
            runs,
            simulated,
            events,
            calls,
            commits,
            commands,
            returned,
            verifications,
            acceptances,
            stale,
            unavailable,
            partitions,
            pauses,
            restarts,
            jumps,
            compactions,
            mark,
        } = other;
        self.runs += runs;
        self.simulated += simulated;
        self.events += events;
        self.calls += calls;
        self.commits += commits;
        self.commands += commands;
        self.returned += returned;
        self.verifications += verifications;
        self.acceptances += acceptances;
        self.stale += stale;
        self.unavailable += unavailable;
        self.partitions += partitions;
        self.pauses += pauses;
        self.restarts += restarts;
        self.jumps += jumps;
        self.compactions += compactions;
        // Addition is commutative, so threads may add their reports in any order.
        self.mark = self.mark.wrapping_add(mark);
    }
}

/// A broken invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The invariant that is broken.
    pub invariant: Invariant,
    /// The seed of the run.
    pub seed: u64,
    /// The number of events before the violation.
    pub step: u64,
    /// A description of the violation.
    pub what: String,
    /// The last events before the violation, oldest first.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            invariant,
            seed,
            step,
            what,
            trace,
        } = self;
        writeln!(f, "{invariant:?} (seed {seed}, step {step}): {what}")?;
        trace.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl std::error::Error for Violation {}

impl Simulation {
    /// Creates the run with this seed.
    #[must_use]
    pub const fn new(seed: u64, options: Options) -> Self {
        Self { seed, options }
    }

    /// Runs the simulation.
    ///
    /// # Errors
    ///
    /// [`Violation`]: the first broken invariant, with the events that led to it.
    pub fn run(&self) -> Result<Report, Violation> {
        // The first run keeps no trace, which is faster. The same seed reproduces a violation with
        // its trace.
        let found = match drive::run(self.seed, &self.options, false) {
            Ok(report) => return Ok(report),
            Err(found) => found,
        };
        match drive::run(self.seed, &self.options, true) {
            Err(traced) if traced.step == found.step => Err(traced),
            _ => Err(found),
        }
    }
}
