//! The database store: one schema of a PostgreSQL database that any number of nodes share.

mod calls;
mod check;
mod exchange;
mod fault;
mod head;
mod heartbeat;
mod link;
mod listen;
mod load;
mod loader;
mod nodes;
mod options;
mod read;
mod rows;
mod schema;
mod stream;
mod tls;
mod transfer;
mod upkeep;
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
use futures_util::future::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::unconstrained;

use self::calls::{Takes, Within};
pub use self::fault::{ConnectError, PoolExhausted};
use self::head::Head;
use self::link::Link;
use self::loader::Loader;
pub use self::options::PostgresOptions;
use self::writer::Writer;
use super::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, IntegrityReport,
    KeyPage, KeyQuery, KeyStore, Locator, NodeId, NodeRegistry, NodeReport, Revision, RowKey,
    ScanPage, Select, Stats, StoreError, StoreErrorKind, TakePage, TenantView, Versioned,
};
use crate::core::tenant::TenantId;

/// Keys in a schema of a PostgreSQL database that any number of nodes share. Clones share the
/// connections.
///
/// - **Durability.** A commit returns when the server says that it is on disk, and on the synchronous
///   standbys that it is configured to wait for. `synchronous_commit` is turned on for commits where
///   the database has it off. Commits of one node that wait together share one transaction.
/// - **Order.** Every commit changes one row, the head, last locked and kept until it is done: the
///   order of revisions is the order of commits. Neither sequences, notifications nor advisory locks
///   decide anything.
/// - **Freshness.** Reads go to the primary, each in a snapshot of its own; a server that is in
///   recovery is refused. A former primary that was cut off and not fenced cannot be told from the
///   real one: failover must fence, or the store be [`strict`](PostgresOptions::strict).
/// - **Checksums.** Every row is sealed. One that fails is told as corrupt and harms no other.
/// - **Feed.** State-based, with tombstones until [`forget_removed`](Self::forget_removed).
///
/// Calls may come from any executor; they are worked on by the tokio runtime in which the store was
/// connected, which must keep running.
#[derive(Clone)]
pub struct PostgresStore {
    shared: Arc<Shared>,
}

