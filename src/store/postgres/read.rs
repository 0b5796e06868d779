//! What a follower and a listing read, each within one snapshot.

use std::num::NonZeroUsize;

use futures_util::future::{try_join, try_join3};

use super::fault::Fault;
use super::head::{HEAD, Head, stored_tag};
use super::link::{Bound, Listing, Tx};
use super::rows;
use super::schema::Schema;
use crate::core::id::KeyId;
use crate::core::query::{AuditQuery, KeyQuery};
use crate::core::secret::Digest;
use crate::store::rows::{
    AuditListing, COLUMNS, KEY, KeyListing, Marks, OWNER, TENANT, audit_entries, digest_holder,
    first_after, id_bytes, key_candidates, page_end,
};
use crate::store::{
    AuditPage, Change, Changes, ChangesError, Cursor, KeyPage, Locator, RowKey, ScanPage, Versioned,
};

/// How many rows come at a time where it is not known how many are needed. A judgement.
const SOME: i32 = 512;

/// How many changes come at a time, at most. A judgement.
const PAGE: usize = 512;

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
        server_time: Some(head.server_time),
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
