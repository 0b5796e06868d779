//! Random changes in random order, with a reader that may crash at any point. Simple loops compare the events
//! with the audit trail and the records. Other tests show that each check detects a broken stream.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use keyward::audit::Action;
use keyward::command::{Command, DeleteKey, Expiry, Request};
use keyward::events::{Event, EventBatch, EventCursor, Events};
use keyward::key::{KeyRecord, KeyState};
use keyward::policy::Policy;
use keyward::store::{AuditQuery, AuditRow, KeyStore, MemoryStore};
use keyward::{
    Clock, KeyId, Keyward, ManualClock, Reason, RotateKey, Timestamp, UpdateKey, days, hours,
    profiles,
};
use keyward_conformance::Reached;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::events::bent::{Bend, Bent, When, records};
use crate::events::{WINDOWS, limit, notice, windows};
use support::*;

/// A command of a random scenario. A number names a key by its index among all keys.
#[derive(Clone, Debug)]
enum Ask {
    Create(Option<Duration>),
    CreateTwins(Duration),
    SetEnd(usize, Option<Duration>),
    Rename(usize),
    Revoke(usize),
    Disable(usize),
    Enable(usize),
    Rotate(usize, RotateKey),
    Finish(usize),
    Cancel(usize),
    Use(usize),
    Delete(usize),
    RemoveOwner,
}

/// The point at which the reader crashes, if any.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Crash {
    Nowhere,
    BeforeHandling,
    BeforeKeeping,
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Ask),
    Wait(Duration),
    /// Waits until a notice about a key is due, or until one microsecond before that.
    WaitForNotice(usize, usize, bool),
    SetBack(Duration),
    Read(usize, Crash, Option<(When, Ask)>),
}

