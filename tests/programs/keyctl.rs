//! The command-line program `keyctl`, for operators and scripts: real processes on a real file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use keyward::clocks::SystemClock;
use keyward::key::Digest;
use keyward::policy::{Deletion, Revocation};
use keyward::store::usage::{BootId, BootOpening, KeyUses, UsageBatch, UsageStore};
use keyward::store::{
    Commit, CommitTag, Cursor, Effects, KeyStore, LoadRequest, NodeId, NodeRegistry, NodeReport,
    SqliteStore,
};
use keyward::usage::{Day, DayCounts, UseOutcome};
use keyward::{
    Actor, Clock, CreateKey, KeyId, Keyward, ManualClock, Need, PepperFile, TenantId, Timestamp,
    profiles,
};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use support::wait;
use tempfile::TempDir;

pub(crate) const DENIED: i32 = 1;
pub(crate) const USAGE: i32 = 2;
pub(crate) const UNAVAILABLE: i32 = 3;
pub(crate) const CORRUPT: i32 = 4;
pub(crate) const NOT_FOUND: i32 = 5;
pub(crate) const NO_ACCESS: i32 = 6;
pub(crate) const IN_PART: i32 = 7;

fn binary() -> &'static Path {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| support::example::build("keyctl"));
    &BUILT
}

/// The output and exit code of a process.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Parses each line of the output as a JSON document.
    pub(crate) fn documents(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap();
        self.out.lines().map(parse).collect()
    }

    pub(crate) fn document(&self) -> Value {
        let documents = self.documents();
        assert_eq!(documents.len(), 1, "{self:?}");
        documents.into_iter().next().unwrap()
    }
}

pub(crate) struct Shop(TempDir);

impl Shop {
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn new() -> Self {
        let shop = Self::empty();
        shop.run(&["init"]).ended(0);
        shop
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.0.path());
        command.env_remove("KEYWARD_STORE").stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Said {
        said(self.command(args))
    }

    /// Runs a command as a user who may not enter the folder of the shop.
    fn as_stranger(&self, args: &[&str]) -> Said {
        let allow = |mode| fs::set_permissions(self.0.path(), fs::Permissions::from_mode(mode));
        if fs::metadata("/proc/self").unwrap().uid() == 0 {
            let mut command = as_nobody(binary().as_os_str());
            command.args(args).current_dir("/");
            command.arg("--store").arg(self.path("keys.db"));
            return said(command);
        }
        allow(0o000).unwrap();
        let mut command = Command::new(binary());
        command.args(args).arg("--store").arg(self.path("keys.db"));
        let said = said(command);
        allow(0o700).unwrap();
        said
    }

    /// Creates a key of `tenant`. Returns the key's id and secret.
    pub(crate) fn key(&self, tenant: &str, name: &str, more: &[&str]) -> (String, String) {
        let args = ["create", name, "--tenant", tenant, "--json"];
        let created = self.run(&[&args, more].concat()).ended(0).document();
        let text = |field: &str| created[field].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    }

    pub(crate) fn names(&self, args: &[&str]) -> Vec<String> {
        let listed = self.run(&[&["list", "--json"], args].concat()).ended(0);
        let name = |key: &Value| key["name"].as_str().unwrap().to_owned();
        listed.documents().iter().map(name).collect()
    }

    fn verifies(&self, token: &str) -> bool {
        pollster::block_on(async {
            let store = SqliteStore::open(self.path("keys.db")).await.unwrap();
            let peppers = PepperFile::open(self.path("keys.db.pepper"))
                .unwrap()
                .ring();
            let keys = Keyward::builder(store, peppers).build().await.unwrap();
            keys.verify(token, &Need::any()).is_ok()
        })
    }

    /// Changes the file with plain SQL, without the store.
    pub(crate) fn tamper(&self, sql: &str) {
        let file = rusqlite::Connection::open(self.path("keys.db")).unwrap();
        file.execute_batch(sql).unwrap();
    }
}

/// Returns a command that runs a program as a user without rights. Only root may run it.
pub(crate) fn as_nobody(program: &OsStr) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534"]);
    command.args(["--clear-groups", "--"]).arg(program);
    command.env_remove("KEYWARD_STORE").stdin(Stdio::null());
    command
}

/// Runs a command whose stdout is closed from its start.
pub(crate) fn with_closed_stdout(shop: &Shop, args: &[&str]) -> Said {
    let command = shop.command(args);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" >&-"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.current_dir(shop.path("")).env_remove("KEYWARD_STORE");
    said(shell)
}

/// A process whose stderr is a terminal, and the text on that terminal.
struct Terminal {
    child: Child,
    screen: File,
    shown: String,
}

impl Terminal {
    fn start(mut command: Command) -> Self {
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let name = ptsname(&screen, Vec::new()).unwrap();
        let inner = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(name.to_str().unwrap())
            .unwrap();
        let child = command.stdout(Stdio::null()).stderr(inner).spawn().unwrap();
        Self {
            child,
            screen: screen.into(),
            shown: String::new(),
        }
    }

    /// Waits for more text on the terminal. Returns `true` if the process has ended instead.
    fn ended(&mut self) -> bool {
        let mut more = [0; 256];
        // A read fails once the other end is closed.
        let read = self.screen.read(&mut more).unwrap_or(0);
        self.shown += std::str::from_utf8(&more[..read]).unwrap();
        read == 0
    }

    fn wait_for(&mut self, words: &str) {
        while !self.shown.contains(words) {
            assert!(!self.ended(), "{words:?} is not in {:?}", self.shown);
        }
    }

    /// Returns all text shown, and the exit code.
    fn finish(mut self) -> (String, i32) {
        while !self.ended() {}
        let code = self.child.wait().unwrap().code().unwrap();
        (self.shown, code)
    }
}

/// Runs a command. No error of any command speaks of Rust: an operator only knows commands and options.
pub(crate) fn said(mut command: Command) -> Said {
    let output = command.output().unwrap();
    let said = Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    let rust = regex::Regex::new(r"\w::\w|\(\)|finish_recovery|allow_unrecovered").unwrap();
    assert!(!rust.is_match(&said.err), "{said:?}");
    said
}

fn holds(folder: &Path, secret: &str) -> bool {
    let has = |bytes: &[u8]| {
        bytes
            .windows(secret.len())
            .any(|part| part == secret.as_bytes())
    };
    let mut entries = fs::read_dir(folder).unwrap();
    entries.any(|entry| has(&fs::read(entry.unwrap().path()).unwrap()))
}

#[test]
fn stdout_holds_only_the_secret_and_no_file_contains_it() {
    let shop = Shop::new();
    let created = shop.run(&[
        "create",
        "export",
        "--tenant",
        "acme",
        "--scope",
        "reports:read",
    ]);
    let created = created.ended(0);
    let secret = created.out.strip_suffix('\n').unwrap();
    assert!(secret.starts_with("sk_live_") && !secret.contains(char::is_whitespace));
    assert!(!created.err.contains(secret) && created.err.contains("created key"));
    assert!(shop.verifies(secret), "the printed secret verifies");

    let id = shop.run(&["list", "--json"]).document()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let rotated = shop.run(&["rotate", &id, "--immediate"]).ended(0);
    let successor = rotated.out.strip_suffix('\n').unwrap();
    assert!(!rotated.err.contains(successor));
    assert!(shop.verifies(successor) && !shop.verifies(secret));

    let (_, third) = shop.key("acme", "third", &[]);
    for secret in [secret, successor, &third] {
        // The folder holds neither the whole token nor its secret half, which follows the prefix and the id.
        assert!(!holds(shop.0.path(), secret));
        assert!(!holds(shop.0.path(), &secret[secret.len() - 40..]));
        for asked in [&["list"][..], &["audit"], &["stats"], &["show", &id]] {
            let said = shop.run(asked).ended(0);
            assert!(!said.out.contains(secret) && !said.err.contains(secret));
        }
    }
    assert!(
        holds(shop.0.path(), "third"),
        "the search finds text that is in the folder"
    );
}

#[test]
fn a_command_removes_what_the_policy_no_longer_keeps() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &["--policy", keeps_nothing(&shop)]);
    shop.run(&["revoke", &id, "--reason", "lost"]).ended(0);
    let retain = |args: &[&str]| {
        let documents = shop.run(&[&["retain", "--json"], args].concat()).ended(0);
        let documents = documents.documents();
        let tombstones = documents.get(1).and_then(|it| it["tombstones"].as_u64());
        (documents[0]["keys"].as_u64().unwrap(), tombstones)
    };
    assert_eq!(retain(&["--dry-run"]), (1, None));
    let store = pollster::block_on(SqliteStore::open(shop.path("keys.db"))).unwrap();
    let head = || {
        let page = pollster::block_on(store.scan(None, NonZeroUsize::MIN));
        page.unwrap().head
    };
    let before = head();
    assert_eq!(retain(&[]), (1, None));
    shop.run(&["show", &id]).ended(NOT_FOUND);
    assert_eq!(retain(&["--dry-run", "--tombstones", "0s"]), (0, None));
    assert_eq!(retain(&["--tombstones", "1d"]), (0, Some(0)));
    // A node that has not read the removal needs the tombstone.
    let report = |beat, applied: Cursor| {
        let (node, lease, clock) = (NodeId::from_u128(7), Duration::ZERO, Timestamp::UNIX_EPOCH);
        let label = None;
        let report = NodeReport {
            node,
            label,
            applied: Some(applied),
            lease,
            clock,
            beat,
            process: None,
        };
        assert!(pollster::block_on(store.report(report)).unwrap());
    };
    report(1, before);
    assert_eq!(retain(&["--tombstones", "0s"]), (0, Some(0)));
    report(2, head());
    assert_eq!(retain(&["--tombstones", "0s"]), (0, Some(1)));
    shop.run(&["audit", "--check"]).ended(0);
}

/// Writes a policy that keeps no revoked key, and returns the name of its file.
pub(crate) fn keeps_nothing(shop: &Shop) -> &'static str {
    let mut spec = profiles::standard();
    spec.version += 1;
    for class in spec.classes.values_mut() {
        let (confirm, keep) = (false, Some(Duration::ZERO));
        class.revocation = Revocation::Allowed { confirm, keep };
    }
    fs::write(shop.path("policy.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    "policy.json"
}

#[test]
fn a_tombstone_of_unknown_age_stays() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &["--policy", keeps_nothing(&shop)]);
    shop.run(&["revoke", &id, "--reason", "lost"]).ended(0);
    shop.run(&["retain"]).ended(0);
    let dropped = |age| shop.run(&["retain", "--tombstones", age, "--json"]);
    // The entries up to the removal were removed themselves.
    shop.tamper("CREATE TABLE saved AS SELECT * FROM audit; DELETE FROM audit;");
    let unknown = dropped("1d").ended(0);
    assert!(
        unknown.err.contains("no tombstone is known to be that old"),
        "{unknown:?}"
    );
    let documents = unknown.documents();
    assert_eq!(documents.last().unwrap()["tombstones"], 0);
    shop.tamper("INSERT INTO audit SELECT * FROM saved; UPDATE audit SET seal = seal + 1 WHERE sequence = 1;");
    let corrupt = dropped("0s").ended(CORRUPT);
    assert!(
        corrupt.err.contains("tombstones: audit entry 1"),
        "{corrupt:?}"
    );
    shop.tamper("DELETE FROM audit; INSERT INTO audit SELECT * FROM saved; DROP TABLE saved;");
    let documents = dropped("0s").ended(0).documents();
    assert_eq!(documents.last().unwrap()["tombstones"], 1);
}

#[test]
fn retention_goes_on_after_a_tenant_that_fails() {
    let shop = Shop::new();
    let policy = keeps_nothing(&shop);
    let ended = ["acme", "globex"].map(|tenant| {
        let (id, _) = shop.key(tenant, "export", &["--policy", policy]);
        shop.run(&["revoke", &id, "--reason", "lost"]).ended(0);
        id
    });
    commit_in_the_future(&shop, "acme");
    let failed = shop.run(&["retain"]).ended(IN_PART);
    assert!(failed.err.contains("tenant acme: "), "{failed:?}");
    assert!(
        failed
            .out
            .contains("globex  1 key and 0 audit entries removed"),
        "{failed:?}"
    );
    shop.run(&["show", &ended[0]]).ended(0);
    shop.run(&["show", &ended[1]]).ended(NOT_FOUND);
}

