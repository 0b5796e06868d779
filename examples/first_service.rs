//! The service of [`docs/first-service.md`](../docs/first-service.md), which explains it step by step:
//! `cargo run --example first_service`.
//!
//! Keeps the store `keys.db` and the file `pepper` in the current folder.

use std::net::SocketAddr;
use std::process::ExitCode;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use keyward::command::Created;
use keyward::policy::{ActiveKeyCap, KeyClass, Policy, PolicySpec};
use keyward::store::SqliteStore;
use keyward::token::TokenPrefix;
use keyward::web::KeywardLayer;
use keyward::{
    Actor, CommandError, CreateKey, Grant, Keyward, Need, PepperFile, Role, ScopeSet, WithSources,
    days,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Returns the rules for keys. Servers use `server` keys, and apps show a `mobile` key to the public.
fn policy() -> Fallible<Policy> {
    let everything = ScopeSet::parse(["orders:*", "catalogue:read"])?;
    let catalogue = ScopeSet::parse(["catalogue:read"])?;
    let server = TokenPrefix::new("shop_sk_")?;
    let server = KeyClass::secret(server, everything.clone(), [Role::ADMIN]);
    let mobile = TokenPrefix::new("shop_pk_")?;
    let mobile = KeyClass::publishable(mobile, catalogue, [Role::ADMIN]);
    let spec = PolicySpec::new("shop", "server", server)?
        .with_class("mobile", mobile)?
        .with_cap(ActiveKeyCap::of_class("server".parse()?, 2.try_into()?))
        .with_cap(ActiveKeyCap::of_class("mobile".parse()?, 5.try_into()?))
        .with_role(Role::ADMIN, everything)
        .with_administrators([Role::ADMIN]);
    Ok(Policy::new(spec)?)
}

/// Opens the store and the pepper, or creates them. The follower that `build` starts keeps this process up to
/// date with the changes of others.
async fn open() -> Fallible<Keyward> {
    let store = SqliteStore::open("keys.db").await?;
    let peppers = PepperFile::open_or_create("pepper")?.ring();
    let builder = Keyward::builder(store, peppers).policy(policy()?);
    Ok(builder.build().await?)
}

/// Returns the routes. Each group requires a scope, and a publishable key opens the catalogue.
fn router(keys: &Keyward) -> Fallible<Router> {
    let keyed = KeywardLayer::new(keys.clone());
    let reading = Need::scope("catalogue:read")?.or_publishable();
    let catalogue = Router::new()
        .route("/catalogue", get(async || Json(json!(["tea", "coffee"]))))
        .route_layer(keyed.clone().require(reading));
    let orders = Router::new()
        .route("/orders", get(orders))
        .route_layer(keyed.require(Need::scope("orders:read")?));
    Ok(catalogue.merge(orders))
}

/// Returns the orders of the key's tenant. The tenant comes from the key, never from the request.
async fn orders(grant: Grant) -> Json<Value> {
    Json(json!({ "orders_of": grant.tenant().as_str() }))
}

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "a page of your own service calls it")
)]
/// Creates a key for a user of your own login. Returns the secret to show once.
async fn create_key(keys: &Keyward, user: &Actor, name: &str) -> Result<Created, Failure> {
    let key = CreateKey::new(name).scope("orders:read");
    Ok(keys.create(user, key.expires_in(days(90))).await?)
}

/// A command that failed, as a response: the library knows the status and a text for clients.
struct Failure(CommandError);

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = StatusCode::from_u16(error.kind().http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = json!({ "code": error.code(), "message": error.public_message() });
        (status, Json(body)).into_response()
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop: {}", WithSources(&*error)); // names the thing, the value and the next step
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Fallible<()> {
    let listen = std::env::args().nth(1);
    let listener = TcpListener::bind(listen.as_deref().unwrap_or("127.0.0.1:3000")).await?;
    let keys = open().await?;
    println!("Listening on http://{}", listener.local_addr()?);
    let app = router(&keys)?.into_make_service_with_connect_info::<SocketAddr>();
    let mut terminate = signal(SignalKind::terminate())?; // from Kubernetes or systemd
    let stop = async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await?;
    keys.close().await?; // records first uses, and makes the file whole
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyward::store::MemoryStore;
    use keyward::{ManualClock, PepperRing, Timestamp};

    use super::*;

    #[pollster::test]
    async fn a_cap_that_is_reached_is_a_conflict_with_a_code() -> Fallible<()> {
        let clock = Arc::new(ManualClock::at(Timestamp::UNIX_EPOCH));
        let builder = Keyward::builder(MemoryStore::new(), PepperRing::generate()?);
        let keys = builder.policy(policy()?).clock(clock).build().await?;
        let ann = Actor::new("acme".try_into()?, "ann".try_into()?, Role::ADMIN);
        for name in ["one", "two"] {
            let created = create_key(&keys, &ann, name).await;
            assert!(created.is_ok_and(|key| key.secret.expose().starts_with("shop_sk_")));
        }
        let refused = create_key(&keys, &ann, "three").await.err();
        let refused = refused.ok_or("the class is full")?;
        assert_eq!(refused.0.code(), "cap-reached");
        assert_eq!(refused.into_response().status(), StatusCode::CONFLICT);
        Ok(())
    }
}
