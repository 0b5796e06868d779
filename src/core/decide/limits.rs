//! Limits on the number of keys: the caps on active keys, and the bounds on live keys.

use super::Work;
use crate::core::audit::Action;
use crate::core::command::Denial;
use crate::core::policy::{ActiveKeyCap, Policy};
use crate::core::record::{KeyRecord, KeyState, LastAction, Reason};
use crate::core::text::ClassName;
use crate::core::time::Timestamp;
use crate::core::view::TenantView;

/// Counts the loaded keys that count towards `cap`: enabled or disabled, but not expired and not retiring.
/// Keys with an unreadable record count towards every cap.
///
/// During an `OnFirstUse` rotation, exactly one of the two keys counts: the successor, or the old key if the
/// successor ended unused.
fn active(view: &TenantView, policy: &Policy, cap: &ActiveKeyCap, now: Timestamp) -> usize {
    let counts = |record: &&KeyRecord| {
        let replaced = record.succession.as_ref().is_some_and(|succession| {
            let successor = || view.record(succession.successor);
            succession.grace_from_first_use.is_none()
                || successor().is_some_and(|successor| successor.is_live(now))
        });
        !replaced
    };
    live(view, policy, cap, now).filter(counts).count() + view.corrupt.len()
}

/// Returns the loaded keys of the classes of `cap` that are neither revoked nor expired, including retiring
/// keys.
fn live<'a>(
    view: &'a TenantView,
    policy: &Policy,
    cap: &ActiveKeyCap,
    now: Timestamp,
) -> impl Iterator<Item = &'a KeyRecord> {
    let counts = move |class: &ClassName| cap.counts(class) && policy.class(class).is_some();
    let records = view.records.iter();
    records.filter(move |record| record.is_live(now) && counts(&record.class))
}

impl<'a> Work<'a> {
    /// Refuses another active key of `class` if a cap is reached.
    pub(super) fn check_room(&self, class: &ClassName) -> Result<(), Denial> {
        let full = |cap: &&ActiveKeyCap| self.active(cap) >= limit_of(cap);
        self.policy.caps(class).find(full).map_or(Ok(()), reached)
    }

    /// Refuses the command if it leaves more active keys than a cap allows. A tenant that was above the cap
    /// already may keep its number of active keys, which [`active_before`](Self::active_before) returned.
    pub(super) fn check_not_raised(&self, before: &[(&ActiveKeyCap, usize)]) -> Result<(), Denial> {
        let raised =
            |(cap, before): &&(&ActiveKeyCap, usize)| self.active(cap) > limit_of(cap).max(*before);
        let raised = before.iter().find(raised);
        raised.map_or(Ok(()), |(cap, _)| reached(cap))
    }

    /// Returns the caps that keys of `class` count towards, each with the current number of active keys.
    pub(super) fn active_before(&self, class: &ClassName) -> Vec<(&'a ActiveKeyCap, usize)> {
        let caps = self.policy.caps(class);
        caps.map(|cap| (cap, self.active(cap))).collect()
    }

    fn active(&self, cap: &ActiveKeyCap) -> usize {
        active(&self.view, self.policy, cap, self.now)
    }

    /// Ends the oldest grace periods until at most twice as many keys are live as each cap allows active keys.
    /// Retiring keys do not count towards a cap, so without this bound their number would be unlimited.
    pub(super) fn bound_live(&mut self, class: &ClassName) {
        for cap in self.policy.caps(class) {
            // Lowering the cap ends no key, so there may be more active keys than the cap allows. The bound
            // is then twice the number of active keys.
            let bound = limit_of(cap).max(self.active(cap)).saturating_mul(2);
            let live = |work: &Self| {
                let live = live(&work.view, work.policy, cap, work.now).count();
                live + work.view.corrupt.len()
            };
            while live(self) > bound {
                let Some(mut oldest) = self.oldest_grace(cap) else {
                    break;
                };
                let reason = Reason::Rotated;
                oldest.state = KeyState::Revoked {
                    stamp: self.stamp(),
                    reason,
                };
                self.put(oldest, LastAction::Revoked, Action::KeyRevoked { reason });
            }
        }
    }

    fn oldest_grace(&self, cap: &ActiveKeyCap) -> Option<KeyRecord> {
        let since = |record: &&KeyRecord| {
            // Sorts keys that still wait for their successor's first use last. The client of such a key may
            // not have the successor yet.
            record
                .succession
                .as_ref()
                .map(|s| (s.grace_from_first_use.is_some(), s.since))
        };
        live(&self.view, self.policy, cap, self.now)
            .filter(|record| since(record).is_some())
            .min_by_key(since)
            .cloned()
    }
}

fn reached(cap: &ActiveKeyCap) -> Result<(), Denial> {
    Err(Denial::CapReached {
        limit: cap.limit,
        classes: cap.classes.clone(),
    })
}

fn limit_of(cap: &ActiveKeyCap) -> usize {
    usize::try_from(cap.limit.get()).unwrap_or(usize::MAX)
}