/// A row that no scan can read shows that the command reads none.
#[test]
fn a_command_for_all_tenants_finds_them_without_reading_their_rows() {
    let shop = Shop::new();
    for tenant in ["acme", "globex"] {
        shop.key(tenant, "export", &[]);
    }
    shop.tamper("UPDATE rows SET id = x'01', body = x'' WHERE kind = 2 AND tenant = 'acme'");
    let retained = shop.run(&["retain"]).ended(0);
    for tenant in ["acme", "globex"] {
        let line = format!("{tenant}  0 keys and 0 audit entries removed");
        assert!(retained.out.contains(&line), "{retained:?}");
    }
}

#[test]
fn a_damaged_head_of_a_tenant_keeps_no_command_from_the_others() {
    let shop = Shop::new();
    let [_, ended] = ["acme", "globex"].map(|tenant| shop.key(tenant, "export", &[]).0);
    shop.run(&["revoke", &ended, "--reason", "lost"]).ended(0);
    shop.tamper("UPDATE tenants SET seal = seal + 1 WHERE tenant = 'acme'");
    let purged = shop.run(&["purge"]).ended(CORRUPT);
    assert!(purged.err.contains("tenant acme: "), "{purged:?}");
    assert!(purged.out.contains("globex  "), "{purged:?}");
}

/// Creates a key in the tenant by a clock that is ten years ahead. Returns the time of that clock.
pub(crate) fn commit_in_the_future(shop: &Shop, tenant: &str) -> Timestamp {
    let later = SystemClock.now().saturating_add(keyward::days(3650));
    pollster::block_on(async {
        let store = SqliteStore::open(shop.path("keys.db")).await.unwrap();
        let peppers = PepperFile::open(shop.path("keys.db.pepper"))
            .unwrap()
            .ring();
        let keys = Keyward::builder(store, peppers).clock(ManualClock::at(later));
        let keys = keys.build().await.unwrap();
        let host = Actor::application(tenant.try_into().unwrap());
        keys.create(&host, CreateKey::new("future").owned_by_tenant())
            .await
            .unwrap();
    });
    later
}

#[test]
fn an_upgrade_is_finished_by_a_command() {
    let shop = Shop::new();
    shop.tamper("PRAGMA user_version = 1");
    shop.run(&["finish-upgrade"]).ended(0);
    let file = rusqlite::Connection::open(shop.path("keys.db")).unwrap();
    let version = file.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0));
    assert_eq!(version, Ok(1 << 16 | 1));
    shop.tamper("PRAGMA user_version = 131074");
    let refused = shop.run(&["list"]).ended(DENIED);
    assert!(refused.err.contains("keyctl finish-upgrade"), "{refused:?}");
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &[]);
    shop.run(&["revoke", &id, "--reason", "lost"]).ended(0);
    shop.run(&["rotate", &id]).ended(DENIED);
    shop.run(&["init"]).ended(DENIED);
    let member = ["--tenant", "acme", "--as", "bob", "--role", "member"];
    shop.run(&[&["create", "mine"], &member[..]].concat())
        .ended(DENIED);

    shop.run(&["no-such-command"]).ended(USAGE);
    shop.run(&["create", "x"]).ended(USAGE);
    shop.run(&["list", "--as", "bob"]).ended(USAGE);
    shop.run(&["list", "--as", "bob", "--role", "admin"])
        .ended(USAGE);
    let misplaced = shop.run(&["show", "sk_live_something_secret"]).ended(USAGE);
    assert!(!misplaced.err.contains("something_secret"), "{misplaced:?}");

    let folder = shop.0.path().to_str().unwrap();
    for permanent in [
        &["list", "--policy", folder][..],
        &["import", folder],
        &["list", "--store", ""],
        &["list", "--limit", "0"],
    ] {
        shop.run(permanent).ended(USAGE);
    }

    shop.run(&["show", "0000000000000000000000"])
        .ended(NOT_FOUND);
    shop.run(&["list", "--store", "none.db"]).ended(NOT_FOUND);
    assert!(!shop.path("none.db").exists(), "a query creates no file");
    for nowhere in [
        &["list", "--pepper-file", "none"][..],
        &["init", "--store", "none/keys.db"],
        &["init", "--store", "none/keys.db", "--pepper-file", "new"],
        &["backup", "none/copy.db"],
        &["migrate-store", "keys.db", "none/keys.db"],
    ] {
        shop.run(nowhere).ended(NOT_FOUND);
    }
    let elsewhere = ["--tenant", "other", "--as", "eve", "--role", "admin"];
    shop.run(&[&["show", &id], &elsewhere[..]].concat())
        .ended(NOT_FOUND);

    let denied = shop.as_stranger(&["list", "--json"]).ended(NO_ACCESS);
    assert!(denied.err.contains("no_access"), "{denied:?}");

    let answer = shop.run(&["show", "0000000000000000000000", "--json"]);
    assert!(answer.out.is_empty());
    let error: Value = serde_json::from_str(&answer.err).unwrap();
    assert_eq!(error["error"]["kind"], "not_found");
    assert_eq!(error["error"]["exit"], NOT_FOUND);
    assert_eq!(error["error"]["code"], "key-not-found");
    let help = shop.run(&["--help"]).ended(0);
    assert!(help.out.contains("Exit codes:"));
}

#[test]
fn errors_about_malformed_arguments_never_repeat_them() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &[]);
    let pasted = "sk_live_misplaced";
    let flag = format!("--{pasted}");
    let valued = format!("--json={pasted}");
    let cases: [(&[&str], &str); 13] = [
        (&[pasted], "no such command"),
        (&["show", &id, pasted], "argument 3 is not expected"),
        (&["stats", pasted], "argument 2 is not expected"),
        (&["stats", &flag], "argument 2 is not expected"),
        (&["stats", "--", pasted], "not expected"),
        (&["revoke", &id, "--reason", pasted], "must be one of: lost"),
        (&["list", "--expiring", pasted], "such as 90d"),
        (&["list", "--limit", pasted], "--limit"),
        (&["delete", &id, "--references", pasted], "--references"),
        (
            &["delete", &id, "--references", "98765432109"],
            "--references",
        ),
        (&[&valued, "stats"], "--json"),
        (
            &["create", "x", "--tenant", "acme", "--resource", pasted],
            "KIND:ID",
        ),
        (
            &["create", "x", "--tenant", "acme", "--metadata", pasted],
            "NAME=VALUE",
        ),
    ];
    for (args, expected) in cases {
        let refused = shop.run(args).ended(USAGE);
        assert!(
            refused.out.is_empty() && refused.err.contains(expected),
            "{refused:?}"
        );
        for typed in ["misplaced", "98765432109"] {
            assert!(!refused.err.contains(typed), "{args:?}: {refused:?}");
        }
    }
    let missing = shop.run(&["recover"]).ended(USAGE);
    assert!(missing.err.contains("--disable-all"), "{missing:?}");
    let exclusive = ["--expires-in", "1d", "--never-expires"];
    let refused = shop.run(&[&["create", "x"], &exclusive[..]].concat());
    let refused = refused.ended(USAGE);
    assert!(refused.err.contains("cannot be used with"), "{refused:?}");

    let answer = shop.run(&["stats", pasted, "--json"]).ended(USAGE);
    let error: Value = serde_json::from_str(&answer.err).unwrap();
    assert_eq!(error["error"]["kind"], "usage");
    assert_eq!(error["error"]["exit"], USAGE);
    shop.run(&["list", "--help"]).ended(0);
    shop.run(&["--version"]).ended(0);
}

#[test]
fn a_key_is_created_with_every_given_field() {
    let shop = Shop::new();
    let about = [
        "--description",
        "for the night",
        "--purpose",
        "exports",
        "--resource",
        "project:47:11",
        "--metadata",
        "team=data",
        "--metadata",
        "query=a=b",
    ];
    let (id, _) = shop.key("acme", "export", &about);
    let key = shop.run(&["show", &id, "--json"]).document();
    assert_eq!(key["description"], "for the night");
    assert_eq!(key["purpose"], "exports");
    assert_eq!(key["resource"], json!({ "kind": "project", "id": "47:11" }));
    assert_eq!(key["metadata"], json!({ "team": "data", "query": "a=b" }));
    let moving = ["--description", "a\nb", "--metadata", "red=a\nb"];
    let (moving, _) = shop.key("acme", "moving", &moving);
    let shown = shop.run(&["show", &moving]).ended(0).out;
    let lines = shown.split('\n');
    assert!(lines.clone().any(|line| line.ends_with("  a b")), "{shown}");
    assert!(!lines.collect::<String>().contains(char::is_control));
    shop.run(&["delete", &moving, "--confirm", "moving"])
        .ended(0);
    let twice = ["--metadata", "team=data", "--metadata", "team=other"];
    let create = ["create", "x", "--tenant", "acme"];
    let refused = shop.run(&[&create[..], &twice].concat()).ended(USAGE);
    assert!(refused.err.contains("twice"), "{refused:?}");
    assert_eq!(shop.names(&[]), ["export"]);
}

