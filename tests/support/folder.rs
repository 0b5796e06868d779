//! SQLite stores in a temporary folder, which is removed on drop.

use keyward::store::SqliteStore;
use tempfile::TempDir;

use crate::turns::RoundRobin;

/// Several store instances on one file. Each call goes to the next instance in turn.
pub type SqliteInstances = RoundRobin<SqliteStore, TempDir>;

pub fn folder(instances: usize) -> SqliteInstances {
    let folder = tempfile::tempdir().expect("the system has a writable temporary folder");
    let path = folder.path().join("keys.db");
    let open =
        |_| pollster::block_on(SqliteStore::open(&path)).expect("a new file opens as a store");
    RoundRobin::new(instances, open, folder)
}
