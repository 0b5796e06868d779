//! Clauses of [`NodeRegistry`], which keeps the latest report of each node.

use std::time::Duration;

use super::ClauseViolation;
use super::fixtures::{ClauseResult, PolledFuture, STEPS, text};
use keyward::Timestamp;
use keyward::store::{
    CommitTag, Cursor, Epoch, NodeId, NodeProcess, NodeRegistry, NodeReport, Revision, StoreError,
};

/// 300 nodes. A registry with a fixed capacity, such as 256 nodes, drops some of them and fails the check.
const MANY: u128 = 300;

/// A registry under test, with the name of the clause that a failure reports.
struct RegistryFixture<R> {
    registry: R,
    clause: &'static str,
}

impl<R: NodeRegistry> RegistryFixture<R> {
    fn new(make: &impl Fn() -> R, clause: &'static str) -> Self {
        let registry = make();
        Self { registry, clause }
    }

    fn fail(&self, detail: String) -> ClauseViolation {
        let clause = self.clause;
        ClauseViolation { clause, detail }
    }

    fn failed(&self, error: &StoreError) -> ClauseViolation {
        self.fail(format!("a call failed: {error}"))
    }

    async fn report(&self, report: &NodeReport) -> Result<bool, ClauseViolation> {
        let reported = self.registry.report(report.clone()).await;
        reported.map_err(|error| self.failed(&error))
    }

    /// Sends a report, and fails the check if the registry does not accept it.
    async fn accept(&self, report: &NodeReport) -> ClauseResult {
        let accepted = self.report(report).await?;
        let detail = format!("{report:?} was not accepted");
        accepted.then_some(()).ok_or_else(|| self.fail(detail))
    }

    async fn forget(&self, report: &NodeReport, upto: u64) -> ClauseResult {
        let forgotten = self.registry.forget(report.node, upto).await;
        forgotten.map_err(|error| self.failed(&error))
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, ClauseViolation> {
        let mut nodes = match self.registry.nodes().await {
            Ok(nodes) => nodes,
            Err(error) => return Err(self.failed(&error)),
        };
        nodes.sort_by_key(|report| report.node);
        Ok(nodes)
    }

    /// Checks that the registry contains exactly the reports in `expected`, in the order of their node ids.
    async fn holds(&self, what: &str, expected: &[&NodeReport]) -> ClauseResult {
        let nodes = self.nodes().await?;
        if nodes.iter().eq(expected.iter().copied()) {
            return Ok(());
        }
        Err(self.fail(format!("{what}: found {nodes:?}, expected {expected:?}")))
    }
}

fn cursor(revision: u64) -> Cursor {
    Cursor {
        epoch: Epoch(7 << 100),
        revision: Revision(revision),
        tag: CommitTag(u128::MAX - u128::from(revision)),
    }
}

fn process() -> NodeProcess {
    NodeProcess {
        version: "0.1.0 \u{e9}\n\0".to_owned(),
        tables: u32::MAX,
        started: Timestamp::clamped(1_800_000_000_000_003),
        bound: Duration::from_nanos(10_000_000_001),
        pepper: text("new"),
        peppers: vec![text("new"), text("old")],
    }
}

/// Returns a report of the node with the id `n`. The argument `beat` is the sequence number of the report.
fn sample_report(n: u128, beat: u64) -> NodeReport {
    NodeReport {
        node: NodeId::from_u128(n),
        label: Some(text("a node")),
        applied: Some(cursor(beat)),
        lease: Duration::from_secs(70),
        clock: Timestamp::clamped(1_800_000_000_000_001),
        beat,
        process: Some(process()),
    }
}

/// Every read that begins after a report returned contains the report. A fresh registry is empty.
pub async fn a_report_is_in_every_later_read<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "a_report_is_in_every_later_read");
    fixture.holds("before any report", &[]).await?;
    for beat in 1..=3 {
        fixture.accept(&sample_report(1, beat)).await?;
        fixture
            .holds("after a report", &[&sample_report(1, beat)])
            .await?;
    }
    Ok(())
}

