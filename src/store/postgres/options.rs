//! The options of the PostgreSQL store, and how the store connects.

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
use super::fault::{ConnectError, PostgresFault};
use super::heartbeat::{DirectConnector, HeartbeatConnector, Heartbeats};
use super::hosts::{Hosts, PoolConnector};
use super::schema::Schema;
use super::session::{Database, SessionMode, TimeLimit, Timeouts, WaitLimit, within};
use super::setup::{SET_UP, set_up};
use super::tls::Certificates;
use super::url::{Encryption, Url};
use super::{head, listen, pooler};

/// The options of a [`PostgresStore`]. Created by [`PostgresStore::options`].
#[derive(Clone)]
#[must_use = "options connect to nothing by themselves"]
pub struct PostgresOptions {
    source: ConnectionSource,
    certificates: Certificates,
    schema: String,
    connections: usize,
    unrecovered: bool,
    create: bool,
    owner: Option<String>,
    timeouts: Timeouts,
    strict: bool,
    server_clock: bool,
}

/// The source of the store's connections.
#[derive(Clone)]
enum ConnectionSource {
    Url(String),
    Pool(Pool),
}

/// Omits the URL and every part of the URL, because a part may be a password.
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
    /// 8 connections for reads. By default, a PostgreSQL server accepts only 100 connections from all clients
    /// together.
    pub const DEFAULT_CONNECTIONS: usize = 8;

    fn new(source: ConnectionSource) -> Self {
        Self {
            source,
            certificates: Certificates::default(),
            schema: "keyward".to_owned(),
            connections: Self::DEFAULT_CONNECTIONS,
            unrecovered: false,
            create: true,
            owner: None,
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
        Self::new(ConnectionSource::Url(url))
    }

    pub(super) fn pool(pool: Pool) -> Self {
        Self::new(ConnectionSource::Pool(pool))
    }

    /// Sets the schema that contains the store's tables. Defaults to `keyward`.
    ///
    /// A name has 1 to 48 lower-case letters, digits and underscores, and does not start with a digit. A
    /// missing schema is created if the database user has that privilege.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// Allows connecting to a store that was restored from a backup and is not recovered yet. Use this option
    /// only to recover the store; see [`PostgresStore::start_new_epoch`].
    pub const fn allow_unrecovered(mut self) -> Self {
        self.unrecovered = true;
        self
    }

    /// Sets whether missing tables are created. Defaults to `true`. With `false`, [`connect`](Self::connect)
    /// fails with [`ConnectError::NotFound`] if the tables do not exist.
    pub const fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Names a role that may own the schema and the tables besides the connecting role. For deployments whose
    /// migrations run as another role.
    ///
    /// Without it, [`connect`](Self::connect) fails with [`ConnectError::Owner`] if another role owns the schema
    /// or a table. An owner can change the tables at any time, and needs the same trust as the service.
    pub fn owner(mut self, role: impl Into<String>) -> Self {
        self.owner = Some(role.into());
        self
    }

    /// Sets the trusted certificate authorities, as PEM. They replace the authorities of the system and of
    /// the URL's `sslrootcert`.
    ///
    /// With this option connections are encrypted, unless the URL says `sslmode=disable`.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.trust(pem.into());
        self
    }

    /// Sets the client certificate. It replaces the URL's `sslcert` and `sslkey`.
    ///
    /// `pem` contains the certificate chain, and `key` contains the private key, both as PEM. With this
    /// option connections are encrypted, unless the URL says `sslmode=disable`.
    pub fn client_certificate(mut self, pem: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificates.show(pem.into(), key.into());
        self
    }

    /// Sets the maximum number of connections for reads. Defaults to
    /// [`DEFAULT_CONNECTIONS`](Self::DEFAULT_CONNECTIONS).
    ///
    /// The store opens one more connection for commits, so that commits never wait for reads. It opens
    /// another one to listen for other nodes' commits.
    ///
    /// This option has no effect on a pool that the host provides: there, reads and commits share the
    /// connections.
    pub const fn max_connections(mut self, connections: NonZeroUsize) -> Self {
        self.connections = connections.get();
        self
    }

    /// Sets the server's `statement_timeout`, at least one millisecond. Defaults to five seconds.
    pub const fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.statement = timeout;
        self
    }

    /// Sets the server's `lock_timeout`, at least one millisecond. Defaults to five seconds.
    pub const fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.lock = timeout;
        self
    }

    /// Sets the server's `idle_in_transaction_session_timeout`, at least one millisecond. Defaults to ten
    /// seconds.
    ///
    /// If a node hangs during a transaction, the server releases the node's locks after this time.
    pub const fn idle_in_transaction_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.idle = timeout;
        self
    }

    /// Sets the time limit of a call, at most one day. Defaults to ten seconds.
    ///
    /// A commit may take twice this time, because waiting for the response to `COMMIT` has the same limit
    /// again. A listing may take six times as long.
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.request = timeout;
        self
    }

    /// Sets the time that a call waits for a free connection. Defaults to five seconds.
    ///
    /// If no connection becomes free, the call fails as unavailable, with
    /// [`PoolExhausted`](super::PoolExhausted) as the source. Opening a new connection may take the same time
    /// again. The hosts of the URL share that time evenly, so a host that does not respond leaves time for the
    /// next one.
    pub const fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connection = timeout;
        self
    }

    /// Sets whether nodes compare their clock with the server's clock. On by default.
    ///
    /// A node neither issues nor prolongs keys if its clock differs by more than the
    /// [allowance](crate::KeywardBuilder::clock_allowance). Turn the comparison off if the server's clock is
    /// known to be wrong, or in tests that use a manual clock.
    pub const fn server_clock(mut self, counts: bool) -> Self {
        self.server_clock = counts;
        self
    }

    /// Turns strict mode on: a call returns only after a synchronous standby has confirmed that the server is
    /// still the primary. Off by default.
    ///
    /// Strict mode is for clusters whose failover does not fence the former primary. After a network
    /// partition such a server still answers reads, so revoked keys would be accepted. In strict mode all
    /// calls to a former primary fail, and its verifiers fail closed at their staleness bound.
    ///
    /// After its own statements, each call waits until the standby acknowledges a heartbeat, which is a small
    /// commit. Concurrent calls share a heartbeat.
    ///
    /// - `synchronous_standby_names` must name every server that may become the primary, and commits must
    ///   wait for all of these servers. Then a former primary gets no acknowledgement after a promotion.
    /// - While one of these standbys does not respond, all calls fail, and verifiers become stale.
    /// - Heartbeats use one more connection, which must reach the server directly and not through a pooler.
    /// - Strict mode needs a URL: with a host's pool, `connect` fails with [`ConnectError::StrictPool`].
    ///
    /// `docs/propagation.md` states the guarantee and the assumptions of strict mode.
    pub const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Connects, and creates missing tables.
    ///
    /// Connections are encrypted, with two exceptions:
    ///
    /// - The URL says `sslmode=disable`.
    /// - The server is on this machine, the options contain no certificates, and the URL's `sslmode` is
    ///   missing, `allow` or `prefer`.
    ///
    /// The server must present a certificate for its host name from a trusted authority: `sslmode=require`
    /// and `verify-ca` mean `verify-full`. The trusted authorities are those of
    /// [`root_certificates`](Self::root_certificates), or else those in the URL's `sslrootcert`, or else
    /// those of the system.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the reason.
    pub async fn connect(self) -> Result<PostgresStore, ConnectError> {
        let runtime = runtime()?;
        let url = match &self.source {
            ConnectionSource::Pool(pool) => {
                return self.clone().start(pool.clone().into(), runtime).await;
            }
            ConnectionSource::Url(url) => url,
        };
        let mut url = Url::read(url)?;
        let certificates = self
            .certificates
            .clone()
            .or(std::mem::take(&mut url.files))?;
        if !url.is_encrypted(certificates.are_given()) {
            return self.connect_url(url, None::<NoTls>, runtime).await;
        }
        // Reading certificate files may block.
        let tls = runtime.spawn_blocking(move || certificates.connector());
        let tls = tls
            .await
            .map_err(|gone| ConnectError::Database(gone.into()))??;
        self.connect_url(url, Some(tls), runtime).await
    }

    /// Checks the options without connecting and without reading files: the URL, the schema's name, and that a
    /// client certificate and its key are both set or both missing.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], with which [`connect`](Self::connect) would fail too.
    pub fn check(&self) -> Result<(), ConnectError> {
        Schema::new(&self.schema)?;
        if let ConnectionSource::Url(url) = &self.source {
            let url = Url::read(url)?;
            url.check_hosts()?;
            self.certificates.clone().or(url.files)?;
        }
        Ok(())
    }

    /// Connects like [`connect`](Self::connect), but with the host's own TLS connector, which decides which
    /// servers to trust.
    ///
    /// Connections are encrypted, unless the URL says `sslmode=disable`. `tls` has no effect on a host's
    /// pool.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]. [`Certificates`](ConnectError::Certificates) if the URL or the options also name
    /// certificates.
    pub async fn connect_tls<T>(self, tls: T) -> Result<PostgresStore, ConnectError>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send + Sync,
        T::Stream: Send + Sync,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let runtime = runtime()?;
        let url = match &self.source {
            ConnectionSource::Pool(pool) => {
                return self.clone().start(pool.clone().into(), runtime).await;
            }
            ConnectionSource::Url(url) => url,
        };
        let mut url = Url::read(url)?;
        let certificates = self
            .certificates
            .clone()
            .or(std::mem::take(&mut url.files))?;
        if certificates.are_given() {
            let why = "set certificates either in the options or in the TLS connector, not in both";
            return Err(ConnectError::Certificates(why.into()));
        }
        let tls = Some(tls).filter(|_| url.encryption != Encryption::Disabled);
        self.connect_url(url, tls, runtime).await
    }

    /// Connects to `url`, with pools of the store's own. Encrypts the connections if `tls` is given.
    async fn connect_url<T>(
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
        let connectors = match tls {
            Some(tls) => self.connectors(config, tls)?,
            None => self.connectors(config, NoTls)?,
        };
        self.start(connectors, runtime).await
    }

    fn connectors<T>(&self, config: Config, tls: T) -> Result<Connectors, ConnectError>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send + Sync,
        T::Stream: Send + Sync,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let wait = self.timeouts.connection;
        let channel = Schema::new(&self.schema)?.channel();
        let hosts = Arc::new(Hosts::new(&config, tls, wait));
        Ok(Connectors {
            reading: own_pool(&hosts, self.connections, wait)?,
            writing: own_pool(&hosts, 1, wait)?,
            wait_limit: WaitLimit::Pool,
            listen: Some(listen::listener(hosts.clone(), channel, wait)),
            direct: Some(Arc::new(DirectConnector(hosts))),
        })
    }

    async fn start(
        self,
        connectors: Connectors,
        runtime: Handle,
    ) -> Result<PostgresStore, ConnectError> {
        let Connectors {
            reading,
            writing,
            wait_limit,
            listen,
            direct,
        } = connectors;
        if self.strict && direct.is_none() {
            return Err(ConnectError::StrictPool);
        }
        let direct = direct.filter(|_| self.strict);
        let timeouts = self.timeouts;
        let mut database = Database {
            pool: reading,
            wait_limit,
            schema: Schema::new(&self.schema)?,
            timeouts,
            heartbeats: None,
            server_clock: self.server_clock,
            allows_unrecovered: self.unrecovered,
        };
        let writing = Database {
            pool: writing,
            ..database.clone()
        };
        let ready = async {
            pooler::check_statements(&database, &writing).await?;
            set_up(&database, self.create, self.owner.as_deref()).await
        };
        let ready = tokio::time::timeout(SET_UP * 2, ready).await;
        ready.unwrap_or(Err(PostgresFault::Late))?;
        if let Some(direct) = direct {
            // Limit a heartbeat to three quarters of the request timeout. The heartbeat then fails before the
            // call that waits for it. So the call can return the heartbeat's error instead of a timeout.
            let limit = timeouts.request / 4 * 3;
            let heartbeats = Heartbeats::start(direct, limit, &runtime);
            database.heartbeats = Some(Arc::new(heartbeats));
        }
        let writing = Arc::new(Database {
            heartbeats: database.heartbeats.clone(),
            ..writing
        });
        let database = Arc::new(database);
        let head = within(&database, SessionMode::Read, TimeLimit::Short, |session| {
            head::read(session).boxed()
        });
        let head = tokio::time::timeout(timeouts.request, head).await;
        head.unwrap_or(Err(PostgresFault::Late))?;
        tracing::info!(schema = database.schema.name(), "connected");
        Ok(PostgresStore::start((database, writing), listen, runtime))
    }
}

