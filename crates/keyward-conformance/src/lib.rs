//! Checks for store authors, and tools for tests on top of a store:
//!
//! - [`suite!`] stamps one test per clause of the [`KeyStore`](keyward::store::KeyStore) contract.
//! - [`registry_suite!`] does the same for a [`NodeRegistry`](keyward::store::NodeRegistry).
//! - [`broken`] has stores that each break one clause. The kit is tested against these stores, and your
//!   own checks can be too.
//! - [`FaultyStore`] fails on demand.
//! - [`explore`] runs writers in every possible order, with lost replies.
//! - [`simulate`] runs nodes over a remote store, with clocks that disagree.

pub mod broken;
mod contract;
pub mod explore;
mod faulty;
pub mod model;
pub mod simulate;
pub mod strategies;

pub use self::contract::{
    CLAUSES, REGISTRY_CLAUSES, Violation, check, check_registry, clauses, violations,
};
pub use self::explore::block_on;
pub use self::faulty::{Call, Fault, FaultyStore};
/// The crate of the [`strategies`].
pub use proptest;
