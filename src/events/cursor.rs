//! The position of an event reader in the audit trail and among the notices.
//!
//! Pure. Invariant: a cursor continues only in the history that it was created in. A cursor contains part of
//! the hash of the last entry before it. So it detects a restored store even if the store's head is already
//! beyond the cursor.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::id::EntryMark;
use super::notice::Due;
use crate::core::position::{PositionText, position_text};
use crate::core::query::{AuditPage, AuditPosition, AuditQuery, AuditRow};
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// The position of an event reader. Store the cursor durably as text: the next batch continues from the
/// stored cursor.
///
/// Displays as about 150 letters, digits and `-`, and two more for each byte of a tenant id. The text includes a
/// checksum, and fits in a URL without escapes. The format may change between versions, but newer versions read
/// older cursors. A cursor contains no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EventCursor(CursorFields);

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct CursorFields {
    /// The store's epoch. `None` before the first read.
    epoch: Option<u128>,
    /// The revision and sequence of the last audit entry that the reader has passed.
    after: (u64, u64),
    /// The last undamaged entry that the reader has passed.
    anchor: Option<Anchor>,
    /// The last position in the order of notices that the reader has passed. Notices up to this position are
    /// not emitted again, unless a later entry changes the key's expiry.
    swept: Option<Due>,
}

/// An entry by which a reader recognises the history that it has read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Anchor {
    revision: u64,
    sequence: u64,
    /// A part of the entry's hash.
    mark: EntryMark,
    tenant: TenantId,
}

/// The entries that follow a cursor, oldest first.
#[derive(Debug)]
pub(super) struct NextEntries {
    /// Each entry with its position; `None` for a damaged entry.
    pub(super) entries: Vec<(AuditPosition, Option<AuditRow>)>,
    /// True if these are the last entries of the trail.
    pub(super) complete: bool,
}

impl EventCursor {
    /// The start of the store's history. A read from this cursor returns the whole audit trail, and then one
    /// notice for each key that has expired or expires soon.
    pub const BEGINNING: Self = Self(CursorFields {
        epoch: None,
        after: (0, 0),
        anchor: None,
        swept: None,
    });

    /// Returns a cursor that skips all entries up to commit `revision`, and all notices that are due at
    /// `now`. The argument `newest` is the last audit entry of that commit.
    pub(super) fn end(
        epoch: u128,
        revision: Revision,
        newest: Option<&AuditRow>,
        now: Timestamp,
    ) -> Self {
        let mut cursor = Self(CursorFields {
            epoch: Some(epoch),
            after: (revision.0, 0),
            anchor: None,
            swept: Some(Due::until(now)),
        });
        if let Some(row) = newest {
            cursor.pass(row.position(), Some(row));
        }
        cursor
    }

    /// Returns the position of the last audit entry that the reader has passed.
    pub(super) const fn position(&self) -> AuditPosition {
        position(self.0.after)
    }

    pub(super) const fn epoch(&self) -> Option<u128> {
        self.0.epoch
    }

    pub(super) const fn swept(&self) -> Option<Due> {
        self.0.swept
    }

    pub(super) const fn sweep_to(&mut self, swept: Due) {
        self.0.swept = Some(swept);
    }

    /// Returns the query for the entries that follow the cursor. The result also includes the last entry
    /// before the cursor, so that [`read`](Self::read) can check whether the history is still the same.
    pub(super) fn query(&self, limit: NonZeroUsize) -> AuditQuery {
        let after = match &self.0.anchor {
            Some(anchor) => (anchor.revision, anchor.sequence.saturating_sub(1)),
            None => self.0.after,
        };
        AuditQuery {
            after: Some(position(after)),
            limit: limit.saturating_add(1),
            ..AuditQuery::all()
        }
    }

    /// Returns the entries of `page` that follow the cursor. The arguments `epoch` and `head` belong to the
    /// store that returned the page.
    ///
    /// # Errors
    ///
    /// Fails if the store has another history than this cursor. The error is the cursor to continue from.
    pub(super) fn read(
        &self,
        page: AuditPage,
        epoch: u128,
        head: Revision,
        limit: NonZeroUsize,
    ) -> Result<NextEntries, Box<Self>> {
        let AuditPage {
            rows,
            corrupt,
            next,
        } = page;
        let anchored = self.0.anchor.as_ref().is_none_or(|anchor| {
            let place = position((anchor.revision, anchor.sequence));
            let same =
                |row: &AuditRow| row.position() == place && EntryMark::of(row) == anchor.mark;
            // If the entry at the anchor's position is damaged, the history still counts as the same.
            rows.iter().any(same) || corrupt.contains(&place)
        });
        let there = anchored && head >= self.position().revision;
        if !there || self.0.epoch.is_some_and(|own| own != epoch) {
            let place = if there {
                self.0.clone()
            } else {
                CursorFields::default()
            };
            let epoch = Some(epoch);
            return Err(Box::new(Self(CursorFields { epoch, ..place })));
        }
        let last = rows.last().map(AuditRow::position);
        let mut entries: BTreeMap<_, _> = corrupt.into_iter().map(|place| (place, None)).collect();
        entries.extend(rows.into_iter().map(|row| (row.position(), Some(row))));
        // Damaged entries after the page's last entry are read again with the next page. Their positions may
        // be damaged too, so passing them now could skip intact entries.
        entries.retain(|place, _| {
            *place > self.position() && (next.is_none() || Some(*place) <= last)
        });
        let complete = next.is_none() && entries.len() <= limit.get();
        Ok(NextEntries {
            entries: entries.into_iter().take(limit.get()).collect(),
            complete,
        })
    }

    /// Moves the cursor past an entry.
    pub(super) fn pass(&mut self, place: AuditPosition, row: Option<&AuditRow>) {
        let AuditPosition { revision, sequence } = place;
        self.0.after = (revision.0, sequence);
        if let Some(row) = row {
            self.0.anchor = Some(Anchor {
                revision: revision.0,
                sequence,
                mark: EntryMark::of(row),
                tenant: row.entry.tenant.clone(),
            });
        }
    }

    /// Returns the tenant of the anchor, and the number of its entry in the tenant's trail.
    pub(super) fn anchor(&self) -> Option<(&TenantId, u64)> {
        let anchor = self.0.anchor.as_ref()?;
        Some((&anchor.tenant, anchor.sequence))
    }

    /// Returns a cursor at the same position that recognises no entry, for a reader whose anchor was removed
    /// from the trail.
    pub(super) fn without_anchor(&self) -> Self {
        Self(CursorFields {
            anchor: None,
            ..self.0.clone()
        })
    }

    /// Sets the cursor's epoch. If the clock was set back, also moves the position among the notices back to
    /// `now`. Otherwise a key whose expiry is set after that could be missed. Notices that were emitted too
    /// early are emitted again when they fall due.
    pub(super) fn enter(&mut self, epoch: u128, now: Timestamp) {
        self.0.epoch = Some(epoch);
        self.0.swept = self.0.swept.map(|swept| swept.min(Due::until(now)));
    }
}

const fn position((revision, sequence): (u64, u64)) -> AuditPosition {
    AuditPosition {
        revision: Revision(revision),
        sequence,
    }
}

impl PositionText for EventCursor {
    const KIND: &'static str = "events";

    type Content = CursorFields;

    fn content(&self) -> CursorFields {
        self.0.clone()
    }

    fn from_content(content: CursorFields) -> Self {
        Self(content)
    }
}

position_text!(EventCursor);
