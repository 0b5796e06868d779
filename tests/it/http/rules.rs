//! The source documents' rules about HTTP requests. `tests/it/seed_rules` tests the same rules through the
//! library.

use keyward::command::{Created, IssuedKey};
use keyward::key::{Environment, Resource, ResourceId, ResourceKind};
use keyward::web::{CredentialSources, KeywardLayer};
use keyward::{Actor, CreateKey, Need, Reason, Role, profiles};

use crate::http::nodes::Nodes;
use crate::http::server::{Server, basic};
use support::*;

/// Returns a service and a layer as in the YugabyteDB document: bearer tokens only.
fn yugabyte() -> (TestService, KeywardLayer) {
    let world = TestService::with_policy(profiles::yugabytedb());
    let layer =
        KeywardLayer::new(world.keys.clone()).sources(CredentialSources::none().with_bearer());
    (world, layer)
}

fn bobs_key(world: &TestService) -> Created {
    let bob = actor("acme", "bob", Role::ADMIN);
    world
        .create(&bob, CreateKey::new("bob's").scope("*:*"))
        .unwrap()
}

fn demote_bob(world: &TestService) {
    let role = Role::DEVELOPER;
    let (by, acme) = (admin(), tenant("acme"));
    let changed = world.keys.change_owner_role(&by, &acme, who("bob"), role);
    wait(changed).unwrap();
}

/// Sends a request with `key` to a route that requires `scope`. Returns the status and the challenge.
fn asked(layer: &KeywardLayer, scope: &str, key: &str) -> (u16, String) {
    let server = Server::with(layer.clone().require(Need::scope(scope).unwrap()));
    let answer = server.bearer("/", key);
    (answer.status, answer.header("www-authenticate"))
}

