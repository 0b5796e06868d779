//! How a database is connected to.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, NoTls, Socket};

use super::PostgresStore;
use super::fault::{ConnectError, Fault};
use super::head::Head;
use super::link::{Link, Timeouts};
use super::listen;
use super::schema::{Schema, migrate};

/// How long setting up tables may take: others may be at it, with a lock on the version.
const MIGRATION: Duration = Duration::from_secs(60);

/// How a database is connected to. See [`PostgresStore::options`].
#[derive(Clone)]
#[must_use = "options connect to nothing by themselves"]
pub struct PostgresOptions {
    source: Source,
    schema: String,
    connections: usize,
    unrecovered: bool,
    must_exist: bool,
    copy_target: bool,
    timeouts: Timeouts,
}

/// Where connections come from.
#[derive(Clone)]
enum Source {
    Url(String),
    Pool(Pool),
}

/// Tells neither the URL nor anything of it, which may be a password.
impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("schema", &self.schema)
            .field("connections", &self.connections)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

impl PostgresOptions {
    /// How many connections a node opens at most. A judgement: a server has some hundred for all.
    pub const DEFAULT_CONNECTIONS: usize = 8;

    fn new(source: Source) -> Self {
        Self {
            source,
            schema: "keyward".to_owned(),
            connections: Self::DEFAULT_CONNECTIONS,
            unrecovered: false,
            must_exist: false,
            copy_target: false,
            timeouts: Timeouts {
                statement: Duration::from_secs(5),
                lock: Duration::from_secs(5),
                idle: Duration::from_secs(10),
                request: Duration::from_secs(10),
                connection: Duration::from_secs(5),
            },
        }
    }

    pub(super) fn url(url: String) -> Self {
        Self::new(Source::Url(url))
    }

    pub(super) fn pool(pool: Pool) -> Self {
        Self::new(Source::Pool(pool))
    }

    /// Sets the schema that holds the store's tables. It is created if there is none and the user may.
    /// Defaults to `keyward`; 1 to 48 lower-case letters, digits and underscores.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// Accepts a store that was restored from a backup and not recovered yet, in order to recover it; see
    /// [`PostgresStore::begin_anew`].
    pub const fn allow_unrecovered(mut self) -> Self {
        self.unrecovered = true;
        self
    }

    /// Refuses to set up tables where there are none.
    pub const fn must_exist(mut self) -> Self {
        self.must_exist = true;
        self
    }

    /// Connects to a schema that another store is to be copied into, or was in part; see
    /// [`transfer`](crate::store::transfer). Until the copy is done it serves nothing else.
    pub const fn copy_target(mut self) -> Self {
        self.copy_target = true;
        self
    }

    /// Sets how many connections are opened at most; one more hears of other nodes' commits. Of no
    /// effect on a pool that was handed over. Defaults to
    /// [`DEFAULT_CONNECTIONS`](Self::DEFAULT_CONNECTIONS).
    pub const fn max_connections(mut self, connections: NonZeroUsize) -> Self {
        self.connections = connections.get();
        self
    }

