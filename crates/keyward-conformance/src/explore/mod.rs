//! The interleaving explorer runs concurrent writers on one store, in every possible order of their store
//! calls.
//!
//! The explorer needs no runtime and no threads. Each store call of a writer is one step: the call yields
//! once before it reaches the store. The explorer then chooses the writer that takes the next step. The
//! explorer tries every sequence of choices depth-first, each on a fresh store. For a commit, the explorer
//! can also choose to lose the request or the reply. If a check fails, [`Explorer::replay`] runs the failing
//! sequence again.
//!
//! [`Race`] runs key managers, and checks the invariants of the crate. [`Scenario`] runs any writers and any
//! checks.

mod race;
mod step;
mod watch;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub use self::race::{Race, RaceSetup};
pub use self::step::step;
use self::step::{ScheduleControl, StepStore, stepped};
pub(crate) use self::watch::check_cap;
use keyward::store::KeyStore;

/// 1,000,000 polls. If a writer does not reach its next step within this number of polls, the run fails.
const MAX_SPINS: usize = 1_000_000;

/// The fate of a commit and of its reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reply {
    /// The store executes the commit, and the writer gets the reply.
    Arrives,
    /// The store executes the commit, but the reply is lost.
    Lost,
    /// The commit never reaches the store. The writer gets the same error as for a lost reply, because it
    /// cannot distinguish the two.
    RequestLost,
}

/// One decision of the explorer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// The writer with this number takes its next step. Writers are numbered in the order in which they were
    /// added.
    Run(usize),
    /// The commit that the current step begins has this outcome.
    Reply(Reply),
}

/// The figures of an exploration in which every check passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExplorationReport {
    /// The number of sequences of choices that were run from beginning to end.
    pub executions: usize,
    /// The number of choices in the longest sequence.
    pub max_depth: usize,
    /// True if the explorer ran every possible sequence of choices. False if it reached its limit of
    /// executions first.
    pub complete: bool,
}

/// The sequence of choices with which a check failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FailedSchedule {
    /// A description of the failure.
    pub message: String,
    /// The choices that lead to the failure, for [`Explorer::replay`].
    pub schedule: Vec<Choice>,
    /// The number of sequences that ran without a failure before this one.
    pub executions: usize,
}

impl fmt::Display for FailedSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (schedule {:?})", self.message, self.schedule)
    }
}

impl std::error::Error for FailedSchedule {}

type WriterFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
type WriterFn = Box<dyn FnOnce(Arc<dyn KeyStore>) -> WriterFuture>;
type CheckFn = Box<dyn FnMut() -> Result<(), String>>;

/// A store, concurrent writers, and the checks that must pass.
pub struct Scenario {
    store: Arc<dyn KeyStore>,
    writers: Vec<WriterFn>,
    each_step: Vec<CheckFn>,
    at_end: Vec<CheckFn>,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario")
            .field("store", &self.store)
            .field("writers", &self.writers.len())
            .finish_non_exhaustive()
    }
}

impl Scenario {
    /// Creates a scenario on `store`, without writers or checks.
    #[must_use]
    pub fn over(store: Arc<dyn KeyStore>) -> Self {
        Self {
            store,
            writers: Vec::new(),
            each_step: Vec::new(),
            at_end: Vec::new(),
        }
    }

    /// Adds a writer. A writer must use the store in its argument, because each call of that store is one
    /// step. A writer must wait for nothing except calls of that store.
    #[must_use]
    pub fn writer<F>(mut self, writer: impl FnOnce(Arc<dyn KeyStore>) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.writers
            .push(Box::new(move |store| Box::pin(writer(store))));
        self
    }

    /// Adds a check that runs before the first step and after every step. A check reads the original store
    /// with [`block_on`], so its reads are not steps.
    #[must_use]
    pub fn check_each_step(mut self, check: impl FnMut() -> Result<(), String> + 'static) -> Self {
        self.each_step.push(Box::new(check));
        self
    }

    /// Adds a check that must pass once every writer has ended.
    #[must_use]
    pub fn check_end(mut self, check: impl FnMut() -> Result<(), String> + 'static) -> Self {
        self.at_end.push(Box::new(check));
        self
    }
}

/// Runs a scenario in every possible order of its writers' steps.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use keyward_conformance::explore::{Explorer, Scenario};
/// use keyward::store::{KeyStore, MemoryStore, LoadRequest};
///
/// let report = Explorer::new().explore(|| {
///     let read = |store: Arc<dyn KeyStore>| async move {
///         let tenant = "acme".try_into().expect("a literal");
///         assert!(store.load(&tenant, &LoadRequest::none()).await.is_ok());
///     };
///     Scenario::over(Arc::new(MemoryStore::new())).writer(read).writer(read)
/// })?;
/// assert_eq!(report.executions, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Explorer {
    lost_replies: usize,
    max_executions: usize,
}

impl Default for Explorer {
    fn default() -> Self {
        Self::new()
    }
}

