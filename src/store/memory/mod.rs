//! The in-memory store: the reference implementation of [`KeyStore`]. For tests, and for services whose keys
//! need not survive the process.

mod usage;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use event_listener::Event;

use self::usage::MemoryUsage;
use super::{
    AuditPage, AuditPosition, AuditQuery, AuditRow, Change, Changes, ChangesError, Commit,
    CommitError, CommitTag, Cursor, Document, DocumentError, DocumentName, DocumentRead,
    DocumentWrite, Documents, Epoch, FoundKey, KeyPage, KeyQuery, KeySort, KeyStore, LoadRequest,
    Locator, NodeId, NodeRegistry, NodeReport, Revision, Row, RowKey, ScanPage, StoreError,
    TakePage, TenantView, scan_by_pages,
};
use crate::core::audit::AuditHead;
use crate::core::id::KeyId;
use crate::core::record::{KeyRecord, KeyState};
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::text::{ClassName, CommandId, PrincipalId};
use crate::core::time::Timestamp;

/// A store that keeps its keys, and the uses of keys, in memory. Clones share them. All is lost when the process ends.
///
/// Calls are linearizable. The feed is state-based and keeps tombstones until [`compact`](Self::compact) is
/// called.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    inner: Arc<MemoryInner>,
}

#[derive(Debug)]
struct MemoryInner {
    state: Mutex<MemoryState>,
    usage: Mutex<MemoryUsage>,
    moved: Event,
}

impl Default for MemoryInner {
    fn default() -> Self {
        // A store draws no random numbers. A counter is enough to make the epochs of a process unique,
        // because an in-memory store does not outlive its process.
        static NEXT_EPOCH: AtomicU64 = AtomicU64::new(1);
        let epoch = Epoch(u128::from(NEXT_EPOCH.fetch_add(1, Ordering::Relaxed)));
        let head = Cursor {
            epoch,
            ..Cursor::default()
        };
        Self {
            state: Mutex::new(MemoryState {
                head,
                ..MemoryState::default()
            }),
            usage: Mutex::default(),
            moved: Event::new(),
        }
    }
}

#[derive(Debug, Default)]
struct MemoryState {
    head: Cursor,
    /// The highest revision up to which tombstones were dropped. A follower with a cursor below it may miss a
    /// removal, so the feed refuses the cursor.
    floor: Revision,
    tags: BTreeMap<Revision, CommitTag>,
    rows: BTreeMap<RowKey, Change>,
    by_revision: BTreeMap<Revision, BTreeSet<RowKey>>,
    tenants: HashMap<TenantId, MemoryTenant>,
    digests: HashMap<Digest, KeyId>,
    removed: HashSet<KeyId>,
    audit: BTreeMap<AuditPosition, AuditRow>,
    nodes: BTreeMap<NodeId, NodeReport>,
    documents: BTreeMap<DocumentName, Document>,
}

#[derive(Debug, Default)]
struct MemoryTenant {
    revision: Revision,
    decided_at: Option<Timestamp>,
    audit_head: AuditHead,
    keys: BTreeSet<KeyId>,
    /// The keys that are not revoked, by class and expiry. Keys that never expire come last.
    by_class: BTreeMap<ClassName, BTreeSet<(bool, Option<Timestamp>, KeyId)>>,
    legacy: BTreeSet<KeyId>,
    /// The positions of the tenant's entries in the store's `audit`, oldest first.
    trail: VecDeque<AuditPosition>,
    /// The positions of each command's entries, oldest first.
    commands: HashMap<CommandId, VecDeque<AuditPosition>>,
}

impl MemoryTenant {
    fn add(&mut self, record: &KeyRecord) {
        self.keys.insert(record.id);
        if record.legacy {
            self.legacy.insert(record.id);
        }
        if !matches!(record.state, KeyState::Revoked { .. }) {
            let of_class = self.by_class.entry(record.class.clone()).or_default();
            of_class.insert(by_expiry(record));
        }
    }

