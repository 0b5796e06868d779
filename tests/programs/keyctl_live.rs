//! Commands that ask about the live nodes of the store: the nodes' builds, peppers and reports.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use keyward::clocks::SystemClock;
use keyward::pepper::PepperId;
use keyward::store::{NodeId, NodeProcess, NodeRegistry, NodeReport, SqliteStore};
use keyward::{Clock, Timestamp};
use serde_json::{Value, json};
use support::{process, wait};

use super::keyctl::{CORRUPT, DENIED, IN_PART, Said, Shop};

/// The reports of one live node of a shop.
struct LiveNode {
    store: SqliteStore,
    beat: u64,
}

impl LiveNode {
    fn of(shop: &Shop) -> Self {
        let store = wait(SqliteStore::open(shop.path("keys.db"))).unwrap();
        Self { store, beat: 0 }
    }

    fn report(&mut self, process: Option<NodeProcess>) {
        self.report_at(1, SystemClock.now(), process);
    }

    fn report_at(&mut self, node: u128, clock: Timestamp, process: Option<NodeProcess>) {
        self.beat += 1;
        let report = NodeReport {
            node: NodeId::from_u128(node),
            label: Some("shop-1".parse().unwrap()),
            applied: None,
            lease: Duration::from_secs(3600),
            clock,
            beat: self.beat,
            process,
        };
        assert!(wait(self.store.report(report)).unwrap());
    }

    /// Reports a ring whose first pepper is the current one.
    fn report_ring(&mut self, peppers: &[&str]) {
        self.report(Some(ring(peppers)));
    }
}

fn ring(peppers: &[&str]) -> NodeProcess {
    let peppers: Vec<_> = peppers
        .iter()
        .map(|id| PepperId::new(*id).unwrap())
        .collect();
    NodeProcess {
        pepper: peppers[0].clone(),
        peppers,
        ..process()
    }
}

/// Checks that a command was refused because of a live node, with this reason.
fn refused(said: &Said, reason: &str) {
    for part in ["shop-1", "--yes", reason] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
}

fn prepare(shop: &Shop) -> String {
    let prepared = shop.run(&["pepper", "prepare", "--json"]).ended(0);
    prepared.document()["pepper"].as_str().unwrap().to_owned()
}

#[test]
fn a_pepper_is_rotated_and_retired_only_once_every_live_node_has_the_ring() {
    let shop = Shop::new();
    let mut node = LiveNode::of(&shop);
    let shown = shop.run(&["pepper", "show", "--json"]).ended(0);
    let old = shown.document()["pepper"].as_str().unwrap().to_owned();
    let new = prepare(&shop);
    let show = || shop.run(&["pepper", "show"]).ended(0).out;
    let prepared = show();

    // A node that stopped long ago is not waited for.
    let long_ago = SystemClock.now().saturating_sub(Duration::from_secs(7200));
    node.report_at(2, long_ago, Some(ring(&[&old])));
    let rotate = ["pepper", "rotate"];
    node.report_ring(&[&old]);
    refused(
        &shop.run(&rotate).ended(DENIED),
        &format!("lacks pepper {new}"),
    );
    node.report(None);
    refused(&shop.run(&rotate).ended(DENIED), "peppers are unknown");
    assert_eq!(show(), prepared, "a refused command changes nothing");
    node.report_ring(&[&old, &new]);
    shop.run(&rotate).ended(0);

    let rotated = show();
    let retire = ["pepper", "retire", &old];
    let creates = format!("creates keys with pepper {old}");
    refused(&shop.run(&retire).ended(DENIED), &creates);
    node.report_ring(&["elsewhere", &old]);
    refused(
        &shop.run(&retire).ended(DENIED),
        &format!("lacks pepper {new}"),
    );
    node.report(None);
    refused(&shop.run(&retire).ended(DENIED), "peppers are unknown");
    let current = shop.run(&["pepper", "retire", &new]).ended(DENIED);
    assert!(!current.err.contains("shop-1"), "{current:?}");
    assert_eq!(show(), rotated, "a refused command changes nothing");
    node.report_ring(&[&new, &old]);
    shop.run(&retire).ended(0);

    let newest = prepare(&shop);
    shop.run(&rotate).ended(DENIED);
    shop.run(&["pepper", "rotate", "--yes"]).ended(0);
    shop.run(&["pepper", "retire", &new]).ended(DENIED);
    shop.run(&["pepper", "retire", &new, "--yes"]).ended(0);
    assert!(show().contains(&newest));
}

#[test]
fn nodes_of_one_name_are_waited_for_under_that_name_with_their_number() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &[]);
    let mut node = LiveNode::of(&shop);
    for number in [1, 2] {
        node.report_at(number, SystemClock.now(), None);
    }
    let mut command = shop.command(&["revoke", &id, "--reason", "lost", "--until-confirmed"]);
    let mut waits = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(waits.stderr.take().unwrap()).lines();
    let revoked = lines.next().unwrap().unwrap();
    assert!(revoked.contains("revoked key"), "{revoked}");
    let waiting = lines.next().unwrap().unwrap();
    assert!(
        waiting.contains("waits for 2 nodes named shop-1, at most"),
        "{waiting}"
    );
    waits.kill().unwrap();
    waits.wait().unwrap();
}

