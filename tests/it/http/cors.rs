//! CORS: browsers on pages of another origin, with tower-http's CORS layer outside or inside keyward's layer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::Method;
use http::header::{AUTHORIZATION, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use keyward::web::{KeywardLayer, LimitReached};
use tower_http::cors::CorsLayer;

use crate::http::server::{Answer, Server};
use support::*;

const PAGE: &str = "https://app.example.com";
const ELSEWHERE: &str = "https://elsewhere.example.com";

/// Returns a CORS layer that allows pages of one origin to send keys and to read the headers of refusals.
fn cors() -> CorsLayer {
    let api_key = HeaderName::from_static("x-api-key");
    CorsLayer::new()
        .allow_origin([PAGE.parse().unwrap()])
        .allow_methods([Method::GET, Method::PUT])
        .allow_headers([AUTHORIZATION, api_key])
        .expose_headers([WWW_AUTHENTICATE, RETRY_AFTER])
}

/// Returns a router that answers every path and method, and a counter of its calls.
fn handler() -> (Router, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let own = count.clone();
    let inner = move || {
        own.fetch_add(1, Ordering::SeqCst);
        async { ([("vary", "accept-language")], "inner") }
    };
    (Router::new().fallback(any(inner)), count)
}

/// Sends the preflight request that a browser sends before a request with a key.
fn preflight(server: &Server, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "authorization"),
    ];
    server.ask(Method::OPTIONS, "/", &headers)
}

fn asked(server: &Server, origin: &str, key: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [("origin", origin), ("authorization", &bearer)];
    server.ask(Method::PUT, "/", &headers)
}

/// Returns whether a browser shows the answer to a page of `origin`.
fn readable(answer: &Answer, origin: &str) -> bool {
    answer.header("access-control-allow-origin") == origin
}

/// Returns the names in all `Vary` headers. Checks that each name occurs once.
#[track_caller]
fn vary(answer: &Answer) -> BTreeSet<String> {
    let lines = answer.headers.get_all("vary").iter();
    let names = lines.flat_map(|line| line.to_str().unwrap().split(','));
    let names: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
    let set: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(set.len(), names.len(), "{names:?}");
    set
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// The names that tower-http's CORS layer lists in `Vary`. The constant `KEYS` has those that keyward's layer
/// lists.
const CORS: [&str; 3] = [
    "origin",
    "access-control-request-method",
    "access-control-request-headers",
];
const KEYS: [&str; 2] = ["authorization", "x-api-key"];

#[test]
fn an_outer_cors_layer_answers_preflights_and_lets_browsers_read_refusals() {
    let world = TestService::new();
    let key = world.some_key();
    let text = key.secret.expose();
    let layer = KeywardLayer::new(world.keys.clone());
    for side_by_side in [false, true] {
        let (inner, reached) = handler();
        let keyed = layer.clone();
        let app = match side_by_side {
            false => inner.layer(keyed).layer(cors()),
            // A tuple of layers, in which the CORS layer wraps keyward's layer directly.
            true => inner.layer((cors(), keyed)),
        };
        let server = Server::start(app);

        let answer = preflight(&server, PAGE);
        assert_eq!((answer.status, &*answer.body), (200, ""));
        assert!(readable(&answer, PAGE));
        let allowed = answer.header("access-control-allow-headers");
        assert_eq!(allowed, "authorization,x-api-key");
        assert_eq!(answer.header("access-control-allow-methods"), "GET,PUT");
        assert_eq!(answer.header("www-authenticate"), "");
        assert_eq!(reached.load(Ordering::SeqCst), 0);
        assert!(!readable(&preflight(&server, ELSEWHERE), ELSEWHERE));

        let both = [&CORS[..], &KEYS].concat();
        let refused = asked(&server, PAGE, "garbage");
        assert_eq!((refused.status, &*refused.code()), (401, "invalid-key"));
        assert!(readable(&refused, PAGE));
        let exposed = refused.header("access-control-expose-headers");
        assert_eq!(exposed, "www-authenticate,retry-after");
        assert_eq!(vary(&refused), names(&both));
        assert_eq!(refused.header("cache-control"), "no-store");
        let elsewhere = asked(&server, ELSEWHERE, "garbage");
        assert!(elsewhere.status == 401 && !readable(&elsewhere, ELSEWHERE));
        assert_eq!(reached.load(Ordering::SeqCst), 0);

        let passed = asked(&server, PAGE, text);
        assert_eq!((passed.status, &*passed.body), (200, "inner"));
        assert!(readable(&passed, PAGE));
        let all = [&both[..], &["accept-language"]].concat();
        assert_eq!(vary(&passed), names(&all));
        assert_eq!(reached.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_page_can_read_the_retry_headers() {
    let world = TestService::new();
    let key = world.some_key();
    let layer = KeywardLayer::new(world.keys.clone())
        .rate_limit(|_, _| Err(LimitReached::new(Duration::from_secs(7))));
    let server = Server::start(handler().0.layer((cors(), layer)));
    let refused = asked(&server, PAGE, key.secret.expose());
    assert!(refused.status == 429 && readable(&refused, PAGE));
    assert_eq!(refused.header("retry-after"), "7");
}

#[test]
fn an_inner_cors_layer_answers_preflights_that_are_let_through() {
    let world = TestService::new();
    let key = world.some_key();
    let layer = KeywardLayer::new(world.keys.clone());
    let (inner, reached) = handler();
    let inner = inner.layer(cors());
    let closed = Server::start(inner.clone().layer(layer.clone()));
    assert_eq!(preflight(&closed, PAGE).code(), "missing-key");

    let server = Server::start(inner.layer(layer.allow_preflight()));
    let answer = preflight(&server, PAGE);
    assert_eq!((answer.status, &*answer.body), (200, ""));
    assert!(readable(&answer, PAGE));
    assert_eq!(vary(&answer), names(&[&CORS[..], &KEYS].concat()));
    assert_eq!(reached.load(Ordering::SeqCst), 0);

    let passed = asked(&server, PAGE, key.secret.expose());
    assert!(passed.status == 200 && readable(&passed, PAGE));
    let all = [&CORS[..], &KEYS, &["accept-language"]].concat();
    assert_eq!(vary(&passed), names(&all));
    assert_eq!(reached.load(Ordering::SeqCst), 1);

    // Here keyward's layer wraps the CORS layer, so its refusals get no CORS headers, and browsers hide them
    // from the page. The documentation recommends the other order.
    let refused = asked(&server, PAGE, "garbage");
    assert_eq!((refused.status, &*refused.code()), (401, "invalid-key"));
    assert!(!readable(&refused, PAGE));
    assert_eq!(reached.load(Ordering::SeqCst), 1);
}
