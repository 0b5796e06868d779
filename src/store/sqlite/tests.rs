//! Tests that every statement finds its rows through an index, as `EXPLAIN QUERY PLAN` reports it.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;

use rusqlite::trace::{TraceEvent, TraceEventCodes};

use super::*;
use crate::core::audit::AuditEntry;
use crate::core::id::KeyId;
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::query::{AuditPosition, KeyPosition, KeySort};
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::time::Timestamp;
use crate::core::view::{Effects, Guard};
use crate::store::{CommitTag, Row};

thread_local! {
    static STATEMENTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static ROWS: Cell<usize> = const { Cell::new(0) };
}

/// Records every statement that the connection runs, with its parameters, and counts the rows of the results.
fn listen(conn: &mut Connection) {
    let note = |event: TraceEvent<'_>| match event {
        TraceEvent::Stmt(statement, _) => {
            let sql = statement.expanded_sql().unwrap();
            STATEMENTS.with_borrow_mut(|all| all.push(sql));
        }
        TraceEvent::Row(_) => ROWS.set(ROWS.get() + 1),
        _ => {}
    };
    let mask = TraceEventCodes::SQLITE_TRACE_STMT | TraceEventCodes::SQLITE_TRACE_ROW;
    conn.trace_v2(mask, Some(note)).unwrap();
}

struct PlanRecorder {
    conn: Connection,
    _folder: tempfile::TempDir,
}

impl PlanRecorder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let store = pollster::block_on(SqliteStore::open(path)).unwrap();
        let mut conn = store.file().open().unwrap();
        listen(&mut conn);
        Self {
            conn,
            _folder: folder,
        }
    }

    /// Returns the query plan of each statement that `run` executes.
    fn plans(&mut self, run: impl FnOnce(&Connection)) -> Vec<String> {
        STATEMENTS.take();
        run(&self.conn);
        let mut plans = Vec::new();
        for statement in STATEMENTS.take() {
            let explain = format!("EXPLAIN QUERY PLAN {statement}");
            let mut plan = self.conn.prepare(&explain).unwrap();
            let lines = plan.query_map([], |row| row.get::<_, String>(3)).unwrap();
            plans.extend(lines.map(Result::unwrap));
        }
        plans
    }
}

fn record() -> KeyRecord {
    KeyRecord::from_bytes(include_bytes!("../../core/golden/key-full.v1")).unwrap()
}

fn commit() -> Commit {
    let record = record();
    let mut entry = AuditEntry::from_bytes(include_bytes!("../../core/golden/audit.v1")).unwrap();
    entry.tenant = record.tenant.clone();
    let mut owner = OwnerRecord::from_bytes(include_bytes!("../../core/golden/owner.v1")).unwrap();
    owner.tenant = record.tenant.clone();
    let mut tenant =
        TenantRecord::from_bytes(include_bytes!("../../core/golden/tenant.v1")).unwrap();
    tenant.tenant = record.tenant.clone();
    Commit {
        tenant: record.tenant.clone(),
        epoch: None,
        expected: Revision::ZERO,
        guards: guards(),
        tag: CommitTag(1),
        decided_at: Timestamp::UNIX_EPOCH,
        effects: Effects {
            puts: vec![record],
            removes: vec![KeyId::from_u128(9)],
            owners: vec![owner],
            tenant: Some(tenant),
            digests: vec![(Digest::from_bytes([3; 32]), KeyId::from_u128(9))],
            audit: vec![entry],
            prune: None,
        },
    }
}

/// Returns one guard for each kind of row. None of the guarded rows exists in the store.
fn guards() -> Vec<Guard> {
    let tenant: TenantId = "above".parse().unwrap();
    let rows = [
        RowKey::Tenant(tenant.clone()),
        RowKey::Owner(tenant, "alice".parse().unwrap()),
        RowKey::Key(KeyId::from_u128(8)),
    ];
    let guard = |row| Guard {
        row,
        revision: Revision::ZERO,
    };
    rows.into_iter().map(guard).collect()
}

/// Asserts that every step of the plans searches an index. The only exception is the read of the head, which
/// takes the last row of `commits`.
#[track_caller]
fn assert_all_search(plans: &[String]) {
    assert!(!plans.is_empty(), "no statement was recorded");
    for step in plans {
        let head = step.contains("SCAN commits");
        assert!(step.starts_with("SEARCH ") || head, "{step}: {plans:#?}");
    }
}

#[test]
fn changing_one_key_searches_and_never_scans() {
    let mut recorder = PlanRecorder::new();
    let plans = recorder.plans(|conn| {
        let mut head = head::read(conn).unwrap();
        write::apply(conn, &mut head, &commit()).unwrap().unwrap();
    });
    assert_all_search(&plans);
}

