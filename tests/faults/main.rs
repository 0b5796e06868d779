//! Stores whose processes are killed, whose disks fail, and whose connections are cut.
//!
//! Children are this test binary, started again. `KEYWARD_LONG=1` runs many more rounds.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]
#![allow(unreachable_pub, reason = "the modules of one program see each other")]

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

/// Runs the part that `CHILD_PART` names, in a child process. Does nothing without that variable.
#[test]
#[ignore = "plays the other process in the tests beside it"]
fn child() {
    if let Ok(part) = std::env::var("CHILD_PART") {
        match part.split_once(':') {
            #[cfg(feature = "postgres")]
            Some(("postgres", part)) => postgres::child::run(part),
            Some(("sqlite", part)) => sqlite::child::run(part),
            _ => panic!("no part is called {part}"),
        }
    }
}
