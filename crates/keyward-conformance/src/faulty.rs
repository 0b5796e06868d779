//! A store that fails when a test requests it.
//!
//! [`FaultyStore`] wraps any store, and injects only faults that the contract of stores allows: a call that
//! fails, or a write whose outcome is unknown. Without a fault, a call behaves as on the inner store.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use keyward::TenantId;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, DocumentError,
    DocumentName, DocumentRead, DocumentWrite, Documents, Epoch, FoundKey, KeyPage, KeyQuery,
    KeyStore, Locator, NodeId, NodeRegistry, NodeReport, RowKey, ScanPage, StoreError,
    StoreErrorKind, TakePage, scan_by_pages,
};
use keyward::store::{LoadRequest, Revision, TenantView};

/// A method of [`KeyStore`], [`NodeRegistry`] or [`Documents`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Call {
    /// [`KeyStore::load`].
    Load,
    /// [`KeyStore::find`].
    Find,
    /// [`KeyStore::commit`].
    Commit,
    /// [`KeyStore::changes`].
    Changes,
    /// [`KeyStore::scan`].
    Scan,
    /// [`KeyStore::list`].
    List,
    /// [`KeyStore::audit`].
    Audit,
    /// [`KeyStore::wait_past`].
    WaitPast,
    /// [`NodeRegistry::report`].
    Report,
    /// [`NodeRegistry::nodes`].
    Nodes,
    /// [`NodeRegistry::forget`].
    Forget,
    /// [`Documents::document`].
    ReadDocument,
    /// [`Documents::write_document`].
    WriteDocument,
    /// [`KeyStore::close`].
    Close,
}

/// A fault to inject into a call.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Fault {
    /// No fault. The inner store executes the call.
    #[default]
    None,
    /// The call does not reach the inner store, and returns `Unavailable`.
    Unavailable,
    /// The inner store executes a write, but its success is not reported: the write returns `Indeterminate`.
    /// A refused write still returns its refusal, and a read succeeds.
    ReplyLost,
    /// The call does not reach the inner store. A write returns `Indeterminate`, because a caller cannot
    /// distinguish a lost request from a lost reply. A read returns `Unavailable`.
    RequestLost,
}

type FaultPlan = dyn FnMut(Call) -> Fault + Send;

/// A store that injects faults. Clones share the inner store and the faults. A test can give one clone to a
/// service and control the faults through another.
///
/// By default, [`KeyStore::changes_now`] returns `None`, so that a node becomes stale unless it syncs. After
/// [`answer_at_once`](Self::answer_at_once), `changes_now` returns the answer of the inner store.
///
/// # Examples
///
/// ```
/// # pollster::block_on(async {
/// use keyward_conformance::{Call, Fault, FaultyStore};
/// use keyward::store::MemoryStore;
/// use keyward::{Actor, Keyward, CreateKey, PepperRing, Role};
///
/// let store = FaultyStore::new(MemoryStore::new());
/// let keys = Keyward::builder(store.clone(), PepperRing::generate()?).build().await?;
/// let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
///
/// // The reply of the next commit is lost. The manager detects that the store applied the commit.
/// store.next(Call::Commit, [Fault::ReplyLost]);
/// let key = CreateKey::new("export").environment("live");
/// assert!(keys.create(&admin, key.clone()).await.is_ok());
///
/// store.partition(true);
/// assert!(keys.create(&admin, key).await.is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: Arc<S>,
    control: Arc<Mutex<FaultControl>>,
}

#[derive(Default)]
struct FaultControl {
    partitioned: bool,
    at_once: bool,
    scripted: VecDeque<(Call, Fault)>,
    plan: Option<Box<FaultPlan>>,
    met: Vec<(Call, Fault)>,
}

impl fmt::Debug for FaultControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultControl")
            .field("partitioned", &self.partitioned)
            .field("scripted", &self.scripted)
            .finish_non_exhaustive()
    }
}

impl<S> Clone for FaultyStore<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            control: self.control.clone(),
        }
    }
}

impl<S> FaultyStore<S> {
    /// Wraps `inner`. No call fails until a test configures a fault.
    pub fn new(inner: S) -> Self {
        Self {
            inner: Arc::new(inner),
            control: Arc::default(),
        }
    }

    /// Sets a function that chooses the fault of each call, unless the store is disconnected or
    /// [`next`](Self::next) has set a fault for the call.
    #[must_use]
    pub fn with_plan(self, plan: impl FnMut(Call) -> Fault + Send + 'static) -> Self {
        self.control().plan = Some(Box::new(plan));
        self
    }

    /// Sets the faults of the next calls of one method, one fault per call. Later calls succeed again.
    pub fn next(&self, call: Call, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter().map(|fault| (call, fault));
        self.control().scripted.extend(faults);
    }

    /// Disconnects the store, or reconnects it. While it is disconnected, every call returns `Unavailable`.
    /// Faults that [`next`](Self::next) has set wait until it is reconnected.
    pub fn partition(&self, cut_off: bool) {
        self.control().partitioned = cut_off;
    }

