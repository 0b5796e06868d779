//! Tools for operators: copying a store to another kind of store, and `keyctl` on a database.

mod broken;
mod copying;
mod database;
mod fill;
mod interrupted;
mod service;
