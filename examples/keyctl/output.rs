//! What is said, and where: answers on stdout, all other words on stderr.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::{Answer, Failure, Kind};

pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line of an answer.
    pub(crate) fn line(&self, text: &str) -> Answer<()> {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{text}").and_then(|()| out.flush());
        written.map_err(unwritten)
    }

    /// A JSON document on a line of its own.
    pub(crate) fn document(&self, value: &impl Serialize) -> Answer<()> {
        let text = serde_json::to_string(value);
        let told = |error| Failure::new(Kind::Unavailable, format!("cannot write JSON: {error}"));
        self.line(&text.map_err(told)?)
    }

    /// Words for a person, beside the answer. A machine does without.
    pub(crate) fn note(&self, words: &str) {
        if !self.json {
            warn(words);
        }
    }

    /// The answer of a command that has no more to tell than what happened.
    pub(crate) fn done(&self, words: &str, value: &Value) -> Answer<()> {
        if self.json {
            return self.document(value);
        }
        self.note(words);
        Ok(())
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

    /// Rows under their headings, if there are any, each column as wide as its widest cell.
    pub(crate) fn table(&self, head: &[&str], rows: &[Vec<String>]) -> Answer<()> {
        let head: Vec<_> = head.iter().map(|&text| text.to_owned()).collect();
        let lines = || std::iter::once(&head).chain(rows);
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

/// Words on stderr. Whether anybody hears them changes nothing.
pub(crate) fn warn(words: &str) {
    let _ = writeln!(io::stderr().lock(), "{words}");
}

fn unwritten(error: io::Error) -> Failure {
    Failure::new(
        Kind::Unavailable,
        format!("cannot write to stdout: {error}"),
    )
}

/// What a cell shows of a value that may be absent.
pub(crate) fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
