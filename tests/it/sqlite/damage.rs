//! Damaged files: a read names the damaged row, and all other rows stay usable.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;

use keyward::store::{AuditQuery, Change, KeyQuery, KeyStore, Row, RowKey, SqliteStore};
use keyward::{Keyward, Need, Reason, VerifyError, days};
use rand::{RngExt, SeedableRng};
use rusqlite::params;

use crate::sqlite::{Desk, checkpoint, sql};
use support::*;

const ALL: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// Fills a store with rows of every kind and closes it. Returns the ids and tokens of its keys.
fn filled(desk: &Desk) -> Vec<(keyward::KeyId, String)> {
    let keys = desk.keys();
    let mut made = Vec::new();
    for number in 0..8 {
        let key = reader(&format!("key {number}")).expires_in(days(90));
        let created = wait(keys.create(&admin(), key)).unwrap();
        made.push((created.id, created.secret.expose().to_owned()));
    }
    wait(keys.revoke(&admin(), made[0].0, Reason::Lost)).unwrap();
    wait(keys.revoke(&admin(), made[1].0, Reason::Leaked)).unwrap();
    let digest = keyward::key::Digest::sha256("an imported key of old");
    wait(keys.import(
        &admin(),
        keyward::command::ImportKey::sha256(digest, reader("imported")),
    ))
    .unwrap();
    drop(keys);
    checkpoint(&desk.path());
    made
}

fn flip(desk: &Desk, table: &str, condition: &str, column: &str) {
    let change = format!(
        "UPDATE {table} SET {column} = CAST(substr({column}, 1, 5) || x'07' || substr({column}, 7) \
         AS BLOB) WHERE {condition}"
    );
    assert_eq!(
        sql(&desk.path()).execute(&change, []).unwrap(),
        1,
        "{change}"
    );
}

#[test]
fn a_damaged_key_is_refused_by_name_and_affects_no_other_key() {
    let desk = Desk::new();
    let made = filled(&desk);
    let (id, secret) = &made[3];
    let named = format!("id = x'{:032x}'", id.to_u128());
    flip(&desk, "rows", &named, "body");
    let keys = desk.keys();
    let refused = keys.verify(secret, &Need::any()).unwrap_err();
    assert!(
        matches!(&refused, VerifyError::Corrupt { key } if key == id),
        "{refused:?}"
    );
    keys.verify(&made[4].1, &reading()).unwrap();
    let denied_by = denied(wait(keys.revoke(&host(), *id, Reason::Lost)));
    assert!(matches!(denied_by, keyward::Denial::CorruptRecord { key } if key == *id));
    let report = wait(desk.store().check_integrity()).unwrap();
    assert_eq!(report.faults.len(), 1, "{report:?}");
    assert!(report.faults[0].contains(&id.to_string()), "{report:?}");
    let listed = wait(desk.store().list(&KeyQuery::all(at(START)))).unwrap();
    assert_eq!((listed.corrupt, listed.keys.len()), (vec![*id], 8));
}

#[test]
fn the_integrity_check_names_a_tenant_without_a_head() {
    let desk = Desk::new();
    filled(&desk);
    sql(&desk.path())
        .execute("DELETE FROM tenants WHERE tenant = 'acme'", [])
        .unwrap();
    let report = wait(desk.store().check_integrity()).unwrap();
    assert_eq!(report.faults.len(), 1, "{report:?}");
    assert!(report.faults[0].contains("acme"), "{report:?}");
}

#[test]
fn a_damaged_owners_row_refuses_its_keys_and_no_others() {
    let desk = Desk::new();
    let made = filled(&desk);
    let keys = desk.keys();
    let bob = actor("acme", "bob", keyward::Role::ADMIN);
    let bobs = wait(keys.create(&bob, reader("bob's"))).unwrap();
    drop(keys);
    flip(&desk, "rows", "kind = 1 AND name = 'alice'", "body");
    let keys = desk.keys();
    let refused = keys.verify(&made[4].1, &Need::any()).unwrap_err();
    assert!(
        matches!(refused, VerifyError::Corrupt { .. }),
        "{refused:?}"
    );
    keys.verify(bobs.secret.expose(), &reading()).unwrap();
}

#[test]
fn a_damaged_audit_entry_breaks_the_chain() {
    let desk = Desk::new();
    filled(&desk);
    flip(&desk, "audit", "sequence = 4", "body");
    let page = wait(desk.store().audit(&AuditQuery::tenant(tenant("acme")))).unwrap();
    let places: Vec<_> = page.corrupt.iter().map(|place| place.sequence).collect();
    assert_eq!(places, [4]);
    let checked = wait(desk.keys().verify_audit(&admin(), &tenant("acme"), None));
    let error = checked.unwrap_err().to_string();
    assert!(error.contains("entry 4 should follow"), "{error}");
}

