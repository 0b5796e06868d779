//! Connecting to a server: refused connections, kept settings, and errors without secrets.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use keyward::WithSources;
use keyward::store::postgres::{ConnectError, PoolExhausted};
use keyward::store::transfer::CopySource;
use keyward::store::{
    CommitError, KeyStore, LoadRequest, NodeId, NodeRegistry, NodeReport, PostgresStore, Revision,
    StoreError, StoreErrorKind,
};

use support::postgres::{Server, TestSchema, on_runtime, open, pool, runtime};
use support::raw::{ALL, next};
use support::*;

/// Returns the message and the `Debug` output of an error and of all of its sources.
pub(crate) fn full_text(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    text
}

#[test]
fn no_error_shows_a_password() {
    for url in [
        "postgres://alice:hunter2@127.0.0.1:1/db",
        "postgres://alice:hunter2@127.0.0.1:port/db",
        "postgres://alice:x@127.0.0.1/db?hunter2=1",
        "host=127.0.0.1 port=1 user=alice password=hunter2",
        // A password with an unescaped `@`. The driver takes a part of this password for a host.
        "postgres://alice:x@hunter2,y@127.0.0.1:1/db",
        "host=127.0.0.1 hunter2",
    ] {
        let options = PostgresStore::options(url);
        assert!(!format!("{options:?}").contains("hunter2"));
        let error = open(options).unwrap_err();
        assert!(
            !full_text(&error).contains("hunter2"),
            "{}",
            full_text(&error)
        );
    }
}

