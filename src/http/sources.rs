//! Where a request may carry its key, and how it is read from there.
//!
//! Pure. Nothing is decoded that is longer than any key, and no error repeats what was sent.

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::core::token::MAX_PRESENTED_LEN;

/// Where a request may carry its key.
///
/// The default is `Authorization: Bearer` and the header `X-API-Key`. The same key in two places is
/// one key; two different keys in one request are refused with 400, whichever of them is valid.
///
/// # Examples
///
/// ```
/// use keyward::http::Sources;
///
/// let sources = Sources::none().with_bearer().with_basic();
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub struct Sources {
    pub(super) bearer: bool,
    pub(super) basic: bool,
    pub(super) header: Option<HeaderName>,
    pub(super) query: Option<String>,
}

impl Sources {
    /// `x-api-key`: the name that most APIs use. No standard has one.
    pub const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

    /// Nowhere: to begin with.
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

    /// Reads `Authorization: Basic` (RFC 7617): the key's own id or a publishable key of the same
    /// tenant as the user, the secret key as the password (rules A2-15, I-02). Both are needed.
    ///
    /// Off by default, since a refusal then names the scheme `Basic`, at which browsers ask whoever
    /// sits before them for a password.
    pub const fn with_basic(mut self) -> Self {
        self.basic = true;
        self
    }

    /// Reads a header of this name, which holds the key and nothing else.
    pub fn with_header(mut self, name: HeaderName) -> Self {
        self.header = Some(name);
        self
    }

    /// Reads a parameter of the query by this name.
    ///
    /// Off by default: a URL stands in the logs of every server and proxy on its way, in the history
    /// of browsers and in the `Referer` of the next request, and so would the key (RFC 6750, section
    /// 5.3). For clients that can set no header, such as a browser's WebSocket; give these keys of a
    /// class that may do little and ends soon.
    pub fn with_query(mut self, parameter: impl Into<String>) -> Self {
        self.query = Some(parameter.into());
        self
    }
}

impl Default for Sources {
    fn default() -> Self {
        Self::none().with_bearer().with_header(Self::API_KEY_HEADER)
    }
}

/// Why it cannot be told which key a request carries: 400 on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unclear {
    /// `Authorization` stands there more than once.
    #[error("more than one Authorization header")]
    SeveralAuthorizations,
    /// Different keys in several places.
    #[error("more than one API key")]
    SeveralKeys,
    /// The place for a key is there, and empty.
    #[error("the place for the API key is empty")]
    Empty,
    /// `Basic` without two halves, or longer than any pair of keys.
    #[error(
        "Basic takes the base64 form of a key id or publishable key, a colon and the secret key"
    )]
    Basic,
}

/// Bytes of a request, or decoded from it and wiped when dropped.
pub(super) enum Bytes<'r> {
    OfRequest(&'r [u8]),
    Decoded(Zeroizing<Vec<u8>>),
}

/// What a request presents. It may hold a secret, which `Debug` does not show.
#[derive(PartialEq)]
pub(super) enum Credentials<'r> {
    Key(Bytes<'r>),
    Pair { other: Bytes<'r>, secret: Bytes<'r> },
}

/// What a request presents, and where it stands.
pub(super) struct Found<'r> {
    pub(super) credentials: Credentials<'r>,
    pub(super) in_query: bool,
}

/// What a request presents in the places that `sources` names; `None` if nothing.
pub(super) fn find<'r>(
    sources: &Sources,
    headers: &'r HeaderMap,
    query: Option<&'r str>,
) -> Result<Option<Found<'r>>, Unclear> {
    let mut found = None;
    if sources.bearer || sources.basic {
        let mut lines = headers.get_all(AUTHORIZATION).iter();
        if let Some(value) = lines.next() {
            if lines.next().is_some() {
                return Err(Unclear::SeveralAuthorizations);
            }
            if let Some(credentials) = authorization(sources, value)? {
                found = join(found, credentials, false)?;
            }
        }
    }
    if let Some(name) = &sources.header {
        for value in headers.get_all(name) {
            found = join(found, key(Bytes::OfRequest(value.as_bytes()))?, false)?;
        }
    }
    if let (Some(parameter), Some(query)) = (&sources.query, query) {
        for value in parameters(query, parameter) {
            found = join(found, key(value)?, true)?;
        }
    }
    Ok(found)
}

/// One more place where something stands: the same again is the same.
fn join<'r>(
    found: Option<Found<'r>>,
    credentials: Credentials<'r>,
    in_query: bool,
) -> Result<Option<Found<'r>>, Unclear> {
    match found {
        None => Ok(Some(Found {
            credentials,
            in_query,
        })),
        Some(first) if first.credentials == credentials => Ok(Some(Found {
            in_query: first.in_query || in_query,
            ..first
        })),
        Some(_) => Err(Unclear::SeveralKeys),
    }
}

