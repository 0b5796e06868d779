//! Counted uses: processes that are killed while they count, and a full disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use keyward::store::usage::{BootId, BootOpening, KeyUses, UsageBatch, UsageError, UsageStore};
use keyward::store::{Epoch, SqliteStore, StoreErrorKind};
use keyward::usage::{Day, DayCounts, UseOutcome};
use keyward::{KeyId, Need, Reason, Role};
use tempfile::tempdir;

use crate::sqlite::child::{NO_CAP, open, service};
use crate::sqlite::mounts::{fill, mount, runs_to_its_end};
use support::process::{ChildProcess, SeededRandom, report, rounds};
use support::{START, actor, at, reader, tenant, wait};

/// 50 keys in each batch.
const KEYS: u128 = 50;

fn boot(number: u64) -> BootId {
    BootId::from_u128(number.into())
}

fn open_boot(store: &SqliteStore, number: u64) {
    let opening = BootOpening {
        boot: boot(number),
        node: None,
        history: Epoch(1),
        at: at(START),
        unsent_since: at(START),
        replaces: None,
    };
    wait(store.open_boot(opening)).unwrap();
}

/// Returns a batch with one use of each key.
fn batch(number: u64, sequence: u64, keys: u128) -> UsageBatch {
    let mut counts = DayCounts::default();
    counts.add(0, UseOutcome::Accepted, 1);
    let uses = (0..keys).map(|key| KeyUses {
        key: KeyId::from_u128(key),
        tenant: tenant("acme"),
        day: Day::of(at(START)),
        counts: counts.clone(),
        last: Some(at(START)),
    });
    UsageBatch {
        boot: boot(number),
        sequence,
        sent_until: at(START).saturating_add(Duration::from_secs(sequence)),
        uses: uses.collect(),
    }
}

/// Returns the number of uses of each key, which every key must have.
#[track_caller]
fn counted(store: &SqliteStore) -> u64 {
    let keys: Vec<_> = (0..KEYS).map(KeyId::from_u128).collect();
    let days = wait(store.days(&keys, Day::FIRST, Day::LAST)).unwrap();
    let totals: Vec<_> = days.iter().map(|day| day.counts.total()).collect();
    let first = totals.first().copied().unwrap_or_default();
    assert!(totals.iter().all(|total| *total == first), "{totals:?}");
    first
}

/// Two processes count, and one of them is killed at a random time, again and again.
#[test]
fn a_killed_process_loses_no_batch_and_counts_none_twice() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let mut random = SeededRandom(0x6b65_7977_6172_6402);
    let start = |number: u64| {
        ChildProcess::start(
            "sqlite:counts",
            &path,
            &[("CHILD_NUMBER", number.to_string())],
        )
    };
    let mut stays = start(1);
    for cycle in 2..=rounds(10, 100) as u64 {
        let mut killed = start(cycle);
        let mut last = String::new();
        for _ in 0..=random.below(20) {
            last = killed.next().expect("a process reports until it is killed");
            stays.next().expect("the other process goes on");
        }
        last = killed.kill().pop().unwrap_or(last);
        let acknowledged: u64 = last.parse().unwrap();
        let boots = wait(open(&path).ledger()).unwrap().boots;
        let found = boots.iter().find(|own| own.id == boot(cycle)).unwrap();
        // The batch in flight may have been added without its report.
        let possible = acknowledged..=acknowledged + 1;
        assert!(
            possible.contains(&found.sequence),
            "{found:?} {acknowledged}"
        );
    }
    drop(stays);
    let store = open(&path);
    let added = wait(store.ledger()).unwrap().boots;
    let added: u64 = added.iter().map(|boot| boot.sequence).sum();
    assert_eq!(counted(&store), added);
}

/// Adds batches until the parent kills this process.
pub fn counts(path: &Path, number: u64) {
    let store = open(path);
    open_boot(&store, number);
    for sequence in 1.. {
        wait(UsageStore::add(&store, batch(number, sequence, KEYS))).unwrap();
        report(sequence);
    }
}

#[test]
fn a_full_disk_refuses_counts_and_takes_every_revocation() {
    runs_to_its_end("sqlite:full-counts");
}

pub fn full_counts(folder: &Path) {
    mount(folder, "size=24m");
    let path = folder.join("keys.db");
    let store = open(&path);
    let keys = service(store.clone(), NO_CAP);
    let admin = actor("acme", "alice", Role::ADMIN);
    let made = wait(keys.create(&admin, reader("key"))).unwrap();
    open_boot(&store, 1);
    wait(UsageStore::add(&store, batch(1, 1, KEYS))).unwrap();
    let reserve = || fs::metadata(folder.join("keys.db-reserve")).unwrap().len();
    fill(&folder.join("filler"));

    let large = || batch(1, 2, 20_000);
    let refused = wait(UsageStore::add(&store, large())).unwrap_err();
    let UsageError::Store(refused) = refused else {
        panic!("{refused}");
    };
    assert_eq!(refused.kind(), StoreErrorKind::Unavailable, "{refused:?}");
    let said = keyward::WithSources(&refused).to_string();
    assert!(said.contains("free space"), "{said}");
    assert_eq!(counted(&store), 1);
    assert_eq!(reserve(), 8 << 20, "counts take none of the reserve");
    // A new process still reads the counts.
    assert_eq!(counted(&open(&path)), 1);
    keys.verify(made.secret.expose(), &Need::any()).unwrap();
    wait(keys.revoke(&admin, made.id, Reason::Lost)).unwrap();

    fs::remove_file(folder.join("filler")).unwrap();
    wait(UsageStore::add(&store, large())).unwrap();
    assert_eq!(counted(&store), 2);
    report("end");
}
