//! The conformance kit.

pub mod explore;
mod faulty;

pub use self::faulty::{Call, Fault, FaultyStore};
