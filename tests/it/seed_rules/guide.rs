//! The rules of `profiles::guide`.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use keyward::audit::Action;
use keyward::command::{BulkFilter, Created, Expiry, LeakSource, Problem};
use keyward::events::{EventCursor, EventKind, ExpiryWindows};
use keyward::key::{Fingerprint, RotationReason, Status};
use keyward::policy::{Policy, PolicySpec};
use keyward::rotation::{RotationProgress, RotationStep};
use keyward::store::{AuditQuery, AuditRow, KeyQuery};
use keyward::usage::{Day, KeyUsage, UseOutcome};
use keyward::{
    Actor, CreateKey, Credentials, Denial, ErrorKind, KeyId, KeyInfo, Keyward, Need, Reason, Role,
    RotateKey, Secret, UpdateKey, VerifyError, days, hours, profiles,
};
use keyward_conformance::FaultyStore;

use support::*;

/// Returns a service with one organization. An organization is a tenant.
fn organization() -> TestService {
    organization_under(profiles::guide())
}

fn organization_under(spec: PolicySpec) -> TestService {
    let world = TestService::with_policy(spec);
    provision(&world, "acme");
    world
}

/// Returns a service with one organization, which counts uses.
fn metered() -> TestService {
    let world = TestService::metered(profiles::guide());
    provision(&world, "acme");
    world
}

/// Uses a key so many times, and sends the counts to the store.
fn use_key(world: &TestService, secret: &Secret, times: u64) {
    for _ in 0..times {
        let need = Need::scope("reports:read").unwrap();
        let _grant = world.keys.verify(secret.expose(), &need).unwrap();
    }
    wait(world.keys.flush_usage()).unwrap();
}

fn usage(world: &TestService, key: KeyId) -> KeyUsage {
    wait(
        world
            .keys
            .key_usage(&developer(), key, Day::FIRST, Day::LAST),
    )
    .unwrap()
}

fn provision(world: &TestService, path: &str) {
    wait(world.keys.provision_tenant(&host(), &tenant(path))).unwrap();
}

fn policy() -> Policy {
    Policy::new(profiles::guide()).unwrap()
}

fn developer() -> Actor {
    actor("acme", "dan", Role::DEVELOPER)
}

fn draft(name: &str) -> CreateKey {
    CreateKey::new(name)
        .scope("reports:read")
        .purpose("nightly reports")
}

fn create(world: &TestService, name: &str) -> Created {
    world.create(&developer(), draft(name)).unwrap()
}

fn revoke(world: &TestService, id: KeyId) {
    let confirmed = Reason::Compromised.confirmed();
    wait(world.keys.revoke(&developer(), id, confirmed)).unwrap();
}

fn info(world: &TestService, id: KeyId) -> KeyInfo {
    wait(world.keys.key(&developer(), id)).unwrap()
}

fn query(world: &TestService) -> KeyQuery {
    world.keys.query(&tenant("acme"))
}

fn list(world: &TestService, query: &KeyQuery) -> Vec<KeyInfo> {
    wait(world.keys.list(&developer(), query)).unwrap().keys
}

