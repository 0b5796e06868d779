//! Unusual use of a key: hours in which its volume departs from the pattern of its own last weeks.
//!
//! Pure. Counts arrive as an argument; nothing here reads a clock or keeps state between calls.
//!
//! # Method
//!
//! 1. **Pattern.** Two medians predict each hour: the same hour of the week over four weeks, and the same hour of
//!    the day over seven days. The lower and the higher median bound the counts that the pattern explains.
//! 2. **Spans.** The last 3 hours, and the last 24 hours, are each compared with the pattern of the same hours.
//!    The pattern may run an hour early or late, which covers clock changes and late jobs.
//! 3. **Limit.** A span is unusual if its count passes three limits together. The first is a factor over the pattern:
//!    [`Sensitivity::factor`], or more for a bursty key. The second is [`Sensitivity::least_change`]. The third is five
//!    standard deviations of a Poisson count.
//! 4. **Bursty keys.** The factor is at least the square of the ratio that 95 % of the hours before stayed under.
//! 5. **Hysteresis.** An episode lasts while the count stays beyond half way from the pattern to the limit. It clears
//!    after [`Sensitivity::calm_hours`] hours on the near side. A silent key does not clear in its quiet hours.
//!
//! Medians and quantiles keep one incident from spoiling the pattern that later hours are judged by (Hampel, 1974).
//! The Poisson limit uses the square-root transform of Anscombe (1948), whose variance hardly depends on the rate.
//! The constants hold on the Numenta Anomaly Benchmark; `docs/usage.md` has the figures.
//!
//! # Invariants
//!
//! - The verdict on an hour uses that hour and earlier ones. Appending hours never changes it.
//! - A gap is never judged, never counts as zero, and neither extends nor clears an episode.
//! - No hour is judged before the tenth day that was counted. The long span starts with the 24th day.

use super::day::HOURS_PER_DAY;

const HOURS_PER_WEEK: usize = 7 * HOURS_PER_DAY;

/// 4 weeks of the same hour of the week. Fewer let two odd weeks set the median; more exceed the hours kept.
const PATTERN_WEEKS: usize = 4;

/// 7 days of the same hour of the day. A week follows growth, and holds two days of rest against five of work.
const PATTERN_DAYS: usize = 7;

/// 3 hours, the shorter span. One hour alone more than doubles the false alarms on bursty keys.
const SHORT_SPAN: usize = 3;

/// 24 hours, the longer span. A key with two requests per hour falls silent visibly in a day, not in three hours.
const LONG_SPAN: usize = HOURS_PER_DAY;

/// Two thirds of a span must be counted and have a pattern, so that one gap does not blind three hours.
const FEWEST_COUNTED: (usize, usize) = (2, 3);

/// 672 judged hours, four weeks, from which the ordinary departure of a key is learnt.
const ORDINARY_HOURS: usize = 4 * HOURS_PER_WEEK;

/// 16 spans, the shortest past that shows if a key is bursty: 48 hours for the short span, 16 days for the long one.
const FEWEST_ORDINARY_SPANS: usize = 16;

/// 95 %, in percent: the share of hours whose departure is ordinary. One day of trouble in three weeks stays outside.
const ORDINARY_PERCENT: usize = 95;

/// 5 standard deviations of a Poisson count: by chance, less than once in a million hours.
const POISSON_DEVIATIONS: f64 = 5.0;

/// 3/8 of a request, the offset of the Anscombe transform.
const ANSCOMBE_OFFSET: f64 = 0.375;

/// 1 request, added to both sides of a ratio, so that an expected count of zero has one.
const RATIO_OFFSET: f64 = 1.0;

/// The departure from its pattern from which the use of a key is unusual.
///
/// The default raises no episode in the tested months of Poisson counts, with and without daily and weekly patterns.
/// A series of less than ten days is never judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sensitivity {
    /// The least ratio between count and pattern, in either direction. Values under 1, and NaN, count as 1.
    ///
    /// Defaults to 1.75: a doubled or halved volume passes it, and a busy Monday does not. A bursty key needs more.
    pub factor: f64,
    /// The least difference between count and pattern, in requests per span.
    ///
    /// Defaults to 20 requests, so that a few requests with a key that nobody uses raise no episode.
    pub least_change: u64,
    /// The counted hours without a departure after which an episode clears.
    ///
    /// Defaults to 12 hours, half a day: a burst that returns in the same night is one episode.
    pub calm_hours: usize,
}

