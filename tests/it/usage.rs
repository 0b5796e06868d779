//! Usage: what processes counted is in the store once, and what is proven complete is complete.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keyward::command::{Created, DeleteKey};
use keyward::store::usage::{
    BootClosing, BootOpening, Completeness, KeyDay, LastUse, LastUseQuery, UsageBatch, UsageError,
    UsageLedger, UsagePruning, UsageStore,
};
use keyward::store::{KeyQuery, MemoryStore, StoreError, StoreErrorKind};
use keyward::usage::{Day, DayCounts, FlushError, UsageFlush, UsageQueryError, UseOutcome};
use keyward::{
    CommandError, CreateKey, Denial, Follow, KeyId, Keyward, ManualClock, Need, Reason, Timestamp,
    days, hours,
};
use proptest::prelude::*;
use support::*;

/// The fate of one write of a usage store.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Done,
    /// Fails before the store is asked.
    Fails,
    /// Fails after the store has written.
    LosesReply,
}

/// A usage store whose next writes have the given fates. All later ones are done.
#[derive(Clone, Debug, Default)]
struct FatedUsage {
    store: MemoryStore,
    fates: Arc<Mutex<VecDeque<Fate>>>,
}

impl FatedUsage {
    fn then(&self, fates: impl IntoIterator<Item = Fate>) {
        let mut waiting = self.fates.lock().unwrap();
        waiting.clear();
        waiting.extend(fates);
    }

    async fn write<T, E: From<StoreError>>(
        &self,
        write: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        let fate = self.fates.lock().unwrap().pop_front();
        match fate.unwrap_or(Fate::Done) {
            Fate::Done => write.await,
            Fate::Fails => Err(StoreError::new(StoreErrorKind::Unavailable, "writing").into()),
            Fate::LosesReply => {
                write.await?;
                Err(StoreError::new(StoreErrorKind::Indeterminate, "writing").into())
            }
        }
    }
}

#[async_trait]
impl UsageStore for FatedUsage {
    async fn open_boot(&self, opening: BootOpening) -> Result<(), StoreError> {
        self.write(self.store.open_boot(opening)).await
    }

    async fn add(&self, batch: UsageBatch) -> Result<(), UsageError> {
        self.write(self.store.add(batch)).await
    }

    async fn close_boot(&self, closing: BootClosing) -> Result<bool, StoreError> {
        self.write(self.store.close_boot(closing)).await
    }

    async fn ledger(&self) -> Result<UsageLedger, StoreError> {
        self.store.ledger().await
    }

    async fn days(&self, keys: &[KeyId], from: Day, to: Day) -> Result<Vec<KeyDay>, StoreError> {
        self.store.days(keys, from, to).await
    }

    async fn last_uses(&self, keys: &[KeyId]) -> Result<BTreeMap<KeyId, LastUse>, StoreError> {
        self.store.last_uses(keys).await
    }

    async fn by_last_use(&self, query: &LastUseQuery) -> Result<Vec<(KeyId, LastUse)>, StoreError> {
        self.store.by_last_use(query).await
    }

    async fn prune(&self, pruning: UsagePruning) -> Result<usize, StoreError> {
        self.store.prune(pruning).await
    }

    async fn forget_keys(&self, keys: &[KeyId]) -> Result<(), StoreError> {
        self.store.forget_keys(keys).await
    }
}

/// A node with a usage store and a registry, over a store in memory.
fn metered(store: &MemoryStore, usage: &FatedUsage, clock: &Arc<ManualClock>) -> Keyward {
    let builder = Keyward::builder(store.clone(), peppers())
        .clock(clock.clone())
        .registry(store.clone())
        .usage(usage.clone());
    wait(builder.build()).unwrap()
}

/// Removes a key and its tombstone, so that all other nodes must read everything again.
fn replace_history(keys: &Keyward, store: &MemoryStore) {
    let key = wait(keys.create(&admin(), reader("removed"))).unwrap();
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    wait(keys.delete(&admin(), key.id, DeleteKey::plain())).unwrap();
    store.compact();
}