#[test]
fn loading_what_a_decision_needs_searches_and_never_scans() {
    let mut recorder = PlanRecorder::new();
    let mut head = head::read(&recorder.conn).unwrap();
    write::apply(&recorder.conn, &mut head, &commit())
        .unwrap()
        .unwrap();
    let record = record();
    let plans = recorder.plans(|conn| {
        let select = LoadRequest {
            keys: vec![record.id],
            live: [("secret".parse().unwrap(), Timestamp::UNIX_EPOCH)].into(),
            legacy: true,
            owners: record.owner.principal().cloned().into_iter().collect(),
            commands: vec![commit().effects.audit[0].command.clone()],
        };
        let view = read::load(conn, &record.tenant, &select, 1)
            .unwrap()
            .unwrap();
        assert_eq!((view.records.len(), view.owners.len()), (1, 1));
        let none = read::load(conn, &record.tenant, &select, 0).unwrap();
        assert_eq!(none, None, "the tenant has more live keys than the limit");
        assert_eq!((view.applied.len(), view.tenant.is_some()), (1, true));
        read::find(conn, &Locator::Id(record.id)).unwrap().unwrap();
    });
    assert_all_search(&plans);
    let ends = plans
        .iter()
        .any(|step| step.contains("rows_by_class (tenant=? AND class=? AND ends>?)"));
    assert!(ends, "live keys are found by class and end: {plans:#?}");
}

#[test]
fn a_followers_reads_are_ranges() {
    let mut recorder = PlanRecorder::new();
    let plans = recorder.plans(|conn| {
        let after = read::cursor(conn).unwrap();
        read::changes(conn, after, NonZeroUsize::MIN)
            .unwrap()
            .unwrap();
        let id = RowKey::Key(record().id);
        read::scan(conn, Some(&id), NonZeroUsize::MIN).unwrap();
    });
    assert_all_search(&plans);
}

#[test]
fn listings_by_id_and_fingerprint_and_trails_use_an_index_and_sort_nothing() {
    let mut recorder = PlanRecorder::new();
    let record = record();
    let plans = recorder.plans(|conn| {
        let of_tenant = KeyQuery::tenant(record.tenant.clone(), Timestamp::UNIX_EPOCH);
        for sort in [KeySort::Created, KeySort::Newest] {
            let query = KeyQuery {
                sort,
                ..of_tenant.clone()
            };
            read::list(conn, &query).unwrap();
        }
        let found = KeyQuery {
            fingerprint: Some(record.fingerprint),
            ..KeyQuery::all(Timestamp::UNIX_EPOCH)
        };
        read::list(conn, &found).unwrap();
        read::audit(conn, &AuditQuery::tenant(record.tenant.clone())).unwrap();
        read::audit(conn, &AuditQuery::all().about(record.id)).unwrap();
    });
    assert_all_search(&plans);
}

/// No index holds the tombstones alone. A scan in this transaction would keep other processes from committing.
#[test]
fn the_transaction_that_drops_tombstones_reads_no_other_row() {
    let mut recorder = PlanRecorder::new();
    write_keys_below(&recorder.conn);
    let (key, tenant) = (KeyId::from_u128(7), "acme/1".parse().unwrap());
    write::put(&recorder.conn, 301, &Row::Removed { key, tenant }, false).unwrap();
    let found = admin::tombstones(&recorder.conn, Revision::ZERO).unwrap();
    assert_eq!(found.places, [301]);
    let plans = recorder.plans(|conn| {
        assert_eq!(admin::drop_tombstones(conn, &found).unwrap(), 1);
    });
    assert_all_search(&plans);
    assert_eq!(admin::drop_tombstones(&recorder.conn, &found).unwrap(), 0);
    let gone = read::find(&recorder.conn, &Locator::Id(key)).unwrap();
    assert_eq!(gone, None);
}

/// Writes 300 keys, each into another of three tenants than the key before.
fn write_keys_below(conn: &Connection) {
    for number in 1..=300 {
        let mut record = record();
        record.facts.id = KeyId::from_u128(number);
        record.facts.tenant = format!("acme/{}", number % 3).parse().unwrap();
        let place = i64::try_from(number).unwrap();
        write::put(conn, place, &Row::Key(Box::new(record)), true).unwrap();
    }
}

