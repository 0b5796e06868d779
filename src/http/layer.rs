//! The layer: what it asks of requests, and its two halves. How one request is decided stands in
//! `admission`.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Extensions, Response};

use super::admission::Begun;
use super::proxies::TrustedProxies;
use super::refusal::{self, LimitReached, Manner, Realm, Refusal};
use super::service::KeywardService;
use super::sources::Sources;
use super::tenant_path::TenantPath;
use crate::core::invalid::Invalid;
use crate::core::need::Need;
use crate::core::tenant::TenantId;
use crate::keyward::Keyward;
use crate::verifier::Grant;

/// Lets only requests with a fitting API key through: a [`tower_layer::Layer`] over `http` types.
///
/// What gets through has the [`Grant`] in its extensions. What does not is answered here and never
/// reaches the inner service. Made once and cloned for each route that needs something else: a clone
/// is one count.
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
/// let layer = KeywardLayer::new(keys).require(Need::scope("reports:read"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct KeywardLayer {
    pub(super) settings: Arc<Settings>,
}

type TenantFrom = Arc<dyn Fn(&Parts) -> Option<TenantId> + Send + Sync>;
type PeerFrom = Arc<dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync>;
type Limit = Arc<dyn Fn(&Grant, &Parts) -> Result<(), LimitReached> + Send + Sync>;
type OnRefusal = Arc<dyn Fn(&Refusal, &Parts, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) keys: Keyward,
    pub(super) need: Need,
    pub(super) sources: Sources,
    pub(super) vary: Option<HeaderValue>,
    pub(super) tenant: Option<TenantFrom>,
    pub(super) peer: Option<PeerFrom>,
    pub(super) proxies: Option<TrustedProxies>,
    pub(super) optional: bool,
    pub(super) preflights_pass: bool,
    pub(super) limit: Option<Limit>,
    pub(super) manner: Manner,
    pub(super) on_refusal: Option<OnRefusal>,
}

impl KeywardLayer {
    /// Any secret key that verifies, from the default [`Sources`].
    pub fn new(keys: Keyward) -> Self {
        let settings = Settings {
            keys,
            need: Need::any(),
            sources: Sources::none(),
            vary: None,
            tenant: None,
            peer: None,
            proxies: None,
            optional: false,
            preflights_pass: false,
            limit: None,
            manner: Manner::default(),
            on_refusal: None,
        };
        let settings = Arc::new(settings);
        Self { settings }.sources(Sources::default())
    }

    /// Sets what a key is needed for: scopes, class, environment. Defaults to [`Need::any`].
    ///
    /// A need that is malformed lets nothing through, and is logged here.
    pub fn require(self, need: Need) -> Self {
        if let Some(invalid) = need.invalid() {
            tracing::error!(%invalid, "malformed need: every request will be refused");
        }
        self.with(|settings| settings.need = need)
    }

    /// Sets where a request may carry its key.
    pub fn sources(self, sources: Sources) -> Self {
        self.with(|settings| {
            settings.vary = refusal::vary(&sources);
            settings.sources = sources;
        })
    }

    /// Needs a key that reaches the tenant in the request's path, which the request then carries as
    /// [`RequestTenant`](super::RequestTenant). The path is the one that the layer sees: below a
    /// router that strips a prefix (axum's `nest`), it begins after it.
    pub fn tenant_in_path(self, path: TenantPath) -> Self {
        self.tenant_from(move |request| path.tenant(request.uri.path()))
    }

