//! [`AuthError`] and its HTTP response: RFC 6585, RFC 6750 (section 3), RFC 9110 and RFC 9457.
//!
//! The functions are pure. All keys that do not authenticate get the same status, type and text, so a client
//! cannot learn the reason. No response repeats bytes that the client sent.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, Entry, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde::Serialize;

use super::sources::{CredentialSources, CredentialsError};
use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::kind::ErrorKind;
use crate::core::rejection::VerifyError;
use crate::core::scope::Scope;

/// The reason why a request was refused.
///
/// [`Display`](std::fmt::Display) is meant for the service's own logs. The client gets
/// [`status`](Self::status), [`code`](Self::code), [`title`](Self::title) and [`detail`](Self::detail).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The request carries no key in any of the layer's [`CredentialSources`].
    #[error("no API key was sent")]
    Missing,
    /// The request's credentials are ambiguous or malformed.
    #[error(transparent)]
    Ambiguous(#[from] CredentialsError),
    /// The key does not verify, or may not be used for the request.
    #[error(transparent)]
    Rejected(#[from] VerifyError),
    /// The key may be used from certain addresses only, and the server does not pass the address of the
    /// socket's peer. This is a bug in the service: every key with an address allowlist is refused.
    #[error(
        "key has an address allowlist and the request has no peer address: serve with axum's \
         into_make_service_with_connect_info, insert PeerAddr, or set KeywardLayer::peer_addr"
    )]
    NoPeerAddress {
        /// The request's key, which is valid.
        key: KeyId,
    },
    /// The key may be used from certain addresses only, and the header of a trusted proxy names no address.
    #[error(
        "key has an address allowlist and {header} from the trusted proxy {peer} has an entry without \
         an address: let every proxy in trusted_proxies write the client's address there"
    )]
    NoClientAddress {
        /// The request's key, which is valid.
        key: KeyId,
        /// The address of the socket's peer.
        peer: IpAddr,
        /// The name of the header.
        header: HeaderName,
    },
    /// The layer requires a tenant, but the request names no tenant.
    #[error("the request names no tenant")]
    NoTenant {
        /// The request's key, which is valid.
        key: KeyId,
    },
    /// The service's own rate limiter refused the request; see
    /// [`KeywardLayer::rate_limit`](super::KeywardLayer::rate_limit).
    #[error("the limit is reached for another {retry_after:?}")]
    LimitReached {
        /// The request's key, which is valid and allowed for the request.
        key: KeyId,
        /// The time after which the client may try again.
        retry_after: Duration,
    },
    /// An extractor ran on a route without a [`KeywardLayer`](super::KeywardLayer). This is a bug in the
    /// service.
    #[error("no KeywardLayer that is on is around this route: put one there")]
    NoLayer,
    /// The extractor [`RequestTenant`](super::RequestTenant) ran behind a layer that reads no tenant. This is a
    /// bug in the service.
    #[error("the layer around this route reads no tenant: set tenant_in_path or tenant_from")]
    NoTenantSource,
}

/// The error of a rate limiter that refuses a request; see
/// [`KeywardLayer::rate_limit`](super::KeywardLayer::rate_limit).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LimitReached {
    retry_after: Duration,
}

