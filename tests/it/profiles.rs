//! The shipped profiles through the public API. The main use of each profile works, and forbidden commands
//! are refused for the documented reason.

use keyward::command::{DeleteKey, Expiry, IssuedKey};
use keyward::key::{Environment, Resource, RotationReason};
use keyward::policy::{Policy, PolicySpec};
use keyward::store::MemoryStore;
use keyward::{
    Actor, CommandError, CreateKey, Credentials, Denial, Keyward, Need, PepperRing, Reason, Role,
    RotateKey, TenantId, UpdateKey, VerifyError, days, profiles,
};

fn tenant(path: &str) -> TenantId {
    TenantId::new(path).expect("the tenant path is a valid literal")
}

fn actor(path: &str, role: Role) -> Actor {
    let principal = format!("the-{role}")
        .try_into()
        .expect("a principal of visible ASCII is valid");
    Actor::new(tenant(path), principal, role)
}

async fn keys(spec: PolicySpec) -> Keyward {
    let policy = Policy::new(spec).expect("a shipped profile is a valid policy");
    let peppers = PepperRing::generate().expect("the system provides random bytes");
    Keyward::builder(MemoryStore::new(), peppers)
        .policy(policy)
        .build()
        .await
        .expect("a node over an in-memory store starts")
}

fn denied<T: std::fmt::Debug>(result: Result<T, CommandError>) -> Denial {
    let error = result.expect_err("the command is denied");
    error
        .denied()
        .expect("the error is a denied command")
        .clone()
}

fn text(key: &IssuedKey) -> &str {
    key.token
        .as_ref()
        .expect("a new key comes with its token")
        .expose()
}

fn routine() -> RotateKey {
    RotationReason::Routine.into()
}

#[pollster::test]
async fn in_amplitude_the_legacy_key_can_be_rotated_and_cannot_be_ended() {
    let keys = keys(profiles::amplitude()).await;
    let admin = actor("web", Role::ADMIN);
    let given = keys.provision_tenant(&admin, &tenant("web")).await.unwrap();
    let [legacy] = given.as_slice() else {
        panic!("one key comes with a project");
    };
    let need = Need::scope("ingest:write").unwrap().or_publishable();
    assert!(keys.verify(text(legacy), &need).is_ok());
    let refused = denied(
        keys.revoke(&admin, legacy.id, Reason::Lost.confirmed())
            .await,
    );
    assert!(matches!(refused, Denial::LegacyKey { .. }), "{refused}");
    let soon = UpdateKey::new().expiry(Expiry::In(days(1)));
    let refused = denied(keys.update(&admin, legacy.id, soon).await);
    assert!(matches!(refused, Denial::LegacyKey { .. }), "{refused}");
    let same = UpdateKey::new().expiry(Expiry::Never);
    keys.update(&admin, legacy.id, same).await.unwrap();

    let rotated = keys.rotate(&admin, legacy.id, routine()).await.unwrap();
    assert!(keys.verify(rotated.secret.expose(), &need).is_ok());
    assert!(keys.verify(text(legacy), &need).is_err());
}

#[pollster::test]
async fn in_amplitude_a_member_manages_no_keys_not_even_its_own() {
    let keys = keys(profiles::amplitude()).await;
    let member = actor("web", Role::MEMBER);
    let key = || CreateKey::new("export").scope("project:read");
    assert!(matches!(
        denied(keys.create(&member, key()).await),
        Denial::Forbidden { .. }
    ));
    // An administrator provisions the project and sets the member's role.
    let (admin, manager) = (actor("web", Role::ADMIN), actor("web", Role::MANAGER));
    let own = key().owned_by(member.principal().unwrap().clone(), Role::MEMBER);
    let created = keys.create(&admin, own).await.unwrap();
    let typed = || DeleteKey::typed("DELETE");
    assert!(matches!(
        denied(keys.delete(&member, created.id, typed()).await),
        Denial::Forbidden { .. }
    ));
    let lower = DeleteKey::typed("delete");
    assert!(matches!(
        denied(keys.delete(&manager, created.id, lower).await),
        Denial::TypedConfirmationRequired { .. }
    ));
    keys.delete(&manager, created.id, typed()).await.unwrap();
    assert!(keys.verify(created.secret.expose(), &Need::any()).is_err());
}

