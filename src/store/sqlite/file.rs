//! The file: its permissions, its creation, and the setup of a connection.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{process, thread};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::access::{folder_of, with_end};
use super::fault::{OpenError, SqliteFault};
use super::rows::one;
use super::{head, schema};
use crate::observe::WithSources;

/// 3.51.3: the first version of SQLite without a bug that can corrupt a file in WAL mode that several
/// connections use. Versions 3.7.0 to 3.51.2 have the bug.
const SAFE_WAL: i32 = 3_051_003;

/// 64 MiB: the `journal_size_limit`. SQLite truncates a longer journal to this size.
const WAL_KEPT: i64 = 64 << 20;

/// 8 MiB: the reserve on the disk. An automatic checkpoint can need 4 MiB of new pages in the main file. The
/// remaining 4 MiB hold thousands of revocations.
const RESERVE: u64 = 8 << 20;

/// 256 KiB: the part of the reserve that is freed at a time, enough for the log of one revocation and its index.
/// Another program may take all of it.
const RESERVE_STEP: u64 = 256 << 10;

/// 16 MiB: the free space that a new store needs. Half is the reserve. The log takes 4 MiB, and the rest holds the
/// first thousands of keys.
const NEW_STORE: u64 = 16 << 20;

/// 2 MiB: the free space, besides the reserve, from which a disk that was full counts as having space again.
const ROOM: u64 = 2 << 20;

/// 1 s: the longest wait for a lock on the node registry, whose transactions take milliseconds. A sync waits for its
/// report, and must end within half of the default staleness bound, which is 5 s.
const REGISTRY_BUSY: Duration = Duration::from_secs(1);

/// 15 ms: the usual pause between two attempts to read a file alone. Such a read takes a few milliseconds.
const ALONE_PAUSE: Duration = Duration::from_millis(15);

/// The ending of the usage file.
const USAGE: &str = "-usage";

/// 250 ms: the longest wait for readers when the writer empties the log. Commits wait that long too.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(250);

/// The journal mode of the file. In both modes a commit waits for the disk, so commits survive a power cut.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum JournalMode {
    /// A write-ahead log with `synchronous=FULL`: readers and the writer do not block each other.
    Wal,
    /// A rollback journal with `synchronous=EXTRA`, used if WAL mode is not safe or not available.
    Truncate,
}

impl JournalMode {
    /// Returns the name that SQLite uses for the mode.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Truncate => "truncate",
        }
    }
}

/// The path of a store file, and the options for its connections.
#[derive(Clone, Debug)]
pub(super) struct StoreFile {
    pub(super) path: PathBuf,
    pub(super) group_access: bool,
    /// True if a file that was restored from a backup may be opened before its recovery is finished. Such a file
    /// does not serve, so it may also be read from a read-only folder.
    pub(super) unrecovered: bool,
    pub(super) busy: Duration,
}

/// The device and inode of the file at a path, which change when the file is replaced. Always zero on systems
/// other than Unix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FileIdentity(u64, u64);

/// The files that an open connection uses: the main file, and its log if it has one.
///
/// A connection creates the log with its first read, and SQLite removes no log that a connection uses. So a log that
/// changed while a connection was open was removed by hand, as when a copy was put back. The connection would go on
/// reading the removed log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct OpenFiles {
    main: FileIdentity,
    log: Option<FileIdentity>,
}

impl OpenFiles {
    /// Returns whether a connection to these files can be used, if `now` are the files at the path.
    ///
    /// If only the log changed, SQLite would write the removed log into the main file when it closes the connection,
    /// and so mix two states of the store. This method prevents that.
    pub(super) fn are_current(self, now: Self, conn: &Connection) -> bool {
        if self.main == now.main && self.log != now.log {
            let flag = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            // Fails only for an unknown flag, which the bundled SQLite and all since 3.16.2 know.
            let _ = conn.set_db_config(flag, true);
        }
        self == now
    }
}

