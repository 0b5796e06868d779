//! All tests that can share one process. Each module covers one guarantee or one part of the crate.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]
#![allow(
    unreachable_pub,
    reason = "the modules of one test program share items"
)]

mod agreement;
mod authority;
mod caps;
mod conformance;
mod errors;
mod escalation;
mod events;
mod explorer;
mod failover;
mod first_use;
#[cfg(feature = "tokio")]
mod follow;
mod golden;
mod house;
#[cfg(feature = "axum")]
mod http;
mod invariants;
mod kept;
mod leases;
mod life;
mod log_lines;
mod lost_replies;
mod model;
mod nodes;
mod own_commands;
mod peppers;
mod profiles;
mod protocol;
mod pruning;
mod read_through;
mod receipts;
mod recovery;
mod regressions;
mod retention;
mod seed_rules;
mod simulation;
#[cfg(feature = "sqlite")]
mod sqlite;
mod strategies;
#[cfg(feature = "tokio")]
mod time;
mod traps;
mod unusual;
mod usage;
mod verify;
