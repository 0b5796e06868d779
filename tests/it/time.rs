//! Time: a wrong clock affects no other tenant, and a node whose clock is contradicted creates no keys.

use std::sync::Arc;
use std::time::Duration;

use keyward::command::{BulkFilter, Created, DeleteKey, Expiry};
use keyward::key::RotationReason;
use keyward::store::MemoryStore;
use keyward::{
    Actor, Clock, CommandError, CreateKey, Denial, Keyward, ManualClock, Reason, Role, RotateKey,
    Timestamp, VerifyError, days, hours, profiles,
};
use keyward_conformance::{Call, Fault, FaultyStore, Reached};
use proptest::prelude::*;
use support::server_time::ServerTimeStore;
use support::*;

const MINUTE: Duration = Duration::from_secs(60);
const ALLOWANCE: Duration = Duration::from_secs(5 * 60);
const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(at(START)))
}

fn policy() -> keyward::policy::Policy {
    keyward::policy::Policy::new(profiles::standard()).unwrap()
}

fn globex() -> Actor {
    actor("globex", "gina", Role::ADMIN)
}

fn ninety_days(name: &str) -> CreateKey {
    reader(name).expires_in(days(90))
}

fn create(keys: &Keyward, by: &Actor, key: CreateKey) -> Created {
    wait(keys.create(by, key)).unwrap()
}

fn step(clock: &ManualClock, by: Duration) {
    clock.set_wall(clock.now().saturating_add(by));
}

fn step_back(clock: &ManualClock, by: Duration) {
    clock.set_wall(clock.now().saturating_sub(by));
}

fn verdict(keys: &Keyward, key: &Created) -> Result<(), VerifyError> {
    keys.verify(key.secret.expose(), &reading()).map(drop)
}

fn refused(keys: &Keyward, key: &Created) -> VerifyError {
    verdict(keys, key).unwrap_err()
}

#[test]
fn trap_28_a_clock_ten_years_ahead_decides_for_its_own_tenant_alone() {
    let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
    let a = node(store.clone(), &right, policy());
    let b = node(store.clone(), &wrong, policy());
    pairs::a_clock_ten_years_ahead_decides_for_its_own_tenant_alone(
        (&a, &right),
        (&b, &wrong),
        &|| node(store.clone(), &right, policy()),
    );
}

#[test]
fn trap_35_the_time_of_a_tenant_is_repaired() {
    let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
    let a = node(store.clone(), &right, policy());
    let b = node(store.clone(), &wrong, policy());
    pairs::the_time_of_a_tenant_is_repaired((&a, &right), (&b, &wrong), &|| {
        node(store.clone(), &right, policy())
    });
}

#[test]
fn a_repair_among_other_commands_is_a_separate_commit() {
    let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
    let a = node(store.clone(), &right, policy());
    let key = create(&a, &globex(), ninety_days("before"));
    let doomed = create(&a, &globex(), reader("doomed"));
    step(&wrong, YEARS);
    let b = node(store.clone(), &wrong, policy());
    create(&b, &globex(), reader("from the future"));
    wait(a.sync()).unwrap();
    let (place, gina) = (tenant("globex"), globex());
    let host = Actor::application(tenant("globex"));
    let revoking = a.revoke(&gina, doomed.id, Reason::Lost);
    let repairing = a.repair_time(&host, &place);
    let (revoked, repaired) = wait(async { tokio::join!(revoking, repairing) });
    revoked.unwrap();
    repaired.unwrap();
    assert_eq!(verdict(&a, &key), Ok(()));
    let later = node(store, &right, policy());
    assert_eq!(verdict(&later, &key), Ok(()));
    assert_eq!(later.tenants_ahead(), []);
}

#[test]
fn only_the_application_repairs_the_time() {
    let world = TestService::new();
    let admin = admin();
    world.create(&admin, reader("key")).unwrap();
    let repaired = wait(world.keys.repair_time(&admin, &tenant("acme")));
    assert!(matches!(denied(repaired), Denial::HostOnly { .. }));
    let unknown = wait(world.keys.repair_time(&host(), &tenant("initech")));
    assert!(matches!(denied(unknown), Denial::TenantNotFound));
    let nothing = wait(world.keys.repair_time(&host(), &tenant("acme"))).unwrap();
    assert_eq!(nothing.set_back, None, "the tenant was not ahead");
}