fn names(world: &TestService, query: &KeyQuery) -> BTreeSet<String> {
    let keys = list(world, query).into_iter();
    keys.map(|key| key.name.to_string()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn works(node: &Keyward, text: &str) -> bool {
    let fetched = wait(node.verify_or_fetch(text, &reading()));
    let fresh = wait(node.verify_fresh(text, &reading()));
    assert_eq!(fetched.is_ok(), fresh.is_ok(), "{fetched:?} {fresh:?}");
    fetched.is_ok()
}

/// Verifies `text` with every verification method and returns the verdicts. No method may accept a key that
/// another one refuses.
fn every_way(node: &Keyward, text: &str, need: &Need) -> [Result<KeyId, VerifyError>; 5] {
    let id = keyward::token::parse(text.as_bytes()).unwrap().id();
    let with = |public: &str| {
        let (public, secret) = (public.as_bytes(), text.as_bytes());
        node.verify(Credentials::Pair { public, secret }, need)
    };
    let verdicts = [
        node.verify(text, need),
        wait(node.verify_or_fetch(text, need)),
        wait(node.verify_fresh(text, need)),
        with(&id.to_string()),
        with(text),
    ];
    verdicts.map(|verdict| verdict.map(|grant| grant.key_id()))
}

fn trail(world: &TestService, id: KeyId) -> Vec<AuditRow> {
    let query = AuditQuery::tenant(tenant("acme")).about(id);
    wait(world.keys.audit(&admin(), &query)).unwrap().rows
}

#[test]
fn g_01_a_list_shows_every_key_of_an_organization_and_none_of_another() {
    let world = organization();
    let mut own = BTreeSet::new();
    for n in 0..7 {
        own.insert(create(&world, &format!("key {n}")).id);
    }
    own.insert(world.create(&admin(), draft("of the admin")).unwrap().id);
    provision(&world, "acme/team");
    let below = draft("of a team").in_tenant(tenant("acme/team"));
    let below = world.create(&developer(), below).unwrap().id;
    let stranger = actor("acme-two", "eve", Role::ADMIN);
    let foreign = world.create(&stranger, draft("foreign")).unwrap().id;
    revoke(&world, *own.first().unwrap());

    let mut seen = Vec::new();
    let mut page = query(&world).with(|query| query.limit = NonZeroUsize::new(3).unwrap());
    loop {
        let listed = wait(world.keys.list(&developer(), &page)).unwrap();
        seen.extend(listed.keys.into_iter().map(|key| key.id));
        match listed.next {
            Some(next) => page.after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen.len(), own.len(), "each once");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), own);

    // A query without an organization covers the actor's own and all tenants below it.
    let all = KeyQuery::all(world.keys.now());
    let seen: BTreeSet<_> = list(&world, &all).into_iter().map(|key| key.id).collect();
    own.insert(below);
    assert_eq!(seen, own);
    let theirs = world.keys.query(&tenant("acme-two"));
    let refusal = wait(world.keys.list(&developer(), &theirs));
    assert_eq!(denied(refusal), Denial::TenantNotFound);
    let refusal = wait(world.keys.key(&developer(), foreign));
    assert_eq!(denied(refusal), Denial::NotFound);
}

#[test]
fn g_03_a_status_is_computed_at_the_instant_of_the_read() {
    let world = organization();
    let lasting = create(&world, "lasting");
    let short = draft("short").expires_in(hours(1));
    let short = world.create(&developer(), short).unwrap();
    let revoked = create(&world, "revoked");
    revoke(&world, revoked.id);
    let before = dump(&world.store);
    let statuses = |query: &KeyQuery| {
        let listed = list(&world, query);
        [lasting.id, short.id, revoked.id].map(|id| {
            let key = listed.iter().find(|key| key.id == id).unwrap();
            key.status.to_string()
        })
    };
    assert_eq!(statuses(&query(&world)), ["active", "active", "revoked"]);
    let later = query(&world).with(|query| query.at = short.expires_at.unwrap());
    assert_eq!(statuses(&later), ["active", "expired", "revoked"]);

    world.clock.advance(hours(1));
    assert_eq!(statuses(&query(&world)), ["active", "expired", "revoked"]);
    assert_eq!(info(&world, short.id).status, Status::Expired);
    world.clock.advance(days(90));
    assert_eq!(statuses(&query(&world)), ["expired", "expired", "revoked"]);
    assert_eq!(
        dump(&world.store),
        before,
        "the status changed without a write"
    );
}

#[test]
fn g_04_a_list_is_filtered_by_status_by_name_and_by_both() {
    let world = organization();
    for name in ["Export nightly", "export weekly", "import"] {
        create(&world, name);
    }
    for name in ["old EXPORT", "old import"] {
        revoke(&world, create(&world, name).id);
    }
    let by = |status: Option<Status>, name: Option<&str>| {
        let query = query(&world).with(|query| {
            query.statuses = status.into_iter().collect();
            query.name = name.map(str::to_owned);
        });
        names(&world, &query)
    };
    let active = set(["Export nightly", "export weekly", "import"]);
    assert_eq!(by(Some(Status::Active), None), active);
    let revoked = set(["old EXPORT", "old import"]);
    assert_eq!(by(Some(Status::Revoked), None), revoked);
    let exports = set(["Export nightly", "export weekly", "old EXPORT"]);
    assert_eq!(by(None, Some("export")), exports);
    let both = set(["Export nightly", "export weekly"]);
    assert_eq!(by(Some(Status::Active), Some("export")), both);
    assert_eq!(by(Some(Status::Expired), Some("export")), set([]));
    assert_eq!(by(None, None).len(), 5);
}

#[test]
fn g_05_details_show_every_field_set_on_a_key() {
    let world = organization();
    let key = draft("export")
        .description("runs at three")
        .environment("test")
        .metadata([("team", "data"), ("ticket", "OPS-7")])
        .allow_addresses(["192.0.2.0/24"]);
    let key = world.create(&developer(), key).unwrap();
    let details = info(&world, key.id);
    assert_eq!(details.name.as_str(), "export");
    assert_eq!(
        details.description.as_ref().unwrap().as_str(),
        "runs at three"
    );
    assert_eq!(
        details.purpose.as_ref().unwrap().as_str(),
        "nightly reports"
    );
    assert_eq!(details.metadata.value("team"), Some("data"));
    assert_eq!(details.metadata.value("ticket"), Some("OPS-7"));
    assert_eq!(details.environment, environment("test"));
    assert_eq!(details.class, class("api-key"));
    let networks: Vec<_> = details.allowlist.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["192.0.2.0/24"]);
    assert_eq!(details.owner.principal(), Some(&who("dan")));
    assert_eq!(
        (details.created.at, details.facts.created.by),
        (at(START), author("dan"))
    );

    let update = UpdateKey::new().metadata([("team", "growth")]);
    wait(world.keys.update(&developer(), key.id, update)).unwrap();
    let details = info(&world, key.id);
    assert_eq!(details.metadata.value("team"), Some("growth"));
    assert_eq!(details.metadata.value("ticket"), None);
}

