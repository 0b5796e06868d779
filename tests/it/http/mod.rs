//! The HTTP layer, tested over real sockets with real clients, and alone as a tower service.

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
mod stacked;
mod wire;
