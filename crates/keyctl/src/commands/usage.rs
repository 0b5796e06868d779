//! Commands that show the uses of keys that the processes of a service counted.

use keyward::KeyInfo;
use keyward::key::Status;
use keyward::store::KeyQuery;
use keyward::usage::{Completeness, Day, DayCounts, UseOutcome};
use serde_json::{Map, Value, json};

use super::look::{KeyWithLastUse, owner};
use crate::args::{UnusedArgs, UsageArgs};
use crate::desk::{CliContext, key_id};
use crate::failure::CliResult;
use crate::output::{Output, cell};

pub(crate) async fn of_key(
    context: &CliContext,
    args: &UsageArgs,
    output: &Output,
) -> CliResult<()> {
    let key = key_id(&args.key)?;
    let actor = context.actor_for(key).await?;
    let today = Day::of(context.keys.now());
    let from = today.saturating_sub(args.days - 1);
    let usage = context.keys.key_usage(&actor, key, from, today).await?;
    let last = usage.last.map(|last| last.at);
    if output.json {
        let days = usage.days.iter().map(|day| {
            json!({ "day": day.day.to_string(), "counts": counts(&day.counts), "total": day.counts.total() })
        });
        return output.document(&json!({
            "key": key,
            "from": from.to_string(),
            "to": today.to_string(),
            "days": days.collect::<Vec<_>>(),
            "first_day": usage.last.map(|last| last.first_day.to_string()),
            "last_used": last,
            "completeness": completeness(&usage.completeness),
        }));
    }
    let row = |day: &keyward::usage::KeyDay| {
        let accepted = day.counts.count(UseOutcome::Accepted);
        let refused = day.counts.total().saturating_sub(accepted);
        let mut by_outcome: Vec<_> = counts(&day.counts).into_iter().collect();
        by_outcome.retain(|(name, _)| name != UseOutcome::Accepted.name());
        let reasons = by_outcome
            .iter()
            .map(|(name, count)| format!("{count} {name}"));
        vec![
            day.day.to_string(),
            accepted.to_string(),
            refused.to_string(),
            reasons.collect::<Vec<_>>().join(", "),
        ]
    };
    let rows: Vec<_> = usage.days.iter().map(row).collect();
    output.table(&["DAY", "ACCEPTED", "REFUSED", "REASONS"], &rows)?;
    match last {
        Some(last) => output.note(&format!("last used at {last}")),
        None if usage.days.is_empty() => output.note("no use was counted"),
        None => output.note("never accepted"),
    }
    note_completeness(&usage.completeness, output);
    Ok(())
}

pub(crate) async fn unused(
    context: &CliContext,
    args: &UnusedArgs,
    output: &Output,
) -> CliResult<()> {
    let tenant = context.known_tenant().await?;
    let actor = context.actor(&tenant)?;
    let now = context.keys.now();
    let since = now.saturating_sub(args.unused_for);
    let mut query = KeyQuery::tenant(tenant, now);
    query.below = args.below;
    query.statuses = [Status::Active, Status::Disabled].into();
    let mut first = true;
    let mut is_proven = true;
    let mut judged: Option<Completeness> = None;
    loop {
        let page = context.keys.unused(&actor, &query, since).await?;
        let last_used = |key: &KeyInfo| page.last_uses.get(&key.id).map(|last| last.at);
        if output.json {
            for key in &page.keys {
                let last_used = last_used(key);
                output.document(&KeyWithLastUse { key, last_used })?;
            }
        } else {
            let row = |key: &KeyInfo| {
                vec![
                    key.id.to_string(),
                    key.name.to_string(),
                    key.tenant.to_string(),
                    owner(key),
                    cell(Some(key.created.at)),
                    cell(last_used(key)),
                ]
            };
            let head = ["ID", "NAME", "TENANT", "OWNER", "CREATED", "LAST USED"];
            let head: &[&str] = if first { &head } else { &[] };
            output.table(head, &page.keys.iter().map(row).collect::<Vec<_>>())?;
        }
        first = false;
        is_proven &= page.is_proven;
        let own = page.completeness;
        // Without any counts, the end is `None`, which is less than every time.
        judged = match judged {
            Some(known) if known.complete_until <= own.complete_until => Some(known),
            _ => Some(own),
        };
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    let judged = judged.unwrap_or_default();
    if !is_proven {
        output.warning(&format!(
            "not every process counted all uses since {since}: do not delete keys on this list alone"
        ));
    }
    if output.json {
        return output.document(&json!({
            "proven": is_proven,
            "since": since,
            "completeness": completeness(&judged),
        }));
    }
    note_completeness(&judged, output);
    Ok(())
}

/// Returns the counts of a day by outcome, without those that are zero.
fn counts(day: &DayCounts) -> Map<String, Value> {
    let known = UseOutcome::ALL
        .iter()
        .map(|outcome| (outcome.name().to_owned(), day.count(*outcome)));
    let all = known.chain([("unknown".to_owned(), day.unknown())]);
    let used = all.filter(|(_, count)| *count > 0);
    used.map(|(name, count)| (name, count.into())).collect()
}

fn completeness(found: &Completeness) -> Value {
    let gaps = found.gaps.iter();
    let gaps: Vec<_> = gaps
        .map(|gap| json!({ "from": gap.from, "until": gap.until }))
        .collect();
    let uncounted: Vec<_> = found.uncounted.iter().map(ToString::to_string).collect();
    json!({
        "counted_since": found.counted_since,
        "complete_until": found.complete_until,
        "gaps": gaps,
        "uncounted_nodes": uncounted,
        "unknown": found.is_unknown,
    })
}

fn note_completeness(found: &Completeness, output: &Output) {
    let (Some(since), Some(until)) = (found.counted_since, found.complete_until) else {
        output
            .note("no process has counted uses: give each process of the service this usage store");
        return;
    };
    output.note(&format!("counted since {since}, complete until {until}"));
    for gap in &found.gaps {
        output.note(&format!(
            "uses may be missing from {} to {}",
            gap.from, gap.until
        ));
    }
    for node in &found.uncounted {
        output.note(&format!("node {node} does not count uses"));
    }
    if found.is_unknown {
        output.note(
            "it is unknown whether every process counts: give each a registry, and the same usage store",
        );
    }
}
