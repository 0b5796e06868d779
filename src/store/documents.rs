//! Documents: small named texts that the processes of a store share, such as the policies in use, the check
//! values of peppers, and leases.
//!
//! A document is not part of the history of keys: it is in no feed, and no audit entry records it. Names that
//! begin with `app.` are the application's, for example for the cursor of a reader of events.

use std::fmt;

use async_trait::async_trait;

use super::{Epoch, StoreError};
pub use crate::core::text::DocumentName;

/// A named document with its version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Document {
    /// The name of the document, unique in its store.
    pub name: DocumentName,
    /// The number of times that the document was written. Never decreases.
    pub version: u64,
    /// The content, at most [`DocumentWrite::MAX_BODY`] bytes.
    pub body: Vec<u8>,
}

/// The result of reading a document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DocumentRead {
    /// The epoch of the store when the document was read.
    pub epoch: Epoch,
    /// The document. `None` if it was never written.
    pub document: Option<Document>,
}

/// A document's name with the version that it must still have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DocumentGuard {
    /// The name of the document.
    pub name: DocumentName,
    /// The version. Zero if the document must not exist.
    pub version: u64,
}

/// A conditional write of one document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DocumentWrite {
    /// The name of the document.
    pub name: DocumentName,
    /// The version that the document must still have. Zero to write a new document.
    pub expected: u64,
    /// The new content, at most [`MAX_BODY`](Self::MAX_BODY) bytes.
    pub body: Vec<u8>,
    /// Other documents, each with the version that it must still have. A writer that holds a
    /// [`Lease`](crate::lease::Lease) names it here.
    pub guards: Vec<DocumentGuard>,
    /// The epoch that the store must still have. With `None`, the store writes the document in any epoch.
    pub epoch: Option<Epoch>,
}

impl DocumentWrite {
    /// 1 MiB: the largest content of a document. A thousand policies of usual size fit.
    pub const MAX_BODY: usize = 1024 * 1024;

    /// Returns a write whose only condition is the document's version.
    #[must_use]
    pub const fn new(name: DocumentName, expected: u64, body: Vec<u8>) -> Self {
        Self {
            name,
            expected,
            body,
            guards: Vec::new(),
            epoch: None,
        }
    }

    /// Checks the conditions of this write against the state of the store. The store must not write another
    /// document during this call. The closure `version_of` returns the version of a document, or zero if the
    /// document does not exist.
    ///
    /// # Errors
    ///
    /// [`DocumentError::TooLarge`] or [`DocumentError::Conflict`].
    pub fn check(
        &self,
        epoch: Epoch,
        version_of: impl Fn(&DocumentName) -> u64,
    ) -> Result<(), DocumentError> {
        if self.body.len() > Self::MAX_BODY {
            return Err(DocumentError::TooLarge {
                name: self.name.clone(),
                actual: self.body.len(),
            });
        }
        let conflict = |name: &DocumentName| Err(DocumentError::Conflict { name: name.clone() });
        if self.epoch.is_some_and(|own| own != epoch) || version_of(&self.name) != self.expected {
            return conflict(&self.name);
        }
        let broken = |guard: &&DocumentGuard| version_of(&guard.name) != guard.version;
        self.guards
            .iter()
            .find(broken)
            .map_or(Ok(()), |guard| conflict(&guard.name))
    }
}

/// The content of the document [`DocumentName::SALVAGE`], which marks a store that was salvaged with losses. The recovery
/// of the store records the losses in its trails, and then replaces the mark.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SalvageMark {
    /// Audit entries may be lost, and no entry records it.
    Unrecorded,
    /// An entry of each trail records that entries may be lost.
    Recorded,
}

impl SalvageMark {
    /// Returns the content of the document.
    pub(crate) const fn body(self) -> &'static [u8] {
        match self {
            Self::Unrecorded => b"losses are not recorded",
            Self::Recorded => b"losses are recorded",
        }
    }

    /// Reads the content of the document. A text that is no mark counts as unrecorded.
    pub(crate) fn read(body: &[u8]) -> Self {
        match body == Self::Recorded.body() {
            true => Self::Recorded,
            false => Self::Unrecorded,
        }
    }
}

/// The error of [`Documents::write_document`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// A document does not have the version that the write requires, or the epoch has changed. Nothing was
    /// written.
    #[error("document {name} was changed concurrently")]
    Conflict {
        /// The document whose version differs.
        name: DocumentName,
    },
    /// The content is too large. Nothing was written.
    #[error(
        "document {name} has {actual} bytes, at most {} are allowed",
        DocumentWrite::MAX_BODY
    )]
    TooLarge {
        /// The name of the document.
        name: DocumentName,
        /// The size of the content, in bytes.
        actual: usize,
    },
    /// The store failed. After `Indeterminate` the document may or may not have been written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Storage for documents. A [`KeyStore`](super::KeyStore) returns its own from
/// [`documents`](super::KeyStore::documents).
///
/// If the caller drops a future, its operation takes effect completely or not at all.
#[async_trait]
pub trait Documents: fmt::Debug + Send + Sync + 'static {
    /// Reads a document.
    ///
    /// The result includes every write that returned before this call began.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`. `Corrupt` if the stored bytes failed their checksum.
    async fn document(&self, name: &DocumentName) -> Result<DocumentRead, StoreError>;

    /// Writes a document if the conditions of [`DocumentWrite::check`] hold, and returns the new version,
    /// which is one more than the expected version.
    ///
    /// - The store checks the conditions under the lock that orders writes of documents.
    /// - A document is never removed, so its versions never repeat.
    /// - On return the document is as durable as a commit of the store.
    ///
    /// # Errors
    ///
    /// [`DocumentError`].
    async fn write_document(&self, write: DocumentWrite) -> Result<u64, DocumentError>;
}
