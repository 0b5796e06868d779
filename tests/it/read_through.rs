//! Verifications that read a key from the store: reads that calls share, their limits, and the keys that they
//! may grant.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use keyward::policy::{Policy, Propagation};
use keyward::store::MemoryStore;
use keyward_conformance::{Call, Reached};
use proptest::prelude::*;
use support::gated::GatedStore;

use keyward::command::{Created, DeleteKey, ImportKey};
use keyward::entropy::SeededEntropy;
use keyward::key::Digest;
use keyward::node::{OnStale, ReadThroughLimits};
use keyward::{
    ErrorKind, Grant, Keyward, KeywardBuilder, ManualClock, Reason, VerifyError, profiles,
};
use support::*;

type Verdict = Result<Grant, VerifyError>;

/// A node whose link to the store can be cut or delayed, and another node that makes the changes.
struct Nodes {
    clock: Arc<ManualClock>,
    store: MemoryStore,
    link: GatedStore,
    here: Keyward,
    there: Keyward,
}

impl Nodes {
    fn new() -> Self {
        Self::with(Propagation::default(), |builder| builder)
    }

    fn with(propagation: Propagation, set: impl FnOnce(KeywardBuilder) -> KeywardBuilder) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let mut spec = profiles::standard();
        spec.propagation = propagation;
        let policy = Policy::new(spec).unwrap();
        let link = GatedStore::new(store.clone());
        let builder = Keyward::builder(link.clone(), peppers())
            .policy(policy.clone())
            .clock(clock.clone());
        let there = Self::drawing(&store, policy, &clock, 7);
        let here = wait(set(builder).build()).unwrap();
        Self {
            clock,
            store,
            link,
            here,
            there,
        }
    }

    /// Starts a node with a fixed random seed, so that a test can predict the node's keys.
    fn drawing(
        store: &MemoryStore,
        policy: Policy,
        clock: &Arc<ManualClock>,
        seed: u64,
    ) -> Keyward {
        let builder = Keyward::builder(store.clone(), peppers()).policy(policy);
        let builder = builder
            .clock(clock.clone())
            .entropy(SeededEntropy::new(seed));
        wait(builder.build()).unwrap()
    }

    /// Creates the first key of a node with predictable keys. The key's id contains the start time of the
    /// clock.
    fn predicted_key(&self) -> Created {
        let policy = Policy::new(profiles::standard()).unwrap();
        let clock = Arc::new(ManualClock::at(at(START)));
        let drawing = Self::drawing(&self.store, policy, &clock, 8);
        wait(drawing.create(&admin(), reader("a key"))).unwrap()
    }

    fn new_key(&self) -> Created {
        wait(self.there.create(&admin(), reader("a key"))).unwrap()
    }

    /// Creates a key and syncs this node.
    fn known_key(&self) -> Created {
        let key = self.new_key();
        wait(self.here.sync()).unwrap();
        key
    }

    fn fetch(&self, key: &Created) -> Calling {
        let keys = self.here.clone();
        let token = key.secret.expose().to_owned();
        Calling::new(async move { keys.verify_or_fetch(&token, &reading()).await })
    }

    fn fresh(&self, key: &Created) -> Calling {
        let keys = self.here.clone();
        let token = key.secret.expose().to_owned();
        Calling::new(async move { keys.verify_fresh(&token, &reading()).await })
    }

    fn finds(&self) -> usize {
        self.link.asked(Call::Find)
    }
}

/// A call that makes progress only when the test polls it.
struct Calling(Pin<Box<dyn Future<Output = Verdict>>>);

impl Calling {
    /// Wraps a call without polling it.
    fn new(call: impl Future<Output = Verdict> + 'static) -> Self {
        Self(Box::pin(call))
    }

    fn poll(&mut self) -> Option<Verdict> {
        match self
            .0
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(verdict) => Some(verdict),
            Poll::Pending => None,
        }
    }

    /// Polls the call once. Checks that the call now waits for the store.
    #[track_caller]
    fn begun(mut self) -> Self {
        assert!(self.poll().is_none(), "the call waits for the store");
        self
    }

    #[track_caller]
    fn end(mut self) -> Verdict {
        self.poll().expect("the store holds no answer back")
    }
}

