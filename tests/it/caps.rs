//! Several caps in one policy: every cap that counts a class holds, and no other.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use keyward::command::ImportKey;
use keyward::key::{Digest, KeyType, Resource, ResourceKind};
use keyward::policy::{ActiveKeyCap, PolicySpec, ProvisionOn, ProvisionRule};
use keyward::{Actor, CreateKey, Denial, Role, RotateKey, ScopeSet, days, hours, profiles};
use support::*;

fn cap(limit: u32, classes: &[&str]) -> ActiveKeyCap {
    ActiveKeyCap {
        limit: NonZeroU32::new(limit).unwrap(),
        classes: classes.iter().map(|name| class(name)).collect(),
    }
}

/// Returns the standard policy with other caps, and with one environment for each class.
fn with_caps(caps: impl Into<Vec<ActiveKeyCap>>) -> PolicySpec {
    profiles::standard().with(|spec| {
        spec.caps = caps.into();
        for class in spec.classes.values_mut() {
            class
                .prefixes
                .retain(|name, _| *name == environment("live"));
        }
    })
}

fn page() -> CreateKey {
    reader("page").class("publishable")
}

fn full(limit: u32, classes: &[&str]) -> Denial {
    let ActiveKeyCap { limit, classes } = cap(limit, classes);
    Denial::CapReached { limit, classes }
}

fn live(world: &TestService, key_type: KeyType) -> usize {
    let query = world.keys.query(&tenant("acme")).live();
    let keys = wait(world.keys.list(&admin(), &query)).unwrap().keys;
    keys.iter().filter(|key| key.key_type == key_type).count()
}

#[test]
fn a_command_is_refused_at_the_first_cap_that_is_reached() {
    let world = TestService::with_policy(with_caps([cap(3, &[]), cap(2, &["secret"])]));
    world.some_key();
    world.some_key();
    let of_class = denied(world.create(&admin(), reader("third")));
    assert_eq!(of_class, full(2, &["secret"]));
    assert_eq!(
        of_class.to_string(),
        "tenant already has 2 active keys of class secret"
    );
    let import = ImportKey::sha256(Digest::sha256("old"), reader("old"));
    assert_eq!(denied(wait(world.keys.import(&admin(), import))), of_class);
    world.create(&admin(), page()).unwrap();
    let of_all = denied(world.create(&admin(), page()));
    assert_eq!(of_all, full(3, &[]));
    assert_eq!(of_all.to_string(), "tenant already has 3 active keys");
}

#[test]
fn keys_of_one_class_leave_the_cap_of_another_class_unchanged() {
    let caps = [cap(1, &["secret"]), cap(1, &["publishable"])];
    let world = TestService::with_policy(with_caps(caps));
    world.some_key();
    world.create(&admin(), page()).unwrap();
    let refused = denied(world.create(&admin(), page()));
    assert_eq!(refused, full(1, &["publishable"]));
}

#[test]
fn a_cap_over_several_classes_counts_them_together() {
    let both = ["publishable", "secret"];
    let world = TestService::with_policy(with_caps([cap(2, &both), cap(1, &["publishable"])]));
    world.create(&admin(), page()).unwrap();
    world.some_key();
    let refused = denied(world.create(&admin(), reader("third")));
    assert_eq!(refused, full(2, &both));
    let classes = "of classes publishable, secret";
    assert!(refused.to_string().ends_with(classes), "{refused}");
}

#[test]
fn a_provisioned_key_respects_the_cap_of_its_class() {
    let build = ResourceKind::new("build").unwrap();
    let spec = with_caps([cap(9, &[]), cap(1, &["secret"])]).with(|spec| {
        spec.provision = vec![ProvisionRule {
            on: ProvisionOn::Resource(build.clone()),
            class: class("secret"),
            name: "given".try_into().unwrap(),
            scopes: ScopeSet::parse(["reports:read"]).unwrap(),
        }];
    });
    let world = TestService::with_policy(spec);
    let provision = |id: &str| {
        let (kind, id) = (build.clone(), id.try_into().unwrap());
        let resource = Resource { kind, id };
        wait(
            world
                .keys
                .provision_resource(&admin(), &tenant("acme"), resource),
        )
    };
    provision("one").unwrap();
    assert_eq!(denied(provision("two")), full(1, &["secret"]));
}

#[test]
fn a_rotation_at_the_cap_of_a_class_succeeds_and_its_cancellation_keeps_the_cap() {
    let world = TestService::with_policy(with_caps([cap(9, &[]), cap(1, &["secret"])]));
    let old = world.some_key();
    let new = wait(
        world
            .keys
            .rotate(&admin(), old.id, RotateKey::grace(hours(1))),
    )
    .unwrap();
    // The successor is ended, so that another key takes its place under the cap.
    wait(world.keys.revoke(&admin(), new.id, keyward::Reason::Lost)).unwrap();
    world.some_key();
    let refused = denied(wait(world.keys.cancel_rotation(&admin(), old.id)));
    assert_eq!(refused, full(1, &["secret"]));
}

#[test]
fn grace_periods_end_until_live_keys_are_at_most_twice_each_cap() {
    let world = TestService::with_policy(with_caps([cap(9, &[]), cap(1, &["secret"])]));
    let shown = world.create(&admin(), page()).unwrap();
    let mut newest = world.some_key().id;
    let mut page = shown.id;
    for _ in 0..3 {
        world.clock.advance(hours(1));
        let grace = || RotateKey::grace(days(1));
        newest = wait(world.keys.rotate(&admin(), newest, grace()))
            .unwrap()
            .id;
        page = wait(world.keys.rotate(&admin(), page, grace())).unwrap().id;
    }
    assert_eq!(live(&world, KeyType::Secret), 2);
    assert_eq!(live(&world, KeyType::Publishable), 4, "their only cap is 9");
}

#[test]
fn a_policy_without_caps_allows_any_number_of_keys() {
    let world = TestService::with_policy(with_caps([]));
    let made: BTreeSet<_> = (0..101).map(|_| world.some_key().id).collect();
    assert_eq!(made.len(), 101);
}

/// A policy from [`PolicySpec::new`] admits nobody until roles have scopes.
#[test]
fn a_new_policy_gives_access_only_to_the_application() {
    let rules = profiles::standard().classes["secret"].clone();
    let rules = rules.with(|class| class.create = keyward::policy::Access::host_only());
    let rules = rules.with(|class| class.rotate = keyward::policy::Access::host_only());
    let spec = PolicySpec::new("acme", "server", rules).unwrap();
    let world = TestService::with_policy(spec);
    let draft = || reader("key").environment("live");
    for role in [Role::ADMIN, Role::DEVELOPER, Role::SUPPORT] {
        let by = actor("acme", "alice", role);
        assert!(world.create(&by, draft()).is_err());
        assert!(wait(world.keys.provision_tenant(&by, by.tenant())).is_err());
    }
    world
        .create(&Actor::application(tenant("acme")), draft())
        .unwrap();
}
