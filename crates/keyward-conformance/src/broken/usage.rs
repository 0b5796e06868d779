//! Usage stores that each break one clause of the [`UsageStore`] contract.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::pause;
use keyward::store::StoreError;
use keyward::store::usage::{
    Boot, BootClosing, BootId, BootOpening, KeyDay, KeyUses, LastUse, LastUseQuery, LedgerChange,
    UsageBatch, UsageError, UsageLedger, UsagePruning, UsageStore,
};
use keyward::usage::{Day, DayCounts, UseOutcome};
use keyward::{KeyId, TenantId, Timestamp};

defects! {
    /// One deliberate mistake of a usage store.
    enum UsageDefect;

    /// Caches the first counts that it reads, and returns them for every later read.
    CountsFromCache => "a_batch_is_in_every_later_read",
    /// Caches the first ledger that it reads, and returns it for every later read.
    LedgerFromCache => "a_batch_is_in_every_later_read",
    /// Replaces the counts of a day instead of adding to them.
    ReplacesCounts => "counts_of_batches_add_up",
    /// Stores counts as signed numbers, so that they stop at half of the largest count.
    KeepsSignedCounts => "sums_stop_at_the_largest_count",
    /// Adds a repeated batch again.
    AddsRepeatedBatches => "a_repeated_batch_is_added_once",
    /// Refuses a repeated batch as out of order.
    RefusesRepeatedBatches => "a_repeated_batch_is_added_once",
    /// Refuses a repeated batch if its boot was closed since.
    RefusesRepeatsAfterClosing => "a_repeated_batch_is_added_once",
    /// Remembers the numbers of batches, but not their boots.
    SharesNumbers => "a_repeated_batch_is_added_once",
    /// Adds a batch although earlier batches are missing.
    AcceptsMissingBatches => "a_batch_out_of_order_is_refused",
    /// Takes every older batch for a repeated one, and returns `Ok`.
    IgnoresOldBatches => "a_batch_out_of_order_is_refused",
    /// Adds an older batch.
    AddsOldBatches => "a_batch_out_of_order_is_refused",
    /// Writes the counts of a batch before it refuses the batch.
    RefusalsWriteCounts => "a_batch_out_of_order_is_refused",
    /// Opens a boot for a batch without one.
    OpensUnknownBoots => "a_batch_of_an_unknown_boot_is_refused",
    /// Adds the batches of closed boots.
    AddsToClosedBoots => "a_batch_of_a_closed_boot_is_refused",
    /// Refuses a batch of a closed boot as one of an unknown boot.
    TakesClosedForUnknown => "a_batch_of_a_closed_boot_is_refused",
    /// Replaces a boot that is opened again, so that it begins at number zero.
    OpensAgain => "opening_a_boot_twice_changes_nothing",
    /// Replaces a boot that is opened again if it was closed.
    ReopensClosedBoots => "opening_a_boot_twice_changes_nothing",
    /// Closes the replaced boot even if the new boot was opened before.
    ReplacesAgain => "opening_a_boot_twice_changes_nothing",
    /// Leaves a replaced boot open.
    ReplacesWithoutClosing => "a_replaced_boot_leaves_a_gap",
    /// Records no gap of a replaced boot.
    ReplacesWithoutGap => "a_replaced_boot_leaves_a_gap",
    /// Records no gap of a replaced boot that is unknown or closed.
    ReplacesOnlyOpenBoots => "a_replaced_boot_leaves_a_gap",
    /// Leaves the boots of an earlier history open.
    NewHistoryKeepsBoots => "a_new_history_closes_every_boot",
    /// Records no gap of the boots that a backup lacks.
    NewHistoryKnowsAllBoots => "a_new_history_closes_every_boot",
    /// Keeps the epoch of the first boot, so that each later boot begins a new history.
    KeepsFirstHistory => "a_new_history_closes_every_boot",
    /// Sets `counted_since` to the start of a new history.
    NewHistoryRestartsCounting => "a_new_history_closes_every_boot",
    /// Records no gap if a boot is closed.
    ClosesWithoutGap => "an_unclean_close_leaves_a_gap",
    /// Records a gap even if a boot has sent all uses.
    CleanCloseLeavesGap => "an_unclean_close_leaves_a_gap",
    /// Records no gap if a boot is closed at a time before the end of its last batch.
    DropsEmptyGaps => "an_unclean_close_leaves_a_gap",
    /// Closes a boot at any number.
    ClosesAtAnyNumber => "closing_at_another_number_changes_nothing",
    /// Closes a closed boot again, at a later time.
    ClosesTwice => "closing_at_another_number_changes_nothing",
    /// Returns true for a call that closed nothing.
    ReportsEveryClose => "closing_at_another_number_changes_nothing",
    /// Returns gaps in the order in which they were recorded.
    GapsNewestLast => "the_ledger_follows_the_rules",
    /// Returns boots in the reverse order of their ids.
    BootsOutOfOrder => "the_ledger_follows_the_rules",
    /// Leaves the time until which a boot has sent its uses as it is.
    KeepsSentUntil => "a_batch_moves_its_boot_forward",
    /// Moves the time until which a boot has sent its uses back to that of the last batch.
    SentUntilMovesBack => "a_batch_moves_its_boot_forward",
    /// Ignores batches without uses.
    IgnoresEmptyBatches => "a_batch_moves_its_boot_forward",
    /// Replaces the last use of a key with that of the last batch.
    LastBatchWins => "the_last_use_never_moves_back",
    /// Keeps the first day that it received, although a later batch contains an earlier day.
    KeepsFirstDay => "the_last_use_never_moves_back",
    /// Replaces the first day of a key with that of the last batch.
    FirstDayMovesForward => "the_last_use_never_moves_back",
    /// Takes the start of a day with refusals for a use.
    RefusalsAreUses => "refusals_are_no_last_use",
    /// Orders keys by the time of their last use, although the order of one day is that of ids.
    OrdersByTime => "keys_come_in_the_order_of_their_last_use",
    /// Reverses the order of days for `newest_first`, but not that of ids.
    ReversesDaysOnly => "keys_come_in_the_order_of_their_last_use",
    /// Lists a key on each day on which it was last used at some time.
    KeepsOldPlaces => "keys_come_in_the_order_of_their_last_use",
    /// Starts a page with the day after that of the previous page.
    PageSkipsRestOfDay => "pages_of_last_uses_neither_repeat_nor_skip",
    /// Starts a page with the last key of the previous page.
    PageRepeatsAKey => "pages_of_last_uses_neither_repeat_nor_skip",
    /// Starts a page behind the key, although it is before the key with `newest_first`.
    PageIgnoresDirection => "pages_of_last_uses_neither_repeat_nor_skip",
    /// Returns an empty page if the last key of the previous page is gone.
    PageNeedsThePreviousKey => "pages_of_last_uses_neither_repeat_nor_skip",
    /// Returns one key more than the limit.
    PageExceedsLimit => "pages_of_last_uses_neither_repeat_nor_skip",
    /// Lists the keys of all tenants.
    IgnoresTenants => "last_uses_stay_within_the_tenant",
    /// Lists the keys of descendants too.
    ListsDescendants => "last_uses_stay_within_the_tenant",
    /// Leaves keys of the last day out of a list.
    ListEndsBeforeTheLastDay => "last_uses_stay_within_their_days",
    /// Leaves keys of the first day out of a list.
    ListStartsAfterTheFirstDay => "last_uses_stay_within_their_days",
    /// Returns days in the order in which the call names the keys.
    DaysInOrderOfTheCall => "days_come_in_the_order_of_keys",
    /// Returns the days of all keys in the order of days.
    DaysBeforeKeys => "days_come_in_the_order_of_keys",
    /// Leaves out the last day of the range.
    DaysEndBeforeTheLast => "days_stay_within_their_range",
    /// Returns the days of all keys if the call names none.
    NoKeysAreAllKeys => "days_stay_within_their_range",
    /// Removes the counts of the first day that must stay.
    PrunesOneDayMore => "pruning_removes_old_days",
    /// Removes all old days in one call.
    PrunesBeyondLimit => "pruning_removes_old_days",
    /// Removes last uses on old days.
    PrunesLastUses => "pruning_removes_old_days",
    /// Returns the number of days that are left.
    PruneReportsTheRest => "pruning_removes_old_days",
    /// Removes counts, but leaves `counted_since` as it is.
    PruneKeepsCountedSince => "pruning_raises_counted_since",
    /// Raises `counted_since` only in the last call.
    PruneRaisesItLast => "pruning_raises_counted_since",
    /// Lowers `counted_since` if it is later than the day.
    PruneLowersCountedSince => "pruning_raises_counted_since",
    /// Sets `counted_since` although no boot was opened.
    PruneStartsCounting => "pruning_raises_counted_since",
    /// Keeps all boots.
    PruneKeepsBoots => "pruning_removes_closed_boots_and_ended_gaps",
    /// Removes open boots too, if they were opened before the time.
    PruneRemovesOpenBoots => "pruning_removes_closed_boots_and_ended_gaps",
    /// Keeps all gaps.
    PruneKeepsGaps => "pruning_removes_closed_boots_and_ended_gaps",
    /// Removes gaps that began before the day, although they ended later.
    PruneRemovesLongGaps => "pruning_removes_closed_boots_and_ended_gaps",
    /// Forgets the counts of a key, but not its last use.
    ForgetsNoLastUse => "forgetting_removes_all_about_a_key",
    /// Forgets the last use of a key, but not its counts.
    ForgetsNoCounts => "forgetting_removes_all_about_a_key",
    /// Forgets only the first key.
    ForgetsOneKey => "forgetting_removes_all_about_a_key",
    /// Forgets every key if the call names none.
    ForgetsAllForNone => "forgetting_removes_all_about_a_key",
    /// Ignores later uses of a forgotten key.
    IgnoresForgottenKeys => "a_forgotten_key_is_counted_again",
    /// Forgets the number of the last batch of each boot with the key.
    ForgetsNumbers => "a_forgotten_key_is_counted_again",
    /// Drops the counts of outcomes that it does not know.
    DropsUnknownOutcomes => "outcomes_of_later_versions_come_back",
    /// Compares only half of the bits of boot ids.
    KeepsHalfOfBootIds => "ids_and_tenants_come_back_unchanged",
    /// Stores days in 16 bits.
    KeepsSmallDays => "ids_and_tenants_come_back_unchanged",
    /// Stores only the first 32 characters of tenants.
    CutsTenants => "ids_and_tenants_come_back_unchanged",
    /// Stores the times of last uses in whole seconds.
    KeepsWholeSeconds => "ids_and_tenants_come_back_unchanged",
    /// Adds only the first 4,096 rows of a batch.
    CutsBatches => "a_large_batch_is_added_completely",
    /// Writes the counts and the boot in two steps.
    WritesCountsFirst => "a_dropped_batch_is_all_or_nothing",
    /// Writes the boot and the counts in two steps.
    WritesBootFirst => "a_dropped_batch_is_all_or_nothing",
    /// Writes counts and last uses in two steps.
    WritesLastUsesLater => "a_dropped_batch_is_all_or_nothing",
    /// Writes the boots and the gaps of an opening in two steps.
    OpensInTwoSteps => "a_dropped_opening_is_all_or_nothing",
    /// Reads the counts of a day and writes the sum in two steps.
    ReadsThenAdds => "concurrent_batches_add_up",
    /// Checks the number of a batch and adds the batch in two steps.
    AdmitsThenAdds => "concurrent_copies_of_a_batch_are_added_once",
    /// Checks the number of a boot and closes the boot in two steps.
    ComparesThenCloses => "a_batch_and_the_end_of_its_boot_exclude_each_other",
    /// Reads the ledger, and writes it with a new boot in two steps.
    ReadsThenOpens => "concurrent_openings_both_take_effect",
}

