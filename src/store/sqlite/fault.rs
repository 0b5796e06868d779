//! The internal error of the SQLite store, and its conversion into the public errors.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use super::access::is_out_of_reach;
use crate::observe::WithSources;
use crate::store::sql::{RowFault, VersionFault};
use crate::store::{StoreError, StoreErrorKind};

/// The error of one operation on the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum SqliteFault {
    #[error("{}", sql_text(.0))]
    Sql(rusqlite::Error),
    /// A commit failed in such a way that it may or may not be on disk.
    #[error("{0}")]
    Unknown(Box<SqliteFault>),
    #[error("{0}; run the integrity check, then restore a backup")]
    Corrupt(String),
    #[error(transparent)]
    Version(#[from] VersionFault),
    #[error("{0}")]
    Refused(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Open(#[from] Box<OpenError>),
    /// SQLite cannot read the node registry.
    #[error(
        "{} holds the reports of the nodes and is damaged ({what}): stop all processes of the store, and remove this \
         file and its -journal file; no receipt is then complete before the staleness bound has passed",
        path.display()
    )]
    Registry { path: PathBuf, what: String },
    /// The usage file is damaged.
    #[error(
        "{} holds the counted uses and is damaged ({what}): no key is affected; stop all processes of the store, and \
         remove this file and its -wal and -shm files, so that counting starts over",
        path.display()
    )]
    Usage { path: PathBuf, what: String },
    /// The file at the path of the usage file is not a usage file of this build.
    #[error("{} cannot be used for the counted uses: {what}", path.display())]
    NoUsage { path: PathBuf, what: String },
}

/// Formats an error of SQLite with its extended code, once.
fn sql_text(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(error, Some(message)) => {
            format!("{message} (SQLite code {})", error.extended_code)
        }
        error => error.to_string(),
    }
}

/// SQLite reads past the end of a log only if its index belongs to another log.
const REMOVED_LOG: &str = "a process uses a -wal file of the store that was removed: put the right file back if it was \
                           replaced, stop all processes of the store, and start them again";

impl From<rusqlite::Error> for SqliteFault {
    fn from(error: rusqlite::Error) -> Self {
        let short = rusqlite::ffi::SQLITE_IOERR_SHORT_READ;
        if error
            .sqlite_error()
            .is_some_and(|error| error.extended_code == short)
        {
            return Self::Refused(REMOVED_LOG);
        }
        Self::Sql(match error {
            // All statements are right for undamaged tables. Their text helps no operator.
            rusqlite::Error::SqlInputError { msg, .. } => undefined(&msg),
            rusqlite::Error::SqliteFailure(error, Some(text))
                if error.extended_code == rusqlite::ffi::SQLITE_ERROR
                    && text.starts_with("no such") =>
            {
                undefined(&text)
            }
            // The file format of a header that is damaged: SQLite itself has written 4 since 2006.
            rusqlite::Error::SqliteFailure(_, Some(text)) if text == "unsupported file format" => {
                damaged("its header is damaged".to_owned())
            }
            rusqlite::Error::SqliteFailure(error, _) if error.code == ErrorCode::DatabaseBusy => {
                let message =
                    "another process has locked the file: wait until it has finished, or stop it";
                rusqlite::Error::SqliteFailure(error, Some(message.to_owned()))
            }
            // The text of SQLite may be the whole definition of a table.
            rusqlite::Error::SqliteFailure(error, _)
                if error.code == ErrorCode::DatabaseCorrupt =>
            {
                damaged("a page is damaged".to_owned())
            }
            rusqlite::Error::SqliteFailure(error, _) if error.code == ErrorCode::NotADatabase => {
                rusqlite::Error::SqliteFailure(error, Some("its header is damaged".to_owned()))
            }
            rusqlite::Error::SqliteFailure(error, _)
                if error.code == ErrorCode::DiskFull
                    || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE =>
            {
                let message = "database or disk is full: free space on the disk of the file";
                rusqlite::Error::SqliteFailure(error, Some(message.to_owned()))
            }
            error => error,
        })
    }
}

