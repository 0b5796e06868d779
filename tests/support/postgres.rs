//! A PostgreSQL server for the tests, in a temporary folder.
//!
//! A watchdog stops the server when the test process ends, even if the test process is killed.
//! `KEYWARD_TEST_POSTGRES_URL` makes the tests use another server.

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use keyward::store::PostgresStore;
use keyward::store::postgres::deadpool_postgres::{Manager, Pool, Runtime};
use keyward::store::postgres::{ConnectError, PostgresOptions};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::turns::RoundRobin;

/// The environment variable with the URL of an existing server. If set, the tests use that server.
const GIVEN: &str = "KEYWARD_TEST_POSTGRES_URL";

/// A PostgreSQL server that a test may kill, pause and restart.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
    port: u16,
    /// A watchdog process. When the test process ends or closes the pipe, the watchdog stops the server and
    /// removes its folder.
    watchdog: Child,
    process: Mutex<Option<Child>>,
    /// The path of a library that the server preloads. The library intercepts calls to the operating system.
    shim: Option<PathBuf>,
}

impl Server {
    /// Starts a server on a Unix socket. `settings` are lines of its configuration file.
    pub fn start(settings: &str) -> Self {
        Self::begin(5432, settings, &[], |_| None)
    }

    /// Starts a server that also listens on 127.0.0.1. `files` are additional files in its data folder.
    pub fn on_loopback(settings: &str, files: &[(&str, &str)]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let settings = format!("listen_addresses = '127.0.0.1'\nport = {port}\n{settings}");
        Self::begin(port, &settings, files, |_| None)
    }

    /// Starts a server that preloads a library. `shim` gets the server's folder and returns the library's
    /// path.
    pub fn start_with(settings: &str, shim: impl FnOnce(&Path) -> Option<PathBuf>) -> Self {
        Self::begin(5432, settings, &[], shim)
    }

    /// Starts a standby that replicates from `primary`.
    pub fn standby_of(primary: &Self) -> Self {
        let server = Self::prepare(5432, |_| None);
        let mut copy = server.program("pg_basebackup");
        copy.args(["-R", "-c", "fast", "--no-sync", "-U", "postgres"]);
        run(copy.arg("-h").arg(&primary.folder));
        server.configure("");
        server.resume();
        server
    }

    fn begin(
        port: u16,
        settings: &str,
        files: &[(&str, &str)],
        shim: impl FnOnce(&Path) -> Option<PathBuf>,
    ) -> Self {
        let server = Self::prepare(port, shim);
        let mut init = server.program("initdb");
        init.args(["-A", "trust", "-U", "postgres", "-E", "UTF8"]);
        run(init.args(["--locale=C", "--no-sync"]));
        server.configure(&format!(
            "listen_addresses = ''\nmax_connections = 200\n{settings}"
        ));
        for (name, text) in files {
            let file = server.folder.join("data").join(name);
            std::fs::write(&file, text).unwrap();
            run(Command::new("chmod").arg("600").arg(&file));
            give_to_server(&file);
        }
        server.resume();
        server
    }

    /// Creates the folder, and the watchdog that later removes it.
    fn prepare(port: u16, shim: impl FnOnce(&Path) -> Option<PathBuf>) -> Self {
        let folder = TempDir::new().unwrap().keep();
        let shim = shim(&folder);
        give_to_server(&folder);
        // A process stopped by SIGSTOP handles no other signal, so the script sends SIGCONT first.
        let script = r#"read -r _; read -r pid <"$2/data/postmaster.pid"
            kill -CONT "$pid" $(cat "/proc/$pid/task/$pid/children")
            "$1" -D "$2/data" -m immediate stop; rm -rf "$2""#;
        let mut watchdog = as_user(Path::new("sh"));
        watchdog.args(["-c", script, "watchdog"]);
        watchdog.arg(programs().join("pg_ctl")).arg(&folder);
        // In its own process group, the watchdog survives the Ctrl-C that ends a test run.
        watchdog.stdin(Stdio::piped()).process_group(0);
        watchdog.stdout(Stdio::null()).stderr(Stdio::null());
        let watchdog = watchdog.spawn().unwrap();
        Self {
            folder,
            port,
            watchdog,
            process: Mutex::new(None),
            shim,
        }
    }

    /// Appends settings to the configuration file. PostgreSQL uses the last value of each setting.
    fn configure(&self, settings: &str) {
        let file = self.folder.join("data/postgresql.conf");
        let mut text = std::fs::read_to_string(&file).unwrap();
        let here = self.folder.display();
        text += &format!("unix_socket_directories = '{here}'\n{settings}\n");
        std::fs::write(&file, text).unwrap();
    }

    /// Appends settings to the configuration file and reloads the file.
    pub fn reconfigure(&self, settings: &str) {
        self.configure(settings);
        run(self.program("pg_ctl").arg("reload"));
    }

    pub fn url(&self) -> String {
        let (host, port) = (self.folder.display(), self.port);
        format!("host={host} port={port} user=postgres dbname=postgres")
    }

