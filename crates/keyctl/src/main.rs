//! A command line for operators of a store: `cargo run --package keyctl -- --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyctl::run()
}
