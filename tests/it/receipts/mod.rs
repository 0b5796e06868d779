//! Receipts report which nodes have applied a change. A receipt never counts as complete while a node may
//! still act on the earlier state.

mod schedules;

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use keyward::command::{Created, DeleteKey};
use keyward::entropy::SeededEntropy;
use keyward::node::{Confirmations, NodeAnswer, NodeLabel};
use keyward::pepper::PepperId;
use keyward::policy::{Policies, Policy, Propagation};
use keyward::store::{
    KeyStore, MemoryStore, NodeId, NodeProcess, NodeRegistry, NodeReport, StoreError, async_trait,
};
use keyward::{
    Follow, Keyward, ManualClock, PepperRing, Reason, Receipt, Role, VerifyError, hours, profiles,
};
use keyward_conformance::{Call, Fault, FaultyStore};
use support::gated::GatedStore;
use support::*;

/// The default staleness bound: 10 s.
const BOUND: Duration = Duration::from_secs(10);
/// 10.03 s: just longer than the staleness bound, even on the slowest clock that the allowed drift permits.
const PAST: Duration = Duration::from_millis(10_030);
/// 60 s: by default, a node's lease is this much longer than its staleness bound.
const SLACK: Duration = NodeReport::ALLOWANCE;
const SECOND: Duration = Duration::from_secs(1);

/// A node with one link to the store and one to the registry. Tests can cut each link.
struct Node {
    keys: Keyward,
    link: FaultyStore<MemoryStore>,
    roll: FaultyStore<MemoryStore>,
}

struct Nodes {
    clock: Arc<ManualClock>,
    store: MemoryStore,
    nodes: Vec<Node>,
}

impl Nodes {
    fn new(count: usize) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let mut world = Self {
            clock,
            store,
            nodes: Vec::new(),
        };
        (0..count).for_each(|_| world.start());
        world
    }

    fn start(&mut self) {
        self.start_with_allowance(SLACK);
    }

    fn start_with_allowance(&mut self, allowance: Duration) {
        let link = FaultyStore::new(self.store.clone());
        let roll = FaultyStore::new(self.store.clone());
        let label = NodeLabel::new(format!("node {}", self.nodes.len())).unwrap();
        let builder = Keyward::builder(link.clone(), peppers())
            .registry(roll.clone())
            .node_label(label)
            .report_allowance(allowance)
            .clock(self.clock.clone());
        let keys = wait(builder.build()).unwrap();
        self.nodes.push(Node { keys, link, roll });
    }

    fn keys(&self, node: usize) -> &Keyward {
        &self.nodes[node].keys
    }

    fn sync(&self) {
        for node in &self.nodes {
            wait(node.keys.sync()).unwrap();
        }
    }

    /// Creates a key that every node accepts.
    fn key(&self) -> Created {
        let key = wait(self.keys(0).create(&admin(), reader("a"))).unwrap();
        self.sync();
        key
    }

    fn revoke(&self, key: &Created) -> Receipt {
        wait(self.keys(0).revoke(&admin(), key.id, Reason::Lost)).unwrap()
    }

    fn ask(&self, receipt: &Receipt) -> Confirmations {
        wait(self.keys(0).confirmations(receipt)).unwrap()
    }

    fn accepts(&self, node: usize, key: &Created) -> bool {
        self.keys(node)
            .verify(key.secret.expose(), &reading())
            .is_ok()
    }

    fn registered(&self) -> Vec<NodeReport> {
        wait(self.store.nodes()).unwrap()
    }

    fn report_of(&self, node: usize) -> NodeReport {
        let id = self.keys(node).node().unwrap();
        let all = self.registered();
        all.into_iter().find(|report| report.node == id).unwrap()
    }
}

fn labels<'a>(nodes: impl Iterator<Item = &'a keyward::node::NodeConfirmation>) -> Vec<&'a str> {
    let mut labels: Vec<_> = nodes
        .map(|node| node.label.as_ref().unwrap().as_str())
        .collect();
    labels.sort_unstable();
    labels
}

#[test]
fn a_receipt_is_complete_once_every_node_has_applied_its_change() {
    let world = Nodes::new(3);
    let key = world.key();
    let receipt = world.revoke(&key);
    let asked = world.ask(&receipt);
    assert!(!asked.is_complete());
    assert_eq!(
        labels(asked.applied()),
        ["node 0"],
        "only the revoking node has applied the change"
    );
    let mut waiting = asked.waiting();
    let (_, at_most) = waiting.next().unwrap();
    assert!(at_most >= BOUND && at_most <= PAST, "{at_most:?}");
    assert_eq!(waiting.count(), 1);

    wait(world.keys(2).sync()).unwrap();
    let asked = world.ask(&receipt);
    assert_eq!(labels(asked.applied()), ["node 0", "node 2"]);
    assert!(!asked.is_complete() && world.accepts(1, &key));

    wait(world.keys(1).sync()).unwrap();
    let asked = world.ask(&receipt);
    assert!(asked.is_complete() && asked.at_most().is_zero());
    assert_eq!(asked.nodes().len(), 3);
    assert!((0..3).all(|node| !world.accepts(node, &key)));
}

