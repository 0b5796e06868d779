//! The replica: follows a store's feed into an index that verification reads.
//!
//! Invariants:
//!
//! - A change applies only if its revision is newer, so nothing stale overwrites a tombstone (trap
//!   2).
//! - The published confirmation is the instant at which a read was *sent* whose whole answer has
//!   been applied.
//! - A resync builds a new index aside and publishes it whole.
//! - Where nodes register, a read confirms only if a report of this node was durable before the
//!   read was sent.

mod confirmations;
mod freshness;
mod index;
mod registration;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

pub(crate) use self::confirmations::Awaited;
pub use self::confirmations::{Confirmations, NodeAnswer, NodeConfirmation};
pub use self::freshness::{Freshness, Lag};
use self::index::Index;
pub(crate) use self::index::{
    Answer, Facts, Half, Hit, HolderAt, Kept, Known, Parts, Sought, View,
};
use self::registration::{Registration, Standing};
use crate::clock::{Clock, Reading};
use crate::core::checked_time::CheckedTime;
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::observe;
use crate::store::{
    Change, ChangesError, CommitTag, Cursor, Epoch, FoundKey, KeyStore, Learnt, ScanPage,
    StoreError, StoreErrorKind,
};
use crate::timekeeper::Timekeeper;

/// 4096 rows per page of feed or scan. A judgement: about a megabyte.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("the page size is not zero");

/// The value of `confirmed` before the first confirmation.
const NEVER: u64 = 0;

/// Follows a store into an index for verification.
///
/// A step machine: each call to [`sync`](Self::sync) is one step, and the caller decides when to
/// make it.
#[derive(Debug)]
pub struct Replica {
    store: Arc<dyn KeyStore>,
    clock: Arc<Timekeeper>,
    view: ArcSwap<View>,
    /// The number of views shown so far. A caller that keeps a view compares this number to notice
    /// a newer view.
    version: AtomicU64,
    /// Views that were replaced. The next sync frees them, so that a verifying thread never drops
    /// the last reference to one.
    replaced: Mutex<Vec<Arc<View>>>,
    /// The send time of the newest read that this index reflects in full, in microseconds of the
    /// monotonic clock.
    confirmed: AtomicU64,
    /// The same send time on the wall clock. Stored before `confirmed`, whose Release store pairs
    /// with the reader's Acquire load. So a reader that sees a confirmation sees its wall time, or
    /// the wall time of a later one.
    confirmed_wall: AtomicI64,
    /// Whether this node has seen any imported key.
    imported: AtomicBool,
    /// Whether the store has answered synchronously before.
    in_process: AtomicBool,
    progress: Mutex<Progress>,
    syncing: async_lock::Mutex<()>,
    registration: Option<Registration>,
    /// Counts the store's answers, so that a caller can distinguish a slow sync from one that
    /// hangs.
    answers: AtomicU64,
}

#[derive(Debug, Default)]
struct Progress {
    cursor: Option<Cursor>,
    /// This node's state with its registry. `None` if nodes do not register.
    standing: Option<Standing>,
    /// The furthest head that any read of the store returned.
    head: Option<Cursor>,
    /// The instant at which this process last found that the store's history had been replaced.
    lost: Option<Duration>,
    /// The epoch that this process last committed in.
    landed: Option<Epoch>,
    /// The index that a resync is building aside. Commits of this process are applied to it too.
    building: Option<Arc<Index>>,
    /// Commits of this process during the scan that fills `building`; `None` after the scan. They
    /// are applied once the scan's revision is known: a key that the scan does not return may have
    /// been removed since.
    meanwhile: Option<Vec<Change>>,
}

impl Replica {
    /// Creates an empty replica of `store`. Call [`sync`](Self::sync) to fill it.
    pub fn new(store: Arc<dyn KeyStore>, clock: Arc<dyn Clock>) -> Self {
        let time = Timekeeper::new(clock, CheckedTime::ALLOWANCE);
        Self {
            store,
            clock: Arc::new(time),
            view: ArcSwap::from_pointee(View::of(Arc::default())),
            version: AtomicU64::new(0),
            replaced: Mutex::default(),
            confirmed: AtomicU64::new(NEVER),
            confirmed_wall: AtomicI64::new(0),
            imported: AtomicBool::new(false),
            in_process: AtomicBool::new(false),
            progress: Mutex::default(),
            syncing: async_lock::Mutex::new(()),
            registration: None,
            answers: AtomicU64::new(0),
        }
    }

