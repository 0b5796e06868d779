//! The error of a command.

use crate::core::command::Denial;
use crate::core::invalid::Invalid;
use crate::core::kind::ErrorKind;
use crate::entropy::EntropyError;
use crate::store::StoreError;

/// The error of a command that did not commit, or may not have committed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The rules denied the command. Nothing was written.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// Other writers committed first in every attempt. Nothing was written; the same command may be
    /// retried.
    #[error("tenant was changed by others {attempts} times in a row")]
    Contended {
        /// The number of attempts.
        attempts: u32,
    },
    /// The store failed. The error's kind shows whether the command may have been written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness was available for new keys. Nothing was written.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl From<Invalid> for CommandError {
    fn from(invalid: Invalid) -> Self {
        Self::Denied(Denial::Invalid(invalid))
    }
}

impl CommandError {
    /// Returns the stable code of the cause, such as `cap-reached` or `store-unavailable`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Denied(denied) => denied.code(),
            Self::Contended { .. } => "tenant-contended",
            Self::Store(error) => error.code(),
            Self::Entropy(error) => error.code(),
        }
    }

    /// Returns the kind of the cause, which determines the HTTP status.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Denied(denied) => denied.kind(),
            Self::Contended { .. } => ErrorKind::Unavailable,
            Self::Store(error) => error.error_kind(),
            Self::Entropy(error) => error.kind(),
        }
    }

    /// Returns the text that a client may see.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::Denied(denied) => denied.public_message(),
            Self::Contended { .. } => {
                "others changed the tenant at the same time: repeat the request".to_owned()
            }
            Self::Store(error) => error.public_message().to_owned(),
            Self::Entropy(error) => error.public_message().to_owned(),
        }
    }

    /// Returns the denial, if the rules denied the command.
    #[must_use]
    pub const fn denied(&self) -> Option<&Denial> {
        match self {
            Self::Denied(denied) => Some(denied),
            _ => None,
        }
    }
}
