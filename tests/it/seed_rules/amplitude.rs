//! The rules of `profiles::amplitude`.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward::audit::Action;
use keyward::command::{
    BulkFilter, Created, DeleteKey, Expiry, ImportKey, IssuedKey, LeakSource, Problem,
};
use keyward::entropy::{Entropy, EntropyError};
use keyward::key::{Digest, KeyType, LastAction, Owner, Status};
use keyward::policy::Policy;
use keyward::store::{AuditQuery, KeyQuery, KeySort, MemoryStore};
use keyward::{
    Actor, CommandError, CreateKey, Credentials, Denial, ErrorKind, KeyId, KeyInfo, Keyward,
    ManualClock, Need, Reason, Role, RotateKey, TenantId, UpdateKey, VerifyError, days, hours,
    profiles,
};
use keyward_conformance::FaultyStore;

use support::*;

/// Returns a service with a new project. A project is a tenant.
fn project() -> TestService {
    let world = unprovisioned();
    provision(&world);
    world
}

/// Returns a service in which the project does not exist yet.
fn unprovisioned() -> TestService {
    TestService::with_policy(profiles::amplitude())
}

fn policy() -> Policy {
    Policy::new(profiles::amplitude()).unwrap()
}

fn manager() -> Actor {
    actor("acme", "mona", Role::MANAGER)
}

fn member() -> Actor {
    actor("acme", "mel", Role::MEMBER)
}

fn api(name: &str) -> CreateKey {
    CreateKey::new(name).class("api-key").scope("ingest:write")
}

fn secret(name: &str) -> CreateKey {
    let scopes = ["project:read", "project:write"];
    CreateKey::new(name).class("secret-key").scopes(scopes)
}

fn ingest() -> Need {
    Need::scope("ingest:write").unwrap().or_publishable()
}

fn read_project() -> Need {
    Need::scope("project:read").unwrap()
}

/// Provisions the project. Returns its first keys.
fn provision(world: &TestService) -> Vec<IssuedKey> {
    wait(world.keys.provision_tenant(&host(), &tenant("acme"))).unwrap()
}

fn everything(world: &TestService) -> KeyQuery {
    world
        .keys
        .query(&tenant("acme"))
        .with(|query| query.limit = NonZeroUsize::new(1000).unwrap())
}

fn list(world: &TestService, query: &KeyQuery) -> Vec<KeyInfo> {
    wait(world.keys.list(&manager(), query)).unwrap().keys
}

fn info(world: &TestService, id: KeyId) -> KeyInfo {
    wait(world.keys.key(&manager(), id)).unwrap()
}

fn revoke(world: &TestService, id: KeyId) {
    let reason = Reason::NoLongerNeeded.confirmed();
    wait(world.keys.revoke(&manager(), id, reason)).unwrap();
}

fn delete(world: &TestService, id: KeyId) {
    wait(
        world
            .keys
            .delete(&manager(), id, DeleteKey::typed("DELETE")),
    )
    .unwrap();
}

#[track_caller]
fn assert_forbidden<T: std::fmt::Debug>(result: Result<T, CommandError>) {
    let refusal = denied(result);
    assert!(matches!(refusal, Denial::Forbidden { .. }), "{refusal:?}");
}

/// Tries every command that could make a revoked or expired key work again. Returns the refusals.
fn attempts_to_undo(world: &TestService, id: KeyId) -> Vec<Denial> {
    let (keys, by) = (&world.keys, admin());
    let renamed = UpdateKey::new().name("again").expiry(Expiry::Never);
    vec![
        denied(wait(keys.enable(&by, id))),
        denied(wait(keys.disable(&by, id))),
        denied(wait(keys.update(&by, id, renamed))),
        denied(wait(keys.rotate(&by, id, RotateKey::immediate()))),
        denied(wait(keys.cancel_rotation(&by, id))),
        denied(wait(keys.finish_rotation(&by, id))),
        denied(wait(keys.replace_lost(&by, id))),
    ]
}

#[test]
fn a1_01_managers_and_admins_create_revoke_and_delete_and_members_do_not() {
    let world = project();
    for by in [manager(), admin()] {
        let api_key = world.create(&by, api("web")).unwrap();
        let secret_key = world.create(&by, secret("export")).unwrap();
        let confirmed = Reason::Lost.confirmed();
        for id in [api_key.id, secret_key.id] {
            assert_forbidden(wait(world.keys.revoke(&member(), id, confirmed)));
            let typed = DeleteKey::typed("DELETE");
            assert_forbidden(wait(world.keys.delete(&member(), id, typed)));
        }
        wait(world.keys.revoke(&by, api_key.id, confirmed)).unwrap();
        let typed = DeleteKey::typed("DELETE");
        wait(world.keys.delete(&by, secret_key.id, typed)).unwrap();
    }
    assert_forbidden(world.create(&member(), api("web")));
    let reading = CreateKey::new("export").class("secret-key");
    assert_forbidden(world.create(&member(), reading.scope("project:read")));

    let owned = secret("for mel").owned_by(who("mel"), Role::MEMBER);
    let owned = world.create(&admin(), owned).unwrap();
    let typed = DeleteKey::typed("DELETE");
    assert_forbidden(wait(world.keys.delete(&member(), owned.id, typed)));
}

