//! Copies that must be refused, because the target differs from its source or the source changes during the
//! copy.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyward::store::transfer::{
    CopyError, CopyPage, CopySource, CopyTarget, CopyTransaction, Item, Origin, Part,
};
use keyward::store::{
    Cursor, DocumentName, DocumentWrite, Documents, KeyStore, SqliteStore, StoreError, async_trait,
};

use crate::operators::fill::{FEW, File, Filled, copy, fill, is_empty, seen, service};
use support::postgres::TestSchema;
use support::*;

/// The change that a broken target makes to the items of a page.
type Bend = fn(Vec<Item>) -> Vec<Item>;

/// A broken target, which changes each page of one `part` of the store before it writes the page.
#[derive(Debug)]
struct Bent<'a> {
    inner: &'a dyn CopyTarget,
    part: Part,
    bend: Bend,
}

#[async_trait]
impl CopyTarget for Bent<'_> {
    async fn begin(&self, origin: &Origin) -> Result<Box<dyn CopyTransaction>, CopyError> {
        let Self { inner, part, bend } = self;
        let (inner, part, bend) = (inner.begin(origin).await?, *part, *bend);
        Ok(Box::new(BentCopy { inner, part, bend }))
    }
}

#[derive(Debug)]
struct BentCopy {
    inner: Box<dyn CopyTransaction>,
    part: Part,
    bend: Bend,
}

#[async_trait]
impl CopyTransaction for BentCopy {
    async fn write(&mut self, mut items: Vec<Item>) -> Result<(), StoreError> {
        if items.first().is_some_and(|item| item.part() == self.part) {
            items = (self.bend)(items);
        }
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
        self.inner.commit(origin).await
    }
}

fn loses_one(mut items: Vec<Item>) -> Vec<Item> {
    items.remove(0);
    items
}

fn alters_one(mut items: Vec<Item>) -> Vec<Item> {
    match &mut items[0] {
        Item::Commit { tag, .. } => tag.0 ^= 1,
        Item::Tenant { audit, .. } => audit.sequence += 1,
        Item::Digest { key, .. } => *key = keyward::KeyId::from_u128(key.to_u128() ^ 1),
        Item::Gone { key } => *key = keyward::KeyId::from_u128(key.to_u128() ^ 1),
        Item::Audit { row, .. } => row.entry.at = at("2026-01-01T00:00:01Z"),
        Item::Row { number, .. } => *number += 7,
        Item::Document(document) => document.version += 1,
    }
    items
}

#[test]
fn a_copy_that_differs_in_anything_is_rolled_back() {
    let file = File::new();
    let source = file.open();
    fill(&source);
    let (other, place) = (File::new(), TestSchema::new());
    let (target, database) = (other.open(), place.connect());
    for part in Part::ALL {
        for bend in [loses_one as Bend, alters_one] {
            for inner in [&target as &dyn CopyTarget, &database] {
                let refused = copy(&source, &Bent { inner, part, bend });
                assert!(
                    matches!(refused, Err(CopyError::Differs(_))),
                    "{part}: {refused:?}"
                );
            }
            assert!(is_empty(&target) && is_empty(&database), "{part}");
        }
    }
    for inner in [&target as &dyn CopyTarget, &database] {
        copy(&source, inner).unwrap();
    }
    assert_eq!(seen(&other.open()), seen(&source));
    assert_eq!(seen(&place.connect()), seen(&source));
}

/// A source that runs an action once, when a certain page is read.
struct Moving {
    inner: SqliteStore,
    left: AtomicUsize,
    happens: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Moving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Moving")
    }
}

#[async_trait]
impl CopySource for Moving {
    async fn origin(&self) -> Result<Origin, StoreError> {
        self.inner.origin().await
    }
    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<CopyPage, StoreError> {
        let page = self.inner.page(part, after, limit).await;
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let happens = self.happens.lock().unwrap().take().unwrap();
            happens();
        }
        page
    }
}

#[test]
fn a_write_to_the_source_during_a_copy_is_detected_at_any_page() {
    // Counts the pages of a copy whose source does not change.
    let (file, other) = (File::new(), File::new());
    fill(&file.open());
    let still = Moving {
        inner: file.open(),
        left: AtomicUsize::new(usize::MAX),
        happens: Mutex::new(None),
    };
    copy(&still, &other.open()).unwrap();
    let pages = usize::MAX - still.left.load(Ordering::Relaxed);
    assert!(pages > 30, "{pages}");
    let changes: [fn(&SqliteStore, &Filled); 3] = [
        |source, filled| {
            let keys = service(source.clone());
            wait(keys.revoke(&admin(), filled.live.id, keyward::Reason::Lost)).unwrap();
        },
        |source, _| {
            let head = wait(source.scan(None, FEW)).unwrap().head.revision;
            assert_eq!(wait(source.compact(head)).unwrap(), 1);
        },
        // A document is in no commit, so the head stays.
        |source, _| {
            let name = DocumentName::new("app.cursor").unwrap();
            let write = DocumentWrite::new(name, 0, b"at 7".to_vec());
            wait(source.write_document(write)).unwrap();
        },
    ];
    for change in changes {
        for page in [1, pages / 3, pages / 2, pages - 1, pages] {
            let (file, other) = (File::new(), File::new());
            let source = file.open();
            let filled = fill(&source);
            let inner = source.clone();
            let happens = move || change(&inner, &filled);
            let moving = Moving {
                inner: source.clone(),
                left: AtomicUsize::new(page),
                happens: Mutex::new(Some(Box::new(happens))),
            };
            let refused = copy(&moving, &other.open());
            assert!(
                matches!(refused, Err(CopyError::SourceMoved)),
                "page {page}: {refused:?}"
            );
            copy(&source, &other.open()).unwrap();
            assert_eq!(seen(&other.open()), seen(&source), "page {page}");
        }
    }
}
