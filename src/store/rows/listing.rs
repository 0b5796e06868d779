//! Listings for people: an index narrows where one fits, the query itself decides.

use super::{AUDIT_COLUMNS, COLUMNS, KEY, ends_at, id_bytes, place};
use crate::core::query::{
    AuditPage, AuditPosition, AuditQuery, AuditRow, KeyPage, KeyPosition, KeyQuery, KeySort,
};
use crate::core::record::{KeyRecord, Status};
use crate::core::tenant::TenantId;
use crate::store::{Change, Row, RowKey};

/// What a statement is bound to.
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

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// How a database writes a statement: before the number of what is bound, and before a table's name.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Marks<'a> {
    pub(in crate::store) bound: char,
    pub(in crate::store) schema: &'a str,
}

/// A statement with what it is bound to.
pub(in crate::store) struct Sql<'a> {
    pub(in crate::store) text: String,
    pub(in crate::store) with: Vec<Value>,
    marks: Marks<'a>,
}

impl<'a> Sql<'a> {
    pub(super) fn new(marks: Marks<'a>, columns: &str, table: &str) -> Self {
        Self {
            text: format!("SELECT {columns} FROM {}{table} WHERE ", marks.schema),
            with: Vec::new(),
            marks,
        }
    }

    /// Binds a value, and tells by which name.
    fn bind(&mut self, value: impl Into<Value>) -> String {
        self.with.push(value.into());
        format!("{}{}", self.marks.bound, self.with.len())
    }

    pub(super) fn and(&mut self, condition: &str, value: impl Into<Value>) {
        let bound = self.bind(value);
        self.text += &format!(" AND {condition} {bound}");
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
pub(in crate::store) fn key_candidates<'a>(query: &KeyQuery, marks: Marks<'a>) -> (Sql<'a>, bool) {
    let mut sql = Sql::new(marks, COLUMNS, "rows");
    sql.text += &format!("kind = {KEY} AND id IS NOT NULL");
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
fn by_end<'a>(mut sql: Sql<'a>, query: &KeyQuery) -> Sql<'a> {
    sql.text += " AND ends IS NOT NULL";
    let from = query.expires_from.map(|from| ends_at(Some(from)));
    let after = query.after.as_ref();
    let after = after.map(|place| (ends_at(place.expires_at), place.id));
    match after {
        // Both at once, so that a page begins where the last one ended however many keys end then.
        Some((ends, id)) if from.is_none_or(|from| from <= ends) => {
            let (ends, id) = (sql.bind(ends), sql.bind(id_bytes(id).to_vec()));
            sql.text += &format!(" AND (ends, id) > ({ends}, {id})");
        }
        _ => sql.and("ends >=", from.unwrap_or(i64::MIN)),
    }
    if let Some(before) = query.expires_before {
        sql.and("ends <", before.as_micros());
    }
    sql.text += " ORDER BY ends, id";
    sql
}

/// A page of keys in the making: the best of what was seen, as many as it holds and one more.
pub(in crate::store) struct KeyListing<'q> {
    query: &'q KeyQuery,
    ordered: bool,
    limit: usize,
    found: Vec<(KeyPosition, KeyRecord)>,
    page: KeyPage,
}

impl<'q> KeyListing<'q> {
    /// For rows that come in the query's order if they are `ordered`.
    pub(in crate::store) fn new(query: &'q KeyQuery, ordered: bool) -> Self {
        Self {
            query,
            ordered,
            limit: query.limit.get().saturating_add(1),
            found: Vec::new(),
            page: KeyPage::default(),
        }
    }

    /// Looks at a row. Tells whether the page is full.
    pub(in crate::store) fn add(&mut self, change: Change) -> bool {
        match change.row {
            Row::Key(record) => {
                let place = KeyPosition::of(&record);
                if self.query.matches(&record) && self.query.reaches(&place) {
                    self.found.push((place, *record));
                }
            }
            Row::Corrupt(RowKey::Key(id)) => self.page.corrupt.push(id),
            _ => {}
        }
        // Sorting now and then keeps the memory bounded at a small cost a row.
        if self.found.len() > self.limit.saturating_mul(2).max(1024) {
            self.trim();
        }
        self.ordered && self.found.len() == self.limit
    }

    fn trim(&mut self) {
        let sort = self.query.sort;
        self.found.sort_by(|(a, _), (b, _)| a.cmp(b, sort));
        self.found.truncate(self.limit);
    }

    pub(in crate::store) fn end(mut self) -> KeyPage {
        self.trim();
        let Self {
            limit,
            mut found,
            mut page,
            ..
        } = self;
        if found.len() == limit {
            found.pop();
            page.next = found.last().map(|(place, _)| place.clone());
        }
        page.keys = found.into_iter().map(|(_, record)| record).collect();
        page
    }
}

/// Which entries may match, in the order of the trail.
pub(in crate::store) fn audit_entries<'a>(query: &AuditQuery, marks: Marks<'a>) -> Sql<'a> {
    let mut sql = Sql::new(marks, AUDIT_COLUMNS, "audit");
    sql.text += "1 = 1";
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
        sql.and("place >=", place(revision, 0).unwrap_or(i64::MAX));
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
    sql
}

/// A page of the trail in the making.
pub(in crate::store) struct AuditListing<'q> {
    query: &'q AuditQuery,
    pub(in crate::store) page: AuditPage,
}

impl<'q> AuditListing<'q> {
    pub(in crate::store) fn new(query: &'q AuditQuery) -> Self {
        Self {
            query,
            page: AuditPage::default(),
        }
    }

    /// Looks at an entry. Tells whether the page is full.
    pub(in crate::store) fn add(&mut self, entry: Result<AuditRow, AuditPosition>) -> bool {
        let page = &mut self.page;
        match entry {
            Ok(row) if !self.query.matches(&row) => {}
            Ok(_) if page.rows.len() == self.query.limit.get() => {
                page.next = page.rows.last().map(|row| row.position());
                return true;
            }
            Ok(row) => page.rows.push(row),
            Err(place) if self.query.after.is_none_or(|after| place > after) => {
                page.corrupt.push(place);
            }
            Err(_) => {}
        }
        false
    }
}
