//! The commands and their arguments.

mod bulk;
mod global;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand};

pub(crate) use self::bulk::{BulkConfirmArgs, CloseTenantArgs, RemoveOwnerArgs, RevokeManyArgs};
use crate::store::{StoreLocation, file_name};
use crate::words::{ReasonWord, RotationWord, SortWord, StatusWord, duration, page_size};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  denied or refused; nothing was changed
  2  wrong usage, or a malformed value
  3  the store or a file cannot be used now, or others were faster too often: try again
  4  something stored is corrupt, or an audit chain is broken
  5  no such key, tenant, store or file
  6  no access: a wrong password, a missing privilege, missing tables, a server without trusted TLS, or a file that
     may not be read or written
  7  done in part, or done and not printed or not confirmed: the message says what is done and what is left

Secrets are read from files and written to stdout, once. None is ever an argument.";

/// Runs a keyward store: its keys, their audit trail, backups.
#[derive(Debug, Parser)]
#[command(name = "keyctl", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(subcommand)]
    pub(crate) command: CliCommand,
}

/// The options of every command. Conditions on them are in [`global`], because clap checks only one side of the command.
#[derive(Debug, Args)]
pub(crate) struct CommonArgs {
    /// The store: a file, postgres://USER:PASSWORD@HOST/DATABASE, or "host=… user=… dbname=…"
    // Reads an environment variable too, because other users of the machine can see arguments. The help does
    // not show its value, because a URL may contain a password.
    #[arg(
        long,
        global = true,
        env = "KEYWARD_STORE",
        hide_env_values = true,
        value_parser = location(),
        default_value = "keys.db"
    )]
    pub(crate) store: StoreLocation,
    /// The schema of a database that holds the store
    #[arg(
        long,
        global = true,
        env = "KEYWARD_SCHEMA",
        value_name = "NAME",
        default_value = "keyward"
    )]
    pub(crate) schema: String,
    /// The role that may own --schema and its tables, besides the role that connects
    #[arg(long, global = true, env = "KEYWARD_SCHEMA_OWNER", value_name = "ROLE")]
    pub(crate) schema_owner: Option<String>,
    /// The file that holds the pepper [default: <STORE>.pepper beside a file]
    #[arg(long, global = true, value_name = "FILE", value_parser = path())]
    pub(crate) pepper_file: Option<PathBuf>,
    /// The service's pepper file is lost: accept a new one, although no existing secret verifies with it
    #[arg(long, global = true)]
    pub(crate) pepper_lost: bool,
    /// The policy, as JSON, for every process if its version is newer [default: the policy in the store, or else
    /// the standard profile]
    #[arg(long, global = true, value_name = "FILE", value_parser = path())]
    pub(crate) policy: Option<PathBuf>,
    /// The tenant the command applies to
    #[arg(long, global = true)]
    pub(crate) tenant: Option<String>,
    /// Act as this principal of --tenant [default: as the host itself]
    #[arg(long = "as", global = true, value_name = "PRINCIPAL")]
    pub(crate) principal: Option<String>,
    /// The role of --as
    #[arg(long, global = true)]
    pub(crate) role: Option<String>,
    /// Print JSON: one document, or one per line for lists
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Time to wait while another process has the store locked
    #[arg(long, global = true, value_parser = duration, default_value = "5s")]
    pub(crate) wait: Duration,
    /// Open a restored store whose recovery is not finished
    #[arg(long, global = true)]
    pub(crate) allow_unrecovered: bool,
}

fn location() -> impl TypedValueParser<Value = StoreLocation> {
    OsStringValueParser::new().try_map(StoreLocation::try_from)
}

fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(file_name)
}

/// The command id, for commands that change something.
#[derive(Debug, Args)]
pub(crate) struct CommandIdArgs {
    /// Names the command, so that repeating it changes nothing [default: random]
    #[arg(long, value_name = "ID")]
    pub(crate) command_id: Option<String>,
}