impl Default for Sensitivity {
    fn default() -> Self {
        Self {
            factor: 1.75,
            least_change: 20,
            calm_hours: 12,
        }
    }
}

/// The side of the pattern on which a count lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// More requests than the pattern explains.
    More,
    /// Fewer requests than the pattern explains.
    Less,
}

/// A stretch of unusual use, with the figures of the hour that opened it.
///
/// The figures and [`first`](Self::first) never change. [`last`](Self::last) grows until the episode clears.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Episode {
    /// The hour that opened the episode, as an index into the hours judged.
    pub first: usize,
    /// The latest hour that departed from the pattern, as an index into the hours judged.
    pub last: usize,
    /// The hour that cleared the episode, as an index into the hours judged. `None` while the episode is open.
    pub cleared: Option<usize>,
    /// The side of the pattern on which the count lies.
    pub direction: Direction,
    /// The hours summed for `count`, `expected` and `limit`: 3 or 24, ending with `first`. Gaps add to none of them.
    pub span: usize,
    /// The requests counted in the span. Saturates at `u64::MAX`.
    pub count: u64,
    /// The requests in the span that the pattern explains: at most for `More`, at least for `Less`.
    pub expected: f64,
    /// The ratio between count and pattern from which this key was unusual: the configured one, or more if bursty.
    pub factor: f64,
    /// The requests from which the span is unusual: `count` is at least `limit` for `More`, at most for `Less`.
    pub limit: f64,
}

/// Judges every hour of one key and returns the episodes of unusual use, oldest first.
///
/// `hours` holds the requests of consecutive hours, oldest first. `None` is a gap: an hour that was not counted
/// completely. Hours before the creation of the key are gaps, or are left out.
///
/// A verdict looks back 28 days for the pattern, and 28 more for the ordinary departure. A caller that passes a sliding
/// window of 35 days sees old episodes shift: match an episode to an alert by overlap, not by `first`.
///
/// Takes time linear in the number of hours, and never panics.
#[must_use]
pub fn unusual_use(hours: &[Option<u64>], sensitivity: &Sensitivity) -> Vec<Episode> {
    let pattern: Vec<Option<Explained>> = (0..=hours.len())
        .map(|hour| Explained::at(hours, hour))
        .collect();
    let mut judge = Judge::new(sensitivity, hours.len());
    let mut episodes = Episodes::new(sensitivity);
    for hour in 0..hours.len() {
        let spans = [SHORT_SPAN, LONG_SPAN].map(|span| Comparison::of(hours, &pattern, hour, span));
        if let [Some(short), long] = spans {
            let verdict = judge.verdict(hour, &short, long.as_ref());
            episodes.advance(hour, [Some(&short), long.as_ref()], verdict);
        }
    }
    episodes.found
}

/// The lowest and the highest count that the pattern explains.
#[derive(Clone, Copy, Default)]
struct Explained {
    low: f64,
    high: f64,
}

impl Explained {
    /// Predicts one hour from earlier hours. `None` if no such hour of the week, or of the day, was counted.
    fn at(hours: &[Option<u64>], hour: usize) -> Option<Self> {
        let by_week = median_before(hours, hour, HOURS_PER_WEEK, PATTERN_WEEKS)?;
        let by_day = median_before(hours, hour, HOURS_PER_DAY, PATTERN_DAYS)?;
        Some(Self {
            low: by_week.min(by_day),
            high: by_week.max(by_day),
        })
    }

    fn add(&mut self, other: Self) {
        self.low += other.low;
        self.high += other.high;
    }
}

/// Returns the median of the counts `step`, `2 * step` … `times * step` hours before `hour`.
///
/// `None` if none of them was counted.
fn median_before(hours: &[Option<u64>], hour: usize, step: usize, times: usize) -> Option<f64> {
    let earlier =
        (1..=times).filter_map(|back| hours.get(hour.checked_sub(back * step)?).copied().flatten());
    let mut buffer = [0; PATTERN_DAYS];
    let mut counted = 0;
    for (slot, count) in buffer.iter_mut().zip(earlier) {
        *slot = count;
        counted += 1;
    }
    let counts = buffer.get_mut(..counted)?;
    counts.sort_unstable();
    let (lower, upper) = (
        counts.get(counted.checked_sub(1)? / 2)?,
        counts.get(counted / 2)?,
    );
    Some(real(u128::from(*lower)).midpoint(real(u128::from(*upper))))
}

