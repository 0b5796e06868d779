//! Commands that end many keys.

use std::num::NonZeroUsize;

use keyward::command::{BulkFilter, BulkReceipt, CommandId};
use keyward::key::KeyRecord;
use keyward::store::{AuditQuery, KeyQuery, KeyStore};
use keyward::{PrincipalId, TenantId};
use serde_json::json;

use super::audit::asked;
use super::change::ask;
use super::nodes;
use crate::args::{
    BulkConfirmArgs, CloseTenantArgs, CommandIdArgs, RemoveOwnerArgs, RevokeManyArgs,
};
use crate::desk::{CliContext, change, invocation};
use crate::failure::{CliError, CliErrorKind, CliResult, TenantFaults};
use crate::output::Output;
use crate::words::counted;

/// 10,000 keys per read while counting keys, about 10 MB. Each read sorts the ids of all keys below the tenant.
const COUNTED: NonZeroUsize = NonZeroUsize::new(10_000).expect("10,000 is not zero");

pub(crate) async fn revoke_many(
    context: &CliContext,
    args: &RevokeManyArgs,
    output: &Output,
) -> CliResult<()> {
    let tenant = context.known_tenant().await?;
    let actor = context.actor(&tenant)?;
    let filter = filter(args)?;
    let mut query = KeyQuery::tenant(tenant.clone(), context.keys.now()).live();
    query.owner = filter.owner.clone();
    query.class = filter.class.clone();
    let ends = |record: &KeyRecord| !record.legacy && filter.matches(record);
    let found = count(context, query, ends).await?;
    let found = (found, &*format!("of {tenant} to revoke"));
    let has_begun = has_begun(context, &tenant, &args.named).await?;
    if !confirmed(&args.confirm, has_begun, found, output)? {
        return Ok(());
    }
    let by = invocation(&actor, &args.named)?;
    let reason = args.reason.into();
    let swept = context
        .keys
        .revoke_many(by, &tenant, filter, reason)
        .await?;
    let mut message = format!("revoked {} of {tenant}", counted(swept.ended, "key"));
    if has_begun {
        message += EARLIER;
    }
    let done = "revoked";
    finish(
        context,
        (&swept, &tenant, done),
        (message, &args.wait),
        output,
    )
    .await
}

fn filter(args: &RevokeManyArgs) -> CliResult<BulkFilter> {
    let mut filter = BulkFilter::all();
    filter.owner = args.owner.as_deref().map(TryInto::try_into).transpose()?;
    filter.class = args.class.as_deref().map(TryInto::try_into).transpose()?;
    filter.pepper = args.pepper.as_deref().map(TryInto::try_into).transpose()?;
    filter.created_before = args.created_before.as_deref().map(str::parse).transpose()?;
    Ok(filter)
}

pub(crate) async fn remove_owner(
    context: &CliContext,
    args: &RemoveOwnerArgs,
    output: &Output,
) -> CliResult<()> {
    let tenant = context.known_tenant().await?;
    let actor = context.actor(&tenant)?;
    let owner: PrincipalId = args.owner.as_str().try_into()?;
    let mut query = KeyQuery::tenant(tenant.clone(), context.keys.now()).live();
    query.below = true;
    query.owner = Some(owner.clone());
    let found = count(context, query, |record| !record.legacy).await?;
    let keys = (found, &*format!("of {owner} in {tenant} and below"));
    let has_begun = has_begun(context, &tenant, &args.named).await?;
    if !confirmed(&args.confirm, has_begun, keys, output)? {
        return Ok(());
    }
    let by = invocation(&actor, &args.named)?;
    let swept = context
        .keys
        .remove_owner(by, &tenant, owner.clone())
        .await?;
    let mut message = format!(
        "removed owner {owner} of {tenant}, and revoked {}",
        counted(swept.ended, "key")
    );
    if has_begun {
        message += EARLIER;
    } else if found == 0 {
        message += " (the owner had no live key there or below: check the name)";
    }
    let done = "owner_removed";
    finish(
        context,
        (&swept, &tenant, done),
        (message, &args.wait),
        output,
    )
    .await
}

pub(crate) async fn close_tenant(
    context: &CliContext,
    args: CloseTenantArgs,
    output: &Output,
) -> CliResult<()> {
    let tenant = context.known_tenant().await?;
    let actor = context.actor(&tenant)?;
    let mut query = KeyQuery::tenant(tenant.clone(), context.keys.now()).live();
    query.below = true;
    let found = counted(count(context, query, |_| true).await?, "live key");
    let typed = match args.confirm {
        Some(text) => text,
        None => ask(&format!(
            "Ends tenant {tenant} and {found} permanently. Type {tenant} to confirm: "
        ))
        .map_err(|failure| failure.about(format!("this ends {found}; type {tenant} to confirm")))?,
    };
    if typed != tenant.as_str() {
        let message = format!("not closed: to confirm, type {tenant} exactly");
        return Err(CliError::new(CliErrorKind::Refused, message));
    }
    let by = invocation(&actor, &args.named)?;
    let swept = context.keys.close_tenant(by, &tenant).await?;
    let message = format!(
        "closed tenant {tenant}, and ended {}",
        counted(swept.ended, "key")
    );
    let done = "tenant_closed";
    finish(
        context,
        (&swept, &tenant, done),
        (message, &args.wait),
        output,
    )
    .await
}