/// The option to wait for the nodes, for commands that end or narrow keys.
#[derive(Debug, Args)]
pub(crate) struct UntilConfirmedArgs {
    /// Wait until no registered node can act on the earlier state, and list the nodes
    #[arg(long)]
    pub(crate) until_confirmed: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    /// Set up a store and its pepper; with --tenant also create that tenant
    Init(CommandIdArgs),
    /// Create a key, and print only its secret to stdout
    Create(CreateArgs),
    /// List keys, of all tenants unless --tenant is given
    List(ListArgs),
    /// Show one key
    Show { key: String },
    /// Show how often a key was used on each day, by outcome
    Usage(UsageArgs),
    /// List keys of --tenant that were not used for some time
    Unused(UnusedArgs),
    /// Replace a key with a successor, and print only the successor's secret to stdout
    Rotate(RotateArgs),
    /// Revoke a key permanently
    Revoke(RevokeArgs),
    /// Refuse a key until it is enabled again
    Disable(KeyArgs),
    /// Let a disabled key work again
    Enable(KeyArgs),
    /// Remove a key permanently
    Delete(DeleteArgs),
    /// Revoke many keys of --tenant permanently
    RevokeMany(RevokeManyArgs),
    /// Remove a principal as an owner, with all its keys
    RemoveOwner(RemoveOwnerArgs),
    /// End a tenant and all its keys permanently
    CloseTenant(CloseTenantArgs),
    /// Remove revoked and expired keys whose retention period is over
    Purge(CommandIdArgs),
    /// List the registered processes that verify keys, and the newest revision that each has applied
    Nodes,
    /// Show the audit trail, or check that nobody altered it
    Audit(AuditArgs),
    /// Remove old entries of the audit trail, after checking it
    PruneAudit(PruneAuditArgs),
    /// Remove revoked and expired keys and audit entries that the policy no longer keeps, and old tombstones
    Retain(RetainArgs),
    /// Import existing keys, one JSON object per line, as SHA-256 digests
    Import(ImportArgs),
    /// Write a copy of the store, without its pepper
    Backup {
        #[arg(value_parser = path())]
        to: PathBuf,
        /// Check the checksums and the number of all rows of the copy before the copy gets its name
        #[arg(long)]
        verify: bool,
    },
    /// Create --store from a backup
    Restore {
        #[arg(value_parser = path())]
        backup: PathBuf,
    },
    /// Recover a restored store, so that it opens again
    Recover(RecoverArgs),
    /// Mark a store that was restored by other means than `restore`, so that it waits for `recover`
    StartNewEpoch(StartNewEpochArgs),
    /// Copy the undamaged rows of a file to a new file, and name the rows that are left out
    Salvage(SalvageArgs),
    /// Move all commits from a file's -wal file into the file
    Checkpoint,
    /// Make a file as small as its contents. Needs free space for two more copies, and blocks commits
    Vacuum,
    /// Check the store's integrity and the peppers of its keys, and name the tenants whose newest commit lies in
    /// the future
    Check,
    /// Repair the effects of a wrong clock
    #[command(subcommand)]
    Time(TimeCommand),
    /// Show, rotate and retire the peppers of the pepper file
    #[command(subcommand)]
    Pepper(PepperCommand),
    /// Show the numbers of keys, of keys by pepper and of other rows, and the size of the store
    Stats,
    /// Copy a store into another one, such as a file into a database, while nobody uses either
    MigrateStore(MigrateStoreArgs),
    /// Finish a rolling upgrade: refuse processes of the previous version from now on
    FinishUpgrade(LiveNodesArgs),
    /// Print the SQL that sets up --schema in a database, for migrations of your own
    Schema,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Stop everything that uses the store first. TO must be empty. The copy is one transaction, and is
compared with FROM before it commits: interrupted, it leaves TO empty, and can be started again. FROM
stays as it is. TO gets a history of its own: followers start over, and the audit trail goes on. The
pepper is not copied.

A password in an argument is seen by other users of the machine: env:NAME takes FROM or TO from the
variable NAME.")]
pub(crate) struct MigrateStoreArgs {
    /// The store to copy: a file, a database's URL, or env:NAME
    #[arg(value_parser = location())]
    pub(crate) from: StoreLocation,
    /// The target: a file, a database's URL, or env:NAME, with nothing in it yet
    #[arg(value_parser = location())]
    pub(crate) to: StoreLocation,
    /// The schema of TO, if it differs from --schema
    #[arg(long, value_name = "NAME")]
    pub(crate) to_schema: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
FROM stays as it is. A damaged key is left out of TO, so its token is refused. Keys whose owner or tenant
is damaged are left out too. TO opens only after a recovery. If TO is the newest state that exists, run
`keyctl --store TO recover --trust-backup`.")]
pub(crate) struct SalvageArgs {
    /// The damaged file
    #[arg(value_parser = path())]
    pub(crate) from: PathBuf,
    /// The new file
    #[arg(value_parser = path())]
    pub(crate) to: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
For a file that was copied back without `restore`, a database that was restored with its own tools, and a
database after a failover that lost commits. Every node then refuses every key and every command until
`keyctl recover` has ended. Afterwards, every node reads the whole store again.")]
pub(crate) struct StartNewEpochArgs {
    #[command(flatten)]
    pub(crate) live: LiveNodesArgs,
}

/// The confirmation of a step after which live nodes refuse keys.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LiveNodesArgs {
    /// Go on although live nodes then refuse keys
    #[arg(long)]
    pub(crate) yes: bool,
}

/// The arguments of [`RecoverArgs`] of which exactly one is required.
const RECOVERIES: [&str; 4] = ["disable_all", "replay_from", "replay_file", "trust_backup"];

/// The method that stops keys from working again if they were revoked after the backup was made.
#[derive(Debug, Args)]
#[command(after_help = "\
A replay needs a trail that continues after the backup. `recover` refuses these sources, and changes
nothing: the restored store itself, the backup, an empty store, and a store with another history. If the
trail of a tenant is missing, ends before the backup, or belongs to another store, all keys of the tenant
are disabled. So are the keys of the tenants above and below it. The report names the last entry of each
trail. A key that was revoked after that entry works again. To replay from another schema of the same
database, use --replay-from env:KEYWARD_STORE --replay-schema NAME.")]
#[group(skip)]
#[command(group(ArgGroup::new("how").required(true).args(RECOVERIES)))]
pub(crate) struct RecoverArgs {
    /// Disable every key; enable or rotate them one by one
    #[arg(long)]
    pub(crate) disable_all: bool,
    /// Repeat the changes that ended or narrowed keys, from the trail of another store, as a file, a URL or env:NAME
    #[arg(long, value_name = "STORE", value_parser = location())]
    pub(crate) replay_from: Option<StoreLocation>,
    /// Repeat the changes that ended or narrowed keys, as recorded in lines that `keyctl audit --json --all`
    /// wrote; may be repeated. Disables the keys of each tenant without later lines, unless --trust-unchanged is
    /// set
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub(crate) replay_file: Vec<PathBuf>,
    /// Nothing was revoked or narrowed since the backup
    #[arg(long)]
    pub(crate) trust_backup: bool,
    /// The schema of --replay-from, if it differs from --schema
    // `requires` alone is ignored if another argument excludes the required one.
    #[arg(
        long,
        value_name = "NAME",
        requires = "replay_from",
        conflicts_with_all = ["disable_all", "replay_file", "trust_backup"]
    )]
    pub(crate) replay_schema: Option<String>,
    /// Keep each tenant without later lines as it is; the files must hold the whole trail up to the loss. If no tenant
    /// has later lines, use --trust-backup instead
    #[arg(
        long,
        requires = "replay_file",
        conflicts_with_all = ["disable_all", "replay_from", "trust_backup"]
    )]
    pub(crate) trust_unchanged: bool,
}

