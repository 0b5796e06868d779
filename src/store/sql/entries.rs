//! The table `audit`: its columns and their decoding.

use super::cells::Cells;
use super::seal::Seal;
use super::{RowFault, id_bytes, revision_of, signed};
use crate::core::audit::AuditEntry;
use crate::core::query::{AuditPosition, AuditRow};

/// The columns of the table `audit`: the place (the position in commit order), the fields of [`AuditColumns`]
/// in order, and the seal (a checksum).
pub(in crate::store) const AUDIT_COLUMNS: &str =
    "place, tenant, sequence, command, key, body, seal";

/// The columns of an audit entry, without its place and its seal.
pub(in crate::store) struct AuditColumns<T, B> {
    pub(in crate::store) tenant: T,
    pub(in crate::store) sequence: i64,
    pub(in crate::store) command: T,
    pub(in crate::store) key: Option<B>,
    pub(in crate::store) body: B,
}

impl AuditColumns<String, Vec<u8>> {
    pub(in crate::store) fn of(entry: &AuditEntry) -> Result<Self, RowFault> {
        Ok(Self {
            tenant: entry.tenant.as_str().to_owned(),
            sequence: signed(entry.sequence)?,
            command: entry.command.as_str().to_owned(),
            key: entry.key.map(|key| id_bytes(key).to_vec()),
            body: entry.to_bytes(),
        })
    }
}

impl<T: AsRef<str>, B: AsRef<[u8]>> AuditColumns<T, B> {
    pub(in crate::store) fn seal(&self, place: i64) -> i64 {
        let Self {
            tenant,
            sequence,
            command,
            key,
            body,
        } = self;
        let seal = Seal::default().number(place).bytes(tenant.as_ref());
        let seal = seal.number(*sequence).bytes(command.as_ref());
        seal.maybe(key.as_ref()).bytes(body).end()
    }
}

/// Decodes an audit entry that was selected with [`AUDIT_COLUMNS`]. The inner error is the position of a
/// damaged entry. The outer error means that even the position cannot be read.
pub(in crate::store) fn entry(
    row: &impl Cells,
) -> Result<Result<AuditRow, AuditPosition>, RowFault> {
    let place = row.number(0, "the place of an audit entry")?;
    let mut typed = true;
    let columns = AuditColumns {
        tenant: row.cell(1).text(&mut typed).unwrap_or_default(),
        sequence: row.cell(2).number(&mut typed).unwrap_or_default(),
        command: row.cell(3).text(&mut typed).unwrap_or_default(),
        key: row.cell(4).bytes(&mut typed),
        body: row.cell(5).bytes(&mut typed).unwrap_or_default(),
    };
    let sealed = row.cell(6).number(&mut typed);
    let intact = typed && sealed == Some(columns.seal(place));
    let revision = revision_of(place);
    Ok(match AuditEntry::from_bytes(columns.body) {
        Ok(entry) if intact => Ok(AuditRow { revision, entry }),
        _ => Err(AuditPosition {
            revision,
            sequence: columns.sequence.unsigned_abs(),
        }),
    })
}