/// A single wrong reading of the clock has no lasting effect.
#[test]
fn a_reading_ten_years_ahead_leaves_no_trace() {
    let clock = clock();
    let keys = node(MemoryStore::new(), &clock, policy());
    let key = create(&keys, &admin(), ninety_days("key"));
    step(&clock, YEARS);
    assert!(matches!(refused(&keys, &key), VerifyError::Expired { .. }));
    step_back(&clock, YEARS);
    assert_eq!(verdict(&keys, &key), Ok(()));
    let next = create(&keys, &admin(), ninety_days("next"));
    assert!(next.expires_at.unwrap() < clock.now().saturating_add(days(91)));
}

#[test]
fn a_lasting_step_forward_is_adopted_and_a_step_back_revives_nothing() {
    let clock = clock();
    let keys = node(MemoryStore::new(), &clock, policy());
    let key = create(&keys, &admin(), ninety_days("key"));
    step(&clock, days(91));
    for _ in 0..6 {
        assert!(matches!(refused(&keys, &key), VerifyError::Expired { .. }));
        clock.advance(MINUTE);
    }
    step_back(&clock, days(91));
    assert!(matches!(refused(&keys, &key), VerifyError::Expired { .. }));
    // A step of the clock that is smaller than the clock allowance is applied immediately.
    let soon = reader("soon").expires_in(4 * MINUTE);
    let soon = create(&keys, &admin(), soon);
    step(&clock, days(91));
    step(&clock, 4 * MINUTE);
    assert!(matches!(refused(&keys, &soon), VerifyError::Expired { .. }));
    step_back(&clock, hours(1));
    assert!(matches!(refused(&keys, &soon), VerifyError::Expired { .. }));
}

#[test]
fn moving_a_manual_clock_works_on_one_node_and_on_three() {
    let store = MemoryStore::new();
    let clocks = [clock(), clock(), clock()];
    let nodes = clocks.each_ref().map(|clock| {
        let builder = Keyward::builder(store.clone(), peppers()).policy(policy());
        let builder = builder.clock(clock.clone()).registry(store.clone());
        wait(builder.build()).unwrap()
    });
    for _ in 0..4 {
        for (keys, clock) in nodes.iter().zip(&clocks) {
            clock.advance(Duration::from_secs(61));
            wait(keys.sync()).unwrap();
        }
    }
    let old = create(&nodes[0], &admin(), ninety_days("old"));
    for (moved, clock) in clocks.iter().enumerate() {
        clock.advance(days(91));
        wait(nodes[moved].sync()).unwrap();
        assert!(matches!(
            refused(&nodes[moved], &old),
            VerifyError::Expired { .. }
        ));
        let new = create(&nodes[moved], &admin(), ninety_days("new"));
        assert_eq!(verdict(&nodes[moved], &new), Ok(()));
    }
}

/// A machine without a clock battery starts with its clock in 1970. Its node accepts a key, unless the key's
/// tenant has a commit at or after the key's expiry.
#[test]
fn a_node_that_starts_in_1970_refuses_keys_it_cannot_judge() {
    let (store, right) = (MemoryStore::new(), clock());
    let a = node(store.clone(), &right, policy());
    let ending = create(&a, &admin(), ninety_days("ending"));
    let lasting = create(&a, &admin(), reader("lasting").never_expires());
    let clock = Arc::new(ManualClock::at(Timestamp::UNIX_EPOCH));
    let keys = node(store, &clock, policy());
    assert_eq!(verdict(&keys, &lasting), Ok(()));
    assert_eq!(
        verdict(&keys, &ending),
        Ok(()),
        "no commit of the tenant is at or after the key's end"
    );
    right.advance(days(91));
    create(&a, &globex(), reader("elsewhere"));
    wait(keys.sync()).unwrap();
    assert_eq!(
        verdict(&keys, &ending),
        Ok(()),
        "a commit of another tenant does not count"
    );
    create(&a, &admin(), reader("here"));
    wait(keys.sync()).unwrap();
    assert!(matches!(
        refused(&keys, &ending),
        VerifyError::ClockUnsure { .. }
    ));
    let kind = refused(&keys, &ending).kind();
    assert_eq!(kind, keyward::ErrorKind::Unavailable);
    let created = wait(keys.create(&admin(), reader("new")));
    assert!(matches!(denied(created), Denial::TenantAhead { .. }));
    wait(keys.revoke(&admin(), lasting.id, Reason::Lost)).unwrap();
    clock.set_wall(right.now());
    assert!(matches!(
        refused(&keys, &ending),
        VerifyError::Expired { .. }
    ));
    create(&keys, &admin(), reader("new"));
}

