//! How a database is connected to.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::runtime::Handle;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, NoTls, Socket};

use super::PostgresStore;
use super::fault::{ConnectError, Fault};
use super::head::Head;
use super::heartbeat::{Direct, Heartbeats, Reach};
use super::link::{Link, Patience, Timeouts};
use super::listen;
use super::schema::{Schema, migrate};
use super::tls::Certificates;
use super::url::{Encryption, Url};

/// How long setting up tables may take: others may be at it, with a lock on the version.
const MIGRATION: Duration = Duration::from_secs(60);

/// How a database is connected to. See [`PostgresStore::options`].
#[derive(Clone)]
#[must_use = "options connect to nothing by themselves"]
pub struct PostgresOptions {
    source: Source,
    certificates: Certificates,
    schema: String,
    connections: usize,
    unrecovered: bool,
    must_exist: bool,
    copy_target: bool,
    timeouts: Timeouts,
    strict: bool,
    server_clock: bool,
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
            .field("strict", &self.strict)
            .finish_non_exhaustive()
    }
}

impl PostgresOptions {
    /// How many connections a node reads with at most. A judgement: a server has some hundred for all.
    pub const DEFAULT_CONNECTIONS: usize = 8;

    fn new(source: Source) -> Self {
        Self {
            source,
            certificates: Certificates::default(),
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
            strict: false,
            server_clock: true,
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

    /// Trusts the authorities whose certificates stand in `pem`, and no others, in place of those of the
    /// system and of the URL's `sslrootcert`. Connections are encrypted then, unless the URL says
    /// `sslmode=disable`.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.trust(pem.into());
        self
    }

    /// Shows the server a certificate, in place of that of the URL's `sslcert` and `sslkey`: `pem` holds
    /// it, followed by those that lead to its authority, and `key` its private key, both as PEM.
    /// Connections are encrypted then, unless the URL says `sslmode=disable`.
    pub fn client_certificate(mut self, pem: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificates.show(pem.into(), key.into());
        self
    }

    /// Sets how many connections are opened at most to read with. There are two more: commits wait for
    /// no reader and have one of their own, and one hears of other nodes' commits. Of no effect on a pool
    /// that was handed over, which commits share with reads. Defaults to
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
    /// commit. Listings may take six times as long; more than a day is a day. Defaults to ten seconds.
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.request = timeout;
        self
    }

