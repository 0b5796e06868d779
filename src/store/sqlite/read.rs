//! What a decision and a follower read, each within one snapshot.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;

use rusqlite::{Connection, Params, params};

use super::fault::Fault;
use super::head::{self, Head};
use super::write::holder;
use super::{rows, schema};
use crate::core::audit::AuditEntry;
use crate::core::id::KeyId;
use crate::core::owner::OwnerRecord;
use crate::core::tenant::TenantId;
use crate::core::text::{CommandId, PrincipalId};
use crate::core::view::{Revision, Select, TenantView};
use crate::store::rows::{
    AUDIT_COLUMNS, COLUMNS, KEY, Keys, OWNER, TENANT, damaged, first_after, id_bytes, page_end,
};
use crate::store::{
    Change, Changes, ChangesError, Cursor, Epoch, Locator, Row, RowKey, ScanPage, Versioned,
};

/// The part of a tenant that `select` names; `None` if there are more than `most` keys in it.
pub(super) fn load(
    conn: &Connection,
    tenant: &TenantId,
    select: &Select,
    most: usize,
) -> Result<Option<TenantView>, Fault> {
    let named = [
        &select.keys.len(),
        &select.owners.len(),
        &select.commands.len(),
    ];
    if named.into_iter().any(|named| *named > most) {
        return Ok(None);
    }
    let epoch = Epoch(schema::store(conn)?.epoch);
    let Some(head) = head::tenant(conn, tenant)? else {
        return Ok(Some(TenantView {
            epoch,
            ..TenantView::default()
        }));
    };
    let mut keys = Keys::default();
    for id in &select.keys {
        let own = |change: &Change| match &change.row {
            Row::Key(record) => record.tenant == *tenant,
            row => matches!(row, Row::Corrupt(_)),
        };
        keys.take(key_row(conn, *id)?.filter(own));
    }
    if let Some(now) = select.live_at {
        let live = format!("SELECT {COLUMNS} FROM rows WHERE tenant = ?1 AND ends > ?2 LIMIT ?3");
        let limit = i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1);
        let with = params![tenant.as_str(), now.as_micros(), limit];
        let found = many(conn, &live, with)?;
        if found.len() > most {
            return Ok(None);
        }
        keys.take(found);
    }
    if select.legacy {
        let legacy = format!("SELECT {COLUMNS} FROM rows WHERE tenant = ?1 AND legacy IS NOT NULL");
        keys.take(many(conn, &legacy, [tenant.as_str()])?);
    }
    let owners = owners(conn, tenant, select, &keys)?;
    let mut trail = Vec::new();
    for command in &select.commands {
        trail.extend(command_entries(conn, tenant, command)?);
    }
    let key = RowKey::Tenant(tenant.clone());
    let (revisions, own) = match named_row(conn, TENANT, tenant, "")? {
        None => (BTreeMap::new(), None),
        Some(Change {
            revision,
            row: Row::Tenant(row),
        }) => (BTreeMap::from([(key, revision)]), Some(row)),
        Some(_) => return Err(damaged(&key).into()),
    };
    let heads = TenantView {
        epoch,
        revision: head.revision,
        decided_at: Some(head.decided_at),
        audit_head: head.audit,
        tenant: own,
        revisions,
        corrupt: keys.corrupt,
        ..TenantView::default()
    };
    let owner = |owner: &PrincipalId| owners.get(owner).map(|(at, row)| (*at, row));
    let records = keys.records.values().map(|(at, record)| (*at, record));
    Ok(Some(heads.with_selected(select, records, owner, &trail)))
}

fn owners(
    conn: &Connection,
    tenant: &TenantId,
    select: &Select,
    keys: &Keys,
) -> Result<HashMap<PrincipalId, (Revision, OwnerRecord)>, Fault> {
    let of_keys = keys.records.values();
    let of_keys = of_keys.filter_map(|(_, record)| record.owner.principal());
    let mut found = HashMap::new();
    for owner in select.owners.iter().chain(of_keys) {
        if found.contains_key(owner) {
            continue;
        }
        match named_row(conn, OWNER, tenant, owner.as_str())? {
            None => {}
            Some(Change {
                revision,
                row: Row::Owner(row),
            }) => {
                found.insert(owner.clone(), (revision, row));
            }
            Some(_) => {
                return Err(damaged(&RowKey::Owner(tenant.clone(), owner.clone())).into());
            }
        }
    }
    Ok(found)
}

