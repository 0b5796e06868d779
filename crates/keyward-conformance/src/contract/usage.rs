//! Clauses of [`UsageStore`], which keeps the uses of keys. The expected results come from [`UsageOracle`], which keeps
//! counts in plain maps and applies the public rules to its ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::ClauseViolation;
use super::fixtures::{ClauseResult, PolledFuture, STEPS, id, tenant};
use keyward::store::usage::{
    Boot, BootClosing, BootId, BootOpening, KeyDay, KeyUses, LastUse, LastUseQuery, LedgerChange,
    LostBoot, UsageBatch, UsageError, UsageLedger, UsagePruning, UsageStore,
};
use keyward::store::{Epoch, NodeId, StoreError};
use keyward::usage::{Day, DayCounts, UseOutcome};
use keyward::{KeyId, TenantId, Timestamp};

/// 6,000 keys with at least six columns each: more values than a statement of SQLite may have.
const MANY: u64 = 6_000;

/// 100 reads of the ledger: if it changes during each of them, the check fails.
const MAX_READS: usize = 100;

/// The counts of days, and the last uses.
type Counted = (Vec<KeyDay>, BTreeMap<KeyId, LastUse>);

/// The expected state of a usage store.
#[derive(Clone, Debug, Default)]
struct UsageOracle {
    ledger: UsageLedger,
    days: BTreeMap<(KeyId, Day), DayCounts>,
    last_uses: BTreeMap<KeyId, LastUse>,
    /// Every key with a use so far, also if the key was forgotten since.
    tenants: BTreeMap<KeyId, TenantId>,
}

impl UsageOracle {
    fn boot(&self, id: BootId) -> Option<&Boot> {
        self.ledger.boots.iter().find(|boot| boot.id == id)
    }

    fn open(&mut self, opening: &BootOpening) {
        let change = self.ledger.open(opening);
        self.ledger.apply(change.unwrap_or_default());
    }

    fn close(&mut self, closing: &BootClosing) -> bool {
        let change = self.ledger.close(closing);
        let closes = change.is_some();
        self.ledger.apply(change.unwrap_or_default());
        closes
    }

    fn add(&mut self, batch: &UsageBatch) -> Result<(), UsageError> {
        let unknown = UsageError::UnknownBoot { boot: batch.boot };
        let boot = self.boot(batch.boot).ok_or(unknown)?;
        let Some(boot) = boot.admit(batch)? else {
            return Ok(());
        };
        self.ledger.apply(LedgerChange {
            boots: vec![boot],
            ..LedgerChange::default()
        });
        for uses in &batch.uses {
            if uses.counts.total() > 0 {
                let counts = self.days.entry((uses.key, uses.day)).or_default();
                counts.merge(&uses.counts);
            }
            self.tenants.insert(uses.key, uses.tenant.clone());
            if let Some(at) = uses.last {
                let first_day = uses.day;
                let own = self.last_uses.entry(uses.key);
                let own = own.or_insert(LastUse { first_day, at });
                own.first_day = own.first_day.min(first_day);
                own.at = own.at.max(at);
            }
        }
        Ok(())
    }

    fn forget(&mut self, keys: &[KeyId]) {
        self.days.retain(|(key, _), _| !keys.contains(key));
        self.last_uses.retain(|key, _| !keys.contains(key));
    }

    /// Returns the result of [`UsageStore::days`] and [`UsageStore::last_uses`] for all keys.
    fn counted(&self) -> Counted {
        let days = self.days.iter().map(|((key, day), counts)| KeyDay {
            key: *key,
            day: *day,
            counts: counts.clone(),
        });
        (days.collect(), self.last_uses.clone())
    }

    fn by_last_use(&self, query: &LastUseQuery) -> Vec<(KeyId, LastUse)> {
        let mut found = Vec::new();
        for (key, last) in &self.last_uses {
            let place = (Day::of(last.at), *key);
            let is_later = query.after.is_none_or(|after| match query.newest_first {
                true => place < after,
                false => place > after,
            });
            let is_within = (query.from..=query.to).contains(&place.0);
            if is_later && is_within && self.tenants.get(key) == Some(&query.tenant) {
                found.push((place, *last));
            }
        }
        found.sort_by_key(|(place, _)| *place);
        if query.newest_first {
            found.reverse();
        }
        found.truncate(query.limit.get());
        let found = found.into_iter();
        found.map(|((_, key), last)| (key, last)).collect()
    }
}

/// A usage store under test, with its expected state, and the name of the clause that a failure reports.
struct UsageFixture<U> {
    usage: U,
    oracle: UsageOracle,
    clause: &'static str,
}

const fn boot(n: u64) -> BootId {
    BootId::from_u128(((n as u128) << 64) | n as u128)
}

fn day(n: u32) -> Day {
    Day::from_number(20_000 + n).unwrap_or(Day::LAST)
}

/// Returns an instant in an hour of a day. The instant is not a whole second, so that a store that rounds instants fails.
fn hour(of: u32, hour: u8) -> Timestamp {
    let hour = Duration::from_secs(3600) * u32::from(hour);
    let start = day(of).start();
    start.saturating_add(hour + Duration::from_micros(123_457))
}

/// Returns a request to open the boot `n` at the hour `n` of the first day.
fn opening(n: u8) -> BootOpening {
    BootOpening {
        boot: boot(n.into()),
        node: Some(NodeId::from_u128(n.into())),
        history: Epoch(7),
        at: hour(0, n),
        unsent_since: hour(0, 0),
        replaces: None,
    }
}

/// Returns a request to close the boot `n` cleanly, at the end of the tenth day.
fn closing(n: u8, sequence: u64) -> BootClosing {
    BootClosing {
        boot: boot(n.into()),
        sequence,
        at: hour(9, 23),
        is_complete: true,
    }
}

/// Returns a batch of the boot `n`. Its uses need not be in order.
fn batch(n: u8, sequence: u64, mut uses: Vec<KeyUses>) -> UsageBatch {
    uses.sort_by_key(|uses| (uses.key, uses.day));
    UsageBatch {
        boot: boot(n.into()),
        sequence,
        sent_until: hour(1, 0).saturating_add(Duration::from_secs(sequence % 1000)),
        uses,
    }
}

/// Returns uses of the key `n` of the tenant `acme` on a day: hour, outcome and count.
fn uses(n: u64, of: u32, counted: &[(u8, UseOutcome, u64)]) -> KeyUses {
    let mut counts = DayCounts::default();
    for (hour, outcome, count) in counted {
        counts.add(*hour, *outcome, *count);
    }
    let accepted = counted
        .iter()
        .filter(|(_, outcome, _)| *outcome == UseOutcome::Accepted);
    KeyUses {
        key: id(n),
        tenant: tenant("acme"),
        day: day(of),
        counts,
        last: accepted.map(|(own, ..)| hour(of, *own)).max(),
    }
}

