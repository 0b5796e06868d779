//! The rules of `profiles::amplitude_products`.
//!
//! The organisation acme has the projects acme/web and acme/shop. globex is another organisation.

use keyward::audit::Action;
use keyward::command::{Created, DeleteKey, IssuedKey, LeakSource, Rotated};
use keyward::key::{
    Entitlement, KeyType, Owner, Resource, ResourceId, ResourceKind, RotationReason, Status,
};
use keyward::{
    Actor, CommandError, CreateKey, Credentials, Denial, ErrorKind, KeyId, KeyInfo, Need, Reason,
    Receipt, Role, RotateKey, TenantId, UpdateKey, VerifyError, days, profiles,
};

use support::*;

/// A project, and the two keys that were issued with it.
struct Project {
    tenant: TenantId,
    api_key: IssuedKey,
    secret_key: IssuedKey,
}

struct Company {
    world: TestService,
    web: Project,
    shop: Project,
}

fn company() -> Company {
    let world = TestService::with_policy(profiles::amplitude_products());
    for path in ["acme", "globex", "globex/app"] {
        project(&world, path);
    }
    let (web, shop) = (project(&world, "acme/web"), project(&world, "acme/shop"));
    Company { world, web, shop }
}

fn project(world: &TestService, path: &str) -> Project {
    let tenant = tenant(path);
    let host = Actor::application(tenant.clone());
    let keys = wait(world.keys.provision_tenant(&host, &tenant)).unwrap();
    let [api_key, secret_key] = keys.try_into().unwrap();
    Project {
        tenant,
        api_key,
        secret_key,
    }
}

fn text(key: &IssuedKey) -> &str {
    key.token.as_ref().unwrap().expose()
}

fn support() -> Actor {
    actor("acme", "sam", Role::SUPPORT)
}

fn developer() -> Actor {
    actor("acme", "dora", Role::DEVELOPER)
}

fn member() -> Actor {
    actor("acme", "mia", Role::MEMBER)
}

fn enterprise_admin() -> Actor {
    admin().with_entitlement(Entitlement::new("enterprise").unwrap())
}

fn deployed(id: &str, side: &str) -> Resource {
    Resource {
        kind: ResourceKind::new(format!("deployment.{side}")).unwrap(),
        id: ResourceId::new(id).unwrap(),
    }
}

impl Company {
    fn deploy(&self, side: &str, id: &str) -> Result<Vec<IssuedKey>, CommandError> {
        let keys = &self.world.keys;
        wait(keys.provision_resource(&admin(), &self.web.tenant, deployed(id, side)))
    }

    /// Creates a deployment of acme/web. Returns the key that was issued with the deployment.
    fn deployment(&self, side: &str, id: &str) -> IssuedKey {
        let [key] = self.deploy(side, id).unwrap().try_into().unwrap();
        key
    }

    fn management_key(&self) -> Created {
        let draft = CreateKey::new("flags")
            .class("management-api-key")
            .scopes(["flags:*", "experiments:*"])
            .in_tenant(self.web.tenant.clone());
        self.world.create(&developer(), draft).unwrap()
    }

    fn token_of(&self, user: &Actor, scope: &str) -> Created {
        let draft = CreateKey::new("token").class("data-api-token").scope(scope);
        self.world.create(user, draft).unwrap()
    }

    fn scim_key(&self) -> Created {
        let draft = CreateKey::new("scim").class("scim-key").scope("users:*");
        self.world.create(&enterprise_admin(), draft).unwrap()
    }

    /// Creates the API key and the secret key of the organisation acme.
    fn organisation_pair(&self) -> (Created, Created) {
        let make = |by: &Actor, class: &str, scope: &str| {
            let draft = CreateKey::new("organisation").class(class).scope(scope);
            self.world.create(by, draft.owned_by_tenant()).unwrap()
        };
        (
            make(&support(), "org-api-key", "organization:identify"),
            make(&support(), "org-secret-key", "*:*"),
        )
    }

    fn verify(&self, text: &str, need: &Need) -> Result<KeyId, VerifyError> {
        let grant = self.world.keys.verify(text, need)?;
        Ok(grant.key_id())
    }

    fn pair(&self, public: &str, secret: &str, need: &Need) -> Result<KeyId, VerifyError> {
        let (public, secret) = (public.as_bytes(), secret.as_bytes());
        let pair = Credentials::Pair { public, secret };
        let grant = self.world.keys.verify(pair, need)?;
        Ok(grant.key_id())
    }

    fn info(&self, key: KeyId) -> KeyInfo {
        wait(self.world.keys.key(&host(), key)).unwrap()
    }

    fn revoke(&self, by: &Actor, key: KeyId, reason: Reason) -> Result<Receipt, CommandError> {
        wait(self.world.keys.revoke(by, key, reason))
    }

    fn delete(&self, by: &Actor, key: KeyId, how: DeleteKey) -> Result<Receipt, CommandError> {
        wait(self.world.keys.delete(by, key, how))
    }

