//! Measures the SQLite store as ratios to plain SQLite on the same disk. Both are measured in the same run,
//! so that the speed of the machine cancels out. Rounds are interleaved, and the table shows medians.
//!
//! `cargo bench --package keyward-benches --bench store -- [--quick] [--json] [--only
//! create,group,start,point]`
#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read the machine's clock to measure, not to decide"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use keyward::clocks::SystemClock;
use keyward::key::KeyRecord;
use keyward::node::Replica;
use keyward::store::{Commit, KeyQuery, KeyStore, LoadRequest, Revision, SqliteStore};
use keyward::{Clock, Keyward, TenantId, days};
use pollster::block_on;
use rusqlite::{Connection, params};

use shared::maker::{CommitGenerator, admin, keyward, new_key, principal, tenant};

const SCHEMA: &str = include_str!("../src/store/sqlite/schema.sql");

/// The tables of the store, without any index besides the primary keys.
const BARE: &str = "
CREATE TABLE commits (revision INTEGER PRIMARY KEY, tag BLOB, newest INTEGER, seal INTEGER);
CREATE TABLE tenants (tenant TEXT PRIMARY KEY, revision INTEGER, decided_at INTEGER,
  sequence INTEGER, hash BLOB, seal INTEGER) WITHOUT ROWID;
CREATE TABLE rows (place INTEGER PRIMARY KEY, kind INTEGER, tenant TEXT, name TEXT, id BLOB,
  class TEXT, ends INTEGER, legacy INTEGER, fingerprint TEXT, body BLOB, seal INTEGER);
CREATE TABLE audit (place INTEGER PRIMARY KEY, tenant TEXT, sequence INTEGER, command TEXT,
  key BLOB, body BLOB, seal INTEGER);";

/// The size of a benchmark run.
struct Workload {
    /// The number of keys in each file before single create commands are measured.
    filled: usize,
    rounds: usize,
    creates: usize,
    /// The number of keys that each thread creates in a round with concurrent threads.
    burst: usize,
    keys: usize,
    points: usize,
}

const FULL: Workload = Workload {
    filled: 20_000,
    rounds: 5,
    creates: 200,
    burst: 40,
    keys: 1_000_000,
    points: 2_000,
};

const QUICK: Workload = Workload {
    filled: 5_000,
    rounds: 3,
    creates: 100,
    burst: 15,
    keys: 100_000,
    points: 500,
};

/// The number of keys that one subject creates before the next subject runs: 20.
const BLOCK: usize = 20;

/// A row of the table.
struct TableRow {
    what: String,
    ratio: f64,
    goal: Option<Goal>,
    note: String,
}

#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {most}"),
            Self::AtLeast(least) => format!(">= {least}"),
        }
    }
}

#[derive(Default)]
struct Table(Vec<TableRow>);

impl Table {
    fn add(
        &mut self,
        what: &str,
        ratio: f64,
        goal: impl Into<Option<Goal>>,
        note: impl Into<String>,
    ) {
        let (what, goal, note) = (what.to_owned(), goal.into(), note.into());
        eprintln!("  {what}: {ratio:.2} ({note})");
        self.0.push(TableRow {
            what,
            ratio,
            goal,
            note,
        });
    }

    fn print(&self) {
        let (head, width) = ("measure", 58);
        println!("{head:<width$}  ratio    goal   met  in this run");
        for line in &self.0 {
            let goal = line.goal.map(Goal::text).unwrap_or_default();
            let met = line.goal.map(|goal| goal.holds(line.ratio));
            let met = met.map_or("", |met| if met { "yes" } else { "NO" });
            let TableRow {
                what, ratio, note, ..
            } = line;
            println!("{what:<width$} {ratio:>6.2}  {goal:>6}  {met:>4}  {note}");
        }
    }

    fn print_json(&self) {
        let line = |line: &TableRow| {
            serde_json::json!({
                "measure": line.what,
                "ratio": line.ratio,
                "goal": line.goal.map(Goal::text),
                "met": line.goal.map(|goal| goal.holds(line.ratio)),
                "note": line.note,
            })
        };
        let lines: Vec<_> = self.0.iter().map(line).collect();
        println!("{:#}", serde_json::Value::Array(lines));
    }
}

