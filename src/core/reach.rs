//! Reach: everything that a key or an actor can do, in several dimensions such as scopes, tenants and
//! lifetime.
//!
//! Pure: no I/O and no clock. Key management and verification share these rules. Invariant: a key that a
//! command issues or widens stays within the actor's reach in every [`Dimension`].
//!
//! To add a dimension, add a field to [`EffectiveReach`]. [`EffectiveReach::excess`] does not compile until
//! it compares the new field. `docs/authority.md` describes the comparison.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::address::AddressAllowlist;
use super::hole;
use super::owner::OwnerStatus;
use super::policy::{Access, KeyClass, Policy, SelfRotation, TenantReach};
use super::principal::Owner;
use super::record::{KeyRecord, KeyType, Resource};
use super::scope::{Scope, ScopeSet};
use super::subject::KeyTraits;
use super::tenant::TenantId;
use super::text::{ClassName, Environment, Role};
use super::time::Timestamp;

/// The limits on a key's scopes that are stored with the key: its scopes, its kind of owner and its bound.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) scopes: &'a ScopeSet,
    /// True if a principal owns the key. If not, the tenant owns it.
    pub(crate) persons: bool,
    /// The roles that restricted the actor who received the secret. A scope is allowed only if all of these
    /// roles allow it.
    pub(crate) bound: &'a BTreeSet<Role>,
}

impl<'a> Bounds<'a> {
    pub(crate) const fn of(traits: &'a KeyTraits, persons: bool) -> Self {
        Self {
            scopes: &traits.scopes,
            persons,
            bound: &traits.bound,
        }
    }

    pub(crate) const fn of_record(record: &'a KeyRecord) -> Self {
        Self {
            scopes: &record.facts.scopes,
            persons: record.facts.owner.principal().is_some(),
            bound: &record.facts.bound,
        }
    }

    /// Returns the roles that must all allow a scope. `None` if the key reaches nothing, because the
    /// principal that owns it has no role.
    fn roles(self, owner_status: &'a OwnerStatus) -> Option<impl Iterator<Item = &'a Role>> {
        let lost = self.persons && owner_status.roles.is_empty();
        let live: &[Role] = if self.persons {
            &owner_status.roles
        } else {
            &[]
        };
        (!lost).then(|| self.bound.iter().chain(live))
    }
}

/// Returns whether a key reaches `scope`. Allocates nothing.
pub(crate) fn reaches(
    bounds: Bounds<'_>,
    policy: &Policy,
    class: &KeyClass,
    owner_status: &OwnerStatus,
    scope: &Scope,
) -> bool {
    bounds.scopes.allows(scope)
        && class.ceiling.allows(scope)
        && bounds
            .roles(owner_status)
            .is_some_and(|mut roles| roles.all(|role| policy.role_allows(role, scope)))
}

/// Returns the scopes that a key reaches. A scope must be allowed by the key's own scopes, its class's
/// ceiling, all roles in its bound, and its owner's current roles.
pub(crate) fn scopes(
    bounds: Bounds<'_>,
    policy: &Policy,
    class: &KeyClass,
    owner_status: &OwnerStatus,
) -> ScopeSet {
    let Some(roles) = bounds.roles(owner_status) else {
        return ScopeSet::none();
    };
    let within_class = bounds.scopes.intersection(&class.ceiling);
    roles.fold(within_class, |reach, role| {
        reach.intersection(&policy.role_ceiling(role))
    })
}

/// Returns the roles that a key acts with: its bound and its owner's current roles. Empty if the tenant owns
/// the key, or if the owner has no role.
pub(crate) fn roles_of(
    owner: &Owner,
    bound: &BTreeSet<Role>,
    owner_status: &OwnerStatus,
) -> BTreeSet<Role> {
    if owner.principal().is_none() || owner_status.roles.is_empty() {
        return BTreeSet::new();
    }
    bound.iter().chain(&owner_status.roles).cloned().collect()
}

/// A dimension in which two reaches are compared.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Dimension {
    /// The scopes that a key reaches.
    Scopes,
    /// The operations and scopes that the roles of the key or actor allow.
    Role,
    /// The expiry, and the latest expiry that self-rotation can reach.
    Lifetime,
    /// The tenants that a key reaches.
    Tenants,
    /// The environment that a key works in.
    Environment,
    /// The resource that a key belongs to.
    Resource,
    /// The networks from which the key may be used.
    Addresses,
    /// The type of a key: secret or publishable.
    KeyType,
    /// The classes of keys that the key or actor can issue.
    Class,
    /// The longest time until a revocation takes effect everywhere.
    Propagation,
}

