//! Measures the PostgreSQL store on a server that the benchmark starts. Results are ratios within one run, so
//! that the speed of the machine cancels out. Rounds alternate, and the table shows medians.
//!
//! `cargo bench --package keyward-benches --bench postgres -- [--quick] [--json] [--only
//! create,slow,hot,start]`
#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read the machine's clock to measure, not to decide"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]
#![allow(
    clippy::cast_precision_loss,
    reason = "counts stay far below 2^52, which f64 represents exactly"
)]

mod start;
mod writers;

use std::time::{Duration, Instant};

use keyward::store::PostgresStore;
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use shared::table::{BenchOptions, Table};
use support::postgres::{Server, TestSchema};

/// The size of a benchmark run.
struct Workload {
    rounds: usize,
    /// The number of keys that one writer creates in a round in which it runs alone.
    alone: usize,
    /// The number of keys that each of sixteen concurrent writers creates in a round.
    each: usize,
    /// The number of keys in the store that a starting node loads.
    keys: usize,
    starts: usize,
}

const FULL: Workload = Workload {
    rounds: 9,
    alone: 400,
    each: 100,
    keys: 1_000_000,
    starts: 7,
};

const QUICK: Workload = Workload {
    rounds: 3,
    alone: 100,
    each: 40,
    keys: 100_000,
    starts: 3,
};

/// Server settings: enough memory for reads, and no checkpoint in the middle of a round.
const SETTINGS: &str = "shared_buffers = '512MB'\nmax_wal_size = '8GB'\ncheckpoint_timeout = '1h'";

fn connect(runtime: &Runtime, place: &TestSchema) -> PostgresStore {
    let options = PostgresStore::options(&place.url).schema(&place.schema);
    runtime.block_on(options.connect()).unwrap()
}

/// Opens a plain database connection, without a store.
async fn plain(place: &TestSchema) -> Client {
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
    let asked = BenchOptions::read();
    let size = if asked.quick { &QUICK } else { &FULL };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut table = Table::default();
    let server = Server::start(SETTINGS);
    if asked.wants("create") {
        writers::create(
            &runtime,
            &TestSchema::at(server.url()),
            size,
            "",
            &mut table,
        );
    }
    if asked.wants("hot") {
        writers::hot(&runtime, &TestSchema::at(server.url()), size, &mut table);
    }
    if asked.wants("start") {
        start::start(&runtime, &TestSchema::at(server.url()), size, &mut table);
    }
    drop(server);
    if asked.wants("slow") {
        let slow = |folder: &_| Some(support::cc::library(include_str!("slow.c"), folder));
        let server = Server::start_with(SETTINGS, slow);
        let place = TestSchema::at(server.url());
        writers::create(&runtime, &place, size, ", +2 ms a sync", &mut table);
    }
    table.print(asked.json);
}
