//! Listings of keys and audit entries. A statement selects rows that may match the query, and the code here
//! then checks each row.

use super::{AUDIT_COLUMNS, COLUMNS, KEY, Sql, ends_at, id_bytes, place};
use crate::core::id::KeyId;
use crate::core::query::{
    AuditPage, AuditPosition, AuditQuery, AuditRow, KeyPage, KeyPosition, KeyQuery, KeySort,
};
use crate::core::record::{KeyRecord, Status};
use crate::core::tenant::TenantId;
use crate::store::{Change, Row, RowKey};

/// Each further statement of a listing selects four times as many rows as the one before. So a listing whose
/// filters reject nearly every row needs few statements.
const GROWTH: usize = 4;

/// Returns a statement that selects all rows that may match the query. Also returns whether the statement
/// sorts the rows in the query's order.
fn key_candidates(query: &KeyQuery) -> (Sql, bool) {
    let keys = format!("kind = {KEY} AND id IS NOT NULL");
    let mut sql = Sql::select(COLUMNS, "rows", &keys);
    if let Some(tenant) = &query.tenant {
        sql.and_tenants(tenant, query.below);
    }
    if let Some(fingerprint) = query.fingerprint {
        sql.and("fingerprint =", &*fingerprint.to_string());
        return (sql, false);
    }
    let (beyond, order) = match query.sort {
        KeySort::Created => ("id >", " ORDER BY id"),
        KeySort::Newest => ("id <", " ORDER BY id DESC"),
        KeySort::Expiry if query.tenant.is_none() && leaves_out_revoked(query) => {
            return (by_end(sql, query), true);
        }
        // No index sorts by name, and the indexes by expiry lack revoked keys. So all candidates are read and
        // sorted in memory.
        KeySort::Name | KeySort::Expiry => return (sql, false),
    };
    if let Some(after) = &query.after {
        sql.and(beyond, id_bytes(after.id).to_vec());
    }
    // The index `rows_of_tenant` or `rows_by_id` sorts by id.
    sql.text += order;
    (sql, true)
}

/// Returns the tenant of a query that lists keys of the tenant and its descendants by id.
fn root_by_id(query: &KeyQuery) -> Option<&TenantId> {
    let is_by_id = matches!(query.sort, KeySort::Created | KeySort::Newest);
    let root = query.tenant.as_ref().filter(|_| query.below && is_by_id);
    root.filter(|_| query.fingerprint.is_none())
}

/// Selects the first `most` keys of `root` and its descendants after the key `after`, in the order of their ids.
///
/// No index sorts the keys of several tenants by id. So the inner statement sorts the ids alone, which the index
/// `rows_of_tenant` holds, and the outer one reads only the rows of the page.
fn by_id_below(root: &TenantId, sort: KeySort, after: Option<KeyId>, most: usize) -> Sql {
    let (beyond, order) = match sort {
        KeySort::Newest => ("id <", "id DESC"),
        _ => ("id >", "id"),
    };
    let mut sql = Sql::select("id", "rows", "1 = 1");
    sql.and_tenants(root, true);
    match after {
        Some(after) => sql.and(beyond, id_bytes(after).to_vec()),
        None => sql.text += " AND id IS NOT NULL",
    }
    sql.text += &format!(" ORDER BY {order}");
    sql.limit(most);
    let ids = sql.text;
    sql.text = format!("SELECT {COLUMNS} FROM $s.rows WHERE id IN ({ids}) ORDER BY {order}");
    sql
}

/// Returns whether the query excludes revoked keys. Only then is an index by expiry usable, because these
/// indexes contain no revoked keys.
fn leaves_out_revoked(query: &KeyQuery) -> bool {
    !query.statuses.is_empty() && !query.statuses.contains(&Status::Revoked)
}

