//! The phases of a run: start, faults under load, recovery, and the final checks.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::{ClockState, NodeTime};
use super::dice::Dice;
use super::ledger::{Acceptance, CommitLedger};
use super::link::Link;
use super::node::{Node, NodeParts, VerifyPath, start};
use super::world::{
    MILLI, Machine, NetworkQuality, SECOND, SimInstant, SimulatedWorld, WorldState,
};
use super::{Invariant, InvariantViolation, Options, SimulationBackend, SimulationReport};
use crate::explore::block_on;
use keyward::audit::verify_chain;
use keyward::command::CommandId;
use keyward::key::Digest;
use keyward::pepper::Pepper;
use keyward::policy::{ActiveKeyCap, Policy, Propagation};
use keyward::profiles::standard;
use keyward::store::{AuditQuery, Revision, RowKey};
use keyward::{KeyId, Need, PepperRing, Scope, VerifyError};

/// The parameters of a run, which its seed decides.
pub(super) struct RunSetup {
    pub(super) options: Options,
    pub(super) backend: SimulationBackend,
    pub(super) policy: Policy,
    pub(super) peppers: PepperRing,
    /// The number of nodes in the run, each on its own machine.
    pub(super) nodes: usize,
    /// The longest time between two syncs of a node, in microseconds.
    poll: u64,
    /// The time after which a node gives up a sync, in microseconds.
    sync_patience: u64,
    /// The time after which a node gives up a call of the store, in microseconds.
    pub(super) patience: u64,
    page: NonZeroUsize,
    /// The mean time between two verifications, and the mean time between two commands, both in microseconds.
    pub(super) between: (u64, u64),
    /// The simulated time at which all faults end.
    pub(super) healed: SimInstant,
}

/// A run in progress.
pub(super) struct Run {
    pub(super) world: Arc<SimulatedWorld>,
    pub(super) setup: RunSetup,
    observations: Mutex<Observations>,
}

/// The observations during a run: the tokens of clients, and earlier results that later verdicts must agree
/// with.
#[derive(Default)]
pub(super) struct Observations {
    pub(super) held: Vec<HeldKey>,
    /// A logical clock: each verification and each completed command gets the next number.
    ticks: u64,
    /// The row versions that each node has committed itself, with the tick of each commit. The key is the
    /// node, its incarnation and the row.
    own: BTreeMap<(usize, u32, RowKey), Vec<(u64, usize)>>,
    /// The tick at which a node first refused a key as revoked. The key of the map is the node, its
    /// incarnation and the key's id.
    refused: BTreeMap<(usize, u32, KeyId), u64>,
}

/// A key whose token a client knows.
#[derive(Clone, Debug)]
pub(super) struct HeldKey {
    pub(super) token: String,
    /// The key's id. `None` while only the token is known, because the key is not imported yet.
    pub(super) id: Option<KeyId>,
}

pub(super) const READ: &str = "reports:read";
pub(super) const WRITE: &str = "reports:write";

pub(super) fn run(
    seed: u64,
    options: &Options,
    traced: bool,
) -> Result<SimulationReport, InvariantViolation> {
    let mut dice = Dice::new(seed);
    let setup = RunSetup::new(&mut dice, options);
    let ledger = CommitLedger::new(setup.policy.clone(), setup.peppers.clone());
    let machines = (0..setup.nodes).map(|_| machine(&mut dice)).collect();
    let world = SimulatedWorld::new(dice, machines, ledger, traced);
    let run = Arc::new(Run {
        world: world.clone(),
        setup,
        observations: Mutex::default(),
    });
    for machine in 0..run.setup.nodes {
        run.boot(machine);
    }
    world.spawn(None, super::fate::inject_faults(run.clone()));
    world.spawn(None, super::fate::issue_commands(run.clone()));
    world.spawn(None, super::fate::present_keys(run.clone()));
    world.run_until(run.setup.healed);
    run.heal();
    run.settle();
    run.finish();
    world.end();
    let mut state = world.state();
    state.report.runs = 1;
    state.report.simulated = Duration::from_micros(state.now);
    match state.found.take() {
        None => Ok(state.report),
        Some((invariant, what)) => Err(InvariantViolation {
            invariant,
            seed,
            step: state.report.events,
            what,
            trace: state.take_trace(),
        }),
    }
}

