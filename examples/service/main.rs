//! A service that requires API keys, with keys in a file: `cargo run --example service`.
//!
//! The first run creates an admin key, prints it once, and prints commands to try in another terminal. Later
//! runs cannot print the key. Everything is kept in one folder, `target/service` unless `--data` names
//! another. Delete the folder to start over. Two services on different ports can share the folder, and each
//! refuses keys that the other revoked. Built with `--features postgres`, the service can also keep keys in a
//! database: `--database postgres://…`.
//!
//! The module `routes` sets the scope that each route requires. The module `management` contains the routes
//! that manage keys. This file starts and stops the service.

mod failure;
mod first_run;
mod management;
mod routes;

use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
#[cfg(feature = "postgres")]
use keyward::store::PostgresStore;
use keyward::store::{KeyStore, NodeRegistry, SqliteStore};
use keyward::{Keyward, PepperFile, WithSources};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use self::first_run::Kept;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The time for requests in flight to finish after the stop signal: 20 s. Kubernetes kills the service after
/// 30 s.
const FINISH_WITHIN: Duration = Duration::from_secs(20);

/// A service whose routes require API keys.
#[derive(Debug, Parser)]
struct Settings {
    /// The address and port to listen at; port 0 for any that is free
    #[arg(long, env = "SERVICE_LISTEN", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// The folder for keys
    #[arg(long, env = "SERVICE_DATA", default_value = "target/service")]
    data: PathBuf,
    /// A database for keys, instead of a file: postgres://USER:PASSWORD@HOST/DATABASE
    #[cfg(feature = "postgres")]
    #[arg(long, env = "SERVICE_DATABASE", hide_env_values = true)]
    database: Option<Url>,
    /// The schema of the database given by --database
    #[cfg(feature = "postgres")]
    #[arg(long, env = "SERVICE_SCHEMA", default_value = "keyward")]
    schema: String,
}

/// A URL that may hold a password. `Debug` does not print it.
#[cfg(feature = "postgres")]
#[derive(Clone)]
struct Url(String);

#[cfg(feature = "postgres")]
impl From<String> for Url {
    fn from(url: String) -> Self {
        Self(url)
    }
}

#[cfg(feature = "postgres")]
impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Url(…)")
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The text names the thing, the value and the next step.
            eprintln!("service: {}", WithSources(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Fallible<()> {
    let settings = Settings::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread();
    { runtime }.enable_all().build()?.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> Fallible<()> {
    let stop_signal = stop_signal()?;
    // Binds first: if the port is taken, the run ends before it creates the admin key, which is shown only
    // once.
    let listener = TcpListener::bind(settings.listen).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (keys, kept) = open(settings).await?;
    first_run::welcome(&keys, &kept, &url).await?;
    writeln!(std::io::stdout(), "Listening on {url}")?;

    let (stops, stopping) = oneshot::channel();
    let app = routes::router(&keys).into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async {
        stop_signal.await;
        tracing::info!("stopping: accepting no new connections, finishing requests in flight");
        let _ = stops.send(());
    });
    let patience = async {
        let _ = stopping.await;
        tokio::time::sleep(FINISH_WITHIN).await;
    };
    tokio::select! {
        served = serving => served?,
        () = patience => tracing::warn!("aborting requests still in flight after {FINISH_WITHIN:?}"),
    }
    // Follows the store to the end, so that a key that is revoked during the shutdown is still refused.
    keys.close().await?;
    tracing::info!("stopped");
    Ok(())
}

/// Opens the store, or creates it.
///
/// The pepper is next to the keys only because this is an example. A real service stores the pepper
/// separately, so that a copy or a backup of the keys contains no pepper.
async fn open(settings: &Settings) -> Fallible<(Keyward, Kept)> {
    let data = &settings.data;
    std::fs::create_dir_all(data)?;
    #[cfg(feature = "postgres")]
    if let Some(Url(url)) = &settings.database {
        let store = PostgresStore::options(url).schema(&settings.schema);
        let store = store.connect().await?;
        let keys = build(store.clone(), data).await?;
        let place = format!("the database's schema {}", store.schema());
        return Ok((keys, Kept { place, end: "drop" }));
    }
    let keys = build(SqliteStore::open(data.join("keys.db")).await?, data).await?;
    let place = data.display().to_string();
    let end = "delete";
    Ok((keys, Kept { place, end }))
}

async fn build<S>(store: S, data: &Path) -> Fallible<Keyward>
where
    S: KeyStore + NodeRegistry + Clone,
{
    let pepper = data.join("pepper");
    // Existing keys need their own pepper: a new pepper would verify none of them. An empty store may have no
    // pepper yet, because an earlier run was killed before it created one.
    let first = store.scan(None, NonZeroUsize::MIN).await?;
    let peppers = match first.rows.is_empty() {
        true => PepperFile::open_or_create(pepper)?,
        false => PepperFile::open(pepper)?,
    };
    let keys = Keyward::builder(store.clone(), peppers.ring()).registry(store);
    Ok(keys.build().await?)
}

/// Returns a future that resolves on ctrl-c or SIGTERM. A signal that arrives after this call is not lost,
/// even if the future is not polled yet.
fn stop_signal() -> Fallible<impl Future<Output = ()>> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}
