//! Extractors for axum, which read the extensions that the layer inserted. A refusal by an extractor is the
//! same response as a refusal by the layer.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Once;

use axum::body::Body;
use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::IntoResponse;
use http::Response;
use http::request::Parts;

use super::admission::{LayerSettings, RequestTenant, report};
use super::outcome;
use super::refusal::{self, AuthError, RefusalSettings};
use super::sources::CredentialSources;
use crate::core::scope::Scope;
use crate::verifier::Grant;

/// A type that stands for a scope, for use with [`Scoped`]. A malformed scope does not compile.
///
/// # Examples
///
/// ```
/// use keyward::Scope;
/// use keyward::web::RequiredScope;
///
/// struct ReportsRead;
///
/// impl RequiredScope for ReportsRead {
///     const SCOPE: Scope = Scope::from_static("reports:read");
/// }
/// ```
pub trait RequiredScope {
    /// The scope that the key must have.
    const SCOPE: Scope;
}

/// An extractor for the grant of a key that has the scope `R`. So the signature of a handler can require a
/// scope, in addition to the conditions of the layer.
///
/// ```
/// use keyward::web::Scoped;
/// # use keyward::{Scope, web::RequiredScope};
/// # struct ReportsRead;
/// # impl RequiredScope for ReportsRead {
/// #     const SCOPE: Scope = Scope::from_static("reports:read");
/// # }
///
/// async fn reports(key: Scoped<ReportsRead>) -> String {
///     format!("reports of {}", key.tenant())
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(reports));
/// ```
pub struct Scoped<R> {
    grant: Grant,
    scope: PhantomData<fn() -> R>,
}

impl<R> Scoped<R> {
    /// Returns the grant.
    #[must_use]
    pub fn into_grant(self) -> Grant {
        self.grant
    }
}

impl<R> Deref for Scoped<R> {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.grant
    }
}

impl<R> Clone for Scoped<R> {
    fn clone(&self) -> Self {
        let grant = self.grant.clone();
        let scope = PhantomData;
        Self { grant, scope }
    }
}

impl<R> fmt::Debug for Scoped<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scoped").field(&self.grant).finish()
    }
}

/// The rejection of an extractor: the same response that the layer would send.
#[derive(Debug)]
pub struct AuthRejection(Response<bytes::Bytes>);

impl IntoResponse for AuthRejection {
    fn into_response(self) -> axum::response::Response {
        self.0.map(Body::from)
    }
}

/// Requires a key. If an optional layer has forwarded a request without a key, the client gets 401. If the
/// route has no layer, the client gets 500.
impl<S: Sync> FromRequestParts<S> for Grant {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Self, AuthRejection> {
        let grant = grant(request).map_err(|refusal| refused(&refusal, request))?;
        outcome::extracted(request);
        Ok(grant)
    }
}

/// Extracts `None` if an optional layer has forwarded a request without a key. If the route has no layer, the
/// client gets 500.
impl<S: Sync> OptionalFromRequestParts<S> for Grant {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Option<Self>, AuthRejection> {
        match grant(request) {
            Ok(grant) => Ok(Some(grant)),
            Err(AuthError::Missing) => Ok(None),
            Err(refusal) => Err(refused(&refusal, request)),
        }
    }
}

/// Extracts the [`Grant`]. The client gets 403 if the key lacks the scope `R`.
impl<R: RequiredScope, S: Sync> FromRequestParts<S> for Scoped<R> {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Self, AuthRejection> {
        let scoped = || {
            let grant = grant(request)?;
            grant.require(&R::SCOPE)?;
            outcome::extracted(request);
            let scope = PhantomData;
            Ok(Self { grant, scope })
        };
        scoped().map_err(|refusal| refused(&refusal, request))
    }
}

/// Extracts the tenant that the layer found in the request, and to which the key has access. If the layer of
/// the route does not look for a tenant, the client gets 500.
impl<S: Sync> FromRequestParts<S> for RequestTenant {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Self, AuthRejection> {
        let found = request.extensions.get::<Self>().cloned();
        found.ok_or_else(|| {
            // An optional layer forwards a request without a key, and then inserts no tenant.
            let refusal = match grant(request) {
                Err(refusal) => refusal,
                Ok(_) => AuthError::NoTenantSource,
            };
            refused(&refusal, request)
        })
    }
}

fn grant(request: &Parts) -> Result<Grant, AuthError> {
    match request.extensions.get::<Grant>() {
        Some(grant) => Ok(grant.clone()),
        None if request.extensions.get::<LayerSettings>().is_some() => Err(AuthError::Missing),
        None => Err(AuthError::NoLayer),
    }
}

fn refused(refusal: &AuthError, request: &Parts) -> AuthRejection {
    AuthRejection(match request.extensions.get::<LayerSettings>() {
        Some(LayerSettings(settings)) => {
            report(settings, refusal, request);
            settings.respond(refusal, request)
        }
        None => {
            static LOGGED: Once = Once::new();
            outcome::refused(request, refusal.outcome());
            // Log only once: if the route has no layer, every request to it has this error.
            LOGGED.call_once(
                || tracing::error!(reason = %refusal, path = request.uri.path(), "request refused"),
            );
            let (settings, sources) = (RefusalSettings::default(), CredentialSources::default());
            let answer = refusal::answer(refusal, (&settings, &sources), request);
            refusal::without_body_for_head(request, answer)
        }
    })
}