fn key(bytes: Bytes<'_>) -> Result<Credentials<'_>, Unclear> {
    if bytes.as_ref().trim_ascii().is_empty() {
        return Err(Unclear::Empty);
    }
    Ok(Credentials::Key(bytes))
}

/// What stands in an `Authorization` header; `None` if its scheme is none that is read.
fn authorization<'r>(
    sources: &Sources,
    value: &'r HeaderValue,
) -> Result<Option<Credentials<'r>>, Unclear> {
    let value = value.as_bytes().trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace);
    let (scheme, rest) = value.split_at(end.unwrap_or(value.len()));
    let rest = rest.trim_ascii();
    if sources.bearer && scheme.eq_ignore_ascii_case(b"bearer") {
        return key(Bytes::OfRequest(rest)).map(Some);
    }
    if sources.basic && scheme.eq_ignore_ascii_case(b"basic") {
        return basic(rest).map(Some);
    }
    Ok(None)
}

/// The longest base64 form of two keys with a colon between them.
const BASIC_MAX: usize = (2 * MAX_PRESENTED_LEN + 1).div_ceil(3) * 4;

/// The standard alphabet; clients differ on padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn basic<'r>(encoded: &[u8]) -> Result<Credentials<'r>, Unclear> {
    if encoded.is_empty() {
        return Err(Unclear::Empty);
    }
    if encoded.len() > BASIC_MAX {
        return Err(Unclear::Basic);
    }
    let mut pair = Zeroizing::new(vec![0; BASIC_MAX]);
    let length = BASE64.decode_slice(encoded, &mut pair);
    pair.truncate(length.map_err(|_| Unclear::Basic)?);
    // A user holds no colon, a password may (RFC 7617, section 2).
    let colon = pair.iter().position(|b| *b == b':').ok_or(Unclear::Basic)?;
    let half = |half: &[u8]| match half.trim_ascii() {
        [] => Err(Unclear::Basic),
        half => Ok(Bytes::Decoded(Zeroizing::new(half.to_vec()))),
    };
    Ok(Credentials::Pair {
        other: half(&pair[..colon])?,
        secret: half(&pair[colon + 1..])?,
    })
}

/// The values of one parameter in a query.
fn parameters<'r>(query: &'r str, name: &str) -> impl Iterator<Item = Bytes<'r>> {
    form_urlencoded::parse(query.as_bytes())
        .filter(move |(found, _)| found == name)
        .map(|(_, value)| match value {
            std::borrow::Cow::Borrowed(value) => Bytes::OfRequest(value.as_bytes()),
            std::borrow::Cow::Owned(value) => Bytes::Decoded(Zeroizing::new(value.into_bytes())),
        })
}

impl Credentials<'_> {
    /// The same, on its own feet: for a verification that outlives the request's head.
    pub(super) fn into_owned(self) -> Credentials<'static> {
        match self {
            Self::Key(key) => Credentials::Key(key.into_owned()),
            Self::Pair { other, secret } => Credentials::Pair {
                other: other.into_owned(),
                secret: secret.into_owned(),
            },
        }
    }
}

impl Bytes<'_> {
    fn into_owned(self) -> Bytes<'static> {
        Bytes::Decoded(match self {
            Self::OfRequest(bytes) => Zeroizing::new(bytes.to_vec()),
            Self::Decoded(bytes) => bytes,
        })
    }
}

impl AsRef<[u8]> for Bytes<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::OfRequest(bytes) => bytes,
            Self::Decoded(bytes) => bytes,
        }
    }
}

