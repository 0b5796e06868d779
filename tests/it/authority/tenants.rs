//! Descendant tenants. A descendant can restrict a key of its ancestor. An actor's first command in a new
//! tenant creates the tenant only if the actor may provision tenants.

use keyward::key::Dimension;
use keyward::policy::{Policies, Policy, PolicySpec};
use keyward::{Actor, CreateKey, Denial, Need, Role, ScopeSet, TenantId, VerifyError};

use super::{acting, developer, set_role, whole, world};
use support::*;

/// A developer of acme must not exceed the cap by creating fifty keys in fifty new descendant tenants.
#[test]
fn a_developer_cannot_create_a_tenant_by_creating_a_key_in_it() {
    let world = TestService::with_policy(capped(2));
    world.some_key();
    let (_, by_key) = acting(&world, &developer(), CreateKey::new("dora's").scope("*:*"));
    for number in 0..3 {
        let place = tenant(&format!("acme/x{number}"));
        let denied = denied(world.create(&developer(), reader("x").in_tenant(place.clone())));
        assert!(matches!(
            denied,
            Denial::Forbidden {
                action: "provision tenants",
                ..
            }
        ));
        let denied = support::denied(world.create(&by_key, reader("x").in_tenant(place)));
        assert_eq!(denied, Denial::TenantNotFound);
    }
    let by_admin = reader("x").in_tenant(tenant("acme/x0"));
    assert!(world.create(&admin(), by_admin).is_ok());
}

fn wide(world: &TestService) -> keyward::command::Created {
    world.create(&admin(), whole("wide")).unwrap()
}

fn at(path: &str) -> Need {
    Need::scope("reports:read")
        .unwrap()
        .for_tenant(tenant(path))
}

/// Returns three verdicts on a key: from the local index, from the store, and from another node.
fn everywhere(world: &TestService, secret: &str, need: &Need) -> Vec<Result<(), VerifyError>> {
    let other = world.another_node(keyward::policy::Policy::new(super::policy()).unwrap());
    wait(other.sync()).unwrap();
    vec![
        world.keys.verify(secret, need).map(drop),
        wait(world.keys.verify_fresh(secret, need)).map(drop),
        other.verify(secret, need).map(drop),
    ]
}

/// A key whose class reaches descendants must not work in a closed descendant tenant.
#[test]
fn a_closed_tenant_below_is_not_reached() {
    let world = world();
    let key = wide(&world);
    let secret = key.secret.expose();
    assert!(
        everywhere(&world, secret, &at("acme/web"))
            .iter()
            .all(Result::is_ok)
    );
    let host = Actor::application(tenant("acme/web"));
    wait(world.keys.close_tenant(&host, &tenant("acme/web"))).unwrap();
    for verdict in everywhere(&world, secret, &at("acme/web")) {
        assert_eq!(verdict, Err(VerifyError::TenantClosed { key: key.id }));
    }
    for verdict in everywhere(&world, secret, &at("acme/web/eu")) {
        assert_eq!(verdict, Err(VerifyError::TenantClosed { key: key.id }));
    }
    assert!(
        everywhere(&world, secret, &at("acme"))
            .iter()
            .all(Result::is_ok)
    );
}

#[test]
fn an_owner_removed_or_demoted_below_is_restricted_there() {
    let world = world();
    let key = wide(&world);
    let secret = key.secret.expose();
    let below = tenant("acme/web");
    let host = Actor::application(below.clone());
    let lowered = set_role(&world, &host, (below.as_str(), "alice"), Role::MEMBER);
    lowered.unwrap();
    let writing = Need::scope("reports:write")
        .unwrap()
        .for_tenant(below.clone());
    for verdict in everywhere(&world, secret, &writing) {
        assert!(
            matches!(verdict, Err(VerifyError::MissingScope { .. })),
            "{verdict:?}"
        );
    }
    let grant = world.keys.verify(secret, &at("acme/web")).unwrap();
    assert!(
        !grant.allows(&scope("reports:write")),
        "the grant is one for that tenant"
    );
    assert!(
        world
            .keys
            .verify(secret, &at("acme"))
            .unwrap()
            .allows(&scope("reports:write"))
    );

    wait(world.keys.remove_owner(&host, &below, who("alice"))).unwrap();
    for verdict in everywhere(&world, secret, &at("acme/web")) {
        assert_eq!(verdict, Err(VerifyError::OwnerRemoved { key: key.id }));
    }
    let actor = world.keys.verify(secret, &at("acme")).unwrap().actor();
    let made = world.create(&actor, whole("wide").in_tenant(below));
    assert!(matches!(denied(made), Denial::ActingKey { .. }));
}

/// A tenant path must not have dot segments, which an attacker could put into a URL such as `GET
/// /projects/acme%2F..%2Fvictim/secrets`.
#[test]
fn tenant_paths_with_dot_segments_are_refused() {
    for path in ["acme/../victim", "..", ".", "acme/.", "./acme"] {
        assert!(TenantId::new(path).is_err(), "{path}");
    }
    assert!(TenantId::new("acme/..web").is_ok());
}

