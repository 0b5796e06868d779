//! Interrupted copies, which leave the target empty, so that the copy can be started again.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyward::store::transfer::{CopyError, CopyTarget, CopyTransaction, Item, Origin, Part};
use keyward::store::{
    CommitError, Cursor, KeyStore, LoadRequest, Revision, SqliteStore, StoreError, StoreErrorKind,
    async_trait,
};

use crate::operators::fill::{File, copy, fill, is_empty, seen, service};
use support::postgres::{TestSchema, open};
use support::*;

/// The point at which a call of the target fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cut {
    Before,
    /// After the call has done its work: only its answer is lost.
    After,
}

/// A target on which the first `left` calls succeed, and all later calls fail.
#[derive(Debug)]
struct Dying<'a> {
    inner: &'a dyn CopyTarget,
    left: usize,
    cut: Cut,
}

#[async_trait]
impl CopyTarget for Dying<'_> {
    async fn begin(&self, origin: &Origin) -> Result<Box<dyn CopyTransaction>, CopyError> {
        let inner = self.inner.begin(origin).await?;
        let (left, cut) = (self.left, self.cut);
        Ok(Box::new(DyingCopy { inner, left, cut }))
    }
}

#[derive(Debug)]
struct DyingCopy {
    inner: Box<dyn CopyTransaction>,
    left: usize,
    cut: Cut,
}

impl DyingCopy {
    fn lives(&mut self) -> bool {
        let lives = self.left > 0;
        self.left = self.left.saturating_sub(1);
        lives
    }
}

fn dead() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "being cut off")
}

#[async_trait]
impl CopyTransaction for DyingCopy {
    async fn write(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        let lives = self.lives();
        if lives || self.cut == Cut::After {
            self.inner.write(items).await?;
        }
        lives.then_some(()).ok_or_else(dead)
    }
    async fn written(
        &mut self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Vec<Item>, StoreError> {
        let lives = self.lives();
        let written = self.inner.written(part, after, limit).await?;
        lives.then_some(written).ok_or_else(dead)
    }
    async fn commit(mut self: Box<Self>, origin: &Origin) -> Result<Cursor, StoreError> {
        if !self.lives() {
            return Err(dead());
        }
        self.inner.commit(origin).await
    }
}

#[test]
fn a_copy_that_is_cut_off_anywhere_leaves_an_empty_store() {
    let file = File::new();
    let source = file.open();
    fill(&source);
    for cut in [Cut::Before, Cut::After] {
        let (other, place) = (File::new(), TestSchema::new());
        let (target, database) = (other.open(), place.connect());
        let stores: [(&dyn KeyStore, &dyn CopyTarget); 2] =
            [(&target, &target), (&database, &database)];
        for (store, inner) in stores {
            let mut cuts = 0;
            loop {
                let left = cuts;
                match copy(&source, &Dying { inner, left, cut }) {
                    Ok(_) => break,
                    Err(CopyError::Store(error)) => {
                        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
                    }
                    Err(refused) => panic!("{refused:?}"),
                }
                cuts += 1;
                assert!(is_empty(store), "after {left} calls");
            }
            assert!(cuts > 20, "{cuts}");
        }
        assert_eq!(seen(&other.open()), seen(&source));
        assert_eq!(seen(&place.connect()), seen(&source));
    }
}

/// A target that runs an action just before a copy is committed.
struct Watched<'a> {
    inner: &'a dyn CopyTarget,
    happens: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Watched<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

#[async_trait]
impl CopyTarget for Watched<'_> {
    async fn begin(&self, origin: &Origin) -> Result<Box<dyn CopyTransaction>, CopyError> {
        let inner = self.inner.begin(origin).await?;
        let happens = self.happens.clone();
        Ok(Box::new(WatchedCopy { inner, happens }))
    }
}

struct WatchedCopy {
    inner: Box<dyn CopyTransaction>,
    happens: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for WatchedCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WatchedCopy")
    }
}

#[async_trait]
impl CopyTransaction for WatchedCopy {
    async fn write(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        self.inner.write(items).await
    }
    async fn written(
        &mut self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Vec<Item>, StoreError> {
        self.inner.written(part, after, limit).await
    }
    async fn commit(self: Box<Self>, origin: &Origin) -> Result<Cursor, StoreError> {
        (self.happens)();
        self.inner.commit(origin).await
    }
}

fn commit() -> keyward::store::Commit {
    let world = TestService::new();
    let key = world.some_key();
    let row = wait(world.store.find(&keyward::store::Locator::Id(key.id)));
    let keyward::store::Row::Key(record) = row.unwrap().unwrap().change.row else {
        panic!("a key was made")
    };
    keyward::store::Commit {
        tenant: record.tenant.clone(),
        epoch: None,
        expected: Revision::ZERO,
        guards: Vec::new(),
        tag: keyward::store::CommitTag(9),
        decided_at: at(START),
        effects: keyward::store::Effects {
            puts: vec![*record],
            ..Default::default()
        },
    }
}

#[test]
fn while_a_store_is_copied_into_it_is_empty_for_readers_and_closed_for_writers() {
    let (file, other, place) = (File::new(), File::new(), TestSchema::new());
    let source = file.open();
    fill(&source);
    let soon = std::time::Duration::from_millis(50);
    let impatient = SqliteStore::options(other.path()).busy_timeout(soon);
    drop(other.open());
    let impatient = wait(impatient.open()).unwrap();
    let waits_short = open(place.options().lock_timeout(soon)).unwrap();
    let stores: [(Arc<dyn KeyStore>, Box<dyn CopyTarget>); 2] = [
        (Arc::new(impatient), Box::new(other.open())),
        (Arc::new(waits_short), Box::new(place.connect())),
    ];
    for (before, target) in stores {
        let seen_by = before.clone();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let happens = move || {
            assert!(is_empty(&*seen_by));
            let view = wait(seen_by.load(&tenant("acme"), &LoadRequest::none())).unwrap();
            assert_eq!(view.revision, Revision::ZERO);
            let refused = wait(seen_by.commit(commit())).unwrap_err();
            assert!(
                matches!(&refused, CommitError::Store(error) if error.kind() == StoreErrorKind::Unavailable),
                "{refused:?}"
            );
            count.fetch_add(1, Ordering::Relaxed);
        };
        let happens = Arc::new(happens);
        let inner = &*target;
        copy(&source, &Watched { inner, happens }).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert_eq!(
            seen(&*before),
            seen(&source),
            "the earlier handle serves the copy from now on"
        );
        let refused = wait(before.commit(commit())).unwrap_err();
        assert!(matches!(refused, CommitError::Conflict), "{refused:?}");
    }
}

#[test]
fn a_source_that_was_changed_between_two_attempts_is_copied_as_it_is_now() {
    let (file, other, place) = (File::new(), File::new(), TestSchema::new());
    let source = file.open();
    let filled = fill(&source);
    let (target, database) = (other.open(), place.connect());
    let targets = [&target as &dyn CopyTarget, &database];
    let half = |inner| {
        let (left, cut) = (6, Cut::Before);
        copy(&source, &Dying { inner, left, cut }).unwrap_err();
    };
    targets.into_iter().for_each(half);
    let keys = service(source.clone());
    wait(keys.revoke(&admin(), filled.live.id, keyward::Reason::Lost)).unwrap();
    for target in targets {
        copy(&source, target).unwrap();
    }
    assert_eq!(seen(&other.open()), seen(&source));
    assert_eq!(seen(&database), seen(&source));
}