/// Plain SQLite on one thread, which performs only the writes of a commit.
struct PlainSqlite {
    conn: Connection,
    revision: i64,
}

impl PlainSqlite {
    fn create(path: &Path, schema: &str) -> Self {
        let conn = Connection::open(path).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.pragma_update(None, "synchronous", "FULL").unwrap();
        conn.set_prepared_statement_cache_capacity(64);
        conn.execute_batch(schema).unwrap();
        Self { conn, revision: 0 }
    }

    fn durable(&mut self, commit: &Commit) {
        self.conn
            .prepare_cached("BEGIN IMMEDIATE")
            .unwrap()
            .execute([])
            .unwrap();
        self.write(commit);
        self.conn
            .prepare_cached("COMMIT")
            .unwrap()
            .execute([])
            .unwrap();
    }

    fn write(&mut self, commit: &Commit) {
        self.revision += 1;
        let tenant = commit.tenant.as_str();
        let at = commit.decided_at.as_micros();
        self.run(
            "INSERT INTO commits VALUES (?1, ?2, ?3)",
            params![self.revision, commit.tag.0.to_be_bytes(), at],
        );
        for (place, record) in (self.revision << 20..).zip(&commit.effects.puts) {
            let (id, body) = (record.id.to_u128().to_be_bytes(), record.to_bytes());
            let ends = record.expires_at.map_or(i64::MAX, |end| end.as_micros());
            let fingerprint = record.fingerprint.to_string();
            self.run(
                "INSERT INTO rows VALUES (?1, 2, ?2, NULL, ?3, ?4, ?5, NULL, ?6, ?7, ?8)",
                params![
                    place,
                    tenant,
                    id,
                    record.class.as_str(),
                    ends,
                    fingerprint,
                    body,
                    at
                ],
            );
        }
        for (place, entry) in (self.revision << 20..).zip(&commit.effects.audit) {
            let key = entry.key.map(|key| key.to_u128().to_be_bytes());
            let sequence = entry.sequence.cast_signed();
            let (command, body) = (entry.command.as_str(), entry.to_bytes());
            self.run(
                "INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![place, tenant, sequence, command, key, body, at],
            );
            self.run(
                "INSERT OR REPLACE INTO tenants VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    tenant,
                    self.revision,
                    at,
                    sequence,
                    entry.hash.as_bytes(),
                    at
                ],
            );
        }
    }

    fn run(&self, sql: &str, with: impl rusqlite::Params) {
        self.conn
            .prepare_cached(sql)
            .unwrap()
            .execute(with)
            .unwrap();
    }
}

fn open(path: &Path) -> SqliteStore {
    block_on(SqliteStore::open(path)).unwrap()
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let done = work();
    (began.elapsed(), done)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn quantile(times: &[Duration], of: f64) -> f64 {
    let mut seconds: Vec<_> = times.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    let last = seconds.len() - 1;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a short list"
    )]
    let at = (last as f64 * of).round() as usize;
    seconds[at]
}

fn micros(seconds: f64) -> String {
    format!("{:.0} us", seconds * 1e6)
}

fn millis(seconds: f64) -> String {
    format!("{:.0} ms", seconds * 1e3)
}

