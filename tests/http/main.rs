//! The HTTP layer, over a real socket with real clients, and as a tower service by itself.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod addresses;
mod cors;
mod extractors;
#[path = "../support/gated.rs"]
mod gated;
mod limits;
mod nodes;
mod refusals;
mod revoke;
mod rules;
mod server;
mod service;
#[path = "../support/mod.rs"]
mod support;
mod wire;
