//! Connects to the hosts of a URL one by one, and keeps one reason per host.
//!
//! The driver can also try several hosts, but returns only the error of the last one. If the primary is down,
//! the last host is often a standby, and its error hides the cause.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deadpool_postgres::{Connect, Object, PoolError};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, LoadBalanceHosts};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, Connection, NoTls, Socket};

use super::fault::{HostFault, PostgresFault};
use crate::observe::WithSources;

/// The hosts of a URL, each with a separate configuration.
pub(super) struct Hosts<T> {
    hosts: Vec<NamedHost>,
    /// The time limit of one attempt on one host.
    limit: Duration,
    /// The number of attempts so far, if each attempt begins with another host.
    attempts: Option<AtomicUsize>,
    pub(super) tls: T,
}

struct NamedHost {
    name: String,
    config: Config,
}

impl<T> Hosts<T> {
    /// Splits a configuration into its hosts. They share `limit` evenly, so that a host that does not respond
    /// leaves time for the next one.
    pub(super) fn new(config: &Config, tls: T, limit: Duration) -> Self {
        let hosts = split(config);
        let count = u32::try_from(hosts.len()).unwrap_or(u32::MAX).max(1);
        let balanced = config.get_load_balance_hosts() == LoadBalanceHosts::Random;
        Self {
            hosts,
            limit: limit / count,
            attempts: balanced.then(AtomicUsize::default),
            tls,
        }
    }
}

impl<T> Hosts<T>
where
    T: MakeTlsConnect<Socket> + Clone,
{
    /// Connects to the first host that is available and accepts writes.
    pub(super) async fn connect(
        &self,
    ) -> Result<(Client, Connection<Socket, T::Stream>), PostgresFault> {
        let attempts = self.attempts.as_ref();
        let first = attempts.map_or(0, |attempts| attempts.fetch_add(1, Ordering::Relaxed));
        let count = self.hosts.len();
        let mut faults = Vec::new();
        for host in self
            .hosts
            .iter()
            .cycle()
            .skip(first % count.max(1))
            .take(count)
        {
            let connect = host.config.connect(self.tls.clone());
            let fault = match tokio::time::timeout(self.limit, connect).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => error.into(),
                Err(_) => PostgresFault::Late,
            };
            let host = host.name.clone();
            faults.push(HostFault { host, fault });
        }
        Err(PostgresFault::Hosts(faults))
    }
}

tokio::task_local! {
    /// The fault of the connection attempt that runs within [`pooled`].
    static FAULT: Cell<Option<PostgresFault>>;
}

/// Awaits a connection of a pool. If the pool failed to open one with a [`PoolConnector`], the fault names each
/// host. The pool itself can only return an error of the driver.
pub(super) async fn pooled(
    connection: impl Future<Output = Result<Object, PoolError>>,
) -> Result<Object, PostgresFault> {
    let connect = async {
        let connected = connection.await;
        connected.map_err(|error| FAULT.with(Cell::take).unwrap_or_else(|| error.into()))
    };
    FAULT.scope(Cell::new(None), connect).await
}

/// Opens the connections of a pool.
pub(super) struct PoolConnector<T>(pub(super) Arc<Hosts<T>>);

impl<T> Connect for PoolConnector<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send + Sync,
    T::Stream: Send + Sync,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect(
        &self,
        _: &Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        let connect = async {
            match self.0.connect().await {
                Ok((client, connection)) => Ok((client, tokio::spawn(drive(connection)))),
                Err(fault) => {
                    // The pool may open a connection outside `pooled`. The fault is then lost.
                    let _ = FAULT.try_with(|last| last.set(Some(fault)));
                    // Without a host the driver always fails, and the pool returns that error.
                    let (client, connection) = Config::new().connect(NoTls).await?;
                    Ok((client, tokio::spawn(drive(connection))))
                }
            }
        };
        connect.boxed()
    }
}

/// Runs a connection until it ends. The call that uses the connection reports a failure.
async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        let fault = PostgresFault::from(error);
        tracing::debug!(error = %WithSources(&fault), "a connection to the database ended");
    }
}

