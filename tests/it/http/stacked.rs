//! Layers around layers, and what the layer hides from the functions and services behind it.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use keyward::web::{CredentialSources, KeywardLayer, LimitReached, RequestTenant};
use keyward::{Grant, Reason};
use tower::service_fn;
use tower::{Layer, Service, ServiceExt};

use crate::http::nodes::Nodes;
use crate::http::server::basic;
use support::*;

/// Sends a request through a service.
fn send<S, B>(service: &S, request: Request<()>) -> Response<B>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    wait(service.clone().oneshot(request)).unwrap()
}

fn with_key(uri: &str, key: &str) -> Request<()> {
    let request = Request::get(uri).header("x-api-key", key);
    request.body(()).unwrap()
}

type SeenRequests = Arc<Mutex<Vec<Parts>>>;

/// Returns a service that records the parts of every request in `seen`.
fn recording(
    seen: &SeenRequests,
) -> impl Service<Request<()>, Response = Response<Bytes>, Error = Infallible, Future: Send>
+ Clone
+ use<> {
    let seen = seen.clone();
    service_fn(move |request: Request<()>| {
        seen.lock().unwrap().push(request.into_parts().0);
        std::future::ready(Ok::<_, Infallible>(Response::new(Bytes::new())))
    })
}

#[test]
fn an_inner_layer_removes_the_grant_and_the_tenant_of_the_outer_one() {
    let world = TestService::new();
    let key = world.some_key();
    let seen = SeenRequests::default();
    let inner = recording(&seen);
    // The outer layer reads the usual headers and the path. The inner one looks for a key elsewhere.
    let outer = KeywardLayer::new(world.keys.clone());
    let outer = outer.tenant_in_path("/t/{tenant}".parse().unwrap());
    let own = CredentialSources::none().with_header("x-other-key".parse().unwrap());
    let optional = KeywardLayer::new(world.keys.clone())
        .sources(own)
        .optional();
    let service = outer.layer(optional.layer(inner));
    let answer = send(&service, with_key("/t/acme", key.secret.expose()));
    assert_eq!(answer.status(), 200);
    let seen = seen.lock().unwrap();
    assert!(seen[0].extensions.get::<Grant>().is_none());
    assert!(seen[0].extensions.get::<RequestTenant>().is_none());
}

#[test]
fn the_grant_of_a_request_is_the_inner_layers() {
    let world = TestService::new();
    let (one, other) = (world.some_key(), world.some_key());
    let seen = SeenRequests::default();
    let inner = recording(&seen);
    let own = CredentialSources::none().with_header("x-other-key".parse().unwrap());
    let within = KeywardLayer::new(world.keys.clone()).sources(own);
    let around = KeywardLayer::new(world.keys.clone());
    let around = around.tenant_in_path("/t/{tenant}".parse().unwrap());
    let service = around.layer(within.layer(inner));
    let mut request = with_key("/t/acme", one.secret.expose());
    let value = other.secret.expose().parse().unwrap();
    request.headers_mut().insert("x-other-key", value);
    assert_eq!(send(&service, request).status(), 200);
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen[0].extensions.get::<Grant>().unwrap().key_id(),
        other.id
    );
    assert!(seen[0].extensions.get::<RequestTenant>().is_none());
}

#[test]
fn stacked_layers_count_a_use_ask_the_limiter_and_set_vary_once() {
    let nodes = Nodes::new();
    let created = wait(nodes.there.create(&admin(), reader("new"))).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let own = asked.clone();
    let layer = KeywardLayer::new(nodes.here.clone()).rate_limit(move |_, _| {
        own.fetch_add(1, Ordering::SeqCst);
        Ok::<_, LimitReached>(())
    });
    let inner = recording(&SeenRequests::default());
    let service = layer
        .clone()
        .layer(layer.clone().require(reading()).layer(inner));
    // The first request reads the store in the outer layer, and finds the key in the index in the inner one.
    for round in 1..=3 {
        let answer = send(&service, with_key("/", created.secret.expose()));
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().get_all("vary").iter().count(), 1);
        assert_eq!(asked.load(Ordering::SeqCst), round);
        assert_eq!(nodes.here.usage(created.id).unwrap().count, round as u64);
    }
    // Another key in the inner layer is a use of that key.
    let other = wait(nodes.there.create(&admin(), reader("other"))).unwrap();
    let sources = CredentialSources::none().with_header("x-other-key".parse().unwrap());
    let within = layer.clone().sources(sources);
    let service = layer.layer(within.layer(recording(&SeenRequests::default())));
    let mut request = with_key("/", created.secret.expose());
    let value = other.secret.expose().parse().unwrap();
    request.headers_mut().insert("x-other-key", value);
    assert_eq!(send(&service, request).status(), 200);
    assert_eq!(asked.load(Ordering::SeqCst), 5);
    assert_eq!(nodes.here.usage(other.id).unwrap().count, 1);
}

