//! Compares the index with a naive model: a map that is searched linearly.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::core::address::AddressAllowlist;
use crate::core::metadata::Metadata;
use crate::core::owner::{OwnerRecord, OwnerStatus, TenantRecord};
use crate::core::principal::{Author, Owner};
use crate::core::record::{
    KeyFacts, KeyState, KeyType, LastAction, Lineage, Predecessor, Reason, Resource,
};
use crate::core::scope::ScopeSet;
use crate::core::secret::Fingerprint;
use crate::core::stamp::Stamp;
use crate::core::subject::{KeyOwner, KeyTraits};
use crate::core::tenant::TenantId;
use crate::core::text::{PepperId, PrincipalId, Role};

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_seconds(second).unwrap()
}

fn stamp(second: i64) -> Stamp {
    Stamp {
        at: at(second),
        by: Author::Application,
    }
}

fn tenant(number: u8) -> TenantId {
    TenantId::new(["a", "a/b", "ab", "a/b/c"][usize::from(number) % 4]).unwrap()
}

fn principal(number: u8) -> PrincipalId {
    PrincipalId::new(format!("p{}", number % 3)).unwrap()
}

fn digest(number: u8) -> Digest {
    Digest::sha256([number])
}

/// Returns a key whose owner, credential and lifecycle depend on the arguments.
fn record(id: u16, [whose, what, when]: [u8; 3]) -> KeyRecord {
    let credential = if what & 1 == 1 {
        let scheme = crate::core::record::ImportScheme::Sha256;
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&id.to_le_bytes());
        bytes[2] = 1;
        let digest = Digest::from_bytes(bytes);
        Credential::Imported { scheme, digest }
    } else {
        let pepper = PepperId::new(["p1", "p2"][usize::from(what >> 7)]).unwrap();
        let digest = digest(what);
        Credential::Peppered { pepper, digest }
    };
    let state = match what >> 1 & 3 {
        0 | 1 => KeyState::Enabled,
        2 => KeyState::Disabled(stamp(5)),
        _ => KeyState::Revoked {
            stamp: stamp(6),
            reason: Reason::Leaked,
        },
    };
    let owner = match whose & 3 {
        0 => Owner::Tenant,
        _ => Owner::Principal(principal(whose)),
    };
    let predecessor = (what >> 3 & 7 == 0).then(|| Predecessor {
        key: KeyId::from_u128(1),
        first_used_at: None,
    });
    KeyRecord {
        facts: KeyFacts {
            id: KeyId::from_u128(id.into()),
            tenant: tenant(whose >> 2),
            class: "secret".parse().unwrap(),
            key_type: KeyType::Secret,
            environment: "live".parse().unwrap(),
            name: "key".parse().unwrap(),
            description: None,
            purpose: None,
            metadata: Metadata::default(),
            owner,
            bound: BTreeSet::new(),
            manages: true,
            scopes: ScopeSet::parse([["a:b", "c:d"][usize::from(whose) % 2]]).unwrap(),
            allowlist: AddressAllowlist::default(),
            resource: None,
            exposed_at: None,
            created: stamp(when.into()),
            updated: stamp(when.into()),
            last_action: LastAction::Created,
            expires_at: (when % 3 != 0).then(|| at(i64::from(when) * 2)),
            legacy: false,
            predecessor,
            succession: None,
            hint: "h".parse().unwrap(),
            fingerprint: Fingerprint::of_token("t"),
            published: None,
        },
        prefix: None,
        makers: Vec::new(),
        lineage: Lineage {
            first: KeyId::from_u128(id.into()),
            since: at(when.into()),
            created_by: None,
        },
        state,
        credential,
    }
}

