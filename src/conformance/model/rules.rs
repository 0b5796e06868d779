//! The rules once more, from the words of the design alone. Slow and plain on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::system::{Asker, Given};
use super::{Ask, Life, Mode, TENANTS, Who};
use crate::core::id::KeyId;
use crate::core::time::{Timestamp, days};

/// What is allowed, one bit for each pair of three resources and three actions; the third of each
/// stands for all others.
pub(super) type Mask = u16;

pub(super) const RESOURCES: [&str; 3] = ["reports", "users", "zzz"];
pub(super) const ACTIONS: [&str; 3] = ["read", "write", "zzz"];
const ALL: Mask = 0b1_1111_1111;

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

/// Why a command may be refused.
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
    Other,
}

impl Why {
    /// The invariant that says so.
    pub(super) const fn invariant(self) -> u8 {
        match self {
            Self::Cap => 1,
            Self::Revoked | Self::Taken | Self::BeingRotated => 2,
            Self::Legacy => 3,
            Self::OwnerRemoved => 4,
            Self::Exceeds | Self::ActorExpired => 5,
            Self::Expired => 8,
            Self::NotFound | Self::TenantNotFound => 9,
            _ => 0,
        }
    }
}

/// A key as the model knows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) id: KeyId,
    pub(super) secret: String,
    pub(super) tenant: usize,
    pub(super) owner: Option<&'static str>,
    pub(super) scopes: Mask,
    /// The scopes as they were named, where that is known: other words for the same are a change.
    pub(super) named: Option<BTreeSet<&'static str>>,
    pub(super) created: Timestamp,
    pub(super) expires: Option<Timestamp>,
    pub(super) revoked: bool,
    pub(super) deleted: bool,
    pub(super) disabled: bool,
    pub(super) legacy: bool,
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

