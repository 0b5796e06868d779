//! An operator's command line over a store: `cargo run --example keyctl -- --help`.

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
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::refuse(&error),
    };
    let output = Output::new(cli.common.json);
    match pollster::block_on(commands::run(cli, &output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit_code()
        }
    }
}
