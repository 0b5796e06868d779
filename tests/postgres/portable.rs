//! The SQL of the store, which must also run on other databases with PostgreSQL's protocol, such as
//! CockroachDB and YugabyteDB.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use keyward::command::{DeleteKey, ImportKey};
use keyward::key::Digest;
use keyward::policy::{Policy, TenantReach};
use keyward::store::transfer::copy;
use keyward::store::usage::{UsageError, UsageStore};
use keyward::store::{
    AuditQuery, Epoch, KeyQuery, KeyStore, LoadRequest, Locator, NodeId, NodeRegistry, NodeReport,
    PostgresStore,
};
use keyward::usage::Day;
use keyward::{CreateKey, ManualClock, Need, Reason, days};
use regex::Regex;

use super::usage::{batch, by_last_use, closing, opening, pruning};
use support::postgres::{Server, TestSchema, open};
use support::raw::{ALL, beginning};
use support::*;

/// The only file with LISTEN and NOTIFY, which other databases lack. The store works without notifications,
/// because they are only hints.
const HINTS: &str = "listen.rs";

/// Features that other databases lack: advisory locks, notifications, and ids of transactions and rows.
/// Sequences count too, because a number is drawn before its commit, so numbers are not in commit order.
static FOREIGN: LazyLock<Regex> = LazyLock::new(|| {
    let words = [
        r"\w*advisory\w*",
        r"(un)?listen",
        r"(pg_)?notify",
        r"txid_\w+",
        r"pg_\w*xact\w*",
        r"pg_\w*snapshot\w*",
        r"xid8?|xmin|xmax|cmin|cmax|ctid",
        r"(next|curr|last|set)val",
        r"(small|big)?serial[248]?",
        r"create\s+sequence",
        r"as\s+identity",
    ];
    Regex::new(&format!(r"(?i)\b({})\b", words.join("|"))).unwrap()
});

/// Returns the string literals in a Rust file. Leaves out its comments and unit tests.
fn literals(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let token =
        r##"(?s)//[^\n]*|/\*.*?\*/|r#"(.*?)"#|r"([^"]*)"|"((?:\\.|[^"\\])*)"|'(?:\\.|[^'\\])'"##;
    let token = Regex::new(token).unwrap();
    let continued = Regex::new(r"\\\n\s*").unwrap();
    let found = token.captures_iter(source).filter_map(|found| {
        let text = found.iter().skip(1).flatten().next()?;
        Some(continued.replace_all(text.as_str(), "").into_owned())
    });
    found.collect()
}

/// Returns all SQL in a file: the whole text of an SQL file, or the string literals of a Rust file.
fn sent_by(name: &str, text: &str) -> Vec<String> {
    match name.ends_with(".sql") {
        true => {
            let lines = text.lines().map(|line| line.split("--").next().unwrap());
            vec![lines.collect::<Vec<_>>().join("\n")]
        }
        false => literals(text),
    }
}

/// Returns all SQL that the store contains, each text with the name of its file.
fn sent() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/store");
    let mut folders = vec![root.join("postgres"), root.join("sql")];
    let mut sent = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                let texts = sent_by(&name, &text).into_iter();
                sent.extend(texts.map(|text| (name.clone(), text)));
            }
        }
    }
    sent
}

#[test]
fn no_essential_statement_uses_features_that_other_databases_lack() {
    let sent = sent();
    for known in [
        "FOR UPDATE",
        "CREATE TABLE audit",
        "ON CONFLICT",
        "ORDER BY place",
    ] {
        let found = sent.iter().any(|(_, text)| text.contains(known));
        assert!(
            found,
            "statements are where this test looks for them: {known}"
        );
    }
    let hints = |name: &str| name == HINTS;
    for (name, text) in sent.iter().filter(|(name, _)| !hints(name)) {
        assert!(!FOREIGN.is_match(text), "{name}: {text}");
    }
    let hints = sent
        .iter()
        .filter(|(name, text)| hints(name) && FOREIGN.is_match(text));
    assert_eq!(hints.count(), 2, "one NOTIFY and one LISTEN");
}