#[test]
fn a1_02_nothing_brings_a_revoked_or_deleted_key_back() {
    let world = project();
    let revoked = world.create(&manager(), api("web")).unwrap();
    let deleted = world.create(&manager(), secret("export")).unwrap();
    revoke(&world, revoked.id);
    delete(&world, deleted.id);
    let ended = info(&world, revoked.id);

    attempts_to_undo(&world, revoked.id);
    for refusal in attempts_to_undo(&world, deleted.id) {
        assert_eq!(refusal, Denial::NotFound);
    }
    // Revoking again is allowed but keeps the first revocation.
    world.clock.advance(days(1));
    let again = Reason::Lost.confirmed();
    wait(world.keys.revoke(&admin(), revoked.id, again)).unwrap();
    let typed = DeleteKey::typed("DELETE");
    let again = wait(world.keys.delete(&admin(), deleted.id, typed));
    assert_eq!(denied(again), Denial::NotFound);
    let (by, acme) = (admin(), tenant("acme"));
    let promoted = world
        .keys
        .change_owner_role(&by, &acme, who("mona"), Role::ADMIN);
    wait(promoted).unwrap();
    world.clock.set_wall(at(START));

    assert_eq!(info(&world, revoked.id), ended);
    let refusal = world.keys.verify(revoked.secret.expose(), &ingest());
    assert!(matches!(refusal.unwrap_err(), VerifyError::Revoked { .. }));
    let refusal = world.keys.verify(deleted.secret.expose(), &read_project());
    assert_eq!(refusal.unwrap_err(), VerifyError::Unknown);
}

#[test]
fn a1_03_several_keys_of_both_kinds_work_side_by_side() {
    let world = project();
    let (mut apis, mut secrets) = (Vec::new(), Vec::new());
    for name in ["one", "two", "three"] {
        apis.push(world.create(&manager(), api(name)).unwrap());
        secrets.push(world.create(&manager(), secret(name)).unwrap());
    }
    for key in &apis {
        let grant = world.keys.verify(key.secret.expose(), &ingest()).unwrap();
        assert_eq!(grant.key_id(), key.id);
    }
    for key in &secrets {
        let grant = world.keys.verify(key.secret.expose(), &read_project());
        assert_eq!(grant.unwrap().key_id(), key.id);
    }
}

#[test]
fn a1_04_keys_of_both_kinds_have_names_that_lists_show() {
    let world = project();
    let web = world.create(&manager(), api("web")).unwrap();
    let export = world.create(&manager(), secret("export")).unwrap();
    let query = everything(&world).with(|query| query.sort = KeySort::Name);
    let listed: Vec<_> = list(&world, &query)
        .into_iter()
        .map(|key| (key.id, key.name.to_string()))
        .filter(|(id, _)| [web.id, export.id].contains(id))
        .collect();
    let expected = [(export.id, "export".to_owned()), (web.id, "web".to_owned())];
    assert_eq!(listed, expected);
    assert_eq!(info(&world, web.id).name.as_str(), "web");
    let grant = world.keys.verify(export.secret.expose(), &read_project());
    let shown = wait(world.keys.key_for_grant(&grant.unwrap())).unwrap();
    assert_eq!(shown.name.as_str(), "export");
}

#[test]
fn a1_05_each_key_shows_its_creator_and_its_last_change() {
    let world = project();
    let web = world.create(&admin(), api("web")).unwrap();
    let export = world.create(&admin(), secret("export")).unwrap();
    let fresh = info(&world, web.id);
    assert_eq!(fresh.created.by, author("alice"));
    assert_eq!(fresh.last_action, LastAction::Created);

    world.clock.advance(days(1));
    revoke(&world, web.id);
    delete(&world, export.id);
    let ended = info(&world, web.id);
    assert_eq!(ended.created, fresh.created);
    assert_eq!(ended.last_action, LastAction::Revoked);
    assert_eq!(ended.updated.by, author("mona"));
    assert_eq!(ended.updated.at, at(START).saturating_add(days(1)));

    // No list shows a deleted key, but the trail still records it.
    let query = AuditQuery::tenant(tenant("acme")).about(export.id);
    let rows = wait(world.keys.audit(&admin(), &query)).unwrap().rows;
    let actions: Vec<_> = rows
        .into_iter()
        .map(|row| (row.entry.actor, row.entry.action))
        .collect();
    let created = Action::KeyCreated {
        class: class("secret-key"),
    };
    let expected = [
        (author("alice"), created),
        (author("mona"), Action::KeyDeleted),
    ];
    assert_eq!(actions, expected);
}

