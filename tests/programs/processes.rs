//! The example `processes`, which runs several processes over one file.
//!
//! The example fails if a verification accepts a revoked key past the bound. These tests check that the
//! example ends and leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// Returns a command that runs the example with its temporary files in `folder`.
fn processes(folder: &Path) -> Command {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| support::example::build("processes"));
    let mut command = Command::new(&*BUILT);
    command.env("TMPDIR", folder).stdin(Stdio::null());
    command
}

#[test]
fn every_process_refuses_a_revoked_key_in_time_and_a_continued_one_immediately() {
    let folder = tempfile::tempdir().unwrap();
    // A process that outlives the example would keep its outputs open and block this call.
    let ran = processes(folder.path()).output().unwrap();
    let out = String::from_utf8(ran.stdout).unwrap();
    let err = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{out}{err}");
    assert_eq!(err, "");
    assert!(!out.contains("sk_live_"), "{out}");

    let rows = |name: &str| out.lines().filter(|line| line.starts_with(name)).count();
    let refused: Vec<_> = (1..=3)
        .map(|n| rows(&format!("  verifier {n}  ")))
        .collect();
    assert_eq!(refused, [2, 2, 1], "{out}");
    assert_eq!(rows("  nobody can accept any more"), 1, "{out}");
    assert_eq!(rows("  Revoked from "), 1, "{out}");
    assert_eq!(rows("No verification accepted"), 1, "{out}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A stopped process does not notice that its parent has ended.
#[cfg(target_os = "linux")]
#[test]
fn all_processes_even_a_stopped_one_end_when_their_parent_is_killed() {
    use std::io::{BufRead, BufReader, Read};
    use std::sync::mpsc;
    use std::time::Duration;

    let folder = tempfile::tempdir().unwrap();
    let mut command = processes(folder.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut parent = command.spawn().unwrap();
    let mut out = BufReader::new(parent.stdout.take().unwrap()).lines();
    let stopped = out.any(|line| line.unwrap().contains(" is stopped"));
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(stopped, "the example ended too early");

    // All processes share the example's stderr, which reaches its end when the last process exits.
    let mut err = parent.stderr.take().unwrap();
    let (ended, ends) = mpsc::channel();
    std::thread::spawn(move || ended.send(err.read_to_end(&mut Vec::new()).is_ok()));
    assert_eq!(ends.recv_timeout(Duration::from_secs(60)), Ok(true));
}
