//! Counted uses: nodes that add to the same keys, damaged rows, replies that are lost, and pages of last uses.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use keyward::store::usage::{
    BootClosing, BootId, BootOpening, Completeness, KeyUses, LastUse, LastUseQuery, UsageBatch,
    UsageError, UsagePruning, UsageStore,
};
use keyward::store::{Epoch, NodeId, PostgresStore, StoreError, StoreErrorKind};
use keyward::usage::{Day, DayCounts, UseOutcome};
use keyward::{KeyId, Timestamp};

use support::pgbouncer::PgBouncer;
use support::postgres::{Server, TestSchema};
use support::*;

/// The first day with uses.
const DAY: u32 = 20_000;

fn day(number: u32) -> Day {
    Day::from_number(DAY + number).unwrap()
}

fn key(number: u64) -> KeyId {
    KeyId::from_u128(u128::from(number) << 64 | u128::from(number))
}

fn keys(count: u64) -> Vec<KeyId> {
    (0..count).map(key).collect()
}

fn boot(number: u64) -> BootId {
    BootId::from_u128(number.into())
}

pub(crate) fn opening(number: u64) -> BootOpening {
    BootOpening {
        boot: boot(number),
        node: Some(NodeId::from_u128(number.into())),
        history: Epoch(7),
        at: day(0).start(),
        unsent_since: day(0).start(),
        replaces: None,
    }
}

/// Returns a request to close a boot that has not sent all of its uses.
pub(crate) fn closing(number: u64, sequence: u64) -> BootClosing {
    BootClosing {
        boot: boot(number),
        sequence,
        at: day(9).start(),
        is_complete: false,
    }
}

/// Returns a batch with one use of each key on a day.
pub(crate) fn batch(
    number: u64,
    sequence: u64,
    of: u32,
    keys: impl Iterator<Item = u64>,
) -> UsageBatch {
    let mut counts = DayCounts::default();
    counts.add(5, UseOutcome::Accepted, 1);
    let at = day(of)
        .start()
        .saturating_add(Duration::from_secs(5 * 3600));
    let uses = keys.map(|number| KeyUses {
        key: key(number),
        tenant: tenant("acme"),
        day: day(of),
        counts: counts.clone(),
        last: Some(at),
    });
    UsageBatch {
        boot: boot(number),
        sequence,
        sent_until: at,
        uses: uses.collect(),
    }
}

pub(crate) fn pruning(before: u32, limit: usize) -> UsagePruning {
    UsagePruning {
        before: day(before),
        closed_before: Timestamp::MAX,
        limit: NonZeroUsize::new(limit).unwrap(),
    }
}

pub(crate) fn by_last_use(newest_first: bool, limit: usize) -> LastUseQuery {
    LastUseQuery {
        tenant: tenant("acme"),
        from: Day::FIRST,
        to: Day::LAST,
        newest_first,
        after: None,
        limit: NonZeroUsize::new(limit).unwrap(),
    }
}

/// Returns the number of uses of each key and day.
fn totals(store: &PostgresStore, count: u64) -> BTreeMap<(KeyId, Day), u64> {
    let days = wait(store.days(&keys(count), Day::FIRST, Day::LAST)).unwrap();
    let totals = days.iter().map(|of| ((of.key, of.day), of.counts.total()));
    totals.collect()
}

