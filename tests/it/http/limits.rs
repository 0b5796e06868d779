//! A rate limiter that the application supplies and the layer calls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::Method;
use http::request::Parts;
use keyward::web::{
    AuthError, CredentialSources, KeywardLayer, LimitReached, PeerAddr, RequestTenant,
};
use keyward::{Clock, CreateKey, Grant, KeyId, ManualClock, Need, Reason, hours};
use serde_json::json;

use crate::http::nodes::Nodes;
use crate::http::server::{Server, basic};
use support::*;

/// A limit on requests per minute, shared by all clients. The limiter counts the calls of `check`.
#[derive(Clone)]
struct Budget {
    clock: Arc<ManualClock>,
    each_minute: usize,
    spent: Arc<Mutex<(Duration, usize)>>,
    asked: Arc<AtomicUsize>,
}

impl Budget {
    const MINUTE: Duration = Duration::from_secs(60);

    fn new(clock: &Arc<ManualClock>, each_minute: usize) -> Self {
        Self {
            clock: clock.clone(),
            each_minute,
            spent: Arc::new(Mutex::new((clock.monotonic(), 0))),
            asked: Arc::default(),
        }
    }

    fn check(&self) -> Result<(), LimitReached> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut spent = self.spent.lock().unwrap();
        let (since, count) = &mut *spent;
        let now = self.clock.monotonic();
        if now >= *since + Self::MINUTE {
            (*since, *count) = (now, 0);
        }
        if *count == self.each_minute {
            return Err(LimitReached::new(*since + Self::MINUTE - now));
        }
        *count += 1;
        Ok(())
    }

    fn of(&self, layer: KeywardLayer) -> KeywardLayer {
        let own = self.clone();
        layer.rate_limit(move |_, _| own.check())
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Starts a server with `layer`. Returns a counter of the requests that pass the layer.
fn counting(layer: KeywardLayer) -> (Server, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let own = count.clone();
    let inner = move || {
        own.fetch_add(1, Ordering::SeqCst);
        async { "inner" }
    };
    let app = Router::new().fallback(any(inner)).layer(layer);
    (Server::start(app), count)
}

#[test]
fn a_request_beyond_the_limit_gets_a_retry_time_and_is_not_passed_on() {
    let world = TestService::new();
    let key = world.some_key();
    let text = key.secret.expose();
    let budget = Budget::new(&world.clock, 2);
    // The layer sends this `Retry-After` only during outages, not for reached limits.
    let layer = KeywardLayer::new(world.keys.clone());
    let layer = layer.retry_after(Duration::from_secs(7)).grpc();
    let (server, reached) = counting(budget.of(layer));
    for _ in 0..2 {
        let passed = server.bearer("/", text);
        assert_eq!((passed.status, &*passed.body), (200, "inner"));
        assert_eq!(passed.header("retry-after"), "");
    }
    // The minute has 58.5 seconds left.
    world.clock.advance(Duration::from_millis(1500));
    let refused = server.bearer("/", text);
    assert_eq!((refused.status, &*refused.code()), (429, "rate-limited"));
    assert_eq!(refused.header("retry-after"), "59");
    assert_eq!(refused.header("www-authenticate"), "");
    assert_eq!(refused.header("cache-control"), "no-store");
    assert_eq!(refused.header("vary"), "authorization, x-api-key");
    let expected = json!({
        "type": "urn:problem-type:keyward:rate-limited",
        "title": "Too many requests",
        "status": 429,
    });
    assert_eq!(refused.json(), expected);

    let head = server.ask(Method::HEAD, "/", &[("x-api-key", text)]);
    assert_eq!((head.status, &*head.body), (429, ""));
    assert_eq!(head.header("retry-after"), "59");
    assert_eq!(
        head.header("content-length"),
        refused.body.len().to_string()
    );

    let call = [("content-type", "application/grpc"), ("x-api-key", text)];
    let call = server.ask(Method::POST, "/reports.Reports/List", &call);
    assert_eq!((call.status, &*call.body), (200, ""));
    assert_eq!(call.header("grpc-status"), "8");
    assert_eq!(call.header("grpc-message"), "Too many requests");
    assert_eq!(call.header("retry-after"), "59");

    assert_eq!(reached.load(Ordering::SeqCst), 2);
    world.clock.advance(Duration::from_millis(58_500));
    assert_eq!(server.bearer("/", text).status, 200);
    assert_eq!(reached.load(Ordering::SeqCst), 3);
}

#[test]
fn a_key_that_the_request_cannot_use_spends_no_budget() {
    let world = TestService::new();
    let key = world.some_key();
    let text = key.secret.expose();
    let by = admin();
    let [revoked, short, other] = [
        reader("revoked"),
        reader("short").expires_in(hours(1)),
        CreateKey::new("other").scope("exports:read"),
    ]
    .map(|draft| world.create(&by, draft).unwrap());
    wait(world.keys.revoke(&by, revoked.id, Reason::Compromised)).unwrap();
    world.clock.advance(hours(1));
    let budget = Budget::new(&world.clock, 1);
    let layer = KeywardLayer::new(world.keys.clone())
        .require(reading())
        .sources(CredentialSources::default().with_basic())
        .tenant_in_path("/t/{tenant}".parse().unwrap())
        .optional();
    let (server, reached) = counting(budget.of(layer));

    let stranger = TestService::new().some_key();
    for presented in [
        "garbage",
        &with_other_secret(text),
        stranger.secret.expose(),
        revoked.secret.expose(),
        short.secret.expose(),
    ] {
        assert_eq!(server.bearer("/t/acme", presented).status, 401);
    }
    assert_eq!(server.bearer("/t/acme", other.secret.expose()).status, 403);
    assert_eq!(server.bearer("/t/globex", text).status, 403);
    assert_eq!(server.bearer("/elsewhere", text).status, 403);
    let two = [("x-api-key", text), ("x-api-key", other.secret.expose())];
    assert_eq!(server.get("/t/acme", &two).status, 400);
    let pair = basic(&other.id.to_string(), text);
    assert_eq!(
        server.get("/t/acme", &[("authorization", &pair)]).status,
        401
    );
    assert_eq!((budget.asked(), reached.load(Ordering::SeqCst)), (0, 0));

    // A request without a key does not count towards the limit.
    assert_eq!(server.get("/t/acme", &[]).status, 200);
    assert_eq!(budget.asked(), 0);
    assert_eq!(server.bearer("/t/acme", text).status, 200);
    assert_eq!(server.bearer("/t/acme", text).status, 429);
    assert_eq!(budget.asked(), 2);
    assert_eq!(server.get("/t/acme", &[]).status, 200);
    assert_eq!(server.bearer("/t/acme", "garbage").code(), "invalid-key");
}

#[test]
fn each_request_is_counted_once_with_or_without_a_store_read() {
    let nodes = Nodes::new();
    let known = nodes.create(reader("known"));
    wait(nodes.here.sync()).unwrap();
    let budget = Budget::new(&nodes.clock, 4);
    let layer = budget.of(KeywardLayer::new(nodes.here.clone()));
    let (server, _) = counting(layer.clone());
    let find = keyward_conformance::Call::Find;
    for (round, status) in [(1, 200), (2, 200), (3, 429)] {
        let new = nodes.create(reader("new"));
        assert_eq!(server.bearer("/", &known).status, status);
        assert_eq!(nodes.link.asked(find), round - 1, "known");
        assert_eq!(server.bearer("/", &new).status, status);
        assert_eq!(nodes.link.asked(find), round, "new");
        assert_eq!(budget.asked(), 2 * round);
    }

    // `authenticate`, which works without tower, calls the limiter too.
    nodes.clock.advance(Budget::MINUTE);
    wait(nodes.here.sync()).unwrap();
    let budget = Budget::new(&nodes.clock, 2);
    let layer = budget.of(layer);
    let new = nodes.create(reader("new"));
    for (key, passes) in [(&known, true), (&new, true), (&known, false), (&new, false)] {
        let mut request = parts("/", key);
        let outcome = wait(layer.authenticate(&mut request));
        assert_eq!(request.extensions.get::<Grant>().is_some(), passes);
        match outcome {
            Ok(grant) => assert!(passes && grant.is_some()),
            Err(refusal) => {
                assert!(!passes);
                assert_eq!(refusal.status(), 429);
                let answer = layer.respond(&refusal, &request);
                assert_eq!(answer.headers()["retry-after"], "60");
            }
        }
    }
    assert_eq!(budget.asked(), 4);
}

fn parts(path: &str, key: &str) -> Parts {
    let request = http::Request::get(path).header("x-api-key", key);
    request.body(()).unwrap().into_parts().0
}

#[test]
fn a_limiter_gets_the_grant_and_the_request() {
    let world = TestService::new();
    let key = world.some_key();
    let text = key.secret.expose();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let own = seen.clone();
    // This limiter refuses all writes, and no reads.
    let check = move |grant: &Grant, request: &Parts| {
        let RequestTenant(tenant) = request.extensions.get().unwrap();
        let tenant = tenant.to_string();
        assert!(request.extensions.get::<PeerAddr>().is_some());
        own.lock().unwrap().push((grant.key_id(), tenant));
        // The header with the key is marked as sensitive, because a limiter may log the request.
        assert!(request.headers["x-api-key"].is_sensitive());
        match request.method {
            Method::GET => Ok(()),
            _ => Err(LimitReached::new(Duration::ZERO)),
        }
    };
    let layer = KeywardLayer::new(world.keys.clone())
        .tenant_in_path("/t/{tenant}".parse().unwrap())
        .rate_limit(check);
    let ask = |method: Method| {
        let mut request = parts("/t/acme", text);
        request.method = method;
        request.extensions.insert(PeerAddr([192, 0, 2, 1].into()));
        let outcome = wait(layer.authenticate(&mut request));
        let tenant = request.extensions.get::<RequestTenant>().cloned();
        (outcome.map(|_| ()), tenant)
    };
    let acme = RequestTenant(tenant("acme"));
    assert_eq!(ask(Method::GET), (Ok(()), Some(acme)));
    let refusal = AuthError::LimitReached {
        key: key.id,
        retry_after: Duration::ZERO,
    };
    // A refused request gets no extensions.
    assert_eq!(ask(Method::POST), (Err(refusal), None));
    let both: (KeyId, String) = (key.id, "acme".to_owned());
    assert_eq!(*seen.lock().unwrap(), [both.clone(), both]);
}

#[test]
fn clones_of_a_layer_share_its_limiter() {
    let world = TestService::new();
    let key = world.some_key();
    let budget = Budget::new(&world.clock, 2);
    let layer = budget.of(KeywardLayer::new(world.keys.clone()));
    let inner = || any(|| async { "inner" });
    let app = Router::new()
        .route("/any", inner().layer(layer.clone()))
        .route("/read", inner().layer(layer.require(reading())));
    let server = Server::start(app);
    let ask = |path: &str| server.bearer(path, key.secret.expose()).status;
    assert_eq!(
        ["/any", "/read", "/any", "/read"].map(ask),
        [200, 200, 429, 429]
    );
}

#[test]
fn a_service_can_add_details_to_a_limit_refusal() {
    let world = TestService::new();
    let key = world.some_key();
    let layer = KeywardLayer::new(world.keys.clone())
        .require(Need::any())
        .rate_limit(|_, _| Err(LimitReached::new(Duration::from_millis(2500))))
        .on_refusal(|refusal, _, mut answer| {
            if let AuthError::LimitReached { retry_after, .. } = refusal {
                let exact = retry_after.as_millis().to_string().parse().unwrap();
                answer.headers_mut().insert("retry-after-ms", exact);
            }
            answer
        });
    let answer = Server::with(layer).bearer("/", key.secret.expose());
    assert_eq!(answer.code(), "rate-limited");
    assert_eq!(answer.header("retry-after"), "3");
    assert_eq!(answer.header("retry-after-ms"), "2500");
}