pub(crate) async fn purge(
    context: &CliContext,
    named: &CommandIdArgs,
    output: &Output,
) -> CliResult<()> {
    if context.tenant()?.is_none() && !context.is_host() {
        return Err(CliError::usage(
            "--as needs the principal's tenant: --tenant <TENANT>",
        ));
    }
    let mut faults = TenantFaults::default();
    for tenant in asked(context).await? {
        let actor = context.actor(&tenant)?;
        let by = invocation(&actor, named)?;
        let removed = match context.keys.purge(by, &tenant).await {
            Ok(purged) => purged.ended,
            Err(error) => {
                let error = CliError::from(error).about(format!("tenant {tenant}"));
                faults.add(Err(error), output);
                continue;
            }
        };
        let printed = match output.json {
            true => output.document(&json!({ "tenant": tenant, "removed": removed })),
            false => output.line(&format!("{tenant}  {removed} removed")),
        };
        let unprinted = |error: CliError| {
            error.about(format!("removed {} of {tenant}", counted(removed, "key")))
        };
        faults.add(printed.map_err(unprinted), output);
    }
    faults.end()
}

/// Counts the keys that a query returns and that match.
async fn count(
    context: &CliContext,
    mut query: KeyQuery,
    matches: impl Fn(&KeyRecord) -> bool,
) -> CliResult<usize> {
    query.limit = COUNTED;
    let mut count = 0;
    loop {
        let page = context.store.list(&query).await?;
        count += page.keys.iter().filter(|record| matches(record)).count();
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(count),
        }
    }
}

/// The end of the message of a command that an earlier run began.
const EARLIER: &str = ", besides those of the earlier run of this command";

/// Returns whether an earlier run began the command, by its `--command-id`. The operator confirmed that run, and the
/// keys that it ended are counted no more.
async fn has_begun(
    context: &CliContext,
    tenant: &TenantId,
    named: &CommandIdArgs,
) -> CliResult<bool> {
    let Some(id) = &named.command_id else {
        return Ok(false);
    };
    let mut query = AuditQuery::all();
    query.tenant = Some(tenant.clone());
    query.command = Some(CommandId::new(id)?);
    query.limit = NonZeroUsize::MIN;
    // The command itself fails if its id was used for another one.
    Ok(!context.store.audit(&query).await?.rows.is_empty())
}

/// Returns whether the operator confirmed the end of these keys, now or for an earlier run. False with `--dry-run`.
fn confirmed(
    confirm: &BulkConfirmArgs,
    has_begun: bool,
    (found, which): (usize, &str),
    output: &Output,
) -> CliResult<bool> {
    let keys = format!("{} {which}", counted(found, "key"));
    let refused = |message| Err(CliError::new(CliErrorKind::Refused, message));
    match confirm.expect {
        _ if confirm.dry_run => {
            output.done(&keys, &json!({ "matching": found }))?;
            Ok(false)
        }
        _ if has_begun => Ok(true),
        Some(expected) if expected == found => Ok(true),
        Some(expected) => refused(format!(
            "nothing was changed: expected {expected}, and found {keys}"
        )),
        None if confirm.yes => Ok(true),
        None => refused(format!(
            "nothing was changed: found {keys}; repeat the command with --expect {found}, or with --yes"
        )),
    }
}

async fn finish(
    context: &CliContext,
    (swept, tenant, done): (&BulkReceipt, &TenantId, &str),
    (message, wait): (String, &crate::args::UntilConfirmedArgs),
    output: &Output,
) -> CliResult<()> {
    let by = nodes::time_limit(context, &swept.receipt).await;
    let mut message = format!("{message}; every process refuses them {by}");
    if !swept.skipped.is_empty() {
        let skipped: Vec<_> = swept.skipped.iter().map(ToString::to_string).collect();
        message += &format!("; skipped legacy keys: {}", skipped.join(" "));
    }
    let mut answer = change(done, &swept.receipt);
    answer["tenant"] = json!(tenant);
    answer["ended"] = json!(swept.ended);
    answer["skipped"] = json!(swept.skipped);
    nodes::done(context, wait, &swept.receipt, (&message, answer), output).await
}
