//! Measures key creation by one writer, and by sixteen concurrent writers.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use keyward::store::{KeyStore, PostgresStore};
use keyward::{Keyward, TenantId};
use tokio::runtime::Runtime;

use super::{Workload, connect, median, plain, timed};
use shared::maker::{CommitGenerator, admin, keyward, new_key, tenant};
use shared::table::{Goal, Table};
use support::postgres::TestSchema;

const WRITERS: usize = 16;
const TENANTS: usize = 64;

/// The measurements of a round.
struct Round {
    rate: f64,
    /// The times that single creates took, in seconds and in ascending order.
    times: Vec<f64>,
    failed: usize,
}

impl Round {
    fn of(whole: Duration, times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.into_iter().map(|time| time.as_secs_f64()).collect();
        times.sort_by(f64::total_cmp);
        Self {
            rate: times.len() as f64 / whole.as_secs_f64(),
            times,
            failed: 0,
        }
    }

    fn quantile(&self, percent: usize) -> f64 {
        self.times[(self.times.len() - 1) * percent / 100]
    }
}

/// The rounds of one kind of measurement.
#[derive(Default)]
struct Rounds(Vec<Round>);

impl Rounds {
    fn rate(&self) -> f64 {
        median(self.0.iter().map(|round| round.rate))
    }

    fn quantile(&self, percent: usize) -> f64 {
        median(self.0.iter().map(|round| round.quantile(percent)))
    }

    fn failed(&self) -> usize {
        self.0.iter().map(|round| round.failed).sum()
    }

    /// Divides this rate by the rate of `other` in each round, and returns the median of these ratios.
    fn against(&self, other: &Self) -> f64 {
        let pairs = self.0.iter().zip(&other.0);
        median(pairs.map(|(own, other)| own.rate / other.rate))
    }

    fn text(&self) -> String {
        let (rate, half, most) = (self.rate(), self.quantile(50), self.quantile(99));
        let (half, most) = (half * 1e3, most * 1e3);
        format!("{rate:.0}/s, p50 {half:.2} ms, p99 {most:.2} ms")
    }
}

/// Measures plain inserts of one row each, on one connection: the base cost of a durable statement.
async fn inserts(place: &TestSchema, count: usize) -> Round {
    let client = plain(place).await;
    let sql = "CREATE TABLE IF NOT EXISTS floor (id bytea PRIMARY KEY, body bytea NOT NULL)";
    client.batch_execute(sql).await.unwrap();
    let insert = "INSERT INTO floor VALUES (decode(md5(random()::text), 'hex'), $1)";
    let insert = client.prepare(insert).await.unwrap();
    let body = vec![7_u8; 300];
    let mut times = Vec::new();
    let (whole, ()) = timed(async {
        for _ in 0..count {
            let (time, inserted) = timed(client.execute(&insert, &[&body])).await;
            inserted.unwrap();
            times.push(time);
        }
    })
    .await;
    Round::of(whole, times)
}

/// A writer that commits only to its own tenants.
struct Writer {
    maker: CommitGenerator,
    tenants: Vec<TenantId>,
}

impl Writer {
    fn new(number: usize, tenants: usize) -> Self {
        let name = |own| tenant(&format!("writer-{number}-{own}"));
        let mut maker = CommitGenerator::new();
        maker.seed(number as u64);
        Self {
            maker,
            tenants: (0..tenants).map(name).collect(),
        }
    }

    async fn commit(&mut self, store: &PostgresStore, count: usize) -> Vec<Duration> {
        let mut times = Vec::new();
        for number in 0..count {
            let tenant = &self.tenants[number % self.tenants.len()];
            let commit = self.maker.fresh(tenant, 1);
            let (time, revision) = timed(store.commit(commit)).await;
            self.maker.record_commit(tenant, revision.unwrap());
            times.push(time);
        }
        times
    }
}

async fn commits(store: &PostgresStore, writers: &mut Vec<Writer>, count: usize) -> Round {
    let began = Instant::now();
    let own = writers.drain(..).map(|mut writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let times = writer.commit(&store, count).await;
            (writer, times)
        })
    });
    let own: Vec<_> = own.collect();
    let mut times = Vec::new();
    for one in join_all(own).await {
        let (writer, own) = one.unwrap();
        writers.push(writer);
        times.extend(own);
    }
    Round::of(began.elapsed(), times)
}

