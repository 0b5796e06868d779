//! The stable external form of an event, which receivers depend on.

use keyward::audit::{Action, AuditEntry, AuditHash, FieldChange};
use keyward::events::{Event, EventCursor, EventId, EventKind};
use keyward::key::{
    AddressAllowlist, Author, ImportScheme, KeyName, Owner, ResourceId, RotationReason,
};
use keyward::pepper::PepperId;
use keyward::store::{AuditPosition, AuditRow, Revision};
use keyward::{KeyId, Reason, Role, ScopeSet, days};
use serde_json::{Value, json};

use crate::events::{drain, windows};
use support::*;

fn row(action: Action) -> AuditRow {
    AuditRow {
        revision: Revision(12),
        entry: AuditEntry {
            tenant: tenant("acme/web"),
            sequence: 3,
            at: at(START),
            actor: author("alice"),
            role: Some(Role::ADMIN),
            command: command("c1"),
            command_mark: [7; 8],
            action,
            evidence: None,
            key: Some(KeyId::from_u128(5)),
            pepper: PepperId::new("p1").unwrap(),
            previous: AuditHash::from_bytes([9; 32]),
            hash: AuditHash::from_bytes([0xab; 32]),
        },
    }
}

#[test]
fn the_form_of_every_action_is_stable() {
    let key = KeyId::from_u128(6);
    let id = "0000000000000000000006";
    let reason = Reason::OwnerRemoved;
    let (owner, role, end) = (who("bob"), Role::MEMBER, at(START));
    let class = class("secret");
    let scheme = ImportScheme::Sha256;
    let change = FieldChange::Name {
        before: KeyName::new("a").unwrap(),
        after: KeyName::new("b").unwrap(),
    };
    let resource = ResourceId::new("d-1").unwrap();
    let source = keyward::command::LeakSource::new("a scanner").unwrap();
    let pepper = PepperId::new("p2").unwrap();
    let forms: Vec<(Action, &str, Value)> = vec![
        (Action::TenantProvisioned, "tenant_provisioned", json!(null)),
        (Action::TenantClosed, "tenant_closed", json!(null)),
        (
            Action::ResourceProvisioned { resource },
            "resource_provisioned",
            json!({"resource": "d-1"}),
        ),
        (
            Action::KeyCreated {
                class: class.clone(),
            },
            "key_created",
            json!({"class": "secret"}),
        ),
        (
            Action::KeyProvisioned {
                class: class.clone(),
            },
            "key_provisioned",
            json!({"class": "secret"}),
        ),
        (
            Action::KeyImported { class, scheme },
            "key_imported",
            json!({"class": "secret", "scheme": "sha256"}),
        ),
        (
            Action::KeyUpdated {
                changes: vec![change],
            },
            "key_updated",
            json!({"changes": [{"field": "name", "before": "a", "after": "b"}]}),
        ),
        (Action::KeyDisabled, "key_disabled", json!(null)),
        (Action::KeyEnabled, "key_enabled", json!(null)),
        (
            Action::KeyRevoked { reason },
            "key_revoked",
            json!({"reason": "owner_removed"}),
        ),
        (Action::KeyDeleted, "key_deleted", json!(null)),
        (Action::KeyPurged, "key_purged", json!(null)),
        (
            Action::KeyRotated {
                successor: key,
                reason: RotationReason::ExpiryNear,
                old_key_ends: end,
            },
            "key_rotated",
            json!({"successor": id, "reason": "expiry_near", "old_key_ends": START}),
        ),
        (
            Action::RotationCancelled { successor: key },
            "rotation_cancelled",
            json!({"successor": id}),
        ),
        (
            Action::SuccessorFirstUsed,
            "successor_first_used",
            json!(null),
        ),
        (
            Action::GraceBegan { old_key_ends: end },
            "grace_began",
            json!({"old_key_ends": START}),
        ),
        (Action::SecretReplaced, "secret_replaced", json!(null)),
        (
            Action::KeyLeaked {
                source,
                revoked: true,
            },
            "key_leaked",
            json!({"source": "a scanner", "revoked": true}),
        ),
        (
            Action::KeyRedigested { pepper },
            "key_redigested",
            json!({"pepper": "p2"}),
        ),
        (
            Action::OwnerAdded {
                owner: owner.clone(),
                role: role.clone(),
            },
            "owner_added",
            json!({"owner": "bob", "role": "member"}),
        ),
        (
            Action::OwnerRoleChanged {
                owner: owner.clone(),
                before: None,
                after: role,
            },
            "owner_role_changed",
            json!({"owner": "bob", "before": null, "after": "member"}),
        ),
        (
            Action::OwnerRemoved { owner },
            "owner_removed",
            json!({"owner": "bob"}),
        ),
        (
            Action::BulkRevocationBegan { reason },
            "bulk_revocation_began",
            json!({"reason": "owner_removed"}),
        ),
        (Action::BulkCommandEnded, "bulk_command_ended", json!(null)),
        (
            Action::DigestsBlocked { count: 3 },
            "digests_blocked",
            json!({"count": 3}),
        ),
    ];
    for (action, kind, data) in forms {
        let event = Event::of(&row(action));
        let mut form = json!({
            "id": "entry-12-3-abababababababab",
            "type": kind,
            "at": START,
            "tenant": "acme/web",
            "key": "0000000000000000000005",
            "actor": {"type": "principal", "id": "alice"},
        });
        if !data.is_null() {
            form["data"] = data;
        }
        same(&event, &form);
    }
}

