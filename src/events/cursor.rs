//! The position of a reader of events: in the audit trail, and in the order of notices.
//!
//! Pure. Invariant: a cursor reads only from the history that it was created in. A cursor contains the seal
//! of the last entry passed, so a restored store is detected even after its head has overtaken the cursor.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::id::EntryMark;
use super::notice::Due;
use crate::core::query::{AuditPage, AuditPosition, AuditQuery, AuditRow};
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::core::wire::{self, DecodeError};

/// The position of a reader of events. Store it as text, as durably as you need: the next batch continues
/// from it.
///
/// Displays as about 150 letters and digits, with a checksum. The content of this text may change between
/// versions; older cursors stay readable. A cursor holds no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EventCursor(CursorFields);

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct CursorFields {
    /// The store's epoch; `None` before the first read.
    epoch: Option<u128>,
    /// The revision and sequence of the last entry passed.
    after: (u64, u64),
    /// The revision, sequence and mark of the last readable entry passed.
    anchor: Option<(u64, u64, EntryMark)>,
    /// The last notice passed. Every notice up to this position was emitted if it was true of the key after
    /// the entries passed so far.
    swept: Option<Due>,
}

/// The entries that follow a cursor, oldest first.
#[derive(Debug)]
pub(super) struct NextEntries {
    /// Each entry with its position; `None` for a damaged entry.
    pub(super) entries: Vec<(AuditPosition, Option<AuditRow>)>,
    /// Whether these are the last entries of the trail.
    pub(super) complete: bool,
}

impl EventCursor {
    /// The beginning. Reading from it returns the whole audit trail, then a notice for each known key that
    /// has expired, then a notice for each key that expires soon.
    pub const BEGINNING: Self = Self(CursorFields {
        epoch: None,
        after: (0, 0),
        anchor: None,
        swept: None,
    });

    /// Returns a cursor that skips everything until commit `revision` and the instant `now`. `newest` is the
    /// last entry of that commit.
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

    /// Returns the position of the last entry passed.
    pub(super) const fn position(&self) -> AuditPosition {
        position(self.0.after)
    }

    pub(super) const fn swept(&self) -> Option<Due> {
        self.0.swept
    }

    pub(super) const fn sweep_to(&mut self, swept: Due) {
        self.0.swept = Some(swept);
    }

    /// Returns the query for the entries that follow. The query includes the last entry passed, which shows
    /// whether the trail is still the same.
    pub(super) fn query(&self, limit: NonZeroUsize) -> AuditQuery {
        let after = match self.0.anchor {
            Some((revision, sequence, _)) => (revision, sequence.saturating_sub(1)),
            None => self.0.after,
        };
        AuditQuery {
            after: Some(position(after)),
            limit: limit.saturating_add(1),
            ..AuditQuery::all()
        }
    }

    /// Returns the entries of `page` that follow the cursor. The store that returned `page` is at `head` of
    /// the history `epoch`.
    ///
    /// # Errors
    ///
    /// The cursor to continue from, if the store's history is not the cursor's.
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
        let anchored = self.0.anchor.is_none_or(|(revision, sequence, mark)| {
            let place = position((revision, sequence));
            let same = |row: &AuditRow| row.position() == place && EntryMark::of(row) == mark;
            // A damaged entry is no sign of another history: its position is unchanged.
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
        // Damaged entries beyond the page's last entry come again with the next page. If their positions are
        // damaged too, passing them now would skip entries before them.
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
            self.0.anchor = Some((revision.0, sequence, EntryMark::of(row)));
        }
    }

    /// Binds the cursor to the history that it reads from. If the clock was set back, also moves the cursor's
    /// notices back to `now`. Then notices that were emitted too early are emitted again when they fall due.
    /// A key whose end is set between the old and the new time is not missed.
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

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = wire::seal(&self.0);
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for EventCursor {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |pair: &[u8]| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        wire::open(&bytes.ok_or(DecodeError::Malformed)?).map(Self)
    }
}

impl Serialize for EventCursor {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventCursor {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
