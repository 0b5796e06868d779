//! What is known of each key beyond what finds it: looked at when a key is not simply good, and
//! where its uses are counted.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

use super::ledger::Parts;
use super::prefetch::prefetch;
use crate::core::id::KeyId;
use crate::core::record::Reason;
use crate::core::subject::{Course, Life};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// One key's row. The writer changes it in place; a reader that meets a change looks again.
#[derive(Default)]
pub(super) struct Row {
    id: [AtomicU64; 2],
    /// The revision and the state, or [`CHANGING`]. Each change has a revision of its own.
    state: AtomicU64,
    /// When it ends, in microseconds; [`NEVER`].
    ends: AtomicI64,
    /// When it was revoked, if it was; else when it was created.
    at: AtomicI64,
    holder: AtomicU32,
    shape: AtomicU32,
    /// How often it was used, and when last: see [`count`](Self::count).
    uses: AtomicU64,
}

/// A row as it is at one instant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Content {
    pub(super) revision: Revision,
    pub(super) key: Kept,
    pub(super) parts: Parts,
}

/// What is kept of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kept {
    Known(Course),
    Removed,
    Corrupt,
}

const NEVER: i64 = i64::MAX;
const CHANGING: u64 = u64::MAX;

const STATE_BITS: u32 = 8;
const REMOVED: u64 = 0;
const CORRUPT: u64 = 1;
const ENABLED: u64 = 2;
const DISABLED: u64 = 3;
/// And the reason.
const REVOKED: u64 = 4;
const REASONS: [Reason; 9] = [
    Reason::Lost,
    Reason::Compromised,
    Reason::Leaked,
    Reason::Unused,
    Reason::NoLongerNeeded,
    Reason::Rotated,
    Reason::RotationCancelled,
    Reason::OwnerRemoved,
    Reason::TenantClosed,
];
const AWAITS_FIRST_USE: u64 = 0x80;

/// Seconds of a minute.
const MINUTE: u32 = 64;
/// 2020: from here to 2054.
const FIRST_MINUTE: u32 = 1_577_836_800;
const MINUTE_BITS: u32 = 24;
const MINUTES: u64 = (1 << MINUTE_BITS) - 1;
const MOST_USES: u64 = (1 << 40) - 1;

impl Row {
    pub(super) fn id(&self) -> KeyId {
        let [high, low] = [&self.id[0], &self.id[1]].map(|half| half.load(Ordering::Relaxed));
        KeyId::from_u128(u128::from(high) << 64 | u128::from(low))
    }

    /// Names a row that nobody was led to yet.
    pub(super) fn name(&self, id: KeyId) {
        let id = id.to_u128();
        self.id[0].store((id >> 64) as u64, Ordering::Relaxed);
        self.id[1].store(id as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Content {
        loop {
            let state = self.state.load(Ordering::Acquire);
            let ends = self.ends.load(Ordering::Relaxed);
            let at = self.at.load(Ordering::Relaxed);
            let holder = self.holder.load(Ordering::Relaxed);
            let shape = self.shape.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if state != CHANGING && self.state.load(Ordering::Relaxed) == state {
                return Content {
                    revision: Revision(state >> STATE_BITS),
                    key: kept(state, ends, at),
                    parts: Parts { holder, shape },
                };
            }
            // The writer is between two stores of this row: a matter of nanoseconds.
            std::hint::spin_loop();
        }
    }

    /// Only the writer's own.
    pub(super) fn write(&self, content: Content) {
        let (state, ends, at) = words(content.key);
        self.state.store(CHANGING, Ordering::Relaxed);
        fence(Ordering::Release);
        self.ends.store(ends, Ordering::Relaxed);
        self.at.store(at, Ordering::Relaxed);
        self.holder.store(content.parts.holder, Ordering::Relaxed);
        self.shape.store(content.parts.shape, Ordering::Relaxed);
        let state = content.revision.0 << STATE_BITS | state;
        self.state.store(state, Ordering::Release);
    }

    /// Has the count brought near.
    pub(super) fn approach(&self) {
        prefetch(&self.uses);
    }

    /// Counts uses, the last of them at `second` since the epoch, in one word: 40 bits of how many,
    /// and 24 of when, in minutes of 64 seconds.
    pub(super) fn count(&self, uses: u64, second: u32) {
        let minute = u64::from(second.saturating_sub(FIRST_MINUTE) / MINUTE).min(MINUTES);
        let more = |word: u64| {
            let count = (word >> MINUTE_BITS).saturating_add(uses).min(MOST_USES);
            count << MINUTE_BITS | (word & MINUTES).max(minute)
        };
        let mut known = self.uses.load(Ordering::Relaxed);
        while let Err(other) = self.uses.compare_exchange_weak(
            known,
            more(known),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            known = other;
        }
    }

    /// How often the key was used, and when last, in seconds since the epoch.
    pub(super) fn uses(&self) -> (u64, u32) {
        let word = self.uses.load(Ordering::Relaxed);
        let last = (word & MINUTES) as u32 * MINUTE + FIRST_MINUTE;
        (word >> MINUTE_BITS, last)
    }
}

fn words(key: Kept) -> (u64, i64, i64) {
    let course = match key {
        Kept::Removed => return (REMOVED, 0, 0),
        Kept::Corrupt => return (CORRUPT, 0, 0),
        Kept::Known(course) => course,
    };
    let (state, at) = match course.life {
        Life::Enabled => (ENABLED, course.created_at),
        Life::Disabled => (DISABLED, course.created_at),
        Life::Revoked { at, reason } => {
            let known = REASONS.iter().position(|own| *own == reason);
            (REVOKED + known.unwrap_or_default() as u64, at)
        }
    };
    let awaits = if course.awaits_first_use {
        AWAITS_FIRST_USE
    } else {
        0
    };
    let ends = course.expires_at.map_or(NEVER, |end| end.as_micros());
    (state | awaits, ends, at.as_micros())
}

fn kept(state: u64, ends: i64, at: i64) -> Kept {
    let instant = |micros| Timestamp::from_micros(micros).unwrap_or(Timestamp::MAX);
    let state = state & ((1 << STATE_BITS) - 1);
    let awaits_first_use = state & AWAITS_FIRST_USE != 0;
    let at = instant(at);
    let life = match state & !AWAITS_FIRST_USE {
        REMOVED => return Kept::Removed,
        ENABLED => Life::Enabled,
        DISABLED => Life::Disabled,
        revoked => {
            let reason = revoked
                .checked_sub(REVOKED)
                .and_then(|at| REASONS.get(at as usize));
            match reason {
                Some(reason) => Life::Revoked {
                    at,
                    reason: *reason,
                },
                None => return Kept::Corrupt,
            }
        }
    };
    Kept::Known(Course {
        life,
        // A revoked key is refused before anyone asks when it was created.
        created_at: at,
        expires_at: (ends != NEVER).then(|| instant(ends)),
        awaits_first_use,
    })
}
