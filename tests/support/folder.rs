//! File stores in a folder of their own, which goes when they do.

use keyward::store::SqliteStore;
use tempfile::TempDir;

use crate::turns::Turns;

/// Several instances on one file, between which calls take turns.
pub type Folder = Turns<SqliteStore, TempDir>;

pub fn folder(instances: usize) -> Folder {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("keys.db");
    let open = |_| pollster::block_on(SqliteStore::open(&path)).expect("the store opens");
    Turns::new(instances, open, folder)
}
