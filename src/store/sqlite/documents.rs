//! The table `documents`, which holds the settings that the processes share.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::fault::SqliteFault;
use super::head;
use super::rows::{each, one};
use crate::store::sql::{
    DOCUMENT_COLUMNS as COLUMNS, document_version_and_seal, lease_after_restore, read_document,
};
use crate::store::{Document, DocumentError, DocumentName, DocumentRead, DocumentWrite};

pub(super) fn find(
    conn: &Connection,
    name: &DocumentName,
) -> Result<Option<Document>, SqliteFault> {
    let sql = format!("SELECT {COLUMNS} FROM documents WHERE name = ?1");
    one(conn, &sql, [name.as_str()], |row| Ok(read_document(row)?))
}

pub(super) fn read(conn: &Connection, name: &DocumentName) -> Result<DocumentRead, SqliteFault> {
    Ok(DocumentRead {
        epoch: head::store(conn)?.epoch,
        document: find(conn, name)?,
    })
}

/// Writes a document if its conditions hold. The caller's transaction excludes other writers.
pub(super) fn write(
    conn: &Connection,
    write: &DocumentWrite,
) -> Result<Result<u64, DocumentError>, SqliteFault> {
    let guarded = write.guards.iter().map(|guard| &guard.name);
    let mut versions = BTreeMap::new();
    for name in guarded.chain([&write.name]) {
        let found = find(conn, name)?;
        versions.insert(name, found.map_or(0, |document| document.version));
    }
    let version_of = |name: &DocumentName| versions.get(name).copied().unwrap_or_default();
    if let Err(refused) = write.check(head::store(conn)?.epoch, version_of) {
        return Ok(Err(refused));
    }
    let document = Document {
        name: write.name.clone(),
        version: write.expected + 1,
        body: write.body.clone(),
    };
    put(conn, &document)?;
    Ok(Ok(document.version))
}

/// Raises the numbers of all leases: see [`lease_after_restore`].
pub(super) fn end_history(conn: &Connection) -> Result<(), SqliteFault> {
    let mut leases = Vec::new();
    each(
        conn,
        &format!("SELECT {COLUMNS} FROM documents"),
        [],
        |row| {
            leases.extend(lease_after_restore(read_document(row)?));
            Ok(true)
        },
    )?;
    leases.iter().try_for_each(|lease| put(conn, lease))
}

/// Writes a document without any condition.
pub(super) fn put(conn: &Connection, document: &Document) -> Result<(), SqliteFault> {
    let (version, seal) = document_version_and_seal(document)?;
    let sql = format!("INSERT OR REPLACE INTO documents ({COLUMNS}) VALUES (?1, ?2, ?3, ?4)");
    conn.prepare_cached(&sql)?.execute(params![
        document.name.as_str(),
        version,
        document.body,
        seal
    ])?;
    Ok(())
}
