//! [`TrustedProxies`], which finds the client's address behind proxies.
//!
//! The functions are pure. Anybody can send the headers that proxies write, so only entries that a trusted
//! proxy has written count. The newest entry is the rightmost one, so entries are read from the right. If an
//! entry that counts cannot be parsed, the client is unknown.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::core::address::canonical;

/// The proxies that are trusted to state the client's address, and the header that they write.
///
/// The search starts at the socket's peer. While the address belongs to a trusted proxy, the search moves to
/// the rightmost unread entry, which that proxy wrote. The first untrusted address is the client. List every
/// proxy in front of the service, and no other host: a trusted host can claim any client address.
///
/// Only the header that the proxies write is read, because a proxy forwards headers that it does not know.
/// For example, a proxy that writes `X-Forwarded-For` would forward a `Forwarded` header that a client has
/// forged.
///
/// # Examples
///
/// ```
/// use keyward::web::TrustedProxies;
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
    /// Trusts proxies that write `Forwarded` (RFC 7239).
    pub fn forwarded(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self::new(networks, Header::Forwarded)
    }

    /// Trusts proxies that write `X-Forwarded-For`.
    pub fn x_forwarded_for(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self::new(networks, Header::XForwardedFor)
    }

    fn new(networks: impl IntoIterator<Item = IpNet>, header: Header) -> Self {
        let networks = networks.into_iter().map(canonical).collect();
        Self { networks, header }
    }

    /// Returns the client's address for a request from the socket's peer `peer`. `None` if the client is
    /// unknown.
    ///
    /// If all addresses belong to trusted proxies, the leftmost address is the client.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = peer.to_canonical();
        for line in headers.get_all(self.header()).iter().rev() {
            if !self.trusts(client) {
                break;
            }
            // If a line contains anything but visible ASCII, the client is unknown.
            let line = line.to_str().ok()?;
            match self.header {
                Header::Forwarded => {
                    // Quotes can only be matched from the left. So parse the whole line first, and then read
                    // its entries from the right.
                    let elements = elements(line)?;
                    let nodes = elements.into_iter().rev().map(|element| node(&element?));
                    client = self.walk(client, nodes)?;
                }
                Header::XForwardedFor => client = self.walk(client, line.rsplit(',').map(node))?,
            }
        }
        Some(client)
    }

    /// Returns the name of the header that the proxies write.
    pub(super) const fn header(&self) -> HeaderName {
        match self.header {
            Header::Forwarded => FORWARDED,
            Header::XForwardedFor => X_FORWARDED_FOR,
        }
    }

    /// Starts at the address `client`. While the address belongs to a trusted proxy, continues with the next
    /// node. `None` if a node that is reached has no address.
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

/// Parses an address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`,
/// `[2001:db8::1]`, `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']');
    let plain = text.parse::<IpAddr>().ok();
    let address = plain
        .or_else(|| bracketed()?.parse().ok().map(IpAddr::V6))
        .or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
}

/// Returns the `for` value of each element of a `Forwarded` header, from left to right. For an element
/// without `for`, or with several, the value is `None`.
///
/// If the header is malformed (RFC 7239, section 4), returns `None` for the whole header.
fn elements(line: &str) -> Option<Vec<Option<Cow<'_, str>>>> {
    let mut rest = line;
    let mut elements = Vec::new();
    loop {
        let (mut node, mut times) = (None, 0);
        loop {
            rest = rest.trim_start_matches([' ', '\t']);
            let (name, value, after) = pair(rest)?;
            if name.eq_ignore_ascii_case("for") {
                node = Some(value);
                times += 1;
            }
            rest = after.trim_start_matches([' ', '\t']);
            match rest.strip_prefix(';') {
                Some(after) => rest = after,
                None => break,
            }
        }
        elements.push(node.filter(|_| times == 1));
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => return rest.is_empty().then_some(elements),
        }
    }
}

/// Parses `token=value` at the beginning of `text`. Returns the token, the value and the remaining text.
fn pair(text: &str) -> Option<(&str, Cow<'_, str>, &str)> {
    let (name, rest) = token(text)?;
    let rest = rest.strip_prefix('=')?;
    match rest.strip_prefix('"') {
        Some(rest) => quoted(rest).map(|(value, rest)| (name, value, rest)),
        None => {
            // Many proxies omit the quotes that an address in brackets or with a port needs.
            let bare = |b: u8| is_token(b) || matches!(b, b'[' | b']' | b':');
            let (value, rest) = split(rest, bare)?;
            Some((name, Cow::Borrowed(value), rest))
        }
    }
}

/// Parses the rest of a quoted string, after its opening quote (RFC 9110, section 5.6.4). Returns the string
/// and the remaining text.
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

