//! A task that keeps a node up to date by itself (feature `tokio`, and the only place that needs a
//! runtime).
//!
//! It drives [`Keyward::sync`]: woken by the store's hints, by a poll in any case, and after a
//! failure with pauses that grow. Its timers only pace it. Whether a key may be accepted is judged by
//! the injected clock and by what a sync confirmed, so that a follower that hangs, fails or is gone
//! makes keys be refused, never accepted for longer.

mod pace;
mod task;

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::keyward::Keyward;
use crate::replica::{Freshness, Lag};
use crate::store::StoreError;

/// How a [`Follower`] goes about its work. The default fits most services.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub struct FollowOptions {
    poll: Duration,
    timeout: Duration,
    backoff: Duration,
    upkeep: Option<Duration>,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self {
            poll: Self::DEFAULT_POLL,
            timeout: Self::DEFAULT_TIMEOUT,
            backoff: Self::DEFAULT_BACKOFF,
            upkeep: Some(Self::DEFAULT_UPKEEP),
        }
    }
}

impl FollowOptions {
    /// 250 ms: a fortieth of the default staleness bound, and four cheap reads a second. A judgement.
    pub const DEFAULT_POLL: Duration = Duration::from_millis(250);

    /// 1 s: many times what a store that works takes for a page. A judgement.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

    /// 2 s: a fifth of the default staleness bound. A judgement.
    pub const DEFAULT_BACKOFF: Duration = Duration::from_secs(2);

    /// 1 s. A judgement: so much later than a successor's first use may a grace begin.
    pub const DEFAULT_UPKEEP: Duration = Duration::from_secs(1);

    /// Sets after how long it asks the store, though no hint came. Defaults to
    /// [`DEFAULT_POLL`](Self::DEFAULT_POLL). At most a quarter of the shortest staleness bound in
    /// force that is not zero is used, and at least 10 ms.
    pub const fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll;
        self
    }

    /// Sets for how long nothing may come from the store before a sync is given up. Defaults to
    /// [`DEFAULT_TIMEOUT`](Self::DEFAULT_TIMEOUT). Each page that comes starts it anew, so that
    /// reading everything may take as long as it does. At most half of the shortest bound is used,
    /// and at least 10 ms.
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the longest pause after failures in a row; they begin with 50 ms, double, and are drawn
    /// at random up to that. Defaults to [`DEFAULT_BACKOFF`](Self::DEFAULT_BACKOFF). At most a
    /// quarter of the shortest bound is used, and at least 10 ms.
    pub const fn with_backoff(mut self, backoff: Duration) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how often [`Keyward::run_upkeep`] is called; `None` leaves it to the host. Defaults to
    /// [`DEFAULT_UPKEEP`](Self::DEFAULT_UPKEEP). At least 10 ms.
    pub const fn with_upkeep(mut self, every: Option<Duration>) -> Self {
        self.upkeep = every;
        self
    }
}

/// How a follower is doing.
#[derive(Clone, Debug)]
pub struct FollowStatus {
    /// How far the node is.
    pub freshness: Freshness,
    /// How many steps failed since the last one that confirmed.
    pub failures: u32,
    /// Why a step failed last. It stays when later ones confirm.
    pub last_error: Option<FollowError>,
}

impl FollowStatus {
    /// How far the node is behind its store.
    #[must_use]
    pub fn lag(&self) -> Lag {
        self.freshness.lag()
    }
}

/// Why a step of a follower failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// Nothing came from the store for too long, and the step was given up.
    #[error("store did not answer within {after:?}")]
    TimedOut {
        /// How long.
        after: Duration,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A task was to be started where no tokio runtime runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no tokio runtime to follow the store on")]
pub struct NoRuntime;

/// A task that keeps a [`Keyward`] up to date. It ends when this is stopped or dropped.
///
/// # Examples
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use keyward::store::MemoryStore;
/// use keyward::{FollowOptions, Keyward, PepperRing};
///
/// let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
/// let follower = keys.follow(FollowOptions::default())?;
///
/// follower.watch().changed().await?; // a step ended
/// assert_eq!(follower.status().failures, 0);
///
/// follower.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a follower stops when it is dropped"]
pub struct Follower {
    keys: Keyward,
    told: watch::Receiver<FollowStatus>,
    upkeep: bool,
    runtime: Handle,
    task: JoinHandle<()>,
}

impl Keyward {
    /// Starts a task on the current tokio runtime, whose timers must be enabled, that follows the
    /// store and does the upkeep. Its first step begins at once.
    ///
    /// One is enough. [`sync`](Self::sync) and [`run_upkeep`](Self::run_upkeep) may be called beside
    /// it.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`] where no tokio runtime runs.
    pub fn follow(&self, options: FollowOptions) -> Result<Follower, NoRuntime> {
        let runtime = Handle::try_current().map_err(|_| NoRuntime)?;
        let (tell, told) = watch::channel(FollowStatus {
            freshness: self.freshness(),
            failures: 0,
            last_error: None,
        });
        let task = runtime.spawn(task::run(self.clone(), options, tell));
        Ok(Follower {
            keys: self.clone(),
            told,
            upkeep: options.upkeep.is_some(),
            runtime,
            task,
        })
    }
}

impl Follower {
    /// How it is doing: the freshness is that of now, the rest as the last step left it.
    #[must_use]
    pub fn status(&self) -> FollowStatus {
        FollowStatus {
            freshness: self.keys.freshness(),
            ..self.told.borrow().clone()
        }
    }

    /// Tells of every step that ends, with how it is doing then. It is closed when the task has
    /// ended.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<FollowStatus> {
        let mut told = self.told.clone();
        // Only what comes from now on is news.
        told.mark_unchanged();
        told
    }

    /// Whether the task runs. It ends by itself only if the store panics, or the runtime is shut
    /// down.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Stops it: the step on its way is given up, and when this returns the task has ended. If it did the
    /// upkeep, it does so once more, for 30 seconds at most: no first use that was counted is lost. A chore that was being done
    /// may or may not have landed.
    pub async fn stop(mut self) {
        self.task.abort();
        // Whether it was stopped or had ended before, it has ended.
        let _ = (&mut self.task).await;
        if self.upkeep {
            // On the runtime, whose timers it needs, wherever this is awaited.
            let keys = self.keys.clone();
            let last = self
                .runtime
                .spawn(async move { task::upkeep_once(&keys).await });
            let _ = last.await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}