#[pollster::test]
async fn in_amplitude_at_most_fifty_keys_are_active_including_the_legacy_key() {
    let keys = keys(profiles::amplitude()).await;
    let application = Actor::application(tenant("web"));
    let provisioned = keys.provision_tenant(&application, &tenant("web")).await;
    assert_eq!(provisioned.unwrap().len(), 1);
    let manager = actor("web", Role::MANAGER);
    for _ in 0..49 {
        keys.create(&manager, CreateKey::new("key")).await.unwrap();
    }
    let refused = denied(keys.create(&manager, CreateKey::new("key")).await);
    assert!(matches!(refused, Denial::CapReached { limit, .. } if limit.get() == 50));
}

#[pollster::test]
async fn in_amplitude_products_the_project_keys_are_a_pair_that_support_rotates() {
    let keys = keys(profiles::amplitude_products()).await;
    let admin = actor("acme", Role::ADMIN);
    let web = tenant("acme/web");
    let given = keys.provision_tenant(&admin, &web).await.unwrap();
    let [api_key, secret_key] = given.as_slice() else {
        panic!("two keys come with a project");
    };
    let need = Need::scope("project:write").unwrap();
    let pair = Credentials::Pair {
        public: text(api_key).as_bytes(),
        secret: text(secret_key).as_bytes(),
    };
    assert!(keys.verify(pair, &need).is_ok());
    for id in [api_key.id, secret_key.id] {
        assert!(matches!(
            denied(keys.rotate(&admin, id, routine()).await),
            Denial::SupportOnly { .. }
        ));
    }
    let support = actor("acme", Role::SUPPORT);
    assert!(matches!(
        denied(keys.rotate(&support, api_key.id, routine()).await),
        Denial::NotRotatable { .. }
    ));
    let rotated = keys.rotate(&support, secret_key.id, routine()).await;
    assert!(rotated.is_ok());
    let new = || CreateKey::new("another").class("project-secret-key");
    assert!(matches!(
        denied(keys.create(&support, new().in_tenant(web)).await),
        Denial::Forbidden { .. }
    ));
}

#[pollster::test]
async fn in_amplitude_products_organisation_keys_come_from_support_and_reach_every_project() {
    let keys = keys(profiles::amplitude_products()).await;
    let support = actor("acme", Role::SUPPORT);
    let new = |class: &str| {
        CreateKey::new("organisation")
            .class(class)
            .owned_by_tenant()
    };
    let api_key = || new("org-api-key").scope("organization:identify");
    let secret_key = || new("org-secret-key").scope("*:*");
    assert!(matches!(
        denied(keys.create(&actor("acme", Role::ADMIN), secret_key()).await),
        Denial::SupportOnly { .. }
    ));
    let api_key = keys.create(&support, api_key()).await.unwrap();
    let secret_key = keys.create(&support, secret_key()).await.unwrap();
    let (api_key, secret_key) = (api_key.secret, secret_key.secret);
    let verify = |path| {
        let need = Need::scope("project:read")
            .unwrap()
            .for_tenant(tenant(path));
        let pair = Credentials::Pair {
            public: api_key.expose().as_bytes(),
            secret: secret_key.expose().as_bytes(),
        };
        keys.verify(pair, &need)
    };
    assert!(verify("acme/web").is_ok());
    assert!(matches!(
        verify("other/web"),
        Err(VerifyError::WrongTenant { .. })
    ));
}

#[pollster::test]
async fn in_amplitude_products_a_server_deployment_key_is_deleted_once_nothing_refers_to_it() {
    let keys = keys(profiles::amplitude_products()).await;
    let admin = actor("acme", Role::ADMIN);
    let acme = tenant("acme");
    keys.provision_tenant(&admin, &acme).await.unwrap();
    let resource = |side: &str| Resource {
        kind: format!("deployment.{side}")
            .try_into()
            .expect("the resource kind is a valid literal"),
        id: "checkout"
            .try_into()
            .expect("the resource id is a valid literal"),
    };
    let mut old = None;
    for side in ["client", "server"] {
        let given = keys.provision_resource(&admin, &acme, resource(side)).await;
        let given = given.unwrap();
        let [key] = given.as_slice() else {
            panic!("one key comes with a deployment");
        };
        assert!(text(key).starts_with(&format!("{side}-")));
        let rotated = keys.rotate(&admin, key.id, routine()).await.unwrap();
        let need = Need::scope("variants:read").unwrap().or_publishable();
        assert!(
            keys.verify(text(key), &need).is_ok(),
            "the old key works during its grace period"
        );
        assert!(keys.verify(rotated.secret.expose(), &need).is_ok());
        old = Some(key.id);
    }
    let old = old.expect("a server deployment comes with a key");
    let references = |references| DeleteKey::plain().with_references(references);
    assert_eq!(
        denied(keys.delete(&admin, old, references(1)).await),
        Denial::StillReferenced { references: 1 }
    );
    keys.delete(&admin, old, references(0)).await.unwrap();
}

