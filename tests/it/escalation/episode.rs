//! An episode of the search: other users and the attacker take turns on several nodes over one store.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward::command::{DeleteKey, Expiry, ImportKey, IssuedKey};
use keyward::entropy::SeededEntropy;
use keyward::key::{ClassName, Digest, KeyRecord, Owner};
use keyward::pepper::Pepper;
use keyward::policy::Policy;
use keyward::store::{KeyQuery, KeyStore, Locator, Row};
use keyward::{
    Actor, CommandError, CreateKey, Grant, KeyId, Keyward, ManualClock, Need, PepperRing,
    PrincipalId, Reason, Role, RotateKey, Scope, Timestamp, UpdateKey, days, hours,
};
use keyward_conformance::explore::block_on;
use rand::rngs::ChaCha12Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::policy::{self, ROLES, SCOPES, Verb, role};
use super::potential::{
    ADDRESSES, Acting, ENVIRONMENTS, Handed, Point, Potential, TENANTS, brief, tenant,
};
use super::store::Paused;

thread_local! {
    static ACCEPTED: Cell<usize> = const { Cell::new(0) };
}

/// Returns the number of attacks that were accepted since the last call of this function.
#[allow(dead_code, reason = "used only in builds without an open hole")]
pub(crate) fn accepted() -> usize {
    ACCEPTED.replace(0)
}

/// A secret that the attacker holds.
#[derive(Debug)]
struct Held {
    id: KeyId,
    secret: String,
}

/// A key whose id the attacker knows. The attacker may or may not hold its secret.
#[derive(Clone, Copy, Debug)]
struct Known(KeyId);

pub(crate) struct Episode {
    dice: ChaCha12Rng,
    clock: Arc<ManualClock>,
    store: Arc<Paused>,
    /// Other users send commands to the first node, and the attacker to the other nodes.
    nodes: [Keyward; 3],
    potential: Potential,
    held: Vec<Held>,
    /// Actors made from the attacker's keys. The attacker may keep an actor for any length of time.
    actors: Vec<Actor>,
    known: Vec<Known>,
    /// The role that the application states for bob.
    bob: Role,
    commands: usize,
    imports: usize,
    pub(crate) broken: Option<String>,
}

fn by_whom(acting: Option<&Acting>) -> String {
    acting.map_or("mallory in person".to_owned(), |key| brief(&key.record))
}

fn who(name: &str) -> PrincipalId {
    PrincipalId::new(name).unwrap()
}

/// An attack: the acting key (if any), the command and its target.
struct Attack {
    by: Option<KeyId>,
    what: String,
    /// The reason why the attack must be refused. `None` if it may be accepted.
    wrong: Option<String>,
    accepted: bool,
}