#[test]
fn a_store_that_another_process_has_locked_is_unavailable_and_unchanged() {
    let shop = Shop::new();
    shop.key("acme", "before", &[]);
    let other = rusqlite::Connection::open(shop.path("keys.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let create = ["create", "meanwhile", "--tenant", "acme", "--wait", "0s"];
    let refused = shop.run(&create).ended(UNAVAILABLE);
    assert!(refused.out.is_empty(), "{refused:?}");
    assert_eq!(refused.err.matches("locked").count(), 1, "{refused:?}");
    assert_eq!(shop.names(&[]), ["before"], "readers are not blocked");
    other.execute_batch("ROLLBACK").unwrap();
    shop.run(&create).ended(0);
    assert_eq!(shop.names(&[]), ["before", "meanwhile"]);
    shop.run(&["list", "--wait", "99999999d"]).ended(0);
}

#[test]
fn long_commands_show_progress_on_a_terminal() {
    let shop = Shop::new();
    shop.key("acme", "export", &[]);
    let long: [(&[&str], &str); 3] = [
        (&["backup", "copy.db"], "backing up to copy.db: 0.0 s"),
        (
            &["restore", "copy.db", "--store", "new.db"],
            "restoring copy.db: 0.0 s",
        ),
        (&["check"], "checking keys.db: 0.0 s"),
    ];
    for (args, line) in long {
        let (shown, code) = Terminal::start(shop.command(args)).finish();
        assert_eq!(code, 0, "{shown:?}");
        let (_, after) = shown
            .split_once(line)
            .expect("the terminal shows the progress line");
        let blank = format!("\r{}\r", " ".repeat(line.len()));
        assert!(
            after.contains(&blank),
            "{shown:?}: the progress line is cleared at the end"
        );
    }
    for name in ["copy.db", "new.db"] {
        fs::remove_file(shop.path(name)).unwrap();
    }
    for (args, _) in long {
        let unseen = shop.run(args).ended(0);
        assert!(!unseen.err.contains('\r'), "no terminal: {unseen:?}");
    }
    let machine = Terminal::start(shop.command(&["check", "--json"])).finish();
    assert_eq!(
        machine,
        (String::new(), 0),
        "with --json there is no progress line"
    );
}

#[test]
fn the_progress_line_moves_until_the_command_ends() {
    let shop = Shop::new();
    shop.key("acme", "export", &[]);
    shop.run(&["backup", "copy.db"]).ended(0);
    let other = rusqlite::Connection::open(shop.path("copy.db")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let restore = ["restore", "copy.db", "--store", "new.db"];
    let mut waits = Terminal::start(shop.command(&restore));
    waits.wait_for("copy.db: 0.2 s");
    other.execute_batch("ROLLBACK").unwrap();
    let (shown, code) = waits.finish();
    assert_eq!(code, 0, "{shown:?}");
    assert!(shop.path("new.db").exists());
}

#[test]
fn a_pepper_readable_by_others_is_refused() {
    let shop = Shop::new();
    let open = fs::Permissions::from_mode(0o644);
    fs::set_permissions(shop.path("keys.db.pepper"), open).unwrap();
    let refused = shop.run(&["list"]).ended(DENIED);
    assert!(refused.err.contains("chmod 600"), "{refused:?}");
}

/// Kubernetes and Docker mount a secret as a file of root, behind a link. Root alone can make such a file.
#[test]
fn a_mounted_pepper_is_read_through_its_link() {
    let shop = Shop::new();
    fs::create_dir(shop.path("mount")).unwrap();
    fs::rename(shop.path("keys.db.pepper"), shop.path("mount/pepper")).unwrap();
    let is_root = fs::metadata(shop.path("mount/pepper")).unwrap().uid() == 0;
    let mode = if is_root { 0o440 } else { 0o400 };
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(shop.path("mount/pepper"), mode).unwrap();
    symlink("mount/pepper", shop.path("pepper")).unwrap();
    shop.run(&["list", "--pepper-file", "pepper"]).ended(0);
}

/// Each of these was once taken for the name of a file.
#[test]
fn a_connection_string_never_names_a_file_and_its_password_is_never_printed() {
    let shop = Shop::empty();
    for store in [
        "Postgres://u:hunter2@127.0.0.1:1/db",
        "POSTGRESQL://u:hunter2@127.0.0.1:1/db",
        "host=127.0.0.1 port=1 password=hunter2",
        "Host=127.0.0.1;Password=hunter2",
        "mysql://u:hunter2@127.0.0.1/db",
        "u:hunter2@127.0.0.1",
    ] {
        for args in [
            &["--store", store, "init"][..],
            &["--store", store, "--pepper-file", "pepper", "init"],
            &[
                "--store",
                store,
                "--pepper-file",
                "pepper",
                "list",
                "--json",
            ],
            &["backup", store],
            &["restore", store],
            &["--pepper-file", store, "list"],
            &["--policy", store, "list"],
            &["migrate-store", "keys.db", store],
        ] {
            let failed = shop.run(args);
            assert_ne!(failed.code, 0, "{failed:?}");
            let printed = format!("{}{}", failed.out, failed.err);
            assert!(!printed.contains("hunter2"), "{args:?}: {printed}");
            let files: Vec<_> = fs::read_dir(shop.0.path()).unwrap().collect();
            assert!(files.is_empty(), "{args:?}: {files:?}");
        }
    }
}

#[test]
fn a_key_without_scopes_is_created_with_a_warning() {
    let shop = Shop::new();
    let create = |more: &[&str]| {
        let args = ["create", "x", "--tenant", "acme"];
        shop.run(&[&args, more].concat()).ended(0)
    };
    for scopeless in [create(&[]), create(&["--json"])] {
        assert!(scopeless.err.contains("no scopes"), "{scopeless:?}");
        assert!(scopeless.err.contains("--scope"), "{scopeless:?}");
        assert_eq!(scopeless.out.lines().count(), 1, "{scopeless:?}");
    }
    let scopeless = create(&["--json"]);
    let warning: Value = serde_json::from_str(&scopeless.err).unwrap();
    assert!(warning["warning"].is_string(), "{scopeless:?}");
    assert!(
        !create(&["--scope", "reports:read"])
            .err
            .contains("no scopes")
    );
    assert!(
        !create(&["--class", "publishable"])
            .err
            .contains("no scopes")
    );
}

#[test]
fn hidden_characters_are_refused_when_typed() {
    let shop = Shop::new();
    for (name, more) in [
        ("\u{200b}\u{200b}", &[][..]),
        ("alice\u{202e}eviL", &[]),
        ("x", &["--metadata", "note=a\u{9b}2Jb"]),
        ("x", &["--description", "a\u{2066}b"]),
        ("x", &["--purpose", "a\u{2028}b"]),
    ] {
        let args = ["create", name, "--tenant", "acme"];
        let refused = shop.run(&[&args, more].concat()).ended(USAGE);
        assert!(refused.err.is_ascii(), "{refused:?}");
    }
    assert!(shop.names(&[]).is_empty());
}

/// A store of an earlier version may hold them.
#[test]
fn hidden_characters_in_a_store_are_printed_as_escapes() {
    let shop = Shop::new();
    let metadata = ["--metadata", "note=old"];
    let (id, secret) = shop.key("acme", "old", &metadata);
    let text = "alice\u{202e}eviL";
    pollster::block_on(async {
        let store = SqliteStore::open(shop.path("keys.db")).await.unwrap();
        let (tenant, key) = (TenantId::new("acme").unwrap(), id.parse().unwrap());
        let view = store.load(&tenant, &LoadRequest::key(key)).await.unwrap();
        let mut record = view.record(key).unwrap().clone();
        // Rows are stored in this format, and the types refuse these values everywhere else.
        let stored = postcard::to_allocvec(text).unwrap();
        record.name = postcard::from_bytes(&stored).unwrap();
        let stored = postcard::to_allocvec(&BTreeMap::from([("note", "a\u{9b}2Jb")])).unwrap();
        record.metadata = postcard::from_bytes(&stored).unwrap();
        let commit = Commit {
            tenant,
            epoch: None,
            expected: view.revision,
            guards: Vec::new(),
            tag: CommitTag(1),
            decided_at: SystemClock.now(),
            effects: Effects {
                puts: vec![record],
                ..Effects::default()
            },
        };
        store.commit(commit).await.unwrap();
    });
    for args in [
        &["list"][..],
        &["show", &id],
        &["list", "--json"],
        &["show", &id, "--json"],
    ] {
        let shown = shop.run(args).ended(0);
        // A hint contains an ellipsis.
        let plain = |c: char| matches!(c, ' '..='~' | '\n' | '…');
        assert!(shown.out.chars().all(plain), "{shown:?}");
        assert!(shown.out.contains("202e"), "{shown:?}");
    }
    assert_eq!(
        shop.names(&[]),
        [text],
        "the escapes of JSON stand for the characters"
    );
    let shown = shop.run(&["show", &id, "--json"]).ended(0).document();
    assert_eq!(shown["metadata"]["note"], "a\u{9b}2Jb");
    assert!(shop.verifies(&secret), "the key works as before");
}

#[test]
fn a_policy_that_defines_a_role_or_class_twice_is_refused_by_name() {
    let shop = Shop::new();
    let standard = serde_json::to_string(&profiles::standard()).unwrap();
    for (map, name) in [("roles", "admin"), ("classes", "secret")] {
        let value = serde_json::from_str::<Value>(&standard).unwrap()[map][name].to_string();
        let once = format!("\"{map}\":{{");
        let twice = standard.replacen(&once, &format!("{once}\"{name}\":{value},"), 1);
        assert_ne!(twice, standard);
        fs::write(shop.path("policy.json"), twice).unwrap();
        let refused = shop.run(&["--policy", "policy.json", "list"]).ended(USAGE);
        assert!(
            refused.err.contains(&format!("`{name}` is defined twice")),
            "{refused:?}"
        );
    }
}

#[test]
fn a_lost_pepper_is_never_recreated() {
    let shop = Shop::new();
    fs::remove_file(shop.path("keys.db.pepper")).unwrap();
    shop.run(&["create", "x", "--tenant", "acme"])
        .ended(NOT_FOUND);
    shop.run(&["init"]).ended(DENIED);
    assert!(!shop.path("keys.db.pepper").exists());
}

#[test]
fn deleting_requires_the_typed_confirmation() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &[]);
    let unasked = shop.run(&["delete", &id]).ended(DENIED);
    assert!(unasked.err.contains("export") && unasked.err.contains("--confirm"));
    shop.run(&["delete", &id, "--confirm", "Export"])
        .ended(DENIED);
    shop.run(&["show", &id]).ended(0);
    shop.run(&["delete", &id, "--confirm", "export"]).ended(0);
    shop.run(&["show", &id]).ended(NOT_FOUND);

    let mut spec = profiles::standard();
    for class in spec.classes.values_mut() {
        class.deletion = Deletion::Typed("for ever".to_owned());
    }
    fs::write(shop.path("policy.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    let (id, _) = shop.key("acme", "other", &[]);
    let delete = ["delete", &id, "--policy", "policy.json", "--confirm"];
    shop.run(&[&delete[..], &["other"]].concat()).ended(DENIED);
    shop.run(&["show", &id]).ended(0);
    shop.run(&[&delete[..], &["for ever"]].concat()).ended(0);
    shop.run(&["show", &id]).ended(NOT_FOUND);
}

/// The lost store is gone: only the lines that another command exported are left.
#[test]
fn a_restored_store_is_recovered_from_an_exported_trail() {
    let shop = Shop::new();
    let (kept, _) = shop.key("acme", "kept", &[]);
    let (revoked, _) = shop.key("acme", "revoked later", &[]);
    shop.run(&["backup", "copy.db"]).ended(0);
    shop.run(&["revoke", &revoked, "--reason", "lost"]).ended(0);
    let export = ["audit", "--json", "--limit", "2", "--all"];
    let trail = shop.run(&export).ended(0).out;
    let (first, second) = trail.split_at(trail.match_indices('\n').nth(1).unwrap().0 + 1);
    fs::write(shop.path("first.jsonl"), first).unwrap();
    fs::write(shop.path("second.jsonl"), second).unwrap();
    fs::remove_file(shop.path("keys.db")).unwrap();

    let restored = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    let with = |args: &[&str]| shop.run(&[args, &restored[..]].concat());
    with(&["restore", "copy.db"]).ended(0);
    let refused = with(&["list"]).ended(DENIED);
    assert!(refused.err.contains("keyctl recover"), "{refused:?}");
    let replay = |files: &[&str]| {
        let files = files.iter().flat_map(|file| ["--replay-file", file]);
        with(&[&["recover", "--json"], &*files.collect::<Vec<_>>()].concat())
    };
    replay(&["none.jsonl"]).ended(NOT_FOUND);
    fs::write(shop.path("empty.jsonl"), "\n").unwrap();
    replay(&["empty.jsonl"]).ended(USAGE);
    let altered = trail.replace("\"lost\"", "\"unused\"");
    assert_ne!(altered, trail);
    fs::write(shop.path("altered.jsonl"), altered).unwrap();
    let refused = replay(&["altered.jsonl"]).ended(CORRUPT);
    assert!(refused.err.contains("was altered"), "{refused:?}");
    let names = [
        "trail to replay of tenant acme",
        "another copy of the lost store",
    ];
    assert!(
        names.iter().all(|part| refused.err.contains(part)),
        "{refused:?}"
    );
    fs::write(shop.path("other.jsonl"), format!("{first}hunter2\n")).unwrap();
    let refused = replay(&["other.jsonl"]).ended(USAGE);
    assert!(refused.err.contains("other.jsonl line 3"), "{refused:?}");
    assert!(!refused.err.contains("hunter2"), "{refused:?}");

    let answer = replay(&["second.jsonl", "first.jsonl"]).ended(0).document();
    assert_eq!(
        (&answer["revoked"], &answer["disabled"]),
        (&1.into(), &0.into())
    );
    // A copy of the file alone is recovered too.
    fs::copy(shop.path("new.db"), shop.path("moved.db")).unwrap();
    let moved = ["--store", "moved.db", "--pepper-file", "keys.db.pepper"];
    let status = |id: &str| {
        let shown = shop.run(&[&["show", id, "--json"], &moved[..]].concat());
        shown.ended(0).document()["status"].clone()
    };
    assert_eq!(
        (status(&kept), status(&revoked)),
        ("active".into(), "revoked".into())
    );
}

#[test]
fn the_audit_trail_is_read_page_by_page() {
    let shop = Shop::new();
    shop.key("acme", "one", &[]);
    shop.key("globex", "two", &[]);
    let all = shop.run(&["audit", "--json"]).ended(0).documents();
    let mut paged = Vec::new();
    let mut after = Vec::new();
    loop {
        let args: Vec<_> = after.iter().map(String::as_str).collect();
        let page = shop.run(&[&["audit", "--json", "--limit", "1"], &*args].concat());
        let page = page.ended(0);
        paged.push(page.document());
        if page.err.is_empty() {
            break;
        }
        let next: Value = serde_json::from_str(&page.err).unwrap();
        after = ["--after", next["next"].as_str().unwrap()]
            .map(str::to_owned)
            .into();
    }
    assert_eq!(paged, all);
    let other = shop.run(&["list", "--limit", "1", "--json"]).ended(0);
    let other: Value = serde_json::from_str(&other.err).unwrap();
    let other = other["next"].as_str().unwrap();
    let refused = shop.run(&["audit", "--after", other]).ended(USAGE);
    assert!(refused.err.contains("begin with audit-"), "{refused:?}");
}

#[test]
fn a_list_is_filtered_sorted_and_paged() {
    let shop = Shop::new();
    let alice = ["--owner", "alice", "--owner-role", "developer"];
    shop.key(
        "acme",
        "b",
        &[&alice[..], &["--expires-in", "10d"]].concat(),
    );
    let (off, _) = shop.key(
        "acme",
        "A",
        &["--class", "publishable", "--expires-in", "90d"],
    );
    shop.key("acme/eu", "c", &[]);
    shop.key("globex", "d", &["--expires-in", "45d"]);
    shop.run(&["disable", &off]).ended(0);

    assert_eq!(shop.names(&[]), ["b", "A", "c", "d"]);
    assert_eq!(shop.names(&["--tenant", "acme"]), ["b", "A"]);
    assert_eq!(
        shop.names(&["--tenant", "acme", "--below"]),
        ["b", "A", "c"]
    );
    assert_eq!(shop.names(&["--status", "disabled"]), ["A"]);
    assert_eq!(
        shop.names(&["--status", "disabled", "--status", "active"])
            .len(),
        4
    );
    assert_eq!(shop.names(&["--class", "publishable"]), ["A"]);
    assert_eq!(shop.names(&["--owner", "alice"]), ["b"]);
    assert_eq!(shop.names(&["--name", "a"]), ["A"]);
    assert_eq!(shop.names(&["--expiring", "30d"]), ["b"]);
    assert_eq!(shop.names(&["--sort", "name"]), ["A", "b", "c", "d"]);
    assert_eq!(shop.names(&["--sort", "newest"]), ["d", "c", "A", "b"]);
    assert_eq!(
        shop.names(&["--sort", "expiry", "--limit", "2"]),
        ["b", "d"]
    );
    assert_eq!(shop.names(&["--limit", "1", "--all"]), ["b", "A", "c", "d"]);
    let key = shop.run(&["show", &off, "--json"]).document();
    let (mark, hint) = (
        key["fingerprint"].as_str().unwrap(),
        key["hint"].as_str().unwrap(),
    );
    assert_eq!(shop.names(&["--fingerprint", mark]), ["A"]);
    assert_eq!(shop.names(&["--hint", hint]), ["A"]);

    for sort in ["created", "newest", "name", "expiry"] {
        let sorted = ["--sort", sort, "--all"];
        let all = shop.names(&sorted);
        let mut paged = Vec::new();
        let mut place: Vec<String> = Vec::new();
        for _ in 0..all.len() {
            let page = ["list", "--json", "--limit", "1", "--sort", sort];
            let after: Vec<_> = place.iter().map(String::as_str).collect();
            let said = shop.run(&[&page[..], &after].concat()).ended(0);
            let key = said.document();
            paged.push(key["name"].as_str().unwrap().to_owned());
            if paged.len() == all.len() {
                assert_eq!(said.err, "", "the last page has no next one");
                break;
            }
            let next: Value = serde_json::from_str(&said.err).unwrap();
            let next = next["next"].as_str().unwrap();
            place = ["--after", next].map(str::to_owned).into();
        }
        assert_eq!(paged, all, "{sort}, page by page");
    }
    let misplaced = ["list", "--after", "sk_live_misplaced"];
    let refused = shop.run(&misplaced).ended(USAGE);
    assert!(refused.err.contains("begin with key-"), "{refused:?}");
    assert!(!refused.err.contains("misplaced"));

    let table = shop.run(&["list", "--limit", "1"]).ended(0);
    assert_eq!(table.out.lines().count(), 2, "a heading and a key");
    assert!(table.out.starts_with("ID") && table.err.contains("--all"));
    let (_, next) = table.err.split_once("--after ").unwrap();
    let next = next.split(' ').next().unwrap();
    let last = table.out.lines().nth(1).unwrap().split(' ').next().unwrap();
    let rest = ["b", "A", "c", "d"].split_at(1).1;
    assert_eq!(shop.names(&["--after", next]), rest);
    shop.run(&["revoke", last, "--reason", "lost"]).ended(0);
    shop.run(&["delete", last, "--confirm", "b"]).ended(0);
    assert_eq!(
        shop.names(&["--after", next]),
        rest,
        "the position outlives its key"
    );
    let bound = ["--tenant", "acme/eu", "--as", "eve", "--role", "admin"];
    assert_eq!(shop.names(&bound), ["c"]);
}

#[test]
fn a_repeated_command_id_changes_nothing() {
    let shop = Shop::new();
    let create = [
        "create",
        "export",
        "--tenant",
        "acme",
        "--command-id",
        "c-1",
    ];
    shop.run(&create).ended(0);
    let id = shop.run(&["list", "--json"]).document()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let again = shop.run(&create).ended(DENIED);
    assert!(again.out.is_empty() && again.err.contains(&id), "{again:?}");
    assert_eq!(shop.names(&[]).len(), 1);
    for command in ["disable", "enable"] {
        shop.run(&[command, &id, "--command-id", command]).ended(0);
    }
    shop.run(&["disable", &id, "--command-id", "disable"])
        .ended(0);
    let key = shop.run(&["show", &id, "--json"]).document();
    assert_eq!(
        key["status"], "active",
        "repeating the command changes nothing"
    );
}

#[test]
fn a_pruned_trail_is_intact_and_a_shortened_one_is_not() {
    let shop = Shop::new();
    shop.key("acme", "export", &[]);
    shop.key("acme", "import", &[]);
    shop.key("globex", "other", &[]);
    let kept = shop.run(&["prune-audit", "--before", "2020-01-01T00:00:00Z"]);
    assert_eq!(kept.ended(0).out.matches("0 removed").count(), 2);
    let future = ["prune-audit", "--before", "2100-01-01T00:00:00Z"];
    let refused = shop.run(&future).ended(USAGE);
    assert!(refused.err.contains("future"), "{refused:?}");
    let now = SystemClock.now().to_string();
    let pruned = [
        "prune-audit",
        "--before",
        &now,
        "--tenant",
        "acme",
        "--json",
    ];
    let pruned = shop.run(&pruned).ended(0).documents().remove(0);
    assert!(pruned["removed"].as_u64() > Some(1), "{pruned}");
    let end = pruned["end"].as_str().unwrap();
    shop.run(&["audit", "--check", "--tenant", "acme", "--seen", end])
        .ended(0);
    assert_eq!(
        shop.run(&["audit", "--tenant", "acme"])
            .ended(0)
            .out
            .lines()
            .count(),
        1 + 1
    );
    shop.run(&["check"]).ended(0);
    shop.key("globex", "third", &[]);
    shop.tamper("DELETE FROM audit WHERE tenant = 'globex' AND sequence = 1");
    let cut = shop.run(&["check"]).ended(CORRUPT);
    assert!(
        cut.err.contains("no checkpoint") || cut.out.contains("no checkpoint"),
        "{cut:?}"
    );
    shop.run(&["audit", "--check"]).ended(CORRUPT);
}

#[test]
fn an_altered_or_truncated_trail_fails_the_check() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &[]);
    shop.key("globex", "other", &[]);
    shop.run(&["disable", &id]).ended(0);
    let checked = shop.run(&["audit", "--check", "--json"]).ended(0);
    let tenants: Vec<_> = checked
        .documents()
        .iter()
        .map(|one| one["tenant"].clone())
        .collect();
    assert_eq!(tenants, ["acme", "globex"]);
    let end = checked.documents()[0]["end"].as_str().unwrap().to_owned();
    let seen = ["audit", "--check", "--tenant", "acme", "--seen", &end];
    shop.run(&seen).ended(0);
    shop.run(&["audit", "--check", "--tenant", "acme", "--seen", "3:abc"])
        .ended(USAGE);
    let entries = shop
        .run(&["audit", "--json", "--key", &id])
        .ended(0)
        .documents();
    assert_eq!(entries.len(), 2);
    assert_eq!(end, format!("3:{}", entries[1]["hash"].as_str().unwrap()));
    assert_eq!(shop.run(&["audit"]).ended(0).out.lines().count(), 1 + 5);

    shop.key("no-trail", "third", &[]);
    shop.tamper("DELETE FROM audit WHERE tenant = 'no-trail'");
    let none = shop.run(&["audit", "--check"]).ended(CORRUPT);
    assert!(none.err.contains("audit trail of no-trail"), "{none:?}");

    shop.tamper("DELETE FROM audit WHERE tenant = 'acme' AND sequence = 3");
    let cut = shop.run(&seen).ended(CORRUPT);
    assert!(cut.err.contains("audit trail of acme"), "{cut:?}");
    let last = "substr(body, -1)";
    shop.tamper(&format!(
        "UPDATE audit SET body = CAST(substr(body, 1, length(body) - 1) || \
         CASE {last} WHEN x'00' THEN x'01' ELSE x'00' END AS BLOB) WHERE tenant = 'globex'"
    ));
    shop.run(&["audit", "--check", "--tenant", "globex"])
        .ended(CORRUPT);
    shop.run(&["check"]).ended(CORRUPT);
    shop.run(&["audit", "--tenant", "globex"]).ended(CORRUPT);
}

#[test]
fn imported_keys_keep_working_and_are_imported_once() {
    let shop = Shop::new();
    let digest = |token: &str| {
        let bytes = *Digest::sha256(token).as_bytes();
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let many = (0..100).map(|at| {
        let (sha256, name) = (digest(&format!("old-token-{at}")), format!("old {at}"));
        json!({ "sha256": sha256, "name": name, "tenant": format!("t{}", at % 2) }).to_string()
    });
    let lines: Vec<_> = many.collect();
    fs::write(shop.path("keys.jsonl"), lines.join("\n")).unwrap();
    let import = ["import", "keys.jsonl"];
    let first = shop.run(&import).ended(0);
    assert_eq!(first.out, "100 imported, 0 were here, 0 refused\n");
    assert!(
        first
            .err
            .contains("100 of the imported keys may do nothing"),
        "{first:?}"
    );
    assert!(shop.verifies("old-token-0") && shop.verifies("old-token-99"));
    let again = shop.run(&import).ended(0);
    assert_eq!(again.out, "0 imported, 100 were here, 0 refused\n");
    assert_eq!(shop.names(&["--all"]).len(), 100);

    let good = json!({ "sha256": digest("one more"), "name": "one more" }).to_string();
    let bad = [
        r#"{"sha256":"sk_old_misplaced","name":"x"}"#.to_owned(),
        r#"{"sk_old_misplaced":1}"#.to_owned(),
        r#"{"name":["sk_old_misplaced"]}"#.to_owned(),
        "sk_old_misplaced".to_owned(),
        good.replace('}', r#","metadata":{"a":"1","a":"2"}}"#),
        good.replace("one more", "another name"),
    ];
    fs::write(
        shop.path("bad.jsonl"),
        format!("{good}\n\n{}\n", bad.join("\n")),
    )
    .unwrap();
    let refused = shop
        .run(&["import", "bad.jsonl", "--tenant", "t0", "--json"])
        .ended(IN_PART);
    assert!(!refused.err.contains("misplaced") && !refused.out.contains("misplaced"));
    let answer = refused.documents();
    assert_eq!(answer[0]["line"], 1);
    assert_eq!(answer[0]["repeated"], false);
    let at_fault: Vec<_> = answer[1..]
        .iter()
        .map(|one| one["line"].as_u64().unwrap())
        .collect();
    assert_eq!(
        at_fault,
        [3, 4, 5, 6, 7, 8],
        "empty lines are counted but skipped"
    );
    assert!(answer[1..].iter().all(|one| one["error"].is_string()));
}

#[test]
fn a_restored_backup_waits_for_its_recovery() {
    let shop = Shop::new();
    let (id, secret) = shop.key("acme", "export", &[]);
    let copied = shop
        .run(&["backup", "copy.db", "--json"])
        .ended(0)
        .document();
    assert_eq!(copied["head"]["revision"], 1);
    shop.run(&["backup", "copy.db"]).ended(DENIED);
    shop.key("acme", "later", &[]);
    assert!(!holds(shop.0.path(), &secret));

    let restored = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    shop.run(&[&["restore", "copy.db"], &restored[..]].concat())
        .ended(0);
    shop.run(&[&["restore", "copy.db"], &restored[..]].concat())
        .ended(DENIED);
    shop.run(&["restore", "none.db", "--store", "other.db"])
        .ended(NOT_FOUND);
    shop.run(&[&["list"], &restored[..]].concat()).ended(DENIED);
    let open = [&restored[..], &["--allow-unrecovered"]].concat();
    assert_eq!(shop.names(&open), ["export"]);
    shop.run(&[&["show", &id], &open[..]].concat()).ended(0);
    let epoch = |args: &[&str]| shop.run(args).ended(0).document()["head"]["epoch"].clone();
    let new = epoch(&[&["stats", "--json"], &open[..]].concat());
    assert_ne!(
        new,
        epoch(&["stats", "--json"]),
        "the new store has its own epoch"
    );
}

#[test]
fn a_damaged_store_is_salvaged_and_its_whole_keys_stay() {
    let shop = Shop::new();
    let (lost, _) = shop.key("acme", "lost", &[]);
    shop.key("acme", "kept", &[]);
    shop.run(&["backup", "good.db", "--verify"]).ended(0);
    shop.tamper(
        "UPDATE rows SET body = x'00' WHERE place = (SELECT min(place) FROM rows WHERE kind = 2)",
    );
    let checked = shop.run(&["check"]).ended(CORRUPT);
    assert!(checked.err.contains("keyctl salvage"), "{checked:?}");
    shop.run(&["backup", "bad.db", "--verify"]).ended(CORRUPT);
    assert!(!shop.path("bad.db").exists());

    let salvaged = shop.run(&["salvage", "keys.db", "new.db", "--json"]);
    let salvaged = salvaged.ended(IN_PART).document();
    let left_out = salvaged["left_out"].as_array().unwrap();
    assert_eq!(left_out.len(), 1, "{salvaged}");
    assert!(left_out[0].as_str().unwrap().contains(&lost), "{salvaged}");
    shop.run(&["salvage", "keys.db", "new.db"]).ended(DENIED);
    let new = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    shop.run(&[&["list"], &new[..]].concat()).ended(DENIED);
    shop.run(&[&["recover", "--trust-backup"], &new[..]].concat())
        .ended(0);
    assert_eq!(shop.names(&new), ["kept"]);
    shop.run(&[&["check"], &new[..]].concat()).ended(0);
}

#[test]
fn a_store_without_definitions_of_tables_is_checked_and_salvaged() {
    let shop = Shop::new();
    shop.key("acme", "kept", &[]);
    shop.tamper(
        "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA writable_schema = 1;
         UPDATE sqlite_schema SET sql = replace(sql, 'TABLE', 'TABEL')",
    );
    let checked = shop.run(&["check"]).ended(CORRUPT);
    assert!(
        checked.out.contains("the definition of rows is damaged"),
        "{checked:?}"
    );
    for text in [&checked.out, &checked.err] {
        assert!(
            !text.contains("syntax") && !text.contains("TABEL"),
            "{checked:?}"
        );
    }
    let uncounted = "not counted: the live keys of each pepper";
    assert!(checked.out.contains(uncounted), "{checked:?}");
    assert!(!checked.out.contains("): 0"), "{checked:?}");
    let document = shop.run(&["check", "--json"]).ended(CORRUPT).document();
    assert_eq!(document["peppers"], Value::Null);
    shop.run(&["salvage", "keys.db", "new.db"]).ended(0);
    let new = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    shop.run(&[&["recover", "--trust-backup"], &new[..]].concat())
        .ended(0);
    assert_eq!(shop.names(&new), ["kept"]);

    let path = shop.path("keys.db");
    std::fs::write(&path, vec![0x55; 8192]).unwrap();
    let lost = shop.run(&["salvage", "keys.db", "other.db"]).ended(CORRUPT);
    assert!(lost.err.contains("restore a backup") && !lost.err.contains("keyctl salvage"));
}

#[test]
fn audit_entries_that_a_salvage_lost_are_listed_and_no_fault() {
    let shop = Shop::new();
    shop.key("acme", "one", &[]);
    shop.key("acme", "two", &[]);
    shop.tamper("UPDATE audit SET seal = seal + 1 WHERE sequence = 2");
    let new = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    let run = |args: &[&str]| shop.run(&[args, &new[..]].concat());
    let salvaged = shop.run(&["salvage", "keys.db", "new.db"]).ended(IN_PART);
    let missing = "left out or damaged: 1; missing audit entries: 1\n";
    assert!(salvaged.err.contains(missing), "{salvaged:?}");
    run(&["recover", "--trust-backup"]).ended(0);
    let checked = run(&["check"]).ended(0);
    let loss = "tenant acme: audit entries 2 to 2 are lost, as a later entry records";
    assert!(checked.out.contains(loss), "{checked:?}");
    let losses = run(&["check", "--json"]).ended(0).document()["losses"].clone();
    let end = "tenant acme: audit entries after 3 may be lost, as a later entry records";
    assert_eq!(losses, serde_json::json!([loss, end]));
    run(&["audit", "--check"]).ended(0);
    run(&["prune-audit", "--before", "2020-01-01T00:00:00Z"]).ended(0);
}

#[test]
fn a_salvage_counts_audit_entries_that_the_file_lacks() {
    let shop = Shop::new();
    for name in ["one", "two", "three"] {
        shop.key("acme", name, &[]);
    }
    shop.key("globex", "other", &[]);
    let now = SystemClock.now().to_string();
    shop.run(&["prune-audit", "--before", &now, "--tenant", "globex"])
        .ended(0);
    shop.tamper("DELETE FROM audit WHERE tenant = 'acme' AND sequence IN (1, 3)");
    let salvaged = shop.run(&["salvage", "keys.db", "new.db"]).ended(IN_PART);
    for part in [
        "left out or damaged: 0; missing audit entries: 2\n",
        "tenant acme: its trail lacks 2 audit entries; `keyctl recover` records the gap; keys that only",
    ] {
        assert!(salvaged.err.contains(part), "{salvaged:?}");
    }
    assert!(!salvaged.err.contains("tenant globex"), "{salvaged:?}");
    let salvaged = shop.run(&["salvage", "keys.db", "newer.db", "--json"]);
    let document = salvaged.ended(IN_PART).document();
    assert_eq!(document["missing_audit"], json!({"acme": 2}));
}

#[test]
fn a_check_names_the_damaged_page_or_index_in_words_of_its_own() {
    let shop = Shop::new();
    for number in 0..50 {
        shop.key("acme", &format!("key {number}"), &[]);
    }
    shop.run(&["checkpoint"]).ended(0);
    let file = rusqlite::Connection::open(shop.path("keys.db")).unwrap();
    let root = |name: &str| -> usize {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let page: u32 = file.query_row(sql, [name], |row| row.get(0)).unwrap();
        page as usize
    };
    let (table, index) = (root("rows_legacy"), root("rows_by_fingerprint"));
    drop(file);
    let mut bytes = fs::read(shop.path("keys.db")).unwrap();
    bytes[(table - 1) * 4096] = 0xff;
    let page = &mut bytes[(index - 1) * 4096..index * 4096];
    let last = page.len() - 20;
    page[last..].fill(b'x');
    fs::write(shop.path("keys.db"), bytes).unwrap();
    let checked = shop.run(&["check"]).ended(CORRUPT);
    let named = format!("page {table} of index rows_legacy is damaged\n");
    assert!(checked.out.contains(&named), "{checked:?}");
    let named = "index rows_by_fingerprint ";
    assert!(checked.out.contains(named), "{checked:?}");
    for words in ["***", "error code", "SQLite:", "non-unique"] {
        assert!(!checked.out.contains(words), "{checked:?}");
    }
}

/// The loss of the newest entries is recorded right after the gap. A removal that ended before the gap would leave a
/// trail that begins after it.
#[test]
fn a_removal_of_old_entries_never_ends_before_a_recorded_loss() {
    let shop = Shop::new();
    shop.key("acme", "one", &[]);
    shop.key("acme", "two", &[]);
    shop.key("acme", "three", &[]);
    shop.tamper("UPDATE audit SET seal = seal + 1 WHERE sequence >= 3");
    let new = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    let run = |args: &[&str]| shop.run(&[args, &new[..]].concat());
    shop.run(&["salvage", "keys.db", "new.db"]).ended(IN_PART);
    run(&["recover", "--trust-backup"]).ended(0);
    let trail = run(&["audit", "--all", "--json"]).ended(0).out;
    let last: serde_json::Value = serde_json::from_str(trail.lines().last().unwrap()).unwrap();
    assert_eq!(last["action"]["type"], "entries_lost", "{last}");
    run(&["prune-audit", "--before", last["at"].as_str().unwrap()]).ended(0);
    run(&["check"]).ended(0);
    run(&["audit", "--check"]).ended(0);
    run(&["audit", "--check", "--tenant", "unknown"]).ended(NOT_FOUND);
}

#[test]
fn a_file_is_checkpointed_and_vacuumed() {
    let shop = Shop::new();
    shop.key("acme", "export", &[]);
    shop.tamper("CREATE TABLE waste AS SELECT zeroblob(9000000) AS x; DROP TABLE waste;");
    shop.run(&["checkpoint"]).ended(0);
    let vacuumed = shop.run(&["vacuum", "--json"]).ended(0).document();
    let bytes = |field: &str| vacuumed[field].as_u64().unwrap();
    assert!(bytes("before") > 9_000_000 && bytes("bytes") < 1_000_000);
    assert!(
        shop.run(&["stats"])
            .ended(0)
            .out
            .contains("bytes of its log")
    );
    assert_eq!(shop.names(&[]), ["export"]);
    shop.run(&["checkpoint", "--store", "none.db"])
        .ended(NOT_FOUND);
}

#[test]
fn a_restored_store_is_recovered_from_the_trail_of_the_lost_one() {
    let shop = Shop::new();
    let (kept, _) = shop.key("acme", "kept", &[]);
    let (revoked, _) = shop.key("acme", "revoked later", &[]);
    shop.run(&["backup", "copy.db"]).ended(0);
    shop.run(&["revoke", &revoked, "--reason", "lost"]).ended(0);

    let restored = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    let with = |args: &[&str]| shop.run(&[args, &restored[..]].concat());
    with(&["restore", "copy.db"]).ended(0);
    with(&["recover"]).ended(2);
    let answer = with(&["recover", "--replay-from", "keys.db", "--json"])
        .ended(0)
        .document();
    assert_eq!(
        (&answer["revoked"], &answer["disabled"]),
        (&1.into(), &0.into())
    );
    let status = |id: &str| with(&["show", id, "--json"]).ended(0).document()["status"].clone();
    assert_eq!(
        (status(&kept), status(&revoked)),
        ("active".into(), "revoked".into())
    );

    let again = ["--store", "again.db", "--pepper-file", "keys.db.pepper"];
    let with = |args: &[&str]| shop.run(&[args, &again[..]].concat());
    with(&["restore", "copy.db"]).ended(0);
    let answer = with(&["recover", "--disable-all", "--json"])
        .ended(0)
        .document();
    assert_eq!(answer["disabled"], 2);
    with(&["list"]).ended(0);
    let last = ["--store", "last.db", "--pepper-file", "keys.db.pepper"];
    shop.run(&[&["restore", "copy.db"], &last[..]].concat())
        .ended(0);
    let answer = shop.run(&[&["recover", "--disable-all"], &last[..]].concat());
    let lines: Vec<_> = answer.ended(0).err.lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "disabled 2 of 2 keys");
    assert!(
        lines[1].starts_with("recovered: 2 keys disabled"),
        "{lines:?}"
    );

    for store in [&[][..], &again] {
        let slip = shop.run(&[&["recover", "--disable-all"], store].concat());
        let slip = slip.ended(DENIED);
        assert!(slip.err.contains("is not to be recovered"), "{slip:?}");
    }
    assert_eq!(shop.names(&["--status", "active"]), ["kept"]);
}

#[test]
fn a_corrupt_trail_is_named_by_its_store_and_its_tenant() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "kept", &[]);
    shop.key("globex", "other", &[]);
    shop.run(&["backup", "copy.db"]).ended(0);
    shop.run(&["revoke", &id, "--reason", "lost"]).ended(0);
    let restored = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    let with = |args: &[&str]| shop.run(&[args, &restored[..]].concat());
    with(&["restore", "copy.db"]).ended(0);
    let recover = ["recover", "--replay-from", "keys.db"];
    // A damaged entry at the end of a trail, and one within it.
    for sequence in [3, 2] {
        shop.tamper(&format!(
            "UPDATE audit SET seal = seal + 1 WHERE tenant = 'acme' AND sequence = {sequence}"
        ));
        let refused = with(&recover).ended(CORRUPT);
        for part in ["the store to replay from", "tenant acme;", "keyctl salvage"] {
            assert!(refused.err.contains(part), "{refused:?}");
        }
        shop.tamper(&format!(
            "UPDATE audit SET seal = seal - 1 WHERE tenant = 'acme' AND sequence = {sequence}"
        ));
    }
    let file = rusqlite::Connection::open(shop.path("new.db")).unwrap();
    file.execute_batch("UPDATE audit SET seal = seal + 1 WHERE tenant = 'globex'")
        .unwrap();
    let refused = with(&recover).ended(CORRUPT);
    assert!(refused.err.contains("in the restored store"), "{refused:?}");
}

