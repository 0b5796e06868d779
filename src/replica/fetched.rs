//! The uses of keys that a verification read from the store, because the index does not have them: new keys, and all keys
//! of a node without an index.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::index::CountedUses;
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::usage::day::Day;
use crate::core::usage::outcome::UseOutcome;

/// 2^18: the largest number of counts, about 50 MB.
const MOST_COUNTS: usize = 1 << 18;

/// Counts of uses, by key, outcome and hour.
#[derive(Debug, Default)]
pub(super) struct FetchedUses(Mutex<FetchedCounts>);

#[derive(Debug, Default)]
struct FetchedCounts {
    by_hour: HashMap<(KeyId, UseOutcome, Day, u8), CountedUses>,
    dropped: u64,
}

impl FetchedUses {
    pub(super) fn count(
        &self,
        (key, tenant): (KeyId, &TenantId),
        outcome: UseOutcome,
        now: Timestamp,
    ) {
        let mut counts = self.counts();
        let of = (key, outcome, Day::of(now), Day::hour_of(now));
        if counts.by_hour.len() >= MOST_COUNTS && !counts.by_hour.contains_key(&of) {
            counts.dropped = counts.dropped.saturating_add(1);
            return;
        }
        let uses = counts.by_hour.entry(of).or_insert_with(|| CountedUses {
            key,
            tenant: tenant.clone(),
            outcome: outcome.code(),
            count: 0,
            last: now,
        });
        uses.count = uses.count.saturating_add(1);
        uses.last = now.max(uses.last);
    }

    /// Takes all counts, and the number of uses that were not counted because there were too many.
    pub(super) fn take(&self) -> (impl Iterator<Item = CountedUses> + use<>, u64) {
        let taken = std::mem::take(&mut *self.counts());
        (taken.by_hour.into_values(), taken.dropped)
    }

    fn counts(&self) -> MutexGuard<'_, FetchedCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