    fn rotate(&self, by: &Actor, key: KeyId) -> Result<Rotated, CommandError> {
        wait(self.world.keys.rotate(by, key, RotateKey::default()))
    }

    /// Rotates a compromised key. The old key ends immediately.
    fn rotate_compromised(&self, by: &Actor, key: KeyId) -> Result<Rotated, CommandError> {
        let how = RotateKey::immediate().because(RotationReason::Compromise);
        wait(self.world.keys.rotate(by, key, how))
    }

    /// Rotates a key and returns the successor's token. Checks that the successor works and has the same
    /// class.
    fn rotates(&self, by: &Actor, key: KeyId, need: &Need) -> String {
        let rotated = self.rotate(by, key).unwrap();
        assert_eq!(rotated.predecessor, key);
        let text = rotated.secret.expose();
        assert_eq!(self.verify(text, need).unwrap(), rotated.id);
        assert_eq!(self.info(rotated.id).class, self.info(key).class);
        text.to_owned()
    }

    /// Checks that only support can rotate, revoke or delete a compromised key. In a rotation by support, the
    /// old key ends immediately.
    fn only_support_deals_with(&self, key: KeyId, text: &str, need: &Need) {
        for by in [admin(), developer(), member()] {
            let rotated = denied(self.rotate_compromised(&by, key));
            assert_eq!(rotated, only_support_may("rotate keys"));
            let revoked = self.revoke(&by, key, Reason::Compromised);
            assert_eq!(denied(revoked), only_support_may("revoke keys"));
            let deleted = self.delete(&by, key, DeleteKey::plain());
            assert_eq!(denied(deleted), only_support_may("delete keys"));
        }
        assert_eq!(self.verify(text, need).unwrap(), key);
        let rotated = self.rotate_compromised(&support(), key).unwrap();
        assert!(matches!(
            self.verify(text, need),
            Err(VerifyError::Revoked { .. })
        ));
        let successor = rotated.secret.expose();
        assert_eq!(self.verify(successor, need).unwrap(), rotated.id);
    }
}

fn only_support_may(action: &'static str) -> Denial {
    Denial::SupportOnly { action }
}

fn ingest() -> Need {
    Need::scope("ingest:write").unwrap().or_publishable()
}

fn project_work() -> Need {
    Need::scope("project:write").unwrap()
}

fn fetch() -> Need {
    Need::scope("variants:read").unwrap()
}

fn manage() -> Need {
    Need::scope("flags:write")
        .unwrap()
        .of_class(class("management-api-key"))
}

fn scim() -> Need {
    Need::scope("users:write")
        .unwrap()
        .of_class(class("scim-key"))
}

#[test]
fn a2_01_a_project_api_key_is_public_and_not_rotated() {
    let company = company();
    let key = company.web.api_key.id;
    assert_eq!(company.info(key).key_type, KeyType::Publishable);
    let class = class("project-api-key");
    let refusal = denied(company.rotate(&admin(), key));
    assert_eq!(refusal, only_support_may("rotate keys"));
    for by in [support(), host()] {
        let refusal = denied(company.rotate(&by, key));
        assert_eq!(
            refusal,
            Denial::NotRotatable {
                class: class.clone()
            }
        );
    }
}

#[test]
fn a2_02_a_project_secret_key_is_private_and_rotated_by_support_only() {
    let company = company();
    let key = company.web.secret_key.id;
    assert_eq!(company.info(key).key_type, KeyType::Secret);
    for by in [admin(), developer(), member()] {
        let refusal = denied(company.rotate(&by, key));
        assert_eq!(refusal, only_support_may("rotate keys"));
    }
    company.rotates(&support(), key, &project_work());
}

#[test]
fn a2_03_a_client_deployment_key_is_public_and_rotated_by_its_users() {
    let company = company();
    let key = company.deployment("client", "dep-1").id;
    assert_eq!(company.info(key).key_type, KeyType::Publishable);
    company.rotates(&developer(), key, &fetch().or_publishable());
}

#[test]
fn a2_04_a_server_deployment_key_is_private_and_rotated_by_its_users() {
    let company = company();
    let key = company.deployment("server", "dep-1").id;
    assert_eq!(company.info(key).key_type, KeyType::Secret);
    company.rotates(&developer(), key, &fetch());
}

#[test]
fn a2_05_a_management_key_is_private_and_rotated_by_its_users() {
    let company = company();
    let key = company.management_key().id;
    assert_eq!(company.info(key).key_type, KeyType::Secret);
    company.rotates(&developer(), key, &manage());
}

#[test]
fn a2_06_a_data_token_is_private_and_rotated_by_its_owner() {
    let company = company();
    let key = company.token_of(&member(), "flags:read").id;
    assert_eq!(company.info(key).key_type, KeyType::Secret);
    company.rotates(&member(), key, &Need::scope("flags:read").unwrap());
}

#[test]
fn a2_07_a_scim_key_is_private_and_rotated_by_an_admin() {
    let company = company();
    let key = company.scim_key().id;
    assert_eq!(company.info(key).key_type, KeyType::Secret);
    company.rotates(&admin(), key, &scim());
}

