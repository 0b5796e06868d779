//! Random schedules of several nodes. Every call to the store or the registry takes two steps, and other
//! operations run in between. Clocks drift, links fail, and nodes start, crash and are cut off.
//!
//! The property: once a receipt was complete, no running node accepts the revoked key.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use keyward::command::Created;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, NodeId, NodeRegistry, NodeReport,
    Revision, RowKey, ScanPage, StoreError, TenantView, async_trait,
};
use keyward::{Keyward, ManualClock, Reason, Receipt, TenantId};
use keyward_conformance::{FaultyStore, Reached};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use support::*;

const NODES: usize = 3;
const KEYS: usize = 8;
/// The report allowances of the nodes, in minutes.
const ALLOWANCES: [u64; NODES] = [1, 4, 20];

/// The system under test: sound, or with one deliberate defect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Twin {
    Sound,
    /// A report is acknowledged before it is durable, so a node is fresh before it is registered.
    RegistersLate,
    /// A node reports a change as applied before it has applied the change.
    ReportsAhead,
    /// A node registers a shorter lease than it uses.
    ShortLease,
    /// A node reports the lease of the shortest allowance, and uses a longer one.
    ShortAllowance,
    /// A node reports a shorter staleness bound than it uses.
    ShortBound,
    /// The registry removes an entry immediately, without checking its last report.
    ForgetsTheLiving,
}

/// Suspends the task once, as if a request or an answer were in flight.
async fn step() {
    let mut waited = false;
    poll_fn(|_| {
        if waited {
            return Poll::Ready(());
        }
        waited = true;
        Poll::Pending
    })
    .await;
}

async fn slowly<T>(call: impl Future<Output = T>) -> T {
    step().await;
    let answer = call.await;
    step().await;
    answer
}

#[derive(Debug)]
struct Slow(FaultyStore<MemoryStore>);

#[async_trait]
impl KeyStore for Slow {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        slowly(self.0.load(tenant, select)).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        slowly(self.0.find(locator)).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        slowly(self.0.commit(commit)).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        slowly(self.0.changes(after, limit)).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        slowly(self.0.scan(after, limit)).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        slowly(self.0.list(query)).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        slowly(self.0.audit(query)).await
    }
}

/// The registry as one node reaches it, with the defect of the system under test.
#[derive(Debug)]
struct Roll {
    inner: FaultyStore<MemoryStore>,
    twin: Twin,
    held: Arc<Mutex<Vec<NodeReport>>>,
}

#[async_trait]
impl NodeRegistry for Roll {
    async fn report(&self, mut report: NodeReport) -> Result<bool, StoreError> {
        step().await;
        match self.twin {
            Twin::RegistersLate => {
                self.held.lock().unwrap().push(report);
                return Ok(true);
            }
            Twin::ReportsAhead => {
                if let Some(applied) = &mut report.applied {
                    applied.revision.0 += 1;
                }
            }
            Twin::ShortLease => report.lease = Duration::from_secs(1),
            Twin::ShortAllowance => report.lease = report.bound() + NodeReport::ALLOWANCE,
            Twin::ShortBound => {
                let process = report.process.iter_mut();
                process.for_each(|process| process.bound = Duration::from_secs(1));
            }
            Twin::Sound | Twin::ForgetsTheLiving => {}
        }
        let answer = self.inner.report(report).await;
        step().await;
        answer
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        let nodes = slowly(self.inner.nodes()).await?;
        if self.twin == Twin::ForgetsTheLiving
            && let Some(first) = nodes.first()
        {
            self.inner.forget(first.node, u64::MAX).await?;
        }
        Ok(nodes)
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        slowly(self.inner.forget(node, upto)).await
    }
}

enum Done {
    Built(Option<Keyward>),
    Revoked(Option<(usize, Receipt)>),
    Asked(Option<usize>),
    Other,
}

type Task = Pin<Box<dyn Future<Output = Done>>>;

