//! Rows and audit entries as the file holds them. Whatever is read is checked against its seal: SQLite
//! itself returns flipped bits without a word.

use rusqlite::types::ValueRef;
use rusqlite::{Row as Columns, ToSql};

use super::fault::Fault;
use super::schema::PLACE_BITS;
use crate::core::audit::AuditEntry;
use crate::core::id::KeyId;
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::query::AuditPosition;
use crate::core::record::{KeyRecord, KeyState};
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{AuditRow, Change, Row, RowKey};

pub(super) const TENANT: i64 = 0;
pub(super) const OWNER: i64 = 1;
pub(super) const KEY: i64 = 2;
const REMOVED: i64 = 3;

/// What `ends` says of a key that never ends.
const NEVER: i64 = i64::MAX;

/// The columns of `rows` that [`change`] reads, in its order.
pub(super) const COLUMNS: &str =
    "place, kind, tenant, name, id, ends, legacy, fingerprint, body, seal";

/// The columns of `audit` that [`entry`] reads, in its order.
pub(super) const AUDIT_COLUMNS: &str = "place, tenant, sequence, command, key, body, seal";

/// Where the `number`th row of a commit stands.
pub(super) fn place(revision: Revision, number: usize) -> Result<i64, Fault> {
    let number = u64::try_from(number).unwrap_or(u64::MAX);
    let fits = number < 1 << PLACE_BITS && revision.0 < 1 << (63 - PLACE_BITS);
    if !fits {
        return Err(Fault::Refused("a commit has at most 1,048,576 rows"));
    }
    i64::try_from(revision.0 << PLACE_BITS | number)
        .map_err(|_| Fault::Refused("the revision is out of range"))
}

/// Where the first row stands that a commit after `revision` may have written.
pub(super) fn first_after(revision: Revision) -> i64 {
    place(Revision(revision.0.saturating_add(1)), 0).unwrap_or(i64::MAX)
}

pub(super) fn revision_of(place: i64) -> Revision {
    Revision(place.unsigned_abs() >> PLACE_BITS)
}

pub(super) fn id_bytes(id: KeyId) -> [u8; 16] {
    id.to_u128().to_be_bytes()
}

pub(super) fn id_of(bytes: &[u8]) -> Option<KeyId> {
    let bytes = bytes.try_into().ok()?;
    Some(KeyId::from_u128(u128::from_be_bytes(bytes)))
}

/// CRC-32 over the fields of a row, each with its length, so that none can pass for another.
pub(super) struct Seal {
    summed: crc32fast::Hasher,
    /// Short fields on their way: many short sums cost several times one long one.
    waiting: [u8; WAITING],
    len: usize,
}

/// Enough for the fields of most rows, bodies excepted.
const WAITING: usize = 256;

impl Default for Seal {
    fn default() -> Self {
        Self {
            summed: crc32fast::Hasher::new(),
            waiting: [0; WAITING],
            len: 0,
        }
    }
}

impl Seal {
    pub(super) fn number(mut self, value: i64) -> Self {
        self.add(&value.to_le_bytes());
        self
    }

    pub(super) fn bytes(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let mut sealed = self.number(i64::try_from(value.len()).unwrap_or(-1));
        sealed.add(value);
        sealed
    }

    pub(super) fn maybe(self, value: Option<impl AsRef<[u8]>>) -> Self {
        match value {
            Some(value) => self.bytes(value),
            None => self.number(-1),
        }
    }

    pub(super) fn end(mut self) -> i64 {
        self.sum_up();
        i64::from(self.summed.finalize())
    }

    fn add(&mut self, bytes: &[u8]) {
        if bytes.len() > WAITING - self.len {
            self.sum_up();
        }
        match self.waiting.get_mut(self.len..self.len + bytes.len()) {
            Some(free) => {
                free.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            None => self.summed.update(bytes),
        }
    }

    fn sum_up(&mut self) {
        self.summed.update(&self.waiting[..self.len]);
        self.len = 0;
    }
}

/// A row's columns but its place and its seal.
pub(super) struct Fields {
    kind: i64,
    pub(super) tenant: TenantId,
    name: Option<String>,
    pub(super) id: Option<[u8; 16]>,
    ends: Option<i64>,
    legacy: Option<i64>,
    fingerprint: Option<String>,
    body: Vec<u8>,
}

impl Fields {
    pub(super) fn of(row: &Row) -> Result<Self, Fault> {
        let (kind, tenant, body) = match row {
            Row::Tenant(row) => (TENANT, &row.tenant, row.to_bytes()),
            Row::Owner(row) => (OWNER, &row.tenant, row.to_bytes()),
            Row::Key(record) => (KEY, &record.tenant, record.to_bytes()),
            Row::Removed { tenant, .. } => (REMOVED, tenant, Vec::new()),
            Row::Corrupt(_) => return Err(Fault::Refused("a corrupt row cannot be written")),
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

    fn seal(&self, place: i64) -> i64 {
        seal(place, &Borrowed::of(self))
    }

    /// The row's columns in the order of [`COLUMNS`].
    pub(super) fn insert(
        &self,
        place: i64,
        into: &mut rusqlite::CachedStatement<'_>,
    ) -> Result<(), Fault> {
        let seal = self.seal(place);
        let columns: [&dyn ToSql; 10] = [
            &place,
            &self.kind,
            &self.tenant.as_str(),
            &self.name,
            &self.id,
            &self.ends,
            &self.legacy,
            &self.fingerprint,
            &self.body,
            &seal,
        ];
        into.execute(columns)?;
        Ok(())
    }
}

fn ends(record: &KeyRecord) -> Option<i64> {
    match record.state {
        KeyState::Revoked { .. } => None,
        KeyState::Enabled | KeyState::Disabled(_) => Some(ends_at(record.expires_at)),
    }
}

/// What `ends` says of a key that is not revoked and ends then.
pub(super) fn ends_at(expires_at: Option<Timestamp>) -> i64 {
    expires_at.map_or(NEVER, Timestamp::as_micros)
}

/// A row's columns where they lie.
struct Borrowed<'a> {
    kind: i64,
    tenant: &'a str,
    name: Option<&'a str>,
    id: Option<&'a [u8]>,
    ends: Option<i64>,
    legacy: Option<i64>,
    fingerprint: Option<&'a str>,
    body: &'a [u8],
}

impl<'a> Borrowed<'a> {
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

