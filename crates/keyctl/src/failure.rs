//! Errors of the command line: an exit code and a message.

use std::io;
use std::process::ExitCode;

use keyward::audit::{AuditError, ChainError};
use keyward::command::Invalid;
use keyward::pepper::PepperFileError;
use keyward::policy::PolicyError;
use keyward::recovery::RecoveryError;
#[cfg(feature = "postgres")]
use keyward::store::postgres::ConnectError;
use keyward::store::sqlite::OpenError;
use keyward::store::transfer::CopyError;
use keyward::store::{PositionError, StoreError, StoreErrorKind};
use keyward::usage::UsageQueryError;
use keyward::{BuildError, CommandError, Denial, ErrorKind, WithSources};

use crate::output::Output;

/// The kinds of error. Each value is an exit code.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CliErrorKind {
    Refused = 1,
    Usage = 2,
    Unavailable = 3,
    Corrupt = 4,
    NotFound = 5,
    NoAccess = 6,
    /// The command was carried out in part, or its output could not be printed.
    InPart = 7,
}

impl CliErrorKind {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::NotFound => "not_found",
            Self::NoAccess => "no_access",
            Self::InPart => "in_part",
        }
    }

    /// Returns the kind of an error that opening a file returned.
    pub(crate) fn of_file(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::NoAccess,
            io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename => Self::Usage,
            _ => Self::Unavailable,
        }
    }

    /// Returns the kind of an error whose cause may be that of a file.
    fn of_sources(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        let file = causes.find_map(|cause| cause.downcast_ref());
        file.map_or(Self::Unavailable, Self::of_file)
    }
}

#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) kind: CliErrorKind,
    /// The stable code of the library's error. `None` for an error of the command line itself.
    pub(crate) code: Option<&'static str>,
    pub(crate) message: String,
    /// True if the reader of stdout has closed it, as `head` does.
    pub(crate) reader_gone: bool,
    /// True if the store waits for recovery.
    pub(crate) is_unrecovered: bool,
}

pub(crate) type CliResult<T> = Result<T, CliError>;

/// The faults of a command that works on each of many tenants. A fault of one tenant, or of the output, keeps
/// nothing from the other tenants.
#[derive(Default)]
pub(crate) struct TenantFaults {
    first: Option<CliError>,
    /// True if the command was carried out for at least one tenant, at least in part.
    any_done: bool,
}

impl TenantFaults {
    /// Keeps the first fault as that of the command, and prints later ones. A tenant whose result could not be printed
    /// counts as done.
    pub(crate) fn add(&mut self, done: CliResult<()>, output: &Output) {
        self.any_done |= match &done {
            Ok(()) => true,
            Err(error) => matches!(error.kind, CliErrorKind::InPart),
        };
        match (done, &self.first) {
            (Ok(()), _) => {}
            (Err(error), None) => self.first = Some(error),
            (Err(error), Some(_)) => output.failure(&error),
        }
    }

    /// Returns the first fault, if there was one.
    pub(crate) fn end(self) -> CliResult<()> {
        match self.first {
            None => Ok(()),
            Some(error) if self.any_done => Err(error.in_part()),
            Some(error) => Err(error),
        }
    }
}

