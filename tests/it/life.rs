//! The life cycle of keys through the public API: accepted values, refused values, and messages.

use keyward::audit::Action;
use keyward::command::{BulkFilter, Created, DeleteKey, ImportKey, LeakSource, Problem};
use keyward::key::Digest;
use keyward::pepper::PepperId;
use keyward::policy::{Deletion, Revocation, Rotation};
use keyward::token::TokenPrefix;
use keyward::{
    Credentials, Denial, KeyInfo, Keyward, Need, Reason, Role, RotateKey, UpdateKey, VerifyError,
    days, hours, profiles,
};
use support::*;

#[test]
fn a_bad_value_is_refused_naming_field_bound_and_size() {
    let world = TestService::new();
    let long = denied(world.create(&admin(), reader(&"n".repeat(201))));
    let Denial::Invalid(invalid) = &long else {
        panic!("{long:?}")
    };
    assert_eq!(
        invalid.problem,
        Problem::TooLong {
            max: 200,
            actual: 201
        }
    );
    assert_eq!(
        long.to_string(),
        "key name is 201 bytes long, at most 200 are allowed"
    );
    let metadata = reader("m").metadata([("k", "v".repeat(17_000))]);
    let message = denied(world.create(&admin(), metadata)).to_string();
    assert_eq!(
        message,
        "metadata is 17001 bytes long, at most 16384 are allowed"
    );
    let update = UpdateKey::new().scopes(["no-colon"]);
    let refused = denied(wait(world.keys.update(
        &admin(),
        world.some_key().id,
        update,
    )));
    assert!(
        refused
            .to_string()
            .starts_with("scope must be resource:action"),
        "{refused}"
    );
}

#[test]
fn old_peppers_still_verify_and_a_used_key_moves_to_the_current_one() {
    let world = TestService::new();
    let key = world.some_key();
    let idle = world.some_key();
    let ring = peppers().rotate(pepper("p2", 2)).unwrap();
    let clock = world.clock.clone();
    let node = wait(
        Keyward::builder(world.store.clone(), ring)
            .clock(clock)
            .build(),
    )
    .unwrap();
    node.verify(key.secret.expose(), &reading()).unwrap();
    assert_eq!(wait(node.run_maintenance()).unwrap(), 1);
    node.verify(key.secret.expose(), &reading()).unwrap();
    assert_eq!(
        wait(node.run_maintenance()).unwrap(),
        0,
        "the key now has the current pepper"
    );
    // A key that is never used stays under the old pepper. An operator finds such keys by their pepper, and
    // revokes them.
    let old = BulkFilter::all().pepper(PepperId::new("p1").unwrap());
    let done = wait(node.revoke_many(&admin(), &tenant("acme"), old, Reason::Unused)).unwrap();
    assert_eq!(done.ended, 1);
    assert!(node.verify(idle.secret.expose(), &reading()).is_err());
    node.verify(key.secret.expose(), &reading()).unwrap();
}

#[cfg(unix)]
#[test]
fn processes_that_adopt_a_pepper_rotation_one_by_one_refuse_no_key() {
    use keyward::PepperFile;

    let world = TestService::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pepper");
    let store = keyward::store::MemoryStore::new();
    // A process adopts a changed pepper file only when it restarts.
    let start = |file: &PepperFile| {
        let builder = Keyward::builder(store.clone(), file.ring());
        wait(builder.clock(world.clock.clone()).build()).unwrap()
    };
    let mut peppers = PepperFile::create(&file).unwrap();
    let (late, mut one) = (start(&peppers), start(&peppers));
    let created = |node: &Keyward| wait(node.create(&admin(), reader("key"))).unwrap();
    let mut keys = vec![created(&one)];
    let all_verify = |node: &Keyward, keys: &[Created]| {
        wait(node.sync()).unwrap();
        for key in keys {
            node.verify(key.secret.expose(), &reading()).unwrap();
        }
    };
    peppers.prepare().unwrap();
    let mut other = start(&peppers);
    keys.push(created(&other));
    all_verify(&one, &keys);
    one = start(&PepperFile::open(&file).unwrap());

    other = {
        all_verify(&other, &keys);
        peppers.rotate().unwrap();
        start(&peppers)
    };
    keys.push(created(&other));
    // When the node `other` verifies a key, the key's digest moves to the new pepper.
    all_verify(&other, &keys);
    assert_eq!(wait(other.run_maintenance()).unwrap(), 2);
    all_verify(&one, &keys);

    // The process `late` has not adopted the prepared pepper yet. It reports an unknown pepper until it
    // restarts.
    wait(late.sync()).unwrap();
    let refused = late.verify(keys[2].secret.expose(), &reading());
    assert!(matches!(refused, Err(VerifyError::UnknownPepper { .. })));
    let late = start(&PepperFile::open(&file).unwrap());
    all_verify(&late, &keys);
}

