//! Recovery of a restored store, before the store serves requests.

use std::path::PathBuf;

use keyward::audit::AuditEntry;
use keyward::recovery::{Recovery, RecoveryProgress, RecoveryReport, ReplayedTrail};
use keyward::{KeyId, WithSources};
use serde_json::{Value, json};

use super::pepper::PepperUse;
use crate::args::RecoverArgs;
use crate::desk::CliContext;
use crate::failure::{CliError, CliResult};
use crate::lines::Lines;
use crate::output::Output;
use crate::store::{self, Expected};
use crate::words::counted;

/// 10,000 keys between two lines of progress where stderr is not a terminal: a hundred lines for a million keys.
const PRINTED_EVERY: usize = 10_000;

/// 1 MiB, the longest line. The longest entry is that of a recovery that blocked many digests, about 150 KiB.
const LINE_MAX: u64 = 1 << 20;

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
        Some(place) => {
            let common = context.common();
            let schema = args.replay_schema.as_ref().unwrap_or(&common.schema);
            // The other store may wait for recovery too.
            let source = store::open_at(place, schema, common, Expected::Source).await?;
            Recovery::ReplayFrom(source.keys())
        }
        None if !args.replay_file.is_empty() => Recovery::Replay {
            entries: exported(&args.replay_file)?,
            is_whole: args.trust_unchanged,
        },
        None if args.trust_backup => Recovery::TrustBackup,
        None => Recovery::DisableAll,
    };
    let pepper_file = store::pepper_path(context.common())?;
    let mut line = output.progress_line();
    let mut printed = 0;
    let progress = |at: RecoveryProgress| {
        let part = at.done / PRINTED_EVERY;
        let ends = part > printed || at.done == at.total;
        printed = part;
        line.step(&at.to_string(), ends);
    };
    let recovered = context.keys.recover_with(how, progress).await;
    drop(line);
    let report = recovered?;
    context.backend.finish_recovery().await.map_err(|error| {
        error.after(
            "the keys are recovered, but the store still waits for recovery: repeat the command",
        )
    })?;
    // The recovery read the whole store as a node, which no receipt should wait for.
    if let Err(error) = context.keys.deregister().await {
        let cause = WithSources(&error);
        output.warning(&format!(
            "this process stays listed as a node until its lease ends: {cause}"
        ));
    }
    let peppers = PepperUse {
        counts: report.unverifiable.clone(),
        file: Some(pepper_file),
    };
    output.done(&message(&report, &peppers), &document(&report, &peppers))
}

/// Reads the audit entries that `keyctl audit --json --all` wrote to files.
fn exported(files: &[PathBuf]) -> CliResult<Vec<AuditEntry>> {
    let mut entries = Vec::new();
    for path in files {
        let mut lines = Lines::of_file(path, LINE_MAX)?;
        let mut number = 0;
        while let Some(line) = lines.next()? {
            number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let entry = check_audit_line(&line).map_err(|message| {
                CliError::usage(format!("{} line {number}: {message}", path.display()))
            })?;
            entries.push(entry);
        }
    }
    if entries.is_empty() {
        let message = "--replay-file has no entries: export them with keyctl audit --json --all";
        return Err(CliError::usage(message));
    }
    Ok(entries)
}

/// Parses one line of an exported audit trail. Whether its seal is right, the replay checks.
///
/// # Errors
///
/// The message that `keyctl recover` prints for the line. It repeats no part of the line.
pub fn check_audit_line(line: &[u8]) -> Result<AuditEntry, String> {
    serde_json::from_slice(line).map_err(|error| {
        let column = error.column();
        let expected = "an entry as `keyctl audit --json` prints it";
        format!("must be {expected}; at fault near column {column}")
    })
}

fn message(report: &RecoveryReport, peppers: &PepperUse) -> String {
    let counts = [
        format!("{} disabled", counted(report.disabled, "key")),
        format!("{} revoked", report.revoked),
        format!("{} removed", report.removed),
        format!("{} narrowed", report.changed),
        format!("{} set again", counted(report.owners, "owner")),
        format!("{} closed", counted(report.closed, "tenant")),
    ];
    let lists = [
        (&report.legacy, "disabled legacy keys, to rotate or enable"),
        (&report.to_review, "disabled, to look at"),
        (&report.lost, "lost, to create again"),
        (&report.unknown, "not in the backup"),
        (&report.corrupt, "corrupt"),
    ];
    let mut message = format!("recovered: {}", counts.join(", "));
    if let Some(loss) = &report.loss {
        message += &format!(
            "\n  the store to replay from lost rows or audit entries, so no trail proves that a key is unchanged: {loss}"
        );
    }
    for trail in &report.trails {
        message += &format!("\n  {}: {trail}", trail.tenant);
        if trail.disabled {
            message += "; all keys disabled";
        }
    }
    for (keys, what) in lists {
        for key in keys {
            message += &format!("\n  {key} {what}");
        }
    }
    for problem in peppers.problems() {
        message += &format!("\n  {problem}");
    }
    message
}

fn document(report: &RecoveryReport, peppers: &PepperUse) -> Value {
    let keys = |keys: &[KeyId]| keys.iter().map(KeyId::to_string).collect::<Vec<_>>();
    let trail = |trail: &ReplayedTrail| {
        json!({
            "tenant": trail.tenant,
            "reach": trail.reach.word(),
            "restored": trail.restored,
            "last": trail.last.map(|end| json!({ "sequence": end.sequence, "at": end.at })),
            "disabled": trail.disabled,
        })
    };
    json!({
        "recovered": true,
        "loss": report.loss,
        "trails": report.trails.iter().map(trail).collect::<Vec<_>>(),
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
        "unverifiable": peppers.documents().collect::<Vec<_>>(),
    })
}
