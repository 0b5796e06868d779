//! A naive node: the sync protocol without the crate's replica, index or verifier. Each step of the protocol
//! is separate, so that a [`NodeDefect`] can break one of them.
//!
//! The node still executes commands with the crate's own [`KeyManager`].

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::node::{Node, NodeParts, VerifyPath, execute};
use super::world::SimulatedWorld;
use keyward::command::{Committed, Request};
use keyward::entropy::SeededEntropy;
use keyward::key::{Digest, KeyRecord};
use keyward::node::{KeyManager, Timekeeper};
use keyward::policy::{LivePolicies, Policies, Policy};
use keyward::rules::{CheckedTime, OwnerStatus};
use keyward::store::{
    Change, ChangesError, Cursor, KeyStore, LoadRequest, Locator, Revision, Row, RowKey,
    StoreError, StoreErrorKind,
};
use keyward::{Clock, CommandError, KeyId, Need, Role, TenantId, Timestamp, VerifyError, token};

/// A deliberate defect of the naive node, which a simulation must find.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum NodeDefect {
    /// Applies a change even if the node already has a newer version of the row.
    AppliesAnything,
    /// Considers itself fresh as soon as a page arrives, before it has applied the rows of the page.
    ConfirmsFirst,
    /// Measures the age of its last sync by the wall clock.
    UsesWallTime,
    /// Remembers unknown keys and continues to refuse them, even after such a key was created.
    CachesRefusals,
    /// Measures the age of a sync from the arrival of the answer, not from the sending of the request.
    LeaseFromAnswer,
    /// Reads the clock first, and only then checks its lease and looks up the key. The verdict may then be
    /// later than the reading.
    ReadsClockFirst,
    /// Measures the age of its last sync by a monotonic clock that stops while the machine is suspended.
    ClockStopsInSuspend,
    /// Considers itself fresh as long as the store answers any call.
    ConnectedIsFresh,
    /// Looks up the key first, and only then checks its lease. A sync in between renews the lease, but not
    /// the looked-up row.
    LooksUpFirst,
    /// Considers itself fresh after the first page of a sync, although more pages follow.
    ConfirmsFirstPage,
    /// Considers itself fresh at the head of the first page. If a row changes again between two pages, its
    /// earlier change is no longer in the feed. The node then misses it.
    ConfirmsFirstHead,
    /// Continues at the head if a page was lost, and misses the changes on that page.
    SkipsLostPage,
    /// Deletes the row of a removed key instead of keeping the tombstone, so that an older change can bring
    /// the key back.
    ForgetsTombstones,
    /// Loses the node's own commits if it starts over with a scan at the same time.
    ForgetsOwnCommits,
    /// Applies its own commits to the rows while a scan is in progress. If a key is removed and its tombstone
    /// compacted during the scan, the key stays.
    AppliesTheScanTooSoon,
    /// Continues after a position that the store has compacted, instead of starting over with a scan.
    NeverStartsOver,
    /// Ignores the rows of owners, so that a removed owner's keys still work.
    IgnoresOwners,
}

impl NodeDefect {
    /// Every defect.
    pub const ALL: [Self; 17] = [
        Self::AppliesAnything,
        Self::ConfirmsFirst,
        Self::UsesWallTime,
        Self::CachesRefusals,
        Self::LeaseFromAnswer,
        Self::ReadsClockFirst,
        Self::ClockStopsInSuspend,
        Self::ConnectedIsFresh,
        Self::LooksUpFirst,
        Self::ConfirmsFirstPage,
        Self::ConfirmsFirstHead,
        Self::SkipsLostPage,
        Self::ForgetsTombstones,
        Self::ForgetsOwnCommits,
        Self::AppliesTheScanTooSoon,
        Self::NeverStartsOver,
        Self::IgnoresOwners,
    ];
}

const PAGE: NonZeroUsize = NonZeroUsize::new(1000).expect("the page size is not zero");

pub(super) struct NaiveNode {
    world: Arc<SimulatedWorld>,
    machine: usize,
    clock: Arc<Timekeeper>,
    store: Arc<dyn KeyStore>,
    manager: KeyManager,
    policy: Policy,
    known: Arc<Mutex<NaiveState>>,
    defect: Option<NodeDefect>,
}

/// The rows of the node. The field `base` is the revision at which the scan that filled them began.
#[derive(Clone, Default)]
struct NaiveRows {
    rows: BTreeMap<RowKey, Change>,
    base: Revision,
    /// True once the scan has returned its last page.
    filled: bool,
}

