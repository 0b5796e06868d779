//! Sends counted uses to the usage store, in batches that count once.
//!
//! Invariants:
//!
//! - A batch that may have been added is sent again unchanged, until the store answers. Its uses are sent in another
//!   boot only after the store refused the batch, which it does only if it has not added it.
//! - `sent_until` of a boot moves forward only with a batch after which nothing waits.
//! - Uses that were dropped leave a gap: the boot is replaced.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_lock::Mutex as AsyncMutex;

use crate::core::id::KeyId;
use crate::core::time::Timestamp;
use crate::core::usage::day::{Day, DayCounts};
use crate::core::usage::outcome::UseOutcome;
use crate::core::view::Epoch;
use crate::entropy::{Entropy, EntropyError};
use crate::observe::WithSources;
use crate::replica::CountedUses;
use crate::store::usage::{
    Boot, BootClosing, BootId, BootOpening, KeyUses, LostBoot, UsageBatch, UsageError,
    UsagePruning, UsageStore,
};
use crate::store::{NodeId, StoreError};

/// 10,000 keys per batch: a store takes a fraction of a second, and other writers wait no longer.
const BATCH: usize = 10_000;
/// 2^20 keys and days may wait for a store that is away, some 400 MB. Further uses are dropped.
const MOST_WAITING: usize = 1 << 20;
/// 1 minute: a node without uses sends an empty batch this often, so that reports know that it had none.
const IDLE: Duration = Duration::from_secs(60);
/// 1 day: a batch that was first sent longer ago may have been added to a boot that was removed since.
const TOO_OLD: Duration = Duration::from_secs(24 * 60 * 60);
/// 30 days: late batches of a closed boot are recognised for as long.
pub(super) const CLOSED_BOOTS: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// 3 refusals in a row: the store then contradicts itself.
const REFUSALS: u32 = 3;

/// The result of a flush.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct UsageFlush {
    /// The number of sent rows, one per key and day with uses since the last flush.
    pub sent: usize,
    /// The number of uses that were dropped since the last flush, because too many waited for the store.
    pub dropped: u64,
}

/// The error of a flush of counted uses. The uses stay in memory, and the next flush sends them.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The usage store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The usage store refused several new boots in a row.
    #[error("usage store refuses every batch")]
    Refused(#[source] UsageError),
    /// No randomness was available for the id of a boot.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// The state of the process at a flush.
pub(super) struct FlushContext<'a> {
    /// A time before the uses were taken, by the clock that dated them.
    pub(super) now: Timestamp,
    pub(super) node: Option<NodeId>,
    /// The epoch of the key store. `None` while the process does not know its position there.
    pub(super) history: Option<Epoch>,
    pub(super) entropy: &'a dyn Entropy,
}

#[derive(Debug)]
pub(in crate::keyward) struct UsageSender {
    store: Arc<dyn UsageStore>,
    state: AsyncMutex<SenderState>,
}

#[derive(Clone, Copy, Debug)]
struct OpenBoot {
    id: BootId,
    node: Option<NodeId>,
    /// The time from which uses may be missing if the store does not know the boot.
    counted_from: Timestamp,
    sequence: u64,
    sent_until: Timestamp,
}

#[derive(Debug)]
struct SentBatch {
    batch: UsageBatch,
    first_sent: Timestamp,
}

#[derive(Debug)]
struct SenderState {
    boot: Option<OpenBoot>,
    /// An opening that may have reached the store. It is repeated unchanged.
    opening: Option<BootOpening>,
    lost: Option<LostBoot>,
    /// The time since which uses were dropped.
    dropped_since: Option<Timestamp>,
    unsent_since: Timestamp,
    in_flight: Option<SentBatch>,
    waiting: BTreeMap<(KeyId, Day), KeyUses>,
    /// The last uses of the last batch. The next batch goes on after them, so that no key waits for all others.
    sent_upto: Option<(KeyId, Day)>,
    dropped: u64,
    /// The last known epoch of the key store.
    history: Option<Epoch>,
    /// True once the process has closed its last boot. It opens another one only for uses that it counts later.
    is_ended: bool,
    looked_for_silent: Option<Timestamp>,
}

impl UsageSender {
    /// Creates the sender of a process that has counted since `started`.
    pub(in crate::keyward) fn new(store: Arc<dyn UsageStore>, started: Timestamp) -> Self {
        Self {
            store,
            state: AsyncMutex::new(SenderState {
                boot: None,
                opening: None,
                lost: None,
                dropped_since: None,
                unsent_since: started,
                in_flight: None,
                waiting: BTreeMap::new(),
                sent_upto: None,
                dropped: 0,
                history: None,
                is_ended: false,
                looked_for_silent: None,
            }),
        }
    }

