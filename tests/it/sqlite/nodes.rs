//! The node registry in the file.

use std::fs;
use std::time::Duration;

use keyward::node::NodeLabel;
use keyward::store::sqlite::OpenError;
use keyward::store::{NodeId, NodeRegistry, NodeReport, SqliteStore, StoreErrorKind};
use keyward::{Keyward, Reason, hours};

use crate::sqlite::{Desk, checkpoint, policy, sql};
use support::*;

fn report(n: u128, beat: u64) -> NodeReport {
    NodeReport {
        node: NodeId::from_u128(n),
        label: Some(NodeLabel::new("a node").unwrap()),
        applied: Some(keyward::store::Cursor::default()),
        lease: Duration::from_secs(70),
        beat,
        clock: keyward::Timestamp::UNIX_EPOCH,
        process: Some(process()),
    }
}

fn nodes(store: &SqliteStore) -> Vec<NodeReport> {
    wait(store.nodes()).unwrap()
}

#[test]
fn a_report_is_shared_and_durable_and_is_not_a_commit() {
    let desk = Desk::new();
    let (one, two) = (desk.store(), desk.store());
    let head = wait(one.stats()).unwrap().head;
    assert!(wait(one.report(report(1, 1))).unwrap());
    assert!(wait(two.report(report(1, 2))).unwrap());
    assert!(!wait(one.report(report(1, 2))).unwrap());
    assert_eq!(nodes(&one), [report(1, 2)]);
    assert_eq!(wait(two.stats()).unwrap().head, head);
    drop((one, two));
    assert_eq!(nodes(&desk.store()), [report(1, 2)]);
}

#[test]
fn two_processes_confirm_changes_to_each_other() {
    let desk = Desk::new();
    let start = || {
        let store = desk.store();
        let builder = Keyward::builder(store.clone(), peppers()).registry(store);
        wait(builder.policy(policy()).clock(desk.clock.clone()).build()).unwrap()
    };
    let (here, there) = (start(), start());
    let key = wait(here.create(&admin(), reader("a"))).unwrap();
    wait(there.sync()).unwrap();
    let receipt = wait(here.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let asked = wait(here.confirmations(&receipt)).unwrap();
    assert_eq!((asked.applied().count(), asked.waiting().count()), (1, 1));
    there.verify(key.secret.expose(), &reading()).unwrap();
    wait(there.sync()).unwrap();
    let asked = wait(here.confirmations(&receipt)).unwrap();
    assert!(asked.is_complete() && asked.applied().count() == 2);
}

#[test]
fn a_file_that_replaces_an_open_one_has_a_registry_of_its_own() {
    let desk = Desk::new();
    let store = desk.store();
    assert!(wait(store.report(report(1, 1))).unwrap());
    checkpoint(&desk.path());
    drop(wait(SqliteStore::open(desk.at("other.db"))).unwrap());
    checkpoint(&desk.at("other.db"));
    fs::create_dir(desk.at("away")).unwrap();
    for end in ["", "-wal", "-shm"] {
        let from = desk.at(&format!("keys.db{end}"));
        if from.exists() {
            fs::rename(from, desk.at(&format!("away/keys.db{end}"))).unwrap();
        }
    }
    fs::rename(desk.at("other.db"), desk.path()).unwrap();
    assert!(nodes(&store).is_empty());
    assert!(wait(store.report(report(1, 2))).unwrap());
    assert_eq!(nodes(&desk.store()), [report(1, 2)]);
}

#[test]
fn a_damaged_entry_is_named_and_replaced_by_the_next_report() {
    for healing in ["report", "forget"] {
        let desk = Desk::new();
        let store = desk.store();
        for n in 1..=2 {
            wait(store.report(report(n, 5))).unwrap();
        }
        let damage = "UPDATE reports SET beat = 1000000 WHERE node = \
                      x'00000000000000000000000000000002'";
        assert_eq!(
            sql(&desk.at("keys.db-nodes")).execute(damage, []).unwrap(),
            1
        );
        // If the damaged entry were skipped, its node would look as if it were gone.
        let error = wait(store.nodes()).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
        let faults = wait(store.check_integrity()).unwrap().registry;
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].contains(&report(2, 5).node.to_string()),
            "{faults:?}"
        );
        match healing {
            "report" => assert!(wait(store.report(report(2, 6))).unwrap()),
            _ => wait(store.forget(report(2, 6).node, 0)).unwrap(),
        }
        let left = if healing == "report" { 2 } else { 1 };
        assert_eq!(nodes(&store).len(), left);
        assert!(wait(store.check_integrity()).unwrap().is_sound());
    }
}