    /// The columns, if each holds what it should and the seal fits; else as much as can be read.
    fn read(row: &'a Columns<'_>) -> Result<(i64, Self, bool), Fault> {
        let place = row.get(0)?;
        let (kind, kind_ok) = number(row.get_ref(1)?);
        let (tenant, tenant_ok) = text(row.get_ref(2)?);
        let (name, name_ok) = text(row.get_ref(3)?);
        let (id, id_ok) = blob(row.get_ref(4)?);
        let (ends, ends_ok) = number(row.get_ref(5)?);
        let (legacy, legacy_ok) = number(row.get_ref(6)?);
        let (fingerprint, fingerprint_ok) = text(row.get_ref(7)?);
        let (body, body_ok) = blob(row.get_ref(8)?);
        let (sealed, _) = number(row.get_ref(9)?);
        let columns = Self {
            kind: kind.unwrap_or(-1),
            tenant: tenant.unwrap_or_default(),
            name,
            id,
            ends,
            legacy,
            fingerprint,
            body: body.unwrap_or_default(),
        };
        let typed = kind_ok
            && tenant_ok
            && name_ok
            && id_ok
            && ends_ok
            && legacy_ok
            && fingerprint_ok
            && body_ok;
        let intact = typed && sealed == Some(seal(place, &columns));
        Ok((place, columns, intact))
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
}

/// A row as it stands, [`Row::Corrupt`] if its bytes changed since they were written.
pub(super) fn change(row: &Columns<'_>) -> Result<Change, Fault> {
    let (place, columns, intact) = Borrowed::read(row)?;
    let revision = revision_of(place);
    if let Some(row) = columns.decode().filter(|_| intact) {
        return Ok(Change { revision, row });
    }
    let name = columns.name_it().ok_or_else(|| {
        Fault::corrupt(format!(
            "the row at place {place} is damaged beyond its name"
        ))
    })?;
    Ok(Change {
        revision,
        row: Row::Corrupt(name),
    })
}

/// An audit entry as it stands; the place of one whose bytes changed since they were written.
pub(super) fn entry(row: &Columns<'_>) -> Result<Result<AuditRow, AuditPosition>, Fault> {
    let place = row.get(0)?;
    let revision = revision_of(place);
    let (tenant, tenant_ok) = text(row.get_ref(1)?);
    let (sequence, _) = number(row.get_ref(2)?);
    let (command, command_ok) = text(row.get_ref(3)?);
    let (key, key_ok) = blob(row.get_ref(4)?);
    let (body, body_ok) = blob(row.get_ref(5)?);
    let (sealed, _) = number(row.get_ref(6)?);
    let (tenant, command) = (tenant.unwrap_or_default(), command.unwrap_or_default());
    let (sequence, body) = (sequence.unwrap_or_default(), body.unwrap_or_default());
    let typed = tenant_ok && command_ok && key_ok && body_ok;
    let intact = typed && sealed == Some(audit_seal(place, tenant, sequence, command, key, body));
    match AuditEntry::from_bytes(body) {
        Ok(entry) if intact => Ok(Ok(AuditRow { revision, entry })),
        _ => Ok(Err(AuditPosition {
            revision,
            sequence: sequence.unsigned_abs(),
        })),
    }
}

pub(super) fn audit_seal(
    place: i64,
    tenant: &str,
    sequence: i64,
    command: &str,
    key: Option<&[u8]>,
    body: &[u8],
) -> i64 {
    let seal = Seal::default().number(place).bytes(tenant).number(sequence);
    seal.bytes(command).maybe(key).bytes(body).end()
}

fn seal(place: i64, columns: &Borrowed<'_>) -> i64 {
    let Borrowed {
        kind,
        tenant,
        name,
        id,
        ends,
        legacy,
        fingerprint,
        body,
    } = columns;
    let seal = Seal::default().number(place).number(*kind).bytes(tenant);
    let seal = seal.maybe(*name).maybe(*id);
    // No instant is negative enough to pass for a missing one: years have four digits.
    let seal = seal
        .number(ends.unwrap_or(i64::MIN))
        .number(legacy.unwrap_or(i64::MIN));
    seal.maybe(*fingerprint).bytes(body).end()
}

/// A value of the type that a column should have, and whether it was of that type.
fn number(value: ValueRef<'_>) -> (Option<i64>, bool) {
    match value {
        ValueRef::Integer(number) => (Some(number), true),
        other => (None, matches!(other, ValueRef::Null)),
    }
}

fn text(value: ValueRef<'_>) -> (Option<&str>, bool) {
    match value {
        ValueRef::Text(bytes) => {
            let text = std::str::from_utf8(bytes).ok();
            (text, text.is_some())
        }
        other => (None, matches!(other, ValueRef::Null)),
    }
}

fn blob(value: ValueRef<'_>) -> (Option<&[u8]>, bool) {
    match value {
        ValueRef::Blob(bytes) => (Some(bytes), true),
        other => (None, matches!(other, ValueRef::Null)),
    }
}
