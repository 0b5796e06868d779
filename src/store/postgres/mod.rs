//! The database store: one schema of a PostgreSQL database that any number of nodes share.

mod admin;
mod copy;
mod fault;
mod head;
mod heartbeat;
mod listen;
mod load;
mod loader;
mod nodes;
mod options;
mod read;
mod rows;
mod schema;
mod session;
mod setup;
mod stream;
mod tls;
mod url;
mod write;
mod writer;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
pub use deadpool_postgres;
use deadpool_postgres::Pool;
use event_listener::Event;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::unconstrained;

use self::fault::Fault;
pub use self::fault::{ConnectError, PoolExhausted};
use self::loader::Loader;
pub use self::options::PostgresOptions;
use self::session::{Database, Mode, Session, Takes, within};
use self::writer::Writer;
use super::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey,
    IntegrityReport, KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, NodeId, NodeRegistry,
    NodeReport, Revision, RowKey, ScanPage, Stats, StoreError, StoreErrorKind, TakePage,
    TenantView,
};
use crate::core::tenant::TenantId;

/// Keys in a schema of a PostgreSQL database that any number of nodes share. Clones share the
/// connections.
///
/// - **Durability.** A commit returns when the server reports it on disk, and on the synchronous
///   standbys that the server waits for. Commits turn `synchronous_commit` on where the database has it
///   off. Commits of one node that wait concurrently share one transaction.
/// - **Order.** Every commit locks one row, the head, after all others, and keeps that lock until the
///   commit ends. So the order of revisions is the order of commits. No sequence, notification or
///   advisory lock decides anything.
/// - **Freshness.** Reads go to the primary, each in a snapshot of its own; a standby is refused. A
///   former primary that was cut off and not fenced looks like the real primary. So failover must fence
///   the former primary, or the store must be [`strict`](PostgresOptions::strict).
/// - **Checksums.** Every row is sealed. A row whose seal does not fit is reported as corrupt, and
///   affects no other row.
/// - **Feed.** State-based, with tombstones until [`compact`](Self::compact).
///
/// Calls may come from any executor. Each call runs on the tokio runtime in which the store was
/// connected. That runtime must stay running.
#[derive(Clone)]
pub struct PostgresStore {
    shared: Arc<Shared>,
}

struct Shared {
    database: Arc<Database>,
    runtime: Handle,
    loader: Loader,
    writer: Writer,
    moved: Arc<Event>,
    /// The task that listens for other nodes' commits. `None` once the task was started.
    listen: Mutex<Option<listen::Later>>,
    /// The event that ends the listening task.
    gone: Arc<Event>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.gone.notify(usize::MAX);
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("schema", &self.shared.database.schema.name())
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects to the database at `url`, `postgres://user:password@host:port/database`, with the
    /// defaults, and creates missing tables. Connections to another machine are encrypted and
    /// authenticated: see [`PostgresOptions::connect`].
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the reason, and never holds the URL.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        Self::options(url).connect().await
    }

    /// Returns the default options: a schema named `keyward`.
    pub fn options(url: impl Into<String>) -> PostgresOptions {
        PostgresOptions::url(url.into())
    }

    /// Returns options for a pool that the host provides. The pool's connections must reach the primary,
    /// and keep one server session for the length of a transaction. A store on a host's pool detects
    /// other nodes' commits by polling alone.
    pub fn from_pool(pool: Pool) -> PostgresOptions {
        PostgresOptions::pool(pool)
    }

    fn start(
        (database, writing): (Arc<Database>, Arc<Database>),
        listen: Option<listen::Later>,
        runtime: Handle,
    ) -> Self {
        let moved = Arc::new(Event::new());
        let hints = listen::hints(database.clone(), &runtime);
        let loader = Loader::new(database.clone());
        let writer = Writer::start(writing, &runtime, moved.clone(), hints);
        Self {
            shared: Arc::new(Shared {
                database,
                runtime,
                loader,
                writer,
                moved,
                listen: Mutex::new(listen),
                gone: Arc::new(Event::new()),
            }),
        }
    }

    /// Returns the name of the schema that holds the store's tables.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.shared.database.schema.name()
    }

    /// Returns the SQL that creates a schema of this name and the tables of a store in it, for
    /// deployments with migrations of their own. A store that connects to these tables creates no
    /// tables, and begins its history.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Schema`] for a name that no schema may have.
    pub fn schema_sql(schema: &str) -> Result<String, ConnectError> {
        Ok(schema::Schema::new(schema)?.script())
    }

    /// Reads all tables in one snapshot, and names what is broken in them. The store stays in use.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the tables cannot be read at all.
    pub async fn check_integrity(&self) -> Result<IntegrityReport, StoreError> {
        self.within(
            Mode::Read,
            Takes::AsLongAsItNeeds,
            "checking integrity",
            |session| admin::check(session).boxed(),
        )
        .await
    }

    /// Returns the size of the store and its engine. Counts all rows, which takes a moment in a large
    /// store.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        self.within(
            Mode::Read,
            Takes::AsLongAsItNeeds,
            "counting rows",
            |session| admin::stats(session).boxed(),
        )
        .await
    }

    /// Drops the tombstones of keys removed at `upto` or before, and returns their number. Followers
    /// that have not reached `upto` read everything again. The ids and digests of the keys stay taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the tombstones may or may not have been dropped.
    pub async fn compact(&self, upto: Revision) -> Result<u64, StoreError> {
        self.within(
            Mode::Write,
            Takes::Moment,
            "forgetting tombstones",
            move |session| admin::compact(session, upto).boxed(),
        )
        .await
    }

    /// Begins a new history in tables that were restored from a backup, so that followers of the lost
    /// history start over. Call this method before any node uses the tables. Afterwards the store opens
    /// only for recovery, since keys that were revoked after the backup would work again; see
    /// [`allow_unrecovered`](PostgresOptions::allow_unrecovered) and
    /// [`finish_recovery`](Self::finish_recovery).
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the new history may or may not have begun.
    pub async fn start_new_epoch(&self) -> Result<(), StoreError> {
        self.within(
            Mode::Write,
            Takes::Moment,
            "beginning a history anew",
            |session| admin::start_epoch(session).boxed(),
        )
        .await
    }

    /// Marks a restored store as recovered, so that it opens like any other store.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the mark may or may not have been written.
    pub async fn finish_recovery(&self) -> Result<(), StoreError> {
        self.within(
            Mode::Write,
            Takes::Moment,
            "finishing a recovery",
            |session| admin::finish_recovery(session).boxed(),
        )
        .await
    }

    /// Runs steps in a transaction, and returns their result after the transaction has ended.
    async fn within<T, F>(
        &self,
        mode: Mode,
        takes: Takes,
        doing: &'static str,
        steps: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'s> FnOnce(&'s Session) -> BoxFuture<'s, Result<T, Fault>> + Send + 'static,
    {
        let database = self.shared.database.clone();
        let run = async move { within(&database, mode, takes, steps).await };
        let late = match mode.writes() {
            true => Fault::Unknown(Box::new(Fault::Late)),
            false => Fault::Late,
        };
        self.work(doing, takes, late, run).await
    }

    /// Runs work on the store's own runtime. So a call does not need the caller's runtime, and does not
    /// stop half way when the caller stops waiting. Fails as `late` if the work takes too long.
    async fn work<T: Send + 'static>(
        &self,
        doing: &'static str,
        takes: Takes,
        late: Fault,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let limit = self.shared.database.limit(takes);
        let task = async move { tokio::time::timeout(limit, work).await };
        let done = match self.shared.runtime.spawn(task).await {
            Ok(Ok(done)) => done,
            // The work took too long, it panicked, or the runtime is gone.
            Ok(Err(_)) | Err(_) => Err(late),
        };
        done.map_err(|fault| fault.into_error(doing))
    }

    /// Starts the task that listens for other nodes' commits, unless it was started before.
    fn listen(&self) {
        let Shared {
            runtime,
            moved,
            listen,
            gone,
            ..
        } = &*self.shared;
        let later = listen.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(later) = later {
            drop(runtime.spawn(later(Arc::downgrade(moved), gone.clone())));
        }
    }
}

