//! The nodes, which are registered processes that verify keys, and their confirmations of a change.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use keyward::clocks::SystemClock;
use keyward::node::{Confirmations, NodeAnswer, NodeConfirmation, NodeLabel};
use keyward::pepper::PepperId;
use keyward::store::{ChangesError, Cursor, KeyStore, NodeRegistry, NodeReport, StoreErrorKind};
use keyward::{Clock, Receipt, TenantId, Timestamp, WithSources};
use serde_json::{Value, json};

use crate::args::{CommonArgs, LiveNodesArgs, UntilConfirmedArgs};
use crate::desk::CliContext;
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::{Output, cell};
use crate::store::{self, Expected, Store};

/// 250 ms between two reads of the registry, the default poll interval of a node.
const ASK_EVERY: Duration = Duration::from_millis(250);

const HEAD: [&str; 10] = [
    "NODE",
    "LABEL",
    "APPLIED",
    "BEHIND",
    "SILENT",
    "LEASE",
    "ACCEPTS UNTIL, BY ITS CLOCK",
    "VERSION",
    "STARTED, BY ITS CLOCK",
    "PEPPERS, CURRENT FIRST",
];

/// Five minutes: the difference between clocks that nodes allow by default. A node's report carries the node's own
/// clock, which may be behind this one.
const CLOCK_ALLOWANCE: Duration = Duration::from_secs(5 * 60);

/// Returns whether a node may still accept keys without another report.
pub(super) fn is_live(report: &NodeReport, now: Timestamp) -> bool {
    let until = report.clock.saturating_add(report.lease);
    !report.is_former() && until.saturating_add(CLOCK_ALLOWANCE) >= now
}

/// Refuses a step after which live nodes refuse keys, unless the command line confirms it. `reason` returns the
/// problem of a live node, as the end of its line, or `None` if the node survives the step.
pub(super) async fn refuse_live(
    store: &Store,
    common: &CommonArgs,
    confirmed: LiveNodesArgs,
    step: &str,
    reason: impl Fn(&NodeReport) -> Option<String>,
) -> CliResult<()> {
    if confirmed.yes {
        return Ok(());
    }
    let now = SystemClock.now();
    let nodes = store.registry().nodes().await?;
    let line = |report: &NodeReport| {
        let NodeReport {
            node, label, clock, ..
        } = report;
        let label = label.as_ref().map_or("unnamed", NodeLabel::as_str);
        let said = format!("\n  {node} {label}, last report {clock}");
        Some(match reason(report)? {
            reason if reason.is_empty() => said,
            reason => format!("{said}, {reason}"),
        })
    };
    let live = nodes.iter().filter(|report| is_live(report, now));
    let lines: String = live.filter_map(line).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} has live nodes, {step}, repeat the command with --yes{lines}",
        common.store
    );
    Err(CliError::new(CliErrorKind::Refused, message))
}

/// Lists the registered nodes. Needs no pepper.
pub(crate) async fn list(common: &CommonArgs, output: &Output) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    let mut reports = store.registry().nodes().await?;
    let former = reports.iter().filter(|report| report.is_former());
    if let Some(lease) = former.map(|report| report.lease).max() {
        output.note(&former_line(lease));
    }
    reports.retain(|report| !report.is_former());
    let head = store.keys().scan(None, NonZeroUsize::MIN).await?.head;
    let now = SystemClock.now();
    if reports.is_empty() {
        output.note(
            "no process has registered as a node, so only the staleness bound limits how late a process acts on a \
             change",
        );
    }
    let mut nodes = Vec::new();
    for report in &reports {
        nodes.push((
            report,
            lacks_commits_of(&*store.keys(), report, head).await?,
        ));
    }
    if output.json {
        return nodes.into_iter().try_for_each(|(report, went_back)| {
            let silent = now.since(report.clock);
            let until = report.clock.saturating_add(report.lease);
            let process = report.process.as_ref();
            output.document(&json!({
                "node": report.node.to_string(),
                "label": report.label,
                "applied": applied(report, head),
                "head": head.revision.0,
                "store_went_back": went_back,
                "silent_seconds": silent.as_secs(),
                "lease_seconds": report.lease.as_secs(),
                "accepts_until": until,
                "lapsed": !is_live(report, now),
                "version": process.map(|process| &process.version),
                "tables": process.map(|process| process.tables),
                "started": process.map(|process| process.started),
                "bound_seconds": report.bound().as_secs(),
                "pepper": process.map(|process| &process.pepper),
                "peppers": process.map(|process| &process.peppers),
            }))
        });
    }
    for (report, _) in nodes.iter().filter(|(_, went_back)| *went_back) {
        output.note(&went_back_line(report));
    }
    let row = |(report, went_back): (&NodeReport, bool)| {
        let applied = applied(report, head);
        let behind = applied.filter(|_| !went_back);
        let until = report.clock.saturating_add(report.lease);
        let process = report.process.as_ref();
        vec![
            report.node.to_string(),
            cell(report.label.as_ref()),
            cell(applied),
            cell(behind.map(|behind| head.revision.0.saturating_sub(behind))),
            format!("{} s", now.since(report.clock).as_secs()),
            format!("{} s", report.lease.as_secs()),
            match is_live(report, now) {
                true => until.to_string(),
                false => format!("{until} (lapsed)"),
            },
            cell(process.map(|process| &process.version)),
            cell(process.map(|process| process.started)),
            cell(process.map(|process| {
                let peppers = process.peppers.iter().map(PepperId::as_str);
                peppers.collect::<Vec<_>>().join(", ")
            })),
        ]
    };
    let rows: Vec<_> = nodes.into_iter().map(row).collect();
    match rows.is_empty() {
        true => Ok(()),
        false => output.table(&HEAD, &rows),
    }
}

