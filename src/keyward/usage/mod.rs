//! Usage: sends what this process counted to the usage store, and answers questions about keys from that store.

mod sender;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) use self::sender::UsageSender;
use self::sender::{CLOSED_BOOTS, FlushContext};
pub use self::sender::{FlushError, UsageFlush};
use super::Keyward;
use super::follow::bounded;
use super::outcomes::KeyList;
use crate::core::actor::Actor;
use crate::core::id::KeyId;
use crate::core::info::KeyInfo;
use crate::core::kind::ErrorKind;
use crate::core::query::{KeyPosition, KeyQuery};
use crate::core::time::Timestamp;
use crate::core::usage::day::Day;
use crate::core::usage::outcome::UseOutcome;
use crate::core::view::Epoch;
use crate::manager::CommandError;
use crate::observe::WithSources;
use crate::store::StoreError;
use crate::store::usage::{Completeness, KeyDay, LastUse, UsagePruning, UsageStore};

/// 10,000 counted days are removed in one transaction.
const PRUNED_AT_ONCE: std::num::NonZeroUsize =
    std::num::NonZeroUsize::new(10_000).expect("the number is not zero");

/// The error of a question about usage.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageQueryError {
    /// This [`Keyward`] has no usage store.
    #[error("this process has no usage store: name one when it is built")]
    NoStore,
    /// The keys could not be read, or the actor may not look at them.
    #[error(transparent)]
    Keys(#[from] CommandError),
    /// The usage store or the registry failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl UsageQueryError {
    /// Returns the stable code of the cause, such as `no-usage-store`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoStore => "no-usage-store",
            Self::Keys(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }

    /// Returns the kind of the cause, which determines the HTTP status.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NoStore => ErrorKind::Internal,
            Self::Keys(error) => error.kind(),
            Self::Store(error) => error.error_kind(),
        }
    }

    /// Returns the text that a client may see.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::NoStore => "the service has an internal error".to_owned(),
            Self::Keys(error) => error.public_message(),
            Self::Store(error) => error.public_message().to_owned(),
        }
    }
}

/// The usage of one key over some days.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyUsage {
    /// The key.
    pub key: KeyId,
    /// The first and the last use of the key. `None` if no use was counted.
    pub last: Option<LastUse>,
    /// The counts of the days with uses, oldest first.
    pub days: Vec<KeyDay>,
    /// The periods that were counted completely.
    pub completeness: Completeness,
}

impl KeyUsage {
    /// Returns the number of uses with an outcome.
    #[must_use]
    pub fn count(&self, outcome: UseOutcome) -> u64 {
        let of_days = self.days.iter().map(|day| day.counts.count(outcome));
        of_days.fold(0, u64::saturating_add)
    }
}

/// A page of keys with their last uses.
#[derive(Clone, Debug, Default)]
pub struct UsedKeyList {
    /// The keys.
    pub list: KeyList,
    /// The first and the last use of each key on the page that was used.
    pub last_uses: BTreeMap<KeyId, LastUse>,
    /// The periods that were counted completely.
    pub completeness: Completeness,
}

/// A page of keys that were not used since an instant.
#[derive(Clone, Debug, Default)]
pub struct UnusedKeys {
    /// The keys that existed at the instant, and of which no use was counted since.
    pub keys: Vec<KeyInfo>,
    /// The last use of each of these keys that was used before.
    pub last_uses: BTreeMap<KeyId, LastUse>,
    /// The position at which the next page starts. `None` on the last page. A page can be empty although more follow.
    pub next: Option<KeyPosition>,
    /// True if every process counted from the instant until `completeness.complete_until`, so that the keys are proven to
    /// be unused in this period.
    pub is_proven: bool,
    /// The periods that were counted completely.
    pub completeness: Completeness,
}

/// Usage of keys; see [`KeywardBuilder::usage`](crate::KeywardBuilder::usage).
impl Keyward {
    /// Sends the uses that this process counted since the last call to the usage store. Does nothing without a usage
    /// store.
    ///
    /// A follower calls this every [10 seconds](crate::node::FollowOptions::DEFAULT_FLUSH). Without a follower, call it
    /// as often as that: a process that is killed loses the uses since the last call. A call that was dropped, or that
    /// failed, loses nothing. The next call sends the rest, and no use counts twice.
    ///
    /// # Errors
    ///
    /// [`FlushError`].
    pub async fn flush_usage(&self) -> Result<UsageFlush, FlushError> {
        let Some(sender) = &self.inner.usage else {
            return Ok(UsageFlush::default());
        };
        let (_, now) = self.inner.time.judged();
        let context = FlushContext {
            now,
            node: self.node(),
            history: self.inner.replica.epoch(),
            entropy: &*self.inner.entropy,
        };
        let take = || self.inner.replica.take_uses();
        let flushed = sender.flush(&context, take).await?;
        if flushed.dropped > 0 {
            let dropped = flushed.dropped;
            tracing::error!(
                dropped,
                "uses of keys were dropped, because too many waited for the usage store"
            );
        }
        let live = || self.inner.replica.live_nodes(now);
        if let Err(error) = sender.close_silent(now, live).await {
            tracing::debug!(error = %WithSources(&error), "cannot close the boots of silent processes");
        }
        Ok(flushed)
    }

