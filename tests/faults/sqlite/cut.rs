//! Simulated power cuts. A test records all writes of a process, and then rebuilds the files with any part of
//! the unsynced writes left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use keyward::KeyId;
use tempfile::tempdir;

use crate::sqlite::check::examine;
use crate::sqlite::shim::shim;
use support::process::{ChildProcess, SeededRandom, rounds};

/// One recorded call to the operating system: a write, a truncation, a sync or a deletion.
#[derive(Debug)]
struct Step {
    kind: u8,
    name: String,
    offset: usize,
    bytes: Vec<u8>,
}

fn steps(log: &Path) -> Vec<Step> {
    let log = fs::read(log).unwrap();
    let mut steps = Vec::new();
    let mut rest = &log[..];
    while !rest.is_empty() {
        let mut number = || {
            let (bytes, after) = rest.split_first_chunk::<8>().unwrap();
            rest = after;
            usize::try_from(u64::from_ne_bytes(*bytes)).unwrap()
        };
        let (kind, path, offset, len) = (number(), number(), number(), number());
        let len = if kind == usize::from(b'w') { len } else { 0 };
        let (path, after) = rest.split_at(path);
        let (bytes, after) = after.split_at(len);
        rest = after;
        let path = Path::new(std::str::from_utf8(path).unwrap());
        steps.push(Step {
            kind: u8::try_from(kind).unwrap(),
            name: path.file_name().unwrap().to_str().unwrap().to_owned(),
            offset,
            bytes: bytes.to_vec(),
        });
    }
    steps
}

/// Returns the number of recorded calls that a test can let fail.
pub fn count(log: &Path) -> usize {
    let steps = steps(log);
    steps.iter().filter(|step| step.kind != b'u').count()
}

/// A file: the bytes that are synced, and the edits since. A power cut may lose any part of these edits.
#[derive(Clone, Default)]
struct File {
    safe: Vec<u8>,
    since: Vec<Edit>,
}

#[derive(Clone)]
enum Edit {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Edit {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Write(offset, bytes) => {
                let end = offset + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*offset..end].copy_from_slice(bytes);
            }
            Self::Truncate(len) => file.resize(*len, 0),
        }
    }
}

/// A folder of files. A deleted file may come back in a power cut until the folder is synced.
#[derive(Clone, Default)]
struct Disk {
    files: BTreeMap<String, File>,
    deleted: BTreeMap<String, File>,
    /// The marks that the child process has written so far, one for each acknowledged commit.
    marks: Vec<String>,
}

impl Disk {
    fn of(folder: &Path) -> Self {
        // A store closes its connections on threads of their own. Waits until the last connection is closed,
        // which removes the log files.
        let log = |end: &str| folder.join(format!("keys.db{end}")).exists();
        while log("-wal") || log("-shm") {
            std::thread::yield_now();
        }
        let mut disk = Self::default();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name.ends_with("-reserve") {
                // 8 MiB that no commit is written to.
                continue;
            }
            let safe = fs::read(path).unwrap();
            disk.files.insert(
                name,
                File {
                    safe,
                    since: vec![],
                },
            );
        }
        disk
    }

    fn play(&mut self, step: &Step) {
        let name = &step.name;
        if name.ends_with(".marker") {
            self.marks.push(
                String::from_utf8(step.bytes.clone())
                    .unwrap()
                    .trim()
                    .to_owned(),
            );
            return;
        }
        if name.ends_with("-shm") || name.ends_with(" (deleted)") {
            return;
        }
        let in_folder = name.starts_with("keys.db");
        match step.kind {
            b's' if !in_folder => self.deleted.clear(),
            b's' => {
                let file = self.files.entry(name.clone()).or_default();
                for edit in std::mem::take(&mut file.since) {
                    edit.apply(&mut file.safe);
                }
                self.deleted.remove(name);
            }
            b'u' => {
                if let Some(file) = self.files.remove(name) {
                    self.deleted.insert(name.clone(), file);
                }
            }
            b't' | b'w' => {
                let file = self.files.entry(name.clone()).or_default();
                file.since.push(match step.kind {
                    b't' => Edit::Truncate(step.offset),
                    _ => Edit::Write(step.offset, step.bytes.clone()),
                });
            }
            other => panic!("{other}"),
        }
    }

    /// Writes the files as a power cut might leave them. Each unsynced sector or page is kept or lost at
    /// random.
    fn cut(&self, random: &mut SeededRandom, to: &Path) {
        let grain = [512, 4096][random.below(2)];
        // Each unsynced part is kept with a probability of `kept` eighths. Zero keeps none, and eight keeps
        // all.
        let kept = random.below(9);
        let mut files = self.files.clone();
        for (name, file) in &self.deleted {
            if random.below(2) == 0 {
                files.insert(name.clone(), file.clone());
            }
        }
        for (name, file) in files {
            let mut left = file.safe;
            for edit in file.since {
                match edit {
                    Edit::Write(offset, bytes) => {
                        let mut at = 0;
                        while at < bytes.len() {
                            let end = bytes.len().min(at + grain - (offset + at) % grain);
                            if random.below(8) < kept {
                                Edit::Write(offset + at, bytes[at..end].to_vec()).apply(&mut left);
                            }
                            at = end;
                        }
                    }
                    truncate @ Edit::Truncate(_) => {
                        if random.below(8) < kept {
                            truncate.apply(&mut left);
                        }
                    }
                }
            }
            let path = to.join(name);
            fs::write(&path, left).unwrap();
            owner_only(&path);
        }
    }
}

