//! Tests of the middleware over a real socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;

/// A server that runs until the tests end.
struct Server {
    address: SocketAddr,
    keys: Keyward,
}

/// A response. Header names are in lower case.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    actix_web::rt::Runtime::new().unwrap().block_on(future)
}

impl Server {
    fn start() -> Self {
        let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate().unwrap());
        let keys = wait(keys.build()).unwrap();
        let (send, started) = mpsc::channel();
        let own = keys.clone();
        thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let app = move || App::new().configure(|config| routes(config, &own));
                let server = HttpServer::new(app).workers(1).disable_signals();
                let server = server.bind("127.0.0.1:0").unwrap();
                send.send(server.addrs()[0]).unwrap();
                server.run().await.unwrap();
            });
        });
        let address = started.recv().unwrap();
        Self { address, keys }
    }

    fn key(&self, key: CreateKey) -> String {
        let acme = "acme".try_into().unwrap();
        let admin = Actor::new(acme, "alice".try_into().unwrap(), Role::ADMIN);
        let created = wait(self.keys.create(&admin, key)).unwrap();
        created.secret.expose().to_owned()
    }

    fn reader(&self) -> String {
        self.key(CreateKey::new("reader").scope("reports:read"))
    }

    /// Sends bytes unchanged, and reads until the server closes the connection.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends a request with raw headers on a new connection.
    fn ask(&self, line: &str, headers: &[&[u8]]) -> Answer {
        let fixed = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close");
        let all = [&[fixed.as_bytes()], headers, &[b"\r\n"]].concat();
        let answer = self.raw(&all.join(b"\r\n".as_slice()));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let head = format!("{}\r\n", head.to_ascii_lowercase());
        let body = body.to_owned();
        Answer { status, head, body }
    }

    fn reports(&self, headers: &[&str]) -> Answer {
        let headers: Vec<_> = headers.iter().map(|header| header.as_bytes()).collect();
        self.ask("GET /reports", &headers)
    }
}

impl Answer {
    /// Returns all values of a header.
    fn header(&self, name: &str) -> Vec<&str> {
        let lines = self
            .head
            .split("\r\n")
            .filter_map(|line| line.split_once(": "));
        let named = lines.filter(|(own, _)| *own == name);
        named.map(|(_, value)| value).collect()
    }

    /// Checks the parts common to every refusal.
    #[track_caller]
    fn refused(&self, status: u16, code: &str, challenge: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("www-authenticate"), [challenge]);
        assert_eq!(self.header("content-type"), ["application/problem+json"]);
        assert_eq!(self.header("cache-control"), ["no-store"]);
        assert_eq!(self.header("vary"), ["authorization, x-api-key"]);
        let length = self.body.len().to_string();
        assert_eq!(self.header("content-length"), [length]);
        let kind = format!("\"type\":\"urn:problem-type:keyward:{code}\"");
        assert!(self.body.contains(&kind), "{self:?}");
    }
}

const INVALID: &str = "bearer error=\"invalid_token\"";
const UNCLEAR: &str = "bearer error=\"invalid_request\"";
const FORBIDDEN: &str = "bearer error=\"insufficient_scope\"";

#[test]
fn a_key_with_the_scope_reaches_the_handler_with_its_grant() {
    let server = Server::start();
    let key = server.reader();
    for header in [
        format!("X-API-Key: {key}"),
        format!("Authorization: bearer {key}"),
    ] {
        let passed = server.reports(&[&header]);
        assert_eq!((passed.status, &*passed.body), (200, "reports of acme\n"));
        // The header `Vary` keeps a shared cache from serving this response to a client with another key.
        assert_eq!(passed.header("vary"), ["authorization, x-api-key"]);
    }
    for headers in [&[][..], &[b"X-API-Key: garbage".as_slice()]] {
        let open = server.ask("GET /health", headers);
        assert_eq!((open.status, &*open.body), (200, "up\n"));
    }
}

#[test]
fn refusals_arrive_unchanged_from_the_layer() {
    let server = Server::start();
    let other = server.key(CreateKey::new("other").scope("exports:read"));
    let ask = |header: &str| server.reports(&[header]);
    ask("Cookie: a=b").refused(401, "missing-key", "bearer");
    ask("X-API-Key: garbage").refused(401, "invalid-key", INVALID);
    let challenge = "bearer error=\"insufficient_scope\", scope=\"reports:read\"";
    ask(&format!("X-API-Key: {other}")).refused(403, "insufficient-scope", challenge);
    // The first request has a key that is not valid text. The second one has a key in the query, which the
    // layer ignores by default.
    let odd = server.ask("GET /reports", &[b"Authorization: Bearer \xff\xfe"]);
    odd.refused(401, "invalid-key", INVALID);
    let key = server.reader();
    let query = server.ask(&format!("GET /reports?api_key={key}"), &[]);
    query.refused(401, "missing-key", "bearer");
    let post = server.ask("POST /reports", &[b"content-length: 0"]);
    post.refused(401, "missing-key", "bearer");
}

#[test]
fn every_value_of_a_header_is_checked() {
    let server = Server::start();
    let keys = [server.reader(), server.reader()];
    let [one, other] = keys.each_ref().map(|key| format!("X-API-Key: {key}"));
    let bearer = format!("Authorization: Bearer {}", keys[0]);
    for headers in [
        [&*one, &other],
        [&other, &one],
        [&other, &bearer],
        [&bearer, &bearer],
    ] {
        server
            .reports(&headers)
            .refused(400, "ambiguous-credentials", UNCLEAR);
    }
    // A request that sends the same key several times is not ambiguous.
    assert_eq!(server.reports(&[&one, &one, &bearer]).status, 200);
}

#[test]
fn the_client_address_is_the_peer_of_the_socket() {
    let server = Server::start();
    let [near, far] = ["127.0.0.0/8", "203.0.113.0/24"].map(|network| {
        let key = CreateKey::new("tied").scope("reports:read");
        format!("X-API-Key: {}", server.key(key.allow_addresses([network])))
    });
    assert_eq!(server.reports(&[&near]).status, 200);
    for lie in ["X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7"] {
        server
            .reports(&[&far, lie])
            .refused(403, "key-not-allowed", FORBIDDEN);
    }
}

#[test]
fn head_gets_the_headers_of_get_without_the_body() {
    let server = Server::start();
    let key = format!("X-API-Key: {}", server.reader());
    for header in ["Cookie: a=b", &key] {
        let [get, head] = ["GET", "HEAD"]
            .map(|method| server.ask(&format!("{method} /reports"), &[header.as_bytes()]));
        assert_eq!((head.status, &*head.body), (get.status, ""));
        for name in ["content-length", "content-type", "www-authenticate", "vary"] {
            assert_eq!(head.header(name), get.header(name), "{name}");
        }
    }
}

#[test]
fn a_connection_stays_usable_after_a_refusal() {
    let server = Server::start();
    let refused = "HEAD /reports HTTP/1.1\r\nhost: x\r\n\r\n\
        POST /reports HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody";
    let passed = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answers = server.raw(format!("{refused}{passed}").as_bytes());
    let statuses: Vec<_> = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|own| &own[..3])
        .collect();
    assert_eq!(statuses, ["401", "401", "200"], "{answers}");
    assert!(answers.ends_with("\r\n\r\nup\n"), "{answers}");
}