impl FileIdentity {
    #[cfg(unix)]
    fn of(meta: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;

        Self(meta.dev(), meta.ino())
    }

    #[cfg(not(unix))]
    const fn of(_meta: &fs::Metadata) -> Self {
        Self(0, 0)
    }
}

impl StoreFile {
    /// Returns the files of a connection to the main file `main`. Call this method after the connection has read.
    pub(super) fn open_files(&self, main: FileIdentity) -> OpenFiles {
        let log = fs::symlink_metadata(with_end(&self.path, "-wal"));
        let log = log.ok().map(|meta| FileIdentity::of(&meta));
        OpenFiles { main, log }
    }

    /// Returns the identity of the file, or `None` if nothing exists at the path. Refuses a path that is not
    /// a regular file, and a file with permissions that are too open.
    pub(super) fn identity(&self) -> Result<Option<FileIdentity>, OpenError> {
        let path = &self.path;
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io(path, error)),
        };
        let kind = meta.file_type();
        let what = if kind.is_symlink() {
            "a symbolic link"
        } else if kind.is_dir() {
            "a directory"
        } else if kind.is_file() {
            return self.check_permissions(&meta).map(Some);
        } else {
            "a device, a pipe or a socket"
        };
        Err(OpenError::NotAFile {
            path: path.clone(),
            what,
        })
    }

    #[cfg(unix)]
    fn check_permissions(&self, meta: &fs::Metadata) -> Result<FileIdentity, OpenError> {
        use std::os::unix::fs::MetadataExt;

        let mode = meta.mode() & 0o777;
        let refused = if self.group_access { 0o007 } else { 0o077 };
        if mode & refused != 0 {
            return Err(OpenError::ReadableByOthers {
                path: self.path.clone(),
                mode,
            });
        }
        Ok(FileIdentity::of(meta))
    }

    #[cfg(not(unix))]
    fn check_permissions(&self, meta: &fs::Metadata) -> Result<FileIdentity, OpenError> {
        Ok(FileIdentity::of(meta))
    }

    /// Connects to the file without changing the file. Refuses a file that is not a store, or has an unknown
    /// schema version.
    ///
    /// Opens the file only through SQLite. If this process opened and closed the file itself, POSIX would
    /// drop the locks of all its SQLite connections to the file.
    pub(super) fn open(&self) -> Result<Connection, OpenError> {
        self.check_length()?;
        let conn = self.connect()?;
        self.check_store(&conn)?;
        Ok(conn)
    }

    pub(super) fn check_length(&self) -> Result<(), OpenError> {
        let path = &self.path;
        let len = fs::metadata(path)
            .map_err(|error| OpenError::io(path, error))?
            .len();
        let what = match len {
            0 => "it is empty",
            1..512 if !is_sqlite_file(path) => {
                return Err(OpenError::Foreign {
                    path: path.clone(),
                    what: "it is no SQLite file",
                });
            }
            1..512 => "it ends within its first page",
            _ => return Ok(()),
        };
        Err(OpenError::Corrupt {
            path: path.clone(),
            what: what.to_owned(),
        })
    }

    pub(super) fn check_store(&self, conn: &Connection) -> Result<(), OpenError> {
        let path = &self.path;
        let fail = |fault: SqliteFault| OpenError::of(path, fault);
        let foreign = |what| OpenError::Foreign {
            path: path.clone(),
            what,
        };
        let damaged = || fail(SqliteFault::Corrupt("its header is damaged".to_owned()));
        match schema::application(conn) {
            Ok(schema::APPLICATION_ID) => {}
            Ok(_) if schema::has_tables_of_a_store(conn).map_err(fail)? => return Err(damaged()),
            Ok(_) => return Err(foreign("it is another program's SQLite file")),
            Err(fault) if fault.is_no_database() => {
                return Err(match has_application_id(path, schema::APPLICATION_ID) {
                    true => damaged(),
                    false => foreign("it is no SQLite file"),
                });
            }
            Err(fault) => return Err(fail(fault)),
        }
        // Each transaction checks whether the tables are upgraded.
        schema::check_may_upgrade(conn).map_err(fail)
    }

    /// Connects to the file that is currently at the path, and refuses an unrecovered file. A restored backup
    /// may have replaced the file since the store was opened.
    pub(super) fn serve(&self) -> Result<Connection, OpenError> {
        let conn = self.open()?;
        self.check_recovered(&conn)?;
        Ok(conn)
    }

    /// Returns whether the store may serve requests. Fails if the store waits for its recovery, unless the options
    /// allow such a store.
    pub(super) fn check_recovered(&self, conn: &Connection) -> Result<bool, OpenError> {
        let store = head::store(conn).map_err(|fault| OpenError::of(&self.path, fault))?;
        if store.is_unrecovered() && !self.unrecovered {
            return Err(OpenError::Unrecovered {
                path: self.path.clone(),
            });
        }
        Ok(!store.is_unrecovered())
    }

    /// Fails within a transaction if the file waits for recovery. The mark may have been set after the connection
    /// was opened. Reads one column, so other reads must detect a damaged row.
    pub(super) fn check_mark(&self, conn: &Connection) -> Result<(), SqliteFault> {
        if self.unrecovered {
            return Ok(());
        }
        let sql = "SELECT 1 FROM store WHERE one = 1 AND restored_from IS NOT NULL";
        match one(conn, sql, [], |_| Ok(()))? {
            Some(()) => Ok(self.check_recovered(conn).map(drop)?),
            None => Ok(()),
        }
    }

    /// Connects to any SQLite file, with settings that do not change the file.
    pub(super) fn connect(&self) -> Result<Connection, OpenError> {
        let conn = self.connect_with_log()?;
        conn.ok_or_else(|| self.needs_writable_folder())
    }

    /// Connects to any SQLite file. `None` if SQLite can neither create nor read the log of the file, because the
    /// folder is read-only.
    pub(super) fn connect_with_log(&self) -> Result<Option<Connection>, OpenError> {
        let conn = self.connect_to(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        match schema::application(&conn) {
            Err(fault) if fault.is_cannot_open() && self.is_folder_read_only() => Ok(None),
            // Each further statement would wait as long again.
            Err(fault) if fault.is_busy() => Err(OpenError::of(&self.path, fault)),
            _ => Ok(Some(conn)),
        }
    }

    /// Connects to a file that no other connection uses. SQLite then keeps the index of the log in memory, so a full
    /// disk does not prevent reads. Closing the connection leaves the log as it is.
    ///
    /// SQLite takes a shared lock first. Two connections that kept it would wait for each other, so a connection that
    /// does not get the exclusive lock at once is dropped, and replaced after a pause.
    pub(super) fn connect_alone(&self) -> Result<Connection, OpenError> {
        let mut attempts = self.busy.as_millis() / ALONE_PAUSE.as_millis();
        loop {
            match self.try_alone() {
                Err(fault) if fault.is_busy() && attempts > 0 => pause_between_attempts(),
                conn => return conn.map_err(|fault| OpenError::of(&self.path, fault)),
            }
            attempts -= 1;
        }
    }

    fn try_alone(&self) -> Result<Connection, SqliteFault> {
        let conn = self.connect_to(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        conn.busy_timeout(Duration::ZERO)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        // The first read takes the lock, which the connection keeps.
        schema::application(&conn)?;
        conn.busy_timeout(self.busy)?;
        Ok(conn)
    }

    /// Connects to a file without reading its log, and without locking it.
    pub(super) fn connect_without_log(&self) -> Result<Connection, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        self.connect_to(&immutable_uri(&self.path), flags)
    }

    /// Returns whether no file can be created next to the store.
    fn is_folder_read_only(&self) -> bool {
        let probe = with_end(&self.path, &format!("-probe-{}", process::id()));
        let created = OpenOptions::new().write(true).create_new(true).open(&probe);
        let refused = [
            io::ErrorKind::ReadOnlyFilesystem,
            io::ErrorKind::PermissionDenied,
        ];
        match created {
            Ok(_) => {
                drop(fs::remove_file(probe));
                false
            }
            Err(error) => refused.contains(&error.kind()),
        }
    }

    fn connect_to(&self, name: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
        let fail = |fault: SqliteFault| OpenError::of(&self.path, fault);
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(name, flags)
            .map_err(|error| fail(SqliteFault::from(error)))?;
        let set_up = || -> Result<(), SqliteFault> {
            conn.busy_timeout(self.busy)?;
            conn.set_prepared_statement_cache_capacity(64);
            // Without this option, SQLite prepares some statements again for each new parameter value.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            // Another program may have added triggers or views to the file. The store creates none.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
            conn.pragma_update(None, "trusted_schema", false)?;
            conn.pragma_update(None, "cell_size_check", true)?;
            conn.pragma_update(None, "journal_size_limit", WAL_KEPT)?;
            conn.pragma_update(None, "temp_store", "MEMORY")?;
            Ok(())
        };
        set_up().map_err(fail)?;
        Ok(conn)
    }

    /// Makes commits of this connection durable. Selects WAL mode if the linked SQLite is safe in that mode,
    /// and a rollback journal otherwise.
    pub(super) fn make_durable(&self, conn: &Connection) -> Result<JournalMode, OpenError> {
        let fail = |fault: SqliteFault| OpenError::of(&self.path, fault);
        let now = journal(conn).map_err(fail)?;
        let wal_is_safe = rusqlite::version_number() >= SAFE_WAL;
        let mode = match (wal_is_safe, now.as_str()) {
            (true, "wal") => JournalMode::Wal,
            // SQLite cannot change the mode while another process has the file open. In this case the file
            // keeps the rollback journal, which is safe too.
            (true, _) => match set_journal(conn, "WAL") {
                Ok(mode) if mode == "wal" => JournalMode::Wal,
                _ => self.truncate(conn)?,
            },
            (false, _) => self.truncate(conn)?,
        };
        let synchronous = match mode {
            JournalMode::Wal => "FULL",
            JournalMode::Truncate => "EXTRA",
        };
        conn.pragma_update(None, "synchronous", synchronous)
            .map_err(|error| fail(error.into()))?;
        Ok(mode)
    }

    /// Moves every commit from the write-ahead log into the main file, and empties the log. Afterwards the main
    /// file alone is the whole store. Waits for readers of older snapshots for at most the busy timeout.
    pub(super) fn checkpoint(conn: &Connection) -> Result<(), SqliteFault> {
        // Without a log (rollback journal) SQLite reports success.
        let busy: bool = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy {
            return Err(SqliteFault::Refused(
                "another process reads or writes the file, so its log could not be moved into it: try again",
            ));
        }
        Ok(())
    }

    /// Moves every commit from the log into the main file, and lets the log start over in its present space. Returns
    /// `false` if a reader or writer prevented that.
    pub(super) fn restart_log(conn: &Connection) -> Result<bool, SqliteFault> {
        Self::brief_checkpoint(conn, "PRAGMA wal_checkpoint(RESTART)")
    }

    /// Moves the log like [`checkpoint`](Self::checkpoint), but waits for readers for at most [`CHECKPOINT_WAIT`].
    pub(super) fn empty_log(conn: &Connection) -> Result<bool, SqliteFault> {
        Self::brief_checkpoint(conn, "PRAGMA wal_checkpoint(TRUNCATE)")
    }

    fn brief_checkpoint(conn: &Connection, sql: &str) -> Result<bool, SqliteFault> {
        let usual: i64 = conn.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
        conn.busy_timeout(CHECKPOINT_WAIT.min(Duration::from_millis(usual.unsigned_abs())))?;
        let done = conn.query_row(sql, [], |row| row.get::<_, bool>(0).map(|busy| !busy));
        conn.busy_timeout(Duration::from_millis(usual.unsigned_abs()))?;
        Ok(done?)
    }

    /// Fails if the disk lacks the space for a new store and its reserve.
    pub(super) fn check_space(&self) -> Result<(), OpenError> {
        match self.has_free(NEW_STORE) {
            true => Ok(()),
            false => Err(OpenError::NoSpace {
                path: self.path.clone(),
                needed: NEW_STORE,
            }),
        }
    }

    /// Returns whether the disk has space for more than the present files.
    pub(super) fn has_room(&self) -> bool {
        self.has_free(ROOM)
    }

    /// Returns whether the disk has this many free bytes. `true` if the system does not know.
    fn has_free(&self, bytes: u64) -> bool {
        #[cfg(unix)]
        if let Ok(disk) = rustix::fs::statvfs(folder_of(&self.path)) {
            // A file system without a limit counts no blocks.
            return disk.f_blocks == 0 || disk.f_bavail.saturating_mul(disk.f_frsize) >= bytes;
        }
        true
    }

    /// Returns the length of the write-ahead log in bytes.
    pub(super) fn log_bytes(&self) -> u64 {
        fs::metadata(with_end(&self.path, "-wal")).map_or(0, |meta| meta.len())
    }

    /// Takes space on the disk, in a file next to the store, for commits that only narrow. Returns whether the
    /// whole reserve is there. On a disk with less space, the reserve is smaller.
    ///
    /// Fails if the file cannot be opened. Then no space is kept for any commit.
    pub(super) fn keep_reserve(&self) -> io::Result<bool> {
        let reserve = self.open_reserve()?;
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        let mut kept = 0;
        for step in (0..8).map(|halved| RESERVE >> halved) {
            match allocate(&reserve, kept + step) {
                Ok(()) => kept += step,
                Err(error) if full.contains(&error.kind()) => {}
                // The file system keeps no space, so there is nothing to wait for.
                Err(_) => return Ok(true),
            }
            if kept == RESERVE {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Logs that the reserve cannot be kept.
    pub(super) fn log_no_reserve(&self, error: &io::Error) {
        let path = self.path.display();
        match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                tracing::warn!(%path, "store file is on a read-only file system: no change can be made");
            }
            _ => {
                tracing::debug!(%path, error = %WithSources(error), "cannot keep the reserve of the store")
            }
        }
    }

    /// Returns whether the reserve lacks space. A checkpoint, or another process, may have freed it.
    pub(super) fn lacks_reserve(&self) -> bool {
        let found = fs::metadata(with_end(&self.path, "-reserve"));
        found.is_ok_and(|found| found.is_file() && found.len() < RESERVE)
    }

    /// Frees a part of the reserve. Returns whether it had any.
    pub(super) fn free_reserve(&self) -> bool {
        let free = || {
            let file = self.open_reserve()?;
            let len = file.metadata()?.len();
            file.set_len(len.saturating_sub(RESERVE_STEP))?;
            Ok(len > 0)
        };
        free().unwrap_or_else(|error: io::Error| {
            tracing::debug!(error = %WithSources(&error), "cannot free the reserve of the store");
            false
        })
    }

    /// Runs `write`, which leaves more space than it takes. On a full disk, frees the reserve step by step until
    /// `write` succeeds, and takes the space back.
    pub(super) fn with_reserve<T>(
        &self,
        mut write: impl FnMut() -> Result<T, SqliteFault>,
    ) -> Result<T, SqliteFault> {
        let mut written = write();
        let was_full = written.as_ref().is_err_and(SqliteFault::is_full);
        while written.as_ref().is_err_and(SqliteFault::is_full) && self.free_reserve() {
            written = write();
        }
        if was_full {
            // The writer notices a reserve that is not whole at its next commit.
            drop(self.keep_reserve());
        }
        written
    }

    /// Gives the rollback journal of this file at least `len` bytes on the disk. Call this method in a transaction
    /// that has written nothing.
    pub(super) fn keep_journal(&self, len: u64) -> io::Result<()> {
        let found = fs::symlink_metadata(with_end(&self.path, "-journal"));
        match found.is_ok_and(|found| found.len() >= len) {
            true => Ok(()),
            false => allocate(&self.open_beside("-journal")?, len),
        }
    }

    fn open_reserve(&self) -> io::Result<File> {
        self.open_beside("-reserve")
    }

    /// Opens a file next to this one, and creates it with the same access.
    fn open_beside(&self, end: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
            options.mode(0o600);
        }
        let file = options.open(with_end(&self.path, end))?;
        #[cfg(unix)]
        if self.group_access {
            // The umask may have removed the group's access. Fails if another user created the file.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o660);
            drop(file.set_permissions(mode));
        }
        Ok(file)
    }

    fn truncate(&self, conn: &Connection) -> Result<JournalMode, OpenError> {
        match set_journal(conn, "TRUNCATE") {
            Ok(mode) if mode == "truncate" => Ok(JournalMode::Truncate),
            Ok(_) => Err(self.unsafe_wal()),
            Err(SqliteFault::Sql(error))
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) =>
            {
                Err(self.unsafe_wal())
            }
            Err(fault) => Err(OpenError::of(&self.path, fault)),
        }
    }

    fn unsafe_wal(&self) -> OpenError {
        OpenError::UnsafeWal {
            path: self.path.clone(),
            linked: rusqlite::version(),
        }
    }

    /// Creates the store durably, and fails if something exists at the path. Other processes never see an
    /// incomplete file.
    pub(super) fn create(&self) -> Result<(), OpenError> {
        refuse_existing(&self.path)?;
        self.check_space()?;
        self.create_with(schema::create)
    }

    /// Creates a file whose tables `fill` creates.
    fn create_with(
        &self,
        fill: impl FnOnce(&mut Connection) -> Result<(), SqliteFault>,
    ) -> Result<(), OpenError> {
        let path = &self.path;
        refuse_leftovers(path)?;
        let draft = DraftStore::beside(path)?;
        let new = Self {
            path: draft.path.clone(),
            ..self.clone()
        };
        let mut conn = new.connect()?;
        fill(&mut conn).map_err(|fault| OpenError::of(path, fault))?;
        drop(conn);
        draft.link(path)?;
        // If the fsync fails, the file is kept, because another process may already have committed to the
        // file.
        sync_folder(path).map_err(|error| OpenError::io(path, error))
    }

    /// Creates a file like [`create_with`](Self::create_with), which the group may use if it may use the store.
    pub(super) fn create_shared(
        &self,
        fill: impl FnOnce(&mut Connection) -> Result<(), SqliteFault>,
    ) -> Result<(), OpenError> {
        self.create_with(|conn| {
            #[cfg(unix)]
            if let Some(draft) = conn.path().filter(|_| self.group_access) {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o660);
                fs::set_permissions(draft, mode)?;
            }
            fill(conn)
        })
    }

    /// Returns the file of the node registry, which is next to the store.
    pub(super) fn registry(&self) -> Self {
        Self {
            path: with_end(&self.path, "-nodes"),
            busy: self.busy.min(REGISTRY_BUSY),
            ..self.clone()
        }
    }

    /// Returns the usage file, which is next to the store.
    pub(super) fn usage(&self) -> Self {
        Self {
            path: with_end(&self.path, USAGE),
            ..self.clone()
        }
    }
}

