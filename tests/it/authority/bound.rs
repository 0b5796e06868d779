//! The bound of a key: the role of the person who received the key's secret limits the key. If that person is
//! not the owner, promoting the owner does not widen the key.

use keyward::command::Created;
use keyward::key::Dimension;
use keyward::{CreateKey, Denial, Grant, Need, Role, RotateKey, ScopeSet, UpdateKey, days};

use super::{acting, developer, grant, set_role, whole, world};
use support::*;

fn bob(role: Role) -> keyward::Actor {
    actor("acme", "bob", role)
}

fn role_of(world: &TestService, owner: &str, role: Role) {
    let changed = set_role(world, &host(), ("acme", owner), role);
    changed.unwrap();
}

fn reach(world: &TestService, key: &Created) -> ScopeSet {
    grant(world, key).scopes()
}

fn reads() -> ScopeSet {
    ScopeSet::parse(["*:read"]).unwrap()
}

fn manages(grant: &Grant, world: &TestService) -> bool {
    wait(world.keys.close_tenant(&grant.actor(), &tenant("acme"))).is_ok()
}

/// Mallory creates a key for bob and keeps the secret. If bob is promoted later, the key must not get an
/// administrator's rights.
#[test]
fn trap_27_promoting_bob_does_not_widen_a_key_that_mallory_made_for_him() {
    let world = world();
    world
        .create(&bob(Role::MEMBER), reader("first"))
        .unwrap_err();
    role_of(&world, "bob", Role::MEMBER);
    let draft = whole("secret").owned_by(who("bob"), Role::MEMBER);
    let by_mallory = world.create(&admin(), draft).unwrap();
    assert_eq!(
        by_mallory.reach,
        reads(),
        "the answer contains the key's reach"
    );
    role_of(&world, "bob", Role::ADMIN);
    assert_eq!(reach(&world, &by_mallory), reads());
    assert!(!manages(&grant(&world, &by_mallory), &world));
    let info = wait(world.keys.key(&admin(), by_mallory.id)).unwrap();
    assert_eq!((info.reach, info.facts.scopes), (reads(), ScopeSet::all()));
}

#[test]
fn a_secret_received_by_its_owner_follows_the_owners_role() {
    let world = world();
    let created = world
        .create(&bob(Role::DEVELOPER), whole("secret"))
        .unwrap();
    role_of(&world, "bob", Role::MEMBER);
    assert_eq!(reach(&world, &created), reads());
    role_of(&world, "bob", Role::ADMIN);
    assert_eq!(reach(&world, &created), ScopeSet::all());
    assert!(manages(&grant(&world, &created), &world));
}

/// The holder of a narrow key of bob must not get a wider key of bob by rotating it.
#[test]
fn a_narrow_key_cannot_change_other_keys_of_its_owner() {
    let world = world();
    let (_, narrow) = acting(
        &world,
        &admin(),
        CreateKey::new("narrow").scope("reports:read"),
    );
    let wide = world.create(&admin(), whole("secret")).unwrap();
    let refused = [
        denied(wait(world.keys.rotate(
            &narrow,
            wide.id,
            RotateKey::immediate(),
        ))),
        denied(wait(world.keys.replace_lost(&narrow, wide.id))),
        denied(wait(world.keys.update(
            &narrow,
            wide.id,
            UpdateKey::new().name("x"),
        ))),
        denied(wait(world.keys.disable(&narrow, wide.id))),
        denied(wait(world.keys.enable(&narrow, wide.id))),
        denied(wait(world.keys.revoke(
            &narrow,
            wide.id,
            keyward::Reason::Lost,
        ))),
        denied(wait(world.keys.delete(
            &narrow,
            wide.id,
            keyward::command::DeleteKey::plain(),
        ))),
        denied(world.create(&narrow, reader("another"))),
    ];
    for denied in refused {
        assert!(
            matches!(denied, Denial::Forbidden { role: None, .. }),
            "{denied:?}"
        );
    }
    let own = wait(world.keys.key(&narrow, wide.id));
    assert_eq!(
        denied(own),
        Denial::NotFound,
        "a narrow key cannot read other keys either"
    );
}

