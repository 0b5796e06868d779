//! Operators' work on stores: copies between kinds of store, and `keyctl` over a database.

mod broken;
mod copying;
mod database;
mod fill;
mod interrupted;
mod service;
