//! The rules of `profiles::yugabytedb`.

use std::time::Duration;

use keyward::audit::Action;
use keyward::command::{Created, DeleteKey};
use keyward::key::{Owner, Status};
use keyward::store::KeyQuery;
use keyward::{
    Actor, CreateKey, Denial, ErrorKind, KeyInfo, Need, Reason, Role, RotateKey, ScopeSet,
    UpdateKey, VerifyError, days, hours, profiles,
};

use support::*;

/// The scopes that the profile gives to developers.
const DEVELOPER_SCOPES: &[&str] = &[
    "backups:write",
    "clusters:read",
    "clusters:write",
    "databases:read",
    "networks:write",
];
/// The scopes that the profile gives to admins only.
const ADMIN_SCOPES: &[&str] = &[
    "account:read",
    "account:write",
    "billing:read",
    "keys:write",
    "users:read",
    "users:write",
    "*:*",
];

fn world() -> TestService {
    TestService::with_policy(profiles::yugabytedb())
}

fn draft(name: &str) -> CreateKey {
    CreateKey::new(name).scope("clusters:write")
}

fn clusters() -> Need {
    Need::scope("clusters:write").unwrap()
}

/// Returns another admin of acme.
fn bob() -> Actor {
    actor("acme", "bob", Role::ADMIN)
}

/// Returns bob after his demotion to developer.
fn bob_the_developer() -> Actor {
    actor("acme", "bob", Role::DEVELOPER)
}

fn demote_bob(world: &TestService) {
    wait(
        world
            .keys
            .change_owner_role(&admin(), &tenant("acme"), who("bob"), Role::DEVELOPER),
    )
    .unwrap();
}

/// Creates two keys of bob with all rights of an admin: one in the account, and one in an account below.
fn keys_of_bob(world: &TestService) -> [Created; 2] {
    let all = CreateKey::new("bob's").scope("*:*");
    [
        world.create(&bob(), all.clone()).unwrap(),
        world
            .create(&bob(), all.in_tenant(tenant("acme/web")))
            .unwrap(),
    ]
}

fn details(world: &TestService, key: &Created) -> KeyInfo {
    wait(world.keys.key(&admin(), key.id)).unwrap()
}

/// Checks that `result` was refused because only admins may do `action`. The refusal to a person names the
/// person's role; a key has no role.
fn only_admins_may<T: std::fmt::Debug>(
    action: &'static str,
    by: &Actor,
    result: Result<T, keyward::CommandError>,
) {
    let role = by.key_id().is_none().then_some(Role::DEVELOPER);
    assert_eq!(denied(result), Denial::Forbidden { action, role });
}

#[test]
fn y_03_admins_create_keys_for_their_account() {
    let world = world();
    let key = world
        .create(&admin(), draft("ci").scope("users:write"))
        .unwrap();
    let need = clusters()
        .and_scope("users:write")
        .unwrap()
        .for_tenant(tenant("acme"));
    let grant = world.keys.verify(key.secret.expose(), &need).unwrap();
    assert_eq!((grant.key_id(), grant.tenant()), (key.id, &tenant("acme")));
}

#[test]
fn y_04_no_stored_bytes_contain_a_key() {
    let world = world();
    let key = world.create(&admin(), draft("ci")).unwrap();
    world.keys.verify(key.secret.expose(), &clusters()).unwrap();
    let revoked = world.create(&admin(), draft("revoked")).unwrap();
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    let kept = dump(&world.store);
    for key in [&key, &revoked] {
        assert!(kept.contains(key.hint.as_str()), "the key is in the dump");
        assert!(!kept.contains(secret_part(key.secret.expose())));
    }
}

#[test]
fn y_05_lost_and_compromised_keys_are_revoked_with_the_reason() {
    let world = world();
    for reason in [Reason::Lost, Reason::Compromised] {
        let key = world.create(&admin(), draft("ci")).unwrap();
        world.clock.advance(hours(1));
        wait(world.keys.revoke(&admin(), key.id, reason)).unwrap();
        let refused = VerifyError::Revoked {
            key: key.id,
            at: world.keys.now(),
            reason,
        };
        let verdict = world.keys.verify(key.secret.expose(), &clusters());
        assert_eq!(verdict.unwrap_err(), refused);
        let revocation = details(&world, &key).revocation.unwrap();
        assert_eq!(
            (revocation.by, revocation.reason),
            (author("alice"), reason)
        );
        let actions = recorded_actions(&world, &tenant("acme"), key.id);
        assert_eq!(actions.last(), Some(&Action::KeyRevoked { reason }));
    }
}

