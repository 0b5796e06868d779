//! The errors of a store, by what the caller may do about them.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::core::id::KeyId;

/// The kind of a [`StoreError`], by what the caller may do about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Stored bytes failed validation. Do not retry; refuse to verify.
    Corrupt,
    /// A commit may or may not have taken effect. Reload before deciding again.
    Indeterminate,
    /// Nothing was written. Retrying later is safe.
    Unavailable,
}

/// The failure of a store.
#[derive(Clone, Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    doing: &'static str,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// Creates an error of `kind`. `doing` names the operation that failed, and must hold no
    /// secret.
    #[must_use]
    pub const fn new(kind: StoreErrorKind, doing: &'static str) -> Self {
        Self {
            kind,
            doing,
            source: None,
        }
    }

    /// Adds the cause. The text of the cause must hold no secret.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// Returns the kind, by what the caller may do about the error.
    #[must_use]
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.kind {
            StoreErrorKind::Corrupt => "stored bytes are corrupt",
            StoreErrorKind::Indeterminate => "outcome is unknown",
            StoreErrorKind::Unavailable => "store is unavailable",
        };
        write!(f, "{state} while {}", self.doing)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| &**source as &(dyn Error + 'static))
    }
}

/// The reason why a commit was not applied, or may not have been.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The tenant or a guarded row has another revision than expected. Nothing was written.
    #[error("tenant was changed meanwhile")]
    Conflict,
    /// A key of this id exists or existed. Nothing was written.
    #[error("key id {0} is taken")]
    IdTaken(KeyId),
    /// A key with this imported digest exists or existed. Nothing was written.
    #[error("imported digest is taken")]
    DigestTaken,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The reason why changes could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangesError {
    /// The history after the cursor is gone, or the cursor belongs to another history. The caller
    /// must start over with a scan.
    #[error("history after the cursor is gone")]
    Compacted,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