/// 4,096 rows: the most that a store with [`UsageDefect::CutsBatches`] adds. The check adds 6,000.
const KEPT_ROWS: usize = 4_096;

/// An in-memory usage store with one [`UsageDefect`].
#[derive(Debug)]
pub struct BrokenUsage {
    defect: UsageDefect,
    state: Mutex<UsageState>,
}

#[derive(Clone, Debug, Default)]
struct UsageState {
    ledger: UsageLedger,
    days: BTreeMap<(KeyId, Day), DayCounts>,
    last_uses: BTreeMap<KeyId, LastUse>,
    /// The keys with a last use, by tenant and day.
    places: BTreeSet<(TenantId, Day, KeyId)>,
    numbers: BTreeSet<u64>,
    forgotten: BTreeSet<KeyId>,
    read_days: Option<Vec<KeyDay>>,
    read_ledger: Option<UsageLedger>,
}

impl UsageState {
    fn boot(&self, found: impl Fn(BootId) -> bool) -> Option<Boot> {
        let mut boots = self.ledger.boots.iter();
        boots.find(|boot| found(boot.id)).copied()
    }

    fn put_boot(&mut self, boot: Boot) {
        self.ledger.apply(LedgerChange {
            boots: vec![boot],
            ..LedgerChange::default()
        });
    }

