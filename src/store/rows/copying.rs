//! Rows on their way from one store to another.

use super::listing::Sql;
use super::{
    AUDIT_COLUMNS, COLUMNS, Marks, PLACE_BITS, RowFault, TenantHead, damaged, id_bytes, place,
    signed,
};
use crate::core::query::{AuditPosition, AuditRow};
use crate::core::tenant::TenantId;
use crate::core::view::Revision;
use crate::store::transfer::{Item, Part};
use crate::store::{Change, Row};

/// What is added to the version of tables into which another store is being copied, so that no build
/// takes them for a store: those that do not know this take it for a newer version.
pub(in crate::store) const COPYING: i32 = 1 << 30;

/// Whether the version of tables says that a copy is under way.
pub(in crate::store) const fn is_copy(version: i32) -> bool {
    version >= COPYING
}

/// Where items of a part stand: the table, its columns, and the one that orders them.
pub(in crate::store) const fn table(part: Part) -> (&'static str, &'static str, &'static str) {
    match part {
        Part::Commits => ("commits", "revision, tag, newest, seal", "revision"),
        Part::Tenants => (
            "tenants",
            "tenant, revision, decided_at, sequence, hash, seal",
            "tenant",
        ),
        Part::Digests => ("digests", "digest, id, seal", "digest"),
        Part::Gone => ("gone", "id", "id"),
        Part::Audit => ("audit", AUDIT_COLUMNS, "place"),
        Part::Rows => ("rows", COLUMNS, "place"),
    }
}

/// The first items of a part, after one of them.
pub(in crate::store) fn items_after<'a>(
    part: Part,
    after: Option<&Item>,
    limit: usize,
    marks: Marks<'a>,
) -> Result<Sql<'a>, RowFault> {
    let (table, columns, order) = table(part);
    let mut sql = Sql::new(marks, columns, table);
    sql.text += "1 = 1";
    let beyond = format!("{order} >");
    if let Some(after) = after {
        if after.part() != part {
            return Err(RowFault::Refused(
                "a page goes on after an item of its own part",
            ));
        }
        match after {
            Item::Commit { revision, .. } => sql.and(&beyond, signed(revision.0)?),
            Item::Tenant { tenant, .. } => sql.and(&beyond, tenant.as_str().to_owned()),
            Item::Digest { digest, .. } => sql.and(&beyond, digest.as_bytes().to_vec()),
            Item::Gone { key } => sql.and(&beyond, id_bytes(*key).to_vec()),
            Item::Audit { row, number } => sql.and(&beyond, place_of(row.revision, *number)?),
            Item::Row { change, number } => sql.and(&beyond, place_of(change.revision, *number)?),
        }
    }
    sql.text += &format!(" ORDER BY {order} LIMIT {limit}");
    Ok(sql)
}

/// The last item of a part.
pub(in crate::store) fn last_item<'a>(part: Part, marks: Marks<'a>) -> Sql<'a> {
    let (table, columns, order) = table(part);
    let mut sql = Sql::new(marks, columns, table);
    sql.text += &format!("1 = 1 ORDER BY {order} DESC LIMIT 1");
    sql
}

pub(in crate::store) fn place_of(revision: Revision, number: u32) -> Result<i64, RowFault> {
    place(revision, usize::try_from(number).unwrap_or(usize::MAX))
}

fn number_of(place: i64) -> u32 {
    u32::try_from(place.unsigned_abs() & ((1 << PLACE_BITS) - 1)).unwrap_or(u32::MAX)
}

/// The row that stands at `place`, unless it is damaged: nobody copies damage.
pub(in crate::store) fn row_item(place: i64, change: Change) -> Result<Item, RowFault> {
    if let Row::Corrupt(row) = &change.row {
        return Err(damaged(row));
    }
    let number = number_of(place);
    Ok(Item::Row { change, number })
}

/// The entry that stands at `place`, unless it is damaged.
pub(in crate::store) fn audit_item(
    place: i64,
    entry: Result<AuditRow, AuditPosition>,
) -> Result<Item, RowFault> {
    let number = number_of(place);
    match entry {
        Ok(row) => Ok(Item::Audit { row, number }),
        Err(AuditPosition { revision, sequence }) => Err(RowFault::corrupt(format!(
            "audit entry {sequence} of revision {revision} is damaged"
        ))),
    }
}

pub(in crate::store) fn tenant_item(tenant: TenantId, head: TenantHead) -> Item {
    let TenantHead {
        revision,
        decided_at,
        audit,
    } = head;
    Item::Tenant {
        tenant,
        revision,
        decided_at,
        audit,
    }
}
