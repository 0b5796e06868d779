//! The file store: one SQLite file that several processes share.

mod access;
mod admin;
mod copy;
mod damage;
mod documents;
mod fault;
mod file;
mod head;
mod nodes;
mod options;
mod pages;
mod read;
mod readers;
mod registry;
mod repair;
mod rows;
mod salvage;
mod schema;
mod session;
mod unlocked;
mod usage;
mod usage_rows;
mod watch;
mod write;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use event_listener::Event;
use rusqlite::Connection;

pub use self::fault::OpenError;
use self::fault::SqliteFault;
pub use self::file::JournalMode;
use self::file::StoreFile;
pub use self::options::SqliteOptions;
use self::readers::Readers;
use self::registry::Registry;
use self::session::Pool;
use self::usage::UsageFile;
use self::writer::SqliteWriter;
use super::usage::{
    BootClosing, BootOpening, KeyDay, LastUse, LastUseQuery, UsageBatch, UsageError, UsageLedger,
    UsagePruning, UsageStore,
};
use super::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, DocumentError,
    DocumentName, DocumentRead, DocumentWrite, Documents, Epoch, FoundKey, IntegrityReport,
    KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, NodeId, NodeRegistry, NodeReport, Revision,
    RowKey, ScanPage, Stats, StoreError, TenantView,
};
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::core::usage::day::Day;
use crate::observe::WithSources;

/// The largest number of concurrent reads: 16. Reads are short, and each one uses a thread and a file
/// descriptor.
const READERS: usize = 16;
/// The number of additional concurrent reads for the feed only: 4.
const FOLLOWERS: usize = 4;

/// 100: the largest number of keys that a read on the writer's connection may return. Such a read delays
/// commits by a millisecond or less.
const FEW: usize = 100;

/// A store in one SQLite file. Several processes may share the file, for example a service and an operator's
/// command line. Clones share their connections.
///
/// - **Durability.** A commit returns when it is on disk (`synchronous=FULL` or stricter). Concurrent commits
///   share one fsync. See [`JournalMode`].
/// - **Several processes.** Every call sees all earlier commits of any process.
///   [`wait_past`](KeyStore::wait_past) detects commits of other processes within the [poll
///   interval](SqliteOptions::poll_interval). If a restored backup replaces the file, the next call uses the
///   new file. Calls fail until the new file is recovered. A file that was moved or replaced is logged once,
///   at warn.
/// - **Full disk.** The store keeps 8 MiB of the disk in a file next to it (`-reserve`), for commits that only narrow,
///   such as revocations. Other commits fail as unavailable, and reads need no space. A new store needs 16 MiB of free
///   space. Nodes keep their reports in another file (`-nodes`), which has the space for them. So neither a full disk
///   nor a long transaction of another program stops verification on registered nodes.
/// - **Usage.** The counted uses of keys are in a file of their own (`-usage`), with its own locks and log: see
///   [`UsageStore`].
/// - **Log.** Readers of an old state keep the write-ahead log from starting over. The store empties a log of 64 MiB
///   by waiting for readers for a moment. A read during which the log grows by 64 MiB past 256 MiB fails as
///   unavailable. A backup is such a read: repeat it while fewer changes are made.
/// - **Read-only folders.** A store that serves needs a folder that can be written, for its log (`-wal`). A file that
///   is only read needs none, if it has no log: see [`allow_unrecovered`](SqliteOptions::allow_unrecovered). Copy a
///   file with a log elsewhere first, together with its log.
/// - **Checksums.** SQLite does not detect flipped bits, so every row has a seal, which is a checksum. A row
///   with a wrong seal is reported as corrupt, and affects no other row.
/// - **Feed.** Contains the latest version of each row, and tombstones of removed keys until
///   [`compact`](Self::compact).
/// - **Limits.** The file system must be local with working locks, not a network share. A process that
///   has the store open must not open the file by other means: closing that descriptor would drop
///   SQLite's locks.
///
/// Commits run on a dedicated thread. While no commit waits, this thread also serves short reads. Other reads
/// run on the [`blocking`](https://docs.rs/blocking) pool. The store needs no async runtime and blocks none.
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
    shared: Arc<SqliteStoreInner>,
}

