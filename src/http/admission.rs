//! The decision about one request: find its key, verify the key, and forward or refuse the request.
//!
//! Every condition on a key goes through [`Need`] and the verifier. This module holds only the
//! parts that belong to HTTP.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, Entry, HeaderMap, HeaderName, ORIGIN,
};
use http::request::Parts;
use http::{Extensions, Method};

use super::refusal::AuthError;
use super::settings::Settings;
use super::sources::{self, Carried};
use crate::core::id::KeyId;
use crate::core::need::Need;
use crate::core::rejection::VerifyError;
use crate::core::tenant::TenantId;
use crate::observe;
use crate::verifier::Grant;

/// The address of the socket's peer. The code that accepts connections puts it into the extensions
/// of each request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PeerAddr(pub IpAddr);

/// The tenant that the path or [`KeywardLayer::tenant_from`](super::KeywardLayer::tenant_from)
/// named and that the key reaches. A request that passed carries this value in its extensions. Act
/// on this value rather than reading the path again, so that no second reader interprets the path
/// differently.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestTenant(pub TenantId);

/// Verifies a request as far as possible without reading the store.
pub(super) fn decide(settings: &Settings, request: &Parts) -> Admission {
    if settings.preflights_pass && is_preflight(request) {
        return Admission::Done(Ok(None));
    }
    let found = sources::find(&settings.sources, &request.headers, request.uri.query());
    let carried = match found {
        Ok(Some(carried)) => carried,
        Ok(None) if settings.optional => return Admission::Done(Ok(None)),
        Ok(None) => return Admission::Done(Err(AuthError::Missing)),
        Err(unclear) => return Admission::Done(Err(unclear.into())),
    };
    let tenant = match &settings.tenant {
        Some(find) => Tenant::of(find(request)),
        None => Tenant::Any,
    };
    let mut need = match &tenant {
        Tenant::Named(tenant) => Cow::Owned(settings.need.clone().for_tenant(tenant.clone())),
        Tenant::Any | Tenant::Unknown => Cow::Borrowed(&settings.need),
    };
    let verifier = settings.keys.verifier();
    let mut verdict = verifier.verify_unasked(carried.credentials(), &need);
    // Few keys depend on the client's address, so the address is determined only for those keys.
    if let None | Some(Err(VerifyError::AddressNotAllowed { .. })) = &verdict
        && let Some(client) = client(settings, request)
    {
        need = Cow::Owned(need.into_owned().from_address(client));
        if verdict.is_some() {
            verdict = verifier.verify_unasked(carried.credentials(), &need);
        }
    }
    match verdict {
        Some(verdict) => Admission::Done(tenant.authorize(verdict, carried.in_query)),
        None => Admission::NeedsStore(Box::new(PendingVerification {
            carried: carried.into_owned(),
            need: need.into_owned(),
            tenant,
        })),
    }
}

/// Puts the grant and the tenant of an authorized request into its extensions, and reports a
/// refusal.
pub(super) fn admit(
    settings: &Arc<Settings>,
    verdict: Verdict,
    request: &mut Parts,
) -> Result<Forward, AuthError> {
    let forward = verdict.and_then(|authorized| forward(settings, authorized, request));
    forward.inspect_err(report)
}

fn forward(
    settings: &Arc<Settings>,
    authorized: Option<Authorized>,
    request: &mut Parts,
) -> Result<Forward, AuthError> {
    if settings.sources.bearer || settings.sources.basic {
        mark_sensitive(&mut request.headers, &AUTHORIZATION);
    }
    if let Some(name) = &settings.sources.header {
        mark_sensitive(&mut request.headers, name);
    }
    #[cfg(feature = "axum")]
    request.extensions.insert(Around(settings.clone()));
    let Some(authorized) = authorized else {
        observe::http_request("anonymous");
        return Ok(Forward {
            span: tracing::Span::none(),
            in_query: false,
        });
    };
    let Authorized {
        grant,
        tenant,
        in_query,
    } = authorized;
    if let Some(tenant) = tenant {
        request.extensions.insert(RequestTenant(tenant));
    }
    if let Some(limit) = &settings.limit
        && let Err(reached) = limit(&grant, request)
    {
        // Only a request that passes carries the tenant.
        request.extensions.remove::<RequestTenant>();
        return Err(AuthError::LimitReached {
            key: grant.key_id(),
            retry_after: reached.retry_after(),
        });
    }
    observe::http_request("accepted");
    let span = tracing::info_span!(
        "api_key",
        key_id = %grant.key_id(),
        tenant = %grant.tenant(),
    );
    request.extensions.insert(grant);
    Ok(Forward { span, in_query })
}