#[async_trait]
impl KeyStore for PostgresStore {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        let asked = (tenant.clone(), select.clone());
        let Shared {
            loader, runtime, ..
        } = &*self.shared;
        let mut view = loader.load(runtime, asked).await?;
        view.server_time = view
            .server_time
            .filter(|_| self.shared.database.server_clock);
        Ok(view)
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        let locator = *locator;
        self.within(Mode::Read, Takes::Moment, "reading a key", move |session| {
            async move { read::find(session, &locator).await }.boxed()
        })
        .await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.shared.writer.commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let page = self
            .within(
                Mode::Read,
                Takes::Moment,
                "reading changes",
                move |session| async move { read::changes(session, after, limit).await }.boxed(),
            )
            .await?;
        let mut page = page?;
        page.server_time = page
            .server_time
            .filter(|_| self.shared.database.server_clock);
        Ok(page)
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.within(Mode::Read, Takes::Moment, "scanning rows", move |session| {
            async move { read::scan(session, after.as_ref(), limit).await }.boxed()
        })
        .await
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        let doing = "reading all rows";
        let gone = || StoreError::new(StoreErrorKind::Unavailable, doing);
        let (pages, mut coming) = mpsc::channel(stream::AHEAD);
        let database = self.shared.database.clone();
        let stream = async move { stream::everything(&database, limit, &pages).await };
        // The task reads further rows while `take` handles earlier ones.
        let stream = self.shared.runtime.spawn(stream);
        // Unconstrained: a caller that blocks within one tokio task would otherwise use up that task's
        // budget and never continue.
        while let Some(page) = unconstrained(coming.recv()).await {
            let page = unconstrained(page).await.map_err(|_| gone())?;
            take(page.map_err(|fault| fault.into_error(doing))?)?;
            stream::let_others_run().await;
        }
        let ended = unconstrained(stream).await.map_err(|_| gone())?;
        ended.map_err(|fault| fault.into_error(doing))
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let query = query.clone();
        self.within(Mode::Read, Takes::While, "listing keys", move |session| {
            async move { read::list(session, &query).await }.boxed()
        })
        .await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let query = query.clone();
        let doing = "reading the audit trail";
        self.within(Mode::Read, Takes::While, doing, move |session| {
            async move { read::audit(session, &query).await }.boxed()
        })
        .await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.listen();
        loop {
            let moved = self.shared.moved.listen();
            let head = self.within(Mode::Hint, Takes::Moment, "reading the head", |session| {
                head::read(session).boxed()
            });
            if head.await?.cursor() != after {
                return Ok(());
            }
            moved.await;
        }
    }
}

/// A report is as durable as a commit when the call returns.
#[async_trait]
impl NodeRegistry for PostgresStore {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        self.within(
            Mode::Write,
            Takes::Moment,
            "noting a node's report",
            move |session| async move { nodes::report(session, &report).await }.boxed(),
        )
        .await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.within(Mode::Read, Takes::Moment, "reading nodes", |session| {
            nodes::all(session).boxed()
        })
        .await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        self.within(
            Mode::Write,
            Takes::Moment,
            "forgetting a node",
            move |session| async move { nodes::forget(session, node, upto).await }.boxed(),
        )
        .await
    }
}
