//! Reads for decisions, followers, listings and copies. Each function reads within the caller's transaction.

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroUsize;

use rusqlite::{Connection, Params, params};

use super::fault::SqliteFault;
use super::rows::{dialect, each, each_of, one};
use super::{head, schema};
use crate::core::id::KeyId;
use crate::core::query::{AuditQuery, KeyQuery};
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::view::{LoadRequest, TenantView};
use crate::store::sql::{
    AUDIT_COLUMNS, AuditListing, COLUMNS, DIGEST_COLUMNS, FeedPage, KeyListing, LoadedRows, ORIGIN,
    OWNER, Scan, TENANT, TENANT_HEADS, TenantHead, audit_entries, change, entry, id_bytes, item,
    items_after, origin_of, read_digest,
};
use crate::store::transfer::{CopyPage, Item, Origin, Part};
use crate::store::{
    AuditPage, Change, Changes, ChangesError, Cursor, FoundKey, KeyPage, Locator, RowKey, ScanPage,
};

/// Loads the rows of a tenant that the request `select` names. Returns `None` if the request lists more than
/// `most` items, or if the tenant has more than `most` live keys.
pub(super) fn load(
    conn: &Connection,
    tenant: &TenantId,
    select: &LoadRequest,
    most: usize,
) -> Result<Option<TenantView>, SqliteFault> {
    let named = [
        select.keys.len(),
        select.owners.len(),
        select.commands.len(),
    ];
    if named.into_iter().any(|named| named > most) {
        return Ok(None);
    }
    let epoch = head::store(conn)?.epoch;
    let mut found = LoadedRows::new(head::tenant(conn, tenant)?);
    if found.head.is_none() {
        return Ok(Some(found.view(tenant, select, (epoch, None))));
    }
    for id in &select.keys {
        if let Some(change) = key_row(conn, *id)? {
            found.take_named(tenant, change);
        }
    }
    for (class, now) in &select.live {
        let live = format!(
            "SELECT {COLUMNS} FROM rows WHERE tenant = ?1 AND class = ?2 AND ends > ?3 LIMIT ?4"
        );
        let limit = i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1);
        let with = params![tenant.as_str(), class.as_str(), now.as_micros(), limit];
        let live = many(conn, &live, with)?;
        if live.len() > most {
            return Ok(None);
        }
        live.into_iter().for_each(|change| found.take_key(change));
    }
    if select.legacy {
        let legacy = format!("SELECT {COLUMNS} FROM rows WHERE tenant = ?1 AND legacy IS NOT NULL");
        let legacy = many(conn, &legacy, [tenant.as_str()])?;
        legacy.into_iter().for_each(|change| found.take_key(change));
    }
    let owners: HashSet<_> = found.owners(select).cloned().collect();
    for owner in owners {
        if let Some(change) = named_row(conn, OWNER, tenant, owner.as_str())? {
            found.take_owner(change)?;
        }
    }
    if let Some(change) = named_row(conn, TENANT, tenant, "")? {
        found.take_tenant(change)?;
    }
    for command in &select.commands {
        let sql = format!(
            "SELECT {AUDIT_COLUMNS} FROM audit WHERE command = ?1 AND tenant = ?2 \
             ORDER BY place LIMIT {}",
            LoadRequest::APPLIED_MAX
        );
        each(conn, &sql, [command.as_str(), tenant.as_str()], |row| {
            found.take_entry(entry(row)?, tenant)?;
            Ok(true)
        })?;
    }
    Ok(Some(found.view(tenant, select, (epoch, None))))
}

fn key_row(conn: &Connection, id: KeyId) -> Result<Option<Change>, SqliteFault> {
    let sql = format!("SELECT {COLUMNS} FROM rows WHERE id = ?1");
    one(conn, &sql, [id_bytes(id)], |row| Ok(change(row)?))
}

fn named_row(
    conn: &Connection,
    kind: i64,
    tenant: &TenantId,
    name: &str,
) -> Result<Option<Change>, SqliteFault> {
    let sql = format!("SELECT {COLUMNS} FROM rows WHERE kind = ?1 AND tenant = ?2 AND name = ?3");
    let with = params![kind, tenant.as_str(), name];
    one(conn, &sql, with, |row| Ok(change(row)?))
}

fn many(conn: &Connection, sql: &str, with: impl Params) -> Result<Vec<Change>, SqliteFault> {
    let mut changes = Vec::new();
    each(conn, sql, with, |row| {
        changes.push(change(row)?);
        Ok(true)
    })?;
    Ok(changes)
}

