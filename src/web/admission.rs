//! Decides about one request: finds its key, verifies the key, and forwards or refuses the request.
//!
//! The verifier checks every condition on a key: this module passes the conditions to it as a [`Need`]. The
//! module itself only translates between HTTP and the verifier.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, Entry, HeaderMap, HeaderName, ORIGIN,
};
use http::request::Parts;
use http::{Extensions, Method, StatusCode};
use zeroize::Zeroizing;

use super::outcome;
use super::refusal::AuthError;
use super::settings::{Limit, Settings};
use super::sources::{self, RequestCredentials};
use crate::core::need::Need;
use crate::core::rejection::VerifyError;
use crate::core::tenant::TenantId;
use crate::observe::WithSources;
use crate::verifier::{Grant, Verifier};

/// The address of the socket's peer. The server code that accepts connections must insert this value into the
/// extensions of each request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PeerAddr(pub IpAddr);

/// The tenant of a request, from [`tenant_in_path`](super::KeywardLayer::tenant_in_path) or
/// [`tenant_from`](super::KeywardLayer::tenant_from). The request's key has access to this tenant.
///
/// The layer inserts this value into the extensions of every request that it forwards. Use this value instead
/// of parsing the path again: a second parser could interpret the path differently.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestTenant(pub TenantId);

/// Prepares a request for this layer and for everything behind it. Removes the results of outer layers. Hides
/// the key: marks the key's headers as sensitive, and removes the key's parameter from the URI.
pub(super) fn prepare(settings: &Settings, request: &mut Parts) {
    request.extensions.remove::<Grant>();
    request.extensions.remove::<RequestTenant>();
    let sources = &settings.sources;
    if sources.bearer || sources.basic {
        mark_sensitive(&mut request.headers, &AUTHORIZATION);
    }
    if let Some(name) = &sources.header {
        mark_sensitive(&mut request.headers, name);
    }
    if let Some(parameter) = &sources.query {
        hide_parameter(request, parameter);
    }
}

/// Removes a parameter from the request's URI. The full query stays readable for inner layers.
fn hide_parameter(request: &mut Parts, parameter: &str) {
    let Some(without) = sources::uri_without(&request.uri, parameter) else {
        return;
    };
    let full = std::mem::replace(&mut request.uri, without);
    #[cfg(feature = "axum")]
    if let Some(original) = request.extensions.get_mut::<axum::extract::OriginalUri>()
        && let Some(without) = sources::uri_without(&original.0, parameter)
    {
        original.0 = without;
    }
    // An outer layer may have removed another parameter, and stored the query that has both.
    if request.extensions.get::<FullQuery>().is_none()
        && let Some(query) = full.query()
    {
        let query = Zeroizing::new(query.to_owned());
        request.extensions.insert(FullQuery(Arc::new(query)));
    }
}

/// The full query of a request, stored because a layer has removed the key's parameter from the URI.
#[derive(Clone)]
struct FullQuery(Arc<Zeroizing<String>>);

/// The credentials that layers around the same service have already accepted for one request. An inner layer
/// verifies the key again. But it does not count the use again, and does not call the same rate limiter
/// again.
#[derive(Clone, Default)]
struct AcceptedCredentials(Vec<AcceptedByLayer>);

#[derive(Clone)]
struct AcceptedByLayer {
    credentials: CredentialsHash,
    /// The rate limiter that the accepting layer has called. `None` if the layer has none.
    limit: Option<Limit>,
    /// The tenant of the request when the limiter was asked.
    tenant: Option<TenantId>,
}

impl AcceptedCredentials {
    fn of(request: &Parts) -> &[AcceptedByLayer] {
        request
            .extensions
            .get::<Self>()
            .map_or(&[], |accepted| &accepted.0)
    }
}

/// A keyed hash of the credentials, and of the address of the verifier. Two layers compare their hashes for
/// the same request. The hash reveals nothing about the credentials.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct CredentialsHash(u64);

impl CredentialsHash {
    fn of(settings: &Settings, credentials: &RequestCredentials<'_>) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let verifier: *const Verifier = settings.keys.verifier();
        let (key, public) = credentials.as_credentials().halves();
        Self(KEY.hash_one((verifier.addr(), key, public)))
    }
}

