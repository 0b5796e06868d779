//! Programs as real processes: `keyctl` and the examples.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

mod examples;
mod first_service;
mod keyctl;
mod keyctl_live;
mod keyctl_operating;
mod operating;
mod page;
mod processes;
mod service;
