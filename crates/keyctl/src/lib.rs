//! The command line `keyctl`, as a library: the binary is one call to [`run`]. The functions that read text from
//! outside are public for the fuzz targets.
//!
//! With the feature `postgres`, which is on by default, the command line also works on a database.

mod args;
mod commands;
mod desk;
mod failure;
mod lines;
mod output;
mod store;
mod usage;
mod words;

use std::process::ExitCode;

#[cfg(feature = "postgres")]
use rustix::process::Signal;
#[cfg(feature = "postgres")]
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Cli;
use crate::failure::CliResult;
#[cfg(feature = "postgres")]
use crate::failure::{CliError, CliErrorKind};
use crate::output::Output;

pub use crate::commands::{check_audit_line, check_import_line};
pub use crate::store::is_connection_string;

/// Runs the command line with the arguments of the process. Returns the exit code, which `keyctl --help` lists.
pub fn run() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return usage::refuse(&error),
    };
    let only_lists = cli.command.only_lists();
    let output = Output::new(cli.common.json, only_lists);
    match block_on(commands::run(cli, &output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.reader_gone && only_lists => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit_code()
        }
    }
}

#[cfg(not(feature = "postgres"))]
fn block_on(command: impl Future<Output = CliResult<()>>) -> CliResult<()> {
    pollster::block_on(command)
}

/// Runs the command on a tokio runtime, which the database driver needs.
#[cfg(feature = "postgres")]
fn block_on(command: impl Future<Output = CliResult<()>>) -> CliResult<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let unable = |error| CliError::new(CliErrorKind::Unavailable, format!("cannot start: {error}"));
    runtime.map_err(unable)?.block_on(async {
        handle_size_limit();
        command.await
    })
}

/// Lets a write beyond the file size limit of the process (`ulimit -f`, `LimitFSIZE`) fail, as one to a full disk does.
///
/// Without a handler, the signal of such a write ends the process. A key whose secret was not printed would then stay
/// valid unnoticed.
#[cfg(feature = "postgres")]
fn handle_size_limit() {
    let exceeded = SignalKind::from_raw(Signal::XFSZ.as_raw());
    // The handler stays after the stream of signals is dropped. Without a handler, only such a write ends the process.
    drop(signal(exceeded));
}
