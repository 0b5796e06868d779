//! Why a change did not happen.

use crate::core::command::Denied;
use crate::core::invalid::Invalid;
use crate::entropy::EntropyError;
use crate::store::StoreError;

/// Why a change did not happen, or may not have.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command was refused. Nothing was written.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Other writers were faster each time. Nothing was written; the same command may be tried
    /// again.
    #[error("tenant was changed by others {attempts} times in a row")]
    Contended {
        /// How often the command was decided.
        attempts: u32,
    },
    /// The store failed; its kind tells whether anything was written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There was no randomness for new keys. Nothing was written.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Denied(Denied::Invalid(invalid))
    }
}

impl Error {
    /// Why the command was refused, if it was.
    #[must_use]
    pub const fn denied(&self) -> Option<&Denied> {
        match self {
            Self::Denied(denied) => Some(denied),
            _ => None,
        }
    }
}
