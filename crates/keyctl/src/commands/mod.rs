//! The commands, one file for each kind.

mod audit;
mod bulk;
mod change;
mod import;
mod issue;
mod look;
mod migrate;
mod nodes;
mod pepper;
mod recover;
mod retain;
mod time;
mod upkeep;
mod usage;

use serde_json::json;

pub use self::import::check_import_line;
pub use self::recover::check_audit_line;
use crate::args::{Cli, CliCommand, TimeCommand};
use crate::desk::CliContext;
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::Output;
use crate::store::{self, Expected, StoreLocation};

pub(crate) async fn run(cli: Cli, output: &Output) -> CliResult<()> {
    let Cli {
        mut common,
        command,
    } = cli;
    if !command.is_about_keys() && (common.tenant.is_some() || common.principal.is_some()) {
        return Err(CliError::usage(
            "this command is about the store as a whole: leave out --tenant and --as",
        ));
    }
    match command {
        CliCommand::Init(named) => upkeep::init(common, &named, output).await,
        CliCommand::Backup { to, verify } => upkeep::backup(&common, to, verify, output).await,
        CliCommand::Restore { backup } => upkeep::restore(&common, &backup, output).await,
        CliCommand::StartNewEpoch(args) => {
            // Opens the store even if it still waits for the recovery of an earlier restore.
            common.allow_unrecovered = true;
            upkeep::start_new_epoch(&common, &args, output).await
        }
        CliCommand::FinishUpgrade(live) => upkeep::finish_upgrade(&common, live, output).await,
        CliCommand::MigrateStore(args) => migrate::run(&common, &args, output).await,
        CliCommand::Schema => {
            let sql = store::schema_sql(&common)?;
            match output.json {
                true => output.document(&json!({ "schema": common.schema, "sql": sql })),
                false => output.line(sql.trim_end()),
            }
        }
        CliCommand::Salvage(args) => upkeep::salvage(&args, output).await,
        CliCommand::Checkpoint => upkeep::checkpoint(&common, output).await,
        CliCommand::Vacuum => upkeep::vacuum(&common, output).await,
        CliCommand::Pepper(command) => pepper::run(&common, command, output).await,
        CliCommand::Nodes => nodes::list(&common, output).await,
        CliCommand::Check => upkeep::check(&common, output).await,
        CliCommand::Stats => upkeep::stats(&common, output).await,
        CliCommand::Recover(args) => {
            common.allow_unrecovered = false;
            let opened = store::open(&common, Expected::Existing).await;
            check_waits_for_recovery(opened, &common.store)?;
            // A store that waits for recovery opens only with this flag.
            common.allow_unrecovered = true;
            let context = CliContext::open(common).await?;
            context.warn_of_old_pepper_file(output);
            recover::run(&context, &args, output).await
        }
        mut command => {
            let context = CliContext::open(common).await?;
            if !command.only_lists() && !matches!(command, CliCommand::Audit(_)) {
                nodes::refuse_lost_commits(&context.backend).await?;
                context.warn_of_old_pepper_file(output);
            }
            let id = match command.command_id_mut() {
                Some(named) => Some(context.command_id(named)?),
                None => None,
            };
            let done = about_keys(&context, command, output).await;
            done.map_err(|error| error.with_command_id(id))
        }
    }
}

/// Refuses to recover a store that opens without `--allow-unrecovered`, so that a mistake does not disable its keys.
/// Any other failure to open says nothing about the store.
fn check_waits_for_recovery<S>(opened: CliResult<S>, store: &StoreLocation) -> CliResult<()> {
    match opened {
        Err(error) if error.is_unrecovered => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let message = format!(
                "{store} is not to be recovered: if it was restored by other means than `keyctl restore`, mark it \
                 with `keyctl start-new-epoch` first"
            );
            Err(CliError::new(CliErrorKind::Refused, message))
        }
    }
}

async fn about_keys(context: &CliContext, command: CliCommand, output: &Output) -> CliResult<()> {
    match command {
        CliCommand::Create(args) => issue::create(context, args, output).await,
        CliCommand::Rotate(args) => issue::rotate(context, &args, output).await,
        CliCommand::List(args) => look::list(context, args, output).await,
        CliCommand::Show { key } => look::show(context, &key, output).await,
        CliCommand::Usage(args) => usage::of_key(context, &args, output).await,
        CliCommand::Unused(args) => usage::unused(context, &args, output).await,
        CliCommand::Revoke(args) => change::revoke(context, &args, output).await,
        CliCommand::Disable(args) => change::disable(context, &args, output).await,
        CliCommand::Enable(args) => change::enable(context, &args, output).await,
        CliCommand::Delete(args) => change::delete(context, args, output).await,
        CliCommand::RevokeMany(args) => bulk::revoke_many(context, &args, output).await,
        CliCommand::RemoveOwner(args) => bulk::remove_owner(context, &args, output).await,
        CliCommand::CloseTenant(args) => bulk::close_tenant(context, args, output).await,
        CliCommand::Purge(named) => bulk::purge(context, &named, output).await,
        CliCommand::Audit(args) => audit::run(context, &args, output).await,
        CliCommand::PruneAudit(args) => audit::prune(context, &args, output).await,
        CliCommand::Retain(args) => retain::run(context, &args, output).await,
        CliCommand::Import(args) => import::run(context, &args, output).await,
        CliCommand::Time(TimeCommand::Repair(named)) => time::repair(context, &named, output).await,
        CliCommand::Init(_)
        | CliCommand::Backup { .. }
        | CliCommand::Restore { .. }
        | CliCommand::Recover(_)
        | CliCommand::StartNewEpoch(_)
        | CliCommand::FinishUpgrade(_)
        | CliCommand::MigrateStore(_)
        | CliCommand::Schema
        | CliCommand::Salvage(_)
        | CliCommand::Checkpoint
        | CliCommand::Vacuum
        | CliCommand::Pepper(_)
        | CliCommand::Nodes
        | CliCommand::Check
        | CliCommand::Stats => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use keyward::store::sqlite::OpenError;

    use super::*;

    /// The second attempt to open a healthy store would succeed, and every key would be disabled.
    #[test]
    fn only_a_store_that_waits_for_recovery_is_recovered() {
        let path = || PathBuf::from("keys.db");
        let check = |opened| check_waits_for_recovery::<()>(opened, &StoreLocation::File(path()));
        let unrecovered = OpenError::Unrecovered { path: path() };
        check(Err(unrecovered.into())).unwrap();
        let locked = OpenError::Locked { path: path() };
        let refused = check(Err(locked.into())).unwrap_err();
        assert!(matches!(refused.kind, CliErrorKind::Unavailable));
        let healthy = check(Ok(())).unwrap_err();
        assert!(matches!(healthy.kind, CliErrorKind::Refused));
        assert!(healthy.message.contains("start-new-epoch"), "{healthy:?}");
    }
}