/// An operator copies the file back by hand, so it has no mark. Live nodes are a reason to ask first.
#[test]
fn a_file_that_was_copied_back_gets_a_new_epoch_and_is_recovered() {
    let shop = Shop::new();
    let (kept, _) = shop.key("acme", "kept", &[]);
    let (revoked, _) = shop.key("acme", "revoked later", &[]);
    // The log may hold commits that the main file lacks.
    let each = |from: &str, to: &str, done: &dyn Fn(PathBuf, PathBuf)| {
        for end in ["", "-wal", "-shm"] {
            let [from, to] = [from, to].map(|name| shop.path(&format!("{name}{end}")));
            if from.exists() {
                done(from, to);
            }
        }
    };
    let rename = |from, to| fs::rename(from, to).unwrap();
    let copy = |from, to| assert!(fs::copy(from, to).is_ok());
    each("keys.db", "copy.db", &copy);
    shop.run(&["revoke", &revoked, "--reason", "lost"]).ended(0);
    each("keys.db", "lost.db", &rename);
    each("copy.db", "keys.db", &rename);

    let store = wait(SqliteStore::open(shop.path("keys.db"))).unwrap();
    let report = |number, clock: Timestamp| NodeReport {
        node: NodeId::from_u128(number),
        label: Some("shop-1".parse().unwrap()),
        applied: None,
        lease: Duration::from_secs(3600),
        clock,
        beat: 1,
        process: None,
    };
    let now = SystemClock.now();
    let before = now.saturating_sub(Duration::from_secs(7200));
    // The third node's clock is two minutes behind, which nodes allow. The last entry stands for the nodes before
    // a restore.
    let behind = now.saturating_sub(Duration::from_secs(3600 + 120));
    let reports = [
        (1, now),
        (2, before),
        (3, behind),
        (4, Timestamp::UNIX_EPOCH),
    ];
    for (number, clock) in reports {
        assert!(wait(store.report(report(number, clock))).unwrap());
    }
    let listed = shop.run(&["nodes", "--json"]).ended(0);
    let lapsed = |node: Value| {
        (
            node["node"].as_str().unwrap().to_owned(),
            node["lapsed"].clone(),
        )
    };
    let lapsed: BTreeMap<_, _> = listed.documents().into_iter().map(lapsed).collect();
    let expected = [(1, false), (2, true), (3, false)];
    let expected = expected.map(|(number, is)| (NodeId::from_u128(number).to_string(), json!(is)));
    assert_eq!(lapsed, BTreeMap::from(expected));
    let shown = shop.run(&["nodes"]).ended(0);
    assert!(
        shown.err.contains("the store has a new history"),
        "{shown:?}"
    );
    let refused = shop.run(&["start-new-epoch"]).ended(DENIED);
    assert!(
        refused.err.contains("shop-1") && refused.err.contains("--yes"),
        "{refused:?}"
    );
    let of = |number| NodeId::from_u128(number).to_string();
    let named = [1, 2, 3, 4].map(|number| refused.err.contains(&of(number)));
    assert_eq!(named, [true, false, true, false], "{refused:?}");
    // The refused command changed nothing.
    shop.run(&["list"]).ended(0);
    wait(store.forget(NodeId::from_u128(1), 1)).unwrap();
    wait(store.report(report(3, now))).unwrap();

    shop.run(&["start-new-epoch", "--yes"]).ended(0);
    let waits = shop.run(&["list"]).ended(DENIED);
    assert!(waits.err.contains("keyctl recover"), "{waits:?}");
    // The former nodes have one entry, which is no live node.
    shop.run(&["start-new-epoch"]).ended(0);
    let answer = shop
        .run(&["recover", "--replay-from", "lost.db", "--json"])
        .ended(0)
        .document();
    assert_eq!(answer["revoked"], 1);
    let status = |id: &str| shop.run(&["show", id, "--json"]).ended(0).document()["status"].clone();
    assert_eq!(
        (status(&kept), status(&revoked)),
        ("active".into(), "revoked".into())
    );
}