#[test]
fn every_changed_field_has_its_form() {
    let scopes = |text| ScopeSet::parse([text]).unwrap();
    let networks = |text| AddressAllowlist::parse([text]).unwrap();
    let forms = [
        (
            FieldChange::Name {
                before: KeyName::new("a").unwrap(),
                after: KeyName::new("b").unwrap(),
            },
            json!({"field": "name", "before": "a", "after": "b"}),
        ),
        (
            FieldChange::Description {
                bytes_before: None,
                bytes_after: Some(12),
            },
            json!({"field": "description", "bytes_before": null, "bytes_after": 12}),
        ),
        (
            FieldChange::Purpose {
                bytes_before: Some(3),
                bytes_after: None,
            },
            json!({"field": "purpose", "bytes_before": 3, "bytes_after": null}),
        ),
        (
            FieldChange::Metadata {
                pairs_before: 0,
                pairs_after: 2,
            },
            json!({"field": "metadata", "pairs_before": 0, "pairs_after": 2}),
        ),
        (
            FieldChange::Scopes {
                before: scopes("reports:*"),
                after: scopes("reports:read"),
            },
            json!({"field": "scopes", "before": ["reports:*"], "after": ["reports:read"]}),
        ),
        (
            FieldChange::Allowlist {
                before: AddressAllowlist::default(),
                after: networks("192.0.2.0/24"),
            },
            json!({"field": "allowlist", "before": [], "after": ["192.0.2.0/24"]}),
        ),
        (
            FieldChange::ExpiresAt {
                before: None,
                after: Some(at(START)),
            },
            json!({"field": "expires_at", "before": null, "after": START}),
        ),
    ];
    for (change, form) in forms {
        assert_eq!(serde_json::to_value(&change).unwrap(), form);
        assert_eq!(serde_json::from_value::<FieldChange>(form).unwrap(), change);
    }
}

#[test]
fn every_author_has_its_form() {
    let key = KeyId::from_u128(6);
    let of_key = |owner| Author::Key { key, owner };
    let id = "0000000000000000000006";
    let forms = [
        (Author::Application, json!({"type": "application"})),
        (
            author("application"),
            json!({"type": "principal", "id": "application"}),
        ),
        (
            of_key(Owner::Principal(who("bob"))),
            json!({"type": "key", "id": id, "owner": {"type": "principal", "id": "bob"}}),
        ),
        (
            of_key(Owner::Tenant),
            json!({"type": "key", "id": id, "owner": {"type": "tenant"}}),
        ),
    ];
    for (author, form) in forms {
        let mut row = row(Action::KeyDisabled);
        row.entry.actor = author;
        let event = serde_json::to_value(Event::of(&row)).unwrap();
        assert_eq!(event["actor"], form);
    }
}

