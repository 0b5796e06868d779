//! Which policy rules which tenant.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Policy, TenantReach};
use crate::core::tenant::TenantId;

/// The policies of all tenants: one for everybody, and others for tenants (and all below them) on
/// another plan.
#[derive(Clone, Debug)]
pub struct Policies {
    default: Arc<Policy>,
    tenants: BTreeMap<TenantId, Arc<Policy>>,
    /// The shortest bound of them all that is not zero.
    shortest_bound: Option<Duration>,
}

impl Policies {
    /// One policy for everybody.
    #[must_use]
    pub fn new(default: Policy) -> Self {
        Self {
            shortest_bound: default.bounds().min(),
            default: Arc::new(default),
            tenants: BTreeMap::new(),
        }
    }

    /// Another policy for `tenant` and all below it.
    #[must_use]
    pub fn with_tenant(mut self, tenant: TenantId, policy: Policy) -> Self {
        // Kept where a policy takes the place of one with a shorter bound: to confirm more often than
        // need be does no harm.
        self.shortest_bound = self.shortest_bound.into_iter().chain(policy.bounds()).min();
        self.tenants.insert(tenant, Arc::new(policy));
        self
    }

    /// The shortest staleness bound of any class that is not zero, if there is one: whoever confirms
    /// more often than that is fresh for all of them.
    #[must_use]
    pub const fn shortest_bound(&self) -> Option<Duration> {
        self.shortest_bound
    }

    /// The policies beside the tenant's own under which a role that is set in it counts: those of the
    /// tenants below that have one, and those of the tenants above whose keys reach down.
    pub(crate) fn elsewhere(&self, tenant: &TenantId) -> Vec<Arc<Policy>> {
        let below = self.tenants.iter();
        let below = below.filter(|(other, _)| *other != tenant && tenant.contains(other));
        let below = below.map(|(_, policy)| policy);
        let own = self.of(tenant);
        let reaches_down = |policy: &&Arc<Policy>| {
            let mut classes = policy.spec().classes.values();
            !Arc::ptr_eq(policy, own)
                && classes.any(|class| class.tenant_reach == TenantReach::Below)
        };
        let above = tenant.ancestors().collect::<Vec<_>>();
        let above = above
            .iter()
            .map(|above| self.of(above))
            .filter(reaches_down);
        below.chain(above).cloned().collect()
    }

    /// Whether one policy rules all.
    pub(crate) fn is_one(&self) -> bool {
        self.tenants.is_empty()
    }

    /// The longest for which any key may be accepted without a confirmation.
    pub(crate) fn longest_bound(&self) -> Duration {
        let all = self.tenants.values().chain([&self.default]);
        let bounds = all.map(|policy| policy.longest_bound().max(policy.spec().propagation.bound));
        bounds.max().unwrap_or_default()
    }

    /// The longest for which any key of `tenant` or of a tenant below it may be.
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

    /// The policy of `tenant`: its own, or that of the nearest tenant above it which has one.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> &Arc<Policy> {
        self.of_whose(|| tenant)
    }

    /// The same, for a tenant that is only asked for if it matters.
    pub(crate) fn of_whose<'a>(&self, tenant: impl FnOnce() -> &'a TenantId) -> &Arc<Policy> {
        if self.tenants.is_empty() {
            return &self.default;
        }
        tenant()
            .paths()
            .find_map(|path| self.tenants.get(path))
            .unwrap_or(&self.default)
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
    fn with_one_policy_everybody_has_it() {
        let policies = Policies::from(Policy::default());
        assert_eq!(
            policies.of(&tenant("acme/web")).spec().name.as_str(),
            "standard"
        );
    }
}
