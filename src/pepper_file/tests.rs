use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::core::pepper::Pepper;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn pepper(&self) -> PathBuf {
        self.0.path().join("pepper")
    }

    fn with(text: &str) -> Self {
        let folder = Self::new();
        fs::write(folder.pepper(), text).unwrap();
        folder.chmod(0o600);
        folder
    }

    fn chmod(&self, mode: u32) {
        fs::set_permissions(self.pepper(), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn text(&self) -> String {
        fs::read_to_string(self.pepper()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect()
    }
}

fn same(a: &Pepper, b: &Pepper) -> bool {
    a.id() == b.id() && a.digest(b"x") == b.digest(b"x")
}

fn read(path: impl AsRef<Path>) -> PepperFileResult<PepperRing> {
    Ok(PepperFile::open(path)?.ring())
}

fn create(path: impl AsRef<Path>) -> PepperFileResult<PepperRing> {
    Ok(PepperFile::create(path)?.ring())
}

fn open_or_create(path: impl AsRef<Path>) -> PepperFileResult<PepperRing> {
    Ok(PepperFile::open_or_create(path)?.ring())
}

fn prepare(path: impl AsRef<Path>) -> PepperFileResult<PepperRing> {
    let mut file = PepperFile::open(path)?;
    file.prepare()?;
    Ok(file.ring())
}

/// Prepares a pepper if none is prepared, and makes it the current one.
fn rotate(path: impl AsRef<Path>) -> PepperFileResult<PepperRing> {
    let mut file = PepperFile::open(path)?;
    file.prepare()?;
    file.rotate()?;
    Ok(file.ring())
}

/// Returns the states of the file's peppers in order.
fn states(folder: &Folder) -> Vec<String> {
    let document: serde_json::Value = serde_json::from_str(&folder.text()).unwrap();
    let peppers = document["peppers"].as_array().unwrap().iter();
    let state = |pepper: &serde_json::Value| pepper["state"].as_str().unwrap().to_owned();
    peppers.map(state).collect()
}

/// Returns all text of an error, including its source.
fn text_of(error: &PepperFileError) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    format!("{error} {error:?} {cause:?}")
}

#[test]
fn a_new_file_is_its_owners_alone_and_read_again() {
    let folder = Folder::new();
    let created = create(folder.pepper()).unwrap();
    let mode = fs::metadata(folder.pepper()).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(folder.names(), ["pepper"], "nothing else is left behind");
    let read = read(folder.pepper()).unwrap();
    assert!(same(created.current(), read.current()));
    let opened = open_or_create(folder.pepper()).unwrap();
    assert!(same(created.current(), opened.current()));
}

#[test]
fn peppers_do_not_repeat() {
    let (one, other) = (Folder::new(), Folder::new());
    let one = create(one.pepper()).unwrap();
    let other = create(other.pepper()).unwrap();
    assert_ne!(one.current().id(), other.current().id());
    assert_ne!(one.current().digest(b"x"), other.current().digest(b"x"));
}

#[test]
fn a_file_that_exists_is_left_as_it_is() {
    let folder = Folder::with("something else");
    let error = create(folder.pepper()).unwrap_err();
    assert!(matches!(error, PepperFileError::Exists { .. }), "{error:?}");
    assert!(open_or_create(folder.pepper()).is_err());
    assert!(rotate(folder.pepper()).is_err());
    assert_eq!(folder.text(), "something else");
    assert_eq!(folder.names(), ["pepper"]);
}

#[test]
fn a_missing_file_is_named() {
    let folder = Folder::new();
    for result in [read(folder.pepper()), rotate(folder.pepper())] {
        let error = result.unwrap_err();
        assert!(matches!(&error, PepperFileError::Missing { path } if *path == folder.pepper()));
    }
    assert!(folder.names().is_empty());
    let nowhere = folder.0.path().join("none").join("pepper");
    let error = open_or_create(nowhere).unwrap_err();
    assert!(matches!(error, PepperFileError::Io { .. }), "{error:?}");
}

#[test]
fn a_file_open_to_others_is_refused_with_the_command_that_helps() {
    let folder = Folder::new();
    create(folder.pepper()).unwrap();
    let text = folder.text();
    for mode in [0o640, 0o620, 0o604, 0o602, 0o610, 0o601, 0o666] {
        folder.chmod(mode);
        for result in [
            read(folder.pepper()),
            open_or_create(folder.pepper()),
            rotate(folder.pepper()),
        ] {
            let error = result.unwrap_err();
            let helps = format!("chmod 600 {}", folder.pepper().display());
            assert!(error.to_string().ends_with(&helps), "{error}");
            assert!(error.to_string().contains(&format!("{mode:04o}")));
        }
    }
    assert_eq!(folder.text(), text);
    for mode in [0o600, 0o400] {
        folder.chmod(mode);
        read(folder.pepper()).unwrap();
    }
}

#[test]
fn a_path_to_something_else_is_refused_by_name() {
    let folder = Folder::new();
    let not_a_file = |path: &Path, words: &str| {
        for result in [read(path), open_or_create(path), rotate(path)] {
            match result {
                Err(PepperFileError::NotAFile { what, .. }) => assert_eq!(what, words),
                other => panic!("{other:?}"),
            }
        }
    };
    not_a_file(folder.0.path(), "a folder");
    create(folder.pepper()).unwrap();
    let dangling = folder.0.path().join("dangling");
    symlink(folder.0.path().join("none"), &dangling).unwrap();
    for result in [read(&dangling), open_or_create(&dangling)] {
        match result {
            Err(PepperFileError::NotAFile { what, .. }) => {
                assert_eq!(what, "a symbolic link to a missing file");
            }
            other => panic!("{other:?}"),
        }
    }
    let error = create(&dangling).unwrap_err();
    assert!(matches!(error, PepperFileError::Exists { .. }));
    assert!(!folder.0.path().join("none").exists());
    let pipe = folder.0.path().join("pipe");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
    not_a_file(&pipe, "not a regular file");
}

/// Kubernetes mounts a secret as a link to a link to a folder, which it replaces as a whole.
#[test]
fn a_mounted_secret_is_read_through_its_links_and_never_changed() {
    let folder = Folder::new();
    let at = |name: &str| folder.0.path().join(name);
    fs::create_dir(at("..2026_11_29")).unwrap();
    let file = at("..2026_11_29").join("pepper");
    let created = create(&file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
    symlink("..2026_11_29", at("..data")).unwrap();
    symlink("..data/pepper", folder.pepper()).unwrap();
    for ring in [read(folder.pepper()), open_or_create(folder.pepper())] {
        assert!(same(created.current(), ring.unwrap().current()));
    }
    for result in [prepare(folder.pepper()), rotate(folder.pepper())] {
        let error = result.unwrap_err();
        assert!(
            error.to_string().contains("is a symbolic link; "),
            "{error}"
        );
    }
    assert!(same(created.current(), read(&file).unwrap().current()));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let error = read(folder.pepper()).unwrap_err();
    assert!(matches!(
        error,
        PepperFileError::OpenToOthers { mode: 0o444, .. }
    ));
}

#[test]
fn only_root_and_the_own_user_may_own_the_file_and_only_root_may_choose_a_group() {
    const ROOT: u32 = 0;
    let check = |owner, mode, user| check_access(Path::new("/run/pepper"), owner, mode, user);
    for (owner, mode, user) in [
        (ROOT, 0o440, 1000),
        (ROOT, 0o640, 1000),
        (ROOT, 0o440, ROOT),
        (ROOT, 0o600, ROOT),
        (1000, 0o600, 1000),
        (1000, 0o400, 1000),
    ] {
        assert!(check(owner, mode, user).is_ok(), "{owner} {mode:o} {user}");
    }
    for (owner, mode, user) in [
        (ROOT, 0o444, 1000),
        (ROOT, 0o460, 1000),
        (ROOT, 0o450, 1000),
        (ROOT, 0o441, 1000),
        (ROOT, 0o640, ROOT),
        (1000, 0o640, 1000),
        (1000, 0o440, 1000),
    ] {
        let error = check(owner, mode, user).unwrap_err();
        let refused = matches!(error, PepperFileError::OpenToOthers { .. });
        assert!(refused, "{owner} {mode:o} {user}");
    }
    for (owner, mode, user) in [(1001, 0o400, 1000), (1000, 0o400, ROOT)] {
        let error = check(owner, mode, user).unwrap_err();
        assert!(matches!(error, PepperFileError::Owner { .. }), "{error}");
        assert!(
            error
                .to_string()
                .ends_with(&format!("chown {user} /run/pepper"))
        );
    }
}

#[test]
fn no_error_holds_content_of_the_file() {
    let secret = "c0ffee".repeat(11);
    let pepper =
        |pepper: String| format!("{{\"keyward_pepper_file\": 1,\n\"peppers\": [\n{pepper}\n]}}\n");
    let entry = |state: &str, id: &str, key: &str| {
        pepper(format!(
            "{{\"state\": \"{state}\", \"id\": \"{id}\", \"key\": \"{key}\"}}"
        ))
    };
    for text in [
        secret.clone(),
        format!("\"{secret}\""),
        format!("{{\"keyward_pepper_file\": \"{secret}\"}}"),
        pepper(format!("\"{secret}\"")),
        pepper(format!("{{\"{secret}\": \"{secret}\"}}")),
        pepper(format!("{{\"id\": [\"{secret}\"]}}")),
        pepper(format!("{{\"key\": \"\\u0063{secret}")),
        entry(&secret, "p", &secret),
        entry("c0ffee", "p", &secret),
        entry("current", &secret, &secret),
        entry("current", "c0ffee", &secret),
        entry("current", "c0ffee", &secret[..64]).replacen('1', "2", 1),
        entry("live", "c0ffee", &secret[..64]),
    ] {
        let folder = Folder::with(&text);
        let error = read(folder.pepper()).unwrap_err();
        assert!(
            matches!(error, PepperFileError::Malformed { .. }),
            "{error:?}"
        );
        assert!(!text_of(&error).contains("c0ffee"), "{error:?}");
    }
}

#[test]
fn a_file_too_long_to_be_one_is_refused() {
    let folder = Folder::new();
    create(folder.pepper()).unwrap();
    let padded = format!("{}{}", folder.text(), " ".repeat(MAX_LEN));
    let folder = Folder::with(&padded);
    let error = read(folder.pepper()).unwrap_err();
    assert!(
        matches!(error, PepperFileError::Malformed { .. }),
        "{error:?}"
    );
}

#[test]
fn a_rotation_adds_a_pepper_and_loses_none() {
    let folder = Folder::new();
    let first = create(folder.pepper()).unwrap();
    // The file stays open, so that no later file gets its number.
    let opened = File::open(folder.pepper()).unwrap();
    let before = opened.metadata().unwrap().ino();
    let second = rotate(folder.pepper()).unwrap();
    assert_ne!(first.current().id(), second.current().id());
    let read = read(folder.pepper()).unwrap();
    assert!(same(read.current(), second.current()));
    let old = read.live(first.current().id()).unwrap();
    assert!(same(old, first.current()));
    let after = fs::metadata(folder.pepper()).unwrap();
    assert_ne!(after.ino(), before, "replaced as a whole, never in place");
    assert_eq!(after.mode() & 0o7777, 0o600);
    assert_eq!(folder.names(), ["pepper"]);
}

#[test]
fn a_prepared_pepper_verifies_and_becomes_the_current_one() {
    let folder = Folder::new();
    let first = create(folder.pepper()).unwrap();
    let prepared = prepare(folder.pepper()).unwrap();
    assert!(same(prepared.current(), first.current()));
    let text = folder.text();
    let again = prepare(folder.pepper()).unwrap();
    assert_eq!(folder.text(), text, "preparing again changes nothing");
    assert!(same(again.current(), first.current()));
    let rotated = rotate(folder.pepper()).unwrap();
    assert!(!same(rotated.current(), first.current()));
    let known = prepared.live(rotated.current().id()).unwrap();
    assert!(same(known, rotated.current()), "as it was prepared");
    assert!(same(
        rotated.live(first.current().id()).unwrap(),
        first.current()
    ));
    let next = rotate(folder.pepper()).unwrap();
    assert!(prepared.live(next.current().id()).is_none(), "a new one");
    assert_eq!(states(&folder), ["current", "live", "live"]);
}

/// If a rotation drew a new pepper, no process would know that pepper when the first one restarts.
#[test]
fn a_rotation_without_a_prepared_pepper_is_refused() {
    let folder = Folder::new();
    create(folder.pepper()).unwrap();
    let text = folder.text();
    let refused = PepperFile::open(folder.pepper()).unwrap().rotate();
    assert!(
        matches!(refused, Err(PepperFileError::NotPrepared { path }) if path == folder.pepper())
    );
    assert_eq!(folder.text(), text);
}

#[test]
fn a_live_pepper_is_retired_and_no_other() {
    let folder = Folder::new();
    let first = create(folder.pepper()).unwrap().current().id().clone();
    let current = rotate(folder.pepper()).unwrap().current().id().clone();
    let prepared = prepare(folder.pepper()).unwrap();
    let next = prepared.next().unwrap().id();
    let mut file = PepperFile::open(folder.pepper()).unwrap();
    let text = folder.text();
    let unknown = PepperId::new("unknown").unwrap();
    for (pepper, words) in [
        (&current, "rotate to another one first"),
        (next, "next rotation"),
        (&unknown, "does not have it"),
    ] {
        let refused = file.retire(pepper).unwrap_err();
        let shown = refused.to_string();
        assert!(
            shown.contains(pepper.as_str()) && shown.ends_with(words),
            "{shown}"
        );
        assert_eq!(folder.text(), text);
    }
    for _ in 0..2 {
        file.retire(&first).unwrap();
        assert_eq!(states(&folder), ["current", "audit", "next"]);
    }
    assert_eq!(file.ring().state(&first), Some(PepperState::Audit));
    assert!(file.ring().live(&first).is_none());
}

#[test]
fn temporary_files_of_killed_processes_are_removed_and_no_others() {
    let folder = Folder::new();
    let temp = |name: &str| {
        let path = folder.0.path().join(name);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).mode(0o600);
        options.open(path).unwrap()
    };
    let left = ".pepper.00112233445566aa";
    let writes: [fn(PathBuf) -> PepperFileResult<PepperRing>; 4] =
        [create, open_or_create, prepare, rotate];
    let under_way = temp(".pepper.0000000000000001");
    under_way.lock().unwrap();
    let others = [
        ".pepper.mine",
        ".pepper.0000000000000002x",
        ".other.0000000000000003",
    ];
    others.iter().for_each(|name| drop(temp(name)));
    for write in writes {
        drop(temp(left));
        write(folder.pepper()).unwrap();
        let names = folder.names();
        assert!(!names.contains(&left.to_owned()), "{names:?}");
        assert_eq!(names.len(), 1 + 1 + others.len(), "{names:?}");
    }
    drop(under_way);
    rotate(folder.pepper()).unwrap();
    assert_eq!(folder.names().len(), 1 + others.len());
}

#[test]
fn concurrent_rotations_lose_no_pepper() {
    let folder = Folder::new();
    create(folder.pepper()).unwrap();
    let together = Barrier::new(8);
    let rings: Vec<_> = thread::scope(|scope| {
        let rotate = || {
            together.wait();
            match rotate(folder.pepper()) {
                // Another thread has rotated to the pepper that this one prepared.
                Err(PepperFileError::NotPrepared { .. }) => read(folder.pepper()).unwrap(),
                rotated => rotated.unwrap(),
            }
        };
        let running: Vec<_> = (0..8).map(|_| scope.spawn(rotate)).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let read = read(folder.pepper()).unwrap();
    for ring in rings {
        let kept = read.live(ring.current().id()).unwrap();
        assert!(same(kept, ring.current()));
    }
    assert_eq!(folder.names(), ["pepper"]);
}

#[test]
fn of_many_that_create_concurrently_one_wins_and_all_have_its_pepper() {
    for _ in 0..8 {
        let folder = Folder::new();
        let together = Barrier::new(8);
        let answers: Vec<_> = thread::scope(|scope| {
            let create = |at: usize| {
                let (folder, together) = (&folder, &together);
                scope.spawn(move || {
                    together.wait();
                    if at.is_multiple_of(2) {
                        return (false, open_or_create(folder.pepper()).unwrap());
                    }
                    match create(folder.pepper()) {
                        Ok(ring) => (true, ring),
                        Err(PepperFileError::Exists { .. }) => {
                            (false, read(folder.pepper()).unwrap())
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                })
            };
            let running: Vec<_> = (0..8).map(create).collect();
            running.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(answers.iter().filter(|(won, _)| *won).count() <= 1);
        let (_, first) = &answers[0];
        assert!(
            answers
                .iter()
                .all(|(_, ring)| same(ring.current(), first.current()))
        );
        assert_eq!(folder.names(), ["pepper"]);
    }
}
