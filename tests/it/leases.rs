//! Leases: at most one process holds one, without synchronized clocks.

use std::sync::Arc;
use std::time::Duration;

use keyward::lease::{Lease, LeaseError};
use keyward::store::{DocumentError, DocumentName, DocumentWrite, Documents, MemoryStore};
use keyward::{Keyward, ManualClock};
use keyward_conformance::proptest::prelude::*;
use keyward_conformance::proptest::strategy::ValueTree;
use keyward_conformance::{Call, Fault, FaultyStore};
use support::*;

const TERM: Duration = Duration::from_secs(10);

/// A process that wants the lease `webhooks`, with a clock of its own.
struct Contender {
    clock: Arc<ManualClock>,
    link: FaultyStore<MemoryStore>,
    lease: Lease,
}

impl Contender {
    fn new(store: &MemoryStore) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let link = FaultyStore::new(store.clone());
        let builder = Keyward::builder(link.clone(), peppers()).clock(clock.clone());
        let keys = wait(builder.build()).unwrap();
        let lease = keys.lease("webhooks", "host".try_into().unwrap()).unwrap();
        let lease = lease.with_term(TERM);
        Self { clock, link, lease }
    }

    fn hold(&mut self) -> Option<u64> {
        wait(self.lease.hold()).unwrap().map(|fence| fence.number())
    }
}

/// Returns two processes over one store, and advances both clocks.
fn two() -> (MemoryStore, Contender, Contender) {
    let store = MemoryStore::new();
    let (one, other) = (Contender::new(&store), Contender::new(&store));
    (store, one, other)
}

fn pass(time: Duration, all: [&Contender; 2]) {
    all.into_iter().for_each(|one| one.clock.advance(time));
}

#[test]
fn one_process_holds_a_lease_and_renews_it_for_as_long_as_it_likes() {
    let (_store, mut one, mut other) = two();
    assert_eq!(one.hold(), Some(1));
    for _ in 0..20 {
        pass(TERM / 3, [&one, &other]);
        assert_eq!(other.hold(), None);
        assert_eq!(one.hold(), Some(1), "a renewal keeps the number");
    }
}

#[test]
fn a_silent_holder_is_replaced_after_a_term_and_under_a_higher_number() {
    let (_store, mut one, mut other) = two();
    assert_eq!(one.hold(), Some(1));
    pass(TERM * 2, [&one, &other]);
    assert_eq!(
        other.hold(),
        None,
        "its own look at the lease began just now"
    );
    assert!(!one.lease.is_held());
    pass(TERM, [&one, &other]);
    assert_eq!(
        other.hold(),
        None,
        "a slow clock may still be within the term"
    );
    pass(TERM / 100, [&one, &other]);
    assert_eq!(other.hold(), Some(2));
    assert_eq!(one.hold(), None);
}

#[test]
fn a_released_lease_is_free_immediately() {
    let (_store, mut one, mut other) = two();
    assert_eq!(one.hold(), Some(1));
    assert_eq!(other.hold(), None);
    wait(one.lease.release()).unwrap();
    assert!(!one.lease.is_held());
    let number = other.hold().unwrap();
    assert!(number > 1, "{number}");
}

#[test]
fn a_write_of_a_former_holder_is_refused() {
    let (store, mut one, mut other) = two();
    let fence = wait(one.lease.hold()).unwrap().unwrap();
    let name = DocumentName::new("app.cursor").unwrap();
    let write = |expected| DocumentWrite::new(name.clone(), expected, b"at 7".to_vec());
    wait(store.write_document(fence.guard(write(0)))).unwrap();
    other.hold();
    pass(TERM * 2, [&one, &other]);
    let newer = wait(other.lease.hold()).unwrap().unwrap();
    let refused = wait(store.write_document(fence.guard(write(1))));
    assert!(
        matches!(refused, Err(DocumentError::Conflict { .. })),
        "{refused:?}"
    );
    wait(store.write_document(newer.guard(write(1)))).unwrap();
}

#[test]
fn a_holder_that_overslept_keeps_the_lease_if_nobody_took_it() {
    let (_store, mut one, other) = two();
    assert_eq!(one.hold(), Some(1));
    pass(TERM * 5, [&one, &other]);
    assert!(!one.lease.is_held());
    assert_eq!(one.hold(), Some(1));
}

#[test]
fn a_renewal_whose_reply_was_lost_is_renewed_again() {
    let (_store, mut one, _other) = two();
    assert_eq!(one.hold(), Some(1));
    one.link.next(Call::WriteDocument, [Fault::ReplyLost]);
    assert!(matches!(wait(one.lease.hold()), Err(LeaseError::Store(_))));
    assert!(one.lease.is_held(), "the earlier term has not ended");
    assert_eq!(one.hold(), Some(1));
}

