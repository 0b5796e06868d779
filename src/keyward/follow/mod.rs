//! A task that keeps a node up to date (feature `tokio`; no other module needs a runtime).
//!
//! The task calls [`Keyward::sync`] after each hint from the store, and after each poll interval without a
//! hint. After consecutive failures the pauses grow.
//!
//! The timers of the task do not decide whether a key is accepted: the injected clock and the last confirmed
//! sync do. If the follower hangs, fails or ends, keys are refused once the staleness bound has passed.

mod pace;
mod task;

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::keyward::Keyward;
use crate::replica::{Freshness, Lag};
use crate::store::StoreError;

/// The intervals and timeouts of a [`Follower`]. The defaults suit most services.
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
    /// 250 ms, a fortieth of the default staleness bound: four cheap reads per second.
    pub const DEFAULT_POLL: Duration = Duration::from_millis(250);

    /// 1 s, many times the time that a healthy store needs for a page.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

    /// 2 s, a fifth of the default staleness bound.
    pub const DEFAULT_BACKOFF: Duration = Duration::from_secs(2);

    /// 1 s. An old key's grace period can start at its successor's first use. It usually starts at most this
    /// much later.
    pub const DEFAULT_UPKEEP: Duration = Duration::from_secs(1);

    /// Sets the interval at which the follower polls the store if no hint arrives. Defaults to
    /// [`DEFAULT_POLL`](Self::DEFAULT_POLL). The follower uses at most a quarter of the shortest nonzero
    /// staleness bound in force, and at least 10 ms.
    pub const fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll;
        self
    }

    /// Sets the longest wait for a page before a sync times out. Defaults to
    /// [`DEFAULT_TIMEOUT`](Self::DEFAULT_TIMEOUT). Each page restarts the wait, so a sync that reads many
    /// pages may take longer. The follower uses at most half of the shortest nonzero staleness bound in
    /// force, and at least 10 ms.
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the longest pause after consecutive failures. Each pause is random, up to a limit that starts at
    /// 50 ms, doubles with each failure and stops growing at `backoff`. Defaults to
    /// [`DEFAULT_BACKOFF`](Self::DEFAULT_BACKOFF). A backoff above a quarter of the shortest nonzero staleness
    /// bound in force counts as that quarter, and a backoff below 10 ms as 10 ms.
    pub const fn with_backoff(mut self, backoff: Duration) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the interval between calls of [`Keyward::run_maintenance`]. If `None`, the host must make these
    /// calls. Defaults to [`DEFAULT_UPKEEP`](Self::DEFAULT_UPKEEP). The follower waits at least 10 ms.
    pub const fn with_upkeep(mut self, every: Option<Duration>) -> Self {
        self.upkeep = every;
        self
    }
}

/// The state of a follower.
#[derive(Clone, Debug)]
pub struct FollowStatus {
    /// The node's position in the store's history, and the age of its last confirmation.
    pub freshness: Freshness,
    /// The number of failed syncs since the last successful sync.
    pub failures: u32,
    /// The error of the last failed sync. Later successful syncs do not clear this error.
    pub last_error: Option<FollowError>,
}

impl FollowStatus {
    /// Returns the distance between the node and its store.
    #[must_use]
    pub fn lag(&self) -> Lag {
        self.freshness.lag()
    }
}

/// The error of a follower's failed sync.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The store returned no page within the timeout, and the sync was cancelled.
    #[error("store did not answer within {after:?}")]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The error of [`Keyward::follow`] outside a tokio runtime.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no tokio runtime to follow the store on")]
pub struct NoRuntime;

/// A handle of the task that keeps a [`Keyward`] up to date. Stopping or dropping the handle ends the task.
///
/// # Examples
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use keyward::{Keyward, PepperRing};
/// use keyward::node::FollowOptions;
/// use keyward::store::MemoryStore;
///
/// let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
/// let follower = keys.follow(FollowOptions::default())?;
///
/// follower.watch().changed().await?; // a sync has ended
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
    status: watch::Receiver<FollowStatus>,
    upkeep: bool,
    runtime: Handle,
    task: JoinHandle<()>,
}

impl Keyward {
    /// Starts a task that syncs this node with its store and runs maintenance. The task runs on the current
    /// tokio runtime, whose timers must be enabled. The first sync starts immediately.
    ///
    /// One follower per [`Keyward`] is enough. Calling [`sync`](Self::sync) and
    /// [`run_maintenance`](Self::run_maintenance) concurrently is safe.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`] outside a tokio runtime.
    pub fn follow(&self, options: FollowOptions) -> Result<Follower, NoRuntime> {
        let runtime = Handle::try_current().map_err(|_| NoRuntime)?;
        let (publish, status) = watch::channel(FollowStatus {
            freshness: self.freshness(),
            failures: 0,
            last_error: None,
        });
        let task = runtime.spawn(task::run(self.clone(), options, publish));
        Ok(Follower {
            keys: self.clone(),
            status,
            upkeep: options.upkeep.is_some(),
            runtime,
            task,
        })
    }
}

impl Follower {
    /// Returns the state of the follower. The freshness is current, and the other fields are those of the
    /// last sync.
    #[must_use]
    pub fn status(&self) -> FollowStatus {
        FollowStatus {
            freshness: self.keys.freshness(),
            ..self.status.borrow().clone()
        }
    }

    /// Returns a channel on which the follower publishes its state after each sync. The channel closes when
    /// the task ends.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<FollowStatus> {
        let mut status = self.status.clone();
        // Marks the current state as seen, so that `changed` waits for the next sync.
        status.mark_unchanged();
        status
    }

    /// Returns whether the task is running. Without [`stop`](Self::stop), the task ends only if the store
    /// panics or the runtime shuts down.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Stops the task: cancels the sync in flight, and waits until the task has ended. If a maintenance
    /// command was in flight, it may or may not have committed.
    ///
    /// If the follower ran the maintenance, this call runs it one last time, for at most 30 seconds. The last
    /// run records first uses of rotation successors that would otherwise be lost.
    pub async fn stop(mut self) {
        self.task.abort();
        // The result does not matter: an aborted task and a finished task have both ended.
        let _ = (&mut self.task).await;
        if self.upkeep {
            // The upkeep needs the runtime's timers, and the caller may await `stop` outside the runtime.
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
