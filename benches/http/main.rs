//! Measures the cost of the HTTP layer: requests per second of a service with and without the layer.
//!
//! `wrk` generates the load and cycles through all keys. All routes run in one process with the same handler,
//! and their rounds alternate.
//!
//! The part `layer` measures the layer alone, on one thread and without a socket.
//!
//! `cargo bench --package keyward-benches --bench http -- [--quick] [--json] [--only layer,served]`
#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read the machine's clock to measure, not to decide"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]
#![allow(
    clippy::cast_precision_loss,
    reason = "counts stay far below 2^52, which f64 represents exactly"
)]

mod layer;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use keyward::policy::{Policy, Propagation};
use keyward::web::KeywardLayer;
use keyward::{Keyward, Need, days, profiles};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tower::layer::util::Identity;

use shared::Random;
use shared::clock::{median, nanos};
use shared::keys::{KeyKind, Keys, SCOPE};
use shared::store::{Feed, SyntheticStore};
use shared::table::{BenchOptions, Goal, Table};

/// The size of a benchmark run.
struct Workload {
    keys: u64,
    /// The number of rounds that are measured on each of the three routes.
    pairs: usize,
    /// Duration of a round, in seconds.
    seconds: u32,
    /// The number of rounds of the layer alone.
    rounds: usize,
}

const FULL: Workload = Workload {
    keys: 1_000_000,
    pairs: 60,
    seconds: 1,
    rounds: 41,
};

const QUICK: Workload = Workload {
    keys: 100_000,
    pairs: 10,
    seconds: 1,
    rounds: 15,
};

/// The number of keys that the load generator cycles through: 100,000, too many for their records to stay in
/// a CPU cache.
const PRESENTED: usize = 100_000;

/// Connections of the load generator, which has one thread: 32, enough to keep the service busy.
const CONNECTIONS: u32 = 32;

/// The goal: the layer costs at most 3 %.
const GOAL: Goal = Goal::AtMost(1.03);

const PLAIN: &str = "/plain/health";
const KEYED: &str = "/keyed/health";
/// The route behind a layer that does nothing. It shows the cost that a router adds for any layer.
const LAYERED: &str = "/layered/health";

fn main() {
    let asked = BenchOptions::read();
    let size = if asked.quick { &QUICK } else { &FULL };
    let mut table = Table::default();
    if asked.wants("served") {
        served(size, &mut table);
    }
    // Last, because it installs a subscriber for the whole process.
    if asked.wants("layer") {
        layer::measure(size.rounds, &mut table);
    }
    table.print(asked.json);
}

/// Measures a service under load.
fn served(size: &Workload, table: &mut Table) {
    let installed = Command::new("wrk").arg("-v").output();
    installed.expect("wrk is installed: apt-get install wrk");
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::new(KeyKind::Secret, size.keys);
    let presented = folder.path().join("keys");
    std::fs::write(&presented, draw(&keys, size.keys)).unwrap();

    let runtime = Runtime::new().unwrap();
    let address = runtime.block_on(serve(keys, size.keys));
    assert_eq!(status(address, PLAIN), 200);
    assert_eq!(status(address, LAYERED), 200);
    assert_eq!(
        status(address, KEYED),
        401,
        "the route is behind keyward's layer"
    );

    let load = |path| load(address, path, &presented, size.seconds);
    let mut rounds: [Vec<Round>; 3] = Default::default();
    let routes = [PLAIN, KEYED, LAYERED];
    // The first turn only warms up the service, and is not counted. The order of the routes rotates, so that
    // every route goes first equally often.
    for turn in 0..=size.pairs {
        for number in 0..routes.len() {
            let which = (turn + number) % routes.len();
            let round = load(routes[which]);
            if turn > 0 {
                rounds[which].push(round);
            }
        }
    }
    let [plain, keyed, layered] = rounds;
    let what = format!(
        "requests a second at {} keys, without : with the layer",
        size.keys
    );
    compare(
        table,
        &what,
        "/s",
        |round| round.rate,
        (&plain, &keyed),
        GOAL,
    );
    let what = "the server's processor time for a request, with : without";
    compare(
        table,
        what,
        "us",
        |round| round.cpu / 1e3,
        (&keyed, &plain),
        None,
    );
    let what = "the same, with a layer that does nothing : without";
    compare(
        table,
        what,
        "us",
        |round| round.cpu / 1e3,
        (&layered, &plain),
        None,
    );
}

