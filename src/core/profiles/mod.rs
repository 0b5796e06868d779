//! Ready policies: one for each of the systems this project studied, and one to start from.
//!
//! Each is a profile of its own, never merged with another: they contradict each other on purpose.
//! All are [`PolicySpec`](crate::policy::PolicySpec)s: change what you like, then check the result
//! with [`Policy::new`](crate::policy::Policy::new).

mod amplitude;
mod amplitude_products;
mod guide;
mod idenfy;
mod standard;
mod yugabytedb;

pub use self::amplitude::amplitude;
pub use self::amplitude_products::amplitude_products;
pub use self::guide::guide;
pub use self::idenfy::idenfy;
pub use self::standard::standard;
pub use self::yugabytedb::yugabytedb;
use super::policy::Policy;
use super::scope::ScopeSet;
use super::text::{ClassName, Entitlement, KeyName, PolicyName, ResourceKind, Stage};
use super::token::TokenPrefix;

impl Default for Policy {
    /// The [`standard`] profile.
    fn default() -> Self {
        Self::new(standard()).expect("the shipped profile holds no contradiction; a test shows it")
    }
}

fn policy_name(name: &'static str) -> PolicyName {
    PolicyName::new(name).expect("a literal of this module")
}

fn class_name(name: &'static str) -> ClassName {
    ClassName::new(name).expect("a literal of this module")
}

fn key_name(name: &'static str) -> KeyName {
    KeyName::new(name).expect("a literal of this module")
}

fn entitlement(name: &'static str) -> Entitlement {
    Entitlement::new(name).expect("a literal of this module")
}

fn resource_kind(name: &'static str) -> ResourceKind {
    ResourceKind::new(name).expect("a literal of this module")
}

fn stage(name: &'static str) -> Stage {
    Stage::new(name).expect("a literal of this module")
}

fn prefix(text: &'static str) -> TokenPrefix {
    TokenPrefix::new(text).expect("a literal of this module")
}

fn scopes(scopes: &[&'static str]) -> ScopeSet {
    ScopeSet::parse(scopes.iter().copied()).expect("literals of this module")
}