#[track_caller]
fn same(event: &Event, form: &Value) {
    assert_eq!(serde_json::to_value(event).unwrap(), *form);
    let text = serde_json::to_string(event).unwrap();
    assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), *event);
    assert_eq!(event.id.to_string().parse(), Ok(event.id));
}

#[test]
fn the_form_of_notices_and_unreadable_entries_is_stable() {
    let world = TestService::new();
    let events = world.keys.events(windows());
    let key = world
        .create(&admin(), reader("key").expires_in(days(5)))
        .unwrap();
    let mut cursor = EventCursor::BEGINNING;
    let mut received = drain(&events, &mut cursor);
    world.clock.advance(days(5));
    received.extend(drain(&events, &mut cursor));
    let [.., soon, ended] = &received[..] else {
        panic!("{received:?}");
    };
    let end = "2026-01-06T00:00:00Z";
    let micros = at(end).as_micros();
    let form = json!({
        "id": format!("expiring-{}-{micros}-604800", key.id),
        "type": "key_expiring_soon",
        "at": "2025-12-30T00:00:00Z",
        "tenant": "acme",
        "key": key.id.to_string(),
        "key_name": "key",
        "data": {"expires_at": end, "within": 604_800, "owner": "alice"},
    });
    same(soon, &form);
    let form = json!({
        "id": format!("expired-{}-{micros}", key.id),
        "type": "key_expired",
        "at": end,
        "tenant": "acme",
        "key": key.id.to_string(),
        "key_name": "key",
        "data": {"expires_at": end, "owner": "alice"},
    });
    same(ended, &form);
    let place = AuditPosition {
        revision: Revision(12),
        sequence: 3,
    };
    let form = json!({
        "id": "unreadable-12-3",
        "type": "unreadable",
        "at": START,
        "data": {"revision": 12, "sequence": 3},
    });
    same(&Event::unreadable(place, at(START)), &form);
}

#[test]
fn malformed_event_ids_are_refused() {
    let key = "0000000000000000000005";
    let good = [
        "entry-12-3-0123456789abcdef".to_owned(),
        format!("expired-{key}-0"),
        format!("expiring-{key}-5-60"),
    ];
    for text in &good {
        assert_eq!(text.parse::<EventId>().unwrap().to_string(), *text);
    }
    let bad = [
        "",
        "-",
        "entry",
        "entry-1-2",
        "entry-1-2-3",
        "entry-01-2-0123456789abcdef",
        "entry-1-2-0123456789ABCDEF",
        "entry-1-2-0123456789abcdef-",
        "unreadable-1",
        "expired-x-1",
        "expired-0000000000000000000005--1",
        "unreadable-1-99999999999999999999",
    ];
    for text in bad {
        assert!(text.parse::<EventId>().is_err(), "{text}");
    }
}

#[test]
fn no_event_holds_a_secret_or_a_digest() {
    let world = TestService::new();
    let key = world.some_key();
    let next = wait(
        world
            .keys
            .rotate(&admin(), key.id, keyward::RotateKey::immediate()),
    )
    .unwrap();
    wait(world.keys.report_leaked_token(
        next.secret.expose(),
        keyward::command::LeakSource::new("scanner").unwrap(),
    ))
    .unwrap();
    let mut cursor = EventCursor::BEGINNING;
    let received = drain(&world.keys.events(windows()), &mut cursor);
    let leaked = |event: &Event| {
        let leaked = Action::KeyLeaked {
            source: keyward::command::LeakSource::new("scanner").unwrap(),
            revoked: true,
        };
        event.kind == EventKind::Change(leaked)
    };
    assert!(received.iter().any(leaked));
    let all = format!(
        "{}{received:?}{cursor:?}{cursor}",
        serde_json::to_string(&received).unwrap()
    );
    for token in [key.secret.expose(), next.secret.expose()] {
        assert!(!all.contains(secret_part(token)));
    }
    for record in crate::events::bent::records(&world.store) {
        assert!(!all.contains(&record.fingerprint.to_string()));
        let keyward::key::Credential::Peppered { digest, .. } = &record.credential else {
            panic!("{record:?}");
        };
        let hex: String = digest
            .as_bytes()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert!(!all.contains(&hex[..16]));
    }
}
