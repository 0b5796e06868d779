//! Every refusal as a client sees it: status, headers, body.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Response;
use keyward::key::Environment;
use keyward::web::{CredentialSources, KeywardLayer, TenantPath};
use keyward::{CreateKey, Need, Reason, hours};
use serde_json::{Value, json};

use crate::http::server::{Answer, Server, basic};
use support::*;

/// Checks the parts that every refusal has. Returns the other fields of the problem document.
#[track_caller]
fn check(answer: &Answer, status: u16, code: &str, challenge: &str) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.code(), code);
    assert_eq!(answer.header("www-authenticate"), challenge);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("vary"), "authorization, x-api-key");
    assert_eq!(
        answer.header("content-length"),
        answer.body.len().to_string()
    );
    let retry = if status == 503 { "1" } else { "" };
    assert_eq!(answer.header("retry-after"), retry);
    let mut problem = answer.json();
    assert_eq!(problem["status"], status);
    let details = problem.as_object_mut().unwrap();
    details.remove("type");
    details.remove("status");
    problem
}

#[test]
fn a_request_without_a_key_gets_the_bare_challenge() {
    let server = Server::with(KeywardLayer::new(TestService::new().keys));
    for headers in [
        &[][..],
        &[("authorization", "Token abc")],
        &[("cookie", "key=abc")],
    ] {
        let problem = check(&server.get("/", headers), 401, "missing-key", "Bearer");
        assert_eq!(problem, json!({"title": "API key required"}));
    }
    // By default, the layer ignores a key in the query string.
    let key = TestService::new().some_key();
    let answer = server.get(&format!("/?api_key={}", key.secret.expose()), &[]);
    check(&answer, 401, "missing-key", "Bearer");
}

#[test]
fn a_request_with_ambiguous_keys_is_refused_before_verification() {
    let world = TestService::new();
    let (one, other) = (world.some_key(), world.some_key());
    let (one, other) = (one.secret.expose(), other.secret.expose());
    let sources = CredentialSources::default().with_basic();
    let server = Server::with(KeywardLayer::new(world.keys.clone()).sources(sources));
    let challenge = "Bearer error=\"invalid_request\"";
    let bearer = format!("Bearer {one}");
    let pair = basic(other, one);
    for (headers, detail) in [
        (
            vec![("authorization", &*bearer), ("x-api-key", other)],
            "more than one API key",
        ),
        (
            vec![("x-api-key", one), ("x-api-key", other)],
            "more than one API key",
        ),
        (
            vec![("x-api-key", one), ("authorization", &pair)],
            "more than one API key",
        ),
        (
            vec![("authorization", &*bearer), ("authorization", &bearer)],
            "more than one Authorization header",
        ),
        (
            vec![("authorization", "Bearer ")],
            "the place for the API key is empty",
        ),
        (
            vec![("x-api-key", "")],
            "the place for the API key is empty",
        ),
        (
            vec![("authorization", "Basic %%%")],
            "Basic takes the base64 form of a key id or publishable key, a colon and the secret key",
        ),
    ] {
        let problem = check(
            &server.get("/", &headers),
            400,
            "ambiguous-credentials",
            challenge,
        );
        assert_eq!(
            problem,
            json!({"title": "Ambiguous credentials", "detail": detail})
        );
    }
    // If a request sends the same key several times, it counts as one key.
    let twice = [
        ("authorization", &*bearer),
        ("x-api-key", one),
        ("x-api-key", one),
    ];
    assert_eq!(server.get("/", &twice).status, 200);
}

