//! What the database store costs, as ratios within one run on one server of the benchmark's own, so
//! that the machine cancels out. Rounds take turns, medians are told.
//!
//! `cargo bench --features postgres --bench postgres -- [--quick] [--json] [--only create,slow,hot,start]`
#![allow(
    clippy::disallowed_methods,
    reason = "time is what is measured here, not what is decided by"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a measurement ends where it cannot go on"
)]
#![allow(
    clippy::cast_precision_loss,
    reason = "what is counted here is far below 2^52"
)]

#[allow(
    dead_code,
    unreachable_pub,
    reason = "each benchmark uses its own part"
)]
#[allow(dead_code, reason = "tests use it")]
mod start;
mod writers;

use std::time::{Duration, Instant};

use keyward::store::PostgresStore;
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use shared::table::{Asked, Table};
use support::postgres::{Place, Server};

/// How much is measured.
struct Size {
    rounds: usize,
    /// Creates of one writer in a round.
    alone: usize,
    /// Creates of each of sixteen.
    each: usize,
    /// Keys that a node starts with.
    keys: usize,
    starts: usize,
}

const FULL: Size = Size {
    rounds: 9,
    alone: 400,
    each: 100,
    keys: 1_000_000,
    starts: 7,
};

const QUICK: Size = Size {
    rounds: 3,
    alone: 100,
    each: 40,
    keys: 100_000,
    starts: 3,
};

/// As a service has them that shares the machine with its database: memory for what is read, and no
/// checkpoint in the midst of a round.
const SETTINGS: &str = "shared_buffers = '512MB'\nmax_wal_size = '8GB'\ncheckpoint_timeout = '1h'";

fn connect(runtime: &Runtime, place: &Place) -> PostgresStore {
    let options = PostgresStore::options(&place.url).schema(&place.schema);
    runtime.block_on(options.connect()).unwrap()
}

/// A connection without a store.
async fn plain(place: &Place) -> Client {
    let connected = tokio_postgres::connect(&place.url, tokio_postgres::NoTls).await;
    let (client, connection) = connected.unwrap();
    tokio::spawn(connection);
    client
}

async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let began = Instant::now();
    let done = work.await;
    (began.elapsed(), done)
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn millis(seconds: f64) -> String {
    format!("{:.0} ms", seconds * 1e3)
}

fn main() {
    let asked = Asked::read();
    let size = if asked.quick { &QUICK } else { &FULL };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut table = Table::default();
    let server = Server::start(SETTINGS);
    if asked.wants("create") {
        writers::create(&runtime, &Place::at(server.url()), size, "", &mut table);
    }
    if asked.wants("hot") {
        writers::hot(&runtime, &Place::at(server.url()), size, &mut table);
    }
    if asked.wants("start") {
        start::start(&runtime, &Place::at(server.url()), size, &mut table);
    }
    drop(server);
    if asked.wants("slow") {
        let slow = |folder: &_| Some(support::cc::library(include_str!("slow.c"), folder));
        let server = Server::start_with(SETTINGS, slow);
        let place = Place::at(server.url());
        writers::create(&runtime, &place, size, ", +2 ms a sync", &mut table);
    }
    table.print(asked.json);
}
