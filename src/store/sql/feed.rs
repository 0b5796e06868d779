//! Builders for two kinds of pages: changes after a cursor, and scans of all rows.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use super::heads::Head;
use super::{COLUMNS, KEY, OWNER, RowFault, Sql, TENANT, first_after, id_bytes};
use crate::core::view::Revision;
use crate::store::{Change, Changes, Cursor, Epoch, RowKey, ScanPage};

/// Builds a page of changes. All changes of one revision are in the same page.
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

    /// Returns the statement that selects all rows whose place is `$1` or later, in order.
    pub(in crate::store) fn sql() -> String {
        format!("SELECT {COLUMNS} FROM $s.rows WHERE place >= $1 ORDER BY place")
    }

    /// Returns the parameter of [`sql`](Self::sql): the first place after a cursor.
    pub(in crate::store) fn from(after: Cursor) -> i64 {
        first_after(after.revision)
    }

    /// Adds a row, unless the page is already complete. In that case drops the row, and returns the last
    /// revision of the page.
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

    /// Builds the page. The argument `stored` is the tag that the table `commits` has for the page's last
    /// revision.
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

/// The tombstones that a compaction drops.
///
/// No index holds the tombstones alone, so a compaction reads every row to find them. It reads them in a snapshot,
/// before the transaction that drops them excludes other commits.
pub(in crate::store) struct Tombstones {
    epoch: Epoch,
    floor: Revision,
    pub(in crate::store) places: Vec<i64>,
}

impl Tombstones {
    /// Selects the places of all tombstones before the place `$1`.
    pub(in crate::store) const SQL: &str =
        "SELECT place FROM $s.rows WHERE kind = 3 AND place < $1";

    /// Starts with no tombstone. `head` is that of the snapshot.
    pub(in crate::store) fn upto(upto: Revision, head: &Head) -> Self {
        Self {
            epoch: head.store.epoch,
            floor: upto.min(head.last.revision).max(head.store.floor),
            places: Vec::new(),
        }
    }

    /// Returns the first place after these tombstones.
    pub(in crate::store) fn end(&self) -> i64 {
        first_after(self.floor)
    }

    /// Returns the floor of the store without these tombstones. `head` is that of the transaction that drops them.
    pub(in crate::store) fn floor(&self, head: &Head) -> Result<Revision, RowFault> {
        if head.store.epoch != self.epoch || head.last.revision < self.floor {
            return Err(RowFault::Refused(
                "the store was replaced while its tombstones were read; drop them again",
            ));
        }
        Ok(self.floor.max(head.store.floor))
    }
}

/// Builds a page of a scan, which lists tenants, then owners, then keys.
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
            // Starts at the first key, because the empty byte string sorts before every id.
            _ => Vec::new(),
        };
        // The unary plus keeps the planner from using the index `rows_by_name`.
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

    /// Returns the next statement to run; the caller must [add](Self::add) its rows. `None` once the page is
    /// complete.
    pub(in crate::store) fn next(&mut self) -> Option<Sql> {
        let wanted = self.limit.get().saturating_add(1) - self.rows.len();
        let mut sql = self.statements.pop_front().filter(|_| wanted > 0)?;
        sql.limit(wanted);
        Some(sql)
    }

    pub(in crate::store) fn add(&mut self, change: Change) {
        self.rows.push(change);
    }

    /// Builds the page. The caller must have read `head` before the rows.
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