impl RunSetup {
    fn new(dice: &mut Dice, options: &Options) -> Self {
        let bound = *dice.pick(&[1, 1, 2, 2, 3, 5]) * SECOND;
        let cap = u32::try_from(dice.between(2, 6)).ok();
        let cap = cap.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let span = u64::try_from(options.span.as_micros()).unwrap_or(u64::MAX / 4);
        let poll = bound / dice.between(2, 9);
        let patience = *dice.pick(&[bound / 2, bound, 2 * bound]);
        let page = *dice.pick(&[1, 1, 3, 1000]);
        Self {
            options: options.clone(),
            backend: (options.backend)(),
            policy: policy(Duration::from_micros(bound), cap),
            peppers: peppers(),
            nodes: dice.index(3) + 2,
            poll,
            sync_patience: patience * dice.between(1, 4),
            patience,
            page: NonZeroUsize::new(if options.whole_pages { 1000 } else { page })
                .unwrap_or(NonZeroUsize::MIN),
            between: (
                dice.between(100, 400) * MILLI,
                dice.between(300, 1500) * MILLI,
            ),
            healed: dice.between(span / 2, span + span / 2),
        }
    }
}

fn policy(bound: Duration, limit: NonZeroU32) -> Policy {
    let propagation = Propagation { bound };
    Policy::new(standard().with(|spec| {
        spec.caps = vec![ActiveKeyCap::new(limit)];
        spec.propagation = propagation;
    }))
    .unwrap_or_default()
}

fn peppers() -> PepperRing {
    let id = "simulated".try_into().expect("a valid pepper id literal");
    PepperRing::new(Pepper::new(id, &[7; Pepper::MIN_LEN]).expect("a pepper of the minimum length"))
}

fn machine(dice: &mut Dice) -> Machine {
    let ahead = any_jump(dice);
    Machine {
        clock: ClockState::new(any_rate(dice), dice.between(1, 1 << 50), ahead),
        node_time: NodeTime::default(),
        network: any_network(dice),
        cut_off: 0,
        paused: 0,
        incarnation: 0,
        notified: false,
        busy: false,
        served: None,
        node: None,
    }
}

/// Draws a random rate error of a monotonic clock, in millionths, within the limit that the crate documents.
pub(super) fn any_rate(dice: &mut Dice) -> i64 {
    let most = i64::from(Propagation::CLOCK_RATE_ERROR_PER_MILLE) * 1000;
    match dice.between(0, 4) {
        0 => -most,
        1 => most,
        _ => dice.between(0, 2 * most.unsigned_abs()).cast_signed() - most,
    }
}

/// Draws a random jump of a wall clock, in microseconds: seconds, hours or years, in either direction.
pub(super) fn any_jump(dice: &mut Dice) -> i64 {
    let days = 24 * 3600 * SECOND;
    let far = *dice.pick(&[SECOND, 10 * SECOND, 3600 * SECOND, 40 * days, 3650 * days]);
    dice.between(0, 2 * far).cast_signed() - far.cast_signed()
}

pub(super) fn any_network(dice: &mut Dice) -> NetworkQuality {
    match dice.between(0, 4) {
        0 => NetworkQuality {
            usual: 30 * MILLI,
            most: 4 * SECOND,
            loss: 100,
        },
        1 => NetworkQuality {
            usual: 150 * MILLI,
            most: 4 * SECOND,
            loss: 20,
        },
        _ => FAIR,
    }
}

/// A good network: 2 ms latency, and 5 of 1000 messages lost.
const FAIR: NetworkQuality = NetworkQuality {
    usual: 2 * MILLI,
    most: 500 * MILLI,
    loss: 5,
};