#[test]
fn every_change_has_a_receipt_that_can_be_queried_bulk_changes_included() {
    let world = Nodes::new(2);
    let bob = actor("acme", "bob", keyward::Role::ADMIN);
    let keys = world.keys(0);
    let mut receipts = Vec::new();
    for _ in 0..3 {
        wait(keys.create(&bob, reader("b"))).unwrap();
    }
    let key = world.key();
    let rotated = wait(keys.rotate(&admin(), key.id, keyward::RotateKey::immediate())).unwrap();
    receipts.push(rotated.receipt);
    let other = world.key();
    let deleted =
        wait(keys.delete(&admin(), other.id, keyward::command::DeleteKey::plain())).unwrap();
    receipts.push(deleted);
    let removed = wait(keys.remove_owner(&admin(), &tenant("acme"), who("bob"))).unwrap();
    assert_eq!(removed.ended, 3);
    receipts.push(removed.receipt);
    for receipt in &receipts {
        assert!(receipt.epoch().is_some() && receipt.bound() > BOUND);
    }
    let last = receipts.last().unwrap();
    assert!(!world.ask(last).is_complete());
    wait(world.keys(1).sync()).unwrap();
    assert!(
        receipts
            .iter()
            .all(|receipt| world.ask(receipt).is_complete())
    );
}

impl Nodes {
    /// Starts a node whose policy has another staleness bound, as after a deployment that not every process
    /// has.
    fn start_with_bound(&mut self, bound: Duration) {
        let mut spec = profiles::standard();
        spec.propagation = Propagation { bound };
        let link = FaultyStore::new(self.store.clone());
        let roll = FaultyStore::new(self.store.clone());
        let builder = Keyward::builder(link.clone(), peppers()).registry(roll.clone());
        let builder = builder.policy(Policy::new(spec).unwrap());
        let keys = wait(builder.clock(self.clock.clone()).build()).unwrap();
        self.nodes.push(Node { keys, link, roll });
    }

    /// Starts a process that gives commands and verifies nothing.
    fn start_without_index(&mut self) {
        let link = FaultyStore::new(self.store.clone());
        let roll = FaultyStore::new(self.store.clone());
        let builder = Keyward::builder(link.clone(), peppers()).registry(roll.clone());
        let builder = builder.clock(self.clock.clone()).follow(Follow::Never);
        let keys = wait(builder.build()).unwrap();
        self.nodes.push(Node { keys, link, roll });
    }
}

/// One hour, the bound of a node with an older policy.
const LONG: Duration = Duration::from_secs(3_600);

#[test]
fn a_receipt_is_true_of_a_node_with_a_longer_bound_than_the_revoking_process() {
    for revoker in [0, 2] {
        let mut world = Nodes::new(1);
        world.start_with_bound(LONG);
        let key = world.key();
        world.start_without_index();
        world.nodes[1].link.partition(true);
        let keys = world.keys(revoker);
        let revoked = wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
        assert!(revoked.bound() >= LONG && revoked.bound() < LONG + 4 * SECOND);

        world.clock.advance(LONG);
        assert!(
            world.accepts(1, &key),
            "an hour after its last confirmation"
        );
        assert!(world.keys(1).now() <= revoked.no_later_than());
        let asked = wait(keys.confirmations(&revoked)).unwrap();
        assert!(!asked.is_complete(), "{asked:?}");
        let waiting: Vec<_> = asked.waiting().map(|(node, _)| node.node).collect();
        assert_eq!(waiting, [world.keys(1).node().unwrap()]);

        world.clock.advance(8 * SECOND);
        assert!(!world.accepts(1, &key));
        assert!(wait(keys.confirmations(&revoked)).unwrap().is_complete());
    }
}

#[test]
fn a_process_without_an_index_confirms_by_the_reports_of_the_nodes_and_is_no_node() {
    let mut world = Nodes::new(2);
    let key = world.key();
    world.start_without_index();
    let keys = world.keys(2);
    let receipt = wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    assert!(receipt.epoch().is_some() && receipt.bound() < PAST);
    let asked = wait(keys.confirmations(&receipt)).unwrap();
    assert_eq!((asked.waiting().count(), asked.is_complete()), (2, false));
    for node in 0..2 {
        wait(world.keys(node).sync()).unwrap();
    }
    let asked = wait(keys.confirmations(&receipt)).unwrap();
    assert_eq!(labels(asked.applied()), ["node 0", "node 1"]);
    assert!(asked.is_complete());
    assert_eq!(keys.node(), None);
    assert_eq!(world.registered().len(), 2);
}

