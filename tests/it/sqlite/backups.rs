//! Backups, restores, files of older versions, and a file that replaces an open one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use keyward::recovery::{Recovery, RecoveryError};
use keyward::store::sqlite::OpenError;
use keyward::store::{Commit, CommitTag, Effects, KeyQuery, KeyStore, Revision, SqliteStore};
use keyward::{Actor, Need, Reason, VerifyError, days};

use crate::sqlite::{Desk, checkpoint};
use support::*;

#[test]
fn a_backup_is_one_private_file_with_the_state_of_one_instant() {
    let desk = Desk::new();
    let store = desk.store();
    let keys = desk.node(store.clone());
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    let head = wait(store.backup(desk.at("backup.db"))).unwrap();
    assert_eq!(head, wait(store.stats()).unwrap().head);
    let mode = fs::metadata(desk.at("backup.db"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = wait(store.backup(desk.at("backup.db")));
    assert!(matches!(again, Err(OpenError::Exists { .. })));
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let direct = wait(SqliteStore::open(desk.at("backup.db")));
    assert!(
        matches!(direct, Err(OpenError::Unrecovered { .. })),
        "a backup is marked as unrecovered"
    );
    let options = SqliteStore::options(desk.at("backup.db")).allow_unrecovered();
    let opened = wait(options.open()).unwrap();
    assert!(wait(opened.check_integrity()).unwrap().is_sound());
    for end in ["-reserve", "-nodes"] {
        assert!(!desk.at(&format!("backup.db{end}")).exists());
        assert!(desk.at(&format!("keys.db{end}")).exists());
    }
}

#[test]
fn a_restored_store_opens_only_for_recovery_and_its_followers_start_over() {
    let desk = Desk::new();
    let store = desk.store();
    let service = desk.node(store.clone());
    let key = wait(service.create(&admin(), reader("first"))).unwrap();
    wait(store.backup(desk.at("backup.db"))).unwrap();
    for number in 0..3 {
        wait(service.create(&admin(), reader(&format!("later {number}")))).unwrap();
    }
    service.verify(key.secret.expose(), &reading()).unwrap();
    let lost = wait(store.stats()).unwrap().head;
    let occupied = wait(SqliteStore::restore(desk.at("backup.db"), desk.path()));
    assert!(
        matches!(occupied, Err(OpenError::Exists { .. })),
        "nothing is overwritten"
    );

    // The operator moves the broken file and its log away while the service runs.
    for end in ["", "-wal", "-shm"] {
        let from = desk.at(&format!("keys.db{end}"));
        if from.exists() {
            fs::rename(from, desk.at(&format!("broken.db{end}"))).unwrap();
        }
    }
    let gone = format!("{:?}", wait(service.sync()).unwrap_err());
    assert!(gone.contains("was moved or removed"), "{gone}");
    wait(SqliteStore::restore(desk.at("backup.db"), desk.path())).unwrap();
    assert!(matches!(
        wait(SqliteStore::open(desk.path())),
        Err(OpenError::Unrecovered { .. })
    ));
    // The running service sees that the file was replaced. It refuses the restored file until the recovery is
    // finished.
    let error = format!("{:?}", wait(service.sync()).unwrap_err());
    assert!(error.contains("not recovered yet"), "{error}");
    let refused = wait(service.create(&admin(), reader("too early"))).unwrap_err();
    assert!(
        format!("{refused:?}").contains("not recovered yet"),
        "{refused:?}"
    );
    let blind = Commit {
        tenant: tenant("acme"),
        epoch: None,
        expected: Revision(1),
        guards: Vec::new(),
        tag: CommitTag(1),
        decided_at: at(START),
        effects: Effects::default(),
    };
    let refused = wait(store.commit(blind)).unwrap_err();
    assert!(
        format!("{refused:?}").contains("not recovered yet"),
        "{refused:?}"
    );
    let options = SqliteStore::options(desk.path()).allow_unrecovered();
    let restored = wait(options.open()).unwrap();
    wait(restored.finish_recovery()).unwrap();
    let opened = wait(SqliteStore::open(desk.path())).unwrap();
    let head = wait(opened.stats()).unwrap().head;
    assert!(head.revision < lost.revision, "the head went backwards");
    assert_ne!(head.epoch, lost.epoch);

    // The service had opened the lost file. It uses the recovered file without a restart.
    let operator = desk.node(opened);
    wait(operator.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    wait(service.sync()).unwrap();
    let refused = service
        .verify(key.secret.expose(), &Need::any())
        .unwrap_err();
    assert!(
        matches!(refused, VerifyError::Revoked { .. }),
        "{refused:?}"
    );
    assert_eq!(service.freshness().cursor.unwrap().epoch, head.epoch);
}

/// Copies the main file without its log, as a careless operator does.
fn copy_without_log(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_recovered_file_is_whole_without_its_log() {
    let desk = Desk::new();
    let (store, keys) = (desk.store(), desk.keys());
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    wait(store.backup(desk.at("backup.db"))).unwrap();
    wait(SqliteStore::restore(
        desk.at("backup.db"),
        desk.at("new.db"),
    ))
    .unwrap();
    let options = SqliteStore::options(desk.at("new.db")).allow_unrecovered();
    // Stays open during the copy, as in a process that ends without closing its connections.
    let restored = wait(options.open()).unwrap();
    let operator = desk.node(restored.clone());
    wait(operator.recover(Recovery::DisableAll)).unwrap();
    wait(restored.finish_recovery()).unwrap();
    copy_without_log(&desk.at("new.db"), &desk.at("copied.db"));
    let copied = desk.node(wait(SqliteStore::open(desk.at("copied.db"))).unwrap());
    let refused = copied
        .verify(key.secret.expose(), &Need::any())
        .unwrap_err();
    assert_eq!(refused, VerifyError::Disabled { key: key.id });
}

#[test]
fn a_checkpoint_moves_every_commit_into_the_main_file() {
    let desk = Desk::new();
    let store = desk.store();
    let keys = desk.node(store.clone());
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    wait(store.checkpoint()).unwrap();
    copy_without_log(&desk.path(), &desk.at("copied.db"));
    let copied = desk.node(wait(SqliteStore::open(desk.at("copied.db"))).unwrap());
    copied.verify(key.secret.expose(), &Need::any()).unwrap();
}

#[test]
fn a_checkpoint_that_a_reader_blocks_fails_and_loses_nothing() {
    let desk = Desk::new();
    let options = SqliteStore::options(desk.path()).busy_timeout(std::time::Duration::ZERO);
    let store = wait(options.open()).unwrap();
    let keys = desk.node(store.clone());
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    let reader_of_old_state = crate::sqlite::sql(&desk.path());
    reader_of_old_state
        .execute_batch("BEGIN; SELECT count(*) FROM rows;")
        .unwrap();
    wait(keys.create(&admin(), reader("second"))).unwrap();
    if store.journal_mode() == keyward::store::sqlite::JournalMode::Wal {
        let blocked = wait(store.checkpoint()).unwrap_err();
        assert!(format!("{blocked:?}").contains("try again"), "{blocked:?}");
    }
    drop(reader_of_old_state);
    wait(store.checkpoint()).unwrap();
    keys.verify(key.secret.expose(), &Need::any()).unwrap();
}

#[test]
fn a_backup_that_is_verified_refuses_damage_and_leaves_no_file() {
    let desk = Desk::new();
    let store = desk.store();
    let keys = desk.node(store.clone());
    wait(keys.create(&admin(), reader("first"))).unwrap();
    let head = wait(store.backup_verified(desk.at("good.db"))).unwrap();
    assert_eq!(head, wait(store.stats()).unwrap().head);
    let damage = "UPDATE rows SET body = x'00' WHERE kind = 2";
    crate::sqlite::sql(&desk.path())
        .execute(damage, [])
        .unwrap();
    wait(store.backup(desk.at("unseen.db"))).unwrap();
    let refused = wait(store.backup_verified(desk.at("bad.db"))).unwrap_err();
    assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused:?}");
    assert!(!desk.at("bad.db").exists());
}

#[test]
fn the_size_of_a_store_includes_its_log() {
    let desk = Desk::new();
    let store = desk.store();
    let keys = desk.node(store.clone());
    wait(keys.create(&admin(), reader("first"))).unwrap();
    if store.journal_mode() == keyward::store::sqlite::JournalMode::Wal {
        let log = fs::metadata(desk.at("keys.db-wal")).unwrap().len();
        assert!(log > 0);
        assert_eq!(wait(store.stats()).unwrap().log_bytes, log);
    }
    wait(store.checkpoint()).unwrap();
    assert_eq!(wait(store.stats()).unwrap().log_bytes, 0);
}

/// Writes 70 MB to the file and removes them again, as another program might.
fn waste(path: &Path) {
    let conn = crate::sqlite::sql(path);
    let sql = "PRAGMA wal_autocheckpoint = 0; CREATE TABLE waste (x); \
               INSERT INTO waste VALUES (zeroblob(70000000)); DROP TABLE waste;";
    conn.execute_batch(sql).unwrap();
    // Closing the last connection would remove the log.
}

#[test]
fn a_commit_empties_a_long_log() {
    let desk = Desk::new();
    let store = desk.store();
    let keys = desk.node(store.clone());
    wait(keys.create(&admin(), reader("first"))).unwrap();
    waste(&desk.path());
    let log = || wait(store.stats()).unwrap().log_bytes;
    if store.journal_mode() == keyward::store::sqlite::JournalMode::Wal {
        assert!(log() > 64 << 20);
    }
    for name in ["second", "third"] {
        // The writer looks at the log between two commits.
        wait(keys.create(&admin(), reader(name))).unwrap();
    }
    assert!(log() < 1 << 20);
}

#[test]
fn a_vacuumed_file_is_small_and_whole() {
    let desk = Desk::new();
    let store = desk.store();
    let keys = desk.node(store.clone());
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    waste(&desk.path());
    wait(store.checkpoint()).unwrap();
    assert!(fs::metadata(desk.path()).unwrap().len() > 70_000_000);
    wait(store.vacuum()).unwrap();
    assert!(fs::metadata(desk.path()).unwrap().len() < 1_000_000);
    wait(keys.sync()).unwrap();
    keys.verify(key.secret.expose(), &reading()).unwrap();
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    assert!(wait(store.check_integrity()).unwrap().is_sound());
}

#[test]
fn a_damaged_backup_is_not_restored() {
    let desk = Desk::new();
    let store = desk.store();
    let keys = desk.node(store.clone());
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    wait(store.backup(desk.at("backup.db"))).unwrap();
    let damage = "UPDATE rows SET body = x'00' WHERE kind = 2";
    crate::sqlite::sql(&desk.at("backup.db"))
        .execute(damage, [])
        .unwrap();
    let refused = wait(SqliteStore::restore(
        desk.at("backup.db"),
        desk.at("new.db"),
    ))
    .unwrap_err();
    assert!(
        refused.to_string().contains(&key.id.to_string()),
        "{refused}"
    );
    assert!(!desk.at("new.db").exists());
}

/// Version 1 of the format wrote the file `store.v1.db` and the tokens of its keys. See `tests/it/golden.rs`.
#[test]
fn a_file_of_version_1_opens_with_this_version() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/store.v1.db");
    let secrets = golden.with_extension("keys");
    if std::env::var_os("KEYWARD_WRITE_GOLDEN").is_some() && !golden.exists() {
        let desk = Desk::new();
        let keys = desk.keys();
        let live = wait(keys.create(&admin(), reader("live"))).unwrap();
        let lost = wait(keys.create(&admin(), reader("lost").expires_in(days(90)))).unwrap();
        wait(keys.revoke(&admin(), lost.id, Reason::Lost)).unwrap();
        let gone = wait(keys.create(&admin(), reader("gone"))).unwrap();
        wait(keys.revoke(&admin(), gone.id, Reason::Unused)).unwrap();
        wait(keys.delete(&admin(), gone.id, keyward::command::DeleteKey::plain())).unwrap();
        drop(keys);
        checkpoint(&desk.path());
        fs::copy(desk.path(), &golden).unwrap();
        let tokens = [&live, &lost, &gone].map(|key| key.secret.expose().to_owned());
        fs::write(&secrets, tokens.join("\n")).unwrap();
    }
    let desk = Desk::new();
    fs::write(desk.path(), fs::read(&golden).unwrap()).unwrap();
    fs::set_permissions(desk.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let keys = desk.keys();
    let tokens = fs::read_to_string(&secrets).unwrap();
    let tokens: Vec<_> = tokens.lines().collect();
    keys.verify(tokens[0], &reading()).unwrap();
    let lost = keys.verify(tokens[1], &reading()).unwrap_err();
    assert!(matches!(lost, VerifyError::Revoked { .. }), "{lost:?}");
    assert_eq!(
        keys.verify(tokens[2], &reading()).unwrap_err(),
        VerifyError::Unknown
    );
    let listed = wait(desk.store().list(&KeyQuery::all(at(START)))).unwrap();
    assert_eq!(listed.keys.len(), 2);
    wait(keys.verify_audit(&admin(), &tenant("acme"), None)).unwrap();
    assert!(wait(desk.store().check_integrity()).unwrap().is_sound());
    wait(keys.create(&admin(), reader("new"))).unwrap();
}

#[test]
fn a_file_is_recovered_only_from_a_store_that_goes_on_after_the_backup() {
    let desk = Desk::new();
    let store = desk.store();
    let service = desk.node(store.clone());
    let key = wait(service.create(&admin(), reader("key"))).unwrap();
    wait(store.backup(desk.at("backup.db"))).unwrap();
    wait(service.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    for restored in ["new.db", "again.db"] {
        wait(SqliteStore::restore(
            desk.at("backup.db"),
            desk.at(restored),
        ))
        .unwrap();
    }
    fs::copy(desk.at("new.db"), desk.at("copied.db")).unwrap();
    let other = wait(SqliteStore::open(desk.at("other.db"))).unwrap();
    desk.clock.advance(days(1));
    wait(desk.node(other).create(&admin(), reader("other"))).unwrap();
    wait(SqliteStore::open(desk.at("empty.db"))).unwrap();
    // A second restored copy that served for a while.
    wait(SqliteStore::restore(
        desk.at("backup.db"),
        desk.at("fork.db"),
    ))
    .unwrap();
    let options = SqliteStore::options(desk.at("fork.db")).allow_unrecovered();
    let fork = wait(options.open()).unwrap();
    let forked = desk.node(fork.clone());
    wait(forked.recover(Recovery::TrustBackup)).unwrap();
    wait(fork.finish_recovery()).unwrap();
    wait(forked.create(&admin(), reader("created in the copy"))).unwrap();
    let open = |name| {
        wait(
            SqliteStore::options(desk.at(name))
                .allow_unrecovered()
                .open(),
        )
        .unwrap()
    };
    let restored = open("new.db");
    let operator = desk.node(restored.clone());
    let replay = |from| wait(operator.recover(Recovery::ReplayFrom(Arc::new(from))));
    for (from, code) in [
        ("new.db", "replay-same-store"),
        ("copied.db", "replay-same-store"),
        ("backup.db", "replay-nothing-later"),
        ("again.db", "replay-nothing-later"),
        ("fork.db", "replay-other-history"),
        ("empty.db", "replay-other-history"),
        ("other.db", "replay-other-history"),
    ] {
        let refused = replay(open(from)).unwrap_err();
        assert_eq!(refused.code(), code, "{from}");
        let open = wait(SqliteStore::open(desk.at("new.db")));
        assert!(matches!(open, Err(OpenError::Unrecovered { .. })), "{from}");
    }
    // The newest entry is the revocation. A trail without it would seem to end earlier.
    wait(store.backup(desk.at("damaged.db"))).unwrap();
    crate::sqlite::sql(&desk.at("damaged.db"))
        .execute_batch(
            "UPDATE audit SET seal = seal + 1 WHERE place = (SELECT max(place) FROM audit)",
        )
        .unwrap();
    let refused = replay(open("damaged.db"));
    assert!(matches!(refused, Err(RecoveryError::Interrupted(_))));
    assert_eq!(refused.unwrap_err().code(), "store-corrupt");

    // A newer backup of the lost store, restored elsewhere and not recovered, has the lost history.
    wait(store.backup(desk.at("newer.db"))).unwrap();
    let newer = desk.at("restored-newer.db");
    wait(SqliteStore::restore(desk.at("newer.db"), newer)).unwrap();
    assert_eq!(replay(open("restored-newer.db")).unwrap().revoked, 1);
    assert_eq!(replay(store).unwrap().revoked, 0);
    wait(restored.finish_recovery()).unwrap();
    let restored = desk.node(wait(SqliteStore::open(desk.at("new.db"))).unwrap());
    assert!(restored.verify(key.secret.expose(), &Need::any()).is_err());
}

/// The salvage of a damaged store can lose the newest entries of a trail. The head still counts them.
#[test]
fn a_salvaged_trail_without_its_end_proves_nothing() {
    let head = "UPDATE tenants SET seal = seal + 1 WHERE tenant = 'beta'";
    let no_head = "DELETE FROM tenants WHERE tenant = 'beta'";
    for (lost, also) in [(6, ""), (5, ""), (6, head), (5, head), (6, no_head)] {
        let desk = Desk::new();
        let store = desk.store();
        let keys = desk.node(store.clone());
        let beta = Actor::application(tenant("beta"));
        let create = |by: &Actor, name: &str| wait(keys.create(by, reader(name))).unwrap();
        let others = create(&admin(), "other");
        let made = [1, 2, 3, 4].map(|number| create(&beta, &format!("key {number}")));
        wait(store.backup(desk.at("backup.db"))).unwrap();
        wait(keys.revoke(&admin(), others.id, Reason::Lost)).unwrap();
        for key in &made[..2] {
            wait(keys.revoke(&beta, key.id, Reason::Leaked)).unwrap();
        }
        drop(keys);
        let damage = format!(
            "UPDATE audit SET seal = seal + 1 WHERE tenant = 'beta' AND sequence >= {lost}; {also}"
        );
        crate::sqlite::sql(&desk.path())
            .execute_batch(&damage)
            .unwrap();
        wait(SqliteStore::salvage(desk.path(), desk.at("saved.db"))).unwrap();
        wait(SqliteStore::restore(
            desk.at("backup.db"),
            desk.at("new.db"),
        ))
        .unwrap();
        let open = |name| {
            let options = SqliteStore::options(desk.at(name)).allow_unrecovered();
            wait(options.open()).unwrap()
        };
        let keys = desk.node(open("new.db"));
        let saved = Arc::new(open("saved.db"));
        let report = wait(keys.recover(Recovery::ReplayFrom(saved))).unwrap();
        let of_beta = report
            .trails
            .iter()
            .find(|trail| trail.tenant == tenant("beta"));
        assert!(of_beta.unwrap().disabled, "{lost} {also}: {report:?}");
        for key in &made {
            assert!(
                keys.verify(key.secret.expose(), &Need::any()).is_err(),
                "{lost} {also}"
            );
        }
    }
}
