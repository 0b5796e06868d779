//! Compares the judgement of unusual use with plain thresholds, on series with labelled anomalies.

use keyward::usage::{HOURS_PER_DAY, Sensitivity, unusual_use};

const HOURS_PER_WEEK: usize = 7 * HOURS_PER_DAY;

/// Expands to the CSV file of this name, which is compiled into the test.
macro_rules! nab {
    ($name:literal) => {
        ($name, include_str!(concat!("../data/nab/", $name, ".csv")))
    };
}

const SERIES: [(&str, &str); 13] = [
    nab!("Twitter_volume_AAPL"),
    nab!("Twitter_volume_AMZN"),
    nab!("Twitter_volume_CRM"),
    nab!("Twitter_volume_GOOG"),
    nab!("Twitter_volume_UPS"),
    nab!("nyc_taxi"),
    nab!("elb_request_count_8c0756"),
    nab!("art_daily_flatmiddle"),
    nab!("art_daily_jumpsdown"),
    nab!("art_daily_jumpsup"),
    nab!("art_daily_nojump"),
    nab!("art_daily_no_noise"),
    nab!("art_daily_small_noise"),
];

/// Parses `2014-04-10T16:15:00Z` as hours since 1970.
fn hour_of(time: &str) -> usize {
    let number = |range: std::ops::Range<usize>| {
        time[range]
            .parse::<usize>()
            .expect("a number in an RFC 3339 time")
    };
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    // The year starts in March, so that the leap day is its last.
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    (days - 719_469) * HOURS_PER_DAY + number(11..13)
}

/// Reads one series. Hours without a row are gaps; negative values of artificial series count as zero.
fn read(csv: &str) -> (usize, Vec<Option<u64>>) {
    let rows = csv.lines().skip(1).filter_map(|row| row.split_once(','));
    let rows: Vec<_> = rows.map(|(time, count)| (hour_of(time), count)).collect();
    let start = rows[0].0;
    let mut hours = vec![None; rows[rows.len() - 1].0 + 1 - start];
    for (hour, count) in rows {
        hours[hour - start] = Some(count.parse::<i64>().expect("a count").max(0) as u64);
    }
    (start, hours)
}

/// Reads the first and last hours of the labelled windows of one series.
fn windows(name: &str, start: usize) -> Vec<(usize, usize)> {
    let rows = nab!("windows")
        .1
        .lines()
        .filter_map(|row| row.strip_prefix(name)?.strip_prefix(','));
    let times = rows.filter_map(|row| row.split_once(','));
    times
        .map(|(from, to)| (hour_of(from) - start, hour_of(to) - start))
        .collect()
}

/// A plain threshold over the mean of the four weeks before, cleared after 12 calm hours as ours is.
///
/// It starts after one week, and judges no drops: three deviations under the mean are under zero here.
fn above(
    hours: &[Option<u64>],
    threshold: fn(mean: f64, deviation: f64) -> f64,
) -> Vec<(usize, usize)> {
    let mut episodes: Vec<(usize, usize)> = Vec::new();
    for hour in HOURS_PER_WEEK..hours.len() {
        let earlier = &hours[hour.saturating_sub(4 * HOURS_PER_WEEK)..hour];
        let counts: Vec<f64> = earlier
            .iter()
            .flatten()
            .map(|&count| count as f64)
            .collect();
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        let squares = counts
            .iter()
            .map(|count| (count - mean).powi(2))
            .sum::<f64>();
        let deviation = (squares / counts.len() as f64).sqrt();
        if hours[hour].is_some_and(|count| count as f64 > threshold(mean, deviation)) {
            match episodes.last_mut() {
                Some(open) if hour - open.1 <= 12 => open.1 = hour,
                _ => episodes.push((hour, hour)),
            }
        }
    }
    episodes
}

/// Counts the windows that an episode overlaps, and the episodes that overlap no window.
fn score(windows: &[(usize, usize)], episodes: &[(usize, usize)]) -> [usize; 2] {
    let overlap =
        |one: &(usize, usize), other: &(usize, usize)| one.0 <= other.1 && other.0 <= one.1;
    let detected = windows
        .iter()
        .filter(|window| episodes.iter().any(|e| overlap(e, window)));
    let alarms = episodes
        .iter()
        .filter(|e| !windows.iter().any(|window| overlap(e, window)));
    [detected.count(), alarms.count()]
}

/// Run with `--nocapture` for the table. Fails if the ordinary departure, a median or a span is spoilt.
#[test]
fn labelled_series_score_better_than_a_plain_threshold() {
    println!("| series | windows | ours | mean + 3 sd | 3 x mean |");
    let mut total = [[0; 2]; 3];
    let (mut labelled, mut days) = (0, 0.0);
    for (name, csv) in SERIES {
        let (start, hours) = read(csv);
        let windows = windows(name, start);
        let ours: Vec<_> = unusual_use(&hours, &Sensitivity::default())
            .iter()
            .map(|e| (e.first, e.last))
            .collect();
        let deviations = above(&hours, |mean, deviation| mean + 3.0 * deviation);
        let factor = above(&hours, |mean, _| 3.0 * mean);
        let judged = (hours.len() - HOURS_PER_WEEK) as f64 / HOURS_PER_DAY as f64;
        let scores = [ours, deviations, factor].map(|episodes| score(&windows, &episodes));
        let columns =
            scores.map(|[hit, alarms]| format!("{hit}, {:.1}", alarms as f64 * 30.0 / judged));
        println!("| {name} | {} | {} |", windows.len(), columns.join(" | "));
        for (sum, score) in total.iter_mut().zip(scores) {
            *sum = [sum[0] + score[0], sum[1] + score[1]];
        }
        labelled += windows.len();
        days += judged;
    }
    println!("{labelled} windows, {days:.0} days, [detected, false episodes]: {total:?}");
    assert_eq!(labelled, 30);
    // Our judgement, and both plain thresholds. `docs/usage.md` has these figures.
    assert_eq!(total, [[19, 11], [17, 27], [16, 39]]);
}
