//! Drafts, the temporary files in which a new store is built. A process that is killed while it builds a
//! store leaves its draft behind. The next process that opens the store removes it.

use std::fs;
use std::path::Path;

use keyward::Role;
use keyward::store::SqliteStore;
use tempfile::tempdir;

use crate::sqlite::check::examine;
use crate::sqlite::child::{NO_CAP, open, service};
use crate::sqlite::shim::shim;
use support::process::ChildProcess;
use support::{actor, reader, wait};

const EIO: i32 = 5;

/// Returns the names of the files in `folder` that are drafts of a store.
fn drafts(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("draft")).collect()
}

fn epoch(path: &Path) -> u128 {
    wait(open(path).stats()).unwrap().head.epoch.0
}

/// Starts a child process that creates a store. The argument `what` is `kill` or `hold`: the shim does this
/// to the child at its call with the number `at`.
fn creates(
    shim: &Path,
    path: &Path,
    at: usize,
    what: &str,
    more: &[(&'static str, String)],
) -> ChildProcess {
    let mut env = vec![
        ("LD_PRELOAD", shim.to_str().unwrap().to_owned()),
        (
            "SHIM_FOLDER",
            path.parent().unwrap().to_str().unwrap().to_owned(),
        ),
        ("SHIM_AT", at.to_string()),
        ("SHIM_DO", what.to_owned()),
    ];
    env.extend_from_slice(more);
    ChildProcess::start("sqlite:creates", path, &env)
}

#[test]
fn drafts_of_a_killed_creation_are_removed_by_the_next_open() {
    let built = tempdir().unwrap();
    let shim = shim(built.path());
    let (mut killed, mut left, mut stands) = (0, 0, 0);
    for at in 1.. {
        let folder = tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let mut child = creates(&shim, &path, at, "kill", &[]);
        if child.next().is_some() {
            child.finish();
            break;
        }
        drop(child.kill());
        killed += 1;
        left += drafts(folder.path()).len();
        stands += usize::from(path.exists());
        let first = epoch(&path);
        assert_eq!(drafts(folder.path()), [""; 0], "killed at call {at}");
        assert_eq!(
            epoch(&path),
            first,
            "killed at call {at}: the file is a complete store"
        );
    }
    eprintln!("killed at each of {killed} calls: {left} drafts, {stands} stores");
    assert!(left > 10, "most kills leave a draft: {left}");
    assert!(stands > 0, "some kills come after the store exists");
}

#[test]
fn a_creation_in_progress_keeps_its_draft() {
    let built = tempdir().unwrap();
    let shim = shim(built.path());
    for at in [1, 5, 10] {
        let folder = tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let mut slow = creates(&shim, &path, at, "hold", &[]);
        slow.expect("held");
        let before = drafts(folder.path());
        assert_eq!(before.len(), 1, "held at call {at}");
        // The child process is halted while it creates the store. This process creates, opens and backs up
        // the same store in that time.
        let made = epoch(&path);
        assert_eq!(epoch(&path), made);
        wait(open(&path).backup(folder.path().join("copy.db"))).unwrap();
        assert_eq!(drafts(folder.path()), before, "held at call {at}");
        slow.go_on();
        slow.expect(&format!("epoch {made}"));
        slow.finish();
        assert_eq!(drafts(folder.path()), [""; 0], "held at call {at}");
    }
}

#[test]
fn of_two_creations_of_a_new_store_one_succeeds() {
    let built = tempdir().unwrap();
    let shim = shim(built.path());
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let new = [("CHILD_NEW", "1".to_owned())];
    let mut slow = creates(&shim, &path, 1, "hold", &new);
    slow.expect("held");
    wait(SqliteStore::options(&path).create_new(true).open()).unwrap();
    slow.go_on();
    let report = slow.next().unwrap();
    assert!(
        report.starts_with("refused") && report.ends_with("exists already"),
        "{report}"
    );
    slow.finish();
}

#[test]
fn a_creation_that_fails_late_removes_no_store_that_others_use() {
    let built = tempdir().unwrap();
    let shim = shim(built.path());
    let fails = [("SHIM_ERRNO", EIO.to_string())];
    for at in 1.. {
        let folder = tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let mut slow = creates(&shim, &path, at, "hold", &fails);
        slow.expect("held");
        if !path.exists() {
            drop(slow.kill());
            continue;
        }
        // The child has created the store, and is halted just before it syncs the folder. Other processes can
        // already use the store.
        let keys = service(open(&path), NO_CAP);
        let made = wait(keys.create(&actor("acme", "alice", Role::ADMIN), reader("key"))).unwrap();
        slow.go_on();
        assert!(slow.next().unwrap().starts_with("refused"));
        slow.finish();
        drop(keys);
        assert!(examine(&path).keys.contains_key(&made.id));
        return;
    }
}

#[test]
fn files_and_folders_that_only_look_like_drafts_stay() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys.db");
    drop(open(&path));
    let file = folder.path().join("keys.db.keyward-draft-1-0");
    fs::write(&file, "a file").unwrap();
    let named = folder.path().join("keys.db.keyward-draft-of-mine");
    let full = folder.path().join("keys.db.keyward-draft-1-1");
    for folder in [&named, &full] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("notes"), "somebody's").unwrap();
    }
    fs::create_dir(folder.path().join("other.db.keyward-draft-1-2")).unwrap();
    drop(open(&path));
    assert!(file.exists());
    assert!(named.join("notes").exists() && full.join("notes").exists());
    let mut left = drafts(folder.path());
    left.sort_unstable();
    assert_eq!(left.len(), 3, "the empty draft folder is removed: {left:?}");
}