/// Splits `text` after the leading bytes that `fits` accepts. `None` if `fits` does not accept the first
/// byte.
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

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        headers
    }

    const TRUSTED: &[&str] = &["10.0.0.0/8", "fd00::/8"];
    const PROXY: &str = "10.0.0.1";

    /// Returns the client of a request from a trusted proxy with these `X-Forwarded-For` lines.
    fn by_list(lines: &[&str]) -> Option<String> {
        let proxies = TrustedProxies::x_forwarded_for(networks(TRUSTED));
        let client = proxies.client(PROXY.parse().unwrap(), &headers("x-forwarded-for", lines));
        client.map(|client| client.to_string())
    }

    /// Returns the client of a request from a trusted proxy with these `Forwarded` lines.
    fn by_standard(lines: &[&str]) -> Option<String> {
        let proxies = TrustedProxies::forwarded(networks(TRUSTED));
        let client = proxies.client(PROXY.parse().unwrap(), &headers("forwarded", lines));
        client.map(|client| client.to_string())
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_proxy_in_a_mapped_network_is_trusted_at_its_ipv4_address() {
        for trusted in [
            "::ffff:10.0.0.0/104",
            "::ffff:0:0/96",
            "::ffff:10.0.0.1/128",
        ] {
            let proxies = TrustedProxies::x_forwarded_for(networks(&[trusted]));
            let headers = headers("x-forwarded-for", &["192.0.2.1"]);
            for peer in [PROXY, "::ffff:10.0.0.1"] {
                let client = proxies.client(peer.parse().unwrap(), &headers);
                let expected: IpAddr = "192.0.2.1".parse().unwrap();
                assert_eq!(client, Some(expected), "{trusted} {peer}");
            }
        }
    }

    #[test]
    fn a_peer_that_is_no_proxy_is_the_client_whatever_it_writes() {
        let peer: IpAddr = "203.0.113.9".parse().unwrap();
        let mut lies = headers("x-forwarded-for", &["192.0.2.1"]);
        lies.append("forwarded", HeaderValue::from_static("for=192.0.2.1"));
        for proxies in [
            TrustedProxies::x_forwarded_for(networks(TRUSTED)),
            TrustedProxies::forwarded(networks(TRUSTED)),
            TrustedProxies::forwarded([]),
        ] {
            assert_eq!(proxies.client(peer, &lies), Some(peer));
        }
    }

    #[test]
    fn the_walk_ends_at_the_first_from_the_right_that_is_not_trusted() {
        assert_eq!(by_list(&["192.0.2.1, 203.0.113.7"]), some("203.0.113.7"));
        assert_eq!(
            by_list(&["192.0.2.1, 203.0.113.7,10.2.3.4"]),
            some("203.0.113.7")
        );
        assert_eq!(
            by_list(&["192.0.2.1", "203.0.113.7", "10.2.3.4"]),
            some("203.0.113.7")
        );
        assert_eq!(
            by_list(&["10.9.9.9, 10.2.3.4"]),
            some("10.9.9.9"),
            "all of them are trusted"
        );
        assert_eq!(by_list(&[]), some(PROXY));
        assert_eq!(
            by_standard(&["for=192.0.2.1, for=203.0.113.7;proto=https;by=10.0.0.1"]),
            some("203.0.113.7")
        );
        assert_eq!(
            by_standard(&["for=192.0.2.1", "For=\"[2001:db8::7]:80\""]),
            some("2001:db8::7")
        );
        assert_eq!(
            by_standard(&["for=203.0.113.7 , for=\"[fd00::1]\""]),
            some("203.0.113.7")
        );
    }

    #[test]
    fn an_entry_that_cannot_be_parsed_ends_the_walk_without_a_client() {
        for junk in [
            "unknown",
            "_hidden",
            "",
            "10.0.0.256",
            "[10.0.0.1]",
            "10.0.0.1:",
        ] {
            assert_eq!(
                by_list(&[&format!("203.0.113.7, {junk}")]),
                None,
                "{junk:?}"
            );
            let before = format!("{junk}, 203.0.113.7");
            assert_eq!(
                by_list(&[&before]),
                some("203.0.113.7"),
                "not reached: {junk:?}"
            );
        }
        assert_eq!(
            by_list(&["\u{e9}, 203.0.113.7"]),
            None,
            "a line that is no text"
        );
        for junk in [
            "for=unknown",
            "for=\"_hidden\"",
            "proto=https",
            "for=10.0.0.2;for=10.0.0.3",
            "",
            "for",
            "for=",
            "for=\"",
            "for=\"10.0.0.2",
            "for=\"10.0.0.2\"x",
            "for = 10.0.0.2",
            "=10.0.0.2",
            "for=10.0.0.2;",
            "for=10.0.0.2 x=1",
        ] {
            assert_eq!(
                by_standard(&[&format!("for=203.0.113.7, {junk}")]),
                None,
                "{junk:?}"
            );
            assert_eq!(by_standard(&["for=203.0.113.7", junk]), None, "{junk:?}");
            // The search stops before it reaches the malformed line.
            assert_eq!(
                by_standard(&[junk, "for=203.0.113.7"]),
                some("203.0.113.7"),
                "{junk:?}"
            );
        }
    }

    #[test]
    fn an_open_quote_swallows_the_entries_after_it_and_leaves_the_client_unknown() {
        for line in [
            "for=10.1.1.1;x=\", for=203.0.113.7",
            "for=10.1.1.1;x=\", for=\"[2001:db8::7]\"",
            "for=10.1.1.1;x=\"\\, for=203.0.113.7;by=\"10.0.0.1\"",
        ] {
            assert_eq!(by_standard(&[line]), None, "{line}");
        }
        // A comma in a quoted string does not separate two elements.
        let line = "for=192.0.2.1;x=\"a, for=10.1.1.1\", for=203.0.113.7";
        assert_eq!(by_standard(&[line]), some("203.0.113.7"));
    }

    #[test]
    fn a_mapped_address_counts_as_ipv4() {
        let proxies = TrustedProxies::x_forwarded_for(networks(TRUSTED));
        let headers = headers("x-forwarded-for", &["::ffff:203.0.113.7, ::ffff:10.0.0.2"]);
        let client = proxies.client("::ffff:10.0.0.1".parse().unwrap(), &headers);
        assert_eq!(client, Some([203, 0, 113, 7].into()));
    }

    /// The text of a header entry, and the address in it.
    type HeaderEntry = (&'static str, Option<&'static str>);

    const LIST: &[HeaderEntry] = &[
        ("10.0.0.2", Some("10.0.0.2")),
        ("10.0.0.3:8080", Some("10.0.0.3")),
        ("[fd00::1]", Some("fd00::1")),
        ("fd00::2", Some("fd00::2")),
        ("203.0.113.7", Some("203.0.113.7")),
        ("[2001:db8::7]:443", Some("2001:db8::7")),
        ("unknown", None),
        ("", None),
    ];
    const STANDARD: &[HeaderEntry] = &[
        ("for=10.0.0.2", Some("10.0.0.2")),
        ("FOR=\"10.0.0.3:8080\";proto=http", Some("10.0.0.3")),
        ("by=\"a,b;c\\\"d\";for=\"[fd00::1]\"", Some("fd00::1")),
        ("for=\"[fd00::2]:_port\"", None),
        ("for=203.0.113.7;host=x", Some("203.0.113.7")),
        ("for=\"[2001:db8::7]:443\"", Some("2001:db8::7")),
        ("for=unknown", None),
        ("proto=https", None),
    ];

    /// A reference implementation. It collects the addresses of all hops in one list, with the peer last, and
    /// checks them from the end.
    fn naive(entries: &[Vec<HeaderEntry>], trusted: &[IpNet]) -> Option<IpAddr> {
        let written = entries.iter().flatten().map(|(_, written)| *written);
        let mut hops: Vec<_> = written.chain([Some(PROXY)]).collect();
        loop {
            let client: IpAddr = hops.pop()??.parse().unwrap();
            let is_trusted = trusted.iter().any(|network| network.contains(&client));
            if !is_trusted || hops.is_empty() {
                return Some(client);
            }
        }
    }

    fn lines(pool: &'static [HeaderEntry]) -> impl Strategy<Value = Vec<Vec<HeaderEntry>>> {
        let line = prop::collection::vec(prop::sample::select(pool), 1..4);
        prop::collection::vec(line, 0..4)
    }

    fn write(line: &[HeaderEntry], separator: &str) -> String {
        let texts: Vec<_> = line.iter().map(|(text, _)| *text).collect();
        texts.join(separator)
    }

    proptest! {
        #[test]
        fn the_walk_does_what_a_list_of_hops_says(
            list in lines(LIST),
            standard in lines(STANDARD),
            separator in prop::sample::select(vec![",", ", ", " ,\t"]),
            trusted in prop::sample::subsequence(TRUSTED.to_vec(), 0..=TRUSTED.len()),
        ) {
            let trusted = networks(&trusted);
            let peer = PROXY.parse().unwrap();
            for (entries, name) in [(&list, "x-forwarded-for"), (&standard, "forwarded")] {
                let texts: Vec<_> = entries.iter().map(|line| write(line, separator)).collect();
                let texts: Vec<_> = texts.iter().map(String::as_str).collect();
                let proxies = if name == "forwarded" {
                    TrustedProxies::forwarded(trusted.clone())
                } else {
                    TrustedProxies::x_forwarded_for(trusted.clone())
                };
                let client = proxies.client(peer, &headers(name, &texts));
                prop_assert_eq!(client, naive(entries, &trusted), "{}: {:?}", name, texts);
            }
        }

        #[test]
        fn no_bytes_are_too_strange(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            text in r#"[for=";,\\\[\]:. 0-9a]{0,60}"#,
        ) {
            let peer = PROXY.parse().unwrap();
            for value in [HeaderValue::from_bytes(&bytes), HeaderValue::from_str(&text)] {
                let Ok(value) = value else { continue };
                let mut headers = HeaderMap::new();
                headers.append(FORWARDED, value.clone());
                headers.append(X_FORWARDED_FOR, value);
                let _ = TrustedProxies::forwarded(networks(TRUSTED)).client(peer, &headers);
                let _ = TrustedProxies::x_forwarded_for(networks(TRUSTED)).client(peer, &headers);
            }
        }
    }
}
