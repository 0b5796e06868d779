//! A store that counts what it is asked, and holds answers back until it is told to let them go.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::collections::HashMap;
use std::future::pending;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_listener::Event;
use keyward::TenantId;
use keyward::async_trait;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, KeyPage, KeyQuery,
    KeyStore, Locator, MemoryStore, Revision, RowKey, ScanPage, Select, StoreError, StoreErrorKind,
    TakePage, TenantView, Versioned, scan_by_pages,
};
use keyward_conformance::{Call, FaultyStore};

/// A link to a store in memory. It fails as a [`FaultyStore`] does, and clones share everything.
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

/// What becomes of those who wait for a change.
#[derive(Clone, Copy, Debug, Default)]
pub enum Hints {
    /// They hear of it.
    #[default]
    Heard,
    /// They never do.
    Lost,
    /// They hear of changes that never were.
    Spurious,
    /// They are told at once that the store failed.
    Failing,
}

/// Behind it, answers wait that the store has given already.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(AtomicBool, Event)>);

impl Gate {
    /// Lets all of them go.
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

    /// Holds the answers to calls of this kind back, from the next one on.
    pub fn hold(&self, call: Call) -> Gate {
        let gate = Gate::default();
        self.shared.lock().unwrap().held.insert(call, gate.clone());
        gate
    }

    /// Lets calls of this kind pass, from the next one on.
    pub fn let_pass(&self, call: Call) {
        self.shared.lock().unwrap().held.remove(&call);
    }

    pub fn hints(&self, hints: Hints) {
        self.shared.lock().unwrap().hints = hints;
    }

    /// Answers so long after it was asked, on the timers of the runtime.
    pub fn slow(&self, by: Duration) {
        self.shared.lock().unwrap().slow = by;
    }

    /// How often it was asked so.
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
    async fn load(&self, tenant: &TenantId, select: &Select) -> Result<TenantView, StoreError> {
        self.give(Call::Load, self.link.load(tenant, select)).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<Versioned>, StoreError> {
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
                    // Not at once: where nothing paces the hints, timers would never move on.
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