/// Refuses a file that another process put into WAL mode, if the linked SQLite is not safe in that mode.
pub(super) fn check_journal(conn: &Connection) -> Result<(), SqliteFault> {
    if rusqlite::version_number() < SAFE_WAL && journal(conn)? == "wal" {
        return Err(SqliteFault::Refused(
            "another process put the file into WAL mode, which the linked SQLite is not safe in",
        ));
    }
    Ok(())
}

/// Waits for about [`ALONE_PAUSE`]. Pauses differ, so that two threads or processes do not try at the same times.
#[expect(
    clippy::disallowed_methods,
    reason = "the busy handler of SQLite waits like this, but keeps its lock"
)]
fn pause_between_attempts() {
    static PAUSES: AtomicU32 = AtomicU32::new(0);
    let number = PAUSES.fetch_add(1, Ordering::Relaxed);
    let mixed = number.wrapping_add(process::id()).wrapping_mul(0x9e37_79b9);
    thread::sleep(ALONE_PAUSE / 2 + ALONE_PAUSE * (mixed >> 24) / 256);
}

fn journal(conn: &Connection) -> Result<String, SqliteFault> {
    Ok(conn.pragma_query_value(None, "journal_mode", |row| row.get(0))?)
}

pub(super) fn set_journal(conn: &Connection, mode: &str) -> Result<String, SqliteFault> {
    Ok(conn.pragma_update_and_check(None, "journal_mode", mode, |row| row.get(0))?)
}

