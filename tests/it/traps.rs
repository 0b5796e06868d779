//! Mistakes of other systems, called traps here and numbered as in `docs/design.md`.
//!
//! `nodes.rs` has the traps that need several processes, `secrets.rs` the trap about secrets in outputs, and
//! `authority` the traps about authority. `house.rs` compares the numbers with the tests.

use keyward::audit::Action;
use keyward::command::{Expiry, ImportKey};
use keyward::key::{Digest, Dimension, Status};
use keyward::policy::KeyClass;
use keyward::store::usage::UsageStore;
use keyward::store::{AuditQuery, KeyStore, LoadRequest};
use keyward::{
    CreateKey, Credentials, Denial, Keyward, Need, PepperRing, Reason, Role, RotateKey, UpdateKey,
    VerifyError, days, hours, profiles, token,
};
use support::*;

#[test]
fn trap_03_a_verification_does_not_restore_a_disabled_key() {
    let world = TestService::new();
    let key = world.some_key();
    let rotated = wait(
        world
            .keys
            .rotate(&admin(), key.id, RotateKey::on_first_use(hours(1))),
    );
    let successor = rotated.unwrap();
    // The first use leaves work for maintenance. The key is disabled before that work runs.
    world
        .keys
        .verify(successor.secret.expose(), &reading())
        .unwrap();
    wait(world.keys.disable(&admin(), successor.id)).unwrap();
    wait(world.keys.run_maintenance()).unwrap();
    let refusal = world
        .keys
        .verify(successor.secret.expose(), &reading())
        .unwrap_err();
    assert_eq!(refusal, VerifyError::Disabled { key: successor.id });
}

#[test]
fn trap_04_parallel_creates_on_several_nodes_stop_at_the_cap() {
    const CAP: usize = 10;
    let world = TestService::with_policy(capped(10));
    let policy = keyward::policy::Policy::new(capped(10)).unwrap();
    let nodes: Vec<_> = (0..4).map(|_| world.another_node(policy.clone())).collect();
    let created: usize = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..8)
            .map(|thread| {
                let keys: &Keyward = &nodes[thread % nodes.len()];
                scope.spawn(move || {
                    let create = |n| wait(keys.create(&admin(), reader(&format!("{thread} {n}"))));
                    (0..5).filter(|n| create(*n).is_ok()).count()
                })
            })
            .collect();
        attempts
            .into_iter()
            .map(|attempt| attempt.join().unwrap())
            .sum()
    });
    assert_eq!(created, CAP);
    let select = LoadRequest {
        live: [("secret".parse().unwrap(), at(START))].into(),
        ..LoadRequest::none()
    };
    assert_eq!(
        wait(world.store.load(&tenant("acme"), &select))
            .unwrap()
            .records
            .len(),
        CAP
    );
}

#[test]
fn trap_05_only_holders_of_a_secret_learn_the_state_of_its_key() {
    let world = TestService::new();
    let revoked = world.some_key();
    let disabled = world.some_key();
    let expired = world
        .create(&admin(), reader("short").expires_in(hours(1)))
        .unwrap();
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    wait(world.keys.disable(&admin(), disabled.id)).unwrap();
    world.clock.advance(hours(2));
    for key in [&revoked, &disabled, &expired] {
        let guess = with_other_secret(key.secret.expose());
        let refusal = world.keys.verify(&guess, &reading()).unwrap_err();
        assert_eq!(refusal, VerifyError::WrongSecret);
        assert_eq!(refusal.key(), None);
        let refused = world
            .keys
            .verify(key.secret.expose(), &reading())
            .unwrap_err();
        assert_eq!(refused.key(), Some(key.id), "{refused}");
    }
}

