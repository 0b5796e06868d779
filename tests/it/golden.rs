//! Bytes stored by every released format version stay readable.
//!
//! The first version wrote `src/core/golden/*.v1`. A format change adds files of a new version and leaves the
//! old files unchanged.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use keyward::audit::{Action, AuditEntry, AuditHash, AuditHead, Evidence, FieldChange};
use keyward::command::{BulkFilter, LeakSource, MadeBy, PendingSweep, SweepKind};
use keyward::key::{
    AddressAllowlist, Author, Credential, Description, Digest, DigestMark, Fingerprint, Hint,
    ImportScheme, KeyFacts, KeyName, KeyRecord, KeyState, KeyType, LastAction, Lineage, Maker,
    Metadata, Owner, Predecessor, Purpose, Resource, ResourceId, ResourceKind, RotationReason,
    Stamp, Succession,
};
use keyward::pepper::PepperId;
use keyward::policy::Policy;
use keyward::rules::OwnerStatus;
use keyward::store::{DecodeError, OwnerRecord, TenantRecord};
use keyward::token::TokenPrefix;
use keyward::{KeyId, KeyInfo, PrincipalId, Reason, Role, ScopeSet, hours};
use support::*;

fn stamp(day: u32, by: &str) -> Stamp {
    Stamp {
        at: at(&format!("2026-01-{day:02}T00:00:00Z")),
        by: author(by),
    }
}

fn maker(number: u128) -> Maker {
    Maker {
        key: KeyId::from_u128(number),
        lineage: KeyId::from_u128(number + 10),
    }
}

/// Returns a key with every field set.
fn full() -> KeyRecord {
    KeyRecord {
        facts: KeyFacts {
            id: KeyId::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            tenant: tenant("acme/web"),
            class: class("secret"),
            key_type: KeyType::Secret,
            environment: environment("live"),
            name: KeyName::new("nightly export").unwrap(),
            description: Some(Description::new("two\nlines").unwrap()),
            purpose: Some(Purpose::new("exports").unwrap()),
            metadata: Metadata::new([("team", "data"), ("cost", "42")]).unwrap(),
            owner: Owner::Principal(who("alice")),
            bound: BTreeSet::from([Role::ADMIN, Role::DEVELOPER]),
            manages: true,
            scopes: ScopeSet::parse(["reports:read", "exports:*"]).unwrap(),
            allowlist: AddressAllowlist::parse(["192.0.2.0/24", "2001:db8::1"]).unwrap(),
            resource: Some(Resource {
                kind: ResourceKind::new("deployment.server").unwrap(),
                id: ResourceId::new("d-1").unwrap(),
            }),
            exposed_at: Some(at("2026-01-03T00:00:00Z")),
            created: stamp(1, "alice"),
            updated: stamp(3, "bob"),
            last_action: LastAction::Revoked,
            expires_at: Some(at("2027-01-01T00:00:00Z")),
            legacy: true,
            predecessor: Some(Predecessor {
                key: KeyId::from_u128(1),
                first_used_at: Some(at("2026-01-02T00:00:00Z")),
            }),
            succession: Some(Succession {
                successor: KeyId::from_u128(2),
                since: at("2026-01-02T00:00:00Z"),
                reason: RotationReason::Incident,
                own_expiry: None,
                grace_from_first_use: Some(hours(24)),
            }),
            hint: Hint::new("sk_live_…abcd").unwrap(),
            fingerprint: "0123456789abcdef".parse::<Fingerprint>().unwrap(),
            published: Some("pk_live_example".to_owned()),
        },
        prefix: Some(TokenPrefix::new("sk_live_").unwrap()),
        makers: [3, 4].map(maker).to_vec(),
        lineage: Lineage {
            first: KeyId::from_u128(1),
            since: at("2025-12-01T00:00:00Z"),
            created_by: Some(KeyId::from_u128(3)),
        },
        state: KeyState::Revoked {
            stamp: stamp(3, "bob"),
            reason: Reason::Leaked,
        },
        credential: Credential::Peppered {
            pepper: PepperId::new("p1").unwrap(),
            digest: Digest::from_bytes([7; 32]),
        },
    }
}

