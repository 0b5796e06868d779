//! What can go wrong in a store, and what the caller may do about it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::core::id::KeyId;

/// What the caller may do about a [`StoreError`].
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

/// A store could not do what it was asked for.
#[derive(Clone, Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    doing: &'static str,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error of `kind` while `doing` something, in words without a secret.
    #[must_use]
    pub const fn new(kind: StoreErrorKind, doing: &'static str) -> Self {
        Self {
            kind,
            doing,
            source: None,
        }
    }

    /// Adds what caused it. Its text must hold no secret.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// What the caller may do about it.
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

/// Why a commit was not applied, or may not have been.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The tenant is not at the expected revision any more. Nothing was written.
    #[error("tenant was changed meanwhile")]
    Conflict,
    /// A key of this id exists, or did. Nothing was written.
    #[error("key id {0} is taken")]
    IdTaken(KeyId),
    /// A key with this imported digest exists, or did. Nothing was written.
    #[error("imported digest is taken")]
    DigestTaken,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why changes could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangesError {
    /// The history after the cursor is gone, or the cursor is of another history: start over with a
    /// scan.
    #[error("history after the cursor is gone")]
    Compacted,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