/// Measures one thread that creates keys. Each key is on disk before the thread creates the next one.
fn create(size: &Workload, table: &mut Table) {
    eprintln!("create: one writer");
    let folder = tempfile::tempdir().unwrap();
    let mut maker = CommitGenerator::new();
    let store = open(&folder.path().join("keys.db"));
    let mut same = PlainSqlite::create(&folder.path().join("same.db"), SCHEMA);
    let mut bare = PlainSqlite::create(&folder.path().join("bare.db"), BARE);
    let name = |number: usize| tenant(&format!("filled-{number}"));
    maker.fill(&store, size.filled, name);
    let mut filler = CommitGenerator::new();
    for plain in [&mut same, &mut bare] {
        for number in 0..size.filled / 1000 {
            plain.durable(&filler.fresh(&name(number), 1000));
        }
        filler.start_new_epoch();
    }
    let keys = keyward(open(&folder.path().join("whole.db")));
    maker.start_new_epoch();
    CommitGenerator::new().fill(&open(&folder.path().join("whole.db")), size.filled, name);

    let mut rounds: [Vec<Vec<Duration>>; 4] = Default::default();
    // The first round is not counted: it lets the write-ahead logs grow to their final size.
    for round in 0..=size.rounds {
        let mut times: [Vec<Duration>; 4] = Default::default();
        for block in 0..size.creates / BLOCK {
            let whose = tenant(&format!("t-{round}-{block}"));
            let actor = admin(whose.as_str());
            // The order is random, because a subject may have to wait for disk work of the subject before it.
            let mut order = [0, 1, 2, 3];
            order.sort_by_cached_key(|_| maker.random());
            for subject in order {
                for _ in 0..BLOCK {
                    let (time, ()) = match subject {
                        0 | 1 => {
                            let plain = if subject == 0 { &mut same } else { &mut bare };
                            let commit = filler.fresh(&whose, 1);
                            filler
                                .record_commit(&whose, Revision(plain.revision.unsigned_abs() + 1));
                            timed(|| plain.durable(&commit))
                        }
                        2 => {
                            let commit = maker.fresh(&whose, 1);
                            let (time, revision) =
                                timed(|| block_on(store.commit(commit)).unwrap());
                            maker.record_commit(&whose, revision);
                            (time, ())
                        }
                        _ => timed(|| drop(block_on(keys.create(&actor, new_key())).unwrap())),
                    };
                    times[subject].push(time);
                }
            }
        }
        if round > 0 {
            for (all, own) in rounds.iter_mut().zip(times) {
                all.push(own);
            }
        }
    }
    let at_quantile = |subject: usize, of: f64| {
        median(
            rounds[subject]
                .iter()
                .map(|times| quantile(times, of))
                .collect(),
        )
    };
    let against = |subject: usize, floor: usize, of: f64| {
        let pairs = rounds[subject].iter().zip(&rounds[floor]);
        median(
            pairs
                .map(|(own, floor)| quantile(own, of) / quantile(floor, of))
                .collect(),
        )
    };
    for (subject, what) in [(2, "store.commit"), (3, "Keyward::create")] {
        for (of, name) in [(0.5, "p50"), (0.99, "p99")] {
            let note = format!(
                "{} : {}",
                micros(at_quantile(subject, of)),
                micros(at_quantile(0, of))
            );
            let goal = (of < 0.9).then_some(Goal::AtMost(1.3));
            let line = format!("{what}, {name} : SQLite, same tables");
            table.add(&line, against(subject, 0, of), goal, note);
        }
        let note = format!(
            "{} : {}",
            micros(at_quantile(subject, 0.5)),
            micros(at_quantile(1, 0.5))
        );
        let line = format!("{what}, p50 : SQLite, bare tables");
        table.add(&line, against(subject, 1, 0.5), None, note);
    }
}

/// Returns the number of keys that several threads together create per second. Each thread waits for its key
/// before it creates the next one.
fn rate(keys: &Keyward, threads: usize, each: usize, name: impl Fn(usize) -> String) -> f64 {
    let barrier = Barrier::new(threads + 1);
    let (time, ()) = std::thread::scope(|scope| {
        let began: Vec<_> = (0..threads)
            .map(|number| {
                let (actor, barrier) = (admin(&name(number)), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for _ in 0..each {
                        block_on(keys.create(&actor, new_key())).unwrap();
                    }
                })
            })
            .collect();
        barrier.wait();
        timed(|| began.into_iter().for_each(|one| one.join().unwrap()))
    });
    #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
    let creates = (threads * each) as f64;
    creates / time.as_secs_f64()
}

/// Measures sixteen threads that create keys concurrently.
fn group(size: &Workload, table: &mut Table) {
    eprintln!("group: 16 writers");
    let folder = tempfile::tempdir().unwrap();
    let keys = keyward(open(&folder.path().join("keys.db")));
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..size.rounds {
        let each = size.burst;
        rates[0].push(rate(&keys, 1, each * 4, |_| format!("one-{round}")));
        rates[1].push(rate(&keys, 16, each, |at| format!("own-{at}")));
        rates[2].push(rate(&keys, 16, each, |_| format!("same-{round}")));
    }
    for (of, what) in [(1, "16 tenants"), (2, "one tenant")] {
        let ratio = median(
            rates[of]
                .iter()
                .zip(&rates[0])
                .map(|(many, one)| many / one)
                .collect(),
        );
        let (many, one) = (median(rates[of].clone()), median(rates[0].clone()));
        let note = format!("{many:.0}/s : {one:.0}/s");
        let line = format!("16 concurrent creates, {what} : one writer");
        table.add(&line, ratio, Goal::AtLeast(4.0), note);
    }
}

