//! Commands on the store as a whole: set-up, backup, restore, checks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::clocks::SystemClock;
use keyward::command::CommandId;
use keyward::node::Replica;
use keyward::store::sqlite::OpenError;
use keyward::store::{Cursor, IntegrityReport, SqliteStore, tables_version};
use keyward::{TenantId, Timestamp};
use serde_json::{Value, json};

use super::issue;
use super::nodes;
use super::pepper::{self, PepperUse};
use crate::args::{CommandIdArgs, CommonArgs, LiveNodesArgs, SalvageArgs, StartNewEpochArgs};
use crate::desk::{self, CliContext, invocation};
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::{Output, ready_for_secrets};
use crate::store::{self, Expected, StoreLocation};
use crate::words::counted;

pub(crate) async fn init(
    common: CommonArgs,
    named: &CommandIdArgs,
    output: &Output,
) -> CliResult<()> {
    // A mistake in the arguments is reported before anything is created.
    let policy = desk::policy(&common)?;
    let tenant = common.tenant.as_deref().map(TenantId::new).transpose()?;
    named
        .command_id
        .as_deref()
        .map(CommandId::new)
        .transpose()?;
    if tenant.is_some() && policy.as_ref().is_some_and(issue::provisions_secrets) {
        ready_for_secrets()?;
    }
    let (opened, peppers) = store::set_up(&common).await?;
    let (place, file) = (common.store.to_string(), store::pepper_path(&common)?);
    let pepper = peppers.current().id().clone();
    let made = format!("set up {place} under pepper {pepper} in {}", file.display());
    let context = CliContext::over(common, opened, peppers).await;
    let context = context.map_err(|error| error.after(&made))?;
    let mut keys = Vec::new();
    if let Some(tenant) = &tenant {
        let provisioned = async {
            let actor = context.actor(tenant)?;
            let by = invocation(&actor, named)?;
            // Without --policy, the policy of a database may be known only now.
            if issue::provisions_secrets(context.policies.of(tenant)) {
                ready_for_secrets()?;
            }
            Ok(context.keys.provision_tenant(by, tenant).await?)
        };
        keys = provisioned.await.map_err(|error: CliError| {
            let only = format!(
                "{place} is set up, but not tenant {tenant}, which the first key of the tenant sets up"
            );
            error.after(only)
        })?;
    }
    let document = || {
        json!({
            "store": place,
            "pepper_file": file,
            "pepper": pepper,
            "provisioned": issue::issued(&keys),
        })
    };
    output.note(&made);
    output.note("keep a copy of the pepper file, but never where the store's copies are");
    match tenant {
        Some(tenant) => {
            let keys: Vec<_> = issue::provisioned(&keys).collect();
            let made = format!("{made}, and tenant {tenant}");
            issue::hand_out(&context, (&tenant, &made), &keys, document, output)
        }
        None if output.json => output.result(&document()),
        None => Ok(()),
    }
}

pub(crate) async fn backup(
    common: &CommonArgs,
    to: PathBuf,
    verify: bool,
    output: &Output,
) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    if to.exists() {
        let message = format!("{} exists already, and was left as it is", to.display());
        return Err(CliError::new(CliErrorKind::Refused, message));
    }
    let elapsed = output.show_elapsed(format!("backing up to {}", to.display()));
    let file = store.file()?;
    let head = match verify {
        true => file.backup_verified(to.clone()).await,
        false => file.backup(to.clone()).await,
    };
    drop(elapsed);
    let head = head?;
    let (path, revision) = (to.display(), head.revision);
    let checked = if verify { ", and read it back" } else { "" };
    let message = format!("wrote {path} as of revision {revision}, without the pepper{checked}");
    let document = json!({ "backup": to, "head": cursor(&head), "verified": verify });
    output.done(&message, &document)
}

pub(crate) async fn salvage(args: &SalvageArgs, output: &Output) -> CliResult<()> {
    let SalvageArgs { from, to } = args;
    let elapsed = output.show_elapsed(format!("salvaging {}", from.display()));
    let report = SqliteStore::salvage(from, to).await;
    drop(elapsed);
    let report = match report {
        Err(OpenError::NotFound { path }) => return Err(CliError::no_source(path.display())),
        report => report?,
    };
    let IntegrityReport {
        rows,
        audit,
        faults: left_out,
        missing,
        ..
    } = report;
    let mut message = format!(
        "copied {} and {} to {}, which opens only once `keyctl recover` has been run; left out or damaged: {}; \
         missing audit entries: {}",
        counted(rows, "row"),
        counted(audit, "audit entry"),
        to.display(),
        left_out.len(),
        missing.values().sum::<u64>()
    );
    for fault in &left_out {
        message += &format!("\n  {fault}");
    }
    for (tenant, entries) in &missing {
        let entries = counted(entries, "audit entry");
        message += &format!(
            "\n  tenant {tenant}: its trail lacks {entries}; `keyctl recover` records the gap; keys that only these entries \
             name are lost too"
        );
    }
    let document = json!({
        "store": to, "rows": rows, "audit": audit, "left_out": left_out, "missing_audit": missing,
        "recovered": false,
    });
    output.done(&message, &document)?;
    match left_out.is_empty() && missing.is_empty() {
        true => Ok(()),
        false => Err(CliError::new(
            CliErrorKind::InPart,
            format!("{} lacks a part of {}", to.display(), from.display()),
        )),
    }
}

