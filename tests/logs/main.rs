//! Tests that read everything the process logs, at every level.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

mod diverged;
mod flood;
mod refusals;
mod secrets;
