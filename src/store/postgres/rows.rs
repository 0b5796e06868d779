//! Rows as the server sends them.

use tokio_postgres::Row as Columns;

use super::fault::Fault;
use super::link::Bound;
use crate::core::query::AuditPosition;
use crate::store::rows::{self, AuditColumns, Value};
use crate::store::{AuditRow, Change};

/// A row as it stands, [`Row::Corrupt`](crate::store::Row::Corrupt) if its bytes changed since they
/// were written.
pub(super) fn change(row: &Columns) -> Result<Change, Fault> {
    let columns = rows::Columns {
        kind: i64::from(row.try_get::<_, i16>(1)?),
        tenant: row.try_get(2)?,
        name: row.try_get(3)?,
        id: row.try_get(4)?,
        ends: row.try_get(5)?,
        legacy: row.try_get::<_, Option<i16>>(6)?.map(i64::from),
        fingerprint: row.try_get(7)?,
        body: row.try_get(8)?,
    };
    Ok(columns.change(row.try_get(0)?, Some(row.try_get(9)?))?)
}

/// Where a row stands in the feed.
pub(super) fn place(row: &Columns) -> Result<i64, Fault> {
    Ok(row.try_get(0)?)
}

pub(super) fn changes(rows: &[Columns]) -> Result<Vec<Change>, Fault> {
    rows.iter().map(change).collect()
}

/// An audit entry as it stands; the place of one whose bytes changed since they were written.
pub(super) fn entry(row: &Columns) -> Result<Result<AuditRow, AuditPosition>, Fault> {
    let columns = AuditColumns::<&str, &[u8]> {
        tenant: row.try_get(1)?,
        sequence: row.try_get(2)?,
        command: row.try_get(3)?,
        key: row.try_get(4)?,
        body: row.try_get(5)?,
    };
    Ok(columns.entry(row.try_get(0)?, Some(row.try_get(6)?)))
}

pub(super) fn bound(values: &[Value]) -> Vec<Bound<'_>> {
    fn one(value: &Value) -> Bound<'_> {
        match value {
            Value::Number(number) => number,
            Value::Text(text) => text,
            Value::Bytes(bytes) => bytes,
        }
    }
    values.iter().map(one).collect()
}

/// Bytes of a length that is known.
pub(super) fn exactly<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], Fault> {
    let damaged = || Fault::corrupt(format!("{what} is damaged"));
    bytes.try_into().map_err(|_| damaged())
}
