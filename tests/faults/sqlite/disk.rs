//! A disk on which any single call fails, because it is full, broken or suddenly read-only.

use std::collections::BTreeMap;
use std::path::Path;

use tempfile::{TempDir, tempdir};

use crate::sqlite::check::examine;
use crate::sqlite::shim::shim;
use support::process::{ChildProcess, SeededRandom, rounds};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

struct Disk {
    folder: TempDir,
    around: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let around = tempdir().unwrap();
        Self { folder, around }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("keys.db")
    }

    fn env(&self, shim: &Path, more: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
        let around = |name: &str| self.around.path().join(name).to_str().unwrap().to_owned();
        let mut env = vec![
            ("LD_PRELOAD", shim.to_str().unwrap().to_owned()),
            (
                "SHIM_FOLDER",
                self.folder.path().to_str().unwrap().to_owned(),
            ),
            ("SHIM_LIFT", around("lift")),
        ];
        env.extend_from_slice(more);
        env
    }

    fn log(&self) -> std::path::PathBuf {
        self.around.path().join("log")
    }

    fn arm(&self) -> (&'static str, String) {
        let path = self.around.path().join("arm");
        ("SHIM_ARM", path.to_str().unwrap().to_owned())
    }

    /// Checks that the file contains exactly the commits that were reported as written.
    #[track_caller]
    fn settle(&self, reports: &[String], run: &str) -> BTreeMap<String, usize> {
        let held = examine(&self.path());
        let conn = rusqlite::Connection::open(self.path()).unwrap();
        let mut tags = BTreeMap::new();
        let mut statement = conn.prepare("SELECT tag, revision FROM commits").unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let tag = u128::from_be_bytes(row.get(0).unwrap());
            tags.insert(tag.to_string(), row.get::<_, i64>(1).unwrap());
        }
        let mut kinds = BTreeMap::new();
        for line in reports {
            let words: Vec<_> = line.split(' ').collect();
            *kinds.entry(words[0].to_owned()).or_default() += 1;
            match words[..] {
                ["Durable", tag, revision] => {
                    let at = tags.remove(tag).map(|at| at.to_string());
                    assert_eq!(at.as_deref(), Some(revision), "{run}: {line}");
                }
                ["Unavailable" | "Denied" | "Conflict", tag] => {
                    assert!(
                        !tags.contains_key(tag),
                        "{run}: {line}, but the commit is in the file"
                    );
                }
                ["Indeterminate", tag] => drop(tags.remove(tag)),
                ["done", ..] => held.has(line),
                ["refused", ..] => {}
                _ => panic!("{run}: {line}"),
            }
        }
        assert!(
            tags.is_empty(),
            "{run}: no report mentions the commits {tags:?}"
        );
        kinds
    }
}

#[test]
fn every_answer_is_true_whichever_call_fails() {
    let built = tempdir().unwrap();
    let shim = shim(built.path());
    let whole = Disk::new();
    let log = ("SHIM_LOG", whole.log().to_str().unwrap().to_owned());
    let reports =
        ChildProcess::start("sqlite:steps", &whole.path(), &whole.env(&shim, &[log])).finish();
    whole.settle(&reports, "no fault");
    let calls = super::cut::count(&whole.log());
    assert!(calls > 100, "the shim saw only {calls} calls");

    let mut random = SeededRandom(0x6b65_7977_6172_6402);
    let every = rounds(7, 1);
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    let mut runs = 0;
    for (error, name) in [(ENOSPC, "ENOSPC"), (EIO, "EIO")] {
        for on in [false, true] {
            // Starts at a random call, because a short run tries only every seventh call. Several runs
            // together cover all calls.
            for at in (1 + random.below(every)..=calls).step_by(every) {
                let disk = Disk::new();
                let run = format!("{name} at {at}, {}", if on { "lasting" } else { "once" });
                let fault = [
                    ("SHIM_AT", at.to_string()),
                    ("SHIM_ERRNO", error.to_string()),
                    ("SHIM_ON", u8::from(on).to_string()),
                ];
                let mut env = disk.env(&shim, &fault);
                // Every second child is killed while calls still fail. The killed child's reports must be
                // true for the file that the next process recovers.
                let dies = (at / every).is_multiple_of(2);
                env.extend(dies.then(|| ("CHILD_DIES", "1".to_owned())));
                let mut part = ChildProcess::start("sqlite:steps", &disk.path(), &env);
                let reports = if dies {
                    let reports: Vec<_> = std::iter::from_fn(|| part.next())
                        .take_while(|line| line != "dying")
                        .collect();
                    part.kill();
                    reports
                } else {
                    let reports = part.finish();
                    let last = reports.last().unwrap();
                    assert!(
                        last.starts_with("done"),
                        "{run}: the child continues after the faults"
                    );
                    reports
                };
                for (kind, times) in disk.settle(&reports, &run) {
                    *all.entry(kind).or_default() += times;
                }
                runs += 1;
            }
        }
    }
    eprintln!("{runs} faults in {calls} calls: {all:?}");
    for kind in ["Durable", "Unavailable", "Indeterminate", "refused"] {
        assert!(all.contains_key(kind), "no fault led to {kind}: {all:?}");
    }
}

/// The shim simulates the read-only file system, because the tests may run as root, whom permission bits do
/// not stop.
#[test]
fn a_store_that_becomes_read_only_can_still_be_read() {
    let built = tempdir().unwrap();
    let shim = shim(built.path());
    let disk = Disk::new();
    let fault = [
        ("SHIM_AT", "1".to_owned()),
        ("SHIM_ERRNO", EROFS.to_string()),
        ("SHIM_ON", "1".to_owned()),
        disk.arm(),
    ];
    let mut reports =
        ChildProcess::start("sqlite:reads", &disk.path(), &disk.env(&shim, &fault)).finish();
    eprintln!("{reports:?}");
    let kinds: Vec<_> = reports
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(kinds[0], "Durable");
    assert!(kinds[1..].contains(&"Denied"), "{reports:?}");
    assert_eq!(kinds.last(), Some(&"Durable"));
    reports.retain(|line| line != "opens");
    disk.settle(&reports, "read-only");
}
