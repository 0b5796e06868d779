//! The layer: which key a request carries, whether it does for the request, and what becomes of it.
//!
//! Whatever is asked of a key goes through [`Need`] and the verifier; here is only what is HTTP's own.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, Entry, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use http::request::Parts;
use http::{Extensions, Method, Response};

use super::proxies::TrustedProxies;
use super::refusal::{self, Manner, Realm, Refusal};
use super::service::KeywardService;
use super::sources::{self, Credentials, Found, Sources};
use super::tenant_path::TenantPath;
use crate::core::id::KeyId;
use crate::core::invalid::Invalid;
use crate::core::need::Need;
use crate::core::rejection::Rejection;
use crate::core::tenant::TenantId;
use crate::keyward::Keyward;
use crate::observe;
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
    settings: Arc<Settings>,
}

/// The address from which a request came, as the socket tells it: to be put into the extensions of a
/// request by whoever accepts connections.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PeerAddr(pub IpAddr);

/// The tenant that the path or [`KeywardLayer::tenant_from`] named and that the key was found to
/// reach. In the extensions of a request that got through: act on this one, so that nothing reads the
/// path in another way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestTenant(pub TenantId);

type TenantFrom = Arc<dyn Fn(&Parts) -> Option<TenantId> + Send + Sync>;
type PeerFrom = Arc<dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync>;
type OnRefusal = Arc<dyn Fn(&Refusal, &Parts, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

#[derive(Clone)]
struct Settings {
    keys: Keyward,
    need: Need,
    sources: Sources,
    vary: Option<HeaderValue>,
    tenant: Option<TenantFrom>,
    peer: Option<PeerFrom>,
    proxies: Option<TrustedProxies>,
    optional: bool,
    preflights_pass: bool,
    manner: Manner,
    on_refusal: Option<OnRefusal>,
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
    /// [`RequestTenant`]. The path is the one that the layer sees: below a router that strips a
    /// prefix (axum's `nest`), it begins after it.
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
    /// there in a type of their own, such as tonic. Defaults to [`PeerAddr`] and, with feature `axum`,
    /// axum's `ConnectInfo<SocketAddr>`. Without an address, keys with an allowlist are refused.
    pub fn peer_from(
        self,
        peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.peer = Some(Arc::new(peer)))
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
    /// keys cannot be verified. Defaults to one second, a judgement.
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

    /// Verifies as far as the store need not be asked.
    pub(super) fn begin(&self, request: &Parts) -> Begun {
        let settings = &*self.settings;
        if settings.preflights_pass && is_preflight(request) {
            return Begun::Settled(Ok(None));
        }
        let found = sources::find(&settings.sources, &request.headers, request.uri.query());
        let Found {
            credentials,
            in_query,
        } = match found {
            Ok(Some(found)) => found,
            Ok(None) if settings.optional => return Begun::Settled(Ok(None)),
            Ok(None) => return Begun::Settled(Err(Refusal::Missing)),
            Err(unclear) => return Begun::Settled(Err(unclear.into())),
        };
        let tenant = match &settings.tenant {
            Some(find) => Tenant::of(find(request)),
            None => Tenant::Any,
        };
        let need = match &tenant {
            Tenant::Named(tenant) => Cow::Owned(settings.need.clone().for_tenant(tenant.clone())),
            Tenant::Any | Tenant::Unknown => Cow::Borrowed(&settings.need),
        };
        let asking = |credentials: Credentials<'_>, need: Cow<'_, Need>, tenant| {
            let (credentials, need) = (credentials.into_owned(), need.into_owned());
            Begun::Asking(Box::new(Asking {
                credentials,
                need,
                tenant,
                in_query,
            }))
        };
        let verdict = match self.verify(&credentials, &need) {
            // Few keys care, so that the address is looked for only then.
            Some(Err(Rejection::AddressNotAllowed { key })) => match self.client(request) {
                None => Some(Err(Rejection::AddressNotAllowed { key })),
                Some(client) => {
                    let need = need.clone().into_owned().from_address(client);
                    let verdict = self.verify(&credentials, &need);
                    if verdict.is_none() {
                        return asking(credentials, Cow::Owned(need), tenant);
                    }
                    verdict
                }
            },
            None => {
                let need = match self.client(request) {
                    Some(client) => Cow::Owned(need.into_owned().from_address(client)),
                    None => need,
                };
                return asking(credentials, need, tenant);
            }
            settled => settled,
        };
        match verdict {
            Some(verdict) => Begun::Settled(tenant.pass(verdict, in_query)),
            None => asking(credentials, need, tenant),
        }
    }

    /// Puts what a request that passes carries into its extensions, and tells how it ended.
    pub(super) fn admit(&self, verdict: Verdict, request: &mut Parts) -> Result<Admitted, Refusal> {
        match verdict {
            Ok(passed) => Ok(self.accept(passed, request)),
            Err(refusal) => {
                report(&refusal);
                Err(refusal)
            }
        }
    }

    fn accept(&self, passed: Option<Passed>, request: &mut Parts) -> Admitted {
        let settings = &*self.settings;
        if settings.sources.bearer || settings.sources.basic {
            mark_sensitive(&mut request.headers, &AUTHORIZATION);
        }
        if let Some(name) = &settings.sources.header {
            mark_sensitive(&mut request.headers, name);
        }
        #[cfg(feature = "axum")]
        request.extensions.insert(Around(self.clone()));
        let Some(passed) = passed else {
            observe::http_request("anonymous");
            return Admitted {
                span: tracing::Span::none(),
                in_query: false,
            };
        };
        observe::http_request("accepted");
        let Passed {
            grant,
            tenant,
            in_query,
        } = passed;
        let span = tracing::info_span!(
            "api_key",
            key_id = %grant.key_id(),
            tenant = %grant.tenant(),
        );
        if let Some(tenant) = tenant {
            request.extensions.insert(RequestTenant(tenant));
        }
        request.extensions.insert(grant);
        Admitted { span, in_query }
    }

    /// The headers on which the answer to a request that passed depends.
    pub(super) fn vary(&self) -> Option<&HeaderValue> {
        self.settings.vary.as_ref()
    }

    fn verify(
        &self,
        credentials: &Credentials<'_>,
        need: &Need,
    ) -> Option<Result<Grant, Rejection>> {
        let verifier = self.settings.keys.verifier();
        match credentials {
            Credentials::Key(key) => verifier.verify_unasked(key.as_ref(), need),
            Credentials::Pair { other, secret } => {
                verifier.verify_pair_unasked(other.as_ref(), secret.as_ref(), need)
            }
        }
    }

    /// The client's address, as far as it can be told.
    fn client(&self, request: &Parts) -> Option<IpAddr> {
        let settings = &*self.settings;
        let peer = match &settings.peer {
            Some(find) => find(&request.extensions),
            None => peer(&request.extensions),
        }?;
        match &settings.proxies {
            Some(proxies) => proxies.client(peer, &request.headers),
            None => Some(peer.to_canonical()),
        }
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

/// The layer that a request passed: for extractors, which answer as it does.
#[derive(Clone)]
#[cfg_attr(
    not(feature = "axum"),
    expect(dead_code, reason = "only extractors ask")
)]
pub(super) struct Around(pub(super) KeywardLayer);

/// Whether a request may pass, and with what; `None` without a key.
pub(super) type Verdict = Result<Option<Passed>, Refusal>;

/// What a request passes with.
pub(super) struct Passed {
    grant: Grant,
    tenant: Option<TenantId>,
    in_query: bool,
}

/// What is left to do for a request that passed.
pub(super) struct Admitted {
    pub(super) span: tracing::Span,
    pub(super) in_query: bool,
}

/// How far a verification got without the store.
pub(super) enum Begun {
    Settled(Verdict),
    Asking(Box<Asking>),
}

/// A verification that needs the store. Borrows nothing of the request.
pub(super) struct Asking {
    credentials: Credentials<'static>,
    need: Need,
    tenant: Tenant,
    in_query: bool,
}

impl Asking {
    pub(super) async fn verdict(self: Box<Self>, layer: &KeywardLayer) -> Verdict {
        let Self {
            credentials,
            need,
            tenant,
            in_query,
        } = *self;
        let keys = &layer.settings.keys;
        let verdict = match &credentials {
            Credentials::Key(key) => keys.verify_or_fetch(key, &need).await,
            Credentials::Pair { other, secret } => {
                keys.verify_pair_or_fetch(other, secret, &need).await
            }
        };
        tenant.pass(verdict, in_query)
    }
}

/// The tenant that a request is for.
enum Tenant {
    /// It is not asked for.
    Any,
    Named(TenantId),
    /// It is asked for, and the request names none.
    Unknown,
}

impl Tenant {
    fn of(found: Option<TenantId>) -> Self {
        found.map_or(Self::Unknown, Self::Named)
    }

    fn pass(self, verdict: Result<Grant, Rejection>, in_query: bool) -> Verdict {
        let grant = verdict?;
        let tenant = match self {
            Self::Any => None,
            Self::Named(tenant) => Some(tenant),
            Self::Unknown => {
                let key = grant.key_id();
                return Err(Refusal::NoTenant { key });
            }
        };
        Ok(Some(Passed {
            grant,
            tenant,
            in_query,
        }))
    }
}

/// A request that asks what a browser may send (Fetch, "CORS-preflight request").
fn is_preflight(request: &Parts) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(ORIGIN)
        && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Keeps a header's values out of `Debug` and of HTTP/2's compression tables.
fn mark_sensitive(headers: &mut HeaderMap, name: &HeaderName) {
    if !headers.contains_key(name) {
        return;
    }
    if let Entry::Occupied(mut values) = headers.entry(name) {
        values
            .iter_mut()
            .for_each(|value| value.set_sensitive(true));
    }
}

fn peer(extensions: &Extensions) -> Option<IpAddr> {
    let own = extensions.get::<PeerAddr>().map(|peer| peer.0);
    #[cfg(feature = "axum")]
    let own = own.or_else(|| {
        let info = extensions.get::<axum::extract::ConnectInfo<std::net::SocketAddr>>();
        info.map(|info| info.0.ip())
    });
    own
}

/// Tells the log and the counters of a refusal. An outage and what happens to a key whose secret was
/// presented are rare; the rest anybody can cause as often as they like.
pub(super) fn report(refusal: &Refusal) {
    observe::http_request(refusal.code());
    let (code, key) = (refusal.code(), refusal.key());
    let key = key.as_ref().map(tracing::field::display::<&KeyId>);
    match refusal.status().is_server_error() {
        true => tracing::warn!(code, key, reason = %refusal, "request refused"),
        false if key.is_some() => tracing::info!(code, key, reason = %refusal, "request refused"),
        false => tracing::debug!(code, reason = %refusal, "request refused"),
    }
}
