//! Faults that the SQLite store must survive: other processes, `kill -9`, a failing disk, and a power cut.
//!
//! Each child process is this test binary, started again. `KEYWARD_LONG=1` makes the tests run many more
//! rounds.

#![allow(
    unreachable_pub,
    reason = "the modules of one test program share items"
)]

mod check;
pub(crate) mod child;
mod counts;
mod cut;
mod disk;
mod drafts;
mod mounts;
mod shim;

use std::collections::BTreeSet;
use std::time::Duration;

use keyward::store::{SqliteStore, StoreErrorKind};
use keyward::{CommandError, Need, Role};
use tempfile::tempdir;

use crate::sqlite::check::examine;
use crate::sqlite::child::{CAP, NO_CAP, open, service};
use support::process::{ChildProcess, SeededRandom, rounds};
use support::{actor, reader, wait};

#[test]
fn a_process_that_opens_and_closes_the_file_removes_no_log() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let mut stays = ChildProcess::start("sqlite:stays", &path, &[]);
    let mut reports = vec![stays.next().unwrap()];
    for _ in 0..3 {
        // SQLite removes the write-ahead log when the last connection to the file closes. The child still has
        // a connection, so the log must stay.
        drop(examine(&path));
        stays.go_on();
        reports.push(stays.next().unwrap());
    }
    let held = examine(&path);
    reports.iter().for_each(|line| held.has(line));
    stays.finish();
    let held = examine(&path);
    reports.iter().for_each(|line| held.has(line));
    assert_eq!(held.revision, reports.len() as u64);
}

/// Since version 3.51, SQLite can detect by other means that a file is in use. An older SQLite, for example
/// in an operator's tool, sees only the lock, and would remove the log without it.
#[cfg(target_os = "linux")]
#[test]
fn a_process_keeps_its_lock_while_it_opens_more_connections() {
    use std::os::unix::fs::MetadataExt;

    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let mut stays = ChildProcess::start("sqlite:stays", &path, &[]);
    stays.next().unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let held = locks.lines().any(|lock| {
        let words: Vec<_> = lock.split_whitespace().collect();
        let of_file = words
            .get(5)
            .is_some_and(|file| file.ends_with(&format!(":{inode}")));
        of_file && words.get(4) == Some(&stays.id().to_string().as_str())
    });
    // A connection without a transaction holds a lock on the file only in WAL mode. The store uses WAL mode
    // only with SQLite 3.51.3 or later.
    let wal = rusqlite::version_number() >= 3_051_003;
    assert_eq!(held, wal, "locks on {inode}:\n{locks}");
    stays.finish();
}

#[test]
fn three_processes_keep_a_cap_and_lose_nothing() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let follower = service(open(&path), CAP);
    let work = rounds(40, 400).to_string();
    let mut parts: Vec<_> = (0..3)
        .map(|number: usize| {
            let env = [
                ("CHILD_NUMBER", number.to_string()),
                ("CHILD_ROUNDS", work.clone()),
            ];
            ChildProcess::start("sqlite:races", &path, &env)
        })
        .collect();
    for part in &mut parts {
        part.expect("ready");
    }
    parts.iter_mut().for_each(ChildProcess::go_on);
    let mut reports = Vec::new();
    while let Some(line) = parts[0].next() {
        // Syncs the follower after each report, while the other processes still write.
        wait(follower.sync()).unwrap();
        reports.push(line);
    }
    for part in parts {
        reports.extend(part.finish());
    }
    wait(follower.sync()).unwrap();
    let held = examine(&path);
    reports.iter().for_each(|line| held.has(line));
    let mut revisions = BTreeSet::new();
    for line in &reports {
        assert!(
            revisions.insert(line.split(' ').nth(1).unwrap()),
            "{line}: each commit has its own revision"
        );
    }
    assert_eq!(
        revisions.len() as u64,
        held.revision,
        "each commit was acknowledged"
    );
    // Counts the live keys of the shared tenant after every commit, to check that they never exceeded the
    // cap.
    let mut live = BTreeSet::new();
    let by_revision = reports.iter().map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        (
            words[1].parse::<u64>().unwrap(),
            words[2],
            words[3].parse().unwrap(),
        )
    });
    let mut in_order: Vec<_> = by_revision.collect();
    in_order.sort_unstable();
    for (revision, what, key) in in_order {
        if held.keys[&key].tenant.as_str() != "shared" {
            continue;
        }
        if what == "created" {
            live.insert(key);
        } else {
            live.remove(&key);
        }
        assert!(live.len() <= CAP as usize, "over the cap at {revision}");
    }
    // The follower must have reached the same cursor as a node that starts only now.
    let fresh = service(held.store.clone(), CAP);
    wait(fresh.sync()).unwrap();
    assert_eq!(follower.freshness().cursor, fresh.freshness().cursor);
    drop((fresh, follower));
}

#[test]
fn a_killed_process_loses_no_acknowledged_commit() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let cycles = rounds(40, 300);
    let mut random = SeededRandom(0x6b65_7977_6172_6401);
    let mut reports: Vec<String> = Vec::new();
    for cycle in 1..=cycles {
        let mut works = ChildProcess::start("sqlite:works", &path, &[]);
        for _ in 0..=random.below(40) {
            reports.push(works.next().expect("a worker reports until it is killed"));
        }
        reports.extend(works.kill());
        let held = examine(&path);
        reports.iter().for_each(|line| held.has(line));
        if cycle % 10 == 0 {
            eprintln!(
                "killed {cycle} of {cycles} times: {} commits stand",
                held.revision
            );
        }
    }
}

#[test]
fn a_lock_held_too_long_stops_writers_and_not_readers() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let options = SqliteStore::options(&path).busy_timeout(Duration::from_millis(50));
    let keys = service(wait(options.open()).unwrap(), NO_CAP);
    let admin = actor("acme", "alice", Role::ADMIN);
    let made = wait(keys.create(&admin, reader("before"))).unwrap();
    let mut locks = ChildProcess::start("sqlite:locks", &path, &[]);
    locks.expect("locked");
    match wait(keys.create(&admin, reader("meanwhile"))).unwrap_err() {
        CommandError::Store(error) => {
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}")
        }
        other => panic!("{other:?}"),
    }
    wait(keys.sync()).unwrap();
    wait(keys.verify_fresh(made.secret.expose(), &Need::scope("reports:read").unwrap())).unwrap();
    let another = service(open(&path), NO_CAP);
    wait(another.sync()).unwrap();
    wait(another.key(&admin, made.id)).unwrap();
    locks.go_on();
    locks.expect("released");
    let after = wait(keys.create(&admin, reader("after"))).unwrap();
    assert_eq!(
        after.receipt.revision().0,
        2,
        "the refused command was not written"
    );
    locks.finish();
    assert_eq!(examine(&path).revision, 2);
}