/// Verifies a request as far as possible without reading the store. With `again`, the request was verified
/// before, and its key's use is already counted.
pub(super) fn decide(settings: &Settings, request: &Parts, again: bool) -> Admission {
    if settings.allow_preflight && is_preflight(request) {
        return Admission::Done(Ok(None));
    }
    let full = request.extensions.get::<FullQuery>();
    let query = full.map(|full| full.0.as_str()).or(request.uri.query());
    let found = sources::find(&settings.sources, &request.headers, query);
    let credentials = match found {
        Ok(Some(credentials)) => credentials,
        Ok(None) if settings.optional => return Admission::Done(Ok(None)),
        Ok(None) => return Admission::Done(Err(AuthError::Missing)),
        Err(unclear) => return Admission::Done(Err(unclear.into())),
    };
    let tenant = match &settings.tenant {
        Some(find) => TenantLookup::of(find(request)),
        None => TenantLookup::Off,
    };
    let mut need = match &tenant {
        TenantLookup::Found(tenant) => Cow::Owned(settings.need.clone().for_tenant(tenant.clone())),
        TenantLookup::Off | TenantLookup::NotFound => Cow::Borrowed(&settings.need),
    };
    let hash = CredentialsHash::of(settings, &credentials);
    let accepted = AcceptedCredentials::of(request);
    if again || accepted.iter().any(|outer| outer.credentials == hash) {
        need = Cow::Owned(need.into_owned().without_counting());
    }
    let verifier = settings.keys.verifier();
    let mut verdict = verifier.verify_unasked(credentials.as_credentials(), &need);
    let mut unknown = None;
    // Determine the client's address only if the verdict may depend on it. Few keys have an address
    // allowlist, so this is rare.
    if let None | Some(Err(VerifyError::AddressUnknown { .. })) = &verdict {
        match client(settings, request) {
            Ok(client) => {
                need = Cow::Owned(need.into_owned().from_address(client));
                if verdict.is_some() {
                    verdict = verifier.verify_unasked(credentials.as_credentials(), &need);
                }
            }
            Err(why) => unknown = Some(why),
        }
    }
    match verdict {
        Some(verdict) => {
            let verdict = verdict.map_err(|refusal| explained(refusal, unknown));
            Admission::Done(tenant.authorize(verdict, (hash, credentials.in_query)))
        }
        None => Admission::NeedsStore(Box::new(PendingVerification {
            credentials: credentials.into_owned(),
            need: need.into_owned(),
            tenant,
            hash,
            unknown,
        })),
    }
}

/// Adds the reason why the client's address is unknown to a refusal for that.
fn explained(refusal: VerifyError, unknown: Option<UnknownClient>) -> AuthError {
    match (refusal, unknown) {
        (VerifyError::AddressUnknown { key }, Some(UnknownClient::NoPeer)) => {
            AuthError::NoPeerAddress { key }
        }
        (VerifyError::AddressUnknown { key }, Some(UnknownClient::Unreadable { peer, header })) => {
            AuthError::NoClientAddress { key, peer, header }
        }
        (refusal, _) => refusal.into(),
    }
}

/// Inserts the grant and the tenant into the extensions of an accepted request. Logs and counts a refusal.
pub(super) fn admit(
    settings: &Arc<Settings>,
    verdict: AdmissionResult,
    request: &mut Parts,
) -> Result<Forward, AuthError> {
    let forward = verdict.and_then(|authorized| forward(settings, authorized, request));
    forward.inspect_err(|refusal| report(settings, refusal, request))
}

fn forward(
    settings: &Arc<Settings>,
    authorized: Option<Authorized>,
    request: &mut Parts,
) -> Result<Forward, AuthError> {
    #[cfg(feature = "axum")]
    request.extensions.insert(LayerSettings(settings.clone()));
    let Some(authorized) = authorized else {
        outcome::anonymous(request);
        return Ok(Forward {
            span: tracing::Span::none(),
            in_query: false,
        });
    };
    let Authorized {
        grant,
        tenant,
        hash,
        in_query,
    } = authorized;
    if let Some(tenant) = tenant {
        request.extensions.insert(RequestTenant(tenant));
    }
    let by_outer = |outer: &&AcceptedByLayer| outer.credentials == hash;
    let outer: Vec<_> = AcceptedCredentials::of(request)
        .iter()
        .filter(by_outer)
        .cloned()
        .collect();
    let tenant = request.extensions.get::<RequestTenant>();
    let tenant = tenant.map(|tenant| tenant.0.clone());
    let asked = |limit: &Limit| {
        let asked = outer.iter().filter(|outer| outer.tenant == tenant);
        let mut asked = asked.filter_map(|outer| outer.limit.as_ref());
        asked.any(|own| Arc::ptr_eq(own, limit))
    };
    if let Some(limit) = settings.limit.as_ref().filter(|limit| !asked(limit))
        && let Err(reached) = limit(&grant, request)
    {
        // The request is refused, so remove the tenant that was inserted for it.
        request.extensions.remove::<RequestTenant>();
        return Err(AuthError::LimitReached {
            key: grant.key_id(),
            retry_after: reached.retry_after(),
        });
    }
    outcome::accepted(request, !outer.is_empty());
    let span = tracing::info_span!(
        "api_key",
        key_id = %grant.key_id(),
        tenant = %grant.tenant(),
    );
    let limit = settings.limit.clone();
    let own = AcceptedByLayer {
        credentials: hash,
        limit,
        tenant,
    };
    request
        .extensions
        .get_or_insert_default::<AcceptedCredentials>()
        .0
        .push(own);
    request.extensions.insert(grant);
    Ok(Forward { span, in_query })
}

