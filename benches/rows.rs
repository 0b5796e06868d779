//! Measures how a follower applies rows of owners and tenants, and what a create costs beside many keys of another
//! class. The time per row, or per create, must not depend on the number of rows, so each ratio compares the
//! largest run with the smallest.
//!
//! `cargo bench --package keyward-benches --bench rows -- [--quick] [--json] [--only
//! roles,closings,others,above,bulk,creates]`
//!
//! The run fails if a goal is missed.
#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read the machine's clock to measure, not to decide"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]
#![allow(
    clippy::cast_precision_loss,
    reason = "counts stay far below 2^52, which f64 represents exactly"
)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use keyward::clocks::SystemClock;
use keyward::key::{Author, Owner, Stamp};
use keyward::node::Replica;
use keyward::policy::{ActiveKeyCap, Policy};
use keyward::store::{
    Commit, CommitTag, Effects, KeyStore, MemoryStore, OwnerRecord, Revision, SqliteStore,
    TenantRecord,
};
use keyward::{
    Actor, CreateKey, Keyward, PepperRing, PrincipalId, Reason, Role, TenantId, profiles,
};
use pollster::block_on;

use shared::keys::{KeyKind, Keys};
use shared::maker::{CommitGenerator, admin, keyward, new_key, tenant};
use shared::table::{BenchOptions, Goal, Table};

/// Numbers of tenants and owners: each run has ten times as many as the run before.
const SIZES: [u64; 3] = [2_000, 20_000, 200_000];

/// The largest growth of the time per row from the smallest run to the largest: 4. Sorted maps and cache
/// misses account for it; quadratic work would show as 100.
const MOST_GROWTH: f64 = 4.0;

/// A store of made-up rows, and the follower that is measured.
struct Followed {
    keys: Keys,
    store: Arc<MemoryStore>,
    replica: Arc<Replica>,
}

impl Followed {
    fn new(most: u64) -> Self {
        let store = Arc::new(MemoryStore::new());
        let replica = Arc::new(Replica::new(store.clone(), Arc::new(SystemClock)));
        let keys = Keys::new(KeyKind::Secret, most);
        Self {
            keys,
            store,
            replica,
        }
    }

    fn stamp(&self) -> Stamp {
        let (at, by) = (self.keys.first(), Author::Application);
        Stamp { at, by }
    }

    /// Commits rows of one tenant.
    fn commit(&self, tenant: &TenantId, expected: Revision, effects: Effects) -> Revision {
        let commit = Commit {
            tenant: tenant.clone(),
            epoch: None,
            expected,
            guards: Vec::new(),
            tag: CommitTag(1),
            decided_at: self.keys.first(),
            effects,
        };
        block_on(self.store.commit(commit)).unwrap()
    }

    /// Commits a key of `owner` in each tenant.
    fn add_keys(&self, places: &[(TenantId, PrincipalId)]) -> Vec<Revision> {
        let put = |(number, (tenant, owner)): (u64, &(TenantId, PrincipalId))| {
            let record = self.keys.record(number, 0).with(|key| {
                key.tenant = tenant.clone();
                key.owner = Owner::Principal(owner.clone());
            });
            let puts = vec![record];
            let effects = Effects {
                puts,
                ..Effects::default()
            };
            self.commit(tenant, Revision::ZERO, effects)
        };
        (0..).zip(places).map(put).collect()
    }

    fn lower(&self, (tenant, owner): &(TenantId, PrincipalId), expected: Revision) {
        let row = OwnerRecord {
            tenant: tenant.clone(),
            owner: owner.clone(),
            role: Some(Role::SUPPORT),
            removed_at: None,
            raised_from: Default::default(),
            updated: self.stamp(),
        };
        let owners = vec![row];
        self.commit(
            tenant,
            expected,
            Effects {
                owners,
                ..Effects::default()
            },
        );
    }

    fn close(&self, tenant: &TenantId, expected: Revision) {
        let row = TenantRecord {
            tenant: tenant.clone(),
            provisioned: Some(self.stamp()),
            closed: Some(self.stamp()),
            sweeps: Vec::new(),
            updated: self.stamp(),
            time_repair: None,
        };
        let tenant_row = Some(row);
        self.commit(
            tenant,
            expected,
            Effects {
                tenant: tenant_row,
                ..Effects::default()
            },
        );
    }

    /// Returns the time of one sync, in nanoseconds.
    fn sync(&self) -> f64 {
        let began = Instant::now();
        block_on(self.replica.sync()).unwrap();
        began.elapsed().as_nanos() as f64
    }
}

fn principal(number: u64) -> PrincipalId {
    PrincipalId::new(format!("user-{number}")).unwrap()
}

fn below(number: u64) -> TenantId {
    tenant(&format!("org/tenant-{number:07}"))
}

/// One principal owns a key in each tenant of an organization, and the role is lowered in each.
fn roles(count: u64) -> f64 {
    let followed = Followed::new(count);
    let places: Vec<_> = (0..count)
        .map(|number| (below(number), principal(0)))
        .collect();
    let revisions = followed.add_keys(&places);
    followed.sync();
    for (place, revision) in places.iter().zip(revisions) {
        followed.lower(place, revision);
    }
    followed.sync() / count as f64
}