#[test]
fn every_column_of_an_entry_is_sealed() {
    let changes = [
        "beat = beat + 1",
        "lease = lease + 1",
        "label = NULL",
        "label = 'b node'",
        "epoch = NULL, revision = NULL, tag = NULL",
        "revision = revision + 1",
        "tag = randomblob(16)",
        "epoch = randomblob(16)",
        "node = randomblob(16)",
        "history = randomblob(16)",
        "history_seal = history_seal + 1",
        "seal = seal + 1",
        "process = replace(process, 'p1', 'p2')",
        "process = ''",
    ];
    for change in changes {
        let desk = Desk::new();
        let store = desk.store();
        wait(store.report(report(1, 5))).unwrap();
        let damage = format!("UPDATE reports SET {change}");
        assert_eq!(
            sql(&desk.at("keys.db-nodes")).execute(&damage, []).unwrap(),
            1
        );
        assert!(wait(store.nodes()).is_err(), "{change}");
    }
}

/// The column `process` is newer than the other columns. Builds that do not know it write and read only the others.
#[test]
fn builds_that_do_not_know_processes_share_the_registry() {
    let columns =
        "node, beat, lease, label, epoch, revision, tag, clock, seal, history, history_seal";
    let desk = Desk::new();
    let store = desk.store();
    wait(store.report(report(1, 5))).unwrap();
    let file = sql(&desk.at("keys.db-nodes"));
    let seals = |beat: i64| -> (i64, i64) {
        let sql = "SELECT seal, history_seal FROM reports WHERE beat = ?1";
        let seals = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        file.query_row(sql, [beat], seals).unwrap()
    };
    let known = seals(5);
    let earlier =
        format!("INSERT OR REPLACE INTO reports ({columns}) SELECT {columns} FROM reports");
    file.execute(&earlier, []).unwrap();
    let unknown = NodeReport {
        process: None,
        ..report(1, 5)
    };
    assert_eq!(nodes(&store), std::slice::from_ref(&unknown));
    wait(store.forget(unknown.node, 5)).unwrap();
    wait(store.report(unknown)).unwrap();
    assert_eq!(seals(5), known, "an earlier build checks the same seals");
    wait(store.report(report(1, 6))).unwrap();
    assert_eq!(nodes(&store), [report(1, 6)]);
}

#[test]
fn a_registry_without_the_column_of_processes_is_read_and_gets_the_column() {
    let desk = Desk::new();
    let store = desk.store();
    wait(store.report(report(1, 5))).unwrap();
    drop(store);
    let make_earlier = || {
        let file = sql(&desk.at("keys.db-nodes"));
        file.execute_batch("ALTER TABLE reports DROP COLUMN process")
            .unwrap();
    };
    make_earlier();
    let unknown = NodeReport {
        process: None,
        ..report(1, 5)
    };
    let store = desk.store();
    assert_eq!(nodes(&store), std::slice::from_ref(&unknown));
    assert!(wait(store.check_integrity()).unwrap().is_sound());
    wait(store.report(report(2, 1))).unwrap();
    assert_eq!(nodes(&store), [unknown, report(2, 1)]);
    // Another process adds the column while this store has the file open.
    let other = desk.store();
    make_earlier();
    wait(other.report(report(1, 6))).unwrap();
    assert_eq!(nodes(&store)[0], report(1, 6));
    assert!(wait(store.check_integrity()).unwrap().is_sound());
}

/// Returns the text of the column `process` for node 1: a seal, and the process as JSON.
fn sealed(json: &str) -> String {
    let mut sum = crc32fast::Hasher::new();
    for part in [&1_u128.to_be_bytes()[..], json.as_bytes()] {
        sum.update(&(part.len() as u64).to_le_bytes());
        sum.update(part);
    }
    format!("{} {json}", sum.finalize())
}

/// A later build may report more about a process, or the same in another form.
#[test]
fn the_process_of_a_later_build_is_read_or_counts_as_unknown() {
    let desk = Desk::new();
    let store = desk.store();
    wait(store.report(report(1, 5))).unwrap();
    let file = sql(&desk.at("keys.db-nodes"));
    let stored: String = file
        .query_row("SELECT process FROM reports", [], |row| row.get(0))
        .unwrap();
    let json = stored.split_once(' ').unwrap().1;
    assert_eq!(stored, sealed(json));
    let change = "UPDATE reports SET process = ?1";
    let more = json.replacen('{', "{\"more\": [1], ", 1);
    file.execute(change, [sealed(&more)]).unwrap();
    assert_eq!(nodes(&store), [report(1, 5)]);
    for other in [json.replace("\"pepper\"", "\"current\""), "7".to_owned()] {
        file.execute(change, [sealed(&other)]).unwrap();
        assert_eq!(nodes(&store)[0].process, None, "{other}");
    }
}