#[test]
fn a_trail_with_a_damaged_or_missing_end_fails_verification() {
    let desk = Desk::new();
    filled(&desk);
    let conn = sql(&desk.path());
    let last = "sequence = (SELECT max(sequence) FROM audit)";
    conn.execute(&format!("UPDATE audit SET body = x'00' WHERE {last}"), [])
        .unwrap();
    let checked = || wait(desk.keys().verify_audit(&admin(), &tenant("acme"), None));
    assert!(
        checked()
            .unwrap_err()
            .to_string()
            .contains("does not contain the saved head")
    );
    conn.execute("DELETE FROM audit", []).unwrap();
    assert!(
        checked()
            .unwrap_err()
            .to_string()
            .contains("does not contain the saved head")
    );
}

#[test]
fn a_tenants_damaged_head_stops_only_that_tenant() {
    let desk = Desk::new();
    let made = filled(&desk);
    let other = actor("beta", "carol", keyward::Role::ADMIN);
    let keys = desk.keys();
    wait(keys.create(&other, reader("carol's"))).unwrap();
    let change = "UPDATE tenants SET sequence = sequence - 1 WHERE tenant = ?1";
    sql(&desk.path()).execute(change, params!["acme"]).unwrap();
    let refused = wait(keys.revoke(&admin(), made[4].0, Reason::Lost)).unwrap_err();
    assert!(format!("{refused:?}").contains("Corrupt"), "{refused:?}");
    wait(keys.create(&other, reader("carol's second"))).unwrap();
    let report = wait(desk.store().check_integrity()).unwrap();
    assert!(
        report
            .faults
            .iter()
            .any(|fault| fault.contains("tenant acme")),
        "{report:?}"
    );
}

const FLIPS: usize = 1000;

/// Returns every intact row in the store, by row key.
fn intact_rows(store: &SqliteStore) -> Option<BTreeMap<RowKey, Change>> {
    let page = wait(store.scan(None, ALL)).ok()?;
    let intact = page
        .rows
        .into_iter()
        .filter(|change| !matches!(change.row, Row::Corrupt(_)));
    Some(intact.map(|change| (change.row.key(), change)).collect())
}

fn trail(store: &SqliteStore) -> Option<Vec<keyward::store::AuditRow>> {
    let query = AuditQuery::all().with(|query| query.limit = ALL);
    Some(wait(store.audit(&query)).ok()?.rows)
}

#[test]
fn a_flipped_bit_never_produces_a_wrong_answer() {
    let desk = Desk::new();
    filled(&desk);
    let whole = fs::read(desk.path()).unwrap();
    let store = desk.store();
    let rows = intact_rows(&store).unwrap();
    let entries = trail(&store).unwrap();
    drop(store);
    let mut random = rand::rngs::ChaCha12Rng::seed_from_u64(7);
    let (mut seen, mut harmless) = (0, 0);
    for _ in 0..FLIPS {
        let bit = random.random_range(0..whole.len() * 8);
        let flipped = Desk::new();
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(flipped.path(), bytes).unwrap();
        fs::set_permissions(flipped.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let options = SqliteStore::options(flipped.path());
        let Ok(store) = wait(options.open()) else {
            seen += 1;
            continue;
        };
        let (now, now_entries) = (intact_rows(&store), trail(&store));
        let sound = wait(store.check_integrity()).is_ok_and(|report| report.is_sound());
        let whole_answer = now.as_ref() == Some(&rows) && now_entries.as_ref() == Some(&entries);
        assert!(
            whole_answer || !sound,
            "bit {bit} changes an answer, and no check detects it"
        );
        for (name, change) in now.unwrap_or_default() {
            assert_eq!(rows.get(&name), Some(&change), "bit {bit}: {name:?}");
        }
        for row in now_entries.unwrap_or_default() {
            assert!(entries.contains(&row), "bit {bit}: {row:?}");
        }
        if sound { harmless += 1 } else { seen += 1 }
    }
    assert!(
        seen > 100,
        "{seen} of {FLIPS} seen, {harmless} harmless: the flips hit nothing"
    );
}

#[test]
fn no_file_contains_a_secret_or_a_pepper() {
    let desk = Desk::new();
    let keys: Keyward = desk.keys();
    let mut secrets = Vec::new();
    for number in 0..20 {
        let created = wait(keys.create(&admin(), reader(&format!("key {number}")))).unwrap();
        secrets.push(secret_part(created.secret.expose()).to_owned());
    }
    wait(desk.store().backup(desk.at("backup.db"))).unwrap();
    let mut files = 0;
    for file in fs::read_dir(desk.path().parent().unwrap()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        assert!(!secrets.iter().any(|secret| holds(secret.as_bytes())));
        assert!(!holds(&[1; 32]), "the pepper is 32 ones");
        files += 1;
    }
    assert!(files >= 2);
}
