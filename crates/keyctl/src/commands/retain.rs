//! Retention: removes the keys and audit entries that the policies no longer keep, and old tombstones.

use std::num::NonZeroUsize;
use std::time::Duration;

use keyward::TenantId;
use keyward::store::{AuditPage, AuditQuery, KeyStore, Revision};
use serde_json::json;

use super::audit::asked;
use crate::args::RetainArgs;
use crate::desk::CliContext;
use crate::failure::{CliError, CliErrorKind, CliResult, TenantFaults};
use crate::output::Output;
use crate::words::counted;

/// 1000 rows per read while looking for the newest old entry, so that a large store takes few reads.
const PAGE: NonZeroUsize = NonZeroUsize::new(1000).expect("1000 is not zero");

pub(crate) async fn run(context: &CliContext, args: &RetainArgs, output: &Output) -> CliResult<()> {
    if !context.is_host() {
        return Err(CliError::usage(
            "only the host itself may do this: omit --as",
        ));
    }
    // Reads the ages of revisions before the entries that record them are removed.
    let old = match args.tombstones {
        Some(age) => Some(older_than(context, age).await),
        None => None,
    };
    let mut faults = TenantFaults::default();
    for tenant in asked(context).await? {
        let done = retain(context, &tenant, args.dry_run, output).await;
        let about = |error: CliError| error.about(format!("tenant {tenant}"));
        faults.add(done.map_err(about), output);
    }
    if let Some(old) = old {
        let dropped = match old {
            Ok(old) => drop_tombstones(context, old, args.dry_run, output).await,
            Err(error) => Err(error),
        };
        faults.add(dropped.map_err(|error| error.about("tombstones")), output);
    }
    faults.end()
}

async fn retain(
    context: &CliContext,
    tenant: &TenantId,
    dry_run: bool,
    output: &Output,
) -> CliResult<()> {
    let report = match dry_run {
        true => context.keys.expired_retention(tenant).await?,
        false => context.keys.apply_retention(tenant).await?,
    };
    let (keys, entries) = (report.keys, report.entries);
    let (removed, old) = (counted(keys, "key"), counted(entries, "audit entry"));
    let counts = format!("{removed} and {old} {}", done(dry_run));
    let printed = match output.json {
        true => output.document(&json!({
            "tenant": tenant, "keys": keys, "audit": entries, "dry_run": dry_run,
        })),
        false => output.line(&format!("{tenant}  {counts}")),
    };
    printed.map_err(|error| error.about(counts))
}

const fn done(dry_run: bool) -> &'static str {
    if dry_run { "to remove" } else { "removed" }
}

/// Drops the tombstones up to the revision `old`, except those that a registered node has not applied.
async fn drop_tombstones(
    context: &CliContext,
    old: Revision,
    dry_run: bool,
    output: &Output,
) -> CliResult<()> {
    let head = context.store.scan(None, NonZeroUsize::MIN).await?.head;
    // A node without a position in this history reads the whole store in any case.
    let applied = context.backend.registry().nodes().await?.into_iter();
    let applied = applied.filter_map(|node| node.applied.filter(|at| at.epoch == head.epoch));
    let applied = applied.map(|at| at.revision).min();
    let upto = applied.map_or(old, |applied| applied.min(old));
    if old == Revision::ZERO {
        output.warning(
            "no tombstone is known to be that old: the trail proves their age, and has no entry of that age; if such \
             entries were removed, choose an age below the time for which entries are kept",
        );
    }
    let done = done(dry_run);
    let (message, tombstones) = match dry_run {
        true => (format!("tombstones up to revision {upto} {done}"), None),
        false => {
            let count = context.backend.compact(upto).await?;
            let message = format!(
                "{} up to revision {upto} {done}",
                counted(count, "tombstone")
            );
            (message, Some(count))
        }
    };
    output.done(
        &message,
        &json!({ "tombstones": tombstones, "upto": upto.0, "dry_run": dry_run }),
    )
}

/// Returns the newest revision that the audit trail proves to be older than `age`. Zero if it proves none, because
/// all entries of that age were removed: the age of the revisions before the oldest entry is unknown.
async fn older_than(context: &CliContext, age: Duration) -> CliResult<Revision> {
    let end = context.keys.now().saturating_sub(age);
    let mut older = AuditQuery::all();
    older.before = Some(end);
    older.limit = PAGE;
    let mut old = Revision::ZERO;
    loop {
        let page = intact(context, &older).await?;
        old = page.rows.last().map_or(old, |row| row.revision);
        match page.next {
            Some(next) => older.after = Some(next),
            None => break,
        }
    }
    // A tenant whose clock was ahead may have a newer entry at an older revision.
    let mut newer = AuditQuery::all();
    newer.from = Some(end);
    newer.limit = NonZeroUsize::MIN;
    let page = intact(context, &newer).await?;
    let newest = page
        .rows
        .first()
        .map(|row| row.revision.0.saturating_sub(1));
    Ok(newest.map_or(old, |newest| old.min(Revision(newest))))
}

/// Reads a page of entries. Fails if one is corrupt, because its time is unknown.
async fn intact(context: &CliContext, query: &AuditQuery) -> CliResult<AuditPage> {
    let page = context.store.audit(query).await?;
    let Some(place) = page.corrupt.first() else {
        return Ok(page);
    };
    let message = format!(
        "audit entry {} of revision {} is corrupt, so the age of tombstones is unknown: find its tenant with \
         `keyctl audit --check`",
        place.sequence, place.revision
    );
    Err(CliError::new(CliErrorKind::Corrupt, message))
}
