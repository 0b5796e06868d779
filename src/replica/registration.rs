//! Registration of a node. A node registers before its index counts as fresh. Afterwards it reports its
//! position in the store's history.
//!
//! Invariants:
//!
//! - A read of the store confirms the index only if the registry had accepted a report of this node before
//!   that read was sent. The report may be older than the read by at most the node's report allowance.
//! - Suppose that an observer reads the registry and does not find a node. Then that node's next confirming
//!   read returns everything committed before the observer's request.
//! - A node whose last report is older than its lease fails closed.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};

use super::confirmations::{
    self, Awaited, Confirmations, ObservedReport, Observer, Sightings, judge,
};
use super::{NEVER, Replica, SyncState, TurnKind, is_by};
use crate::clock::{Clock, Reading};
use crate::core::policy::Propagation;
use crate::core::text::NodeLabel;
use crate::core::time::Timestamp;
use crate::entropy::Entropy;
use crate::observe::WithSources;
use crate::store::{
    Cursor, Epoch, NodeId, NodeProcess, NodeRegistry, NodeReport, StoreError, StoreErrorKind,
};

/// 10 s: the longest time between two reports of a node whose position has not changed. So five reports in a
/// row may be lost before the shortest report allowance has passed.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// 30 s: a node reads the other nodes' reports this often, to compare clocks and to remove dead entries.
const READ_PEERS_EVERY: Duration = Duration::from_secs(30);

/// 3 min: the time for which another node's clock reading is used after it was read from the registry.
const PEER_CLOCK_LIFETIME: Duration = Duration::from_secs(3 * 60);

/// 1 s: the longest wait for the registry after a change. The change is already durable, and its caller waits.
const BOUNDS_TIMEOUT: Duration = Duration::from_secs(1);

/// 4 attempts to send a report. The node sends the report again if another node has its id, or if its
/// freshness ended while the report was in flight.
const MAX_ATTEMPTS: usize = 4;

/// 500 ms: a report that is dropped after this time counts as not answered.
const UNANSWERED: Duration = Duration::from_millis(500);

const REGISTERING: &str = "registering this node";

/// The dependencies that a node needs to register.
#[derive(Debug)]
pub(super) struct Registration {
    registry: Arc<dyn NodeRegistry>,
    entropy: Arc<dyn Entropy>,
    label: Option<NodeLabel>,
    process: Option<NodeProcess>,
    observed: Mutex<ObservedNodes>,
}

#[derive(Debug, Default)]
struct ObservedNodes {
    sightings: Sightings,
    last_read: Option<Reading>,
    /// The longest bound of a node with other policies, by the last answer of the registry. `None` before the
    /// first answer.
    other_bound: Option<Duration>,
    /// The longest lease of a node of the present history in any answer of the registry.
    longest_lease: Duration,
    /// The cause of the last failed report of this node's position, as logged. `None` after a report that
    /// succeeded.
    report_failure: Option<String>,
    /// True once an old report was logged.
    announced_overdue: bool,
}

/// A report that was sent. If it is dropped before the answer, the report failed: a commit may wait for a standby
/// that is gone, longer than the follower waits.
struct SentReport<'a> {
    replica: &'a Replica,
    registration: &'a Registration,
    sent: Duration,
    is_answered: bool,
}

impl Drop for SentReport<'_> {
    fn drop(&mut self) {
        // A process that stops may drop a report that was just sent.
        let waited = self.replica.clock.monotonic().saturating_sub(self.sent);
        if !self.is_answered && waited >= UNANSWERED {
            let error = StoreError::new(StoreErrorKind::Unavailable, REGISTERING)
                .with_source("the registry did not answer in time".to_owned());
            error.count();
            self.replica.note_failed_report(self.registration, &error);
        }
    }
}

/// The state of this node's registration.
#[derive(Debug)]
pub(super) struct RegistrationState {
    node: Option<NodeId>,
    beat: u64,
    /// The staleness bound: the longest time for which this node's verifiers accept a key after the last
    /// confirmation.
    bound: Duration,
    /// The longest time between a report and a read of the store that it allows to confirm the index.
    allowance: Duration,
    /// The last report that the registry accepted. `None` before the first report. Also `None` after
    /// freshness ended, because the node must then report again.
    reported: Option<Reported>,
    /// The number of times that `reported` was voided. If it rose while a report was in flight, the node
    /// ignores the registry's answer to that report.
    term: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reported {
    /// The send time of the report.
    at: Reading,
    applied: Option<Cursor>,
}

impl RegistrationState {
    fn new(bound: Duration, allowance: Duration) -> Self {
        Self {
            node: None,
            beat: 0,
            bound,
            // Builds that do not read the bound from a report subtract the shortest allowance from the lease.
            allowance: allowance.max(NodeReport::ALLOWANCE),
            reported: None,
            term: 0,
        }
    }