/// Returns a key with as few fields set as possible.
fn bare() -> KeyRecord {
    full().with(|key| {
        key.prefix = None;
        key.description = None;
        key.purpose = None;
        key.metadata = Metadata::default();
        key.owner = Owner::Tenant;
        key.bound = BTreeSet::new();
        key.manages = false;
        key.makers = Vec::new();
        key.lineage.created_by = None;
        key.scopes = ScopeSet::none();
        key.allowlist = AddressAllowlist::default();
        key.resource = None;
        key.exposed_at = None;
        key.created.by = Author::Application;
        key.expires_at = None;
        key.state = KeyState::Enabled;
        key.legacy = false;
        key.predecessor = None;
        key.succession = None;
        key.credential = Credential::Imported {
            scheme: ImportScheme::Sha256,
            digest: Digest::from_bytes([9; 32]),
        };
        key.published = None;
    })
}

fn owner() -> OwnerRecord {
    OwnerRecord {
        tenant: tenant("acme"),
        owner: who("alice"),
        role: None,
        removed_at: Some(at("2026-01-02T00:00:00Z")),
        raised_from: BTreeSet::from([Role::MEMBER]),
        updated: stamp(2, "bob"),
    }
}

fn closed_tenant() -> TenantRecord {
    let (provisioned, closed) = (Some(stamp(1, "alice")), Some(stamp(4, "bob")));
    TenantRecord {
        tenant: tenant("acme"),
        provisioned,
        closed,
        sweeps: sweeps(),
        updated: stamp(5, "carol"),
        time_repair: Some(keyward::store::TimeRepair {
            to: stamp(3, "alice").at,
            through: keyward::store::Revision(7),
        }),
    }
}

/// Returns one unfinished bulk command of each kind, each by a different kind of author.
fn sweeps() -> Vec<PendingSweep> {
    let mut filter = BulkFilter::all()
        .owner(who("alice"))
        .class(class("secret"))
        .created_before(at("2026-01-04T00:00:00Z"))
        .pepper(PepperId::new("p1").unwrap());
    filter.made_by = Some(MadeBy {
        key: KeyId::from_u128(3),
        lineage: Some(KeyId::from_u128(13)),
    });
    let kinds = [
        (Author::Application, SweepKind::CloseTenant),
        (author("bob"), SweepKind::RemoveOwner(who("alice"))),
        (key_of_alice(), SweepKind::Revoke(filter, Reason::Leaked)),
    ];
    let pending = |(by, kind)| PendingSweep {
        command: command("c2"),
        by,
        began_at: at("2026-01-04T00:00:00Z"),
        descendants: true,
        kind,
    };
    kinds.into_iter().map(pending).collect()
}

fn key_of_alice() -> Author {
    Author::Key {
        key: KeyId::from_u128(3),
        owner: Owner::Principal(who("alice")),
    }
}

fn entry() -> AuditEntry {
    AuditEntry {
        tenant: tenant("acme"),
        sequence: 7,
        at: at("2026-01-02T00:00:00Z"),
        actor: key_of_alice(),
        role: Some(Role::ADMIN),
        command: command("c1"),
        command_mark: [1, 2, 3, 4, 5, 6, 7, 8],
        action: Action::KeyImported {
            class: class("secret"),
            scheme: ImportScheme::Sha256,
        },
        evidence: Some(Evidence::Imported {
            mark: mark(),
            owner: Owner::Principal(PrincipalId::new("ann").unwrap()),
            expires_at: None,
        }),
        key: Some(KeyId::from_u128(5)),
        pepper: PepperId::new("p1").unwrap(),
        previous: AuditHash::from_bytes([1; 32]),
        hash: AuditHash::from_bytes([2; 32]),
    }
}

