//! The errors of database operations, and their conversion to public errors.

use std::fmt;

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

use crate::observe::WithSources;
use crate::store::sql::{RowFault, VersionFault};
use crate::store::{StoreError, StoreErrorKind};

/// The error of one transaction, before it is converted to a [`StoreError`] or a [`ConnectError`].
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum PostgresFault {
    /// The server rejected a statement. The detail field of the server's error is left out, because it may
    /// quote rows.
    #[error("{message} ({}){}", code.code(), remedy(code, message))]
    Server { code: SqlState, message: String },
    /// The connection failed, or a response could not be decoded.
    #[error("connection failed: {0}; check the server, its address and the credentials")]
    Lost(String),
    /// The server does not encrypt the connection, or its certificate is not trusted. No retry changes that.
    #[error("{0}")]
    Tls(String),
    #[error(transparent)]
    Exhausted(PoolExhausted),
    #[error("the server did not answer in time")]
    Late,
    /// No host of the URL could be used. One reason per host.
    #[error("{}", reasons(.0))]
    Hosts(Vec<HostFault>),
    /// A commit was sent, and its outcome is unknown.
    #[error("{0}")]
    Unknown(Box<PostgresFault>),
    #[error("{0}; check the tables, then restore a backup")]
    Corrupt(String),
    #[error("{0}")]
    Refused(&'static str),
    #[error(transparent)]
    Version(#[from] VersionFault),
    #[error("the schema contains no tables")]
    Missing,
    #[error("{object} belongs to the role {owner:?}")]
    Owner { object: String, owner: String },
    #[error("the table {table} has {part}")]
    Foreign { table: String, part: String },
    #[error("the server accepts no writes: it is a standby or read-only, connect to the primary")]
    Standby,
    #[error("{UNRECOVERED}")]
    Unrecovered,
    #[error("{POOLER}")]
    Pooler,
    #[error("no synchronous standby is set: `synchronous_standby_names` is empty")]
    NoStandby,
    #[error("the synchronous standby did not acknowledge a heartbeat")]
    Unacknowledged,
    #[error("the server is not the one whose synchronous standby acknowledged a heartbeat")]
    Elsewhere,
}

/// The reason why a host could not be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{host}: {fault}")]
pub(super) struct HostFault {
    /// The host and its port, without any other part of the URL.
    pub(super) host: String,
    pub(super) fault: PostgresFault,
}

fn reasons(faults: &[HostFault]) -> String {
    let reasons: Vec<_> = faults.iter().map(ToString::to_string).collect();
    reasons.join("; ")
}

/// Returns the operator's next step after an error of the server. Empty if there is none.
fn remedy(code: &SqlState, message: &str) -> &'static str {
    match code.code() {
        // In every language, the message has the name of the file.
        "28000" if message.contains("pg_hba.conf") => {
            "; allow the connection in `pg_hba.conf` of the server"
        }
        "28P01" | "28000" => "; check the user and the password in the URL",
        "53100" => "; free space on the disk of the server",
        "53300" => "; end other connections, or raise `max_connections` of the server",
        "57P01" | "57P02" | "57P03" => "; wait until the server has started",
        "25006" => "; connect to the primary",
        "3D000" => "; check the name of the database in the URL",
        "3F000" | "42P01" => "; check whether the schema of the store was renamed or dropped",
        "42501" => "; grant the privilege to the role of the store",
        "42P07" | "42710" => {
            "; the schema has something else under a name of the store: name another schema, or remove that"
        }
        _ => "",
    }
}

/// The reason why a store that waits for recovery is refused, and the remedy.
const UNRECOVERED: &str =
    "the store was restored from a backup and is not recovered yet: run `keyctl recover`";

/// The reason for an error for which [`is_of_pooler`] returns `true`, and the remedy.
const POOLER: &str = "a connection pooler keeps no prepared statements or transactions: use its session mode, or \
     transaction mode of PgBouncer 1.21 or later with `max_prepared_statements` above zero";

/// Returns `true` if a statement is missing or exists already on the server's connection. The driver names
/// statements uniquely, so the connection is shared with another client.
fn is_of_pooler(code: &SqlState) -> bool {
    let lost = [
        SqlState::INVALID_SQL_STATEMENT_NAME,
        SqlState::DUPLICATE_PSTATEMENT,
    ];
    lost.contains(code)
}

impl From<tokio_postgres::Error> for PostgresFault {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(refused) = error.as_db_error() {
            let code = refused.code().clone();
            let mut message = refused.message().to_owned();
            if is_of_pooler(&code) {
                message = format!("{message}: {POOLER}");
            }
            return Self::Server { code, message };
        }
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref());
        // The driver returns this error itself if a connection accepts no writes. An error of the operating
        // system has a number.
        if cause.is_some_and(|cause: &std::io::Error| {
            cause.kind() == std::io::ErrorKind::PermissionDenied && cause.raw_os_error().is_none()
        }) {
            return Self::Standby;
        }
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        // The driver has no kind for a missing password, which no retry supplies.
        if source.is_some_and(|cause| cause.to_string() == "password missing") {
            let code = SqlState::INVALID_PASSWORD;
            let message = "the server asks for a password, and the URL has none".to_owned();
            return Self::Server { code, message };
        }
        // The driver has no kind for this either.
        if source.is_some_and(|cause| cause.to_string() == "server does not support TLS") {
            let step = "turn on its setting `ssl`, or name a server that has TLS in the URL";
            return Self::Tls(format!("the server does not support TLS: {step}"));
        }
        if let Some(untrusted) = untrusted(&error) {
            let step =
                "check the certificate of the server, and the authorities that the URL names";
            return Self::Tls(format!("{untrusted}; {step}"));
        }
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::Lost(message)
    }
}