/// Returns one accepted use of the key `n`, in an hour of a day.
fn used(n: u64, of: u32, hour: u8) -> KeyUses {
    uses(n, of, &[(hour, UseOutcome::Accepted, 1)])
}

fn used_in(path: &str, n: u64, of: u32) -> KeyUses {
    KeyUses {
        tenant: tenant(path),
        ..used(n, of, 5)
    }
}

/// Returns a query for all keys of a tenant.
fn query_of(path: &str, newest_first: bool) -> LastUseQuery {
    LastUseQuery {
        tenant: tenant(path),
        from: Day::FIRST,
        to: Day::LAST,
        newest_first,
        after: None,
        limit: NonZeroUsize::MAX,
    }
}

fn pruning(before: u32, limit: usize) -> UsagePruning {
    UsagePruning {
        before: day(before),
        closed_before: Timestamp::UNIX_EPOCH,
        limit: NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN),
    }
}

/// Polls `first` up to `steps` times, then `second`, and then runs both to completion.
async fn race<A, B>(
    first: impl Future<Output = A>,
    second: impl Future<Output = B>,
    steps: usize,
) -> (A, B) {
    let mut first = PolledFuture::new(first);
    first.steps(steps).await;
    let mut second = PolledFuture::new(second);
    for _ in 0..STEPS {
        // Poll the second future only once per round: it may have to wait for the first one.
        second.steps(1).await;
    }
    let first = second.let_pass(first.finish()).await;
    (first, second.finish().await)
}

impl<U: UsageStore> UsageFixture<U> {
    fn new(make: &impl Fn() -> U, clause: &'static str) -> Self {
        let usage = make();
        let oracle = UsageOracle::default();
        Self {
            usage,
            oracle,
            clause,
        }
    }

    /// Creates a store with the open boots 1 to `boots`.
    async fn opened(
        make: &impl Fn() -> U,
        clause: &'static str,
        boots: u8,
    ) -> Result<Self, ClauseViolation> {
        let mut fixture = Self::new(make, clause);
        for n in 1..=boots {
            fixture.open(&opening(n)).await?;
        }
        Ok(fixture)
    }

    fn fail(&self, detail: String) -> ClauseViolation {
        let clause = self.clause;
        ClauseViolation { clause, detail }
    }

    fn returned<T>(&self, result: Result<T, StoreError>) -> Result<T, ClauseViolation> {
        result.map_err(|error| self.fail(format!("a call failed: {error}")))
    }

    fn same<T: Debug + PartialEq>(&self, what: &str, found: &T, expected: &T) -> ClauseResult {
        if found == expected {
            return Ok(());
        }
        Err(self.fail(format!("{what}: found {found:?}, expected {expected:?}")))
    }

    async fn open(&mut self, opening: &BootOpening) -> ClauseResult {
        self.returned(self.usage.open_boot(*opening).await)?;
        self.oracle.open(opening);
        Ok(())
    }

    /// Closes a boot, and fails the check unless the store returns the expected result.
    async fn close(&mut self, closing: &BootClosing) -> ClauseResult {
        let closed = self.returned(self.usage.close_boot(*closing).await)?;
        let expected = self.oracle.close(closing);
        self.same(&format!("{closing:?} returned"), &closed, &expected)
    }

    /// Adds a batch, and fails the check unless the store accepts or refuses it as expected.
    async fn add(&mut self, batch: &UsageBatch) -> ClauseResult {
        let added = self.usage.add(batch.clone()).await;
        let expected = self.oracle.add(batch);
        // The errors that a store can be expected to return have no sources, so equal texts are equal errors.
        let (added, expected) = (format!("{added:?}"), format!("{expected:?}"));
        let name = format!("batch {} of {} returned", batch.sequence, batch.boot);
        self.same(&name, &added, &expected)
    }

    /// Adds uses as the next batch of the boot `n`.
    async fn send(&mut self, n: u8, uses: Vec<KeyUses>) -> ClauseResult {
        let own = self.oracle.boot(boot(n.into()));
        let next = own.map_or(1, |boot| boot.sequence + 1);
        self.add(&batch(n, next, uses)).await
    }

    async fn prune(&mut self, pruning: &UsagePruning) -> Result<usize, ClauseViolation> {
        let removed = self.returned(self.usage.prune(*pruning).await)?;
        let since = pruning.before.start();
        self.oracle.ledger.prune(since, pruning.closed_before);
        Ok(removed)
    }

    async fn forget(&mut self, keys: &[KeyId]) -> ClauseResult {
        self.returned(self.usage.forget_keys(keys).await)?;
        self.oracle.forget(keys);
        Ok(())
    }

    async fn ledger(&self) -> Result<UsageLedger, ClauseViolation> {
        self.returned(self.usage.ledger().await)
    }

    async fn by_last_use(
        &self,
        query: &LastUseQuery,
    ) -> Result<Vec<(KeyId, LastUse)>, ClauseViolation> {
        self.returned(self.usage.by_last_use(query).await)
    }

    /// Returns the keys that checks use, and every other key with a use.
    fn keys(&self) -> Vec<KeyId> {
        let known = self.oracle.tenants.keys().copied();
        let keys: BTreeSet<_> = (0..10).map(id).chain(known).collect();
        keys.into_iter().collect()
    }

    /// Reads the counts and the last uses of all keys.
    async fn counted(&self) -> Result<Counted, ClauseViolation> {
        let keys = self.keys();
        let days = self.usage.days(&keys, Day::FIRST, Day::LAST).await;
        let last_uses = self.usage.last_uses(&keys).await;
        Ok((self.returned(days)?, self.returned(last_uses)?))
    }

    /// Checks that the ledger, all counts, all last uses and the lists of all tenants are as expected.
    async fn agrees(&self, what: &str) -> ClauseResult {
        self.same(what, &self.ledger().await?, &self.oracle.ledger)?;
        self.same(what, &self.counted().await?, &self.oracle.counted())?;
        let tenants: BTreeSet<_> = self.oracle.tenants.values().collect();
        for tenant in tenants {
            for newest_first in [false, true] {
                self.lists(what, &query_of(tenant.as_str(), newest_first))
                    .await?;
            }
        }
        Ok(())
    }

