//! Authority at commit time. An actor made from a key is checked against the current state of the key and of
//! its owner.

use keyward::command::{BulkFilter, DeleteKey, Expiry};
use keyward::key::Author;
use keyward::{Actor, CreateKey, Denial, Reason, Role, UpdateKey, VerifyError, days};

use super::{acting, whole, world};
use support::*;

#[track_caller]
fn refused(denied: Denial) -> VerifyError {
    match denied {
        Denial::ActingKey { why, .. } => *why,
        other => panic!("expected an acting key that is refused, got {other:?}"),
    }
}

/// Creates a key and an actor that acts with it, and then changes the key with `what`. A command of that
/// actor resembles a request that was in flight during the change.
fn after(what: impl FnOnce(&TestService, keyward::KeyId)) -> (TestService, Actor) {
    let world = world();
    let (created, key) = acting(&world, &admin(), whole("wide"));
    what(&world, created.id);
    (world, key)
}

#[test]
fn trap_25_a_key_revoked_disabled_or_deleted_in_flight_changes_nothing_in_any_tenant() {
    type Narrowing = fn(&TestService, keyward::KeyId);
    type Expected = fn(&VerifyError) -> bool;
    let narrowings: [(Narrowing, Expected); 3] = [
        (
            |world, id| {
                wait(world.keys.revoke(&admin(), id, Reason::Lost)).unwrap();
            },
            |why| matches!(why, VerifyError::Revoked { .. }),
        ),
        (
            |world, id| {
                wait(world.keys.disable(&admin(), id)).unwrap();
            },
            |why| matches!(why, VerifyError::Disabled { .. }),
        ),
        (
            |world, id| {
                wait(world.keys.delete(&admin(), id, DeleteKey::plain())).unwrap();
            },
            |why| matches!(why, VerifyError::Unknown),
        ),
    ];
    for (narrowing, expected) in narrowings {
        let (world, key) = after(narrowing);
        let below = whole("wide").in_tenant(tenant("acme/web"));
        let victim = world.create(&admin(), reader("victim")).unwrap();
        let all = [
            refused(denied(world.create(&key, whole("wide")))),
            refused(denied(world.create(&key, below))),
            refused(denied(wait(world.keys.revoke(
                &key,
                victim.id,
                Reason::Lost,
            )))),
            refused(denied(wait(
                world.keys.close_tenant(&key, &tenant("acme/web")),
            ))),
            refused(denied(wait(
                world.keys.list(&key, &world.keys.query(&tenant("acme"))),
            ))),
            refused(denied(wait(world.keys.key(&key, victim.id)))),
        ];
        assert!(all.iter().all(expected), "{all:?}");
    }
}

#[test]
fn a_key_that_expires_in_flight_changes_nothing() {
    let (world, key) = after(|world, id| {
        let change = UpdateKey::new().expiry(Expiry::In(days(1)));
        wait(world.keys.update(&admin(), id, change)).unwrap();
        world.clock.advance(days(1));
    });
    let why = refused(denied(world.create(&key, whole("wide"))));
    assert!(matches!(why, VerifyError::Expired { .. }), "{why}");
}

#[test]
fn a_key_narrowed_in_flight_grants_only_its_remaining_scopes() {
    let (world, key) = after(|world, id| {
        let change = UpdateKey::new().scopes(["reports:*"]);
        wait(world.keys.update(&admin(), id, change)).unwrap();
    });
    let denied = denied(world.create(
        &key,
        CreateKey::new("any").class("wide").scope("reports:read"),
    ));
    assert_eq!(
        denied,
        Denial::Forbidden {
            action: "create keys",
            role: None
        },
        "it is not whole"
    );
}

#[test]
fn a_key_whose_owner_is_removed_in_flight_changes_nothing_in_any_tenant() {
    let (world, key) = after(|world, _| {
        wait(
            world
                .keys
                .remove_owner(&host(), &tenant("acme"), who("alice")),
        )
        .unwrap();
    });
    let below = whole("wide").in_tenant(tenant("acme/web"));
    for draft in [whole("wide"), below] {
        let why = refused(denied(world.create(&key, draft)));
        assert!(
            matches!(
                why,
                VerifyError::OwnerRemoved { .. } | VerifyError::Revoked { .. }
            ),
            "{why}"
        );
    }
}

#[test]
fn a_key_whose_owner_is_demoted_in_flight_grants_only_what_the_role_allows() {
    let (world, key) = after(|world, _| {
        let (place, owner) = (tenant("acme"), who("alice"));
        wait(
            world
                .keys
                .change_owner_role(&host(), &place, owner, Role::MEMBER),
        )
        .unwrap();
    });
    for draft in [whole("wide"), whole("wide").in_tenant(tenant("acme/web"))] {
        let denied = denied(world.create(&key, draft));
        assert!(matches!(denied, Denial::Forbidden { .. }), "{denied:?}");
    }
}

/// If an actor repeats the id of a committed command, it gets the same result again. This holds even if the
/// actor's key was revoked in between.
#[test]
fn a_repeated_command_returns_its_result_even_to_a_key_revoked_since() {
    let world = world();
    let (created, key) = acting(&world, &admin(), whole("wide"));
    let made = wait(world.keys.create(
        key.with_command_id(command("c1")),
        reader("child").class("wide"),
    ));
    let made = made.unwrap().id;
    wait(world.keys.revoke(&admin(), created.id, Reason::Lost)).unwrap();
    let again = world.keys.create(
        key.with_command_id(command("c1")),
        reader("child").class("wide"),
    );
    assert_eq!(denied(wait(again)), Denial::AlreadyCreated { id: made });
}

