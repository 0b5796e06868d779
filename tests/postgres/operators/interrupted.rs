//! An interrupted copy continues where it stopped. Until it is done, its target is not a store.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use keyward::async_trait;
use keyward::store::postgres::ConnectError;
use keyward::store::sqlite::OpenError;
use keyward::store::transfer::{CopyError, Counts, Export, Import, Item, Origin, Page, Part};
use keyward::store::{
    CommitError, Cursor, KeyStore, Revision, Select, SqliteStore, StoreError, StoreErrorKind,
};

use crate::operators::fill::{FEW, File, copy, fill, seen, service};
use support::postgres::{Place, open};
use support::*;

/// The moment at which a call is interrupted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cut {
    Before,
    /// The effect stays and the answer is lost.
    After,
}

/// A target that fails after a number of changes.
#[derive(Debug)]
struct Dying<'a> {
    inner: &'a dyn Import,
    left: AtomicUsize,
    cut: Cut,
    written: &'a AtomicU64,
}

impl Dying<'_> {
    fn lives(&self) -> bool {
        let left = |left: usize| left.checked_sub(1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.left.fetch_update(set, get, left).is_ok()
    }

    fn dead() -> StoreError {
        StoreError::new(StoreErrorKind::Unavailable, "being cut off")
    }
}

#[async_trait]
impl Import for Dying<'_> {
    async fn begin(&self, origin: &Origin) -> Result<Counts, CopyError> {
        self.inner.begin(origin).await
    }
    async fn last(&self, part: Part) -> Result<Option<Item>, StoreError> {
        self.inner.last(part).await
    }
    async fn write(&self, items: &[Item]) -> Result<(), StoreError> {
        let lives = self.lives();
        if lives || self.cut == Cut::After {
            self.inner.write(items).await?;
            let items = u64::try_from(items.len()).unwrap();
            self.written.fetch_add(items, Ordering::Relaxed);
        }
        lives.then_some(()).ok_or_else(Self::dead)
    }
    async fn written(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError> {
        self.inner.written(part, after, limit).await
    }
    async fn finish(&self, origin: &Origin) -> Result<Cursor, StoreError> {
        if !self.lives() {
            return Err(Self::dead());
        }
        self.inner.finish(origin).await
    }
}

/// Copies with one change per attempt until the copy is done. Returns the number of attempts.
fn bit_by_bit(
    from: &dyn Export,
    mut open: impl FnMut() -> Box<dyn Import>,
    cut: Cut,
    mut meanwhile: impl FnMut(),
) -> usize {
    let written = AtomicU64::new(0);
    for attempt in 1..1000 {
        let target = open();
        let dying = Dying {
            inner: &*target,
            left: AtomicUsize::new(usize::from(cut == Cut::Before)),
            cut,
            written: &written,
        };
        // With `Cut::After` every page lands once although its answer is lost, and the copy is finished
        // below.
        match copy(from, &dying) {
            Ok(_) => return attempt,
            Err(CopyError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::Unavailable),
            Err(other) => panic!("{other:?}"),
        }
        let counts = wait(from.origin()).unwrap().counts;
        let total: u64 = Part::ALL.iter().map(|part| counts.of(*part)).sum();
        let done = written.load(Ordering::Relaxed);
        assert!(done <= total, "{done} items written of {total}: some twice");
        meanwhile();
        if cut == Cut::After && done == total {
            copy(from, &*open()).unwrap();
            return attempt;
        }
    }
    panic!("it never ends")
}