#[test]
fn g_06_details_show_the_scopes_of_a_key() {
    let world = organization();
    let key = CreateKey::new("k")
        .purpose("p")
        .scopes(["users:*", "reports:read"]);
    let key = world.create(&developer(), key).unwrap();
    let scopes =
        |key: KeyInfo| -> BTreeSet<String> { key.scopes.iter().map(ToString::to_string).collect() };
    assert_eq!(
        scopes(info(&world, key.id)),
        set(["reports:read", "users:*"])
    );
    let narrower = UpdateKey::new().scopes(["reports:read"]);
    wait(world.keys.update(&developer(), key.id, narrower)).unwrap();
    assert_eq!(scopes(info(&world, key.id)), set(["reports:read"]));
    let listed = list(&world, &query(&world)).remove(0);
    assert_eq!(scopes(listed), set(["reports:read"]));
}

#[test]
fn g_07_details_show_when_a_key_ends() {
    let world = organization();
    let start = at(START);
    let day = start.saturating_add(days(3));
    let ends = [
        (draft("usual"), Some(start.saturating_add(days(90)))),
        (
            draft("short").expires_in(hours(1)),
            Some(start.saturating_add(hours(1))),
        ),
        (draft("dated").expires_at(day), Some(day)),
        (draft("endless").never_expires(), None),
    ];
    for (key, end) in ends {
        let key = world.create(&developer(), key).unwrap();
        assert_eq!(info(&world, key.id).expires_at, end);
        assert_eq!(key.expires_at, end);
        let sooner = UpdateKey::new().expiry(Expiry::In(Duration::from_secs(60)));
        wait(world.keys.update(&developer(), key.id, sooner)).unwrap();
        let end = start.saturating_add(Duration::from_secs(60));
        assert_eq!(info(&world, key.id).expires_at, Some(end));
    }
}

#[test]
fn g_09_the_visible_parts_of_a_key_grant_nothing() {
    let world = organization();
    let key = create(&world, "export");
    let text = key.secret.expose();
    let details = info(&world, key.id);
    let (hint, fingerprint) = (details.hint.to_string(), details.fingerprint.to_string());
    let shown = hint.trim_start_matches("key_live_").trim_start_matches('…');
    assert!(hint.starts_with("key_live_") && hint.len() < text.len() / 2);
    assert!(shown.len() <= 6 && text.ends_with(shown), "a part: {hint}");
    assert_eq!(details.fingerprint, Fingerprint::of_token(text));
    assert!(!text.contains(&fingerprint), "one way: {fingerprint}");
    let typed = format!("key_live_{fingerprint}");
    for guess in [&hint, &fingerprint, &typed, &key.id.to_string()] {
        assert!(!works(&world.keys, guess), "{guess}");
    }
    assert!(works(&world.keys, text));
}

#[test]
fn g_10_a_fingerprint_finds_exactly_one_key() {
    let world = organization();
    let made: Vec<_> = (0..20).map(|n| create(&world, &format!("{n}"))).collect();
    let stranger = actor("other", "eve", Role::ADMIN);
    let foreign = world.create(&stranger, draft("foreign")).unwrap();
    let find = |fingerprint: Fingerprint| {
        let read: Fingerprint = fingerprint.to_string().parse().unwrap();
        let query = query(&world).with(|query| query.fingerprint = Some(read));
        let found = list(&world, &query).into_iter();
        found.map(|key| key.id).collect::<Vec<_>>()
    };
    for key in &made {
        assert_eq!(find(key.fingerprint), [key.id]);
        assert_eq!(find(Fingerprint::of_token(key.secret.expose())), [key.id]);
    }
    assert_eq!(find(foreign.fingerprint), []);
}

#[test]
fn g_11_the_whole_key_is_never_shown_after_its_creation() {
    let world = organization();
    let by = developer();
    let once = by.with_command_id(command("create-1"));
    let created = wait(world.keys.create(&once, draft("export"))).unwrap();
    let how = RotateKey::grace(days(1));
    let rotated = wait(world.keys.rotate(&by, created.id, how)).unwrap();
    let grant = world
        .keys
        .verify(created.secret.expose(), &reading())
        .unwrap();
    let listed = list(&world, &query(&world));
    let repeated = denied(wait(world.keys.create(&once, draft("export"))));
    assert_eq!(repeated, Denial::AlreadyCreated { id: created.id });
    let details = [info(&world, created.id), info(&world, rotated.id)];
    assert!(details.iter().all(|key| key.published.is_none()));
    let progress = wait(world.keys.rotation_progress(&by, created.id, None)).unwrap();
    let answers = format!(
        "{details:?} {listed:?} {} {grant:?} {:?} {progress:?} {repeated} {:?} {:?} {created:?} {rotated:?}",
        serde_json::to_string(&listed).unwrap(),
        wait(world.keys.key_for_grant(&grant)).unwrap(),
        trail(&world, created.id),
        trail(&world, rotated.id),
    );
    let stored = dump(&world.store);
    for text in [created.secret.expose(), rotated.secret.expose()] {
        let hidden = &secret_part(text)[..16];
        assert!(text.contains(hidden));
        assert!(!answers.contains(hidden) && !stored.contains(hidden));
    }
}