/// Without an answer of the registry, the last answer counts. Before the first one, no bound is too long.
#[test]
fn a_receipt_without_the_registry_states_no_time_that_may_be_too_early() {
    let mut world = Nodes::new(1);
    world.start_with_bound(LONG);
    let [one, two] = [world.key(), world.key()];
    let cut_off = FaultyStore::new(world.store.clone());
    cut_off.partition(true);
    let builder = Keyward::builder(world.store.clone(), peppers()).registry(cut_off);
    let builder = builder.clock(world.clock.clone()).follow(Follow::Never);
    let alone = wait(builder.build()).unwrap();
    let roll = &world.nodes[0].roll;
    world.clock.advance(31 * SECOND);
    wait(world.keys(0).sync()).unwrap();
    roll.partition(true);
    let known = wait(world.keys(0).revoke(&admin(), one.id, Reason::Lost)).unwrap();
    assert!(known.bound() >= LONG && known.bound() < LONG + 4 * SECOND);
    let unknown = wait(alone.revoke(&admin(), two.id, Reason::Lost)).unwrap();
    assert!(unknown.bound() >= keyward::days(36_500), "{unknown:?}");
}

/// Two reads of the registry overlap. Fails if the receipt has the bound of the older answer, which arrives while
/// the command's own read removes a dead entry.
#[test]
fn a_receipt_has_the_bound_of_its_own_read_of_the_registry() {
    let gated = GatedStore::new(MemoryStore::new());
    let clock = Arc::new(ManualClock::at(at(START)));
    let builder = || {
        let builder = Keyward::builder(gated.clone(), peppers()).registry(gated.clone());
        builder.clock(clock.clone())
    };
    drop(wait(builder().build()).unwrap());
    let keys = wait(builder().build()).unwrap();
    let key = wait(keys.create(&admin(), reader("a"))).unwrap();
    clock.advance(hours(26));
    let mut context = Context::from_waker(Waker::noop());
    let (nodes, forget) = (gated.hold(Call::Nodes), gated.hold(Call::Forget));
    let mut older = pin!(keys.sync());
    assert!(older.as_mut().poll(&mut context).is_pending());
    gated.let_pass(Call::Nodes);
    let bound = Propagation { bound: LONG };
    let longer = profiles::standard().with(|spec| spec.propagation = bound);
    let other = builder().policy(Policy::new(longer).unwrap());
    let _other = wait(other.build()).unwrap();
    let admin = admin();
    let mut revoking = pin!(keys.revoke(&admin, key.id, Reason::Lost));
    assert!(revoking.as_mut().poll(&mut context).is_pending());
    nodes.open();
    assert!(older.as_mut().poll(&mut context).is_pending());
    forget.open();
    assert!(wait(revoking).unwrap().bound() >= LONG);
    wait(older).unwrap();
}

/// A command line over a million keys must not read a million keys.
#[test]
fn a_process_without_an_index_reads_only_what_its_commands_decide_on() {
    let store = GatedStore::new(MemoryStore::new());
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = Policy::new(profiles::standard()).unwrap();
    let there = node(store.clone(), &clock, policy);
    let keys: Vec<_> = (0..20)
        .map(|_| wait(there.create(&admin(), reader("a"))).unwrap())
        .collect();
    let asked = |call| store.asked(call);
    let before = [asked(Call::Scan), asked(Call::Changes)];
    let builder = Keyward::builder(store.clone(), peppers()).clock(clock.clone());
    let here = wait(builder.follow(Follow::Never).build()).unwrap();
    let new = wait(here.create(&admin(), reader("b"))).unwrap();
    wait(here.revoke(&admin(), keys[0].id, Reason::Lost)).unwrap();
    wait(here.rotate(&admin(), keys[1].id, keyward::RotateKey::immediate())).unwrap();
    wait(here.key(&admin(), new.id)).unwrap();
    wait(here.audit(&host(), &keyward::store::AuditQuery::all())).unwrap();
    let one = here
        .query(&tenant("acme"))
        .with(|query| query.limit = std::num::NonZeroUsize::MIN);
    assert_eq!(wait(here.list(&admin(), &one)).unwrap().keys.len(), 1);
    let after = [asked(Call::Scan), asked(Call::Changes)];
    assert_eq!(
        after,
        [before[0] + 1, before[1] + 1],
        "one row and one empty page, for the head and the clock of the store"
    );
    assert_eq!(here.freshness().cursor, None);
}

#[test]
fn without_a_registry_a_receipt_completes_only_with_the_bound() {
    let world = TestService::new();
    let key = world.some_key();
    let receipt = wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let asked = wait(world.keys.confirmations(&receipt)).unwrap();
    assert!(!asked.is_complete() && asked.nodes().is_empty());
    assert_eq!(world.keys.node(), None);
    world.clock.advance(BOUND);
    assert!(
        !wait(world.keys.confirmations(&receipt))
            .unwrap()
            .is_complete()
    );
    world.clock.advance(PAST - BOUND);
    assert!(
        wait(world.keys.confirmations(&receipt))
            .unwrap()
            .is_complete()
    );
    wait(world.keys.deregister()).unwrap();
}

