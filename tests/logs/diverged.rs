//! A store that goes back in time is logged once, with the positions and the next step.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use keyward::policy::Policy;
use keyward::store::SqliteStore;
use keyward::{ManualClock, profiles};
use support::captured::Captured;
use support::*;

#[test]
fn a_store_that_went_back_in_time_is_one_error_line_and_its_return_one_info_line() {
    let (log, _subscriber) = Captured::start();
    let lines = |part: &str| log.lines(part);
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = Policy::new(profiles::standard()).unwrap();
    let store = wait(SqliteStore::open(place("keys.db"))).unwrap();
    let keys = node(store.clone(), &clock, policy);
    wait(keys.create(&admin(), reader("first"))).unwrap();
    wait(store.checkpoint()).unwrap();
    fs::copy(place("keys.db"), place("copy.db")).unwrap();
    wait(keys.create(&admin(), reader("second"))).unwrap();
    wait(keys.sync()).unwrap();
    let swap = |away: &str, back: &str| {
        for end in ["", "-wal", "-shm"] {
            let file = |name: &str| place(&format!("{name}{end}"));
            let _ = fs::rename(file("keys.db"), file(away));
            let _ = fs::rename(file(back), file("keys.db"));
        }
    };
    swap("right.db", "copy.db");
    for _ in 0..20 {
        assert!(wait(keys.sync()).is_err());
        clock.advance(Duration::from_secs(1));
    }
    // No other line says that the node continues by itself.
    assert_eq!(lines("ERROR").len(), 1);
    let errors = lines("it lacks a commit");
    let [error] = &errors[..] else {
        panic!("{errors:?}");
    };
    for part in [
        "lost=2",
        "head=1",
        "went back in time",
        "start-new-epoch",
        "keyctl recover",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(lines("has the lost commit again").len(), 0);
    swap("wrong.db", "right.db");
    wait(keys.sync()).unwrap();
    wait(keys.sync()).unwrap();
    assert_eq!(lines("has the lost commit again").len(), 1);
    assert_eq!(lines("ERROR").len(), 1);
}
