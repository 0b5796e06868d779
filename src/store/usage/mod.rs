//! The usage contract: durable counts of the uses of keys, added exactly once.
//!
//! Each process counts in memory, and sends what it counted in batches. A process opens a [`Boot`] before its first
//! batch. The batches of a boot have consecutive numbers, and one is in flight at a time. The store applies only the
//! next batch, together with its number. So neither a lost reply nor a late batch counts a use twice.
//!
//! The [`UsageLedger`] records which uses may be missing: how far each boot has sent its uses, and the gaps of the boots
//! that ended otherwise than by a clean stop.
//!
//! A store applies no policy, reads no clock and draws no randomness. To write a store, implement [`UsageStore`] and run
//! the suite of the crate `keyward-conformance`.

mod completeness;
mod ledger;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;

pub use self::completeness::Completeness;
pub use self::ledger::{
    Boot, BootClosing, BootId, BootOpening, LedgerChange, LostBoot, UsageError, UsageGap,
    UsageLedger,
};
use super::StoreError;
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::usage::day::{Day, DayCounts};

/// The uses of one key on one day, which no earlier batch contains.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyUses {
    /// The key.
    pub key: KeyId,
    /// The tenant of the key.
    pub tenant: TenantId,
    /// The day, in UTC.
    pub day: Day,
    /// The counts to add to those of the day.
    pub counts: DayCounts,
    /// The last time at which the key was accepted, on this day. `None` if it was only refused.
    pub last: Option<Timestamp>,
}

/// The uses that a process counted since its last batch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UsageBatch {
    /// The boot that counted the uses.
    pub boot: BootId,
    /// The number of the batch. The first batch of a boot has number 1.
    pub sequence: u64,
    /// The time until which the batches of the boot contain every use, including this batch.
    pub sent_until: Timestamp,
    /// The uses, ordered by key and day. No key has two rows of the same day.
    pub uses: Vec<KeyUses>,
}

/// The counts of one key on one day.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyDay {
    /// The key.
    pub key: KeyId,
    /// The day, in UTC.
    pub day: Day,
    /// The counts of the day.
    pub counts: DayCounts,
}

/// The first and the last use of a key. Only uses at which the key was accepted count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LastUse {
    /// The day of the first use.
    pub first_day: Day,
    /// The time of the last use.
    pub at: Timestamp,
}

/// Selects keys of one tenant by the day of their last use. A key that was never used is not selected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LastUseQuery {
    /// The tenant. Its descendants are not selected.
    pub tenant: TenantId,
    /// The first day of the last use.
    pub from: Day,
    /// The last day of the last use, inclusive.
    pub to: Day,
    /// True if the most recently used keys come first. Keys of one day are in the order of their ids, or in the reverse
    /// order.
    pub newest_first: bool,
    /// The day and the key after which the page starts. `None` for the first page.
    pub after: Option<(Day, KeyId)>,
    /// The largest number of keys on the page.
    pub limit: NonZeroUsize,
}

/// The rows that a call of [`UsageStore::prune`] removes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UsagePruning {
    /// Removes the counts of the days before this one, and raises
    /// [`counted_since`](UsageLedger::counted_since) to the start of this day. Gaps that ended by then are removed.
    /// The days of last uses stay.
    pub before: Day,
    /// Removes boots that were closed before this time. Their late batches are then refused as unknown.
    pub closed_before: Timestamp,
    /// The largest number of counted days to remove. The caller calls again until nothing was removed.
    pub limit: NonZeroUsize,
}