    fn forget(&mut self, record: &KeyRecord) {
        self.keys.remove(&record.id);
        self.legacy.remove(&record.id);
        if let Some(of_class) = self.by_class.get_mut(&record.class) {
            of_class.remove(&by_expiry(record));
        }
    }
}

fn by_expiry(record: &KeyRecord) -> (bool, Option<Timestamp>, KeyId) {
    (record.expires_at.is_none(), record.expires_at, record.id)
}

impl MemoryStore {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Drops the tombstones of removed keys, to bound the memory in use. The ids and digests of removed keys
    /// stay taken.
    ///
    /// A follower that has not read one of these tombstones gets [`ChangesError::Compacted`]. The follower
    /// must then call [`sync`](crate::Keyward::sync), even if it is in the same process.
    pub fn compact(&self) {
        let mut state = self.state();
        let gone: Vec<_> = state
            .rows
            .iter()
            .filter(|(_, change)| matches!(change.row, Row::Removed { .. }))
            .map(|(key, change)| (change.revision, key.clone()))
            .collect();
        for (revision, key) in gone {
            state.floor = state.floor.max(revision);
            state.rows.remove(&key);
            state.remove_from_index(revision, &key);
        }
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        // A poisoned lock is safe to use. A commit is checked before any of its rows is written, so a panic
        // during the check leaves the state unchanged.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryState {
    fn record(&self, id: KeyId) -> Option<&KeyRecord> {
        match &self.rows.get(&RowKey::Key(id))?.row {
            Row::Key(record) => Some(record),
            _ => None,
        }
    }

    fn view(&self, id: &TenantId, select: &LoadRequest) -> TenantView {
        let Some(tenant) = self.tenants.get(id) else {
            return TenantView {
                epoch: self.head.epoch,
                ..TenantView::default()
            };
        };
        let by_id = select.keys.iter().filter(|key| tenant.keys.contains(key));
        let live = select.live.iter().flat_map(|(class, now)| {
            let of_class = tenant.by_class.get(class).into_iter();
            of_class.flat_map(|keys| keys.range((false, Some(*now), KeyId::from_u128(0))..))
        });
        let live = live.map(|(_, _, key)| key);
        let legacy = tenant.legacy.iter().filter(|_| select.legacy);
        let records = by_id.chain(live).chain(legacy).filter_map(|key| {
            let revision = self.revision_of(&RowKey::Key(*key));
            Some((revision, self.record(*key)?))
        });
        let owner = |owner: &PrincipalId| {
            let key = RowKey::Owner(id.clone(), owner.clone());
            let change = self.rows.get(&key)?;
            match &change.row {
                Row::Owner(row) => Some((change.revision, row)),
                _ => None,
            }
        };
        let key = RowKey::Tenant(id.clone());
        let (revisions, tenant_row) = match self.rows.get(&key) {
            Some(Change {
                revision,
                row: Row::Tenant(row),
            }) => (BTreeMap::from([(key, *revision)]), Some(row.clone())),
            _ => (BTreeMap::new(), None),
        };
        let heads = TenantView {
            epoch: self.head.epoch,
            revision: tenant.revision,
            decided_at: tenant.decided_at,
            audit_head: tenant.audit_head,
            tenant: tenant_row,
            revisions,
            ..TenantView::default()
        };
        let commands: BTreeSet<_> = select.commands.iter().collect();
        let places = commands
            .into_iter()
            .filter_map(|command| tenant.commands.get(command));
        let trail: Vec<_> = places
            .flatten()
            .filter_map(|position| Some(&self.audit.get(position)?.entry))
            .collect();
        heads.with_selected(select, records, owner, trail)
    }

    fn revision_of(&self, row: &RowKey) -> Revision {
        let change = self.rows.get(row);
        change.map_or(Revision::ZERO, |change| change.revision)
    }

    fn check(&self, commit: &Commit) -> Result<(), CommitError> {
        let at = self
            .tenants
            .get(&commit.tenant)
            .map_or(Revision::ZERO, |t| t.revision);
        let writable = |record: &KeyRecord| {
            let own = self.record(record.id);
            own.is_none_or(|own| own.tenant == record.tenant) && !self.removed.contains(&record.id)
        };
        let row_at = |row: &RowKey| self.revision_of(row);
        let key_of = |digest: &Digest| self.digests.get(digest).copied();
        commit.check((self.head.epoch, at), row_at, writable, key_of)
    }

    fn apply(&mut self, commit: Commit) -> Revision {
        let revision = Revision(self.head.revision.0 + 1);
        self.head = commit.cursor(self.head.epoch, revision);
        self.tags.insert(revision, commit.tag);
        self.digests.extend(commit.imported());
        let known = self.tenants.get(&commit.tenant);
        let decided_at = commit.newest_after(known.and_then(|tenant| tenant.decided_at));
        for row in commit.rows() {
            let key = row.key();
            if let Some(before) = self.rows.insert(key.clone(), Change { revision, row }) {
                self.remove_from_index(before.revision, &key);
                if let Row::Key(record) = &before.row
                    && let Some(tenant) = self.tenants.get_mut(&record.tenant)
                {
                    tenant.forget(record);
                }
            }
            self.by_revision.entry(revision).or_default().insert(key);
        }
        let Commit {
            tenant,
            epoch: _,
            expected: _,
            guards: _,
            tag: _,
            decided_at: _,
            effects,
        } = commit;
        let tenant = self.tenants.entry(tenant).or_default();
        tenant.revision = revision;
        tenant.decided_at = Some(decided_at);
        for record in &effects.puts {
            tenant.add(record);
        }
        self.removed.extend(&effects.removes);
        for entry in effects.audit {
            tenant.audit_head = entry.head();
            let sequence = entry.sequence;
            let position = AuditPosition { revision, sequence };
            tenant.trail.push_back(position);
            let of_command = tenant.commands.entry(entry.command.clone()).or_default();
            of_command.push_back(position);
            self.audit.insert(position, AuditRow { revision, entry });
        }
        let pruned = |oldest: &AuditPosition| Some(oldest.sequence) <= effects.prune;
        while let Some(oldest) = tenant.trail.pop_front_if(|oldest| pruned(oldest)) {
            let row = self.audit.remove(&oldest);
            if let Some(command) = row.map(|row| row.entry.command)
                && let Some(positions) = tenant.commands.get_mut(&command)
            {
                positions.pop_front();
                if positions.is_empty() {
                    tenant.commands.remove(&command);
                }
            }
        }
        revision
    }

    /// Removes the row's entry at `revision` from the index of the feed, because the row now has a newer
    /// revision or was dropped.
    fn remove_from_index(&mut self, revision: Revision, key: &RowKey) {
        if let Some(keys) = self.by_revision.get_mut(&revision) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_revision.remove(&revision);
            }
        }
    }

    /// Runs a query over the keys of one tenant, or of the whole store.
    ///
    /// If the keys are listed in the order of their ids, the search starts after the previous page, and ends
    /// with this page. So reading all pages visits each key only once.
    fn list(&self, query: &KeyQuery) -> KeyPage {
        let by_id = query.sort == KeySort::Created;
        let after = query.after.as_ref().filter(|_| by_id);
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.id));
        let most = if by_id {
            query.limit.get().saturating_add(1)
        } else {
            usize::MAX
        };
        let matching = |record: &&KeyRecord| query.matches(record);
        let of_tenant = query.tenant.as_ref().filter(|_| !query.below);
        match of_tenant {
            Some(tenant) => {
                let keys = self.tenants.get(tenant).into_iter();
                let keys = keys.flat_map(|own| own.keys.range((from, Bound::Unbounded)));
                let records = keys.filter_map(|key| self.record(*key));
                query.page(records.filter(matching).take(most))
            }
            None => {
                let from = from.map(RowKey::Key);
                let rows = self.rows.range((from, Bound::Unbounded));
                let records = rows.filter_map(|(_, change)| match &change.row {
                    Row::Key(record) => Some(&**record),
                    _ => None,
                });
                query.page(records.filter(matching).take(most))
            }
        }
    }

    fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        if after.epoch != self.head.epoch || after.revision < self.floor {
            return Err(ChangesError::Compacted);
        }
        let tag = self.tags.get(&after.revision).copied().unwrap_or_default();
        if after.revision > self.head.revision || after.tag != tag {
            return Err(ChangesError::Diverged);
        }
        let mut changes: Vec<Change> = Vec::new();
        for (revision, keys) in self.by_revision.range(Revision(after.revision.0 + 1)..) {
            if changes.len() >= limit.get() {
                let upto = Revision(revision.0 - 1);
                let tag = self.tags.get(&upto).copied().unwrap_or_default();
                let upto = Cursor {
                    revision: upto,
                    tag,
                    ..self.head
                };
                return Ok(Changes {
                    changes,
                    upto,
                    head: self.head,
                    server_time: None,
                });
            }
            changes.extend(keys.iter().filter_map(|key| self.rows.get(key)).cloned());
        }
        Ok(Changes {
            changes,
            upto: self.head,
            head: self.head,
            server_time: None,
        })
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyStore for MemoryStore {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        Ok(self.state().view(tenant, select))
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        let state = self.state();
        let id = match locator {
            Locator::Id(id) => Some(*id),
            Locator::Imported(digest) => state.digests.get(digest).copied(),
        };
        let change = id.and_then(|id| state.rows.get(&RowKey::Key(id)).cloned());
        Ok(change.map(|change| FoundKey {
            change,
            head: state.head,
        }))
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let revision = {
            let mut state = self.state();
            state.check(&commit)?;
            state.apply(commit)
        };
        self.inner.moved.notify(usize::MAX);
        Ok(revision)
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.state().changes(after, limit)
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        let state = self.state();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut later = state.rows.range((from, Bound::Unbounded));
        let rows: Vec<_> = later
            .by_ref()
            .take(limit.get())
            .map(|(_, row)| row.clone())
            .collect();
        let next = later.next().and(rows.last()).map(|change| change.row.key());
        Ok(ScanPage {
            head: state.head,
            rows,
            next,
        })
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        scan_by_pages(self, limit, take).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        Ok(self.state().list(query))
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let state = self.state();
        let after = query.after.unwrap_or_default();
        let later = (Bound::Excluded(after), Bound::Unbounded);
        Ok(query.page(state.audit.range(later).map(|(_, row)| row)))
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        Ok(self.state().tenants.keys().cloned().collect())
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        Ok(None)
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        loop {
            let moved = self.inner.moved.listen();
            if self.state().head != after {
                return Ok(());
            }
            moved.await;
        }
    }

    fn changes_now(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Option<Result<Changes, ChangesError>> {
        Some(self.state().changes(after, limit))
    }

    fn documents(&self) -> Option<&dyn Documents> {
        Some(self)
    }

    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Documents for MemoryStore {
    async fn document(&self, name: &DocumentName) -> Result<DocumentRead, StoreError> {
        let state = self.state();
        Ok(DocumentRead {
            epoch: state.head.epoch,
            document: state.documents.get(name).cloned(),
        })
    }

    async fn write_document(&self, write: DocumentWrite) -> Result<u64, DocumentError> {
        let mut state = self.state();
        let version_of = |name: &DocumentName| {
            let found = state.documents.get(name);
            found.map_or(0, |document| document.version)
        };
        write.check(state.head.epoch, version_of)?;
        let DocumentWrite {
            name,
            expected,
            body,
            ..
        } = write;
        let version = expected + 1;
        let document = Document {
            name: name.clone(),
            version,
            body,
        };
        state.documents.insert(name, document);
        Ok(version)
    }
}

#[async_trait]
impl NodeRegistry for MemoryStore {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        let mut state = self.state();
        let stored = state.nodes.get(&report.node);
        if stored.is_some_and(|stored| stored.beat >= report.beat) {
            return Ok(false);
        }
        state.nodes.insert(report.node, report);
        Ok(true)
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        Ok(self.state().nodes.values().cloned().collect())
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        let mut state = self.state();
        let stored = state.nodes.get(&node);
        if stored.is_some_and(|stored| stored.beat <= upto) {
            state.nodes.remove(&node);
        }
        Ok(())
    }
}
