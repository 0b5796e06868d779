//! Opening a store: the files that open, and the errors for files that do not.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use keyward::KeyId;
use keyward::store::sqlite::{JournalMode, OpenError};
use keyward::store::transfer::CopySource;
use keyward::store::{Cursor, KeyStore, Locator, SqliteStore, StoreErrorKind};

use crate::sqlite::{Desk, checkpoint, sql};
use support::*;

fn refused(desk: &Desk) -> OpenError {
    wait(SqliteStore::open(desk.path())).unwrap_err()
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn only_the_owner_can_read_a_new_store_and_its_logs() {
    let desk = Desk::new();
    let keys = desk.keys();
    wait(keys.create(&admin(), reader("first"))).unwrap();
    let mut seen = 0;
    for file in fs::read_dir(desk.path().parent().unwrap()).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 1);
}

#[test]
fn a_file_of_a_group_opens_only_if_allowed_and_one_of_everybody_never() {
    let desk = Desk::new();
    drop(desk.store());
    fs::set_permissions(desk.path(), fs::Permissions::from_mode(0o640)).unwrap();
    let error = refused(&desk);
    assert!(matches!(
        error,
        OpenError::ReadableByOthers { mode: 0o640, .. }
    ));
    assert!(error.to_string().contains("chmod 600"), "{error}");
    wait(
        SqliteStore::options(desk.path())
            .allow_group_access()
            .open(),
    )
    .unwrap();
    fs::set_permissions(desk.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let options = SqliteStore::options(desk.path()).allow_group_access();
    assert!(matches!(
        wait(options.open()),
        Err(OpenError::ReadableByOthers { mode: 0o644, .. })
    ));
}

#[test]
fn a_trigger_that_another_program_added_never_runs() {
    let desk = Desk::new();
    drop(desk.store());
    let trigger = "CREATE TRIGGER keep BEFORE INSERT ON rows BEGIN SELECT RAISE(IGNORE); END";
    sql(&desk.path()).execute_batch(trigger).unwrap();
    let store = desk.store();
    let key = wait(desk.node(store.clone()).create(&admin(), reader("first"))).unwrap();
    assert!(wait(store.find(&Locator::Id(key.id))).unwrap().is_some());
}

#[test]
fn a_view_in_place_of_a_table_is_not_read() {
    let desk = Desk::new();
    drop(desk.store());
    let view = "ALTER TABLE rows RENAME TO others; CREATE VIEW rows AS SELECT * FROM others";
    sql(&desk.path()).execute_batch(view).unwrap();
    wait(desk.store().find(&Locator::Id(KeyId::from_u128(7)))).unwrap_err();
}

#[test]
fn a_store_is_created_or_opened_as_requested() {
    let desk = Desk::new();
    let missing = wait(SqliteStore::options(desk.path()).create(false).open());
    assert!(matches!(missing, Err(OpenError::NotFound { .. })));
    assert!(!desk.path().exists());
    wait(SqliteStore::options(desk.path()).create_new(true).open()).unwrap();
    let again = wait(SqliteStore::options(desk.path()).create_new(true).open());
    assert!(matches!(again, Err(OpenError::Exists { .. })));
    let nowhere = wait(SqliteStore::open(desk.at("no folder/keys.db")));
    assert!(matches!(nowhere, Err(OpenError::Io { .. })), "{nowhere:?}");
}

#[test]
fn concurrent_creators_have_the_same_store() {
    let desk = Desk::new();
    let open = || {
        std::thread::spawn({
            let path = desk.path();
            move || {
                let store = wait(SqliteStore::open(path)).unwrap();
                wait(store.stats()).unwrap().head.epoch
            }
        })
    };
    let epochs: Vec<_> = [open(), open(), open(), open()]
        .map(|thread| thread.join().unwrap())
        .into();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
    let left = fs::read_dir(desk.path().parent().unwrap()).unwrap();
    let drafts = left.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_str().unwrap().contains("-draft-")
    });
    assert_eq!(drafts.count(), 0, "drafts are cleared away");
}

#[test]
fn timeouts_may_have_any_length() {
    let desk = Desk::new();
    for time in [Duration::ZERO, Duration::MAX] {
        let options = SqliteStore::options(desk.path());
        let store = wait(options.busy_timeout(time).poll_interval(time).open()).unwrap();
        wait(store.wait_past(Cursor::default())).unwrap();
    }
}

