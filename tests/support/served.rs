//! The example `service` as a real process, and HTTP requests to it.

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

/// The longest wait for a response or a log line: 60 s, so that no test fails on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn command(folder: &Path, listen: &str) -> Command {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| example::build("service"));
    let mut command = Command::new(&*BUILT);
    command.args(["--listen", listen, "--data"]);
    command.arg(folder.join("data"));
    // Enables every log line of the service and of its dependencies.
    command.env("RUST_LOG", "trace").stdin(Stdio::null());
    command
}

/// A running service process. Killed on drop if it is still running.
pub struct ServiceProcess {
    pub child: Child,
    /// The lines that the service printed on stdout before it started to serve.
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

    /// Starts a service with additional environment variables.
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

    /// Returns the example commands that the service prints for its user to paste into a shell.
    pub fn lines_to_try(&self) -> Vec<&str> {
        let indented = |line: &'_ String| line.starts_with("    ");
        let lines = self.printed.iter().filter(|line| indented(line));
        lines.map(|line| line.trim()).collect()
    }

    /// Returns the admin key, which the service prints only on its first run.
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

    /// Reads log lines until a line contains `words`.
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

    /// Waits for the process to exit successfully and returns its whole log.
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

    /// Sends a request on a new connection. Returns the status and the body of the response.
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

/// Reads a response to its end. Returns the status and the JSON body. The body is null if it is not JSON.
pub fn answer(stream: &mut TcpStream) -> (u16, Value) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}
