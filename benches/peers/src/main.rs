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

use self::peers::{Peer, argon, plain, prefixed};
use self::plot::Series;
use shared::batch::Batch;
use shared::served::{BenchVerifier, need};
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
}

/// Returns the peers, each with `keys` keys, in the order of the table.
fn peers(keys: u64) -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(prefixed::Stack::new(keys)),
        Box::new(plain::Stack::new(keys)),
        Box::new(argon::Stack::new(keys)),
    ]
}

fn measure(keys: u64, rounds: usize) -> Vec<TableRow> {
    eprintln!("{keys} keys");
    let served = BenchVerifier::secret(keys);
    let peers = peers(keys);
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
    names
        .zip(&taken)
        .map(|(name, own)| TableRow {
            name,
            keys,
            nanos: cpu(own),
            to_floor: ratio(own, floor),
            to_keyward: ratio(own, &taken[0]),
        })
        .collect()
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
            })
        };
        let lines: Vec<_> = lines.iter().map(line).collect();
        println!("{:#}", serde_json::Value::Array(lines));
        return;
    }
    println!(
        "{:<42} {:>9} {:>12} {:>10} {:>10}",
        "valid key", "keys", "ns", ": floor", ": keyward"
    );
    for line in lines {
        let TableRow {
            name,
            keys,
            nanos,
            to_floor,
            to_keyward,
        } = line;
        println!("{name:<42} {keys:>9} {nanos:>12.0} {to_floor:>10.2} {to_keyward:>10.2}");
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
