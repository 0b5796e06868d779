//! Which policy rules which tenant.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Policy;
use crate::core::tenant::TenantId;

/// The policies of all tenants: one for everybody, and others for tenants (and all below them) on
/// another plan.
#[derive(Clone, Debug)]
pub struct Policies {
    default: Arc<Policy>,
    tenants: BTreeMap<TenantId, Arc<Policy>>,
}

impl Policies {
    /// One policy for everybody.
    #[must_use]
    pub fn new(default: Policy) -> Self {
        Self {
            default: Arc::new(default),
            tenants: BTreeMap::new(),
        }
    }

    /// Another policy for `tenant` and all below it.
    #[must_use]
    pub fn with_tenant(mut self, tenant: TenantId, policy: Policy) -> Self {
        self.tenants.insert(tenant, Arc::new(policy));
        self
    }

    /// The policy of `tenant`: its own, or that of the nearest tenant above it which has one.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> &Arc<Policy> {
        if self.tenants.is_empty() {
            return &self.default;
        }
        let mut lineage = crate::core::view::lineage(tenant);
        lineage
            .find_map(|tenant| self.tenants.get(&tenant))
            .unwrap_or(&self.default)
    }
}

impl From<Policy> for Policies {
    fn from(policy: Policy) -> Self {
        Self::new(policy)
    }
}