#[test]
fn a1_06_access_through_a_key_can_be_switched_off() {
    let world = project();
    let keys = &world.keys;
    let web = world.create(&manager(), api("web")).unwrap();
    let export = world.create(&manager(), secret("export")).unwrap();
    for (key, need) in [(&web, ingest()), (&export, read_project())] {
        let text = key.secret.expose();
        wait(keys.disable(&manager(), key.id)).unwrap();
        let off = VerifyError::Disabled { key: key.id };
        assert_eq!(keys.verify(text, &need).unwrap_err(), off);
        assert_eq!(wait(keys.verify_fresh(text, &need)).unwrap_err(), off);
        assert_eq!(off.kind(), ErrorKind::Unauthenticated);
        wait(keys.enable(&manager(), key.id)).unwrap();
        keys.verify(text, &need).unwrap();
    }
    revoke(&world, web.id);
    assert!(keys.verify(web.secret.expose(), &ingest()).is_err());
}

#[test]
fn a1_08_an_api_key_identifies_the_project_of_incoming_data() {
    let world = project();
    let mut routed = Vec::new();
    for path in ["acme/web", "acme/ios"] {
        let key = api("events").in_tenant(tenant(path));
        let key = world.create(&admin(), key).unwrap();
        let grant = world.keys.verify(key.secret.expose(), &ingest()).unwrap();
        assert_eq!(grant.key_type(), KeyType::Publishable);
        routed.push(grant.tenant().clone());
        let elsewhere = ingest().for_tenant(tenant("acme"));
        let refusal = world.keys.verify(key.secret.expose(), &elsewhere);
        let expected = VerifyError::WrongTenant {
            key: key.id,
            tenant: tenant("acme"),
        };
        assert_eq!(refusal.unwrap_err(), expected);
    }
    assert_eq!(routed, [tenant("acme/web"), tenant("acme/ios")]);
}

#[test]
fn a1_09_the_legacy_key_is_listed_before_any_key_is_created() {
    let world = unprovisioned();
    provision(&world);
    world.clock.advance(days(400));
    let listed = list(&world, &everything(&world));
    let [legacy] = listed.as_slice() else {
        panic!("exactly one key: {listed:?}");
    };
    assert!(legacy.legacy);
    assert_eq!(legacy.class, class("api-key"));
    assert_eq!(legacy.status, Status::Active);
    assert_eq!(legacy.name.as_str(), "Legacy API key");
}

#[test]
fn a1_10_the_legacy_key_comes_with_its_project() {
    let world = unprovisioned();
    let issued = provision(&world);
    let [legacy] = issued.as_slice() else {
        panic!("exactly one key: {issued:?}");
    };
    let text = legacy.token.as_ref().unwrap().expose();
    world.keys.verify(text, &ingest()).unwrap();
    world.clock.advance(days(400));
    assert!(
        provision(&world).is_empty(),
        "the legacy key is issued once"
    );
    let details = info(&world, legacy.id);
    assert_eq!(details.created.at, at(START));
    assert_eq!(
        details.owner,
        Owner::Tenant,
        "the legacy key belongs to the tenant"
    );

    // If the first command in a project creates a key, the project gets a legacy key too.
    let late = world
        .create(&admin(), api("web").in_tenant(tenant("acme/late")))
        .unwrap();
    assert_eq!(late.provisioned.len(), 1);
    assert!(info(&world, late.provisioned[0].id).legacy);
}

#[test]
fn a1_11_the_legacy_key_cannot_be_switched_off() {
    let world = unprovisioned();
    let keys = &world.keys;
    let first = provision(&world).remove(0);
    let text = first.token.as_ref().unwrap().expose();
    let successor = |id| {
        let rotated = wait(keys.rotate(&manager(), id, RotateKey::immediate())).unwrap();
        (rotated.id, rotated.secret.expose().to_owned())
    };
    let never_off = |id: KeyId, text: &str| {
        let refused = |result: Result<(), CommandError>| match denied(result) {
            Denial::LegacyKey { .. } => {}
            other => panic!("{other:?}"),
        };
        for by in [manager(), admin(), host()] {
            let confirmed = Reason::Compromised.confirmed();
            refused(wait(keys.revoke(&by, id, confirmed)).map(drop));
            refused(wait(keys.disable(&by, id)).map(drop));
            let typed = DeleteKey::typed("DELETE");
            refused(wait(keys.delete(&by, id, typed)).map(drop));
            let ending = UpdateKey::new().expiry(Expiry::In(hours(1)));
            refused(wait(keys.update(&by, id, ending)).map(drop));
        }
        let all = BulkFilter::all();
        let (by, acme) = (admin(), tenant("acme"));
        let swept = keys.revoke_many(&by, &acme, all, Reason::Unused);
        assert_eq!(wait(swept).unwrap().skipped, [id]);
        let source = LeakSource::new("a repository").unwrap();
        let leak = wait(keys.report_leaked_token(text, source)).unwrap();
        assert!(!leak.revoked);
        keys.verify(text, &ingest()).unwrap();
    };
    never_off(first.id, text);
    let (id, text) = successor(first.id);
    never_off(id, &text);
}