fn a_row() -> impl Strategy<Value = StoreRow> {
    let id = 0_u16..200;
    let key = (id.clone(), any::<[u8; 3]>());
    let owner = (any::<u8>(), any::<u8>(), any::<Option<bool>>(), 0_u8..40);
    prop_oneof![
        12 => key.prop_map(|(id, of)| StoreRow::Key(Box::new(record(id, of)))),
        1 => id.clone().prop_map(|id| StoreRow::Removed {
            key: KeyId::from_u128(id.into()),
            tenant: tenant(0),
        }),
        1 => id.prop_map(|id| StoreRow::Corrupt(RowKey::Key(KeyId::from_u128(id.into())))),
        3 => owner.prop_map(|(of, who, role, removed)| {
            let role = role.map(|admin| if admin { Role::ADMIN } else { Role::SUPPORT });
            let removed_at = (removed > 20).then(|| at(removed.into()));
            StoreRow::Owner(OwnerRecord {
                tenant: tenant(of),
                owner: principal(who),
                role,
                removed_at,
                raised_from: Default::default(),
                updated: stamp(1),
            })
        }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(of, closed)| StoreRow::Tenant(TenantRecord {
            tenant: tenant(of),
            provisioned: Some(stamp(0)),
            closed: closed.then(|| stamp(2)),
            sweeps: Vec::new(),
            updated: stamp(3),
            time_repair: None,
        })),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(of, who)| {
            StoreRow::Corrupt(RowKey::Owner(tenant(of), principal(who)))
        }),
    ]
}

/// The newest version of each row, in a plain map.
#[derive(Default)]
struct NaiveIndex(HashMap<RowKey, (Revision, StoreRow)>);

impl NaiveIndex {
    fn apply(&mut self, change: &Change, base: Revision) {
        let key = change.row.key();
        let is_key = matches!(key, RowKey::Key(_));
        let is_removal = matches!(change.row, StoreRow::Removed { .. });
        let known = self.0.get(&key).map(|(revision, _)| *revision);
        let newer = match known {
            Some(known) => known < change.revision,
            // The index records every removal, even an older one than the scan.
            None => !is_key || is_removal || change.revision > base,
        };
        if newer {
            self.0.insert(key, (change.revision, change.row.clone()));
        }
    }

    fn status(&self, of: &KeyRecord) -> OwnerStatus {
        let rows = || self.0.values().map(|(_, row)| row);
        // Visits the tenants in the order of the path, as the index does.
        let path: Vec<_> = of.tenant.lineage().collect();
        let owner = |tenant: &TenantId| {
            rows().find_map(|row| match row {
                StoreRow::Owner(row)
                    if row.tenant == *tenant && Some(&row.owner) == of.owner.principal() =>
                {
                    Some(row)
                }
                _ => None,
            })
        };
        let tenants = rows().filter_map(|row| match row {
            StoreRow::Tenant(row) => Some(row),
            _ => None,
        });
        let unreadable = rows().any(|row| match row {
            StoreRow::Corrupt(RowKey::Owner(tenant, owner)) => {
                path.contains(tenant) && Some(owner) == of.owner.principal()
            }
            StoreRow::Corrupt(RowKey::Tenant(tenant)) => path.contains(tenant),
            _ => false,
        });
        let owners: Vec<_> = path.iter().filter_map(owner).collect();
        OwnerStatus {
            unreadable,
            ..OwnerStatus::resolve(&of.tenant, &of.owner, owners, tenants)
        }
    }
}

/// Describes the result of a lookup as a string, with only the parts that the naive model can predict.
fn answer_to(view: &View, id: KeyId, digest_prefix: DigestPrefix) -> String {
    describe(view, view.lookup(id, view.prefetch(id), digest_prefix))
}

fn describe(view: &View, answer: IndexLookup) -> String {
    match answer {
        IndexLookup::Hit(hit) => {
            let attributes = view.attributes(hit.attribute_ids).unwrap();
            // Pass the latest possible time: for a key that expires, the index must then read the row and
            // return the exact lifecycle.
            let RowState::Key(lifecycle) = view.state_for(&hit, attributes.status, Timestamp::MAX)
            else {
                return "gone".to_owned();
            };
            let Attributes {
                traits,
                key_owner,
                status,
                ..
            } = attributes;
            format!(
                "{} {lifecycle:?} {traits:?} {:?} {status:?}",
                hit.id,
                key_owner.get()
            )
        }
        IndexLookup::WrongSecret(..) => "wrong secret".to_owned(),
        IndexLookup::Corrupt(id) => format!("corrupt {id}"),
        IndexLookup::Removed => "removed".to_owned(),
        IndexLookup::Unknown => "unknown".to_owned(),
    }
}