    /// Returns the latest time at which a read of the store can be sent and still confirm the index. `None`
    /// if no read can confirm the index, because the registry has accepted no report.
    pub(super) fn until(&self) -> Option<Reading> {
        self.reported.map(|reported| Reading {
            wall: reported.at.wall.saturating_add(self.allowance),
            monotonic: reported.at.monotonic.saturating_add(self.allowance),
        })
    }

    /// Returns the time for which the node may accept keys after a report.
    const fn lease(&self) -> Duration {
        self.bound.saturating_add(self.allowance)
    }

    /// Voids the last accepted report. The answers to reports in flight are then ignored.
    pub(super) const fn void(&mut self) {
        self.reported = None;
        self.term += 1;
    }
}

impl Replica {
    /// Makes the replica register as a node. The index counts as fresh only after the registry has durably
    /// stored the registration. `bound` is the staleness bound of this node's verifiers: the longest time for
    /// which they accept a key after the last confirmation.
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
            process: None,
            observed: Mutex::default(),
        });
        let state = RegistrationState::new(bound, NodeReport::ALLOWANCE);
        self.progress().registration = Some(state);
        self
    }

    /// Adds a description of the process to this node's reports, and sets the node's report allowance. Does
    /// nothing without a registry.
    #[must_use]
    pub(crate) fn with_reports(mut self, process: NodeProcess, allowance: Duration) -> Self {
        if let Some(registration) = &mut self.registration {
            registration.process = Some(process);
        }
        if let Some(state) = &mut self.progress().registration {
            *state = RegistrationState::new(state.bound, allowance);
        }
        self
    }

    /// Returns this node's id. `None` before the node's first report, and if the replica has no registry.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.progress().registration.as_ref()?.node
    }

    /// Reads the nodes that may verify keys at `now` from the registry, by the time of each one's last report. `None`
    /// without a registry.
    pub(crate) async fn live_nodes(
        &self,
        now: Timestamp,
    ) -> Result<Option<Vec<NodeId>>, StoreError> {
        let Some(registration) = &self.registration else {
            return Ok(None);
        };
        let nodes = registration.registry.nodes().await?;
        let allowance = self.clock.allowance();
        let is_live = |node: &&NodeReport| {
            let until = node.clock.saturating_add(node.lease);
            !node.is_former() && until.saturating_add(allowance) >= now
        };
        let live = nodes.iter().filter(is_live).map(|report| report.node);
        Ok(Some(live.collect()))
    }

    /// Returns the epoch of the history that this replica follows. `None` if the replica has no cursor.
    ///
    /// A node that reads no keys in advance follows the history that it found when it was built.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        let progress = self.progress();
        let found = progress.head.filter(|_| self.without_index);
        progress.cursor.or(found).map(|cursor| cursor.epoch)
    }

    /// Returns the longest staleness bound of the nodes whose reports show that they have other policies than
    /// this process. `None` without a registry, or if there is no such node.
    ///
    /// Call this method after a change returned. A node may register, or take a longer bound, after the registry
    /// was read. Such a node confirms itself only by reads that return the change.
    pub(crate) async fn other_bound(self: &Arc<Self>) -> Option<Duration> {
        let registration = self.registration.as_ref()?;
        let begin = || {
            let replica = self.clone();
            async move { replica.read_other_bound().await }.boxed()
        };
        let read = self.bounds.next((), begin, || self.is_stalled());
        let read = pin!(read);
        let limited = select(read, Clock::sleep(&*self.clock, BOUNDS_TIMEOUT)).await;
        if let Either::Left((Some(bound), _)) = limited {
            return Some(bound).filter(|bound| !bound.is_zero());
        }
        let known = registration.observed().other_bound;
        tracing::warn!(
            assumed = ?known.unwrap_or(Propagation::LONGEST),
            "cannot read from the registry how long other nodes may act on the state before a change, so its \
             receipt may state a wrong time: restore this node's access to the registry"
        );
        Some(known.unwrap_or(Propagation::LONGEST)).filter(|bound| !bound.is_zero())
    }

    /// Returns the longest bound of a node with other policies, or zero. `None` if the registry failed.
    async fn read_other_bound(&self) -> Option<Duration> {
        let registration = self.registration.as_ref()?;
        match self.read_registry(registration).await {
            // A concurrent read may have stored an older answer since.
            Ok(found) => Some(self.longest_other_bound(found.iter().map(|found| &found.report))),
            Err(error) => {
                error.count();
                tracing::warn!(error = %WithSources(&error), "cannot read the node registry");
                None
            }
        }
    }

    /// Returns the longest bound of the nodes that report another bound than that of this process's policies.
    /// The entry for the nodes of a replaced history has the longest of their known leases.
    fn longest_other_bound<'a>(&self, reports: impl Iterator<Item = &'a NodeReport>) -> Duration {
        let own = self.policies.as_ref().map(|own| own.get().longest_bound());
        let own_node = self.node();
        let others = reports.filter(|report| Some(report.node) != own_node);
        let bounds = others
            .map(NodeReport::bound)
            .filter(|bound| Some(*bound) != own);
        bounds.max().unwrap_or_default()
    }

    /// Deregisters this node: freshness ends, and the registry removes its entry. A later
    /// [`sync`](Self::sync) registers the node again.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the registry. The entry then expires with its lease.
    pub async fn leave(self: &Arc<Self>) -> Result<(), StoreError> {
        self.next_turn(TurnKind::Leave).await
    }

    pub(super) async fn leave_once(&self) -> Result<(), StoreError> {
        let known = {
            let mut progress = self.progress();
            self.end_freshness(&mut progress);
            let state = progress.registration.as_ref();
            state.and_then(|state| Some((state.node?, state.beat)))
        };
        match (&self.registration, known) {
            (Some(registration), Some((node, beat))) => {
                registration.registry.forget(node, beat).await
            }
            _ => Ok(()),
        }
    }

    /// Raises the staleness bound in this node's reports to `bound`, if the present bound is shorter.
    /// Freshness then ends, until the registry has stored the longer bound.
    pub(crate) fn widen(&self, bound: Duration) {
        let mut progress = self.progress();
        if let Some(state) = &mut progress.registration
            && state.bound < bound
        {
            state.bound = bound;
            self.end_freshness(&mut progress);
        }
    }

    /// Ends freshness: withdraws the last confirmation, and prevents reads in flight from confirming.
    pub(super) fn end_freshness(&self, progress: &mut SyncState) {
        progress
            .registration
            .iter_mut()
            .for_each(RegistrationState::void);
        let stores = std::sync::atomic::Ordering::Release;
        self.confirmed.store(NEVER, stores);
    }

    /// Returns the age of the last report that the registry accepted. `None` if no report counts.
    pub(crate) fn report_age(&self) -> Option<Duration> {
        let reported = self.progress().registration.as_ref()?.reported?;
        Some(self.clock.raw().since(reported.at))
    }

    /// Sends a report to the registry, unless the last accepted report is recent enough for a read to confirm
    /// the index. Call this method before sending such a read.
    pub(super) async fn register(&self) -> Result<(), StoreError> {
        let Some(registration) = &self.registration else {
            return Ok(());
        };
        let until = self.progress().until();
        if until.is_some_and(|until| is_by(self.clock.raw(), until)) {
            return Ok(());
        }
        // Report no position: the cursor may belong to a history that was replaced.
        self.report(registration, false).await
    }

    /// Reports this node's position if the position changed, or if the last report is older than
    /// [`REPORT_EVERY`]. If the report fails, the next sync sends it again.
    pub(super) async fn report_progress(&self) {
        let Some(registration) = &self.registration else {
            return;
        };
        let now = self.clock.raw();
        if !self.progress().is_report_due(now) {
            return;
        }
        if let Err(error) = self.report(registration, true).await {
            error.count();
            self.note_failed_report(registration, &error);
        }
    }

    /// Logs a report that failed. One line for each cause, because every sync tries again, and one more when half of
    /// the report allowance is over.
    fn note_failed_report(&self, registration: &Registration, error: &StoreError) {
        let cause = WithSources(error).to_string();
        let (age, allowance) = (self.report_age(), self.report_allowance());
        let mut observed = registration.observed();
        if age.is_some_and(|age| age >= allowance / 2) {
            if !std::mem::replace(&mut observed.announced_overdue, true) {
                tracing::error!(
                    error = cause,
                    ?age,
                    ?allowance,
                    "this node's last report to the registry is old: restore its access, or its keys are refused its \
                     report allowance and a staleness bound after that report"
                );
            }
        } else if observed.report_failure.as_ref() != Some(&cause) {
            tracing::warn!(
                error = cause,
                "cannot report this node's position to the registry: restore its access, or its keys are refused \
                 its report allowance and a staleness bound after its last report"
            );
        }
        observed.report_failure = Some(cause);
    }

    fn report_allowance(&self) -> Duration {
        let progress = self.progress();
        let state = progress.registration.as_ref();
        state.map_or(NodeReport::ALLOWANCE, |state| state.allowance)
    }

    /// Returns the cause of the last failed report. `None` after a report that succeeded.
    pub(super) fn report_failure(&self) -> Option<String> {
        self.registration
            .as_ref()?
            .observed()
            .report_failure
            .clone()
    }

    /// Reads the other nodes' clocks, unless the last attempt is more recent than [`READ_PEERS_EVERY`]. A failed
    /// attempt counts as an attempt.
    pub(super) async fn read_peers(&self) {
        let registration = self.registration.as_ref();
        let Some(registration) = registration.filter(|own| own.is_peer_read_due(self.clock.raw()))
        else {
            return;
        };
        if let Err(error) = self.read_registry(registration).await {
            tracing::debug!(error = %WithSources(&error), "cannot read the node registry");
            // The clock readings of the last successful read are out of date by now.
            self.clock.saw_nodes([]);
        }
    }

    /// Reads the reports of all nodes. Returns `None` without a registry.
    pub(super) async fn read_reports(&self) -> Option<Result<Vec<ObservedReport>, StoreError>> {
        let registration = self.registration.as_ref()?;
        Some(self.read_registry(registration).await)
    }

    async fn report(&self, registration: &Registration, synced: bool) -> Result<(), StoreError> {
        self.try_report(registration, synced).await?;
        let mut observed = registration.observed();
        observed.announced_overdue = false;
        if observed.report_failure.take().is_some() {
            tracing::info!("reports this node's position to the registry again");
        }
        Ok(())
    }

    async fn try_report(
        &self,
        registration: &Registration,
        synced: bool,
    ) -> Result<(), StoreError> {
        for _ in 0..MAX_ATTEMPTS {
            let node = self.node().map_or_else(|| draw(&*registration.entropy), Ok);
            let node = node.map_err(|error| {
                StoreError::new(StoreErrorKind::Unavailable, REGISTERING).with_source(error)
            })?;
            let at = self.clock.raw();
            let Some((mut report, term)) = self.next_report(registration, node) else {
                return Ok(());
            };
            report.applied = report.applied.filter(|_| synced);
            let applied = report.applied;
            let mut sent = SentReport {
                replica: self,
                registration,
                sent: at.monotonic,
                is_answered: false,
            };
            let accepted = registration.registry.report(report).await;
            sent.is_answered = true;
            self.count_answer();
            let accepted = accepted?;
            let mut progress = self.progress();
            let Some(state) = &mut progress.registration else {
                return Ok(());
            };
            if !accepted {
                tracing::warn!("node id is taken by another node, drawing a new one");
                state.node = None;
                self.end_freshness(&mut progress);
            } else if state.term == term {
                state.reported = Some(Reported { at, applied });
                return Ok(());
            }
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, REGISTERING))
    }

    fn next_report(&self, registration: &Registration, node: NodeId) -> Option<(NodeReport, u64)> {
        let mut progress = self.progress();
        let applied = progress.reported_position();
        let clock = self.clock.now();
        let state = progress.registration.as_mut()?;
        state.beat += 1;
        let report = NodeReport {
            node: *state.node.insert(node),
            label: registration.label.clone(),
            applied,
            lease: state.lease(),
            clock,
            beat: state.beat,
            process: registration.process.as_ref().map(|process| NodeProcess {
                bound: state.bound,
                ..process.clone()
            }),
        };
        Some((report, state.term))
    }

    /// Reads the registry, and removes the entries of nodes that were silent for a day beyond their lease.
    async fn read_registry(
        &self,
        registration: &Registration,
    ) -> Result<Vec<ObservedReport>, StoreError> {
        let began = self.clock.raw();
        let asked = began.monotonic;
        registration.observed().last_read = Some(began);
        let reports = registration.registry.nodes().await;
        self.count_answer();
        let reports = reports?;
        let answered = self.clock.monotonic();
        let own = self.node();
        let other_bound = self.longest_other_bound(reports.iter());
        let (found, clocks) = {
            let mut observed = registration.observed();
            observed.other_bound = Some(other_bound);
            let present = reports.iter().filter(|report| !report.is_former());
            let leases = present.map(|report| report.lease);
            observed.longest_lease = leases.fold(observed.longest_lease, Duration::max);
            let found = observed.sightings.see(reports, (asked, answered));
            let clocks = observed
                .sightings
                .clocks(own, answered, PEER_CLOCK_LIFETIME);
            (found, clocks.collect::<Vec<_>>())
        };
        self.clock.saw_nodes(clocks);
        for gone in found.iter().filter(|found| found.is_gone()) {
            let NodeReport { node, beat, .. } = gone.report;
            match registration.registry.forget(node, beat).await {
                Ok(()) => tracing::info!(%node, "removed a silent node from the registry"),
                Err(error) => {
                    tracing::debug!(%node, error = %WithSources(&error), "cannot remove a silent node from the registry")
                }
            }
        }
        Ok(found)
    }

    /// Returns each node's confirmation of a change. If the registry fails after the staleness bound has
    /// passed, this method does not fail: the elapsed bound alone confirms the change.
    pub(crate) async fn confirmations(
        self: &Arc<Self>,
        awaited: &Awaited,
    ) -> Result<Confirmations, StoreError> {
        match self.ask(awaited).await {
            // A store that went back in time may have lost the change itself, so no elapsed time confirms it.
            Err(error)
                if awaited.left(self.clock.monotonic()).is_zero()
                    && self.check_history().is_ok() =>
            {
                tracing::debug!(error = %WithSources(&error), "registry failed, but the change is older than its bound");
                Ok(confirmations::by_time())
            }
            asked => asked,
        }
    }

    async fn ask(self: &Arc<Self>, awaited: &Awaited) -> Result<Confirmations, StoreError> {
        let mut observer = Observer {
            epoch: None,
            node: None,
            label: None,
            bound: Duration::MAX,
        };
        let mut found = None;
        if let Some(registration) = &self.registration {
            // The read begins after the change returned. So a node that syncs has applied the change when the
            // sync ends. Either read returns the store's current epoch.
            if self.without_index && self.progress().cursor.is_none() {
                self.read_head().await?;
            } else {
                self.sync().await?;
            }
            observer.epoch = self.epoch().filter(|_| !self.may_miss_nodes(awaited));
            let state = self.progress().registration.as_ref().map(|own| own.bound);
            observer.bound = state.unwrap_or(Duration::MAX);
            found = Some(self.read_registry(registration).await?);
            observer.node = self.node();
            observer.label = registration.label.clone();
        }
        let now = self.clock.monotonic();
        Ok(judge(awaited, &observer, found.as_deref(), now))
    }
}