/// Returns the client's address, if it can be known.
fn client(settings: &Settings, request: &Parts) -> Option<IpAddr> {
    let peer = match &settings.peer {
        Some(find) => find(&request.extensions),
        None => peer(&request.extensions),
    }?;
    match &settings.proxies {
        Some(proxies) => proxies.client(peer, &request.headers),
        None => Some(peer.to_canonical()),
    }
}

/// The settings of the layer that a request passed. Extractors answer with these settings as the
/// layer does.
#[cfg(feature = "axum")]
#[derive(Clone)]
pub(super) struct Around(pub(super) Arc<Settings>);

/// The decision about a request; `None` if it passes without a key.
pub(super) type Verdict = Result<Option<Authorized>, AuthError>;

/// A verified key that may be used for the request.
pub(super) struct Authorized {
    pub(super) grant: Grant,
    tenant: Option<TenantId>,
    in_query: bool,
}

/// The data for forwarding a request to the inner service.
pub(super) struct Forward {
    pub(super) span: tracing::Span,
    pub(super) in_query: bool,
}

/// The result of a verification without the store.
pub(super) enum Admission {
    Done(Verdict),
    NeedsStore(Box<PendingVerification>),
}

/// A verification that has to read the store. Borrows nothing of the request.
pub(super) struct PendingVerification {
    carried: Carried<'static>,
    need: Need,
    tenant: Tenant,
}

impl PendingVerification {
    pub(super) async fn verdict(self: Box<Self>, settings: &Settings) -> Verdict {
        let Self {
            carried,
            need,
            tenant,
        } = *self;
        let keys = &settings.keys;
        let verdict = keys.verify_or_fetch(carried.credentials(), &need).await;
        tenant.authorize(verdict, carried.in_query)
    }
}

/// The tenant that a request is for.
enum Tenant {
    /// The layer looks for no tenant.
    Any,
    Named(TenantId),
    /// The layer looks for a tenant, and the request names none.
    Unknown,
}

impl Tenant {
    fn of(found: Option<TenantId>) -> Self {
        found.map_or(Self::Unknown, Self::Named)
    }

    fn authorize(self, verdict: Result<Grant, VerifyError>, in_query: bool) -> Verdict {
        let grant = verdict?;
        let tenant = match self {
            Self::Any => None,
            Self::Named(tenant) => Some(tenant),
            Self::Unknown => {
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

/// Returns whether a request is a preflight of a browser (Fetch, "CORS-preflight request").
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

/// Logs and counts a refusal. An outage is a warning. A refusal of a key whose secret was presented
/// is rare, and is logged as information. All other refusals are logged for debugging only: anybody
/// can cause them at will, and any key holder can reach a limit.
pub(super) fn report(refusal: &AuthError) {
    observe::http_request(refusal.code());
    let (code, key) = (refusal.code(), refusal.key());
    let rare = key.is_some() && !matches!(refusal, AuthError::LimitReached { .. });
    let key = key.as_ref().map(tracing::field::display::<&KeyId>);
    match refusal.status().is_server_error() {
        true => tracing::warn!(code, key, reason = %refusal, "request refused"),
        false if rare => tracing::info!(code, key, reason = %refusal, "request refused"),
        false => tracing::debug!(code, key, reason = %refusal, "request refused"),
    }
}
