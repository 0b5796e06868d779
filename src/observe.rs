//! Gauges and counters through the `metrics` crate (feature `metrics`), and limits on log lines that clients
//! can cause. Without the feature, the functions that count do nothing.
//!
//! No metric name or label contains presented or stored data. The ids of the process's own peppers are labels.
//!
//! The gauges of freshness are `keyward_freshness_age_seconds`, `keyward_seconds_until_refusal` and
//! `keyward_report_age_seconds`. They are set when a sync begins or ends, when the application reads the
//! freshness, and when keys begin to be refused as stale. Between these events their values do not change.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::core::id::KeyId;
use crate::core::pepper::PepperState;
use crate::core::text::PepperId;

/// Displays an error and all its sources on one line. The message of an error of this crate never repeats its
/// source. So a log line without the sources would not show the cause.
///
/// # Examples
///
/// ```
/// use keyward::WithSources;
/// use keyward::store::{StoreError, StoreErrorKind};
///
/// let error = StoreError::new(StoreErrorKind::Unavailable, "reading changes");
/// let error = error.with_source("no password supplied");
/// let line = WithSources(&error).to_string();
/// assert_eq!(line, "store is unavailable while reading changes: no password supplied");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct WithSources<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for WithSources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// 10 s, the period of the limit on log lines. An operator sees an outage soon, and one subject causes at
/// most 8,640 lines a day.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// 32 lines in each period, each about a different subject.
const LOG_LINES: usize = 32;

