//! The faults of the file, and the public errors that they become.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use crate::store::sql::RowFault;
use crate::store::{StoreError, StoreErrorKind};

/// A fault in the course of one transaction.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    /// A commit failed, and may or may not be on disk.
    #[error("{0}")]
    Unknown(Box<Fault>),
    #[error("{0}; run the integrity check, then restore a backup")]
    Corrupt(String),
    #[error("the file's schema has version {found}, this build knows version {supported}")]
    Version { found: i32, supported: i32 },
    #[error("{0}")]
    Refused(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Open(#[from] Box<OpenError>),
}

impl From<OpenError> for Fault {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}

impl From<RowFault> for Fault {
    fn from(fault: RowFault) -> Self {
        match fault {
            RowFault::Corrupt(what) => Self::Corrupt(what),
            RowFault::Refused(why) => Self::Refused(why),
        }
    }
}

impl Fault {
    /// Returns the fault of a schema whose version is not the `supported` one.
    pub(super) const fn version(found: i32, supported: i32) -> Self {
        Self::Version { found, supported }
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sql(error) => error.sqlite_error_code(),
            _ => None,
        }
    }

    pub(super) fn is_corrupt(&self) -> bool {
        let damaged = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
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
        damage || mistyped || opening || matches!(self, Self::Corrupt(_))
    }

    pub(super) fn is_no_database(&self) -> bool {
        self.code() == Some(ErrorCode::NotADatabase)
    }

    /// Returns the fault of a failed `COMMIT`. Some errors mean that the transaction was certainly rolled
    /// back. After any other error the log may hold the whole transaction, without a completed fsync. Only
    /// recovery after a crash decides.
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
            _ => StoreErrorKind::Unavailable,
        };
        StoreError::new(kind, doing).with_source(self)
    }
}

/// The reason why a file could not be opened as a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file does not exist, and creating it was not allowed.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file exists, and a new one was required.
    #[error("{} exists already", path.display())]
    Exists {
        /// The path of the file.
        path: PathBuf,
    },
    /// The path is a directory, a symbolic link or a device.
    #[error("{} is {what}, not a file: name the file itself", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// The thing at the path, in words.
        what: &'static str,
    },
    /// Others may read or change the file.
    #[error(
        "{} may be read or changed by others (mode {mode:03o}): `chmod 600` it, or allow its group when opening",
        path.display()
    )]
    ReadableByOthers {
        /// The path of the file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// There is a journal at the path, but no file: SQLite would apply the journal to the new file.
    #[error("{} is left from another store: move it away, or put its store back", path.display())]
    Leftover {
        /// The path of the journal.
        path: PathBuf,
    },
    /// The file is not a keyward store.
    #[error("{} is not a keyward store: {what}", path.display())]
    Foreign {
        /// The path of the file.
        path: PathBuf,
        /// The reason, in words.
        what: &'static str,
    },
    /// The file is damaged.
    #[error("{} is corrupt ({what}): restore a backup", path.display())]
    Corrupt {
        /// The path of the file.
        path: PathBuf,
        /// The damage that was found, in words.
        what: String,
    },
    /// Another version of this crate created the file. The file is left as it is.
    #[error(
        "{} has schema version {found}, this build knows version {supported}: use a build that knows it",
        path.display()
    )]
    SchemaVersion {
        /// The path of the file.
        path: PathBuf,
        /// The version of the file's tables.
        found: i32,
        /// The version that this build knows.
        supported: i32,
    },
    /// The linked SQLite must not share a file in WAL mode, and another process has the file open.
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
    /// The file is a backup, or was restored from one: keys that were revoked after the backup would work
    /// again.
    #[error(
        "{} is a backup, or restored from one and not recovered yet: restore it, open it with \
         `allow_unrecovered`, recover it, then call `finish_recovery`",
        path.display()
    )]
    Unrecovered {
        /// The path of the file.
        path: PathBuf,
    },
    /// Another process held a lock for too long.
    #[error("{} is locked by another process", path.display())]
    Locked {
        /// The path of the file.
        path: PathBuf,
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

impl OpenError {
    pub(super) fn io(
        path: impl Into<PathBuf>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Io {
            path: path.into(),
            source: source.into(),
        }
    }

    pub(super) fn of(path: impl Into<PathBuf>, fault: Fault) -> Self {
        let path = path.into();
        match fault {
            Fault::Open(error) => *error,
            Fault::Version { found, supported } => Self::SchemaVersion {
                path,
                found,
                supported,
            },
            fault if fault.is_corrupt() => Self::Corrupt {
                path,
                what: fault.to_string(),
            },
            Fault::Sql(error)
                if matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
                ) =>
            {
                Self::Locked { path }
            }
            fault => Self::io(path, fault),
        }
    }
}