/// A process restarts with an earlier clock. A key stays expired if its tenant has a commit at or after the
/// key's expiry.
#[test]
fn an_earlier_clock_after_a_restart_revives_nothing() {
    let (store, first) = (MemoryStore::new(), clock());
    let keys = node(store.clone(), &first, policy());
    let key = create(&keys, &admin(), reader("key").expires_in(hours(1)));
    first.advance(hours(1));
    create(&keys, &admin(), reader("later"));
    for (behind, unsure) in [(4 * MINUTE, false), (6 * MINUTE, true), (hours(1), true)] {
        let clock = clock();
        clock.set_wall(first.now().saturating_sub(behind));
        let keys = node(store.clone(), &clock, policy());
        let refusal = refused(&keys, &key);
        assert_eq!(
            matches!(refusal, VerifyError::ClockUnsure { .. }),
            unsure,
            "{refusal}"
        );
        assert!(unsure || matches!(refusal, VerifyError::Expired { .. }));
    }
}

/// The latest commit of the tenant deletes a key. Even after the tombstone is dropped, the tenant keeps the
/// time of this commit.
#[test]
fn a_deletion_leaves_its_instant_after_its_tombstone_is_forgotten() {
    let (store, first) = (MemoryStore::new(), clock());
    let keys = node(store.clone(), &first, policy());
    let key = create(&keys, &admin(), reader("key").expires_in(hours(1)));
    let other = create(&keys, &admin(), reader("other"));
    wait(keys.revoke(&admin(), other.id, Reason::Lost)).unwrap();
    first.advance(hours(2));
    wait(keys.delete(&admin(), other.id, DeleteKey::plain())).unwrap();
    store.compact();
    let keys = node(store, &clock(), policy());
    assert!(matches!(
        refused(&keys, &key),
        VerifyError::ClockUnsure { .. }
    ));
}

#[test]
fn a_server_contradicts_a_clock_that_is_ahead() {
    let (server, wrong) = (clock(), clock());
    let store = ServerTimeStore::new(MemoryStore::new(), &server);
    let keys = node(store, &wrong, policy());
    let key = create(&keys, &admin(), ninety_days("key"));
    let spare = create(&keys, &admin(), reader("spare"));
    step(&wrong, YEARS);
    wait(keys.sync()).unwrap();
    assert_eq!(
        verdict(&keys, &key),
        Ok(()),
        "the key is valid by the server's time"
    );
    let refusals: [(&str, Result<(), CommandError>); 4] = [
        (
            "create",
            wait(keys.create(&admin(), reader("new"))).map(drop),
        ),
        ("rotate", {
            let how = RotateKey::grace(hours(1)).because(RotationReason::Compromise);
            wait(keys.rotate(&admin(), key.id, how)).map(drop)
        }),
        (
            "purge",
            wait(keys.purge(&host(), &tenant("acme"))).map(drop),
        ),
        ("prolong", {
            let longer = keyward::UpdateKey::new().expiry(Expiry::In(days(300)));
            wait(keys.update(&admin(), key.id, longer)).map(drop)
        }),
    ];
    for (what, refusal) in refusals {
        match denied(refusal) {
            Denial::ClockRefused { own, reference } => {
                assert_eq!((own, reference), (wrong.now(), server.now()), "{what}");
            }
            other => panic!("{what}: {other}"),
        }
    }
    // While the server contradicts the node's clock, a command that changes nothing or only narrows keys
    // still succeeds.
    wait(keys.provision_tenant(&admin(), &tenant("acme"))).unwrap();
    wait(keys.revoke(&admin(), spare.id, Reason::Lost)).unwrap();
    // Only by the wrong clock is the key expired. The bulk revocation revokes it too.
    let everything = BulkFilter::all();
    wait(keys.revoke_many(&admin(), &tenant("acme"), everything, Reason::Lost)).unwrap();
    assert!(matches!(refused(&keys, &key), VerifyError::Revoked { .. }));
}