impl CliCommand {
    /// Returns the place of the command id, for a command that changes one key.
    pub(crate) const fn command_id_mut(&mut self) -> Option<&mut Option<String>> {
        let named = match self {
            Self::Create(args) => &mut args.named,
            Self::Rotate(args) => &mut args.named,
            Self::Revoke(args) => &mut args.named,
            Self::Disable(args) | Self::Enable(args) => &mut args.named,
            Self::Delete(args) => &mut args.named,
            _ => return None,
        };
        Some(&mut named.command_id)
    }

    /// Returns whether the command only prints rows. Such a command ends, and succeeds, if its reader closes stdout
    /// early.
    pub(crate) const fn only_lists(&self) -> bool {
        match self {
            Self::List(_)
            | Self::Show { .. }
            | Self::Usage(_)
            | Self::Unused(_)
            | Self::Nodes
            | Self::Stats
            | Self::Schema => true,
            Self::Audit(args) => !args.check,
            Self::Pepper(PepperCommand::Show) => true,
            _ => false,
        }
    }

    /// Returns whether the command is about keys and tenants. Any other command is about the store as a whole.
    pub(crate) const fn is_about_keys(&self) -> bool {
        match self {
            Self::Init(_)
            | Self::Create(_)
            | Self::List(_)
            | Self::Show { .. }
            | Self::Usage(_)
            | Self::Unused(_)
            | Self::Rotate(_)
            | Self::Revoke(_)
            | Self::Disable(_)
            | Self::Enable(_)
            | Self::Delete(_)
            | Self::RevokeMany(_)
            | Self::RemoveOwner(_)
            | Self::CloseTenant(_)
            | Self::Purge(_)
            | Self::Audit(_)
            | Self::PruneAudit(_)
            | Self::Retain(_)
            | Self::Import(_)
            | Self::Time(_) => true,
            Self::Nodes
            | Self::Backup { .. }
            | Self::Restore { .. }
            | Self::Recover(_)
            | Self::StartNewEpoch(_)
            | Self::Salvage(_)
            | Self::Checkpoint
            | Self::Vacuum
            | Self::Check
            | Self::Pepper(_)
            | Self::Stats
            | Self::MigrateStore(_)
            | Self::FinishUpgrade(_)
            | Self::Schema => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TimeCommand {
    /// Set the newest instant of --tenant back to the current time, and list its keys with later times
    Repair(CommandIdArgs),
}

#[derive(Debug, Subcommand)]
#[command(after_help = "\
A rotation refuses no key if each process is restarted after `prepare`, and again after `rotate`. Retire the old
pepper once no live key needs it. A process reads the file only when it starts, so one that was not restarted
since `rotate` goes on creating keys with the old pepper. Once it is retired, other processes refuse these keys.")]
pub(crate) enum PepperCommand {
    /// Show each pepper, its state, and the number of live keys that need it
    Show,
    /// Add the pepper of the next rotation, which only verifies until then
    Prepare,
    /// Make the prepared pepper the current one; refused while a live node lacks it
    Rotate(LiveNodesArgs),
    /// Take an old pepper out of service; refused while live keys need the pepper, or a live node still uses it
    Retire {
        /// The pepper's id, as `pepper show` prints it
        pepper: String,
        #[command(flatten)]
        live: LiveNodesArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) wait: UntilConfirmedArgs,
    #[command(flatten)]
    pub(crate) named: CommandIdArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// A name for people to read
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) class: Option<String>,
    /// The environment the key may be used in, such as live or test
    #[arg(long)]
    pub(crate) environment: Option<String>,
    /// A scope, such as reports:read; may be repeated. Without one the key may do nothing
    #[arg(long)]
    pub(crate) scope: Vec<String>,
    #[arg(long)]
    pub(crate) description: Option<String>,
    #[arg(long)]
    pub(crate) purpose: Option<String>,
    /// An object in your own system that the key belongs to, such as project:4711
    #[arg(long, value_name = "KIND:ID")]
    pub(crate) resource: Option<String>,
    /// Data of your own; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) metadata: Vec<String>,
    /// The principal that owns the key [default: its creator]
    #[arg(long, requires = "owner_role")]
    pub(crate) owner: Option<String>,
    /// The owner's role, if the tenant does not know the owner yet
    #[arg(long, requires = "owner")]
    pub(crate) owner_role: Option<String>,
    /// Make the tenant itself the key's owner
    #[arg(long, conflicts_with = "owner")]
    pub(crate) owned_by_tenant: bool,
    /// A network or address the key may be used from; may be repeated
    #[arg(long, value_name = "NETWORK")]
    pub(crate) allow: Vec<String>,
    /// The key's lifetime, such as 90d, 12h, 30m or 45s
    #[arg(long, value_parser = duration, group = "end")]
    pub(crate) expires_in: Option<Duration>,
    /// The key's expiry, such as 2027-01-31T12:00:00Z
    #[arg(long, group = "end")]
    pub(crate) expires_at: Option<String>,
    #[arg(long, group = "end")]
    pub(crate) never_expires: bool,
    #[command(flatten)]
    pub(crate) named: CommandIdArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Also list keys of the tenants below --tenant
    #[arg(long)]
    pub(crate) below: bool,
    /// A status to list; may be repeated
    #[arg(long)]
    pub(crate) status: Vec<StatusWord>,
    #[arg(long)]
    pub(crate) class: Option<String>,
    #[arg(long)]
    pub(crate) owner: Option<String>,
    /// Part of the name; case is ignored
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Part of the hint
    #[arg(long)]
    pub(crate) hint: Option<String>,
    #[arg(long)]
    pub(crate) fingerprint: Option<String>,
    /// Keys that expire within this time from now, such as 30d
    #[arg(long, value_parser = duration, value_name = "WITHIN")]
    pub(crate) expiring: Option<Duration>,
    #[arg(long, default_value = "created")]
    pub(crate) sort: SortWord,
    /// Continue after this position, as printed with the previous page; works even if its last key was deleted
    #[arg(long, value_name = "POSITION")]
    pub(crate) after: Option<String>,
    /// The page size; with --all, keys per read
    #[arg(long, value_parser = page_size, default_value = "100")]
    pub(crate) limit: NonZeroUsize,
    /// All pages
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    pub(crate) key: String,
    /// The number of days, up to today in UTC
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4000), default_value = "30")]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct UnusedArgs {
    /// The time without a use, such as 90d; keys that are younger are left out
    #[arg(long = "for", value_parser = duration, default_value = "90d", value_name = "TIME")]
    pub(crate) unused_for: Duration,
    /// Also list keys of the tenants below --tenant
    #[arg(long)]
    pub(crate) below: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    pub(crate) key: String,
    /// End the old key immediately
    #[arg(long, group = "mode")]
    pub(crate) immediate: bool,
    /// Time the old key keeps working [default: set by its class]
    #[arg(long, value_parser = duration, group = "mode")]
    pub(crate) grace: Option<Duration>,
    /// Time the old key keeps working after the first use of its successor
    #[arg(long, value_parser = duration, group = "mode", value_name = "GRACE")]
    pub(crate) on_first_use: Option<Duration>,
    /// With --on-first-use: the longest time the old key keeps working [default: set by the policy]
    #[arg(long, value_parser = duration, value_name = "WAIT", requires = "on_first_use")]
    pub(crate) no_later_than: Option<Duration>,
    #[arg(long, default_value = "routine")]
    pub(crate) reason: RotationWord,
    #[command(flatten)]
    pub(crate) named: CommandIdArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    pub(crate) key: String,
    #[arg(long)]
    pub(crate) reason: ReasonWord,
    /// Also revoke every key made by this key or by another key of its rotation chain
    #[arg(long)]
    pub(crate) with_made: bool,
    /// Only list the keys that this key made and that still work
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Confirm the revocation, if the key's class requires that
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) wait: UntilConfirmedArgs,
    #[command(flatten)]
    pub(crate) named: CommandIdArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    pub(crate) key: String,
    /// The confirmation text: the text set by the policy, or the key's name
    #[arg(long, value_name = "TEXT")]
    pub(crate) confirm: Option<String>,
    /// The number of things that still refer to the key, if the class of the key requires it
    #[arg(long, value_parser = str::parse::<u32>)]
    pub(crate) references: Option<u32>,
    #[command(flatten)]
    pub(crate) wait: UntilConfirmedArgs,
    #[command(flatten)]
    pub(crate) named: CommandIdArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
