//! The page `docs/first-service.md`, as its readers run it: every command, in order, with real processes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keyward::Clock;
use keyward::clocks::SystemClock;
use support::example;

/// 30 s: the time for a change to reach every process, which takes the staleness bound at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// A block of the page: its language and its text.
struct PageBlock<'a> {
    language: &'a str,
    text: &'a str,
}

fn blocks(page: &str) -> Vec<PageBlock<'_>> {
    let mut parts = page.split("\n```").skip(1);
    let mut found = Vec::new();
    while let Some(block) = parts.next() {
        let (language, text) = block.split_once('\n').unwrap();
        found.push(PageBlock { language, text });
        // The text up to the next block.
        parts.next();
    }
    found
}

/// The reader of the page: a folder, the services in other terminals, and the variables of the shell.
struct PageReader {
    folder: tempfile::TempDir,
    service: PathBuf,
    keyctl: PathBuf,
    running: Vec<Child>,
}

impl PageReader {
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
    fn stop(&mut self) {
        for mut child in self.running.drain(..) {
            let process = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
            assert!(child.wait().unwrap().success());
        }
    }

    /// Runs a block in a shell that keeps its variables for the next block. Returns all that it prints.
    fn run(&self, text: &str) -> String {
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

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn every_command_of_the_page_works_in_order() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/first-service.md");
    let page = fs::read_to_string(page).unwrap();
    let page = page.replace("127.0.0.1:3000", &free_address());
    let page = page.replace("127.0.0.1:3001", &free_address());
    let first = page.find("127.0.0.1:").unwrap();
    let default: String = page[first..]
        .chars()
        .take_while(|c| !"\"`\n".contains(*c))
        .collect();
    let mut reader = PageReader {
        folder: tempfile::tempdir().unwrap(),
        service: example::build("first_service"),
        keyctl: example::build("keyctl"),
        running: Vec::new(),
    };
    let commands: Vec<_> = blocks(&page)
        .into_iter()
        .filter(|block| block.language != "rust")
        .collect();
    let (mut ran, mut shown) = (0, 0);
    for (place, block) in commands.iter().enumerate() {
        // The first block adds dependencies, which the example has.
        if block.language != "sh" || place == 0 {
            continue;
        }
        ran += 1;
        let expected = commands.get(place + 1);
        let expected = expected.filter(|next| next.language == "text");
        let expected: Vec<_> = expected.map_or_else(Vec::new, |text| text.text.lines().collect());
        shown += expected.len();
        let missing = |out: &str| {
            let lines = expected.iter().copied();
            lines
                .filter(|line| !out.contains(line))
                .collect::<Vec<_>>()
                .join("\n")
        };
        if let Some(arguments) = block.text.strip_prefix("cargo run") {
            let arguments = arguments.trim().trim_start_matches("--").trim();
            let arguments = if arguments.is_empty() {
                &default
            } else {
                arguments
            };
            let out = reader.start(arguments);
            assert_eq!(missing(&out), "", "{out}");
            continue;
        }
        if block.text.starts_with("# Ctrl-C") {
            reader.stop();
        }
        // A command that only reads is repeated until the change has reached its service.
        let only_reads = block.text.lines().all(|line| line.starts_with("curl "));
        let deadline = SystemClock.monotonic() + PATIENCE;
        loop {
            let out = reader.run(block.text);
            if missing(&out).is_empty() {
                break;
            }
            assert!(
                only_reads && SystemClock.monotonic() < deadline,
                "{}printed\n{out}\nwithout\n{}",
                block.text,
                missing(&out)
            );
        }
    }
    reader.stop();
    assert!(ran >= 9 && shown >= 9, "{ran} blocks with {shown} lines");
}