#[test]
fn a_source_that_does_not_go_on_after_the_backup_recovers_nothing() {
    let shop = Shop::new();
    let (revoked, _) = shop.key("acme", "revoked later", &[]);
    shop.run(&["backup", "copy.db"]).ended(0);
    shop.run(&["revoke", &revoked, "--reason", "lost"]).ended(0);
    for store in ["empty.db", "other.db"] {
        let store = ["--store", store, "--pepper-file", "keys.db.pepper"];
        shop.run(&[&["init"], &store[..]].concat()).ended(0);
    }
    let other = ["--store", "other.db", "--pepper-file", "keys.db.pepper"];
    shop.key("acme", "another", &other);
    let restored = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    let with = |args: &[&str]| shop.run(&[args, &restored[..]].concat());
    with(&["restore", "copy.db"]).ended(0);
    fs::copy(shop.path("new.db"), shop.path("same.db")).unwrap();
    for (source, code) in [
        ("new.db", "replay-same-store"),
        ("same.db", "replay-same-store"),
        ("copy.db", "replay-nothing-later"),
        ("empty.db", "replay-other-history"),
        ("other.db", "replay-other-history"),
    ] {
        let refused = with(&["recover", "--replay-from", source, "--json"]).ended(DENIED);
        let error: Value = serde_json::from_str(refused.err.trim()).unwrap();
        assert_eq!(error["error"]["code"], code, "{source}");
        let unrecovered = with(&["list"]).ended(DENIED);
        assert!(
            unrecovered.err.contains("keyctl recover"),
            "{unrecovered:?}"
        );
    }
    let answer = with(&["recover", "--replay-from", "keys.db"]).ended(0);
    let reached = "acme: the trail ends at entry 3 of ";
    assert!(answer.err.contains(reached), "{answer:?}");
    let shown = with(&["show", &revoked, "--json"]).ended(0).document();
    assert_eq!(shown["status"], "revoked");
}