    /// Sets how long a call waits for a free connection, and once more for a new one to be made, before
    /// it fails as unavailable. Where none became free, [`PoolExhausted`](super::PoolExhausted) is the
    /// error's source. Defaults to five seconds.
    pub const fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connection = timeout;
        self
    }

    /// Sets whether a node's clock is held against the server's: one that differs by more than the
    /// [allowance](crate::Builder::clock_allowance) issues nothing. On by default; off for a server whose
    /// clock is known to be wrong, and for tests that move a clock of their own.
    pub const fn server_clock(mut self, counts: bool) -> Self {
        self.server_clock = counts;
        self
    }

    /// Tells what was read or written only once the synchronous standby has acknowledged a heartbeat that
    /// began after it. For clusters whose failover does not stop the former primary: cut off from the
    /// others, that goes on answering reads, and keys that were revoked since would be accepted. Such a
    /// server is unavailable here, so that its verifiers refuse keys once their bound is passed. Off by
    /// default.
    ///
    /// - `synchronous_standby_names` must name who may become the primary, and all of them must be waited
    ///   for, so that nothing of a former primary is acknowledged once another took its place. While one
    ///   of them does not answer, nothing is told, and no key stays fresh.
    /// - Each call waits for a small commit after it, which calls that wait together share. It is made on
    ///   one connection more, which must reach the server itself.
    /// - It cannot be asked of a pool that was handed over.
    ///
    /// What this proves, and what is assumed, stands in `docs/propagation.md`.
    pub const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Connects, and sets up the tables if there are none or older ones.
    ///
    /// Where a connection is encrypted the server must show a certificate in the host's name, from an
    /// authority that is trusted; `sslmode=require` and `verify-ca` mean the same as `verify-full`. It is
    /// encrypted unless the URL says `sslmode=disable`, or the server is on this machine and neither the
    /// URL nor certificates that were given ask for it: `allow` and `prefer` do not. Trusted is whom
    /// [`root_certificates`](Self::root_certificates) names, or else the file that the URL names as
    /// `sslrootcert`, or else whom the system trusts.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what stands in the way.
    pub async fn connect(self) -> Result<PostgresStore, ConnectError> {
        let runtime = runtime()?;
        let url = match &self.source {
            Source::Pool(pool) => return self.clone().start(pool.clone().into(), runtime).await,
            Source::Url(url) => url,
        };
        let mut url = Url::read(url)?;
        let certificates = self
            .certificates
            .clone()
            .or(std::mem::take(&mut url.files))?;
        if !url.is_encrypted(certificates.are_given()) {
            return self.reach(url, None::<NoTls>, runtime).await;
        }
        // Files are read.
        let tls = runtime.spawn_blocking(move || certificates.connector());
        let tls = tls
            .await
            .map_err(|gone| ConnectError::Database(gone.into()))??;
        self.reach(url, Some(tls), runtime).await
    }

    /// Connects like [`connect`](Self::connect), encrypted by `tls`, which decides by itself what a
    /// server must show. Connections are never unencrypted then, unless the URL says
    /// `sslmode=disable`. Of no effect on a pool that was handed over.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what stands in the way: certificates that were given by other means, too.
    pub async fn connect_tls<T>(self, tls: T) -> Result<PostgresStore, ConnectError>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send + Sync,
        T::Stream: Send + Sync,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let runtime = runtime()?;
        let url = match &self.source {
            Source::Pool(pool) => return self.clone().start(pool.clone().into(), runtime).await,
            Source::Url(url) => url,
        };
        let mut url = Url::read(url)?;
        let certificates = self
            .certificates
            .clone()
            .or(std::mem::take(&mut url.files))?;
        if certificates.are_given() {
            let why = "they are given twice: to the store, and with TLS of the host's own";
            return Err(ConnectError::Certificates(why.into()));
        }
        let tls = Some(tls).filter(|_| url.encryption != Encryption::Off);
        self.reach(url, tls, runtime).await
    }

    /// Connects with pools of the store's own.
    async fn reach<T>(
        self,
        url: Url,
        tls: Option<T>,
        runtime: Handle,
    ) -> Result<PostgresStore, ConnectError>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send + Sync,
        T::Stream: Send + Sync,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let config = url.config(tls.is_some(), self.timeouts.connection)?;
        let ways = match tls {
            Some(tls) => self.ways(config, tls)?,
            None => self.ways(config, NoTls)?,
        };
        self.start(ways, runtime).await
    }

    fn ways<T>(&self, config: Config, tls: T) -> Result<Ways, ConnectError>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send + Sync,
        T::Stream: Send + Sync,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let wait = self.timeouts.connection;
        let channel = Schema::new(&self.schema)?.channel();
        Ok(Ways {
            reading: own_pool(config.clone(), tls.clone(), self.connections, wait)?,
            writing: own_pool(config.clone(), tls.clone(), 1, wait)?,
            patience: Patience::OfPool,
            listen: Some(listen::later(config.clone(), tls.clone(), channel)),
            direct: Some(Arc::new(Direct { config, tls })),
        })
    }

    async fn start(self, ways: Ways, runtime: Handle) -> Result<PostgresStore, ConnectError> {
        let Ways {
            reading,
            writing,
            patience,
            listen,
            direct,
        } = ways;
        if self.strict && direct.is_none() {
            return Err(ConnectError::StrictPool);
        }
        let direct = direct.filter(|_| self.strict);
        let timeouts = self.timeouts;
        let mut link = Link {
            pool: reading,
            patience,
            schema: Schema::new(&self.schema)?,
            timeouts,
            heartbeats: None,
            server_clock: self.server_clock,
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
                let writing = Link {
                    pool: writing,
                    ..link.clone()
                };
                let links = (Arc::new(link), Arc::new(writing));
                return Ok(PostgresStore::start(links, listen, runtime));
            }
            migrated => migrated?,
        }
        if let Some(direct) = direct {
            // A little less than a call, so that the call tells what it waited for.
            let limit = timeouts.request / 4 * 3;
            let heartbeats = Heartbeats::start(direct, limit, &runtime);
            link.heartbeats = Some(Arc::new(heartbeats));
        }
        let writing = Link {
            pool: writing,
            ..link.clone()
        };
        let head = tokio::time::timeout(timeouts.request, head(&link)).await;
        if head.unwrap_or(Err(Fault::Late))?.unrecovered && !self.unrecovered {
            return Err(ConnectError::Unrecovered);
        }
        tracing::info!(schema = link.schema.name(), "connected");
        let links = (Arc::new(link), Arc::new(writing));
        Ok(PostgresStore::start(links, listen, runtime))
    }
}

/// The ways to a database.
struct Ways {
    reading: Pool,
    writing: Pool,
    patience: Patience,
    listen: Option<listen::Later>,
    /// What heartbeats are made on.
    direct: Option<Arc<dyn Reach>>,
}

impl From<Pool> for Ways {
    fn from(pool: Pool) -> Self {
        Self {
            reading: pool.clone(),
            writing: pool,
            patience: Patience::OfStore,
            listen: None,
            direct: None,
        }
    }
}

fn runtime() -> Result<Handle, ConnectError> {
    Handle::try_current().map_err(|_| ConnectError::NoRuntime)
}

async fn head(link: &Link) -> Result<Head, Fault> {
    let mut conn = link.connection().await?;
    let tx = link.snapshot(&mut conn).await?;
    let head = Head::read(&tx).await?;
    tx.end().await?;
    conn.give_back();
    Ok(head)
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
