//! The usage file: several processes, damage, foreign files, and its size.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use keyward::command::Created;
use keyward::store::sqlite::OpenError;
use keyward::store::usage::{
    BootClosing, BootId, BootOpening, KeyDay, KeyUses, LastUse, LastUseQuery, LostBoot, UsageBatch,
    UsageError, UsageLedger, UsagePruning, UsageStore,
};
use keyward::store::{Epoch, KeyStore, SqliteStore, StoreError, StoreErrorKind};
use keyward::usage::{Day, DayCounts, UseOutcome};
use keyward::{KeyId, Keyward, Reason, Timestamp, VerifyError};

use crate::sqlite::{Desk, checkpoint, sql};
use support::folder::folder;
use support::*;

keyward_conformance::usage_suite! {
    mod one_instance;
    block_on = pollster::block_on;
    usage = folder(1);
}

// Two instances on one file, used in turn like two processes.
keyward_conformance::usage_suite! {
    mod two_instances;
    block_on = pollster::block_on;
    usage = folder(2);
}

/// The day of most uses.
fn today() -> Day {
    Day::of(at(START))
}

fn key(number: u128) -> KeyId {
    KeyId::from_u128(number)
}

fn opening(boot: u128) -> BootOpening {
    BootOpening {
        boot: BootId::from_u128(boot),
        node: None,
        history: Epoch(1),
        at: at(START),
        unsent_since: at(START),
        replaces: None,
    }
}

fn counts(hour: u8, count: u64) -> DayCounts {
    let mut counts = DayCounts::default();
    counts.add(hour, UseOutcome::Accepted, count);
    counts
}

/// Returns a batch in which each key was used once, in the first hour of `day`.
fn batch_of(
    boot: u128,
    sequence: u64,
    day: Day,
    keys: impl IntoIterator<Item = u128>,
) -> UsageBatch {
    let last = day.start().saturating_add(Duration::from_secs(60));
    let uses = keys.into_iter().map(|number| KeyUses {
        key: key(number),
        tenant: tenant("acme"),
        day,
        counts: counts(0, 1),
        last: Some(last),
    });
    UsageBatch {
        boot: BootId::from_u128(boot),
        sequence,
        sent_until: last,
        uses: uses.collect(),
    }
}

fn batch(boot: u128, sequence: u64, keys: impl IntoIterator<Item = u128>) -> UsageBatch {
    batch_of(boot, sequence, today(), keys)
}

fn add(store: &SqliteStore, batch: UsageBatch) {
    wait(UsageStore::add(store, batch)).unwrap();
}

fn all_days(store: &SqliteStore, keys: &[KeyId]) -> Result<Vec<KeyDay>, StoreError> {
    wait(store.days(keys, Day::FIRST, Day::LAST))
}

fn query() -> LastUseQuery {
    LastUseQuery {
        tenant: tenant("acme"),
        from: Day::FIRST,
        to: Day::LAST,
        newest_first: true,
        after: None,
        limit: NonZeroUsize::new(100).unwrap(),
    }
}

fn pruning(before: Day) -> UsagePruning {
    UsagePruning {
        before,
        closed_before: before.start(),
        limit: NonZeroUsize::MAX,
    }
}

fn closing(boot: u128, sequence: u64) -> BootClosing {
    BootClosing {
        boot: BootId::from_u128(boot),
        sequence,
        at: at("2026-01-01T09:00:00Z"),
        is_complete: false,
    }
}

/// Returns the message of an error with its causes.
fn said(error: &StoreError) -> String {
    keyward::WithSources(error).to_string()
}

/// A store with a boot that counted one use of each of the keys 1 to 3, and with a gap.
fn counted(desk: &Desk) -> SqliteStore {
    let store = desk.store();
    wait(store.open_boot(opening(1))).unwrap();
    add(&store, batch(1, 1, 1..=3));
    let lost = BootOpening {
        replaces: Some(LostBoot {
            boot: BootId::from_u128(9),
            since: at("2025-12-31T23:00:00Z"),
        }),
        ..opening(2)
    };
    wait(store.open_boot(lost)).unwrap();
    store
}

/// Asserts that keys are created, verified and revoked.
#[track_caller]
fn keys_work(keys: &Keyward) {
    let Created { id, secret, .. } = wait(keys.create(&admin(), reader("some"))).unwrap();
    keys.verify(secret.expose(), &reading()).unwrap();
    wait(keys.revoke(&admin(), id, Reason::Lost)).unwrap();
    let refused = keys.verify(secret.expose(), &reading()).unwrap_err();
    assert!(
        matches!(refused, VerifyError::Revoked { .. }),
        "{refused:?}"
    );
}

