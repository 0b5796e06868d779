//! The options for opening a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::SqliteStore;
use super::fault::OpenError;
use super::file::{Place, clear_drafts};
use super::session::Pool;

/// 5 seconds to wait for a lock of another process. A judgement: a checkpoint after a burst takes less.
const BUSY: Duration = Duration::from_secs(5);

/// 100 ms between two checks for commits of other processes, at a microsecond each.
const POLL: Duration = Duration::from_millis(100);

/// The longest wait that SQLite accepts: 2^31 - 1 milliseconds, about 24 days.
const LONGEST_BUSY: Duration = Duration::from_millis(i32::MAX as u64);

/// 1 ms at least between two checks of the file, or the watching thread would spin.
const SHORTEST_POLL: Duration = Duration::from_millis(1);

/// The options for opening a file. See [`SqliteStore::options`].
#[derive(Clone, Debug)]
#[must_use = "options open nothing by themselves"]
pub struct SqliteOptions {
    place: Place,
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
            place: Place {
                path,
                group_access: false,
                unrecovered: false,
                busy: BUSY,
            },
            creation: Creation::IfMissing,
            poll: POLL,
        }
    }

    pub(super) fn into_place(self) -> Place {
        self.place
    }

    /// Refuses to create the file.
    pub const fn must_exist(mut self) -> Self {
        self.creation = Creation::Never;
        self
    }

    /// Refuses to open a file that exists.
    pub const fn must_be_new(mut self) -> Self {
        self.creation = Creation::Always;
        self
    }

    /// Accepts a file that its group may read or change. A file that others may read or change is refused.
    pub const fn allow_group_access(mut self) -> Self {
        self.place.group_access = true;
        self
    }

    /// Accepts a file that was restored from a backup and not recovered yet, in order to recover the
    /// file. See [`SqliteStore::finish_recovery`].
    pub const fn allow_unrecovered(mut self) -> Self {
        self.place.unrecovered = true;
        self
    }

    /// Sets the time that a call waits for a lock of another process before it fails as unavailable.
    /// Defaults to five seconds; at most about 24 days.
    pub fn busy_timeout(mut self, busy: Duration) -> Self {
        self.place.busy = busy.min(LONGEST_BUSY);
        self
    }

    /// Sets the time between two checks for commits of other processes, while a caller waits for a commit.
    /// Defaults to 100 milliseconds; at least 1 millisecond.
    pub fn poll_interval(mut self, every: Duration) -> Self {
        self.poll = every.max(SHORTEST_POLL);
        self
    }

    /// Opens the file.
    ///
    /// # Errors
    ///
    /// [`OpenError`] names the reason. The file is unchanged then.
    pub async fn open(self) -> Result<SqliteStore, OpenError> {
        blocking::unblock(move || self.open_now()).await
    }

    fn open_now(mut self) -> Result<SqliteStore, OpenError> {
        let io = |path: &PathBuf, error| OpenError::io(path, error);
        // The path must not depend on a later working directory.
        let path = self.place.path.clone();
        self.place.path = std::path::absolute(&path).map_err(|error| io(&path, error))?;
        let place = &self.place;
        match (place.look()?, self.creation) {
            (Some(_), Creation::IfMissing | Creation::Never) => clear_drafts(&place.path),
            (Some(_), Creation::Always) => return Err(OpenError::Exists { path }),
            (None, Creation::Never) => return Err(OpenError::NotFound { path }),
            (None, Creation::Always) => place.create()?,
            (None, Creation::IfMissing) => match place.create() {
                // Another process created the file first.
                Err(OpenError::Exists { .. }) => {}
                created => created?,
            },
        }
        let conn = place.open()?;
        let journal = place.make_durable(&conn)?;
        place.check_recovered(&conn)?;
        tracing::info!(
            path = %place.path.display(),
            journal = journal.as_str(),
            sqlite = rusqlite::version(),
            "opened"
        );
        let pool = Arc::new(Pool::new(self.place.clone()));
        SqliteStore::start(pool, journal, self.poll).map_err(|error| io(&path, error))
    }
}
