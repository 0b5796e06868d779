//! The follower that a [`Keyward`] starts when it is built, on a thread of its own or on a tokio runtime.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_listener::Event;
use futures_util::future::select;

use super::task::{self, Timers};
use super::{Follow, FollowOptions, FollowStatus};
use crate::keyward::Keyward;

/// 5 s: the longest wait for the end of a follower. A follower ends at its next poll.
const PATIENCE: Duration = Duration::from_secs(5);

/// The running follower of a [`Keyward`]. Dropping it ends the follower, without waiting.
#[derive(Debug)]
pub(crate) struct OwnFollower {
    shared: Arc<OwnFollowerState>,
    upkeep: bool,
}

#[derive(Debug)]
struct OwnFollowerState {
    status: Mutex<FollowStatus>,
    stopped: Latch,
    ended: Latch,
}

/// A flag that is set once, and a notification of everybody who waits for it.
#[derive(Debug, Default)]
struct Latch {
    set: AtomicBool,
    event: Event,
}

impl Latch {
    fn set(&self) {
        // A waiter listens before it reads the flag. So it sees the flag, or gets the notification.
        self.set.store(true, Ordering::Release);
        self.event.notify(usize::MAX);
    }

    fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    async fn wait(&self) {
        loop {
            let set = self.event.listen();
            if self.is_set() {
                return;
            }
            set.await;
        }
    }
}

/// Marks the follower as ended, also if the store panicked or the runtime dropped the task.
struct EndOfFollower(Arc<OwnFollowerState>);

impl Drop for EndOfFollower {
    fn drop(&mut self) {
        self.0.ended.set();
        if !self.0.stopped.is_set() {
            tracing::error!(
                "the follower ended with its runtime or by a panic, so this node refuses keys once its \
                 staleness bound has passed; restart the process"
            );
        }
    }
}

impl OwnFollower {
    /// Starts the follower of `keys`. Returns `None` if nothing runs in the background.
    ///
    /// # Errors
    ///
    /// An error of the operating system if no thread can be started.
    pub(crate) fn start(
        keys: &Keyward,
        follow: Follow,
        options: FollowOptions,
    ) -> std::io::Result<Option<Self>> {
        if matches!(follow, Follow::Manual | Follow::Never) {
            return Ok(None);
        }
        let shared = Arc::new(OwnFollowerState {
            status: Mutex::new(FollowStatus::of(keys)),
            stopped: Latch::default(),
            ended: Latch::default(),
        });
        let keys = keys.downgrade();
        // Made here, and not by the task: a runtime may drop the task before its first poll.
        let end = EndOfFollower(shared.clone());
        let run = move |timers| async move {
            let publish = |change: &dyn Fn(&mut FollowStatus)| {
                let status = &end.0.status;
                change(&mut status.lock().unwrap_or_else(PoisonError::into_inner));
            };
            let run = task::run(keys, options, timers, publish);
            select(pin!(run), pin!(end.0.stopped.wait())).await;
            end.0.stopped.set();
        };
        match follow {
            Follow::Manual | Follow::Never => {}
            Follow::Thread => {
                let thread = std::thread::Builder::new().name("keyward-follower".to_owned());
                thread.spawn(move || pollster::block_on(run(Timers::Own)))?;
            }
            #[cfg(feature = "tokio")]
            Follow::Tokio(runtime) => drop(runtime.spawn(run(Timers::Own))),
        }
        Ok(Some(Self {
            shared,
            upkeep: options.upkeep.is_some(),
        }))
    }

    pub(crate) fn status(&self) -> FollowStatus {
        let status = &self.shared.status;
        status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.shared.ended.is_set() && !self.shared.stopped.is_set()
    }

    /// Ends the follower without waiting.
    pub(crate) fn stop(&self) {
        self.shared.stopped.set();
    }

    /// Waits until the follower has ended. If it ran the maintenance, runs it one last time.
    pub(crate) async fn ended(&self, keys: &Keyward) {
        // A runtime that nobody drives never ends its task.
        let ended = Timers::Own.within(PATIENCE, self.shared.ended.wait()).await;
        if ended.is_none() {
            tracing::warn!("the runtime of the follower did not end it within {PATIENCE:?}");
        }
        if self.upkeep {
            task::upkeep_once(keys, Timers::Own).await;
        }
    }
}

impl Drop for OwnFollower {
    fn drop(&mut self) {
        self.stop();
    }
}
