//! A second implementation of the crate's rules, written from the design alone, and slow and simple on
//! purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::system::{IssuedSecrets, ModelActor};
use super::{ModelCommand, Persona, RequestedLifetime, RotationTiming, TENANTS, class_cap};
use keyward::KeyId;
use keyward::{Timestamp, days};

/// A set of permissions, with one bit for each pair of a resource and an action. The name `zzz` stands for
/// every resource or action that has no bit of its own.
pub(super) type Mask = u16;

pub(super) const RESOURCES: [&str; 3] = ["reports", "users", "zzz"];
pub(super) const ACTIONS: [&str; 3] = ["read", "write", "zzz"];
const ALL: Mask = 0b1_1111_1111;

/// 30 days, the longest time that a rotated key stays valid while its successor is unused.
const FIRST_USE_WAIT: Duration = days(30);

pub(super) fn mask<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Mask {
    let mut mask = 0;
    for scope in scopes {
        let (resource, action) = scope.split_once(':').unwrap_or((scope, ""));
        for (i, own) in RESOURCES.iter().enumerate() {
            for (j, act) in ACTIONS.iter().enumerate() {
                if (resource == "*" || resource == *own) && (action == "*" || action == *act) {
                    mask |= 1 << (3 * i + j);
                }
            }
        }
    }
    mask
}

fn ceiling(role: &str) -> Mask {
    match role {
        "admin" => ALL,
        "developer" => mask(["reports:*", "users:*"]),
        "member" => mask(["*:read"]),
        _ => 0,
    }
}

/// The permissions that every role of a set grants. An empty set of roles grants no permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Permissions {
    ceiling: Mask,
    /// The permission to create, read, change, rotate and revoke keys.
    manage: bool,
    administer: bool,
    support: bool,
}

impl Permissions {
    fn within(self, other: Self) -> bool {
        self.ceiling & !other.ceiling == 0
            && (!self.manage || other.manage)
            && (!self.administer || other.administer)
            && (!self.support || other.support)
    }
}

fn permissions(roles: &BTreeSet<&'static str>) -> Permissions {
    let all = |have: &[&str]| !roles.is_empty() && roles.iter().all(|role| have.contains(role));
    Permissions {
        ceiling: match roles.is_empty() {
            true => 0,
            false => roles.iter().fold(ALL, |mask, role| mask & ceiling(role)),
        },
        manage: all(&["admin", "developer"]),
        administer: all(&["admin"]),
        support: all(&["support"]),
    }
}

/// The permissions of an actor in one tenant.
struct Authority {
    manages: bool,
    /// The permissions of the role that the host claims for the actor. A command that only narrows access
    /// needs no more than these.
    narrowing: Permissions,
    permissions: Permissions,
    scopes: Mask,
    /// The roles that limit a new key if this actor receives its secret.
    receives: BTreeSet<&'static str>,
    person: Option<&'static str>,
    drift: Option<RefusalReason>,
}

/// A reason to refuse a command.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[expect(missing_docs, reason = "each variant is the denial of the same name")]
pub enum RefusalReason {
    NotFound,
    TenantNotFound,
    ActorExpired,
    Role,
    Cap,
    Exceeds,
    Legacy,
    Revoked,
    Expired,
    Disabled,
    Closed,
    OwnerRemoved,
    BeingRotated,
    NotRotating,
    InUse,
    Taken,
    Already,
    Drift,
    Other,
}

impl RefusalReason {
    /// Returns the number of the invariant that a system breaks if it ignores this reason; zero for none.
    pub(super) const fn invariant(self) -> u8 {
        match self {
            Self::Cap => 1,
            Self::Revoked | Self::Taken | Self::BeingRotated => 2,
            Self::Legacy => 3,
            Self::OwnerRemoved => 4,
            Self::Exceeds | Self::ActorExpired | Self::Drift => 5,
            Self::Expired => 8,
            Self::NotFound | Self::TenantNotFound => 9,
            _ => 0,
        }
    }
}

/// A key of the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelKey {
    pub(super) id: KeyId,
    pub(super) secret: String,
    pub(super) tenant: usize,
    /// The class, as an index into [`CLASSES`](super::CLASSES).
    class: usize,
    pub(super) owner: Option<&'static str>,
    pub(super) scopes: Mask,
    /// The scopes as they were written, if known. Replacing them by equivalent scopes in another spelling
    /// still counts as a change.
    pub(super) named: Option<BTreeSet<&'static str>>,
    pub(super) created: Timestamp,
    pub(super) expires: Option<Timestamp>,
    pub(super) revoked: bool,
    pub(super) deleted: bool,
    pub(super) disabled: bool,
    pub(super) legacy: bool,
    /// The roles that the recipient of the key's secret had. These roles limit the key permanently.
    bound: BTreeSet<&'static str>,
    /// True if the key had every permission that its roles grant when its secret was issued. Otherwise it
    /// cannot manage keys.
    manages: bool,
    /// The keys that created this key, directly or through other keys. Each is represented by the first key
    /// of its rotation chain.
    makers: BTreeSet<usize>,
    /// The first key of the rotation chain to which this key belongs.
    lineage: usize,
    replaces: Option<usize>,
    used: bool,
    replaced: Option<KeySuccession>,
}