fn damaged(what: String) -> rusqlite::Error {
    let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(error, Some(what))
}

/// The error of a statement that names a table, a column or an index that the file lacks.
fn undefined(what: &str) -> rusqlite::Error {
    damaged(format!(
        "a definition of a table or an index is damaged: {what}"
    ))
}

impl From<OpenError> for SqliteFault {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}

impl From<RowFault> for SqliteFault {
    fn from(fault: RowFault) -> Self {
        match fault {
            RowFault::Corrupt(what) => Self::Corrupt(what),
            RowFault::Refused(why) => Self::Refused(why),
        }
    }
}

impl SqliteFault {
    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sql(error) => error.sqlite_error_code(),
            _ => None,
        }
    }

    pub(super) fn is_corrupt(&self) -> bool {
        // Each statement checks what it writes. So only a file that contradicts itself violates a constraint.
        let damaged = [
            ErrorCode::ConstraintViolation,
            ErrorCode::DatabaseCorrupt,
            ErrorCode::NotADatabase,
        ];
        let mistyped = matches!(
            self,
            Self::Sql(
                rusqlite::Error::InvalidColumnType(..)
                    | rusqlite::Error::FromSqlConversionFailure(..)
                    | rusqlite::Error::IntegralValueOutOfRange(..)
                    | rusqlite::Error::Utf8Error(..)
            )
        );
        let damage = self.code().is_some_and(|code| damaged.contains(&code));
        let opening =
            matches!(self, Self::Open(error) if matches!(**error, OpenError::Corrupt { .. }));
        let named = matches!(
            self,
            Self::Corrupt(_) | Self::Registry { .. } | Self::Usage { .. }
        );
        damage || mistyped || opening || named
    }

    /// Adds the path to the error of a node registry, and the way out if SQLite cannot read a page or the tables'
    /// definitions.
    pub(super) fn of_registry(self, path: &Path) -> Self {
        let malformed = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
        let what = match &self {
            Self::Open(error) => match &**error {
                OpenError::Corrupt { what, .. } => what.clone(),
                _ => return self,
            },
            Self::Sql(error) if self.code().is_some_and(|code| malformed.contains(&code)) => {
                error.to_string()
            }
            Self::Sql(_) if !self.is_full() => return OpenError::of(path, self).into(),
            _ => return self,
        };
        let path = path.to_owned();
        Self::Registry { path, what }
    }

    /// Adds the path to the error of a usage file, and the way out if the file or one of its rows is damaged.
    pub(super) fn of_usage(self, path: &Path) -> Self {
        let located = match self {
            Self::Corrupt(what) => {
                let path = path.to_owned();
                return Self::Usage { path, what };
            }
            fault => fault.of_registry(path),
        };
        match located {
            Self::Registry { path, what } => Self::Usage { path, what },
            Self::Open(error) => match *error {
                OpenError::Corrupt { path, what } => Self::Usage { path, what },
                OpenError::Foreign { path, what } => Self::NoUsage {
                    path,
                    what: format!("{what}: move it away"),
                },
                error => error.into(),
            },
            fault => fault,
        }
    }

    /// Returns `true` if the file may not be used, so that retries fail until an operator acts.
    fn is_denied(&self) -> bool {
        match self {
            Self::Io(error) => is_denied(error),
            Self::Open(error) => matches!(
                **error,
                OpenError::Denied { .. }
                    | OpenError::Leftover { .. }
                    | OpenError::ReadableByOthers { .. }
                    | OpenError::SchemaVersion { .. }
            ),
            Self::Version(_) | Self::NoUsage { .. } => true,
            _ => matches!(
                self.code(),
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied)
            ),
        }
    }

    /// Returns whether a part of the file is damaged, or lies in a part of the disk that cannot be read.
    pub(super) fn is_damage(&self) -> bool {
        self.is_corrupt() || self.code() == Some(ErrorCode::SystemIoFailure)
    }

    /// Returns whether the disk was full. Nothing was written then.
    pub(super) fn is_full(&self) -> bool {
        // Without space for the index of the log, SQLite reports an error of the disk.
        let no_index = matches!(
            self,
            Self::Sql(rusqlite::Error::SqliteFailure(error, _))
                if error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
        );
        let opening = matches!(self, Self::Open(error) if error.is_full());
        no_index || opening || self.code() == Some(ErrorCode::DiskFull)
    }

    /// Returns whether another connection held a lock for longer than the caller waits.
    pub(super) fn is_busy(&self) -> bool {
        let busy = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked];
        self.code().is_some_and(|code| busy.contains(&code))
    }

    /// Returns whether the read was ended because it made the log too long.
    pub(super) fn is_interrupt(&self) -> bool {
        self.code() == Some(ErrorCode::OperationInterrupted)
    }

    /// Returns whether a file could not be opened, such as the log of a file in WAL mode.
    pub(super) fn is_cannot_open(&self) -> bool {
        let read_only_folder = matches!(
            self,
            Self::Sql(rusqlite::Error::SqliteFailure(error, _))
                if error.extended_code == rusqlite::ffi::SQLITE_READONLY_DIRECTORY
        );
        read_only_folder || self.code() == Some(ErrorCode::CannotOpen)
    }

    pub(super) fn is_no_database(&self) -> bool {
        self.code() == Some(ErrorCode::NotADatabase)
    }

    /// Classifies the error of a failed `COMMIT`. After an error in `certain`, the transaction is rolled
    /// back. After any other error the outcome is unknown: the log may hold the whole transaction without a
    /// completed fsync.
    pub(super) fn of_commit(error: rusqlite::Error) -> Self {
        let fault = Self::from(error);
        let certain = [
            ErrorCode::DatabaseBusy,
            ErrorCode::DatabaseLocked,
            ErrorCode::DiskFull,
        ];
        match fault.code().is_some_and(|code| certain.contains(&code)) {
            true => fault,
            false => Self::Unknown(Box::new(fault)),
        }
    }

    pub(super) fn into_error(self, doing: &'static str) -> StoreError {
        let kind = match self {
            Self::Unknown(_) => StoreErrorKind::Indeterminate,
            _ if self.is_corrupt() => StoreErrorKind::Corrupt,
            _ if self.is_denied() => StoreErrorKind::Denied,
            _ => StoreErrorKind::Unavailable,
        };
        let error = StoreError::new(kind, doing);
        match self {
            // Lets a caller know the cause by its type.
            Self::Io(source) => error.with_source(source),
            fault => error.with_source(fault),
        }
    }
}

