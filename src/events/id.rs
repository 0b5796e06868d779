//! Ids of events, which let a receiver drop events that it has already handled.
//!
//! Pure. Invariant: an event has the same id each time it is emitted. Two different changes never have the
//! same id, even if they have the same revision in two histories.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::query::{AuditPosition, AuditRow};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// The id of an event. Displays as at most 80 letters, digits and `-`, and parses from that text.
///
/// The id of a change consists of the position of its audit entry and part of the entry's hash. The id of a
/// notice consists of the key, its expiry and the window. So a key whose expiry changed causes notices with
/// new ids.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct EventId(IdFields);

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum IdFields {
    Entry(AuditPosition, EntryMark),
    Unreadable(AuditPosition),
    Expiring(KeyId, Timestamp, u64),
    Expired(KeyId, Timestamp),
}

/// The first 8 bytes of an audit entry's hash. Different entries have different marks, even in different
/// histories.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(super) struct EntryMark(u64);

impl EntryMark {
    pub(super) fn of(row: &AuditRow) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *row.entry.hash.as_bytes();
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl EventId {
    pub(super) fn entry(row: &AuditRow) -> Self {
        Self(IdFields::Entry(row.position(), EntryMark::of(row)))
    }

    pub(super) const fn unreadable(position: AuditPosition) -> Self {
        Self(IdFields::Unreadable(position))
    }

    pub(super) const fn notice(key: KeyId, expires_at: Timestamp, within: Duration) -> Self {
        Self(match within.as_secs() {
            0 => IdFields::Expired(key, expires_at),
            within => IdFields::Expiring(key, expires_at, within),
        })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IdFields::Entry(AuditPosition { revision, sequence }, EntryMark(mark)) => {
                write!(f, "entry-{revision}-{sequence}-{mark:016x}")
            }
            IdFields::Unreadable(AuditPosition { revision, sequence }) => {
                write!(f, "unreadable-{revision}-{sequence}")
            }
            IdFields::Expiring(key, ends, within) => {
                write!(f, "expiring-{key}-{}-{within}", ends.as_micros())
            }
            IdFields::Expired(key, ends) => write!(f, "expired-{key}-{}", ends.as_micros()),
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
                    IdFields::Entry(position(revision, sequence)?, self::mark(mark)?)
                }
                ["unreadable", revision, sequence] => {
                    IdFields::Unreadable(position(revision, sequence)?)
                }
                ["expiring", key, micros, within] => {
                    IdFields::Expiring(key.parse().ok()?, ends(micros)?, number(within)?)
                }
                ["expired", key, micros] => IdFields::Expired(key.parse().ok()?, ends(micros)?),
                _ => return None,
            })
        };
        let invalid = Invalid::new("event id", Problem::Format { expected });
        let id = Self(read().ok_or(invalid.clone())?);
        // Rejects other spellings of an id, such as leading zeros or capital letters.
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
