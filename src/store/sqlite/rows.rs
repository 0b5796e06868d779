//! Rows and audit entries as the file holds them. Whatever is read is checked against its seal: SQLite
//! itself returns flipped bits without a word.

use rusqlite::types::ValueRef;
use rusqlite::{Row as Columns, ToSql};

use super::fault::Fault;
use crate::core::query::AuditPosition;
use crate::store::rows::{self, AuditColumns, Fields, Value};
use crate::store::{AuditRow, Change};

/// Writes a row's columns in the order of [`rows::COLUMNS`].
pub(super) fn insert(
    fields: &Fields,
    place: i64,
    into: &mut rusqlite::CachedStatement<'_>,
) -> Result<(), Fault> {
    let seal = fields.seal(place);
    let columns: [&dyn ToSql; 10] = [
        &place,
        &fields.kind,
        &fields.tenant.as_str(),
        &fields.name,
        &fields.id,
        &fields.ends,
        &fields.legacy,
        &fields.fingerprint,
        &fields.body,
        &seal,
    ];
    into.execute(columns)?;
    Ok(())
}

/// A row as it stands, [`Row::Corrupt`](crate::store::Row::Corrupt) if its bytes changed since they
/// were written.
pub(super) fn change(row: &Columns<'_>) -> Result<Change, Fault> {
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
    let columns = rows::Columns {
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
    Ok(columns.change(place, sealed.filter(|_| typed))?)
}

/// An audit entry as it stands; the place of one whose bytes changed since they were written.
pub(super) fn entry(row: &Columns<'_>) -> Result<Result<AuditRow, AuditPosition>, Fault> {
    let place = row.get(0)?;
    let (tenant, tenant_ok) = text(row.get_ref(1)?);
    let (sequence, _) = number(row.get_ref(2)?);
    let (command, command_ok) = text(row.get_ref(3)?);
    let (key, key_ok) = blob(row.get_ref(4)?);
    let (body, body_ok) = blob(row.get_ref(5)?);
    let (sealed, _) = number(row.get_ref(6)?);
    let columns = AuditColumns {
        tenant: tenant.unwrap_or_default(),
        sequence: sequence.unwrap_or_default(),
        command: command.unwrap_or_default(),
        key,
        body: body.unwrap_or_default(),
    };
    let typed = tenant_ok && command_ok && key_ok && body_ok;
    Ok(columns.entry(place, sealed.filter(|_| typed)))
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        match self {
            Self::Number(number) => number.to_sql(),
            Self::Text(text) => text.to_sql(),
            Self::Bytes(bytes) => bytes.to_sql(),
        }
    }
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
