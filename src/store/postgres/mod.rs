//! The PostgreSQL store. Any number of nodes can share one store, which is one schema of a database.

mod admin;
mod copy;
mod documents;
mod fault;
mod head;
mod heartbeat;
mod hosts;
mod listen;
mod load;
mod loader;
mod nodes;
mod options;
mod pooler;
mod read;
mod rows;
mod schema;
mod session;
mod setup;
mod stream;
mod tls;
mod trust;
mod url;
mod usage;
mod write;
mod writer;

use std::collections::BTreeSet;
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

use self::fault::PostgresFault;
pub use self::fault::{ConnectError, PoolExhausted};
use self::loader::Loader;
pub use self::options::PostgresOptions;
use self::session::{Database, Session, SessionMode, TimeLimit, within};
use self::writer::PostgresWriter;
use super::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, DocumentError,
    DocumentName, DocumentRead, DocumentWrite, Documents, Epoch, FoundKey, IntegrityReport,
    KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, NodeId, NodeRegistry, NodeReport, Revision,
    RowKey, ScanPage, Stats, StoreError, StoreErrorKind, TakePage, TenantView,
};
use crate::core::tenant::TenantId;

/// A store in a schema of a PostgreSQL database. Any number of nodes can share the store. Clones share the
/// connections.
///
/// - **Durability.** A commit returns after the server has flushed it to disk and the synchronous standbys
///   have acknowledged it. Commits override a database default of `synchronous_commit = off`. Concurrent
///   commits of one node share one transaction.
/// - **Order.** Every commit locks the head row as its last lock, and keeps the lock until the transaction
///   ends. So revisions are assigned in commit order. The order does not depend on sequences, notifications
///   or advisory locks.
/// - **Freshness.** Every read goes to the primary, and uses one snapshot. Calls to a standby fail. An
///   isolated former primary looks like the primary. So failover must fence the former primary, or the store
///   must be [`strict`](PostgresOptions::strict).
/// - **Checksums.** Every row has a checksum. A row whose checksum does not match is reported as corrupt, and
///   does not affect other rows.
/// - **Usage.** The counted uses of keys are in tables of their own. Batches lock only their own rows, so they delay no
///   commit. All writes of counts by one store share one connection. See [`UsageStore`](super::usage::UsageStore).
/// - **Feed.** The feed is state-based, and keeps tombstones until [`compact`](Self::compact) drops them.
///
/// Methods can be called from any executor. Each call runs on the tokio runtime in which the store was
/// connected, so that runtime must keep running.
#[derive(Clone)]
pub struct PostgresStore {
    inner: Arc<PostgresInner>,
}

struct PostgresInner {
    database: Arc<Database>,
    runtime: Handle,
    loader: Loader,
    writer: PostgresWriter,
    moved: Arc<Event>,
    /// Held while a report is written. So while writes hang, reports occupy at most one connection, and the others
    /// stay free for reads.
    reporting: Arc<tokio::sync::Mutex<()>>,
    /// Held while counted uses are written, for the same reason.
    counting: Arc<tokio::sync::Mutex<()>>,
    /// The task that listens for other nodes' commits, until it is started. `None` after the start. Also
    /// `None` for a pool that the host provides, because such a store does not listen.
    listen: Mutex<Option<listen::PendingListener>>,
    /// Notified when the store is dropped, to stop the listening task.
    dropped: Arc<Event>,
}

impl Drop for PostgresInner {
    fn drop(&mut self) {
        self.dropped.notify(usize::MAX);
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("schema", &self.inner.database.schema.name())
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects with the default options, and creates missing tables.
    ///
    /// `url` has the form `postgres://user:password@host:port/database`. Connections to another machine are
    /// encrypted, and the server is authenticated; see [`PostgresOptions::connect`].
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which never contains the URL.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        Self::options(url).connect().await
    }

    /// Returns the default options for the database at `url`.
    pub fn options(url: impl Into<String>) -> PostgresOptions {
        PostgresOptions::url(url.into())
    }

