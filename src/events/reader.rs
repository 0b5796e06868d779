//! The reader of events: the only file of this module that calls the store and the clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::cursor::{EventCursor, NextEntries};
use super::event::{Event, may_set_end};
use super::notice::{Due, ExpiryWindows};
use crate::clock::Clock;
use crate::core::id::KeyId;
use crate::core::kind::ErrorKind;
use crate::core::query::{AuditQuery, AuditRow, KeyPosition};
use crate::core::record::KeyRecord;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::store::{
    AuditPage, AuditPosition, Cursor, KeyStore, LoadRequest, Locator, Row, ScanPage, StoreError,
};

/// Reads events from a store. A reader is stateless, so any process can continue from a stored cursor. Only
/// one process should read at a time.
#[derive(Clone, Debug)]
pub struct Events {
    store: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
    windows: ExpiryWindows,
}

/// A batch of events, and the cursor for the next batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "keep the cursor, or the same events come again"]
pub struct EventBatch {
    /// The events, oldest first. May be empty even if more follow.
    pub events: Vec<Event>,
    /// The cursor for the next batch. Store this cursor after all events of the batch are handled.
    pub cursor: EventCursor,
    /// True if more events are ready. If not, the host should wait before the next read.
    pub more: bool,
    /// Keys whose records failed their checksum. Their expiry is unknown, so the batch has no notice of these
    /// keys.
    pub corrupt: Vec<KeyId>,
}

/// The error of a failed read. The cursor stays valid.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {
    /// The store has another history than the cursor: the store was restored from a backup, or is another
    /// store. After a restore, the new history lacks the changes made after the backup, even if their events
    /// were emitted.
    #[error("the store has another history than the cursor: it was restored from a backup")]
    HistoryReplaced {
        /// The cursor to continue from, after an operator was notified of the restore. This cursor keeps the
        /// position of the old cursor if the new history contains that position, and starts at the beginning
        /// otherwise. Repeated events keep their ids, so a receiver can drop duplicates.
        resume: Box<EventCursor>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EventsError {
    /// Returns the stable code of the cause, such as `history-replaced`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::HistoryReplaced { .. } => "history-replaced",
            Self::Store(error) => error.code(),
        }
    }

    /// Returns the kind of the cause, which determines the HTTP status.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::HistoryReplaced { .. } => ErrorKind::Conflict,
            Self::Store(error) => error.error_kind(),
        }
    }

    /// Returns the text that a client may see.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::HistoryReplaced { .. } => self.to_string(),
            Self::Store(error) => error.public_message().to_owned(),
        }
    }
}

impl Events {
    /// Creates a reader of `store` that reads the time from `clock` and emits notices for `windows`.
    #[must_use]
    pub fn new(store: Arc<dyn KeyStore>, clock: Arc<dyn Clock>, windows: ExpiryWindows) -> Self {
        Self {
            store,
            clock,
            windows,
        }
    }

    /// Returns a cursor after all current events. Windows that a key has already entered cause no notice, but
    /// windows that the key enters later do.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn end(&self) -> Result<EventCursor, StoreError> {
        let (top, now) = self.look().await?;
        let revision = top.head.revision;
        let mut query = AuditQuery::all();
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

    /// Reads the events that follow `cursor`: about `limit` events, at most twice as many.
    ///
    /// # Errors
    ///
    /// [`EventsError`]. Reading again from the same cursor is safe.
    pub async fn next_batch(
        &self,
        cursor: &EventCursor,
        limit: NonZeroUsize,
    ) -> Result<EventBatch, EventsError> {
        let (top, now) = self.look().await?;
        let read = async |cursor: &EventCursor| {
            let page = self.trail(cursor.query(limit)).await?;
            let Cursor {
                epoch, revision, ..
            } = top.head;
            Ok::<_, StoreError>(cursor.read(page, epoch.0, revision, limit))
        };
        let mut found = read(cursor).await?;
        let same_epoch = cursor.epoch() == Some(top.head.epoch.0);
        if found.is_err() && same_epoch && self.is_anchor_pruned(cursor).await? {
            found = read(&cursor.without_anchor()).await?;
        }
        let found = found.map_err(|resume| EventsError::HistoryReplaced { resume })?;
        let mut batch = EventBatch {
            events: Vec::new(),
            cursor: cursor.clone(),
            more: !found.complete,
            corrupt: Vec::new(),
        };
        batch.cursor.enter(top.head.epoch.0, now);
        self.emit_entries(found, now, &mut batch).await?;
        self.add_names(&mut batch.events).await?;
        // Looks for due notices only after all entries are emitted. If a later change sets an expiry whose
        // notice is already passed, the entry of that change emits the notice in a later batch.
        if !batch.more {
            self.sweep(now, limit, &mut batch).await?;
        }
        Ok(batch)
    }