/// An actor that imports a key knows the key's secret, so only administrators may import keys.
#[test]
fn only_administrators_import_keys() {
    let world = world();
    let import = |by: &Actor, token: &str| {
        let digest = keyward::key::Digest::sha256(token);
        wait(world.keys.import(
            by,
            keyward::command::ImportKey::sha256(digest, reader("old")),
        ))
    };
    assert!(matches!(
        denied(import(&developer(), "a")),
        Denial::Forbidden { .. }
    ));
    assert!(import(&admin(), "b").is_ok());
    assert!(import(&host(), "c").is_ok());
}

// In the tests below, a tenant and its descendant have different policies.

/// Makes a service with one policy for acme and another for acme/web.
fn two_rules(above: PolicySpec, below: PolicySpec) -> TestService {
    let policies = Policies::new(Policy::new(above).unwrap())
        .with_tenant(tenant("acme/web"), Policy::new(below).unwrap());
    let world = TestService::with_policies(policies);
    for path in ["acme", "acme/web"] {
        let host = keyward::Actor::application(tenant(path));
        wait(world.keys.provision_tenant(&host, &tenant(path))).unwrap();
    }
    world
}

/// Makes a service where the role `ops` manages keys everywhere but administers only acme/web. Returns a key
/// of opal, who has that role.
fn ops() -> (TestService, keyward::command::Created) {
    let ops = Role::new("ops").unwrap();
    let mut above = super::policy();
    above.roles.insert(ops.clone(), ScopeSet::all());
    let wide = above.classes.get_mut("wide").unwrap();
    let lists = [
        &mut wide.create,
        &mut wide.look,
        &mut wide.update,
        &mut wide.rotate,
        &mut wide.revoke,
    ];
    for list in lists {
        list.roles.insert(ops.clone());
    }
    let mut below = above.clone();
    below.administrators.insert(ops.clone());
    let world = two_rules(above, below);
    let opal = actor("acme", "opal", ops);
    let key = world.create(&opal, super::whole("wide")).unwrap();
    (world, key)
}

fn exceeds(refused: Denial, exceeded: Dimension) {
    match refused {
        Denial::ExceedsActor { dimension, .. } => assert_eq!(dimension, exceeded),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_enables_a_key_that_manages_more_below_than_they_do() {
    let (world, key) = ops();
    wait(world.keys.disable(&admin(), key.id)).unwrap();
    let refused = denied(wait(world.keys.enable(&super::developer(), key.id)));
    exceeds(refused, Dimension::Role);
}

#[test]
fn nobody_cancels_the_rotation_of_a_key_that_manages_more_below_than_they_do() {
    let (world, key) = ops();
    let how = keyward::RotateKey::grace(keyward::hours(1));
    wait(world.keys.rotate(&admin(), key.id, how)).unwrap();
    let refused = denied(wait(
        world.keys.cancel_rotation(&super::developer(), key.id),
    ));
    exceeds(refused, Dimension::Role);
}

/// A key of acme is verified under the policy of acme, in which a role may allow more than in acme/web. So a
/// role change in acme/web is checked under both policies.
#[test]
fn roles_are_also_compared_under_the_rules_of_tenants_above() {
    let role = |name: &str| Role::new(name).unwrap();
    let reads = || ScopeSet::parse(["reports:read"]).unwrap();
    let mut above = super::policy();
    above.roles.insert(role("low"), reads());
    above.roles.insert(role("high"), ScopeSet::all());
    let mut below = super::policy();
    for name in ["low", "high", "steward"] {
        below.roles.insert(role(name), reads());
    }
    below.administrators.insert(role("steward"));
    let world = two_rules(above, below);
    let key = world.create(&admin(), super::whole("wide")).unwrap();
    super::set_role(&world, &host(), ("acme/web", "alice"), role("low")).unwrap();
    let there = Need::scope("reports:write")
        .unwrap()
        .for_tenant(tenant("acme/web"));
    assert!(world.keys.verify(key.secret.expose(), &there).is_err());
    let steward = actor("acme/web", "mallory", role("steward"));
    let raised = super::set_role(&world, &steward, ("acme/web", "alice"), role("high"));
    exceeds(denied(raised), Dimension::Role);
    assert!(world.keys.verify(key.secret.expose(), &there).is_err());
}

/// An owner without a role in a descendant tenant may not get a higher role there than in the tenant above.
#[test]
fn a_new_row_below_is_no_larger_than_the_row_above() {
    let world = super::world();
    let set =
        |by: &keyward::Actor, place, owner, role| super::set_role(&world, by, (place, owner), role);
    set(&host(), "acme", "mallory", Role::ADMIN).unwrap();
    set(&host(), "acme/web", "mallory", Role::MEMBER).unwrap();
    set(&host(), "acme", "bob", Role::MEMBER).unwrap();
    let mallory = actor("acme", "mallory", Role::ADMIN);
    assert!(set(&mallory, "acme/web", "bob", Role::ADMIN).is_err());
    set(&mallory, "acme/web", "bob", Role::MEMBER).unwrap();
}
