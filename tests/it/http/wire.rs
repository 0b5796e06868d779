//! Corner cases of HTTP: connections, methods, long and odd headers, and a client that is not written in
//! Rust.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use http::Method;
use keyward::CreateKey;
use keyward::command::Created;
use keyward::web::{CredentialSources, KeywardLayer};

use crate::http::server::Server;
use support::*;

fn service() -> (Server, Created) {
    let world = TestService::new();
    let key = world.some_key();
    (Server::with(KeywardLayer::new(world.keys.clone())), key)
}

/// Reads one response from a connection that stays open. Returns its head and body.
fn read_answer(stream: &mut BufReader<TcpStream>) -> (String, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(
            stream.read_line(&mut head).unwrap(),
            0,
            "closed after {head:?}"
        );
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.split("content-length: ").nth(1).unwrap();
    let length = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn a_connection_stays_usable_after_a_refusal() {
    let (server, key) = service();
    let mut stream = BufReader::new(server.connect());
    let mut ask = |request: String| {
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        read_answer(&mut stream)
    };
    let with = |key: &str| format!("GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n");
    for _ in 0..3 {
        let (head, body) = ask(with("garbage"));
        assert!(
            head.starts_with("HTTP/1.1 401 ") && body.contains("invalid-key"),
            "{head}"
        );
        let (head, body) = ask(with(key.secret.expose()));
        assert!(
            head.starts_with("HTTP/1.1 200 ") && body.contains("acme"),
            "{head}"
        );
        // The server does not parse the body of a refused request as the next request.
        let body = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let length = body.len();
        let refused =
            format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        assert!(ask(refused).0.starts_with("HTTP/1.1 401 "));
    }
}

#[test]
fn head_gets_the_headers_of_get_without_the_body() {
    let (server, key) = service();
    for headers in [&[][..], &[("x-api-key", "garbage")]] {
        let get = server.get("/", headers);
        let head = server.ask(Method::HEAD, "/", headers);
        assert_eq!((head.status, &*head.body), (401, ""));
        let mut expected = get.headers.clone();
        let mut found = head.headers.clone();
        for headers in [&mut expected, &mut found] {
            headers.remove("date");
        }
        assert_eq!(found, expected);
        assert_eq!(head.header("content-length"), get.body.len().to_string());
    }
    let passed = server.ask(Method::HEAD, "/", &[("x-api-key", key.secret.expose())]);
    assert_eq!(passed.status, 200);
    // The raw response to a HEAD request has no body. A client would read a body as the start of the next
    // response.
    let raw = server.raw(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(raw.ends_with("\r\n\r\n") && !raw.contains("title"), "{raw}");
}

#[test]
fn only_preflights_pass_without_a_key_and_only_if_the_service_allows_them() {
    let preflight = [
        ("origin", "https://app.example.com"),
        ("access-control-request-method", "GET"),
        ("access-control-request-headers", "authorization"),
    ];
    let world = TestService::new();
    let layer = KeywardLayer::new(world.keys.clone());
    let open = axum::Router::new().fallback(axum::routing::any(|| async { "inner" }));
    let closed = Server::start(open.clone().layer(layer.clone()));
    let refused = closed.ask(Method::OPTIONS, "/", &preflight);
    assert_eq!(refused.code(), "missing-key");
    let server = Server::start(open.layer(layer.allow_preflight()));
    assert_eq!(server.ask(Method::OPTIONS, "/", &preflight).body, "inner");
    for (method, headers) in [
        (Method::GET, &preflight[..]),
        (Method::POST, &preflight),
        (Method::OPTIONS, &preflight[..1]),
        (Method::OPTIONS, &preflight[1..]),
        (Method::OPTIONS, &[]),
    ] {
        let refused = server.ask(method.clone(), "/", headers);
        assert_eq!(refused.code(), "missing-key", "{method} {headers:?}");
    }
}

#[test]
fn trap_16_a_long_key_is_refused_like_a_bad_key_at_no_extra_cost() {
    let (server, key) = service();
    for length in [513, 8 * 1024, 64 * 1024] {
        let long = "x".repeat(length);
        assert_eq!(server.bearer("/", &long).code(), "invalid-key");
        assert_eq!(
            server.get("/", &[("x-api-key", &long)]).code(),
            "invalid-key"
        );
        // A valid key followed by more bytes is a different key.
        let more = format!("{}{long}", key.secret.expose());
        assert_eq!(server.bearer("/", &more).code(), "invalid-key");
    }
    // The layer limits only headers with keys. Other headers may be as long as the server accepts.
    let cookie = "c".repeat(64 * 1024);
    let headers = [("cookie", &*cookie), ("x-api-key", key.secret.expose())];
    assert_eq!(server.get("/", &headers).status, 200);
}

#[test]
fn no_part_of_a_request_is_repeated_in_the_answer() {
    let world = TestService::new();
    let key = world.some_key();
    let sources = CredentialSources::default().with_basic().with_query("key");
    let server = Server::with(KeywardLayer::new(world.keys.clone()).sources(sources));
    let text = key.secret.expose();
    // The server's parser ends the header at the line break, so the injected text becomes a separate header.
    let injected = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {text}x\r\nX-Evil: marker\r\n\r\n"
    );
    let answer = server.raw(injected.as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 401 ") && !answer.contains("marker"),
        "{answer}"
    );
    // A key in the query that decodes to a line break is refused. The answer repeats no part of the key.
    for query in [
        "a%0d%0aX-Evil:%20marker",
        "marker%0d%0a%0d%0amarker",
        "%00marker",
        "%22marker",
    ] {
        let answer = server.curl(&[], &format!("/?key={query}"));
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("marker"), "{answer}");
    }
    let pair = crate::http::server::basic("a\r\nX-Evil: marker", "b\r\n\r\nmarker");
    let answer = server.get("/marker", &[("authorization", &pair)]);
    assert!(!format!("{answer:?}").contains("marker"), "{answer:?}");
    // The key in this header has bytes that are not valid UTF-8.
    let mut bytes =
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer ".to_vec();
    bytes.extend([0xff, 0xfe, 0x80]);
    bytes.extend(b"\r\n\r\n");
    assert!(server.raw(&bytes).starts_with("HTTP/1.1 401 "));
    // The server itself refuses a bare line feed and a folded line.
    for odd in [
        format!("X-API-Key: {text}\n X"),
        format!("X-API-Key:\r\n {text}"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{odd}\r\n\r\n");
        let answer = server.raw(request.as_bytes());
        assert!(!answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[test]
fn curl_can_present_a_key_in_each_documented_way() {
    let world = TestService::new();
    let key = world.some_key();
    let page = CreateKey::new("page")
        .class("publishable")
        .scope("reports:read");
    let page = world.create(&admin(), page).unwrap();
    let sources = CredentialSources::default()
        .with_basic()
        .with_query("api_key");
    let server = Server::with(KeywardLayer::new(world.keys.clone()).sources(sources));
    let text = key.secret.expose();
    let bearer = format!("Authorization: Bearer {text}");
    let lower = format!("authorization: bearer {text}");
    let own = format!("X-API-Key: {text}");
    let pair = format!("{}:{text}", key.id);
    let page = format!("{}:{text}", page.secret.expose());
    let ways: [&[&str]; 6] = [
        &["--header", &bearer],
        &["--header", &lower],
        &["--header", &own],
        &["--oauth2-bearer", text],
        &["--user", &pair],
        &["--user", &page],
    ];
    for way in ways {
        let answer = server.curl(way, "/");
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("of acme"),
            "{answer}"
        );
        // For shared caches, the `Vary` header names the headers on which the answer depends.
        assert!(
            answer.contains("vary: authorization, x-api-key\r\n"),
            "{answer}"
        );
        assert!(!answer.contains("cache-control"), "{answer}");
    }
    let answer = server.curl(&[], &format!("/?api_key={text}"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("cache-control: private\r\n"), "{answer}");

    let wrong = format!("{}:{text}", TestService::new().some_key().id);
    let answer = server.curl(&["--user", &wrong], "/");
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(
        answer.contains("www-authenticate: Bearer error=\"invalid_token\"\r\n"),
        "{answer}"
    );
    let basic = "www-authenticate: Basic realm=\"API keys\", charset=\"UTF-8\"\r\n";
    assert!(answer.contains(basic), "{answer}");
    let head = server.curl(&["--head"], "/");
    assert!(
        head.starts_with("HTTP/1.1 401 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

#[test]
fn the_content_type_of_a_request_does_not_change_the_form_of_a_refusal() {
    let (server, _) = service();
    for content_type in ["application/grpc", "application/grpc-web", "text/html"] {
        let headers = [("content-type", content_type)];
        let refused = server.ask(Method::POST, "/v1/keys", &headers);
        assert_eq!((refused.status, &*refused.code()), (401, "missing-key"));
        assert_eq!(refused.header("grpc-status"), "");
    }
}

#[test]
fn a_grpc_call_is_refused_with_a_grpc_status() {
    let world = TestService::new();
    let key = world.some_key();
    let server = Server::with(KeywardLayer::new(world.keys.clone()).grpc());
    let call = |headers: &[(&str, &str)]| {
        let mut all = vec![("content-type", "application/grpc")];
        all.extend(headers);
        server.ask(Method::POST, "/reports.Reports/List", &all)
    };
    let refused = call(&[("authorization", "Bearer garbage")]);
    assert_eq!((refused.status, &*refused.body), (200, ""));
    assert_eq!(refused.header("grpc-status"), "16");
    assert_eq!(refused.header("grpc-message"), "Invalid API key");
    assert_eq!(refused.header("content-type"), "application/grpc");
    let bearer = format!("Bearer {}", key.secret.expose());
    assert_eq!(
        call(&[("authorization", &bearer)]).header("grpc-status"),
        ""
    );
}
