//! What a verification costs, as ratios to the least that it can cost: an HMAC whose key was
//! prepared, two raw compressions of SHA-256, measured between the same rounds. Medians are told,
//! of the thread's own time unless the line says otherwise.
//!
//! `cargo bench --bench verify -- [--quick] [--json] [--only valid,refused,kinds,threads,writer,growth,heap,allocations,start]`
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

mod parallel;
mod single;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use shared::table::{Asked, Table};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How much is measured.
struct Size {
    /// Over how many keys, with the goal for each.
    keys: &'static [(u64, Option<f64>)],
    /// Over how many keys everything is measured that is not about their number.
    typical: u64,
    rounds: usize,
    /// Verifications of one subject before another has its turn.
    batch: usize,
    /// Rounds of a reader beside a writer.
    windows: usize,
    /// How far the index grows under a reader; from a tenth of that.
    growth: u64,
}

const FULL: Size = Size {
    keys: &[
        (1_000, Some(1.25)),
        (100_000, None),
        (1_000_000, Some(2.2)),
        (10_000_000, Some(4.0)),
    ],
    typical: 1_000_000,
    rounds: 41,
    batch: 20_000,
    windows: 30,
    growth: 10_000_000,
};

const QUICK: Size = Size {
    keys: &[(1_000, Some(1.25)), (100_000, None), (1_000_000, Some(2.2))],
    typical: 100_000,
    rounds: 15,
    batch: 10_000,
    windows: 10,
    growth: 300_000,
};

fn main() {
    let asked = Asked::read();
    let size = if asked.quick { &QUICK } else { &FULL };
    let mut table = Table::default();
    single::sizes(size, &asked, &mut table);
    if asked.wants("refused") || asked.wants("allocations") {
        single::refused(size, &asked, &mut table);
    }
    if asked.wants("kinds") {
        single::kinds(size, &mut table);
    }
    if asked.wants("threads") {
        parallel::threads(size, &mut table);
    }
    if asked.wants("writer") {
        parallel::writer(size, &mut table);
    }
    if asked.wants("growth") {
        parallel::growth(size, &mut table);
    }
    table.print(asked.json);
}
