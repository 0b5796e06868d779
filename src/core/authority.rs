//! Authority: the limits of an actor in one tenant, derived from the current state of all rows that
//! affect the actor.
//!
//! Pure: no I/O and no clock. An actor made from a key is a snapshot, so each decision reads the current
//! state of the key and its owner. The manager guards the rows that were read here: a command commits only if
//! they are unchanged.

use std::collections::BTreeSet;

use super::actor::{ActingKey, Actor, ActorKind};
use super::check;
use super::command::Denial;
use super::hole;
use super::id::KeyId;
use super::owner::{self, OwnerStatus};
use super::policy::{Access, Policy};
use super::principal::Owner;
use super::reach::{self, Bounds, Classes, EffectiveReach, RoleReach, Tenants};
use super::record::{KeyRecord, KeyType, Lineage, Maker};
use super::rejection::VerifyError;
use super::scope::ScopeSet;
use super::subject::Lifecycle;
use super::tenant::TenantId;
use super::text::{ClassName, PrincipalId, Role};
use super::time::Timestamp;
use super::view::{Ancestry, TenantView};

/// The caller of a command, with the limits on the caller.
#[derive(Debug)]
pub(crate) enum Caller {
    /// The application, which has no limits.
    Application,
    /// A person or a key.
    Limited(Box<Limits>),
}

/// The limits of a person or a key.
#[derive(Debug)]
pub(crate) struct Limits {
    /// The largest reach of a key that the caller may issue.
    pub(crate) reach: EffectiveReach,
    /// The roles that must all permit a command that issues, widens or views keys. A person has the role that
    /// the application states, and the person's stored roles. A key has the roles in its `bound`, and its
    /// owner's stored roles.
    roles: BTreeSet<Role>,
    /// The roles that must all permit a command that narrows keys. A person has only the role that the
    /// application states. A key has the same roles as in `roles`.
    narrowing_roles: BTreeSet<Role>,
    /// True if the caller's roles let the caller manage keys. False for a key that reaches less than its
    /// roles allow.
    manages: bool,
    /// The person, if the caller is a person. A class may give the owner of a key access to it, so this
    /// person is compared with the key's owner.
    person: Option<PrincipalId>,
    /// The error for commands that issue or widen keys. Set if the person was removed as an owner, or if the
    /// stated role allows more than a stored role.
    drift: Option<Denial>,
    /// The acting key. `None` for a person.
    pub(crate) key: Option<ActingRecord>,
}

/// The current state of the acting key.
#[derive(Debug)]
pub(crate) struct ActingRecord {
    pub(crate) id: KeyId,
    pub(crate) bound: BTreeSet<Role>,
    pub(crate) lineage: Lineage,
    makers: Vec<Maker>,
}

/// The effect of a command on what keys can reach. Different effects need permission from different roles of
/// the caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    /// Issues a key, or widens the reach of keys.
    Widens,
    /// Narrows or ends keys.
    Narrows,
    /// Looks at keys and changes nothing.
    Looks,
}

/// A coarse filter for the keys that a caller may view. [`Caller::sees`] then checks each key that passes the
/// filter.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum VisibleKeys {
    /// Keys of any owner, in at least one class.
    OfAnyOwner,
    /// Only keys of this owner.
    OfOwner(PrincipalId),
}

const LOOK: &str = "look at keys";

/// The stored rows from which authority is derived: the rows of the tenant, and of its ancestors.
#[derive(Clone, Copy)]
pub(crate) struct AuthorityRows<'a> {
    pub(crate) view: &'a TenantView,
    pub(crate) ancestry: &'a Ancestry,
}

impl AuthorityRows<'_> {
    /// Returns the roles, removals and closings in these rows that affect the keys of `owner` in `tenant`.
    pub(crate) fn owner_status(&self, tenant: &TenantId, owner: &Owner) -> OwnerStatus {
        OwnerStatus::resolve(
            tenant,
            owner,
            self.view.owners.iter().chain(&self.ancestry.owners),
            self.view.tenant.iter().chain(&self.ancestry.tenants),
        )
    }

    fn acting_key(&self, id: KeyId, home: &TenantId) -> Result<&KeyRecord, VerifyError> {
        let corrupt = self.view.corrupt.iter().chain(&self.ancestry.corrupt);
        if corrupt.into_iter().any(|corrupt| *corrupt == id) {
            return Err(VerifyError::Corrupt { key: id });
        }
        let mut records = self.view.records.iter().chain(&self.ancestry.keys);
        let found = records.find(|record| record.id == id && record.tenant == *home);
        found.ok_or(VerifyError::Unknown)
    }
}

