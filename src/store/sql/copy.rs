//! The mapping from tables to the parts of a copy, and from rows to items.

use super::cells::{Cells, is_damaged};
use super::{
    AUDIT_COLUMNS, COLUMNS, CommitRow, DIGEST_COLUMNS, DOCUMENT_COLUMNS, Head, PLACE_BITS,
    RowFault, Sql, TENANT_COLUMNS, TenantHead, change, entry, id_bytes, id_of, lease, place,
    read_digest, read_document, signed,
};
use crate::core::query::AuditPosition;
use crate::core::view::Revision;
use crate::store::Row;
use crate::store::transfer::{Counts, Item, Origin, Part};

/// A table, its columns, and the first column, which orders its rows.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct StoredTable {
    pub(in crate::store) name: &'static str,
    pub(in crate::store) columns: &'static str,
    pub(in crate::store) order: &'static str,
}

/// Returns the table that holds a part of a store.
pub(in crate::store) const fn table(part: Part) -> StoredTable {
    let (name, columns, order) = match part {
        Part::Commits => ("commits", "revision, tag, seal", "revision"),
        Part::Tenants => ("tenants", TENANT_COLUMNS, "tenant"),
        Part::Digests => ("digests", DIGEST_COLUMNS, "digest"),
        Part::Gone => ("gone", "id", "id"),
        Part::Audit => ("audit", AUDIT_COLUMNS, "place"),
        Part::Rows => ("rows", COLUMNS, "place"),
        Part::Documents => ("documents", DOCUMENT_COLUMNS, "name"),
    };
    StoredTable {
        name,
        columns,
        order,
    }
}

/// Selects the number of items of each part, in the order of [`Part::ALL`], then the longest lease of any node,
/// and the number of writes of documents.
pub(in crate::store) const ORIGIN: &str = "SELECT (SELECT count(*) FROM $s.commits), \
     (SELECT count(*) FROM $s.tenants), (SELECT count(*) FROM $s.digests), \
     (SELECT count(*) FROM $s.gone), (SELECT count(*) FROM $s.audit), \
     (SELECT count(*) FROM $s.rows), (SELECT count(*) FROM $s.documents), \
     (SELECT coalesce(max(lease), 0) FROM $s.nodes), \
     (SELECT CAST(coalesce(sum(version), 0) AS bigint) FROM $s.documents)";

/// Decodes the item counts from a row of [`ORIGIN`].
pub(in crate::store) fn counts_of(row: &impl Cells) -> Result<Counts, RowFault> {
    let mut counts = Counts::default();
    for (column, part) in Part::ALL.into_iter().enumerate() {
        counts = counts.with(part, row.number(column, "a count")?.unsigned_abs());
    }
    Ok(counts)
}

/// Builds the [`Origin`] of a copy from a row of [`ORIGIN`] and the head of the store.
pub(in crate::store) fn origin_of(row: &impl Cells, head: &Head) -> Result<Origin, RowFault> {
    Ok(Origin {
        head: head.cursor(),
        floor: head.store.floor,
        restored_from: head.store.restored_from,
        lease: lease(row, Part::ALL.len())?,
        document_writes: row.number(Part::ALL.len() + 1, "a count")?.unsigned_abs(),
        counts: counts_of(row)?,
    })
}

/// Returns a statement that selects the first `limit` items of a part after the item `after`.
pub(in crate::store) fn items_after(
    part: Part,
    after: Option<&Item>,
    limit: usize,
) -> Result<Sql, RowFault> {
    let StoredTable {
        name,
        columns,
        order,
    } = table(part);
    let mut sql = Sql::select(columns, name, "1 = 1");
    let beyond = format!("{order} >");
    if let Some(after) = after {
        if after.part() != part {
            return Err(RowFault::Refused(
                "a page starts after an item of its own part",
            ));
        }
        match after {
            Item::Commit { revision, .. } => sql.and(&beyond, signed(revision.0)?),
            Item::Tenant { tenant, .. } => sql.and(&beyond, tenant.as_str()),
            Item::Digest { digest, .. } => sql.and(&beyond, digest.as_bytes().to_vec()),
            Item::Gone { key } => sql.and(&beyond, id_bytes(*key).to_vec()),
            Item::Audit { row, number } => sql.and(&beyond, place_of(row.revision, *number)?),
            Item::Row { change, number } => sql.and(&beyond, place_of(change.revision, *number)?),
            Item::Document(document) => sql.and(&beyond, document.name.as_str()),
        }
    }
    sql.text += &format!(" ORDER BY {order}");
    sql.limit(limit);
    Ok(sql)
}

pub(in crate::store) fn place_of(revision: Revision, number: u32) -> Result<i64, RowFault> {
    place(revision, usize::try_from(number).unwrap_or(usize::MAX))
}

fn number_of(place: i64) -> u32 {
    u32::try_from(place.unsigned_abs() & ((1 << PLACE_BITS) - 1)).unwrap_or(u32::MAX)
}

/// Decodes a row of a part's table. Fails for a damaged row, so that no damage is copied.
pub(in crate::store) fn item(part: Part, row: &impl Cells) -> Result<Item, RowFault> {
    Ok(match part {
        Part::Commits => {
            let CommitRow { revision, tag } = CommitRow::read(row, 0)?;
            Item::Commit { revision, tag }
        }
        Part::Tenants => {
            let (tenant, head) = TenantHead::read(row)?;
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
        Part::Digests => {
            let (digest, key) = read_digest(row)?;
            Item::Digest { digest, key }
        }
        Part::Gone => {
            let what = "the id of a removed key";
            let key = id_of(row.bytes(0, what)?).ok_or_else(|| is_damaged(what))?;
            Item::Gone { key }
        }
        Part::Audit => match entry(row)? {
            Ok(found) => Item::Audit {
                row: found,
                number: number_of(row.number(0, "a place")?),
            },
            Err(AuditPosition { revision, sequence }) => {
                let what = format!("audit entry {sequence} of revision {revision}");
                return Err(is_damaged(&what));
            }
        },
        Part::Rows => {
            let change = change(row)?;
            if let Row::Corrupt(key) = &change.row {
                return Err(super::load::damaged(key));
            }
            let number = number_of(row.number(0, "a place")?);
            Item::Row { change, number }
        }
        Part::Documents => Item::Document(read_document(row)?),
    })
}