/// A key with fewer scopes than its owner's role may manage no keys. It still may not if the owner is later
/// demoted to a role that the key's scopes cover.
#[test]
fn a_demotion_does_not_let_a_narrow_key_manage() {
    let world = world();
    let narrow = CreateKey::new("narrow").scope("*:read");
    let created = world.create(&bob(Role::DEVELOPER), narrow).unwrap();
    let mut spec = super::policy();
    for class in spec.classes.values_mut() {
        class.create.roles.insert(Role::MEMBER);
        class.revoke.roles.insert(Role::MEMBER);
    }
    revise(&world.keys, keyward::policy::Policy::new(spec).unwrap());
    role_of(&world, "bob", Role::MEMBER);
    let key = grant(&world, &created).actor();
    let denied = denied(world.create(&key, reader("another")));
    assert!(matches!(denied, Denial::Forbidden { .. }), "{denied:?}");
}

/// A key without scopes may manage no keys, even if its owner's role allows no scopes either.
#[test]
fn a_key_without_scopes_manages_nothing() {
    let mut spec = super::policy();
    let auditor = Role::new("auditor").unwrap();
    spec.auditors.insert(auditor.clone());
    for class in spec.classes.values_mut() {
        class.revoke.roles.insert(auditor.clone());
    }
    let world = TestService::with_policy(spec);
    let victim = world.some_key();
    let empty = CreateKey::new("empty").owned_by(who("sam"), auditor);
    let created = world.create(&host(), empty).unwrap();
    let key = grant(&world, &created).actor();
    let revoked = wait(world.keys.revoke(&key, victim.id, keyward::Reason::Lost));
    assert!(matches!(denied(revoked), Denial::Forbidden { .. }));
    let query = keyward::store::AuditQuery::tenant(tenant("acme"));
    assert!(wait(world.keys.audit(&key, &query)).is_err());
}

#[test]
fn rotation_never_raises_the_bound_and_cancelling_restores_it() {
    let world = world();
    let created = world
        .create(&bob(Role::DEVELOPER), whole("secret"))
        .unwrap();
    let how = || RotateKey::on_first_use(days(1));
    let by_alice = wait(world.keys.rotate(&admin(), created.id, how())).unwrap();
    let info = wait(world.keys.key(&admin(), by_alice.id)).unwrap();
    assert_eq!(info.bound, [Role::ADMIN, Role::DEVELOPER].into());
    wait(world.keys.cancel_rotation(&admin(), created.id)).unwrap();
    let info = wait(world.keys.key(&admin(), created.id)).unwrap();
    assert!(info.bound.is_empty());
    let in_person = wait(world.keys.rotate(&bob(Role::DEVELOPER), created.id, how())).unwrap();
    let info = wait(world.keys.key(&admin(), in_person.id)).unwrap();
    assert!(info.bound.is_empty());
}

#[test]
fn rotation_by_the_owner_keeps_the_bound_of_the_old_key() {
    let world = world();
    let draft = whole("secret").owned_by(who("bob"), Role::MEMBER);
    let created = world.create(&admin(), draft).unwrap();
    role_of(&world, "bob", Role::DEVELOPER);
    let how = RotateKey::grace(days(1));
    let rotated = wait(world.keys.rotate(&bob(Role::DEVELOPER), created.id, how)).unwrap();
    assert_eq!(rotated.reach, reads());
}

/// An actor who widens a key may hold its secret. So the actor's role limits the key from then on, even if
/// the owner is promoted.
#[test]
fn promoting_bob_does_not_widen_a_key_that_mallory_widened() {
    let world = world();
    let created = world
        .create(&bob(Role::DEVELOPER), reader("bob's"))
        .unwrap();
    let change = UpdateKey::new().scopes(["*:*"]);
    wait(world.keys.update(&developer(), created.id, change)).unwrap();
    role_of(&world, "bob", Role::ADMIN);
    assert!(!manages(&grant(&world, &created), &world));
    let info = wait(world.keys.key(&admin(), created.id)).unwrap();
    assert_eq!(info.bound, [Role::DEVELOPER].into());
}