/// A commit in the store is from the far future, and contradicts the node's clock. The server's clock agrees
/// with the node, so the commit's time is wrong.
#[test]
fn a_server_confirms_a_clock_that_a_commit_contradicts() {
    let (server, wrong) = (clock(), clock());
    let inner = MemoryStore::new();
    let store = ServerTimeStore::new(inner.clone(), &server);
    let right = clock();
    let keys = node(store, &right, policy());
    let key = create(&keys, &admin(), ninety_days("key"));
    step(&wrong, YEARS);
    let b = node(inner, &wrong, policy());
    create(&b, &admin(), reader("from the future"));
    wait(keys.sync()).unwrap();
    assert_eq!(verdict(&keys, &key), Ok(()));
    let created = wait(keys.create(&admin(), reader("new")));
    assert!(matches!(denied(created), Denial::TenantAhead { .. }));
    right.advance(days(91));
    server.advance(days(91));
    wait(keys.sync()).unwrap();
    assert!(matches!(refused(&keys, &key), VerifyError::Expired { .. }));
}

/// Several nodes with one registry. Their store may report the time of its server.
struct Fleet {
    clocks: Vec<Arc<ManualClock>>,
    nodes: Vec<Keyward>,
    server: Option<Arc<ManualClock>>,
}

impl Fleet {
    fn new(nodes: usize, server: bool) -> Self {
        let inner = MemoryStore::new();
        let server = server.then(clock);
        let clocks: Vec<_> = (0..nodes).map(|_| clock()).collect();
        let node = |clock: &Arc<ManualClock>| {
            let builder = match &server {
                Some(server) => {
                    Keyward::builder(ServerTimeStore::new(inner.clone(), server), peppers())
                }
                None => Keyward::builder(inner.clone(), peppers()),
            };
            let builder = builder.policy(policy()).clock(clock.clone());
            wait(builder.registry(inner.clone()).build()).unwrap()
        };
        let nodes = clocks.iter().map(node).collect();
        Self {
            clocks,
            nodes,
            server,
        }
    }

    /// Advances time until every node has seen two reports of every other node.
    fn settle(&self) {
        for _ in 0..4 {
            for clock in self.clocks.iter().chain(&self.server) {
                clock.advance(Duration::from_secs(61));
            }
            for keys in &self.nodes {
                wait(keys.sync()).unwrap();
            }
        }
    }

    /// Returns, for each node, whether the node may create a key.
    fn creating(&self) -> Vec<bool> {
        let creating = self.nodes.iter().enumerate().map(|(number, keys)| {
            let path = format!("tenant{number}");
            let by = actor(&path, "ann", Role::ADMIN);
            match wait(keys.create(&by, reader("key"))) {
                Ok(_) => true,
                Err(CommandError::Denied(Denial::ClockRefused { .. })) => false,
                Err(error) => panic!("{error}"),
            }
        });
        creating.collect()
    }
}

#[test]
fn one_of_three_nodes_is_contradicted_and_two_that_disagree_are_not() {
    let fleet = Fleet::new(3, false);
    fleet.settle();
    assert_eq!(fleet.creating(), [true; 3]);
    step(&fleet.clocks[2], YEARS);
    fleet.settle();
    assert_eq!(fleet.creating(), [true, true, false]);
    // When a node's clock steps, the node itself notices immediately, by comparing its clock with the other
    // nodes' reports. The other nodes notice with its next report.
    let fleet = Fleet::new(3, false);
    fleet.settle();
    step(&fleet.clocks[0], YEARS);
    wait(fleet.nodes[0].sync()).unwrap();
    assert_eq!(fleet.creating(), [false, true, true]);

    let two = Fleet::new(2, false);
    step(&two.clocks[0], YEARS);
    two.settle();
    assert_eq!(two.creating(), [true; 2]);
}