    /// Sends the uses that `take` returns, after those that wait from earlier calls. `take` also returns the number of
    /// uses that were dropped. A call that was dropped can be repeated.
    pub(super) async fn flush(
        &self,
        context: &FlushContext<'_>,
        take: impl FnOnce() -> (Vec<CountedUses>, u64) + Send,
    ) -> Result<UsageFlush, FlushError> {
        let mut state = self.state.lock().await;
        state.absorb(take());
        state.history = context.history.or(state.history);
        if state.history.is_none() || (state.is_ended && state.waiting.is_empty()) {
            return Ok(UsageFlush::default());
        }
        state.is_ended = false;
        let (mut sent, mut refusals) = (0, 0);
        loop {
            let boot = self.open(&mut state, context).await?;
            if state.in_flight.is_none() && !state.begin_batch(&boot, context.now) {
                break;
            }
            let Some(SentBatch { batch, .. }) = &state.in_flight else {
                continue;
            };
            let rows = batch.uses.len();
            match self.store.add(batch.clone()).await {
                Ok(()) => {
                    sent += rows;
                    state.confirm();
                }
                Err(UsageError::Store(error)) => return Err(error.into()),
                Err(refusal) => {
                    tracing::warn!(error = %WithSources(&refusal), "usage store refused a batch, opening a new boot");
                    state.refused(&refusal, context.now);
                    refusals += 1;
                    if refusals == REFUSALS {
                        return Err(FlushError::Refused(refusal));
                    }
                }
            }
        }
        self.follow_node(&mut state, context).await?;
        let dropped = std::mem::take(&mut state.dropped);
        Ok(UsageFlush { sent, dropped })
    }

    /// Closes the boot after a flush. The process has no more uses to send.
    pub(super) async fn close(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let Some(boot) = state.boot else {
            return Ok(());
        };
        let closing = BootClosing {
            boot: boot.id,
            sequence: boot.sequence,
            at: now,
            is_complete: state.in_flight.is_none()
                && state.waiting.is_empty()
                && state.dropped_since.is_none(),
        };
        let _was_open = self.store.close_boot(closing).await?;
        state.is_ended = closing.is_complete;
        // If the process goes on, its uses until the next boot are not those of any boot.
        state.lose(boot.sent_until);
        Ok(())
    }

    /// Closes the boots of processes that have sent nothing for a day, unless `live` returns their nodes. Also removes boots
    /// that were closed long ago. Works at most once an hour.
    pub(super) async fn close_silent<L>(
        &self,
        now: Timestamp,
        live: impl FnOnce() -> L + Send,
    ) -> Result<(), StoreError>
    where
        L: Future<Output = Result<Option<Vec<NodeId>>, StoreError>> + Send,
    {
        {
            let mut state = self.state.lock().await;
            let due = state
                .looked_for_silent
                .is_none_or(|last| now >= last.saturating_add(Duration::from_secs(60 * 60)));
            if !due {
                return Ok(());
            }
            state.looked_for_silent = Some(now);
        }
        let live = live().await?.unwrap_or_default();
        let is_live = |boot: &Boot| boot.node.is_some_and(|node| live.contains(&node));
        for boot in self.store.ledger().await?.boots {
            let is_silent = boot.sent_until.saturating_add(TOO_OLD) < now;
            if boot.closed_at.is_none() && is_silent && !is_live(&boot) {
                let closing = BootClosing {
                    boot: boot.id,
                    sequence: boot.sequence,
                    at: now,
                    is_complete: false,
                };
                if self.store.close_boot(closing).await? {
                    tracing::warn!(boot = %boot.id, since = %boot.sent_until, "a process stopped without sending its uses");
                }
            }
        }
        let old_boots = UsagePruning {
            before: Day::FIRST,
            closed_before: now.saturating_sub(CLOSED_BOOTS),
            limit: NonZeroUsize::MIN,
        };
        self.store.prune(old_boots).await.map(drop)
    }

    /// Opens another boot once everything is sent, if the process registered as another node.
    async fn follow_node(
        &self,
        state: &mut SenderState,
        context: &FlushContext<'_>,
    ) -> Result<(), FlushError> {
        let is_other = |boot: &OpenBoot| context.node.is_some() && boot.node != context.node;
        let Some(boot) = state.boot.filter(is_other) else {
            return Ok(());
        };
        // The next boot is opened first. Otherwise, if the process ended in between, nothing would show that it counted.
        state.boot = None;
        if let Err(error) = self.open(state, context).await {
            state.boot = Some(boot);
            return Err(error);
        }
        let closing = BootClosing {
            boot: boot.id,
            sequence: boot.sequence,
            at: context.now,
            is_complete: true,
        };
        let _was_open = self.store.close_boot(closing).await?;
        Ok(())
    }