impl LimitReached {
    /// Creates the error. The client may retry after `retry_after`, which is sent in whole seconds, rounded
    /// up, at least one.
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

impl AuthError {
    /// Returns the kind of the refusal, which determines the status.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing => ErrorKind::Unauthenticated,
            Self::Ambiguous(_) => ErrorKind::Invalid,
            Self::Rejected(rejection) => rejection.kind(),
            Self::NoPeerAddress { .. } | Self::NoClientAddress { .. } | Self::NoTenant { .. } => {
                ErrorKind::Forbidden
            }
            Self::LimitReached { .. } => ErrorKind::LimitReached,
            Self::NoLayer | Self::NoTenantSource => ErrorKind::Internal,
        }
    }

    /// Returns the status: 400, 401, 403, 429, 500 or 503.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        let status = StatusCode::from_u16(self.kind().http_status());
        status.expect("every kind has a valid status")
    }

    /// Returns a stable name for programs. The name ends the `type` of the problem details: `missing-key`,
    /// `ambiguous-credentials`, `invalid-key`, `insufficient-scope`, `key-not-allowed`, `rate-limited`,
    /// `unavailable` or `internal`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing => "missing-key",
            Self::Ambiguous(_) => "ambiguous-credentials",
            Self::Rejected(rejection) => rejection.public_code(),
            Self::NoPeerAddress { .. } | Self::NoClientAddress { .. } | Self::NoTenant { .. } => {
                "key-not-allowed"
            }
            Self::LimitReached { .. } => "rate-limited",
            Self::NoLayer | Self::NoTenantSource => "internal",
        }
    }

    /// Returns the outcome under which metrics count the request: the [`code`](Self::code), except for
    /// `no-peer-address` and `no-client-address`. For these two, the client gets the code `key-not-allowed`.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::NoPeerAddress { .. } => "no-peer-address",
            Self::NoClientAddress { .. } => "no-client-address",
            _ => self.code(),
        }
    }

    /// Returns a summary for people, the same for every error with this [`code`](Self::code).
    #[must_use]
    pub const fn title(&self) -> &'static str {
        match self {
            Self::Missing => "API key required",
            Self::Rejected(VerifyError::MissingScope { .. }) => "Insufficient scope",
            _ => match self.kind() {
                ErrorKind::Invalid => "Ambiguous credentials",
                ErrorKind::Unauthenticated => "Invalid API key",
                ErrorKind::Forbidden => "API key not allowed here",
                ErrorKind::LimitReached => "Too many requests",
                ErrorKind::Unavailable => "API keys cannot be verified at the moment",
                ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Internal => "Internal error",
            },
        }
    }

    /// Returns the text that the client may see: the [`detail`](Self::detail), or else the
    /// [`title`](Self::title).
    #[must_use]
    pub fn public_message(&self) -> String {
        self.detail().unwrap_or_else(|| self.title().to_owned())
    }

    /// Returns the details that the client may see.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Ambiguous(_) | Self::NoTenant { .. } => Some(self.to_string()),
            Self::Rejected(rejection) if rejection.kind() == ErrorKind::Forbidden => {
                Some(rejection.public_message())
            }
            // The client learns neither an address nor the reason why the address is unknown.
            Self::NoPeerAddress { key } | Self::NoClientAddress { key, .. } => {
                Some(VerifyError::AddressUnknown { key: *key }.public_message())
            }
            Self::Rejected(_)
            | Self::Missing
            | Self::LimitReached { .. }
            | Self::NoLayer
            | Self::NoTenantSource => None,
        }
    }

    /// Returns the scope that the key lacks. If the key needs only one of several scopes, returns the first
    /// of them.
    #[must_use]
    pub const fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Rejected(VerifyError::MissingScope { scope, .. }) => Some(scope),
            _ => None,
        }
    }

    /// Returns the id of the key, if the client presented the key's secret. `None` if the client may not know
    /// the secret.
    #[must_use]
    pub const fn key(&self) -> Option<KeyId> {
        match self {
            Self::Rejected(rejection) => rejection.key(),
            Self::NoPeerAddress { key }
            | Self::NoClientAddress { key, .. }
            | Self::NoTenant { key }
            | Self::LimitReached { key, .. } => Some(*key),
            _ => None,
        }
    }

    /// Returns the `error` parameter of a Bearer challenge (RFC 6750, section 3.1). `None` if the request had
    /// no key, or if the response has no challenge.
    const fn bearer_error(&self) -> Option<&'static str> {
        match self.kind() {
            _ if matches!(self, Self::Missing) => None,
            ErrorKind::Invalid => Some("invalid_request"),
            ErrorKind::Unauthenticated => Some("invalid_token"),
            ErrorKind::Forbidden => Some("insufficient_scope"),
            ErrorKind::LimitReached
            | ErrorKind::Unavailable
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Internal => None,
        }
    }

    /// Returns the gRPC status code. Ambiguous credentials are unauthenticated, because gRPC's invalid arguments are
    /// those of the method.
    const fn grpc_status(&self) -> i32 {
        match self {
            Self::Ambiguous(_) => ErrorKind::Unauthenticated.grpc_code(),
            _ => self.kind().grpc_code(),
        }
    }
}

/// The `realm` of a challenge. It contains only printable ASCII except `"` and `\`, so it needs no escaping.
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
pub(super) struct RefusalSettings {
    pub(super) realm: Option<Realm>,
    pub(super) problem_types: Cow<'static, str>,
    pub(super) grpc: bool,
    pub(super) retry_after: Duration,
}

impl Default for RefusalSettings {
    fn default() -> Self {
        Self {
            realm: None,
            problem_types: Cow::Borrowed("urn:problem-type:keyward:"),
            grpc: false,
            retry_after: Duration::from_secs(1),
        }
    }
}

/// The JSON body of a refusal (RFC 9457).
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