/// A service with one node and a usage store.
struct Metered {
    keys: Keyward,
    clock: Arc<ManualClock>,
    store: MemoryStore,
    usage: FatedUsage,
}

impl Metered {
    fn new() -> Self {
        Self::with_fate(Fate::Done)
    }

    /// Starts a service whose process is announced to the usage store with this fate.
    fn with_fate(fate: Fate) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let (store, usage) = (MemoryStore::new(), FatedUsage::default());
        usage.then([fate]);
        let keys = metered(&store, &usage, &clock);
        Self {
            keys,
            clock,
            store,
            usage,
        }
    }

    fn create(&self, name: &str) -> Created {
        wait(self.keys.create(&admin(), reader(name))).unwrap()
    }

    fn use_key(&self, key: &Created, times: usize) {
        (0..times).for_each(|_| drop(self.keys.verify(key.secret.expose(), &reading()).unwrap()));
    }

    fn flush(&self) -> Result<UsageFlush, FlushError> {
        wait(self.keys.flush_usage())
    }

    fn counts(&self, key: KeyId) -> DayCounts {
        let mut counts = DayCounts::default();
        let days = wait(self.usage.days(&[key], Day::FIRST, Day::LAST)).unwrap();
        days.iter().for_each(|day| counts.merge(&day.counts));
        counts
    }

    fn accepted(&self, key: KeyId) -> u64 {
        self.counts(key).count(UseOutcome::Accepted)
    }
}

#[test]
fn uses_are_stored_by_outcome_hour_and_day() {
    let world = Metered::new();
    let key = world.create("key");
    let token = key.secret.expose();
    let refuse = |token: &str, need: &Need| world.keys.verify(token, need).unwrap_err();
    world.use_key(&key, 3);
    refuse(&with_other_secret(token), &reading());
    world.clock.advance(hours(2));
    world.use_key(&key, 2);
    let _refused = refuse(token, &Need::scope("no:such").unwrap());
    world.clock.advance(hours(24));
    world.use_key(&key, 1);
    wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    refuse(token, &reading());
    refuse(token, &reading());
    assert_eq!(world.flush().unwrap().sent, 2, "two days");
    let first = Day::of(at(START));
    let usage = wait(
        world
            .keys
            .key_usage(&admin(), key.id, Day::FIRST, Day::LAST),
    )
    .unwrap();
    let [one, two] = &usage.days[..] else {
        panic!("{usage:?}");
    };
    assert_eq!(
        (one.key, one.day, two.day.number()),
        (key.id, first, first.number() + 1)
    );
    let accepted = one.counts.hours(UseOutcome::Accepted);
    assert_eq!((accepted[0], accepted[1], accepted[2]), (3, 0, 2));
    assert_eq!(one.counts.hours(UseOutcome::WrongSecret)[0], 1);
    assert_eq!(one.counts.hours(UseOutcome::MissingScope)[2], 1);
    assert_eq!(two.counts.hours(UseOutcome::Accepted)[2], 1);
    assert_eq!(two.counts.hours(UseOutcome::Revoked)[2], 2);
    assert_eq!((one.counts.total(), two.counts.total()), (7, 3));
    let last = usage.last.unwrap();
    assert_eq!(
        (last.first_day, last.at),
        (first, at("2026-01-02T02:00:00Z"))
    );
    assert_eq!(usage.count(UseOutcome::Accepted), 6);
}