/// The subject of a log line: the kind of the line, and the key that it names.
pub(crate) type LogSubject = (&'static str, Option<KeyId>);

/// A limit on log lines that clients can cause: one line per subject in 10 s, and 32 lines for all subjects
/// together. Counts the lines that are left out.
#[derive(Debug, Default)]
pub(crate) struct LogSampler {
    period: Mutex<LogPeriod>,
    suppressed: AtomicU64,
}

#[derive(Debug, Default)]
struct LogPeriod {
    start: Duration,
    logged: HashSet<LogSubject>,
}

impl LogSampler {
    /// Decides about a line that concerns `subject`, at the monotonic time `now`. Returns `None` if the line
    /// must be left out. Otherwise returns the number of lines left out since the last logged line. Never
    /// waits: if another thread holds the lock, the line is left out.
    pub(crate) fn admit(&self, now: Duration, subject: LogSubject) -> Option<u64> {
        let admitted = self.period.try_lock().is_ok_and(|mut period| {
            if period.logged.is_empty() || now.saturating_sub(period.start) >= LOG_PERIOD {
                period.start = now;
                period.logged.clear();
            }
            period.logged.len() < LOG_LINES && period.logged.insert(subject)
        });
        if admitted {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// True if metrics are exported. A caller checks this constant before it computes an expensive value.
pub(crate) const IS_EXPORTED: bool = cfg!(feature = "metrics");

/// 60 s between two updates of a gauge that reads every key. A read takes about 50 ms for a million keys.
const GAUGE_PERIOD: Duration = Duration::from_secs(60);

/// The time of the last update of an expensive gauge.
#[derive(Debug, Default)]
pub(crate) struct GaugePeriod(Mutex<Option<Duration>>);

impl GaugePeriod {
    /// Returns whether an update is due at the monotonic time `now`, and begins the next period if it is.
    pub(crate) fn begin(&self, now: Duration) -> bool {
        self.0.try_lock().is_ok_and(|mut last| {
            let due = last.is_none_or(|last| now.saturating_sub(last) >= GAUGE_PERIOD);
            if due {
                *last = Some(now);
            }
            due
        })
    }
}

/// Counts a sync, by its outcome.
pub(crate) fn synced(outcome: &'static str) {
    count("keyward_syncs_total", Some(outcome));
}

/// Counts a resync: the replica reads everything again, because it cannot continue the history that it
/// followed.
pub(crate) fn resynced() {
    count("keyward_resyncs_total", None);
}

/// Counts a read through the store for one key, by its outcome.
pub(crate) fn read_through(outcome: &'static str) {
    count("keyward_read_throughs_total", Some(outcome));
}

/// Counts a request at the HTTP layer, by its outcome.
#[cfg(feature = "http")]
pub(crate) fn http_request(outcome: &'static str) {
    // Labels that are literals need no allocation, and most requests are accepted.
    #[cfg(feature = "metrics")]
    if outcome == "accepted" {
        metrics::counter!("keyward_http_requests_total", "outcome" => "accepted").increment(1);
        return;
    }
    count("keyward_http_requests_total", Some(outcome));
}

/// Sets the gauges of a replica: its age, the number of key rows in its index, and 1 if its store went back in
/// time.
pub(crate) fn replica(age: Option<Duration>, keys: u32, diverged: bool) {
    // The gauge needs a value before the first confirmation, so the age is then infinite.
    gauge(
        "keyward_freshness_age_seconds",
        age.map_or(f64::INFINITY, |age| age.as_secs_f64()),
    );
    gauge("keyward_index_keys", keys.into());
    gauge("keyward_store_diverged", f64::from(u8::from(diverged)));
}

/// Sets the number of live keys under one pepper of this process.
#[cfg(feature = "metrics")]
pub(crate) fn keys_of_pepper(pepper: &PepperId, state: PepperState, keys: u64) {
    let (pepper, state) = (pepper.to_string(), state.as_str());
    metrics::gauge!("keyward_keys_by_pepper", "pepper" => pepper, "state" => state)
        .set(keys as f64);
}

#[cfg(not(feature = "metrics"))]
pub(crate) const fn keys_of_pepper(_: &PepperId, _: PepperState, _: u64) {}

/// Sets the number of live keys whose peppers this process cannot verify with.
pub(crate) fn unverifiable_keys(keys: u64) {
    gauge("keyward_unverifiable_keys", keys as f64);
}

/// Sets the length of an SQLite store's write-ahead log.
#[cfg(feature = "sqlite")]
pub(crate) fn store_log(bytes: u64) {
    // A float is exact up to 8 PiB.
    #[expect(clippy::cast_precision_loss, reason = "a gauge takes a float")]
    gauge("keyward_store_wal_bytes", bytes as f64);
}

/// Sets the time until this node refuses keys of the class with the shortest staleness bound.
pub(crate) fn until_refusal(left: Duration) {
    gauge("keyward_seconds_until_refusal", left.as_secs_f64());
}

/// Sets the age of the last report that the registry accepted and that still counts.
pub(crate) fn report_age(age: Option<Duration>) {
    let age = age.map_or(f64::INFINITY, |age| age.as_secs_f64());
    gauge("keyward_report_age_seconds", age);
}

/// Counts an error of the store or the registry, by its kind.
pub(crate) fn store_error(kind: &'static str) {
    count_by("keyward_store_errors_total", "kind", kind);
}

/// Sets the seconds by which this node's clock is ahead of the clock that differs most.
pub(crate) fn clock_offset(seconds: f64) {
    gauge("keyward_clock_offset_seconds", seconds);
}

#[cfg(feature = "metrics")]
fn count(name: &'static str, outcome: Option<&'static str>) {
    match outcome {
        Some(outcome) => count_by(name, "outcome", outcome),
        None => metrics::counter!(name).increment(1),
    }
}

#[cfg(feature = "metrics")]
fn count_by(name: &'static str, label: &'static str, value: &'static str) {
    metrics::counter!(name, label => value).increment(1);
}

#[cfg(feature = "metrics")]
fn gauge(name: &'static str, value: f64) {
    metrics::gauge!(name).set(value);
}

#[cfg(not(feature = "metrics"))]
const fn count(_: &'static str, _: Option<&'static str>) {}

#[cfg(not(feature = "metrics"))]
const fn count_by(_: &'static str, _: &'static str, _: &'static str) {}

#[cfg(not(feature = "metrics"))]
const fn gauge(_: &'static str, _: f64) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::time::Timestamp;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(number: u8) -> Option<KeyId> {
        Some(KeyId::from_parts(Timestamp::UNIX_EPOCH, [number; 10]))
    }

    #[test]
    fn an_error_is_logged_with_all_its_sources() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::fmt::Error);

        #[derive(Debug, thiserror::Error)]
        #[error("outermost")]
        struct Outermost(#[source] Outer);

        let error = Outermost(Outer(std::fmt::Error));
        let cause = std::fmt::Error.to_string();
        let logged = WithSources(&error).to_string();
        assert_eq!(logged, format!("outermost: outer: {cause}"));
    }

    #[test]
    fn a_subject_is_logged_once_in_ten_seconds_with_the_number_left_out() {
        let sampler = LogSampler::default();
        assert_eq!(sampler.admit(SECOND, ("a", key(1))), Some(0));
        for _ in 0..1000 {
            assert_eq!(sampler.admit(10 * SECOND, ("a", key(1))), None);
        }
        // Each subject has its own limit. The next line that is logged, about any subject, reports the number
        // of lines left out.
        assert_eq!(sampler.admit(10 * SECOND, ("a", key(2))), Some(1000));
        assert_eq!(sampler.admit(10 * SECOND, ("b", key(1))), Some(0));
        assert_eq!(sampler.admit(10 * SECOND, ("a", key(1))), None);
        assert_eq!(sampler.admit(11 * SECOND, ("a", key(1))), Some(1));
    }

    #[test]
    fn many_subjects_share_a_limit() {
        let sampler = LogSampler::default();
        let admitted = |now| {
            let lines = (0..=u8::MAX).map(|number| sampler.admit(now, ("a", key(number))));
            lines.flatten().count()
        };
        assert_eq!([admitted(SECOND), admitted(2 * SECOND)], [LOG_LINES, 0]);
        assert_eq!(admitted(11 * SECOND), LOG_LINES);
    }
}