#[test]
fn a2_08_organisation_keys_are_private_and_rotated_by_support_only() {
    let company = company();
    let (api_key, secret_key) = company.organisation_pair();
    assert_eq!(company.info(secret_key.id).key_type, KeyType::Secret);
    // The API key of the pair only identifies the organisation. It gives no access by itself.
    let alone = company.verify(api_key.secret.expose(), &Need::any());
    assert_eq!(
        alone.unwrap_err(),
        VerifyError::Publishable { key: api_key.id }
    );
    for key in [api_key.id, secret_key.id] {
        for by in [admin(), developer(), member()] {
            let refusal = denied(company.rotate(&by, key));
            assert_eq!(refusal, only_support_may("rotate keys"));
        }
        company.rotates(&support(), key, &Need::any().or_publishable());
    }
}

#[test]
fn a2_09_each_project_has_its_two_keys_from_the_start() {
    let Company { world, .. } = company();
    let new = project(&world, "acme/new");
    let by = Actor::application(new.tenant.clone());
    let keys = listed(&world, &by);
    let classes: std::collections::BTreeSet<_> =
        keys.iter().map(|key| key.class.as_str()).collect();
    let expected = ["project-api-key", "project-secret-key"];
    assert_eq!(classes, expected.into());
    assert!(keys.iter().all(|key| key.owner == Owner::Tenant));
    world.keys.verify(text(&new.api_key), &ingest()).unwrap();
    let secret = world.keys.verify(text(&new.secret_key), &project_work());
    secret.unwrap();
    // A project gets its keys once, even if the project's first command creates another key.
    let again = wait(world.keys.provision_tenant(&by, &new.tenant)).unwrap();
    assert_eq!((again.len(), listed(&world, &by).len()), (0, 2));
    let first = CreateKey::new("flags").in_tenant(tenant("acme/newer"));
    let first = world.create(&admin(), first).unwrap();
    let came: Vec<_> = first
        .provisioned
        .iter()
        .map(|key| key.class.as_str())
        .collect();
    assert_eq!(came, expected);
}

#[test]
fn a2_10_analytics_keys_act_only_in_their_project() {
    let company = company();
    let (web, shop) = (&company.web, &company.shop);
    for (key, need) in [(&web.api_key, ingest()), (&web.secret_key, project_work())] {
        let at_home = need.clone().for_tenant(web.tenant.clone());
        assert_eq!(company.verify(text(key), &at_home).unwrap(), key.id);
        for elsewhere in ["acme/shop", "acme", "acme/web/eu", "globex/app"] {
            let need = need.clone().for_tenant(tenant(elsewhere));
            let refusal = company.verify(text(key), &need).unwrap_err();
            let expected = VerifyError::WrongTenant {
                key: key.id,
                tenant: tenant(elsewhere),
            };
            assert_eq!(refusal, expected);
            assert_eq!(refusal.kind(), ErrorKind::Forbidden);
        }
    }
    // An actor with one project's key sees nothing of another project.
    let keys = &company.world.keys;
    let secret = keys.verify(text(&web.secret_key), &project_work());
    let by = secret.unwrap().actor();
    let seen = wait(keys.list(&by, &keys.query(&shop.tenant)));
    assert_eq!(denied(seen), Denial::TenantNotFound);
    let seen = wait(keys.key(&by, shop.secret_key.id));
    assert_eq!(denied(seen), Denial::NotFound);
}

#[test]
fn a2_11_a_project_api_key_identifies_one_project() {
    let company = company();
    for project in [&company.web, &company.shop] {
        let key = text(&project.api_key);
        let grant = company.world.keys.verify(key, &ingest()).unwrap();
        assert_eq!(grant.tenant(), &project.tenant);
        let others = ["acme", "acme/web", "acme/shop", "globex/app"].map(tenant);
        let reached = others.into_iter().filter(|other| {
            let need = ingest().for_tenant(other.clone());
            company.verify(key, &need).is_ok()
        });
        assert!(reached.eq([project.tenant.clone()]));
    }
}

#[test]
fn a2_12_a_project_api_key_may_be_embedded_in_browsers_and_apps() {
    let company = company();
    let key = &company.web.api_key;
    assert_eq!(company.info(key.id).key_type, KeyType::Publishable);
    company.world.clock.advance(days(400));
    let published = company.info(key.id).facts.published;
    assert_eq!(
        published.as_deref(),
        Some(text(key)),
        "the key can be read again"
    );
    // The key works from any address that a browser may have.
    for address in ["203.0.113.9", "2001:db8::1"] {
        let need = ingest().from_address(address.parse().unwrap());
        assert_eq!(company.verify(text(key), &need).unwrap(), key.id);
    }
    // A publishable key proves nothing about a client that presents it, so it grants no scope.
    let refusal = company.verify(text(key), &Need::scope("ingest:write").unwrap());
    assert_eq!(
        refusal.unwrap_err(),
        VerifyError::Publishable { key: key.id }
    );
}

