//! A PgBouncer in front of a test's PostgreSQL server.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tempfile::TempDir;

use crate::postgres::{Server, as_user, give_to_server};

/// Debian's package `pgbouncer` installs the program here.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// A running PgBouncer. It stops when this value is dropped, or when the test process ends.
#[derive(Debug)]
pub struct PgBouncer {
    folder: PathBuf,
    /// A shell that waits for the end of its input, and then stops PgBouncer and removes the folder.
    watchdog: Child,
}

impl PgBouncer {
    /// Starts PgBouncer on a Unix socket. `settings` are lines of its configuration file.
    pub fn before(server: &Server, settings: &str) -> Self {
        assert!(
            Path::new(PROGRAM).exists(),
            "no PgBouncer in {PROGRAM}: install `pgbouncer`"
        );
        let folder = TempDir::new().unwrap().keep();
        let here = folder.display();
        let there = server.folder().display();
        let port = server.port();
        // `any` ignores the user's name: the server of the tests trusts its socket file.
        let text = format!(
            "[databases]\npostgres = host={there} port={port} user=postgres\n\
             [pgbouncer]\nlisten_addr =\nlisten_port = 5432\nunix_socket_dir = {here}\n\
             auth_type = any\n{settings}\n"
        );
        std::fs::write(folder.join("pgbouncer.ini"), text).unwrap();
        give_to_server(&folder);
        // PgBouncer refuses to run as root.
        let mut watchdog = as_user(Path::new("sh"));
        let script =
            r#""$1" -q "$2/pgbouncer.ini" 2>"$2/log" & read -r _; kill -INT $!; wait; rm -rf "$2""#;
        watchdog
            .args(["-c", script, "watchdog", PROGRAM])
            .arg(&folder);
        watchdog.stdin(Stdio::piped()).process_group(0);
        watchdog.stdout(Stdio::null()).stderr(Stdio::null());
        let watchdog = watchdog.spawn().unwrap();
        let pooler = Self { folder, watchdog };
        pooler.wait_until_up();
        pooler
    }

    fn wait_until_up(&self) {
        let socket = self.folder.join(".s.PGSQL.5432");
        let up = (0..1_000_000).any(|_| {
            std::thread::yield_now();
            UnixStream::connect(&socket).is_ok()
        });
        let log = || std::fs::read_to_string(self.folder.join("log"));
        assert!(up, "PgBouncer does not start: {:?}", log());
    }

    /// Returns the URL of the database behind PgBouncer.
    pub fn url(&self) -> String {
        let host = self.folder.display();
        format!("host={host} user=postgres dbname=postgres")
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        drop(self.watchdog.wait());
    }
}