impl PartialEq for Bytes<'_> {
    /// Both sides came with the same request: there is nothing to learn from the time this takes.
    fn eq(&self, other: &Self) -> bool {
        self.as_ref().trim_ascii() == other.as_ref().trim_ascii()
    }
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key(..)",
            Self::Pair { .. } => "Pair(..)",
        })
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

    /// What is found, in words.
    fn told(sources: &Sources, lines: &[(&'static str, &[u8])], query: &str) -> String {
        let headers = headers(lines);
        match find(sources, &headers, Some(query)) {
            Ok(None) => "nothing".to_owned(),
            Ok(Some(found)) => match found.credentials {
                Credentials::Key(key) => text(&key),
                Credentials::Pair { other, secret } => {
                    format!("{} with {}", text(&other), text(&secret))
                }
            },
            Err(unclear) => format!("{unclear:?}"),
        }
    }

    fn text(bytes: &Bytes<'_>) -> String {
        String::from_utf8_lossy(bytes.as_ref()).into_owned()
    }

    fn everywhere() -> Sources {
        Sources::default().with_basic().with_query("key")
    }

    fn base64(text: &str) -> Vec<u8> {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text);
        format!("Basic {encoded}").into_bytes()
    }

    #[test]
    fn by_default_a_key_comes_as_bearer_or_in_its_own_header() {
        let default = Sources::default();
        let told = |lines: &[(&'static str, &[u8])]| told(&default, lines, "api_key=q&key=q");
        assert_eq!(told(&[("authorization", b"Bearer a")]), "a");
        assert_eq!(told(&[("x-api-key", b"a")]), "a");
        assert_eq!(told(&[("authorization", &base64("id:a"))]), "nothing");
        assert_eq!(told(&[("authorization", b"Token a")]), "nothing");
        assert_eq!(
            told(&[("cookie", b"a"), ("proxy-authorization", b"Bearer a")]),
            "nothing"
        );
    }

    #[test]
    fn a_scheme_has_no_case_and_any_space_after_it() {
        for value in ["Bearer a", "bearer a", "BEARER   a", "bEaReR \t a "] {
            assert_eq!(
                told(&everywhere(), &[("authorization", value.as_bytes())], ""),
                "a"
            );
        }
        assert_eq!(
            told(&everywhere(), &[("authorization", b"Bearera")], ""),
            "nothing"
        );
    }

    #[test]
    fn a_place_that_is_empty_is_no_request_without_a_key() {
        for value in ["Bearer", "Bearer ", "Basic"] {
            assert_eq!(
                told(&everywhere(), &[("authorization", value.as_bytes())], ""),
                "Empty"
            );
        }
        assert_eq!(told(&everywhere(), &[("x-api-key", b"")], ""), "Empty");
        assert_eq!(told(&everywhere(), &[], "key="), "Empty");
        assert_eq!(told(&everywhere(), &[], "key"), "Empty");
    }

    #[test]
    fn basic_is_a_pair_and_nothing_less() {
        let told = |value: &[u8]| told(&everywhere(), &[("authorization", value)], "");
        assert_eq!(told(&base64("id:secret")), "id with secret");
        assert_eq!(told(&base64("id:sec:ret")), "id with sec:ret");
        assert_eq!(told(b"basic aWQ6c2VjcmV0"), "id with secret");
        assert_eq!(told(b"Basic aWQ6cw"), "id with s", "without padding");
        for half in [":secret", "id:", ":", " : ", "secret", ""] {
            let expected = if half.is_empty() { "Empty" } else { "Basic" };
            assert_eq!(told(&base64(half)), expected, "{half:?}");
        }
        for junk in [
            "Basic aWQ6c2VjcmV0*",
            "Basic a",
            "Basic aWQ6 c2Vj",
            "Basic \u{e9}",
        ] {
            assert_eq!(told(junk.as_bytes()), "Basic", "{junk:?}");
        }
        let longest = format!("{}:{}", "u".repeat(512), "p".repeat(512));
        assert_eq!(told(&base64(&longest)), longest.replace(':', " with "));
        assert_eq!(told(&base64(&format!("{longest}pppp"))), "Basic");
    }

    #[test]
    fn a_parameter_is_decoded_and_no_other_is_read() {
        let told = |query: &str| told(&everywhere(), &[], query);
        assert_eq!(told("a=1&key=sk%5Flive%5fa&b=2"), "sk_live_a");
        assert_eq!(told("k%65y=a"), "a");
        assert_eq!(told("keys=a&akey=b&KEY=c"), "nothing");
        assert_eq!(told("key=a&key=b"), "SeveralKeys");
    }

    #[test]
    fn whoever_looks_at_credentials_sees_no_secret() {
        let headers = headers(&[("authorization", &base64("id:hush"))]);
        let found = find(&everywhere(), &headers, None).unwrap().unwrap();
        assert_eq!(format!("{:?}", found.credentials), "Pair(..)");
    }

    /// Where a key can be put.
    #[derive(Clone, Copy, Debug)]
    enum Place {
        Bearer,
        Own,
        Query,
    }

    proptest! {
        #[test]
        fn one_key_is_found_wherever_it_stands_and_two_are_refused(
            puts in prop::collection::vec(
                (prop::sample::select(vec![Place::Bearer, Place::Own, Place::Query]), "[ab]"),
                0..5,
            ),
        ) {
            let (mut lines, mut query) = (HeaderMap::new(), String::new());
            for (place, key) in &puts {
                match place {
                    Place::Bearer => {
                        lines.append(AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
                    }
                    Place::Own => {
                        lines.append(Sources::API_KEY_HEADER, key.parse().unwrap());
                    }
                    Place::Query => query += &format!("&key={key}"),
                }
            }
            let bearers = puts.iter().filter(|(place, _)| matches!(place, Place::Bearer));
            let bearers = bearers.count();
            let mut keys: Vec<_> = puts.iter().map(|(_, key)| key.as_str()).collect();
            keys.sort_unstable();
            keys.dedup();
            let sources = everywhere();
            let found = find(&sources, &lines, Some(&query));
            match found {
                Err(Unclear::SeveralAuthorizations) => prop_assert!(bearers > 1),
                Err(Unclear::SeveralKeys) => prop_assert!(bearers <= 1 && keys.len() == 2),
                Err(other) => prop_assert!(false, "{other:?}"),
                Ok(None) => prop_assert!(keys.is_empty()),
                Ok(Some(found)) => {
                    let Credentials::Key(key) = found.credentials else {
                        return Err(TestCaseError::fail("no pair was sent"));
                    };
                    prop_assert!(bearers <= 1);
                    prop_assert_eq!(&[text(&key)][..], &keys[..]);
                    let in_query = puts.iter().any(|(place, _)| matches!(place, Place::Query));
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
            for name in [AUTHORIZATION, Sources::API_KEY_HEADER] {
                if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                    lines.append(name, value);
                }
            }
            let _ = find(&everywhere(), &lines, Some(&query));
        }
    }
}
