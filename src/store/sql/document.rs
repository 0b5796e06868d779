//! The table `documents`: its columns and their decoding.

use super::cells::{Cells, is_damaged};
use super::seal::Seal;
use super::{RowFault, signed};
use crate::core::text::TextOrigin;
use crate::store::{Document, DocumentName};

/// The columns of `documents`, in the order that [`read_document`] expects.
pub(in crate::store) const DOCUMENT_COLUMNS: &str = "name, version, body, seal";

/// Returns the version to write into a row, and the row's seal.
pub(in crate::store) fn document_version_and_seal(
    document: &Document,
) -> Result<(i64, i64), RowFault> {
    let version = signed(document.version)?;
    let seal = Seal::default().bytes(document.name.as_str());
    Ok((version, seal.number(version).bytes(&document.body).end()))
}

/// 2^32: a restored lease's number is raised by this, more than a deployment takes a lease after a backup.
const AFTER_RESTORE: u64 = 1 << 32;

/// Returns the document of a lease as it must be after a restore, or `None` for any other document.
///
/// Processes of the lost history may still hold the lease, under a higher number than the backup has. So the
/// number is raised beyond all of them, and the lease is held until its term has passed.
pub(in crate::store) fn lease_after_restore(mut document: Document) -> Option<Document> {
    if !document.name.as_str().starts_with(DocumentName::LEASE) {
        return None;
    }
    document.version = document.version.saturating_add(AFTER_RESTORE);
    if document.body.is_empty() {
        document.body = b"0 nobody, since a restore".to_vec();
    }
    Some(document)
}

/// Decodes a row of [`DOCUMENT_COLUMNS`].
pub(in crate::store) fn read_document(row: &impl Cells) -> Result<Document, RowFault> {
    let name = row.text(0, "the name of a document")?;
    let what = format!("document {name:?}");
    let document = Document {
        name: DocumentName::from_origin(name, TextOrigin::Stored).map_err(|_| is_damaged(&what))?,
        version: row.number(1, &what)?.unsigned_abs(),
        body: row.bytes(2, &what)?.to_vec(),
    };
    let (_, seal) = document_version_and_seal(&document)?;
    match row.number(3, &what)? == seal {
        true => Ok(document),
        false => Err(is_damaged(&what)),
    }
}
