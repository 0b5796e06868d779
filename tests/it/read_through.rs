//! Reading keys through the store: who shares a read, how many there may be, and what they may grant.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use keyward::policy::{Policy, Propagation};
use keyward::store::MemoryStore;
use keyward_conformance::Call;
use proptest::prelude::*;
use support::gated::Gated;

use keyward::{
    Builder, Created, Digest, Grant, ImportKey, Keyward, ManualClock, PastBound, ReadThrough,
    Reason, Rejection, RejectionKind, SeededEntropy, profiles,
};
use support::*;

type Verdict = Result<Grant, Rejection>;

/// A node over a link that a test steers, beside another that makes the changes.
struct Nodes {
    clock: Arc<ManualClock>,
    store: MemoryStore,
    link: Gated,
    here: Keyward,
    there: Keyward,
}

impl Nodes {
    fn new() -> Self {
        Self::with(Propagation::default(), |builder| builder)
    }

    fn with(propagation: Propagation, set: impl FnOnce(Builder) -> Builder) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let mut spec = profiles::standard();
        spec.propagation = propagation;
        let policy = Policy::new(spec).unwrap();
        let link = Gated::new(store.clone());
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

    /// A key that was made elsewhere, and is not known here.
    /// A node whose draws are the same in every test, so that another world foretells its keys.
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

    /// The key that another world creates first: its id says when it was drawn.
    fn foretold_key(&self) -> Created {
        let policy = Policy::new(profiles::standard()).unwrap();
        let clock = Arc::new(ManualClock::at(at(START)));
        let drawing = Self::drawing(&self.store, policy, &clock, 8);
        wait(drawing.create(&admin(), reader("a key"))).unwrap()
    }

    fn new_key(&self) -> Created {
        wait(self.there.create(&admin(), reader("a key"))).unwrap()
    }

    /// A key that both nodes know.
    fn known_key(&self) -> Created {
        let key = self.new_key();
        wait(self.here.sync()).unwrap();
        key
    }

    fn fetch(&self, key: &Created) -> Calling {
        let keys = self.here.clone();
        let token = key.secret.expose().to_owned();
        Calling::new(async move { keys.verify_or_fetch(token, &reading()).await })
    }

    fn fresh(&self, key: &Created) -> Calling {
        let keys = self.here.clone();
        let token = key.secret.expose().to_owned();
        Calling::new(async move { keys.verify_fresh(token, &reading()).await })
    }

    fn finds(&self) -> usize {
        self.link.asked(Call::Find)
    }
}

/// A call that goes on only when it is polled.
struct Calling(Pin<Box<dyn Future<Output = Verdict>>>);

impl Calling {
    /// Begins a call: it goes on until it first has to wait.
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

    /// Begins it, and sees that it has to wait.
    #[track_caller]
    fn begun(mut self) -> Self {
        assert!(self.poll().is_none(), "it waits for the store");
        self
    }

    #[track_caller]
    fn end(mut self) -> Verdict {
        self.poll().expect("nothing is held back any more")
    }
}

/// Tokens of keys that nobody knows.
fn strangers(count: usize) -> Vec<String> {
    let own = World::new().some_key();
    let token = own.secret.expose();
    let id = keyward::token::parse(token.as_bytes()).unwrap().id();
    let other = |n: usize| {
        let other = keyward::KeyId::from_u128(id.to_u128() ^ ((n as u128 + 1) << 8));
        let forged = token[..token.len() - 6].replace(&id.to_string(), &other.to_string());
        let checksum = keyward::token::checksum(&forged);
        forged + &checksum
    };
    (0..count).map(other).collect()
}

