//! Runs several nodes over one store that is far away, in a time of its own, and watches that what is
//! promised of propagation holds at every step.
//!
//! One seed decides everything: how long messages take and which are lost, when a node is cut off,
//! stopped, suspended or started anew, how its wall clock jumps and its monotonic clock drifts, what
//! is commanded, and when which key is presented where. The same seed is the same run.
//!
//! The promise: **a key whose revocation returned at real time t is refused by every verifier from
//! t + B on**, B = L / (1 - ρ), where L is the staleness bound and ρ the rate error of a node's
//! monotonic clock. The watch is stricter: it counts from when the change landed.
//!
//! That the watch sees what it should is shown with nodes that are broken on purpose: see
//! [`Defect`].
//!
//! # Examples
//!
//! ```
//! use keyward::conformance::simulate::{Defect, Options, Simulation, Subject};
//!
//! let report = Simulation::new(7, Options::default()).run()?;
//! assert!(report.acceptances > 0);
//!
//! let broken = Options::default().of(Subject::Broken(Defect::ConnectedIsFresh));
//! let found = (0..100).find_map(|seed| Simulation::new(seed, broken.clone()).run().err());
//! println!("{}", found.expect("a hundred runs are enough"));
//! # Ok::<(), keyward::conformance::simulate::Violation>(())
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

/// What is watched.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Invariant {
    /// Nothing is accepted later than the bound after it was ended or narrowed.
    NeverPastBound,
    /// A change holds at once on the node that made it.
    AtOnceWhereApplied,
    /// Reading through the store sees what landed before the call.
    FreshWhenAsked,
    /// No tenant has more active keys than its cap, whoever creates them.
    CapKept,
    /// What was revoked or removed never comes back, in the store or on a node that knew.
    TombstonesStick,
    /// Every tenant's audit trail is one sealed chain.
    TrailIntact,
    /// A key that was created is known to whoever asks the store for it.
    NewKeysAtOnce,
    /// No key is refused as revoked that was not.
    RefusedForAReason,
    /// Once all is well again, every node confirms, and knows exactly what the store knows.
    FreshOnceHealed,
    /// The run itself goes on, and revisions do.
    Progress,
}

/// Which nodes are run.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Subject {
    /// The crate's own [`Keyward`](crate::Keyward).
    #[default]
    Keyward,
    /// The same on a clock that takes wall time for monotonic time: to be found.
    KeywardWithWallClock,
    /// The same on a clock that stands still in suspend: to be found.
    KeywardWithSleepyClock,
    /// A second, naive node.
    Sketch,
    /// That node with a defect: to be found.
    Broken(Defect),
}

/// A store for one run, and how it is made to forget the tombstones of removed keys, if it does.
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
    /// A store that never forgets.
    #[must_use]
    pub fn new(store: Arc<dyn KeyStore>) -> Self {
        let compact = Arc::new(|| {});
        Self { store, compact }
    }

    /// Tells how it is made to forget; called now and then.
    #[must_use]
    pub fn compacted_by(mut self, compact: impl Fn() + Send + Sync + 'static) -> Self {
        self.compact = Arc::new(compact);
        self
    }
}

impl Default for Ground {
    /// A [`MemoryStore`].
    fn default() -> Self {
        let store = MemoryStore::new();
        Self::new(Arc::new(store.clone())).compacted_by(move || store.compact())
    }
}

/// What is run, and over what.
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
    /// Sets which nodes are run. Defaults to [`Subject::Keyward`].
    #[must_use]
    pub const fn of(mut self, subject: Subject) -> Self {
        self.subject = subject;
        self
    }

    /// Sets over which store: a fresh one for each run. Defaults to [`MemoryStore`].
    #[must_use]
    pub fn over(mut self, ground: impl Fn() -> Ground + Send + Sync + 'static) -> Self {
        self.ground = Arc::new(ground);
        self
    }

    /// Lets the store answer with all rows at once. Defaults to pages of one row or a few in most
    /// runs.
    #[must_use]
    pub const fn whole_pages(mut self) -> Self {
        self.whole_pages = true;
        self
    }

    /// Holds what is read through the store to the bound as well, counted to when it was accepted.
    /// Defaults to counting from when the store was asked, since such a read has no lease.
    #[must_use]
    pub const fn reads_within_bound(mut self) -> Self {
        self.reads_within_bound = true;
        self
    }

    /// Sets for how long things go wrong, on average, before all is well again: a run lasts from half
    /// of it to one and a half. Defaults to 30 simulated seconds.
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

/// What runs did. Reports add up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// How many runs.
    pub runs: u64,
    /// How long they took in their own time.
    pub simulated: Duration,
    /// How many things happened.
    pub events: u64,
    /// How many calls to the store were carried out.
    pub calls: u64,
    /// How many commits landed.
    pub commits: u64,
    /// How many commands were given.
    pub commands: u64,
    /// How many of them returned as done.
    pub returned: u64,
    /// How many keys were presented.
    pub verifications: u64,
    /// How many of them were accepted.
    pub acceptances: u64,
    /// How many were refused because the node had not confirmed for too long.
    pub stale: u64,
    /// How many were refused because the store did not answer.
    pub unavailable: u64,
    /// How often a node was cut off.
    pub partitions: u64,
    /// How often a node was stopped or suspended.
    pub pauses: u64,
    /// How often a node was started anew.
    pub restarts: u64,
    /// How often a clock was set or changed its pace.
    pub jumps: u64,
    /// How often the store forgot tombstones.
    pub compactions: u64,
    /// A mark of everything that happened, in its order: the same for the same seeds.
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
        // In any order, so that threads may add theirs as they come.
        self.mark = self.mark.wrapping_add(mark);
    }
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What was broken.
    pub invariant: Invariant,
    /// The run that broke it.
    pub seed: u64,
    /// How many things had happened.
    pub step: u64,
    /// What happened, in words.
    pub what: String,
    /// What happened before, oldest first.
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
    /// The run of a seed.
    #[must_use]
    pub const fn new(seed: u64, options: Options) -> Self {
        Self { seed, options }
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// [`Violation`]: the first thing that must not be, with what led to it.
    pub fn run(&self) -> Result<Report, Violation> {
        // Nothing is told at first, which is faster: the same run tells it again.
        let found = match drive::run(self.seed, &self.options, false) {
            Ok(report) => return Ok(report),
            Err(found) => found,
        };
        match drive::run(self.seed, &self.options, true) {
            Err(told) if told.step == found.step => Err(told),
            _ => Err(found),
        }
    }
}