/// The connection pools of a store, and the connectors of its other connections.
struct Connectors {
    reading: Pool,
    writing: Pool,
    wait_limit: WaitLimit,
    listen: Option<listen::PendingListener>,
    /// The connector for heartbeat connections. `None` if the host provides the pool, because strict mode
    /// does not support such a pool.
    direct: Option<Arc<dyn HeartbeatConnector>>,
}

impl From<Pool> for Connectors {
    fn from(pool: Pool) -> Self {
        Self {
            reading: pool.clone(),
            writing: pool,
            wait_limit: WaitLimit::Store,
            listen: None,
            direct: None,
        }
    }
}

fn runtime() -> Result<Handle, ConnectError> {
    Handle::try_current().map_err(|_| ConnectError::NoRuntime)
}

fn own_pool<T>(
    hosts: &Arc<Hosts<T>>,
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
    let manager = Manager::from_connect(Config::new(), PoolConnector(hosts.clone()), fast);
    let pool = Pool::builder(manager)
        .max_size(connections)
        .timeouts(deadpool_postgres::Timeouts {
            wait: Some(wait),
            // The attempts on the hosts have time limits of their own, and their faults name the hosts.
            create: None,
            recycle: Some(wait),
        })
        .runtime(Runtime::Tokio1);
    pool.build()
        .map_err(|error| ConnectError::Database(error.into()))
}
