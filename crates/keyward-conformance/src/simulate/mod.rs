//! Runs several nodes over one remote store in simulated time, and checks the propagation guarantee at every
//! step.
//!
//! One seed decides everything about a run:
//!
//! - the latency of each message, and which messages are lost;
//! - when a node is disconnected, paused, suspended or restarted;
//! - how the node's wall clock jumps, and how fast its monotonic clock runs;
//! - which commands are executed, and when each key is presented to which node.
//!
//! The same seed produces the same run.
//!
//! The guarantee: **a key whose revocation returned at real time t is refused by every verifier from t + B
//! on**. B = L / (1 - ρ), where L is the staleness bound and ρ the rate error of a node's monotonic clock.
//! The simulation checks a stricter rule: it measures B from the commit of the revocation, which comes before
//! its return.
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
    /// If a key was ended or lost a required permission, no node accepts the key once the bound has passed.
    NeverPastBound,
    /// A node that has itself executed a command acts on the result of the command immediately.
    AtOnceWhereApplied,
    /// A verification that reads the store sees every commit that was applied before the verification began.
    FreshWhenAsked,
    /// No tenant has more active keys than its cap, even if several nodes create keys concurrently.
    CapKept,
    /// A revoked or removed key never works again: neither in the store, nor on a node that has refused it as
    /// revoked.
    TombstonesStick,
    /// The audit trail of each tenant is one unbroken hash chain.
    TrailIntact,
    /// A node that reads the store when its own rows lack a key finds every key that exists in the store.
    NewKeysAtOnce,
    /// A node refuses a key as revoked only if the key really was revoked or removed.
    RefusedForAReason,
    /// After all faults have ended, every node syncs and accepts exactly the keys that the store permits.
    FreshOnceHealed,
    /// The run never gets stuck, and each commit has a higher revision than the commit before.
    Progress,
}

/// The implementation of the nodes that a simulation runs.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum NodeUnderTest {
    /// The crate's own [`Keyward`](keyward::Keyward).
    #[default]
    Keyward,
    /// [`Keyward`](keyward::Keyward) with a faulty clock that reports wall time as monotonic time. The
    /// simulation must find a violation.
    KeywardWithWallClock,
    /// [`Keyward`](keyward::Keyward) with a monotonic clock that stops while the machine is suspended. The
    /// simulation must find a violation.
    KeywardWithSleepyClock,
    /// A second, naive implementation of a node, without a defect.
    Naive,
    /// The naive implementation with one defect. The simulation must find a violation.
    Broken(NodeDefect),
}

/// The store of one run. If the store can compact the tombstones of removed keys, the backend also has a
/// function that does so.
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

    /// Sets the function that compacts the store's tombstones. The simulation calls it at random times.
    #[must_use]
    pub fn compacted_by(mut self, compact: impl Fn() + Send + Sync + 'static) -> Self {
        self.compact = Arc::new(compact);
        self
    }
}

impl Default for SimulationBackend {
    /// Returns a [`MemoryStore`], which the simulation compacts at random times.
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

    /// Makes the store return all rows on one page. Without this option, most runs have pages with one row or
    /// only a few rows.
    #[must_use]
    pub const fn whole_pages(mut self) -> Self {
        self.whole_pages = true;
        self
    }

    /// Applies the staleness bound also to verifications that read the store. Without this option, such a
    /// read may take longer than the bound, and may return the state at its start.
    #[must_use]
    pub const fn reads_within_bound(mut self) -> Self {
        self.reads_within_bound = true;
        self
    }

    /// Sets the mean time for which a run injects faults. Each run takes between half and one and a half
    /// times this time. Defaults to 30 simulated seconds.
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

/// The counters of one run, or the sums over several runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SimulationReport {
    /// The number of runs.
    pub runs: u64,
    /// The simulated duration of all runs together.
    pub simulated: Duration,
    /// The number of simulated events, such as a woken task or a request that reaches the store.
    pub events: u64,
    /// The number of calls that the store executed.
    pub calls: u64,
    /// The number of applied commits.
    pub commits: u64,
    /// The number of attempts to execute a command, including retries.
    pub commands: u64,
    /// The number of commands that succeeded.
    pub returned: u64,
    /// The number of times that a key was presented.
    pub verifications: u64,
    /// The number of presented keys that were accepted.
    pub acceptances: u64,
    /// The number of keys that were refused as stale, because the node had not synced within its staleness
    /// bound.
    pub stale: u64,
    /// The number of presented keys that were refused because the store did not answer.
    pub unavailable: u64,
    /// The number of times that a node was disconnected from the store.
    pub partitions: u64,
    /// The number of times that a node was stopped or suspended.
    pub pauses: u64,
    /// The number of times that a node was restarted.
    pub restarts: u64,
    /// The number of times that a wall clock was set, or the rate of a monotonic clock changed.
    pub jumps: u64,
    /// The number of times that the store compacted its tombstones.
    pub compactions: u64,
    /// A hash of all events. Two runs with the same seed and options have the same hash.
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
        // Add the hashes of the runs. The sum does not depend on the order in which threads add their
        // reports.
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
    /// Creates a run. The seed decides all random choices.
    #[must_use]
    pub const fn new(seed: u64, options: Options) -> Self {
        Self { seed, options }
    }

    /// Runs the simulation until its end, or until the first invariant is broken.
    ///
    /// # Errors
    ///
    /// [`InvariantViolation`]: the broken invariant, with the events that led to it.
    pub fn run(&self) -> Result<SimulationReport, InvariantViolation> {
        // Run without a trace first, because that is faster. If the run ends in a violation, repeat it from
        // the same seed with a trace.
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
