//! `keyctl` for operators: nodes and their confirmations, changes of many keys, and a stdout without a reader.

use std::fs;
use std::io::{BufRead, BufReader, pipe};
use std::process::Stdio;
use std::time::Duration;

use keyward::node::NodeLabel;
use keyward::policy::{Policy, Propagation};
use keyward::store::SqliteStore;
use keyward::{Follow, Keyward, PepperFile, Timestamp, profiles};
use serde_json::json;
use support::wait;

use super::keyctl::{CORRUPT, DENIED, Said, Shop, USAGE, with_closed_stdout};
use super::keyctl_outcomes::provisions_two;

/// One hour, the bound of a node with an older policy than the store's.
pub(crate) const LONG: Duration = Duration::from_secs(3_600);

/// Starts a registered node of this process, with a policy of this version and bound.
pub(crate) fn node(shop: &Shop, version: u32, bound: Duration) -> Keyward {
    let spec = profiles::standard().with(|spec| {
        spec.version = version;
        spec.propagation = Propagation { bound };
    });
    let store = wait(SqliteStore::open(shop.path("keys.db"))).unwrap();
    let peppers = PepperFile::open(shop.path("keys.db.pepper")).unwrap();
    let builder = Keyward::builder(store.clone(), peppers.ring())
        .registry(store)
        .policy(Policy::new(spec).unwrap())
        .node_label(NodeLabel::new(format!("node of version {version}")).unwrap())
        .follow(Follow::Manual);
    wait(builder.build()).unwrap()
}

fn instant(value: &serde_json::Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// The policy of the store has a bound of 10 s, which `keyctl` reads. A process that was not deployed again has
/// a bound of an hour.
#[test]
fn a_revocation_states_the_longest_bound_of_the_registered_nodes_and_waits_for_them() {
    let shop = Shop::new();
    let older = node(&shop, 1, LONG);
    let newer = node(&shop, 2, Duration::from_secs(10));
    let [one, two] = ["one", "two"].map(|name| shop.key("acme", name, &[]).0);
    let revoke = |id: &str| ["revoke", id, "--reason", "lost", "--json"].map(str::to_owned);
    let args = revoke(&one);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let answer = shop.run(&args).ended(0).document();
    let stated = instant(&answer["no_later_than"]).since(instant(&answer["decided_at"]));
    assert!(stated >= LONG, "{answer}");

    let listed = shop.run(&["nodes", "--json"]).ended(0).documents();
    let mut labels: Vec<_> = listed.iter().map(|node| node["label"].clone()).collect();
    labels.sort_by_key(|label| label.to_string());
    assert_eq!(labels, ["node of version 1", "node of version 2"]);
    let leases: Vec<_> = listed
        .iter()
        .map(|node| node["lease_seconds"].as_u64())
        .collect();
    assert!(leases.contains(&Some(3_660)), "{listed:?}");
    let behind = |node: &serde_json::Value| node["applied"].as_u64() < node["head"].as_u64();
    assert!(listed.iter().all(behind), "neither has synced: {listed:?}");
    for value in listed.iter().map(|node| &node["accepts_until"]) {
        instant(value);
    }
    let table = shop.run(&["nodes"]).ended(0);
    assert_eq!(table.out.lines().count(), 1 + 2, "{table:?}");
    assert!(table.out.contains("node of version 2"), "{table:?}");

    // The revocation waits for the older node, and ends as soon as that node has applied it.
    wait(newer.sync()).unwrap();
    let mut command = shop.command(&["revoke", &two, "--reason", "lost", "--until-confirmed"]);
    let mut waits = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut err = BufReader::new(waits.stderr.take().unwrap()).lines();
    let revoked = err.next().unwrap().unwrap();
    assert!(revoked.contains("revoked key"), "{revoked}");
    let line = err.next().unwrap().unwrap();
    assert!(
        line.contains("waits for") && line.contains("node of version 1"),
        "{line}"
    );
    for node in [&older, &newer] {
        wait(node.sync()).unwrap();
    }
    let output = waits.wait_with_output().unwrap();
    assert!(output.status.success());
    let nodes = String::from_utf8(output.stdout).unwrap();
    assert_eq!(nodes.matches("applied").count(), 2, "{nodes}");
    let rest: Vec<_> = err.map(Result::unwrap).collect();
    assert!(
        rest.iter().any(|line| line.starts_with("confirmed")),
        "{rest:?}"
    );
}

#[test]
fn without_a_registered_node_there_is_nothing_to_list() {
    let shop = Shop::new();
    let none = shop.run(&["nodes"]).ended(0);
    assert!(
        none.out.is_empty() && none.err.contains("no process has registered"),
        "{none:?}"
    );
    shop.key("acme", "one", &[]);
    assert!(
        shop.run(&["nodes", "--json"]).ended(0).out.is_empty(),
        "keyctl itself is no node"
    );
    fs::remove_file(shop.path("keys.db.pepper")).unwrap();
    shop.run(&["nodes"]).ended(0);
}

/// Runs a command whose stdout is closed at the other end before it starts.
fn with_a_gone_reader(shop: &Shop, args: &[&str]) -> Said {
    let mut command = shop.command(args);
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let child = command
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The command holds the other end of the pipe too.
    drop(command);
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::new(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn no_key_is_created_if_its_secret_would_be_lost() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "first", &[]);
    let create = ["create", "export", "--tenant", "acme"];
    for args in [&create[..], &["rotate", &id]] {
        let refused = with_closed_stdout(&shop, args).ended(USAGE);
        assert!(refused.err.contains("no key was created"), "{refused:?}");

        let mut null = shop.command(args);
        null.stdout(Stdio::null());
        let refused = null
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(USAGE));

        let refused = with_a_gone_reader(&shop, args).ended(USAGE);
        assert!(refused.err.contains("nobody reads stdout"), "{refused:?}");
    }
    assert_eq!(shop.names(&[]), ["first"]);
    let before = shop.run(&["show", &id, "--json"]).ended(0).document();
    assert_eq!(before["succession"], json!(null));
    let init = ["init", "--tenant", "acme", "--store", "new.db"];
    let two = [&init, &["--policy", provisions_two(&shop)][..]].concat();
    with_closed_stdout(&shop, &two).ended(USAGE);
    assert!(!shop.path("new.db").exists());
    // The standard profile provisions no key.
    with_closed_stdout(&shop, &init).ended(0);
    let listed = ["list", "--tenant", "acme", "--store", "new.db"];
    shop.run(&listed).ended(0);
}