With --json each line is one complete entry, which `keyctl recover --replay-file` reads back:
`keyctl audit --json --all` exports the whole trail. Without --all, a further page begins after the
\"next\" that is printed to stderr.")]
pub(crate) struct AuditArgs {
    /// Check the chain instead of showing its entries; checks all tenants unless --tenant is given
    #[arg(long, conflicts_with_all = ["key", "actor", "command", "from", "before", "after", "all"])]
    pub(crate) check: bool,
    /// An earlier end of --tenant's chain, as printed by --check: the chain must contain it
    #[arg(long, requires = "check", value_name = "SEQUENCE:HASH")]
    pub(crate) seen: Option<String>,
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Changes made by this principal
    #[arg(long, value_name = "PRINCIPAL")]
    pub(crate) actor: Option<String>,
    /// Changes made by the command with this id
    #[arg(long, value_name = "ID")]
    pub(crate) command: Option<String>,
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    #[arg(long, value_name = "TIME")]
    pub(crate) before: Option<String>,
    /// Continue after this position, as printed with the previous page
    #[arg(long, value_name = "POSITION")]
    pub(crate) after: Option<String>,
    /// The page size; with --all, entries per read
    #[arg(long, value_parser = page_size, default_value = "100")]
    pub(crate) limit: NonZeroUsize,
    /// All pages
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
An entry that stays records the removal, so `audit --check` still passes, and fails if more is missing.
Commands of removed entries are not recognized when they are repeated, events that nobody has read yet are
lost, and `recover --replay-from` cannot repeat them: keep the entries since the oldest backup, or export
them with `audit --json --all` first, for `recover --replay-file`.")]
pub(crate) struct PruneAuditArgs {
    /// Remove entries older than this instant
    #[arg(long, value_name = "TIME")]
    pub(crate) before: String,
    /// An earlier end of --tenant's chain, as printed by `audit --check`: the chain must contain it
    #[arg(long, value_name = "SEQUENCE:HASH")]
    pub(crate) seen: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A class keeps revoked and expired keys for its \"keep_seconds\", and the policy keeps audit entries for its
\"keep_audit_seconds\". Without these fields, all keys and entries stay. Entries must stay for longer than the
age of the oldest backup that may be restored, because `recover` repeats revocations from them.

A tombstone says that a key was removed. A node that has not read it yet reads the whole store again once it
is dropped, so tombstones that a registered node has not applied stay. Audit entries show the age of a tombstone:
if all entries of that age were removed, the tombstones stay. So keep entries for longer than tombstones.")]
pub(crate) struct RetainArgs {
    /// Count the keys and entries that would be removed, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Drop the tombstones of keys that were removed longer ago than this age, such as 90d, for all tenants
    #[arg(long, value_parser = duration, value_name = "AGE")]
    pub(crate) tombstones: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line has \"sha256\" (64 hexadecimal digits) and \"name\", and may have \"tenant\" (else --tenant),
\"class\", \"environment\", \"scopes\", \"description\", \"purpose\", \"owner\" with \"owner_role\",
\"addresses\", \"metadata\", \"hint\", and \"expires_at\" or \"never_expires\". Lines that are refused are
reported and skipped. Importing the same lines again
changes nothing. `keyctl rotate` replaces an imported key by one with a new token.")]
pub(crate) struct ImportArgs {
    /// The file with the lines to import [default: stdin]
    #[arg(value_parser = path())]
    pub(crate) file: Option<PathBuf>,
    /// The beginning of each line's command id, before "-" and the line number [default: by digest]
    #[arg(long, value_name = "ID")]
    pub(crate) command_id: Option<String>,
}