    /// Returns whether the entry by which `cursor` recognises the history was removed from its trail.
    async fn is_anchor_pruned(&self, cursor: &EventCursor) -> Result<bool, StoreError> {
        let Some((tenant, sequence)) = cursor.anchor() else {
            return Ok(false);
        };
        let oldest = AuditQuery {
            limit: NonZeroUsize::MIN,
            ..AuditQuery::tenant(tenant.clone())
        };
        let page = self.store.audit(&oldest).await?;
        let oldest = page.rows.first().map(|row| row.entry.sequence);
        Ok(oldest.is_some_and(|oldest| oldest > sequence) && page.corrupt.is_empty())
    }

    /// Returns the first page of a scan, which contains the head of the store, and the current time.
    async fn look(&self) -> Result<(ScanPage, Timestamp), StoreError> {
        let top = self.store.scan(None, NonZeroUsize::MIN).await?;
        Ok((top, self.clock.now()))
    }

    /// Reads entries until the query's limit or the end of the trail, because a store may return shorter
    /// pages.
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

    async fn emit_entries(
        &self,
        found: NextEntries,
        now: Timestamp,
        batch: &mut EventBatch,
    ) -> Result<(), StoreError> {
        let swept = batch.cursor.swept();
        let ends = |row: &Option<AuditRow>| may_set_end(&row.as_ref()?.entry);
        // Emits a key's notice only after the key's last entry in this batch, because the stored record
        // already has the final expiry.
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
                self.emit_passed(key, swept, now, batch).await?;
            }
        }
        Ok(())
    }

    /// Adds the names of keys to the events of changes. Reads each tenant once.
    async fn add_names(&self, events: &mut [Event]) -> Result<(), StoreError> {
        let mut wanted: BTreeMap<TenantId, BTreeSet<KeyId>> = BTreeMap::new();
        for event in &*events {
            if let (Some(tenant), Some(key), None) = (&event.tenant, event.key, &event.key_name) {
                wanted.entry(tenant.clone()).or_default().insert(key);
            }
        }
        let mut names = HashMap::new();
        for (tenant, keys) in wanted {
            let select = LoadRequest {
                keys: keys.into_iter().collect(),
                ..LoadRequest::default()
            };
            let records = self.store.load(&tenant, &select).await?.records;
            names.extend(
                records
                    .into_iter()
                    .map(|record| (record.id, record.name.clone())),
            );
        }
        for event in events {
            let name = event.key.and_then(|key| names.get(&key));
            event.key_name = event.key_name.take().or_else(|| name.cloned());
        }
        Ok(())
    }

    /// Emits the notice of a key if the reader is already past that notice. The search for due notices would
    /// miss it, because that search never goes back.
    async fn emit_passed(
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

    /// Emits the notices that fell due since the last call, and moves the cursor past them.
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
        // The position up to which the pages of all windows have been read.
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
        let reached = found.iter().take_while(|(due, _)| *due <= upto);
        let still = |(due, record): &&(Due, KeyRecord)| {
            self.windows.reached(record, now).as_ref() == Some(due)
        };
        let notices = reached.filter(still);
        batch
            .events
            .extend(notices.filter_map(|(due, record)| notice(record, *due)));
        batch.corrupt.extend(corrupt);
        batch.more = upto < Due::until(now);
        batch.cursor.sweep_to(upto);
        Ok(())
    }
}

fn notice(record: &KeyRecord, due: Due) -> Option<Event> {
    Some(Event::notice(record, record.expires_at?, due.within()))
}
