//! The loop of a follower. [`pace`](super::pace) computes its pauses.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::pace::{Ended, FLOOR, Pace, pause};
use super::{FollowError, FollowOptions, FollowStatus};
use crate::keyward::Keyward;

/// 30 s, after which a round of upkeep is cancelled. The next round does the rest. A judgement.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Follows the store and does the upkeep, until the future is dropped.
pub(super) async fn run(
    keys: Keyward,
    options: FollowOptions,
    publish: watch::Sender<FollowStatus>,
) {
    // Concurrently: an upkeep task that hangs must not delay a confirmation.
    let both = futures_util::future::join(
        follow(&keys, &options, &publish),
        upkeep(&keys, options.upkeep),
    );
    both.await;
}

async fn follow(keys: &Keyward, options: &FollowOptions, publish: &watch::Sender<FollowStatus>) {
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
                publish.send_modify(|status| status.last_error = Some(error));
                Ended::Failed
            }
        };
        publish.send_modify(|status| {
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

/// Runs one sync. The sync times out if no page arrives for `limit`; a sync whose pages keep arriving may
/// take longer.
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

/// Waits for a hint from the store, for at most `pause`. Waits at least for the floor, because hints may be
/// spurious or fail.
async fn hint_within(keys: &Keyward, pause: Duration) {
    sleep(FLOOR).await;
    let hint = async {
        if keys.hint().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    // A hint and a timeout both lead to the next sync.
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
    match timeout(UPKEEP_TIMEOUT, keys.run_maintenance()).await {
        Ok(Ok(0)) => {}
        Ok(Ok(done)) => tracing::debug!(done, "upkeep done"),
        Ok(Err(error)) => tracing::warn!(%error, "upkeep failed"),
        Err(_) => tracing::warn!("upkeep given up"),
    }
}
