//! The code that the child processes of the SQLite tests run.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, Revision, RowKey, ScanPage, SqliteStore, StoreError,
    TenantView, async_trait,
};
use keyward::{
    CommandError, KeyId, Keyward, ManualClock, Reason, Role, RotateKey, TenantId, hours,
};

use crate::sqlite::{counts, mounts};
use keyward::policy::Policy;
use support::process::{report, wait_for_parent};
use support::{START, actor, at, capped, peppers, reader, wait};

/// 1,000,000 active keys, a cap that no child reaches.
pub const NO_CAP: u32 = 1_000_000;

/// 5 active keys in the tenant that all processes share, so few that they reach this cap.
pub const CAP: u32 = 5;

/// 8 commits of the child process `steps`. The number is small, so that a test can let each call of the
/// process fail in turn.
pub const STEPS: usize = 8;

pub fn run(part: &str) {
    let path = PathBuf::from(std::env::var_os("CHILD_PATH").unwrap());
    match part {
        "races" => races(&path),
        "works" => works(&path),
        "stays" => stays(&path),
        "steps" => steps(&path),
        "recorded" => recorded(&path),
        "rows" => rows(&path),
        "locks" => locks(&path),
        "reads" => reads(&path),
        "creates" => creates(&path),
        "counts" => counts::counts(&path, number("CHILD_NUMBER") as u64),
        "full-counts" => counts::full_counts(&path),
        "full" => mounts::full(&path),
        "full-later" => mounts::full_later(&path),
        "full-reports" => mounts::full_reports(&path),
        "full-opens" => mounts::full_opens(&path),
        "full-registry" => mounts::full_registry(&path),
        "full-log" => mounts::full_log(&path),
        "small" => mounts::small(&path),
        "read-only" => mounts::read_only(&path),
        other => panic!("unknown part {other}"),
    }
}

fn number(name: &str) -> usize {
    std::env::var(name).unwrap().parse().unwrap()
}

pub fn service(store: impl KeyStore, cap: u32) -> Keyward {
    try_service(store, cap).unwrap()
}

fn try_service(store: impl KeyStore, cap: u32) -> Result<Keyward, keyward::BuildError> {
    let builder = Keyward::builder(store, peppers())
        .policy(
            Policy::new(capped(cap).with(|spec| spec.version = u32::from(cap == NO_CAP))).unwrap(),
        )
        .clock(Arc::new(ManualClock::at(at(START))));
    wait(builder.build())
}

pub fn open(path: &Path) -> SqliteStore {
    wait(SqliteStore::open(path)).unwrap()
}

fn done(revision: Revision, what: &str, key: KeyId) {
    report(format_args!("done {} {what} {key}", revision.0));
}

