//! The replica: follows a store's feed into an index that verification reads.
//!
//! Invariants: an update applies only if its revision is newer, so nothing stale overwrites a
//! tombstone (trap 2); what is published as confirmed is the instant at which a read was *sent*
//! whose whole answer has been applied; a resync is built aside and published whole; where nodes
//! register, a read confirms only if a report of this one was durable before it was sent.

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
    Change, ChangesError, CommitTag, Cursor, Epoch, KeyStore, Learnt, ScanPage, StoreError,
    StoreErrorKind, Versioned,
};
use crate::timekeeper::Timekeeper;

/// How many rows a page of feed or scan asks for. A judgement: a megabyte or so.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");

/// Nothing was ever confirmed.
const NEVER: u64 = 0;

/// Follows a store into an index for verification.
///
/// A step machine: [`sync`](Self::sync) is one step, and whoever drives it decides when.
#[derive(Debug)]
pub struct Replica {
    store: Arc<dyn KeyStore>,
    clock: Arc<Timekeeper>,
    view: ArcSwap<View>,
    /// Counts the views, so that whoever keeps one knows when there is a newer one.
    version: AtomicU64,
    /// Views that were replaced, kept until the next sync: whoever still reads one should not be the
    /// one to free it.
    replaced: Mutex<Vec<Arc<View>>>,
    /// When the last read was sent that this index reflects in full, in microseconds of the
    /// monotonic clock.
    confirmed: AtomicU64,
    /// The same on the wall clock. Written before, so that whoever reads it later sees no earlier read's.
    confirmed_wall: AtomicI64,
    /// Whether any key was ever imported, as far as is known here.
    imported: AtomicBool,
    /// Whether the store was seen to answer at once.
    in_process: AtomicBool,
    progress: Mutex<Progress>,
    syncing: async_lock::Mutex<()>,
    registration: Option<Registration>,
    /// Counts the store's answers, so that a sync that goes on is told from one that hangs.
    answers: AtomicU64,
}

#[derive(Debug, Default)]
struct Progress {
    cursor: Option<Cursor>,
    /// `None` where nodes do not register.
    standing: Option<Standing>,
    /// The furthest that the store was seen at.
    head: Option<Cursor>,
    /// When this process last found that the history which it followed was lost.
    lost: Option<Duration>,
    /// The history that a commit of this process last landed in.
    landed: Option<Epoch>,
    /// An index being built aside: commits of this process go into it as well.
    building: Option<Arc<Index>>,
    /// Commits of this process for the index that is built aside, for as long as the scan goes on
    /// that fills it: what they say of keys that the scan does not find may have been removed since.
    meanwhile: Option<Vec<Change>>,
}

impl Replica {
    /// A replica of `store` that knows nothing yet; see [`sync`](Self::sync).
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

    /// Reads the time from `time`.
    #[must_use]
    pub fn with_time(mut self, time: Arc<Timekeeper>) -> Self {
        self.clock = time;
        self
    }

    pub(crate) const fn time(&self) -> &Arc<Timekeeper> {
        &self.clock
    }

    /// Catches up with every commit that returned before this call began, and confirms that it did.
    /// The first call, and one after the store's history was lost, reads everything.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store, or of the registry if this node could not register; nothing is
    /// confirmed then, and what was known stays.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let _only_one = self.syncing.lock().await;
        // First: by what others say of the time, what this sync confirms is judged.
        self.look_around().await;
        self.follow().await?;
        self.tell().await;
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
        // A use may have been counted there while the new index was being shown.
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

    /// How far it is.
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

