//! Ready policies: one for each of the systems this project studied, and one to start from.
//!
//! Each is a profile of its own, never merged with another: they contradict each other on purpose.
//! All are [`PolicySpec`](crate::policy::PolicySpec)s: change what you like, then check the result
//! with [`Policy::new`](crate::policy::Policy::new).

mod standard;

pub use self::standard::standard;
use super::policy::Policy;
use super::scope::ScopeSet;
use super::text::{ClassName, PolicyName};
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

fn prefix(text: &'static str) -> TokenPrefix {
    TokenPrefix::new(text).expect("a literal of this module")
}

fn scopes(scopes: &[&'static str]) -> ScopeSet {
    ScopeSet::parse(scopes.iter().copied()).expect("literals of this module")
}
