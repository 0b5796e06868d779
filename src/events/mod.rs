//! Events for a host to pass on: what happened, in order, from a place that the host keeps.
//!
//! A webhook sender or a mailer reads a batch, hands its events over, and only then keeps the batch's
//! cursor. Whatever stops it in between, nothing is left out; what was handed over already may come
//! again, under the same [`EventId`].
//!
//! # What is told
//!
//! Every audit entry is one event, in the store's own order, that of commits. Nobody commits that a
//! key expires, so that notices of it come from a sweep over keys by their end: once as the key comes
//! to stand in each of the [`ExpiryWindows`], and once at its end. A notice is told only if it is true
//! at that time: a key that was revoked, removed, given another end or replaced meanwhile is left out.
//! Its id names the end, so that a key whose end moved is told of anew. If the clock is set back, what
//! was told before its time is told once more, under the same id, when that has come.
//!
//! # In which order
//!
//! Entries first, each followed by the notice that it brought about, if any: a key made for two hours
//! is within the window of a day as soon as it exists. Notices follow once the trail was read to its
//! end, by the instant at which they fell due, then by window, then by key. Of a change that lands
//! while a batch is read, the notice may come before the entry.
//!
//! # Examples
//!
//! ```
//! # pollster::block_on(async {
//! # use std::num::NonZeroUsize;
//! # use std::sync::Arc;
//! use keyward::events::{EventCursor, EventKind, ExpiryWindows};
//! # use keyward::store::MemoryStore;
//! # use keyward::{Actor, Keyward, ManualClock, NewKey, PepperRing, Role, days};
//! # let clock = Arc::new(ManualClock::at("2026-01-01T00:00:00Z".parse()?));
//! # let builder = Keyward::builder(MemoryStore::new(), PepperRing::generate()?);
//! # let keys = builder.clock(clock.clone()).build().await?;
//! # let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
//! # keys.create(&admin, NewKey::new("short").expires_in(days(90))).await?;
//! # clock.advance(days(84));
//! # let limit = NonZeroUsize::new(100).ok_or("100 is not zero")?;
//! # let mut kept = EventCursor::BEGINNING.to_string();
//!
//! let events = keys.events(ExpiryWindows::new([days(7)])?);
//! let batch = events.next_batch(&kept.parse()?, limit).await?;
//! for event in &batch.events {
//!     println!("{} {:?}", event.id, event.kind); // post it, mail it
//! }
//! kept = batch.cursor.to_string(); // only now
//! # let last = batch.events.last().ok_or("events")?;
//! # assert!(matches!(last.kind, EventKind::KeyExpiringSoon { .. }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::clock::Clock;
use crate::core::event::{Due, Found, OtherHistory, may_set_end};
pub use crate::core::event::{Event, EventCursor, EventId, EventKind, ExpiryWindows};
use crate::core::id::KeyId;
use crate::core::query::{AuditQuery, AuditRow, KeyPosition};
use crate::core::record::KeyRecord;
use crate::core::time::Timestamp;
use crate::store::{AuditPage, AuditPosition, KeyStore, Locator, Row, ScanPage, StoreError};

/// Reads events from a store. Keeps nothing between two calls, so that any process can go on from a
/// cursor; let one at a time.
#[derive(Clone, Debug)]
pub struct Events {
    store: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
    windows: ExpiryWindows,
}

/// Some events, and where to go on after them.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "keep the cursor, or the same events come again"]
pub struct EventBatch {
    /// What happened, oldest first. May be empty although there is more.
    pub events: Vec<Event>,
    /// Where the next batch goes on. Keep it once the events are handled.
    pub cursor: EventCursor,
    /// Whether more is known to follow at once; if not, ask again in a while.
    pub more: bool,
    /// Keys that came up and whose stored bytes failed their checksum: whether they end, and when,
    /// cannot be told.
    pub corrupt: Vec<KeyId>,
}

