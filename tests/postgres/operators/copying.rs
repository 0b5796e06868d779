//! Copies of a store, which must be equal to their source.

use std::num::NonZeroUsize;
use std::sync::Arc;

use keyward::pepper::Pepper;
use keyward::store::sqlite::OpenError;
use keyward::store::transfer::{
    CopyError, CopyPhase, CopyProgress, CopySource, Part, copy as copied,
};
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, CommitTag, Cursor, Effects,
    FoundKey, KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, NodeRegistry,
    Revision, RowKey, ScanPage, SqliteStore, StoreError, StoreErrorKind, TenantView, async_trait,
};
use keyward::{Actor, Keyward, ManualClock, PepperRing, TenantId};
use keyward_conformance::model::{Facade, TENANTS, policy, run};
use keyward_conformance::{Reached, strategies};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

use crate::operators::fill::{ALL, FEW, File, copy, fill, head, is_empty, seen, service, works};
use support::postgres::{TestSchema, open};
use support::*;

const CAP: usize = 4;

/// The in-memory store of the model's service, which also applies every commit to a file. The test copies the
/// file.
#[derive(Debug)]
struct Mirrored {
    memory: MemoryStore,
    file: SqliteStore,
}

#[async_trait]
impl KeyStore for Mirrored {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.memory.load(tenant, select).await
    }
    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.memory.find(locator).await
    }
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let revision = self.memory.commit(commit.clone()).await?;
        // The file has another epoch than the in-memory store, so it would refuse a commit that names the
        // epoch.
        let commit = Commit {
            epoch: None,
            ..commit
        };
        assert_eq!(self.file.commit(commit).await.unwrap(), revision);
        Ok(revision)
    }
    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.memory.changes(after, limit).await
    }
    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.memory.scan(after, limit).await
    }
    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.memory.list(query).await
    }
    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.memory.audit(query).await
    }
    fn changes_now(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Option<Result<Changes, ChangesError>> {
        self.memory.changes_now(after, limit)
    }
}

#[test]
fn a_store_survives_a_round_trip_through_a_database_after_any_commands() {
    let changed = Reached::new("an accepted command");
    let config = Config {
        cases: 12,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "postgres/operators.proptest-regressions",
        ))),
        max_shrink_iters: 100,
        ..Config::default()
    };
    proptest!(config, |(steps in strategies::steps(40), forgotten in 0_u64..40)| {
        let (file, back) = (File::new(), File::new());
        let store = file.open();
        let memory = MemoryStore::new();
        let mirrored = Mirrored { memory: memory.clone(), file: store.clone() };
        let mut facade = Facade::new(Arc::new(mirrored), policy(CAP));
        changed.note(!run(&mut facade, CAP, &steps).unwrap().is_empty());
        let mirrored = wait(memory.scan(None, ALL)).unwrap().head.revision;
        prop_assert_eq!(wait(store.scan(None, ALL)).unwrap().head.revision, mirrored);
        wait(store.compact(Revision(forgotten))).unwrap();
        let before = seen(&store);
        let place = TestSchema::new();
        let database = open(place.options()).unwrap();
        let there = copy(&store, &database).unwrap();
        prop_assert_eq!(&seen(&place.connect()), &before);
        let target = back.open();
        copy(&place.connect(), &target).unwrap();
        prop_assert_eq!(&seen(&back.open()), &before);
        prop_assert_eq!(&seen(&store), &before, "the source is unchanged");
        prop_assert!(wait(database.check_integrity()).unwrap().is_sound());
        prop_assert!(wait(target.check_integrity()).unwrap().is_sound());
        let heads = [head(&store), there.head, head(&back.open())];
        prop_assert_ne!(heads[0].epoch, heads[1].epoch);
        prop_assert_ne!(heads[1].epoch, heads[2].epoch);

        let pepper = Pepper::new("model".try_into().unwrap(), &[7; Pepper::MIN_LEN]).unwrap();
        let clock = Arc::new(ManualClock::at(at(START)));
        let builder = Keyward::builder(database.clone(), PepperRing::new(pepper));
        let keys = wait(builder.policy(policy(CAP)).clock(clock).build()).unwrap();
        for path in TENANTS {
            let path = tenant(path);
            let noted = wait(store.load(&path, &LoadRequest::none())).unwrap().audit_head;
            let by = Actor::application(path.clone());
            if noted.sequence > 0 {
                wait(keys.verify_audit(&by, &path, Some(noted))).unwrap();
            }
        }
    });
}