#[test]
fn an_upgrade_is_finished_only_once_no_live_node_would_be_stopped() {
    let shop = Shop::new();
    let mut node = LiveNode::of(&shop);
    let finish = ["finish-upgrade"];
    let before = NodeProcess {
        version: "0.0.9".to_owned(),
        tables: 0,
        ..process()
    };
    node.report(Some(before.clone()));
    refused(&shop.run(&finish).ended(DENIED), "version 0.0.9");
    node.report(None);
    refused(&shop.run(&finish).ended(DENIED), "version unknown");
    node.report(Some(process()));
    shop.run(&finish).ended(0);
    node.report(Some(before));
    shop.run(&["finish-upgrade", "--yes"]).ended(0);
}

#[test]
fn the_list_of_nodes_has_their_builds_starts_and_peppers() {
    let shop = Shop::new();
    let mut node = LiveNode::of(&shop);
    node.report_ring(&["p2", "p1"]);
    let listed = shop.run(&["nodes", "--json"]).ended(0).document();
    let expected = [
        ("version", json!("0.1.0")),
        ("tables", json!(1)),
        ("started", json!(process().started)),
        ("bound_seconds", json!(10)),
        ("pepper", json!("p2")),
        ("peppers", json!(["p2", "p1"])),
    ];
    for (field, value) in &expected {
        assert_eq!(&listed[field], value, "{field}");
    }
    let table = shop.run(&["nodes"]).ended(0).out;
    let started = process().started.to_string();
    for part in ["VERSION", "0.1.0", "p2, p1", &started] {
        assert!(table.contains(part), "{part}: {table}");
    }
    node.report(None);
    let listed = shop.run(&["nodes", "--json"]).ended(0).document();
    for (field, _) in expected
        .iter()
        .filter(|(field, _)| *field != "bound_seconds")
    {
        assert_eq!(listed[field], Value::Null, "{field}");
    }
    shop.run(&["nodes"]).ended(0);
}

#[test]
fn a_change_whose_nodes_cannot_be_read_states_that_its_time_is_not_known() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "one", &[]);
    LiveNode::of(&shop).report(None);
    let file = rusqlite::Connection::open(shop.path("keys.db-nodes")).unwrap();
    file.execute("UPDATE reports SET seal = seal + 1", [])
        .unwrap();
    let revoked = shop.run(&["revoke", &id, "--reason", "lost"]).ended(0);
    let unknown = "at a time that is not known, because the node registry cannot be read";
    assert!(revoked.err.contains(unknown), "{revoked:?}");
}

/// The store is whole, so the advice must not be to restore a backup.
#[test]
fn a_damaged_registry_is_no_damage_of_the_store() {
    let shop = Shop::new();
    shop.key("acme", "one", &[]);
    LiveNode::of(&shop).report(None);
    let file = rusqlite::Connection::open(shop.path("keys.db-nodes")).unwrap();
    file.execute("UPDATE reports SET seal = seal + 1", [])
        .unwrap();
    drop(file);
    let checked = shop.run(&["check"]).ended(CORRUPT);
    assert!(checked.out.contains("live keys of pepper"), "{checked:?}");
    let text = checked.err;
    assert!(
        text.contains("keys.db-nodes") && text.contains("remove this file"),
        "{text}"
    );
    assert!(!text.contains("keys.db is corrupt"), "{text}");
    let checked = shop.run(&["check", "--json"]).ended(CORRUPT).document();
    assert_eq!(checked["faults"], json!([]), "{checked}");
    assert_eq!(
        checked["registry"].as_array().unwrap().len(),
        1,
        "{checked}"
    );

    fs::write(shop.path("keys.db-nodes"), [7; 8192]).unwrap();
    let text = shop.run(&["check"]).ended(CORRUPT).err;
    assert!(!text.contains("keys.db is corrupt"), "{text}");
}

/// Another process locks the registry, so that no attempt to read it succeeds.
#[test]
fn waiting_for_nodes_that_cannot_be_read_ends() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "one", &[]);
    LiveNode::of(&shop).report(None);
    let file = rusqlite::Connection::open(shop.path("keys.db-nodes")).unwrap();
    file.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; UPDATE reports SET beat = beat; COMMIT",
    )
    .unwrap();
    let args = [
        "revoke",
        &id,
        "--reason",
        "lost",
        "--until-confirmed",
        "--wait",
        "1s",
    ];
    let ended = shop.run(&args).ended(IN_PART);
    for part in ["revoked key", "not confirmed", "keyctl nodes"] {
        assert!(ended.err.contains(part), "{part}: {ended:?}");
    }
}