/// A long report allowance ends with the history: no read of the restored store confirms a node of the history
/// before. Fails if each receipt after a restore states the allowance.
#[test]
fn the_entry_of_a_replaced_history_has_no_more_than_the_shortest_allowance() {
    let desk = Desk::new();
    let store = desk.store();
    wait(desk.node(store.clone()).create(&admin(), reader("a"))).unwrap();
    let long = NodeReport {
        lease: hours(2),
        ..report(1, 1)
    };
    wait(store.report(long)).unwrap();
    wait(store.start_new_epoch()).unwrap();
    let options = SqliteStore::options(desk.path()).allow_unrecovered();
    let found = nodes(&wait(options.open()).unwrap());
    assert_eq!((found.len(), found[0].lease), (1, Duration::from_secs(70)));
}

#[test]
fn a_restored_registry_is_marked_as_incomplete() {
    let desk = Desk::new();
    let store = desk.store();
    let key = wait(desk.node(store.clone()).create(&admin(), reader("a"))).unwrap();
    for n in 1..=2 {
        let lease = hours(u32::try_from(n).unwrap());
        let report = NodeReport {
            lease,
            process: None,
            ..report(n, 1)
        };
        wait(store.report(report)).unwrap();
    }
    wait(store.backup(desk.at("backup.db"))).unwrap();
    wait(SqliteStore::restore(
        desk.at("backup.db"),
        desk.at("new.db"),
    ))
    .unwrap();
    let options = || SqliteStore::options(desk.at("new.db"));
    assert!(matches!(
        wait(options().open()),
        Err(OpenError::Unrecovered { .. })
    ));
    let restored = wait(options().allow_unrecovered().open()).unwrap();
    let found = nodes(&restored);
    assert_eq!(found.len(), 1);
    let label = found[0].label.as_ref().unwrap();
    assert_eq!(label.as_str(), "all nodes before the restore");
    assert_eq!((found[0].lease, found[0].applied), (hours(2), None));
    wait(restored.finish_recovery()).unwrap();

    // After a restore, no receipt is complete before the staleness bound has passed.
    let builder = Keyward::builder(restored.clone(), peppers()).registry(restored.clone());
    let keys = wait(builder.policy(policy()).clock(desk.clock.clone()).build()).unwrap();
    let receipt = wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let asked = wait(keys.confirmations(&receipt)).unwrap();
    assert!(!asked.is_complete() && asked.waiting().count() == 1);
    assert!(asked.waiting().all(|(node, _)| node.is_former));
    assert!(
        receipt.bound() > hours(2) - Duration::from_secs(60),
        "a node may have the longest bound of the history before"
    );
    desk.clock.advance(receipt.bound() * 2);
    assert!(wait(keys.confirmations(&receipt)).unwrap().is_complete());
    assert!(wait(restored.check_integrity()).unwrap().is_sound());
}

/// The entry for the nodes of a replaced history is in the store. No report needs it.
#[test]
fn a_damaged_entry_of_the_store_stops_no_report() {
    let desk = Desk::new();
    let store = desk.store();
    wait(desk.node(store.clone()).create(&admin(), reader("a"))).unwrap();
    wait(store.start_new_epoch()).unwrap();
    wait(store.finish_recovery()).unwrap();
    let [former] = &nodes(&store)[..] else {
        panic!("there is one entry for all nodes of the replaced history");
    };
    let damage = "UPDATE nodes SET lease = lease + 1";
    assert_eq!(sql(&desk.path()).execute(damage, []).unwrap(), 1);
    assert!(wait(store.report(report(1, 1))).unwrap());
    // If the entry were skipped, its nodes would look as if they were gone.
    let error = wait(store.nodes()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    wait(store.forget(former.node, 0)).unwrap();
    assert_eq!(nodes(&store), [report(1, 1)]);
}

#[test]
fn a_malformed_registry_names_its_file_and_starts_over_once_that_is_removed() {
    let desk = Desk::new();
    let store = desk.store();
    wait(desk.node(store.clone()).create(&admin(), reader("a"))).unwrap();
    assert!(wait(store.report(report(1, 1))).unwrap());
    drop(store);
    let registry = desk.at("keys.db-nodes");
    checkpoint(&registry);
    let mut bytes = fs::read(&registry).unwrap();
    bytes[..16].fill(0xff);
    fs::write(&registry, bytes).unwrap();

    let store = desk.store();
    for error in [
        wait(store.report(report(1, 2))).unwrap_err(),
        wait(store.nodes()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
        let text = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            text.contains("keys.db-nodes") && text.contains("remove this file"),
            "{text}"
        );
    }
    let faults = wait(store.check_integrity()).unwrap().registry;
    assert!(faults[0].contains("keys.db-nodes"), "{faults:?}");
    fs::remove_file(&registry).unwrap();
    assert!(wait(store.report(report(1, 2))).unwrap());
    // The lost registry may have had more nodes.
    let found = nodes(&store);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.contains(&report(1, 2)));
}

