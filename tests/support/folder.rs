//! File stores in a folder of their own, which goes when they do.
#![allow(unreachable_pub, reason = "each test file uses its own part")]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, KeyPage, KeyQuery,
    KeyStore, Locator, NodeId, NodeRegistry, NodeReport, Revision, RowKey, ScanPage, Select,
    SqliteStore, StoreError, TenantView, Versioned,
};
use keyward::{TenantId, async_trait};
use tempfile::TempDir;

/// Several instances on one file, between which calls take turns.
#[derive(Debug)]
pub(crate) struct Folder {
    stores: Vec<SqliteStore>,
    turn: AtomicUsize,
    folder: TempDir,
}

#[allow(dead_code, reason = "each test uses some of it")]
impl Folder {
    pub(crate) fn with(instances: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("keys.db");
        let open = |_| pollster::block_on(SqliteStore::open(&path)).expect("the store opens");
        Self {
            stores: (0..instances).map(open).collect(),
            turn: AtomicUsize::new(0),
            folder,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("keys.db")
    }

    pub(crate) fn store(&self) -> &SqliteStore {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.stores[turn % self.stores.len()]
    }
}

#[async_trait]
impl KeyStore for Folder {
    async fn load(&self, tenant: &TenantId, select: &Select) -> Result<TenantView, StoreError> {
        self.store().load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<Versioned>, StoreError> {
        self.store().find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.store().commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.store().changes(after, limit).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.store().scan(after, limit).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.store().list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.store().audit(query).await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.store().wait_past(after).await
    }
}

#[async_trait]
impl NodeRegistry for Folder {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        self.store().report(report).await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.store().nodes().await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        self.store().forget(node, upto).await
    }
}
