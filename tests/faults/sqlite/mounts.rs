//! Tests of a full disk and of a read-only file system, on small file systems that only a child process sees.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use keyward::command::Created;
use keyward::store::sqlite::OpenError;
use keyward::store::{AuditQuery, KeyStore, NodeRegistry, SqliteStore, StoreErrorKind};
use keyward::{CommandError, Keyward, ManualClock, Need, Reason, Role, VerifyError};
use tempfile::tempdir;

use crate::sqlite::child::{NO_CAP, open, service};
use support::captured::Captured;
use support::process::{ChildProcess, report};
use support::{START, actor, at, capped, peppers, reader, wait};

#[test]
fn a_full_disk_refuses_creates_and_takes_every_revocation() {
    runs_to_its_end("sqlite:full");
}

#[test]
fn a_file_on_a_full_disk_is_checkpointed_and_opened() {
    runs_to_its_end("sqlite:full-later");
}

/// A report that needed new space would take it from the reserve, and another program would take the rest.
#[test]
fn a_node_reports_and_verifies_while_another_program_fills_the_disk() {
    runs_to_its_end("sqlite:full-reports");
}

#[test]
fn opening_a_store_on_a_full_disk_leaves_the_reserve_to_revocations() {
    runs_to_its_end("sqlite:full-opens");
}

/// The log starts over in its present space, so some creations succeed on a full disk. An alert on the log would
/// resolve at each of them.
#[test]
fn a_node_gets_a_registry_on_a_full_disk() {
    runs_to_its_end("sqlite:full-registry");
}

#[test]
fn a_full_disk_is_logged_once_until_it_has_space_again() {
    runs_to_its_end("sqlite:full-log");
}

#[test]
fn a_disk_without_space_for_a_reserve_gets_no_store() {
    runs_to_its_end("sqlite:small");
}

#[test]
fn a_backup_on_a_read_only_file_system_is_restored_checked_and_read() {
    runs_to_its_end("sqlite:read-only");
}

/// Runs a part of these tests in a child process with its own mounts, in a new folder.
#[track_caller]
pub fn runs_to_its_end(part: &str) {
    let folder = tempdir().unwrap();
    if let Some(child) = ChildProcess::with_mounts(part, folder.path()) {
        assert_eq!(child.finish().last().map(String::as_str), Some("end"));
    }
}

pub fn mount(folder: &Path, options: &str) {
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(folder)
        .status();
    assert!(mount.unwrap().success(), "mount {options}");
}

/// Writes a file until the disk is full.
pub fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 4096] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

