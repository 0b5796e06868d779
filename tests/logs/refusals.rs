//! The log has one line before keys are refused as stale, one when the refusals begin, and one when they end.

use std::sync::Arc;
use std::time::Duration;

use keyward::policy::Policy;
use keyward::store::MemoryStore;
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