#[test]
fn a_wrong_majority_wins() {
    let fleet = Fleet::new(3, false);
    step(&fleet.clocks[0], YEARS);
    step(&fleet.clocks[1], YEARS);
    fleet.settle();
    assert_eq!(fleet.creating(), [true, true, false]);
}

#[test]
fn a_wrong_server_is_outvoted_by_a_majority_of_nodes() {
    let fleet = Fleet::new(3, true);
    fleet.settle();
    step(fleet.server.as_ref().unwrap(), YEARS);
    fleet.settle();
    assert_eq!(fleet.creating(), [true; 3]);
    let alone = Fleet::new(1, true);
    step(alone.server.as_ref().unwrap(), YEARS);
    alone.settle();
    assert_eq!(
        alone.creating(),
        [false],
        "no other clock agrees with the node"
    );
}

/// A node's clock no longer counts once the node is gone, even while the registry still has its entry.
#[test]
fn a_node_that_is_gone_has_no_vote_on_the_time() {
    let fleet = Fleet::new(3, false);
    step(&fleet.clocks[1], YEARS);
    step(&fleet.clocks[2], YEARS);
    fleet.settle();
    assert!(!fleet.creating()[0]);
    for _ in 0..4 {
        fleet.clocks[0].advance(Duration::from_secs(61));
        wait(fleet.nodes[0].sync()).unwrap();
    }
    assert!(fleet.creating()[0], "silent nodes have no vote");
}

/// Ending an unused successor gives the old key its former expiry back, but not while another clock
/// contradicts the node's clock.
#[test]
fn a_clock_that_is_behind_revives_no_ended_key() {
    let (store, first, server) = (MemoryStore::new(), clock(), clock());
    let keys = node(store.clone(), &first, policy());
    let how = || RotateKey::on_first_use(hours(1)).no_later_than(hours(24));
    let rotated = |name: &str| {
        let old = create(&keys, &admin(), ninety_days(name));
        let new = wait(keys.rotate(&admin(), old.id, how())).unwrap();
        (old, new.id)
    };
    let (one, two) = (rotated("one"), rotated("two"));
    first.advance(days(2));
    create(&keys, &admin(), reader("later"));
    let behind = node(store.clone(), &clock(), policy());
    wait(behind.revoke(&admin(), one.1, Reason::Lost)).unwrap();
    let contradicted = node(ServerTimeStore::new(store, &server), &first, policy());
    wait(contradicted.revoke(&admin(), two.1, Reason::Lost)).unwrap();
    for (old, _) in [&one, &two] {
        assert!(matches!(refused(&keys, old), VerifyError::Expired { .. }));
    }
}

/// Only the server's clock contradicts the node's clock. One contradicting clock proves nothing, so an
/// expired key stays refused.
#[test]
fn a_server_whose_clock_steps_back_alone_revives_nothing() {
    let (server, own) = (clock(), clock());
    let keys = node(
        ServerTimeStore::new(MemoryStore::new(), &server),
        &own,
        policy(),
    );
    let key = create(&keys, &admin(), reader("key").expires_in(hours(1)));
    own.advance(hours(2));
    server.advance(hours(2));
    wait(keys.sync()).unwrap();
    create(&keys, &admin(), reader("later"));
    assert!(matches!(refused(&keys, &key), VerifyError::Expired { .. }));
    step_back(&server, hours(2));
    wait(keys.sync()).unwrap();
    assert!(matches!(
        refused(&keys, &key),
        VerifyError::ClockUnsure { .. }
    ));
}

/// A node's own time never goes back, so after a backward step it is ahead of the wall clock. It then hides a
/// forward step, which must end freshness.
#[test]
fn a_step_of_the_wall_clock_ends_freshness_even_if_own_time_hides_it() {
    let (store, own) = (FaultyStore::new(MemoryStore::new()), clock());
    step(&own, 4 * MINUTE);
    let keys = node(store, &own, policy());
    let key = create(&keys, &admin(), reader("key"));
    step_back(&own, 4 * MINUTE);
    wait(keys.sync()).unwrap();
    assert_eq!(verdict(&keys, &key), Ok(()));
    step(&own, 3 * MINUTE);
    assert!(matches!(refused(&keys, &key), VerifyError::Stale { .. }));
}

