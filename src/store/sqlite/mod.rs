//! The file store: one SQLite file that several processes share.

mod admin;
mod copy;
mod fault;
mod file;
mod head;
mod nodes;
mod options;
mod read;
mod rows;
mod schema;
mod session;
mod watch;
mod write;
mod writer;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use event_listener::Event;
use rusqlite::Connection;

use self::fault::Fault;
pub use self::fault::OpenError;
pub use self::file::JournalMode;
use self::file::Place;
pub use self::options::SqliteOptions;
use self::session::Pool;
use self::writer::Writer;
use super::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey,
    IntegrityReport, KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, NodeId, NodeRegistry,
    NodeReport, Revision, RowKey, ScanPage, Stats, StoreError, TenantView,
};
use crate::core::tenant::TenantId;

/// 16 concurrent reads. A judgement: reads are short, and threads and descriptors are not free.
const READERS: usize = 16;
/// 4 more concurrent reads, reserved for the reads that keep nodes fresh.
const FOLLOWERS: usize = 4;

/// 100 keys at most for a read through the writer's connection, which blocks commits. A judgement: a
/// millisecond or less.
const FEW: usize = 100;

/// Keys in one SQLite file that several processes may share, including an operator's command line.
/// Clones share the connection.
///
/// - **Durability.** A commit returns when it is on disk (`synchronous=FULL` or stricter). Commits that
///   wait concurrently share one fsync. See [`JournalMode`].
/// - **Several processes.** Every call sees all earlier commits of any process.
///   [`wait_past`](KeyStore::wait_past) detects commits of other processes within the
///   [poll interval](SqliteOptions::poll_interval). If the file is replaced, for example by a restored
///   backup, the next call reads the new file, once the new file is recovered.
/// - **Checksums.** SQLite returns flipped bits without an error; here every row is sealed. A row whose
///   seal does not fit is reported as corrupt, and affects no other row.
/// - **Feed.** State-based, with tombstones until [`compact`](Self::compact).
/// - **Limits.** The file system must be local with working locks, not a network share. A process that
///   has the store open must not open the file by other means: closing that descriptor would drop
///   SQLite's locks.
///
/// Commits run on a thread of their own, which also serves the short reads of decisions while no commit
/// waits. Other reads run on the [`blocking`](https://docs.rs/blocking) pool. No runtime is needed, and
/// none is blocked.
///
/// # Examples
///
/// ```
/// # pollster::block_on(async {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("keys.db");
/// use keyward::store::SqliteStore;
/// use keyward::{Keyward, PepperRing};
///
/// let store = SqliteStore::open(&path).await?; // created if there is none
/// let keys = Keyward::builder(store, PepperRing::generate()?).build().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Arc<Pool>,
    journal: JournalMode,
    poll: Duration,
    reads: async_lock::Semaphore,
    /// The permits for reads that keep nodes fresh, so that these reads do not queue behind listings.
    follows: async_lock::Semaphore,
    writer: Writer,
    moved: Arc<Event>,
    /// The handle that keeps the watching thread running. `None` before the first wait.
    watch: Mutex<Option<SyncSender<()>>>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path())
            .field("journal", &self.shared.journal)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the store at `path`, and creates it if the file does not exist.
    ///
    /// # Errors
    ///
    /// [`OpenError`] names the reason. The file is unchanged then.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        Self::options(path).open().await
    }

    /// Returns the default options: created if missing, readable by its owner alone.
    pub fn options(path: impl Into<PathBuf>) -> SqliteOptions {
        SqliteOptions::new(path.into())
    }

    fn start(pool: Arc<Pool>, journal: JournalMode, poll: Duration) -> std::io::Result<Self> {
        let moved = Arc::new(Event::new());
        let landed = moved.clone();
        let writer = Writer::start(pool.clone(), move || {
            landed.notify(usize::MAX);
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                pool,
                journal,
                poll,
                reads: async_lock::Semaphore::new(READERS),
                follows: async_lock::Semaphore::new(FOLLOWERS),
                writer,
                moved,
                watch: Mutex::new(None),
            }),
        })
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.pool.place.path
    }

    /// Returns the way in which commits reach the disk.
    #[must_use]
    pub fn journal_mode(&self) -> JournalMode {
        self.shared.journal
    }

    /// Writes a backup to `to`, which must not exist: one file with one snapshot, readable by its owner
    /// alone. The store stays in use. Returns the head of the backup.
    ///
    /// # Errors
    ///
    /// [`OpenError`]. There is no file at `to` then.
    pub async fn backup(&self, to: impl Into<PathBuf>) -> Result<Cursor, OpenError> {
        let (place, to) = (self.place(), to.into());
        blocking::unblock(move || admin::backup(&place, &to)).await
    }

    /// Restores a backup to `to`, which must not exist, after an integrity check. The restored store has
    /// a new history, so that followers of the lost history start over. The restored store opens only
    /// for recovery, since keys that were revoked after the backup would work again: see
    /// [`allow_unrecovered`](SqliteOptions::allow_unrecovered) and
    /// [`finish_recovery`](Self::finish_recovery).
    ///
    /// # Errors
    ///
    /// [`OpenError`]. There is no file at `to` then.
    pub async fn restore(
        backup: impl Into<PathBuf>,
        to: impl Into<PathBuf>,
    ) -> Result<(), OpenError> {
        let (backup, to) = (Self::options(backup), to.into());
        blocking::unblock(move || admin::restore(&backup.into_place(), &to)).await
    }

    /// Marks a restored store as recovered, so that it opens like any other store.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn finish_recovery(&self) -> Result<(), StoreError> {
        let place = self.place();
        let done = blocking::unblock(move || admin::finish_recovery(&place)).await;
        done.map_err(|fault| fault.into_error("finishing a recovery"))
    }

    /// Reads the whole file and reports what is broken in the file. The store stays in use.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the file cannot be read at all.
    pub async fn check_integrity(&self) -> Result<IntegrityReport, StoreError> {
        self.read("checking integrity", admin::check).await
    }

    /// Returns the size of the store and its engine. Counts rows, so that a large file takes a moment.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        let journal = self.shared.journal.as_str();
        self.read("counting rows", move |conn| admin::stats(conn, journal))
            .await
    }

    /// Drops the tombstones of keys removed at `upto` or before, and returns their number. Followers
    /// that have not reached `upto` read everything again. The ids and digests of the keys stay taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn compact(&self, upto: Revision) -> Result<u64, StoreError> {
        let place = self.place();
        let done = blocking::unblock(move || admin::compact(&place, upto)).await;
        done.map_err(|fault| fault.into_error("forgetting tombstones"))
    }

    fn place(&self) -> Place {
        self.shared.pool.place.clone()
    }

    async fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read_among(&self.shared.reads, doing, read).await
    }

    /// Runs a read for followers or for the registry of nodes.
    async fn follow<T: Send + 'static>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read_among(&self.shared.follows, doing, read).await
    }

    async fn read_among<T: Send + 'static>(
        &self,
        few: &async_lock::Semaphore,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _one_of_few = few.acquire().await;
        let pool = self.shared.pool.clone();
        let answer = blocking::unblock(move || pool.read(read)).await;
        answer.map_err(|fault| fault.into_error(doing))
    }

    /// Reads few rows, through the writer's connection if that connection is idle. The writer's
    /// connection keeps its pages in memory, while other connections lose their pages with each commit.
    /// `read` returns `None` if the rows turn out to be many.
    async fn read_few<T: Send + 'static>(
        &self,
        doing: &'static str,
        read: impl Fn(&Connection, usize) -> Result<Option<T>, Fault> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let read = Arc::new(read);
        let few = read.clone();
        let soon = self.shared.writer.read(move |conn| few(conn, FEW));
        if let Some(answer) = soon.await {
            return Ok(answer);
        }
        let all = self.read(doing, move |conn| read(conn, usize::MAX));
        let endless = || Fault::Refused("a tenant has more keys than can be counted");
        all.await?.ok_or_else(|| endless().into_error(doing))
    }

    /// Starts the thread that watches for commits of other processes, unless it was started before.
    fn watch(&self) -> Result<(), StoreError> {
        let Shared {
            pool, moved, poll, ..
        } = &*self.shared;
        let mut watch = self
            .shared
            .watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if watch.is_none() {
            let (stays, alive) = sync_channel(0);
            watch::start(pool, Arc::downgrade(moved), *poll, alive)
                .map_err(|error| Fault::from(error).into_error("watching the file"))?;
            *watch = Some(stays);
        }
        Ok(())
    }
}

