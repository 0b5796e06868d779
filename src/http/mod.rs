//! HTTP: the layer that a service adds in one line (feature `http`), and extractors for axum (feature
//! `axum`).
//!
//! ```
//! # #[cfg(feature = "axum")]
//! # pollster::block_on(async {
//! use axum::{Router, routing::get};
//! use keyward::http::KeywardLayer;
//! use keyward::store::MemoryStore;
//! use keyward::{Grant, Keyward, Need, PepperRing};
//!
//! let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
//!
//! async fn reports(grant: Grant) -> String {
//!     format!("reports of {}", grant.tenant())
//! }
//!
//! let keyed = KeywardLayer::new(keys).require(Need::scope("reports:read"));
//! let app: Router = Router::new().route("/reports", get(reports)).layer(keyed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The layer is a [`tower_layer::Layer`] over `http` types: axum, tonic and hyper take it as it is.
//! What a request needs is a [`Need`](crate::Need), and a route that needs something else gets a
//! clone of the layer with [`require`](KeywardLayer::require). Where keys are read from say
//! [`Sources`], who the client is behind proxies [`TrustedProxies`], and which tenant a path names
//! [`TenantPath`]. A limiter of the service's own is asked through [`limit`](KeywardLayer::limit). A
//! framework without tower calls the layer's two halves,
//! [`authenticate`](KeywardLayer::authenticate) and [`respond`](KeywardLayer::respond), as the
//! repository's `examples/actix` does.
//!
//! Refusals are problem details (RFC 9457) with the challenges of RFC 6750, or a gRPC status if the
//! request is a gRPC call; the repository's `docs/http.md` lists them.

mod admission;
mod body;
#[cfg(feature = "axum")]
mod extract;
mod layer;
mod proxies;
mod refusal;
mod service;
mod sources;
mod tenant_path;

pub use self::admission::{PeerAddr, RequestTenant};
pub use self::body::ResponseBody;
#[cfg(feature = "axum")]
pub use self::extract::{Refused, RequiredScope, Scoped};
pub use self::layer::KeywardLayer;
pub use self::proxies::TrustedProxies;
pub use self::refusal::{LimitReached, Refusal};
pub use self::service::{KeywardService, ResponseFuture};
pub use self::sources::{Sources, Unclear};
pub use self::tenant_path::TenantPath;