/// The count of one span beside the counts that the pattern explains.
struct Comparison {
    span: usize,
    count: u128,
    explained: Explained,
}

impl Comparison {
    /// Sums the span that ends with `hour`. `None` if that hour is not judged, or too few hours before it are.
    fn of(
        hours: &[Option<u64>],
        pattern: &[Option<Explained>],
        hour: usize,
        span: usize,
    ) -> Option<Self> {
        hours
            .get(hour)
            .copied()
            .flatten()
            .and(pattern.get(hour).copied().flatten())?;
        let mut counted = 0;
        let mut count = 0;
        let [mut early, mut on_time, mut late] = [Explained::default(); 3];
        for at in (hour + 1).saturating_sub(span)..=hour {
            let explained = |at: usize| pattern.get(at).copied().flatten();
            let (Some(requests), Some(own)) = (hours.get(at).copied().flatten(), explained(at))
            else {
                continue;
            };
            counted += 1;
            count += u128::from(requests);
            on_time.add(own);
            early.add(explained(at + 1).unwrap_or(own));
            late.add(at.checked_sub(1).and_then(explained).unwrap_or(own));
        }
        let explained = Explained {
            low: on_time.low.min(early.low).min(late.low),
            high: on_time.high.max(early.high).max(late.high),
        };
        let (share, of) = FEWEST_COUNTED;
        (counted * of >= span * share).then_some(Self {
            span,
            count,
            explained,
        })
    }

    fn expected(&self, direction: Direction) -> f64 {
        match direction {
            Direction::More => self.explained.high,
            Direction::Less => self.explained.low,
        }
    }

    /// Returns the ratio between count and pattern: 1 if the pattern explains the count, more if not.
    fn departure(&self, direction: Direction) -> f64 {
        let count = real(self.count) + RATIO_OFFSET;
        let expected = self.expected(direction) + RATIO_OFFSET;
        let ratio = match direction {
            Direction::More => count / expected,
            Direction::Less => expected / count,
        };
        ratio.max(1.0)
    }

    /// Returns the course of an episode that this span opened.
    ///
    /// Judges by the factor that opened the episode, because a long episode raises the factor of the key.
    fn course(&self, episode: &Episode, least_change: f64) -> Course {
        let limit = self.limit(episode.direction, episode.factor, least_change);
        let halfway = self.expected(episode.direction).midpoint(limit);
        let departing = match episode.direction {
            Direction::More => real(self.count) > halfway,
            Direction::Less => real(self.count) < halfway,
        };
        if departing {
            Course::Departing
        } else if limit < 0.0 && self.count == 0 {
            Course::Undecided
        } else {
            Course::Calm
        }
    }

    /// Returns the count from which the span is unusual. Negative if no count is low enough.
    fn limit(&self, direction: Direction, factor: f64, least_change: f64) -> f64 {
        let expected = self.expected(direction);
        let root = (expected + ANSCOMBE_OFFSET).sqrt();
        // The transform is twice the root of the count, and has a standard deviation of 1.
        let chance = POISSON_DEVIATIONS / 2.0;
        match direction {
            Direction::More => {
                let by_chance = (root + chance).powi(2) - ANSCOMBE_OFFSET;
                let by_factor = (expected + RATIO_OFFSET) * factor - RATIO_OFFSET;
                by_chance.max(by_factor).max(expected + least_change)
            }
            Direction::Less => {
                let by_chance = (root - chance).max(0.0).powi(2) - ANSCOMBE_OFFSET;
                let by_factor = (expected + RATIO_OFFSET) / factor - RATIO_OFFSET;
                by_chance.min(by_factor).min(expected - least_change)
            }
        }
    }
}

/// The course of an open episode in one hour.
enum Course {
    /// The key still departs from its pattern.
    Departing,
    /// The key is back at its pattern.
    Calm,
    /// The hour is not judged, or a silent key is silent in an hour in which silence is ordinary.
    Undecided,
}

