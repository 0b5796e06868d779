//! Log lines of a node that follows its store.
//!
//! This test has its own process, because `tracing` decides once for the whole process whether a log event is
//! enabled.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

use std::sync::Arc;
use std::time::Duration;

use keyward::node::FollowOptions;
use keyward::policy::{Policy, Propagation};
use keyward::store::MemoryStore;
use keyward::{Keyward, ManualClock, PepperRing, VerifyError, profiles};
use keyward_conformance::{Call, Fault};
use support::gated::GatedStore;
use support::*;
use tokio::time::sleep;

#[test]
fn the_log_records_failures_and_recovery_and_no_secret() {
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(lines.clone())
        .with_ansi(false)
        .finish();
    let secret = tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(async {
            let clock = Arc::new(ManualClock::at(at(START)));
            let link = GatedStore::new(MemoryStore::new());
            let policy = Policy::new(profiles::standard()).unwrap();
            let keys = node(link.clone(), &clock, policy);
            let key = keys.create(&admin(), reader("a key")).await.unwrap();
            let follower = keys.follow(FollowOptions::default()).unwrap();
            sleep(Duration::from_millis(100)).await;
            let both = [Fault::Unavailable, Fault::Unavailable];
            link.link.next(Call::Changes, both);
            sleep(Duration::from_secs(2)).await;
            keys.verify(key.secret.expose(), &reading()).unwrap();

            // A dropped follower is a common mistake. The log names it once.
            drop(follower);
            for _ in 0..3 {
                clock.advance(Propagation::default().bound * 2);
                let refused = keys.verify(key.secret.expose(), &reading());
                assert!(matches!(refused, Err(VerifyError::Stale { .. })));
            }

            // A process with an older policy than the store works, and logs it.
            let version = |version| {
                let spec = profiles::standard().with(|spec| spec.version = version);
                node(link.clone(), &clock, Policy::new(spec).unwrap())
            };
            drop((version(7), version(5)));

            // So does a process that lacks the pepper of another one.
            let peppers = || PepperRing::new(pepper("p1", 1));
            for ring in [peppers().rotate(pepper("p2", 2)).unwrap(), peppers()] {
                let builder = Keyward::builder(link.clone(), ring).clock(clock.clone());
                drop(builder.build().await.unwrap());
            }

            // A missing pepper that keys need is a separate error.
            let retired = PepperRing::new(pepper("p2", 2));
            for ring in [
                retired.clone().with_audit_only(pepper("p1", 1)).unwrap(),
                retired,
            ] {
                let builder = Keyward::builder(link.clone(), ring).clock(clock.clone());
                drop(builder.build().await.unwrap());
            }
            key.secret.expose().to_owned()
        })
    });
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let at = |level: &str, words: &str| {
        let found = log
            .lines()
            .filter(|line| line.contains(level) && line.contains(words));
        found.count()
    };
    assert!(at("DEBUG", "outcome=\"confirmed\"") >= 4, "{log}");
    assert_eq!(at("WARN", "could not follow the store"), 1, "{log}");
    assert_eq!(
        at("DEBUG", "still cannot follow the store"),
        1,
        "a cause that stays is not repeated: {log}"
    );
    assert_eq!(at("INFO", "follows the store again failures=2"), 1, "{log}");
    assert_eq!(at("ERROR", "nothing follows the store"), 1, "{log}");
    assert_eq!(at("ERROR", "`Follow::Thread`"), 1, "{log}");
    assert_eq!(at("WARN", "older policy than the store holds"), 1, "{log}");
    assert_eq!(at("WARN", "own=5 stored=7"), 1, "{log}");
    assert_eq!(at("WARN", "lacks the pepper"), 1, "{log}");
    assert_eq!(at("WARN", "pepper=p2"), 1, "{log}");
    assert_eq!(at("ERROR", ""), 3, "{log}");
    assert_eq!(at("ERROR", "pepper=p1 state=audit keys=1"), 1, "{log}");
    assert_eq!(at("ERROR", "pepper=p1 keys=1"), 1, "{log}");
    assert!(!log.contains(secret_part(&secret)));
}