/// Reads and decodes every record with plain SQLite, in file order.
fn plain_scan(path: &Path) -> usize {
    let conn = Connection::open(path).unwrap();
    let mut statement = conn
        .prepare("SELECT body FROM rows WHERE kind = 2 ORDER BY place")
        .unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut read = 0;
    while let Some(row) = rows.next().unwrap() {
        let body = row.get_ref(0).unwrap().as_blob().unwrap();
        drop(std::hint::black_box(KeyRecord::from_bytes(body).unwrap()));
        read += 1;
    }
    read
}

/// Reads all pages of a scan through the store, and discards them.
fn store_scan(store: &SqliteStore) -> usize {
    let limit = NonZeroUsize::new(4096).unwrap();
    let (mut after, mut read) = (None, 0);
    loop {
        let page = block_on(store.scan(after, limit)).unwrap();
        read += page.rows.len();
        after = page.next;
        if after.is_none() {
            return read;
        }
    }
}

fn start_up(store: &SqliteStore, size: &Workload, what: &str, table: &mut Table) {
    let (mut ratios, mut loads, mut scans) = (Vec::new(), Vec::new(), Vec::new());
    let (mut page_ratios, mut pages) = (Vec::new(), Vec::new());
    // The first round is not counted: it warms the cache.
    for round in 0..=3 {
        let (scan, read) = timed(|| plain_scan(store.path()));
        assert_eq!(read, size.keys);
        let replica = Arc::new(Replica::new(Arc::new(store.clone()), Arc::new(SystemClock)));
        let (load, ()) = timed(|| block_on(replica.sync()).unwrap());
        drop(replica);
        let (paged, read) = timed(|| store_scan(store));
        assert_eq!(read, size.keys);
        eprintln!("  {load:.2?}, {paged:.2?} : {scan:.2?}");
        if round > 0 {
            let (load, scan) = (load.as_secs_f64(), scan.as_secs_f64());
            let paged = paged.as_secs_f64();
            ratios.push(load / scan);
            page_ratios.push(paged / scan);
            loads.push(load);
            pages.push(paged);
            scans.push(scan);
        }
    }
    let note = format!(
        "{} : {}",
        millis(median(pages)),
        millis(median(scans.clone()))
    );
    let line = format!("scan of {} keys{what} : plain scan", size.keys);
    table.add(&line, median(page_ratios), None, note);
    let note = format!("{} : {}", millis(median(loads)), millis(median(scans)));
    let line = format!("start with {} keys{what} : plain scan", size.keys);
    table.add(&line, median(ratios), Goal::AtMost(2.0), note);
}

/// Measures the time to load a whole store into an index, first from a fresh file and then from a file with
/// many changes. If `points` is true, also measures single reads.
fn start(size: &Workload, table: &mut Table, points: bool) {
    eprintln!("start: filling");
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("keys.db"));
    let mut maker = CommitGenerator::new();
    let name = |number: usize| tenant(&format!("customer-{number}"));
    let tenants = (size.keys / 1000).min(1000);
    let (time, sample) = timed(|| maker.fill(&store, size.keys, |at| name(at % tenants)));
    eprintln!("  filled in {time:.1?}");
    start_up(&store, size, "", table);

    eprintln!("start: ageing");
    let mut of_tenant: HashMap<TenantId, Vec<KeyRecord>> = HashMap::new();
    for (tenant, record) in sample {
        of_tenant.entry(tenant).or_default().push(record);
    }
    // Each commit changes a few keys of one tenant.
    loop {
        of_tenant.retain(|_, records| !records.is_empty());
        if of_tenant.is_empty() {
            break;
        }
        for (tenant, records) in &mut of_tenant {
            let mut puts = records.split_off(records.len().saturating_sub(25));
            puts.iter_mut()
                .for_each(|record| record.updated.at = record.updated.at.saturating_add(days(1)));
            let commit = maker.commit(tenant, puts);
            let revision = block_on(store.commit(commit)).unwrap();
            maker.record_commit(tenant, revision);
        }
    }
    start_up(&store, size, ", a tenth changed since", table);
    if points {
        point(&store, size, &mut maker, table);
    }
}

