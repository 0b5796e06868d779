//! A node among others: it registers before it is fresh, and says how far it has come.
//!
//! Invariants: a read confirms only if it was sent after a report that stands had become durable, and
//! within [`SLACK`] of when that was sent. So whoever does not find the node in the registry knows
//! that it has whatever was committed by then; and a node whose report is older than its lease
//! accepts nothing.

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

/// For how long reads confirm after a report. A judgement: a registry may fail for so long without
/// harm, and a node that died holds up no receipt for longer than this and its bound.
const SLACK: Duration = Duration::from_secs(60);

/// How often a node reports though nothing has changed. A judgement: five reports may be lost.
const BEAT_EVERY: Duration = Duration::from_secs(10);

/// The interval at which a node reads the reports of others: their clocks, and entries that can be removed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// For how long a node that was seen to report has a say about the time.
const CLOCK_LAPSES: Duration = Duration::from_secs(3 * 60);

/// How often a report is repeated at once, because its id is taken or what it says has changed.
const MAX_ATTEMPTS: usize = 4;

/// What a node needs to register.
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

/// How a node stands with its registry.
#[derive(Debug)]
pub(super) struct Standing {
    node: Option<NodeId>,
    beat: u64,
    /// The longest for which anything is accepted without a confirmation.
    bound: Duration,
    /// The last report that stands; `None` if none does, or it says too little.
    told: Option<Told>,
    /// Counts how often that became void: a report that was on its way then is void as well.
    term: u64,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    /// When it was sent.
    at: Reading,
    applied: Option<Cursor>,
}

impl Standing {
    const fn new(bound: Duration) -> Self {
        Self {
            node: None,
            beat: 0,
            bound,
            told: None,
            term: 0,
        }
    }

    /// Until when reads may be sent that are to confirm something.
    pub(super) fn until(&self) -> Option<Reading> {
        self.told.map(|told| Reading {
            wall: told.at.wall.saturating_add(SLACK),
            monotonic: told.at.monotonic.saturating_add(SLACK),
        })
    }

    /// What was reported does not count any more.
    pub(super) const fn void(&mut self) {
        self.told = None;
        self.term += 1;
    }
}

impl Replica {
    /// Has the replica register as a node, durably, before anything is fresh. `bound` is the longest
    /// for which its verifiers accept anything without a confirmation.
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

    /// Which node this is; `None` before it has registered, and without a registry.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.progress().standing.as_ref()?.node
    }

    /// The history that is followed.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.progress().cursor.map(|cursor| cursor.epoch)
    }

    /// Stops being a node: nothing is fresh any more, and the registry forgets it. A later
    /// [`sync`](Self::sync) registers it anew.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the registry. The entry lapses by itself then.
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

    /// Verifiers are about to accept for up to `bound` without a confirmation. If that is longer than
    /// the registry was told, nothing is fresh until it is told.
    pub(crate) fn widen(&self, bound: Duration) {
        let mut progress = self.progress();
        if let Some(standing) = &mut progress.standing
            && standing.bound < bound
        {
            standing.bound = bound;
            self.end_freshness(&mut progress);
        }
    }

    /// Nothing is confirmed from here on, by reads on their way either.
    pub(super) fn end_freshness(&self, progress: &mut Progress) {
        progress.standing.iter_mut().for_each(Standing::void);
        let stores = std::sync::atomic::Ordering::Release;
        self.confirmed.store(NEVER, stores);
    }

    /// Registers, unless a report stands that still counts. To be called before a read is sent that
    /// is to confirm something.
    pub(super) async fn register(&self) -> Result<(), StoreError> {
        let Some(registration) = &self.registration else {
            return Ok(());
        };
        let until = self.progress().until();
        if until.is_some_and(|until| is_by(self.clock.raw(), until)) {
            return Ok(());
        }
        // What was applied before says nothing: it may be of a history that was lost meanwhile.
        self.report(registration, false).await
    }

    /// Says how far this node has come, if that is news or it was silent for a while. A report that
    /// fails is repeated after the next sync.
    pub(super) async fn tell(&self) {
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

    /// Reads what others report, now and then. What fails is left for the next sync.
    pub(super) async fn look_around(&self) {
        let Some(registration) = &self.registration else {
            return;
        };
        if registration.is_look_due(self.clock.raw())
            && let Err(error) = self.look(registration).await
        {
            tracing::debug!(%error, "cannot look after the registry");
            // What was said before is late by now.
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
                standing.told = Some(Told { at, applied });
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

    /// Reads the registry, and removes entries of nodes that were silent for long.
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

    /// Who has a change. Once its bound has passed, nobody needs to answer for that.
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
            // Sent after the change had returned: what is found to be the history is the one it is
            // part of, and this node has the change.
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
    /// Whether the registry may not know of every node that can act on what was before a change: a
    /// backup that was put back by hand, epoch and all, does not list who registered since it was made.
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
    /// Until when reads may be sent that are to confirm something; `None` if none may.
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
        let told = self.standing.as_ref().and_then(|standing| standing.told);
        told.is_none_or(|told| told.applied != self.cursor || now.since(told.at) >= BEAT_EVERY)
    }
}

impl Registration {
    /// Returns whether the reports of others are to be read. A step of the wall clock counts as time that passed:
    /// it is held against their clocks at once.
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