/// Fails if the journal of a deleted file is at the path, because SQLite would apply that journal to a new
/// file. `TRUNCATE` mode leaves an empty journal behind, and `PERSIST` mode one that begins with zeros. SQLite
/// applies neither.
///
/// Also fails if the usage file of a deleted file is there, because the new store would take its counts for its own.
pub(super) fn refuse_leftovers(path: &Path) -> Result<(), OpenError> {
    let usage = with_end(path, USAGE);
    if fs::symlink_metadata(&usage).is_ok() {
        return Err(OpenError::Leftover { path: usage });
    }
    for end in ["-wal", "-journal"] {
        let journal = with_end(path, end);
        let is_long = fs::symlink_metadata(&journal).is_ok_and(|meta| meta.len() > 0);
        if is_long && !(end == "-journal" && begins_with_zero(&journal)) {
            return Err(OpenError::Leftover { path: journal });
        }
    }
    Ok(())
}

fn begins_with_zero(journal: &Path) -> bool {
    let mut first = [1];
    let read = File::open(journal).and_then(|mut file| file.read_exact(&mut first));
    read.is_ok() && first == [0]
}

pub(super) fn refuse_existing(path: &Path) -> Result<(), OpenError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(OpenError::Exists {
            path: PathBuf::from(path),
        }),
        Err(_) => Ok(()),
    }
}