impl Dimension {
    const fn name(self) -> &'static str {
        match self {
            Self::Scopes => "scopes",
            Self::Role => "role",
            Self::Lifetime => "lifetime",
            Self::Tenants => "tenants",
            Self::Environment => "environment",
            Self::Resource => "resource",
            Self::Addresses => "addresses",
            Self::KeyType => "key type",
            Self::Class => "classes",
            Self::Propagation => "propagation bound",
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An operation that a policy permits to a role. The role's ceiling limits its scopes separately.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum RolePermit {
    Administer,
    Audit,
    Support,
    Create(ClassName),
    Look(ClassName),
    Update(ClassName),
    Rotate(ClassName),
    Revoke(ClassName),
}

/// The combined reach of several roles: the operations that all of the roles permit, and the scopes that all
/// of their ceilings allow. Without roles nothing is allowed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct RoleReach {
    permits: BTreeSet<RolePermit>,
    ceiling: ScopeSet,
}

type PermitForClass = fn(ClassName) -> RolePermit;

impl RoleReach {
    pub(crate) fn of<'a>(roles: impl IntoIterator<Item = &'a Role>, policy: &Policy) -> Self {
        let mut reach: Option<Self> = None;
        for role in roles {
            let own = Self::of_one(role, policy);
            reach = Some(match reach {
                None => own,
                Some(reach) => Self {
                    permits: &reach.permits & &own.permits,
                    ceiling: reach.ceiling.intersection(&own.ceiling),
                },
            });
        }
        reach.unwrap_or_default()
    }

    fn of_one(role: &Role, policy: &Policy) -> Self {
        let spec = policy.spec();
        let mut permits = BTreeSet::new();
        let administers = spec.administrators.contains(role);
        permits.extend(administers.then_some(RolePermit::Administer));
        let audits = administers || spec.auditors.contains(role);
        permits.extend(audits.then_some(RolePermit::Audit));
        permits.extend((*role == Role::SUPPORT).then_some(RolePermit::Support));
        for (name, class) in &spec.classes {
            // Lists every field, so that a new field does not compile here until it is mapped to a permit or
            // ignored.
            let KeyClass {
                create,
                look,
                update,
                rotate,
                revoke,
                key_type: _,
                prefixes: _,
                stage: _,
                lifetime: _,
                rotation: _,
                self_rotation: _,
                revocation: _,
                deletion: _,
                ceiling: _,
                issues: _,
                tenant_reach: _,
                entitlement: _,
                propagation: _,
            } = class;
            let lists: [(&Access, PermitForClass); 5] = [
                (create, RolePermit::Create),
                (look, RolePermit::Look),
                (update, RolePermit::Update),
                (rotate, RolePermit::Rotate),
                (revoke, RolePermit::Revoke),
            ];
            let has = |(access, _): &(&Access, _)| access.roles.contains(role);
            let own = lists.into_iter().filter(has);
            permits.extend(own.map(|(_, permit)| permit(name.clone())));
        }
        Self {
            permits,
            ceiling: policy.role_ceiling(role),
        }
    }

    /// Returns whether `limit` allows everything that this reach allows.
    pub(crate) fn is_within(&self, limit: &Self) -> bool {
        let Self { permits, ceiling } = self;
        permits.is_subset(&limit.permits) && limit.ceiling.contains(ceiling)
    }

    /// Returns the scopes that all of the roles' ceilings allow.
    pub(crate) const fn ceiling(&self) -> &ScopeSet {
        &self.ceiling
    }
}

/// Returns whether a key of `class` in the tenant `own` reaches `tenant`.
pub(crate) fn reaches_tenant(own: &TenantId, class: &KeyClass, tenant: &TenantId) -> bool {
    match class.tenant_reach {
        TenantReach::Own => own == tenant,
        TenantReach::Descendants => own.contains(tenant),
    }
}

/// The tenants that a key reaches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Tenants {
    pub(crate) path: TenantId,
    pub(crate) descendants: bool,
}

impl Tenants {
    pub(crate) fn of(path: TenantId, class: &KeyClass) -> Self {
        let descendants = class.tenant_reach == TenantReach::Descendants;
        Self { path, descendants }
    }

    fn is_within(&self, limit: &Self) -> bool {
        let Self { path, descendants } = self;
        match limit.descendants {
            true => limit.path.contains(path),
            false => limit.path == *path && !descendants,
        }
    }
}

/// The classes of keys that a key or an actor can issue.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Classes {
    All,
    These(BTreeSet<ClassName>),
}

impl Classes {
    /// Returns the classes of keys that a key of this class can issue: its own class and the class's `issues`
    /// list.
    pub(crate) fn of(name: &ClassName, class: &KeyClass) -> Self {
        Self::These(class.issues.iter().chain([name]).cloned().collect())
    }

