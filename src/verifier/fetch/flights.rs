//! Shared reads through the store.
//!
//! Invariants:
//!
//! - At most one read in flight per key can be joined.
//! - A caller can compare the start of a read with the start of its own call.
//! - Every waiting caller polls the read, so a caller that is dropped or stops polling delays no other
//!   caller.
//! - A read is dropped when no caller waits for it.
//! - A finished read serves no later caller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;

use super::gate::{Gate, ReadPermit, ReadThroughLimits};
use super::read::{StoreLookup, read};
use crate::clock::Reading;
use crate::joint::Joint;
use crate::observe;
use crate::replica::Replica;
use crate::store::{KeyStore, Locator, StoreError};
use crate::timekeeper::Timekeeper;

/// 1 s, the default timeout of a sync: the time during which further callers may join a read. A later caller
/// begins another read, so a hanging read delays only the callers of one second.
const JOINED_FOR: Duration = Duration::from_secs(1);

/// A logical timestamp of a call or a read.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct LogicalTime(u64);

/// The result of a read through the store.
#[derive(Debug)]
pub(super) struct Fetched {
    /// The logical time at which the read began.
    pub(super) started: LogicalTime,
    /// The clock reading at which the read began.
    pub(super) sent: Reading,
    pub(super) found: Result<StoreLookup, StoreError>,
}

/// A shared read. Every caller that awaits the read polls it.
type Read = Arc<Joint<Arc<Fetched>>>;

/// A second read, shared by all callers that need a read that began after their own calls.
type SecondRead = Arc<Mutex<Option<Read>>>;

/// A read that a caller joined.
pub(super) struct Flight {
    read: Read,
    next: SecondRead,
}

/// All reads in flight.
#[derive(Debug)]
pub(crate) struct Flights {
    gate: Gate,
    logical_clock: AtomicU64,
    by_key: Arc<ByKey>,
}

type ByKey = Mutex<HashMap<Locator, InFlight>>;

#[derive(Debug)]
struct InFlight {
    started: LogicalTime,
    /// True if the read holds a permit.
    limited: bool,
    sent: Reading,
    read: Weak<Joint<Arc<Fetched>>>,
    next: SecondRead,
}

/// The dependencies of a read.
pub(super) struct ReadContext<'a> {
    pub(super) store: &'a Arc<dyn KeyStore>,
    pub(super) replica: &'a Arc<Replica>,
    pub(super) clock: &'a Arc<Timekeeper>,
}

/// Removes a read from the list and releases its permit, when the read ends or is dropped. Counts a read that
/// was dropped before its end.
struct FlightGuard {
    ended: bool,
    by_key: Arc<ByKey>,
    locator: Locator,
    started: LogicalTime,
    _permit: Option<ReadPermit>,
}

impl Flights {
    pub(crate) fn new(bounds: ReadThroughLimits) -> Self {
        Self {
            gate: Gate::new(bounds),
            logical_clock: AtomicU64::new(0),
            by_key: Arc::default(),
        }
    }

    /// Returns the longest time that a verification waits for its read.
    pub(super) const fn timeout(&self) -> Duration {
        self.gate.timeout()
    }

    /// Counts a refusal that reads nothing towards the limits. Returns whether the limits allow one now.
    pub(super) fn admits(&self, now: Duration) -> bool {
        self.gate.admit(now).is_some()
    }

    /// Returns the next logical timestamp. If `a < b`, everything that one caller did before drawing `a`
    /// happens-before everything that another caller does after drawing `b`.
    pub(super) fn tick(&self) -> LogicalTime {
        LogicalTime(self.logical_clock.fetch_add(1, Ordering::AcqRel))
    }

    /// Joins the read of this key that is in flight, or begins a read. Returns `None` if the limits are
    /// exceeded. If `holds_key` is true, the caller presented the secret of a known key, and no limit
    /// applies.
    pub(super) fn join(
        &self,
        locator: Locator,
        context: &ReadContext<'_>,
        holds_key: bool,
    ) -> Option<Flight> {
        self.try_join(locator, context, holds_key).or_else(|| {
            if !self.gate.is_full() {
                return None;
            }
            // Reads whose callers are kept and not polled must not hold their permits.
            self.nudge();
            self.try_join(locator, context, holds_key)
        })
    }

