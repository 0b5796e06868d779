//! A store wrapper for the explorer. Every call yields once before it reaches the inner store, which makes
//! the call one step.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;

use super::{Choice, ChoiceTrail, Reply};
use keyward::TenantId;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, Documents, FoundKey,
    KeyPage, KeyQuery, KeyStore, Locator, RowKey, ScanPage, StoreError, StoreErrorKind, TakePage,
    scan_by_pages,
};
use keyward::store::{Epoch, LoadRequest, Revision, TenantView};

/// The state that the explorer shares with its [`StepStore`].
#[derive(Debug)]
pub(super) struct ScheduleControl {
    decisions: Mutex<Decisions>,
}

#[derive(Debug)]
struct Decisions {
    trail: ChoiceTrail,
    may_lose: usize,
}

impl ScheduleControl {
    pub(super) fn new(trail: ChoiceTrail, may_lose: usize) -> Self {
        Self {
            decisions: Mutex::new(Decisions { trail, may_lose }),
        }
    }

    pub(super) fn choose(&self, options: Vec<Choice>) -> Choice {
        self.decisions().trail.choose(options)
    }

    pub(super) fn take(&self) -> ChoiceTrail {
        std::mem::take(&mut self.decisions().trail)
    }

    fn reply(&self) -> Reply {
        let mut decisions = self.decisions();
        if decisions.may_lose == 0 {
            return Reply::Arrives;
        }
        let options = [Reply::Arrives, Reply::Lost, Reply::RequestLost];
        match decisions.trail.choose(options.map(Choice::Reply).to_vec()) {
            Choice::Reply(reply @ (Reply::Lost | Reply::RequestLost)) => {
                decisions.may_lose -= 1;
                reply
            }
            _ => Reply::Arrives,
        }
    }

    fn decisions(&self) -> MutexGuard<'_, Decisions> {
        self.decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct StepStore {
    inner: Arc<dyn KeyStore>,
    control: Arc<ScheduleControl>,
}

impl StepStore {
    pub(super) fn new(inner: Arc<dyn KeyStore>, control: Arc<ScheduleControl>) -> Self {
        Self { inner, control }
    }
}

thread_local! {
    /// Set once a writer has reached a step since it was last polled. All writers run on one thread.
    static STEPPED: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether a writer has reached a step since the previous call of this function.
pub(super) fn stepped() -> bool {
    STEPPED.take()
}

/// Yields once. In a writer, execution continues when the explorer chooses this writer for the next step.
///
/// Every store call of a writer begins with a step. A store under test may add steps between two statements
/// of one call. Outside the explorer, this function only yields.
pub async fn step() {
    YieldOnce { waited: false }.await;
}

struct YieldOnce {
    waited: bool,
}

impl Future for YieldOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.waited {
            return Poll::Ready(());
        }
        self.waited = true;
        STEPPED.set(true);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyStore for StepStore {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        step().await;
        self.inner.load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        step().await;
        self.inner.find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        step().await;
        let lost = || StoreError::new(StoreErrorKind::Indeterminate, "committing").into();
        match self.control.reply() {
            Reply::Arrives => self.inner.commit(commit).await,
            Reply::Lost => match self.inner.commit(commit).await {
                Ok(_) => Err(lost()),
                refused => refused,
            },
            Reply::RequestLost => Err(lost()),
        }
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        step().await;
        self.inner.changes(after, limit).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        step().await;
        self.inner.scan(after, limit).await
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        scan_by_pages(self, limit, take).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        step().await;
        self.inner.list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        step().await;
        self.inner.audit(query).await
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        step().await;
        self.inner.tenants().await
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        step().await;
        self.inner.restored_from().await
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        step().await;
        self.inner.known_loss().await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        step().await;
        self.inner.wait_past(after).await
    }

    fn changes_now(&self, _: Cursor, _: NonZeroUsize) -> Option<Result<Changes, ChangesError>> {
        // Returns `None`: an answer would read the store outside of any step, and the explorer could not
        // order that read.
        None
    }

    fn documents(&self) -> Option<&dyn Documents> {
        None
    }

    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
