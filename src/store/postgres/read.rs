//! What a decision and a follower read, each within one snapshot.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use futures_util::future::{try_join, try_join3, try_join5};
use tokio_postgres::Row as Columns;

use super::fault::Fault;
use super::head::{self, HEAD, Head, TENANTS, stored_tag};
use super::link::{Bound, Listing, Tx};
use super::rows;
use super::schema::Schema;
use crate::core::id::KeyId;
use crate::core::query::{AuditQuery, KeyQuery};
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::time::Timestamp;
use crate::core::view::{Select, TenantView};
use crate::store::rows::{
    AUDIT_COLUMNS, AuditListing, COLUMNS, KEY, KeyListing, Keys, Marks, OWNER, TENANT,
    audit_entries, damaged, digest_holder, first_after, id_bytes, key_candidates, page_end,
};
use crate::store::{
    AuditPage, Change, Changes, ChangesError, Cursor, KeyPage, Locator, Row, RowKey, ScanPage,
    Versioned,
};

/// How many rows come at a time where it is not known how many are needed. A judgement.
const SOME: i32 = 512;

/// How many changes come at a time, at most. A judgement.
const PAGE: usize = 512;

pub(super) async fn load(
    tx: &Tx<'_>,
    tenant: &TenantId,
    select: &Select,
) -> Result<TenantView, Fault> {
    let name = tenant.as_str();
    let named = [name];
    let ids: Vec<[u8; 16]> = select.keys.iter().map(|id| id_bytes(*id)).collect();
    let ids: Vec<&[u8]> = ids.iter().map(|id| &id[..]).collect();
    let live_at = select.live_at.map(Timestamp::as_micros);
    let commands: Vec<&str> = select.commands.iter().map(|id| id.as_str()).collect();
    let own = named_rows(tx, TENANT, name, vec![""]);
    let by_id = async {
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE id = ANY($1)");
        unless(ids.is_empty(), tx, &sql, &[&ids]).await
    };
    let live = async {
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE tenant = $1 AND ends > $2");
        unless(live_at.is_none(), tx, &sql, &[&name, &live_at]).await
    };
    let legacy = async {
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE tenant = $1 AND legacy IS NOT NULL");
        unless(!select.legacy, tx, &sql, &[&name]).await
    };
    let trail = async {
        let mut found = Vec::new();
        for command in &commands {
            let sql = format!(
                "SELECT {AUDIT_COLUMNS} FROM $s.audit WHERE command = $1 AND tenant = $2 \
                 ORDER BY place LIMIT {}",
                Select::APPLIED_MAX
            );
            found.extend(tx.query(&sql, &[command, &name]).await?);
        }
        Ok(found)
    };
    let heads: [Bound<'_>; 1] = [&&named[..]];
    let head = tx.query(TENANTS, &heads);
    let (head, (own, by_id, live, legacy, trail)) =
        try_join(head, try_join5(own, by_id, live, legacy, trail)).await?;
    let Some(head) = head.first() else {
        return Ok(TenantView::default());
    };
    let (_, head) = head::tenant(head)?;
    let mut keys = Keys::default();
    let own_key = |change: &Change| match &change.row {
        Row::Key(record) => record.tenant == *tenant,
        row => matches!(row, Row::Corrupt(_)),
    };
    keys.take(rows::changes(&by_id)?.into_iter().filter(own_key));
    keys.take(rows::changes(&live)?);
    keys.take(rows::changes(&legacy)?);
    let own = match own.into_iter().next() {
        None => None,
        Some(Row::Tenant(row)) => Some(row),
        Some(_) => return Err(damaged(&RowKey::Tenant(tenant.clone())).into()),
    };
    let owners = owners(tx, tenant, select, &keys).await?;
    let mut entries = Vec::new();
    for row in &trail {
        let entry = rows::entry(row)?.map_err(|place| {
            let sequence = place.sequence;
            Fault::corrupt(format!(
                "audit entry {sequence} of tenant {tenant} is damaged"
            ))
        })?;
        entries.push(entry.entry);
    }
    let view = TenantView {
        revision: head.revision,
        decided_at: Some(head.decided_at),
        audit_head: head.audit,
        tenant: own,
        corrupt: keys.corrupt,
        ..TenantView::default()
    };
    let owner = |owner: &PrincipalId| owners.get(owner);
    Ok(view.with_selected(select, keys.records.values(), owner, &entries))
}

/// Asks, unless there is nothing to ask for.
async fn unless(
    nothing: bool,
    tx: &Tx<'_>,
    sql: &str,
    with: &[Bound<'_>],
) -> Result<Vec<Columns>, Fault> {
    match nothing {
        true => Ok(Vec::new()),
        false => tx.query(sql, with).await,
    }
}

async fn named_rows(
    tx: &Tx<'_>,
    kind: i64,
    tenant: &str,
    names: Vec<&str>,
) -> Result<Vec<Row>, Fault> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM $s.rows WHERE kind = {kind} AND tenant = $1 AND name = ANY($2)"
    );
    let found = rows::changes(&tx.query(&sql, &[&tenant, &names]).await?)?;
    Ok(found.into_iter().map(|change| change.row).collect())
}

async fn owners(
    tx: &Tx<'_>,
    tenant: &TenantId,
    select: &Select,
    keys: &Keys,
) -> Result<HashMap<PrincipalId, crate::core::owner::OwnerRecord>, Fault> {
    let of_keys = keys.records.values();
    let of_keys = of_keys.filter_map(|record| record.owner.principal());
    let mut names: Vec<&str> = (select.owners.iter().chain(of_keys))
        .map(PrincipalId::as_str)
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut found = HashMap::new();
    for row in named_rows(tx, OWNER, tenant.as_str(), names).await? {
        match row {
            Row::Owner(row) => {
                found.insert(row.owner.clone(), row);
            }
            row => return Err(damaged(&row.key()).into()),
        }
    }
    Ok(found)
}