#[test]
fn y_07_only_admins_create_keys() {
    let world = world();
    let [key, _] = keys_of_bob(&world);
    let before = listed(&world, &admin()).len();
    let dan = actor("acme", "dan", Role::DEVELOPER);
    only_admins_may("create keys", &dan, world.create(&dan, draft("dan's")));
    demote_bob(&world);
    let demoted = bob_the_developer();
    let created = world.create(&demoted, draft("more"));
    only_admins_may("create keys", &demoted, created);
    // After bob's demotion, the key that he created as an admin cannot create keys either.
    let with_key = world
        .keys
        .verify(key.secret.expose(), &clusters())
        .unwrap()
        .actor();
    let created = world.create(&with_key, draft("more"));
    only_admins_may("create keys", &with_key, created);
    assert_eq!(listed(&world, &admin()).len(), before);
}

#[test]
fn y_08_only_admins_revoke_keys_even_their_own() {
    let world = world();
    let [key, _] = keys_of_bob(&world);
    demote_bob(&world);
    let grant = world.keys.verify(key.secret.expose(), &clusters());
    let with_key = grant.unwrap().actor();
    let dan = actor("acme", "dan", Role::DEVELOPER);
    for by in [dan, bob_the_developer(), with_key] {
        let revoked = wait(world.keys.revoke(&by, key.id, Reason::Lost));
        only_admins_may("revoke keys", &by, revoked);
        let deleted = wait(world.keys.delete(&by, key.id, DeleteKey::plain()));
        only_admins_may("delete keys", &by, deleted);
        world.keys.verify(key.secret.expose(), &clusters()).unwrap();
    }
    wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let verdict = world.keys.verify(key.secret.expose(), &clusters());
    assert!(matches!(verdict, Err(VerifyError::Revoked { .. })));
}

#[test]
fn y_09_the_list_shows_the_keys_of_the_account_only() {
    let world = world();
    let gil = actor("globex", "gil", Role::ADMIN);
    let ours = world.create(&admin(), draft("acme's")).unwrap();
    let theirs = world.create(&gil, draft("globex's")).unwrap();
    for (by, own, other) in [(admin(), &ours, &theirs), (gil, &theirs, &ours)] {
        let ids: Vec<_> = listed(&world, &by).iter().map(|key| key.id).collect();
        assert_eq!(ids, [own.id]);
        let everything = wait(world.keys.list(&by, &KeyQuery::all(at(START))));
        let ids: Vec<_> = everything.unwrap().keys.iter().map(|key| key.id).collect();
        assert_eq!(ids, [own.id]);
        assert_eq!(
            denied(wait(world.keys.key(&by, other.id))),
            Denial::NotFound
        );
    }
    let query = world.keys.query(&tenant("globex"));
    assert_eq!(
        denied(wait(world.keys.list(&admin(), &query))),
        Denial::TenantNotFound
    );
}

#[test]
fn y_10_the_list_shows_names() {
    let world = world();
    for name in ["ci", "Nachtläufer Export", "ci"] {
        world.clock.advance(hours(1));
        world.create(&admin(), draft(name)).unwrap();
    }
    let keys = listed(&world, &admin());
    let names: Vec<_> = keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["ci", "Nachtläufer Export", "ci"]);
}

