//! The policies of all tenants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Policy, TenantReach};
use crate::core::tenant::TenantId;

/// The policies of all tenants: a default, and other policies for single tenants with their descendants.
#[derive(Clone, Debug)]
pub struct Policies {
    pub(super) default: Arc<Policy>,
    pub(super) tenants: BTreeMap<TenantId, Arc<Policy>>,
    /// The shortest non-zero staleness bound of all policies.
    shortest_bound: Option<Duration>,
}

impl Policies {
    /// Creates policies with one default for every tenant.
    #[must_use]
    pub fn new(default: Policy) -> Self {
        Self::shared(Arc::new(default))
    }

    pub(super) fn shared(default: Arc<Policy>) -> Self {
        Self {
            shortest_bound: default.bounds().min(),
            default,
            tenants: BTreeMap::new(),
        }
    }

    /// Sets a different policy for `tenant` and its descendants.
    #[must_use]
    pub fn with_tenant(mut self, tenant: TenantId, policy: Policy) -> Self {
        self.insert(tenant, Arc::new(policy));
        self
    }

    pub(super) fn insert(&mut self, tenant: TenantId, policy: Arc<Policy>) {
        // If `policy` replaces a policy with a shorter bound, the shorter bound stays. Syncing more often
        // than necessary is harmless.
        self.shortest_bound = self.shortest_bound.into_iter().chain(policy.bounds()).min();
        self.tenants.insert(tenant, policy);
    }

    /// Returns whether both hold the same policies under the same names.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.default == other.default && self.tenants == other.tenants
    }

    /// Returns the shortest non-zero staleness bound of any class; `None` if all bounds are zero. A node that
    /// syncs more often than this bound is fresh for every class with a non-zero bound.
    #[must_use]
    pub const fn shortest_bound(&self) -> Option<Duration> {
        self.shortest_bound
    }

    /// Returns the policies of other tenants in which a role of `tenant` counts. These are the policies of
    /// its descendants, and of its ancestors whose keys reach descendants.
    pub(crate) fn elsewhere(&self, tenant: &TenantId) -> Vec<Arc<Policy>> {
        let below = self.tenants.iter();
        let below = below.filter(|(other, _)| *other != tenant && tenant.contains(other));
        let below = below.map(|(_, policy)| policy);
        let own = self.of(tenant);
        let reaches_down = |policy: &&Arc<Policy>| {
            let mut classes = policy.spec().classes.values();
            !Arc::ptr_eq(policy, own)
                && classes.any(|class| class.tenant_reach == TenantReach::Descendants)
        };
        let above = tenant.ancestors().collect::<Vec<_>>();
        let above = above
            .iter()
            .map(|above| self.of(above))
            .filter(reaches_down);
        below.chain(above).cloned().collect()
    }

    /// Returns whether all tenants have the default policy.
    pub(crate) fn is_one(&self) -> bool {
        self.tenants.is_empty()
    }

    /// Returns the longest time for which a node may accept any key without a sync.
    pub(crate) fn longest_bound(&self) -> Duration {
        let all = self.tenants.values().chain([&self.default]);
        let bounds = all.map(|policy| policy.longest_bound().max(policy.spec().propagation.bound));
        bounds.max().unwrap_or_default()
    }

    /// Returns the longest time for which a node may accept any key of `tenant` or of a descendant without a
    /// sync.
    pub(crate) fn longest_bound_at(&self, tenant: &TenantId) -> Duration {
        let below = self
            .tenants
            .iter()
            .filter(|(other, _)| tenant.contains(other));
        let all = below.map(|(_, policy)| policy).chain([self.of(tenant)]);
        all.map(|policy| policy.longest_bound())
            .max()
            .unwrap_or_default()
    }

    /// Returns the policy of `tenant`: its own, or that of the nearest ancestor that has one, or the default.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> &Arc<Policy> {
        self.of_lazy(|| tenant)
    }

    /// Returns the policy of the tenant that the closure `tenant` returns. Does not call the closure if all
    /// tenants have the default policy.
    #[inline]
    pub(crate) fn of_lazy<'a>(&self, tenant: impl FnOnce() -> &'a TenantId) -> &Arc<Policy> {
        if self.tenants.is_empty() {
            return &self.default;
        }
        tenant()
            .paths()
            .find_map(|path| self.tenants.get(path))
            .unwrap_or(&self.default)
    }
}

impl Default for Policies {
    /// Returns the [`standard`](crate::profiles::standard) policy for every tenant.
    fn default() -> Self {
        Self::new(Policy::default())
    }
}

impl From<Policy> for Policies {
    fn from(policy: Policy) -> Self {
        Self::new(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::profiles;

    fn tenant(path: &str) -> TenantId {
        TenantId::new(path).unwrap()
    }

    fn book() -> Policies {
        let policy = |spec| Policy::new(spec).unwrap();
        Policies::new(Policy::default())
            .with_tenant(tenant("acme"), policy(profiles::guide()))
            .with_tenant(tenant("acme/web/eu"), policy(profiles::idenfy()))
    }

    fn policy_of(path: &str) -> String {
        book().of(&tenant(path)).spec().name.to_string()
    }

    #[test]
    fn the_nearest_tenant_above_that_has_a_policy_wins() {
        assert_eq!(policy_of("acme"), "guide");
        assert_eq!(policy_of("acme/web"), "guide");
        assert_eq!(policy_of("acme/web/eu"), "idenfy");
        assert_eq!(policy_of("acme/web/eu/north"), "idenfy");
        assert_eq!(policy_of("acme/web/us"), "guide");
    }

    #[test]
    fn unrelated_tenants_get_the_default() {
        assert_eq!(policy_of("acme-two"), "standard");
        assert_eq!(policy_of("other/acme"), "standard");
        assert_eq!(policy_of("web/eu"), "standard");
    }

    #[test]
    fn the_shortest_bound_is_that_of_any_class_of_any_policy_but_zero() {
        let bounded = |spec: u64, class: Option<u64>| {
            let mut own = profiles::standard();
            own.propagation.bound = Duration::from_secs(spec);
            let bound = class.map(Duration::from_secs);
            own.classes.values_mut().next().unwrap().propagation =
                bound.map(|bound| crate::core::policy::Propagation { bound });
            Policy::new(own).unwrap()
        };
        let shortest = |policies: &Policies| policies.shortest_bound().map(|b| b.as_secs());
        let policies = Policies::new(bounded(10, Some(0)));
        assert_eq!(shortest(&policies), Some(10));
        let policies = policies.with_tenant(tenant("acme"), bounded(20, Some(7)));
        assert_eq!(shortest(&policies), Some(7));
        let policies = policies.with_tenant(tenant("other"), bounded(8, None));
        assert_eq!(shortest(&policies), Some(7));
        assert_eq!(shortest(&Policies::new(bounded(0, None))), None);
    }

    #[test]
    fn a_single_policy_is_the_policy_of_every_tenant() {
        let policies = Policies::from(Policy::default());
        assert_eq!(
            policies.of(&tenant("acme/web")).spec().name.as_str(),
            "standard"
        );
    }
}
