//! Checks for store authors, and tools for tests on top of a store:
//!
//! - [`suite!`] expands to one test per clause of the [`KeyStore`](keyward::store::KeyStore) contract.
//! - [`registry_suite!`], [`documents_suite!`] and [`usage_suite!`] do the same for a
//!   [`NodeRegistry`](keyward::store::NodeRegistry), for [`Documents`](keyward::store::Documents) and for a
//!   [`UsageStore`](keyward::store::usage::UsageStore).
//! - [`broken`] contains stores that each break one clause, to test checks against.
//! - [`FaultyStore`] wraps a store and injects faults.
//! - [`explore`] runs concurrent writers in every possible order, also with lost replies.
//! - [`simulate`] runs several nodes over a remote store in simulated time, with network and clock faults.
//! - [`strategies`] generates keys, commands and policies for property tests. [`Reached`] fails a test whose
//!   generated commands are all refused.

pub mod broken;
mod contract;
pub mod explore;
mod faulty;
pub mod model;
mod reached;
pub mod simulate;
pub mod strategies;

pub use self::contract::{
    CLAUSES, ClauseViolation, DOCUMENTS_CLAUSES, REGISTRY_CLAUSES, USAGE_CLAUSES, check,
    check_documents, check_registry, check_usage, clauses, violations,
};
pub use self::explore::block_on;
pub use self::faulty::{Call, Fault, FaultyStore};
pub use self::reached::Reached;
/// The version of `proptest` in the types that [`strategies`] returns.
pub use proptest;
