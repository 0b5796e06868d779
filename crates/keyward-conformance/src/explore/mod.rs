//! The interleaving explorer: runs writers against one store in every possible order.
//!
//! There is no runtime and no thread. Every store call of a writer is one step: the call yields
//! once before it acts. The explorer chooses the writer of the next step, by depth-first search
//! over the choices, with a fresh run for each sequence of choices. For a commit it also chooses
//! whether the reply arrives. Each failure can be replayed, choice by choice.
//!
//! [`Race`] adds key managers and the invariants of the rules. [`World`] is for other writers and
//! checks.

mod race;
mod step;
mod watch;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub use self::race::{Bench, Race};
pub use self::step::step;
use self::step::{Control, StepStore, stepped};
pub(crate) use self::watch::check_cap;
use keyward::store::KeyStore;

/// A million polls: a writer that is polled so often without a step is considered stuck.
const MAX_SPINS: usize = 1_000_000;

/// The fate of a commit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reply {
    /// The commit is carried out, and its reply arrives.
    Arrives,
    /// The commit is carried out, and its reply is lost.
    Lost,
    /// The commit never reaches the store, and its writer cannot know that.
    RequestLost,
}

/// One decision of the explorer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// The writer with this number takes its next step.
    Run(usize),
    /// The commit in the current step meets this fate.
    Reply(Reply),
}

/// The extent of an exploration that found no failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Report {
    /// The number of sequences of choices that were run from beginning to end.
    pub executions: usize,
    /// The number of choices in the longest sequence that was run.
    pub max_depth: usize,
    /// Whether every possible sequence of choices was run.
    pub complete: bool,
}

/// An order of steps that breaks a check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The check's message.
    pub message: String,
    /// The choices that lead to the failure; [`Explorer::replay`] takes them.
    pub schedule: Vec<Choice>,
    /// The number of executions before the failed execution.
    pub executions: usize,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (schedule {:?})", self.message, self.schedule)
    }
}

impl std::error::Error for Failure {}

type Writing = Pin<Box<dyn Future<Output = ()> + Send>>;
type Writer = Box<dyn FnOnce(Arc<dyn KeyStore>) -> Writing>;
type Check = Box<dyn FnMut() -> Result<(), String>>;

/// A fresh store, the writers that race over it, and the checks that must pass.
pub struct World {
    store: Arc<dyn KeyStore>,
    writers: Vec<Writer>,
    each_step: Vec<Check>,
    at_end: Vec<Check>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("store", &self.store)
            .field("writers", &self.writers.len())
            .finish_non_exhaustive()
    }
}

impl World {
    /// Creates a world around `store`.
    #[must_use]
    pub fn over(store: Arc<dyn KeyStore>) -> Self {
        Self {
            store,
            writers: Vec::new(),
            each_step: Vec::new(),
            at_end: Vec::new(),
        }
    }

    /// Adds a writer. The writer must use the store that it gets, in which every call is one step.
    /// A writer must wait for other writers only through that store.
    #[must_use]
    pub fn writer<F>(mut self, writer: impl FnOnce(Arc<dyn KeyStore>) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.writers
            .push(Box::new(move |store| Box::pin(writer(store))));
        self
    }

    /// Adds a check that must pass before the first step and after every step. The check reads the
    /// store directly, where calls are not steps, with [`block_on`].
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

/// Explores every order in which writers may take their steps.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use keyward_conformance::explore::{Explorer, World};
/// use keyward::store::{KeyStore, MemoryStore, LoadRequest};
///
/// let report = Explorer::new().explore(|| {
///     let read = |store: Arc<dyn KeyStore>| async move {
///         let tenant = "acme".try_into().expect("a literal");
///         assert!(store.load(&tenant, &LoadRequest::none()).await.is_ok());
///     };
///     World::over(Arc::new(MemoryStore::new())).writer(read).writer(read)
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

    /// Sets the number of commits per execution that may lose their request or reply. Each such
    /// commit multiplies the number of executions.
    #[must_use]
    pub const fn lost_replies(mut self, most: usize) -> Self {
        self.lost_replies = most;
        self
    }

    /// Sets the number of executions after which to stop. [`Report::complete`] is false if the
    /// limit was too low.
    #[must_use]
    pub const fn max_executions(mut self, most: usize) -> Self {
        self.max_executions = most;
        self
    }

    /// Runs the worlds that `world` creates in every order. All worlds must have the same writers,
    /// randomness and clock.
    ///
    /// # Errors
    ///
    /// [`Failure`]: the first order found that breaks a check.
    pub fn explore(&self, world: impl Fn() -> World) -> Result<Report, Failure> {
        let mut report = Report {
            executions: 0,
            max_depth: 0,
            complete: false,
        };
        let mut trail = Trail::default();
        loop {
            let (verdict, ran) = self.run(world(), trail);
            trail = ran;
            if let Err(message) = verdict {
                return Err(Failure {
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

    /// Replays one order.
    ///
    /// # Errors
    ///
    /// The same failure as before, or that the schedule does not fit this world.
    pub fn replay(&self, world: World, schedule: &[Choice]) -> Result<(), Failure> {
        let (verdict, trail) = self.run(world, Trail::following(schedule));
        verdict.map_err(|message| Failure {
            message,
            schedule: trail.choices(),
            executions: 0,
        })
    }

    fn run(&self, world: World, trail: Trail) -> (Result<(), String>, Trail) {
        let control = Arc::new(Control::new(trail, self.lost_replies));
        let verdict = execute(world, &control);
        let trail = control.take();
        let verdict = verdict.and(match &trail.astray {
            Some(choice) => Err(format!("{choice:?} is not to be had here")),
            None => Ok(()),
        });
        (verdict, trail)
    }
}

fn execute(world: World, control: &Arc<Control>) -> Result<(), String> {
    let World {
        store,
        writers,
        mut each_step,
        mut at_end,
    } = world;
    let steps: Arc<dyn KeyStore> = Arc::new(StepStore::new(store, control.clone()));
    let mut writing: Vec<Option<Writing>> = writers
        .into_iter()
        .map(|writer| Some(writer(steps.clone())))
        .collect();
    let all = |checks: &mut Vec<Check>| checks.iter_mut().try_for_each(|check| check());
    all(&mut each_step)?;
    // No writer touches the store before its first step, so their order does not matter here.
    for writer in &mut writing {
        advance(writer)?;
    }
    loop {
        let ready: Vec<_> = (0..writing.len())
            .filter(|&index| writing[index].is_some())
            .map(Choice::Run)
            .collect();
        if ready.is_empty() {
            break;
        }
        let Choice::Run(next) = control.choose(ready) else {
            return Err("a writer was to be chosen".to_owned());
        };
        advance(&mut writing[next])?;
        all(&mut each_step)?;
    }
    all(&mut at_end)
}

/// Runs a writer until it is about to take its next step, or has ended.
fn advance(writer: &mut Option<Writing>) -> Result<(), String> {
    let Some(future) = writer else { return Ok(()) };
    // Clears the flag, because a check may have set it.
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
            // The store itself is waiting for a disk or a server.
            Poll::Pending => std::thread::yield_now(),
        }
    }
    Err("a writer waits for something that is no step".to_owned())
}

/// Runs a future without a runtime, for stores that need no runtime or have their own threads.
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
struct Trail {
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

impl Trail {
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

    /// Advances to the next sequence. Returns false after the last one.
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
