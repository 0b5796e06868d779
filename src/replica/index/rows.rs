//! The rows of keys: the data beyond what a slot holds. Read only if a key is not simply valid.

use super::ledger::Parts;
use super::sync::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence, pause};
use crate::core::id::KeyId;
use crate::core::record::Reason;
use crate::core::subject::{Course, Life};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// One key's row: a seqlock. The writer changes the row in place. A reader that overlaps with a
/// change retries.
#[derive(Default)]
pub(super) struct Row {
    id: [AtomicU64; 2],
    /// The revision, or [`CHANGING`]. Each change has a revision of its own.
    revision: AtomicU64,
    /// The state in the low bits. Above it, in microseconds, the time of revocation if the key was
    /// revoked, and otherwise the time of creation.
    state: AtomicI64,
    /// The expiry in microseconds, or [`NEVER`].
    ends: AtomicI64,
    holder: AtomicU32,
    shape: AtomicU32,
}

/// The contents of a row at one instant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Content {
    pub(super) revision: Revision,
    pub(super) key: Kept,
    pub(super) parts: Parts,
}

/// A key's entry in its row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kept {
    Known(Course),
    Removed,
    Corrupt,
}

const NEVER: i64 = i64::MAX;
const CHANGING: u64 = u64::MAX;

/// 5 bits of state, which leaves room for any instant of four-digit years.
const STATE_BITS: u32 = 5;
const STATES: i64 = (1 << STATE_BITS) - 1;
const REMOVED: i64 = 0;
const CORRUPT: i64 = 1;
const ENABLED: i64 = 2;
const DISABLED: i64 = 3;
const AWAITS_FIRST_USE: i64 = 1 << 4;

impl Row {
    pub(super) fn id(&self) -> KeyId {
        let [high, low] = [&self.id[0], &self.id[1]].map(|half| half.load(Ordering::Relaxed));
        KeyId::from_u128(u128::from(high) << 64 | u128::from(low))
    }

    /// Sets the id of a row that no slot leads to yet.
    pub(super) fn name(&self, id: KeyId) {
        let id = id.to_u128();
        self.id[0].store((id >> 64) as u64, Ordering::Relaxed);
        self.id[1].store(id as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Content {
        let mut spins = 0_u32;
        loop {
            let revision = self.revision.load(Ordering::Acquire);
            let state = self.state.load(Ordering::Relaxed);
            let ends = self.ends.load(Ordering::Relaxed);
            let holder = self.holder.load(Ordering::Relaxed);
            let shape = self.shape.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if revision != CHANGING && self.revision.load(Ordering::Relaxed) == revision {
                return Content {
                    revision: Revision(revision),
                    key: kept(state, ends),
                    parts: Parts { holder, shape },
                };
            }
            // The writer is between two stores of this row. That takes nanoseconds, unless the
            // writer's thread was preempted there.
            spins = spins.wrapping_add(1);
            pause(spins);
        }
    }

    /// Writes the row; only the writer may call this. The Release fence orders [`CHANGING`] before
    /// the fields. So a reader that loads a new field and then passes its own Acquire fence sees
    /// that the revision has changed, and retries. Without the fence it could return a half-written
    /// row.
    pub(super) fn write(&self, content: Content) {
        let (state, ends) = words(content.key);
        self.revision.store(CHANGING, Ordering::Relaxed);
        fence(Ordering::Release);
        self.state.store(state, Ordering::Relaxed);
        self.ends.store(ends, Ordering::Relaxed);
        self.holder.store(content.parts.holder, Ordering::Relaxed);
        self.shape.store(content.parts.shape, Ordering::Relaxed);
        self.revision.store(content.revision.0, Ordering::Release);
    }
}

fn words(key: Kept) -> (i64, i64) {
    let course = match key {
        Kept::Removed => return (REMOVED, 0),
        Kept::Corrupt => return (CORRUPT, 0),
        Kept::Known(course) => course,
    };
    let (state, at) = match course.life {
        Life::Enabled => (ENABLED, course.created_at),
        Life::Disabled => (DISABLED, course.created_at),
        Life::Revoked { at, reason } => (state_of(reason), at),
    };
    let awaits = if course.awaits_first_use {
        AWAITS_FIRST_USE
    } else {
        0
    };
    let ends = course.expires_at.map_or(NEVER, |end| end.as_micros());
    (at.as_micros() << STATE_BITS | state | awaits, ends)
}

fn kept(state: i64, ends: i64) -> Kept {
    let instant = |micros| Timestamp::from_micros(micros).unwrap_or(Timestamp::MAX);
    let at = instant(state >> STATE_BITS);
    let awaits_first_use = state & AWAITS_FIRST_USE != 0;
    let life = match state & STATES & !AWAITS_FIRST_USE {
        REMOVED => return Kept::Removed,
        ENABLED => Life::Enabled,
        DISABLED => Life::Disabled,
        revoked => match reason_of(revoked) {
            Some(reason) => Life::Revoked { at, reason },
            None => return Kept::Corrupt,
        },
    };
    Kept::Known(Course {
        life,
        // For a revoked key this is not the time of creation. Nobody reads it: verification rejects
        // the key before it needs that time.
        created_at: at,
        expires_at: (ends != NEVER).then(|| instant(ends)),
        awaits_first_use,
    })
}

/// Returns the state of keys revoked for this reason.
const fn state_of(reason: Reason) -> i64 {
    match reason {
        Reason::Lost => 4,
        Reason::Compromised => 5,
        Reason::Leaked => 6,
        Reason::Unused => 7,
        Reason::NoLongerNeeded => 8,
        Reason::Rotated => 9,
        Reason::RotationCancelled => 10,
        Reason::OwnerRemoved => 11,
        Reason::TenantClosed => 12,
    }
}

const fn reason_of(state: i64) -> Option<Reason> {
    Some(match state {
        4 => Reason::Lost,
        5 => Reason::Compromised,
        6 => Reason::Leaked,
        7 => Reason::Unused,
        8 => Reason::NoLongerNeeded,
        9 => Reason::Rotated,
        10 => Reason::RotationCancelled,
        11 => Reason::OwnerRemoved,
        12 => Reason::TenantClosed,
        _ => return None,
    })
}

#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;

#[cfg(all(test, not(keyward_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_row_returns_what_was_written_for_any_key() {
        let instants = [Timestamp::UNIX_EPOCH, Timestamp::MAX].map(Some);
        let revoked = (0..32).filter_map(reason_of).flat_map(|reason| {
            let at = move |at: Option<Timestamp>| Some(Life::Revoked { at: at?, reason });
            instants.into_iter().filter_map(at)
        });
        let lives: Vec<_> = revoked.chain([Life::Enabled, Life::Disabled]).collect();
        assert_eq!(lives.len(), 2 * 9 + 2);
        let row = Row::default();
        for (revision, life) in (1..).zip(lives) {
            for expires_at in instants.into_iter().chain([None]) {
                let created_at = match life {
                    Life::Revoked { at, .. } => at,
                    Life::Enabled | Life::Disabled => Timestamp::MAX,
                };
                let key = Kept::Known(Course {
                    life,
                    created_at,
                    expires_at,
                    awaits_first_use: expires_at.is_none(),
                });
                let content = Content {
                    revision: Revision(u64::MAX - revision),
                    key,
                    parts: Parts {
                        holder: 7,
                        shape: 9,
                    },
                };
                row.write(content);
                assert_eq!(row.read(), content);
            }
        }
    }
}
