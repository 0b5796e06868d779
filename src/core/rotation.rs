//! The progress of a rotation, and whether it is safe to finish.
//!
//! Pure: no I/O and no clock.

use std::time::Duration;

use super::id::KeyId;
use super::record::KeyRecord;
use super::time::{self, Timestamp};

/// 24 hours, the interval of a daily job. A rotation is considered safe to finish once the old key has not
/// been presented for this long.
pub const SILENCE_BEFORE_FINISH: Duration = time::hours(24);

/// The steps of a rotation, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum RotationStep {
    /// The successor exists and is unused.
    SuccessorCreated,
    /// The successor has been used. The old key may still be in use.
    SuccessorInUse,
    /// The successor has been used, and the old key has not been presented for [`SILENCE_BEFORE_FINISH`].
    OldKeySilent,
    /// The old key has ended.
    OldKeyEnded,
    /// The old key has ended, but a client has presented it since.
    OldKeyStillTried,
}

/// The progress of a rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RotationProgress {
    /// The id of the successor.
    pub successor: KeyId,
    /// The step that the rotation has reached.
    pub step: RotationStep,
    /// The instant at which the old key ends. If its grace starts with the successor's first use, this is the
    /// latest possible instant.
    pub old_key_ends: Timestamp,
    /// True if the old key can end now without interrupting a client, as far as the host knows.
    pub safe_to_finish: bool,
}

/// Returns the progress of the rotation of `old`. `None` if `old` has no successor.
///
/// `old_last_seen` is the last time that a client presented the old key, whether or not the key was accepted.
/// If it is `None`, the old key never counts as silent.
#[must_use]
pub fn progress(
    old: &KeyRecord,
    successor: Option<&KeyRecord>,
    old_last_seen: Option<Timestamp>,
    now: Timestamp,
) -> Option<RotationProgress> {
    let succession = old.succession.as_ref()?;
    let used = successor
        .and_then(|successor| successor.predecessor.as_ref())
        .and_then(|link| link.first_used_at);
    let ended = !old.is_live(now);
    let tried_since = |since: Timestamp| old_last_seen.is_some_and(|seen| seen >= since);
    let silent = old_last_seen.is_some_and(|seen| now.since(seen) >= SILENCE_BEFORE_FINISH);
    let step = match used {
        _ if ended && tried_since(ended_at(old, now)) => RotationStep::OldKeyStillTried,
        _ if ended => RotationStep::OldKeyEnded,
        None => RotationStep::SuccessorCreated,
        Some(_) if silent => RotationStep::OldKeySilent,
        Some(_) => RotationStep::SuccessorInUse,
    };
    Some(RotationProgress {
        successor: succession.successor,
        step,
        old_key_ends: old
            .expires_at
            .filter(|_| !ended)
            .unwrap_or_else(|| ended_at(old, now)),
        safe_to_finish: step >= RotationStep::OldKeySilent,
    })
}

fn ended_at(old: &KeyRecord, now: Timestamp) -> Timestamp {
    match &old.state {
        super::record::KeyState::Revoked { stamp, .. } => stamp.at,
        _ => old.expires_at.unwrap_or(now),
    }
}
