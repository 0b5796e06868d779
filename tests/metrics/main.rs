//! Exported metrics.

#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use keyward::command::DeleteKey;
use keyward::store::MemoryStore;
use keyward::{Keyward, ManualClock, VerifyError, profiles};
use keyward_conformance::{Call, Fault, FaultyStore};
use support::gated::GatedStore;
use support::recorder::Kept;
use support::server_time::ServerTimeStore;
use support::*;

/// The server's clock starts a minute ahead of the node's clock.
#[test]
fn the_offset_to_the_most_different_clock_is_a_gauge() {
    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let clock = Arc::new(ManualClock::at(at(START)));
        let server = Arc::new(ManualClock::at(at(START)));
        server.advance(Duration::from_secs(60));
        let policy = keyward::policy::Policy::new(profiles::standard()).unwrap();
        let keys = node(
            ServerTimeStore::new(MemoryStore::new(), &server),
            &clock,
            policy,
        );
        wait(keys.sync()).unwrap();
        assert_eq!(kept.gauge("keyward_clock_offset_seconds"), -60.0);
        clock.advance(Duration::from_secs(90));
        wait(keys.sync()).unwrap();
        assert_eq!(kept.gauge("keyward_clock_offset_seconds"), 30.0);
    });
}

#[test]
fn a_store_that_went_back_in_time_sets_a_gauge() {
    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let open = || wait(keyward::store::SqliteStore::open(place("keys.db"))).unwrap();
        let clock = Arc::new(ManualClock::at(at(START)));
        let policy = keyward::policy::Policy::new(profiles::standard()).unwrap();
        let keys = node(open(), &clock, policy);
        wait(open().checkpoint()).unwrap();
        std::fs::copy(place("keys.db"), place("copy.db")).unwrap();
        wait(keys.create(&admin(), reader("a"))).unwrap();
        wait(keys.sync()).unwrap();
        assert_eq!(kept.gauge("keyward_store_diverged"), 0.0);
        std::fs::rename(place("keys.db"), place("right.db")).unwrap();
        let put = |from: &str| {
            for end in ["-wal", "-shm"] {
                let _ = std::fs::remove_file(place(&format!("keys.db{end}")));
            }
            std::fs::rename(place(from), place("keys.db")).unwrap();
        };
        put("copy.db");
        assert!(wait(keys.sync()).is_err());
        assert_eq!(kept.gauge("keyward_store_diverged"), 1.0);
    });
}