    /// Opens the boot of this process. A failure is logged, and the first flush opens the boot.
    pub(super) async fn announce_usage(&self) {
        if self.inner.usage.is_none() {
            return;
        }
        match bounded(self.flush_usage()).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::warn!(error = %WithSources(&error), "cannot announce this process to the usage store");
            }
            None => tracing::warn!("announcing this process to the usage store timed out"),
        }
    }

    /// Sends the last uses, and closes the boot of this process. A failure is logged.
    pub(super) async fn end_usage(&self) {
        let Some(sender) = &self.inner.usage else {
            return;
        };
        let end = async {
            self.flush_usage().await?;
            let (_, now) = self.inner.time.judged();
            sender.close(now).await.map_err(FlushError::from)
        };
        match bounded(end).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(error = %WithSources(&error), "cannot send the last uses of keys before shutdown");
            }
            None => tracing::warn!("sending the last uses of keys before shutdown timed out"),
        }
    }

    /// Returns the usage of one key from the day `from` to the day `to`, inclusive.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`]; [`Denial::NotFound`](crate::Denial::NotFound) if the actor reaches no such key, or may
    /// not look at it.
    pub async fn key_usage(
        &self,
        actor: &Actor,
        key: KeyId,
        from: Day,
        to: Day,
    ) -> Result<KeyUsage, UsageQueryError> {
        let store = self.usage_store()?;
        self.key(actor, key).await?;
        // The ledger is read before the counts. So everything that the ledger calls complete is in the counts.
        let completeness = self.usage_completeness().await?;
        let (last, days) = (
            store.last_uses(&[key]).await?,
            store.days(&[key], from, to).await?,
        );
        // Someone may have removed counts since.
        let start = store.ledger().await?.counted_since;
        let start = start.map(|since| since.saturating_add(self.inner.time.allowance()));
        Ok(KeyUsage {
            key,
            last: last.get(&key).copied(),
            days,
            completeness: Completeness {
                counted_since: completeness.counted_since.max(start),
                ..completeness
            },
        })
    }

    /// Lists keys as [`list`](Self::list) does, with their last uses.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn list_used(
        &self,
        actor: &Actor,
        query: &KeyQuery,
    ) -> Result<UsedKeyList, UsageQueryError> {
        let store = self.usage_store()?;
        let completeness = self.usage_completeness().await?;
        let list = self.list(actor, query).await?;
        let keys: Vec<_> = list.keys.iter().map(|info| info.facts.id).collect();
        Ok(UsedKeyList {
            last_uses: store.last_uses(&keys).await?,
            list,
            completeness,
        })
    }

    /// Lists the keys that a query selects, that were created before `since`, and of which no use was counted since then.
    ///
    /// The uses after [`complete_until`](Completeness::complete_until) may be missing. A use counts as later by the
    /// [allowance between clocks](crate::KeywardBuilder::clock_allowance), so a key that was used shortly before `since`
    /// is not listed.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn unused(
        &self,
        actor: &Actor,
        query: &KeyQuery,
        since: Timestamp,
    ) -> Result<UnusedKeys, UsageQueryError> {
        let UsedKeyList {
            list,
            last_uses,
            completeness,
        } = self.list_used(actor, query).await?;
        let allowance = self.inner.time.allowance();
        let was_used = |key: &KeyId| {
            let last = last_uses.get(key);
            last.is_some_and(|last| last.at.saturating_add(allowance) >= since)
        };
        let is_unused = |info: &KeyInfo| info.facts.created.at < since && !was_used(&info.facts.id);
        let keys: Vec<_> = list.keys.into_iter().filter(is_unused).collect();
        let last_uses = keys
            .iter()
            .filter_map(|info| Some((info.facts.id, *last_uses.get(&info.facts.id)?)))
            .collect();
        let until = completeness.complete_until.filter(|until| since < *until);
        Ok(UnusedKeys {
            keys,
            last_uses,
            next: list.next,
            is_proven: until.is_some_and(|until| completeness.proves(since, until)),
            completeness,
        })
    }

    /// Returns the periods for which the usage store has the uses of every process.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn usage_completeness(&self) -> Result<Completeness, UsageQueryError> {
        let store = self.usage_store()?;
        let (_, now) = self.inner.time.judged();
        // A node that registers later has no uses before the ledger is read.
        let live = self.inner.replica.live_nodes(now).await?;
        let ledger = store.ledger().await?;
        let clocks = (now, self.inner.time.allowance());
        let history = self.inner.replica.epoch().unwrap_or(Epoch::UNKNOWN);
        Ok(Completeness::of(&ledger, clocks, history, live.as_deref()))
    }

    /// Removes the counts of the days before `before`, and returns the number of removed days of keys. The times of last
    /// uses stay.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`]. A call that failed can be repeated.
    pub async fn prune_usage(&self, before: Day) -> Result<usize, UsageQueryError> {
        let store = self.usage_store()?;
        let (_, now) = self.inner.time.judged();
        let pruning = UsagePruning {
            before,
            closed_before: now.saturating_sub(CLOSED_BOOTS),
            limit: PRUNED_AT_ONCE,
        };
        let mut removed = 0_usize;
        loop {
            match store.prune(pruning).await? {
                0 => return Ok(removed),
                count => removed = removed.saturating_add(count),
            }
        }
    }

    fn usage_store(&self) -> Result<&Arc<dyn UsageStore>, UsageQueryError> {
        (self.inner.usage_store.as_ref()).ok_or(UsageQueryError::NoStore)
    }
}
