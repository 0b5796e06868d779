//! Needs: the requirements of a request on the key that it presents.

use std::fmt;
use std::net::IpAddr;

use super::kinds::KindCache;
use crate::core::check::{self, Presented};
use crate::core::conditions::Conditions;
use crate::core::invalid::{Invalid, Problem};
use crate::core::owner::OwnerStatus;
use crate::core::policy::Policy;
use crate::core::record::KeyRecord;
use crate::core::rejection::VerifyError;
use crate::core::scope::{Scope, ScopeSet};
use crate::core::tenant::TenantId;
use crate::core::text::{ClassName, Environment};
use crate::core::time::Timestamp;

/// The requirements of a request on the presented key. The key must meet all requirements.
///
/// # Examples
///
/// ```
/// use keyward::Need;
/// use keyward::key::Environment;
///
/// let need = Need::scope("reports:read")?.in_environment(Environment::LIVE);
/// # Ok::<(), keyward::command::Invalid>(())
/// ```
///
/// A constant scope is checked at compile time, so it needs no `?`:
///
/// ```
/// use keyward::{Need, Scope};
///
/// const REPORTS_READ: Scope = Scope::from_static("reports:read");
///
/// let need = Need::from(REPORTS_READ);
/// ```
///
/// Reuse one need for many verifications. A need caches which combinations of class, scopes and role meet it.
#[derive(Clone, Default)]
#[must_use = "a need checks nothing by itself"]
pub struct Need {
    conditions: Conditions,
    /// A cache of the kinds of keys that met `conditions`, apart from the tenant and the address. Cleared when
    /// the conditions change.
    met: KindCache,
}

impl fmt::Debug for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Need").field(&self.conditions).finish()
    }
}

impl Need {
    /// Accepts any valid secret key. Does not check the key's scopes: call
    /// [`Grant::allows`](crate::Grant::allows) before acting.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requires a key that reaches this scope.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for a malformed scope.
    pub fn scope(scope: impl TryInto<Scope, Error: Into<Invalid>>) -> Result<Self, Invalid> {
        Self::any().and_scope(scope)
    }

    /// Requires that the key also reaches this scope.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for a malformed scope, or if there are more than [`ScopeSet::MAX`] scopes.
    pub fn and_scope(
        mut self,
        scope: impl TryInto<Scope, Error: Into<Invalid>>,
    ) -> Result<Self, Invalid> {
        let scope = scope.try_into().map_err(Into::into)?;
        let conditions = self.change();
        let scopes = conditions.scopes.iter().cloned().chain([scope]);
        conditions.scopes = ScopeSet::new(scopes)?;
        Ok(self)
    }

    /// Requires a key that reaches at least one of these scopes.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for an empty set, which no key could meet.
    pub fn any_scope_of(mut self, scopes: ScopeSet) -> Result<Self, Invalid> {
        if scopes.is_empty() {
            return Err(Invalid::new("set of needed scopes", Problem::Empty));
        }
        self.change().any_of = scopes;
        Ok(self)
    }

    /// Requires a key of this class. Each further call accepts one more class.
    pub fn of_class(mut self, class: ClassName) -> Self {
        self.change().classes.push(class);
        self
    }

    /// Restricts the publishable key of a request that presents a publishable and a secret key together. The
    /// publishable key must be of this class. Each further call accepts one more class. By default, any
    /// publishable key of the same tenant and environment is accepted.
    pub fn beside_class(mut self, class: ClassName) -> Self {
        self.change().beside.push(class);
        self
    }

    /// Requires a key for this environment.
    pub fn in_environment(mut self, environment: Environment) -> Self {
        self.change().environment = Some(environment);
        self
    }

    /// Requires a key that reaches this tenant: the tenant's own key, or a key of an ancestor whose
    /// class reaches descendants.
    pub fn for_tenant(mut self, tenant: TenantId) -> Self {
        // The cache stays valid: with a tenant, each key is checked.
        self.conditions.tenant = Some(tenant);
        self
    }

    /// Sets the client address of the request, from the socket or from a trusted proxy. A mapped IPv4 address
    /// (`::ffff:192.0.2.1`) counts as IPv4.
    pub fn from_address(mut self, address: IpAddr) -> Self {
        // The cache stays valid: each key with an allowlist is checked.
        self.conditions.address = Some(address.to_canonical());
        self
    }

    /// Accepts publishable keys too. These keys are not secret, so anybody may have one.
    pub fn or_publishable(mut self) -> Self {
        self.change().publishable = true;
        self
    }

    /// Returns the need for the publishable key of a pair. `self` is the need for the secret key.
    pub(crate) fn of_publishable_half(&self) -> Self {
        let conditions = Conditions {
            address: self.conditions.address,
            publishable: true,
            uncounted: self.conditions.uncounted,
            probes: self.conditions.probes,
            ..Conditions::default()
        };
        Self {
            conditions,
            met: KindCache::default(),
        }
    }

