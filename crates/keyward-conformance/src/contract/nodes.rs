//! Clauses of [`NodeRegistry`].

use std::time::Duration;

use super::Violation;
use super::fixtures::{Checked, Running, STEPS, text};
use keyward::Timestamp;
use keyward::store::{
    CommitTag, Cursor, Epoch, NodeId, NodeRegistry, NodeReport, Revision, StoreError,
};

/// 300 nodes: more than a registry that drops the oldest nodes would keep.
const MANY: u128 = 300;

/// A registry under test.
struct Roll<R> {
    registry: R,
    clause: &'static str,
}

impl<R: NodeRegistry> Roll<R> {
    fn new(make: &impl Fn() -> R, clause: &'static str) -> Self {
        let registry = make();
        Self { registry, clause }
    }

    fn fail(&self, detail: String) -> Violation {
        let clause = self.clause;
        Violation { clause, detail }
    }

    fn failed(&self, error: &StoreError) -> Violation {
        self.fail(format!("a call failed: {error}"))
    }

    async fn report(&self, report: &NodeReport) -> Result<bool, Violation> {
        let reported = self.registry.report(report.clone()).await;
        reported.map_err(|error| self.failed(&error))
    }

    /// Sends a report that must be accepted.
    async fn note(&self, report: &NodeReport) -> Checked {
        let stands = self.report(report).await?;
        let detail = format!("{report:?} was said not to stand");
        stands.then_some(()).ok_or_else(|| self.fail(detail))
    }

