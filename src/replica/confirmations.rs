//! Confirmations of one change: which nodes have applied the change, and which nodes may still act on the
//! state before it.
//!
//! The code is pure: reports, and readings of the observer's monotonic clock, are arguments.
//!
//! Invariant: once [`Confirmations::is_complete`] returns true, no later verification on any node acts on the
//! state before the change. If a node's state is unknown, the change counts as unconfirmed on that node until
//! the staleness bound has passed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::policy::Propagation;
use crate::core::text::NodeLabel;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{Epoch, NodeId, NodeReport};

/// 24 hours: a node's entry stays in the registry for this long after its lease has ended without a report.
/// So an operator who looks the next morning still sees the missing node.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The nodes that have confirmed a change, and the nodes that may still act on the state before that change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Confirmations {
    nodes: Vec<NodeConfirmation>,
    /// The longest time for which nodes that are missing from the registry may still act on the state before
    /// the change. Zero if no such node can exist.
    unregistered: Duration,
}

/// One node's answer about a change.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct NodeConfirmation {
    /// The node's id.
    pub node: NodeId,
    /// The node's human-readable name.
    pub label: Option<NodeLabel>,
    /// The node's answer, derived from its reports or its silence.
    pub answer: NodeAnswer,
    /// True if this is no node, but stands for all nodes of a history that was replaced: see
    /// [`NodeReport::is_former`].
    pub is_former: bool,
}

/// A node's state with respect to one change, derived from its reports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NodeAnswer {
    /// The node has applied the change.
    Applied,
    /// The node has not reported that it applied the change.
    Waiting {
        /// The longest time for which the node may still act on the state before the change.
        at_most: Duration,
    },
    /// The node has not reported that it applied the change, but it accepts no keys from its old state. The
    /// node has stopped, is cut off, or is so stale that it fails closed.
    Lapsed,
}

impl Confirmations {
    /// Returns true once no node can act on the state before the change. Then every node has applied the
    /// change or has lapsed, or the staleness bound has passed since the change.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.at_most().is_zero()
    }

    /// Returns the longest time for which any node may still act on the state before the change.
    #[must_use]
    pub fn at_most(&self) -> Duration {
        let waiting = self.waiting().map(|(_, at_most)| at_most);
        waiting.max().unwrap_or_default().max(self.unregistered)
    }

    /// Returns every registered node with its answer. The list is empty without a registry. It is also empty
    /// if the registry fails after the staleness bound has passed, because the change then needs no answers.
    #[must_use]
    pub fn nodes(&self) -> &[NodeConfirmation] {
        &self.nodes
    }

    /// Returns the nodes that have applied the change.
    pub fn applied(&self) -> impl Iterator<Item = &NodeConfirmation> {
        self.answered(NodeAnswer::Applied)
    }

    /// Returns the nodes that may not have applied the change. Each comes with the longest time for which
    /// that node may act on the state before the change.
    pub fn waiting(&self) -> impl Iterator<Item = (&NodeConfirmation, Duration)> {
        self.nodes.iter().filter_map(|node| match node.answer {
            NodeAnswer::Waiting { at_most } => Some((node, at_most)),
            NodeAnswer::Applied | NodeAnswer::Lapsed => None,
        })
    }

    /// Returns the nodes that never reported the change, but can no longer act on the state before it.
    pub fn lapsed(&self) -> impl Iterator<Item = &NodeConfirmation> {
        self.answered(NodeAnswer::Lapsed)
    }

    fn answered(&self, answer: NodeAnswer) -> impl Iterator<Item = &NodeConfirmation> {
        self.nodes.iter().filter(move |node| node.answer == answer)
    }
}

/// A change, and the data from which other nodes' confirmations of the change are derived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Awaited {
    /// The history that contains the change; `None` if unknown.
    pub(crate) epoch: Option<Epoch>,
    /// The commit that contains the change.
    pub(crate) revision: Revision,
    /// The time at which the commit returned, on the observer's monotonic clock.
    pub(crate) returned: Duration,
    /// The longest time after `returned` for which a verifier may act on the state before the
    /// change.
    pub(crate) bound: Duration,
}

