//! Recovery from a damaged store, and from the file that a salvage made of it. Damage can remove the end of a trail
//! together with the signs that there was more of it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use keyward::command::{Created, Expiry};
use keyward::policy::Policy;
use keyward::recovery::{Recovery, RecoveryReport};
use keyward::store::SqliteStore;
use keyward::{Actor, Keyward, ManualClock, Reason, Role, UpdateKey, days, profiles};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::sqlite::damage::lose_writes;
use crate::sqlite::{Desk, checkpoint, sql};
use support::process::rounds;
use support::*;

/// The keys of a store with two tenants.
struct Made {
    /// Keys that were revoked or disabled after the backup.
    ended: Vec<Created>,
    /// Keys that did not change.
    others: Vec<Created>,
}

fn beta() -> Actor {
    Actor::application(tenant("beta"))
}

/// Fills the store, and makes `backup.db` of it. Then changes keys, copies the file to `older.db`, and ends keys of both
/// tenants.
fn lost(desk: &Desk) -> Made {
    let store = desk.store();
    let keys = desk.node(store.clone());
    let tenants = [host(), beta()];
    let create = |by: &Actor, name: &str| wait(keys.create(by, reader(name))).unwrap();
    let made = tenants
        .each_ref()
        .map(|by| [1, 2, 3, 4].map(|number| create(by, &format!("key {number}"))));
    wait(store.backup(desk.at("backup.db"))).unwrap();
    for (by, own) in tenants.iter().zip(&made) {
        wait(keys.disable(by, own[3].id)).unwrap();
        wait(keys.enable(by, own[3].id)).unwrap();
        wait(keys.disable(by, own[2].id)).unwrap();
    }
    checkpoint(&desk.path());
    fs::copy(desk.path(), desk.at("older.db")).unwrap();
    for (by, own) in tenants.iter().zip(&made) {
        wait(keys.revoke(by, own[0].id, Reason::Leaked)).unwrap();
    }
    drop((keys, store));
    checkpoint(&desk.path());
    let mut keys = Made {
        ended: Vec::new(),
        others: Vec::new(),
    };
    for [revoked, other, disabled, enabled] in made {
        keys.ended.extend([revoked, disabled]);
        keys.others.extend([other, enabled]);
    }
    keys
}

fn unrecovered(path: &Path) -> SqliteStore {
    wait(SqliteStore::options(path).allow_unrecovered().open()).unwrap()
}

/// Restores `backup.db` to `to`, and returns the service of the restored store.
fn restored(desk: &Desk, to: &str) -> Keyward {
    wait(SqliteStore::restore(desk.at("backup.db"), desk.at(to))).unwrap();
    desk.node(unrecovered(&desk.at(to)))
}

fn accepts(keys: &Keyward, key: &Created) -> bool {
    keys.verify(key.secret.expose(), &reading()).is_ok()
}

/// Returns a statement that damages one of the newest rows of a table.
fn damage(random: &mut StdRng) -> String {
    let (table, key) =
        [("rows", "place"), ("audit", "place"), ("tenants", "tenant")][random.random_range(0..3)];
    let nth: u8 = random.random_range(0..4);
    let row = format!("(SELECT {key} FROM {table} ORDER BY {key} DESC LIMIT 1 OFFSET {nth})");
    match random.random_range(0..2) {
        0 => format!("UPDATE {table} SET seal = seal + 1 WHERE {key} = {row}"),
        _ => format!("DELETE FROM {table} WHERE {key} = {row}"),
    }
}

