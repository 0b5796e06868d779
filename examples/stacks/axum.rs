//! The layers of an axum service that requires API keys, in their order.
//!
//! Run it: `cargo run --example stack_axum`. It serves on a free port, sends itself requests, and stops.

mod client;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use keyward::store::MemoryStore;
use keyward::web::{AuthRejection, CredentialSources, KeywardLayer, RequiredScope, Scoped};
use keyward::{Actor, CreateKey, Keyward, PepperRing, Role, Scope};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::cors::CorsLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::{DefaultMakeSpan, TraceLayer};

use client::{Fallible, ask};

/// Puts the layers around the routes. The first layer is the outermost.
fn app(keys: &Keyward) -> Fallible<Router> {
    let key_headers = [AUTHORIZATION, CredentialSources::API_KEY_HEADER];
    let cors = CorsLayer::new()
        .allow_origin(["https://app.example.com".parse()?])
        .allow_methods([Method::GET])
        .allow_headers(key_headers.clone())
        .expose_headers([WWW_AUTHENTICATE, RETRY_AFTER]);
    let spans = DefaultMakeSpan::new().include_headers(true);
    let patience = Duration::from_secs(10);
    let stack = ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new(key_headers))
        .layer(TraceLayer::new_for_http().make_span_with(spans))
        .layer(cors)
        .layer(TimeoutLayer::with_status_code(
            StatusCode::GATEWAY_TIMEOUT,
            patience,
        ))
        .layer(KeywardLayer::new(keys.clone()))
        .layer(GlobalConcurrencyLimitLayer::new(100))
        .layer(DefaultBodyLimit::max(64 * 1024));
    let routes = Router::new().route("/reports/{name}", get(report));
    Ok(routes.layer(stack))
}

/// Serves the routes. Without the connect info, every key with an address allowlist is refused.
async fn serve(listener: TcpListener, app: Router) -> std::io::Result<()> {
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).await
}

struct ReportsRead;

impl RequiredScope for ReportsRead {
    const SCOPE: Scope = Scope::from_static("reports:read");
}

/// The errors of the handlers. A refusal keeps its status, its headers and its body.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error(transparent)]
    Auth(#[from] AuthRejection),
    #[error("no report of this name")]
    NoSuchReport,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Auth(rejection) => rejection.into_response(),
            Self::NoSuchReport => (StatusCode::NOT_FOUND, self.to_string()).into_response(),
        }
    }
}

/// Returns a report of one tenant. The tenant comes from the key, never from the request.
async fn report(
    key: Result<Scoped<ReportsRead>, AuthRejection>,
    Path(name): Path<String>,
) -> Result<String, ApiError> {
    let key = key?;
    match &*name {
        "usage" => Ok(format!("the usage of {}\n", key.tenant())),
        _ => Err(ApiError::NoSuchReport),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .init();
    let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?)
        .build()
        .await?;
    let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    let reader = CreateKey::new("reader").scope("reports:read");
    let reader = reader.allow_addresses(["127.0.0.1"]);
    let reader = keys.create(&admin, reader).await?;
    let writer = CreateKey::new("writer").scope("reports:write");
    let writer = keys.create(&admin, writer).await?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = listener.local_addr()?;
    let serving = tokio::spawn(serve(listener, app(&keys)?));

    let (line, none) = ("GET /reports/usage", &[][..]);
    let key = [("x-api-key", reader.secret.expose())];
    ask(server, line, &key, 200).await?;
    ask(server, "GET /reports/other", &key, 404).await?;
    ask(server, line, none, 401).await?;
    let key = [("x-api-key", writer.secret.expose())];
    ask(server, line, &key, 403).await?;
    let preflight = [
        ("origin", "https://app.example.com"),
        ("access-control-request-method", "GET"),
    ];
    ask(server, "OPTIONS /reports/usage", &preflight, 200).await?;
    serving.abort();
    Ok(())
}