#[test]
fn a_file_that_does_not_exist_counts_nothing_and_is_not_created() {
    let desk = Desk::new();
    let store = desk.store();
    assert_eq!(wait(store.ledger()).unwrap(), UsageLedger::default());
    assert_eq!(all_days(&store, &[key(1)]).unwrap(), []);
    assert!(wait(store.last_uses(&[key(1)])).unwrap().is_empty());
    assert_eq!(wait(store.by_last_use(&query())).unwrap(), []);
    assert_eq!(wait(store.prune(pruning(today()))).unwrap(), 0);
    wait(UsageStore::forget_keys(&store, &[key(1)])).unwrap();
    assert!(!wait(store.close_boot(closing(1, 0))).unwrap());
    let refused = wait(UsageStore::add(&store, batch(1, 1, [1]))).unwrap_err();
    assert!(
        matches!(refused, UsageError::UnknownBoot { .. }),
        "{refused}"
    );
    wait(store.close()).unwrap();
    assert!(!desk.at("keys.db-usage").exists());
    wait(store.open_boot(opening(1))).unwrap();
    assert!(desk.at("keys.db-usage").exists());
    add(&store, batch(1, 1, [1]));
}

#[test]
fn nothing_that_was_counted_is_lost_without_a_close() {
    let desk = Desk::new();
    for round in 1..=5 {
        let store = desk.store();
        wait(store.open_boot(opening(1))).unwrap();
        add(&store, batch(1, round, 1..=2));
        drop(store);
        let store = desk.store();
        let days = all_days(&store, &[key(1), key(2)]).unwrap();
        let totals: Vec<_> = days.iter().map(|day| day.counts.total()).collect();
        assert_eq!(totals, [round, round]);
        assert_eq!(wait(store.ledger()).unwrap().boots[0].sequence, round);
    }
}

#[test]
fn four_processes_add_to_the_same_keys_concurrently() {
    let desk = Desk::new();
    // The file is created concurrently too.
    let processes: Vec<_> = (1..=4_u32)
        .map(|boot| {
            let store = desk.store();
            std::thread::spawn(move || {
                let boot = u128::from(boot);
                wait(store.open_boot(opening(boot))).unwrap();
                for sequence in 1..=15 {
                    add(&store, batch(boot, sequence, 1..=20));
                    add(&store, batch(boot, sequence, 1..=20));
                    wait(store.by_last_use(&query())).unwrap();
                }
            })
        })
        .collect();
    processes
        .into_iter()
        .for_each(|process| process.join().unwrap());
    let store = desk.store();
    let keys: Vec<_> = (1..=20).map(key).collect();
    let days = all_days(&store, &keys).unwrap();
    assert_eq!(days.len(), 20);
    assert!(
        days.iter().all(|day| day.counts == counts(0, 60)),
        "{days:?}"
    );
    let ledger = wait(store.ledger()).unwrap();
    assert_eq!(ledger.boots.len(), 4);
    assert!(ledger.boots.iter().all(|boot| boot.sequence == 15));
}

#[test]
fn a_flush_holds_up_no_commit_and_no_read_and_a_commit_holds_up_no_flush() {
    let desk = Desk::new();
    let options = || SqliteStore::options(desk.path()).busy_timeout(Duration::from_millis(20));
    let store = wait(options().open()).unwrap();
    let keys = desk.node(store.clone());
    wait(store.open_boot(opening(1))).unwrap();
    add(&store, batch(1, 1, [1]));

    let flush = sql(&desk.at("keys.db-usage"));
    flush.execute_batch("BEGIN IMMEDIATE").unwrap();
    keys_work(&keys);
    assert_eq!(all_days(&store, &[key(1)]).unwrap().len(), 1);
    let UsageError::Store(locked) = wait(UsageStore::add(&store, batch(1, 2, [1]))).unwrap_err()
    else {
        panic!("the file is locked");
    };
    assert_eq!(locked.kind(), StoreErrorKind::Unavailable);
    let locked = said(&locked);
    assert!(locked.contains("keys.db-usage is locked"), "{locked}");
    flush.execute_batch("ROLLBACK").unwrap();

    let commit = sql(&desk.path());
    commit.execute_batch("BEGIN IMMEDIATE").unwrap();
    add(&store, batch(1, 2, [1]));
    assert_eq!(all_days(&store, &[key(1)]).unwrap()[0].counts, counts(0, 2));
}

