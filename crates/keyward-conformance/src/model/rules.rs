//! A second implementation of the rules, derived from the design alone. Slow and plain on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::system::{Asker, Given};
use super::{Ask, Life, Mode, TENANTS, Who};
use keyward::KeyId;
use keyward::{Timestamp, days};

/// A set of permissions: one bit for each pair of three resources and three actions. The third of
/// each stands for all others.
pub(super) type Mask = u16;

pub(super) const RESOURCES: [&str; 3] = ["reports", "users", "zzz"];
pub(super) const ACTIONS: [&str; 3] = ["read", "write", "zzz"];
const ALL: Mask = 0b1_1111_1111;

/// 30 days: the longest time for which a key waits for its successor's first use.
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

/// The permissions that all roles of a set have in common. An empty set has no permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct May {
    ceiling: Mask,
    /// The permission to create, read, change, rotate and revoke keys.
    manage: bool,
    administer: bool,
    support: bool,
}

impl May {
    fn within(self, other: Self) -> bool {
        self.ceiling & !other.ceiling == 0
            && (!self.manage || other.manage)
            && (!self.administer || other.administer)
            && (!self.support || other.support)
    }
}

fn may(roles: &BTreeSet<&'static str>) -> May {
    let all = |have: &[&str]| !roles.is_empty() && roles.iter().all(|role| have.contains(role));
    May {
        ceiling: match roles.is_empty() {
            true => 0,
            false => roles.iter().fold(ALL, |mask, role| mask & ceiling(role)),
        },
        manage: all(&["admin", "developer"]),
        administer: all(&["admin"]),
        support: all(&["support"]),
    }
}

/// The authority of an asker in a tenant.
struct Authority {
    manages: bool,
    /// The permissions of the role that the host states, without any other role.
    narrowing: May,
    may: May,
    scopes: Mask,
    /// The roles with which the asker receives a secret.
    receives: BTreeSet<&'static str>,
    person: Option<&'static str>,
    drift: Option<Why>,
}

/// The reason for which a command may be refused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[expect(missing_docs, reason = "each is the refusal of its name")]
pub enum Why {
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
    Imported,
    Already,
    Drift,
    Other,
}

impl Why {
    /// Returns the invariant that requires the refusal.
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
pub(super) struct Key {
    pub(super) id: KeyId,
    pub(super) secret: String,
    pub(super) tenant: usize,
    pub(super) owner: Option<&'static str>,
    pub(super) scopes: Mask,
    /// The scopes as written, if known. Another spelling of the same scopes is a change.
    pub(super) named: Option<BTreeSet<&'static str>>,
    pub(super) created: Timestamp,
    pub(super) expires: Option<Timestamp>,
    pub(super) revoked: bool,
    pub(super) deleted: bool,
    pub(super) disabled: bool,
    pub(super) legacy: bool,
    /// The roles that limited the recipient of the key's secret.
    bound: BTreeSet<&'static str>,
    /// Whether the key reached everything its roles allowed when its secret was issued.
    manages: bool,
    /// The first keys of the rotation chains whose keys made this key.
    makers: BTreeSet<usize>,
    /// The first key of this key's own rotation chain.
    lineage: usize,
    imported: bool,
    replaces: Option<usize>,
    used: bool,
    replaced: Option<Replaced>,
}

#[derive(Clone, Debug, PartialEq)]
struct Replaced {
    by: usize,
    since: Timestamp,
    own_end: Option<Timestamp>,
    waits: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    role: Option<&'static str>,
    removed: Option<Timestamp>,
}

/// The complete history, in plain structs.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub(super) cap: usize,
    pub(super) clock: Timestamp,
    pub(super) keys: Vec<Key>,
    start: Timestamp,
    /// The time by which the wall clock was set back. The nodes' own time does not go back.
    pub(super) behind: Duration,
    known: BTreeSet<usize>,
    closed: BTreeSet<usize>,
    owners: BTreeMap<(usize, &'static str), Row>,
    tokens: BTreeSet<u8>,
}

impl Model {
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

    /// Returns the nodes' own time.
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