fn expected(model: &NaiveIndex, id: KeyId, digest_prefix: Option<&Digest>) -> String {
    match model.0.get(&RowKey::Key(id)).map(|(_, row)| row) {
        None => "unknown".to_owned(),
        Some(StoreRow::Removed { .. }) => "removed".to_owned(),
        Some(StoreRow::Key(record)) => {
            let (Credential::Peppered { digest, .. } | Credential::Imported { digest, .. }) =
                &record.credential;
            let by_id = record.credential.imported().is_none();
            if digest_prefix.is_some_and(|digest_prefix| digest_prefix != digest || !by_id) {
                return "wrong secret".to_owned();
            }
            let mut lifecycle = Lifecycle::of(record);
            // The index may answer for an enabled key that never expires without reading the row. Only the
            // row has the exact lifecycle, so do not compare the lifecycle here.
            let status = model.status(record);
            let exact = lifecycle.expires_at.is_some()
                || lifecycle.phase != LifecyclePhase::Enabled
                || lifecycle.awaits_first_use
                || !by_id
                || status.removed_at.is_some();
            if !exact {
                lifecycle.created_at = Timestamp::MAX;
            }
            if let LifecyclePhase::Revoked { at, .. } = lifecycle.phase {
                lifecycle.created_at = at;
            }
            let (traits, key_owner) = (KeyTraits::of(record), KeyOwner::of(record));
            format!("{id} {lifecycle:?} {traits:?} {key_owner:?} {status:?}")
        }
        Some(_) => format!("corrupt {id}"),
    }
}

fn check(index: &Arc<Index>, view: &View, model: &NaiveIndex) -> Result<(), TestCaseError> {
    let keys: BTreeMap<_, _> = model
        .0
        .iter()
        .filter_map(|(key, (_, row))| match key {
            RowKey::Key(id) => Some((*id, row.clone())),
            _ => None,
        })
        .collect();
    let unknown = (200..220).map(KeyId::from_u128);
    for id in keys.keys().copied().chain(unknown) {
        let digest = match keys.get(&id) {
            Some(StoreRow::Key(record)) => match &record.credential {
                Credential::Peppered { digest, .. } => *digest,
                Credential::Imported { digest, .. } => {
                    let found = describe(view, view.imported(digest));
                    prop_assert_eq!(found, expected(model, id, None));
                    *digest
                }
            },
            _ => digest(1),
        };
        for digest in [digest, Digest::sha256("another")] {
            let digest_prefix = DigestPrefix::of(digest.as_bytes());
            prop_assert_eq!(
                answer_to(view, id, digest_prefix),
                expected(model, id, Some(&digest))
            );
        }
    }
    let imported = |row: &StoreRow| match row {
        StoreRow::Key(record) => record.credential.imported().is_some(),
        _ => false,
    };
    prop_assert!(index.has_imported() || !keys.values().any(imported));
    for now in [0, 100, 511].map(at) {
        let mut counts = BTreeMap::new();
        for row in keys.values() {
            if let StoreRow::Key(record) = row
                && let Credential::Peppered { pepper, .. } = &record.credential
                && record.is_live(now)
            {
                *counts.entry(pepper.clone()).or_insert(0) += 1;
            }
        }
        prop_assert_eq!(index.keys_by_pepper(now), counts);
    }
    Ok(())
}

proptest! {
    /// Applies rows in any order, some of them out of date. A view from the middle, a view from the end and
    /// the naive model must agree. Fails, for example, in these cases:
    ///
    /// - an older row overwrites a newer one;
    /// - a slot is lost when a segment grows or is split, or when the index is copied;
    /// - a copy mixes the attributes of two keys up;
    /// - a lowered role does not reach all keys of an owner;
    /// - the end of the scan leaves old statuses in slots.
    #[test]
    fn the_index_agrees_with_a_naive_map(
        rows in prop::collection::vec((a_row(), 1_u64..40), 0..400),
        base in 0_u64..10,
        view_at in 0_usize..400,
        copy_at in 0_usize..400,
        filled_at in 0_usize..400,
    ) {
        let mut index = Arc::new(Index::default());
        let mut view = View::of(index.clone());
        let mut model = NaiveIndex::default();
        index.set_scan_base(Revision(base));
        for (number, (row, revision)) in rows.into_iter().enumerate() {
            let change = Change { revision: Revision(revision), row };
            model.apply(&change, Revision(base));
            index.apply([change]);
            if number == copy_at {
                index = Arc::new(index.compacted(Revision::ZERO));
                view = View::of(index.clone());
            }
            if number == filled_at {
                index.set_scan_base(Revision(base));
            }
            if number == view_at {
                check(&index, &view, &model)?;
                view = View::of(index.clone());
            }
        }
        check(&index, &view, &model)?;
        check(&index, &View::of(index.clone()), &model)?;
    }
}

