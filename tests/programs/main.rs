//! Programs as real processes: the command line `keyctl`, and the examples.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod examples;
mod keyctl;
mod processes;
mod service;
