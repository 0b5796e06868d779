//! The arguments of commands that change many keys.

use clap::Args;

use super::{CommandIdArgs, UntilConfirmedArgs};
use crate::words::ReasonWord;

/// The confirmation of a command that ends many keys.
#[derive(Debug, Args)]
pub(crate) struct BulkConfirmArgs {
    /// Count the keys that would be ended, and end none
    #[arg(long, conflicts_with_all = ["expect", "yes"])]
    pub(crate) dry_run: bool,
    /// Confirm if exactly this number of keys would be ended
    #[arg(long, value_name = "COUNT")]
    pub(crate) expect: Option<usize>,
    /// Confirm for any number of keys
    #[arg(long, conflicts_with = "expect")]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Applies to --tenant alone, not to the tenants below it. Legacy keys are skipped. Without --expect or
--yes, nothing is changed and the keys are counted. After an interruption, repeat the command under its
--command-id, or with --yes.")]
#[group(id = "which", required = true, multiple = true, args = ["owner", "class", "pepper", "created_before", "all"])]
pub(crate) struct RevokeManyArgs {
    /// Select the keys of this owner
    #[arg(long, value_name = "PRINCIPAL")]
    pub(crate) owner: Option<String>,
    /// Select the keys of this class
    #[arg(long)]
    pub(crate) class: Option<String>,
    /// Select the keys that need this pepper: after a rotation, those that were not used since
    #[arg(long, value_name = "ID")]
    pub(crate) pepper: Option<String>,
    /// Select the keys that were created before this instant
    #[arg(long, value_name = "TIME")]
    pub(crate) created_before: Option<String>,
    /// Select every key
    #[arg(long, conflicts_with_all = ["owner", "class", "pepper", "created_before"])]
    pub(crate) all: bool,
    #[arg(long)]
    pub(crate) reason: ReasonWord,
    #[command(flatten)]
    pub(crate) confirm: BulkConfirmArgs,
    #[command(flatten)]
    pub(crate) wait: UntilConfirmedArgs,
    #[command(flatten)]
    pub(crate) named: CommandIdArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Refuses and revokes the principal's keys in --tenant and in the tenants below it. Without --expect or
--yes, nothing is changed and the keys are counted. After an interruption, repeat the command under its
--command-id, or with --yes.")]
pub(crate) struct RemoveOwnerArgs {
    /// The owner to remove
    #[arg(value_name = "PRINCIPAL")]
    pub(crate) owner: String,
    #[command(flatten)]
    pub(crate) confirm: BulkConfirmArgs,
    #[command(flatten)]
    pub(crate) wait: UntilConfirmedArgs,
    #[command(flatten)]
    pub(crate) named: CommandIdArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Ends every key of --tenant and of the tenants below it permanently, legacy keys included. Nothing opens
the tenant again. After an interruption, repeat the command.")]
pub(crate) struct CloseTenantArgs {
    /// The confirmation text: the tenant's name
    #[arg(long, value_name = "TEXT")]
    pub(crate) confirm: Option<String>,
    #[command(flatten)]
    pub(crate) wait: UntilConfirmedArgs,
    #[command(flatten)]
    pub(crate) named: CommandIdArgs,
}