impl Run {
    /// Starts the node of a machine, and then makes it sync again and again.
    pub(super) fn boot(self: &Arc<Self>, machine: usize) {
        let (run, world) = (self.clone(), self.world.clone());
        let incarnation = world.state().machines[machine].incarnation;
        let task = async move {
            let node = loop {
                let parts = run.parts(machine);
                let starting = start(parts, run.setup.options.subject);
                let patience = run.setup.sync_patience;
                if let Some(Ok(node)) = run.world.within(patience, starting).await {
                    break node;
                }
                run.world.sleep(run.setup.poll).await;
            };
            {
                let mut state = run.world.state();
                state.log(|| format!("node {machine} has started, incarnation {incarnation}"));
                state.machines[machine].node = Some(node.clone());
            }
            loop {
                let synced = run.world.within(run.setup.sync_patience, node.sync()).await;
                run.world
                    .log(|| format!("node {machine} synced: {synced:?}"));
                let poll = {
                    let mut state = run.world.state();
                    state.dice.between(run.setup.poll / 2, run.setup.poll)
                };
                run.world.sleep_or_notified(machine, poll).await;
            }
        };
        world.spawn(Some(machine), task);
    }

    fn parts(&self, machine: usize) -> NodeParts {
        let seed = self.world.state().dice.next();
        let store = Arc::new(Link::new(
            self.world.clone(),
            machine,
            self.setup.backend.store.clone(),
            self.setup.patience,
            self.setup.page,
        ));
        NodeParts {
            world: self.world.clone(),
            machine,
            store,
            peppers: self.setup.peppers.clone(),
            policy: self.setup.policy.clone(),
            seed,
        }
    }

    pub(super) fn observations(&self) -> MutexGuard<'_, Observations> {
        self.observations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the node that runs on a machine, with its incarnation. `None` while no node runs.
    pub(super) fn node(&self, machine: usize) -> Option<(Arc<dyn Node>, u32)> {
        let state = self.world.state();
        let machine = &state.machines[machine];
        Some((machine.node.clone()?, machine.incarnation))
    }

    /// Records that a command succeeded on a node. Later verdicts of this node must reflect the version of
    /// `row` that the command wrote.
    pub(super) fn returned(
        &self,
        machine: usize,
        incarnation: u32,
        row: &RowKey,
        of: (&CommandId, Revision),
    ) {
        let (command, found) = of;
        let state = self.world.state();
        let version = state.ledger.version_of(row, command, found);
        drop(state);
        let mut observations = self.observations();
        let tick = observations.tick();
        if let Some(version) = version {
            let own = observations
                .own
                .entry((machine, incarnation, row.clone()))
                .or_default();
            own.push((tick, version));
        }
    }

    /// Presents a key to a node, and checks that the invariants allow the verdict.
    pub(super) async fn verify(
        self: Arc<Self>,
        machine: usize,
        held: HeldKey,
        needs: Option<&'static str>,
        path: VerifyPath,
    ) {
        let Some((node, incarnation)) = self.node(machine) else {
            return;
        };
        let called = self.world.state().now;
        let tick = self.observations().tick();
        let need = needs.map_or_else(Need::any, |needed| Scope::from_static(needed).into());
        let verdict = node.verify(&held.token, &need, path).await;
        let mut state = self.world.state();
        if state.machines[machine].incarnation != incarnation || state.found.is_some() {
            // The node was restarted while it verified the key. A real client would get no reply, so the
            // verdict is not checked.
            return;
        }
        self.judge(
            &mut state,
            ObservedVerdict {
                machine,
                incarnation,
                held: &held,
                needs,
                path,
                called,
                tick,
                verdict,
            },
        );
    }