#[test]
fn a_copy_continues_where_it_was_interrupted() {
    let file = File::new();
    let source = file.open();
    fill(&source);
    let before = seen(&source);
    for cut in [Cut::Before, Cut::After] {
        let other = File::new();
        let target = || Box::new(other.target()) as Box<dyn Import>;
        let attempts = bit_by_bit(&source, target, cut, || {
            let refused = wait(SqliteStore::open(other.path())).unwrap_err();
            assert!(matches!(refused, OpenError::Copying { .. }), "{refused:?}");
            let options = SqliteStore::options(other.path()).allow_unrecovered();
            wait(options.open()).unwrap_err();
        });
        assert!(attempts > 10, "{attempts}");
        assert_eq!(seen(&other.open()), before);

        let place = Place::new();
        let target = || Box::new(open(place.options().copy_target()).unwrap()) as Box<dyn Import>;
        let attempts = bit_by_bit(&source, target, cut, || {
            let refused = open(place.options()).unwrap_err();
            assert!(matches!(refused, ConnectError::Copying), "{refused:?}");
            open(place.options().allow_unrecovered()).unwrap_err();
        });
        assert!(attempts > 10, "{attempts}");
        assert_eq!(seen(&place.connect()), before);
    }
}

/// Copies a few pages and stops.
fn half(from: &dyn Export, to: &dyn Import) {
    let dying = Dying {
        inner: to,
        left: AtomicUsize::new(6),
        cut: Cut::Before,
        written: &AtomicU64::new(0),
    };
    copy(from, &dying).unwrap_err();
}

#[test]
fn an_open_store_serves_nothing_while_it_is_copied_into() {
    let (file, other, place) = (File::new(), File::new(), Place::new());
    let source = file.open();
    fill(&source);
    let stores: [(Box<dyn KeyStore>, Box<dyn Import>); 2] = [
        (Box::new(other.open()), Box::new(other.target())),
        (
            Box::new(place.connect()),
            Box::new(open(place.options().copy_target()).unwrap()),
        ),
    ];
    let commit = || {
        let world = World::new();
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
    };
    for (before, target) in &stores {
        half(&source, &**target);
        let read = wait(before.load(&tenant("acme"), &Select::none())).unwrap_err();
        assert_eq!(read.kind(), StoreErrorKind::Unavailable);
        wait(before.scan(None, FEW)).unwrap_err();
        let refused = wait(before.commit(commit())).unwrap_err();
        assert!(
            matches!(&refused, CommitError::Store(error) if error.kind() == StoreErrorKind::Unavailable),
            "{refused:?}"
        );
        copy(&source, &**target).unwrap();
        assert_eq!(
            seen(&**before),
            seen(&source),
            "it serves the copy from here on"
        );
    }
}

#[test]
fn a_half_copied_target_accepts_only_the_same_source() {
    let (file, stranger, other, place) = (File::new(), File::new(), File::new(), Place::new());
    fill(&file.open());
    fill(&stranger.open());
    let database = open(place.options().copy_target()).unwrap();
    for target in [&other.target() as &dyn Import, &database] {
        half(&file.open(), target);
        let refused = copy(&stranger.open(), target);
        assert!(
            matches!(refused, Err(CopyError::OtherSource)),
            "{refused:?}"
        );
        copy(&file.open(), target).unwrap();
    }
    assert_eq!(seen(&other.open()), seen(&file.open()));
    assert_eq!(seen(&database), seen(&file.open()));
}

#[test]
fn a_source_changed_between_two_attempts_is_copied_from_the_start() {
    let (file, other, place) = (File::new(), File::new(), Place::new());
    let source = file.open();
    let filled = fill(&source);
    let database = open(place.options().copy_target()).unwrap();
    let target = other.target();
    let targets = [&target as &dyn Import, &database];
    targets.iter().for_each(|target| half(&source, *target));
    let keys = service(source.clone());
    wait(keys.revoke(&admin(), filled.live.id, keyward::Reason::Lost)).unwrap();
    targets.iter().for_each(|target| half(&source, *target));
    let head = wait(source.scan(None, FEW)).unwrap().head.revision;
    assert_eq!(
        wait(source.forget_removed(head)).unwrap(),
        1,
        "without a commit"
    );
    for target in targets {
        copy(&source, target).unwrap();
    }
    assert_eq!(seen(&other.open()), seen(&source));
    assert_eq!(seen(&database), seen(&source));
}
