//! Runs the real service, and runs the commands that it prints in a shell.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// The service's process, killed on drop.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_printed_commands_try_the_open_and_the_protected_route() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward-actix"));
    command.arg("127.0.0.1:0").stdout(Stdio::piped());
    let mut service = Service(command.spawn().unwrap());
    let printed = BufReader::new(service.0.stdout.take().unwrap()).lines();
    let lines = printed.map(Result::unwrap);
    let lines = lines.filter(|line| line.starts_with("    curl "));
    let answers: Vec<_> = lines.take(3).map(|line| run(&line)).collect();
    let missing = "{\"type\":\"urn:problem-type:keyward:missing-key\",\
        \"title\":\"API key required\",\"status\":401}\n";
    assert_eq!(answers, ["up\n", missing, "reports of acme\n"]);
}

fn run(line: &str) -> String {
    let mut shell = Command::new("sh");
    let output = shell
        .env("NO_PROXY", "*")
        .args(["-c", line])
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