#[test]
fn unknown_keys_count_for_nobody() {
    let world = Metered::new();
    let key = world.create("key");
    let other = Metered::new().create("elsewhere");
    for text in [other.secret.expose(), "hunter2", ""] {
        assert!(world.keys.verify(text, &reading()).is_err());
    }
    assert_eq!(world.flush().unwrap().sent, 0);
    assert_eq!(world.counts(key.id).total(), 0);
    assert!(
        wait(world.usage.days(&[other.id], Day::FIRST, Day::LAST))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_flush_without_uses_writes_at_most_once_a_minute() {
    let world = Metered::new();
    world.flush().unwrap();
    let sequence = || wait(world.usage.ledger()).unwrap().boots[0].sequence;
    let before = sequence();
    for _ in 0..5 {
        world.clock.advance(Duration::from_secs(10));
        world.flush().unwrap();
    }
    assert_eq!(sequence(), before);
    world.clock.advance(Duration::from_secs(10));
    world.flush().unwrap();
    assert_eq!(sequence(), before + 1);
}

#[test]
fn a_flush_that_fails_or_loses_its_reply_counts_once() {
    for (at_build, at_flush) in [
        (Fate::Fails, Fate::Done),
        (Fate::LosesReply, Fate::Done),
        (Fate::Done, Fate::Fails),
        (Fate::Done, Fate::LosesReply),
    ] {
        let world = Metered::with_fate(at_build);
        let key = world.create("key");
        world.use_key(&key, 3);
        world.usage.then([at_flush]);
        let first = world.flush();
        assert_eq!(first.is_ok(), matches!(at_flush, Fate::Done), "{first:?}");
        world.use_key(&key, 2);
        world.flush().unwrap();
        assert_eq!(world.accepted(key.id), 5, "{at_build:?} {at_flush:?}");
        let ledger = wait(world.usage.ledger()).unwrap();
        assert_eq!(
            (ledger.boots.len(), ledger.gaps.len()),
            (1, 0),
            "{ledger:?}"
        );
    }
}

#[test]
fn a_flush_that_is_dropped_counts_once() {
    let world = Metered::new();
    let key = world.create("key");
    world.use_key(&key, 3);
    {
        let mut flush = Box::pin(world.keys.flush_usage());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _polled = flush.as_mut().poll(&mut context);
    }
    world.use_key(&key, 2);
    world.flush().unwrap();
    assert_eq!(world.accepted(key.id), 5);
}

#[test]
fn a_refused_boot_is_replaced_and_its_uses_are_sent_again() {
    let world = Metered::new();
    let key = world.create("key");
    world.use_key(&key, 1);
    world.flush().unwrap();
    let boot = wait(world.usage.ledger()).unwrap().boots[0];
    world.clock.advance(hours(1));
    let closing = BootClosing {
        boot: boot.id,
        sequence: boot.sequence,
        at: world.keys.now(),
        is_complete: false,
    };
    assert!(wait(world.usage.store.close_boot(closing)).unwrap());
    world.use_key(&key, 2);
    world.clock.advance(hours(1));
    world.flush().unwrap();
    assert_eq!(world.accepted(key.id), 3);
    let ledger = wait(world.usage.ledger()).unwrap();
    assert_eq!(ledger.boots.len(), 2);
    // From the last batch before the close to the time at which the process learnt of the close.
    let gaps = ledger.gaps.iter().map(|gap| (gap.from, gap.until));
    let start = at(START);
    let [one, two] = [1, 2].map(|passed| start.saturating_add(hours(passed)));
    assert_eq!(
        BTreeSet::from_iter(gaps),
        BTreeSet::from([(start, one), (start, two)])
    );
}

#[test]
fn a_store_that_lost_a_boot_gets_a_gap_since_it_was_opened() {
    let world = Metered::new();
    let key = world.create("key");
    world.use_key(&key, 1);
    world.flush().unwrap();
    world.clock.advance(hours(1));
    // The store was replaced by an empty one.
    let lost = FatedUsage::default();
    let moved = Metered {
        keys: metered(&world.store, &lost, &world.clock),
        usage: lost,
        clock: world.clock.clone(),
        store: world.store.clone(),
    };
    moved.use_key(&key, 1);
    moved.flush().unwrap();
    let boot = wait(moved.usage.ledger()).unwrap().boots[0];
    let closing = BootClosing {
        boot: boot.id,
        sequence: boot.sequence,
        at: moved.keys.now(),
        is_complete: true,
    };
    assert!(wait(moved.usage.close_boot(closing)).unwrap());
    let pruning = UsagePruning {
        before: Day::FIRST,
        closed_before: Timestamp::MAX,
        limit: std::num::NonZeroUsize::MIN,
    };
    wait(moved.usage.prune(pruning)).unwrap();
    moved.clock.advance(hours(1));
    moved.use_key(&key, 2);
    moved.flush().unwrap();
    let ledger = wait(moved.usage.ledger()).unwrap();
    let gaps: Vec<_> = ledger
        .gaps
        .iter()
        .map(|gap| (gap.from, gap.until))
        .collect();
    assert_eq!(gaps, [(boot.opened_at, moved.keys.now())]);
    assert_eq!(moved.accepted(key.id), 3);
}

#[test]
fn counts_survive_a_resync_of_the_index() {
    let world = Metered::new();
    let key = world.create("key");
    world.use_key(&key, 3);
    assert!(
        world
            .keys
            .verify(&with_other_secret(key.secret.expose()), &reading())
            .is_err()
    );
    // Another node, which follows the store from its own index.
    let node = metered(&world.store, &world.usage, &world.clock);
    let _granted = node.verify(key.secret.expose(), &reading()).unwrap();
    replace_history(&world.keys, &world.store);
    wait(node.sync()).unwrap();
    wait(node.sync()).unwrap();
    wait(node.flush_usage()).unwrap();
    world.use_key(&key, 1);
    world.flush().unwrap();
    assert_eq!(world.accepted(key.id), 5);
    assert_eq!(world.counts(key.id).count(UseOutcome::WrongSecret), 1);
}

#[test]
fn a_closed_process_has_sent_everything_and_leaves_no_gap() {
    let world = Metered::new();
    let key = world.create("key");
    world.use_key(&key, 3);
    for _ in 0..2 {
        wait(world.keys.close()).unwrap();
        assert_eq!(world.accepted(key.id), 3);
        let ledger = wait(world.usage.ledger()).unwrap();
        assert_eq!(ledger.boots.len(), 1, "a second close opens no boot");
        assert!(ledger.boots[0].closed_at.is_some());
        assert_eq!(ledger.gaps, []);
        world.clock.advance(Duration::from_secs(90));
    }
}

#[test]
fn a_process_that_lost_its_position_sends_its_last_uses() {
    let world = Metered::new();
    let key = world.create("key");
    let node = metered(&world.store, &world.usage, &world.clock);
    let _granted = node.verify(key.secret.expose(), &reading()).unwrap();
    replace_history(&world.keys, &world.store);
    world.clock.advance(hours(1));
    let refused = node.verify(key.secret.expose(), &reading()).unwrap_err();
    assert!(
        matches!(refused, keyward::VerifyError::Stale { .. }),
        "{refused}"
    );
    wait(node.close()).unwrap();
    assert_eq!(world.accepted(key.id), 1);
}

#[test]
fn a_process_is_known_to_count_before_its_first_use() {
    let world = Metered::new();
    let ledger = wait(world.usage.ledger()).unwrap();
    let [boot] = &ledger.boots[..] else {
        panic!("{ledger:?}");
    };
    assert_eq!((boot.node, boot.closed_at), (world.keys.node(), None));
    // Killed before its first flush.
    let key = world.create("key");
    world.use_key(&key, 1);
    let Metered {
        keys,
        clock,
        store,
        usage,
    } = world;
    drop(keys);
    clock.advance(days(2));
    let other = metered(&store, &usage, &clock);
    let gaps = wait(other.usage_completeness()).unwrap().gaps;
    assert_eq!(gaps.len(), 1);
    assert!(gaps[0].from <= at(START), "{gaps:?}");
}

#[test]
fn a_tool_that_only_asks_sends_nothing() {
    let world = Metered::new();
    let key = world.create("key");
    world.use_key(&key, 1);
    world.flush().unwrap();
    let builder = Keyward::builder(world.store.clone(), peppers())
        .clock(world.clock.clone())
        .follow(Follow::Never)
        .registry(world.store.clone())
        .usage_for_queries(world.usage.clone());
    let tool = wait(builder.build()).unwrap();
    let usage = wait(tool.key_usage(&admin(), key.id, Day::FIRST, Day::LAST)).unwrap();
    assert_eq!(usage.count(UseOutcome::Accepted), 1);
    wait(tool.verify_fresh(key.secret.expose(), &reading())).unwrap();
    wait(tool.close()).unwrap();
    assert_eq!(wait(world.usage.ledger()).unwrap().boots.len(), 1);
    assert_eq!(world.accepted(key.id), 1);
}

#[test]
fn reads_through_the_store_are_counted() {
    let world = Metered::new();
    let key = world.create("key");
    let builder = Keyward::builder(world.store.clone(), peppers())
        .clock(world.clock.clone())
        .follow(Follow::Never)
        .usage(world.usage.clone());
    let unindexed = wait(builder.build()).unwrap();
    for _ in 0..3 {
        wait(unindexed.verify_fresh(key.secret.expose(), &reading())).unwrap();
    }
    let refused = Need::scope("no:such").unwrap();
    wait(unindexed.verify_fresh(key.secret.expose(), &refused)).unwrap_err();
    let wrong = with_other_secret(key.secret.expose());
    wait(unindexed.verify_fresh(&*wrong, &reading())).unwrap_err();
    wait(unindexed.flush_usage()).unwrap();
    assert_eq!(world.accepted(key.id), 3);
    let counts = world.counts(key.id);
    assert_eq!(counts.count(UseOutcome::MissingScope), 1);
    assert_eq!(counts.count(UseOutcome::WrongSecret), 1);
    let last = wait(world.usage.last_uses(&[key.id])).unwrap();
    assert_eq!(last[&key.id].at, at(START));
}

#[test]
fn only_who_may_look_at_a_key_sees_its_usage() {
    let world = Metered::new();
    let key = world.create("key");
    let stranger = actor("other", "eve", keyward::Role::ADMIN);
    let refused = wait(
        world
            .keys
            .key_usage(&stranger, key.id, Day::FIRST, Day::LAST),
    );
    let is_not_found = |error: &UsageQueryError| {
        matches!(
            error,
            UsageQueryError::Keys(CommandError::Denied(Denial::NotFound))
        )
    };
    assert!(is_not_found(&refused.unwrap_err()));
    let query = KeyQuery::tenant(tenant("acme"), world.keys.now());
    assert!(wait(world.keys.list_used(&stranger, &query)).is_err());
    assert!(wait(world.keys.unused(&stranger, &query, at(START))).is_err());
    let without = TestService::new();
    let none = wait(without.keys.list_used(&admin(), &query)).unwrap_err();
    assert_eq!(none.code(), "no-usage-store");
}

#[test]
fn unused_keys_are_proven_only_after_a_complete_period() {
    let world = Metered::new();
    let (used, idle, never) = (
        world.create("used"),
        world.create("idle"),
        world.create("never"),
    );
    world.flush().unwrap();
    world.use_key(&idle, 1);
    world.clock.advance(days(1));
    let since = world.keys.now().saturating_add(hours(1));
    let query = || KeyQuery::tenant(tenant("acme"), world.keys.now());
    let live = |passed: Duration| {
        // The node lives on, and sends every minute.
        for _ in 0..passed.as_secs() / 60 {
            world.clock.advance(Duration::from_secs(60));
            world.use_key(&used, 1);
            wait(world.keys.sync()).unwrap();
            world.flush().unwrap();
        }
    };
    world.flush().unwrap();
    live(hours(24));
    let young = world.create("young");
    let unused = wait(world.keys.unused(&admin(), &query(), since)).unwrap();
    let found: BTreeSet<_> = unused.keys.iter().map(|info| info.facts.id).collect();
    assert_eq!(
        found,
        BTreeSet::from([idle.id, never.id]),
        "not {}",
        young.id
    );
    assert!(unused.is_proven, "{:?}", unused.completeness);
    assert_eq!(
        unused.last_uses.keys().copied().collect::<Vec<_>>(),
        [idle.id]
    );
    let long_ago = wait(world.keys.unused(&admin(), &query(), at(START))).unwrap();
    assert!(!long_ago.is_proven, "the counts begin later");

    // A second process without usage: its uses are not counted.
    let silent = Keyward::builder(world.store.clone(), peppers())
        .clock(world.clock.clone())
        .registry(world.store.clone());
    let silent = wait(silent.build()).unwrap();
    let unused = wait(world.keys.unused(&admin(), &query(), since)).unwrap();
    assert!(!unused.is_proven);
    assert_eq!(unused.completeness.uncounted, Vec::from_iter(silent.node()));
    wait(silent.close()).unwrap();
    assert!(
        wait(world.keys.unused(&admin(), &query(), since))
            .unwrap()
            .is_proven
    );

    // A second process that is killed: what it did not send is a gap until it is known to have ended.
    let killed = metered(&world.store, &world.usage, &world.clock);
    wait(killed.flush_usage()).unwrap();
    drop(killed);
    live(hours(1));
    let unused = wait(world.keys.unused(&admin(), &query(), since)).unwrap();
    assert!(!unused.is_proven, "{:?}", unused.completeness);
    assert_eq!(unused.completeness.gaps.len(), 1);
    live(hours(25));
    let closed = wait(world.usage.ledger()).unwrap();
    let open = closed.boots.iter().filter(|boot| boot.closed_at.is_none());
    assert_eq!(
        open.count(),
        1,
        "the maintenance closes a boot that was silent for a day"
    );
}

#[test]
fn pruning_removes_days_and_raises_the_start() {
    let world = Metered::new();
    let key = world.create("key");
    world.use_key(&key, 1);
    world.flush().unwrap();
    world.clock.advance(days(3));
    world.use_key(&key, 2);
    world.flush().unwrap();
    let today = Day::of(world.keys.now());
    assert_eq!(wait(world.keys.prune_usage(today)).unwrap(), 1);
    assert_eq!(world.accepted(key.id), 2);
    let completeness = wait(world.keys.usage_completeness()).unwrap();
    let allowance = Duration::from_secs(5 * 60);
    assert_eq!(
        completeness.counted_since,
        Some(today.start().saturating_add(allowance))
    );
    let last = wait(world.usage.last_uses(&[key.id])).unwrap()[&key.id];
    assert_eq!(last.first_day, Day::of(at(START)));
}

/// A step of a random history of nodes.
#[derive(Clone, Debug)]
enum Step {
    Use { node: usize, key: usize, good: bool },
    Advance { seconds: u64 },
    Flush { node: usize, fates: Vec<Fate> },
    Kill { node: usize },
    Close { node: usize },
    Resync { node: usize },
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Done),
        1 => Just(Fate::Fails),
        1 => Just(Fate::LosesReply),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    prop_oneof![
        6 => (node.clone(), 0..2_usize, any::<bool>())
            .prop_map(|(node, key, good)| Step::Use { node, key, good }),
        4 => prop_oneof![1_u64..100, 1_u64..100, 1000_u64..20_000, Just(100_000)]
            .prop_map(|seconds| Step::Advance { seconds }),
        5 => (node.clone(), prop::collection::vec(fate(), 0..3))
            .prop_map(|(node, fates)| Step::Flush { node, fates }),
        1 => node.clone().prop_map(|node| Step::Kill { node }),
        1 => node.clone().prop_map(|node| Step::Close { node }),
        1 => node.prop_map(|node| Step::Resync { node }),
    ]
}

const NODES: usize = 3;

/// One use as it happened: its key, whether the key was accepted, and the true time. The clocks of nodes differ from it.
#[derive(Clone, Copy, Debug)]
struct TrueUse {
    key: usize,
    good: bool,
    at: Timestamp,
    /// The hour by the clock of the node.
    hour: (Day, u8),
}

/// Returns the uses of a list, by key, outcome and hour.
fn by_hour<'a>(
    uses: impl IntoIterator<Item = &'a TrueUse>,
) -> BTreeMap<(usize, bool, Day, u8), u64> {
    let mut counts = BTreeMap::new();
    for used in uses {
        let (day, hour) = used.hour;
        *counts.entry((used.key, used.good, day, hour)).or_default() += 1;
    }
    counts
}

