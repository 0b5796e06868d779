//! The error of a command.

use crate::core::command::Denied;
use crate::core::invalid::Invalid;
use crate::entropy::EntropyError;
use crate::store::StoreError;

/// The reason why a change did not happen, or may not have happened.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command was refused. Nothing was written.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Other writers committed first in every attempt. Nothing was written; the same command may be
    /// retried.
    #[error("tenant was changed by others {attempts} times in a row")]
    Contended {
        /// The number of attempts.
        attempts: u32,
    },
    /// The store failed. The kind of the error says whether anything was written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness was available for new keys. Nothing was written.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Denied(Denied::Invalid(invalid))
    }
}

impl Error {
    /// Returns the refusal, if the command was refused.
    #[must_use]
    pub const fn denied(&self) -> Option<&Denied> {
        match self {
            Self::Denied(denied) => Some(denied),
            _ => None,
        }
    }
}
