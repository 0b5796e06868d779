//! Tables that go back in time under a running node: an operator restores a dump, or a failover loses commits.

use std::sync::Arc;
use std::time::Duration;

use keyward::command::Created;
use keyward::policy::Policy;
use keyward::recovery::Recovery;
use keyward::store::{AuditQuery, KeyQuery, KeyStore, LoadRequest, NodeRegistry, Revision};
use keyward::{CommandError, Keyward, ManualClock, Reason, VerifyError, WithSources, profiles};

use support::postgres::{TestSchema, open};
use support::raw::{ALL, beginning, next};
use support::*;

const TABLES: [&str; 14] = [
    "head",
    "commits",
    "tenants",
    "rows",
    "digests",
    "gone",
    "audit",
    "nodes",
    "documents",
    "usage_days",
    "usage_keys",
    "usage_boots",
    "usage_gaps",
    "usage_head",
];

/// The whole text of an error with its sources.
fn chain(error: &(impl std::error::Error + 'static)) -> String {
    WithSources(error).to_string()
}

/// Copies every table, as a dump does.
fn dump(place: &TestSchema, name: &str) {
    for table in TABLES {
        place.run(&format!(
            "CREATE TABLE $s_{name}_{table} AS TABLE $s.{table}"
        ));
    }
}

/// Replaces the rows of every table, while connections are open.
fn restore(place: &TestSchema, name: &str) {
    let mut all = "BEGIN;".to_owned();
    for table in TABLES {
        all += &format!("DELETE FROM $s.{table}; INSERT INTO $s.{table} TABLE $s_{name}_{table};");
    }
    place.run(&(all + "COMMIT"));
}

/// A node with a key that is revoked after the dump `saved`, and a key that is not.
struct Scene {
    place: TestSchema,
    clock: Arc<ManualClock>,
    keys: Keyward,
    revoked: Created,
    kept: Created,
}

impl Scene {
    fn new() -> Self {
        let place = TestSchema::new();
        let clock = Arc::new(ManualClock::at(at(START)));
        let keys = node(place.connect(), &clock, policy());
        let [revoked, kept] =
            ["revoked", "kept"].map(|name| wait(keys.create(&admin(), reader(name))).unwrap());
        wait(keys.sync()).unwrap();
        dump(&place, "saved");
        wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
        Self {
            place,
            clock,
            keys,
            revoked,
            kept,
        }
    }

    fn fill(&self, count: usize) {
        let other = node(self.place.connect(), &self.clock, policy());
        for number in 0..count {
            wait(other.create(&admin(), reader(&format!("filler {number}")))).unwrap();
        }
    }

    fn refuses_everything(&self) {
        let error = chain(&wait(self.keys.sync()).unwrap_err());
        assert!(error.contains("went back in time"), "{error}");
        for key in [&self.revoked, &self.kept] {
            let key = key.secret.expose();
            let refused = self.keys.verify(key, &reading()).unwrap_err();
            assert!(matches!(refused, VerifyError::Stale { .. }), "{refused:?}");
            let fresh = wait(self.keys.verify_fresh(key, &reading())).unwrap_err();
            assert_eq!(fresh, VerifyError::StoreUnavailable);
        }
        let refused = wait(self.keys.create(&admin(), reader("new"))).unwrap_err();
        assert!(matches!(refused, CommandError::Store(_)), "{refused:?}");
    }

    fn works_again(&self) {
        wait(self.keys.sync()).unwrap();
        let verify = |key: &Created| self.keys.verify(key.secret.expose(), &reading());
        verify(&self.kept).unwrap();
        let refused = verify(&self.revoked).unwrap_err();
        assert!(
            matches!(refused, VerifyError::Revoked { .. }),
            "{refused:?}"
        );
    }
}

fn policy() -> Policy {
    Policy::new(profiles::standard()).unwrap()
}

#[test]
fn restored_tables_are_refused_until_they_are_recovered() {
    let scene = Scene::new();
    wait(scene.keys.sync()).unwrap();
    let trail = wait(scene.place.connect().audit(&AuditQuery::all())).unwrap();
    let entries = trail.rows.into_iter().map(|row| row.entry).collect();
    let lost = Recovery::Replay {
        entries,
        is_whole: true,
    };
    restore(&scene.place, "saved");
    for _ in 0..10 {
        scene.refuses_everything();
        scene.clock.advance(Duration::from_secs(1));
    }
    wait(scene.place.connect().start_new_epoch()).unwrap();
    let waits = chain(&wait(scene.keys.sync()).unwrap_err());
    assert!(waits.contains("keyctl recover"), "{waits}");
    let opened = open(scene.place.options().allow_unrecovered()).unwrap();
    let operator = node(opened.clone(), &scene.clock, policy());
    let report = wait(operator.recover(lost)).unwrap();
    assert_eq!(report.revoked, 1);
    wait(opened.finish_recovery()).unwrap();
    scene.works_again();
}

/// The new primary lacks the newest commits of the old one, and has other commits at their revisions.
#[test]
fn a_failover_that_lost_commits_is_noticed_by_the_tags() {
    for (read, others) in [(true, 1), (true, 4), (false, 1), (false, 4)] {
        let scene = Scene::new();
        if read {
            wait(scene.keys.sync()).unwrap();
        }
        dump(&scene.place, "right");
        restore(&scene.place, "saved");
        scene.fill(others);
        scene.refuses_everything();
        scene.fill(4);
        scene.refuses_everything();
        restore(&scene.place, "right");
        scene.works_again();
    }
}

#[test]
fn a_read_for_one_key_notices_before_the_next_sync() {
    let scene = Scene::new();
    wait(scene.keys.sync()).unwrap();
    restore(&scene.place, "saved");
    let key = scene.revoked.secret.expose();
    let refused = wait(scene.keys.verify_fresh(key, &reading())).unwrap_err();
    assert_eq!(refused, VerifyError::StoreUnavailable);
    assert!(scene.keys.freshness().diverged.is_some());
    scene.refuses_everything();
}

/// Another process marks the tables while this store has connections.
#[test]
fn marked_tables_serve_no_open_store() {
    let place = TestSchema::new();
    let store = place.connect();
    let acme = tenant("acme");
    wait(store.commit(next(&acme, Revision::ZERO).1)).unwrap();
    let at_start = beginning(&store);
    wait(place.connect().start_new_epoch()).unwrap();
    let refused = [
        wait(store.scan(None, ALL))
            .map(drop)
            .map_err(|error| chain(&error)),
        wait(store.load(&acme, &LoadRequest::none()))
            .map(drop)
            .map_err(|error| chain(&error)),
        wait(store.list(&KeyQuery::tenant(acme.clone(), at(START))))
            .map(drop)
            .map_err(|error| chain(&error)),
        wait(store.changes(at_start, ALL))
            .map(drop)
            .map_err(|error| chain(&error)),
        wait(store.nodes()).map(drop).map_err(|error| chain(&error)),
        wait(store.compact(Revision(1)))
            .map(drop)
            .map_err(|error| chain(&error)),
        wait(store.commit(next(&tenant("other"), Revision::ZERO).1))
            .map(drop)
            .map_err(|error| chain(&error)),
    ];
    for refused in refused {
        let refused = refused.unwrap_err();
        assert!(refused.contains("keyctl recover"), "{refused}");
    }
    let opened = open(place.options().allow_unrecovered()).unwrap();
    wait(opened.finish_recovery()).unwrap();
    wait(store.commit(next(&tenant("other"), Revision::ZERO).1)).unwrap();
}
