//! The SQLite store: opening, damage, sharing, backups. `tests/faults/sqlite` tests crashes and disk faults.

mod backups;
mod damage;
mod diverged;
mod nodes;
mod opening;
mod salvaged;
mod sharing;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::store::{KeyStore, SqliteStore};
use keyward::{Keyward, ManualClock, profiles};
use tempfile::TempDir;

use support::*;

/// A folder for one store, with a manual clock.
pub(crate) struct Desk {
    folder: TempDir,
    pub(crate) clock: Arc<ManualClock>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::at(at(START))),
        }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.at("keys.db")
    }

    pub(crate) fn store(&self) -> SqliteStore {
        wait(SqliteStore::open(self.path())).unwrap()
    }

    pub(crate) fn node(&self, store: impl KeyStore) -> Keyward {
        node(store, &self.clock, policy())
    }

    pub(crate) fn keys(&self) -> Keyward {
        self.node(self.store())
    }
}

pub(crate) fn policy() -> keyward::policy::Policy {
    keyward::policy::Policy::new(profiles::standard()).unwrap()
}

/// Opens the file with SQLite directly, as another program might.
pub(crate) fn sql(path: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(path).unwrap()
}

/// Checkpoints the write-ahead log into the file, as the last connection does when it closes.
pub(crate) fn checkpoint(path: &Path) {
    let conn = sql(path);
    let done: i64 = conn
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .unwrap();
    assert_eq!(done, 0, "no other connection blocks the checkpoint");
}