    /// Sets how long the server works on one statement before it gives up, at least a millisecond.
    /// Defaults to five seconds.
    pub const fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.statement = timeout;
        self
    }

    /// Sets how long the server waits for a lock before it gives up, at least a millisecond. Defaults
    /// to five seconds.
    pub const fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.lock = timeout;
        self
    }

    /// Sets how long the server keeps a transaction, and its locks, of a node that says nothing any
    /// more; at least a millisecond. Defaults to ten seconds.
    pub const fn idle_in_transaction_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.idle = timeout;
        self
    }

    /// Sets how long a call waits for the server as a whole, and once more for the answer to its
    /// commit. Listings may take six times as long. Defaults to ten seconds.
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.request = timeout;
        self
    }

    /// Sets how long a call waits for a connection before it fails as unavailable. Defaults to five
    /// seconds.
    pub const fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connection = timeout;
        self
    }

    /// Connects, and sets up the tables if there are none or older ones. Nothing is encrypted, so that
    /// only a server on this machine is connected to, or one whose URL says `sslmode=disable`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what stands in the way.
    pub async fn connect(self) -> Result<PostgresStore, ConnectError> {
        self.start(None::<NoTls>).await
    }

    /// Connects like [`connect`](Self::connect), encrypted by `tls`: that of the crate
    /// `tokio-postgres-rustls`, say, which is set up with the certificates to trust. Connections are
    /// never unencrypted then, unless the URL says `sslmode=disable`. Of no effect on a pool that was
    /// handed over.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what stands in the way.
    pub async fn connect_tls<T>(self, tls: T) -> Result<PostgresStore, ConnectError>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send + Sync,
        T::Stream: Send + Sync,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        self.start(Some(tls)).await
    }

    async fn start<T>(self, tls: Option<T>) -> Result<PostgresStore, ConnectError>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send + Sync,
        T::Stream: Send + Sync,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let schema = Schema::new(&self.schema)?;
        let wait = self.timeouts.connection;
        let (pool, listen) = match self.source {
            Source::Pool(pool) => (pool, None),
            Source::Url(url) => {
                let config = config(&url, wait, tls.is_some())?;
                let channel = schema.channel();
                match tls {
                    Some(tls) => (
                        own_pool(config.clone(), tls.clone(), self.connections, wait)?,
                        Some(listen::later(config, tls, channel)),
                    ),
                    None => (
                        own_pool(config.clone(), NoTls, self.connections, wait)?,
                        Some(listen::later(config, NoTls, channel)),
                    ),
                }
            }
        };
        let timeouts = self.timeouts;
        let link = Link {
            pool,
            schema,
            timeouts,
        };
        let patient = Link {
            timeouts: Timeouts {
                statement: MIGRATION,
                lock: MIGRATION,
                ..timeouts
            },
            ..link.clone()
        };
        let migrate = migrate(&patient, self.must_exist);
        let migrated = tokio::time::timeout(MIGRATION * 2, migrate).await;
        match migrated.unwrap_or(Err(Fault::Late)) {
            // Nothing else can be read there.
            Err(Fault::Copying) if self.copy_target => {
                return Ok(PostgresStore::start(Arc::new(link), listen, runtime));
            }
            migrated => migrated?,
        }
        let head = tokio::time::timeout(timeouts.request, head(&link)).await;
        if head.unwrap_or(Err(Fault::Late))?.unrecovered && !self.unrecovered {
            return Err(ConnectError::Unrecovered);
        }
        tracing::info!(schema = link.schema.name(), "connected");
        Ok(PostgresStore::start(Arc::new(link), listen, runtime))
    }
}

async fn head(link: &Link) -> Result<Head, Fault> {
    let mut conn = link.connection().await?;
    let tx = link.snapshot(&mut conn).await?;
    let head = Head::read(&tx).await?;
    tx.end();
    conn.give_back();
    Ok(head)
}

fn config(url: &str, connect: Duration, tls: bool) -> Result<Config, ConnectError> {
    let mut config = Config::from_str(url).map_err(|_| ConnectError::Url)?;
    match (config.get_ssl_mode(), tls) {
        (SslMode::Disable, _) => {}
        // What merely prefers to be encrypted is not, where somebody in between prefers otherwise.
        (SslMode::Prefer, true) => {
            config.ssl_mode(SslMode::Require);
        }
        (_, true) => {}
        (SslMode::Prefer, false) if stays_on_this_machine(&config) => {}
        (_, false) => return Err(ConnectError::Unencrypted),
    }
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    if config.get_application_name().is_none() {
        config.application_name("keyward");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(connect);
    }
    Ok(config)
}

fn stays_on_this_machine(config: &Config) -> bool {
    let here = |host: &Host| match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        }
        Host::Unix(_) => true,
    };
    // Where there are addresses, hosts are but names.
    match config.get_hostaddrs() {
        [] => config.get_hosts().iter().all(here),
        addresses => addresses.iter().all(IpAddr::is_loopback),
    }
}

fn own_pool<T>(
    config: Config,
    tls: T,
    connections: usize,
    wait: Duration,
) -> Result<Pool, ConnectError>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send + Sync,
    T::Stream: Send + Sync,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let fast = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(config, tls, fast);
    let pool = Pool::builder(manager)
        .max_size(connections)
        .timeouts(deadpool_postgres::Timeouts {
            wait: Some(wait),
            create: Some(wait),
            recycle: Some(wait),
        })
        .runtime(Runtime::Tokio1);
    pool.build()
        .map_err(|error| ConnectError::Database(error.into()))
}