/// The index holds only the ids. A page that read the rows to sort them would read every key for each page.
#[test]
fn a_page_of_a_tenant_and_its_descendants_reads_no_row_of_another_page() {
    let mut recorder = PlanRecorder::new();
    write_keys_below(&recorder.conn);
    for sort in [KeySort::Created, KeySort::Newest] {
        let mut query = KeyQuery {
            below: true,
            sort,
            limit: NonZeroUsize::new(10).unwrap(),
            ..KeyQuery::tenant("acme".parse().unwrap(), Timestamp::UNIX_EPOCH)
        };
        let mut found = Vec::new();
        loop {
            let mut page = KeyPage::default();
            ROWS.set(0);
            let plans = recorder.plans(|conn| {
                page = read::list(conn, &query).unwrap();
                assert!(ROWS.get() <= 11, "{} rows were read", ROWS.get());
            });
            for index in [
                "COVERING INDEX rows_of_tenant (tenant>",
                "INDEX rows_by_id (id=?)",
            ] {
                assert!(plans.iter().any(|step| step.contains(index)), "{plans:#?}");
            }
            assert!(
                !plans.iter().any(|step| step.starts_with("SCAN")),
                "{plans:#?}"
            );
            found.extend(page.keys.iter().map(|record| record.id.to_u128()));
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        let mut expected: Vec<_> = (1..=300).collect();
        if sort == KeySort::Newest {
            expected.reverse();
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn a_listing_whose_filter_rejects_all_keys_reads_each_row_once_in_few_statements() {
    let mut recorder = PlanRecorder::new();
    write_keys_below(&recorder.conn);
    let query = KeyQuery {
        below: true,
        owner: Some("nobody".parse().unwrap()),
        limit: NonZeroUsize::new(10).unwrap(),
        ..KeyQuery::tenant("acme".parse().unwrap(), Timestamp::UNIX_EPOCH)
    };
    ROWS.set(0);
    recorder.plans(|conn| {
        assert!(read::list(conn, &query).unwrap().keys.is_empty());
        let statements = STATEMENTS.with_borrow(Vec::len);
        // The statements select at most 11, 44, 176 and 704 rows.
        assert_eq!((ROWS.get(), statements), (300, 4));
    });
}

#[test]
fn keys_of_all_tenants_by_their_end_are_one_range_and_sort_nothing() {
    let mut recorder = PlanRecorder::new();
    let page = |after: Option<KeyPosition>| KeyQuery {
        sort: KeySort::Expiry,
        expires_from: Some(Timestamp::UNIX_EPOCH),
        expires_before: Some(Timestamp::MAX),
        after,
        ..KeyQuery::all(Timestamp::UNIX_EPOCH).live()
    };
    let later = page(Some(KeyPosition::of(&record())));
    let plans = recorder.plans(|conn| {
        read::list(conn, &page(None)).unwrap();
        read::list(conn, &later).unwrap();
        let after = AuditPosition {
            revision: Revision(7),
            sequence: 3,
        };
        let query = AuditQuery {
            after: Some(after),
            ..AuditQuery::all()
        };
        read::audit(conn, &query).unwrap();
    });
    assert_all_search(&plans);
    let first = "rows_by_end_of_all (ends>? AND ends<?)";
    let next = "rows_by_end_of_all ((ends,id)>(?,?) AND ends<?)";
    for range in [first, next] {
        let found = plans.iter().any(|step| step.contains(range));
        assert!(found, "{range}: {plans:#?}");
    }
}

/// An endless read would never let the log start over, so the read must end after the log has grown.
#[test]
fn a_read_ends_only_if_the_log_grew_much_while_it_ran() {
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteOptions::new(folder.path().join("keys.db")).into_file();
    let log = std::fs::File::create(folder.path().join("keys.db-wal")).unwrap();
    let mut conn = Connection::open_in_memory().unwrap();
    let bound = session::ReadBound::of(&mut conn, &file);
    let count = |rows: i64| {
        let sql = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT ?1) \
                   SELECT count(*) FROM n";
        bound.hold(|| Ok(conn.query_row(sql, [rows], |row| row.get::<_, i64>(0))?))
    };
    // Another program made the log long before the read.
    log.set_len(300 << 20).unwrap();
    assert_eq!(count(1_000_000).unwrap(), 1_000_000);
    // Forgets that the first read was examined.
    bound.hold(|| Ok(())).unwrap();
    assert!(!bound.has_looked());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !bound.has_looked() {
                std::thread::yield_now();
            }
            log.set_len(400 << 20).unwrap();
        });
        let ended = count(-1).unwrap_err().to_string();
        assert!(ended.contains("256 MiB"), "{ended}");
    });
}

#[test]
fn the_reads_of_a_store_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteOptions::new(folder.path().join("keys.db")).into_file();
    file.create().unwrap();
    let keeps_log = file.open().unwrap();
    file.make_durable(&keeps_log).unwrap();
    let log = folder.path().join("keys.db-wal");
    let log = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(log)
        .unwrap();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut len = log.metadata().unwrap().len();
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                // SQLite ignores bytes after the last commit of a log.
                len += 64 << 20;
                log.set_len(len).unwrap();
                std::thread::yield_now();
            }
        });
        let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) \
                       SELECT count(*) FROM n";
        let pool = Pool::new(file.clone());
        let read = pool.read(|conn| Ok(conn.query_row(endless, [], |row| row.get::<_, i64>(0))?));
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        let fault = read.unwrap_err().to_string();
        assert!(fault.contains("256 MiB"), "{fault}");
    });
}