struct History {
    store: MemoryStore,
    usage: FatedUsage,
    clocks: Vec<Arc<ManualClock>>,
    nodes: Vec<Keyward>,
    keys: Vec<Created>,
    truth: Timestamp,
    /// Uses that the store has, or must get from a live node.
    kept: Vec<TrueUse>,
    /// Uses since the last flush of each node that returned `Ok`.
    unsent: Vec<Vec<TrueUse>>,
    /// Uses that a killed node may not have sent.
    lost: Vec<TrueUse>,
}

impl History {
    fn new() -> Self {
        let (store, usage) = (MemoryStore::new(), FatedUsage::default());
        // Two minutes apart, in both directions: within the allowance of five minutes.
        let clocks: Vec<_> = [
            "2026-01-01T10:58:00Z",
            "2026-01-01T11:00:00Z",
            "2026-01-01T11:02:00Z",
        ]
        .map(|time| Arc::new(ManualClock::at(at(time))))
        .to_vec();
        let nodes: Vec<_> = clocks
            .iter()
            .map(|clock| metered(&store, &usage, clock))
            .collect();
        let keys = ["a", "b"].map(|name| {
            wait(nodes[1].create(&admin(), CreateKey::new(name).scope("reports:read"))).unwrap()
        });
        nodes.iter().for_each(|node| wait(node.sync()).unwrap());
        Self {
            store,
            usage,
            clocks,
            nodes,
            keys: keys.into(),
            truth: at("2026-01-01T11:00:00Z"),
            kept: Vec::new(),
            unsent: vec![Vec::new(); NODES],
            lost: Vec::new(),
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Use { node, key, good } => {
                let scope = if *good { "reports:read" } else { "no:such" };
                let token = self.keys[*key].secret.expose();
                let verdict = self.nodes[*node].verify(token, &Need::scope(scope).unwrap());
                assert_eq!(verdict.is_ok(), *good, "{verdict:?}");
                let own = self.nodes[*node].now();
                self.unsent[*node].push(TrueUse {
                    key: *key,
                    good: *good,
                    at: self.truth,
                    hour: (Day::of(own), Day::hour_of(own)),
                });
            }
            Step::Advance { seconds } => {
                let by = Duration::from_secs(*seconds);
                self.clocks.iter().for_each(|clock| clock.advance(by));
                self.truth = self.truth.saturating_add(by);
                self.nodes
                    .iter()
                    .for_each(|node| wait(node.sync()).unwrap());
            }
            Step::Flush { node, fates } => {
                self.usage.then(fates.iter().copied());
                let flushed = wait(self.nodes[*node].flush_usage());
                self.usage.then([]);
                if flushed.is_ok() {
                    self.kept.append(&mut self.unsent[*node]);
                }
            }
            Step::Kill { node } => {
                self.lost.append(&mut self.unsent[*node]);
                self.restart(*node);
            }
            Step::Close { node } => {
                wait(self.nodes[*node].close()).unwrap();
                self.kept.append(&mut self.unsent[*node]);
                self.restart(*node);
            }
            Step::Resync { node } => {
                replace_history(&self.nodes[(node + 1) % NODES], &self.store);
                wait(self.nodes[*node].sync()).unwrap();
            }
        }
    }

