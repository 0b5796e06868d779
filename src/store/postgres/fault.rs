//! The faults of the database, and the public errors that they become.

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

use crate::store::sql::RowFault;
use crate::store::{StoreError, StoreErrorKind};

/// A fault in the course of one transaction.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The server refused a statement. The server's details are left out, since they may quote rows.
    #[error("{message} ({})", code.code())]
    Server { code: SqlState, message: String },
    /// The connection failed, or an answer could not be decoded.
    #[error("connection failed: {0}")]
    Lost(String),
    #[error(transparent)]
    Exhausted(PoolExhausted),
    #[error("the server did not answer in time")]
    Late,
    /// A commit was sent, and its outcome is unknown.
    #[error("{0}")]
    Unknown(Box<Fault>),
    #[error("{0}; check the tables, then restore a backup")]
    Corrupt(String),
    #[error("{0}")]
    Refused(&'static str),
    #[error("the schema has version {found}, this build knows version {supported}")]
    Version { found: i32, supported: i32 },
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

    /// Returns the fault of a schema whose version is not the `supported` one.
    pub(super) const fn version(found: i32, supported: i32) -> Self {
        Self::Version { found, supported }
    }

    pub(super) const fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Server { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Returns whether the server rolled back this transaction because of another transaction: a retry
    /// may succeed.
    pub(super) fn is_contention(&self) -> bool {
        let contention = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        self.code().is_some_and(|code| contention.contains(code))
    }

    /// Returns whether a transaction was certainly rolled back if its `COMMIT` failed with this fault.
    /// After any other fault the transaction may be committed: the server may have waited for a disk or
    /// for a standby.
    fn certainly_rolled_back(&self) -> bool {
        // "40003": statement completion unknown.
        let known = |code: &SqlState| code.code() != "40003";
        self.code().is_some_and(|code| {
            known(code) && (code.code().starts_with("40") || code.code().starts_with("23"))
        })
    }

    /// Converts the fault of a `COMMIT` to `Fault::Unknown`, unless the transaction was certainly
    /// rolled back.
    pub(super) fn of_commit(self) -> Self {
        match self.certainly_rolled_back() {
            true => self,
            false => Self::Unknown(Box::new(self)),
        }
    }

    /// Returns whether a single commit caused the fault. The other commits of its group may succeed
    /// alone.
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

    pub(super) fn into_error(self, doing: &'static str) -> StoreError {
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

/// All connections stayed in use until the connection timeout: the pool is too small, or a caller holds
/// a connection. The source of a [`StoreError`] that is `Unavailable`; nothing was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no connection became free in time")]
#[non_exhaustive]
pub struct PoolExhausted;

/// The reason why a database could not be used as a store. Never holds the URL or a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL or connection string cannot be parsed. The part at fault is left out, since it may be a
    /// password.
    #[error("the connection URL cannot be read")]
    Url,
    /// The connection must be encrypted, and there is no encryption over a socket file.
    #[error("the connection would not be encrypted: there is no TLS over a socket file")]
    Unencrypted,
    /// The trusted certificates or the client certificate cannot be used. For example, a file cannot be
    /// read, or the system trusts no authority.
    #[error("the certificates to connect with cannot be used")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The name of the schema is not 1 to 48 lower-case letters, digits and underscores, or starts with
    /// a digit.
    #[error("a schema is named by 1 to 48 lower-case letters, digits and underscores")]
    Schema,
    /// The caller is not in a tokio runtime.
    #[error("a PostgreSQL store needs a tokio runtime: connect within one")]
    NoRuntime,
    /// Another version of this crate created the tables. The tables are left unchanged.
    #[error(
        "the schema has version {found}, this build knows version {supported}: use a build that knows it"
    )]
    SchemaVersion {
        /// The version of the tables.
        found: i32,
        /// The version that this build knows.
        supported: i32,
    },
    /// The server is a standby. Reads must go to the primary, since a standby may return old rows.
    #[error("the server is a standby: connect to the primary")]
    Standby,
    /// The tables were restored from a backup and not recovered yet: keys that were revoked after the
    /// backup would work again.
    #[error(
        "the store was restored from a backup: connect with `allow_unrecovered`, recover it, then call \
         `finish_recovery`"
    )]
    Unrecovered,
    /// Strict mode needs a synchronous standby, and the server has none.
    #[error("strict mode needs a synchronous standby: `synchronous_standby_names` is empty")]
    NoStandby,
    /// The synchronous standby did not answer in time: it may be down, or have become the primary.
    #[error("the synchronous standby did not acknowledge a heartbeat")]
    Unacknowledged,
    /// Strict mode needs a URL: connections of a host's pool hide the server's warnings.
    #[error("strict mode needs a URL, not a pool")]
    StrictPool,
    /// The schema holds no store, and creating one was not allowed.
    #[error("the schema holds no store")]
    NotFound,
    /// The database could not be reached, or refused a statement.
    #[error("cannot use the database")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<Fault> for ConnectError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Version { found, supported } => Self::SchemaVersion { found, supported },
            Fault::Standby => Self::Standby,
            Fault::NoStandby => Self::NoStandby,
            Fault::Unacknowledged => Self::Unacknowledged,
            Fault::Missing => Self::NotFound,
            fault => Self::Database(fault.into()),
        }
    }
}
