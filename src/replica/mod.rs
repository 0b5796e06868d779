//! The replica: an index of keys for verification, kept current by following the store's change feed.
//!
//! Invariants:
//!
//! - A change is applied only if its revision is newer than the known row's. So a late, older change cannot
//!   overwrite a tombstone.
//! - The published confirmation is the *send* time of a read of the store, never its arrival time. It is
//!   published only after the complete answer has been applied.
//! - A resync fills a new index in the background, and publishes that index in one step.
//! - When the index has doubled, a copy without unused entries replaces it, under the lock of its writers. So
//!   memory is bounded by the keys that exist, and readers need no lock.
//! - With a node registry, a read confirms the index only if the registry had stored a report of this node
//!   before the read was sent.
//! - If the store goes back in time within its epoch, no read confirms the index: see
//!   `divergence.rs`.

mod confirmations;
mod divergence;
mod fetched;
mod freshness;
mod index;
mod refusal;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;

pub(crate) use self::confirmations::Awaited;
pub use self::confirmations::{Confirmations, NodeAnswer, NodeConfirmation};
use self::divergence::{PROBE, history_lost};
use self::fetched::FetchedUses;
pub use self::freshness::{Freshness, Lag};
use self::index::Index;
pub(crate) use self::index::{
    AttributeIds, Attributes, CountedUses, DigestPrefix, Hit, IndexLookup, OwnerRef, Prefetched,
    ProvenKey, RowKind, RowState, Search, View,
};
use self::refusal::{Judged, RefusalNews, RefusalWatch};
use self::registration::{Registration, RegistrationState};
use crate::clock::{Clock, MicroReading, Reading};
use crate::core::checked_time::CheckedTime;
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::core::text::PepperId;
use crate::core::time::Timestamp;
use crate::core::usage::outcome::UseOutcome;
use crate::core::view::Revision;
use crate::joint::Turns;
use crate::live_policies::LivePolicies;
use crate::observe::{self, WithSources};
use crate::store::{
    Change, ChangesError, CommitTag, Cursor, Epoch, FoundKey, KeyStore, Learnt, ScanPage,
    StoreError, StoreErrorKind,
};
use crate::timekeeper::Timekeeper;

/// 4096 rows per page of the change feed or of a scan: about 1 MB.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("the page size is not zero");

/// 500 ms, half of a follower's default timeout: a caller that gives up on a sync cancels it for all callers
/// if the store has not answered for this long.
const PATIENCE: Duration = Duration::from_millis(500);

/// The value of `confirmed` while no read confirms the index.
const NEVER: u64 = 0;

/// Keeps an index of a store's keys for verification.
///
/// Starts no task of its own. Each call to [`sync`](Self::sync) catches up once, and the caller decides when
/// to call it.
#[derive(Debug)]
pub struct Replica {
    store: Arc<dyn KeyStore>,
    clock: Arc<Timekeeper>,
    view: ArcSwap<View>,
    /// The number of times that `view` was replaced by a newer view. A thread that caches a view compares
    /// this number to detect that its view is outdated.
    version: AtomicU64,
    /// Views that were replaced by newer ones. The next sync frees them. A verifying thread must never drop
    /// the last reference to a view, because freeing a view is slow.
    replaced: Mutex<Vec<Arc<View>>>,
    /// Held while views are freed.
    freeing: Mutex<()>,
    /// The send time of the newest read whose complete answer the index contains, in microseconds of the
    /// monotonic clock. [`NEVER`] if no read confirms the index.
    confirmed: AtomicU64,
    /// The wall-clock time at which the read in `confirmed` was sent. The writer stores this field first, and
    /// then stores `confirmed` with Release. A reader loads `confirmed` with Acquire, and so sees the wall
    /// time of that confirmation or a later one.
    confirmed_wall: AtomicI64,
    /// True if this node has ever received an imported key.
    imported: AtomicBool,
    /// True if the store has ever answered `changes_now`. Only a store in the same process supports this
    /// method.
    in_process: AtomicBool,
    progress: Mutex<SyncState>,
    turns: Turns<TurnKind, Result<(), StoreError>>,
    registration: Option<Registration>,
    /// The number of answers that the store and the registry have given to this replica. It increases during
    /// a slow sync, but not during a hung one.
    answers: AtomicU64,
    /// The time of the last such answer, or of the start of the current turn, in microseconds of the
    /// monotonic clock.
    answered: AtomicU64,
    /// True once the process has ended its work on the store. No sync begins afterwards.
    closed: AtomicBool,
    /// Concurrent reads of the bounds that nodes report share one read.
    bounds: Turns<(), Option<Duration>>,
    /// True if this node reads no keys in advance. [`sync`](Self::sync) reads them nevertheless.
    without_index: bool,
    /// The policies, whose staleness bounds decide when keys are refused. `None` if the policies of the verifier
    /// are unknown.
    policies: Option<Arc<LivePolicies>>,
    refusals: Mutex<RefusalWatch>,
    fetched: FetchedUses,
}