    /// Returns the port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the path of a file in the server's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns a URL with the hosts of both servers. The store connects to the first one that accepts writes.
    pub fn url_or(&self, other: &Self) -> String {
        let (one, other) = (self.folder.display(), other.folder.display());
        format!("host={one},{other} user=postgres dbname=postgres")
    }

    /// Returns the folder of the server's socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the server's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Restarts the server on its existing data.
    pub fn resume(&self) {
        let log = self.folder.join("log");
        let mut file = std::fs::File::options();
        let file = file.create(true).append(true).open(&log).unwrap();
        // Retries, because child processes of a killed server may hold its shared memory for a moment.
        for _ in 0..100 {
            let mut start = self.program("postgres");
            start.stdin(Stdio::null()).stdout(Stdio::null());
            start.envs(self.shim.iter().map(|library| ("LD_PRELOAD", library)));
            start.stderr(file.try_clone().unwrap()).process_group(0);
            let mut process = start.spawn().unwrap();
            if self.is_up(&mut process) {
                *self.process.lock().unwrap() = Some(process);
                return;
            }
        }
        let log = std::fs::read_to_string(log).unwrap_or_default();
        panic!("the server does not start: {log}");
    }

    /// Waits until the server accepts connections. Returns `false` if the server exits first.
    fn is_up(&self, process: &mut Child) -> bool {
        while process.try_wait().unwrap().is_none() {
            let mut asked = Command::new(programs().join("pg_isready"));
            asked.arg("-q").arg("-h").arg(&self.folder);
            asked.arg("-p").arg(self.port.to_string());
            if asked.status().unwrap().success() {
                return true;
            }
        }
        false
    }

    /// Kills all processes of the server. Data that the server passed to the operating system survives.
    pub fn kill(&self) {
        self.stop_main();
        self.signal(Signal::KILL);
        let process = self.process.lock().unwrap().take();
        process.unwrap().wait().unwrap();
    }

    /// Stops all processes of the server with SIGSTOP until the returned value is dropped.
    pub fn pause(&self) -> PausedServer<'_> {
        self.stop_main();
        self.signal(Signal::STOP);
        PausedServer(self)
    }

    fn main(&self) -> Pid {
        Pid::from_child(self.process.lock().unwrap().as_ref().unwrap())
    }

    /// Sends SIGSTOP to the postmaster, which starts all other processes, and waits until the postmaster is
    /// stopped.
    fn stop_main(&self) {
        let main = self.main();
        kill_process(main, Signal::STOP).unwrap();
        waitid(WaitId::Pid(main), WaitIdOptions::STOPPED).unwrap();
    }

    fn signal(&self, signal: Signal) {
        let main = self.main();
        let children = format!("/proc/{0}/task/{0}/children", main.as_raw_nonzero());
        let children = std::fs::read_to_string(children).unwrap();
        for child in children.split_whitespace() {
            let child = Pid::from_raw(child.parse().unwrap()).unwrap();
            // The process may have exited already.
            let _ = kill_process(child, signal);
        }
        kill_process(main, signal).unwrap();
    }

    /// Removes the server's socket file. New connections fail, and existing connections stay open.
    pub fn hide(&self) {
        std::fs::remove_file(self.folder.join(".s.PGSQL.5432")).unwrap();
    }

    /// Restarts the server as a standby without a primary.
    pub fn demote(&self) {
        self.stop("fast");
        std::fs::write(self.folder.join("data/standby.signal"), "").unwrap();
        self.resume();
    }

    fn stop(&self, how: &str) {
        let process = self.process.lock().unwrap().take();
        if let Some(mut process) = process {
            let mut stop = self.program("pg_ctl");
            run(stop.args(["-W", "-m", how, "stop"]));
            process.wait().unwrap();
        }
    }

    fn program(&self, name: &str) -> Command {
        let mut program = as_user(&programs().join(name));
        program.arg("-D").arg(self.folder.join("data"));
        program
    }
}

/// A server that stays stopped until this value is dropped.
#[must_use = "the server continues when this value is dropped"]
pub struct PausedServer<'s>(&'s Server);

impl Drop for PausedServer<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("immediate");
        drop(self.watchdog.stdin.take());
        drop(self.watchdog.wait());
    }
}

/// Returns the folder with the programs of the newest installed PostgreSQL version.
pub fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let folders = versions.into_iter().flatten().flatten();
    let newest = folders
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .max();
    let (_, newest) = newest.unwrap_or_else(|| {
        panic!("no PostgreSQL in /usr/lib/postgresql: install `postgresql`, or set {GIVEN}")
    });
    newest
}

/// Returns the user that runs the server if the tests run as root, because PostgreSQL refuses to run as root.
fn unprivileged() -> Option<&'static str> {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    root.then_some("postgres")
}

/// Makes the user that runs the server the owner of a file or folder.
pub(crate) fn give_to_server(path: &Path) {
    if let Some(user) = unprivileged() {
        run(Command::new("chown").arg(user).arg(path));
    }
}

pub(crate) fn as_user(program: &Path) -> Command {
    let Some(user) = unprivileged() else {
        return Command::new(program);
    };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]);
    command.arg(program).current_dir("/");
    command
}

