//! The loop of a follower. It is thin: what is due when is said by [`pace`](super::pace).

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::pace::{Ended, FLOOR, Pace, pause};
use super::{FollowError, FollowOptions, FollowStatus};
use crate::keyward::Keyward;

/// For how long a round of upkeep may take before it is given up: the next round does what is left. A
/// judgement.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Follows the store and does the upkeep, until it is dropped.
pub(super) async fn run(keys: Keyward, options: FollowOptions, tell: watch::Sender<FollowStatus>) {
    // Beside each other: a chore that hangs must hold up no confirmation.
    let both = futures_util::future::join(
        follow(&keys, &options, &tell),
        upkeep(&keys, options.upkeep),
    );
    both.await;
}

async fn follow(keys: &Keyward, options: &FollowOptions, tell: &watch::Sender<FollowStatus>) {
    let mut failures = 0_u32;
    loop {
        let pace = Pace::of(options, keys.shortest_bound());
        let ended = match step(keys, pace.timeout).await {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!(failures, "follows the store again");
                }
                failures = 0;
                Ended::Confirmed
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let age = keys.freshness().age;
                tracing::warn!(%error, failures, ?age, "could not follow the store");
                tell.send_modify(|status| status.last_error = Some(error));
                Ended::Failed
            }
        };
        tell.send_modify(|status| {
            status.freshness = keys.freshness();
            status.failures = failures;
        });
        let pause = pause(ended, failures, &pace, keys.random());
        match ended {
            Ended::Confirmed => hint_within(keys, pause).await,
            Ended::Failed => sleep(pause).await,
        }
    }
}

/// One sync, given up if nothing comes for `limit`: what goes on may take longer.
async fn step(keys: &Keyward, limit: Duration) -> Result<(), FollowError> {
    let mut sync = pin!(keys.sync());
    let mut answers = keys.answers();
    loop {
        match timeout(limit, sync.as_mut()).await {
            Ok(synced) => return Ok(synced?),
            Err(_) if keys.answers() == answers => {
                return Err(FollowError::TimedOut { after: limit });
            }
            Err(_) => answers = keys.answers(),
        }
    }
}

/// Waits for a hint of the store, for at most `pause` and no less than the floor: hints may come for
/// nothing, and fail.
async fn hint_within(keys: &Keyward, pause: Duration) {
    sleep(FLOOR).await;
    let hint = async {
        if keys.hint().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    // Either way it is only a reason to ask.
    let _ = timeout(pause.saturating_sub(FLOOR), hint).await;
}

async fn upkeep(keys: &Keyward, every: Option<Duration>) {
    let Some(every) = every else { return };
    loop {
        sleep(every.max(FLOOR)).await;
        upkeep_once(keys).await;
    }
}

pub(super) async fn upkeep_once(keys: &Keyward) {
    match timeout(UPKEEP_TIMEOUT, keys.run_upkeep()).await {
        Ok(Ok(0)) => {}
        Ok(Ok(done)) => tracing::debug!(done, "upkeep done"),
        Ok(Err(error)) => tracing::warn!(%error, "upkeep failed"),
        Err(_) => tracing::warn!("upkeep given up"),
    }
}
