//! `keyctl` on a database, tested with real processes and with PostgreSQL's own tools.

use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use keyward::store::{
    Commit, CommitTag, Effects, KeyStore, Locator, PostgresStore, Revision, Row, SqliteStore,
};
use keyward::{KeyId, Keyward, Need, PepperFile};
use serde_json::Value;
use tempfile::TempDir;

use support::example;
use support::postgres::{Server, TestSchema, programs, url};
use support::*;

const REFUSED: i32 = 1;
const USAGE: i32 = 2;
const UNAVAILABLE: i32 = 3;
const CORRUPT: i32 = 4;
const NOT_FOUND: i32 = 5;
const NO_ACCESS: i32 = 6;
const IN_PART: i32 = 7;

/// Returns the URL of the server with a password in it. The server accepts any password, and no output may
/// show it.
pub(crate) fn uri() -> String {
    let given = url();
    if given.contains("://") {
        return given;
    }
    let socket = given.split(' ').find_map(|part| part.strip_prefix("host="));
    let socket = socket.unwrap().replace('/', "%2F");
    format!("postgres://postgres:hunter2@{socket}/postgres")
}

fn binary() -> &'static Path {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| example::build("keyctl"));
    &BUILT
}

/// The output of a process that has ended, and its exit code.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    fn document(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// A folder for the files of a test, and a schema in the database.
struct Shop {
    folder: TempDir,
    place: TestSchema,
}

impl Shop {
    fn empty() -> Self {
        Self::at(uri())
    }

    fn at(url: String) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            place: TestSchema::at(url),
        }
    }

    fn new() -> Self {
        let shop = Self::empty();
        shop.run(&["init"]).ended(0);
        shop
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.folder.path());
        command.env("KEYWARD_STORE", &self.place.url);
        command.env("KEYWARD_SCHEMA", &self.place.schema);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `keyctl` on the database until it ends. Checks that its output does not contain the password.
    fn run(&self, args: &[&str]) -> Said {
        self.finish(self.command(&[args, &["--pepper-file", "pepper"]].concat()))
    }

    /// Runs `keyctl` on a file in the folder, not on the database.
    fn on_file(&self, args: &[&str]) -> Said {
        self.run(&[args, &["--store", "keys.db"]].concat())
    }

    fn finish(&self, mut command: Command) -> Said {
        let output = command.output().unwrap();
        let said = Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        let output = format!("{}{}", said.out, said.err);
        assert!(
            !output.contains("hunter2") && !output.contains("://postgres"),
            "{said:?}"
        );
        said
    }

    fn key(&self, name: &str, on: impl Fn(&[&str]) -> Said) -> (String, String) {
        let created = on(&["create", name, "--tenant", "acme", "--json"])
            .ended(0)
            .document();
        let text = |field: &str| created[field].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    }

    fn verifies(&self, token: &str) -> bool {
        let store = self.place.connect();
        let peppers = PepperFile::open(self.folder.path().join("pepper"))
            .unwrap()
            .ring();
        let keys = wait(Keyward::builder(store, peppers).build()).unwrap();
        keys.verify(token, &Need::any()).is_ok()
    }

    /// Runs one of PostgreSQL's own tools on the database, such as `pg_dump`.
    fn tool(&self, name: &str, args: &[&str]) -> String {
        let mut tool = Command::new(programs().join(name));
        tool.arg("--dbname").arg(&self.place.url).args(args);
        let ran = tool.current_dir(self.folder.path()).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8(ran.stdout).unwrap()
    }
}

