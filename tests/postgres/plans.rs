//! Query plans. No statement of the store may read many rows to return a few.

use std::num::NonZeroUsize;
use std::sync::Arc;

use futures_util::future::join_all;
use keyward::command::{DeleteKey, ImportKey};
use keyward::key::{Digest, Fingerprint, Status};
use keyward::policy::{Policy, TenantReach};
use keyward::store::usage::UsageStore;
use keyward::store::{
    AuditQuery, KeyQuery, KeySort, KeyStore, LoadRequest, Locator, PostgresStore, Revision,
};
use keyward::usage::Day;
use keyward::{CreateKey, Keyward, ManualClock, Need, Reason, days};
use regex::Regex;

use super::usage::{batch, by_last_use, opening, pruning};
use support::postgres::{Server, TestSchema};
use support::raw::beginning;
use support::*;

const TEN: NonZeroUsize = NonZeroUsize::new(10).unwrap();

/// The settings with which a server logs the plan of each statement.
const LOGS_PLANS: &str = "session_preload_libraries = 'auto_explain'\n\
    auto_explain.log_min_duration = 0\nauto_explain.log_nested_statements = on\n\
    auto_explain.log_analyze = on\nauto_explain.log_buffers = on\nauto_explain.log_timing = off\nfsync = off\n\
    max_wal_size = '4GB'\nautovacuum = off";

/// SQL that adds rows of other tenants: `$n` keys, and `$n` owners but at most 40,000. The contents of the
/// rows do not matter.
///
/// The number of owners is limited because each row needs its own `place` below 2^20, where the places of
/// real commits begin. A million keys and 40,000 owners still fit.
const OTHERS: &str = "
    INSERT INTO $s.rows SELECT g, 2, 't' || g % 500, NULL, decode(md5(g::text), 'hex'),
        'secret', 4000000000000000 + g, NULL, md5(g::text), '\\x00', 0 FROM generate_series(1, $n) g;
    INSERT INTO $s.rows SELECT $n + g, 1, 't' || g % 500, 'owner-' || g, NULL,
        NULL, NULL, NULL, NULL, '\\x00', 0 FROM generate_series(1, least($n, 40000)) g;
    INSERT INTO $s.audit SELECT g, 't' || g % 500, g, 'command ' || g, decode(md5(g::text), 'hex'),
        '\\x00', 0 FROM generate_series(1, $n) g;
    INSERT INTO $s.tenants SELECT 't' || g, 0, 0, 0, '\\x00', 0 FROM generate_series(1, $n) g;
    INSERT INTO $s.digests SELECT decode(md5(g::text), 'hex'), '\\x00', 0
        FROM generate_series(1, $n) g;
    INSERT INTO $s.gone SELECT decode(md5('gone' || g), 'hex') FROM generate_series(1, $n) g;
    INSERT INTO $s.usage_days SELECT decode(md5(g::text), 'hex'), 20100 + g % 365, '\\x01', 0
        FROM generate_series(1, $n) g;
    INSERT INTO $s.usage_keys SELECT decode(md5(g::text), 'hex'), 't' || g % 500, 20100, 20100, 0, 0
        FROM generate_series(1, $n) g;
    ANALYZE $s.rows, $s.audit, $s.tenants, $s.digests, $s.gone, $s.usage_days, $s.usage_keys;";

/// 6,000 keys of the tenant `acme` with uses, three times as many as [`FEW`].
const USED: u64 = 6_000;

/// 2,000 rows. A plan of the store needs fewer, and a plan that reads a whole table needs far more.
const FEW: u64 = 2_000;

/// 120 pages of 8 KiB. A plan of the store needs fewer, and a plan that reads a whole table needs more.
///
/// Rows alone are not enough: a plan that reads a whole index reports only the rows that match.
const FEW_PAGES: u64 = 120;

/// A service on a store that also contains many rows of other tenants.
struct World {
    server: Server,
    place: TestSchema,
    store: PostgresStore,
    keys: Keyward,
    start: Revision,
}

impl World {
    fn new(others: usize) -> Self {
        let server = Server::start(LOGS_PLANS);
        let place = TestSchema::at(server.url());
        let store = place.connect();
        let clock = Arc::new(ManualClock::at(at(START)));
        let mut spec = capped(1000);
        let secret = spec.classes.get_mut("secret").unwrap();
        secret.tenant_reach = TenantReach::Descendants;
        let keys = node(store.clone(), &clock, Policy::new(spec).unwrap());
        let start = beginning(&store).revision;
        wait(store.open_boot(opening(1))).unwrap();
        // One batch: a second one would move all keys in the index, and the server removes the old entries later.
        let mut used = batch(1, 1, 100, 0..USED);
        used.uses.extend(batch(1, 1, 101, 0..USED).uses);
        used.uses.sort_by_key(|uses| (uses.key, uses.day));
        wait(store.add(used)).unwrap();
        place.run(&OTHERS.replace("$n", &others.to_string()));
        Self {
            server,
            place,
            store,
            keys,
            start,
        }
    }