#[test]
fn a2_13_a_project_api_key_only_ingests() {
    let company = company();
    let (world, key) = (&company.world, &company.web.api_key);
    company.verify(text(key), &ingest()).unwrap();
    for more in ["ingest:read", "project:read", "flags:read", "*:*"] {
        let need = Need::scope(more).unwrap().or_publishable();
        let refusal = company.verify(text(key), &need).unwrap_err();
        let missing = VerifyError::MissingScope {
            key: key.id,
            scope: scope(more),
        };
        assert_eq!(refusal, missing);
        assert_eq!(refusal.kind(), ErrorKind::Forbidden);

        let not_allowed = Denial::ScopeNotAllowed {
            class: class("project-api-key"),
            scope: scope(more),
        };
        let wider = || UpdateKey::new().scopes(["ingest:write", more]);
        for by in [support(), host()] {
            let widened = wait(world.keys.update(&by, key.id, wider()));
            assert_eq!(denied(widened), not_allowed);
        }
        let widened = wait(world.keys.update(&admin(), key.id, wider()));
        assert_eq!(denied(widened), only_support_may("update keys"));
        let another = CreateKey::new("wider").class("project-api-key").scope(more);
        assert_eq!(denied(world.create(&host(), another)), not_allowed);
    }
}

#[test]
fn a2_14_a_leaked_public_key_is_recorded_and_keeps_working() {
    let company = company();
    leak_is_only_recorded(&company, &company.web.api_key, &ingest());
}

fn leak_is_only_recorded(company: &Company, key: &IssuedKey, need: &Need) {
    let source = LeakSource::new("https://example.com/app.js").unwrap();
    let keys = &company.world.keys;
    let report = wait(keys.report_leaked_token(text(key), source.clone())).unwrap();
    assert_eq!((report.key, report.revoked), (key.id, false));
    let noted = Action::KeyLeaked {
        source,
        revoked: false,
    };
    let recorded = recorded_actions(&company.world, &company.web.tenant, key.id);
    assert_eq!(recorded.last(), Some(&noted));
    assert_eq!(company.info(key.id).status, Status::Active);
    assert_eq!(company.verify(text(key), need).unwrap(), key.id);
}

#[test]
fn a2_15_a_secret_key_pairs_only_with_the_api_key_of_its_project() {
    let company = company();
    let (web, shop) = (&company.web, &company.shop);
    let (api_key, secret) = (text(&web.api_key), text(&web.secret_key));
    let with = |other: &str| company.pair(other, secret, &project_work());
    assert_eq!(with(api_key).unwrap(), web.secret_key.id);

    assert!(matches!(with(""), Err(VerifyError::Malformed(_))));
    assert_eq!(with(secret), Err(VerifyError::PairMismatch));
    assert_eq!(with(text(&shop.api_key)), Err(VerifyError::PairMismatch));
    let other_id = shop.secret_key.id.to_string();
    assert_eq!(with(&other_id), Err(VerifyError::PairMismatch));
    let forged = with_other_secret(api_key);
    assert_eq!(with(&forged), Err(VerifyError::WrongSecret));
    // An API key cannot take the place of the secret key in a pair.
    let swapped = company.pair(secret, api_key, &project_work());
    let key = web.api_key.id;
    assert_eq!(swapped, Err(VerifyError::Publishable { key }));

    company
        .revoke(&support(), key, Reason::NoLongerNeeded)
        .unwrap();
    assert!(matches!(with(api_key), Err(VerifyError::Revoked { .. })));
}

#[test]
fn a2_16_only_support_replaces_a_compromised_secret_key() {
    let company = company();
    let key = &company.web.secret_key;
    company.only_support_deals_with(key.id, text(key), &project_work());
}

#[test]
fn a2_17_a_data_token_authenticates_alone() {
    let company = company();
    let token = company.token_of(&member(), "data:read");
    let need = Need::scope("data:read").unwrap();
    let presented = token.secret.expose();
    let grant = company.world.keys.verify(presented, &need).unwrap();
    assert_eq!(grant.key_id(), token.id);
    assert_eq!(grant.owner(), &Owner::Principal(who("mia")));
    let guess = with_other_secret(presented);
    assert_eq!(company.verify(&guess, &need), Err(VerifyError::WrongSecret));
}

#[test]
fn a2_18_a_data_token_has_the_role_of_its_user() {
    let company = company();
    let bob = actor("acme", "bob", Role::ADMIN);
    let token = company.token_of(&bob, "*:*");
    let may = |scope: &str| {
        let verdict = company.verify(token.secret.expose(), &Need::scope(scope).unwrap());
        verdict.is_ok()
    };
    let scopes = ["flags:read", "flags:write", "users:write"];
    let reaches = profiles::amplitude_products().roles;
    for (role, expected) in [
        (Role::ADMIN, [true, true, true]),
        (Role::DEVELOPER, [true, true, false]),
        (Role::MEMBER, [true, false, false]),
        (Role::ADMIN, [true, true, true]),
    ] {
        wait(company.world.keys.change_owner_role(
            &admin(),
            &tenant("acme"),
            who("bob"),
            role.clone(),
        ))
        .unwrap();
        assert_eq!(scopes.map(may), expected, "{role}");
        let grant = company
            .world
            .keys
            .verify(token.secret.expose(), &Need::any());
        assert_eq!(grant.unwrap().actor().scopes(), &reaches[&role]);
    }
    // A user cannot create a token with more rights than the user has.
    let draft = CreateKey::new("more").class("data-api-token");
    let refusal = denied(company.world.create(&member(), draft.scope("flags:write")));
    assert!(matches!(refusal, Denial::ExceedsActor { .. }));
}

