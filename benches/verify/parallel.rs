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
        table.add(line, median(by_wall), Goal::AtLeast(1.95), note);
        let line = format!("two threads, {what} : one thread");
        let note = "in time that the machine gave to the threads";
        table.add(line, median(by_cpu), Goal::AtLeast(1.95), note);
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

/// The quantiles of a reader's times, without and with a busy writer.
struct Beside {
    idle: Vec<f64>,
    busy: Vec<f64>,
    /// The changes in a second, and the nanoseconds of the writer for each.
    note: String,
}

/// Measures a reader while a writer applies `changes` in each [`TICK`], and while it applies none.
fn beside_writer(
    served: &BenchVerifier,
    changes: u64,
    windows: usize,
    mut draw: impl FnMut() -> Batch,
    of: &[f64],
) -> Beside {
    let (busy, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (ticks, working) = (AtomicU64::new(0), AtomicU64::new(0));
    let write = || {
        let mut due = Instant::now();
        while !done.load(Ordering::Acquire) {
            if busy.load(Ordering::Acquire) {
                served.store.commit_more(changes);
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
    let less = clock_cost();
    let mut quantiles = [(); 2].map(|()| vec![Vec::new(); of.len()]);
    let (mut seconds, mut measured) = (0.0, 0);
    thread::scope(|scope| {
        scope.spawn(write);
        for window in 0..=2 * windows {
            let is_busy = window % 2 == 1;
            let batch = draw();
            busy.store(is_busy, Ordering::Release);
            // Waits until the writer has seen the flag and the caches have settled.
            thread::sleep(10 * TICK);
            each(served, &batch, less);
            let (began, before) = (Instant::now(), ticks.load(Ordering::Relaxed));
            let times = each(served, &batch, less);
            if is_busy {
                seconds += began.elapsed().as_secs_f64();
                measured += ticks.load(Ordering::Relaxed) - before;
            }
            busy.store(false, Ordering::Release);
            for (all, of) in quantiles[usize::from(is_busy)].iter_mut().zip(of) {
                all.push(quantile(&times, *of));
            }
        }
        done.store(true, Ordering::Release);
    });
    let [idle, busy] = quantiles.map(|all| all.into_iter().map(median).collect());
    let own = working.into_inner() / (ticks.into_inner() * changes).max(1);
    let rate = (measured * changes) as f64 / seconds;
    let note = format!("{rate:.0} changes/s arrived, {own} ns of the writer for each");
    Beside { idle, busy, note }
}

/// Measures a reader while a writer applies 10,000 changes a second.
pub(crate) fn writer(size: &Workload, table: &mut Table) {
    let keys = size.typical;
    eprintln!("writer: {keys} keys");
    let served = BenchVerifier::secret(keys);
    let mut random = Random(5);
    let draw = || Batch::valid(&served.keys, keys, 200_000, &mut random);
    let Beside { idle, busy, note } =
        beside_writer(&served, CHANGES_A_TICK, size.windows, draw, &[0.5, 0.999]);
    assert_arrived(&served);
    let note = format!("{:.0} ns : {:.0} ns; {note}", busy[0], idle[0]);
    let line = "p50 beside 10,000 changes/s : beside none, by the wall";
    table.add(line, busy[0] / idle[0], Goal::AtMost(1.15), note);
    let note = format!("{:.0} ns : {:.0} ns", busy[1], idle[1]);
    let line = "p99.9 beside 10,000 changes/s : beside none, by the wall";
    table.add(line, busy[1] / idle[1], None, note);
}

/// The keys of each of the five owners of the only tenant.
const OWNED: u64 = 100_000;

/// 10 s, in milliseconds: the staleness bound of the standard profile.
const BOUND: f64 = 10_000.0;

/// Measures changes of the role of an owner of 100,000 keys: how soon its keys are refused, and a reader of the other
/// owners' keys beside a thousand such changes a second.
pub(crate) fn role(size: &Workload, table: &mut Table) {
    let (owners, keys) = (5, 5 * OWNED);
    eprintln!("role: {keys} keys");
    let served = BenchVerifier::empty(Keys::new(KeyKind::Secret, 50), keys, Feed::Roles);
    served.sync();
    let own = Batch::new((0..100).map(|nth| served.keys.token(nth * owners)));
    let change = |accepted: usize| {
        served.store.commit_more(1);
        let (taken, granted) = timed(|| {
            served.sync();
            served.run(&own, &need())
        });
        assert_eq!(granted, accepted, "the change decides about every key");
        taken.wall / 1e6
    };
    let lowered = median((0..=size.rounds).map(|_| {
        let taken = change(0);
        change(own.len());
        taken
    }));
    let line = "ms until 100 keys of an owner whose role was lowered are refused";
    let note = format!("the owner has {OWNED} keys");
    table.add(line, lowered, Goal::AtMost(BOUND), note);
    let mut random = Random(8);
    let draw = || {
        let other = |drawn: u64| drawn % (keys / owners) * owners + 1 + drawn % (owners - 1);
        Batch::new((0..100_000).map(|_| served.keys.token(other(random.next()))))
    };
    let Beside { idle, busy, note } = beside_writer(&served, 1, size.windows, draw, &[0.99]);
    let note = format!("{:.0} ns : {:.0} ns; {note}", busy[0], idle[0]);
    let line = "p99 beside 1,000 changes of such a role a second : beside none, by the wall";
    table.add(line, busy[0] / idle[0], Goal::AtMost(1.2), note);
}

/// The longest verification in a window of time, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct LongestVerification {
    wall: f64,
    cpu: f64,
    /// True if the hypervisor stopped a CPU of this machine at about that time.
    is_stolen: bool,
}

impl LongestVerification {
    fn or_longer(self, other: &Self) -> Self {
        Self {
            wall: self.wall.max(other.wall),
            cpu: self.cpu.max(other.cpu),
            is_stolen: self.is_stolen || other.is_stolen,
        }
    }
}

/// 20 ms, short enough that most windows remain when a hypervisor stops a CPU every 100 ms.
const WINDOW: Duration = Duration::from_millis(20);

/// Returns the time that the hypervisor has taken from all CPUs (`steal`), in hundredths of a second.
fn stolen() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let steal = stat.split_whitespace().nth(8).map(str::parse);
    steal
        .expect("the first line of /proc/stat has `steal`")
        .unwrap()
}

/// Verifies as long as `goes_on` is true. Returns the longest verification of each window.
fn windows_while(
    served: &BenchVerifier,
    batch: &Batch,
    goes_on: &AtomicBool,
) -> Vec<LongestVerification> {
    let need = need();
    let mut positions = (0..batch.len()).cycle();
    let (mut windows, mut before) = (Vec::new(), stolen());
    while goes_on.load(Ordering::Acquire) {
        let began = Instant::now();
        let mut longest = LongestVerification::default();
        let (mut wall, mut cpu) = (began, thread_time());
        while wall - began < WINDOW && goes_on.load(Ordering::Acquire) {
            let at = positions.next().unwrap_or_default();
            assert!(served.verifier.verify(batch.at(at), &need).is_ok());
            let (now, own) = (Instant::now(), thread_time());
            longest.wall = longest.wall.max(nanos(now - wall));
            longest.cpu = longest.cpu.max(nanos(own - cpu));
            (wall, cpu) = (now, own);
        }
        let after = stolen();
        longest.is_stolen = after > before;
        before = after;
        windows.push(longest);
    }
    // `steal` grows in steps of 10 ms. So the time in which it grows may have been stolen in the window before.
    for at in 1..windows.len() {
        windows[at - 1].is_stolen |= windows[at].is_stolen;
    }
    windows
}

/// The number of rows in a block of 128 KiB of the index's memory: about 1024.
const ROWS_OF_A_BLOCK: u64 = 1024;

/// The number of steps in which the index grows: 20. A step of the baseline follows each of them.
const STEPS: u64 = 20;

/// Measures the longest pause of a reader while the index grows tenfold, in windows without `steal`.
///
/// The baseline is a reader while the same rows are computed but put into no index. The baseline allocates as
/// much memory, in blocks of the same size.
pub(crate) fn growth(size: &Workload, table: &mut Table) {
    let (from, to) = (size.growth / 10, size.growth);
    eprintln!("growth: {from} to {to} keys");
    let served = BenchVerifier::empty(Keys::new(KeyKind::Secret, to), from, Feed::Grow);
    served.sync();
    let batch = Batch::valid(&served.keys, from, 200_000, &mut Random(6));
    let beside = |write: &mut (dyn FnMut() + Send)| {
        let goes_on = AtomicBool::new(true);
        thread::scope(|scope| {
            let reading = scope.spawn(|| windows_while(&served, &batch, &goes_on));
            write();
            goes_on.store(false, Ordering::Release);
            reading.join().unwrap()
        })
    };
    let (mut grown, mut made, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let step = (to - from) / STEPS;
    for _ in 0..STEPS {
        let upto = served.store.commit_more(step);
        grown.extend(beside(&mut || served.sync()));
        made.extend(beside(&mut || {
            for at in upto - step + 1..=upto {
                drop(std::hint::black_box(served.store.change(at)));
                if at % ROWS_OF_A_BLOCK == 0 {
                    kept.push(vec![1_u8; 128 * 1024]);
                }
            }
        }));
    }
    drop(std::hint::black_box(kept));
    let last = Batch::new([served.keys.token(from + STEPS * step - 1)]);
    assert_eq!(served.run(&last, &need()), 1, "the last key arrived");
    let longest = |windows: &[LongestVerification], is_stolen: bool| {
        let windows = windows
            .iter()
            .filter(|window| window.is_stolen == is_stolen);
        windows.fold(LongestVerification::default(), |a, b| a.or_longer(b))
    };
    let [own, base] = [&grown, &made].map(|windows| longest(windows, false));
    let millis = |nanos: f64| nanos / 1e6;
    let count = |windows: &[LongestVerification]| {
        let dropped = windows.iter().filter(|window| window.is_stolen).count();
        format!("{dropped} of {}", windows.len())
    };
    let note = format!(
        "beside making rows {:.2}; dropped for steal {} and {} windows, the longest pause in them {:.2}",
        millis(base.wall),
        count(&grown),
        count(&made),
        millis(longest(&grown, true).wall),
    );
    let line = format!("longest pause in ms, growing to {to} keys, by the wall");
    table.add(line, millis(own.wall), None, note);
    let note = format!("beside making rows {:.2}", millis(base.cpu));
    let line = format!("longest pause in ms, growing to {to} keys, the thread's own time");
    table.add(line, millis(own.cpu), None, note);
}
