//! How the server finds rows: never by reading a large table from front to back.

use std::num::NonZeroUsize;
use std::sync::Arc;

use keyward::policy::Policy;
use keyward::store::{AuditQuery, KeyQuery, KeySort, KeyStore, Locator, Select};
use keyward::{DeleteKey, Digest, ImportKey, ManualClock, Reason, Status, days};

use crate::raw::beginning;
use crate::server::{Place, Server};
use crate::support::*;

const TEN: NonZeroUsize = NonZeroUsize::new(10).unwrap();

/// Rows of others, as many as make the server think of an index. Their bytes are of no matter.
const OTHERS: &str = "
    INSERT INTO $s.rows SELECT g, 2, 't' || g % 500, NULL, decode(md5(g::text), 'hex'),
        4000000000000000, NULL, md5(g::text), '\\x00', 0 FROM generate_series(1, 30000) g;
    INSERT INTO $s.rows SELECT g, 1, 't' || g % 500, 'owner-' || g, NULL,
        NULL, NULL, NULL, '\\x00', 0 FROM generate_series(30001, 60000) g;
    INSERT INTO $s.audit SELECT g, 't' || g % 500, g, 'command ' || g, decode(md5(g::text), 'hex'),
        '\\x00', 0 FROM generate_series(1, 30000) g;
    INSERT INTO $s.tenants SELECT 't' || g, 0, 0, 0, '\\x00', 0 FROM generate_series(1, 30000) g;
    INSERT INTO $s.digests SELECT decode(md5(g::text), 'hex'), '\\x00', 0
        FROM generate_series(1, 30000) g;
    INSERT INTO $s.gone SELECT decode(md5('gone' || g), 'hex') FROM generate_series(1, 30000) g;
    ANALYZE $s.rows, $s.audit, $s.tenants, $s.digests, $s.gone;";

#[test]
fn nothing_reads_a_large_table_from_front_to_back() {
    let server = Server::start(
        "session_preload_libraries = 'auto_explain'\nauto_explain.log_min_duration = 0\n\
         auto_explain.log_nested_statements = on\nfsync = off",
    );
    let place = Place::at(server.url());
    let store = place.connect();
    let clock = Arc::new(ManualClock::at(at(START)));
    let keys = node(store.clone(), &clock, Policy::new(capped(50)).unwrap());
    let start = beginning(&store);
    place.run(OTHERS);
    let from = server.log().len();
    // Often enough that the server settles on a plan that fits any value.
    for number in 0..8 {
        let key = reader(&format!("key {number}")).expires_in(days(90));
        let key = wait(keys.create(&admin(), key)).unwrap();
        let digest = Digest::sha256(format!("imported {number}"));
        let import = ImportKey::sha256(digest, reader(&format!("imported {number}")));
        wait(keys.import(&admin(), import)).unwrap();
        wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
        wait(keys.delete(&admin(), key.id, DeleteKey::plain())).unwrap();
        let everything = Select {
            keys: vec![key.id],
            live_at: Some(at(START)),
            legacy: true,
            owners: vec![who("alice")],
            commands: vec![command("some")],
        };
        wait(store.load(&tenant("acme"), &everything)).unwrap();
        wait(store.find(&Locator::Id(key.id))).unwrap();
        wait(store.find(&Locator::Imported(digest))).unwrap();
        // Ten rows of what the service itself wrote, which are the newest.
        let head = wait(store.scan(None, TEN)).unwrap().head;
        wait(store.changes(keys.freshness().cursor.unwrap(), TEN)).unwrap();
        assert!(head.revision > start.revision);
        let mut of_tenant = KeyQuery::tenant(tenant("acme"), at(START));
        of_tenant.limit = TEN;
        for sort in [
            KeySort::Created,
            KeySort::Newest,
            KeySort::Name,
            KeySort::Expiry,
        ] {
            of_tenant.sort = sort;
            wait(store.list(&of_tenant)).unwrap();
        }
        of_tenant.below = true;
        wait(store.list(&of_tenant)).unwrap();
        let mut of_all = KeyQuery::everything(at(START));
        of_all.limit = TEN;
        of_all.statuses = [Status::Active].into_iter().collect();
        of_all.sort = KeySort::Expiry;
        of_all.expires_before = Some(at("2026-03-01T00:00:00Z"));
        wait(store.list(&of_all)).unwrap();
        wait(store.audit(&AuditQuery::tenant(tenant("acme")))).unwrap();
        wait(store.audit(&AuditQuery::everything().about(key.id))).unwrap();
    }
    let log = server.log();
    let log = &log[from..];
    assert!(
        log.contains("Index Scan using rows_by_id"),
        "plans are told"
    );
    for table in ["rows", "audit", "tenants", "digests", "gone"] {
        let read = log
            .lines()
            .filter(|line| line.contains(&format!("Seq Scan on {table}")));
        assert_eq!(read.count(), 0, "{table}: {}", around(log, table));
    }
}

/// The first statement that reads a table from front to back.
fn around<'l>(log: &'l str, table: &str) -> &'l str {
    let found = log
        .find(&format!("Seq Scan on {table}"))
        .unwrap_or_default();
    let begin = log[..found].rfind("Query Text").unwrap_or_default();
    &log[begin..(found + 200).min(log.len())]
}