/// Returns whether the operating system denies access, so that the next attempt would fail too.
fn is_denied(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// The reason why a file could not be opened as a store.
///
/// `Debug` prints the message with its causes, because Rust prints an error that `main` returns with `Debug`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file does not exist, and the options do not allow creating it.
    #[error("{} does not exist: name the store's file, or create a store with `keyctl init`", path.display())]
    NotFound {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file exists, but the options require that the file is new.
    #[error("{} exists already", path.display())]
    Exists {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file was open, and then moved or removed.
    #[error(
        "{} was moved or removed while it was open: move it back with its -wal file, or restart with the \
         new path",
        path.display()
    )]
    Gone {
        /// The path at which the file was opened.
        path: PathBuf,
    },
    /// The path is not a regular file, but a directory, a symbolic link or a device.
    #[error("{} is {what}, not a file: name the file itself", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// The kind of the object at the path, such as `a directory`.
        what: &'static str,
    },
    /// Users other than the owner may read or change the file. A service may accept the file's group with
    /// [`allow_group_access`](super::SqliteOptions::allow_group_access).
    #[error(
        "{} may be read or changed by others (mode {mode:03o}): run chmod 600 {}",
        path.display(),
        path.display()
    )]
    ReadableByOthers {
        /// The path of the file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// A journal or a usage file exists next to the path, but the file itself does not. SQLite would apply the
    /// journal to a new file, and a new store would take the counts for its own. Once a usage file is moved away,
    /// counts begin anew.
    #[error(
        "{} is left from another store: put its store back, or move it away (if it is a -usage file, counts then \
         begin anew)",
        path.display()
    )]
    Leftover {
        /// The path of the journal or the usage file.
        path: PathBuf,
    },
    /// The file is not a keyward store.
    #[error("{} is not a keyward store: {what}", path.display())]
    Foreign {
        /// The path of the file.
        path: PathBuf,
        /// The reason.
        what: &'static str,
    },
    /// The file is damaged.
    #[error(
        "{} is corrupt ({what}): restore a backup, or copy what is whole with `keyctl salvage`",
        path.display()
    )]
    Corrupt {
        /// The path of the file.
        path: PathBuf,
        /// The damage that was found.
        what: String,
    },
    /// The file is damaged in such a way that [`salvage`](super::SqliteStore::salvage) saves nothing.
    #[error("{} is corrupt, and nothing can be salvaged from it ({what}): restore a backup", path.display())]
    Lost {
        /// The path of the file.
        path: PathBuf,
        /// The damage that was found.
        what: String,
    },
    /// The file's tables are not for this build. The file is unchanged.
    #[error(
        "{}: {}",
        path.display(),
        VersionFault { found: *found, oldest: *oldest, supported: *supported }
    )]
    SchemaVersion {
        /// The path of the file.
        path: PathBuf,
        /// The version of the file's tables.
        found: i32,
        /// The version of the oldest build that may use the tables.
        oldest: i32,
        /// The version of this build.
        supported: i32,
    },
    /// The file is in WAL mode and in use by another process, and the linked SQLite is not safe in that mode.
    #[error(
        "{} is in WAL mode and in use, and SQLite {linked} can corrupt such a file (fixed in 3.51.3): \
         close the other process, or link a newer SQLite",
        path.display()
    )]
    UnsafeWal {
        /// The path of the file.
        path: PathBuf,
        /// The version of the linked SQLite.
        linked: &'static str,
    },
    /// The file is a backup, or was restored and is not recovered yet. Keys that were revoked after the
    /// backup would work again.
    ///
    /// To recover in code, [restore](super::SqliteStore::restore) the backup, open it with
    /// [`allow_unrecovered`](super::SqliteOptions::allow_unrecovered), call
    /// [`Keyward::recover`](crate::Keyward::recover), and then
    /// [`finish_recovery`](super::SqliteStore::finish_recovery).
    #[error(
        "{} is a backup, or restored from one and not recovered yet: restore a backup with `keyctl restore`, \
         and recover a restored file with `keyctl recover`",
        path.display()
    )]
    Unrecovered {
        /// The path of the file.
        path: PathBuf,
    },
    /// The disk lacks the space for a new file and its reserve. Nothing is created.
    #[error(
        "the disk of {} has less than {} MiB of free space, which a new store needs: free space, or name a file on \
         another disk",
        path.display(),
        needed >> 20
    )]
    NoSpace {
        /// The path of the file.
        path: PathBuf,
        /// The free space that a new store needs, in bytes.
        needed: u64,
    },
    /// Another process held a lock for longer than the [busy timeout](super::SqliteOptions::busy_timeout).
    #[error("{} is locked by another process: wait until it has finished, or stop it", path.display())]
    Locked {
        /// The path of the file.
        path: PathBuf,
    },
    /// The operating system denies access to the file, its journal or its folder. A retry fails until an operator
    /// acts.
    #[error("may not read and write {}, its -wal and -shm files, and its folder", path.display())]
    Denied {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file could not be read or written.
    #[error("cannot open {}", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl fmt::Debug for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&WithSources(self), f)
    }
}