#[test]
fn a1_12_the_legacy_key_can_be_replaced_and_stays_the_only_one() {
    let world = unprovisioned();
    let elsewhere = world.another_node(policy());
    let first = provision(&world).remove(0);
    let mut old = (first.id, first.token.as_ref().unwrap().expose().to_owned());
    for _ in 0..2 {
        wait(elsewhere.verify_or_fetch(&old.1, &ingest())).unwrap();
        let how = RotateKey::default();
        let rotated = wait(world.keys.rotate(&manager(), old.0, how)).unwrap();
        assert!(
            world.keys.verify(&old.1, &ingest()).is_err(),
            "this node refuses the key immediately"
        );
        world.clock.advance(hours(6));
        let new = (rotated.id, rotated.secret.expose().to_owned());
        assert_ne!(new.1, old.1);
        for node in [&world.keys, &elsewhere] {
            wait(node.verify_or_fetch(&new.1, &ingest())).unwrap();
            let refusal = node.verify(&old.1, &ingest()).unwrap_err();
            assert!(matches!(refusal, VerifyError::Revoked { .. }), "{refusal}");
        }
        let listed = list(&world, &everything(&world));
        let legacy: Vec<_> = listed.iter().filter(|key| key.legacy).collect();
        assert_eq!(legacy.len(), 1);
        assert_eq!(legacy[0].id, new.0);
        old = new;
    }
}

#[test]
fn a1_13_an_api_key_needs_a_project_and_a_name() {
    let world = project();
    for nameless in ["", "  "] {
        let Denial::Invalid(invalid) = denied(world.create(&manager(), api(nameless))) else {
            panic!("a name is needed");
        };
        assert_eq!(
            (invalid.field, invalid.problem),
            ("key name", Problem::Empty)
        );
    }
    // An actor belongs to a project, so a key cannot be created without a project. An empty project id is
    // invalid.
    assert_eq!(TenantId::new("").unwrap_err().problem, Problem::Empty);
    let foreign = api("web").in_tenant(tenant("other"));
    let refusal = denied(world.create(&manager(), foreign));
    assert_eq!(refusal, Denial::TenantNotFound);
    assert!(
        list(&world, &everything(&world))
            .iter()
            .all(|key| key.legacy)
    );

    wait(world.keys.provision_tenant(&host(), &tenant("acme/web"))).unwrap();
    let chosen = api("web").in_tenant(tenant("acme/web"));
    let key = world.create(&manager(), chosen).unwrap();
    assert_eq!(info(&world, key.id).tenant, tenant("acme/web"));
}

#[test]
fn a1_14_the_value_of_an_api_key_can_be_read_again() {
    let world = project();
    let key = world.create(&admin(), api("web")).unwrap();
    world.clock.advance(days(400));
    let value = Some(key.secret.expose().to_owned());
    assert_eq!(info(&world, key.id).published, value);
    let listed = list(&world, &everything(&world));
    let listed = listed.into_iter().find(|other| other.id == key.id);
    assert_eq!(listed.unwrap().published, value);
    world.keys.verify(key.secret.expose(), &ingest()).unwrap();
}

#[test]
fn a1_15_a_revocation_must_be_confirmed() {
    let world = project();
    let key = world.create(&manager(), api("web")).unwrap();
    for by in [manager(), admin()] {
        let refusal = wait(world.keys.revoke(&by, key.id, Reason::Lost));
        assert_eq!(denied(refusal), Denial::ConfirmationRequired);
        world.keys.verify(key.secret.expose(), &ingest()).unwrap();
    }
    let confirmed = Reason::Lost.confirmed();
    wait(world.keys.revoke(&manager(), key.id, confirmed)).unwrap();
    assert_eq!(info(&world, key.id).status, Status::Revoked);
}

