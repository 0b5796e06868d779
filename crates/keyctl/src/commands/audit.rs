//! The audit trail: listing and verification.

use std::collections::BTreeSet;

use keyward::audit::{AuditEntry, AuditHash, AuditHead, PrunedAudit};
use keyward::key::Digest;
use keyward::store::{AuditPage, AuditQuery, AuditRow, KeyStore, StoreErrorKind, tenants_of_rows};
use keyward::{TenantId, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{AuditArgs, PruneAuditArgs};
use crate::desk::{CliContext, key_id, position};
use crate::failure::{CliError, CliErrorKind, CliResult, TenantFaults};
use crate::output::{Output, cell};
use crate::words::counted;

const HEAD: [&str; 7] = ["NO", "AT", "TENANT", "ACTOR", "ACTION", "KEY", "COMMAND"];

pub(crate) async fn run(context: &CliContext, args: &AuditArgs, output: &Output) -> CliResult<()> {
    if context.tenant()?.is_none() && !context.is_host() {
        return Err(CliError::usage(
            "--as needs the principal's tenant: --tenant <TENANT>",
        ));
    }
    if args.check {
        check(context, args.seen.as_deref(), output).await
    } else {
        show(context, args, output).await
    }
}

pub(crate) async fn prune(
    context: &CliContext,
    args: &PruneAuditArgs,
    output: &Output,
) -> CliResult<()> {
    let before: Timestamp = args.before.parse()?;
    if before > context.keys.now() {
        let message = "--before lies in the future: name the instant from which entries are kept, now or earlier";
        return Err(CliError::usage(message));
    }
    let seen = args.seen.as_deref().map(head).transpose()?;
    let mut faults = TenantFaults::default();
    for tenant in asked(context).await? {
        let actor = context.actor(&tenant)?;
        let pruned = context
            .keys
            .prune_audit(&actor, &tenant, before, seen)
            .await;
        let PrunedAudit { removed, head, .. } = match pruned {
            Ok(pruned) => pruned,
            Err(error) => {
                let error = CliError::from(error).about(format!("audit trail of {tenant}"));
                faults.add(Err(error), output);
                continue;
            }
        };
        let end = end(head);
        let printed = match output.json {
            true => output.document(&json!({ "tenant": tenant, "removed": removed, "end": end })),
            false => output.line(&format!("{tenant}  {removed} removed  {end}")),
        };
        let unprinted = |error: CliError| {
            let entries = counted(removed, "audit entry");
            error.about(format!(
                "removed {entries} of {tenant}, whose trail ends with {end}"
            ))
        };
        faults.add(printed.map_err(unprinted), output);
    }
    output.note("note the ends elsewhere, and pass one as --seen next time");
    faults.end()
}

/// Returns the tenant that `--tenant` names, or all tenants.
pub(super) async fn asked(context: &CliContext) -> CliResult<BTreeSet<TenantId>> {
    if let Some(tenant) = context.some_tenant().await? {
        return Ok(BTreeSet::from([tenant]));
    }
    match context.store.tenants().await {
        // The damage of one tenant must not keep the command from the others.
        Err(error) if error.kind() == StoreErrorKind::Corrupt => {
            Ok(tenants_of_rows(&context.store).await?)
        }
        found => Ok(found?),
    }
}

fn end(head: AuditHead) -> String {
    format!("{}:{}", head.sequence, head.hash)
}

async fn show(context: &CliContext, args: &AuditArgs, output: &Output) -> CliResult<()> {
    let mut query = AuditQuery::all();
    query.tenant = context.some_tenant().await?;
    query.key = args.key.as_deref().map(key_id).transpose()?;
    query.actor = args.actor.as_deref().map(TryInto::try_into).transpose()?;
    query.command = args.command.as_deref().map(TryInto::try_into).transpose()?;
    query.from = instant(args.from.as_deref())?;
    query.before = instant(args.before.as_deref())?;
    query.after = args.after.as_deref().map(position).transpose()?;
    query.limit = args.limit;
    let mut head: &[&str] = &HEAD;
    let mut corrupt = 0;
    loop {
        let page = page(context, &query).await?;
        if output.json {
            page.rows
                .iter()
                .try_for_each(|row| output.document(&AuditLine::of(row)))?;
        } else {
            let rows: Vec<_> = page.rows.iter().map(cells).collect();
            output.table(head, &rows)?;
        }
        head = &[];
        corrupt += page.corrupt.len();
        match page.next {
            Some(next) if args.all => query.after = Some(next),
            Some(next) => {
                output.more("entries", &next);
                break;
            }
            None => break,
        }
    }
    if corrupt > 0 {
        let left_out = counted(corrupt, "corrupt audit entry");
        let message = format!("left out {left_out}");
        return Err(CliError::new(CliErrorKind::Corrupt, message));
    }
    let is_export = args.all && output.json && context.is_host();
    match is_export {
        true => check_export(context, output).await,
        false => Ok(()),
    }
}

/// Fails if the store lost anything: a replay of an exported trail without its end would accept keys that ended later.
async fn check_export(context: &CliContext, output: &Output) -> CliResult<()> {
    if let Some(loss) = context.store.known_loss().await? {
        let message = format!(
            "printed every entry that the store has, but it is damaged, and so its newest entries may be lost: {loss}"
        );
        return Err(CliError::new(CliErrorKind::Corrupt, message));
    }
    if context.store.restored_from().await?.is_some() {
        output.warning(
            "the store waits for its recovery: its trails end where it was copied or salvaged, and prove nothing \
             about later changes",
        );
    }
    Ok(())
}

fn instant(text: Option<&str>) -> CliResult<Option<Timestamp>> {
    Ok(text.map(str::parse).transpose()?)
}

/// Reads a page of the entries that the actor may see. Only the host itself can query all tenants together.
async fn page(context: &CliContext, query: &AuditQuery) -> CliResult<AuditPage> {
    match &query.tenant {
        Some(tenant) => Ok(context.keys.audit(&context.actor(tenant)?, query).await?),
        None => Ok(context.store.audit(query).await?),
    }
}

fn cells(row: &AuditRow) -> Vec<String> {
    let entry = &row.entry;
    let action = serde_json::to_value(&entry.action).unwrap_or_default();
    let kind = action["type"].as_str().unwrap_or("?");
    let action = match &action["data"] {
        Value::Null => kind.to_owned(),
        data => format!("{kind} {data}"),
    };
    vec![
        entry.sequence.to_string(),
        entry.at.to_string(),
        entry.tenant.to_string(),
        entry.actor.to_string(),
        action,
        cell(entry.key),
        entry.command.to_string(),
    ]
}

/// An entry as one line of an export, with the revision of its commit. `keyctl recover --replay-file` reads it.
#[derive(Serialize)]
struct AuditLine<'a> {
    revision: u64,
    #[serde(flatten)]
    entry: &'a AuditEntry,
}