#[test]
fn g_12_a_rotated_key_has_a_new_value_and_the_old_one_ends_as_the_policy_says() {
    let world = organization();
    let start = at(START);
    let seven_days = start.saturating_add(days(7));
    let one_hour = start.saturating_add(hours(1));
    let ways = [
        (RotateKey::default(), seven_days),
        (RotateKey::grace(hours(1)), one_hour),
        (RotateKey::immediate(), start),
    ];
    for (how, until) in ways {
        let world = organization();
        let old = create(&world, "export");
        let new = wait(world.keys.rotate(&developer(), old.id, how)).unwrap();
        assert_eq!((new.predecessor, new.until), (old.id, until));
        assert_ne!(new.id, old.id);
        let secrets = [&old.secret, &new.secret].map(|secret| secret_part(secret.expose()));
        assert_ne!(secrets[0], secrets[1]);
        let (details, before) = (info(&world, new.id), info(&world, old.id));
        assert_eq!(details.name, before.name);
        assert_eq!(details.scopes, before.scopes);
        assert_eq!(details.purpose, before.purpose);
        let grace = until.since(start);
        assert_eq!(works(&world.keys, old.secret.expose()), !grace.is_zero());
        world.clock.advance(grace);
        assert!(!works(&world.keys, old.secret.expose()));
        assert!(works(&world.keys, new.secret.expose()));
    }
    // A key that has ended cannot be rotated.
    let ended = create(&world, "ended");
    revoke(&world, ended.id);
    let again = wait(
        world
            .keys
            .rotate(&developer(), ended.id, RotateKey::default()),
    );
    assert_eq!(denied(again), Denial::Revoked);
}

#[test]
fn g_13_a_rotation_records_its_reason() {
    let world = organization();
    let reasons = [
        (RotationReason::Routine, "routine"),
        (RotationReason::Compromise, "compromise"),
        (RotationReason::ExpiryNear, "expiry_near"),
        (RotationReason::Incident, "incident"),
    ];
    for (why, word) in reasons {
        let old = create(&world, word);
        let how = RotateKey::default().because(why);
        wait(world.keys.rotate(&developer(), old.id, how)).unwrap();
        let kept = info(&world, old.id).facts.succession.unwrap().reason;
        assert_eq!(kept, why);
        assert_eq!(serde_json::to_value(kept).unwrap(), word);
        let action = trail(&world, old.id).pop().unwrap().entry.action;
        let Action::KeyRotated { reason, .. } = action else {
            panic!("{action:?}");
        };
        assert_eq!(reason, why);
    }
}

#[test]
fn g_14_a_rotation_goes_through_its_five_steps() {
    let world = organization();
    let keys = &world.keys;
    let old = create(&world, "export");
    let seen = |last: Option<_>| -> Option<RotationProgress> {
        wait(keys.rotation_progress(&developer(), old.id, last)).unwrap()
    };
    assert_eq!(seen(None), None, "no rotation yet");
    assert!(works(keys, old.secret.expose()));
    let used_at = keys.now();

    // Step 1: the new key is created.
    let new = wait(keys.rotate(&developer(), old.id, RotateKey::default())).unwrap();
    let created = seen(Some(used_at)).unwrap();
    assert_eq!(created.step, RotationStep::SuccessorCreated);
    assert_eq!(created.successor, new.id);
    assert_eq!(created.old_key_ends, at(START).saturating_add(days(7)));
    assert!(!created.safe_to_finish);

    // Step 2: applications switch to the new key.
    world.clock.advance(hours(1));
    assert!(works(keys, new.secret.expose()));
    wait(keys.run_maintenance()).unwrap();
    let in_use = seen(Some(keys.now())).unwrap();
    assert_eq!(in_use.step, RotationStep::SuccessorInUse);
    assert!(!in_use.safe_to_finish, "the old key was used just now");
    let used_at = keys.now();
    assert_eq!(
        seen(None).unwrap().step,
        RotationStep::SuccessorInUse,
        "without usage counts, the old key does not count as silent"
    );

    // Step 3: only the new key is used.
    world.clock.advance(hours(24));
    let silent = seen(Some(used_at)).unwrap();
    assert_eq!(silent.step, RotationStep::OldKeySilent);
    assert!(silent.safe_to_finish);

    // Step 4: the old key is revoked.
    wait(keys.finish_rotation(&developer(), old.id)).unwrap();
    assert_eq!(seen(Some(used_at)).unwrap().step, RotationStep::OldKeyEnded);

    // Step 5: a client still tries the old key.
    world.clock.advance(hours(1));
    assert!(!works(keys, old.secret.expose()));
    let tried = seen(Some(keys.now())).unwrap();
    assert_eq!(tried.step, RotationStep::OldKeyStillTried);
}

#[test]
fn g_16_there_is_always_a_key_that_works() {
    let ways = [
        RotateKey::default(),
        RotateKey::grace(hours(5)),
        RotateKey::on_first_use(hours(5)),
    ];
    for how in ways {
        let world = organization();
        let elsewhere = world.another_node(policy());
        let nodes = [&world.keys, &elsewhere];
        // The old key expires in ten hours. The rotation does not change its expiry.
        let old = draft("export").expires_in(hours(10));
        let old = world.create(&developer(), old).unwrap();
        for node in nodes {
            assert!(works(node, old.secret.expose()));
        }
        let new = wait(world.keys.rotate(&developer(), old.id, how)).unwrap();
        for node in nodes {
            assert!(
                works(node, old.secret.expose()),
                "the old key works although the new key exists"
            );
        }
        let mut old_worked = 0;
        for _ in 0..10 {
            for node in nodes {
                let both = [&old.secret, &new.secret].map(|key| works(node, key.expose()));
                assert!(both[0] || both[1], "at {}", world.keys.now());
                old_worked += usize::from(both[0]);
            }
            wait(world.keys.run_maintenance()).unwrap();
            world.clock.advance(hours(1));
        }
        assert!(
            old_worked >= 10,
            "the old key ended too early: {old_worked}"
        );
        assert!(!works(&world.keys, old.secret.expose()));
    }
}