struct SqliteStoreInner {
    pool: Arc<Pool>,
    journal: JournalMode,
    poll: Duration,
    reads: Readers,
    /// The readers of the feed, which must not queue behind listings.
    follows: Readers,
    writer: SqliteWriter,
    registry: Arc<Registry>,
    usage: Arc<UsageFile>,
    on_commit: Arc<Event>,
    /// The sender that keeps the watcher thread running. `None` before the first
    /// [`wait_past`](KeyStore::wait_past).
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
    /// Opens the store at `path`, and creates the file if there is none.
    ///
    /// # Errors
    ///
    /// [`OpenError`] names the reason. The stored keys are unchanged.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        Self::options(path).open().await
    }

    /// Returns the default options: the file is created if missing, and only its owner may read the file.
    pub fn options(path: impl Into<PathBuf>) -> SqliteOptions {
        SqliteOptions::new(path.into())
    }

    fn start(
        pool: Arc<Pool>,
        journal: JournalMode,
        poll: Duration,
        reserve: std::io::Result<bool>,
        registry: Registry,
    ) -> std::io::Result<Self> {
        let on_commit = Arc::new(Event::new());
        let committed = on_commit.clone();
        let writer = SqliteWriter::start(pool.clone(), reserve, move || {
            committed.notify(usize::MAX);
        })?;
        Ok(Self {
            shared: Arc::new(SqliteStoreInner {
                reads: Readers::new(pool.clone(), READERS),
                follows: Readers::new(pool.clone(), FOLLOWERS),
                registry: Arc::new(registry),
                usage: Arc::new(UsageFile::beside(&pool.file)),
                pool,
                journal,
                poll,
                writer,
                on_commit,
                watch: Mutex::new(None),
            }),
        })
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.pool.file.path
    }

    /// Returns the journal mode of the file.
    #[must_use]
    pub fn journal_mode(&self) -> JournalMode {
        self.shared.journal
    }

    /// Writes a backup to `to`, which must not exist, and returns the head of the backup. The backup is one
    /// file with one snapshot, and only its owner can read the file. The store stays in use.
    ///
    /// # Errors
    ///
    /// [`OpenError`]. Nothing is created at `to`.
    pub async fn backup(&self, to: impl Into<PathBuf>) -> Result<Cursor, OpenError> {
        self.write_backup(to.into(), false).await
    }

    /// Writes a backup like [`backup`](Self::backup), and reads it back before it gets its name. Checks all rows and
    /// their seals, and compares the head and the number of rows with the store.
    ///
    /// # Errors
    ///
    /// [`OpenError`]. Nothing is created at `to`.
    pub async fn backup_verified(&self, to: impl Into<PathBuf>) -> Result<Cursor, OpenError> {
        self.write_backup(to.into(), true).await
    }

    async fn write_backup(&self, to: PathBuf, verify: bool) -> Result<Cursor, OpenError> {
        let file = self.file();
        blocking::unblock(move || admin::backup(&file, &to, verify)).await
    }

    /// Copies the undamaged rows of a file to a new file at `to`, which must not exist. The report counts the
    /// copied rows. Its faults name the rows that were left out, at most 1,000.
    ///
    /// No key accepts a request in the new file that it refused in the damaged file, unless that file has lost both the
    /// newest row of the key, so that an older one is left, and every trace of the audit entries about that change. A
    /// key whose row is damaged is unknown in the new file, and its token is refused. Keys of a damaged owner, and of tenants at, above and
    /// below a damaged tenant, are left out too. A tenant whose head is damaged continues after its newest whole
    /// audit entry. Damaged audit entries leave gaps, which the recovery of the new file
    /// [records](crate::audit::Action::EntriesLost). If the row of an imported digest is damaged together with its key,
    /// the digest can be imported again. A salvage that lost anything marks the new file, so that
    /// [`recover`](crate::Keyward::recover) trusts the end of no trail in it.
    ///
    /// Call this function in a process that does not have the damaged file open. If the header or the definitions of
    /// tables are damaged, the call copies the file and repairs the copy. No process may write the file during the
    /// call.
    ///
    /// The new file has a new history and opens only for recovery, like one that was
    /// [restored](Self::restore). If it is the newest state that exists,
    /// [`TrustBackup`](crate::recovery::Recovery::TrustBackup) is the right recovery.
    ///
    /// # Errors
    ///
    /// [`OpenError::Lost`] if no row can be read, or the damage hides which keys are narrowed. Nothing is created at
    /// `to`.
    pub async fn salvage(
        damaged: impl Into<PathBuf>,
        to: impl Into<PathBuf>,
    ) -> Result<IntegrityReport, OpenError> {
        let from = Self::options(damaged).allow_unrecovered().into_file();
        let to = to.into();
        blocking::unblock(move || salvage::salvage(&from, &to)).await
    }

    /// Makes the file as small as its contents. Removed rows leave free pages, which later rows use. Only this
    /// call returns free pages to the file system.
    ///
    /// Needs free space for twice the contents: one copy in a temporary file, and one in the log. Commits of all
    /// processes wait. They fail if the call takes longer than their [busy timeout](SqliteOptions::busy_timeout).
    ///
    /// # Errors
    ///
    /// [`StoreError`]. If only the final [checkpoint](Self::checkpoint) failed, a later checkpoint frees the
    /// space.
    pub async fn vacuum(&self) -> Result<(), StoreError> {
        let file = self.file();
        let done = blocking::unblock(move || admin::vacuum(&file)).await;
        done.map_err(|fault| fault.into_error("vacuuming the file"))
    }

    /// Restores a backup to `to`, which must not exist, after an integrity check. The restored store has a
    /// new history, so followers of the lost history start over.
    ///
    /// Keys that were revoked after the backup would work again. So the restored store opens only for
    /// recovery: see [`allow_unrecovered`](SqliteOptions::allow_unrecovered) and
    /// [`finish_recovery`](Self::finish_recovery).
    ///
    /// # Errors
    ///
    /// [`OpenError`]. Nothing is created at `to`.
    pub async fn restore(
        backup: impl Into<PathBuf>,
        to: impl Into<PathBuf>,
    ) -> Result<(), OpenError> {
        let backup = Self::options(backup).allow_unrecovered().into_file();
        let to = to.into();
        blocking::unblock(move || admin::restore(&backup, &to)).await
    }

    /// Starts a new epoch in a file that was copied back without [`restore`](Self::restore), so that followers of
    /// the lost history start over. A restored file already has a new epoch.
    ///
    /// The copy may contain keys that were revoked later. So every transaction then fails until
    /// [`finish_recovery`](Self::finish_recovery) is called, even in stores that are already open. To recover the
    /// file, open it with [`allow_unrecovered`](SqliteOptions::allow_unrecovered).
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the new epoch may or may not have started.
    pub async fn start_new_epoch(&self) -> Result<(), StoreError> {
        let file = self.file();
        let done = blocking::unblock(move || admin::start_new_epoch(&file)).await;
        done.map_err(|fault| fault.into_error("starting a new epoch"))
    }

    /// Marks a restored store as recovered, so that it opens like any other store. Also moves all commits into
    /// the main file, as [`checkpoint`](Self::checkpoint) does.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. If only the checkpoint failed, the store is recovered, and a repeated call repeats the
    /// checkpoint.
    pub async fn finish_recovery(&self) -> Result<(), StoreError> {
        let file = self.file();
        let done = blocking::unblock(move || admin::finish_recovery(&file)).await;
        done.map_err(|fault| fault.into_error("finishing a recovery"))
    }

    /// Ends a rolling upgrade. From then on, builds of an earlier table version may not use the file.
    ///
    /// A build that opens a file of the previous version adds only columns, tables and indexes that the earlier
    /// build ignores. So nodes of both versions may share the file. Call this method once no node of the earlier
    /// version is left. Does nothing if the upgrade is finished.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. [`Denied`](super::StoreErrorKind::Denied) if the tables have a later version than this
    /// build: then a build of that version must finish the upgrade.
    pub async fn finish_upgrade(&self) -> Result<(), StoreError> {
        let file = self.file();
        let done = blocking::unblock(move || admin::finish_upgrade(&file)).await;
        done.map_err(|fault| fault.into_error("finishing an upgrade"))
    }

    /// Moves all commits from the write-ahead log (`-wal`) into the main file, so that a copy of the main file
    /// alone is complete. The store stays in use. Later commits go to the log again: to copy the file of a
    /// store in use, call [`backup`](Self::backup).
    ///
    /// # Errors
    ///
    /// [`StoreError`] if another process reads the file for longer than the [busy
    /// timeout](SqliteOptions::busy_timeout). All commits stay durable in the log.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let file = self.file();
        let done = blocking::unblock(move || admin::checkpoint(&file)).await;
        done.map_err(|fault| fault.into_error("moving commits from the log into the file"))
    }

    /// Reads a file that does not [open](Self::open), because it is damaged, and reports all damage. If its header or
    /// the definitions of its tables are damaged, the call copies the file, repairs the copy, reads the copy, and
    /// removes it.
    ///
    /// Call this function in a process that does not have the file open. No process may write the file during the
    /// call.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the file is no store, or nothing can be read from it.
    pub async fn check_damaged(path: impl Into<PathBuf>) -> Result<IntegrityReport, OpenError> {
        let file = Self::options(path).allow_unrecovered().into_file();
        blocking::unblock(move || admin::check_damaged(&file)).await
    }

    /// Reads the whole file and reports all damage. The store stays in use.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the file cannot be read at all.
    pub async fn check_integrity(&self) -> Result<IntegrityReport, StoreError> {
        let mut report = self.read("checking integrity", admin::check).await?;
        self.register("checking the node registry", move |registry| {
            registry.check(&mut report)?;
            Ok(report)
        })
        .await
    }

    /// Returns the size of the store, and its engine. Counts all rows, so the call is slow for a large file.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        let journal = self.shared.journal.as_str();
        let log_bytes = self.shared.pool.file.log_bytes();
        self.read("counting rows", move |conn| {
            admin::stats(conn, journal, log_bytes)
        })
        .await
    }

    /// Drops the tombstones of keys removed at `upto` or before, and returns their number. Followers that
    /// have not reached `upto` read everything again. No new key can use the ids and digests of the removed
    /// keys.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn compact(&self, upto: Revision) -> Result<u64, StoreError> {
        let find = move |conn: &Connection| admin::tombstones(conn, upto);
        let found = self.read("finding tombstones", find).await?;
        let file = self.file();
        let done = blocking::unblock(move || admin::compact(&file, &found)).await;
        done.map_err(|fault| fault.into_error("forgetting tombstones"))
    }

    fn file(&self) -> StoreFile {
        self.shared.pool.file.clone()
    }

    async fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = self.shared.reads.read(read).await;
        answer.map_err(|fault| fault.into_error(doing))
    }

    /// Runs a read for followers.
    async fn follow<T: Send + 'static>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = self.shared.follows.read(read).await;
        if answer.is_err() {
            // The writer closes a connection to a log that was removed. Otherwise no new connection could read the
            // log that replaced it.
            let _nothing = self.shared.writer.read(|_| Ok(None::<()>)).await;
        }
        answer.map_err(|fault| fault.into_error(doing))
    }

    /// Runs a step of the node registry on a separate thread.
    async fn register<T: Send + 'static>(
        &self,
        doing: &'static str,
        step: impl FnOnce(&Registry) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let registry = self.shared.registry.clone();
        let done = blocking::unblock(move || step(&registry)).await;
        done.map_err(|fault| fault.into_error(doing))
    }

    /// Runs a step on the usage file on a separate thread.
    async fn count<T: Send + 'static>(
        &self,
        doing: &'static str,
        step: impl FnOnce(&UsageFile) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let usage = self.shared.usage.clone();
        let done = blocking::unblock(move || step(&usage)).await;
        done.map_err(|fault| fault.into_error(doing))
    }

    /// Runs a short read on the writer's connection if that connection is idle, and on a pooled connection
    /// otherwise. The writer's page cache stays valid, but each commit invalidates the caches of all other
    /// connections. The closure `read` returns `None` if there are more keys than its limit.
    async fn read_few<T: Send + 'static>(
        &self,
        doing: &'static str,
        read: impl Fn(&Connection, usize) -> Result<Option<T>, SqliteFault> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let read = Arc::new(read);
        let few = read.clone();
        let fast = self.shared.writer.read(move |conn| few(conn, FEW));
        if let Some(answer) = fast.await {
            return Ok(answer);
        }
        let all = self.read(doing, move |conn| read(conn, usize::MAX));
        let too_many = || SqliteFault::Refused("a tenant has more keys than can be counted");
        all.await?.ok_or_else(|| too_many().into_error(doing))
    }

    /// Starts the thread that watches for commits of other processes, unless the thread is running already.
    fn watch(&self) -> Result<(), StoreError> {
        let SqliteStoreInner {
            pool,
            on_commit,
            poll,
            ..
        } = &*self.shared;
        let mut watch = self
            .shared
            .watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if watch.is_none() {
            let (keep_alive, alive) = sync_channel(0);
            watch::start(pool, Arc::downgrade(on_commit), *poll, alive)
                .map_err(|error| SqliteFault::from(error).into_error("watching the file"))?;
            *watch = Some(keep_alive);
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
        // A process that never writes shows the length of the log too.
        crate::observe::store_log(self.shared.pool.file.log_bytes());
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

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        self.read("listing the tenants", read::tenants).await
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        let store = self
            .read("reading the store's own row", head::store)
            .await?;
        Ok(store.restored_from)
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        self.read("checking integrity", admin::find_loss).await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        self.watch()?;
        loop {
            // Starts to listen before reading the head, so that a commit after the read still wakes this
            // call.
            let commit = self.shared.on_commit.listen();
            if self.follow("reading the head", read::cursor).await? != after {
                return Ok(());
            }
            commit.await;
        }
    }

    fn documents(&self) -> Option<&dyn Documents> {
        Some(self)
    }

    /// Moves all commits into the main file: see [`checkpoint`](Self::checkpoint). Then moves all counts into the main
    /// usage file, unless another process reads the file. A fault of the usage file is logged at warn: the counts are
    /// durable in its log too.
    async fn close(&self) -> Result<(), StoreError> {
        self.checkpoint().await?;
        let closed = self.count("closing the usage file", UsageFile::close).await;
        if let Err(error) = closed {
            tracing::warn!(error = %WithSources(&error), "cannot move all counts into the main usage file");
        }
        Ok(())
    }
}