#[test]
fn all_keys_that_do_not_authenticate_get_the_same_answer() {
    let world = TestService::new();
    let text = |key: &keyward::command::Created| key.secret.expose().to_owned();
    let good = text(&world.some_key());
    let mut typo = good.clone();
    let last = typo.pop().unwrap();
    typo.push(if last == 'A' { 'B' } else { 'A' });

    let bobs = actor("acme", "bob", keyward::Role::ADMIN);
    let closed = actor("globex", "carol", keyward::Role::ADMIN);
    let [revoked, disabled, owned] =
        [&admin(), &admin(), &bobs].map(|by| world.create(by, reader("refused")).unwrap());
    let ended = world.create(&closed, reader("closed")).unwrap();
    let short = world
        .create(&admin(), reader("short").expires_in(hours(1)))
        .unwrap();
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    wait(world.keys.disable(&admin(), disabled.id)).unwrap();
    wait(
        world
            .keys
            .remove_owner(&admin(), &tenant("acme"), who("bob")),
    )
    .unwrap();
    wait(world.keys.close_tenant(&closed, &tenant("globex"))).unwrap();
    world.clock.advance(hours(1));

    let keys = [
        "garbage".to_owned(),
        "x".repeat(600),
        good.to_uppercase(),
        typo,
        with_other_secret(&good),
        text(&TestService::new().some_key()),
        text(&revoked),
        text(&disabled),
        text(&owned),
        text(&ended),
        text(&short),
    ];
    let server = Server::with(KeywardLayer::new(world.keys.clone()));
    let challenge = "Bearer error=\"invalid_token\"";
    let mut seen = BTreeSet::new();
    for key in &keys {
        for headers in [
            &[("authorization", &*format!("Bearer {key}"))][..],
            &[("x-api-key", key.as_str())],
        ] {
            let answer = server.get("/", headers);
            let problem = check(&answer, 401, "invalid-key", challenge);
            assert_eq!(problem, json!({"title": "Invalid API key"}));
            seen.insert(answer.all_but_date());
        }
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(server.bearer("/", &good).status, 200);
}

#[test]
fn a_refusal_names_the_missing_scope() {
    let world = TestService::new();
    let key = world.some_key();
    let need = Need::scope("reports:read")
        .unwrap()
        .and_scope("reports:write")
        .unwrap();
    let server = Server::with(KeywardLayer::new(world.keys.clone()).require(need));
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"reports:write\"";
    let answer = server.bearer("/", key.secret.expose());
    let problem = check(&answer, 403, "insufficient-scope", challenge);
    let expected = json!({
        "title": "Insufficient scope",
        "detail": "key lacks scope reports:write",
        "scope": "reports:write",
    });
    assert_eq!(problem, expected);

    let any = keyward::ScopeSet::parse(["exports:read", "reports:read"]).unwrap();
    let layer =
        KeywardLayer::new(world.keys.clone()).require(Need::any().any_scope_of(any).unwrap());
    assert_eq!(
        Server::with(layer).bearer("/", key.secret.expose()).status,
        200
    );
}

#[test]
fn a_refusal_names_the_wrong_kind_or_place_of_a_key() {
    let world = TestService::new();
    let publishable = CreateKey::new("page")
        .class("publishable")
        .scope("reports:read");
    let publishable = world.create(&admin(), publishable).unwrap();
    let tied = reader("tied").allow_addresses(["203.0.113.0/24"]);
    let tied = world.create(&admin(), tied).unwrap();
    let key = world.some_key();
    let layer = KeywardLayer::new(world.keys.clone());
    let in_path: TenantPath = "/t/{tenant}".parse().unwrap();
    let challenge = "Bearer error=\"insufficient_scope\"";
    for (layer, path, key, detail) in [
        (
            layer.clone(),
            "/",
            &publishable,
            "publishable key where a secret one is needed",
        ),
        (
            layer
                .clone()
                .require(Need::any().of_class(class("publishable")).or_publishable()),
            "/",
            &key,
            "key of class secret where another is needed",
        ),
        (
            layer
                .clone()
                .require(Need::any().in_environment(Environment::TEST)),
            "/",
            &key,
            "key for environment live where another is needed",
        ),
        (
            layer.clone().tenant_in_path(in_path.clone()),
            "/t/globex",
            &key,
            "key does not reach the tenant",
        ),
        (
            layer.clone().tenant_in_path(in_path),
            "/other/acme",
            &key,
            "the request names no tenant",
        ),
        (layer, "/", &tied, "key may not be used from this address"),
    ] {
        let answer = Server::with(layer).bearer(path, key.secret.expose());
        let problem = check(&answer, 403, "key-not-allowed", challenge);
        assert_eq!(
            problem,
            json!({"title": "API key not allowed here", "detail": detail})
        );
    }
}

#[test]
fn a_service_can_replace_the_answer() {
    let world = TestService::new();
    let layer = KeywardLayer::new(world.keys.clone())
        .problem_types("https://api.example.com/problems/")
        .realm("Acme")
        .unwrap()
        .retry_after(Duration::from_secs(7));
    let server = Server::with(layer.clone());
    let answer = server.get("/", &[]);
    assert_eq!(
        answer.json()["type"],
        "https://api.example.com/problems/missing-key"
    );
    assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"Acme\"");

    let changed = layer.on_refusal(|refusal, request, answer| {
        let text = format!("{} at {}", refusal.code(), request.uri.path());
        let (mut parts, _) = answer.into_parts();
        parts
            .headers
            .insert("content-type", "text/plain".parse().unwrap());
        Response::from_parts(parts, text.into())
    });
    let server = Server::with(changed);
    let answer = server.get("/reports", &[]);
    assert_eq!(
        (answer.status, &*answer.body),
        (401, "missing-key at /reports")
    );
    assert_eq!(answer.header("content-type"), "text/plain");
    let head = server.ask(http::Method::HEAD, "/reports", &[]);
    assert_eq!(
        head.header("content-length"),
        "missing-key at /reports".len().to_string()
    );
}

#[test]
fn the_documented_table_of_refusals_is_complete() {
    let table = include_str!("../../../docs/http.md");
    for (code, status) in [
        ("missing-key", 401),
        ("ambiguous-credentials", 400),
        ("invalid-key", 401),
        ("insufficient-scope", 403),
        ("key-not-allowed", 403),
        ("rate-limited", 429),
        ("unavailable", 503),
        ("internal", 500),
    ] {
        let row = format!("| `{code}` | {status} |");
        assert!(table.contains(&row), "{row}");
    }
    let rows = regex::Regex::new(r"(?m)^\| `[a-z-]+` \| \d{3} \|").unwrap();
    assert_eq!(rows.find_iter(table).count(), 8);
}