#[derive(Default)]
struct NaiveState {
    live: NaiveRows,
    building: Option<NaiveRows>,
    /// Changes that the node committed itself during a scan. The node applies these changes after the scan,
    /// which shows the keys that were removed earlier.
    during_scan: Vec<Change>,
    cursor: Option<Cursor>,
    confirmed: Option<Duration>,
    newest: BTreeMap<TenantId, Timestamp>,
    /// The tokens that were refused as unknown, for the defect [`NodeDefect::CachesRefusals`] only.
    refused: BTreeSet<String>,
}

impl NaiveState {
    /// Records the time at which a row was written, as a lower bound for the time of the row's tenant.
    fn saw(&mut self, row: &Row) {
        if let Some((tenant, at)) = row.written_at() {
            let newest = self.newest.entry(tenant.clone()).or_insert(at);
            *newest = at.max(*newest);
        }
    }
}

impl NaiveRows {
    fn apply(&mut self, change: Change, defect: Option<NodeDefect>) {
        let key = change.row.key();
        let before = self.rows.get(&key).map(|own| own.revision);
        // If the node does not have the row, the scan did not return it. If the change is also not newer than
        // the scan, the row was removed before the scan.
        let newer = change.revision > before.unwrap_or(self.base);
        if newer || defect == Some(NodeDefect::AppliesAnything) {
            let removed = matches!(change.row, Row::Removed { .. });
            if removed && defect == Some(NodeDefect::ForgetsTombstones) {
                self.rows.remove(&key);
            } else {
                self.rows.insert(key, change);
            }
        }
    }

    fn key(&self, presented: &str) -> Option<&Change> {
        if let Ok(token) = token::parse(presented.as_bytes()) {
            return self.rows.get(&RowKey::Key(token.id()));
        }
        let digest = Digest::sha256(presented);
        let own = |change: &&Change| match &change.row {
            Row::Key(record) => record.credential.imported() == Some(&digest),
            _ => false,
        };
        self.rows.values().find(own)
    }

    fn standing(&self, record: &KeyRecord) -> OwnerStatus {
        let rows = || self.rows.values().map(|change| &change.row);
        let owners = rows().filter_map(|row| match row {
            Row::Owner(row) => Some(row),
            _ => None,
        });
        let tenants = rows().filter_map(|row| match row {
            Row::Tenant(row) => Some(row),
            _ => None,
        });
        OwnerStatus::resolve(&record.tenant, &record.owner, owners, tenants)
    }
}

impl NaiveNode {
    pub(super) fn new(parts: NodeParts, defect: Option<NodeDefect>) -> Self {
        let clock = Arc::new(parts.clock(defect.and_then(NodeDefect::clock)));
        let clock = Arc::new(Timekeeper::new(clock, CheckedTime::ALLOWANCE));
        let known: Arc<Mutex<NaiveState>> = Arc::default();
        let learns = known.clone();
        let manager = KeyManager::new(
            parts.store.clone(),
            Arc::new(LivePolicies::new(Policies::new(parts.policy.clone()))),
            Arc::new(parts.peppers),
            clock.clone(),
            Arc::new(SeededEntropy::new(parts.seed)),
        )
        .with_time(clock.clone())
        .with_listener(move |learnt| {
            let changes = &learnt.changes;
            let mut known = lock(&learns);
            for change in changes {
                known.saw(&change.row);
                known.live.apply(change.clone(), defect);
                let NaiveState {
                    building,
                    during_scan,
                    ..
                } = &mut *known;
                match building {
                    Some(_) if defect == Some(NodeDefect::ForgetsOwnCommits) => {}
                    Some(rows)
                        if rows.filled || defect == Some(NodeDefect::AppliesTheScanTooSoon) =>
                    {
                        rows.apply(change.clone(), defect);
                    }
                    Some(_) => during_scan.push(change.clone()),
                    None => {}
                }
            }
        });
        Self {
            world: parts.world,
            machine: parts.machine,
            clock,
            store: parts.store,
            manager,
            policy: parts.policy,
            known,
            defect,
        }
    }

    fn has(&self, defect: NodeDefect) -> bool {
        self.defect == Some(defect)
    }