impl Explorer {
    /// Creates an explorer that loses no request and no reply, and stops after a million executions.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lost_replies: 0,
            max_executions: 1_000_000,
        }
    }

    /// Sets how many commits of one execution may lose their request or their reply. Defaults to 0. Higher
    /// values multiply the number of executions.
    #[must_use]
    pub const fn lost_replies(mut self, most: usize) -> Self {
        self.lost_replies = most;
        self
    }

    /// Sets the maximum number of executions. If sequences remain after the last one,
    /// [`ExplorationReport::complete`] is false.
    #[must_use]
    pub const fn max_executions(mut self, most: usize) -> Self {
        self.max_executions = most;
        self
    }

    /// Runs a scenario in every possible order of its writers' steps. The explorer calls `scenario` once per
    /// execution. Each call must return a scenario with a fresh store, and with the same writers, random seed
    /// and clock.
    ///
    /// # Errors
    ///
    /// [`FailedSchedule`]: the first sequence of choices with which a check fails.
    pub fn explore(
        &self,
        scenario: impl Fn() -> Scenario,
    ) -> Result<ExplorationReport, FailedSchedule> {
        let mut report = ExplorationReport {
            executions: 0,
            max_depth: 0,
            complete: false,
        };
        let mut trail = ChoiceTrail::default();
        loop {
            let (verdict, ran) = self.run(scenario(), trail);
            trail = ran;
            if let Err(message) = verdict {
                return Err(FailedSchedule {
                    message,
                    schedule: trail.choices(),
                    executions: report.executions,
                });
            }
            report.executions += 1;
            report.max_depth = report.max_depth.max(trail.branches.len());
            report.complete = !trail.advance();
            if report.complete || report.executions >= self.max_executions {
                return Ok(report);
            }
        }
    }

    /// Runs a scenario once, with the given sequence of choices.
    ///
    /// # Errors
    ///
    /// [`FailedSchedule`] if a check fails, or if the scenario does not allow a choice of `schedule`.
    pub fn replay(&self, scenario: Scenario, schedule: &[Choice]) -> Result<(), FailedSchedule> {
        let (verdict, trail) = self.run(scenario, ChoiceTrail::following(schedule));
        verdict.map_err(|message| FailedSchedule {
            message,
            schedule: trail.choices(),
            executions: 0,
        })
    }

    fn run(&self, scenario: Scenario, trail: ChoiceTrail) -> (Result<(), String>, ChoiceTrail) {
        let control = Arc::new(ScheduleControl::new(trail, self.lost_replies));
        let verdict = execute(scenario, &control);
        let trail = control.take();
        let verdict = verdict.and(match &trail.astray {
            Some(choice) => Err(format!("{choice:?} is not possible at this step")),
            None => Ok(()),
        });
        (verdict, trail)
    }
}

fn execute(scenario: Scenario, control: &Arc<ScheduleControl>) -> Result<(), String> {
    let Scenario {
        store,
        writers,
        mut each_step,
        mut at_end,
    } = scenario;
    let steps: Arc<dyn KeyStore> = Arc::new(StepStore::new(store, control.clone()));
    let mut futures: Vec<Option<WriterFuture>> = writers
        .into_iter()
        .map(|writer| Some(writer(steps.clone())))
        .collect();
    let all = |checks: &mut Vec<CheckFn>| checks.iter_mut().try_for_each(|check| check());
    all(&mut each_step)?;
    // Polls each writer up to its first step. The order is irrelevant, because no writer calls the store
    // before its first step.
    for writer in &mut futures {
        advance(writer)?;
    }
    loop {
        let ready: Vec<_> = (0..futures.len())
            .filter(|&index| futures[index].is_some())
            .map(Choice::Run)
            .collect();
        if ready.is_empty() {
            break;
        }
        let Choice::Run(next) = control.choose(ready) else {
            return Err("the schedule must choose a writer here".to_owned());
        };
        advance(&mut futures[next])?;
        all(&mut each_step)?;
    }
    all(&mut at_end)
}

/// Polls a writer until it reaches its next step or ends.
fn advance(writer: &mut Option<WriterFuture>) -> Result<(), String> {
    let Some(future) = writer else { return Ok(()) };
    // Clears the flag of [`step`], which a check may have set since the last poll of a writer.
    stepped();
    for _ in 0..MAX_SPINS {
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(()) => {
                *writer = None;
                return Ok(());
            }
            Poll::Pending if stepped() => return Ok(()),
            // The writer is inside a store call that waits for a disk or a server, so the next poll may
            // succeed.
            Poll::Pending => std::thread::yield_now(),
        }
    }
    Err("a writer waits for something other than a store call".to_owned())
}

/// Polls a future in a loop until it completes. Suitable for stores that need no runtime, or that run on
/// threads of their own.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    loop {
        let poll = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        match poll {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

/// The choices of one execution, each with the alternatives that remain to be tried.
#[derive(Debug, Default)]
struct ChoiceTrail {
    branches: Vec<Branch>,
    depth: usize,
    /// The first choice of a replayed schedule that the scenario did not allow.
    astray: Option<Choice>,
}

#[derive(Debug)]
struct Branch {
    options: Vec<Choice>,
    taken: usize,
}

impl ChoiceTrail {
    fn following(schedule: &[Choice]) -> Self {
        let only = |choice: &Choice| Branch {
            options: vec![*choice],
            taken: 0,
        };
        Self {
            branches: schedule.iter().map(only).collect(),
            ..Self::default()
        }
    }

    fn choose(&mut self, options: Vec<Choice>) -> Choice {
        if self.depth == self.branches.len() {
            self.branches.push(Branch { options, taken: 0 });
            self.depth += 1;
            let branch = &self.branches[self.depth - 1];
            return branch.options[0];
        }
        let branch = &self.branches[self.depth];
        let choice = branch.options[branch.taken];
        self.depth += 1;
        if options.contains(&choice) {
            return choice;
        }
        self.astray.get_or_insert(choice);
        options[0]
    }

    fn choices(&self) -> Vec<Choice> {
        let made = self.branches.iter().take(self.depth);
        made.map(|branch| branch.options[branch.taken]).collect()
    }

    /// Advances to the next sequence of choices. Returns false if every sequence was tried.
    fn advance(&mut self) -> bool {
        self.depth = 0;
        while let Some(last) = self.branches.last_mut() {
            last.taken += 1;
            if last.taken < last.options.len() {
                return true;
            }
            self.branches.pop();
        }
        false
    }
}
