//! A follower on the current tokio runtime, with a handle to stop it (feature `tokio`).

use std::panic::catch_unwind;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::task::{self, Timers};
use super::{FollowOptions, FollowStatus};
use crate::keyward::Keyward;

/// The reason why [`Keyward::follow`] started no follower.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FollowStartError {
    /// The caller is outside a tokio runtime.
    #[error(
        "no tokio runtime to follow the store on; start within a runtime, or follow on a thread"
    )]
    NoRuntime,
    /// The timers of the current tokio runtime are not enabled.
    #[error("the tokio runtime has no timers; enable its time driver")]
    NoTimers,
}

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
    /// The follower that [`build`](crate::KeywardBuilder::build) started ends, because one follower per
    /// [`Keyward`] is enough. Calling [`sync`](Self::sync) and
    /// [`run_maintenance`](Self::run_maintenance) concurrently is safe.
    ///
    /// # Errors
    ///
    /// [`FollowStartError`] outside a tokio runtime, or on a runtime without timers.
    pub fn follow(&self, options: FollowOptions) -> Result<Follower, FollowStartError> {
        let runtime = Handle::try_current().map_err(|_| FollowStartError::NoRuntime)?;
        // Tokio has no other way to ask whether the timers are enabled: without them, it panics.
        let timer = catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO)));
        timer.map_err(|_| FollowStartError::NoTimers)?;
        if let Some(own) = self.inner.follower.get() {
            own.stop();
        }
        let (publish, status) = watch::channel(FollowStatus::of(self));
        let publish = move |change: &dyn Fn(&mut FollowStatus)| {
            publish.send_modify(|status| change(status));
        };
        let task = task::run(self.downgrade(), options, Timers::Tokio, publish);
        let task = runtime.spawn(task);
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

    /// Returns whether the task is running. Without [`stop`](Self::stop), the task ends only if the node is
    /// [closed](Keyward::close), the store panics or the runtime shuts down.
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
                .spawn(async move { task::upkeep_once(&keys, Timers::Tokio).await });
            let _ = last.await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}
