//! Runs statements and reads the cells of their rows. SQLite does not detect flipped bits, so each row
//! carries a checksum, its seal (see [`sql`](crate::store::sql)).

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Params, Row, ToSql, params_from_iter};

use super::fault::SqliteFault;
use crate::store::sql::{Cell, Cells, Sql, Value};

impl Cells for Row<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        match self.get_ref(column) {
            Ok(ValueRef::Null) => Cell::Null,
            Ok(ValueRef::Integer(number)) => Cell::Number(number),
            Ok(ValueRef::Text(bytes)) => std::str::from_utf8(bytes).map_or(Cell::Other, Cell::Text),
            Ok(ValueRef::Blob(bytes)) => Cell::Bytes(bytes),
            Ok(ValueRef::Real(_)) | Err(_) => Cell::Other,
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Number(number) => number.to_sql(),
            Self::Text(text) => text.to_sql(),
            Self::Bytes(bytes) => bytes.to_sql(),
        }
    }
}

/// Translates a shared statement into SQLite's dialect: removes `$s.`, and replaces `$1` by `?1`. Statements
/// contain no other dollar sign.
pub(super) fn dialect(sql: &str) -> String {
    sql.replace("$s.", "").replace('$', "?")
}

/// Calls `look` with each row that a statement finds, until `look` returns `false`.
pub(super) fn each(
    conn: &Connection,
    sql: &str,
    with: impl Params,
    mut look: impl FnMut(&Row<'_>) -> Result<bool, SqliteFault>,
) -> Result<(), SqliteFault> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut found = statement.query(with)?;
    while let Some(row) = found.next()? {
        if !look(row)? {
            break;
        }
    }
    Ok(())
}

/// Like [`each`], for a statement that both SQL stores share.
pub(super) fn each_of(
    conn: &Connection,
    sql: &Sql,
    look: impl FnMut(&Row<'_>) -> Result<bool, SqliteFault>,
) -> Result<(), SqliteFault> {
    let with = params_from_iter(&sql.with);
    each(conn, &dialect(&sql.text), with, look)
}

/// Returns the first row that a statement finds, decoded by `read`.
pub(super) fn one<T>(
    conn: &Connection,
    sql: &str,
    with: impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T, SqliteFault>,
) -> Result<Option<T>, SqliteFault> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut found = statement.query(with)?;
    found.next()?.map(read).transpose()
}
