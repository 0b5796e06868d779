//! The errors of a store.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::core::id::KeyId;
use crate::core::kind::ErrorKind;
use crate::observe;

/// The kind of a [`StoreError`]. The kind determines how the caller may react.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Stored bytes failed validation. Do not retry, and do not accept keys that depend on these bytes.
    Corrupt,
    /// A commit may or may not have taken effect. Load the tenant again before the next decision.
    Indeterminate,
    /// The store denies access to this process: wrong credentials, a missing privilege, a file that may not be
    /// written, tables that are missing or of a later version. Nothing was written. A retry fails until an operator
    /// acts.
    Denied,
    /// The store could not be used. Nothing was written, and a retry is safe.
    Unavailable,
}

/// An error of a store.
#[derive(Clone, Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    doing: &'static str,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// Creates an error of `kind`. `doing` names the failed operation, for example "reading a key". It must
    /// not contain a secret.
    #[must_use]
    pub const fn new(kind: StoreErrorKind, doing: &'static str) -> Self {
        Self {
            kind,
            doing,
            source: None,
        }
    }

    /// Sets the source of the error. The source's text must not contain a secret.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// Returns the kind of the error. The kind determines how the caller may react.
    #[must_use]
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// Counts the error by its kind. Called where a node first receives the error.
    pub(crate) fn count(&self) {
        observe::store_error(match self.kind {
            StoreErrorKind::Corrupt => "corrupt",
            StoreErrorKind::Indeterminate => "indeterminate",
            StoreErrorKind::Unavailable => "unavailable",
            StoreErrorKind::Denied => "denied",
        });
    }

    /// Returns the stable code of the error, such as `store-unavailable`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.kind {
            StoreErrorKind::Corrupt => "store-corrupt",
            StoreErrorKind::Denied => "store-denied",
            StoreErrorKind::Indeterminate => "store-indeterminate",
            StoreErrorKind::Unavailable => "store-unavailable",
        }
    }

    /// Returns the kind that determines the HTTP status.
    #[must_use]
    pub const fn error_kind(&self) -> ErrorKind {
        match self.kind {
            StoreErrorKind::Corrupt => ErrorKind::Internal,
            // A client of the service can only try again later, as if the store were down.
            StoreErrorKind::Denied
            | StoreErrorKind::Indeterminate
            | StoreErrorKind::Unavailable => ErrorKind::Unavailable,
        }
    }

    /// Returns the text that a client may see. It hides the cause.
    #[must_use]
    pub const fn public_message(&self) -> &'static str {
        match self.kind {
            StoreErrorKind::Indeterminate => {
                "the change may or may not have been made: repeat it with the same command id"
            }
            StoreErrorKind::Corrupt => "the service has an internal error",
            StoreErrorKind::Denied | StoreErrorKind::Unavailable => {
                "the service cannot answer at the moment: try again later"
            }
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.kind {
            StoreErrorKind::Corrupt => "stored bytes are corrupt",
            StoreErrorKind::Denied => "store denies access",
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

/// The error of [`KeyStore::commit`](super::KeyStore::commit).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The tenant or a guarded row does not have the expected revision, or the epoch has changed. Nothing was
    /// written.
    #[error("tenant was changed concurrently")]
    Conflict,
    /// A key with this id exists or existed. Nothing was written.
    #[error("key id {0} is taken")]
    IdTaken(KeyId),
    /// A key with this imported digest exists or existed. Nothing was written.
    #[error("imported digest is taken")]
    DigestTaken,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The error of [`KeyStore::changes`](super::KeyStore::changes).
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangesError {
    /// The history after the cursor was dropped, or the cursor belongs to another epoch. The caller must start
    /// over with a scan.
    #[error("history after the cursor is gone")]
    Compacted,
    /// The store is in the cursor's epoch, but does not have the cursor's commit: the store went back in time. A
    /// change that the caller has applied may be lost, so the caller must not continue without an operator.
    #[error("store went back in time: it does not have the commit at the cursor")]
    Diverged,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