#[test]
fn the_application_names_the_recipient_of_a_secret() {
    let world = world();
    let draft = || whole("secret").owned_by(who("bob"), Role::DEVELOPER);
    let in_person = world.create(&host(), draft()).unwrap();
    let to_mel = draft().delivered_to(who("mel"), Role::MEMBER);
    let to_mel = world.create(&host(), to_mel).unwrap();
    let to_bob = draft().delivered_to(who("bob"), Role::DEVELOPER);
    let to_bob = world.create(&host(), to_bob).unwrap();
    role_of(&world, "bob", Role::ADMIN);
    let bound = |id| wait(world.keys.key(&admin(), id)).unwrap().facts.bound;
    assert!(bound(in_person.id).is_empty() && bound(to_bob.id).is_empty());
    assert_eq!(bound(to_mel.id), [Role::DEVELOPER, Role::MEMBER].into());
    assert_eq!(reach(&world, &to_mel), reads());
    let by_alice = draft().delivered_to(who("mel"), Role::MEMBER);
    let refused = denied(world.create(&admin(), by_alice));
    assert!(matches!(refused, Denial::HostOnly { .. }));
}

/// The application states a lower role for bob than the stored role. The new key must act with the stated
/// role, not with the stored one.
#[test]
fn a_stored_role_above_the_stated_one_is_ignored() {
    let world = world();
    role_of(&world, "bob", Role::ADMIN);
    let created = world
        .create(&bob(Role::DEVELOPER), whole("secret"))
        .unwrap();
    assert!(!manages(&grant(&world, &created), &world));
    let named = whole("secret").owned_by(who("bob"), Role::MEMBER);
    let named = world.create(&host(), named).unwrap();
    assert_eq!(named.reach, reads());
}

#[test]
fn a_stated_role_above_the_stored_one_issues_and_widens_nothing_until_it_is_synced() {
    let world = world();
    let key = world
        .create(&bob(Role::DEVELOPER), reader("bob's"))
        .unwrap();
    role_of(&world, "bob", Role::MEMBER);
    let drift = Denial::RoleDrift {
        stated: Role::ADMIN,
        stored: Role::MEMBER,
    };
    let by = bob(Role::ADMIN);
    let wider = UpdateKey::new().scopes(["*:*"]);
    assert_eq!(denied(world.create(&by, reader("more"))), drift);
    assert_eq!(denied(wait(world.keys.update(&by, key.id, wider))), drift);
    let how = RotateKey::immediate();
    assert_eq!(denied(wait(world.keys.rotate(&by, key.id, how))), drift);
    let place = tenant("acme");
    let raised = set_role(&world, &by, (place.as_str(), "eve"), Role::MEMBER);
    assert_eq!(denied(raised), drift);
    // Disabling a key only narrows it, so the command succeeds although the stated role is above the stored
    // one.
    wait(world.keys.disable(&by, key.id)).unwrap();

    let synced = world.keys.sync_role(&by, &place, who("bob"), Role::ADMIN);
    assert!(matches!(denied(wait(synced)), Denial::HostOnly { .. }));
    wait(
        world
            .keys
            .sync_role(&host(), &place, who("bob"), Role::ADMIN),
    )
    .unwrap();
    assert!(world.create(&by, reader("more")).is_ok());
}

#[test]
fn a_role_sync_updates_rows_above_and_below_and_restores_no_removed_owner() {
    let world = world();
    let (above, below) = (tenant("acme"), tenant("acme/web"));
    role_of(&world, "bob", Role::MEMBER);
    let lower = set_role(&world, &host(), (below.as_str(), "bob"), Role::MEMBER);
    lower.unwrap();
    wait(
        world
            .keys
            .sync_role(&host(), &below, who("bob"), Role::ADMIN),
    )
    .unwrap();
    let draft = whole("secret").in_tenant(below.clone());
    assert!(world.create(&bob(Role::ADMIN), draft).is_ok());
    wait(world.keys.remove_owner(&host(), &above, who("bob"))).unwrap();
    wait(
        world
            .keys
            .sync_role(&host(), &above, who("bob"), Role::ADMIN),
    )
    .unwrap();
    let refused = denied(world.create(&bob(Role::ADMIN), whole("secret")));
    assert_eq!(refused, Denial::OwnerRemoved { owner: who("bob") });
}

/// A person's stored role limits that person's keys, so only administrators may set the role of another
/// person.
#[test]
fn only_administrators_set_the_role_of_others() {
    let world = world();
    let draft = reader("carol's").owned_by(who("carol"), Role::MEMBER);
    let denied = denied(world.create(&developer(), draft));
    let action = "set the role of others";
    assert_eq!(
        denied,
        Denial::Forbidden {
            action,
            role: Some(Role::DEVELOPER)
        }
    );
    let draft = reader("dora's").owned_by(who("dora"), Role::DEVELOPER);
    assert!(
        world.create(&developer(), draft).is_ok(),
        "a developer may state her own role"
    );
}