#[async_trait]
impl Documents for SqliteStore {
    async fn document(&self, name: &DocumentName) -> Result<DocumentRead, StoreError> {
        let name = name.clone();
        let read = move |conn: &Connection| documents::read(conn, &name);
        self.follow("reading a document", read).await
    }

    async fn write_document(&self, write: DocumentWrite) -> Result<u64, DocumentError> {
        let write = move |conn: &Connection| documents::write(conn, &write);
        self.shared
            .writer
            .write("writing a document", write)
            .await?
    }
}

/// Reports are durable when the call returns, as commits are. They are in a separate file, `-nodes`. So a report
/// waits neither for commits nor for a lock on the store, and needs no new space on the disk.
#[async_trait]
impl NodeRegistry for SqliteStore {
    async fn report(&self, report: NodeReport) -> Result<bool, StoreError> {
        self.register("noting a node's report", move |registry| {
            registry.report(&report)
        })
        .await
    }

    async fn nodes(&self) -> Result<Vec<NodeReport>, StoreError> {
        self.register("reading nodes", Registry::all).await
    }

    async fn forget(&self, node: NodeId, upto: u64) -> Result<(), StoreError> {
        const DOING: &str = "forgetting a node";
        self.register(DOING, move |registry| registry.forget(node, upto))
            .await?;
        // The store itself has an entry only after a restore.
        let read = move |conn: &Connection| nodes::may_forget(conn, node, upto);
        if self.follow(DOING, read).await? {
            let write = move |conn: &Connection| nodes::forget(conn, node);
            return self.shared.writer.write(DOING, write).await;
        }
        Ok(())
    }
}