#[cfg(unix)]
fn owner_only(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Runs a child process, records its writes to `folder`, and simulates power cuts at random points. Calls
/// `check` for each cut, with the resulting file and the commits acknowledged before.
fn cut(
    part: &str,
    folder: &Path,
    work: usize,
    images: usize,
    seed: u64,
    mut check: impl FnMut(&Path, &[String]),
) {
    let around = tempdir().unwrap();
    let log = around.path().join("log");
    let mut disk = Disk::of(folder);
    let env = [
        (
            "LD_PRELOAD",
            shim(around.path()).to_str().unwrap().to_owned(),
        ),
        ("SHIM_FOLDER", folder.to_str().unwrap().to_owned()),
        ("SHIM_LOG", log.to_str().unwrap().to_owned()),
        ("CHILD_ROUNDS", work.to_string()),
    ];
    ChildProcess::start(&format!("sqlite:{part}"), &folder.join("keys.db"), &env).finish();
    let steps = steps(&log);
    let last_mark = steps
        .iter()
        .rposition(|step| step.name.ends_with(".marker"));
    let busy = &steps[..last_mark.unwrap()];
    let moved = |step: &Step| step.kind == b'w' && step.name == "keys.db";
    assert!(busy.iter().any(moved), "no checkpoint is in the recording");
    let mut random = SeededRandom(seed);
    let mut cuts: Vec<_> = (0..images).map(|_| random.below(steps.len())).collect();
    cuts.sort_unstable();
    let mut played = 0;
    for cut in cuts {
        while played <= cut {
            disk.play(&steps[played]);
            played += 1;
        }
        let image = tempdir().unwrap();
        disk.cut(&mut random, image.path());
        check(&image.path().join("keys.db"), &disk.marks);
    }
}

#[test]
fn a_power_cut_loses_no_acknowledged_commit() {
    let folder = tempdir().unwrap();
    drop(examine(&folder.path().join("keys.db")));
    let images = rounds(100, 1000);
    let mut done = 0;
    let check = |path: &Path, marks: &[String]| {
        let held = examine(path);
        let mut there = BTreeSet::new();
        for mark in marks {
            let (key, revoked) = match mark.split_once(' ') {
                Some((key, _)) => (key, true),
                None => (mark.as_str(), false),
            };
            let key: KeyId = key.parse().unwrap();
            assert!(held.keys.contains_key(&key), "image {done}: {mark} is lost");
            assert!(
                !revoked || held.is_revoked(key),
                "image {done}: {mark} is lost"
            );
            there.insert(key);
        }
        assert!(
            held.keys.len() <= there.len() + 1,
            "at most one commit was in flight"
        );
        done += 1;
        if done % 100 == 0 {
            eprintln!(
                "{done} of {images} power cuts: {} marks at the last",
                marks.len()
            );
        }
    };
    cut(
        "recorded",
        folder.path(),
        200,
        images,
        0x6b65_7977_6172_6403,
        check,
    );
}

/// Proves that a simulated power cut finds losses: rows that were committed without fsync must be lost.
#[test]
fn a_power_cut_is_seen_to_lose_commits_without_fsync() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .unwrap();
    conn.execute_batch("CREATE TABLE rows (number INTEGER PRIMARY KEY, bytes BLOB)")
        .unwrap();
    drop(conn);
    let mut lost = 0;
    let check = |path: &Path, marks: &[String]| {
        let conn = rusqlite::Connection::open(path).unwrap();
        let count = "SELECT count(*) FROM rows";
        let there: usize = conn
            .query_row(count, [], |row| row.get(0))
            .map(|count: i64| count as usize)
            .unwrap();
        lost += marks.len().saturating_sub(there);
    };
    cut("rows", folder.path(), 600, 50, 0x6b65_7977_6172_6404, check);
    assert!(lost > 0, "no acknowledged row was lost");
    eprintln!("{lost} rows lost");
}
