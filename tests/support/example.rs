//! Binaries of examples.
#![allow(unreachable_pub, reason = "each test file uses its own part")]

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// The binary of an example, of the sources as they are now: cargo tells no test where it is, and
/// builds none for a test that runs alone. Has cargo build it as this test was built: most often
/// nothing is left to do.
pub fn build(example: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // <target>/<profile>/deps/<this test>
    let folders: Vec<_> = own.ancestors().skip(2).take(2).collect();
    let profile = match folders[0].file_name().unwrap().to_str().unwrap() {
        "debug" => "test",
        named => named,
    };
    let features = [
        ("testing", cfg!(feature = "testing")),
        ("conformance", cfg!(feature = "conformance")),
        ("sqlite", cfg!(feature = "sqlite")),
        ("postgres", cfg!(feature = "postgres")),
        ("tokio", cfg!(feature = "tokio")),
        ("metrics", cfg!(feature = "metrics")),
        ("http", cfg!(feature = "http")),
        ("axum", cfg!(feature = "axum")),
    ];
    let features: Vec<_> = features.iter().filter(|(_, on)| *on).collect();
    let features: Vec<_> = features.iter().map(|(name, _)| *name).collect();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--example", example]);
    command.args(["--message-format", "json-render-diagnostics"]);
    command.args(["--profile", profile]);
    command.args(["--features", &features.join(",")]);
    command.arg("--target-dir").arg(folders[1]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let built = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "{example} does not build");
    let messages = String::from_utf8(built.stdout).unwrap();
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str();
        let path = path.filter(|_| message["target"]["name"] == example)?;
        Some(PathBuf::from(path))
    });
    executable.expect("cargo says where it is")
}
