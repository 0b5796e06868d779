//! A gRPC service that requires API keys.
//!
//! Run it: `cargo run --package keyward-examples --features grpc --example grpc`.
//!
//! The service is the standard health check. The crate `tonic-health` contains its generated code, so this
//! example compiles no `.proto` file.

use std::net::IpAddr;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderName};
use keyward::store::MemoryStore;
use keyward::web::{CredentialSources, KeywardLayer};
use keyward::{Actor, CreateKey, Grant, Keyward, Need, PepperRing, Reason, Role, days};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::metadata::MetadataValue;
use tonic::service::LayerExt;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower::ServiceBuilder;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Binary metadata for the key, for clients that cannot send text.
const KEY_METADATA: &str = "x-api-key-bin";

/// The health check service. Its methods read the grant from the request's extensions, where the layer put
/// it.
struct Checks;

#[tonic::async_trait]
impl Health for Checks {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let grant = request.extensions().get::<Grant>();
        let grant = grant.ok_or_else(|| Status::internal("no layer around this service"))?;
        println!(
            "  the service: a check for {}, with {}",
            grant.tenant(),
            grant.key_id()
        );
        let status = ServingStatus::Serving as i32;
        Ok(Response::new(HealthCheckResponse { status }))
    }

    type WatchStream = futures_util::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("one check at a time"))
    }
}

/// Returns the caller's address as tonic reports it, for keys that are restricted to some addresses.
fn peer(extensions: &Extensions) -> Option<IpAddr> {
    let connection = extensions.get::<TcpConnectInfo>()?;
    connection.remote_addr().map(|peer| peer.ip())
}

/// Serves until `stopped`. The stack is around every service, and the layer with its scope around one of them.
async fn serve(
    listener: TcpListener,
    keys: Keyward,
    stopped: oneshot::Receiver<()>,
) -> Fallible<()> {
    let binary = HeaderName::from_static(KEY_METADATA);
    let sources = CredentialSources::default().with_header(binary.clone());
    let keyed = KeywardLayer::new(keys)
        .grpc()
        .sources(sources)
        .peer_addr(peer);
    let checks = keyed.require(Need::scope("health:read")?);
    let key_headers = [AUTHORIZATION, binary];
    let stack = ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new(key_headers))
        .layer(TraceLayer::new_for_grpc());
    Server::builder()
        .timeout(Duration::from_secs(10))
        .concurrency_limit_per_connection(100)
        .layer(stack)
        .add_service(checks.named_layer(HealthServer::new(Checks)))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), async {
            let _ = stopped.await;
        })
        .await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?)
        .build()
        .await?;
    let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    let probe = CreateKey::new("probe")
        .scope("health:read")
        .expires_in(days(90));
    let probe = keys
        .create(&admin, probe.allow_addresses(["127.0.0.1"]))
        .await?;
    let elsewhere = CreateKey::new("elsewhere").scope("health:read");
    let elsewhere = keys
        .create(&admin, elsewhere.allow_addresses(["192.0.2.0/24"]))
        .await?;
    let reader = keys
        .create(&admin, CreateKey::new("reader").scope("reports:read"))
        .await?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, keys.clone(), stopped));

    let channel = Channel::from_shared(address)?.connect().await?;
    let mut client = Client(HealthClient::new(channel));
    let probe_key = probe.secret.expose();
    client
        .call("with a key that may", Some(probe_key), Code::Ok)
        .await?;
    client.call_with_binary_metadata(probe_key).await?;
    client
        .call("without a key", None, Code::Unauthenticated)
        .await?;
    let key = reader.secret.expose();
    client
        .call(
            "with a key that may do other things",
            Some(key),
            Code::PermissionDenied,
        )
        .await?;
    let key = elsewhere.secret.expose();
    client
        .call(
            "with a key for another network",
            Some(key),
            Code::PermissionDenied,
        )
        .await?;
    keys.revoke(&admin, probe.id, Reason::Lost).await?;
    client
        .call(
            "with the first key, now revoked",
            Some(probe_key),
            Code::Unauthenticated,
        )
        .await?;

    drop((client, stop));
    server.await??;
    Ok(())
}

struct Client(HealthClient<Channel>);

impl Client {
    /// Makes a call and prints the outcome. Returns an error if the status is not `expected`.
    async fn call(&mut self, how: &str, key: Option<&str>, expected: Code) -> Fallible<()> {
        let mut request = Request::new(HealthCheckRequest::default());
        if let Some(key) = key {
            let mut bearer: MetadataValue<_> = format!("Bearer {key}").parse()?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        self.send(how, request, expected).await
    }

    /// Makes a call with the key in binary metadata, which the client encodes in base64.
    async fn call_with_binary_metadata(&mut self, key: &str) -> Fallible<()> {
        let mut request = Request::new(HealthCheckRequest::default());
        let mut value = MetadataValue::from_bytes(key.as_bytes());
        value.set_sensitive(true);
        request.metadata_mut().insert_bin(KEY_METADATA, value);
        let how = "with the key in binary metadata";
        self.send(how, request, Code::Ok).await
    }

    async fn send(
        &mut self,
        how: &str,
        request: Request<HealthCheckRequest>,
        expected: Code,
    ) -> Fallible<()> {
        println!("A call {how}:");
        let code = match self.0.check(request).await {
            Ok(answer) => {
                println!("  the client:  {:?}\n", answer.into_inner().status());
                Code::Ok
            }
            Err(status) => {
                println!("  the client:  {:?}, {}\n", status.code(), status.message());
                status.code()
            }
        };
        match code == expected {
            true => Ok(()),
            false => Err(format!("{code:?} where {expected:?} was expected").into()),
        }
    }
}