#[test]
fn a_damaged_row_is_named_and_affects_no_other_key() {
    let desk = Desk::new();
    let store = counted(&desk);
    let file = sql(&desk.at("keys.db-usage"));
    let id = "x'00000000000000000000000000000002'";
    for damage in [
        format!("UPDATE usage_days SET counts = x'010001000002' WHERE key = {id}"),
        format!("UPDATE usage_keys SET first_day = first_day - 1 WHERE key = {id}"),
    ] {
        assert_eq!(file.execute(&damage, []).unwrap(), 1);
    }
    let damaged = key(2).to_string();
    for error in [
        all_days(&store, &[key(1), key(2)]).unwrap_err(),
        wait(store.last_uses(&[key(2), key(3)])).unwrap_err(),
        wait(store.by_last_use(&query())).unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
        let said = said(&error);
        assert!(
            said.contains("keys.db-usage") && said.contains(&damaged),
            "{said}"
        );
    }
    let others = [key(1), key(3)];
    assert_eq!(all_days(&store, &others).unwrap().len(), 2);
    assert_eq!(wait(store.last_uses(&others)).unwrap().len(), 2);
    add(&store, batch(1, 2, [1, 3]));
    keys_work(&desk.node(store.clone()));

    let refused = wait(UsageStore::add(&store, batch(1, 3, 1..=3))).unwrap_err();
    let UsageError::Store(refused) = refused else {
        panic!("{refused}");
    };
    assert_eq!(refused.kind(), StoreErrorKind::Corrupt);
    assert_eq!(all_days(&store, &others).unwrap()[0].counts, counts(0, 2));
    wait(UsageStore::forget_keys(&store, &[key(2)])).unwrap();
    add(&store, batch(1, 3, 1..=3));
    assert_eq!(all_days(&store, &[key(2)]).unwrap()[0].counts, counts(0, 1));
    assert_eq!(wait(store.by_last_use(&query())).unwrap().len(), 3);
}

#[test]
fn every_column_is_sealed() {
    let changes = [
        "usage_days SET key = x'00000000000000000000000000000007'",
        "usage_days SET day = day + 1",
        "usage_days SET day = -1",
        "usage_days SET counts = x'01'",
        "usage_days SET counts = x''",
        "usage_days SET seal = seal + 1",
        "usage_keys SET key = x'00000000000000000000000000000007'",
        "usage_keys SET key = x'07'",
        "usage_keys SET tenant = 'acme/b'",
        "usage_keys SET first_day = first_day - 1",
        "usage_keys SET last_day = last_day + 1",
        "usage_keys SET last_at = last_at + 1",
        "usage_keys SET last_at = -1",
        "usage_keys SET seal = 0",
        "usage_boots SET boot = x'07'",
        "usage_boots SET boot = randomblob(16)",
        "usage_boots SET node = randomblob(16)",
        "usage_boots SET opened_at = opened_at + 1",
        "usage_boots SET sequence = sequence + 1",
        "usage_boots SET sequence = -1",
        "usage_boots SET sent_until = sent_until + 1",
        "usage_boots SET closed_at = 1",
        "usage_boots SET seal = seal + 1",
        "usage_gaps SET since = since + 1",
        "usage_gaps SET until = until + 1",
        "usage_gaps SET boot = x''",
        "usage_gaps SET boot = x'07'",
        "usage_gaps SET boot = randomblob(16)",
        "usage_gaps SET seal = seal + 1",
        "usage_head SET history = randomblob(16)",
        "usage_head SET counted_since = counted_since - 1",
        "usage_head SET seal = seal + 1",
    ];
    let desk = Desk::new();
    drop(counted(&desk));
    let usage = desk.at("keys.db-usage");
    let file = sql(&usage);
    // Leaves one row in each table.
    for table in ["usage_days", "usage_keys"] {
        let rest = format!("DELETE FROM {table} WHERE key <> x'00000000000000000000000000000001'");
        assert_eq!(file.execute(&rest, []).unwrap(), 2);
    }
    file.execute("DELETE FROM usage_boots WHERE sequence = 0", [])
        .unwrap();
    drop(file);
    checkpoint(&usage);
    let whole = fs::read(&usage).unwrap();
    let keys = [key(1), key(7)];
    for change in changes {
        for end in ["-wal", "-shm"] {
            drop(fs::remove_file(desk.at(&format!("keys.db-usage{end}"))));
        }
        fs::write(&usage, &whole).unwrap();
        assert_eq!(
            sql(&usage)
                .execute(&format!("UPDATE {change}"), [])
                .unwrap(),
            1
        );
        let store = desk.store();
        let moved = LastUseQuery {
            tenant: tenant("acme/b"),
            ..query()
        };
        let read = || -> Result<(), StoreError> {
            wait(store.ledger())?;
            all_days(&store, &keys)?;
            wait(store.by_last_use(&moved))?;
            wait(store.by_last_use(&query()))?;
            Ok(())
        };
        let error = match change {
            // No instant of a day outside the range is read.
            "usage_days SET day = -1" => {
                assert_eq!(all_days(&store, &keys).unwrap(), []);
                continue;
            }
            _ => read().unwrap_err(),
        };
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{change}");
        if change.starts_with("usage_boots") && change.contains("node") {
            let refused = wait(UsageStore::add(&store, batch(1, 2, [1]))).unwrap_err();
            assert!(matches!(refused, UsageError::Store(_)), "{refused}");
        }
    }
}

