//! Measures the start of a node, which loads the whole store into an index.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use keyward::store::{KeyStore, scan_by_pages};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio_postgres::Row;

use super::{Workload, connect, median, millis, plain, timed};
use shared::maker::{CommitGenerator, keyward, tenant};
use shared::table::{Goal, Table};
use support::postgres::TestSchema;

const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Reads the rows that a starting node reads, and discards them. Takes the same steps as a node with the same
/// driver: connects, opens a snapshot, and reads the head and the rows.
async fn stream(place: &TestSchema) -> usize {
    let client = plain(place).await;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    client.batch_execute(begin).await.unwrap();
    let schema = &place.schema;
    let head = format!("SELECT revision FROM {schema}.head");
    let head: i64 = client.query_one(&head, &[]).await.unwrap().get(0);
    assert!(head > 0);
    let sql = format!(
        "SELECT place, kind, tenant, name, id, ends, legacy, fingerprint, body, seal \
         FROM {schema}.rows WHERE kind <> 3"
    );
    let nothing: [&str; 0] = [];
    let rows = client.query_raw(&sql, nothing).await.unwrap();
    let mut rows = std::pin::pin!(rows);
    let (mut read, mut sum) = (0, 0);
    while let Some(row) = rows.try_next().await.unwrap() {
        read += 1;
        sum += touch(&row);
    }
    black_box(sum);
    read
}

/// Returns the CPU time of all threads of this process.
fn process_time() -> Duration {
    let at = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(at.tv_nsec).unwrap_or_default())
}

/// Reads every byte of a row, so that no part of the row is skipped.
fn touch(row: &Row) -> u64 {
    let bytes = |bytes: Option<&[u8]>| {
        bytes
            .unwrap_or_default()
            .iter()
            .map(|b| u64::from(*b))
            .sum()
    };
    let text = |text: Option<&str>| -> u64 { bytes(text.map(str::as_bytes)) };
    let number = |at: usize| {
        row.get::<_, Option<i64>>(at)
            .unwrap_or_default()
            .cast_unsigned()
            & 1
    };
    let small = |at: usize| u64::from(row.get::<_, Option<i16>>(at).is_some());
    let own: u64 = bytes(row.get(4)) + bytes(row.get(8));
    number(0)
        + small(1)
        + text(row.get(2))
        + text(row.get(3))
        + number(5)
        + small(6)
        + text(row.get(7))
        + own
        + number(9)
}

pub(crate) fn start(runtime: &Runtime, place: &TestSchema, size: &Workload, table: &mut Table) {
    eprintln!("start: filling");
    let store = connect(runtime, place);
    let mut maker = CommitGenerator::new();
    let tenants = (size.keys / 1000).min(1000);
    let name = |number: usize| tenant(&format!("customer-{}", number % tenants));
    let began = Instant::now();
    maker.fill(&store, size.keys, name);
    let time = began.elapsed();
    eprintln!("  filled in {time:.1?}");
    drop(store);
    runtime.block_on(async {
        let client = plain(place).await;
        let sql = format!("VACUUM ANALYZE {}.rows", place.schema);
        client.batch_execute(&sql).await.unwrap();
        client.batch_execute("CHECKPOINT").await.unwrap();
    });
    let mut taken: [Vec<f64>; 4] = Default::default();
    // The first round is not counted: it warms the server's cache.
    for round in 0..=size.starts {
        let raw_cpu = process_time();
        let (raw, read) = runtime.block_on(timed(stream(place)));
        let raw_cpu = process_time() - raw_cpu;
        assert_eq!(read, size.keys);
        let cpu = process_time();
        let began = Instant::now();
        let node = keyward(connect(runtime, place));
        runtime.block_on(node.sync()).unwrap();
        let own = began.elapsed();
        let cpu = process_time() - cpu;
        assert!(node.freshness().age.is_some(), "the node is up to date");
        drop(node);
        let store = connect(runtime, place);
        let mut read = 0;
        let mut count = |page: keyward::store::ScanPage| {
            read += page.rows.len();
            Ok(())
        };
        let all = store.scan_all(PAGE, &mut count);
        let (all, done) = runtime.block_on(timed(all));
        done.unwrap();
        let (paged, done) = runtime.block_on(timed(scan_by_pages(&store, PAGE, &mut count)));
        done.unwrap();
        assert_eq!(read, size.keys * 2);
        eprintln!(
            "  {own:.2?} ({cpu:.2?} of this process), rows alone {all:.2?}, by pages {paged:.2?} : {raw:.2?} ({raw_cpu:.2?})"
        );
        if round > 0 {
            for (taken, time) in taken.iter_mut().zip([raw, own, all, paged]) {
                taken.push(time.as_secs_f64());
            }
        }
    }
    let [raw, own, all, paged] = taken;
    let mut line = |what: &str, own: &[f64], goal| {
        let ratio = median(own.iter().zip(&raw).map(|(own, raw)| own / raw));
        let (own, raw) = (median(own.iter().copied()), median(raw.iter().copied()));
        let line = format!("{what} {} keys : the same rows streamed", size.keys);
        table.add(
            line,
            ratio,
            goal,
            format!("{} : {}", millis(own), millis(raw)),
        );
    };
    line("start with", &own, Some(Goal::AtMost(1.5)));
    line("scan_all of", &all, None);
    line("scan, page by page, of", &paged, None);
}
