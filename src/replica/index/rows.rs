//! The rows of keys, which hold the data that does not fit in a table slot. A lookup reads a row only if the
//! slot does not prove the key valid.

use super::ledger::AttributeIds;
use super::sync::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence, pause};
use crate::core::id::KeyId;
use crate::core::record::Reason;
use crate::core::subject::{Lifecycle, LifecyclePhase};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// The row of one key, protected by a seqlock: the writer changes the row in place, and a reader that
/// overlaps with a change reads again.
#[derive(Default)]
pub(super) struct IndexRow {
    id: [AtomicU64; 2],
    /// The revision of the row's contents, or [`CHANGING`] while the writer changes the row. Every change
    /// sets a different revision. So a reader that sees the same revision before and after its read knows
    /// that no change overlapped.
    revision: AtomicU64,
    /// The state of the key in the low bits, and a time in microseconds above them. For a revoked key this is
    /// the time of the revocation. For any other key it is the time of its creation.
    state: AtomicI64,
    /// The expiry in microseconds, or [`NEVER`].
    ends: AtomicI64,
    key_owner: AtomicU32,
    traits: AtomicU32,
}

/// The contents of a row at one instant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Content {
    pub(super) revision: Revision,
    pub(super) key: RowState,
    pub(super) attribute_ids: AttributeIds,
}

/// The state of a key according to its row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RowState {
    Key(Lifecycle),
    Removed,
    Corrupt,
}

const NEVER: i64 = i64::MAX;
const CHANGING: u64 = u64::MAX;

/// 5 bits of state. The other bits have room for every time up to the year 9999.
const STATE_BITS: u32 = 5;
const STATES: i64 = (1 << STATE_BITS) - 1;
const REMOVED: i64 = 0;
const CORRUPT: i64 = 1;
const ENABLED: i64 = 2;
const DISABLED: i64 = 3;
const AWAITS_FIRST_USE: i64 = 1 << 4;

impl IndexRow {
    pub(super) fn id(&self) -> KeyId {
        let [high, low] = [&self.id[0], &self.id[1]].map(|word| word.load(Ordering::Relaxed));
        KeyId::from_u128(u128::from(high) << 64 | u128::from(low))
    }

    /// Sets the id of the row's key. Call this method before a slot refers to the row. The Release store of
    /// the slot's tag then publishes the id to readers of the slot.
    pub(super) fn set_id(&self, id: KeyId) {
        let id = id.to_u128();
        self.id[0].store((id >> 64) as u64, Ordering::Relaxed);
        self.id[1].store(id as u64, Ordering::Relaxed);
    }

    /// Returns a consistent copy of the row. The Acquire fence orders the field loads before the second load
    /// of `revision`. Without the fence, a reader could miss a concurrent change and return a half-written
    /// row.
    pub(super) fn read(&self) -> Content {
        let mut spins = 0_u32;
        loop {
            let revision = self.revision.load(Ordering::Acquire);
            let state = self.state.load(Ordering::Relaxed);
            let ends = self.ends.load(Ordering::Relaxed);
            let key_owner = self.key_owner.load(Ordering::Relaxed);
            let traits = self.traits.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if revision != CHANGING && self.revision.load(Ordering::Relaxed) == revision {
                return Content {
                    revision: Revision(revision),
                    key: row_state(state, ends),
                    attribute_ids: AttributeIds {
                        key_owner,
                        traits,
                        status: None,
                    },
                };
            }
            // The writer is changing the row. A change takes nanoseconds, unless the writer's thread is
            // preempted during the change.
            spins = spins.wrapping_add(1);
            pause(spins);
        }
    }

    /// Writes the row. Only the writer may call this.
    ///
    /// The Release fence orders the store of [`CHANGING`] before the field stores. So a reader that loads a
    /// new field sees another revision after its own Acquire fence, and retries. Without the Release fence,
    /// that reader could return a half-written row.
    pub(super) fn write(&self, content: Content) {
        let (state, ends) = words_of(content.key);
        self.revision.store(CHANGING, Ordering::Relaxed);
        fence(Ordering::Release);
        self.state.store(state, Ordering::Relaxed);
        self.ends.store(ends, Ordering::Relaxed);
        self.key_owner
            .store(content.attribute_ids.key_owner, Ordering::Relaxed);
        self.traits
            .store(content.attribute_ids.traits, Ordering::Relaxed);
        // Release: a reader that loads this revision also sees all new fields.
        self.revision.store(content.revision.0, Ordering::Release);
    }
}

fn words_of(key: RowState) -> (i64, i64) {
    let lifecycle = match key {
        RowState::Removed => return (REMOVED, 0),
        RowState::Corrupt => return (CORRUPT, 0),
        RowState::Key(lifecycle) => lifecycle,
    };
    let (state, at) = match lifecycle.phase {
        LifecyclePhase::Enabled => (ENABLED, lifecycle.created_at),
        LifecyclePhase::Disabled => (DISABLED, lifecycle.created_at),
        LifecyclePhase::Revoked { at, reason } => (state_of(reason), at),
    };
    let awaits = if lifecycle.awaits_first_use {
        AWAITS_FIRST_USE
    } else {
        0
    };
    let ends = lifecycle.expires_at.map_or(NEVER, |end| end.as_micros());
    (at.as_micros() << STATE_BITS | state | awaits, ends)
}

fn row_state(state: i64, ends: i64) -> RowState {
    let instant = |micros| Timestamp::from_micros(micros).unwrap_or(Timestamp::MAX);
    let at = instant(state >> STATE_BITS);
    let awaits_first_use = state & AWAITS_FIRST_USE != 0;
    let phase = match state & STATES & !AWAITS_FIRST_USE {
        REMOVED => return RowState::Removed,
        ENABLED => LifecyclePhase::Enabled,
        DISABLED => LifecyclePhase::Disabled,
        revoked => match reason_of(revoked) {
            Some(reason) => LifecyclePhase::Revoked { at, reason },
            None => return RowState::Corrupt,
        },
    };
    RowState::Key(Lifecycle {
        phase,
        // For a revoked key, `at` is the time of the revocation and not of the creation. This does no harm,
        // because verification rejects a revoked key before it needs the creation time.
        created_at: at,
        expires_at: (ends != NEVER).then(|| instant(ends)),
        awaits_first_use,
    })
}

/// Returns the state number of a key that was revoked for `reason`.
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
            let at = move |at: Option<Timestamp>| Some(LifecyclePhase::Revoked { at: at?, reason });
            instants.into_iter().filter_map(at)
        });
        let phases: Vec<_> = revoked
            .chain([LifecyclePhase::Enabled, LifecyclePhase::Disabled])
            .collect();
        assert_eq!(phases.len(), 2 * 9 + 2);
        let row = IndexRow::default();
        for (revision, phase) in (1..).zip(phases) {
            for expires_at in instants.into_iter().chain([None]) {
                let created_at = match phase {
                    LifecyclePhase::Revoked { at, .. } => at,
                    LifecyclePhase::Enabled | LifecyclePhase::Disabled => Timestamp::MAX,
                };
                let key = RowState::Key(Lifecycle {
                    phase,
                    created_at,
                    expires_at,
                    awaits_first_use: expires_at.is_none(),
                });
                let content = Content {
                    revision: Revision(u64::MAX - revision),
                    key,
                    attribute_ids: AttributeIds {
                        key_owner: 7,
                        traits: 9,
                        status: None,
                    },
                };
                row.write(content);
                assert_eq!(row.read(), content);
            }
        }
    }
}
