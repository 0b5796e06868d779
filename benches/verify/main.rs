//! Measures the cost of a verification as a ratio to the floor.
//!
//! The floor is an HMAC with a prepared key: two raw compressions of SHA-256. Its rounds alternate with those
//! of the verifications. The table shows medians of the thread's CPU time, unless a line names another time.
//!
//! `cargo bench --package keyward-benches --bench verify -- [--quick] [--json] [--only
//! valid,zipf,bound,refused,kinds,usage,threads,writer,role,growth,heap,allocations,start]`
#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read the machine's clock to measure, not to decide"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]
#![allow(
    clippy::cast_precision_loss,
    reason = "counts stay far below 2^52, which f64 represents exactly"
)]

// The hints that the index gives, so that the bound has the same.
#[allow(
    unused_imports,
    reason = "the unit tests of this module run in the library alone"
)]
#[path = "../../src/replica/index/memory.rs"]
mod memory;
mod parallel;
mod single;
mod usage;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use shared::table::{BenchOptions, Table};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The size of a benchmark run.
struct Workload {
    /// The numbers of keys to measure, each with its goal.
    keys: &'static [(u64, f64)],
    /// The number of keys in measurements that do not vary the number of keys.
    typical: u64,
    rounds: usize,
    /// The number of verifications that one subject runs before the next subject's turn.
    batch: usize,
    /// The number of rounds in which the reader is measured, once with a busy and once with an idle writer.
    windows: usize,
    /// The number of keys to which the index grows while a reader runs. The index starts with a tenth of that
    /// number.
    growth: u64,
}

const FULL: Workload = Workload {
    keys: &[
        (1_000, 1.6),
        (100_000, 2.2),
        (1_000_000, 2.7),
        (10_000_000, 3.8),
    ],
    typical: 1_000_000,
    rounds: 41,
    batch: 20_000,
    windows: 30,
    growth: 10_000_000,
};

const QUICK: Workload = Workload {
    keys: &[(1_000, 1.6), (100_000, 2.2), (1_000_000, 2.7)],
    typical: 100_000,
    rounds: 15,
    batch: 10_000,
    windows: 10,
    growth: 300_000,
};

fn main() {
    let asked = BenchOptions::read();
    let size = if asked.quick { &QUICK } else { &FULL };
    let mut table = Table::default();
    single::sizes(size, &asked, &mut table);
    if asked.wants("bound") {
        single::bound(size, &mut table);
    }
    if asked.wants("refused") || asked.wants("allocations") {
        single::refused(size, &asked, &mut table);
    }
    if asked.wants("kinds") {
        single::kinds(size, &mut table);
    }
    if asked.wants("usage") {
        usage::usage(size, &mut table);
    }
    if asked.wants("threads") {
        parallel::threads(size, &mut table);
    }
    if asked.wants("writer") {
        parallel::writer(size, &mut table);
    }
    if asked.wants("role") {
        parallel::role(size, &mut table);
    }
    if asked.wants("growth") {
        parallel::growth(size, &mut table);
    }
    table.print(asked.json);
}