/// The ledger, the counts and the last uses.
type Everything = (UsageLedger, Vec<KeyDay>, Vec<(KeyId, LastUse)>);

fn everything(store: &SqliteStore, keys: &[KeyId]) -> Result<Everything, StoreError> {
    let ledger = wait(store.ledger())?;
    Ok((
        ledger,
        all_days(store, keys)?,
        wait(store.by_last_use(&query()))?,
    ))
}

#[test]
fn a_flipped_byte_is_noticed_or_harmless_and_stops_no_key() {
    let desk = Desk::new();
    let usage = desk.at("keys.db-usage");
    drop(counted(&desk));
    checkpoint(&usage);
    let whole = fs::read(&usage).unwrap();
    let store = desk.store();
    let keys: Vec<_> = (1..=3).map(key).collect();
    let right = everything(&store, &keys).unwrap();
    drop(store);
    let service = desk.keys();
    let mut noticed = 0;
    // A page has rows at its end, and its header and the places of its rows at its start.
    let near = |position: &usize| position % 4096 < 24 || position % 4096 >= 4096 - 320;
    for position in (0..whole.len()).filter(near).step_by(5) {
        for end in ["-wal", "-shm"] {
            drop(fs::remove_file(desk.at(&format!("keys.db-usage{end}"))));
        }
        let mut bytes = whole.clone();
        bytes[position] ^= 0x55;
        fs::write(&usage, bytes).unwrap();
        let store = desk.store();
        match everything(&store, &keys) {
            // A flipped byte of an index or of a free part can hide a row from a listing, not change it.
            Ok((ledger, days, listed)) => {
                assert!(
                    ledger == right.0 || ledger.boots.len() < 2,
                    "{position}: {ledger:?}"
                );
                assert!(
                    days.iter().all(|day| right.1.contains(day)),
                    "{position}: {days:?}"
                );
                assert!(listed.iter().all(|key| right.2.contains(key)), "{position}");
            }
            Err(error) => {
                noticed += 1;
                assert_ne!(error.kind(), StoreErrorKind::Indeterminate, "{position}");
            }
        }
        let _answer = wait(UsageStore::add(&store, batch(1, 2, 1..=3)));
        let _answer = wait(store.prune(pruning(today())));
    }
    assert!(noticed > 50, "{noticed}");
    keys_work(&service);
}

#[test]
fn a_file_of_another_program_or_a_later_build_is_refused_and_unchanged() {
    type Maker = fn(&Path);
    let other = |path: &Path| {
        sql(path).execute_batch("CREATE TABLE t (x)").unwrap();
    };
    let text = |path: &Path| fs::write(path, "a shopping list\n".repeat(100)).unwrap();
    let short = |path: &Path| fs::write(path, "a shopping list\n").unwrap();
    let later = |path: &Path| {
        let desk = Desk::new();
        drop(counted(&desk));
        checkpoint(&desk.at("keys.db-usage"));
        fs::copy(desk.at("keys.db-usage"), path).unwrap();
        sql(path).pragma_update(None, "user_version", 2).unwrap();
        checkpoint(path);
    };
    let makers: [(Maker, &str); 4] = [
        (other, "another program"),
        (text, "no SQLite file"),
        (short, "no SQLite file"),
        (later, "version 2, and this build uses version 1: upgrade"),
    ];
    for (make, reason) in makers {
        let desk = Desk::new();
        let store = desk.store();
        let path = desk.at("keys.db-usage");
        make(&path);
        #[cfg(unix)]
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let before = fs::read(&path).unwrap();
        for error in [
            wait(store.ledger()).unwrap_err(),
            wait(store.open_boot(opening(1))).unwrap_err(),
        ] {
            assert_eq!(error.kind(), StoreErrorKind::Denied, "{reason}");
            let said = said(&error);
            assert!(
                said.contains("keys.db-usage") && said.contains(reason),
                "{said}"
            );
        }
        keys_work(&desk.node(store.clone()));
        drop(store);
        assert_eq!(fs::read(&path).unwrap(), before, "{reason}");
    }
}