    fn judge(&self, state: &mut WorldState, observed: ObservedVerdict<'_>) {
        let ObservedVerdict {
            machine,
            incarnation,
            held,
            needs,
            path,
            called,
            tick,
            verdict,
        } = observed;
        let now = state.now;
        state.report.verifications += 1;
        state.log(|| {
            let key = held.id.map(|id| id.to_string()).unwrap_or_default();
            let since = now - called;
            format!("node {machine} {path:?} {key} for {needs:?} took {since}: {verdict:?}")
        });
        state.mark(match &verdict {
            Ok(_) => 1,
            Err(rejection) => 2 + rejection.kind() as u64,
        });
        let expected = held
            .id
            .or_else(|| state.ledger.imported(&Digest::sha256(&held.token)));
        let bound = state.ledger.bound();
        match verdict {
            Ok(key) => {
                state.report.acceptances += 1;
                // A decision on local rows may use rows as old as the bound. A read through the store must
                // see every commit before the call.
                let oldest = now.saturating_sub(bound);
                let since = match (path, self.setup.options.reads_within_bound) {
                    (VerifyPath::Local, _) | (VerifyPath::OrFetch, true) => oldest,
                    (VerifyPath::OrFetch, false) => oldest.min(called),
                    (VerifyPath::Fresh, false) => called,
                    (VerifyPath::Fresh, true) => oldest.max(called),
                };
                let wall = state.machines[machine].clock.wall(now);
                let acceptance = Acceptance {
                    key,
                    needs,
                    since,
                    until: now,
                    wall,
                };
                let observations = self.observations();
                let own = |row: &RowKey| observations.own(machine, incarnation, row, tick);
                let mut checked = state.ledger.check(acceptance, own);
                if let (VerifyPath::Fresh, Err((Invariant::NeverPastBound, what))) =
                    (path, &checked)
                {
                    checked = Err((Invariant::FreshWhenAsked, what.clone()));
                }
                if expected != Some(key) {
                    let what = format!("{key} was accepted for {expected:?}");
                    checked = Err((Invariant::NeverPastBound, what));
                }
                let refused = observations.refused.get(&(machine, incarnation, key));
                if path == VerifyPath::Local && refused.is_some_and(|before| *before < tick) {
                    let what = format!("{key} was accepted where it had been refused as revoked");
                    checked = checked.and(Err((Invariant::TombstonesStick, what)));
                }
                drop(observations);
                if let Err((invariant, what)) = checked {
                    state.find(invariant, format!("node {machine}, {path:?}: {what}"));
                }
            }
            Err(VerifyError::Stale { .. }) => state.report.stale += 1,
            Err(VerifyError::StoreUnavailable | VerifyError::Busy) => state.report.unavailable += 1,
            Err(VerifyError::Unknown) if path != VerifyPath::Local => {
                if expected.is_some_and(|key| state.ledger.is_there(key, called)) {
                    let what = format!("node {machine} does not know {expected:?}, which is there");
                    state.find(Invariant::NewKeysAtOnce, what);
                }
            }
            Err(VerifyError::Revoked { key, .. }) => {
                if !state.ledger.was_revoked(key) {
                    let what = format!("node {machine} takes {key} for revoked, which it was not");
                    state.find(Invariant::RefusedForAReason, what);
                }
                if path == VerifyPath::Local {
                    let mut observations = self.observations();
                    let later = observations.tick();
                    observations
                        .refused
                        .entry((machine, incarnation, key))
                        .or_insert(later);
                }
            }
            Err(_) => {}
        }
    }

    /// Ends all faults: every machine runs, and its network loses no more messages.
    fn heal(&self) {
        let mut state = self.world.state();
        let now = state.now;
        state.faults_ended = true;
        state.log(|| "all faults end".to_owned());
        for machine in &mut state.machines {
            machine.network = NetworkQuality {
                most: 20 * MILLI,
                loss: 0,
                ..FAIR
            };
            machine.cut_off = now;
            machine.paused = now;
        }
    }

    /// Runs until commits have stopped, and every node has had time to sync. Records a violation if commits
    /// never stop.
    fn settle(&self) {
        let quiet = 4 * SECOND + 3 * (self.setup.poll + self.setup.sync_patience);
        for _ in 0..20 {
            let from = self.world.state().now;
            self.world.run_until(from + quiet);
            let state = self.world.state();
            if state.found.is_some() || state.last_commit + quiet / 2 < state.now {
                return;
            }
        }
        let what = "commits continue long after the faults ended".to_owned();
        self.world.state().find(Invariant::Progress, what);
    }