impl CliError {
    pub(crate) fn new(kind: CliErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: None,
            message: message.into(),
            reader_gone: false,
            is_unrecovered: false,
        }
    }

    /// Builds an error whose message contains `error` and all its causes.
    fn of(kind: CliErrorKind, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(kind, WithSources(error).to_string())
    }

    fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(CliErrorKind::Usage, message)
    }

    /// Builds the error of a file or store that a command reads from, such as a backup. `keyctl init` creates none.
    pub(crate) fn no_source(what: impl std::fmt::Display) -> Self {
        let message = format!("{what} does not exist: name the backup or the store to read from");
        Self::new(CliErrorKind::NotFound, message)
    }

    /// Puts the subject of the error in front of its message.
    pub(crate) fn about(self, what: impl std::fmt::Display) -> Self {
        let message = format!("{what}: {}", self.message);
        Self { message, ..self }
    }

    /// Turns a refusal into one of a part of the command, because a plain refusal states that nothing was changed.
    pub(crate) const fn in_part(mut self) -> Self {
        if matches!(self.kind, CliErrorKind::Refused) {
            self.kind = CliErrorKind::InPart;
        }
        self
    }

    /// Turns the error of a later step into that of a command that is done in part. `done` states what was changed.
    pub(crate) fn after(self, done: impl std::fmt::Display) -> Self {
        Self {
            kind: CliErrorKind::InPart,
            ..self.about(done)
        }
    }

    /// Adds the id under which to repeat the command, if the command may have been carried out.
    pub(crate) fn with_command_id(mut self, id: Option<String>) -> Self {
        if let (Some("store-indeterminate"), Some(id)) = (self.code, id) {
            self.message += &format!(
                "; the command may have been carried out: repeat it with --command-id {id}, which carries it out at \
                 most once"
            );
        }
        self
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

/// A malformed value. The message describes valid values and never repeats the given value: people paste
/// secrets into the wrong place.
impl From<Invalid> for CliError {
    fn from(error: Invalid) -> Self {
        Self::of(CliErrorKind::Usage, &error).with_code(error.code())
    }
}

impl From<RecoveryError> for CliError {
    fn from(error: RecoveryError) -> Self {
        match error {
            RecoveryError::Interrupted(error) => error.into(),
            RecoveryError::NothingLater => {
                let message = "the trail ends where the restored store ends, so it may be that of the backup, and does \
                               not show later changes: if nothing was revoked or narrowed since the backup, use \
                               --trust-backup alone; otherwise replay the trail of the lost store, or use --disable-all";
                Self::new(CliErrorKind::Refused, message).with_code(error.code())
            }
            RecoveryError::Chain { .. } => {
                Self::of(CliErrorKind::Corrupt, &error).with_code(error.code())
            }
            // The source is the wrong one.
            error => Self::of(CliErrorKind::Refused, &error).with_code(error.code()),
        }
    }
}

impl From<PolicyError> for CliError {
    fn from(error: PolicyError) -> Self {
        Self::of(CliErrorKind::Usage, &error)
    }
}

impl From<BuildError> for CliError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Store(error) => error.into(),
            BuildError::UnrelatedPeppers { .. } => Self::new(
                CliErrorKind::Corrupt,
                "this pepper file has none of the peppers that the store's keys were created with: name the \
                 service's own with --pepper-file <FILE>, or state with --pepper-lost that it is lost",
            ),
            BuildError::Policy(_) | BuildError::PolicyNotStorable { .. } => {
                Self::of(CliErrorKind::Usage, &error).about("--policy")
            }
            BuildError::PepperDiffers { .. } => Self::of(CliErrorKind::Usage, &error),
            BuildError::Unreadable { .. } => Self::of(CliErrorKind::Corrupt, &error),
            error => Self::of(CliErrorKind::Unavailable, &error),
        }
    }
}

impl From<Denial> for CliError {
    fn from(error: Denial) -> Self {
        let kind = match (&error, error.kind()) {
            (Denial::Invalid(_), _) => CliErrorKind::Usage,
            (_, ErrorKind::NotFound) => CliErrorKind::NotFound,
            (_, ErrorKind::Internal) => CliErrorKind::Corrupt,
            _ => CliErrorKind::Refused,
        };
        let mut refused = Self::of(kind, &error).with_code(error.code());
        if let Some(step) = next_step(&error) {
            refused.message += &format!(": {step}");
        }
        refused
    }
}

/// Returns the option or the command that resolves a denial, if there is one.
fn next_step(denial: &Denial) -> Option<String> {
    let option = match denial {
        Denial::PurposeRequired => "--purpose <PURPOSE>",
        Denial::FirstUseWait { .. } => "--no-later-than <WAIT>",
        Denial::ConfirmationRequired => "--yes",
        Denial::ReferencesUnknown => "--references <REFERENCES>",
        Denial::AlreadyCreated { id, .. } => {
            return Some(format!(
                "replace it with keyctl rotate {id} --immediate, or revoke the key"
            ));
        }
        Denial::TenantAhead { tenant, .. } => {
            return Some(format!(
                "if that commit is wrong, set its time back with keyctl time repair --tenant {tenant}"
            ));
        }
        _ => return None,
    };
    Some(format!("repeat the command with {option}"))
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind() {
            StoreErrorKind::Corrupt => CliErrorKind::Corrupt,
            StoreErrorKind::Denied => CliErrorKind::NoAccess,
            _ => CliErrorKind::of_sources(&error),
        };
        Self::of(kind, &error).with_code(error.code())
    }
}

impl From<CommandError> for CliError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Denied(error) => error.into(),
            CommandError::Store(error) => error.into(),
            error => Self::of(CliErrorKind::Unavailable, &error).with_code(error.code()),
        }
    }
}

impl From<AuditError> for CliError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Denied(error) => error.into(),
            AuditError::Store(error) => error.into(),
            AuditError::Command(error) => error.into(),
            AuditError::Chain(error) => {
                let kind = match &error {
                    ChainError::Pruned { .. } => CliErrorKind::Usage,
                    _ => CliErrorKind::Corrupt,
                };
                Self::of(kind, &error).with_code(error.code())
            }
            error => Self::of(CliErrorKind::Corrupt, &error).with_code(error.code()),
        }
    }
}

impl From<UsageQueryError> for CliError {
    fn from(error: UsageQueryError) -> Self {
        match error {
            UsageQueryError::Keys(error) => error.into(),
            UsageQueryError::Store(error) => error.into(),
            error => Self::of(CliErrorKind::Unavailable, &error).with_code(error.code()),
        }
    }
}

impl From<PositionError> for CliError {
    fn from(error: PositionError) -> Self {
        Self::of(CliErrorKind::Usage, &error)
            .about("--after")
            .with_code(error.code())
    }
}

