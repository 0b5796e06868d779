//! A store that counts calls and holds answers back until a test releases them.

use std::collections::HashMap;
use std::future::pending;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_listener::Event;
use keyward::TenantId;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, Revision, RowKey, ScanPage, StoreError,
    StoreErrorKind, TakePage, TenantView, async_trait, scan_by_pages,
};
use keyward_conformance::{Call, FaultyStore};

/// A link to an in-memory store, which tests can make fail like a [`FaultyStore`]. Clones share all state.
#[derive(Clone, Debug)]
pub struct Gated {
    pub link: FaultyStore<MemoryStore>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    asked: HashMap<Call, usize>,
    held: HashMap<Call, Gate>,
    hints: Hints,
    slow: Duration,
}

/// The result of waiting for a change.
#[derive(Clone, Copy, Debug, Default)]
pub enum Hints {
    /// The wait ends with the change.
    #[default]
    Heard,
    /// The wait never ends.
    Lost,
    /// The wait ends without a change.
    Spurious,
    /// The wait fails immediately.
    Failing,
}

/// A gate that holds back answers the store has already given.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(AtomicBool, Event)>);

impl Gate {
    /// Releases all answers that this gate holds back.
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

impl Gated {
    pub fn new(store: MemoryStore) -> Self {
        Self {
            link: FaultyStore::new(store),
            shared: Arc::default(),
        }
    }

    /// Holds back the answers to calls of this kind, from the next call on.
    pub fn hold(&self, call: Call) -> Gate {
        let gate = Gate::default();
        self.shared.lock().unwrap().held.insert(call, gate.clone());
        gate
    }

    /// Stops holding back answers to calls of this kind, from the next call on.
    pub fn let_pass(&self, call: Call) {
        self.shared.lock().unwrap().held.remove(&call);
    }

    pub fn hints(&self, hints: Hints) {
        self.shared.lock().unwrap().hints = hints;
    }

    /// Delays each answer by this time, on the timers of the runtime.
    pub fn slow(&self, by: Duration) {
        self.shared.lock().unwrap().slow = by;
    }

    /// Returns the number of calls of this kind.
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
impl KeyStore for Gated {
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

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        let hints = self.shared.lock().unwrap().hints;
        let hint = async {
            match hints {
                Hints::Heard => self.link.wait_past(after).await,
                Hints::Lost => pending().await,
                Hints::Spurious => {
                    // Sleeps first: on a paused clock, hints in a busy loop would keep timers from advancing.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Ok(())
                }
                Hints::Failing => Err(StoreError::new(StoreErrorKind::Unavailable, "waiting")),
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
}
