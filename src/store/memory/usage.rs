//! The usage of keys in memory: the reference implementation of [`UsageStore`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{MutexGuard, PoisonError};

use async_trait::async_trait;

use super::MemoryStore;
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::core::usage::day::{Day, DayCounts};
use crate::store::StoreError;
use crate::store::usage::{
    Boot, BootClosing, BootOpening, KeyDay, KeyUses, LastUse, LastUseQuery, LedgerChange,
    UsageBatch, UsageError, UsageLedger, UsagePruning, UsageStore,
};

/// The uses of a store's keys. Has a lock of its own, so batches do not block loads and commits.
#[derive(Debug, Default)]
pub(super) struct MemoryUsage {
    ledger: UsageLedger,
    days: BTreeMap<(KeyId, Day), DayCounts>,
    /// The keys of `days`, oldest day first.
    counted: BTreeSet<(Day, KeyId)>,
    accepted: BTreeMap<KeyId, (TenantId, LastUse)>,
    /// The keys of each tenant, by the day of their last use.
    by_last_use: HashMap<TenantId, BTreeSet<(Day, KeyId)>>,
}

impl MemoryUsage {
    /// Returns the boot of a batch after the batch, or `None` if the batch was added already.
    fn admit(&self, batch: &UsageBatch) -> Result<Option<Boot>, UsageError> {
        let boots = &self.ledger.boots;
        match boots.binary_search_by_key(&batch.boot, |boot| boot.id) {
            Ok(place) => boots[place].admit(batch),
            Err(_) => Err(UsageError::UnknownBoot { boot: batch.boot }),
        }
    }

    fn add(&mut self, uses: KeyUses) {
        let KeyUses {
            key,
            tenant,
            day,
            counts,
            last,
        } = uses;
        if counts.total() > 0 {
            self.counted.insert((day, key));
            self.days.entry((key, day)).or_default().merge(&counts);
        }
        if let Some(at) = last {
            let mut own = LastUse { first_day: day, at };
            if let Some((_, known)) = self.remove_last_use(key) {
                own = own.merged(known);
            }
            let of_tenant = self.by_last_use.entry(tenant.clone()).or_default();
            of_tenant.insert((Day::of(own.at), key));
            self.accepted.insert(key, (tenant, own));
        }
    }

    fn remove_last_use(&mut self, key: KeyId) -> Option<(TenantId, LastUse)> {
        let (tenant, last) = self.accepted.remove(&key)?;
        if let Some(of_tenant) = self.by_last_use.get_mut(&tenant) {
            of_tenant.remove(&(Day::of(last.at), key));
            if of_tenant.is_empty() {
                self.by_last_use.remove(&tenant);
            }
        }
        Some((tenant, last))
    }

    fn days_of(&self, key: KeyId, from: Day, to: Day) -> impl Iterator<Item = (Day, &DayCounts)> {
        // A range that ends before its start panics.
        let to = to.max(from);
        let days = self.days.range((key, from)..=(key, to));
        days.map(|((_, day), counts)| (*day, counts))
    }

    fn by_last_use(&self, query: &LastUseQuery) -> Vec<(KeyId, LastUse)> {
        let first = (query.from, KeyId::from_u128(0));
        let last = (query.to, KeyId::from_u128(u128::MAX));
        let (mut from, mut to) = (Bound::Included(first), Bound::Included(last));
        match query.after {
            Some(place) if query.newest_first && place <= last => to = Bound::Excluded(place),
            Some(place) if !query.newest_first && place >= first => from = Bound::Excluded(place),
            _ => {}
        }
        let of_tenant = self.by_last_use.get(&query.tenant);
        let Some(of_tenant) = of_tenant.filter(|_| !is_empty(&from, &to)) else {
            return Vec::new();
        };
        let keys = of_tenant.range((from, to)).map(|(_, key)| *key);
        let found = |key| Some((key, self.accepted.get(&key)?.1));
        let limit = query.limit.get();
        match query.newest_first {
            true => keys.rev().filter_map(found).take(limit).collect(),
            false => keys.filter_map(found).take(limit).collect(),
        }
    }

