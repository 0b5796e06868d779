//! How a call is worked on: on the store's own runtime, in a transaction, within its time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::PostgresStore;
use super::fault::Fault;
use super::link::{Link, Listing, Tx};
use super::schema::under_way;
use crate::store::StoreError;

/// How long any call may take. A judgement: somebody waits for it, who can give up. An instant that is
/// further away might be none.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a call may take.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Takes {
    /// Little: no longer than a request.
    Moment,
    /// It may look at many rows before it has the few it tells.
    While,
    /// It reads everything, for an operator.
    AsLongAsItNeeds,
}

impl Takes {
    pub(super) fn limit(self, link: &Link) -> Duration {
        let limit = match self {
            Self::Moment => link.timeouts.request,
            Self::While => link.timeouts.request.saturating_mul(6),
            Self::AsLongAsItNeeds => LONGEST,
        };
        limit.min(LONGEST)
    }
}

/// In which transaction a call is worked on.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Within {
    /// All of it as of one instant.
    Snapshot,
    /// The same, and nothing is concluded from it.
    Glance,
    /// To be committed.
    Writing,
    /// A copy that is under way, to be read.
    Copy,
    /// The same, to be committed.
    CopyWriting,
}

impl Within {
    const fn writes(self) -> bool {
        matches!(self, Self::Writing | Self::CopyWriting)
    }

    pub(super) async fn run<T, F>(self, link: &Link, takes: Takes, steps: F) -> Result<T, Fault>
    where
        F: for<'t> FnOnce(&'t Tx<'_>) -> BoxFuture<'t, Result<T, Fault>>,
    {
        let mut conn = link.connection().await?;
        let tx = match self {
            Self::Snapshot => link.snapshot(&mut conn).await?,
            Self::Glance => link.glance(&mut conn).await?,
            Self::Writing => link.writing(&mut conn).await?,
            Self::Copy | Self::CopyWriting => {
                let (tx, version) = link.apart(&mut conn).await?;
                under_way(version)?;
                tx
            }
        };
        if takes == Takes::AsLongAsItNeeds {
            tx.be_patient().await?;
        }
        let told = steps(&tx).await?;
        match self.writes() {
            true => tx.commit().await?,
            false => tx.end().await?,
        }
        conn.give_back();
        Ok(told)
    }
}

impl PostgresStore {
    /// Looks through rows some at a time, all as of one instant.
    pub(super) async fn look_through<T, F>(
        &self,
        doing: &'static str,
        steps: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t Listing<'_>) -> BoxFuture<'t, Result<T, Fault>> + Send + 'static,
    {
        let work = move |link: Arc<Link>| async move {
            let mut conn = link.connection().await?;
            let listing = link.listing(&mut conn).await?;
            let told = steps(&listing).await?;
            listing.end().await?;
            conn.give_back();
            Ok(told)
        };
        let done = self.work(doing, Takes::While, work).await;
        done.unwrap_or_else(|| Err(Fault::Late.told(doing)))
    }

    /// Takes steps in a transaction, and tells what they told once it is over.
    pub(super) async fn within<T, F>(
        &self,
        within: Within,
        takes: Takes,
        doing: &'static str,
        steps: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t Tx<'_>) -> BoxFuture<'t, Result<T, Fault>> + Send + 'static,
    {
        let work = move |link: Arc<Link>| async move { within.run(&link, takes, steps).await };
        let late = match within.writes() {
            true => Fault::Unknown(Box::new(Fault::Late)),
            false => Fault::Late,
        };
        let done = self.work(doing, takes, work).await;
        done.unwrap_or_else(|| Err(late.told(doing)))
    }

    /// Works on a call on the store's own runtime, so that it neither needs the caller's nor stops
    /// half way when the caller does. `None` if it took too long.
    pub(super) async fn work<T, F>(
        &self,
        doing: &'static str,
        takes: Takes,
        work: impl FnOnce(Arc<Link>) -> F,
    ) -> Option<Result<T, StoreError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let link = self.shared.link.clone();
        let limit = takes.limit(&link);
        let work = work(link);
        let task = async move { tokio::time::timeout(limit, work).await };
        match self.shared.runtime.spawn(task).await {
            Ok(Ok(done)) => Some(done.map_err(|fault| fault.told(doing))),
            // It took too long, the runtime is gone, or the task came to an end on the way.
            Ok(Err(_)) | Err(_) => None,
        }
    }
}
