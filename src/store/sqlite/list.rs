//! Listings for people: an index narrows where one fits, the query itself decides.

use std::num::NonZeroUsize;

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::fault::Fault;
use super::rows::{self, AUDIT_COLUMNS, COLUMNS, KEY, id_bytes};
use crate::core::query::{AuditPosition, AuditQuery, KeyPosition, KeyQuery, KeySort};
use crate::core::record::{KeyRecord, Status};
use crate::core::tenant::TenantId;
use crate::store::{AuditPage, KeyPage, Row, RowKey};

/// A statement with what it is bound to.
struct Sql {
    text: String,
    with: Vec<Value>,
}

impl Sql {
    fn new(text: String) -> Self {
        let with = Vec::new();
        Self { text, with }
    }

    fn and(&mut self, condition: &str, value: impl Into<Value>) {
        self.with.push(value.into());
        self.text += &format!(" AND {condition} ?{}", self.with.len());
    }

    /// The tenants below `tenant` share its path and a slash; "0" follows the slash.
    fn and_tenants(&mut self, tenant: &TenantId, below: bool) {
        if below {
            let path = tenant.as_str();
            self.and("tenant >=", path.to_owned());
            self.and("tenant <", format!("{path}0"));
        } else {
            self.and("tenant =", tenant.as_str().to_owned());
        }
    }
}

/// Which rows may match, in the query's order if the second half says so.
fn candidates(query: &KeyQuery) -> (Sql, bool) {
    let mut sql = Sql::new(format!(
        "SELECT {COLUMNS} FROM rows WHERE kind = {KEY} AND id IS NOT NULL"
    ));
    if let Some(tenant) = &query.tenant {
        sql.and_tenants(tenant, query.below);
    }
    if let Some(fingerprint) = query.fingerprint {
        sql.and("fingerprint =", fingerprint.to_string());
        return (sql, false);
    }
    let (beyond, order) = match query.sort {
        KeySort::Created => ("id >", " ORDER BY id"),
        KeySort::Newest => ("id <", " ORDER BY id DESC"),
        KeySort::Expiry if query.tenant.is_none() && leaves_out_revoked(query) => {
            return (by_end(sql, query), true);
        }
        // No index tells these orders: all that match are looked at, and the page kept.
        KeySort::Name | KeySort::Expiry => return (sql, false),
    };
    if let Some(after) = &query.after {
        sql.and(beyond, id_bytes(after.id).to_vec());
    }
    // Across tenants the order would have to be made: only their own index, or that of all ids, has it.
    let ordered = query.tenant.is_none() || !query.below;
    if ordered {
        sql.text += order;
    }
    (sql, ordered)
}

/// Revoked keys stand in no index by their end.
fn leaves_out_revoked(query: &KeyQuery) -> bool {
    !query.statuses.is_empty() && !query.statuses.contains(&Status::Revoked)
}

/// The keys of the whole store that end between the query's instants, by their end.
fn by_end(mut sql: Sql, query: &KeyQuery) -> Sql {
    sql.text += " AND ends IS NOT NULL";
    let from = query.expires_from.map(|from| rows::ends_at(Some(from)));
    let after = query.after.as_ref();
    let after = after.map(|place| (rows::ends_at(place.expires_at), place.id));
    match after {
        // Both at once, so that a page begins where the last one ended however many keys end then.
        Some((ends, id)) if from.is_none_or(|from| from <= ends) => {
            sql.with.extend([ends.into(), id_bytes(id).to_vec().into()]);
            let id = sql.with.len();
            sql.text += &format!(" AND (ends, id) > (?{}, ?{id})", id - 1);
        }
        _ => sql.and("ends >=", from.unwrap_or(i64::MIN)),
    }
    if let Some(before) = query.expires_before {
        sql.and("ends <", before.as_micros());
    }
    sql.text += " ORDER BY ends, id";
    sql
}

/// The best of what was seen, as many as a page holds and one more.
struct Best<'q> {
    query: &'q KeyQuery,
    limit: usize,
    found: Vec<(KeyPosition, KeyRecord)>,
}

impl Best<'_> {
    fn add(&mut self, record: KeyRecord) {
        self.found.push((KeyPosition::of(&record), record));
        // Sorting now and then keeps the memory bounded at a small cost a row.
        if self.found.len() > self.limit.saturating_mul(2).max(1024) {
            self.trim();
        }
    }

    fn trim(&mut self) {
        let sort = self.query.sort;
        self.found.sort_by(|(a, _), (b, _)| a.cmp(b, sort));
        self.found.truncate(self.limit);
    }
}

pub(super) fn keys(conn: &Connection, query: &KeyQuery) -> Result<KeyPage, Fault> {
    let (sql, ordered) = candidates(query);
    let limit = query.limit.get().saturating_add(1);
    let mut best = Best {
        query,
        limit,
        found: Vec::new(),
    };
    let mut page = KeyPage::default();
    let mut statement = conn.prepare_cached(&sql.text)?;
    let mut rows = statement.query(params_from_iter(sql.with))?;
    while let Some(row) = rows.next()? {
        match rows::change(row)?.row {
            Row::Key(record)
                if query.matches(&record) && query.reaches(&KeyPosition::of(&record)) =>
            {
                best.add(*record);
            }
            Row::Corrupt(RowKey::Key(id)) => page.corrupt.push(id),
            _ => {}
        }
        if ordered && best.found.len() == limit {
            break;
        }
    }
    best.trim();
    let mut found = best.found;
    if found.len() == limit {
        found.pop();
        page.next = found.last().map(|(place, _)| place.clone());
    }
    page.keys = found.into_iter().map(|(_, record)| record).collect();
    Ok(page)
}

pub(super) fn audit(conn: &Connection, query: &AuditQuery) -> Result<AuditPage, Fault> {
    let mut sql = Sql::new(format!("SELECT {AUDIT_COLUMNS} FROM audit WHERE 1"));
    if let Some(key) = query.key {
        sql.and("key =", id_bytes(key).to_vec());
    }
    if let Some(command) = &query.command {
        sql.and("command =", command.as_str().to_owned());
    }
    if let Some(tenant) = &query.tenant {
        sql.and("tenant =", tenant.as_str().to_owned());
    }
    let mut order = "place";
    if let Some(AuditPosition { revision, sequence }) = query.after {
        sql.and("place >=", rows::place(revision, 0).unwrap_or(i64::MAX));
        if query.tenant.is_some() {
            let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
            sql.and("sequence >", sequence);
        }
    }
    if query.tenant.is_some() && query.key.is_none() && query.command.is_none() {
        // Within a tenant that is the same order, and its index has it.
        order = "sequence";
    }
    sql.text += &format!(" ORDER BY {order}");
    audit_page(conn, query, &sql)
}

fn audit_page(conn: &Connection, query: &AuditQuery, sql: &Sql) -> Result<AuditPage, Fault> {
    let limit: NonZeroUsize = query.limit;
    let mut page = AuditPage::default();
    let mut statement = conn.prepare_cached(&sql.text)?;
    let mut rows = statement.query(params_from_iter(&sql.with))?;
    while let Some(row) = rows.next()? {
        match rows::entry(row)? {
            Ok(row) if !query.matches(&row) => {}
            Ok(_) if page.rows.len() == limit.get() => {
                page.next = page.rows.last().map(|row| row.position());
                break;
            }
            Ok(row) => page.rows.push(row),
            Err(place) if query.after.is_none_or(|after| place > after) => {
                page.corrupt.push(place);
            }
            Err(_) => {}
        }
    }
    Ok(page)
}
