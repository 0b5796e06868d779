//! Measures how long other processes accept a revoked key: `cargo run --example processes`.
//!
//! Three processes verify keys from a file that a fourth process changes. First the example revokes a key,
//! and measures how long each process accepts it. Then the example revokes another key while one process is
//! stopped (SIGSTOP). When that process continues after the staleness bound, it must refuse the key
//! immediately. The run fails if any process accepts a key for longer than promised.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use keyward::entropy::{Entropy, SystemEntropy};
use keyward::node::{NodeConfirmation, NodeLabel};
use keyward::policy::{Policy, Propagation};
use keyward::store::SqliteStore;
use keyward::{
    Actor, CreateKey, Grant, KeyId, Keyward, Need, PepperFile, Reason, Receipt, Role, Secret,
    TenantId, VerifyError, profiles,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The staleness bound: 2 s, short so that the run is short.
const BOUND: Duration = Duration::from_secs(2);

/// The interval between two verifications of a process: 1 ms.
const EVERY: Duration = Duration::from_millis(1);

/// The shortest time for which a key is in use before it is revoked: 300 ms.
const IN_USE: Duration = Duration::from_millis(300);

/// The interval between two checks for confirmations: 5 ms.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// The longest time to wait for a report of a process: 30 s, far above the bound.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Fallible<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => runtime.block_on(story()),
        ["verifier", folder, label] => runtime.block_on(verify_for_parent(folder.as_ref(), label)),
        _ => Err("run it without arguments".into()),
    }
}

async fn story() -> Fallible<()> {
    println!("Three processes verify a key every millisecond, each as it follows one file.");
    println!("Not confirmed to be up to date for {BOUND:?}, each refuses.\n");
    let folder = tempfile::tempdir()?; // removed after the processes have ended
    let keys = open(folder.path(), "operator").await?;
    let acme: TenantId = "acme".try_into()?;
    let alice = Actor::new(acme, "alice".try_into()?, Role::ADMIN);
    let start = |number| Process::start(folder.path(), format!("verifier {number}"));
    let mut verifiers: Vec<_> = (1..=3).map(start).collect::<Fallible<_>>()?;

    let first = hand_out(&keys, &alice, &mut verifiers, 1).await?;
    println!("A key is revoked. From when the call had returned:");
    let first = Revoked::now(&keys, &alice, first).await?;
    let ask_soon = |left: Duration| sleep(left.min(ASK_EVERY));
    let confirmed = keys.wait_confirmed(&first.receipt, ask_soon).await;
    let complete = millis(first.returned, now());
    print_refusals(&mut verifiers, 1, &first).await?;
    let applied = confirmed.applied().count();
    println!("  all {applied} nodes, this process too, had said so after {complete:.1} ms\n");

    let second = hand_out(&keys, &alice, &mut verifiers, 2).await?;
    let last = verifiers.len() - 1;
    verifiers[last].stop()?;
    println!("{} is stopped, and another key revoked:", verifiers[last]);
    let second = Revoked::now(&keys, &alice, second).await?;
    print_refusals(&mut verifiers[..last], 2, &second).await?;
    let waiting = loop {
        let asked = keys.confirmations(&second.receipt).await?;
        let waiting: Vec<_> = asked
            .waiting()
            .map(|(node, left)| (name(node), left))
            .collect();
        if waiting.len() <= 1 {
            break waiting;
        }
        sleep(ASK_EVERY).await;
    };
    for (name, left) in waiting {
        let left = left.as_millis();
        println!("  {name} has not said so, and may accept for {left} ms more");
    }
    let confirmed = keys.wait_confirmed(&second.receipt, ask_soon).await;
    if !confirmed
        .lapsed()
        .any(|node| name(node) == verifiers[last].label)
    {
        return Err(format!("the stopped node has not lapsed: {confirmed:?}").into());
    }
    let complete = millis(second.returned, now());
    println!("  nobody can accept any more after {complete:.1} ms: it has lapsed\n");
    sleep(second.limit.saturating_sub(now())).await;

    println!("{} is continued. From then on:", verifiers[last]);
    let continued = now();
    verifiers[last].signal(Signal::CONT)?;
    let report = verifiers[last].until(2, Verdict::Revoked).await?;
    verifiers[last].check(2, second.limit)?;
    for report in verifiers[last].refusals_up_to(&report) {
        let after = millis(continued, report.since);
        println!("  {:?} from {after:.1} ms on", report.verdict);
    }
    println!();

    for verifier in &mut verifiers {
        verifier.end().await?;
        verifier.check(1, first.limit)?;
        verifier.check(2, second.limit)?;
    }
    let limit = second.receipt.bound().as_secs_f64() * 1e3;
    println!("No verification accepted that began more than {limit:.0} ms after a revocation.");
    Ok(())
}

