//! The default implementation of [`KeyStore::scan_all`], page by page.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::task::Poll;

use super::{KeyStore, ScanPage, StoreError, StoreErrorKind};

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