#[test]
fn an_exported_trail_covers_the_tenants_that_it_goes_on_for() {
    let shop = Shop::new();
    let (revoked, _) = shop.key("acme", "revoked later", &[]);
    let (unchanged, _) = shop.key("other", "unchanged", &[]);
    shop.run(&["backup", "copy.db"]).ended(0);
    shop.run(&["revoke", &revoked, "--reason", "lost"]).ended(0);
    let export = ["audit", "--json", "--all"];
    let whole = shop.run(&export).ended(0).out;
    fs::write(shop.path("whole.jsonl"), whole).unwrap();
    let part = shop.run(&[&export[..], &["--tenant", "acme"]].concat());
    fs::write(shop.path("part.jsonl"), part.ended(0).out).unwrap();
    let usage = shop.run(&["recover", "--disable-all", "--trust-unchanged"]);
    assert!(usage.ended(USAGE).err.contains("--trust-unchanged"));
    let usage = shop.run(&["recover", "--disable-all", "--replay-schema", "lost"]);
    assert!(usage.ended(USAGE).err.contains("--replay-schema"));
    for (number, (file, more, reach, status)) in [
        ("part.jsonl", &[][..], "missing", "disabled"),
        ("whole.jsonl", &[], "restored-end", "disabled"),
        ("part.jsonl", &["--trust-unchanged"], "missing", "disabled"),
        (
            "whole.jsonl",
            &["--trust-unchanged"],
            "restored-end",
            "active",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let store = format!("new{number}.db");
        let restored = ["--store", &store, "--pepper-file", "keys.db.pepper"];
        let with = |args: &[&str]| shop.run(&[args, &restored[..]].concat());
        with(&["restore", "copy.db"]).ended(0);
        let recover = ["recover", "--json", "--replay-file", file];
        let answer = with(&[&recover, more].concat()).ended(0).document();
        let [acme, other] = [0, 1].map(|trail| answer["trails"][trail].clone());
        assert_eq!(
            (&acme["reach"], &acme["disabled"]),
            (&json!("beyond"), &json!(false))
        );
        assert_eq!(
            (&acme["restored"], &acme["last"]["sequence"]),
            (&json!(2), &json!(3))
        );
        assert_eq!(
            (&other["tenant"], &other["reach"]),
            (&json!("other"), &json!(reach))
        );
        assert_eq!(other["disabled"], status == "disabled");
        let shown = |id: &str| with(&["show", id, "--json"]).ended(0).document()["status"].clone();
        assert_eq!(
            (shown(&revoked), shown(&unchanged)),
            (json!("revoked"), json!(status))
        );
    }
}

#[test]
fn stats_and_check_report_size_and_health() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &[]);
    shop.key("acme", "other", &[]);
    shop.run(&["delete", &id, "--confirm", "export"]).ended(0);
    let stats = shop.run(&["stats", "--json"]).ended(0).document();
    assert_eq!(
        [&stats["keys"], &stats["removed"], &stats["tenants"]],
        [1, 1, 1]
    );
    assert_eq!(stats["audit"], 4);
    let check = shop.run(&["check", "--json"]).ended(0).document();
    assert_eq!(check["intact"], true);
    assert_eq!(check["audit"], 4);
    shop.run(&["check"]).ended(0);
    shop.tamper("UPDATE rows SET seal = seal + 1 WHERE kind = 2");
    let check = shop.run(&["check", "--json"]).ended(CORRUPT);
    assert_eq!(check.document()["intact"], false);
    let listed = shop.run(&["list"]).ended(CORRUPT);
    assert!(listed.err.contains("corrupt"), "{listed:?}");
}

#[test]
fn the_effects_of_a_clock_that_was_ahead_are_listed_and_repaired() {
    let shop = Shop::new();
    shop.key("acme", "export", &[]);
    shop.key("globex", "export", &[]);
    let later = commit_in_the_future(&shop, "acme");
    let refused = shop
        .run(&["create", "new", "--tenant", "acme"])
        .ended(DENIED);
    assert!(refused.err.contains("newest commit"), "{refused:?}");
    let check = shop.run(&["check"]).ended(0);
    let advice = "keyctl time repair --tenant acme";
    assert!(
        check.out.contains(advice) && !check.out.contains("globex"),
        "{check:?}"
    );
    let repair = ["time", "repair", "--tenant", "acme", "--json"];
    let repaired = shop.run(&repair).ended(0).document();
    assert_eq!(repaired["set_back"]["from"], json!(later));
    assert_eq!(repaired["later"].as_array().unwrap().len(), 1, "{repaired}");
    let check = shop.run(&["check", "--json"]).ended(0).document();
    assert_eq!(check["ahead"], json!([]));
    shop.key("acme", "new", &[]);
    let again = shop.run(&repair).ended(0).document();
    assert_eq!(again["set_back"], Value::Null);
    let as_alice = ["--as", "alice", "--role", "admin"];
    shop.run(&[&repair[..], &as_alice].concat()).ended(DENIED);
    shop.run(&["audit", "--check", "--tenant", "acme"]).ended(0);
}

