//! Sixteen writers in four processes. No tenant may exceed its cap, and a poller must receive every change. A
//! test with a broken feed proves that missed changes are found.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use keyward::store::{KeyStore, PostgresStore, Revision};

use crate::postgres::child::{CAP, HOT, STREAMS, TASKS, TENANTS};
use crate::postgres::feed::{Event, Faults, page, watch};
use support::postgres::{TestSchema, on_runtime, open};
use support::process::{ChildProcess, rounds};
use support::raw::{beginning, next};
use support::*;

const PROCESSES: usize = 4;

/// Runs writers in four processes, and polls the feed while they write. Returns the changes from the feed,
/// the number of polls, and the writers' reports.
fn watched(
    place: &TestSchema,
    part: &str,
    env: &[(&str, String)],
    poll: impl FnMut(u64) -> (Vec<Event>, u64),
) -> (Vec<Event>, usize, Vec<String>) {
    let start = |number: usize| {
        let mut all = vec![("CHILD_NUMBER", number.to_string())];
        all.push(("CHILD_SCHEMA", place.schema.clone()));
        all.extend(env.iter().cloned());
        ChildProcess::start(&format!("postgres:{part}"), &place.url, &all)
    };
    let mut parts: Vec<_> = (0..PROCESSES).map(start).collect();
    parts.iter_mut().for_each(|part| part.expect("ready"));
    parts.iter_mut().for_each(ChildProcess::go_on);
    thread::scope(|scope| {
        let ends: Vec<_> = parts
            .into_iter()
            .map(|part| scope.spawn(|| part.finish()))
            .collect();
        let (seen, polls) = watch(|| ends.iter().all(|end| end.is_finished()), poll);
        let reports = ends.into_iter().flat_map(|end| end.join().unwrap());
        (seen, polls, reports.collect())
    })
}

#[test]
fn caps_hold_under_16_writers_in_4_processes_and_a_poller_misses_nothing() {
    let place = TestSchema::new();
    let reader = place.connect();
    let each = rounds(80, 850);
    let env = [
        ("CHILD_PASSES", rounds(2, 12).to_string()),
        ("CHILD_ROUNDS", each.to_string()),
    ];
    let mut cursor = beginning(&reader);
    let (seen, polls, reports) = watched(&place, "writes", &env, |_| {
        let (events, upto) = page(&reader, cursor, 300);
        cursor = upto;
        (events, upto.revision.0)
    });
    let mut written: BTreeMap<u64, Vec<(String, u128, String)>> = BTreeMap::new();
    let mut last: BTreeMap<u128, u64> = BTreeMap::new();
    for line in &reports {
        let words: Vec<_> = line.split(' ').collect();
        let [revision, what, key, tenant] = words[..] else {
            panic!("{line}")
        };
        let (revision, key) = (revision.parse().unwrap(), key.parse().unwrap());
        let event = (what.to_owned(), key, tenant.to_owned());
        written.entry(revision).or_default().push(event);
        let newest = last.entry(key).or_default();
        *newest = revision.max(*newest);
    }
    let head = wait(reader.scan(None, 1.try_into().unwrap())).unwrap().head;
    println!(
        "{} commits by {} writers, {polls} polls",
        head.revision,
        PROCESSES * TASKS
    );
    assert!(
        written.keys().copied().eq(1..=head.revision.0),
        "the acknowledged revisions are all revisions of the store"
    );
    assert!(written.len() >= PROCESSES * TASKS * STREAMS * each);
    let all: BTreeSet<Event> = (written.iter())
        .flat_map(|(at, events)| events.iter().map(|(_, key, _)| (*at, *key)))
        .collect();
    let last = last.into_iter().map(|(key, at)| (at, key)).collect();
    Faults::of(&seen, &last, &all).assert_none();

    // Counts the live keys of each tenant after every reported commit, in the order of revisions.
    let mut live: BTreeMap<&str, u32> = BTreeMap::new();
    let mut most: BTreeMap<&str, u32> = BTreeMap::new();
    for (at, events) in &written {
        for (what, _, tenant) in events {
            let live = live.entry(tenant).or_default();
            match what.as_str() {
                "created" => *live += 1,
                "revoked" => *live -= 1,
                _ => continue,
            }
        }
        for (_, _, tenant) in events {
            assert!(live[&**tenant] <= CAP, "{tenant} is over its cap at {at}");
            let most = most.entry(tenant).or_default();
            *most = live[&**tenant].max(*most);
        }
    }
    let shared = (0..TENANTS).map(|number| format!("t{number}"));
    for tenant in shared.chain([HOT.to_owned()]) {
        assert_eq!(most[&*tenant], CAP, "{tenant} never reached its cap");
    }
}

