//! Several store instances on one database. Each call goes to the next instance, as if several processes
//! shared the database.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyward::store::usage::{
    BootClosing, BootOpening, KeyDay, LastUse, LastUseQuery, UsageBatch, UsageError, UsageLedger,
    UsagePruning, UsageStore,
};
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, DocumentError,
    DocumentName, DocumentRead, DocumentWrite, Documents, FoundKey, KeyPage, KeyQuery, KeyStore,
    LoadRequest, Locator, NodeId, NodeRegistry, NodeReport, Revision, RowKey, ScanPage, StoreError,
    TakePage, TenantView, async_trait,
};
use keyward::usage::Day;
use keyward::{KeyId, TenantId};

/// Several store instances, which are called in turn. The resource that they need, such as a temporary
/// folder, is dropped after them.
#[derive(Debug)]
pub struct RoundRobin<S, K> {
    stores: Vec<S>,
    turn: AtomicUsize,
    _keep: K,
}

#[allow(
    dead_code,
    reason = "each test program uses only some of the functions"
)]
impl<S, K> RoundRobin<S, K> {
    pub fn new(instances: usize, open: impl FnMut(usize) -> S, keep: K) -> Self {
        Self {
            stores: (0..instances).map(open).collect(),
            turn: AtomicUsize::new(0),
            _keep: keep,
        }
    }

    pub fn store(&self) -> &S {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.stores[turn % self.stores.len()]
    }
}

#[async_trait]
impl<S: KeyStore, K: Debug + Send + Sync + 'static> KeyStore for RoundRobin<S, K> {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.store().load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
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

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        self.store().scan_all(limit, take).await
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

    fn documents(&self) -> Option<&dyn Documents> {
        self.store().documents()
    }
}

#[async_trait]
impl<S: Documents, K: Debug + Send + Sync + 'static> Documents for RoundRobin<S, K> {
    async fn document(&self, name: &DocumentName) -> Result<DocumentRead, StoreError> {
        self.store().document(name).await
    }

    async fn write_document(&self, write: DocumentWrite) -> Result<u64, DocumentError> {
        self.store().write_document(write).await
    }
}

#[async_trait]
impl<S: NodeRegistry, K: Debug + Send + Sync + 'static> NodeRegistry for RoundRobin<S, K> {
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

#[async_trait]
impl<S: UsageStore, K: Debug + Send + Sync + 'static> UsageStore for RoundRobin<S, K> {
    async fn open_boot(&self, opening: BootOpening) -> Result<(), StoreError> {
        self.store().open_boot(opening).await
    }

    async fn add(&self, batch: UsageBatch) -> Result<(), UsageError> {
        self.store().add(batch).await
    }

    async fn close_boot(&self, closing: BootClosing) -> Result<bool, StoreError> {
        self.store().close_boot(closing).await
    }

    async fn ledger(&self) -> Result<UsageLedger, StoreError> {
        self.store().ledger().await
    }

    async fn days(&self, keys: &[KeyId], from: Day, to: Day) -> Result<Vec<KeyDay>, StoreError> {
        self.store().days(keys, from, to).await
    }

    async fn last_uses(&self, keys: &[KeyId]) -> Result<BTreeMap<KeyId, LastUse>, StoreError> {
        self.store().last_uses(keys).await
    }

    async fn by_last_use(&self, query: &LastUseQuery) -> Result<Vec<(KeyId, LastUse)>, StoreError> {
        self.store().by_last_use(query).await
    }

    async fn prune(&self, pruning: UsagePruning) -> Result<usize, StoreError> {
        self.store().prune(pruning).await
    }

    async fn forget_keys(&self, keys: &[KeyId]) -> Result<(), StoreError> {
        self.store().forget_keys(keys).await
    }
}
