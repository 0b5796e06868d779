//! Retention: removing what the policies no longer keep, and old tombstones.

use std::num::NonZeroUsize;
use std::time::Duration;

use keyward::store::{AuditQuery, KeyStore, Revision};
use serde_json::json;

use super::audit::asked;
use crate::args::RetainArgs;
use crate::desk::CliContext;
use crate::failure::{CliError, CliResult};
use crate::output::Output;

pub(crate) async fn run(context: &CliContext, args: &RetainArgs, output: &Output) -> CliResult<()> {
    if !context.is_host() {
        return Err(CliError::usage(
            "only the host itself may do this: omit --as",
        ));
    }
    let done = if args.dry_run { "to remove" } else { "removed" };
    for tenant in asked(context).await? {
        let report = match args.dry_run {
            true => context.keys.expired_retention(&tenant).await,
            false => context.keys.apply_retention(&tenant).await,
        };
        let about = |error| CliError::from(error).about(format!("tenant {tenant}"));
        let report = report.map_err(about)?;
        let (keys, entries) = (report.keys, report.entries);
        if output.json {
            let document = json!({
                "tenant": tenant, "keys": keys, "audit": entries, "dry_run": args.dry_run,
            });
            output.document(&document)?;
        } else {
            output.line(&format!(
                "{tenant}  {keys} keys and {entries} audit entries {done}"
            ))?;
        }
    }
    let Some(age) = args.tombstones else {
        return Ok(());
    };
    let upto = droppable(context, age).await?;
    let (message, tombstones) = match args.dry_run {
        true => (format!("tombstones up to revision {upto} {done}"), None),
        false => {
            let count = context.backend.compact(upto).await?;
            let message = format!("{count} tombstones up to revision {upto} {done}");
            (message, Some(count))
        }
    };
    output.done(
        &message,
        &json!({ "tombstones": tombstones, "upto": upto.0, "dry_run": args.dry_run }),
    )
}

/// Returns the newest revision that is older than `age` and that every registered node has applied.
async fn droppable(context: &CliContext, age: Duration) -> CliResult<Revision> {
    let head = context.store.scan(None, NonZeroUsize::MIN).await?.head;
    let mut newer = AuditQuery::all();
    newer.from = Some(context.keys.now().saturating_sub(age));
    newer.limit = NonZeroUsize::MIN;
    let page = context.store.audit(&newer).await?;
    let newer = page.rows.first().map(|row| row.revision.0);
    let old = newer.map_or(head.revision.0, |revision| revision.saturating_sub(1));
    // A node without a position in this history reads the whole store in any case.
    let applied = context.backend.registry().nodes().await?.into_iter();
    let applied = applied.filter_map(|node| node.applied.filter(|at| at.epoch == head.epoch));
    let applied = applied.map(|at| at.revision.0).min();
    Ok(Revision(old.min(applied.unwrap_or(u64::MAX))))
}
