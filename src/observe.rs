//! Gauges and counters through the `metrics` crate (feature `metrics`). Without the feature every function
//! does nothing.
//!
//! No metric name or label contains presented or stored data.

use std::time::Duration;

/// Counts a sync, by its outcome.
pub(crate) fn synced(outcome: &'static str) {
    count("keyward_syncs_total", Some(outcome));
}

/// Counts a resync: the replica reads everything again, because the store's history was lost.
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
    count("keyward_http_requests_total", Some(outcome));
}

/// Sets the age of the replica and the number of key rows in its index.
pub(crate) fn replica(age: Option<Duration>, keys: u32) {
    // The gauge needs a value before the first confirmation, so the age is then infinite.
    gauge(
        "keyward_freshness_age_seconds",
        age.map_or(f64::INFINITY, |age| age.as_secs_f64()),
    );
    gauge("keyward_index_keys", keys.into());
}

/// Sets the seconds by which this node's clock is ahead of the clock that differs most.
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