impl<'a> AuditLine<'a> {
    const fn of(row: &'a AuditRow) -> Self {
        Self {
            revision: row.revision.0,
            entry: &row.entry,
        }
    }
}

async fn check(context: &CliContext, seen: Option<&str>, output: &Output) -> CliResult<()> {
    let seen = seen.map(head).transpose()?;
    let tenants = match context.some_tenant().await? {
        Some(tenant) => BTreeSet::from([tenant]),
        None => {
            // A damaged store may have lost the head of a tenant, or all else of it.
            let mut tenants = tenants_of_rows(&context.store).await?;
            match context.store.tenants().await {
                Err(error) if error.kind() == StoreErrorKind::Corrupt => {}
                heads => tenants.append(&mut heads?),
            }
            tenants
        }
    };
    for tenant in tenants {
        let actor = context.actor(&tenant)?;
        let checked = context.keys.verify_audit(&actor, &tenant, seen).await;
        let about = |error| CliError::from(error).about(format!("audit trail of {tenant}"));
        let head = checked.map_err(about)?;
        let end = end(head);
        if output.json {
            output.document(&json!({ "tenant": tenant, "intact": true, "end": end }))?;
        } else {
            output.line(&format!("{tenant}  {end}"))?;
        }
    }
    output.note("intact; note the ends elsewhere, and pass one as --seen next time");
    Ok(())
}

fn head(text: &str) -> CliResult<AuditHead> {
    let parsed = text.split_once(':').and_then(|(sequence, hash)| {
        Some(AuditHead {
            sequence: sequence.parse().ok()?,
            hash: AuditHash::from_bytes(*hash.parse::<Digest>().ok()?.as_bytes()),
        })
    });
    let expected =
        "--seen must be <sequence>:<64 hexadecimal digits>, as `audit --check` prints it";
    parsed.ok_or_else(|| CliError::usage(expected))
}