/// Counts are durable when the call returns, as commits are. They are in a separate file, `-usage`, which the first
/// [`open_boot`](UsageStore::open_boot) creates. So a flush of counts delays no commit, and damage to that file stops no
/// key. A batch with uses of a key whose row is damaged fails as corrupt, until
/// [`forget_keys`](UsageStore::forget_keys) removes the row.
///
/// Backups contain no counts. A store is not created or restored next to the usage file of another store.
#[async_trait]
impl UsageStore for SqliteStore {
    async fn open_boot(&self, opening: BootOpening) -> Result<(), StoreError> {
        self.count("opening a boot", move |usage| usage.open_boot(&opening))
            .await
    }

    async fn add(&self, batch: UsageBatch) -> Result<(), UsageError> {
        self.count("adding counts", move |usage| usage.add(&batch))
            .await?
    }

    async fn close_boot(&self, closing: BootClosing) -> Result<bool, StoreError> {
        self.count("closing a boot", move |usage| usage.close_boot(&closing))
            .await
    }

    async fn ledger(&self) -> Result<UsageLedger, StoreError> {
        self.count("reading the usage ledger", UsageFile::ledger)
            .await
    }

    async fn days(&self, keys: &[KeyId], from: Day, to: Day) -> Result<Vec<KeyDay>, StoreError> {
        let keys = keys.iter().copied().collect();
        self.count("reading counts", move |usage| usage.days(&keys, from, to))
            .await
    }

    async fn last_uses(&self, keys: &[KeyId]) -> Result<BTreeMap<KeyId, LastUse>, StoreError> {
        let keys = keys.iter().copied().collect();
        self.count("reading last uses", move |usage| usage.last_uses(&keys))
            .await
    }

    async fn by_last_use(&self, query: &LastUseQuery) -> Result<Vec<(KeyId, LastUse)>, StoreError> {
        let query = query.clone();
        self.count("listing keys by last use", move |usage| {
            usage.by_last_use(&query)
        })
        .await
    }

    async fn prune(&self, pruning: UsagePruning) -> Result<usize, StoreError> {
        self.count("pruning counts", move |usage| usage.prune(&pruning))
            .await
    }

    async fn forget_keys(&self, keys: &[KeyId]) -> Result<(), StoreError> {
        let keys = keys.iter().copied().collect();
        self.count("forgetting counts", move |usage| usage.forget(&keys))
            .await
    }
}

#[cfg(test)]
mod tests;