#[test]
fn deleting_revoking_and_rotating_follow_the_class() {
    let mut spec = profiles::standard();
    let secret = spec.classes.get_mut("secret").unwrap();
    secret.rotation = Rotation::None;
    secret.deletion = Deletion::Typed("DELETE".to_owned());
    secret.revocation = Revocation::Allowed {
        confirm: true,
        keep: None,
    };
    let world = TestService::with_policy(spec);
    let key = world.some_key();
    let rotated = wait(world.keys.rotate(&admin(), key.id, RotateKey::immediate()));
    assert_eq!(
        denied(rotated),
        Denial::NotRotatable {
            class: class("secret")
        }
    );
    let plain = wait(world.keys.revoke(&admin(), key.id, Reason::Lost));
    assert_eq!(denied(plain), Denial::ConfirmationRequired);
    let text = "DELETE".to_owned();
    let typed = wait(
        world
            .keys
            .delete(&admin(), key.id, DeleteKey::typed("delete")),
    );
    assert_eq!(denied(typed), Denial::TypedConfirmationRequired { text });
    wait(
        world
            .keys
            .revoke(&admin(), key.id, Reason::Lost.confirmed()),
    )
    .unwrap();
    let info = wait(world.keys.key(&admin(), key.id)).unwrap();
    assert_eq!(info.revocation.map(|own| own.reason), Some(Reason::Lost));
    wait(
        world
            .keys
            .delete(&admin(), key.id, DeleteKey::typed("DELETE")),
    )
    .unwrap();
    assert_eq!(
        denied(wait(world.keys.key(&admin(), key.id))),
        Denial::NotFound
    );
}

#[test]
fn live_keys_never_exceed_twice_the_cap() {
    let world = TestService::with_policy(capped(2));
    let grace = RotateKey::grace(days(1));
    let first = world.some_key();
    // The cap of two active keys allows four live keys here: one active key, and three replaced keys in their
    // grace period.
    let mut newest = first.id;
    for _ in 0..3 {
        world.clock.advance(hours(1));
        newest = wait(world.keys.rotate(&admin(), newest, grace.clone()))
            .unwrap()
            .id;
    }
    let live = || {
        let query = world.keys.query(&tenant("acme")).live();
        wait(world.keys.list(&admin(), &query)).unwrap().keys.len()
    };
    assert_eq!(live(), 4);
    world.some_key();
    assert_eq!(live(), 4, "room for the new key was made");
    let refusal = world
        .keys
        .verify(first.secret.expose(), &reading())
        .unwrap_err();
    assert!(
        matches!(refusal, VerifyError::Revoked { .. }),
        "the oldest draining key was ended"
    );
}

#[test]
fn a_need_can_restrict_the_class_of_the_public_half_of_a_pair() {
    let mut spec = profiles::standard();
    let other = spec.classes["publishable"].clone();
    let prefixes = [(environment("live"), TokenPrefix::new("tag_").unwrap())].into();
    spec.classes
        .insert(class("tag"), other.with(|class| class.prefixes = prefixes));
    let world = TestService::with_policy(spec);
    let secret = world.some_key();
    let public = |name| world.create(&admin(), reader(name).class(name)).unwrap();
    let (expected, tag) = (public("publishable"), public("tag"));
    let pair = |other: &Created, need: &Need| {
        let pair = Credentials::Pair {
            public: other.secret.expose().as_bytes(),
            secret: secret.secret.expose().as_bytes(),
        };
        world.keys.verify(pair, need).map(|grant| grant.key_id())
    };
    assert_eq!(pair(&tag, &reading()), Ok(secret.id));
    let need = reading().beside_class(class("publishable"));
    assert_eq!(pair(&expected, &need), Ok(secret.id));
    assert_eq!(pair(&tag, &need), Err(VerifyError::PairMismatch));
}

