//! Conditions on the options that every command has.
//!
//! Such an option may stand before or after the command. clap itself checks a condition only among the options on the
//! same side of the command, so these conditions are checked after parsing.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error, FromArgMatches};

use super::{AuditArgs, Cli, CliCommand, PruneAuditArgs, RetainArgs};

/// A condition that a command line breaks. The names are those of the arguments' definitions.
enum Broken {
    Missing(&'static str),
    Conflict(&'static str, &'static str),
}

impl Cli {
    /// Parses the arguments of a process, of which the first is the program.
    pub(crate) fn read<A>(args: impl IntoIterator<Item = A>) -> Result<Self, Error>
    where
        A: Into<std::ffi::OsString> + Clone,
    {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(args)?;
        let cli = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        match cli.broken() {
            None => Ok(cli),
            Some(broken) => {
                let named = matches.subcommand_name();
                let usage = named.and_then(|name| command.find_subcommand_mut(name));
                Err(broken.into_error(usage.map(Command::render_usage)))
            }
        }
    }

    fn broken(&self) -> Option<Broken> {
        let Self { common, command } = self;
        match (&common.principal, &common.role) {
            (Some(_), None) => return Some(Broken::Missing("--role <ROLE>")),
            (None, Some(_)) => return Some(Broken::Missing("--as <PRINCIPAL>")),
            _ => {}
        }
        match (command, &common.tenant) {
            (
                CliCommand::Audit(AuditArgs { seen: Some(_), .. })
                | CliCommand::PruneAudit(PruneAuditArgs { seen: Some(_), .. }),
                None,
            ) => Some(Broken::Missing("--tenant <TENANT>")),
            (
                CliCommand::Retain(RetainArgs {
                    tombstones: Some(_),
                    ..
                }),
                Some(_),
            ) => Some(Broken::Conflict("--tombstones <AGE>", "--tenant <TENANT>")),
            _ => None,
        }
    }
}

impl Broken {
    /// Builds the error that clap itself returns for such a condition.
    fn into_error(self, usage: Option<clap::builder::StyledStr>) -> Error {
        let text = |name: &str| ContextValue::String(name.to_owned());
        let mut error = match self {
            Self::Missing(name) => {
                let mut error = Error::new(ErrorKind::MissingRequiredArgument);
                error.insert(ContextKind::InvalidArg, text(name));
                error
            }
            Self::Conflict(name, prior) => {
                let mut error = Error::new(ErrorKind::ArgumentConflict);
                error.insert(ContextKind::InvalidArg, text(name));
                error.insert(ContextKind::PriorArg, text(prior));
                error
            }
        };
        if let Some(usage) = usage {
            error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a command line with the options on either side of the command, and checks that both ways end alike.
    #[track_caller]
    fn kind(options: &[&str], command: &[&str]) -> Option<ErrorKind> {
        let ends = [[options, command].concat(), [command, options].concat()].map(|args| {
            let read = Cli::read([&["keyctl"], &args[..]].concat());
            read.err().map(|error| error.kind())
        });
        assert_eq!(ends[0], ends[1], "{options:?} {command:?}");
        ends[0]
    }

    #[test]
    fn a_condition_on_a_global_option_holds_on_either_side_of_the_command() {
        let missing = Some(ErrorKind::MissingRequiredArgument);
        let tenant = &["--tenant", "acme"][..];
        for (options, command, expected) in [
            (tenant, &["audit", "--check", "--seen", "1:0"][..], None),
            (&[], &["audit", "--check", "--seen", "1:0"], missing),
            (tenant, &["audit", "--seen", "1:0"], missing),
            (
                tenant,
                &["prune-audit", "--before", "now", "--seen", "1:0"],
                None,
            ),
            (
                &[],
                &["prune-audit", "--before", "now", "--seen", "1:0"],
                missing,
            ),
            (&["--as", "ann", "--role", "admin"], &["list"], None),
            (&["--as", "ann"], &["list"], missing),
            (&["--role", "admin"], &["list"], missing),
            (&["--role", "admin"], &["list", "--as", "ann"], None),
            (
                &["--as", "ann"],
                &["pepper", "show", "--role", "admin"],
                None,
            ),
            (&[], &["retain", "--tombstones", "1d"], None),
            (
                tenant,
                &["retain", "--tombstones", "1d"],
                Some(ErrorKind::ArgumentConflict),
            ),
        ] {
            assert_eq!(kind(options, command), expected, "{options:?} {command:?}");
        }
    }

    #[test]
    fn a_broken_condition_names_the_option_and_the_usage_of_the_command() {
        let error = Cli::read(["keyctl", "audit", "--check", "--seen", "1:0"]).unwrap_err();
        let named = error.get(ContextKind::InvalidArg).map(ToString::to_string);
        assert_eq!(named.as_deref(), Some("--tenant <TENANT>"));
        let usage = error.get(ContextKind::Usage).map(ToString::to_string);
        assert!(usage.is_some_and(|usage| usage.starts_with("Usage: keyctl audit")));
    }
}
