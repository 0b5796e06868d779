//! The conformance kit.

pub mod explore;
mod faulty;
pub mod model;
pub mod strategies;

pub use self::faulty::{Call, Fault, FaultyStore};
