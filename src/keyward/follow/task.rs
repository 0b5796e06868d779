//! The loop of a follower. [`pace`](super::pace) computes its pauses.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::pace::{FLOOR, Pace, SyncOutcome, pause};
use super::{FollowError, FollowOptions, FollowStatus};
use crate::keyward::Keyward;

/// 30 s: the timeout of one maintenance run. The next run does the remaining work.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Syncs with the store and runs maintenance, until the future is dropped.
pub(super) async fn run(
    keys: Keyward,
    options: FollowOptions,
    publish: watch::Sender<FollowStatus>,
) {
    // Runs both concurrently, so that a hanging upkeep cannot delay a sync.
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
        let outcome = match step(keys, pace.timeout).await {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!(failures, "follows the store again");
                }
                failures = 0;
                SyncOutcome::Confirmed
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let age = keys.freshness().age;
                tracing::warn!(%error, failures, ?age, "could not follow the store");
                publish.send_modify(|status| status.last_error = Some(error));
                SyncOutcome::Failed
            }
        };
        publish.send_modify(|status| {
            status.freshness = keys.freshness();
            status.failures = failures;
        });
        let pause = pause(outcome, failures, &pace, keys.random());
        match outcome {
            SyncOutcome::Confirmed => hint_within(keys, pause).await,
            SyncOutcome::Failed => sleep(pause).await,
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

/// Waits for a hint from the store, for at most `pause`. Waits at least [`FLOOR`], so that spurious hints and
/// failing waits do not cause a busy loop.
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
        Err(_) => tracing::warn!("upkeep timed out"),
    }
}