impl OpenError {
    /// Replaces the advice to salvage the file, for a salvage that failed.
    pub(super) fn unsalvageable(self) -> Self {
        match self {
            Self::Corrupt { path, what } => Self::Lost { path, what },
            error => error,
        }
    }

    /// Returns whether the disk had no space for the files that an open store needs.
    fn is_full(&self) -> bool {
        let fault = std::error::Error::source(self).and_then(|source| source.downcast_ref());
        fault.is_some_and(SqliteFault::is_full)
    }

    pub(super) fn io(
        path: impl Into<PathBuf>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let (path, source) = (path.into(), source.into());
        let (io, sqlite) = (source.downcast_ref(), source.downcast_ref::<SqliteFault>());
        match io.is_some_and(is_denied) || sqlite.is_some_and(SqliteFault::is_denied) {
            true => Self::Denied { path, source },
            false => Self::Io { path, source },
        }
    }

    pub(super) fn of(path: impl Into<PathBuf>, fault: SqliteFault) -> Self {
        let path = path.into();
        match fault {
            SqliteFault::Open(error) => *error,
            SqliteFault::Version(VersionFault { found: 0, .. }) => Self::Corrupt {
                path,
                what: "its schema version was reset to 0".to_owned(),
            },
            SqliteFault::Version(VersionFault {
                found,
                oldest,
                supported,
            }) => Self::SchemaVersion {
                path,
                found,
                oldest,
                supported,
            },
            SqliteFault::Corrupt(what) => Self::Corrupt { path, what },
            fault if fault.is_corrupt() => Self::Corrupt {
                path,
                what: fault.to_string(),
            },
            fault if fault.is_busy() => Self::Locked { path },
            // SQLite does not return the cause.
            SqliteFault::Sql(error)
                if error.sqlite_error_code() == Some(ErrorCode::CannotOpen)
                    && is_out_of_reach(&path) =>
            {
                Self::Denied {
                    path,
                    source: SqliteFault::Sql(error).into(),
                }
            }
            fault => Self::io(path, fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    #[test]
    fn a_full_disk_names_the_next_step_and_is_known_by_its_code() {
        let conn = Connection::open_in_memory().unwrap();
        let full = "PRAGMA max_page_count = 1; CREATE TABLE t (x)";
        let fault = SqliteFault::from(conn.execute_batch(full).unwrap_err());
        assert_eq!(fault.code(), Some(ErrorCode::DiskFull));
        assert!(fault.to_string().contains("free space"), "{fault}");
    }

    #[test]
    fn a_file_that_may_not_be_used_is_denied_and_a_locked_one_is_unavailable() {
        let of = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        let io = |kind: io::ErrorKind| io::Error::from(kind);
        let path = || PathBuf::from("keys.db");
        for (fault, kind) in [
            (
                SqliteFault::Sql(of(rusqlite::ffi::SQLITE_READONLY)),
                StoreErrorKind::Denied,
            ),
            (
                SqliteFault::Sql(of(rusqlite::ffi::SQLITE_BUSY)),
                StoreErrorKind::Unavailable,
            ),
            (
                SqliteFault::Io(io(io::ErrorKind::PermissionDenied)),
                StoreErrorKind::Denied,
            ),
            (
                OpenError::io(path(), io(io::ErrorKind::PermissionDenied)).into(),
                StoreErrorKind::Denied,
            ),
            (
                OpenError::of(path(), SqliteFault::Sql(of(rusqlite::ffi::SQLITE_READONLY))).into(),
                StoreErrorKind::Denied,
            ),
            (
                OpenError::io(path(), io(io::ErrorKind::StorageFull)).into(),
                StoreErrorKind::Unavailable,
            ),
        ] {
            let text = format!("{fault:?}");
            assert_eq!(fault.into_error("reading").kind(), kind, "{text}");
        }
    }
}
