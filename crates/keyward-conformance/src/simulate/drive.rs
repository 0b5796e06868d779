//! The course of a run: boot, faults and load, recovery, and the final checks.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::{Hands, OwnTime};
use super::dice::Dice;
use super::ledger::{Acceptance, Ledger};
use super::link::Link;
use super::node::{Node, Parts, Way, start};
use super::world::{Instant, MILLI, Place, SECOND, State, Weather, World};
use super::{Ground, Invariant, Options, Report, Violation};
use crate::explore::block_on;
use keyward::audit::verify_chain;
use keyward::command::CommandId;
use keyward::key::Digest;
use keyward::pepper::Pepper;
use keyward::policy::{ActiveKeyCap, Policy, Propagation};
use keyward::profiles::standard;
use keyward::store::{AuditQuery, Revision, RowKey};
use keyward::{KeyId, Need, PepperRing, Scope, VerifyError};

/// The parameters of a run.
pub(super) struct Setup {
    pub(super) options: Options,
    pub(super) ground: Ground,
    pub(super) policy: Policy,
    pub(super) peppers: PepperRing,
    /// The number of nodes.
    pub(super) nodes: usize,
    /// The time between two polls of a node, in microseconds.
    poll: u64,
    /// A node's timeout for a sync, in microseconds.
    sync_patience: u64,
    /// A node's timeout for a call, in microseconds.
    pub(super) patience: u64,
    page: NonZeroUsize,
    /// The mean times between two presentations and between two commands, in microseconds.
    pub(super) between: (u64, u64),
    /// The instant at which faults end.
    pub(super) healed: Instant,
}

/// A run in progress.
pub(super) struct Run {
    pub(super) world: Arc<World>,
    pub(super) setup: Setup,
    book: Mutex<Book>,
}

/// The knowledge of the clients that present keys.
#[derive(Default)]
pub(super) struct Book {
    pub(super) held: Vec<Held>,
    /// A counter of verifications and returned commands, which gives them an order.
    ticks: u64,
    /// The versions of a row that a node made, by node, life and row. Each version has its tick.
    own: BTreeMap<(usize, u32, RowKey), Vec<(u64, usize)>>,
    /// The tick at which a node first refused a key as revoked, by node, life and key.
    refused: BTreeMap<(usize, u32, KeyId), u64>,
}

/// A key with a known token.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) token: String,
    /// The key's id; `None` while only the token is known.
    pub(super) id: Option<KeyId>,
}

pub(super) const READ: &str = "reports:read";
pub(super) const WRITE: &str = "reports:write";

pub(super) fn run(seed: u64, options: &Options, traced: bool) -> Result<Report, Violation> {
    let mut dice = Dice::new(seed);
    let setup = Setup::new(&mut dice, options);
    let ledger = Ledger::new(setup.policy.clone(), setup.peppers.clone());
    let places = (0..setup.nodes).map(|_| place(&mut dice)).collect();
    let world = World::new(dice, places, ledger, traced);
    let run = Arc::new(Run {
        world: world.clone(),
        setup,
        book: Mutex::default(),
    });
    for place in 0..run.setup.nodes {
        run.boot(place);
    }
    world.spawn(None, super::fate::befall(run.clone()));
    world.spawn(None, super::fate::command(run.clone()));
    world.spawn(None, super::fate::present(run.clone()));
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
        Some((invariant, what)) => Err(Violation {
            invariant,
            seed,
            step: state.report.events,
            what,
            trace: state.take_trace(),
        }),
    }
}

impl Setup {
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
            ground: (options.ground)(),
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
    let active_keys = ActiveKeyCap::Limited {
        limit,
        classes: Default::default(),
    };
    let propagation = Propagation { bound };
    Policy::new(standard().with(|spec| {
        spec.active_keys = active_keys;
        spec.propagation = propagation;
    }))
    .unwrap_or_default()
}

fn peppers() -> PepperRing {
    let id = "simulated".try_into().expect("a valid pepper id literal");
    PepperRing::new(Pepper::new(id, &[7; Pepper::MIN_LEN]).expect("a pepper of the minimum length"))
}

fn place(dice: &mut Dice) -> Place {
    let ahead = any_jump(dice);
    Place {
        hands: Hands::new(any_rate(dice), dice.between(1, 1 << 50), ahead),
        own_time: OwnTime::default(),
        weather: any_weather(dice),
        cut_off: 0,
        paused: 0,
        life: 0,
        hinted: false,
        busy: false,
        served: None,
        node: None,
    }
}

/// Draws a rate error in millionths, within the limit that the crate documents.
pub(super) fn any_rate(dice: &mut Dice) -> i64 {
    let most = i64::from(Propagation::CLOCK_RATE_ERROR_PER_MILLE) * 1000;
    match dice.between(0, 4) {
        0 => -most,
        1 => most,
        _ => dice.between(0, 2 * most.unsigned_abs()).cast_signed() - most,
    }
}