/// The registry returns every field of a report as it was written, including a long label and a lease with a
/// fraction of a second.
pub async fn reports_come_back_as_they_were_written<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "reports_come_back_as_they_were_written");
    let long = "\u{e9}".repeat(64);
    let reports = [
        NodeReport {
            label: None,
            applied: None,
            process: None,
            ..sample_report(0, 0)
        },
        NodeReport {
            label: Some(text(long.as_str())),
            lease: Duration::from_micros(12_345_678_901),
            ..sample_report(1 << 64, u64::MAX >> 1)
        },
        NodeReport {
            applied: Some(Cursor::default()),
            lease: Duration::ZERO,
            clock: Timestamp::MAX,
            ..sample_report(u128::MAX, 1)
        },
    ];
    for report in &reports {
        fixture.accept(report).await?;
    }
    let expected: Vec<_> = reports.iter().collect();
    fixture.holds("as written", &expected).await
}

/// A registry keeps only the latest report of each node. A field that the latest report leaves empty stays
/// empty.
pub async fn a_later_report_replaces_an_earlier_one<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "a_later_report_replaces_an_earlier_one");
    fixture.accept(&sample_report(1, 1)).await?;
    let later = NodeReport {
        label: None,
        applied: None,
        lease: Duration::from_secs(1),
        process: None,
        ..sample_report(1, 9)
    };
    fixture.accept(&later).await?;
    fixture
        .holds("after two reports of one node", &[&later])
        .await
}

/// A report replaces the current one only if its beat is higher. A report with an equal or lower beat changes
/// nothing.
pub async fn an_older_report_changes_nothing<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "an_older_report_changes_nothing");
    let stands = sample_report(1, 5);
    fixture.accept(&stands).await?;
    for beat in [4, 5, 1] {
        let other = NodeReport {
            applied: Some(cursor(99)),
            ..sample_report(1, beat)
        };
        fixture.report(&other).await?;
        let what = format!("after beat {beat} followed beat 5");
        fixture.holds(&what, &[&stands]).await?;
    }
    Ok(())
}

/// `report` returns whether the registry accepted the report. Two nodes that share an id by mistake learn
/// this from refused reports.
pub async fn a_registry_returns_whether_it_accepted_a_report<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "a_registry_returns_whether_it_accepted_a_report");
    for (beat, stands) in [(1, true), (1, false), (3, true), (2, false), (4, true)] {
        let accepted = fixture.report(&sample_report(1, beat)).await?;
        if accepted != stands {
            return Err(fixture.fail(format!(
                "beat {beat}: returned {accepted}, expected {stands}"
            )));
        }
    }
    Ok(())
}

/// Nodes are identified by their ids alone. Several nodes may have the same label.
pub async fn nodes_are_identified_by_their_ids<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "nodes_are_identified_by_their_ids");
    let reports = [
        sample_report(1, 9),
        sample_report(2, 1),
        sample_report(1 + (1 << 64), 4),
    ];
    for report in &reports {
        fixture.accept(report).await?;
    }
    let [one, two, three] = &reports;
    fixture
        .holds("three nodes with one label", &[one, two, three])
        .await
}

/// A node stays in the registry until `forget` removes it, even if it is silent while many other nodes
/// report.
pub async fn no_node_vanishes_by_itself<R: NodeRegistry>(make: &impl Fn() -> R) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "no_node_vanishes_by_itself");
    let mut reports: Vec<_> = (0..MANY).map(|n| sample_report(n, 1)).collect();
    for report in &reports {
        fixture.accept(report).await?;
    }
    for beat in 2..20 {
        reports[1] = sample_report(1, beat);
        fixture.accept(&reports[1]).await?;
    }
    let expected: Vec<_> = reports.iter().collect();
    fixture.holds("after many nodes reported", &expected).await
}