impl Replica {
    /// Returns whether the registry may lack a node that can still act on the state before a change. This is
    /// possible shortly after the history was lost. For example, a database restored from a backup by hand
    /// keeps its epoch. But it lacks the nodes that registered after the backup.
    fn may_miss_nodes(&self, awaited: &Awaited) -> bool {
        let known = self.registration.as_ref();
        let known = known.map(|known| known.observed().longest_lease);
        let progress = self.progress();
        let own = progress.registration.as_ref();
        let own = own.map(RegistrationState::lease);
        let lease = own.max(known).unwrap_or_default();
        progress.lost.is_some_and(|lost| {
            awaited.returned <= lost.saturating_add(Propagation::by_any_clock(lease))
        })
    }
}

impl SyncState {
    /// Returns the latest time at which a read can be sent and still confirm the index. `None` if no read can
    /// confirm the index. Without a registry every read can.
    pub(super) fn until(&self) -> Option<Reading> {
        match &self.registration {
            Some(state) => state.until(),
            None => Some(Reading {
                wall: Timestamp::MAX,
                monotonic: Duration::MAX,
            }),
        }
    }

    /// Returns the position that this node reports as applied: its cursor, or the position that the store lacks.
    /// The latter may be newer, if it is a commit of this process.
    fn reported_position(&self) -> Option<Cursor> {
        self.cursor.map(|cursor| self.diverged.unwrap_or(cursor))
    }

    fn is_report_due(&self, now: Reading) -> bool {
        let reported = self.registration.as_ref().and_then(|state| state.reported);
        reported.is_none_or(|reported| {
            reported.applied != self.reported_position() || now.since(reported.at) >= REPORT_EVERY
        })
    }
}

impl Registration {
    /// Returns whether the other nodes' reports should be read again. A jump of this node's wall clock counts
    /// as elapsed time. So the next sync reads the reports, and compares this node's clock with the other
    /// nodes' clocks.
    fn is_peer_read_due(&self, now: Reading) -> bool {
        let last_read = self.observed().last_read;
        last_read.is_none_or(|last_read| now.since(last_read) >= READ_PEERS_EVERY)
    }

    fn observed(&self) -> std::sync::MutexGuard<'_, ObservedNodes> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn draw(entropy: &dyn Entropy) -> Result<NodeId, crate::entropy::EntropyError> {
    let mut id = [0; 16];
    entropy.fill(&mut id)?;
    Ok(NodeId::from_u128(u128::from_le_bytes(id)))
}
