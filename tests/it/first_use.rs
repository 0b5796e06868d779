//! Rotation on first use: no first use is lost, and the old key always ends.

use std::sync::Arc;
use std::time::Duration;

use keyward::audit::Action;
use keyward::command::{BulkFilter, Created, DeleteKey, LeakSource, Rotated};
use keyward::key::{Author, RotationReason};
use keyward::policy::{Policy, PolicyError, Rotation};
use keyward::store::{AuditQuery, MemoryStore};
use keyward::{
    Actor, Clock, CommandError, CreateKey, Denial, KeyId, Keyward, ManualClock, Need, Reason, Role,
    RotateKey, Timestamp, VerifyError, days, hours, profiles,
};
use keyward_conformance::{Call, Fault, FaultyStore};
use support::*;

const GRACE: Duration = hours(1);

fn standard() -> Policy {
    Policy::new(profiles::standard()).unwrap()
}

fn compromised() -> RotateKey {
    RotateKey::on_first_use(GRACE)
        .no_later_than(hours(24))
        .because(RotationReason::Compromise)
}

fn rotate(world: &TestService, old: &Created, how: RotateKey) -> Result<Rotated, CommandError> {
    wait(world.keys.rotate(&admin(), old.id, how))
}

fn use_it(keys: &Keyward, secret: &keyward::Secret) {
    keys.verify(secret.expose(), &Need::any()).unwrap();
}

fn end_of(keys: &Keyward, key: KeyId) -> Option<Timestamp> {
    wait(keys.key(&host(), key)).unwrap().expires_at
}

fn ended(keys: &Keyward, old: &Created) -> bool {
    let verdict = keys.verify(old.secret.expose(), &Need::any());
    matches!(
        verdict,
        Err(VerifyError::Expired { .. } | VerifyError::Revoked { .. })
    )
}

/// A command that ends the successor of a rotation.
type End = fn(&Keyward, &Rotated) -> Result<(), CommandError>;

const ENDS: [(&str, End); 4] = [
    ("revoke", |keys, new| {
        wait(keys.revoke(&admin(), new.id, Reason::Lost)).map(drop)
    }),
    ("delete", |keys, new| {
        wait(keys.delete(&admin(), new.id, DeleteKey::plain())).map(drop)
    }),
    ("report its fingerprint", |keys, new| {
        let source = LeakSource::new("a paste").unwrap();
        let found = wait(keys.key(&host(), new.id)).unwrap().fingerprint;
        wait(keys.report_leaked_fingerprint(&host(), found, source)).map(drop)
    }),
    ("rotate", |keys, new| {
        wait(keys.rotate(&admin(), new.id, RotateKey::immediate())).map(drop)
    }),
];

/// Once a successor has been used, the old key ends after its grace period, even if the successor ends before
/// the use is recorded.
#[test]
fn ending_a_used_successor_still_ends_the_old_key() {
    for (what, end) in ENDS {
        for how in [RotateKey::on_first_use(GRACE), compromised()] {
            let world = TestService::new();
            let old = world.create(&admin(), reader("old")).unwrap();
            let new = rotate(&world, &old, how).unwrap();
            use_it(&world.keys, &new.secret);
            end(&world.keys, &new).unwrap();
            let grace_ends = world.keys.now().saturating_add(GRACE);
            assert_eq!(end_of(&world.keys, old.id), Some(grace_ends), "{what}");
            world.clock.advance(GRACE);
            assert!(ended(&world.keys, &old), "{what}");
        }
    }
}

/// The trail attributes a first use to the application, not to the actor whose command recorded the use.
#[test]
fn a_first_use_recorded_by_a_command_is_attributed_to_the_application() {
    let world = TestService::new();
    let old = world.create(&admin(), reader("old")).unwrap();
    let new = rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap();
    use_it(&world.keys, &new.secret);
    wait(world.keys.revoke(&admin(), new.id, Reason::Lost)).unwrap();
    let trail = AuditQuery::tenant(tenant("acme"));
    let rows = wait(world.keys.audit(&host(), &trail)).unwrap().rows;
    let noticed = rows.into_iter().map(|row| row.entry);
    let noticed = noticed.filter(|entry| {
        matches!(
            entry.action,
            Action::SuccessorFirstUsed | Action::GraceBegan { .. }
        )
    });
    let noticed: Vec<_> = noticed.map(|entry| (entry.actor, entry.role)).collect();
    assert_eq!(noticed, vec![(Author::Application, None); 2]);
}