/// One to four damages: damaged and lost rows, and tables whose newest writes are lost. The newest writes to all tables
/// together are never lost, because that is an older state of the store, which nothing contradicts.
#[test]
fn no_damage_of_the_lost_store_revives_a_key_in_a_replay() {
    let base = Desk::new();
    let made = lost(&base);
    let (mut replayed, mut refused) = (0, 0);
    for seed in 0..rounds(40, 2_000) {
        let desk = Desk::new();
        for name in ["keys.db", "backup.db", "older.db"] {
            fs::copy(base.at(name), desk.at(name)).unwrap();
        }
        let mut random = StdRng::seed_from_u64(u64::try_from(seed).unwrap());
        let mut case = Vec::new();
        let tables = ["rows", "audit", "tenants", "commits"];
        let kept = random.random_range(0..tables.len());
        for (number, table) in tables.into_iter().enumerate() {
            if number != kept && random.random_range(0..3) == 0 {
                lose_writes(&desk, table);
                case.push(format!("lost writes of {table}"));
            }
        }
        for _ in 0..random.random_range(1..3) {
            let statement = damage(&mut random);
            sql(&desk.path()).execute_batch(&statement).unwrap();
            case.push(statement);
        }
        let saved = wait(SqliteStore::salvage(desk.path(), desk.at("saved.db")));
        for (name, is_there) in [("keys.db", true), ("saved.db", saved.is_ok())] {
            if !is_there {
                continue;
            }
            let keys = restored(&desk, &format!("new-{name}"));
            let source = Arc::new(unrecovered(&desk.at(name)));
            match wait(keys.recover(Recovery::ReplayFrom(source))) {
                Ok(report) => {
                    replayed += 1;
                    for key in &made.ended {
                        assert!(!accepts(&keys, key), "{name}, {case:?}: {report:?}");
                    }
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(replayed > refused / 4, "{replayed} of {refused}");
}

#[test]
fn a_store_without_damage_proves_each_key() {
    let desk = Desk::new();
    let made = lost(&desk);
    let saved = wait(SqliteStore::salvage(desk.path(), desk.at("saved.db"))).unwrap();
    assert!(saved.is_sound() && saved.missing.is_empty(), "{saved:?}");
    for name in ["keys.db", "saved.db"] {
        let keys = restored(&desk, &format!("new-{name}"));
        let source = Arc::new(unrecovered(&desk.at(name)));
        let report = wait(keys.recover(Recovery::ReplayFrom(source))).unwrap();
        assert_eq!(report.loss, None, "{report:?}");
        for key in &made.others {
            assert!(accepts(&keys, key), "{name}: {report:?}");
        }
        for key in &made.ended {
            assert!(!accepts(&keys, key), "{name}: {report:?}");
        }
    }
}

/// Salvages the store, recovers the new file as it is, and returns the report of the salvage.
fn salvage_and_trust(desk: &Desk) -> keyward::store::IntegrityReport {
    let saved = wait(SqliteStore::salvage(desk.path(), desk.at("saved.db"))).unwrap();
    let store = unrecovered(&desk.at("saved.db"));
    wait(desk.node(store.clone()).recover(Recovery::TrustBackup)).unwrap();
    wait(store.finish_recovery()).unwrap();
    saved
}

#[test]
fn the_lost_end_of_a_trail_is_reported_and_stays_known() {
    let desk = Desk::new();
    lost(&desk);
    lose_writes(&desk, "tenants");
    lose_writes(&desk, "audit");
    let saved = salvage_and_trust(&desk);
    let is_cut = |fault: &String| fault.contains("so later entries are lost");
    assert_eq!(saved.faults.iter().filter(|fault| is_cut(fault)).count(), 2);
    let store = wait(SqliteStore::open(desk.at("saved.db"))).unwrap();
    let losses = || {
        let report = wait(store.check_integrity()).unwrap();
        assert!(report.is_sound(), "{report:?}");
        report.losses
    };
    let before = losses();
    assert_eq!(before.len(), 2, "{before:?}");
    assert!(
        before.iter().all(|loss| loss.contains("may be lost")),
        "{before:?}"
    );
    let keys = desk.node(store.clone());
    wait(keys.create(&host(), reader("after the salvage"))).unwrap();
    wait(keys.verify_audit(&host(), &tenant("acme"), None)).unwrap();
    assert_eq!(losses(), before);
}

/// The newest commit has neither a row nor an audit entry.
#[test]
fn a_commit_of_which_nothing_is_left_is_a_fault() {
    let desk = Desk::new();
    lost(&desk);
    for table in ["tenants", "audit", "rows"] {
        lose_writes(&desk, table);
    }
    let report = wait(desk.store().check_integrity()).unwrap();
    let [_, fault] = &report.faults[..] else {
        panic!("one fault for each revocation: {report:?}");
    };
    assert!(fault.contains("audit entries of commit"), "{fault}");
}

/// Removes every trace of a tenant's newest commit, except for the commit itself.
fn lose_newest_commit_of(desk: &Desk, tenant: &str) {
    let older = desk.at("older.db");
    let lose = format!(
        "ATTACH '{older}' AS older; BEGIN;
         DELETE FROM main.rows WHERE tenant = '{tenant}';
         INSERT INTO main.rows SELECT * FROM older.rows WHERE tenant = '{tenant}';
         DELETE FROM main.audit WHERE tenant = '{tenant}';
         INSERT INTO main.audit SELECT * FROM older.audit WHERE tenant = '{tenant}';
         DELETE FROM main.tenants WHERE tenant = '{tenant}';
         INSERT INTO main.tenants SELECT * FROM older.tenants WHERE tenant = '{tenant}';
         COMMIT",
        older = older.display()
    );
    sql(&desk.path()).execute_batch(&lose).unwrap();
}

/// Later commits of another tenant are whole.
#[test]
fn a_commit_that_one_tenant_lost_is_a_fault_and_proves_no_key() {
    let desk = Desk::new();
    let made = lost(&desk);
    lose_newest_commit_of(&desk, "acme");
    let report = wait(desk.store().check_integrity()).unwrap();
    let [fault] = &report.faults[..] else {
        panic!("{report:?}");
    };
    assert!(
        fault.contains("rows and audit entries of commit"),
        "{fault}"
    );
    let saved = wait(SqliteStore::salvage(desk.path(), desk.at("saved.db"))).unwrap();
    assert!(saved.faults.contains(fault), "{saved:?}");
    for name in ["keys.db", "saved.db"] {
        let keys = restored(&desk, &format!("new-{name}"));
        let source = Arc::new(unrecovered(&desk.at(name)));
        let report = wait(keys.recover(Recovery::ReplayFrom(source))).unwrap();
        for key in &made.ended {
            assert!(!accepts(&keys, key), "{name}: {report:?}");
        }
    }
}

/// A crash between the first commit of a bulk command and the next one leaves keys that only the row of their owner, or
/// of their tenant, refuses.
#[test]
fn a_row_that_is_older_than_the_end_of_its_owner_or_tenant_is_a_fault_and_is_not_salvaged() {
    for closes in [false, true] {
        let desk = Desk::new();
        let keys = desk.keys();
        let ann = actor("acme", "ann", Role::ADMIN);
        wait(keys.create(&ann, reader("of ann"))).unwrap();
        checkpoint(&desk.path());
        fs::copy(desk.path(), desk.at("older.db")).unwrap();
        if closes {
            wait(keys.close_tenant(&host(), &tenant("acme"))).unwrap();
        } else {
            wait(keys.remove_owner(&host(), &tenant("acme"), who("ann"))).unwrap();
        }
        drop(keys);
        checkpoint(&desk.path());
        lose_writes(&desk, "rows");
        let name = if closes {
            "tenant acme"
        } else {
            "owner ann in tenant acme"
        };
        let report = wait(desk.store().check_integrity()).unwrap();
        let is_old = |fault: &String| fault.starts_with(&format!("{name}: its row is of revision"));
        assert!(report.faults.iter().any(is_old), "{report:?}");
        let saved = salvage_and_trust(&desk);
        assert!(
            saved
                .faults
                .contains(&format!("{name}: its row is damaged")),
            "{saved:?}"
        );
        let store = wait(SqliteStore::open(desk.at("saved.db"))).unwrap();
        let report = wait(store.check_integrity()).unwrap();
        assert!(report.is_sound(), "{report:?}");
        let keys = desk.node(store);
        let again = wait(keys.create(&ann, reader("another")));
        assert!(again.is_err(), "{name}: {again:?}");
    }
}

/// Only the row says that the tenant is closed.
#[test]
fn a_closed_tenant_without_head_and_trail_stays_closed() {
    let desk = Desk::new();
    lost(&desk);
    let keys = desk.keys();
    wait(keys.close_tenant(&beta(), &tenant("beta"))).unwrap();
    drop(keys);
    checkpoint(&desk.path());
    let damage =
        "DELETE FROM audit WHERE tenant = 'beta'; DELETE FROM tenants WHERE tenant = 'beta'";
    sql(&desk.path()).execute_batch(damage).unwrap();
    let saved = salvage_and_trust(&desk);
    let is_kept =
        |fault: &String| fault == "tenant beta: its audit entries are lost; it stays closed";
    assert!(saved.faults.iter().any(is_kept), "{saved:?}");
    let store = wait(SqliteStore::open(desk.at("saved.db"))).unwrap();
    let report = wait(store.check_integrity()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let denied = wait(desk.node(store).create(&beta(), reader("another")));
    assert!(denied.is_err(), "{denied:?}");
}

/// The row of a key is old, and the entry about its revocation is damaged. The entry still names the key.
#[test]
fn a_damaged_entry_about_a_key_keeps_an_older_row_out_of_the_salvage() {
    let desk = Desk::new();
    let made = lost(&desk);
    lose_writes(&desk, "rows");
    let damage = "UPDATE audit SET seal = seal + 1 WHERE place = (SELECT max(place) FROM audit)";
    sql(&desk.path()).execute_batch(damage).unwrap();
    let saved = salvage_and_trust(&desk);
    let store = wait(SqliteStore::open(desk.at("saved.db"))).unwrap();
    let keys = desk.node(store);
    for key in &made.ended {
        assert!(!accepts(&keys, key), "{saved:?}");
    }
    assert!(
        made.others.iter().all(|key| accepts(&keys, key)),
        "{saved:?}"
    );
}

fn trail_of<'a>(report: &'a RecoveryReport, path: &str) -> &'a keyward::recovery::ReplayedTrail {
    let of = |trail: &&keyward::recovery::ReplayedTrail| trail.tenant == tenant(path);
    report.trails.iter().find(of).unwrap()
}

/// Damages an old entry in the middle of the trail of `acme`, in the file with this name.
fn damage_an_old_entry(path: &Path) {
    let damage = "UPDATE audit SET seal = seal + 1 WHERE tenant = 'acme' AND sequence = 2";
    sql(path).execute_batch(damage).unwrap();
}

/// A gap that was recorded before the backup was made is part of both histories.
#[test]
fn a_trail_with_a_recorded_gap_is_replayed() {
    let desk = Desk::new();
    let made = lost(&desk);
    damage_an_old_entry(&desk.path());
    salvage_and_trust(&desk);
    let store = wait(SqliteStore::open(desk.at("saved.db"))).unwrap();
    fs::remove_file(desk.at("backup.db")).unwrap();
    wait(store.backup(desk.at("backup.db"))).unwrap();
    let keys = desk.node(store.clone());
    wait(keys.revoke(&host(), made.others[0].id, Reason::Leaked)).unwrap();
    let again = restored(&desk, "new.db");
    let report = wait(again.recover(Recovery::ReplayFrom(Arc::new(store)))).unwrap();
    assert_eq!(
        (report.loss.as_ref(), report.revoked),
        (None, 1),
        "{report:?}"
    );
    assert!(!trail_of(&report, "acme").disabled, "{report:?}");
    assert!(!accepts(&again, &made.others[0]));
    assert!(accepts(&again, &made.others[1]));
}

/// The other store lost entries after the backup was made, and a recovery recorded it.
#[test]
fn a_trail_that_lost_entries_after_the_backup_proves_nothing() {
    let desk = Desk::new();
    let made = lost(&desk);
    let damage = "UPDATE audit SET seal = seal + 1 WHERE tenant = 'acme' AND sequence = 6";
    sql(&desk.path()).execute_batch(damage).unwrap();
    salvage_and_trust(&desk);
    let store = wait(SqliteStore::open(desk.at("saved.db"))).unwrap();
    let query = keyward::store::AuditQuery::all().with(|query| {
        query.limit = std::num::NonZeroUsize::new(10_000).unwrap();
    });
    let page = wait(keyward::store::KeyStore::audit(&store, &query)).unwrap();
    let entries = page.rows.into_iter().map(|row| row.entry).collect();
    let keys = restored(&desk, "new.db");
    let is_whole = true;
    let report = wait(keys.recover(Recovery::Replay { entries, is_whole })).unwrap();
    assert!(
        report.trails.iter().all(|trail| trail.disabled),
        "{report:?}"
    );
    for key in &made.ended {
        assert!(!accepts(&keys, key), "{report:?}");
    }
}

/// The lost store is whole. Its trail fills the gap of the salvaged backup.
#[test]
fn a_salvaged_backup_is_recovered_from_the_lost_store() {
    let desk = Desk::new();
    let made = lost(&desk);
    damage_an_old_entry(&desk.at("backup.db"));
    wait(SqliteStore::salvage(
        desk.at("backup.db"),
        desk.at("new.db"),
    ))
    .unwrap();
    let keys = desk.node(unrecovered(&desk.at("new.db")));
    let source = Arc::new(desk.store());
    let report = wait(keys.recover(Recovery::ReplayFrom(source))).unwrap();
    assert!(
        report.trails.iter().all(|trail| !trail.disabled),
        "{report:?}"
    );
    assert_eq!(report.revoked, 2, "{report:?}");
    for key in &made.ended {
        assert!(!accepts(&keys, key), "{report:?}");
    }
    assert!(made.others.iter().all(|key| accepts(&keys, key)));
}

/// A clock that is ahead makes keys look expired. They verify once the clock is right.
#[test]
fn a_recovery_with_a_clock_that_is_ahead_leaves_out_no_key() {
    for replays in [false, true] {
        let desk = Desk::new();
        let store = desk.store();
        let keys = desk.node(store.clone());
        let create = |name: &str| {
            let key = reader(name).expires_in(days(90));
            wait(keys.create(&host(), key)).unwrap()
        };
        let [disabled, narrowed] = ["one", "two"].map(create);
        wait(store.backup(desk.at("backup.db"))).unwrap();
        wait(keys.disable(&host(), disabled.id)).unwrap();
        let sooner = UpdateKey::new().expiry(Expiry::In(days(1)));
        wait(keys.update(&host(), narrowed.id, sooner)).unwrap();

        wait(SqliteStore::restore(
            desk.at("backup.db"),
            desk.at("new.db"),
        ))
        .unwrap();
        let ahead = Arc::new(ManualClock::at(at(START).saturating_add(days(400))));
        let policy = Policy::new(profiles::standard()).unwrap();
        let operator = node(unrecovered(&desk.at("new.db")), &ahead, policy);
        let recovery = match replays {
            true => Recovery::ReplayFrom(Arc::new(store)),
            false => Recovery::DisableAll,
        };
        let report = wait(operator.recover(recovery)).unwrap();
        desk.clock.advance(days(2));
        let right = desk.node(unrecovered(&desk.at("new.db")));
        for key in [&disabled, &narrowed] {
            assert!(!accepts(&right, key), "{replays}: {report:?}");
        }
    }
}

/// The salvage lacks an entry in the middle of a trail. What it still has is repeated.
#[test]
fn a_salvaged_trail_with_a_gap_is_replayed_and_proves_no_key() {
    let desk = Desk::new();
    let made = lost(&desk);
    damage_an_old_entry(&desk.path());
    wait(SqliteStore::salvage(desk.path(), desk.at("saved.db"))).unwrap();
    let keys = restored(&desk, "new.db");
    let source = Arc::new(unrecovered(&desk.at("saved.db")));
    let report = wait(keys.recover(Recovery::ReplayFrom(source))).unwrap();
    assert_eq!(report.revoked, 2, "{report:?}");
    for key in made.ended.iter().chain(&made.others) {
        assert!(!accepts(&keys, key), "{report:?}");
    }
}

/// Each further recovery would add an entry that makes the trail seem cut.
#[test]
fn the_losses_of_a_salvage_are_recorded_once() {
    let desk = Desk::new();
    lost(&desk);
    damage_an_old_entry(&desk.path());
    salvage_and_trust(&desk);
    let saved = desk.at("saved.db");
    let losses = || {
        let store = wait(SqliteStore::open(&saved)).unwrap();
        wait(store.check_integrity()).unwrap().losses
    };
    let before = losses();
    let store = wait(SqliteStore::open(&saved)).unwrap();
    wait(store.start_new_epoch()).unwrap();
    let store = unrecovered(&saved);
    wait(desk.node(store.clone()).recover(Recovery::TrustBackup)).unwrap();
    wait(store.finish_recovery()).unwrap();
    drop(store);
    assert_eq!(losses(), before);
}

#[test]
fn a_damaged_mark_of_a_salvage_stops_no_recovery() {
    let desk = Desk::new();
    let made = lost(&desk);
    damage_an_old_entry(&desk.path());
    wait(SqliteStore::salvage(desk.path(), desk.at("saved.db"))).unwrap();
    let damage = "UPDATE documents SET seal = seal - 1 WHERE name = 'salvage'";
    assert_eq!(sql(&desk.at("saved.db")).execute(damage, []).unwrap(), 1);
    let store = unrecovered(&desk.at("saved.db"));
    let keys = desk.node(store.clone());
    wait(keys.recover(Recovery::DisableAll)).unwrap();
    assert!(made.others.iter().all(|key| !accepts(&keys, key)));
    let report = wait(store.check_integrity()).unwrap();
    assert_eq!(report.losses.len(), 3, "one gap, and two ends: {report:?}");
}

/// Neither is part of the history, so no key is in doubt.
#[test]
fn an_index_of_another_program_and_a_damaged_document_are_no_loss() {
    let desk = Desk::new();
    let made = lost(&desk);
    let store = desk.store();
    let documents = keyward::store::KeyStore::documents(&store).unwrap();
    let name = keyward::store::DocumentName::new("app.cursor").unwrap();
    let write = keyward::store::DocumentWrite::new(name, 0, b"7".to_vec());
    wait(documents.write_document(write)).unwrap();
    drop(store);
    let change = "CREATE INDEX mine ON audit (sequence); UPDATE documents SET seal = seal - 1 WHERE name = 'app.cursor'";
    sql(&desk.path()).execute_batch(change).unwrap();
    let report = wait(desk.store().check_integrity()).unwrap();
    assert_eq!(report.faults.len(), 2, "{report:?}");
    let keys = restored(&desk, "new.db");
    let report = wait(keys.recover(Recovery::ReplayFrom(Arc::new(desk.store())))).unwrap();
    assert_eq!(report.loss, None);
    assert!(
        made.others.iter().all(|key| accepts(&keys, key)),
        "{report:?}"
    );
}