#[test]
fn syncs_and_reads_are_counted_by_outcome_and_the_age_of_a_node_is_a_gauge() {
    let kept = Kept::default();
    let everything = metrics::with_local_recorder(&kept, || {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let policy = keyward::policy::Policy::new(profiles::standard()).unwrap();
        let link = GatedStore::new(store.clone());
        let there = node(store.clone(), &clock, policy.clone());
        let here = node(link.clone(), &clock, policy);
        let key = wait(there.create(&admin(), reader("a"))).unwrap();
        let other = wait(there.create(&admin(), reader("b"))).unwrap();
        wait(here.sync()).unwrap();
        assert_eq!(kept.gauge("keyward_index_keys"), 2.0);
        assert_eq!(kept.gauge("keyward_freshness_age_seconds"), 0.0);

        // A failed sync and a cancelled sync record the age too.
        clock.advance(Duration::from_secs(3));
        link.link.next(Call::Changes, [Fault::Unavailable]);
        assert!(wait(here.sync()).is_err());
        assert_eq!(kept.gauge("keyward_freshness_age_seconds"), 3.0);
        link.hold(Call::Changes);
        {
            let mut hangs = Box::pin(here.sync());
            let mut context = Context::from_waker(Waker::noop());
            assert!(hangs.as_mut().poll(&mut context).is_pending());
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(kept.gauge("keyward_freshness_age_seconds"), 4.0);
        link.let_pass(Call::Changes);
        wait(there.delete(&admin(), other.id, DeleteKey::plain())).unwrap();
        store.compact();
        wait(here.sync()).unwrap();
        assert_eq!(kept.count("keyward_syncs_total confirmed"), 2 + 1 + 1);
        assert_eq!(kept.count("keyward_syncs_total failed"), 1);
        assert_eq!(kept.count("keyward_syncs_total abandoned"), 1);
        assert_eq!(kept.count("keyward_resyncs_total"), 1);

        let new = wait(there.create(&admin(), reader("c"))).unwrap();
        let stranger = TestService::new().some_key();
        let ask = |token: &str| wait(here.verify_or_fetch(token, &reading()));
        ask(new.secret.expose()).unwrap();
        ask(stranger.secret.expose()).unwrap_err();
        link.link.next(Call::Find, [Fault::Unavailable]);
        ask(stranger.secret.expose()).unwrap_err();
        let mut asked = 2;
        while ask(stranger.secret.expose()).unwrap_err() == VerifyError::Unknown {
            asked += 1;
        }
        assert_eq!(kept.count("keyward_read_throughs_total found"), 1);
        assert_eq!(kept.count("keyward_read_throughs_total missing"), asked - 1);
        assert_eq!(kept.count("keyward_read_throughs_total failed"), 1);
        assert_eq!(kept.count("keyward_read_throughs_total refused"), 1);
        [key, new, stranger].map(|key| secret_part(key.secret.expose()).to_owned())
    });
    let names = kept.0.lock().unwrap().keys().cloned().collect::<String>();
    assert!(everything.iter().all(|secret| !names.contains(secret)));
}

/// The bound is 10 s.
#[test]
fn the_time_until_a_refusal_and_the_age_of_a_report_are_gauges_that_move_without_a_sync() {
    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let clock = Arc::new(ManualClock::at(at(START)));
        let [link, roll] = [(), ()].map(|()| FaultyStore::new(MemoryStore::new()));
        let builder = Keyward::builder(link.clone(), peppers()).registry(roll.clone());
        let keys = wait(builder.clock(clock.clone()).build()).unwrap();
        let key = wait(keys.create(&admin(), reader("a"))).unwrap();
        let left = || kept.gauge("keyward_seconds_until_refusal");
        let reported = || kept.gauge("keyward_report_age_seconds");
        wait(keys.sync()).unwrap();
        assert_eq!((left(), reported()), (10.0, 0.0));

        // A sync that fails measures both, and so does a health check.
        link.partition(true);
        clock.advance(Duration::from_secs(3));
        wait(keys.sync()).unwrap_err();
        assert_eq!((left(), reported()), (7.0, 3.0));
        clock.advance(Duration::from_secs(2));
        let _ = keys.freshness();
        assert_eq!((left(), reported()), (5.0, 5.0));

        // The first refused key sets the gauge to zero, though nothing syncs.
        clock.advance(Duration::from_secs(6));
        keys.verify(key.secret.expose(), &reading()).unwrap_err();
        assert_eq!((left(), reported()), (0.0, 11.0));
        clock.advance(Duration::from_secs(60));
        let _ = keys.freshness();
        assert_eq!((left(), reported()), (0.0, 71.0));
        wait(keys.deregister()).unwrap();
        let _ = keys.freshness();
        assert_eq!(reported(), f64::INFINITY, "no report counts");
    });
}

#[test]
fn errors_of_the_store_are_counted_by_kind() {
    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let clock = Arc::new(ManualClock::at(at(START)));
        let link = FaultyStore::new(MemoryStore::new());
        let policy = keyward::policy::Policy::new(profiles::standard()).unwrap();
        let keys = node(link.clone(), &clock, policy);
        let count = |kind: &str| kept.count(&format!("keyward_store_errors_total {kind}"));
        link.next(Call::Changes, [Fault::Unavailable]);
        wait(keys.sync()).unwrap_err();
        assert_eq!(count("unavailable"), 1, "a sync");
        link.next(Call::Load, [Fault::Unavailable]);
        wait(keys.create(&admin(), reader("a"))).unwrap_err();
        assert_eq!(count("unavailable"), 2, "a command that cannot read");
        link.next(Call::Commit, [Fault::ReplyLost]);
        let key = wait(keys.create(&admin(), reader("a"))).unwrap();
        assert_eq!(count("indeterminate"), 1, "a commit whose answer is lost");
        link.next(Call::Find, [Fault::Unavailable]);
        wait(keys.verify_fresh(key.secret.expose(), &reading())).unwrap_err();
        assert_eq!((count("unavailable"), count("corrupt")), (3, 0), "a read");
    });
}

