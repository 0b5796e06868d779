//! A file that goes back in time under a running node, for example because an operator copies an older copy back.
//! The file keeps its epoch, so its history lacks commits that the node has applied.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use keyward::audit::AuditEntry;
use keyward::command::{Created, DeleteKey};
use keyward::entropy::SeededEntropy;
use keyward::node::{OnStale, Replica};
use keyward::recovery::{Recovery, RecoveryError};
use keyward::store::{
    AuditQuery, Cursor, KeyQuery, KeyStore, LoadRequest, NodeRegistry, SqliteStore, StoreError,
};
use keyward::{
    CommandError, Follow, Keyward, KeywardBuilder, Need, Reason, VerifyError, WithSources,
};
use keyward_conformance::{Call, Fault, FaultyStore};

use crate::sqlite::{Desk, checkpoint, policy};
use support::*;

const ENDS: [&str; 3] = ["", "-wal", "-shm"];

/// The whole text of an error with its sources.
fn chain(error: &(impl std::error::Error + 'static)) -> String {
    WithSources(error).to_string()
}

impl Desk {
    /// Copies the store's file, as of now.
    fn save(&self, name: &str) {
        checkpoint(&self.path());
        fs::copy(self.path(), self.at(name)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        for end in ENDS {
            let from = self.at(&format!("{from}{end}"));
            if from.exists() {
                fs::rename(from, self.at(&format!("{to}{end}"))).unwrap();
            }
        }
    }

    /// Moves the store's file away, and puts a copy in its place.
    fn put_back(&self, name: &str) {
        self.rename("keys.db", "lost.db");
        fs::copy(self.at(name), self.path()).unwrap();
    }

    fn trail(&self, name: &str) -> Vec<AuditEntry> {
        let store = wait(SqliteStore::open(self.at(name))).unwrap();
        let query = AuditQuery::all().with(|query| query.limit = 1000.try_into().unwrap());
        let page = wait(store.audit(&query)).unwrap();
        page.rows.into_iter().map(|row| row.entry).collect()
    }
}

/// A node with a key that is revoked, and a key that is not. The copy `saved.db` has neither commit of the node
/// after the creation of both keys.
struct Scene {
    desk: Desk,
    keys: Keyward,
    revoked: Created,
    kept: Created,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let keys = desk.keys();
        let [revoked, kept] =
            ["revoked", "kept"].map(|name| wait(keys.create(&admin(), reader(name))).unwrap());
        wait(keys.sync()).unwrap();
        desk.save("saved.db");
        wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
        Self {
            desk,
            keys,
            revoked,
            kept,
        }
    }

    /// Commits to the file through another process, so that its head moves on.
    fn fill(&self, count: usize) {
        let other = self.desk.keys();
        for number in 0..count {
            wait(other.create(&admin(), reader(&format!("filler {number}")))).unwrap();
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        wait(self.keys.sync())
    }

    fn diverged(&self) -> Option<Cursor> {
        self.keys.freshness().diverged
    }

    /// Checks that the node accepts no key on any path, and executes no command.
    fn refuses_everything(&self) {
        let error = chain(&self.sync().unwrap_err());
        for part in ["went back in time", "start-new-epoch", "keyctl recover"] {
            assert!(error.contains(part), "{error}");
        }
        for key in [&self.revoked, &self.kept] {
            let key = key.secret.expose();
            let refused = self.keys.verify(key, &reading()).unwrap_err();
            assert!(matches!(refused, VerifyError::Stale { .. }), "{refused:?}");
            let fresh = wait(self.keys.verify_fresh(key, &reading())).unwrap_err();
            assert_eq!(fresh, VerifyError::StoreUnavailable);
        }
        let command = wait(self.keys.create(&admin(), reader("new"))).unwrap_err();
        let narrows = wait(self.keys.revoke(&admin(), self.kept.id, Reason::Lost)).unwrap_err();
        for refused in [command, narrows] {
            let CommandError::Store(error) = refused else {
                panic!("{refused:?}");
            };
            let error = chain(&error);
            assert!(error.contains("went back in time"), "{error}");
        }
    }

    fn works_again(&self) {
        self.sync().unwrap();
        assert_eq!(self.diverged(), None);
        let verify = |key: &Created| self.keys.verify(key.secret.expose(), &reading());
        verify(&self.kept).unwrap();
        let refused = verify(&self.revoked).unwrap_err();
        assert!(
            matches!(refused, VerifyError::Revoked { .. }),
            "{refused:?}"
        );
    }
}

#[test]
fn a_file_that_was_copied_back_is_refused_until_it_is_recovered() {
    for goes_on in [false, true] {
        let scene = Scene::new();
        scene.sync().unwrap();
        let known = scene.keys.freshness().cursor;
        scene.desk.put_back("saved.db");
        for round in 0..20 {
            scene.refuses_everything();
            assert_eq!(scene.diverged(), known);
            scene.desk.clock.advance(Duration::from_secs(1));
            // The head of the copy passes the node's position.
            if goes_on && round == 10 {
                scene.fill(5);
            }
        }
        let store = scene.desk.store();
        wait(store.start_new_epoch()).unwrap();
        let waits = chain(&scene.sync().unwrap_err());
        assert!(waits.contains("keyctl recover"), "{waits}");
        let options = SqliteStore::options(scene.desk.path()).allow_unrecovered();
        let opened = wait(options.open()).unwrap();
        let operator = scene.desk.node(opened.clone());
        let entries = scene.desk.trail("lost.db");
        let is_whole = true;
        let replayed = wait(operator.recover(Recovery::Replay { entries, is_whole }));
        if goes_on {
            // The lost trail lacks the newest commits of the copy, so the trail proves nothing about these
            // commits.
            assert!(matches!(replayed, Err(RecoveryError::ForeignTrail)));
            wait(operator.recover(Recovery::DisableAll)).unwrap();
            wait(opened.finish_recovery()).unwrap();
            scene.sync().unwrap();
            for key in [&scene.revoked, &scene.kept] {
                let verified = scene.keys.verify(key.secret.expose(), &reading());
                let refused = verified.unwrap_err();
                assert!(
                    matches!(refused, VerifyError::Disabled { .. }),
                    "{refused:?}"
                );
            }
            continue;
        }
        assert_eq!(replayed.unwrap().revoked, 1);
        wait(opened.finish_recovery()).unwrap();
        scene.works_again();
    }
}

#[test]
fn the_right_file_that_comes_back_is_used_again() {
    let scene = Scene::new();
    scene.sync().unwrap();
    scene.desk.put_back("saved.db");
    scene.refuses_everything();
    scene.desk.rename("keys.db", "wrong.db");
    scene.desk.rename("lost.db", "keys.db");
    scene.works_again();
}

/// The node commits to the wrong file before it notices. This commit must not appear in the index of the right
/// file.
#[test]
fn a_commit_to_the_wrong_file_is_gone_with_it() {
    let scene = Scene::new();
    scene.sync().unwrap();
    scene.desk.put_back("saved.db");
    scene.fill(3);
    let wrong = wait(scene.keys.create(&admin(), reader("wrong"))).unwrap();
    scene.refuses_everything();
    scene.desk.rename("keys.db", "wrong.db");
    scene.desk.rename("lost.db", "keys.db");
    scene.works_again();
    let refused = scene.keys.verify(wrong.secret.expose(), &reading());
    assert_eq!(refused.unwrap_err(), VerifyError::Unknown);
}

#[test]
fn a_read_for_one_key_notices_before_the_next_sync() {
    for head_moves_on in [false, true] {
        let scene = Scene::new();
        scene.sync().unwrap();
        scene.desk.put_back("saved.db");
        if head_moves_on {
            scene.fill(3);
        }
        let key = scene.revoked.secret.expose();
        let refused = wait(scene.keys.verify_fresh(key, &reading())).unwrap_err();
        assert_eq!(refused, VerifyError::StoreUnavailable, "{head_moves_on}");
        assert!(scene.diverged().is_some());
        scene.refuses_everything();
    }
}

#[test]
fn a_stale_node_reads_no_key_through_a_file_that_was_copied_back() {
    let scene = Scene::new();
    let builder = Keyward::builder(scene.desk.store(), peppers())
        .policy(policy())
        .clock(scene.desk.clock.clone())
        .on_stale(OnStale::ReadThrough);
    let keys = wait(builder.build()).unwrap();
    let verify = |key: &Created| wait(keys.verify_or_fetch(key.secret.expose(), &reading()));
    scene.desk.clock.advance(Duration::from_secs(60));
    verify(&scene.kept).unwrap();
    scene.desk.put_back("saved.db");
    for _ in 0..3 {
        for key in [&scene.kept, &scene.revoked] {
            assert_eq!(verify(key).unwrap_err(), VerifyError::StoreUnavailable);
        }
        scene.desk.clock.advance(Duration::from_secs(60));
        assert!(wait(keys.sync()).is_err());
    }
}

/// The node has not read its own revocation back. A failover loses it, and other commits take its revision.
#[test]
fn a_lost_commit_of_the_node_itself_is_noticed() {
    for others in 0..3 {
        let scene = Scene::new();
        scene.desk.put_back("saved.db");
        scene.fill(others);
        scene.refuses_everything();
        assert!(scene.diverged().is_some(), "{others}");
    }
}

/// The file no longer has the changes after the node's cursor, but it has the commits around the node's own lost
/// revocation.
#[test]
fn a_lost_commit_of_the_node_itself_is_noticed_by_a_scan_of_all_rows() {
    let desk = Desk::new();
    let keys = desk.keys();
    let create = |name| wait(keys.create(&admin(), reader(name))).unwrap();
    let [revoked, kept, gone] = ["revoked", "kept", "gone"].map(create);
    wait(keys.sync()).unwrap();
    let (store, other) = (desk.store(), desk.keys());
    wait(other.revoke(&admin(), gone.id, Reason::Lost)).unwrap();
    wait(other.delete(&admin(), gone.id, DeleteKey::plain())).unwrap();
    let head = wait(store.stats()).unwrap().head;
    wait(store.compact(head.revision)).unwrap();
    drop((store, other));
    desk.save("saved.db");
    wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    desk.put_back("saved.db");
    let scene = Scene {
        desk,
        keys,
        revoked,
        kept,
    };
    scene.fill(3);
    scene.refuses_everything();
    scene.desk.rename("keys.db", "wrong.db");
    scene.desk.rename("lost.db", "keys.db");
    scene.works_again();
}

#[test]
fn a_file_that_was_copied_back_and_compacted_stays_refused() {
    let scene = Scene::new();
    scene.sync().unwrap();
    scene.desk.put_back("saved.db");
    scene.refuses_everything();
    scene.fill(5);
    let store = scene.desk.store();
    let other = scene.desk.keys();
    wait(other.revoke(&admin(), scene.kept.id, Reason::Lost)).unwrap();
    wait(other.delete(&admin(), scene.kept.id, DeleteKey::plain())).unwrap();
    let head = wait(store.stats()).unwrap().head;
    wait(store.compact(head.revision)).unwrap();
    for _ in 0..3 {
        scene.refuses_everything();
    }
}

/// Another process marks the file while this store has connections, with and without idle ones.
#[test]
fn a_file_that_is_marked_serves_no_open_store() {
    for warmed in [true, false] {
        let scene = Scene::new();
        let store = scene.desk.store();
        let acme = tenant("acme");
        let write = |name: &str| {
            let (_, commit) = support::raw::next(&tenant(name), keyward::store::Revision::ZERO);
            wait(store.commit(commit))
        };
        if warmed {
            write("before").unwrap();
            wait(store.load(&acme, &LoadRequest::none())).unwrap();
            wait(store.list(&KeyQuery::tenant(acme.clone(), at(START)))).unwrap();
        }
        wait(scene.desk.store().start_new_epoch()).unwrap();
        let listed = wait(store.list(&KeyQuery::tenant(acme.clone(), at(START)))).map(drop);
        let loaded = wait(store.load(&acme, &LoadRequest::none())).map(drop);
        let compacted = wait(store.compact(keyward::store::Revision(1))).map(drop);
        for refused in [listed, loaded, compacted] {
            let refused = chain(&refused.unwrap_err());
            assert!(refused.contains("keyctl recover"), "{refused}");
        }
        let refused = chain(&write("after").unwrap_err());
        assert!(refused.contains("keyctl recover"), "{refused}");
    }
}

impl Desk {
    fn builder(&self, registry: impl NodeRegistry) -> KeywardBuilder {
        Keyward::builder(self.store(), peppers())
            .policy(policy())
            .registry(registry)
            .clock(self.clock.clone())
    }

    fn registered(&self) -> Result<Keyward, keyward::BuildError> {
        wait(self.builder(self.store()).build())
    }
}

/// Receipts of the lost commits are never complete by the passing of time alone.
#[test]
fn a_receipt_is_not_complete_while_the_store_lacks_its_commit() {
    let desk = Desk::new();
    let keys = Arc::new(desk.registered().unwrap());
    let key = wait(keys.create(&admin(), reader("key"))).unwrap();
    desk.save("saved.db");
    let receipt = wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    desk.put_back("saved.db");
    assert!(wait(keys.sync()).is_err());
    desk.clock.advance(Duration::from_secs(3600));
    assert!(wait(keys.confirmations(&receipt)).is_err());
}

/// A process that only gives commands reads no feed. A commit of another process takes the revision of its
/// lost commit.
#[test]
fn a_process_without_an_index_notices_that_its_commit_is_lost() {
    for others in 0..3 {
        let desk = Desk::new();
        let keys = wait(desk.builder(desk.store()).follow(Follow::Never).build()).unwrap();
        let key = wait(keys.create(&admin(), reader("key"))).unwrap();
        desk.save("saved.db");
        let receipt = wait(keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
        desk.put_back("saved.db");
        for number in 0..others {
            let name = format!("filler {number}");
            wait(desk.keys().create(&admin(), reader(&name))).unwrap();
        }
        desk.clock.advance(Duration::from_secs(3600));
        for _ in 0..2 {
            let error = chain(&wait(keys.confirmations(&receipt)).unwrap_err());
            assert!(error.contains("went back in time"), "{others}: {error}");
        }
        let refused = wait(keys.create(&admin(), reader("new"))).unwrap_err();
        assert!(matches!(refused, CommandError::Store(_)), "{refused:?}");
        desk.rename("keys.db", "wrong.db");
        desk.rename("lost.db", "keys.db");
        assert!(wait(keys.confirmations(&receipt)).unwrap().is_complete());
        wait(keys.create(&admin(), reader("new"))).unwrap();
    }
}

/// The reports of a node went to the registry of the wrong server. So the right server's registry may take the
/// node for stopped.
#[test]
fn a_node_registers_with_the_right_server_before_it_accepts_keys_again() {
    let desk = Desk::new();
    let roll = FaultyStore::new(desk.store());
    let keys = wait(desk.builder(roll.clone()).build()).unwrap();
    let key = wait(keys.create(&admin(), reader("key"))).unwrap();
    let verify = || keys.verify(key.secret.expose(), &reading());
    desk.save("saved.db");
    wait(keys.create(&admin(), reader("later"))).unwrap();
    wait(keys.sync()).unwrap();
    desk.put_back("saved.db");
    wait(keys.sync()).unwrap_err();
    desk.rename("keys.db", "wrong.db");
    desk.rename("lost.db", "keys.db");
    roll.partition(true);
    assert!(wait(keys.sync()).is_err());
    assert!(matches!(verify().unwrap_err(), VerifyError::Stale { .. }));
    roll.partition(false);
    wait(keys.sync()).unwrap();
    verify().unwrap();
}

/// A node follows three servers in turn. The first lacks what the node has read, and the second only the node's
/// own newest commit, which the node has not read back.
#[test]
fn a_server_that_lacks_only_the_own_commit_does_not_end_the_state() {
    let desk = Desk::new();
    let keys = desk.keys();
    let create = |name| wait(keys.create(&admin(), reader(name))).unwrap();
    let revoked = create("revoked");
    desk.save("older.db");
    let kept = create("kept");
    wait(keys.sync()).unwrap();
    desk.save("newer.db");
    wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    desk.put_back("older.db");
    wait(keys.sync()).unwrap_err();
    desk.rename("keys.db", "wrong.db");
    fs::copy(desk.at("newer.db"), desk.path()).unwrap();
    let scene = Scene {
        desk,
        keys,
        revoked,
        kept,
    };
    for _ in 0..2 {
        scene.refuses_everything();
    }
    scene.desk.rename("keys.db", "wrong.db");
    scene.desk.rename("lost.db", "keys.db");
    scene.works_again();
}

/// The first reading of the registry fails. The next attempt follows at once.
#[test]
fn a_process_does_not_start_before_it_has_read_the_registry() {
    let desk = Desk::new();
    let keys = desk.registered().unwrap();
    desk.save("saved.db");
    wait(keys.create(&admin(), reader("key"))).unwrap();
    wait(keys.sync()).unwrap();
    desk.put_back("saved.db");
    let roll = FaultyStore::new(desk.store());
    let bound = Duration::from_secs(10);
    let replica = Replica::new(Arc::new(desk.store()), desk.clock.clone());
    let entropy = Arc::new(SeededEntropy::new(7));
    let replica = Arc::new(replica.with_registry(Arc::new(roll.clone()), entropy, bound, None));
    roll.next(Call::Nodes, [Fault::Unavailable]);
    for cause in ["reading", "went back in time", "went back in time"] {
        let error = chain(&wait(replica.sync()).unwrap_err());
        assert!(error.contains(cause), "{error}");
    }
    assert_eq!(replica.freshness().age, None);
}

/// A process that starts after the file went back has no memory. A node that is live has, and reports it.
#[test]
fn a_process_does_not_start_on_a_file_that_lacks_the_commits_of_a_live_node() {
    for reads_its_commit in [true, false] {
        let desk = Desk::new();
        let keys = desk.registered().unwrap();
        wait(keys.create(&admin(), reader("key"))).unwrap();
        wait(keys.sync()).unwrap();
        desk.save("saved.db");
        wait(keys.create(&admin(), reader("later"))).unwrap();
        if reads_its_commit {
            wait(keys.sync()).unwrap();
        }
        desk.put_back("saved.db");
        // The node has not reported the position of a commit that it did not read.
        let nodes = || wait(desk.store().nodes()).unwrap().len();
        let before = nodes();
        let started = desk.registered();
        assert_eq!(started.is_err(), reads_its_commit);
        assert_eq!(
            nodes(),
            before + usize::from(started.is_ok()),
            "a process that did not start is listed"
        );
        for _ in 0..10 {
            assert!(wait(keys.sync()).is_err());
            desk.clock.advance(Duration::from_secs(15));
        }
        assert!(wait(keys.sync()).is_err());
        let refused = chain(&desk.registered().unwrap_err());
        assert!(refused.contains("went back in time"), "{refused}");
        // The node stops without a final report, and its lease ends.
        drop(keys);
        desk.clock.advance(Duration::from_secs(120));
        desk.registered().unwrap();
    }
}

/// A copy that is written over the file keeps its inode. Only the log shows that the file is another one.
#[test]
fn a_file_that_was_overwritten_without_its_log_is_noticed() {
    for registered in [false, true] {
        let desk = Desk::new();
        let keys = match registered {
            false => desk.keys(),
            true => desk.registered().unwrap(),
        };
        wait(keys.create(&admin(), reader("first"))).unwrap();
        desk.save("older.db");
        wait(keys.create(&admin(), reader("later"))).unwrap();
        wait(keys.sync()).unwrap();
        for end in ["-wal", "-shm"] {
            fs::remove_file(desk.at(&format!("keys.db{end}"))).unwrap();
        }
        fs::copy(desk.at("older.db"), desk.path()).unwrap();
        // At first, the connection of the writer still uses the removed log.
        let errors = [(); 2].map(|()| chain(&wait(keys.sync()).unwrap_err()));
        // The registry is a second store in this process.
        let said = ["went back in time", "stop all processes"][usize::from(registered)];
        assert!(errors[1].contains(said), "{errors:?}");
        wait(keys.create(&admin(), reader("another"))).unwrap_err();
    }
}

#[test]
fn a_log_that_was_removed_is_not_used_any_longer() {
    let desk = Desk::new();
    let (keys, other) = (desk.keys(), desk.keys());
    let key = wait(keys.create(&admin(), reader("key"))).unwrap();
    wait(other.sync()).unwrap();
    checkpoint(&desk.path());
    for end in ["-wal", "-shm"] {
        fs::remove_file(desk.at(&format!("keys.db{end}"))).unwrap();
    }
    let newcomer = desk.keys();
    wait(newcomer.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    for keys in [keys, other] {
        wait(keys.sync()).unwrap();
        let verdict = keys.verify(key.secret.expose(), &Need::any());
        assert!(
            matches!(verdict, Err(VerifyError::Revoked { .. })),
            "{verdict:?}"
        );
    }
}