#[test]
fn a_copy_behaves_like_its_source() {
    let (file, other, place) = (File::new(), File::new(), TestSchema::new());
    let filled = fill(&file.open());
    let to_file = other.open();
    copy(&file.open(), &to_file).unwrap();
    let to_database = open(place.options()).unwrap();
    copy(&file.open(), &to_database).unwrap();
    // Checks the store instances that were the targets of the copies. New instances on the copies are checked
    // below.
    works(to_file, &filled);
    works(to_database, &filled);
    assert_ne!(seen(&other.open()), seen(&file.open()), "two stores");
    drop(service(place.connect()));
    service(file.open())
        .verify(filled.live.secret.expose(), &reading())
        .unwrap();
}

/// Returns a commit that creates a key with the given `id`.
fn takes(id: keyward::KeyId, expected: Revision) -> Commit {
    let mut record = None;
    let keys = support::TestService::new();
    let made = keys.some_key();
    let found = wait(keys.store.find(&keyward::store::Locator::Id(made.id))).unwrap();
    if let keyward::store::Row::Key(found) = found.unwrap().change.row {
        record = Some(keyward::store::Row::Key(found));
    }
    let Some(keyward::store::Row::Key(mut record)) = record else {
        panic!("a key was made")
    };
    record.id = id;
    Commit {
        tenant: record.tenant.clone(),
        epoch: None,
        expected,
        guards: Vec::new(),
        tag: CommitTag(9),
        decided_at: at(START),
        effects: Effects {
            puts: vec![*record],
            ..Effects::default()
        },
    }
}

#[test]
fn ids_taken_permanently_stay_taken_in_a_copy() {
    let (file, place) = (File::new(), TestSchema::new());
    let filled = fill(&file.open());
    let database = open(place.options()).unwrap();
    copy(&file.open(), &database).unwrap();
    let at = wait(database.load(&tenant("acme"), &LoadRequest::none()))
        .unwrap()
        .revision;
    for id in [filled.forgotten, filled.removed.id] {
        let refused = wait(database.commit(takes(id, at))).unwrap_err();
        assert!(
            matches!(refused, CommitError::IdTaken(taken) if taken == id),
            "{refused:?}"
        );
    }
    let again = keyward::command::ImportKey::sha256(
        keyward::key::Digest::sha256(crate::operators::fill::TOKEN),
        reader("again"),
    );
    let refused = wait(service(database).import(&host(), again)).unwrap_err();
    assert!(format!("{refused:?}").contains("Digest"), "{refused:?}");
}

#[test]
fn followers_start_over_and_receipts_wait_for_nodes_of_the_source() {
    let (file, place) = (File::new(), TestSchema::new());
    let source = file.open();
    fill(&source);
    let followed = head(&source);
    let database = open(place.options()).unwrap();
    copy(&source, &database).unwrap();
    let page = wait(database.changes(followed, ALL));
    assert!(matches!(page, Err(ChangesError::Compacted)), "{page:?}");
    let nodes = wait(database.nodes()).unwrap();
    assert_eq!(
        nodes.len(),
        1,
        "one entry represents all nodes of the source"
    );
    assert_eq!(
        nodes[0].lease.as_secs(),
        2 * 60 * 60,
        "the entry has the longest lease"
    );
    assert_eq!(nodes[0].applied, None);
}