    fn remove_places(&mut self, key: KeyId) {
        self.places.retain(|(.., own)| *own != key);
    }
}

fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::clamped(at.as_micros() / 1_000_000 * 1_000_000)
}

/// Returns the counts of the known outcomes, each at most `most`.
fn known_counts(counts: &DayCounts, most: u64) -> DayCounts {
    let mut known = DayCounts::default();
    for outcome in UseOutcome::ALL {
        for (hour, count) in (0..).zip(counts.hours(*outcome)) {
            known.add(hour, *outcome, count.min(most));
        }
    }
    known
}

impl BrokenUsage {
    /// Creates an empty store with the given defect.
    #[must_use]
    pub fn new(defect: UsageDefect) -> Self {
        let state = Mutex::default();
        Self { defect, state }
    }

    fn is(&self, defect: UsageDefect) -> bool {
        self.defect == defect
    }

    fn state(&self) -> MutexGuard<'_, UsageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pause_if(&self, defect: UsageDefect) {
        if self.is(defect) {
            pause().await;
        }
    }

    fn same_boot(&self, one: BootId, other: BootId) -> bool {
        let half = |id: BootId| id.to_u128() & u128::from(u64::MAX);
        match self.defect {
            UsageDefect::KeepsHalfOfBootIds => half(one) == half(other),
            _ => one == other,
        }
    }

    /// Returns the boot after a batch. `None` if the batch changes nothing.
    fn admit(&self, batch: &UsageBatch) -> Result<Option<Boot>, UsageError> {
        let state = self.state();
        let id = batch.boot;
        let unknown = UsageError::UnknownBoot { boot: id };
        let boot = match state.boot(|own| self.same_boot(own, id)) {
            Some(boot) => boot,
            None if self.is(UsageDefect::OpensUnknownBoots) => Boot {
                id,
                node: None,
                opened_at: batch.sent_until,
                sequence: 0,
                sent_until: batch.sent_until,
                closed_at: None,
            },
            None => return Err(unknown),
        };
        let sequence = boot.sequence;
        let found = batch.sequence;
        let mut next = Boot {
            sequence: found,
            sent_until: boot.sent_until.max(batch.sent_until),
            ..boot
        };
        let is_closed = boot.closed_at.is_some();
        let out_of_order = UsageError::OutOfOrder {
            boot: id,
            sequence,
            found,
        };
        let admitted = boot.admit(batch);
        match (self.defect, &admitted) {
            (UsageDefect::AddsRepeatedBatches, Ok(None)) => Ok(Some(boot)),
            (UsageDefect::RefusesRepeatedBatches, Ok(None)) => Err(out_of_order),
            (UsageDefect::RefusesRepeatsAfterClosing, Ok(None)) if is_closed => {
                Err(UsageError::Closed { boot: id, sequence })
            }
            (UsageDefect::SharesNumbers, Ok(Some(_))) if state.numbers.contains(&found) => Ok(None),
            (UsageDefect::AcceptsMissingBatches, Err(UsageError::OutOfOrder { .. }))
                if found > sequence =>
            {
                Ok(Some(next))
            }
            (UsageDefect::IgnoresOldBatches, Err(UsageError::OutOfOrder { .. }))
                if found < sequence =>
            {
                Ok(None)
            }
            (UsageDefect::AddsOldBatches, Err(UsageError::OutOfOrder { .. }))
                if found < sequence =>
            {
                Ok(Some(boot))
            }
            (UsageDefect::AddsToClosedBoots, Err(UsageError::Closed { .. })) => Ok(Some(next)),
            (UsageDefect::TakesClosedForUnknown, Err(UsageError::Closed { .. })) => Err(unknown),
            (UsageDefect::KeepsSentUntil, Ok(Some(_))) => {
                next.sent_until = boot.sent_until;
                Ok(Some(next))
            }
            (UsageDefect::SentUntilMovesBack, Ok(Some(_))) => {
                next.sent_until = batch.sent_until;
                Ok(Some(next))
            }
            (UsageDefect::IgnoresEmptyBatches, Ok(Some(_))) if batch.uses.is_empty() => Ok(None),
            _ => admitted,
        }
    }

    fn spoil(&self, batch: &mut UsageBatch) {
        let forgotten = self.state().forgotten.clone();
        for uses in &mut batch.uses {
            match self.defect {
                UsageDefect::DropsUnknownOutcomes => {
                    uses.counts = known_counts(&uses.counts, u64::MAX);
                }
                UsageDefect::RefusalsAreUses => {
                    uses.last = uses.last.or(Some(uses.day.start()));
                }
                UsageDefect::KeepsSmallDays => {
                    let small = Day::from_number(uses.day.number() & 0xffff);
                    uses.day = small.unwrap_or(uses.day);
                }
                UsageDefect::CutsTenants => {
                    let path: String = uses.tenant.as_str().chars().take(32).collect();
                    uses.tenant = TenantId::new(path).unwrap_or(uses.tenant.clone());
                }
                UsageDefect::KeepsWholeSeconds => uses.last = uses.last.map(whole_seconds),
                _ => {}
            }
        }
        match self.defect {
            UsageDefect::CutsBatches => batch.uses.truncate(KEPT_ROWS),
            UsageDefect::IgnoresForgottenKeys => {
                batch.uses.retain(|uses| !forgotten.contains(&uses.key));
            }
            _ => {}
        }
    }

    /// Returns the counts of a day after a batch.
    fn sum(&self, uses: &KeyUses) -> DayCounts {
        let before = self.state().days.get(&(uses.key, uses.day)).cloned();
        let mut sum = before.unwrap_or_default();
        if self.is(UsageDefect::ReplacesCounts) {
            sum = DayCounts::default();
        }
        sum.merge(&uses.counts);
        match self.defect {
            UsageDefect::KeepsSignedCounts => known_counts(&sum, i64::MAX as u64),
            _ => sum,
        }
    }

    fn put_counts(&self, uses: &KeyUses, counts: DayCounts) {
        let mut state = self.state();
        state.days.insert((uses.key, uses.day), counts);
    }

    fn put_last_use(&self, uses: &KeyUses) {
        let Some(at) = uses.last else { return };
        let mut state = self.state();
        let own = LastUse {
            first_day: uses.day,
            at,
        };
        let known = state.last_uses.get(&uses.key).copied();
        let mut last = known.map_or(own, |known| known.merged(own));
        match (self.defect, known) {
            (UsageDefect::LastBatchWins, _) => last.at = at,
            (UsageDefect::KeepsFirstDay, Some(known)) => last.first_day = known.first_day,
            (UsageDefect::FirstDayMovesForward, _) => last.first_day = uses.day,
            _ => {}
        }
        state.last_uses.insert(uses.key, last);
        if !self.is(UsageDefect::KeepsOldPlaces) {
            state.remove_places(uses.key);
        }
        let place = (uses.tenant.clone(), Day::of(last.at), uses.key);
        state.places.insert(place);
    }

    fn put_uses(&self, batch: &UsageBatch) {
        for uses in &batch.uses {
            self.put_counts(uses, self.sum(uses));
            self.put_last_use(uses);
        }
    }

    /// Returns the change that opens a boot.
    fn opened(&self, opening: &BootOpening) -> Option<LedgerChange> {
        let state = self.state();
        let ledger = &state.ledger;
        if self.is(UsageDefect::KeepsHalfOfBootIds)
            && state
                .boot(|own| self.same_boot(own, opening.boot))
                .is_some()
        {
            return None;
        }
        let mut change = match ledger.open(opening) {
            Some(change) => change,
            None => {
                let own = state.boot(|own| own == opening.boot)?;
                let mut without = ledger.clone();
                without.boots.retain(|boot| boot.id != opening.boot);
                let mut change = without.open(opening)?;
                match self.defect {
                    UsageDefect::OpensAgain => {}
                    UsageDefect::ReopensClosedBoots if own.closed_at.is_some() => {}
                    UsageDefect::ReplacesAgain => {
                        change.head = None;
                        change.boots.retain(|boot| boot.id != opening.boot);
                    }
                    _ => return None,
                }
                return Some(change);
            }
        };
        let is_new = ledger.history.is_some_and(|known| known != opening.history);
        let closes_none = change.boots.len() == 1;
        let lost = opening.replaces.map(|lost| lost.boot);
        match self.defect {
            UsageDefect::ReplacesWithoutClosing => {
                change.boots.retain(|boot| Some(boot.id) != lost);
            }
            UsageDefect::ReplacesWithoutGap => {
                change.gaps.retain(|gap| lost.is_none() || gap.boot != lost);
            }
            UsageDefect::ReplacesOnlyOpenBoots if closes_none => {
                change.gaps.retain(|gap| lost.is_none() || gap.boot != lost);
            }
            UsageDefect::NewHistoryKeepsBoots if is_new => {
                change.boots.retain(|boot| boot.id == opening.boot);
            }
            UsageDefect::NewHistoryKnowsAllBoots => change.gaps.retain(|gap| gap.boot.is_some()),
            UsageDefect::KeepsFirstHistory if is_new => change.head = None,
            UsageDefect::NewHistoryRestartsCounting if is_new => {
                change.head = Some((opening.history, opening.at));
            }
            _ => {}
        }
        Some(change)
    }

    /// Applies a change of the ledger.
    fn apply(&self, change: LedgerChange) {
        let mut state = self.state();
        let before = state.ledger.gaps.clone();
        let new = change.gaps.clone();
        state.ledger.apply(change);
        if self.is(UsageDefect::GapsNewestLast) {
            state.ledger.gaps = [before, new].concat();
        }
    }

    /// Returns the change that closes a boot. `None` if the store closes nothing.
    fn closed(&self, mut closing: BootClosing) -> Option<LedgerChange> {
        let mut ledger = self.state().ledger.clone();
        for boot in &mut ledger.boots {
            match self.defect {
                UsageDefect::ClosesAtAnyNumber if boot.id == closing.boot => {
                    closing.sequence = boot.sequence;
                }
                UsageDefect::ClosesTwice => boot.closed_at = None,
                _ => {}
            }
        }
        if self.is(UsageDefect::CleanCloseLeavesGap) {
            closing.is_complete = false;
        }
        let mut change = ledger.close(&closing)?;
        match self.defect {
            UsageDefect::ClosesWithoutGap => change.gaps.clear(),
            UsageDefect::DropsEmptyGaps => change.gaps.retain(|gap| gap.from < gap.until),
            _ => {}
        }
        Some(change)
    }

    /// Changes the ledger as a pruning does. `is_last` if the pruning leaves no old day.
    fn prune_ledger(&self, pruning: &UsagePruning, is_last: bool) {
        let mut state = self.state();
        let before = state.ledger.clone();
        let since = pruning.before.start();
        state.ledger.prune(since, pruning.closed_before);
        let pruned = &mut state.ledger;
        match self.defect {
            UsageDefect::PruneKeepsCountedSince => pruned.counted_since = before.counted_since,
            UsageDefect::PruneRaisesItLast if !is_last => {
                pruned.counted_since = before.counted_since;
            }
            UsageDefect::PruneLowersCountedSince => {
                pruned.counted_since = before.counted_since.map(|_| since);
            }
            UsageDefect::PruneStartsCounting => {
                pruned.counted_since = pruned.counted_since.or(Some(since));
            }
            UsageDefect::PruneKeepsBoots => pruned.boots = before.boots,
            UsageDefect::PruneRemovesOpenBoots => {
                let closed_before = pruning.closed_before;
                pruned.boots.retain(|boot| boot.opened_at >= closed_before);
            }
            UsageDefect::PruneKeepsGaps => pruned.gaps = before.gaps,
            UsageDefect::PruneRemovesLongGaps => pruned.gaps.retain(|gap| gap.from >= since),
            _ => {}
        }
    }
}

