//! Finds the credentials in a request's headers and query.
//!
//! The functions are pure. Errors never repeat bytes that the client sent.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use zeroize::Zeroizing;

use crate::core::token::MAX_PRESENTED_LEN;
use crate::verifier::Credentials;

/// The places in a request that may carry its key.
///
/// Defaults to `Authorization: Bearer` and the header `X-API-Key`. A request may carry the same key in
/// several places. A request with two different keys gets 400, even if one of them is valid.
///
/// # Examples
///
/// ```
/// use keyward::web::CredentialSources;
///
/// let sources = CredentialSources::none().with_bearer().with_basic();
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub struct CredentialSources {
    pub(super) bearer: bool,
    pub(super) basic: bool,
    pub(super) header: Option<HeaderName>,
    pub(super) query: Option<String>,
}

impl CredentialSources {
    /// The header `x-api-key`, the most common choice. No standard defines a header for API keys.
    pub const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

    /// Returns an empty set of places. The other methods add places.
    pub const fn none() -> Self {
        Self {
            bearer: false,
            basic: false,
            header: None,
            query: None,
        }
    }

    /// Reads `Authorization: Bearer <key>` (RFC 6750, section 2.1).
    pub const fn with_bearer(mut self) -> Self {
        self.bearer = true;
        self
    }

    /// Reads `Authorization: Basic` (RFC 7617). The password is the secret key. The user is the key's own id,
    /// or a publishable key of the same tenant and environment. Both are required.
    ///
    /// Off by default. If on, a 401 also has a `Basic` challenge, which makes browsers open a password
    /// prompt.
    pub const fn with_basic(mut self) -> Self {
        self.basic = true;
        self
    }

    /// Reads the header `name`. Its whole value is the key.
    ///
    /// If `name` ends in `-bin`, as in gRPC's binary metadata, the value is the key in base64, with or without
    /// padding. It may list several keys, separated by commas. As everywhere, they must all be the same key.
    pub fn with_header(mut self, name: HeaderName) -> Self {
        self.header = Some(name);
        self
    }

    /// Reads the query parameter `parameter`, for clients that cannot set headers, such as a browser's
    /// WebSocket. Give such keys a class with few scopes and a short lifetime.
    ///
    /// Off by default. URLs, and the keys in them, end up in the logs of servers and proxies, in browser
    /// histories, and in `Referer` headers (RFC 6750, section 5.3).
    ///
    /// The layer removes the parameter from the request's URI before anything behind the layer sees the URI.
    /// A middleware in front of the layer, such as `TraceLayer`, still sees the key.
    pub fn with_query(mut self, parameter: impl Into<String>) -> Self {
        self.query = Some(parameter.into());
        self
    }
}

impl Default for CredentialSources {
    fn default() -> Self {
        Self::none().with_bearer().with_header(Self::API_KEY_HEADER)
    }
}

/// An error in a request's credentials. They are ambiguous or malformed, so the client gets 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// More than one `Authorization` header.
    #[error("more than one Authorization header")]
    SeveralAuthorizations,
    /// More than one key, and the keys differ.
    #[error("more than one API key")]
    SeveralKeys,
    /// A header or parameter for the key is present but empty.
    #[error("the place for the API key is empty")]
    Empty,
    /// The `Basic` value is not base64, lacks the user or the password, or is longer than any pair of keys.
    #[error(
        "Basic takes the base64 form of a key id or publishable key, a colon and the secret key"
    )]
    Basic,
    /// The value of a header whose name ends in `-bin` is not base64.
    #[error("a header whose name ends in -bin takes the base64 form of the API key")]
    Binary,
}

/// The bytes of a credential: borrowed from the request, or decoded from it and zeroized on drop.
pub(super) enum CredentialBytes<'r> {
    Borrowed(&'r [u8]),
    Decoded(Zeroizing<Vec<u8>>),
}

/// The credentials that a request carries.
pub(super) struct RequestCredentials<'r> {
    key: CredentialBytes<'r>,
    /// The public half of [`Credentials::Pair`], which is a key id or a publishable key. `None` unless the
    /// client sent `Basic`.
    public: Option<CredentialBytes<'r>>,
    /// True if the key is in the query.
    pub(super) in_query: bool,
}