#[test]
fn g_17_old_and_new_key_work_side_by_side_for_the_whole_window() {
    let world = organization();
    let elsewhere = world.another_node(policy());
    let old = create(&world, "export");
    let how = RotateKey::default();
    let new = wait(world.keys.rotate(&developer(), old.id, how)).unwrap();
    let end = new.until;
    let last = end.saturating_sub(Duration::from_micros(1));
    let side_by_side = |now, old_works| {
        world.clock.set_wall(now);
        for node in [&world.keys, &elsewhere] {
            assert_eq!(works(node, old.secret.expose()), old_works, "at {now}");
            assert!(works(node, new.secret.expose()), "at {now}");
        }
    };
    for day in 0..7 {
        side_by_side(at(START).saturating_add(days(day)), true);
    }
    assert_eq!(info(&world, old.id).status, Status::Retiring);
    assert_eq!(info(&world, new.id).status, Status::Active);
    side_by_side(last, true);
    side_by_side(end, false);
}

#[test]
fn g_19_finishing_a_rotation_revokes_the_old_key() {
    let world = organization();
    let elsewhere = world.another_node(policy());
    let nodes = [&world.keys, &elsewhere];
    let old = create(&world, "export");
    let early = wait(world.keys.finish_rotation(&developer(), old.id));
    assert_eq!(denied(early), Denial::NotRotating);
    let how = RotateKey::default();
    let new = wait(world.keys.rotate(&developer(), old.id, how)).unwrap();
    for node in nodes {
        assert!(works(node, old.secret.expose()));
    }
    world.clock.advance(days(1));
    wait(world.keys.finish_rotation(&developer(), old.id)).unwrap();
    for node in nodes {
        let refusal = node.verify(old.secret.expose(), &reading()).unwrap_err();
        let (key, at, reason) = (old.id, world.keys.now(), Reason::Rotated);
        assert_eq!(refusal, VerifyError::Revoked { key, at, reason });
        assert!(works(node, new.secret.expose()));
    }
    assert_eq!(info(&world, old.id).status, Status::Revoked);
}

#[test]
fn g_20_a_revocation_must_be_confirmed() {
    let world = organization();
    let key = create(&world, "export");
    for by in [developer(), admin(), host()] {
        let refusal = wait(world.keys.revoke(&by, key.id, Reason::Lost));
        assert_eq!(denied(refusal), Denial::ConfirmationRequired);
        assert!(works(&world.keys, key.secret.expose()));
    }
    let confirmed = Reason::Lost.confirmed();
    wait(world.keys.revoke(&developer(), key.id, confirmed)).unwrap();
    assert_eq!(info(&world, key.id).status, Status::Revoked);
}

#[test]
fn g_21_a_revocation_is_in_effect_on_every_node_when_it_returns() {
    let world = organization();
    let key = create(&world, "export");
    let text = key.secret.expose();
    let beside = world.another_node(policy());
    let remote = FaultyStore::new(world.store.clone());
    let far = node(remote.clone(), &world.clock, policy());
    for node in [&world.keys, &beside] {
        node.verify(text, &reading()).unwrap();
    }
    wait(far.verify_or_fetch(text, &reading())).unwrap();

    let confirmed = Reason::Compromised.confirmed();
    let receipt = wait(world.keys.revoke(&developer(), key.id, confirmed)).unwrap();
    assert_eq!(receipt.no_later_than(), world.keys.now());
    let revoked = |verdict: Result<_, VerifyError>| {
        let refusal = verdict.map(drop).unwrap_err();
        assert!(matches!(refusal, VerifyError::Revoked { .. }), "{refusal}");
    };
    // The node `far` may not decide alone about this class. Without a round trip to the store it fails closed
    // with `NeedsFresh`.
    let refusal = far.verify(text, &reading()).unwrap_err();
    assert_eq!(refusal, VerifyError::NeedsFresh);
    remote.partition(true);
    let refusal = wait(far.verify_or_fetch(text, &reading())).unwrap_err();
    assert_eq!(refusal, VerifyError::StoreUnavailable);
    remote.partition(false);
    for node in [&world.keys, &beside] {
        revoked(node.verify(text, &reading()));
    }
    for node in [&world.keys, &beside, &far] {
        revoked(wait(node.verify_or_fetch(text, &reading())));
        revoked(wait(node.verify_fresh(text, &reading())));
    }
}

