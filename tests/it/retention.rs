//! Retention removes keys and audit entries when the policy no longer keeps them, and never earlier.

use futures_util::future::join;
use keyward::policy::{Policy, PolicySpec, Revocation};
use keyward::store::{AuditQuery, KeyStore, MemoryStore};
use keyward::{Follow, Keyward, ManualClock, Reason, days, profiles};
use std::sync::Arc;
use support::server_time::ServerTimeStore;
use support::*;

/// Revoked and expired keys stay for 30 days, and audit entries for a year.
fn policy() -> PolicySpec {
    profiles::standard().with(|spec| {
        spec.keep_audit = Some(days(365));
        spec.classes.get_mut("secret").unwrap().revocation = Revocation::Allowed {
            confirm: false,
            keep: Some(days(30)),
        };
    })
}

/// Returns the numbers of keys and entries that a dry run counts, and that the removal then removes.
fn apply(world: &TestService) -> (u64, u64) {
    let acme = tenant("acme");
    let due = wait(world.keys.expired_retention(&acme)).unwrap();
    let done = wait(world.keys.apply_retention(&acme)).unwrap();
    assert_eq!(due, done);
    (done.keys, done.entries)
}

fn entries(store: &impl KeyStore) -> usize {
    let page = wait(store.audit(&AuditQuery::tenant(tenant("acme"))));
    page.unwrap().rows.len()
}

#[test]
fn without_a_rule_everything_stays() {
    let world = TestService::new();
    let key = world.some_key();
    wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let before = entries(&world.store);
    world.clock.advance(days(36_000));
    assert_eq!(apply(&world), (0, 0));
    assert_eq!(entries(&world.store), before, "nothing was written");
}

#[test]
fn keys_and_entries_go_when_their_time_is_over() {
    let world = TestService::with_policy(policy());
    let (revoked, expired) = (world.some_key(), reader("short").expires_in(days(10)));
    let expired = wait(world.keys.create(&admin(), expired)).unwrap();
    let kept = world.some_key();
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    let first = entries(&world.store);
    world.clock.advance(days(30));
    assert_eq!(
        apply(&world),
        (1, 0),
        "the key that was revoked 30 days ago"
    );
    world.clock.advance(days(10));
    assert_eq!(apply(&world), (1, 0), "the key that expired 30 days ago");
    for gone in [revoked.id, expired.id] {
        wait(world.keys.key(&admin(), gone)).unwrap_err();
    }
    let before = entries(&world.store);
    world.clock.advance(days(325));
    assert_eq!(apply(&world), (0, 0), "the oldest entries are a year old");
    assert_eq!(entries(&world.store), before, "nothing was written");
    world.clock.advance(days(1));
    assert_eq!(apply(&world), (0, first as u64));
    wait(world.keys.verify_audit(&host(), &tenant("acme"), None)).unwrap();
    assert!(wait(world.keys.key(&admin(), kept.id)).is_ok());
}

#[test]
fn entries_stay_for_a_day_whatever_the_policy_says() {
    let world = TestService::with_policy(policy().with(|spec| {
        spec.keep_audit = Some(days(0));
    }));
    world.some_key();
    world.clock.advance(days(1));
    assert_eq!(apply(&world), (0, 0));
}

#[test]
fn several_nodes_remove_the_same_things_once() {
    let world = TestService::with_policy(policy());
    for _ in 0..3 {
        let key = world.some_key();
        wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    }
    let other = node(
        world.store.clone(),
        &world.clock,
        Policy::new(policy()).unwrap(),
    );
    world.clock.advance(days(400));
    let acme = tenant("acme");
    let both = join(
        world.keys.apply_retention(&acme),
        other.apply_retention(&acme),
    );
    let (one, two) = wait(both);
    assert_eq!(one.unwrap().keys + two.unwrap().keys, 3);
    wait(world.keys.verify_audit(&host(), &acme, None)).unwrap();
    assert_eq!(apply(&world), (0, 0));
}

#[test]
fn a_clock_that_is_ahead_removes_nothing() {
    let (server, wrong) = (
        Arc::new(ManualClock::at(at(START))),
        Arc::new(ManualClock::at(at(START))),
    );
    let store = ServerTimeStore::new(MemoryStore::new(), &server);
    let keys = node(store.clone(), &wrong, Policy::new(policy()).unwrap());
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let before = entries(&store);
    wrong.advance(days(400));
    // A process that has just started knows no other clock either, and neither does one that reads no keys.
    let start = |follow| {
        let builder = Keyward::builder(store.clone(), peppers()).follow(follow);
        wait(builder.clock(wrong.clone()).build()).unwrap()
    };
    for keys in [keys, start(Follow::Manual), start(Follow::Never)] {
        let due = wait(keys.expired_retention(&tenant("acme")));
        let done = wait(keys.apply_retention(&tenant("acme")));
        for refused in [due, done] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), "clock-refused", "{refused}");
        }
    }
    assert_eq!(entries(&store), before);
}