#[async_trait]
impl UsageStore for BrokenUsage {
    async fn open_boot(&self, opening: BootOpening) -> Result<(), StoreError> {
        let Some(mut change) = self.opened(&opening) else {
            return Ok(());
        };
        if self.is(UsageDefect::OpensInTwoSteps) {
            let boots = std::mem::take(&mut change.boots);
            self.apply(LedgerChange {
                boots,
                ..LedgerChange::default()
            });
            pause().await;
        }
        let mut read = self.state().ledger.clone();
        self.pause_if(UsageDefect::ReadsThenOpens).await;
        if self.is(UsageDefect::ReadsThenOpens) {
            read.apply(change);
            self.state().ledger = read;
        } else {
            self.apply(change);
        }
        Ok(())
    }

    async fn add(&self, mut batch: UsageBatch) -> Result<(), UsageError> {
        self.spoil(&mut batch);
        if self.is(UsageDefect::RefusalsWriteCounts) && self.admit(&batch).is_err() {
            self.put_uses(&batch);
        }
        let Some(boot) = self.admit(&batch)? else {
            return Ok(());
        };
        self.pause_if(UsageDefect::AdmitsThenAdds).await;
        if !self.is(UsageDefect::WritesCountsFirst) {
            self.state().put_boot(boot);
        }
        self.pause_if(UsageDefect::WritesBootFirst).await;
        match self.defect {
            UsageDefect::ReadsThenAdds => {
                let uses = batch.uses.iter();
                let sums: Vec<_> = uses.map(|uses| self.sum(uses)).collect();
                pause().await;
                for (uses, sum) in batch.uses.iter().zip(sums) {
                    self.put_counts(uses, sum);
                    self.put_last_use(uses);
                }
            }
            UsageDefect::WritesLastUsesLater => {
                let uses = batch.uses.iter();
                uses.for_each(|uses| self.put_counts(uses, self.sum(uses)));
                pause().await;
                batch.uses.iter().for_each(|uses| self.put_last_use(uses));
            }
            _ => self.put_uses(&batch),
        }
        self.state().numbers.insert(batch.sequence);
        if self.is(UsageDefect::WritesCountsFirst) {
            pause().await;
            self.state().put_boot(boot);
        }
        Ok(())
    }