pub(super) async fn find(tx: &Tx<'_>, locator: &Locator) -> Result<Option<Versioned>, Fault> {
    let id = async {
        match locator {
            Locator::Id(id) => Ok(Some(*id)),
            Locator::Imported(digest) => holder(tx, digest).await,
        }
    };
    let row = async {
        let Some(id) = id.await? else { return Ok(None) };
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE id = $1");
        let found = tx.query(&sql, &[&&id_bytes(id)[..]]).await?;
        Ok::<_, Fault>(rows::changes(&found)?.pop())
    };
    let (head, change) = try_join(Head::read(tx), row).await?;
    let head = head.cursor;
    Ok(change.map(|change| Versioned { change, head }))
}

/// The key that has this imported digest, or had it.
async fn holder(tx: &Tx<'_>, digest: &Digest) -> Result<Option<KeyId>, Fault> {
    let sql = "SELECT id, seal FROM $s.digests WHERE digest = $1";
    let found = tx.query(sql, &[&&digest.as_bytes()[..]]).await?;
    let Some(row) = found.first() else {
        return Ok(None);
    };
    let holder = digest_holder(digest, row.try_get(0)?, row.try_get(1)?)?;
    Ok(Some(holder))
}

pub(super) async fn changes(
    tx: &Tx<'_>,
    after: Cursor,
    limit: NonZeroUsize,
) -> Result<Result<Changes, ChangesError>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE place >= $1 ORDER BY place LIMIT $2");
    let page = limit.get().saturating_add(1).min(PAGE);
    let some = i64::try_from(page).unwrap_or(i64::MAX);
    let from = first_after(after.revision);
    let with: [Bound<'_>; 2] = [&from, &some];
    // All at once: the rows are of no use only where the follower has to start over.
    let (head, tag, mut found) = try_join3(
        Head::read(tx),
        stored_tag(tx, after.revision),
        tx.query(&sql, &with),
    )
    .await?;
    let same_history = after.epoch == head.cursor.epoch
        && after.revision <= head.cursor.revision
        && after.revision >= head.floor
        && head.tag_at(after.revision, tag) == Some(after.tag);
    if !same_history {
        return Ok(Err(ChangesError::Compacted));
    }
    let mut changes: Vec<Change> = Vec::new();
    let mut upto = head.cursor;
    'page: loop {
        for row in &found {
            let change = rows::change(row)?;
            if let Some(last) = page_end(&changes, limit, &change) {
                let tag = stored_tag(tx, last).await?;
                upto.revision = last;
                upto.tag = head.tag_at(last, tag).ok_or_else(|| {
                    Fault::corrupt(format!("commit {last} is missing, of which rows stand"))
                })?;
                break 'page;
            }
            changes.push(change);
        }
        let last = found
            .last()
            .filter(|_| found.len() >= page)
            .map(rows::place);
        let Some(last) = last.transpose()? else { break };
        found = tx.query(&sql, &[&last.saturating_add(1), &some]).await?;
    }
    Ok(Ok(Changes {
        changes,
        upto,
        head: head.cursor,
        newest: head.newest,
    }))
}

pub(super) async fn scan(
    tx: &Tx<'_>,
    after: Option<&RowKey>,
    limit: NonZeroUsize,
) -> Result<ScanPage, Fault> {
    let head = Head::of(&tx.query(HEAD, &[]).await?)?;
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
            "SELECT {COLUMNS} FROM $s.rows \
             WHERE kind = {kind} AND (tenant, name) > ($1, $2) AND name IS NOT NULL \
             ORDER BY tenant, name LIMIT $3"
        );
        let found = tx.query(&sql, &[&tenant, &name, &most(&page)]).await?;
        page.extend(rows::changes(&found)?);
    }
    let last = match after {
        Some(RowKey::Key(id)) => id_bytes(*id).to_vec(),
        // No bytes come before every id.
        _ => Vec::new(),
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM $s.rows WHERE id > $1 AND kind = {KEY} ORDER BY id LIMIT $2"
    );
    let found = tx.query(&sql, &[&last, &most(&page)]).await?;
    page.extend(rows::changes(&found)?);
    let more = page.len() > limit.get();
    page.truncate(limit.get());
    let next = page.last().filter(|_| more).map(|change| change.row.key());
    Ok(ScanPage {
        head: head.cursor,
        newest: head.newest,
        rows: page,
        next,
    })
}

pub(super) fn marks(schema: &Schema) -> Marks<'_> {
    Marks {
        bound: '$',
        schema: schema.prefix(),
    }
}

pub(super) async fn list(tx: &Listing<'_>, query: &KeyQuery) -> Result<KeyPage, Fault> {
    let (sql, ordered) = key_candidates(query, marks(tx.schema()));
    let mut listing = KeyListing::new(query, ordered);
    tx.each(&sql.text, &rows::bound(&sql.with), SOME, |row| {
        Ok(listing.add(rows::change(row)?))
    })
    .await?;
    Ok(listing.end())
}

pub(super) async fn audit(tx: &Listing<'_>, query: &AuditQuery) -> Result<AuditPage, Fault> {
    let sql = audit_entries(query, marks(tx.schema()));
    let mut listing = AuditListing::new(query);
    tx.each(&sql.text, &rows::bound(&sql.with), SOME, |row| {
        Ok(listing.add(rows::entry(row)?))
    })
    .await?;
    Ok(listing.page)
}
