//! A store that answers as a broken stream would see it, and that lets something happen in the
//! middle of a read.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::Duration;

use keyward::store::{
    AuditPage, AuditPosition, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor,
    Epoch, KeyPage, KeyQuery, KeyStore, Locator, MemoryStore, Revision, Row, RowKey, ScanPage,
    Select, StoreError, TenantView, Versioned,
};
use keyward::{KeyId, KeyRecord, TenantId, Timestamp, async_trait};

use support::wait;

/// What is wrong with a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bend {
    /// Nothing.
    Straight,
    /// Nothing: a store may give less than it is asked for.
    GivesLess,
    /// Nothing but that it was copied by hand: nobody gave it another epoch.
    HasNoEpoch,
    /// It moves on before its events were handled.
    MovesOnFirst,
    /// It moves on before it looks what there is.
    MovesOnUnseen,
    /// It tells the newest first.
    TellsBackwards,
    /// A page of keys begins after all that end when the last one did.
    SkipsTies,
    /// A page of keys begins one too late.
    LosesAKeyBetweenPages,
    /// A page of entries begins one too late.
    LosesAnEntryBetweenPages,
    /// It does not look at keys that came to stand behind the sweep.
    NeverLooksBehind,
    /// It stays ahead of a clock that is set back.
    StaysAhead,
    /// It tells of keys what they were when it first saw them.
    TellsWhatWas,
    /// It tells too early.
    IsAhead,
    /// It leaves a key out that ends at this very instant.
    LeavesTheLastInstantOut,
    /// It looks for keys before it reads the entries.
    SweepsFirst,
}

/// In the middle of which call something happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum When {
    Audit,
    List,
}

type Happens = Box<dyn FnOnce() + Send>;

pub(crate) struct Bent {
    pub(crate) inner: MemoryStore,
    bend: Bend,
    happens: Mutex<Option<(When, Happens)>>,
    first_seen: Mutex<HashMap<KeyId, KeyRecord>>,
    at_scan: Mutex<Vec<KeyRecord>>,
    /// Everything that was committed, for a copy.
    commits: Mutex<Vec<Commit>>,
    /// An entry that cannot be read.
    damaged: Mutex<Option<AuditPosition>>,
}

impl fmt::Debug for Bent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bent").finish_non_exhaustive()
    }
}

impl Bent {
    pub(crate) fn new(inner: MemoryStore, bend: Bend) -> Self {
        Self {
            inner,
            bend,
            happens: Mutex::default(),
            first_seen: Mutex::default(),
            at_scan: Mutex::default(),
            commits: Mutex::default(),
            damaged: Mutex::default(),
        }
    }

    /// Another store with the first commits of this one: a backup that was taken then.
    pub(crate) fn backup(&self, commits: usize) -> Self {
        let copy = Self::new(MemoryStore::new(), self.bend);
        for commit in self.commits.lock().unwrap().iter().take(commits) {
            let commit = Commit {
                epoch: None,
                ..commit.clone()
            };
            wait(copy.commit(commit)).unwrap();
        }
        copy
    }

    pub(crate) fn commits(&self) -> usize {
        self.commits.lock().unwrap().len()
    }

    pub(crate) fn damage(&self, entry: AuditPosition) {
        *self.damaged.lock().unwrap() = Some(entry);
    }

    /// Lets something happen just before the next such call is answered.
    pub(crate) fn meanwhile(&self, when: When, happens: impl FnOnce() + Send + 'static) {
        *self.happens.lock().unwrap() = Some((when, Box::new(happens)));
    }

    /// Lets it happen now, if no call came.
    pub(crate) fn settle(&self) {
        if let Some((_, happens)) = self.happens.lock().unwrap().take() {
            happens();
        }
    }

    fn meet(&self, now: When) {
        let due = |waiting: &mut (When, Happens)| waiting.0 == now;
        let met = self.happens.lock().unwrap().take_if(due);
        if let Some((_, happens)) = met {
            happens();
        }
    }
}

fn half(limit: NonZeroUsize) -> NonZeroUsize {
    NonZeroUsize::new(limit.get() / 2).unwrap_or(limit)
}

/// Every key that a store has.
pub(crate) fn records(store: &impl KeyStore) -> Vec<KeyRecord> {
    let all = NonZeroUsize::new(100_000).unwrap();
    let rows = wait(store.scan(None, all)).unwrap().rows;
    let keys = rows.into_iter().filter_map(|change| match change.row {
        Row::Key(record) => Some(*record),
        _ => None,
    });
    keys.collect()
}

#[async_trait]
impl KeyStore for Bent {
    async fn load(&self, tenant: &TenantId, select: &Select) -> Result<TenantView, StoreError> {
        self.inner.load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<Versioned>, StoreError> {
        let found = self.inner.find(locator).await?;
        Ok(found.filter(|_| self.bend != Bend::NeverLooksBehind))
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let revision = self.inner.commit(commit.clone()).await?;
        self.commits.lock().unwrap().push(commit);
        Ok(revision)
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.inner.changes(after, limit).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        *self.at_scan.lock().unwrap() = records(&self.inner);
        let mut page = self.inner.scan(after, limit).await?;
        if self.bend == Bend::HasNoEpoch {
            page.head.epoch = Epoch::default();
        }
        Ok(page)
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.meet(When::List);
        let mut query = query.clone();
        match self.bend {
            Bend::GivesLess => query.limit = half(query.limit),
            Bend::LeavesTheLastInstantOut => {
                let earlier = |end: Timestamp| end.saturating_sub(Duration::from_micros(1));
                query.expires_before = query.expires_before.map(earlier);
            }
            Bend::SkipsTies => {
                if let Some(after) = &mut query.after {
                    after.id = KeyId::from_u128(u128::MAX);
                }
            }
            Bend::SweepsFirst => return Ok(query.page(&*self.at_scan.lock().unwrap())),
            _ => {}
        }
        let mut page = self.inner.list(&query).await?;
        if self.bend == Bend::LosesAKeyBetweenPages && query.after.is_some() {
            page.keys.drain(..page.keys.len().min(1));
        }
        if self.bend == Bend::TellsWhatWas {
            let mut seen = self.first_seen.lock().unwrap();
            for key in records(&self.inner) {
                seen.entry(key.id).or_insert(key);
            }
            return Ok(query.page(seen.values()));
        }
        Ok(page)
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.meet(When::Audit);
        let mut query = query.clone();
        if self.bend == Bend::GivesLess {
            query.limit = half(query.limit);
        }
        let mut page = self.inner.audit(&query).await?;
        let damaged = *self.damaged.lock().unwrap();
        if let Some(n) = page
            .rows
            .iter()
            .position(|row| Some(row.position()) == damaged)
        {
            page.corrupt.push(page.rows.remove(n).position());
        }
        if self.bend == Bend::LosesAnEntryBetweenPages && page.rows.len() > 2 {
            page.rows.remove(1);
        }
        Ok(page)
    }
}