    async fn close_boot(&self, closing: BootClosing) -> Result<bool, StoreError> {
        let change = self.closed(closing);
        self.pause_if(UsageDefect::ComparesThenCloses).await;
        let closes = change.is_some();
        self.apply(change.unwrap_or_default());
        Ok(closes || self.is(UsageDefect::ReportsEveryClose))
    }

    async fn ledger(&self) -> Result<UsageLedger, StoreError> {
        let mut state = self.state();
        let mut ledger = state.ledger.clone();
        match self.defect {
            UsageDefect::LedgerFromCache => {
                ledger = state.read_ledger.get_or_insert(ledger).clone();
            }
            UsageDefect::BootsOutOfOrder => ledger.boots.reverse(),
            _ => {}
        }
        Ok(ledger)
    }

    async fn days(&self, keys: &[KeyId], from: Day, to: Day) -> Result<Vec<KeyDay>, StoreError> {
        let mut state = self.state();
        let is_any = keys.is_empty() && self.is(UsageDefect::NoKeysAreAllKeys);
        let is_within = |day: Day| match self.defect {
            UsageDefect::DaysEndBeforeTheLast => from <= day && day < to,
            _ => from <= day && day <= to,
        };
        let named: BTreeSet<_> = keys.iter().collect();
        let rows = state.days.iter();
        let rows =
            rows.filter(|((key, day), _)| is_within(*day) && (is_any || named.contains(key)));
        let mut rows: Vec<_> = rows
            .map(|((key, day), counts)| KeyDay {
                key: *key,
                day: *day,
                counts: counts.clone(),
            })
            .collect();
        match self.defect {
            UsageDefect::DaysInOrderOfTheCall => {
                rows.sort_by_key(|row| keys.iter().position(|key| *key == row.key));
            }
            UsageDefect::DaysBeforeKeys => rows.sort_by_key(|row| (row.day, row.key)),
            UsageDefect::CountsFromCache => rows = state.read_days.get_or_insert(rows).clone(),
            _ => {}
        }
        Ok(rows)
    }

