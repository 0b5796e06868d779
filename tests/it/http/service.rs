//! The layer as a tower service: readiness, bodies, extensions, clones, logs.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use keyward::Grant;
use keyward::web::{CredentialSources, KeywardLayer, LimitReached, ResponseBody};
use tower::{Layer, Service, ServiceExt};

use crate::http::nodes::Nodes;
use support::*;

/// A service that panics if it is called before `poll_ready`. Each `poll_ready` reserves a place for one
/// call, and the service counts the reserved places.
#[derive(Debug)]
struct Picky {
    place: Option<Arc<()>>,
    places: Arc<()>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// The parts of a request that the inner service got.
#[derive(Debug)]
struct Seen {
    headers: HeaderMap,
    granted: bool,
    body: usize,
}

impl Picky {
    fn new() -> Self {
        Self {
            place: None,
            places: Arc::default(),
            seen: Arc::default(),
        }
    }

    fn held(&self) -> usize {
        Arc::strong_count(&self.places) - 1
    }
}

/// A clone of a service has no reserved place, so the clone is not ready.
impl Clone for Picky {
    fn clone(&self) -> Self {
        Self {
            place: None,
            places: self.places.clone(),
            seen: self.seen.clone(),
        }
    }
}

/// A request body that panics when it is read.
struct Untouched {
    mark: usize,
}

impl Body for Untouched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("the body was polled")
    }
}

impl Service<Request<Untouched>> for Picky {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The service holds one reference to `places`, and each reserved place holds another. So the
        // reference count counts the reserved places.
        self.place.get_or_insert_with(|| self.places.clone());
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Untouched>) -> Self::Future {
        self.place
            .take()
            .expect("poll_ready reserved a place before the call");
        tracing::info!("inside");
        let seen = Seen {
            headers: request.headers().clone(),
            granted: request.extensions().get::<Grant>().is_some(),
            body: request.body().mark,
        };
        self.seen.lock().unwrap().push(seen);
        std::future::ready(Ok(Response::new(Full::from("inner"))))
    }
}

fn request(key: &str) -> Request<Untouched> {
    let mark = key.len();
    let request = Request::post("http://x/").header("x-api-key", key);
    request.body(Untouched { mark }).unwrap()
}

type Answered = Response<ResponseBody<Full<Bytes>>>;

fn ask(
    service: &mut impl Service<Request<Untouched>, Response = Answered, Error = Infallible>,
    key: &str,
) -> Answered {
    wait(async {
        let ready = service.ready().await.unwrap();
        ready.call(request(key)).await.unwrap()
    })
}