    /// Checks the result of [`UsageStore::by_last_use`].
    async fn lists(&self, what: &str, query: &LastUseQuery) -> ClauseResult {
        let found = self.by_last_use(query).await?;
        self.same(what, &found, &self.oracle.by_last_use(query))
    }

    /// Reads the ledger and the counts of a store with a change that may still be running.
    async fn settled(&self) -> Result<(UsageLedger, Counted), ClauseViolation> {
        let mut before = self.ledger().await?;
        for _ in 0..MAX_READS {
            let counted = self.counted().await?;
            let after = self.ledger().await?;
            if before == after {
                return Ok((after, counted));
            }
            before = after;
        }
        Err(self.fail("the ledger changed during each read of the counts".to_owned()))
    }
}

/// Every read that begins after a batch was added contains the batch. A fresh store is empty.
pub async fn a_batch_is_in_every_later_read<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::new(make, "a_batch_is_in_every_later_read");
    fixture.agrees("a fresh store").await?;
    fixture
        .lists("a fresh store", &query_of("acme", true))
        .await?;
    fixture.open(&opening(1)).await?;
    fixture.agrees("after a boot was opened").await?;
    for n in 1..=3 {
        let sent = vec![used(1, 0, 5), used(2, 0, n), used(u64::from(n) + 2, 1, 0)];
        fixture.send(1, sent).await?;
        fixture.agrees("after a batch").await?;
    }
    Ok(())
}

/// The counts of a key and day are the sums over all batches of all boots, by outcome and hour. Empty counts add
/// no day.
pub async fn counts_of_batches_add_up<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "counts_of_batches_add_up", 2).await?;
    let hours = [0, 5, 23];
    for (round, hour) in (1..).zip(hours) {
        for boot in [1, 2] {
            let other = UseOutcome::ALL[round % UseOutcome::ALL.len()];
            let counted = [
                (hour, UseOutcome::Accepted, 1),
                (hour, other, 1000),
                (12, UseOutcome::RateLimited, 3),
            ];
            let sent = [1, 2].map(|key| uses(key, 0, &counted));
            fixture.send(boot, sent.to_vec()).await?;
            fixture.send(boot, vec![uses(1, 1, &counted)]).await?;
            fixture.agrees("after two batches").await?;
        }
    }
    let empty = vec![uses(1, 0, &[]), uses(1, 2, &[]), uses(3, 0, &[])];
    fixture.send(1, empty).await?;
    fixture.agrees("after empty counts").await
}

/// A count of [`u64::MAX`] comes back, and sums stop there.
pub async fn sums_stop_at_the_largest_count<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "sums_stop_at_the_largest_count", 1).await?;
    let counts = [u64::MAX - 1, 1, 1, u64::MAX];
    for count in counts {
        let sent = uses(1, 0, &[(3, UseOutcome::WrongSecret, count)]);
        fixture.send(1, vec![sent]).await?;
        fixture.agrees("after a large count").await?;
    }
    Ok(())
}

/// Adding the last batch of a boot again returns `Ok` and changes nothing, also after the boot was closed.
pub async fn a_repeated_batch_is_added_once<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "a_repeated_batch_is_added_once", 2).await?;
    for sequence in 1..=2 {
        let sent = batch(1, sequence, vec![used(1, 0, 5), used(2, 1, 7)]);
        for _ in 0..3 {
            fixture.add(&sent).await?;
            fixture.agrees("after a repeated batch").await?;
        }
        // Each boot has its own numbers.
        fixture.send(2, vec![used(1, 0, 6)]).await?;
        fixture.add(&sent).await?;
        fixture.agrees("after a batch of another boot").await?;
    }
    fixture.close(&closing(1, 2)).await?;
    fixture.add(&batch(1, 2, vec![used(1, 0, 5)])).await?;
    fixture.agrees("after closing").await
}

/// A batch that is neither the next nor the last one of its boot is refused with the number of the last batch, and writes
/// nothing.
pub async fn a_batch_out_of_order_is_refused<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "a_batch_out_of_order_is_refused", 1).await?;
    let most = i64::MAX as u64;
    for last in 0..3 {
        for sequence in [0, 1, 2, 3, 4, 5, most, most + 1, u64::MAX] {
            let is_repeated = sequence == last && last > 0;
            if sequence != last + 1 && !is_repeated {
                let refused = batch(1, sequence, vec![used(1, 0, 5), used(2, 0, 5)]);
                fixture.add(&refused).await?;
            }
        }
        fixture.agrees("after batches out of order").await?;
        fixture.send(1, vec![used(1, 0, 6)]).await?;
        fixture.agrees("after the next batch").await?;
    }
    Ok(())
}

/// A batch of a boot that was never opened, or was removed, is refused and writes nothing.
pub async fn a_batch_of_an_unknown_boot_is_refused<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "a_batch_of_an_unknown_boot_is_refused";
    let mut fixture = UsageFixture::new(make, clause);
    for sequence in [0, 1, 2] {
        fixture
            .add(&batch(1, sequence, vec![used(1, 0, 5)]))
            .await?;
    }
    fixture.agrees("before any boot").await?;
    fixture.open(&opening(1)).await?;
    fixture.send(1, vec![used(1, 0, 5)]).await?;
    for sequence in [0, 1, 2] {
        fixture
            .add(&batch(2, sequence, vec![used(1, 0, 5)]))
            .await?;
    }
    fixture.agrees("after batches of another boot").await?;
    fixture.close(&closing(1, 1)).await?;
    let all = UsagePruning {
        closed_before: Timestamp::MAX,
        ..pruning(0, 1)
    };
    fixture.prune(&all).await?;
    for sequence in [1, 2] {
        fixture
            .add(&batch(1, sequence, vec![used(1, 0, 5)]))
            .await?;
    }
    fixture.agrees("after the boot was removed").await
}

/// A batch of a closed boot is refused with the number of the last batch, and writes nothing. A replaced boot is closed.
pub async fn a_batch_of_a_closed_boot_is_refused<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "a_batch_of_a_closed_boot_is_refused";
    for is_complete in [false, true] {
        let mut fixture = UsageFixture::opened(make, clause, 3).await?;
        fixture.send(1, vec![used(1, 0, 5)]).await?;
        let closing = BootClosing {
            is_complete,
            ..closing(1, 1)
        };
        fixture.close(&closing).await?;
        let replaces = Some(LostBoot {
            boot: boot(2),
            since: hour(0, 3),
        });
        fixture
            .open(&BootOpening {
                replaces,
                ..opening(4)
            })
            .await?;
        for sequence in [0, 2, 3] {
            fixture
                .add(&batch(1, sequence, vec![used(1, 0, 5)]))
                .await?;
        }
        for sequence in [0, 1] {
            fixture
                .add(&batch(2, sequence, vec![used(1, 0, 5)]))
                .await?;
        }
        fixture.agrees("after batches of closed boots").await?;
        fixture.send(3, vec![used(1, 0, 5)]).await?;
        fixture.agrees("after a batch of another boot").await?;
    }
    Ok(())
}

