//! Refusals and their form on the wire: RFC 6585, RFC 6750 (section 3), RFC 9110 and RFC 9457.
//!
//! Pure. All keys that do not authenticate get the same status, type and text. No refusal repeats
//! what the client sent.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, VARY,
    WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde::Serialize;

use super::sources::{CredentialSources, CredentialsError};
use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::rejection::{VerifyError, VerifyErrorKind};
use crate::core::scope::Scope;

/// The reason why a request was refused.
///
/// [`Display`](std::fmt::Display) is for the host's own logs. The client gets
/// [`status`](Self::status), [`code`](Self::code), [`title`](Self::title) and
/// [`detail`](Self::detail).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The request carries no key in any of the places that are read.
    #[error("no API key was sent")]
    Missing,
    /// The request's key is ambiguous.
    #[error(transparent)]
    Ambiguous(#[from] CredentialsError),
    /// The key does not verify, or may not be used for the request.
    #[error(transparent)]
    Rejected(#[from] VerifyError),
    /// The request names no tenant, although the layer looks for one.
    #[error("the request names no tenant")]
    NoTenant {
        /// The key, which verified.
        key: KeyId,
    },
    /// The service's own limiter refused the request:
    /// [`KeywardLayer::rate_limit`](super::KeywardLayer::rate_limit).
    #[error("the limit is reached for another {retry_after:?}")]
    LimitReached {
        /// The key, which verified and may be used for the request.
        key: KeyId,
        /// The time after which the client may try again.
        retry_after: Duration,
    },
    /// An extractor found no layer around its route, which is a fault in the service.
    #[error("no layer around this route verifies API keys")]
    NoLayer,
}

/// The answer of a limiter that refuses a request: see
/// [`KeywardLayer::rate_limit`](super::KeywardLayer::rate_limit).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LimitReached {
    retry_after: Duration,
}

impl LimitReached {
    /// Asks the client to try again after this time. The client gets whole seconds, rounded up, at
    /// least one.
    #[must_use]
    pub const fn new(retry_after: Duration) -> Self {
        Self { retry_after }
    }

    /// Returns the time after which the client may try again.
    #[must_use]
    pub const fn retry_after(self) -> Duration {
        self.retry_after
    }
}

/// The kinds of refusals that a client can distinguish.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Missing,
    Ambiguous,
    Invalid,
    MissingScope,
    Forbidden,
    LimitReached,
    Unavailable,
    Internal,
}

impl AuthError {
    const fn kind(&self) -> Kind {
        match self {
            Self::Missing => Kind::Missing,
            Self::Ambiguous(_) => Kind::Ambiguous,
            Self::Rejected(VerifyError::MissingScope { .. }) => Kind::MissingScope,
            Self::Rejected(rejection) => match rejection.kind() {
                VerifyErrorKind::Invalid => Kind::Invalid,
                VerifyErrorKind::Forbidden => Kind::Forbidden,
                VerifyErrorKind::Unavailable => Kind::Unavailable,
            },
            Self::NoTenant { .. } => Kind::Forbidden,
            Self::LimitReached { .. } => Kind::LimitReached,
            Self::NoLayer => Kind::Internal,
        }
    }