    /// Counts a few uses, reads a page of those of many keys, and removes a few.
    fn count_uses(&self) {
        let store = &self.store;
        let sequence = wait(store.ledger()).unwrap().boots[0].sequence;
        for (number, keys) in (1..).zip([0..3, 1..3, USED..USED + 3]) {
            wait(store.add(batch(1, sequence + number, 1, keys))).unwrap();
        }
        for newest_first in [false, true] {
            let mut query = by_last_use(newest_first, TEN.get());
            query.from = Day::from_number(20_050).unwrap();
            for _ in 0..3 {
                let page = wait(store.by_last_use(&query)).unwrap();
                let (key, last) = page[TEN.get() - 1];
                query.after = Some((Day::of(last.at), key));
                let keys: Vec<_> = page.iter().map(|(key, _)| *key).collect();
                let days = wait(store.days(&keys, Day::FIRST, Day::LAST)).unwrap();
                assert!(days.len() >= 2 * TEN.get());
                assert_eq!(wait(store.last_uses(&keys)).unwrap().len(), TEN.get());
            }
        }
        assert_eq!(wait(store.prune(pruning(50, 10))).unwrap(), 6);
        let new = by_last_use(false, 3);
        let new: Vec<_> = wait(store.by_last_use(&new)).unwrap();
        let new: Vec<_> = new.into_iter().map(|(key, _)| key).collect();
        wait(UsageStore::forget_keys(store, &new)).unwrap();
    }

    /// Runs every kind of statement that a service runs. Returns the plans that read many rows or pages.
    fn work(&self, name: &str) -> Vec<String> {
        let from = self.server.log().len();
        // Repeats every statement, because the server chooses the generic plan of a statement only after
        // several runs.
        for number in 0..8 {
            self.change_and_ask(&format!("{name} {number}"));
            self.count_uses();
        }
        // The server may still write to its log after a statement was cancelled. Waits until its connections
        // answer again.
        self.place.run("SELECT 1");
        wait(self.store.find(&Locator::Imported(Digest::sha256("none")))).unwrap();
        let log = self.server.log();
        let log = &log[from..];
        assert!(
            log.contains("Index Scan using rows_by_id") || log.contains("Seq Scan on rows"),
            "the log holds the plans: {log}"
        );
        looks_at_many(log)
    }

    fn change_and_ask(&self, name: &str) {
        let Self { store, keys, .. } = self;
        let key = reader(name).expires_in(days(90));
        let key = wait(keys.create(&admin(), key)).unwrap();
        let digest = Digest::sha256(name);
        let import = ImportKey::sha256(digest, reader(name));
        wait(keys.import(&admin(), import)).unwrap();
        // A key creates a key in a descendant tenant. The commit then has guards on the rows of the key, its
        // owner and its tenant.
        let whole = wait(keys.create(&admin(), CreateKey::new(name).scope("*:*"))).unwrap();
        let by = keys.verify(whole.secret.expose(), &Need::any()).unwrap();
        let below = reader(name).in_tenant(tenant("acme/web"));
        wait(keys.create(&by.actor(), below)).unwrap();
        let record = wait(keys.key(&admin(), key.id)).unwrap();
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
        // Loads many tenants concurrently. The store runs the first two loads immediately, and the others
        // wait to share transactions.
        let many: Vec<_> = (0..20)
            .map(|other| tenant(&format!("none-{other}")))
            .collect();
        let many = many.iter().map(|tenant| store.load(tenant, &everything));
        for loaded in wait(join_all(many)) {
            loaded.unwrap();
        }
        wait(store.find(&Locator::Id(key.id))).unwrap();
        wait(store.find(&Locator::Imported(digest))).unwrap();
        let later = at(START).saturating_add(days(1));
        wait(keys.prune_audit(&host(), &tenant("acme"), later, None)).unwrap();
        // Reads at most ten rows per call. The newest rows in the feed are those that this test has written,
        // not those of other tenants.
        let head = wait(store.scan(None, TEN)).unwrap().head;
        wait(store.changes(keys.freshness().cursor.unwrap(), TEN)).unwrap();
        assert!(head.revision > self.start);
        let mut of_tenant = KeyQuery::tenant(tenant("acme"), at(START));
        of_tenant.limit = TEN;
        for sort in [
            KeySort::Created,
            KeySort::Newest,
            KeySort::Name,
            KeySort::Expiry,
        ] {
            of_tenant.sort = sort;
            wait(store.list(&of_tenant)).unwrap();
        }
        // Lists keys of descendant tenants too: first all of them, then by a part of the name, and then by
        // the hint.
        of_tenant.below = true;
        wait(store.list(&of_tenant)).unwrap();
        of_tenant.name = Some(name.to_owned());
        wait(store.list(&of_tenant)).unwrap();
        of_tenant.name = None;
        of_tenant.hint = Some(record.hint.to_string());
        assert_eq!(
            wait(store.list(&of_tenant)).unwrap().keys.len(),
            0,
            "deleted"
        );
        // Lists keys in all tenants, with the fingerprint as the only condition.
        let mut of_all = KeyQuery::all(at(START));
        of_all.fingerprint = Some(Fingerprint::of_token("some token"));
        wait(store.list(&of_all)).unwrap();
        of_all.fingerprint = None;
        of_all.limit = TEN;
        of_all.statuses = [Status::Active].into_iter().collect();
        of_all.sort = KeySort::Expiry;
        of_all.expires_before = Some(at("2026-03-01T00:00:00Z"));
        wait(store.list(&of_all)).unwrap();
        let mut trail = AuditQuery::tenant(tenant("acme"));
        wait(store.audit(&trail)).unwrap();
        trail.from = Some(at(START));
        trail.before = Some(at("2026-03-01T00:00:00Z"));
        trail.actor = Some(who("alice"));
        wait(store.audit(&trail)).unwrap();
        wait(store.audit(&AuditQuery::all().about(key.id))).unwrap();
        let mut of_command = AuditQuery::all();
        of_command.command = Some(command("some"));
        wait(store.audit(&of_command)).unwrap();
    }
}