#[test]
fn a1_16_a_revoked_key_is_refused_permanently() {
    let world = project();
    let elsewhere = world.another_node(policy());
    let key = world.create(&manager(), api("web")).unwrap();
    let text = key.secret.expose();
    wait(elsewhere.verify_or_fetch(text, &ingest())).unwrap();
    revoke(&world, key.id);
    let refused = |verdict: Result<_, VerifyError>| {
        let refusal = verdict.map(drop).unwrap_err();
        assert!(matches!(refusal, VerifyError::Revoked { .. }), "{refusal}");
    };
    refused(world.keys.verify(text, &ingest()));
    for later in [hours(6), days(1), days(36_500)] {
        world.clock.advance(later);
        let started = world.another_node(policy());
        for node in [&world.keys, &elsewhere, &started] {
            refused(node.verify(text, &ingest()));
            refused(wait(node.verify_fresh(text, &ingest())));
        }
    }
}

#[test]
fn a1_17_a_revoked_api_key_stays_on_record_with_its_value() {
    let world = project();
    let key = world.create(&manager(), api("web")).unwrap();
    world.create(&manager(), api("ios")).unwrap();
    revoke(&world, key.id);
    world.clock.advance(days(3_650));
    let purged = wait(world.keys.purge(&host(), &tenant("acme"))).unwrap();
    assert_eq!(purged.ended, 0);
    let typed = DeleteKey::typed("DELETE");
    let kept = wait(world.keys.delete(&admin(), key.id, typed));
    let class = class("api-key");
    assert_eq!(denied(kept), Denial::NotDeletable { class });

    let query = everything(&world).with(|query| query.statuses = BTreeSet::from([Status::Revoked]));
    let listed = list(&world, &query);
    let [record] = listed.as_slice() else {
        panic!("exactly one revoked key: {listed:?}");
    };
    assert_eq!((record.id, record.name.as_str()), (key.id, "web"));
    assert_eq!(record.published.as_deref(), Some(key.secret.expose()));
}

#[test]
fn a1_18_reading_and_changing_a_project_requires_a_secret_key() {
    let world = project();
    let keys = &world.keys;
    let web = world.create(&manager(), api("web")).unwrap();
    let export = world.create(&manager(), secret("export")).unwrap();
    for wanted in ["project:read", "project:write"] {
        let need = Need::scope(wanted).unwrap();
        keys.verify(export.secret.expose(), &need).unwrap();
        let text = web.secret.expose();
        let refusal = keys.verify(text, &need).unwrap_err();
        assert_eq!(refusal, VerifyError::Publishable { key: web.id });
        assert_eq!(refusal.kind(), ErrorKind::Forbidden);
        let refusal = keys.verify(text, &need.or_publishable()).unwrap_err();
        let (key, scope) = (web.id, scope(wanted));
        assert_eq!(refusal, VerifyError::MissingScope { key, scope });
        assert_eq!(refusal.kind(), ErrorKind::Forbidden);
        let grown = denied(world.create(&admin(), api("more").scope(wanted)));
        assert!(matches!(grown, Denial::ScopeNotAllowed { .. }), "{grown:?}");
    }
}

#[test]
fn a1_19_a_secret_key_needs_a_project_and_a_name_and_is_returned_once() {
    let world = project();
    let Denial::Invalid(invalid) = denied(world.create(&manager(), secret(""))) else {
        panic!("a name is needed");
    };
    assert_eq!(
        (invalid.field, invalid.problem),
        ("key name", Problem::Empty)
    );
    let foreign = secret("export").in_tenant(tenant("other"));
    let refusal = denied(world.create(&manager(), foreign));
    assert_eq!(refusal, Denial::TenantNotFound);

    let by = manager();
    let once = by.with_command_id(command("generate-1"));
    let key = wait(world.keys.create(&once, secret("export"))).unwrap();
    let grant = world.keys.verify(key.secret.expose(), &read_project());
    let grant = grant.unwrap();
    assert_eq!(grant.tenant(), &tenant("acme"));
    let shown = wait(world.keys.key_for_grant(&grant)).unwrap();
    assert_eq!(shown.name.as_str(), "export");
    let again = wait(world.keys.create(&once, secret("export")));
    assert_eq!(denied(again), Denial::AlreadyCreated { id: key.id });
}

#[test]
fn a1_20_a_secret_is_never_stored_and_never_returned_again() {
    let world = project();
    let web = world.create(&manager(), api("web")).unwrap();
    let export = world.create(&manager(), secret("export")).unwrap();
    let grant = world.keys.verify(export.secret.expose(), &read_project());
    let grant = grant.unwrap();
    let listed = list(&world, &everything(&world));
    let details = info(&world, export.id);
    assert_eq!(details.published, None);
    let query = AuditQuery::tenant(tenant("acme"));
    let trail = wait(world.keys.audit(&admin(), &query)).unwrap();
    let answers = format!(
        "{listed:?} {} {details:?} {grant:?} {trail:?}",
        serde_json::to_string(&listed).unwrap()
    );
    let stored = dump(&world.store);

    let hidden = &secret_part(export.secret.expose())[..16];
    assert!(!answers.contains(hidden) && !stored.contains(hidden));
    // To show that the search works: it finds the text of the API key, which may be stored and shown again.
    let shown = &secret_part(web.secret.expose())[..16];
    assert!(answers.contains(shown) && stored.contains(shown));
}