#[test]
fn y_11_the_list_shows_statuses() {
    let world = world();
    let create = |draft| {
        world.clock.advance(hours(1));
        world.create(&admin(), draft).unwrap()
    };
    let short = create(draft("expired").expires_in(hours(5)));
    let (_, revoked) = (create(draft("active")), create(draft("revoked")));
    let disabled = create(draft("disabled"));
    let statuses = || {
        let keys = listed(&world, &admin());
        keys.iter().map(|key| key.status).collect::<Vec<_>>()
    };
    assert_eq!(statuses(), [Status::Active; 4]);
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    wait(world.keys.disable(&admin(), disabled.id)).unwrap();
    let now = |first| [first, Status::Active, Status::Revoked, Status::Disabled];
    assert_eq!(statuses(), now(Status::Active));
    world.clock.set_wall(short.expires_at.unwrap());
    assert_eq!(statuses(), now(Status::Expired));
}

#[test]
fn y_12_the_list_shows_who_created_a_key_and_when() {
    let world = world();
    let alices = world.create(&admin(), draft("alice's")).unwrap();
    world.clock.advance(hours(5));
    world.create(&bob(), draft("bob's")).unwrap();
    // A later change by another person does not change the recorded creator.
    let rename = UpdateKey::new().name("renamed by bob");
    wait(world.keys.update(&bob(), alices.id, rename)).unwrap();
    let created: Vec<_> = listed(&world, &admin())
        .into_iter()
        .map(|key| (key.facts.created.by, key.facts.created.at))
        .collect();
    let expected = [
        (author("alice"), at(START)),
        (author("bob"), at("2026-01-01T05:00:00Z")),
    ];
    assert_eq!(created, expected);
}

#[test]
fn y_15_a_key_has_a_name_and_a_description() {
    let world = world();
    let words = "Runs every night at two.\nAsk the data team.";
    let key = world
        .create(&admin(), draft("nightly export").description(words))
        .unwrap();
    for info in listed(&world, &admin())
        .into_iter()
        .chain([details(&world, &key)])
    {
        assert_eq!(info.name.as_str(), "nightly export");
        assert_eq!(
            info.description.as_ref().map(|text| text.as_str()),
            Some(words)
        );
    }
    let nameless = denied(world.create(&admin(), draft("")));
    assert!(matches!(nameless, Denial::Invalid(_)), "{nameless:?}");
}

#[test]
fn y_16_a_key_with_an_end_is_refused_from_then_on() {
    let world = world();
    let end = at(START).saturating_add(days(30));
    let drafts = [
        draft("for so long").expires_in(days(30)),
        draft("until then").expires_at(end),
    ];
    let keys = drafts.map(|draft| world.create(&admin(), draft).unwrap());
    let ends: Vec<_> = listed(&world, &admin())
        .iter()
        .map(|key| key.expires_at)
        .collect();
    assert_eq!(ends, [Some(end), Some(end)]);
    world.clock.advance(days(30) - Duration::from_micros(1));
    for key in &keys {
        world.keys.verify(key.secret.expose(), &clusters()).unwrap();
    }
    world.clock.advance(Duration::from_micros(1));
    for key in &keys {
        let verdict = world.keys.verify(key.secret.expose(), &clusters());
        let expired = VerifyError::Expired {
            key: key.id,
            at: end,
        };
        assert_eq!(verdict.unwrap_err(), expired);
    }
}

#[test]
fn y_17_a_key_without_an_end_works_ten_years_later() {
    let world = world();
    let drafts = [
        draft("never expires").never_expires(),
        draft("nothing said"),
    ];
    let keys = drafts.map(|draft| world.create(&admin(), draft).unwrap());
    world.clock.advance(days(3653));
    for key in &keys {
        assert_eq!(key.expires_at, None);
        let info = details(&world, key);
        assert_eq!((info.expires_at, info.status), (None, Status::Active));
        world.keys.verify(key.secret.expose(), &clusters()).unwrap();
    }
}

#[test]
fn y_19_a_key_is_shown_once() {
    let world = world();
    let admin = admin();
    let once = admin.with_command_id(command("generate-1"));
    let key = wait(world.keys.create(&once, draft("once"))).unwrap();
    let again = wait(world.keys.create(&once, draft("once")));
    assert_eq!(denied(again), Denial::AlreadyCreated { id: key.id });

    let grant = world.keys.verify(key.secret.expose(), &clusters()).unwrap();
    let mut shown = vec![
        details(&world, &key),
        wait(world.keys.key_for_grant(&grant)).unwrap(),
    ];
    shown.extend(listed(&world, &admin));
    assert!(shown.iter().all(|info| info.published.is_none()));
    let read = format!(
        "{} {shown:?} {grant:?} {:?}",
        serde_json::to_string(&shown).unwrap(),
        recorded_actions(&world, &tenant("acme"), key.id)
    );
    assert!(read.contains(key.hint.as_str()));
    assert!(!read.contains(secret_part(key.secret.expose())));
}