#[test]
fn a_dead_node_blocks_no_receipt_longer_than_the_bound() {
    let mut world = Nodes::new(2);
    let (first, second) = (world.key(), world.key());
    let dead = world.nodes.pop().unwrap().keys.node().unwrap();
    let receipt = world.revoke(&first);
    assert!(!world.ask(&receipt).is_complete());
    world.clock.advance(BOUND);
    assert!(!world.ask(&receipt).is_complete());
    world.clock.advance(PAST - BOUND);
    let asked = world.ask(&receipt);
    assert!(asked.is_complete());
    assert_eq!(
        asked.lapsed().map(|node| node.node).collect::<Vec<_>>(),
        [dead]
    );

    // Once the lease of a node has expired, no receipt waits for the node.
    world.clock.advance(SLACK + SECOND);
    world.sync();
    let asked = world.ask(&world.revoke(&second));
    assert!(asked.is_complete());
    assert_eq!(asked.lapsed().count(), 1, "{asked:?}");
}

#[test]
fn the_silence_of_a_node_counts_from_when_its_report_was_seen() {
    let mut world = Nodes::new(1);
    let key = world.key();
    // Node 0 has not yet seen a report of the new node, so it cannot know how old the last report is. It must
    // assume that the report was made just now.
    world.clock.advance(hours(2));
    world.start();
    wait(world.keys(1).sync()).unwrap();
    let receipt = world.revoke(&key);
    assert!(!world.ask(&receipt).is_complete());
    assert!(world.accepts(1, &key));
}

#[test]
fn a_node_reports_its_build_its_start_and_its_peppers() {
    let world = Nodes::new(1);
    let ring = PepperRing::new(pepper("new", 2));
    let ring = ring.with_retired(pepper("p1", 1)).unwrap();
    let ring = ring.with_next(pepper("later", 3)).unwrap();
    let ring = ring.with_audit_only(pepper("old", 4)).unwrap();
    world.clock.advance(SECOND);
    let builder = Keyward::builder(world.store.clone(), ring).registry(world.store.clone());
    let keys = wait(builder.clock(world.clock.clone()).build()).unwrap();
    world.clock.advance(hours(1));
    wait(keys.sync()).unwrap();
    world.sync();
    let all = world.registered();
    let report = |node| all.iter().find(|report| report.node == node).unwrap();
    let own = report(world.keys(0).node().unwrap());
    let own = own.process.clone().unwrap();
    let package = format!("\nversion = \"{}\"\n", own.version);
    assert!(include_str!("../../../Cargo.toml").contains(&package));
    let version = own.version.clone();
    let expected = NodeProcess {
        version,
        ..process()
    };
    assert_eq!(own, expected);
    let other = report(keys.node().unwrap()).process.as_ref().unwrap();
    assert_eq!(other.started, at(START).saturating_add(SECOND));
    assert_eq!(other.pepper.as_str(), "new");
    let peppers: Vec<_> = other.peppers.iter().map(PepperId::as_str).collect();
    assert_eq!(
        peppers,
        ["new", "p1", "later"],
        "none that only proves audit entries"
    );
}

/// A synchronous standby of the store is gone: reads succeed, and every write waits.
#[test]
fn a_node_goes_on_without_reports_for_its_allowance_and_receipts_wait_for_it() {
    let mut world = Nodes::new(1);
    world.start_with_allowance(hours(1));
    let (first, second) = (world.key(), world.key());
    let receipt = world.revoke(&first);
    assert!(
        receipt.bound() < PAST,
        "the allowance delays no change: {:?}",
        receipt.bound()
    );
    world.ask(&receipt);
    let report = world.report_of(1);
    assert_eq!((report.lease, report.bound()), (hours(1) + BOUND, BOUND));

    world.nodes[1].roll.partition(true);
    world.clock.advance(hours(1));
    wait(world.keys(1).sync()).unwrap();
    world.clock.advance(SECOND);
    assert!(world.accepts(1, &second));
    let receipt = world.revoke(&second);
    let asked = world.ask(&receipt);
    assert!(world.accepts(1, &second) && !asked.is_complete());
    assert!(
        asked.at_most() < PAST && asked.at_most() >= BOUND - SECOND,
        "{asked:?}"
    );

    assert!(wait(world.keys(1).sync()).is_err());
    world.clock.advance(asked.at_most());
    assert!(world.ask(&receipt).is_complete() && !world.accepts(1, &second));
}

#[test]
fn a_receipt_waits_for_a_node_with_lost_reports_as_long_as_it_may_be_fresh() {
    let world = Nodes::new(2);
    let (first, second) = (world.key(), world.key());
    world.ask(&world.revoke(&first));
    world.nodes[1].roll.partition(true);
    wait(world.keys(1).sync()).unwrap();
    // Node 1 can still read the store, but cannot report. The second sync keeps it fresh until the very end
    // of its lease.
    world.clock.advance(SLACK);
    wait(world.keys(1).sync()).unwrap();
    world.clock.advance(SECOND);
    let receipt = world.revoke(&second);
    let asked = world.ask(&receipt);
    assert!(world.accepts(1, &second) && !asked.is_complete());
    let (_, at_most) = asked.waiting().next().unwrap();
    assert!(at_most < PAST, "the wait ends with the lease: {at_most:?}");
    assert!(at_most >= BOUND - SECOND, "{at_most:?}");

    // After its lease, node 1 must register again. It cannot, so its reads confirm nothing.
    assert!(wait(world.keys(1).sync()).is_err());
    world.clock.advance(at_most);
    assert!(world.ask(&receipt).is_complete() && !world.accepts(1, &second));
    let fresh = wait(world.keys(0).create(&admin(), reader("b"))).unwrap();
    assert!(wait(world.keys(1).sync()).is_err());
    let stale = world.keys(1).verify(fresh.secret.expose(), &reading());
    assert!(matches!(
        stale.unwrap_err(),
        VerifyError::Unknown | VerifyError::Stale { .. }
    ));

    world.nodes[1].roll.partition(false);
    wait(world.keys(1).sync()).unwrap();
    assert!(world.accepts(1, &fresh) && world.ask(&receipt).lapsed().count() == 0);
}

