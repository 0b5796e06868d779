//! What operators do to stores: copy them from one kind to another, and run `keyctl` over a database.

mod broken;
mod copying;
mod database;
mod fill;
mod interrupted;
mod service;
