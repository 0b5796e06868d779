//! Stores whose processes are killed, whose disks fail, and whose connections are cut.
//!
//! Children are this binary, run again. `KEYWARD_LONG=1` asks for many more rounds.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]
#![allow(unreachable_pub, reason = "the modules of one program see each other")]

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

/// Runs as a child in the role that the environment names. Does nothing when run by itself.
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