    /// Returns the status: 400, 401, 403, 429, 500 or 503.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self.kind() {
            Kind::Missing | Kind::Invalid => StatusCode::UNAUTHORIZED,
            Kind::Ambiguous => StatusCode::BAD_REQUEST,
            Kind::MissingScope | Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::LimitReached => StatusCode::TOO_MANY_REQUESTS,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns a stable name for programs, the last part of the problem's type: `missing-key`,
    /// `ambiguous-credentials`, `invalid-key`, `insufficient-scope`, `key-not-allowed`, `rate-limited`,
    /// `unavailable` or `internal`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.kind() {
            Kind::Missing => "missing-key",
            Kind::Ambiguous => "ambiguous-credentials",
            Kind::Invalid => "invalid-key",
            Kind::MissingScope => "insufficient-scope",
            Kind::Forbidden => "key-not-allowed",
            Kind::LimitReached => "rate-limited",
            Kind::Unavailable => "unavailable",
            Kind::Internal => "internal",
        }
    }

    /// Returns a text for people, the same for every refusal with this [`code`](Self::code).
    #[must_use]
    pub const fn title(&self) -> &'static str {
        match self.kind() {
            Kind::Missing => "API key required",
            Kind::Ambiguous => "Ambiguous credentials",
            Kind::Invalid => "Invalid API key",
            Kind::MissingScope => "Insufficient scope",
            Kind::Forbidden => "API key not allowed here",
            Kind::LimitReached => "Too many requests",
            Kind::Unavailable => "API keys cannot be verified at the moment",
            Kind::Internal => "Internal error",
        }
    }

    /// Returns the details of this refusal that a client may see.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Ambiguous(_) | Self::NoTenant { .. } => Some(self.to_string()),
            Self::Rejected(rejection) if rejection.kind() == VerifyErrorKind::Forbidden => {
                Some(rejection.public_message())
            }
            Self::Rejected(_) | Self::Missing | Self::LimitReached { .. } | Self::NoLayer => None,
        }
    }

    /// Returns the missing scope; the first one if any of several would suffice.
    #[must_use]
    pub const fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Rejected(VerifyError::MissingScope { scope, .. }) => Some(scope),
            _ => None,
        }
    }

    /// Returns the key, if its secret was presented.
    #[must_use]
    pub const fn key(&self) -> Option<KeyId> {
        match self {
            Self::Rejected(rejection) => rejection.key(),
            Self::NoTenant { key } | Self::LimitReached { key, .. } => Some(*key),
            _ => None,
        }
    }

    /// Returns the `error` of a Bearer challenge (RFC 6750, section 3.1); `None` if no key was
    /// sent.
    const fn bearer_error(&self) -> Option<&'static str> {
        match self.kind() {
            Kind::Ambiguous => Some("invalid_request"),
            Kind::Invalid => Some("invalid_token"),
            Kind::MissingScope | Kind::Forbidden => Some("insufficient_scope"),
            Kind::Missing | Kind::LimitReached | Kind::Unavailable | Kind::Internal => None,
        }
    }

    /// Returns the status of a gRPC call.
    const fn grpc_status(&self) -> &'static str {
        match self.kind() {
            Kind::Missing | Kind::Ambiguous | Kind::Invalid => "16", // UNAUTHENTICATED
            Kind::MissingScope | Kind::Forbidden => "7",             // PERMISSION_DENIED
            Kind::LimitReached => "8",                               // RESOURCE_EXHAUSTED
            Kind::Unavailable => "14",                               // UNAVAILABLE
            Kind::Internal => "13",                                  // INTERNAL
        }
    }
}

/// A text for the `realm` of challenges: printable ASCII except `"` and `\`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Realm(String);

impl Realm {
    const MAX_LEN: usize = 128;

    pub(super) fn new(text: &str) -> Result<Self, Invalid> {
        let allowed = "printable ASCII but \" and \\";
        let fits = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
        let problem = match text.bytes().position(|b| !fits(b)) {
            Some(position) => Problem::Character { position, allowed },
            None if text.len() > Self::MAX_LEN => Problem::TooLong {
                max: Self::MAX_LEN,
                actual: text.len(),
            },
            None => return Ok(Self(text.to_owned())),
        };
        Err(Invalid::new("realm", problem))
    }
}

/// The settings of a layer's responses to refused requests.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) realm: Option<Realm>,
    pub(super) problem_types: Cow<'static, str>,
    pub(super) retry_after: Duration,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            realm: None,
            problem_types: Cow::Borrowed("urn:problem-type:keyward:"),
            retry_after: Duration::from_secs(1),
        }
    }
}

/// The body of a refusal (RFC 9457).
#[derive(Serialize)]
struct ProblemDetails<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a Scope>,
}