#[test]
fn a_database_can_replace_a_file() {
    let shop = Shop::empty();
    shop.run(&["list"]).ended(NOT_FOUND);
    let made = shop
        .place
        .ask("SELECT nspname::text FROM pg_namespace WHERE nspname = '$s'");
    assert_eq!(made, Vec::<String>::new(), "only `init` creates tables");
    shop.run(&["init"]).ended(0);
    let (id, secret) = shop.key("export", |args| shop.run(args));
    assert!(shop.verifies(&secret));
    shop.run(&["init"]).ended(REFUSED);
    let listed = shop.run(&["list", "--json"]).ended(0).document();
    assert_eq!(
        (&listed["id"], &listed["name"]),
        (&id.as_str().into(), &"export".into())
    );
    shop.run(&["rotate", &id, "--immediate"]).ended(0);
    assert!(!shop.verifies(&secret));
    shop.run(&["audit", "--check"]).ended(0);
    let stats = shop.run(&["stats", "--json"]).ended(0).document();
    assert_eq!((&stats["keys"], &stats["tenants"]), (&2.into(), &1.into()));
    assert!(
        stats["engine"].as_str().unwrap().starts_with("PostgreSQL"),
        "{stats}"
    );
    assert_eq!(
        shop.run(&["check", "--json"]).ended(0).document()["intact"],
        true
    );
    let pepper = stats["peppers"][0]["pepper"].as_str().unwrap();
    shop.run(&["pepper", "prepare"]).ended(0);
    shop.run(&["pepper", "rotate"]).ended(0);
    let needed = shop.run(&["pepper", "retire", pepper]).ended(REFUSED);
    assert!(needed.err.contains("1 live key needs"), "{needed:?}");
    shop.place
        .run("UPDATE $s.rows SET seal = seal + 1 WHERE kind = 2");
    shop.run(&["check"]).ended(CORRUPT);
    for file_only in [&["backup", "copy.db"][..], &["restore", "copy.db"]] {
        let answer = shop.run(file_only).ended(USAGE);
        assert!(answer.err.contains("pg_dump"), "{answer:?}");
    }
    shop.on_file(&["init"]).ended(0);
    let answer = shop.finish(shop.command(&["list"])).ended(USAGE);
    assert!(answer.err.contains("--pepper-file"), "{answer:?}");
}

/// A script repeats a command that ends with code 3.
#[test]
fn a_fault_that_no_retry_mends_does_not_count_as_unavailable() {
    for (damage, said) in [
        (
            "DELETE FROM $s.head",
            "the head row of the store is missing",
        ),
        (
            "DELETE FROM $s.schema_version",
            "the schema's version is missing",
        ),
    ] {
        let shop = Shop::new();
        shop.key("one", |args| shop.run(args));
        shop.place.run(damage);
        for args in [&["list"][..], &["check"], &["stats"]] {
            let corrupt = shop.run(args).ended(CORRUPT);
            assert!(corrupt.err.contains(said), "{corrupt:?}");
            assert!(corrupt.err.contains("restore a backup"), "{corrupt:?}");
        }
    }
    let server = Server::on_loopback("fsync = off", &[]);
    let host = format!("127.0.0.1:{}", server.port());
    let shop = Shop::at(server.url());
    shop.run(&["init"]).ended(0);
    for (url, code, said) in [
        ("postgres://alice:hunter2@/app".to_owned(), USAGE, "URL"),
        (
            format!("postgres://postgres:hunter2@{host}/postgres?sslmode=require"),
            NO_ACCESS,
            "does not support TLS",
        ),
        (
            format!(
                "host=127.0.0.1,127.0.0.1 port=1,{} user=nobody dbname=postgres",
                server.port()
            ),
            UNAVAILABLE,
            "Connection refused",
        ),
    ] {
        let ended = shop.run(&["list", "--store", &url]).ended(code);
        assert!(ended.err.contains(said), "{ended:?}");
    }
}

/// No later attempt to read the nodes succeeds, and the key is revoked.
#[test]
fn a_change_that_cannot_be_confirmed_is_stated() {
    let server = Server::start("fsync = off");
    let mut shop = Shop::at(server.url());
    shop.run(&["init"]).ended(0);
    let (plain, _) = shop.key("one", |args| shop.run(args));
    let (json, _) = shop.key("two", |args| shop.run(args));
    shop.place.run(
        "CREATE ROLE service LOGIN; GRANT USAGE ON SCHEMA $s TO service; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA $s TO service; \
         REVOKE ALL ON $s.nodes FROM service",
    );
    shop.place.url = shop.place.url.replace("user=postgres", "user=service");
    for (id, form) in [(&plain, &[][..]), (&json, &["--json"])] {
        let revoke = ["revoke", id, "--reason", "lost", "--until-confirmed"];
        let owner = ["--schema-owner", "postgres"];
        let ended = shop
            .run(&[&revoke[..], &owner, form].concat())
            .ended(IN_PART);
        for part in [&*format!("revoked key {id}"), "not confirmed", "nodes"] {
            assert!(ended.err.contains(part), "{part}: {ended:?}");
        }
        let shown = shop.run(&[&["show", id, "--json"], &owner[..]].concat());
        assert_eq!(shown.ended(0).document()["status"], "revoked");
    }
}