#[test]
fn progress_is_reported_to_the_end_of_each_part() {
    let (file, other) = (File::new(), File::new());
    let source = file.open();
    fill(&source);
    let counts = wait(source.origin()).unwrap().counts;
    let mut reported: Vec<CopyProgress> = Vec::new();
    let target = other.open();
    wait(copied(&source, &target, FEW, |at| reported.push(at))).unwrap();
    for phase in [CopyPhase::Copying, CopyPhase::Comparing] {
        for part in Part::ALL {
            let of = reported
                .iter()
                .filter(|at| (at.phase, at.part) == (phase, part));
            let done: Vec<_> = of.map(|at| (at.done, at.total)).collect();
            assert!(done.is_sorted(), "{phase:?} {part}: {done:?}");
            assert_eq!(
                done.last(),
                Some(&(counts.of(part), counts.of(part))),
                "{phase:?} {part}"
            );
            assert!(counts.of(part) > 0, "{part}");
        }
    }
}

#[test]
fn empty_stores_and_unrecovered_stores_are_copied_unchanged() {
    let (file, other) = (File::new(), File::new());
    let target = other.open();
    let done = copy(&file.open(), &target).unwrap();
    assert_eq!(
        (done.head.revision, done.unrecovered),
        (Revision::ZERO, false)
    );
    fill(&other.open());

    let (backup, place, last) = (File::new(), TestSchema::new(), File::new());
    wait(other.open().backup(backup.path())).unwrap();
    let source = SqliteStore::options(backup.path()).allow_unrecovered();
    let source = wait(source.open()).unwrap();
    let database = open(place.options()).unwrap();
    assert!(copy(&source, &database).unwrap().unrecovered);
    let refused = open(place.options()).unwrap_err();
    assert!(
        format!("{refused:?}").contains("not recovered yet"),
        "{refused:?}"
    );
    let source = open(place.options().allow_unrecovered()).unwrap();
    assert!(copy(&source, &last.open()).unwrap().unrecovered);
    let refused = wait(SqliteStore::open(last.path())).unwrap_err();
    assert!(
        matches!(refused, OpenError::Unrecovered { .. }),
        "{refused:?}"
    );
}

#[test]
fn a_target_that_is_not_empty_is_refused_unchanged() {
    let (file, full, place) = (File::new(), File::new(), TestSchema::new());
    let source = file.open();
    fill(&source);
    fill(&full.open());
    wait(service(place.connect()).create(&admin(), reader("mine"))).unwrap();
    let (before, in_place) = (seen(&full.open()), seen(&place.connect()));
    let database = open(place.options()).unwrap();
    for refused in [copy(&source, &full.open()), copy(&source, &database)] {
        assert!(matches!(refused, Err(CopyError::NotEmpty)), "{refused:?}");
    }
    let refused = copy(&source, &file.open());
    assert!(matches!(refused, Err(CopyError::SameStore)), "{refused:?}");
    assert_eq!(
        (seen(&full.open()), seen(&place.connect())),
        (before, in_place)
    );
}

#[test]
fn damage_is_never_copied() {
    for damage in [
        "UPDATE rows SET seal = seal + 1 WHERE kind = 2",
        "UPDATE audit SET body = x'00' WHERE sequence = 2",
        "UPDATE tenants SET seal = seal + 1",
        "UPDATE commits SET seal = seal + 1 WHERE revision = 6",
        "UPDATE digests SET seal = seal + 1",
        "UPDATE gone SET id = x'00'",
    ] {
        let (file, place) = (File::new(), TestSchema::new());
        let source = file.open();
        fill(&source);
        file.tamper(damage);
        let database = open(place.options()).unwrap();
        match copy(&source, &database) {
            Err(CopyError::Store(error)) => {
                assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{damage}: {error:?}");
            }
            other => panic!("{damage}: {other:?}"),
        }
        assert!(is_empty(&place.connect()), "{damage}");
    }
}
