//! Output: answers on stdout, everything else on stderr.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::{Answer, Failure, Kind};

/// The interval between two updates of the line that shows a running operation: 200 ms, so that it looks
/// alive.
const TICK: Duration = Duration::from_millis(200);

pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a line of an answer.
    pub(crate) fn line(&self, text: &str) -> Answer<()> {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{text}").and_then(|()| out.flush());
        written.map_err(unwritten)
    }

    /// Prints a JSON document on a line of its own.
    pub(crate) fn document(&self, value: &impl Serialize) -> Answer<()> {
        let text = serde_json::to_string(value);
        let failure =
            |error| Failure::new(Kind::Unavailable, format!("cannot write JSON: {error}"));
        self.line(&text.map_err(failure)?)
    }

    /// Prints a message for people on stderr. Omitted in JSON mode.
    pub(crate) fn note(&self, words: &str) {
        if !self.json {
            warn(words);
        }
    }

    /// Prints the answer of a command whose only result is that it succeeded.
    pub(crate) fn done(&self, words: &str, value: &Value) -> Answer<()> {
        if self.json {
            return self.document(value);
        }
        self.note(words);
        Ok(())
    }

    /// On a terminal, shows the running operation and its elapsed time until the returned value is dropped.
    pub(crate) fn going_on(&self, what: impl Into<String>) -> Option<GoingOn> {
        let shown = !self.json && io::stderr().is_terminal();
        shown.then(|| GoingOn::start(what.into()))
    }

    /// On a terminal, shows progress on one line; elsewhere, prints each finished part once.
    pub(crate) fn steps(&self) -> Steps {
        let said = !self.json;
        Steps {
            said,
            shown: (said && io::stderr().is_terminal()).then(String::new),
        }
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        let Failure { kind, words } = failure;
        if self.json {
            let error = json!({ "kind": kind.word(), "exit": *kind as u8, "message": words });
            warn(&json!({ "error": error }).to_string());
        } else {
            warn(&format!("keyctl: {words}"));
        }
    }

    /// Prints rows under their headings, if any, each column as wide as its widest cell.
    pub(crate) fn table(&self, head: &[&str], rows: &[Vec<String>]) -> Answer<()> {
        let head: Vec<_> = head.iter().map(|&text| text.to_owned()).collect();
        let rows: Vec<Vec<_>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| plain(cell)).collect())
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

/// A line on the terminal with the elapsed time of an SQLite operation. SQLite reports no progress.
pub(crate) struct GoingOn {
    lasts: Option<(Sender<()>, JoinHandle<()>)>,
}

impl GoingOn {
    fn start(what: String) -> Self {
        let (lasts, ended) = channel::<()>();
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
        // If the thread cannot start, only the line is missing.
        let thread = thread::Builder::new().spawn(animate).ok();
        Self {
            lasts: thread.map(|thread| (lasts, thread)),
        }
    }
}

impl Drop for GoingOn {
    fn drop(&mut self) {
        if let Some((lasts, thread)) = self.lasts.take() {
            drop(lasts);
            // The thread clears the line before anything else is printed.
            let _ = thread.join();
        }
    }
}

/// Progress of an operation that reports its steps.
pub(crate) struct Steps {
    said: bool,
    /// The step that is shown now. `None` if stderr is not a terminal.
    shown: Option<String>,
}

impl Steps {
    /// Shows a step. `ends` is set if the step finishes a part.
    pub(crate) fn step(&mut self, words: &str, ends: bool) {
        match &mut self.shown {
            Some(shown) => {
                let blank = shown.chars().count();
                draw(&format!("\r{words:blank$}"));
                words.clone_into(shown);
            }
            None if self.said && ends => warn(words),
            None => {}
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(shown) = &self.shown {
            let blank = " ".repeat(shown.chars().count());
            draw(&format!("\r{blank}\r"));
        }
    }
}

fn draw(text: &str) {
    let mut err = io::stderr().lock();
    let _ = write!(err, "{text}").and_then(|()| err.flush());
}

/// Prints a message on stderr. A failure to write is ignored.
pub(crate) fn warn(words: &str) {
    let _ = writeln!(io::stderr().lock(), "{words}");
}

/// Makes foreign text safe for a terminal: replaces control characters, which could move the cursor or end
/// the line.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn unwritten(error: io::Error) -> Failure {
    Failure::new(
        Kind::Unavailable,
        format!("cannot write to stdout: {error}"),
    )
}

/// Formats a value that may be absent.
pub(crate) fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