impl Episode {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = ChaCha12Rng::seed_from_u64(seed);
        let policy = policy::draw(&mut dice);
        let start = Timestamp::from_unix_seconds(1_800_000_000).unwrap();
        let clock = Arc::new(ManualClock::at(start));
        let store = Arc::new(Paused::default());
        let node = |number: u64| {
            let pepper = Pepper::new("p1".try_into().unwrap(), &[7; Pepper::MIN_LEN]).unwrap();
            let shared: Arc<dyn KeyStore> = store.clone();
            let builder = Keyward::builder(shared, PepperRing::new(pepper))
                .policy(policy.clone())
                .clock(clock.clone())
                .entropy(SeededEntropy::new(seed * 3 + number));
            block_on(builder.build()).unwrap()
        };
        let nodes = [node(0), node(1), node(2)];
        let given = ROLES.choose_weighted(&mut dice, |name| match *name {
            "admin" => 1,
            "developer" | "ops" => 8,
            _ => 4,
        });
        let given = role(given.unwrap());
        let potential = Potential {
            policy,
            attacker: who("mallory"),
            role: Some(given.clone()),
            ever: BTreeSet::from([given]),
            handed: Vec::new(),
            bob_ever: BTreeSet::from([role("developer")]),
            closed: false,
            ended_by_others: BTreeSet::new(),
        };
        let mut episode = Self {
            dice,
            clock,
            store,
            nodes,
            potential,
            held: Vec::new(),
            actors: Vec::new(),
            known: Vec::new(),
            bob: role("developer"),
            commands: 0,
            imports: 0,
            broken: None,
        };
        let host = Actor::application(tenant(0));
        let keys = &episode.nodes[0];
        for place in [0, 2] {
            block_on(keys.provision_tenant(&Actor::application(tenant(place)), &tenant(place)))
                .unwrap();
        }
        if episode.dice.random_bool(0.7) {
            block_on(episode.nodes[0].provision_tenant(&host, &tenant(1))).unwrap();
        }
        for _ in 0..3 {
            episode.others_create();
        }
        episode.sync();
        episode
    }

    fn policy(&self) -> &Policy {
        &self.potential.policy
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.dice.random_range(0..100) < percent
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        all.choose(&mut self.dice).cloned()
    }

    fn sync(&self) {
        for node in &self.nodes {
            block_on(node.sync()).unwrap();
        }
    }

    fn now(&self) -> Timestamp {
        self.nodes[0].now()
    }

    fn record(&self, id: KeyId) -> Option<KeyRecord> {
        let found = block_on(self.store.find(&Locator::Id(id))).unwrap()?;
        match found.change.row {
            Row::Key(record) => Some(*record),
            _ => None,
        }
    }

    /// Returns the roles stored for the attacker in `tenant` and its ancestors.
    fn stored(&self, tenant: &keyward::TenantId) -> Vec<Role> {
        let select = keyward::store::LoadRequest::owner(who("mallory"));
        let path = std::iter::once(tenant.clone()).chain(tenant.ancestors());
        let views = path.map(|tenant| block_on(self.store.load(&tenant, &select)).unwrap());
        let rows = views.flat_map(|view| view.owners);
        rows.filter_map(|row| row.role).collect()
    }

    fn acting(&self, id: KeyId) -> Option<Acting> {
        let record = self.record(id)?;
        let roles = record.bound.iter().cloned().chain(self.live_roles(&record));
        let roles = roles.collect();
        Some(Acting { record, roles })
    }

    /// Takes one step and returns its description.
    pub(crate) fn step(&mut self) -> String {
        // Each step gets its own instant.
        self.clock.advance(Duration::from_millis(1));
        self.sync();
        let done = match self.dice.random_range(0..100) {
            0..28 => self.others_act(),
            28..34 => {
                let by = self.pick(&[hours(1), days(1), days(8), days(15)]).unwrap();
                self.clock.advance(by);
                format!("a wait of {by:?}")
            }
            _ => self.attack(),
        };
        self.sync();
        done
    }

    // The functions below are actions of other users.

    fn alice(&self) -> Actor {
        Actor::new(tenant(0), who("alice"), role("admin"))
    }

    fn draft(&mut self, place: usize) -> CreateKey {
        let name = self.pick(&["plain", "plain", "wide", "wide", "public", "renewing"]);
        let name = name.unwrap();
        let environment = self.pick(&["live", "test"]).unwrap();
        let mut key = CreateKey::new("key")
            .in_tenant(tenant(place))
            .class(name)
            .environment(environment);
        let scopes: &[&str] = match self.dice.random_range(0..6) {
            0 | 4 => &["*:*"],
            1 => &["a:*", "b:read"],
            2 => &["b:*", "a:read"],
            3 => &["a:read"],
            _ => &["a:*"],
        };
        key = key.scopes(scopes.iter().copied());
        if self.chance(30) {
            key = key.allow_addresses(["10.0.0.0/8"]);
        }
        match self.dice.random_range(0..4) {
            0 => key.expires_in(days(10)),
            1 => key.expires_in(hours(5)),
            _ => key.never_expires(),
        }
    }

    /// Drafts a key with the reach of `record`, varied in at most one dimension and in its class. A draft
    /// that exceeds the actor in several dimensions would only test the first one.
    fn draft_like(&mut self, record: &KeyRecord) -> (usize, CreateKey) {
        let varied = self.dice.random_range(0..8);
        let own = TENANTS
            .iter()
            .position(|path| *path == record.tenant.as_str());
        let place = match varied {
            0 => self.dice.random_range(0..TENANTS.len()),
            _ => own.unwrap_or_default(),
        };
        let class = self.pick(&policy::CLASSES).unwrap();
        let class = match varied {
            1 => record.class.as_str(),
            _ => class,
        };
        let mut key = CreateKey::new("like").in_tenant(tenant(place)).class(class);
        key = match varied {
            2 => key.environment(self.pick(&["live", "test"]).unwrap()),
            _ => key.environment(record.environment.as_str()),
        };
        key = match varied {
            3 => key.scopes(["*:*"]),
            _ => key.scopes(record.scopes.iter().map(|scope| scope.as_str())),
        };
        let networks: Vec<_> = record.allowlist.iter().map(ToString::to_string).collect();
        key = match varied {
            4 => key,
            _ => key.allow_addresses(networks.iter().map(String::as_str)),
        };
        match (varied, record.expires_at) {
            (5, _) | (_, None) => (place, key.never_expires()),
            (_, Some(end)) => (place, key.expires_at(end)),
        }
    }

    /// Lets another user create a key, which may be handed to the attacker.
    fn others_create(&mut self) {
        let place = self.dice.random_range(0..2);
        let mut key = self.draft(place);
        let (by, in_person) = match self.dice.random_range(0..5) {
            0 => (Actor::new(tenant(0), who("bob"), self.bob.clone()), true),
            1 => {
                key = key.owned_by(who("bob"), self.bob.clone());
                (self.alice(), false)
            }
            2 => {
                let Some(role) = self.potential.role.clone() else {
                    return;
                };
                key = key.owned_by(who("bob"), self.bob.clone());
                key = key.delivered_to(who("mallory"), role);
                (Actor::application(tenant(0)), false)
            }
            _ => (self.alice(), true),
        };
        let Ok(created) = block_on(self.nodes[0].create(&by, key)) else {
            return;
        };
        self.known.push(Known(created.id));
        if self.chance(50) {
            let secret = created.secret.expose().to_owned();
            self.hand_over(created.id, secret, in_person);
        }
    }

    fn hand_over(&mut self, id: KeyId, secret: String, follows: bool) {
        self.sync();
        let Some(record) = self.record(id) else {
            return;
        };
        let points = self.points(&secret);
        let mut roles = record.bound.clone();
        roles.extend(self.live_roles(&record));
        // A key that was narrower than its owner's role when it was handed over can never manage keys.
        if record.owner.principal().is_none() || !record.manages {
            roles.clear();
        }
        self.potential.handed.push(Handed {
            record,
            points,
            roles,
            follows,
        });
        self.held.push(Held { id, secret });
    }

    /// Returns the roles stored for the owner of `record` in the record's tenant and its ancestors.
    fn live_roles(&self, record: &KeyRecord) -> Vec<Role> {
        let Some(owner) = record.owner.principal() else {
            return Vec::new();
        };
        let select = keyward::store::LoadRequest::owner(owner.clone());
        let path = std::iter::once(record.tenant.clone()).chain(record.tenant.ancestors());
        let views = path.map(|tenant| block_on(self.store.load(&tenant, &select)).unwrap());
        let rows = views.flat_map(|view| view.owners);
        rows.filter_map(|row| row.role).collect()
    }

    fn others_act(&mut self) -> String {
        let key = self.pick(&self.known.clone());
        let keys = self.nodes[0].clone();
        let host = Actor::application(tenant(0));
        match self.dice.random_range(0..11) {
            0..3 => {
                self.others_create();
                "others made a key".to_owned()
            }
            3 => {
                let given = role(self.pick(&["developer", "ops", "member", "admin"]).unwrap());
                if given == role("admin") && self.chance(80) {
                    return "nothing".to_owned();
                }
                self.potential.role = Some(given.clone());
                self.potential.ever.insert(given.clone());
                if self.chance(70) {
                    for place in 0..3 {
                        let by = Actor::application(tenant(place));
                        let role = given.clone();
                        let _ = block_on(keys.sync_role(&by, &tenant(place), who("mallory"), role));
                    }
                }
                format!("mallory is {given}")
            }
            4 | 5 => {
                let given = role(self.pick(&ROLES).unwrap());
                self.bob = given.clone();
                self.potential.bob_ever.insert(given.clone());
                // Syncs bob's role only in acme/web, or in all three tenants.
                let first = usize::from(self.chance(30));
                for place in first..3 - first {
                    let by = Actor::application(tenant(place));
                    let role = given.clone();
                    let _ = block_on(keys.sync_role(&by, &tenant(place), who("bob"), role));
                }
                format!("bob is {given}")
            }
            6 | 7 => match key {
                Some(Known(id)) => self.narrow(id),
                None => "nothing".to_owned(),
            },
            8 => match key {
                Some(Known(id)) if block_on(keys.enable(&host, id)).is_ok() => {
                    self.potential.ended_by_others.remove(&id);
                    format!("others enabled {id}")
                }
                _ => "nothing".to_owned(),
            },
            9 if self.chance(30) => {
                let place = self.dice.random_range(0..2);
                let owner = self.pick(&["bob", "mallory"]).unwrap();
                let _ = block_on(keys.remove_owner(&host, &tenant(place), who(owner)));
                if owner == "mallory" && place == 0 {
                    self.potential.role = None;
                }
                format!("others removed {owner} from {}", TENANTS[place])
            }
            10 if self.chance(30) => {
                let _ = block_on(keys.close_tenant(&host, &tenant(1)));
                self.potential.closed = true;
                "others closed acme/web".to_owned()
            }
            _ => "nothing".to_owned(),
        }
    }

    /// Lets another user disable, end or narrow a key.
    fn narrow(&mut self, id: KeyId) -> String {
        let keys = self.nodes[0].clone();
        let host = Actor::application(tenant(0));
        let done = match self.dice.random_range(0..4) {
            0 => block_on(keys.revoke(&host, id, Reason::Lost)).is_ok(),
            1 => {
                let change = UpdateKey::new().scopes(["a:read"]);
                let narrows = self
                    .record(id)
                    .is_some_and(|record| record.scopes.allows(&Scope::new("a:read").unwrap()));
                return match narrows && block_on(keys.update(&host, id, change)).is_ok() {
                    true => format!("others narrowed {id}"),
                    false => "nothing".to_owned(),
                };
            }
            _ => block_on(keys.disable(&host, id)).is_ok(),
        };
        if done {
            self.potential.ended_by_others.insert(id);
        }
        format!("others disabled or revoked {id}: {done}")
    }

    // The functions below are actions of the attacker.

    fn keep_actors(&mut self) {
        let addresses = ADDRESSES.map(|address| address.parse::<IpAddr>().unwrap());
        for held in &self.held {
            let need = Need::any().or_publishable().from_address(addresses[0]);
            if let Ok(grant) = self.nodes[1].verify(&held.secret, &need) {
                self.actors.push(grant.actor());
            }
        }
        // Drops the oldest actors, to limit their number.
        let many = self.actors.len().saturating_sub(24);
        self.actors.drain(..many);
    }

    fn actor(&mut self) -> Option<Actor> {
        if self.chance(40)
            && let Some(role) = self.potential.role.clone()
        {
            let place = usize::from(self.chance(20));
            return Some(Actor::new(tenant(place), who("mallory"), role));
        }
        self.pick(&self.actors.clone())
    }

    fn attack(&mut self) -> String {
        if self.chance(40) {
            self.keep_actors();
        }
        let Some(actor) = self.actor() else {
            return "nothing".to_owned();
        };
        // Lets another user act between the attacker's decision and its commit.
        let narrowed = Arc::new(AtomicBool::new(false));
        if self.chance(30)
            && let Some(acting) = actor.key_id()
        {
            let other = self.nodes[0].clone();
            let what = self.dice.random_range(0..3);
            let owner = actor.principal().cloned();
            let home = actor.tenant().clone();
            let did = narrowed.clone();
            self.store.pause(move || {
                did.store(true, Ordering::SeqCst);
                let host = Actor::application(home.clone());
                let _ = block_on(async {
                    match (what, owner) {
                        (0, _) => other.disable(&host, acting).await.map(drop),
                        (1, Some(owner)) if owner.as_str() == "bob" => {
                            other.remove_owner(&host, &home, owner).await.map(drop)
                        }
                        _ => other.revoke(&host, acting, Reason::Lost).await.map(drop),
                    }
                });
            });
        }
        let before = actor.key_id().and_then(|id| self.record(id));
        let attack = self.give(&actor);
        self.store.go_on();
        if narrowed.load(Ordering::SeqCst) {
            self.potential.ended_by_others.extend(actor.key_id());
        }
        if attack.accepted {
            ACCEPTED.set(ACCEPTED.get() + 1);
        }
        let what = format!("{} by {:?}", attack.what, attack.by.or(None));
        if attack.accepted && self.broken.is_none() {
            self.broken = attack
                .wrong
                .or_else(|| self.dead(before.as_ref(), &attack.what));
        }
        what
    }

    /// Returns an error if the acting key no longer worked when its command committed.
    fn dead(&self, acting: Option<&KeyRecord>, what: &str) -> Option<String> {
        let acting = acting?;
        // A command on the acting key itself may end that key. The key counts as working, because the command
        // was authorized before that.
        let itself = what.contains(&acting.id.to_string())
            || what.contains("cancel")
            || what.contains("remove")
            || what.contains("close");
        if itself {
            return None;
        }
        let works = self.record(acting.id).is_some_and(|record| {
            record.status(self.now()) != keyward::key::Status::Disabled
                && record.is_live(self.now())
        });
        (!works).then(|| format!("key {} acted and does not work", acting.id))
    }

    fn give(&mut self, actor: &Actor) -> Attack {
        let node = self.dice.random_range(1..3);
        let keys = self.nodes[node].clone();
        let by = actor.key_id();
        let acting = by.and_then(|id| self.acting(id));
        let target = self.pick(&self.known.clone()).map(|known| known.0);
        let target = target.and_then(|id| self.record(id));
        self.commands += 1;
        let attack = |what: String, accepted: bool, right: bool| Attack {
            by,
            wrong: (!right)
                .then(|| format!("{what} was accepted, by {}", by_whom(acting.as_ref()))),
            what,
            accepted,
        };
        let stored = target.as_ref().map(|target| self.stored(&target.tenant));
        let stored = stored.unwrap_or_default();
        let potential = |episode: &Self, verb, class: &ClassName, owner: &Owner| {
            let potential = &episode.potential;
            potential.may(acting.as_ref(), verb, class, owner, &stored)
        };
        let choice = self.dice.random_range(0..21);
        if choice < 7 {
            return self.create(actor, &keys, acting.as_ref());
        }
        if choice == 20 {
            return self.look(actor, &keys, acting.as_ref());
        }
        if choice >= 18 {
            return self.administer(actor, &keys, acting.as_ref());
        }
        let Some(target) = target else {
            return attack("nothing".to_owned(), false, true);
        };
        let (id, class, owner) = (target.id, target.class.clone(), target.owner.clone());
        let itself = acting.as_ref().is_some_and(|key| key.record.id == id);
        match choice {
            7..10 => {
                let how = match self.dice.random_range(0..3) {
                    0 => RotateKey::immediate(),
                    1 => RotateKey::grace(hours(2)),
                    _ => RotateKey::on_first_use(hours(2)),
                };
                let done = block_on(keys.rotate(actor, id, how));
                let right = itself || potential(self, Verb::Rotate, &class, &owner);
                let accepted = done.is_ok();
                if let Ok(rotated) = done {
                    self.take(rotated.id, rotated.secret.expose());
                }
                attack(format!("rotate {id}"), accepted, right)
            }
            10..13 => {
                let change = UpdateKey::new();
                let change = match self.dice.random_range(0..5) {
                    0 => change.scopes(["*:*"]),
                    1 => change.scopes(["a:*", "b:read"]),
                    2 => change.scopes(["b:*", "a:read"]),
                    3 => change.allow_addresses([]),
                    _ => change.expiry(Expiry::Never),
                };
                let done = block_on(keys.update(actor, id, change)).is_ok();
                let right = potential(self, Verb::Update, &class, &owner);
                attack(format!("update {id}"), done, right)
            }
            13 => {
                let done = block_on(keys.enable(actor, id)).is_ok();
                let right = potential(self, Verb::Update, &class, &owner);
                attack(format!("enable {id}"), done, right)
            }
            14 => {
                let done = block_on(keys.disable(actor, id)).is_ok();
                let right = potential(self, Verb::Update, &class, &owner);
                attack(format!("disable {id}"), done, right)
            }
            15 => {
                let delete = self.chance(30);
                let done = match delete {
                    true => block_on(keys.delete(actor, id, DeleteKey::plain())).is_ok(),
                    false => block_on(keys.revoke(actor, id, Reason::Lost)).is_ok(),
                };
                let right = potential(self, Verb::Revoke, &class, &owner);
                attack(format!("end {id}"), done, right)
            }
            16 => {
                let done = block_on(keys.cancel_rotation(actor, id)).is_ok();
                let right = potential(self, Verb::Rotate, &class, &owner);
                attack(format!("cancel the rotation of {id}"), done, right)
            }
            _ => {
                let done = block_on(keys.replace_lost(actor, id));
                // A key that rotated itself may ask again for its successor's secret, as if the response was
                // lost.
                let before = target.predecessor.as_ref().map(|old| old.key);
                let own = by.is_some() && before == by;
                let right = own || potential(self, Verb::Create, &class, &owner);
                let accepted = done.is_ok();
                if let Ok(created) = done {
                    self.take(created.id, created.secret.expose());
                }
                attack(format!("replace {id}"), accepted, right)
            }
        }
    }

    fn create(&mut self, actor: &Actor, keys: &Keyward, acting: Option<&Acting>) -> Attack {
        let mut place = self.dice.random_range(0..TENANTS.len());
        let mut key = self.draft(place);
        if let Some(acting) = acting
            && self.chance(50)
        {
            (place, key) = self.draft_like(&acting.record);
        }
        let stated = role(self.pick(&ROLES).unwrap());
        let whose = self.dice.random_range(0..6);
        match whose {
            0 => key = key.owned_by(who("bob"), stated),
            1 => key = key.owned_by(who("alice"), stated),
            2 => key = key.owned_by_tenant(),
            _ => {}
        }
        let import = self.chance(15);
        let stored = self.stored(&tenant(place));
        let fresh = block_on(
            self.store
                .load(&tenant(place), &keyward::store::LoadRequest::none()),
        )
        .unwrap()
        .tenant
        .is_none();
        let made: Result<(KeyId, String, Vec<IssuedKey>), CommandError> = if import {
            self.imports += 1;
            let secret = format!("imported-{}", self.imports);
            let import = ImportKey::sha256(Digest::sha256(&secret), key);
            block_on(keys.import(actor, import)).map(|made| (made.id, secret, made.provisioned))
        } else {
            block_on(keys.create(actor, key)).map(|made| {
                let secret = made.secret.expose().to_owned();
                (made.id, secret, made.provisioned)
            })
        };
        let accepted = made.is_ok();
        let mut right = true;
        let what = format!("create in {} (import: {import})", TENANTS[place]);
        if let Ok((id, secret, provisioned)) = made {
            self.take(id, &secret);
            for key in provisioned {
                if let Some(token) = &key.token {
                    self.take(key.id, token.expose());
                }
            }
            let record = self.record(id).unwrap();
            let administers = self.potential.administers(acting);
            right = self
                .potential
                .may(acting, Verb::Create, &record.class, &record.owner, &stored)
                && (administers || (!fresh && !import && whose != 2));
        }
        Attack {
            by: actor.key_id(),
            wrong: (!right).then(|| format!("{what} was accepted, by {}", by_whom(acting))),
            what,
            accepted,
        }
    }

    fn administer(&mut self, actor: &Actor, keys: &Keyward, acting: Option<&Acting>) -> Attack {
        let place = self.dice.random_range(0..TENANTS.len());
        let right = self.potential.administers(acting);
        let given = role(self.pick(&ROLES).unwrap());
        let owner = self.pick(&["mallory", "bob"]).unwrap();
        let stored = |place: usize| {
            let select = keyward::store::LoadRequest::owner(who(owner));
            let view = block_on(self.store.load(&tenant(place), &select)).unwrap();
            view.owners.first().map(|row| row.role.clone())
        };
        let (before, above) = (stored(place), stored(0));
        let (what, accepted, right) = match self.dice.random_range(0..6) {
            0 => {
                let done = block_on(keys.remove_owner(actor, &tenant(place), who(owner))).is_ok();
                (format!("remove {owner} in {}", TENANTS[place]), done, right)
            }
            1 if self.chance(20) => {
                let done = block_on(keys.close_tenant(actor, &tenant(place))).is_ok();
                (format!("close {}", TENANTS[place]), done, right)
            }
            2 => {
                let done = block_on(keys.provision_tenant(actor, &tenant(place))).is_ok();
                (format!("provision {}", TENANTS[place]), done, right)
            }
            _ => {
                let change = given.clone();
                let there = tenant(place);
                let done = keys.change_owner_role(actor, &there, who(owner), change);
                let done = block_on(done).is_ok();
                // An administrator may lower a role, and may raise it up to its own role.
                let own = self.potential.role.clone().filter(|_| acting.is_none());
                let lowers = match &before {
                    Some(Some(before)) => policy::no_more(self.policy(), &given, before),
                    Some(None) => false,
                    // If the owner has no role in this tenant yet but has one in the tenant above, a new role
                    // counts as lower.
                    None => place == 1 && matches!(above, Some(Some(_))),
                };
                let raises = own.is_some_and(|own| policy::no_more(self.policy(), &given, &own));
                let fits = lowers || raises || before == Some(Some(given.clone()));
                (
                    format!("make {owner} {given} in {}", TENANTS[place]),
                    done,
                    right && fits,
                )
            }
        };
        Attack {
            by: actor.key_id(),
            wrong: (!right).then(|| format!("{what} was accepted, by {}", by_whom(acting))),
            what,
            accepted,
        }
    }

    fn look(&mut self, actor: &Actor, keys: &Keyward, acting: Option<&Acting>) -> Attack {
        let mut query = KeyQuery::all(self.now());
        query.tenant = Some(actor.tenant().clone());
        query.below = true;
        let listed = block_on(keys.list(actor, &query));
        let trail = block_on(keys.audit(actor, &keyward::store::AuditQuery::all())).is_ok();
        let mut wrong = None;
        if trail && !self.potential.administers(acting) {
            wrong = Some(format!("the trail was read, by {}", by_whom(acting)));
        }
        let accepted = listed.is_ok();
        for key in listed.map(|listed| listed.keys).unwrap_or_default() {
            if !self.potential.may(
                acting,
                Verb::Look,
                &key.class,
                &key.owner,
                &self.stored(&key.tenant),
            ) {
                wrong = Some(format!("{} was looked at, by {}", key.id, by_whom(acting)));
            }
        }
        Attack {
            by: actor.key_id(),
            what: "look".to_owned(),
            wrong,
            accepted,
        }
    }

    fn take(&mut self, id: KeyId, secret: &str) {
        self.known.push(Known(id));
        self.held.push(Held {
            id,
            secret: secret.to_owned(),
        });
    }

    // The functions below check all uses of the attacker's secrets.

    fn points(&self, secret: &str) -> BTreeSet<Point> {
        let mut points = BTreeSet::new();
        let addresses = ADDRESSES.map(|address| address.parse::<IpAddr>().unwrap());
        for (t, _) in TENANTS.iter().enumerate() {
            for (e, environment) in ENVIRONMENTS.iter().enumerate() {
                for (a, address) in addresses.iter().enumerate() {
                    let need = Need::any()
                        .or_publishable()
                        .for_tenant(tenant(t))
                        .in_environment(environment.clone())
                        .from_address(*address);
                    // All nodes must give the same verdict, so each use of a key is checked on only one node.
                    let grant = self.nodes[(t + a) % 3].verify(secret, &need);
                    let allowed =
                        |grant: &Grant, scope: &str| grant.allows(&Scope::new(scope).unwrap());
                    if let Ok(grant) = grant {
                        let scopes = SCOPES.iter().enumerate();
                        let scopes = scopes.filter(|(_, scope)| allowed(&grant, scope));
                        points.extend(scopes.map(|(s, _)| (t, e, s, a)));
                    }
                }
            }
        }
        points
    }

    /// Checks that every use of the attacker's secrets lies within the rights that others gave the attacker.
    pub(crate) fn check(&self) -> Result<(), String> {
        let now = self.now();
        for Held { id, secret } in &self.held {
            let Some(key) = self.acting(*id) else {
                continue;
            };
            for point in self.points(secret) {
                let scope = Scope::new(SCOPES[point.2]).unwrap();
                if !self.potential.covers(&key, point, &scope, now) {
                    let (t, e, _, a) = point;
                    return Err(format!(
                        "a secret verifies for {scope} in {} ({:?}) from {}: {}\n{}",
                        TENANTS[t],
                        ENVIRONMENTS[e],
                        ADDRESSES[a],
                        brief(&key.record),
                        self.potential
                    ));
                }
            }
        }
        Ok(())
    }
}
