//! Clauses of [`Documents`], which holds the settings that the processes of a store share.

use super::ClauseViolation;
use super::fixtures::{ClauseResult, PolledFuture, STEPS, text};
use keyward::store::{
    Document, DocumentError, DocumentGuard, DocumentName, DocumentRead, DocumentWrite, Documents,
    Epoch, StoreError,
};

/// Documents under test, with the name of the clause that a failure reports.
struct DocumentFixture<D> {
    documents: D,
    clause: &'static str,
}

fn name(name: &str) -> DocumentName {
    text(name)
}

/// Returns an unguarded write of the document `policies`.
fn sample_write(expected: u64, body: &[u8]) -> DocumentWrite {
    DocumentWrite {
        name: name("policies"),
        expected,
        body: body.to_vec(),
        guards: Vec::new(),
        epoch: None,
    }
}

impl<D: Documents> DocumentFixture<D> {
    fn new(make: &impl Fn() -> D, clause: &'static str) -> Self {
        let documents = make();
        Self { documents, clause }
    }

    fn fail(&self, detail: String) -> ClauseViolation {
        let clause = self.clause;
        ClauseViolation { clause, detail }
    }

    fn failed(&self, error: &StoreError) -> ClauseViolation {
        self.fail(format!("a call failed: {error}"))
    }

    async fn read(&self, name: &DocumentName) -> Result<DocumentRead, ClauseViolation> {
        let read = self.documents.document(name).await;
        read.map_err(|error| self.failed(&error))
    }

    /// Writes a document, and fails the check unless the store accepts the write as the next version.
    async fn accept(&self, write: &DocumentWrite) -> ClauseResult {
        let next = write.expected + 1;
        match self.documents.write_document(write.clone()).await {
            Ok(version) if version == next => Ok(()),
            Ok(version) => Err(self.fail(format!("a write returned {version}, not {next}"))),
            Err(error) => Err(self.fail(format!("{write:?} failed: {error}"))),
        }
    }

    /// Fails the check unless the store refuses the write because of the document `conflicting`.
    async fn refuse(&self, write: DocumentWrite, conflicting: &DocumentName) -> ClauseResult {
        match self.documents.write_document(write.clone()).await {
            Err(DocumentError::Conflict { name }) if name == *conflicting => Ok(()),
            other => Err(self.fail(format!(
                "{write:?} returned {other:?}, expected a conflict of {conflicting}"
            ))),
        }
    }

    /// Checks the version and the content of a document. Version zero means that there is none.
    async fn holds(&self, name: &DocumentName, version: u64, body: &[u8]) -> ClauseResult {
        let found = self.read(name).await?.document;
        let expected = (version > 0).then(|| Document {
            name: name.clone(),
            version,
            body: body.to_vec(),
        });
        if found == expected {
            return Ok(());
        }
        Err(self.fail(format!("found {found:?}, expected {expected:?}")))
    }
}

/// Every read that begins after a write returned contains the write. A document that was never written does
/// not exist.
pub async fn a_document_is_in_every_later_read<D: Documents>(
    make: &impl Fn() -> D,
) -> ClauseResult {
    let fixture = DocumentFixture::new(make, "a_document_is_in_every_later_read");
    let name = name("policies");
    fixture.holds(&name, 0, b"").await?;
    for version in 1..=3_u64 {
        let body = version.to_be_bytes();
        fixture.accept(&sample_write(version - 1, &body)).await?;
        fixture.holds(&name, version, &body).await?;
    }
    Ok(())
}

/// A document's content comes back byte for byte: empty, not UTF-8, and of the largest size.
pub async fn documents_come_back_as_they_were_written<D: Documents>(
    make: &impl Fn() -> D,
) -> ClauseResult {
    let fixture = DocumentFixture::new(make, "documents_come_back_as_they_were_written");
    let largest = vec![b'x'; DocumentWrite::MAX_BODY];
    let bodies: [&[u8]; 4] = [b"", &[0, 0xff, 0x80, b'\n'], b"{\"a\": 1}", &largest];
    for (version, body) in (0..).zip(bodies) {
        fixture.accept(&sample_write(version, body)).await?;
        fixture.holds(&name("policies"), version + 1, body).await?;
    }
    Ok(())
}

/// The store refuses content above [`DocumentWrite::MAX_BODY`], and writes nothing.
pub async fn a_document_has_a_largest_size<D: Documents>(make: &impl Fn() -> D) -> ClauseResult {
    let fixture = DocumentFixture::new(make, "a_document_has_a_largest_size");
    let body = vec![b'x'; DocumentWrite::MAX_BODY + 1];
    let written = fixture
        .documents
        .write_document(sample_write(0, &body))
        .await;
    if !matches!(written, Err(DocumentError::TooLarge { .. })) {
        return Err(fixture.fail(format!("content above the limit returned {written:?}")));
    }
    fixture.holds(&name("policies"), 0, b"").await
}

/// A write that expects another version of its document is a conflict, and writes nothing.
pub async fn a_write_on_another_version_is_a_conflict<D: Documents>(
    make: &impl Fn() -> D,
) -> ClauseResult {
    let fixture = DocumentFixture::new(make, "a_write_on_another_version_is_a_conflict");
    let name = name("policies");
    fixture.refuse(sample_write(1, b"none"), &name).await?;
    fixture.accept(&sample_write(0, b"one")).await?;
    fixture.accept(&sample_write(1, b"two")).await?;
    for expected in [0, 1, 3] {
        fixture
            .refuse(sample_write(expected, b"other"), &name)
            .await?;
        fixture.holds(&name, 2, b"two").await?;
    }
    Ok(())
}

