//! A node that follows its store in the background. Time is paused, so no test waits in real time.

use std::sync::Arc;
use std::time::Duration;

use keyward::command::Created;
use keyward::entropy::SeededEntropy;
use keyward::node::{FollowError, FollowOptions, FollowStartError, Follower};
use keyward::policy::{Policy, Propagation};
use keyward::store::MemoryStore;
use keyward::{Keyward, ManualClock, Reason, RotateKey, VerifyError, hours, profiles};
use keyward_conformance::{Call, Fault};
use support::gated::{GatedStore, WaitOutcome};
use support::*;
use tokio::time::{Instant, sleep};

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
        Self::with_bound(Propagation::default())
    }

    fn with_bound(propagation: Propagation) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let mut spec = profiles::standard();
        spec.propagation = propagation;
        let policy = Policy::new(spec).unwrap();
        let link = GatedStore::new(store.clone());
        let there = node(store.clone(), &clock, policy.clone());
        // The seed makes the random pauses the same in every run.
        let here = Keyward::builder(link.clone(), peppers())
            .policy(policy)
            .clock(clock.clone())
            .entropy(SeededEntropy::new(1));
        let here = wait(here.build()).unwrap();
        Self {
            clock,
            store,
            link,
            here,
            there,
        }
    }

    /// Creates a key on the other node and syncs this node.
    async fn key(&self) -> Created {
        let key = self.there.create(&admin(), reader("a key")).await.unwrap();
        self.here.sync().await.unwrap();
        key
    }

    /// Revokes a key on the other node.
    async fn revoke(&self, key: &Created) {
        let revoked = self.there.revoke(&admin(), key.id, Reason::Lost).await;
        revoked.unwrap();
    }

    /// Starts a follower that syncs with the store but never runs maintenance.
    fn follow(&self) -> Follower {
        let options = FollowOptions::default().with_upkeep(None);
        self.here.follow(options).unwrap()
    }

    fn syncs(&self) -> usize {
        self.link.asked(Call::Changes)
    }

    /// Sleeps for `time`. Returns the number of reads of changes during the sleep.
    async fn syncs_in(&self, time: Duration) -> usize {
        let before = self.syncs();
        sleep(time).await;
        self.syncs() - before
    }

    /// Advances both the node's clock and the runtime's timers by `time`, in small steps.
    async fn pass(&self, time: Duration) {
        let step = Duration::from_millis(50);
        let mut left = time;
        while !left.is_zero() {
            let step = step.min(left);
            self.clock.advance(step);
            sleep(step).await;
            left -= step;
        }
    }

    fn verify(&self, key: &Created) -> Result<(), VerifyError> {
        let verdict = self.here.verify(key.secret.expose(), &reading());
        verdict.map(drop)
    }
}

/// Runs a test on a runtime whose timers advance as soon as no task can run. A test that would wait forever
/// fails.
fn paused<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let in_time = async { tokio::time::timeout(hours(1), test).await };
    runtime.unwrap().block_on(in_time).unwrap()
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_commit_elsewhere_is_known_within_a_poll_without_any_hint() {
    paused(async {
        let world = Nodes::new();
        let key = world.key().await;
        world.link.end_waits_with(WaitOutcome::Lost);
        let follower = world.follow();
        sleep(ms(100)).await;
        world.revoke(&key).await;
        world.verify(&key).unwrap();
        sleep(ms(250)).await;
        assert!(matches!(
            world.verify(&key),
            Err(VerifyError::Revoked { .. })
        ));
        assert_eq!(world.syncs_in(ms(10_000)).await, 40);
        follower.stop().await;
    });
}

#[test]
fn a_hint_wakes_the_follower_immediately() {
    paused(async {
        let world = Nodes::new();
        let key = world.key().await;
        let follower = world.follow();
        sleep(ms(100)).await;
        let mut steps = follower.watch();
        let before = Instant::now();
        world.revoke(&key).await;
        steps.changed().await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert!(matches!(
            world.verify(&key),
            Err(VerifyError::Revoked { .. })
        ));
    });
}

#[test]
fn spurious_and_failing_hints_cause_no_busy_loop() {
    paused(async {
        let world = Nodes::new();
        let _follower = world.follow();
        world.link.end_waits_with(WaitOutcome::Spurious);
        sleep(ms(500)).await;
        let syncs = world.syncs_in(ms(1000)).await;
        assert!((50..=100).contains(&syncs), "{syncs}");
        world.link.end_waits_with(WaitOutcome::Failing);
        sleep(ms(500)).await;
        assert_eq!(world.syncs_in(ms(1000)).await, 4, "it polls");
    });
}