fn asks() -> impl Strategy<Value = Ask> {
    let key = || 0_usize..16;
    let life = || {
        prop_oneof![
            (1_u64..200).prop_map(Duration::from_secs),
            (1_u32..200).prop_map(hours),
            (1_u32..12).prop_map(days),
        ]
    };
    let how = prop_oneof![
        Just(RotateKey::immediate()),
        (1_u32..100).prop_map(|n| RotateKey::grace(hours(n))),
        (1_u32..100).prop_map(|n| RotateKey::on_first_use(hours(n))),
    ];
    prop_oneof![
        6 => prop::option::weighted(0.9, life()).prop_map(Ask::Create),
        2 => life().prop_map(Ask::CreateTwins),
        4 => (key(), prop::option::weighted(0.9, life())).prop_map(|(key, life)| Ask::SetEnd(key, life)),
        1 => key().prop_map(Ask::Rename),
        2 => key().prop_map(Ask::Revoke),
        1 => key().prop_map(Ask::Disable),
        1 => key().prop_map(Ask::Enable),
        4 => (key(), how).prop_map(|(key, how)| Ask::Rotate(key, how)),
        1 => key().prop_map(Ask::Finish),
        2 => key().prop_map(Ask::Cancel),
        3 => key().prop_map(Ask::Use),
        1 => key().prop_map(Ask::Delete),
        1 => Just(Ask::RemoveOwner),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let crash = prop_oneof![
        4 => Just(Crash::Nowhere),
        1 => Just(Crash::BeforeHandling),
        1 => Just(Crash::BeforeKeeping),
    ];
    let when = prop_oneof![Just(When::Audit), Just(When::List)];
    let read = (
        1_usize..5,
        crash,
        prop::option::weighted(0.3, (when, asks())),
    );
    let wait = || {
        prop_oneof![
            (0_u64..3).prop_map(Duration::from_micros),
            (0_u32..48).prop_map(hours),
            (0_u32..10).prop_map(days),
        ]
    };
    let step = prop_oneof![
        8 => asks().prop_map(Step::Ask),
        2 => wait().prop_map(Step::Wait),
        3 => (0_usize..16, 0_usize..3, any::<bool>())
            .prop_map(|(key, window, before)| Step::WaitForNotice(key, window, before)),
        1 => wait().prop_map(Step::SetBack),
        8 => read.prop_map(|(limit, crash, meanwhile)| Step::Read(limit, crash, meanwhile)),
    ];
    prop::collection::vec(step, 1..50)
}

fn ask(keys: &Keyward, store: &MemoryStore, ask: Ask) {
    let all = records(store);
    let id = |n: usize| all.get(n % all.len().max(1)).map(|key| key.id);
    let key = |life: Option<Duration>| {
        let key = reader("some");
        life.map_or(key.clone(), |life| key.expires_in(life))
    };
    let by = &admin();
    // The result is ignored, because the command may be refused.
    match ask {
        Ask::Create(life) => drop(wait(keys.create(by, key(life)))),
        Ask::CreateTwins(life) => {
            let end = keys.now().saturating_add(life);
            for _ in 0..3 {
                drop(wait(keys.create(by, reader("twin").expires_at(end))));
            }
        }
        Ask::RemoveOwner => {
            drop(wait(keys.remove_owner(
                by,
                by.tenant(),
                by.principal().unwrap().clone(),
            )));
        }
        Ask::SetEnd(n, life) => {
            if let Some(id) = id(n) {
                let end = life.map_or(Expiry::Never, Expiry::In);
                drop(wait(keys.update(by, id, UpdateKey::new().expiry(end))));
            }
        }
        Ask::Rename(n) => {
            if let Some(id) = id(n) {
                drop(wait(keys.update(by, id, UpdateKey::new().name("renamed"))));
            }
        }
        Ask::Revoke(n) => drop(id(n).map(|id| wait(keys.revoke(by, id, Reason::Lost)))),
        Ask::Disable(n) => drop(id(n).map(|id| wait(keys.disable(by, id)))),
        Ask::Enable(n) => drop(id(n).map(|id| wait(keys.enable(by, id)))),
        Ask::Rotate(n, how) => drop(id(n).map(|id| wait(keys.rotate(by, id, how)))),
        Ask::Finish(n) => drop(id(n).map(|id| wait(keys.finish_rotation(by, id)))),
        Ask::Cancel(n) => drop(id(n).map(|id| wait(keys.cancel_rotation(by, id)))),
        Ask::Delete(n) => drop(id(n).map(|id| wait(keys.delete(by, id, DeleteKey::plain())))),
        Ask::Use(n) => {
            if let Some(key) = id(n) {
                let id = keys.manager().command_id().unwrap();
                let first_use = Command::NoteFirstUse { key };
                let request = Request::new(id, host(), by.tenant().clone(), first_use);
                drop(wait(keys.manager().execute(request)));
            }
        }
    }
}

type Notice = (KeyId, Timestamp, u64);

/// Returns the notice that is due for a key at `now`: the key has ended, or one of its windows has begun.
fn truth(record: &KeyRecord, now: Timestamp) -> Option<Notice> {
    let end = record.expires_at?;
    if matches!(record.state, KeyState::Revoked { .. }) {
        return None;
    }
    if end <= now {
        return Some((record.id, end, 0));
    }
    if let Some(succession) = &record.succession
        && succession.grace_from_first_use.is_none()
    {
        return None;
    }
    for window in WINDOWS {
        if end.as_micros() - window as i64 * 1_000_000 <= now.as_micros() {
            return Some((record.id, end, window));
        }
    }
    None
}

/// Returns the sort key of a notice: the instant it was due in microseconds, then its window and its key.
fn place((key, end, window): Notice) -> (i64, u64, KeyId) {
    (end.as_micros() - window as i64 * 1_000_000, window, key)
}

/// A simulated application that reads events, together with the events that it expects.
struct Host {
    keys: Keyward,
    clock: Arc<ManualClock>,
    /// The clock that the event stream reads. It may differ from the clock of the commands.
    reads_by: Arc<ManualClock>,
    bent: Arc<Bent>,
    events: Events,
    bend: Bend,
    cursor: EventCursor,
    /// The number of audit entries whose events were sent before the cursor was last saved.
    kept: usize,
    /// The sort key of the last notice that was sent before the cursor was last saved.
    swept: Option<(i64, u64, KeyId)>,
    handled: HashSet<Notice>,
    kept_notices: HashMap<Notice, usize>,
    /// The latest clock time of any read.
    latest: Timestamp,
    /// The latest clock time of a read while the clock was behind `latest`.
    set_back: Option<Timestamp>,
}

impl Host {
    fn new(bend: Bend) -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let policy = Policy::new(profiles::standard()).unwrap();
        let keys = node(store.clone(), &clock, policy);
        let bent = Arc::new(Bent::new(store, bend));
        let reads_by = Arc::new(ManualClock::at(at(START)));
        let events = Events::new(bent.clone(), reads_by.clone(), windows());
        Self {
            keys,
            clock,
            reads_by,
            bent,
            events,
            bend,
            cursor: EventCursor::BEGINNING,
            kept: 0,
            swept: None,
            handled: HashSet::new(),
            kept_notices: HashMap::new(),
            latest: at(START),
            set_back: None,
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn truths(&self) -> HashSet<Notice> {
        let now = self.now();
        let records = records(&self.bent.inner);
        records
            .iter()
            .filter_map(|record| truth(record, now))
            .collect()
    }

    fn trail(&self) -> Vec<AuditRow> {
        let query = AuditQuery::all().with(|query| query.limit = limit(100_000));
        wait(self.bent.inner.audit(&query)).unwrap().rows
    }

    fn play(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Ask(what) => ask(&self.keys, &self.bent.inner, what),
            Step::Wait(by) => self.clock.advance(by),
            Step::WaitForNotice(key, window, before) => {
                let all = records(&self.bent.inner);
                let key = all.get(key % all.len().max(1));
                if let Some(end) = key.and_then(|key| key.expires_at) {
                    let window = [0, WINDOWS[0], WINDOWS[1]][window];
                    let due = end.saturating_sub(Duration::from_secs(window));
                    let due = due.saturating_sub(Duration::from_micros(before.into()));
                    if due > self.clock.now() {
                        self.clock.advance(due.since(self.clock.now()));
                    }
                }
            }
            Step::SetBack(by) => {
                self.clock.set_wall(self.clock.now().saturating_sub(by));
            }
            Step::Read(limit, crash, meanwhile) => {
                self.read(limit, crash, meanwhile)?;
            }
        }
        Ok(())
    }

    /// Reads a batch of events. Returns whether more events follow.
    fn read(
        &mut self,
        most: usize,
        crash: Crash,
        meanwhile: Option<(When, Ask)>,
    ) -> Result<bool, String> {
        let before = self.truths();
        if self.now() < self.latest {
            self.set_back = self.set_back.max(Some(self.now()));
            self.swept = None;
        }
        self.latest = self.now().max(self.latest);
        let undisturbed = meanwhile.is_none();
        if let Some((when, what)) = meanwhile {
            let (keys, store) = (self.keys.clone(), self.bent.inner.clone());
            self.bent.meanwhile(when, move || ask(&keys, &store, what));
        }
        match self.bend {
            Bend::IsAhead => self.reads_by.set_wall(self.now().saturating_add(hours(1))),
            Bend::StaysAhead => self.reads_by.set_wall(self.latest),
            _ => self.reads_by.set_wall(self.clock.now()),
        }
        let batch = wait(self.events.next_batch(&self.cursor, limit(most)));
        let mut batch = batch.map_err(|error| error.to_string())?;
        self.bent.settle();
        match self.bend {
            Bend::NewestFirst => batch.events.reverse(),
            Bend::MovesOnUnseen => batch.cursor = wait(self.events.end()).unwrap(),
            _ => {}
        }
        let mut truths = self.truths();
        truths.extend(before);
        let swept = self.check(&batch, most, &truths)?;
        let sent = batch.events.iter().filter_map(notice);
        if crash != Crash::BeforeHandling {
            self.handled.extend(sent.clone());
        }
        if crash == Crash::Nowhere || self.bend == Bend::MovesOnFirst {
            self.kept += entries(&batch.events).count();
            self.swept = swept;
            for sent in sent {
                *self.kept_notices.entry(sent).or_default() += 1;
            }
            // Converts the cursor to text and back, because an application stores it as text.
            self.cursor = batch.cursor.to_string().parse().unwrap();
            if !batch.more && undisturbed {
                self.check_complete()?;
            }
        }
        Ok(batch.more)
    }

    /// Checks that entries continue after the last saved ones, and that notices are true and in order.
    fn check(
        &self,
        batch: &EventBatch,
        most: usize,
        truths: &HashSet<Notice>,
    ) -> Result<Option<(i64, u64, KeyId)>, String> {
        if batch.events.len() > 2 * most {
            return Err(format!("{} events, asked for {most}", batch.events.len()));
        }
        let trail = self.trail();
        let mut expected = trail.iter().skip(self.kept);
        for event in entries(&batch.events) {
            let row = expected.next().ok_or("an entry that is not there")?;
            let same = (event.at, event.key) == (row.entry.at, row.entry.key)
                && event.tenant.as_ref() == Some(&row.entry.tenant)
                && event.actor.as_ref() == Some(&row.entry.actor)
                && event.id == Event::of(row).id;
            if !same {
                return Err(format!("order: {event:?} stands where {row:?} should"));
            }
        }
        let mut swept = self.swept;
        let mut last_entry = None;
        let last = batch
            .events
            .iter()
            .rposition(|event| notice(event).is_none());
        for (n, event) in batch.events.iter().enumerate() {
            let Some(sent) = notice(event) else {
                last_entry = Some(event);
                continue;
            };
            if !truths.contains(&sent) {
                return Err(format!("untrue: {event:?}"));
            }
            let follows = last_entry.is_some_and(|entry| entry.key == event.key);
            let brought = follows && n > 0 && notice(&batch.events[n - 1]).is_none();
            if last.is_some_and(|last| n < last) && !brought {
                return Err(format!("order: {event:?} among entries"));
            }
            if !brought {
                if swept >= Some(place(sent)) {
                    return Err(format!("order: {event:?} comes after {swept:?}"));
                }
                swept = Some(place(sent));
            }
        }
        Ok(swept)
    }

    /// Checks at the end of the stream that every true notice was sent.
    fn check_complete(&self) -> Result<(), String> {
        if self.kept != self.trail().len() {
            return Err(format!("missed: entries after {}", self.kept));
        }
        for (key, end, window) in self.truths() {
            // After the clock was set back, an earlier notice may be missing: while the clock was ahead, the
            // notice of a narrower window replaced it.
            let (due, ..) = place((key, end, window));
            let behind = self.set_back.is_some_and(|to| due <= to.as_micros());
            if !self.handled.contains(&(key, end, window)) && (window == 0 || !behind) {
                return Err(format!("missed: {key} ends {end}, window {window}"));
            }
        }
        Ok(())
    }

    /// Checks that no notice was repeated for a key whose expiry was set only once.
    fn check_no_repetition(&self) -> Result<(), String> {
        let mut set = HashMap::<KeyId, usize>::new();
        for row in self.trail() {
            let sets = !matches!(
                row.entry.action,
                Action::KeyRevoked { .. } | Action::KeyDisabled | Action::KeyEnabled
            );
            if let Some(key) = row.entry.key.filter(|_| sets) {
                *set.entry(key).or_default() += 1;
            }
        }
        let once = |key: &KeyId| set.get(key) == Some(&1);
        for ((key, end, window), times) in &self.kept_notices {
            if *times > 1 && once(key) {
                return Err(format!("repeated: {key}, {end}, {window}: {times} times"));
            }
        }
        Ok(())
    }

    /// Reads to the end of the stream without crashing.
    fn drain(&mut self) -> Result<(), String> {
        for _ in 0..1000 {
            if !self.read(3, Crash::Nowhere, None)? {
                return Ok(());
            }
        }
        Err("missed: it never comes to an end".to_owned())
    }
}

fn entries(events: &[Event]) -> impl Iterator<Item = &Event> {
    events.iter().filter(|event| notice(event).is_none())
}

/// Runs the steps. Returns the number of notices that were sent.
fn run(bend: Bend, steps: &[Step]) -> Result<usize, String> {
    let mut host = Host::new(bend);
    let mut raced = false;
    for step in steps {
        host.play(step.clone())?;
        raced |= matches!(step, Step::Read(_, _, Some(_)));
    }
    host.drain()?;
    host.clock.advance(days(400));
    host.drain()?;
    if host.set_back.is_none() && !raced {
        host.check_no_repetition()?;
    }
    Ok(host.kept_notices.len())
}

/// The file where proptest saves failing cases.
const REGRESSIONS: &str = "it/events/model.proptest-regressions";

fn cases() -> u32 {
    let set = std::env::var("PROPTEST_CASES").ok();
    set.and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

#[test]
fn every_change_is_sent_in_order_with_every_true_notice() {
    holds(Bend::Straight);
}

#[test]
fn a_store_that_returns_short_pages_loses_no_event() {
    holds(Bend::GivesLess);
}

fn holds(bend: Bend) {
    use proptest::test_runner::FileFailurePersistence;

    let mut runner = TestRunner::new(Config {
        cases: cases(),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        max_shrink_iters: 2000,
        ..Config::default()
    });
    let sent = Reached::new("a sent notice");
    let held = runner.run(&steps(), |steps| {
        sent.note(run(bend, &steps).map_err(TestCaseError::fail)? > 0);
        Ok(())
    });
    held.unwrap_or_else(|error| panic!("{error}"));
}

/// Checks that a stream with the defect `bend` fails the property, with a message that starts with `with`.
/// The random seed is fixed.
fn caught(bend: Bend, with: &str) {
    let config = Config {
        cases: 2048,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let found = runner.run(&steps(), |steps| match run(bend, &steps) {
        Err(wrong) if wrong.starts_with(with) => Err(TestCaseError::fail(wrong)),
        _ => Ok(()),
    });
    assert!(found.is_err(), "{bend:?} was not caught");
}

#[test]
fn broken_streams_are_caught() {
    caught(Bend::MovesOnFirst, "missed");
    caught(Bend::MovesOnUnseen, "missed");
    caught(Bend::NewestFirst, "order");
    caught(Bend::SkipsTies, "missed");
    caught(Bend::LosesAKeyBetweenPages, "missed");
    caught(Bend::LosesAnEntryBetweenPages, "order");
    caught(Bend::NeverLooksBehind, "missed");
    caught(Bend::StaysAhead, "untrue");
    caught(Bend::ReportsOldState, "untrue");
    caught(Bend::IsAhead, "untrue");
    caught(Bend::LeavesTheLastInstantOut, "missed");
    caught(Bend::SweepsFirst, "missed");
}