/// Draws an offset for a wall clock in microseconds: seconds, hours or years, in either direction.
pub(super) fn any_jump(dice: &mut Dice) -> i64 {
    let days = 24 * 3600 * SECOND;
    let far = *dice.pick(&[SECOND, 10 * SECOND, 3600 * SECOND, 40 * days, 3650 * days]);
    dice.between(0, 2 * far).cast_signed() - far.cast_signed()
}

pub(super) fn any_weather(dice: &mut Dice) -> Weather {
    match dice.between(0, 4) {
        0 => Weather {
            usual: 30 * MILLI,
            most: 4 * SECOND,
            loss: 100,
        },
        1 => Weather {
            usual: 150 * MILLI,
            most: 4 * SECOND,
            loss: 20,
        },
        _ => FAIR,
    }
}

/// A reliable network.
const FAIR: Weather = Weather {
    usual: 2 * MILLI,
    most: 500 * MILLI,
    loss: 5,
};

impl Run {
    /// Starts the node of a machine, and keeps it synced.
    pub(super) fn boot(self: &Arc<Self>, place: usize) {
        let (run, world) = (self.clone(), self.world.clone());
        let life = world.state().places[place].life;
        let task = async move {
            let node = loop {
                let parts = run.parts(place);
                let starting = start(parts, run.setup.options.subject);
                let patience = run.setup.sync_patience;
                if let Some(Ok(node)) = run.world.within(patience, starting).await {
                    break node;
                }
                run.world.sleep(run.setup.poll).await;
            };
            {
                let mut state = run.world.state();
                state.log(|| format!("node {place} is up, life {life}"));
                state.places[place].node = Some(node.clone());
            }
            loop {
                let synced = run.world.within(run.setup.sync_patience, node.sync()).await;
                run.world.log(|| format!("node {place} synced: {synced:?}"));
                let poll = {
                    let mut state = run.world.state();
                    state.dice.between(run.setup.poll / 2, run.setup.poll)
                };
                run.world.sleep_or_hint(place, poll).await;
            }
        };
        world.spawn(Some(place), task);
    }

    fn parts(&self, place: usize) -> Parts {
        let seed = self.world.state().dice.next();
        let store = Arc::new(Link::new(
            self.world.clone(),
            place,
            self.setup.ground.store.clone(),
            self.setup.patience,
            self.setup.page,
        ));
        Parts {
            world: self.world.clone(),
            place,
            store,
            peppers: self.setup.peppers.clone(),
            policy: self.setup.policy.clone(),
            seed,
        }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a running node and the number of its current life.
    pub(super) fn node(&self, place: usize) -> Option<(Arc<dyn Node>, u32)> {
        let state = self.world.state();
        let place = &state.places[place];
        Some((place.node.clone()?, place.life))
    }

    /// Records that a command returned on a node. From now on, the node must respect the command's
    /// effect on `row`.
    pub(super) fn returned(
        &self,
        place: usize,
        life: u32,
        row: &RowKey,
        of: (&CommandId, Revision),
    ) {
        let (command, found) = of;
        let state = self.world.state();
        let version = state.ledger.version_of(row, command, found);
        drop(state);
        let mut book = self.book();
        let tick = book.tick();
        if let Some(version) = version {
            let own = book.own.entry((place, life, row.clone())).or_default();
            own.push((tick, version));
        }
    }

    /// Presents a key to a node, and judges the verdict.
    pub(super) async fn verify(
        self: Arc<Self>,
        place: usize,
        held: Held,
        needs: Option<&'static str>,
        way: Way,
    ) {
        let Some((node, life)) = self.node(place) else {
            return;
        };
        let called = self.world.state().now;
        let tick = self.book().tick();
        let need = needs.map_or_else(Need::any, |needed| Scope::from_static(needed).into());
        let verdict = node.verify(&held.token, &need, way).await;
        let mut state = self.world.state();
        if state.places[place].life != life || state.found.is_some() {
            // The node was restarted, so its verdict no longer counts.
            return;
        }
        self.judge(
            &mut state,
            Answered {
                place,
                life,
                held: &held,
                needs,
                way,
                called,
                tick,
                verdict,
            },
        );
    }

    fn judge(&self, state: &mut State, answered: Answered<'_>) {
        let Answered {
            place,
            life,
            held,
            needs,
            way,
            called,
            tick,
            verdict,
        } = answered;
        let now = state.now;
        state.report.verifications += 1;
        state.log(|| {
            let key = held.id.map(|id| id.to_string()).unwrap_or_default();
            let since = now - called;
            format!("node {place} {way:?} {key} for {needs:?} took {since}: {verdict:?}")
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
                // A node's own knowledge may be as old as the bound. A read through the store must
                // be as new as the read's request.
                let oldest = now.saturating_sub(bound);
                let since = match (way, self.setup.options.reads_within_bound) {
                    (Way::Known, _) | (Way::OrFetch, true) => oldest,
                    (Way::OrFetch, false) => oldest.min(called),
                    (Way::Fresh, false) => called,
                    (Way::Fresh, true) => oldest.max(called),
                };
                let wall = state.places[place].hands.wall(now);
                let acceptance = Acceptance {
                    key,
                    needs,
                    since,
                    until: now,
                    wall,
                };
                let book = self.book();
                let own = |row: &RowKey| book.own(place, life, row, tick);
                let mut checked = state.ledger.check(acceptance, own);
                if let (Way::Fresh, Err((Invariant::NeverPastBound, what))) = (way, &checked) {
                    checked = Err((Invariant::FreshWhenAsked, what.clone()));
                }
                if expected != Some(key) {
                    let what = format!("{key} was accepted for {expected:?}");
                    checked = Err((Invariant::NeverPastBound, what));
                }
                let refused = book.refused.get(&(place, life, key));
                if way == Way::Known && refused.is_some_and(|before| *before < tick) {
                    let what = format!("{key} was accepted where it had been refused as revoked");
                    checked = checked.and(Err((Invariant::TombstonesStick, what)));
                }
                drop(book);
                if let Err((invariant, what)) = checked {
                    state.find(invariant, format!("node {place}, {way:?}: {what}"));
                }
            }
            Err(VerifyError::Stale { .. }) => state.report.stale += 1,
            Err(VerifyError::StoreUnavailable) => state.report.unavailable += 1,
            Err(VerifyError::Unknown) if way != Way::Known => {
                if expected.is_some_and(|key| state.ledger.is_there(key, called)) {
                    let what = format!("node {place} does not know {expected:?}, which is there");
                    state.find(Invariant::NewKeysAtOnce, what);
                }
            }
            Err(VerifyError::Revoked { key, .. }) => {
                if !state.ledger.was_revoked(key) {
                    let what = format!("node {place} takes {key} for revoked, which it was not");
                    state.find(Invariant::RefusedForAReason, what);
                }
                if way == Way::Known {
                    let mut book = self.book();
                    let later = book.tick();
                    book.refused.entry((place, life, key)).or_insert(later);
                }
            }
            Err(_) => {}
        }
    }

    /// Ends all faults.
    fn heal(&self) {
        let mut state = self.world.state();
        let now = state.now;
        state.calm = true;
        state.log(|| "all is well again".to_owned());
        for place in &mut state.places {
            place.weather = Weather {
                most: 20 * MILLI,
                loss: 0,
                ..FAIR
            };
            place.cut_off = now;
            place.paused = now;
        }
    }

    /// Runs until messages in flight have arrived and every node has synced.
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
        let what = "commits still land".to_owned();
        self.world.state().find(Invariant::Progress, what);
    }

