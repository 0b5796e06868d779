//! Where a reader of events stands: in the audit trail, and in the order of notices.
//!
//! Pure. Invariant: a cursor is answered only by the history that it was made in. It remembers the
//! seal of the last entry told, so that a store which went back in time shows even after it has
//! overtaken the cursor.

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

/// Where a reader of events stands. Keep it, as text, wherever is durable enough for you: events go
/// on from there.
///
/// Prints as letters and digits, about 150 of them, with a checksum; what they say may change from
/// version to version, and older ones stay readable. Holds no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EventCursor(Place);

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Place {
    /// The store's epoch; `None` before the first read.
    epoch: Option<u128>,
    /// Entries up to here were told: revision and sequence.
    after: (u64, u64),
    /// The last of them that could be read.
    anchor: Option<(u64, u64, EntryMark)>,
    /// Notices up to here were told, about keys as the entries so far have left them.
    swept: Option<Due>,
}

/// The store has another history than the cursor: where to go on in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct OtherHistory {
    pub(crate) resume: Box<EventCursor>,
}

/// Entries that follow a cursor, oldest first.
#[derive(Debug)]
pub(crate) struct Found {
    /// Each with its place; `None` for one that cannot be read.
    pub(crate) entries: Vec<(AuditPosition, Option<AuditRow>)>,
    /// Whether the trail ends with them, for now.
    pub(crate) complete: bool,
}

impl EventCursor {
    /// Before everything: the whole audit trail is told, then every key that has expired and is
    /// still known, then those that soon will.
    pub const BEGINNING: Self = Self(Place {
        epoch: None,
        after: (0, 0),
        anchor: None,
        swept: None,
    });

    /// Where nothing that happened until commit `revision` and the instant `now` is told. `newest`
    /// is the last entry of that commit.
    pub(crate) fn end(
        epoch: u128,
        revision: Revision,
        newest: Option<&AuditRow>,
        now: Timestamp,
    ) -> Self {
        let mut cursor = Self(Place {
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

    /// The last entry told.
    pub(crate) const fn position(&self) -> AuditPosition {
        position(self.0.after)
    }

    pub(crate) const fn swept(&self) -> Option<Due> {
        self.0.swept
    }

    pub(crate) const fn sweep_to(&mut self, swept: Due) {
        self.0.swept = Some(swept);
    }

    /// What to ask the audit trail for: the entries that follow, after the last one told, which
    /// shows whether this is still the same trail.
    pub(crate) fn query(&self, limit: NonZeroUsize) -> AuditQuery {
        let after = match self.0.anchor {
            Some((revision, sequence, _)) => (revision, sequence.saturating_sub(1)),
            None => self.0.after,
        };
        AuditQuery {
            after: Some(position(after)),
            limit: limit.saturating_add(1),
            ..AuditQuery::everything()
        }
    }

    /// Takes the answer apart, which a store gave that stands at `head` of history `epoch`.
    pub(crate) fn read(
        &self,
        page: AuditPage,
        epoch: u128,
        head: Revision,
        limit: NonZeroUsize,
    ) -> Result<Found, OtherHistory> {
        let AuditPage {
            rows,
            corrupt,
            next,
        } = page;
        let anchored = self.0.anchor.is_none_or(|(revision, sequence, mark)| {
            let place = position((revision, sequence));
            let same = |row: &AuditRow| row.position() == place && EntryMark::of(row) == mark;
            // Damage is no other history: the entry stands where it stood.
            rows.iter().any(same) || corrupt.contains(&place)
        });
        let there = anchored && head >= self.position().revision;
        if !there || self.0.epoch.is_some_and(|own| own != epoch) {
            let place = if there {
                self.0.clone()
            } else {
                Place::default()
            };
            let epoch = Some(epoch);
            let resume = Box::new(Self(Place { epoch, ..place }));
            return Err(OtherHistory { resume });
        }
        let last = rows.last().map(AuditRow::position);
        let mut entries: BTreeMap<_, _> = corrupt.into_iter().map(|place| (place, None)).collect();
        entries.extend(rows.into_iter().map(|row| (row.position(), Some(row))));
        // What lies beyond the page's last entry comes again with the next page. To pass it now
        // would lose what comes before it, if its place is damaged as well.
        entries.retain(|place, _| {
            *place > self.position() && (next.is_none() || Some(*place) <= last)
        });
        let complete = next.is_none() && entries.len() <= limit.get();
        Ok(Found {
            entries: entries.into_iter().take(limit.get()).collect(),
            complete,
        })
    }

    /// Takes the cursor beyond an entry.
    pub(crate) fn pass(&mut self, place: AuditPosition, row: Option<&AuditRow>) {
        let AuditPosition { revision, sequence } = place;
        self.0.after = (revision.0, sequence);
        if let Some(row) = row {
            self.0.anchor = Some((revision.0, sequence, EntryMark::of(row)));
        }
    }

    /// Ties the cursor to the history that it is read in, and takes it back to `now` if the clock
    /// was set back: what was told before its time has to be told again, and a key that comes to end
    /// between the two would be missed.
    pub(crate) fn enter(&mut self, epoch: u128, now: Timestamp) {
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