#[test]
fn a_database_that_is_set_up_without_its_pepper_is_stated() {
    let shop = Shop::empty();
    let init = ["init", "--pepper-file", "nowhere/pepper"];
    let ended = shop.finish(shop.command(&init)).ended(IN_PART);
    for part in ["set up the database", "repeat the command"] {
        assert!(ended.err.contains(part), "{part}: {ended:?}");
    }
    shop.run(&["init"]).ended(0);
}

#[test]
fn the_url_is_never_printed() {
    let shop = Shop::new();
    shop.run(&["--help"]).ended(0);
    shop.run(&["migrate-store", "--help"]).ended(0);
    shop.run(&["list", "--nonsense"]).ended(USAGE);
    shop.run(&["stats", "--schema", "No"]).ended(USAGE);
    let no_database = format!("{}_nowhere", uri());
    for (url, code) in [
        (&*no_database, NO_ACCESS),
        ("postgres://alice:hunter2@127.0.0.1:1/db", UNAVAILABLE),
        ("postgres://alice:hunter2@127.0.0.1:port/db", USAGE),
        ("postgres//alice:hunter2@127.0.0.1:1/db", USAGE),
        ("postgres://alice@127.0.0.1:1/db?hunter2=bar", USAGE),
        (
            "postgres://alice@127.0.0.1:1/db?connect_timeout=hunter2",
            USAGE,
        ),
    ] {
        shop.run(&["stats", "--store", url]).ended(code);
        shop.run(&["stats", "--json", "--store", url]).ended(code);
        shop.run(&["migrate-store", url, "new.db"]).ended(code);
    }
    shop.run(&["migrate-store", "env:NOT_SET", "new.db"])
        .ended(USAGE);
    shop.run(&["migrate-store", "keys.db", "env:NOT_SET"])
        .ended(NOT_FOUND);
}

#[test]
fn a_store_moves_from_a_file_into_a_database_and_back() {
    let shop = Shop::empty();
    shop.on_file(&["init"]).ended(0);
    let file = |args: &[&str]| shop.on_file(args);
    let (_, kept) = shop.key("kept", file);
    let (lost, revoked) = shop.key("lost", file);
    shop.on_file(&["revoke", &lost, "--reason", "lost"])
        .ended(0);
    let ends = shop.on_file(&["audit", "--check"]).ended(0).out;
    let moved = shop
        .run(&["migrate-store", "keys.db", "env:KEYWARD_STORE"])
        .ended(0);
    for words in [
        "compared 3 of 3 rows",
        "compared 4 of 4 audit entries",
        "as of revision",
    ] {
        assert!(moved.err.contains(words), "{words}: {moved:?}");
    }
    assert!(shop.verifies(&kept) && !shop.verifies(&revoked));
    assert_eq!(
        shop.run(&["audit", "--check"]).ended(0).out,
        ends,
        "the trail is unchanged"
    );
    let (_, _) = shop.key("later", |args| shop.run(args));

    let again = shop
        .run(&["migrate-store", "keys.db", "env:KEYWARD_STORE"])
        .ended(REFUSED);
    assert!(again.err.contains("not empty"), "{again:?}");
    let back = shop
        .run(&["migrate-store", "env:KEYWARD_STORE", "back.db", "--json"])
        .ended(0);
    let back = back.document();
    assert_eq!(back["copied"]["audit entries"], 5, "{back}");
    let on_back = |args: &[&str]| shop.run(&[args, &["--store", "back.db"]].concat());
    assert_eq!(
        on_back(&["list"]).ended(0).out,
        shop.run(&["list"]).ended(0).out
    );
    on_back(&["check"]).ended(0);
}

const KEYS: usize = 3_000;