fn mark() -> DigestMark {
    DigestMark::from_bytes([7; 32])
}

/// Returns one entry for each action, and for each kind of change and evidence. The position of an entry
/// fixes the number of its action in the stored format. So append new actions at the end.
fn entries() -> Vec<AuditEntry> {
    let class = class("secret");
    let (owner, role, reason) = (who("ann"), Role::MEMBER, Reason::Leaked);
    let (other, instant) = (KeyId::from_u128(6), at("2026-01-03T00:00:00Z"));
    let head = |sequence: u8| AuditHead {
        sequence: sequence.into(),
        hash: AuditHash::from_bytes([sequence; 32]),
    };
    let changes = vec![
        FieldChange::Name {
            before: KeyName::new("one").unwrap(),
            after: KeyName::new("two").unwrap(),
        },
        FieldChange::Description {
            bytes_before: None,
            bytes_after: Some(300),
        },
        FieldChange::Purpose {
            bytes_before: Some(3),
            bytes_after: None,
        },
        FieldChange::Metadata {
            pairs_before: 0,
            pairs_after: 2,
        },
        FieldChange::Scopes {
            before: full().facts.scopes,
            after: ScopeSet::none(),
        },
        FieldChange::Allowlist {
            before: AddressAllowlist::default(),
            after: full().facts.allowlist,
        },
        FieldChange::ExpiresAt {
            before: None,
            after: Some(instant),
        },
    ];
    let actions = [
        Action::TenantProvisioned,
        Action::TenantClosed,
        Action::ResourceProvisioned {
            resource: ResourceId::new("d-1").unwrap(),
        },
        Action::KeyCreated {
            class: class.clone(),
        },
        Action::KeyProvisioned {
            class: class.clone(),
        },
        Action::KeyImported {
            class,
            scheme: ImportScheme::Sha256,
        },
        Action::KeyUpdated { changes },
        Action::KeyDisabled,
        Action::KeyEnabled,
        Action::KeyRevoked { reason },
        Action::KeyDeleted,
        Action::KeyPurged,
        Action::KeyRotated {
            successor: other,
            reason: RotationReason::Incident,
            old_key_ends: instant,
        },
        Action::RotationCancelled { successor: other },
        Action::SuccessorFirstUsed,
        Action::GraceBegan {
            old_key_ends: instant,
        },
        Action::SecretReplaced,
        Action::KeyLeaked {
            source: LeakSource::new("a scanner").unwrap(),
            revoked: true,
        },
        Action::KeyRedigested {
            pepper: PepperId::new("p2").unwrap(),
        },
        Action::OwnerAdded {
            owner: owner.clone(),
            role: role.clone(),
        },
        Action::OwnerRoleChanged {
            owner: owner.clone(),
            before: None,
            after: role,
        },
        Action::OwnerRemoved { owner },
        Action::BulkRevocationBegan { reason },
        Action::BulkCommandEnded,
        Action::DigestsBlocked { count: 1 },
        Action::TimeRepaired {
            from: instant,
            to: instant,
        },
        Action::TrailPruned { through: head(7) },
        Action::EntriesLost {
            after: head(5),
            through: head(7),
        },
    ];
    let with = |action| AuditEntry {
        evidence: match action {
            Action::KeyImported { .. } => entry().evidence,
            Action::DigestsBlocked { .. } => Some(Evidence::Blocked {
                marks: vec![(mark(), other)],
            }),
            _ => None,
        },
        action,
        ..entry()
    };
    actions.into_iter().map(with).collect()
}

