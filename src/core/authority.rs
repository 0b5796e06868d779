//! Authority: the limits of an actor in one tenant, derived from the current state of all rows that
//! affect the actor.
//!
//! Pure. An actor made from a key is a snapshot, so each decision reads the current state of the
//! key and its owner. The manager guards the rows that were read here: a command commits only if
//! they are unchanged.

use std::collections::BTreeSet;

use super::actor::{ActingKey, Actor, Identity};
use super::check;
use super::command::Denial;
use super::hole;
use super::id::KeyId;
use super::owner::{self, OwnerStatus};
use super::policy::{Access, Policy};
use super::principal::Owner;
use super::reach::{self, Bounds, Classes, Reach, RoleReach, Tenants};
use super::record::{KeyRecord, Lineage, Maker, Visibility};
use super::rejection::VerifyError;
use super::scope::ScopeSet;
use super::subject::Course;
use super::tenant::TenantId;
use super::text::{ClassName, PrincipalId, Role};
use super::time::Timestamp;
use super::view::{Ancestry, TenantView};

/// The caller of a command, with everything that limits it.
#[derive(Debug)]
pub(crate) enum Caller {
    /// The application: nothing limits it.
    Application,
    /// A person or a key.
    Limited(Box<Limits>),
}

/// The limits of a person or a key.
#[derive(Debug)]
pub(crate) struct Limits {
    /// The reach that no key handed out by the caller may exceed.
    pub(crate) reach: Reach,
    /// The roles that must all allow a command that issues, widens or looks at keys. For a person:
    /// the stated role and the live roles. For a key: its bound and its owner's live roles.
    roles: BTreeSet<Role>,
    /// The roles that must all allow a command that narrows keys. For a person: only the stated
    /// role.
    narrowing_roles: BTreeSet<Role>,
    /// Whether the caller manages keys by its roles. A key does so only if it reaches everything
    /// that its roles allow.
    manages: bool,
    /// The person who acts, if any. An owner may be allowed more on the owner's own keys.
    person: Option<PrincipalId>,
    /// The refusal of every command that issues or widens keys. Set if the person was removed, or
    /// if the stated role exceeds a stored role.
    drift: Option<Denial>,
    /// The acting key.
    pub(crate) key: Option<ActingRecord>,
}

/// The acting key in its current state.
#[derive(Debug)]
pub(crate) struct ActingRecord {
    pub(crate) id: KeyId,
    pub(crate) bound: BTreeSet<Role>,
    pub(crate) lineage: Lineage,
    makers: Vec<Maker>,
}

/// The effect of a command on the reach of keys. It decides which roles have to allow the command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    /// Issues a key, or widens the reach of keys.
    Widens,
    /// Narrows or ends keys.
    Narrows,
    /// Looks at keys and changes nothing.
    Looks,
}

/// The keys that a caller may look at, before each key is checked against its class.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Sight {
    /// The keys of at least one class, whoever owns them.
    Some,
    /// Only keys of this owner.
    Own(PrincipalId),
}

const LOOK: &str = "look at keys";

/// The rows from which authority is derived: those of the tenant, and those of its ancestors.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) view: &'a TenantView,
    pub(crate) ancestry: &'a Ancestry,
}

