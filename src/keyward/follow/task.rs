//! The loop of a follower. [`pace`](super::pace) computes its pauses.
//!
//! The loop keeps a [`Keyward`] alive only during a sync or a maintenance run, so that a follower ends with the
//! last [`Keyward`].

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, join3, select};

use super::pace::{FLOOR, Pace, SyncOutcome, pause};
use super::{FollowError, FollowOptions, FollowStatus};
use crate::keyward::{Keyward, WeakKeyward};
use crate::observe::WithSources;

/// 30 s: the timeout of one maintenance run. The next run does the remaining work.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(30);

/// The timers of a follower.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timers {
    /// A thread of the `futures-timer` crate, with any executor.
    Own,
    /// The timers of the current tokio runtime.
    #[cfg(feature = "tokio")]
    Tokio,
}

impl Timers {
    async fn sleep(self, duration: Duration) {
        match self {
            Self::Own => futures_timer::Delay::new(duration).await,
            #[cfg(feature = "tokio")]
            Self::Tokio => tokio::time::sleep(duration).await,
        }
    }

    /// Polls `future` for at most `limit`. Returns `None` if the future did not complete.
    pub(super) async fn within<T>(
        self,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        match select(pin!(future), pin!(self.sleep(limit))).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }
}

/// Syncs with the store and runs maintenance, until the future is dropped or no [`Keyward`] is left.
pub(super) async fn run(
    keys: WeakKeyward,
    options: FollowOptions,
    timers: Timers,
    publish: impl Fn(&dyn Fn(&mut FollowStatus)),
) {
    // Runs all concurrently, so that a hanging upkeep or flush cannot delay a sync.
    let all = join3(
        follow(&keys, &options, timers, publish),
        upkeep(&keys, options.upkeep, timers),
        send_usage(&keys, options.flush, timers),
    );
    all.await;
}

async fn follow(
    followed: &WeakKeyward,
    options: &FollowOptions,
    timers: Timers,
    publish: impl Fn(&dyn Fn(&mut FollowStatus)),
) {
    let mut failures = 0_u32;
    let mut logged = LoggedCause::default();
    while let Some(keys) = followed.upgrade().filter(|keys| !keys.is_closed()) {
        let pace = Pace::of(options, keys.shortest_bound());
        let outcome = match step(&keys, pace.timeout, timers).await {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!(failures, "follows the store again");
                }
                failures = 0;
                logged = LoggedCause::default();
                SyncOutcome::Confirmed
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let age = keys.freshness().age;
                if logged.is_new(&error) {
                    tracing::warn!(
                        error = %WithSources(&error),
                        failures,
                        ?age,
                        "could not follow the store, trying again"
                    );
                } else {
                    tracing::debug!(error = %WithSources(&error), failures, ?age, "still cannot follow the store");
                }
                publish(&|status| status.last_error = Some(error.clone()));
                SyncOutcome::Failed
            }
        };
        publish(&|status| {
            status.freshness = keys.freshness();
            status.failures = failures;
        });
        let pause = pause(outcome, failures, &pace, keys.random());
        match outcome {
            SyncOutcome::Confirmed => hint_within(keys, pause, timers).await,
            SyncOutcome::Failed => {
                drop(keys);
                timers.sleep(pause).await;
            }
        }
    }
}

/// The cause of the last logged failure. A failure that repeats is not logged again, because a follower tries
/// several times a second.
#[derive(Debug, Default)]
struct LoggedCause(Option<String>);

impl LoggedCause {
    /// Returns whether the cause of `error` differs from the last logged cause, and records the new cause.
    fn is_new(&mut self, error: &(dyn std::error::Error + 'static)) -> bool {
        let cause = WithSources(error).to_string();
        self.0.replace(cause.clone()) != Some(cause)
    }
}

/// Runs one sync. The sync times out if no page arrives for `limit`; a sync whose pages keep arriving may
/// take longer.
async fn step(keys: &Keyward, limit: Duration, timers: Timers) -> Result<(), FollowError> {
    let mut sync = pin!(keys.sync());
    let mut answers = keys.answers();
    loop {
        match timers.within(limit, sync.as_mut()).await {
            Some(synced) => return Ok(synced?),
            None if keys.answers() == answers => {
                return Err(FollowError::TimedOut { after: limit });
            }
            None => answers = keys.answers(),
        }
    }
}

/// Waits for a hint from the store, for at most `pause`. Waits at least [`FLOOR`], so that spurious hints and
/// failing waits do not cause a busy loop.
async fn hint_within(keys: Keyward, pause: Duration, timers: Timers) {
    let hint = keys.hint();
    drop(keys);
    timers.sleep(FLOOR).await;
    let hint = async {
        if hint.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    // A hint and a timeout both lead to the next sync.
    let _ = timers.within(pause.saturating_sub(FLOOR), hint).await;
}

async fn upkeep(keys: &WeakKeyward, every: Option<Duration>, timers: Timers) {
    let Some(every) = every else { return };
    let mut logged = LoggedCause::default();
    loop {
        timers.sleep(every.max(FLOOR)).await;
        let Some(keys) = keys.upgrade().filter(|keys| !keys.is_closed()) else {
            return;
        };
        run_upkeep(&keys, timers, &mut logged).await;
    }
}

/// Sends the counted uses to the usage store, the first time at once.
async fn send_usage(keys: &WeakKeyward, every: Option<Duration>, timers: Timers) {
    let Some(every) = every else { return };
    let mut logged = LoggedCause::default();
    loop {
        let Some(keys) = keys.upgrade().filter(|keys| !keys.is_closed()) else {
            return;
        };
        match timers.within(UPKEEP_TIMEOUT, keys.flush_usage()).await {
            Some(Ok(_)) => logged = LoggedCause::default(),
            Some(Err(error)) if logged.is_new(&error) => {
                tracing::warn!(error = %WithSources(&error), "cannot send the uses of keys, trying again");
            }
            Some(Err(error)) => {
                tracing::debug!(error = %WithSources(&error), "still cannot send the uses of keys");
            }
            None => {
                tracing::warn!(limit = ?UPKEEP_TIMEOUT, "sending the uses of keys timed out, trying again")
            }
        }
        drop(keys);
        timers.sleep(every.max(FLOOR)).await;
    }
}

/// Polls a future for at most 30 seconds.
pub(in crate::keyward) async fn bounded<T>(future: impl Future<Output = T>) -> Option<T> {
    Timers::Own.within(UPKEEP_TIMEOUT, future).await
}

/// Runs the maintenance once, for at most 30 seconds.
pub(super) async fn upkeep_once(keys: &Keyward, timers: Timers) {
    run_upkeep(keys, timers, &mut LoggedCause::default()).await;
}

async fn run_upkeep(keys: &Keyward, timers: Timers, logged: &mut LoggedCause) {
    match timers.within(UPKEEP_TIMEOUT, keys.run_maintenance()).await {
        Some(Ok(done)) => {
            *logged = LoggedCause::default();
            if done > 0 {
                tracing::debug!(done, "upkeep done");
            }
        }
        Some(Err(error)) if logged.is_new(&error) => {
            tracing::warn!(error = %WithSources(&error), "upkeep failed, trying again");
        }
        Some(Err(error)) => {
            tracing::debug!(error = %WithSources(&error), "upkeep still fails");
        }
        None => tracing::warn!(limit = ?UPKEEP_TIMEOUT, "upkeep timed out, trying again"),
    }
}
