//! Measures for how long other processes accept a revoked key. Three processes verify continuously, and a
//! fourth revokes while the server or a verifier is killed or stopped.
//!
//! The tests check the guarantee: no verification that begins after the bound has passed accepts the key.
//! `KEYWARD_LONG=1` repeats the measurement many times, and prints the figures for docs/propagation.md.

use std::time::Duration;

use keyward::node::FollowOptions;
use keyward::policy::{Policy, Propagation};
use keyward::store::{KeyStore, PostgresStore};
use keyward::{CommandError, Keyward, Need, Reason, VerifyError, profiles};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use crate::postgres::child::{number, options, text};
use support::postgres::{Server, TestSchema, on_runtime, open, pool};
use support::process::{ChildProcess, SeededRandom, report, rounds};
use support::*;

const VERIFIERS: usize = 3;

/// The way in which a verifying process gets notice of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hears {
    Notified,
    Polling,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Disturbed {
    Nothing,
    ServerKilled,
    ServerStopped,
    VerifierStopped,
}

/// Returns the time since the machine started, including suspended time. All processes of the machine read
/// the same clock.
fn now() -> Duration {
    let at = clock_gettime(ClockId::Boottime);
    Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap())
}

fn service(store: impl KeyStore, bound: Duration) -> Keyward {
    let policy =
        Policy::new(profiles::standard().with(|spec| spec.propagation = Propagation { bound }));
    let builder = Keyward::builder(store, peppers()).policy(policy.unwrap());
    wait(builder.build()).unwrap()
}

/// Verifies the key that the parent has sent last, once per millisecond. Reports when the key is first
/// accepted, and when it is first refused as revoked. When the parent sends the next key, reports the time of
/// the last acceptance.
pub fn verifies() {
    let bound = Duration::from_millis(number("CHILD_BOUND") as u64);
    let options = match text("CHILD_HEARS").as_str() {
        "Polling" => PostgresStore::from_pool(pool(&text("CHILD_PATH"), 4)),
        _ => options(),
    };
    let options = options.schema(text("CHILD_SCHEMA"));
    let store = open(options.connection_timeout(bound).request_timeout(bound)).unwrap();
    let keys = service(store, bound);
    let follower = on_runtime({
        let keys = keys.clone();
        async move { keys.follow(FollowOptions::default()) }
    });
    let _follower = follower.unwrap();
    let (present, presented) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            present.send(line.unwrap()).unwrap();
        }
    });
    report("ready");
    let Ok(mut key) = presented.recv() else {
        return;
    };
    loop {
        let (mut accepted, mut revoked, mut count) = (None, false, 0_u64);
        let next = loop {
            let began = now();
            count += 1;
            match keys.verify(&key, &Need::any()) {
                Ok(_) => {
                    if accepted.is_none() {
                        report("accepted");
                    }
                    accepted = Some(began);
                }
                Err(VerifyError::Revoked { .. }) if !revoked => {
                    revoked = true;
                    report(format_args!("revoked {count}"));
                }
                Err(_) => {}
            }
            match presented.recv_timeout(Duration::from_millis(1)) {
                Ok(key) => break Some(key),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(_) => break None,
            }
        };
        report(format_args!("last {}", accepted.unwrap().as_nanos()));
        let Some(next) = next else { return };
        key = next;
    }
}

/// A measured revocation: the time at which it returned, and the time at which each verifier last accepted
/// the key.
struct Revocation {
    disturbed: Disturbed,
    returned: Duration,
    bound: Duration,
    accepted: Vec<Duration>,
}

/// Waits in real time, because these tests measure real time.
fn pause(pause: Duration) {
    on_runtime(async move { tokio::time::sleep(pause).await });
}

/// Reads the reports of a child process until one starts with `word`. Returns the rest of that report.
#[track_caller]
fn until(part: &mut ChildProcess, word: &str) -> String {
    loop {
        let line = part
            .next()
            .expect("a verifier reports until its pipe is closed");
        if let Some(rest) = line.strip_prefix(word) {
            return rest.to_owned();
        }
    }
}

fn stopped(part: &ChildProcess, signal: Signal) {
    kill_process(
        Pid::from_raw(part.id().try_into().unwrap()).unwrap(),
        signal,
    )
    .unwrap();
}

