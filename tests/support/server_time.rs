//! A store whose server reports the time of its own clock.

use std::num::NonZeroUsize;
use std::sync::Arc;

use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, Revision, RowKey, ScanPage, StoreError,
    TakePage, TenantView, async_trait,
};
use keyward::{Clock, ManualClock, TenantId};

/// An in-memory store, which returns the time of the clock `server` with each load and each page of the feed.
#[derive(Clone, Debug)]
pub struct ServerTimeStore {
    inner: MemoryStore,
    server: Arc<ManualClock>,
}

impl ServerTimeStore {
    pub fn new(inner: MemoryStore, server: &Arc<ManualClock>) -> Self {
        let server = server.clone();
        Self { inner, server }
    }
}

#[async_trait]
impl KeyStore for ServerTimeStore {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        let view = self.inner.load(tenant, select).await?;
        let server_time = Some(self.server.now());
        Ok(TenantView {
            server_time,
            ..view
        })
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.inner.find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.inner.commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let page = self.inner.changes(after, limit).await?;
        let server_time = Some(self.server.now());
        Ok(Changes {
            server_time,
            ..page
        })
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.inner.scan(after, limit).await
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        self.inner.scan_all(limit, take).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.inner.list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.inner.audit(query).await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.inner.wait_past(after).await
    }
}
