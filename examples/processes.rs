//! A revocation as other processes see it: `cargo run --example processes`.
//!
//! Three processes verify over one file that a fourth one changes. A key is revoked: until when did
//! each accept it? Another key is revoked while one of them is stopped (SIGSTOP); continued past the
//! bound it must refuse at once. The run fails if any of them accepted for longer than is promised.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use keyward::policy::{Policy, PolicySpec, Propagation};
use keyward::store::SqliteStore;
use keyward::{
    Actor, Entropy, FollowOptions, Grant, KeyId, Keyward, Need, NewKey, NodeConfirmation,
    NodeLabel, PepperFile, Reason, Receipt, Rejection, Role, Secret, SystemEntropy, TenantId,
    profiles,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The staleness bound: short, so that the run is.
const BOUND: Duration = Duration::from_secs(2);

/// How often each process verifies.
const EVERY: Duration = Duration::from_millis(1);

/// For how long a key is in use before it is revoked, at least.
const IN_USE: Duration = Duration::from_millis(300);

/// How often the nodes are asked whether they have a change.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// For how long a process may say nothing where it must.
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
    let folder = tempfile::tempdir()?; // goes when the processes have gone
    let keys = open(folder.path(), "operator").await?;
    let acme: TenantId = "acme".try_into()?;
    let alice = Actor::new(acme, "alice".try_into()?, Role::ADMIN);
    let start = |number| Process::start(folder.path(), format!("verifier {number}"));
    let mut verifiers: Vec<_> = (1..=3).map(start).collect::<Fallible<_>>()?;

    let first = hand_out(&keys, &alice, &mut verifiers, 1).await?;
    println!("A key is revoked. From when the call had returned:");
    let first = Revoked::now(&keys, &alice, first).await?;
    let ask_soon = |left: Duration| sleep(left.min(ASK_EVERY));
    let confirmed = keys.confirmed(&first.receipt, ask_soon).await;
    let complete = millis(first.returned, now());
    tell_of_refusals(&mut verifiers, 1, &first).await?;
    let applied = confirmed.applied().count();
    println!("  all {applied} nodes, this process too, had said so after {complete:.1} ms\n");

    let second = hand_out(&keys, &alice, &mut verifiers, 2).await?;
    let last = verifiers.len() - 1;
    verifiers[last].stop()?;
    println!("{} is stopped, and another key revoked:", verifiers[last]);
    let second = Revoked::now(&keys, &alice, second).await?;
    tell_of_refusals(&mut verifiers[..last], 2, &second).await?;
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
    let confirmed = keys.confirmed(&second.receipt, ask_soon).await;
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
    let told = verifiers[last].until(2, Verdict::Revoked).await?;
    verifiers[last].check(2, second.limit)?;
    for told in verifiers[last].refusals_up_to(&told) {
        let after = millis(continued, told.since);
        println!("  {:?} from {after:.1} ms on", told.verdict);
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

/// A node over the file: what this process and the three it starts have in common.
async fn open(folder: &Path, label: &str) -> Fallible<Keyward> {
    let store = SqliteStore::open(folder.join("keys.db")).await?;
    let peppers = PepperFile::open_or_create(folder.join("pepper"))?;
    let policy = Policy::new(PolicySpec {
        propagation: Propagation { bound: BOUND },
        ..profiles::standard()
    })?;
    Ok(Keyward::builder(store.clone(), peppers)
        .policy(policy)
        .registry(store)
        .node_label(NodeLabel::new(label)?)
        .build()
        .await?)
}

/// Creates a key, the `number`th, and returns once every process accepts it and has for a while.
async fn hand_out(
    keys: &Keyward,
    alice: &Actor,
    verifiers: &mut [Process],
    number: usize,
) -> Fallible<KeyId> {
    let created = keys.create(alice, NewKey::new("export")).await?;
    for verifier in &mut *verifiers {
        verifier.present(&created.secret)?;
    }
    for verifier in &mut *verifiers {
        verifier.until(number, Verdict::Accepted).await?;
    }
    // Nobody has anything to write after that. Stopped in the middle of a write, a process would keep
    // the file locked, and all others from changing it.
    keys.confirmed(&created.receipt, sleep).await;
    // Not in step with the processes, which look at the file at intervals since the key came.
    let mut drawn = [0];
    SystemEntropy.fill(&mut drawn)?;
    sleep(IN_USE + Duration::from_millis(drawn[0].into())).await;
    Ok(created.id)
}

/// A revocation that has returned.
struct Revoked {
    receipt: Receipt,
    returned: Duration,
    /// From here on, no verification accepts.
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

async fn tell_of_refusals(
    verifiers: &mut [Process],
    key: usize,
    revoked: &Revoked,
) -> Fallible<()> {
    println!("              last accepted  first refused  verifications");
    for verifier in verifiers {
        let told = verifier.until(key, Verdict::Revoked).await?;
        verifier.check(key, revoked.limit)?;
        let after = |at: Option<Duration>| at.map_or(f64::NAN, |at| millis(revoked.returned, at));
        let (accepted, refused) = (after(told.accepted), after(told.refused));
        let count = told.count;
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

/// What came of a verification.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
enum Verdict {
    Accepted,
    Unknown,
    Stale,
    Revoked,
    Refused,
}

impl Verdict {
    const fn of(verified: &Result<Grant, Rejection>) -> Self {
        match verified {
            Ok(_) => Self::Accepted,
            Err(Rejection::Unknown) => Self::Unknown,
            Err(Rejection::Stale { .. }) => Self::Stale,
            Err(Rejection::Revoked { .. }) => Self::Revoked,
            Err(_) => Self::Refused,
        }
    }
}

/// How a process has judged a key so far. It tells so when its verdict changes, and at the end.
///
/// Instants are when a verification began, by the machine's clock: all processes have the same.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Told {
    /// Which of the keys that were presented, from 1.
    key: usize,
    /// What came of the last verification.
    verdict: Verdict,
    /// When that was first so.
    since: Duration,
    /// When the key was last accepted.
    accepted: Option<Duration>,
    /// When it was first refused after that.
    refused: Option<Duration>,
    /// How many verifications there were.
    count: u64,
}

impl Told {
    /// The first verification of a key.
    fn first(key: usize, began: Duration, verdict: Verdict) -> Self {
        let mut told = Self {
            key,
            verdict,
            since: began,
            accepted: None,
            refused: None,
            count: 0,
        };
        told.see(began, verdict);
        told
    }

    /// Takes one more verification into account; whether its verdict is another than before.
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

    fn tell(&self) -> Fallible<()> {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(self)?)?;
        Ok(())
    }
}

/// The promise: no verification that began after `limit` accepted the key.
fn check(told: &[Told], key: usize, limit: Duration) -> Result<(), String> {
    let accepted = told.iter().filter(|told| told.key == key);
    let latest = accepted.filter_map(|told| told.accepted).max();
    match latest {
        Some(at) if at > limit => Err(format!(
            "accepted {:.3} ms past the bound",
            millis(limit, at)
        )),
        _ => Ok(()),
    }
}

/// The other process: verifies what it reads, until there is nothing more to read.
async fn verify_for_parent(folder: &Path, label: &str) -> Fallible<()> {
    // A parent that is killed ends nothing itself, and whoever is stopped never notices.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let keys = open(folder, label).await?;
    let follower = keys.follow(FollowOptions::default())?;
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
        let mut told = Told::first(number, began, verdict);
        told.tell()?;
        while presented.is_empty() && !presented.is_closed() {
            tick.tick().await;
            let (began, verdict) = verify();
            if told.see(began, verdict) {
                told.tell()?;
            }
        }
        told.tell()?;
    }
    follower.stop().await;
    Ok(keys.leave().await?)
}

/// A process that verifies, as its parent sees it. It ends when this is dropped, if not before.
struct Process {
    label: String,
    child: Child,
    presents: Option<ChildStdin>,
    tells: UnboundedReceiver<String>,
    /// All that it told.
    told: Vec<Told>,
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
        let tells = lines(child.stdout.take().ok_or("it has an output")?);
        Ok(Self {
            label,
            presents: child.stdin.take(),
            child,
            tells,
            told: Vec::new(),
        })
    }

    /// Not as an argument: these can be read by everybody on the machine.
    fn present(&mut self, key: &Secret) -> Fallible<()> {
        let presents = self.presents.as_mut().ok_or("it was ended")?;
        Ok(writeln!(presents, "{}", key.expose())?)
    }

    /// Waits for what it tells next; `None` once it ended.
    async fn next(&mut self) -> Fallible<Option<Told>> {
        let Ok(line) = timeout(PATIENCE, self.tells.recv()).await else {
            return Err(format!("{self} says nothing, last {:?}", self.told.last()).into());
        };
        let Some(line) = line else { return Ok(None) };
        let told = serde_json::from_str(&line)?;
        self.told.push(told);
        Ok(Some(told))
    }

    /// Waits until it tells that a key is judged so.
    async fn until(&mut self, key: usize, verdict: Verdict) -> Fallible<Told> {
        loop {
            match self.next().await? {
                Some(told) if (told.key, told.verdict) == (key, verdict) => return Ok(told),
                Some(_) => {}
                None => return Err(format!("{self} ended too early").into()),
            }
        }
    }

    /// What it told of refusals since it last accepted the key, up to `last`.
    fn refusals_up_to<'a>(&'a self, last: &'a Told) -> impl Iterator<Item = &'a Told> {
        let since = |told: &&Told| (told.key, told.refused) == (last.key, last.refused);
        self.told.iter().filter(since)
    }

    fn check(&self, key: usize, limit: Duration) -> Result<(), String> {
        check(&self.told, key, limit).map_err(|late| format!("{self} {late}"))
    }

    fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        rustix::process::kill_process(self.pid(), signal)
    }

    /// Stops it where it stands, and returns when it does nothing more.
    fn stop(&self) -> rustix::io::Result<()> {
        self.signal(Signal::STOP)?;
        rustix::process::waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED).map(drop)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Lets it come to its end, which must be a good one.
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
        // Only where something failed; it may be stopped. Nothing is done about what fails here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that come from a pipe, as they come.
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

/// A clock that all processes of a machine share.
fn now() -> Duration {
    let at = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(at.tv_nsec).unwrap_or_default())
}