    /// How often the store answered so far: while a sync goes on, ever more often.
    #[cfg(feature = "tokio")]
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Counts an answer.
    fn heard(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// The instant at which the read was sent that the index reflects in full; `None` if none was.
    /// To be loaded before the index is read, and compared with a clock read after it.
    #[inline]
    pub(crate) fn confirmed_at(&self) -> Option<Reading> {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let wall = self.confirmed_wall.load(Ordering::Relaxed);
        (confirmed != NEVER).then(|| Reading {
            wall: Timestamp::from_micros(wall).unwrap_or(Timestamp::UNIX_EPOCH),
            monotonic: Duration::from_micros(confirmed),
        })
    }

    /// Where a key is looked up now, and how many views there were before it or more.
    pub(crate) fn view(&self) -> (u64, Arc<View>) {
        // First: the view may be newer than its number, and never older.
        let version = self.version();
        (version, self.view.load_full())
    }

    /// Has a view that is read no more freed by the next sync.
    pub(crate) fn leave_behind(&self, view: Arc<View>) {
        self.replaced().push(view);
    }

    /// How many views there were before the current one.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether a string that is no token of ours may still be a key.
    #[inline]
    pub(crate) fn has_imported(&self) -> bool {
        self.imported.load(Ordering::Acquire)
    }

    fn note_imports(&self, index: &Index) {
        if index.has_imported() {
            self.imported.store(true, Ordering::Release);
        }
    }

    /// The tenant of a key, if it is known here.
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

    /// Applies changes to the index in use, one writer at a time.
    fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Arc<Index> {
        let index = self.index();
        index.apply(changes);
        self.note_imports(&index);
        if index.wants_view() {
            self.show(View::of(index.clone()));
        }
        index
    }

    /// The tenants whose rows name commands over many keys that have not come to their end.
    pub(crate) fn unfinished(&self) -> Vec<TenantId> {
        self.view().1.unfinished()
    }

    /// The successors that were used here, and whose first use is not recorded.
    pub(crate) fn first_uses(&self) -> Vec<(TenantId, KeyId)> {
        self.view().1.first_uses()
    }

    /// Those of some keys that were used here.
    pub(crate) fn used_of(&self, keys: &[KeyId]) -> BTreeSet<KeyId> {
        self.view().1.used_of(keys)
    }

    /// The tenants whose newest commit lies further in the future than clocks may differ, each with its
    /// instant, as far as is known here. A clock was wrong when it was decided, or this process's clock is
    /// behind.
    #[must_use]
    pub fn tenants_ahead(&self) -> Vec<(TenantId, Timestamp)> {
        let time = self.clock.check();
        let allowed = time.best().saturating_add(time.allowance);
        self.view.load().index().later(allowed)
    }

    /// Confirms at once, if the store lives in this process; tells whether it did.
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
                        // Good for this one use even where it cannot be kept.
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

    /// Whether the store lives in this process. Asked without the lock under which changes are applied:
    /// verifications over any other store do not wait for the writer to learn that it does not.
    fn answers_now(&self) -> bool {
        // Ahead of every head: there is nothing to be read.
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

    /// Takes over what this process committed and what that was decided on, before anyone hears that it
    /// landed. In another history than the one that is followed nothing is fresh any more: revisions of
    /// two histories say nothing about each other.
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

    /// Takes over one key that was read through the store, unless it belongs to another history;
    /// first the rows of its owner and tenants that were read along with it, without which it would
    /// reach nothing here.
    pub(crate) fn apply_fetched(&self, fetched: &Versioned, rows: &[Change]) {
        let mut progress = self.progress();
        if progress
            .cursor
            .is_some_and(|cursor| cursor.epoch == fetched.head.epoch)
        {
            progress.saw(fetched.head);
            self.apply(rows.iter().chain([&fetched.change]).cloned());
        }
    }

    /// Applies changes to `index` until a page reaches the head that it tells.
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
            // This page's own head, not the first one's: a row that changed again meanwhile has moved
            // behind that, and with it whatever had become of it before.
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
        // Before everything is read in vain.
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
            return Err(lost_meanwhile());
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
            // History was compacted under the scan: the next step starts over.
            Err(ChangesError::Compacted) => {
                let kind = StoreErrorKind::Unavailable;
                Err(StoreError::new(kind, "following changes after a scan"))
            }
        }
    }

    fn publish(&self, sent: Sent, upto: Cursor) -> Result<(), StoreError> {
        let mut progress = self.progress();
        // Lost meanwhile, by a commit of this process perhaps: what was read says nothing any more.
        let own = progress.cursor.filter(|own| own.epoch == upto.epoch);
        let own = own.ok_or_else(lost_meanwhile)?;
        if own.revision < upto.revision {
            progress.cursor = Some(upto);
        }
        let index = self.index();
        if index.wants_view() {
            self.show(View::of(index));
        }
        self.confirm_or_fail(&progress, sent)
    }

    /// The store's history is not the one that was followed: nothing is confirmed any more.
    fn lose_history(&self) {
        tracing::warn!("store's history changed or was compacted, reading everything again");
        observe::resynced();
        let mut progress = self.progress();
        // The registry may have lost what it knew along with it.
        self.end_freshness(&mut progress);
        progress.forget(self.clock.monotonic());
    }

    /// A read that is about to be sent.
    fn sending(&self, progress: &Progress) -> Sent {
        // First: a registration that becomes durable after this counts for later reads only.
        let until = progress.until();
        let at = self.clock.raw();
        Sent { at, until }
    }

    /// Takes a read as a confirmation, if this node was registered when it was sent, and still is.
    fn confirm(&self, progress: &Progress, sent: Sent) -> bool {
        let Sent { at, until } = sent;
        let may = |until: Option<Reading>| until.is_some_and(|until| is_by(at, until));
        let confirms = may(until) && may(progress.until());
        if confirms {
            let monotonic = u64::try_from(at.monotonic.as_micros()).unwrap_or(u64::MAX);
            // One at a time, by `progress`.
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

    /// Tells whoever watches how far this is.
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

fn lost_meanwhile() -> StoreError {
    let kind = StoreErrorKind::Unavailable;
    StoreError::new(kind, "following a store that was replaced")
}

/// When a read was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Reading,
    /// Until when it could have been sent to confirm something, as was known before; `None` if
    /// nothing could.
    until: Option<Reading>,
}

/// Returns whether `at` is no later than `until`, by either clock.
fn is_by(at: Reading, until: Reading) -> bool {
    at.monotonic <= until.monotonic && at.wall <= until.wall
}

impl Progress {
    /// Notes where the store was seen. Of two places in one history the later one counts, in
    /// whichever order they are heard of.
    fn saw(&mut self, head: Cursor) {
        let own = self.head.filter(|own| own.epoch == head.epoch);
        if own.is_none_or(|own| own.revision < head.revision) {
            self.head = Some(head);
        }
    }

    /// Nothing is known of where the store stands, nor of where its follower does.
    fn forget(&mut self, now: Duration) {
        (self.cursor, self.head) = (None, None);
        self.lost = Some(now);
    }
}

/// A sync on its way: it is told how it ended, and when it was dropped before.
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

/// Lets go of an index that is built aside, if its sync is dropped before the index is published.
struct GivenUp<'a>(&'a Replica);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress();
        (progress.building, progress.meanwhile) = (None, None);
    }
}