/// Selects the keys of all tenants that expire within the query's range, in the order of their expiry.
fn by_end(mut sql: Sql, query: &KeyQuery) -> Sql {
    sql.text += " AND ends IS NOT NULL";
    let from = query.expires_from.map(|from| ends_at(Some(from)));
    let after = query.after.as_ref();
    let after = after.map(|place| (ends_at(place.expires_at), place.id));
    match after {
        // One condition compares expiry and id. So the index scan starts where the last page ended, even if
        // many keys have the same expiry.
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

/// Builds a page of keys. Keeps the first rows in the query's order, and one more row. The extra row shows
/// that another page follows.
pub(in crate::store) struct KeyListing<'q> {
    query: &'q KeyQuery,
    /// True if the rows of the present statement come in the order of the query.
    ordered: bool,
    limit: usize,
    found: Vec<(KeyPosition, KeyRecord)>,
    page: KeyPage,
    /// The largest number of rows of the present statement. Zero before the first one.
    asked: usize,
    /// The number of rows of the present statement that were added.
    read: usize,
    /// The last intact row.
    last: Option<KeyId>,
    is_complete: bool,
}

impl<'q> KeyListing<'q> {
    /// Starts an empty page.
    pub(in crate::store) fn new(query: &'q KeyQuery) -> Self {
        Self {
            query,
            ordered: false,
            limit: query.limit.get().saturating_add(1),
            found: Vec::new(),
            page: KeyPage::default(),
            asked: 0,
            read: 0,
            last: query.after.as_ref().map(|after| after.id),
            is_complete: false,
        }
    }

    /// Returns the next statement to run; the caller must [add](Self::add) its rows. `None` once the page is
    /// complete.
    pub(in crate::store) fn next(&mut self) -> Option<Sql> {
        let is_first = self.asked == 0;
        if self.is_complete || (!is_first && self.read < self.asked) {
            return None;
        }
        self.read = 0;
        let Some(root) = root_by_id(self.query) else {
            let (sql, ordered) = key_candidates(self.query);
            (self.asked, self.ordered) = (usize::MAX, ordered);
            return Some(sql);
        };
        let most = self.asked.saturating_mul(GROWTH).max(self.limit);
        (self.asked, self.ordered) = (most, true);
        Some(by_id_below(root, self.query.sort, self.last, most))
    }

    /// Adds a row if the row matches the query. Returns whether the page is complete.
    pub(in crate::store) fn add(&mut self, change: Change) -> bool {
        self.read = self.read.saturating_add(1);
        match change.row {
            Row::Key(record) => {
                let place = KeyPosition::of(&record);
                self.last = Some(place.id);
                if self.query.matches(&record) && self.query.reaches(&place) {
                    self.found.push((place, *record));
                }
            }
            // A later statement may select the corrupt rows at the end of this one again.
            Row::Corrupt(RowKey::Key(id)) if !self.page.corrupt.contains(&id) => {
                self.page.corrupt.push(id);
            }
            Row::Removed { key, .. } => self.last = Some(key),
            _ => {}
        }
        // Sorts only when twice the limit is reached. This bounds the memory and amortizes the cost of
        // sorting.
        if self.found.len() > self.limit.saturating_mul(2).max(1024) {
            self.trim();
        }
        self.is_complete = self.ordered && self.found.len() == self.limit;
        self.is_complete
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

/// Returns a statement that selects all entries that may match the query, in commit order.
pub(in crate::store) fn audit_entries(query: &AuditQuery) -> Sql {
    let mut sql = Sql::select(AUDIT_COLUMNS, "audit", "1 = 1");
    if let Some(key) = query.key {
        sql.and("key =", id_bytes(key).to_vec());
    }
    if let Some(command) = &query.command {
        sql.and("command =", command.as_str());
    }
    if let Some(tenant) = &query.tenant {
        sql.and("tenant =", tenant.as_str());
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
        // Within one tenant, sorting by sequence gives commit order too, and the index `audit_of_tenant`
        // sorts by sequence.
        order = "sequence";
    }
    sql.text += &format!(" ORDER BY {order}");
    sql
}

/// Builds a page of audit entries.
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

    /// Adds an entry if the entry matches the query. Returns whether the page is complete.
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
