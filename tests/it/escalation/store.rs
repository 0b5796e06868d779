//! An in-memory store that can run another action between a decision and its commit.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Mutex;

use keyward::TenantId;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, Revision, RowKey, ScanPage, StoreError,
    TenantView, async_trait,
};

type Meanwhile = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct Paused {
    inner: MemoryStore,
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl fmt::Debug for Paused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Paused").finish_non_exhaustive()
    }
}

impl Paused {
    /// Schedules `meanwhile` to run before the next commit.
    pub(crate) fn pause(&self, meanwhile: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Box::new(meanwhile));
    }

    /// Drops the pending action, if it has not run.
    pub(crate) fn go_on(&self) {
        self.meanwhile.lock().unwrap().take();
    }
}

#[async_trait]
impl KeyStore for Paused {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.inner.load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.inner.find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        self.inner.commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.inner.changes(after, limit).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.inner.scan(after, limit).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.inner.list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.inner.audit(query).await
    }
}
