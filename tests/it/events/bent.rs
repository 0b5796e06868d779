//! A store that gives the event stream a defect, and that can run an action in the middle of a read.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::Duration;

use keyward::key::KeyRecord;
use keyward::store::{
    AuditPage, AuditPosition, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor,
    Epoch, FoundKey, KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, Revision, Row,
    RowKey, ScanPage, StoreError, TenantView, async_trait,
};
use keyward::{KeyId, TenantId, Timestamp};

use support::wait;

/// A variant of the event stream: correct, or with one defect that the tests must detect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bend {
    /// No defect.
    Straight,
    /// No defect, but the store returns fewer entries than requested, as stores may do.
    GivesLess,
    /// No defect, but the store's epoch never changes, as if an operator had copied the store by hand.
    HasNoEpoch,
    /// Saves the advanced cursor before the events are handled.
    MovesOnFirst,
    /// Advances the cursor past events that were not read.
    MovesOnUnseen,
    /// Returns the newest events first.
    NewestFirst,
    /// Skips the remaining keys that have the same expiry as the last key of a page.
    SkipsTies,
    /// Skips one key between two pages of keys.
    LosesAKeyBetweenPages,
    /// Skips one entry between two pages of entries.
    LosesAnEntryBetweenPages,
    /// Emits no notice for a key whose notice lies before the position that the reader has reached.
    NeverLooksBehind,
    /// Keeps using the latest time that it has read, even after the clock is set back.
    StaysAhead,
    /// Reports a key in the state in which it was first read, even after it has changed.
    ReportsOldState,
    /// Sends notices one hour early.
    IsAhead,
    /// Emits no notice for a key that expires exactly now.
    LeavesTheLastInstantOut,
    /// Lists the keys before reading the audit entries.
    SweepsFirst,
}

/// The store call during which the action runs.
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
    /// All commits so far, for replay into a backup.
    commits: Mutex<Vec<Commit>>,
    /// The position of an entry that cannot be read.
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

    /// Returns a new store with only the first `commits` commits, like a backup from that time.
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

    /// Schedules `happens` to run just before the store answers the next call of kind `when`.
    pub(crate) fn meanwhile(&self, when: When, happens: impl FnOnce() + Send + 'static) {
        *self.happens.lock().unwrap() = Some((when, Box::new(happens)));
    }

    /// Runs the scheduled action now, if no call has triggered it.
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

/// Returns every key in a store.
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
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.inner.load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
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
        if self.bend == Bend::ReportsOldState {
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