#[test]
fn the_environment_can_name_the_store() {
    let shop = Shop::empty();
    let mut init = shop.command(&["init", "--tenant", "acme"]);
    init.env("KEYWARD_STORE", "mine.db");
    said(init).ended(0);
    assert!(shop.path("mine.db").exists() && shop.path("mine.db.pepper").exists());
    let mut stats = shop.command(&["stats", "--json"]);
    stats.env("KEYWARD_STORE", "mine.db");
    assert_eq!(said(stats).ended(0).document()["tenants"], 1);
}

/// Keys made by a stolen key may be in the wrong hands too. `keyctl` lists them, and revokes them on request.
#[test]
fn revoking_a_compromised_key_lists_what_it_made() {
    let shop = Shop::new();
    let admin = ["--as", "alice", "--role", "admin"];
    let whole = [&["--scope", "*:*"], &admin[..]].concat();
    let (id, secret) = shop.key("acme", "stolen", &whole);
    let made = pollster::block_on(async {
        let store = SqliteStore::open(shop.path("keys.db")).await.unwrap();
        let peppers = PepperFile::open(shop.path("keys.db.pepper"))
            .unwrap()
            .ring();
        let keys = Keyward::builder(store, peppers).build().await.unwrap();
        let thief = keys.verify(&secret, &Need::any()).unwrap().actor();
        let key = CreateKey::new("child").environment("live").scope("*:*");
        keys.create(&thief, key).await.unwrap()
    });
    let child = made.id.to_string();
    let asked = ["revoke", &id, "--reason", "compromised", "--json"];
    let dry = [&asked[..], &["--dry-run"]].concat();
    assert_eq!(shop.run(&dry).ended(0).document()["made"], json!([child]));
    assert!(shop.verifies(&secret), "a dry run changes nothing");
    let answer = shop.run(&asked).ended(0).document();
    assert_eq!(answer["made"], json!([child]));
    assert!(!shop.verifies(&secret) && shop.verifies(made.secret.expose()));
    let all = [&asked[..], &["--with-made"]].concat();
    assert_eq!(shop.run(&all).ended(0).document()["revoked_with_it"], 1);
    assert!(!shop.verifies(made.secret.expose()));
    let answer = shop.run(&["revoke", &id, "--reason", "leaked"]).ended(0);
    assert!(!answer.err.contains("still work"), "{answer:?}");
}

#[test]
fn the_policy_of_the_store_applies_without_a_file_and_another_one_of_its_version_is_refused() {
    let shop = Shop::new();
    let write = |name: &str, cap: u32, version: u32| {
        let spec = support::capped(cap).with(|spec| spec.version = version);
        let path = shop.path(name);
        fs::write(&path, serde_json::to_vec(&spec).unwrap()).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let (one, other, newer) = (
        write("one", 1, 3),
        write("other", 9, 3),
        write("newer", 9, 4),
    );
    let create = |name: &'static str, more: &[&str]| {
        let args = ["create", name, "--tenant", "acme", "--environment", "live"];
        shop.run(&[&args, more].concat())
    };
    create("first", &["--policy", &one]).ended(0);
    let full = create("second", &[]).ended(DENIED);
    assert!(full.err.contains("already has 1 active key"), "{full:?}");
    let differs = create("second", &["--policy", &other]).ended(USAGE);
    assert!(differs.err.contains("--policy: policy"), "{differs:?}");
    assert!(differs.err.contains("at version 3"), "{differs:?}");
    create("second", &["--policy", &newer]).ended(0);
    create("third", &[]).ended(0);
}

#[test]
fn a_pepper_file_of_another_store_is_refused_before_a_key_is_created() {
    let (shop, other) = (Shop::new(), Shop::new());
    let pepper = other.path("keys.db.pepper");
    let pepper = pepper.to_str().unwrap();
    let named = ["--pepper-file", pepper, "--tenant", "acme"];
    let refused = shop
        .run(&[&["create", "key"], &named[..]].concat())
        .ended(CORRUPT);
    assert!(refused.err.contains("pepper"), "{refused:?}");
    for reads in [&["list"][..], &["audit", "--check"]] {
        let refused = shop.run(&[reads, &["--pepper-file", pepper]].concat());
        assert!(refused.ended(CORRUPT).err.contains("--pepper-file"));
    }
    assert_eq!(shop.names(&[]), [""; 0]);
}

/// Otherwise the file gets a pepper that the processes with the current file lack.
#[test]
fn an_old_copy_of_the_pepper_file_is_named_and_gets_no_pepper() {
    let shop = Shop::new();
    fs::copy(shop.path("keys.db.pepper"), shop.path("old.pepper")).unwrap();
    shop.run(&["pepper", "prepare"]).ended(0);
    shop.run(&["pepper", "rotate"]).ended(0);
    let current = shop.run(&["create", "a", "--tenant", "acme"]).ended(0);
    assert!(!current.err.contains("lacks pepper"), "{current:?}");
    let with_old = |args: &[&str]| shop.run(&[args, &["--pepper-file", "old.pepper"]].concat());

    let create = ["create", "b", "--tenant", "acme"];
    let warned = with_old(&create).ended(0);
    assert!(
        warned.err.contains("the pepper file lacks pepper"),
        "{warned:?}"
    );
    assert!(!with_old(&["list"]).ended(0).err.contains("lacks"));
    let before = fs::read(shop.path("old.pepper")).unwrap();
    for step in ["prepare", "rotate"] {
        let refused = with_old(&["pepper", step]).ended(DENIED);
        assert!(refused.err.contains("--pepper-lost"), "{refused:?}");
    }
    assert_eq!(fs::read(shop.path("old.pepper")).unwrap(), before);
    with_old(&["pepper", "prepare", "--pepper-lost"]).ended(0);
}

/// No process has started with the current file since it was changed.
#[test]
fn an_old_copy_of_the_pepper_file_gets_no_pepper_before_a_process_uses_the_current_one() {
    let shop = Shop::new();
    fs::copy(shop.path("keys.db.pepper"), shop.path("old.pepper")).unwrap();
    let with_old = |args: &[&str]| shop.run(&[args, &["--pepper-file", "old.pepper"]].concat());
    shop.run(&["pepper", "prepare"]).ended(0);
    let refused = with_old(&["pepper", "prepare"]).ended(DENIED);
    assert!(
        refused.err.contains("was prepared for the store"),
        "{refused:?}"
    );
    shop.run(&["pepper", "rotate"]).ended(0);
    for step in ["prepare", "rotate"] {
        let refused = with_old(&["pepper", step]).ended(DENIED);
        assert!(refused.err.contains("create keys with"), "{refused:?}");
    }
    shop.run(&["pepper", "prepare"]).ended(0);
}

/// Otherwise a lost pepper that nothing uses would hold up every later rotation.
#[test]
fn a_prepared_pepper_that_is_lost_is_given_up_once() {
    let shop = Shop::new();
    fs::copy(shop.path("keys.db.pepper"), shop.path("saved.pepper")).unwrap();
    shop.run(&["pepper", "prepare"]).ended(0);
    fs::copy(shop.path("saved.pepper"), shop.path("keys.db.pepper")).unwrap();
    shop.run(&["pepper", "prepare"]).ended(DENIED);
    shop.run(&["pepper", "prepare", "--pepper-lost"]).ended(0);
    shop.run(&["pepper", "rotate"]).ended(0);
    shop.run(&["pepper", "prepare"]).ended(0);
}

#[test]
fn a_pepper_that_the_store_did_not_take_is_named() {
    let shop = Shop::new();
    for step in ["prepare", "rotate"] {
        let lock = rusqlite::Connection::open(shop.path("keys.db")).unwrap();
        lock.execute_batch("BEGIN IMMEDIATE").unwrap();
        let named = shop.run(&["--wait", "1s", "pepper", step]).ended(IN_PART);
        for part in ["does not know its new pepper", "another process has locked"] {
            assert!(named.err.contains(part), "{step}: {named:?}");
        }
        lock.execute_batch("ROLLBACK").unwrap();
    }
    // The next command that writes stores the pepper.
    shop.run(&["create", "a", "--tenant", "acme"]).ended(0);
    shop.run(&["pepper", "prepare"]).ended(0);
}

#[test]
fn a_repeated_command_states_that_its_change_was_replaced() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "one", &[]);
    let run = |command: &str, named: &str| {
        let args = [command, &id, "--command-id", named];
        shop.run(&args).ended(0).err
    };
    run("disable", "c1");
    assert!(run("disable", "c1").contains("disabled key"));
    run("enable", "c2");
    assert!(run("disable", "c1").contains("is active"));
    run("disable", "c3");
    assert!(run("enable", "c2").contains("is disabled"));
}

/// Returns the peppers that `keyctl pepper show` lists: id, state and number of live keys.
fn peppers(shop: &Shop, more: &[&str]) -> Vec<(String, String, u64)> {
    let shown = shop.run(&[&["pepper", "show", "--json"], more].concat());
    let fields = |pepper: &Value| {
        let text = |field: &str| pepper[field].as_str().unwrap().to_owned();
        (
            text("pepper"),
            text("state"),
            pepper["keys"].as_u64().unwrap(),
        )
    };
    shown.ended(0).documents().iter().map(fields).collect()
}

/// Uses a key in a process that has loaded the pepper file, so that its digest moves to the current pepper.
fn use_key(shop: &Shop, token: &str) {
    pollster::block_on(async {
        let store = SqliteStore::open(shop.path("keys.db")).await.unwrap();
        let peppers = PepperFile::open(shop.path("keys.db.pepper")).unwrap();
        let keys = Keyward::builder(store, peppers.ring())
            .build()
            .await
            .unwrap();
        keys.verify(token, &Need::any()).unwrap();
        keys.run_maintenance().await.unwrap();
        keys.close().await.unwrap();
    });
}