/// Each tenant of an organization has an owner of its own, and each is closed.
fn closings(count: u64) -> f64 {
    let followed = Followed::new(count);
    let places: Vec<_> = (0..count)
        .map(|number| (below(number), principal(number)))
        .collect();
    let revisions = followed.add_keys(&places);
    followed.sync();
    for ((tenant, _), revision) in places.iter().zip(revisions) {
        followed.close(tenant, revision);
    }
    followed.sync() / count as f64
}

/// One hundred tenants are closed beside the owners of other customers.
fn others(count: u64) -> f64 {
    const CLOSED: u64 = 100;
    let followed = Followed::new(count);
    let place = |number| (tenant(&format!("other-{number:07}")), principal(number));
    let places: Vec<_> = (0..count).map(place).collect();
    followed.add_keys(&places);
    followed.sync();
    for number in 0..CLOSED {
        followed.close(&below(number), Revision::ZERO);
    }
    followed.sync() / CLOSED as f64
}

/// The organization's own row lowers the role of its owner, and then closes the organization.
fn above(count: u64) -> f64 {
    let followed = Followed::new(count);
    let places: Vec<_> = (0..count)
        .map(|number| (below(number), principal(number % 2)))
        .collect();
    followed.add_keys(&places);
    followed.sync();
    let org = tenant("org");
    followed.lower(&(org.clone(), principal(0)), Revision::ZERO);
    let head = Revision(count + 1);
    followed.close(&org, head);
    followed.sync() / count as f64
}

/// One bulk command over every tenant of an organization, with the sync of another node. The time per tenant
/// includes the commands of the writing node.
fn bulk(count: u64) -> (f64, f64) {
    let store = MemoryStore::new();
    let keys = keyward(store.clone());
    for number in 0..count {
        let by = Actor::new(below(number), principal(0), Role::ADMIN);
        block_on(keys.create(&by, new_key())).unwrap();
    }
    let other = Arc::new(Replica::new(Arc::new(store), Arc::new(SystemClock)));
    block_on(other.sync()).unwrap();
    let began = Instant::now();
    let (host, lower) = (Actor::application(tenant("org")), Role::DEVELOPER);
    block_on(keys.change_owner_role(&host, &tenant("org"), principal(0), lower)).unwrap();
    let wrote = began.elapsed().as_nanos() as f64;
    let began = Instant::now();
    block_on(other.sync()).unwrap();
    let followed = began.elapsed().as_nanos() as f64;
    (wrote / count as f64, followed / count as f64)
}

/// One tenant has many keys of a class without a cap. Returns the median time of a create in a class with a cap.
fn creates(store: impl KeyStore + Clone, count: u64) -> f64 {
    const ROUNDS: usize = 201;
    let mut spec = profiles::standard();
    let publishable = "publishable".parse().unwrap();
    spec.caps = vec![ActiveKeyCap::of_class(publishable, 10.try_into().unwrap())];
    let keys = usize::try_from(count).unwrap();
    CommitGenerator::new().fill(&store, keys, |_| tenant("acme"));
    let builder = Keyward::builder(store, PepperRing::generate().unwrap());
    let keys = block_on(builder.policy(Policy::new(spec).unwrap()).build()).unwrap();
    let by = admin("acme");
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let key = CreateKey::new("page").class("publishable");
            let began = Instant::now();
            let created = block_on(keys.create(&by, key)).unwrap();
            let took = began.elapsed().as_nanos() as f64;
            block_on(keys.revoke(&by, created.id, Reason::Unused)).unwrap();
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn creates_in_a_file(count: u64) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let store = block_on(SqliteStore::open(folder.path().join("keys.db"))).unwrap();
    creates(store, count)
}

/// A part of the benchmark: returns the time for the given number of rows.
type Part = fn(u64) -> f64;

fn main() -> ExitCode {
    let options = BenchOptions::read();
    let sizes = if options.quick { &SIZES[..2] } else { &SIZES };
    let mut table = Table::default();
    let parts: [(&str, Part); 4] = [
        ("roles", roles),
        ("closings", closings),
        ("others", others),
        ("above", above),
    ];
    for (part, run) in parts {
        if options.wants(part) {
            let times: Vec<_> = sizes.iter().map(|count| run(*count)).collect();
            add(&mut table, part, sizes, &times);
        }
    }
    if options.wants("creates") {
        let sizes = [1_000, if options.quick { 20_000 } else { 1_000_000 }];
        let times = sizes.map(|count| creates(MemoryStore::new(), count));
        add(&mut table, "create beside keys in memory", &sizes, &times);
        let times = sizes.map(creates_in_a_file);
        add(&mut table, "create beside keys in a file", &sizes, &times);
    }
    if options.wants("bulk") {
        let sizes = &sizes[..2];
        let times: Vec<_> = sizes.iter().map(|count| bulk(*count)).collect();
        let (wrote, followed): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        add(&mut table, "bulk, writing node", sizes, &wrote);
        add(&mut table, "bulk, other node", sizes, &followed);
    }
    table.print(options.json);
    match table.is_met() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn add(table: &mut Table, part: &str, sizes: &[u64], times: &[f64]) {
    let growth = times.last().unwrap() / times.first().unwrap();
    let notes: Vec<_> = sizes
        .iter()
        .zip(times)
        .map(|(count, time)| format!("{count}: {time:.0} ns"))
        .collect();
    let note = format!("each at {}", notes.join(", "));
    table.add(
        format!("{part}: growth"),
        growth,
        Goal::AtMost(MOST_GROWTH),
        note,
    );
}
