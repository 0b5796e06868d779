//! Targets at the HTTP layer: requests with any headers and any query, and the headers of proxies.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Empty;
use keyward::key::IpNet;
use keyward::web::{CredentialSources, KeywardLayer, TrustedProxies};
use tower::{Layer, ServiceExt, service_fn};

use crate::text::ONE_KEY;

/// The byte that stands for the secret of the one key, which the fuzzer cannot guess.
const SECRET: u8 = 0x01;

/// The byte that stands for the id of the one key.
const ID: u8 = 0x02;

fn layer() -> KeywardLayer {
    let sources = CredentialSources::default()
        .with_basic()
        .with_query("api_key");
    KeywardLayer::new(ONE_KEY.keys.clone())
        .sources(sources)
        .peer_addr(|_| Some(IpAddr::V4(Ipv4Addr::LOCALHOST)))
        .trusted_proxies(TrustedProxies::forwarded([loopback()]))
}

fn loopback() -> IpNet {
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::LOCALHOST), 8)
}

static LAYER: LazyLock<KeywardLayer> = LazyLock::new(layer);

/// Splits the input into lines `name: value`. The first line is returned by itself.
fn lines(input: &[u8]) -> (Vec<u8>, HeaderMap) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let first = replaced(lines.next().unwrap_or_default());
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let colon = line.iter().position(|byte| *byte == b':');
        let Some((name, [_, value @ ..])) = colon.map(|colon| line.split_at(colon)) else {
            continue;
        };
        let value = HeaderValue::from_bytes(replaced(value).trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.append(name, value);
        }
    }
    (first, headers)
}

fn replaced(line: &[u8]) -> Vec<u8> {
    let secret = || ONE_KEY.secret.expose().as_bytes().to_vec();
    let bytes = line.iter().map(|byte| match *byte {
        SECRET => secret(),
        ID => ONE_KEY.id.to_string().into_bytes(),
        other => vec![other],
    });
    bytes.flatten().collect()
}

/// Sends a request through the layer. The first line is the URI. A request without the secret gets no answer of the
/// inner service, and no answer contains the secret.
pub fn request(input: &[u8]) {
    let (uri, headers) = lines(input);
    let Ok(mut request) = Request::builder()
        .uri(uri)
        .body(Empty::<&'static [u8]>::new())
    else {
        return;
    };
    *request.headers_mut() = headers;
    let inner = service_fn(|request: Request<Empty<&'static [u8]>>| async move {
        let query = request.uri().query().unwrap_or_default();
        assert!(query.split('&').all(|pair| !pair.starts_with("api_key=")));
        let shown = format!("{:?}", request.headers());
        let names = ["authorization", "x-api-key"];
        for value in names
            .iter()
            .flat_map(|name| request.headers().get_all(*name))
        {
            assert!(value.is_sensitive(), "{shown}");
        }
        Ok::<_, Infallible>(Response::new(Empty::<&'static [u8]>::new()))
    });
    let answer = pollster::block_on(LAYER.layer(inner).oneshot(request)).unwrap();
    let has_secret = input.contains(&SECRET);
    assert!(has_secret || answer.status() != StatusCode::OK);
    let shown = format!("{:?} {:?}", answer.status(), answer.headers());
    assert!(!shown.contains(ONE_KEY.secret.expose()), "{shown}");
}

/// Finds the client's address. The first byte chooses the peer. A peer that is no proxy is the client.
pub fn proxies(input: &[u8]) {
    let (first, headers) = lines(input);
    let trusted = first.first().is_none_or(|byte| byte % 2 == 0);
    let peer = match trusted {
        true => IpAddr::V4(Ipv4Addr::LOCALHOST),
        false => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)),
    };
    for proxies in [
        TrustedProxies::forwarded([loopback()]),
        TrustedProxies::x_forwarded_for([loopback()]),
    ] {
        let client = proxies.client(peer, &headers);
        assert!(trusted || client == Some(peer), "{client:?}");
    }
    let list = headers.get_all("x-forwarded-for");
    let mut entries = Vec::new();
    for line in &list {
        let Ok(line) = line.to_str() else { return };
        entries.extend(line.split(',').map(str::trim));
    }
    // The list read from the right, if all its entries are plain addresses.
    let plain: Option<Vec<IpAddr>> = entries.iter().map(|entry| entry.parse().ok()).collect();
    let Some(plain) = plain else { return };
    let expected = std::iter::once(peer)
        .chain(plain.iter().rev().map(IpAddr::to_canonical))
        .find(|address| !loopback().contains(address))
        .or(plain.first().map(IpAddr::to_canonical))
        .unwrap_or(peer);
    let found = TrustedProxies::x_forwarded_for([loopback()]).client(peer, &headers);
    assert_eq!(found, Some(expected));
}
