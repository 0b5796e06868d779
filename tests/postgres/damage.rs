//! Damaged rows. An error names the damaged row, and all other rows can still be read.

use std::sync::Arc;

use keyward::policy::Policy;
use keyward::store::{
    AuditQuery, ChangesError, KeyQuery, KeyStore, LoadRequest, NodeId, NodeRegistry, NodeReport,
    Row, RowKey, StoreErrorKind,
};
use keyward::{KeyId, Keyward, ManualClock, Need, VerifyError, days};

use support::postgres::TestSchema;
use support::raw::{ALL, beginning};
use support::*;

pub(crate) fn service(place: &TestSchema) -> Keyward {
    let clock = Arc::new(ManualClock::at(at(START)));
    node(place.connect(), &clock, Policy::new(capped(50)).unwrap())
}

pub(crate) fn filled(place: &TestSchema) -> Vec<(KeyId, String)> {
    let keys = service(place);
    let create = |number| {
        let key = reader(&format!("key {number}")).expires_in(days(90));
        let created = wait(keys.create(&admin(), key)).unwrap();
        (created.id, created.secret.expose().to_owned())
    };
    (0..4).map(create).collect()
}

#[test]
fn a_damaged_key_is_refused_by_name_and_affects_no_other_key() {
    let columns = [
        "tenant = 'other'",
        "ends = ends + 1",
        "legacy = 1",
        "fingerprint = 'other'",
        "name = 'other'",
        "body = overlay(body placing '\\x07' from 6)",
        "seal = seal + 1",
        "place = place + 1000",
    ];
    for change in columns {
        let place = TestSchema::new();
        let made = filled(&place);
        let (id, secret) = &made[2];
        place.run(&format!(
            "UPDATE $s.rows SET {change} WHERE id = '\\x{:032x}'",
            id.to_u128()
        ));
        let keys = service(&place);
        let refused = keys.verify(secret, &Need::any()).unwrap_err();
        assert!(
            matches!(&refused, VerifyError::Corrupt { key } if key == id),
            "{change}: {refused:?}"
        );
        keys.verify(&made[3].1, &reading()).unwrap();
        let store = place.connect();
        let changes = wait(store.changes(beginning(&store), ALL)).unwrap().changes;
        let corrupt: Vec<_> = (changes.into_iter())
            .filter_map(|change| match change.row {
                Row::Corrupt(name) => Some(name),
                _ => None,
            })
            .collect();
        assert_eq!(corrupt, [RowKey::Key(*id)], "{change}");
        let listed = wait(store.list(&KeyQuery::all(at(START)))).unwrap();
        assert_eq!(
            (listed.corrupt, listed.keys.len()),
            (vec![*id], 3),
            "{change}"
        );
        let view = wait(store.load(&tenant("acme"), &LoadRequest::key(*id))).unwrap();
        assert_eq!(view.corrupt, [*id], "{change}");
    }
}

#[test]
fn a_damaged_audit_entry_is_reported_by_its_position() {
    for change in [
        "command = 'other'",
        "key = '\\x00'",
        "body = overlay(body placing '\\x07' from 6)",
        "seal = seal + 1",
    ] {
        let place = TestSchema::new();
        filled(&place);
        let whole = wait(place.connect().audit(&AuditQuery::all())).unwrap();
        place.run(&format!("UPDATE $s.audit SET {change} WHERE sequence = 3"));
        let result = wait(place.connect().audit(&AuditQuery::all())).unwrap();
        assert_eq!(result.corrupt.len(), 1, "{change}");
        assert_eq!(result.corrupt[0].sequence, 3, "{change}");
        assert_eq!(result.rows.len(), whole.rows.len() - 1, "{change}");
    }
}

#[test]
fn a_tenants_damaged_head_stops_only_that_tenant() {
    for change in [
        "revision = revision + 1",
        "decided_at = decided_at + 1",
        "sequence = sequence + 1",
        "hash = '\\x00'",
        "seal = seal + 1",
    ] {
        let place = TestSchema::new();
        filled(&place);
        place.run(&format!("UPDATE $s.tenants SET {change}"));
        let store = place.connect();
        let result = wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap_err();
        assert_eq!(result.kind(), StoreErrorKind::Corrupt, "{change}");
        wait(store.load(&tenant("other"), &LoadRequest::none())).unwrap();
    }
}

#[test]
fn a_damaged_head_stops_every_follower() {
    for change in [
        "epoch = '\\x00'",
        "epoch = overlay(epoch placing '\\x07' from 6)",
        "floor = 1",
        "restored_from = '\\x07'",
        "revision = revision - 1",
        "tag = overlay(tag placing '\\x07' from 6)",
    ] {
        let place = TestSchema::new();
        filled(&place);
        let store = place.connect();
        let start = beginning(&store);
        place.run(&format!("UPDATE $s.head SET {change}"));
        match wait(store.changes(start, ALL)) {
            Err(ChangesError::Store(result)) => {
                assert_eq!(result.kind(), StoreErrorKind::Corrupt, "{change}");
            }
            other => panic!("{change}: {other:?}"),
        }
    }
}

#[test]
fn a_damaged_report_is_detected_and_replaced_by_the_next_one() {
    for change in [
        "beat = beat + 1",
        "lease = lease + 1",
        "label = 'other'",
        "epoch = '\\x00', revision = 1, tag = '\\x00'",
        "process = replace(process, 'p1', 'p2')",
    ] {
        let place = TestSchema::new();
        let store = place.connect();
        let report = |beat| NodeReport {
            node: NodeId::from_u128(7),
            label: None,
            applied: None,
            lease: std::time::Duration::from_secs(10),
            beat,
            clock: keyward::Timestamp::UNIX_EPOCH,
            process: Some(process()),
        };
        assert!(wait(store.report(report(1))).unwrap());
        place.run(&format!("UPDATE $s.nodes SET {change}"));
        let result = wait(store.nodes()).unwrap_err();
        assert_eq!(result.kind(), StoreErrorKind::Corrupt, "{change}");
        assert!(wait(store.report(report(2))).unwrap());
        assert_eq!(wait(store.nodes()).unwrap(), [report(2)]);
    }
}
