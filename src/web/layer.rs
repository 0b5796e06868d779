//! [`KeywardLayer`]: the builder of a layer's settings, and two methods for frameworks without tower.
//!
//! The module `admission` decides whether a request may pass.

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
use crate::core::tenant::TenantId;
use crate::keyward::Keyward;
use crate::verifier::{Grant, Need};

/// A [`tower_layer::Layer`] that forwards only requests whose API key verifies and meets the layer's
/// [`Need`].
///
/// A forwarded request has the [`Grant`] in its extensions. The layer answers every other request itself,
/// without calling the inner service. Build one layer, and clone it for each route that needs other
/// conditions. A clone is cheap: it increments a reference count.
///
/// # Examples
///
/// ```
/// # pollster::block_on(async {
/// # use keyward::store::MemoryStore;
/// # use keyward::{Keyward, Need, PepperRing};
/// use keyward::web::KeywardLayer;
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
        self.with(|settings| settings.need = need.probing(true))
    }

    /// Sets the places of a request in which the layer looks for the key.
    pub fn sources(self, sources: CredentialSources) -> Self {
        self.with(|settings| {
            settings.vary = refusal::vary(&sources);
            settings.sources = sources;
        })
    }

    /// Requires a key that has access to the tenant in the request's path. The layer inserts this tenant into
    /// the extensions of a forwarded request, as [`RequestTenant`](super::RequestTenant).
    ///
    /// If a router removes a prefix of the path (axum's `nest`), the template must start after that prefix.
    pub fn tenant_in_path(self, path: TenantPath) -> Self {
        self.tenant_from(move |request| path.tenant(request.uri.path()))
    }

    /// Requires a key that has access to the tenant that `tenant` returns, for example from the host name. If
    /// `tenant` returns `None`, a request with a valid key gets 403.
    pub fn tenant_from(
        self,
        tenant: impl Fn(&Parts) -> Option<TenantId> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.tenant = Some(Arc::new(tenant)))
    }

    /// Forwards a request that has no key. Such a request has no [`Grant`] in its extensions. A request with
    /// a key that does not verify is still refused.
    pub fn optional(self) -> Self {
        self.with(|settings| settings.optional = true)
    }

    /// Forwards CORS preflights without a key: `OPTIONS` requests with `Origin` and
    /// `Access-Control-Request-Method`. Browsers never send a key with a preflight.
    ///
    /// Off by default: anybody can send a preflight, and a handler for all methods would serve it. Prefer to
    /// wrap this layer in `tower_http`'s `CorsLayer`. `CorsLayer` answers preflights itself, and allows
    /// scripts in browsers to read refusals.
    pub fn allow_preflight(self) -> Self {
        self.with(|settings| settings.allow_preflight = true)
    }

    /// Turns the layer on or off. A layer that is off forwards every request unchanged, with a key or without
    /// one. On by default.
    ///
    /// Use this method instead of `tower::util::option_layer`, which requires that the response has the same
    /// body type with the layer and without it. The responses of this layer have a body of their own,
    /// [`ResponseBody`](super::ResponseBody).
    ///
    /// The extractors of feature `axum` fail closed: behind a layer that is off, a handler that extracts the
    /// grant answers 500. A handler that extracts nothing serves everybody.
    pub fn enabled(self, enabled: bool) -> Self {
        self.with(|settings| settings.enabled = enabled)
    }

    /// Sets the proxies whose headers the layer trusts for the client's address. Keys with an address
    /// allowlist need this address. By default no proxy is trusted, and the socket's peer is the client.
    pub fn trusted_proxies(self, proxies: TrustedProxies) -> Self {
        self.with(|settings| settings.proxies = Some(proxies))
    }

    /// Sets the function that returns the peer's address from a request's extensions. For servers that store
    /// the address in a type of their own, such as tonic.
    ///
    /// Defaults to [`PeerAddr`](super::PeerAddr) and, with feature `axum`, axum's `ConnectInfo<SocketAddr>`.
    /// If the function returns `None`, keys with an address allowlist are refused, as
    /// [`NoPeerAddress`](AuthError::NoPeerAddress).
    pub fn peer_addr(
        self,
        peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.peer = Some(Arc::new(peer)))
    }

    /// Calls `check` once for every request with an accepted key. If `check` returns [`LimitReached`], the
    /// client gets 429 with `Retry-After`. Defaults to no limiter.
    ///
    /// `check` sees the request as the inner service would, except that the extensions hold no [`Grant`] yet.
    /// Clones of one layer that are stacked around a service ask `check` once for a request, key and tenant.
    /// Refused requests and requests without a key never reach `check`, so they use up no allowance.
    /// Extractors run after `check`. `check` must not block, because the request waits for it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Mutex, PoisonError};
    /// use std::time::Duration;
    ///
    /// use keyward::{Clock, KeyId, Keyward};
    /// use keyward::web::{KeywardLayer, LimitReached};
    /// use keyward::clocks::SystemClock;
    ///
    /// /// Allows each key one request per 100 ms.
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

    /// Sets the `realm` of `WWW-Authenticate` challenges, which names a part of the service. At most 128
    /// bytes.
    ///
    /// Without this setting, a Bearer challenge has no realm. A Basic challenge requires one, and has the
    /// realm `API keys`.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if `realm` is too long, or contains `"`, `\` or a character that is not printable ASCII.
    pub fn realm(self, realm: &str) -> Result<Self, Invalid> {
        let realm = Realm::new(realm)?;
        Ok(self.with(|settings| settings.refusals.realm = Some(realm)))
    }

    /// Sets the prefix of the `type` in problem details (RFC 9457). The layer appends [`AuthError::code`] to
    /// the prefix.
    ///
    /// The prefix may be a page of the service's documentation, such as `https://api.example.com/problems/`.
    /// Defaults to `urn:problem-type:keyward:`.
    pub fn problem_types(self, prefix: impl Into<Cow<'static, str>>) -> Self {
        let prefix = prefix.into();
        self.with(|settings| settings.refusals.problem_types = prefix)
    }

    /// Answers refused gRPC and gRPC-Web calls in the form that gRPC requires. The HTTP status is 200, and
    /// the refusal is in `grpc-status` and `grpc-message`. Use this setting only on routes that serve gRPC.
    ///
    /// Off by default, because the client chooses the content type, and so the form of the answer. On other
    /// routes, a proxy or an alert that looks at the HTTP status would take a refusal for a success.
    pub fn grpc(self) -> Self {
        self.with(|settings| settings.refusals.grpc = true)
    }

    /// Sets the `Retry-After` of two responses. The first is 503, if keys cannot be verified for now. The
    /// second is 429 during a flood of unknown keys ([`VerifyError::Busy`](crate::VerifyError::Busy)).
    ///
    /// The time is rounded up to whole seconds, at least one. Defaults to one second. A refusal by
    /// [`rate_limit`](Self::rate_limit) has its own `Retry-After`.
    pub fn retry_after(self, pause: Duration) -> Self {
        self.with(|settings| settings.refusals.retry_after = pause)
    }

    /// Sets a function that can change the response to a refused request before it is sent.
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

    /// Decides whether a request may pass, for frameworks without tower. If the request may pass, inserts the
    /// layer's extensions into it.
    ///
    /// Returns `None` if the request may pass without a key ([`optional`](Self::optional),
    /// [`allow_preflight`](Self::allow_preflight)), or if the layer is [off](Self::enabled). Reads the store in the same cases as
    /// [`Keyward::verify_or_fetch`].
    ///
    /// # Errors
    ///
    /// [`AuthError`] if the request is refused. Send the response that [`respond`](Self::respond) returns.
    pub async fn authenticate(&self, request: &mut Parts) -> Result<Option<Grant>, AuthError> {
        if !self.settings.enabled {
            return Ok(None);
        }
        admission::prepare(&self.settings, request);
        let verdict = match admission::decide(&self.settings, request, false) {
            Admission::Done(verdict) => verdict,
            Admission::NeedsStore(pending) => pending.verdict(&self.settings).await,
        };
        let grant = match &verdict {
            Ok(Some(authorized)) => Some(authorized.grant.clone()),
            _ => None,
        };
        admission::admit(&self.settings, verdict, request, false)?;
        Ok(grant)
    }

    /// Returns the response to a refused request, for frameworks without tower.
    #[must_use]
    pub fn respond(&self, refusal: &AuthError, request: &Parts) -> Response<Bytes> {
        self.settings.respond(refusal, request)
    }

    /// Returns the `Vary` header for responses to accepted requests. `None` if the layer reads the key from
    /// no header, or is [off](Self::enabled).
    ///
    /// The tower service adds this header itself. A framework without tower must append it to each response.
    /// Otherwise a shared cache could serve the response for one key to another client.
    ///
    /// If the key was in the query, also set `Cache-Control: private`.
    #[must_use]
    pub fn vary(&self) -> Option<&HeaderValue> {
        self.settings
            .vary
            .as_ref()
            .filter(|_| self.settings.enabled)
    }
}

impl<S> tower_layer::Layer<S> for KeywardLayer {
    type Service = KeywardService<S>;

    fn layer(&self, inner: S) -> KeywardService<S> {
        KeywardService::new(self.settings.clone(), inner)
    }
}