/// Opening a boot again changes nothing: neither an open boot with batches, nor a closed one. The other fields of the
/// request do not matter.
pub async fn opening_a_boot_twice_changes_nothing<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "opening_a_boot_twice_changes_nothing";
    let mut fixture = UsageFixture::opened(make, clause, 2).await?;
    let other = BootOpening {
        node: None,
        history: Epoch(8),
        at: hour(5, 5),
        replaces: Some(LostBoot {
            boot: boot(2),
            since: hour(0, 0),
        }),
        ..opening(1)
    };
    let again = [opening(1), other];
    for opening in &again {
        fixture.open(opening).await?;
    }
    fixture.agrees("before a batch").await?;
    fixture.send(1, vec![used(1, 0, 5)]).await?;
    for opening in &again {
        fixture.open(opening).await?;
    }
    fixture.agrees("after a batch").await?;
    fixture.close(&closing(1, 1)).await?;
    for opening in &again {
        fixture.open(opening).await?;
    }
    fixture.agrees("after closing").await
}

/// A boot that replaces another one closes it. The gap lasts from the end of the replaced boot's last batch to the new
/// boot, and there is one since the time that the request names. The replaced boot may be unknown or closed.
pub async fn a_replaced_boot_leaves_a_gap<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "a_replaced_boot_leaves_a_gap", 3).await?;
    fixture.send(1, vec![used(1, 0, 5)]).await?;
    fixture.close(&closing(2, 0)).await?;
    let until = hour(1, 0).saturating_add(Duration::from_secs(1));
    let replaced = [
        (1, until),
        (1, hour(1, 3)),
        (2, hour(0, 4)),
        (3, hour(0, 2)),
        (99, hour(1, 1)),
        (99, hour(9, 0)),
    ];
    for (n, (lost, since)) in (4..).zip(replaced) {
        let boot = boot(lost);
        fixture
            .open(&BootOpening {
                at: hour(1, n),
                replaces: Some(LostBoot { boot, since }),
                ..opening(n)
            })
            .await?;
        fixture.agrees("after a boot was replaced").await?;
    }
    Ok(())
}

/// The first boot with another epoch of the key store closes all open boots. Each leaves a gap since its last batch, and
/// there is one of all processes since the newest batch.
pub async fn a_new_history_closes_every_boot<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "a_new_history_closes_every_boot", 4).await?;
    fixture.send(1, vec![used(1, 0, 5)]).await?;
    fixture.send(1, vec![used(1, 0, 5)]).await?;
    fixture.send(2, vec![used(1, 0, 5)]).await?;
    fixture.close(&closing(2, 1)).await?;
    for (n, history) in (5..).zip([8, 8, u128::MAX, 7]) {
        fixture
            .open(&BootOpening {
                history: Epoch(history),
                at: hour(2, n),
                node: None,
                ..opening(n)
            })
            .await?;
        fixture.agrees("after a boot was opened").await?;
    }
    fixture.add(&batch(1, 3, vec![used(1, 0, 5)])).await?;
    fixture.send(8, vec![used(1, 0, 5)]).await?;
    fixture.agrees("after further batches").await
}

/// A boot that is closed before it has sent all uses leaves a gap since its last batch, which is empty if the time of the
/// call is earlier. A boot that has sent all leaves none.
pub async fn an_unclean_close_leaves_a_gap<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "an_unclean_close_leaves_a_gap", 4).await?;
    for n in [1, 2] {
        fixture.send(n, vec![used(1, 0, 5)]).await?;
    }
    let unclean = |n, sequence| BootClosing {
        is_complete: false,
        ..closing(n, sequence)
    };
    fixture.close(&closing(1, 1)).await?;
    fixture.agrees("after a clean close").await?;
    fixture.close(&unclean(2, 1)).await?;
    fixture.agrees("after an unclean close").await?;
    fixture.close(&unclean(3, 0)).await?;
    fixture
        .agrees("after an unclean close without a batch")
        .await?;
    let early = BootClosing {
        at: hour(0, 0),
        ..unclean(4, 0)
    };
    fixture.close(&early).await?;
    fixture.agrees("after a close before the boot").await
}

/// Closing a boot returns false and changes nothing if the boot has another number, is closed, or does not exist.
pub async fn closing_at_another_number_changes_nothing<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "closing_at_another_number_changes_nothing";
    let mut fixture = UsageFixture::opened(make, clause, 2).await?;
    fixture.send(1, vec![used(1, 0, 5)]).await?;
    fixture.send(1, vec![used(1, 0, 5)]).await?;
    for sequence in [0, 1, 3, u64::MAX] {
        for is_complete in [false, true] {
            fixture
                .close(&BootClosing {
                    is_complete,
                    ..closing(1, sequence)
                })
                .await?;
        }
    }
    fixture.close(&closing(3, 0)).await?;
    fixture.agrees("after calls that close nothing").await?;
    fixture.close(&closing(1, 2)).await?;
    for is_complete in [false, true] {
        fixture
            .close(&BootClosing {
                at: hour(10, 0),
                is_complete,
                ..closing(1, 2)
            })
            .await?;
    }
    fixture.agrees("after a closed boot was closed").await
}

/// The ledger is always that of the rules [`UsageLedger::open`], [`UsageLedger::close`] and [`Boot::admit`], after any
/// sequence of changes.
pub async fn the_ledger_follows_the_rules<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    for seed in 1..=6_u64 {
        let mut fixture = UsageFixture::new(make, "the_ledger_follows_the_rules");
        let mut random = seed;
        let mut below = |end: u8| {
            random = random.wrapping_mul(6_364_136_223_846_793_005);
            random = random.wrapping_add(1_442_695_040_888_963_407);
            ((random >> 33) % u64::from(end)) as u8
        };
        for step in 0..40_u32 {
            let at = hour(step / 8, below(24));
            let n = below(8);
            let own = fixture.oracle.boot(boot(n.into()));
            let sequence = own.map_or(0, |boot| boot.sequence);
            match below(6) {
                0 | 1 => {
                    let lost = LostBoot {
                        boot: boot(below(8).into()),
                        since: hour(step / 8, below(24)),
                    };
                    let opening = BootOpening {
                        history: Epoch(u128::from(below(12) / 11)),
                        at,
                        replaces: (below(3) == 0).then_some(lost),
                        ..opening(n)
                    };
                    fixture.open(&opening).await?;
                }
                2 => {
                    let closing = BootClosing {
                        at,
                        is_complete: below(2) == 0,
                        ..closing(n, (sequence + u64::from(below(4) / 3)).max(1) - 1)
                    };
                    fixture.close(&closing).await?;
                    let closing = BootClosing {
                        sequence,
                        ..closing
                    };
                    fixture.close(&closing).await?;
                }
                _ => {
                    let late = u64::from(below(5) / 4);
                    let sent = UsageBatch {
                        sent_until: at,
                        ..batch(n, sequence + 1 - late, vec![used(1, 0, n)])
                    };
                    fixture.add(&sent).await?;
                }
            }
            fixture.agrees(&format!("seed {seed}, step {step}")).await?;
        }
    }
    Ok(())
}

