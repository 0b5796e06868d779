//! Registration of a node: the node registers before it is fresh, and reports its position.
//!
//! Invariants:
//!
//! - A read confirms only if it was sent after an accepted report had become durable, and within
//!   [`SLACK`] of that report's send time.
//! - So if an observer does not find a node in the registry, the node's next confirming read
//!   includes everything committed by then.
//! - A node whose last report is older than its lease fails closed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::confirmations::{self, Awaited, Confirmations, Found, Observer, Sightings, judge};
use super::{NEVER, Progress, Replica, is_by};
use crate::clock::{Clock, Reading};
use crate::core::policy::Propagation;
use crate::core::text::NodeLabel;
use crate::core::time::Timestamp;
use crate::entropy::Entropy;
use crate::store::{Cursor, Epoch, NodeId, NodeRegistry, NodeReport, StoreError, StoreErrorKind};

/// 60 s: reads confirm for this long after a report. A judgement: a registry may fail for this long
/// without harm, and a node that died delays a receipt by at most this and its staleness bound.
const SLACK: Duration = Duration::from_secs(60);

/// 10 s: a node reports this often even if nothing has changed. A judgement: five reports in a row
/// may be lost.
const BEAT_EVERY: Duration = Duration::from_secs(10);

/// 30 s: the interval at which a node reads the reports of others, for their clocks and for entries
/// to remove.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// 3 min: the clock of another node counts for this long after its report was seen.
const CLOCK_LAPSES: Duration = Duration::from_secs(3 * 60);

/// 4 attempts at a report before it fails. A report is repeated if its id is taken, or if
/// freshness ended while it was in flight.
const MAX_ATTEMPTS: usize = 4;

/// The dependencies that a node needs to register.
#[derive(Debug)]
pub(super) struct Registration {
    registry: Arc<dyn NodeRegistry>,
    entropy: Arc<dyn Entropy>,
    label: Option<NodeLabel>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    sightings: Sightings,
    looked: Option<Reading>,
}

/// A node's state with its registry.
#[derive(Debug)]
pub(super) struct Standing {
    node: Option<NodeId>,
    beat: u64,
    /// The longest time for which this node's verifiers accept anything without a confirmation.
    bound: Duration,
    /// The last report the registry accepted. `None` before the first one, and after freshness
    /// ended.
    reported: Option<Reported>,
    /// Counts how often `reported` was voided. A report that was in flight at that moment is void
    /// too.
    term: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reported {
    /// The send time of the report.
    at: Reading,
    applied: Option<Cursor>,
}

impl Standing {
    const fn new(bound: Duration) -> Self {
        Self {
            node: None,
            beat: 0,
            bound,
            reported: None,
            term: 0,
        }
    }

    /// Returns the latest send time of a read that can confirm.
    pub(super) fn until(&self) -> Option<Reading> {
        self.reported.map(|reported| Reading {
            wall: reported.at.wall.saturating_add(SLACK),
            monotonic: reported.at.monotonic.saturating_add(SLACK),
        })
    }

    /// Voids the last report, and every report in flight.
    pub(super) const fn void(&mut self) {
        self.reported = None;
        self.term += 1;
    }
}

impl Replica {
    /// Makes the replica register as a node, durably, before anything is fresh. `bound` is the
    /// longest time for which its verifiers accept anything without a confirmation.
    #[must_use]
    pub fn with_registry(
        mut self,
        registry: Arc<dyn NodeRegistry>,
        entropy: Arc<dyn Entropy>,
        bound: Duration,
        label: Option<NodeLabel>,
    ) -> Self {
        self.registration = Some(Registration {
            registry,
            entropy,
            label,
            seen: Mutex::default(),
        });
        self.progress().standing = Some(Standing::new(bound));
        self
    }

    /// Returns this node's id; `None` before it has registered, and without a registry.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.progress().standing.as_ref()?.node
    }

