//! The example `service` as a real process, with functions that send HTTP requests to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::example;

/// 60 s, the longest that a test waits for a response or a log line. The time is long, so that no test fails
/// on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn command(folder: &Path, listen: &str) -> Command {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| example::build("service"));
    let mut command = Command::new(&*BUILT);
    command.args(["--listen", listen, "--data"]);
    command.arg(folder.join("data"));
    // The log contains every line, so that a test can search all of it for secrets.
    command.env("RUST_LOG", "trace").stdin(Stdio::null());
    command
}

/// A process that runs the example `service`. Dropping this value kills it.
pub struct ServiceProcess {
    pub child: Child,
    /// The lines that the service printed to stdout before it accepted connections.
    pub printed: Vec<String>,
    pub address: SocketAddr,
    logs: Receiver<String>,
    logged: String,
    reader: Option<JoinHandle<()>>,
}

impl ServiceProcess {
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    /// Starts the service with the given environment variables in addition to the usual ones.
    pub fn start_with(folder: &Path, variables: &[(&str, &str)]) -> Self {
        let mut command = command(folder, "127.0.0.1:0");
        command.envs(variables.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (send, logs) = mpsc::channel();
        let err = BufReader::new(child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            for line in err.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut printed = Vec::new();
        let mut address = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(url) = line.strip_prefix("Listening on http://") {
                address = Some(url.parse().unwrap());
                break;
            }
            printed.push(line);
        }
        Self {
            child,
            printed,
            address: address.expect("the service prints its address before it serves"),
            logs,
            logged: String::new(),
            reader: Some(reader),
        }
    }

    /// Returns the indented lines among the printed ones: commands for the user to paste into a shell.
    pub fn lines_to_try(&self) -> Vec<&str> {
        let indented = |line: &'_ String| line.starts_with("    ");
        let lines = self.printed.iter().filter(|line| indented(line));
        lines.map(|line| line.trim()).collect()
    }

    /// Returns the key of the administrator, which the service prints only when it runs for the first time.
    pub fn admin_key(&self) -> String {
        let line = self.lines_to_try();
        let key = line
            .iter()
            .find_map(|line| line.strip_prefix("export ADMIN_KEY="));
        key.expect("the first run prints the admin key").to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for a log line that contains `words`.
    pub fn wait_for(&mut self, words: &str) {
        loop {
            let line = self.logs.recv_timeout(PATIENCE).unwrap();
            self.logged.push_str(&line);
            self.logged.push('\n');
            if line.contains(words) {
                return;
            }
        }
    }

    /// Waits until the process exits successfully, and returns its whole log.
    pub fn ended(mut self) -> String {
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        self.logged
            .extend(self.logs.try_iter().map(|line| line + "\n"));
        assert!(status.success(), "{status}: {}", self.logged);
        std::mem::take(&mut self.logged)
    }

    pub fn stop(self) -> String {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Sends a request on a new connection. Returns the status of the response, and its JSON body.
    pub fn ask(&self, key: &str, method_and_path: &str, body: Option<Value>) -> (u16, Value) {
        self.ask_with(
            &[("authorization", &format!("Bearer {key}"))],
            method_and_path,
            body,
        )
    }

    pub fn ask_with(
        &self,
        headers: &[(&str, &str)],
        method_and_path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let mut stream = self.connect();
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let mut head = format!("{method_and_path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!(
                "content-type: application/json\r\ncontent-length: {}\r\n",
                body.len()
            );
        }
        stream
            .write_all(format!("{head}\r\n{body}").as_bytes())
            .unwrap();
        answer(&mut stream)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a response to its end. Returns its status and its JSON body, or null if the body is not JSON.
pub fn answer(stream: &mut TcpStream) -> (u16, Value) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}
