//! A statement with its parameters.

use crate::core::tenant::TenantId;

/// A parameter of a statement.
#[derive(Clone, Debug)]
pub(in crate::store) enum Value {
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// An SQL statement and its parameters. The text is in PostgreSQL's dialect, with the placeholder `$s.` for
/// the schema.
#[derive(Clone, Debug)]
pub(in crate::store) struct Sql {
    pub(in crate::store) text: String,
    pub(in crate::store) with: Vec<Value>,
}

impl Sql {
    /// Creates a `SELECT` from a table, with a first `WHERE` condition.
    pub(super) fn select(columns: &str, table: &str, condition: &str) -> Self {
        Self {
            text: format!("SELECT {columns} FROM $s.{table} WHERE {condition}"),
            with: Vec::new(),
        }
    }

    /// Adds a parameter, and returns its placeholder, such as `$1`.
    pub(super) fn bind(&mut self, value: impl Into<Value>) -> String {
        self.with.push(value.into());
        format!("${}", self.with.len())
    }

    pub(super) fn and(&mut self, condition: &str, value: impl Into<Value>) {
        let bound = self.bind(value);
        self.text += &format!(" AND {condition} {bound}");
    }

    /// Restricts the rows to a tenant or, if `below` is true, to a range that contains the tenant and its
    /// descendants. The range may also contain siblings such as `acme-two`, so the query must check each row.
    ///
    /// The path of a descendant begins with the tenant's path and a slash. The range ends before the tenant's
    /// path and "0", because "0" follows the slash in byte order.
    pub(super) fn and_tenants(&mut self, tenant: &TenantId, below: bool) {
        let path = tenant.as_str();
        if below {
            self.and("tenant >=", path);
            self.and("tenant <", &*format!("{path}0"));
        } else {
            self.and("tenant =", path);
        }
    }

    pub(super) fn limit(&mut self, rows: usize) {
        let bound = self.bind(i64::try_from(rows).unwrap_or(i64::MAX));
        self.text += &format!(" LIMIT {bound}");
    }
}