#[test]
fn g_22_every_way_of_verifying_refuses_a_revoked_key() {
    let world = organization();
    for place in ["live", "test"] {
        let key = draft("export").scope("*:*").environment(place);
        let key = world.create(&admin(), key).unwrap();
        let text = key.secret.expose();
        let needs = [
            Need::any(),
            Need::any().or_publishable(),
            reading(),
            Need::scope("users:write").unwrap(),
            Need::any().of_class(class("api-key")),
            Need::any().in_environment(environment(place)),
            Need::any().for_tenant(tenant("acme")),
            Need::any().from_address([192, 0, 2, 1].into()),
        ];
        for need in &needs {
            let [direct, fetched, fresh, paired, _] = every_way(&world.keys, text, need);
            for verdict in [direct, fetched, fresh, paired] {
                assert_eq!(verdict, Ok(key.id), "{need:?}");
            }
        }
        revoke(&world, key.id);
        for need in &needs {
            for verdict in every_way(&world.keys, text, need) {
                let refusal = verdict.unwrap_err();
                assert!(matches!(refusal, VerifyError::Revoked { .. }), "{refusal}");
                assert_eq!(refusal.kind(), ErrorKind::Unauthenticated);
            }
        }
    }
}

#[test]
fn g_23_a_revocation_leaves_exactly_one_audit_entry_in_its_own_commit() {
    let world = organization();
    let key = create(&world, "export");
    let before = trail(&world, key.id).len();
    let unconfirmed = wait(world.keys.revoke(&admin(), key.id, Reason::Lost));
    assert_eq!(denied(unconfirmed), Denial::ConfirmationRequired);
    assert_eq!(trail(&world, key.id).len(), before, "nothing happened");

    world.clock.advance(hours(1));
    let confirmed = Reason::Compromised.confirmed();
    let receipt = wait(world.keys.revoke(&developer(), key.id, confirmed)).unwrap();
    world.clock.advance(hours(1));
    wait(
        world
            .keys
            .revoke(&admin(), key.id, Reason::Lost.confirmed()),
    )
    .unwrap();
    let rows = trail(&world, key.id).split_off(before);
    let [row] = rows.as_slice() else {
        panic!("exactly one entry: {rows:?}");
    };
    assert_eq!(row.revision, receipt.revision());
    let reason = Reason::Compromised;
    assert_eq!(row.entry.action, Action::KeyRevoked { reason });
    assert_eq!(row.entry.actor, author("dan"));
    assert_eq!(row.entry.at, at(START).saturating_add(hours(1)));
    let by = admin();
    let whole = world.keys.verify_audit(&by, &row.entry.tenant, None);
    wait(whole).unwrap();
}

#[test]
fn g_24_a_revoked_key_cannot_be_made_to_work_again() {
    let world = organization();
    let key = create(&world, "export");
    revoke(&world, key.id);
    let id = key.id;
    for by in [developer(), admin(), host()] {
        let keys = &world.keys;
        assert_eq!(denied(wait(keys.enable(&by, id))), Denial::Revoked);
        let longer = UpdateKey::new().expiry(Expiry::Never);
        assert_eq!(denied(wait(keys.update(&by, id, longer))), Denial::Revoked);
        let rotated = wait(keys.rotate(&by, id, RotateKey::default()));
        assert_eq!(denied(rotated), Denial::Revoked);
        let cancelled = wait(keys.cancel_rotation(&by, id));
        assert_eq!(denied(cancelled), Denial::NotRotating);
        assert_eq!(denied(wait(keys.replace_lost(&by, id))), Denial::Revoked);
    }
    // A revoked key also stays revoked if its rotation is cancelled.
    let old = create(&world, "old");
    let how = RotateKey::on_first_use(hours(1));
    wait(world.keys.rotate(&developer(), old.id, how)).unwrap();
    revoke(&world, old.id);
    let cancelled = wait(world.keys.cancel_rotation(&developer(), old.id));
    assert_eq!(denied(cancelled), Denial::Revoked);
    world
        .clock
        .set_wall("2020-01-01T00:00:00Z".parse().unwrap());
    for key in [&key, &old] {
        assert!(!works(&world.keys, key.secret.expose()));
        assert_eq!(info(&world, key.id).status, Status::Revoked);
    }
}

#[test]
fn g_34_a_key_that_is_not_rotated_in_time_raises_one_event() {
    let world = organization();
    let (kept, rotated) = (create(&world, "kept"), create(&world, "rotated"));
    let events = world.keys.events(ExpiryWindows::new([days(7)]).unwrap());
    let mut cursor = EventCursor::BEGINNING;
    let mut received = Vec::new();
    for day in 0..90 {
        if day == 80 {
            wait((world.keys).rotate(&developer(), rotated.id, RotateKey::default())).unwrap();
        }
        let many = NonZeroUsize::new(100).unwrap();
        let batch = wait(events.next_batch(&cursor, many)).unwrap();
        received.extend(batch.events);
        cursor = batch.cursor;
        world.clock.advance(days(1));
    }
    let due = received.iter().filter_map(|event| match &event.kind {
        EventKind::ExpiringSoon { owner, .. } => Some((event.at, event.key, owner.clone())),
        _ => None,
    });
    let day_83 = at(START).saturating_add(days(83));
    let whose = developer().principal().cloned();
    let expected = [(day_83, Some(kept.id), whose)];
    assert_eq!(due.collect::<Vec<_>>(), expected);
}