#[test]
fn a1_21_a_key_id_names_one_key_and_grants_nothing() {
    let world = project();
    let made: Vec<_> = (0..10)
        .map(|n| world.create(&manager(), secret(&format!("{n}"))).unwrap())
        .collect();
    let ids: BTreeSet<_> = made.iter().map(|key| key.id.to_string()).collect();
    assert_eq!(ids.len(), made.len());
    let (keys, need) = (&world.keys, Need::any().or_publishable());
    for key in &made {
        let (id, text) = (key.id.to_string(), key.secret.expose());
        let grant = keys.verify(text, &need).unwrap();
        assert_eq!(grant.key_id(), key.id);
        let shown = wait(keys.key_for_grant(&grant)).unwrap();
        assert_eq!(info(&world, key.id).name, shown.name);
        let typed = format!("secret_{id}");
        let sealed = format!("{typed}{}", keyward::token::checksum(&typed));
        for guess in [&id, &typed, &sealed, &with_other_secret(text)] {
            let fresh = wait(keys.verify_fresh(guess, &need));
            let fetched = wait(keys.verify_or_fetch(guess, &need));
            for verdict in [keys.verify(guess, &need), fresh, fetched] {
                let refusal = verdict.unwrap_err();
                assert_eq!(refusal.kind(), ErrorKind::Unauthenticated, "{refusal}");
            }
        }
        let pair = Credentials::Pair {
            public: id.as_bytes(),
            secret: id.as_bytes(),
        };
        assert!(keys.verify(pair, &need).is_err());
    }
}

#[test]
fn a1_22_deleting_requires_the_exact_word() {
    let world = project();
    let key = world.create(&manager(), secret("export")).unwrap();
    let id = key.id;
    let wrong = [
        "", "delete", "Delete", "DELETE ", " DELETE", "DELETED", "YES",
    ];
    let attempts = wrong.map(DeleteKey::typed).into_iter();
    for attempt in attempts.chain([DeleteKey::plain()]) {
        let said = format!("{attempt:?}");
        let text = "DELETE".to_owned();
        let refusal = denied(wait(world.keys.delete(&admin(), id, attempt)));
        assert_eq!(
            refusal,
            Denial::TypedConfirmationRequired { text },
            "{said}"
        );
    }
    // Revoking the key, instead of deleting it, is refused too.
    let confirmed = Reason::Lost.confirmed();
    let revoked = denied(wait(world.keys.revoke(&admin(), id, confirmed)));
    assert!(
        matches!(revoked, Denial::NotRevocable { .. }),
        "{revoked:?}"
    );
    let text = key.secret.expose();
    world.keys.verify(text, &read_project()).unwrap();
    let exact = DeleteKey::typed("DELETE");
    wait(world.keys.delete(&manager(), id, exact)).unwrap();
    assert!(world.keys.verify(text, &read_project()).is_err());
}

#[test]
fn a1_23_a_deleted_secret_key_is_gone() {
    let world = project();
    let elsewhere = world.another_node(policy());
    let brought = ImportKey::sha256(Digest::sha256("brought-along"), secret("brought"));
    let brought_id = wait(world.keys.import(&admin(), brought.clone()))
        .unwrap()
        .id;
    let made = world.create(&manager(), secret("export")).unwrap();
    let texts = [made.secret.expose(), "brought-along"];
    wait(elsewhere.sync()).unwrap();
    for text in texts {
        world.keys.verify(text, &read_project()).unwrap();
        elsewhere.verify(text, &read_project()).unwrap();
    }
    for id in [made.id, brought_id] {
        delete(&world, id);
    }
    world.clock.advance(hours(6));
    for node in [&world.keys, &elsewhere] {
        for text in texts {
            let fresh = wait(node.verify_fresh(text, &read_project()));
            let fetched = wait(node.verify_or_fetch(text, &read_project()));
            for verdict in [node.verify(text, &read_project()), fresh, fetched] {
                assert_eq!(verdict.unwrap_err().kind(), ErrorKind::Unauthenticated);
            }
        }
    }
    for id in [made.id, brought_id] {
        for by in [manager(), admin(), host()] {
            assert_eq!(denied(wait(world.keys.key(&by, id))), Denial::NotFound);
            let listed = wait(world.keys.list(&by, &everything(&world)))
                .unwrap()
                .keys;
            assert!(listed.iter().all(|key| key.id != id));
        }
        for refusal in attempts_to_undo(&world, id) {
            assert_eq!(refusal, Denial::NotFound);
        }
    }
    let again = wait(world.keys.import(&admin(), brought));
    assert_eq!(denied(again), Denial::DigestTaken);
}