    /// Returns the default options for a connection pool that the host provides.
    ///
    /// The store cannot listen for other nodes' commits through a pool of the host, so followers only poll. The
    /// pool's connections must reach the primary. A pooler in between must keep one server connection for the
    /// whole of a transaction.
    pub fn from_pool(pool: Pool) -> PostgresOptions {
        PostgresOptions::pool(pool)
    }

    fn start(
        (database, writing): (Arc<Database>, Arc<Database>),
        listen: Option<listen::PendingListener>,
        runtime: Handle,
    ) -> Self {
        let moved = Arc::new(Event::new());
        let hints = listen::hints(database.clone(), &runtime);
        let loader = Loader::new(database.clone());
        let writer = PostgresWriter::start(writing, &runtime, moved.clone(), hints);
        Self {
            inner: Arc::new(PostgresInner {
                database,
                runtime,
                loader,
                writer,
                moved,
                reporting: Arc::default(),
                counting: Arc::default(),
                listen: Mutex::new(listen),
                dropped: Arc::new(Event::new()),
            }),
        }
    }

    /// Returns the name of the schema that contains the store's tables.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.inner.database.schema.name()
    }

    /// Returns an SQL script that creates `schema` and the tables of a store, for deployments that run their
    /// own migrations. The first store that connects to the new tables inserts the head row. A role that runs
    /// the script and is not the connecting role must be named with [`PostgresOptions::owner`].
    ///
    /// # Errors
    ///
    /// [`ConnectError::Schema`] if the name is invalid.
    pub fn schema_sql(schema: &str) -> Result<String, ConnectError> {
        Ok(schema::Schema::new(schema)?.script())
    }

    /// Reads all tables in one snapshot, and reports the damage found. Other calls continue concurrently.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the tables cannot be read. Damage that was found is not an error.
    pub async fn check_integrity(&self) -> Result<IntegrityReport, StoreError> {
        self.within(
            SessionMode::Read,
            TimeLimit::Day,
            "checking integrity",
            |session| admin::check(session).boxed(),
        )
        .await
    }

    /// Returns the size of the store, and the version of the database server. Counts all rows, so the call is
    /// slow on a large store.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        self.within(
            SessionMode::Read,
            TimeLimit::Day,
            "counting rows",
            |session| admin::stats(session).boxed(),
        )
        .await
    }

    /// Drops the tombstones of keys that were removed at or before `upto`, and returns the number of dropped
    /// tombstones.
    ///
    /// A follower that has not reached `upto` gets [`ChangesError::Compacted`] and must scan again. The ids
    /// and digests of removed keys stay taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the tombstones may or may not have been dropped.
    pub async fn compact(&self, upto: Revision) -> Result<u64, StoreError> {
        let found = self.within(
            SessionMode::Read,
            TimeLimit::Day,
            "finding tombstones",
            move |session| admin::tombstones(session, upto).boxed(),
        );
        let found = found.await?;
        self.within(
            SessionMode::Write,
            TimeLimit::Short,
            "dropping tombstones",
            move |session| async move { admin::compact(session, &found).await }.boxed(),
        )
        .await
    }

    /// Starts a new epoch in tables that were restored from a backup, so that followers of the lost history
    /// start over. Also call this method after a failover that lost commits.
    ///
    /// The tables may contain keys that were revoked later. So every transaction then fails until
    /// [`finish_recovery`](Self::finish_recovery) is called, even in stores that are already connected. To recover
    /// the tables, connect with [`allow_unrecovered`](PostgresOptions::allow_unrecovered).
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the new epoch may or may not have started.
    pub async fn start_new_epoch(&self) -> Result<(), StoreError> {
        self.within(
            SessionMode::Write,
            TimeLimit::Short,
            "starting a new epoch",
            |session| admin::start_epoch(session).boxed(),
        )
        .await
    }

    /// Marks a restored store as recovered, so that nodes can connect without `allow_unrecovered`. This store must
    /// have been connected with that option.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the mark may or may not have been written.
    pub async fn finish_recovery(&self) -> Result<(), StoreError> {
        self.within(
            SessionMode::Write,
            TimeLimit::Short,
            "finishing a recovery",
            |session| admin::finish_recovery(session).boxed(),
        )
        .await
    }

    /// Ends a rolling upgrade. From then on, builds of an earlier table version may not use the tables.
    ///
    /// A build that connects to tables of the previous version adds only columns, tables and indexes that the
    /// earlier build ignores. So nodes of both versions may share the tables. Call this method once no node of the
    /// earlier version is left. Does nothing if the upgrade is finished.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. [`Denied`](StoreErrorKind::Denied) if the tables have a later version than this build:
    /// then a build of that version must finish the upgrade. After `Indeterminate` the upgrade may or may not be
    /// finished.
    pub async fn finish_upgrade(&self) -> Result<(), StoreError> {
        self.within(
            SessionMode::Write,
            TimeLimit::Short,
            "finishing an upgrade",
            |session| admin::finish_upgrade(session).boxed(),
        )
        .await
    }

    /// Runs `steps` in a transaction on the store's runtime. Returns their result after the transaction has
    /// ended.
    async fn within<T, F>(
        &self,
        mode: SessionMode,
        time_limit: TimeLimit,
        doing: &'static str,
        steps: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'s> FnOnce(&'s Session) -> BoxFuture<'s, Result<T, PostgresFault>> + Send + 'static,
    {
        let database = self.inner.database.clone();
        let run = async move { within(&database, mode, time_limit, steps).await };
        let late = match mode.writes() {
            true => PostgresFault::Unknown(Box::new(PostgresFault::Late)),
            false => PostgresFault::Late,
        };
        self.work(doing, time_limit, late, run).await
    }

    /// Runs `work` as a task on the store's runtime. Fails with the error `late` if the time limit is
    /// exceeded.
    ///
    /// Because `work` is a task, the caller needs no tokio runtime. The task also runs to its end if the
    /// caller drops the future.
    async fn work<T: Send + 'static>(
        &self,
        doing: &'static str,
        time_limit: TimeLimit,
        late: PostgresFault,
        work: impl Future<Output = Result<T, PostgresFault>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let limit = self.inner.database.limit(time_limit);
        let task = async move { tokio::time::timeout(limit, work).await };
        let done = match self.inner.runtime.spawn(task).await {
            Ok(Ok(done)) => done,
            // The work exceeded the limit, the work panicked, or the runtime has shut down.
            Ok(Err(_)) | Err(_) => Err(late),
        };
        done.map_err(|fault| fault.into_error(doing))
    }

    /// Starts the task that listens for other nodes' commits, unless it was started before.
    fn listen(&self) {
        let PostgresInner {
            runtime,
            moved,
            listen,
            dropped,
            ..
        } = &*self.inner;
        let listener = listen.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listener) = listener {
            drop(runtime.spawn(listener(Arc::downgrade(moved), dropped.clone())));
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
        let PostgresInner {
            loader, runtime, ..
        } = &*self.inner;
        let mut view = loader.load(runtime, asked).await?;
        view.server_time = view
            .server_time
            .filter(|_| self.inner.database.server_clock);
        Ok(view)
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        let locator = *locator;
        self.within(
            SessionMode::Read,
            TimeLimit::Short,
            "reading a key",
            move |session| async move { read::find(session, &locator).await }.boxed(),
        )
        .await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.inner.writer.commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let page = self
            .within(
                SessionMode::Read,
                TimeLimit::Short,
                "reading changes",
                move |session| async move { read::changes(session, after, limit).await }.boxed(),
            )
            .await?;
        let mut page = page?;
        page.server_time = page
            .server_time
            .filter(|_| self.inner.database.server_clock);
        Ok(page)
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.within(
            SessionMode::Read,
            TimeLimit::Short,
            "scanning rows",
            move |session| async move { read::scan(session, after.as_ref(), limit).await }.boxed(),
        )
        .await
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        let doing = "reading all rows";
        let gone = || StoreError::new(StoreErrorKind::Unavailable, doing);
        let (pages, mut coming) = mpsc::channel(stream::PAGES_AHEAD);
        let database = self.inner.database.clone();
        let stream = async move { stream::everything(&database, limit, &pages).await };
        // Read the pages in a task of its own. So the next pages are read while `take` handles a page.
        let stream = self.inner.runtime.spawn(stream);
        // A caller may block on this future inside a single tokio task. That task would use up its
        // cooperative budget, and `recv` would then return `Pending` without end. `unconstrained` exempts
        // `recv` from the budget.
        while let Some(page) = unconstrained(coming.recv()).await {
            let page = unconstrained(page).await.map_err(|_| gone())?;
            take(page.map_err(|fault| fault.into_error(doing))?)?;
            stream::yield_now().await;
        }
        let ended = unconstrained(stream).await.map_err(|_| gone())?;
        ended.map_err(|fault| fault.into_error(doing))
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let query = query.clone();
        self.within(
            SessionMode::Read,
            TimeLimit::Long,
            "listing keys",
            move |session| async move { read::list(session, &query).await }.boxed(),
        )
        .await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let query = query.clone();
        let doing = "reading the audit trail";
        self.within(SessionMode::Read, TimeLimit::Long, doing, move |session| {
            async move { read::audit(session, &query).await }.boxed()
        })
        .await
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        let doing = "listing the tenants";
        self.within(SessionMode::Read, TimeLimit::Long, doing, |session| {
            read::tenants(session).boxed()
        })
        .await
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        let doing = "reading the store's own row";
        let head = self.within(SessionMode::Read, TimeLimit::Short, doing, |session| {
            head::read(session).boxed()
        });
        Ok(head.await?.store.restored_from)
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        let report = self.check_integrity().await?;
        Ok(report.faults.into_iter().next())
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.listen();
        loop {
            let moved = self.inner.moved.listen();
            let head = self.within(
                SessionMode::Hint,
                TimeLimit::Short,
                "reading the head",
                |session| head::read(session).boxed(),
            );
            if head.await?.cursor() != after {
                return Ok(());
            }
            moved.await;
        }
    }

    fn documents(&self) -> Option<&dyn Documents> {
        Some(self)
    }
}

