//! A service that asks for API keys, over keys in a file: `cargo run --example service`.
//!
//! The first run makes an admin key, prints it once, and prints the lines that try everything in
//! another terminal; later runs do not know the key. All that is kept is in one folder,
//! `target/service` unless `--data` names another: delete it to start over. Started twice with
//! different ports, two services share the file, and each refuses what the other revoked. Built with
//! `--features postgres`, it keeps keys in a database too: `--database postgres://…`.
//!
//! `routes` says which key a request needs, `management` lets keys be managed with a key, and here is
//! how such a service starts and ends.

mod failure;
mod first_run;
mod management;
mod routes;

use std::io::Write;
use std::net::SocketAddr;
#[cfg(feature = "postgres")]
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
#[cfg(feature = "postgres")]
use keyward::store::PostgresStore;
use keyward::store::{KeyStore, NodeRegistry, SqliteStore};
use keyward::{FollowOptions, Keyward, PepperFile};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use self::first_run::Kept;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// For how long requests that are under way may go on once the service was told to stop. Less than
/// the 30 seconds after which Kubernetes kills.
const FINISH_WITHIN: Duration = Duration::from_secs(20);

/// A service whose routes ask for API keys.
#[derive(Debug, Parser)]
struct Settings {
    /// The address and port to listen at; port 0 for any that is free
    #[arg(long, env = "SERVICE_LISTEN", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// The folder in which keys are kept
    #[arg(long, env = "SERVICE_DATA", default_value = "target/service")]
    data: PathBuf,
    /// A database to keep keys in, instead of a file: postgres://USER:PASSWORD@HOST/DATABASE
    #[cfg(feature = "postgres")]
    #[arg(long, env = "SERVICE_DATABASE", hide_env_values = true)]
    database: Option<Url>,
    /// The schema of the database that holds them
    #[cfg(feature = "postgres")]
    #[arg(long, env = "SERVICE_SCHEMA", default_value = "keyward")]
    schema: String,
}

/// Holds a password, and prints none.
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

fn main() -> Fallible<()> {
    let settings = Settings::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread();
    { runtime }.enable_all().build()?.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> Fallible<()> {
    let told_to_stop = told_to_stop()?;
    // Before the admin key is made: a port that is taken must not cost the only time it is shown.
    let listener = TcpListener::bind(settings.listen).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (keys, kept) = open(settings).await?;
    let follower = keys.follow(FollowOptions::default())?;
    first_run::welcome(&keys, &kept, &url).await?;
    writeln!(std::io::stdout(), "Listening on {url}")?;

    let (stops, stopping) = oneshot::channel();
    let app = routes::router(&keys).into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async {
        told_to_stop.await;
        tracing::info!("stopping: nothing new is accepted, what is under way is finished");
        let _ = stops.send(());
    });
    let patience = async {
        let _ = stopping.await;
        tokio::time::sleep(FINISH_WITHIN).await;
    };
    tokio::select! {
        served = serving => served?,
        () = patience => tracing::warn!("requests still under way after {FINISH_WITHIN:?} are cut off"),
    }
    // Keys are followed to the end: what is revoked meanwhile is refused meanwhile.
    follower.stop().await;
    keys.leave().await?;
    tracing::info!("stopped");
    Ok(())
}

/// Opens the keys, or makes a place for them.
///
/// The pepper lies beside them for the sake of a trial. A real service keeps it elsewhere, so that
/// whoever copies the keys, or a backup of them, has no pepper.
async fn open(settings: &Settings) -> Fallible<(Keyward, Kept)> {
    let data = &settings.data;
    std::fs::create_dir_all(data)?;
    #[cfg(feature = "postgres")]
    if let Some(Url(url)) = &settings.database {
        let store = PostgresStore::options(url).schema(&settings.schema);
        let store = store.connect().await?;
        let first = store.scan(None, NonZeroUsize::MIN).await?;
        let keys = build(store.clone(), !first.rows.is_empty(), data).await?;
        let place = format!("the database's schema {}", store.schema());
        return Ok((keys, Kept { place, end: "drop" }));
    }
    let file = data.join("keys.db");
    let known = file.exists();
    let keys = build(SqliteStore::open(file).await?, known, data).await?;
    let place = data.display().to_string();
    let end = "delete";
    Ok((keys, Kept { place, end }))
}

async fn build<S>(store: S, known: bool, data: &Path) -> Fallible<Keyward>
where
    S: KeyStore + NodeRegistry + Clone,
{
    let pepper = data.join("pepper");
    // A new pepper in place of a lost one would verify nothing.
    let peppers = match known {
        true => PepperFile::read(pepper)?,
        false => PepperFile::open_or_create(pepper)?,
    };
    let keys = Keyward::builder(store.clone(), peppers).registry(store);
    Ok(keys.build().await?)
}

/// Resolves at ctrl-c or SIGTERM, from the call on.
fn told_to_stop() -> Fallible<impl Future<Output = ()>> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}