/// A command is recorded under its principal, not under its key. Therefore another key of the principal can
/// repeat the command.
#[test]
fn another_key_of_the_same_owner_can_repeat_a_command() {
    let world = world();
    let (_, first) = acting(&world, &admin(), whole("secret"));
    let (_, second) = acting(&world, &admin(), whole("secret"));
    let draft = || reader("child").environment("live");
    let made = wait(
        world
            .keys
            .create(first.with_command_id(command("c1")), draft()),
    )
    .unwrap();
    let again = world
        .keys
        .create(second.with_command_id(command("c1")), draft());
    assert_eq!(denied(wait(again)), Denial::AlreadyCreated { id: made.id });
    let (_, of_bob) = acting(&world, &actor("acme", "bob", Role::ADMIN), whole("secret"));
    let taken = world
        .keys
        .create(of_bob.with_command_id(command("c1")), draft());
    assert_eq!(denied(wait(taken)), Denial::CommandIdReused);
}

#[test]
fn trail_and_record_name_the_acting_key_and_its_owner() {
    let world = world();
    let (created, key) = acting(&world, &admin(), whole("secret"));
    let child = world
        .create(&key, reader("child").environment("live"))
        .unwrap();
    let expected = Author::Key {
        key: created.id,
        owner: keyward::key::Owner::Principal(who("alice")),
    };
    let info = wait(world.keys.key(&admin(), child.id)).unwrap();
    assert_eq!(
        (info.created.by.clone(), info.created_by_key),
        (expected.clone(), Some(created.id))
    );
    let query = keyward::store::AuditQuery::tenant(tenant("acme")).about(child.id);
    let trail = wait(world.keys.audit(&admin(), &query)).unwrap().rows;
    assert!(trail.iter().all(|row| row.entry.actor == expected));
    let rotated = wait(
        world
            .keys
            .rotate(&admin(), child.id, keyward::RotateKey::grace(days(1))),
    );
    let successor = wait(world.keys.key(&admin(), rotated.unwrap().id)).unwrap();
    assert_eq!(
        successor.created_by_key,
        Some(created.id),
        "the maker is kept through rotations"
    );
}

/// All keys that a stolen key made, directly or through other keys, are found. This holds even if keys
/// between them were rotated or deleted.
#[test]
fn all_descendants_of_a_key_are_found() {
    let world = world();
    let (stolen, key) = acting(&world, &admin(), whole("wide"));
    let (middle, next) = acting(&world, &key, whole("wide"));
    let below = whole("wide").in_tenant(tenant("acme/web"));
    let deep = world.create(&next, below).unwrap();
    wait(world.keys.delete(&admin(), middle.id, DeleteKey::plain())).unwrap();
    let own = world
        .create(&admin(), reader("alice's own").class("wide"))
        .unwrap();
    let taken = world
        .create(&admin(), reader("rotated by it").class("wide"))
        .unwrap();
    let by_it = keyward::RotateKey::grace(days(1));
    let received = wait(world.keys.rotate(&key, taken.id, by_it)).unwrap();

    let place = tenant("acme");
    let found = wait(world.keys.made_by(&admin(), &place, stolen.id)).unwrap();
    let found: std::collections::BTreeSet<_> = found.iter().map(|key| key.id).collect();
    assert_eq!(found, [deep.id, received.id].into());
    let filter = BulkFilter::all().made_by(stolen.id);
    let reason = Reason::Compromised;
    let swept = wait(world.keys.revoke_many(&admin(), &place, filter, reason)).unwrap();
    assert_eq!(swept.ended, 2);
    assert!(
        world
            .keys
            .verify(deep.secret.expose(), &keyward::Need::any())
            .is_err()
    );
    assert!(
        world
            .keys
            .verify(own.secret.expose(), &keyward::Need::any())
            .is_ok()
    );
}

#[test]
fn a_key_has_at_most_eight_makers() {
    let world = world();
    let (_, mut key) = acting(&world, &admin(), whole("secret").environment("live"));
    for _ in 0..8 {
        key = acting(&world, &key, whole("secret").environment("live")).1;
    }
    let ninth = denied(world.create(&key, whole("secret").environment("live")));
    assert_eq!(ninth, Denial::TooManyMakers { limit: 8 });
}

/// Two commands on one tenant run concurrently. The command of a deleted key fails, and the command of an
/// admin succeeds.
#[test]
fn a_deleted_key_does_not_block_other_commands_below() {
    let world = world();
    let (stolen, key) = acting(&world, &admin(), whole("wide"));
    wait(world.keys.delete(&admin(), stolen.id, DeleteKey::plain())).unwrap();
    let below = || whole("wide").in_tenant(tenant("acme/web"));
    let (refused, made) = wait(futures_util::future::join(
        world.keys.create(&key, below()),
        world.keys.create(&admin(), below()),
    ));
    assert!(matches!(denied(refused), Denial::ActingKey { .. }));
    assert!(made.is_ok(), "{made:?}");
}