/// A first use that this process has counted is recorded with the next command on the key. If that command is
/// refused, the first use stays counted.
#[test]
fn a_refused_command_leaves_a_first_use_counted() {
    let world = TestService::new();
    let old = world.create(&admin(), reader("old")).unwrap();
    let new = rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap();
    use_it(&world.keys, &new.secret);
    let outsider = actor("acme", "carol", Role::MEMBER);
    let refused = wait(world.keys.revoke(&outsider, new.id, Reason::Lost));
    assert!(matches!(denied(refused), Denial::Forbidden { .. }));
    assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 1);
    let grace_ends = world.keys.now().saturating_add(GRACE);
    assert_eq!(end_of(&world.keys, old.id), Some(grace_ends));
}

#[test]
fn trap_33_the_uses_of_one_tenant_displace_no_other_tenants_uses() {
    let world = TestService::with_policy(profiles::standard().with(|spec| spec.caps.clear()));
    let rotated = |path: &str, count: usize| -> Vec<_> {
        let by = actor(path, "alice", Role::ADMIN);
        let one = |number: usize| {
            let old = world.create(&by, reader(&format!("key {number}"))).unwrap();
            let how = RotateKey::on_first_use(GRACE);
            (old.id, wait(world.keys.rotate(&by, old.id, how)).unwrap())
        };
        (0..count).map(one).collect()
    };
    let many = rotated("acme", 1_100);
    let single = rotated("zebra", 1);
    for (_, new) in single.iter().chain(&many) {
        use_it(&world.keys, &new.secret);
    }
    assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 1_101);
    let grace_ends = Some(world.keys.now().saturating_add(GRACE));
    let host = Actor::application(tenant("zebra"));
    let old = wait(world.keys.key(&host, single[0].0)).unwrap();
    assert_eq!(old.expires_at, grace_ends);
    assert_eq!(end_of(&world.keys, many[0].0), grace_ends);
}

/// Many first uses in one tenant do not delay the recording of another tenant's first use.
#[test]
fn tenants_take_turns_when_first_uses_are_recorded() {
    let store = FaultyStore::new(MemoryStore::new());
    let clock = Arc::new(ManualClock::at(at(START)));
    let keys = node(store.clone(), &clock, Policy::new(capped(100)).unwrap());
    let rotated = |path: &str, count: usize| -> Vec<_> {
        let by = actor(path, "alice", Role::ADMIN);
        let one = |number: usize| {
            let key = reader(&format!("key {number}"));
            let old = wait(keys.create(&by, key)).unwrap();
            let how = RotateKey::on_first_use(GRACE);
            wait(keys.rotate(&by, old.id, how)).unwrap()
        };
        (0..count).map(one).collect()
    };
    for new in rotated("acme", 20).iter().chain(&rotated("zebra", 1)) {
        use_it(&keys, &new.secret);
    }
    // The store accepts two commits, and fails the third one.
    store.next(Call::Commit, [Fault::None, Fault::None, Fault::Unavailable]);
    assert!(wait(keys.run_maintenance()).is_err());
    let trail = AuditQuery::tenant(tenant("zebra"));
    let host = Actor::application(tenant("zebra"));
    let rows = wait(keys.audit(&host, &trail)).unwrap().rows;
    let noticed = rows
        .iter()
        .any(|row| row.entry.action == Action::SuccessorFirstUsed);
    assert!(
        noticed,
        "one of the two recorded first uses is the other tenant's"
    );
}

#[test]
fn a_first_use_survives_a_failed_commit() {
    for fault in [Fault::Unavailable, Fault::RequestLost] {
        let store = FaultyStore::new(MemoryStore::new());
        let clock = Arc::new(ManualClock::at(at(START)));
        let keys = node(store.clone(), &clock, standard());
        let old = wait(keys.create(&admin(), reader("old"))).unwrap();
        let new = wait(keys.rotate(&admin(), old.id, compromised())).unwrap();
        use_it(&keys, &new.secret);
        store.partition(true);
        assert!(wait(keys.run_maintenance()).is_err());
        store.partition(false);
        store.next(Call::Commit, [fault]);
        let _ = wait(keys.run_maintenance());
        let _ = wait(keys.run_maintenance());
        assert_eq!(
            end_of(&keys, old.id),
            Some(clock.now().saturating_add(GRACE)),
            "{fault:?}"
        );
    }
}

#[test]
fn a_first_use_survives_a_resync() {
    let world = TestService::new();
    let old = world.create(&admin(), reader("old")).unwrap();
    let new = rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap();
    use_it(&world.keys, &new.secret);
    // Another process commits, and the store compacts changes that this node has not read.
    let other = world.another_node(standard());
    wait(other.create(&admin(), reader("another"))).unwrap();
    world.store.compact();
    wait(world.keys.sync()).unwrap();
    assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 1);
    let grace_ends = world.keys.now().saturating_add(GRACE);
    assert_eq!(end_of(&world.keys, old.id), Some(grace_ends));
}

