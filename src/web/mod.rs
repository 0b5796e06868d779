//! HTTP: a tower layer that verifies API keys (feature `http`), and extractors for axum (feature
//! `axum`).
//!
//! ```
//! # #[cfg(feature = "axum")]
//! # pollster::block_on(async {
//! use axum::{Router, routing::get};
//! use keyward::web::KeywardLayer;
//! use keyward::store::MemoryStore;
//! use keyward::{Grant, Keyward, Need, PepperRing};
//!
//! let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
//!
//! async fn reports(grant: Grant) -> String {
//!     format!("reports of {}", grant.tenant())
//! }
//!
//! let keyed = KeywardLayer::new(keys).require(Need::scope("reports:read")?);
//! let app: Router = Router::new().route("/reports", get(reports)).layer(keyed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The layer is a [`tower_layer::Layer`] over the types of the `http` crate, which axum, tonic and hyper
//! share. Its main settings:
//!
//! - [`require`](KeywardLayer::require) sets the conditions on a key, as a [`Need`](crate::Need). Clone the
//!   layer to give a route other conditions.
//! - [`CredentialSources`] lists the places in a request that may carry the key.
//! - [`TrustedProxies`] finds the client's address behind proxies.
//! - [`TenantPath`] reads the tenant from the request's path.
//! - [`rate_limit`](KeywardLayer::rate_limit) calls the service's own rate limiter.
//! - [`enabled`](KeywardLayer::enabled) switches the layer off.
//!
//! A framework without tower calls [`authenticate`](KeywardLayer::authenticate) and
//! [`respond`](KeywardLayer::respond), as the repository's `examples/actix` does.
//!
//! Refused requests get problem details (RFC 9457) with the challenges of RFC 6750. A refused gRPC call gets
//! a gRPC status instead. The repository's `docs/http.md` lists all refusals.

mod admission;
mod body;
mod context;
#[cfg(feature = "axum")]
mod extract;
mod layer;
mod proxies;
mod refusal;
mod service;
mod settings;
mod sources;
mod tenant_path;

pub use self::admission::{PeerAddr, RequestTenant};
pub use self::body::ResponseBody;
#[cfg(feature = "axum")]
pub use self::extract::{AuthRejection, RequiredScope, Scoped};
pub use self::layer::KeywardLayer;
pub use self::proxies::TrustedProxies;
pub use self::refusal::{AuthError, LimitReached};
pub use self::service::{KeywardService, ResponseFuture};
pub use self::sources::{CredentialSources, CredentialsError};
pub use self::tenant_path::TenantPath;