/// The stored role of a person comes from the person's session. A role that the person names for its own key
/// is not stored.
#[test]
fn a_role_named_for_ones_own_key_is_not_stored() {
    let world = world();
    let higher = whole("secret").owned_by(who("dora"), Role::ADMIN);
    let higher = world.create(&developer(), higher).unwrap();
    assert!(!manages(&grant(&world, &higher), &world));
    let by = actor("acme", "dora", Role::ADMIN);
    let drift = Denial::RoleDrift {
        stated: Role::ADMIN,
        stored: Role::DEVELOPER,
    };
    assert_eq!(denied(world.create(&by, reader("more"))), drift);

    let lower = whole("secret").owned_by(who("alice"), Role::MEMBER);
    let lower = world.create(&admin(), lower).unwrap();
    assert_eq!(lower.reach, reads());
    assert!(world.create(&admin(), reader("alice is an admin")).is_ok());
}

/// The rights of a role always come from the current policy. If a new policy lacks a role, keys that the role
/// limits reach nothing.
#[test]
fn a_bound_by_a_role_missing_from_the_policy_allows_nothing() {
    let world = world();
    let draft = whole("secret").owned_by(who("bob"), Role::DEVELOPER);
    let created = world.create(&admin(), draft).unwrap();
    let mut spec = super::policy();
    spec.roles.remove(&Role::ADMIN);
    for class in spec.classes.values_mut() {
        for access in [&mut class.create, &mut class.rotate] {
            access.roles.remove(&Role::ADMIN);
        }
    }
    revise(&world.keys, keyward::policy::Policy::new(spec).unwrap());
    assert!(reach(&world, &created).is_empty());
    let need = Need::scope("reports:read").unwrap();
    assert!(world.keys.verify(created.secret.expose(), &need).is_err());
}

/// Special actors such as the application are enum variants, never strings. So no login name can impersonate
/// one of them.
#[test]
fn trap_32_a_login_named_system_or_like_a_key_is_an_ordinary_person() {
    let world = world();
    let key = world.some_key();
    let system = Role::new("system").unwrap();
    for name in ["system", "application", &format!("key:{}", key.id)] {
        let by = keyward::Actor::new(tenant("acme"), who(name), system.clone());
        assert!(matches!(
            denied(world.create(&by, reader("x"))),
            Denial::Forbidden { .. }
        ));
        let purged = wait(world.keys.purge(&by, &tenant("acme")));
        assert!(matches!(denied(purged), Denial::HostOnly { .. }));
        let by = keyward::Actor::new(tenant("acme"), who(name), Role::DEVELOPER);
        let created = world.create(&by, reader("x")).unwrap();
        let info = wait(world.keys.key(&admin(), created.id)).unwrap();
        assert_eq!(info.created.by, author(name));
    }
    let role = set_role(&world, &admin(), ("acme", "eve"), system);
    assert!(
        role.is_ok(),
        "a role that the policy does not name allows nothing"
    );
}

/// A role may have no rights in one tenant and all rights in a descendant tenant with another policy. So a
/// role change is checked under both policies.
#[test]
fn roles_are_also_compared_under_the_rules_of_tenants_below() {
    let root = Role::new("root").unwrap();
    let mut below = super::policy();
    below.roles.insert(root.clone(), ScopeSet::all());
    below.administrators = [root.clone()].into();
    let policy = |spec| keyward::policy::Policy::new(spec).unwrap();
    let policies = keyward::policy::Policies::new(policy(super::policy()))
        .with_tenant(tenant("acme/web"), policy(below));
    let world = TestService::with_policies(policies);
    world.some_key();
    let raised = set_role(&world, &admin(), ("acme", "alice"), root);
    match denied(raised) {
        Denial::ExceedsActor { dimension, .. } => assert_eq!(dimension, Dimension::Role),
        other => panic!("{other:?}"),
    }
}

// The tests below cover an owner who has one role in a tenant and another role in a descendant tenant.

/// Makes bob a developer in acme and a member in acme/web. Returns a key of bob whose secret another person
/// holds.
fn held_by_another(world: &TestService, delivered: bool) -> keyward::command::Created {
    set_role(world, &host(), ("acme", "bob"), Role::DEVELOPER).unwrap();
    set_role(world, &host(), ("acme/web", "bob"), Role::MEMBER).unwrap();
    let key = whole("wide").owned_by(who("bob"), Role::DEVELOPER);
    match delivered {
        true => world.create(&host(), key.delivered_to(who("dora"), Role::DEVELOPER)),
        false => world.create(&super::developer(), key),
    }
    .unwrap()
}

