//! Pages of changes and of a scan, assembled from rows.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use super::heads::Head;
use super::{COLUMNS, KEY, OWNER, RowFault, Sql, TENANT, first_after, id_bytes};
use crate::core::view::Revision;
use crate::store::{Change, Changes, Cursor, RowKey, ScanPage};

/// A page of changes under construction. A page never ends within the changes of one revision.
pub(in crate::store) struct FeedPage {
    limit: NonZeroUsize,
    changes: Vec<Change>,
    end: Option<Revision>,
}

impl FeedPage {
    pub(in crate::store) const fn new(limit: NonZeroUsize) -> Self {
        Self {
            limit,
            changes: Vec::new(),
            end: None,
        }
    }

    /// Returns the statement that selects the rows from a place on.
    pub(in crate::store) fn sql() -> String {
        format!("SELECT {COLUMNS} FROM $s.rows WHERE place >= $1 ORDER BY place")
    }

    /// Returns the first place of a page after a cursor, for [`sql`](Self::sql).
    pub(in crate::store) fn from(after: Cursor) -> i64 {
        first_after(after.revision)
    }

    /// Takes a row. Returns the revision that the page ends with, if the page ends before that row.
    pub(in crate::store) fn add(&mut self, change: Change) -> Option<Revision> {
        self.end = self.changes.last().and_then(|last| {
            let full = self.changes.len() >= self.limit.get();
            (full && last.revision != change.revision).then_some(last.revision)
        });
        if self.end.is_none() {
            self.changes.push(change);
        }
        self.end
    }

    /// Ends the page. `stored` is the tag that `commits` has for the last revision of the page.
    pub(in crate::store) fn end(
        self,
        head: &Head,
        stored: Option<crate::store::CommitTag>,
    ) -> Result<Changes, RowFault> {
        let mut upto = head.cursor();
        if let Some(last) = self.end {
            upto.revision = last;
            upto.tag = head.tag_at(last, stored).ok_or_else(|| {
                RowFault::corrupt(format!("commit {last} is missing, and rows of it are not"))
            })?;
        }
        Ok(Changes {
            changes: self.changes,
            upto,
            head: head.cursor(),
            server_time: head.server_time,
        })
    }
}

/// A page of a scan under construction: tenants, then owners, then keys.
pub(in crate::store) struct Scan {
    limit: NonZeroUsize,
    rows: Vec<Change>,
    statements: VecDeque<Sql>,
}

impl Scan {
    pub(in crate::store) fn new(after: Option<&RowKey>, limit: NonZeroUsize) -> Self {
        let mut statements = VecDeque::new();
        for kind in [TENANT, OWNER] {
            let (tenant, name) = match (kind, after) {
                (TENANT, Some(RowKey::Tenant(tenant))) => (tenant.as_str(), ""),
                (OWNER, None | Some(RowKey::Tenant(_))) | (TENANT, None) => ("", ""),
                (OWNER, Some(RowKey::Owner(tenant, owner))) => (tenant.as_str(), owner.as_str()),
                _ => continue,
            };
            let named = format!("kind = {kind} AND name IS NOT NULL");
            let mut sql = Sql::select(COLUMNS, "rows", &named);
            let (tenant, name) = (sql.bind(tenant), sql.bind(name));
            sql.text += &format!(" AND (tenant, name) > ({tenant}, {name}) ORDER BY tenant, name");
            statements.push_back(sql);
        }
        let last = match after {
            Some(RowKey::Key(id)) => id_bytes(*id).to_vec(),
            // The empty byte string sorts before every id.
            _ => Vec::new(),
        };
        // The unary plus keeps the database from using the index by name.
        let mut sql = Sql::select(COLUMNS, "rows", &format!("+kind = {KEY}"));
        sql.and("id >", last);
        sql.text += " ORDER BY id";
        statements.push_back(sql);
        Self {
            limit,
            rows: Vec::new(),
            statements,
        }
    }

    /// Returns the next statement, whose rows are to be [added](Self::add). `None` once the page has
    /// all its rows.
    pub(in crate::store) fn next(&mut self) -> Option<Sql> {
        let wanted = self.limit.get().saturating_add(1) - self.rows.len();
        let mut sql = self.statements.pop_front().filter(|_| wanted > 0)?;
        sql.limit(wanted);
        Some(sql)
    }

    pub(in crate::store) fn add(&mut self, change: Change) {
        self.rows.push(change);
    }

    /// Ends the page. `head` was read before the rows.
    pub(in crate::store) fn end(self, head: &Head) -> ScanPage {
        let Self {
            limit, mut rows, ..
        } = self;
        let more = rows.len() > limit.get();
        rows.truncate(limit.get());
        let next = rows.last().filter(|_| more).map(|change| change.row.key());
        ScanPage {
            head: head.cursor(),
            rows,
            next,
        }
    }
}
