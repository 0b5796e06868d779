//! A store that counts its calls, and can hold back their answers until a test releases them.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_listener::Event;
use keyward::TenantId;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, Documents, Epoch,
    FoundKey, KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, NodeId, NodeRegistry,
    NodeReport, Revision, RowKey, ScanPage, StoreError, StoreErrorKind, TakePage, TenantView,
    async_trait, scan_by_pages,
};
use keyward_conformance::{Call, FaultyStore};

/// An in-memory store whose calls a test can delay or, through its [`FaultyStore`], make fail. Clones share
/// all state.
#[derive(Clone, Debug)]
pub struct GatedStore {
    pub link: FaultyStore<MemoryStore>,
    shared: Arc<Mutex<GatedState>>,
}

#[derive(Debug, Default)]
struct GatedState {
    asked: HashMap<Call, usize>,
    held: HashMap<Call, AnswerGate>,
    wait_outcome: WaitOutcome,
    slow: Duration,
}

/// The way a call of `wait_past` ends.
#[derive(Clone, Copy, Debug, Default)]
pub enum WaitOutcome {
    /// The call returns once the store has changed.
    #[default]
    Heard,
    /// The call never returns.
    Lost,
    /// The call returns after a moment, although nothing has changed.
    Spurious,
    /// The call fails immediately.
    Failing,
}

/// A gate that holds back answers. The store has already executed the call, but its caller gets the answer
/// only when the gate is open.
#[derive(Clone, Debug, Default)]
pub struct AnswerGate(Arc<(AtomicBool, Event)>);

impl AnswerGate {
    /// Releases the answers that this gate holds back, and lets later answers pass.
    pub fn open(&self) {
        self.0.0.store(true, Ordering::SeqCst);
        self.0.1.notify(usize::MAX);
    }

    async fn pass(&self) {
        loop {
            let opened = self.0.1.listen();
            if self.0.0.load(Ordering::SeqCst) {
                return;
            }
            opened.await;
        }
    }
}

impl GatedStore {
    pub fn new(store: MemoryStore) -> Self {
        Self {
            link: FaultyStore::new(store),
            shared: Arc::default(),
        }
    }

    /// Holds back the answers to all later calls of this kind, until the returned gate is opened.
    pub fn hold(&self, call: Call) -> AnswerGate {
        let gate = AnswerGate::default();
        self.shared.lock().unwrap().held.insert(call, gate.clone());
        gate
    }

    /// Lets the answers to later calls of this kind pass. A call in flight still waits for its own gate.
    pub fn let_pass(&self, call: Call) {
        self.shared.lock().unwrap().held.remove(&call);
    }

    pub fn end_waits_with(&self, outcome: WaitOutcome) {
        self.shared.lock().unwrap().wait_outcome = outcome;
    }

    /// Delays the answer to every later call by this time, which a test with tokio's paused clock can
    /// control.
    pub fn slow(&self, by: Duration) {
        self.shared.lock().unwrap().slow = by;
    }

    /// Returns the number of calls of this kind that the store has received so far.
    pub fn asked(&self, call: Call) -> usize {
        let shared = self.shared.lock().unwrap();
        shared.asked.get(&call).copied().unwrap_or_default()
    }

    async fn give<T>(&self, call: Call, answer: impl Future<Output = T>) -> T {
        let (gate, slow) = {
            let mut shared = self.shared.lock().unwrap();
            *shared.asked.entry(call).or_default() += 1;
            (shared.held.get(&call).cloned(), shared.slow)
        };
        let answer = answer.await;
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        if let Some(gate) = gate {
            gate.pass().await;
        }
        answer
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyStore for GatedStore {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.give(Call::Load, self.link.load(tenant, select)).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.give(Call::Find, self.link.find(locator)).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.give(Call::Commit, self.link.commit(commit)).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.give(Call::Changes, self.link.changes(after, limit))
            .await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.give(Call::Scan, self.link.scan(after, limit)).await
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        scan_by_pages(self, limit, take).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.give(Call::List, self.link.list(query)).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.give(Call::Audit, self.link.audit(query)).await
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        self.give(Call::List, self.link.tenants()).await
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        self.give(Call::Load, self.link.restored_from()).await
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        self.give(Call::Load, self.link.known_loss()).await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        let outcome = self.shared.lock().unwrap().wait_outcome;
        let hint = async {
            match outcome {
                WaitOutcome::Heard => self.link.wait_past(after).await,
                WaitOutcome::Lost => pending().await,
                WaitOutcome::Spurious => {
                    // Without this sleep, a caller that waits in a loop would never be idle. Tokio's paused
                    // clock advances only while all tasks are idle.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Ok(())
                }
                WaitOutcome::Failing => {
                    Err(StoreError::new(StoreErrorKind::Unavailable, "waiting"))
                }
            }
        };
        self.give(Call::WaitPast, hint).await
    }

    fn changes_now(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Option<Result<Changes, ChangesError>> {
        self.link.changes_now(after, limit)
    }

    fn documents(&self) -> Option<&dyn Documents> {
        self.link.documents()
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.give(Call::Close, self.link.close()).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl NodeRegistry for GatedStore {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        self.give(Call::Report, self.link.report(report)).await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.give(Call::Nodes, self.link.nodes()).await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        self.give(Call::Forget, self.link.forget(node, upto)).await
    }
}