impl Awaited {
    /// Returns how long after `now` any node may still act on the state before the change. The staleness
    /// bound already allows for a slow clock on the verifying node. This method adds an allowance for a fast
    /// clock on the observer.
    pub(crate) fn left(&self, now: Duration) -> Duration {
        let bound = Propagation::by_any_clock(self.bound);
        self.returned.saturating_add(bound).saturating_sub(now)
    }

    fn is_applied(&self, report: &NodeReport) -> bool {
        report.applied.is_some_and(|applied| {
            Some(applied.epoch) == self.epoch && applied.revision >= self.revision
        })
    }
}

/// A node's report, and the time since the observer first saw that report.
#[derive(Clone, Debug)]
pub(crate) struct ObservedReport {
    pub(crate) report: NodeReport,
    /// The time from the first sight of this report to the observer's last request to the registry.
    pub(crate) silent: Duration,
}

impl ObservedReport {
    /// Returns how long the node can still accept keys if it sends no further report. The lease is extended
    /// twice: once for a slow clock on the node, and once for a fast clock on the observer.
    fn lease_left(&self) -> Duration {
        let lease = Propagation::by_any_clock(Propagation::by_any_clock(self.report.lease));
        lease.saturating_sub(self.silent)
    }

    /// Returns whether the node's registry entry can be removed. By then the node's lease has ended, so the
    /// node fails closed until it reports again.
    pub(crate) fn is_gone(&self) -> bool {
        self.lease_left().is_zero() && self.silent.saturating_sub(self.report.lease) >= FORGET_AFTER
    }
}

/// 90 s: a clock reading in a report is used only if it arrived with at most this delay. It must be shorter
/// than the difference that is allowed between two clocks.
const LATE: Duration = Duration::from_secs(90);

/// The reports that an observer has seen.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    nodes: BTreeMap<NodeId, Sighting>,
    /// The observer's monotonic time at its last request to the registry.
    asked: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Sighting {
    /// The sequence number of the node's latest report. `since` is the time at which the observer first saw
    /// this number.
    beat: u64,
    since: Duration,
    /// The node's clock in its latest report, and the observer's time when that report was first seen. `None`
    /// if the clock reading may be out of date. This is so if the beat number never changed, if the previous
    /// request was more than [`LATE`] earlier, or if the reading is more than [`LATE`] behind one in `best`.
    clock: Option<(Timestamp, Duration)>,
    /// The readings that were farthest ahead of the observer's monotonic clock: among all that counted in an hour,
    /// and among those since. The delay of a report only makes its reading look behind.
    best: [(Timestamp, Duration); 2],
    /// The time at which the second of these hours began.
    hour: Duration,
}

impl Sighting {
    /// Returns how late a reading is, at least, by the node's earlier readings.
    fn lateness(&self, reading: (Timestamp, Duration)) -> Duration {
        self.best
            .map(|best| behind(best, reading))
            .into_iter()
            .max()
            .unwrap_or_default()
    }

    /// Adds a reading that counts. Readings of earlier hours no longer count then: two clocks drift apart.
    fn learn(&mut self, reading: (Timestamp, Duration)) {
        if reading.1.saturating_sub(self.hour) >= HOUR {
            self.best = [self.best[1], reading];
            self.hour = reading.1;
        } else if behind(self.best[1], reading).is_zero() {
            self.best[1] = reading;
        }
    }
}

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Returns how far the second reading is behind the first, as if both had been made at the same time.
fn behind(first: (Timestamp, Duration), second: (Timestamp, Duration)) -> Duration {
    let expected = first.0.saturating_add(second.1.saturating_sub(first.1));
    expected.since(second.0)
}