/// The work of a replica that must not overlap. It runs in turns, each driven by every caller that waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum TurnKind {
    Sync,
    Head,
    Leave,
}

#[derive(Debug, Default)]
struct SyncState {
    cursor: Option<Cursor>,
    /// The state of this node's registration. `None` without a node registry.
    registration: Option<RegistrationState>,
    /// The newest head that any read of the store returned.
    head: Option<Cursor>,
    /// The newest position that a read of the store or a commit of this process returned. Stays when the cursor is
    /// dropped.
    newest: Option<Cursor>,
    /// A position that the store lacks, because the store went back in time. `None` if no such position is known.
    diverged: Option<Cursor>,
    /// The last time at which this replica dropped its cursor. It does so if the store's history was
    /// replaced, or if the changes after its cursor were compacted.
    lost: Option<Duration>,
    /// The epoch in which this process last committed. Reset to `None` when a resync begins.
    committed_epoch: Option<Epoch>,
    /// The index that a running resync fills. Commits of this process are applied to this index too.
    building: Option<Arc<Index>>,
    /// Commits of this process during the scan that fills `building`. `None` once the scan has ended.
    ///
    /// They are applied after the scan, when the revision of the scan is known. Otherwise an old row could
    /// bring back a key that was removed before the scan.
    commits_during_scan: Option<Vec<Change>>,
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
            freeing: Mutex::default(),
            confirmed: AtomicU64::new(NEVER),
            confirmed_wall: AtomicI64::new(0),
            imported: AtomicBool::new(false),
            in_process: AtomicBool::new(false),
            progress: Mutex::default(),
            turns: Turns::default(),
            registration: None,
            answers: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            bounds: Turns::default(),
            without_index: false,
            policies: None,
            refusals: Mutex::default(),
            fetched: FetchedUses::default(),
        }
    }

    /// Sets the time source.
    #[must_use]
    pub fn with_time(mut self, time: Arc<Timekeeper>) -> Self {
        self.clock = time;
        self
    }

    /// Lets the node read no keys in advance.
    #[must_use]
    pub(crate) const fn without_index(mut self) -> Self {
        self.without_index = true;
        self
    }

    /// Reads the store's head and the server's time, and the other nodes' clocks if there is a registry. For a
    /// node that reads no keys in advance, and before a decision that depends on the time.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store, or because the store went back in time.
    pub(crate) async fn read_head(self: &Arc<Self>) -> Result<(), StoreError> {
        self.next_turn(TurnKind::Head).await
    }

    async fn read_head_once(&self) -> Result<(), StoreError> {
        self.read_peers().await;
        self.await_history().await?;
        let known = self.newest_known()?;
        let head = self.store.scan(None, PROBE).await?.head;
        self.count_answer();
        // The page is empty. A scan returns no server time.
        let page = self.page(head, PROBE).await?;
        page.ok_or_else(history_replaced)?;
        self.check_known(known, [head, head]).await?;
        self.progress().record_head(head);
        Ok(())
    }

    /// Sets the policies of this node's verifiers. The log then says when keys will be refused as stale.
    #[must_use]
    pub(crate) fn with_policies(mut self, policies: Arc<LivePolicies>) -> Self {
        self.policies = Some(policies);
        self
    }

    pub(crate) const fn time(&self) -> &Arc<Timekeeper> {
        &self.clock
    }

    /// Applies every commit that returned before this call, and then confirms the index.
    ///
    /// The first call reads the whole store. After the store's history was replaced or compacted, the next
    /// call also reads the whole store.
    ///
    /// Syncs run one after another. Concurrent calls share a sync that begins after all of them, and each
    /// call drives the current sync. A call that is kept and not polled delays no other call.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store, or of the registry if this node could not register. The index is not
    /// confirmed then, but changes that arrived before the error stay applied.
    pub async fn sync(self: &Arc<Self>) -> Result<(), StoreError> {
        self.next_turn(TurnKind::Sync).await
    }

    /// Takes a turn of this kind, which begins after this call.
    async fn next_turn(self: &Arc<Self>, kind: TurnKind) -> Result<(), StoreError> {
        let begin = || {
            let replica = self.clone();
            async move {
                replica.note_time();
                match kind {
                    TurnKind::Sync => replica.sync_once().await,
                    TurnKind::Head => replica.read_head_once().await,
                    TurnKind::Leave => replica.leave_once().await,
                }
            }
            .boxed()
        };
        self.turns.next(kind, begin, || self.is_stalled()).await
    }

    /// Returns whether neither the store nor the registry has answered for [`PATIENCE`]. A dropped caller may
    /// leave other callers that are never polled. So a turn whose answer was lost must not block the next turn.
    fn is_stalled(&self) -> bool {
        let answered = Duration::from_micros(self.answered.load(Ordering::Relaxed));
        self.clock.monotonic().saturating_sub(answered) >= PATIENCE
    }

    async fn sync_once(&self) -> Result<(), StoreError> {
        // Turns do not overlap, so a sync that begins after the deregistration sees the flag.
        if self.is_closed() {
            let doing = "syncing a closed node";
            return Err(StoreError::new(StoreErrorKind::Unavailable, doing));
        }
        let followed = self.follow().await;
        // A node whose store went back in time goes on reporting the position that the store lacks, for nodes
        // that start later.
        if followed.is_ok() || self.check_history().is_err() {
            self.report_progress().await;
        }
        followed
    }

    async fn follow(&self) -> Result<(), StoreError> {
        let recorder = SyncRecorder::begin(self);
        let synced = self.step().await;
        recorder.end(&synced);
        synced
    }

    async fn step(&self) -> Result<(), StoreError> {
        self.free_replaced();
        // Read the registry first: the other nodes' clocks correct the time against which verifications check
        // keys after this sync.
        match self.has_memory() {
            true => self.read_peers().await,
            false => self.check_peers().await?,
        }
        self.await_history().await?;
        let cursor = self.progress().cursor;
        if let Some(cursor) = cursor {
            match self.catch_up(None, cursor).await? {
                Some((sent, upto)) => return self.publish(sent, upto),
                None => self.lose_history(),
            }
        }
        self.rebuild().await
    }

    /// Returns the time since the last confirmation of the index, and the replica's position in the store's
    /// history.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        let confirmed = self.confirmed_at();
        let age = confirmed.map(|sent| self.clock.raw().since(sent.to_reading()));
        let progress = self.progress();
        Freshness {
            age,
            cursor: progress.cursor,
            head: progress.head,
            diverged: progress.diverged,
        }
    }

    /// Returns the number of answers from the store and the registry so far. A sync that makes progress
    /// increases this number.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Lets every later sync fail, so that none registers the node again.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Logs that keys are refused as stale, unless this was logged already. Called when a key was refused.
    #[cold]
    pub(crate) fn note_stale(&self, bound: Duration) {
        let announced = (self.refusals.try_lock()).map_or(true, |watch| watch.is_refusing());
        if !announced {
            self.watch(Some(bound));
            self.show_gauges();
        }
    }

    /// Logs a change of this node between accepting and refusing keys, if there is one. `refused` is the bound
    /// of a key that was just refused as stale.
    fn watch(&self, refused: Option<Duration>) {
        let Some(bound) = refused.or_else(|| self.shortest_bound()) else {
            return;
        };
        // A store in this process confirms the index during each verification, so no key is refused as stale.
        if self.is_closed() || self.answers_now() {
            return;
        }
        let confirmed = self.confirmed_at();
        let now = self.clock.raw();
        let judged = Judged {
            now: now.monotonic,
            age: confirmed.map(|sent| now.since(sent.to_reading())),
            bound,
            refused: refused.is_some(),
        };
        let news = self.refusals().judge(judged);
        match news {
            // The line about the history says what to do.
            Some(RefusalNews::Near { .. } | RefusalNews::Begun { .. })
                if self.check_history().is_err() => {}
            Some(RefusalNews::Near { left, cause }) => tracing::error!(
                error = cause,
                ?left,
                ?bound,
                "keys will be refused as stale, because this node cannot sync with its store: restore its access \
                 to the store"
            ),
            Some(RefusalNews::Begun { cause: Some(cause) }) => tracing::error!(
                error = cause,
                ?bound,
                "keys are refused as stale, because this node could not sync with its store: restore its access \
                 to the store, and it continues by itself"
            ),
            Some(RefusalNews::Begun { cause: None }) if self.is_unfollowed(bound) => {
                tracing::error!(
                    ?bound,
                    "nothing follows the store, so this node refuses keys: keep the follower, build with \
                 `Follow::Thread`, or call `Keyward::sync` at least once within the staleness bound"
                )
            }
            Some(RefusalNews::Begun { cause: None }) => tracing::error!(
                ?bound,
                "keys are refused as stale until this node has synced with its store"
            ),
            Some(RefusalNews::Ended { lasted }) => {
                tracing::info!(refused_for = ?lasted, "keys are accepted again");
            }
            None => {}
        }
    }

    /// Returns whether no sync began, and no answer arrived, within `bound`.
    fn is_unfollowed(&self, bound: Duration) -> bool {
        let tried = Duration::from_micros(self.answered.load(Ordering::Relaxed));
        self.clock.monotonic().saturating_sub(tried) > bound
    }

    fn shortest_bound(&self) -> Option<Duration> {
        self.policies.as_ref()?.shortest_bound()
    }

    fn refusals(&self) -> MutexGuard<'_, RefusalWatch> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_answer(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.note_time();
    }

    fn note_time(&self) {
        let now = self.clock.monotonic().as_micros();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        self.answered.store(now, Ordering::Relaxed);
    }

    /// Returns the send time of the newest read whose complete answer the index contains. `None` if no read
    /// confirms the index.
    ///
    /// A verification must call this method first, then read the index, and read the clock last. The Acquire
    /// load pairs with the Release store in [`confirm`](Self::confirm). So a caller that sees a confirmation
    /// also sees every change that the confirmed read returned. In another order, a caller could combine an
    /// old key with a newer confirmation, and accept a revoked key.
    #[inline]
    pub(crate) fn confirmed_at(&self) -> Option<MicroReading> {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let wall = self.confirmed_wall.load(Ordering::Relaxed);
        (confirmed != NEVER).then(|| MicroReading {
            wall,
            monotonic: i64::try_from(confirmed).unwrap_or(i64::MAX),
        })
    }

    /// Returns the current view and its version number. The view may be newer than the version, but never
    /// older.
    pub(crate) fn view(&self) -> (u64, Arc<View>) {
        // Load the version before the view. In the other order, a new view could be published between the two
        // loads. The caller would then cache the old view under the new version number, and never replace it.
        let version = self.version();
        (version, self.view.load_full())
    }

    /// Takes back a view that its caller has replaced and no longer reads. The next sync frees the view.
    pub(crate) fn retire(&self, view: Arc<View>) {
        self.replaced().push(view);
    }

    /// Returns the number of times that the view was replaced.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns whether this node has ever received an imported key. If so, even a string that is not a
    /// keyward token may be a key.
    #[inline]
    pub(crate) fn has_imported(&self) -> bool {
        self.imported.load(Ordering::Acquire)
    }

    fn note_imports(&self, index: &Index) {
        if index.has_imported() {
            self.imported.store(true, Ordering::Release);
        }
    }

    /// Returns the tenant of a key. `None` if this node's index does not contain the key.
    pub(crate) fn tenant_of(&self, id: KeyId) -> Option<TenantId> {
        let view = self.view.load();
        view.attributes_of(id)
            .map(|attributes| attributes.key_owner.get().tenant.clone())
    }

    fn index(&self) -> Arc<Index> {
        self.view.load().index().clone()
    }

    fn publish_view(&self, view: View) {
        let old = self.view.swap(Arc::new(view));
        self.replaced().push(old);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Applies changes to the current index. The lock of `progress` ensures that only one thread writes.
    fn apply(&self, progress: &SyncState, changes: impl IntoIterator<Item = Change>) {
        let index = self.index();
        index.apply(changes);
        self.note_imports(&index);
        self.renew_view(progress, &index);
    }

    /// Publishes a new view if the current one keeps much memory that nothing uses.
    fn renew_view(&self, progress: &SyncState, index: &Arc<Index>) {
        let doubled = index.has_doubled();
        if !doubled && !index.needs_new_view() {
            return;
        }
        // A node that only commits never syncs, so free the views that were replaced before.
        self.free_replaced();
        let view = if doubled {
            // Without a cursor, nothing proves that the index has all changes up to some revision.
            let upto = progress.cursor.map(|cursor| cursor.revision);
            let view = View::of(Arc::new(index.compacted(upto.unwrap_or_default())));
            view.inherit_uses(index);
            view
        } else {
            View::of(index.clone())
        };
        self.publish_view(view);
    }

    /// Frees the views that were replaced. Slow, so no verification calls this.
    fn free_replaced(&self) {
        // One at a time: a thread that moved uses to the current index must be done before another thread moves them on.
        let _freeing = self.freeing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut replaced = std::mem::take(&mut *self.replaced());
        // A verification that still used an old view may have counted a use after the new index took that view's
        // counts. Take such uses now.
        let current = self.view();
        let others = replaced.iter().map(|view| view.index());
        let others = others.filter(|index| !Arc::ptr_eq(index, current.1.index()));
        others.for_each(|index| current.1.inherit_later_uses(index));
        // A verification may still use a view that others refer to, and count a use. Whoever replaced the view and whoever
        // cached it have both listed it.
        replaced.sort_unstable_by_key(|view| Arc::as_ptr(view).addr());
        replaced.dedup_by(|one, other| Arc::ptr_eq(one, other));
        replaced.retain(|view| Arc::strong_count(view) > 1);
        self.replaced().append(&mut replaced);
    }

    /// Returns the tenants whose rows name bulk commands that are not finished.
    pub(crate) fn unfinished(&self) -> Vec<TenantId> {
        self.view().1.unfinished()
    }

    /// Returns the rotation successors that were used on this node, but for which the store has recorded no
    /// first use.
    pub(crate) fn first_uses(&self) -> Vec<(TenantId, KeyId)> {
        self.view().1.first_uses()
    }

    /// Makes this node count uses by hour and outcome, until [`take_uses`](Self::take_uses) takes them.
    pub(crate) fn with_uses_by_hour(mut self) -> Self {
        let index = Arc::new(Index::counting_by_hour());
        self.view = ArcSwap::from_pointee(View::of(index));
        self
    }

    /// Takes the uses that this node counted since the last call. Also returns the number of uses that were counted for
    /// no key.
    pub(crate) fn take_uses(&self) -> (Vec<CountedUses>, u64) {
        self.free_replaced();
        let (mut uses, dropped) = self.view().1.take_uses();
        let (fetched, dropped_too) = self.fetched.take();
        uses.extend(fetched);
        (uses, dropped.saturating_add(dropped_too))
    }

    /// Counts a use of a key that a verification read from the store.
    pub(crate) fn count_fetched(
        &self,
        (key, tenant): (KeyId, &TenantId),
        outcome: UseOutcome,
        now: Timestamp,
    ) {
        let view = self.view.load();
        if !view.count_id(key, outcome, now) && view.index().counts_by_hour() {
            self.fetched.count((key, tenant), outcome, now);
        }
    }

    /// Returns the keys among `keys` that were used on this node.
    pub(crate) fn used_of(&self, keys: &[KeyId]) -> BTreeSet<KeyId> {
        self.view().1.used_of(keys)
    }

    /// Returns the number of keys that are neither revoked nor expired, by the pepper of their digest. Imported keys
    /// need no pepper.
    ///
    /// Reads every row of the index. [`PepperRing::count`](crate::PepperRing::count) compares the result with the
    /// peppers of a process.
    #[must_use]
    pub fn keys_by_pepper(&self) -> BTreeMap<PepperId, u64> {
        let now = self.clock.now();
        self.view.load().index().keys_by_pepper(now)
    }

    /// Returns the tenants whose newest commit is later than this node's time plus the allowed difference
    /// between clocks. Each comes with the time of that commit. Either the clock was fast at the commit, or
    /// this process's clock is slow.
    #[must_use]
    pub fn tenants_ahead(&self) -> Vec<(TenantId, Timestamp)> {
        let time = self.clock.check();
        let allowed = time.best().saturating_add(time.allowance);
        self.view.load().index().later(allowed)
    }

    /// Applies all changes without waiting, if the store lives in this process. Returns true if the index now
    /// contains every commit that returned before the call.
    pub(crate) fn confirm_now(&self) -> bool {
        if !self.answers_now() {
            return false;
        }
        let mut progress = self.progress();
        while let Some(cursor) = progress.cursor.filter(|_| progress.diverged.is_none()) {
            let sent = self.sending(&progress);
            match self.store.changes_now(cursor, PAGE) {
                Some(Ok(changes)) => {
                    let done = changes.upto == changes.head;
                    if !done && changes.upto == cursor {
                        return false;
                    }
                    progress.cursor = Some(changes.upto);
                    progress.record_head(changes.head);
                    self.clock
                        .saw_server(changes.server_time, sent.at.monotonic);
                    self.apply(&progress, changes.changes);
                    if done {
                        // This node's registration may forbid publishing the confirmation. The index is up to
                        // date nevertheless, so the current verification can use it.
                        self.confirm(&progress, sent);
                        return true;
                    }
                }
                Some(Err(ChangesError::Compacted)) => {
                    self.end_freshness(&mut progress);
                    progress.reset_position(self.clock.monotonic());
                }
                Some(Err(ChangesError::Diverged)) => self.diverge(&mut progress, cursor, None),
                Some(Err(ChangesError::Store(_))) | None => return false,
            }
        }
        false
    }

    /// Returns whether the store lives in this process. Does not lock `progress`: a thread that applies
    /// changes holds that lock, and with a remote store a verification must not wait for it.
    pub(crate) fn answers_now(&self) -> bool {
        // A cursor beyond every head. A store that supports `changes_now` answers the call, but returns no
        // changes.
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

    /// Applies a commit of this process, and the rows on which the commit was decided. Called before the
    /// commit returns to its caller.
    ///
    /// If the commit belongs to another history than the one this replica follows, freshness ends. Revisions
    /// of two histories cannot be compared. So a commit to a store that went back in time is not applied.
    pub(crate) fn apply_landed(&self, learnt: &Learnt) {
        let Learnt {
            epoch,
            committed,
            changes,
        } = learnt;
        let mut progress = self.progress();
        if progress.diverged.is_some() {
            return;
        }
        progress.committed_epoch = Some(*epoch);
        committed
            .iter()
            .for_each(|position| progress.know(*position));
        if progress.cursor.is_some_and(|own| own.epoch != *epoch) {
            tracing::warn!("store was replaced, reading all rows again");
            observe::resynced();
            self.end_freshness(&mut progress);
            progress.reset_position(self.clock.monotonic());
            return;
        }
        if let Some(building) = progress.building.clone() {
            match &mut progress.commits_during_scan {
                Some(commits_during_scan) => commits_during_scan.extend(changes.iter().cloned()),
                None => building.apply(changes.iter().cloned()),
            }
        }
        self.apply(&progress, changes.iter().cloned());
    }

    /// Applies a key that was read from the store because the index did not contain it. Does nothing if the
    /// key belongs to another history than the index. `known` is the newest position that this process
    /// [knew](Self::newest_known) before the read.
    ///
    /// The rows of the key's owner and tenants were read together with the key, and are applied first.
    /// Without these rows the key would have no permissions in the index.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store went back in time. The caller must then not use the key.
    pub(crate) fn apply_fetched(
        &self,
        known: Option<Cursor>,
        fetched: &FoundKey,
        rows: &[Change],
    ) -> Result<(), StoreError> {
        let mut progress = self.progress();
        if let Some(lost) = self.lost_by(&progress, known, fetched) {
            self.diverge(&mut progress, lost, Some(fetched.head));
        }
        if let Some(lost) = progress.diverged {
            return Err(history_lost(lost));
        }
        if progress
            .cursor
            .is_some_and(|cursor| cursor.epoch == fetched.head.epoch)
        {
            progress.record_head(fetched.head);
            self.apply(&progress, rows.iter().chain([&fetched.change]).cloned());
        }
        Ok(())
    }

    /// Applies pages of the change feed to `building`, or to the current index. Stops when a page ends at the
    /// head that this page reports. Returns `None` if the feed cannot continue after the cursor.
    async fn catch_up(
        &self,
        building: Option<&Index>,
        mut cursor: Cursor,
    ) -> Result<Option<(Sent, Cursor)>, StoreError> {
        self.register().await?;
        loop {
            // The last page confirms the index as of the time at which the request for that page was sent.
            // The earlier pages contain all earlier changes. With the send time of the first page, the index
            // would look stale after a long catch-up.
            let (sent, known) = {
                let progress = self.progress();
                (self.sending(&progress), progress.newest)
            };
            let Some(page) = self.page(cursor, PAGE).await? else {
                return Ok(None);
            };
            self.check_known(known, [cursor, page.head]).await?;
            // Stop at the head that this page reports, not at the head that the first page reported. If a row
            // changes between two pages, the feed returns only its newest change, which lies beyond the first
            // head. A loop that stopped at the first head would miss the row's old and new change.
            let goal = page.head.revision;
            {
                let mut one_writer = self.progress();
                one_writer.record_head(page.head);
                match building {
                    Some(index) => {
                        index.apply(page.changes);
                        self.note_imports(index);
                    }
                    // A commit of this process may have replaced the current index since the last page.
                    None => self.apply(&one_writer, page.changes),
                }
            }
            let moved = page.upto.revision > cursor.revision;
            cursor = page.upto;
            if cursor.revision >= goal {
                return Ok(Some((sent, cursor)));
            }
            if !moved {
                let kind = StoreErrorKind::Corrupt;
                return Err(StoreError::new(
                    kind,
                    "following a feed that makes no progress",
                ));
            }
        }
    }

    async fn rebuild(&self) -> Result<(), StoreError> {
        // Register before the scan. A scan that was sent without a registration cannot confirm the index.
        self.register().await?;
        let building = Arc::new(self.index().empty_like());
        {
            let mut progress = self.progress();
            progress.building = Some(building.clone());
            progress.commits_during_scan = Some(Vec::new());
            progress.committed_epoch = None;
        }
        let _release_on_drop = BuildGuard(self);
        let built = self.fill(&building).await;
        let view = View::of(building);
        if built.is_ok() {
            view.inherit_uses(&self.index());
        }
        let mut progress = self.progress();
        progress.building = None;
        let (sent, upto) = built?;
        if progress
            .committed_epoch
            .is_some_and(|epoch| epoch != upto.epoch)
        {
            drop(progress);
            self.view().1.inherit_uses(view.index());
            return Err(history_replaced());
        }
        self.publish_view(view);
        progress.cursor = Some(upto);
        self.confirm_or_fail(&progress, sent)
    }

    async fn fill(&self, index: &Index) -> Result<(Sent, Cursor), StoreError> {
        let known = self.newest_known()?;
        let mut head = None;
        let mut read = 0_usize;
        let mut take = |page: ScanPage| {
            self.count_answer();
            head.get_or_insert(page.head);
            read += page.rows.len();
            let mut one_writer = self.progress();
            one_writer.record_head(page.head);
            index.apply(page.rows);
            self.note_imports(index);
            Ok(())
        };
        self.store.scan_all(PAGE, &mut take).await?;
        tracing::debug!(rows = read, "scanned");
        {
            let mut progress = self.progress();
            index.set_scan_base(head.map_or(Revision::ZERO, |head: Cursor| head.revision));
            index.apply(progress.commits_during_scan.take().unwrap_or_default());
            self.note_imports(index);
        }
        let head = head.unwrap_or_default();
        self.check_known(known, [head, head]).await?;
        let caught_up = self.catch_up(Some(index), head);
        // The changes since the start of the scan may have been compacted away while the scan ran. The next sync
        // scans the store again.
        caught_up.await?.ok_or_else(|| {
            let kind = StoreErrorKind::Unavailable;
            StoreError::new(kind, "following changes after a scan")
        })
    }

    fn publish(&self, sent: Sent, upto: Cursor) -> Result<(), StoreError> {
        let mut progress = self.progress();
        // The followed history may have changed since this read was sent, because a commit of this process
        // returned another epoch. If so, the read confirms nothing.
        let own = progress.cursor.filter(|own| own.epoch == upto.epoch);
        let own = own.ok_or_else(history_replaced)?;
        if own.revision < upto.revision {
            progress.cursor = Some(upto);
        }
        self.renew_view(&progress, &self.index());
        self.confirm_or_fail(&progress, sent)
    }

    /// Ends freshness and drops the cursor. Called when the store can no longer continue the history that
    /// this replica followed.
    fn lose_history(&self) {
        tracing::warn!("store's history changed or was compacted, reading all rows again");
        observe::resynced();
        let mut progress = self.progress();
        // The registry may have been replaced together with the history, so this node must register again.
        self.end_freshness(&mut progress);
        progress.reset_position(self.clock.monotonic());
    }

    /// Returns the send time for a read of the store that the caller sends immediately afterwards.
    fn sending(&self, progress: &SyncState) -> Sent {
        // Load `until` before the clock. So a report that becomes durable after this load counts only for
        // later reads, and not for this one.
        let until = progress.until();
        let at = self.clock.raw();
        Sent { at, until }
    }

    /// Publishes the send time of a read as the newest confirmation. Returns false and publishes nothing if
    /// this node was not registered when the read was sent, or no longer is. Also if a concurrent read found
    /// that the store went back in time.
    fn confirm(&self, progress: &SyncState, sent: Sent) -> bool {
        let Sent { at, until } = sent;
        let may = |until: Option<Reading>| until.is_some_and(|until| is_by(at, until));
        let confirms = progress.diverged.is_none() && may(until) && may(progress.until());
        if confirms {
            let monotonic = u64::try_from(at.monotonic.as_micros()).unwrap_or(u64::MAX);
            // The caller holds the lock of `progress`, so no other thread writes `confirmed` or
            // `confirmed_wall`.
            if monotonic >= self.confirmed.load(Ordering::Relaxed) {
                let wall = at.wall.as_micros();
                self.confirmed_wall.store(wall, Ordering::Relaxed);
                self.confirmed.store(monotonic, Ordering::Release);
            }
        }
        confirms
    }

    fn confirm_or_fail(&self, progress: &SyncState, sent: Sent) -> Result<(), StoreError> {
        let kind = StoreErrorKind::Unavailable;
        let lapsed = StoreError::new(kind, "confirming: this node must register again");
        self.confirm(progress, sent).then_some(()).ok_or(lapsed)
    }

    /// Exports the freshness of this node and the number of keys as gauges.
    pub(crate) fn show_gauges(&self) {
        let keys = self.view.load().index().keys();
        let Freshness { age, diverged, .. } = self.freshness();
        observe::replica(age, keys, diverged.is_some());
        if let Some(bound) = self.shortest_bound() {
            let age = match self.answers_now() && diverged.is_none() {
                true => Some(Duration::ZERO),
                false => age,
            };
            let left = age.map(|age| bound.saturating_sub(age));
            observe::until_refusal(left.unwrap_or_default());
        }
        if self.registration.is_some() {
            observe::report_age(self.report_age());
        }
    }

    fn replaced(&self) -> MutexGuard<'_, Vec<Arc<View>>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, SyncState> {
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
    /// The latest time at which a read can be sent and still confirm the index, loaded before this read was
    /// sent. `None` if no read can confirm the index.
    until: Option<Reading>,
}

/// Returns whether `at` is no later than `until`, both in wall-clock time and in monotonic time.
fn is_by(at: Reading, until: Reading) -> bool {
    at.monotonic <= until.monotonic && at.wall <= until.wall
}

impl SyncState {
    /// Records the store's head, as an answer of the store reports it. Within one history a lower head never
    /// replaces a higher one, because answers may arrive out of order.
    fn record_head(&mut self, head: Cursor) {
        self.know(head);
        let own = self.head.filter(|own| own.epoch == head.epoch);
        if own.is_none_or(|own| own.revision < head.revision) {
            self.head = Some(head);
        }
    }

    /// Records a position that the store has, or has had.
    fn know(&mut self, position: Cursor) {
        let own = self.newest.filter(|own| own.epoch == position.epoch);
        if own.is_none_or(|own| own.revision < position.revision) {
            self.newest = Some(position);
        }
    }

    /// Drops the cursor and the head, and records that they were lost at `now`.
    fn reset_position(&mut self, now: Duration) {
        (self.cursor, self.head) = (None, None);
        self.lost = Some(now);
    }
}

/// Logs the outcome and the duration of one sync when it is dropped. If the future of the sync is dropped
/// before its end, the outcome is logged as abandoned.
struct SyncRecorder<'a> {
    replica: &'a Replica,
    sent: Duration,
    outcome: &'static str,
    ended: bool,
}

