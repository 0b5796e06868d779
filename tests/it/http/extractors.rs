//! The extractors for axum handlers.

use axum::Router;
use axum::routing::get;
use keyward::web::{KeywardLayer, RequestTenant, RequiredScope, Scoped};
use keyward::{CreateKey, Grant, Need, Scope};

use crate::http::server::Server;
use support::*;

struct ReportsRead;

impl RequiredScope for ReportsRead {
    const SCOPE: Scope = Scope::from_static("reports:read");
}

async fn required(grant: Grant) -> String {
    grant.key_id().to_string()
}

async fn optional(grant: Option<Grant>) -> String {
    grant.map_or("nobody".to_owned(), |grant| grant.key_id().to_string())
}

async fn scoped(key: Scoped<ReportsRead>) -> String {
    key.tenant().to_string()
}

async fn tenanted(RequestTenant(tenant): RequestTenant) -> String {
    tenant.to_string()
}

fn routes() -> Router {
    Router::new()
        .route("/required", get(required))
        .route("/optional", get(optional))
        .route("/scoped", get(scoped))
        .route("/t/{tenant}", get(tenanted))
}

#[test]
fn a_handler_gets_the_grant_from_the_layer() {
    let world = TestService::new();
    let key = world.some_key();
    let id = key.id.to_string();
    let server = Server::start(routes().layer(KeywardLayer::new(world.keys.clone())));
    let ask = |path: &str| server.bearer(path, key.secret.expose());
    assert_eq!(ask("/required").body, id);
    assert_eq!(ask("/optional").body, id);
    assert_eq!(ask("/scoped").body, "acme");
    assert_eq!(ask("/nothing").status, 404);
    assert_eq!(server.get("/optional", &[]).code(), "missing-key");
}

#[test]
fn a_scope_in_a_handlers_signature_is_required() {
    let world = TestService::new();
    let other = CreateKey::new("other").scope("exports:read");
    let other = world.create(&admin(), other).unwrap();
    let server = Server::start(routes().layer(KeywardLayer::new(world.keys.clone())));
    let answer = server.bearer("/scoped", other.secret.expose());
    assert_eq!(
        (answer.status, &*answer.code()),
        (403, "insufficient-scope")
    );
    assert_eq!(answer.json()["scope"], "reports:read");
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"reports:read\"";
    assert_eq!(answer.header("www-authenticate"), challenge);
    assert_eq!(
        server.bearer("/required", other.secret.expose()).status,
        200
    );
}

#[test]
fn an_optional_layer_accepts_requests_without_a_key_and_refuses_bad_keys() {
    let world = TestService::new();
    let key = world.some_key();
    let layer = KeywardLayer::new(world.keys.clone()).optional();
    let layer = layer.problem_types("x:");
    let server = Server::start(routes().layer(layer));
    assert_eq!(server.get("/optional", &[]).body, "nobody");
    assert_eq!(
        server.bearer("/optional", key.secret.expose()).body,
        key.id.to_string()
    );
    assert_eq!(server.bearer("/optional", "garbage").status, 401);
    assert_eq!(server.get("/optional", &[("x-api-key", "")]).status, 400);
    // If a request has no key, an extractor that requires one sends the same refusal as the layer.
    let refused = server.get("/required", &[]);
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, "Bearer".to_owned())
    );
    assert_eq!(refused.json()["type"], "x:missing-key");
}

#[test]
fn an_extractor_without_a_layer_is_a_server_error() {
    let server = Server::start(routes());
    let key = TestService::new().some_key();
    for path in ["/required", "/optional", "/scoped", "/t/acme"] {
        let answer = server.bearer(path, key.secret.expose());
        assert_eq!(
            (answer.status, &*answer.code()),
            (500, "internal"),
            "{path}"
        );
        assert_eq!(answer.header("www-authenticate"), "");
    }
}

#[test]
fn a_handler_gets_the_tenant_that_was_checked() {
    let world = TestService::new();
    let key = world.some_key();
    let layer = KeywardLayer::new(world.keys.clone());
    let server = Server::start(routes().layer(layer.clone()));
    let fault = server.bearer("/t/acme", key.secret.expose());
    assert_eq!(fault.code(), "internal", "no layer determined the tenant");
    let layer = layer.tenant_in_path("/t/{tenant}".parse().unwrap());
    let server = Server::start(routes().layer(layer));
    let ask = |path: &str| server.bearer(path, key.secret.expose());
    assert_eq!(ask("/t/acme").body, "acme");
    assert_eq!(ask("/t/%61cme").body, "acme");
    assert_eq!(ask("/t/acme%2Fweb").code(), "key-not-allowed");
    assert_eq!(ask("/t/globex").code(), "key-not-allowed");
    assert_eq!(ask("/required").code(), "key-not-allowed");
}

#[test]
fn each_route_can_have_its_own_need() {
    let world = TestService::new();
    let key = world.some_key();
    let layer = KeywardLayer::new(world.keys.clone());
    let need = |scope| layer.clone().require(Need::scope(scope).unwrap());
    let app = Router::new()
        .route("/read", get(required).layer(need("reports:read")))
        .route("/write", get(required).layer(need("reports:write")))
        .route("/open", get(|| async { "open" }));
    let server = Server::start(app);
    let ask = |path: &str| server.bearer(path, key.secret.expose()).status;
    let statuses = ["/read", "/write", "/open"].map(ask);
    assert_eq!(statuses, [200, 403, 200]);
}