impl Sightings {
    /// Records the registry's answer to a request. `asked` and `answered` are the times of the request and of
    /// its answer.
    ///
    /// A node's silence starts at `answered` of the request that first returned the node's latest beat. The
    /// node may have sent that beat up to then. The silence ends at `asked` of this request, because the node
    /// may have sent another beat since.
    pub(crate) fn see(
        &mut self,
        reports: Vec<NodeReport>,
        (asked, answered): (Duration, Duration),
    ) -> Vec<ObservedReport> {
        let before = std::mem::take(&mut self.nodes);
        let last = self.asked.replace(asked);
        // A report with a new beat number was not in the answer to the previous request. So it became visible since
        // that request. It may still be older: a commit waits for a synchronous standby that is gone. So the reading
        // must not be late against the node's other readings either. A node whose clock was set back by more is not
        // compared until it restarts.
        let soon = last.is_some_and(|last| answered.saturating_sub(last) <= LATE);
        let find = |report: NodeReport| {
            let (beat, clock) = (report.beat, report.clock);
            let reading = (clock, answered);
            let sighting = match before.get(&report.node) {
                Some(known) if known.beat == beat => *known,
                Some(known) => {
                    let counts = known.lateness(reading) <= LATE;
                    let mut sighting = Sighting {
                        beat,
                        since: answered,
                        clock: (counts && soon).then_some(reading),
                        ..*known
                    };
                    if counts {
                        sighting.learn(reading);
                    }
                    sighting
                }
                None => Sighting {
                    beat,
                    since: answered,
                    clock: None,
                    best: [reading; 2],
                    hour: answered,
                },
            };
            let since = self.nodes.entry(report.node).or_insert(sighting).since;
            let silent = asked.saturating_sub(since);
            ObservedReport { report, silent }
        };
        reports.into_iter().map(find).collect()
    }

    /// Returns the clock readings of other nodes that are at most `lapse` old at `now`. Each comes with the
    /// observer's monotonic time at which the reading was first seen.
    pub(crate) fn clocks(
        &self,
        own: Option<NodeId>,
        now: Duration,
        lapse: Duration,
    ) -> impl Iterator<Item = (Timestamp, Duration)> {
        let others = self
            .nodes
            .iter()
            .filter(move |(node, _)| Some(**node) != own);
        let clocks = others.filter_map(|(_, sighting)| sighting.clock);
        clocks.filter(move |(_, at)| now.saturating_sub(*at) <= lapse)
    }
}

/// The node that asks for confirmations. This node has itself applied the change, by a sync that began after
/// the change returned.
#[derive(Clone, Debug)]
pub(crate) struct Observer {
    /// The store's epoch, read by that sync. `None` without a registry, or if the registry may lack nodes.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) node: Option<NodeId>,
    pub(crate) label: Option<NodeLabel>,
    /// The longest staleness bound of this node's policies.
    pub(crate) bound: Duration,
}

/// Decides for each node whether the node has applied a change.
///
/// `found` is the registry's answer to a request that was sent after the change returned. It is `None`
/// without a registry. A node that registers after that request needs no entry. It sends its confirming reads
/// after its registration is durable, so these reads return the change.
pub(crate) fn judge(
    awaited: &Awaited,
    observer: &Observer,
    found: Option<&[ObservedReport]>,
    now: Duration,
) -> Confirmations {
    let left = awaited.left(now);
    // A report confirms the change only if the observer's store still has the history of the change.
    // Revisions of two histories cannot be compared, and the registry of another history may lack nodes.
    let same_history = awaited.epoch.is_some() && awaited.epoch == observer.epoch;
    let is_own = |node: NodeId| Some(node) == observer.node;
    // A node with a longer bound than this process's policies has other policies, so only its own bound counts.
    let node_left = |report: &NodeReport| {
        let bound = report.bound();
        let own = Awaited {
            bound: Propagation { bound }.worst_case(),
            ..*awaited
        };
        match bound > observer.bound {
            true => own.left(now),
            false => own.left(now).min(left),
        }
    };
    let answer = |found: &ObservedReport| {
        let applied = same_history && awaited.is_applied(&found.report);
        // An entry may stand for all nodes from before a restore. Its lease is the longest one known, and some of
        // these nodes may have longer ones. So its silence does not end the wait.
        let at_most = match found.report.applied {
            Some(_) => node_left(&found.report).min(found.lease_left()),
            None if found.report.is_former() => node_left(&found.report).max(left),
            None => node_left(&found.report),
        };
        match at_most {
            _ if applied || is_own(found.report.node) => NodeAnswer::Applied,
            Duration::ZERO => NodeAnswer::Lapsed,
            at_most => NodeAnswer::Waiting { at_most },
        }
    };
    let confirm = |found: &ObservedReport| NodeConfirmation {
        node: found.report.node,
        label: found.report.label.clone(),
        answer: answer(found),
        is_former: found.report.is_former(),
    };
    let mut nodes: Vec<_> = found.into_iter().flatten().map(confirm).collect();
    if let Some(node) = observer.node
        && !nodes.iter().any(|listed| listed.node == node)
    {
        nodes.push(NodeConfirmation {
            node,
            label: observer.label.clone(),
            answer: NodeAnswer::Applied,
            is_former: false,
        });
    }
    let all_asked = found.is_some() && same_history;
    let unregistered = if all_asked { Duration::ZERO } else { left };
    Confirmations {
        nodes,
        unregistered,
    }
}