#[test]
fn trap_06_an_unknown_id_and_a_wrong_secret_look_the_same_to_a_client() {
    let world = TestService::new();
    let other = TestService::new();
    let stranger = other.some_key();
    let guess = with_other_secret(world.some_key().secret.expose());
    let unknown = world
        .keys
        .verify(stranger.secret.expose(), &reading())
        .unwrap_err();
    let wrong = world.keys.verify(&guess, &reading()).unwrap_err();
    assert_eq!(
        (&unknown, &wrong),
        (&VerifyError::Unknown, &VerifyError::WrongSecret)
    );
    assert_eq!(unknown.public_message(), wrong.public_message());
    assert_eq!(unknown.kind(), wrong.kind());
}

#[test]
fn trap_07_a_rotation_neither_revives_nor_lengthens_the_old_key() {
    let world = TestService::new();
    let short = world
        .create(&admin(), reader("short").expires_in(hours(1)))
        .unwrap();
    let long = RotateKey::grace(days(30));
    let rotated = wait(world.keys.rotate(&admin(), short.id, long.clone())).unwrap();
    assert_eq!(
        Some(rotated.until),
        short.expires_at,
        "the key's own expiry comes before the end of the grace period"
    );
    assert_eq!(
        rotated.expires_at, short.expires_at,
        "the successor gets the same lifetime, counted from now"
    );

    let gone = world
        .create(&admin(), reader("gone").expires_in(hours(1)))
        .unwrap();
    world.clock.advance(hours(1));
    assert_eq!(
        denied(wait(world.keys.rotate(&admin(), gone.id, long.clone()))),
        Denial::Expired
    );
    assert_eq!(
        denied(wait(world.keys.cancel_rotation(&admin(), short.id))),
        Denial::Expired
    );
    assert!(
        world
            .keys
            .verify(short.secret.expose(), &reading())
            .is_err()
    );
    let revoked = world.some_key();
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    assert_eq!(
        denied(wait(world.keys.rotate(&admin(), revoked.id, long))),
        Denial::Revoked
    );
}

#[test]
fn trap_08_a_lost_answer_costs_no_key() {
    let world = TestService::new();
    let first = admin();
    let key = wait(
        world
            .keys
            .create(&first.with_command_id(command("c1")), reader("a")),
    )
    .unwrap();
    // The response to the command was lost. Repeating the command creates nothing and returns no secret.
    let again = wait(
        world
            .keys
            .create(&first.with_command_id(command("c1")), reader("a")),
    );
    assert_eq!(denied(again), Denial::AlreadyCreated { id: key.id });
    let replaced = wait(world.keys.replace_lost(&first, key.id)).unwrap();
    assert_eq!(replaced.id, key.id);
    world
        .keys
        .verify(replaced.secret.expose(), &reading())
        .unwrap();
    let lost = world.keys.verify(key.secret.expose(), &reading());
    assert_eq!(
        lost.unwrap_err(),
        VerifyError::WrongSecret,
        "the lost secret no longer works"
    );

    // The answer to a rotation on first use was lost. The old key still works, and the rotation can be
    // repeated.
    let how = RotateKey::on_first_use(hours(1));
    let lost = wait(world.keys.rotate(&first, key.id, how.clone())).unwrap();
    world.clock.advance(days(29));
    world
        .keys
        .verify(replaced.secret.expose(), &reading())
        .unwrap();
    let second = wait(world.keys.rotate(&first, key.id, how)).unwrap();
    assert!(
        world.keys.verify(lost.secret.expose(), &reading()).is_err(),
        "cancelled unused"
    );
    world
        .keys
        .verify(second.secret.expose(), &reading())
        .unwrap();
    wait(world.keys.run_maintenance()).unwrap();
    world
        .keys
        .verify(replaced.secret.expose(), &reading())
        .unwrap();
    world.clock.advance(hours(1));
    let refusal = world
        .keys
        .verify(replaced.secret.expose(), &reading())
        .unwrap_err();
    assert!(
        matches!(refusal, VerifyError::Expired { .. }),
        "the grace period started at the first use"
    );
}