#[test]
fn a_malformed_name_is_refused() {
    let keys = Keyward::builder(MemoryStore::new(), peppers());
    let keys = wait(keys.build()).unwrap();
    let label = || "host".try_into().unwrap();
    for name in ["", " ", "A", "a/b", &"x".repeat(118)] {
        let refused = keys.lease(name, label());
        assert!(matches!(refused, Err(LeaseError::Name(_))), "{name:?}");
    }
    keys.lease(&"x".repeat(117), label()).unwrap();
}

#[cfg(feature = "sqlite")]
#[test]
fn a_restore_raises_the_number_beyond_those_of_the_lost_history() {
    use keyward::store::SqliteStore;

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let clock = Arc::new(ManualClock::at(at(START)));
    let over = |store: SqliteStore| {
        let keys = Keyward::builder(store, peppers()).clock(clock.clone());
        let keys = wait(keys.build()).unwrap();
        keys.lease("webhooks", "host".try_into().unwrap()).unwrap()
    };
    let store = wait(SqliteStore::open(path("keys.db"))).unwrap();
    let mut lease = over(store.clone());
    assert!(wait(lease.hold()).unwrap().is_some());
    wait(lease.release()).unwrap();
    wait(store.backup(path("backup.db"))).unwrap();
    let lost = wait(lease.hold()).unwrap().unwrap();
    wait(SqliteStore::restore(path("backup.db"), path("restored.db"))).unwrap();
    let options = SqliteStore::options(path("restored.db")).allow_unrecovered();
    let restored = wait(options.open()).unwrap();
    let mut lease = over(restored.clone());
    assert_eq!(
        wait(lease.hold()).unwrap(),
        None,
        "the lost holder may still believe in its term"
    );
    clock.advance(TERM * 2);
    let fence = wait(lease.hold()).unwrap().unwrap();
    assert!(fence.number() > lost.number(), "{fence:?}");
    let name = DocumentName::new("app.cursor").unwrap();
    let write = lost.guard(DocumentWrite::new(name, 0, Vec::new()));
    let refused = wait(restored.write_document(write));
    assert!(
        matches!(refused, Err(DocumentError::Conflict { .. })),
        "{refused:?}"
    );
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    Hold(usize),
    Release(usize),
    LoseReply(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..6_000_u64).prop_map(Step::Pass),
        6 => (0..3_usize).prop_map(Step::Hold),
        1 => (0..3_usize).prop_map(Step::Release),
        1 => (0..3_usize).prop_map(Step::LoseReply),
    ]
}

/// Runs the steps. Returns an error once two processes hold the lease, or a number decreases.
fn run(steps: &[Step], terms: [Duration; 3], rates: [u32; 3]) -> Result<usize, String> {
    let store = MemoryStore::new();
    let mut all = terms.map(|term| {
        let mut contender = Contender::new(&store);
        contender.lease = contender.lease.with_term(term);
        contender
    });
    let (mut newest, mut held) = (0, 0);
    for step in steps {
        match *step {
            Step::Pass(millis) => {
                for (contender, rate) in all.iter().zip(rates) {
                    // Each clock runs at its own rate, up to 1 ‰ slow.
                    let time = Duration::from_micros(millis * 1000);
                    contender.clock.advance(time - time * rate / 1_000_000);
                }
            }
            Step::Hold(of) => {
                if let Ok(Some(fence)) = wait(all[of].lease.hold()) {
                    if fence.number() < newest {
                        return Err(format!("number {} after {newest}", fence.number()));
                    }
                    (newest, held) = (fence.number(), held + 1);
                }
            }
            Step::Release(of) => drop(wait(all[of].lease.release())),
            Step::LoseReply(of) => {
                all[of].link.next(Call::WriteDocument, [Fault::ReplyLost]);
            }
        }
        let holders = all.iter().filter(|one| one.lease.is_held()).count();
        if holders > 1 {
            return Err(format!("{holders} holders"));
        }
    }
    Ok(held)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..80)
}

proptest! {
    #[test]
    fn at_most_one_process_holds_a_lease(
        steps in steps(),
        factors in proptest::array::uniform3(1..4_u32),
        rates in proptest::array::uniform3(0..1000_u32),
    ) {
        let held = run(&steps, factors.map(|factor| TERM * factor), rates);
        prop_assert!(held.is_ok(), "{held:?}");
    }
}

/// The check above finds a clock that runs slower than the rate error that leases allow for: its process
/// believes in a term that others have seen end.
#[test]
fn a_clock_that_is_slower_than_allowed_is_found() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let found = (0..2000).any(|_| {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        run(&steps, [TERM; 3], [500_000, 0, 0]).is_err()
    });
    assert!(found);
}