    /// Checks the invariants that must hold after all faults have ended.
    fn finish(self: &Arc<Self>) {
        if self.world.state().found.is_some() {
            return;
        }
        let found = self.compare().and_then(|()| self.check_trails());
        if let Err((invariant, what)) = found {
            self.world.state().find(invariant, what);
        }
    }

    /// Checks that every node accepts exactly the keys that the store's rows permit.
    fn compare(self: &Arc<Self>) -> Result<(), (Invariant, String)> {
        let held = self.observations().held.clone();
        for machine in 0..self.setup.nodes {
            let Some((node, _)) = self.node(machine) else {
                let what = format!("node {machine} never started");
                return Err((Invariant::FreshOnceHealed, what));
            };
            for key in &held {
                for needs in [READ, WRITE] {
                    let verdict = Arc::new(Mutex::new(None));
                    let (node, token, own) = (node.clone(), key.token.clone(), verdict.clone());
                    self.world.spawn(Some(machine), async move {
                        let need = Need::from(Scope::from_static(needs));
                        let verdict = node.verify(&token, &need, VerifyPath::Local).await;
                        *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
                    });
                    let now = self.world.state().now;
                    self.world.run_until(now);
                    let verdict = verdict
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .take();
                    let state = self.world.state();
                    let id = key
                        .id
                        .or_else(|| state.ledger.imported(&Digest::sha256(&key.token)));
                    let own = &state.machines[machine];
                    let time = own.node_time.at(&own.clock, now);
                    let good = id.is_some_and(|id| {
                        let at = state.ledger.instant_for(id, time);
                        state.ledger.is_good(id, Some(needs), at)
                    });
                    if verdict.as_ref().map(Result::is_ok) != Some(good) {
                        let what = format!(
                            "node {machine} says {verdict:?} of {id:?} for {needs}, good is {good}"
                        );
                        return Err((Invariant::FreshOnceHealed, what));
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that the audit trails in the store end with the heads that the ledger has recorded.
    fn check_trails(&self) -> Result<(), (Invariant, String)> {
        let state = self.world.state();
        let failed = |what: String| (Invariant::TrailIntact, what);
        for (tenant, head) in state.ledger.heads() {
            let mut query = AuditQuery::tenant(tenant.clone());
            let mut entries = Vec::new();
            loop {
                let page = block_on(self.setup.backend.store.audit(&query));
                let page = page.map_err(|error| failed(error.to_string()))?;
                entries.extend(page.rows.into_iter().map(|row| row.entry));
                match page.next {
                    Some(next) => query.after = Some(next),
                    None => break,
                }
            }
            let start = keyward::audit::AuditHead::GENESIS;
            let ends = verify_chain(tenant, start, &entries, state.ledger.peppers(), None)
                .map_err(|error| failed(error.to_string()))?;
            if ends != *head {
                return Err(failed(format!("the trail of {tenant} is cut short")));
            }
        }
        Ok(())
    }
}

/// The verdict of a node on a key, with the data to check the verdict.
struct ObservedVerdict<'a> {
    machine: usize,
    incarnation: u32,
    held: &'a HeldKey,
    needs: Option<&'static str>,
    path: VerifyPath,
    called: SimInstant,
    tick: u64,
    verdict: Result<KeyId, VerifyError>,
}

impl Observations {
    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }

    /// Returns the index of the newest version of a row that this node itself committed before `tick`.
    fn own(&self, machine: usize, incarnation: u32, row: &RowKey, tick: u64) -> Option<usize> {
        let own = self.own.get(&(machine, incarnation, row.clone()))?;
        let before = own.iter().filter(|(from, _)| *from < tick);
        before.map(|(_, version)| *version).max()
    }
}