#[test]
fn a_malformed_file_names_the_way_out_and_counting_starts_over_once_it_is_removed() {
    let desk = Desk::new();
    let usage = desk.at("keys.db-usage");
    drop(counted(&desk));
    checkpoint(&usage);
    let mut bytes = fs::read(&usage).unwrap();
    bytes[..16].fill(0xff);
    fs::write(&usage, bytes).unwrap();
    let store = desk.store();
    for error in [
        wait(store.ledger()).unwrap_err(),
        wait(store.open_boot(opening(3))).unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
        let said = said(&error);
        assert!(
            said.contains("keys.db-usage") && said.contains("remove this file"),
            "{said}"
        );
    }
    keys_work(&desk.node(store.clone()));
    fs::remove_file(&usage).unwrap();
    assert_eq!(wait(store.ledger()).unwrap(), UsageLedger::default());
    wait(store.open_boot(opening(3))).unwrap();
    add(&store, batch(3, 1, [1]));
}

#[test]
fn a_replaced_file_is_noticed_by_the_next_call() {
    let desk = Desk::new();
    let (store, elsewhere) = (counted(&desk), Desk::new());
    assert_eq!(all_days(&store, &[key(1)]).unwrap().len(), 1);
    let other = elsewhere.store();
    wait(other.open_boot(opening(5))).unwrap();
    add(&other, batch(5, 1, [8]));
    drop(other);
    checkpoint(&elsewhere.at("keys.db-usage"));
    for end in ["", "-wal", "-shm"] {
        drop(fs::remove_file(desk.at(&format!("keys.db-usage{end}"))));
    }
    assert_eq!(wait(store.ledger()).unwrap(), UsageLedger::default());
    fs::copy(elsewhere.at("keys.db-usage"), desk.at("keys.db-usage")).unwrap();
    let refused = wait(UsageStore::add(&store, batch(1, 2, [1]))).unwrap_err();
    assert!(
        matches!(refused, UsageError::UnknownBoot { .. }),
        "{refused}"
    );
    add(&store, batch(5, 2, [8]));
    assert_eq!(all_days(&store, &[key(1), key(8)]).unwrap().len(), 1);
}

#[test]
fn a_close_moves_all_counts_into_the_file_and_the_store_stays_in_use() {
    let desk = Desk::new();
    let store = counted(&desk);
    assert!(fs::metadata(desk.at("keys.db-usage-wal")).unwrap().len() > 0);
    wait(store.close()).unwrap();
    assert!(!desk.at("keys.db-usage-wal").exists());
    fs::copy(desk.at("keys.db-usage"), desk.at("copy")).unwrap();
    let rows: i64 = sql(&desk.at("copy"))
        .query_row("SELECT count(*) FROM usage_days", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 3);
    add(&store, batch(1, 2, [1]));
    assert_eq!(all_days(&store, &[key(1)]).unwrap()[0].counts, counts(0, 2));
}

/// Counts of another history must not be taken for those of a restored store.
#[test]
fn a_store_is_neither_created_nor_restored_next_to_a_leftover_usage_file() {
    let desk = Desk::new();
    let store = counted(&desk);
    keys_work(&desk.node(store.clone()));
    wait(store.backup(desk.at("backup.db"))).unwrap();
    wait(store.vacuum()).unwrap();
    assert!(!desk.at("backup.db-usage").exists());
    drop(store);
    for end in ["", "-wal", "-shm", "-nodes", "-nodes-journal", "-reserve"] {
        drop(fs::remove_file(desk.at(&format!("keys.db{end}"))));
    }
    let refused = |refused: OpenError| {
        let is_named =
            matches!(&refused, OpenError::Leftover { path } if path.ends_with("keys.db-usage"));
        assert!(is_named, "{refused}");
        assert!(!desk.path().exists());
    };
    refused(wait(SqliteStore::open(desk.path())).unwrap_err());
    refused(wait(SqliteStore::restore(desk.at("backup.db"), desk.path())).unwrap_err());
    refused(wait(SqliteStore::salvage(desk.at("backup.db"), desk.path())).unwrap_err());
    fs::rename(desk.at("keys.db-usage"), desk.at("kept-usage")).unwrap();
    wait(SqliteStore::restore(desk.at("backup.db"), desk.path())).unwrap();
}

