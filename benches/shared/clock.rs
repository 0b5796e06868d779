//! Measured time: wall time, and the CPU time of this thread. Other work on the machine does not add to CPU
//! time.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The time an operation took, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elapsed {
    /// CPU time of the thread.
    pub cpu: f64,
    pub wall: f64,
}

/// Returns the CPU time of this thread.
pub fn thread_time() -> Duration {
    let at = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(at.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}

pub fn timed<T>(work: impl FnOnce() -> T) -> (Elapsed, T) {
    let (wall, cpu) = (Instant::now(), thread_time());
    let done = work();
    let (cpu, wall) = (thread_time() - cpu, wall.elapsed());
    let taken = Elapsed {
        cpu: nanos(cpu),
        wall: nanos(wall),
    };
    (taken, done)
}

pub fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index into a list"
)]
pub fn quantile(sorted: &[u64], of: f64) -> f64 {
    let last = sorted.len() - 1;
    sorted[(last as f64 * of).round() as usize] as f64
}