/// Another program, which takes every free block of the disk, until it is dropped.
struct Rival {
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rival {
    fn start(path: PathBuf) -> Self {
        fill(&path);
        let stopped = Arc::new(AtomicBool::new(false));
        let ends = stopped.clone();
        let thread = std::thread::spawn(move || {
            let mut file = File::options().append(true).open(path).unwrap();
            while !ends.load(Ordering::Relaxed) {
                while file.write_all(&[0; 4096]).is_ok() {}
                std::thread::yield_now();
            }
        });
        Self {
            stopped,
            thread: Some(thread),
        }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn len(folder: &Path, name: &str) -> u64 {
    fs::metadata(folder.join(name)).unwrap().len()
}

/// 200 keys to revoke: more revocations than the log has space for.
const KEYS: usize = 200;

pub fn full(folder: &Path) {
    mount(folder, "size=24m");
    let path = folder.join("keys.db");
    let store = open(&path);
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = keyward::policy::Policy::new(capped(NO_CAP)).unwrap();
    let builder = Keyward::builder(store.clone(), peppers()).registry(store.clone());
    let keys = wait(builder.policy(policy).clock(clock.clone()).build()).unwrap();
    let admin = actor("acme", "alice", Role::ADMIN);
    let create = || wait(keys.create(&admin, reader("key")));
    let made: Vec<_> = (0..KEYS).map(|_| create().unwrap()).collect();
    let lives = create().unwrap();
    wait(keys.sync()).unwrap();
    wait(store.checkpoint()).unwrap();
    fill(&folder.join("filler"));

    let mut more = 0;
    let refused = loop {
        match create() {
            Ok(_) => more += 1,
            Err(error) => break error,
        }
        assert!(
            more < 10_000,
            "the disk is full, and keys are still created"
        );
    };
    assert!(
        matches!(&refused, CommandError::Store(error) if error.kind() == StoreErrorKind::Unavailable),
        "{refused:?}"
    );
    for key in &made {
        wait(keys.revoke(&admin, key.id, Reason::Lost)).unwrap();
        // After a revocation, the rest of the reserve is for revocations only.
        create().unwrap_err();
    }
    // A registered node that cannot report refuses every key after a minute and its staleness bound.
    for _ in 0..30 {
        clock.advance(Duration::from_secs(5));
        wait(keys.sync()).unwrap();
        keys.verify(lives.secret.expose(), &Need::any()).unwrap();
    }
    let refused = keys.verify(made[0].secret.expose(), &Need::any());
    assert!(matches!(refused, Err(VerifyError::Revoked { .. })));

    fs::remove_file(folder.join("filler")).unwrap();
    create().unwrap();
    let reserve = fs::metadata(folder.join("keys.db-reserve")).unwrap().len();
    assert_eq!(reserve, 8 << 20, "the reserve is whole again");

    // Without a reserve, a full disk may refuse revocations too. A disk with space refuses nothing.
    fs::remove_file(folder.join("keys.db-reserve")).unwrap();
    fs::create_dir(folder.join("keys.db-reserve")).unwrap();
    let made: Vec<_> = (0..KEYS).map(|_| create().unwrap()).collect();
    fill(&folder.join("filler"));
    let refused = (0..10_000).find(|_| create().is_err());
    assert!(
        refused.is_some(),
        "the disk is full, and keys are still created"
    );
    let revoke = |key: &Created| wait(keys.revoke(&admin, key.id, Reason::Lost));
    assert!(made.iter().any(|key| revoke(key).is_err()));
    fs::remove_file(folder.join("filler")).unwrap();
    create().unwrap();
    assert!(wait(store.check_integrity()).unwrap().is_sound());
    report("end");
}

pub fn full_later(folder: &Path) {
    mount(folder, "size=24m");
    let path = folder.join("keys.db");
    let reserve = || fs::metadata(folder.join("keys.db-reserve")).unwrap().len();
    let admin = actor("acme", "alice", Role::ADMIN);
    let store = open(&path);
    let keys = service(store.clone(), NO_CAP);
    let create = || wait(keys.create(&admin, reader("key"))).unwrap();
    create();
    wait(store.checkpoint()).unwrap();
    // The log has pages that the file does not have yet.
    let made: Vec<_> = (0..KEYS).map(|_| create()).collect();
    let before = fs::metadata(&path).unwrap().len();
    fill(&folder.join("filler"));
    assert_eq!(reserve(), 8 << 20);
    wait(store.checkpoint()).unwrap();
    assert!(fs::metadata(&path).unwrap().len() > before);
    assert_eq!(reserve(), 8 << 20, "the checkpoint gave the reserve back");

    fs::remove_file(folder.join("filler")).unwrap();
    create();
    drop((keys, store));
    wait_for_close(&path);
    fill(&folder.join("filler"));
    // The first process that opens the file creates its log.
    let keys = service(open(&path), NO_CAP);
    wait(keys.revoke(&admin, made[0].id, Reason::Lost)).unwrap();

    // The disk of the store has space, and that of the copy is full.
    let elsewhere = tempdir().unwrap();
    let store = open(&elsewhere.path().join("keys.db"));
    fill(&folder.join("more"));
    let copy = folder.join("copy.db");
    let refused = wait(store.backup(&copy)).unwrap_err();
    let text = format!("{refused:?}");
    assert!(text.contains(copy.to_str().unwrap()), "{text}");
    assert!(
        text.contains("free space on the disk of the file"),
        "{text}"
    );
    report("end");
}

pub fn full_reports(folder: &Path) {
    mount(folder, "size=20m");
    let path = folder.join("keys.db");
    let store = open(&path);
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = keyward::policy::Policy::new(capped(NO_CAP)).unwrap();
    let builder = Keyward::builder(store.clone(), peppers()).registry(store.clone());
    let keys = wait(builder.policy(policy).clock(clock.clone()).build()).unwrap();
    let admin = actor("acme", "alice", Role::ADMIN);
    let made = wait(keys.create(&admin, reader("key"))).unwrap();
    wait(keys.sync()).unwrap();
    let owned = ["keys.db-nodes", "keys.db-nodes-journal", "keys.db-reserve"];
    let before = owned.map(|name| len(folder, name));

    let rival = Rival::start(folder.join("filler"));
    for _ in 0..100 {
        clock.advance(Duration::from_secs(5));
        wait(keys.sync()).unwrap();
        keys.verify(made.secret.expose(), &Need::any()).unwrap();
    }
    // Other nodes start: their reports are new rows.
    for _ in 0..20 {
        let builder = Keyward::builder(store.clone(), peppers()).registry(open(&path));
        let policy = keyward::policy::Policy::new(capped(NO_CAP)).unwrap();
        let other = wait(builder.policy(policy).clock(clock.clone()).build()).unwrap();
        wait(other.sync()).unwrap();
        other.verify(made.secret.expose(), &Need::any()).unwrap();
    }
    assert_eq!(wait(store.nodes()).unwrap().len(), 21);
    assert_eq!(before, owned.map(|name| len(folder, name)));
    drop(rival);
    wait(keys.revoke(&admin, made.id, Reason::Lost)).unwrap();
    report("end");
}

pub fn full_opens(folder: &Path) {
    mount(folder, "size=20m");
    let path = folder.join("keys.db");
    let reserve = || len(folder, "keys.db-reserve");
    let admin = actor("acme", "alice", Role::ADMIN);
    let keys = service(open(&path), NO_CAP);
    let create = |keys: &Keyward| wait(keys.create(&admin, reader("key")));
    let made: Vec<_> = (0..6).map(|_| create(&keys).unwrap()).collect();
    drop(keys);
    wait_for_close(&path);

    let rival = Rival::start(folder.join("filler"));
    for _ in 0..50 {
        let store = open(&path);
        assert_eq!(wait(store.stats()).unwrap().keys, 6);
        wait(service(store.clone(), NO_CAP).key(&admin, made[0].id)).unwrap();
        wait(store.nodes()).unwrap();
        assert_eq!(reserve(), 8 << 20, "a reader took space of the reserve");
    }
    // Without space for an index, each reads the file alone, and none keeps the others from it.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(wait(open(&path).stats()).unwrap().keys, 6);
                }
            });
        }
    });
    let keys = service(open(&path), NO_CAP);
    create(&keys).unwrap_err();
    assert_eq!(reserve(), 8 << 20, "a creation took space of the reserve");
    drop(rival);
    for (at, key) in made.iter().enumerate() {
        wait(keys.revoke(&admin, key.id, Reason::Lost)).unwrap();
        fill(&folder.join(format!("more {at}")));
        create(&keys).unwrap_err();
        // Another process knows only from the reserve that a revocation used it.
        create(&service(open(&path), NO_CAP)).unwrap_err();
    }
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "filler" || name.starts_with("more ") {
            fs::remove_file(path).unwrap();
        }
    }
    create(&keys).unwrap();
    assert_eq!(reserve(), 8 << 20, "the reserve is whole again");
    report("end");
}