#[test]
fn a_node_registers_durably_before_the_read_that_confirms_it() {
    let mut world = Nodes::new(1);
    let key = world.key();
    // The store and the registry share one link, which records the order of all calls.
    let link = FaultyStore::new(world.store.clone());
    let start = |link: &FaultyStore<MemoryStore>| {
        let builder = Keyward::builder(link.clone(), peppers()).registry(link.clone());
        wait(builder.clock(world.clock.clone()).build())
    };
    link.next(Call::Report, [Fault::Unavailable]);
    assert!(
        start(&link).is_err(),
        "a node that cannot register does not start"
    );
    // A node first compares its policy and peppers with those of the store.
    let is_setting = |call: &Call| matches!(call, Call::ReadDocument | Call::WriteDocument);
    let met = || {
        let met = link.met().into_iter();
        met.filter(|(call, _)| !is_setting(call))
            .collect::<Vec<_>>()
    };
    // Before a node registers, it reads the other nodes' reports, to compare its clock with theirs. It also asks
    // the store for the position that the live node reports. This read confirms nothing.
    let looked = [Call::Nodes, Call::Changes].map(|call| (call, Fault::None));
    let refused = (Call::Report, Fault::Unavailable);
    assert_eq!(met(), [looked[0], looked[1], refused]);
    drop(start(&link).unwrap());
    let calls: Vec<_> = met().into_iter().map(|(call, _)| call).collect();
    assert_eq!(calls[3..6], [Call::Nodes, Call::Changes, Call::Report]);
    let changes = calls[6..].iter().position(|call| *call == Call::Changes);
    assert!(calls[6..6 + changes.unwrap()].contains(&Call::Scan));

    // A node that registers after a revocation reads the revocation first, so no receipt waits for that node.
    wait(world.store.forget(world.registered()[0].node, u64::MAX)).unwrap();
    let receipt = world.revoke(&key);
    world.clock.advance(PAST);
    assert!(world.ask(&receipt).is_complete());
    world.start();
    assert!(!world.accepts(1, &key));
}

#[test]
fn the_entry_of_a_node_lost_at_its_first_report_lapses() {
    let world = Nodes::new(1);
    let link = FaultyStore::new(world.store.clone());
    link.next(Call::Report, [Fault::ReplyLost]);
    let builder = Keyward::builder(link.clone(), peppers()).registry(link);
    assert!(wait(builder.clock(world.clock.clone()).build()).is_err());
    // The node that failed to start left an entry in the registry. Receipts wait for the node until its lease
    // ends.
    let key = world.key();
    let receipt = world.revoke(&key);
    assert_eq!(world.ask(&receipt).waiting().count(), 1);
    world.clock.advance(PAST);
    assert!(world.ask(&receipt).is_complete());
}

#[test]
fn a_report_with_a_lost_reply_is_repeated_under_the_same_node_id() {
    let world = Nodes::new(2);
    let before = world.keys(1).node();
    for fault in [Fault::ReplyLost, Fault::RequestLost, Fault::Unavailable] {
        let key = world.key();
        let receipt = world.revoke(&key);
        world.nodes[1].roll.next(Call::Report, [fault]);
        wait(world.keys(1).sync()).unwrap();
        let landed = fault == Fault::ReplyLost;
        assert_eq!(world.ask(&receipt).is_complete(), landed, "{fault:?}");
        assert!(
            !world.accepts(1, &key),
            "the node has applied the change although its report was lost"
        );
        wait(world.keys(1).sync()).unwrap();
        assert!(world.ask(&receipt).is_complete());
    }
    assert_eq!(world.keys(1).node(), before);
    assert_eq!(world.registered().len(), 2);
}

#[test]
fn nodes_that_draw_the_same_id_detect_it_and_draw_another() {
    let clock = Arc::new(ManualClock::at(at(START)));
    let store = MemoryStore::new();
    let start = || {
        let builder = Keyward::builder(FaultyStore::new(store.clone()), peppers());
        let builder = builder.registry(store.clone()).clock(clock.clone());
        wait(builder.entropy(SeededEntropy::new(7)).build()).unwrap()
    };
    let (one, two) = (start(), start());
    assert_ne!(one.node(), two.node());
    assert_eq!(wait(store.nodes()).unwrap().len(), 2);

    // Simulates another node that took the id of `two` while the entry of `two` was missing.
    let mut stranger = wait(store.nodes()).unwrap();
    let mut stranger = stranger.remove(usize::from(Some(stranger[0].node) != two.node()));
    stranger.beat = 1000;
    assert!(wait(store.report(stranger)).unwrap());
    let key = wait(one.create(&admin(), reader("a"))).unwrap();
    let before = two.node();
    wait(two.sync()).unwrap_or_default();
    wait(two.sync()).unwrap();
    assert_ne!(two.node(), before);
    two.verify(key.secret.expose(), &reading()).unwrap();
    assert_eq!(wait(store.nodes()).unwrap().len(), 3);
}

