//! The extractors for axum handlers.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use keyward::web::{
    AuthError, AuthRejection, CredentialSources, KeywardLayer, RequestTenant, RequiredScope, Scoped,
};
use keyward::{CreateKey, Grant, Need, Scope};

use crate::http::server::{Server, base64};
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

async fn perhaps_scoped(key: Option<Scoped<ReportsRead>>) -> String {
    key.map_or("nobody".to_owned(), |key| key.tenant().to_string())
}

async fn perhaps_tenanted(tenant: Option<RequestTenant>) -> String {
    tenant.map_or("nobody".to_owned(), |tenant| tenant.0.to_string())
}

/// An application's own error.
enum ApiError {
    Auth(AuthRejection),
    NoSuchReport,
}

impl From<AuthRejection> for ApiError {
    fn from(rejection: AuthRejection) -> Self {
        Self::Auth(rejection)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Auth(rejection) => rejection.into_response(),
            Self::NoSuchReport => StatusCode::NOT_FOUND.into_response(),
        }
    }
}

async fn reported(key: Result<Scoped<ReportsRead>, AuthRejection>) -> Result<String, ApiError> {
    let key = key?;
    match key.tenant().as_str() {
        "acme" => Err(ApiError::NoSuchReport),
        tenant => Ok(tenant.to_owned()),
    }
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

#[test]
fn an_applications_own_error_holds_a_rejection_and_answers_with_its_response() {
    let world = TestService::new();
    let key = world.some_key();
    let other = CreateKey::new("other").scope("exports:read");
    let other = world.create(&admin(), other).unwrap();
    let app = Router::new()
        .route("/own", get(reported))
        .route("/plain", get(scoped))
        .layer(KeywardLayer::new(world.keys.clone()));
    let server = Server::start(app);
    assert_eq!(server.bearer("/own", key.secret.expose()).status, 404);
    let own = server.bearer("/own", other.secret.expose());
    let plain = server.bearer("/plain", other.secret.expose());
    assert_eq!((own.status, &*own.code()), (403, "insufficient-scope"));
    assert_eq!(own.all_but_date(), plain.all_but_date());
}

#[test]
fn a_rejection_shows_its_status_its_reason_and_its_response() {
    let shown = async |key: Result<Grant, AuthRejection>| {
        let rejection = key.unwrap_err();
        assert_eq!(*rejection.error(), AuthError::NoLayer);
        assert_eq!(rejection.to_string(), AuthError::NoLayer.to_string());
        let own: http::Response<bytes::Bytes> = rejection.clone().into();
        assert_eq!(own.body(), rejection.response().body());
        assert_eq!(own.headers(), rejection.response().headers());
        let (status, code) = (rejection.status(), rejection.code());
        assert_eq!(rejection.into_error(), AuthError::NoLayer);
        (status, format!("own {code}"))
    };
    let server = Server::start(Router::new().route("/", get(shown)));
    let answer = server.get("/", &[]);
    assert_eq!((answer.status, &*answer.body), (500, "own internal"));
}

#[test]
fn an_optional_extractor_is_none_without_a_key_and_still_refuses_an_unfit_one() {
    let world = TestService::new();
    let key = world.some_key();
    let other = CreateKey::new("other").scope("exports:read");
    let other = world.create(&admin(), other).unwrap();
    let layer = KeywardLayer::new(world.keys.clone()).optional();
    let app = || {
        Router::new()
            .route("/scoped", get(perhaps_scoped))
            .route("/t/{tenant}", get(perhaps_tenanted))
    };
    let server = Server::start(app().layer(layer.clone()));
    let tenanted = layer.tenant_in_path("/t/{tenant}".parse().unwrap());
    let with_tenant = Server::start(app().layer(tenanted));
    assert_eq!(server.get("/scoped", &[]).body, "nobody");
    assert_eq!(server.bearer("/scoped", key.secret.expose()).body, "acme");
    let unfit = server.bearer("/scoped", other.secret.expose());
    assert_eq!((unfit.status, &*unfit.code()), (403, "insufficient-scope"));
    assert_eq!(server.bearer("/scoped", "garbage").status, 401);
    assert_eq!(with_tenant.get("/t/acme", &[]).body, "nobody");
    let ask = |server: &Server, path: &str| server.bearer(path, key.secret.expose());
    assert_eq!(ask(&with_tenant, "/t/acme").body, "acme");
    assert_eq!(ask(&with_tenant, "/t/globex").status, 403);
    let untenanted = ask(&server, "/t/acme");
    assert_eq!(untenanted.code(), "internal", "the layer reads no tenant");
    let bare = Server::start(app());
    for path in ["/scoped", "/t/acme"] {
        assert_eq!(bare.get(path, &[]).code(), "internal", "{path}");
    }
}

#[test]
fn a_layer_that_is_off_forwards_everything_and_the_extractors_fail_closed() {
    let world = TestService::new();
    let key = world.some_key();
    let sources = CredentialSources::default().with_query("key");
    let layer = KeywardLayer::new(world.keys.clone()).sources(sources);
    let app = |on: bool| {
        let uri = |uri: http::Uri| async move { uri.to_string() };
        let layer = layer.clone().enabled(on);
        Server::start(routes().route("/uri", get(uri)).layer(layer))
    };
    let (on, off) = (app(true), app(false));
    assert_eq!(on.get("/uri", &[]).status, 401);
    for key in ["", "?key=garbage"] {
        let answer = off.get(&format!("/uri{key}"), &[]);
        assert_eq!(
            (answer.status, answer.body.clone()),
            (200, format!("/uri{key}"))
        );
        assert_eq!(answer.header("vary"), "");
    }
    for path in ["/required", "/optional", "/scoped", "/t/acme"] {
        let answer = off.bearer(path, key.secret.expose());
        assert_eq!(
            (answer.status, &*answer.code()),
            (500, "internal"),
            "{path}"
        );
    }
    // Without tower, a layer that is off forwards requests too.
    let off = layer.enabled(false);
    let (mut parts, ()) = http::Request::new(()).into_parts();
    assert!(wait(off.authenticate(&mut parts)).unwrap().is_none());
    assert_eq!(off.vary(), None);
}

#[test]
fn a_key_in_binary_metadata_is_decoded() {
    let world = TestService::new();
    let key = world.some_key();
    let sources = CredentialSources::none().with_header("x-api-key-bin".parse().unwrap());
    let layer = KeywardLayer::new(world.keys.clone()).sources(sources);
    let server = Server::start(routes().layer(layer));
    let ask = |value: &str| server.get("/scoped", &[("x-api-key-bin", value)]);
    let padded = base64(key.secret.expose());
    assert_eq!(ask(&padded).body, "acme");
    assert_eq!(ask(padded.trim_end_matches('=')).body, "acme");
    assert_eq!(ask(&base64("garbage")).code(), "invalid-key");
    assert_eq!(ask(&"a".repeat(2000)).code(), "invalid-key");
    let plain = ask(key.secret.expose());
    assert_eq!(plain.code(), "ambiguous-credentials");
    assert!(plain.body.contains("base64"), "{}", plain.body);
}