/// The registry is missing, as beside a copied file. Its space comes from the reserve, which has the rest.
pub fn full_registry(folder: &Path) {
    mount(folder, "size=20m");
    let path = folder.join("keys.db");
    let admin = actor("acme", "alice", Role::ADMIN);
    let keys = service(open(&path), NO_CAP);
    let made = wait(keys.create(&admin, reader("key"))).unwrap();
    drop(keys);
    wait_for_close(&path);
    fill(&folder.join("filler"));

    let store = open(&path);
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = keyward::policy::Policy::new(capped(NO_CAP)).unwrap();
    let builder = Keyward::builder(store.clone(), peppers()).registry(store.clone());
    let keys = wait(builder.policy(policy).clock(clock.clone()).build()).unwrap();
    for _ in 0..20 {
        wait(keys.sync()).unwrap();
        clock.advance(Duration::from_secs(5));
    }
    keys.verify(made.secret.expose(), &Need::any()).unwrap();
    assert_eq!(wait(store.nodes()).unwrap().len(), 1);
    assert!(len(folder, "keys.db-reserve") >= 7 << 20);
    wait(keys.revoke(&admin, made.id, Reason::Lost)).unwrap();
    report("end");
}

pub fn full_log(folder: &Path) {
    let log = Captured::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone());
    subscriber.init();
    let (full, again) = (
        || log.lines("disk of the store is full").len(),
        || log.lines("has space again").len(),
    );
    mount(folder, "size=24m");
    let path = folder.join("keys.db");
    let keys = service(open(&path), NO_CAP);
    let admin = actor("acme", "alice", Role::ADMIN);
    let create = || wait(keys.create(&admin, reader("key")));
    for _ in 0..KEYS {
        create().unwrap();
    }
    fill(&folder.join("filler"));
    let mut made = 0;
    for _ in 0..1000 {
        made += usize::from(create().is_ok());
    }
    assert!(made > 0, "the log never started over in its space");
    assert_eq!((full(), again()), (1, 0));
    fs::remove_file(folder.join("filler")).unwrap();
    create().unwrap();
    create().unwrap();
    assert_eq!((full(), again()), (1, 1));
    report("end");
}