    /// Sets the source of the time.
    #[must_use]
    pub fn with_time(mut self, time: Arc<Timekeeper>) -> Self {
        self.clock = time;
        self
    }

    pub(crate) const fn time(&self) -> &Arc<Timekeeper> {
        &self.clock
    }

    /// Catches up with every commit that returned before this call began, and confirms the index.
    /// The first call reads everything, and so does a call after the store's history was lost.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store, or of the registry if this node could not register. Nothing is
    /// confirmed then, and the index stays as it was.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let _only_one = self.syncing.lock().await;
        // The registry comes first: the other nodes' clocks correct the time by which this sync's
        // confirmation is judged.
        self.look_around().await;
        self.follow().await?;
        self.report_progress().await;
        Ok(())
    }

    async fn follow(&self) -> Result<(), StoreError> {
        let step = Step::begin(self);
        let synced = self.step().await;
        step.end(&synced);
        synced
    }

    async fn step(&self) -> Result<(), StoreError> {
        let replaced = std::mem::take(&mut *self.replaced());
        // A verification may have counted a first use in an old view after the new index had
        // inherited its uses.
        let current = self.view();
        let others = replaced.iter().map(|view| view.index());
        let others = others.filter(|index| !Arc::ptr_eq(index, current.1.index()));
        others.for_each(|index| current.1.inherit_first_uses(index));
        drop((replaced, current));
        let cursor = self.progress().cursor;
        if let Some(cursor) = cursor {
            match self.catch_up(&self.index(), cursor).await {
                Ok((sent, upto)) => return self.publish(sent, upto),
                Err(ChangesError::Store(error)) => return Err(error),
                Err(ChangesError::Compacted) => self.lose_history(),
            }
        }
        self.rebuild().await
    }

    /// Returns the age of the last confirmation and the position in the store's history.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        let confirmed = self.confirmed_at();
        let age = confirmed.map(|sent| self.clock.raw().since(sent));
        let progress = self.progress();
        Freshness {
            age,
            cursor: progress.cursor,
            head: progress.head,
        }
    }

    /// Returns the number of answers from the store so far. It rises during a sync that makes
    /// progress.
    #[cfg(feature = "tokio")]
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    fn heard(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the send time of the newest read that the index reflects in full; `None` before the
    /// first. Load it before reading the index, and compare it with a clock read afterwards. The
    /// Acquire load pairs with the Release store in [`confirm`](Self::confirm), so the index shows
    /// everything that read returned.
    #[inline]
    pub(crate) fn confirmed_at(&self) -> Option<Reading> {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let wall = self.confirmed_wall.load(Ordering::Relaxed);
        (confirmed != NEVER).then(|| Reading {
            wall: Timestamp::from_micros(wall).unwrap_or(Timestamp::UNIX_EPOCH),
            monotonic: Duration::from_micros(confirmed),
        })
    }

    /// Returns the current view, and a version that is not newer than the view.
    pub(crate) fn view(&self) -> (u64, Arc<View>) {
        // The version is loaded first. In the other order, the old view could be returned with the
        // version of its successor, and its reader would never replace it.
        let version = self.version();
        (version, self.view.load_full())
    }

    /// Hands over a view that is no longer read; the next sync frees it.
    pub(crate) fn retire(&self, view: Arc<View>) {
        self.replaced().push(view);
    }

    /// Returns the number of views before the current one.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns whether a string that is not one of our tokens may still be a key.
    #[inline]
    pub(crate) fn has_imported(&self) -> bool {
        self.imported.load(Ordering::Acquire)
    }

    fn note_imports(&self, index: &Index) {
        if index.has_imported() {
            self.imported.store(true, Ordering::Release);
        }
    }

    /// Returns the tenant of a key, if this node knows the key.
    pub(crate) fn tenant_of(&self, id: KeyId) -> Option<TenantId> {
        let view = self.view.load();
        view.facts_of(id)
            .map(|facts| facts.holder.get().tenant.clone())
    }

    fn index(&self) -> Arc<Index> {
        self.view.load().index().clone()
    }

    fn show(&self, view: View) {
        let old = self.view.swap(Arc::new(view));
        self.replaced().push(old);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Applies changes to the current index. The caller holds the lock of `progress`, so there is
    /// one writer at a time.
    fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Arc<Index> {
        let index = self.index();
        index.apply(changes);
        self.note_imports(&index);
        if index.wants_view() {
            self.show(View::of(index.clone()));
        }
        index
    }

    /// Returns the tenants whose rows name bulk commands that have not finished.
    pub(crate) fn unfinished(&self) -> Vec<TenantId> {
        self.view().1.unfinished()
    }

    /// Returns the successors that were used on this node and whose first use is not recorded.
    pub(crate) fn first_uses(&self) -> Vec<(TenantId, KeyId)> {
        self.view().1.first_uses()
    }

    /// Returns the keys among `keys` that were used on this node.
    pub(crate) fn used_of(&self, keys: &[KeyId]) -> BTreeSet<KeyId> {
        self.view().1.used_of(keys)
    }

    /// Returns the tenants whose newest commit is further in the future than clocks may differ,
    /// each with that commit's instant. Either a clock was wrong when the commit was decided, or
    /// this process's clock is behind.
    #[must_use]
    pub fn tenants_ahead(&self) -> Vec<(TenantId, Timestamp)> {
        let time = self.clock.check();
        let allowed = time.best().saturating_add(time.allowance);
        self.view.load().index().later(allowed)
    }

    /// Confirms immediately if the store lives in this process. Returns whether it did.
    pub(crate) fn confirm_now(&self) -> bool {
        if !self.answers_now() {
            return false;
        }
        let mut progress = self.progress();
        while let Some(cursor) = progress.cursor {
            let sent = self.sending(&progress);
            match self.store.changes_now(cursor, PAGE) {
                Some(Ok(changes)) => {
                    let done = changes.upto == changes.head;
                    if !done && changes.upto == cursor {
                        return false;
                    }
                    progress.cursor = Some(changes.upto);
                    progress.saw(changes.head);
                    self.clock
                        .saw_server(changes.server_time, sent.at.monotonic);
                    self.apply(changes.changes);
                    if done {
                        // Even if the registration does not let the confirmation be kept, the read
                        // answers this verification.
                        self.confirm(&progress, sent);
                        return true;
                    }
                }
                Some(Err(ChangesError::Compacted)) => {
                    self.end_freshness(&mut progress);
                    progress.forget(self.clock.monotonic());
                }
                Some(Err(ChangesError::Store(_))) | None => return false,
            }
        }
        false
    }

    /// Returns whether the store lives in this process. Asks without the lock under which changes
    /// are applied, so that verifications over any other store do not wait for the writer.
    fn answers_now(&self) -> bool {
        // Ahead of every head, so the store has nothing to return.
        const BEYOND: Cursor = Cursor {
            epoch: Epoch(u128::MAX),
            revision: Revision(u64::MAX),
            tag: CommitTag(u128::MAX),
        };
        let known = || self.in_process.load(Ordering::Relaxed);
        let asked = || self.store.changes_now(BEYOND, PAGE).is_some();
        if !known() && asked() {
            self.in_process.store(true, Ordering::Relaxed);
        }
        known()
    }

    /// Applies this process's commit, and the rows it was decided on, before the commit's caller is
    /// notified. If the commit landed in another history than the one being followed, freshness
    /// ends: revisions of two histories cannot be compared.
    pub(crate) fn apply_landed(&self, learnt: &Learnt) {
        let Learnt { epoch, changes } = learnt;
        let mut progress = self.progress();
        progress.landed = Some(*epoch);
        if progress.cursor.is_some_and(|own| own.epoch != *epoch) {
            tracing::warn!("store was replaced by another one, reading everything again");
            observe::resynced();
            self.end_freshness(&mut progress);
            progress.forget(self.clock.monotonic());
            return;
        }
        if let Some(building) = progress.building.clone() {
            match &mut progress.meanwhile {
                Some(meanwhile) => meanwhile.extend(changes.iter().cloned()),
                None => building.apply(changes.iter().cloned()),
            }
        }
        self.apply(changes.iter().cloned());
    }

    /// Applies one key that was read through the store, unless it belongs to another history. The
    /// rows of its owner and tenants, read along with it, are applied first: without them the key
    /// would reach nothing here.
    pub(crate) fn apply_fetched(&self, fetched: &FoundKey, rows: &[Change]) {
        let mut progress = self.progress();
        if progress
            .cursor
            .is_some_and(|cursor| cursor.epoch == fetched.head.epoch)
        {
            progress.saw(fetched.head);
            self.apply(rows.iter().chain([&fetched.change]).cloned());
        }
    }

    /// Applies changes to `index` until a page reaches its own head.
    async fn catch_up(
        &self,
        index: &Index,
        mut cursor: Cursor,
    ) -> Result<(Sent, Cursor), ChangesError> {
        self.register().await?;
        let sent = self.sending(&self.progress());
        loop {
            let asked = self.clock.monotonic();
            let page = self.store.changes(cursor, PAGE).await;
            self.heard();
            let page = page?;
            // The goal is this page's head, not the first page's. A row that changes between two
            // pages moves behind the first head, and its earlier change is no longer in the feed.
            // Stopping at the first head would miss both.
            let goal = page.head.revision;
            {
                let mut one_writer = self.progress();
                one_writer.saw(page.head);
                index.apply(page.changes);
                self.note_imports(index);
                self.clock.saw_server(page.server_time, asked);
            }
            let moved = page.upto.revision > cursor.revision;
            cursor = page.upto;
            if cursor.revision >= goal {
                return Ok((sent, cursor));
            }
            if !moved {
                let kind = StoreErrorKind::Corrupt;
                return Err(StoreError::new(kind, "following a feed that does not go on").into());
            }
        }
    }

    async fn rebuild(&self) -> Result<(), StoreError> {
        // Register before the scan: without a registration the scan could confirm nothing.
        self.register().await?;
        let building = Arc::new(Index::default());
        {
            let mut progress = self.progress();
            progress.building = Some(building.clone());
            progress.meanwhile = Some(Vec::new());
            progress.landed = None;
        }
        let _given_up = GivenUp(self);
        let built = self.fill(&building).await;
        let view = View::of(building);
        if built.is_ok() {
            view.inherit_uses(&self.index());
        }
        let mut progress = self.progress();
        progress.building = None;
        let (sent, upto) = built?;
        if progress.landed.is_some_and(|epoch| epoch != upto.epoch) {
            return Err(history_replaced());
        }
        self.show(view);
        progress.cursor = Some(upto);
        self.confirm_or_fail(&progress, sent)
    }

    async fn fill(&self, index: &Index) -> Result<(Sent, Cursor), StoreError> {
        let mut head = None;
        let mut read = 0_usize;
        let mut take = |page: ScanPage| {
            self.heard();
            head.get_or_insert(page.head);
            read += page.rows.len();
            let mut one_writer = self.progress();
            one_writer.saw(page.head);
            index.apply(page.rows);
            self.note_imports(index);
            Ok(())
        };
        self.store.scan_all(PAGE, &mut take).await?;
        tracing::debug!(rows = read, "scanned");
        {
            let mut progress = self.progress();
            index.filled(head.map_or(Revision::ZERO, |head: Cursor| head.revision));
            index.apply(progress.meanwhile.take().unwrap_or_default());
            self.note_imports(index);
        }
        match self.catch_up(index, head.unwrap_or_default()).await {
            Ok(caught_up) => Ok(caught_up),
            Err(ChangesError::Store(error)) => Err(error),
            // The history was compacted during the scan; the next step starts over.
            Err(ChangesError::Compacted) => {
                let kind = StoreErrorKind::Unavailable;
                Err(StoreError::new(kind, "following changes after a scan"))
            }
        }
    }

    fn publish(&self, sent: Sent, upto: Cursor) -> Result<(), StoreError> {
        let mut progress = self.progress();
        // The history may have been lost since the read was sent, for example by a commit of this
        // process. Then the read confirms nothing.
        let own = progress.cursor.filter(|own| own.epoch == upto.epoch);
        let own = own.ok_or_else(history_replaced)?;
        if own.revision < upto.revision {
            progress.cursor = Some(upto);
        }
        let index = self.index();
        if index.wants_view() {
            self.show(View::of(index));
        }
        self.confirm_or_fail(&progress, sent)
    }

    /// Ends freshness because the store's history is not the one that was followed.
    fn lose_history(&self) {
        tracing::warn!("store's history changed or was compacted, reading everything again");
        observe::resynced();
        let mut progress = self.progress();
        // The registry may have been lost together with the history.
        self.end_freshness(&mut progress);
        progress.forget(self.clock.monotonic());
    }

    /// Returns the send time of a read that is about to be sent.
    fn sending(&self, progress: &Progress) -> Sent {
        // Loaded before the clock: a registration that becomes durable later counts for later reads
        // only.
        let until = progress.until();
        let at = self.clock.raw();
        Sent { at, until }
    }

    /// Publishes a read as a confirmation. The node must have been registered when the read was
    /// sent, and still be.
    fn confirm(&self, progress: &Progress, sent: Sent) -> bool {
        let Sent { at, until } = sent;
        let may = |until: Option<Reading>| until.is_some_and(|until| is_by(at, until));
        let confirms = may(until) && may(progress.until());
        if confirms {
            let monotonic = u64::try_from(at.monotonic.as_micros()).unwrap_or(u64::MAX);
            // The lock of `progress` makes this the only writer.
            if monotonic >= self.confirmed.load(Ordering::Relaxed) {
                let wall = at.wall.as_micros();
                self.confirmed_wall.store(wall, Ordering::Relaxed);
                self.confirmed.store(monotonic, Ordering::Release);
            }
        }
        confirms
    }

    fn confirm_or_fail(&self, progress: &Progress, sent: Sent) -> Result<(), StoreError> {
        let kind = StoreErrorKind::Unavailable;
        let lapsed = StoreError::new(kind, "confirming: this node has to register anew");
        self.confirm(progress, sent).then_some(()).ok_or(lapsed)
    }

    /// Exports the gauges of age and key count.
    fn show_gauges(&self) {
        let keys = self.view.load().index().keys();
        observe::replica(self.freshness().age, keys);
    }

    fn replaced(&self) -> MutexGuard<'_, Vec<Arc<View>>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn history_replaced() -> StoreError {
    let kind = StoreErrorKind::Unavailable;
    StoreError::new(kind, "following a store that was replaced")
}

/// The send time of a read.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Reading,
    /// The latest send time with which the read confirms, as known when it was sent. `None` if no
    /// read could confirm.
    until: Option<Reading>,
}

