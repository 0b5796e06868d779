//! Exit codes and messages of `keyctl`: each states what was done, and what the operator can do next.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use keyward::key::Digest;
use keyward::policy::{ProvisionOn, ProvisionRule};
use keyward::{ScopeSet, profiles};
use serde_json::json;
use support::wait;

use super::keyctl::{
    CORRUPT, DENIED, IN_PART, NOT_FOUND, Said, Shop, USAGE, commit_in_the_future, keeps_nothing,
    said, with_closed_stdout,
};
use super::keyctl_operating::{LONG, node};

/// Runs a command whose stdout is a full disk.
fn on_a_full_disk(shop: &Shop, args: &[&str]) -> Said {
    let mut command = shop.command(args);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::new(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Writes a policy that creates two keys with each tenant, and returns the name of its file.
pub(crate) fn provisions_two(shop: &Shop) -> &'static str {
    let given = |name: &str| ProvisionRule {
        on: ProvisionOn::Tenant,
        class: "secret".try_into().unwrap(),
        name: name.try_into().unwrap(),
        scopes: ScopeSet::parse(["reports:read"]).unwrap(),
    };
    let spec = profiles::standard().with(|spec| {
        spec.version += 1;
        for class in spec.classes.values_mut() {
            class
                .prefixes
                .retain(|environment, _| environment.as_str() == "live");
        }
        spec.provision = ["one", "two"].map(given).into();
    });
    fs::write(shop.path("two.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    "two.json"
}

/// Runs each command that the message names. Each prints the new secret of one key.
fn follow_advice(shop: &Shop, answer: &Said, lost: usize) {
    let advice = regex::Regex::new("keyctl (rotate \\w+ --immediate)").unwrap();
    let steps: Vec<_> = advice.captures_iter(&answer.err).collect();
    assert_eq!(steps.len(), lost, "{answer:?}");
    for step in steps {
        let args: Vec<_> = step[1].split(' ').collect();
        let rotated = shop.run(&args).ended(0);
        assert!(rotated.out.starts_with("sk_live_"), "{rotated:?}");
    }
}

/// Without the whole message, a key would stay valid unnoticed, or an old key would end unnoticed.
#[test]
fn if_a_secret_cannot_be_written_the_error_states_what_was_made_and_how_to_replace_it() {
    assert!(Path::new("/dev/full").exists());
    for json in [&[][..], &["--json"]] {
        let shop = Shop::empty();
        let policy = ["--policy", provisions_two(&shop)];
        let on =
            |args: &[&str]| on_a_full_disk(&shop, &[args, &policy, json].concat()).ended(IN_PART);
        let init = on(&["init", "--tenant", "acme"]);
        assert!(init.err.contains("set up keys.db"), "{init:?}");
        follow_advice(&shop, &init, 2);
        let create = on(&["create", "export", "--tenant", "globex"]);
        assert!(create.err.contains("of globex was created"), "{create:?}");
        follow_advice(&shop, &create, 3);
        let (old, _) = shop.key("acme", "old", &[]);
        let rotate = on(&["rotate", &old]);
        let shown = shop.run(&["show", &old, "--json"]).ended(0).out;
        let stated =
            regex::Regex::new(&format!("old key {old} works until ([0-9TZ:.-]+)")).unwrap();
        let stated = &stated.captures(&rotate.err).unwrap()[1];
        assert!(shown.contains(stated), "{rotate:?} {shown}");
        follow_advice(&shop, &rotate, 1);
    }
}

/// The signal of such a write would end the process without a message.
#[test]
fn a_secret_that_exceeds_the_file_size_limit_is_replaced_as_on_a_full_disk() {
    let shop = Shop::new();
    let out = File::create(shop.path("out")).unwrap();
    out.set_len(1 << 28).unwrap();
    let create = shop.command(&["create", "export", "--tenant", "acme"]);
    let mut shell = Command::new("sh");
    // 64 or 128 MiB, depending on the shell: enough for the store.
    shell.args(["-c", "ulimit -f 131072; exec \"$0\" \"$@\" >>out"]);
    shell.arg(create.get_program()).args(create.get_args());
    shell.current_dir(shop.path("")).env_remove("KEYWARD_STORE");
    let created = said(shell).ended(IN_PART);
    assert!(
        created.err.contains("cannot write to stdout"),
        "{created:?}"
    );
    follow_advice(&shop, &created, 1);
}

#[test]
fn help_that_is_not_printed_is_an_error() {
    let shop = Shop::empty();
    for args in [&["--help"][..], &["--version"], &["create", "--help"]] {
        let ended = on_a_full_disk(&shop, args).ended(IN_PART);
        assert!(ended.err.contains("cannot print"), "{ended:?}");
    }
}

#[test]
fn entries_that_were_removed_without_a_printed_result_are_no_reason_to_repeat() {
    for json in [&[][..], &["--json"]] {
        let shop = Shop::new();
        let policy = keeps_nothing(&shop);
        for tenant in ["acme", "globex"] {
            let (id, _) = shop.key(tenant, "export", &["--policy", policy]);
            shop.run(&["revoke", &id, "--reason", "lost"]).ended(0);
        }
        let on = |args: &[&str]| on_a_full_disk(&shop, &[args, json].concat()).ended(IN_PART);
        let stats = || shop.run(&["stats", "--json"]).ended(0).document();
        // Refuses one tenant, and removes the key of the other.
        commit_in_the_future(&shop, "acme");
        let purged = on(&["purge"]);
        assert!(purged.err.contains("removed 1 key of globex"), "{purged:?}");
        assert_eq!(stats()["removed"], 1);
        let before = stats()["audit"].as_u64().unwrap();
        let now = keyward::Clock::now(&keyward::clocks::SystemClock).to_string();
        let pruned = on(&["prune-audit", "--before", &now, "--tenant", "globex"]);
        let said = "audit entries of globex, whose trail ends with ";
        assert!(pruned.err.contains(said), "{pruned:?}");
        assert!(stats()["audit"].as_u64().unwrap() < before);
        let retained = on(&["retain", "--tenant", "globex"]);
        let said = "tenant globex: 0 keys and 0 audit entries removed: ";
        assert!(retained.err.contains(said), "{retained:?}");
        if json.is_empty() {
            continue;
        }
        let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let line = json!({ "sha256": digest, "name": "old", "tenant": "acme/eu" });
        fs::write(shop.path("keys.jsonl"), line.to_string()).unwrap();
        let imported = on(&["import", "keys.jsonl"]);
        assert!(imported.err.contains("with 1 key imported"), "{imported:?}");
    }
}

/// A closed stdout counts as `/dev/null`: the operator wants only the exit code.
#[test]
fn a_command_that_reads_ends_with_a_code_of_its_own_if_its_output_is_lost() {
    let shop = Shop::new();
    let (id, _) = shop.key("acme", "export", &[]);
    let _listed = node(&shop, 1, LONG);
    let show = ["show", &id];
    let revoke = ["revoke", &id, "--reason", "lost", "--dry-run"];
    let printing: [&[&str]; 10] = [
        &["list"],
        &show,
        &["audit"],
        &["audit", "--check"],
        &["nodes"],
        &["check"],
        &["stats"],
        &["schema"],
        &["pepper", "show"],
        &["retain", "--dry-run"],
    ];
    // For people, these commands print on stderr.
    let noting: [&[&str]; 2] = [
        &revoke,
        &[
            "revoke-many",
            "--tenant",
            "acme",
            "--all",
            "--reason",
            "lost",
            "--dry-run",
        ],
    ];
    let json: Vec<_> = (printing.iter().chain(&noting))
        .map(|args| [args, &["--json"][..]].concat())
        .collect();
    let json = json.iter().map(Vec::as_slice);
    for args in printing.into_iter().chain(json) {
        let full = on_a_full_disk(&shop, args).ended(IN_PART);
        assert!(full.err.contains("cannot write to stdout"), "{full:?}");
        let closed = with_closed_stdout(&shop, args).ended(0);
        assert_eq!(closed.out, "");
    }
    shop.tamper("UPDATE rows SET seal = seal + 1 WHERE kind = 2");
    for args in [["check"].as_slice(), &["list"]] {
        with_closed_stdout(&shop, args).ended(CORRUPT);
    }
    on_a_full_disk(&shop, &["check"]).ended(CORRUPT);
}

#[test]
fn a_mistake_in_the_arguments_sets_up_no_store() {
    let shop = Shop::empty();
    fs::write(shop.path("bad.json"), "{}").unwrap();
    shop.run(&["init", "--tenant", "no tenant"]).ended(USAGE);
    shop.run(&["init", "--policy", "bad.json"]).ended(USAGE);
    shop.run(&["init", "--command-id", ""]).ended(USAGE);
    assert!(!shop.path("keys.db").exists());
}

/// A tenant begins with its first key. No other command has anything to do in a tenant that the store lacks.
#[test]
fn a_tenant_that_the_store_lacks_is_not_found_and_its_first_key_is_announced() {
    let shop = Shop::new();
    let create = |tenant: &str| {
        let created = shop.run(&["create", "x", "--tenant", tenant, "--json"]);
        created.ended(0).document()["new_tenant"].clone()
    };
    assert_eq!([create("acme/eu"), create("acme/eu")], [true, false]);
    for args in [
        &["list"][..],
        &["audit"],
        &["audit", "--check"],
        &["purge"],
        &["retain"],
        &["prune-audit", "--before", "2020-01-01T00:00:00Z"],
        &["remove-owner", "bob", "--yes"],
        &["revoke-many", "--all", "--reason", "lost", "--yes"],
        &["close-tenant", "--confirm", "acne"],
        &["time", "repair"],
    ] {
        let none = shop
            .run(&[args, &["--tenant", "acne"]].concat())
            .ended(NOT_FOUND);
        assert!(none.err.contains("no such tenant"), "{none:?}");
    }
    let nobody = ["remove-owner", "nobody", "--tenant", "acme/eu", "--yes"];
    let nobody = shop.run(&nobody).ended(0);
    assert!(nobody.err.contains("check the name"), "{nobody:?}");
    // The tenant above has no key of its own.
    let close = [
        "close-tenant",
        "--tenant",
        "acme",
        "--confirm",
        "acme",
        "--json",
    ];
    assert_eq!(shop.run(&close).ended(0).document()["ended"], 2);
}

/// Such a command would do the same without the tenant, or for a principal that may do nothing.
#[test]
fn a_command_on_the_store_as_a_whole_refuses_a_tenant_and_a_principal() {
    let shop = Shop::new();
    shop.key("acme", "export", &[]);
    for args in [
        &["check"][..],
        &["stats"],
        &["nodes"],
        &["schema"],
        &["pepper", "show"],
        &["pepper", "prepare"],
        &["backup", "copy.db"],
        &["restore", "copy.db"],
        &["salvage", "keys.db", "copy.db"],
        &["migrate-store", "keys.db", "copy.db"],
        &["recover", "--trust-backup"],
        &["start-new-epoch", "--yes"],
        &["finish-upgrade", "--yes"],
        &["checkpoint"],
        &["vacuum"],
    ] {
        for more in [
            &["--tenant", "acme"][..],
            &["--tenant", "acne"],
            &["--as", "bob", "--role", "member"],
        ] {
            let refused = shop.run(&[args, more].concat()).ended(USAGE);
            assert!(refused.err.contains("leave out --tenant"), "{refused:?}");
        }
    }
    assert!(!shop.path("copy.db").exists());
    assert_eq!(shop.names(&[]), ["export"]);
}

/// The standard profile allows 100 active keys for each tenant.
#[test]
fn an_import_that_is_refused_in_part_says_so_and_sums_up_its_refusals() {
    let shop = Shop::new();
    let line = |at: usize| {
        let digest: Vec<_> = Digest::sha256(format!("old {at}")).as_bytes().to_vec();
        let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({ "sha256": sha256, "name": format!("old {at}"), "tenant": "acme" }).to_string()
    };
    let lines: Vec<_> = (0..150).map(line).collect();
    fs::write(shop.path("keys.jsonl"), lines.join("\n")).unwrap();
    let import = ["import", "keys.jsonl"];
    let refused = shop.run(&import).ended(IN_PART);
    assert_eq!(refused.out, "100 imported, 0 were here, 50 refused\n");
    let printed: Vec<_> = refused
        .err
        .lines()
        .filter(|line| line.contains("active keys"))
        .collect();
    assert_eq!(printed.len(), 4, "{refused:?}");
    assert!(
        printed[3].starts_with("47 more lines: tenant already has"),
        "{refused:?}"
    );
    assert!(
        refused
            .err
            .contains("refused 50 lines, and imported 100 keys"),
        "{refused:?}"
    );
    // Now nothing is imported, so that nothing is changed.
    let again = shop.run(&[&import[..], &["--json"]].concat()).ended(DENIED);
    let codes = again.documents();
    let codes = codes.iter().filter(|line| line["code"] == "cap-reached");
    assert_eq!(codes.count(), 50, "every refusal is in the JSON");
}

/// The lines before the one that cannot be read are imported.
#[test]
fn an_import_that_ends_at_a_line_says_how_many_keys_it_imported() {
    let shop = Shop::new();
    let line = |at: usize| {
        let sha256 = format!("{at:08x}{:056}", 0);
        json!({ "sha256": sha256, "name": "old", "tenant": "acme" }).to_string()
    };
    let lines: Vec<_> = (0..64).map(line).collect();
    fs::write(
        shop.path("keys.jsonl"),
        lines.join("\n") + "\n" + &"x".repeat(70_000),
    )
    .unwrap();
    let ended = shop.run(&["import", "keys.jsonl"]).ended(IN_PART);
    let said = "ended at line 65, with 64 keys imported";
    assert!(ended.err.contains(said), "{ended:?}");
    let again = shop.run(&["import", "keys.jsonl"]).ended(USAGE);
    assert!(again.err.contains("with 0 keys imported"), "{again:?}");
}

#[test]
fn a_bulk_command_is_finished_and_reported_when_it_is_repeated_under_its_id() {
    let shop = Shop::new();
    let bob = ["--owner", "bob", "--owner-role", "developer"];
    for name in ["one", "two"] {
        shop.key("acme", name, &bob);
    }
    let on = |args: &[&str]| shop.run(&[args, &["--tenant", "acme", "--json"]].concat());
    let revoke = ["revoke-many", "--reason", "unused", "--expect", "2"];
    let by_owner = [&revoke[..], &["--owner", "bob", "--command-id", "r-1"]].concat();
    let remove = ["remove-owner", "bob", "--expect", "1"];
    let remove = [&remove[..], &["--command-id", "o-1"]].concat();
    assert_eq!(on(&by_owner).ended(0).document()["ended"], 2);
    let again = on(&by_owner).ended(0).document();
    assert_eq!(
        (&again["done"], &again["ended"]),
        (&json!("revoked"), &json!(0))
    );
    // Later keys are no part of the repeated command.
    shop.key("acme", "three", &bob);
    on(&by_owner).ended(0);
    assert_eq!(shop.names(&["--status", "active"]), ["three"]);
    let other = [&revoke[..], &["--all", "--command-id", "r-1"]].concat();
    let reused = on(&other).ended(DENIED);
    assert!(reused.err.contains("command-id-reused"), "{reused:?}");
    let unnamed = [&revoke[..], &["--owner", "bob"]].concat();
    on(&unnamed).ended(DENIED);

    assert_eq!(on(&remove).ended(0).document()["ended"], 1);
    let again = shop
        .run(&[&remove[..], &["--tenant", "acme"]].concat())
        .ended(0);
    assert!(again.err.contains("earlier run"), "{again:?}");
    assert!(!again.err.contains("check the name"), "{again:?}");
}

#[test]
fn a_fault_of_one_tenant_keeps_purge_and_prune_audit_from_no_other() {
    let shop = Shop::new();
    let policy = keeps_nothing(&shop);
    for tenant in ["acme", "globex"] {
        let (id, _) = shop.key(tenant, "export", &["--policy", policy]);
        shop.run(&["revoke", &id, "--reason", "lost"]).ended(0);
    }
    commit_in_the_future(&shop, "acme");
    let purged = shop.run(&["purge"]).ended(IN_PART);
    assert_eq!(purged.out, "globex  1 removed\n");
    assert!(purged.err.contains("tenant acme: "), "{purged:?}");
    let alone = ["purge", "--tenant", "acme"];
    shop.run(&alone).ended(DENIED);
    shop.tamper("UPDATE audit SET seal = seal + 1 WHERE tenant = 'acme'");
    let now = keyward::Clock::now(&keyward::clocks::SystemClock).to_string();
    let pruned = shop.run(&["prune-audit", "--before", &now]).ended(CORRUPT);
    assert!(pruned.err.contains("audit trail of acme"), "{pruned:?}");
    assert!(
        pruned.out.starts_with("globex  ") && !pruned.out.contains("globex  0"),
        "{pruned:?}"
    );
}

#[test]
fn check_names_what_another_program_added_to_the_file() {
    for (added, named, removed) in [
        (
            "CREATE TRIGGER t AFTER INSERT ON rows BEGIN DELETE FROM audit; END",
            "trigger \"t\" of table \"rows\"",
            "DROP TRIGGER t",
        ),
        (
            "CREATE VIEW v AS SELECT * FROM rows",
            "view \"v\"",
            "DROP VIEW v",
        ),
        ("CREATE TABLE mine (x)", "table \"mine\"", "DROP TABLE mine"),
        (
            "CREATE UNIQUE INDEX i ON rows (name)",
            "index \"i\" of table \"rows\"",
            "DROP INDEX i",
        ),
    ] {
        let shop = Shop::new();
        shop.key("acme", "one", &[]);
        shop.tamper(added);
        let checked = shop.run(&["check"]).ended(CORRUPT);
        assert!(checked.out.contains(named), "{checked:?}");
        assert!(checked.out.contains("1 fault\n"), "{checked:?}");
        shop.run(&["backup", "copy.db", "--verify"]).ended(CORRUPT);
        shop.tamper(removed);
        shop.tamper("ANALYZE");
        shop.run(&["check"]).ended(0);
    }
    // A later build may have added a table, but no trigger.
    let shop = Shop::new();
    shop.tamper("PRAGMA user_version = 65538; CREATE TABLE later (x)");
    shop.run(&["check"]).ended(0);
}

/// No later attempt succeeds before an operator acts, so the command must not wait for the nodes.
#[test]
fn waiting_for_the_nodes_ends_when_the_store_goes_back_in_time() {
    let shop = Shop::new();
    let _waited_for = node(&shop, 1, LONG);
    let (id, _) = shop.key("acme", "first", &[]);
    shop.run(&["checkpoint"]).ended(0);
    fs::copy(shop.path("keys.db"), shop.path("older.db")).unwrap();
    let mut command = shop.command(&["revoke", &id, "--reason", "lost", "--until-confirmed"]);
    let mut waits = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut err = BufReader::new(waits.stderr.take().unwrap()).lines();
    let waiting = err
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains("waits for"));
    assert!(waiting.is_some());
    for end in ["", "-wal", "-shm"] {
        let [from, to] = ["keys.db", "lost.db"].map(|name| shop.path(&format!("{name}{end}")));
        if from.exists() {
            fs::rename(from, to).unwrap();
        }
    }
    fs::rename(shop.path("older.db"), shop.path("keys.db")).unwrap();
    let rest: Vec<_> = err.map(Result::unwrap).collect();
    assert_ne!(waits.wait().unwrap().code(), Some(0));
    assert!(
        rest.iter().any(|line| line.contains("went back in time")),
        "{rest:?}"
    );
}

#[test]
fn nodes_and_check_report_a_store_that_went_back_in_time() {
    let shop = Shop::new();
    shop.key("acme", "first", &[]);
    shop.run(&["checkpoint"]).ended(0);
    fs::copy(shop.path("keys.db"), shop.path("older.db")).unwrap();
    shop.key("acme", "second", &[]);
    let follower = node(&shop, 1, LONG);
    wait(follower.sync()).unwrap();
    drop(follower);
    let sound = shop.run(&["nodes", "--json"]).ended(0).document();
    assert_eq!(sound["store_went_back"], false, "{sound}");
    shop.run(&["check"]).ended(0);
    for end in ["-wal", "-shm"] {
        let _ = fs::remove_file(shop.path(&format!("keys.db{end}")));
    }
    fs::copy(shop.path("older.db"), shop.path("keys.db")).unwrap();

    let listed = shop.run(&["nodes"]).ended(0);
    for part in ["node of version 1", "went back in time", "start-new-epoch"] {
        assert!(listed.err.contains(part), "{part}: {listed:?}");
    }
    let listed = shop.run(&["nodes", "--json"]).ended(0).document();
    assert_eq!(listed["store_went_back"], true, "{listed}");
    let checked = shop.run(&["check"]).ended(CORRUPT);
    assert!(checked.err.contains("went back in time"), "{checked:?}");
    let create = ["--tenant", "acme", "create", "third", "--owned-by-tenant"];
    let refused = shop.run(&create).ended(DENIED);
    assert!(refused.err.contains("went back in time"), "{refused:?}");
    shop.run(&["list"]).ended(0);

    // A node of the lost epoch proves nothing about the new one.
    shop.run(&["start-new-epoch", "--yes"]).ended(0);
    let listed = shop.run(&["nodes", "--allow-unrecovered"]).ended(0);
    assert!(!listed.err.contains("went back"), "{listed:?}");
}

#[test]
fn advice_leads_on() {
    let shop = Shop::new();
    shop.key("acme", "first", &[]);
    for args in [
        &["restore", "none.db", "--store", "new.db"][..],
        &["salvage", "none.db", "new.db"],
        &["migrate-store", "none.db", "new.db"],
    ] {
        let none = shop.run(args).ended(NOT_FOUND);
        assert!(
            none.err.contains("none.db does not exist") && !none.err.contains("init"),
            "{none:?}"
        );
    }
    let exported = shop.run(&["audit", "--json", "--all"]).ended(0);
    fs::write(shop.path("trail.jsonl"), exported.out).unwrap();
    shop.run(&["backup", "copy.db"]).ended(0);
    let restored = ["--store", "new.db", "--pepper-file", "keys.db.pepper"];
    let on = |args: &[&str]| shop.run(&[args, &restored].concat());
    on(&["restore", "copy.db"]).ended(0);
    // The trail may be that of the backup, so only the operator knows that nothing was revoked.
    let replay = [
        "recover",
        "--replay-file",
        "trail.jsonl",
        "--trust-unchanged",
    ];
    let refused = on(&replay).ended(DENIED);
    assert!(refused.err.contains("--trust-backup"), "{refused:?}");
    on(&["recover", "--trust-backup"]).ended(0);

    fs::rename(shop.path("keys.db.pepper"), shop.path("pepper")).unwrap();
    let lacks = shop.run(&["list"]).ended(NOT_FOUND);
    assert!(
        lacks.err.contains("--pepper-file") && !lacks.err.contains("init"),
        "{lacks:?}"
    );
    let check = shop.run(&["check"]).ended(0);
    assert!(check.out.contains("not checked"), "{check:?}");
    let check = shop.run(&["check", "--json"]).ended(0).document();
    assert_eq!(check["peppers_compared"], false);
    let compared = ["check", "--json", "--pepper-file", "pepper"];
    assert_eq!(
        shop.run(&compared).ended(0).document()["peppers_compared"],
        true
    );
}

#[test]
fn the_schema_is_a_document_in_json() {
    let shop = Shop::empty();
    let document = shop
        .run(&["schema", "--json", "--schema", "mine"])
        .ended(0)
        .document();
    let sql = shop.run(&["schema", "--schema", "mine"]).ended(0);
    assert_eq!(
        document["sql"].as_str().unwrap().trim_end(),
        sql.out.trim_end()
    );
    assert_eq!(document["schema"], "mine");
}
