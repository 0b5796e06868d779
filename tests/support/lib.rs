//! Helpers that the test programs share: a service with a manual clock, servers, child processes, and stores
//! that fail.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]
#![allow(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::should_implement_trait,
    reason = "only the tests of this workspace use this crate"
)]

pub mod captured;
pub mod cc;
pub mod example;
#[cfg(feature = "sqlite")]
pub mod folder;
pub mod gated;
pub mod pairs;
#[cfg(feature = "postgres")]
pub mod pgbouncer;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod process;
#[cfg(feature = "postgres")]
pub mod raw;
#[cfg(feature = "metrics")]
pub mod recorder;
pub mod served;
pub mod server_time;
pub mod turns;
#[cfg(feature = "postgres")]
pub mod wire;

use std::num::NonZeroU32;
use std::sync::Arc;

use keyward::command::{CommandId, Created};
use keyward::key::{Author, ClassName, Environment};
use keyward::pepper::{Pepper, PepperId};
use keyward::policy::{ActiveKeyCap, Policies, Policy, PolicySpec};
use keyward::store::{KeyStore, MemoryStore, NodeProcess, tables_version};
use keyward::{
    Actor, CommandError, CreateKey, Denial, Keyward, ManualClock, Need, PepperRing, PrincipalId,
    Role, Scope, TenantId, Timestamp, profiles,
};

pub const START: &str = "2026-01-01T00:00:00Z";

/// A service on an in-memory store, with a clock that the test moves.
pub struct TestService {
    pub keys: Keyward,
    pub clock: Arc<ManualClock>,
    pub store: MemoryStore,
}

impl TestService {
    /// Starts a service on a backup of the store, as an operator does after the original was lost.
    pub fn restored(&self, backup: &MemoryStore, policies: impl Into<Policies>) -> Keyward {
        node(backup.clone(), &self.clock, policies)
    }

    pub fn new() -> Self {
        Self::with_policy(profiles::standard())
    }

    pub fn with_policy(spec: PolicySpec) -> Self {
        Self::with_policies(Policy::new(spec).unwrap())
    }

    pub fn with_policies(policies: impl Into<Policies>) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let keys = node(store.clone(), &clock, policies);
        Self { keys, clock, store }
    }

    /// Starts a service that counts uses, and keeps the counts in its store.
    pub fn metered(spec: PolicySpec) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let builder = Keyward::builder(store.clone(), peppers())
            .policy(Policy::new(spec).unwrap())
            .clock(clock.clone())
            .registry(store.clone())
            .usage(store.clone());
        let keys = wait(builder.build()).unwrap();
        Self { keys, clock, store }
    }

    /// Starts another node, which has the same store and the same clock as the first node.
    pub fn another_node(&self, policies: impl Into<Policies>) -> Keyward {
        node(self.store.clone(), &self.clock, policies)
    }

    pub fn create(&self, actor: &Actor, key: CreateKey) -> Result<Created, CommandError> {
        wait(self.keys.create(actor, key))
    }

    /// Creates a key of the tenant `acme` with the scope `reports:read`, as the user `alice`.
    pub fn some_key(&self) -> Created {
        self.create(&admin(), reader("some key")).unwrap()
    }
}

pub fn node(
    store: impl KeyStore,
    clock: &Arc<ManualClock>,
    policies: impl Into<Policies>,
) -> Keyward {
    let builder = Keyward::builder(store, peppers())
        .policy(policies)
        .clock(clock.clone());
    wait(builder.build()).unwrap()
}

pub fn peppers() -> PepperRing {
    PepperRing::new(pepper("p1", 1))
}

/// Returns the process of a node with the default bound and the peppers of [`peppers`].
pub fn process() -> NodeProcess {
    let pepper = peppers().current().id().clone();
    NodeProcess {
        version: "0.1.0".to_owned(),
        tables: tables_version(),
        started: at(START),
        bound: std::time::Duration::from_secs(10),
        peppers: vec![pepper.clone()],
        pepper,
    }
}

pub fn pepper(id: &str, byte: u8) -> Pepper {
    Pepper::new(PepperId::new(id).unwrap(), &[byte; 32]).unwrap()
}

/// Replaces the policies in use by `policy`, in the next version.
pub fn revise(keys: &Keyward, policy: Policy) {
    let tenant = keyward::TenantId::new("acme").unwrap();
    let version = keys.policies().of(&tenant).spec().version + 1;
    let spec = PolicySpec::from(policy).with(|spec| spec.version = version);
    wait(keys.set_policies(Policy::new(spec).unwrap())).unwrap();
}

pub fn wait<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

pub fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub fn tenant(path: &str) -> TenantId {
    TenantId::new(path).unwrap()
}

pub fn who(principal: &str) -> PrincipalId {
    PrincipalId::new(principal).unwrap()
}

