//! Limits of reach, command by command: no actor grants more than its own reach.

use keyward::command::{Expiry, ImportKey};
use keyward::key::{Digest, Dimension, Resource, ResourceId, ResourceKind};
use keyward::{CreateKey, Denial, Role, RotateKey, ScopeSet, UpdateKey, VerifyError, days};

use super::{acting, developer, policy, set_role, whole, world};
use support::*;

fn exceeds(denied: Denial) -> Dimension {
    match denied {
        Denial::ExceedsActor { dimension, .. } => dimension,
        other => panic!("expected a reach that is exceeded, got {other:?}"),
    }
}

/// An admin gave a key to a developer. The developer must not widen the key beyond her own role.
#[test]
fn a_developer_cannot_widen_an_admins_key_that_was_given_to_her() {
    let world = world();
    let key = world.create(&admin(), reader("alice's")).unwrap();
    let update = |change| denied(wait(world.keys.update(&developer(), key.id, change)));
    let change = UpdateKey::new().scopes(["*:*"]);
    assert_eq!(exceeds(update(change)), Dimension::Role);
    let change = UpdateKey::new().scopes(["reports:*"]);
    assert_eq!(
        exceeds(update(change)),
        Dimension::Role,
        "refused although she has these scopes"
    );
    let rotated = wait(
        world
            .keys
            .rotate(&developer(), key.id, RotateKey::immediate()),
    );
    assert_eq!(exceeds(denied(rotated)), Dimension::Role);
}

#[test]
fn a_developer_cannot_enable_extend_or_unbind_an_admins_key() {
    let world = world();
    let key = reader("alice's")
        .expires_in(days(9))
        .allow_addresses(["10.0.0.0/8"]);
    let key = world.create(&admin(), key).unwrap();
    let update = |change| denied(wait(world.keys.update(&developer(), key.id, change)));
    let longer = UpdateKey::new().expiry(Expiry::Never);
    assert_eq!(exceeds(update(longer)), Dimension::Role);
    let freed = UpdateKey::new().allow_addresses([]);
    assert_eq!(exceeds(update(freed)), Dimension::Role);
    wait(world.keys.disable(&admin(), key.id)).unwrap();
    assert_eq!(
        exceeds(denied(wait(world.keys.enable(&developer(), key.id)))),
        Dimension::Role
    );
}

/// A command that only narrows a key may come from an actor with less reach than the key, no matter who owns
/// the key.
#[test]
fn a_developer_can_narrow_disable_and_revoke_an_admins_key() {
    let world = world();
    let key = CreateKey::new("alice's").scope("reports:*");
    let key = world.create(&admin(), key).unwrap();
    let by = developer();
    let narrower = UpdateKey::new().scopes(["reports:read"]);
    wait(world.keys.update(&by, key.id, narrower)).unwrap();
    let fewer = UpdateKey::new().allow_addresses(["10.0.0.0/8"]);
    wait(world.keys.update(&by, key.id, fewer)).unwrap();
    let sooner = UpdateKey::new().expiry(Expiry::In(days(3)));
    wait(world.keys.update(&by, key.id, sooner)).unwrap();
    wait(world.keys.disable(&by, key.id)).unwrap();
    wait(world.keys.revoke(&by, key.id, keyward::Reason::Lost)).unwrap();
}

/// A key that is limited to its own tenant must not create a key that reaches all descendant tenants.
#[test]
fn a_key_of_its_own_tenant_makes_no_key_that_reaches_below() {
    let mut spec = policy();
    let plain = spec.classes.get_mut("plain").unwrap();
    plain.issues.insert(class("wide"));
    let world = TestService::with_policy(spec);
    let (_, key) = acting(&world, &admin(), whole("plain"));
    let refused = denied(world.create(&key, whole("wide")));
    assert_eq!(exceeds(refused), Dimension::Tenants);
    let (wide, _) = acting(&world, &admin(), whole("wide"));
    let refused = wait(world.keys.rotate(&key, wide.id, RotateKey::immediate()));
    assert_eq!(exceeds(denied(refused)), Dimension::Tenants);
}