fn count(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

const FLOOD: usize = 100_000;

#[test]
fn a_flood_of_unknown_ids_causes_a_bounded_number_of_reads() {
    let world = Nodes::new();
    let bounds = ReadThroughLimits::default();
    let (burst, rate) = (
        bounds.burst.get() as usize,
        bounds.per_second.get() as usize,
    );
    let mut outcomes = [0, 0];
    for (n, token) in strangers(FLOOD).iter().enumerate() {
        if n == FLOOD / 2 {
            assert_eq!(
                world.finds(),
                burst,
                "without time passing, only the burst is read"
            );
        }
        if n >= FLOOD / 2 {
            // The second half of the requests is spread over one second, so the rate allows more reads.
            world.clock.advance(Duration::from_micros(20));
        }
        match wait(world.here.verify_or_fetch(token, &reading())).unwrap_err() {
            VerifyError::Unknown => outcomes[0] += 1,
            VerifyError::Busy => outcomes[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(world.finds(), burst + rate);
    assert_eq!(outcomes, [burst + rate, FLOOD - burst - rate]);
    assert_eq!(
        VerifyError::Busy.kind(),
        ErrorKind::LimitReached,
        "a flood must not look like a bad key or an outage"
    );
    assert_eq!(world.link.asked(Call::Load), 0);
}

#[test]
fn strings_that_are_not_tokens_share_the_limits_of_tokens() {
    let world = Nodes::new();
    let imported = Digest::sha256("some-key-from-elsewhere");
    let import = ImportKey::sha256(imported, reader("imported"));
    wait(world.there.import(&admin(), import)).unwrap();
    wait(world.here.sync()).unwrap();
    let burst = ReadThroughLimits::default().burst.get() as usize;
    let tokens = strangers(burst);
    for (n, token) in tokens.iter().enumerate() {
        let foreign = format!("not-a-token-{n}");
        let calls = [
            wait(world.here.verify_or_fetch(&foreign, &reading())),
            wait(world.here.verify_fresh(&foreign, &reading())),
            wait(world.here.verify_fresh(token, &reading())),
        ];
        assert!(calls.iter().all(Result::is_err));
    }
    assert_eq!(world.finds(), burst);
    // The real imported key is still accepted.
    let held = wait(
        world
            .here
            .verify_fresh("some-key-from-elsewhere", &reading()),
    );
    held.unwrap();
}

#[test]
fn the_number_of_reads_in_flight_is_limited() {
    let bounds = ReadThroughLimits::default().with(|bounds| bounds.max_in_flight = count(3));
    let world = Nodes::with(Propagation::default(), |builder| {
        builder.read_through(bounds)
    });
    let gate = world.link.hold(Call::Find);
    let keys = [(); 5].map(|()| world.new_key());
    let mut waiting: Vec<_> = keys[..3]
        .iter()
        .map(|key| world.fetch(key).begun())
        .collect();
    let refused = world.fetch(&keys[3]).end().unwrap_err();
    assert_eq!((refused, world.finds()), (VerifyError::Busy, 3));
    // A cancelled read makes room for another read.
    drop(waiting.pop());
    let fourth = world.fetch(&keys[3]).begun();
    gate.open();
    world.link.let_pass(Call::Find);
    for call in waiting {
        call.end().unwrap();
    }
    fourth.end().unwrap();
    world.fetch(&keys[4]).end().unwrap();
}

#[test]
fn callers_who_ask_for_the_same_unknown_key_share_one_read() {
    let world = Nodes::new();
    let key = world.new_key();
    let gate = world.link.hold(Call::Find);
    let calls: Vec<_> = (0..50).map(|_| world.fetch(&key).begun()).collect();
    gate.open();
    for call in calls {
        call.end().unwrap();
    }
    assert_eq!(world.finds(), 1);
    // From now on, this node knows the key and needs no more reads.
    world.fetch(&key).end().unwrap();
    assert_eq!(world.finds(), 1);
}

#[test]
fn each_caller_of_a_shared_read_gets_its_own_verdict() {
    let world = Nodes::new();
    let key = world.new_key();
    let forged = with_other_secret(key.secret.expose());
    let gate = world.link.hold(Call::Find);
    let first = world.fetch(&key).begun();
    let keys = world.here.clone();
    let forger =
        Calling::new(async move { keys.verify_or_fetch(&forged, &reading()).await }).begun();
    gate.open();
    first.end().unwrap();
    assert_eq!(forger.end().unwrap_err(), VerifyError::WrongSecret);
}

#[test]
fn a_refusal_is_never_taken_from_a_read_that_began_before_the_call() {
    let world = Nodes::new();
    let key = Nodes::new().new_key();
    // The store answers the first read before the key exists, and the answer is delayed.
    let gate = world.link.hold(Call::Find);
    let early = world.fetch(&key).begun();
    assert_eq!(world.new_key().id, key.id, "as predicted");
    let late: Vec<_> = (0..10).map(|_| world.fetch(&key).begun()).collect();
    gate.open();
    world.link.let_pass(Call::Find);
    assert_eq!(early.end().unwrap_err(), VerifyError::Unknown);
    for call in late {
        call.end().unwrap();
    }
    assert_eq!(world.finds(), 2, "the late callers share one read");
}

#[test]
fn refusals_are_not_cached() {
    let world = Nodes::new();
    let key = Nodes::new().new_key();
    for asked in 1..=3 {
        let refused = world.fetch(&key).end().unwrap_err();
        assert_eq!((refused, world.finds()), (VerifyError::Unknown, asked));
    }
    world.new_key();
    world.fetch(&key).end().unwrap();
}

#[test]
fn a_failure_is_shared_only_by_callers_who_waited_for_it() {
    let world = Nodes::new();
    let key = world.new_key();
    let gate = world.link.hold(Call::Find);
    world.link.link.partition(true);
    let early = world.fetch(&key).begun();
    world.link.link.partition(false);
    let late = world.fetch(&key).begun();
    gate.open();
    assert_eq!(early.end().unwrap_err(), VerifyError::StoreUnavailable);
    late.end().unwrap();
}

#[test]
fn no_caller_hangs_when_the_first_caller_of_a_read_is_gone() {
    for kept in [false, true] {
        let world = Nodes::new();
        let key = world.new_key();
        let gate = world.link.hold(Call::Find);
        let first = world.fetch(&key).begun();
        let mut second = world.fetch(&key).begun();
        // The first call is dropped, or kept without being polled again. Neither blocks the second call.
        let first = kept.then_some(first);
        gate.open();
        second
            .poll()
            .expect("a shared read continues without its first caller")
            .unwrap();
        drop(first);
        assert_eq!(world.finds(), 1, "both callers shared one read");
    }
}

#[test]
fn a_read_without_waiting_callers_is_cancelled() {
    let one = ReadThroughLimits::default().with(|bounds| bounds.max_in_flight = count(1));
    let world = Nodes::with(Propagation::default(), |builder| builder.read_through(one));
    let (key, other) = (world.new_key(), world.new_key());
    let _closed = world.link.hold(Call::Find);
    drop([world.fetch(&key).begun(), world.fetch(&key).begun()]);
    world.link.let_pass(Call::Find);
    world.fetch(&key).end().unwrap();
    world.fetch(&other).end().unwrap();
    assert_eq!(world.finds(), 3);
}

#[test]
fn a_hanging_read_delays_only_callers_who_joined_early() {
    let world = Nodes::new();
    let key = world.new_key();
    let gate = world.link.hold(Call::Find);
    let hangs = world.fetch(&key).begun();
    world.clock.advance(Duration::from_secs(1));
    let joins = world.fetch(&key).begun();
    world.link.let_pass(Call::Find);
    world.clock.advance(Duration::from_micros(1));
    world.fetch(&key).end().unwrap();
    assert_eq!(world.finds(), 2);
    gate.open();
    hangs.end().unwrap();
    joins.end().unwrap();
    assert_eq!(world.finds(), 2);
}

#[test]
fn a_fresh_verification_that_shares_a_read_sees_every_earlier_change() {
    let world = Nodes::new();
    let key = world.known_key();
    let gate = world.link.hold(Call::Find);
    let early = world.fresh(&key).begun();
    wait(world.there.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let late: Vec<_> = (0..10).map(|_| world.fresh(&key).begun()).collect();
    gate.open();
    world.link.let_pass(Call::Find);
    early.end().unwrap();
    for call in late {
        let refused = call.end().unwrap_err();
        assert!(matches!(refused, VerifyError::Revoked { .. }), "{refused}");
    }
    assert_eq!(world.finds(), 2);
}

#[test]
fn an_earlier_read_does_not_grant_a_key_of_an_always_fresh_class() {
    let world = Nodes::with(Propagation::IMMEDIATE, |builder| builder);
    let key = world.new_key();
    let gate = world.link.hold(Call::Find);
    let early = world.fetch(&key).begun();
    wait(world.there.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let late = world.fetch(&key).begun();
    gate.open();
    early.end().unwrap();
    let refused = late.end().unwrap_err();
    assert!(matches!(refused, VerifyError::Revoked { .. }), "{refused}");
}

#[test]
fn a_flood_does_not_lock_out_holders_of_known_keys() {
    let world = Nodes::with(Propagation::IMMEDIATE, |builder| builder);
    let key = world.known_key();
    let burst = ReadThroughLimits::default().burst.get() as usize;
    let tokens = strangers(burst + 1);
    for token in &tokens {
        assert!(wait(world.here.verify_or_fetch(token, &reading())).is_err());
    }
    let refused = wait(world.here.verify_fresh(&tokens[0], &reading()));
    assert_eq!(refused.unwrap_err(), VerifyError::Busy);
    world.fetch(&key).end().unwrap();
    world.fresh(&key).end().unwrap();
    assert_eq!(world.finds(), burst + 2);
    // The limit does not apply to holders of a known key. A token with the key's id but another secret is
    // still limited.
    let forged = with_other_secret(key.secret.expose());
    let refused = wait(world.here.verify_or_fetch(&forged, &reading()));
    assert_eq!(refused.unwrap_err(), VerifyError::Busy);
    assert_eq!(world.finds(), burst + 2);
}

#[test]
fn during_a_flood_a_known_id_and_an_unknown_one_are_refused_alike() {
    let world = Nodes::new();
    let (key, removed) = (world.known_key(), world.known_key());
    wait(world.there.delete(&admin(), removed.id, DeleteKey::plain())).unwrap();
    wait(world.here.sync()).unwrap();
    let burst = ReadThroughLimits::default().burst.get() as usize;
    let known = with_other_secret(key.secret.expose());
    let removed = removed.secret.expose().to_owned();
    let unknown = strangers(burst + 1);
    let refusals = || {
        let tokens = [&known, &removed, &unknown[burst]];
        tokens.map(|token| wait(world.here.verify_or_fetch(token, &reading())).unwrap_err())
    };
    for flood in [
        &vec![known.clone(); burst],
        &vec![removed.clone(); burst],
        &unknown,
    ] {
        world.clock.advance(Duration::from_secs(1));
        let expected = [
            VerifyError::WrongSecret,
            VerifyError::Unknown,
            VerifyError::Unknown,
        ];
        assert_eq!(refusals(), expected);
        for token in flood {
            assert!(wait(world.here.verify_or_fetch(token, &reading())).is_err());
        }
        assert_eq!(
            refusals(),
            [VerifyError::Busy, VerifyError::Busy, VerifyError::Busy]
        );
        // The holder of the known key notices nothing.
        world.fetch(&key).end().unwrap();
    }
}

#[test]
fn a_store_that_does_not_answer_is_an_outage_after_the_timeout() {
    let world = Nodes::new();
    let (known, key) = (world.known_key(), world.new_key());
    let gate = world.link.hold(Call::Find);
    let mut waiting = world.fetch(&key).begun();
    let timeout = ReadThroughLimits::default().timeout;
    world.clock.advance(timeout - Duration::from_micros(1));
    assert!(waiting.poll().is_none());
    world.fetch(&known).end().unwrap();
    world.clock.advance(Duration::from_micros(1));
    let refused = waiting.poll().expect("the timeout has passed");
    assert_eq!(refused.unwrap_err(), VerifyError::StoreUnavailable);
    // The read was dropped with its last caller, so the next caller starts another one.
    drop(gate);
    world.link.let_pass(Call::Find);
    world.fetch(&key).end().unwrap();
}

#[test]
fn an_answer_in_flight_for_longer_than_the_bound_grants_nothing() {
    let world = Nodes::new();
    let key = world.new_key();
    let bound = Propagation::default().bound;
    let gate = world.link.hold(Call::Find);
    let first = world.fetch(&key).begun();
    world.clock.advance(Duration::from_millis(500));
    let second = world.fetch(&key).begun();
    wait(world.there.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    world
        .clock
        .advance(bound - Duration::from_millis(500) + Duration::from_micros(1));
    gate.open();
    let refused = first.end().unwrap_err();
    assert!(matches!(refused, VerifyError::Stale { .. }), "{refused}");
    // The second call shared the failed read, and reads again by itself.
    let refused = second.end().unwrap_err();
    assert!(matches!(refused, VerifyError::Revoked { .. }), "{refused}");
}

#[test]
fn a_grant_may_come_from_an_earlier_read_up_to_the_bound() {
    let world = Nodes::new();
    let key = world.new_key();
    let gate = world.link.hold(Call::Find);
    let _first = world.fetch(&key).begun();
    world.clock.advance(Duration::from_millis(500));
    let second = world.fetch(&key).begun();
    wait(world.there.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    world
        .clock
        .advance(Propagation::default().bound - Duration::from_millis(500));
    gate.open();
    second.end().unwrap();
    assert_eq!(world.finds(), 1);
}

#[test]
fn past_the_bound_a_key_is_refused_unless_the_deployment_reads_through() {
    let refuses = Nodes::new();
    let reads = Nodes::with(Propagation::default(), |builder| {
        builder.on_stale(OnStale::ReadThrough)
    });
    let past = Propagation::default().bound + Duration::from_micros(1);
    for world in [&refuses, &reads] {
        let (key, revoked) = (world.known_key(), world.known_key());
        wait(world.there.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
        world.clock.advance(past);
        for key in [&key, &revoked] {
            let plain = world.here.verify(key.secret.expose(), &reading());
            assert!(matches!(plain, Err(VerifyError::Stale { .. })), "{plain:?}");
        }
        assert_eq!(world.finds(), 0, "`verify` never reads the store");
        let asked = [world.fetch(&key).end(), world.fetch(&revoked).end()];
        if std::ptr::eq(world, &refuses) {
            assert!(matches!(asked[0], Err(VerifyError::Stale { .. })));
            assert_eq!(world.finds(), 0);
            continue;
        }
        asked[0].as_ref().unwrap();
        assert!(matches!(asked[1], Err(VerifyError::Revoked { .. })));
        // The read of one key confirms nothing for later calls, so a call that does not read the store is
        // still refused.
        let plain = world.here.verify(key.secret.expose(), &reading());
        assert!(matches!(plain, Err(VerifyError::Stale { .. })), "{plain:?}");
    }
}

#[test]
fn past_the_bound_only_a_read_that_began_after_the_call_grants() {
    let world = Nodes::with(Propagation::default(), |builder| {
        builder.on_stale(OnStale::ReadThrough)
    });
    let key = world.known_key();
    world
        .clock
        .advance(Propagation::default().bound + Duration::from_micros(1));
    let gate = world.link.hold(Call::Find);
    let early = world.fetch(&key).begun();
    wait(world.there.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let late = world.fetch(&key).begun();
    gate.open();
    early.end().unwrap();
    let refused = late.end().unwrap_err();
    assert!(matches!(refused, VerifyError::Revoked { .. }), "{refused}");
}

#[test]
fn past_the_bound_reads_have_the_same_limits() {
    let world = Nodes::with(Propagation::default(), |builder| {
        let bounds = ReadThroughLimits::default().with(|bounds| bounds.burst = count(2));
        let builder = builder.on_stale(OnStale::ReadThrough);
        builder.read_through(bounds)
    });
    let keys = [(); 3].map(|()| world.known_key());
    world
        .clock
        .advance(Propagation::default().bound + Duration::from_micros(1));
    let verdicts = keys.each_ref().map(|key| world.fetch(key).end());
    assert!(verdicts[0].is_ok() && verdicts[1].is_ok());
    let refused = verdicts[2].as_ref().unwrap_err();
    assert_eq!((refused, world.finds()), (&VerifyError::Busy, 2));
}

#[test]
fn lag_counts_commits_seen_by_a_read_and_not_yet_synced() {
    let world = Nodes::new();
    wait(world.here.sync()).unwrap();
    assert_eq!(world.here.freshness().lag().commits, Some(0));
    let key = world.new_key();
    world.new_key();
    assert_eq!(
        world.here.freshness().lag().commits,
        Some(0),
        "nobody asked"
    );
    world.fetch(&key).end().unwrap();
    world.clock.advance(Duration::from_secs(3));
    let lag = world.here.freshness().lag();
    assert_eq!(
        (lag.time, lag.commits),
        (Some(Duration::from_secs(3)), Some(2))
    );
    wait(world.here.sync()).unwrap();
    let lag = world.here.freshness().lag();
    assert_eq!((lag.time, lag.commits), (Some(Duration::ZERO), Some(0)));
}

/// A step of a random scenario with one key.
#[derive(Clone, Debug)]
enum Step {
    /// The other node creates the key, or disables or enables an existing one.
    Change,
    /// This node begins a verification, with `verify_fresh` if `fresh` is true.
    Begin {
        fresh: bool,
    },
    /// Polls the waiting call with this index.
    Poll(usize),
    /// Drops the waiting call with this index.
    Drop(usize),
    /// If true, holds back answers from now on. If false, releases all held answers.
    Hold(bool),
    Sync,
    Pass(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Change),
        5 => any::<bool>().prop_map(|fresh| Step::Begin { fresh }),
        8 => (0..8_usize).prop_map(Step::Poll),
        1 => (0..8_usize).prop_map(Step::Drop),
        4 => any::<bool>().prop_map(Step::Hold),
        1 => Just(Step::Sync),
        3 => (0..6000_u64).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Key {
    Absent,
    On,
    Off,
}

/// The states of a key over time. Each entry has a step number, the clock's time and the new state.
struct History(Vec<(usize, Duration, Key)>);

impl History {
    fn now(&self) -> Key {
        self.0.last().unwrap().2
    }

    /// Returns whether the key was in the state `key` at any instant from the first one for which `since` holds.
    /// Once `since` holds, it must hold for all later instants.
    fn was(&self, key: Key, since: impl Fn(usize, Duration) -> bool) -> bool {
        let ends = self
            .0
            .iter()
            .skip(1)
            .map(|(step, at, _)| Some((*step, *at)));
        let spans = self.0.iter().zip(ends.chain([None]));
        let mut spans = spans.filter(|((.., own), _)| *own == key);
        spans.any(|(_, end)| end.is_none_or(|(step, at)| since(step, at)))
    }
}

struct Open {
    call: Calling,
    fresh: bool,
    begun: (usize, Duration),
}

impl Open {
    /// Checks a verdict against the history of the key. Returns whether the key was accepted.
    fn check(&self, verdict: Verdict, past: &History, now: Duration, synced: Duration) -> bool {
        let accepted = verdict.is_ok();
        let bound = Propagation::default().bound;
        let during = |step: usize, _: Duration| step > self.begun.0;
        let lately = |_: usize, at: Duration| at + bound >= now;
        let fine = match verdict {
            Ok(_) if self.fresh => {
                past.was(Key::On, |step, at| during(step, at) && lately(step, at))
            }
            Ok(_) => past.was(Key::On, lately),
            Err(VerifyError::Unknown) => past.was(Key::Absent, during),
            // If `fresh` is false, a known key may be refused for any state that it had within the staleness
            // bound.
            Err(VerifyError::Disabled { .. }) if self.fresh => past.was(Key::Off, during),
            Err(VerifyError::Disabled { .. }) => {
                past.was(Key::Off, lately) || past.was(Key::Off, during)
            }
            Err(VerifyError::Stale { .. }) if self.fresh => self.begun.1 + bound < now,
            Err(VerifyError::Stale { .. }) => self.begun.1.min(synced) + bound < now,
            Err(VerifyError::StoreUnavailable) => {
                self.begun.1 + ReadThroughLimits::default().timeout <= now
            }
            Err(_) => false,
        };
        assert!(
            fine,
            "{:?} at {now:?} of {:?}: {:?}",
            self.begun, past.0, self.fresh
        );
        accepted
    }
}

/// Reads are shared, delayed and dropped in any order. A granted key must have been valid at some instant
/// within the staleness bound. The verdict of `verify_fresh`, and the refusal of an unknown key, must have
/// been true at some instant since the call began.
#[test]
fn no_order_of_reads_grants_too_late_or_refuses_too_early() {
    let accepted = Reached::new("an accepted key");
    proptest!(|(steps in prop::collection::vec(step(), 1..60))| {
        let most = ReadThroughLimits::default().with(|bounds| {
            bounds.max_in_flight = count(1000);
            bounds.burst = count(1000);
        });
        let world = Nodes::with(Propagation::default(), |builder| builder.read_through(most));
        let key = Nodes::new().predicted_key();
        let (mut now, mut synced) = (Duration::ZERO, Duration::ZERO);
        let mut past = History(vec![(0, now, Key::Absent)]);
        let (mut open, mut gates): (Vec<Open>, Vec<support::gated::AnswerGate>) = Default::default();
        // At the end, all answers are released and all calls run to completion.
        let rest = [Step::Hold(false)].into_iter().chain((0..60).map(|_| Step::Poll(0)));
        for (number, step) in (1..).zip(steps.into_iter().chain(rest)) {
            match step {
                Step::Change => {
                    let (by, to) = (admin(), match past.now() {
                        Key::Absent | Key::Off => Key::On,
                        Key::On => Key::Off,
                    });
                    match past.now() {
                        Key::Absent => assert_eq!(world.predicted_key().id, key.id),
                        Key::On => drop(wait(world.there.disable(&by, key.id)).unwrap()),
                        Key::Off => drop(wait(world.there.enable(&by, key.id)).unwrap()),
                    }
                    past.0.push((number, now, to));
                }
                Step::Begin { fresh } => {
                    let call = if fresh { world.fresh(&key) } else { world.fetch(&key) };
                    open.push(Open { call, fresh, begun: (number, now) });
                    let last = open.last_mut().unwrap();
                    if let Some(verdict) = last.call.poll() {
                        accepted.note(open.pop().unwrap().check(verdict, &past, now, synced));
                    }
                }
                Step::Poll(place) if place < open.len() => {
                    if let Some(verdict) = open[place].call.poll() {
                        accepted.note(open.remove(place).check(verdict, &past, now, synced));
                    }
                }
                Step::Drop(place) if place < open.len() => drop(open.remove(place)),
                Step::Poll(_) | Step::Drop(_) => {}
                Step::Hold(true) => gates.push(world.link.hold(Call::Find)),
                Step::Hold(false) => {
                    world.link.let_pass(Call::Find);
                    gates.drain(..).for_each(|gate| gate.open());
                }
                Step::Sync => {
                    wait(world.here.sync()).unwrap();
                    synced = now;
                }
                Step::Pass(time) => {
                    world.clock.advance(time);
                    now += time;
                }
            }
        }
        prop_assert!(open.is_empty(), "nobody hangs");
    });
}