#[test]
fn a2_19_a_data_token_is_private_and_valid_for_the_whole_account() {
    let company = company();
    let token = company.token_of(&member(), "data:read");
    let info = company.info(token.id);
    assert_eq!(
        (info.key_type, info.facts.published),
        (KeyType::Secret, None)
    );
    let reaches = |path: &str| {
        let need = Need::scope("data:read").unwrap().for_tenant(tenant(path));
        company.verify(token.secret.expose(), &need)
    };
    for path in ["acme", "acme/web", "acme/shop", "acme/of-tomorrow"] {
        assert_eq!(reaches(path), Ok(token.id), "{path}");
    }
    let (key, tenant) = (token.id, tenant("globex/app"));
    assert_eq!(
        reaches("globex/app"),
        Err(VerifyError::WrongTenant { key, tenant })
    );
}

#[test]
fn a2_20_users_create_and_revoke_their_own_tokens() {
    let company = company();
    for by in [admin(), developer(), member()] {
        for _ in 0..3 {
            let token = company.token_of(&by, "flags:read");
            let need = Need::scope("flags:read").unwrap();
            company.verify(token.secret.expose(), &need).unwrap();
            let max = actor("acme", "max", Role::MEMBER);
            let refusal = denied(company.revoke(&max, token.id, Reason::Unused));
            let role = Some(Role::MEMBER);
            let action = "revoke keys";
            assert_eq!(refusal, Denial::Forbidden { action, role });
            company
                .revoke(&by, token.id, Reason::NoLongerNeeded)
                .unwrap();
            let verdict = company.verify(token.secret.expose(), &need);
            assert!(matches!(verdict, Err(VerifyError::Revoked { .. })));
        }
    }
}

#[test]
fn a2_21_a_deployment_comes_with_its_key() {
    let company = company();
    for side in ["client", "server"] {
        let ids = [format!("{side}-1"), format!("{side}-2")];
        let keys = ids.clone().map(|id| company.deployment(side, &id));
        assert_ne!(keys[0].id, keys[1].id, "each deployment has its own key");
        for (key, id) in keys.iter().zip(ids) {
            let info = company.info(key.id);
            assert_eq!(info.resource, Some(deployed(&id, side)));
            assert_eq!(
                (info.facts.owner, info.facts.tenant),
                (Owner::Tenant, tenant("acme/web"))
            );
            company
                .verify(text(key), &fetch().or_publishable())
                .unwrap();
        }
    }
}

#[test]
fn a2_22_the_side_of_a_deployment_decides_whether_its_key_is_public() {
    let company = company();
    for (side, class_name, key_type) in [
        ("client", "deployment-client", KeyType::Publishable),
        ("server", "deployment-server", KeyType::Secret),
    ] {
        let info = company.info(company.deployment(side, "dep-1").id);
        assert_eq!(
            (info.facts.class, info.facts.key_type),
            (class(class_name), key_type)
        );
    }
    let unknown = company.deploy("middle", "dep-2");
    assert_eq!(denied(unknown), Denial::UnknownResource);
}

#[test]
fn a2_23_a_client_key_can_be_read_at_any_time_and_serves_client_sdks() {
    let company = company();
    let key = company.deployment("client", "dep-1");
    company.world.clock.advance(days(400));
    let query = company.world.keys.query(&company.web.tenant);
    for by in [admin(), developer(), host()] {
        let listed = wait(company.world.keys.list(&by, &query)).unwrap().keys;
        let info = listed.into_iter().find(|info| info.id == key.id).unwrap();
        assert_eq!(info.published.as_deref(), Some(text(&key)));
    }
    let sdk = fetch().or_publishable();
    assert_eq!(company.verify(text(&key), &sdk), Ok(key.id));
}

#[test]
fn a2_24_client_keys_begin_with_client() {
    let company = company();
    begins_with(&company, "client", "client-", &fetch().or_publishable());
}

#[test]
fn a2_27_server_keys_begin_with_server() {
    let company = company();
    begins_with(&company, "server", "server-", &fetch());
}

/// Checks the prefix of three keys: issued with a deployment, created by hand, and made by a rotation.
fn begins_with(company: &Company, side: &str, prefix: &str, need: &Need) {
    let key = company.deployment(side, "dep-1");
    let draft = CreateKey::new("by hand")
        .class(format!("deployment-{side}"))
        .scope("variants:read")
        .in_tenant(company.web.tenant.clone());
    let by_hand = company.world.create(&developer(), draft).unwrap();
    let successor = company.rotates(&developer(), key.id, need);
    for text in [text(&key), by_hand.secret.expose(), &successor] {
        assert!(text.starts_with(prefix), "{}", &text[..12]);
    }
    assert!(key.hint.as_str().starts_with(prefix));
    let stripped = company.verify(&text(&key)[prefix.len()..], need);
    assert!(stripped.is_err(), "the prefix is part of the key");
}