/// The departures of the hours judged so far, which set the factor for the next hour.
struct Judge {
    factor: f64,
    least_change: f64,
    short: Departures,
    long: Departures,
}

impl Judge {
    fn new(sensitivity: &Sensitivity, hours: usize) -> Self {
        Self {
            // `f64::max` returns the other operand for NaN.
            factor: sensitivity.factor.max(1.0),
            least_change: real(u128::from(sensitivity.least_change)),
            short: Departures::with_capacity(hours),
            long: Departures::with_capacity(hours),
        }
    }

    /// Judges one hour, then learns from it. Returns the episode that the hour opens if none is open.
    fn verdict(
        &mut self,
        hour: usize,
        short: &Comparison,
        long: Option<&Comparison>,
    ) -> Option<Episode> {
        let verdict = [Direction::More, Direction::Less]
            .into_iter()
            .find_map(|direction| {
                // Without a departure of the short span, a burst of one hour would be unusual for a day.
                if short.departure(direction) <= self.factor.sqrt() {
                    return None;
                }
                let by_short = self.episode(hour, direction, short, &self.short);
                by_short.or_else(|| self.episode(hour, direction, long?, &self.long))
            });
        self.short.push(short);
        if let Some(long) = long {
            self.long.push(long);
        }
        verdict
    }

    fn episode(
        &self,
        hour: usize,
        direction: Direction,
        compared: &Comparison,
        past: &Departures,
    ) -> Option<Episode> {
        // The factor of a key is never under the configured one, so most hours need no quantile.
        if compared.departure(direction) < self.factor {
            return None;
        }
        let ordinary = past.ordinary(direction, compared.span)?;
        // Twice as far as ordinary, on the logarithmic scale of ratios.
        let factor = self.factor.max(ordinary * ordinary);
        let limit = compared.limit(direction, factor, self.least_change);
        let passed = match direction {
            Direction::More => real(compared.count) >= limit,
            Direction::Less => real(compared.count) <= limit,
        };
        passed.then(|| Episode {
            first: hour,
            last: hour,
            cleared: None,
            direction,
            span: compared.span,
            count: u64::try_from(compared.count).unwrap_or(u64::MAX),
            expected: compared.expected(direction),
            factor,
            limit,
        })
    }
}

/// The departures of one span in the hours judged so far, oldest first.
struct Departures {
    more: Vec<f64>,
    less: Vec<f64>,
}

impl Departures {
    fn with_capacity(hours: usize) -> Self {
        Self {
            more: Vec::with_capacity(hours),
            less: Vec::with_capacity(hours),
        }
    }

    fn push(&mut self, compared: &Comparison) {
        self.more.push(compared.departure(Direction::More));
        self.less.push(compared.departure(Direction::Less));
    }

    /// Returns the departure that [`ORDINARY_PERCENT`] of the latest hours stay within. `None` if they are too few.
    fn ordinary(&self, direction: Direction, span: usize) -> Option<f64> {
        let all = match direction {
            Direction::More => &self.more,
            Direction::Less => &self.less,
        };
        let latest = all.get(all.len().saturating_sub(ORDINARY_HOURS)..)?;
        if latest.len() < FEWEST_ORDINARY_SPANS * span {
            return None;
        }
        let rank = (latest.len() - 1) * ORDINARY_PERCENT / 100;
        let mut ranked = latest.to_vec();
        // The rank is under the length, which is not zero, so the selection does not panic.
        Some(*ranked.select_nth_unstable_by(rank, f64::total_cmp).1)
    }
}

/// The episodes found so far. At most the last of them is open.
struct Episodes {
    found: Vec<Episode>,
    calm_hours: usize,
    least_change: f64,
    /// Calm hours since the last departure.
    calm: usize,
}

impl Episodes {
    fn new(sensitivity: &Sensitivity) -> Self {
        Self {
            found: Vec::new(),
            calm_hours: sensitivity.calm_hours,
            least_change: real(u128::from(sensitivity.least_change)),
            calm: 0,
        }
    }

