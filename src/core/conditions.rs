//! The conditions of a need: the requirements of a request on the key that it presents.
//!
//! Pure: no I/O and no clock.

use std::net::IpAddr;

use super::scope::ScopeSet;
use super::tenant::TenantId;
use super::text::{ClassName, Environment};

/// The requirements of a request on the presented key. [`Need`](crate::Need) builds them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) scopes: ScopeSet,
    pub(crate) any_of: ScopeSet,
    pub(crate) classes: Vec<ClassName>,
    pub(crate) beside: Vec<ClassName>,
    pub(crate) environment: Option<Environment>,
    pub(crate) tenant: Option<TenantId>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) publishable: bool,
    /// Marks a verification that must not count as a use of the key, because the use was already counted.
    pub(crate) uncounted: bool,
    /// True if a refusal for a missing address is not counted, because the caller then adds the address and asks again.
    pub(crate) probes: bool,
}