/// Returns the author of a change that a user made without a key.
pub fn author(principal: &str) -> Author {
    Author::Principal(who(principal))
}

pub fn class(name: &str) -> ClassName {
    ClassName::new(name).unwrap()
}

pub fn environment(name: &str) -> Environment {
    Environment::new(name).unwrap()
}

pub fn scope(text: &str) -> Scope {
    Scope::new(text).unwrap()
}

pub fn command(id: &str) -> CommandId {
    CommandId::new(id).unwrap()
}

pub fn actor(path: &str, principal: &str, role: Role) -> Actor {
    Actor::new(tenant(path), who(principal), role)
}

/// Returns the user `alice` as an actor with the role `admin` in the tenant `acme`.
pub fn admin() -> Actor {
    actor("acme", "alice", Role::ADMIN)
}

/// Returns the application itself as an actor in the tenant `acme`.
pub fn host() -> Actor {
    Actor::application(tenant("acme"))
}

pub fn reader(name: &str) -> CreateKey {
    CreateKey::new(name).scope("reports:read")
}

pub fn reading() -> Need {
    Need::scope("reports:read").unwrap()
}

/// Returns the standard policy, but with a cap of `limit` active keys.
pub fn capped(limit: u32) -> PolicySpec {
    let cap = ActiveKeyCap::new(NonZeroU32::new(limit).unwrap());
    profiles::standard().with(|spec| spec.caps = vec![cap])
}

/// Returns the reason for which a command was denied. Panics if the command succeeded or failed otherwise.
#[track_caller]
pub fn denied<T: std::fmt::Debug>(result: Result<T, CommandError>) -> Denial {
    match result.unwrap_err() {
        CommandError::Denied(denied) => denied,
        other => panic!("expected a denied command, got {other:?}"),
    }
}

/// Returns a forged token, with the key id of the given token and a valid checksum, but with another secret.
pub fn with_other_secret(token: &str) -> String {
    let before = &token[..token.len() - 6];
    let (kept, last) = before.split_at(before.len() - 1);
    let forged = format!("{kept}{}", if last == "A" { 'B' } else { 'A' });
    let checksum = keyward::token::checksum(&forged);
    forged + &checksum
}

/// Returns tokens of keys that do not exist.
pub fn strangers(count: usize) -> Vec<String> {
    let own = TestService::new().some_key();
    let token = own.secret.expose();
    let id = keyward::token::parse(token.as_bytes()).unwrap().id();
    let other = |n: usize| {
        let other = keyward::KeyId::from_u128(id.to_u128() ^ ((n as u128 + 1) << 8));
        let forged = token[..token.len() - 6].replace(&id.to_string(), &other.to_string());
        let checksum = keyward::token::checksum(&forged);
        forged + &checksum
    };
    (0..count).map(other).collect()
}

/// Returns everything that a store contains as text, in every stored form. A test can then search it for
/// secrets.
pub fn dump(store: &MemoryStore) -> String {
    use keyward::store::{AuditQuery, Row};

    let limit = std::num::NonZeroUsize::new(10_000).unwrap();
    let rows = wait(store.scan(None, limit)).unwrap().rows;
    let query = AuditQuery::all().with(|query| query.limit = limit);
    let trail = wait(store.audit(&query)).unwrap().rows;
    let mut dump = format!("{store:?}\n{rows:?}\n{trail:?}\n");
    for change in &rows {
        if let Row::Key(record) = &change.row {
            dump += &String::from_utf8_lossy(&record.to_bytes());
        }
    }
    for row in &trail {
        dump += &String::from_utf8_lossy(&row.entry.to_bytes());
    }
    dump
}

/// Returns the secret part of a token, without the prefix, the id and the checksum.
pub fn secret_part(token: &str) -> &str {
    let id = keyward::token::parse(token.as_bytes()).unwrap();
    &token[id.prefix().len() + id.id().to_string().len()..token.len() - 6]
}

/// Returns the keys that the actor `by` sees in a list of its own tenant.
pub fn listed(world: &TestService, by: &Actor) -> Vec<keyward::KeyInfo> {
    let query = world.keys.query(by.tenant());
    wait(world.keys.list(by, &query)).unwrap().keys
}

/// Returns the actions on a key in the audit trail of a tenant, oldest first.
pub fn recorded_actions(
    world: &TestService,
    tenant: &TenantId,
    key: keyward::KeyId,
) -> Vec<keyward::audit::Action> {
    let query = keyward::store::AuditQuery::tenant(tenant.clone()).about(key);
    let page = wait(
        world
            .keys
            .audit(&Actor::application(tenant.clone()), &query),
    )
    .unwrap();
    page.rows.into_iter().map(|row| row.entry.action).collect()
}
