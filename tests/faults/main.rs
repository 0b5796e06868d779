//! Faults of processes, disks and connections: killed processes, failing disks, cut connections.
//!
//! Child processes are this test binary, started again. `KEYWARD_LONG=1` runs many more rounds.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]
#![allow(
    unreachable_pub,
    reason = "the modules of one test program share items"
)]

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

/// Runs the part of a test that `CHILD_PART` names. Only child processes have that variable.
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