#[test]
fn a_hint_does_not_confirm_freshness() {
    paused(async {
        let world = Nodes::new();
        let key = world.key().await;
        let follower = world.follow();
        world.link.end_waits_with(WaitOutcome::Spurious);
        world.pass(ms(1000)).await;
        assert!(follower.status().freshness.age.unwrap() <= ms(300));
        // Calls of `wait_past` keep returning, but the reads of changes that they trigger get no answer.
        let _never = world.link.hold(Call::Changes);
        world.pass(Propagation::default().bound + ms(300)).await;
        assert!(matches!(world.verify(&key), Err(VerifyError::Stale { .. })));
        assert!(follower.is_running());
    });
}

#[test]
fn a_hanging_sync_times_out_and_confirms_nothing() {
    paused(async {
        let world = Nodes::new();
        let key = world.key().await;
        let gate = world.link.hold(Call::Changes);
        let follower = world.follow();
        let mut steps = follower.watch();
        let before = Instant::now();
        let confirmed = follower.status().freshness;
        world.clock.advance(ms(1000));
        steps.changed().await.unwrap();
        assert_eq!(before.elapsed(), FollowOptions::DEFAULT_TIMEOUT);
        let status = follower.status();
        assert_eq!(status.failures, 1);
        let error = status.last_error.as_ref().unwrap();
        assert!(matches!(error, FollowError::TimedOut { after } if *after == ms(1000)));
        assert_eq!(
            status.freshness.age,
            confirmed.age.map(|age| age + ms(1000))
        );
        assert_eq!(status.lag().time, status.freshness.age);
        // The answer arrives when the node no longer waits for it.
        gate.open();
        world.clock.advance(Propagation::default().bound);
        assert!(matches!(world.verify(&key), Err(VerifyError::Stale { .. })));
        world.link.let_pass(Call::Changes);
        sleep(ms(2000)).await;
        world.verify(&key).unwrap();
        let status = follower.status();
        assert_eq!(
            (status.failures, status.freshness.age),
            (0, Some(Duration::ZERO))
        );
        assert!(
            status.last_error.is_some(),
            "the status keeps the last error"
        );
    });
}

#[test]
fn an_answer_confirms_the_instant_of_its_request() {
    paused(async {
        let world = Nodes::new();
        let gate = world.link.hold(Call::Changes);
        let follower = world.follow();
        sleep(ms(100)).await;
        world.clock.advance(ms(700));
        world.link.let_pass(Call::Changes);
        gate.open();
        follower.watch().changed().await.unwrap();
        assert_eq!(follower.status().freshness.age, Some(ms(700)));
    });
}

#[test]
fn a_full_scan_may_exceed_the_timeout_while_pages_arrive() {
    paused(async {
        let world = Nodes::new();
        for n in 0..3 {
            let key = reader(&n.to_string());
            world.there.create(&admin(), key).await.unwrap();
        }
        // The node must read the whole store again. Each answer is slow, but arrives before the timeout.
        world.key().await;
        let removed = world.there.create(&admin(), reader("x")).await.unwrap();
        let plain = keyward::command::DeleteKey::plain();
        world
            .there
            .delete(&admin(), removed.id, plain)
            .await
            .unwrap();
        world.store.compact();
        world.link.slow(ms(800));
        let follower = world.follow();
        let mut steps = follower.watch();
        let before = Instant::now();
        steps.changed().await.unwrap();
        assert_eq!(
            follower.status().failures,
            0,
            "{:?}",
            follower.status().last_error
        );
        assert!(before.elapsed() > FollowOptions::DEFAULT_TIMEOUT * 2);
    });
}

#[test]
fn consecutive_failures_are_counted_and_retried_with_growing_pauses() {
    paused(async {
        let world = Nodes::new();
        let key = world.key().await;
        let follower = world.follow();
        sleep(ms(100)).await;
        world.link.link.partition(true);
        let first = world.syncs_in(ms(2000)).await;
        let later = world.syncs_in(ms(60_000)).await;
        assert!((4..=30).contains(&first), "{first}");
        assert!((30..=120).contains(&later), "about one a second: {later}");
        let status = follower.status();
        assert!(status.failures as usize >= later);
        assert!(matches!(status.last_error, Some(FollowError::Store(_))));

        // After failures, the pause between retries grows. A success resets it.
        world.link.link.partition(false);
        sleep(ms(3000)).await;
        assert_eq!(follower.status().failures, 0);
        world.link.link.next(Call::Changes, [Fault::Unavailable]);
        let mut steps = follower.watch();
        while follower.status().failures == 0 {
            steps.changed().await.unwrap();
        }
        let before = Instant::now();
        steps.changed().await.unwrap();
        assert!(before.elapsed() <= ms(51), "{:?}", before.elapsed());
        world.verify(&key).unwrap();
    });
}

