//! The rules. PURE: no async, no I/O, no clock, no RNG, and nothing of the crate outside `core`.

pub(crate) mod actor;
pub(crate) mod address;
pub mod audit;
mod base62;
pub(crate) mod check;
pub(crate) mod command;
pub(crate) mod decide;
pub(crate) mod id;
pub(crate) mod info;
pub(crate) mod invalid;
pub(crate) mod metadata;
pub(crate) mod owner;
pub(crate) mod pepper;
pub mod policy;
pub mod profiles;
pub(crate) mod query;
pub(crate) mod reach;
pub(crate) mod record;
pub mod rotation;
pub(crate) mod scope;
pub(crate) mod secret;
pub(crate) mod tenant;
pub(crate) mod text;
pub(crate) mod time;
pub mod token;
pub(crate) mod view;
pub(crate) mod wire;