    /// Sets whether a verification with this need counts as a use of the key. It does not if the same request
    /// was verified, and counted, before.
    #[cfg(feature = "http")]
    pub(crate) const fn counting(mut self, counts: bool) -> Self {
        self.conditions.uncounted = !counts;
        self
    }

    /// Sets whether a refusal for a missing address is left out of the counts. The caller then adds the address, and
    /// verifies again.
    #[cfg(feature = "http")]
    pub(crate) const fn probing(mut self, probes: bool) -> Self {
        self.conditions.probes = probes;
        self
    }

    /// Returns whether a refusal for a missing address is left out of the counts.
    pub(crate) const fn probes(&self) -> bool {
        self.conditions.probes
    }

    /// Returns whether a verification with this need counts as a use of the key.
    pub(crate) const fn counts(&self) -> bool {
        !self.conditions.uncounted
    }

    /// Returns whether a publishable key of `class` is accepted together with a secret key.
    pub(crate) fn accepts_beside(&self, class: &ClassName) -> bool {
        let beside = &self.conditions.beside;
        beside.is_empty() || beside.contains(class)
    }

    /// Returns the conditions for modification, and clears the cache.
    fn change(&mut self) -> &mut Conditions {
        self.met = KindCache::default();
        &mut self.conditions
    }

    /// Returns the tenant that the key must reach.
    pub(crate) const fn tenant(&self) -> Option<&TenantId> {
        self.conditions.tenant.as_ref()
    }

    /// Returns the address of the request, if it is known.
    pub(crate) const fn address(&self) -> Option<IpAddr> {
        self.conditions.address
    }

    pub(super) const fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Returns the cache of the kinds of keys that met all conditions, apart from the tenant and the address.
    pub(super) const fn met(&self) -> &KindCache {
        &self.met
    }
}

impl From<Scope> for Need {
    fn from(scope: Scope) -> Self {
        let mut need = Self::any();
        need.conditions.scopes = scope.into();
        need
    }
}

/// Checks that the key of `record` was presented, works at `now`, and meets `need`.
///
/// # Errors
///
/// [`VerifyError`]. A wrong secret always returns [`WrongSecret`](VerifyError::WrongSecret), even if the key
/// is refused for other reasons too.
pub fn check(
    record: &KeyRecord,
    presented: Presented<'_>,
    policy: &Policy,
    owner_status: &OwnerStatus,
    need: &Need,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let conditions = need.conditions();
    check::check_record(record, presented, policy, owner_status, conditions, now)
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{Generation, Kind};
    use super::*;

    fn some_kind() -> Kind {
        Generation::draw().unwrap().kind(7, 7).unwrap()
    }

    #[test]
    fn what_a_need_remembers_ends_where_it_is_changed() {
        type NeedChange = fn(Need) -> Need;
        let changes: [NeedChange; 6] = [
            |need| need.and_scope("reports:read").unwrap(),
            |need| need.any_scope_of(ScopeSet::all()).unwrap(),
            |need| need.of_class("secret".parse().unwrap()),
            |need| need.beside_class("public".parse().unwrap()),
            |need| need.in_environment(Environment::LIVE),
            Need::or_publishable,
        ];
        for change in changes {
            let (need, kind) = (Need::any(), some_kind());
            need.met().note(kind);
            assert!(need.met().has(kind) && need.clone().met().has(kind));
            assert!(!change(need).met().has(kind));
        }
        let (need, kind) = (Need::any(), some_kind());
        need.met().note(kind);
        assert!(!need.of_publishable_half().met().has(kind));
    }

    #[test]
    fn what_a_need_remembers_does_not_depend_on_the_request() {
        let (need, kind) = (Need::any(), some_kind());
        need.met().note(kind);
        let of_request = need.clone().for_tenant("acme".parse().unwrap());
        let of_request = of_request.from_address([192, 0, 2, 1].into());
        assert!(of_request.met().has(kind));
    }

    #[test]
    fn a_need_that_no_key_could_meet_is_an_error_where_it_is_written() {
        assert!(Need::scope("reports read").is_err());
        assert!(Need::any().and_scope("").is_err());
        assert!(Need::any().any_scope_of(ScopeSet::none()).is_err());
        let scopes = (0..=ScopeSet::MAX).map(|number| format!("reports:{number}"));
        let all = scopes.map(|scope| Scope::new(scope).unwrap());
        let need = all.into_iter().try_fold(Need::any(), Need::and_scope);
        assert_eq!(need.unwrap_err().field, "scope set");
    }
}
