//! The documents that the nodes share, stored in the table `documents`.

use std::collections::BTreeMap;

use super::fault::PostgresFault;
use super::head;
use super::session::Session;
use crate::store::sql::{
    DOCUMENT_COLUMNS as COLUMNS, document_version_and_seal, lease_after_restore, read_document,
};
use crate::store::{Document, DocumentError, DocumentName, DocumentRead, DocumentWrite};

async fn find(session: &Session, name: &DocumentName) -> Result<Option<Document>, PostgresFault> {
    let sql = format!("SELECT {COLUMNS} FROM $s.documents WHERE name = $1");
    let found = session.query(&sql, &[&name.as_str()]).await?;
    Ok(found.first().map(read_document).transpose()?)
}

pub(super) async fn read(
    session: &Session,
    name: &DocumentName,
) -> Result<DocumentRead, PostgresFault> {
    Ok(DocumentRead {
        epoch: head::read(session).await?.store.epoch,
        document: find(session, name).await?,
    })
}

/// Writes a document if its conditions hold. The caller commits the session.
pub(super) async fn write(
    session: &Session,
    write: &DocumentWrite,
) -> Result<Result<u64, DocumentError>, PostgresFault> {
    // Excludes other writers of documents until the transaction ends, and no reader. Commits wait meanwhile, for
    // about four round trips, and so does a restore that begins. A lock on the documents' rows would not cover those
    // that do not exist yet, and a lock on the table would stop a vacuum.
    let epoch = head::lock(session).await?.store.epoch;
    let guarded = write.guards.iter().map(|guard| &guard.name);
    let mut versions = BTreeMap::new();
    for name in guarded.chain([&write.name]) {
        let found = find(session, name).await?;
        versions.insert(name, found.map_or(0, |document| document.version));
    }
    let version_of = |name: &DocumentName| versions.get(name).copied().unwrap_or_default();
    if let Err(refused) = write.check(epoch, version_of) {
        return Ok(Err(refused));
    }
    let document = Document {
        name: write.name.clone(),
        version: write.expected + 1,
        body: write.body.clone(),
    };
    put(session, &document).await?;
    Ok(Ok(document.version))
}

/// Raises the numbers of all leases: see [`lease_after_restore`]. The caller commits the session.
pub(super) async fn end_history(session: &Session) -> Result<(), PostgresFault> {
    let sql = format!("SELECT {COLUMNS} FROM $s.documents");
    for row in session.query(&sql, &[]).await? {
        if let Some(lease) = lease_after_restore(read_document(&row)?) {
            put(session, &lease).await?;
        }
    }
    Ok(())
}

/// Writes a document without any condition. The caller commits the session.
pub(super) async fn put(session: &Session, document: &Document) -> Result<(), PostgresFault> {
    let (version, seal) = document_version_and_seal(document)?;
    let sql = format!(
        "INSERT INTO $s.documents ({COLUMNS}) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (name) DO UPDATE SET version = $2, body = $3, seal = $4"
    );
    let (name, body) = (document.name.as_str(), &document.body[..]);
    session
        .execute(&sql, &[&name, &version, &body, &seal])
        .await
        .map(drop)
}
