//! Default implementations of [`KeyStore`], page by page.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::task::Poll;

use super::{AuditQuery, KeyStore, Row, RowKey, ScanPage, StoreError, StoreErrorKind};
use crate::core::tenant::TenantId;

/// The callback of [`KeyStore::scan_all`]. It gets each page as soon as the page is read, while later pages
/// may be in flight.
pub type TakePage<'a> = &'a mut (dyn FnMut(ScanPage) -> Result<(), StoreError> + Send);

/// Reads the whole store with repeated calls of [`KeyStore::scan`].
///
/// This function is the default of [`KeyStore::scan_all`]. A wrapper that intercepts `scan` can also call it.
///
/// # Errors
///
/// The errors of the store, or of `take`.
pub async fn scan_by_pages<S: KeyStore + ?Sized>(
    store: &S,
    limit: NonZeroUsize,
    take: TakePage<'_>,
) -> Result<(), StoreError> {
    let mut last = None;
    let mut scan = Some(StartedFuture::Waiting(store.scan(None, limit)));
    while let Some(page) = scan.take() {
        let page = page.output().await?;
        if let Some(next) = &page.next {
            if Some(next) <= last.as_ref() {
                let kind = StoreErrorKind::Corrupt;
                return Err(StoreError::new(kind, "scanning rows that are out of order"));
            }
            last = Some(next.clone());
            // Polling the future starts the next read. So the store already reads the next page while `take`
            // handles this page.
            scan = Some(StartedFuture::start(store.scan(last.clone(), limit)).await);
        }
        take(page)?;
    }
    Ok(())
}

/// Returns every tenant that has audit entries or other rows. Reads the whole store.
///
/// This function is the default of [`KeyStore::tenants`]. In a damaged store, it finds tenants whose heads cannot be
/// read.
///
/// # Errors
///
/// The errors of the store.
pub async fn tenants_of_rows<S: KeyStore + ?Sized>(
    store: &S,
) -> Result<BTreeSet<TenantId>, StoreError> {
    let mut tenants = BTreeSet::new();
    let mut take = |page: ScanPage| {
        let rows = page.rows.into_iter();
        tenants.extend(rows.filter_map(|change| tenant_of(change.row)));
        Ok(())
    };
    scan_by_pages(store, PAGE, &mut take).await?;
    let mut query = AuditQuery {
        limit: PAGE,
        ..AuditQuery::all()
    };
    loop {
        let page = store.audit(&query).await?;
        tenants.extend(page.rows.into_iter().map(|row| row.entry.tenant));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(tenants),
        }
    }
}

/// 1000 rows per read, so that a large store takes few reads.
const PAGE: NonZeroUsize = NonZeroUsize::new(1000).expect("the page size is not zero");

fn tenant_of(row: Row) -> Option<TenantId> {
    match row {
        Row::Tenant(row) => Some(row.tenant),
        Row::Owner(row) => Some(row.tenant),
        Row::Key(record) => Some(record.facts.tenant),
        Row::Removed { tenant, .. } => Some(tenant),
        Row::Corrupt(RowKey::Tenant(tenant) | RowKey::Owner(tenant, _)) => Some(tenant),
        Row::Corrupt(RowKey::Key(_)) => None,
    }
}

/// A future that was polled once, so that its work has started. Keeps the output if the future was ready.
enum StartedFuture<F: Future> {
    Waiting(F),
    Ready(F::Output),
}

impl<F: Future + Unpin> StartedFuture<F> {
    async fn start(mut future: F) -> Self {
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut future).poll(cx))).await;
        match polled {
            Poll::Ready(output) => Self::Ready(output),
            Poll::Pending => Self::Waiting(future),
        }
    }

    async fn output(self) -> F::Output {
        match self {
            Self::Waiting(future) => future.await,
            Self::Ready(output) => output,
        }
    }
}