/// Creates and revokes keys, both in a tenant that all processes share and in a tenant of this process alone.
fn races(path: &Path) {
    let own = format!("own-{}", number("CHILD_NUMBER"));
    let keys = service(open(path), CAP);
    let mut mine = Vec::new();
    report("ready");
    assert!(wait_for_parent());
    for round in 0..number("CHILD_ROUNDS") {
        for tenant in ["shared", &own] {
            let admin = actor(tenant, "alice", Role::ADMIN);
            match wait(keys.create(&admin, reader(&format!("key {round}")))) {
                Ok(made) => {
                    done(made.receipt.revision(), "created", made.id);
                    mine.push((admin.clone(), made.id));
                }
                Err(CommandError::Denied(_) | CommandError::Contended { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        while mine.len() > 4 {
            let (admin, key) = mine.remove(0);
            match wait(keys.revoke(&admin, key, Reason::Lost)) {
                Ok(receipt) => done(receipt.revision(), "revoked", key),
                Err(CommandError::Contended { .. }) => mine.push((admin, key)),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

/// Creates, rotates and revokes keys in several tenants, until the parent kills this process.
fn works(path: &Path) {
    let keys = service(open(path), NO_CAP);
    for round in 0_usize.. {
        let admin = actor(&format!("tenant-{}", round % 5), "alice", Role::ADMIN);
        let made = wait(keys.create(&admin, reader("key"))).unwrap();
        done(made.receipt.revision(), "created", made.id);
        if round % 2 == 0 {
            let how = RotateKey::grace(hours(1));
            let next = wait(keys.rotate(&admin, made.id, how)).unwrap();
            done(next.receipt.revision(), "created", next.id);
            done(next.receipt.revision(), "rotated", made.id);
        }
        if round % 3 == 0 {
            let receipt = wait(keys.revoke(&admin, made.id, Reason::Lost)).unwrap();
            done(receipt.revision(), "revoked", made.id);
        }
    }
}

/// Commits once, and once more for each line from the parent.
fn stays(path: &Path) {
    let store = open(path);
    let keys = service(store, NO_CAP);
    let admin = actor("acme", "alice", Role::ADMIN);
    loop {
        let made = wait(keys.create(&admin, reader("key"))).unwrap();
        done(made.receipt.revision(), "created", made.id);
        if !wait_for_parent() {
            return;
        }
    }
}

/// A store that reports the outcome of every commit to the parent.
#[derive(Debug)]
struct Reporting(SqliteStore);

#[async_trait]
impl KeyStore for Reporting {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.0.load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.0.find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let tag = commit.tag.0;
        let answer = self.0.commit(commit).await;
        match &answer {
            Ok(revision) => report(format_args!("Durable {tag} {}", revision.0)),
            Err(CommitError::Store(error)) => report(format_args!("{:?} {tag}", error.kind())),
            Err(other) => report(format_args!("{other:?} {tag}")),
        }
        answer
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.0.changes(after, limit).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.0.scan(after, limit).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.0.list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.0.audit(query).await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.0.wait_past(after).await
    }
}

/// Commits while calls to the operating system fail, and once more after the faults have ended. The parent
/// may kill this process before the last commit.
fn steps(path: &Path) {
    let store = match wait(SqliteStore::open(path)) {
        Ok(store) => store,
        Err(error) => {
            report(format_args!("refused {error:?}"));
            lift();
            open(path)
        }
    };
    let keys = match try_service(Reporting(store.clone()), NO_CAP) {
        Ok(keys) => keys,
        Err(error) => {
            report(format_args!("refused {error:?}"));
            lift();
            service(Reporting(store.clone()), NO_CAP)
        }
    };
    let admin = actor("acme", "alice", Role::ADMIN);
    for round in 0..STEPS {
        // The result is ignored, because `Reporting` has already reported the outcome of the commit.
        drop(wait(keys.create(&admin, reader("key"))));
        if round == STEPS / 2 {
            checkpoint(path);
        }
    }
    if std::env::var_os("CHILD_DIES").is_some() {
        report("dying");
        wait_for_parent();
    }
    lift();
    let made = wait(keys.create(&admin, reader("last"))).unwrap();
    done(made.receipt.revision(), "created", made.id);
    assert!(wait(store.check_integrity()).unwrap().is_sound());
}

/// Moves the contents of the write-ahead log into the database file, as SQLite does after every thousand
/// pages.
fn checkpoint(path: &Path) {
    let Ok(conn) = rusqlite::Connection::open(path) else {
        return;
    };
    // An error is ignored, because the disk is failing on purpose.
    drop(conn.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())));
    // Closing the connection makes calls too, and these may fail as well.
    drop(conn);
}

/// Creates the file `SHIM_LIFT`, which ends the faults: once it exists, the shim lets every call succeed.
fn lift() {
    std::fs::write(std::env::var_os("SHIM_LIFT").unwrap(), "").unwrap();
}

/// A file to which a child process writes a line after each acknowledged commit. The shim records these lines
/// in order with the writes to the database. A power cut after a line must not lose the commit.
struct Marker(std::fs::File);

impl Marker {
    fn beside(path: &Path) -> Self {
        Self(std::fs::File::create(path.with_extension("marker")).unwrap())
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        use std::io::Write;
        self.0.write_all(format!("{what}\n").as_bytes()).unwrap();
    }
}

/// Creates and revokes keys, and writes a mark after each acknowledged commit.
fn recorded(path: &Path) {
    let keys = service(open(path), NO_CAP);
    let mut marker = Marker::beside(path);
    for round in 0..number("CHILD_ROUNDS") {
        let admin = actor(&format!("tenant-{}", round % 3), "alice", Role::ADMIN);
        let made = wait(keys.create(&admin, reader("key"))).unwrap();
        marker.note(made.id);
        if round % 4 == 0 {
            wait(keys.revoke(&admin, made.id, Reason::Lost)).unwrap();
            marker.note(format_args!("{} revoked", made.id));
        }
    }
}

/// Commits rows without waiting for fsync, and still writes a mark after each commit. A power cut must be
/// seen to lose some rows.
fn rows(path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.pragma_update(None, "synchronous", "NORMAL").unwrap();
    let mut marker = Marker::beside(path);
    for round in 0..number("CHILD_ROUNDS") {
        conn.execute(
            "INSERT INTO rows VALUES (?1, randomblob(4000))",
            [round as i64],
        )
        .unwrap();
        marker.note(round);
    }
}

/// Holds the write lock of the database until the parent sends a line.
fn locks(path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(5)).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    report("locked");
    wait_for_parent();
    conn.execute_batch("ROLLBACK").unwrap();
    report("released");
    wait_for_parent();
}

/// Creates a store and reports its epoch. Opens the store instead if another process has created it first.
fn creates(path: &Path) {
    let mut options = SqliteStore::options(path);
    if std::env::var_os("CHILD_NEW").is_some() {
        options = options.create_new(true);
    }
    match wait(options.open()) {
        Ok(store) => report(format_args!(
            "epoch {}",
            wait(store.stats()).unwrap().head.epoch.0
        )),
        Err(error) => report(format_args!("refused {error}")),
    }
}

/// Commits and reads while the file system is first writable, then read-only, and then writable again.
fn reads(path: &Path) {
    let store = open(path);
    // The first process of a store must write its settings. A later one need not.
    drop(service(store.clone(), NO_CAP));
    let keys = service(Reporting(store.clone()), NO_CAP);
    let admin = actor("acme", "alice", Role::ADMIN);
    let made = wait(keys.create(&admin, reader("before"))).unwrap();
    std::fs::write(std::env::var_os("SHIM_ARM").unwrap(), "").unwrap();
    wait(keys.create(&admin, reader("in it"))).unwrap_err();
    wait(keys.key(&admin, made.id)).unwrap();
    match wait(SqliteStore::open(path)) {
        Ok(second) => {
            report("opens");
            wait(service(second, NO_CAP).key(&admin, made.id)).unwrap();
        }
        Err(error) => report(format_args!("refused {error:?}")),
    }
    lift();
    wait(keys.create(&admin, reader("after"))).unwrap();
}
