//! Tests of the PostgreSQL store: the conformance suite, several nodes, damaged rows, and a killed server.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

mod connecting;
mod crash;
mod damage;
mod diverged;
mod encryption;
mod failover;
mod integrity;
mod loads;
mod operators;
mod plans;
mod pooler;
mod portable;
mod round_trips;
mod sharing;
mod tables;
mod trust;
mod usage;

use support::postgres::shared;

keyward_conformance::suite! {
    mod one_node;
    block_on = pollster::block_on;
    store = shared(1);
}

// Runs the suite on two store instances with one schema. Calls alternate between them, as if two processes
// shared the schema.
keyward_conformance::suite! {
    mod two_nodes;
    block_on = pollster::block_on;
    store = shared(2);
}

keyward_conformance::registry_suite! {
    mod one_registry;
    block_on = pollster::block_on;
    registry = shared(1);
}

keyward_conformance::registry_suite! {
    mod two_registries;
    block_on = pollster::block_on;
    registry = shared(2);
}

keyward_conformance::documents_suite! {
    mod one_nodes_documents;
    block_on = pollster::block_on;
    documents = shared(1);
}

keyward_conformance::documents_suite! {
    mod two_nodes_documents;
    block_on = pollster::block_on;
    documents = shared(2);
}

keyward_conformance::usage_suite! {
    mod one_nodes_usage;
    block_on = pollster::block_on;
    usage = shared(1);
}

keyward_conformance::usage_suite! {
    mod two_nodes_usage;
    block_on = pollster::block_on;
    usage = shared(2);
}