pub(crate) async fn checkpoint(common: &CommonArgs, output: &Output) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    store.file()?.checkpoint().await?;
    let message = format!("{} holds all commits without its -wal file", common.store);
    output.done(
        &message,
        &json!({ "store": common.store.to_string(), "checkpoint": true }),
    )
}

pub(crate) async fn vacuum(common: &CommonArgs, output: &Output) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    let file = store.file()?;
    let before = file.stats().await?.bytes;
    let elapsed = output.show_elapsed(format!("vacuuming {}", common.store));
    let done = file.vacuum().await;
    drop(elapsed);
    done?;
    let stats = file.stats().await.map_err(|error| {
        CliError::from(error).after(format!("vacuumed {}; its size is unknown", common.store))
    })?;
    let after = stats.bytes;
    let message = format!("{} has {after} bytes, and had {before}", common.store);
    let document = json!({ "store": common.store.to_string(), "bytes": after, "before": before });
    output.done(&message, &document)
}

pub(crate) async fn restore(common: &CommonArgs, backup: &Path, output: &Output) -> CliResult<()> {
    let elapsed = output.show_elapsed(format!("restoring {}", backup.display()));
    let restored = store::restore(backup, &common.store).await;
    drop(elapsed);
    restored?;
    let message = format!(
        "made {} from {}. What was revoked since the backup is not revoked in it, so that it opens \
         only once `keyctl recover` has put it right",
        common.store,
        backup.display()
    );
    output.done(
        &message,
        &json!({ "store": common.store.to_string(), "backup": backup, "recovered": false }),
    )
}

pub(crate) async fn start_new_epoch(
    common: &CommonArgs,
    args: &StartNewEpochArgs,
    output: &Output,
) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    let step =
        "which will refuse every key until `keyctl recover` has ended: to start the new epoch";
    nodes::refuse_live(&store, common, args.live, step, |_| Some(String::new())).await?;
    store.start_new_epoch().await?;
    let message = format!(
        "{} begins a history of its own. What was revoked since the backup is not revoked in it, so that \
         it opens only once `keyctl recover` has put it right",
        common.store
    );
    let document = json!({ "store": common.store.to_string(), "recovered": false });
    output.done(&message, &document)
}

pub(crate) async fn finish_upgrade(
    common: &CommonArgs,
    live: LiveNodesArgs,
    output: &Output,
) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    let step = "which this step would stop: replace their processes, or wait until they have lapsed; to finish the \
                upgrade now";
    nodes::refuse_live(&store, common, live, step, |report| match &report.process {
        None => Some("version unknown".to_owned()),
        Some(process) if process.tables < tables_version() => {
            Some(format!("version {}", process.version))
        }
        Some(_) => None,
    })
    .await?;
    store.finish_upgrade().await?;
    let message = format!(
        "finished the upgrade of {}: processes of the previous version are refused from now on",
        common.store
    );
    let document = json!({ "store": common.store.to_string(), "finished": true });
    output.done(&message, &document)
}

pub(crate) async fn check(common: &CommonArgs, output: &Output) -> CliResult<()> {
    let elapsed = output.show_elapsed(format!("checking {}", common.store));
    let mut went_back = Vec::new();
    let (report, replica) = match store::open(common, Expected::Existing).await {
        Ok(store) => {
            let report = store.check_integrity().await?;
            if report.is_sound() {
                went_back = nodes::went_back(&store).await?;
            }
            let replica = Arc::new(Replica::new(store.keys(), Arc::new(SystemClock)));
            // A damaged store may fail to sync. The report names the damage.
            let replica = match replica.sync().await {
                Err(error) if report.faults.is_empty() => return Err(error.into()),
                Err(_) => None,
                Ok(_) => Some(replica),
            };
            (report, replica)
        }
        Err(unopened) => (check_unopened(common, unopened).await?, None),
    };
    drop(elapsed);
    let ahead = (replica.as_ref()).map_or_else(Default::default, |known| known.tenants_ahead());
    // Damaged keys count under no pepper, so their counts could be too low.
    let peppers = match replica.filter(|_| report.faults.is_empty()) {
        Some(known) => Some(PepperUse::compare(common, known.keys_by_pepper(), output)?),
        None => None,
    };
    let faults = &report.faults;
    let printed = print_check(&report, &ahead, peppers.as_ref(), output);
    let mut problems = peppers.as_ref().map_or_else(Vec::new, PepperUse::problems);
    problems.extend(went_back);
    if !faults.is_empty() {
        let salvage = match &common.store {
            StoreLocation::File(_) => ", or copy what is whole: keyctl salvage",
            _ => "",
        };
        problems.push(match common.allow_unrecovered {
            true => format!(
                "{} has lost something: run `keyctl recover` if it was salvaged, or restore another backup",
                common.store
            ),
            false => format!("{} is corrupt; restore a backup{salvage}", common.store),
        });
    }
    if !report.registry.is_empty() {
        problems.push(format!(
            "{}-nodes holds the reports of the nodes and is damaged: stop all processes of the store, and remove this \
             file and its -journal file; no receipt is then complete before the staleness bound has passed",
            common.store
        ));
    }
    match problems.is_empty() {
        true => printed,
        false => Err(CliError::new(CliErrorKind::Corrupt, problems.join("\n"))),
    }
}

