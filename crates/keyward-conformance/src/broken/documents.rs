//! Documents that each break one clause of the [`Documents`] contract.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::pause;
use keyward::store::{
    Document, DocumentError, DocumentName, DocumentRead, DocumentWrite, Documents, Epoch,
    StoreError,
};

defects! {
    /// One deliberate mistake of documents.
    enum DocumentDefect;

    /// Caches the result of the first read of a document, and returns it for every later read.
    ReadsFromCache => "a_document_is_in_every_later_read",
    /// Stores content as text, and replaces bytes that are not UTF-8.
    KeepsText => "documents_come_back_as_they_were_written",
    /// Accepts content of any size.
    AcceptsAnySize => "a_document_has_a_largest_size",
    /// Applies a write whatever version the document has.
    LastWriteWins => "a_write_on_another_version_is_a_conflict",
    /// Applies a write that expects an older version.
    AcceptsOlderVersions => "a_write_on_another_version_is_a_conflict",
    /// Compares only the first 32 bytes of names.
    CutsNames => "documents_are_identified_by_their_names",
    /// Treats a dot at the end of a name as if it were absent.
    TrimsNames => "documents_are_identified_by_their_names",
    /// Ignores the guards of a write.
    IgnoresGuards => "a_write_whose_guarded_document_moved_is_a_conflict",
    /// Ignores guards that require a document not to exist.
    IgnoresGuardsOfNone => "a_write_whose_guarded_document_moved_is_a_conflict",
    /// Ignores the epoch of a write.
    IgnoresEpochs => "a_document_write_for_another_epoch_is_a_conflict",
    /// Writes the version and the content in two steps. A dropped write can be half written.
    WritesInTwoSteps => "a_dropped_document_write_is_all_or_nothing",
    /// Compares versions and writes in two steps, so that two concurrent writes are both applied.
    ComparesThenWrites => "concurrent_document_writes_have_one_winner",
}

/// In-memory documents with one [`DocumentDefect`].
#[derive(Debug)]
pub struct BrokenDocuments {
    defect: DocumentDefect,
    state: Mutex<DocumentState>,
}

#[derive(Debug, Default)]
struct DocumentState {
    documents: BTreeMap<String, Document>,
    read: BTreeMap<String, Option<Document>>,
}

impl BrokenDocuments {
    /// Creates empty documents with the given defect.
    #[must_use]
    pub fn new(defect: DocumentDefect) -> Self {
        let state = Mutex::default();
        Self { defect, state }
    }

    fn is(&self, defect: DocumentDefect) -> bool {
        self.defect == defect
    }

    fn state(&self) -> MutexGuard<'_, DocumentState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, name: &DocumentName) -> String {
        let name = name.as_str();
        match self.defect {
            DocumentDefect::CutsNames => name.chars().take(32).collect(),
            DocumentDefect::TrimsNames => name.trim_end_matches('.').to_owned(),
            _ => name.to_owned(),
        }
    }

    fn find(&self, name: &DocumentName) -> Option<Document> {
        let found = self.state().documents.get(&self.place(name)).cloned();
        found.map(|document| Document {
            name: name.clone(),
            ..document
        })
    }

    fn check(&self, write: &DocumentWrite) -> Result<(), DocumentError> {
        let mut checked = write.clone();
        let stored = self.find(&write.name).map_or(0, |found| found.version);
        match self.defect {
            DocumentDefect::AcceptsAnySize => checked.body.clear(),
            DocumentDefect::LastWriteWins => checked.expected = stored,
            DocumentDefect::AcceptsOlderVersions => {
                checked.expected = stored.max(checked.expected);
            }
            DocumentDefect::IgnoresGuards => checked.guards.clear(),
            DocumentDefect::IgnoresGuardsOfNone => checked.guards.retain(|g| g.version > 0),
            DocumentDefect::IgnoresEpochs => checked.epoch = None,
            _ => {}
        }
        let version_of = |name: &DocumentName| self.find(name).map_or(0, |found| found.version);
        checked.check(Epoch(1), version_of)
    }

    fn put(&self, document: Document) {
        let place = self.place(&document.name);
        self.state().documents.insert(place, document);
    }
}

#[async_trait]
impl Documents for BrokenDocuments {
    async fn document(&self, name: &DocumentName) -> Result<DocumentRead, StoreError> {
        let mut document = self.find(name);
        if self.is(DocumentDefect::ReadsFromCache) {
            let place = self.place(name);
            document = self.state().read.entry(place).or_insert(document).clone();
        }
        Ok(DocumentRead {
            epoch: Epoch(1),
            document,
        })
    }

    async fn write_document(&self, write: DocumentWrite) -> Result<u64, DocumentError> {
        self.check(&write)?;
        if self.is(DocumentDefect::ComparesThenWrites) {
            pause().await;
        }
        let before = self.find(&write.name);
        let DocumentWrite {
            name,
            expected,
            mut body,
            ..
        } = write;
        let version = expected + 1;
        if self.is(DocumentDefect::KeepsText) {
            body = String::from_utf8_lossy(&body).into_owned().into_bytes();
        }
        if self.is(DocumentDefect::WritesInTwoSteps) {
            let body = before.map(|before| before.body).unwrap_or_default();
            self.put(Document {
                name: name.clone(),
                version,
                body,
            });
            pause().await;
        }
        self.put(Document {
            name,
            version,
            body,
        });
        Ok(version)
    }
}