#[async_trait]
impl KeyStore for SqliteStore {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        let (tenant, select) = (tenant.clone(), select.clone());
        self.read_few("loading a tenant", move |conn, most| {
            read::load(conn, &tenant, &select, most)
        })
        .await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        let locator = *locator;
        let read = move |conn: &Connection, _| Ok(Some(read::find(conn, &locator)?));
        self.read_few("reading a key", read).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.shared.writer.commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.follow("reading changes", move |conn| {
            read::changes(conn, after, limit)
        })
        .await?
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.follow("scanning rows", move |conn| {
            read::scan(conn, after.as_ref(), limit)
        })
        .await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let query = query.clone();
        self.read("listing keys", move |conn| read::list(conn, &query))
            .await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let query = query.clone();
        self.read("reading the audit trail", move |conn| {
            read::audit(conn, &query)
        })
        .await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.watch()?;
        loop {
            let moved = self.shared.moved.listen();
            if self.follow("reading the head", read::cursor).await? != after {
                return Ok(());
            }
            moved.await;
        }
    }
}

/// A report is on disk when the call returns, like a commit.
#[async_trait]
impl NodeRegistry for SqliteStore {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        let write = move |conn: &Connection| nodes::report(conn, &report);
        self.shared
            .writer
            .write("noting a node's report", write)
            .await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.follow("reading nodes", nodes::all).await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        let write = move |conn: &Connection| nodes::forget(conn, node, upto);
        self.shared.writer.write("forgetting a node", write).await
    }
}

#[cfg(test)]
mod tests;