#[test]
fn a2_25_a_leaked_client_key_needs_no_handling() {
    let company = company();
    let key = company.deployment("client", "dep-1");
    leak_is_only_recorded(&company, &key, &fetch().or_publishable());
}

#[test]
fn a2_26_a_server_key_is_shown_once_and_stored_as_a_digest() {
    let company = company();
    let world = &company.world;
    let (admin, web) = (admin(), &company.web.tenant);
    let with_deployment = admin.with_command_id(command("deploy-1"));
    let deploy = || {
        let resource = deployed("dep-1", "server");
        wait(
            world
                .keys
                .provision_resource(&with_deployment, web, resource),
        )
        .unwrap()
    };
    let [came] = deploy().try_into().unwrap();
    assert!(deploy().is_empty(), "repeating the call returns no key");
    let by_hand = admin.with_command_id(command("create-1"));
    let create = || {
        let draft = CreateKey::new("by hand").class("deployment-server");
        wait(world.keys.create(&by_hand, draft.in_tenant(web.clone())))
    };
    let made = create().unwrap();
    assert_eq!(denied(create()), Denial::AlreadyCreated { id: made.id });

    let kept = dump(&world.store);
    let keys = [
        (came.id, &came.hint, text(&came)),
        (made.id, &made.hint, made.secret.expose()),
    ];
    for (id, hint, text) in keys {
        let info = company.info(id);
        assert_eq!(info.published, None);
        let secret = secret_part(text);
        assert!(!format!("{info:?}").contains(secret));
        assert!(kept.contains(hint.as_str()), "the key is in the dump");
        assert!(!kept.contains(secret));
    }
}

#[test]
fn a2_28_a_server_key_is_deleted_once_nothing_refers_to_it() {
    let company = company();
    let old = company.deployment("server", "dep-1");
    let draft = CreateKey::new("new key")
        .class("deployment-server")
        .scope("variants:read")
        .resource(deployed("dep-1", "server"))
        .in_tenant(company.web.tenant.clone());
    let new = company.world.create(&developer(), draft).unwrap();
    let both_work = || {
        assert_eq!(company.verify(text(&old), &fetch()), Ok(old.id));
        assert_eq!(company.verify(new.secret.expose(), &fetch()), Ok(new.id));
    };
    both_work();
    let delete = |deletion| company.delete(&developer(), old.id, deletion);
    let unsaid = delete(DeleteKey::plain());
    assert_eq!(denied(unsaid), Denial::ReferencesUnknown);
    for references in [3, 1] {
        let refused = delete(DeleteKey::plain().with_references(references));
        assert_eq!(denied(refused), Denial::StillReferenced { references });
        both_work();
    }
    // The key cannot be revoked at all, so a revocation cannot bypass the check for references to the key.
    let revoked = company.revoke(&admin(), old.id, Reason::Compromised);
    let class = class("deployment-server");
    assert_eq!(denied(revoked), Denial::NotRevocable { class });
    company.world.clock.advance(days(365));
    both_work();
    delete(DeleteKey::plain().with_references(0)).unwrap();
    assert_eq!(
        company.verify(text(&old), &fetch()),
        Err(VerifyError::Unknown)
    );
    assert_eq!(company.verify(new.secret.expose(), &fetch()), Ok(new.id));
}

#[test]
fn a2_29_deployment_keys_are_managed_per_deployment() {
    let company = company();
    let keys = &company.world.keys;
    let (first, second) = (
        company.deployment("server", "dep-1"),
        company.deployment("client", "dep-2"),
    );
    let of_deployment = |id: &str| {
        let query = keys
            .query(&company.web.tenant)
            .with(|query| query.resource = Some(ResourceId::new(id).unwrap()));
        let listed = wait(keys.list(&developer(), &query)).unwrap().keys;
        listed.iter().map(|key| key.id).collect::<Vec<_>>()
    };
    assert_eq!(of_deployment("dep-1"), [first.id]);
    assert_eq!(of_deployment("dep-2"), [second.id]);
    assert!(of_deployment("dep-3").is_empty());
    company.world.clock.advance(days(1));
    let rotated = company.rotate(&developer(), first.id).unwrap();
    assert_eq!(of_deployment("dep-1"), [first.id, rotated.id]);
    company
        .delete(&developer(), second.id, DeleteKey::plain())
        .unwrap();
    assert!(of_deployment("dep-2").is_empty());
}