#[test]
fn keys_are_counted_by_their_pepper_at_most_once_a_minute() {
    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let world = TestService::new();
        let key = world.some_key();
        let ring = keyward::PepperRing::new(pepper("p2", 2));
        let ring = ring.with_audit_only(pepper("p1", 1)).unwrap();
        let builder = Keyward::builder(world.store.clone(), ring).clock(world.clock.clone());
        let keys = wait(builder.build()).unwrap();
        let shown = || {
            [
                "keyward_keys_by_pepper p2 current",
                "keyward_keys_by_pepper p1 audit",
                "keyward_unverifiable_keys",
            ]
            .map(|name| kept.gauge(name))
        };
        assert_eq!(shown(), [0.0, 1.0, 1.0]);
        wait(keys.create(&admin(), reader("new"))).unwrap();
        wait(keys.revoke(&admin(), key.id, keyward::Reason::Lost)).unwrap();
        world.clock.advance(Duration::from_secs(59));
        wait(keys.sync()).unwrap();
        assert_eq!(shown(), [0.0, 1.0, 1.0]);
        world.clock.advance(Duration::from_secs(1));
        wait(keys.sync()).unwrap();
        assert_eq!(shown(), [1.0, 0.0, 0.0]);
    });
}

#[test]
fn requests_over_http_are_counted_by_outcome() {
    use keyward::web::{KeywardLayer, LimitReached};
    use tower::{Layer, ServiceExt, service_fn};

    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let world = TestService::new();
        let (key, narrow) = (world.some_key(), world.some_key());
        let layer = KeywardLayer::new(world.keys.clone());
        let ask = |layer: &KeywardLayer, key: Option<&str>| {
            let inner = service_fn(|_: http::Request<()>| async {
                let body = http_body_util::Empty::<bytes::Bytes>::new();
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            });
            let mut request = http::Request::new(());
            if let Some(key) = key {
                let key = key.parse().unwrap();
                request.headers_mut().insert("x-api-key", key);
            }
            wait(layer.layer(inner).oneshot(request)).unwrap();
        };
        ask(&layer, Some(key.secret.expose()));
        ask(&layer, None);
        ask(&layer, Some("garbage"));
        ask(&layer, Some(""));
        ask(&layer.clone().optional(), None);
        let writing = layer
            .clone()
            .require(keyward::Need::scope("reports:write").unwrap());
        ask(&writing, Some(narrow.secret.expose()));
        let full = layer
            .clone()
            .rate_limit(|_, _| Err(LimitReached::new(Duration::ZERO)));
        ask(&full, Some(key.secret.expose()));
        let other_peppers = keyward::PepperRing::new(pepper("p2", 2));
        let without_pepper =
            Keyward::builder(world.store.clone(), other_peppers).replace_lost_peppers();
        let without_pepper = without_pepper.clock(world.clock.clone());
        let without_pepper = KeywardLayer::new(wait(without_pepper.build()).unwrap());
        ask(&without_pepper, Some(key.secret.expose()));
    });
    for outcome in [
        "accepted",
        "anonymous",
        "missing-key",
        "ambiguous-credentials",
        "invalid-key",
        "insufficient-scope",
        "rate-limited",
        "unavailable",
    ] {
        let name = format!("keyward_http_requests_total {outcome}");
        assert_eq!(kept.count(&name), 1, "{outcome}");
    }
}