#[test]
fn a_report_is_sent_after_changes_and_at_intervals_and_moves_no_head() {
    let world = Nodes::new(2);
    world.key();
    world.sync();
    let head = || {
        wait(world.store.scan(None, std::num::NonZeroUsize::MIN))
            .unwrap()
            .head
    };
    let before = head();
    let reports = || {
        let met = world.nodes[1].roll.met();
        met.iter().filter(|(call, _)| *call == Call::Report).count()
    };
    let (sent, beat) = (reports(), world.report_of(1).beat);
    for _ in 0..40 {
        world.clock.advance(SECOND / 2);
        wait(world.keys(1).sync()).unwrap();
    }
    assert_eq!(reports() - sent, 2, "one report in ten seconds");
    assert_eq!(world.report_of(1).beat, beat + 2);
    assert_eq!(head(), before);
    assert_eq!(world.report_of(1).applied, Some(before));
    world.key();
    assert_eq!(reports() - sent, 3);
    assert_eq!(world.report_of(1).applied, Some(head()));
}

#[test]
fn a_node_that_left_blocks_no_receipt_and_is_not_fresh() {
    let world = Nodes::new(2);
    let key = world.key();
    wait(world.keys(1).deregister()).unwrap();
    assert_eq!(world.registered().len(), 1);
    let refused = world.keys(1).verify(key.secret.expose(), &reading());
    assert!(matches!(refused.unwrap_err(), VerifyError::Stale { .. }));
    let receipt = world.revoke(&key);
    assert!(world.ask(&receipt).is_complete());
    // If a deregistered node syncs, it first registers again, so receipts wait for it again.
    wait(world.keys(1).sync()).unwrap();
    assert_eq!(world.registered().len(), 2);
    assert!(world.ask(&receipt).is_complete() && !world.accepts(1, &key));
}

#[test]
fn an_entry_silent_for_a_day_is_removed_and_a_reporting_one_is_not() {
    let mut world = Nodes::new(3);
    let key = world.key();
    let cut_off = world.nodes.remove(1);
    cut_off.link.partition(true);
    cut_off.roll.partition(true);
    // The last report of the node that was cut off is seen in the first hour, and its lease ends about a
    // minute later. So a full day of silence ends after the 25th hour.
    for _ in 0..25 {
        world.clock.advance(hours(1));
        world.sync();
    }
    assert_eq!(world.registered().len(), 3, "no entry is removed too early");
    world.clock.advance(hours(1));
    world.sync();
    assert_eq!(world.registered().len(), 2);

    // The node that was cut off was running all the time. After the link returns, it must register again
    // before it is fresh.
    cut_off.link.partition(false);
    assert!(wait(cut_off.keys.sync()).is_err());
    let stale = cut_off.keys.verify(key.secret.expose(), &reading());
    assert!(matches!(stale.unwrap_err(), VerifyError::Stale { .. }));
    cut_off.roll.partition(false);
    wait(cut_off.keys.sync()).unwrap();
    assert_eq!(world.registered().len(), 3);
}

/// A registry in which a node reports just before its entry is removed.
#[derive(Debug)]
struct JustInTime(MemoryStore);

#[async_trait]
impl NodeRegistry for JustInTime {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        self.0.report(report).await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.0.nodes().await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        let all = self.0.nodes().await?;
        for mut report in all.into_iter().filter(|report| report.node == node) {
            report.beat += 1;
            self.0.report(report).await?;
        }
        self.0.forget(node, upto).await
    }
}

#[test]
fn an_entry_that_reports_at_the_last_moment_is_not_removed() {
    let mut world = Nodes::new(2);
    let builder = Keyward::builder(FaultyStore::new(world.store.clone()), peppers());
    let builder = builder.registry(JustInTime(world.store.clone()));
    let looking = wait(builder.clock(world.clock.clone()).build()).unwrap();
    let late = world.nodes.remove(1);
    let before = wait(world.store.nodes()).unwrap();
    for _ in 0..26 {
        world.clock.advance(hours(1));
        wait(looking.sync()).unwrap();
    }
    let after = wait(world.store.nodes()).unwrap();
    assert_eq!(after.len(), before.len());
    let beat = |all: &[NodeReport]| {
        let mut all = all.iter();
        let own = all.find(|report| Some(report.node) == late.keys.node());
        own.unwrap().beat
    };
    assert_eq!(
        beat(&after),
        beat(&before) + 1,
        "the late report advanced the beat"
    );
}