pub(super) fn find(conn: &Connection, locator: &Locator) -> Result<Option<FoundKey>, SqliteFault> {
    let head = head::read(conn)?.cursor();
    let id = match locator {
        Locator::Id(id) => Some(*id),
        Locator::Imported(digest) => holder(conn, digest)?,
    };
    let change = match id {
        Some(id) => key_row(conn, id)?,
        None => None,
    };
    Ok(change.map(|change| FoundKey { change, head }))
}

/// Returns the key that has or had this imported digest.
pub(super) fn holder(conn: &Connection, digest: &Digest) -> Result<Option<KeyId>, SqliteFault> {
    let sql = format!("SELECT {DIGEST_COLUMNS} FROM digests WHERE digest = ?1");
    one(conn, &sql, [digest.as_bytes()], |row| {
        Ok(read_digest(row)?.1)
    })
}

pub(super) fn cursor(conn: &Connection) -> Result<Cursor, SqliteFault> {
    Ok(head::read(conn)?.cursor())
}

pub(super) fn changes(
    conn: &Connection,
    after: Cursor,
    limit: NonZeroUsize,
) -> Result<Result<Changes, ChangesError>, SqliteFault> {
    let head = head::read(conn)?;
    if let Err(refused) = head.check_cursor(after, head::stored_tag(conn, after.revision)?) {
        return Ok(Err(refused));
    }
    let mut page = FeedPage::new(limit);
    let mut last = None;
    let sql = dialect(&FeedPage::sql());
    each(conn, &sql, [FeedPage::from(after)], |row| {
        last = page.add(change(row)?);
        Ok(last.is_none())
    })?;
    let stored = match last {
        Some(last) => head::stored_tag(conn, last)?,
        None => None,
    };
    Ok(Ok(page.end(&head, stored)?))
}

pub(super) fn scan(
    conn: &Connection,
    after: Option<&RowKey>,
    limit: NonZeroUsize,
) -> Result<ScanPage, SqliteFault> {
    let head = head::read(conn)?;
    let mut scan = Scan::new(after, limit);
    while let Some(sql) = scan.next() {
        each_of(conn, &sql, |row| {
            scan.add(change(row)?);
            Ok(true)
        })?;
    }
    Ok(scan.end(&head))
}

pub(super) fn list(conn: &Connection, query: &KeyQuery) -> Result<KeyPage, SqliteFault> {
    let mut listing = KeyListing::new(query);
    while let Some(sql) = listing.next() {
        each_of(conn, &sql, |row| Ok(!listing.add(change(row)?)))?;
    }
    Ok(listing.end())
}

pub(super) fn audit(conn: &Connection, query: &AuditQuery) -> Result<AuditPage, SqliteFault> {
    let mut listing = AuditListing::new(query);
    each_of(conn, &audit_entries(query), |row| {
        Ok(!listing.add(entry(row)?))
    })?;
    Ok(listing.page)
}

pub(super) fn tenants(conn: &Connection) -> Result<BTreeSet<TenantId>, SqliteFault> {
    let mut tenants = BTreeSet::new();
    each(conn, &dialect(TENANT_HEADS), [], |row| {
        tenants.insert(TenantHead::read(row)?.0);
        Ok(true)
    })?;
    Ok(tenants)
}

/// Reads the head, the floor and the item counts of the store, for a copy of the store.
pub(super) fn origin(conn: &Connection) -> Result<Origin, SqliteFault> {
    schema::check_own_version(conn)?;
    let head = head::read(conn)?;
    let origin = one(conn, &dialect(ORIGIN), [], |row| Ok(origin_of(row, &head)?))?;
    origin.ok_or(SqliteFault::Refused("nothing was counted"))
}

/// Reads one page of a part, with the head and the floor of the same snapshot.
pub(super) fn page(
    conn: &Connection,
    part: Part,
    after: Option<&Item>,
    limit: NonZeroUsize,
) -> Result<CopyPage, SqliteFault> {
    let head = head::read(conn)?;
    Ok(CopyPage {
        head: head.cursor(),
        floor: head.store.floor,
        items: items(conn, part, after, limit)?,
    })
}

/// Reads the first `limit` items of a part after the item `after`.
pub(super) fn items(
    conn: &Connection,
    part: Part,
    after: Option<&Item>,
    limit: NonZeroUsize,
) -> Result<Vec<Item>, SqliteFault> {
    let mut items = Vec::new();
    each_of(conn, &items_after(part, after, limit.get())?, |row| {
        items.push(item(part, row)?);
        Ok(true)
    })?;
    Ok(items)
}