/// Why no events could be read. The cursor is as good as before.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {
    /// The store has another history than the one that the cursor was made in: it was restored from
    /// a backup, or is another store. Some of what was told may not have happened as far as this
    /// store goes, and what happened between the backup and the loss is not known to it.
    #[error("the store has another history than the cursor: it was restored from a backup")]
    OtherHistory {
        /// Where to go on, once somebody knows: where the cursor stood if the backup is later than
        /// that, else at the beginning. What is told again comes under the ids that it had, so that a
        /// receiver who remembers them finds what is new.
        resume: Box<EventCursor>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<OtherHistory> for EventsError {
    fn from(OtherHistory { resume }: OtherHistory) -> Self {
        Self::OtherHistory { resume }
    }
}

impl Events {
    /// Reads from `store`, by `clock`, with notices for `windows`.
    #[must_use]
    pub fn new(store: Arc<dyn KeyStore>, clock: Arc<dyn Clock>, windows: ExpiryWindows) -> Self {
        Self {
            store,
            clock,
            windows,
        }
    }

    /// The end of what has happened so far, to be told only of what comes. Windows in which a key
    /// already stands are not told; those that it has yet to reach are.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn end(&self) -> Result<EventCursor, StoreError> {
        let (top, now) = self.look().await?;
        let revision = top.head.revision;
        let mut query = AuditQuery::everything();
        query.after = Some(AuditPosition {
            revision,
            sequence: 0,
        });
        let mut newest = None;
        loop {
            let page = self.store.audit(&query).await?;
            let of_head = |row: &AuditRow| row.revision == revision;
            newest = page.rows.into_iter().rfind(of_head).or(newest);
            match page.next {
                Some(next) if next.revision == revision => query.after = Some(next),
                _ => break,
            }
        }
        let epoch = top.head.epoch.0;
        Ok(EventCursor::end(epoch, revision, newest.as_ref(), now))
    }

    /// Reads what follows `cursor`: about `limit` events, at most twice as many.
    ///
    /// # Errors
    ///
    /// [`EventsError`]; asking again with the same cursor is safe.
    pub async fn next_batch(
        &self,
        cursor: &EventCursor,
        limit: NonZeroUsize,
    ) -> Result<EventBatch, EventsError> {
        let (top, now) = self.look().await?;
        let page = self.trail(cursor.query(limit)).await?;
        let found = cursor.read(page, top.head.epoch.0, top.head.revision, limit)?;
        let mut batch = EventBatch {
            events: Vec::new(),
            cursor: cursor.clone(),
            more: !found.complete,
            corrupt: Vec::new(),
        };
        batch.cursor.enter(top.head.epoch.0, now);
        self.tell_entries(found, now, &mut batch).await?;
        // Only once every entry so far was told: of a key that gets another end behind the sweep,
        // its entry is still to come then, and brings the notice with it.
        if !batch.more {
            self.sweep(now, limit, &mut batch).await?;
        }
        Ok(batch)
    }

    /// Returns the store's first page, which has its head, and the time.
    async fn look(&self) -> Result<(ScanPage, Timestamp), StoreError> {
        let top = self.store.scan(None, NonZeroUsize::MIN).await?;
        Ok((top, self.clock.now()))
    }

    /// A whole page, from a store that may give less than it was asked for.
    async fn trail(&self, mut query: AuditQuery) -> Result<AuditPage, StoreError> {
        let limit = query.limit;
        let mut page = self.store.audit(&query).await?;
        loop {
            let missing = NonZeroUsize::new(limit.get().saturating_sub(page.rows.len()));
            let (Some(missing), Some(next)) = (missing, page.next) else {
                return Ok(page);
            };
            (query.after, query.limit) = (Some(next), missing);
            let AuditPage {
                rows,
                corrupt,
                next,
            } = self.store.audit(&query).await?;
            page.rows.extend(rows);
            page.corrupt.extend(corrupt);
            page.next = next;
        }
    }

    async fn tell_entries(
        &self,
        found: Found,
        now: Timestamp,
        batch: &mut EventBatch,
    ) -> Result<(), StoreError> {
        let swept = batch.cursor.swept();
        let ends = |row: &Option<AuditRow>| may_set_end(&row.as_ref()?.entry);
        // Of several entries about one key, the last is the one that is true.
        let last: HashMap<KeyId, AuditPosition> = (found.entries.iter())
            .filter_map(|(place, row)| Some((ends(row)?, *place)))
            .collect();
        for (place, row) in found.entries {
            batch.events.push(match &row {
                Some(row) => Event::of(row),
                None => Event::unreadable(place, now),
            });
            batch.cursor.pass(place, row.as_ref());
            let key = ends(&row).filter(|key| last.get(key) == Some(&place));
            if let (Some(key), Some(swept)) = (key, swept) {
                self.tell_behind(key, swept, now, batch).await?;
            }
        }
        Ok(())
    }

    /// Tells the notice of a key that came to stand behind the sweep, which does not look there any
    /// more.
    async fn tell_behind(
        &self,
        key: KeyId,
        swept: Due,
        now: Timestamp,
        batch: &mut EventBatch,
    ) -> Result<(), StoreError> {
        let found = self.store.find(&Locator::Id(key)).await?;
        let record = match found.map(|found| found.change.row) {
            Some(Row::Key(record)) => record,
            Some(Row::Corrupt(_)) => {
                batch.corrupt.push(key);
                return Ok(());
            }
            _ => return Ok(()),
        };
        if let Some(due) = (self.windows.reached(&record, now)).filter(|due| *due <= swept) {
            batch.events.extend(notice(&record, due));
        }
        Ok(())
    }

    /// Tells the notices that came true since the last sweep.
    async fn sweep(
        &self,
        now: Timestamp,
        limit: NonZeroUsize,
        batch: &mut EventBatch,
    ) -> Result<(), StoreError> {
        let swept = batch.cursor.swept();
        let Some(limit) = NonZeroUsize::new(limit.get().saturating_sub(batch.events.len())) else {
            batch.more = true;
            return Ok(());
        };
        let mut found = Vec::new();
        // How far every listing was read.
        let mut upto = Due::until(now);
        let mut corrupt = BTreeSet::new();
        for (within, query) in self.windows.listings(swept, now, limit) {
            let page = self.store.list(&query).await?;
            corrupt.extend(page.corrupt);
            let due = |ends: Option<Timestamp>, id| Some(Due::new(ends?, within, id));
            let keys = page.keys.into_iter();
            found.extend(keys.filter_map(|key| Some((due(key.expires_at, key.id)?, key))));
            let stopped = page.next.and_then(|next| {
                let KeyPosition { expires_at, id, .. } = next;
                due(expires_at, id)
            });
            upto = stopped.map_or(upto, |stopped| stopped.min(upto));
        }
        found.sort_by_key(|(due, _)| *due);
        if let Some((last, _)) = found.get(limit.get() - 1) {
            upto = upto.min(*last);
        }
        let told = found.iter().take_while(|(due, _)| *due <= upto);
        let still = |(due, record): &&(Due, KeyRecord)| {
            self.windows.reached(record, now).as_ref() == Some(due)
        };
        let told = told.filter(still);
        batch
            .events
            .extend(told.filter_map(|(due, record)| notice(record, *due)));
        batch.corrupt.extend(corrupt);
        batch.more = upto < Due::until(now);
        batch.cursor.sweep_to(upto);
        Ok(())
    }
}

fn notice(record: &KeyRecord, due: Due) -> Option<Event> {
    Some(Event::notice(record, record.expires_at?, due.within()))
}