/// Returns the response to a refused request.
///
/// If the layer is set to answer in gRPC's form, a gRPC call gets a "Trailers-Only" response. The gRPC status
/// is then in the headers, and the body is empty.
pub(super) fn answer(
    refusal: &AuthError,
    (settings, sources): (&RefusalSettings, &CredentialSources),
    request: &Parts,
) -> Response<Bytes> {
    let mut headers = common_headers(refusal, (settings, sources));
    if settings.grpc
        && let Some(content_type) = grpc_content_type(&request.headers)
    {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert("grpc-status", refusal.grpc_status().into());
        let message = refusal.public_message();
        // gRPC messages are percent-encoded. The message is visible ASCII, of which only `%` must be encoded.
        if let Ok(message) = HeaderValue::from_str(&message.replace('%', "%25")) {
            headers.insert("grpc-message", message);
        }
        return response(StatusCode::OK, headers, Bytes::new());
    }
    let status = refusal.status();
    let problem = ProblemDetails {
        r#type: format!("{}{}", settings.problem_types, refusal.code()),
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

/// If the request is HEAD, removes the body of the response. `Content-Length` then still states the length of
/// that body (RFC 9110, section 9.3.2).
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
    (settings, sources): (&RefusalSettings, &CredentialSources),
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(vary) = vary(sources) {
        headers.insert(VARY, vary);
    }
    let pause = match refusal {
        AuthError::LimitReached { retry_after, .. } => Some(*retry_after),
        _ => matches!(
            refusal.kind(),
            ErrorKind::Unavailable | ErrorKind::LimitReached
        )
        .then_some(settings.retry_after),
    };
    if let Some(pause) = pause {
        // Rounds up to at least 1, because `Retry-After: 0` asks for an immediate retry.
        let part = u64::from(pause.subsec_nanos() > 0);
        let whole = pause.as_secs().saturating_add(part);
        headers.insert(RETRY_AFTER, whole.max(1).into());
    }
    for challenge in challenges(refusal, (settings, sources)) {
        headers.append(WWW_AUTHENTICATE, challenge);
    }
    headers
}

/// Returns the `Vary` header: the names of the request headers that may carry a key.
pub(super) fn vary(sources: &CredentialSources) -> Option<HeaderValue> {
    let authorization = (sources.bearer || sources.basic).then_some("authorization");
    let own = sources.header.as_ref().map(http::HeaderName::as_str);
    let names: Vec<_> = authorization.into_iter().chain(own).collect();
    HeaderValue::from_str(&names.join(", "))
        .ok()
        .filter(|names| !names.is_empty())
}

/// Adds the names in `names` to the `Vary` header of a response. The inner service, an inner layer or an
/// extractor may have set the header too. The response then has one header with every name once.
pub(super) fn add_vary(headers: &mut HeaderMap, names: HeaderValue) {
    if let Entry::Vacant(place) = headers.entry(VARY) {
        place.insert(names);
        return;
    }
    let all: Vec<_> = headers.get_all(VARY).iter().chain([&names]).collect();
    let merged = match &*all {
        [own, added] if own == added => return,
        lines => merged_names(lines),
    };
    match merged {
        Some(merged) => headers.insert(VARY, merged).is_some(),
        None => headers.append(VARY, names),
    };
}

/// Returns the names of several `Vary` headers in one header. `None` if a header is not text.
fn merged_names(lines: &[&HeaderValue]) -> Option<HeaderValue> {
    let mut merged: Vec<&str> = Vec::new();
    for line in lines {
        for name in line.to_str().ok()?.split(',').map(str::trim) {
            if !name.is_empty() && !merged.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                merged.push(name);
            }
        }
    }
    HeaderValue::from_str(&merged.join(", ")).ok()
}