fn of_owner(tenant: &TenantId, owner: &PrincipalId, role: Option<Role>) -> StoreRow {
    StoreRow::Owner(OwnerRecord {
        tenant: tenant.clone(),
        owner: owner.clone(),
        role,
        removed_at: None,
        raised_from: BTreeSet::new(),
        updated: stamp(1),
    })
}

fn closed(tenant: &TenantId) -> StoreRow {
    StoreRow::Tenant(TenantRecord {
        tenant: tenant.clone(),
        provisioned: Some(stamp(0)),
        closed: Some(stamp(2)),
        sweeps: Vec::new(),
        updated: stamp(3),
        time_repair: None,
    })
}

/// Returns an index with `count` tenants below the organization `org`. Each tenant has two keys: one of the
/// principal `all`, who owns a key in every tenant, and one of a principal who owns no other key. `all` also
/// owns one key in each of `count` tenants outside the organization.
fn organization(count: u16) -> (Index, Vec<TenantId>) {
    let index = Index::default();
    let tenants: Vec<_> = (0..count)
        .map(|number| TenantId::new(format!("org/t{number}")).unwrap())
        .collect();
    for (number, tenant) in (0..).zip(&tenants) {
        let beside = TenantId::new(format!("org-{number}")).unwrap();
        let own = format!("own{number}");
        let places = [(tenant, "all"), (tenant, own.as_str()), (&beside, "all")];
        for (place, (tenant, owner)) in (0..).zip(places) {
            let row = record(number * 3 + place, [1, 0, 0]).with(|key| {
                key.tenant = tenant.clone();
                key.owner = Owner::Principal(PrincipalId::new(owner).unwrap());
            });
            let row = StoreRow::Key(Box::new(row));
            let revision = Revision(1);
            index.apply([Change { revision, row }]);
        }
    }
    (index, tenants)
}

/// Returns the number of tenants and owners that the index visits when it applies the rows.
fn visited(index: &Index, revision: u64, rows: impl IntoIterator<Item = StoreRow>) -> usize {
    let before = index.writer().attributes.visited;
    let revision = Revision(revision);
    index.apply(rows.into_iter().map(|row| Change { revision, row }));
    index.writer().attributes.visited - before
}

/// Fails if applying a row visits the organization's other owners, or all owners of the store.
#[test]
fn a_row_visits_only_the_tenants_and_owners_at_or_below_it() {
    let all = PrincipalId::new("all").unwrap();
    for count in [10, 100, 1000] {
        let (index, tenants) = organization(count);
        let lowered = |tenant| of_owner(tenant, &all, Some(Role::SUPPORT));
        let lowered: Vec<_> = tenants.iter().map(lowered).collect();
        let count = usize::from(count);
        assert_eq!(visited(&index, 2, lowered.clone()), count);
        // These rows change nothing for any key, so the index visits no tenant and no owner.
        assert_eq!(visited(&index, 3, lowered), 0);
        // The row of a tenant visits three entries: the tenant and its two owners. The tenants beside it are
        // not visited.
        assert_eq!(visited(&index, 4, tenants.iter().map(closed)), 3 * count);
        let org = TenantId::new("org").unwrap();
        let own = of_owner(&org, &PrincipalId::new("own3").unwrap(), None);
        assert_eq!(visited(&index, 5, [own]), 2);
        let of_all = of_owner(&org, &all, None);
        assert_eq!(visited(&index, 5, [of_all]), 1 + count);
        assert_eq!(visited(&index, 5, [closed(&org)]), 1 + 3 * count);
    }
}