#[test]
fn y_20_a_lost_key_is_revoked_and_replaced_by_a_new_one() {
    let world = world();
    let lost = world.create(&admin(), draft("lost")).unwrap();
    // If the response to a create command was lost, its caller can ask for another secret for an hour. The
    // lost secret then stops working.
    let replaced = wait(world.keys.replace_lost(&admin(), lost.id)).unwrap();
    let verify = |key: &Created| world.keys.verify(key.secret.expose(), &clusters());
    assert_eq!(verify(&lost).unwrap_err(), VerifyError::WrongSecret);
    verify(&replaced).unwrap();
    world.clock.advance(hours(1) + Duration::from_micros(1));
    assert_eq!(
        denied(wait(world.keys.replace_lost(&admin(), lost.id))),
        Denial::NotReplaceable
    );
    let rotated = wait(world.keys.rotate(&admin(), lost.id, RotateKey::default()));
    let api_key = class("api-key");
    assert_eq!(denied(rotated), Denial::NotRotatable { class: api_key });

    wait(world.keys.revoke(&admin(), lost.id, Reason::Lost)).unwrap();
    let another = world.create(&admin(), draft("lost")).unwrap();
    assert!(matches!(
        verify(&replaced),
        Err(VerifyError::Revoked { .. })
    ));
    assert_eq!(verify(&another).unwrap().key_id(), another.id);
}

#[test]
fn y_23_a_key_is_linked_to_its_creator_permanently() {
    let world = world();
    let key = world.create(&admin(), draft("alice's")).unwrap();
    let linked = || {
        // The application can read the key's owner, even after alice has left.
        let owner = wait(world.keys.key(&host(), key.id)).unwrap().facts.owner;
        assert_eq!(owner, Owner::Principal(who("alice")));
    };
    linked();
    let change = UpdateKey::new().name("bob's now").scopes(["clusters:*"]);
    wait(world.keys.update(&bob(), key.id, change)).unwrap();
    linked();
    wait(world.keys.disable(&bob(), key.id)).unwrap();
    wait(world.keys.enable(&bob(), key.id)).unwrap();
    linked();
    let grant = world.keys.verify(key.secret.expose(), &clusters());
    assert_eq!(grant.unwrap().owner(), &Owner::Principal(who("alice")));
    // Removing bob, who last changed the key, does not end it. Removing alice, who created the key, ends it.
    let remove = |by: &Actor, user: &str| {
        wait(world.keys.remove_owner(by, &tenant("acme"), who(user))).unwrap()
    };
    assert_eq!(remove(&admin(), "bob").ended, 0);
    linked();
    assert_eq!(remove(&host(), "alice").ended, 1);
    linked();
}

#[test]
fn y_24_the_keys_of_a_removed_user_are_revoked_and_each_is_in_the_audit_trail() {
    let world = world();
    let alices = world.create(&admin(), draft("alice's")).unwrap();
    let mut bobs: Vec<_> = keys_of_bob(&world).into();
    bobs.push(world.create(&bob(), draft("third")).unwrap());
    let acme = tenant("acme");
    let removed = wait(world.keys.remove_owner(&admin(), &acme, who("bob"))).unwrap();
    assert_eq!(removed.ended, bobs.len());

    let reason = Reason::OwnerRemoved;
    let all_revoked = || {
        for key in &bobs {
            let verdict = world.keys.verify(key.secret.expose(), &clusters());
            let refused = VerifyError::Revoked {
                key: key.id,
                at: at(START),
                reason,
            };
            assert_eq!(verdict.unwrap_err(), refused);
        }
    };
    all_revoked();
    for key in &bobs {
        let info = details(&world, key);
        assert_eq!(info.status, Status::Revoked);
        assert_eq!(info.revocation.as_ref().map(|own| own.reason), Some(reason));
        let actions = recorded_actions(&world, &info.tenant, key.id);
        let revocations = actions
            .iter()
            .filter(|action| **action == Action::KeyRevoked { reason });
        assert_eq!(revocations.count(), 1, "{actions:?}");
    }
    world
        .keys
        .verify(alices.secret.expose(), &clusters())
        .unwrap();

    let owner = who("bob");
    let late = world.create(&bob(), draft("too late"));
    assert_eq!(denied(late), Denial::OwnerRemoved { owner });
    // Bob is added again, but his keys are not restored.
    wait(
        world
            .keys
            .change_owner_role(&admin(), &acme, who("bob"), Role::ADMIN),
    )
    .unwrap();
    all_revoked();
}

