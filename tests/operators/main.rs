//! What operators do to stores: copy them from one kind to another, and run `keyctl` over a database.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod broken;
mod copying;
mod database;
#[path = "../support/example.rs"]
mod example;
mod fill;
mod interrupted;
#[path = "../support/served.rs"]
mod served;
#[path = "../postgres/server.rs"]
mod server;
mod service;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/turns.rs"]
mod turns;
