//! Failures: an exit code and a message.

use std::process::ExitCode;

use keyward::audit::AuditError;
use keyward::command::Invalid;
use keyward::pepper::PepperFileError;
use keyward::policy::PolicyError;
use keyward::recovery::RecoveryError;
#[cfg(feature = "postgres")]
use keyward::store::postgres::ConnectError;
use keyward::store::sqlite::OpenError;
use keyward::store::transfer::CopyError;
use keyward::store::{StoreError, StoreErrorKind};
use keyward::{CommandError, Denial};

/// The kinds of failure, each with its exit code.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Refused = 1,
    Usage = 2,
    Unavailable = 3,
    Corrupt = 4,
    NotFound = 5,
}

impl Kind {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::NotFound => "not_found",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) words: String,
}

pub(crate) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(kind: Kind, words: impl Into<String>) -> Self {
        let words = words.into();
        Self { kind, words }
    }

    /// Builds a failure from an error and all its causes.
    fn of(kind: Kind, error: &dyn std::error::Error) -> Self {
        let mut words = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            words += &format!(": {error}");
            cause = error.source();
        }
        Self { kind, words }
    }

    pub(crate) fn usage(words: impl Into<String>) -> Self {
        Self::new(Kind::Usage, words)
    }

    /// Puts the subject of the failure in front of its message.
    pub(crate) fn about(self, what: impl std::fmt::Display) -> Self {
        let words = format!("{what}: {}", self.words);
        Self { words, ..self }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

/// A malformed value. The message describes valid values and never repeats the given value: people paste
/// secrets into the wrong place.
impl From<Invalid> for Failure {
    fn from(error: Invalid) -> Self {
        Self::of(Kind::Usage, &error)
    }
}

impl From<RecoveryError> for Failure {
    fn from(error: RecoveryError) -> Self {
        match error {
            RecoveryError::Interrupted(error) => error.into(),
            error => Self::of(Kind::Corrupt, &error),
        }
    }
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::of(Kind::Usage, &error)
    }
}

impl From<Denial> for Failure {
    fn from(error: Denial) -> Self {
        let kind = match &error {
            Denial::Invalid(_) => Kind::Usage,
            Denial::NotFound | Denial::TenantNotFound => Kind::NotFound,
            Denial::CorruptRecord { .. } => Kind::Corrupt,
            _ => Kind::Refused,
        };
        Self::of(kind, &error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind() {
            StoreErrorKind::Corrupt => Kind::Corrupt,
            _ => Kind::Unavailable,
        };
        Self::of(kind, &error)
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Denied(error) => error.into(),
            CommandError::Store(error) => error.into(),
            error => Self::of(Kind::Unavailable, &error),
        }
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Denied(error) => error.into(),
            AuditError::Store(error) => error.into(),
            error => Self::of(Kind::Corrupt, &error),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::NotFound { .. } => Kind::NotFound,
            OpenError::Corrupt { .. } => Kind::Corrupt,
            OpenError::Locked { .. } | OpenError::Io { .. } => Kind::Unavailable,
            _ => Kind::Refused,
        };
        Self::of(kind, &error)
    }
}

#[cfg(feature = "postgres")]
impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let kind = match &error {
            ConnectError::NotFound => Kind::NotFound,
            ConnectError::Url | ConnectError::Schema => Kind::Usage,
            ConnectError::Database(_) => Kind::Unavailable,
            _ => Kind::Refused,
        };
        Self::of(kind, &error)
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        let kind = match error {
            CopyError::Store(error) => return error.into(),
            CopyError::Differs(_) => Kind::Corrupt,
            _ => Kind::Refused,
        };
        Self::of(kind, &error)
    }
}

impl From<PepperFileError> for Failure {
    fn from(error: PepperFileError) -> Self {
        let kind = match &error {
            PepperFileError::Missing { .. } => Kind::NotFound,
            PepperFileError::Io { .. } | PepperFileError::Entropy(_) => Kind::Unavailable,
            PepperFileError::Malformed { .. } => Kind::Corrupt,
            _ => Kind::Refused,
        };
        Self::of(kind, &error)
    }
}
