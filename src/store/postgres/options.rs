//! The options for connecting to a database.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures_util::future::FutureExt;
use tokio::runtime::Handle;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, NoTls, Socket};

use super::PostgresStore;
use super::fault::{ConnectError, Fault};
use super::heartbeat::{Direct, Heartbeats, Reach};
use super::schema::Schema;
use super::session::{Database, Mode, Patience, Takes, Timeouts, within};
use super::setup::set_up;
use super::tls::Certificates;
use super::url::{Encryption, Url};
use super::{head, listen};

/// 60 seconds to set up the tables: another node may be creating them.
const SET_UP: Duration = Duration::from_secs(60);

/// The options for connecting to a database. See [`PostgresStore::options`].
#[derive(Clone)]
#[must_use = "options connect to nothing by themselves"]
pub struct PostgresOptions {
    source: Source,
    certificates: Certificates,
    schema: String,
    connections: usize,
    unrecovered: bool,
    must_exist: bool,
    timeouts: Timeouts,
    strict: bool,
    server_clock: bool,
}

/// The source of connections.
#[derive(Clone)]
enum Source {
    Url(String),
    Pool(Pool),
}

/// Omits the URL and all its parts, since a part may be a password.
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
    /// 8 connections for reads at most. A judgement: a server has about a hundred for all clients.
    pub const DEFAULT_CONNECTIONS: usize = 8;

    fn new(source: Source) -> Self {
        Self {
            source,
            certificates: Certificates::default(),
            schema: "keyward".to_owned(),
            connections: Self::DEFAULT_CONNECTIONS,
            unrecovered: false,
            must_exist: false,
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

    /// Sets the schema that holds the store's tables. A missing schema is created if the user may create
    /// schemas. Defaults to `keyward`; 1 to 48 lower-case letters, digits and underscores.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// Accepts a store that was restored from a backup and not recovered yet, in order to recover it.
    /// See [`PostgresStore::start_new_epoch`].
    pub const fn allow_unrecovered(mut self) -> Self {
        self.unrecovered = true;
        self
    }

    /// Refuses to create tables.
    pub const fn must_exist(mut self) -> Self {
        self.must_exist = true;
        self
    }

    /// Trusts the authorities whose certificates are in `pem`, and no others, instead of those of the
    /// system and of the URL's `sslrootcert`. Connections are encrypted then, unless the URL says
    /// `sslmode=disable`.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.trust(pem.into());
        self
    }

    /// Sets the certificate that the server is shown, instead of that of the URL's `sslcert` and `sslkey`.
    /// `pem` holds the certificate and those up to its authority, `key` the private key, both as PEM.
    /// Connections are encrypted then, unless the URL says `sslmode=disable`.
    pub fn client_certificate(mut self, pem: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificates.show(pem.into(), key.into());
        self
    }

    /// Sets the number of connections for reads. There are two more: one for commits, which never wait
    /// for a read, and one that listens for other nodes' commits. No effect on a host's pool, which
    /// commits share with reads. Defaults to [`DEFAULT_CONNECTIONS`](Self::DEFAULT_CONNECTIONS).
    pub const fn max_connections(mut self, connections: NonZeroUsize) -> Self {
        self.connections = connections.get();
        self
    }

    /// Sets the time after which the server gives up on a statement, at least a millisecond. Defaults to
    /// five seconds.
    pub const fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.statement = timeout;
        self
    }

    /// Sets the time after which the server gives up on a lock, at least a millisecond. Defaults to five
    /// seconds.
    pub const fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.lock = timeout;
        self
    }

    /// Sets the time for which the server keeps the transaction and the locks of a silent node, at least
    /// a millisecond. Defaults to ten seconds.
    pub const fn idle_in_transaction_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.idle = timeout;
        self
    }

    /// Sets the time limit of a call as a whole. The answer to a commit may take the same time again, and
    /// listings may take six times as long. At most a day. Defaults to ten seconds.
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.request = timeout;
        self
    }

    /// Sets the time that a call waits for a free connection before the call fails as unavailable. Opening a
    /// new connection may take the same time again. If no connection became free,
    /// [`PoolExhausted`](super::PoolExhausted) is the error's source. Defaults to five seconds.
    pub const fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connection = timeout;
        self
    }

    /// Sets whether a node's clock is compared with the server's. A node whose clock differs by more than the
    /// [allowance](crate::KeywardBuilder::clock_allowance) issues nothing. On by default. Turn it off for a
    /// server whose clock is known to be wrong, and for tests that move a clock of their own.
    pub const fn server_clock(mut self, counts: bool) -> Self {
        self.server_clock = counts;
        self
    }

    /// Returns the result of a read or write only after the synchronous standby has acknowledged a heartbeat
    /// that began afterwards. Off by default.
    ///
    /// Strict mode is for clusters whose failover does not stop the former primary. If a former primary is
    /// cut off from the others, it still answers reads, and revoked keys would be accepted. In strict mode a
    /// former primary is unavailable, and its verifiers fail closed at their staleness bound.
    ///
    /// - `synchronous_standby_names` must name every server that may become the primary, and commits must
    ///   wait for all of them. Then no commit of a former primary is acknowledged after another server took
    ///   its place. While one of these standbys does not answer, no call returns, and no verifier stays
    ///   fresh.
    /// - Each call waits for a small commit after it, and concurrent calls share that commit. The commit uses
    ///   one more connection, which must reach the server itself.
    /// - Strict mode does not work with a host's pool.
    ///
    /// `docs/propagation.md` states what strict mode proves and what it assumes.
    pub const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Connects, and creates the tables if there are none.
    ///
    /// A connection is encrypted, with two exceptions: the URL says `sslmode=disable`, or the server is on
    /// this machine and nothing asks for encryption. Given certificates ask for encryption, and so does every
    /// other `sslmode` except `allow` and `prefer`.
    ///
    /// On an encrypted connection the server must show a certificate in the host's name from a trusted
    /// authority: `sslmode=require` and `verify-ca` mean the same as `verify-full`. The trusted authorities
    /// are those of [`root_certificates`](Self::root_certificates), or else those in the URL's `sslrootcert`,
    /// or else those of the system.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the reason.
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
        // Reading certificate files may block.
        let tls = runtime.spawn_blocking(move || certificates.connector());
        let tls = tls
            .await
            .map_err(|gone| ConnectError::Database(gone.into()))??;
        self.reach(url, Some(tls), runtime).await
    }

    /// Connects like [`connect`](Self::connect), encrypted by `tls`, which decides what a server must show.
    /// Connections are always encrypted then, unless the URL says `sslmode=disable`. `tls` has no effect on a
    /// host's pool.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the reason. Certificates that were given by other means are an error, too.
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

    /// Connects with pools that the store creates for itself.
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
        let mut database = Database {
            pool: reading,
            patience,
            schema: Schema::new(&self.schema)?,
            timeouts,
            heartbeats: None,
            server_clock: self.server_clock,
        };
        let patient = Database {
            timeouts: Timeouts {
                statement: SET_UP,
                lock: SET_UP,
                ..timeouts
            },
            ..database.clone()
        };
        let set_up = set_up(&patient, self.must_exist);
        let ready = tokio::time::timeout(SET_UP * 2, set_up).await;
        ready.unwrap_or(Err(Fault::Late))?;
        if let Some(direct) = direct {
            // Three quarters of a call's time limit, so that the call can report the failure of its
            // heartbeat.
            let limit = timeouts.request / 4 * 3;
            let heartbeats = Heartbeats::start(direct, limit, &runtime);
            database.heartbeats = Some(Arc::new(heartbeats));
        }
        let writing = Arc::new(Database {
            pool: writing,
            ..database.clone()
        });
        let database = Arc::new(database);
        let head = within(&database, Mode::Read, Takes::Moment, |session| {
            head::read(session).boxed()
        });
        let head = tokio::time::timeout(timeouts.request, head).await;
        if head.unwrap_or(Err(Fault::Late))?.store.unrecovered && !self.unrecovered {
            return Err(ConnectError::Unrecovered);
        }
        tracing::info!(schema = database.schema.name(), "connected");
        Ok(PostgresStore::start((database, writing), listen, runtime))
    }
}

/// The pools and connectors of a database.
struct Ways {
    reading: Pool,
    writing: Pool,
    patience: Patience,
    listen: Option<listen::Later>,
    /// The connector for heartbeats.
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