/// The part of a folder's name that marks the folder of a draft. A user's own folder is unlikely to have such
/// a name.
const DRAFT: &str = ".keyward-draft-";

/// The files that the folder of a draft may contain.
const PARTS: [&str; 4] = ["store", "store-wal", "store-shm", "store-journal"];

/// A store file that is not yet at its final path, in a temporary folder next to that path. Dropping the
/// draft removes the folder. If the process is killed, [`clear_drafts`] removes the folder later.
pub(super) struct DraftStore {
    pub(super) path: PathBuf,
    folder: PathBuf,
    /// The lock on the folder, which marks the draft as in use. A lock on the file would be unsafe: releasing
    /// that lock would drop SQLite's locks on the published file.
    _alive: Option<File>,
}

impl DraftStore {
    /// Creates a draft for `path`: an empty file that only its owner can read.
    pub(super) fn beside(path: &Path) -> Result<Self, OpenError> {
        clear_drafts(path);
        let fail = |error: io::Error| OpenError::io(path, error);
        for attempt in 0..1000 {
            let folder = with_end(path, &format!("{DRAFT}{}-{attempt}", process::id()));
            match create_folder(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(fail(error)),
            }
            // `None` on systems that cannot open folders. There, other processes cannot lock the folder
            // either, so they never remove the draft.
            let alive = File::open(&folder).ok();
            let taken = alive.as_ref().map(File::try_lock);
            if matches!(taken, Some(Err(TryLockError::WouldBlock))) || !folder.exists() {
                // Another process removed the folder before this process locked the folder.
                continue;
            }
            let draft = Self {
                path: folder.join(PARTS[0]),
                folder,
                _alive: alive,
            };
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            options.open(&draft.path).map_err(fail)?;
            return Ok(draft);
        }
        Err(fail(io::ErrorKind::AlreadyExists.into()))
    }

