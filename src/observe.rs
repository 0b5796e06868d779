//! What can be watched from outside: gauges and counters through the `metrics` facade (feature
//! `metrics`); without the feature, nothing.
//!
//! No name or label holds anything that was presented or stored.

use std::time::Duration;

/// A sync that ended, and how.
pub(crate) fn synced(outcome: &'static str) {
    count("keyward_syncs_total", Some(outcome));
}

/// Everything is read again, since the store's history was lost.
pub(crate) fn resynced() {
    count("keyward_resyncs_total", None);
}

/// A read through the store for one key, and how it ended.
pub(crate) fn read_through(outcome: &'static str) {
    count("keyward_read_throughs_total", Some(outcome));
}

/// A request that came to the HTTP layer, and how it ended.
#[cfg(feature = "http")]
pub(crate) fn http_request(outcome: &'static str) {
    count("keyward_http_requests_total", Some(outcome));
}

/// How old what is known is, and how many rows of keys the index has.
pub(crate) fn replica(age: Option<Duration>, keys: u32) {
    // A gauge has to say something where nothing was ever confirmed: for ever.
    gauge(
        "keyward_freshness_age_seconds",
        age.map_or(f64::INFINITY, |age| age.as_secs_f64()),
    );
    gauge("keyward_index_keys", keys.into());
}

/// The seconds by which the own clock is ahead of the one that differs most.
pub(crate) fn clock_offset(seconds: f64) {
    gauge("keyward_clock_offset_seconds", seconds);
}

#[cfg(feature = "metrics")]
fn count(name: &'static str, outcome: Option<&'static str>) {
    match outcome {
        Some(outcome) => metrics::counter!(name, "outcome" => outcome).increment(1),
        None => metrics::counter!(name).increment(1),
    }
}

#[cfg(feature = "metrics")]
fn gauge(name: &'static str, value: f64) {
    metrics::gauge!(name).set(value);
}

#[cfg(not(feature = "metrics"))]
const fn count(_: &'static str, _: Option<&'static str>) {}

#[cfg(not(feature = "metrics"))]
const fn gauge(_: &'static str, _: f64) {}