/// Opens a node over the shared file. The parent process and its three children each open one node.
async fn open(folder: &Path, label: &str) -> Fallible<Keyward> {
    let store = SqliteStore::open(folder.join("keys.db")).await?;
    let peppers = PepperFile::open_or_create(folder.join("pepper"))?.ring();
    let policy = Policy::new(
        profiles::standard().with(|spec| spec.propagation = Propagation { bound: BOUND }),
    )?;
    Ok(Keyward::builder(store.clone(), peppers)
        .policy(policy)
        .registry(store)
        .node_label(NodeLabel::new(label)?)
        .build()
        .await?)
}

/// Creates the `number`th key, and returns when every process has accepted the key for a while.
async fn hand_out(
    keys: &Keyward,
    alice: &Actor,
    verifiers: &mut [Process],
    number: usize,
) -> Fallible<KeyId> {
    let created = keys.create(alice, CreateKey::new("export")).await?;
    for verifier in &mut *verifiers {
        verifier.present(&created.secret)?;
    }
    for verifier in &mut *verifiers {
        verifier.until(number, Verdict::Accepted).await?;
    }
    // Waits until no process has anything to write. A process that is stopped during a write would keep the
    // file locked, and block all other writers.
    keys.wait_confirmed(&created.receipt, sleep).await;
    // Pauses for a random time, so that the revocation does not always hit the same moment between two polls
    // of the processes.
    let mut drawn = [0];
    SystemEntropy.fill(&mut drawn)?;
    sleep(IN_USE + Duration::from_millis(drawn[0].into())).await;
    Ok(created.id)
}

/// A completed revocation.
struct Revoked {
    receipt: Receipt,
    returned: Duration,
    /// The time at which the staleness bound ends. A verification that starts later must refuse the key.
    limit: Duration,
}

impl Revoked {
    async fn now(keys: &Keyward, alice: &Actor, key: KeyId) -> Fallible<Self> {
        let receipt = keys.revoke(alice, key, Reason::Lost).await?;
        let returned = now();
        Ok(Self {
            receipt,
            returned,
            limit: returned + receipt.bound(),
        })
    }
}

async fn print_refusals(verifiers: &mut [Process], key: usize, revoked: &Revoked) -> Fallible<()> {
    println!("              last accepted  first refused  verifications");
    for verifier in verifiers {
        let report = verifier.until(key, Verdict::Revoked).await?;
        verifier.check(key, revoked.limit)?;
        let after = |at: Option<Duration>| at.map_or(f64::NAN, |at| millis(revoked.returned, at));
        let (accepted, refused) = (after(report.accepted), after(report.refused));
        let count = report.count;
        println!("  {verifier}  {accepted:+10.1} ms  {refused:+10.1} ms  {count:>13}");
    }
    Ok(())
}

fn name(node: &NodeConfirmation) -> String {
    node.label
        .as_ref()
        .map_or("a node", NodeLabel::as_str)
        .to_owned()
}

/// The outcome of a verification.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
enum Verdict {
    Accepted,
    Unknown,
    Stale,
    Revoked,
    Refused,
}

