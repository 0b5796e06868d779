//! Shared reads through the store.
//!
//! Invariants. For each key at most one read in flight can be joined. A caller knows whether the
//! read began after its own call. Every waiting caller drives the read, so no caller hangs when
//! another is dropped or never polled again. A read ends when no caller waits for it. Results of a
//! finished read never reach later callers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::gate::{Gate, Permit, ReadThroughLimits};
use super::read::{Found, read};
use crate::clock::Reading;
use crate::observe;
use crate::replica::Replica;
use crate::store::{KeyStore, Locator, StoreError};
use crate::timekeeper::Timekeeper;

/// 1 s, the time for which callers may join a read. A judgement: also the default timeout of a
/// sync. A later caller begins another read, so a store that never answers delays only the callers
/// of that second.
const JOINED_FOR: Duration = Duration::from_secs(1);

/// A logical timestamp of a call or a read.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Turn(u64);

/// The result of a read through the store.
#[derive(Debug)]
pub(super) struct Fetched {
    /// The logical time at which the read began.
    pub(super) turn: Turn,
    /// The clock reading at which the read began.
    pub(super) sent: Reading,
    pub(super) found: Result<Found, StoreError>,
}

/// A read that every caller awaiting it drives.
type Read = Shared<BoxFuture<'static, Arc<Fetched>>>;

/// A second read, shared by the callers that the first read did not serve.
type Next = Arc<Mutex<Option<Read>>>;

/// A read that a caller joined.
pub(super) struct Flight {
    read: Read,
    next: Next,
}

/// All reads in flight.
#[derive(Debug)]
pub(crate) struct Flights {
    gate: Gate,
    turns: AtomicU64,
    by_key: Arc<ByKey>,
}

type ByKey = Mutex<HashMap<Locator, OnItsWay>>;

#[derive(Debug)]
struct OnItsWay {
    turn: Turn,
    sent: Reading,
    read: WeakShared<BoxFuture<'static, Arc<Fetched>>>,
    next: Next,
}

/// The parts that a read needs.
pub(super) struct Source<'a> {
    pub(super) store: &'a Arc<dyn KeyStore>,
    pub(super) replica: &'a Arc<Replica>,
    pub(super) clock: &'a Arc<Timekeeper>,
}

/// Unlists a read when it ends or is dropped, and releases its permit.
struct Listed {
    by_key: Arc<ByKey>,
    locator: Locator,
    turn: Turn,
    _permit: Option<Permit>,
}

impl Flights {
    pub(crate) fn new(bounds: ReadThroughLimits) -> Self {
        Self {
            gate: Gate::new(bounds),
            turns: AtomicU64::new(0),
            by_key: Arc::default(),
        }
    }

    /// Returns the next logical timestamp. For `a < b`, one caller's steps before it draws `a`
    /// happen-before the other caller's steps after it draws `b`.
    pub(super) fn turn(&self) -> Turn {
        Turn(self.turns.fetch_add(1, Ordering::AcqRel))
    }

    /// Joins the read of this key that is in flight, or begins one; `None` beyond the limits. No
    /// limit applies to the holder of a known key.
    pub(super) fn join(
        &self,
        locator: Locator,
        source: &Source<'_>,
        holder: bool,
    ) -> Option<Flight> {
        let mut by_key = lock(&self.by_key);
        // Read under the lock: of two callers, the later one reads no earlier instant.
        let now = source.clock.raw();
        let own = by_key.get(&locator);
        let young = own.filter(|own| now.since(own.sent) <= JOINED_FOR);
        if let Some((read, next)) = young.and_then(|own| Some((own.read.upgrade()?, &own.next))) {
            observe::read_through("joined");
            let next = next.clone();
            return Some(Flight { read, next });
        }
        let permit = if holder {
            None
        } else {
            Some(self.gate.admit(now.monotonic)?)
        };
        let listed = Listed {
            by_key: self.by_key.clone(),
            locator,
            turn: self.turn(),
            _permit: permit,
        };
        let turn = listed.turn;
        let read = fetch(source, listed, now).boxed().shared();
        let next = Next::default();
        let replaced = read.downgrade().and_then(|weak| {
            let own = OnItsWay {
                turn,
                sent: now,
                read: weak,
                next: next.clone(),
            };
            by_key.insert(locator, own)
        });
        drop(by_key);
        // Dropped after the lock: a dropped read takes the lock to unlist itself.
        drop(replaced);
        Some(Flight { read, next })
    }
}

impl Flight {
    /// Waits for the read, and returns its result.
    pub(super) async fn end(&self) -> Arc<Fetched> {
        self.read.clone().await
    }

    /// Returns the result of the next read, which begins after all calls that joined this one. The
    /// first caller begins or joins that read with `begin`.
    pub(super) async fn next(&self, begin: impl FnOnce() -> Option<Self>) -> Option<Arc<Fetched>> {
        let read = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            if next.is_none() {
                *next = begin().map(|flight| flight.read);
            }
            next.clone()
        };
        match read {
            Some(read) => Some(read.await),
            None => None,
        }
    }
}

/// Reads a key, and unlists the read as soon as it has ended.
fn fetch(
    source: &Source<'_>,
    listed: Listed,
    sent: Reading,
) -> impl Future<Output = Arc<Fetched>> + Send + use<> {
    let (store, replica) = (source.store.clone(), source.replica.clone());
    async move {
        let found = read(&*store, &replica, listed.locator).await;
        observe::read_through(match &found {
            Ok(Found::Key(..)) => "found",
            Ok(Found::Nothing) => "missing",
            Ok(Found::Corrupt(_)) => "corrupt",
            Err(_) => "failed",
        });
        let turn = listed.turn;
        drop(listed);
        Arc::new(Fetched { turn, sent, found })
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut by_key = lock(&self.by_key);
        // A newer read may have replaced this read in the list, once this read was too old to join.
        let own = by_key.get(&self.locator).map(|own| own.turn) == Some(self.turn);
        let removed = own.then(|| by_key.remove(&self.locator));
        drop(by_key);
        drop(removed);
    }
}

fn lock(by_key: &ByKey) -> MutexGuard<'_, HashMap<Locator, OnItsWay>> {
    by_key.lock().unwrap_or_else(PoisonError::into_inner)
}
