//! The examples that run to their end without input.

use std::process::{Command, Stdio};

/// Runs a program to its end, and returns the text that it prints.
fn runs_to_its_end(program: &str) -> String {
    let mut command = Command::new(support::example::build(program));
    let run = command.stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8_lossy(&run.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{program}: {printed}\n{complaints}");
    assert!(!printed.is_empty(), "{program} prints nothing");
    printed
}

#[test]
fn quickstart_runs_to_its_end() {
    runs_to_its_end("quickstart");
}

#[test]
fn policy_runs_to_its_end() {
    runs_to_its_end("policy");
}

#[test]
fn webhooks_runs_to_its_end() {
    runs_to_its_end("webhooks");
}

#[test]
fn a_custom_store_runs_to_its_end() {
    runs_to_its_end("custom-store");
}

/// The examples log the headers of each request, and the span of its key.
fn logs_no_key(program: &str) {
    let printed = runs_to_its_end(program);
    assert!(printed.contains("\"x-api-key\": Sensitive"), "{printed}");
    assert!(!printed.contains("sk_"), "{printed}");
}

#[test]
fn stack_axum_runs_to_its_end_and_logs_no_key() {
    logs_no_key("stack_axum");
}

#[test]
fn stack_hyper_runs_to_its_end_and_logs_no_key() {
    logs_no_key("stack_hyper");
}

#[test]
fn grpc_runs_to_its_end() {
    runs_to_its_end("grpc");
}
