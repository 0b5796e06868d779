//! A PostgreSQL server for the tests, with its data in a temporary folder.
//!
//! A watchdog process stops the server when the test process ends, even if the test process is killed.
//! `KEYWARD_TEST_POSTGRES_URL` names another server that the tests use instead.

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

/// The name of an environment variable. If it is set, most tests use the server at its URL instead of
/// starting one.
const GIVEN: &str = "KEYWARD_TEST_POSTGRES_URL";

/// A PostgreSQL server that the test has started, and can kill, pause and restart.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
    port: u16,
    /// A process that waits for the end of its pipe, which closes when the test process ends. The watchdog
    /// then stops the server and removes its folder.
    watchdog: Child,
    process: Mutex<Option<Child>>,
    /// The path of a library that the server preloads, which intercepts calls to the operating system.
    shim: Option<PathBuf>,
}

impl Server {
    /// Starts a server that listens only on a Unix socket. The text `settings` is added to its configuration
    /// file.
    pub fn start(settings: &str) -> Self {
        Self::begin(5432, settings, &[], |_| None)
    }

    /// Starts a server that also listens on 127.0.0.1. Each pair in `files` is the name and the contents of a
    /// file in the server's data folder.
    pub fn on_loopback(settings: &str, files: &[(&str, &str)]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let settings = format!("listen_addresses = '127.0.0.1'\nport = {port}\n{settings}");
        Self::begin(port, &settings, files, |_| None)
    }

    /// Starts a server that preloads a library. The function `shim` gets the server's folder, and returns the
    /// path of the library.
    pub fn start_with(settings: &str, shim: impl FnOnce(&Path) -> Option<PathBuf>) -> Self {
        Self::begin(5432, settings, &[], shim)
    }

    /// Starts a standby that replicates the data of `primary`.
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

    /// Creates the folder of a server, and starts the watchdog that later removes the folder.
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
        // A process group of its own protects the watchdog from the Ctrl-C with which a user ends a test run.
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

    /// Adds settings to the configuration file. If a setting occurs several times, PostgreSQL uses the last
    /// value.
    fn configure(&self, settings: &str) {
        let file = self.folder.join("data/postgresql.conf");
        let mut text = std::fs::read_to_string(&file).unwrap();
        let here = self.folder.display();
        text += &format!("unix_socket_directories = '{here}'\n{settings}\n");
        std::fs::write(&file, text).unwrap();
    }

    /// Adds settings to the configuration file, and makes the server reload the file.
    pub fn reconfigure(&self, settings: &str) {
        self.configure(settings);
        run(self.program("pg_ctl").arg("reload"));
    }

    pub fn url(&self) -> String {
        let (host, port) = (self.folder.display(), self.port);
        format!("host={host} port={port} user=postgres dbname=postgres")
    }

    /// Returns the number of the port on which the server listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the path of a file in the server's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns a URL that names this server and another one. The store connects to the first of them that
    /// accepts writes.
    pub fn url_or(&self, other: &Self) -> String {
        let (one, other) = (self.folder.display(), other.folder.display());
        format!("host={one},{other} user=postgres dbname=postgres")
    }

    /// Returns the folder that contains the server's Unix socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns everything that the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Starts the server again, with the data that it had before.
    pub fn resume(&self) {
        let log = self.folder.join("log");
        let mut file = std::fs::File::options();
        let file = file.create(true).append(true).open(&log).unwrap();
        // Starting may fail at first, because child processes of a killed server hold its shared memory until
        // they have ended.
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

    /// Waits until the server accepts connections, and returns `true`. Returns `false` if the server exits
    /// before.
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

    /// Kills all processes of the server. The operating system keeps the data that the server has already
    /// written to files.
    pub fn kill(&self) {
        self.stop_main();
        self.signal(Signal::KILL);
        let process = self.process.lock().unwrap().take();
        process.unwrap().wait().unwrap();
    }

    /// Suspends all processes of the server, until the returned value is dropped.
    pub fn pause(&self) -> PausedServer<'_> {
        self.stop_main();
        self.signal(Signal::STOP);
        PausedServer(self)
    }

    fn main(&self) -> Pid {
        Pid::from_child(self.process.lock().unwrap().as_ref().unwrap())
    }

    /// Suspends the postmaster, the process that starts all others, so that no new process appears. Waits
    /// until it is suspended.
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
            // The process may have exited since it was listed, so an error is ignored.
            let _ = kill_process(child, signal);
        }
        kill_process(main, signal).unwrap();
    }

    /// Removes the file of the server's socket, so that new connections fail. Existing connections continue
    /// to work.
    pub fn hide(&self) {
        std::fs::remove_file(self.folder.join(".s.PGSQL.5432")).unwrap();
    }

    /// Restarts the server as a standby, but without a primary to follow.
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