/// Fails if a copy keeps tombstones for ever, or if an older change brings a dropped one's key back.
#[test]
fn a_copy_drops_the_tombstones_that_every_reader_has_passed() {
    let index = Index::default();
    let key = |id| StoreRow::Key(Box::new(record(id, [1, 0, 0])));
    let removed = |id: u16| StoreRow::Removed {
        key: KeyId::from_u128(id.into()),
        tenant: tenant(0),
    };
    let change = |revision, row| {
        let revision = Revision(revision);
        Change { revision, row }
    };
    let rows = [(1, key(1)), (3, removed(2)), (5, removed(3)), (6, key(4))];
    index.apply(
        rows.into_iter()
            .map(|(revision, row)| change(revision, row)),
    );
    let copy = Arc::new(index.compacted(Revision(4)));
    let view = View::of(copy.clone());
    let kind = |id: u16| view.row_kind(KeyId::from_u128(id.into()));
    let (own, gone) = (Some(RowKind::Key), Some(RowKind::Removed));
    assert_eq!([1, 2, 3, 4].map(kind), [own, None, gone, own]);
    copy.apply([change(2, key(2)), change(2, key(3)), change(7, key(5))]);
    assert_eq!([2, 3, 5].map(kind), [None, gone, own]);
}

/// Returns a key of its own for each of `count` owners.
fn key_of_each_owner(count: u16) -> impl Iterator<Item = StoreRow> {
    (0..count).map(|id| {
        StoreRow::Key(Box::new(record(id, [1, 8, 0]).with(|key| {
            key.owner = Owner::Principal(PrincipalId::new(format!("o{id}")).unwrap());
        })))
    })
}

fn change_all(index: &Index, revision: u64, rows: impl IntoIterator<Item = StoreRow>) {
    let revision = Revision(revision);
    index.apply(rows.into_iter().map(|row| Change { revision, row }));
}

/// More statuses than fit in a slot: each owner has a role of its own, or was removed at a time of its own.
#[test]
fn statuses_that_do_not_fit_in_a_slot_are_found() {
    const OWNERS: u16 = 100;
    let index = Arc::new(Index::default());
    let owners = |turn: u16| {
        (0..OWNERS).map(move |number| {
            let owner = PrincipalId::new(format!("o{number}")).unwrap();
            let role = Role::new(format!("r{}", number + turn)).unwrap();
            let StoreRow::Owner(mut row) = of_owner(&tenant(0), &owner, Some(role)) else {
                unreachable!("a row of an owner");
            };
            row.removed_at = (number % 2 == 0).then(|| at((number + turn).into()));
            StoreRow::Owner(row)
        })
    };
    let check = |view: &View, turn: u16| {
        for number in 0..OWNERS {
            let id = KeyId::from_u128(number.into());
            let sought = view.prefetch(id);
            let found = view.lookup(id, sought, DigestPrefix::of(digest(8).as_bytes()));
            let IndexLookup::Hit(hit) = found else {
                panic!("key {number} is in the index");
            };
            let status = view.attributes(hit.attribute_ids).unwrap().status;
            let role = Role::new(format!("r{}", number + turn)).unwrap();
            assert!(status.roles.contains(&role), "{number}: {status:?}");
            let removed_at = (number % 2 == 0).then(|| at((number + turn).into()));
            assert_eq!(status.removed_at, removed_at);
        }
    };
    change_all(&index, 1, owners(0).chain(key_of_each_owner(OWNERS)));
    check(&View::of(index.clone()), 0);
    change_all(&index, 2, owners(7));
    check(&View::of(index.clone()), 7);
    check(&View::of(Arc::new(index.compacted(Revision(2)))), 7);
    index.set_scan_base(Revision(2));
    check(&View::of(index), 7);
}

/// Returns the number of slots that have a copy of their owner's status.
fn copies(index: &Index) -> usize {
    let writer = index.writer();
    let found = writer.table.slots().map(|(.., found)| found.value);
    found
        .filter(|value| value.attribute_ids.status.is_some())
        .count()
}