/// Returns whether the store went back in time: it is in the epoch of the node's report, and lacks a commit that the
/// node has applied. `head` must be read after the report.
async fn lacks_commits_of(
    store: &dyn KeyStore,
    report: &NodeReport,
    head: Cursor,
) -> CliResult<bool> {
    let Some(applied) = report.applied.filter(|own| own.epoch == head.epoch) else {
        return Ok(false);
    };
    if applied.revision > head.revision {
        return Ok(true);
    }
    match store.changes(applied, NonZeroUsize::MIN).await {
        Err(ChangesError::Diverged) => Ok(true),
        Err(ChangesError::Store(error)) => Err(error.into()),
        Ok(_) | Err(ChangesError::Compacted) => Ok(false),
    }
}

fn went_back_line(report: &NodeReport) -> String {
    let node =
        (report.label.as_ref()).map_or_else(|| report.node.to_string(), |label| label.to_string());
    format!(
        "the store lacks commits that node {node} has: it went back in time; put the right store back, or run \
         `keyctl start-new-epoch`, and then `keyctl recover` with the trail of the lost store"
    )
}

/// Returns a sentence for each node that has applied commits which the store lacks.
pub(super) async fn went_back(store: &Store) -> CliResult<Vec<String>> {
    let reports = store.registry().nodes().await?;
    let keys = store.keys();
    let head = keys.scan(None, NonZeroUsize::MIN).await?.head;
    let mut lines = Vec::new();
    for report in &reports {
        if lacks_commits_of(&*keys, report, head).await? {
            lines.push(went_back_line(report));
        }
    }
    Ok(lines)
}

/// Refuses to write to a store that went back in time, as its nodes do. A registry that cannot be read stops no
/// command.
pub(super) async fn refuse_lost_commits(store: &Store) -> CliResult<()> {
    let lines = went_back(store).await.unwrap_or_default();
    match lines.into_iter().next() {
        Some(line) => Err(CliError::new(CliErrorKind::Refused, line)),
        None => Ok(()),
    }
}

/// Returns the revision that a node has applied. `None` if the node has not read the store, or has read another
/// history.
fn applied(report: &NodeReport, head: Cursor) -> Option<u64> {
    let applied = report.applied.filter(|applied| applied.epoch == head.epoch);
    applied.map(|applied| applied.revision.0)
}

/// Returns a line about the nodes of an earlier history, or of a lost registry. No report states when it ended.
fn former_line(lease: Duration) -> String {
    match lease.as_secs() {
        0 => "the registry was created after the store: a node that is not listed may accept keys until its staleness \
              bound has passed since its last report"
            .to_owned(),
        lease => format!(
            "the store has a new history: nodes that registered before may accept keys for at most {lease} s after \
             its start"
        ),
    }
}

/// Returns the time from which every process acts on a change, as the end of a sentence.
pub(super) async fn time_limit(context: &CliContext, receipt: &Receipt) -> String {
    let by = receipt.no_later_than();
    match context.backend.registry().nodes().await {
        Ok(nodes) if nodes.iter().all(NodeReport::is_former) => format!(
            "no later than {by}, if it has the policy of the store (no process has registered as a node)"
        ),
        Ok(_) => format!("no later than {by}"),
        Err(error) => format!(
            "at a time that is not known, because the node registry cannot be read: {}",
            WithSources(&error)
        ),
    }
}