/// `keyctl recover --replay-file` reads the lines that `keyctl audit --json` wrote, and checks their seals.
#[test]
fn every_audit_entry_survives_its_json_form() {
    for entry in entries() {
        let line = serde_json::to_string(&entry).unwrap();
        let read: AuditEntry = serde_json::from_str(&line).unwrap();
        assert_eq!(read, entry, "{line}");
        assert_eq!(read.to_bytes(), entry.to_bytes(), "{line}");
    }
    let line = serde_json::to_value(entry()).unwrap();
    assert_eq!(line["hash"], "02".repeat(32));
    assert_eq!(line["command_mark"], "0102030405060708");
    assert_eq!(line["evidence"]["imported"]["mark"], "07".repeat(32));
}

/// Returns the bytes that an older version wrote to the file `name`. If the file is missing and
/// `KEYWARD_WRITE_GOLDEN` is set, creates the file with the bytes `now`.
fn golden(name: &str, now: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../src/core/golden")
        .join(name);
    if std::env::var_os("KEYWARD_WRITE_GOLDEN").is_some() && !path.exists() {
        fs::write(&path, now).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn records_of_version_1_are_read_and_written_byte_for_byte() {
    for (name, record) in [("key-full.v1", full()), ("key-bare.v1", bare())] {
        let bytes = golden(name, &record.to_bytes());
        assert_eq!(KeyRecord::from_bytes(&bytes), Ok(record.clone()), "{name}");
        assert_eq!(record.to_bytes(), bytes, "{name}");
    }
    let bytes = golden("owner.v1", &owner().to_bytes());
    assert_eq!(OwnerRecord::from_bytes(&bytes), Ok(owner()));
    let bytes = golden("tenant.v1", &closed_tenant().to_bytes());
    assert_eq!(TenantRecord::from_bytes(&bytes), Ok(closed_tenant()));
    let bytes = golden("audit.v1", &entry().to_bytes());
    assert_eq!(AuditEntry::from_bytes(&bytes), Ok(entry()));
}

#[test]
fn every_action_of_version_1_is_read_and_written_to_the_byte() {
    let hex = |entry: &AuditEntry| -> String {
        let bytes = entry.to_bytes();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let entries = entries();
    let lines: Vec<_> = entries.iter().map(hex).collect();
    let golden = golden("actions.v1", lines.join("\n").as_bytes());
    let golden: Vec<_> = golden.split(|byte| *byte == b'\n').collect();
    assert_eq!(golden.len(), lines.len());
    for ((entry, line), golden) in entries.iter().zip(&lines).zip(golden) {
        assert_eq!(line.as_bytes(), golden, "{entry:?}");
        assert_eq!(AuditEntry::from_bytes(&entry.to_bytes()), Ok(entry.clone()));
    }
}

#[test]
fn the_view_of_a_key_is_served_in_the_designed_form() {
    let policy = Policy::new(keyward::profiles::standard()).unwrap();
    let now = at("2026-01-04T00:00:00Z");
    let views =
        [full(), bare()].map(|key| KeyInfo::new(key, &policy, &OwnerStatus::default(), now));
    let json = serde_json::to_string_pretty(&views).unwrap() + "\n";
    let stored = golden("key-info.json", json.as_bytes());
    assert_eq!(json, String::from_utf8(stored).unwrap());
}

#[test]
fn every_flipped_bit_is_detected() {
    let bytes = full().to_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            KeyRecord::from_bytes(&flipped),
            Err(DecodeError::Checksum),
            "bit {bit}"
        );
    }
}

#[test]
fn truncated_foreign_and_newer_bytes_are_refused_without_a_panic() {
    let bytes = full().to_bytes();
    for len in 0..bytes.len() {
        assert!(KeyRecord::from_bytes(&bytes[..len]).is_err());
    }
    assert!(
        KeyRecord::from_bytes(&owner().to_bytes()).is_err(),
        "another row's bytes"
    );
    let mut newer = bytes[..bytes.len() - 4].to_vec();
    newer[0] = 2;
    newer.extend(crc32fast::hash(&newer).to_le_bytes());
    let refused = KeyRecord::from_bytes(&newer);
    assert_eq!(
        refused,
        Err(DecodeError::Version {
            found: 2,
            supported: 1
        })
    );
}
