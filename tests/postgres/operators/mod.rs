//! Tools for operators: copies between kinds of store, and `keyctl` on a database.

mod broken;
mod copying;
mod database;
mod fill;
mod interrupted;
mod service;