    async fn forget(&self, report: &NodeReport, upto: u64) -> Checked {
        let forgotten = self.registry.forget(report.node, upto).await;
        forgotten.map_err(|error| self.failed(&error))
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, Violation> {
        let mut nodes = match self.registry.nodes().await {
            Ok(nodes) => nodes,
            Err(error) => return Err(self.failed(&error)),
        };
        nodes.sort_by_key(|report| report.node);
        Ok(nodes)
    }

    /// Checks that the registry contains exactly `expected`, which are ordered by id.
    async fn holds(&self, what: &str, expected: &[&NodeReport]) -> Checked {
        let nodes = self.nodes().await?;
        if nodes.iter().eq(expected.iter().copied()) {
            return Ok(());
        }
        Err(self.fail(format!("{what}: found {nodes:?}, should be {expected:?}")))
    }
}

fn cursor(revision: u64) -> Cursor {
    Cursor {
        epoch: Epoch(7 << 100),
        revision: Revision(revision),
        tag: CommitTag(u128::MAX - u128::from(revision)),
    }
}

/// Returns the report of node `n` with this beat.
fn said(n: u128, beat: u64) -> NodeReport {
    NodeReport {
        node: NodeId::from_u128(n),
        label: Some(text("a node")),
        applied: Some(cursor(beat)),
        lease: Duration::from_secs(70),
        clock: Timestamp::clamped(1_800_000_000_000_001),
        beat,
    }
}

/// Every read that begins after a report returned contains the report. A fresh registry is empty.
pub async fn a_report_is_in_every_later_read<R: NodeRegistry>(make: &impl Fn() -> R) -> Checked {
    let roll = Roll::new(make, "a_report_is_in_every_later_read");
    roll.holds("before any report", &[]).await?;
    for beat in 1..=3 {
        roll.note(&said(1, beat)).await?;
        roll.holds("after a report", &[&said(1, beat)]).await?;
    }
    Ok(())
}

/// Every field of a report comes back as written, including a long label and a lease of odd length.
pub async fn reports_come_back_as_they_were_written<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> Checked {
    let roll = Roll::new(make, "reports_come_back_as_they_were_written");
    let long = "\u{e9}".repeat(64);
    let reports = [
        NodeReport {
            label: None,
            applied: None,
            ..said(0, 0)
        },
        NodeReport {
            label: Some(text(long.as_str())),
            lease: Duration::from_micros(12_345_678_901),
            ..said(1 << 64, u64::MAX >> 1)
        },
        NodeReport {
            applied: Some(Cursor::default()),
            lease: Duration::ZERO,
            clock: Timestamp::MAX,
            ..said(u128::MAX, 1)
        },
    ];
    for report in &reports {
        roll.note(report).await?;
    }
    let expected: Vec<_> = reports.iter().collect();
    roll.holds("as written", &expected).await
}

/// A registry has one entry per node, with its latest report and nothing from an earlier one.
pub async fn a_later_report_replaces_an_earlier_one<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> Checked {
    let roll = Roll::new(make, "a_later_report_replaces_an_earlier_one");
    roll.note(&said(1, 1)).await?;
    let later = NodeReport {
        label: None,
        applied: None,
        lease: Duration::from_secs(1),
        ..said(1, 9)
    };
    roll.note(&later).await?;
    roll.holds("after two reports of one node", &[&later]).await
}

/// A report with an older beat, or with the same beat, does not replace the current report.
pub async fn an_older_report_changes_nothing<R: NodeRegistry>(make: &impl Fn() -> R) -> Checked {
    let roll = Roll::new(make, "an_older_report_changes_nothing");
    let stands = said(1, 5);
    roll.note(&stands).await?;
    for beat in [4, 5, 1] {
        let other = NodeReport {
            applied: Some(cursor(99)),
            ..said(1, beat)
        };
        roll.report(&other).await?;
        let what = format!("after beat {beat} came behind beat 5");
        roll.holds(&what, &[&stands]).await?;
    }
    Ok(())
}

/// A registry returns whether it accepted a report. Two nodes with the same id notice each other by
/// a refused report.
pub async fn a_registry_returns_whether_it_accepted_a_report<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> Checked {
    let roll = Roll::new(make, "a_registry_returns_whether_it_accepted_a_report");
    for (beat, stands) in [(1, true), (1, false), (3, true), (2, false), (4, true)] {
        let accepted = roll.report(&said(1, beat)).await?;
        if accepted != stands {
            return Err(roll.fail(format!(
                "beat {beat}: returned {accepted}, should be {stands}"
            )));
        }
    }
    Ok(())
}

/// Nodes are identified by their ids alone. Labels do not count.
pub async fn nodes_are_identified_by_their_ids<R: NodeRegistry>(make: &impl Fn() -> R) -> Checked {
    let roll = Roll::new(make, "nodes_are_identified_by_their_ids");
    let reports = [said(1, 9), said(2, 1), said(1 + (1 << 64), 4)];
    for report in &reports {
        roll.note(report).await?;
    }
    let [one, two, three] = &reports;
    roll.holds("three nodes with one label", &[one, two, three])
        .await
}

/// A silent node keeps its entry, however many others report. Only forgetting removes it.
pub async fn no_node_vanishes_by_itself<R: NodeRegistry>(make: &impl Fn() -> R) -> Checked {
    let roll = Roll::new(make, "no_node_vanishes_by_itself");
    let mut reports: Vec<_> = (0..MANY).map(|n| said(n, 1)).collect();
    for report in &reports {
        roll.note(report).await?;
    }
    for beat in 2..20 {
        reports[1] = said(1, beat);
        roll.note(&reports[1]).await?;
    }
    let expected: Vec<_> = reports.iter().collect();
    roll.holds("after many nodes reported", &expected).await
}

/// Forgetting removes the named node and no other. Forgetting an unknown node has no effect.
pub async fn forgetting_takes_one_node_away<R: NodeRegistry>(make: &impl Fn() -> R) -> Checked {
    let roll = Roll::new(make, "forgetting_takes_one_node_away");
    let (one, two) = (said(1, 1), said(2, 1));
    for report in [&one, &two] {
        roll.note(report).await?;
    }
    roll.forget(&one, 1).await?;
    roll.holds("after one of two was forgotten", &[&two])
        .await?;
    roll.forget(&one, 1).await?;
    roll.forget(&said(3, 1), u64::MAX).await?;
    roll.holds("after nobody was forgotten", &[&two]).await?;
    roll.forget(&two, u64::MAX).await?;
    roll.holds("after both were forgotten", &[]).await
}

/// Forgetting up to a beat spares a node that has reported with a later beat: the node may be
/// fresh.
pub async fn forgetting_spares_a_node_that_reported_since<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> Checked {
    let roll = Roll::new(make, "forgetting_spares_a_node_that_reported_since");
    let since = said(1, 6);
    roll.note(&said(1, 5)).await?;
    roll.note(&since).await?;
    roll.forget(&since, 5).await?;
    roll.holds("after beat 5 was forgotten behind beat 6", &[&since])
        .await
}

/// A node that was forgotten may report again, with any beat.
pub async fn a_forgotten_node_may_report_again<R: NodeRegistry>(make: &impl Fn() -> R) -> Checked {
    let roll = Roll::new(make, "a_forgotten_node_may_report_again");
    roll.note(&said(1, 5)).await?;
    roll.forget(&said(1, 5), 5).await?;
    let again = said(1, 3);
    roll.note(&again).await?;
    roll.holds("after it came back", &[&again]).await
}

/// A report whose future is dropped at any point is stored completely or not at all. A dropped
/// report does not block later reports.
pub async fn a_dropped_report_is_all_or_nothing<R: NodeRegistry>(make: &impl Fn() -> R) -> Checked {
    for steps in 0..STEPS {
        let roll = Roll::new(make, "a_dropped_report_is_all_or_nothing");
        let before = said(1, 1);
        roll.note(&before).await?;
        let dropped = NodeReport {
            label: None,
            applied: None,
            lease: Duration::from_secs(1),
            ..said(1, 2)
        };
        {
            let mut running = Running::new(roll.registry.report(dropped.clone()));
            running.steps(steps).await;
        }
        let nodes = roll.nodes().await?;
        if nodes != [before.clone()] && nodes != [dropped.clone()] {
            return Err(roll.fail(format!(
                "found {nodes:?} after a report was dropped, which is neither {before:?} nor {dropped:?}"
            )));
        }
        let after = said(1, 3);
        roll.note(&after).await?;
        roll.holds("after the next report", &[&after]).await?;
    }
    Ok(())
}

/// If two reports of one node run concurrently, the later one remains, in either order of
/// completion.
pub async fn concurrent_reports_end_at_the_latest<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> Checked {
    for steps in 0..STEPS {
        let roll = Roll::new(make, "concurrent_reports_end_at_the_latest");
        roll.note(&said(1, 1)).await?;
        let mut older = Running::new(roll.registry.report(said(1, 2)));
        older.steps(steps).await;
        let mut newer = Running::new(roll.registry.report(said(1, 3)));
        for _ in 0..STEPS {
            // Polls once, because this report may be waiting for the other report.
            newer.steps(1).await;
        }
        let older = newer.let_pass(older.finish()).await;
        for reported in [older, newer.finish().await] {
            reported.map_err(|error| roll.failed(&error))?;
        }
        roll.holds("after two reports at once", &[&said(1, 3)])
            .await?;
    }
    Ok(())
}
