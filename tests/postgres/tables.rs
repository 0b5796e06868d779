//! Tables that an application has created in its own migrations, from the SQL that the store prints.

use keyward::store::postgres::ConnectError;
use keyward::store::{KeyStore, PostgresStore, Revision};

use support::postgres::{TestSchema, open};
use support::raw::{ALL, next};
use support::*;

/// Returns each table and index with the transaction that created it, and the version of the schema. The
/// result changes if any of them is altered.
fn tables(place: &TestSchema) -> Vec<String> {
    let mut tables = place.ask(
        "SELECT c.relname || ' ' || c.oid || ' ' || c.xmin FROM pg_class AS c \
         JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = '$s' ORDER BY 1",
    );
    tables.extend(place.ask("SELECT version || ' ' || xmin FROM $s.schema_version"));
    tables
}

#[test]
fn a_store_opens_tables_made_by_the_printed_sql_unchanged() {
    let place = TestSchema::new();
    place.run(&PostgresStore::schema_sql(&place.schema).unwrap());
    let made = tables(&place);
    let stores = [place.connect(), place.connect()];
    assert_eq!(tables(&place), made, "connecting changes no table");
    wait(stores[0].commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    let heads = stores.map(|store| wait(store.scan(None, ALL)).unwrap().head);
    assert_eq!(heads[0], heads[1]);

    let own = TestSchema::new();
    own.connect();
    let names = |place: &TestSchema| {
        let names = "SELECT c.relname || ' ' || coalesce(pg_get_indexdef(i.indexrelid), '') || ' ' || \
             coalesce(string_agg(a.attname || format_type(a.atttypid, a.atttypmod) \
             || a.attnotnull || a.attcollation, ',' ORDER BY a.attnum), '') \
             FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             LEFT JOIN pg_index AS i ON i.indexrelid = c.oid \
             LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 \
             WHERE n.nspname = '$s' GROUP BY c.relname, i.indexrelid ORDER BY 1";
        let names = place.ask(names).into_iter();
        let plain = names.map(|name| name.replace(&place.schema, "s"));
        plain.collect::<Vec<_>>()
    };
    assert_eq!(
        names(&place),
        names(&own),
        "the store creates the same tables"
    );
}

#[test]
fn the_printed_sql_changes_nothing_in_an_existing_store() {
    let place = TestSchema::new();
    let store = place.connect();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    let made = tables(&place);
    let sql = PostgresStore::schema_sql(&place.schema).unwrap();
    place.try_run(&sql).unwrap_err();
    assert_eq!(tables(&place), made);
    assert_eq!(
        wait(store.scan(None, ALL)).unwrap().head.revision,
        Revision(1)
    );
}

#[test]
fn sql_is_printed_for_plain_names_alone() {
    for name in ["", "a\"b", "Keys"] {
        let refused = PostgresStore::schema_sql(name).unwrap_err();
        assert!(matches!(refused, ConnectError::Schema), "{refused:?}");
    }
}

#[test]
fn a_lost_head_is_reported_and_never_recreated() {
    for kept in ["rows", "tenants", "commits"] {
        let place = TestSchema::new();
        wait(
            place
                .connect()
                .commit(next(&tenant("acme"), Revision::ZERO).1),
        )
        .unwrap();
        for table in ["rows", "tenants", "commits"] {
            if table != kept {
                place.run(&format!("DELETE FROM $s.{table}"));
            }
        }
        place.run("DELETE FROM $s.head");
        let refused = open(place.options()).unwrap_err();
        assert!(matches!(refused, ConnectError::Corrupt(_)), "{refused:?}");
        assert_eq!(
            place.ask("SELECT 'a head' FROM $s.head"),
            Vec::<String>::new()
        );
    }
}

#[test]
fn no_tables_are_created_where_they_must_exist() {
    let place = TestSchema::new();
    let refused = open(place.options().create(false)).unwrap_err();
    assert!(matches!(refused, ConnectError::NotFound), "{refused:?}");
    let made = place.ask("SELECT nspname::text FROM pg_namespace WHERE nspname = '$s'");
    assert_eq!(made, Vec::<String>::new());
    place.connect();
    open(place.options().create(false)).unwrap();
}