fn body(answer: Answered) -> String {
    use http_body_util::BodyExt;

    let bytes = wait(answer.into_body().collect()).unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_ready_service_is_the_one_that_is_called() {
    let nodes = Nodes::new();
    let known = nodes.create(reader("known"));
    wait(nodes.here.sync()).unwrap();
    let inner = Picky::new();
    let mut service = KeywardLayer::new(nodes.here.clone()).layer(inner.clone());
    for round in 0..3 {
        // The node does not know the new key. The layer reads the store, and the inner service stays ready.
        let new = nodes.create(reader("new"));
        for key in [&known, &new, &known] {
            assert_eq!(ask(&mut service, key).status(), 200, "round {round}");
        }
        assert_eq!(ask(&mut service, "garbage").status(), 401);
        let stranger = TestService::new().some_key();
        assert_eq!(ask(&mut service, stranger.secret.expose()).status(), 401);
    }
    assert_eq!(inner.seen.lock().unwrap().len(), 9);
}

#[test]
#[should_panic(expected = "poll_ready reserved a place before the call")]
fn calling_the_layer_before_it_is_ready_panics_in_the_test_service() {
    let world = TestService::new();
    let key = world.some_key();
    let mut service = KeywardLayer::new(world.keys.clone()).layer(Picky::new());
    let _ = wait(service.call(request(key.secret.expose())));
}

#[test]
fn a_refused_or_cancelled_request_reserves_no_place_in_the_inner_service() {
    let nodes = Nodes::new();
    let inner = Picky::new();
    let base = inner.held();
    let mut service = KeywardLayer::new(nodes.here.clone()).layer(inner.clone());
    let own = inner.held() - base;
    assert_eq!(ask(&mut service, "garbage").status(), 401);
    assert_eq!(inner.held() - base, own, "refused");
    let key = nodes.create(reader("new"));
    let gate = nodes.link.hold(keyward_conformance::Call::Find);
    let ready = wait(service.ready()).unwrap();
    let mut asking = Box::pin(ready.call(request(&key)));
    let mut context = Context::from_waker(std::task::Waker::noop());
    assert!(asking.as_mut().poll(&mut context).is_pending());
    // The waiting call keeps a clone, which counts as one, and no reserved place.
    assert_eq!(
        inner.held() - base,
        own + 1,
        "the reserved place was released"
    );
    drop(asking);
    assert_eq!(inner.held() - base, own);
    gate.open();
}

#[test]
fn a_request_passes_unchanged_except_for_its_grant_and_its_sensitive_key() {
    let world = TestService::new();
    let key = world.some_key();
    let text = key.secret.expose();
    let inner = Picky::new();
    let mut service = KeywardLayer::new(world.keys.clone()).layer(inner.clone());
    let answer = ask(&mut service, text);
    assert_eq!(answer.body().size_hint().exact(), Some(5));
    assert_eq!(body(answer), "inner");
    let bearer = Request::get("http://x/").header("authorization", format!("Bearer {text}"));
    let bearer = bearer
        .header("cookie", "c")
        .body(Untouched { mark: 7 })
        .unwrap();
    wait(async { service.ready().await.unwrap().call(bearer).await }).unwrap();
    let seen = inner.seen.lock().unwrap();
    assert_eq!([seen[0].body, seen[1].body], [text.len(), 7]);
    for Seen {
        headers, granted, ..
    } in seen.iter()
    {
        assert!(granted);
        assert!(!format!("{headers:?}").contains(text), "{headers:?}");
        for (name, value) in headers {
            assert_eq!(value.is_sensitive(), name != "cookie", "{name}");
        }
    }
    assert_eq!(
        seen[0].headers["x-api-key"], text,
        "the inner service still gets the key header"
    );
}

/// A body that records the name of the span in which each poll runs.
struct Spanned(Arc<Mutex<Vec<Option<&'static str>>>>);

impl Body for Spanned {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let span = tracing::Span::current();
        let mut seen = self.0.lock().unwrap();
        seen.push(span.metadata().map(tracing::Metadata::name));
        let frame = (seen.len() < 3).then(|| Ok(Frame::data(Bytes::from("part"))));
        Poll::Ready(frame)
    }
}

/// The span is at debug level, and its target turns it on in a log that is at info level otherwise.
#[test]
fn the_body_of_a_response_is_polled_in_the_span_of_its_key() {
    use http_body_util::BodyExt;

    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("info,keyward::api_key=debug")
        .with_writer(std::io::sink)
        .finish();
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let world = TestService::new();
    let key = world.some_key();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let own = seen.clone();
    let stream = tower::service_fn(move |_: Request<()>| {
        let body = Spanned(own.clone());
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let service = KeywardLayer::new(world.keys.clone()).layer(stream);
    let request = Request::get("/").header("x-api-key", key.secret.expose());
    let answer = wait(service.oneshot(request.body(()).unwrap())).unwrap();
    let body = wait(answer.into_body().collect()).unwrap().to_bytes();
    assert_eq!(body, "partpart");
    assert_eq!(*seen.lock().unwrap(), [Some("api_key"); 3]);
    assert!(
        tracing::Span::current().is_none(),
        "the span is left after each poll"
    );
}

#[test]
fn cloning_a_layer_copies_only_a_reference() {
    let world = TestService::new();
    let layer = KeywardLayer::new(world.keys.clone())
        .require(reading().and_scope("reports:write").unwrap())
        .sources(CredentialSources::default().with_query("key"))
        .realm("Acme")
        .unwrap();
    let service = layer.layer(Picky::new());
    let measured = allocation_counter::measure(|| {
        drop(layer.clone());
        drop(service.clone());
    });
    assert_eq!(measured.count_total, 0);
}

/// Contexts of requests are used again. Fails if such a context keeps the settings of its layer.
#[test]
fn a_request_that_has_ended_keeps_nothing_of_its_layer() {
    let world = TestService::new();
    let key = world.some_key();
    let held = Arc::new(());
    let own = held.clone();
    let layer = KeywardLayer::new(world.keys.clone()).rate_limit(move |_, _| {
        assert!(Arc::strong_count(&own) > 1);
        Ok::<_, LimitReached>(())
    });
    let mut service = layer.layer(Picky::new());
    drop(layer);
    assert_eq!(ask(&mut service, key.secret.expose()).status(), 200);
    drop(service);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn the_vary_header_is_available_to_frameworks_without_tower() {
    let layer = KeywardLayer::new(TestService::new().keys);
    assert_eq!(layer.vary().unwrap(), "authorization, x-api-key");
    let layer = layer.sources(CredentialSources::none().with_query("key"));
    assert_eq!(layer.vary(), None);
}

#[test]
fn the_key_is_recorded_in_the_span_around_the_request_if_it_has_fields_for_it() {
    let log = Log::default();
    let captured = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || captured.clone())
        .finish();
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let world = TestService::new();
    let key = world.some_key();
    let mut service = KeywardLayer::new(world.keys.clone()).layer(Picky::new());
    let empty = tracing::field::Empty;
    let around = tracing::info_span!("request", key_id = empty, tenant = empty);
    around.in_scope(|| ask(&mut service, key.secret.expose()));
    let without_fields = tracing::info_span!("request");
    without_fields.in_scope(|| ask(&mut service, key.secret.expose()));
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = logged
        .lines()
        .filter(|line| line.contains("inside"))
        .collect();
    let [recorded, plain] = lines[..] else {
        panic!("{logged}");
    };
    let named = format!("request{{key_id={} tenant=acme}}", key.id);
    assert!(recorded.contains(&named), "{logged}");
    assert!(!plain.contains(&key.id.to_string()), "{logged}");
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn trap_15_the_log_names_key_and_tenant_and_never_the_secret() {
    let log = Log::default();
    let captured = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || captured.clone())
        .finish();
    // The subscriber is set for all threads. Otherwise a thread without a subscriber could reach a call site
    // first and disable that call site for every thread.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let world = TestService::new();
    let key = world.some_key();
    let text = key.secret.expose();
    let mut service = KeywardLayer::new(world.keys.clone()).layer(Picky::new());
    ask(&mut service, text);
    ask(&mut service, &with_other_secret(text));
    ask(&mut service, "garbage-of-mine");
    let full = KeywardLayer::new(world.keys.clone())
        .rate_limit(|_, _| Err(LimitReached::new(std::time::Duration::from_secs(3))));
    ask(&mut full.layer(Picky::new()), text);
    wait(world.keys.disable(&admin(), key.id)).unwrap();
    let refused = ask(&mut service, text);
    let shown = format!("{refused:?} {service:?} {}", body(ask(&mut service, text)));
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let id = key.id.to_string();
    let inside = logged
        .lines()
        .find(|line| line.contains("inside") && line.contains(&id));
    assert!(
        inside.is_some_and(|line| line.contains("tenant=acme")),
        "{logged}"
    );
    let disabled = logged.lines().find(|line| line.contains("key is disabled"));
    assert!(
        disabled.is_some_and(|line| line.contains(&id) && line.contains("INFO")),
        "{logged}"
    );
    // A reached limit is logged only at debug level, because any holder of a key can cause many such lines.
    let limited = logged.lines().find(|line| line.contains("another 3s"));
    assert!(
        limited.is_some_and(|line| line.contains(&id) && line.contains("DEBUG")),
        "{logged}"
    );
    for secret in [secret_part(text), "garbage-of-mine"] {
        assert!(!logged.contains(secret) && !shown.contains(secret));
    }
}
