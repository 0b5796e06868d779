//! Limits on the number of keys: the cap on active keys, and the bound on live keys.

use std::num::NonZeroU32;

use super::Work;
use crate::core::audit::Action;
use crate::core::command::Denial;
use crate::core::policy::Policy;
use crate::core::record::{KeyRecord, KeyState, LastAction, Reason};
use crate::core::text::ClassName;
use crate::core::time::Timestamp;
use crate::core::view::TenantView;

/// Counts the loaded keys that count towards the cap: enabled or disabled, but not expired and not retiring.
/// Keys with an unreadable record count too.
///
/// During an `OnFirstUse` rotation, exactly one of the two keys counts: the successor, or the old key if the
/// successor ended unused.
#[must_use]
pub(crate) fn active(view: &TenantView, policy: &Policy, now: Timestamp) -> usize {
    let counts = |record: &&KeyRecord| {
        let replaced = record.succession.as_ref().is_some_and(|succession| {
            let successor = || view.record(succession.successor);
            succession.grace_from_first_use.is_none()
                || successor().is_some_and(|successor| successor.is_live(now))
        });
        !replaced && record.is_live(now) && policy.cap(&record.class).is_some()
    };
    view.records.iter().filter(counts).count() + view.corrupt.len()
}

/// Counts the loaded keys that are neither revoked nor expired, including retiring keys.
#[must_use]
pub(crate) fn live(view: &TenantView, policy: &Policy, now: Timestamp) -> usize {
    let counts = |record: &&KeyRecord| record.is_live(now) && policy.cap(&record.class).is_some();
    view.records.iter().filter(counts).count() + view.corrupt.len()
}

impl Work<'_> {
    /// Refuses another active key of `class` if the cap is reached.
    pub(super) fn check_room(&self, class: &ClassName) -> Result<(), Denial> {
        match self.policy.cap(class) {
            Some(limit) if self.active() >= limit_of(limit) => Err(Denial::CapReached { limit }),
            _ => Ok(()),
        }
    }

    /// Refuses the command if it leaves more active keys than the cap allows. A tenant that was above the cap
    /// already may keep its number of active keys, `before`.
    pub(super) fn check_not_raised(&self, class: &ClassName, before: usize) -> Result<(), Denial> {
        match self.policy.cap(class) {
            Some(limit) if self.active() > limit_of(limit).max(before) => {
                Err(Denial::CapReached { limit })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn active(&self) -> usize {
        active(&self.view, self.policy, self.now)
    }

    /// Ends the oldest grace periods until at most twice as many keys are live as the cap allows active keys.
    /// Retiring keys do not count towards the cap, so without this bound their number would be unlimited.
    pub(super) fn bound_live(&mut self, class: &ClassName) {
        let Some(limit) = self.policy.cap(class) else {
            return;
        };
        // Lowering the cap ends no key, so there may be more active keys than the cap allows. The bound is
        // then twice the number of active keys.
        let bound = limit_of(limit).max(self.active()).saturating_mul(2);
        while live(&self.view, self.policy, self.now) > bound {
            let Some(mut oldest) = self.oldest_grace() else {
                return;
            };
            let reason = Reason::Rotated;
            oldest.state = KeyState::Revoked {
                stamp: self.stamp(),
                reason,
            };
            self.put(oldest, LastAction::Revoked, Action::KeyRevoked { reason });
        }
    }

    fn oldest_grace(&self) -> Option<KeyRecord> {
        let retiring =
            self.view.records.iter().filter(|record| {
                record.is_live(self.now) && self.policy.cap(&record.class).is_some()
            });
        let since = |record: &&KeyRecord| {
            // Sorts keys that still wait for their successor's first use last. The client of such a key may
            // not have the successor yet.
            record
                .succession
                .as_ref()
                .map(|s| (s.grace_from_first_use.is_some(), s.since))
        };
        retiring
            .filter(|record| since(record).is_some())
            .min_by_key(since)
            .cloned()
    }
}

fn limit_of(limit: NonZeroU32) -> usize {
    usize::try_from(limit.get()).unwrap_or(usize::MAX)
}