#[cfg(unix)]
#[test]
fn the_file_belongs_to_the_owner_or_to_the_group_of_the_store() {
    use std::os::unix::fs::PermissionsExt;

    for (group, mode) in [(false, 0o600), (true, 0o660)] {
        let desk = Desk::new();
        let mut options = SqliteStore::options(desk.path());
        if group {
            options = options.allow_group_access();
        }
        let store = wait(options.open()).unwrap();
        wait(store.open_boot(opening(1))).unwrap();
        for end in ["-usage", "-usage-wal"] {
            let meta = fs::metadata(desk.at(&format!("keys.db{end}"))).unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, mode, "{end}");
        }
    }
}

#[test]
fn pruning_in_steps_removes_the_oldest_days_first() {
    let desk = Desk::new();
    let store = desk.store();
    wait(store.open_boot(opening(1))).unwrap();
    let first = today().number();
    let day = |number: u32| Day::from_number(first + number).unwrap();
    for number in 0..4 {
        let sequence = u64::from(number) + 1;
        add(&store, batch_of(1, sequence, day(number), 1..=10));
    }
    let step = UsagePruning {
        limit: NonZeroUsize::new(15).unwrap(),
        ..pruning(day(3))
    };
    let keys: Vec<_> = (1..=10).map(key).collect();
    assert_eq!(wait(store.prune(step)).unwrap(), 15);
    let left = all_days(&store, &keys).unwrap();
    assert_eq!(left.len(), 25);
    assert!(left.iter().all(|row| row.day >= day(1)));
    let since: Option<Timestamp> = wait(store.ledger()).unwrap().counted_since;
    assert_eq!(since, Some(day(3).start()));
    assert_eq!(wait(store.prune(step)).unwrap(), 15);
    assert_eq!(wait(store.prune(step)).unwrap(), 0);
    assert_eq!(all_days(&store, &keys).unwrap().len(), 10);
    assert_eq!(wait(store.last_uses(&keys)).unwrap().len(), 10);
}

/// A million keys with one outcome in one hour of each day take at most 180 MB, and 90 MB more for each further day.
#[test]
fn a_key_takes_few_bytes() {
    const KEYS: u128 = 20_000;
    const FLUSHES: usize = 20;
    let desk = Desk::new();
    let store = desk.store();
    wait(store.open_boot(opening(1))).unwrap();
    // Ids of keys begin with the time of their creation, and end with random bits.
    let keys =
        || (1..=KEYS).map(|number| number << 80 | number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bytes = || -> u64 {
        checkpoint(&desk.at("keys.db-usage"));
        fs::metadata(desk.at("keys.db-usage")).unwrap().len()
    };
    let number = u64::try_from(KEYS).unwrap();
    let empty = bytes();
    // Each flush has other keys, so rows are inserted between those of earlier flushes.
    let count = |first: u64, day: Day| {
        for flush in 0..FLUSHES {
            let own = keys().skip(flush).step_by(FLUSHES);
            add(&store, batch_of(1, first + flush as u64, day, own));
        }
    };
    count(1, today());
    let one_day = bytes();
    let next = Day::from_number(today().number() + 1).unwrap();
    count(1 + FLUSHES as u64, next);
    let two_days = bytes();
    let file = sql(&desk.at("keys.db-usage"));
    for (table, rows) in [("usage_days", 2 * number), ("usage_keys", number)] {
        let count = format!("SELECT count(*) FROM {table}");
        let found: i64 = file.query_row(&count, [], |row| row.get(0)).unwrap();
        assert_eq!(found.unsigned_abs(), rows, "{table}");
    }
    let per_key = |bytes: u64| bytes / number;
    let (first, further) = (per_key(one_day - empty), per_key(two_days - one_day));
    eprintln!("bytes per key: {first} for the first day, {further} for a further day");
    assert!(first <= 180 && further <= 90, "{first} and {further}");
}