#[test]
fn y_25_the_key_of_a_creator_who_became_a_developer_has_developer_access() {
    let world = world();
    let keys = keys_of_bob(&world);
    let alices = world
        .create(&admin(), CreateKey::new("alice's").scope("*:*"))
        .unwrap();
    let verify = |key: &Created, scope: &str| {
        world
            .keys
            .verify(key.secret.expose(), &Need::scope(scope).unwrap())
    };
    for key in &keys {
        verify(key, "account:write").unwrap();
    }
    demote_bob(&world);
    for key in &keys {
        let refusal = verify(key, "account:write").unwrap_err();
        let missing = VerifyError::MissingScope {
            key: key.id,
            scope: scope("account:write"),
        };
        assert_eq!(refusal, missing);
        assert_eq!(refusal.kind(), ErrorKind::Forbidden);
        let need = Need::scope("account:write").unwrap();
        assert_eq!(
            wait(world.keys.verify_fresh(key.secret.expose(), &need)).unwrap_err(),
            missing
        );
        for allowed in DEVELOPER_SCOPES {
            let grant = verify(key, allowed).unwrap();
            assert_eq!(grant.key_id(), key.id, "the same key still works");
        }
    }
    verify(&alices, "account:write").unwrap();
}

#[test]
fn y_26_a_developers_key_reaches_nothing_that_requires_an_admin() {
    let world = world();
    let keys = keys_of_bob(&world);
    demote_bob(&world);
    for key in &keys {
        for needed in ADMIN_SCOPES {
            let verdict = world
                .keys
                .verify(key.secret.expose(), &Need::scope(*needed).unwrap());
            let missing = VerifyError::MissingScope {
                key: key.id,
                scope: scope(needed),
            };
            assert_eq!(verdict.unwrap_err(), missing);
        }
        let grant = world
            .keys
            .verify(key.secret.expose(), &Need::any())
            .unwrap();
        let reach = ["backups:*", "clusters:*", "databases:*", "networks:*"];
        assert_eq!(grant.scopes(), ScopeSet::parse(reach).unwrap());
        let by = grant.actor();
        let created = wait(
            world
                .keys
                .create(&by, draft("more").in_tenant(grant.tenant().clone())),
        );
        only_admins_may("create keys", &by, created);
        let removed = world.keys.remove_owner(&by, grant.tenant(), who("alice"));
        only_admins_may("remove owners", &by, wait(removed));
    }
}

#[test]
fn y_13_the_list_shows_creation_last_use_and_expiry() {
    let world = TestService::metered(profiles::yugabytedb());
    let key = draft("key").expires_in(days(30));
    let key = world.create(&admin(), key).unwrap();
    world.clock.advance(hours(2));
    let _grant = world.keys.verify(key.secret.expose(), &clusters()).unwrap();
    wait(world.keys.flush_usage()).unwrap();
    let query = KeyQuery::tenant(tenant("acme"), world.keys.now());
    let used = wait(world.keys.list_used(&admin(), &query)).unwrap();
    let [info] = &used.list.keys[..] else {
        panic!("{used:?}");
    };
    let start = at(START);
    let last = used.last_uses[&info.id].at;
    assert_eq!(
        (info.created.at, last, info.expires_at),
        (
            start,
            start.saturating_add(hours(2)),
            Some(start.saturating_add(days(30)))
        )
    );
}