#[test]
fn the_legacy_key_cannot_be_narrowed() {
    let world = TestService::with_policy(profiles::amplitude());
    wait(world.keys.provision_tenant(&admin(), &tenant("acme"))).unwrap();
    let query = world.keys.query(&tenant("acme"));
    let legacy = wait(world.keys.list(&admin(), &query))
        .unwrap()
        .keys
        .remove(0);
    assert!(legacy.legacy);
    for change in [
        UpdateKey::new().scopes([] as [&str; 0]),
        UpdateKey::new().allow_addresses(["192.0.2.1"]),
    ] {
        let refused = denied(wait(world.keys.update(&admin(), legacy.id, change)));
        assert_eq!(refused, Denial::LegacyKey { action: "narrowed" });
    }
    let renamed = UpdateKey::new().name("web and apps");
    wait(world.keys.update(&admin(), legacy.id, renamed)).unwrap();
}

#[test]
fn a_purge_removes_only_keys_past_their_retention() {
    let mut spec = profiles::standard();
    let secret = spec.classes.get_mut("secret").unwrap();
    secret.revocation = Revocation::Allowed {
        confirm: false,
        keep: Some(days(30)),
    };
    let world = TestService::with_policy(spec);
    let acme = tenant("acme");
    let (revoked, kept) = (world.some_key(), world.some_key());
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    let purge = || wait(world.keys.purge(&host(), &acme)).unwrap().ended;
    world.clock.advance(days(29));
    assert_eq!(purge(), 0);
    world.clock.advance(days(1));
    assert_eq!(purge(), 1);
    let gone = wait(world.keys.key(&admin(), revoked.id));
    assert_eq!(denied(gone), Denial::NotFound);
    world.keys.verify(kept.secret.expose(), &reading()).unwrap();
    let by_a_person = wait(world.keys.purge(&admin(), &acme));
    assert!(matches!(denied(by_a_person), Denial::HostOnly { .. }));
}

#[test]
fn the_successor_of_an_imported_key_is_a_native_key_of_its_class_and_environment() {
    let world = TestService::with_policy(capped(1));
    let old = "token-of-another-system";
    let import = |name| {
        let draft = reader(name).environment("test").expires_in(days(90));
        let draft = draft.owned_by(who("bob"), Role::DEVELOPER);
        let import = ImportKey::sha256(Digest::sha256(old), draft);
        wait(world.keys.import(&admin(), import))
    };
    let verifies = |token: &str| world.keys.verify(token, &reading()).is_ok();
    let imported = import("imported").unwrap();
    let rotated = wait(
        world
            .keys
            .rotate(&admin(), imported.id, RotateKey::grace(hours(1))),
    );
    let rotated = rotated.unwrap();
    assert!(rotated.secret.expose().starts_with("sk_test_"));
    let info = |id| wait(world.keys.key(&admin(), id)).unwrap();
    let (before, after) = (info(imported.id), info(rotated.id));
    let kept = |key: &KeyInfo| {
        let settings = (key.class.clone(), key.environment.clone());
        (settings, key.owner.clone(), key.scopes.clone())
    };
    assert_eq!(kept(&before), kept(&after));
    assert_eq!(
        after.expires_at,
        Some(at(START).saturating_add(days(90))),
        "the lifetime counts from the rotation"
    );
    assert_ne!(before.hint, after.hint);
    assert!(verifies(old) && verifies(rotated.secret.expose()));
    let acme = tenant("acme");
    let recorded = recorded_actions(&world, &acme, imported.id);
    assert!(
        matches!(
            recorded[..],
            [Action::KeyImported { .. }, Action::KeyRotated { successor, .. }] if successor == rotated.id
        ),
        "{recorded:?}"
    );
    let recorded = recorded_actions(&world, &acme, rotated.id);
    assert!(
        matches!(recorded[..], [Action::KeyCreated { .. }]),
        "{recorded:?}"
    );
    world.clock.advance(hours(1));
    assert!(!verifies(old) && verifies(rotated.secret.expose()));
    // The digest stays taken, also after the key is deleted.
    wait(world.keys.revoke(&admin(), rotated.id, Reason::Lost)).unwrap();
    assert_eq!(denied(import("again")), Denial::DigestTaken);
    wait(world.keys.delete(&admin(), imported.id, DeleteKey::plain())).unwrap();
    assert_eq!(denied(import("again")), Denial::DigestTaken);
}

