//! Compares keyward with other ways to verify keys in Rust, for the same numbers of keys in one run.
//!
//! The benchmark prints a table of ratios. With `--plot`, it plots latency against the number of keys.
//!
//! `cargo run --release --package keyward-peers -- [--quick] [--json] [--plot verify.svg]`
#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read the machine's clock to measure, not to decide"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]

mod peers;
mod plot;

use std::sync::Arc;

use self::peers::{Account, Accounts, Peer, argon, cached, mapped, prefixed, signed};
use self::plot::Series;
use shared::batch::Batch;
use shared::served::{BenchVerifier, need};
use shared::table::Goal;
use shared::turns::{Subject, cpu, ratio, take_turns};

const SIZES: [u64; 3] = [1_000, 100_000, 1_000_000];
/// The number of verifications that one peer runs before the next peer's turn: 10,000. With short turns, a
/// disturbance of the machine affects all peers.
const BATCH: usize = 10_000;

/// A row of the table.
struct TableRow {
    name: String,
    keys: u64,
    nanos: f64,
    to_floor: f64,
    to_keyward: f64,
    /// keyward's goal against the fastest of the peers that people write by themselves.
    goal: Option<Goal>,
}

/// Returns the goal at this number of keys: the time of the fastest peer is at least so many times keyward's.
const fn goal(keys: u64) -> Goal {
    Goal::AtLeast(match keys {
        ..10_000 => 1.3,
        10_000..1_000_000 => 2.5,
        1_000_000.. => 3.0,
    })
}

/// Returns the peers with the keys of `accounts`, in the order of the table.
fn peers(accounts: &Accounts) -> Vec<Box<dyn Peer>> {
    type Entry = ([u8; 32], Arc<Account>);
    vec![
        Box::new(mapped::Stack::<mapped::LockedMap>::new(accounts)),
        Box::new(mapped::Stack::<dashmap::DashMap<String, Entry>>::new(
            accounts,
        )),
        Box::new(mapped::Stack::<papaya::HashMap<String, Entry>>::new(
            accounts,
        )),
        Box::new(cached::Stack::<quick_cache::sync::Cache<_, _>>::new(
            accounts,
        )),
        Box::new(cached::Stack::<moka::sync::Cache<_, _>>::new(accounts)),
        Box::new(prefixed::Stack::new(accounts)),
        Box::new(signed::Stack::hs256()),
        Box::new(signed::Stack::eddsa()),
        Box::new(argon::Stack::new(accounts)),
    ]
}

fn measure(keys: u64, rounds: usize) -> Vec<TableRow> {
    eprintln!("{keys} keys");
    let served = BenchVerifier::secret(keys);
    let peers = peers(&peers::accounts(keys));
    let need = need();
    let mut subjects = vec![Subject {
        name: "keyward".to_owned(),
        goal: None,
        batch: Box::new(|random| Batch::valid(&served.keys, keys, BATCH, random)),
        run: Box::new(|batch| assert_eq!(served.run(batch, &need), batch.len())),
    }];
    for peer in &peers {
        subjects.push(Subject {
            name: peer.name().to_owned(),
            goal: None,
            batch: Box::new(|random| peer.batch(random)),
            run: Box::new(|batch| assert_eq!(peers::run(peer.as_ref(), batch), batch.len())),
        });
    }
    let taken = take_turns(rounds, &mut subjects);
    let floor = taken.last().unwrap();
    let names = subjects.iter().map(|subject| subject.name.clone());
    let names = names.chain(["floor: two compressions".to_owned()]);
    let mut lines: Vec<_> = names
        .zip(&taken)
        .map(|(name, own)| TableRow {
            name,
            keys,
            nanos: cpu(own),
            to_floor: ratio(own, floor),
            to_keyward: ratio(own, &taken[0]),
            goal: None,
        })
        .collect();
    // The first line is keyward's.
    let own = lines[1..].iter_mut().zip(&peers);
    let own = own.filter(|(_, peer)| peer.is_own()).map(|(line, _)| line);
    let fastest = own.min_by(|a, b| a.to_keyward.total_cmp(&b.to_keyward));
    fastest.unwrap().goal = Some(goal(keys));
    lines
}

fn print(lines: &[TableRow], json: bool) {
    if json {
        let line = |line: &TableRow| {
            serde_json::json!({
                "name": line.name,
                "keys": line.keys,
                "nanos": line.nanos,
                "to_floor": line.to_floor,
                "to_keyward": line.to_keyward,
                "goal": line.goal.map(Goal::text),
                "met": line.goal.map(|goal| goal.holds(line.to_keyward)),
            })
        };
        let lines: Vec<_> = lines.iter().map(line).collect();
        println!("{:#}", serde_json::Value::Array(lines));
        return;
    }
    println!(
        "{:<42} {:>9} {:>12} {:>10} {:>10}  {:>6}   met",
        "valid key; the goal is for the fastest stack",
        "keys",
        "ns",
        ": floor",
        ": keyward",
        "goal"
    );
    for line in lines {
        let TableRow {
            name,
            keys,
            nanos,
            to_floor,
            to_keyward,
            goal,
        } = line;
        let met = goal.map(|goal| if goal.holds(*to_keyward) { "yes" } else { "NO" });
        let (goal, met) = (
            goal.map(Goal::text).unwrap_or_default(),
            met.unwrap_or_default(),
        );
        let row = format!(
            "{name:<42} {keys:>9} {nanos:>12.0} {to_floor:>10.2} {to_keyward:>10.2}  {goal:>6}   {met}"
        );
        println!("{}", row.trim_end());
    }
}

/// Groups the table rows by name into the curves of a plot.
fn series(lines: &[TableRow]) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for line in lines {
        let point = (line.keys, line.nanos);
        match all.iter_mut().find(|series| series.name == line.name) {
            Some(series) => series.points.push(point),
            None => all.push(Series {
                name: line.name.clone(),
                points: vec![point],
            }),
        }
    }
    all
}

fn main() {
    let (mut sizes, mut rounds, mut json, mut plot) = (&SIZES[..], 21, false, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (sizes, rounds) = (&SIZES[..2], 7),
            "--json" => json = true,
            "--plot" => plot = Some(arguments.next().unwrap()),
            other => panic!("unknown argument {other}"),
        }
    }
    let lines: Vec<_> = sizes
        .iter()
        .flat_map(|&keys| measure(keys, rounds))
        .collect();
    print(&lines, json);
    if let Some(path) = plot {
        std::fs::write(&path, plot::svg(&series(&lines))).unwrap();
        eprintln!("plot: {path}");
    }
}
