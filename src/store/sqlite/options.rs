//! The options for opening a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::SqliteStore;
use super::fault::OpenError;
use super::file::{StoreFile, clear_drafts};
use super::registry::Registry;
use super::schema;
use super::session::Pool;
use super::unlocked::ReadConnection;
use crate::observe::WithSources;

/// 5 seconds: the default wait for a lock of another process. A checkpoint after a burst of commits holds the
/// lock for less than that.
const BUSY: Duration = Duration::from_secs(5);

/// 100 ms: the default interval between checks for commits of other processes. A check takes a microsecond.
const POLL: Duration = Duration::from_millis(100);

/// The longest wait that SQLite accepts: 2^31 - 1 milliseconds, about 24 days.
const LONGEST_BUSY: Duration = Duration::from_millis(i32::MAX as u64);

/// 1 ms: the shortest interval between checks, so that the watcher thread does not spin.
const SHORTEST_POLL: Duration = Duration::from_millis(1);

/// The options for opening a file. See [`SqliteStore::options`].
#[derive(Clone, Debug)]
#[must_use = "options open nothing by themselves"]
pub struct SqliteOptions {
    file: StoreFile,
    creation: Creation,
    poll: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Creation {
    IfMissing,
    Never,
    Always,
}

impl SqliteOptions {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            file: StoreFile {
                path,
                group_access: false,
                unrecovered: false,
                busy: BUSY,
            },
            creation: Creation::IfMissing,
            poll: POLL,
        }
    }

    pub(super) fn into_file(self) -> StoreFile {
        self.file
    }

    /// Sets whether a missing file is created. Defaults to `true`.
    pub const fn create(mut self, create: bool) -> Self {
        self.creation = match create {
            true => Creation::IfMissing,
            false => Creation::Never,
        };
        self
    }

    /// Sets whether the file must be new, so that opening an existing file fails. Defaults to `false`.
    ///
    /// If [`create`](Self::create) is called too, the later of the two calls decides.
    pub const fn create_new(mut self, create_new: bool) -> Self {
        self.creation = match create_new {
            true => Creation::Always,
            false => Creation::IfMissing,
        };
        self
    }

    /// Accepts a file that its group may read or change. A file that other users may read or change is still
    /// refused.
    pub const fn allow_group_access(mut self) -> Self {
        self.file.group_access = true;
        self
    }

    /// Accepts a file that was restored from a backup and is not recovered yet. Use this option only to
    /// recover the file: see [`SqliteStore::finish_recovery`].
    ///
    /// Also accepts a file without a log in a read-only folder, such as a backup or a lost disk that is mounted
    /// read-only. A read of such a file fails if another process changes the file.
    pub const fn allow_unrecovered(mut self) -> Self {
        self.file.unrecovered = true;
        self
    }

    /// Sets how long a call waits for a lock of another process. After that time the call fails as
    /// unavailable. Defaults to 5 seconds, and can be at most about 24 days.
    pub fn busy_timeout(mut self, busy: Duration) -> Self {
        self.file.busy = busy.min(LONGEST_BUSY);
        self
    }

    /// Sets the interval between checks for commits of other processes. The checks start with the first call
    /// of [`wait_past`](crate::store::KeyStore::wait_past). Defaults to 100 ms, and can be as short as 1 ms.
    pub fn poll_interval(mut self, every: Duration) -> Self {
        self.poll = every.max(SHORTEST_POLL);
        self
    }

    /// Checks that the disk has the space for a new file: 16 MiB, of which the store keeps 8 MiB as a reserve.
    /// [`open`](Self::open) checks the space too before it creates a file.
    ///
    /// # Errors
    ///
    /// [`OpenError::NoSpace`].
    pub fn check_space(&self) -> Result<(), OpenError> {
        self.file.check_space()
    }

    /// Opens the file.
    ///
    /// # Errors
    ///
    /// [`OpenError`] names the reason. The stored keys are unchanged.
    pub async fn open(self) -> Result<SqliteStore, OpenError> {
        blocking::unblock(move || self.open_now()).await
    }

    fn open_now(mut self) -> Result<SqliteStore, OpenError> {
        let io = |path: &PathBuf, error| OpenError::io(path, error);
        // An absolute path stays valid if the working directory changes later.
        let path = self.file.path.clone();
        self.file.path = std::path::absolute(&path).map_err(|error| io(&path, error))?;
        let file = &self.file;
        match (file.identity()?, self.creation) {
            (Some(_), Creation::IfMissing | Creation::Never) => clear_drafts(&file.path),
            (Some(_), Creation::Always) => return Err(OpenError::Exists { path }),
            (None, Creation::Never) => return Err(OpenError::NotFound { path }),
            (None, Creation::Always) => file.create()?,
            (None, Creation::IfMissing) => match file.create() {
                // Another process created the file first.
                Err(OpenError::Exists { .. }) => {}
                created => created?,
            },
        }
        let opened = file.open_to_read()?;
        // Checks this before the journal mode is set, so that a refused file keeps its journal mode.
        let serves = file.check_recovered(&opened.conn)? && opened.is_locked();
        let journal = file.make_durable(&opened.conn)?;
        if opened.is_locked() {
            schema::upgrade(&opened.conn).map_err(|fault| OpenError::of(&path, fault))?;
        }
        // A connection without space for an index would exclude all later ones.
        let _opened = Some(opened).filter(ReadConnection::is_shared);
        tracing::info!(
            path = %file.path.display(),
            journal = journal.as_str(),
            sqlite = rusqlite::version(),
            "opened"
        );
        let pool = Arc::new(Pool::new(self.file.clone()));
        // Remembers this file, so that its replacement is logged.
        let opened = pool.current();
        opened.map_err(|fault| OpenError::of(&path, fault))?;
        // A backup that is only read or recovered gets no files next to it.
        let reserve = match serves {
            true => file
                .keep_reserve()
                .inspect_err(|error| file.log_no_reserve(error)),
            false => Ok(true),
        };
        let registry = Registry::new(pool.clone());
        if serves && let Err(error) = registry.begin() {
            // Reports try again. Whoever only reads needs no registry.
            tracing::debug!(path = %file.path.display(), error = %WithSources(&error), "cannot create the node registry");
        }
        SqliteStore::start(pool, journal, self.poll, reserve, registry)
            .map_err(|error| io(&path, error))
    }
}