/// The times of removals take no number that fits in a slot, however many owners were removed before.
#[test]
fn a_common_status_fits_in_the_slot() {
    let index = Arc::new(Index::default());
    let owners = (0..100_u16).map(|number| {
        let owner = PrincipalId::new(format!("o{number}")).unwrap();
        let StoreRow::Owner(mut row) = of_owner(&tenant(0), &owner, Some(Role::ADMIN)) else {
            unreachable!("a row of an owner");
        };
        row.removed_at = (number < 99).then(|| at(number.into()));
        StoreRow::Owner(row)
    });
    change_all(&index, 1, owners.chain(key_of_each_owner(100)));
    assert_eq!(copies(&index), 1);
}

/// A scan that reads the keys before their owners ends with right copies in all slots, and with no bit set.
#[test]
fn the_end_of_a_scan_renews_all_copies() {
    const OWNERS: u16 = 1000;
    let index = Arc::new(Index::default());
    let owners = (0..OWNERS).map(|number| {
        let owner = PrincipalId::new(format!("o{number}")).unwrap();
        of_owner(&tenant(0), &owner, Some(Role::SUPPORT))
    });
    change_all(&index, 1, key_of_each_owner(OWNERS).chain(owners));
    let changed = || index.attribute_tables.changed_statuses();
    assert_eq!(changed(), u32::from(OWNERS));
    index.set_scan_base(Revision(1));
    assert_eq!((changed(), copies(&index)), (0, usize::from(OWNERS)));
    let view = View::of(index.clone());
    let id = KeyId::from_u128(7);
    let found = view.search(view.prefetch(id), DigestPrefix::of(digest(8).as_bytes()));
    let key = view.proven(&found).expect("the key is enabled");
    let attributes = view.attributes_with(key.attribute_ids, key.status).unwrap();
    assert_eq!(attributes.status.roles, [Role::SUPPORT]);
}

/// The slot never proves a key for longer than the key is valid, and at most 4096 seconds less.
#[test]
fn an_expiry_in_a_slot_is_the_hour_before_it() {
    let instant = |text: &str| text.parse::<Timestamp>().unwrap();
    let value = |expires_at| {
        let mut lifecycle = Lifecycle::of(&record(1, [1, 8, 0]));
        lifecycle.expires_at = expires_at;
        SlotValue::of(&lifecycle, false, AttributeIds::default())
    };
    assert_eq!(value(None).end(), None);
    for text in [
        "2020-01-01T02:00:00Z",
        "2026-12-01T12:34:56Z",
        "2054-01-01T00:00:00Z",
    ] {
        let end = instant(text);
        let proven = value(Some(end)).end().unwrap();
        assert!(
            proven <= end && end.since(proven) < std::time::Duration::from_secs(4096),
            "{text}"
        );
    }
    for text in ["2055-01-01T00:00:00Z", "9999-12-31T23:59:59Z"] {
        let proven = value(Some(instant(text))).end().unwrap();
        assert!(
            proven > instant("2054-01-01T00:00:00Z") && proven < instant(text),
            "{text}"
        );
    }
    for text in ["1970-01-01T00:00:00Z", "2019-12-31T00:00:00Z"] {
        assert_eq!(value(Some(instant(text))).until, SlotValue::ASK, "{text}");
    }
}

/// Replacing one digest many times does not make the table grow.
#[test]
fn slots_of_replaced_digests_are_removed() {
    let index = Arc::new(Index::default());
    for revision in 1..10_000 {
        let mut row = record(7, [1, 0, 1]);
        if let Credential::Peppered { digest, .. } = &mut row.credential {
            *digest = Digest::sha256(revision.to_string());
        }
        let (revision, row) = (Revision(revision), StoreRow::Key(Box::new(row)));
        index.apply([Change { revision, row }]);
    }
    assert_eq!(index.writer().table.segments(), 1);
    let view = View::of(index);
    let digest_prefix = |of: &str| DigestPrefix::of(Digest::sha256(of).as_bytes());
    let id = KeyId::from_u128(7);
    assert!(matches!(
        view.lookup(id, view.prefetch(id), digest_prefix("9999")),
        IndexLookup::Hit(_)
    ));
    assert!(matches!(
        view.lookup(id, view.prefetch(id), digest_prefix("9998")),
        IndexLookup::WrongSecret(..)
    ));
}