/// Checks a damaged file that does not open. Returns the error of opening it if the file is no damaged store.
async fn check_unopened(common: &CommonArgs, unopened: CliError) -> CliResult<IntegrityReport> {
    let may_be_damaged = matches!(unopened.kind, CliErrorKind::Corrupt | CliErrorKind::Refused);
    let StoreLocation::File(path) = &common.store else {
        return Err(unopened);
    };
    if unopened.is_unrecovered || !may_be_damaged {
        return Err(unopened);
    }
    match SqliteStore::check_damaged(path).await {
        Ok(report) if !report.is_sound() => Ok(report),
        _ => Err(unopened),
    }
}

fn print_check(
    report: &IntegrityReport,
    ahead: &[(TenantId, Timestamp)],
    peppers: Option<&PepperUse>,
    output: &Output,
) -> CliResult<()> {
    let IntegrityReport {
        rows,
        audit,
        faults,
        losses,
        registry,
        ..
    } = report;
    if output.json {
        let ahead: Vec<_> = (ahead.iter())
            .map(|(tenant, at)| json!({"tenant": tenant, "newest": at}))
            .collect();
        return output.document(&json!({
            "intact": report.is_sound(), "rows": rows, "audit": audit, "faults": faults, "losses": losses, "ahead": ahead,
            "registry": registry,
            "peppers": peppers.map(|used| used.documents().collect::<Vec<_>>()),
            "peppers_compared": peppers.is_some_and(|used| used.file.is_some()),
        }));
    }
    for (tenant, at) in ahead {
        output.line(&format!(
            "the newest commit of tenant {tenant} is of {at}, in the future: \
             keyctl time repair --tenant {tenant}"
        ))?;
    }
    match peppers {
        Some(peppers) => {
            for (what, keys) in peppers.described() {
                output.line(&format!("{what}: {keys}"))?;
            }
            if peppers.file.is_none() {
                output.line(
                    "not checked: whether a pepper file has these peppers; name one with --pepper-file <FILE>",
                )?;
            }
        }
        None => output
            .line("not counted: the live keys of each pepper, because the store is damaged")?,
    }
    output.line(&format!(
        "{}, {}, {}",
        counted(*rows, "row"),
        counted(*audit, "audit entry"),
        counted(faults.len() + registry.len(), "fault")
    ))?;
    faults
        .iter()
        .chain(registry)
        .chain(losses)
        .try_for_each(|fault| output.line(fault))
}

pub(crate) async fn stats(common: &CommonArgs, output: &Output) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    let stats = store.stats().await?;
    let keys = pepper::keys_by_pepper(&store).await?;
    let peppers = PepperUse::compare(common, keys, output)?;
    if output.json {
        return output.document(&json!({
            "head": cursor(&stats.head),
            "keys": stats.keys,
            "removed": stats.removed,
            "owners": stats.owners,
            "tenants": stats.tenants,
            "audit": stats.audit,
            "peppers": peppers.documents().collect::<Vec<_>>(),
            "bytes": stats.bytes,
            "log_bytes": stats.log_bytes,
            "engine": stats.engine,
        }));
    }
    let row = |name: &str, value: &dyn ToString| vec![name.to_owned(), value.to_string()];
    let mut rows = vec![
        row("revision", &stats.head.revision),
        row("keys", &stats.keys),
    ];
    rows.extend(peppers.described().map(|(what, keys)| row(&what, &keys)));
    rows.extend([
        row("removed keys", &stats.removed),
        row("owners", &stats.owners),
        row("tenants", &stats.tenants),
        row("audit entries", &stats.audit),
        row("bytes on disk", &stats.bytes),
        row("bytes of its log", &stats.log_bytes),
        row("kept by", &stats.engine),
    ]);
    output.table(&[], &rows)
}

pub(super) fn cursor(head: &Cursor) -> Value {
    json!({
        "epoch": format!("{:032x}", head.epoch.0),
        "revision": head.revision.0,
        "tag": format!("{:032x}", head.tag.0),
    })
}