impl<'a> SyncRecorder<'a> {
    fn begin(replica: &'a Replica) -> Self {
        replica.show_gauges();
        replica.watch(None);
        Self {
            replica,
            sent: replica.clock.monotonic(),
            outcome: "abandoned",
            ended: false,
        }
    }

    fn end(mut self, synced: &Result<(), StoreError>) {
        self.ended = true;
        let mut refusals = self.replica.refusals();
        match synced {
            Ok(()) => {
                self.outcome = "confirmed";
                refusals.confirmed();
            }
            Err(error) => {
                self.outcome = "failed";
                refusals.failed(WithSources(error).to_string());
                error.count();
            }
        }
    }
}

impl Drop for SyncRecorder<'_> {
    fn drop(&mut self) {
        let took = self.replica.clock.monotonic().saturating_sub(self.sent);
        if !self.ended {
            let cause = self.replica.report_failure().unwrap_or_else(|| {
                format!("the sync was given up after {took:?} without an answer")
            });
            self.replica.refusals().failed(cause);
        }
        let cursor = self.replica.progress().cursor;
        let revision = cursor.map(|cursor| cursor.revision.0);
        tracing::debug!(outcome = self.outcome, ?took, revision, "synced");
        observe::synced(self.outcome);
        self.replica.show_gauges();
        self.replica.watch(None);
    }
}

/// Clears `SyncState::building` when a resync ends, and also when the resync's future is dropped early.
struct BuildGuard<'a>(&'a Replica);

impl Drop for BuildGuard<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress();
        (progress.building, progress.commits_during_scan) = (None, None);
    }
}