/// A key of the test environment must not create or change keys of the live environment.
#[test]
fn trap_26_a_test_key_cannot_create_import_rotate_enable_or_widen_live_keys() {
    let world = world();
    let (_, key) = acting(&world, &admin(), whole("secret").environment("test"));
    let live = world.create(&admin(), reader("live")).unwrap();
    let live_draft = || whole("secret").environment("live");
    assert_eq!(
        exceeds(denied(world.create(&key, live_draft()))),
        Dimension::Environment
    );
    let import = ImportKey::sha256(Digest::sha256("old"), live_draft());
    assert_eq!(
        exceeds(denied(wait(world.keys.import(&key, import)))),
        Dimension::Environment
    );
    let rotated = wait(world.keys.rotate(&key, live.id, RotateKey::immediate()));
    assert_eq!(exceeds(denied(rotated)), Dimension::Environment);
    let change = UpdateKey::new().scopes(["*:*"]);
    let widened = wait(world.keys.update(&key, live.id, change));
    assert_eq!(exceeds(denied(widened)), Dimension::Environment);
    wait(world.keys.disable(&admin(), live.id)).unwrap();
    let enabled = wait(world.keys.enable(&key, live.id));
    assert_eq!(exceeds(denied(enabled)), Dimension::Environment);
    assert!(
        world
            .create(&key, whole("secret").environment("test"))
            .is_ok()
    );
}

/// A key that is restricted to a network must not create an unrestricted key, and must not remove its own
/// restriction.
#[test]
fn a_key_bound_to_a_network_unbinds_neither_another_key_nor_itself() {
    let world = world();
    let bound = whole("secret").allow_addresses(["10.0.0.0/8"]);
    let created = world.create(&admin(), bound).unwrap();
    let need = keyward::Need::any().from_address("10.1.2.3".parse().unwrap());
    let key = world
        .keys
        .verify(created.secret.expose(), &need)
        .unwrap()
        .actor();
    assert_eq!(
        exceeds(denied(world.create(&key, whole("secret")))),
        Dimension::Addresses
    );
    let wider = whole("secret").allow_addresses(["10.0.0.0/8", "192.0.2.0/24"]);
    assert_eq!(
        exceeds(denied(world.create(&key, wider))),
        Dimension::Addresses
    );
    let lifted = wait(
        world
            .keys
            .update(&key, created.id, UpdateKey::new().allow_addresses([])),
    );
    assert_eq!(exceeds(denied(lifted)), Dimension::Addresses);
    let narrower = whole("secret").allow_addresses(["10.9.0.0/16"]);
    assert!(world.create(&key, narrower).is_ok());
}

/// At commit time, the client address of the verification is checked against the key's current address list.
#[test]
fn a_key_acts_only_from_the_networks_of_its_current_list() {
    let world = world();
    let created = world.create(&admin(), whole("secret")).unwrap();
    let need = keyward::Need::any().from_address("203.0.113.9".parse().unwrap());
    let key = world
        .keys
        .verify(created.secret.expose(), &need)
        .unwrap()
        .actor();
    let change = UpdateKey::new().allow_addresses(["10.0.0.0/8"]);
    wait(world.keys.update(&admin(), created.id, change)).unwrap();
    match denied(world.create(&key, whole("secret"))) {
        Denial::ActingKey { why, .. } => {
            let text = why.to_string();
            assert_eq!(text, "key may not be used from address 203.0.113.9");
        }
        other => panic!("{other:?}"),
    }
    // Another key, verified without an address before it had a list.
    let created = world.create(&admin(), whole("secret")).unwrap();
    let key = world
        .keys
        .verify(created.secret.expose(), &keyward::Need::any())
        .unwrap()
        .actor();
    let change = UpdateKey::new().allow_addresses(["10.0.0.0/8"]);
    wait(world.keys.update(&admin(), created.id, change)).unwrap();
    match denied(world.create(&key, whole("secret"))) {
        Denial::ActingKey { why, .. } => {
            let key = created.id;
            assert_eq!(*why, VerifyError::AddressUnknown { key });
        }
        other => panic!("{other:?}"),
    }
}