    fn restart(&mut self, node: usize) {
        self.nodes[node] = metered(&self.store, &self.usage, &self.clocks[node]);
    }

    fn stored(&self) -> BTreeMap<(usize, bool, Day, u8), u64> {
        let mut counts = BTreeMap::new();
        for (number, key) in self.keys.iter().enumerate() {
            for day in wait(self.usage.days(&[key.id], Day::FIRST, Day::LAST)).unwrap() {
                for good in [true, false] {
                    let outcome = if good {
                        UseOutcome::Accepted
                    } else {
                        UseOutcome::MissingScope
                    };
                    for (hour, count) in (0..).zip(day.counts.hours(outcome)) {
                        if count > 0 {
                            counts.insert((number, good, day.day, hour), count);
                        }
                    }
                }
                let known = [UseOutcome::Accepted, UseOutcome::MissingScope];
                let known: u64 = known.map(|outcome| day.counts.count(outcome)).iter().sum();
                assert_eq!(day.counts.total(), known);
            }
        }
        counts
    }

    /// Checks that every use in a period is stored if the period is proven complete.
    fn check_proofs(&self) -> Result<usize, TestCaseError> {
        let (stored, mut proven) = (self.stored(), 0);
        let unsent = self.unsent.iter().flatten().chain(&self.lost);
        let completeness = wait(self.nodes[1].usage_completeness()).unwrap();
        let Some(until) = completeness.complete_until else {
            return Ok(0);
        };
        for start in (0..60).map(|back| self.truth.saturating_sub(hours(1) * back)) {
            if start < until && completeness.proves(start, until) {
                proven += 1;
                let within = |used: &&TrueUse| (start..=until).contains(&used.at);
                for used in unsent.clone().filter(within) {
                    let (day, hour) = used.hour;
                    let all = self
                        .kept
                        .iter()
                        .chain(self.unsent.iter().flatten())
                        .chain(&self.lost);
                    let all = by_hour(all)[&(used.key, used.good, day, hour)];
                    let found = stored.get(&(used.key, used.good, day, hour)).copied();
                    prop_assert_eq!(
                        found,
                        Some(all),
                        "{:?} is not stored, {:?}",
                        used,
                        completeness
                    );
                }
            }
        }
        Ok(proven)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    /// Nodes whose flushes fail, lose replies, are killed and closed: each acknowledged use is stored once, with its
    /// hour, and no use is stored twice. A period that is proven complete has all its uses in the store.
    #[test]
    fn every_use_is_stored_once_and_proofs_hold(steps in prop::collection::vec(step(), 1..60)) {
        let mut history = History::new();
        for step in &steps {
            history.run(step);
            history.check_proofs()?;
        }
        for node in 0..NODES {
            history.run(&Step::Flush { node, fates: Vec::new() });
        }
        let stored = history.stored();
        let kept = by_hour(&history.kept);
        let most = by_hour(history.kept.iter().chain(&history.lost));
        for (hour, count) in &kept {
            prop_assert!(stored.get(hour) >= Some(count), "{:?} of {:?}", hour, stored);
        }
        for (hour, count) in &stored {
            prop_assert!(most.get(hour) >= Some(count), "{:?} of {:?}", hour, most);
        }
        for (number, key) in history.keys.iter().enumerate() {
            let last = wait(history.usage.last_uses(&[key.id])).unwrap().remove(&key.id);
            let good = history.kept.iter().filter(|used| used.good && used.key == number);
            let newest = good.map(|used| used.hour).max();
            let found = last.map(|last| (Day::of(last.at), Day::hour_of(last.at)));
            prop_assert!(found >= newest, "{:?} is older than {:?}", found, newest);
        }
    }
}

/// Nodes that live and send prove their period: the proofs above are not empty.
#[test]
fn nodes_that_send_prove_their_period() {
    let mut history = History::new();
    for _ in 0..30 {
        for node in 0..NODES {
            history.run(&Step::Use {
                node,
                key: node % 2,
                good: true,
            });
            history.run(&Step::Flush {
                node,
                fates: Vec::new(),
            });
        }
        history.run(&Step::Advance { seconds: 240 });
    }
    assert!(history.check_proofs().unwrap() > 0);
    let completeness: Completeness = wait(history.nodes[0].usage_completeness()).unwrap();
    assert_eq!(completeness.gaps, []);
}
