//! Clauses about the contents of rows: every read returns each row exactly as it was written.

use std::collections::BTreeSet;
use std::time::Duration;

use super::ClauseViolation;
use super::fixtures::{StoreFixture, digest, id, imported, key, owner, stamp, text};
use keyward::audit::{Action, Evidence, FieldChange};
use keyward::command::{BulkFilter, PendingSweep, SweepKind};
use keyward::key::{
    AddressAllowlist, Author, ClassName, Credential, Description, DigestMark, Environment, Hint,
    ImportScheme, KeyName, KeyRecord, KeyState, KeyType, LastAction, Lineage, Maker, Metadata,
    Owner, Predecessor, Purpose, Resource, ResourceId, ResourceKind, RotationReason, Succession,
};
use keyward::pepper::PepperId;
use keyward::store::{
    KeyStore, LoadRequest, Locator, OwnerRecord, Revision, Row, TenantRecord, TimeRepair,
};
use keyward::token::TokenPrefix;
use keyward::{KeyId, PrincipalId, Reason, Role, ScopeSet, Timestamp};

/// Keys come back exactly as written, including texts of minimal and maximal length. The check reads them by
/// load, find, list, scan and feed.
pub async fn records_come_back_as_they_were_written<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "records_come_back_as_they_were_written");
    let start = fixture.head().await?;
    let mut batch = fixture.batch("acme/web");
    for record in [
        full(1),
        longest(2),
        imported(3, "old token"),
        key(4),
        least(5),
    ] {
        batch = batch.put(record);
    }
    let written = batch.commit.effects.puts.clone();
    fixture.commit(batch).await?;
    for record in written {
        let view = fixture
            .load("acme/web", LoadRequest::key(record.id))
            .await?;
        fixture.same("by load", view.record(record.id), Some(&record))?;
        let found = fixture
            .find(Locator::Id(record.id))
            .await?
            .map(|found| found.change.row);
        fixture.same("by find", found, Some(Row::Key(Box::new(record))))?;
    }
    let mut received = Vec::new();
    for page in fixture.follow(start, 10).await? {
        received.extend(page.changes);
    }
    received.sort_by_key(|change| change.row.key());
    let standing = fixture.expected.live_rows().into_values().collect();
    fixture.same("by the feed", received, standing)?;
    fixture
        .check_contents("after the records were written")
        .await
}

/// Rows of owners and tenants come back exactly as written, and so do audit entries with every kind of
/// action.
pub async fn other_rows_come_back_as_they_were_written<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "other_rows_come_back_as_they_were_written");
    let removed = OwnerRecord {
        role: None,
        removed_at: Some(stamp(7).at),
        raised_from: [Role::MEMBER, Role::DEVELOPER].into(),
        updated: stamp(8),
        ..owner(&"o".repeat(PrincipalId::MAX_LEN))
    };
    let batch = fixture
        .batch("acme")
        .owner(owner("ann"))
        .owner(removed)
        .provision();
    let mut batch = actions()
        .into_iter()
        .fold(batch, |batch, action| batch.entry(action, None));
    for entry in &mut batch.commit.effects.audit {
        entry.evidence = evidence_of(&entry.action);
    }
    let tenant = batch.commit.tenant.clone();
    batch.commit.effects.tenant = Some(TenantRecord {
        tenant,
        provisioned: Some(stamp(1)),
        closed: Some(stamp(9)),
        sweeps: sweeps(),
        updated: stamp(9),
        time_repair: Some(TimeRepair {
            to: stamp(8).at,
            through: Revision(7),
        }),
    });
    for entry in &mut batch.commit.effects.audit {
        entry.role = None;
    }
    fixture.commit(batch).await?;
    fixture
        .check_contents("after the rows were written")
        .await?;
    let select = LoadRequest {
        owners: vec![text("ann"), text(&"o".repeat(PrincipalId::MAX_LEN))],
        ..LoadRequest::none()
    };
    let mut view = fixture.load("acme", select).await?;
    view.owners.sort_by(|a, b| a.owner.cmp(&b.owner));
    let stored = fixture
        .expected
        .rows
        .values()
        .filter_map(|change| match &change.row {
            Row::Owner(row) => Some(row.clone()),
            _ => None,
        });
    fixture.same("rows of owners by load", view.owners, stored.collect())
}

