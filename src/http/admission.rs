//! The decision about one request: which key it carries, whether it does for the request, and what
//! becomes of it.
//!
//! Whatever is asked of a key goes through [`Need`] and the verifier; here is only what is HTTP's own.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, Entry, HeaderMap, HeaderName, ORIGIN,
};
use http::request::Parts;
use http::{Extensions, Method};

use super::layer::KeywardLayer;
use super::refusal::Refusal;
use super::sources::{self, Credentials, Found};
use crate::core::id::KeyId;
use crate::core::need::Need;
use crate::core::rejection::Rejection;
use crate::core::tenant::TenantId;
use crate::observe;
use crate::verifier::Grant;

/// The address from which a request came, as the socket tells it: to be put into the extensions of a
/// request by whoever accepts connections.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PeerAddr(pub IpAddr);

/// The tenant that the path or [`KeywardLayer::tenant_from`] named and that the key was found to
/// reach. In the extensions of a request that got through: act on this one, so that nothing reads the
/// path in another way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestTenant(pub TenantId);

impl KeywardLayer {
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
        let admitted = verdict.and_then(|passed| self.accept(passed, request));
        admitted.inspect_err(report)
    }

    fn accept(&self, passed: Option<Passed>, request: &mut Parts) -> Result<Admitted, Refusal> {
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
            return Ok(Admitted {
                span: tracing::Span::none(),
                in_query: false,
            });
        };
        let Passed {
            grant,
            tenant,
            in_query,
        } = passed;
        if let Some(tenant) = tenant {
            request.extensions.insert(RequestTenant(tenant));
        }
        if let Some(limit) = &settings.limit
            && let Err(reached) = limit(&grant, request)
        {
            // It is there for what gets through.
            request.extensions.remove::<RequestTenant>();
            return Err(Refusal::LimitReached {
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
        Ok(Admitted { span, in_query })
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
    pub(super) grant: Grant,
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
/// presented are rare. The rest anybody can cause as often as they like; a limit, whoever has a key.
pub(super) fn report(refusal: &Refusal) {
    observe::http_request(refusal.code());
    let (code, key) = (refusal.code(), refusal.key());
    let rare = key.is_some() && !matches!(refusal, Refusal::LimitReached { .. });
    let key = key.as_ref().map(tracing::field::display::<&KeyId>);
    match refusal.status().is_server_error() {
        true => tracing::warn!(code, key, reason = %refusal, "request refused"),
        false if rare => tracing::info!(code, key, reason = %refusal, "request refused"),
        false => tracing::debug!(code, key, reason = %refusal, "request refused"),
    }
}