impl Rows<'_> {
    /// Returns the effect of the rows on the keys of `owner` in `tenant`.
    pub(crate) fn standing(&self, tenant: &TenantId, owner: &Owner) -> OwnerStatus {
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
        rows: Rows<'_>,
        (policy, home): (&Policy, &Policy),
        now: Timestamp,
    ) -> Result<Self, Denial> {
        if actor.expires_at().is_some_and(|end| now >= end) {
            return Err(Denial::ActorExpired);
        }
        let limits = match actor.identity() {
            Identity::Application => return Ok(Self::Application),
            Identity::Person { principal, role } => {
                Limits::of_person(actor, (principal, role), tenant, rows, policy, now)
            }
            Identity::Key(key) => Limits::of_key(actor, key, tenant, rows, (policy, home), now)?,
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

    /// Checks that `access` includes the caller. `owner` is the owner of the key that the command
    /// is about, if it is about one key.
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

    /// Returns whether the caller may look at keys of `class` that belong to `owner`. Only
    /// administrators look at keys of a class that the policy no longer has.
    pub(crate) fn sees(&self, policy: &Policy, class: &ClassName, owner: &Owner) -> bool {
        let administrators = || Access::roles(policy.spec().administrators.iter().cloned());
        let access = policy.class(class).map(|class| class.look.clone());
        let access = access.unwrap_or_else(administrators);
        let seen = self.permit(&access, Some(owner), LOOK, Effect::Looks);
        seen.is_ok() || hole::is_open("anybody looks")
    }

    /// Returns the keys that the caller may look at, as far as one query to a store can express
    /// them.
    ///
    /// # Errors
    ///
    /// [`Denial::Forbidden`] if the caller may look at no keys.
    pub(crate) fn sight(&self, policy: &Policy) -> Result<Sight, Denial> {
        if hole::is_open("anybody looks") {
            return Ok(Sight::Some);
        }
        let mut classes = policy.spec().classes.values();
        let by_role = |access: &Access| self.permit(access, None, LOOK, Effect::Looks);
        if classes.clone().any(|class| by_role(&class.look).is_ok()) {
            return Ok(Sight::Some);
        }
        let person = self.limits().and_then(|limits| limits.person.clone());
        match person.filter(|_| classes.any(|class| class.look.owner)) {
            Some(person) => Ok(Sight::Own(person)),
            None => by_role(&Access::host_only()).map(|()| Sight::Some),
        }
    }

    /// Returns whether the caller may look at everything, including keys that cannot be decoded.
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

    /// Checks that `reach` is within the limits of what the caller may hand out.
    pub(crate) fn check_within(&self, reach: &Reach) -> Result<(), Denial> {
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

    /// Returns the roles that limit the recipient of a secret from this command: the caller's
    /// roles.
    pub(crate) fn roles(&self) -> BTreeSet<Role> {
        let roles = self.limits().into_iter().flat_map(|limits| &limits.roles);
        roles.chain(self.key_bound()).cloned().collect()
    }

    /// Returns the bound of the acting key.
    pub(crate) fn key_bound(&self) -> impl Iterator<Item = &Role> {
        let key = self.limits().and_then(|limits| limits.key.as_ref());
        key.into_iter().flat_map(|key| &key.bound)
    }

    /// Returns the role that the application states for the caller, if the caller is the person
    /// with this id.
    pub(crate) fn stated_role(&self, principal: Option<&PrincipalId>) -> Option<&Role> {
        let limits = self.limits().filter(|_| self.is_person(principal))?;
        limits.narrowing_roles.first()
    }

    /// Returns the makers of a key that the caller makes: the acting key and its makers.
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
        rows: Rows<'_>,
        policy: &Policy,
        now: Timestamp,
    ) -> Self {
        let standing = rows.standing(tenant, &Owner::Principal(principal.clone()));
        let live = standing.roles.iter();
        let live = live.filter(|_| !hole::is_open("stored role is not heeded"));
        let roles: BTreeSet<_> = [stated].into_iter().chain(live).cloned().collect();
        let role = RoleReach::of(&roles, policy);
        let reach = Reach {
            scopes: actor.scopes().intersection(role.ceiling()),
            role,
            until: actor.expires_at(),
            renewable_until: actor.expires_at(),
            tenants: Tenants {
                path: actor.tenant().clone(),
                descendants: actor.reaches_descendants(),
            },
            ..Reach::unlimited(tenant)
        };
        Self {
            reach,
            roles,
            narrowing_roles: BTreeSet::from([stated.clone()]),
            manages: true,
            person: Some(principal.clone()),
            drift: drift(principal, stated, &standing, policy, now)
                .filter(|_| !hole::is_open("stored role is not heeded")),
            key: None,
        }
    }

    fn of_key(
        actor: &Actor,
        acting: &ActingKey,
        tenant: &TenantId,
        rows: Rows<'_>,
        (policy, home): (&Policy, &Policy),
        now: Timestamp,
    ) -> Result<Self, Denial> {
        let key = acting.id;
        let refused = |why: VerifyError| Denial::ActingKey {
            key,
            why: Box::new(why),
        };
        let record = rows.acting_key(key, actor.tenant()).map_err(refused)?;
        // The owner's status in `tenant`, which may be below the key's own tenant.
        let mut standing = rows.standing(tenant, &record.owner);
        if !record.bound.is_empty() {
            let all = rows.view.owners.iter().chain(&rows.ancestry.owners);
            let path = (&record.tenant, tenant);
            standing
                .roles
                .extend(owner::raised_from(all, &record.owner, path));
        }
        let alive = check::check_alive(key, &Course::of(record), &standing, now);
        match alive {
            Err(_) if hole::is_open("dead key acts") => {}
            alive => alive.map_err(refused)?,
        }
        if record.visibility == Visibility::Publishable && !hole::is_open("publishable key acts") {
            return Err(refused(VerifyError::Publishable { key }));
        }
        if !record.allowlist.allows(acting.address) {
            return Err(refused(VerifyError::AddressNotAllowed { key }));
        }
        let class = home.class(&record.class).ok_or_else(|| {
            let class = record.class.clone();
            refused(VerifyError::UnknownClass { class })
        })?;
        if !reach::reaches_tenant(&record.tenant, class, tenant) {
            return Err(refused(VerifyError::WrongTenant { key }));
        }
        let roles = reach::roles_of(&record.owner, &record.bound, &standing);
        let role = RoleReach::of(&roles, policy);
        let own = reach::scopes(Bounds::of_record(record), home, class, &standing);
        // A role may allow less under the policy of `tenant` than in the key's own tenant.
        let here = (roles.iter().chain(&record.bound)).fold(own, |scopes: ScopeSet, role| {
            scopes.intersection(&policy.role_ceiling(role))
        });
        let scopes = here.intersection(actor.scopes());
        let whole = record.manages && is_whole(&scopes, &role);
        let whole = whole || hole::is_open("narrow key manages");
        let manages = !roles.is_empty() && whole;
        let owner = record.owner.principal().cloned();
        let reach = Reach {
            scopes,
            role,
            until: earlier(record.expires_at, actor.expires_at()),
            // Self-rotation cannot extend an end that the application set for the actor alone.
            renewable_until: match actor.expires_at() == record.expires_at {
                true => reach::renewable_until(class, record.expires_at, record.lineage.since),
                false => earlier(record.expires_at, actor.expires_at()),
            },
            tenants: Tenants::of(record.tenant.clone(), class),
            environment: Some(record.environment.clone()),
            resource: record.resource.clone(),
            addresses: record.allowlist.clone(),
            key_type: record.visibility,
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

/// Returns whether `scopes` are not empty and include everything that the roles allow.
pub(crate) fn is_whole(scopes: &ScopeSet, role: &RoleReach) -> bool {
    !scopes.is_empty() && scopes.contains(role.ceiling())
}

/// Returns the reason why a person may issue and widen nothing: the person was removed, or the
/// stated role exceeds a live role.
fn drift(
    principal: &PrincipalId,
    stated: &Role,
    standing: &OwnerStatus,
    policy: &Policy,
    now: Timestamp,
) -> Option<Denial> {
    if standing.refuses_owner(now) {
        let owner = principal.clone();
        return Some(Denial::OwnerRemoved { owner });
    }
    let own = RoleReach::of([stated], policy);
    let exceeds =
        |stored: &&Role| *stored != stated && !own.is_within(&RoleReach::of([*stored], policy));
    let stored = standing.roles.iter().find(exceeds)?;
    Some(Denial::RoleDrift {
        stated: stated.clone(),
        stored: stored.clone(),
    })
}

/// Returns the earlier of two ends; `None` means never.
pub(crate) fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
