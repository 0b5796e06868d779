//! Measurements with several threads: concurrent readers, and a reader beside a writer.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keyward::store::Row;

use super::Workload;
use shared::Random;
use shared::batch::Batch;
use shared::clock::{Elapsed, median, nanos, quantile, thread_time, timed};
use shared::keys::{KeyKind, Keys};
use shared::served::{BenchVerifier, need};
use shared::store::Feed;
use shared::table::{Goal, Table};

/// Returns the verifications per second of all threads by wall time, and the CPU time of one verification in
/// nanoseconds.
fn rate(served: &BenchVerifier, batches: &[Batch], laps: usize) -> (f64, f64) {
    let (need, barrier) = (need(), Barrier::new(batches.len()));
    let of_thread = |batch: &Batch| {
        served.run(batch, &need);
        barrier.wait();
        let (taken, granted) = timed(|| (0..laps).map(|_| served.run(batch, &need)).sum::<usize>());
        assert_eq!(granted, laps * batch.len());
        taken
    };
    let taken: Vec<Elapsed> = thread::scope(|scope| {
        let running: Vec<_> = batches
            .iter()
            .map(|batch| scope.spawn(|| of_thread(batch)))
            .collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let each = (laps * batches[0].len()) as f64;
    let rates = taken.iter().map(|taken| each * 1e9 / taken.wall).sum();
    let cpu = taken.iter().map(|taken| taken.cpu / each).sum::<f64>();
    (rates, cpu / taken.len() as f64)
}

/// Compares the rate of two reader threads with the rate of one.
pub(crate) fn threads(size: &Workload, table: &mut Table) {
    let keys = size.typical;
    eprintln!("threads: {keys} keys");
    let served = BenchVerifier::secret(keys);
    let mut random = Random(4);
    for hot in [false, true] {
        let among = if hot { 1 } else { keys };
        let (mut by_wall, mut by_cpu, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=size.rounds {
            let mut batch = || Batch::valid(&served.keys, among, size.batch, &mut random);
            let batches = [batch(), batch()];
            let (one, alone) = rate(&served, &batches[..1], 5);
            let (two, beside) = rate(&served, &batches, 5);
            if round > 0 {
                by_wall.push(two / one);
                by_cpu.push(2.0 * alone / beside);
                rates.push((one, two));
            }
        }
        let what = if hot { "one hot key" } else { "random keys" };
        let one = median(rates.iter().map(|rates| rates.0)) / 1e6;
        let two = median(rates.iter().map(|rates| rates.1)) / 1e6;
        let note = format!("{two:.2} : {one:.2} million/s");
        let line = format!("two threads, {what} : one thread, by the wall");
        table.add(line, median(by_wall), Goal::AtLeast(1.9), note);
        let line = format!("two threads, {what} : one thread");
        let note = "in time that the machine gave to the threads";
        table.add(line, median(by_cpu), Goal::AtLeast(1.9), note);
    }
}

/// Returns the time that reading the clock takes, which is part of the measured time of a single
/// verification.
fn clock_cost() -> u64 {
    let mut costs: Vec<_> = (0..10_000)
        .map(|_| Instant::now().elapsed().as_nanos() as u64)
        .collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

/// Returns the wall times of a batch's verifications in nanoseconds, minus `less`, in ascending order.
fn each(served: &BenchVerifier, batch: &Batch, less: u64) -> Vec<u64> {
    let need = need();
    let mut times: Vec<_> = (0..batch.len())
        .map(|at| {
            let began = Instant::now();
            let granted = served.verifier.verify(batch.at(at), &need).is_ok();
            let time = began.elapsed();
            assert!(granted);
            (time.as_nanos() as u64).saturating_sub(less)
        })
        .collect();
    times.sort_unstable();
    times
}

/// The writer's sync interval: 1 ms. With 10 changes per sync, the writer applies 10,000 changes a second.
const TICK: Duration = Duration::from_millis(1);
const CHANGES_A_TICK: u64 = 10;

/// Asserts that the verifier has applied the newest change of the feed.
fn assert_arrived(served: &BenchVerifier) {
    let newest = served.store.change(served.store.commit_more(0));
    let Row::Key(record) = newest.row else {
        unreachable!("the feed holds only keys")
    };
    let token = served.keys.token(Keys::number(record.id));
    let grant = served.verifier.verify(&token, &need()).unwrap();
    assert_eq!(
        grant.expires_at(),
        record.expires_at,
        "the last change arrived"
    );
}

/// Measures a reader while a writer applies 10,000 changes a second.
pub(crate) fn writer(size: &Workload, table: &mut Table) {
    let keys = size.typical;
    eprintln!("writer: {keys} keys");
    let served = BenchVerifier::secret(keys);
    let (busy, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (ticks, working) = (AtomicU64::new(0), AtomicU64::new(0));
    let write = || {
        let mut due = Instant::now();
        while !done.load(Ordering::Acquire) {
            if busy.load(Ordering::Acquire) {
                served.store.commit_more(CHANGES_A_TICK);
                let (taken, ()) = timed(|| served.sync());
                working.fetch_add(taken.cpu as u64, Ordering::Relaxed);
                ticks.fetch_add(1, Ordering::Relaxed);
            }
            // If a tick is late, the next one starts immediately, so that the average rate is exact.
            due += TICK;
            if let Some(wait) = due.checked_duration_since(Instant::now()) {
                thread::sleep(wait);
            }
        }
    };
    let (mut random, less) = (Random(5), clock_cost());
    let mut quantiles: [[Vec<f64>; 2]; 2] = Default::default();
    let (mut seconds, mut measured) = (0.0, 0);
    thread::scope(|scope| {
        scope.spawn(write);
        for window in 0..=2 * size.windows {
            let is_busy = window % 2 == 1;
            let batch = Batch::valid(&served.keys, keys, 200_000, &mut random);
            busy.store(is_busy, Ordering::Release);
            // Waits until the writer has seen the flag and the caches have settled.
            thread::sleep(10 * TICK);
            each(&served, &batch, less);
            let (began, before) = (Instant::now(), ticks.load(Ordering::Relaxed));
            let times = each(&served, &batch, less);
            if is_busy {
                seconds += began.elapsed().as_secs_f64();
                measured += ticks.load(Ordering::Relaxed) - before;
            }
            busy.store(false, Ordering::Release);
            for (all, of) in quantiles[usize::from(is_busy)].iter_mut().zip([0.5, 0.999]) {
                all.push(quantile(&times, of));
            }
        }
        done.store(true, Ordering::Release);
    });
    assert_arrived(&served);
    let [idle, beside] = quantiles.map(|all| all.map(median));
    let own = working.into_inner() / (ticks.into_inner() * CHANGES_A_TICK).max(1);
    let rate = (measured * CHANGES_A_TICK) as f64 / seconds;
    let note = format!(
        "{:.0} ns : {:.0} ns; {rate:.0} changes/s arrived, {own} ns of the writer for each",
        beside[0], idle[0]
    );
    let line = "p50 beside 10,000 changes/s : beside none, by the wall";
    table.add(line, beside[0] / idle[0], Goal::AtMost(1.15), note);
    let note = format!("{:.0} ns : {:.0} ns", beside[1], idle[1]);
    let line = "p99.9 beside 10,000 changes/s : beside none, by the wall";
    table.add(line, beside[1] / idle[1], None, note);
}

/// The longest verification while other work runs, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct LongestVerification {
    wall: f64,
    cpu: f64,
    count: u64,
}

fn longest_while(
    served: &BenchVerifier,
    batch: &Batch,
    goes_on: &AtomicBool,
) -> LongestVerification {
    let need = need();
    let mut longest = LongestVerification::default();
    let (mut wall, mut cpu) = (Instant::now(), thread_time());
    for at in (0..batch.len()).cycle() {
        if !goes_on.load(Ordering::Acquire) {
            break;
        }
        assert!(served.verifier.verify(batch.at(at), &need).is_ok());
        let (now, own) = (Instant::now(), thread_time());
        longest.wall = longest.wall.max(nanos(now - wall));
        longest.cpu = longest.cpu.max(nanos(own - cpu));
        longest.count += 1;
        (wall, cpu) = (now, own);
    }
    longest
}

/// The number of rows in a block of 128 KiB of the index's memory: about 1024.
const ROWS_OF_A_BLOCK: u64 = 1024;

/// Measures the longest pause of a reader while the index grows tenfold.
///
/// The baseline is a reader while the same rows are computed but put into no index. The baseline allocates as
/// much memory, in blocks of the same size. The machine affects both readers alike, so its effects cancel
/// out.
pub(crate) fn growth(size: &Workload, table: &mut Table) {
    let (from, to) = (size.growth / 10, size.growth);
    eprintln!("growth: {from} to {to} keys");
    let served = BenchVerifier::empty(Keys::new(KeyKind::Secret, to), from, Feed::Grow);
    served.sync();
    let batch = Batch::valid(&served.keys, from, 200_000, &mut Random(6));
    let beside = |write: &(dyn Fn() + Sync)| {
        let goes_on = AtomicBool::new(true);
        thread::scope(|scope| {
            let reading = scope.spawn(|| longest_while(&served, &batch, &goes_on));
            let (taken, ()) = timed(write);
            goes_on.store(false, Ordering::Release);
            (reading.join().unwrap(), taken)
        })
    };
    let upto = served.store.commit_more(to - from);
    let first = upto - (to - from) + 1;
    let (made, _) = beside(&|| {
        let mut kept = Vec::new();
        for at in first..=upto {
            drop(std::hint::black_box(served.store.change(at)));
            if at % ROWS_OF_A_BLOCK == 0 {
                kept.push(vec![1_u8; 128 * 1024]);
            }
        }
        drop(std::hint::black_box(kept));
    });
    let (grown, taken) = beside(&|| served.sync());
    let last = Batch::new([served.keys.token(to - 1)]);
    assert_eq!(served.run(&last, &need()), 1, "the last key arrived");
    let micros = |nanos: f64| nanos / 1e3;
    let note = format!(
        "{:.0} us : {:.0} us, {} verifications in {:.1} s",
        micros(grown.wall),
        micros(made.wall),
        grown.count,
        taken.wall / 1e9
    );
    let line = format!("longest pause, growing to {to} keys : making rows, by the wall");
    table.add(line, grown.wall / made.wall, None, note);
    let note = format!("{:.0} us : {:.0} us", micros(grown.cpu), micros(made.cpu));
    let line = format!("longest pause, growing to {to} keys : making rows");
    table.add(line, grown.cpu / made.cpu, None, note);
}