    /// Returns the epoch of the history that is followed.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.progress().cursor.map(|cursor| cursor.epoch)
    }

    /// Deregisters this node: freshness ends, and the registry removes its entry. A later
    /// [`sync`](Self::sync) registers the node again.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the registry. The entry then lapses by itself.
    pub async fn leave(&self) -> Result<(), StoreError> {
        let _only_one = self.syncing.lock().await;
        let known = {
            let mut progress = self.progress();
            self.end_freshness(&mut progress);
            let standing = progress.standing.as_ref();
            standing.and_then(|standing| Some((standing.node?, standing.beat)))
        };
        match (&self.registration, known) {
            (Some(registration), Some((node, beat))) => {
                registration.registry.forget(node, beat).await
            }
            _ => Ok(()),
        }
    }

    /// Announces that verifiers will accept keys for up to `bound` without a confirmation. If the
    /// registry has a shorter bound, freshness ends until the longer one is reported.
    pub(crate) fn widen(&self, bound: Duration) {
        let mut progress = self.progress();
        if let Some(standing) = &mut progress.standing
            && standing.bound < bound
        {
            standing.bound = bound;
            self.end_freshness(&mut progress);
        }
    }

    /// Ends freshness. Reads in flight confirm nothing either.
    pub(super) fn end_freshness(&self, progress: &mut Progress) {
        progress.standing.iter_mut().for_each(Standing::void);
        let stores = std::sync::atomic::Ordering::Release;
        self.confirmed.store(NEVER, stores);
    }

    /// Registers, unless the last accepted report still counts. Call it before sending a read that
    /// is to confirm.
    pub(super) async fn register(&self) -> Result<(), StoreError> {
        let Some(registration) = &self.registration else {
            return Ok(());
        };
        let until = self.progress().until();
        if until.is_some_and(|until| is_by(self.clock.raw(), until)) {
            return Ok(());
        }
        // The position is left out: it may belong to a history that has been lost since.
        self.report(registration, false).await
    }

    /// Reports this node's position if it changed, or if the last report is [`BEAT_EVERY`] old. A
    /// report that fails is repeated after the next sync.
    pub(super) async fn report_progress(&self) {
        let Some(registration) = &self.registration else {
            return;
        };
        let now = self.clock.raw();
        if self.progress().is_report_due(now)
            && let Err(error) = self.report(registration, true).await
        {
            tracing::warn!(%error, "cannot report what was applied");
        }
    }

    /// Reads the reports of other nodes every [`LOOK_EVERY`]. After a failure the next sync tries
    /// again.
    pub(super) async fn look_around(&self) {
        let Some(registration) = &self.registration else {
            return;
        };
        if registration.is_look_due(self.clock.raw())
            && let Err(error) = self.look(registration).await
        {
            tracing::debug!(%error, "cannot look after the registry");
            // The clocks read earlier are out of date by now.
            self.clock.saw_nodes([]);
        }
    }

    async fn report(&self, registration: &Registration, synced: bool) -> Result<(), StoreError> {
        const DOING: &str = "registering this node";
        for _ in 0..MAX_ATTEMPTS {
            let node = self.node().map_or_else(|| draw(&*registration.entropy), Ok);
            let node = node.map_err(|error| {
                StoreError::new(StoreErrorKind::Unavailable, DOING).with_source(error)
            })?;
            let at = self.clock.raw();
            let Some((mut report, term)) = self.next_report(registration, node) else {
                return Ok(());
            };
            report.applied = report.applied.filter(|_| synced);
            let applied = report.applied;
            let stands = registration.registry.report(report).await;
            self.heard();
            let stands = stands?;
            let mut progress = self.progress();
            let Some(standing) = &mut progress.standing else {
                return Ok(());
            };
            if !stands {
                tracing::warn!("node id is another node's as well, drawing another");
                standing.node = None;
                self.end_freshness(&mut progress);
            } else if standing.term == term {
                standing.reported = Some(Reported { at, applied });
                return Ok(());
            }
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, DOING))
    }

    fn next_report(&self, registration: &Registration, node: NodeId) -> Option<(NodeReport, u64)> {
        let mut progress = self.progress();
        let applied = progress.cursor;
        let clock = self.clock.now();
        let standing = progress.standing.as_mut()?;
        standing.beat += 1;
        let report = NodeReport {
            node: *standing.node.insert(node),
            label: registration.label.clone(),
            applied,
            lease: standing.bound.saturating_add(SLACK),
            clock,
            beat: standing.beat,
        };
        Some((report, standing.term))
    }

    /// Reads the registry, and removes the entries of nodes that were silent for
    /// a day beyond their lease.
    async fn look(&self, registration: &Registration) -> Result<Vec<Found>, StoreError> {
        let began = self.clock.raw();
        let asked = began.monotonic;
        registration.seen().looked = Some(began);
        let reports = registration.registry.nodes().await;
        self.heard();
        let reports = reports?;
        let answered = self.clock.monotonic();
        let own = self.node();
        let (found, clocks) = {
            let mut seen = registration.seen();
            let found = seen.sightings.see(reports, (asked, answered));
            let clocks = seen.sightings.clocks(own, answered, CLOCK_LAPSES);
            (found, clocks.collect::<Vec<_>>())
        };
        self.clock.saw_nodes(clocks);
        for gone in found.iter().filter(|found| found.is_gone()) {
            let NodeReport { node, beat, .. } = gone.report;
            match registration.registry.forget(node, beat).await {
                Ok(()) => tracing::info!(%node, "forgot a node that was silent for long"),
                Err(error) => tracing::debug!(%node, %error, "cannot forget a node"),
            }
        }
        Ok(found)
    }

    /// Returns which nodes have a change. Once the bound of the change has passed, a failing
    /// registry is no error.
    pub(crate) async fn confirmations(
        &self,
        awaited: &Awaited,
    ) -> Result<Confirmations, StoreError> {
        match self.ask(awaited).await {
            Err(error) if awaited.left(self.clock.monotonic()).is_zero() => {
                tracing::debug!(%error, "a change is confirmed by time alone");
                Ok(confirmations::by_time())
            }
            asked => asked,
        }
    }

    async fn ask(&self, awaited: &Awaited) -> Result<Confirmations, StoreError> {
        let mut observer = Observer {
            epoch: None,
            node: None,
            label: None,
        };
        let mut found = None;
        if let Some(registration) = &self.registration {
            // This read is sent after the change had returned. So the history it finds is the
            // change's own, and this node has the change.
            self.sync().await?;
            observer.epoch = self.epoch().filter(|_| !self.may_miss_nodes(awaited));
            found = Some(self.look(registration).await?);
            observer.node = self.node();
            observer.label = registration.label.clone();
        }
        let now = self.clock.monotonic();
        Ok(judge(awaited, &observer, found.as_deref(), now))
    }
}