    fn are_within(&self, limit: &Self) -> bool {
        match (self, limit) {
            (_, Self::All) => true,
            (Self::All, Self::These(_)) => false,
            (Self::These(own), Self::These(limit)) => own.is_subset(limit),
        }
    }
}

/// Everything that a key or an actor can reach, in every dimension.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EffectiveReach {
    pub(crate) scopes: ScopeSet,
    /// The combined reach of the roles of the key or actor.
    pub(crate) role: RoleReach,
    /// The instant at which the key or actor expires; `None` for never.
    pub(crate) until: Option<Timestamp>,
    /// The latest expiry that a successor can get through self-rotation; `None` if successors never expire.
    pub(crate) renewable_until: Option<Timestamp>,
    pub(crate) tenants: Tenants,
    /// The only environment in reach; `None` for all environments.
    pub(crate) environment: Option<Environment>,
    /// The only resource in reach; `None` for all resources.
    pub(crate) resource: Option<Resource>,
    /// The networks from which the key may be used; empty for any address.
    pub(crate) addresses: AddressAllowlist,
    pub(crate) key_type: KeyType,
    pub(crate) classes: Classes,
    /// The staleness bound: the longest time until a revocation takes effect everywhere.
    pub(crate) propagation: Duration,
}

impl EffectiveReach {
    /// Returns the widest reach within `tenant` and its descendants. It contains no roles, so nothing that
    /// needs a role's permit is within it.
    pub(crate) fn unlimited(tenant: &TenantId) -> Self {
        Self {
            scopes: ScopeSet::all(),
            role: RoleReach::default(),
            until: None,
            renewable_until: None,
            tenants: Tenants {
                path: tenant.clone(),
                descendants: true,
            },
            environment: None,
            resource: None,
            addresses: AddressAllowlist::default(),
            key_type: KeyType::Secret,
            classes: Classes::All,
            propagation: Duration::MAX,
        }
    }

    /// Returns the first dimension in which this reach exceeds `limit`, or `None` if it is within `limit`.
    /// "Is within" is reflexive and transitive.
    pub(crate) fn excess(&self, limit: &Self) -> Option<Dimension> {
        let Self {
            scopes,
            role,
            until,
            renewable_until,
            tenants,
            environment,
            resource,
            addresses,
            key_type,
            classes,
            propagation,
        } = self;
        let ends_in_time = is_no_later(*until, limit.until)
            && is_no_later(*renewable_until, limit.renewable_until);
        let dimensions = [
            (Dimension::Scopes, limit.scopes.contains(scopes)),
            (Dimension::Role, role.is_within(&limit.role)),
            (Dimension::Lifetime, ends_in_time),
            (Dimension::Tenants, tenants.is_within(&limit.tenants)),
            (
                Dimension::Environment,
                is_one_of(environment.as_ref(), limit.environment.as_ref()),
            ),
            (
                Dimension::Resource,
                is_one_of(resource.as_ref(), limit.resource.as_ref()),
            ),
            (Dimension::Addresses, addresses.is_within(&limit.addresses)),
            (
                Dimension::KeyType,
                limit.key_type == KeyType::Secret || *key_type == limit.key_type,
            ),
            (Dimension::Class, classes.are_within(&limit.classes)),
            (Dimension::Propagation, *propagation <= limit.propagation),
        ];
        let exceeds =
            |(dimension, within): &(Dimension, bool)| !within && !hole::is_open(dimension.name());
        let first = dimensions.into_iter().find(exceeds);
        first.map(|(dimension, _)| dimension)
    }
}

/// Returns whether `end` is no later than `limit`. `None` means never.
fn is_no_later(end: Option<Timestamp>, limit: Option<Timestamp>) -> bool {
    limit.is_none_or(|limit| end.is_some_and(|end| end <= limit))
}

/// Returns the latest expiry that a key of `class` can reach by rotating itself. The key expires at `end`,
/// and its chain of rotations began at `since`.
pub(crate) fn renewable_until(
    class: &KeyClass,
    end: Option<Timestamp>,
    since: Timestamp,
) -> Option<Timestamp> {
    match class.self_rotation {
        SelfRotation::Renews { until_age } => Some(end?.max(since.saturating_add(until_age))),
        SelfRotation::Never | SelfRotation::WithinLife => end,
    }
}

/// Returns whether `limit` includes `own`. A `limit` of `None` includes everything. An `own` of `None`
/// reaches all values, so only a `limit` of `None` includes it.
fn is_one_of<T: PartialEq>(own: Option<&T>, limit: Option<&T>) -> bool {
    limit.is_none() || own == limit
}

#[cfg(test)]
mod tests;