/// Durable storage for the uses of keys.
///
/// - Every method can be called concurrently from any number of tasks and processes.
/// - If the caller drops a future, its operation takes effect completely or not at all.
/// - Every read includes the writes that returned before the read began.
/// - On return a write is as durable as the store documents.
#[async_trait]
pub trait UsageStore: fmt::Debug + Send + Sync + 'static {
    /// Opens a boot: applies [`UsageLedger::open`]. Does nothing if the boot exists already, so a call can be repeated
    /// after a lost reply.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the boot may or may not have been opened.
    async fn open_boot(&self, opening: BootOpening) -> Result<(), StoreError>;

    /// Adds a batch, if it is the next one of its boot: see [`Boot::admit`].
    ///
    /// - In one transaction, the counts are added and the boot takes the number and the
    ///   [`sent_until`](UsageBatch::sent_until) of the batch.
    /// - The first day of a key never moves forward, and the time of its last use never moves back.
    /// - Adding the last batch again returns `Ok` and changes nothing.
    ///
    /// # Errors
    ///
    /// [`UsageError`]. After `Indeterminate` the batch may or may not have been added. After any other error nothing was
    /// written.
    async fn add(&self, batch: UsageBatch) -> Result<(), UsageError>;

    /// Closes a boot: applies [`UsageLedger::close`]. Returns false, and changes nothing, if the boot does not exist, is
    /// closed already, or is at another number.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the boot may or may not have been closed.
    async fn close_boot(&self, closing: BootClosing) -> Result<bool, StoreError>;

    /// Reads the ledger, from one snapshot.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn ledger(&self) -> Result<UsageLedger, StoreError>;

    /// Reads the counts of keys from the day `from` to the day `to`, inclusive, in the order of keys and days. Leaves out
    /// days without a use.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn days(&self, keys: &[KeyId], from: Day, to: Day) -> Result<Vec<KeyDay>, StoreError>;

    /// Reads the first and last uses of keys. Leaves out keys that were never accepted.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn last_uses(&self, keys: &[KeyId]) -> Result<BTreeMap<KeyId, LastUse>, StoreError>;

    /// Lists keys by the day of their last use; see [`LastUseQuery`]. The store looks at about as many rows as it
    /// returns.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn by_last_use(&self, query: &LastUseQuery) -> Result<Vec<(KeyId, LastUse)>, StoreError>;

    /// Removes old counts, and returns the number of removed counted days; see [`UsagePruning`]. The ledger changes in
    /// the same transaction, or before it, as [`UsageLedger::prune`] says.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` rows may or may not have been removed.
    async fn prune(&self, pruning: UsagePruning) -> Result<usize, StoreError>;

    /// Removes all that the store has about keys, for example because their owner must be forgotten, or because a row is
    /// damaged. Later batches with uses of these keys are added as for any other key. Nothing shows afterwards that these
    /// keys were used before.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` rows may or may not have been removed.
    async fn forget_keys(&self, keys: &[KeyId]) -> Result<(), StoreError>;
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<U: UsageStore + ?Sized> UsageStore for Arc<U> {
    async fn open_boot(&self, opening: BootOpening) -> Result<(), StoreError> {
        (**self).open_boot(opening).await
    }

    async fn add(&self, batch: UsageBatch) -> Result<(), UsageError> {
        (**self).add(batch).await
    }

    async fn close_boot(&self, closing: BootClosing) -> Result<bool, StoreError> {
        (**self).close_boot(closing).await
    }

    async fn ledger(&self) -> Result<UsageLedger, StoreError> {
        (**self).ledger().await
    }

    async fn days(&self, keys: &[KeyId], from: Day, to: Day) -> Result<Vec<KeyDay>, StoreError> {
        (**self).days(keys, from, to).await
    }

    async fn last_uses(&self, keys: &[KeyId]) -> Result<BTreeMap<KeyId, LastUse>, StoreError> {
        (**self).last_uses(keys).await
    }

    async fn by_last_use(&self, query: &LastUseQuery) -> Result<Vec<(KeyId, LastUse)>, StoreError> {
        (**self).by_last_use(query).await
    }

    async fn prune(&self, pruning: UsagePruning) -> Result<usize, StoreError> {
        (**self).prune(pruning).await
    }

    async fn forget_keys(&self, keys: &[KeyId]) -> Result<(), StoreError> {
        (**self).forget_keys(keys).await
    }
}

impl LastUse {
    /// Returns the earliest first day and the latest last use of both.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        Self {
            first_day: self.first_day.min(other.first_day),
            at: self.at.max(other.at),
        }
    }
}