fn run(command: &mut Command) {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {ran:?}");
}

/// Returns the URL of the server that tests share. These tests must not change its settings.
pub fn url() -> String {
    static SHARED: OnceLock<Server> = OnceLock::new();
    // Without fsync, a killed process still loses no writes, because the operating system keeps them.
    std::env::var(GIVEN)
        .unwrap_or_else(|_| SHARED.get_or_init(|| Server::start("fsync = off")).url())
}

/// Returns the runtime that all tests share. Tests call the store from outside the runtime, as applications
/// may.
pub fn runtime() -> Handle {
    static SHARED: OnceLock<Handle> = OnceLock::new();
    let start = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    };
    SHARED.get_or_init(start).clone()
}

/// Runs a future on the runtime and waits for it.
pub fn on_runtime<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    pollster::block_on(runtime().spawn(work)).unwrap()
}

/// A database schema for one test. On a server named by the environment variable, dropping this value drops
/// the schema.
#[derive(Debug)]
pub struct TestSchema {
    pub url: String,
    pub schema: String,
}

impl TestSchema {
    /// Waits until the query `sql` returns exactly one row with the value `text`.
    pub fn until(&self, sql: &str, text: &str) {
        assert!(
            (0..5000).any(|_| self.ask(sql) == [text]),
            "{sql} is not {text}: {:?}",
            self.ask(sql)
        );
    }

    /// Waits until a commit waits for the standby. Then calls the server function `function` with the process
    /// id of that commit's backend.
    pub fn on_who_waits(&self, function: &str) {
        let sql = format!(
            "SELECT {function}(pid)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        );
        assert!(
            (0..5000).any(|_| !self.ask(&sql).is_empty()),
            "nothing waits for the standby"
        );
    }

    pub fn new() -> Self {
        Self::at(url())
    }

    pub fn at(url: String) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let schema = format!("test_{}_{number}", std::process::id());
        Self { url, schema }
    }

    pub fn options(&self) -> PostgresOptions {
        PostgresStore::options(&self.url)
            .schema(&self.schema)
            .max_connections(4.try_into().unwrap())
            // Most tests use a manual clock, which the server's real clock would contradict.
            .server_clock(false)
    }

    pub fn connect(&self) -> PostgresStore {
        open(self.options()).unwrap()
    }

    /// Runs SQL on a separate connection, not through the store. `$s` stands for the name of the schema.
    pub fn run(&self, sql: &str) {
        self.try_run(sql).unwrap();
    }

    /// Like `run`, but returns the error if the server refuses a statement.
    pub fn try_run(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        let sql = sql.replace("$s", &self.schema);
        let client = self.client();
        on_runtime(async move { client.batch_execute(&sql).await })
    }

    /// Returns the first column of a query's rows, which must be text.
    pub fn ask(&self, sql: &str) -> Vec<String> {
        let sql = sql.replace("$s", &self.schema);
        let client = self.client();
        let rows = on_runtime(async move { client.query(&sql, &[]).await }).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Begins a transaction and runs a statement in it. The transaction ends when the returned client is
    /// dropped.
    pub fn hold(&self, sql: &str) -> tokio_postgres::Client {
        let sql = format!("BEGIN; {}", sql.replace("$s", &self.schema));
        let client = self.client();
        on_runtime(async move {
            client.batch_execute(&sql).await.unwrap();
            client
        })
    }

    /// Waits until a query returns a row.
    pub fn until_found(&self, sql: &str) {
        while self.ask(sql).is_empty() {}
    }

    /// Waits until no transaction holds the lock on the row in `head`.
    pub fn until_free(&self) {
        self.run("SELECT 1 FROM $s.head FOR UPDATE");
    }

    fn client(&self) -> tokio_postgres::Client {
        let url = self.url.clone();
        on_runtime(async move {
            let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
            let (client, connection) = connected.unwrap();
            tokio::spawn(connection);
            client
        })
    }
}

impl Drop for TestSchema {
    fn drop(&mut self) {
        // Only a server named by the environment variable needs this. A server that the tests start is
        // deleted with all its schemas.
        if std::env::var(GIVEN).is_ok_and(|given| given == self.url) {
            self.run("DROP SCHEMA IF EXISTS $s CASCADE");
        }
    }
}

pub fn open(options: PostgresOptions) -> Result<PostgresStore, ConnectError> {
    on_runtime(options.connect())
}

/// Creates a connection pool, as an application would.
pub fn pool(url: &str, connections: usize) -> Pool {
    let manager = Manager::new(url.parse().unwrap(), tokio_postgres::NoTls);
    let pool = Pool::builder(manager).max_size(connections);
    pool.runtime(Runtime::Tokio1).build().unwrap()
}

/// Creates several store instances on one schema. Each call goes to the next instance in turn.
pub fn shared(instances: usize) -> RoundRobin<PostgresStore, TestSchema> {
    let place = TestSchema::new();
    let stores: Vec<_> = (0..instances).map(|_| place.connect()).collect();
    let mut stores = stores.into_iter();
    RoundRobin::new(instances, |_| stores.next().unwrap(), place)
}
