//! The pauses between syncs. Pure: the outcome, the options and the random number are arguments.

use std::time::Duration;

use super::FollowOptions;

/// 10 ms: the shortest pause between two syncs. Constant hints or failures cause at most 100 syncs per
/// second.
pub(super) const FLOOR: Duration = Duration::from_millis(10);

/// 50 ms: the longest pause after a first failure. Each further consecutive failure doubles this limit.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// The outcome of a sync.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SyncOutcome {
    /// The sync confirmed that the node is up to date.
    Confirmed,
    /// The sync failed or timed out.
    Failed,
}

/// The pauses and the timeout in use: the options, limited by the shortest staleness bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Pace {
    /// The pause after a successful sync, if no hint arrives.
    pub(super) poll: Duration,
    /// The longest wait for a page before a sync times out.
    pub(super) timeout: Duration,
    /// The longest pause after a failure.
    pub(super) backoff: Duration,
}

impl Pace {
    /// Limits `options` by the staleness bound. A pause takes at most a quarter of the bound, and a hanging
    /// sync at most half. So a single failed sync does not make the node refuse keys.
    pub(super) fn of(options: &FollowOptions, bound: Option<Duration>) -> Self {
        let bound = bound.unwrap_or(Duration::MAX);
        let within = |chosen: Duration, most: Duration| chosen.min(most).max(FLOOR);
        Self {
            poll: within(options.poll, bound / 4),
            timeout: within(options.timeout, bound / 2),
            backoff: within(options.backoff, bound / 4),
        }
    }
}

/// Returns the pause after a sync, given the number of consecutive failures. After a failure the pause is
/// random, so that nodes that failed together do not retry together. The limit of the pause doubles with each
/// failure.
pub(super) fn pause(outcome: SyncOutcome, failures: u32, pace: &Pace, random: u64) -> Duration {
    match outcome {
        SyncOutcome::Confirmed => pace.poll,
        SyncOutcome::Failed => {
            let doubled = 1_u32.checked_shl(failures.saturating_sub(1));
            let longest = FIRST_BACKOFF
                .saturating_mul(doubled.unwrap_or(u32::MAX))
                .min(pace.backoff);
            FLOOR + share(longest - FLOOR, random)
        }
    }
}

/// Returns `whole` multiplied by `random` / 2^64.
fn share(whole: Duration, random: u64) -> Duration {
    let nanos = (whole.as_nanos() * u128::from(random)) >> u64::BITS;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn pace(bound: Option<Duration>) -> Pace {
        Pace::of(&FollowOptions::default(), bound)
    }

    #[test]
    fn a_confirmed_step_is_followed_by_the_poll_interval() {
        let pause = pause(SyncOutcome::Confirmed, 0, &pace(None), u64::MAX);
        assert_eq!(pause, ms(250));
    }

    #[test]
    fn the_longest_pause_doubles_with_each_failure_up_to_the_limit() {
        let ten_seconds = pace(Some(ms(10_000)));
        let longest = |failures| pause(SyncOutcome::Failed, failures, &ten_seconds, u64::MAX);
        let expected = [50, 100, 200, 400, 800, 1600, 2000, 2000];
        for (failures, expected) in (1..).zip(expected) {
            let short_of = ms(expected) - longest(failures);
            assert!(
                short_of <= Duration::from_nanos(1),
                "{failures}: {short_of:?}"
            );
        }
    }

    #[test]
    fn pauses_after_a_failure_are_evenly_distributed() {
        let eighth = u64::MAX / 8;
        let at = |eighths: u64| pause(SyncOutcome::Failed, 3, &pace(None), eighths * eighth);
        assert_eq!(at(0), FLOOR, "a pause is never shorter than the floor");
        let expected = FLOOR + (ms(200) - FLOOR) / 2;
        assert!(expected - at(4) < Duration::from_micros(1));
    }

    #[test]
    fn a_short_bound_shortens_every_pause_and_a_long_one_none() {
        let of_a_second = pace(Some(ms(1000)));
        assert_eq!(
            (of_a_second.poll, of_a_second.timeout, of_a_second.backoff),
            (ms(250), ms(500), ms(250))
        );
        let none = Pace {
            poll: ms(250),
            timeout: ms(1000),
            backoff: ms(2000),
        };
        assert_eq!(pace(None), none);
        assert_eq!(pace(Some(Duration::MAX)), none);
        let least = Pace {
            poll: FLOOR,
            timeout: FLOOR,
            backoff: FLOOR,
        };
        assert_eq!(pace(Some(ms(1))), least);
    }

    proptest! {
        #[test]
        fn no_pause_is_shorter_than_the_floor_or_longer_than_a_quarter_of_the_bound(
            failures: u32,
            random: u64,
            bound in 40..100_000_u64,
            options in [any::<u64>(), any::<u64>(), any::<u64>()],
        ) {
            let [poll, timeout, backoff] = options.map(Duration::from_nanos);
            let options = FollowOptions { poll, timeout, backoff, ..FollowOptions::default() };
            let pace = Pace::of(&options, Some(ms(bound)));
            for outcome in [SyncOutcome::Confirmed, SyncOutcome::Failed] {
                let pause = pause(outcome, failures, &pace, random);
                prop_assert!(FLOOR <= pause && pause <= ms(bound) / 4, "{pause:?}");
            }
            prop_assert!(pace.timeout <= ms(bound) / 2);
        }
    }
}
