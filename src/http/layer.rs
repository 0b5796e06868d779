//! The layer: its settings, and its two halves for frameworks without tower. `admission` decides
//! about one request.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Extensions, Response};

use super::admission::{self, Admission};
use super::proxies::TrustedProxies;
use super::refusal::{self, AuthError, LimitReached, Realm};
use super::service::KeywardService;
use super::settings::Settings;
use super::sources::CredentialSources;
use super::tenant_path::TenantPath;
use crate::core::invalid::Invalid;
use crate::core::need::Need;
use crate::core::tenant::TenantId;
use crate::keyward::Keyward;
use crate::verifier::Grant;

/// A [`tower_layer::Layer`] over `http` types that lets only requests with a fitting API key
/// through.
///
/// A request that passes has the [`Grant`] in its extensions. The layer answers every other request
/// itself, without calling the inner service. Make one layer, and clone it for each route with a
/// different need: a clone increments one count.
///
/// # Examples
///
/// ```
/// # pollster::block_on(async {
/// # use keyward::store::MemoryStore;
/// # use keyward::{Keyward, Need, PepperRing};
/// use keyward::http::KeywardLayer;
///
/// # let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
/// let layer = KeywardLayer::new(keys).require(Need::scope("reports:read")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct KeywardLayer {
    settings: Arc<Settings>,
}

impl KeywardLayer {
    /// Returns a layer that accepts any secret key that verifies, from the default [`CredentialSources`].
    pub fn new(keys: Keyward) -> Self {
        let settings = Arc::new(Settings::new(keys, CredentialSources::default()));
        Self { settings }
    }

    /// Sets the conditions on a key: scopes, class, environment. Defaults to [`Need::any`].
    pub fn require(self, need: Need) -> Self {
        self.with(|settings| settings.need = need)
    }

    /// Sets the places where a request may carry its key.
    pub fn sources(self, sources: CredentialSources) -> Self {
        self.with(|settings| {
            settings.vary = refusal::vary(&sources);
            settings.sources = sources;
        })
    }

    /// Requires a key that reaches the tenant in the request's path. A request that passes carries
    /// the tenant as [`RequestTenant`](super::RequestTenant). Below a router that strips a prefix
    /// (axum's `nest`), the path begins after the prefix.
    pub fn tenant_in_path(self, path: TenantPath) -> Self {
        self.tenant_from(move |request| path.tenant(request.uri.path()))
    }