/// Layers with different sources and an extractor around one handler refuse requests in turn.
#[cfg(feature = "axum")]
#[test]
fn a_request_counts_once_whatever_refuses_it() {
    use axum::body::Body;
    use axum::routing::get;
    use keyward::web::{CredentialSources, KeywardLayer, RequiredScope, Scoped};
    use keyward::{Grant, Scope};
    use tower::ServiceExt;

    struct Writing;
    impl RequiredScope for Writing {
        const SCOPE: Scope = Scope::from_static("reports:write");
    }

    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let world = TestService::new();
        let key = world.some_key();
        let outer = KeywardLayer::new(world.keys.clone());
        let own = CredentialSources::none().with_header("x-other-key".parse().unwrap());
        let inner = outer.clone().sources(own);
        let written = |_: Scoped<Writing>| async {};
        let tried = |first: Result<Scoped<Writing>, _>, _: Grant| async move { drop(first) };
        let routes = axum::Router::new()
            .route("/plain", get(|_: Grant| async {}))
            .route("/written", get(written))
            .route("/tried", get(tried))
            .route("/inner", get(written).layer(inner.clone()))
            .route("/optional", get(|| async {}).layer(inner.optional()))
            .layer(outer.clone())
            .layer(outer);
        let ask = |path: &str, other: Option<&str>| {
            let mut request = http::Request::get(path).body(Body::empty()).unwrap();
            let headers = request.headers_mut();
            headers.insert("x-api-key", key.secret.expose().parse().unwrap());
            if let Some(other) = other {
                headers.insert("x-other-key", other.parse().unwrap());
            }
            let answer = wait(routes.clone().oneshot(request)).unwrap();
            let vary = answer.headers().get_all("vary").iter();
            let vary: Vec<_> = vary.map(|line| line.to_str().unwrap().to_owned()).collect();
            (answer.status().as_u16(), vary.join(" | "))
        };
        let plain = "authorization, x-api-key".to_owned();
        let both = "x-other-key, authorization, x-api-key".to_owned();
        assert_eq!(ask("/plain", None), (200, plain.clone()));
        assert_eq!(ask("/tried", None), (200, plain.clone()));
        assert_eq!(ask("/written", None), (403, plain));
        assert_eq!(
            ask("/inner", Some(key.secret.expose())),
            (403, both.clone())
        );
        assert_eq!(ask("/inner", Some("garbage")), (401, both.clone()));
        assert_eq!(ask("/optional", None), (200, both));
    });
    let counts = ["accepted", "insufficient-scope", "invalid-key", "anonymous"]
        .map(|outcome| kept.count(&format!("keyward_http_requests_total {outcome}")));
    assert_eq!(counts, [3, 2, 1, 0]);
}

#[test]
fn a_request_that_is_cancelled_in_the_service_counts_once() {
    use keyward::web::KeywardLayer;
    use tower::{Layer, Service, service_fn};

    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let world = TestService::new();
        let key = world.some_key();
        let never = |_: http::Request<()>| {
            std::future::pending::<Result<http::Response<()>, std::convert::Infallible>>()
        };
        let mut service = KeywardLayer::new(world.keys.clone()).layer(service_fn(never));
        let request = http::Request::get("/").header("x-api-key", key.secret.expose());
        let mut call = Box::pin(service.call(request.body(()).unwrap()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(call.as_mut().poll(&mut context).is_pending());
        assert_eq!(kept.count("keyward_http_requests_total accepted"), 0);
        drop(call);
        assert_eq!(kept.count("keyward_http_requests_total accepted"), 1);
    });
}

/// The caller's thread measures the log, so the recorder of that thread sees no measurement of the writer.
#[cfg(feature = "sqlite")]
#[test]
fn a_process_that_only_reads_measures_the_length_of_the_log_too() {
    use std::num::NonZeroUsize;

    use keyward::store::{KeyStore, SqliteStore, sqlite::JournalMode};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let [writer, reader] = [(); 2].map(|()| wait(SqliteStore::open(&path)).unwrap());
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = keyward::policy::Policy::new(profiles::standard()).unwrap();
    let keys = node(writer, &clock, policy);
    wait(keys.create(&admin(), self::reader("first"))).unwrap();
    let kept = Kept::default();
    let after = wait(reader.scan(None, NonZeroUsize::MIN)).unwrap().head;
    let read =
        metrics::with_local_recorder(&kept, || wait(reader.changes(after, NonZeroUsize::MIN)));
    read.unwrap();
    assert_eq!(
        kept.gauge("keyward_store_wal_bytes") > 0.0,
        reader.journal_mode() == JournalMode::Wal
    );
}

/// The writer of the store runs on a separate thread, so the test uses the recorder of the process.
#[cfg(feature = "sqlite")]
#[test]
fn the_length_of_a_files_log_is_a_gauge() {
    let kept: &'static Kept = Box::leak(Box::default());
    metrics::set_global_recorder(kept).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let store = wait(keyward::store::SqliteStore::open(&path)).unwrap();
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = keyward::policy::Policy::new(profiles::standard()).unwrap();
    let keys = node(store.clone(), &clock, policy);
    for name in ["first", "second"] {
        // The writer measures the log after each commit, before it begins the next one.
        wait(keys.create(&admin(), reader(name))).unwrap();
    }
    assert_eq!(
        kept.gauge("keyward_store_wal_bytes") > 0.0,
        store.journal_mode() == keyward::store::sqlite::JournalMode::Wal
    );
}