#[test]
fn a_node_that_lost_the_history_registers_again_before_it_is_fresh() {
    let world = Nodes::new(2);
    let key = world.key();
    let gone = world.key();
    wait(
        world
            .keys(0)
            .delete(&admin(), gone.id, keyward::command::DeleteKey::plain()),
    )
    .unwrap();
    world.store.compact();
    let Node { keys, link, roll } = &world.nodes[1];
    roll.next(Call::Report, [Fault::Unavailable]);
    let scans = |link: &FaultyStore<MemoryStore>| {
        let met = link.met();
        met.iter().filter(|(call, _)| *call == Call::Scan).count()
    };
    let before = scans(link);
    assert!(wait(keys.sync()).is_err());
    assert_eq!(scans(link), before);
    let stale = keys.verify(key.secret.expose(), &reading());
    assert!(matches!(stale.unwrap_err(), VerifyError::Stale { .. }));
    wait(keys.sync()).unwrap();
    assert_eq!(scans(link), before + 1);
    assert!(world.accepts(1, &key) && !world.accepts(1, &gone));
}

#[test]
fn a_longer_bound_is_registered_before_a_key_is_accepted_under_it() {
    let world = Nodes::new(2);
    let key = world.key();
    let with_bound = |bound| {
        let mut spec = profiles::standard();
        spec.propagation = Propagation { bound };
        Policy::new(spec).unwrap()
    };
    assert_eq!(world.report_of(1).lease, BOUND + SLACK);
    revise(world.keys(1), with_bound(hours(1)));
    assert!(!world.accepts(1, &key));
    assert_eq!(world.report_of(1).lease, BOUND + SLACK);
    wait(world.keys(1).sync()).unwrap();
    assert!(world.accepts(1, &key));
    assert_eq!(world.report_of(1).lease, hours(1) + SLACK);
    // If the staleness bound becomes shorter, the node need not register again.
    revise(world.keys(1), with_bound(BOUND));
    assert!(world.accepts(1, &key));
}

#[test]
fn waiting_ends_when_the_last_node_has_the_change() {
    let world = Nodes::new(2);
    let key = world.key();
    let receipt = world.revoke(&key);
    let mut pauses = 0;
    let confirmed = wait(world.keys(0).wait_confirmed(&receipt, |time| {
        pauses += 1;
        world.clock.advance(time);
        if pauses == 3 {
            wait(world.keys(1).sync()).unwrap();
        }
        std::future::ready(())
    }));
    assert_eq!(pauses, 3);
    assert_eq!(confirmed.applied().count(), 2);
}

#[test]
fn waiting_ends_with_the_bound_even_if_nodes_or_store_are_gone() {
    for everything_down in [false, true] {
        let world = Nodes::new(2);
        let key = world.key();
        let receipt = world.revoke(&key);
        world.nodes[0].link.partition(everything_down);
        world.nodes[0].roll.partition(everything_down);
        let mut passed = Duration::ZERO;
        let confirmed = wait(world.keys(0).wait_confirmed(&receipt, |time| {
            passed += time;
            world.clock.advance(time);
            std::future::ready(())
        }));
        assert!(confirmed.is_complete());
        assert!(passed > BOUND && passed <= PAST, "{passed:?}");
        let lapsed = confirmed.lapsed().count();
        assert_eq!(lapsed, usize::from(!everything_down));
        assert!(!world.accepts(1, &key));
    }
}

#[test]
fn waiting_can_run_in_its_own_task() {
    fn is_send<T: Send>(_: &T) {}
    let world = Nodes::new(1);
    let receipt = world.key().receipt;
    is_send(
        &world
            .keys(0)
            .wait_confirmed(&receipt, |_| std::future::ready(())),
    );
    is_send(&world.keys(0).confirmations(&receipt));
}

#[test]
fn waiting_can_be_cancelled_and_restarted() {
    let world = Nodes::new(2);
    let key = world.key();
    let receipt = world.revoke(&key);
    {
        let never = |_| std::future::pending();
        let mut waiting = pin!(world.keys(0).wait_confirmed(&receipt, never));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert!(waiting.as_mut().poll(&mut context).is_pending());
        }
    }
    wait(world.keys(1).sync()).unwrap();
    let mut again = pin!(
        world
            .keys(0)
            .wait_confirmed(&receipt, |_| std::future::pending())
    );
    let polled = again.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(confirmed) if confirmed.is_complete()));
}

#[test]
fn a_query_fails_while_the_store_is_down_until_the_bound_has_passed() {
    let world = Nodes::new(2);
    let key = world.key();
    let receipt = world.revoke(&key);
    for down in [&world.nodes[0].link, &world.nodes[0].roll] {
        down.partition(true);
        assert!(wait(world.keys(0).confirmations(&receipt)).is_err());
        down.partition(false);
    }
    wait(world.keys(1).sync()).unwrap();
    assert!(world.ask(&receipt).is_complete());
}

#[test]
fn receipts_of_an_always_fresh_class_are_complete_immediately() {
    let mut spec = profiles::standard();
    spec.propagation = Propagation::IMMEDIATE;
    let world = TestService::with_policy(spec);
    let key = world.some_key();
    let receipt = wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    assert!(
        wait(world.keys.confirmations(&receipt))
            .unwrap()
            .is_complete()
    );
}