/// Inserts enough keys to split segments several times. Each key is found through the first view
/// and through the last.
#[test]
fn keys_are_found_while_the_table_grows() {
    let index = Arc::new(Index::default());
    let first = View::of(index.clone());
    let count = 40_000_u16;
    let digest_prefix = |id: u16| DigestPrefix::of(Digest::sha256(id.to_le_bytes()).as_bytes());
    for id in 0..count {
        let mut row = record(id, [1, 0, 0]);
        if let Credential::Peppered { digest, .. } = &mut row.credential {
            *digest = Digest::sha256(id.to_le_bytes());
        }
        let row = StoreRow::Key(Box::new(row));
        index.apply([Change {
            revision: Revision(1),
            row,
        }]);
    }
    assert!(index.needs_new_view());
    let last = View::of(index.clone());
    assert!(!index.needs_new_view());
    for view in [&first, &last] {
        for id in (0..count).chain([u16::MAX]) {
            let key = KeyId::from_u128(id.into());
            let answer = view.lookup(key, view.prefetch(key), digest_prefix(id));
            assert_eq!(matches!(answer, IndexLookup::Hit(_)), id < count, "{id}");
        }
    }
}

/// Fails if the index returns the data of another key that has the same hash.
#[test]
fn keys_with_equal_hashes_are_kept_apart() {
    let index = Arc::new(Index {
        hashing: Hashing::of_words(|_| 0),
        ..Index::default()
    });
    let count = 30_u16;
    let secret = |id: u16| Digest::sha256(id.to_le_bytes());
    let records: Vec<_> = (0..count)
        .map(|id| {
            let mut row = record(id, [(id % 5) as u8, 0, 0]);
            if let Credential::Peppered { digest, .. } = &mut row.credential {
                *digest = secret(id);
            }
            row
        })
        .collect();
    index.apply(records.iter().map(|record| Change {
        revision: Revision(1),
        row: StoreRow::Key(Box::new(record.clone())),
    }));
    let view = View::of(index);
    for record in &records {
        let id = record.id;
        let digest_prefix = DigestPrefix::of(secret(id.to_u128() as u16).as_bytes());
        let answer = view.lookup(id, view.prefetch(id), digest_prefix);
        assert!(matches!(answer, IndexLookup::Hit(hit) if hit.id == id));
        let attributes = view.attributes_of(id).unwrap();
        assert_eq!(attributes.key_owner.get().owner, record.owner);
        assert_eq!(attributes.key_owner.get().tenant, record.tenant);
        assert_eq!(view.row_kind(id), Some(RowKind::Key));
    }
    let stranger = KeyId::from_u128(u128::from(count));
    assert_eq!(view.row_kind(stranger), None);
    assert!(view.attributes_of(stranger).is_none());
    let digest_prefix = DigestPrefix::of(secret(count).as_bytes());
    let answer = view.lookup(stranger, view.prefetch(stranger), digest_prefix);
    assert!(!matches!(answer, IndexLookup::Hit(_)));
}

#[test]
fn a_key_that_differs_in_one_thing_has_other_traits_than_the_key_before() {
    let base = record(1, [0, 0, 0]);
    let change: [fn(&mut KeyRecord); 9] = [
        |record| record.class = "other".parse().unwrap(),
        |record| record.key_type = KeyType::Publishable,
        |record| record.environment = "test".parse().unwrap(),
        |record| record.prefix = Some("sk_".try_into().unwrap()),
        |record| record.bound = BTreeSet::from([Role::ADMIN]),
        |record| record.scopes = ScopeSet::all(),
        |record| record.allowlist = AddressAllowlist::parse(["10.0.0.0/8"]).unwrap(),
        |record| {
            record.resource = Some(Resource {
                kind: "app".parse().unwrap(),
                id: "1".parse().unwrap(),
            });
        },
        |record| {
            let (pepper, digest) = (PepperId::new("q").unwrap(), digest(0));
            record.credential = Credential::Peppered { pepper, digest };
        },
    ];
    for (number, change) in change.into_iter().enumerate() {
        let mut other = base.clone();
        change(&mut other);
        assert!(KeyTraits::of(&base).is_of(&base), "{number}");
        assert!(!KeyTraits::of(&base).is_of(&other), "{number}");
        assert!(KeyTraits::of(&other).is_of(&other), "{number}");
    }
}
