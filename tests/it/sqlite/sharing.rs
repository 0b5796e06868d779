//! Several instances and processes on one file.

use std::sync::Arc;
use std::time::Duration;

use keyward::store::{KeyStore, SqliteStore, StoreErrorKind};
use keyward::{Denial, Keyward, ManualClock, Need, Reason, VerifyError};

use crate::sqlite::{Desk, checkpoint, pairs, policy, sql};
use support::*;

#[test]
fn a_commit_of_another_instance_wakes_a_waiter_and_takes_effect() {
    let desk = Desk::new();
    let options = SqliteStore::options(desk.path()).poll_interval(Duration::from_millis(5));
    let service_store = wait(options.open()).unwrap();
    let service = desk.node(service_store.clone());
    let operator = desk.keys();
    let key = wait(operator.create(&admin(), reader("shared"))).unwrap();
    wait(service.sync()).unwrap();
    service.verify(key.secret.expose(), &reading()).unwrap();
    let before = service.freshness().cursor.unwrap();
    let waiting = std::thread::spawn(move || wait(service_store.wait_past(before)));
    wait(operator.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    waiting.join().unwrap().unwrap();
    wait(service.sync()).unwrap();
    let refused = service
        .verify(key.secret.expose(), &Need::any())
        .unwrap_err();
    assert!(
        matches!(refused, VerifyError::Revoked { .. }),
        "{refused:?}"
    );
}

#[test]
fn a_key_works_in_the_process_that_created_it() {
    let desk = Desk::new();
    pairs::a_key_works_where_it_was_created(&desk.keys(), &desk.keys());
}

#[test]
fn first_uses_are_not_lost() {
    let desk = Desk::new();
    pairs::first_uses_are_not_lost(&desk.keys(), &desk.keys(), &desk.clock);
}

/// Runs `check` with a node on the correct clock and a node on a wrong clock. The last argument starts
/// another node on the correct clock.
fn on_two_clocks(
    check: impl Fn((&Keyward, &ManualClock), (&Keyward, &ManualClock), &dyn Fn() -> Keyward),
) {
    let desk = Desk::new();
    let wrong = Arc::new(ManualClock::at(at(START)));
    let (a, b) = (desk.keys(), node(desk.store(), &wrong, policy()));
    check((&a, &desk.clock), (&b, &wrong), &|| desk.keys());
}

#[test]
fn a_clock_ten_years_ahead_decides_for_its_own_tenant_alone() {
    on_two_clocks(|a, b, again| {
        pairs::a_clock_ten_years_ahead_decides_for_its_own_tenant_alone(a, b, again);
    });
}

#[test]
fn the_time_of_a_tenant_is_repaired() {
    on_two_clocks(|a, b, again| pairs::the_time_of_a_tenant_is_repaired(a, b, again));
}

/// Another file replaces the file that a node follows. Revisions of the two files cannot be compared, so the
/// node must not stay fresh.
#[test]
fn a_revocation_in_a_replaced_file_ends_freshness() {
    let desk = Desk::new();
    let keys = desk.keys();
    let key = wait(keys.create(&admin(), reader("key"))).unwrap();
    for number in 0..5 {
        wait(keys.create(&admin(), reader(&format!("filler {number}")))).unwrap();
    }
    keys.verify(key.secret.expose(), &reading()).unwrap();
    let other = wait(SqliteStore::open(desk.at("other.db"))).unwrap();
    let twin = wait(desk.node(other.clone()).create(&admin(), reader("twin"))).unwrap();
    drop(other);
    checkpoint(&desk.at("other.db"));
    std::fs::create_dir(desk.at("away")).unwrap();
    for end in ["", "-wal", "-shm"] {
        let from = desk.at(&format!("keys.db{end}"));
        if from.exists() {
            std::fs::rename(from, desk.at(&format!("away/keys.db{end}"))).unwrap();
        }
    }
    std::fs::copy(desk.at("other.db"), desk.path()).unwrap();
    wait(keys.revoke(&admin(), twin.id, Reason::Lost)).unwrap();
    let refused = keys.verify(key.secret.expose(), &reading()).unwrap_err();
    assert!(matches!(refused, VerifyError::Stale { .. }), "{refused:?}");
    wait(keys.sync()).unwrap();
    let refused = keys.verify(key.secret.expose(), &reading()).unwrap_err();
    assert_eq!(refused, VerifyError::Unknown);
}

#[test]
fn the_cap_holds_between_instances_that_create_concurrently() {
    let desk = Desk::new();
    let policy = keyward::policy::Policy::new(capped(5)).unwrap();
    let nodes: Vec<_> = (0..4)
        .map(|_| Arc::new(node(desk.store(), &desk.clock, policy.clone())))
        .collect();
    let create = |node: &Arc<keyward::Keyward>, number| {
        let node = node.clone();
        std::thread::spawn(move || wait(node.create(&admin(), reader(&format!("key {number}")))))
    };
    let all: Vec<_> = (0..16)
        .map(|number| create(&nodes[number % 4], number))
        .collect();
    let mut made = 0;
    for thread in all {
        match thread.join().unwrap() {
            Ok(_) => made += 1,
            Err(keyward::CommandError::Denied(Denial::CapReached { .. })) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(made, 5);
}

#[test]
fn a_lock_held_too_long_is_reported_as_unavailable() {
    let desk = Desk::new();
    let options = SqliteStore::options(desk.path()).busy_timeout(Duration::from_millis(20));
    let keys = desk.node(wait(options.open()).unwrap());
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    let other = sql(&desk.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap_err();
    match &refused {
        keyward::CommandError::Store(error) => {
            assert_eq!(error.kind(), StoreErrorKind::Unavailable)
        }
        other => panic!("{other:?}"),
    }
    other.execute_batch("ROLLBACK").unwrap();
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
}

#[test]
fn waiting_commits_share_one_transaction_and_each_gets_its_answer() {
    let desk = Desk::new();
    let keys = Arc::new(desk.keys());
    let other = sql(&desk.path());
    // While another connection writes, all commits queue behind the first one.
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let create = |number: usize| {
        let keys = keys.clone();
        let admin = actor(&format!("t{number}"), "alice", keyward::Role::ADMIN);
        std::thread::spawn(move || wait(keys.create(&admin, reader("first"))).unwrap())
    };
    let all: Vec<_> = (0..16).map(create).collect();
    other.execute_batch("COMMIT").unwrap();
    for thread in all {
        let created = thread.join().unwrap();
        keys.verify(created.secret.expose(), &reading()).unwrap();
    }
    let commits: i64 = other
        .query_row("SELECT count(*) FROM commits", [], |row| row.get(0))
        .unwrap();
    assert_eq!(commits, 16, "each has a revision of its own");
}

#[test]
fn forgotten_tombstones_compact_the_feed_and_their_ids_stay_taken() {
    let desk = Desk::new();
    let store = desk.store();
    let keys = desk.node(store.clone());
    let behind = wait(store.stats()).unwrap().head;
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    wait(keys.delete(&admin(), key.id, keyward::command::DeleteKey::plain())).unwrap();
    let head = wait(store.stats()).unwrap().head;
    assert_eq!(wait(store.compact(head.revision)).unwrap(), 1);
    let limit = std::num::NonZeroUsize::MIN;
    let compacted = wait(store.changes(behind, limit));
    assert!(matches!(
        compacted,
        Err(keyward::store::ChangesError::Compacted)
    ));
    assert!(wait(store.changes(head, limit)).unwrap().changes.is_empty());
    wait(keys.create(&admin(), reader("second"))).unwrap();
    let gone: i64 = sql(&desk.path())
        .query_row("SELECT count(*) FROM gone", [], |row| row.get(0))
        .unwrap();
    assert_eq!(gone, 1, "the id stays taken");
    let refused = keys.verify(key.secret.expose(), &Need::any()).unwrap_err();
    assert_eq!(refused, VerifyError::Unknown);
}