fn active_keys(world: &TestService) -> usize {
    let query = everything(world).with(|query| query.statuses = BTreeSet::from([Status::Active]));
    list(world, &query).len()
}

#[test]
fn a1_24_a_project_has_at_most_fifty_active_keys() {
    let limit = NonZeroU32::new(50).unwrap();
    let classes = BTreeSet::new();
    let full = Denial::CapReached { limit, classes };
    let world = project();
    let fill = |n: usize| {
        let kind = if n.is_multiple_of(2) { api } else { secret };
        world.create(&manager(), kind(&format!("{n}"))).unwrap()
    };
    let made: Vec<Created> = (0..49).map(fill).collect();
    assert_eq!(active_keys(&world), 50, "the legacy key counts");
    let refused = || {
        for kind in [api, secret] {
            for by in [manager(), admin(), host()] {
                assert_eq!(denied(world.create(&by, kind("one more"))), full);
            }
        }
    };
    refused();
    revoke(&world, made[0].id);
    world.create(&manager(), secret("in its place")).unwrap();
    refused();
    delete(&world, made[1].id);
    world.create(&manager(), api("in its place")).unwrap();
    refused();

    // Two nodes run a hundred concurrent creates for an unknown project.
    let world = unprovisioned();
    let nodes = [world.keys.clone(), world.another_node(policy())];
    let created: usize = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..10)
            .map(|thread| {
                let (keys, full): (&Keyward, _) = (&nodes[thread % 2], &full);
                scope.spawn(move || {
                    let create = |n: usize| {
                        let kind = if n.is_multiple_of(2) { api } else { secret };
                        let key = kind(&format!("{thread} {n}"));
                        match wait(keys.create(&admin(), key)) {
                            Ok(_) => true,
                            refused => {
                                assert_eq!(denied(refused), *full);
                                false
                            }
                        }
                    };
                    (0..10).filter(|n| create(*n)).count()
                })
            })
            .collect();
        let counts = attempts.into_iter().map(|attempt| attempt.join().unwrap());
        counts.sum()
    });
    assert_eq!((created, active_keys(&world)), (49, 50));
}

/// An entropy source that starts with the same bytes on each node, so that a test knows a key before it
/// exists.
#[derive(Debug, Default)]
struct Predictable(AtomicU64);

impl Entropy for Predictable {
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError> {
        for byte in out {
            let n = self.0.fetch_add(1, Ordering::SeqCst);
            let mixed = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *byte = ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8;
        }
        Ok(())
    }
}

fn predictable_node(store: MemoryStore, clock: &Arc<ManualClock>) -> Keyward {
    let builder = Keyward::builder(store, peppers())
        .policy(policy())
        .clock(clock.clone())
        .entropy(Predictable::default());
    wait(builder.build()).unwrap()
}

#[test]
fn a1_25_a_new_key_works_immediately_on_every_node_even_after_a_miss() {
    let world = project();
    for kind in [api, secret] {
        let key = || kind("new").in_tenant(tenant("acme/new"));
        let need = Need::any().or_publishable();
        let store = MemoryStore::new();
        let twin = predictable_node(MemoryStore::new(), &world.clock);
        let predicted = wait(twin.create(&admin(), key())).unwrap().secret;

        let creates = predictable_node(store.clone(), &world.clock);
        let beside = node(store.clone(), &world.clock, policy());
        let remote = FaultyStore::new(store.clone());
        let far = node(remote.clone(), &world.clock, policy());
        let unreachable = node(remote.clone(), &world.clock, policy());
        for node in [&creates, &beside, &far, &unreachable] {
            let text = predicted.expose();
            let missed = wait(node.verify_or_fetch(text, &need)).unwrap_err();
            assert_eq!(missed, VerifyError::Unknown);
            assert_eq!(node.verify(text, &need).unwrap_err(), missed);
        }
        remote.partition(true);
        let missed = wait(unreachable.verify_or_fetch(predicted.expose(), &need));
        assert_eq!(missed.unwrap_err(), VerifyError::StoreUnavailable);
        remote.partition(false);

        let created = wait(creates.create(&admin(), key())).unwrap();
        let text = created.secret.expose();
        assert_eq!(text, predicted.expose(), "this is the predicted key");
        creates.verify(text, &need).unwrap();
        for node in [&beside, &far, &unreachable] {
            let grant = wait(node.verify_or_fetch(text, &need)).unwrap();
            assert_eq!(grant.key_id(), created.id);
            node.verify(text, &need).unwrap();
        }
    }
}

