//! A server that is killed or stopped under load. Afterwards, the store must have every commit that was
//! reported as done, and none that was reported as failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use keyward::node::FollowOptions;
use keyward::policy::Policy;
use keyward::store::{KeyQuery, KeyStore, StoreErrorKind};
use keyward::{CommandError, Denial, KeyId, Keyward, ManualClock, Need, Reason, VerifyError};

use crate::postgres::child::TASKS;
use crate::postgres::feed::page;
use support::postgres::{Server, TestSchema, on_runtime, open};
use support::process::{ChildProcess, SeededRandom, rounds};
use support::raw::{ALL, beginning};
use support::*;

const PROCESSES: usize = 2;

/// The line that this test adds after the last report of a child process.
const ENDED: &str = "Ended";

/// The lines that the child processes have reported so far, and the channel for further ones.
struct Load {
    lines: Receiver<String>,
    all: Vec<String>,
}

impl Load {
    fn next(&mut self) -> &str {
        let line = self.lines.recv().unwrap();
        assert_ne!(
            line, ENDED,
            "children work until the parent closes the pipe"
        );
        self.all.push(line);
        self.all.last().unwrap()
    }

    /// Waits until the child processes have reported `count` more successful commits.
    fn acknowledged(&mut self, count: usize) {
        for _ in 0..count {
            while !self.next().starts_with("Done") {}
        }
    }

    /// Waits until every child process has reported a failed commit.
    fn failed_in_each(&mut self) {
        let mut waiting: BTreeSet<_> = (0..PROCESSES).map(|me| me.to_string()).collect();
        while !waiting.is_empty() {
            let line = self.next();
            if line.starts_with("Unavailable") || line.starts_with("Indeterminate") {
                let me = line.split(' ').nth(1).unwrap().to_owned();
                waiting.remove(&me);
            }
        }
    }
}

/// Runs two child processes that commit continuously, and disturbs their server several times. Then checks
/// that their reports agree with the store.
fn disturbed(
    what: &str,
    settings: &str,
    cycles: usize,
    mut disturb: impl FnMut(&Server, &mut Load),
) {
    let server = Server::start(settings);
    let place = TestSchema::at(server.url());
    let start = beginning(&place.connect());
    let begin = |me: usize| {
        let env = [
            ("CHILD_NUMBER", me.to_string()),
            ("CHILD_SCHEMA", place.schema.clone()),
        ];
        ChildProcess::start("postgres:goes_on", &place.url, &env)
    };
    let mut parts: Vec<_> = (0..PROCESSES).map(begin).collect();
    let leashes: Vec<_> = parts
        .iter_mut()
        .map(|part| {
            part.expect("ready");
            part.go_on();
            part.take_stdin()
        })
        .collect();
    let (sender, lines) = channel();
    let mut load = Load {
        lines,
        all: Vec::new(),
    };
    let mut random = SeededRandom(0x6b65_7977_6172_6406);
    let reports = thread::scope(|scope| {
        for mut part in parts {
            let sender = sender.clone();
            scope.spawn(move || {
                while let Some(line) = part.next() {
                    // Sending fails only if the test has already failed and dropped the receiver.
                    drop(sender.send(line));
                }
                drop(sender.send(ENDED.to_owned()));
                part.finish();
            });
        }
        drop(sender);
        for _ in 0..cycles {
            load.acknowledged(100 + random.below(400));
            // Waits for a random time, so that the disturbance can hit a commit at any point.
            let while_they_work = Duration::from_millis(random.below(50) as u64);
            on_runtime(async move { tokio::time::sleep(while_they_work).await });
            disturb(&server, &mut load);
        }
        load.acknowledged(500);
        drop(leashes);
        load.all
            .extend(load.lines.iter().filter(|line| line != ENDED));
        load.all
    });
    compare(what, &place, start, &reports);
}

/// Checks that the reports of all child processes agree with the contents of the store.
fn compare(what: &str, place: &TestSchema, start: keyward::store::Cursor, reports: &[String]) {
    let store = place.connect();
    let mut commits: BTreeMap<&str, BTreeSet<u128>> = BTreeMap::new();
    let mut created: BTreeMap<&str, BTreeSet<KeyId>> = BTreeMap::new();
    let (mut found, mut open) = (0, BTreeSet::new());
    for line in reports {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["Created" | "Found", _, tenant, key] => {
                found += usize::from(words[0] == "Found");
                created
                    .entry(tenant)
                    .or_default()
                    .insert(key.parse().unwrap());
            }
            ["Open", _, tenant, _] => {
                open.insert(tenant);
            }
            [outcome, _, _, key] => {
                let keys = commits.entry(outcome).or_default();
                keys.insert(key.parse().unwrap());
            }
            _ => panic!("{line}"),
        }
    }
    // Waits until commits that are still in progress have ended and released their lock.
    place.until_free();
    let (kept, _) = page(&store, start, ALL.get());
    let kept: BTreeSet<_> = kept.into_iter().map(|(_, key)| key).collect();
    let with = |outcome| commits.get(outcome).cloned().unwrap_or_default();
    let [done, not_done, conflicts, unknown] =
        ["Done", "Unavailable", "Conflict", "Indeterminate"].map(with);
    let there = unknown.intersection(&kept).count();
    println!(
        "{what}: {} commits done, {} not, {} unknown, of which {there} are there; {} keys created, {found} of them found out",
        done.len(),
        not_done.len(),
        unknown.len(),
        created.values().map(BTreeSet::len).sum::<usize>()
    );
    let lost: Vec<_> = done.difference(&kept).collect();
    assert!(lost.is_empty(), "acknowledged but lost: {lost:?}");
    for failed in [not_done, conflicts] {
        let there: Vec<_> = failed.intersection(&kept).collect();
        assert!(
            there.is_empty(),
            "reported as not written, but in the store: {there:?}"
        );
    }
    let known: BTreeSet<_> = (created.values().flatten())
        .map(|key| key.to_u128())
        .chain(done.iter().chain(&unknown).copied())
        .collect();
    let strange = kept.difference(&known).count();
    assert!(
        strange <= open.len(),
        "{strange} commits are in the store, and no child reported them"
    );
    // Each writer repeated a creation until it knew the outcome, so every creation must have created exactly
    // one key.
    assert_eq!(created.len(), PROCESSES * TASKS);
    for (name, known) in created {
        let mut query = KeyQuery::tenant(tenant(name), at(START));
        query.limit = ALL;
        let page = wait(store.list(&query)).unwrap();
        let there: BTreeSet<_> = page.keys.iter().map(|key| key.id).collect();
        assert!(known.is_subset(&there), "{name}: created but lost");
        let more = there.len() - known.len();
        assert!(
            more <= usize::from(open.contains(name)),
            "{name}: {more} more than created"
        );
    }
}