#[test]
fn a_path_that_is_not_a_file_is_named_in_the_error() {
    let desk = Desk::new();
    fs::create_dir(desk.path()).unwrap();
    assert!(refused(&desk).to_string().contains("is a directory"));
    fs::remove_dir(desk.path()).unwrap();
    drop(wait(SqliteStore::open(desk.at("other.db"))).unwrap());
    symlink(desk.at("other.db"), desk.path()).unwrap();
    assert!(refused(&desk).to_string().contains("is a symbolic link"));
}

#[test]
fn truncated_empty_and_foreign_files_are_refused_unchanged() {
    let desk = Desk::new();
    drop(wait(SqliteStore::open(desk.at("whole.db"))).unwrap());
    checkpoint(&desk.at("whole.db"));
    let whole = fs::read(desk.at("whole.db")).unwrap();
    let half = &whole[..whole.len() / 2];
    let text = "no database at all, ".repeat(100);
    let cases: [(&[u8], &str); 5] = [
        (b"", "it is empty"),
        (&whole[..99], "ends within its first page"),
        (half, "corrupt"),
        (&whole[..4096], "corrupt"),
        (text.as_bytes(), "it is no SQLite file"),
    ];
    for (bytes, expected) in cases {
        fs::write(desk.path(), bytes).unwrap();
        fs::set_permissions(desk.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let error = refused(&desk);
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert_eq!(fs::read(desk.path()).unwrap(), bytes, "{expected}");
        fs::remove_file(desk.path()).unwrap();
    }
}

#[test]
fn another_programs_database_is_refused_unchanged() {
    let desk = Desk::new();
    sql(&desk.path())
        .execute_batch("CREATE TABLE theirs (x); PRAGMA application_id = 7;")
        .unwrap();
    fs::set_permissions(desk.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let before = fs::read(desk.path()).unwrap();
    assert!(matches!(refused(&desk), OpenError::Foreign { .. }));
    assert_eq!(fs::read(desk.path()).unwrap(), before);
}

#[test]
fn a_schema_of_another_version_is_refused_unchanged() {
    let desk = Desk::new();
    drop(desk.store());
    sql(&desk.path())
        .pragma_update(None, "user_version", versions(2, 2))
        .unwrap();
    checkpoint(&desk.path());
    let before = fs::read(desk.path()).unwrap();
    let error = refused(&desk);
    assert!(
        matches!(
            error,
            OpenError::SchemaVersion {
                found: 2,
                oldest: 2,
                supported: 1,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(fs::read(desk.path()).unwrap(), before);
}

/// Returns the `user_version` of a file with this version, for builds from `oldest` on.
fn versions(version: i32, oldest: i32) -> i32 {
    oldest << 16 | version
}

#[test]
fn a_schema_upgrade_stops_a_running_store_once_it_is_finished() {
    let desk = Desk::new();
    let keys = desk.keys();
    let key = wait(keys.create(&admin(), reader("first"))).unwrap();
    let upgrade = |to: i32| {
        sql(&desk.path())
            .execute_batch(&format!(
                "ALTER TABLE rows ADD COLUMN added_{to} TEXT; PRAGMA user_version = {to}"
            ))
            .unwrap();
    };
    // The first step of a later build: this build continues, also on new connections.
    upgrade(versions(2, 1));
    let other = wait(keys.create(&admin(), reader("second"))).unwrap();
    wait(keys.sync()).unwrap();
    wait(desk.keys().sync()).unwrap();
    keys.verify(other.secret.expose(), &reading()).unwrap();
    // An earlier build does not finish a later build's upgrade, and does not copy tables that it does not know.
    let store = desk.store();
    let refused = wait(store.finish_upgrade()).unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Denied);
    assert_eq!(
        wait(store.origin()).unwrap_err().kind(),
        StoreErrorKind::Denied
    );
    // The second step.
    upgrade(versions(2, 2));
    let refused = wait(keys.revoke(&admin(), key.id, keyward::Reason::Lost));
    let text = format!("{:?}", refused.unwrap_err());
    assert!(
        text.contains("Denied") && text.contains("found: 2"),
        "{text}"
    );
    assert!(
        wait(keys.sync()).is_err(),
        "freshness is not renewed either"
    );
}

#[test]
fn finishing_an_upgrade_ends_the_use_by_earlier_builds() {
    let desk = Desk::new();
    let store = desk.store();
    let file = sql(&desk.path());
    // The state of a file of the previous version after the first step of this build.
    file.pragma_update(None, "user_version", versions(1, 0))
        .unwrap();
    for _ in 0..2 {
        wait(store.finish_upgrade()).unwrap();
        let found: i32 = file
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(found, versions(1, 1));
    }
}

#[test]
fn the_journal_of_a_deleted_store_is_not_applied_to_a_new_one() {
    let desk = Desk::new();
    for end in ["-wal", "-journal"] {
        let left = desk.at(&format!("keys.db{end}"));
        fs::write(&left, b"left").unwrap();
        assert!(
            matches!(refused(&desk), OpenError::Leftover { .. }),
            "{end}"
        );
        fs::remove_file(left).unwrap();
    }
    desk.store();
}

#[test]
fn the_journal_mode_is_safe_with_the_linked_sqlite() {
    let desk = Desk::new();
    let store = desk.store();
    let now: String = sql(&desk.path())
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .unwrap();
    if rusqlite::version_number() >= 3_051_003 {
        assert_eq!(
            (store.journal_mode(), now.as_str()),
            (JournalMode::Wal, "wal")
        );
    } else {
        // An SQLite file does not record the mode TRUNCATE, so another connection reports its own default
        // mode. It must not report WAL.
        assert_eq!(store.journal_mode(), JournalMode::Truncate);
        assert_ne!(now, "wal");
    }
}

#[test]
fn an_older_sqlite_converts_a_file_in_wal_mode_or_refuses_it() {
    let desk = Desk::new();
    drop(desk.store());
    let other = sql(&desk.path());
    other.pragma_update(None, "journal_mode", "wal").unwrap();
    let read: i64 = other
        .query_row("SELECT count(*) FROM rows", [], |row| row.get(0))
        .unwrap();
    assert_eq!(read, 0);
    let options = SqliteStore::options(desk.path());
    let opened = wait(
        options
            .busy_timeout(std::time::Duration::from_millis(20))
            .open(),
    );
    if rusqlite::version_number() >= 3_051_003 {
        assert_eq!(opened.unwrap().journal_mode(), JournalMode::Wal);
        return;
    }
    assert!(
        matches!(opened, Err(OpenError::UnsafeWal { .. })),
        "{opened:?}"
    );
    drop(other);
    assert_eq!(desk.store().journal_mode(), JournalMode::Truncate);
}

/// A `main` that returns an error prints its `Debug` text.
#[test]
fn an_error_of_opening_is_readable_as_debug_text_and_has_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let missing = wait(SqliteStore::options(&path).create(false).open()).unwrap_err();
    let text = format!("{missing:?}");
    assert_eq!(text, missing.to_string());
    assert!(
        text.contains("keyctl init") && text.contains("keys.db"),
        "{text}"
    );
    let nowhere = folder.path().join("none").join("keys.db");
    let refused = wait(SqliteStore::open(&nowhere)).unwrap_err();
    let text = format!("{refused:?}");
    assert!(text.contains("No such file"), "the cause: {text}");
    let peppers = keyward::PepperFile::open(&path).unwrap_err();
    assert_eq!(format!("{peppers:?}"), peppers.to_string());
}

#[test]
fn a_schema_version_that_was_reset_is_damage_and_no_error_repeats_a_statement() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    drop(wait(SqliteStore::open(&path)).unwrap());
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute_batch("PRAGMA user_version = 0").unwrap();
    for create in [false, true] {
        let refused = wait(SqliteStore::options(&path).create(create).open()).unwrap_err();
        let text = format!("{refused:?}");
        assert!(
            text.contains("reset to 0") && text.contains("restore a backup"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
    }
    file.execute_batch("PRAGMA user_version = 1; DROP TABLE rows")
        .unwrap();
    drop(file);
    let text = match wait(SqliteStore::open(&path)) {
        Err(refused) => format!("{refused:?}"),
        Ok(store) => {
            let limit = std::num::NonZeroUsize::MIN;
            let failed = wait(store.scan(None, limit)).unwrap_err();
            keyward::WithSources(&failed).to_string()
        }
    };
    assert!(
        text.contains("no such table") && !text.contains("SELECT"),
        "{text}"
    );
}
