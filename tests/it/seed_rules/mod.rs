//! The rules of the five documents that this project started from, each by its id.
//!
//! `rules/*.csv` states every rule in our own words and says whether a test here shows it, or what
//! it waits for. The test at the bottom of `coverage` holds the two against each other, so that no
//! rule can be forgotten.

mod amplitude;
mod amplitude_products;
mod coverage;
mod guide;
mod idenfy;
mod yugabytedb;