    fn prune(&mut self, pruning: &UsagePruning) -> usize {
        let before = pruning.before;
        self.ledger.prune(before.start(), pruning.closed_before);
        let old = self.counted.iter().take_while(|(day, _)| *day < before);
        let old: Vec<_> = old.take(pruning.limit.get()).copied().collect();
        for (day, key) in &old {
            self.counted.remove(&(*day, *key));
            self.days.remove(&(*key, *day));
        }
        old.len()
    }

    fn forget(&mut self, key: KeyId) {
        let days = self.days_of(key, Day::FIRST, Day::LAST);
        let days: Vec<_> = days.map(|(day, _)| day).collect();
        for day in days {
            self.counted.remove(&(day, key));
            self.days.remove(&(key, day));
        }
        self.remove_last_use(key);
    }
}

/// Returns whether a range contains no value. [`BTreeSet::range`] panics for some of these ranges.
fn is_empty<T: Ord>(from: &Bound<T>, to: &Bound<T>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (
            Bound::Included(from) | Bound::Excluded(from),
            Bound::Included(to) | Bound::Excluded(to),
        ) => from >= to,
        _ => false,
    }
}

impl MemoryStore {
    fn usage(&self) -> MutexGuard<'_, MemoryUsage> {
        // A poisoned lock is safe to use: no change below panics between its first write and its last one.
        let usage = self.inner.usage.lock();
        usage.unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl UsageStore for MemoryStore {
    async fn open_boot(&self, opening: BootOpening) -> Result<(), StoreError> {
        let mut usage = self.usage();
        if let Some(change) = usage.ledger.open(&opening) {
            usage.ledger.apply(change);
        }
        Ok(())
    }

    async fn add(&self, batch: UsageBatch) -> Result<(), UsageError> {
        let mut usage = self.usage();
        if let Some(boot) = usage.admit(&batch)? {
            usage.ledger.apply(LedgerChange {
                boots: vec![boot],
                ..LedgerChange::default()
            });
            batch.uses.into_iter().for_each(|uses| usage.add(uses));
        }
        Ok(())
    }

    async fn close_boot(&self, closing: BootClosing) -> Result<bool, StoreError> {
        let mut usage = self.usage();
        let change = usage.ledger.close(&closing);
        let closes = change.is_some();
        usage.ledger.apply(change.unwrap_or_default());
        Ok(closes)
    }

    async fn ledger(&self) -> Result<UsageLedger, StoreError> {
        Ok(self.usage().ledger.clone())
    }

    async fn days(&self, keys: &[KeyId], from: Day, to: Day) -> Result<Vec<KeyDay>, StoreError> {
        let keys: BTreeSet<_> = keys.iter().copied().filter(|_| from <= to).collect();
        let usage = self.usage();
        let days = keys.into_iter().flat_map(|key| {
            let days = usage.days_of(key, from, to);
            days.map(move |(day, counts)| KeyDay {
                key,
                day,
                counts: counts.clone(),
            })
        });
        Ok(days.collect())
    }

    async fn last_uses(&self, keys: &[KeyId]) -> Result<BTreeMap<KeyId, LastUse>, StoreError> {
        let usage = self.usage();
        let last = |key: &KeyId| Some((*key, usage.accepted.get(key)?.1));
        Ok(keys.iter().filter_map(last).collect())
    }

    async fn by_last_use(&self, query: &LastUseQuery) -> Result<Vec<(KeyId, LastUse)>, StoreError> {
        Ok(self.usage().by_last_use(query))
    }

    async fn prune(&self, pruning: UsagePruning) -> Result<usize, StoreError> {
        Ok(self.usage().prune(&pruning))
    }

    async fn forget_keys(&self, keys: &[KeyId]) -> Result<(), StoreError> {
        let mut usage = self.usage();
        keys.iter().for_each(|key| usage.forget(*key));
        Ok(())
    }
}
