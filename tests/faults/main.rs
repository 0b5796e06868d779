//! Tests with faults of processes, disks and connections: killed processes, failing disks, and cut
//! connections.
//!
//! Each child process is this test binary, started again. `KEYWARD_LONG=1` makes the tests run many more
//! rounds.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]
#![allow(
    unreachable_pub,
    reason = "the modules of one test program share items"
)]

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

/// The entry point of a child process. The variable `CHILD_PART`, which only child processes have, names the
/// code to run.
#[test]
#[ignore = "runs only as a child process of other tests"]
fn child() {
    if let Ok(part) = std::env::var("CHILD_PART") {
        match part.split_once(':') {
            #[cfg(feature = "postgres")]
            Some(("postgres", part)) => postgres::child::run(part),
            Some(("sqlite", part)) => sqlite::child::run(part),
            _ => panic!("unknown part {part}"),
        }
    }
}