/// Writes 3,000 keys into a file, so many that copying them takes some time.
fn many_keys(path: &Path) {
    let store = wait(SqliteStore::open(path)).unwrap();
    let world = TestService::new();
    let key = world.some_key();
    let found = wait(world.store.find(&Locator::Id(key.id))).unwrap();
    let Row::Key(record) = found.unwrap().change.row else {
        panic!("a key was made")
    };
    for group in 0..6_u64 {
        let puts = (0..500).map(|number| {
            let id = u128::from(group) * 500 + number + 1;
            (*record).clone().with(|key| key.id = KeyId::from_u128(id))
        });
        let commit = Commit {
            tenant: record.tenant.clone(),
            epoch: None,
            expected: Revision(group),
            guards: Vec::new(),
            tag: CommitTag(9),
            decided_at: at(START),
            effects: Effects {
                puts: puts.collect(),
                ..Effects::default()
            },
        };
        wait(store.commit(commit)).unwrap();
    }
}

#[test]
fn a_copy_that_is_killed_leaves_nothing_and_can_be_started_again() {
    let shop = Shop::empty();
    many_keys(&shop.folder.path().join("keys.db"));
    let rows = |store: &dyn KeyStore| {
        let all = NonZeroUsize::new(1_000_000).unwrap();
        wait(store.scan(None, all)).unwrap().rows.len()
    };
    let copy = shop.folder.path().join("copy.db");
    let mut cut_off = 0;
    for to in ["copy.db", "env:KEYWARD_STORE"] {
        let held = || match to {
            "copy.db" if !copy.exists() => 0,
            "copy.db" => rows(&wait(SqliteStore::open(&copy)).unwrap()),
            _ => rows(&shop.place.connect()),
        };
        // `keyctl` prints a line for each part of the store that it has compared. Each run is killed after
        // one more line than the run before.
        for lines in 0.. {
            let args = ["migrate-store", "keys.db", to, "--pepper-file", "pepper"];
            let mut command = shop.command(&args);
            let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
            let printed = BufReader::new(process.stderr.take().unwrap()).lines();
            let printed: Vec<_> = printed.map_while(Result::ok).take(lines).collect();
            process.kill().unwrap();
            process.wait().unwrap();
            let held = held();
            if held == KEYS {
                break;
            }
            assert_eq!(held, 0, "{to}: after {printed:?}");
            cut_off += 1;
        }
    }
    assert!(cut_off > 4, "{cut_off} copies were cut off");
}

#[test]
fn a_restored_database_is_recovered_before_it_serves() {
    let shop = Shop::new();
    let on = |args: &[&str]| shop.run(args);
    let (_, kept) = shop.key("kept", on);
    let (lost, revoked) = shop.key("lost", on);
    let schema = format!("--schema={}", shop.place.schema);
    shop.tool("pg_dump", &[&schema, "--file", "dump.sql"]);
    shop.run(&["revoke", &lost, "--reason", "lost"]).ended(0);
    // The exported audit trail, and a copy, are all that is left when the database is lost below.
    let trail = shop.run(&["audit", "--json", "--all"]).ended(0).out;
    std::fs::write(shop.folder.path().join("trail.jsonl"), trail).unwrap();
    shop.run(&["migrate-store", "env:KEYWARD_STORE", "copy.db"])
        .ended(0);
    let restore = || {
        shop.place.run("DROP SCHEMA $s CASCADE");
        shop.tool(
            "psql",
            &["--quiet", "--set", "ON_ERROR_STOP=1", "--file", "dump.sql"],
        );
    };
    restore();
    assert!(
        shop.verifies(&revoked),
        "the store was not marked as restored"
    );
    shop.run(&["recover", "--disable-all"]).ended(REFUSED);

    shop.run(&["start-new-epoch"]).ended(0);
    shop.run(&["list"]).ended(REFUSED);
    shop.run(&["recover"]).ended(USAGE);
    // A copy has a history of its own, and may have been used since.
    let refused = shop.run(&["recover", "--replay-from", "copy.db"]);
    assert!(refused.ended(REFUSED).err.contains("history of its own"));
    let answer = shop
        .run(&["recover", "--replay-file", "trail.jsonl", "--json"])
        .ended(0)
        .document();
    assert_eq!(
        (&answer["revoked"], &answer["disabled"]),
        (&1.into(), &0.into())
    );
    assert!(shop.verifies(&kept) && !shop.verifies(&revoked));
    shop.run(&["audit", "--check"]).ended(0);
    shop.run(&["recover", "--disable-all"]).ended(REFUSED);

    restore();
    shop.run(&["start-new-epoch"]).ended(0);
    let answer = shop
        .run(&["recover", "--disable-all", "--json"])
        .ended(0)
        .document();
    assert_eq!(answer["disabled"], 2);
    assert!(!shop.verifies(&kept) && !shop.verifies(&revoked));

    restore();
    shop.run(&["start-new-epoch"]).ended(0);
    shop.run(&["recover", "--trust-backup"]).ended(0);
    assert!(shop.verifies(&kept) && shop.verifies(&revoked));
}