/// Two nodes that are cut off from the store they followed. One node uses the test's clock. The other node's
/// clock runs as slowly as allowed.
struct Partitioned {
    remote: FaultyStore<MemoryStore>,
    node: Keyward,
    slow: Keyward,
    slow_clock: Arc<ManualClock>,
}

impl Partitioned {
    fn from(world: &TestService) -> Self {
        let remote = FaultyStore::new(world.store.clone());
        let slow_clock = Arc::new(ManualClock::at(at(START)));
        let node = node(remote.clone(), &world.clock, policy());
        let slow = support::node(remote.clone(), &slow_clock, policy());
        remote.partition(true);
        Self {
            remote,
            node,
            slow,
            slow_clock,
        }
    }

    fn advance(&self, world: &TestService, by: Duration) {
        world.clock.advance(by);
        self.slow_clock.advance(by * 999 / 1000);
    }

    /// Checks that both nodes accept `text` for nearly six hours from now, and no longer.
    fn accepts_for_six_hours(&self, world: &TestService, text: &str, need: &Need) {
        let nearly = hours(6) - Duration::from_secs(30);
        let nodes = [&self.node, &self.slow];
        for node in nodes {
            node.verify(text, need).unwrap();
        }
        self.advance(world, nearly);
        for node in nodes {
            node.verify(text, need).unwrap();
        }
        for later in [hours(6) - nearly, hours(1), days(365)] {
            self.advance(world, later);
            for node in nodes {
                let refusal = node.verify(text, need).unwrap_err();
                assert!(matches!(refusal, VerifyError::Stale { .. }), "{refusal}");
                assert_eq!(refusal.kind(), ErrorKind::Unavailable);
                assert!(wait(node.verify_or_fetch(text, need)).is_err());
                assert!(wait(node.verify_fresh(text, need)).is_err());
                assert!(wait(node.sync()).is_err());
            }
        }
        self.remote.partition(false);
        for node in nodes {
            wait(node.sync()).unwrap();
            let refusal = node.verify(text, need).unwrap_err();
            assert!(matches!(refusal, VerifyError::Revoked { .. }), "{refusal}");
        }
    }
}

#[test]
fn a1_26_a_partitioned_node_accepts_a_revoked_key_for_six_hours_at_most() {
    let world = project();
    let key = world.create(&manager(), api("web")).unwrap();
    let partitioned = Partitioned::from(&world);
    let confirmed = Reason::Compromised.confirmed();
    let receipt = wait(world.keys.revoke(&manager(), key.id, confirmed)).unwrap();
    assert!(receipt.no_later_than() <= at(START).saturating_add(hours(6)));
    let text = key.secret.expose();
    assert!(
        world.keys.verify(text, &ingest()).is_err(),
        "this node refuses the key immediately"
    );
    partitioned.accepts_for_six_hours(&world, text, &ingest());
}

#[test]
fn a1_27_the_six_hours_apply_to_legacy_and_other_keys_alike() {
    for legacy in [true, false] {
        let world = unprovisioned();
        let first = provision(&world).remove(0);
        let other = world.create(&manager(), api("web")).unwrap();
        let (id, token) = if legacy {
            (first.id, first.token.unwrap())
        } else {
            (other.id, other.secret)
        };
        assert_eq!(info(&world, id).legacy, legacy);
        let partitioned = Partitioned::from(&world);
        let how = RotateKey::default();
        let rotated = wait(world.keys.rotate(&manager(), id, how)).unwrap();
        let six_hours_later = at(START).saturating_add(hours(6));
        assert!(rotated.receipt.no_later_than() <= six_hours_later);
        let old = world.keys.verify(token.expose(), &ingest());
        assert!(matches!(old.unwrap_err(), VerifyError::Revoked { .. }));
        partitioned.accepts_for_six_hours(&world, token.expose(), &ingest());
        let new = rotated.secret.expose();
        partitioned.node.verify(new, &ingest()).unwrap();
    }
}

#[test]
fn a1_28_secret_keys_are_labelled_as_not_final() {
    let world = project();
    let web = world.create(&manager(), api("web")).unwrap();
    let export = world.create(&manager(), secret("export")).unwrap();
    let stage = |key: &KeyInfo| key.stage.as_ref().map(ToString::to_string);
    let listed = list(&world, &everything(&world));
    for (id, label) in [(web.id, None), (export.id, Some("beta".to_owned()))] {
        assert_eq!(stage(&info(&world, id)), label);
        let listed = listed.iter().find(|key| key.id == id).unwrap();
        assert_eq!(stage(listed), label);
    }
}