#[test]
fn a_server_killed_under_load_loses_nothing_and_every_answer_is_true() {
    // With these settings, the server waits before each fsync. Most kills therefore hit a commit just before
    // it becomes durable.
    let slow = "fsync = on\ncommit_delay = 10000\ncommit_siblings = 0";
    disturbed("killed", slow, rounds(4, 40), |server, _| {
        server.kill();
        server.resume();
    });
}

#[test]
fn a_server_stopped_under_load_loses_nothing_and_every_answer_is_true() {
    let slow = "fsync = on\ncommit_delay = 10000\ncommit_siblings = 0";
    disturbed("stopped", slow, rounds(4, 40), |server, load| {
        let paused = server.pause();
        load.failed_in_each();
        drop(paused);
    });
}

fn service(place: &TestSchema, clock: &Arc<ManualClock>) -> Keyward {
    let short = Duration::from_millis(200);
    let options = place.options().request_timeout(short);
    let options = options.connection_timeout(short);
    // Connecting may time out on a busy machine, so it is repeated.
    let store = loop {
        if let Ok(store) = open(options.clone()) {
            break store;
        }
    };
    node(store, clock, Policy::new(capped(50)).unwrap())
}

#[test]
fn verifiers_refuse_while_the_server_is_stopped_past_the_bound_and_recover_after() {
    let server = Server::start("fsync = off");
    let place = TestSchema::at(server.url());
    let clock = Arc::new(ManualClock::at(at(START)));
    let (verifier, operator) = (service(&place, &clock), service(&place, &clock));
    let pace = Duration::from_millis(50);
    let follower = on_runtime({
        let keys = verifier.clone();
        let pace = FollowOptions::default().with_poll(pace).with_backoff(pace);
        async move { keys.follow(pace) }
    });
    let follower = follower.unwrap();
    let mut steps = follower.watch();
    let mut until = |what: &dyn Fn() -> bool| {
        while !what() {
            wait(steps.changed()).unwrap();
        }
    };
    let by = admin();
    let tried = |result: &dyn Fn() -> Result<KeyId, CommandError>| loop {
        match result() {
            // The store detects a lost connection only when a call on it fails, so this error is retried.
            Err(CommandError::Store(error)) if error.kind() == StoreErrorKind::Unavailable => {}
            result => break result,
        }
    };
    let make = |name: &str| loop {
        match wait(operator.create(&by, reader(name))) {
            Err(CommandError::Store(error)) if error.kind() == StoreErrorKind::Unavailable => {}
            result => break result.unwrap(),
        }
    };
    let (kept, lost) = (make("kept"), make("lost"));
    let verify = |secret: &keyward::Secret| verifier.verify(secret.expose(), &Need::any());
    until(&|| verify(&kept.secret).is_ok() && verify(&lost.secret).is_ok());

    let paused = server.pause();
    // A late answer cannot make the verifier fresh again: an answer counts from the time of its request,
    // which was sent before the pause.
    clock.advance(Duration::from_secs(60));
    let stale = |secret| matches!(verify(secret), Err(VerifyError::Stale { .. }));
    assert!(stale(&kept.secret) && stale(&lost.secret));
    until(&|| follower.status().failures > 1 || !stale(&kept.secret));
    assert!(stale(&kept.secret), "a failed sync confirms nothing");
    let revoke = || {
        let by = by.with_command_id(command("revoke"));
        wait(operator.revoke(&by, lost.id, Reason::Lost)).map(|_| lost.id)
    };
    let create = || {
        let by = by.with_command_id(command("create"));
        wait(operator.create(&by, reader("more"))).map(|made| made.id)
    };
    for result in [revoke(), create()] {
        let Err(CommandError::Store(error)) = &result else {
            panic!("{result:?}")
        };
        assert_eq!(
            error.kind(),
            StoreErrorKind::Unavailable,
            "no request can have been sent"
        );
    }
    drop(paused);

    until(&|| verify(&kept.secret).is_ok());
    verify(&lost.secret).unwrap();
    let listed = || {
        let query = KeyQuery::tenant(tenant("acme"), at(START));
        wait(place.connect().list(&query)).unwrap().keys
    };
    assert_eq!(listed().len(), 2, "commits reported as failed are absent");
    tried(&revoke).unwrap();
    let more = match tried(&create) {
        Ok(id) | Err(CommandError::Denied(Denial::AlreadyCreated { id })) => id,
        other => panic!("{other:?}"),
    };
    assert_eq!(listed().iter().filter(|key| key.id == more).count(), 1);
    assert_eq!(listed().len(), 3);
    until(&|| matches!(verify(&lost.secret), Err(VerifyError::Revoked { .. })));
    verify(&kept.secret).unwrap();
    wait(follower.stop());
}