/// The counts of uses wait in memory for the next flush.
#[test]
fn trap_11_a_verification_writes_nothing() {
    let world = TestService::metered(keyward::profiles::standard());
    let key = world.some_key();
    let state = || {
        let head = wait(world.store.scan(None, std::num::NonZeroUsize::MIN))
            .unwrap()
            .head;
        let uses = wait(world.store.last_uses(&[key.id])).unwrap();
        (head, wait(world.store.ledger()).unwrap(), uses)
    };
    let before = state();
    for _ in 0..1000 {
        let _granted = world.keys.verify(key.secret.expose(), &reading()).unwrap();
        assert!(
            world
                .keys
                .verify(key.secret.expose(), &Need::scope("no:such").unwrap())
                .is_err()
        );
    }
    assert_eq!(state(), before);
    assert_eq!(wait(world.keys.flush_usage()).unwrap().sent, 1);
}

#[test]
fn trap_12_every_change_has_its_audit_entry_at_the_same_revision() {
    let world = TestService::new();
    let key = world.some_key();
    let receipt = wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let query = AuditQuery::tenant(tenant("acme")).about(key.id);
    let rows = wait(world.keys.audit(&admin(), &query)).unwrap().rows;
    let last = rows.last().unwrap();
    assert_eq!(last.revision, receipt.revision());
    assert_eq!(
        last.entry.action,
        Action::KeyRevoked {
            reason: Reason::Lost
        }
    );
    let refused = wait(world.keys.enable(&admin(), key.id));
    assert_eq!(denied(refused), Denial::Revoked);
    let after = wait(world.keys.audit(&admin(), &query)).unwrap().rows;
    assert_eq!(
        after.len(),
        rows.len(),
        "the refused command left no audit entry"
    );
}

#[test]
fn trap_13_a_key_cannot_mint_a_stronger_one() {
    let world = TestService::new();
    let whole = CreateKey::new("whole").scope("*:*").expires_in(days(2));
    let whole = world.create(&admin(), whole).unwrap();
    let strong = world
        .create(&admin(), CreateKey::new("strong").scope("*:*"))
        .unwrap();
    let weak = world
        .create(&admin(), reader("weak").expires_in(days(1)))
        .unwrap();
    let acting = |key: &keyward::command::Created| {
        let grant = world.keys.verify(key.secret.expose(), &Need::any());
        grant.unwrap().actor()
    };
    let exceeds = |result| match denied(result) {
        Denial::ExceedsActor { dimension, .. } => dimension,
        other => panic!("{other:?}"),
    };
    // A key with all scopes of its owner's role also has that role. Even so, it cannot create a key that
    // outlives it.
    let mallory = acting(&whole);
    let longer = reader("longer").expires_in(days(3));
    assert_eq!(exceeds(world.create(&mallory, longer)), Dimension::Lifetime);
    let never = reader("for ever").never_expires();
    assert_eq!(exceeds(world.create(&mallory, never)), Dimension::Lifetime);
    let rotated = wait(
        world
            .keys
            .rotate(&mallory, strong.id, RotateKey::immediate()),
    );
    assert_eq!(
        denied(rotated),
        Denial::ExceedsActor {
            dimension: Dimension::Lifetime,
            reach: keyward::ScopeSet::all(),
        }
    );
    world
        .create(&mallory, reader("short").expires_in(days(1)))
        .unwrap();

    // A key that may only read reports does not have its owner's role, so it may manage no keys.
    let narrowed = acting(&weak);
    let wider = CreateKey::new("wider")
        .scope("billing:write")
        .expires_in(hours(1));
    assert!(matches!(
        denied(world.create(&narrowed, wider)),
        Denial::Forbidden { .. }
    ));
    let closed = wait(world.keys.close_tenant(&narrowed, &tenant("acme")));
    assert!(matches!(denied(closed), Denial::Forbidden { .. }));
    let rotated = wait(
        world
            .keys
            .rotate(&narrowed, strong.id, RotateKey::immediate()),
    );
    assert!(matches!(denied(rotated), Denial::Forbidden { .. }));
    world
        .keys
        .verify(strong.secret.expose(), &reading())
        .unwrap();

    // The application states the actor's tenant, so an actor of another tenant sees nothing.
    let stranger = actor("other", "eve", Role::ADMIN);
    let revoked = wait(world.keys.revoke(&stranger, strong.id, Reason::Lost));
    assert_eq!(denied(revoked), Denial::NotFound);
    let there = world.create(&stranger, reader("x").in_tenant(tenant("acme")));
    assert_eq!(denied(there), Denial::TenantNotFound);
}