    /// Extends or clears the open episode, or opens one. `verdict` is the episode that the hour would open.
    fn advance(&mut self, hour: usize, spans: [Option<&Comparison>; 2], verdict: Option<Episode>) {
        if let Some(latest) = self.found.last_mut() {
            let same = verdict.is_some_and(|episode| episode.direction == latest.direction);
            if latest.cleared.is_none() {
                let compared = spans
                    .into_iter()
                    .flatten()
                    .find(|compared| compared.span == latest.span);
                let course =
                    compared.map_or(Course::Undecided, |it| it.course(latest, self.least_change));
                if matches!(course, Course::Departing) {
                    latest.last = hour;
                    self.calm = 0;
                    return;
                }
                self.calm += usize::from(matches!(course, Course::Calm));
                if self.calm < self.calm_hours && (same || verdict.is_none()) {
                    return;
                }
                latest.cleared = Some(hour);
            }
            // A span with hours of the latest episode would report that episode again.
            if verdict.is_some_and(|episode| same && hour - latest.last < episode.span) {
                return;
            }
        }
        if let Some(episode) = verdict {
            self.found.push(episode);
            self.calm = 0;
        }
    }
}

/// Converts a count. The relative error is at most 2⁻⁵³, far below every factor here.
#[expect(
    clippy::cast_precision_loss,
    reason = "factors compare counts, and the error is far below them"
)]
fn real(count: u128) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 35 days, the hours that are kept by default.
    const MONTH: usize = 35 * HOURS_PER_DAY;

    /// 700 hours, an hour of the fifth week in which incidents are placed. It is 4 o'clock on a Tuesday.
    const INCIDENT: usize = 700;

    /// 30 seeds, about 25,000 hours of each kind of noise.
    const SEEDS: u64 = 30;

    /// The generator SplitMix64 (Steele, Lea and Flood, 2014).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            bits ^ (bits >> 31)
        }

        /// Returns a number in [0, 1).
        fn share(&mut self) -> f64 {
            (self.next() >> 11) as f64 / (1_u64 << 53) as f64
        }

        /// Returns a Poisson count (Knuth, 1969), in steps of at most 500, whose exponential is not zero.
        fn poisson(&mut self, rate: f64) -> u64 {
            if rate > 500.0 {
                return self.poisson(500.0) + self.poisson(rate - 500.0);
            }
            let floor = (-rate).exp();
            let mut product = self.share();
            let mut count = 0;
            while product > floor {
                product *= self.share();
                count += 1;
            }
            count
        }
    }

    fn found(hours: &[Option<u64>]) -> Vec<Episode> {
        unusual_use(hours, &Sensitivity::default())
    }

    fn month(mut count: impl FnMut(usize) -> u64) -> Vec<Option<u64>> {
        (0..MONTH).map(|hour| Some(count(hour))).collect()
    }

    fn noise(seed: u64, rate: impl Fn(usize) -> f64) -> Vec<Option<u64>> {
        let mut random = Random(seed);
        month(|hour| random.poisson(rate(hour)))
    }

    /// A quiet night, a busy day, and a fiftieth of both on Saturday and Sunday.
    fn office(hour: usize) -> f64 {
        let by_day = if (8..18).contains(&(hour % HOURS_PER_DAY)) {
            200.0
        } else {
            10.0
        };
        let rest = hour % HOURS_PER_WEEK >= 5 * HOURS_PER_DAY;
        if rest { by_day / 50.0 } else { by_day }
    }

    fn set(hours: &mut [Option<u64>], at: std::ops::Range<usize>, count: Option<u64>) {
        hours[at].fill(count);
    }

    #[test]
    fn constant_and_unused_keys_raise_no_episode() {
        for count in [0, 1, 20, 1_000_000] {
            assert_eq!(found(&month(|_| count)), []);
        }
    }

    /// Fails if fewer hours than two days are enough to learn the ordinary departure.
    #[test]
    fn a_quiet_month_raises_no_episode_at_any_rate() {
        for rate in [0.1, 1.0, 10.0, 1000.0] {
            for seed in 0..SEEDS {
                assert_eq!(
                    found(&noise(seed, |_| rate)),
                    [],
                    "rate {rate}, seed {seed}"
                );
            }
        }
    }

    /// Fails if only the hour of the day predicts an hour, or if the Poisson limit is left out.
    #[test]
    fn daily_and_weekly_patterns_raise_no_episode() {
        for seed in 0..SEEDS {
            let daily = |hour: usize| 5.0 + 40.0 * (hour % HOURS_PER_DAY) as f64;
            assert_eq!(found(&noise(seed, daily)), [], "daily, seed {seed}");
            for day in 0..7 {
                let shifted = |hour| office(hour + day * HOURS_PER_DAY);
                assert_eq!(
                    found(&noise(seed, shifted)),
                    [],
                    "office from day {day}, seed {seed}"
                );
            }
        }
    }

    /// Fails if only the hour of the week predicts an hour: its median needs two weeks to follow.
    #[test]
    fn a_lasting_change_is_one_episode_that_clears_within_five_days() {
        for level in [30, 300] {
            let hours = month(|hour| if hour < 600 { 100 } else { level });
            let episodes = found(&hours);
            let [episode] = episodes.as_slice() else {
                panic!("{episodes:?}")
            };
            assert!((600..602).contains(&episode.first), "{episode:?}");
            let cleared = episode.cleared.expect("the pattern follows the change");
            assert!(
                (600 + 3 * HOURS_PER_DAY..600 + 5 * HOURS_PER_DAY).contains(&cleared),
                "{episode:?}"
            );
        }
    }

    /// Fails if the factor ignores the ordinary departure, and only the hour of the week predicts an hour.
    #[test]
    fn growth_that_doubles_each_week_raises_no_episode() {
        for seed in 0..SEEDS {
            let weeks = |hour: usize| hour.saturating_sub(500) as f64 / HOURS_PER_WEEK as f64;
            let hours = noise(seed, |hour| 200.0 * weeks(hour).exp2());
            assert_eq!(found(&hours), [], "seed {seed}");
        }
    }

    /// Fails if the factor ignores the ordinary departure of the key: it then raises an episode every other day.
    #[test]
    fn a_bursty_key_sets_its_own_factor() {
        let episodes = (0..SEEDS).map(|seed| {
            let mut random = Random(seed);
            let bursty = month(|_| {
                let burst = random.share() < 0.1;
                random.poisson(if burst { 300.0 } else { 20.0 })
            });
            found(&bursty).len()
        });
        let total: usize = episodes.sum();
        // Most of them fall in the first week that is judged, when two days have shown few bursts.
        assert!(total <= 20, "{total} episodes in {SEEDS} months");
    }

    /// Fails if only the long span is judged, or if it keeps the episode open for a day.
    #[test]
    fn a_tenfold_burst_of_three_hours_is_one_episode_from_its_first_hour() {
        for rate in [10.0, 1000.0] {
            for seed in 0..SEEDS {
                let burst = INCIDENT..INCIDENT + 3;
                let hours = noise(seed, |hour| {
                    if burst.contains(&hour) {
                        10.0 * rate
                    } else {
                        rate
                    }
                });
                let episodes = found(&hours);
                let [episode] = episodes.as_slice() else {
                    panic!("seed {seed}: {episodes:?}")
                };
                assert_eq!(
                    (episode.first, episode.direction),
                    (INCIDENT, Direction::More)
                );
                assert!(episode.last < INCIDENT + 12, "seed {seed}: {episode:?}");
                assert!(episode.cleared.is_some(), "seed {seed}: {episode:?}");
            }
        }
    }

    /// Fails if `Less` is judged by the higher of both medians, or not at all.
    #[test]
    fn silence_of_a_busy_key_is_an_episode_within_four_hours() {
        for seed in 0..SEEDS {
            let mut hours = noise(seed, |_| 20.0);
            set(&mut hours, INCIDENT..MONTH, Some(0));
            let episodes = found(&hours);
            let [episode] = episodes.as_slice() else {
                panic!("seed {seed}: {episodes:?}")
            };
            assert_eq!(
                (episode.direction, episode.cleared),
                (Direction::Less, None)
            );
            assert!(
                (INCIDENT..INCIDENT + 4).contains(&episode.first),
                "seed {seed}: {episode:?}"
            );
        }
    }

    /// Fails if only the short span is judged.
    #[test]
    fn silence_of_a_key_with_two_requests_per_hour_is_an_episode_within_a_day() {
        for seed in 0..SEEDS {
            let mut hours = noise(seed, |_| 2.0);
            set(&mut hours, INCIDENT..MONTH, Some(0));
            let episodes = found(&hours);
            let [episode] = episodes.as_slice() else {
                panic!("seed {seed}: {episodes:?}")
            };
            assert_eq!(
                (episode.direction, episode.span),
                (Direction::Less, LONG_SPAN)
            );
            assert!(
                (INCIDENT..=INCIDENT + 24).contains(&episode.first),
                "seed {seed}: {episode:?}"
            );
        }
    }

    /// Fails if `least_change` is left out, or if an expected count of zero is never judged.
    #[test]
    fn twenty_uses_of_an_unused_key_are_an_episode_and_nineteen_are_not() {
        for (count, raised) in [(1, false), (19, false), (20, true), (u64::MAX, true)] {
            let mut hours = month(|_| 0);
            set(&mut hours, INCIDENT..INCIDENT + 1, Some(count));
            assert_eq!(found(&hours).len(), usize::from(raised), "{count} uses");
        }
    }

    /// Fails if hours are judged before the key has a pattern.
    #[test]
    fn nine_days_of_a_new_key_raise_no_episode() {
        let mut random = Random(1);
        let wild = month(|_| random.next() % 10_000 * (random.next() % 2));
        assert_eq!(found(&wild[..9 * HOURS_PER_DAY]), []);
        let mut steady = noise(1, |_| 100.0);
        set(&mut steady, 150..160, Some(100_000));
        assert_eq!(found(&steady), []);
    }

    /// Fails if a gap counts as zero.
    #[test]
    fn gaps_are_not_zero() {
        assert_eq!(found(&[None; MONTH]), []);
        for length in [1, 2, 3, 12, 24, 72, 200] {
            for seed in 0..SEEDS {
                let mut hours = noise(seed, office);
                set(&mut hours, 500..500 + length, None);
                assert_eq!(found(&hours), [], "{length} hours, seed {seed}");
            }
        }
    }

    /// Fails if a gap opens, extends or clears an episode.
    #[test]
    fn gaps_are_never_judged() {
        let mut hours = month(|_| 100);
        set(&mut hours, INCIDENT..INCIDENT + 3, Some(1000));
        set(&mut hours, INCIDENT + 1..INCIDENT + 60, None);
        set(&mut hours, INCIDENT + 60..INCIDENT + 61, Some(1000));
        let episodes = found(&hours);
        let [episode] = episodes.as_slice() else {
            panic!("{episodes:?}")
        };
        // The short span holds the second burst until two hours later.
        let last = INCIDENT + 62;
        assert_eq!((episode.first, episode.last), (INCIDENT, last));
        assert_eq!(episode.cleared, Some(last + 12));
        let short = found(&hours[..INCIDENT + 60]);
        assert_eq!((short[0].last, short[0].cleared), (INCIDENT, None));
        // One hour between gaps is less than two thirds of a span.
        set(&mut hours, INCIDENT - 9..INCIDENT, None);
        assert_eq!(found(&hours[..INCIDENT + 60]), []);
    }

    /// Fails if a verdict uses a later hour.
    #[test]
    fn appending_hours_never_changes_a_verdict() {
        let mut hours = noise(7, office);
        set(&mut hours, 300..306, Some(3000));
        set(&mut hours, 400..404, None);
        set(&mut hours, 500..530, Some(0));
        set(&mut hours, 650..651, Some(u64::MAX));
        set(&mut hours, INCIDENT..INCIDENT + 40, Some(0));
        let whole = found(&hours);
        assert!(whole.len() >= 4, "{whole:?}");
        for length in 0..=hours.len() {
            let known = found(&hours[..length]);
            assert_eq!(
                known.len(),
                whole
                    .iter()
                    .filter(|episode| episode.first < length)
                    .count()
            );
            for (early, late) in known.iter().zip(&whole) {
                let cleared = late.cleared.filter(|&hour| hour < length);
                let last = if cleared.is_some() {
                    late.last
                } else {
                    early.last
                };
                assert_eq!(
                    *early,
                    Episode {
                        cleared,
                        last,
                        ..*late
                    },
                    "after {length} hours"
                );
                assert!(early.last <= late.last);
            }
        }
    }

    /// Fails if an episode clears at the first calm hour, or never.
    #[test]
    fn bursts_within_half_a_day_are_one_episode_and_later_ones_are_not() {
        for (pause, episodes) in [(6, 1), (11, 1), (20, 2)] {
            let mut hours = month(|_| 100);
            set(&mut hours, INCIDENT..INCIDENT + 1, Some(2000));
            // A burst departs until the short span has passed it, two hours later.
            let second = INCIDENT + 2 + pause;
            set(&mut hours, second..second + 1, Some(2000));
            assert_eq!(found(&hours).len(), episodes, "pause of {pause} hours");
        }
    }

    /// Fails if the pattern may not run early or late.
    #[test]
    fn a_clock_change_and_a_late_job_raise_no_episode() {
        for shift in [23, 1] {
            let hours = month(|hour| {
                let local = if hour < INCIDENT { hour } else { hour + shift };
                if (8..18).contains(&(local % HOURS_PER_DAY)) {
                    500
                } else {
                    10
                }
            });
            assert_eq!(found(&hours), [], "shift by {shift} hours");
        }
        let nightly = month(|hour| if hour % HOURS_PER_DAY == 3 { 500 } else { 0 });
        let night = INCIDENT - INCIDENT % HOURS_PER_DAY;
        let mut late = nightly.clone();
        set(&mut late, night + 3..night + 4, Some(0));
        let missing = found(&late);
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert_eq!(
            (missing[0].first, missing[0].direction),
            (night + 4, Direction::Less)
        );
        set(&mut late, night + 4..night + 5, Some(500));
        assert_eq!(found(&late), []);
    }

    /// Fails if the figures are those of another span or direction.
    #[test]
    fn an_episode_carries_the_figures_it_was_judged_by() {
        let mut hours = month(|_| 100);
        set(&mut hours, INCIDENT..INCIDENT + 1, Some(1000));
        set(&mut hours, INCIDENT + 50..INCIDENT + 53, Some(0));
        let [more, less] = found(&hours)[..] else {
            panic!("two episodes")
        };
        assert_eq!((more.span, more.count, more.expected), (3, 1200, 300.0));
        assert_eq!(more.limit, 301.0 * 1.75 - 1.0);
        assert_eq!((less.span, less.count, less.expected), (3, 100, 300.0));
        assert_eq!(
            (less.first, less.limit),
            (INCIDENT + 51, 301.0 / 1.75 - 1.0)
        );
    }

    /// Fails if a sum overflows, or a figure is not finite.
    #[test]
    fn extreme_counts_and_sensitivities_neither_panic_nor_overflow() {
        let extremes = [Some(0), Some(1), Some(u64::MAX), None];
        let factors = [
            f64::NAN,
            f64::NEG_INFINITY,
            0.0,
            1.0,
            f64::MAX,
            f64::INFINITY,
        ];
        let mut random = Random(3);
        for length in (0..30).chain([167, 168, 169, 216, MONTH]) {
            let wild: Vec<_> = (0..length)
                .map(|_| extremes[(random.next() % 4) as usize])
                .collect();
            let steady = vec![Some(u64::MAX); length];
            for hours in [wild, steady] {
                assert!(
                    found(&hours)
                        .iter()
                        .all(|e| e.expected.is_finite() && e.limit.is_finite())
                );
                for factor in factors {
                    for extreme in [0, usize::MAX] {
                        let least_change = extreme as u64;
                        let sensitivity = Sensitivity {
                            factor,
                            least_change,
                            calm_hours: extreme,
                        };
                        let _ = unusual_use(&hours, &sensitivity);
                    }
                }
            }
        }
    }

    /// Fails if NaN wins against the ordinary departure: no count then passes a comparison.
    #[test]
    fn a_factor_without_meaning_counts_as_one() {
        let hours = month(|hour| if hour < INCIDENT { 1000 } else { 1300 });
        let by = |factor| {
            unusual_use(
                &hours,
                &Sensitivity {
                    factor,
                    ..Sensitivity::default()
                },
            )
        };
        assert_eq!(by(1.0).len(), 1);
        for factor in [f64::NAN, f64::NEG_INFINITY, -3.0, 0.0] {
            assert_eq!(by(factor), by(1.0));
        }
    }
}