fn count(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

const FLOOD: usize = 100_000;

#[test]
fn a_flood_of_unknown_ids_is_a_bounded_number_of_reads() {
    let world = Nodes::new();
    let bounds = ReadThrough::default();
    let (burst, rate) = (
        bounds.burst.get() as usize,
        bounds.per_second.get() as usize,
    );
    let mut told = [0, 0];
    for (n, token) in strangers(FLOOD).iter().enumerate() {
        if n == FLOOD / 2 {
            assert_eq!(world.finds(), burst, "while no time passes");
        }
        if n >= FLOOD / 2 {
            // The second half comes within a second.
            world.clock.advance(Duration::from_micros(20));
        }
        match wait(world.here.verify_or_fetch(token, &reading())).unwrap_err() {
            Rejection::Unknown => told[0] += 1,
            Rejection::StoreUnavailable => told[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(world.finds(), burst + rate);
    assert_eq!(told, [burst + rate, FLOOD - burst - rate]);
    assert_eq!(
        Rejection::StoreUnavailable.kind(),
        RejectionKind::Unavailable,
        "never a bad key"
    );
    assert_eq!(world.link.asked(Call::Load), 0);
}

#[test]
fn strings_that_are_no_tokens_share_the_bounds_of_those_that_are() {
    let world = Nodes::new();
    let imported = Digest::sha256("some-key-from-elsewhere");
    let import = ImportKey::sha256(imported, reader("imported"));
    wait(world.there.import(&admin(), import)).unwrap();
    wait(world.here.sync()).unwrap();
    let burst = ReadThrough::default().burst.get() as usize;
    let tokens = strangers(burst);
    for (n, token) in tokens.iter().enumerate() {
        let foreign = format!("not-a-token-{n}");
        let calls = [
            wait(world.here.verify_or_fetch(foreign.clone(), &reading())),
            wait(world.here.verify_fresh(foreign, &reading())),
            wait(world.here.verify_fresh(token, &reading())),
        ];
        assert!(calls.iter().all(Result::is_err));
    }
    assert_eq!(world.finds(), burst);
    // Whoever holds the imported key is let in all the same.
    let held = wait(
        world
            .here
            .verify_fresh("some-key-from-elsewhere", &reading()),
    );
    held.unwrap();
}

#[test]
fn so_many_reads_are_on_their_way_at_once_and_no_more() {
    let bounds = ReadThrough {
        at_once: count(3),
        ..ReadThrough::default()
    };
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
    assert_eq!((refused, world.finds()), (Rejection::StoreUnavailable, 3));
    // One that is given up makes room.
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
    // From then on it is known here.
    world.fetch(&key).end().unwrap();
    assert_eq!(world.finds(), 1);
}

#[test]
fn each_caller_of_a_shared_read_is_judged_by_itself() {
    let world = Nodes::new();
    let key = world.new_key();
    let forged = with_other_secret(key.secret.expose());
    let gate = world.link.hold(Call::Find);
    let first = world.fetch(&key).begun();
    let keys = world.here.clone();
    let forger =
        Calling::new(async move { keys.verify_or_fetch(forged, &reading()).await }).begun();
    gate.open();
    first.end().unwrap();
    assert_eq!(forger.end().unwrap_err(), Rejection::WrongSecret);
}

#[test]
fn a_refusal_is_never_taken_from_a_read_that_began_before_the_call() {
    let world = Nodes::new();
    let key = Nodes::new().new_key();
    // The first read looks before the key is there, and its answer is long on its way.
    let gate = world.link.hold(Call::Find);
    let early = world.fetch(&key).begun();
    assert_eq!(world.new_key().id, key.id, "as it was foretold");
    let late: Vec<_> = (0..10).map(|_| world.fetch(&key).begun()).collect();
    gate.open();
    world.link.let_pass(Call::Find);
    assert_eq!(early.end().unwrap_err(), Rejection::Unknown);
    for call in late {
        call.end().unwrap();
    }
    assert_eq!(
        world.finds(),
        2,
        "those who came late share one read as well"
    );
}

#[test]
fn no_refusal_is_remembered() {
    let world = Nodes::new();
    let key = Nodes::new().new_key();
    for asked in 1..=3 {
        let refused = world.fetch(&key).end().unwrap_err();
        assert_eq!((refused, world.finds()), (Rejection::Unknown, asked));
    }
    world.new_key();
    world.fetch(&key).end().unwrap();
}

#[test]
fn a_failure_is_shared_by_those_who_waited_for_it_alone() {
    let world = Nodes::new();
    let key = world.new_key();
    let gate = world.link.hold(Call::Find);
    world.link.link.partition(true);
    let early = world.fetch(&key).begun();
    world.link.link.partition(false);
    let late = world.fetch(&key).begun();
    gate.open();
    assert_eq!(early.end().unwrap_err(), Rejection::StoreUnavailable);
    late.end().unwrap();
}

#[test]
fn nobody_hangs_when_the_one_who_began_a_read_goes_away() {
    for kept in [false, true] {
        let world = Nodes::new();
        let key = world.new_key();
        let gate = world.link.hold(Call::Find);
        let first = world.fetch(&key).begun();
        let mut second = world.fetch(&key).begun();
        // It is dropped, or kept and never polled again.
        let first = kept.then_some(first);
        gate.open();
        second.poll().expect("it goes on by itself").unwrap();
        drop(first);
        assert_eq!(world.finds(), 1, "the same read");
    }
}

#[test]
fn a_read_that_nobody_waits_for_any_more_is_given_up() {
    let one = ReadThrough {
        at_once: count(1),
        ..ReadThrough::default()
    };
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
fn a_read_that_hangs_holds_up_only_those_who_came_soon() {
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
fn a_fresh_verification_sees_what_returned_before_it_began_though_it_shares() {
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
        assert!(matches!(refused, Rejection::Revoked { .. }), "{refused}");
    }
    assert_eq!(world.finds(), 2);
}

#[test]
fn a_key_that_must_be_seen_fresh_is_not_granted_by_an_earlier_read() {
    let world = Nodes::with(Propagation::IMMEDIATE, |builder| builder);
    let key = world.new_key();
    let gate = world.link.hold(Call::Find);
    let early = world.fetch(&key).begun();
    wait(world.there.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let late = world.fetch(&key).begun();
    gate.open();
    early.end().unwrap();
    let refused = late.end().unwrap_err();
    assert!(matches!(refused, Rejection::Revoked { .. }), "{refused}");
}

#[test]
fn a_flood_keeps_out_nobody_who_holds_a_key_that_is_known_here() {
    let world = Nodes::with(Propagation::IMMEDIATE, |builder| builder);
    let key = world.known_key();
    let burst = ReadThrough::default().burst.get() as usize;
    let tokens = strangers(burst + 1);
    for token in &tokens {
        assert!(wait(world.here.verify_or_fetch(token, &reading())).is_err());
    }
    let refused = wait(world.here.verify_fresh(&tokens[0], &reading()));
    assert_eq!(refused.unwrap_err(), Rejection::StoreUnavailable);
    world.fetch(&key).end().unwrap();
    world.fresh(&key).end().unwrap();
    assert_eq!(world.finds(), burst + 2);
    // To know the id of a key is not to hold it.
    let forged = with_other_secret(key.secret.expose());
    let refused = wait(world.here.verify_or_fetch(forged, &reading()));
    assert_eq!(refused.unwrap_err(), Rejection::StoreUnavailable);
    assert_eq!(world.finds(), burst + 2);
}

#[test]
fn an_answer_that_was_on_its_way_for_longer_than_the_bound_grants_nothing() {
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
    assert!(matches!(refused, Rejection::Stale { .. }), "{refused}");
    // Who shared it asks again.
    let refused = second.end().unwrap_err();
    assert!(matches!(refused, Rejection::Revoked { .. }), "{refused}");
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
        builder.past_bound(PastBound::ReadThrough)
    });
    let past = Propagation::default().bound + Duration::from_micros(1);
    for world in [&refuses, &reads] {
        let (key, revoked) = (world.known_key(), world.known_key());
        wait(world.there.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
        world.clock.advance(past);
        for key in [&key, &revoked] {
            let plain = world.here.verify(key.secret.expose(), &reading());
            assert!(matches!(plain, Err(Rejection::Stale { .. })), "{plain:?}");
        }
        assert_eq!(world.finds(), 0, "verify never asks");
        let asked = [world.fetch(&key).end(), world.fetch(&revoked).end()];
        if std::ptr::eq(world, &refuses) {
            assert!(matches!(asked[0], Err(Rejection::Stale { .. })));
            assert_eq!(world.finds(), 0);
            continue;
        }
        asked[0].as_ref().unwrap();
        assert!(matches!(asked[1], Err(Rejection::Revoked { .. })));
        // What was read confirms nothing about any other key, nor about this one later on.
        let plain = world.here.verify(key.secret.expose(), &reading());
        assert!(matches!(plain, Err(Rejection::Stale { .. })), "{plain:?}");
    }
}

#[test]
fn past_the_bound_only_a_read_that_began_after_the_call_grants() {
    let world = Nodes::with(Propagation::default(), |builder| {
        builder.past_bound(PastBound::ReadThrough)
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
    assert!(matches!(refused, Rejection::Revoked { .. }), "{refused}");
}

#[test]
fn past_the_bound_reads_keep_within_the_same_bounds() {
    let world = Nodes::with(Propagation::default(), |builder| {
        let bounds = ReadThrough {
            burst: count(2),
            ..ReadThrough::default()
        };
        let builder = builder.past_bound(PastBound::ReadThrough);
        builder.read_through(bounds)
    });
    let keys = [(); 3].map(|()| world.known_key());
    world
        .clock
        .advance(Propagation::default().bound + Duration::from_micros(1));
    let verdicts = keys.each_ref().map(|key| world.fetch(key).end());
    assert!(verdicts[0].is_ok() && verdicts[1].is_ok());
    let refused = verdicts[2].as_ref().unwrap_err();
    assert_eq!((refused, world.finds()), (&Rejection::StoreUnavailable, 2));
}

#[test]
fn lag_tells_of_commits_that_a_read_saw_and_a_sync_has_not_brought_yet() {
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

/// A step of a story about one key.
#[derive(Clone, Debug)]
enum Step {
    /// Elsewhere: the key is created, or disabled or enabled once it is there.
    Change,
    /// Here: a call begins, fresh or not.
    Begin {
        fresh: bool,
    },
    /// The call of this number, of those that wait, is polled.
    Poll(usize),
    /// It is dropped.
    Drop(usize),
    /// Answers are held back from now on; or those held back are let go.
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

/// What a key was, and when: by the number of a step, and by the clock.
struct History(Vec<(usize, Duration, Key)>);

impl History {
    fn now(&self) -> Key {
        self.0.last().unwrap().2
    }

    /// Whether the key was so at some instant that `since` holds for, which holds for all later ones.
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
    /// Checks a verdict against all that the key was.
    fn check(&self, verdict: Verdict, past: &History, now: Duration, synced: Duration) {
        let bound = Propagation::default().bound;
        let during = |step: usize, _: Duration| step > self.begun.0;
        let lately = |_: usize, at: Duration| at + bound >= now;
        let fine = match verdict {
            Ok(_) if self.fresh => {
                past.was(Key::On, |step, at| during(step, at) && lately(step, at))
            }
            Ok(_) => past.was(Key::On, lately),
            Err(Rejection::Unknown) => past.was(Key::Absent, during),
            // Once it is known here, as it was within the bound.
            Err(Rejection::Disabled { .. }) if self.fresh => past.was(Key::Off, during),
            Err(Rejection::Disabled { .. }) => {
                past.was(Key::Off, lately) || past.was(Key::Off, during)
            }
            Err(Rejection::Stale { .. }) if self.fresh => self.begun.1 + bound < now,
            Err(Rejection::Stale { .. }) => self.begun.1.min(synced) + bound < now,
            Err(_) => false,
        };
        assert!(
            fine,
            "{:?} at {now:?} of {:?}: {:?}",
            self.begun, past.0, self.fresh
        );
    }
}

proptest! {
    /// Whatever is shared, held back and dropped: a grant is one that the key deserved within the
    /// bound, or since the call began where it must; a refusal is one that it deserved since the call
    /// began.
    #[test]
    fn no_order_of_reads_grants_too_late_or_refuses_too_early(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let most = ReadThrough { at_once: count(1000), burst: count(1000), ..ReadThrough::default() };
        let world = Nodes::with(Propagation::default(), |builder| builder.read_through(most));
        let key = Nodes::new().foretold_key();
        let (mut now, mut synced) = (Duration::ZERO, Duration::ZERO);
        let mut past = History(vec![(0, now, Key::Absent)]);
        let (mut open, mut gates): (Vec<Open>, Vec<support::gated::Gate>) = Default::default();
        // At last everything is let go and comes to its end.
        let rest = [Step::Hold(false)].into_iter().chain((0..60).map(|_| Step::Poll(0)));
        for (number, step) in (1..).zip(steps.into_iter().chain(rest)) {
            match step {
                Step::Change => {
                    let (by, to) = (admin(), match past.now() {
                        Key::Absent | Key::Off => Key::On,
                        Key::On => Key::Off,
                    });
                    match past.now() {
                        Key::Absent => assert_eq!(world.foretold_key().id, key.id),
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
                        open.pop().unwrap().check(verdict, &past, now, synced);
                    }
                }
                Step::Poll(place) if place < open.len() => {
                    if let Some(verdict) = open[place].call.poll() {
                        open.remove(place).check(verdict, &past, now, synced);
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
    }
}