/// A boot takes the number and the end of each batch, also of an empty one. The end never moves back.
pub async fn a_batch_moves_its_boot_forward<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "a_batch_moves_its_boot_forward", 2).await?;
    let ends = [
        hour(1, 5),
        hour(1, 4),
        hour(0, 0),
        hour(1, 6),
        Timestamp::MAX,
    ];
    for (sequence, sent_until) in (1..).zip(ends) {
        let sent = match sequence % 2 {
            0 => Vec::new(),
            _ => vec![used(1, 0, 5)],
        };
        let sent = UsageBatch {
            sent_until,
            ..batch(1, sequence, sent)
        };
        fixture.add(&sent).await?;
        fixture.agrees("after a batch").await?;
    }
    Ok(())
}

/// The last use of a key never moves back, and its first day never moves forward. The order in which batches of several
/// boots arrive does not matter.
pub async fn the_last_use_never_moves_back<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "the_last_use_never_moves_back", 2).await?;
    let days = [
        (3, 5),
        (3, 4),
        (3, 6),
        (2, 20),
        (5, 1),
        (4, 23),
        (0, 0),
        (5, 0),
    ];
    for (boot, (day, hour)) in [1, 2].into_iter().cycle().zip(days) {
        fixture.send(boot, vec![used(1, day, hour)]).await?;
        fixture.agrees("after a batch").await?;
    }
    // One batch with several days, of which the last is older than the last use.
    let sent = vec![used(1, 1, 1), used(1, 4, 1), used(2, 7, 1), used(2, 8, 0)];
    fixture.send(1, sent).await?;
    fixture.agrees("after a batch with several days").await
}

/// Uses at which the key was refused count, but are neither a first nor a last use.
pub async fn refusals_are_no_last_use<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "refusals_are_no_last_use", 1).await?;
    let refused = |n, day| uses(n, day, &[(5, UseOutcome::Revoked, 2)]);
    fixture.send(1, vec![refused(1, 0), refused(2, 0)]).await?;
    fixture.agrees("after refusals").await?;
    fixture.send(1, vec![used(1, 2, 5), refused(1, 3)]).await?;
    fixture.agrees("after a use").await?;
    fixture.send(1, vec![refused(1, 1), refused(1, 4)]).await?;
    fixture.agrees("after further refusals").await
}

/// Writes last uses of 40 keys of three tenants on five days, several on each.
async fn write_last_uses<U: UsageStore>(fixture: &mut UsageFixture<U>) -> ClauseResult {
    for hour in [7, 3] {
        let keys = (0..40).map(|n: u64| {
            let path = ["acme", "acme", "acme/web", "acme-two"][(n % 4) as usize];
            KeyUses {
                tenant: tenant(path),
                ..used(n, (n * 7 % 5) as u32, hour + (n % 3) as u8)
            }
        });
        fixture.send(1, keys.collect()).await?;
    }
    // Two keys move to other days.
    fixture.send(1, vec![used(4, 6, 1), used(12, 3, 1)]).await
}

/// Keys come in the order of the day of their last use, and on one day in the order of their ids; with `newest_first`,
/// exactly the other way round. A key that was used again moves.
pub async fn keys_come_in_the_order_of_their_last_use<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "keys_come_in_the_order_of_their_last_use";
    let mut fixture = UsageFixture::opened(make, clause, 1).await?;
    write_last_uses(&mut fixture).await?;
    for path in ["acme", "acme/web", "acme-two"] {
        for newest_first in [false, true] {
            fixture.lists(path, &query_of(path, newest_first)).await?;
        }
    }
    Ok(())
}

/// The pages of a list are together the whole list, in both directions and with any limit. A page goes on after a key
/// that is gone or has moved.
pub async fn pages_of_last_uses_neither_repeat_nor_skip<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "pages_of_last_uses_neither_repeat_nor_skip";
    let mut fixture = UsageFixture::opened(make, clause, 1).await?;
    write_last_uses(&mut fixture).await?;
    for newest_first in [false, true] {
        for limit in [1, 2, 3, 7, 100] {
            let mut query = LastUseQuery {
                limit: NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN),
                from: day(1),
                ..query_of("acme", newest_first)
            };
            loop {
                fixture.lists("a page", &query).await?;
                let page = fixture.oracle.by_last_use(&query);
                let Some((key, last)) = page.last() else {
                    break;
                };
                query.after = Some((Day::of(last.at), *key));
            }
        }
    }
    for newest_first in [false, true] {
        for place in [
            (day(2), id(1)),
            (day(3), id(1000)),
            (day(0), id(3)),
            (day(9), id(0)),
        ] {
            let query = LastUseQuery {
                after: Some(place),
                ..query_of("acme", newest_first)
            };
            fixture.lists("a page after another key", &query).await?;
        }
    }
    Ok(())
}

/// A list contains only keys of its tenant: none of descendants, of ancestors, or of tenants with a similar path.
pub async fn last_uses_stay_within_the_tenant<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "last_uses_stay_within_the_tenant";
    let mut fixture = UsageFixture::opened(make, clause, 1).await?;
    let paths = ["acme", "acme/web", "acme-two", "a", "acme/web/x"];
    let keys = (1..).zip(paths).map(|(n, path)| used_in(path, n, 0));
    fixture.send(1, keys.collect()).await?;
    for path in paths.iter().chain(&["ac", "acme/we", "other"]) {
        for newest_first in [false, true] {
            fixture.lists(path, &query_of(path, newest_first)).await?;
        }
    }
    Ok(())
}