/// The operator has renamed the damaged schema, and restored the dump under the old name.
#[test]
fn a_database_is_recovered_from_the_trail_in_another_schema() {
    let shop = Shop::new();
    let on = |args: &[&str]| shop.run(args);
    let (_, kept) = shop.key("kept", on);
    let (lost, revoked) = shop.key("lost", on);
    let schema = shop.place.schema.as_str();
    let dumped = format!("--schema={schema}");
    shop.tool("pg_dump", &[&dumped, "--file", "dump.sql"]);
    shop.run(&["revoke", &lost, "--reason", "lost"]).ended(0);
    let aside = format!("{schema}_lost");
    shop.place
        .run(&format!("ALTER SCHEMA $s RENAME TO {aside}"));
    shop.tool(
        "psql",
        &["--quiet", "--set", "ON_ERROR_STOP=1", "--file", "dump.sql"],
    );
    shop.run(&["start-new-epoch"]).ended(0);
    let recover = ["recover", "--json", "--replay-from", "env:KEYWARD_STORE"];
    for own in [&[][..], &["--replay-schema", schema]] {
        let refused = shop.run(&[&recover, own].concat()).ended(REFUSED);
        assert!(refused.err.contains("replay-same-store"), "{refused:?}");
        shop.run(&["list"]).ended(REFUSED);
    }
    let other = ["--replay-schema", &aside];
    let answer = shop.run(&[&recover[..], &other].concat()).ended(0);
    let answer = answer.document();
    assert_eq!(
        (&answer["revoked"], &answer["disabled"]),
        (&1.into(), &0.into())
    );
    assert_eq!(answer["trails"][0]["reach"], "beyond");
    assert!(shop.verifies(&kept) && !shop.verifies(&revoked));
    shop.place.run(&format!("DROP SCHEMA {aside} CASCADE"));
}

/// No retry succeeds before an operator acts, so a script must not try again.
#[test]
fn missing_tables_and_taken_names_have_the_exit_code_of_no_access() {
    let shop = Shop::new();
    shop.place.run("DROP TABLE $s.audit");
    let missing = shop.run(&["audit"]).ended(NO_ACCESS);
    assert!(missing.err.contains("renamed or dropped"), "{missing:?}");
    let taken = Shop::empty();
    taken
        .place
        .run("CREATE SCHEMA $s; CREATE TABLE $s.nodes (theirs integer)");
    let refused = taken.run(&["init"]).ended(NO_ACCESS);
    assert!(refused.err.contains("name another schema"), "{refused:?}");
}

#[test]
fn the_sql_that_keyctl_prints_creates_the_tables_of_a_store() {
    let shop = Shop::empty();
    let sql = shop.run(&["schema"]).ended(0).out;
    assert_eq!(sql, PostgresStore::schema_sql(&shop.place.schema).unwrap());
    std::fs::write(shop.folder.path().join("tables.sql"), &sql).unwrap();
    shop.tool(
        "psql",
        &[
            "--quiet",
            "--set",
            "ON_ERROR_STOP=1",
            "--file",
            "tables.sql",
        ],
    );
    shop.run(&["init"]).ended(0);
    let (_, secret) = shop.key("export", |args| shop.run(args));
    assert!(shop.verifies(&secret));
}
