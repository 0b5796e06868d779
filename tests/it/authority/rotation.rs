//! Self-rotation, the only command whose result may outlive the key that issued it.

use keyward::command::{Expiry, ImportKey, LeakSource};
use keyward::key::{Digest, Dimension};
use keyward::{CreateKey, Denial, Need, Role, RotateKey, UpdateKey, days, hours};

use super::{acting, whole, world};
use support::*;

fn narrow(class: &str) -> CreateKey {
    CreateKey::new("narrow")
        .class(class)
        .scope("reports:read")
        .expires_in(days(30))
}

fn grace() -> RotateKey {
    RotateKey::grace(hours(1))
}

#[track_caller]
fn reason(denied: Denial) -> &'static str {
    match denied {
        Denial::SelfRotation { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn by_default_no_key_rotates_itself_be_it_wide_or_narrow() {
    let world = world();
    for draft in [whole("secret"), narrow("secret")] {
        let (created, key) = acting(&world, &admin(), draft.environment("live"));
        let refused = wait(world.keys.rotate(&key, created.id, grace()));
        assert_eq!(reason(denied(refused)), "its class does not allow it");
    }
}

#[test]
fn a_rotation_within_its_life_keeps_the_keys_end() {
    let world = world();
    let (created, key) = acting(&world, &admin(), narrow("within"));
    let end = created.expires_at;
    world.clock.advance(days(10));
    let rotated = wait(world.keys.rotate(&key, created.id, grace())).unwrap();
    assert_eq!(rotated.expires_at, end);
    let info = wait(world.keys.key(&admin(), rotated.id)).unwrap();
    assert_eq!(
        info.bound,
        [Role::ADMIN].into(),
        "the bound does not follow a promotion"
    );
}

#[test]
fn an_imported_key_rotates_itself_to_a_native_key_within_its_life() {
    let world = world();
    let draft = narrow("within");
    let import = ImportKey::sha256(Digest::sha256("old-token"), draft);
    let imported = wait(world.keys.import(&admin(), import)).unwrap();
    let key = world.keys.verify("old-token", &Need::any()).unwrap();
    let end = key.expires_at();
    world.clock.advance(days(10));
    let rotated = wait(world.keys.rotate(&key.actor(), imported.id, grace())).unwrap();
    assert_eq!(rotated.expires_at, end);
    let successor = world.keys.verify(rotated.secret.expose(), &Need::any());
    assert_eq!(successor.unwrap().scopes(), key.scopes());
    // The retiring key is not its successor's manager.
    let again = wait(world.keys.rotate(&key.actor(), rotated.id, grace()));
    assert_eq!(reason(denied(again)), "it is being replaced");
}

#[test]
fn a_key_renews_itself_until_its_chain_reaches_the_maximum_age() {
    let world = world();
    let (created, mut key) = acting(&world, &admin(), narrow("renewing"));
    let born = at(START);
    let last = born.saturating_add(days(100));
    let mut id = created.id;
    for _ in 0..3 {
        world.clock.advance(days(20));
        let rotated = wait(world.keys.rotate(&key, id, grace())).unwrap();
        assert_eq!(
            rotated.expires_at,
            Some(last),
            "the class has no lifetime of its own"
        );
        id = rotated.id;
        let need = keyward::Need::any();
        key = world
            .keys
            .verify(rotated.secret.expose(), &need)
            .unwrap()
            .actor();
    }
    world.clock.advance(days(40));
    assert!(wait(world.keys.rotate(&key, id, grace())).is_err());
}

/// Self-rotation ends at a maximum age. If a key creates another key, the age of the new key still counts
/// from the first key.
#[test]
fn the_maximum_age_counts_from_the_first_key_through_keys_that_make_keys() {
    let world = world();
    let first = whole("renewing").expires_in(days(30));
    let (_, key) = acting(&world, &admin(), first);
    let last = at(START).saturating_add(days(100));
    world.clock.advance(days(20));
    let within = whole("renewing").expires_in(days(5));
    let (next, key) = acting(&world, &key, within);
    let rotated = wait(world.keys.rotate(&key, next.id, grace())).unwrap();
    assert_eq!(rotated.expires_at, Some(last));
}

#[test]
fn no_retiring_or_leaked_key_rotates_itself_and_no_key_does_so_without_grace() {
    let world = world();
    let (created, key) = acting(&world, &admin(), narrow("within"));
    let at_once = wait(world.keys.rotate(&key, created.id, RotateKey::immediate()));
    assert_eq!(reason(denied(at_once)), "only with grace or on first use");
    let rotated = wait(world.keys.rotate(&admin(), created.id, grace())).unwrap();
    let again = wait(world.keys.rotate(&key, created.id, grace()));
    assert_eq!(reason(denied(again)), "it is being replaced");
    let taken = wait(world.keys.rotate(&key, rotated.id, grace()));
    assert_eq!(reason(denied(taken)), "it is being replaced");

    let mut spec = super::policy();
    spec.legacy = keyward::policy::LegacyRule::One {
        class: class("within"),
        name: "legacy".try_into().unwrap(),
        scopes: scope("reports:read").into(),
    };
    let within = spec.classes.get_mut("within").unwrap();
    within
        .prefixes
        .retain(|environment, _| environment.as_str() == "live");
    let world = TestService::with_policy(spec);
    let provisioned = wait(world.keys.provision_tenant(&host(), &tenant("acme"))).unwrap();
    let legacy = &provisioned[0];
    let secret = legacy.token.as_ref().unwrap().expose();
    let key = world
        .keys
        .verify(secret, &keyward::Need::any())
        .unwrap()
        .actor();
    let found = world
        .keys
        .report_leaked_token(secret, LeakSource::new("gist").unwrap());
    wait(found).unwrap();
    let refused = wait(world.keys.rotate(&key, legacy.id, grace()));
    assert_eq!(reason(denied(refused)), "it was found in the open");
}

/// If the response to a self-rotation is lost, the old key still works and can ask again for its successor's
/// secret.
#[test]
fn a_key_that_lost_the_answer_to_its_rotation_asks_again() {
    let world = world();
    let (created, key) = acting(&world, &admin(), narrow("within"));
    let how = RotateKey::on_first_use(hours(1));
    let lost = wait(world.keys.rotate(&key, created.id, how)).unwrap();
    let again = wait(world.keys.replace_lost(&key, lost.id)).unwrap();
    let verified = world
        .keys
        .verify(again.secret.expose(), &reading())
        .unwrap();
    assert_eq!(verified.key_id(), lost.id);
    let (_, other) = acting(&world, &admin(), narrow("within"));
    let stolen = denied(wait(world.keys.replace_lost(&other, lost.id)));
    assert!(matches!(stolen, Denial::Forbidden { .. }), "{stolen:?}");
}

#[test]
fn the_trail_records_that_a_key_rotated_itself() {
    let world = world();
    let (created, key) = acting(&world, &admin(), narrow("within"));
    wait(world.keys.rotate(&key, created.id, grace())).unwrap();
    let query = keyward::store::AuditQuery::tenant(tenant("acme")).about(created.id);
    let trail = wait(world.keys.audit(&admin(), &query)).unwrap().rows;
    let rotated = trail.last().map(|row| row.entry.actor.key());
    assert_eq!(rotated, Some(Some(created.id)));
}

// In the tests below, a key asks again for its successor's secret after a lost response. The successor gets
// no more than the key's current rights.

fn lost() -> RotateKey {
    RotateKey::on_first_use(hours(1))
}

#[test]
fn a_narrowed_key_gets_no_wider_successor_by_asking_again() {
    let narrowings: [(UpdateKey, Dimension); 2] = [
        (UpdateKey::new().scopes(["reports:read"]), Dimension::Scopes),
        (
            UpdateKey::new().allow_addresses(["10.0.0.0/8"]),
            Dimension::Addresses,
        ),
    ];
    for (narrowing, exceeded) in narrowings {
        let world = world();
        let draft = narrow("within").scopes(["reports:*"]);
        let from = Need::any().from_address("10.1.2.3".parse().unwrap());
        let old = world.create(&admin(), draft).unwrap();
        let act = || {
            world
                .keys
                .verify(old.secret.expose(), &from)
                .unwrap()
                .actor()
        };
        let stale = act();
        let new = wait(world.keys.rotate(&stale, old.id, lost())).unwrap();
        // As long as the old key is not narrowed, it may ask again for its successor's secret.
        wait(world.keys.replace_lost(&stale, new.id)).unwrap();
        wait(world.keys.update(&admin(), old.id, narrowing)).unwrap();
        for by in [stale, act()] {
            match denied(wait(world.keys.replace_lost(&by, new.id))) {
                Denial::ExceedsActor { dimension, .. } => assert_eq!(dimension, exceeded),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_key_gets_no_successor_widened_by_others_by_asking_again() {
    let widenings: [(UpdateKey, Dimension); 2] = [
        (UpdateKey::new().scopes(["*:*"]), Dimension::Scopes),
        (UpdateKey::new().expiry(Expiry::Never), Dimension::Lifetime),
    ];
    for (widening, exceeded) in widenings {
        let world = world();
        let (old, key) = acting(&world, &admin(), narrow("within"));
        let new = wait(world.keys.rotate(&key, old.id, lost())).unwrap();
        wait(world.keys.update(&admin(), new.id, widening)).unwrap();
        match denied(wait(world.keys.replace_lost(&key, new.id))) {
            Denial::ExceedsActor { dimension, .. } => assert_eq!(dimension, exceeded),
            other => panic!("{other:?}"),
        }
    }
}

/// A self-rotation may give the successor a later expiry. If the old key asks again for the lost secret, the
/// successor keeps that expiry.
#[test]
fn a_key_that_renews_itself_asks_again_for_a_later_end() {
    let world = world();
    let (old, key) = acting(&world, &admin(), narrow("renewing"));
    let new = wait(world.keys.rotate(&key, old.id, lost())).unwrap();
    assert!(new.expires_at > old.expires_at);
    let again = wait(world.keys.replace_lost(&key, new.id)).unwrap();
    assert_eq!(again.expires_at, new.expires_at);
}