/// A command whose reader has gone ends as it does with a reader. One that only lists may end earlier.
#[test]
fn a_reader_that_has_seen_enough_changes_no_outcome() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "first", &[]);
    for args in [
        &["list"][..],
        &["list", "--json", "--all"],
        &["audit", "--json"],
        &["show", &id],
        &["stats"],
        &["schema"],
        &["check"],
        &["check", "--json"],
        &["audit", "--check"],
        &["retain"],
        &["purge", "--json"],
        &["prune-audit", "--before", "2020-01-01T00:00:00Z"],
        &["disable", &id, "--json"],
    ] {
        let quiet = with_a_gone_reader(&shop, args).ended(0);
        assert!(!quiet.err.contains("stdout"), "{quiet:?}");
    }
    assert_eq!(shop.names(&["--status", "disabled"]), ["first"]);
    shop.tamper("UPDATE rows SET seal = seal + 1 WHERE kind = 2");
    for args in [&["check"][..], &["check", "--json"]] {
        let corrupt = with_a_gone_reader(&shop, args).ended(CORRUPT);
        assert!(corrupt.err.contains("is corrupt"), "{corrupt:?}");
    }
}

#[test]
fn many_keys_are_revoked_only_if_their_number_is_confirmed() {
    let shop = Shop::new();
    let bob = ["--owner", "bob", "--owner-role", "developer"];
    for name in ["one", "two"] {
        shop.key("acme", name, &bob);
    }
    shop.key(
        "acme",
        "public",
        &[&bob[..], &["--class", "publishable"]].concat(),
    );
    shop.key("acme", "other", &[]);
    shop.key("acme/eu", "below", &bob);
    let revoke = |more: &[&str]| {
        let args = ["revoke-many", "--tenant", "acme", "--reason", "unused"];
        shop.run(&[&args, more].concat())
    };
    let missing = revoke(&["--yes"]).ended(USAGE);
    assert!(missing.err.contains("--owner"), "{missing:?}");
    revoke(&["--all", "--owner", "bob"]).ended(USAGE);
    revoke(&["--owner", "bob", "--yes", "--expect", "3"]).ended(USAGE);

    let unasked = revoke(&["--owner", "bob"]).ended(DENIED);
    assert!(unasked.err.contains("--expect 3"), "{unasked:?}");
    let wrong = revoke(&["--owner", "bob", "--expect", "2"]).ended(DENIED);
    assert!(
        wrong.err.contains("expected 2") && wrong.err.contains("found 3"),
        "{wrong:?}"
    );
    let counted = |more: &[&str]| {
        let dry = revoke(&[more, &["--dry-run", "--json"]].concat()).ended(0);
        dry.document()["matching"].as_u64().unwrap()
    };
    assert_eq!(counted(&["--owner", "bob"]), 3);
    assert_eq!(counted(&["--owner", "bob", "--class", "publishable"]), 1);
    assert_eq!(counted(&["--all"]), 4);
    assert_eq!(counted(&["--created-before", "2020-01-01T00:00:00Z"]), 0);
    assert_eq!(counted(&["--pepper", "none"]), 0);
    assert_eq!(
        shop.names(&["--status", "active"]).len(),
        5,
        "nothing was revoked so far"
    );

    let answer = revoke(&["--owner", "bob", "--expect", "3", "--json"])
        .ended(0)
        .document();
    assert_eq!(
        (&answer["ended"], &answer["tenant"]),
        (&json!(3), &json!("acme"))
    );
    assert!(instant(&answer["no_later_than"]) > instant(&answer["decided_at"]));
    assert_eq!(shop.names(&["--status", "active"]), ["other", "below"]);
}

