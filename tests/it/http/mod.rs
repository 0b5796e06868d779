//! The HTTP layer, over a real socket with real clients, and as a tower service by itself.

mod addresses;
mod cors;
mod extractors;
mod limits;
mod nodes;
mod refusals;
mod revoke;
mod rules;
mod server;
mod service;
mod wire;
