//! What can go wrong at the database, before it is told as a [`StoreError`] or a [`ConnectError`].

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

use super::schema::VERSION;
use crate::store::rows::{RowFault, is_copy};
use crate::store::{StoreError, StoreErrorKind};

/// A fault in the course of one transaction.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The server refused a statement. Its details may quote rows, so that they are left out.
    #[error("{message} ({})", code.code())]
    Server { code: SqlState, message: String },
    /// The connection failed, or what came over it could not be read.
    #[error("connection failed: {0}")]
    Lost(String),
    #[error(transparent)]
    Exhausted(PoolExhausted),
    #[error("the server did not answer in time")]
    Late,
    /// A commit went out, and what became of it is not known.
    #[error("{0}")]
    Unknown(Box<Fault>),
    #[error("{0}; check the tables, then restore a backup")]
    Corrupt(String),
    #[error("{0}")]
    Refused(&'static str),
    #[error("the schema became version {found}, this build knows {VERSION}: update it")]
    Version { found: i32 },
    #[error("another store is being copied into the schema: copy again to finish that")]
    Copying,
    #[error("there are no tables")]
    Missing,
    #[error("the server is a standby: reads must go to the primary")]
    Standby,
    #[error("no synchronous standby is set: `synchronous_standby_names` is empty")]
    NoStandby,
    #[error("the synchronous standby did not acknowledge a heartbeat")]
    Unacknowledged,
    #[error("the server is not the one whose synchronous standby acknowledged a heartbeat")]
    Elsewhere,
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(refused) = error.as_db_error() {
            return Self::Server {
                code: refused.code().clone(),
                message: refused.message().to_owned(),
            };
        }
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::Lost(message)
    }
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            PoolError::Timeout(TimeoutType::Wait) => Self::Exhausted(PoolExhausted),
            PoolError::Timeout(_) => Self::Late,
            PoolError::Closed => Self::Refused("the pool is closed"),
            PoolError::NoRuntimeSpecified => Self::Refused("the pool has a timeout and no runtime"),
            PoolError::PostCreateHook(_) => Self::Refused("the pool's hook refused a connection"),
        }
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

    pub(super) const fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Server { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether the server rolled a transaction back because of another one: trying again may do.
    pub(super) fn is_contention(&self) -> bool {
        let contention = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        self.code().is_some_and(|code| contention.contains(code))
    }

    /// Whether a transaction whose `COMMIT` failed so was certainly rolled back. Anything else may
    /// have happened while the server waited for a disk or for another server.
    fn certainly_rolled_back(&self) -> bool {
        // "40003": the server itself does not know.
        let known = |code: &SqlState| code.code() != "40003";
        self.code().is_some_and(|code| {
            known(code) && (code.code().starts_with("40") || code.code().starts_with("23"))
        })
    }

    /// What a failed `COMMIT` means.
    pub(super) fn of_commit(self) -> Self {
        match self.certainly_rolled_back() {
            true => self,
            false => Self::Unknown(Box::new(self)),
        }
    }

    /// Whether it lies in what was to be written: what came along with it may go through without it.
    pub(super) fn is_of_one_commit(&self) -> bool {
        match self {
            Self::Corrupt(_) | Self::Refused(_) => true,
            Self::Server { code, .. } => ["22", "23", "54"]
                .iter()
                .any(|class| code.code().starts_with(class)),
            _ => false,
        }
    }

    fn is_corrupt(&self) -> bool {
        let damage = [SqlState::DATA_CORRUPTED, SqlState::INDEX_CORRUPTED];
        matches!(self, Self::Corrupt(_)) || self.code().is_some_and(|code| damage.contains(code))
    }

    pub(super) fn told(self, doing: &'static str) -> StoreError {
        let kind = if self.is_corrupt() {
            StoreErrorKind::Corrupt
        } else if matches!(self, Self::Unknown(_)) {
            StoreErrorKind::Indeterminate
        } else {
            StoreErrorKind::Unavailable
        };
        let error = StoreError::new(kind, doing);
        match self {
            Self::Exhausted(exhausted) => error.with_source(exhausted),
            fault => error.with_source(fault),
        }
    }
}

/// All connections were in use for as long as a call waits for one: they are too few, or something holds
/// them. The source of a [`StoreError`] that is `Unavailable`; nothing was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no connection became free in time")]
#[non_exhaustive]
pub struct PoolExhausted;

/// Why a database could not be used as a store. Never holds the URL or a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL or connection string cannot be read. What of it is left out, since it may be a password.
    #[error("the connection URL cannot be read")]
    Url,
    /// The connection is to be encrypted, and a server that is reached through a socket file does not
    /// encrypt.
    #[error("the connection would not be encrypted: there is no TLS over a socket file")]
    Unencrypted,
    /// The certificates to trust, or the one to show, cannot be used: a file cannot be read, say, or the
    /// system trusts nobody.
    #[error("the certificates to connect with cannot be used")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The name of the schema is not made of 1 to 48 lower-case letters, digits and underscores, the
    /// first no digit.
    #[error("a schema is named by 1 to 48 lower-case letters, digits and underscores")]
    Schema,
    /// There is no tokio runtime here.
    #[error("a PostgreSQL store needs a tokio runtime: connect within one")]
    NoRuntime,
    /// A newer version of this crate made the schema. It is left as it is.
    #[error("the schema has version {found}, this build knows up to {supported}: update it")]
    Newer {
        /// Its version.
        found: i32,
        /// The newest version that this build knows.
        supported: i32,
    },
    /// The server is a standby. Reads must go to the primary, or they tell of the past.
    #[error("the server is a standby: connect to the primary")]
    Standby,
    /// The tables were restored from a backup and not recovered yet: what was revoked since would work
    /// again.
    #[error(
        "the store was restored from a backup: connect with `allow_unrecovered`, recover it, then call \
         `finish_recovery`"
    )]
    Unrecovered,
    /// Strict mode needs a synchronous standby, and the server waits for none.
    #[error("strict mode needs a synchronous standby: `synchronous_standby_names` is empty")]
    NoStandby,
    /// The server waits for a synchronous standby that does not answer in time: it may be down, or have
    /// become the primary.
    #[error("the synchronous standby did not acknowledge a heartbeat")]
    Unacknowledged,
    /// Strict mode needs a URL to connect to: the server's warnings are not seen on connections of a pool
    /// that was handed over.
    #[error("strict mode needs a URL, not a pool")]
    StrictPool,
    /// Another store is being copied into the schema, or was until that was interrupted.
    #[error(
        "the schema holds an unfinished copy of another store: copy again to finish it, or drop the schema"
    )]
    Copying,
    /// The schema holds no store, and none was to be set up.
    #[error("the schema holds no store")]
    NotFound,
    /// The database could not be reached, or refused.
    #[error("cannot use the database")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<Fault> for ConnectError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Version { found } => Self::Newer {
                found,
                supported: VERSION,
            },
            Fault::Standby => Self::Standby,
            Fault::NoStandby => Self::NoStandby,
            Fault::Unacknowledged => Self::Unacknowledged,
            Fault::Copying => Self::Copying,
            Fault::Missing => Self::NotFound,
            fault => Self::Database(fault.into()),
        }
    }
}
