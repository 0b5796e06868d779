//! The layers of a hyper service that requires API keys, in their order.
//!
//! Run it: `cargo run --example stack_hyper`. It serves on a free port, sends itself requests, and stops.

mod client;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use keyward::store::MemoryStore;
use keyward::web::{CredentialSources, KeywardLayer, PeerAddr};
use keyward::{Actor, CreateKey, Grant, Keyward, Need, PepperRing, Role};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::{DefaultMakeSpan, TraceLayer};

use client::{Fallible, ask};

/// Serves one connection. The first layer is the outermost. All connections share `limit`.
async fn connection(
    (stream, peer): (TcpStream, SocketAddr),
    keyed: KeywardLayer,
    limit: GlobalConcurrencyLimitLayer,
) -> hyper::Result<()> {
    let key_headers = [AUTHORIZATION, CredentialSources::API_KEY_HEADER];
    let spans = DefaultMakeSpan::new().include_headers(true);
    let patience = Duration::from_secs(10);
    let stack = ServiceBuilder::new()
        .map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(PeerAddr(peer.ip()));
            request
        })
        .layer(SetSensitiveRequestHeadersLayer::new(key_headers))
        .layer(TraceLayer::new_for_http().make_span_with(spans))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::GATEWAY_TIMEOUT,
            patience,
        ))
        .layer(keyed)
        .layer(limit)
        .service_fn(reports);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(stack))
        .await
}

/// Returns the reports of one tenant. Without the layer, nobody gets any.
async fn reports(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let Some(grant) = request.extensions().get::<Grant>() else {
        let mut failure = Response::default();
        *failure.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return Ok(failure);
    };
    let reports = format!("reports of {}\n", grant.tenant());
    Ok(Response::new(Full::from(reports)))
}

async fn serve(listener: TcpListener, keyed: KeywardLayer) -> std::io::Result<()> {
    let limit = GlobalConcurrencyLimitLayer::new(100);
    loop {
        let accepted = listener.accept().await?;
        tokio::spawn(connection(accepted, keyed.clone(), limit.clone()));
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

    let keyed = KeywardLayer::new(keys).require(Need::scope("reports:read")?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = listener.local_addr()?;
    let serving = tokio::spawn(serve(listener, keyed));

    let key = [("x-api-key", reader.secret.expose())];
    ask(server, "GET /reports", &key, 200).await?;
    ask(server, "GET /reports", &[], 401).await?;
    let key = [("x-api-key", writer.secret.expose())];
    ask(server, "GET /reports", &key, 403).await?;
    serving.abort();
    Ok(())
}