fn command_entries(
    conn: &Connection,
    tenant: &TenantId,
    command: &CommandId,
) -> Result<Vec<AuditEntry>, Fault> {
    let sql = format!(
        "SELECT {AUDIT_COLUMNS} FROM audit WHERE command = ?1 AND tenant = ?2 \
         ORDER BY place LIMIT {}",
        Select::APPLIED_MAX
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = statement.query([command.as_str(), tenant.as_str()])?;
    let mut entries = Vec::new();
    while let Some(row) = found.next()? {
        match rows::entry(row)? {
            Ok(row) => entries.push(row.entry),
            Err(place) => {
                let sequence = place.sequence;
                let what = format!("audit entry {sequence} of tenant {tenant} is damaged");
                return Err(Fault::corrupt(what));
            }
        }
    }
    Ok(entries)
}

fn key_row(conn: &Connection, id: KeyId) -> Result<Option<Change>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM rows WHERE id = ?1");
    Ok(many(conn, &sql, [id_bytes(id)])?.pop())
}

fn named_row(
    conn: &Connection,
    kind: i64,
    tenant: &TenantId,
    name: &str,
) -> Result<Option<Change>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM rows WHERE kind = ?1 AND tenant = ?2 AND name = ?3");
    Ok(many(conn, &sql, params![kind, tenant.as_str(), name])?.pop())
}

fn many(conn: &Connection, sql: &str, with: impl Params) -> Result<Vec<Change>, Fault> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut found = statement.query(with)?;
    let mut changes = Vec::new();
    while let Some(row) = found.next()? {
        changes.push(rows::change(row)?);
    }
    Ok(changes)
}

pub(super) fn find(conn: &Connection, locator: &Locator) -> Result<Option<Versioned>, Fault> {
    let head = Head::read(conn)?.cursor;
    let id = match locator {
        Locator::Id(id) => Some(*id),
        Locator::Imported(digest) => holder(conn, digest)?,
    };
    let change = match id {
        Some(id) => key_row(conn, id)?,
        None => None,
    };
    Ok(change.map(|change| Versioned { change, head }))
}

pub(super) fn cursor(conn: &Connection) -> Result<Cursor, Fault> {
    Ok(Head::read(conn)?.cursor)
}

pub(super) fn changes(
    conn: &Connection,
    after: Cursor,
    limit: NonZeroUsize,
) -> Result<Result<Changes, ChangesError>, Fault> {
    let head = Head::read(conn)?;
    let same_history = after.epoch == head.cursor.epoch
        && after.revision <= head.cursor.revision
        && after.revision >= head.floor
        && head.tag_at(conn, after.revision)? == Some(after.tag);
    if !same_history {
        return Ok(Err(ChangesError::Compacted));
    }
    let mut changes: Vec<Change> = Vec::new();
    let mut upto = head.cursor;
    let sql = format!("SELECT {COLUMNS} FROM rows WHERE place >= ?1 ORDER BY place");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = statement.query([first_after(after.revision)])?;
    while let Some(row) = found.next()? {
        let change = rows::change(row)?;
        if let Some(last) = page_end(&changes, limit, &change) {
            upto.revision = last;
            upto.tag = head.tag_at(conn, last)?.ok_or_else(|| {
                Fault::corrupt(format!("commit {last} is missing, of which rows stand"))
            })?;
            break;
        }
        changes.push(change);
    }
    Ok(Ok(Changes {
        changes,
        upto,
        head: head.cursor,
        server_time: None,
    }))
}

pub(super) fn scan(
    conn: &Connection,
    after: Option<&RowKey>,
    limit: NonZeroUsize,
) -> Result<ScanPage, Fault> {
    let head = Head::read(conn)?;
    let wanted = limit.get().saturating_add(1);
    let mut page = Vec::new();
    let most = |page: &Vec<Change>| i64::try_from(wanted - page.len()).unwrap_or(i64::MAX);
    for kind in [TENANT, OWNER] {
        let (tenant, name) = match (kind, after) {
            (TENANT, Some(RowKey::Tenant(tenant))) => (tenant.as_str(), ""),
            (OWNER, None | Some(RowKey::Tenant(_))) | (TENANT, None) => ("", ""),
            (OWNER, Some(RowKey::Owner(tenant, owner))) => (tenant.as_str(), owner.as_str()),
            _ => continue,
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM rows \
             WHERE kind = ?1 AND (tenant, name) > (?2, ?3) AND name IS NOT NULL \
             ORDER BY tenant, name LIMIT ?4"
        );
        let with = params![kind, tenant, name, most(&page)];
        page.extend(many(conn, &sql, with)?);
    }
    let last = match after {
        Some(RowKey::Key(id)) => id_bytes(*id).to_vec(),
        // The empty blob comes before every id.
        _ => Vec::new(),
    };
    let sql =
        format!("SELECT {COLUMNS} FROM rows WHERE id > ?1 AND +kind = {KEY} ORDER BY id LIMIT ?2");
    page.extend(many(conn, &sql, params![last, most(&page)])?);
    let more = page.len() > limit.get();
    page.truncate(limit.get());
    let next = page.last().filter(|_| more).map(|change| change.row.key());
    Ok(ScanPage {
        head: head.cursor,
        rows: page,
        next,
    })
}