    async fn last_uses(&self, keys: &[KeyId]) -> Result<BTreeMap<KeyId, LastUse>, StoreError> {
        let state = self.state();
        let last = |key: &KeyId| Some((*key, *state.last_uses.get(key)?));
        Ok(keys.iter().filter_map(last).collect())
    }

    async fn by_last_use(&self, query: &LastUseQuery) -> Result<Vec<(KeyId, LastUse)>, StoreError> {
        let state = self.state();
        let is_own = |tenant: &TenantId| match self.defect {
            UsageDefect::IgnoresTenants => true,
            UsageDefect::ListsDescendants => {
                let below = tenant.as_str().strip_prefix(query.tenant.as_str());
                below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            _ => *tenant == query.tenant,
        };
        let is_within = |day: Day| match self.defect {
            UsageDefect::ListEndsBeforeTheLastDay => query.from <= day && day < query.to,
            UsageDefect::ListStartsAfterTheFirstDay => query.from < day && day <= query.to,
            _ => query.from <= day && day <= query.to,
        };
        let is_later = |place: (Day, KeyId)| {
            let Some(after) = query.after else {
                return true;
            };
            let is_descending = query.newest_first;
            match self.defect {
                UsageDefect::PageSkipsRestOfDay if is_descending => place.0 < after.0,
                UsageDefect::PageSkipsRestOfDay => place.0 > after.0,
                UsageDefect::PageRepeatsAKey if is_descending => place <= after,
                UsageDefect::PageRepeatsAKey => place >= after,
                UsageDefect::PageIgnoresDirection => place > after,
                _ if is_descending => place < after,
                _ => place > after,
            }
        };
        if let Some((day, key)) = query.after
            && self.is(UsageDefect::PageNeedsThePreviousKey)
            && !state.places.contains(&(query.tenant.clone(), day, key))
        {
            return Ok(Vec::new());
        }
        let places = state.places.iter();
        let places = places.filter(|(tenant, day, _)| is_own(tenant) && is_within(*day));
        let places = places.filter(|(_, day, key)| is_later((*day, *key)));
        let rows = places.filter_map(|(_, day, key)| {
            let last = *state.last_uses.get(key)?;
            Some((*day, *key, last))
        });
        let mut rows: Vec<_> = rows.collect();
        rows.sort_by_key(|(day, key, _)| (*day, *key));
        if self.is(UsageDefect::OrdersByTime) {
            rows.sort_by_key(|(.., last)| last.at);
        }
        if query.newest_first {
            rows.reverse();
            if self.is(UsageDefect::ReversesDaysOnly) {
                rows.sort_by_key(|(day, key, _)| (std::cmp::Reverse(*day), *key));
            }
        }
        let more = usize::from(self.is(UsageDefect::PageExceedsLimit));
        let rows = rows.into_iter().map(|(_, key, last)| (key, last));
        Ok(rows.take(query.limit.get().saturating_add(more)).collect())
    }

    async fn prune(&self, pruning: UsagePruning) -> Result<usize, StoreError> {
        let is_old = |day: Day| match self.defect {
            UsageDefect::PrunesOneDayMore => day <= pruning.before,
            _ => day < pruning.before,
        };
        let limit = match self.defect {
            UsageDefect::PrunesBeyondLimit => usize::MAX,
            _ => pruning.limit.get(),
        };
        let places: Vec<_> = self.state().days.keys().copied().collect();
        let old: Vec<_> = places.into_iter().filter(|(_, day)| is_old(*day)).collect();
        let removed = old.len().min(limit);
        self.prune_ledger(&pruning, removed == old.len());
        let mut state = self.state();
        for place in &old[..removed] {
            state.days.remove(place);
        }
        if self.is(UsageDefect::PrunesLastUses) {
            state.last_uses.retain(|_, last| !is_old(Day::of(last.at)));
        }
        Ok(match self.defect {
            UsageDefect::PruneReportsTheRest => old.len() - removed,
            _ => removed,
        })
    }

    async fn forget_keys(&self, keys: &[KeyId]) -> Result<(), StoreError> {
        let mut state = self.state();
        let mut keys = keys.to_vec();
        match self.defect {
            UsageDefect::ForgetsOneKey => keys.truncate(1),
            UsageDefect::ForgetsAllForNone if keys.is_empty() => {
                keys = state.last_uses.keys().copied().collect();
            }
            UsageDefect::ForgetsNumbers => {
                state.ledger.boots.iter_mut().for_each(|b| b.sequence = 0);
            }
            _ => {}
        }
        let keys: BTreeSet<_> = keys.into_iter().collect();
        if !self.is(UsageDefect::ForgetsNoCounts) {
            state.days.retain(|(key, _), _| !keys.contains(key));
        }
        if !self.is(UsageDefect::ForgetsNoLastUse) {
            state.last_uses.retain(|key, _| !keys.contains(key));
            state.places.retain(|(.., key)| !keys.contains(key));
        }
        state.forgotten.extend(keys);
        Ok(())
    }
}