#[test]
fn g_35_a_compromised_key_is_revoked_immediately() {
    let world = organization();
    let elsewhere = world.another_node(policy());
    let source = || LeakSource::new("a public repository").unwrap();
    let by_text = create(&world, "by its text");
    let by_mark = create(&world, "by its fingerprint");
    let swept = world
        .create(&actor("acme", "kim", Role::DEVELOPER), draft("swept"))
        .unwrap();
    let kept = create(&world, "kept");

    let text = by_text.secret.expose();
    let report = wait(world.keys.report_leaked_token(text, source())).unwrap();
    assert!(report.revoked && report.key == by_text.id);
    let mark = by_mark.fingerprint;
    let support = host();
    let report = world
        .keys
        .report_leaked_fingerprint(&support, mark, source());
    assert!(wait(report).unwrap().revoked);
    let (by, acme) = (admin(), tenant("acme"));
    let of_kim = BulkFilter::all().owner(who("kim"));
    let bulk = world
        .keys
        .revoke_many(&by, &acme, of_kim, Reason::Compromised);
    assert_eq!(wait(bulk).unwrap().ended, 1);

    for (key, reason) in [
        (&by_text, Reason::Leaked),
        (&by_mark, Reason::Leaked),
        (&swept, Reason::Compromised),
    ] {
        for node in [&world.keys, &elsewhere] {
            assert!(!works(node, key.secret.expose()));
        }
        let revoked = info(&world, key.id).revocation.unwrap();
        assert_eq!((revoked.at, revoked.reason), (at(START), reason));
    }
    assert!(works(&world.keys, kept.secret.expose()));
    let guess = with_other_secret(kept.secret.expose());
    let guessed = wait(world.keys.report_leaked_token(guess, source()));
    assert_eq!(denied(guessed), Denial::NotFound);
    assert!(works(&world.keys, kept.secret.expose()));
}

#[test]
fn g_36_a_key_works_only_in_its_own_environment() {
    let world = organization();
    for (own, other, prefix) in [("live", "test", "key_live_"), ("test", "live", "key_test_")] {
        let key = world
            .create(&developer(), draft("export").environment(own))
            .unwrap();
        let text = key.secret.expose();
        assert!(text.starts_with(prefix));
        let here = reading().in_environment(environment(own));
        let there = reading().in_environment(environment(other));
        let [direct, fetched, fresh, paired, _] = every_way(&world.keys, text, &here);
        for verdict in [direct, fetched, fresh, paired] {
            assert_eq!(verdict, Ok(key.id));
        }
        let refused = VerifyError::WrongEnvironment {
            key: key.id,
            environment: environment(own),
        };
        for verdict in every_way(&world.keys, text, &there) {
            assert_eq!(verdict, Err(refused.clone()));
        }
        // A token with another prefix does not move the key to the other environment either.
        let other = format!("key_{other}_{}", &text[prefix.len()..text.len() - 6]);
        let renamed = format!("{other}{}", keyward::token::checksum(&other));
        assert!(!works(&world.keys, &renamed));
    }
    let nowhere = draft("export").environment("staging");
    let refusal = denied(world.create(&developer(), nowhere));
    assert!(matches!(refusal, Denial::Environment { .. }), "{refusal:?}");
}

#[test]
fn g_37_a_key_may_do_only_what_its_scopes_allow() {
    let world = organization();
    let refused = |key: &Created, wanted: &str| {
        let verdict = world
            .keys
            .verify(key.secret.expose(), &Need::scope(wanted).unwrap());
        let refusal = verdict.unwrap_err();
        let (key, scope) = (key.id, scope(wanted));
        assert_eq!(refusal, VerifyError::MissingScope { key, scope });
        assert_eq!(refusal.kind(), ErrorKind::Forbidden);
    };
    let blank = CreateKey::new("blank").purpose("none yet");
    let blank = world.create(&developer(), blank).unwrap();
    assert!(info(&world, blank.id).scopes.is_empty());
    for wanted in ["reports:read", "users:write"] {
        refused(&blank, wanted);
    }
    let reader = create(&world, "reader");
    assert!(works(&world.keys, reader.secret.expose()));
    for wanted in ["reports:write", "users:read", "report:read"] {
        refused(&reader, wanted);
    }
    let both = Need::scope("reports:read")
        .unwrap()
        .and_scope("users:read")
        .unwrap();
    let partly = world.keys.verify(reader.secret.expose(), &both);
    assert_eq!(partly.unwrap_err().kind(), ErrorKind::Forbidden);

    // A member of the organization can grant no more than its role allows.
    let member = draft("a member's").scope("reports:write");
    let member = member.owned_by(who("mel"), Role::MEMBER);
    let member = world.create(&admin(), member).unwrap();
    assert!(works(&world.keys, member.secret.expose()));
    refused(&member, "reports:write");
}

