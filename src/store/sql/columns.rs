//! The table `rows`, which holds tenants, owners, keys and tombstones: its columns and their decoding.

use super::cells::Cells;
use super::seal::Seal;
use super::{KEY, OWNER, REMOVED, RowFault, TENANT, ends_at, id_bytes, id_of, revision_of};
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::record::{KeyRecord, KeyState};
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::store::{Change, Row, RowKey};

/// The columns of the table `rows`: the place (the row's position in commit order), the fields of
/// [`RowColumns`] in order, and the seal (a checksum).
pub(in crate::store) const COLUMNS: &str =
    "place, kind, tenant, name, id, class, ends, legacy, fingerprint, body, seal";

/// The columns of a row of the table `rows`, without its place and its seal.
pub(in crate::store) struct RowColumns<T, B> {
    pub(in crate::store) kind: i64,
    pub(in crate::store) tenant: T,
    pub(in crate::store) name: Option<T>,
    pub(in crate::store) id: Option<B>,
    pub(in crate::store) class: Option<T>,
    pub(in crate::store) ends: Option<i64>,
    pub(in crate::store) legacy: Option<i64>,
    pub(in crate::store) fingerprint: Option<T>,
    pub(in crate::store) body: B,
}

impl RowColumns<String, Vec<u8>> {
    pub(in crate::store) fn of(row: &Row) -> Result<Self, RowFault> {
        let (kind, tenant, body) = match row {
            Row::Tenant(row) => (TENANT, &row.tenant, row.to_bytes()),
            Row::Owner(row) => (OWNER, &row.tenant, row.to_bytes()),
            Row::Key(record) => (KEY, &record.tenant, record.to_bytes()),
            Row::Removed { tenant, .. } => (REMOVED, tenant, Vec::new()),
            Row::Corrupt(_) => return Err(RowFault::Refused("a corrupt row cannot be written")),
        };
        let mut columns = Self {
            kind,
            tenant: tenant.as_str().to_owned(),
            name: None,
            id: None,
            class: None,
            ends: None,
            legacy: None,
            fingerprint: None,
            body,
        };
        match row.key() {
            RowKey::Tenant(_) => columns.name = Some(String::new()),
            RowKey::Owner(_, owner) => columns.name = Some(owner.as_str().to_owned()),
            RowKey::Key(id) => columns.id = Some(id_bytes(id).to_vec()),
        }
        if let Row::Key(record) = row {
            columns.class = Some(record.class.to_string());
            columns.ends = ends(record);
            columns.legacy = record.legacy.then_some(1);
            columns.fingerprint = Some(record.fingerprint.to_string());
        }
        Ok(columns)
    }
}

fn ends(record: &KeyRecord) -> Option<i64> {
    match record.state {
        KeyState::Revoked { .. } => None,
        KeyState::Enabled | KeyState::Disabled(_) => Some(ends_at(record.expires_at)),
    }
}

/// Decodes a row that was selected with [`COLUMNS`]. Returns [`Row::Corrupt`] for a damaged row, and fails if
/// even the row's key cannot be read.
pub(in crate::store) fn change(row: &impl Cells) -> Result<Change, RowFault> {
    let place = row.number(0, "the place of a row")?;
    let mut typed = true;
    let columns = RowColumns {
        kind: row.cell(1).number(&mut typed).unwrap_or(-1),
        tenant: row.cell(2).text(&mut typed).unwrap_or_default(),
        name: row.cell(3).text(&mut typed),
        id: row.cell(4).bytes(&mut typed),
        class: row.cell(5).text(&mut typed),
        ends: row.cell(6).number(&mut typed),
        legacy: row.cell(7).number(&mut typed),
        fingerprint: row.cell(8).text(&mut typed),
        body: row.cell(9).bytes(&mut typed).unwrap_or_default(),
    };
    let sealed = row.cell(10).number(&mut typed);
    let intact = typed && sealed == Some(columns.seal(place));
    let revision = revision_of(place);
    if let Some(row) = columns.decode().filter(|_| intact) {
        return Ok(Change { revision, row });
    }
    let name = columns.row_key().ok_or_else(|| {
        RowFault::corrupt(format!(
            "the row at place {place} is damaged beyond its name"
        ))
    })?;
    let row = Row::Corrupt(name);
    Ok(Change { revision, row })
}

/// Returns the place (the position in commit order) of a row that was selected with [`COLUMNS`].
#[cfg(feature = "postgres")]
pub(in crate::store) fn place_at(row: &impl Cells) -> Result<i64, RowFault> {
    row.number(0, "the place of a row")
}

impl<T: AsRef<str>, B: AsRef<[u8]>> RowColumns<T, B> {
    fn decode(&self) -> Option<Row> {
        let body = self.body.as_ref();
        match self.kind {
            TENANT => TenantRecord::from_bytes(body).map(Row::Tenant).ok(),
            OWNER => OwnerRecord::from_bytes(body).map(Row::Owner).ok(),
            KEY => {
                let record = KeyRecord::from_bytes(body).ok()?;
                Some(Row::Key(Box::new(record)))
            }
            REMOVED => Some(Row::Removed {
                key: id_of(self.id.as_ref()?.as_ref())?,
                tenant: TenantId::new(self.tenant.as_ref()).ok()?,
            }),
            _ => None,
        }
    }

    /// Returns the key of a damaged row, if the key can be read. Tries the record in the body first, because
    /// the record has its own checksum.
    fn row_key(&self) -> Option<RowKey> {
        if let Some(row) = self.decode() {
            return Some(row.key());
        }
        if let Some(id) = self.id.as_ref().and_then(|id| id_of(id.as_ref())) {
            return Some(RowKey::Key(id));
        }
        let tenant = TenantId::new(self.tenant.as_ref()).ok()?;
        match self.name.as_ref()?.as_ref() {
            "" => Some(RowKey::Tenant(tenant)),
            owner => Some(RowKey::Owner(tenant, PrincipalId::new(owner).ok()?)),
        }
    }

    pub(in crate::store) fn seal(&self, place: i64) -> i64 {
        let Self {
            kind,
            tenant,
            name,
            id,
            class,
            ends,
            legacy,
            fingerprint,
            body,
        } = self;
        let seal = Seal::default().number(place).number(*kind);
        let seal = seal.bytes(tenant.as_ref());
        let seal = seal.maybe(name.as_ref().map(AsRef::as_ref));
        let seal = seal.maybe(id.as_ref());
        let seal = seal.maybe(class.as_ref().map(AsRef::as_ref));
        // `i64::MIN` stands for a missing number. No instant has this value, because years have four digits.
        let seal = seal.number(ends.unwrap_or(i64::MIN));
        let seal = seal.number(legacy.unwrap_or(i64::MIN));
        let seal = seal.maybe(fingerprint.as_ref().map(AsRef::as_ref));
        seal.bytes(body).end()
    }
}
