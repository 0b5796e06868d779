//! The settings of a [`KeywardLayer`](super::KeywardLayer), shared with its services and extractors.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Extensions, Response};

use super::proxies::TrustedProxies;
use super::refusal::{self, AuthError, LimitReached, RefusalSettings};
use super::sources::CredentialSources;
use crate::core::tenant::TenantId;
use crate::keyward::Keyward;
use crate::verifier::{Grant, Need};

type TenantFrom = Arc<dyn Fn(&Parts) -> Option<TenantId> + Send + Sync>;
type PeerFrom = Arc<dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync>;
pub(super) type Limit = Arc<dyn Fn(&Grant, &Parts) -> Result<(), LimitReached> + Send + Sync>;
type OnRefusal = Arc<dyn Fn(&AuthError, &Parts, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) enabled: bool,
    pub(super) keys: Keyward,
    pub(super) need: Need,
    pub(super) sources: CredentialSources,
    pub(super) vary: Option<HeaderValue>,
    pub(super) tenant: Option<TenantFrom>,
    pub(super) peer: Option<PeerFrom>,
    pub(super) proxies: Option<TrustedProxies>,
    pub(super) optional: bool,
    pub(super) allow_preflight: bool,
    pub(super) limit: Option<Limit>,
    pub(super) refusals: RefusalSettings,
    pub(super) on_refusal: Option<OnRefusal>,
}

impl Settings {
    pub(super) fn new(keys: Keyward, sources: CredentialSources) -> Self {
        Self {
            enabled: true,
            keys,
            need: Need::any().probing(true),
            vary: refusal::vary(&sources),
            sources,
            tenant: None,
            peer: None,
            proxies: None,
            optional: false,
            allow_preflight: false,
            limit: None,
            refusals: RefusalSettings::default(),
            on_refusal: None,
        }
    }

    /// Returns the response to a refused request.
    pub(super) fn respond(&self, refusal: &AuthError, request: &Parts) -> Response<Bytes> {
        let how = (&self.refusals, &self.sources);
        let mut answer = refusal::answer(refusal, how, request);
        if let Some(change) = &self.on_refusal {
            answer = change(refusal, request, answer);
        }
        refusal::without_body_for_head(request, answer)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("enabled", &self.enabled)
            .field("need", &self.need)
            .field("sources", &self.sources)
            .field("optional", &self.optional)
            .finish_non_exhaustive()
    }
}