struct Shared {
    link: Arc<Link>,
    runtime: Handle,
    loader: Loader,
    writer: Writer,
    moved: Arc<Event>,
    /// How to listen for other nodes' commits; gone once somebody does.
    listen: Mutex<Option<listen::Later>>,
    /// Ends the task that listens.
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
            .field("schema", &self.shared.link.schema.name())
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects to the database at `url`, `postgres://user:password@host:port/database`, with the
    /// defaults, and sets up its tables if there are none. What goes to another machine is encrypted, and
    /// goes to nobody but that host: see [`PostgresOptions::connect`].
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what stands in the way. It never holds the URL.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        Self::options(url).connect().await
    }

    /// Starts from the defaults: a schema named `keyward`.
    pub fn options(url: impl Into<String>) -> PostgresOptions {
        PostgresOptions::url(url.into())
    }

    /// Starts from a pool of the host's own. Its connections must reach the primary, each as a session
    /// of its own for as long as a transaction lasts. Of other nodes' commits such a store hears by
    /// polling alone.
    pub fn with_pool(pool: Pool) -> PostgresOptions {
        PostgresOptions::pool(pool)
    }

    fn start(
        (link, writing): (Arc<Link>, Arc<Link>),
        listen: Option<listen::Later>,
        runtime: Handle,
    ) -> Self {
        let moved = Arc::new(Event::new());
        let hints = listen::hints(link.clone(), &runtime);
        let loader = Loader::new(link.clone());
        let writer = Writer::start(writing, &runtime, moved.clone(), hints);
        Self {
            shared: Arc::new(Shared {
                link,
                runtime,
                loader,
                writer,
                moved,
                listen: Mutex::new(listen),
                gone: Arc::new(Event::new()),
            }),
        }
    }

    /// The schema that holds the store's tables.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.shared.link.schema.name()
    }

    /// The SQL that sets up the tables of a store in a schema of this name, for those who run migrations
    /// of their own: from a version of the schema on, zero where there is none, to that of this build. A
    /// store that is connected to tables which were set up so migrates nothing, and begins its history.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Schema`] for a name that no schema has, [`ConnectError::Newer`] for a version that
    /// this build does not know.
    pub fn schema_sql(schema: &str, from: i32) -> Result<String, ConnectError> {
        schema::sql(&schema::Schema::new(schema)?, from)
    }

    /// Reads all tables and names what is broken in them, as of one instant. The store goes on meanwhile.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read at all.
    pub async fn check_integrity(&self) -> Result<IntegrityReport, StoreError> {
        self.within(
            Within::Snapshot,
            Takes::AsLongAsItNeeds,
            "checking integrity",
            |tx| check::check(tx).boxed(),
        )
        .await
    }

    /// How large the store is, and how it is kept. Counts rows, so that many take a moment.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        self.within(
            Within::Snapshot,
            Takes::AsLongAsItNeeds,
            "counting rows",
            |tx| check::stats(tx).boxed(),
        )
        .await
    }

    /// Forgets the tombstones of keys removed at `upto` or before, and tells how many there were.
    /// Followers that stand before `upto` read everything anew. The keys' ids and digests stay
    /// taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` they may be forgotten or not.
    pub async fn forget_removed(&self, upto: Revision) -> Result<u64, StoreError> {
        self.within(
            Within::Writing,
            Takes::Moment,
            "forgetting tombstones",
            move |tx| upkeep::forget_removed(tx, upto).boxed(),
        )
        .await
    }

    /// Begins a history of its own, on tables that were restored from a backup, before any node uses
    /// them: followers of the lost one start over. From here on the store opens only to be recovered,
    /// since what was revoked after the backup was taken would work again; see
    /// [`allow_unrecovered`](PostgresOptions::allow_unrecovered) and
    /// [`finish_recovery`](Self::finish_recovery).
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` it may be done or not.
    pub async fn begin_anew(&self) -> Result<(), StoreError> {
        self.within(
            Within::Writing,
            Takes::Moment,
            "beginning a history anew",
            |tx| upkeep::begin_anew(tx).boxed(),
        )
        .await
    }

    /// Lets a restored store open as any other from here on. To be called once it was recovered.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` it may be done or not.
    pub async fn finish_recovery(&self) -> Result<(), StoreError> {
        self.within(
            Within::Writing,
            Takes::Moment,
            "finishing a recovery",
            |tx| upkeep::finish_recovery(tx).boxed(),
        )
        .await
    }

    /// Starts listening for other nodes' commits, if nobody did before.
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
    async fn load(&self, tenant: &TenantId, select: &Select) -> Result<TenantView, StoreError> {
        let asked = (tenant.clone(), select.clone());
        let Shared {
            loader, runtime, ..
        } = &*self.shared;
        let mut view = loader.load(runtime, asked).await?;
        view.server_time = view.server_time.filter(|_| self.shared.link.server_clock);
        Ok(view)
    }

    async fn find(&self, locator: &Locator) -> Result<Option<Versioned>, StoreError> {
        let locator = *locator;
        self.within(
            Within::Snapshot,
            Takes::Moment,
            "reading a key",
            move |tx| async move { read::find(tx, &locator).await }.boxed(),
        )
        .await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.shared.writer.commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let page = self
            .within(
                Within::Snapshot,
                Takes::Moment,
                "reading changes",
                move |tx| async move { read::changes(tx, after, limit).await }.boxed(),
            )
            .await?;
        let mut page = page?;
        page.server_time = page.server_time.filter(|_| self.shared.link.server_clock);
        Ok(page)
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.within(
            Within::Snapshot,
            Takes::Moment,
            "scanning rows",
            move |tx| async move { read::scan(tx, after.as_ref(), limit).await }.boxed(),
        )
        .await
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        let doing = "reading all rows";
        let gone = || StoreError::new(StoreErrorKind::Unavailable, doing);
        let (pages, mut coming) = mpsc::channel(stream::AHEAD);
        let link = self.shared.link.clone();
        let stream = async move { stream::everything(&link, limit, &pages).await };
        // Rows are read there while those before them are taken here.
        let stream = self.shared.runtime.spawn(stream);
        // Without the runtime's own count of what a task did in one turn: it never lets a caller go on that
        // blocks within one.
        while let Some(page) = unconstrained(coming.recv()).await {
            let page = unconstrained(page).await.map_err(|_| gone())?;
            take(page.map_err(|fault| fault.told(doing))?)?;
            stream::let_others_run().await;
        }
        let ended = unconstrained(stream).await.map_err(|_| gone())?;
        ended.map_err(|fault| fault.told(doing))
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let query = query.clone();
        self.look_through("listing keys", move |tx| {
            async move { read::list(tx, &query).await }.boxed()
        })
        .await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let query = query.clone();
        self.look_through("reading the audit trail", move |tx| {
            async move { read::audit(tx, &query).await }.boxed()
        })
        .await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.listen();
        loop {
            let moved = self.shared.moved.listen();
            let head = self.within(Within::Glance, Takes::Moment, "reading the head", |tx| {
                Head::read(tx).boxed()
            });
            if head.await?.cursor != after {
                return Ok(());
            }
            moved.await;
        }
    }
}

/// A report is as durable as a commit when it returns.
#[async_trait]
impl NodeRegistry for PostgresStore {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        self.within(
            Within::Writing,
            Takes::Moment,
            "noting a node's report",
            move |tx| async move { nodes::report(tx, &report).await }.boxed(),
        )
        .await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.within(Within::Snapshot, Takes::Moment, "reading nodes", |tx| {
            nodes::all(tx).boxed()
        })
        .await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        self.within(
            Within::Writing,
            Takes::Moment,
            "forgetting a node",
            move |tx| async move { nodes::forget(tx, node, upto).await }.boxed(),
        )
        .await
    }
}