    /// Moves the draft durably to `path`, and fails if something exists there. No process may have the draft
    /// open.
    pub(super) fn publish(self, path: &Path) -> Result<(), OpenError> {
        self.link(path)?;
        sync_folder(path).map_err(|error| {
            // Without the fsync, a power cut could remove the file. So a failed fsync undoes the publication.
            drop(fs::remove_file(path));
            OpenError::io(path, error)
        })
    }

    fn link(&self, path: &Path) -> Result<(), OpenError> {
        let fail = |error: io::Error| OpenError::io(path, error);
        let written = File::open(&self.path).and_then(|file| file.sync_all());
        written.map_err(fail)?;
        match fs::hard_link(&self.path, path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(OpenError::Exists {
                path: path.to_owned(),
            }),
            Err(error) => Err(fail(error)),
        }
    }
}

impl Drop for DraftStore {
    fn drop(&mut self) {
        remove_draft(&self.folder);
    }
}

/// Removes the drafts that killed processes left next to `path`. A draft that cannot be removed is left
/// for a later attempt.
pub(super) fn clear_drafts(path: &Path) {
    let Ok(entries) = fs::read_dir(folder_of(path)) else {
        return;
    };
    for entry in entries.flatten() {
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !folder || !is_draft(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        // The process that makes a draft holds a lock on its folder. If the lock is taken, the draft is in
        // use.
        let Ok(lock) = File::open(&path) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            remove_draft(&path);
            tracing::info!(path = %path.display(), "removed a draft whose process is gone");
        }
    }
}