#[test]
fn a_pepper_is_prepared_rotated_and_retired_and_never_printed() {
    let shop = Shop::new();
    let (_, used) = shop.key("acme", "used", &[]);
    let (idle, _) = shop.key("acme", "idle", &[]);
    let [(old, state, keys)] = &*peppers(&shop, &[]) else {
        panic!("one pepper");
    };
    assert_eq!((state.as_str(), *keys), ("current", 2));

    let early = shop.run(&["pepper", "rotate"]).ended(DENIED);
    assert!(early.err.contains("has no prepared pepper"), "{early:?}");
    let prepared = shop.run(&["pepper", "prepare"]).ended(0);
    let next = "restart each process, then run `keyctl pepper rotate`";
    assert!(prepared.err.contains(next), "{prepared:?}");
    let again = shop
        .run(&["pepper", "prepare", "--json"])
        .ended(0)
        .document();
    let new = again["pepper"].as_str().unwrap();
    let listed = |rows: &[(&str, &str, u64)]| {
        let rows = rows.iter();
        let rows = rows.map(|(pepper, state, keys)| (pepper.to_string(), state.to_string(), *keys));
        rows.collect::<Vec<_>>()
    };
    let both = listed(&[(old, "current", 2), (new, "next", 0)]);
    assert_eq!(peppers(&shop, &[]), both, "preparing again changes nothing");
    let unready = shop.run(&["pepper", "retire", new]).ended(DENIED);
    assert!(unready.err.contains("next rotation"), "{unready:?}");

    let rotated = shop.run(&["pepper", "rotate"]).ended(0);
    assert!(rotated.err.contains(new) && rotated.err.contains("restart each process"));
    use_key(&shop, &used);
    let moved = listed(&[(new, "current", 1), (old, "live", 1)]);
    assert_eq!(peppers(&shop, &[]), moved);
    let needed = shop.run(&["pepper", "retire", old]).ended(DENIED);
    assert!(needed.err.contains("1 live key needs pepper"), "{needed:?}");
    assert!(needed.err.contains("revoke-many --tenant"), "{needed:?}");
    assert_eq!(
        peppers(&shop, &[]),
        moved,
        "a refused command changes nothing"
    );
    let current = shop.run(&["pepper", "retire", new]).ended(DENIED);
    assert!(
        current.err.contains("whose state is current"),
        "{current:?}"
    );

    shop.run(&["revoke", &idle, "--reason", "unused"]).ended(0);
    let retired = shop.run(&["pepper", "retire", old]).ended(0);
    assert!(retired.err.contains("restart each process"), "{retired:?}");
    let done = listed(&[(new, "current", 1), (old, "audit", 0)]);
    assert_eq!(peppers(&shop, &[]), done);
    assert!(shop.verifies(&used));
    shop.run(&["audit", "--check"]).ended(0);
    let table = shop.run(&["pepper", "show"]).ended(0);
    assert_eq!(table.out.lines().count(), 3, "{table:?}");

    let file = fs::read(shop.path("keys.db.pepper")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let stored = file["peppers"].as_array().unwrap();
    assert_eq!(stored.len(), 2);
    for pepper in stored {
        let key = &pepper["key"].as_str().unwrap()[..16];
        for said in [
            &early, &prepared, &unready, &rotated, &needed, &current, &retired, &table,
        ] {
            assert!(
                !said.out.contains(key) && !said.err.contains(key),
                "{said:?}"
            );
        }
    }
}

/// A check of only the rows' integrity passed such a store, although no key worked.
#[test]
fn a_backup_from_before_its_pepper_was_retired_fails_the_check_by_the_pepper_and_its_keys() {
    let shop = Shop::new();
    let (_, token) = shop.key("acme", "export", &[]);
    shop.key("acme", "other", &[]);
    shop.run(&["backup", "copy.db"]).ended(0);
    let old = peppers(&shop, &[])[0].0.clone();
    shop.run(&["pepper", "prepare"]).ended(0);
    shop.run(&["pepper", "rotate"]).ended(0);
    use_key(&shop, &token);
    let listed = shop.run(&["list", "--name", "other", "--json"]).ended(0);
    let other = listed.document()["id"].as_str().unwrap().to_owned();
    shop.run(&["revoke", &other, "--reason", "unused"]).ended(0);
    shop.run(&["pepper", "retire", &old]).ended(0);
    shop.run(&["check"]).ended(0);

    let restored = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    let with = |args: &[&str]| shop.run(&[args, &restored[..]].concat());
    with(&["restore", "copy.db"]).ended(0);
    let recovered = with(&["recover", "--trust-backup"]).ended(0);
    let fault =
        format!("2 live keys need pepper {old}, which keys.db.pepper has for audit entries only");
    assert!(recovered.err.contains(&fault), "{recovered:?}");
    let checked = with(&["check"]).ended(CORRUPT);
    assert!(checked.err.contains(&fault), "{checked:?}");
    assert!(checked.err.contains("from audit to live"), "{checked:?}");
    let checked = with(&["check", "--json"]).ended(CORRUPT);
    let counted = json!({ "pepper": old, "state": "audit", "keys": 2 });
    let of = |said: &Said| said.document()["peppers"].as_array().unwrap().clone();
    assert!(of(&checked).contains(&counted), "{checked:?}");
    let stats = with(&["stats", "--json"]).ended(0);
    assert!(of(&stats).contains(&counted), "{stats:?}");

    // If the file lacks the pepper, the message names another step.
    let file = fs::read_to_string(shop.path("keys.db.pepper")).unwrap();
    let mut file: Value = serde_json::from_str(&file).unwrap();
    let kept = file["peppers"].as_array_mut().unwrap();
    kept.retain(|pepper| pepper["id"] != old.as_str());
    let without = shop.path("without");
    fs::write(&without, file.to_string()).unwrap();
    fs::set_permissions(&without, fs::Permissions::from_mode(0o600)).unwrap();
    let without = ["--store", "new.db", "--pepper-file", "without"];
    let checked = shop
        .run(&[&["check"], &without[..]].concat())
        .ended(CORRUPT);
    assert!(
        checked
            .err
            .contains(&format!("pepper {old}, which without does not have"))
    );
    let missing = (old.clone(), "missing".to_owned(), 2);
    assert!(peppers(&shop, &without).contains(&missing));
    // Without a pepper file, the keys are counted and nothing is compared.
    let alone = shop.run(&["check", "--json", "--store", "new.db"]).ended(0);
    assert_eq!(
        of(&alone),
        [json!({ "pepper": old, "state": "unknown", "keys": 2 })]
    );
    let named = ["--store", "new.db", "--pepper-file", "none"];
    shop.run(&[&["check"], &named[..]].concat())
        .ended(NOT_FOUND);
}

/// Makes two keys of the tenant `acme` 200 days old, and adds uses of both 40 days ago. Uses are counted since 100 days
/// ago. Returns the time of the accepted uses.
fn count_uses(shop: &Shop, used: &str, refused: &str) -> Timestamp {
    let now = SystemClock.now();
    let ago = |days| now.saturating_sub(keyward::days(days));
    let [used, refused]: [KeyId; 2] = [used, refused].map(|id| id.parse().unwrap());
    let tenant = TenantId::new("acme").unwrap();
    let store = wait(SqliteStore::open(shop.path("keys.db"))).unwrap();
    let load = |key| wait(store.load(&tenant, &LoadRequest::key(key))).unwrap();
    let aged = |key| {
        let mut record = load(key).record(key).unwrap().clone();
        record.created.at = ago(200);
        record
    };
    let commit = Commit {
        tenant: tenant.clone(),
        epoch: None,
        expected: load(used).revision,
        guards: Vec::new(),
        tag: CommitTag(1),
        decided_at: now,
        effects: Effects {
            puts: vec![aged(used), aged(refused)],
            ..Effects::default()
        },
    };
    wait(store.commit(commit)).unwrap();
    let boot = BootId::from_u128(1);
    let opening = BootOpening {
        boot,
        node: Some(NodeId::from_u128(1)),
        history: wait(store.scan(None, NonZeroUsize::MIN))
            .unwrap()
            .head
            .epoch,
        at: ago(100),
        unsent_since: ago(100),
        replaces: None,
    };
    wait(store.open_boot(opening)).unwrap();
    let at = ago(40);
    let of = |key, accepted, expired| {
        let mut counts = DayCounts::default();
        counts.add(5, UseOutcome::Accepted, accepted);
        counts.add(6, UseOutcome::Expired, expired);
        KeyUses {
            key,
            tenant: tenant.clone(),
            day: Day::of(at),
            counts,
            last: (accepted > 0).then_some(at),
        }
    };
    let mut uses = vec![of(used, 3, 1), of(refused, 0, 2)];
    uses.sort_by_key(|uses| uses.key);
    let batch = UsageBatch {
        boot,
        sequence: 1,
        sent_until: now,
        uses,
    };
    wait(UsageStore::add(&store, batch)).unwrap();
    wait(store.close()).unwrap();
    at
}

#[test]
fn the_uses_of_a_key_and_the_unused_keys_are_listed() {
    let shop = Shop::new();
    let [used, refused, fresh] =
        ["used", "refused", "fresh"].map(|name| shop.key("acme", name, &[]).0);
    let uncounted = shop.run(&["usage", &fresh]).ended(0);
    assert!(
        uncounted.err.contains("no process has counted uses"),
        "{uncounted:?}"
    );
    let unused = |args: &[&str]| {
        let command = ["unused", "--tenant", "acme"];
        shop.run(&[&command, args].concat()).ended(0)
    };
    let none = unused(&["--json"]).document();
    assert_eq!(none["proven"], false, "{none}");

    let at = count_uses(&shop, &used, &refused);
    let day = Day::of(at).to_string();
    let counted = shop.run(&["usage", &used, "--days", "60", "--json"]);
    let counted = counted.ended(0).document();
    let counts = json!({ "accepted": 3, "expired": 1 });
    assert_eq!(
        counted["days"],
        json!([{ "day": day, "counts": counts, "total": 4 }])
    );
    assert_eq!(counted["first_day"], json!(day));
    assert_eq!(counted["last_used"], json!(at));
    assert_eq!(counted["completeness"]["unknown"], false);
    let shown = |key: &str| shop.run(&["usage", key, "--days", "60"]).ended(0);
    let of_used = shown(&used);
    assert!(
        of_used.out.contains(&day) && of_used.out.contains("1 expired"),
        "{of_used:?}"
    );
    let last = format!("last used at {at}");
    assert!(
        of_used.err.contains(&last) && of_used.err.contains("complete until"),
        "{of_used:?}"
    );
    assert!(shown(&refused).err.contains("never accepted"));
    assert!(shown(&fresh).err.contains("no use was counted"));

    let listed = |age: &str| {
        let mut documents = unused(&["--for", age, "--json"]).documents();
        let end = documents.pop().unwrap();
        let mut names: Vec<_> = documents
            .iter()
            .map(|key| key["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        (names.join(", "), end["proven"].as_bool().unwrap())
    };
    assert_eq!(listed("90d"), ("refused".to_owned(), true));
    assert_eq!(listed("30d"), ("refused, used".to_owned(), true));
    assert_eq!(listed("110d"), ("refused".to_owned(), false));
    let table = unused(&["--for", "30d"]);
    assert!(table.out.contains(&at.to_string()), "{table:?}");
    let warning = "do not delete keys on this list alone";
    assert!(!table.err.contains(warning), "{table:?}");
    let unproven = unused(&["--for", "110d"]);
    assert!(unproven.err.contains(warning), "{unproven:?}");
}

#[test]
fn a_list_shows_last_uses_and_needs_no_usage_file() {
    let shop = Shop::new();
    let [used, refused] = ["used", "refused"].map(|name| shop.key("acme", name, &[]).0);
    let at = count_uses(&shop, &used, &refused);
    let cells = |line: &str| -> Vec<String> {
        let cells = line.split("  ").map(str::trim);
        cells
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let last_uses = |said: &Said| -> BTreeMap<String, String> {
        let lines: Vec<_> = said.out.lines().map(cells).collect();
        assert_eq!(lines[0][7..], ["ENDS", "LAST USED", "HINT"], "{said:?}");
        let rows = lines[1..].iter();
        rows.map(|row| (row[4].clone(), row[8].clone())).collect()
    };
    let expected = |last: &str| {
        let rows = [("used", last), ("refused", "-")];
        BTreeMap::from(rows.map(|(name, last)| (name.to_owned(), last.to_owned())))
    };
    let listed = shop.run(&["list"]).ended(0);
    assert_eq!(last_uses(&listed), expected(&at.to_string()));
    for key in shop.run(&["list", "--json"]).ended(0).documents() {
        let last = (key["name"] == "used").then(|| json!(at));
        assert_eq!(key.get("last_used"), last.as_ref(), "{key}");
    }

    for end in ["-wal", "-shm"] {
        drop(fs::remove_file(shop.path(&format!("keys.db-usage{end}"))));
    }
    let foreign = "a shopping list\n".repeat(100);
    fs::write(shop.path("keys.db-usage"), foreign).unwrap();
    let paged = ["list", "--limit", "1", "--all"];
    let listed = shop.run(&paged).ended(0);
    assert_eq!(last_uses(&listed), expected("-"));
    let warning = "cannot read when keys were last used";
    assert_eq!(listed.err.matches(warning).count(), 1, "{listed:?}");
    let listed = shop.run(&[&paged[..], &["--json"]].concat()).ended(0);
    assert_eq!(listed.documents().len(), 2);
    let warned: Value = serde_json::from_str(&listed.err).unwrap();
    assert!(
        warned["warning"].as_str().unwrap().starts_with(warning),
        "{warned}"
    );
    shop.run(&["usage", &used]).ended(NO_ACCESS);
}