#[test]
fn a_feed_by_sequence_numbers_is_caught_missing_changes() {
    let place = TestSchema::new();
    let table = &place.schema;
    place.run(&format!("CREATE TABLE {table} (id bigserial PRIMARY KEY)"));
    let (url, sql) = (
        place.url.clone(),
        format!("SELECT id FROM {table} WHERE id > $1 ORDER BY id"),
    );
    let client = on_runtime(async move {
        let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
        let (client, connection) = connected.unwrap();
        tokio::spawn(connection);
        std::sync::Arc::new(client)
    });
    let poll = |after: u64| {
        let (client, sql) = (client.clone(), sql.clone());
        let after_id = i64::try_from(after).unwrap();
        let rows = on_runtime(async move { client.query(&sql, &[&after_id]).await.unwrap() });
        let ids = rows.iter().map(|row| row.get::<_, i64>(0).unsigned_abs());
        let events: Vec<Event> = ids.map(|id| (id, id.into())).collect();
        let upto = events.last().map_or(after, |event| event.0);
        (events, upto)
    };
    let env = [("CHILD_ROUNDS", rounds(200, 2000).to_string())];
    let (seen, polls, reports) = watched(&place, "numbers", &env, poll);
    let written = reports.iter().map(|line| line.parse().unwrap());
    let written = written.map(|id: u64| (id, id.into())).collect();
    let faults = Faults::of(&seen, &written, &written);
    println!(
        "by sequence numbers: {} of {} missed in {polls} polls",
        faults.missed.len(),
        written.len()
    );
    assert!(!faults.missed.is_empty());
    place.run(&format!("DROP TABLE {table}"));
}

#[test]
fn a_slow_commit_is_not_overtaken() {
    let place = TestSchema::new();
    let long = Duration::from_secs(60);
    let patient = || {
        let options = place.options().lock_timeout(long).statement_timeout(long);
        open(options.request_timeout(long)).unwrap()
    };
    let (slow, fast, reader) = (patient(), patient(), place.connect());
    let start = beginning(&reader);
    place.run(
        "CREATE TABLE $s.gate (); \
         CREATE FUNCTION $s.at_commit() RETURNS trigger LANGUAGE plpgsql AS \
         $body$ BEGIN LOCK TABLE $s.gate IN ACCESS SHARE MODE; RETURN NULL; END $body$; \
         CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON $s.tenants \
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.tenant = 'slow') \
         EXECUTE FUNCTION $s.at_commit()",
    );
    let gate = place.hold("LOCK TABLE $s.gate IN ACCESS EXCLUSIVE MODE");
    let commit = |store: &PostgresStore, name: &str| {
        let (store, commit) = (store.clone(), next(&tenant(name), Revision::ZERO).1);
        thread::spawn(move || wait(store.commit(commit)))
    };
    let waiting = |table: &str| {
        format!(
            "SELECT 'waits' FROM pg_locks WHERE NOT granted AND relation = '$s.{table}'::regclass"
        )
    };
    let first = commit(&slow, "slow");
    place.until_found(&waiting("gate"));
    let second = commit(&fast, "fast");
    // Waits until the second commit is done, or is blocked by the lock that the first commit holds.
    let over = "SELECT 'over' FROM $s.commits UNION ALL SELECT 'waits' FROM pg_stat_activity \
                WHERE wait_event_type = 'Lock' AND query LIKE '%$s%FOR UPDATE%'";
    place.until_found(over);
    let (events, upto) = page(&reader, start, 10);
    assert_eq!(
        (events.len(), upto),
        (0, start),
        "no commit may be visible yet"
    );
    assert!(!first.is_finished() && !second.is_finished());
    drop(gate);
    let first = first.join().unwrap().unwrap();
    let second = second.join().unwrap().unwrap();
    let (events, _) = page(&reader, upto, 10);
    let seen: Vec<_> = events.iter().map(|event| event.0).collect();
    assert_eq!(seen, [first.0, second.0]);
    assert_eq!((first, second), (Revision(1), Revision(2)));
}

#[test]
fn a_sequence_number_of_a_slow_commit_is_overtaken() {
    let place = TestSchema::new();
    place.run("CREATE SCHEMA $s; CREATE TABLE $s.twin (id bigserial PRIMARY KEY)");
    let slow = place.hold("INSERT INTO $s.twin DEFAULT VALUES");
    place.run("INSERT INTO $s.twin DEFAULT VALUES");
    let poll = |after: u64| {
        let found = place.ask(&format!(
            "SELECT id::text FROM $s.twin WHERE id > {after} ORDER BY id"
        ));
        let ids = found.iter().map(|id| id.parse::<u64>().unwrap());
        ids.map(|id| (id, u128::from(id))).collect::<Vec<Event>>()
    };
    let mut seen = poll(0);
    on_runtime(async move { slow.batch_execute("COMMIT").await }).unwrap();
    seen.extend(poll(2));
    let written = BTreeSet::from([(1, 1), (2, 2)]);
    assert_eq!(Faults::of(&seen, &written, &written).missed, [(1, 1)]);
}