#[test]
fn a_node_that_leaves_records_its_counted_first_uses() {
    let world = TestService::new();
    let old = world.create(&admin(), reader("old")).unwrap();
    let new = rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap();
    use_it(&world.keys, &new.secret);
    wait(world.keys.deregister()).unwrap();
    let grace_ends = world.keys.now().saturating_add(GRACE);
    let other = world.another_node(standard());
    assert_eq!(end_of(&other, old.id), Some(grace_ends));
}

// The tests below cover the latest time at which a rotated key ends.

#[test]
fn an_old_key_ends_although_its_successor_is_never_used() {
    let policy = Duration::from_secs(77);
    let spec = profiles::standard().with(|spec| spec.first_use_wait = policy);
    let named = RotateKey::on_first_use(GRACE).no_later_than(days(3));
    let ways = [
        (
            profiles::standard(),
            RotateKey::on_first_use(GRACE),
            days(30),
        ),
        (spec, RotateKey::on_first_use(GRACE), policy),
        (profiles::standard(), named, days(3)),
        (profiles::standard(), compromised(), hours(24)),
    ];
    for (spec, how, wait_for) in ways {
        let world = TestService::with_policy(spec);
        let old = world.create(&admin(), reader("old")).unwrap();
        let new = rotate(&world, &old, how).unwrap();
        let end = at(START).saturating_add(wait_for);
        assert_eq!(new.until, end);
        world.clock.advance(wait_for - Duration::from_micros(1));
        use_it(&world.keys, &old.secret);
        world.clock.advance(Duration::from_micros(1));
        assert!(ended(&world.keys, &old));
        use_it(&world.keys, &new.secret);
    }
}

#[test]
fn a_compromised_key_waits_a_day_at_most_and_only_if_the_wait_is_explicit() {
    let max = Rotation::MAX_COMPROMISED_WAIT;
    let second = Duration::from_secs(1);
    let rotated = |how: RotateKey| {
        let world = TestService::new();
        let old = world.create(&admin(), reader("old")).unwrap();
        rotate(&world, &old, how)
    };
    let how = || RotateKey::on_first_use(GRACE).because(RotationReason::Compromise);
    for (wait, actual) in [
        (None, None),
        (Some(max + second), Some(max + second)),
        (Some(Duration::ZERO), Some(Duration::ZERO)),
    ] {
        let how = wait.map_or(how(), |wait| how().no_later_than(wait));
        assert_eq!(denied(rotated(how)), Denial::FirstUseWait { max, actual });
    }
    assert!(rotated(how().no_later_than(max)).is_ok());
}

#[test]
fn a_wait_is_valid_only_for_a_rotation_on_first_use() {
    let world = TestService::new();
    let old = world.create(&admin(), reader("old")).unwrap();
    let ways = [
        RotateKey::default(),
        RotateKey::immediate(),
        RotateKey::grace(GRACE),
    ];
    for how in ways {
        let refused = denied(rotate(&world, &old, how.no_later_than(hours(1))));
        assert!(matches!(refused, Denial::Invalid(_)), "{refused}");
    }
    let max = Rotation::MAX_GRACE;
    let long = RotateKey::on_first_use(GRACE).no_later_than(max + hours(1));
    let actual = Some(max + hours(1));
    let refused = denied(rotate(&world, &old, long));
    assert_eq!(refused, Denial::FirstUseWait { max, actual });
    for wait in [Duration::ZERO, max + hours(1)] {
        let spec = profiles::standard().with(|spec| spec.first_use_wait = wait);
        let wrong = PolicyError::FirstUseWait { max, actual: wait };
        assert_eq!(Policy::new(spec).unwrap_err(), wrong);
    }
}

/// Another process may count a first use and crash before recording it. Therefore ending an unused successor
/// does not restore a compromised key.
#[test]
fn a_compromised_key_is_not_restored_when_its_successor_ends() {
    for (what, end) in ENDS {
        let world = TestService::new();
        let old = world.create(&admin(), reader("old")).unwrap();
        let new = rotate(&world, &old, compromised()).unwrap();
        end(&world.keys, &new).unwrap();
        let latest = at(START).saturating_add(hours(24));
        assert!(end_of(&world.keys, old.id) <= Some(latest), "{what}");
        world.clock.advance(hours(24));
        assert!(ended(&world.keys, &old), "{what}");
    }
}

#[test]
fn rotating_a_compromised_key_again_gives_it_no_more_time() {
    let world = TestService::new();
    let old = world.create(&admin(), reader("old")).unwrap();
    let first = rotate(&world, &old, compromised()).unwrap();
    world.clock.advance(hours(23));
    let second = rotate(
        &world,
        &old,
        RotateKey::on_first_use(GRACE).no_later_than(hours(24)),
    );
    assert_eq!(second.unwrap().until, first.until);
    let routine = RotateKey::on_first_use(GRACE);
    let refused = denied(rotate(&world, &old, routine));
    assert!(matches!(refused, Denial::FirstUseWait { .. }), "{refused}");
    let grace = rotate(&world, &old, RotateKey::grace(days(9))).unwrap();
    assert_eq!(grace.until, first.until);
}