    /// Needs a key that reaches the tenant that this finds in the request: a part of the host name,
    /// say. A request in which it finds none is refused with 403, whatever the key.
    pub fn tenant_from(
        self,
        tenant: impl Fn(&Parts) -> Option<TenantId> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.tenant = Some(Arc::new(tenant)))
    }

    /// Lets requests without a key through, without a [`Grant`]. One that carries a key is refused
    /// as ever if that does not do.
    pub fn optional(self) -> Self {
        self.with(|settings| settings.optional = true)
    }

    /// Lets CORS preflights through without a key: `OPTIONS` with `Origin` and
    /// `Access-Control-Request-Method`, on which browsers never send one.
    ///
    /// Off by default, since anybody can send such a request and a handler of all methods would serve
    /// it. Better put the layer that answers preflights (`tower_http`'s `CorsLayer`) around this one:
    /// then they do not come here, and browsers may read refusals too.
    pub fn pass_preflights(self) -> Self {
        self.with(|settings| settings.preflights_pass = true)
    }

    /// Sets whose word on the client's address is taken, for keys that may be used from some
    /// addresses only. Defaults to nobody's: the client is the peer of the socket.
    pub fn trust(self, proxies: TrustedProxies) -> Self {
        self.with(|settings| settings.proxies = Some(proxies))
    }

    /// Sets where the peer's address is found in a request's extensions: for servers that put it
    /// there in a type of their own, such as tonic. Defaults to [`PeerAddr`](super::PeerAddr) and, with
    /// feature `axum`, axum's `ConnectInfo<SocketAddr>`. Without an address, keys with an allowlist are
    /// refused.
    pub fn peer_from(
        self,
        peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.peer = Some(Arc::new(peer)))
    }

    /// Has a limiter of the service's own asked, once for each request that would otherwise get
    /// through; at [`LimitReached`] it is refused with 429 and `Retry-After`. Defaults to none.
    ///
    /// The request is as the inner service would get it, without the [`Grant`] in its extensions. One
    /// whose key does not do for it never comes to the limiter, and so spends nothing; nor does one
    /// that passes without a key. What only an extractor refuses has come to it before. It must not
    /// block: requests wait for it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Mutex, PoisonError};
    /// use std::time::Duration;
    ///
    /// use keyward::http::{KeywardLayer, LimitReached};
    /// use keyward::{Clock, KeyId, Keyward, SystemClock};
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
    ///     KeywardLayer::new(keys).limit(move |grant, _| pace.check(grant.key_id()))
    /// }
    /// # let _ = layer;
    /// ```
    pub fn limit(
        self,
        check: impl Fn(&Grant, &Parts) -> Result<(), LimitReached> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.limit = Some(Arc::new(check)))
    }

    /// Sets the `realm` of challenges: what a person calls the part of the service that asks for a
    /// key. Up to 128 bytes. Defaults to none, and for Basic, which needs one, to `API keys`.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for anything but printable ASCII without `"` and `\`.
    pub fn realm(self, realm: &str) -> Result<Self, Invalid> {
        let realm = Realm::new(realm)?;
        Ok(self.with(|settings| settings.manner.realm = Some(realm)))
    }

    /// Sets what the types of problems begin with; [`Refusal::code`] follows. A page of the service's
    /// own documentation, say: `https://api.example.com/problems/`. Defaults to
    /// `urn:problem-type:keyward:`.
    pub fn problem_types(self, prefix: impl Into<Cow<'static, str>>) -> Self {
        let prefix = prefix.into();
        self.with(|settings| settings.manner.problem_types = prefix)
    }

    /// Sets after how long a client may try again (`Retry-After`, whole seconds, at least one) when
    /// keys cannot be verified. Defaults to one second, a judgement. A [`limit`](Self::limit) tells its
    /// own.
    pub fn retry_after(self, pause: Duration) -> Self {
        self.with(|settings| settings.manner.retry_after = pause)
    }

    /// Has refusals changed before they are sent: their body, their headers, anything.
    pub fn on_refusal(
        self,
        change: impl Fn(&Refusal, &Parts, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.on_refusal = Some(Arc::new(change)))
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }

    /// The first half of the layer, for frameworks without tower: whether the request may pass. If it
    /// does, its extensions hold what the layer puts there. `None` if it passes without a key
    /// ([`optional`](Self::optional), [`pass_preflights`](Self::pass_preflights)). Asks the store only
    /// where this node cannot tell: see [`Keyward::verify_or_fetch`].
    ///
    /// # Errors
    ///
    /// [`Refusal`], to be answered with [`respond`](Self::respond).
    pub async fn authenticate(&self, request: &mut Parts) -> Result<Option<Grant>, Refusal> {
        let verdict = match self.begin(request) {
            Begun::Settled(verdict) => verdict,
            Begun::Asking(asking) => asking.verdict(self).await,
        };
        let grant = match &verdict {
            Ok(Some(passed)) => Some(passed.grant.clone()),
            _ => None,
        };
        self.admit(verdict, request)?;
        Ok(grant)
    }

    /// The second half: how a refusal is answered.
    #[must_use]
    pub fn respond(&self, refusal: &Refusal, request: &Parts) -> Response<Bytes> {
        let settings = &*self.settings;
        let how = (&settings.manner, &settings.sources);
        let mut answer = refusal::answer(refusal, how, request);
        if let Some(change) = &settings.on_refusal {
            answer = change(refusal, request, answer);
        }
        refusal::without_body_for_head(request, answer)
    }

    /// The headers on which the answer to a request that passed depends, as `Vary` names them. A service
    /// does it by itself; without tower, append it to the answer, since a shared cache would hand out
    /// what was asked for with `X-API-Key`. An answer to a key in the query is to be `private` as well.
    #[must_use]
    pub fn vary(&self) -> Option<&HeaderValue> {
        self.settings.vary.as_ref()
    }
}

impl fmt::Debug for KeywardLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeywardLayer")
            .field("need", &self.settings.need)
            .field("sources", &self.settings.sources)
            .field("optional", &self.settings.optional)
            .finish_non_exhaustive()
    }
}

impl<S> tower_layer::Layer<S> for KeywardLayer {
    type Service = KeywardService<S>;

    fn layer(&self, inner: S) -> KeywardService<S> {
        KeywardService::new(self.clone(), inner)
    }
}
