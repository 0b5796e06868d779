//! A command line for operators of a store: `cargo run --package keyctl -- --help`.
//!
//! With the feature `postgres`, which is on by default, the command line also works on a database.

mod args;
mod commands;
mod desk;
mod failure;
mod output;
mod store;
mod usage;
mod words;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::CliResult;
#[cfg(feature = "postgres")]
use crate::failure::{CliError, CliErrorKind};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::refuse(&error),
    };
    let output = Output::new(cli.common.json);
    match run(commands::run(cli, &output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit_code()
        }
    }
}

#[cfg(not(feature = "postgres"))]
fn run(command: impl Future<Output = CliResult<()>>) -> CliResult<()> {
    pollster::block_on(command)
}

/// Runs the command on a tokio runtime, which the database driver needs.
#[cfg(feature = "postgres")]
fn run(command: impl Future<Output = CliResult<()>>) -> CliResult<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let unable = |error| CliError::new(CliErrorKind::Unavailable, format!("cannot start: {error}"));
    runtime.map_err(unable)?.block_on(command)
}
