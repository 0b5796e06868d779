//! What the database store must survive: many processes at once, a server that is killed or stopped,
//! connections that are cut or fall silent.
//!
//! Children are this binary, run again. `KEYWARD_LONG=1` asks for many more rounds.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]
#![allow(unreachable_pub, reason = "the parts of one test see each other")]

mod child;
mod cut;
mod disturbed;
mod feed;
#[path = "../support/process.rs"]
mod process;
mod proxy;
#[path = "../postgres/raw.rs"]
mod raw;
#[path = "../postgres/server.rs"]
mod server;
mod spread;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/turns.rs"]
mod turns;
mod volume;

/// Runs as a child, when the environment says as which; alone it has nothing to do.
#[test]
#[ignore = "plays the other process in the tests beside it"]
fn child() {
    if let Ok(part) = std::env::var("CHILD_PART") {
        child::run(&part);
    }
}