#[derive(Clone, Debug, PartialEq)]
struct KeySuccession {
    by: usize,
    since: Timestamp,
    own_end: Option<Timestamp>,
    waits: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
struct ModelOwner {
    role: Option<&'static str>,
    removed: Option<Timestamp>,
}

/// The complete state of the reference implementation, in plain structs.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceModel {
    pub(super) cap: usize,
    pub(super) clock: Timestamp,
    pub(super) keys: Vec<ModelKey>,
    start: Timestamp,
    /// The total time by which the wall clock was set back. A node's own time does not follow the wall clock
    /// backwards.
    pub(super) behind: Duration,
    known: BTreeSet<usize>,
    closed: BTreeSet<usize>,
    owners: BTreeMap<(usize, &'static str), ModelOwner>,
    tokens: BTreeSet<u8>,
}

impl ReferenceModel {
    pub(super) fn new(cap: usize, start: Timestamp) -> Self {
        Self {
            cap,
            clock: start,
            keys: Vec::new(),
            start,
            behind: Duration::ZERO,
            known: BTreeSet::new(),
            closed: BTreeSet::new(),
            owners: BTreeMap::new(),
            tokens: BTreeSet::new(),
        }
    }

    /// Returns the time by which nodes judge keys, which never goes back.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.saturating_add(self.behind)
    }

    pub(super) fn is_open(&self, tenant: usize) -> bool {
        self.known.contains(&tenant) && !self.is_closed(tenant)
    }