    /// Sets whether [`KeyStore::changes_now`] returns the answer of the inner store. Defaults to false. While
    /// the store is disconnected, `changes_now` returns `None` in any case.
    pub fn answer_at_once(&self, at_once: bool) {
        self.control().at_once = at_once;
    }

    /// Returns all calls so far, in order, each with the fault that was injected into it.
    #[must_use]
    pub fn met(&self) -> Vec<(Call, Fault)> {
        self.control().met.clone()
    }

    /// Returns the inner store, whose calls never get a fault.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn fault(&self, call: Call) -> Fault {
        let mut control = self.control();
        let fault = control.decide(call);
        control.met.push((call, fault));
        fault
    }

    /// Records a read call. Returns an error if the fault of this call makes reads fail.
    fn pass(&self, call: Call, doing: &'static str) -> Result<(), StoreError> {
        match self.fault(call) {
            Fault::None | Fault::ReplyLost => Ok(()),
            Fault::Unavailable | Fault::RequestLost => {
                Err(StoreError::new(StoreErrorKind::Unavailable, doing))
            }
        }
    }

    /// Records a write call. The fault of the call decides whether the write is executed, and whether its
    /// result is returned.
    async fn write<T, E: From<StoreError>>(
        &self,
        call: Call,
        doing: &'static str,
        write: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        let error = |kind| Err(StoreError::new(kind, doing).into());
        match self.fault(call) {
            Fault::None => write.await,
            Fault::Unavailable => error(StoreErrorKind::Unavailable),
            Fault::RequestLost => error(StoreErrorKind::Indeterminate),
            Fault::ReplyLost => {
                write.await?;
                error(StoreErrorKind::Indeterminate)
            }
        }
    }

    fn control(&self) -> MutexGuard<'_, FaultControl> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultControl {
    fn decide(&mut self, call: Call) -> Fault {
        if self.partitioned {
            return Fault::Unavailable;
        }
        let scripted = self.scripted.iter().position(|(own, _)| *own == call);
        if let Some((_, fault)) = scripted.and_then(|place| self.scripted.remove(place)) {
            return fault;
        }
        self.plan.as_mut().map_or(Fault::None, |plan| plan(call))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: KeyStore> KeyStore for FaultyStore<S> {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.pass(Call::Load, "loading a tenant")?;
        self.inner.load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.pass(Call::Find, "finding a key")?;
        self.inner.find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let commit = self.inner.commit(commit);
        self.write(Call::Commit, "committing", commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.pass(Call::Changes, "reading changes")?;
        self.inner.changes(after, limit).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.pass(Call::Scan, "scanning")?;
        self.inner.scan(after, limit).await
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        scan_by_pages(self, limit, take).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.pass(Call::List, "listing keys")?;
        self.inner.list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.pass(Call::Audit, "reading the audit trail")?;
        self.inner.audit(query).await
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        self.pass(Call::List, "listing tenants")?;
        self.inner.tenants().await
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        self.pass(Call::Load, "reading the store's own row")?;
        self.inner.restored_from().await
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        self.pass(Call::Load, "checking the store")?;
        self.inner.known_loss().await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.pass(Call::WaitPast, "waiting for changes")?;
        self.inner.wait_past(after).await
    }

    fn changes_now(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Option<Result<Changes, ChangesError>> {
        let open = {
            let control = self.control();
            control.at_once && !control.partitioned
        };
        open.then(|| self.inner.changes_now(after, limit)).flatten()
    }

    fn documents(&self) -> Option<&dyn Documents> {
        self.inner.documents().map(|_| -> &dyn Documents { self })
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.pass(Call::Close, "closing")?;
        self.inner.close().await
    }
}

/// Without documents of the inner store, every call fails.
#[async_trait]
impl<S: KeyStore> Documents for FaultyStore<S> {
    async fn document(&self, name: &DocumentName) -> Result<DocumentRead, StoreError> {
        let doing = "reading a document";
        self.pass(Call::ReadDocument, doing)?;
        let missing = || StoreError::new(StoreErrorKind::Unavailable, doing);
        let documents = self.inner.documents().ok_or_else(missing)?;
        documents.document(name).await
    }

    async fn write_document(&self, write: DocumentWrite) -> Result<u64, DocumentError> {
        let doing = "writing a document";
        let missing = || StoreError::new(StoreErrorKind::Unavailable, doing);
        let documents = self.inner.documents().ok_or_else(missing)?;
        let written = documents.write_document(write);
        self.write(Call::WriteDocument, doing, written).await
    }
}

#[async_trait]
impl<S: NodeRegistry> NodeRegistry for FaultyStore<S> {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        let report = self.inner.report(report);
        self.write(Call::Report, "reporting", report).await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.pass(Call::Nodes, "reading nodes")?;
        self.inner.nodes().await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        let forget = self.inner.forget(node, upto);
        self.write(Call::Forget, "forgetting a node", forget).await
    }
}