/// Returns complete confirmations without any node. For a change that is confirmed because its staleness
/// bound has passed.
pub(crate) const fn by_time() -> Confirmations {
    Confirmations {
        nodes: Vec::new(),
        unregistered: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{CommitTag, Cursor};

    const EPOCH: Epoch = Epoch(7);
    const OWN: NodeId = NodeId::from_u128(0);
    const BOUND: Duration = Duration::from_secs(10);
    const RETURNED: Duration = Duration::from_secs(100);

    fn awaited() -> Awaited {
        Awaited {
            epoch: Some(EPOCH),
            revision: Revision(5),
            returned: RETURNED,
            bound: BOUND,
        }
    }

    fn observer() -> Observer {
        Observer {
            epoch: Some(EPOCH),
            node: Some(OWN),
            label: None,
            bound: BOUND,
        }
    }

    fn report(epoch: Epoch, revision: u64) -> NodeReport {
        NodeReport {
            node: NodeId::from_u128(1),
            label: None,
            applied: Some(Cursor {
                epoch,
                revision: Revision(revision),
                tag: CommitTag(revision.into()),
            }),
            lease: Duration::from_secs(70),
            clock: Timestamp::UNIX_EPOCH,
            beat: 1,
            process: None,
        }
    }

    fn found(revision: u64, silent: Duration) -> ObservedReport {
        let report = report(EPOCH, revision);
        ObservedReport { report, silent }
    }

    fn answer(awaited: &Awaited, found: ObservedReport, now: Duration) -> NodeAnswer {
        judge(awaited, &observer(), Some(&[found]), now).nodes()[0].answer
    }

    #[test]
    fn a_node_confirms_with_the_revision_itself_and_with_none_below() {
        for (revision, applied) in [(4, false), (5, true), (6, true)] {
            let answer = answer(&awaited(), found(revision, Duration::ZERO), RETURNED);
            assert_eq!(answer == NodeAnswer::Applied, applied, "{revision}");
        }
    }

    #[test]
    fn revisions_of_another_history_confirm_nothing() {
        let other = ObservedReport {
            report: report(Epoch(8), 99),
            silent: Duration::ZERO,
        };
        let asked = answer(&awaited(), other.clone(), RETURNED);
        assert!(matches!(asked, NodeAnswer::Waiting { .. }));

        // After the change the store was restored: another epoch, or an unknown one. So the registry may lack
        // nodes too.
        for epoch in [Some(Epoch(8)), None] {
            let observer = Observer {
                epoch,
                ..observer()
            };
            let asked = judge(
                &awaited(),
                &observer,
                Some(std::slice::from_ref(&other)),
                RETURNED,
            );
            assert_eq!(asked.waiting().count(), 1);
            let asked = judge(&awaited(), &observer, Some(&[]), RETURNED);
            assert!(asked.at_most() >= BOUND, "{asked:?}");
            let asked = judge(&awaited(), &observer, Some(&[]), RETURNED + 2 * BOUND);
            assert!(asked.is_complete());
        }
        let unknown = Awaited {
            epoch: None,
            ..awaited()
        };
        let observer = Observer {
            epoch: None,
            ..observer()
        };
        let all = [found(9, Duration::ZERO)];
        assert!(!judge(&unknown, &observer, Some(&all), RETURNED).is_complete());
    }

    #[test]
    fn a_node_lapses_with_the_bound_or_with_its_lease_and_an_instant_before_neither() {
        let by_bound = |now| answer(&awaited(), found(4, Duration::ZERO), now);
        assert!(matches!(
            by_bound(RETURNED + BOUND),
            NodeAnswer::Waiting { .. }
        ));
        let both_clocks = Propagation::by_any_clock(BOUND);
        assert_eq!(by_bound(RETURNED + both_clocks), NodeAnswer::Lapsed);

        let by_lease = |silent| answer(&awaited(), found(4, silent), RETURNED);
        let lease = report(EPOCH, 4).lease;
        let waiting = by_lease(lease);
        assert!(
            matches!(waiting, NodeAnswer::Waiting { at_most } if at_most < Duration::from_secs(1)),
            "{waiting:?}"
        );
        let any_clocks = Propagation::by_any_clock(Propagation::by_any_clock(lease));
        assert_eq!(by_lease(any_clocks), NodeAnswer::Lapsed);
    }

    #[test]
    fn an_entry_without_a_cursor_is_waited_for_until_the_bound_whatever_its_lease() {
        let mut former = found(4, 10 * BOUND);
        former.report.applied = None;
        former.report.lease = BOUND / 10;
        let waiting = answer(&awaited(), former.clone(), RETURNED);
        assert!(matches!(waiting, NodeAnswer::Waiting { at_most } if at_most >= BOUND));
        let lapsed = answer(&awaited(), former.clone(), RETURNED + 2 * BOUND);
        assert_eq!(lapsed, NodeAnswer::Lapsed);

        // Nodes with a longer bound followed the replaced history.
        former.report.lease = 4 * BOUND + NodeReport::ALLOWANCE;
        let waiting = answer(&awaited(), former.clone(), RETURNED + 4 * BOUND);
        assert!(matches!(waiting, NodeAnswer::Waiting { .. }));
        let lapsed = answer(&awaited(), former.clone(), RETURNED + 5 * BOUND);
        assert_eq!(lapsed, NodeAnswer::Lapsed);
        let asked = judge(&awaited(), &observer(), Some(&[former]), RETURNED);
        let former: Vec<_> = asked.nodes().iter().map(|node| node.is_former).collect();
        assert_eq!(former, [true, false]);
    }

    #[test]
    fn the_observer_itself_is_listed_once_and_has_the_change() {
        let own = NodeReport {
            node: OWN,
            ..report(EPOCH, 1)
        };
        let silent = Duration::ZERO;
        for listed in [
            vec![],
            vec![ObservedReport {
                report: own,
                silent,
            }],
        ] {
            let asked = judge(&awaited(), &observer(), Some(&listed), RETURNED);
            assert!(asked.is_complete());
            assert_eq!(asked.applied().count(), 1);
        }
    }

    #[test]
    fn only_the_clock_of_a_node_that_was_seen_to_report_again_counts() {
        let at = Duration::from_secs;
        let said = |second| Timestamp::from_unix_seconds(second).unwrap();
        let mut sightings = Sightings::default();
        let see = |sightings: &mut Sightings, beat, clock, answered| {
            let report = NodeReport {
                beat,
                clock: said(clock),
                ..report(EPOCH, 4)
            };
            sightings.see(vec![report], (at(answered), at(answered)));
        };
        let clocks = |sightings: &Sightings, own, now| {
            let clocks = sightings.clocks(own, at(now), at(180));
            clocks.collect::<Vec<_>>()
        };
        see(&mut sightings, 1, 1_000, 10);
        assert_eq!(
            clocks(&sightings, None, 10),
            [],
            "the node may have stopped long ago"
        );
        see(&mut sightings, 1, 1_000, 70);
        assert_eq!(clocks(&sightings, None, 70), []);
        see(&mut sightings, 2, 1_120, 130);
        let counts = [(said(1_120), at(130))];
        assert_eq!(clocks(&sightings, None, 130), counts);
        see(&mut sightings, 2, 1_120, 310);
        assert_eq!(
            clocks(&sightings, None, 310),
            counts,
            "exactly at the limit"
        );
        assert_eq!(clocks(&sightings, None, 311), [], "past the limit");
        see(&mut sightings, 3, 1_300, 401);
        assert_eq!(
            clocks(&sightings, None, 401),
            [],
            "the report may be as old as the previous request"
        );
        let node = Some(NodeId::from_u128(1));
        see(&mut sightings, 4, 1_400, 491);
        assert_eq!(clocks(&sightings, None, 491).len(), 1);
        assert_eq!(clocks(&sightings, node, 491), [], "this node itself");
    }

    /// The reports of a node wait in their commits while a synchronous standby is gone. Then they become visible
    /// together.
    #[test]
    fn the_clock_in_a_report_that_waited_does_not_count() {
        let at = Duration::from_secs;
        let mut sightings = Sightings::default();
        let mut counts = |beat, clock, answered| {
            let report = NodeReport {
                beat,
                clock: Timestamp::UNIX_EPOCH.saturating_add(at(clock)),
                ..report(EPOCH, 7)
            };
            sightings.see(vec![report], (at(answered), at(answered)));
            sightings.clocks(None, at(answered), at(180)).count()
        };
        assert_eq!(counts(1, 1_000, 0), 0, "its age is unknown");
        for asked in [30, 90, 150, 210, 270, 330] {
            assert_eq!(counts(1, 1_000, asked), 0);
        }
        assert_eq!(counts(2, 1_010, 400), 0, "it is 390 s old");
        assert_eq!(counts(3, 1_011, 401), 0, "it is 390 s old too");
        assert_eq!(counts(4, 1_390, 460), 1, "it is 70 s old");
        assert_eq!(counts(5, 1_490, 490), 1);
        assert_eq!(counts(6, 1_700, 500), 1, "it is ahead");
        assert_eq!(counts(7, 1_530, 530), 0, "it is behind that reading");
        // The clock of the node is slow. In all its readings fall behind by 150 s, and go on counting.
        let mut counts = |minute: u64| {
            let report = NodeReport {
                beat: minute,
                clock: Timestamp::UNIX_EPOCH.saturating_add(Duration::from_millis(59_500 * minute)),
                ..report(EPOCH, 7)
            };
            let now = at(1_000_000 + 60 * minute);
            let other = NodeReport {
                node: NodeId::from_u128(99),
                ..report
            };
            sightings.see(vec![other], (now, now));
            sightings.clocks(None, now, at(180)).count()
        };
        assert_eq!(counts(1), 0);
        assert_eq!((2..300).map(&mut counts).sum::<usize>(), 298);
    }

    #[test]
    fn silence_lasts_from_the_answer_that_showed_a_beat_to_the_next_request() {
        let at = Duration::from_secs;
        let mut sightings = Sightings::default();
        let mut see = |beat, asked, answered| {
            let report = NodeReport {
                beat,
                ..report(EPOCH, 4)
            };
            sightings.see(vec![report], (at(asked), at(answered)))[0].silent
        };
        assert_eq!(see(1, 10, 12), at(0));
        assert_eq!(
            see(1, 20, 25),
            at(8),
            "from the first answer to the second request"
        );
        assert_eq!(see(2, 30, 31), at(0));
        assert_eq!(see(2, 40, 41), at(9));
        // A beat number that decreases counts as a new beat. It decreases if the node's entry was removed, or
        // if the registry was restored from a backup.
        assert_eq!(see(1, 50, 51), at(0));
        assert!(sightings.see(Vec::new(), (at(60), at(61))).is_empty());
    }
}
