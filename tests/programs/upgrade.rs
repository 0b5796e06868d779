//! A rolling upgrade: processes of two versions over one store. The next version is this one with one more step of
//! its tables, which the variable `KEYWARD_TEST_NEXT_VERSION` selects in builds for tests.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use keyward::store::{KeyStore, NodeRegistry, SqliteStore, StoreError};
use keyward::{Follow, KeyId, Keyward, Reason, WithSources};

use support::postgres::{TestSchema, open};
use support::process::{ChildProcess, report};
use support::*;

const NEXT: (&str, &str) = ("KEYWARD_TEST_NEXT_VERSION", "1");

#[derive(Clone, Copy)]
enum Version {
    Own,
    Next,
}

/// A node in a process of its own.
struct Node(ChildProcess);

impl Node {
    fn start(version: Version, place: &impl AsRef<OsStr>, schema: &str) -> Self {
        let mut env = vec![("CHILD_SCHEMA", schema.to_owned())];
        if let Version::Next = version {
            env.push((NEXT.0, NEXT.1.to_owned()));
        }
        Self(ChildProcess::start("node", place, &env))
    }

    fn ask(&mut self, line: &str) -> String {
        self.0.send_line(line);
        self.0.next().unwrap()
    }

    /// Creates a key, and returns its secret.
    fn create(&mut self) -> String {
        let answer = self.ask("create");
        assert!(answer.starts_with("sk_"), "{answer}");
        answer
    }

    #[track_caller]
    fn expect_all(&mut self, expected: &[(&str, &String, &str)]) {
        for (what, key, answer) in expected {
            assert_eq!(self.ask(&format!("{what} {key}")), *answer);
        }
    }
}

/// Runs a node, which answers each line of its parent with one report.
pub(crate) fn node() {
    let place = std::env::var("CHILD_PATH").unwrap();
    let schema = std::env::var("CHILD_SCHEMA").unwrap();
    match schema.as_str() {
        "" => match wait(SqliteStore::open(place)) {
            Ok(store) => serve(store),
            Err(error) => report(WithSources(&error)),
        },
        _ => match open(TestSchema { url: place, schema }.options()) {
            Ok(store) => serve(store),
            Err(error) => report(WithSources(&error)),
        },
    }
}

fn serve(store: impl KeyStore + NodeRegistry + Clone) {
    let builder = Keyward::builder(store.clone(), peppers()).registry(store);
    let keys = wait(builder.follow(Follow::Manual).build()).unwrap();
    for line in std::io::stdin().lines() {
        let answer = match line.unwrap().split_once(' ') {
            None => match wait(keys.create(&admin(), reader("a key"))) {
                Ok(created) => created.secret.expose().to_owned(),
                Err(error) => WithSources(&error).to_string(),
            },
            Some(("revoke", key)) => match wait(keys.revoke(&admin(), id(key), Reason::Lost)) {
                Ok(_) => "revoked".to_owned(),
                Err(error) => WithSources(&error).to_string(),
            },
            Some((_, key)) => {
                verdict(&keys, key).unwrap_or_else(|error| WithSources(&error).to_string())
            }
        };
        report(answer);
    }
}

fn id(key: &str) -> KeyId {
    keyward::token::parse(key.as_bytes()).unwrap().id()
}

/// Verifies a key with all that is committed.
fn verdict(keys: &Keyward, key: &str) -> Result<String, StoreError> {
    wait(keys.sync())?;
    Ok(match keys.verify(key, &reading()) {
        Ok(_) => "accepted".to_owned(),
        Err(refused) => refused.code().to_owned(),
    })
}

/// Runs `keyctl`, and returns whether it succeeded, and what it printed.
fn keyctl(version: Version, place: &OsStr, schema: &str, command: &[&str]) -> (bool, String) {
    static BUILT: LazyLock<std::path::PathBuf> =
        LazyLock::new(|| support::example::build("keyctl"));
    let mut keyctl = Command::new(&*BUILT);
    keyctl.args(command).env("KEYWARD_STORE", place);
    if !schema.is_empty() {
        keyctl.args(["--schema", schema]);
    }
    if let Version::Next = version {
        keyctl.env(NEXT.0, NEXT.1);
    }
    let ran = keyctl.output().unwrap();
    let printed = [ran.stdout, ran.stderr].concat();
    (ran.status.success(), String::from_utf8(printed).unwrap())
}

