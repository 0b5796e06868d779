//! The connection between a node and the store: requests and replies take time, and can be lost.
//!
//! The store executes every request that reaches it, even if the node that sent it has stopped since.

use std::collections::BTreeSet;
use std::fmt;
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use async_trait::async_trait;

use super::world::{MILLI, SimulatedWorld};
use crate::Call;
use crate::explore::block_on;
use keyward::TenantId;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, Documents, Epoch,
    FoundKey, KeyPage, KeyQuery, KeyStore, Locator, RowKey, ScanPage, StoreError, StoreErrorKind,
    TakePage, scan_by_pages,
};
use keyward::store::{LoadRequest, Revision, TenantView};

/// The store as one node calls it, over a simulated network.
#[derive(Clone)]
pub(super) struct Link {
    world: Arc<SimulatedWorld>,
    machine: usize,
    store: Arc<dyn KeyStore>,
    /// The time after which a call without a reply fails, in microseconds.
    patience: u64,
    /// The most rows that the store returns on one page.
    page: NonZeroUsize,
}

/// The reason for which a call got no reply.
enum NoReply {
    /// The request was never sent, so the store did not execute it.
    Refused,
    /// The request or the reply was lost, so the store may have executed the call.
    Silent,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.machine).finish()
    }
}

impl Link {
    pub(super) const fn new(
        world: Arc<SimulatedWorld>,
        machine: usize,
        store: Arc<dyn KeyStore>,
        patience: u64,
        page: NonZeroUsize,
    ) -> Self {
        Self {
            world,
            machine,
            store,
            patience,
            page,
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        call: Call,
        serve: impl FnOnce(&Arc<SimulatedWorld>, &dyn KeyStore) -> T + Send + 'static,
    ) -> Result<T, NoReply> {
        let reply = Arc::new(Mutex::new(None));
        let (machine, store) = (self.machine, self.store.clone());
        let (deadline, refused) = {
            let mut state = self.world.state();
            let caller = state.running();
            let cut_off = state.machines[machine].cut_off > state.now;
            let deadline = state.now + self.patience;
            let refused = cut_off && state.dice.chance(500);
            if let (Some(takes), false) = (state.message(machine), refused) {
                let (sent, at) = (state.now, state.now + takes);
                let reply = reply.clone();
                let job = move |world: &Arc<SimulatedWorld>| {
                    let answer = serve(world, &*store);
                    let mut state = world.state();
                    state.mark_call(machine, call);
                    if call == Call::Changes {
                        state.machines[machine].served = Some(sent);
                    }
                    let takes = state.message(machine);
                    let now = state.now;
                    state.log(|| match takes {
                        Some(takes) => {
                            format!("store does {call:?} of {machine}, reply in {takes}")
                        }
                        None => format!("store does {call:?} of {machine}, reply lost"),
                    });
                    if let Some(takes) = takes {
                        let at = now + takes;
                        *reply.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, answer));
                        state.wake_task(caller, at);
                    }
                };
                state.serve_at(at, Box::new(job));
            }
            if refused {
                let soon = state.now + MILLI;
                state.wake_at(soon);
                (soon, true)
            } else {
                state.wake_at(deadline);
                (deadline, false)
            }
        };
        let answer = poll_fn(|_| {
            let now = self.world.state().now;
            let mut reply = reply.lock().unwrap_or_else(PoisonError::into_inner);
            match reply.take_if(|(at, _)| *at <= now) {
                Some((_, answer)) => Poll::Ready(Some(answer)),
                None if now >= deadline => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await;
        let lost = if refused {
            NoReply::Refused
        } else {
            NoReply::Silent
        };
        answer.ok_or(lost)
    }

    async fn read<T: Send + 'static>(
        &self,
        call: Call,
        doing: &'static str,
        serve: impl FnOnce(&dyn KeyStore) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = self.call(call, |_, store| serve(store)).await;
        answer.map_err(|_| StoreError::new(StoreErrorKind::Unavailable, doing))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyStore for Link {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        let (tenant, select) = (tenant.clone(), select.clone());
        let load = move |store: &dyn KeyStore| block_on(store.load(&tenant, &select));
        self.read(Call::Load, "loading a tenant", load).await?
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        let locator = *locator;
        let find = move |store: &dyn KeyStore| block_on(store.find(&locator));
        self.read(Call::Find, "finding a key", find).await?
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let machine = self.machine;
        let serve = move |world: &Arc<SimulatedWorld>, store: &dyn KeyStore| {
            let done = block_on(store.commit(commit.clone()));
            if let Ok(revision) = done {
                let mut state = world.state();
                let now = state.now;
                state.last_commit = now;
                state.report.commits += 1;
                state.log(|| {
                    let rows: Vec<_> = commit.rows().map(|row| row.key()).collect();
                    format!("commit {revision} of {machine}: {rows:?}")
                });
                if let Err((invariant, what)) = state.ledger.landed(&commit, revision, now) {
                    state.find(invariant, what);
                }
                for other in 0..state.machines.len() {
                    // Notifies every node of the commit. A notification can be lost like any other message.
                    if state.message(other).is_some() {
                        state.machines[other].notified = true;
                    }
                }
            }
            done
        };
        let error = |kind| StoreError::new(kind, "committing").into();
        match self.call(Call::Commit, serve).await {
            Ok(done) => done,
            Err(NoReply::Refused) => Err(error(StoreErrorKind::Unavailable)),
            Err(NoReply::Silent) => Err(error(StoreErrorKind::Indeterminate)),
        }
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let limit = limit.min(self.page);
        let changes = move |store: &dyn KeyStore| block_on(store.changes(after, limit));
        self.read(Call::Changes, "reading changes", changes).await?
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        let limit = limit.min(self.page);
        let scan = move |store: &dyn KeyStore| block_on(store.scan(after, limit));
        self.read(Call::Scan, "scanning", scan).await?
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        scan_by_pages(self, limit, take).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let query = query.clone();
        let list = move |store: &dyn KeyStore| block_on(store.list(&query));
        self.read(Call::List, "listing keys", list).await?
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let query = query.clone();
        let audit = move |store: &dyn KeyStore| block_on(store.audit(&query));
        self.read(Call::Audit, "reading the trail", audit).await?
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        let tenants = |store: &dyn KeyStore| block_on(store.tenants());
        self.read(Call::List, "listing tenants", tenants).await?
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        let read = |store: &dyn KeyStore| block_on(store.restored_from());
        self.read(Call::Load, "reading the store's own row", read)
            .await?
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        let check = |store: &dyn KeyStore| block_on(store.known_loss());
        self.read(Call::Load, "checking the store", check).await?
    }

    /// Never resolves. The simulation notifies a node through the `notified` flag of its machine instead.
    async fn wait_past(&self, _: Cursor) -> Result<(), StoreError> {
        std::future::pending().await
    }

    fn changes_now(&self, _: Cursor, _: NonZeroUsize) -> Option<Result<Changes, ChangesError>> {
        // Return `None`, as a remote store does. With an answer, the node would sync at every verification,
        // and would never become stale.
        None
    }

    fn documents(&self) -> Option<&dyn Documents> {
        None
    }

    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
