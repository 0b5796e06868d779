//! Builds the programs that tests run as processes: `keyctl` and the examples.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Builds `keyctl` or an example, and returns the path of its binary.
///
/// Cargo builds only the package of the test itself. This function therefore runs cargo for the other
/// packages, with the profile of the test.
pub fn build(program: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // The path of a test binary is `<target>/<profile>/deps/<name>`, from which the profile is derived.
    let folders: Vec<_> = own.ancestors().skip(2).take(2).collect();
    let profile = match folders[0].file_name().unwrap().to_str().unwrap() {
        "debug" => "test",
        named => named,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Uses the same packages and features as the test run, so that cargo has little left to build. The
    // examples need all of their features.
    command.args(["build", "--quiet", "--workspace", "--features"]);
    command.arg("keyward-examples/postgres,keyward-examples/grpc");
    match program {
        "keyctl" | "custom-store" => command.args(["--bin", program]),
        example => command.args(["--example", example]),
    };
    command.args(["--message-format", "json-render-diagnostics"]);
    command.args(["--profile", profile]);
    command.arg("--target-dir").arg(folders[1]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let built = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "{program} does not build");
    let messages = String::from_utf8(built.stdout).unwrap();
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str();
        let path = path.filter(|_| message["target"]["name"] == program)?;
        Some(PathBuf::from(path))
    });
    executable.expect("cargo reports the example's executable")
}
