//! Log lines before a node refuses keys as stale, when it begins to refuse them, and when it accepts them again.
//! Each change is one line.
//!
//! The state machine is pure: the age of the last confirmation and the time are arguments.

use std::time::Duration;

/// A node's state in the log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Announced {
    #[default]
    Fresh,
    /// At least half of the staleness bound has passed, and the last sync failed.
    Near,
    Refusing {
        since: Duration,
    },
}

/// A change that was not logged before.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum RefusalNews {
    /// Keys will be refused after `left`, unless a sync succeeds.
    Near { left: Duration, cause: String },
    /// Keys are refused. Without a cause, no sync has failed since the last confirmation.
    Begun { cause: Option<String> },
    /// Keys are accepted again.
    Ended { lasted: Duration },
}

/// The inputs of a judgement: the time, and the age of the last confirmation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged {
    /// The monotonic time.
    pub(super) now: Duration,
    /// The age of the last confirmation; `None` if no read confirms the index.
    pub(super) age: Option<Duration>,
    pub(super) bound: Duration,
    /// True if a verification was just refused for lack of a confirmation.
    pub(super) refused: bool,
}

/// The last logged state of a node, and the cause of the last failed sync.
#[derive(Debug, Default)]
pub(super) struct RefusalWatch {
    announced: Announced,
    /// The cause of the last failed sync, with all its sources. `None` after a confirmation.
    cause: Option<String>,
    /// True once a read has confirmed the index. Before the first confirmation, the node was never in use.
    was_fresh: bool,
}

impl RefusalWatch {
    pub(super) fn failed(&mut self, cause: String) {
        self.cause = Some(cause);
    }

    pub(super) fn confirmed(&mut self) {
        (self.cause, self.was_fresh) = (None, true);
    }

    pub(super) const fn is_refusing(&self) -> bool {
        matches!(self.announced, Announced::Refusing { .. })
    }

    /// Returns the change since the last call, if there is one.
    ///
    /// A service with `Follow::Manual` may come close to its bound without any failure. So before a refusal, only
    /// a failed sync causes a line.
    pub(super) fn judge(&mut self, judged: Judged) -> Option<RefusalNews> {
        let Judged {
            now,
            age,
            bound,
            refused,
        } = judged;
        let fresh = age.filter(|age| *age <= bound);
        match (self.announced, fresh, &self.cause) {
            (Announced::Refusing { since }, Some(age), cause) => {
                // A confirmation ended the refusal, and may be older than this call.
                self.announced = Announced::Fresh;
                let confirmed = if cause.is_none() { age } else { Duration::ZERO };
                let lasted = now.saturating_sub(confirmed).saturating_sub(since);
                Some(RefusalNews::Ended { lasted })
            }
            (Announced::Fresh, Some(age), Some(cause)) if age >= bound / 2 => {
                self.announced = Announced::Near;
                let (left, cause) = (bound.saturating_sub(age), cause.clone());
                Some(RefusalNews::Near { left, cause })
            }
            (Announced::Near, Some(_), None) => {
                self.announced = Announced::Fresh;
                None
            }
            (Announced::Fresh | Announced::Near, None, cause)
                if self.was_fresh && (refused || cause.is_some()) =>
            {
                let past = age.map_or(Duration::ZERO, |age| age.saturating_sub(bound));
                let since = now.saturating_sub(past);
                self.announced = Announced::Refusing { since };
                let cause = cause.clone();
                Some(RefusalNews::Begun { cause })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// A node whose bound is 10 s, and whose last confirmation was sent at zero.
    fn fresh() -> RefusalWatch {
        let mut watch = RefusalWatch::default();
        watch.confirmed();
        watch
    }

    fn at(now: u64, age: Option<u64>) -> Judged {
        Judged {
            now: seconds(now),
            age: age.map(seconds),
            bound: seconds(10),
            refused: false,
        }
    }

    #[test]
    fn each_change_is_announced_once() {
        let mut watch = fresh();
        let mut see = |now, age, failed: Option<&str>| {
            match failed {
                Some(cause) => watch.failed(cause.to_owned()),
                None => watch.confirmed(),
            }
            watch.judge(at(now, age))
        };
        let cause = "the server is down".to_owned();
        assert_eq!(see(4, Some(4), Some(&cause)), None, "half is not over");
        let left = seconds(5);
        let near = RefusalNews::Near { left, cause };
        assert_eq!(see(5, Some(5), Some("the server is down")), Some(near));
        assert_eq!(see(9, Some(9), Some("the server is down")), None);
        assert_eq!(see(10, Some(10), Some("the disk is full")), None);
        let cause = Some("the disk is full".to_owned());
        let begun = RefusalNews::Begun { cause };
        assert_eq!(see(12, Some(12), Some("the disk is full")), Some(begun));
        assert_eq!(see(99, Some(99), Some("the disk is full")), None);
        // It began at 10 s, and the read that ended it was sent at 110 s.
        let lasted = seconds(100);
        assert_eq!(see(111, Some(1), None), Some(RefusalNews::Ended { lasted }));
        assert_eq!(see(112, Some(2), None), None);
    }

    #[test]
    fn a_failure_that_ends_in_time_and_a_late_sync_are_not_announced_as_a_refusal() {
        let mut watch = fresh();
        assert_eq!(watch.judge(at(9, Some(9))), None, "no sync failed");
        assert_eq!(watch.judge(at(11, Some(11))), None, "no key was refused");
        watch.failed("timed out".to_owned());
        assert!(watch.judge(at(6, Some(6))).is_some());
        watch.confirmed();
        assert_eq!(watch.judge(at(7, Some(0))), None);
        watch.failed("timed out".to_owned());
        let again = watch.judge(at(13, Some(6)));
        assert!(matches!(again, Some(RefusalNews::Near { .. })), "{again:?}");
    }

    #[test]
    fn a_refused_key_is_announced_without_a_failure_if_the_node_was_in_use() {
        let refused = |age| Judged {
            refused: true,
            ..at(20, age)
        };
        let begun = Some(RefusalNews::Begun { cause: None });
        assert_eq!(fresh().judge(refused(Some(20))), begun);
        assert_eq!(fresh().judge(refused(None)), begun);
        assert_eq!(RefusalWatch::default().judge(refused(None)), None);
        let mut failed = RefusalWatch::default();
        failed.failed("the server is down".to_owned());
        assert_eq!(failed.judge(at(20, None)), None, "it was never fresh");
    }
}
