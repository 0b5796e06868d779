//! The interleaving explorer: runs writers against one store in every possible order.
//!
//! Uses no runtime and no threads. Every store call of a writer is one step: the call yields once before it
//! acts. The explorer chooses the writer that takes the next step. It searches all sequences of choices
//! depth-first, and starts each sequence with a fresh store. For a commit, the explorer also chooses whether
//! the request or the reply is lost. [`Explorer::replay`] reproduces a failure from its choices.
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

/// 1,000,000 polls. A writer that takes no step within this many polls is considered stuck.
const MAX_SPINS: usize = 1_000_000;

/// The outcome of a commit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reply {
    /// The store executes the commit, and the writer gets the reply.
    Arrives,
    /// The store executes the commit, but the reply is lost.
    Lost,
    /// The commit never reaches the store. The writer gets the same error as for a lost reply.
    RequestLost,
}

/// One decision of the explorer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// The writer with this number takes its next step.
    Run(usize),
    /// The commit of the current step has this outcome.
    Reply(Reply),
}

/// The result of an exploration that found no failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExplorationReport {
    /// The number of sequences of choices that were run from beginning to end.
    pub executions: usize,
    /// The number of choices in the longest sequence.
    pub max_depth: usize,
    /// Whether every possible sequence of choices was run.
    pub complete: bool,
}

/// A sequence of choices that breaks a check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FailedSchedule {
    /// A description of the failure.
    pub message: String,
    /// The choices that lead to the failure, for [`Explorer::replay`].
    pub schedule: Vec<Choice>,
    /// The number of executions before the failed execution.
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

    /// Adds a writer. The writer must use only the store in its argument, where every call is one step. A
    /// writer may wait for another writer only through a call of that store.
    #[must_use]
    pub fn writer<F>(mut self, writer: impl FnOnce(Arc<dyn KeyStore>) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.writers
            .push(Box::new(move |store| Box::pin(writer(store))));
        self
    }

    /// Adds a check that must pass before the first step and after every step. A check reads the original
    /// store with [`block_on`], so its calls are not steps.
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
    /// Creates an explorer that loses no reply and stops after a million executions.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lost_replies: 0,
            max_executions: 1_000_000,
        }
    }

    /// Sets the maximum number of commits per execution whose request or reply is lost. Higher values
    /// multiply the number of executions.
    #[must_use]
    pub const fn lost_replies(mut self, most: usize) -> Self {
        self.lost_replies = most;
        self
    }

    /// Sets the maximum number of executions. [`ExplorationReport::complete`] is false if unexplored
    /// sequences remain.
    #[must_use]
    pub const fn max_executions(mut self, most: usize) -> Self {
        self.max_executions = most;
        self
    }

    /// Runs a scenario in every order. Each execution calls `scenario` for a fresh one. Every call must
    /// return the same writers, with the same random seed and clock.
    ///
    /// # Errors
    ///
    /// [`FailedSchedule`]: the first sequence of choices that breaks a check.
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

    /// Runs one sequence of choices.
    ///
    /// # Errors
    ///
    /// [`FailedSchedule`] if a check fails, or if a choice of `schedule` is not possible in this scenario.
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
    // Writers do not access the store before their first step, so the order of this loop does not matter.
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
    // Clears the flag first, because a check may have set it.
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
            // The store waits for a disk or a server.
            Poll::Pending => std::thread::yield_now(),
        }
    }
    Err("a writer waits for something other than a store call".to_owned())
}

/// Polls a future in a loop until it completes. Suits stores that need no runtime or have their own threads.
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

/// The choices made so far, each with its alternatives.
#[derive(Debug, Default)]
struct ChoiceTrail {
    branches: Vec<Branch>,
    depth: usize,
    /// The first choice of a replayed schedule that was not available.
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

    /// Advances to the next sequence. Returns false after the last sequence.
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
