//! Lines of a file or of stdin, each of a limited length.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::failure::{CliError, CliErrorKind, CliResult};

pub(crate) struct Lines {
    input: Box<dyn BufRead>,
    /// The longest line in bytes.
    max: u64,
}

impl Lines {
    pub(crate) fn of_stdin(max: u64) -> Self {
        let input = Box::new(BufReader::new(io::stdin()));
        Self { input, max }
    }

    pub(crate) fn of_file(path: &Path, max: u64) -> CliResult<Self> {
        let opened = File::open(path).map_err(|error| {
            CliError::new(
                CliErrorKind::of_file(&error),
                format!("{}: {error}", path.display()),
            )
        })?;
        let input = Box::new(BufReader::new(opened));
        Ok(Self { input, max })
    }

    /// Reads the next line. Returns `None` at the end.
    pub(crate) fn next(&mut self) -> CliResult<Option<Vec<u8>>> {
        let Self { input, max } = self;
        let mut line = Vec::new();
        let read = input.take(*max).read_until(b'\n', &mut line);
        let read = read.map_err(|error| {
            CliError::new(
                CliErrorKind::of_file(&error),
                format!("cannot read lines: {error}"),
            )
        })?;
        if read as u64 == *max && line.last() != Some(&b'\n') {
            return Err(CliError::usage(format!("lines have at most {max} bytes")));
        }
        Ok((read > 0).then_some(line))
    }
}
