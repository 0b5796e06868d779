//! Reads the rows before, between and after damaged pages. SQLite returns no row of a damaged page, and ends the
//! statement at that page.

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params};

use super::fault::SqliteFault;
use super::rows::each;
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::store::RowKey;
use crate::store::sql::{AUDIT_COLUMNS, COLUMNS, Cells, StoredTable, id_of};

/// The range of a table that a scan could not read. Its ends are the first columns of the last row before the
/// first damaged page, and of the first row after the last damaged page. Null if there is no such row.
#[derive(Debug)]
pub(super) struct Gap {
    pub(super) fault: SqliteFault,
    after: Value,
    before: Value,
}

/// Calls `look` with each row of a table that a scan can read. Reads in order up to the first damaged page, and
/// then from the end back to the last damaged page. Returns the range between the two pages. Rows must be ordered
/// by their first column.
pub(super) fn each_readable(
    conn: &Connection,
    table: StoredTable,
    mut look: impl FnMut(&Row<'_>) -> Result<(), SqliteFault>,
) -> Result<Option<Gap>, SqliteFault> {
    let StoredTable {
        name,
        columns,
        order,
    } = table;
    let mut after = Value::Null;
    let forwards = format!("SELECT {columns} FROM {name} ORDER BY {order}");
    let scanned = each(conn, &forwards, [], |row| {
        after = row.get(0)?;
        look(row)?;
        Ok(true)
    });
    let fault = match scanned {
        Ok(()) => return Ok(None),
        Err(fault) if fault.is_damage() => fault,
        Err(fault) => return Err(fault),
    };
    let mut before = Value::Null;
    let backwards = format!(
        "SELECT {columns} FROM {name} WHERE ?1 IS NULL OR {order} > ?1 ORDER BY {order} DESC"
    );
    let scanned = each(conn, &backwards, [&after], |row| {
        before = row.get(0)?;
        look(row)?;
        Ok(true)
    });
    match scanned {
        Err(fault) if !fault.is_damage() => Err(fault),
        _ => Ok(Some(Gap {
            fault,
            after,
            before,
        })),
    }
}

/// Reads the rows of the table `rows` within a gap, one by one, at the places that the indexes name. Returns the
/// names of the rows that cannot be read. A row that no index names is not found.
pub(super) fn each_row_in_gap(
    conn: &Connection,
    gap: &Gap,
    look: impl FnMut(&Row<'_>) -> Result<(), SqliteFault>,
) -> Result<Vec<RowKey>, SqliteFault> {
    let mut named = Vec::new();
    for list in [named_rows(conn)?, numbered_keys(conn)?] {
        named.extend(list.unwrap_or_default());
    }
    let sql = format!("SELECT {COLUMNS} FROM rows WHERE place = ?1");
    each_place(conn, gap, named, &sql, look)
}

/// Reads audit entries within a gap, like [`each_row_in_gap`]. Returns the tenants and numbers of the entries that
/// cannot be read.
pub(super) fn each_entry_in_gap(
    conn: &Connection,
    gap: &Gap,
    look: impl FnMut(&Row<'_>) -> Result<(), SqliteFault>,
) -> Result<Vec<String>, SqliteFault> {
    let index = "SELECT place, tenant, sequence FROM audit INDEXED BY audit_of_tenant";
    let named = listed(conn, index, |row| {
        let (tenant, sequence) = (row.text(1, "").ok()?, row.number(2, "").ok()?);
        Some(format!("audit entry {sequence} of tenant {tenant}"))
    })?;
    let sql = format!("SELECT {AUDIT_COLUMNS} FROM audit WHERE place = ?1");
    each_place(conn, gap, named.unwrap_or_default(), &sql, look)
}

/// Returns the places of the rows of tenants and owners, by their index. `None` if the index is damaged.
pub(super) fn named_rows(conn: &Connection) -> Result<Option<Vec<(i64, RowKey)>>, SqliteFault> {
    let index =
        "SELECT place, tenant, name FROM rows INDEXED BY rows_by_name WHERE name IS NOT NULL";
    listed(conn, index, |row| {
        let tenant = TenantId::new(row.text(1, "").ok()?).ok()?;
        Some(match row.text(2, "").ok()? {
            "" => RowKey::Tenant(tenant),
            owner => RowKey::Owner(tenant, PrincipalId::new(owner).ok()?),
        })
    })
}

/// Returns the places of the rows of keys, by their index. `None` if the index is damaged.
pub(super) fn numbered_keys(conn: &Connection) -> Result<Option<Vec<(i64, RowKey)>>, SqliteFault> {
    let index = "SELECT place, id FROM rows INDEXED BY rows_by_id WHERE id IS NOT NULL";
    listed(conn, index, |row| {
        Some(RowKey::Key(id_of(row.bytes(1, "").ok()?)?))
    })
}

/// Reads an index, which holds the place and the name of each row. `None` if the index is damaged.
fn listed<T>(
    conn: &Connection,
    sql: &str,
    name: impl Fn(&Row<'_>) -> Option<T>,
) -> Result<Option<Vec<(i64, T)>>, SqliteFault> {
    let mut named = Vec::new();
    let scanned = each(conn, sql, [], |row| {
        let damaged = || SqliteFault::Corrupt("an index is damaged".to_owned());
        named.push((row.get(0)?, name(row).ok_or_else(damaged)?));
        Ok(true)
    });
    match scanned {
        Ok(()) => Ok(Some(named)),
        Err(fault) if fault.is_damage() => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn each_place<T>(
    conn: &Connection,
    gap: &Gap,
    named: Vec<(i64, T)>,
    sql: &str,
    mut look: impl FnMut(&Row<'_>) -> Result<(), SqliteFault>,
) -> Result<Vec<T>, SqliteFault> {
    let bound = |value: &Value, none| match value {
        Value::Integer(place) => *place,
        _ => none,
    };
    let (after, before) = (bound(&gap.after, i64::MIN), bound(&gap.before, i64::MAX));
    let mut missing = Vec::new();
    for (place, name) in named {
        if place <= after || place >= before {
            continue;
        }
        let mut found = false;
        let read = each(conn, sql, params![place], |row| {
            found = true;
            look(row)?;
            Ok(true)
        });
        match read {
            Err(fault) if !fault.is_damage() => return Err(fault),
            _ if found => {}
            _ => missing.push(name),
        }
    }
    Ok(missing)
}