fn is_draft(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.rsplit_once(DRAFT)
        .and_then(|(_, end)| end.split_once('-'))
        .is_some_and(|(process, attempt)| number(process) && number(attempt))
}

/// Removes the files of a draft and then its folder. A folder that contains any other file is kept.
fn remove_draft(folder: &Path) {
    for part in PARTS {
        drop(fs::remove_file(folder.join(part)));
    }
    drop(fs::remove_dir(folder));
}

/// Gives a file at least `len` bytes on the disk.
#[cfg(target_os = "linux")]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    let flags = rustix::fs::FallocateFlags::empty();
    Ok(rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(file, flags, 0, len)
    })?)
}

#[cfg(not(target_os = "linux"))]
fn allocate(mut file: &File, len: u64) -> io::Result<()> {
    use std::io::Seek;

    let present = file.seek(io::SeekFrom::End(0))?;
    let missing = io::repeat(0).take(len.saturating_sub(present));
    io::copy(&mut { missing }, &mut file).map(drop)
}

fn create_folder(path: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), allow(unused_mut, reason = "there are no modes to set"))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Returns the SQLite URI of a file that SQLite neither writes nor locks.
fn immutable_uri(path: &Path) -> PathBuf {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            _ => uri += &format!("%{byte:02X}"),
        }
    }
    uri += "?immutable=1";
    PathBuf::from(uri)
}

/// Returns whether a file that is too short for SQLite begins like an SQLite file.
fn is_sqlite_file(path: &Path) -> bool {
    let mut header = [0; 15];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header == *b"SQLite format 3"
}

/// Returns whether the header of a file that SQLite refuses has this application id. SQLite does not use such a file, so
/// opening it here drops no lock.
pub(super) fn has_application_id(path: &Path, id: i32) -> bool {
    let mut header = [0; 72];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header[68..] == id.to_be_bytes()
}
