//! The rights that an attacker can have at most, derived from the design alone.
//!
//! The *potential* is the union of two sets. One is the roles that others gave the attacker. The other is
//! each secret that others handed over, with the key's reach at that time.
//!
//! For the attacker's own keys, only the attacker's current role counts, because a demotion lowers all keys
//! of an owner. For keys that the attacker made for other owners, every role the attacker ever had counts,
//! because the attacker may have kept the secret.

use std::collections::BTreeSet;

use keyward::key::{ClassName, Environment, KeyFacts, KeyRecord, KeyType, Owner};
use keyward::policy::{Policy, SelfRotation};
use keyward::{KeyId, PrincipalId, Role, Scope, TenantId, Timestamp};

use super::policy::{Verb, administers, allows, lets_owner, on_list};

/// One use of a key: tenant, environment, scope and client address, each by its index.
pub(crate) type Point = (usize, usize, usize, usize);

pub(crate) const TENANTS: [&str; 3] = ["acme", "acme/web", "other"];
pub(crate) const ENVIRONMENTS: [Environment; 2] = [Environment::LIVE, Environment::TEST];
pub(crate) const ADDRESSES: [&str; 2] = ["10.1.1.1", "203.0.113.9"];

/// A secret that others handed to the attacker, with the key's state at that time.
#[derive(Clone, Debug)]
pub(crate) struct Handed {
    pub(crate) record: KeyRecord,
    pub(crate) points: BTreeSet<Point>,
    /// The owner's roles that allowed the key to manage keys at the moment it was handed over. Empty if the key
    /// could not manage keys.
    pub(crate) roles: BTreeSet<Role>,
    /// True if the owner received the secret in person. If so, the key's reach changes with the owner's role.
    pub(crate) follows: bool,
}

/// Everything that others gave the attacker.
#[derive(Debug)]
pub(crate) struct Potential {
    pub(crate) policy: Policy,
    pub(crate) attacker: PrincipalId,
    /// The role that the application currently states for the attacker.
    pub(crate) role: Option<Role>,
    pub(crate) ever: BTreeSet<Role>,
    pub(crate) handed: Vec<Handed>,
    /// Every role that others have given bob so far. If bob received a secret and handed it on, the key's
    /// reach still changes with bob's role.
    pub(crate) bob_ever: BTreeSet<Role>,
    /// True if others have closed acme/web.
    pub(crate) closed: bool,
    /// Keys that others have disabled, narrowed or ended, and not enabled since.
    pub(crate) ended_by_others: BTreeSet<KeyId>,
}

pub(crate) fn tenant(number: usize) -> TenantId {
    TenantId::new(TENANTS[number]).unwrap()
}

impl Potential {
    /// Returns the roles that count for a key. For a key of the attacker, these are its current roles: the
    /// role that the application states, and stored roles that were not synced since.
    fn roles_for(&self, key: &Acting) -> BTreeSet<Role> {
        if key.record.owner.principal() != Some(&self.attacker) {
            return self.ever.clone();
        }
        let stored = key.roles.intersection(&self.ever);
        self.role.iter().chain(stored).cloned().collect()
    }

    /// Returns whether the attacker may use `key` at `point` at the time `now`.
    pub(crate) fn covers(&self, key: &Acting, point: Point, scope: &Scope, now: Timestamp) -> bool {
        if self.closed && point.0 == 1 {
            return false;
        }
        let by_role = point.0 != 2 && {
            let roles = self.roles_for(key);
            roles.iter().any(|role| allows(&self.policy, role, scope))
        };
        by_role
            || self
                .handed
                .iter()
                .any(|handed| self.lends(handed, &key.record, point, scope, now))
    }

    fn lends(
        &self,
        handed: &Handed,
        record: &KeyRecord,
        point: Point,
        scope: &Scope,
        now: Timestamp,
    ) -> bool {
        let itself = handed.record.id == record.id;
        if itself && self.ended_by_others.contains(&record.id) {
            return false;
        }
        let own = &handed.record;
        let class = self.policy.class(&own.class).unwrap();
        let until = match class.self_rotation {
            SelfRotation::Renews { until_age } => own
                .expires_at
                .map(|end| end.max(own.lineage.since.saturating_add(until_age))),
            _ => own.expires_at,
        };
        let bound = |record: &KeyRecord| self.policy.propagation(&record.class).bound;
        let reached =
            handed.points.contains(&point) || (handed.follows && self.follows(own, point, scope));
        reached
            && until.is_none_or(|end| now < end)
            && self.issued(&own.class).contains(&record.class)
            && (own.key_type == KeyType::Secret || record.key_type == own.key_type)
            && bound(record) <= bound(own)
            && until.is_none_or(|until| record.expires_at.is_some_and(|end| end <= until))
    }

    /// Returns whether a key that its owner received in person may allow this use after a promotion of the
    /// owner.
    fn follows(&self, key: &KeyRecord, (t, e, _, a): Point, scope: &Scope) -> bool {
        let class = self.policy.class(&key.class).unwrap();
        let there = match class.tenant_reach {
            keyward::policy::TenantReach::Own => key.tenant == tenant(t),
            keyward::policy::TenantReach::Descendants => key.tenant.contains(&tenant(t)),
        };
        let address = ADDRESSES[a].parse().unwrap();
        there
            && key.environment == ENVIRONMENTS[e]
            && key.allowlist.allows(Some(address))
            && key.scopes.allows(scope)
            && class.ceiling.allows(scope)
    }

