//! Runs the commands of a documentation page as a reader would, in order, with real processes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keyward::Clock;
use keyward::clocks::SystemClock;
use support::example;

/// 30 s: the time for a change to reach every process, which takes the staleness bound at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the text of a page in `docs`.
pub(crate) fn page(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    fs::read_to_string(docs.join(name)).unwrap()
}

/// Returns the section of a page under a heading of the second level.
pub(crate) fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    rest.split("\n## ").next().unwrap()
}

/// A command block of a page, and the lines that it must print.
pub(crate) struct PageStep {
    pub(crate) command: String,
    pub(crate) expected: Vec<String>,
}

/// Returns the `sh` blocks of a page, each with the `text` block that follows. A block in a list is indented.
pub(crate) fn steps(page: &str) -> Vec<PageStep> {
    let mut found: Vec<PageStep> = Vec::new();
    let mut language = None;
    for line in page.lines().map(str::trim_start) {
        match (line.strip_prefix("```"), language, found.last_mut()) {
            (Some(_), Some(_), _) => language = None,
            (Some(opened), None, _) => {
                language = Some(opened);
                if opened == "sh" {
                    let (command, expected) = Default::default();
                    found.push(PageStep { command, expected });
                }
            }
            (None, Some("sh"), Some(step)) => step.command += &format!("{line}\n"),
            (None, Some("text"), Some(step)) => step.expected.push(line.to_owned()),
            _ => {}
        }
    }
    found
}

/// The reader of a page: a folder, the services in other terminals, and the variables of the shell.
pub(crate) struct PageReader {
    folder: tempfile::TempDir,
    service: PathBuf,
    keyctl: PathBuf,
    running: Vec<Child>,
}

impl PageReader {
    /// Creates a reader for whom `cargo run` starts the example `service`.
    pub(crate) fn new(service: &str) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            service: example::build(service),
            keyctl: example::build("keyctl"),
            running: Vec::new(),
        }
    }

    /// Returns the path of a file in the reader's folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs one step, and requires each of its expected lines.
    pub(crate) fn follow(&mut self, step: &PageStep) {
        let PageStep { command, expected } = step;
        let missing = |out: &str| {
            let missing = expected.iter().filter(|line| !out.contains(*line));
            missing.cloned().collect::<Vec<_>>().join("\n")
        };
        if let Some(arguments) = command.strip_prefix("cargo run") {
            let out = self.start(arguments.trim().trim_start_matches("--").trim());
            assert_eq!(missing(&out), "", "{out}");
            return;
        }
        if command.starts_with("# Ctrl-C") {
            self.stop();
        }
        // A command that only reads is repeated until the change has reached its service.
        let only_reads = command.lines().all(|line| line.starts_with("curl "));
        let deadline = SystemClock.monotonic() + PATIENCE;
        loop {
            let out = self.run(command);
            if missing(&out).is_empty() {
                break;
            }
            assert!(
                only_reads && SystemClock.monotonic() < deadline,
                "{command}printed\n{out}\nwithout\n{}",
                missing(&out)
            );
        }
    }

    /// Runs `cargo run`, and returns the first line that the service prints.
    fn start(&mut self, arguments: &str) -> String {
        let mut command = Command::new(&self.service);
        command.args(arguments.split_whitespace());
        command.current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.running.push(child);
        lines.next().unwrap().unwrap()
    }

    /// Stops the services as Ctrl-C does. Each must end without an error.
    pub(crate) fn stop(&mut self) {
        for mut child in self.running.drain(..) {
            let process = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
            assert!(child.wait().unwrap().success());
        }
    }

    /// Runs a command block in a shell that keeps its variables for the next block. Returns all that it prints.
    pub(crate) fn run(&self, text: &str) -> String {
        let script = format!(
            "set -eu; keyctl() {{ '{}' \"$@\"; }}; [ ! -e .variables ] || . ./.variables\n{text}\nexport -p > .variables",
            self.keyctl.display()
        );
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).current_dir(self.folder.path());
        let ran = shell
            .env("NO_PROXY", "*")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let out = String::from_utf8(ran.stdout).unwrap() + &String::from_utf8(ran.stderr).unwrap();
        assert!(ran.status.success(), "{text}{out}");
        out
    }
}

impl Drop for PageReader {
    fn drop(&mut self) {
        for child in &mut self.running {
            drop(child.kill());
        }
    }
}