/// Returns the response to a refused request. For a gRPC call it has the status in its headers and
/// no messages (a "Trailers-Only" response).
pub(super) fn answer(
    refusal: &AuthError,
    (manner, sources): (&Manner, &CredentialSources),
    request: &Parts,
) -> Response<Bytes> {
    let mut headers = common_headers(refusal, (manner, sources));
    if let Some(content_type) = grpc_content_type(&request.headers) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(
            "grpc-status",
            HeaderValue::from_static(refusal.grpc_status()),
        );
        let message = refusal
            .detail()
            .unwrap_or_else(|| refusal.title().to_owned());
        // The percent-encoding of gRPC leaves visible ASCII except `%` as it is.
        if let Ok(message) = HeaderValue::from_str(&message.replace('%', "%25")) {
            headers.insert("grpc-message", message);
        }
        return response(StatusCode::OK, headers, Bytes::new());
    }
    let status = refusal.status();
    let problem = ProblemDetails {
        r#type: format!("{}{}", manner.problem_types, refusal.code()),
        title: refusal.title(),
        status: status.as_u16(),
        detail: refusal.detail(),
        scope: refusal.scope(),
    };
    let body = Bytes::from(serde_json::to_vec(&problem).unwrap_or_default());
    let content_type = HeaderValue::from_static("application/problem+json");
    headers.insert(CONTENT_TYPE, content_type);
    response(status, headers, body)
}