#[test]
fn the_receipt_of_a_repeated_change_can_be_queried_too() {
    let world = Nodes::new(2);
    let key = world.key();
    world.revoke(&key);
    let again = world.revoke(&key);
    assert!(!world.ask(&again).is_complete());
    wait(world.keys(1).sync()).unwrap();
    assert!(world.ask(&again).is_complete());
    let asked = world.ask(&again);
    assert!(
        asked
            .nodes()
            .iter()
            .all(|node| node.answer == NodeAnswer::Applied)
    );
}

#[test]
fn a_store_in_this_process_is_served_even_without_its_registry() {
    let clock = Arc::new(ManualClock::at(at(START)));
    let store = MemoryStore::new();
    let roll = FaultyStore::new(store.clone());
    let builder = Keyward::builder(store, peppers()).registry(roll.clone());
    let keys = wait(builder.clock(clock.clone()).build()).unwrap();
    let key = wait(keys.create(&admin(), reader("a"))).unwrap();
    roll.partition(true);
    clock.advance(hours(3));
    // Each verification reads the committed state from the store in this process, so a node without a
    // registration accepts keys.
    keys.verify(key.secret.expose(), &reading()).unwrap();
    assert!(wait(keys.sync()).is_err());
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    assert!(keys.verify(key.secret.expose(), &reading()).is_err());
}

#[test]
fn reads_of_a_store_in_this_process_confirm_nothing_without_a_registration() {
    let world = Nodes::new(1);
    let key = world.key();
    world.nodes[0].link.answer_at_once(true);
    world.clock.advance(SLACK);
    // As long as the node is registered, it may continue with the state that it has read.
    assert!(world.accepts(0, &key));
    world.nodes[0].link.answer_at_once(false);
    assert!(world.accepts(0, &key));

    world.nodes[0].link.answer_at_once(true);
    world.clock.advance(2 * BOUND);
    assert!(
        world.accepts(0, &key),
        "each verification reads the committed state"
    );
    world.nodes[0].link.answer_at_once(false);
    assert!(
        !world.accepts(0, &key),
        "an unregistered node must not stay fresh"
    );
}

/// An operator restores the registry together with its store, epoch included. The restored registry lacks
/// nodes that registered after the backup was made. Fails if a receipt is complete without those nodes.
#[test]
fn after_a_lost_history_receipts_wait_out_the_bound_even_under_the_same_epoch() {
    lose_the_history(SLACK);
}

/// The registry may lack a node for as long as the longest lease that any node had.
#[test]
fn after_a_lost_history_receipts_count_on_the_longest_lease_that_was_seen() {
    lose_the_history(hours(1));
}

/// Loses the history of two nodes, the second with this report allowance.
fn lose_the_history(allowance: Duration) {
    let mut world = Nodes::new(1);
    world.start_with_allowance(allowance);
    let (kept, gone) = (world.key(), world.key());
    wait(world.keys(0).revoke(&admin(), gone.id, Reason::Lost)).unwrap();
    // The store compacts commits that node 0 has not read, so node 0 cannot continue in the history that it
    // follows.
    wait(world.keys(1).delete(&admin(), gone.id, DeleteKey::plain())).unwrap();
    world.store.compact();
    world.sync();
    let receipt = world.revoke(&kept);
    world.sync();
    let asked = world.ask(&receipt);
    assert!(!asked.is_complete() && asked.at_most() >= BOUND - SECOND);
    world.clock.advance(PAST);
    assert!(world.ask(&receipt).is_complete());

    world.clock.advance(allowance / 2);
    let before = world.key();
    let receipt = world.revoke(&before);
    world.sync();
    assert!(!world.ask(&receipt).is_complete());

    world.clock.advance(allowance / 2 + SLACK);
    world.sync();
    let key = world.key();
    let receipt = world.revoke(&key);
    world.sync();
    assert!(
        world.ask(&receipt).is_complete(),
        "all nodes have registered since"
    );
}

/// A command may end keys in descendant tenants with other policies. Fails if the receipt uses only the
/// staleness bound of the tenant that the command names.
#[test]
fn a_receipt_for_keys_below_has_the_longest_of_their_bounds() {
    let policy = |bound| {
        let mut spec = profiles::standard();
        spec.propagation = Propagation { bound };
        Policy::new(spec).unwrap()
    };
    let policies = Policies::new(policy(BOUND)).with_tenant(tenant("acme/web"), policy(hours(6)));
    let world = TestService::with_policies(policies);
    let (host, top) = (host(), tenant("acme"));
    let key = world.some_key();
    let alone = wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    assert!(alone.bound() < hours(1), "one key of the tenant itself");
    let nobody = Role::new("nobody").unwrap();
    let lowered = world
        .keys
        .change_owner_role(&host, &top, who("bob"), nobody);
    assert!(wait(lowered).unwrap().bound() >= hours(6));
    let closed = wait(world.keys.close_tenant(&host, &top)).unwrap();
    assert!(closed.receipt.bound() >= hours(6));
}