#[test]
fn features_that_other_databases_lack_are_detected() {
    for foreign in [
        "SELECT pg_advisory_xact_lock(1)",
        "select pg_try_advisory_lock($1)",
        "NOTIFY {channel}",
        "SELECT pg_notify('c', '')",
        "LISTEN c",
        "SELECT txid_current()",
        "SELECT pg_current_xact_id()::text",
        "SELECT pg_snapshot_xmin(pg_current_snapshot())",
        "SELECT xmin FROM $s.rows",
        "ALTER TABLE rows ADD at xid8",
        "INSERT INTO $s.rows VALUES (nextval('places'))",
        "CREATE TABLE t (id bigserial PRIMARY KEY)",
        "CREATE SEQUENCE places",
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY)",
    ] {
        let plain = format!("let sql = \"{foreign}\";");
        let split = format!("let c = '\"'; x(r#\"{}\"#)", foreign.replace(' ', " \n "));
        for source in [plain, split] {
            let found = literals(&source);
            assert!(found.iter().any(|text| FOREIGN.is_match(text)), "{source}");
        }
        assert!(
            sent_by("2.sql", foreign)
                .iter()
                .any(|text| FOREIGN.is_match(text))
        );
    }
    let harmless = "
        // SELECT pg_advisory_lock(1)
        fn listen(notify: &'static str) { hints.notify(usize::MAX) }
        \"INSERT INTO audit (sequence) VALUES ($1)\" /* nextval */ \"not notified\"";
    let found = literals(harmless);
    assert_eq!(found.len(), 2);
    assert!(
        !found.iter().any(|text| FOREIGN.is_match(text)),
        "{found:?}"
    );
    assert!(!FOREIGN.is_match(&sent_by("1.sql", "SELECT 1 -- xmin")[0]));
}

/// Returns a pattern that matches a statement in the server's log. A placeholder in the statement matches any
/// text.
fn as_logged(statement: &str) -> Regex {
    let gap = Regex::new(r"\\\{[^{}]*\\\}").unwrap();
    // The log splits a statement at its line breaks, so the pattern contains only the first line.
    let first = statement.split("\\n").next().unwrap();
    let pattern = regex::escape(&first.replace("$s.", "{schema}"));
    Regex::new(&gap.replace_all(&pattern, ".*?")).unwrap()
}