#[pollster::test]
async fn in_amplitude_products_a_scim_key_needs_the_enterprise_plan() {
    let keys = keys(profiles::amplitude_products()).await;
    let admin = actor("acme", Role::ADMIN);
    let key = || CreateKey::new("scim").class("scim-key").scope("users:*");
    assert!(matches!(
        denied(keys.create(&admin, key()).await),
        Denial::NotEntitled { .. }
    ));
    let entitled = admin.with_entitlement(
        "enterprise"
            .try_into()
            .expect("the entitlement is a valid literal"),
    );
    let created = keys.create(&entitled, key()).await.unwrap();
    keys.rotate(&entitled, created.id, routine()).await.unwrap();
}

#[pollster::test]
async fn in_the_guide_keys_are_live_by_default_and_revoked_once_confirmed() {
    let keys = keys(profiles::guide()).await;
    let admin = actor("acme", Role::ADMIN);
    assert!(matches!(
        denied(keys.create(&admin, CreateKey::new("export")).await),
        Denial::PurposeRequired
    ));
    let key = || CreateKey::new("export").purpose("nightly");
    let live = keys.create(&admin, key()).await.unwrap();
    let test = keys
        .create(&admin, key().environment("test"))
        .await
        .unwrap();
    let text = live.secret.expose();
    assert!(text.starts_with("key_live_"));
    let need = Need::any().in_environment(Environment::LIVE);
    assert!(keys.verify_or_fetch(text, &need).await.is_ok());
    let mixed = keys.verify_or_fetch(test.secret.expose(), &need).await;
    assert!(matches!(mixed, Err(VerifyError::WrongEnvironment { .. })));
    assert!(matches!(
        denied(keys.revoke(&admin, live.id, Reason::Lost).await),
        Denial::ConfirmationRequired
    ));
    let confirmed = Reason::Lost.confirmed();
    keys.revoke(&admin, live.id, confirmed).await.unwrap();
    let ended = keys.verify_or_fetch(text, &need).await;
    assert!(matches!(ended, Err(VerifyError::Revoked { .. })));
}

#[pollster::test]
async fn in_idenfy_a_third_key_waits_until_one_is_deleted() {
    let keys = keys(profiles::idenfy()).await;
    let admin = actor("acme", Role::ADMIN);
    let first = keys.create(&admin, CreateKey::new("first")).await.unwrap();
    keys.create(&admin, CreateKey::new("second")).await.unwrap();
    let third = || CreateKey::new("third");
    assert!(matches!(
        denied(keys.create(&admin, third()).await),
        Denial::CapReached { .. }
    ));
    assert!(matches!(
        denied(keys.revoke(&admin, first.id, Reason::Lost).await),
        Denial::NotRevocable { .. }
    ));
    let secret = first.secret.expose();
    let id = first.id.to_string();
    let pair = Credentials::Pair {
        public: id.as_bytes(),
        secret: secret.as_bytes(),
    };
    assert!(keys.verify(pair, &Need::any()).is_ok());
    keys.delete(&admin, first.id, DeleteKey::plain())
        .await
        .unwrap();
    assert!(keys.verify(secret, &Need::any()).is_err());
    assert!(keys.create(&admin, third()).await.is_ok());
}

#[pollster::test]
async fn in_yugabytedb_the_key_of_a_creator_lowered_to_developer_has_developer_access() {
    let keys = keys(profiles::yugabytedb()).await;
    let creator = actor("acme", Role::ADMIN);
    let key = CreateKey::new("terraform").scope("*:*").never_expires();
    let created = keys.create(&creator, key).await.unwrap();
    let text = created.secret.expose();
    assert!(
        keys.verify(text, &Need::scope("users:write").unwrap())
            .is_ok()
    );
    let principal = creator.principal().unwrap();
    let (acme, host) = (tenant("acme"), Actor::application(tenant("acme")));
    keys.change_owner_role(&host, &acme, principal.clone(), Role::DEVELOPER)
        .await
        .unwrap();
    assert!(
        keys.verify(text, &Need::scope("clusters:write").unwrap())
            .is_ok()
    );
    let refused = keys.verify(text, &Need::scope("users:write").unwrap());
    assert!(matches!(refused, Err(VerifyError::MissingScope { .. })));
    let demoted = Actor::new(tenant("acme"), principal.clone(), Role::DEVELOPER);
    assert!(matches!(
        denied(keys.revoke(&demoted, created.id, Reason::Lost).await),
        Denial::Forbidden { .. }
    ));
}
