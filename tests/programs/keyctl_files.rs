//! Files that an operator protects, removes or copies: the store's folder, its log, and the pepper file.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Command, Stdio};

use rusqlite::config::DbConfig;

use super::keyctl::{DENIED, IN_PART, NO_ACCESS, Said, Shop, UNAVAILABLE, as_nobody, said};

/// Runs a command as a user who owns the files of the shop, but may not write its folder.
fn in_closed_folder(shop: &Shop, args: &[&str]) -> Said {
    let folder = shop.path("");
    let allow = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = shop.command(args);
    if is_root {
        for entry in fs::read_dir(&folder).unwrap() {
            chown(entry.unwrap().path(), Some(65_534), Some(65_534)).unwrap();
        }
        command = as_nobody(command.get_program());
        command.args(args).current_dir(&folder);
    }
    allow(if is_root { 0o755 } else { 0o500 });
    let said = said(command);
    allow(0o700);
    said
}

#[test]
fn a_file_in_a_folder_that_cannot_be_written_is_only_read_and_only_without_a_log() {
    let shop = Shop::new();
    shop.key("acme", "export", &[]);
    let list = ["list"];
    let only_read = ["list", "--allow-unrecovered"];
    let create = ["create", "another", "--tenant", "acme"];

    // The commits of the log cannot be read without the index that SQLite would have to create.
    let file = rusqlite::Connection::open(shop.path("keys.db")).unwrap();
    file.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .unwrap();
    file.execute_batch("UPDATE store SET one = 1").unwrap();
    drop(file);
    fs::remove_file(shop.path("keys.db-shm")).unwrap();
    assert!(fs::metadata(shop.path("keys.db-wal")).unwrap().len() > 0);
    for args in [&list[..], &only_read, &create, &["check"]] {
        let refused = in_closed_folder(&shop, args).ended(NO_ACCESS);
        assert!(refused.err.contains("name the copy"), "{refused:?}");
        assert!(
            !refused.err.contains("--allow-unrecovered"),
            "advice that does not help: {refused:?}"
        );
    }

    rusqlite::Connection::open(shop.path("keys.db"))
        .and_then(|file| file.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
        .unwrap();
    assert!(
        !shop.path("keys.db-wal").exists(),
        "the last connection removed it"
    );
    for args in [&list[..], &create] {
        let refused = in_closed_folder(&shop, args).ended(NO_ACCESS);
        assert!(refused.err.contains("--allow-unrecovered"), "{refused:?}");
    }
    let listed = in_closed_folder(&shop, &only_read).ended(0);
    assert!(listed.out.contains("export"), "{listed:?}");
    assert!(!listed.out.contains("another"), "{listed:?}");
}

#[test]
fn a_log_that_is_removed_under_a_process_is_named_by_each_command() {
    let shop = Shop::new();
    shop.key("acme", "export", &[]);
    let process = rusqlite::Connection::open(shop.path("keys.db")).unwrap();
    // Without a commit in it, the log is not missed.
    process.execute_batch("UPDATE store SET one = 1").unwrap();
    fs::remove_file(shop.path("keys.db-wal")).unwrap();
    for args in [
        &["list"][..],
        &["check"],
        &["salvage", "keys.db", "whole.db"],
    ] {
        let refused = shop.run(args).ended(UNAVAILABLE);
        assert!(
            refused
                .err
                .contains("-wal file of the store that was removed"),
            "{refused:?}"
        );
    }
    assert!(!shop.path("whole.db").exists());
}

/// Both commands read the store before either can write it.
#[test]
fn of_two_copies_that_are_prepared_at_the_same_time_one_is_refused() {
    let shop = Shop::new();
    let copies = ["keys.db.pepper", "copy.pepper"];
    fs::copy(shop.path(copies[0]), shop.path(copies[1])).unwrap();
    let before = fs::read(shop.path(copies[0])).unwrap();
    let other = rusqlite::Connection::open(shop.path("keys.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = |copy| {
        let args = ["pepper", "prepare", "--pepper-file", copy, "--wait", "1h"];
        let mut command = shop.command(&args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let running = copies.map(start);
    while copies
        .iter()
        .any(|copy| fs::read(shop.path(copy)).unwrap() == before)
    {
        std::thread::yield_now();
    }
    other.execute_batch("ROLLBACK").unwrap();
    let ended = running.map(|child| child.wait_with_output().unwrap());
    let mut codes = ended.each_ref().map(|output| output.status.code().unwrap());
    codes.sort_unstable();
    assert_eq!(codes, [0, IN_PART], "{ended:?}");
    let [later] = ended
        .iter()
        .filter(|output| !output.status.success())
        .collect::<Vec<_>>()[..]
    else {
        panic!("one of the commands ended later");
    };
    let error = String::from_utf8_lossy(&later.stderr);
    assert!(error.contains("prepared at the same time"), "{error}");
    assert!(error.contains("keep one of the two files"), "{error}");
}

/// A retired pepper of live keys: in the file for audit entries, or gone.
#[test]
fn each_state_of_a_pepper_that_keys_need_has_a_next_step_of_its_own() {
    let shop = Shop::new();
    let path = shop.path("keys.db.pepper");
    shop.key("acme", "idle", &[]);
    let shown = shop.run(&["pepper", "show", "--json"]).ended(0).document();
    let old = shown["pepper"].as_str().unwrap();
    for step in ["prepare", "rotate"] {
        shop.run(&["pepper", step]).ended(0);
    }
    let mut file: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let retire = || shop.run(&["pepper", "retire", old]).ended(DENIED).err;
    let live = retire();
    let peppers = file["peppers"].as_array_mut().unwrap();
    let entry = peppers.iter_mut().find(|pepper| pepper["id"] == old);
    entry.unwrap()["state"] = "audit".into();
    fs::write(&path, file.to_string()).unwrap();
    let audit = retire();
    let peppers = file["peppers"].as_array_mut().unwrap();
    peppers.retain(|pepper| pepper["id"] != old);
    fs::write(&path, file.to_string()).unwrap();
    let missing = retire();
    for (said, step) in [
        (&live, "move to the new pepper by themselves"),
        (&audit, "change its state in the file to live"),
        (&missing, "put back the pepper file that has it"),
    ] {
        assert!(said.contains("1 live key needs pepper"), "{said}");
        assert!(said.contains("revoke-many --tenant"), "{said}");
        let stated = [&live, &audit, &missing].map(|other| other.contains(step));
        assert_eq!(stated.iter().filter(|is| **is).count(), 1, "{step}");
        assert!(said.contains(step), "{said}");
    }
}

#[test]
fn init_on_a_small_disk_names_the_space_that_it_needs_and_leaves_no_file() {
    let shop = Shop::empty();
    let mut mounts = Command::new("unshare");
    mounts.args(["--map-root-user", "--mount"]);
    let allowed = Command::new("unshare")
        .args(mounts.get_args())
        .arg("true")
        .status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("left out: `unshare --map-root-user --mount` is not allowed here");
        return;
    }
    let script = "mount -t tmpfs -o size=2m tmpfs \"$1\" && cd \"$1\" && shift && \"$@\"; \
                  code=$?; ls -A; exit $code";
    let init = shop.command(&["init", "--tenant", "acme"]);
    mounts.args(["sh", "-c", script, "sh"]).arg(shop.path(""));
    mounts.arg(init.get_program()).args(init.get_args());
    mounts.env_remove("KEYWARD_STORE").stdin(Stdio::null());
    let refused = said(mounts).ended(DENIED);
    assert!(refused.err.contains("16 MiB"), "{refused:?}");
    assert_eq!(refused.out, "", "a file is left");
}
