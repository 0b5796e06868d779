//! SQLite stores in a temporary folder. Dropping the stores removes the folder.

use keyward::store::SqliteStore;
use tempfile::TempDir;

use crate::turns::RoundRobin;

/// Several store instances on one database file, which are called in turn.
pub type SqliteInstances = RoundRobin<SqliteStore, TempDir>;

pub fn folder(instances: usize) -> SqliteInstances {
    let folder = tempfile::tempdir().expect("the system has a writable temporary folder");
    let path = folder.path().join("keys.db");
    let open =
        |_| pollster::block_on(SqliteStore::open(&path)).expect("a new file opens as a store");
    RoundRobin::new(instances, open, folder)
}
