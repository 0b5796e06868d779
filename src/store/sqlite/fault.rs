//! What can go wrong in the file, before it is told as a [`StoreError`] or an [`OpenError`].

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use super::schema::VERSION;
use crate::store::rows::{RowFault, is_copy};
use crate::store::{StoreError, StoreErrorKind};

/// A fault in the course of one transaction.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    #[error("{0}; run the integrity check, then restore a backup")]
    Corrupt(String),
    #[error("the file's schema became version {found}, this build knows {VERSION}: update it")]
    Version { found: i32 },
    #[error("another store is being copied into the file: copy again to finish that")]
    Copying,
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
    pub(super) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }

    /// What a schema's version means that is not this build's.
    pub(super) const fn version(found: i32) -> Self {
        match is_copy(found) {
            true => Self::Copying,
            false => Self::Version { found },
        }
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

    /// Whether a transaction that failed to commit was certainly rolled back. After anything else the
    /// log may hold all of it, not known to be on disk: what is found after a crash tells.
    pub(super) fn certainly_rolled_back(&self) -> bool {
        let certain = [
            ErrorCode::DatabaseBusy,
            ErrorCode::DatabaseLocked,
            ErrorCode::DiskFull,
        ];
        self.code().is_some_and(|code| certain.contains(&code))
    }

    pub(super) fn told(self, doing: &'static str) -> StoreError {
        let kind = if self.is_corrupt() {
            StoreErrorKind::Corrupt
        } else {
            StoreErrorKind::Unavailable
        };
        StoreError::new(kind, doing).with_source(self)
    }
}

/// Why a file could not be opened as a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such file, and it was not to be created.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// Which file.
        path: PathBuf,
    },
    /// There is a file already, and a new one was to be created.
    #[error("{} exists already", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// A directory, a symbolic link or a device stands where the file should.
    #[error("{} is {what}, not a file: name the file itself", path.display())]
    NotAFile {
        /// Which path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Others may read or change the file.
    #[error(
        "{} may be read or changed by others (mode {mode:03o}): `chmod 600` it, or allow that when opening",
        path.display()
    )]
    ReadableByOthers {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A journal lies beside a file that does not exist: it would be applied to the new one.
    #[error("{} is left from another store: move it away, or put its store back", path.display())]
    Leftover {
        /// The journal.
        path: PathBuf,
    },
    /// The file is no store of ours.
    #[error("{} is not a keyward store: {what}", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// The file is damaged.
    #[error("{} is corrupt ({what}): restore a backup", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What shows it.
        what: String,
    },
    /// A newer version of this crate made the file. It is left as it is.
    #[error(
        "{} has schema version {found}, this build knows up to {supported}: update it",
        path.display()
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: i32,
        /// The newest version that this build knows.
        supported: i32,
    },
    /// The linked SQLite must not share a file in WAL mode, and another process holds this one.
    #[error(
        "{} is in WAL mode and in use, and SQLite {linked} can corrupt such a file (fixed in 3.51.3): \
         close the other process, or link a newer SQLite",
        path.display()
    )]
    UnsafeWal {
        /// Which file.
        path: PathBuf,
        /// The linked SQLite.
        linked: &'static str,
    },
    /// The file is a backup, or was restored from one: what was revoked since would work again.
    #[error(
        "{} is a backup, or restored from one and not recovered yet: restore it, open it with \
         `allow_unrecovered`, recover it, then call `finish_recovery`",
        path.display()
    )]
    Unrecovered {
        /// Which file.
        path: PathBuf,
    },
    /// Another store is being copied into the file, or was until that was interrupted.
    #[error(
        "{} holds an unfinished copy of another store: copy again to finish it, or remove the file",
        path.display()
    )]
    Copying {
        /// Which file.
        path: PathBuf,
    },
    /// Another process held the file for too long.
    #[error("{} is locked by another process", path.display())]
    Locked {
        /// Which file.
        path: PathBuf,
    },
    /// The file could not be read or written.
    #[error("cannot open {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
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
            Fault::Version { found } => Self::Newer {
                path,
                found,
                supported: VERSION,
            },
            Fault::Copying => Self::Copying { path },
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
