//! Keeping a node up to date in the background, on a thread or on a tokio runtime.
//!
//! A follower calls [`Keyward::sync`] after each hint from the store, and after each poll interval without a
//! hint. After consecutive failures the pauses grow.
//!
//! The timers of a follower do not decide whether a key is accepted: the injected clock and the last confirmed
//! sync do. If the follower hangs, fails or ends, keys are refused once the staleness bound has passed.

mod own;
mod pace;
mod task;
#[cfg(feature = "tokio")]
mod tokio_task;

use std::time::Duration;

pub(super) use self::own::OwnFollower;
pub(super) use self::task::bounded;
#[cfg(feature = "tokio")]
pub use self::tokio_task::{FollowStartError, Follower};
use super::Keyward;
use crate::replica::{Freshness, Lag};
use crate::store::StoreError;

/// The way in which a node stays up to date after it was built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Follow {
    /// A thread of its own, which needs no async runtime.
    Thread,
    /// Nothing runs in the background. The application calls [`Keyward::sync`] at least once within every
    /// staleness bound, and [`Keyward::run_maintenance`] about once per second.
    Manual,
    /// Nothing runs in the background, and [`build`](crate::KeywardBuilder::build) reads no keys. For a program
    /// that executes commands and verifies no keys, such as a command-line tool. Each command reads the rows that
    /// its decision needs.
    ///
    /// [`Keyward::verify_fresh`] works. Until the application calls [`Keyward::sync`], which reads the whole
    /// store, [`Keyward::verify`] refuses every key. Before that call, the node is not registered, and
    /// [`Keyward::tenants_ahead`] and [`Keyward::run_maintenance`] find nothing.
    Never,
    /// A task on this tokio runtime. The runtime needs no timers.
    #[cfg(feature = "tokio")]
    Tokio(tokio::runtime::Handle),
}

/// The intervals and timeouts of a follower. The defaults suit most services.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub struct FollowOptions {
    poll: Duration,
    timeout: Duration,
    backoff: Duration,
    upkeep: Option<Duration>,
    flush: Option<Duration>,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self {
            poll: Self::DEFAULT_POLL,
            timeout: Self::DEFAULT_TIMEOUT,
            backoff: Self::DEFAULT_BACKOFF,
            upkeep: Some(Self::DEFAULT_UPKEEP),
            flush: Some(Self::DEFAULT_FLUSH),
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

    /// 10 s: a process that is killed loses the uses of at most about this time.
    pub const DEFAULT_FLUSH: Duration = Duration::from_secs(10);

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

    /// Sets the interval between calls of [`Keyward::flush_usage`]. If `None`, the host must make these calls. Defaults
    /// to [`DEFAULT_FLUSH`](Self::DEFAULT_FLUSH). The follower waits at least 10 ms.
    pub const fn with_flush(mut self, every: Option<Duration>) -> Self {
        self.flush = every;
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
    fn of(keys: &Keyward) -> Self {
        Self {
            freshness: keys.freshness(),
            failures: 0,
            last_error: None,
        }
    }

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