/// Names identify documents. A write of one document leaves the others unchanged.
pub async fn documents_are_identified_by_their_names<D: Documents>(
    make: &impl Fn() -> D,
) -> ClauseResult {
    let fixture = DocumentFixture::new(make, "documents_are_identified_by_their_names");
    let names = ["a", "a.", "a.b", "a-b", &"a".repeat(127), &"a".repeat(128)].map(name);
    for own in &names {
        fixture
            .accept(&DocumentWrite {
                name: own.clone(),
                ..sample_write(0, own.as_str().as_bytes())
            })
            .await?;
    }
    for own in &names {
        fixture.holds(own, 1, own.as_str().as_bytes()).await?;
    }
    Ok(())
}

/// A write whose guarded document has another version is a conflict of that document, and writes nothing. A
/// guard of version zero requires that the document does not exist.
pub async fn a_write_whose_guarded_document_moved_is_a_conflict<D: Documents>(
    make: &impl Fn() -> D,
) -> ClauseResult {
    let fixture = DocumentFixture::new(make, "a_write_whose_guarded_document_moved_is_a_conflict");
    let lease = name("lease.webhooks");
    let guarded = |expected, version| DocumentWrite {
        guards: vec![DocumentGuard {
            name: lease.clone(),
            version,
        }],
        ..sample_write(expected, b"guarded")
    };
    let take = |expected| DocumentWrite {
        name: lease.clone(),
        ..sample_write(expected, b"holder")
    };
    fixture.refuse(guarded(0, 1), &lease).await?;
    fixture.accept(&guarded(0, 0)).await?;
    fixture.accept(&take(0)).await?;
    fixture.refuse(guarded(1, 0), &lease).await?;
    fixture.accept(&guarded(1, 1)).await?;
    fixture.accept(&take(1)).await?;
    fixture.refuse(guarded(2, 1), &lease).await?;
    fixture.holds(&name("policies"), 2, b"guarded").await
}

/// A write for another epoch of the store is a conflict. Every read returns the current epoch.
pub async fn a_document_write_for_another_epoch_is_a_conflict<D: Documents>(
    make: &impl Fn() -> D,
) -> ClauseResult {
    let fixture = DocumentFixture::new(make, "a_document_write_for_another_epoch_is_a_conflict");
    let name = name("policies");
    let epoch = fixture.read(&name).await?.epoch;
    let of = |epoch| DocumentWrite {
        epoch: Some(epoch),
        ..sample_write(0, b"one")
    };
    fixture
        .refuse(of(Epoch(epoch.0.wrapping_add(1))), &name)
        .await?;
    fixture.accept(&of(epoch)).await?;
    let read = fixture.read(&name).await?;
    match read.epoch == epoch {
        true => Ok(()),
        false => Err(fixture.fail(format!("the epoch changed to {:?}", read.epoch))),
    }
}

/// A write is applied completely or not at all, even if the caller drops its future at any point. Later
/// writes are not blocked.
pub async fn a_dropped_document_write_is_all_or_nothing<D: Documents>(
    make: &impl Fn() -> D,
) -> ClauseResult {
    for steps in 0..STEPS {
        let fixture = DocumentFixture::new(make, "a_dropped_document_write_is_all_or_nothing");
        fixture.accept(&sample_write(0, b"before")).await?;
        {
            let write = fixture
                .documents
                .write_document(sample_write(1, b"dropped"));
            PolledFuture::new(write).steps(steps).await;
        }
        let name = name("policies");
        let found = fixture.read(&name).await?.document;
        let found = found.map(|document| (document.version, document.body));
        let whole = [(1, b"before".to_vec()), (2, b"dropped".to_vec())];
        let Some((version, _)) = found.clone().filter(|found| whole.contains(found)) else {
            return Err(fixture.fail(format!("found {found:?} after a write was dropped")));
        };
        let mut next = fixture
            .documents
            .write_document(sample_write(version, b"after"))
            .await;
        if version == 1 && matches!(next, Err(DocumentError::Conflict { .. })) {
            // The dropped write took effect between the two calls.
            next = fixture
                .documents
                .write_document(sample_write(2, b"after"))
                .await;
        }
        next.map_err(|error| fixture.fail(format!("the next write failed: {error}")))?;
    }
    Ok(())
}

/// If two writes that expect the same version run concurrently, exactly one of them is applied.
pub async fn concurrent_document_writes_have_one_winner<D: Documents>(
    make: &impl Fn() -> D,
) -> ClauseResult {
    for start in [0, 1] {
        for steps in 0..STEPS {
            let fixture = DocumentFixture::new(make, "concurrent_document_writes_have_one_winner");
            for expected in 0..start {
                fixture.accept(&sample_write(expected, b"before")).await?;
            }
            let write = |body| fixture.documents.write_document(sample_write(start, body));
            let mut first = PolledFuture::new(write(b"first"));
            first.steps(steps).await;
            let mut second = PolledFuture::new(write(b"second"));
            for _ in 0..STEPS {
                // Poll the second write only once per round: it may have to wait for the first one.
                second.steps(1).await;
            }
            let first = second.let_pass(first.finish()).await;
            let results = [first, second.finish().await];
            let bodies: [&[u8]; 2] = [b"first", b"second"];
            let mut won = results
                .iter()
                .zip(bodies)
                .filter(|(result, _)| result.is_ok());
            let (Some((_, body)), None) = (won.next(), won.next()) else {
                return Err(fixture.fail(format!("two writes returned {results:?}")));
            };
            fixture.holds(&name("policies"), start + 1, body).await?;
        }
    }
    Ok(())
}
