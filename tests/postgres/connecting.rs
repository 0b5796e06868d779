//! Connecting: what is refused, what is left alone, and what is never told.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use keyward::store::postgres::{ConnectError, PoolExhausted};
use keyward::store::{
    CommitError, KeyStore, NodeId, NodeRegistry, NodeReport, PostgresStore, Revision, Select,
    StoreError, StoreErrorKind,
};

use support::postgres::{Place, Server, on_runtime, open, pool, runtime};
use support::raw::{ALL, next};
use support::*;

/// All that an error tells.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut told = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        told += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    told
}

#[test]
fn a_password_is_told_nowhere() {
    for url in [
        "postgres://alice:hunter2@127.0.0.1:1/db",
        "postgres://alice:hunter2@127.0.0.1:port/db",
        "postgres://alice:x@127.0.0.1/db?hunter2=1",
        "host=127.0.0.1 port=1 user=alice password=hunter2",
        "host=127.0.0.1 hunter2",
    ] {
        let options = PostgresStore::options(url);
        assert!(!format!("{options:?}").contains("hunter2"));
        let error = open(options).unwrap_err();
        assert!(!told(&error).contains("hunter2"), "{}", told(&error));
    }
}

#[test]
fn a_schema_has_a_plain_name() {
    for name in ["", "Keys", "1keys", "a-b", "a\"b", "ключи", &"x".repeat(49)] {
        let place = Place::new();
        let refused = open(place.options().schema(name)).unwrap_err();
        assert!(
            matches!(refused, ConnectError::Schema),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn without_a_runtime_there_is_no_store() {
    let refused = wait(Place::new().options().connect()).unwrap_err();
    assert!(matches!(refused, ConnectError::NoRuntime), "{refused:?}");
}

#[test]
fn nodes_that_set_up_tables_at_once_have_the_same_store() {
    let place = Place::new();
    let all: Vec<_> = (0..8)
        .map(|_| runtime().spawn(place.options().connect()))
        .collect();
    let stores: Vec<_> = all
        .into_iter()
        .map(|one| wait(one).unwrap().unwrap())
        .collect();
    let heads = stores
        .iter()
        .map(|store| wait(store.scan(None, ALL)).unwrap().head.epoch);
    assert_eq!(heads.collect::<BTreeSet<_>>().len(), 1);
}

#[test]
fn a_newer_schema_is_refused_untouched() {
    let place = Place::new();
    drop(place.connect());
    place.run("UPDATE $s.schema_version SET version = 99; DROP TABLE $s.nodes");
    let refused = open(place.options()).unwrap_err();
    assert!(
        matches!(
            refused,
            ConnectError::Newer {
                found: 99,
                supported: 1
            }
        ),
        "{refused:?}"
    );
    let tables = place.ask("SELECT tablename::text FROM pg_tables WHERE schemaname = '$s'");
    assert!(!tables.iter().any(|table| table == "nodes"), "{tables:?}");
}

#[test]
fn a_schema_that_becomes_newer_under_a_running_store_stops_it() {
    let place = Place::new();
    let store = place.connect();
    place.run("UPDATE $s.schema_version SET version = 99");
    let refused = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap_err();
    let CommitError::Store(error) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(told(error).contains("99"), "{}", told(error));
    assert!(
        wait(store.scan(None, ALL)).is_err(),
        "nothing is read either"
    );
}

#[test]
fn an_older_schema_is_brought_up_to_date() {
    let place = Place::new();
    // What a node that came to an end between its first two steps leaves behind.
    place.run(
        "CREATE SCHEMA $s; \
         CREATE TABLE $s.schema_version (one smallint PRIMARY KEY, version integer NOT NULL); \
         INSERT INTO $s.schema_version VALUES (1, 0)",
    );
    let store = place.connect();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    assert_eq!(
        place.ask("SELECT version::text FROM $s.schema_version"),
        ["1"]
    );
}

#[test]
fn a_pool_of_the_hosts_own_stays_as_it_was() {
    let place = Place::new();
    let pool = pool(&place.url, 1);
    let options = PostgresStore::with_pool(pool.clone()).schema(&place.schema);
    let store = open(options).unwrap();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    wait(store.load(&tenant("acme"), &Select::none())).unwrap();
    let settings = on_runtime(async move {
        let client = pool.get().await.unwrap();
        let sql = "SELECT current_setting('lock_timeout') || current_setting('search_path')";
        client
            .query_one(sql, &[])
            .await
            .unwrap()
            .get::<_, String>(0)
    });
    assert_eq!(settings, "0\"$user\", public");
}

#[test]
fn a_pool_without_a_free_connection_is_unavailable_in_time() {
    let place = Place::new();
    let pool = pool(&place.url, 1);
    let options = PostgresStore::with_pool(pool.clone()).schema(&place.schema);
    let store = open(options.connection_timeout(Duration::from_millis(500))).unwrap();
    let held = on_runtime(async move { pool.get().await.unwrap() });
    is_exhausted(&wait(store.load(&tenant("acme"), &Select::none())).unwrap_err());
    let refused = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap_err();
    let CommitError::Store(refused) = refused else {
        panic!("{refused:?}")
    };
    is_exhausted(&refused);
    drop(held);
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
}

fn is_exhausted(error: &StoreError) {
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    let source = error.source().unwrap();
    assert!(source.is::<PoolExhausted>(), "{source:?}");
}

#[test]
fn commits_go_on_where_readers_hold_all_connections() {
    let place = Place::new();
    let long = Duration::from_secs(60);
    let options = place.options().lock_timeout(long).statement_timeout(long);
    let options = options.max_connections(2.try_into().unwrap());
    let options = options
        .request_timeout(long)
        .connection_timeout(Duration::from_secs(1));
    let store = open(options).unwrap();
    let report = |beat| {
        store.report(NodeReport {
            node: NodeId::from_u128(7),
            label: None,
            applied: None,
            lease: long,
            beat,
            clock: keyward::Timestamp::UNIX_EPOCH,
        })
    };
    wait(report(1)).unwrap();
    let at = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    let lock = place.hold("SELECT 1 FROM $s.nodes FOR UPDATE");
    let mut held = join_all([report(2), report(2)]);
    assert!((&mut held).now_or_never().is_none());
    // Both wait for the row, each on a connection.
    let waiting = "SELECT pid::text FROM pg_stat_activity \
                   WHERE wait_event_type = 'Lock' AND query LIKE '%$s%'";
    while place.ask(waiting).len() < 2 {
        std::thread::yield_now();
    }
    is_exhausted(&wait(store.load(&tenant("acme"), &Select::none())).unwrap_err());
    wait(store.commit(next(&tenant("acme"), at).1)).unwrap();
    drop(lock);
    let reported: Vec<_> = wait(held).into_iter().map(Result::unwrap).collect();
    assert_eq!(reported.iter().filter(|stands| **stands).count(), 1);
    wait(store.load(&tenant("acme"), &Select::none())).unwrap();
}

#[test]
fn a_standby_is_refused() {
    let server = Server::start("fsync = off");
    let place = Place::at(server.url());
    drop(place.connect());
    server.demote();
    let refused = open(place.options()).unwrap_err();
    assert!(matches!(refused, ConnectError::Database(_)), "{refused:?}");
    let options = PostgresStore::with_pool(pool(&place.url, 1)).schema(&place.schema);
    let refused = open(options).unwrap_err();
    assert!(matches!(refused, ConnectError::Standby), "{refused:?}");
}

#[test]
fn a_former_primary_that_follows_another_is_not_read_any_more() {
    let server = Server::start("fsync = off");
    let place = Place::at(server.url());
    let options = PostgresStore::with_pool(pool(&place.url, 1)).schema(&place.schema);
    let store = open(options).unwrap();
    wait(store.scan(None, ALL)).unwrap();
    server.demote();
    // A connection that did not survive may have to be noticed first.
    for _ in 0..2 {
        wait(store.scan(None, ALL)).unwrap_err();
    }
    let last = wait(store.scan(None, ALL)).unwrap_err();
    assert!(
        last.source().unwrap().to_string().contains("standby"),
        "{last:?}"
    );
}