#[test]
fn a2_30_management_keys_manage_flags_and_experiments_only() {
    let company = company();
    let key = company.management_key();
    let presented = key.secret.expose();
    for managed in ["flags:read", "flags:write", "experiments:write"] {
        company
            .verify(presented, &Need::scope(managed).unwrap())
            .unwrap();
    }
    for other in [
        "variants:read",
        "ingest:write",
        "project:read",
        "users:read",
    ] {
        let missing = VerifyError::MissingScope {
            key: key.id,
            scope: scope(other),
        };
        let verdict = company.verify(presented, &Need::scope(other).unwrap());
        assert_eq!(verdict, Err(missing));
        let wider = CreateKey::new("wider")
            .class("management-api-key")
            .scope(other);
        let not_allowed = Denial::ScopeNotAllowed {
            class: class("management-api-key"),
            scope: scope(other),
        };
        assert_eq!(denied(company.world.create(&admin(), wider)), not_allowed);
    }
}

#[test]
fn a2_31_management_and_deployment_keys_cannot_replace_each_other() {
    let company = company();
    let management = company.management_key();
    let fetching = Need::any()
        .or_publishable()
        .of_class(class("deployment-server"))
        .of_class(class("deployment-client"));
    let managing = Need::any()
        .or_publishable()
        .of_class(class("management-api-key"));
    let verify = |text: &str, need: &Need| company.verify(text, need);
    let presented = management.secret.expose();
    assert_eq!(verify(presented, &managing), Ok(management.id));
    let refusal = verify(presented, &fetching).unwrap_err();
    let wrong = VerifyError::WrongClass {
        key: management.id,
        class: class("management-api-key"),
    };
    assert_eq!(refusal, wrong);
    assert_eq!(refusal.kind(), ErrorKind::Forbidden);
    for side in ["client", "server"] {
        let key = company.deployment(side, side);
        assert_eq!(verify(text(&key), &fetching), Ok(key.id));
        let wrong = VerifyError::WrongClass {
            key: key.id,
            class: key.class.clone(),
        };
        assert_eq!(verify(text(&key), &managing), Err(wrong));
    }
}

#[test]
fn a2_32_a_compromised_management_key_is_replaced_and_then_deleted() {
    let company = company();
    let old = company.management_key();
    let new = company.management_key();
    for key in [&old, &new] {
        assert_eq!(company.verify(key.secret.expose(), &manage()), Ok(key.id));
    }
    company
        .delete(&developer(), old.id, DeleteKey::plain())
        .unwrap();
    let verdict = company.verify(old.secret.expose(), &manage());
    assert_eq!(verdict, Err(VerifyError::Unknown));
    assert_eq!(company.verify(new.secret.expose(), &manage()), Ok(new.id));
}

#[test]
fn a2_33_management_keys_are_listed_separately() {
    let company = company();
    company.deployment("server", "dep-1");
    let first = company.management_key();
    company.world.clock.advance(days(1));
    let second = company.management_key();
    let keys = &company.world.keys;
    let query = keys
        .query(&company.web.tenant)
        .with(|query| query.class = Some(class("management-api-key")));
    let of_kind = || {
        let listed = wait(keys.list(&developer(), &query)).unwrap().keys;
        listed.iter().map(|key| key.id).collect::<Vec<_>>()
    };
    assert_eq!(of_kind(), [first.id, second.id]);
    company
        .delete(&developer(), first.id, DeleteKey::plain())
        .unwrap();
    assert_eq!(of_kind(), [second.id]);
}

#[test]
fn a2_34_organisation_calls_need_both_keys() {
    let company = company();
    let (api_key, secret_key) = company.organisation_pair();
    let (api_key_text, secret) = (api_key.secret.expose(), secret_key.secret.expose());
    let need = Need::scope("exports:read")
        .unwrap()
        .of_class(class("org-secret-key"));
    let with = |other: &str| company.pair(other, secret, &need);
    assert_eq!(with(api_key_text), Ok(secret_key.id));
    assert!(matches!(with(""), Err(VerifyError::Malformed(_))));
    assert_eq!(
        with(text(&company.web.api_key)),
        Err(VerifyError::PairMismatch)
    );
    // The API key gives no access, neither alone nor in place of the secret key.
    let key = api_key.id;
    for verdict in [
        company.verify(api_key_text, &need),
        company.pair(api_key_text, api_key_text, &need),
        company.pair(secret, api_key_text, &need),
    ] {
        assert_eq!(verdict, Err(VerifyError::Publishable { key }));
    }
    // A project's secret key with the organisation's API key gives no access either.
    let project = text(&company.web.secret_key);
    let verdict = company.pair(api_key_text, project, &project_work());
    assert_eq!(verdict, Err(VerifyError::PairMismatch));
}

#[test]
fn a2_35_only_support_makes_organisation_keys() {
    let company = company();
    for name in ["org-api-key", "org-secret-key"] {
        let draft = || CreateKey::new("organisation").class(name);
        for by in [admin(), enterprise_admin(), developer(), member()] {
            let refusal = denied(company.world.create(&by, draft()));
            assert_eq!(refusal, only_support_may("create keys"));
        }
        let made = company.world.create(&support(), draft()).unwrap();
        assert_eq!(made.class, class(name));
    }
}