    /// Returns the tenant and its ancestors.
    fn path(tenant: usize) -> &'static [usize] {
        if TENANTS[tenant] == "acme/web" {
            &[1, 0]
        } else {
            [&[0], &[1], &[2], &[3]][tenant]
        }
    }

    pub(super) fn is_closed(&self, tenant: usize) -> bool {
        Self::path(tenant).iter().any(|t| self.closed.contains(t))
    }

    fn refuses_owner(
        &self,
        tenant: usize,
        owner: Option<&'static str>,
        created: Timestamp,
    ) -> bool {
        let rows = Self::path(tenant)
            .iter()
            .filter_map(|t| self.owners.get(&(*t, owner?)));
        rows.into_iter()
            .any(|row| row.role.is_none() || row.removed.is_some_and(|at| created <= at))
    }

    /// Returns the roles that `owner` has in a tenant and in its ancestors.
    fn live_roles(&self, tenant: usize, owner: Option<&'static str>) -> BTreeSet<&'static str> {
        let rows = Self::path(tenant)
            .iter()
            .filter_map(|t| self.owners.get(&(*t, owner?)));
        rows.filter_map(|row| row.role).collect()
    }

    /// Returns the most that a key can ever be permitted, whatever role its owner gets.
    fn bounded(key: &ModelKey) -> Mask {
        key.bound
            .iter()
            .fold(key.scopes, |mask, role| mask & ceiling(role))
    }

    fn reach(&self, key: &ModelKey) -> Mask {
        let live = self.live_roles(key.tenant, key.owner);
        if key.owner.is_some() && live.is_empty() {
            return 0;
        }
        live.iter()
            .fold(Self::bounded(key), |mask, role| mask & ceiling(role))
    }

    /// Returns the roles that limit a key now: the current roles of its owner, and the roles of the secret's
    /// recipient.
    fn roles_of(&self, key: &ModelKey) -> BTreeSet<&'static str> {
        let live = self.live_roles(key.tenant, key.owner);
        if key.owner.is_none() || live.is_empty() {
            return BTreeSet::new();
        }
        &live | &key.bound
    }

    /// Returns whether a key has any permissions, and lacks none that its roles grant.
    fn is_whole(&self, key: &ModelKey) -> bool {
        let (roles, reach) = (self.roles_of(key), self.reach(key));
        !roles.is_empty() && reach != 0 && permissions(&roles).ceiling & !reach == 0
    }

    /// Returns the permissions that `actor` has in `tenant` now.
    fn authority(&self, actor: &ModelActor, tenant: usize) -> Authority {
        if let Some(number) = actor.key {
            let key = &self.keys[number];
            let (roles, scopes) = (self.roles_of(key), self.reach(key));
            let permissions = permissions(&roles);
            return Authority {
                manages: key.manages && self.is_whole(key),
                narrowing: permissions,
                receives: &roles | &key.bound,
                permissions,
                scopes,
                person: None,
                drift: None,
            };
        }
        let stated = actor.role.unwrap_or("");
        let live = self.live_roles(tenant, actor.principal);
        let roles = &live | &BTreeSet::from([stated]);
        let own = permissions(&BTreeSet::from([stated]));
        let drifts = |role: &&'static str| {
            *role != stated && !own.within(permissions(&BTreeSet::from([*role])))
        };
        let removed = self.refuses_owner(tenant, actor.principal, self.now());
        Authority {
            manages: true,
            narrowing: own,
            permissions: permissions(&roles),
            scopes: actor.reach & permissions(&roles).ceiling,
            receives: roles,
            person: actor.principal,
            drift: match removed {
                true => Some(RefusalReason::OwnerRemoved),
                false => live.iter().any(drifts).then_some(RefusalReason::Drift),
            },
        }
    }

    fn expired(&self, key: &ModelKey) -> bool {
        key.expires.is_some_and(|end| self.now() >= end)
    }

    fn live(&self, key: &ModelKey) -> bool {
        !key.revoked && !key.deleted && !self.expired(key)
    }

    /// Returns the permissions that a key has now, or `None` if a verifier must refuse the key.
    pub(super) fn sees(&self, number: usize) -> Option<Mask> {
        let key = &self.keys[number];
        let refused = !self.live(key)
            || key.disabled
            || self.is_closed(key.tenant)
            || self.refuses_owner(key.tenant, key.owner, key.created);
        (!refused).then(|| self.reach(key))
    }

    /// Returns the caps on active keys. A cap with a class counts only the keys of that class.
    pub(super) fn caps(&self) -> [(Option<usize>, usize); 2] {
        [(None, self.cap), (Some(1), class_cap(self.cap))]
    }

    /// Returns the caps that keys of a class count towards.
    fn caps_of(&self, class: usize) -> Vec<(Option<usize>, usize)> {
        let mut caps = self.caps().to_vec();
        caps.retain(|(only, _)| only.is_none_or(|only| only == class));
        caps
    }

    /// Returns the number of active keys in a tenant, of one class or of all.
    fn active(&self, tenant: usize, class: Option<usize>) -> usize {
        let counts = |key: &&ModelKey| {
            key.tenant == tenant
                && class.is_none_or(|class| key.class == class)
                && self.live(key)
                && key.replaced.as_ref().is_none_or(|replaced| {
                    replaced.waits.is_some() && !self.live(&self.keys[replaced.by])
                })
        };
        self.keys.iter().filter(counts).count()
    }

    fn live_in(&self, tenant: usize) -> Vec<usize> {
        (0..self.keys.len())
            .filter(|&n| self.keys[n].tenant == tenant && self.live(&self.keys[n]))
            .collect()
    }

    /// Returns the actor for a persona. `None` if the persona is the holder of a key that does not work.
    pub(super) fn actor(&self, persona: Persona) -> Option<ModelActor> {
        let person = |principal, role, tenant| ModelActor {
            principal: Some(principal),
            role: Some(role),
            tenant,
            below: true,
            reach: ALL,
            expires: None,
            key: None,
        };
        Some(match persona {
            Persona::Alice => person("alice", "admin", 0),
            Persona::Dev => person("dev", "developer", 0),
            Persona::Mem => person("mem", "member", 0),
            Persona::Support => person("sup", "support", 0),
            Persona::WebAdmin => person("webadmin", "admin", 1),
            Persona::Eve => person("eve", "admin", 2),
            Persona::Narrow => ModelActor {
                reach: mask(["reports:read"]),
                expires: Some(self.start.saturating_add(days(30))),
                ..person("narrow", "admin", 0)
            },
            Persona::Holder(_) if self.keys.is_empty() => return None,
            Persona::Holder(number) => {
                let number = number % self.keys.len();
                let reach = self.sees(number)?;
                let key = &self.keys[number];
                ModelActor {
                    principal: key.owner,
                    role: None,
                    tenant: key.tenant,
                    below: false,
                    reach,
                    expires: key.expires,
                    key: Some(number),
                }
            }
        })
    }

    /// Returns whether the command may succeed in its own tenant but be refused in a descendant tenant.
    pub(super) fn may_fail_below(&self, actor: &ModelActor, command: &ModelCommand) -> bool {
        let ModelCommand::ChangeRole {
            tenant: 0,
            owner,
            role,
        } = command
        else {
            return false;
        };
        let (owner, role) = (*owner, *role);
        let below = ModelCommand::ChangeRole {
            tenant: 1,
            owner,
            role,
        };
        let follows = self.with_below(actor, 0, Some(owner)).contains(&1);
        follows && !self.refusals(actor, &below).is_empty()
    }

    /// Returns every reason for which a system may refuse the command. If there is none, the system must
    /// accept the command.
    pub(super) fn refusals(
        &self,
        actor: &ModelActor,
        command: &ModelCommand,
    ) -> BTreeSet<RefusalReason> {
        let tenant = match (command, command.key()) {
            (_, Some(key)) => self.keys[key].tenant,
            (
                ModelCommand::Create { tenant, .. }
                | ModelCommand::Import { tenant, .. }
                | ModelCommand::ChangeRole { tenant, .. }
                | ModelCommand::RemoveOwner { tenant, .. }
                | ModelCommand::Close { tenant }
                | ModelCommand::Provision { tenant },
                _,
            ) => *tenant,
            _ => 0,
        };
        // If the actor has no access to the tenant, this is the only allowed reason. Any other reason would
        // reveal something about the tenant.
        let reached = actor.tenant == tenant || (actor.below && (actor.tenant, tenant) == (0, 1));
        if !reached {
            let hidden = command
                .key()
                .map_or(RefusalReason::TenantNotFound, |_| RefusalReason::NotFound);
            return BTreeSet::from([hidden]);
        }
        if actor.expires.is_some_and(|end| self.now() >= end) {
            return BTreeSet::from([RefusalReason::ActorExpired]);
        }
        if self.is_closed(tenant) && !matches!(command, ModelCommand::Close { .. }) {
            return BTreeSet::from([RefusalReason::Closed]);
        }
        let mut reasons = BTreeSet::new();
        match command.key() {
            Some(key) => self.refuse_about(actor, command, key, &mut reasons),
            None => self.refuse_in(actor, command, tenant, &mut reasons),
        }
        reasons
    }

    /// Adds the reasons to refuse a command for which the actor needs the permission that the function `has`
    /// checks.
    fn refuse_access(
        by: &Authority,
        (widens, owns): (bool, bool),
        has: impl Fn(Permissions) -> bool,
        reasons: &mut BTreeSet<RefusalReason>,
    ) {
        let stated = owns || (by.manages && has(by.narrowing));
        if widens && stated {
            reasons.extend(by.drift);
        }
        let counts = if widens { by.permissions } else { by.narrowing };
        if !(owns || by.manages && has(counts)) {
            reasons.insert(RefusalReason::Role);
        }
    }

    fn refuse_in(
        &self,
        actor: &ModelActor,
        command: &ModelCommand,
        tenant: usize,
        reasons: &mut BTreeSet<RefusalReason>,
    ) {
        let by = self.authority(actor, tenant);
        let manages = |permissions: Permissions| permissions.manage;
        let administers = |permissions: Permissions| permissions.administer;
        let exceeds = |scopes: Mask, end: Option<Timestamp>| {
            let outlives = |own: Timestamp| end.is_none_or(|end| end > own);
            actor.expires.is_some_and(outlives) || scopes & !by.scopes != 0
        };
        let fresh = !self.known.contains(&tenant);
        let provisions = !matches!(
            command,
            ModelCommand::ChangeRole { .. }
                | ModelCommand::RemoveOwner { .. }
                | ModelCommand::Close { .. }
        );
        if fresh && provisions {
            Self::refuse_access(&by, (true, false), administers, reasons);
            if exceeds(mask(["reports:read"]), None) {
                reasons.insert(RefusalReason::Exceeds);
            }
        }
        match command {
            ModelCommand::Create {
                class,
                scopes,
                lifetime,
                ..
            }
            | ModelCommand::Import {
                class,
                scopes,
                lifetime,
                ..
            } => {
                Self::refuse_access(&by, (true, false), manages, reasons);
                if matches!(command, ModelCommand::Import { .. }) {
                    Self::refuse_access(&by, (true, false), administers, reasons);
                }
                if exceeds(mask(scopes.iter().copied()), self.end(*lifetime)) {
                    reasons.insert(RefusalReason::Exceeds);
                }
                if actor.key.is_some() && actor.principal.is_none() {
                    reasons.insert(RefusalReason::Role);
                }
                if self.refuses_owner(tenant, actor.principal, self.now()) {
                    reasons.insert(RefusalReason::OwnerRemoved);
                }
                for (only, cap) in self.caps_of(*class) {
                    // The legacy key, which is provisioned with a new tenant, is of the first class.
                    let legacy = usize::from(fresh && only.is_none());
                    if self.active(tenant, only) + legacy >= cap {
                        reasons.insert(RefusalReason::Cap);
                    }
                }
                if matches!(command, ModelCommand::Import { token, .. } if self.tokens.contains(token))
                {
                    reasons.insert(RefusalReason::Taken);
                }
                if self.makers(actor, &BTreeSet::new(), None).len() > 8 {
                    reasons.insert(RefusalReason::Other);
                }
            }
            ModelCommand::ChangeRole { owner, role, .. } => {
                let row = self.owners.get(&(tenant, *owner));
                let before = row.and_then(|row| row.role);
                let after = permissions(&BTreeSet::from([*role]));
                let narrows = match (row, before) {
                    (_, Some(old)) => after.within(permissions(&BTreeSet::from([old]))),
                    (Some(_), None) => false,
                    // The owner has no row in this tenant yet, so the rows of its ancestors apply. A new row
                    // narrows access only if an ancestor's row grants all of its permissions, and no
                    // ancestor's row marks the owner as removed.
                    (None, None) => {
                        let mut rows = Self::path(tenant).iter();
                        let removed = rows.any(|above| {
                            let row = self.owners.get(&(*above, *owner));
                            row.is_some_and(|row| row.role.is_none())
                        });
                        let above = self.live_roles(tenant, Some(owner));
                        let within = |old| after.within(permissions(&BTreeSet::from([old])));
                        !removed && above.into_iter().any(within)
                    }
                };
                Self::refuse_access(&by, (!narrows, false), administers, reasons);
                let within = after.within(by.permissions) && after.ceiling & !by.scopes == 0;
                if !narrows && (!within || actor.is_narrow()) {
                    reasons.insert(RefusalReason::Exceeds);
                }
            }
            ModelCommand::Provision { .. } => {
                Self::refuse_access(&by, (true, false), administers, reasons)
            }
            _ => Self::refuse_access(&by, (false, false), administers, reasons),
        }
    }

    /// Returns the makers of a key after this actor receives its secret: the chains in `before`, and the
    /// chain and the makers of the actor's own key. The chain `lineage` is added only if `before` contains
    /// it.
    fn makers(
        &self,
        actor: &ModelActor,
        before: &BTreeSet<usize>,
        lineage: Option<usize>,
    ) -> BTreeSet<usize> {
        let acting = actor.key.map(|number| &self.keys[number]);
        let mut makers = before.clone();
        makers.extend(acting.into_iter().flat_map(|key| &key.makers));
        makers.extend(acting.map(|key| key.lineage));
        makers.retain(|maker| Some(*maker) != lineage);
        makers.extend(before);
        makers
    }

    fn refuse_about(
        &self,
        actor: &ModelActor,
        command: &ModelCommand,
        number: usize,
        reasons: &mut BTreeSet<RefusalReason>,
    ) {
        let key = &self.keys[number];
        if key.deleted {
            reasons.insert(RefusalReason::NotFound);
            return;
        }
        let by = self.authority(actor, key.tenant);
        let owns = by.person.is_some() && by.person == key.owner;
        let widens = matches!(
            command,
            ModelCommand::Enable { .. } | ModelCommand::Rotate { .. } | ModelCommand::Cancel { .. }
        );
        Self::refuse_access(
            &by,
            (widens, owns),
            |permissions| permissions.manage,
            reasons,
        );
        let revokes = matches!(
            command,
            ModelCommand::Revoke { .. } | ModelCommand::Delete { .. }
        );
        if key.legacy && (revokes || matches!(command, ModelCommand::Disable { .. })) {
            reasons.insert(RefusalReason::Legacy);
        }
        let rotating = matches!(
            command,
            ModelCommand::Finish { .. } | ModelCommand::Cancel { .. }
        );
        if rotating && key.replaced.is_none() {
            reasons.insert(RefusalReason::NotRotating);
            return;
        }
        if !revokes && !matches!(command, ModelCommand::Finish { .. }) {
            if key.revoked {
                reasons.insert(RefusalReason::Revoked);
            } else if self.expired(key) {
                reasons.insert(RefusalReason::Expired);
            }
        }
        match command {
            ModelCommand::Enable { .. } if key.disabled => {
                self.refuse_handing_out(actor, key, key.expires, reasons);
            }
            ModelCommand::Update {
                scopes, lifetime, ..
            } => self.refuse_update(actor, key, scopes, lifetime, reasons),
            ModelCommand::Rotate { .. } => self.refuse_rotation(actor, command, number, reasons),
            ModelCommand::Cancel { .. } => {
                let Some(replaced) = &key.replaced else {
                    return;
                };
                let successor = &self.keys[replaced.by];
                if !successor.deleted && (successor.used || successor.replaced.is_some()) {
                    reasons.insert(RefusalReason::InUse);
                }
                self.refuse_handing_out(actor, key, replaced.own_end, reasons);
                self.refuse_raise(number, reasons, |model| model.cancel(number));
            }
            _ => {}
        }
    }

    fn refuse_update(
        &self,
        actor: &ModelActor,
        key: &ModelKey,
        scopes: &Option<Vec<&'static str>>,
        lifetime: &Option<RequestedLifetime>,
        reasons: &mut BTreeSet<RefusalReason>,
    ) {
        let after = ModelKey {
            scopes: scopes
                .as_ref()
                .map_or(key.scopes, |new| mask(new.iter().copied())),
            expires: lifetime.map_or(key.expires, |lifetime| self.end(lifetime)),
            ..key.clone()
        };
        if lifetime.is_some() && key.replaced.is_some() {
            reasons.insert(RefusalReason::BeingRotated);
        }
        let never = Timestamp::MAX;
        let (old, new) = (key.expires.unwrap_or(never), after.expires.unwrap_or(never));
        if key.legacy && (new < old || key.scopes & !after.scopes != 0) {
            reasons.insert(RefusalReason::Legacy);
        }
        let more = after.scopes & !key.scopes != 0;
        if more || new > old {
            let by = self.authority(actor, key.tenant);
            let owns = by.person.is_some() && by.person == key.owner;
            Self::refuse_access(&by, (true, owns), |permissions| permissions.manage, reasons);
            self.refuse_handing_out(actor, &after, after.expires, reasons);
            if more && after.scopes & !by.scopes != 0 {
                reasons.insert(RefusalReason::Exceeds);
            }
        }
    }

    fn refuse_rotation(
        &self,
        actor: &ModelActor,
        command: &ModelCommand,
        number: usize,
        reasons: &mut BTreeSet<RefusalReason>,
    ) {
        let key = &self.keys[number];
        // A disabled legacy key may be rotated, because its tenant has no other way to replace it.
        if key.disabled && !key.legacy {
            reasons.insert(RefusalReason::Disabled);
        }
        if self.refuses_owner(key.tenant, key.owner, key.created) {
            reasons.insert(RefusalReason::OwnerRemoved);
        }
        // Under the model's policy, a key may rotate neither itself nor another key of its rotation chain.
        if actor
            .key
            .is_some_and(|own| self.keys[own].lineage == key.lineage)
        {
            reasons.insert(RefusalReason::Other);
        }
        if self.makers(actor, &key.makers, Some(key.lineage)).len() > 8 {
            reasons.insert(RefusalReason::Other);
        }
        let mut old = key.clone();
        if let Some(replaced) = &key.replaced {
            let successor = &self.keys[replaced.by];
            let unused = !successor.deleted && !successor.used && successor.replaced.is_none();
            if replaced.waits.is_none() || !unused {
                reasons.insert(RefusalReason::BeingRotated);
                return;
            }
            old.expires = replaced.own_end;
        }
        self.refuse_handing_out(actor, &old, self.successor_end(&old), reasons);
        if let ModelCommand::Rotate { mode, .. } = command {
            self.refuse_raise(number, reasons, |model| {
                model.rotate(number, *mode, key.id, String::new(), false);
            });
        }
    }

    fn refuse_raise(
        &self,
        number: usize,
        reasons: &mut BTreeSet<RefusalReason>,
        change: impl Fn(&mut Self),
    ) {
        let (tenant, class) = (self.keys[number].tenant, self.keys[number].class);
        let mut after = self.clone();
        change(&mut after);
        for (only, cap) in self.caps_of(class) {
            if after.active(tenant, only) > self.active(tenant, only).max(cap) {
                reasons.insert(RefusalReason::Cap);
            }
        }
    }

    /// Adds [`RefusalReason::Exceeds`] if `actor` may not grant the permissions of `key`, or not until `end`.
    fn refuse_handing_out(
        &self,
        actor: &ModelActor,
        key: &ModelKey,
        end: Option<Timestamp>,
        reasons: &mut BTreeSet<RefusalReason>,
    ) {
        let by = self.authority(actor, key.tenant);
        // The owner of the key needs the key's current permissions. Any other actor needs all permissions
        // that the key can ever have. Every actor needs the permissions of the key's roles.
        let own = by.person.is_some() && by.person == key.owner;
        let scopes = if own {
            self.reach(key)
        } else {
            Self::bounded(key)
        };
        let outlives = |own: Timestamp| end.is_none_or(|end| end > own);
        let exceeds = scopes & !by.scopes != 0
            || !permissions(&self.roles_of(key)).within(by.permissions)
            || actor.expires.is_some_and(outlives);
        if exceeds {
            reasons.insert(RefusalReason::Exceeds);
        }
    }

    /// Returns the roles that permanently limit a key of `owner` if `actor` receives the key's secret.
    fn bound_at_receipt(
        &self,
        actor: &ModelActor,
        receives: &BTreeSet<&'static str>,
        tenant: usize,
        owner: Option<&'static str>,
    ) -> BTreeSet<&'static str> {
        let live = self.live_roles(tenant, owner);
        let person = actor.principal.filter(|_| actor.key.is_none());
        let stated: BTreeSet<_> = actor.role.into_iter().collect();
        match person.is_some() && person == owner && live == stated {
            true => BTreeSet::new(),
            false => receives | &live,
        }
    }

    fn end(&self, lifetime: RequestedLifetime) -> Option<Timestamp> {
        match lifetime {
            RequestedLifetime::Class | RequestedLifetime::Ever => None,
            RequestedLifetime::For(lifetime) => Some(self.now().saturating_add(lifetime)),
        }
    }

    fn successor_end(&self, old: &ModelKey) -> Option<Timestamp> {
        let lifetime = old.expires.map(|end| end.since(old.created));
        lifetime.map(|lifetime| self.now().saturating_add(lifetime))
    }

    /// Applies a command that the system has accepted. Returns whether the command changed anything.
    pub(super) fn apply(
        &mut self,
        actor: &ModelActor,
        command: &ModelCommand,
        given: IssuedSecrets,
    ) -> bool {
        let before = self.clone();
        let IssuedSecrets { made, provisioned } = given;
        let now = self.now();
        let place = match (command, command.key()) {
            (_, Some(key)) => self.keys[key].tenant,
            (
                ModelCommand::Create { tenant, .. }
                | ModelCommand::Import { tenant, .. }
                | ModelCommand::Provision { tenant },
                _,
            ) => *tenant,
            _ => 0,
        };
        let receives = self.authority(actor, place).receives;
        let acting = self.makers(actor, &BTreeSet::new(), None);
        if let ModelCommand::Create { tenant, .. }
        | ModelCommand::Import { tenant, .. }
        | ModelCommand::Provision { tenant } = command
        {
            self.known.insert(*tenant);
            for (id, secret) in provisioned {
                let key = self.key(id, secret, (*tenant, 0), None, mask(["reports:read"]), None);
                self.keys.push(ModelKey {
                    legacy: true,
                    bound: receives.clone(),
                    makers: acting.clone(),
                    named: Some(BTreeSet::from(["reports:read"])),
                    ..key
                });
            }
        }
        let (id, secret) = made.unwrap_or((KeyId::from_u128(0), String::new()));
        match command {
            ModelCommand::Create {
                tenant,
                class,
                scopes,
                lifetime,
            }
            | ModelCommand::Import {
                tenant,
                class,
                scopes,
                lifetime,
                ..
            } => {
                let known = !self.live_roles(*tenant, actor.principal).is_empty();
                if let (Some(owner), Some(role), false) = (actor.principal, actor.role, known) {
                    let row = ModelOwner {
                        role: Some(role),
                        removed: None,
                    };
                    self.owners.entry((*tenant, owner)).or_insert(row);
                }
                let named = scopes.iter().copied().collect();
                let scopes = mask(scopes.iter().copied());
                let end = self.end(*lifetime);
                let place = (*tenant, *class);
                let mut key = self.key(id, secret, place, actor.principal, scopes, end);
                key.bound = self.bound_at_receipt(actor, &receives, *tenant, actor.principal);
                key.makers = acting;
                key.manages = self.is_whole(&key);
                key.named = Some(named);
                if let ModelCommand::Import { token, .. } = command {
                    self.tokens.insert(*token);
                }
                self.keys.push(key);
                self.bound_live(*tenant, *class);
            }
            ModelCommand::Update {
                key,
                scopes,
                lifetime,
            } => {
                let end = lifetime.map(|lifetime| self.end(lifetime));
                let (number, before) = (*key, self.keys[*key].clone());
                let never = Timestamp::MAX;
                let received = self.bound_at_receipt(actor, &receives, before.tenant, before.owner);
                let key = &mut self.keys[number];
                if let Some(scopes) = scopes {
                    key.named = Some(scopes.iter().copied().collect());
                }
                key.scopes = scopes
                    .as_ref()
                    .map_or(key.scopes, |new| mask(new.iter().copied()));
                key.expires = end.unwrap_or(key.expires);
                let more = key.scopes & !before.scopes != 0;
                if more || key.expires.unwrap_or(never) > before.expires.unwrap_or(never) {
                    key.bound = &key.bound | &received;
                }
                key.manages |= more;
                self.keys[number].manages &= self.is_whole(&self.keys[number]);
            }
            ModelCommand::Revoke { key } => self.revoke(*key),
            ModelCommand::Disable { key } => self.keys[*key].disabled = true,
            ModelCommand::Enable { key } => self.keys[*key].disabled = false,
            ModelCommand::Delete { key } => {
                self.release(*key);
                self.keys[*key].deleted = true;
            }
            ModelCommand::Rotate { key, mode } => {
                let (number, old) = (self.keys.len(), self.keys[*key].clone());
                let received = self.bound_at_receipt(actor, &receives, old.tenant, old.owner);
                let makers = self.makers(actor, &old.makers, Some(old.lineage));
                self.rotate(*key, *mode, id, secret, true);
                let successor = &mut self.keys[number];
                successor.bound = &old.bound | &received;
                successor.makers = makers;
                self.keys[number].manages = old.manages && self.is_whole(&self.keys[number]);
            }
            ModelCommand::Finish { key } => {
                if self.live(&self.keys[*key]) {
                    self.revoke(*key);
                }
            }
            ModelCommand::Cancel { key } => self.cancel(*key),
            ModelCommand::ChangeRole {
                tenant,
                owner,
                role,
            } => {
                for place in self.with_below(actor, *tenant, Some(owner)) {
                    let row = self.owners.entry((place, owner)).or_insert(ModelOwner {
                        role: None,
                        removed: None,
                    });
                    row.role = Some(role);
                }
            }
            ModelCommand::RemoveOwner { tenant, owner } => {
                // One row in the command's tenant also applies to all descendant tenants.
                let row = self.owners.entry((*tenant, owner)).or_insert(ModelOwner {
                    role: Some(""),
                    removed: None,
                });
                if row.role.is_some() {
                    *row = ModelOwner {
                        role: None,
                        removed: Some(now),
                    };
                }
                for place in self.with_below(actor, *tenant, Some(owner)) {
                    self.end_all(place, |key| key.owner == Some(owner));
                }
            }
            ModelCommand::Close { tenant } => {
                for place in self.with_below(actor, *tenant, None) {
                    self.closed.insert(place);
                    self.end_all(place, |_| true);
                }
            }
            ModelCommand::Provision { .. } => {}
        }
        *self != before
    }

    /// Records that a key was used, unless a verifier would refuse it.
    pub(super) fn used(&mut self, number: usize) {
        let unused = self.keys[number]
            .replaces
            .filter(|_| !self.keys[number].used);
        let (Some(old), Some(_)) = (unused, self.sees(number)) else {
            return;
        };
        self.keys[number].used = true;
        self.begin_grace(old, number);
    }

    fn key(
        &self,
        id: KeyId,
        secret: String,
        (tenant, class): (usize, usize),
        owner: Option<&'static str>,
        scopes: Mask,
        expires: Option<Timestamp>,
    ) -> ModelKey {
        ModelKey {
            id,
            secret,
            tenant,
            class,
            owner,
            scopes,
            named: None,
            created: self.now(),
            expires,
            revoked: false,
            deleted: false,
            disabled: false,
            legacy: false,
            bound: BTreeSet::new(),
            manages: false,
            makers: BTreeSet::new(),
            lineage: self.keys.len(),
            replaces: None,
            used: false,
            replaced: None,
        }
    }

    /// Returns the tenant. Also returns its descendant tenant if the actor may act there and the command
    /// affects a live key there. Without `owner`, a command affects the keys of all owners.
    fn with_below(
        &self,
        actor: &ModelActor,
        tenant: usize,
        owner: Option<&'static str>,
    ) -> Vec<usize> {
        let concerned = |key: &ModelKey| {
            key.tenant == 1 && self.live(key) && (owner.is_none() || key.owner == owner)
        };
        if tenant == 0 && actor.below && self.keys.iter().any(concerned) {
            vec![0, 1]
        } else {
            vec![tenant]
        }
    }

    /// Revokes the keys for which `concerned` returns true, in the order of their ids. If the wall clock was
    /// set back, a newer key may have a smaller id.
    fn end_all(&mut self, tenant: usize, concerned: impl Fn(&ModelKey) -> bool) {
        let mut live = self.live_in(tenant);
        live.sort_by_key(|number| self.keys[*number].id);
        for number in live {
            if concerned(&self.keys[number]) {
                self.revoke(number);
            }
        }
    }

    fn revoke(&mut self, number: usize) {
        if !self.keys[number].revoked {
            self.release(number);
            self.keys[number].revoked = true;
        }
    }

    /// Cancels a [`RotationTiming::FirstUse`] rotation whose successor, this key, ends before its first use.
    /// The predecessor then works as before.
    fn release(&mut self, number: usize) {
        let Some(old) = self.keys[number]
            .replaces
            .filter(|_| !self.keys[number].used)
        else {
            return;
        };
        if !self.live(&self.keys[old]) {
            return;
        }
        match self.keys[old].replaced.clone() {
            Some(replaced) if replaced.by == number && replaced.waits.is_some() => {
                self.keys[old].expires = replaced.own_end;
                self.keys[old].replaced = None;
            }
            _ => {}
        }
    }

    fn begin_grace(&mut self, old: usize, successor: usize) {
        if !self.live(&self.keys[old]) {
            return;
        }
        let waits = match &mut self.keys[old].replaced {
            Some(replaced) if replaced.by == successor => replaced.waits.take(),
            _ => None,
        };
        if let Some(grace) = waits {
            self.retire(old, grace);
        }
    }

    fn retire(&mut self, number: usize, grace: Duration) {
        if grace.is_zero() {
            self.keys[number].revoked = true;
        } else {
            self.end_within(number, grace);
        }
    }

    fn end_within(&mut self, number: usize, wait: Duration) {
        let end = self.now().saturating_add(wait);
        let key = &mut self.keys[number];
        key.expires = Some(key.expires.map_or(end, |own| own.min(end)));
    }

    fn rotate(
        &mut self,
        number: usize,
        mode: RotationTiming,
        id: KeyId,
        secret: String,
        bound: bool,
    ) {
        if let Some(replaced) = self.keys[number].replaced.clone() {
            let legacy = std::mem::take(&mut self.keys[replaced.by].legacy);
            self.revoke(replaced.by);
            let old = &mut self.keys[number];
            old.legacy = legacy;
            old.expires = replaced.own_end;
            old.replaced = None;
        }
        let (now, by) = (self.now(), self.keys.len());
        let old = self.keys[number].clone();
        let expires = self.successor_end(&old);
        let place = (old.tenant, old.class);
        let mut successor = self.key(id, secret, place, old.owner, old.scopes, expires);
        successor.named.clone_from(&old.named);
        self.keys.push(ModelKey {
            legacy: old.legacy,
            lineage: old.lineage,
            replaces: Some(number),
            ..successor
        });
        let waits = match mode {
            RotationTiming::FirstUse(grace) => Some(grace),
            RotationTiming::Now | RotationTiming::Grace(_) => None,
        };
        let key = &mut self.keys[number];
        key.legacy = false;
        key.replaced = Some(KeySuccession {
            by,
            since: now,
            own_end: old.expires,
            waits,
        });
        match mode {
            RotationTiming::Now => self.retire(number, Duration::ZERO),
            RotationTiming::Grace(grace) => self.retire(number, grace),
            RotationTiming::FirstUse(_) => self.end_within(number, FIRST_USE_WAIT),
        }
        if let Some(before) = old.replaces {
            // Rotating a successor counts as its first use, so the grace period of its own predecessor
            // begins.
            self.begin_grace(before, number);
        }
        if bound {
            self.bound_live(old.tenant, old.class);
        }
    }

    fn cancel(&mut self, number: usize) {
        let Some(replaced) = self.keys[number].replaced.take() else {
            return;
        };
        self.keys[number].expires = replaced.own_end;
        let successor = &mut self.keys[replaced.by];
        if !successor.deleted {
            successor.revoked = true;
            let legacy = std::mem::take(&mut successor.legacy);
            self.keys[number].legacy = legacy;
        }
    }

    /// Revokes replaced keys, oldest rotation first, until at most twice as many are live as each cap of the
    /// class allows. Keys that wait for a first use come last.
    fn bound_live(&mut self, tenant: usize, class: usize) {
        for (only, cap) in self.caps_of(class) {
            loop {
                let mut live = self.live_in(tenant);
                live.retain(|&number| only.is_none_or(|only| self.keys[number].class == only));
                if live.len() <= 2 * cap.max(self.active(tenant, only)) {
                    break;
                }
                let order = |&number: &usize| {
                    let key = &self.keys[number];
                    let replaced = key.replaced.as_ref()?;
                    Some((replaced.waits.is_some(), replaced.since, key.id))
                };
                let oldest = live
                    .into_iter()
                    .filter(|n| order(n).is_some())
                    .min_by_key(order);
                let Some(oldest) = oldest else { break };
                self.keys[oldest].revoked = true;
            }
        }
    }
}