/// The outer layer reads `X-API-Key`, the inner one `Basic` with the same key. Another layer between them
/// passes the request without a key. Fails if layers compare the presented text instead of the key.
#[test]
fn a_key_that_is_presented_in_two_forms_counts_once() {
    let world = TestService::new();
    let key = world.some_key();
    let secret = key.secret.expose();
    let layer = KeywardLayer::new(world.keys.clone());
    let within = layer
        .clone()
        .sources(CredentialSources::none().with_basic());
    let query = CredentialSources::none().with_query("key");
    let without = layer.clone().sources(query).optional();
    let inner = recording(&SeenRequests::default());
    let service = layer.layer(without.layer(within.layer(inner)));
    let mut request = with_key("/", secret);
    let pair = basic(&key.id.to_string(), secret).parse().unwrap();
    request.headers_mut().insert("authorization", pair);
    assert_eq!(send(&service, request).status(), 200);
    assert_eq!(world.keys.usage(key.id).unwrap().count, 1);
}

#[test]
fn a_key_in_the_query_is_gone_from_the_uri_before_anything_sees_the_request() {
    let world = TestService::new();
    let key = world.some_key();
    let secret = secret_part(key.secret.expose()).to_owned();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let [for_tenant, for_limit, for_refusal] = [(); 3].map(|()| shown.clone());
    let look = |shown: &Mutex<Vec<String>>, parts: &Parts| {
        shown
            .lock()
            .unwrap()
            .push(format!("{} {:?}", parts.uri, parts.headers));
    };
    let layer = KeywardLayer::new(world.keys.clone())
        .sources(CredentialSources::default().with_query("key"))
        .tenant_from(move |parts| {
            look(&for_tenant, parts);
            Some(tenant("acme"))
        })
        .rate_limit(move |_, parts| {
            look(&for_limit, parts);
            Ok::<_, LimitReached>(())
        })
        .on_refusal(move |_, parts, answer| {
            look(&for_refusal, parts);
            answer
        });
    let seen = SeenRequests::default();
    let inner = recording(&seen);
    // An inner layer with the same sources still finds the key.
    let service = layer.clone().layer(layer.layer(inner));
    let text = key.secret.expose();
    for (sent, passed) in [
        (format!("http://x/a?key={text}"), "http://x/a"),
        (
            format!("http://x/a?b=1&k%65y={text}&c=%20"),
            "http://x/a?b=1&c=%20",
        ),
        (format!("/a?key={text}&key={text}&b"), "/a?b"),
    ] {
        let mut request = Request::get(&sent).body(()).unwrap();
        let original = axum::extract::OriginalUri(request.uri().clone());
        request.extensions_mut().insert(original);
        let answer = send(&service, request);
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["cache-control"], "private");
        let parts = seen.lock().unwrap().pop().unwrap();
        assert_eq!(parts.uri, passed);
        let original = parts.extensions.get::<axum::extract::OriginalUri>();
        assert_eq!(original.unwrap().0, passed);
    }
    let mistyped = with_other_secret(text);
    let other = secret_part(&mistyped).to_owned();
    for request in [
        Request::get(format!("/a?key={mistyped}")).body(()).unwrap(),
        with_key("/a", &mistyped),
        Request::get("/a")
            .header("authorization", format!("Bearer {mistyped}"))
            .body(())
            .unwrap(),
    ] {
        assert_eq!(send(&service, request).status(), 401);
    }
    let shown = shown.lock().unwrap();
    // Each accepted request shows itself twice to `tenant_from`, and once to the limiter.
    assert_eq!(shown.len(), 3 * 3 + 3 * 2);
    for line in shown.iter() {
        assert!(!line.contains(&secret) && !line.contains(&other), "{line}");
    }
}