/// A list contains the keys whose last use is on a day from `from` to `to`, inclusive.
pub async fn last_uses_stay_within_their_days<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "last_uses_stay_within_their_days";
    let mut fixture = UsageFixture::opened(make, clause, 1).await?;
    // The first and the last hour of each day.
    let keys = (0..5_u32).flat_map(|n| {
        let first = KeyUses {
            last: Some(day(n).start()),
            ..used(u64::from(n), n, 0)
        };
        let end = day(n + 1).start();
        let last = KeyUses {
            last: Some(end.saturating_sub(Duration::from_micros(1))),
            ..used(u64::from(n) + 100, n, 23)
        };
        [first, last]
    });
    let keys = keys.collect();
    fixture.send(1, keys).await?;
    for from in 0..5 {
        for to in 0..5 {
            for newest_first in [false, true] {
                let query = LastUseQuery {
                    from: day(from),
                    to: day(to),
                    ..query_of("acme", newest_first)
                };
                fixture
                    .lists(&format!("days {from} to {to}"), &query)
                    .await?;
            }
        }
    }
    Ok(())
}

/// The counts of days come in the order of keys and days, in whatever order the call names the keys.
pub async fn days_come_in_the_order_of_keys<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "days_come_in_the_order_of_keys", 1).await?;
    for of in [3, 1, 2] {
        let keys = [5, 2, 9, 1].map(|n| used(n, of, 5));
        fixture.send(1, keys.to_vec()).await?;
    }
    let (expected, _) = fixture.oracle.counted();
    for keys in [[1, 2, 5, 9], [9, 5, 2, 1], [5, 1, 9, 2]] {
        let keys = keys.map(id);
        let days = fixture.usage.days(&keys, Day::FIRST, Day::LAST).await;
        fixture.same("the days", &fixture.returned(days)?, &expected)?;
    }
    Ok(())
}

/// The counts of days are those of the named keys from the day `from` to the day `to`, inclusive. Last uses are those of
/// the named keys.
pub async fn days_stay_within_their_range<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "days_stay_within_their_range", 1).await?;
    let all = (0..4).flat_map(|n| (0..5).map(move |of| used(n, of, 5)));
    fixture.send(1, all.collect()).await?;
    for keys in [vec![], vec![1], vec![1, 2], vec![3, 0, 8]] {
        let keys: Vec<_> = keys.into_iter().map(id).collect();
        for from in 0..5 {
            for to in 0..5 {
                let (mut expected, _) = fixture.oracle.counted();
                expected.retain(|row| keys.contains(&row.key));
                expected.retain(|row| (day(from)..=day(to)).contains(&row.day));
                let days = fixture.usage.days(&keys, day(from), day(to)).await;
                let what = format!("days {from} to {to}");
                fixture.same(&what, &fixture.returned(days)?, &expected)?;
            }
        }
        let (_, mut expected) = fixture.oracle.counted();
        expected.retain(|key, _| keys.contains(key));
        let last_uses = fixture.usage.last_uses(&keys).await;
        fixture.same("last uses", &fixture.returned(last_uses)?, &expected)?;
    }
    Ok(())
}

/// Pruning removes the counts of the days before `before`, at most `limit` in one call, and returns how many. Later days
/// and last uses stay.
pub async fn pruning_removes_old_days<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "pruning_removes_old_days", 1).await?;
    let all = (1..=3).flat_map(|n| (0..5).map(move |of| used(n, of, 5)));
    // The last use of the key 5 is on an old day.
    let others = [
        used_in("acme/web", 4, 0),
        used_in("acme/web", 4, 3),
        used(5, 0, 5),
    ];
    fixture.send(1, all.chain(others).collect()).await?;
    let (days, _) = fixture.oracle.counted();
    let (old, later): (Vec<_>, _) = days.into_iter().partition(|row| row.day < day(3));
    let mut rest = old.len();
    for limit in [4, 4, 4, 4, 1] {
        let removed = fixture.prune(&pruning(3, limit)).await?;
        fixture.same("a call removed", &removed, &rest.min(limit))?;
        rest -= removed;
        let (days, last_uses) = fixture.counted().await?;
        let (left, kept): (Vec<_>, _) = days.into_iter().partition(|row| row.day < day(3));
        fixture.same("old days left", &left.len(), &rest)?;
        fixture.same("later days", &kept, &later)?;
        let expected = &fixture.oracle.last_uses;
        fixture.same("last uses", &last_uses, expected)?;
        let changed = left.iter().find(|row| !old.contains(row));
        fixture.same("a changed day", &changed, &None)?;
    }
    fixture.oracle.days.retain(|(_, own), _| *own >= day(3));
    fixture.agrees("after pruning").await?;
    fixture.send(1, vec![used(1, 0, 5)]).await?;
    fixture.agrees("after a late batch").await
}

/// Pruning raises `counted_since` to the start of the day `before` in its first call, never lowers it, and sets none before
/// the first boot.
pub async fn pruning_raises_counted_since<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    let mut fixture = UsageFixture::new(make, "pruning_raises_counted_since");
    fixture.prune(&pruning(3, 1)).await?;
    fixture.agrees("before the first boot").await?;
    fixture.open(&opening(1)).await?;
    fixture.send(1, vec![used(1, 0, 5), used(2, 0, 5)]).await?;
    fixture.prune(&pruning(0, 1)).await?;
    fixture.agrees("with nothing to remove").await?;
    fixture.prune(&pruning(3, 1)).await?;
    let ledger = fixture.ledger().await?;
    fixture.same("after the first call", &ledger, &fixture.oracle.ledger)?;
    fixture.prune(&pruning(3, 1)).await?;
    fixture.prune(&pruning(2, 1)).await?;
    fixture.oracle.days.clear();
    fixture.agrees("after all calls").await?;
    // Another history keeps the raised time.
    let restored = BootOpening {
        history: Epoch(8),
        ..opening(2)
    };
    fixture.open(&restored).await?;
    fixture.agrees("after another history").await
}

/// Pruning removes the boots that were closed before `closed_before`, and the gaps that ended by the day `before`. Open
/// boots and growing gaps stay.
pub async fn pruning_removes_closed_boots_and_ended_gaps<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "pruning_removes_closed_boots_and_ended_gaps";
    let mut fixture = UsageFixture::opened(make, clause, 5).await?;
    let start = day(4).start();
    let just_before = start.saturating_sub(Duration::from_micros(1));
    let just_after = start.saturating_add(Duration::from_micros(1));
    for (n, at) in (1..).zip([hour(2, 0), just_before, start, just_after]) {
        fixture
            .close(&BootClosing {
                at,
                is_complete: n == 1,
                ..closing(n, 0)
            })
            .await?;
    }
    fixture.agrees("before pruning").await?;
    let steps = [
        (1, hour(2, 0)),
        (1, hour(2, 1)),
        (4, start),
        (4, just_after),
        (5, Timestamp::MAX),
    ];
    for (before, closed_before) in steps {
        let pruning = UsagePruning {
            closed_before,
            ..pruning(before, 1)
        };
        fixture.prune(&pruning).await?;
        fixture.agrees("after pruning").await?;
    }
    Ok(())
}