#[test]
fn a2_36_organisation_keys_reach_every_project_and_no_other_organisation() {
    let company = company();
    let (api_key, secret_key) = company.organisation_pair();
    let reaches = |path: &str| {
        let need = Need::scope("project:write")
            .unwrap()
            .for_tenant(tenant(path));
        let identify = Need::scope("organization:identify")
            .unwrap()
            .or_publishable();
        let secret = secret_key.secret.expose();
        [
            company.verify(secret, &need),
            company.pair(api_key.secret.expose(), secret, &need),
            company.verify(api_key.secret.expose(), &identify.for_tenant(tenant(path))),
        ]
    };
    let ids = [secret_key.id, secret_key.id, api_key.id];
    for path in ["acme", "acme/web", "acme/shop", "acme/of-tomorrow"] {
        assert_eq!(reaches(path), ids.map(Ok), "{path}");
    }
    for path in ["globex", "globex/app", "acme-two/web"] {
        let tenant = tenant(path);
        let refused = ids.map(|key| {
            let tenant = tenant.clone();
            Err(VerifyError::WrongTenant { key, tenant })
        });
        assert_eq!(reaches(path), refused, "{path}");
    }
}

#[test]
fn a2_37_only_support_replaces_a_compromised_organisation_key() {
    let company = company();
    let (api_key, secret_key) = company.organisation_pair();
    for key in [&api_key, &secret_key] {
        let need = Need::any().or_publishable();
        company.only_support_deals_with(key.id, key.secret.expose(), &need);
    }
}

#[test]
fn a2_38_a_scim_key_works_only_for_scim() {
    let company = company();
    let key = company.scim_key();
    let presented = key.secret.expose();
    assert_eq!(company.verify(presented, &scim()), Ok(key.id));
    let elsewhere = Need::scope("users:write")
        .unwrap()
        .of_class(class("data-api-token"));
    let wrong = |key: &Created| {
        let (key, class) = (key.id, key.class.clone());
        Err(VerifyError::WrongClass { key, class })
    };
    assert_eq!(company.verify(presented, &elsewhere), wrong(&key));
    assert_eq!(company.verify(presented, &manage()), wrong(&key));
    // An admin's token may change users, but it is not a SCIM key.
    let token = company.token_of(&admin(), "*:*");
    let presented = token.secret.expose();
    assert_eq!(company.verify(presented, &elsewhere), Ok(token.id));
    assert_eq!(company.verify(presented, &scim()), wrong(&token));
}

#[test]
fn a2_39_scim_keys_need_the_enterprise_plan() {
    let company = company();
    let create = |by: &Actor| {
        let draft = CreateKey::new("scim").class("scim-key").scope("users:*");
        company.world.create(by, draft)
    };
    let other_plan = admin().with_entitlement(Entitlement::new("growth").unwrap());
    for by in [admin(), other_plan] {
        let refusal = Denial::NotEntitled {
            class: class("scim-key"),
            entitlement: Entitlement::new("enterprise").unwrap(),
        };
        assert_eq!(denied(create(&by)), refusal);
    }
    let key = create(&enterprise_admin()).unwrap();
    assert_eq!(company.verify(key.secret.expose(), &scim()), Ok(key.id));
}

#[test]
fn a2_40_a_scim_key_is_private_and_manages_all_users_of_the_account() {
    let company = company();
    let key = company.scim_key();
    let info = company.info(key.id);
    assert_eq!(
        (info.key_type, info.facts.published),
        (KeyType::Secret, None)
    );
    assert!(!dump(&company.world.store).contains(secret_part(key.secret.expose())));
    let reaches = |scope: &str, path: &str| {
        let need = Need::scope(scope).unwrap().for_tenant(tenant(path));
        company.verify(key.secret.expose(), &need)
    };
    for path in ["acme", "acme/web", "acme/shop"] {
        for may in ["users:read", "users:write", "users:delete"] {
            assert_eq!(reaches(may, path), Ok(key.id), "{may} in {path}");
        }
        assert!(reaches("flags:read", path).is_err(), "users alone");
    }
    let refused = VerifyError::WrongTenant {
        key: key.id,
        tenant: tenant("globex"),
    };
    assert_eq!(reaches("users:read", "globex"), Err(refused));
}

#[test]
fn a2_41_an_admin_rotates_a_compromised_scim_key() {
    let company = company();
    let key = company.scim_key();
    for by in [developer(), member()] {
        let refusal = denied(company.rotate_compromised(&by, key.id));
        let (action, role) = ("rotate keys", by.role().cloned());
        assert_eq!(refusal, Denial::Forbidden { action, role });
    }
    // Any admin may rotate the key: this one did not create it.
    let ada = actor("acme", "ada", Role::ADMIN);
    let rotated = company.rotate_compromised(&ada, key.id).unwrap();
    let old = company.verify(key.secret.expose(), &scim());
    let reason = Reason::Rotated;
    assert!(matches!(old, Err(VerifyError::Revoked { reason: r, .. }) if r == reason));
    let new = company.verify(rotated.secret.expose(), &scim());
    assert_eq!(new, Ok(rotated.id));
}