/// `forget` removes the node with the given id and no other node. If the node is unknown, `forget` does
/// nothing.
pub async fn forgetting_takes_one_node_away<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "forgetting_takes_one_node_away");
    let (one, two) = (sample_report(1, 1), sample_report(2, 1));
    for report in [&one, &two] {
        fixture.accept(report).await?;
    }
    fixture.forget(&one, 1).await?;
    fixture
        .holds("after one of two was forgotten", &[&two])
        .await?;
    fixture.forget(&one, 1).await?;
    fixture.forget(&sample_report(3, 1), u64::MAX).await?;
    fixture
        .holds("after an unknown node was forgotten", &[&two])
        .await?;
    fixture.forget(&two, u64::MAX).await?;
    fixture.holds("after both were forgotten", &[]).await
}

/// `forget` keeps a node whose latest beat is above `upto`, because such a node may still run.
pub async fn forgetting_spares_a_node_that_reported_since<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "forgetting_spares_a_node_that_reported_since");
    let since = sample_report(1, 6);
    fixture.accept(&sample_report(1, 5)).await?;
    fixture.accept(&since).await?;
    fixture.forget(&since, 5).await?;
    fixture
        .holds(
            "after forgetting up to beat 5 of a node at beat 6",
            &[&since],
        )
        .await
}

/// After `forget`, the registry accepts a new report of the node, even with a lower beat than before.
pub async fn a_forgotten_node_may_report_again<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    let fixture = RegistryFixture::new(make, "a_forgotten_node_may_report_again");
    fixture.accept(&sample_report(1, 5)).await?;
    fixture.forget(&sample_report(1, 5), 5).await?;
    let again = sample_report(1, 3);
    fixture.accept(&again).await?;
    fixture.holds("after it reported again", &[&again]).await
}

/// A report is stored completely or not at all, even if the caller drops its future at any point. The
/// registry accepts later reports afterwards.
pub async fn a_dropped_report_is_all_or_nothing<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    for steps in 0..STEPS {
        let fixture = RegistryFixture::new(make, "a_dropped_report_is_all_or_nothing");
        let before = sample_report(1, 1);
        fixture.accept(&before).await?;
        let dropped = NodeReport {
            label: None,
            applied: None,
            lease: Duration::from_secs(1),
            ..sample_report(1, 2)
        };
        {
            let mut running = PolledFuture::new(fixture.registry.report(dropped.clone()));
            running.steps(steps).await;
        }
        let nodes = fixture.nodes().await?;
        if nodes != [before.clone()] && nodes != [dropped.clone()] {
            return Err(fixture.fail(format!(
                "found {nodes:?} after a report was dropped, which is neither {before:?} nor {dropped:?}"
            )));
        }
        let after = sample_report(1, 3);
        fixture.accept(&after).await?;
        fixture.holds("after the next report", &[&after]).await?;
    }
    Ok(())
}

/// If two reports of one node run concurrently, the report with the higher beat remains, whichever report
/// completes first.
pub async fn concurrent_reports_end_at_the_latest<R: NodeRegistry>(
    make: &impl Fn() -> R,
) -> ClauseResult {
    for steps in 0..STEPS {
        let fixture = RegistryFixture::new(make, "concurrent_reports_end_at_the_latest");
        fixture.accept(&sample_report(1, 1)).await?;
        let mut older = PolledFuture::new(fixture.registry.report(sample_report(1, 2)));
        older.steps(steps).await;
        let mut newer = PolledFuture::new(fixture.registry.report(sample_report(1, 3)));
        for _ in 0..STEPS {
            // Poll the newer report only once per round: it may have to wait until the older report
            // completes.
            newer.steps(1).await;
        }
        let older = newer.let_pass(older.finish()).await;
        for reported in [older, newer.finish().await] {
            reported.map_err(|error| fixture.failed(&error))?;
        }
        fixture
            .holds("after two concurrent reports", &[&sample_report(1, 3)])
            .await?;
    }
    Ok(())
}