    /// Requires a key that reaches the tenant that `tenant` finds in the request, for example in
    /// the host name. If it returns `None`, the client gets 403, whatever the key.
    pub fn tenant_from(
        self,
        tenant: impl Fn(&Parts) -> Option<TenantId> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.tenant = Some(Arc::new(tenant)))
    }

    /// Lets requests without a key through, without a [`Grant`]. A request whose key fails is still
    /// refused.
    pub fn optional(self) -> Self {
        self.with(|settings| settings.optional = true)
    }

    /// Lets CORS preflights through without a key: `OPTIONS` requests with `Origin` and
    /// `Access-Control-Request-Method`. Browsers never send a key on a preflight.
    ///
    /// Off by default: anybody can send a preflight, and a handler of all methods would serve it. Prefer
    /// a layer around this one that answers preflights (`tower_http`'s `CorsLayer`). Preflights then
    /// never reach this layer, and browsers may read refusals too.
    pub fn allow_preflight(self) -> Self {
        self.with(|settings| settings.preflights_pass = true)
    }

    /// Sets the proxies that are trusted to state the client's address, for keys with an address
    /// allowlist. Defaults to none: the client is the peer of the socket.
    pub fn trusted_proxies(self, proxies: TrustedProxies) -> Self {
        self.with(|settings| settings.proxies = Some(proxies))
    }

    /// Sets a function that finds the peer's address in a request's extensions, for servers with a
    /// type of their own, such as tonic. Defaults to [`PeerAddr`](super::PeerAddr) and, with
    /// feature `axum`, axum's `ConnectInfo<SocketAddr>`. If the address is unknown, keys with an
    /// allowlist are refused.
    pub fn peer_addr(
        self,
        peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.peer = Some(Arc::new(peer)))
    }

    /// Calls `check` once for every request that would otherwise pass. If `check` returns
    /// [`LimitReached`], the client gets 429 with `Retry-After`. Defaults to no limiter.
    ///
    /// `check` gets the request as the inner service would, without the [`Grant`] in its extensions.
    /// `check` is not called for a request that is refused or that passes without a key, so these
    /// requests use up no allowance. An extractor runs after `check`. `check` must not block, because the
    /// request waits for it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Mutex, PoisonError};
    /// use std::time::Duration;
    ///
    /// use keyward::{Clock, KeyId, Keyward};
    /// use keyward::http::{KeywardLayer, LimitReached};
    /// use keyward::time::SystemClock;
    ///
    /// /// Ten requests a second of each key, evenly. Holds nothing for keys that never were.
    /// #[derive(Default)]
    /// struct Pace(Mutex<HashMap<KeyId, Duration>>);
    ///
    /// impl Pace {
    ///     const EVERY: Duration = Duration::from_millis(100);
    ///
    ///     fn check(&self, key: KeyId) -> Result<(), LimitReached> {
    ///         let now = SystemClock.monotonic();
    ///         let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
    ///         let next = all.entry(key).or_insert(now);
    ///         if *next > now {
    ///             return Err(LimitReached::new(*next - now));
    ///         }
    ///         *next = now + Self::EVERY;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// fn layer(keys: Keyward) -> KeywardLayer {
    ///     let pace = Pace::default();
    ///     KeywardLayer::new(keys).rate_limit(move |grant, _| pace.check(grant.key_id()))
    /// }
    /// # let _ = layer;
    /// ```
    pub fn rate_limit(
        self,
        check: impl Fn(&Grant, &Parts) -> Result<(), LimitReached> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.limit = Some(Arc::new(check)))
    }

    /// Sets the `realm` of challenges: the name that people use for this part of the service. Up to
    /// 128 bytes. Defaults to none, and to `API keys` for Basic, which needs a realm.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for anything but printable ASCII without `"` and `\`.
    pub fn realm(self, realm: &str) -> Result<Self, Invalid> {
        let realm = Realm::new(realm)?;
        Ok(self.with(|settings| settings.manner.realm = Some(realm)))
    }

    /// Sets the prefix of problem types; [`AuthError::code`] follows the prefix. The prefix may be a page of
    /// the service's documentation: `https://api.example.com/problems/`. Defaults to
    /// `urn:problem-type:keyward:`.
    pub fn problem_types(self, prefix: impl Into<Cow<'static, str>>) -> Self {
        let prefix = prefix.into();
        self.with(|settings| settings.manner.problem_types = prefix)
    }

    /// Sets the `Retry-After` of refusals while keys cannot be verified, in whole seconds, at least
    /// one. Defaults to one second, a judgement. A refusal by [`rate_limit`](Self::rate_limit) has a
    /// `Retry-After` of its own.
    pub fn retry_after(self, pause: Duration) -> Self {
        self.with(|settings| settings.manner.retry_after = pause)
    }

    /// Sets a function that changes a refusal's response before it is sent.
    pub fn on_refusal(
        self,
        change: impl Fn(&AuthError, &Parts, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.on_refusal = Some(Arc::new(change)))
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }

    /// Decides whether a request may pass: the first half of the layer, for frameworks without
    /// tower. A request that passes carries the layer's extensions. Returns `None` if it passes
    /// without a key ([`optional`](Self::optional), [`allow_preflight`](Self::allow_preflight)).
    /// Reads the store only as [`Keyward::verify_or_fetch`] does.
    ///
    /// # Errors
    ///
    /// [`AuthError`]; answer it with [`respond`](Self::respond).
    pub async fn authenticate(&self, request: &mut Parts) -> Result<Option<Grant>, AuthError> {
        let verdict = match admission::decide(&self.settings, request) {
            Admission::Done(verdict) => verdict,
            Admission::NeedsStore(pending) => pending.verdict(&self.settings).await,
        };
        let grant = match &verdict {
            Ok(Some(authorized)) => Some(authorized.grant.clone()),
            _ => None,
        };
        admission::admit(&self.settings, verdict, request)?;
        Ok(grant)
    }

    /// Returns the response to a refusal: the second half of the layer.
    #[must_use]
    pub fn respond(&self, refusal: &AuthError, request: &Parts) -> Response<Bytes> {
        self.settings.respond(refusal, request)
    }

    /// Returns the value of `Vary` for the answers to requests that passed. The tower service adds this
    /// header. Without tower, append it to each answer: a shared cache would otherwise serve an answer
    /// to `X-API-Key` to other clients. Mark the answer to a key in the query `private` as well.
    #[must_use]
    pub fn vary(&self) -> Option<&HeaderValue> {
        self.settings.vary.as_ref()
    }
}

impl<S> tower_layer::Layer<S> for KeywardLayer {
    type Service = KeywardService<S>;

    fn layer(&self, inner: S) -> KeywardService<S> {
        KeywardService::new(self.settings.clone(), inner)
    }
}