/// Bulk commands also narrow keys that a wrong clock created in the future.
#[test]
fn keys_from_the_future_are_narrowed_like_others() {
    let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
    let a = node(store.clone(), &right, policy());
    let place = tenant("globex");
    let host = Actor::application(place.clone());
    create(&a, &globex(), reader("now"));
    step(&wrong, YEARS);
    let b = node(store, &wrong, policy());
    let future = ["swept", "its owner's"].map(|name| create(&b, &globex(), reader(name)));
    wait(a.sync()).unwrap();
    wait(a.repair_time(&host, &place)).unwrap();
    right.advance(MINUTE);
    let all = BulkFilter::all();
    wait(a.revoke_many(&host, &place, all, Reason::Lost)).unwrap();
    assert!(future.iter().all(|key| verdict(&a, key).is_err()));
    let more = create(&b, &globex(), reader("another"));
    wait(a.sync()).unwrap();
    wait(a.repair_time(&host, &place)).unwrap();
    wait(a.remove_owner(&host, &place, who("gina"))).unwrap();
    wait(a.change_owner_role(&host, &place, who("gina"), Role::ADMIN)).unwrap();
    assert!(verdict(&a, &more).is_err());
}

/// A process with a wrong clock starts a bulk command, so the command lies in the future. A repair limits the
/// command to keys that exist at the repair.
#[test]
fn a_command_from_the_future_does_not_affect_keys_created_after_the_repair() {
    let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
    let a = node(store.clone(), &right, policy());
    create(&a, &globex(), reader("before"));
    step(&wrong, YEARS);
    let faulty = FaultyStore::new(store.clone());
    let b = node(faulty.clone(), &wrong, policy());
    faulty.next(Call::Commit, [Fault::None, Fault::Unavailable]);
    let place = tenant("globex");
    let began = wait(b.revoke_many(&globex(), &place, BulkFilter::all(), Reason::Lost));
    assert!(began.is_err());
    wait(a.sync()).unwrap();
    let host = Actor::application(place.clone());
    wait(a.repair_time(&host, &place)).unwrap();
    right.advance(Duration::from_secs(1));
    let after = create(&a, &globex(), reader("after"));
    right.advance(2 * MINUTE);
    wait(a.sync()).unwrap();
    assert_eq!(wait(a.run_maintenance()).unwrap(), 1);
    assert_eq!(verdict(&a, &after), Ok(()));
}

/// Every effect of a wrong clock on a tenant can be repaired, even if the tenant has no keys or is closed.
#[test]
fn every_tenant_can_be_repaired() {
    let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
    let a = node(store.clone(), &right, policy());
    create(&a, &globex(), reader("key"));
    step(&wrong, YEARS);
    let b = node(store, &wrong, policy());
    let initech = actor("initech", "ian", Role::ADMIN);
    let (unknown, closed) = (tenant("initech"), tenant("globex"));
    wait(b.revoke_many(&initech, &unknown, BulkFilter::all(), Reason::Lost)).unwrap();
    wait(b.close_tenant(&globex(), &closed)).unwrap();
    wait(a.sync()).unwrap();
    assert_eq!(a.tenants_ahead().len(), 2);
    for place in [&unknown, &closed] {
        let host = Actor::application(place.clone());
        let repaired = wait(a.repair_time(&host, place)).unwrap();
        assert!(repaired.set_back.is_some());
    }
    assert_eq!(a.tenants_ahead(), []);
    let key = create(&a, &initech, ninety_days("first"));
    assert_eq!(verdict(&a, &key), Ok(()));
}

/// Narrowing commands also apply to a key that is expired only by a wrong reading of the clock.
#[test]
fn a_wrong_reading_hides_no_key_from_narrowing_commands() {
    let clock = clock();
    let keys = node(MemoryStore::new(), &clock, policy());
    let [disabled, swept, old] =
        ["disabled", "swept", "old"].map(|name| create(&keys, &admin(), ninety_days(name)));
    let place = tenant("acme");
    wait(keys.rotate(&admin(), old.id, RotateKey::grace(days(10)))).unwrap();
    step(&clock, days(300));
    wait(keys.disable(&admin(), disabled.id)).unwrap();
    wait(keys.finish_rotation(&admin(), old.id)).unwrap();
    let filter = BulkFilter::all();
    wait(keys.revoke_many(&admin(), &place, filter, Reason::Lost)).unwrap();
    step_back(&clock, days(300));
    let ended = |key: &Created| matches!(refused(&keys, key), VerifyError::Revoked { .. });
    assert!(ended(&disabled) && ended(&swept) && ended(&old));
}