/// Returns whether `at` is no later than `until` on both clocks.
fn is_by(at: Reading, until: Reading) -> bool {
    at.monotonic <= until.monotonic && at.wall <= until.wall
}

impl Progress {
    /// Records a head of the store. Within one history the higher head stays, in either order of
    /// arrival.
    fn saw(&mut self, head: Cursor) {
        let own = self.head.filter(|own| own.epoch == head.epoch);
        if own.is_none_or(|own| own.revision < head.revision) {
            self.head = Some(head);
        }
    }

    /// Drops the position in the store's history, and the store's head.
    fn forget(&mut self, now: Duration) {
        (self.cursor, self.head) = (None, None);
        self.lost = Some(now);
    }
}

/// A sync in progress. Logs its outcome when it ends, or when it is dropped.
struct Step<'a> {
    replica: &'a Replica,
    sent: Duration,
    outcome: &'static str,
}

impl<'a> Step<'a> {
    fn begin(replica: &'a Replica) -> Self {
        replica.show_gauges();
        Self {
            replica,
            sent: replica.clock.monotonic(),
            outcome: "abandoned",
        }
    }

    fn end(mut self, synced: &Result<(), StoreError>) {
        self.outcome = if synced.is_ok() {
            "confirmed"
        } else {
            "failed"
        };
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        let took = self.replica.clock.monotonic().saturating_sub(self.sent);
        let cursor = self.replica.progress().cursor;
        let revision = cursor.map(|cursor| cursor.revision.0);
        tracing::debug!(outcome = self.outcome, ?took, revision, "synced");
        observe::synced(self.outcome);
        self.replica.show_gauges();
    }
}

/// Releases the index being built if its sync is dropped before the index is published.
struct GivenUp<'a>(&'a Replica);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress();
        (progress.building, progress.meanwhile) = (None, None);
    }
}