#[test]
fn g_38_a_key_states_its_purpose() {
    let world = organization();
    let silent = CreateKey::new("export").scope("reports:read");
    for by in [developer(), admin(), host()] {
        let refusal = denied(world.create(&by, silent.clone()));
        assert_eq!(refusal, Denial::PurposeRequired);
    }
    let Denial::Invalid(invalid) = denied(world.create(&admin(), silent.clone().purpose(" ")))
    else {
        panic!("a blank purpose must be invalid");
    };
    assert_eq!(invalid.problem, Problem::Empty);

    let key = create(&world, "export");
    let purpose = || info(&world, key.id).facts.purpose.unwrap().to_string();
    assert_eq!(purpose(), "nightly reports");
    let removed = UpdateKey::new().no_purpose();
    let refusal = wait(world.keys.update(&developer(), key.id, removed));
    assert_eq!(denied(refusal), Denial::PurposeRequired);
    let changed = UpdateKey::new().purpose("weekly reports");
    wait(world.keys.update(&developer(), key.id, changed)).unwrap();
    assert_eq!(purpose(), "weekly reports");

    // If the policy does not require a purpose, a key without one is accepted.
    let advised = organization_under(profiles::guide().with(|spec| spec.purpose_required = false));
    let key = advised.create(&developer(), silent).unwrap();
    assert_eq!(info(&advised, key.id).purpose, None);
}

#[test]
fn g_02_a_list_shows_name_creation_and_last_use() {
    let world = metered();
    let (used, unused) = (create(&world, "used"), create(&world, "unused"));
    world.clock.advance(hours(3));
    use_key(&world, &used.secret, 2);
    let query = KeyQuery::tenant(tenant("acme"), world.keys.now());
    let list = wait(world.keys.list_used(&developer(), &query)).unwrap();
    let shown = |info: &KeyInfo| {
        let last = list.last_uses.get(&info.id).map(|last| last.at);
        (info.name.to_string(), info.created.at, last)
    };
    let found: BTreeSet<_> = list.list.keys.iter().map(shown).collect();
    let start = at(START);
    let last = Some(start.saturating_add(hours(3)));
    let expected = [
        ("used".to_owned(), start, last),
        ("unused".to_owned(), start, None),
    ];
    assert_eq!(found, BTreeSet::from(expected));
    assert!(!list.last_uses.contains_key(&unused.id));
}

#[test]
fn g_08_the_details_of_a_key_show_how_much_it_was_used() {
    let world = metered();
    let key = create(&world, "key");
    use_key(&world, &key.secret, 3);
    let refused = Need::scope("no:such").unwrap();
    assert!(world.keys.verify(key.secret.expose(), &refused).is_err());
    wait(world.keys.flush_usage()).unwrap();
    let usage = usage(&world, key.id);
    assert_eq!(usage.count(UseOutcome::Accepted), 3);
    assert_eq!(usage.count(UseOutcome::MissingScope), 1);
}

#[test]
fn g_18_old_and_new_key_are_counted_apart_while_both_work() {
    let world = metered();
    let old = create(&world, "key");
    use_key(&world, &old.secret, 1);
    let new = wait(
        world
            .keys
            .rotate(&developer(), old.id, RotateKey::grace(days(1))),
    )
    .unwrap();
    use_key(&world, &old.secret, 2);
    use_key(&world, &new.secret, 4);
    let accepted = |key| usage(&world, key).count(UseOutcome::Accepted);
    assert_eq!((accepted(old.id), accepted(new.id)), (3, 4));
}

#[test]
fn g_25_the_number_of_requests_can_be_read() {
    let world = metered();
    let key = create(&world, "key");
    for round in 1..=3 {
        use_key(&world, &key.secret, 100);
        assert_eq!(
            usage(&world, key.id).count(UseOutcome::Accepted),
            round * 100
        );
    }
}

#[test]
fn g_26_the_time_of_the_last_use_can_be_read() {
    let world = metered();
    let key = create(&world, "key");
    for seconds in [1, 3, 5, 7000] {
        world.clock.advance(Duration::from_secs(seconds));
        use_key(&world, &key.secret, 1);
        let (last, now) = (usage(&world, key.id).last.unwrap().at, world.keys.now());
        assert!(
            last <= now && now.since(last) < Duration::from_secs(4),
            "{last}"
        );
    }
}

#[test]
fn g_27_the_use_of_a_key_over_time_can_be_read() {
    let world = metered();
    let key = create(&world, "key");
    for times in [5, 0, 7] {
        use_key(&world, &key.secret, times);
        world.clock.advance(days(1));
    }
    let first = Day::of(at(START)).number();
    let days: Vec<_> = usage(&world, key.id)
        .days
        .iter()
        .map(|day| {
            (
                day.day.number() - first,
                day.counts.hours(UseOutcome::Accepted)[0],
            )
        })
        .collect();
    assert_eq!(days, [(0, 5), (2, 7)]);
}

#[test]
fn g_28_keys_that_nobody_uses_can_be_found() {
    let world = metered();
    let (used, unused) = (create(&world, "used"), create(&world, "unused"));
    for _ in 0..31 {
        world.clock.advance(days(1));
        use_key(&world, &used.secret, 1);
    }
    let since = world.keys.now().saturating_sub(days(30));
    let query = KeyQuery::tenant(tenant("acme"), world.keys.now());
    let found = wait(world.keys.unused(&developer(), &query, since)).unwrap();
    let found: Vec<_> = found.keys.iter().map(|info| info.id).collect();
    assert_eq!(found, [unused.id]);
}