impl Caller {
    /// Derives the authority of `actor` in `tenant` at `now`. `policy` is the policy of `tenant`,
    /// and `home` is the policy of the actor's own tenant.
    ///
    /// # Errors
    ///
    /// [`Denial`] if the actor has expired, or if the acting key is refused.
    pub(crate) fn resolve(
        actor: &Actor,
        tenant: &TenantId,
        rows: AuthorityRows<'_>,
        (policy, home): (&Policy, &Policy),
        now: Timestamp,
    ) -> Result<Self, Denial> {
        if actor.expires_at().is_some_and(|end| now >= end) {
            return Err(Denial::ActorExpired);
        }
        let limits = match actor.kind() {
            ActorKind::Application => return Ok(Self::Application),
            ActorKind::Person { principal, role } => {
                Limits::of_person(actor, (principal, role), tenant, rows, policy, now)
            }
            ActorKind::Key(key) => Limits::of_key(actor, key, tenant, rows, (policy, home), now)?,
        };
        Ok(Self::Limited(Box::new(limits)))
    }

    pub(crate) fn limits(&self) -> Option<&Limits> {
        match self {
            Self::Application => None,
            Self::Limited(limits) => Some(limits),
        }
    }

    pub(crate) fn is_application(&self) -> bool {
        self.limits().is_none()
    }

    /// Returns whether the caller is the person with this id.
    pub(crate) fn is_person(&self, principal: Option<&PrincipalId>) -> bool {
        let person = self.limits().and_then(|limits| limits.person.as_ref());
        person.is_some() && person == principal
    }

    /// Checks that `access` includes the caller. `owner` is the owner of the affected key, or `None` for a
    /// command that does not affect one particular key.
    pub(crate) fn permit(
        &self,
        access: &Access,
        owner: Option<&Owner>,
        action: &'static str,
        effect: Effect,
    ) -> Result<(), Denial> {
        let Some(limits) = self.limits() else {
            return Ok(());
        };
        if effect == Effect::Looks && matches!(limits.drift, Some(Denial::OwnerRemoved { .. })) {
            let role = limits.narrowing_roles.first().cloned();
            return Err(Denial::Forbidden { action, role });
        }
        let owns = access.owner && self.is_person(owner.and_then(Owner::principal));
        let by = |roles: &BTreeSet<Role>| {
            limits.manages && !roles.is_empty() && roles.is_subset(&access.roles)
        };
        if (owns || by(&limits.narrowing_roles)) && effect == Effect::Widens {
            limits.drift.clone().map_or(Ok(()), Err)?;
        }
        let roles = match effect {
            Effect::Narrows => &limits.narrowing_roles,
            Effect::Widens | Effect::Looks => &limits.roles,
        };
        if owns || by(roles) {
            return Ok(());
        }
        if access.is_support_only() {
            return Err(Denial::SupportOnly { action });
        }
        let role = limits
            .narrowing_roles
            .first()
            .filter(|_| limits.person.is_some());
        Err(Denial::Forbidden {
            action,
            role: role.cloned(),
        })
    }

    /// Returns whether the caller may look at keys of `class` that belong to `owner`. If the policy no longer
    /// has the class, only administrators may look at its keys.
    pub(crate) fn sees(&self, policy: &Policy, class: &ClassName, owner: &Owner) -> bool {
        let administrators = || Access::roles(policy.spec().administrators.iter().cloned());
        let access = policy.class(class).map(|class| class.look.clone());
        let access = access.unwrap_or_else(administrators);
        let seen = self.permit(&access, Some(owner), LOOK, Effect::Looks);
        seen.is_ok() || hole::is_open("anybody looks")
    }

    /// Returns a filter for the keys that the caller may look at. The filter is coarse, so that a store can
    /// apply it in one query.
    ///
    /// # Errors
    ///
    /// [`Denial::Forbidden`] if the caller may look at no keys.
    pub(crate) fn visible_keys(&self, policy: &Policy) -> Result<VisibleKeys, Denial> {
        if hole::is_open("anybody looks") {
            return Ok(VisibleKeys::OfAnyOwner);
        }
        let mut classes = policy.spec().classes.values();
        let by_role = |access: &Access| self.permit(access, None, LOOK, Effect::Looks);
        if classes.clone().any(|class| by_role(&class.look).is_ok()) {
            return Ok(VisibleKeys::OfAnyOwner);
        }
        let person = self.limits().and_then(|limits| limits.person.clone());
        match person.filter(|_| classes.any(|class| class.look.owner)) {
            Some(person) => Ok(VisibleKeys::OfOwner(person)),
            None => by_role(&Access::host_only()).map(|()| VisibleKeys::OfAnyOwner),
        }
    }