    /// Returns the open boot, and opens one if there is none.
    async fn open(
        &self,
        state: &mut SenderState,
        context: &FlushContext<'_>,
    ) -> Result<OpenBoot, FlushError> {
        if let Some(boot) = state.boot {
            return Ok(boot);
        }
        let opening = match state.opening {
            Some(opening) if opening.replaces == state.lost => opening,
            _ => BootOpening {
                boot: random_id(context.entropy)?,
                node: context.node,
                history: context.history.or(state.history).unwrap_or(Epoch::UNKNOWN),
                at: context.now,
                unsent_since: state.unsent_since,
                replaces: state.lost,
            },
        };
        state.opening = Some(opening);
        self.store.open_boot(opening).await?;
        let boot = OpenBoot {
            id: opening.boot,
            node: opening.node,
            counted_from: (opening.replaces).map_or(opening.unsent_since, |lost| {
                lost.since.min(opening.unsent_since)
            }),
            sequence: 0,
            sent_until: opening.unsent_since,
        };
        (state.opening, state.lost, state.boot) = (None, None, Some(boot));
        Ok(boot)
    }
}

impl SenderState {
    /// Adds uses to those that wait.
    fn absorb(&mut self, (uses, mut dropped): (Vec<CountedUses>, u64)) {
        for used in uses {
            let at = used.last;
            let of = (used.key, Day::of(at));
            if self.waiting.len() >= MOST_WAITING && !self.waiting.contains_key(&of) {
                dropped = dropped.saturating_add(used.count);
                continue;
            }
            let Some(outcome) = UseOutcome::of_code(used.outcome) else {
                continue;
            };
            let mut counts = DayCounts::default();
            counts.add(Day::hour_of(at), outcome, used.count);
            self.wait(KeyUses {
                key: used.key,
                tenant: used.tenant,
                day: of.1,
                counts,
                last: (outcome == UseOutcome::Accepted).then_some(at),
            });
        }
        if dropped > 0 {
            self.dropped = self.dropped.saturating_add(dropped);
            self.dropped_since.get_or_insert(self.unsent_since);
        }
    }

    fn wait(&mut self, uses: KeyUses) {
        match self.waiting.get_mut(&(uses.key, uses.day)) {
            Some(own) => {
                own.counts.merge(&uses.counts);
                own.last = own.last.max(uses.last);
            }
            None => drop(self.waiting.insert((uses.key, uses.day), uses)),
        }
    }

    /// Puts the next batch in flight. Returns false if there is nothing to send.
    fn begin_batch(&mut self, boot: &OpenBoot, now: Timestamp) -> bool {
        if let Some(since) = self.dropped_since.take() {
            self.lose(since);
            return true;
        }
        if self.waiting.is_empty() && now < boot.sent_until.saturating_add(IDLE) {
            return false;
        }
        let after = self.sent_upto.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.waiting.range((after, Bound::Unbounded));
        let mut next: Vec<_> = later.take(BATCH).map(|(of, _)| *of).collect();
        if next.is_empty() {
            next.extend(self.waiting.keys().take(BATCH));
        }
        self.sent_upto = next.last().copied();
        let uses = next
            .iter()
            .filter_map(|of| self.waiting.remove(of))
            .collect();
        let sent_until = match self.waiting.is_empty() {
            true => now.max(boot.sent_until),
            false => boot.sent_until,
        };
        self.in_flight = Some(SentBatch {
            batch: UsageBatch {
                boot: boot.id,
                sequence: boot.sequence + 1,
                sent_until,
                uses,
            },
            first_sent: now,
        });
        true
    }

    /// Takes in that the batch in flight was added.
    fn confirm(&mut self) {
        if let Some((SentBatch { batch, .. }, boot)) = self.in_flight.take().zip(self.boot.as_mut())
        {
            boot.sequence = batch.sequence;
            boot.sent_until = batch.sent_until;
            self.unsent_since = batch.sent_until;
        }
    }

    /// Takes in that the store refused the batch in flight, and so has not added it.
    fn refused(&mut self, refusal: &UsageError, now: Timestamp) {
        let Some((SentBatch { batch, first_sent }, boot)) = self.in_flight.take().zip(self.boot)
        else {
            return;
        };
        let is_unknown = matches!(refusal, UsageError::UnknownBoot { .. });
        if is_unknown && first_sent.saturating_add(TOO_OLD) < now {
            let uses = batch.uses.iter().map(|uses| uses.counts.total());
            self.dropped = uses.fold(self.dropped, u64::saturating_add);
        } else {
            batch.uses.into_iter().for_each(|uses| self.wait(uses));
        }
        // A store that does not know the boot may have lost all of its batches.
        self.lose(match is_unknown {
            true => boot.counted_from,
            false => boot.sent_until,
        });
    }

    /// Ends the use of the boot. Uses since `since` may be missing.
    fn lose(&mut self, since: Timestamp) {
        if let Some(boot) = self.boot.take() {
            let earlier = self.lost.map_or(since, |lost| lost.since.min(since));
            self.lost = Some(LostBoot {
                boot: boot.id,
                since: earlier,
            });
        }
    }
}

fn random_id(entropy: &dyn Entropy) -> Result<BootId, EntropyError> {
    let mut id = [0; 16];
    entropy.fill(&mut id)?;
    Ok(BootId::from_u128(u128::from_le_bytes(id)))
}