/// Forgetting keys removes their counts and last uses, and nothing of other keys. The ledger stays.
pub async fn forgetting_removes_all_about_a_key<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "forgetting_removes_all_about_a_key";
    let mut fixture = UsageFixture::opened(make, clause, 1).await?;
    let all = (1..=6).flat_map(|n| (0..3).map(move |of| used(n, of, 5)));
    fixture.send(1, all.collect()).await?;
    for keys in [vec![], vec![2], vec![5, 4], vec![2, 8], vec![6, 1, 3]] {
        let keys: Vec<_> = keys.into_iter().map(id).collect();
        fixture.forget(&keys).await?;
        fixture
            .agrees(&format!("after {keys:?} were forgotten"))
            .await?;
    }
    Ok(())
}

/// A batch with uses of a forgotten key is added as for any other key, and a repeated batch stays a repeated one.
pub async fn a_forgotten_key_is_counted_again<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "a_forgotten_key_is_counted_again", 1).await?;
    let sent = batch(1, 1, vec![used(1, 2, 5), used(2, 2, 5)]);
    fixture.add(&sent).await?;
    fixture.forget(&[id(1)]).await?;
    fixture.add(&sent).await?;
    fixture.agrees("after a repeated batch").await?;
    fixture.send(1, vec![used(1, 1, 5), used(2, 1, 5)]).await?;
    fixture.agrees("after the next batch").await
}

/// Outcomes that a later version of the crate added come back, and add up.
pub async fn outcomes_of_later_versions_come_back<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "outcomes_of_later_versions_come_back";
    let mut fixture = UsageFixture::opened(make, clause, 1).await?;
    // One use under the code 0, and seven under the code 200, both in the first hour.
    let counts = DayCounts::from_bytes(&[1, 0, 1, 0, 0, 1, 200, 1, 0, 0, 7]);
    let counts = counts.map_err(|error| fixture.fail(format!("the sample is damaged: {error}")))?;
    for _ in 0..2 {
        let later = KeyUses {
            counts: counts.clone(),
            ..used(1, 0, 0)
        };
        fixture.send(1, vec![later, used(2, 0, 0)]).await?;
        fixture.agrees("after a batch").await?;
        fixture.send(1, vec![used(1, 0, 0)]).await?;
        fixture.agrees("after a batch of known outcomes").await?;
    }
    Ok(())
}

/// Ids, epochs, tenants, days and times come back unchanged, also the smallest and the largest. Keys and boots are
/// identified by all bits of their ids.
pub async fn ids_and_tenants_come_back_unchanged<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let clause = "ids_and_tenants_come_back_unchanged";
    let mut fixture = UsageFixture::new(make, clause);
    let high = 1 << 127;
    let ids = [0, 1, u128::MAX, high, high | 1, 1 << 64, u128::MAX >> 64];
    for own in ids {
        fixture
            .open(&BootOpening {
                boot: BootId::from_u128(own),
                node: Some(NodeId::from_u128(own)),
                history: Epoch(u128::MAX - 1),
                at: hour(0, 0),
                unsent_since: Timestamp::UNIX_EPOCH,
                replaces: None,
            })
            .await?;
    }
    fixture
        .open(&BootOpening {
            history: Epoch(u128::MAX - 1),
            at: Timestamp::UNIX_EPOCH,
            replaces: Some(LostBoot {
                boot: BootId::from_u128(u128::MAX),
                since: Timestamp::UNIX_EPOCH,
            }),
            node: None,
            ..opening(9)
        })
        .await?;
    let longest = "x".repeat(60);
    let paths = ["acme", &longest, "a_b", "a-b", "a/b"];
    let paths = paths.into_iter().cycle();
    let mut sent = Vec::new();
    for (own, path) in ids.into_iter().zip(paths) {
        let key = KeyId::from_u128(own);
        let tenant = tenant(path);
        for (day, at) in [
            (Day::FIRST, Timestamp::UNIX_EPOCH),
            (Day::LAST, Timestamp::MAX),
        ] {
            sent.push(KeyUses {
                key,
                tenant: tenant.clone(),
                day,
                last: Some(at),
                ..used(1, 0, 5)
            });
        }
    }
    let batches = ids.map(|own| UsageBatch {
        boot: BootId::from_u128(own),
        sent_until: Timestamp::MAX,
        ..batch(0, 1, sent.clone())
    });
    for sent in batches {
        fixture.add(&sent).await?;
    }
    fixture.agrees("after batches of extreme ids").await
}

/// A batch of thousands of keys is added completely, and all its keys can be read and forgotten in one call.
pub async fn a_large_batch_is_added_completely<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    let mut fixture = UsageFixture::opened(make, "a_large_batch_is_added_completely", 1).await?;
    for hour in [5, 6] {
        let keys = (0..MANY).map(|n| used(n, 0, hour));
        fixture.send(1, keys.collect()).await?;
    }
    let counted = fixture.counted().await?;
    if counted != fixture.oracle.counted() {
        let (days, last_uses) = (counted.0.len(), counted.1.len());
        return Err(fixture.fail(format!(
            "of {MANY} keys, found {days} days and {last_uses} last uses, or other counts"
        )));
    }
    let keys: Vec<_> = (1..MANY).map(id).collect();
    fixture.forget(&keys).await?;
    fixture.oracle.tenants.retain(|key, _| *key == id(0));
    let left = fixture.returned(fixture.usage.days(&keys, Day::FIRST, Day::LAST).await)?;
    fixture.same("days left", &left.len(), &0)?;
    fixture.agrees("after all but one were forgotten").await
}