    /// Returns the roles that the rows along the path of `tenant` give to `owner`.
    fn live_roles(&self, tenant: usize, owner: Option<&'static str>) -> BTreeSet<&'static str> {
        let rows = Self::path(tenant)
            .iter()
            .filter_map(|t| self.owners.get(&(*t, owner?)));
        rows.filter_map(|row| row.role).collect()
    }

    /// Returns the most scopes that a key can reach, whatever role its owner gets.
    fn bounded(key: &Key) -> Mask {
        key.bound
            .iter()
            .fold(key.scopes, |mask, role| mask & ceiling(role))
    }

    fn reach(&self, key: &Key) -> Mask {
        let live = self.live_roles(key.tenant, key.owner);
        if key.owner.is_some() && live.is_empty() {
            return 0;
        }
        live.iter()
            .fold(Self::bounded(key), |mask, role| mask & ceiling(role))
    }

    /// Returns the roles that a key acts with.
    fn roles_of(&self, key: &Key) -> BTreeSet<&'static str> {
        let live = self.live_roles(key.tenant, key.owner);
        if key.owner.is_none() || live.is_empty() {
            return BTreeSet::new();
        }
        &live | &key.bound
    }

    /// Returns whether a key's reach is not empty and covers everything that the key's roles allow.
    fn is_whole(&self, key: &Key) -> bool {
        let (roles, reach) = (self.roles_of(key), self.reach(key));
        !roles.is_empty() && reach != 0 && may(&roles).ceiling & !reach == 0
    }

    /// Returns the current authority of `asker` in `tenant`.
    fn authority(&self, asker: &Asker, tenant: usize) -> Authority {
        if let Some(number) = asker.key {
            let key = &self.keys[number];
            let (roles, scopes) = (self.roles_of(key), self.reach(key));
            let may = may(&roles);
            return Authority {
                manages: key.manages && self.is_whole(key),
                narrowing: may,
                receives: &roles | &key.bound,
                may,
                scopes,
                person: None,
                drift: None,
            };
        }
        let stated = asker.role.unwrap_or("");
        let live = self.live_roles(tenant, asker.principal);
        let roles = &live | &BTreeSet::from([stated]);
        let own = may(&BTreeSet::from([stated]));
        let drifts =
            |role: &&'static str| *role != stated && !own.within(may(&BTreeSet::from([*role])));
        let removed = self.refuses_owner(tenant, asker.principal, self.now());
        Authority {
            manages: true,
            narrowing: own,
            may: may(&roles),
            scopes: asker.reach & may(&roles).ceiling,
            receives: roles,
            person: asker.principal,
            drift: match removed {
                true => Some(Why::OwnerRemoved),
                false => live.iter().any(drifts).then_some(Why::Drift),
            },
        }
    }

    fn expired(&self, key: &Key) -> bool {
        key.expires.is_some_and(|end| self.now() >= end)
    }

    fn live(&self, key: &Key) -> bool {
        !key.revoked && !key.deleted && !self.expired(key)
    }

    /// Returns the current permissions of a key; `None` if it does not verify.
    pub(super) fn sees(&self, number: usize) -> Option<Mask> {
        let key = &self.keys[number];
        let refused = !self.live(key)
            || key.disabled
            || self.is_closed(key.tenant)
            || self.refuses_owner(key.tenant, key.owner, key.created);
        (!refused).then(|| self.reach(key))
    }