struct Node {
    clock: Arc<ManualClock>,
    link: FaultyStore<MemoryStore>,
    roll: FaultyStore<MemoryStore>,
    keys: Option<Keyward>,
    task: Option<Task>,
    receipts: Vec<(usize, Receipt)>,
}

#[derive(Clone, Debug)]
enum Op {
    Start(usize),
    Crash(usize),
    Sync(usize),
    Leave(usize),
    Revoke(usize, usize),
    Ask(usize, usize),
    /// Polls the running operation of the node with this number, at most this many times.
    Run(usize, usize),
    /// Drops the running operation of the node with this number.
    GiveUp(usize),
    /// Cuts a node off from the store, the registry or both, or reconnects it.
    Cut(usize, bool, bool),
    Advance(u64),
    /// Makes acknowledged reports durable.
    Settle,
}

struct Schedule {
    twin: Twin,
    store: MemoryStore,
    held: Arc<Mutex<Vec<NodeReport>>>,
    keys: Vec<Created>,
    nodes: Vec<Node>,
    settled: BTreeSet<usize>,
}

impl Schedule {
    fn new(twin: Twin) -> Self {
        let store = MemoryStore::new();
        let clock = || Arc::new(ManualClock::at(at(START)));
        let host = node(store.clone(), &clock(), keyward::policy::Policy::default());
        let create = |n: usize| wait(host.create(&admin(), reader(&n.to_string()))).unwrap();
        let keys = (0..KEYS).map(create).collect();
        let node = |n: u64| {
            let clock = clock();
            // Each node's monotonic clock starts at a different instant.
            clock.advance(Duration::from_secs(n * 1_000));
            Node {
                clock,
                link: FaultyStore::new(store.clone()),
                roll: FaultyStore::new(store.clone()),
                keys: None,
                task: None,
                receipts: Vec::new(),
            }
        };
        let mut schedule = Self {
            twin,
            held: Arc::default(),
            keys,
            nodes: (0..NODES as u64).map(node).collect(),
            store: store.clone(),
            settled: BTreeSet::new(),
        };
        for n in 0..2 {
            schedule.apply(&Op::Start(n));
            schedule.apply(&Op::Run(n, 40));
            schedule.apply(&Op::Settle);
        }
        schedule
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Start(n) => self.start(n),
            Op::Crash(n) => {
                let node = &mut self.nodes[n];
                (node.keys, node.task) = (None, None);
                node.receipts.clear();
            }
            Op::Sync(n) => self.begin(n, |keys| async move {
                drop(keys.sync().await);
                Done::Other
            }),
            Op::Leave(n) => self.begin(n, |keys| async move {
                drop(keys.deregister().await);
                Done::Other
            }),
            Op::Revoke(n, key) => {
                let id = self.keys[key].id;
                self.begin(n, move |keys| async move {
                    let revoked = keys.revoke(&admin(), id, Reason::Lost).await;
                    Done::Revoked(revoked.ok().map(|receipt| (key, receipt)))
                });
            }
            Op::Ask(n, which) => {
                let receipts = &self.nodes[n].receipts;
                let Some(&(key, receipt)) = receipts.iter().nth_back(which) else {
                    return;
                };
                self.begin(n, move |keys| async move {
                    let asked = keys.confirmations(&receipt).await;
                    Done::Asked(asked.is_ok_and(|asked| asked.is_complete()).then_some(key))
                });
            }
            Op::Run(n, steps) => (0..steps).for_each(|_| self.poll(n)),
            Op::GiveUp(n) => self.nodes[n].task = None,
            Op::Cut(n, link, roll) => {
                self.nodes[n].link.partition(link);
                self.nodes[n].roll.partition(roll);
            }
            Op::Advance(millis) => {
                // The first node's clock runs 0.1 % fast, and the last node's clock 0.1 % slow.
                for (n, node) in self.nodes.iter().enumerate() {
                    let parts = 1_001 - n as u64;
                    node.clock.advance(Duration::from_micros(millis * parts));
                }
            }
            Op::Settle => {
                for report in self.held.lock().unwrap().drain(..) {
                    wait(self.store.report(report)).unwrap();
                }
            }
        }
    }

    fn start(&mut self, n: usize) {
        let (twin, held) = (self.twin, self.held.clone());
        let node = &mut self.nodes[n];
        if node.keys.is_some() || node.task.is_some() {
            return;
        }
        let roll = Roll {
            inner: node.roll.clone(),
            twin,
            held,
        };
        let builder = Keyward::builder(Slow(node.link.clone()), peppers())
            .registry(roll)
            .report_allowance(Duration::from_secs(60 * ALLOWANCES[n]))
            .clock(node.clock.clone());
        node.task = Some(Box::pin(
            async move { Done::Built(builder.build().await.ok()) },
        ));
    }

    fn begin<F: Future<Output = Done> + 'static>(
        &mut self,
        n: usize,
        task: impl FnOnce(Keyward) -> F,
    ) {
        let node = &mut self.nodes[n];
        if let (Some(keys), None) = (&node.keys, &node.task) {
            node.task = Some(Box::pin(task(keys.clone())));
        }
    }

    fn poll(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(task) = &mut node.task else { return };
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(done) = task.as_mut().poll(&mut context) else {
            return;
        };
        node.task = None;
        match done {
            Done::Built(keys) => node.keys = keys,
            Done::Revoked(receipt) => node.receipts.extend(receipt),
            Done::Asked(settled) => self.settled.extend(settled),
            Done::Other => {}
        }
    }

    /// Checks that no node accepts a key whose receipt was complete.
    fn check(&self) -> Result<(), String> {
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(keys) = &node.keys else { continue };
            for &key in &self.settled {
                if keys
                    .verify(self.keys[key].secret.expose(), &reading())
                    .is_ok()
                {
                    return Err(format!("node {n} accepts key {key}"));
                }
            }
        }
        Ok(())
    }
}