#[async_trait]
impl Documents for PostgresStore {
    async fn document(&self, name: &DocumentName) -> Result<DocumentRead, StoreError> {
        let name = name.clone();
        self.within(
            SessionMode::Read,
            TimeLimit::Short,
            "reading a document",
            move |session| async move { documents::read(session, &name).await }.boxed(),
        )
        .await
    }

    async fn write_document(&self, write: DocumentWrite) -> Result<u64, DocumentError> {
        self.within(
            SessionMode::Write,
            TimeLimit::Short,
            "writing a document",
            move |session| async move { documents::write(session, &write).await }.boxed(),
        )
        .await?
    }
}

/// A report locks only the row of its node, so a report waits for no commit. But a report waits for the
/// synchronous standby, as commits do, because a failover would lose a report that only the primary has. A receipt
/// of the promoted server would then treat the node as stopped. The node might still accept a key that it
/// confirmed on the former primary.
#[async_trait]
impl NodeRegistry for PostgresStore {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        let turn = self.inner.reporting.clone().lock_owned().await;
        let database = self.inner.database.clone();
        let (mode, limit) = (SessionMode::Write, TimeLimit::Short);
        let write = async move {
            let _turn = turn;
            within(&database, mode, limit, move |session| {
                async move { nodes::report(session, &report).await }.boxed()
            })
            .await
        };
        let late = PostgresFault::Unknown(Box::new(PostgresFault::Late));
        self.work("writing a node's report", limit, late, write)
            .await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.within(
            SessionMode::Read,
            TimeLimit::Short,
            "reading nodes",
            |session| nodes::all(session).boxed(),
        )
        .await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        self.within(
            SessionMode::Write,
            TimeLimit::Short,
            "removing a node's report",
            move |session| async move { nodes::forget(session, node, upto).await }.boxed(),
        )
        .await
    }
}
