//! Floods of requests: the log says what happens, in a bounded number of lines.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use keyward::policy::Policy;
use keyward::store::MemoryStore;
use keyward::web::KeywardLayer;
use keyward::{ManualClock, Reason, profiles};
use support::captured::Captured;
use support::gated::GatedStore;
use support::*;
use tower::{Layer, ServiceExt, service_fn};

const FLOOD: usize = 20_000;

fn text(log: &Captured) -> String {
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

/// Returns the number of lines of the log. It holds lines at `INFO` and above.
fn lines(log: &Captured) -> usize {
    text(log).lines().count()
}

#[test]
fn a_flood_writes_a_bounded_number_of_lines() {
    let (log, _subscriber) = Captured::start();
    let clock = Arc::new(ManualClock::at(at(START)));
    let link = GatedStore::new(MemoryStore::new());
    let policy = Policy::new(profiles::standard()).unwrap();
    let keys = node(link.clone(), &clock, policy);
    let revoked = wait(keys.create(&admin(), reader("revoked"))).unwrap();
    wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    let answer = |_| std::future::ready(Ok::<_, Infallible>(Response::new(String::new())));
    let service = KeywardLayer::new(keys.clone()).layer(service_fn(answer));
    let status = |key: &str| {
        let request = Request::get("/").header("x-api-key", key).body(()).unwrap();
        wait(service.clone().oneshot(request))
            .unwrap()
            .status()
            .as_u16()
    };
    let before = lines(&log);
    let made_up = strangers(FLOOD);
    assert!(made_up.iter().all(|key| matches!(status(key), 401 | 429)));
    assert_eq!(
        lines(&log),
        before,
        "anybody can make up keys: {}",
        text(&log)
    );

    assert!((0..FLOOD).all(|_| status(revoked.secret.expose()) == 401));
    assert_eq!(
        lines(&log),
        before + 1,
        "the holder of a key causes one line"
    );
    clock.advance(Duration::from_secs(10));
    wait(keys.sync()).unwrap();
    assert_eq!(status(revoked.secret.expose()), 401);
    let last = text(&log).lines().last().unwrap().to_owned();
    let suppressed = format!("suppressed={}", FLOOD - 1);
    assert!(last.contains(&suppressed), "{last}");

    let before = lines(&log);
    link.link.partition(true);
    for key in &made_up[..1000] {
        clock.advance(Duration::from_millis(1));
        assert_eq!(status(key), 503);
    }
    // The verifier and the layer write one line each.
    assert_eq!(lines(&log), before + 2, "an outage");
}