#[test]
fn trap_13_nobody_gains_a_stronger_role_through_anothers_key() {
    let world = TestService::new();
    let alices = world.some_key();
    let dave = actor("acme", "dave", Role::DEVELOPER);
    fn role<T: std::fmt::Debug>(result: Result<T, keyward::CommandError>) {
        match denied(result) {
            Denial::ExceedsActor { dimension, .. } => assert_eq!(dimension, Dimension::Role),
            other => panic!("{other:?}"),
        }
    }
    let acme = tenant("acme");
    for (owner, role) in [
        ("bob", Role::MEMBER),
        ("zoe", Role::ADMIN),
        ("sue", Role::SUPPORT),
    ] {
        let keys = &world.keys;
        wait(keys.change_owner_role(&host(), &acme, who(owner), role)).unwrap();
    }
    // In this policy developers and admins have the same scopes, but may manage different things.
    for (owner, named) in [
        ("alice", Role::DEVELOPER),
        ("alice", Role::ADMIN),
        ("zoe", Role::ADMIN),
        ("sue", Role::SUPPORT),
    ] {
        role(world.create(&dave, reader("z").owned_by(who(owner), named)));
    }
    role(wait(world.keys.rotate(
        &dave,
        alices.id,
        RotateKey::immediate(),
    )));
    // If a person has no role yet, only an admin may give the person one, even the lowest role.
    let unknown = reader("z").owned_by(who("nora"), Role::MEMBER);
    assert!(matches!(
        denied(world.create(&dave, unknown)),
        Denial::Forbidden { .. }
    ));
    // Even an admin cannot give the support role to anyone, including itself.
    for named in ["sid", "sue"] {
        let support = reader("z").owned_by(who(named), Role::SUPPORT);
        role(world.create(&admin(), support));
    }
    let raised = wait(
        world
            .keys
            .change_owner_role(&admin(), &acme, who("alice"), Role::SUPPORT),
    );
    role(raised);
    world
        .create(&dave, reader("bob's").owned_by(who("bob"), Role::MEMBER))
        .unwrap();
}

#[test]
fn trap_13_rotating_a_key_of_a_temporarily_lowered_owner_hands_out_no_wider_secret() {
    let world = TestService::new();
    let acme = tenant("acme");
    wait(world.keys.provision_tenant(&host(), &acme)).unwrap();
    let bob = actor("acme", "bob", Role::DEVELOPER);
    let key = world
        .create(&bob, CreateKey::new("all").scope("*:*"))
        .unwrap();
    wait(
        world
            .keys
            .change_owner_role(&admin(), &acme, who("bob"), Role::MEMBER),
    )
    .unwrap();
    let narrow = actor("acme", "dave", Role::DEVELOPER)
        .with_scopes(keyward::ScopeSet::parse(["*:read"]).unwrap());
    let rotated = wait(world.keys.rotate(&narrow, key.id, RotateKey::immediate()));
    assert!(matches!(denied(rotated), Denial::ExceedsActor { .. }));
}

#[test]
fn trap_14_a_key_without_scopes_may_do_nothing() {
    let world = TestService::new();
    let key = world.create(&admin(), CreateKey::new("blank")).unwrap();
    let refusal = world
        .keys
        .verify(key.secret.expose(), &reading())
        .unwrap_err();
    assert_eq!(
        refusal,
        VerifyError::MissingScope {
            key: key.id,
            scope: scope("reports:read")
        }
    );
    let grant = world
        .keys
        .verify(key.secret.expose(), &Need::any())
        .unwrap();
    assert!(grant.scopes().is_empty() && !grant.allows(&scope("reports:read")));
}

