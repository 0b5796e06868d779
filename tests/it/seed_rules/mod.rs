//! The rules of the five documents on which this project is based, each by its id.
//!
//! `rules/*.csv` lists every rule in our own words, with a state: a test here shows the rule, or the rule
//! waits for a missing feature. A test in `coverage` compares the rules with the tests, so that no rule is
//! forgotten.

mod amplitude;
mod amplitude_products;
mod coverage;
mod guide;
mod idenfy;
mod yugabytedb;