/// An admin's publishable key is public. Anyone who reads it must not be able to act as the admin.
#[test]
fn a_publishable_key_manages_nothing_not_even_itself() {
    let world = world();
    let (created, key) = acting(&world, &admin(), whole("publishable"));
    let refused = [
        denied(world.create(&key, whole("publishable"))),
        denied(wait(world.keys.revoke(
            &key,
            created.id,
            keyward::Reason::Lost,
        ))),
        denied(wait(world.keys.rotate(
            &key,
            created.id,
            RotateKey::immediate(),
        ))),
        denied(wait(world.keys.close_tenant(&key, &tenant("acme")))),
        denied(wait(
            world.keys.list(&key, &world.keys.query(&tenant("acme"))),
        )),
    ];
    for denied in refused {
        let Denial::ActingKey { why, .. } = denied else {
            panic!("{denied:?}");
        };
        assert!(matches!(*why, VerifyError::Publishable { .. }), "{why}");
    }
}

#[test]
fn a_secret_key_makes_publishable_keys_if_its_class_issues_them() {
    let mut spec = policy();
    let plain = spec.classes.get_mut("plain").unwrap();
    plain.issues.insert(class("publishable"));
    let world = TestService::with_policy(spec);
    let (_, key) = acting(&world, &admin(), whole("plain"));
    let public = whole("publishable").environment("live");
    assert!(world.create(&key, public).is_ok());
}

#[test]
fn a_key_issues_its_own_class_and_the_classes_its_class_lists() {
    let world = world();
    let (_, key) = acting(&world, &admin(), whole("issuing"));
    assert!(world.create(&key, whole("issuing")).is_ok());
    assert!(world.create(&key, whole("plain")).is_ok());
    assert_eq!(
        exceeds(denied(world.create(&key, whole("within")))),
        Dimension::Class
    );
    let (_, plain) = acting(&world, &admin(), whole("plain"));
    assert_eq!(
        exceeds(denied(world.create(&plain, whole("issuing")))),
        Dimension::Class
    );
}

/// A key may issue a class only if that class issues nothing more than the key's own class. Otherwise a chain
/// of keys could reach a class that the first key must not issue.
#[test]
fn a_key_issues_no_class_that_issues_more_than_its_own_class() {
    let mut spec = policy();
    let within = spec.classes.get_mut("within").unwrap();
    within.issues.insert(class("issuing"));
    let world = TestService::with_policy(spec);
    let (_, key) = acting(&world, &admin(), whole("within"));
    assert_eq!(
        exceeds(denied(world.create(&key, whole("issuing")))),
        Dimension::Class
    );
}

#[test]
fn a_key_makes_no_key_with_a_longer_staleness_bound() {
    let mut spec = policy();
    let plain = spec.classes.get_mut("plain").unwrap();
    plain.issues.insert(class("slow"));
    let world = TestService::with_policy(spec);
    let (_, key) = acting(&world, &admin(), whole("plain"));
    assert_eq!(
        exceeds(denied(world.create(&key, whole("slow")))),
        Dimension::Propagation
    );
}

#[test]
fn a_key_of_a_resource_makes_keys_of_that_resource_only() {
    let world = world();
    let resource = |id: &str| Resource {
        kind: ResourceKind::new("deployment").unwrap(),
        id: ResourceId::new(id).unwrap(),
    };
    let (_, key) = acting(&world, &admin(), whole("secret").resource(resource("a")));
    assert_eq!(
        exceeds(denied(world.create(&key, whole("secret")))),
        Dimension::Resource
    );
    let other = whole("secret").resource(resource("b"));
    assert_eq!(
        exceeds(denied(world.create(&key, other))),
        Dimension::Resource
    );
    assert!(
        world
            .create(&key, whole("secret").resource(resource("a")))
            .is_ok()
    );
}

