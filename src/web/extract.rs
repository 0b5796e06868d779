//! Extractors for axum, which read the extensions that the layer inserted. A refusal by an extractor is the
//! same response as a refusal by the layer.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Once;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::IntoResponse;
use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};

use super::admission::{RequestTenant, report};
use super::context::{self, RequestContext};
use super::refusal::{self, AuthError, RefusalSettings};
use super::sources::CredentialSources;
use crate::core::scope::Scope;
use crate::observe::WithSources;
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

/// The rejection of an extractor: the reason, and the same response that the layer would send.
///
/// An application's own error can hold a rejection, and answer with its response. `Display` is meant for the
/// service's own logs.
///
/// # Examples
///
/// ```
/// use axum::response::{IntoResponse, Response};
/// use http::StatusCode;
/// use keyward::Grant;
/// use keyward::web::AuthRejection;
///
/// enum ApiError {
///     Auth(AuthRejection),
///     NoSuchReport,
/// }
///
/// impl From<AuthRejection> for ApiError {
///     fn from(rejection: AuthRejection) -> Self {
///         Self::Auth(rejection)
///     }
/// }
///
/// impl IntoResponse for ApiError {
///     fn into_response(self) -> Response {
///         match self {
///             Self::Auth(rejection) => rejection.into_response(),
///             Self::NoSuchReport => StatusCode::NOT_FOUND.into_response(),
///         }
///     }
/// }
///
/// async fn report(key: Result<Grant, AuthRejection>) -> Result<String, ApiError> {
///     let key = key?;
///     println!("no report of {}", key.tenant());
///     Err(ApiError::NoSuchReport)
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(report));
/// ```
#[derive(Clone, Debug)]
pub struct AuthRejection(Box<RejectedRequest>);

#[derive(Clone, Debug)]
struct RejectedRequest {
    error: AuthError,
    response: Response<Bytes>,
}

impl AuthRejection {
    fn new(error: AuthError, response: Response<Bytes>) -> Self {
        Self(Box::new(RejectedRequest { error, response }))
    }

    /// Returns the reason.
    #[must_use]
    pub fn error(&self) -> &AuthError {
        &self.0.error
    }

    /// Returns the reason as an owned value.
    #[must_use]
    pub fn into_error(self) -> AuthError {
        self.0.error
    }

    /// Returns the status of the reason, such as 403. The response to a gRPC call has status 200 instead, and
    /// [`on_refusal`](super::KeywardLayer::on_refusal) may have changed the status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.error.status()
    }

    /// Returns the stable name of the reason: [`AuthError::code`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.error.code()
    }

    /// Returns the response that the layer would send, with its headers and its body.
    #[must_use]
    pub fn response(&self) -> &Response<Bytes> {
        &self.0.response
    }
}

impl fmt::Display for AuthRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.error, f)
    }
}

/// Has no source: `Display` already prints the [`AuthError`].
impl std::error::Error for AuthRejection {}

impl<B: From<Bytes>> From<AuthRejection> for Response<B> {
    fn from(rejection: AuthRejection) -> Self {
        rejection.0.response.map(B::from)
    }
}

impl IntoResponse for AuthRejection {
    fn into_response(self) -> axum::response::Response {
        self.into()
    }
}

/// Requires a key. If an optional layer has forwarded a request without a key, the client gets 401. If the
/// route has no layer, the client gets 500.
impl<S: Sync> FromRequestParts<S> for Grant {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Self, AuthRejection> {
        grant(request).map_err(|refusal| refused(refusal, request))
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
            Err(refusal) => Err(refused(refusal, request)),
        }
    }
}

/// Extracts the [`Grant`]. The client gets 403 if the key lacks the scope `R`.
impl<R: RequiredScope, S: Sync> FromRequestParts<S> for Scoped<R> {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Self, AuthRejection> {
        scoped(request).map_err(|refusal| refused(refusal, request))
    }
}

/// Extracts `None` if an optional layer has forwarded a request without a key. The client gets 403 if the key
/// lacks the scope `R`.
impl<R: RequiredScope, S: Sync> OptionalFromRequestParts<S> for Scoped<R> {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Option<Self>, AuthRejection> {
        match scoped(request) {
            Ok(scoped) => Ok(Some(scoped)),
            Err(AuthError::Missing) => Ok(None),
            Err(refusal) => Err(refused(refusal, request)),
        }
    }
}

/// Extracts the tenant that the layer found in the request, and to which the key has access. If the layer of
/// the route does not look for a tenant, the client gets 500.
impl<S: Sync> FromRequestParts<S> for RequestTenant {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Self, AuthRejection> {
        tenant(request).map_err(|refusal| refused(refusal, request))
    }
}

/// Extracts `None` if an optional layer has forwarded a request without a key. If the layer of the route does
/// not look for a tenant, a request with a key gets 500.
impl<S: Sync> OptionalFromRequestParts<S> for RequestTenant {
    type Rejection = AuthRejection;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Option<Self>, AuthRejection> {
        match tenant(request) {
            Ok(tenant) => Ok(Some(tenant)),
            Err(AuthError::Missing) => Ok(None),
            Err(refusal) => Err(refused(refusal, request)),
        }
    }
}

fn grant(request: &Parts) -> Result<Grant, AuthError> {
    match request.extensions.get::<Grant>() {
        Some(grant) => {
            context::extracted(&request.extensions);
            Ok(grant.clone())
        }
        None if RequestContext::of(&request.extensions).is_some() => Err(AuthError::Missing),
        None => Err(AuthError::NoLayer),
    }
}

fn scoped<R: RequiredScope>(request: &Parts) -> Result<Scoped<R>, AuthError> {
    let grant = grant(request)?;
    grant.require(&R::SCOPE)?;
    let scope = PhantomData;
    Ok(Scoped { grant, scope })
}

fn tenant(request: &Parts) -> Result<RequestTenant, AuthError> {
    let found = request.extensions.get::<RequestTenant>().cloned();
    // An optional layer forwards a request without a key, and then inserts no tenant.
    found.ok_or_else(|| grant(request).err().unwrap_or(AuthError::NoTenantSource))
}

fn refused(refusal: AuthError, request: &Parts) -> AuthRejection {
    let context = RequestContext::of(&request.extensions);
    let response = match context.and_then(|context| context.settings.as_ref()) {
        Some(settings) => {
            report(settings, &refusal, request);
            settings.respond(&refusal, request)
        }
        None => {
            static LOGGED: Once = Once::new();
            context::refused(&request.extensions, refusal.outcome());
            // Log only once: if the route has no layer, every request to it has this error.
            LOGGED.call_once(
                || tracing::error!(error = %WithSources(&refusal), path = request.uri.path(), "request refused"),
            );
            let (settings, sources) = (RefusalSettings::default(), CredentialSources::default());
            let answer = refusal::answer(&refusal, (&settings, &sources), request);
            refusal::without_body_for_head(request, answer)
        }
    };
    AuthRejection::new(refusal, response)
}
