//! Decides about one request: finds its key, verifies the key, and forwards or refuses the request.
//!
//! The verifier checks every condition on a key: this module passes the conditions to it as a [`Need`]. The
//! module itself only translates between HTTP and the verifier.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, Entry, HeaderMap, HeaderName, ORIGIN,
};
use http::request::Parts;
use http::{Extensions, Method, StatusCode};
use tracing::Span;
use tracing::field::display;
use zeroize::Zeroizing;

use super::context::{self, CountOnDrop, RequestContext};
use super::refusal::AuthError;
use super::settings::{Limit, Settings};
use super::sources::{self, RequestCredentials};
use crate::core::id::KeyId;
use crate::core::rejection::VerifyError;
use crate::core::tenant::TenantId;
use crate::observe::WithSources;
use crate::verifier::{Grant, Need};

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
    RequestContext::keep_without_grant(&mut request.extensions);
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
    let verifier = settings.keys.verifier();
    // A key counts once for a request. Behind a layer that has accepted a key, the first verification does not
    // count: only its grant shows whether the key is another one.
    let outer = RequestContext::of(&request.extensions).filter(|_| !again);
    let mut earlier: Vec<_> = outer.map_or_else(Vec::new, |outer| outer.accepted_keys(settings));
    if again || !earlier.is_empty() {
        need = Cow::Owned(need.into_owned().counting(false));
    }
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
            Err(why) => {
                unknown = Some(why);
                // A refusal is final now, so it counts.
                need = Cow::Owned(need.into_owned().probing(false));
                if verdict.is_some() {
                    verdict = verifier.verify_unasked(credentials.as_credentials(), &need);
                }
            }
        }
    }
    if let Some(Ok(grant)) = &verdict
        && is_another(&earlier, grant)
    {
        need = Cow::Owned(need.into_owned().counting(true));
        earlier.clear();
        verdict = verifier.verify_unasked(credentials.as_credentials(), &need);
    }
    match verdict {
        Some(verdict) => {
            let verdict = verdict.map_err(|refusal| explained(refusal, unknown));
            Admission::Done(tenant.authorize(verdict, credentials.in_query))
        }
        None => Admission::NeedsStore(Box::new(PendingVerification {
            credentials: credentials.into_owned(),
            need: need.into_owned(),
            tenant,
            earlier,
            unknown,
        })),
    }
}

/// Returns whether the verified key is none of those that layers around this one have accepted.
fn is_another(earlier: &[KeyId], grant: &Grant) -> bool {
    !earlier.is_empty() && !earlier.contains(&grant.key_id())
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
///
/// With `observed`, the result counts an accepted request on drop. Without it, the request counts immediately.
pub(super) fn admit(
    settings: &Arc<Settings>,
    verdict: AdmissionResult,
    request: &mut Parts,
    observed: bool,
) -> Result<Forward, AuthError> {
    let forward = verdict.and_then(|authorized| forward(settings, authorized, request, observed));
    forward.inspect_err(|refusal| report(settings, refusal, request))
}

fn forward(
    settings: &Arc<Settings>,
    authorized: Option<Authorized>,
    request: &mut Parts,
    observed: bool,
) -> Result<Forward, AuthError> {
    let Some(authorized) = authorized else {
        return Ok(Forward {
            span: Span::none(),
            in_query: false,
            count: context::insert(&mut request.extensions, settings, None, observed),
        });
    };
    let Authorized {
        grant,
        tenant,
        in_query,
    } = authorized;
    if let Some(tenant) = &tenant {
        request.extensions.insert(RequestTenant(tenant.clone()));
    }
    if let Some(limit) = &settings.limit
        && !is_asked(settings, limit, (&grant, &tenant), request)
        && let Err(reached) = limit(&grant, request)
    {
        // The request is refused, so remove the tenant that was inserted for it.
        request.extensions.remove::<RequestTenant>();
        return Err(AuthError::LimitReached {
            key: grant.key_id(),
            retry_after: reached.retry_after(),
        });
    }
    let span = key_span(&grant);
    let granted = Some((grant, tenant));
    let count = context::insert(&mut request.extensions, settings, granted, observed);
    Ok(Forward {
        span,
        in_query,
        count,
    })
}

/// Returns the span in which the inner service runs, and records the key in the span around the request if
/// that span has fields for it.
///
/// The own span is at DEBUG: a span costs more than a verification, and the log of a service is mostly at
/// INFO.
fn key_span(grant: &Grant) -> Span {
    let around = Span::current();
    if around.has_field("key_id") {
        around.record("key_id", display(grant.key_id()));
    }
    if around.has_field("tenant") {
        around.record("tenant", display(grant.tenant()));
    }
    tracing::debug_span!(
        target: "keyward::api_key",
        "api_key",
        key_id = %grant.key_id(),
        tenant = %grant.tenant(),
    )
}

/// Returns whether a layer around this one has asked the same limiter about the key and the tenant.
fn is_asked(
    settings: &Settings,
    limit: &Limit,
    (grant, tenant): (&Grant, &Option<TenantId>),
    request: &Parts,
) -> bool {
    let outer = RequestContext::of(&request.extensions);
    outer.is_some_and(|outer| {
        outer.accepted(settings).any(|(own, around)| {
            let is_same = |theirs: &Limit| Arc::ptr_eq(theirs, limit);
            own.key == grant.key_id()
                && own.tenant == *tenant
                && around.limit.as_ref().is_some_and(is_same)
        })
    })
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

/// The decision about a request. `Ok(None)` if the request may pass without a key.
pub(super) type AdmissionResult = Result<Option<Authorized>, AuthError>;

/// A verified key that may be used for the request.
pub(super) struct Authorized {
    pub(super) grant: Grant,
    tenant: Option<TenantId>,
    in_query: bool,
}

/// The data that the service needs to forward an accepted request.
pub(super) struct Forward {
    pub(super) span: Span,
    pub(super) in_query: bool,
    pub(super) count: Option<CountOnDrop>,
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
    /// The keys that layers around this one have accepted. If there are any, `need` does not count.
    earlier: Vec<KeyId>,
    unknown: Option<UnknownClient>,
}

impl PendingVerification {
    pub(super) async fn verdict(self: Box<Self>, settings: &Settings) -> AdmissionResult {
        let Self {
            credentials,
            need,
            tenant,
            earlier,
            unknown,
        } = *self;
        let keys = &settings.keys;
        let presented = credentials.as_credentials();
        let mut verdict = keys.verify_or_fetch(presented, &need).await;
        if verdict
            .as_ref()
            .is_ok_and(|grant| is_another(&earlier, grant))
        {
            verdict = keys.verify_or_fetch(presented, &need.counting(true)).await;
        }
        let verdict = verdict.map_err(|refusal| explained(refusal, unknown));
        tenant.authorize(verdict, credentials.in_query)
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

    fn authorize(self, verdict: Result<Grant, AuthError>, in_query: bool) -> AdmissionResult {
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
    let no_name_repeats = headers.keys_len() == headers.len();
    let Some(first) = headers.get_mut(name) else {
        return;
    };
    first.set_sensitive(true);
    if no_name_repeats {
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
    context::refused(&request.extensions, outcome);
    let verifier = settings.keys.verifier();
    let forgotten = matches!(refusal, AuthError::NoPeerAddress { .. });
    if refusal.status().is_server_error() || forgotten {
        if let Some(suppressed) = verifier.log_outage(outcome) {
            let key = refusal.key().map(display);
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
            let key = refusal.key().map(display);
            tracing::debug!(code, outcome, key, error = %WithSources(refusal), "request refused");
        }
    }
}
