//! Who the client is, behind proxies.
//!
//! Pure. A header says what its writer likes: it is believed as far as trusted proxies wrote it, from
//! the right (trap 23). What cannot be read ends the walk, and the client is unknown.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

/// Proxies whose word on the client's address is taken, and the header in which they give it.
///
/// The walk begins at the peer of the socket. As long as it stands at a trusted proxy it goes on to
/// the address that this proxy wrote, the rightmost that is left; where it stops is the client. Name
/// every proxy on the way and nobody else: whoever is trusted can say anything.
///
/// Only one header is read, since a proxy passes on what it does not know: one that writes
/// `X-Forwarded-For` hands through any `Forwarded` that a client made up.
///
/// # Examples
///
/// ```
/// use keyward::http::TrustedProxies;
///
/// let proxies = TrustedProxies::x_forwarded_for(["10.0.0.0/8".parse()?]);
/// let mut headers = http::HeaderMap::new();
/// headers.insert("x-forwarded-for", "192.0.2.66, 203.0.113.7, 10.0.0.2".parse()?);
/// let client = proxies.client([10, 0, 0, 1].into(), &headers);
/// assert_eq!(client, Some([203, 0, 113, 7].into()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    header: Header,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Header {
    Forwarded,
    XForwardedFor,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl TrustedProxies {
    /// Proxies that write `Forwarded` (RFC 7239).
    pub fn forwarded(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self::new(networks, Header::Forwarded)
    }

    /// Proxies that write `X-Forwarded-For`.
    pub fn x_forwarded_for(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self::new(networks, Header::XForwardedFor)
    }

    fn new(networks: impl IntoIterator<Item = IpNet>, header: Header) -> Self {
        let networks = networks.into_iter().collect();
        Self { networks, header }
    }

    /// The client of a request that came from `peer`; `None` if it cannot be told. A client that the
    /// proxies say nothing about is the outermost of them.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = peer.to_canonical();
        let name = match self.header {
            Header::Forwarded => FORWARDED,
            Header::XForwardedFor => X_FORWARDED_FOR,
        };
        for line in headers.get_all(name).iter().rev() {
            if !self.trusts(client) {
                break;
            }
            // A line that is not text cannot be read at all.
            let line = line.to_str().ok()?;
            match self.header {
                Header::Forwarded => {
                    // Quotes pair up from the left, so that a line is read as a whole.
                    let elements = elements(line)?;
                    let nodes = elements.into_iter().rev().map(|element| node(&element?));
                    client = self.walk(client, nodes)?;
                }
                Header::XForwardedFor => client = self.walk(client, line.rsplit(',').map(node))?,
            }
        }
        Some(client)
    }

    /// Goes on from `client` while it is trusted.
    fn walk(
        &self,
        mut client: IpAddr,
        nodes: impl Iterator<Item = Option<IpAddr>>,
    ) -> Option<IpAddr> {
        for node in nodes {
            if !self.trusts(client) {
                break;
            }
            client = node?;
        }
        Some(client)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']');
    let plain = text.parse::<IpAddr>().ok();
    let address = plain
        .or_else(|| bracketed()?.parse().ok().map(IpAddr::V6))
        .or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
}

/// What each element of a `Forwarded` header says of the client (`for`), from left to right: `None`
/// where it says nothing or says it twice. `None` if the header has another form than RFC 7239,
/// section 4, gives it.
fn elements(line: &str) -> Option<Vec<Option<Cow<'_, str>>>> {
    let mut rest = line;
    let mut elements = Vec::new();
    loop {
        let (mut node, mut told) = (None, 0);
        loop {
            rest = rest.trim_start_matches([' ', '\t']);
            let (name, value, after) = pair(rest)?;
            if name.eq_ignore_ascii_case("for") {
                node = Some(value);
                told += 1;
            }
            rest = after.trim_start_matches([' ', '\t']);
            match rest.strip_prefix(';') {
                Some(after) => rest = after,
                None => break,
            }
        }
        elements.push(node.filter(|_| told == 1));
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => return rest.is_empty().then_some(elements),
        }
    }
}

/// `token=value` at the beginning of `text`, and what comes after.
fn pair(text: &str) -> Option<(&str, Cow<'_, str>, &str)> {
    let (name, rest) = token(text)?;
    let rest = rest.strip_prefix('=')?;
    match rest.strip_prefix('"') {
        Some(rest) => quoted(rest).map(|(value, rest)| (name, value, rest)),
        None => {
            // Many leave out the quotes that an address in brackets or with a port needs.
            let bare = |b: u8| is_token(b) || matches!(b, b'[' | b']' | b':');
            let (value, rest) = split(rest, bare)?;
            Some((name, Cow::Borrowed(value), rest))
        }
    }
}

/// The rest of a quoted string (RFC 9110, section 5.6.4), and what comes after.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (end, '"') => return Some((Cow::Owned(value), &text[end + 1..])),
            (_, '\\') => value.push(characters.next()?.1),
            (_, other) => value.push(other),
        }
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    split(text, is_token)
}

/// As many bytes as `fits` takes, at least one, and the rest.
fn split(text: &str, fits: impl Fn(u8) -> bool) -> Option<(&str, &str)> {
    let end = text.bytes().position(|b| !fits(b)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at_checked(end)).flatten()
}

const fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}
