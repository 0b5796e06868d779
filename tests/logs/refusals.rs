//! The log has one line before keys are refused as stale, one when the refusals begin, and one when they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use keyward::policy::Policy;
use keyward::store::{MemoryStore, NodeId, NodeRegistry, NodeReport, StoreError};
use keyward::{Follow, Keyward, ManualClock, VerifyError, profiles};
use keyward_conformance::FaultyStore;
use support::captured::Captured;
use support::*;

/// The bound is 10 s.
#[test]
fn a_refusal_is_announced_before_it_begins_and_logged_once_at_each_end() {
    let (log, _subscriber) = Captured::start();
    let clock = Arc::new(ManualClock::at(at(START)));
    let link = FaultyStore::new(MemoryStore::new());
    let policy = Policy::new(profiles::standard()).unwrap();
    let keys = node(link.clone(), &clock, policy);
    let key = wait(keys.create(&admin(), reader("a key"))).unwrap();
    wait(keys.sync()).unwrap();
    let before = log.lines("").len();
    let news = || log.lines("").split_off(before);
    let fail_after = |seconds| {
        clock.advance(Duration::from_secs(seconds));
        wait(keys.sync()).unwrap_err();
    };
    link.partition(true);
    fail_after(4);
    assert_eq!(news(), [""; 0], "half of the bound is not over");
    fail_after(1);
    fail_after(1);
    let near = news();
    assert_eq!(near.len(), 1, "{near:?}");
    assert!(near[0].contains("ERROR keyward"), "{near:?}");
    for words in ["keys will be refused", "left=5s", "store is unavailable"] {
        assert!(near[0].contains(words), "{words}: {near:?}");
    }
    fail_after(4);
    assert!(keys.verify(key.secret.expose(), &reading()).is_ok());
    assert_eq!(news().len(), 1, "ten seconds are within the bound");

    clock.advance(Duration::from_secs(2));
    for _ in 0..1_000 {
        let refused = keys.verify(key.secret.expose(), &reading());
        assert!(matches!(refused, Err(VerifyError::Stale { .. })));
    }
    fail_after(1);
    let begun = news();
    assert_eq!(begun.len(), 2, "{begun:?}");
    for words in ["ERROR", "keys are refused as stale", "store is unavailable"] {
        assert!(begun[1].contains(words), "{words}: {begun:?}");
    }

    link.partition(false);
    clock.advance(Duration::from_secs(7));
    wait(keys.sync()).unwrap();
    wait(keys.sync()).unwrap();
    assert!(keys.verify(key.secret.expose(), &reading()).is_ok());
    let ended = news();
    assert_eq!(ended.len(), 3, "{ended:?}");
    // The refusal began ten seconds after the last confirmation, which was at 0 s, and ended at 20 s.
    for words in ["INFO", "keys are accepted again", "refused_for=10s"] {
        assert!(ended[2].contains(words), "{words}: {ended:?}");
    }
}

#[test]
fn a_store_in_this_process_and_a_node_without_an_index_log_no_refusal() {
    let (log, _subscriber) = Captured::start();
    let world = TestService::new();
    let key = world.some_key();
    world.clock.advance(Duration::from_secs(1_000));
    assert!(world.keys.verify(key.secret.expose(), &reading()).is_ok());
    wait(world.keys.sync()).unwrap();
    let builder = Keyward::builder(FaultyStore::new(world.store.clone()), peppers());
    let builder = builder.clock(world.clock.clone()).follow(Follow::Never);
    let idle = wait(builder.build()).unwrap();
    idle.verify(key.secret.expose(), &reading()).unwrap_err();
    wait(idle.verify_fresh(key.secret.expose(), &reading())).unwrap();
    let refusals: Vec<_> = log
        .lines("")
        .into_iter()
        .filter(|line| line.contains("ERROR"))
        .collect();
    assert_eq!(refusals, [""; 0]);
}

/// A registry whose reports may wait without end, as for a synchronous standby that is gone.
#[derive(Debug, Default)]
struct WaitingRegistry {
    reports: MemoryStore,
    waits: AtomicBool,
}

#[async_trait]
impl NodeRegistry for WaitingRegistry {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        if self.waits.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.reports.report(report).await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.reports.nodes().await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        self.reports.forget(node, upto).await
    }
}

/// The bound is 10 s, and the report allowance 60 s.
#[test]
fn a_report_that_is_not_answered_is_named_long_before_keys_are_refused() {
    let (log, _subscriber) = Captured::start();
    let clock = Arc::new(ManualClock::at(at(START)));
    let registry = Arc::new(WaitingRegistry::default());
    let builder = Keyward::builder(FaultyStore::new(MemoryStore::new()), peppers());
    let builder = builder.clock(clock.clone()).follow(Follow::Manual);
    let keys = wait(builder.registry(registry.clone()).build()).unwrap();
    let before = log.lines("").len();
    let news = || log.lines("keyward").split_off(before);
    registry.waits.store(true, Ordering::Relaxed);
    let pass = |seconds| {
        clock.advance(Duration::from_secs(seconds));
        // The follower drops a sync that is not answered for a second.
        let mut sync = Box::pin(keys.sync());
        let synced = (&mut sync).now_or_never();
        clock.advance(Duration::from_secs(1));
        synced
    };
    assert!(pass(10).is_none());
    let first = news();
    assert_eq!(first.len(), 1, "{first:?}");
    for words in [
        "WARN",
        "cannot report this node's position",
        "did not answer in time",
    ] {
        assert!(first[0].contains(words), "{words}: {first:?}");
    }
    assert!(pass(8).is_none() && pass(8).is_none());
    assert_eq!(news().len(), 1);
    assert!(pass(8).is_none());
    let overdue = news();
    assert_eq!(overdue.len(), 2, "{overdue:?}");
    for words in [
        "ERROR",
        "last report to the registry is old",
        "did not answer in time",
    ] {
        assert!(overdue[1].contains(words), "{words}: {overdue:?}");
    }
    assert!(pass(8).is_none() && pass(8).is_none());
    assert_eq!(news().len(), 2, "syncs still confirm the index");
    assert!(pass(6).is_none());
    let near = news();
    assert_eq!(near.len(), 3, "{near:?}");
    for words in ["keys will be refused", "did not answer in time"] {
        assert!(near[2].contains(words), "{words}: {near:?}");
    }
    registry.waits.store(false, Ordering::Relaxed);
    assert!(pass(1).unwrap().is_ok());
    let ended = news();
    assert!(
        ended[3].contains("reports this node's position to the registry again"),
        "{ended:?}"
    );
    assert_eq!(ended.len(), 4, "{ended:?}");
}