/// Adds a line to the table: the median and the interquartile range of a ratio over all pairs of rounds.
fn compare(
    table: &mut Table,
    what: &str,
    unit: &str,
    of: fn(&Round) -> f64,
    (over, under): (&[Round], &[Round]),
    goal: impl Into<Option<Goal>>,
) {
    let both = over.iter().zip(under);
    let mut ratios: Vec<_> = both.map(|(over, under)| of(over) / of(under)).collect();
    ratios.sort_by(f64::total_cmp);
    let (low, high) = (ratios[ratios.len() / 4], ratios[ratios.len() * 3 / 4]);
    let each = |rounds: &[Round]| median(rounds.iter().map(of));
    let (over, under, pairs) = (each(over), each(under), ratios.len());
    let note =
        format!("{over:.1} : {under:.1} {unit}; half of {pairs} pairs in {low:.3}-{high:.3}");
    table.add(what, median(ratios), goal, note);
}

async fn health() -> &'static str {
    "up\n"
}

/// Returns a service's manager and verifier, with `count` keys in its index.
async fn keyward(made: Keys, count: u64) -> Keyward {
    let mut spec = profiles::standard();
    // Nothing syncs this service with its store, so the staleness bound must be longer than the run.
    spec.propagation = Propagation { bound: days(1) };
    let peppers = made.peppers();
    Keyward::builder(SyntheticStore::new(made, count, Feed::Grow), peppers)
        .policy(Policy::new(spec).unwrap())
        .build()
        .await
        .unwrap()
}

fn layer(keys: &Keyward) -> KeywardLayer {
    KeywardLayer::new(keys.clone()).require(Need::scope(SCOPE).unwrap())
}

/// Starts a service with `count` keys. Three routes have the same handler: one without a layer, one behind a
/// layer that does nothing, and one behind keyward's layer.
async fn serve(made: Keys, count: u64) -> SocketAddr {
    let keyed = layer(&keyward(made, count).await);
    let app: Router = Router::new()
        .route(PLAIN, get(health))
        .route(LAYERED, get(health).layer(Identity::new()))
        .route(KEYED, get(health).layer(keyed));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// Returns random tokens, one per line.
fn draw(keys: &Keys, among: u64) -> String {
    let mut random = Random(1);
    let one = |_| keys.token(random.below(among)) + "\n";
    (0..PRESENTED).map(one).collect()
}

/// Returns the response status of a request without a key.
fn status(address: SocketAddr, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The result of one round of load.
struct Round {
    /// Requests per second.
    rate: f64,
    /// CPU time of this process, which runs the server, per request in nanoseconds.
    cpu: f64,
}

/// Runs one round of load on a route. Panics unless every response is 200.
fn load(address: SocketAddr, path: &str, presented: &Path, seconds: u32) -> Round {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/http/load.lua");
    let mut wrk = Command::new("wrk");
    wrk.args([
        "-t1",
        &format!("-c{CONNECTIONS}"),
        &format!("-d{seconds}s"),
        "-s",
        script,
    ]);
    wrk.arg(format!("http://{address}{path}"));
    wrk.env("PRESENTED", presented);
    let before = process_time();
    let ran = wrk.output();
    let cpu = process_time() - before;
    let ran = ran.unwrap();
    let out = String::from_utf8(ran.stdout).unwrap();
    let result = out.lines().find_map(|line| line.strip_prefix("result "));
    let result: Vec<f64> = result
        .unwrap_or_else(|| panic!("{out}{}", String::from_utf8_lossy(&ran.stderr)))
        .split(' ')
        .map(|number| number.parse().unwrap())
        .collect();
    let [requests, micros, failed] = result[..] else {
        panic!("{out}");
    };
    assert!(
        requests > 0.0 && failed == 0.0,
        "{path}: {failed} of {requests} failed"
    );
    Round {
        rate: requests / micros * 1e6,
        cpu: nanos(cpu) / requests,
    }
}

/// Returns the CPU time of all threads of this process.
fn process_time() -> Duration {
    let at = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(at.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}