    /// Checks the invariants that hold at the end.
    fn finish(self: &Arc<Self>) {
        if self.world.state().found.is_some() {
            return;
        }
        let found = self.compare().and_then(|()| self.check_trails());
        if let Err((invariant, what)) = found {
            self.world.state().find(invariant, what);
        }
    }

    /// Checks that every node knows what the store contains.
    fn compare(self: &Arc<Self>) -> Result<(), (Invariant, String)> {
        let held = self.book().held.clone();
        for place in 0..self.setup.nodes {
            let Some((node, _)) = self.node(place) else {
                let what = format!("node {place} never came up");
                return Err((Invariant::FreshOnceHealed, what));
            };
            for key in &held {
                for needs in [READ, WRITE] {
                    let verdict = Arc::new(Mutex::new(None));
                    let (node, token, own) = (node.clone(), key.token.clone(), verdict.clone());
                    self.world.spawn(Some(place), async move {
                        let need = Need::from(Scope::from_static(needs));
                        let verdict = node.verify(&token, &need, Way::Known).await;
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
                    let own = &state.places[place];
                    let time = own.own_time.at(&own.hands, now);
                    let good = id.is_some_and(|id| {
                        let at = state.ledger.instant_for(id, time);
                        state.ledger.is_good(id, Some(needs), at)
                    });
                    if verdict.as_ref().map(Result::is_ok) != Some(good) {
                        let what = format!(
                            "node {place} says {verdict:?} of {id:?} for {needs}, good is {good}"
                        );
                        return Err((Invariant::FreshOnceHealed, what));
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that the store's audit trails end at the heads in the ledger.
    fn check_trails(&self) -> Result<(), (Invariant, String)> {
        let state = self.world.state();
        let failed = |what: String| (Invariant::TrailIntact, what);
        for (tenant, head) in state.ledger.heads() {
            let mut query = AuditQuery::tenant(tenant.clone());
            let mut entries = Vec::new();
            loop {
                let page = block_on(self.setup.ground.store.audit(&query));
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

/// A verdict, with the data to judge it by.
struct Answered<'a> {
    place: usize,
    life: u32,
    held: &'a Held,
    needs: Option<&'static str>,
    way: Way,
    called: Instant,
    tick: u64,
    verdict: Result<KeyId, VerifyError>,
}

impl Book {
    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }

    /// Returns the newest version of a row that the node itself made before `tick`.
    fn own(&self, place: usize, life: u32, row: &RowKey, tick: u64) -> Option<usize> {
        let own = self.own.get(&(place, life, row.clone()))?;
        let before = own.iter().filter(|(from, _)| *from < tick);
        before.map(|(_, version)| *version).max()
    }
}