#[test]
fn a_schema_name_must_be_plain() {
    for name in ["", "Keys", "1keys", "a-b", "a\"b", "ключи", &"x".repeat(49)] {
        let place = TestSchema::new();
        let refused = open(place.options().schema(name)).unwrap_err();
        assert!(
            matches!(refused, ConnectError::Schema),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn connecting_without_a_runtime_is_refused() {
    let refused = wait(TestSchema::new().options().connect()).unwrap_err();
    assert!(matches!(refused, ConnectError::NoRuntime), "{refused:?}");
}

#[test]
fn nodes_that_set_up_tables_concurrently_have_the_same_store() {
    let place = TestSchema::new();
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
fn a_schema_of_another_version_is_refused_unchanged() {
    let place = TestSchema::new();
    drop(place.connect());
    place.run("UPDATE $s.schema_version SET version = 99, oldest = 98; DROP TABLE $s.nodes");
    let refused = open(place.options()).unwrap_err();
    assert!(
        matches!(
            refused,
            ConnectError::SchemaVersion {
                found: 99,
                oldest: 98,
                supported: 1
            }
        ),
        "{refused:?}"
    );
    let tables = place.ask("SELECT tablename::text FROM pg_tables WHERE schemaname = '$s'");
    assert!(!tables.iter().any(|table| table == "nodes"), "{tables:?}");
}

#[test]
fn a_schema_upgrade_stops_a_running_store_once_it_is_finished() {
    let place = TestSchema::new();
    let store = place.connect();
    // The first step of a later build: this build continues, and connects.
    place.run("ALTER TABLE $s.rows ADD added text; UPDATE $s.schema_version SET version = 2");
    let at = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    assert_eq!(
        wait(place.connect().scan(None, ALL)).unwrap().head.revision,
        at
    );
    // An earlier build does not finish a later build's upgrade, and does not copy tables that it does not know.
    let refused = wait(store.finish_upgrade()).unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Denied);
    assert_eq!(
        wait(store.origin()).unwrap_err().kind(),
        StoreErrorKind::Denied
    );
    // The second step.
    place.run("UPDATE $s.schema_version SET version = 99, oldest = 99");
    let refused = wait(store.commit(next(&tenant("acme"), at).1)).unwrap_err();
    let CommitError::Store(error) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Denied);
    assert!(full_text(error).contains("99"), "{}", full_text(error));
    assert!(
        wait(store.scan(None, ALL)).is_err(),
        "reads are refused too"
    );
}

/// Without its sources, each of these reads "store is unavailable".
#[test]
fn an_error_has_its_cause_and_the_next_step() {
    let place = TestSchema::new();
    let store = place.connect();
    place.run("DROP SCHEMA $s CASCADE");
    let acme = tenant("acme");
    let failed = wait(store.load(&acme, &LoadRequest::none())).unwrap_err();
    let text = WithSources(&failed).to_string();
    assert!(text.contains("42P01") || text.contains("3F000"), "{text}");
    assert_eq!(failed.kind(), StoreErrorKind::Denied, "no retry succeeds");
    assert!(text.contains("renamed or dropped"), "{text}");

    let down = PostgresStore::options("postgres://alice@127.0.0.1:1/db");
    let text = format!("{:?}", open(down).unwrap_err());
    assert!(text.contains("Connection refused"), "{text}");
    assert!(text.contains("check the server"), "{text}");
}

#[test]
fn finishing_an_upgrade_ends_the_use_by_earlier_builds() {
    let place = TestSchema::new();
    let store = place.connect();
    // The state of tables of the previous version after the first step of this build.
    place.run("UPDATE $s.schema_version SET oldest = 0");
    for _ in 0..2 {
        wait(store.finish_upgrade()).unwrap();
        let oldest = place.ask("SELECT oldest::text FROM $s.schema_version");
        assert_eq!(oldest, ["1"]);
    }
}

#[test]
fn tables_are_set_up_whole_or_not_at_all() {
    let place = TestSchema::new();
    // Setup creates the table `nodes` last. A table with that name already exists, so setup fails after all
    // other tables.
    place.run("CREATE SCHEMA $s; CREATE TABLE $s.nodes (theirs integer)");
    let refused = open(place.options()).unwrap_err();
    assert!(matches!(refused, ConnectError::Denied(_)), "{refused:?}");
    let tables = place.ask("SELECT tablename::text FROM pg_tables WHERE schemaname = '$s'");
    assert_eq!(tables, ["nodes"]);
    place.run("DROP TABLE $s.nodes");
    let store = place.connect();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    let version = place.ask("SELECT version::text FROM $s.schema_version");
    assert_eq!(version, ["1"]);
}

#[test]
fn a_pool_of_the_host_keeps_its_settings() {
    let place = TestSchema::new();
    let pool = pool(&place.url, 1);
    let options = PostgresStore::from_pool(pool.clone()).schema(&place.schema);
    let store = open(options).unwrap();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap();
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
fn an_exhausted_pool_is_unavailable_after_its_timeout() {
    let place = TestSchema::new();
    let pool = pool(&place.url, 1);
    let options = PostgresStore::from_pool(pool.clone()).schema(&place.schema);
    let store = open(options.connection_timeout(Duration::from_millis(500))).unwrap();
    let held = on_runtime(async move { pool.get().await.unwrap() });
    is_exhausted(&wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap_err());
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
fn commits_continue_while_readers_hold_all_connections() {
    let place = TestSchema::new();
    let long = Duration::from_secs(60);
    let options = place.options().lock_timeout(long).statement_timeout(long);
    let options = options.max_connections(2.try_into().unwrap());
    let options = options
        .request_timeout(long)
        .connection_timeout(Duration::from_secs(1));
    let store = open(options).unwrap();
    let at = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    let lock = place.hold("LOCK TABLE $s.nodes IN ACCESS EXCLUSIVE MODE");
    let mut held = join_all([store.nodes(), store.nodes()]);
    assert!((&mut held).now_or_never().is_none());
    // Waits until each of the two reads occupies a connection and is blocked by the lock on the table.
    let waiting = "SELECT pid::text FROM pg_stat_activity \
                   WHERE wait_event_type = 'Lock' AND query LIKE '%$s%'";
    while place.ask(waiting).len() < 2 {
        std::thread::yield_now();
    }
    is_exhausted(&wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap_err());
    wait(store.commit(next(&tenant("acme"), at).1)).unwrap();
    drop(lock);
    assert!(wait(held).into_iter().all(|read| read.is_ok()));
    wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap();
}

fn report(beat: u64) -> NodeReport {
    NodeReport {
        node: NodeId::from_u128(7),
        label: None,
        applied: None,
        lease: Duration::from_secs(60),
        beat,
        clock: keyward::Timestamp::UNIX_EPOCH,
        process: None,
    }
}

#[test]
fn a_report_waits_for_no_commit() {
    let place = TestSchema::new();
    let store = place.connect();
    let lock = place.hold("SELECT 1 FROM $s.head FOR UPDATE");
    assert!(wait(store.report(report(1))).unwrap());
    assert!(wait(store.report(report(2))).unwrap());
    drop(lock);
}

#[test]
fn reports_that_hang_leave_connections_for_reads() {
    let place = TestSchema::new();
    let long = Duration::from_secs(60);
    let options = place.options().lock_timeout(long).statement_timeout(long);
    let options = options.max_connections(2.try_into().unwrap());
    let store = open(options.request_timeout(long)).unwrap();
    wait(store.report(report(1))).unwrap();
    let lock = place.hold("SELECT 1 FROM $s.nodes FOR UPDATE");
    // A follower gives up a report after its own timeout, and soon sends the next one.
    for beat in 2..10 {
        assert!(store.report(report(beat)).now_or_never().is_none());
    }
    let waiting = "SELECT pid::text FROM pg_stat_activity \
                   WHERE wait_event_type = 'Lock' AND query LIKE '%$s%'";
    place.until_found(waiting);
    wait(store.scan(None, ALL)).unwrap();
    assert_eq!(place.ask(waiting).len(), 1);
    drop(lock);
}

#[test]
fn a_standby_is_refused() {
    let server = Server::start("fsync = off");
    let place = TestSchema::at(server.url());
    drop(place.connect());
    server.demote();
    let refused = open(place.options()).unwrap_err();
    assert!(matches!(refused, ConnectError::Database(_)), "{refused:?}");
    let options = PostgresStore::from_pool(pool(&place.url, 1)).schema(&place.schema);
    let refused = open(options).unwrap_err();
    assert!(matches!(refused, ConnectError::Standby), "{refused:?}");
}

#[test]
fn each_host_that_cannot_be_used_has_its_reason() {
    let (primary, standby) = (
        Server::on_loopback("fsync = off", &[]),
        Server::on_loopback("fsync = off", &[]),
    );
    standby.demote();
    let (one, other) = (primary.port(), standby.port());
    let url = format!(
        "host=127.0.0.1,127.0.0.1 port={one},{other} user=postgres password=hunter2 dbname=postgres"
    );
    let place = TestSchema::at(url);
    let store = place.connect();
    primary.kill();
    // The first calls may fail because their connections were lost.
    let mut failed = None;
    for _ in 0..10 {
        failed = wait(store.scan(None, ALL)).err();
    }
    let error = failed.unwrap();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    let refused = open(place.options()).unwrap_err();
    assert!(matches!(refused, ConnectError::Database(_)), "{refused:?}");
    for text in [full_text(&error), full_text(&refused)] {
        let down = text.find(&format!("127.0.0.1:{one}: connection failed"));
        let accepts_no_writes = format!("127.0.0.1:{other}: the server accepts no writes");
        assert!(
            down.is_some() && down < text.find(&accepts_no_writes),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_host_that_does_not_respond_leaves_time_for_the_next_one() {
    let (hanging, other) = (Server::start("fsync = off"), Server::start("fsync = off"));
    let place = TestSchema::at(hanging.url_or(&other));
    let paused = hanging.pause();
    let store = open(place.options().connection_timeout(Duration::from_secs(4))).unwrap();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    drop(paused);
    let there = TestSchema {
        url: other.url(),
        schema: place.schema.clone(),
    };
    assert_eq!(there.ask("SELECT count(*)::text FROM $s.commits"), ["1"]);
}

#[test]
fn a_server_that_denies_access_is_not_unavailable() {
    let server = Server::on_loopback(
        "fsync = off",
        &[(
            "pg_hba.conf",
            "local all all trust\nhost all stranger all reject\nhost all all all scram-sha-256\n",
        )],
    );
    let admin = TestSchema::at(server.url());
    drop(admin.connect());
    admin.run("CREATE ROLE reader LOGIN PASSWORD 'right'");
    admin.run(
        "GRANT USAGE ON SCHEMA $s TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA $s TO reader",
    );
    let port = server.port();
    let place = |password: &str, database: &str| TestSchema {
        url: format!(
            "host=127.0.0.1 port={port} user=reader password={password} dbname={database}"
        ),
        schema: admin.schema.clone(),
    };
    for (password, database) in [("hunter2", "postgres"), ("right", "nowhere")] {
        let denied = open(place(password, database).options()).unwrap_err();
        assert!(matches!(denied, ConnectError::Denied(_)), "{denied:?}");
        assert!(!full_text(&denied).contains("hunter2"), "{denied:?}");
    }
    let mut rejected = place("right", "postgres");
    rejected.url = rejected.url.replace("user=reader", "user=stranger");
    let text = full_text(&open(rejected.options()).unwrap_err());
    assert!(
        text.contains("allow the connection in `pg_hba.conf`"),
        "{text}"
    );
    assert!(!text.contains("check the user"), "{text}");
    let options = place("right", "postgres").options().owner("postgres");
    let store = open(options).unwrap();
    let refused = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap_err();
    let CommitError::Store(error) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Denied);
    admin.run("REVOKE SELECT ON $s.head FROM reader");
    // The first attempt closes its connection. Later ones begin and prepare on a new one.
    for _ in 0..3 {
        let error = wait(store.scan(None, ALL)).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Denied, "{error:?}");
        assert!(full_text(&error).contains("42501"), "{error:?}");
    }
    // A host that is down may be the one that grants access, so a later attempt may succeed.
    let url = format!(
        "host=127.0.0.1,127.0.0.1 port=1,{port} user=reader password=wrong dbname=postgres"
    );
    let refused = open(TestSchema::at(url).options()).unwrap_err();
    assert!(matches!(refused, ConnectError::Database(_)), "{refused:?}");
}

/// Only the creation of tables waits for longer.
#[test]
fn connecting_waits_for_a_lock_no_longer_than_the_options_allow() {
    let server = Server::start("fsync = off\nlog_statement = all");
    let place = TestSchema::at(server.url());
    drop(place.connect());
    let before = server.log().len();
    let held = place.hold("LOCK TABLE $s.head IN ACCESS EXCLUSIVE MODE");
    let refused = open(place.options().lock_timeout(Duration::from_millis(50))).unwrap_err();
    assert!(full_text(&refused).contains("55P03"), "{refused:?}");
    let log = server.log().split_off(before);
    let set: Vec<_> = log.split("lock_timeout = ").skip(1).collect();
    assert!(
        !set.is_empty() && set.iter().all(|rest| rest.starts_with("50;")),
        "{log}"
    );
    drop(held);
}

/// The driver has no kind of its own for this error.
#[test]
fn a_missing_password_is_a_denial() {
    let hba = |how: &str| format!("local all all trust\nhost all all all {how}\n");
    let server = Server::on_loopback("fsync = off", &[("pg_hba.conf", &hba("trust"))]);
    let port = server.port();
    let url = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let place = TestSchema::at(url);
    let store = place.connect();
    let admin = TestSchema::at(server.url());
    admin.run("ALTER ROLE postgres PASSWORD 'right'");
    std::fs::write(server.file("data/pg_hba.conf"), hba("scram-sha-256")).unwrap();
    // A restart applies the file before any connection is accepted, and ends the connections of the store.
    server.kill();
    server.resume();
    let refused = open(place.options()).unwrap_err();
    assert!(matches!(refused, ConnectError::Denied(_)), "{refused:?}");
    let denied = (0..10).filter_map(|_| wait(store.scan(None, ALL)).err());
    let mut denied = denied.filter(|error| error.kind() == StoreErrorKind::Denied);
    let error = denied.next().expect("the lost connections are replaced");
    for text in [full_text(&error), full_text(&refused)] {
        assert!(text.contains("the URL has none"), "{text}");
    }
}

#[test]
fn a_demoted_primary_is_not_read() {
    let server = Server::start("fsync = off");
    let place = TestSchema::at(server.url());
    let options = PostgresStore::from_pool(pool(&place.url, 1)).schema(&place.schema);
    let store = open(options).unwrap();
    wait(store.scan(None, ALL)).unwrap();
    server.demote();
    // The first calls may fail because their connections were lost when the server restarted.
    for _ in 0..2 {
        wait(store.scan(None, ALL)).unwrap_err();
    }
    let last = wait(store.scan(None, ALL)).unwrap_err();
    assert!(
        last.source().unwrap().to_string().contains("standby"),
        "{last:?}"
    );
}