#[test]
fn nodes_that_add_to_the_same_keys_lose_no_use() {
    const NODES: u64 = 4;
    const BATCHES: u64 = 24;
    const KEYS: u64 = 300;
    let server = Server::start("fsync = off");
    let place = TestSchema::at(server.url());
    place.connect();
    // Each node leaves out other keys, so that rows are new to some nodes and not to others.
    let sends = |node: u64, number: u64| !(node + number).is_multiple_of(NODES);
    thread::scope(|scope| {
        for node in 0..NODES {
            let store = place.connect();
            scope.spawn(move || {
                wait(store.open_boot(opening(node))).unwrap();
                for sequence in 1..=BATCHES {
                    let keys = (0..KEYS).filter(|number| sends(node, *number));
                    let of = u32::try_from(sequence / 4).unwrap();
                    wait(store.add(batch(node, sequence, of, keys))).unwrap();
                }
            });
        }
    });
    let store = place.connect();
    let totals = totals(&store, KEYS);
    let days = u32::try_from(BATCHES / 4).unwrap();
    assert_eq!(totals.len(), (KEYS * u64::from(days + 1)) as usize);
    for ((key, of), total) in totals {
        // The first day has batches 1 to 3, and the last one the last batch alone.
        let batches = match of {
            first if first == day(0) => 3,
            last if last == day(days) => 1,
            _ => 4,
        };
        assert_eq!(total, batches * (NODES - 1), "{key} on {of}");
    }
    let last_uses = wait(store.last_uses(&keys(KEYS))).unwrap();
    assert_eq!(last_uses.len(), KEYS as usize);
    for LastUse { first_day, at } in last_uses.into_values() {
        assert_eq!((first_day, Day::of(at)), (day(0), day(days)));
    }
    let log = server.log();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn batches_are_added_while_counts_are_removed() {
    const BATCHES: u64 = 30;
    const KEYS: u64 = 100;
    let place = TestSchema::new();
    let remover = place.connect();
    wait(remover.open_boot(opening(9))).unwrap();
    thread::scope(|scope| {
        for node in 0..3 {
            let store = place.connect();
            scope.spawn(move || {
                wait(store.open_boot(opening(node))).unwrap();
                for sequence in 1..=BATCHES {
                    let batch = batch(node, sequence, (sequence % 3) as u32, 0..KEYS);
                    wait(store.add(batch)).unwrap();
                }
                assert!(wait(store.close_boot(closing(node, BATCHES))).unwrap());
            });
        }
        let open = |boot: &keyward::store::usage::Boot| boot.closed_at.is_none();
        while wait(remover.ledger())
            .unwrap()
            .boots
            .iter()
            .filter(|boot| open(boot))
            .count()
            != 1
        {
            wait(remover.prune(pruning(2, 50))).unwrap();
            wait(UsageStore::forget_keys(&remover, &keys(KEYS / 2))).unwrap();
        }
    });
    let ledger = wait(remover.ledger()).unwrap();
    assert_eq!(ledger.counted_since, Some(day(2).start()));
    while wait(remover.prune(pruning(9, 50))).unwrap() > 0 {}
    assert_eq!(totals(&remover, KEYS), BTreeMap::new());
}

/// Returns the kind of a damage's error. Panics on any other result.
fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn a_damaged_row_is_reported_as_corrupt() {
    let tables = [
        (
            "usage_days",
            vec![
                "day = day + 1",
                "day = -1",
                "counts = overlay(counts placing '\\x07' from 6)",
                "counts = ''",
                "seal = seal + 1",
            ],
        ),
        (
            "usage_keys",
            vec![
                "tenant = 'other'",
                "first_day = first_day - 1",
                "last_day = last_day + 1",
                "last_at = -1",
                "seal = seal + 1",
            ],
        ),
        (
            "usage_boots",
            vec![
                "boot = '\\x07'",
                "node = NULL",
                "node = '\\x07'",
                "opened_at = opened_at + 1",
                "sequence = sequence + 1",
                "sequence = -1",
                "sent_until = sent_until + 1",
                "closed_at = 1",
                "closed_at = -1",
                "seal = seal + 1",
            ],
        ),
        (
            "usage_gaps",
            vec![
                "since = since - 1",
                "until = -1",
                "boot = ''",
                "boot = '\\x07'",
                "seal = seal + 1",
            ],
        ),
        (
            "usage_head",
            vec![
                "history = '\\x07'",
                "history = overlay(history placing '\\x07' from 6)",
                "counted_since = counted_since + 1",
                "counted_since = -1",
                "seal = seal + 1",
            ],
        ),
    ];
    let corrupt = StoreErrorKind::Corrupt;
    for (table, changes) in tables {
        for change in changes {
            let place = TestSchema::new();
            let store = place.connect();
            for number in [1, 2] {
                wait(store.open_boot(opening(number))).unwrap();
            }
            wait(store.add(batch(1, 1, 1, 0..1))).unwrap();
            assert!(wait(store.close_boot(closing(2, 0))).unwrap());
            let part = match table {
                "usage_boots" => "WHERE closed_at IS NULL",
                _ => "",
            };
            place.run(&format!("UPDATE $s.{table} SET {change} {part}"));
            let days = || wait(store.days(&keys(1), Day::FIRST, Day::LAST));
            let next = || wait(store.add(batch(1, 2, 1, 0..1)));
            match table {
                "usage_days" if change == "day = -1" => assert_eq!(days().unwrap(), []),
                "usage_days" => assert_eq!(kind(days()), corrupt, "{change}"),
                "usage_keys" => {
                    assert_eq!(kind(wait(store.last_uses(&keys(1)))), corrupt, "{change}");
                    if change != "tenant = 'other'" {
                        let listed = wait(store.by_last_use(&by_last_use(true, 10)));
                        assert_eq!(kind(listed), corrupt, "{change}");
                    }
                }
                _ => {
                    assert_eq!(kind(wait(store.ledger())), corrupt, "{change}");
                    let opened = wait(store.open_boot(opening(3)));
                    assert_eq!(kind(opened), corrupt, "{change}");
                    let closed = wait(store.close_boot(closing(1, 1)));
                    assert_eq!(kind(closed), corrupt, "{change}");
                    assert_eq!(kind(wait(store.prune(pruning(1, 1)))), corrupt, "{change}");
                }
            }
            // Only batches need no row of gaps and no head, and only they need the other rows.
            let is_read = match (table, change) {
                ("usage_gaps" | "usage_head", _) | ("usage_days", "day = -1" | "day = day + 1") => {
                    false
                }
                (_, "boot = '\\x07'") => {
                    let refused = next().unwrap_err();
                    assert!(
                        matches!(refused, UsageError::UnknownBoot { .. }),
                        "{refused:?}"
                    );
                    continue;
                }
                _ => true,
            };
            match (is_read, next()) {
                (true, Err(UsageError::Store(error))) => {
                    assert_eq!(error.kind(), corrupt, "{change}: {error:?}");
                }
                (false, Ok(())) => {}
                (_, added) => panic!("{table}, {change}: {added:?}"),
            }
            // A damaged key can be forgotten, which is the remedy.
            wait(UsageStore::forget_keys(&store, &keys(1))).unwrap();
            let (days, last_uses) = (days().unwrap(), wait(store.last_uses(&keys(1))).unwrap());
            assert!(days.is_empty() && last_uses.is_empty(), "{change}");
        }
    }
}

#[test]
fn a_batch_with_a_lost_reply_is_added_once() {
    let server = Server::start("fsync = off");
    let place = TestSchema::at(server.url());
    let store = place.connect();
    wait(store.open_boot(opening(1))).unwrap();
    // Every commit waits for a standby that does not exist, once the server has read the setting. If the wait is ended,
    // the commit stays, and its client gets no reply.
    server.reconfigure("synchronous_standby_names = 'missing'");
    let adding = thread::spawn({
        let store = store.clone();
        move || {
            let mut sequence = 1;
            loop {
                match wait(store.add(batch(1, sequence, 1, 0..3))) {
                    Ok(()) => sequence += 1,
                    Err(error) => return (sequence, error),
                }
            }
        }
    });
    place.on_who_waits("pg_terminate_backend");
    let (sequence, error) = adding.join().unwrap();
    let UsageError::Store(error) = error else {
        panic!("{error:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Indeterminate);
    server.reconfigure("synchronous_standby_names = ''");
    let ledger = wait(store.ledger()).unwrap();
    assert_eq!(ledger.boots[0].sequence, sequence, "the batch was added");
    for sequence in [sequence, sequence, sequence + 1] {
        wait(store.add(batch(1, sequence, 1, 0..3))).unwrap();
    }
    let totals = totals(&store, 3);
    assert_eq!(totals.len(), 3);
    assert!(
        totals.values().all(|total| *total == sequence + 1),
        "{totals:?}"
    );
}

/// Makes the server run the PL/pgSQL code `body` during the commit of every later batch.
fn at_commit(place: &TestSchema, body: &str) {
    place.run(&format!(
        "CREATE OR REPLACE FUNCTION $s.at_commit() RETURNS trigger LANGUAGE plpgsql AS \
         $body$ BEGIN {body}; RETURN NULL; END $body$"
    ));
    place.run(
        "DROP TRIGGER IF EXISTS at_commit ON $s.usage_boots; \
         CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON $s.usage_boots \
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION $s.at_commit()",
    );
}

#[test]
fn a_batch_is_tried_again_only_if_it_was_rolled_back() {
    let place = TestSchema::new();
    let store = place.connect();
    wait(store.open_boot(opening(1))).unwrap();
    // A rollback does not reset a sequence, so the sequence counts the attempts that were rolled back too.
    place.run("CREATE SEQUENCE $s.tries");
    at_commit(
        &place,
        "IF nextval('$s.tries') < 4 THEN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END IF",
    );
    wait(store.add(batch(1, 1, 1, 0..3))).unwrap();
    assert_eq!(place.ask("SELECT last_value::text FROM $s.tries"), ["4"]);
    let failed = |body: &str| {
        at_commit(&place, &format!("PERFORM nextval('$s.tries'); {body}"));
        match wait(store.add(batch(1, 2, 1, 0..3))).unwrap_err() {
            UsageError::Store(error) => error.kind(),
            refused => panic!("{refused:?}"),
        }
    };
    let unknown = failed("RAISE EXCEPTION 'x' USING ERRCODE = '40003'");
    assert_eq!(unknown, StoreErrorKind::Indeterminate);
    let lost = failed("PERFORM pg_terminate_backend(pg_backend_pid())");
    assert_eq!(lost, StoreErrorKind::Indeterminate);
    assert_eq!(place.ask("SELECT last_value::text FROM $s.tries"), ["6"]);
    let always = failed("RAISE EXCEPTION 'x' USING ERRCODE = '40001'");
    assert_eq!(always, StoreErrorKind::Unavailable);
    assert_eq!(place.ask("SELECT last_value::text FROM $s.tries"), ["14"]);
    place.run("DROP TRIGGER at_commit ON $s.usage_boots");
    wait(store.add(batch(1, 2, 1, 0..3))).unwrap();
    assert!(totals(&store, 3).values().all(|total| *total == 2));
}

#[test]
fn a_batch_waits_for_no_change_of_the_ledger_of_other_boots() {
    let place = TestSchema::new();
    let store = place.connect();
    for number in [1, 2] {
        wait(store.open_boot(opening(number))).unwrap();
    }
    let held = place.hold("SELECT 1 FROM $s.usage_head FOR UPDATE");
    wait(store.add(batch(1, 1, 1, 0..3))).unwrap();
    drop(held);
    // A process that hangs in the middle of a batch keeps no other from starting and stopping.
    let held = place.hold("SELECT 1 FROM $s.usage_boots WHERE sequence = 1 FOR UPDATE");
    wait(store.open_boot(opening(3))).unwrap();
    assert!(wait(store.close_boot(closing(2, 0))).unwrap());
    wait(store.add(batch(3, 1, 1, 0..3))).unwrap();
    drop(held);
}

#[test]
fn an_ended_process_and_one_without_a_boot_are_noticed() {
    let place = TestSchema::new();
    let store = place.connect();
    for number in [1, 2] {
        wait(store.open_boot(opening(number))).unwrap();
        wait(store.add(batch(number, 1, 1, 0..3))).unwrap();
    }
    let until = day(1).start().saturating_add(Duration::from_secs(5 * 3600));
    let nodes = [1, 2].map(NodeId::from_u128);
    let judged = |live: &[NodeId]| {
        let ledger = wait(store.ledger()).unwrap();
        Completeness::of(&ledger, (until, Duration::ZERO), Epoch(7), Some(live))
    };
    assert!(judged(&nodes).proves(day(0).start(), until));
    assert!(wait(store.close_boot(closing(2, 1))).unwrap());
    let without = judged(&nodes);
    assert_eq!(without.uncounted, [nodes[1]]);
    assert_eq!((without.gaps[0].from, without.gaps.len()), (until, 1));
    assert!(judged(&nodes[..1]).proves(day(0).start(), day(1).start()));
}

#[test]
fn uses_are_counted_behind_a_pooler() {
    let server = Server::start("fsync = off");
    let pooler = PgBouncer::before(&server, "pool_mode = session");
    let place = TestSchema::at(pooler.url());
    let stores = [place.connect(), place.connect()];
    for (number, store) in (1..).zip(&stores) {
        wait(store.open_boot(opening(number))).unwrap();
        for sequence in [1, 2, 2] {
            wait(store.add(batch(number, sequence, 1, 0..50))).unwrap();
        }
    }
    assert!(totals(&stores[0], 50).values().all(|total| *total == 4));
    assert_eq!(
        wait(stores[1].by_last_use(&by_last_use(false, 9)))
            .unwrap()
            .len(),
        9
    );
}