/// Returns the cause of an error, if it is a certificate of the server that is not trusted.
fn untrusted<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|cause| {
        // `source` of such an error skips the error inside.
        let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
        let inner = inner.downcast_ref()?;
        matches!(inner, rustls::Error::InvalidCertificate(_)).then_some(inner)
    })
}

impl From<PoolError> for PostgresFault {
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

impl From<RowFault> for PostgresFault {
    fn from(fault: RowFault) -> Self {
        match fault {
            RowFault::Corrupt(what) => Self::Corrupt(what),
            RowFault::Refused(why) => Self::Refused(why),
        }
    }
}

impl PostgresFault {
    pub(super) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }

    pub(super) const fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Server { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Returns `true` if the server rolled the transaction back because of a concurrent transaction. A retry
    /// may succeed.
    pub(super) fn is_contention(&self) -> bool {
        let contention = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        self.code().is_some_and(|code| contention.contains(code))
    }

    /// Returns `true` if a transaction was certainly rolled back when its `COMMIT` failed with this fault.
    ///
    /// After any other fault, the transaction may have been committed. For example, the server may have
    /// written the commit, and failed only while it waited for a standby.
    fn certainly_rolled_back(&self) -> bool {
        // A code of class 40 or 23 means that the server rolled the transaction back. The exception is 40003,
        // `statement_completion_unknown`.
        let known = |code: &SqlState| code.code() != "40003";
        self.code().is_some_and(|code| {
            known(code) && (code.code().starts_with("40") || code.code().starts_with("23"))
        })
    }

    /// Converts the fault of a `COMMIT` to [`Unknown`](Self::Unknown), unless the transaction was certainly
    /// rolled back.
    pub(super) fn of_commit(self) -> Self {
        match self.certainly_rolled_back() {
            true => self,
            false => Self::Unknown(Box::new(self)),
        }
    }

    /// Returns `true` if a single commit of a group may have caused the fault. If the commits are retried one
    /// by one, the others may succeed.
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

    /// Returns `true` if retries fail until an operator acts.
    ///
    /// If there are several hosts, each must deny access or be a standby. An unreachable host may accept the next
    /// attempt.
    fn is_denied(&self) -> bool {
        let denied = [
            SqlState::INVALID_CATALOG_NAME,
            SqlState::INVALID_SCHEMA_NAME,
        ];
        match self {
            // Class 28 contains wrong passwords, unknown roles, and hosts that `pg_hba.conf` rejects. Class 42
            // contains missing privileges, and tables that are missing or not those of the store.
            Self::Server { code, .. } => {
                let is_of_class = |class| code.code().starts_with(class);
                is_of_class("28") || is_of_class("42") || denied.contains(code)
            }
            Self::Version(_) | Self::Tls(_) => true,
            Self::Hosts(hosts) => {
                let of = |is: fn(&Self) -> bool| hosts.iter().map(move |host| is(&host.fault));
                of(Self::is_denied).any(|is| is)
                    && of(|fault| fault.is_denied() || matches!(fault, Self::Standby)).all(|is| is)
            }
            _ => false,
        }
    }

    pub(super) fn into_error(self, doing: &'static str) -> StoreError {
        let kind = if self.is_corrupt() {
            StoreErrorKind::Corrupt
        } else if matches!(self, Self::Unknown(_)) {
            StoreErrorKind::Indeterminate
        } else if self.is_denied() {
            StoreErrorKind::Denied
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

/// The error of a call for which no pooled connection became free within the connection timeout.
///
/// The pool is too small, or another user of the pool holds its connections. This error is the source of a
/// [`StoreError`] of the kind `Unavailable`. Nothing was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no connection became free in time: raise the limit of the pool, or look for slow queries")]
#[non_exhaustive]
pub struct PoolExhausted;

/// The error of connecting to a store. Never contains the URL or a password.
///
/// `Debug` prints the message with its causes, because Rust prints an error that `main` returns with `Debug`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL or connection string cannot be used. The error does not quote the URL, because the invalid
    /// part may be a password.
    #[error(
        "cannot parse the connection URL: {problem}; it must look like postgres://USER:PASSWORD@HOST/DATABASE"
    )]
    Url {
        /// The invalid part, as the name of an option or as its position.
        problem: String,
    },
    /// The options require encryption, but a host is a Unix socket, which does not support TLS.
    #[error("encryption is required, but a Unix socket does not support TLS")]
    Unencrypted,
    /// The root certificates or the client certificate cannot be used. For example, a file cannot be read, or
    /// the system has no root certificates.
    #[error("cannot use the TLS certificates")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The schema name is invalid. A valid name has 1 to 48 lower-case letters, digits and underscores, and
    /// does not start with a digit.
    #[error(
        "a schema name must have 1 to 48 lower-case letters, digits and underscores, and not start with a digit"
    )]
    Schema,
    /// The caller did not run inside a tokio runtime.
    #[error("a PostgreSQL store needs a tokio runtime: connect within one")]
    NoRuntime,
    /// The tables are not for this build. They were not changed.
    #[error("{}", VersionFault { found: *found, oldest: *oldest, supported: *supported })]
    SchemaVersion {
        /// The version of the tables.
        found: i32,
        /// The version of the oldest build that may use the tables.
        oldest: i32,
        /// The version of this build.
        supported: i32,
    },
    /// The server is a standby. Reads must go to the primary, because a standby may return outdated rows.
    #[error("the server is a standby: connect to the primary")]
    Standby,
    /// The tables were restored from a backup and are not recovered yet. The backup may contain keys that
    /// were revoked later, and these keys would be accepted again.
    ///
    /// To recover in code, connect with [`allow_unrecovered`](super::PostgresOptions::allow_unrecovered), call
    /// [`Keyward::recover`](crate::Keyward::recover), and then
    /// [`finish_recovery`](super::PostgresStore::finish_recovery).
    #[error("{UNRECOVERED}")]
    Unrecovered,
    /// The schema or a table belongs to a role that is neither the connecting role nor the named
    /// [`owner`](super::PostgresOptions::owner). That role can change the tables at any time, for example to
    /// make a revoked key work again.
    #[error(
        "{object} belongs to the role {owner:?}: connect with that role, or name it as the owner of the \
         schema if you trust it"
    )]
    Owner {
        /// The schema, or the name of the table.
        object: String,
        /// The role that owns it.
        owner: String,
    },
    /// A table has a part that the store did not create, for example a trigger. Such a part can hide or change
    /// rows, and runs with the rights of the connecting role.
    #[error(
        "the table {table} has {part}, which the store did not create: examine the table, then remove it"
    )]
    Foreign {
        /// The name of the table.
        table: String,
        /// The kind and the name of the part.
        part: String,
    },
    /// A connection pooler in between keeps no prepared statements between transactions, or no transactions.
    /// Use its session mode, or transaction mode of PgBouncer 1.21 or later with `max_prepared_statements`
    /// above zero.
    #[error("{POOLER}")]
    Pooler,
    /// Strict mode needs a synchronous standby, but the server has none.
    #[error("strict mode needs a synchronous standby: `synchronous_standby_names` is empty")]
    NoStandby,
    /// The synchronous standby did not acknowledge a heartbeat in time. The standby may be down, or may have
    /// become the primary.
    #[error("the synchronous standby did not acknowledge a heartbeat")]
    Unacknowledged,
    /// Strict mode needs a URL, because the connections of a host's pool hide the server's warnings.
    #[error("strict mode needs a URL, not a pool")]
    StrictPool,
    /// The schema contains no store, and [`create(false)`](super::PostgresOptions::create) forbids creating
    /// a store.
    #[error(
        "the schema contains no store: name the schema of the store, or create a store with `keyctl init`"
    )]
    NotFound,
    /// The tables are damaged. The source names the damage. A retry fails until an operator acts.
    #[error("the tables of the store are corrupt")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database denies access: a wrong password, a missing privilege, a missing database or table, a server without
    /// TLS or with a certificate that is not trusted. The source names the reason. A retry fails until an operator acts.
    #[error("the database denies access")]
    Denied(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database could not be reached, or rejected a statement. The source names the reason, for each host
    /// of the URL.
    #[error("cannot use the database")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&WithSources(self), f)
    }
}

impl From<PostgresFault> for ConnectError {
    fn from(fault: PostgresFault) -> Self {
        match fault {
            PostgresFault::Version(VersionFault {
                found,
                oldest,
                supported,
            }) => Self::SchemaVersion {
                found,
                oldest,
                supported,
            },
            PostgresFault::Standby => Self::Standby,
            PostgresFault::Unrecovered => Self::Unrecovered,
            PostgresFault::NoStandby => Self::NoStandby,
            PostgresFault::Unacknowledged => Self::Unacknowledged,
            PostgresFault::Missing => Self::NotFound,
            PostgresFault::Owner { object, owner } => Self::Owner { object, owner },
            PostgresFault::Foreign { table, part } => Self::Foreign { table, part },
            PostgresFault::Pooler => Self::Pooler,
            PostgresFault::Server { ref code, .. } if is_of_pooler(code) => Self::Pooler,
            fault if fault.is_corrupt() => Self::Corrupt(fault.into()),
            fault if fault.is_denied() => Self::Denied(fault.into()),
            fault => Self::Database(fault.into()),
        }
    }
}