/// Finds the credentials in the places that `sources` lists. `None` if the request has none there.
pub(super) fn find<'r>(
    sources: &CredentialSources,
    headers: &'r HeaderMap,
    query: Option<&'r str>,
) -> Result<Option<RequestCredentials<'r>>, CredentialsError> {
    let mut found = None;
    if sources.bearer || sources.basic {
        let mut lines = headers.get_all(AUTHORIZATION).iter();
        if let Some(value) = lines.next() {
            if lines.next().is_some() {
                return Err(CredentialsError::SeveralAuthorizations);
            }
            if let Some(carried) = authorization(sources, value)? {
                found = join(found, carried)?;
            }
        }
    }
    if let Some(name) = &sources.header {
        let is_binary = name.as_str().ends_with("-bin");
        for value in headers.get_all(name) {
            let value = value.as_bytes();
            // A longer line goes on undecoded. The verifier refuses it as too long for a key.
            if is_binary && value.len() <= BINARY_LINE_MAX {
                for encoded in value.split(|b| *b == b',') {
                    found = join(found, key(binary(encoded.trim_ascii())?, false)?)?;
                }
            } else {
                found = join(found, key(CredentialBytes::Borrowed(value), false)?)?;
            }
        }
    }
    if let (Some(parameter), Some(query)) = (&sources.query, query) {
        for value in parameters(query, parameter) {
            found = join(found, key(value, true)?)?;
        }
    }
    Ok(found)
}

/// Merges the credentials from two places of a request. Fails if the two keys differ.
fn join<'r>(
    found: Option<RequestCredentials<'r>>,
    next: RequestCredentials<'r>,
) -> Result<Option<RequestCredentials<'r>>, CredentialsError> {
    let in_query = next.in_query || found.as_ref().is_some_and(|first| first.in_query);
    match found {
        Some(first) if (&first.key, &first.public) != (&next.key, &next.public) => {
            Err(CredentialsError::SeveralKeys)
        }
        _ => Ok(Some(RequestCredentials { in_query, ..next })),
    }
}

fn key(
    key: CredentialBytes<'_>,
    in_query: bool,
) -> Result<RequestCredentials<'_>, CredentialsError> {
    if key.as_ref().trim_ascii().is_empty() {
        return Err(CredentialsError::Empty);
    }
    Ok(RequestCredentials {
        key,
        public: None,
        in_query,
    })
}

/// Parses an `Authorization` header. `None` if the layer does not read the scheme of the header.
fn authorization<'r>(
    sources: &CredentialSources,
    value: &'r HeaderValue,
) -> Result<Option<RequestCredentials<'r>>, CredentialsError> {
    let value = value.as_bytes().trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace);
    let (scheme, rest) = value.split_at(end.unwrap_or(value.len()));
    let rest = rest.trim_ascii();
    if sources.bearer && scheme.eq_ignore_ascii_case(b"bearer") {
        return key(CredentialBytes::Borrowed(rest), false).map(Some);
    }
    if sources.basic && scheme.eq_ignore_ascii_case(b"basic") {
        return basic(rest).map(Some);
    }
    Ok(None)
}

/// 1368 bytes: the base64 form of two keys of maximum length with a colon between them.
const BASIC_MAX: usize = (2 * MAX_PRESENTED_LEN + 1).div_ceil(3) * 4;

/// Standard base64. Padding is optional, because some clients omit it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// 684 bytes: the base64 form of a key of maximum length.
const BINARY_MAX: usize = MAX_PRESENTED_LEN.div_ceil(3) * 4;

/// 1369 bytes: two such keys and a comma. gRPC implementations may join the values of one header.
const BINARY_LINE_MAX: usize = 2 * BINARY_MAX + 1;

/// Decodes one value of a header whose name ends in `-bin`. A value that is too long for a key stays encoded,
/// so that the verifier refuses it.
fn binary(encoded: &[u8]) -> Result<CredentialBytes<'_>, CredentialsError> {
    if encoded.len() > BINARY_MAX {
        return Ok(CredentialBytes::Borrowed(encoded));
    }
    let mut decoded = Zeroizing::new(vec![0; BINARY_MAX]);
    let length = BASE64.decode_slice(encoded, &mut decoded);
    decoded.truncate(length.map_err(|_| CredentialsError::Binary)?);
    Ok(CredentialBytes::Decoded(decoded))
}

