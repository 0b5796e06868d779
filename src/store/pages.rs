//! Reading a whole store page by page.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::task::Poll;

use super::{KeyStore, ScanPage, StoreError, StoreErrorKind};

/// The callback that takes the pages of [`KeyStore::scan_all`], each as soon as it is read. A few later
/// pages may be in flight at that time.
pub type TakePage<'a> = &'a mut (dyn FnMut(ScanPage) -> Result<(), StoreError> + Send);

/// Reads the whole store by calls of [`KeyStore::scan`]. This function is the default of
/// [`KeyStore::scan_all`]. A store that wraps another store and inspects each page can use this function too.
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
    let mut scan = Some(Begun::Waiting(store.scan(None, limit)));
    while let Some(page) = scan.take() {
        let page = page.end().await?;
        if let Some(next) = &page.next {
            if Some(next) <= last.as_ref() {
                let kind = StoreErrorKind::Corrupt;
                return Err(StoreError::new(kind, "scanning rows that do not go on"));
            }
            last = Some(next.clone());
            // The store reads the next page while `take` handles this page.
            scan = Some(Begun::begin(store.scan(last.clone(), limit)).await);
        }
        take(page)?;
    }
    Ok(())
}

/// A future that was polled once, so that its work has started.
enum Begun<F: Future> {
    Waiting(F),
    Ready(F::Output),
}

impl<F: Future + Unpin> Begun<F> {
    async fn begin(mut future: F) -> Self {
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut future).poll(cx))).await;
        match polled {
            Poll::Ready(output) => Self::Ready(output),
            Poll::Pending => Self::Waiting(future),
        }
    }

    async fn end(self) -> F::Output {
        match self {
            Self::Waiting(future) => future.await,
            Self::Ready(output) => output,
        }
    }
}