impl From<OpenError> for CliError {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::NotFound { .. } | OpenError::Gone { .. } => CliErrorKind::NotFound,
            OpenError::Corrupt { .. } | OpenError::Lost { .. } => CliErrorKind::Corrupt,
            OpenError::Denied { .. } => CliErrorKind::NoAccess,
            OpenError::Locked { .. } => CliErrorKind::Unavailable,
            OpenError::Io { .. } => CliErrorKind::of_sources(&error),
            _ => CliErrorKind::Refused,
        };
        Self {
            is_unrecovered: matches!(error, OpenError::Unrecovered { .. }),
            ..Self::of(kind, &error)
        }
    }
}

#[cfg(feature = "postgres")]
impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        if let ConnectError::Owner { object, owner } = &error {
            let message = format!(
                "{object} belongs to the role {owner:?}: connect with that role, or name it with \
                 --schema-owner if you trust it"
            );
            return Self::new(CliErrorKind::Refused, message);
        }
        let kind = match &error {
            ConnectError::NotFound => CliErrorKind::NotFound,
            ConnectError::Url { .. } | ConnectError::Schema => CliErrorKind::Usage,
            ConnectError::Corrupt(_) => CliErrorKind::Corrupt,
            ConnectError::Denied(_) => CliErrorKind::NoAccess,
            ConnectError::Database(_) => CliErrorKind::Unavailable,
            _ => CliErrorKind::Refused,
        };
        Self {
            is_unrecovered: matches!(error, ConnectError::Unrecovered),
            ..Self::of(kind, &error)
        }
    }
}

impl From<CopyError> for CliError {
    fn from(error: CopyError) -> Self {
        let kind = match error {
            CopyError::Store(error) => return error.into(),
            CopyError::Differs(_) => CliErrorKind::Corrupt,
            _ => CliErrorKind::Refused,
        };
        Self::of(kind, &error)
    }
}

impl From<PepperFileError> for CliError {
    fn from(error: PepperFileError) -> Self {
        // `keyctl init` creates a pepper only together with its store.
        if let PepperFileError::Missing { path } = &error {
            let message = format!(
                "there is no pepper file {path:?}: put back the pepper file of the service, or name it with \
                 --pepper-file <FILE>"
            );
            return Self::new(CliErrorKind::NotFound, message);
        }
        let kind = match &error {
            PepperFileError::Io { source, .. } => CliErrorKind::of_file(source),
            PepperFileError::Entropy(_) => CliErrorKind::Unavailable,
            PepperFileError::Malformed { .. } => CliErrorKind::Corrupt,
            _ => CliErrorKind::Refused,
        };
        Self::of(kind, &error)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::path::PathBuf;
    use std::time::Duration;

    use keyward::{TenantId, Timestamp};

    use super::*;

    fn tenant() -> TenantId {
        TenantId::new("acme").expect("a valid tenant")
    }

    #[test]
    fn a_denial_that_an_option_or_a_command_resolves_names_it() {
        let own = Timestamp::UNIX_EPOCH;
        let (max, actual) = (Duration::from_secs(60), None);
        for (denial, step) in [
            (Denial::PurposeRequired, "--purpose"),
            (Denial::FirstUseWait { max, actual }, "--no-later-than"),
            (Denial::ConfirmationRequired, "--yes"),
            (Denial::ReferencesUnknown, "--references"),
            (
                Denial::TenantAhead {
                    tenant: tenant(),
                    floor: Timestamp::MAX,
                    own,
                },
                "keyctl time repair --tenant acme",
            ),
        ] {
            let message = CliError::from(denial).message;
            assert!(message.contains(step), "{message}");
        }
        let limit = NonZeroU32::MIN;
        let message = CliError::from(Denial::CapReached {
            limit,
            classes: Default::default(),
        })
        .message;
        assert_eq!(message, "tenant already has 1 active key");
    }

    #[test]
    fn an_unrecovered_store_names_the_commands_that_recover_it() {
        let path = PathBuf::from("keys.db");
        let file = CliError::from(OpenError::Unrecovered { path }).message;
        assert!(
            file.contains("keyctl restore") && file.contains("keyctl recover"),
            "{file}"
        );
        #[cfg(feature = "postgres")]
        {
            let database = CliError::from(ConnectError::Unrecovered).message;
            assert!(database.contains("keyctl recover"), "{database}");
            let (object, owner) = ("schema keyward".to_owned(), "eve".to_owned());
            let owned = CliError::from(ConnectError::Owner { object, owner }).message;
            assert!(owned.contains("--schema-owner"), "{owned}");
        }
    }

    #[test]
    fn only_an_unknown_outcome_names_the_id_under_which_to_repeat_the_command() {
        for (kind, named) in [
            (StoreErrorKind::Indeterminate, true),
            (StoreErrorKind::Unavailable, false),
        ] {
            let error = CliError::from(StoreError::new(kind, "committing"));
            let error = error.with_command_id(Some("c7".to_owned()));
            assert_eq!(error.message.contains("--command-id c7"), named);
        }
    }
}