/// While a tenant has a commit in the future, a command may shorten a key's life but not extend it.
#[test]
fn an_end_can_be_moved_closer_while_the_tenant_is_ahead() {
    let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
    let a = node(store.clone(), &right, policy());
    let key = create(&a, &globex(), reader("key").never_expires());
    step(&wrong, YEARS);
    create(
        &node(store, &wrong, policy()),
        &globex(),
        reader("from the future"),
    );
    wait(a.sync()).unwrap();
    let tomorrow = right.now().saturating_add(days(1));
    let change = keyward::UpdateKey::new().expiry(Expiry::At(tomorrow));
    wait(a.update(&globex(), key.id, change)).unwrap();
    let end = wait(a.key(&globex(), key.id)).unwrap().expires_at;
    assert_eq!(end, Some(tomorrow));
    let longer = keyward::UpdateKey::new().expiry(Expiry::In(days(2)));
    let longer = wait(a.update(&globex(), key.id, longer));
    assert!(matches!(denied(longer), Denial::TenantAhead { .. }));
    let raised = wait(a.change_owner_role(&globex(), &tenant("globex"), who("bob"), Role::ADMIN));
    assert!(matches!(denied(raised), Denial::TenantAhead { .. }));
}

/// The node's clock is behind, so the key has not expired by that clock. The key's own tenant has a commit
/// after the expiry, so the key may not act in a descendant tenant either.
#[test]
fn an_acting_key_is_judged_by_the_commits_of_its_own_tenant() {
    let (store, first) = (MemoryStore::new(), clock());
    let mut spec = profiles::standard();
    let reaching = spec.classes.values_mut();
    reaching.for_each(|class| class.tenant_reach = keyward::policy::TenantReach::Descendants);
    let policy = || keyward::policy::Policy::new(spec.clone()).unwrap();
    let keys = node(store.clone(), &first, policy());
    let key = reader("acts").scopes(["*:*"]).expires_in(hours(1));
    let key = create(&keys, &admin(), key);
    let grant = keys
        .verify(key.secret.expose(), &keyward::Need::any())
        .unwrap();
    let actor = grant.actor();
    first.advance(hours(1));
    create(&keys, &admin(), reader("later"));
    let behind = clock();
    behind.advance(hours(1).saturating_sub(4 * MINUTE));
    let keys = node(store, &behind, policy());
    let below = reader("below").in_tenant(tenant("acme/web"));
    let denied = denied(wait(keys.create(&actor, below)));
    assert!(matches!(denied, Denial::ActorExpired), "{denied:?}");
}

/// A node may read rows from before a repair again. Such rows no longer affect the node's time.
#[test]
fn rows_from_before_a_repair_do_not_undo_it() {
    let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
    let a = node(FaultyStore::new(store.clone()), &right, policy());
    step(&wrong, YEARS);
    let b = node(store.clone(), &wrong, policy());
    create(&b, &globex(), reader("from the future"));
    wait(a.sync()).unwrap();
    let place = tenant("globex");
    let host = Actor::application(place.clone());
    wait(a.repair_time(&host, &place)).unwrap();
    // This node does not know the key. It reads the key through the store, with the row of the owner.
    let key = create(
        &node(store, &right, policy()),
        &globex(),
        ninety_days("key"),
    );
    wait(a.verify_or_fetch(key.secret.expose(), &reading())).unwrap();
    assert_eq!(a.tenants_ahead(), []);
    // Repeating a command reads the owner's row too.
    let by = globex();
    let by = by.with_command_id(command("once"));
    for _ in 0..2 {
        wait(a.change_owner_role(&by, &place, who("gina"), Role::ADMIN)).unwrap();
    }
    assert_eq!(a.tenants_ahead(), []);
    assert_eq!(verdict(&a, &key), Ok(()));
}