/// How many milliseconds `at` is after `from`; negative before it.
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
    fn accepting_past_the_bound_breaks_the_promise_even_if_it_was_refused_before_and_after() {
        let mut told = Told::first(1, ms(0), Verdict::Accepted);
        assert!(told.see(ms(10), Verdict::Stale));
        assert!(told.see(ms(20), Verdict::Accepted));
        let all = [told];
        assert!(check(&all, 1, ms(20)).is_ok());
        assert!(check(&all, 1, ms(19)).is_err());
        assert!(told.see(ms(30), Verdict::Revoked));
        assert!(check(&[told], 1, ms(19)).is_err());
        assert!(
            check(&[told], 2, ms(19)).is_ok(),
            "that is about another key"
        );
    }

    #[test]
    fn the_first_of_several_refusals_is_the_first_since_the_key_was_accepted() {
        let mut told = Told::first(1, ms(0), Verdict::Unknown);
        told.see(ms(1), Verdict::Accepted);
        assert!(!told.see(ms(2), Verdict::Accepted));
        told.see(ms(3), Verdict::Stale);
        told.see(ms(4), Verdict::Revoked);
        assert_eq!((told.accepted, told.refused), (Some(ms(2)), Some(ms(3))));
        assert_eq!((told.since, told.count), (ms(4), 5));
    }
}
