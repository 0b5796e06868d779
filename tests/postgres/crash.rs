//! A server that is killed, and commits whose outcome is then unknown.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use keyward::store::{CommitError, KeyStore, Revision, StoreErrorKind};

use support::postgres::{Server, TestSchema};
use support::raw::{ALL, beginning, next, removed_since, write};
use support::*;

#[test]
fn a_killed_server_loses_no_acknowledged_commit() {
    const WRITERS: usize = 6;
    let server = Server::start("fsync = on");
    let place = TestSchema::at(server.url());
    let stores = [place.connect(), place.connect()];
    let start = beginning(&stores[0]);
    let acknowledged = AtomicUsize::new(0);
    let written: BTreeSet<_> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (store, acknowledged, server) = (&stores[number % 2], &acknowledged, &server);
                scope.spawn(move || {
                    write(store, &format!("t{number}"), usize::MAX, || {
                        if acknowledged.fetch_add(1, Ordering::SeqCst) == 300 {
                            server.kill();
                        }
                    })
                })
            })
            .collect();
        let mut written = BTreeSet::new();
        for writer in writers {
            let (done, error) = writer.join().unwrap();
            written.extend(done);
            let Some(CommitError::Store(error)) = error else {
                panic!("{error:?}")
            };
            let allowed = [StoreErrorKind::Unavailable, StoreErrorKind::Indeterminate];
            assert!(allowed.contains(&error.kind()), "{error:?}");
        }
        written
    });
    assert!(written.len() > 300);
    server.resume();
    // The store detects a lost connection only when a call on it fails, so the scan is repeated.
    let back = (0..50).find_map(|_| wait(stores[0].scan(None, ALL)).ok());
    assert!(
        back.is_some(),
        "the store works again with the restarted server"
    );
    let (kept, _) = removed_since(&stores[0], start, ALL);
    let kept: BTreeSet<_> = kept.into_iter().collect();
    assert!(written.is_subset(&kept), "{:?}", written.difference(&kept));
    assert!(
        kept.len() - written.len() <= WRITERS,
        "at most one unacknowledged commit per writer"
    );
    let (_, error) = write(&stores[0], "afterwards", 1, || {});
    assert!(error.is_none(), "{error:?}");
}

/// Makes the server run the PL/pgSQL code `body` during the `COMMIT` of every later commit.
fn at_commit(place: &TestSchema, body: &str) {
    place.run(&format!(
        "CREATE OR REPLACE FUNCTION $s.at_commit() RETURNS trigger LANGUAGE plpgsql AS \
         $body$ BEGIN {body}; RETURN NULL; END $body$"
    ));
    place.run(
        "DROP TRIGGER IF EXISTS at_commit ON $s.commits; \
         CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON $s.commits \
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION $s.at_commit()",
    );
}

#[test]
fn a_connection_lost_during_commit_leaves_the_outcome_unknown() {
    let place = TestSchema::new();
    let store = place.connect();
    at_commit(&place, "PERFORM pg_terminate_backend(pg_backend_pid())");
    let commit = next(&tenant("acme"), Revision::ZERO).1;
    let result = wait(store.commit(commit)).unwrap_err();
    let CommitError::Store(error) = &result else {
        panic!("{result:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Indeterminate);
}

#[test]
fn a_connection_lost_before_commit_wrote_nothing() {
    let place = TestSchema::new();
    let store = place.connect();
    place.run(
        "CREATE FUNCTION $s.at_write() RETURNS trigger LANGUAGE plpgsql AS \
         $body$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $body$; \
         CREATE TRIGGER at_write AFTER INSERT ON $s.commits \
         FOR EACH ROW EXECUTE FUNCTION $s.at_write()",
    );
    let result = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap_err();
    let CommitError::Store(error) = &result else {
        panic!("{result:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    place.run("DROP TRIGGER at_write ON $s.commits");
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
}

#[test]
fn rolled_back_commits_are_retried_and_then_reported_as_a_conflict() {
    let place = TestSchema::new();
    let store = place.connect();
    // A rollback does not reset a sequence, so the sequence counts the attempts that were rolled back too.
    place.run("CREATE SEQUENCE $s.tries");
    at_commit(
        &place,
        "IF nextval('$s.tries') < 4 THEN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END IF",
    );
    let at = wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    assert_eq!(at, Revision(1));
    assert_eq!(place.ask("SELECT last_value::text FROM $s.tries"), ["4"]);
    at_commit(&place, "RAISE EXCEPTION 'x' USING ERRCODE = '40P01'");
    let result = wait(store.commit(next(&tenant("acme"), at).1)).unwrap_err();
    assert!(matches!(result, CommitError::Conflict), "{result:?}");
    at_commit(&place, "RAISE EXCEPTION 'x' USING ERRCODE = '23514'");
    let result = wait(store.commit(next(&tenant("acme"), at).1)).unwrap_err();
    let CommitError::Store(error) = &result else {
        panic!("{result:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    at_commit(&place, "RAISE EXCEPTION 'x' USING ERRCODE = '40003'");
    let result = wait(store.commit(next(&tenant("acme"), at).1)).unwrap_err();
    let CommitError::Store(error) = &result else {
        panic!("{result:?}")
    };
    assert_eq!(
        error.kind(),
        StoreErrorKind::Indeterminate,
        "the outcome is unknown"
    );
}
