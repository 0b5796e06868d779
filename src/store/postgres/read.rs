//! Reads for followers, and listings. Each read uses one snapshot.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use futures_util::future::{try_join, try_join3};

use super::fault::PostgresFault;
use super::head::{self, stored_tag};
use super::rows::{SqlParam, params};
use super::session::Session;
use crate::core::id::KeyId;
use crate::core::query::{AuditQuery, KeyQuery};
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::store::sql::{
    AuditListing, COLUMNS, DIGEST_COLUMNS, FeedPage, KeyListing, Scan, TENANT_HEADS, TenantHead,
    audit_entries, change, entry, id_bytes, place_at, read_digest,
};
use crate::store::{
    AuditPage, Changes, ChangesError, Cursor, FoundKey, KeyPage, Locator, RowKey, ScanPage,
};

/// 512 rows per fetch of a listing. A listing may have to read more rows than it returns, because of its
/// filters. The number is an estimate.
const FETCHED: usize = 512;

/// 512 rows at most in one query of the feed. A page with more rows takes several queries. The number is an
/// estimate.
const QUERIED: usize = 512;

pub(super) async fn find(
    session: &Session,
    locator: &Locator,
) -> Result<Option<FoundKey>, PostgresFault> {
    let id = async {
        match locator {
            Locator::Id(id) => Ok(Some(*id)),
            Locator::Imported(digest) => holder(session, digest).await,
        }
    };
    let row = async {
        let Some(id) = id.await? else { return Ok(None) };
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE id = $1");
        let found = session.query(&sql, &[&&id_bytes(id)[..]]).await?;
        Ok::<_, PostgresFault>(found.first().map(change).transpose()?)
    };
    let (head, change) = try_join(head::read(session), row).await?;
    let head = head.cursor();
    Ok(change.map(|change| FoundKey { change, head }))
}

/// Returns the key that has or had this imported digest.
async fn holder(session: &Session, digest: &Digest) -> Result<Option<KeyId>, PostgresFault> {
    let sql = format!("SELECT {DIGEST_COLUMNS} FROM $s.digests WHERE digest = $1");
    let found = session.query(&sql, &[&&digest.as_bytes()[..]]).await?;
    let holder = found.first().map(read_digest).transpose()?;
    Ok(holder.map(|(_, key)| key))
}

pub(super) async fn changes(
    session: &Session,
    after: Cursor,
    limit: NonZeroUsize,
) -> Result<Result<Changes, ChangesError>, PostgresFault> {
    let sql = format!("{} LIMIT $2", FeedPage::sql());
    let some = limit.get().saturating_add(1).min(QUERIED);
    let most = i64::try_from(some).unwrap_or(i64::MAX);
    let with: [SqlParam<'_>; 2] = [&FeedPage::from(after), &most];
    // Query the rows together with the data that the cursor is checked against. This saves a round trip. If
    // the check fails, the follower must start over, and the rows are discarded.
    let (head, tag, mut found) = try_join3(
        head::read(session),
        stored_tag(session, after.revision),
        session.query(&sql, &with),
    )
    .await?;
    if let Err(refused) = head.check_cursor(after, tag) {
        return Ok(Err(refused));
    }
    let mut page = FeedPage::new(limit);
    let mut stored = None;
    'page: loop {
        for row in &found {
            if let Some(last) = page.add(change(row)?) {
                stored = stored_tag(session, last).await?;
                break 'page;
            }
        }
        let last = found.last().filter(|_| found.len() >= some);
        let Some(last) = last.map(place_at).transpose()? else {
            break;
        };
        found = session
            .query(&sql, &[&last.saturating_add(1), &most])
            .await?;
    }
    Ok(Ok(page.end(&head, stored)?))
}

pub(super) async fn scan(
    session: &Session,
    after: Option<&RowKey>,
    limit: NonZeroUsize,
) -> Result<ScanPage, PostgresFault> {
    let head = head::read(session).await?;
    let mut scan = Scan::new(after, limit);
    while let Some(sql) = scan.next() {
        for row in &session.query_of(&sql).await? {
            scan.add(change(row)?);
        }
    }
    Ok(scan.end(&head))
}

pub(super) async fn list(session: &Session, query: &KeyQuery) -> Result<KeyPage, PostgresFault> {
    let mut listing = KeyListing::new(query);
    while let Some(sql) = listing.next() {
        let look = |row: &tokio_postgres::Row| Ok(!listing.add(change(row)?));
        session
            .each(&sql.text, &params(&sql.with), FETCHED, look)
            .await?;
    }
    Ok(listing.end())
}

pub(super) async fn tenants(session: &Session) -> Result<BTreeSet<TenantId>, PostgresFault> {
    let mut tenants = BTreeSet::new();
    let look = |row: &tokio_postgres::Row| {
        tenants.insert(TenantHead::read(row)?.0);
        Ok(true)
    };
    session.each(TENANT_HEADS, &[], FETCHED, look).await?;
    Ok(tenants)
}

pub(super) async fn audit(
    session: &Session,
    query: &AuditQuery,
) -> Result<AuditPage, PostgresFault> {
    let sql = audit_entries(query);
    let mut listing = AuditListing::new(query);
    let look = |row: &tokio_postgres::Row| Ok(!listing.add(entry(row)?));
    session
        .each(&sql.text, &params(&sql.with), FETCHED, look)
        .await?;
    Ok(listing.page)
}