#[test]
fn a_contradicted_clock_in_1970_ends_no_key_of_other_tenants() {
    let (store, right) = (MemoryStore::new(), clock());
    let a = node(store.clone(), &right, policy());
    let old = create(&a, &admin(), ninety_days("old"));
    let how = RotateKey::on_first_use(hours(1));
    let new = wait(a.rotate(&admin(), old.id, how)).unwrap();
    let unset = Arc::new(ManualClock::at(Timestamp::UNIX_EPOCH));
    let keys = node(ServerTimeStore::new(store, &right), &unset, policy());
    wait(keys.sync()).unwrap();
    keys.verify(new.secret.expose(), &reading()).unwrap();
    wait(keys.run_maintenance()).unwrap();
    wait(a.sync()).unwrap();
    assert_eq!(
        verdict(&a, &old),
        Ok(()),
        "the old key is in its grace period"
    );
}

/// A step of a scenario in which one node's clock moves at random.
#[derive(Clone, Debug)]
enum Deed {
    /// Moves the wrong clock by this many seconds.
    Wrong(i64),
    /// Lets the node with the wrong clock commit in its own tenant.
    Commits,
    /// Advances both clocks by this many seconds.
    Pass(u64),
    /// Restarts the node with the right clock.
    Restart,
}

fn a_deed() -> impl Strategy<Value = Deed> {
    let years = 10 * 365 * 24 * 3600_i64;
    prop_oneof![
        (-years..years).prop_map(Deed::Wrong),
        Just(Deed::Commits),
        (0..20 * 24 * 3600_u64).prop_map(Deed::Pass),
        Just(Deed::Restart),
    ]
}

/// The other node's clock moves at random. Keys of other tenants work exactly until they expire by the correct
/// clock. Commands on these keys are decided by the correct clock too.
#[test]
fn a_wrong_clock_affects_no_other_tenant() {
    let committed = Reached::new("a commit by the wrong clock");
    proptest!(|(deeds in prop::collection::vec(a_deed(), 1..24))| {
        let (store, right, wrong) = (MemoryStore::new(), clock(), clock());
        let mut keys = node(store.clone(), &right, policy());
        let other = node(store.clone(), &wrong, policy());
        let key = create(&keys, &admin(), ninety_days("key"));
        let end = key.expires_at.unwrap();
        for deed in deeds {
            match deed {
                Deed::Wrong(by) if by < 0 => {
                    step_back(&wrong, Duration::from_secs(by.unsigned_abs()));
                }
                Deed::Wrong(by) => step(&wrong, Duration::from_secs(by.unsigned_abs())),
                // The creation is refused if the tenant is already ahead of this node's clock.
                Deed::Commits => {
                    committed.note(wait(other.create(&globex(), reader("key"))).is_ok());
                }
                Deed::Pass(by) => {
                    let by = Duration::from_secs(by);
                    right.advance(by);
                    wrong.advance(by);
                }
                Deed::Restart => keys = node(store.clone(), &right, policy()),
            }
            wait(keys.sync()).unwrap();
            let verdict = verdict(&keys, &key);
            match right.now() < end {
                true => prop_assert_eq!(verdict, Ok(())),
                false => {
                    let expired = matches!(verdict, Err(VerifyError::Expired { .. }));
                    prop_assert!(expired, "{:?}", verdict);
                }
            }
        }
        let new = create(&keys, &admin(), ninety_days("new"));
        prop_assert_eq!(new.expires_at, Some(right.now().saturating_add(days(90))));
    });
}

#[test]
fn the_clock_allowance_is_configurable() {
    let (server, own) = (clock(), clock());
    let build = |allowance: Duration| {
        let store = ServerTimeStore::new(MemoryStore::new(), &server);
        let builder = Keyward::builder(store, peppers()).clock(own.clone());
        wait(builder.clock_allowance(allowance).build()).unwrap()
    };
    step(&own, ALLOWANCE);
    create(&build(ALLOWANCE), &admin(), reader("key"));
    let strict = build(2 * MINUTE);
    let created = wait(strict.create(&admin(), reader("key")));
    assert!(matches!(denied(created), Denial::ClockRefused { .. }));
}
