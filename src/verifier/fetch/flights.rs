//! Reads through the store that several callers share.
//!
//! Invariants: of one key at most one read that anybody still joins is on its way; whoever joins can
//! tell whether it began after its own call; any one of those who wait keeps it going, so that nobody
//! hangs when another is dropped, or is kept and never polled again; it ends when nobody waits for
//! it. Nothing of a read that has ended is told to anyone who comes later.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::gate::{Gate, Permit, ReadThrough};
use super::read::{Found, read};
use crate::clock::Reading;
use crate::observe;
use crate::replica::Replica;
use crate::store::{KeyStore, Locator, StoreError};
use crate::timekeeper::Timekeeper;

/// For how long after it began a read is joined: whoever comes later begins one beside it, so that an
/// answer that never comes holds up only those who came soon. A judgement, the same as for a sync.
const JOINED_FOR: Duration = Duration::from_secs(1);

/// A place in the order in which calls and reads begin.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Turn(u64);

/// What a read through the store found.
#[derive(Debug)]
pub(super) struct Fetched {
    /// When it began, in the order of calls and reads.
    pub(super) turn: Turn,
    /// The instant at which it began.
    pub(super) sent: Reading,
    pub(super) found: Result<Found, StoreError>,
}

/// A read, which whoever awaits it drives.
type Read = Shared<BoxFuture<'static, Arc<Fetched>>>;

/// The read that those share whom another one did not serve.
type Next = Arc<Mutex<Option<Read>>>;

/// A read that was joined.
pub(super) struct Flight {
    read: Read,
    next: Next,
}

/// All reads on their way.
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

/// Where and with what is read.
pub(super) struct Source<'a> {
    pub(super) store: &'a Arc<dyn KeyStore>,
    pub(super) replica: &'a Arc<Replica>,
    pub(super) clock: &'a Arc<Timekeeper>,
}

/// Takes a read off the list when it ends or is given up, and gives its leave back.
struct Listed {
    by_key: Arc<ByKey>,
    locator: Locator,
    turn: Turn,
    _permit: Option<Permit>,
}

impl Flights {
    pub(crate) fn new(bounds: ReadThrough) -> Self {
        Self {
            gate: Gate::new(bounds),
            turns: AtomicU64::new(0),
            by_key: Arc::default(),
        }
    }

    /// The next turn. What happened before a call that drew an earlier one happened before whatever
    /// the drawer of a later one does next.
    pub(super) fn turn(&self) -> Turn {
        Turn(self.turns.fetch_add(1, Ordering::AcqRel))
    }

    /// The read of this key that is on its way, or a new one; `None` if there may be no more. A
    /// holder of a known key needs no leave.
    pub(super) fn join(
        &self,
        locator: Locator,
        source: &Source<'_>,
        holder: bool,
    ) -> Option<Flight> {
        let mut by_key = lock(&self.by_key);
        // Read under the lock: the later of two who are here reads no earlier instant.
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
        // What it lets go of may take itself off the list.
        drop(replaced);
        Some(Flight { read, next })
    }
}

impl Flight {
    /// What the read found.
    pub(super) async fn end(&self) -> Arc<Fetched> {
        self.read.clone().await
    }

    /// What another read finds, which began after all calls that joined this one, now that this has
    /// ended; `begin` joins or begins it, for the first who asks.
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

/// Reads, and is off the list as soon as it has.
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
        // Another may have taken the place of one that was too old to be joined.
        let own = by_key.get(&self.locator).map(|own| own.turn) == Some(self.turn);
        let removed = own.then(|| by_key.remove(&self.locator));
        drop(by_key);
        drop(removed);
    }
}

fn lock(by_key: &ByKey) -> MutexGuard<'_, HashMap<Locator, OnItsWay>> {
    by_key.lock().unwrap_or_else(PoisonError::into_inner)
}