    /// Returns the classes that a key of `class` can issue, itself included.
    fn issued(&self, class: &ClassName) -> BTreeSet<ClassName> {
        let issues = &self.policy.class(class).unwrap().issues;
        issues.iter().chain([class]).cloned().collect()
    }

    /// Returns whether `by` may apply `verb` to a key of `class` and `owner`.
    ///
    /// `by` is the acting key, or `None` if the attacker acts in person. In person, the `stored` roles must
    /// also allow `verb`, except for updates and revocations.
    pub(crate) fn may(
        &self,
        by: Option<&Acting>,
        verb: Verb,
        class: &ClassName,
        owner: &Owner,
        stored: &[Role],
    ) -> bool {
        let on = |roles: &BTreeSet<Role>| on_list(&self.policy, roles, verb, class);
        match by {
            None => {
                let narrows = matches!(verb, Verb::Update | Verb::Revoke);
                let stored = stored.iter().filter(|_| !narrows);
                let roles: BTreeSet<_> = self.role.iter().chain(stored).cloned().collect();
                self.role.is_some()
                    && (on(&roles) || lets_owner(&self.policy, verb, class, owner, &self.attacker))
            }
            Some(key) => self.acts_by(key, on),
        }
    }

    pub(crate) fn administers(&self, by: Option<&Acting>) -> bool {
        let all = |roles: &BTreeSet<Role>| administers(&self.policy, roles);
        match by {
            None => all(&self.role.iter().cloned().collect()),
            Some(key) => self.acts_by(key, all),
        }
    }

    /// Returns whether `key` may act with some set of roles that satisfies `has`. Only a key that covers all
    /// of its roles (see `is_whole`) may act with the roles that others gave.
    fn acts_by(&self, key: &Acting, has: impl Fn(&BTreeSet<Role>) -> bool) -> bool {
        let own = self.roles_for(key).into_iter();
        let mut given = own.map(|role| BTreeSet::from([role]));
        let handed = self.handed.iter().map(|handed| &handed.roles);
        let follows = |handed: &Handed| handed.follows && handed.record.manages;
        let follows = self.handed.iter().any(follows);
        let followed = self.bob_ever.iter().filter(|_| follows);
        let mut followed = followed.map(|role| BTreeSet::from([role.clone()]));
        let given = given.any(|roles| has(&roles))
            || { handed }.any(&has)
            || followed.any(|roles| has(&roles));
        given && self.is_whole(key)
    }

    /// Returns whether the key's own scopes cover everything that its roles allow.
    fn is_whole(&self, key: &Acting) -> bool {
        let ceilings = key.roles.iter().map(|role| self.policy.role_ceiling(role));
        let all = ceilings.reduce(|all, ceiling| all.intersection(&ceiling));
        key.record.key_type == KeyType::Secret
            && all.is_some_and(|all| !all.is_empty() && key.record.scopes.contains(&all))
    }
}

/// A key that the attacker acts with.
#[derive(Clone, Debug)]
pub(crate) struct Acting {
    pub(crate) record: KeyRecord,
    /// The roles that limit the key: the roles that the key itself is bounded by, and those stored for its owner.
    pub(crate) roles: BTreeSet<Role>,
}

/// Formats a key in one line.
pub(crate) fn brief(record: &KeyRecord) -> String {
    let KeyRecord { facts, state, .. } = record;
    let KeyFacts {
        id,
        tenant,
        class,
        environment,
        owner,
        bound,
        scopes,
        allowlist,
        created,
        expires_at,
        ..
    } = facts;
    let networks: Vec<_> = allowlist.iter().map(ToString::to_string).collect();
    format!(
        "{id} {class} in {tenant} ({environment}) of {owner:?}, bound {bound:?}, {scopes:?}, \
         from {networks:?}, made by {} at {}, ends {expires_at:?}, {state:?}",
        created.by, created.at
    )
}

impl std::fmt::Display for Potential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "role {:?}, ever {:?}", self.role, self.ever)?;
        for handed in &self.handed {
            let Handed {
                record,
                points,
                roles,
                follows,
            } = handed;
            let record = brief(record);
            writeln!(
                f,
                "handed over (follows: {follows}, roles {roles:?}): {record}"
            )?;
            writeln!(f, "  for {points:?}")?;
        }
        writeln!(f, "ended by others: {:?}", self.ended_by_others)?;
        let spec = self.policy.spec();
        writeln!(
            f,
            "roles {:?}, administrators {:?}",
            spec.roles, spec.administrators
        )?;
        for (name, class) in &spec.classes {
            writeln!(
                f,
                "{name}: create {:?}, look {:?}, update {:?}, rotate {:?}, revoke {:?}, issues {:?}",
                class.create, class.look, class.update, class.rotate, class.revoke, class.issues
            )?;
        }
        Ok(())
    }
}