/// If the successor ends unused, a routine rotation is cancelled: the old key gets its previous expiry back.
#[test]
fn a_routinely_rotated_key_is_restored_when_its_successor_ends_unused() {
    let world = TestService::new();
    let own_end = days(60);
    let old = world
        .create(&admin(), reader("old").expires_in(own_end))
        .unwrap();
    let new = rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap();
    assert_eq!(new.until, at(START).saturating_add(days(30)));
    assert_eq!(
        new.expires_at, old.expires_at,
        "the successor expires with the old key"
    );
    wait(world.keys.revoke(&admin(), new.id, Reason::Lost)).unwrap();
    assert_eq!(end_of(&world.keys, old.id), old.expires_at);
}

/// A successor's first command is a bulk revocation, which also records the first use. The recorded use must
/// not make the command look repeated.
#[test]
fn a_bulk_command_by_a_successor_is_executed() {
    let world = TestService::new();
    let key = CreateKey::new("key").environment("live").scope("*:*");
    let old = world.create(&admin(), key).unwrap();
    let bob = actor("acme", "bob", Role::DEVELOPER);
    let victims = [(); 3].map(|()| world.create(&bob, reader("victim")).unwrap());
    let new = rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap();
    let grant = world
        .keys
        .verify(new.secret.expose(), &Need::any())
        .unwrap();
    let by = grant.actor();
    let filter = BulkFilter::all().owner(who("bob"));
    let swept = wait(
        world
            .keys
            .revoke_many(&by, &tenant("acme"), filter, Reason::Lost),
    )
    .unwrap();
    assert_eq!(swept.ended, victims.len());
    for victim in &victims {
        assert!(ended(&world.keys, victim));
    }
}

/// A command that also recorded many first uses is still recognized when its command id is repeated.
#[test]
fn a_repeated_command_is_recognized_although_many_first_uses_were_recorded_with_it() {
    let world = TestService::new();
    let mut all = Vec::new();
    for number in 0..20 {
        let old = world
            .create(&admin(), reader(&format!("key {number}")))
            .unwrap();
        all.push(rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap());
    }
    for new in &all {
        use_it(&world.keys, &new.secret);
    }
    let by = admin();
    let create = || {
        let by = by.with_command_id(command("create"));
        wait(world.keys.create(by, reader("made once")))
    };
    let made = create().unwrap();
    assert_eq!(denied(create()), Denial::AlreadyCreated { id: made.id });
}

/// A successor is used for a command on another key. The command does not load the old key, so it does not
/// record the successor's first use.
#[test]
fn a_first_use_is_recorded_only_together_with_the_grace_it_starts() {
    let world = TestService::with_policy(profiles::standard().with(|spec| spec.caps.clear()));
    let key = CreateKey::new("key").environment("live").scope("*:*");
    let old = world.create(&admin(), key).unwrap();
    let other = world.create(&admin(), reader("other")).unwrap();
    let new = rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap();
    let grant = world
        .keys
        .verify(new.secret.expose(), &Need::any())
        .unwrap();
    wait(world.keys.disable(&grant.actor(), other.id)).unwrap();
    wait(world.keys.run_maintenance()).unwrap();
    let grace_ends = world.keys.now().saturating_add(GRACE);
    assert_eq!(end_of(&world.keys, old.id), Some(grace_ends));
}

/// Cancelling the rotation of a compromised key does not lengthen the key's life. Lengthening it takes a
/// separate command.
#[test]
fn cancelling_the_rotation_of_a_compromised_key_gives_it_no_more_time() {
    let world = TestService::new();
    let old = world.create(&admin(), reader("old")).unwrap();
    let new = rotate(&world, &old, compromised()).unwrap();
    wait(world.keys.cancel_rotation(&admin(), old.id)).unwrap();
    assert_eq!(end_of(&world.keys, old.id), Some(new.until));
}

/// A tenant is closed after a successor's first use. Maintenance records the use once, and does not try again
/// in each run.
#[test]
fn a_first_use_in_a_closed_tenant_is_recorded_too() {
    let world = TestService::new();
    let old = world.create(&admin(), reader("old")).unwrap();
    let new = rotate(&world, &old, RotateKey::on_first_use(GRACE)).unwrap();
    use_it(&world.keys, &new.secret);
    let other = world.another_node(standard());
    wait(other.close_tenant(&admin(), &tenant("acme"))).unwrap();
    assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 1);
    assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 0);
}