fn basic<'r>(encoded: &[u8]) -> Result<RequestCredentials<'r>, CredentialsError> {
    if encoded.is_empty() {
        return Err(CredentialsError::Empty);
    }
    if encoded.len() > BASIC_MAX {
        return Err(CredentialsError::Basic);
    }
    let mut pair = Zeroizing::new(vec![0; BASIC_MAX]);
    let length = BASE64.decode_slice(encoded, &mut pair);
    pair.truncate(length.map_err(|_| CredentialsError::Basic)?);
    // Splits at the first colon: a user contains no colon, but a password may (RFC 7617, section 2).
    let colon = pair
        .iter()
        .position(|b| *b == b':')
        .ok_or(CredentialsError::Basic)?;
    let half = |half: &[u8]| match half.trim_ascii() {
        [] => Err(CredentialsError::Basic),
        half => Ok(CredentialBytes::Decoded(Zeroizing::new(half.to_vec()))),
    };
    Ok(RequestCredentials {
        public: Some(half(&pair[..colon])?),
        key: half(&pair[colon + 1..])?,
        in_query: false,
    })
}

/// Returns `uri` without the query parameter `name`; `None` if the URI does not have the parameter.
pub(super) fn uri_without(uri: &Uri, name: &str) -> Option<Uri> {
    let query = uri.query()?;
    let is_named = |pair: &&str| {
        let found = form_urlencoded::parse(pair.as_bytes()).next();
        found.is_some_and(|(found, _)| found == name)
    };
    let kept: Vec<_> = query.split('&').filter(|pair| !is_named(pair)).collect();
    if kept.len() == query.split('&').count() {
        return None;
    }
    let path = match &*kept {
        [] => uri.path().to_owned(),
        kept => format!("{}?{}", uri.path(), kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    // Both parts come from a valid URI, so the joined text is valid too. If it were not, use the path alone,
    // so that the key is removed in any case.
    parts.path_and_query = PathAndQuery::try_from(path)
        .or_else(|_| PathAndQuery::try_from(uri.path()))
        .ok();
    Some(Uri::from_parts(parts).unwrap_or_default())
}

/// Returns all values of the query parameter `name`.
fn parameters<'r>(query: &'r str, name: &str) -> impl Iterator<Item = CredentialBytes<'r>> {
    form_urlencoded::parse(query.as_bytes())
        .filter(move |(found, _)| found == name)
        .map(|(_, value)| match value {
            std::borrow::Cow::Borrowed(value) => CredentialBytes::Borrowed(value.as_bytes()),
            std::borrow::Cow::Owned(value) => {
                CredentialBytes::Decoded(Zeroizing::new(value.into_bytes()))
            }
        })
}

impl RequestCredentials<'_> {
    pub(super) fn as_credentials(&self) -> Credentials<'_> {
        let key = self.key.as_ref();
        match &self.public {
            None => Credentials::Key(key),
            Some(public) => Credentials::Pair {
                public: public.as_ref(),
                secret: key,
            },
        }
    }

    /// Copies borrowed bytes. A verification that reads the store outlives the borrow of the request.
    pub(super) fn into_owned(self) -> RequestCredentials<'static> {
        RequestCredentials {
            key: self.key.into_owned(),
            public: self.public.map(CredentialBytes::into_owned),
            in_query: self.in_query,
        }
    }
}

impl CredentialBytes<'_> {
    fn into_owned(self) -> CredentialBytes<'static> {
        CredentialBytes::Decoded(match self {
            Self::Borrowed(bytes) => Zeroizing::new(bytes.to_vec()),
            Self::Decoded(bytes) => bytes,
        })
    }
}

impl AsRef<[u8]> for CredentialBytes<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Decoded(bytes) => bytes,
        }
    }
}