#[test]
fn the_server_accepts_every_statement() {
    let server = Server::start("fsync = off\nlog_statement = all");
    let place = TestSchema::at(server.url());
    do_everything(&place);
    let log = server.log();
    let statement = Regex::new(r"^(SELECT|INSERT|UPDATE|DELETE) ").unwrap();
    let mut seen = 0;
    for (name, text) in sent() {
        if statement.is_match(&text) && (text.contains("$s.") || text.contains("{prefix}")) {
            assert!(
                as_logged(&text).is_match(&log),
                "{name}: nothing asked {text}"
            );
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} statements");
    assert!(!log.contains("ERROR:"), "{log}");
}

/// Runs every statement on counted uses. Removes all of them except the boot 1.
fn count_uses(store: &PostgresStore) {
    for number in [1, 2] {
        wait(store.open_boot(opening(number))).unwrap();
        for sequence in [1, 2] {
            // The second batch adds to the rows of the first one.
            let of = u32::try_from(number).unwrap();
            wait(store.add(batch(number, sequence, of, 0..3))).unwrap();
        }
    }
    let refused = wait(store.add(batch(3, 1, 1, 0..3))).unwrap_err();
    assert!(
        matches!(refused, UsageError::UnknownBoot { .. }),
        "{refused:?}"
    );
    assert!(wait(store.close_boot(closing(2, 2))).unwrap());
    assert_eq!(wait(store.ledger()).unwrap().gaps.len(), 1);
    for newest_first in [false, true] {
        let mut query = by_last_use(newest_first, 2);
        let page = wait(store.by_last_use(&query)).unwrap();
        let (key, last) = page[1];
        query.after = Some((Day::of(last.at), key));
        assert_eq!(wait(store.by_last_use(&query)).unwrap().len(), 1);
        assert_eq!(
            wait(store.days(&[key], Day::FIRST, Day::LAST))
                .unwrap()
                .len(),
            2
        );
        assert_eq!(wait(store.last_uses(&[key])).unwrap().len(), 1);
    }
    assert_eq!(wait(store.prune(pruning(10, 4))).unwrap(), 4);
    let keys: Vec<_> = wait(store.by_last_use(&by_last_use(true, 9))).unwrap();
    let keys: Vec<_> = keys.into_iter().map(|(key, _)| key).collect();
    wait(UsageStore::forget_keys(store, &keys)).unwrap();
}

/// Runs every statement of the store.
pub(crate) fn do_everything(place: &TestSchema) {
    const ONE: NonZeroUsize = NonZeroUsize::MIN;
    let store = place.connect();
    let clock = Arc::new(ManualClock::at(at(START)));
    let mut spec = capped(50);
    let secret = spec.classes.get_mut("secret").unwrap();
    secret.tenant_reach = TenantReach::Descendants;
    let keys = node(store.clone(), &clock, Policy::new(spec).unwrap());
    let start = beginning(&store);
    // A key creates a key in a descendant tenant. The commit then has guards on the rows of the key, its
    // owner and its tenant.
    let whole = wait(keys.create(&admin(), CreateKey::new("whole").scope("*:*"))).unwrap();
    let by = keys.verify(whole.secret.expose(), &Need::any()).unwrap();
    let below = reader("below").in_tenant(tenant("acme/web"));
    wait(keys.create(&by.actor(), below)).unwrap();
    let key = wait(keys.create(&admin(), reader("some"))).unwrap();
    let digest = Digest::sha256("imported");
    wait(keys.import(&admin(), ImportKey::sha256(digest, reader("imported")))).unwrap();
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    wait(keys.delete(&admin(), key.id, DeleteKey::plain())).unwrap();
    let everything = LoadRequest {
        keys: vec![key.id],
        live: [("secret".parse().unwrap(), at(START))].into(),
        legacy: true,
        owners: vec![who("alice")],
        commands: vec![command("some")],
    };
    wait(store.load(&tenant("acme"), &everything)).unwrap();
    wait(store.find(&Locator::Id(key.id))).unwrap();
    wait(store.find(&Locator::Imported(digest))).unwrap();
    wait(store.changes(start, ONE)).unwrap();
    let mut after = None;
    loop {
        let page = wait(store.scan(after, ONE)).unwrap();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    wait(store.list(&KeyQuery::tenant(tenant("acme"), at(START)))).unwrap();
    let mut below = KeyQuery::tenant(tenant("acme"), at(START));
    below.below = true;
    wait(store.list(&below)).unwrap();
    wait(store.audit(&AuditQuery::all().about(key.id))).unwrap();
    let report = |beat| NodeReport {
        node: NodeId::from_u128(7),
        beat,
        lease: Duration::from_secs(1),
        label: None,
        applied: None,
        clock: keyward::Timestamp::UNIX_EPOCH,
        process: None,
    };
    for beat in [1, 2] {
        assert!(wait(store.report(report(beat))).unwrap());
    }
    wait(store.nodes()).unwrap();
    wait(NodeRegistry::forget(&store, NodeId::from_u128(7), 2)).unwrap();
    count_uses(&store);
    let head = wait(store.scan(None, ALL)).unwrap().head;
    wait(store.compact(head.revision)).unwrap();
    wait(store.start_new_epoch()).unwrap();
    let restored = open(place.options().allow_unrecovered()).unwrap();
    assert!(wait(restored.scan(None, ALL)).unwrap().head.epoch != Epoch::default());
    wait(restored.finish_recovery()).unwrap();
    wait(store.finish_upgrade()).unwrap();
    let later = at(START).saturating_add(days(1));
    let pruned = wait(keys.prune_audit(&host(), &tenant("acme"), later, None)).unwrap();
    assert!(pruned.removed > 1);
    assert!(wait(store.check_integrity()).unwrap().is_sound());
    assert!(wait(store.stats()).unwrap().audit > 0);
    let printed = PostgresStore::schema_sql(&format!("{}_printed", place.schema));
    place.run(&printed.unwrap());
    let target = place.options().schema(format!("{}_copy", place.schema));
    let target = open(target).unwrap();
    wait(copy(&store, &target, ONE, |_| {})).unwrap();
}