/// A batch is added completely or not at all, even if the caller drops its future at any point. Adding it again then adds
/// it exactly once.
pub async fn a_dropped_batch_is_all_or_nothing<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    for steps in 0..STEPS {
        let clause = "a_dropped_batch_is_all_or_nothing";
        let mut fixture = UsageFixture::opened(make, clause, 2).await?;
        fixture.send(1, vec![used(1, 0, 5), used(2, 0, 5)]).await?;
        let dropped = batch(1, 2, vec![used(1, 0, 6), used(2, 1, 6), used(3, 0, 6)]);
        {
            let add = fixture.usage.add(dropped.clone());
            PolledFuture::new(add).steps(steps).await;
        }
        let found = fixture.settled().await?;
        let before = (fixture.oracle.ledger.clone(), fixture.oracle.counted());
        let mut added = fixture.oracle.clone();
        let admitted = added.add(&dropped);
        let after = (added.ledger.clone(), added.counted());
        if admitted.is_err() || (found != before && found != after) {
            return Err(fixture.fail(format!(
                "found {found:?} after a call was dropped, expected {before:?} or {after:?}"
            )));
        }
        fixture.add(&dropped).await?;
        fixture.agrees("after the batch was added again").await?;
        fixture.send(1, vec![used(1, 0, 7)]).await?;
        fixture.send(2, vec![used(1, 0, 7)]).await?;
        fixture.agrees("after further batches").await?;
    }
    Ok(())
}

/// A boot is opened completely or not at all, even if the caller drops the future at any point: with the boots that it
/// closes, and with their gaps.
pub async fn a_dropped_opening_is_all_or_nothing<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    for steps in 0..STEPS {
        let clause = "a_dropped_opening_is_all_or_nothing";
        let mut fixture = UsageFixture::opened(make, clause, 2).await?;
        fixture.send(1, vec![used(1, 0, 5)]).await?;
        let dropped = BootOpening {
            history: Epoch(8),
            at: hour(2, 0),
            ..opening(3)
        };
        {
            let open = fixture.usage.open_boot(dropped);
            PolledFuture::new(open).steps(steps).await;
        }
        let found = fixture.ledger().await?;
        let before = fixture.oracle.ledger.clone();
        let mut opened = fixture.oracle.clone();
        opened.open(&dropped);
        if found != before && found != opened.ledger {
            return Err(fixture.fail(format!(
                "found {found:?} after a call was dropped, expected {before:?} or {:?}",
                opened.ledger
            )));
        }
        fixture.open(&dropped).await?;
        fixture.agrees("after the boot was opened again").await?;
    }
    Ok(())
}

/// If batches of several boots with the same keys and days are added concurrently, all are added.
pub async fn concurrent_batches_add_up<U: UsageStore>(make: &impl Fn() -> U) -> ClauseResult {
    for is_fresh in [false, true] {
        for steps in 0..STEPS {
            let clause = "concurrent_batches_add_up";
            let mut fixture = UsageFixture::opened(make, clause, 3).await?;
            let keys = |hour| [1, 2, 3].map(|n| used(n, 0, hour)).to_vec();
            if !is_fresh {
                fixture.send(3, keys(1)).await?;
            }
            let batches = [batch(1, 1, keys(9)), batch(2, 1, keys(5))];
            let [first, second] = batches.clone().map(|batch| fixture.usage.add(batch));
            let results = race(first, second, steps).await;
            if let (Ok(()), Ok(())) = results {
                for batch in &batches {
                    fixture.oracle.add(batch).ok();
                }
                fixture.agrees("after concurrent batches").await?;
            } else {
                return Err(fixture.fail(format!("two batches returned {results:?}")));
            }
        }
    }
    Ok(())
}

/// If one batch is added twice concurrently, both calls return `Ok` and the batch is added once.
pub async fn concurrent_copies_of_a_batch_are_added_once<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    for steps in 0..STEPS {
        let clause = "concurrent_copies_of_a_batch_are_added_once";
        let mut fixture = UsageFixture::opened(make, clause, 1).await?;
        fixture.send(1, vec![used(1, 0, 5)]).await?;
        let sent = batch(1, 2, vec![used(1, 0, 6), used(2, 0, 6)]);
        let copies = [
            fixture.usage.add(sent.clone()),
            fixture.usage.add(sent.clone()),
        ];
        let [first, second] = copies;
        let results = race(first, second, steps).await;
        if !matches!(results, (Ok(()), Ok(()))) {
            return Err(fixture.fail(format!("two copies returned {results:?}")));
        }
        fixture.oracle.add(&sent).ok();
        fixture.agrees("after concurrent copies").await?;
    }
    Ok(())
}

/// If a batch is added while its boot is closed at the number before it, exactly one of the two calls takes effect.
pub async fn a_batch_and_the_end_of_its_boot_exclude_each_other<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    for closes_first in [false, true] {
        for steps in 0..STEPS {
            let clause = "a_batch_and_the_end_of_its_boot_exclude_each_other";
            let mut fixture = UsageFixture::opened(make, clause, 1).await?;
            fixture.send(1, vec![used(1, 0, 5)]).await?;
            let sent = batch(1, 2, vec![used(1, 0, 6), used(2, 0, 6)]);
            let closing = BootClosing {
                is_complete: false,
                ..closing(1, 1)
            };
            let add = fixture.usage.add(sent.clone());
            let close = fixture.usage.close_boot(closing);
            let (added, closed) = match closes_first {
                true => {
                    let (closed, added) = race(close, add, steps).await;
                    (added, closed)
                }
                false => race(add, close, steps).await,
            };
            match (&added, &closed) {
                (Ok(()), Ok(false)) => drop(fixture.oracle.add(&sent)),
                (Err(UsageError::Closed { sequence: 1, .. }), Ok(true)) => {
                    fixture.oracle.close(&closing);
                }
                _ => {
                    return Err(fixture.fail(format!(
                        "a batch returned {added:?}, and closing its boot {closed:?}"
                    )));
                }
            }
            fixture.agrees("after a batch and a closing").await?;
        }
    }
    Ok(())
}

/// If two boots are opened concurrently, both are open, and `counted_since` is the time of one of them.
pub async fn concurrent_openings_both_take_effect<U: UsageStore>(
    make: &impl Fn() -> U,
) -> ClauseResult {
    for steps in 0..STEPS {
        let mut fixture = UsageFixture::new(make, "concurrent_openings_both_take_effect");
        let openings = [opening(1), opening(2)];
        let [first, second] = openings.map(|opening| fixture.usage.open_boot(opening));
        let results = race(first, second, steps).await;
        if !matches!(results, (Ok(()), Ok(()))) {
            return Err(fixture.fail(format!("two openings returned {results:?}")));
        }
        let found = fixture.ledger().await?;
        let order = match found.counted_since == Some(openings[0].at) {
            true => [0, 1],
            false => [1, 0],
        };
        for place in order {
            fixture.oracle.open(&openings[place]);
        }
        fixture.agrees("after concurrent openings").await?;
    }
    Ok(())
}
