//! Checks for those who write a store, and tools for tests on top of one.
//!
//! - [`suite!`] stamps one test per clause of the [`KeyStore`](keyward::store::KeyStore) contract.
//!   [`broken`] has stores that each break one of them: the kit is tested against those, and so can
//!   be checks of your own.
//! - [`registry_suite!`] does the same for a [`NodeRegistry`](keyward::store::NodeRegistry).
//! - [`FaultyStore`] fails when it is told to.
//! - [`explore`] runs writers in every order there is, replies lost on the way.
//! - [`simulate`] runs nodes over a store that is far away, with clocks that disagree.

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