/// Measures a large store: first a full scan and an integrity check, then reads of single rows.
fn point(store: &SqliteStore, size: &Workload, maker: &mut CommitGenerator, table: &mut Table) {
    eprintln!("point: integrity");
    let (scan, _) = timed(|| plain_scan(store.path()));
    let (check, report) = timed(|| block_on(store.check_integrity()).unwrap());
    assert!(report.is_sound(), "{:?}", report.faults.first());
    let (check, scan) = (check.as_secs_f64(), scan.as_secs_f64());
    let note = format!("{} : {}", millis(check), millis(scan));
    let line = format!("integrity check of {} keys : plain scan", size.keys);
    table.add(&line, check / scan, None, note);

    eprintln!("point: filling one tenant");
    let (large, small) = (tenant("large"), tenant("small"));
    maker.fill(store, size.keys, |_| large.clone());
    let few = maker.fresh(&small, 10);
    let mut ids: HashMap<_, Vec<_>> = HashMap::new();
    ids.insert(0, few.effects.puts.iter().map(|key| key.id).collect());
    block_on(store.commit(few)).unwrap();
    let many = KeyQuery::tenant(large.clone(), SystemClock.now())
        .with(|query| query.limit = NonZeroUsize::new(1000).unwrap());
    let many = block_on(store.list(&many)).unwrap().keys;
    ids.insert(1, many.iter().map(|key| key.id).collect());

    // Reads the head directly with a prepared statement, for comparison.
    let conn = Connection::open(store.path()).unwrap();
    let head = "SELECT revision, tag, newest, seal FROM commits ORDER BY revision DESC LIMIT 1";
    let mut statement = conn.prepare(head).unwrap();
    let at = block_on(async {
        let replica = Arc::new(Replica::new(Arc::new(store.clone()), Arc::new(SystemClock)));
        replica.sync().await.unwrap();
        replica.freshness().cursor.unwrap()
    });
    let limit = NonZeroUsize::new(4096).unwrap();
    let mut times: [Vec<Duration>; 4] = Default::default();
    for number in 0..size.points {
        for (whose, tenant) in [&small, &large].into_iter().enumerate() {
            let own = &ids[&whose];
            let mut select = LoadRequest::key(own[number % own.len()]);
            select.owners.push(principal(0));
            select.commands.push("revoke-1".parse().unwrap());
            let (time, view) = timed(|| block_on(store.load(tenant, &select)).unwrap());
            assert_eq!(view.records.len(), 1);
            times[whose].push(time);
        }
        let (time, page) = timed(|| block_on(store.changes(at, limit)).unwrap());
        assert!(page.changes.is_empty());
        times[2].push(time);
        let (time, _) = timed(|| statement.query_row([], |row| row.get::<_, i64>(0)).unwrap());
        times[3].push(time);
    }
    let [small, large, changes, head] = times.map(|times| quantile(&times, 0.5));
    let note = format!("{} : {}", micros(large), micros(small));
    let line = format!("load for a revoke, {} keys : 10 keys", size.keys);
    table.add(&line, large / small, None, note);
    let note = format!("{} : {}", micros(changes), micros(head));
    let line = "changes, when there are none : one ready SELECT";
    table.add(line, changes / head, None, note);
}

fn main() {
    let mut size = &FULL;
    let (mut json, mut only) = (false, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => size = &QUICK,
            "--json" => json = true,
            "--only" => only = arguments.next(),
            // `cargo bench` passes this argument to every benchmark.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only.contains(part));
    let mut table = Table::default();
    if wanted("create") {
        create(size, &mut table);
    }
    if wanted("group") {
        group(size, &mut table);
    }
    if wanted("start") || wanted("point") {
        start(size, &mut table, wanted("point"));
    }
    if json {
        table.print_json();
    } else {
        table.print();
    }
}