/// Runs a schedule. Returns the number of complete receipts, or the violation.
fn run(twin: Twin, ops: &[Op]) -> Result<usize, String> {
    let mut schedule = Schedule::new(twin);
    for (n, op) in ops.iter().enumerate() {
        schedule.apply(op);
        schedule
            .check()
            .map_err(|error| format!("after op {n}: {error}"))?;
    }
    Ok(schedule.settled.len())
}

/// Generates an operation of a node, which runs to its end or part of the way.
fn some(begin: impl Strategy<Value = (usize, Op)>) -> impl Strategy<Value = Vec<Op>> {
    let steps = prop_oneof![2 => Just(40), 1 => 1..9_usize];
    (begin, steps).prop_map(|((n, op), steps)| vec![op, Op::Run(n, steps)])
}

fn phrase() -> impl Strategy<Value = Vec<Op>> {
    let node = || 0..NODES;
    let one = |op: Op| vec![op];
    let time = prop_oneof![
        Just(100_u64),
        Just(2_000),
        Just(9_900),
        Just(10_100),
        Just(55_000)
    ];
    prop_oneof![
        8 => some(node().prop_map(|n| (n, Op::Sync(n)))),
        5 => some((node(), 0..KEYS).prop_map(|(n, key)| (n, Op::Revoke(n, key)))),
        8 => some((node(), 0..2_usize).prop_map(|(n, which)| (n, Op::Ask(n, which)))),
        3 => some(node().prop_map(|n| (n, Op::Start(n)))),
        1 => some(node().prop_map(|n| (n, Op::Leave(n)))),
        6 => node().prop_map(move |n| one(Op::Run(n, 40))),
        1 => node().prop_map(move |n| one(Op::Crash(n))),
        1 => node().prop_map(move |n| one(Op::GiveUp(n))),
        1 => (node(), any::<bool>(), any::<bool>()).prop_map(move |(n, a, b)| one(Op::Cut(n, a, b))),
        2 => node().prop_map(move |n| one(Op::Cut(n, false, false))),
        3 => time.prop_map(move |time| one(Op::Advance(time))),
        1 => Just(one(Op::Settle)),
    ]
}

fn schedules() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(phrase(), 1..100).prop_map(|phrases| phrases.concat())
}

