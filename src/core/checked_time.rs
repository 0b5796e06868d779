//! Checked time: a process's own time, compared with other clocks if there are any.
//!
//! Pure: no I/O and no clock. Clocks are compared as offsets. The offset of a clock is the number of
//! microseconds by which it is ahead of this process's monotonic clock.

use std::time::Duration;

use super::time::Timestamp;

/// The time of a decision, compared with other clocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CheckedTime {
    /// The time of this process's wall clock. Never goes back.
    pub own: Timestamp,
    /// The own time without a recent forward jump of the wall clock. The jump is included once it has lasted
    /// for the allowance, or once another clock confirms it.
    pub held: Timestamp,
    /// The time according to other clocks. `None` unless these clocks contradict the own clock.
    pub reference: Option<Timestamp>,
    /// The allowance: the largest difference at which two clocks still agree.
    pub allowance: Duration,
}

impl CheckedTime {
    /// The default allowance: 5 minutes. Far more than the difference of synchronised clocks (under a
    /// second), and far less than the lifetime of a typical key.
    pub const ALLOWANCE: Duration = Duration::from_secs(5 * 60);

    /// Returns the most plausible time: the time of the other clocks if they contradict the own clock,
    /// otherwise the own time.
    #[must_use]
    pub fn best(&self) -> Timestamp {
        self.reference.unwrap_or(self.own)
    }

    /// Returns the earliest of the own time, the held time and, if other clocks contradict the own clock,
    /// their time.
    #[must_use]
    pub fn earliest(&self) -> Timestamp {
        let own = self.own.min(self.held);
        self.reference.map_or(own, |other| other.min(own))
    }

    /// Returns whether `at` is later than the own time by more than the allowance.
    #[must_use]
    pub fn is_ahead(&self, at: Timestamp) -> bool {
        at > self.own.saturating_add(self.allowance)
    }
}

/// Returns the median of all other clocks, or `None` if they do not contradict the own clock. They contradict
/// it in two cases:
///
/// - The clock of the store's server differs from the own clock, and at most half of the nodes agree with the
///   own clock.
/// - There are at least two other clocks, and more than half of them differ from the own clock.
///
/// All values are offsets in microseconds. Two offsets differ if they are more than `allowance` apart.
pub(crate) fn contradiction(
    own: i64,
    (server, nodes): (Option<i64>, &[i64]),
    allowance: i64,
) -> Option<i64> {
    let differs = |other: &&i64| own.abs_diff(**other) > allowance.unsigned_abs();
    let siding = nodes.iter().filter(|node| !differs(node)).count();
    let by_server = server.is_some_and(|server| differs(&&server)) && siding * 2 <= nodes.len();
    let mut all: Vec<i64> = server.into_iter().chain(nodes.iter().copied()).collect();
    let by_most = all.len() >= 2 && all.iter().filter(differs).count() * 2 > all.len();
    if !by_server && !by_most {
        return None;
    }
    all.sort_unstable();
    // For two clocks, this picks the later time: ending a key too early is safer than ending a key too late.
    all.get(all.len() / 2).copied()
}

/// The state of a key that has not expired by the verifier's clock, but may have expired by the time of its
/// tenant's newest commit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// The key works. Either its expiry is later than the newest commit of its tenant, or another clock
    /// confirms the verifier's time.
    Alive,
    /// The key has expired. Its tenant has a commit at or after the expiry, and that commit is plausible: at
    /// most the allowance ahead of the verifier's clock.
    Ended,
    /// Unknown. Its tenant has a commit at or after the expiry, but that commit is far ahead of the
    /// verifier's clock. Either that clock is wrong, or the clock that dated the commit.
    Unsure,
}

/// Returns the state of a key whose expiry `end` is later than the verifier's time `now`. `floor` is the time
/// of the newest commit in the key's own tenant. The closure `confirmed` returns whether another clock agrees
/// with `now`.
pub(crate) fn judge_end(
    end: Timestamp,
    now: Timestamp,
    floor: Option<Timestamp>,
    confirmed: impl FnOnce() -> bool,
    allowance: Duration,
) -> Ending {
    match floor {
        None => Ending::Alive,
        Some(floor) if end > floor => Ending::Alive,
        Some(floor) if floor <= now.saturating_add(allowance) => Ending::Ended,
        Some(_) if confirmed() => Ending::Alive,
        Some(_) => Ending::Unsure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten years, in minutes.
    const YEARS: i64 = 10 * 365 * 24 * 60;

    /// Calls `contradiction` with offsets in minutes and an allowance of 5 minutes.
    fn contradicted(own: i64, server: Option<i64>, nodes: &[i64]) -> Option<i64> {
        contradiction(own, (server, nodes), 5)
    }

    #[test]
    fn without_a_reference_nothing_contradicts() {
        assert_eq!(contradicted(YEARS, None, &[]), None);
        assert_eq!(
            contradicted(0, None, &[YEARS]),
            None,
            "one node against one"
        );
    }

    #[test]
    fn the_server_contradicts_unless_a_majority_of_nodes_sides_with_the_own_clock() {
        assert_eq!(contradicted(YEARS, Some(0), &[]), Some(0));
        assert_eq!(contradicted(5, Some(0), &[]), None, "within the allowance");
        assert_eq!(contradicted(6, Some(0), &[]), Some(0));
        assert_eq!(contradicted(-6, Some(0), &[]), Some(0));
        assert_eq!(contradicted(0, Some(YEARS), &[1]), None);
        assert_eq!(contradicted(0, Some(YEARS), &[1, YEARS]), Some(YEARS));
        assert_eq!(
            contradicted(0, Some(YEARS), &[1, 2, YEARS]),
            None,
            "a wrong server"
        );
    }

    #[test]
    fn most_of_two_or_more_references_contradict() {
        assert_eq!(contradicted(YEARS, None, &[0, 1]), Some(1));
        assert_eq!(contradicted(YEARS, Some(YEARS), &[0, 1]), Some(1));
        assert_eq!(contradicted(YEARS, None, &[0, YEARS]), None, "one of two");
        assert_eq!(
            contradicted(0, Some(0), &[YEARS, YEARS]),
            Some(YEARS),
            "a majority that is wrong"
        );
    }

    #[test]
    fn an_end_that_other_tenants_claim_is_none() {
        let at = |minute| Timestamp::from_unix_seconds(minute * 60).unwrap();
        let allowance = Duration::from_secs(300);
        let judge = |floor: Option<i64>, confirmed| {
            judge_end(at(100), at(50), floor.map(at), || confirmed, allowance)
        };
        assert_eq!(judge(None, false), Ending::Alive);
        assert_eq!(judge(Some(99), false), Ending::Alive);
        assert_eq!(judge(Some(100), false), Ending::Unsure);
        assert_eq!(judge(Some(100), true), Ending::Alive);
        let near = |floor| judge_end(at(52), at(50), Some(at(floor)), || true, allowance);
        assert_eq!(near(52), Ending::Ended);
        assert_eq!(near(55), Ending::Ended, "within the allowance");
        assert_eq!(near(56), Ending::Alive);
    }
}
