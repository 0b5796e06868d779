//! Node registries that each break one clause of the [`NodeRegistry`] contract.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::pause;
use keyward::node::NodeLabel;
use keyward::store::{NodeId, NodeRegistry, NodeReport, StoreError};

defects! {
    /// One deliberate mistake of a registry.
    enum RegistryDefect;

    /// Caches the result of the first read, and returns it for every later read.
    ReadsFromCache => "a_report_is_in_every_later_read",
    /// Stores the lease of a report in whole seconds, and drops the fraction.
    KeepsWholeSeconds => "reports_come_back_as_they_were_written",
    /// Truncates long labels.
    CutsLabels => "reports_come_back_as_they_were_written",
    /// Stores a default cursor for a report that has no cursor.
    InventsACursor => "reports_come_back_as_they_were_written",
    /// Keeps the old label of a node if its new report has none, although a report replaces the earlier one
    /// completely.
    MergesReports => "a_later_report_replaces_an_earlier_one",
    /// Drops the peppers of a report, like a registry from before reports had them.
    DropsPeppers => "reports_come_back_as_they_were_written",
    /// Accepts every report, so that a report with an older beat replaces a newer one.
    LastWriteWins => "an_older_report_changes_nothing",
    /// Accepts a report with the same beat as the current report, although only a later beat may replace it.
    SameBeatWins => "an_older_report_changes_nothing",
    /// Returns `true` even for a report that it did not accept.
    EveryReportStands => "a_registry_returns_whether_it_accepted_a_report",
    /// Compares only half of the bits of node ids, so that one node can replace another.
    KeepsHalfOfIds => "nodes_are_identified_by_their_ids",
    /// Identifies nodes by their labels, so that nodes with the same label replace each other.
    IdentifiesNodesByLabel => "nodes_are_identified_by_their_ids",
    /// Keeps at most 256 nodes. A further node replaces the node that has been silent for longest.
    DropsTheSilent => "no_node_vanishes_by_itself",
    /// Ignores every call of `forget`.
    ForgetsNone => "forgetting_takes_one_node_away",
    /// Forgets all nodes instead of one.
    ForgetsAll => "forgetting_takes_one_node_away",
    /// Forgets a node even if the node has reported a later beat than `upto`.
    IgnoresBeatsWhenForgetting => "forgetting_spares_a_node_that_reported_since",
    /// Ignores every report of a node that was forgotten once.
    RemembersTheForgotten => "a_forgotten_node_may_report_again",
    /// Writes the label and the rest of a report in two steps. A dropped report can be half written.
    ReportsInTwoSteps => "a_dropped_report_is_all_or_nothing",
    /// Compares beats and writes the report in two steps, so that an older report can overwrite a concurrent
    /// newer one.
    ComparesThenWrites => "concurrent_reports_end_at_the_latest",
}

/// 256 nodes, the most that a registry with [`RegistryDefect::DropsTheSilent`] keeps. The check registers 300
/// nodes.
const KEPT: usize = 256;

/// An in-memory registry with one [`RegistryDefect`].
#[derive(Debug)]
pub struct BrokenRegistry {
    defect: RegistryDefect,
    state: Mutex<RegistryState>,
}

#[derive(Debug, Default)]
struct RegistryState {
    /// The current report of each node. The node that reported last is at the end.
    nodes: Vec<NodeReport>,
    read: Option<Vec<NodeReport>>,
    forgotten: Vec<NodeId>,
}

impl BrokenRegistry {
    /// Creates an empty registry with the given defect.
    #[must_use]
    pub fn new(defect: RegistryDefect) -> Self {
        let state = Mutex::default();
        Self { defect, state }
    }

    fn is(&self, defect: RegistryDefect) -> bool {
        self.defect == defect
    }

    fn state(&self) -> MutexGuard<'_, RegistryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn same(&self, one: &NodeReport, other: &NodeReport) -> bool {
        let half = |report: &NodeReport| report.node.to_u128() & u128::from(u64::MAX);
        match self.defect {
            RegistryDefect::KeepsHalfOfIds => half(one) == half(other),
            RegistryDefect::IdentifiesNodesByLabel => one.label == other.label,
            _ => one.node == other.node,
        }
    }

    fn stands(&self, report: &NodeReport) -> Option<NodeReport> {
        let state = self.state();
        let mut all = state.nodes.iter();
        all.find(|other| self.same(other, report)).cloned()
    }

    fn put(&self, report: NodeReport) {
        let mut state = self.state();
        state.nodes.retain(|other| !self.same(other, &report));
        state.nodes.push(report);
        if self.is(RegistryDefect::DropsTheSilent) && state.nodes.len() > KEPT {
            state.nodes.remove(0);
        }
    }

    fn spoil(&self, report: &mut NodeReport, before: Option<&NodeReport>) {
        match self.defect {
            RegistryDefect::KeepsWholeSeconds => {
                report.lease = Duration::from_secs(report.lease.as_secs());
            }
            RegistryDefect::CutsLabels => {
                let cut = |label: NodeLabel| label.as_str().chars().take(32).collect::<String>();
                report.label = report
                    .label
                    .take()
                    .map(cut)
                    .and_then(|l| NodeLabel::new(l).ok());
            }
            RegistryDefect::DropsPeppers => {
                let process = report.process.iter_mut();
                process.for_each(|process| process.peppers.clear());
            }
            RegistryDefect::InventsACursor => {
                report.applied.get_or_insert_default();
            }
            RegistryDefect::MergesReports => {
                let before = before.and_then(|before| before.label.clone());
                report.label = report.label.take().or(before);
            }
            _ => {}
        }
    }
}

#[async_trait]
impl NodeRegistry for BrokenRegistry {
    async fn report(&self, mut report: NodeReport) -> Result<bool, StoreError> {
        if self.is(RegistryDefect::RemembersTheForgotten)
            && self.state().forgotten.contains(&report.node)
        {
            return Ok(true);
        }
        let before = self.stands(&report);
        let older = before.as_ref().is_some_and(|before| match self.defect {
            RegistryDefect::LastWriteWins => false,
            RegistryDefect::SameBeatWins => before.beat > report.beat,
            _ => before.beat >= report.beat,
        });
        if older {
            return Ok(self.is(RegistryDefect::EveryReportStands));
        }
        if self.is(RegistryDefect::ComparesThenWrites) {
            pause().await;
        }
        self.spoil(&mut report, before.as_ref());
        if self.is(RegistryDefect::ReportsInTwoSteps) {
            let half = NodeReport {
                label: before.and_then(|before| before.label),
                ..report.clone()
            };
            self.put(half);
            pause().await;
        }
        self.put(report);
        Ok(true)
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        let mut state = self.state();
        let nodes = state.nodes.clone();
        if self.is(RegistryDefect::ReadsFromCache) {
            return Ok(state.read.get_or_insert(nodes).clone());
        }
        Ok(nodes)
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        let mut state = self.state();
        state.forgotten.push(node);
        let defect = self.defect;
        state.nodes.retain(|report| match defect {
            RegistryDefect::ForgetsNone => true,
            RegistryDefect::ForgetsAll => false,
            RegistryDefect::IgnoresBeatsWhenForgetting => report.node != node,
            _ => report.node != node || report.beat > upto,
        });
        Ok(())
    }
}