/// Measures writers that create keys with [`Keyward::create`], in all of a number of tenants.
async fn creates(nodes: &[Keyward], writers: usize, count: usize, tenants: usize) -> Round {
    let began = Instant::now();
    let own = (0..writers).map(|writer| {
        let keys = nodes[writer % nodes.len()].clone();
        tokio::spawn(async move {
            let (mut times, mut failed) = (Vec::new(), 0_usize);
            for number in 0..count {
                // Each writer steps through the tenants with its own stride, so that two writers sometimes
                // use the same tenant.
                let whose = (writer * 37 + number * (2 * writer + 1)) % tenants;
                let actor = admin(&format!("tenant-{whose}"));
                let (time, created) = timed(keys.create(&actor, new_key())).await;
                match created {
                    Ok(_) => times.push(time),
                    Err(_) => failed += 1,
                }
            }
            (times, failed)
        })
    });
    let own: Vec<_> = own.collect();
    let (mut times, mut failed) = (Vec::new(), 0);
    for one in join_all(own).await {
        let (own, lost) = one.unwrap();
        times.extend(own);
        failed += lost;
    }
    Round {
        failed,
        ..Round::of(began.elapsed(), times)
    }
}

/// Measures one writer and sixteen writers. They commit directly to the store, or create keys with
/// [`Keyward`].
pub(crate) fn create(
    runtime: &Runtime,
    place: &TestSchema,
    size: &Workload,
    with: &str,
    table: &mut Table,
) {
    eprintln!("create{with}");
    let store = connect(runtime, place);
    let nodes = [keyward(store.clone())];
    let mut one = vec![Writer::new(WRITERS, TENANTS)];
    let many = (0..WRITERS).map(|number| Writer::new(number, TENANTS / WRITERS));
    let mut many: Vec<_> = many.collect();
    let mut rounds: [Rounds; 5] = Default::default();
    // The first round is not counted: it creates the tenants and prepares the statements.
    for round in 0..=size.rounds {
        let taken = runtime.block_on(async {
            [
                inserts(place, size.alone).await,
                commits(&store, &mut one, size.alone).await,
                commits(&store, &mut many, size.each).await,
                creates(&nodes, 1, size.alone, TENANTS).await,
                creates(&nodes, WRITERS, size.each, TENANTS).await,
            ]
        });
        if round > 0 {
            let kept = rounds.iter_mut().zip(taken);
            kept.for_each(|(rounds, round)| rounds.0.push(round));
        }
    }
    let [floor, one, many, create, creates] = &rounds;
    let goal = Goal::AtLeast(if with.is_empty() { 4.0 } else { 8.0 });
    let pairs = [
        ("store.commit", one, many),
        ("Keyward::create", create, creates),
    ];
    for (what, one, many) in pairs {
        let line = format!("{what}, 16 writers over 64 tenants : one writer{with}");
        let note = format!("{} : {}", many.text(), one.text());
        table.add(line, many.against(one), goal, note);
    }
    for (what, one, many) in pairs {
        for (writers, rounds) in [("one writer", one), ("16 writers", many)] {
            let line = format!("{what}, {writers} : one client's plain INSERT{with}");
            let note = format!("{:.0}/s : {}", rounds.rate(), floor.text());
            table.add(line, rounds.against(floor), None, note);
        }
    }
}

/// Measures sixteen writers that create keys in the same tenant, over one node and over four. Only one commit
/// at a time can change a tenant.
pub(crate) fn hot(runtime: &Runtime, place: &TestSchema, size: &Workload, table: &mut Table) {
    eprintln!("hot: 16 writers, one tenant");
    let nodes: Vec<_> = (0..4).map(|_| keyward(connect(runtime, place))).collect();
    let mut rounds: [Rounds; 3] = Default::default();
    for round in 0..=size.rounds {
        let taken = runtime.block_on(async {
            [
                creates(&nodes[..1], 1, size.alone, 1).await,
                creates(&nodes[..1], WRITERS, size.each, 1).await,
                creates(&nodes, WRITERS, size.each, 1).await,
            ]
        });
        if round > 0 {
            let kept = rounds.iter_mut().zip(taken);
            kept.for_each(|(rounds, round)| rounds.0.push(round));
        }
    }
    let [one, node, nodes] = &rounds;
    for (what, rounds) in [("one node", node), ("four nodes", nodes)] {
        let line = format!("Keyward::create, 16 writers of {what} on one tenant : one writer");
        let note = format!("{} : {:.0}/s", rounds.text(), one.rate());
        table.add(line, rounds.against(one), None, note);
        let line = format!("failed of these, {what}");
        table.add(line, rounds.failed() as f64, Goal::AtMost(0.0), "");
    }
}
