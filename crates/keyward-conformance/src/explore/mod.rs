//! The interleaving explorer: runs writers against one store in every order there is.
//!
//! No runtime and no threads. Every store call of a writer is one step: it waits once before it
//! acts, and the explorer decides whose step comes next, by depth-first search over the choices,
//! running everything anew for each sequence of them. At a commit it also decides whether the reply
//! arrives. What it finds it can repeat, choice by choice.
//!
//! [`Race`] puts key managers and the rules' own invariants on top; [`World`] is for writers and
//! checks of one's own.

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

/// How often a writer may wait for something that is not a step before it is taken to be stuck.
const MAX_SPINS: usize = 1_000_000;

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reply {
    /// It is carried out, and its reply arrives.
    Arrives,
    /// It is carried out, and its reply is lost.
    Lost,
    /// It never reaches the store, and nobody can tell.
    RequestLost,
}

/// One decision of the explorer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// This writer takes its next step.
    Run(usize),
    /// The commit that it makes meets this.
    Reply(Reply),
}

/// What was explored without finding a fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Report {
    /// How many sequences of choices were run from beginning to end.
    pub executions: usize,
    /// The most choices that one of them took.
    pub max_depth: usize,
    /// Whether these were all there are.
    pub complete: bool,
}

/// An order of steps that breaks a check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// What is wrong.
    pub message: String,
    /// The choices that lead there; [`Explorer::replay`] takes them.
    pub schedule: Vec<Choice>,
    /// How many executions were run before this one.
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

/// A fresh store, the writers that race over it, and what must hold meanwhile.
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
    /// A world around `store`.
    #[must_use]
    pub fn over(store: Arc<dyn KeyStore>) -> Self {
        Self {
            store,
            writers: Vec::new(),
            each_step: Vec::new(),
            at_end: Vec::new(),
        }
    }

    /// Adds a writer. It is given the store as it is to use it: every call is one step. It must wait
    /// for nothing else that another writer does.
    #[must_use]
    pub fn writer<F>(mut self, writer: impl FnOnce(Arc<dyn KeyStore>) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.writers
            .push(Box::new(move |store| Box::pin(writer(store))));
        self
    }

    /// Adds a check that must hold before the first step and after every one. It looks at the store
    /// itself, where calls are no steps; [`block_on`] carries them out.
    #[must_use]
    pub fn check_each_step(mut self, check: impl FnMut() -> Result<(), String> + 'static) -> Self {
        self.each_step.push(Box::new(check));
        self
    }

    /// Adds a check that must hold once every writer has ended.
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
/// use keyward::conformance::explore::{Explorer, World};
/// use keyward::store::{KeyStore, MemoryStore, Select};
///
/// let report = Explorer::new().explore(|| {
///     let read = |store: Arc<dyn KeyStore>| async move {
///         let tenant = "acme".try_into().expect("a literal");
///         assert!(store.load(&tenant, &Select::none()).await.is_ok());
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
    /// An explorer that loses no reply and stops after a million executions.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lost_replies: 0,
            max_executions: 1_000_000,
        }
    }

    /// Sets how many commits of one execution may lose their request or reply. Each one multiplies
    /// the work.
    #[must_use]
    pub const fn lost_replies(mut self, most: usize) -> Self {
        self.lost_replies = most;
        self
    }

    /// Sets after how many executions to stop; [`Report::complete`] tells whether it was enough.
    #[must_use]
    pub const fn max_executions(mut self, most: usize) -> Self {
        self.max_executions = most;
        self
    }

    /// Runs the worlds that `world` makes in every order. They must all be alike: same writers, same
    /// randomness, same clock.
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

    /// Runs one order again.
    ///
    /// # Errors
    ///
    /// What was found then; or that the schedule is not one of this world.
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
    // Up to the first step nothing touches the store, so that the order does not matter.
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
    // Checks may have left a mark of their own.
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
            // The store itself waits, for a disk or a server.
            Poll::Pending => std::thread::yield_now(),
        }
    }
    Err("a writer waits for something that is no step".to_owned())
}

/// Carries out a future without a runtime, for stores that need none, or bring their own threads.
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

/// The choices made so far, with what else there was to choose.
#[derive(Debug, Default)]
struct Trail {
    branches: Vec<Branch>,
    depth: usize,
    /// A choice that was to be followed and is not among those there are.
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

    /// Goes on to the next sequence; false if there is none.
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