/// Removes the body of an answer to HEAD, and states its length (RFC 9110, section 9.3.2).
pub(super) fn without_body_for_head(request: &Parts, answer: Response<Bytes>) -> Response<Bytes> {
    if request.method != Method::HEAD {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    parts.headers.insert(CONTENT_LENGTH, body.len().into());
    Response::from_parts(parts, Bytes::new())
}

fn response(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn common_headers(
    refusal: &AuthError,
    (manner, sources): (&Manner, &CredentialSources),
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(vary) = vary(sources) {
        headers.insert(VARY, vary);
    }
    let pause = match refusal {
        AuthError::LimitReached { retry_after, .. } => Some(*retry_after),
        _ if refusal.kind() == Kind::Unavailable => Some(manner.retry_after),
        _ => None,
    };
    if let Some(pause) = pause {
        // Rounded up: zero would mean immediately.
        let part = u64::from(pause.subsec_nanos() > 0);
        let whole = pause.as_secs().saturating_add(part);
        headers.insert(RETRY_AFTER, whole.max(1).into());
    }
    for challenge in challenges(refusal, (manner, sources)) {
        headers.append(WWW_AUTHENTICATE, challenge);
    }
    headers
}

/// Returns the names of the request headers on which an answer depends.
pub(super) fn vary(sources: &CredentialSources) -> Option<HeaderValue> {
    let authorization = (sources.bearer || sources.basic).then_some("authorization");
    let own = sources.header.as_ref().map(http::HeaderName::as_str);
    let names: Vec<_> = authorization.into_iter().chain(own).collect();
    HeaderValue::from_str(&names.join(", "))
        .ok()
        .filter(|names| !names.is_empty())
}

/// Returns the challenges that show a client how to authenticate. Every 401 has one for Bearer (RFC
/// 9110, section 15.5.2), since other headers have no registered scheme.
fn challenges(
    refusal: &AuthError,
    (manner, sources): (&Manner, &CredentialSources),
) -> impl Iterator<Item = HeaderValue> {
    let kind = refusal.kind();
    let wanted = !matches!(
        kind,
        Kind::LimitReached | Kind::Unavailable | Kind::Internal
    );
    let realm = manner.realm.as_ref().map(|realm| realm.0.as_str());
    let bearer = (sources.bearer || !sources.basic).then(|| {
        let scope = refusal.scope().map(Scope::as_str);
        let parameters = [
            ("realm", realm),
            ("error", refusal.bearer_error()),
            ("scope", scope),
        ];
        challenge("Bearer", parameters)
    });
    // Basic needs a realm, and has no errors (RFC 7617, section 2).
    let basic = (sources.basic && refusal.status() == StatusCode::UNAUTHORIZED).then(|| {
        let realm = realm.unwrap_or("API keys");
        challenge(
            "Basic",
            [("realm", Some(realm)), ("charset", Some("UTF-8"))],
        )
    });
    let all = [bearer, basic].into_iter().flatten();
    all.filter(move |_| wanted)
        .filter_map(|text| HeaderValue::try_from(text).ok())
}

/// Writes a challenge. No value has a character that a quoted string would have to escape.
fn challenge<'a>(
    scheme: &str,
    parameters: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
) -> String {
    let mut text = scheme.to_owned();
    let given = parameters
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    for (number, (name, value)) in given.enumerate() {
        let separator = if number == 0 { " " } else { ", " };
        let _ = write!(text, "{separator}{name}=\"{value}\"");
    }
    text
}

/// Returns the content type of the answer, if the request is a gRPC call.
fn grpc_content_type(headers: &HeaderMap) -> Option<&'static str> {
    let own = headers.get(CONTENT_TYPE)?.as_bytes().to_ascii_lowercase();
    let rest = own.strip_prefix(b"application/grpc")?;
    match rest {
        _ if rest.starts_with(b"-web-text") => Some("application/grpc-web-text+proto"),
        _ if rest.starts_with(b"-web") => Some("application/grpc-web+proto"),
        [] | [b'+' | b';' | b' ', ..] => Some("application/grpc"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::core::record::Reason;
    use crate::core::text::{ClassName, Environment, PepperId};
    use crate::core::time::Timestamp;
    use crate::core::token::TokenError;

    const AT: &str = "2026-01-01T00:00:00Z";

    fn at() -> Timestamp {
        AT.parse().unwrap()
    }

    fn key() -> KeyId {
        KeyId::from_parts(at(), [7; 10])
    }

    fn get() -> Parts {
        Request::new(()).into_parts().0
    }

    fn plain(refusal: &AuthError) -> Response<Bytes> {
        answer(
            refusal,
            (&Manner::default(), &CredentialSources::default()),
            &get(),
        )
    }

    fn missing(scope: &str) -> AuthError {
        let scope = Scope::new(scope).unwrap();
        VerifyError::MissingScope { key: key(), scope }.into()
    }

    fn limited(retry_after: Duration) -> AuthError {
        let key = key();
        AuthError::LimitReached { key, retry_after }
    }

    /// Every rejection, with the code and the status that it has on the wire.
    fn all() -> Vec<(VerifyError, &'static str, u16)> {
        let (key, at) = (key(), at());
        let reason = Reason::Lost;
        let class = ClassName::new("secret").unwrap();
        let environment = Environment::LIVE;
        let pepper = PepperId::new("p1").unwrap();
        let (age, bound) = (Duration::MAX, Duration::ZERO);
        let scope = Scope::new("reports:read").unwrap();
        let malformed = TokenError::TooLong { actual: 600 };
        vec![
            (VerifyError::Malformed(malformed), "invalid-key", 401),
            (
                VerifyError::Malformed(TokenError::Checksum),
                "invalid-key",
                401,
            ),
            (VerifyError::Unknown, "invalid-key", 401),
            (VerifyError::WrongSecret, "invalid-key", 401),
            (VerifyError::Revoked { key, at, reason }, "invalid-key", 401),
            (VerifyError::Expired { key, at }, "invalid-key", 401),
            (VerifyError::Disabled { key }, "invalid-key", 401),
            (VerifyError::OwnerRemoved { key }, "invalid-key", 401),
            (VerifyError::TenantClosed { key }, "invalid-key", 401),
            (VerifyError::PairMismatch, "invalid-key", 401),
            (VerifyError::Publishable { key }, "key-not-allowed", 403),
            (
                VerifyError::WrongClass {
                    key,
                    class: class.clone(),
                },
                "key-not-allowed",
                403,
            ),
            (
                VerifyError::WrongEnvironment { key, environment },
                "key-not-allowed",
                403,
            ),
            (VerifyError::WrongTenant { key }, "key-not-allowed", 403),
            (
                VerifyError::AddressNotAllowed { key },
                "key-not-allowed",
                403,
            ),
            (
                VerifyError::MissingScope { key, scope },
                "insufficient-scope",
                403,
            ),
            (VerifyError::Stale { age, bound }, "unavailable", 503),
            (VerifyError::NeedsFresh, "unavailable", 503),
            (VerifyError::StoreUnavailable, "unavailable", 503),
            (VerifyError::UnknownPepper { pepper }, "unavailable", 503),
            (VerifyError::UnknownClass { class }, "unavailable", 503),
            (VerifyError::Corrupt { key }, "unavailable", 503),
        ]
    }

    #[test]
    fn every_rejection_has_its_status_and_an_outage_is_never_a_bad_key() {
        for (rejection, code, status) in all() {
            let answer = plain(&rejection.clone().into());
            let headers = answer.headers();
            assert_eq!(answer.status().as_u16(), status, "{rejection:?}");
            let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(body["type"], format!("urn:problem-type:keyward:{code}"));
            assert_eq!(body["status"], status);
            assert_eq!(headers.contains_key(WWW_AUTHENTICATE), status != 503);
            assert_eq!(headers.contains_key(RETRY_AFTER), status == 503);
            assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
            assert_eq!(headers[CACHE_CONTROL], "no-store");
            assert_eq!(headers[VARY], "authorization, x-api-key");
        }
    }

    #[test]
    fn no_refusal_repeats_its_source() {
        let rejected = all()
            .into_iter()
            .map(|(rejection, ..)| AuthError::from(rejection));
        for refusal in rejected.chain([AuthError::from(CredentialsError::Basic)]) {
            let source = std::error::Error::source(&refusal);
            assert!(source.is_none(), "{refusal:?} is printed once");
        }
    }

    #[test]
    fn keys_that_do_not_authenticate_all_get_the_same_answer() {
        let invalid = all()
            .into_iter()
            .filter(|(_, code, _)| *code == "invalid-key");
        let answers = invalid.map(|(rejection, ..)| {
            let web = plain(&rejection.clone().into());
            let mut call = get();
            let grpc = HeaderValue::from_static("application/grpc");
            call.headers.insert(CONTENT_TYPE, grpc);
            let how = (
                &Manner::default(),
                &CredentialSources::default().with_basic(),
            );
            let call = answer(&rejection.into(), how, &call);
            format!("{web:?} {call:?}")
        });
        let answers: std::collections::BTreeSet<_> = answers.collect();
        assert_eq!(answers.len(), 1);
    }

    #[test]
    fn challenges_are_those_of_the_standards() {
        let sent = |refusal: &AuthError, sources: &CredentialSources, manner: &Manner| {
            let answer = answer(refusal, (manner, sources), &get());
            let all = answer.headers().get_all(WWW_AUTHENTICATE).into_iter();
            all.map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let (plain, sources) = (Manner::default(), CredentialSources::default());
        let invalid = AuthError::from(VerifyError::Unknown);
        let unclear = AuthError::from(CredentialsError::SeveralKeys);
        assert_eq!(sent(&AuthError::Missing, &sources, &plain), ["Bearer"]);
        assert_eq!(
            sent(&invalid, &sources, &plain),
            ["Bearer error=\"invalid_token\""]
        );
        assert_eq!(
            sent(&unclear, &sources, &plain),
            ["Bearer error=\"invalid_request\""]
        );
        assert_eq!(
            sent(&missing("reports:read"), &sources, &plain),
            ["Bearer error=\"insufficient_scope\", scope=\"reports:read\""]
        );
        let realm = Some(Realm::new("acme").unwrap());
        let named = Manner {
            realm,
            ..Manner::default()
        };
        let both = CredentialSources::default().with_basic();
        assert_eq!(
            sent(&invalid, &both, &named),
            [
                "Bearer realm=\"acme\", error=\"invalid_token\"",
                "Basic realm=\"acme\", charset=\"UTF-8\""
            ]
        );
        let basic = CredentialSources::none().with_basic();
        let challenge = "Basic realm=\"API keys\", charset=\"UTF-8\"";
        assert_eq!(sent(&AuthError::Missing, &basic, &plain), [challenge]);
        let own = CredentialSources::none().with_header(CredentialSources::API_KEY_HEADER);
        assert_eq!(sent(&AuthError::Missing, &own, &plain), ["Bearer"]);
        for refusal in [AuthError::NoLayer, limited(Duration::ZERO)] {
            assert!(sent(&refusal, &own, &plain).is_empty());
        }
    }

    #[test]
    fn a_scope_that_is_missing_is_named() {
        let answer = plain(&missing("reports:*"));
        let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(body["scope"], "reports:*");
        assert_eq!(body["detail"], "key lacks scope reports:*");
    }

    #[test]
    fn an_answer_to_head_has_the_headers_and_no_body() {
        let full = plain(&AuthError::Missing);
        let mut head = get();
        head.method = Method::HEAD;
        let short = without_body_for_head(&head, full.clone());
        assert!(short.body().is_empty());
        assert_eq!(
            short.headers()[CONTENT_LENGTH],
            full.body().len().to_string()
        );
        let untouched = without_body_for_head(&get(), full.clone());
        assert_eq!(untouched.body(), full.body());
    }

    #[test]
    fn a_call_is_answered_as_a_call() {
        let sent = |refusal: &AuthError, content_type: &'static str| {
            let mut call = get();
            let own = HeaderValue::from_static(content_type);
            call.headers.insert(CONTENT_TYPE, own);
            let how = (&Manner::default(), &CredentialSources::default());
            let answer = answer(refusal, how, &call);
            let header = |name: &str| {
                let value = answer.headers().get(name);
                value.map_or("", |value| value.to_str().unwrap()).to_owned()
            };
            let sent = (
                header("grpc-status"),
                header("grpc-message"),
                header("content-type"),
            );
            (answer.status().as_u16(), sent, answer.body().len())
        };
        let grpc = |status: &str, message: &str, kind: &str| {
            (
                200,
                (status.to_owned(), message.to_owned(), kind.to_owned()),
                0,
            )
        };
        let kind = "application/grpc";
        let invalid = AuthError::from(VerifyError::WrongSecret);
        let stale = AuthError::from(VerifyError::StoreUnavailable);
        assert_eq!(sent(&invalid, kind), grpc("16", "Invalid API key", kind));
        assert_eq!(
            sent(&AuthError::Missing, "application/grpc+proto").1.0,
            "16"
        );
        assert_eq!(
            sent(&missing("a:b"), kind),
            grpc("7", "key lacks scope a:b", kind)
        );
        assert_eq!(sent(&stale, kind).1.0, "14");
        assert_eq!(
            sent(&limited(Duration::ZERO), kind),
            grpc("8", "Too many requests", kind)
        );
        assert_eq!(sent(&AuthError::NoLayer, kind).1.0, "13");
        let web = "application/grpc-web+proto";
        assert_eq!(
            sent(&invalid, "application/grpc-web"),
            grpc("16", "Invalid API key", web)
        );
        assert_eq!(sent(&invalid, "application/grpcx").0, 401);
        assert_eq!(sent(&invalid, "application/json").0, 401);
    }

    #[test]
    fn retry_after_is_in_whole_seconds_and_at_least_one() {
        for (pause, sent) in [
            (Duration::ZERO, "1"),
            (Duration::from_millis(1500), "2"),
            (Duration::from_secs(30), "30"),
            (Duration::MAX, &*u64::MAX.to_string()),
        ] {
            let manner = Manner {
                retry_after: pause,
                ..Manner::default()
            };
            let refusal = VerifyError::StoreUnavailable.into();
            let answer = answer(&refusal, (&manner, &CredentialSources::default()), &get());
            assert_eq!(answer.headers()[RETRY_AFTER], sent);
            // A limiter's pause is sent as it is, whatever the layer's setting for outages.
            assert_eq!(plain(&limited(pause)).headers()[RETRY_AFTER], sent);
        }
    }

    #[test]
    fn a_realm_cannot_leave_its_quotes() {
        for realm in ["a\"b", "a\\b", "a\r\nx: y", "a\tb", "é", "\u{7f}"] {
            assert!(Realm::new(realm).is_err(), "{realm:?}");
        }
        assert!(Realm::new(&"a".repeat(129)).is_err());
        assert!(Realm::new("Acme's API (v1)").is_ok());
    }

    proptest! {
        #[test]
        fn whatever_scope_is_missing_the_challenge_holds_it_in_quotes(
            scope in "[a-z0-9_.*-]{1,9}:[a-z0-9_.*-]{1,9}",
        ) {
            if let Ok(scope) = Scope::new(&scope) {
                let answer = plain(&missing(scope.as_str()));
                let sent = answer.headers()[WWW_AUTHENTICATE].to_str().unwrap();
                let quoted = sent.split('"').nth(3);
                prop_assert_eq!(quoted, Some(scope.as_str()));
                prop_assert_eq!(sent.matches('"').count(), 4);
            }
        }
    }
}