    /// Returns whether the caller may look at every key, including keys whose stored bytes cannot be decoded.
    pub(crate) fn sees_all(&self, policy: &Policy) -> bool {
        let administrators = policy.spec().administrators.iter().cloned();
        let access = Access::roles(administrators);
        self.permit(&access, None, LOOK, Effect::Looks).is_ok()
    }

    /// Checks that the caller may read the audit trail.
    pub(crate) fn permit_audit(&self, policy: &Policy) -> Result<(), Denial> {
        let spec = policy.spec();
        let roles = spec.administrators.iter().chain(&spec.auditors).cloned();
        self.permit(
            &Access::roles(roles),
            None,
            "read the audit trail",
            Effect::Looks,
        )
    }

    /// Checks that the caller may issue a key with this `reach`.
    pub(crate) fn check_within(&self, reach: &EffectiveReach) -> Result<(), Denial> {
        let Some(limits) = self.limits() else {
            return Ok(());
        };
        match reach.excess(&limits.reach) {
            None => Ok(()),
            Some(dimension) => Err(Denial::ExceedsActor {
                dimension,
                reach: limits.reach.scopes.clone(),
            }),
        }
    }

    /// Returns all roles of the caller. These roles limit every key whose secret the caller receives.
    pub(crate) fn roles(&self) -> BTreeSet<Role> {
        let roles = self.limits().into_iter().flat_map(|limits| &limits.roles);
        roles.chain(self.key_bound()).cloned().collect()
    }

    /// Returns the roles in the acting key's `bound`, which limited the actor who received the key's secret.
    /// Empty if the caller is not a key.
    pub(crate) fn key_bound(&self) -> impl Iterator<Item = &Role> {
        let key = self.limits().and_then(|limits| limits.key.as_ref());
        key.into_iter().flat_map(|key| &key.bound)
    }

    /// Returns the role that the application states for the caller, if `principal` is the caller.
    pub(crate) fn stated_role(&self, principal: Option<&PrincipalId>) -> Option<&Role> {
        let limits = self.limits().filter(|_| self.is_person(principal))?;
        limits.narrowing_roles.first()
    }

    /// Returns the makers to record in a key that the caller creates. If the caller is a key, these are that
    /// key and its own makers. Empty for any other caller.
    pub(crate) fn makers(&self) -> Vec<Maker> {
        let Some(key) = self.limits().and_then(|limits| limits.key.as_ref()) else {
            return Vec::new();
        };
        let own = Maker {
            key: key.id,
            lineage: key.lineage.first,
        };
        key.makers.iter().copied().chain([own]).collect()
    }
}

impl Limits {
    fn of_person(
        actor: &Actor,
        (principal, stated): (&PrincipalId, &Role),
        tenant: &TenantId,
        rows: AuthorityRows<'_>,
        policy: &Policy,
        now: Timestamp,
    ) -> Self {
        let owner_status = rows.owner_status(tenant, &Owner::Principal(principal.clone()));
        let live = owner_status.roles.iter();
        let live = live.filter(|_| !hole::is_open("stored role is not heeded"));
        let roles: BTreeSet<_> = [stated].into_iter().chain(live).cloned().collect();
        let role = RoleReach::of(&roles, policy);
        let reach = EffectiveReach {
            scopes: actor.scopes().intersection(role.ceiling()),
            role,
            until: actor.expires_at(),
            renewable_until: actor.expires_at(),
            tenants: Tenants {
                path: actor.tenant().clone(),
                descendants: actor.reaches_descendants(),
            },
            ..EffectiveReach::unlimited(tenant)
        };
        Self {
            reach,
            roles,
            narrowing_roles: BTreeSet::from([stated.clone()]),
            manages: true,
            person: Some(principal.clone()),
            drift: drift(principal, stated, &owner_status, policy, now)
                .filter(|_| !hole::is_open("stored role is not heeded")),
            key: None,
        }
    }

