//! Output: results on stdout, everything else on stderr.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keyward::key::is_hidden;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::{CliError, CliErrorKind, CliResult};

/// 200 ms between two updates of the elapsed time, so that a running operation looks alive.
const TICK: Duration = Duration::from_millis(200);

pub(crate) struct Output {
    pub(crate) json: bool,
    /// True if the command only prints rows.
    only_lists: bool,
}

impl Output {
    pub(crate) const fn new(json: bool, only_lists: bool) -> Self {
        Self { json, only_lists }
    }

    /// Prints one line of a report to stdout. A failure to write is an error of kind [`InPart`](CliErrorKind::InPart),
    /// because the command has done its work, or a part of it.
    ///
    /// A reader such as `head` may close stdout early. A command that only prints rows then ends. Any other command
    /// goes on, and its exit code states the result of its work.
    ///
    /// At its start, Rust opens `/dev/null` in place of a closed stdout. So a command whose stdout is closed ends like
    /// one whose output goes to `/dev/null`.
    pub(crate) fn line(&self, text: &str) -> CliResult<()> {
        match print(text) {
            Err(error) if error.reader_gone && !self.only_lists => Ok(()),
            printed => printed,
        }
    }

    /// Prints a JSON document on a line of its own.
    pub(crate) fn document(&self, value: &impl Serialize) -> CliResult<()> {
        self.line(&json_line(value)?)
    }

    /// Prints a line that nothing can print again, such as a secret. Fails if nobody reads stdout.
    pub(crate) fn secret(&self, text: &str) -> CliResult<()> {
        print(text)
    }

    /// Prints a JSON document that contains secrets. Fails if nobody reads stdout.
    pub(crate) fn secret_document(&self, value: &Value) -> CliResult<()> {
        print(&json_line(value)?)
    }

    /// Prints a message for people on stderr. Omitted in JSON mode.
    pub(crate) fn note(&self, message: &str) {
        if !self.json {
            warn(message);
        }
    }

    /// Prints a warning on stderr: a JSON document in JSON mode, otherwise a message for people.
    pub(crate) fn warning(&self, message: &str) {
        match self.json {
            true => warn(&escaped_json(&json!({ "warning": message }).to_string())),
            false => warn(&format!("keyctl: {message}")),
        }
    }

    /// Prints the position at which the next page of a list begins, on stderr.
    pub(crate) fn more(&self, rows: &str, next: &impl std::fmt::Display) {
        if self.json {
            warn(&json!({ "next": next.to_string() }).to_string());
        } else {
            warn(&format!(
                "more {rows} match: --after {next} goes on from here, --all lists them"
            ));
        }
    }

    /// Prints the result of a command that only succeeds or fails: `value` in JSON mode, otherwise `message`.
    pub(crate) fn done(&self, message: &str, value: &Value) -> CliResult<()> {
        if self.json {
            return self.result(value);
        }
        self.note(message);
        Ok(())
    }

    /// Prints the document of a command that was carried out. A failure says so.
    pub(crate) fn result(&self, value: &Value) -> CliResult<()> {
        let unprinted = |error: CliError| {
            error.about("the command was carried out, and its result was not printed")
        };
        self.document(value).map_err(unprinted)
    }

    /// On a terminal, shows the running operation and its elapsed time until the returned value is dropped.
    pub(crate) fn show_elapsed(&self, what: impl Into<String>) -> Option<ElapsedLine> {
        let shown = !self.json && io::stderr().is_terminal();
        shown.then(|| ElapsedLine::start(one_line(&what.into())))
    }

    /// On a terminal, shows progress on one line; elsewhere, prints each finished part once.
    pub(crate) fn progress_line(&self) -> ProgressLine {
        let enabled = !self.json;
        ProgressLine {
            enabled,
            shown: (enabled && io::stderr().is_terminal()).then(String::new),
        }
    }

    pub(crate) fn failure(&self, failure: &CliError) {
        let CliError {
            kind,
            code,
            message,
            reader_gone: _,
            is_unrecovered: _,
        } = failure;
        if self.json {
            let error = json!({
                "kind": kind.word(),
                "code": code,
                "exit": *kind as u8,
                "message": message,
            });
            warn(&escaped_json(&json!({ "error": error }).to_string()));
        } else {
            warn(&format!("keyctl: {message}"));
        }
    }

