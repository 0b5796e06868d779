//! The error of a command.

use crate::core::command::Denial;
use crate::core::invalid::Invalid;
use crate::entropy::EntropyError;
use crate::store::StoreError;

/// The reason why a change did not happen, or may not have happened.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The command was refused. Nothing was written.
    #[error(transparent)]
    Denied(#[from] Denial),
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

impl From<Invalid> for CommandError {
    fn from(invalid: Invalid) -> Self {
        Self::Denied(Denial::Invalid(invalid))
    }
}

impl CommandError {
    /// Returns the refusal, if the command was refused.
    #[must_use]
    pub const fn denied(&self) -> Option<&Denial> {
        match self {
            Self::Denied(denied) => Some(denied),
            _ => None,
        }
    }
}