    fn known(&self) -> MutexGuard<'_, NaiveState> {
        lock(&self.known)
    }

    fn confirm(&self, sent: Duration) {
        let mut known = self.known();
        known.confirmed = known.confirmed.max(Some(sent));
    }

    async fn catch_up(
        &self,
        aside: bool,
        from: Cursor,
    ) -> Result<(Duration, Cursor), ChangesError> {
        let mut sent = self.clock.monotonic();
        let mut cursor = from;
        let mut goal = None;
        loop {
            self.world.maybe_preempt().await;
            let page = match self.store.changes(cursor, PAGE).await {
                Err(ChangesError::Store(_)) if self.has(NodeDefect::SkipsLostPage) => match goal {
                    Some(head) => return Ok((sent, head)),
                    None => self.store.changes(cursor, PAGE).await?,
                },
                page => page?,
            };
            let first = *goal.get_or_insert(page.head);
            let head = if self.has(NodeDefect::ConfirmsFirstHead) {
                first
            } else {
                page.head
            };
            if self.has(NodeDefect::LeaseFromAnswer) {
                sent = self.clock.monotonic();
            }
            if self.has(NodeDefect::ConfirmsFirst) {
                self.confirm(sent);
            }
            self.world.maybe_preempt().await;
            let mut known = self.known();
            page.changes
                .iter()
                .for_each(|change| known.saw(&change.row));
            let NaiveState { live, building, .. } = &mut *known;
            let rows = if aside { building.as_mut() } else { Some(live) };
            if let Some(rows) = rows {
                let changes = page.changes.into_iter();
                changes.for_each(|change| rows.apply(change, self.defect));
            }
            drop(known);
            let moved = page.upto.revision > cursor.revision;
            cursor = page.upto;
            if cursor.revision >= head.revision {
                return Ok((sent, cursor));
            }
            if self.has(NodeDefect::ConfirmsFirstPage) && !aside {
                self.confirm(sent);
            }
            if !moved {
                return Err(StoreError::new(StoreErrorKind::Corrupt, "following").into());
            }
        }
    }

    async fn rebuild(&self) -> Result<(), StoreError> {
        {
            let mut known = self.known();
            known.building = Some(NaiveRows::default());
            known.during_scan.clear();
        }
        let mut head = None;
        let mut after = None;
        loop {
            let page = self.store.scan(after, PAGE).await?;
            head.get_or_insert(page.head);
            self.world.maybe_preempt().await;
            let mut known = self.known();
            page.rows.iter().for_each(|change| known.saw(&change.row));
            let building = known.building.get_or_insert_default();
            for change in page.rows {
                building.apply(change, self.defect);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let head: Cursor = head.unwrap_or_default();
        {
            let mut known = self.known();
            let during_scan = std::mem::take(&mut known.during_scan);
            let building = known.building.get_or_insert_default();
            building.base = head.revision;
            building.filled = true;
            let during_scan = during_scan.into_iter();
            during_scan.for_each(|change| building.apply(change, self.defect));
        }
        let (sent, upto) = match self.catch_up(true, head).await {
            Ok(caught_up) => caught_up,
            Err(ChangesError::Store(error)) => return Err(error),
            Err(ChangesError::Compacted | ChangesError::Diverged) => {
                return Err(StoreError::new(
                    StoreErrorKind::Unavailable,
                    "starting over",
                ));
            }
        };
        self.world.maybe_preempt().await;
        let mut known = self.known();
        known.live = known.building.take().unwrap_or_default();
        known.cursor = Some(upto);
        known.confirmed = known.confirmed.max(Some(sent));
        Ok(())
    }

    /// Verifies a key against the rows that the node has.
    async fn judge(&self, presented: &str, need: &Need) -> Result<KeyId, VerifyError> {
        let bound = self.policy.spec().propagation.bound;
        let mut read = None;
        if self.has(NodeDefect::ReadsClockFirst) {
            read = Some(self.clock.monotonic());
            self.world.maybe_preempt().await;
        }
        let mut found = None;
        if self.has(NodeDefect::LooksUpFirst) {
            found = Some(self.look_up(presented));
            self.world.maybe_preempt().await;
        }
        let confirmed = self.known().confirmed;
        self.world.maybe_preempt().await;
        let (record, standing) = found.unwrap_or_else(|| self.look_up(presented))?;
        if read.is_none() {
            self.world.maybe_preempt().await;
        }
        let monotonic = read.unwrap_or_else(|| self.clock.monotonic());
        let age = confirmed.map(|sent| monotonic.saturating_sub(sent));
        if age.is_none_or(|age| age > bound) {
            let age = age.unwrap_or(Duration::MAX);
            return Err(VerifyError::Stale { age, bound });
        }
        self.decide(&record, standing, need)
    }

    fn look_up(&self, presented: &str) -> Result<(KeyRecord, OwnerStatus), VerifyError> {
        let known = self.known();
        match known.live.key(presented).map(|change| &change.row) {
            Some(Row::Key(record)) => {
                let standing = known.live.standing(record);
                Ok((KeyRecord::clone(record), standing))
            }
            _ => Err(VerifyError::Unknown),
        }
    }

    fn decide(
        &self,
        record: &KeyRecord,
        mut standing: OwnerStatus,
        need: &Need,
    ) -> Result<KeyId, VerifyError> {
        use keyward::rules::{Presented, check};

        if self.has(NodeDefect::IgnoresOwners) {
            standing.removed = false;
            standing.removed_at = None;
            standing.roles = vec![Role::ADMIN];
        }
        // Takes the digest from the record instead of hashing the token, because the simulation presents only
        // tokens that were issued.
        let digest = record.credential.digest();
        let prefix = record.prefix.as_ref().map(token::TokenPrefix::as_str);
        let newest = self.known().newest.get(&record.tenant).copied();
        let now = self.clock.now();
        let now = newest.map_or(now, |newest| now.max(newest));
        let presented = Presented { digest, prefix };
        check(record, presented, &self.policy, &standing, need, now)?;
        Ok(record.id)
    }

    async fn fetch(&self, presented: &str, need: &Need) -> Result<KeyId, VerifyError> {
        let locator = match token::parse(presented.as_bytes()) {
            Ok(token) => Locator::Id(token.id()),
            Err(_) => Locator::Imported(Digest::sha256(presented)),
        };
        let unavailable = |_: StoreError| VerifyError::StoreUnavailable;
        let found = self.store.find(&locator).await.map_err(unavailable)?;
        let Some(found) = found else {
            return Err(VerifyError::Unknown);
        };
        let Row::Key(record) = &found.change.row else {
            return Err(VerifyError::Unknown);
        };
        let record = KeyRecord::clone(record);
        let mut read = NaiveRows::default();
        let select = LoadRequest {
            owners: record.owner.principal().cloned().into_iter().collect(),
            ..LoadRequest::none()
        };
        for tenant in record.tenant.lineage() {
            let view = self
                .store
                .load(&tenant, &select)
                .await
                .map_err(unavailable)?;
            let revision = view.revision;
            let owners = view.owners.into_iter().map(Row::Owner);
            let rows = view.tenant.into_iter().map(Row::Tenant).chain(owners);
            rows.for_each(|row| read.apply(Change { revision, row }, None));
        }
        let standing = read.standing(&record);
        self.world.maybe_preempt().await;
        {
            let mut known = self.known();
            let here = |cursor: Cursor| cursor.epoch == found.head.epoch;
            if known.cursor.is_some_and(here) {
                let rows = read.rows.into_values().chain([found.change]);
                rows.for_each(|change| known.live.apply(change, self.defect));
            }
        }
        self.decide(&record, standing, need)
    }

    /// Considers the node fresh if the store answers a call. The call loads an unrelated tenant, and reads no
    /// changes.
    async fn ping(&self) -> Result<(), StoreError> {
        let sent = self.clock.monotonic();
        let anybody = TenantId::new("anybody")
            .map_err(|_| StoreError::new(StoreErrorKind::Unavailable, "pinging"))?;
        self.store.load(&anybody, &LoadRequest::none()).await?;
        self.confirm(sent);
        Ok(())
    }
}

#[async_trait]
impl Node for NaiveNode {
    async fn sync(&self) -> Result<(), StoreError> {
        let cursor = self.known().cursor;
        if let Some(cursor) = cursor {
            if self.has(NodeDefect::ConnectedIsFresh) {
                self.ping().await?;
                let notified =
                    std::mem::take(&mut self.world.state().machines[self.machine].notified);
                if !notified {
                    return Ok(());
                }
            }
            match self.catch_up(false, cursor).await {
                Ok((sent, upto)) => {
                    self.world.maybe_preempt().await;
                    self.known().cursor = Some(upto);
                    self.confirm(sent);
                    return Ok(());
                }
                Err(ChangesError::Store(error)) => return Err(error),
                // No store of a simulation goes back in time.
                Err(ChangesError::Compacted | ChangesError::Diverged) => {
                    let mut known = self.known();
                    known.confirmed = None;
                    if self.has(NodeDefect::NeverStartsOver) {
                        return Ok(());
                    }
                    known.cursor = None;
                }
            }
        }
        self.rebuild().await
    }

    async fn execute(&self, request: Request) -> Result<Committed, CommandError> {
        execute(&self.manager, request).await
    }

    async fn verify(
        &self,
        presented: &str,
        need: &Need,
        path: VerifyPath,
    ) -> Result<KeyId, VerifyError> {
        if path == VerifyPath::Fresh {
            return self.fetch(presented, need).await;
        }
        let remembers = self.has(NodeDefect::CachesRefusals);
        if remembers && self.known().refused.contains(presented) {
            return Err(VerifyError::Unknown);
        }
        let mut verdict = self.judge(presented, need).await;
        if path == VerifyPath::OrFetch && verdict == Err(VerifyError::Unknown) {
            verdict = self.fetch(presented, need).await;
        }
        if remembers && verdict == Err(VerifyError::Unknown) {
            self.known().refused.insert(presented.to_owned());
        }
        verdict
    }

    async fn upkeep(&self) {}
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