impl Replica {
    /// Returns whether the registry may lack a node that can still act on the state before a
    /// change. A backup restored by hand keeps its epoch, but not the nodes that registered after
    /// it was made.
    fn may_miss_nodes(&self, awaited: &Awaited) -> bool {
        let progress = self.progress();
        let bound = progress.standing.as_ref().map(|standing| standing.bound);
        let lease = bound.unwrap_or_default().saturating_add(SLACK);
        progress.lost.is_some_and(|lost| {
            awaited.returned <= lost.saturating_add(Propagation::by_any_clock(lease))
        })
    }
}

impl Progress {
    /// Returns the latest send time of a read that can confirm; `None` if no read can.
    pub(super) fn until(&self) -> Option<Reading> {
        match &self.standing {
            Some(standing) => standing.until(),
            None => Some(Reading {
                wall: Timestamp::MAX,
                monotonic: Duration::MAX,
            }),
        }
    }

    fn is_report_due(&self, now: Reading) -> bool {
        let reported = self
            .standing
            .as_ref()
            .and_then(|standing| standing.reported);
        reported.is_none_or(|reported| {
            reported.applied != self.cursor || now.since(reported.at) >= BEAT_EVERY
        })
    }
}

impl Registration {
    /// Returns whether the reports of others should be read. A step of the wall clock counts as
    /// elapsed time, so this node's clock is compared with theirs immediately.
    fn is_look_due(&self, now: Reading) -> bool {
        let looked = self.seen().looked;
        looked.is_none_or(|looked| now.since(looked) >= LOOK_EVERY)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn draw(entropy: &dyn Entropy) -> Result<NodeId, crate::entropy::EntropyError> {
    let mut id = [0; 16];
    entropy.fill(&mut id)?;
    Ok(NodeId::from_u128(u128::from_le_bytes(id)))
}
