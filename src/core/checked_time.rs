//! Checked time: a process's own time, compared with other clocks if there are any.
//!
//! Pure. Clocks are compared as offsets: the microseconds by which a wall clock is ahead of this process's
//! monotonic clock.

use std::time::Duration;

use super::time::Timestamp;

/// The time of a decision, compared with other clocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CheckedTime {
    /// The time of this process's wall clock. Never goes back.
    pub own: Timestamp,
    /// The own time, but without a forward jump of the wall clock until the jump has lasted for one
    /// allowance, or another clock confirms it.
    pub held: Timestamp,
    /// The time according to other clocks, if they contradict the own clock.
    pub reference: Option<Timestamp>,
    /// The allowance: the largest difference at which two clocks still agree.
    pub allowance: Duration,
}

impl CheckedTime {
    /// The default allowance: 5 minutes. Far more than the difference of synchronised clocks (under a
    /// second), and far less than the lifetime of a typical key.
    pub const ALLOWANCE: Duration = Duration::from_secs(5 * 60);

    /// Returns the most plausible time: the time of other clocks if they contradict the own clock, otherwise
    /// the own time.
    #[must_use]
    pub fn best(&self) -> Timestamp {
        self.reference.unwrap_or(self.own)
    }

    /// Returns the earliest of the own time, the held time and the reference.
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

/// Returns the median of all other clocks if they contradict the own clock. This is so in two cases:
///
/// - The server's clock differs, and no majority of the nodes agrees with the own clock.
/// - There are at least two other clocks, and most of them differ.
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

/// The state of a key whose expiry lies after the verifier's time, but maybe before the newest commit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// The key works: the newest commit of its tenant is earlier than its expiry, or another clock confirms
    /// the verifier's time.
    Alive,
    /// The key has expired: the newest commit of its tenant is not earlier than its expiry.
    Ended,
    /// Unknown: the newest commit of the key's tenant is far ahead of this clock, so one of two clocks is
    /// wrong.
    Unsure,
}

/// Returns the state of a key that expires at `end`, which is later than `now`. `floor` is the time of the
/// newest commit in the key's own tenant. `confirmed` returns whether another clock agrees with `now`.
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