#[test]
fn a_new_epoch_and_a_salvaged_file_wait_for_the_longest_lease() {
    let desk = Desk::new();
    let store = desk.store();
    let long = NodeReport {
        lease: hours(2),
        process: None,
        ..report(1, 1)
    };
    wait(store.report(long)).unwrap();
    wait(SqliteStore::salvage(desk.path(), desk.at("new.db"))).unwrap();
    wait(store.start_new_epoch()).unwrap();
    for path in [desk.path(), desk.at("new.db")] {
        let options = SqliteStore::options(path).allow_unrecovered();
        let found = nodes(&wait(options.open()).unwrap());
        assert_eq!((found.len(), found[0].lease), (1, hours(2)), "{found:?}");
    }
}

/// The umask of most services removes the group's access from new files.
#[test]
fn the_files_next_to_a_shared_store_are_shared_too() {
    use std::os::unix::fs::PermissionsExt;

    let desk = Desk::new();
    drop(
        wait(
            SqliteStore::options(desk.path())
                .allow_group_access()
                .open(),
        )
        .unwrap(),
    );
    for end in ["-nodes", "-reserve"] {
        let meta = fs::metadata(desk.at(&format!("keys.db{end}"))).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o660, "{end}");
    }
}

/// A node that cannot report for a minute refuses every key. So a report must not wait for somebody's long
/// transaction on the store.
#[test]
fn a_node_keeps_verifying_while_somebody_holds_the_write_lock() {
    let desk = Desk::new();
    let options = SqliteStore::options(desk.path()).busy_timeout(Duration::from_millis(20));
    let store = wait(options.open()).unwrap();
    let builder = Keyward::builder(store.clone(), peppers()).registry(store.clone());
    let keys = wait(builder.policy(policy()).clock(desk.clock.clone()).build()).unwrap();
    let key = wait(keys.create(&admin(), reader("a"))).unwrap();
    wait(keys.sync()).unwrap();
    let other = sql(&desk.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..30 {
        desk.clock.advance(Duration::from_secs(5));
        wait(keys.sync()).unwrap();
        keys.verify(key.secret.expose(), &reading()).unwrap();
    }
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap_err();
    other.execute_batch("ROLLBACK").unwrap();
    wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
}

/// A sync waits for its report. With the busy timeout of the store, the sync would end too late to keep the node fresh.
#[test]
fn a_lock_on_the_registry_holds_up_no_sync() {
    let desk = Desk::new();
    let options = SqliteStore::options(desk.path()).busy_timeout(Duration::from_secs(86_400));
    let store = wait(options.open()).unwrap();
    let builder = Keyward::builder(store.clone(), peppers()).registry(store.clone());
    let keys = wait(builder.policy(policy()).clock(desk.clock.clone()).build()).unwrap();
    let key = wait(keys.create(&admin(), reader("a"))).unwrap();
    wait(keys.sync()).unwrap();
    let reported = nodes(&store)[0].clock;
    let other = sql(&desk.at("keys.db-nodes"));
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    desk.clock.advance(Duration::from_secs(11));
    wait(keys.sync()).unwrap();
    keys.verify(key.secret.expose(), &reading()).unwrap();
    let locked = wait(store.nodes()).unwrap_err();
    let said = keyward::WithSources(&locked).to_string();
    assert!(
        said.contains("keys.db-nodes is locked by another process"),
        "{said}"
    );
    other.execute_batch("ROLLBACK").unwrap();
    wait(keys.sync()).unwrap();
    assert!(nodes(&store)[0].clock > reported);
}

/// A service whose file was moved without its registry cannot know which processes still verify keys of the file.
#[test]
fn a_registry_that_was_lost_has_an_entry_for_all_missing_nodes() {
    let desk = Desk::new();
    let store = desk.store();
    wait(desk.node(store.clone()).create(&admin(), reader("a"))).unwrap();
    assert!(wait(store.report(report(1, 1))).unwrap());
    checkpoint(&desk.path());
    fs::copy(desk.path(), desk.at("moved.db")).unwrap();
    let moved = wait(SqliteStore::open(desk.at("moved.db"))).unwrap();
    for _ in 0..2 {
        let found = nodes(&moved);
        assert_eq!((found.len(), found[0].applied), (1, None), "{found:?}");
        assert!(found[0].is_former());
        assert!(found[0].lease.is_zero(), "no lease is known");
    }
    wait(moved.forget(nodes(&moved)[0].node, 1)).unwrap();
    assert!(nodes(&moved).is_empty());
    assert_eq!(nodes(&store), [report(1, 1)]);
}