#[test]
fn a_promotion_below_does_not_widen_secrets_received_by_others() {
    let there = Need::scope("reports:write")
        .unwrap()
        .for_tenant(tenant("acme/web"));
    let rules = || keyward::policy::Policy::new(super::policy()).unwrap();
    for delivered in [false, true] {
        let world = super::world();
        let key = held_by_another(&world, delivered);
        let writes = |keys: &keyward::Keyward| keys.verify(key.secret.expose(), &there).is_ok();
        let acts = || {
            let by = super::grant(&world, &key).actor();
            let made = world.create(&by, whole("wide").in_tenant(tenant("acme/web")));
            made.is_ok()
        };
        assert!(!writes(&world.keys) && !acts());
        for role in [Role::DEVELOPER, Role::MEMBER, Role::ADMIN] {
            set_role(&world, &host(), ("acme/web", "bob"), role).unwrap();
            assert!(!writes(&world.keys) && !acts());
            // A verification that reads the rows from the store refuses the key too.
            let fresh = world.keys.verify_fresh(key.secret.expose(), &there);
            assert!(wait(fresh).is_err());
            assert!(!writes(&world.another_node(rules())));
        }
        // In acme itself, the key still works.
        let here = Need::scope("reports:write").unwrap();
        assert!(world.keys.verify(key.secret.expose(), &here).is_ok());
    }
}

#[test]
fn a_promotion_below_widens_a_secret_received_by_the_owner() {
    let world = super::world();
    set_role(&world, &host(), ("acme", "bob"), Role::DEVELOPER).unwrap();
    set_role(&world, &host(), ("acme/web", "bob"), Role::MEMBER).unwrap();
    let bob = actor("acme", "bob", Role::DEVELOPER);
    let key = world.create(&bob, whole("wide")).unwrap();
    let there = Need::scope("reports:write")
        .unwrap()
        .for_tenant(tenant("acme/web"));
    let writes = || world.keys.verify(key.secret.expose(), &there).is_ok();
    assert!(!writes());
    set_role(&world, &host(), ("acme/web", "bob"), Role::DEVELOPER).unwrap();
    assert!(writes());
    set_role(&world, &host(), ("acme/web", "bob"), Role::MEMBER).unwrap();
    assert!(!writes());
}

/// Bob is removed from acme/web and added again. A key that he had before the removal stays refused in
/// acme/web, and still works in acme.
#[test]
fn an_owner_restored_below_gets_no_old_key_back_there() {
    let world = super::world();
    let key = held_by_another(&world, false);
    let place = tenant("acme/web");
    world.clock.advance(std::time::Duration::from_secs(1));
    wait(world.keys.remove_owner(&host(), &place, who("bob"))).unwrap();
    world.clock.advance(std::time::Duration::from_secs(1));
    set_role(&world, &host(), ("acme/web", "bob"), Role::DEVELOPER).unwrap();
    let verify = |need| world.keys.verify(key.secret.expose(), &need).map(drop);
    let there = Need::scope("reports:read").unwrap().for_tenant(place);
    let refused = verify(there).unwrap_err();
    assert!(
        matches!(refused, keyward::VerifyError::OwnerRemoved { .. }),
        "{refused}"
    );
    verify(Need::scope("reports:read").unwrap()).unwrap();
}

#[test]
fn an_owner_restored_below_starts_without_the_old_bound() {
    let world = super::world();
    held_by_another(&world, false);
    let place = tenant("acme/web");
    set_role(&world, &host(), ("acme/web", "bob"), Role::DEVELOPER).unwrap();
    wait(world.keys.remove_owner(&host(), &place, who("bob"))).unwrap();
    world.clock.advance(std::time::Duration::from_secs(1));
    set_role(&world, &host(), ("acme/web", "bob"), Role::DEVELOPER).unwrap();
    let key = whole("wide").owned_by(who("bob"), Role::DEVELOPER);
    let key = world.create(&super::developer(), key).unwrap();
    let there = Need::scope("reports:write").unwrap().for_tenant(place);
    assert!(world.keys.verify(key.secret.expose(), &there).is_ok());
}
