//! The database store: the contract, several nodes at once, damage, and a server that is killed.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod connecting;
mod crash;
mod damage;
mod encryption;
mod failover;
mod integrity;
mod loads;
#[path = "../support/pairs.rs"]
mod pairs;
mod plans;
mod portable;
mod raw;
mod round_trips;
mod server;
mod sharing;
#[path = "../support/mod.rs"]
mod support;
mod tables;
#[path = "../support/turns.rs"]
mod turns;

use crate::server::shared;

keyward::conformance::suite! {
    mod one_node;
    block_on = pollster::block_on;
    store = shared(1);
}

// Two instances on one schema, as two processes have it: calls take turns between them.
keyward::conformance::suite! {
    mod two_nodes;
    block_on = pollster::block_on;
    store = shared(2);
}

keyward::conformance::registry_suite! {
    mod one_registry;
    block_on = pollster::block_on;
    registry = shared(1);
}

keyward::conformance::registry_suite! {
    mod two_registries;
    block_on = pollster::block_on;
    registry = shared(2);
}