/// Writing a key again replaces its whole record. A field that the new record leaves empty is empty
/// afterwards.
pub async fn a_put_replaces_the_whole_record<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_put_replaces_the_whole_record");
    let batch = fixture.batch("acme").put(full(1));
    fixture.commit(batch).await?;
    let batch = fixture.batch("acme").put(key(1));
    let written = batch.commit.effects.puts.clone();
    fixture.commit(batch).await?;
    let view = fixture.load("acme", LoadRequest::key(id(1))).await?;
    fixture.same("the key", view.records, written)?;
    fixture.check_contents("after the replacement").await
}

/// Returns a record with every optional field set.
fn full(n: u64) -> KeyRecord {
    key(n).with(|key| {
        key.key_type = KeyType::Publishable;
        key.environment = Environment::TEST;
        key.description = Some(text(
            "First line.\n\tSecond line: „quotes“, it's 100% \\ fine; 🔑",
        ));
        key.purpose = Some(text("nightly export"));
        key.metadata = pairs(&[
            ("team", "core"),
            ("empty", ""),
            ("NULL", "null"),
            ("é", "\n\t"),
        ]);
        key.owner = Owner::Principal(text("user:42@example.com"));
        key.bound = BTreeSet::from([Role::ADMIN, Role::DEVELOPER]);
        key.manages = true;
        key.makers = (91..=98).map(maker).collect();
        key.lineage = Lineage {
            first: id(90),
            since: stamp(4).at,
            created_by: Some(id(98)),
        };
        key.exposed_at = Some(stamp(8).at);
        key.scopes = scopes(&["reports:read", "reports:*", "*:write"]);
        key.allowlist = networks(&[
            "192.0.2.0/24",
            "2001:db8::/32",
            "198.51.100.7",
            "192.0.2.0/24",
        ]);
        key.resource = Some(Resource {
            kind: text("deployment.client"),
            id: text("dep/7"),
        });
        key.last_action = LastAction::FirstUsed;
        key.expires_at = Some(Timestamp::MAX);
        key.state = KeyState::Disabled(stamp(3));
        key.legacy = true;
        key.predecessor = Some(Predecessor {
            key: id(90),
            first_used_at: Some(stamp(4).at),
        });
        key.succession = Some(Succession {
            successor: KeyId::from_u128(u128::MAX),
            since: stamp(5).at,
            reason: RotationReason::Compromise,
            own_expiry: Some(stamp(6).at),
            grace_from_first_use: Some(Duration::new(86_400, 999_999_999)),
        });
        key.published = Some("pk_live_000000000000000000000000".to_owned());
    })
}

/// Returns a key whose texts have their maximal length. Texts that allow it consist of multi-byte characters.
fn longest(n: u64) -> KeyRecord {
    let long = |max: usize| "x".repeat(max);
    let wide = |max: usize| "é".repeat(max / 2);
    let big = [("k".to_owned(), "ü".repeat((Metadata::MAX_LEN - 1) / 2))];
    key(n).with(|key| {
        key.id = KeyId::from_u128(u128::MAX - u128::from(n));
        key.class = text(&long(ClassName::MAX_LEN));
        key.environment = text(&long(Environment::MAX_LEN));
        key.prefix = Some(text(&(long(TokenPrefix::MAX_LEN - 1) + "_")));
        key.name = text(&wide(KeyName::MAX_LEN));
        key.description = Some(text(&wide(Description::MAX_LEN)));
        key.purpose = Some(text(&wide(Purpose::MAX_LEN)));
        key.metadata = Metadata::new(big).unwrap_or_default();
        key.owner = Owner::Principal(text(&long(PrincipalId::MAX_LEN)));
        key.bound = BTreeSet::from([text(&long(Role::MAX_LEN))]);
        key.resource = Some(Resource {
            kind: text(&long(ResourceKind::MAX_LEN)),
            id: text(&long(ResourceId::MAX_LEN)),
        });
        key.state = KeyState::Revoked {
            stamp: stamp(3),
            reason: Reason::RotationCancelled,
        };
        key.hint = text(&wide(Hint::MAX_LEN));
        key.credential = Credential::Peppered {
            pepper: text(&long(PepperId::MAX_LEN)),
            digest: digest("the longest"),
        };
    })
}

