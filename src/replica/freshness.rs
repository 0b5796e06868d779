//! The freshness and the lag of a replica, as plain values.

use std::time::Duration;

use crate::store::Cursor;

/// A replica's position in the store's history, and the age of its last confirmation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Freshness {
    /// The age of the last confirmation, counted from the send time of the read that confirmed.
    /// `None` before the first confirmation.
    pub age: Option<Duration>,
    /// The replica's position in the store's history.
    pub cursor: Option<Cursor>,
    /// The newest head that any read of the store returned.
    pub head: Option<Cursor>,
    /// A position that this process knows and the store lacks: the store went back in time within its epoch.
    /// The process then accepts no key and executes no command, until the store has this position again, or
    /// has a new epoch. `None` otherwise.
    pub diverged: Option<Cursor>,
}

/// The lag of a replica behind its store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Lag {
    /// An upper limit: the replica contains every commit that returned longer ago than this. `None` before
    /// the first confirmation.
    pub time: Option<Duration>,
    /// A lower limit: the number of commits that are known to be in the store, but not in the replica. `None`
    /// before the first sync, and during a resync.
    pub commits: Option<u64>,
}

impl Freshness {
    /// Returns whether keys of a class with this staleness bound are verified without asking the store.
    /// Always false for a bound of zero, which requires every verification to read the store.
    #[must_use]
    pub fn is_fresh_for(&self, bound: Duration) -> bool {
        !bound.is_zero() && self.age.is_some_and(|age| age <= bound)
    }

    /// Returns an upper limit of the lag in time, and a lower limit in commits.
    #[must_use]
    pub fn lag(&self) -> Lag {
        let both = self.cursor.zip(self.head);
        let one_history = both.filter(|(cursor, head)| cursor.epoch == head.epoch);
        let behind =
            |(cursor, head): (Cursor, Cursor)| head.revision.0.saturating_sub(cursor.revision.0);
        Lag {
            time: self.age,
            commits: one_history.map(behind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::view::Revision;
    use crate::store::Epoch;

    fn at(epoch: u128, revision: u64) -> Option<Cursor> {
        Some(Cursor {
            epoch: Epoch(epoch),
            revision: Revision(revision),
            ..Cursor::default()
        })
    }

    fn aged(age: Option<u64>) -> Freshness {
        Freshness {
            age: age.map(Duration::from_secs),
            cursor: at(1, 5),
            head: at(1, 7),
            diverged: None,
        }
    }

    #[test]
    fn it_is_fresh_up_to_its_bound_and_never_for_a_bound_of_zero() {
        let ten = Duration::from_secs(10);
        assert!(aged(Some(10)).is_fresh_for(ten));
        assert!(!aged(Some(11)).is_fresh_for(ten));
        assert!(!aged(None).is_fresh_for(ten));
        assert!(!aged(Some(0)).is_fresh_for(Duration::ZERO));
    }

    #[test]
    fn lag_counts_commits_within_one_history_alone() {
        let lag = aged(Some(3)).lag();
        assert_eq!(
            (lag.time, lag.commits),
            (Some(Duration::from_secs(3)), Some(2))
        );
        let ahead = Freshness {
            head: at(1, 4),
            ..aged(None)
        };
        assert_eq!(ahead.lag().commits, Some(0));
        let other = Freshness {
            head: at(2, 9),
            ..aged(None)
        };
        assert_eq!(other.lag().commits, None);
    }
}