    fn of_key(
        actor: &Actor,
        acting: &ActingKey,
        tenant: &TenantId,
        rows: AuthorityRows<'_>,
        (policy, home): (&Policy, &Policy),
        now: Timestamp,
    ) -> Result<Self, Denial> {
        let key = acting.id;
        let refused = |why: VerifyError| Denial::ActingKey {
            key,
            why: Box::new(why),
        };
        let record = rows.acting_key(key, actor.tenant()).map_err(refused)?;
        // The command's `tenant` may be a descendant of the key's own tenant. The owner's roles in that
        // descendant limit the acting key too.
        let mut owner_status = rows.owner_status(tenant, &record.owner);
        if !record.bound.is_empty() {
            let all = rows.view.owners.iter().chain(&rows.ancestry.owners);
            let path = (&record.tenant, tenant);
            owner_status
                .roles
                .extend(owner::raised_from(all, &record.owner, path));
        }
        let alive = check::check_alive(key, &Lifecycle::of(record), &owner_status, now);
        match alive {
            Err(_) if hole::is_open("dead key acts") => {}
            alive => alive.map_err(refused)?,
        }
        if record.key_type == KeyType::Publishable && !hole::is_open("publishable key acts") {
            return Err(refused(VerifyError::Publishable { key }));
        }
        check::check_address(key, &record.allowlist, acting.address).map_err(refused)?;
        let class = home.class(&record.class).ok_or_else(|| {
            let class = record.class.clone();
            refused(VerifyError::UnknownClass { class })
        })?;
        if !reach::reaches_tenant(&record.tenant, class, tenant) {
            let tenant = tenant.clone();
            return Err(refused(VerifyError::WrongTenant { key, tenant }));
        }
        let roles = reach::roles_of(&record.owner, &record.bound, &owner_status);
        let role = RoleReach::of(&roles, policy);
        let own = reach::scopes(Bounds::of_record(record), home, class, &owner_status);
        // The policy of `tenant` may allow a role less than the policy of the key's own tenant does. Only
        // scopes that both policies allow remain.
        let here = (roles.iter().chain(&record.bound)).fold(own, |scopes: ScopeSet, role| {
            scopes.intersection(&policy.role_ceiling(role))
        });
        let scopes = here.intersection(actor.scopes());
        let whole = record.manages && is_whole(&scopes, &role);
        let whole = whole || hole::is_open("narrow key manages");
        let manages = !roles.is_empty() && whole;
        let owner = record.owner.principal().cloned();
        let reach = EffectiveReach {
            scopes,
            role,
            until: earlier(record.expires_at, actor.expires_at()),
            // If the application set a separate expiry for the actor, that expiry is a hard limit.
            // Self-rotation can extend only the key's own expiry.
            renewable_until: match actor.expires_at() == record.expires_at {
                true => reach::renewable_until(class, record.expires_at, record.lineage.since),
                false => earlier(record.expires_at, actor.expires_at()),
            },
            tenants: Tenants::of(record.tenant.clone(), class),
            environment: Some(record.environment.clone()),
            resource: record.resource.clone(),
            addresses: record.allowlist.clone(),
            key_type: record.key_type,
            classes: Classes::of(&record.class, class),
            propagation: home.propagation(&record.class).bound,
        };
        Ok(Self {
            reach,
            narrowing_roles: roles.clone(),
            roles,
            manages,
            person: owner.filter(|_| hole::is_open("key owns its owner's keys")),
            drift: None,
            key: Some(ActingRecord {
                id: key,
                bound: record.bound.clone(),
                lineage: record.lineage,
                makers: record.makers.clone(),
            }),
        })
    }
}

/// Returns whether `scopes` contain every scope that the roles in `role` allow. Always false for empty
/// `scopes`.
pub(crate) fn is_whole(scopes: &ScopeSet, role: &RoleReach) -> bool {
    !scopes.is_empty() && scopes.contains(role.ceiling())
}

/// Returns the error for commands of a person that issue or widen keys. `None` unless the person was removed
/// as an owner, or the stated role allows more than a stored role.
fn drift(
    principal: &PrincipalId,
    stated: &Role,
    owner_status: &OwnerStatus,
    policy: &Policy,
    now: Timestamp,
) -> Option<Denial> {
    if owner_status.refuses_owner(now) {
        let owner = principal.clone();
        return Some(Denial::OwnerRemoved { owner });
    }
    let own = RoleReach::of([stated], policy);
    let exceeds =
        |stored: &&Role| *stored != stated && !own.is_within(&RoleReach::of([*stored], policy));
    let stored = owner_status.roles.iter().find(exceeds)?;
    Some(Denial::RoleDrift {
        stated: stated.clone(),
        stored: stored.clone(),
    })
}

/// Returns the earlier of two expiry times. `None` means never.
pub(crate) fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
