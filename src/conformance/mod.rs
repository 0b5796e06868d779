//! Checks for those who write a store.
//!
//! [`suite!`] stamps one test per clause of the [`KeyStore`](crate::store::KeyStore) contract.
//! [`broken`] has stores that each break one of them: the kit is tested against those, and so can be
//! checks of your own.

pub mod broken;
mod contract;

pub use self::contract::{CLAUSES, Violation, check, clauses, violations};
#[doc(inline)]
pub use crate::__keyward_suite as suite;