#[test]
fn an_owner_and_a_tenant_end_with_their_keys() {
    let shop = Shop::new();
    let bob = ["--owner", "bob", "--owner-role", "developer"];
    shop.key("acme", "one", &bob);
    shop.key("acme/eu", "below", &bob);
    shop.key("acme", "other", &[]);
    shop.key("globex", "elsewhere", &[]);
    let remove = ["remove-owner", "bob", "--tenant", "acme"];
    let unasked = shop.run(&remove).ended(DENIED);
    assert!(unasked.err.contains("--expect 2"), "{unasked:?}");
    let removed = shop.run(&[&remove[..], &["--expect", "2", "--json"]].concat());
    assert_eq!(removed.ended(0).document()["ended"], 2);
    assert_eq!(shop.names(&["--status", "active"]), ["other", "elsewhere"]);

    let close = ["close-tenant", "--tenant", "acme"];
    let unasked = shop.run(&close).ended(DENIED);
    assert!(unasked.err.contains("this ends 1 live key;"), "{unasked:?}");
    shop.run(&[&close[..], &["--confirm", "Acme"]].concat())
        .ended(DENIED);
    assert_eq!(shop.names(&["--status", "active"]), ["other", "elsewhere"]);
    let closed = shop.run(&[&close[..], &["--confirm", "acme", "--json"]].concat());
    assert_eq!(closed.ended(0).document()["ended"], 1);
    assert_eq!(shop.names(&["--status", "active"]), ["elsewhere"]);
    shop.run(&["create", "new", "--tenant", "acme"])
        .ended(DENIED);

    let purged = shop.run(&["purge", "--json"]).ended(0).documents();
    let tenants: Vec<_> = purged.iter().map(|line| line["tenant"].clone()).collect();
    assert_eq!(tenants, ["acme", "acme/eu", "globex"]);
    let purged = shop.run(&["purge", "--tenant", "globex"]).ended(0);
    assert_eq!(purged.out, "globex  0 removed\n");
    let bound = ["--tenant", "globex", "--as", "eve", "--role", "admin"];
    shop.run(&[&["purge"], &bound[..]].concat()).ended(DENIED);
}

#[test]
fn an_error_at_the_start_is_one_line_with_a_next_step() {
    let shop = Shop::new();
    shop.tamper("PRAGMA user_version = 0");
    let reset = shop.run(&["list"]).ended(CORRUPT);
    assert_eq!(reset.err.lines().count(), 1, "{reset:?}");
    assert!(reset.err.contains("restore a backup"), "{reset:?}");
    let none = shop.run(&["list", "--store", "none.db"]);
    assert!(none.err.contains("keyctl init"), "{none:?}");
}
