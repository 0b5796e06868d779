//! Several nodes that share one database schema.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use keyward::clocks::SystemClock;
use keyward::policy::Policy;
use keyward::store::postgres::ConnectError;
use keyward::store::{
    ChangesError, CommitError, Cursor, KeyQuery, KeyStore, NodeRegistry, Revision, StoreErrorKind,
};
use keyward::{
    Clock, CommandError, Denial, Keyward, ManualClock, Need, Reason, Role, VerifyError, days,
};

use support::pairs;
use support::postgres::{TestSchema, open};
use support::raw::{ALL, beginning, next, removed_since, write};
use support::*;

fn nodes(place: &TestSchema, count: usize, cap: u32) -> Vec<Arc<Keyward>> {
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = Policy::new(capped(cap)).unwrap();
    (0..count)
        .map(|_| Arc::new(node(place.connect(), &clock, policy.clone())))
        .collect()
}

#[test]
fn a_commit_of_another_node_wakes_a_waiter_and_takes_effect() {
    let place = TestSchema::new();
    let clock = Arc::new(ManualClock::at(at(START)));
    let store = place.connect();
    let policy = Policy::new(capped(5)).unwrap();
    let service = node(store.clone(), &clock, policy.clone());
    let operator = node(place.connect(), &clock, policy);
    let key = wait(operator.create(&admin(), reader("shared"))).unwrap();
    wait(service.sync()).unwrap();
    service.verify(key.secret.expose(), &reading()).unwrap();
    let before = service.freshness().cursor.unwrap();
    let waiting = thread::spawn(move || wait(store.wait_past(before)));
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
fn a_key_works_on_the_node_that_created_it() {
    let place = TestSchema::new();
    let nodes = nodes(&place, 2, 5);
    pairs::a_key_works_where_it_was_created(&nodes[0], &nodes[1]);
}

#[test]
fn first_uses_are_not_lost() {
    let place = TestSchema::new();
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = Policy::new(capped(5)).unwrap();
    let [a, b] = [0, 1].map(|_| node(place.connect(), &clock, policy.clone()));
    pairs::first_uses_are_not_lost(&a, &b, &clock);
}

/// Calls `check` with two nodes, each with a clock of its own. The third argument of `check` is a function
/// that starts another node on the first clock.
fn on_two_clocks(
    check: impl Fn((&Keyward, &ManualClock), (&Keyward, &ManualClock), &dyn Fn() -> Keyward),
) {
    let place = TestSchema::new();
    let policy = Policy::new(capped(9)).unwrap();
    let clocks = [0, 1].map(|_| Arc::new(ManualClock::at(at(START))));
    let [a, b] = clocks
        .each_ref()
        .map(|clock| node(place.connect(), clock, policy.clone()));
    let again = || node(place.connect(), &clocks[0], policy.clone());
    check((&a, &clocks[0]), (&b, &clocks[1]), &again);
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

/// The store gets the server's time with every load and every poll, so that the node can detect its own wrong
/// clock.
#[test]
fn the_servers_clock_contradicts_one_that_is_ten_years_ahead() {
    let place = TestSchema::new();
    let open = || open(place.options().server_clock(true)).unwrap();
    let right = Arc::new(ManualClock::at(SystemClock.now()));
    let policy = Policy::new(capped(5)).unwrap();
    let keys = node(open(), &right, policy.clone());
    let key = wait(keys.create(&admin(), reader("key").expires_in(days(90)))).unwrap();
    right.set_wall(right.now().saturating_add(days(3650)));
    let created = wait(keys.create(&admin(), reader("another")));
    assert!(matches!(denied(created), Denial::ClockRefused { .. }));
    wait(keys.sync()).unwrap();
    keys.verify(key.secret.expose(), &reading()).unwrap();
    let started = node(open(), &right, policy);
    started.verify(key.secret.expose(), &reading()).unwrap();
    wait(started.revoke(&admin(), key.id, Reason::Lost)).unwrap();
}

/// Creates a key, and retries while other writers cause conflicts. Returns false if the tenant has reached
/// its cap.
fn created(keys: &Keyward, path: &str, name: &str) -> bool {
    loop {
        let admin = actor(path, "alice", Role::ADMIN);
        match wait(keys.create(&admin, reader(name))) {
            Ok(_) => return true,
            Err(CommandError::Denied(Denial::CapReached { .. })) => return false,
            Err(CommandError::Contended { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Runs 16 writers on four nodes. Each writer attempts to create `each` keys in every tenant. Checks that
/// each tenant ends exactly at its cap.
fn cap_holds(tenants: usize, each: usize, cap: u32) {
    let place = TestSchema::new();
    let nodes = nodes(&place, 4, cap);
    let made: usize = thread::scope(|scope| {
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                let keys = &nodes[writer % 4];
                scope.spawn(move || {
                    let tries = (0..tenants).flat_map(|tenant| (0..each).map(move |n| (tenant, n)));
                    tries
                        .filter(|(tenant, n)| {
                            created(keys, &format!("t{tenant}"), &format!("key {writer} {n}"))
                        })
                        .count()
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum()
    });
    let cap = usize::try_from(cap).unwrap();
    assert_eq!(made, tenants * cap);
    let store = place.connect();
    for number in 0..tenants {
        let query = KeyQuery::tenant(tenant(&format!("t{number}")), at(START)).live();
        assert_eq!(wait(store.list(&query)).unwrap().keys.len(), cap);
    }
}

#[test]
fn the_cap_holds_under_16_writers_on_one_tenant() {
    cap_holds(1, 4, 20);
}

#[test]
fn the_cap_holds_under_16_writers_on_64_tenants() {
    cap_holds(64, 1, 5);
}

#[test]
fn a_poller_misses_no_change_while_others_write() {
    const WRITERS: usize = 8;
    const EACH: usize = 60;
    let place = TestSchema::new();
    let reader = place.connect();
    let start = beginning(&reader);
    let stores: Vec<_> = (0..3).map(|_| place.connect()).collect();
    let writing = AtomicUsize::new(WRITERS);
    let (written, seen) = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (store, writing) = (&stores[number % 3], &writing);
                scope.spawn(move || {
                    let (done, error) = write(store, &format!("t{number}"), EACH, || {});
                    writing.fetch_sub(1, Ordering::SeqCst);
                    assert!(error.is_none(), "{error:?}");
                    done
                })
            })
            .collect();
        let mut seen: Vec<(Revision, _)> = Vec::new();
        let mut cursor: Cursor = start;
        loop {
            // The counter must be read before the feed. If all writers have ended by then, an empty page
            // proves that no change is missing.
            let over = writing.load(Ordering::SeqCst) == 0;
            let (page, upto) = removed_since(&reader, cursor, NonZeroUsize::new(7).unwrap());
            for change in &page {
                let last = seen.last().map_or(start.revision, |last| last.0);
                assert!(change.0 > last, "{change:?} came after revision {last}");
                seen.push(*change);
            }
            cursor = upto;
            if over && page.is_empty() {
                break;
            }
        }
        let written = writers.into_iter().map(|writer| writer.join().unwrap());
        (written.flatten().collect::<BTreeSet<_>>(), seen)
    });
    assert_eq!(written.len(), WRITERS * EACH);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), written);
}

#[test]
fn a_lock_held_too_long_is_reported_as_unavailable() {
    let place = TestSchema::new();
    let store = open(place.options().lock_timeout(Duration::from_millis(20))).unwrap();
    let acme = tenant("acme");
    let lock = place.hold("SELECT 1 FROM $s.head FOR UPDATE");
    let refused = wait(store.commit(next(&acme, Revision::ZERO).1)).unwrap_err();
    let CommitError::Store(error) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    drop(lock);
    place.until_free();
    wait(store.commit(next(&acme, Revision::ZERO).1)).unwrap();
}

#[test]
fn waiting_commits_share_one_transaction_and_each_gets_its_answer() {
    let place = TestSchema::new();
    let store = place.connect();
    let lock = place.hold("SELECT 1 FROM $s.head FOR UPDATE");
    let commit = |number: usize| {
        let (_, mut commit) = next(&tenant(&format!("t{number}")), Revision::ZERO);
        if number == 7 {
            commit.expected = Revision(3);
        }
        store.commit(commit)
    };
    let mut all = join_all((0..16).map(commit));
    // All commits were sent and are blocked by the lock, so none of them is done.
    assert!((&mut all).now_or_never().is_none());
    drop(lock);
    let mut answers = wait(all);
    let conflict = answers.remove(7);
    assert!(
        matches!(conflict, Err(CommitError::Conflict)),
        "{conflict:?}"
    );
    let revisions: BTreeSet<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(revisions, (1..=15).map(Revision).collect());
    let transactions = place
        .ask("SELECT DISTINCT xmin::text FROM $s.commits")
        .len();
    assert!(
        transactions <= 2,
        "only the first commit may have its own transaction: {transactions}"
    );
}

#[test]
fn a_commit_that_cannot_be_written_stops_no_other() {
    let place = TestSchema::new();
    let store = place.connect();
    let (bad, good) = (tenant("bad"), tenant("good"));
    let at = wait(store.commit(next(&bad, Revision::ZERO).1)).unwrap();
    place.run("UPDATE $s.tenants SET sequence = 7 WHERE tenant = 'bad'");
    let lock = place.hold("SELECT 1 FROM $s.tenants FOR UPDATE");
    let (bad, good) = (next(&bad, at).1, next(&good, Revision::ZERO).1);
    let mut both = join_all([store.commit(bad), store.commit(good)]);
    assert!((&mut both).now_or_never().is_none());
    drop(lock);
    let answers = wait(both);
    let Err(CommitError::Store(error)) = &answers[0] else {
        panic!("{answers:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    answers[1].as_ref().unwrap();
}

#[test]
fn restored_tables_open_only_for_recovery_and_followers_start_over() {
    let place = TestSchema::new();
    let store = place.connect();
    let at = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    let before = wait(store.scan(None, ALL)).unwrap().head;
    wait(store.start_new_epoch()).unwrap();
    let refused = open(place.options()).unwrap_err();
    assert!(matches!(refused, ConnectError::Unrecovered), "{refused:?}");
    let restored = open(place.options().allow_unrecovered()).unwrap();
    let gone = wait(restored.changes(before, ALL));
    assert!(matches!(gone, Err(ChangesError::Compacted)));
    let former = wait(restored.nodes()).unwrap();
    assert_eq!(
        former.len(),
        1,
        "one entry represents the nodes that the backup does not know"
    );
    wait(restored.commit(next(&tenant("acme"), at).1)).unwrap();
    wait(restored.finish_recovery()).unwrap();
    place.connect();
}

#[test]
fn forgotten_tombstones_compact_the_feed_and_their_ids_stay_taken() {
    let place = TestSchema::new();
    let store = place.connect();
    let acme = tenant("acme");
    let behind = beginning(&store);
    let (key, removal) = next(&acme, Revision::ZERO);
    let first = wait(store.commit(removal)).unwrap();
    let second = wait(store.commit(next(&acme, first).1)).unwrap();
    assert_eq!(wait(store.compact(first)).unwrap(), 1);
    let compacted = wait(store.changes(behind, ALL));
    assert!(matches!(compacted, Err(ChangesError::Compacted)));
    let page = wait(store.scan(None, ALL)).unwrap();
    assert_eq!(page.head.revision, second);
    assert!(
        wait(store.changes(page.head, ALL))
            .unwrap()
            .changes
            .is_empty()
    );
    assert_eq!(
        place.ask("SELECT encode(id, 'hex') FROM $s.gone"),
        [format!("{:032x}", key.to_u128())]
    );
}
