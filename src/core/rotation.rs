//! Where a rotation stands, and whether it is safe to finish.
//!
//! Pure.

use std::time::Duration;

use super::id::KeyId;
use super::record::KeyRecord;
use super::time::{self, Timestamp};

/// How long an old key must have been silent before finishing counts as safe: 24 hours, one daily
/// job. A judgement, not a standard.
pub const QUIET: Duration = time::hours(24);

/// The steps of a rotation, in order (rule G-14).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum RotationStep {
    /// The successor exists; nobody used it yet.
    SuccessorCreated,
    /// The successor is used; the old key may be as well.
    SuccessorInUse,
    /// The successor is used, and the old key has been silent for [`QUIET`].
    OldKeySilent,
    /// The old key has ended.
    OldKeyEnded,
    /// The old key has ended, and somebody still tries it.
    OldKeyStillTried,
}

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RotationProgress {
    /// The key that takes the place.
    pub successor: KeyId,
    /// The step reached.
    pub step: RotationStep,
    /// The end of the old key; the latest one, if it counts from the successor's first use.
    pub old_key_ends: Timestamp,
    /// Whether ending the old key now cuts nobody off, as far as can be told.
    pub safe_to_finish: bool,
}

/// Where the rotation of `old` stands; `None` if it is not being replaced.
///
/// `old_last_seen` is when the old key was last presented, accepted or not, as far as the host
/// knows; without it the old key never counts as silent.
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
    let silent = old_last_seen.is_some_and(|seen| now.since(seen) >= QUIET);
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