/// Everything that ever was, in plain structs.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub(super) cap: usize,
    pub(super) clock: Timestamp,
    pub(super) keys: Vec<Key>,
    start: Timestamp,
    newest: Timestamp,
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
            newest: Timestamp::UNIX_EPOCH,
            known: BTreeSet::new(),
            closed: BTreeSet::new(),
            owners: BTreeMap::new(),
            tokens: BTreeSet::new(),
        }
    }

    /// The later of the clock and the newest commit.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.max(self.newest)
    }

    pub(super) fn is_open(&self, tenant: usize) -> bool {
        self.known.contains(&tenant) && !self.is_closed(tenant)
    }

    /// The tenant and those above it.
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

    fn reach(&self, key: &Key) -> Mask {
        let Some(owner) = key.owner else {
            return key.scopes;
        };
        let rows = Self::path(key.tenant)
            .iter()
            .filter_map(|t| self.owners.get(&(*t, owner)));
        let roles: Vec<_> = rows.filter_map(|row| row.role).collect();
        if roles.is_empty() {
            return 0;
        }
        roles
            .iter()
            .fold(key.scopes, |mask, role| mask & ceiling(role))
    }

    fn expired(&self, key: &Key) -> bool {
        key.expires.is_some_and(|end| self.now() >= end)
    }

    fn live(&self, key: &Key) -> bool {
        !key.revoked && !key.deleted && !self.expired(key)
    }

    /// What a key may do now; `None` if it does not verify.
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

    /// Who `who` is to a host; `None` if it is the holder of a key that does not work.
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
                let key = &self.keys[number];
                let reach = self.sees(number)?;
                let rows = Self::path(key.tenant)
                    .iter()
                    .filter_map(|t| self.owners.get(&(*t, key.owner?)));
                let roles: BTreeSet<_> = rows.filter_map(|row| row.role).collect();
                Asker {
                    principal: key.owner,
                    // A key that was narrowed does not carry its owner's role.
                    role: roles
                        .first()
                        .copied()
                        .filter(|role| roles.len() == 1 && ceiling(role) & !reach == 0),
                    tenant: key.tenant,
                    below: false,
                    reach,
                    expires: key.expires,
                    key: Some(number),
                }
            }
        })
    }

    /// Every reason for which the command may be refused; none if it must be accepted.
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
        // Whoever does not reach the tenant learns nothing but that.
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

    fn refuse_in(&self, asker: &Asker, ask: &Ask, tenant: usize, why: &mut BTreeSet<Why>) {
        let manages = matches!(asker.role, Some("admin" | "developer"));
        let administers = asker.role == Some("admin");
        let exceeds = |scopes: Mask, end: Option<Timestamp>| self.exceeds(asker, scopes, end);
        let fresh = !self.known.contains(&tenant);
        let provisions = !matches!(
            ask,
            Ask::ChangeRole { .. } | Ask::RemoveOwner { .. } | Ask::Close { .. }
        );
        if fresh && provisions && exceeds(mask(["reports:read"]), None) {
            why.insert(Why::Exceeds);
        }
        match ask {
            Ask::Create { scopes, life, .. } | Ask::Import { scopes, life, .. } => {
                if !manages {
                    why.insert(Why::Role);
                }
                if exceeds(mask(scopes.iter().copied()), self.end(*life)) {
                    why.insert(Why::Exceeds);
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
            }
            _ if !administers => {
                why.insert(Why::Role);
            }
            _ => {}
        }
    }

    fn refuse_about(&self, asker: &Asker, ask: &Ask, number: usize, why: &mut BTreeSet<Why>) {
        let key = &self.keys[number];
        if key.deleted {
            why.insert(Why::NotFound);
            return;
        }
        let owns = asker.principal.is_some() && asker.principal == key.owner;
        if !owns && !matches!(asker.role, Some("admin" | "developer")) {
            why.insert(Why::Role);
        }
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
            Ask::Enable { .. } if key.disabled => self.refuse_handing_out(asker, key, why),
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
                let restored = Key {
                    expires: replaced.own_end,
                    ..key.clone()
                };
                self.refuse_handing_out(asker, &restored, why);
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
        if after.scopes & !key.scopes != 0 && self.exceeds(asker, after.scopes, after.expires) {
            why.insert(Why::Exceeds);
        }
        if new > old {
            self.refuse_handing_out(asker, &after, why);
        }
    }

    fn refuse_rotation(&self, asker: &Asker, ask: &Ask, number: usize, why: &mut BTreeSet<Why>) {
        let key = &self.keys[number];
        // The legacy key has no other way on.
        if key.disabled && !key.legacy {
            why.insert(Why::Disabled);
        }
        if self.refuses_owner(key.tenant, key.owner, key.created) {
            why.insert(Why::OwnerRemoved);
        }
        if key.imported {
            why.insert(Why::Imported);
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
        self.refuse_handing_out(asker, &old, why);
        if self.exceeds(asker, self.reach(&old), self.successor_end(&old)) {
            why.insert(Why::Exceeds);
        }
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

    fn refuse_handing_out(&self, asker: &Asker, key: &Key, why: &mut BTreeSet<Why>) {
        // A stranger is handed all that the key may ever reach, and what its owner may manage.
        let own = key.owner.is_some() && key.owner == asker.principal;
        let scopes = if own { self.reach(key) } else { key.scopes };
        let rows = [key.tenant, 0].map(|above| key.owner.map(|owner| (above, owner)));
        let rows = rows.iter().enumerate().filter_map(|(n, row)| {
            let row = row.as_ref()?;
            // The organisation stands above its project alone.
            (n == 0 || key.tenant == 1).then(|| self.owners.get(row))?
        });
        let stronger = rows.filter_map(|row| row.role).any(|role| {
            asker.role != Some(role)
                && match role {
                    "admin" | "support" => true,
                    "developer" => asker.role != Some("admin"),
                    _ => false,
                }
        });
        if stronger || self.exceeds(asker, scopes, key.expires) {
            why.insert(Why::Exceeds);
        }
    }

    fn asker_reach(&self, asker: &Asker) -> Mask {
        asker
            .role
            .map_or(asker.reach, |role| asker.reach & ceiling(role))
    }

    fn exceeds(&self, asker: &Asker, scopes: Mask, end: Option<Timestamp>) -> bool {
        let outlives = asker
            .expires
            .is_some_and(|own| end.is_none_or(|end| end > own));
        outlives || scopes & !self.asker_reach(asker) != 0
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

    /// Does what an accepted command does; tells whether that changed anything.
    pub(super) fn apply(&mut self, asker: &Asker, ask: &Ask, given: Given) -> bool {
        let before = self.clone();
        let Given { made, provisioned } = given;
        let now = self.now();
        if let Ask::Create { tenant, .. } | Ask::Import { tenant, .. } | Ask::Provision { tenant } =
            ask
        {
            self.known.insert(*tenant);
            for (id, secret) in provisioned {
                let key = self.key(id, secret, *tenant, None, mask(["reports:read"]), None);
                self.keys.push(Key {
                    legacy: true,
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
                if let (Some(owner), Some(role)) = (asker.principal, asker.role) {
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
                let key = &mut self.keys[*key];
                if let Some(scopes) = scopes {
                    key.named = Some(scopes.iter().copied().collect());
                }
                key.scopes = scopes
                    .as_ref()
                    .map_or(key.scopes, |new| mask(new.iter().copied()));
                key.expires = end.unwrap_or(key.expires);
            }
            Ask::Revoke { key } => self.revoke(*key),
            Ask::Disable { key } => self.keys[*key].disabled = true,
            Ask::Enable { key } => self.keys[*key].disabled = false,
            Ask::Delete { key } => {
                self.release(*key);
                self.keys[*key].deleted = true;
            }
            Ask::Rotate { key, mode } => self.rotate(*key, *mode, id, secret, true),
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
                // One row, where it was asked for, holds for all below.
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
        let changed = *self != before;
        if changed {
            self.newest = now;
        }
        changed
    }

    /// Notes that a key was used, if it works.
    pub(super) fn used(&mut self, number: usize) {
        let unused = self.keys[number]
            .replaces
            .filter(|_| !self.keys[number].used);
        let (Some(old), Some(_)) = (unused, self.sees(number)) else {
            return;
        };
        let now = self.now();
        self.keys[number].used = true;
        self.begin_grace(old, number);
        self.newest = now;
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
            imported: false,
            replaces: None,
            used: false,
            replaced: None,
        }
    }

    /// The tenant, and those below it that the asker reaches and that have live keys concerned.
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

    fn end_all(&mut self, tenant: usize, concerned: impl Fn(&Key) -> bool) {
        for number in self.live_in(tenant) {
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

    /// An unused successor that ends gives its place back.
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
        let end = self.now().saturating_add(grace);
        let key = &mut self.keys[number];
        if grace.is_zero() {
            key.revoked = true;
        } else {
            key.expires = Some(key.expires.map_or(end, |own| own.min(end)));
        }
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
            Mode::FirstUse(_) => {}
        }
        if let Some(before) = old.replaces {
            // Rotating a successor says that somebody holds it.
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

    /// Ends the oldest grace while more than twice the cap are live.
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
