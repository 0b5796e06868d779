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