pub fn small(folder: &Path) {
    for size in ["size=2m", "size=15m"] {
        mount(folder, size);
        let path = folder.join("keys.db");
        let error = wait(SqliteStore::open(&path)).unwrap_err();
        assert!(matches!(error, OpenError::NoSpace { .. }), "{error:?}");
        assert!(error.to_string().contains("16 MiB"), "{error}");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }
    mount(folder, "size=17m");
    let keys = service(open(&folder.join("keys.db")), NO_CAP);
    let admin = actor("acme", "alice", Role::ADMIN);
    let made: Vec<_> = (0..KEYS)
        .map(|_| wait(keys.create(&admin, reader("key"))).unwrap())
        .collect();
    for key in &made {
        wait(keys.revoke(&admin, key.id, Reason::Lost)).unwrap();
    }
    report("end");
}

pub fn read_only(folder: &Path) {
    let [mounted, other, view] = ["mounted", "other", "view"].map(|name| folder.join(name));
    for folder in [&mounted, &other, &view] {
        fs::create_dir(folder).unwrap();
    }
    mount(&mounted, "size=64m");
    let (path, backup) = (mounted.join("keys.db"), mounted.join("copy #1?.db"));
    let store = open(&path);
    let keys = service(store.clone(), NO_CAP);
    let admin = actor("acme", "alice", Role::ADMIN);
    wait(keys.create(&admin, reader("key"))).unwrap();
    wait(store.backup(&backup)).unwrap();
    // The store itself is in WAL mode, and has no log.
    wait(store.backup(other.join("old.db"))).unwrap();
    drop((keys, store));
    wait_for_close(&path);
    see_every_change_through_a_read_only_view(&mounted, &view);
    mount(&mounted, "remount,ro");

    wait(SqliteStore::restore(&backup, other.join("new.db"))).unwrap();
    let options = SqliteStore::options(&backup)
        .allow_unrecovered()
        .create(false);
    let opened = wait(options.open()).unwrap();
    assert!(wait(opened.check_integrity()).unwrap().is_sound());
    assert_eq!(wait(opened.stats()).unwrap().keys, 1);
    let entries = wait(opened.audit(&AuditQuery::all())).unwrap().rows;
    assert_eq!(entries.len() as u64, wait(opened.stats()).unwrap().audit);
    wait(opened.nodes()).unwrap();

    let refused = wait(SqliteStore::open(&path)).unwrap_err();
    assert!(matches!(refused, OpenError::Denied { .. }), "{refused:?}");
    let text = format!("{refused:?}");
    assert!(text.contains("copy the file to another folder"), "{text}");
    // A lost disk is mounted read-only, and its audit trail is replayed.
    let lost = wait(only_read(&path)).unwrap();
    let trail = wait(lost.audit(&AuditQuery::all())).unwrap().rows;
    assert!(trail.len() > entries.len() && trail.starts_with(&entries));
    wait(lost.nodes()).unwrap();
    let refused = wait(service(lost, NO_CAP).create(&admin, reader("more"))).unwrap_err();
    assert!(
        matches!(&refused, CommandError::Store(error) if error.kind() == StoreErrorKind::Denied),
        "{refused:?}"
    );
    let missing = wait(SqliteStore::open(mounted.join("none.db"))).unwrap_err();
    assert!(matches!(missing, OpenError::Denied { .. }), "{missing:?}");
    report("end");
}

async fn only_read(path: &Path) -> Result<SqliteStore, OpenError> {
    let options = SqliteStore::options(path).allow_unrecovered();
    options.create(false).open().await
}

/// Mounts a folder read-only at `view`, while other processes can still write the folder.
fn see_every_change_through_a_read_only_view(folder: &Path, view: &Path) {
    let bind = |options: &str, paths: &[&Path]| {
        let mount = Command::new("mount")
            .arg("-o")
            .arg(options)
            .args(paths)
            .status();
        assert!(mount.unwrap().success(), "mount -o {options}");
    };
    bind("bind", &[folder, view]);
    bind("remount,bind,ro", &[view]);
    let (path, seen) = (folder.join("keys.db"), view.join("keys.db"));
    let refused = wait(SqliteStore::open(&seen)).unwrap_err();
    assert!(matches!(refused, OpenError::Denied { .. }), "{refused:?}");
    let reader = wait(only_read(&seen)).unwrap();
    let before = wait(reader.stats()).unwrap().head;
    let store = open(&path);
    let admin = actor("acme", "alice", Role::ADMIN);
    let keys = service(store.clone(), NO_CAP);
    wait(keys.create(&admin, support::reader("another"))).unwrap();
    let after = wait(store.stats()).unwrap().head;
    drop((keys, store));
    wait_for_close(&path);
    assert_ne!(before, after);
    assert_eq!(wait(reader.stats()).unwrap().head, after);
}

/// Waits until the store's threads have closed their connections, which removes the log.
fn wait_for_close(path: &Path) {
    let log = path.with_file_name("keys.db-wal");
    while log.exists() {
        std::thread::yield_now();
    }
}
