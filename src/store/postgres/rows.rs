//! Conversion of PostgreSQL values: cells of received rows, and statement parameters.

use std::error::Error;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql, Type};

use super::fault::PostgresFault;
use crate::store::Change;
use crate::store::sql::{Cell, Cells, Value, change};

/// A parameter of a statement.
pub(super) type SqlParam<'a> = &'a (dyn ToSql + Sync);

impl<'a> FromSql<'a> for Cell<'a> {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(match *ty {
            Type::BOOL => Self::Number(bool::from_sql(ty, raw)?.into()),
            Type::INT2 => Self::Number(i16::from_sql(ty, raw)?.into()),
            Type::INT4 => Self::Number(i32::from_sql(ty, raw)?.into()),
            Type::INT8 => Self::Number(i64::from_sql(ty, raw)?),
            Type::TEXT => Self::Text(<&str>::from_sql(ty, raw)?),
            Type::BYTEA => Self::Bytes(raw),
            _ => Self::Other,
        })
    }

    fn from_sql_null(_ty: &Type) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self::Null)
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }
}

impl Cells for Row {
    fn cell(&self, column: usize) -> Cell<'_> {
        self.try_get(column).unwrap_or(Cell::Other)
    }
}

pub(super) fn changes(rows: &[Row]) -> Result<Vec<Change>, PostgresFault> {
    rows.iter().map(|row| Ok(change(row)?)).collect()
}

pub(super) fn params(values: &[Value]) -> Vec<SqlParam<'_>> {
    fn one(value: &Value) -> SqlParam<'_> {
        match value {
            Value::Number(number) => number,
            Value::Text(text) => text,
            Value::Bytes(bytes) => bytes,
        }
    }
    values.iter().map(one).collect()
}