/// A suspended server, which continues when this value is dropped.
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

/// Returns the folder with the programs of PostgreSQL, in the newest version that is installed.
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

/// Returns the name of an unprivileged user if the tests run as root. PostgreSQL refuses to run as root.
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

/// Returns the URL of a server that most tests share. A test that changes a server's settings must start its
/// own.
pub fn url() -> String {
    static SHARED: OnceLock<Server> = OnceLock::new();
    // The server runs without fsync. A process that is killed loses no writes even so, because the operating
    // system has them.
    std::env::var(GIVEN)
        .unwrap_or_else(|_| SHARED.get_or_init(|| Server::start("fsync = off")).url())
}

/// Returns the runtime of the tests, on which the driver runs. Tests call the store from threads outside the
/// runtime, as an application may.
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

/// Runs a future on the runtime of the tests, and waits for its output.
pub fn on_runtime<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    pollster::block_on(runtime().spawn(work)).unwrap()
}

/// A database schema for one test. Dropping this value also drops the schema if the server is one that the
/// tests did not start.
#[derive(Debug)]
pub struct TestSchema {
    pub url: String,
    pub schema: String,
}

impl TestSchema {
    /// Waits until a query returns exactly one row, whose value is `text`.
    pub fn until(&self, sql: &str, text: &str) {
        assert!(
            (0..5000).any(|_| self.ask(sql) == [text]),
            "{sql} is not {text}: {:?}",
            self.ask(sql)
        );
    }

    /// Waits until a commit waits for the standby. Then calls a function of the server, such as
    /// `pg_cancel_backend`, with the process id of that commit.
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
            // The clock of the server is off here, because most tests use a manual clock, and the two would
            // contradict each other.
            .server_clock(false)
    }

    pub fn connect(&self) -> PostgresStore {
        open(self.options()).unwrap()
    }

    /// Runs SQL statements directly on the server, not through the store. `$s` in the text stands for the
    /// name of the schema.
    pub fn run(&self, sql: &str) {
        self.try_run(sql).unwrap();
    }

    /// Runs SQL statements like `run`, but returns an error if the server refuses one of them.
    pub fn try_run(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        let sql = sql.replace("$s", &self.schema);
        let client = self.client();
        on_runtime(async move { client.batch_execute(&sql).await })
    }

    /// Runs a query, and returns the first column of each row. The column must be text.
    pub fn ask(&self, sql: &str) -> Vec<String> {
        let sql = sql.replace("$s", &self.schema);
        let client = self.client();
        let rows = on_runtime(async move { client.query(&sql, &[]).await }).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Begins a transaction, runs a statement, and leaves the transaction open with all of its locks.
    /// Dropping the returned client ends it.
    pub fn hold(&self, sql: &str) -> tokio_postgres::Client {
        let sql = format!("BEGIN; {}", sql.replace("$s", &self.schema));
        let client = self.client();
        on_runtime(async move {
            client.batch_execute(&sql).await.unwrap();
            client
        })
    }

    /// Waits until a query returns at least one row.
    pub fn until_found(&self, sql: &str) {
        while self.ask(sql).is_empty() {}
    }

    /// Waits until no commit is in progress. Every commit locks the only row of the table `head`.
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
        // Servers that the tests start are deleted with all of their schemas. Only on another server must the
        // schema be dropped.
        if std::env::var(GIVEN).is_ok_and(|given| given == self.url) {
            self.run("DROP SCHEMA IF EXISTS $s CASCADE");
        }
    }
}

pub fn open(options: PostgresOptions) -> Result<PostgresStore, ConnectError> {
    on_runtime(options.connect())
}

/// Creates a connection pool, as an application that brings its own pool would.
pub fn pool(url: &str, connections: usize) -> Pool {
    let manager = Manager::new(url.parse().unwrap(), tokio_postgres::NoTls);
    let pool = Pool::builder(manager).max_size(connections);
    pool.runtime(Runtime::Tokio1).build().unwrap()
}

/// Creates several store instances on one schema, which are called in turn.
pub fn shared(instances: usize) -> RoundRobin<PostgresStore, TestSchema> {
    let place = TestSchema::new();
    let stores: Vec<_> = (0..instances).map(|_| place.connect()).collect();
    let mut stores = stores.into_iter();
    RoundRobin::new(instances, |_| stores.next().unwrap(), place)
}