/// Returns one configuration per host. If the numbers of hosts, addresses and ports do not match, returns the
/// configuration as it is, which the driver refuses.
fn split(config: &Config) -> Vec<NamedHost> {
    let (hosts, addresses, ports) = (
        config.get_hosts(),
        config.get_hostaddrs(),
        config.get_ports(),
    );
    let count = hosts.len().max(addresses.len());
    let matches = |other: usize| other == 0 || other == count;
    if count == 0
        || !matches(hosts.len())
        || !matches(addresses.len())
        || !(ports.len() <= 1 || ports.len() == count)
    {
        return vec![NamedHost {
            name: "the server".to_owned(),
            config: config.clone(),
        }];
    }
    let printable = hosts.iter().all(is_printable);
    let one = |at: usize| {
        let (host, address) = (hosts.get(at), addresses.get(at).copied());
        let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
        let name = match host {
            Some(Host::Unix(_)) => format!("Unix socket {}", at + 1),
            Some(Host::Tcp(_)) if !printable => format!("host {}", at + 1),
            Some(Host::Tcp(name)) => match name.parse::<IpAddr>() {
                Ok(address) => SocketAddr::new(address, port).to_string(),
                Err(_) => format!("{name}:{port}"),
            },
            None => address.map_or_else(String::new, |it| SocketAddr::new(it, port).to_string()),
        };
        let config = single(config, host, address, port);
        NamedHost { name, config }
    };
    (0..count).map(one).collect()
}

/// Returns whether a host may be named in an error. The driver takes the text after the first `@` of a URL for
/// its hosts, so a password with an unescaped `@` ends up there.
fn is_printable(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => (name.chars()).all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c)),
        Host::Unix(_) => true,
    }
}

/// Returns a copy of a configuration with only one host.
fn single(config: &Config, host: Option<&Host>, address: Option<IpAddr>, port: u16) -> Config {
    let mut one = Config::new();
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(name) = config.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = config.get_options() {
        one.options(options);
    }
    if let Some(name) = config.get_application_name() {
        one.application_name(name);
    }
    match host {
        Some(Host::Tcp(name)) => one.host(name),
        Some(Host::Unix(path)) => one.host_path(path),
        None => &mut one,
    };
    if let Some(address) = address {
        one.hostaddr(address);
    }
    one.port(port);
    if let Some(timeout) = config.get_connect_timeout() {
        one.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        one.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    one.keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding())
        .load_balance_hosts(config.get_load_balance_hosts());
    one
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

    use super::*;

    fn names(url: &str) -> Vec<String> {
        let config = url.parse().unwrap();
        split(&config).into_iter().map(|host| host.name).collect()
    }

    #[test]
    fn a_single_host_keeps_every_option_of_the_url() {
        let url = "host=db.example hostaddr=192.0.2.1 port=5 user=alice password=x dbname=app \
                   options='-c a=b' application_name=me sslmode=require sslnegotiation=direct \
                   connect_timeout=3 tcp_user_timeout=4 keepalives=0 keepalives_idle=5 \
                   keepalives_interval=6 keepalives_retries=7 target_session_attrs=read-write \
                   channel_binding=require load_balance_hosts=random";
        let config: Config = url.parse().unwrap();
        let hosts = split(&config);
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0].config, config);
    }

    #[test]
    fn each_host_has_its_own_port_and_name() {
        let url = "postgres://u@db1:1,db2:2,[::1]:3/app";
        assert_eq!(names(url), ["db1:1", "db2:2", "[::1]:3"]);
        assert_eq!(names("host=a,b port=7"), ["a:7", "b:7"]);
        assert_eq!(
            names("host=a,/run hostaddr=192.0.2.1,192.0.2.2")[1],
            "Unix socket 2"
        );
        assert_eq!(names("hostaddr=192.0.2.1"), ["192.0.2.1:5432"]);
        let config: Config = "host=a,b port=1,2".parse().unwrap();
        let second = &split(&config)[1].config;
        assert_eq!(
            (second.get_hosts().len(), second.get_ports()),
            (1, &[2][..])
        );
    }

    #[test]
    fn a_host_that_may_be_part_of_a_password_is_not_named() {
        let url = "postgres://alice:x@hunter2,y@127.0.0.1:1/db";
        assert_eq!(names(url), ["host 1", "host 2"]);
    }

    #[test]
    fn unequal_numbers_are_left_to_the_driver() {
        for url in ["", "host=a,b hostaddr=192.0.2.1", "host=a,b,c port=1,2"] {
            let config: Config = url.parse().unwrap();
            let hosts = split(&config);
            assert_eq!((hosts.len(), &hosts[0].config), (1, &config), "{url}");
        }
    }
}