impl Verdict {
    const fn of(verified: &Result<Grant, VerifyError>) -> Self {
        match verified {
            Ok(_) => Self::Accepted,
            Err(VerifyError::Unknown) => Self::Unknown,
            Err(VerifyError::Stale { .. }) => Self::Stale,
            Err(VerifyError::Revoked { .. }) => Self::Revoked,
            Err(_) => Self::Refused,
        }
    }
}

/// The verdicts of one process on one key. The process sends its report when the verdict changes, and at the
/// end.
///
/// Every time in a report is the start of a verification, on the monotonic clock that all processes of the
/// machine share.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Report {
    /// The presented key's number, from 1.
    key: usize,
    /// The outcome of the last verification.
    verdict: Verdict,
    /// The start of the first verification in the current run of equal verdicts.
    since: Duration,
    /// The start of the last verification that accepted the key.
    accepted: Option<Duration>,
    /// The start of the first verification that refused the key after `accepted`.
    refused: Option<Duration>,
    /// The number of verifications.
    count: u64,
}

impl Report {
    /// Records the first verification of a key.
    fn first(key: usize, began: Duration, verdict: Verdict) -> Self {
        let mut report = Self {
            key,
            verdict,
            since: began,
            accepted: None,
            refused: None,
            count: 0,
        };
        report.see(began, verdict);
        report
    }

    /// Adds one verification. Returns `true` if its verdict differs from the one before.
    fn see(&mut self, began: Duration, verdict: Verdict) -> bool {
        self.count += 1;
        if verdict == Verdict::Accepted {
            self.accepted = Some(began);
            self.refused = None;
        } else {
            self.refused.get_or_insert(began);
        }
        let changed = self.verdict != verdict;
        if changed {
            self.verdict = verdict;
            self.since = began;
        }
        changed
    }

    fn send(&self) -> Fallible<()> {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(self)?)?;
        Ok(())
    }
}

/// Checks the promise: no verification that began after `limit` accepted the key.
fn check(reports: &[Report], key: usize, limit: Duration) -> Result<(), String> {
    let accepted = reports.iter().filter(|report| report.key == key);
    let latest = accepted.filter_map(|report| report.accepted).max();
    match latest {
        Some(at) if at > limit => Err(format!(
            "accepted {:.3} ms past the bound",
            millis(limit, at)
        )),
        _ => Ok(()),
    }
}

/// Runs a child process: verifies the last key that it read, again and again, until its input ends.
async fn verify_for_parent(folder: &Path, label: &str) -> Fallible<()> {
    // Ends this process with its parent. A stopped child would not notice that its input was closed.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let keys = open(folder, label).await?;
    let mut presented = lines(std::io::stdin());
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    while let Some(key) = presented.recv().await {
        number += 1;
        let verify = || {
            let began = now();
            (began, Verdict::of(&keys.verify(&key, &Need::any())))
        };
        let (began, verdict) = verify();
        let mut report = Report::first(number, began, verdict);
        report.send()?;
        while presented.is_empty() && !presented.is_closed() {
            tick.tick().await;
            let (began, verdict) = verify();
            if report.see(began, verdict) {
                report.send()?;
            }
        }
        report.send()?;
    }
    Ok(keys.close().await?)
}

/// A child process that verifies keys. Killed on drop if it is still running.
struct Process {
    label: String,
    child: Child,
    presents: Option<ChildStdin>,
    output: UnboundedReceiver<String>,
    /// All reports so far.
    reports: Vec<Report>,
}

