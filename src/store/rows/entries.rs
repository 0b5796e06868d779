//! The columns of an audit entry.

use super::seal::Seal;
use super::{RowFault, id_bytes, revision_of, signed};
use crate::core::audit::AuditEntry;
use crate::core::query::{AuditPosition, AuditRow};

/// The columns of `audit`, in the order of [`AuditColumns`], between the entry's place and its seal.
pub(in crate::store) const AUDIT_COLUMNS: &str =
    "place, tenant, sequence, command, key, body, seal";

/// An entry's columns but its place and its seal.
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

    /// The entry as it stands at `place`; where it stands if its bytes changed since they were
    /// `sealed`. No seal fits an entry of which a column is not what it should be.
    pub(in crate::store) fn entry(
        &self,
        place: i64,
        sealed: Option<i64>,
    ) -> Result<AuditRow, AuditPosition> {
        let intact = sealed == Some(self.seal(place));
        let revision = revision_of(place);
        match AuditEntry::from_bytes(self.body.as_ref()) {
            Ok(entry) if intact => Ok(AuditRow { revision, entry }),
            _ => Err(AuditPosition {
                revision,
                sequence: self.sequence.unsigned_abs(),
            }),
        }
    }
}
