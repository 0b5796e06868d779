//! Runs several nodes over one remote store in simulated time, and checks the propagation guarantee
//! at every step.
//!
//! One seed decides everything:
//!
//! - the latency of each message, and which messages are lost;
//! - when a node is cut off, stopped, suspended or restarted;
//! - how its wall clock jumps and its monotonic clock drifts;
//! - which commands are executed, and when each key is presented to which node.
//!
//! The same seed produces the same run.
//!
//! The guarantee: **a key whose revocation returned at real time t is refused by every verifier from t + B
//! on**. B = L / (1 - ρ), where L is the staleness bound and ρ the rate error of a node's monotonic clock.
//! The check is stricter: it counts from the commit of the revocation.
//!
//! Nodes with a deliberate [`NodeDefect`] prove that the checks find violations.
//!
//! # Examples
//!
//! ```
//! use keyward_conformance::simulate::{NodeDefect, NodeUnderTest, Options, Simulation};
//!
//! let report = Simulation::new(7, Options::default()).run()?;
//! assert!(report.acceptances > 0);
//!
//! let broken = Options::default().of(NodeUnderTest::Broken(NodeDefect::ConnectedIsFresh));
//! let found = (0..100).find_map(|seed| Simulation::new(seed, broken.clone()).run().err());
//! println!("{}", found.expect("a hundred runs are enough"));
//! # Ok::<(), keyward_conformance::simulate::InvariantViolation>(())
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

pub use self::sketch::NodeDefect;
use keyward::store::{KeyStore, MemoryStore};

/// A property that a simulation checks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Invariant {
    /// No node accepts a key that was ended or narrowed longer ago than the bound.
    NeverPastBound,
    /// A change applies immediately on the node that made it.
    AtOnceWhereApplied,
    /// A read through the store sees every earlier commit.
    FreshWhenAsked,
    /// No tenant has more active keys than its cap, on whatever nodes they are created.
    CapKept,
    /// A revoked or removed key never comes back, neither in the store nor on a node that knew of its end.
    TombstonesStick,
    /// Every tenant's audit trail is one valid chain.
    TrailIntact,
    /// A node that reads through the store finds every created key.
    NewKeysAtOnce,
    /// No node refuses a key as revoked unless the key was revoked.
    RefusedForAReason,
    /// After the faults end, every node syncs, and its verdicts match the contents of the store.
    FreshOnceHealed,
    /// The run makes progress, and revisions increase.
    Progress,
}

/// The kind of nodes that a simulation runs.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum NodeUnderTest {
    /// The crate's own [`Keyward`](keyward::Keyward).
    #[default]
    Keyward,
    /// [`Keyward`](keyward::Keyward) on a clock that reports wall time as monotonic time. The
    /// simulation must find the broken clock.
    KeywardWithWallClock,
    /// [`Keyward`](keyward::Keyward) on a monotonic clock that stops in suspend. The simulation
    /// must find the broken clock.
    KeywardWithSleepyClock,
    /// A second, naive implementation of a node.
    Naive,
    /// The naive node with a defect. The simulation must find the defect.
    Broken(NodeDefect),
}

/// The store of one run, and a function that compacts the tombstones of removed keys, if the store supports
/// it.
#[derive(Clone)]
pub struct SimulationBackend {
    store: Arc<dyn KeyStore>,
    compact: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for SimulationBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimulationBackend")
            .field(&self.store)
            .finish()
    }
}

impl SimulationBackend {
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

impl Default for SimulationBackend {
    /// Returns a [`MemoryStore`].
    fn default() -> Self {
        let store = MemoryStore::new();
        Self::new(Arc::new(store.clone())).compacted_by(move || store.compact())
    }
}

/// The options of a simulation: its nodes, their store, and its length.
#[derive(Clone)]
pub struct Options {
    subject: NodeUnderTest,
    backend: Arc<dyn Fn() -> SimulationBackend + Send + Sync>,
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
            subject: NodeUnderTest::default(),
            backend: Arc::new(SimulationBackend::default),
            span: Duration::from_secs(30),
            reads_within_bound: false,
            whole_pages: false,
        }
    }
}

impl Options {
    /// Sets the nodes to run. Defaults to [`NodeUnderTest::Keyward`].
    #[must_use]
    pub const fn of(mut self, subject: NodeUnderTest) -> Self {
        self.subject = subject;
        self
    }

    /// Sets the function that creates the store of each run. Defaults to [`MemoryStore`].
    #[must_use]
    pub fn over(mut self, backend: impl Fn() -> SimulationBackend + Send + Sync + 'static) -> Self {
        self.backend = Arc::new(backend);
        self
    }

    /// Makes the store return all rows on one page. By default, most runs have pages of one row or
    /// a few rows.
    #[must_use]
    pub const fn whole_pages(mut self) -> Self {
        self.whole_pages = true;
        self
    }

    /// Applies the bound to reads through the store too. By default, a read that takes longer than the bound
    /// may return the state at its start.
    #[must_use]
    pub const fn reads_within_bound(mut self) -> Self {
        self.reads_within_bound = true;
        self
    }

    /// Sets the mean duration of the faults. A run takes between half and one and a half times the mean.
    /// Defaults to 30 simulated seconds.
    #[must_use]
    pub const fn span(mut self, span: Duration) -> Self {
        self.span = span;
        self
    }
}

/// One simulation run, defined by a seed and its options.
#[derive(Clone, Debug)]
pub struct Simulation {
    seed: u64,
    options: Options,
}

/// The counters of one run, or of several runs whose reports were added.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SimulationReport {
    /// The number of runs.
    pub runs: u64,
    /// The simulated time of all runs.
    pub simulated: Duration,
    /// The number of events.
    pub events: u64,
    /// The number of calls that the store executed.
    pub calls: u64,
    /// The number of applied commits.
    pub commits: u64,
    /// The number of attempts to execute a command.
    pub commands: u64,
    /// The number of commands that succeeded.
    pub returned: u64,
    /// The number of times that a key was presented.
    pub verifications: u64,
    /// The number of presented keys that were accepted.
    pub acceptances: u64,
    /// The number of presented keys that were refused because the node had not synced within its bound.
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
    /// A hash over the events of the run. Equal seeds produce equal hashes.
    pub mark: u64,
}

impl AddAssign for SimulationReport {
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
pub struct InvariantViolation {
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

impl fmt::Display for InvariantViolation {
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

impl std::error::Error for InvariantViolation {}

impl Simulation {
    /// Creates the run with this seed.
    #[must_use]
    pub const fn new(seed: u64, options: Options) -> Self {
        Self { seed, options }
    }

    /// Runs the simulation to its end, or to the first broken invariant.
    ///
    /// # Errors
    ///
    /// [`InvariantViolation`]: the first broken invariant, with the events that led to it.
    pub fn run(&self) -> Result<SimulationReport, InvariantViolation> {
        // Runs without a trace first, because that is faster. After a violation, the same seed reproduces the
        // run with a trace.
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
