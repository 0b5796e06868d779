//! A PgBouncer between the store and the server, and the statements that poolers share between connections.

use keyward::store::postgres::ConnectError;
use keyward::store::{KeyStore, LoadRequest, PostgresStore};

use super::connecting::full_text;
use super::portable::do_everything;
use support::pgbouncer::PgBouncer;
use support::postgres::{Server, TestSchema, on_runtime, open, pool};
use support::wire::WireRecorder;
use support::*;

#[test]
fn no_statement_text_is_prepared_with_two_shapes() {
    let server = Server::start("fsync = off");
    let recorder = WireRecorder::before(server.folder());
    do_everything(&TestSchema::at(recorder.url()));
    let shapes = recorder.shapes();
    let fetches = shapes.keys().filter(|text| text.starts_with("FETCH"));
    assert!(
        fetches.count() > 4,
        "cursors of several shapes: {shapes:#?}"
    );
    for (text, shapes) in shapes {
        assert_eq!(shapes, 1, "{text}");
    }
}

#[test]
fn responses_that_arrive_in_small_parts_stop_no_session() {
    let server = Server::start("fsync = off");
    // The driver stops reading when a few parts of a response wait, and a new connection prepares everything.
    let recorder = WireRecorder::before(server.folder());
    TestSchema::at(recorder.url()).connect();
}

#[test]
fn the_recorder_notices_a_text_with_two_shapes() {
    let server = Server::start("fsync = off");
    let recorder = WireRecorder::before(server.folder());
    let place = TestSchema::at(recorder.url());
    for columns in ["a text", "a text, b text"] {
        place.run(&format!(
            "DROP TABLE IF EXISTS found; CREATE TABLE found ({columns})"
        ));
        place.ask("SELECT * FROM found");
    }
    let shapes: Vec<_> = recorder.shapes().into_iter().collect();
    assert_eq!(shapes, [("SELECT * FROM found".to_owned(), 2)]);
}

#[test]
fn everything_works_behind_a_pooler_in_session_mode() {
    let server = Server::start("fsync = off");
    let pooler = PgBouncer::before(&server, "pool_mode = session");
    do_everything(&TestSchema::at(pooler.url()));
}

#[test]
fn a_pooler_that_loses_prepared_statements_is_refused() {
    let server = Server::start("fsync = off");
    for mode in ["transaction", "statement"] {
        let pooler = PgBouncer::before(&server, &format!("pool_mode = {mode}"));
        let place = TestSchema::at(pooler.url());
        for _ in 0..2 {
            let shared = PostgresStore::from_pool(pool(&place.url, 2)).schema(&place.schema);
            for options in [place.options(), shared] {
                let refused = open(options).unwrap_err();
                assert!(
                    matches!(refused, ConnectError::Pooler),
                    "{mode}: {refused:?}"
                );
            }
        }
        let made = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'test%'";
        let made = TestSchema::at(server.url()).ask(made);
        assert!(made.is_empty(), "{mode}: {made:?}");
    }
}

#[test]
fn a_call_that_meets_another_clients_statements_names_the_pooler() {
    let place = TestSchema::new();
    let shared = pool(&place.url, 2);
    let options = PostgresStore::from_pool(shared.clone()).schema(&place.schema);
    let store = open(options).unwrap();
    wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap();
    // As if a pooler had put the node on another server connection.
    on_runtime(async move {
        let clients = [shared.get().await.unwrap(), shared.get().await.unwrap()];
        for client in clients {
            client.batch_execute("DEALLOCATE ALL").await.unwrap();
        }
    });
    let refused = wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap_err();
    let text = full_text(&refused);
    assert!(text.contains("max_prepared_statements"), "{text}");
}