#[test]
fn y_01_a_key_is_a_bearer_token_and_other_schemes_are_refused() {
    let (world, layer) = yugabyte();
    let key = world
        .create(&admin(), CreateKey::new("ci").scope("clusters:read"))
        .unwrap();
    let text = key.secret.expose();
    let server = Server::with(layer);
    assert_eq!(server.bearer("/", text).status, 200);
    let pair = basic(&key.id.to_string(), text);
    let schemes = ["Token", "Digest", "ApiKey", "Bearer2", ""].map(|name| format!("{name} {text}"));
    for value in schemes.iter().chain([&pair]) {
        let answer = server.get("/", &[("authorization", value)]);
        assert_eq!(
            (answer.status, &*answer.code()),
            (401, "missing-key"),
            "a scheme"
        );
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!(server.get("/", &[("x-api-key", text)]).status, 401);
    assert_eq!(server.get(&format!("/?api_key={text}"), &[]).status, 401);
}

#[test]
fn y_02_a_request_without_a_key_is_answered_with_401() {
    let (_, layer) = yugabyte();
    let server = Server::with(layer);
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "QUERY",
    ] {
        let answer = server.ask(method.parse().unwrap(), "/clusters", &[]);
        assert_eq!(answer.status, 401, "{method}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
}

#[test]
fn y_25_the_key_of_a_creator_who_became_a_developer_has_developer_access() {
    let (world, layer) = yugabyte();
    let key = bobs_key(&world);
    let text = key.secret.expose();
    assert_eq!(asked(&layer, "account:write", text).0, 200);
    demote_bob(&world);
    let (status, challenge) = asked(&layer, "account:write", text);
    assert_eq!(status, 403);
    assert_eq!(
        challenge,
        "Bearer error=\"insufficient_scope\", scope=\"account:write\""
    );
    assert_eq!(
        asked(&layer, "clusters:write", text).0,
        200,
        "the same key still works"
    );
}

#[test]
fn y_26_a_developers_key_reaches_nothing_that_requires_an_admin() {
    let (world, layer) = yugabyte();
    let key = bobs_key(&world);
    demote_bob(&world);
    for scope in [
        "account:read",
        "billing:read",
        "keys:write",
        "users:write",
        "*:*",
    ] {
        let (status, challenge) = asked(&layer, scope, key.secret.expose());
        assert_eq!(status, 403, "{scope}");
        assert!(challenge.contains(scope), "{challenge}");
    }
}

/// Provisions a project of acme. Returns the project's API key and its secret key.
fn project(world: &TestService, path: &str) -> [IssuedKey; 2] {
    let tenant = tenant(path);
    let host = Actor::application(tenant.clone());
    let keys = wait(world.keys.provision_tenant(&host, &tenant)).unwrap();
    keys.try_into().unwrap()
}

fn text(key: &IssuedKey) -> &str {
    key.token.as_ref().unwrap().expose()
}

fn amplitude() -> (TestService, KeywardLayer) {
    let world = TestService::with_policy(profiles::amplitude_products());
    let layer = KeywardLayer::new(world.keys.clone());
    (world, layer)
}

#[test]
fn a2_10_analytics_keys_act_only_in_their_project() {
    let (world, layer) = amplitude();
    let [api_key, secret_key] = project(&world, "acme/web");
    project(&world, "acme/shop");
    let layer = layer.tenant_in_path("/orgs/{org}/projects/{project}".parse().unwrap());
    let ingest = Need::scope("ingest:write").unwrap().or_publishable();
    for (key, need) in [
        (&api_key, ingest),
        (&secret_key, Need::scope("project:write").unwrap()),
    ] {
        let server = Server::with(layer.clone().require(need));
        let home = server.bearer("/orgs/acme/projects/web/events", text(key));
        assert_eq!(
            (home.status, home.body.ends_with("of acme/web")),
            (200, true)
        );
        for elsewhere in [
            "/orgs/acme/projects/shop/events",
            "/orgs/globex/projects/app/events",
            "/orgs/acme/projects/web%2Feu/events",
            "/orgs/acme/projects/",
            "/orgs/acme",
        ] {
            let answer = server.bearer(elsewhere, text(key));
            assert_eq!(
                (answer.status, &*answer.code()),
                (403, "key-not-allowed"),
                "{elsewhere}"
            );
        }
    }
}

#[test]
fn a2_11_a_project_api_key_identifies_the_project_of_a_request() {
    let (world, layer) = amplitude();
    let server = Server::with(layer.require(Need::scope("ingest:write").unwrap().or_publishable()));
    for path in ["acme/web", "acme/shop"] {
        let [api_key, _] = project(&world, path);
        let answer = server.get("/events", &[("x-api-key", text(&api_key))]);
        assert_eq!(answer.body, format!("{} of {path}", api_key.id));
    }
}

#[test]
fn a2_15_a_secret_key_pairs_only_with_the_api_key_of_its_project() {
    let (world, layer) = amplitude();
    let [api_key, secret] = project(&world, "acme/web");
    let [others_api_key, others_secret] = project(&world, "acme/shop");
    let layer = layer.sources(CredentialSources::none().with_basic());
    let server = Server::with(layer.require(Need::scope("project:write").unwrap()));
    let with = |user: &str, password: &str| {
        let answer = server.get("/", &[("authorization", &basic(user, password))]);
        let code = (answer.status != 200).then(|| answer.code());
        (answer.status, code)
    };
    let refused = |status, code: &str| (status, Some(code.to_owned()));
    assert_eq!(with(text(&api_key), text(&secret)), (200, None));
    assert_eq!(with(&secret.id.to_string(), text(&secret)), (200, None));
    for user in [
        text(&others_api_key),
        text(&secret),
        &others_secret.id.to_string(),
        &with_other_secret(text(&api_key)),
        "somebody",
    ] {
        assert_eq!(
            with(user, text(&secret)),
            refused(401, "invalid-key"),
            "a pair"
        );
    }
    assert_eq!(
        with("", text(&secret)),
        refused(400, "ambiguous-credentials"),
        "a secret alone"
    );
    assert_eq!(
        with(text(&api_key), ""),
        refused(400, "ambiguous-credentials"),
        "an API key alone"
    );
    assert_eq!(server.bearer("/", text(&secret)).code(), "missing-key");
    assert_eq!(
        with(text(&secret), text(&api_key)),
        refused(403, "key-not-allowed"),
        "swapped"
    );
    let support = actor("acme", "sam", Role::SUPPORT);
    wait(
        world
            .keys
            .revoke(&support, api_key.id, Reason::NoLongerNeeded),
    )
    .unwrap();
    assert_eq!(
        with(text(&api_key), text(&secret)),
        refused(401, "invalid-key")
    );
}

#[test]
fn a2_30_a_management_key_manages_and_does_nothing_else() {
    let (world, layer) = amplitude();
    project(&world, "acme/web");
    let key = management_key(&world);
    assert_eq!(asked(&layer, "flags:write", key.secret.expose()).0, 200);
    assert_eq!(
        asked(&layer, "experiments:write", key.secret.expose()).0,
        200
    );
    for scope in ["users:write", "project:write", "variants:read"] {
        assert_eq!(asked(&layer, scope, key.secret.expose()).0, 403, "{scope}");
    }
}

fn management_key(world: &TestService) -> Created {
    let draft = CreateKey::new("flags")
        .class("management-api-key")
        .scopes(["flags:*", "experiments:*"])
        .in_tenant(tenant("acme/web"));
    let developer = actor("acme", "dora", Role::DEVELOPER);
    world.create(&developer, draft).unwrap()
}

#[test]
fn a2_31_management_and_deployment_keys_cannot_replace_each_other() {
    let (world, layer) = amplitude();
    project(&world, "acme/web");
    let management = management_key(&world);
    let resource = Resource {
        kind: ResourceKind::new("deployment.server").unwrap(),
        id: ResourceId::new("dep-1").unwrap(),
    };
    let (by, web) = (admin(), tenant("acme/web"));
    let deployed = world.keys.provision_resource(&by, &web, resource);
    let [deployment] = wait(deployed).unwrap().try_into().unwrap();
    let of = |classes: &[&str]| {
        let need = classes
            .iter()
            .fold(Need::any(), |need, name| need.of_class(class(name)));
        Server::with(layer.clone().require(need.or_publishable()))
    };
    let managing = of(&["management-api-key"]);
    let fetching = of(&["deployment-server", "deployment-client"]);
    let (management, deployment) = (management.secret.expose(), text(&deployment));
    assert_eq!(managing.bearer("/flags", management).status, 200);
    assert_eq!(fetching.bearer("/variants", deployment).status, 200);
    for refused in [
        managing.bearer("/flags", deployment),
        fetching.bearer("/variants", management),
    ] {
        assert_eq!((refused.status, &*refused.code()), (403, "key-not-allowed"));
    }
}

#[test]
fn a1_06_access_through_a_key_can_be_switched_off() {
    let world = TestService::with_policy(profiles::standard());
    let key = world.some_key();
    let server = Server::with(KeywardLayer::new(world.keys.clone()));
    let status = || server.bearer("/", key.secret.expose()).status;
    assert_eq!(status(), 200);
    wait(world.keys.disable(&admin(), key.id)).unwrap();
    assert_eq!(status(), 401);
    wait(world.keys.enable(&admin(), key.id)).unwrap();
    assert_eq!(status(), 200);
}

#[test]
fn a1_25_a_new_key_works_immediately_on_every_node_even_if_it_was_refused_there() {
    let nodes = Nodes::new();
    let server = Server::with(KeywardLayer::new(nodes.here.clone()));
    for _ in 0..3 {
        let key = nodes.create(reader("new"));
        assert_eq!(server.bearer("/", &with_other_secret(&key)).status, 401);
        assert_eq!(server.bearer("/", &key).status, 200);
    }
}

#[test]
fn g_22_every_request_with_a_revoked_key_is_refused() {
    let world = TestService::with_policy(profiles::standard());
    let key = world.some_key();
    let text = key.secret.expose();
    wait(world.keys.revoke(&admin(), key.id, Reason::Compromised)).unwrap();
    let everywhere = CredentialSources::default().with_basic().with_query("key");
    let layer = KeywardLayer::new(world.keys.clone()).sources(everywhere);
    for layer in [layer.clone(), layer.optional()] {
        let server = Server::with(layer);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let ask = |path: &str, headers: &[(&str, &str)]| {
                server.ask(method.parse().unwrap(), path, headers).status
            };
            let bearer = format!("Bearer {text}");
            let pair = basic(&key.id.to_string(), text);
            assert_eq!(ask("/", &[("authorization", &bearer)]), 401);
            assert_eq!(ask("/", &[("authorization", &pair)]), 401);
            assert_eq!(ask("/some/where", &[("x-api-key", text)]), 401);
            assert_eq!(ask(&format!("/?key={text}"), &[]), 401);
        }
    }
}

#[test]
fn g_36_test_keys_are_refused_in_production_and_live_keys_in_tests() {
    let world = TestService::with_policy(profiles::standard());
    let keys = [Environment::LIVE, Environment::TEST].map(|environment| {
        let key = reader("somewhere").environment(environment);
        world.create(&admin(), key).unwrap()
    });
    let servers = [Environment::LIVE, Environment::TEST].map(|environment| {
        let need = Need::any().in_environment(environment);
        Server::with(KeywardLayer::new(world.keys.clone()).require(need))
    });
    for (at, server) in servers.iter().enumerate() {
        for (of, key) in keys.iter().enumerate() {
            let expected = if at == of { 200 } else { 403 };
            assert_eq!(server.bearer("/", key.secret.expose()).status, expected);
        }
    }
}

#[test]
fn i_02_a_key_id_and_its_own_secret_are_a_pair() {
    let world = TestService::with_policy(profiles::idenfy());
    let make = || world.create(&admin(), CreateKey::new("pair")).unwrap();
    let (one, other) = (make(), make());
    let layer =
        KeywardLayer::new(world.keys.clone()).sources(CredentialSources::none().with_basic());
    let server = Server::with(layer);
    let ask = |id: &Created, secret: &Created| {
        let pair = basic(&id.id.to_string(), secret.secret.expose());
        server.get("/", &[("authorization", &pair)]).status
    };
    assert_eq!((ask(&one, &one), ask(&other, &other)), (200, 200));
    assert_eq!((ask(&one, &other), ask(&other, &one)), (401, 401));
}
