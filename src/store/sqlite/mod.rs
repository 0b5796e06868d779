//! The file store: one SQLite file that several processes share.

mod fault;
mod file;
mod head;
mod list;
mod nodes;
mod options;
mod pool;
mod read;
mod rows;
mod schema;
mod transfer;
mod tx;
mod upkeep;
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
use self::pool::Pool;
use self::writer::Writer;
use super::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, IntegrityReport,
    KeyPage, KeyQuery, KeyStore, Locator, NodeId, NodeRegistry, NodeReport, Revision, RowKey,
    ScanPage, Select, Stats, StoreError, TenantView, Versioned,
};
use crate::core::tenant::TenantId;

/// How many reads run at once. A judgement: reads are short, and threads and descriptors are not
/// free.
const READERS: usize = 16;
/// How many of those that keep nodes fresh, beside them.
const FOLLOWERS: usize = 4;

/// How many keys a decision may need at most to be read through the writer's connection, which
/// commits wait for meanwhile. A judgement: a millisecond or less.
const FEW: usize = 100;

/// Keys in one SQLite file that several processes may share, an operator's command line among them.
/// Clones share the connection.
///
/// - **Durability.** A commit returns when it is on disk (`synchronous=FULL` or stricter), and
///   commits that wait together share one wait for the disk. See [`JournalMode`].
/// - **Several processes.** Every call sees what any process committed before it.
///   [`wait_past`](KeyStore::wait_past) notices other processes' commits within the
///   [poll interval](SqliteOptions::poll_interval). A file that is put in the place of this one, a
///   restored backup say, is read from the next call on, once it was recovered.
/// - **Checksums.** SQLite returns flipped bits without a word; here every row is sealed. One that
///   fails is told as corrupt and harms no other.
/// - **Feed.** State-based, with tombstones until [`forget_removed`](Self::forget_removed).
/// - **Limits.** A local file system whose locks work: not a network share. A process that has the
///   store open must not open the file by itself: closing it again would drop SQLite's locks.
///
/// Commits run on a thread of their own, with the short reads that decisions need while none waits;
/// other reads on the threads of the [`blocking`](https://docs.rs/blocking) pool. No runtime is
/// needed, and none is held up.
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
    /// For what keeps nodes fresh: it does not queue behind what people look at.
    follows: async_lock::Semaphore,
    writer: Writer,
    moved: Arc<Event>,
    /// Held for as long as the watching thread is to run; `None` before anybody waited.
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
    /// Opens the store at `path`, and creates it if there is nothing.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what stands in the way; the file is as it was then.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        Self::options(path).open().await
    }

    /// Starts from the defaults: created if missing, readable by its owner alone.
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

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.pool.place.path
    }

    /// How commits reach the disk.
    #[must_use]
    pub fn journal_mode(&self) -> JournalMode {
        self.shared.journal
    }

    /// Writes a backup to `to`, which must not exist: one file with the state of one instant,
    /// readable by its owner alone. The store goes on meanwhile. Tells where the backup stands.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; there is no file at `to` then.
    pub async fn backup(&self, to: impl Into<PathBuf>) -> Result<Cursor, OpenError> {
        let (place, to) = (self.place(), to.into());
        blocking::unblock(move || upkeep::backup(&place, &to)).await
    }

    /// Puts a backup at `to`, which must not exist, once it passed the integrity check. It gets a
    /// history of its own, so that followers of the lost one start over; and it opens only to be
    /// recovered, since what was revoked after the backup was taken would work again: see
    /// [`allow_unrecovered`](SqliteOptions::allow_unrecovered) and
    /// [`finish_recovery`](Self::finish_recovery).
    ///
    /// # Errors
    ///
    /// [`OpenError`]; there is no file at `to` then.
    pub async fn restore(
        backup: impl Into<PathBuf>,
        to: impl Into<PathBuf>,
    ) -> Result<(), OpenError> {
        let (backup, to) = (Self::options(backup), to.into());
        blocking::unblock(move || upkeep::restore(&backup.into_place(), &to)).await
    }

    /// Lets a restored store open as any other from here on. To be called once it was recovered.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn finish_recovery(&self) -> Result<(), StoreError> {
        let place = self.place();
        let done = blocking::unblock(move || upkeep::finish_recovery(&place)).await;
        done.map_err(|fault| fault.told("finishing a recovery"))
    }

    /// Reads the whole file and names what is broken in it. The store goes on meanwhile.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the file cannot be read at all.
    pub async fn check_integrity(&self) -> Result<IntegrityReport, StoreError> {
        self.read("checking integrity", upkeep::check).await
    }

    /// How large the store is, and how it is kept. Counts rows, so that a large file takes a moment.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        let journal = self.shared.journal.as_str();
        self.read("counting rows", move |conn| upkeep::stats(conn, journal))
            .await
    }

    /// Forgets the tombstones of keys removed at `upto` or before, and tells how many there were.
    /// Followers that stand before `upto` read everything anew. The keys' ids and digests stay
    /// taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn forget_removed(&self, upto: Revision) -> Result<u64, StoreError> {
        let place = self.place();
        let done = blocking::unblock(move || upkeep::forget_removed(&place, upto)).await;
        done.map_err(|fault| fault.told("forgetting tombstones"))
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

    /// The same for followers and their registry.
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
        answer.map_err(|fault| fault.told(doing))
    }

    /// A read of few rows: through the writer's connection if that waits for work, since its pages
    /// are still in memory, where other connections lose theirs with each commit. `read` tells
    /// nothing if the rows turn out to be many.
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
        all.await?.ok_or_else(|| endless().told(doing))
    }

    /// Starts watching for other processes' commits, if nobody did before.
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
                .map_err(|error| Fault::from(error).told("watching the file"))?;
            *watch = Some(stays);
        }
        Ok(())
    }
}

#[async_trait]
impl KeyStore for SqliteStore {
    async fn load(&self, tenant: &TenantId, select: &Select) -> Result<TenantView, StoreError> {
        let (tenant, select) = (tenant.clone(), select.clone());
        self.read_few("loading a tenant", move |conn, most| {
            read::load(conn, &tenant, &select, most)
        })
        .await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<Versioned>, StoreError> {
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
        self.read("listing keys", move |conn| list::keys(conn, &query))
            .await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let query = query.clone();
        self.read("reading the audit trail", move |conn| {
            list::audit(conn, &query)
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

/// A report is on disk when it returns, as a commit is.
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