/// Revokes one key after another, and causes the disturbances in `plan`. Returns the measured revocations.
fn revocations(hears: Hears, bound: Duration, plan: &[Disturbed]) -> Vec<Revocation> {
    let server = Server::start("fsync = off");
    let place = TestSchema::at(server.url());
    let options = place.options().request_timeout(bound);
    let keys = service(open(options.connection_timeout(bound)).unwrap(), bound);
    let env = [
        ("CHILD_SCHEMA", place.schema.clone()),
        ("CHILD_HEARS", format!("{hears:?}")),
        ("CHILD_BOUND", bound.as_millis().to_string()),
    ];
    let start = |_| ChildProcess::start("postgres:verifies", &place.url, &env);
    let mut parts: Vec<_> = (0..VERIFIERS).map(start).collect();
    parts.iter_mut().for_each(|part| part.expect("ready"));
    let mut random = SeededRandom(0x6b65_7977_6172_6407);
    let mut measured: Vec<Revocation> = Vec::new();
    let by = admin();
    for disturbed in plan {
        // After a disturbance, the first attempts may fail, because the store detects a lost connection only
        // when a call on it fails.
        let made = loop {
            match wait(keys.create(&by, reader("key"))) {
                Ok(made) => break made,
                Err(CommandError::Store(_)) => pause(Duration::from_millis(10)),
                Err(other) => panic!("{other:?}"),
            }
        };
        for (number, part) in parts.iter_mut().enumerate() {
            part.send_line(made.secret.expose());
            if let Some(before) = measured.last_mut() {
                let nanos = until(part, "last ").parse().unwrap();
                before.accepted.push(Duration::from_nanos(nanos));
                assert_eq!(before.accepted.len(), number + 1);
            }
        }
        parts
            .iter_mut()
            .for_each(|part| drop(until(part, "accepted")));
        // Waits for a random time, so that the revocation can come at any time between two polls of a
        // verifier.
        pause(Duration::from_millis(random.below(300) as u64));
        let longer = bound.mul_f64(1.5);
        let revoke = || {
            let by = by.with_command_id(command(&made.id.to_string()));
            // Repeats the revocation until it succeeds, as an application would.
            loop {
                match wait(keys.revoke(&by, made.id, Reason::Lost)) {
                    Ok(receipt) => return (now(), receipt.bound()),
                    Err(CommandError::Store(_)) => pause(Duration::from_millis(10)),
                    Err(other) => panic!("{other:?}"),
                }
            }
        };
        let (returned, limit) = match disturbed {
            Disturbed::Nothing => revoke(),
            Disturbed::ServerKilled => {
                let revoked = revoke();
                server.kill();
                pause(bound + Duration::from_millis(random.below(500) as u64));
                server.resume();
                revoked
            }
            Disturbed::ServerStopped => {
                let revoked = revoke();
                let paused = server.pause();
                pause(longer);
                drop(paused);
                revoked
            }
            Disturbed::VerifierStopped => {
                let which = random.below(VERIFIERS);
                stopped(&parts[which], Signal::STOP);
                let revoked = revoke();
                pause(longer);
                stopped(&parts[which], Signal::CONT);
                revoked
            }
        };
        parts
            .iter_mut()
            .for_each(|part| drop(until(part, "revoked")));
        measured.push(Revocation {
            disturbed: *disturbed,
            returned,
            bound: limit,
            accepted: Vec::new(),
        });
    }
    let last = measured.last_mut().unwrap();
    for part in parts {
        let rest = part.finish();
        let nanos = rest.iter().find_map(|line| line.strip_prefix("last "));
        let nanos = nanos.unwrap().parse().unwrap();
        last.accepted.push(Duration::from_nanos(nanos));
    }
    measured
}

/// Prints for each kind of disturbance how long after the revocation returned the key was last accepted.
fn print(hears: Hears, measured: &[Revocation]) {
    let kinds = [
        Disturbed::Nothing,
        Disturbed::ServerKilled,
        Disturbed::ServerStopped,
        Disturbed::VerifierStopped,
    ];
    for kind in kinds {
        let of_kind = measured.iter().filter(|one| one.disturbed == kind);
        let mut after: Vec<f64> = of_kind
            .flat_map(|one| {
                let returned = one.returned.as_secs_f64();
                let after = one.accepted.iter();
                after.map(move |at| (at.as_secs_f64() - returned) * 1e3)
            })
            .collect();
        after.sort_unstable_by(f64::total_cmp);
        let Some(max) = after.last() else { continue };
        let share = |share: f64| after[((after.len() - 1) as f64 * share).round() as usize];
        println!(
            "{hears:?}, {kind:?}: {} verifiers' last acceptances, ms after the revocation returned: \
             p50 {:.1}, p99 {:.1}, max {max:.1}",
            after.len(),
            share(0.5),
            share(0.99),
        );
    }
}

fn no_revoked_key_is_accepted_past_the_bound(hears: Hears) {
    let faults = [
        Disturbed::ServerKilled,
        Disturbed::ServerStopped,
        Disturbed::VerifierStopped,
    ];
    let calm = vec![Disturbed::Nothing; rounds(2, 200)];
    let disturbed = std::iter::repeat_n(faults, rounds(1, 15)).flatten();
    let plan: Vec<_> = calm.into_iter().chain(disturbed).collect();
    let bound = Duration::from_millis(rounds(1000, 2000) as u64);
    let measured = revocations(hears, bound, &plan);
    print(hears, &measured);
    assert_eq!(measured.len(), plan.len());
    for one in measured {
        assert_eq!(one.accepted.len(), VERIFIERS);
        for accepted in one.accepted {
            let late = accepted.saturating_sub(one.returned + one.bound);
            assert_eq!(late, Duration::ZERO, "{:?}: past the bound", one.disturbed);
        }
    }
}

#[test]
fn a_notified_verifier_accepts_no_revoked_key_past_the_bound() {
    no_revoked_key_is_accepted_past_the_bound(Hears::Notified);
}

#[test]
fn a_polling_verifier_accepts_no_revoked_key_past_the_bound() {
    no_revoked_key_is_accepted_past_the_bound(Hears::Polling);
}
