//! File stores in a temporary folder, which is removed on drop.

use keyward::store::SqliteStore;
use tempfile::TempDir;

use crate::turns::Turns;

/// Several instances on one file that take turns with calls.
pub type Folder = Turns<SqliteStore, TempDir>;

pub fn folder(instances: usize) -> Folder {
    let folder = tempfile::tempdir().expect("the system has a writable temporary folder");
    let path = folder.path().join("keys.db");
    let open =
        |_| pollster::block_on(SqliteStore::open(&path)).expect("a new file opens as a store");
    Turns::new(instances, open, folder)
}