/// Returns a key with the smallest valid values: the first instant, texts of one letter, and zero bytes.
fn least(n: u64) -> KeyRecord {
    key(n).with(|key| {
        key.id = KeyId::from_u128(0);
        key.class = text("c");
        key.environment = text("e");
        key.prefix = None;
        key.name = text("'");
        key.expires_at = Some(Timestamp::UNIX_EPOCH);
        key.hint = text("%");
        key.credential = Credential::Peppered {
            pepper: text("p"),
            digest: keyward::key::Digest::from_bytes([0; 32]),
        };
        key.published = Some(String::new());
    })
}

fn pairs(pairs: &[(&str, &str)]) -> Metadata {
    Metadata::new(pairs.iter().copied()).unwrap_or_default()
}

fn scopes(scopes: &[&str]) -> ScopeSet {
    ScopeSet::parse(scopes.iter().copied()).unwrap_or_default()
}

fn networks(networks: &[&str]) -> AddressAllowlist {
    AddressAllowlist::parse(networks.iter().copied()).unwrap_or_default()
}

fn maker(n: u64) -> Maker {
    Maker {
        key: id(n),
        lineage: id(n - 1),
    }
}

/// Returns one pending bulk command of every kind, as a tenant's row may contain it.
fn sweeps() -> Vec<PendingSweep> {
    let key = Author::Key {
        key: id(7),
        owner: Owner::Tenant,
    };
    let made_by = BulkFilter::all().made_by(id(7)).owner(text("ann"));
    let kinds = [
        (Author::Application, SweepKind::CloseTenant),
        (key, SweepKind::RemoveOwner(text("ann"))),
        (stamp(1).by, SweepKind::Revoke(made_by, Reason::Leaked)),
    ];
    let pending = |(by, kind)| PendingSweep {
        command: text("sweep"),
        by,
        began_at: stamp(2).at,
        descendants: true,
        kind,
    };
    kinds.into_iter().map(pending).collect()
}

/// Returns evidence for an audit entry with this action, or `None` if such entries have no evidence.
fn evidence_of(action: &Action) -> Option<Evidence> {
    let mark = DigestMark::from_bytes([7; 32]);
    match action {
        Action::KeyImported { .. } => Some(Evidence::Imported {
            mark,
            owner: Owner::Principal(text("ann")),
            expires_at: Some(stamp(9).at),
        }),
        Action::DigestsBlocked { .. } => Some(Evidence::Blocked {
            marks: vec![(mark, id(8)), (mark, id(9))],
        }),
        _ => None,
    }
}

/// Returns one action of every kind.
fn actions() -> Vec<Action> {
    let class = || text::<ClassName>("server");
    let changes = vec![FieldChange::Name {
        before: text("a"),
        after: text("Ünïcode 🔑"),
    }];
    vec![
        Action::TenantClosed,
        Action::ResourceProvisioned {
            resource: text("dep/7"),
        },
        Action::KeyProvisioned { class: class() },
        Action::KeyImported {
            class: class(),
            scheme: ImportScheme::Sha256,
        },
        Action::KeyUpdated { changes },
        Action::KeyDisabled,
        Action::KeyEnabled,
        Action::KeyRevoked {
            reason: Reason::Leaked,
        },
        Action::KeyDeleted,
        Action::KeyPurged,
        Action::KeyRotated {
            successor: id(9),
            reason: RotationReason::ExpiryNear,
            old_key_ends: stamp(9).at,
        },
        Action::RotationCancelled { successor: id(9) },
        Action::SuccessorFirstUsed,
        Action::GraceBegan {
            old_key_ends: stamp(9).at,
        },
        Action::SecretReplaced,
        Action::KeyLeaked {
            source: text("https://example.com/a?b=c"),
            revoked: true,
        },
        Action::KeyRedigested { pepper: text("p2") },
        Action::OwnerRoleChanged {
            owner: text("ann"),
            before: None,
            after: Role::MEMBER,
        },
        Action::OwnerRemoved { owner: text("ann") },
        Action::DigestsBlocked { count: 2 },
        Action::TimeRepaired {
            from: stamp(9).at,
            to: stamp(8).at,
        },
    ]
}
