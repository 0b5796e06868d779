//! Names of events, by which a receiver knows what it has handled.
//!
//! Pure. Invariant: one event has one id, whenever and however often it is told; and an event of
//! another history of the store has another, even at the same revision.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::query::{AuditPosition, AuditRow};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// Names an event. Prints as letters, digits and `-`, at most 80 of them, and parses again.
///
/// It is made of the audit entry's place and seal, or of the key, its end and the window: a key whose
/// end moved is told of under another id.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct EventId(Source);

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Source {
    Entry(AuditPosition, EntryMark),
    Unreadable(AuditPosition),
    Expiring(KeyId, Timestamp, u64),
    Expired(KeyId, Timestamp),
}

/// The first bytes of an entry's seal: no two entries share them, in whatever histories.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(crate) struct EntryMark(u64);

impl EntryMark {
    pub(crate) fn of(row: &AuditRow) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *row.entry.hash.as_bytes();
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl EventId {
    pub(super) fn entry(row: &AuditRow) -> Self {
        Self(Source::Entry(row.position(), EntryMark::of(row)))
    }

    pub(super) const fn unreadable(position: AuditPosition) -> Self {
        Self(Source::Unreadable(position))
    }

    pub(super) const fn notice(key: KeyId, expires_at: Timestamp, within: Duration) -> Self {
        Self(match within.as_secs() {
            0 => Source::Expired(key, expires_at),
            within => Source::Expiring(key, expires_at, within),
        })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Source::Entry(AuditPosition { revision, sequence }, EntryMark(mark)) => {
                write!(f, "entry-{revision}-{sequence}-{mark:016x}")
            }
            Source::Unreadable(AuditPosition { revision, sequence }) => {
                write!(f, "unreadable-{revision}-{sequence}")
            }
            Source::Expiring(key, ends, within) => {
                write!(f, "expiring-{key}-{}-{within}", ends.as_micros())
            }
            Source::Expired(key, ends) => write!(f, "expired-{key}-{}", ends.as_micros()),
        }
    }
}

impl FromStr for EventId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let expected = "an event id, such as entry-12-3-0123456789abcdef";
        let read = || {
            let parts: Vec<_> = text.splitn(5, '-').collect();
            let position = |revision: &str, sequence: &str| {
                Some(AuditPosition {
                    revision: Revision(number(revision)?),
                    sequence: number(sequence)?,
                })
            };
            let ends = |micros: &str| {
                let micros = i64::try_from(number(micros)?).ok()?;
                Timestamp::from_micros(micros).ok()
            };
            Some(match parts[..] {
                ["entry", revision, sequence, mark] => {
                    Source::Entry(position(revision, sequence)?, self::mark(mark)?)
                }
                ["unreadable", revision, sequence] => {
                    Source::Unreadable(position(revision, sequence)?)
                }
                ["expiring", key, micros, within] => {
                    Source::Expiring(key.parse().ok()?, ends(micros)?, number(within)?)
                }
                ["expired", key, micros] => Source::Expired(key.parse().ok()?, ends(micros)?),
                _ => return None,
            })
        };
        let invalid = Invalid::new("event id", Problem::Form { expected });
        let id = Self(read().ok_or(invalid.clone())?);
        // One event has one id: no leading zeros, no capitals.
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(invalid)
        }
    }
}

fn number(digits: &str) -> Option<u64> {
    digits.parse().ok()
}

fn mark(digits: &str) -> Option<EntryMark> {
    u64::from_str_radix(digits, 16).ok().map(EntryMark)
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
