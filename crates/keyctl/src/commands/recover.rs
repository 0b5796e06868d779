//! Recovery of a restored store, before the store serves requests.

use keyward::KeyId;
use keyward::audit::AuditEntry;
use keyward::recovery::{Recovery, RecoveryReport};
use keyward::store::AuditQuery;
use serde_json::{Value, json};

use crate::args::RecoverArgs;
use crate::desk::CliContext;
use crate::failure::{CliError, CliResult};
use crate::output::Output;
use crate::store::{self, Expected, StoreLocation};

pub(crate) async fn run(
    context: &CliContext,
    args: &RecoverArgs,
    output: &Output,
) -> CliResult<()> {
    if !context.is_host() {
        return Err(CliError::usage(
            "only the host itself recovers a store: leave out --as",
        ));
    }
    let how = match &args.replay_from {
        Some(store) => Recovery::Replay(trail(context, store).await?),
        None if args.trust_backup => Recovery::TrustBackup,
        None => Recovery::DisableAll,
    };
    let report = context.keys.recover(how).await?;
    context.backend.finish_recovery().await?;
    output.done(&message(&report), &document(&report))
}

/// Reads the whole audit trail of another store, even if the other store is waiting for recovery too.
async fn trail(context: &CliContext, place: &StoreLocation) -> CliResult<Vec<AuditEntry>> {
    let common = context.common();
    let store = store::open_at(place, &common.schema, common, Expected::Existing).await?;
    let store = store.keys();
    let mut query = AuditQuery::all();
    let mut entries = Vec::new();
    loop {
        let page = store.audit(&query).await?;
        entries.extend(page.rows.into_iter().map(|row| row.entry));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(entries),
        }
    }
}

fn message(report: &RecoveryReport) -> String {
    let counts = [
        (report.disabled, "keys disabled"),
        (report.revoked, "revoked"),
        (report.removed, "removed"),
        (report.changed, "narrowed"),
        (report.owners, "owners set again"),
        (report.closed, "tenants closed"),
    ];
    let counts = counts.map(|(count, what)| format!("{count} {what}"));
    let lists = [
        (&report.legacy, "disabled legacy keys, to rotate or enable"),
        (&report.to_review, "disabled, to look at"),
        (&report.lost, "lost, to create again"),
        (&report.unknown, "not in the backup"),
        (&report.corrupt, "corrupt"),
    ];
    let mut message = format!("recovered: {}", counts.join(", "));
    for (keys, what) in lists {
        for key in keys {
            message += &format!("\n  {key} {what}");
        }
    }
    message
}

fn document(report: &RecoveryReport) -> Value {
    let keys = |keys: &[KeyId]| keys.iter().map(KeyId::to_string).collect::<Vec<_>>();
    json!({
        "recovered": true,
        "disabled": report.disabled,
        "revoked": report.revoked,
        "removed": report.removed,
        "changed": report.changed,
        "owners": report.owners,
        "closed": report.closed,
        "legacy": keys(&report.legacy),
        "to_review": keys(&report.to_review),
        "lost": keys(&report.lost),
        "unknown": keys(&report.unknown),
        "corrupt": keys(&report.corrupt),
    })
}