#[test]
fn trap_16_a_huge_header_is_refused_by_its_length() {
    let world = TestService::new();
    let huge = vec![b'x'; 8 * 1024 * 1024];
    let refusal = world.keys.verify(&huge, &reading()).unwrap_err();
    let actual = huge.len();
    assert_eq!(
        refusal,
        VerifyError::Malformed(token::TokenError::TooLong { actual })
    );
}

#[test]
fn trap_17_surrounding_space_is_trimmed_once_and_nothing_else_is_tolerated() {
    let world = TestService::new();
    let key = world.some_key();
    let text = key.secret.expose();
    for spaced in [
        format!(" {text}"),
        format!("{text}\r\n"),
        format!("\t{text} "),
    ] {
        world.keys.verify(&spaced, &reading()).unwrap();
        wait(world.keys.verify_fresh(&spaced, &reading())).unwrap();
    }
    for odd in [
        format!("\u{feff}{text}"),
        format!("{text}\u{a0}"),
        text.to_uppercase(),
        text.replace('_', "\u{ff3f}"),
        format!("\"{text}\""),
        format!("Bearer {text}"),
    ] {
        let refusal = world.keys.verify(&odd, &reading()).unwrap_err();
        assert!(matches!(refusal, VerifyError::Malformed(_)), "{refusal:?}");
        assert_eq!(
            wait(world.keys.verify_fresh(&odd, &reading())).unwrap_err(),
            refusal
        );
    }
}

#[test]
fn trap_18_a_prefix_may_contain_its_separator() {
    let mut spec = profiles::standard();
    let prefix = token::TokenPrefix::new("a_b-c_9_").unwrap();
    let all = keyward::ScopeSet::all();
    spec.classes
        .insert(class("odd"), KeyClass::secret(prefix, all, [Role::ADMIN]));
    let world = TestService::with_policy(spec);
    let key = world.create(&admin(), reader("odd").class("odd")).unwrap();
    assert!(key.secret.expose().starts_with("a_b-c_9_"));
    let grant = world.keys.verify(key.secret.expose(), &reading()).unwrap();
    assert_eq!(grant.key_id(), key.id);
}

#[test]
fn trap_19_a_key_ends_exactly_at_its_expiry() {
    let world = TestService::new();
    let key = world
        .create(&admin(), reader("short").expires_in(hours(1)))
        .unwrap();
    let end = key.expires_at.unwrap();
    let instant = std::time::Duration::from_micros(1);
    world.clock.advance(hours(1) - instant);
    world.keys.verify(key.secret.expose(), &reading()).unwrap();
    assert_eq!(
        wait(world.keys.key(&admin(), key.id)).unwrap().status,
        Status::Active
    );
    world.clock.advance(instant);
    let refused = VerifyError::Expired {
        key: key.id,
        at: end,
    };
    assert_eq!(
        world
            .keys
            .verify(key.secret.expose(), &reading())
            .unwrap_err(),
        refused
    );
    let fresh = wait(world.keys.verify_fresh(key.secret.expose(), &reading()));
    assert_eq!(fresh.unwrap_err(), refused);
    assert_eq!(
        wait(world.keys.key(&admin(), key.id)).unwrap().status,
        Status::Expired
    );
    assert_eq!(
        denied(wait(world.keys.disable(&admin(), key.id))),
        Denial::Expired
    );
}