/// Upgrades a store as its page states. `versions` reads the version of its tables, and of the oldest build.
fn upgrade(place: &OsStr, schema: &str, versions: impl Fn() -> (i32, i32)) {
    let keyctl = |version, command| keyctl(version, place, schema, command);
    let mut old = Node::start(Version::Own, &place, schema);
    let first = old.create();
    assert_eq!(versions(), (1, 1));
    // The first step: a process of the new version starts, and both go on.
    let mut new = Node::start(Version::Next, &place, schema);
    let second = new.create();
    assert_eq!(versions(), (2, 1));
    let third = old.create();
    for node in [&mut old, &mut new] {
        node.expect_all(&[
            ("verify", &first, "accepted"),
            ("verify", &second, "accepted"),
            ("verify", &third, "accepted"),
        ]);
    }
    old.expect_all(&[("revoke", &second, "revoked")]);
    new.expect_all(&[("revoke", &third, "revoked")]);
    // A deployment that is rolled back starts processes of the old version again.
    let mut rolled_back = Node::start(Version::Own, &place, schema);
    for node in [&mut old, &mut new, &mut rolled_back] {
        node.expect_all(&[
            ("verify", &first, "accepted"),
            ("verify", &second, "key-revoked"),
            ("verify", &third, "key-revoked"),
        ]);
    }
    let (done, printed) = keyctl(Version::Own, &["finish-upgrade"]);
    assert!(
        !done && printed.contains("use a build of version 2"),
        "{printed}"
    );
    // The second step.
    let (done, printed) = keyctl(Version::Next, &["finish-upgrade"]);
    assert!(
        !done && printed.contains("which this step would stop"),
        "the old nodes are live: {printed}"
    );
    let (done, printed) = keyctl(Version::Next, &["finish-upgrade", "--yes"]);
    assert!(
        done && printed.contains("finished the upgrade"),
        "{printed}"
    );
    assert_eq!(versions(), (2, 2));
    let next_step =
        "`keyctl finish-upgrade` has ended their use by earlier builds, so use a later build";
    let mut started = Node::start(Version::Own, &place, schema);
    let (done, printed) = keyctl(Version::Own, &["stats"]);
    assert!(!done);
    for refused in [
        old.ask("create"),
        old.ask(&format!("revoke {first}")),
        old.ask(&format!("verify {first}")),
        started.0.next().unwrap(),
        printed,
    ] {
        assert!(refused.contains(next_step), "{refused}");
    }
    let fourth = new.create();
    new.expect_all(&[
        ("verify", &first, "accepted"),
        ("verify", &second, "key-revoked"),
        ("verify", &fourth, "accepted"),
    ]);
}

#[test]
fn two_versions_share_a_file_until_the_upgrade_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    upgrade(path.as_os_str(), "", || versions(&path));
}

/// Reads the header of the file.
fn versions(path: &Path) -> (i32, i32) {
    let file = rusqlite::Connection::open(path).unwrap();
    let packed: i32 = file
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    (packed & 0xffff, packed >> 16)
}

#[test]
fn two_versions_share_a_database_until_the_upgrade_is_finished() {
    let place = TestSchema::new();
    upgrade(place.url.as_ref(), &place.schema, || {
        let number = |column: &str| {
            let found = place.ask(&format!("SELECT {column}::text FROM $s.schema_version"));
            found[0].parse().unwrap()
        };
        (number("version"), number("oldest"))
    });
}

/// A backup of the old version is restored by the new one, which upgrades the restored file.
#[test]
fn the_next_version_restores_a_backup_of_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    wait(
        wait(SqliteStore::open(at("keys.db")))
            .unwrap()
            .backup(at("monday.db")),
    )
    .unwrap();
    assert_eq!(versions(&at("monday.db")), (1, 1));
    let mut restore = Command::new(support::example::build("keyctl"));
    restore.arg("restore").arg(at("monday.db"));
    restore
        .env("KEYWARD_STORE", at("restored.db"))
        .env(NEXT.0, NEXT.1);
    let ran = restore.output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(versions(&at("restored.db")), (2, 1));
}