/// Returns the plans in which a step read many rows or pages. Rows that the step filtered out count as read.
fn looks_at_many(log: &str) -> Vec<String> {
    let rows = Regex::new(r"rows=(\d+)(?:\.\d+)? loops=(\d+)\)|Rows Removed by [A-Za-z ]+: (\d+)")
        .unwrap();
    let number =
        |text: Option<regex::Match<'_>>| text.map_or(1, |text| text.as_str().parse().unwrap());
    let pages = Regex::new(r"Buffers: shared hit=(\d+)(?: read=(\d+))?").unwrap();
    let many_pages = |plan: &str| {
        pages.captures_iter(plan).any(|found| {
            let read = found
                .get(2)
                .map_or(0, |text| text.as_str().parse().unwrap());
            number(found.get(1)) + read > FEW_PAGES
        })
    };
    let many = |plan: &&str| {
        many_pages(plan)
            || rows.captures_iter(plan).any(|found| {
                let looked: u64 =
                    number(found.get(1)) * number(found.get(2)) * number(found.get(3));
                looked > FEW
            })
    };
    let plans = log.split("Query Text: ").skip(1);
    // Leaves out statements of this test itself, and statements that the server runs on its own tables.
    let plans = plans.filter(|plan| !plan.starts_with("\n") && !plan.contains("generate_series"));
    plans.filter(many).map(str::to_owned).collect()
}

/// Returns the number of rows of other tenants: 100,000, or a million if `KEYWARD_LONG=1`.
fn others() -> usize {
    match std::env::var("KEYWARD_LONG").as_deref() {
        Ok("1") => 1_000_000,
        _ => 100_000,
    }
}

#[test]
fn no_statement_reads_many_rows_to_return_few() {
    let world = World::new(others());
    let found = world.work("key");
    assert!(found.is_empty(), "{} such: {}", found.len(), found[0]);
}

/// Drops each index in turn. The store's statements must then read many rows, which proves that every index
/// is needed.
#[test]
fn a_schema_without_one_of_its_indexes_is_caught() {
    let world = World::new(60_000);
    assert_eq!(world.work("whole"), Vec::<String>::new());
    let defined = "SELECT indexname || '|' || indexdef FROM pg_indexes WHERE schemaname = '$s' \
                   AND indexdef NOT LIKE '%_pkey%' ORDER BY indexname";
    let indexes = world.place.ask(defined);
    assert!(indexes.len() > 8, "{indexes:?}");
    for index in indexes {
        let (name, again) = index.split_once('|').unwrap();
        world.place.run(&format!("DROP INDEX $s.{name}"));
        let found = world.work(name);
        assert!(!found.is_empty(), "nobody misses {name}");
        world.place.run(again);
    }
}
