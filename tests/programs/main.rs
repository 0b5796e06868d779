//! Programs as real processes: `keyctl` and the examples.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

mod examples;
mod failover;
mod first_service;
mod keyctl;
mod keyctl_files;
mod keyctl_live;
mod keyctl_operating;
mod keyctl_outcomes;
mod operating;
mod page;
mod processes;
mod service;
mod upgrade;

/// The entry point of a child process. The variable `CHILD_PART`, which only child processes have, names the
/// code to run.
#[test]
#[ignore = "runs only as a child process of other tests"]
fn child() {
    match std::env::var("CHILD_PART").as_deref() {
        Ok("node") => upgrade::node(),
        Ok(part) => panic!("unknown part {part}"),
        Err(_) => {}
    }
}