impl Process {
    fn start(folder: &Path, label: String) -> Fallible<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("verifier")
            .arg(folder)
            .arg(&label)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = lines(child.stdout.take().ok_or("it has an output")?);
        Ok(Self {
            label,
            presents: child.stdin.take(),
            child,
            output,
            reports: Vec::new(),
        })
    }

    /// Sends a key to the process through a pipe. A command-line argument would be visible to every user of
    /// the machine.
    fn present(&mut self, key: &Secret) -> Fallible<()> {
        let presents = self.presents.as_mut().ok_or("it was ended")?;
        Ok(writeln!(presents, "{}", key.expose())?)
    }

    /// Waits for the next report; `None` once the process has ended.
    async fn next(&mut self) -> Fallible<Option<Report>> {
        let Ok(line) = timeout(PATIENCE, self.output.recv()).await else {
            return Err(format!("{self} says nothing, last {:?}", self.reports.last()).into());
        };
        let Some(line) = line else { return Ok(None) };
        let report = serde_json::from_str(&line)?;
        self.reports.push(report);
        Ok(Some(report))
    }

    /// Waits for a report with this verdict on the `key`th key.
    async fn until(&mut self, key: usize, verdict: Verdict) -> Fallible<Report> {
        loop {
            match self.next().await? {
                Some(report) if (report.key, report.verdict) == (key, verdict) => {
                    return Ok(report);
                }
                Some(_) => {}
                None => return Err(format!("{self} ended too early").into()),
            }
        }
    }

    /// Returns the reports of refusals since the process last accepted the key, up to `last`.
    fn refusals_up_to<'a>(&'a self, last: &'a Report) -> impl Iterator<Item = &'a Report> {
        let since = |report: &&Report| (report.key, report.refused) == (last.key, last.refused);
        self.reports.iter().filter(since)
    }

    fn check(&self, key: usize, limit: Duration) -> Result<(), String> {
        check(&self.reports, key, limit).map_err(|late| format!("{self} {late}"))
    }

    fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        rustix::process::kill_process(self.pid(), signal)
    }

    /// Stops the process with SIGSTOP, and returns once it is stopped.
    fn stop(&self) -> rustix::io::Result<()> {
        self.signal(Signal::STOP)?;
        rustix::process::waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED).map(drop)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Closes the process's input and waits until it exits successfully.
    async fn end(&mut self) -> Fallible<()> {
        self.presents = None;
        while self.next().await?.is_some() {}
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{self} ended with {status}").into())
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process is still running only after a failure, and may be stopped. Ignores errors, because the
        // run has failed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the lines of a pipe as they arrive.
fn lines(from: impl Read + Send + 'static) -> UnboundedReceiver<String> {
    let (send, receive) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

/// Reads a clock that all processes of a machine share.
fn now() -> Duration {
    let at = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(at.tv_nsec).unwrap_or_default())
}

/// Returns the milliseconds from `from` to `at`, negative if `at` is earlier.
fn millis(from: Duration, at: Duration) -> f64 {
    (at.as_secs_f64() - from.as_secs_f64()) * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn accepting_past_the_bound_fails_the_check_even_between_two_refusals() {
        let mut report = Report::first(1, ms(0), Verdict::Accepted);
        assert!(report.see(ms(10), Verdict::Stale));
        assert!(report.see(ms(20), Verdict::Accepted));
        let all = [report];
        assert!(check(&all, 1, ms(20)).is_ok());
        assert!(check(&all, 1, ms(19)).is_err());
        assert!(report.see(ms(30), Verdict::Revoked));
        assert!(check(&[report], 1, ms(19)).is_err());
        assert!(
            check(&[report], 2, ms(19)).is_ok(),
            "that is about another key"
        );
    }

    #[test]
    fn the_first_refusal_counts_from_the_last_acceptance() {
        let mut report = Report::first(1, ms(0), Verdict::Unknown);
        report.see(ms(1), Verdict::Accepted);
        assert!(!report.see(ms(2), Verdict::Accepted));
        report.see(ms(3), Verdict::Stale);
        report.see(ms(4), Verdict::Revoked);
        assert_eq!(
            (report.accepted, report.refused),
            (Some(ms(2)), Some(ms(3)))
        );
        assert_eq!((report.since, report.count), (ms(4), 5));
    }
}