impl PartialEq for CredentialBytes<'_> {
    /// This comparison takes variable time. It reveals no secret, because the client sent both values in the
    /// same request.
    fn eq(&self, other: &Self) -> bool {
        self.as_ref().trim_ascii() == other.as_ref().trim_ascii()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        let value = |bytes| HeaderValue::from_bytes(bytes).unwrap();
        let lines = lines.iter().map(|(name, bytes)| (*name, value(bytes)));
        let mut headers = HeaderMap::new();
        lines.for_each(|(name, value)| {
            headers.append(HeaderName::from_static(name), value);
        });
        headers
    }

    /// Describes the result of `find` in words, for comparison with an expected text.
    fn in_words(
        sources: &CredentialSources,
        lines: &[(&'static str, &[u8])],
        query: &str,
    ) -> String {
        let headers = headers(lines);
        match find(sources, &headers, Some(query)) {
            Ok(None) => "nothing".to_owned(),
            Ok(Some(found)) => match &found.public {
                None => text(&found.key),
                Some(public) => format!("{} with {}", text(public), text(&found.key)),
            },
            Err(unclear) => format!("{unclear:?}"),
        }
    }

    fn text(bytes: &CredentialBytes<'_>) -> String {
        String::from_utf8_lossy(bytes.as_ref()).into_owned()
    }

    fn everywhere() -> CredentialSources {
        CredentialSources::default().with_basic().with_query("key")
    }

    fn base64(text: &str) -> Vec<u8> {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text);
        format!("Basic {encoded}").into_bytes()
    }

    #[test]
    fn by_default_a_key_comes_as_bearer_or_in_its_own_header() {
        let default = CredentialSources::default();
        let in_words =
            |lines: &[(&'static str, &[u8])]| in_words(&default, lines, "api_key=q&key=q");
        assert_eq!(in_words(&[("authorization", b"Bearer a")]), "a");
        assert_eq!(in_words(&[("x-api-key", b"a")]), "a");
        assert_eq!(in_words(&[("authorization", &base64("id:a"))]), "nothing");
        assert_eq!(in_words(&[("authorization", b"Token a")]), "nothing");
        assert_eq!(
            in_words(&[("cookie", b"a"), ("proxy-authorization", b"Bearer a")]),
            "nothing"
        );
    }

    #[test]
    fn a_scheme_has_no_case_and_any_space_after_it() {
        for value in ["Bearer a", "bearer a", "BEARER   a", "bEaReR \t a "] {
            assert_eq!(
                in_words(&everywhere(), &[("authorization", value.as_bytes())], ""),
                "a"
            );
        }
        assert_eq!(
            in_words(&everywhere(), &[("authorization", b"Bearera")], ""),
            "nothing"
        );
    }

    #[test]
    fn a_place_that_is_empty_is_no_request_without_a_key() {
        for value in ["Bearer", "Bearer ", "Basic"] {
            assert_eq!(
                in_words(&everywhere(), &[("authorization", value.as_bytes())], ""),
                "Empty"
            );
        }
        assert_eq!(in_words(&everywhere(), &[("x-api-key", b"")], ""), "Empty");
        assert_eq!(in_words(&everywhere(), &[], "key="), "Empty");
        assert_eq!(in_words(&everywhere(), &[], "key"), "Empty");
    }

    #[test]
    fn basic_is_a_pair_and_nothing_less() {
        let in_words = |value: &[u8]| in_words(&everywhere(), &[("authorization", value)], "");
        assert_eq!(in_words(&base64("id:secret")), "id with secret");
        assert_eq!(in_words(&base64("id:sec:ret")), "id with sec:ret");
        assert_eq!(in_words(b"basic aWQ6c2VjcmV0"), "id with secret");
        assert_eq!(in_words(b"Basic aWQ6cw"), "id with s", "without padding");
        for half in [":secret", "id:", ":", " : ", "secret", ""] {
            let expected = if half.is_empty() { "Empty" } else { "Basic" };
            assert_eq!(in_words(&base64(half)), expected, "{half:?}");
        }
        for junk in [
            "Basic aWQ6c2VjcmV0*",
            "Basic a",
            "Basic aWQ6 c2Vj",
            "Basic \u{e9}",
        ] {
            assert_eq!(in_words(junk.as_bytes()), "Basic", "{junk:?}");
        }
        let longest = format!("{}:{}", "u".repeat(512), "p".repeat(512));
        assert_eq!(in_words(&base64(&longest)), longest.replace(':', " with "));
        assert_eq!(in_words(&base64(&format!("{longest}pppp"))), "Basic");
    }

    #[test]
    fn a_header_for_binary_values_is_decoded_with_and_without_padding() {
        let name = "x-api-key-bin";
        let sources = CredentialSources::default().with_header(HeaderName::from_static(name));
        let in_words = |value: &str| in_words(&sources, &[(name, value.as_bytes())], "");
        assert_eq!(in_words("c2tfYQ=="), "sk_a");
        assert_eq!(in_words("c2tfYQ"), "sk_a");
        assert_eq!(in_words(" c2tfYQ== ,c2tfYQ"), "sk_a", "the same key twice");
        assert_eq!(in_words("c2tfYQ,c2tfYg"), "SeveralKeys");
        for empty in ["", ",c2tfYQ", "IA"] {
            assert_eq!(in_words(empty), "Empty", "{empty:?}");
        }
        for junk in ["sk_a", "c2tf YQ", "c2tfYQ===", "c"] {
            assert_eq!(in_words(junk), "Binary", "{junk:?}");
        }
        // A value that is longer than any key is not decoded.
        let longest = base64::engine::general_purpose::STANDARD.encode("k".repeat(512));
        assert_eq!(longest.len(), BINARY_MAX);
        assert_eq!(in_words(&longest), "k".repeat(512));
        let pair = format!("{longest},{longest}");
        assert_eq!(pair.len(), BINARY_LINE_MAX);
        assert_eq!(in_words(&pair), "k".repeat(512));
        let long = format!("{longest}====");
        assert_eq!(in_words(&long), long);
        let list = format!("{pair},");
        assert_eq!(in_words(&list), list);
        let plain = [("x-api-key", b"c2tfYQ".as_slice())];
        assert_eq!(
            super::tests::in_words(&CredentialSources::default(), &plain, ""),
            "c2tfYQ"
        );
    }

    #[test]
    fn a_parameter_is_decoded_and_no_other_is_read() {
        let in_words = |query: &str| in_words(&everywhere(), &[], query);
        assert_eq!(in_words("a=1&key=sk%5Flive%5fa&b=2"), "sk_live_a");
        assert_eq!(in_words("k%65y=a"), "a");
        assert_eq!(in_words("keys=a&akey=b&KEY=c"), "nothing");
        assert_eq!(in_words("key=a&key=b"), "SeveralKeys");
    }

    #[test]
    fn debug_output_of_credentials_shows_no_secret() {
        let headers = headers(&[("authorization", &base64("id:hush"))]);
        let found = find(&everywhere(), &headers, None).unwrap().unwrap();
        assert_eq!(format!("{:?}", found.as_credentials()), "Pair { .. }");
    }

    /// A place in a request that may carry a key.
    #[derive(Clone, Copy, Debug)]
    enum KeyLocation {
        Bearer,
        Own,
        Query,
    }

    proptest! {
        #[test]
        fn one_key_is_found_wherever_it_stands_and_two_are_refused(
            puts in prop::collection::vec(
                (prop::sample::select(vec![KeyLocation::Bearer, KeyLocation::Own, KeyLocation::Query]), "[ab]"),
                0..5,
            ),
        ) {
            let (mut lines, mut query) = (HeaderMap::new(), String::new());
            for (place, key) in &puts {
                match place {
                    KeyLocation::Bearer => {
                        lines.append(AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
                    }
                    KeyLocation::Own => {
                        lines.append(CredentialSources::API_KEY_HEADER, key.parse().unwrap());
                    }
                    KeyLocation::Query => query += &format!("&key={key}"),
                }
            }
            let bearers = puts.iter().filter(|(place, _)| matches!(place, KeyLocation::Bearer));
            let bearers = bearers.count();
            let mut keys: Vec<_> = puts.iter().map(|(_, key)| key.as_str()).collect();
            keys.sort_unstable();
            keys.dedup();
            let sources = everywhere();
            let found = find(&sources, &lines, Some(&query));
            match found {
                Err(CredentialsError::SeveralAuthorizations) => prop_assert!(bearers > 1),
                Err(CredentialsError::SeveralKeys) => prop_assert!(bearers <= 1 && keys.len() == 2),
                Err(other) => prop_assert!(false, "{other:?}"),
                Ok(None) => prop_assert!(keys.is_empty()),
                Ok(Some(found)) => {
                    prop_assert!(bearers <= 1 && found.public.is_none());
                    prop_assert_eq!(&[text(&found.key)][..], &keys[..]);
                    let in_query = puts.iter().any(|(place, _)| matches!(place, KeyLocation::Query));
                    prop_assert_eq!(found.in_query, in_query);
                }
            }
        }

        #[test]
        fn no_bytes_and_no_query_are_too_strange(
            scheme in "(?i:bearer|basic)? ?",
            value in prop::collection::vec(any::<u8>(), 0..2000),
            query in ".{0,200}",
        ) {
            let bytes: Vec<u8> = scheme.bytes().chain(value.iter().copied()).collect();
            let mut lines = HeaderMap::new();
            let binary = HeaderName::from_static("x-api-key-bin");
            for name in [AUTHORIZATION, CredentialSources::API_KEY_HEADER, binary.clone()] {
                if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                    lines.append(name, value);
                }
            }
            let _ = find(&everywhere(), &lines, Some(&query));
            let alone = CredentialSources::none().with_header(binary);
            let _ = find(&alone, &lines, None);
        }
    }
}
