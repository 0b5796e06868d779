//! The columns of a tenant's, an owner's or a key's row.

use super::seal::Seal;
use super::{KEY, OWNER, REMOVED, RowFault, TENANT, ends_at, id_bytes, id_of, revision_of};
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::record::{KeyRecord, KeyState};
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::store::{Change, Row, RowKey};

/// The columns of `rows`, in the order of [`Columns`], between the row's place and its seal.
pub(in crate::store) const COLUMNS: &str =
    "place, kind, tenant, name, id, ends, legacy, fingerprint, body, seal";

/// A row's columns but its place and its seal.
pub(in crate::store) struct Fields {
    pub(in crate::store) kind: i64,
    pub(in crate::store) tenant: TenantId,
    pub(in crate::store) name: Option<String>,
    pub(in crate::store) id: Option<[u8; 16]>,
    pub(in crate::store) ends: Option<i64>,
    pub(in crate::store) legacy: Option<i64>,
    pub(in crate::store) fingerprint: Option<String>,
    pub(in crate::store) body: Vec<u8>,
}

impl Fields {
    pub(in crate::store) fn of(row: &Row) -> Result<Self, RowFault> {
        let (kind, tenant, body) = match row {
            Row::Tenant(row) => (TENANT, &row.tenant, row.to_bytes()),
            Row::Owner(row) => (OWNER, &row.tenant, row.to_bytes()),
            Row::Key(record) => (KEY, &record.tenant, record.to_bytes()),
            Row::Removed { tenant, .. } => (REMOVED, tenant, Vec::new()),
            Row::Corrupt(_) => return Err(RowFault::Refused("a corrupt row cannot be written")),
        };
        let mut fields = Self {
            kind,
            tenant: tenant.clone(),
            name: None,
            id: None,
            ends: None,
            legacy: None,
            fingerprint: None,
            body,
        };
        match row.key() {
            RowKey::Tenant(_) => fields.name = Some(String::new()),
            RowKey::Owner(_, owner) => fields.name = Some(owner.as_str().to_owned()),
            RowKey::Key(id) => fields.id = Some(id_bytes(id)),
        }
        if let Row::Key(record) = row {
            fields.ends = ends(record);
            fields.legacy = record.legacy.then_some(1);
            fields.fingerprint = Some(record.fingerprint.to_string());
        }
        Ok(fields)
    }

    pub(in crate::store) fn seal(&self, place: i64) -> i64 {
        Columns::of(self).seal(place)
    }
}

fn ends(record: &KeyRecord) -> Option<i64> {
    match record.state {
        KeyState::Revoked { .. } => None,
        KeyState::Enabled | KeyState::Disabled(_) => Some(ends_at(record.expires_at)),
    }
}

/// A row's columns where they lie.
pub(in crate::store) struct Columns<'a> {
    pub(in crate::store) kind: i64,
    pub(in crate::store) tenant: &'a str,
    pub(in crate::store) name: Option<&'a str>,
    pub(in crate::store) id: Option<&'a [u8]>,
    pub(in crate::store) ends: Option<i64>,
    pub(in crate::store) legacy: Option<i64>,
    pub(in crate::store) fingerprint: Option<&'a str>,
    pub(in crate::store) body: &'a [u8],
}

impl<'a> Columns<'a> {
    fn of(fields: &'a Fields) -> Self {
        Self {
            kind: fields.kind,
            tenant: fields.tenant.as_str(),
            name: fields.name.as_deref(),
            id: fields.id.as_ref().map(|id| &id[..]),
            ends: fields.ends,
            legacy: fields.legacy,
            fingerprint: fields.fingerprint.as_deref(),
            body: &fields.body,
        }
    }

    /// The row as it stands at `place`, [`Row::Corrupt`] if its bytes changed since they were `sealed`.
    /// No seal fits a row of which a column is not what it should be.
    pub(in crate::store) fn change(
        &self,
        place: i64,
        sealed: Option<i64>,
    ) -> Result<Change, RowFault> {
        let intact = sealed == Some(self.seal(place));
        let revision = revision_of(place);
        if let Some(row) = self.decode().filter(|_| intact) {
            return Ok(Change { revision, row });
        }
        let name = self.name_it().ok_or_else(|| {
            RowFault::corrupt(format!(
                "the row at place {place} is damaged beyond its name"
            ))
        })?;
        Ok(Change {
            revision,
            row: Row::Corrupt(name),
        })
    }

    fn decode(&self) -> Option<Row> {
        match self.kind {
            TENANT => TenantRecord::from_bytes(self.body).map(Row::Tenant).ok(),
            OWNER => OwnerRecord::from_bytes(self.body).map(Row::Owner).ok(),
            KEY => {
                let record = KeyRecord::from_bytes(self.body).ok()?;
                Some(Row::Key(Box::new(record)))
            }
            REMOVED => Some(Row::Removed {
                key: id_of(self.id?)?,
                tenant: TenantId::new(self.tenant).ok()?,
            }),
            _ => None,
        }
    }

    /// Which row it is, as far as that can be told: the record's own word counts most, since it has
    /// a checksum of its own.
    fn name_it(&self) -> Option<RowKey> {
        if let Some(row) = self.decode() {
            return Some(row.key());
        }
        if let Some(id) = self.id.and_then(id_of) {
            return Some(RowKey::Key(id));
        }
        let tenant = TenantId::new(self.tenant).ok()?;
        match self.name? {
            "" => Some(RowKey::Tenant(tenant)),
            owner => Some(RowKey::Owner(tenant, PrincipalId::new(owner).ok()?)),
        }
    }

    fn seal(&self, place: i64) -> i64 {
        let Self {
            kind,
            tenant,
            name,
            id,
            ends,
            legacy,
            fingerprint,
            body,
        } = self;
        let seal = Seal::default().number(place).number(*kind).bytes(tenant);
        let seal = seal.maybe(*name).maybe(*id);
        // No instant is negative enough to pass for a missing one: years have four digits.
        let seal = seal
            .number(ends.unwrap_or(i64::MIN))
            .number(legacy.unwrap_or(i64::MIN));
        seal.maybe(*fingerprint).bytes(body).end()
    }
}