    /// Polls every read with a permit that the store has answered, and that no caller has polled since.
    fn nudge(&self) {
        let reads = lock(&self.by_key)
            .values()
            .filter(|own| own.limited)
            .map(|own| own.read.clone())
            .collect::<Vec<_>>();
        let reads = reads.iter().filter_map(Weak::upgrade);
        reads.for_each(|read| read.nudge());
    }

    fn try_join(
        &self,
        locator: Locator,
        context: &ReadContext<'_>,
        holds_key: bool,
    ) -> Option<Flight> {
        let mut by_key = lock(&self.by_key);
        // Read the clock under the lock, so that a later caller never reads an earlier time.
        let now = context.clock.raw();
        let own = by_key.get(&locator);
        let young = own.filter(|own| now.since(own.sent) <= JOINED_FOR);
        if let Some((read, next)) = young.and_then(|own| Some((own.read.upgrade()?, &own.next))) {
            observe::read_through("joined");
            let next = next.clone();
            return Some(Flight { read, next });
        }
        let permit = if holds_key {
            None
        } else {
            Some(self.gate.admit(now.monotonic)?)
        };
        let limited = permit.is_some();
        let guard = FlightGuard {
            ended: false,
            by_key: self.by_key.clone(),
            locator,
            started: self.tick(),
            _permit: permit,
        };
        let started = guard.started;
        let read = Joint::new(fetch(context, guard, now).boxed());
        let next = SecondRead::default();
        let own = InFlight {
            started,
            limited,
            sent: now,
            read: Arc::downgrade(&read),
            next: next.clone(),
        };
        let replaced = by_key.insert(locator, own);
        drop(by_key);
        // Drop the replaced read after releasing the lock: dropping a read takes the lock to remove the read
        // from the list.
        drop(replaced);
        Some(Flight { read, next })
    }
}

impl Flight {
    /// Waits for the read, and returns its result; `None` if the read panicked.
    pub(super) async fn end(&self) -> Option<Arc<Fetched>> {
        self.read.wait().await
    }

    /// Returns the result of a second read, which begins after all calls that joined this read. The first
    /// caller starts the second read with `begin`, and later callers share it.
    pub(super) async fn next(&self, begin: impl FnOnce() -> Option<Self>) -> Option<Arc<Fetched>> {
        let read = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            if next.is_none() {
                *next = begin().map(|flight| flight.read);
            }
            next.clone()
        };
        match read {
            Some(read) => read.wait().await,
            None => None,
        }
    }
}

/// Reads a key, and removes the read from the list as soon as it has ended.
fn fetch(
    context: &ReadContext<'_>,
    mut guard: FlightGuard,
    sent: Reading,
) -> impl Future<Output = Arc<Fetched>> + Send + use<> {
    let (store, replica) = (context.store.clone(), context.replica.clone());
    async move {
        let found = read(&*store, &replica, guard.locator).await;
        if let Err(error) = &found {
            error.count();
        }
        observe::read_through(match &found {
            Ok(StoreLookup::Key(..)) => "found",
            Ok(StoreLookup::Nothing) => "missing",
            Ok(StoreLookup::Corrupt(_)) => "corrupt",
            Err(_) => "failed",
        });
        let started = guard.started;
        guard.ended = true;
        drop(guard);
        Arc::new(Fetched {
            started,
            sent,
            found,
        })
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        if !self.ended {
            observe::read_through("abandoned");
        }
        let mut by_key = lock(&self.by_key);
        // Remove only this read: a newer read may have replaced it in the list, once it was too old to join.
        let own = by_key.get(&self.locator).map(|own| own.started) == Some(self.started);
        let removed = own.then(|| by_key.remove(&self.locator));
        drop(by_key);
        drop(removed);
    }
}

fn lock(by_key: &ByKey) -> MutexGuard<'_, HashMap<Locator, InFlight>> {
    by_key.lock().unwrap_or_else(PoisonError::into_inner)
}