    /// Prints a table with optional headings. Each column is as wide as its widest cell.
    pub(crate) fn table(&self, head: &[&str], rows: &[Vec<String>]) -> CliResult<()> {
        let head: Vec<_> = head.iter().map(|&text| text.to_owned()).collect();
        let rows: Vec<Vec<_>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| one_line(cell)).collect())
            .collect();
        let lines = || std::iter::once(&head).chain(&rows);
        let mut widths = vec![0; lines().map(Vec::len).max().unwrap_or(0)];
        for line in lines() {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.chars().count().max(*width);
            }
        }
        for line in lines().filter(|line| !line.is_empty()) {
            let cells = line.iter().zip(&widths);
            let padded: Vec<_> = cells
                .map(|(cell, &width)| format!("{cell:width$}"))
                .collect();
            self.line(padded.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A terminal line with the elapsed time of an operation that reports no progress, such as an SQLite backup.
pub(crate) struct ElapsedLine {
    running: Option<(Sender<()>, JoinHandle<()>)>,
}

impl ElapsedLine {
    fn start(what: String) -> Self {
        let (running, ended) = channel::<()>();
        let animate = move || {
            let mut ticks = 0;
            let mut line;
            loop {
                let time = TICK * ticks;
                line = format!(
                    "{what}: {}.{} s",
                    time.as_secs(),
                    time.subsec_millis() / 100
                );
                draw(&format!("\r{line}"));
                if ended.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
                ticks = ticks.saturating_add(1);
            }
            let blank = " ".repeat(line.chars().count());
            draw(&format!("\r{blank}\r"));
        };
        // If the thread cannot start, the operation runs without this line.
        let thread = thread::Builder::new().spawn(animate).ok();
        Self {
            running: thread.map(|thread| (running, thread)),
        }
    }
}

impl Drop for ElapsedLine {
    fn drop(&mut self) {
        if let Some((running, thread)) = self.running.take() {
            drop(running);
            // Waits until the thread has cleared the line, before anything else is printed.
            let _ = thread.join();
        }
    }
}

/// The progress of an operation that reports its steps.
pub(crate) struct ProgressLine {
    enabled: bool,
    /// The step that is shown now. `None` if stderr is not a terminal.
    shown: Option<String>,
}

impl ProgressLine {
    /// Shows a step. If stderr is not a terminal, prints only steps with `ends`, which finish a part.
    pub(crate) fn step(&mut self, message: &str, ends: bool) {
        match &mut self.shown {
            Some(shown) => {
                let blank = shown.chars().count();
                *shown = one_line(message);
                draw(&format!("\r{shown:blank$}"));
            }
            None if self.enabled && ends => warn(message),
            None => {}
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if let Some(shown) = &self.shown {
            let blank = " ".repeat(shown.chars().count());
            draw(&format!("\r{blank}\r"));
        }
    }
}

/// Prints text on stderr as it is, without ending the line.
pub(crate) fn draw(text: &str) {
    let mut err = io::stderr().lock();
    let _ = write!(err, "{text}").and_then(|()| err.flush());
}

/// Prints a message on stderr. A failure to write is ignored.
pub(crate) fn warn(message: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", escaped(message));
}

/// Escapes hidden characters, which could move the cursor of a terminal or turn the line round. Values of an
/// old store may contain them.
pub(crate) fn escaped(text: &str) -> String {
    let escape = |c, text: &mut String| text.extend(char::escape_unicode(c));
    replaced(text, |c| is_hidden(c) && !"\n\t".contains(c), escape)
}

/// Escapes hidden characters in JSON. Outside of strings, JSON has none.
fn escaped_json(json: &str) -> String {
    replaced(json, is_hidden, |c, json| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(json, "\\u{unit:04x}");
        }
    })
}

/// Formats text for a cell of a table: line feeds and tabs become spaces.
fn one_line(text: &str) -> String {
    escaped(&text.replace(['\n', '\t'], " "))
}

fn replaced(
    text: &str,
    matches: impl Fn(char) -> bool,
    replace: impl Fn(char, &mut String),
) -> String {
    let mut replaced = String::with_capacity(text.len());
    for c in text.chars() {
        match matches(c) {
            true => replace(c, &mut replaced),
            false => replaced.push(c),
        }
    }
    replaced
}

fn print(text: &str) -> CliResult<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{}", escaped(text)).and_then(|()| out.flush());
    written.map_err(unwritten)
}

fn json_line(value: &impl Serialize) -> CliResult<String> {
    let text = serde_json::to_string(value).map(|json| escaped_json(&json));
    text.map_err(|error| CliError::new(CliErrorKind::InPart, format!("cannot write JSON: {error}")))
}

fn unwritten(error: io::Error) -> CliError {
    let message = format!("the output is not complete: cannot write to stdout: {error}");
    CliError {
        reader_gone: error.kind() == io::ErrorKind::BrokenPipe,
        ..CliError::new(CliErrorKind::InPart, message)
    }
}

/// Fails if a secret that is written to stdout would certainly be lost. Call this function before a command that
/// issues a secret.
///
/// At its start, Rust opens `/dev/null` in place of a closed stdout.
pub(crate) fn ready_for_secrets() -> CliResult<()> {
    let lost = |why| {
        let message = format!(
            "{why}, so the secret would be lost: no key was created; let stdout go to a terminal, a file or \
             a pipe"
        );
        Err(CliError::usage(message))
    };
    let stdout = io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::OUT)];
    let at_once = Timespec::default();
    let gone = PollFlags::ERR | PollFlags::NVAL;
    if poll(&mut polled, Some(&at_once)).is_ok() && polled[0].revents().intersects(gone) {
        return lost("nobody reads stdout");
    }
    let device = |of: Metadata| of.file_type().is_char_device().then(|| of.rdev());
    let own = stdout.as_fd().try_clone_to_owned();
    let own = own.and_then(|own| File::from(own).metadata());
    let [own, null] = [own, std::fs::metadata("/dev/null")].map(|of| of.ok().and_then(device));
    match own.is_some() && own == null {
        true => lost("stdout is closed, or is /dev/null"),
        false => Ok(()),
    }
}

/// Formats a table cell. An absent value is `-`.
pub(crate) fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped_for_people_and_in_json() {
        let text = "alice\u{202e}eviL\u{9b}2J\u{1b}[0m\u{e0041}";
        assert_eq!(
            escaped(text),
            r"alice\u{202e}eviL\u{9b}2J\u{1b}[0m\u{e0041}"
        );
        let json = escaped_json(&serde_json::to_string(text).expect("a string is JSON"));
        assert_eq!(json, r#""alice\u202eeviL\u009b2J\u001b[0m\udb40\udc41""#);
        let read: String = serde_json::from_str(&json).expect("escapes are JSON");
        assert_eq!(read, text);
    }

    #[test]
    fn a_cell_is_one_line_and_a_message_may_have_several() {
        assert_eq!(one_line("two\nlines\r"), r"two lines\u{d}");
        assert_eq!(escaped("two\nlines é 鍵"), "two\nlines é 鍵");
    }
}
