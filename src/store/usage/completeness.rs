//! Completeness: which periods were counted by every process. Pure.

use std::time::Duration;

use super::{UsageGap, UsageLedger};
use crate::core::time::Timestamp;
use crate::store::NodeId;

/// The periods for which a usage store has the uses of every process.
///
/// A proof that a key was not used needs a period without a gap, between [`counted_since`](Self::counted_since) and
/// [`complete_until`](Self::complete_until).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Completeness {
    /// The time since which uses are counted. `None` if no process ever counted.
    pub counted_since: Option<Timestamp>,
    /// The time until which every live process has sent its uses. `None` if no process ever counted.
    pub complete_until: Option<Timestamp>,
    /// The periods of which uses may be missing, merged and in order. The last one can still be growing, if a process
    /// went silent.
    pub gaps: Vec<UsageGap>,
    /// Live nodes of the registry that have no open boot, so their uses are not counted at all.
    pub uncounted: Vec<NodeId>,
    /// Whether it is unknown which processes verify keys. Then nothing is proven.
    pub is_unknown: bool,
}

impl Completeness {
    /// 5 minutes: a process that has sent nothing for longer, and for the allowance between clocks, no longer holds the
    /// horizon. What it has not sent is a gap, which grows until the process sends again, or its boot is closed.
    pub const SILENCE: Duration = Duration::from_secs(5 * 60);

    /// Judges a ledger at the time `now`.
    ///
    /// `allowance` is the largest difference between two clocks: each period is shortened by it, and each gap widened.
    /// `live` are the live nodes of the registry. `None` if there is no registry, so that it is unknown which processes
    /// verify keys.
    #[must_use]
    pub fn of(
        ledger: &UsageLedger,
        now: Timestamp,
        allowance: Duration,
        live: Option<&[NodeId]>,
    ) -> Self {
        let mut horizon = now;
        let mut gaps = ledger.gaps.clone();
        let open = || ledger.boots.iter().filter(|boot| boot.closed_at.is_none());
        let silence = Self::SILENCE.saturating_add(allowance);
        for boot in open() {
            if boot.sent_until.saturating_add(silence) >= now {
                horizon = horizon.min(boot.sent_until);
            } else {
                gaps.push(UsageGap {
                    from: boot.sent_until,
                    until: now,
                    boot: Some(boot.id),
                });
            }
        }
        for gap in &mut gaps {
            gap.from = gap.from.saturating_sub(allowance);
            gap.until = gap.until.saturating_add(allowance);
        }
        let counts = |node: &NodeId| open().any(|boot| boot.node == Some(*node));
        let uncounted = live.unwrap_or_default().iter().filter(|node| !counts(node));
        let counted_since = ledger.counted_since;
        Self {
            counted_since: counted_since.map(|since| since.saturating_add(allowance)),
            complete_until: counted_since.map(|_| horizon.saturating_sub(allowance)),
            gaps: merged(gaps),
            uncounted: uncounted.copied().collect(),
            is_unknown: live.is_none(),
        }
    }

    /// Returns whether every use between `from` and `until` was counted and sent.
    #[must_use]
    pub fn proves(&self, from: Timestamp, until: Timestamp) -> bool {
        let within = |(since, upto)| since <= from && until <= upto;
        let counted = self
            .counted_since
            .zip(self.complete_until)
            .is_some_and(within);
        let touches = |gap: &UsageGap| gap.from <= until && from <= gap.until;
        counted && !self.is_unknown && self.uncounted.is_empty() && !self.gaps.iter().any(touches)
    }
}

/// Merges gaps that overlap. A merged gap names a boot only if all its parts do.
fn merged(mut gaps: Vec<UsageGap>) -> Vec<UsageGap> {
    gaps.sort_unstable();
    let mut merged: Vec<UsageGap> = Vec::new();
    for gap in gaps {
        match merged.last_mut().filter(|last| gap.from <= last.until) {
            Some(last) => {
                last.until = last.until.max(gap.until);
                last.boot = last.boot.filter(|boot| gap.boot == Some(*boot));
            }
            None => merged.push(gap),
        }
    }
    merged
}