/// Prints the result of a change. With `--until-confirmed`, waits for the nodes and lists them too.
pub(crate) async fn done(
    context: &CliContext,
    wait: &UntilConfirmedArgs,
    receipt: &Receipt,
    (message, mut answer): (&str, Value),
    output: &Output,
) -> CliResult<()> {
    if !wait.until_confirmed {
        if output.json && context.backend.registry().nodes().await.is_err() {
            answer["no_later_than"] = Value::Null;
        }
        return output.done(message, &answer);
    }
    output.note(message);
    let confirmations = confirmed(context, receipt, output).await.map_err(|error| {
        let unconfirmed = "the change is made, but not confirmed";
        match output.json {
            true => error.after(format!("{message}; {unconfirmed}")),
            false => error.after(unconfirmed),
        }
    })?;
    answer["confirmed_at"] = json!(context.keys.now());
    answer["nodes"] = confirmations.nodes().iter().map(document).collect();
    if output.json {
        return output.result(&answer);
    }
    output.note("confirmed: no registered node can act on the earlier state");
    let row = |node: &NodeConfirmation| {
        let label = cell(node.label.as_ref());
        vec![node.node.to_string(), label, answer_of(node)]
    };
    let rows: Vec<_> = confirmations.nodes().iter().map(row).collect();
    match rows.is_empty() {
        true => Ok(()),
        false => output.table(&["NODE", "LABEL", "ANSWER"], &rows),
    }
}

fn document(node: &NodeConfirmation) -> Value {
    json!({
        "node": node.node.to_string(),
        "label": node.label,
        "answer": answer_of(node),
    })
}

fn answer_of(node: &NodeConfirmation) -> String {
    match node.answer {
        NodeAnswer::Applied => "applied".to_owned(),
        NodeAnswer::Lapsed => "lapsed".to_owned(),
        NodeAnswer::Waiting { at_most } => format!("waiting at most {} s", seconds(at_most)),
        _ => "unknown".to_owned(),
    }
}

/// Returns whole seconds, rounded up.
const fn seconds(time: Duration) -> u64 {
    time.as_secs() + (time.subsec_nanos() > 0) as u64
}

/// Waits until no node can act on the state before the change. Without a registered node, waits until the
/// staleness bound has passed: nothing is known about the processes then.
async fn confirmed(
    context: &CliContext,
    receipt: &Receipt,
    output: &Output,
) -> CliResult<Confirmations> {
    let mut line = output.progress_line();
    let (mut shown, mut failed) = (String::new(), String::new());
    // Every known node has stopped by then, unless it has applied the change. `None` until the registry answers.
    let mut latest = None;
    let unknown = receipt.decided_at().saturating_add(policy_lease(context)?);
    loop {
        match context.keys.confirmations(receipt).await {
            Ok(found) => {
                let now = context.keys.now();
                // Without an answer from the registry, the receipt has the longest bound that there may be.
                let bound_ends = receipt.no_later_than().min(unknown);
                if found.is_complete() && (now > bound_ends || !found.nodes().is_empty()) {
                    return Ok(found);
                }
                let (waits, at_most) = match found.nodes().is_empty() {
                    true => ("the staleness bound".to_owned(), bound_ends.since(now)),
                    false => (waits_for(&found), found.at_most()),
                };
                latest = latest.max(Some(now.saturating_add(at_most)));
                let seconds = seconds(at_most);
                line.step(
                    &format!("waits for {waits}, at most {seconds} s"),
                    waits != shown,
                );
                shown = waits;
            }
            // No later attempt succeeds before an operator acts.
            Err(error)
                if error.kind() != StoreErrorKind::Unavailable
                    || context.keys.freshness().diverged.is_some() =>
            {
                return Err(error.into());
            }
            Err(error) if context.keys.now() > latest.unwrap_or(unknown) => {
                return Err(CliError::from(error).about(
                    "the node registry cannot be read, and a node that it alone lists may act on the earlier state; \
                     list the nodes with `keyctl nodes` once it can be read",
                ));
            }
            Err(error) => {
                let cause = WithSources(&error).to_string();
                if cause != failed {
                    output.warning(&format!("cannot read the nodes, trying again: {cause}"));
                }
                failed = cause;
            }
        }
        SystemClock.sleep(ASK_EVERY).await;
    }
}

/// Returns the lease of a node that has the policy of the store, for a registry that has not answered yet.
fn policy_lease(context: &CliContext) -> CliResult<Duration> {
    let tenant = match context.tenant()? {
        Some(tenant) => tenant,
        // A tenant without a policy of its own has the default one.
        None => TenantId::new("default")?,
    };
    let policy = context.policies.of(&tenant);
    let classes = policy.spec().classes.keys();
    let bounds = classes.map(|class| policy.propagation(class).bound);
    let bound = bounds.max().unwrap_or_default();
    Ok(bound.saturating_add(NodeReport::ALLOWANCE))
}

fn waits_for(found: &Confirmations) -> String {
    let name = |node: &NodeConfirmation| match &node.label {
        Some(label) => label.to_string(),
        None => node.node.to_string(),
    };
    let mut waiting = BTreeMap::<_, usize>::new();
    for (node, _) in found.waiting() {
        *waiting.entry(name(node)).or_default() += 1;
    }
    let named = waiting.into_iter().map(|(name, nodes)| match nodes {
        1 => name,
        nodes => format!("{nodes} nodes named {name}"),
    });
    named.collect::<Vec<_>>().join(", ")
}