#[test]
fn an_imported_key_ends_as_the_mode_of_its_rotation_says() {
    let world = TestService::new();
    let verifies = |token: &str| world.keys.verify(token, &reading()).is_ok();
    for (old, how, in_grace) in [
        ("immediate", RotateKey::immediate(), false),
        ("with-grace", RotateKey::grace(hours(1)), true),
        ("on-first-use", RotateKey::on_first_use(hours(1)), true),
    ] {
        let import = ImportKey::sha256(Digest::sha256(old), reader(old));
        let imported = wait(world.keys.import(&admin(), import)).unwrap();
        let rotated = wait(world.keys.rotate(&admin(), imported.id, how)).unwrap();
        assert_eq!(verifies(old), in_grace, "{old}");
        if old == "on-first-use" {
            world.clock.advance(hours(2));
            assert!(verifies(old), "it waits for the first use");
        }
        assert!(verifies(rotated.secret.expose()), "{old}");
        wait(world.keys.run_maintenance()).unwrap();
        assert_eq!(verifies(old), in_grace, "{old}");
        world.clock.advance(hours(1));
        assert!(!verifies(old), "{old}");
        assert!(verifies(rotated.secret.expose()), "{old}");
    }
}

#[test]
fn cancelling_the_rotation_of_an_imported_key_restores_its_token() {
    let world = TestService::with_policy(capped(1));
    let import = ImportKey::sha256(Digest::sha256("old"), reader("old"));
    let imported = wait(world.keys.import(&admin(), import)).unwrap();
    let how = RotateKey::grace(hours(1));
    let rotated = wait(world.keys.rotate(&admin(), imported.id, how)).unwrap();
    wait(world.keys.cancel_rotation(&admin(), imported.id)).unwrap();
    world.clock.advance(hours(2));
    world.keys.verify("old", &reading()).unwrap();
    let refused = world.keys.verify(rotated.secret.expose(), &reading());
    assert!(matches!(refused, Err(VerifyError::Revoked { .. })));
}

#[test]
fn only_the_lost_secret_of_an_imported_keys_successor_is_replaced() {
    let world = TestService::new();
    let import = ImportKey::sha256(Digest::sha256("old"), reader("old"));
    let imported = wait(world.keys.import(&admin(), import)).unwrap();
    let refused = denied(wait(world.keys.replace_lost(&admin(), imported.id)));
    assert_eq!(refused, Denial::NotReplaceable);
    assert!(
        refused.to_string().ends_with("; rotate the key instead"),
        "{refused}"
    );
    let how = RotateKey::on_first_use(hours(1));
    let lost = wait(world.keys.rotate(&admin(), imported.id, how)).unwrap();
    let replaced = wait(world.keys.replace_lost(&admin(), lost.id)).unwrap();
    world
        .keys
        .verify(replaced.secret.expose(), &reading())
        .unwrap();
    let refused = world.keys.verify(lost.secret.expose(), &reading());
    assert_eq!(refused.unwrap_err(), VerifyError::WrongSecret);
}

/// Anyone who has a token may report it. Fails if a repeated report writes a row or an audit entry, or claims to
/// have revoked a key that was already revoked.
#[test]
fn a_repeated_report_of_a_leak_writes_nothing() {
    let world = TestService::new();
    let shown = reader("shown").class("publishable").environment("live");
    let secret = world.create(&admin(), reader("secret")).unwrap();
    let shown = world.create(&admin(), shown).unwrap();
    let revoked = world.create(&admin(), reader("revoked")).unwrap();
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    for (key, revokes) in [(secret, true), (shown, false), (revoked, false)] {
        let token = key.secret.expose();
        let report = |from| {
            let source = LeakSource::new(from).unwrap();
            let report = wait(world.keys.report_leaked_token(token, source)).unwrap();
            let recorded = recorded_actions(&world, &tenant("acme"), key.id);
            (report.revoked, report.receipt.revision(), recorded)
        };
        let (first, revision, recorded) = report("a paste");
        assert_eq!(first, revokes);
        let says = |action: &Action| matches!(action, Action::KeyLeaked { revoked, .. } if *revoked == revokes);
        assert_eq!(recorded.iter().filter(|action| says(action)).count(), 1);
        for from in ["a paste", "another paste"] {
            assert_eq!(report(from), (false, revision, recorded.clone()));
        }
    }
}