/// A service with one permit. `poll_ready` takes the permit, and a call returns it.
#[derive(Debug)]
struct OnePermit {
    free: Arc<AtomicUsize>,
    held: bool,
    calls: Arc<AtomicUsize>,
}

impl OnePermit {
    fn new() -> Self {
        let (free, calls) = (Arc::new(AtomicUsize::new(1)), Arc::default());
        Self {
            free,
            held: false,
            calls,
        }
    }
}

impl Clone for OnePermit {
    fn clone(&self) -> Self {
        Self {
            free: self.free.clone(),
            held: false,
            calls: self.calls.clone(),
        }
    }
}

impl Drop for OnePermit {
    fn drop(&mut self) {
        if self.held {
            self.free.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Service<Request<()>> for OnePermit {
    type Response = Response<Bytes>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.held && self.free.swap(0, Ordering::SeqCst) == 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.held = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(std::mem::take(&mut self.held), "the service is ready");
        self.free.fetch_add(1, Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Response::new(Bytes::new())))
    }
}

#[test]
fn requests_with_made_up_keys_hold_no_permit_while_the_store_is_read() {
    let nodes = Nodes::new();
    let known = nodes.create(reader("known"));
    wait(nodes.here.sync()).unwrap();
    let inner = OnePermit::new();
    let service = KeywardLayer::new(nodes.here.clone()).layer(inner.clone());
    let new = nodes.create(reader("new"));
    let gate = nodes.link.hold(keyward_conformance::Call::Find);
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut waiting: Vec<_> = (0..4)
        .map(|_| Box::pin(service.clone().oneshot(with_key("/", &new))))
        .collect();
    for request in &mut waiting {
        assert!(request.as_mut().poll(&mut context).is_pending());
    }
    assert_eq!(inner.free.load(Ordering::SeqCst), 1);
    assert_eq!(send(&service, with_key("/", &known)).status(), 200);
    gate.open();
    // After the verdict, each request waits until the inner service is ready.
    for request in waiting {
        assert_eq!(wait(request).unwrap().status(), 200);
    }
    assert_eq!(inner.calls.load(Ordering::SeqCst), 5);
}

#[test]
fn a_key_that_is_revoked_while_its_request_waits_for_the_service_is_refused() {
    for revoked in [false, true] {
        let nodes = Nodes::new();
        let new = wait(nodes.there.create(&admin(), reader("new"))).unwrap();
        let inner = OnePermit::new();
        let service = KeywardLayer::new(nodes.here.clone()).layer(inner.clone());
        // `oneshot` waits for readiness first, so another request takes the permit after the call.
        let gate = nodes.link.hold(keyward_conformance::Call::Find);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let request = with_key("/", new.secret.expose());
        let mut waiting = Box::pin(service.clone().oneshot(request));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        inner.free.store(0, Ordering::SeqCst);
        gate.open();
        assert!(
            waiting.as_mut().poll(&mut context).is_pending(),
            "no permit is free"
        );
        if revoked {
            wait(nodes.there.revoke(&admin(), new.id, Reason::Lost)).unwrap();
            wait(nodes.here.sync()).unwrap();
        }
        inner.free.store(1, Ordering::SeqCst);
        let status = wait(waiting).unwrap().status();
        assert_eq!(status, if revoked { 401 } else { 200 });
        assert_eq!(inner.calls.load(Ordering::SeqCst), usize::from(!revoked));
        assert_eq!(nodes.here.usage(new.id).unwrap().count, 1);
    }
}

#[test]
fn a_limiter_is_asked_about_each_tenant_of_a_request() {
    let world = TestService::new();
    let key = world.some_key();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let own = asked.clone();
    let layer = KeywardLayer::new(world.keys.clone()).rate_limit(move |_, parts| {
        let about = parts.extensions.get::<RequestTenant>().cloned();
        own.lock().unwrap().push(about.map(|tenant| tenant.0));
        Ok::<_, LimitReached>(())
    });
    let within = layer.clone();
    let within = within.tenant_in_path("/t/{tenant}".parse().unwrap());
    let inner = recording(&SeenRequests::default());
    let service = layer.layer(within.clone().layer(within.layer(inner)));
    let answer = send(&service, with_key("/t/acme", key.secret.expose()));
    assert_eq!(answer.status(), 200);
    assert_eq!(*asked.lock().unwrap(), [None, Some(tenant("acme"))]);
}
