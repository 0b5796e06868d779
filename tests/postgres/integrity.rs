//! The integrity check reports exactly the rows that are damaged. The statistics report the right sizes.

use keyward::command::{DeleteKey, ImportKey};
use keyward::key::Digest;
use keyward::store::{IntegrityReport, KeyStore, NodeId, NodeRegistry, NodeReport, StoreErrorKind};

use crate::damage::{filled, service};
use support::postgres::TestSchema;
use support::*;

fn report(place: &TestSchema) -> IntegrityReport {
    wait(place.connect().check_integrity()).unwrap()
}

#[test]
fn a_store_in_use_is_sound_and_reports_its_size() {
    let place = TestSchema::new();
    let made = filled(&place);
    let keys = service(&place);
    let gone = DeleteKey {
        typed: Some("key 0".to_owned()),
        ..DeleteKey::default()
    };
    wait(keys.delete(&admin(), made[0].0, gone)).unwrap();
    let store = place.connect();
    let report = wait(store.check_integrity()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let stats = wait(store.stats()).unwrap();
    assert_eq!((stats.keys, stats.removed, stats.tenants), (3, 1, 1));
    assert_eq!(
        report.rows,
        stats.keys + stats.removed + stats.owners + stats.tenants
    );
    assert_eq!(report.audit, stats.audit);
    assert_eq!(
        stats.head,
        wait(store.scan(None, support::raw::ALL)).unwrap().head
    );
    assert!(stats.bytes > 8192, "{stats:?}");
    assert!(stats.engine.starts_with("PostgreSQL 1"), "{stats:?}");
}

#[test]
fn a_missing_table_is_named() {
    for table in [
        "audit",
        "commits",
        "digests",
        "documents",
        "gone",
        "nodes",
        "rows",
        "tenants",
        "usage_boots",
        "usage_days",
        "usage_gaps",
        "usage_head",
        "usage_keys",
    ] {
        let place = TestSchema::new();
        let store = place.connect();
        place.run(&format!("ALTER TABLE $s.{table} RENAME TO aside"));
        let missing = wait(store.check_integrity()).unwrap_err();
        assert_eq!(missing.kind(), StoreErrorKind::Denied, "{missing:?}");
        let text = keyward::WithSources(&missing).to_string();
        assert!(
            text.contains(&format!(".{table}\" does not exist")),
            "{text}"
        );
    }
}

#[test]
fn each_broken_row_is_named_once_and_no_other() {
    let damages = [
        (
            "UPDATE $s.rows SET seal = seal + 1 WHERE kind = 2 AND place = (SELECT max(place) FROM $s.rows)",
            "key ",
        ),
        (
            "UPDATE $s.rows SET body = '\\x00' WHERE kind = 0",
            "tenant acme: its row is damaged",
        ),
        (
            "UPDATE $s.audit SET command = 'other' WHERE sequence = 3",
            "audit entry 3 of revision ",
        ),
        (
            "DELETE FROM $s.audit WHERE sequence = 3",
            "tenant acme: 6 audit entries from 1 up to 7, should be 7",
        ),
        (
            "DELETE FROM $s.audit WHERE sequence = 7",
            "tenant acme: 6 audit entries from 1 up to 6, should be 7",
        ),
        (
            "UPDATE $s.tenants SET sequence = sequence + 1",
            "the row of tenant acme is damaged",
        ),
        (
            "DELETE FROM $s.tenants",
            "tenant \"acme\": has rows or audit entries, and no head",
        ),
        (
            "UPDATE $s.head SET tag = overlay(tag placing '\\x07' from 6)",
            "commit ",
        ),
        (
            "UPDATE $s.head SET floor = 1",
            "the store's own row is damaged",
        ),
        (
            // The import has stored the digest of its key in this table.
            "UPDATE $s.digests SET id = overlay(id placing '\\x07' from 6) \
             WHERE digest = (SELECT digest FROM $s.digests ORDER BY digest LIMIT 1)",
            "an imported digest is damaged",
        ),
        (
            "UPDATE $s.nodes SET beat = beat + 1",
            "node 00000000000000000000000000000007: its row",
        ),
    ];
    for (change, named) in damages {
        let place = TestSchema::new();
        filled(&place);
        let imported = ImportKey::sha256(Digest::sha256("a token"), reader("from elsewhere"));
        wait(service(&place).import(&host(), imported)).unwrap();
        let node = NodeReport {
            node: NodeId::from_u128(7),
            label: None,
            applied: None,
            lease: std::time::Duration::from_secs(10),
            beat: 1,
            clock: keyward::Timestamp::UNIX_EPOCH,
            process: None,
        };
        wait(place.connect().report(node)).unwrap();
        assert!(report(&place).is_sound(), "{:?}", report(&place));
        let store = place.connect();
        place.run(change);
        let faults = wait(store.check_integrity()).unwrap().faults;
        assert_eq!(faults.len(), 1, "{change}: {faults:?}");
        assert!(faults[0].starts_with(named), "{change}: {faults:?}");
    }
}
