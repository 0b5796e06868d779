//! Schemas and tables that other roles own or have changed.

use keyward::store::postgres::{ConnectError, PostgresOptions};
use keyward::store::{KeyStore, PostgresStore, Revision};

use support::postgres::{Server, TestSchema, open};
use support::raw::next;
use support::*;

/// Starts a server with two roles: `service`, which connects, and `migrations`.
fn server() -> Server {
    let server = Server::start("fsync = off");
    TestSchema::at(server.url()).run("CREATE ROLE service LOGIN; CREATE ROLE migrations");
    server
}

/// Returns the options of a service that connects as `service`.
fn service(place: &TestSchema) -> PostgresOptions {
    let url = place.url.replace("user=postgres", "user=service");
    PostgresStore::options(url).schema(&place.schema)
}

fn is_owned(options: PostgresOptions, what: &str) {
    let refused = open(options).unwrap_err();
    let ConnectError::Owner { object, owner } = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!((&**object, &**owner), (what, "migrations"));
}

#[test]
fn a_schema_of_another_role_is_refused_until_the_role_is_named() {
    let server = server();
    let place = TestSchema::at(server.url());
    place.run("CREATE SCHEMA $s AUTHORIZATION migrations; GRANT ALL ON SCHEMA $s TO service");
    is_owned(service(&place), "the schema");
    is_owned(service(&place).owner("postgres"), "the schema");
    let made = place.ask("SELECT tablename::text FROM pg_tables WHERE schemaname = '$s'");
    assert!(made.is_empty(), "{made:?}");
    let store = open(service(&place).owner("migrations")).unwrap();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
}

#[test]
fn a_table_of_another_role_is_refused_until_the_role_is_named() {
    let server = server();
    let place = TestSchema::at(server.url());
    place.run(&PostgresStore::schema_sql(&place.schema).unwrap());
    place.run("ALTER SCHEMA $s OWNER TO service; GRANT ALL ON ALL TABLES IN SCHEMA $s TO service");
    for table in [
        "commits",
        "digests",
        "documents",
        "gone",
        "head",
        "nodes",
        "schema_version",
        "tenants",
        "usage_boots",
        "usage_days",
        "usage_gaps",
        "usage_head",
        "usage_keys",
    ] {
        place.run(&format!("ALTER TABLE $s.{table} OWNER TO service"));
    }
    for table in ["audit", "rows"] {
        place.run(&format!("ALTER TABLE $s.{table} OWNER TO migrations"));
        is_owned(
            service(&place).owner("postgres"),
            &format!("the table {table}"),
        );
        place.run(&format!("ALTER TABLE $s.{table} OWNER TO service"));
    }
    place.run("ALTER TABLE $s.rows OWNER TO migrations; GRANT ALL ON $s.rows TO service");
    let store = open(service(&place).owner("migrations")).unwrap();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
}

#[test]
fn a_table_with_a_part_that_the_store_did_not_create_is_refused() {
    let server = server();
    let place = TestSchema::at(server.url());
    place.run(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    );
    for (part, change) in [
        (
            "the trigger \"keep\\u{202e}\"",
            "CREATE TRIGGER \"keep\u{202e}\" BEFORE UPDATE ON $s.rows FOR EACH ROW EXECUTE FUNCTION nothing()",
        ),
        (
            "the rule \"keep\"",
            "CREATE RULE keep AS ON DELETE TO $s.rows DO INSTEAD NOTHING",
        ),
        (
            "the default of column \"seal\"",
            "ALTER TABLE $s.rows ALTER seal SET DEFAULT random()",
        ),
        (
            "the child or parent \"more\"",
            "CREATE TABLE $s.more () INHERITS ($s.rows)",
        ),
        (
            "the policy \"row level security\"",
            "ALTER TABLE $s.rows ENABLE ROW LEVEL SECURITY",
        ),
        ("the kind \"ru\"", "ALTER TABLE $s.rows SET UNLOGGED"),
        (
            "the kind \"vp\"",
            "ALTER TABLE $s.rows RENAME TO others; CREATE VIEW $s.rows AS SELECT * FROM $s.others",
        ),
    ] {
        let place = TestSchema::at(server.url());
        place.connect();
        place.connect();
        place.run(change);
        let refused = open(place.options()).unwrap_err();
        let ConnectError::Foreign { table, part: found } = &refused else {
            panic!("{part}: {refused:?}")
        };
        assert_eq!((&**table, &**found), ("rows", part));
    }
}

#[test]
fn a_function_in_the_public_schema_replaces_none_of_the_server() {
    let server = server();
    let place = TestSchema::at(server.url());
    place.run(
        "CREATE FUNCTION public.pg_total_relation_size(oid) RETURNS bigint LANGUAGE sql AS 'SELECT 7::bigint'",
    );
    let found = place.ask("SELECT pg_total_relation_size('pg_class'::regclass::oid)::text");
    assert_eq!(
        found,
        ["7"],
        "a statement without a search path calls the function"
    );
    let tables = "SELECT count(*)::text FROM pg_tables WHERE schemaname = '$s'";
    let store = place.connect();
    let tables: u64 = place.ask(tables)[0].parse().unwrap();
    assert_ne!(wait(store.stats()).unwrap().bytes, 7 * tables);
}