    fn active(&self, tenant: usize) -> usize {
        let counts = |key: &&Key| {
            key.tenant == tenant
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

    /// Returns the asker that a host sees for `who`; `None` if it is the holder of a key that does
    /// not work.
    pub(super) fn asker(&self, who: Who) -> Option<Asker> {
        let person = |principal, role, tenant| Asker {
            principal: Some(principal),
            role: Some(role),
            tenant,
            below: true,
            reach: ALL,
            expires: None,
            key: None,
        };
        Some(match who {
            Who::Alice => person("alice", "admin", 0),
            Who::Dev => person("dev", "developer", 0),
            Who::Mem => person("mem", "member", 0),
            Who::Support => person("sup", "support", 0),
            Who::WebAdmin => person("webadmin", "admin", 1),
            Who::Eve => person("eve", "admin", 2),
            Who::Narrow => Asker {
                reach: mask(["reports:read"]),
                expires: Some(self.start.saturating_add(days(30))),
                ..person("narrow", "admin", 0)
            },
            Who::Holder(_) if self.keys.is_empty() => return None,
            Who::Holder(number) => {
                let number = number % self.keys.len();
                let reach = self.sees(number)?;
                let key = &self.keys[number];
                Asker {
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

    /// Returns whether the command may be carried out in its own tenant and refused in a
    /// descendant.
    pub(super) fn parts_below(&self, asker: &Asker, ask: &Ask) -> bool {
        let Ask::ChangeRole {
            tenant: 0,
            owner,
            role,
        } = ask
        else {
            return false;
        };
        let (owner, role) = (*owner, *role);
        let below = Ask::ChangeRole {
            tenant: 1,
            owner,
            role,
        };
        let follows = self.with_below(asker, 0, Some(owner)).contains(&1);
        follows && !self.refusals(asker, &below).is_empty()
    }

    /// Returns every reason for which the command may be refused. The command must be accepted if
    /// there is none.
    pub(super) fn refusals(&self, asker: &Asker, ask: &Ask) -> BTreeSet<Why> {
        let tenant = match (ask, ask.key()) {
            (_, Some(key)) => self.keys[key].tenant,
            (
                Ask::Create { tenant, .. }
                | Ask::Import { tenant, .. }
                | Ask::ChangeRole { tenant, .. }
                | Ask::RemoveOwner { tenant, .. }
                | Ask::Close { tenant }
                | Ask::Provision { tenant },
                _,
            ) => *tenant,
            _ => 0,
        };
        // An asker that does not reach the tenant learns no other reason.
        let reached = asker.tenant == tenant || (asker.below && (asker.tenant, tenant) == (0, 1));
        if !reached {
            let hidden = ask.key().map_or(Why::TenantNotFound, |_| Why::NotFound);
            return BTreeSet::from([hidden]);
        }
        if asker.expires.is_some_and(|end| self.now() >= end) {
            return BTreeSet::from([Why::ActorExpired]);
        }
        if self.is_closed(tenant) && !matches!(ask, Ask::Close { .. }) {
            return BTreeSet::from([Why::Closed]);
        }
        let mut why = BTreeSet::new();
        match ask.key() {
            Some(key) => self.refuse_about(asker, ask, key, &mut why),
            None => self.refuse_in(asker, ask, tenant, &mut why),
        }
        why
    }

    /// Adds the reasons for which `by` may not do something that requires the permission `has`.
    fn refuse_access(
        by: &Authority,
        (widens, owns): (bool, bool),
        has: impl Fn(May) -> bool,
        why: &mut BTreeSet<Why>,
    ) {
        let stated = owns || (by.manages && has(by.narrowing));
        if widens && stated {
            why.extend(by.drift);
        }
        let counts = if widens { by.may } else { by.narrowing };
        if !(owns || by.manages && has(counts)) {
            why.insert(Why::Role);
        }
    }

    fn refuse_in(&self, asker: &Asker, ask: &Ask, tenant: usize, why: &mut BTreeSet<Why>) {
        let by = self.authority(asker, tenant);
        let manages = |may: May| may.manage;
        let administers = |may: May| may.administer;
        let exceeds = |scopes: Mask, end: Option<Timestamp>| {
            let outlives = |own: Timestamp| end.is_none_or(|end| end > own);
            asker.expires.is_some_and(outlives) || scopes & !by.scopes != 0
        };
        let fresh = !self.known.contains(&tenant);
        let provisions = !matches!(
            ask,
            Ask::ChangeRole { .. } | Ask::RemoveOwner { .. } | Ask::Close { .. }
        );
        if fresh && provisions {
            Self::refuse_access(&by, (true, false), administers, why);
            if exceeds(mask(["reports:read"]), None) {
                why.insert(Why::Exceeds);
            }
        }
        match ask {
            Ask::Create { scopes, life, .. } | Ask::Import { scopes, life, .. } => {
                Self::refuse_access(&by, (true, false), manages, why);
                if matches!(ask, Ask::Import { .. }) {
                    Self::refuse_access(&by, (true, false), administers, why);
                }
                if exceeds(mask(scopes.iter().copied()), self.end(*life)) {
                    why.insert(Why::Exceeds);
                }
                if asker.key.is_some() && asker.principal.is_none() {
                    why.insert(Why::Role);
                }
                if self.refuses_owner(tenant, asker.principal, self.now()) {
                    why.insert(Why::OwnerRemoved);
                }
                if self.active(tenant) + usize::from(fresh) >= self.cap {
                    why.insert(Why::Cap);
                }
                if matches!(ask, Ask::Import { token, .. } if self.tokens.contains(token)) {
                    why.insert(Why::Taken);
                }
                if self.makers(asker, &BTreeSet::new(), None).len() > 8 {
                    why.insert(Why::Other);
                }
            }
            Ask::ChangeRole { owner, role, .. } => {
                let row = self.owners.get(&(tenant, *owner));
                let before = row.and_then(|row| row.role);
                let after = may(&BTreeSet::from([*role]));
                let narrows = match (row, before) {
                    (_, Some(old)) => after.within(may(&BTreeSet::from([old]))),
                    (Some(_), None) => false,
                    // A new row below existing rows only narrows if it is within an existing row,
                    // because the existing row may be raised later.
                    (None, None) => {
                        let mut rows = Self::path(tenant).iter();
                        let removed = rows.any(|above| {
                            let row = self.owners.get(&(*above, *owner));
                            row.is_some_and(|row| row.role.is_none())
                        });
                        let above = self.live_roles(tenant, Some(owner));
                        let within = |old| after.within(may(&BTreeSet::from([old])));
                        !removed && above.into_iter().any(within)
                    }
                };
                Self::refuse_access(&by, (!narrows, false), administers, why);
                let within = after.within(by.may) && after.ceiling & !by.scopes == 0;
                if !narrows && (!within || asker.is_narrow()) {
                    why.insert(Why::Exceeds);
                }
            }
            Ask::Provision { .. } => Self::refuse_access(&by, (true, false), administers, why),
            _ => Self::refuse_access(&by, (false, false), administers, why),
        }
    }

    /// Returns the rotation chains that count as makers of a key: the chains in `before`, and the
    /// chains of the asker's own key. The asker's key adds its own chain and its makers, except the
    /// chain `lineage`.
    fn makers(
        &self,
        asker: &Asker,
        before: &BTreeSet<usize>,
        lineage: Option<usize>,
    ) -> BTreeSet<usize> {
        let acting = asker.key.map(|number| &self.keys[number]);
        let mut makers = before.clone();
        makers.extend(acting.into_iter().flat_map(|key| &key.makers));
        makers.extend(acting.map(|key| key.lineage));
        makers.retain(|maker| Some(*maker) != lineage);
        makers.extend(before);
        makers
    }

    fn refuse_about(&self, asker: &Asker, ask: &Ask, number: usize, why: &mut BTreeSet<Why>) {
        let key = &self.keys[number];
        if key.deleted {
            why.insert(Why::NotFound);
            return;
        }
        let by = self.authority(asker, key.tenant);
        let owns = by.person.is_some() && by.person == key.owner;
        let widens = matches!(
            ask,
            Ask::Enable { .. } | Ask::Rotate { .. } | Ask::Cancel { .. }
        );
        Self::refuse_access(&by, (widens, owns), |may| may.manage, why);
        let revokes = matches!(ask, Ask::Revoke { .. } | Ask::Delete { .. });
        if key.legacy && (revokes || matches!(ask, Ask::Disable { .. })) {
            why.insert(Why::Legacy);
        }
        let rotating = matches!(ask, Ask::Finish { .. } | Ask::Cancel { .. });
        if rotating && key.replaced.is_none() {
            why.insert(Why::NotRotating);
            return;
        }
        if !revokes && !matches!(ask, Ask::Finish { .. }) {
            if key.revoked {
                why.insert(Why::Revoked);
            } else if self.expired(key) {
                why.insert(Why::Expired);
            }
        }
        match ask {
            Ask::Enable { .. } if key.disabled => {
                self.refuse_handing_out(asker, key, key.expires, why);
            }
            Ask::Update { scopes, life, .. } => self.refuse_update(asker, key, scopes, life, why),
            Ask::Rotate { .. } => self.refuse_rotation(asker, ask, number, why),
            Ask::Cancel { .. } => {
                let Some(replaced) = &key.replaced else {
                    return;
                };
                let successor = &self.keys[replaced.by];
                if !successor.deleted && (successor.used || successor.replaced.is_some()) {
                    why.insert(Why::InUse);
                }
                self.refuse_handing_out(asker, key, replaced.own_end, why);
                self.refuse_raise(number, why, |model| model.cancel(number));
            }
            _ => {}
        }
    }

    fn refuse_update(
        &self,
        asker: &Asker,
        key: &Key,
        scopes: &Option<Vec<&'static str>>,
        life: &Option<Life>,
        why: &mut BTreeSet<Why>,
    ) {
        let after = Key {
            scopes: scopes
                .as_ref()
                .map_or(key.scopes, |new| mask(new.iter().copied())),
            expires: life.map_or(key.expires, |life| self.end(life)),
            ..key.clone()
        };
        if life.is_some() && key.replaced.is_some() {
            why.insert(Why::BeingRotated);
        }
        let never = Timestamp::MAX;
        let (old, new) = (key.expires.unwrap_or(never), after.expires.unwrap_or(never));
        if key.legacy && (new < old || key.scopes & !after.scopes != 0) {
            why.insert(Why::Legacy);
        }
        let more = after.scopes & !key.scopes != 0;
        if more || new > old {
            let by = self.authority(asker, key.tenant);
            let owns = by.person.is_some() && by.person == key.owner;
            Self::refuse_access(&by, (true, owns), |may| may.manage, why);
            self.refuse_handing_out(asker, &after, after.expires, why);
            if more && after.scopes & !by.scopes != 0 {
                why.insert(Why::Exceeds);
            }
        }
    }

    fn refuse_rotation(&self, asker: &Asker, ask: &Ask, number: usize, why: &mut BTreeSet<Why>) {
        let key = &self.keys[number];
        // A disabled legacy key may be rotated, because it cannot be replaced in any other way.
        if key.disabled && !key.legacy {
            why.insert(Why::Disabled);
        }
        if self.refuses_owner(key.tenant, key.owner, key.created) {
            why.insert(Why::OwnerRemoved);
        }
        if key.imported {
            why.insert(Why::Imported);
        }
        // Under this policy, no key rotates itself or another key of its own chain.
        if asker
            .key
            .is_some_and(|own| self.keys[own].lineage == key.lineage)
        {
            why.insert(Why::Other);
        }
        if self.makers(asker, &key.makers, Some(key.lineage)).len() > 8 {
            why.insert(Why::Other);
        }
        let mut old = key.clone();
        if let Some(replaced) = &key.replaced {
            let successor = &self.keys[replaced.by];
            let unused = !successor.deleted && !successor.used && successor.replaced.is_none();
            if replaced.waits.is_none() || !unused {
                why.insert(Why::BeingRotated);
                return;
            }
            old.expires = replaced.own_end;
        }
        self.refuse_handing_out(asker, &old, self.successor_end(&old), why);
        if let Ask::Rotate { mode, .. } = ask {
            self.refuse_raise(number, why, |model| {
                model.rotate(number, *mode, key.id, String::new(), false);
            });
        }
    }

    fn refuse_raise(&self, number: usize, why: &mut BTreeSet<Why>, change: impl Fn(&mut Self)) {
        let tenant = self.keys[number].tenant;
        let mut after = self.clone();
        change(&mut after);
        if after.active(tenant) > self.active(tenant).max(self.cap) {
            why.insert(Why::Cap);
        }
    }

    /// Adds the reasons for which `asker` may not hand out the reach of `key` until `end`.
    fn refuse_handing_out(
        &self,
        asker: &Asker,
        key: &Key,
        end: Option<Timestamp>,
        why: &mut BTreeSet<Why>,
    ) {
        let by = self.authority(asker, key.tenant);
        // An asker who does not own the key receives the most that the key may ever reach. The
        // asker also receives the management rights of the key's owner.
        let own = by.person.is_some() && by.person == key.owner;
        let scopes = if own {
            self.reach(key)
        } else {
            Self::bounded(key)
        };
        let outlives = |own: Timestamp| end.is_none_or(|end| end > own);
        let exceeds = scopes & !by.scopes != 0
            || !may(&self.roles_of(key)).within(by.may)
            || asker.expires.is_some_and(outlives);
        if exceeds {
            why.insert(Why::Exceeds);
        }
    }

    /// Returns the roles that limit the recipient of a secret. `asker` receives the secret of a key
    /// of `owner`.
    fn bound_at_receipt(
        &self,
        asker: &Asker,
        receives: &BTreeSet<&'static str>,
        tenant: usize,
        owner: Option<&'static str>,
    ) -> BTreeSet<&'static str> {
        let live = self.live_roles(tenant, owner);
        let person = asker.principal.filter(|_| asker.key.is_none());
        let stated: BTreeSet<_> = asker.role.into_iter().collect();
        match person.is_some() && person == owner && live == stated {
            true => BTreeSet::new(),
            false => receives | &live,
        }
    }

    fn end(&self, life: Life) -> Option<Timestamp> {
        match life {
            Life::Class | Life::Ever => None,
            Life::For(life) => Some(self.now().saturating_add(life)),
        }
    }

    fn successor_end(&self, old: &Key) -> Option<Timestamp> {
        let lifetime = old.expires.map(|end| end.since(old.created));
        lifetime.map(|lifetime| self.now().saturating_add(lifetime))
    }

    /// Applies an accepted command. Returns whether the command changed anything.
    pub(super) fn apply(&mut self, asker: &Asker, ask: &Ask, given: Given) -> bool {
        let before = self.clone();
        let Given { made, provisioned } = given;
        let now = self.now();
        let place = match (ask, ask.key()) {
            (_, Some(key)) => self.keys[key].tenant,
            (
                Ask::Create { tenant, .. } | Ask::Import { tenant, .. } | Ask::Provision { tenant },
                _,
            ) => *tenant,
            _ => 0,
        };
        let receives = self.authority(asker, place).receives;
        let acting = self.makers(asker, &BTreeSet::new(), None);
        if let Ask::Create { tenant, .. } | Ask::Import { tenant, .. } | Ask::Provision { tenant } =
            ask
        {
            self.known.insert(*tenant);
            for (id, secret) in provisioned {
                let key = self.key(id, secret, *tenant, None, mask(["reports:read"]), None);
                self.keys.push(Key {
                    legacy: true,
                    bound: receives.clone(),
                    makers: acting.clone(),
                    named: Some(BTreeSet::from(["reports:read"])),
                    ..key
                });
            }
        }
        let (id, secret) = made.unwrap_or((KeyId::from_u128(0), String::new()));
        match ask {
            Ask::Create {
                tenant,
                scopes,
                life,
            }
            | Ask::Import {
                tenant,
                scopes,
                life,
                ..
            } => {
                let known = !self.live_roles(*tenant, asker.principal).is_empty();
                if let (Some(owner), Some(role), false) = (asker.principal, asker.role, known) {
                    let row = Row {
                        role: Some(role),
                        removed: None,
                    };
                    self.owners.entry((*tenant, owner)).or_insert(row);
                }
                let named = scopes.iter().copied().collect();
                let scopes = mask(scopes.iter().copied());
                let end = self.end(*life);
                let mut key = self.key(id, secret, *tenant, asker.principal, scopes, end);
                key.bound = self.bound_at_receipt(asker, &receives, *tenant, asker.principal);
                key.makers = acting;
                key.manages = self.is_whole(&key);
                key.named = Some(named);
                if let Ask::Import { token, .. } = ask {
                    self.tokens.insert(*token);
                    key.imported = true;
                }
                self.keys.push(key);
                self.bound_live(*tenant);
            }
            Ask::Update { key, scopes, life } => {
                let end = life.map(|life| self.end(life));
                let (number, before) = (*key, self.keys[*key].clone());
                let never = Timestamp::MAX;
                let received = self.bound_at_receipt(asker, &receives, before.tenant, before.owner);
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
            Ask::Revoke { key } => self.revoke(*key),
            Ask::Disable { key } => self.keys[*key].disabled = true,
            Ask::Enable { key } => self.keys[*key].disabled = false,
            Ask::Delete { key } => {
                self.release(*key);
                self.keys[*key].deleted = true;
            }
            Ask::Rotate { key, mode } => {
                let (number, old) = (self.keys.len(), self.keys[*key].clone());
                let received = self.bound_at_receipt(asker, &receives, old.tenant, old.owner);
                let makers = self.makers(asker, &old.makers, Some(old.lineage));
                self.rotate(*key, *mode, id, secret, true);
                let successor = &mut self.keys[number];
                successor.bound = &old.bound | &received;
                successor.makers = makers;
                self.keys[number].manages = old.manages && self.is_whole(&self.keys[number]);
            }
            Ask::Finish { key } => {
                if self.live(&self.keys[*key]) {
                    self.revoke(*key);
                }
            }
            Ask::Cancel { key } => self.cancel(*key),
            Ask::ChangeRole {
                tenant,
                owner,
                role,
            } => {
                for place in self.with_below(asker, *tenant, Some(owner)) {
                    let row = self.owners.entry((place, owner)).or_insert(Row {
                        role: None,
                        removed: None,
                    });
                    row.role = Some(role);
                }
            }
            Ask::RemoveOwner { tenant, owner } => {
                // One row, in the tenant of the command, applies to all descendants.
                let row = self.owners.entry((*tenant, owner)).or_insert(Row {
                    role: Some(""),
                    removed: None,
                });
                if row.role.is_some() {
                    *row = Row {
                        role: None,
                        removed: Some(now),
                    };
                }
                for place in self.with_below(asker, *tenant, Some(owner)) {
                    self.end_all(place, |key| key.owner == Some(owner));
                }
            }
            Ask::Close { tenant } => {
                for place in self.with_below(asker, *tenant, None) {
                    self.closed.insert(place);
                    self.end_all(place, |_| true);
                }
            }
            Ask::Provision { .. } => {}
        }
        *self != before
    }

    /// Records a use of a key, if the key works.
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
        tenant: usize,
        owner: Option<&'static str>,
        scopes: Mask,
        expires: Option<Timestamp>,
    ) -> Key {
        Key {
            id,
            secret,
            tenant,
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
            imported: false,
            replaces: None,
            used: false,
            replaced: None,
        }
    }

    /// Returns the tenant, and the descendants that the asker reaches. Leaves out descendants
    /// without a live key of `owner`, or without any live key if `owner` is `None`.
    fn with_below(&self, asker: &Asker, tenant: usize, owner: Option<&'static str>) -> Vec<usize> {
        let concerned = |key: &Key| {
            key.tenant == 1 && self.live(key) && (owner.is_none() || key.owner == owner)
        };
        if tenant == 0 && asker.below && self.keys.iter().any(concerned) {
            vec![0, 1]
        } else {
            vec![tenant]
        }
    }

    /// Ends keys in the order of their ids. After the wall clock was set back, the newer of two
    /// keys has the smaller id.
    fn end_all(&mut self, tenant: usize, concerned: impl Fn(&Key) -> bool) {
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

    /// Restores the predecessor of a successor that ends before its first use.
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

    fn rotate(&mut self, number: usize, mode: Mode, id: KeyId, secret: String, bound: bool) {
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
        let mut successor = self.key(id, secret, old.tenant, old.owner, old.scopes, expires);
        successor.named.clone_from(&old.named);
        self.keys.push(Key {
            legacy: old.legacy,
            lineage: old.lineage,
            replaces: Some(number),
            ..successor
        });
        let waits = match mode {
            Mode::FirstUse(grace) => Some(grace),
            Mode::Now | Mode::Grace(_) => None,
        };
        let key = &mut self.keys[number];
        key.legacy = false;
        key.replaced = Some(Replaced {
            by,
            since: now,
            own_end: old.expires,
            waits,
        });
        match mode {
            Mode::Now => self.retire(number, Duration::ZERO),
            Mode::Grace(grace) => self.retire(number, grace),
            Mode::FirstUse(_) => self.end_within(number, FIRST_USE_WAIT),
        }
        if let Some(before) = old.replaces {
            // The holder of a successor's secret has received it, so a rotation by the holder
            // counts as the successor's first use.
            self.begin_grace(before, number);
        }
        if bound {
            self.bound_live(old.tenant);
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

    /// Ends keys, oldest grace first, until the number of live keys is at most twice the cap.
    fn bound_live(&mut self, tenant: usize) {
        loop {
            let live = self.live_in(tenant);
            if live.len() <= 2 * self.cap.max(self.active(tenant)) {
                return;
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
            let Some(oldest) = oldest else { return };
            self.keys[oldest].revoked = true;
        }
    }
}
