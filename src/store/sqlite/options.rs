//! How a file is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::SqliteStore;
use super::fault::{Fault, OpenError};
use super::file::{Place, clear_drafts};
use super::pool::Pool;
use super::schema;
use crate::store::rows::is_copy;

/// How long a lock of another process is waited for. A judgement: a checkpoint of a burst takes
/// less.
const BUSY: Duration = Duration::from_secs(5);

/// How often the file is looked at for commits of other processes, at a microsecond each.
const POLL: Duration = Duration::from_millis(100);

/// The longest that SQLite can be told to wait: some 24 days.
const LONGEST_BUSY: Duration = Duration::from_millis(i32::MAX as u64);

/// What is slept at least between two looks at the file, or the watching thread would do nothing else.
const SHORTEST_POLL: Duration = Duration::from_millis(1);

/// How a file is opened. See [`SqliteStore::options`].
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
                copy_target: false,
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

    /// Accepts a file whose mode lets its group, or others, read or change it.
    pub const fn allow_group_access(mut self) -> Self {
        self.place.group_access = true;
        self
    }

    /// Accepts a file that was restored from a backup and not recovered yet, in order to recover
    /// it; see [`SqliteStore::finish_recovery`].
    pub const fn allow_unrecovered(mut self) -> Self {
        self.place.unrecovered = true;
        self
    }

    /// Opens a file that another store is to be copied into, or was in part; see
    /// [`transfer`](crate::store::transfer). Until the copy is done it serves nothing else.
    pub const fn copy_target(mut self) -> Self {
        self.place.copy_target = true;
        self
    }

    /// Sets how long a lock of another process is waited for, before a call fails as unavailable.
    /// Defaults to five seconds; at most some 24 days.
    pub fn busy_timeout(mut self, busy: Duration) -> Self {
        self.place.busy = busy.min(LONGEST_BUSY);
        self
    }

    /// Sets how often the file is looked at for commits of other processes while somebody waits for
    /// one. Defaults to 100 milliseconds; at least one.
    pub fn poll_interval(mut self, every: Duration) -> Self {
        self.poll = every.max(SHORTEST_POLL);
        self
    }

    /// Opens the file.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what stands in the way; the file is as it was then.
    pub async fn open(self) -> Result<SqliteStore, OpenError> {
        blocking::unblock(move || self.open_now()).await
    }

    fn open_now(mut self) -> Result<SqliteStore, OpenError> {
        let io = |path: &PathBuf, error| OpenError::io(path, error);
        // A path that does not depend on the working directory later on.
        let path = self.place.path.clone();
        self.place.path = std::path::absolute(&path).map_err(|error| io(&path, error))?;
        let place = &self.place;
        match (place.look()?, self.creation) {
            (Some(_), Creation::IfMissing | Creation::Never) => clear_drafts(&place.path),
            (Some(_), Creation::Always) => return Err(OpenError::Exists { path }),
            (None, Creation::Never) => return Err(OpenError::NotFound { path }),
            (None, Creation::Always) => place.create()?,
            (None, Creation::IfMissing) => match place.create() {
                // Another process was faster.
                Err(OpenError::Exists { .. }) => {}
                created => created?,
            },
        }
        let mut conn = place.open()?;
        let fail = |fault: Fault| OpenError::of(&path, fault);
        let journal = place.make_durable(&conn)?;
        if !is_copy(schema::version(&conn).map_err(fail)?) {
            schema::migrate(&mut conn).map_err(fail)?;
            place.check_recovered(&conn)?;
        }
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