/// Returns the `WWW-Authenticate` challenges. A 401 must have at least one (RFC 9110, section 15.5.2).
///
/// No scheme is registered for keys in other headers or in the query. So a layer that reads keys only there
/// sends a Bearer challenge.
fn challenges(
    refusal: &AuthError,
    (settings, sources): (&RefusalSettings, &CredentialSources),
) -> impl Iterator<Item = HeaderValue> {
    let kind = refusal.kind();
    let wanted = !matches!(
        kind,
        ErrorKind::LimitReached | ErrorKind::Unavailable | ErrorKind::Internal
    );
    let realm = settings.realm.as_ref().map(|realm| realm.0.as_str());
    let bearer = (sources.bearer || !sources.basic).then(|| {
        let scope = refusal.scope().map(Scope::as_str);
        let parameters = [
            ("realm", realm),
            ("error", refusal.bearer_error()),
            ("scope", scope),
        ];
        challenge("Bearer", parameters)
    });
    // A Basic challenge requires a realm and has no `error` parameter (RFC 7617, section 2).
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

/// Formats a challenge. Its values need no escaping, because none of them contains `"` or `\`.
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

/// Returns the content type for the response to a gRPC or gRPC-Web call. `None` if the request is no such
/// call.
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
    use crate::core::tenant::TenantId;
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
            (&RefusalSettings::default(), &CredentialSources::default()),
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

    /// Every [`VerifyError`], with its code and its HTTP status.
    fn all() -> Vec<(VerifyError, &'static str, u16)> {
        let (key, at) = (key(), at());
        let reason = Reason::Lost;
        let tenant = TenantId::new("acme").unwrap();
        let address = IpAddr::from([203, 0, 113, 7]);
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
            (
                VerifyError::WrongTenant { key, tenant },
                "key-not-allowed",
                403,
            ),
            (
                VerifyError::AddressNotAllowed { key, address },
                "key-not-allowed",
                403,
            ),
            (VerifyError::AddressUnknown { key }, "key-not-allowed", 403),
            (
                VerifyError::MissingScope { key, scope },
                "insufficient-scope",
                403,
            ),
            (VerifyError::Stale { age, bound }, "unavailable", 503),
            (VerifyError::NeedsFresh, "unavailable", 503),
            (VerifyError::StoreUnavailable, "unavailable", 503),
            (VerifyError::Busy, "rate-limited", 429),
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
            let later = matches!(status, 429 | 503);
            assert_eq!(headers.contains_key(WWW_AUTHENTICATE), !later);
            assert_eq!(headers.contains_key(RETRY_AFTER), later);
            assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
            assert_eq!(headers[CACHE_CONTROL], "no-store");
            assert_eq!(headers[VARY], "authorization, x-api-key");
        }
    }

    #[test]
    fn no_answer_names_an_address_and_every_log_line_about_one_does() {
        let (key, peer) = (key(), IpAddr::from([203, 0, 113, 7]));
        let header = HeaderName::from_static("x-forwarded-for");
        let refused = AuthError::Rejected(VerifyError::AddressNotAllowed { key, address: peer });
        let unreadable = AuthError::NoClientAddress { key, peer, header };
        let forgotten = AuthError::NoPeerAddress { key };
        let answers = [&refused, &unreadable, &forgotten].map(plain);
        assert_eq!(answers[0].body(), answers[1].body());
        assert_eq!(answers[0].body(), answers[2].body());
        for answer in answers {
            let text = format!("{answer:?}");
            assert!(text.contains("may not be used from this address"), "{text}");
            assert!(!text.contains("203.0.113.7"), "{text}");
        }
        assert!(refused.to_string().ends_with("from address 203.0.113.7"));
        assert!(
            unreadable
                .to_string()
                .contains("x-forwarded-for from the trusted proxy 203.0.113.7")
        );
        assert!(
            forgotten
                .to_string()
                .contains("into_make_service_with_connect_info")
        );
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
            let settings = RefusalSettings {
                grpc: true,
                ..RefusalSettings::default()
            };
            let how = (&settings, &CredentialSources::default().with_basic());
            let call = answer(&rejection.into(), how, &call);
            format!("{web:?} {call:?}")
        });
        let answers: std::collections::BTreeSet<_> = answers.collect();
        assert_eq!(answers.len(), 1);
    }

    #[test]
    fn challenges_are_those_of_the_standards() {
        let sent =
            |refusal: &AuthError, sources: &CredentialSources, settings: &RefusalSettings| {
                let answer = answer(refusal, (settings, sources), &get());
                let all = answer.headers().get_all(WWW_AUTHENTICATE).into_iter();
                all.map(|value| value.to_str().unwrap().to_owned())
                    .collect::<Vec<_>>()
            };
        let (plain, sources) = (RefusalSettings::default(), CredentialSources::default());
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
        let named = RefusalSettings {
            realm,
            ..RefusalSettings::default()
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
            let settings = RefusalSettings {
                grpc: true,
                ..RefusalSettings::default()
            };
            let how = (&settings, &CredentialSources::default());
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
            let settings = RefusalSettings {
                retry_after: pause,
                ..RefusalSettings::default()
            };
            let refusal = VerifyError::StoreUnavailable.into();
            let answer = answer(&refusal, (&settings, &CredentialSources::default()), &get());
            assert_eq!(answer.headers()[RETRY_AFTER], sent);
            // The layer's `retry_after` applies to other refusals. A rate limiter's own pause stays
            // unchanged.
            assert_eq!(plain(&limited(pause)).headers()[RETRY_AFTER], sent);
        }
    }

    #[test]
    fn vary_is_one_header_with_every_name_once() {
        let merged = |own: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for own in own {
                headers.append(VARY, HeaderValue::from_static(own));
            }
            add_vary(
                &mut headers,
                HeaderValue::from_static("authorization, x-api-key"),
            );
            let lines = headers.get_all(VARY).iter();
            let lines: Vec<_> = lines
                .map(|line| line.to_str().unwrap().to_owned())
                .collect();
            lines.join(" | ")
        };
        assert_eq!(merged(&[]), "authorization, x-api-key");
        assert_eq!(
            merged(&["authorization, x-api-key"]),
            "authorization, x-api-key"
        );
        assert_eq!(merged(&["X-API-Key"]), "X-API-Key, authorization");
        assert_eq!(
            merged(&["origin", "x-api-key"]),
            "origin, x-api-key, authorization"
        );
        assert_eq!(merged(&["*"]), "*, authorization, x-api-key");
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