#[test]
fn no_key_outlives_the_key_that_made_or_extended_it() {
    let world = world();
    let (created, key) = acting(&world, &admin(), whole("secret"));
    let never = || whole("secret").never_expires();
    let (child, _) = acting(&world, &key, whole("secret").expires_in(days(5)));
    let end = Expiry::In(days(10));
    let change = UpdateKey::new().expiry(end);
    wait(world.keys.update(&admin(), created.id, change)).unwrap();
    assert_eq!(
        exceeds(denied(world.create(&key, never()))),
        Dimension::Lifetime
    );
    let longer = UpdateKey::new().expiry(Expiry::In(days(20)));
    let prolonged = wait(world.keys.update(&key, child.id, longer));
    assert_eq!(exceeds(denied(prolonged)), Dimension::Lifetime);
}

/// A role has no limits on expiry, class, environment or network, but a key has. So no key covers a role, and
/// a key cannot give a person a higher role.
#[test]
fn a_key_cannot_raise_a_role_and_can_lower_one_like_an_admin() {
    let world = world();
    let (_, key) = acting(&world, &admin(), whole("secret"));
    let change = |role| {
        let (place, owner) = (tenant("acme"), who("alice"));
        wait(world.keys.change_owner_role(&key, &place, owner, role))
    };
    let bob = actor("acme", "bob", Role::DEVELOPER);
    world.create(&bob, reader("bob's")).unwrap();
    let raised = set_role(&world, &key, ("acme", "bob"), Role::ADMIN);
    assert!(matches!(denied(raised), Denial::ExceedsActor { .. }));
    assert!(change(Role::MEMBER).is_ok());
}

/// Roles are compared by the keys they may manage, not only by their scopes.
#[test]
fn nobody_grants_a_role_that_manages_more_than_their_own() {
    let mut spec = policy();
    spec.administrators.insert(Role::DEVELOPER);
    spec.classes
        .get_mut("plain")
        .unwrap()
        .revoke
        .roles
        .remove(&Role::DEVELOPER);
    let world = TestService::with_policy(spec);
    world.some_key();
    let raised = set_role(&world, &developer(), ("acme", "eve"), Role::ADMIN);
    assert_eq!(exceeds(denied(raised)), Dimension::Role);
    let owned = reader("eve's").owned_by(who("eve"), Role::ADMIN);
    assert_eq!(
        exceeds(denied(world.create(&developer(), owned))),
        Dimension::Role
    );
}

/// Bob's key has more scopes than his session, although his current role narrows the key. The session must
/// not rotate or loosen the key, because a promotion of bob would widen it.
#[test]
fn a_session_with_few_scopes_grants_no_key_with_more() {
    let world = super::world();
    let bob = |role| actor("acme", "bob", role);
    let key = whole("plain")
        .allow_addresses(["10.0.0.0/8"])
        .expires_in(days(3));
    let key = world.create(&bob(Role::DEVELOPER), key).unwrap();
    super::set_role(&world, &host(), ("acme", "bob"), Role::MEMBER).unwrap();
    let few = ScopeSet::parse(["*:read"]).unwrap();
    let session = bob(Role::MEMBER).with_scopes(few);
    let how = keyward::RotateKey::immediate();
    let refused = [
        wait(world.keys.rotate(&session, key.id, how.clone())).map(drop),
        wait(
            world
                .keys
                .update(&session, key.id, UpdateKey::new().allow_addresses([])),
        )
        .map(drop),
        wait(
            world
                .keys
                .update(&session, key.id, UpdateKey::new().expiry(Expiry::Never)),
        )
        .map(drop),
    ];
    for refused in refused {
        match denied(refused) {
            Denial::ExceedsActor { dimension, .. } => assert_eq!(dimension, Dimension::Scopes),
            other => panic!("{other:?}"),
        }
    }
    // For a session with all scopes, only the key's current reach counts, so the session may rotate the key.
    wait(world.keys.rotate(&bob(Role::MEMBER), key.id, how)).unwrap();
}