#[test]
fn trap_20_every_way_of_verifying_makes_the_same_checks() {
    let world = TestService::new();
    let allowed = reader("office").allow_addresses(["192.0.2.0/24"]);
    let key = world
        .create(&admin(), allowed.expires_in(hours(1)))
        .unwrap();
    let secret = key.secret.expose();
    let office = reading().from_address("192.0.2.1".parse().unwrap());
    let needs = [
        reading(),
        office.clone(),
        office.clone().in_environment(environment("test")),
        office.clone().of_class(class("publishable")),
        office.clone().for_tenant(tenant("other")),
        office.clone().and_scope("billing:write").unwrap(),
    ];
    let compare = || {
        for need in &needs {
            let verdict = world.keys.verify(secret, need).map(|grant| grant.key_id());
            let id = key.id.to_string();
            let pair = Credentials::Pair {
                public: id.as_bytes(),
                secret: secret.as_bytes(),
            };
            let paths = [
                wait(world.keys.verify_fresh(secret, need)),
                wait(world.keys.verify_or_fetch(secret, need)),
                world.keys.verify(pair, need),
                wait(world.keys.verify_fresh(pair, need)),
            ];
            for path in paths {
                assert_eq!(path.map(|grant| grant.key_id()), verdict, "{need:?}");
            }
        }
        needs
            .iter()
            .filter(|need| world.keys.verify(secret, need).is_ok())
            .count()
    };
    assert_eq!(compare(), 1, "only the office's plain need is met");
    wait(world.keys.disable(&admin(), key.id)).unwrap();
    assert_eq!(compare(), 0);
    wait(world.keys.enable(&admin(), key.id)).unwrap();
    world.clock.advance(hours(1));
    assert_eq!(compare(), 0);
}

#[test]
fn trap_21_a_stored_digest_is_not_a_key_and_an_unknown_pepper_is_an_operator_error() {
    let world = TestService::new();
    let digest = Digest::sha256("old-style-token");
    let imported = ImportKey::sha256(digest, reader("imported"));
    wait(world.keys.import(&admin(), imported)).unwrap();
    let hex: String = digest
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(
        world.keys.verify(&hex, &reading()).is_err(),
        "a stolen digest is not accepted as a key"
    );
    world.keys.verify("old-style-token", &reading()).unwrap();

    let key = world.some_key();
    let peppers = PepperRing::new(pepper("p2", 2));
    let clock = world.clock.clone();
    let node = wait(
        Keyward::builder(world.store.clone(), peppers)
            .replace_lost_peppers()
            .clock(clock)
            .build(),
    )
    .unwrap();
    let refusal = node.verify(key.secret.expose(), &reading()).unwrap_err();
    assert!(matches!(&refusal, VerifyError::UnknownPepper { pepper } if pepper.as_str() == "p1"));
    assert_eq!(
        refusal.kind(),
        keyward::ErrorKind::Unavailable,
        "an outage must not look like a bad key"
    );
}

#[test]
fn trap_24_verifying_writes_nothing() {
    let world = TestService::new();
    let key = world
        .create(&admin(), reader("short").expires_in(hours(1)))
        .unwrap();
    let revision = || {
        wait(world.store.load(&tenant("acme"), &LoadRequest::none()))
            .unwrap()
            .revision
    };
    let before = revision();
    for hour in 0..3 {
        let _ = world.keys.verify(key.secret.expose(), &reading());
        let _ = wait(world.keys.verify_or_fetch(key.secret.expose(), &reading()));
        let _ = world
            .keys
            .verify(&with_other_secret(key.secret.expose()), &reading());
        world.clock.advance(hours(hour));
    }
    assert_eq!(revision(), before);
    assert_eq!(
        wait(world.keys.key(&admin(), key.id)).unwrap().status,
        Status::Expired
    );
}

#[test]
fn a_wall_clock_that_steps_back_revives_nothing() {
    let world = TestService::new();
    let key = world
        .create(&admin(), reader("short").expires_in(hours(1)))
        .unwrap();
    world.clock.advance(hours(2));
    world.some_key();
    world.clock.set_wall(at(START));
    let refusal = world
        .keys
        .verify(key.secret.expose(), &reading())
        .unwrap_err();
    assert!(matches!(refusal, VerifyError::Expired { .. }));
    let update = UpdateKey::new().expiry(Expiry::Never);
    assert_eq!(
        denied(wait(world.keys.update(&admin(), key.id, update))),
        Denial::Expired
    );
}