/// The reason why the client's address is unknown.
enum UnknownClient {
    /// The request's extensions hold no address of the socket's peer.
    NoPeer,
    /// The header of the trusted proxies has an entry that is no address.
    Unreadable { peer: IpAddr, header: HeaderName },
}

/// Returns the client's address.
fn client(settings: &Settings, request: &Parts) -> Result<IpAddr, UnknownClient> {
    let peer = match &settings.peer {
        Some(find) => find(&request.extensions),
        None => peer(&request.extensions),
    };
    let peer = peer.ok_or(UnknownClient::NoPeer)?;
    let Some(proxies) = &settings.proxies else {
        return Ok(peer);
    };
    let header = proxies.header();
    let client = proxies.client(peer, &request.headers);
    client.ok_or(UnknownClient::Unreadable { peer, header })
}

/// The settings of the layer that forwarded the request. An extractor uses them to answer a refused request
/// as the layer would.
#[cfg(feature = "axum")]
#[derive(Clone)]
pub(super) struct LayerSettings(pub(super) Arc<Settings>);

/// The decision about a request. `Ok(None)` if the request may pass without a key.
pub(super) type AdmissionResult = Result<Option<Authorized>, AuthError>;

/// A verified key that may be used for the request.
pub(super) struct Authorized {
    pub(super) grant: Grant,
    tenant: Option<TenantId>,
    hash: CredentialsHash,
    in_query: bool,
}

/// The data that the service needs to forward an accepted request.
pub(super) struct Forward {
    pub(super) span: tracing::Span,
    pub(super) in_query: bool,
}

/// The result of [`decide`], which does not read the store.
pub(super) enum Admission {
    Done(AdmissionResult),
    NeedsStore(Box<PendingVerification>),
}

/// A verification that must read the store. Borrows nothing from the request.
pub(super) struct PendingVerification {
    credentials: RequestCredentials<'static>,
    need: Need,
    tenant: TenantLookup,
    hash: CredentialsHash,
    unknown: Option<UnknownClient>,
}

impl PendingVerification {
    pub(super) async fn verdict(self: Box<Self>, settings: &Settings) -> AdmissionResult {
        let Self {
            credentials,
            need,
            tenant,
            hash,
            unknown,
        } = *self;
        let keys = &settings.keys;
        let verdict = keys
            .verify_or_fetch(credentials.as_credentials(), &need)
            .await
            .map_err(|refusal| explained(refusal, unknown));
        tenant.authorize(verdict, (hash, credentials.in_query))
    }
}

/// The result of looking for the tenant in a request.
enum TenantLookup {
    /// The layer does not look for a tenant.
    Off,
    Found(TenantId),
    /// The layer looks for a tenant, and the request names none.
    NotFound,
}

impl TenantLookup {
    fn of(found: Option<TenantId>) -> Self {
        found.map_or(Self::NotFound, Self::Found)
    }

    fn authorize(
        self,
        verdict: Result<Grant, AuthError>,
        (hash, in_query): (CredentialsHash, bool),
    ) -> AdmissionResult {
        let grant = verdict?;
        let tenant = match self {
            Self::Off => None,
            Self::Found(tenant) => Some(tenant),
            Self::NotFound => {
                let key = grant.key_id();
                return Err(AuthError::NoTenant { key });
            }
        };
        Ok(Some(Authorized {
            grant,
            tenant,
            hash,
            in_query,
        }))
    }
}

/// Returns whether a request is a CORS preflight, as the Fetch standard defines it.
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

/// Records a refusal, and logs it at a level that depends on who can cause it.
///
/// Anybody can present a bad key, so such a refusal is logged at `debug`. A reached rate limit is also logged
/// at `debug`. Only the holder of a key can cause a line at `info`. Only an outage, or a bug in the service,
/// causes a line at `warn`. The verifier's [`LogSampler`](crate::observe::LogSampler) limits the number of lines at `info` and
/// `warn`.
pub(super) fn report(settings: &Settings, refusal: &AuthError, request: &Parts) {
    let (code, outcome) = (refusal.code(), refusal.outcome());
    outcome::refused(request, outcome);
    let verifier = settings.keys.verifier();
    let forgotten = matches!(refusal, AuthError::NoPeerAddress { .. });
    if refusal.status().is_server_error() || forgotten {
        if let Some(suppressed) = verifier.log_outage(outcome) {
            let key = refusal.key().map(tracing::field::display);
            tracing::warn!(code, outcome, key, error = %WithSources(refusal), suppressed, "request refused");
        }
        return;
    }
    let limited = refusal.status() == StatusCode::TOO_MANY_REQUESTS;
    match refusal.key().filter(|_| !limited) {
        Some(key) => {
            if let Some(suppressed) = verifier.log_refusal(outcome, key) {
                tracing::info!(code, outcome, %key, error = %WithSources(refusal), suppressed, "request refused");
            }
        }
        None => {
            let key = refusal.key().map(tracing::field::display);
            tracing::debug!(code, outcome, key, error = %WithSources(refusal), "request refused");
        }
    }
}
