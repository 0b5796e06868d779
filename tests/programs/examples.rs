//! The examples that run to their end without input.

use std::process::{Command, Stdio};

fn runs_to_its_end(program: &str) {
    let mut command = Command::new(support::example::build(program));
    let run = command.stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8_lossy(&run.stdout);
    let complaints = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{program}: {printed}\n{complaints}");
    assert!(!printed.is_empty(), "{program} prints nothing");
}

#[test]
fn quickstart_runs_to_its_end() {
    runs_to_its_end("quickstart");
}

#[test]
fn webhooks_runs_to_its_end() {
    runs_to_its_end("webhooks");
}

#[test]
fn a_custom_store_runs_to_its_end() {
    runs_to_its_end("custom-store");
}

#[test]
fn grpc_runs_to_its_end() {
    runs_to_its_end("grpc");
}