#[test]
fn no_node_accepts_a_key_whose_receipt_is_complete() {
    let complete = Reached::new("a complete receipt");
    let config = Config {
        cases: 400,
        ..Config::default()
    };
    proptest!(config, |(ops in schedules())| {
        let receipts = run(Twin::Sound, &ops).map_err(TestCaseError::fail)?;
        complete.note(receipts > 0);
    });
}

/// Runs `cases` schedules, which are the same in every run. Returns the number of failures and of complete
/// receipts.
fn outcomes(twin: Twin, cases: usize) -> (usize, usize) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut wrong, mut complete) = (0, 0);
    for _ in 0..cases {
        let ops = schedules().new_tree(&mut runner).unwrap().current();
        match run(twin, &ops) {
            Ok(settled) => complete += settled,
            Err(_) => wrong += 1,
        }
    }
    (wrong, complete)
}

#[test]
fn schedules_complete_receipts_and_catch_every_broken_variant() {
    let (wrong, complete) = outcomes(Twin::Sound, 300);
    assert_eq!(wrong, 0);
    assert!(complete > 50, "{complete} receipts were complete");
    let broken = [
        Twin::RegistersLate,
        Twin::ReportsAhead,
        Twin::ShortLease,
        Twin::ForgetsTheLiving,
    ];
    for twin in broken {
        let (wrong, _) = outcomes(twin, 500);
        assert!(wrong > 2, "{twin:?}: {wrong} of 500 schedules fail");
    }
}

/// Node 0 has the shortest allowance, and node 1 a longer one. Node 1 cannot report, and reads the store.
#[test]
fn a_receipt_counts_on_the_bound_and_the_allowance_that_a_node_reports() {
    let op = |n, op| [op, Op::Run(n, 40)];
    let (revoke, ask) = (|key| op(0, Op::Revoke(0, key)), op(0, Op::Ask(0, 0)));
    let sync = op(1, Op::Sync(1));
    let mut ops = [revoke(7), sync.clone(), ask.clone()].concat();
    ops.push(Op::Cut(1, false, true));
    for time in [55_000, 20_000] {
        ops.push(Op::Advance(time));
        ops.extend(sync.clone());
    }
    ops.extend(revoke(0));
    ops.push(Op::Advance(2_000));
    ops.extend(ask);
    assert_eq!(run(Twin::Sound, &ops), Ok(1), "only the first receipt");
    for twin in [Twin::ShortAllowance, Twin::ShortBound] {
        let wrong = run(twin, &ops).unwrap_err();
        assert!(wrong.ends_with("node 1 accepts key 0"), "{twin:?}: {wrong}");
    }
}

#[test]
fn no_receipt_overlooks_a_node_that_starts_or_returns_during_a_revocation() {
    let revoke = |key| [Op::Revoke(0, key), Op::Run(0, 40)];
    let ask = [Op::Ask(0, 0), Op::Run(0, 40)];
    let (mut settled, mut open) = (0, 0);
    for steps in 0..40 {
        let mut starting = vec![Op::Start(2), Op::Run(2, steps)];
        starting.extend(revoke(0));
        starting.extend([Op::Sync(1), Op::Run(1, 40)]);
        starting.extend(ask.clone());
        starting.push(Op::Run(2, 40));

        // Node 1 has reported once. It is then silent for longer than its lease, and syncs again.
        let mut returning = revoke(7).to_vec();
        returning.extend(ask.clone());
        returning.extend([Op::Advance(80_000), Op::Sync(1), Op::Run(1, steps)]);
        returning.extend(revoke(0));
        returning.extend(ask.clone());
        returning.push(Op::Run(1, 40));

        for ops in [starting, returning] {
            let complete =
                run(Twin::Sound, &ops).unwrap_or_else(|error| panic!("{steps}: {error}"));
            *(if complete > 0 {
                &mut settled
            } else {
                &mut open
            }) += 1;
        }
    }
    assert!(settled > 0 && open > 0, "{settled} complete, {open} not");
}