#[test]
fn a_short_bound_is_met_and_a_single_failure_causes_no_refusal() {
    paused(async {
        let bound = ms(1000);
        let world = Nodes::with_bound(Propagation { bound });
        let key = world.key().await;
        world.link.end_waits_with(WaitOutcome::Lost);
        let options = FollowOptions::default().with_upkeep(None);
        let options = options.with_poll(ms(60_000)).with_backoff(ms(60_000));
        let _follower = world.here.follow(options).unwrap();
        for n in 0..200 {
            if n % 40 == 0 {
                world.link.link.next(Call::Changes, [Fault::Unavailable]);
            }
            world.pass(ms(50)).await;
            world.verify(&key).unwrap();
        }
    });
}

#[test]
fn the_task_has_ended_when_stop_returns_even_if_its_step_hung() {
    paused(async {
        let world = Nodes::new();
        let gate = world.link.hold(Call::Changes);
        let follower = world.follow();
        let mut steps = follower.watch();
        sleep(ms(100)).await;
        assert_eq!(world.syncs(), 2, "one sync by `build`, one by the follower");
        let before = Instant::now();
        follower.stop().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert!(
            steps.changed().await.is_err(),
            "the follower sends no more steps"
        );
        gate.open();
        world.link.let_pass(Call::Changes);
        assert_eq!(world.syncs_in(ms(10_000)).await, 0);
        // The sync that `stop` cancelled does not block later syncs.
        world.here.sync().await.unwrap();
    });
}

#[test]
fn a_dropped_follower_stops() {
    paused(async {
        let world = Nodes::new();
        let follower = world.follow();
        sleep(ms(1000)).await;
        drop(follower);
        sleep(ms(1)).await;
        assert_eq!(world.syncs_in(ms(10_000)).await, 0);
    });
}

#[test]
fn following_without_a_runtime_is_refused() {
    let world = Nodes::new();
    let refused = world.here.follow(FollowOptions::default());
    assert_eq!(refused.unwrap_err(), FollowStartError::NoRuntime);
}

#[test]
fn the_follower_runs_upkeep_and_a_hanging_chore_delays_no_confirmation() {
    paused(async {
        let world = Nodes::new();
        let key = world.key().await;
        let lazily = RotateKey::on_first_use(hours(1));
        let rotated = world.there.rotate(&admin(), key.id, lazily).await.unwrap();
        world.here.sync().await.unwrap();
        let follower = world.here.follow(FollowOptions::default()).unwrap();
        let gate = world.link.hold(Call::Commit);
        let verdict = world.here.verify(rotated.secret.expose(), &reading());
        verdict.unwrap();
        sleep(ms(1100)).await;
        assert_eq!(
            world.link.asked(Call::Commit),
            1,
            "maintenance records the first use"
        );
        world.pass(ms(20_000)).await;
        world.verify(&key).unwrap();
        assert_eq!(follower.status().failures, 0);
        gate.open();
        sleep(ms(300)).await;
        // The grace period of the old key has begun.
        world.clock.advance(hours(1));
        sleep(ms(300)).await;
        let refused = world.verify(&key).unwrap_err();
        assert!(matches!(refused, VerifyError::Expired { .. }), "{refused}");
    });
}

/// A thread outside the runtime can stop the follower. Stopping also records the counted first uses.
#[test]
fn a_stop_from_outside_of_the_runtime_records_first_uses() {
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
    let world = Nodes::new();
    let (key, rotated) = runtime.block_on(async {
        let key = world.key().await;
        let lazily = RotateKey::on_first_use(hours(1));
        let rotated = world.there.rotate(&admin(), key.id, lazily).await.unwrap();
        world.here.sync().await.unwrap();
        (key, rotated)
    });
    let rarely = FollowOptions::default().with_upkeep(Some(hours(1)));
    let follower = runtime.block_on(async { world.here.follow(rarely).unwrap() });
    let verdict = world.here.verify(rotated.secret.expose(), &reading());
    verdict.unwrap();
    wait(follower.stop());
    let ends = wait(world.there.key(&host(), key.id)).unwrap().expires_at;
    let grace_ends = keyward::Clock::now(&world.clock).saturating_add(hours(1));
    assert_eq!(ends, Some(grace_ends));
}
