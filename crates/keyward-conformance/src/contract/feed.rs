//! Clauses of `changes` and `changes_now`: the feed that followers read.

use std::collections::BTreeMap;

use super::ClauseViolation;
use super::fixtures::{
    ClauseResult, StoreFixture, brief, count, id, imported, key, owner, rows_of, text,
};
use keyward::TenantId;
use keyward::key::KeyRecord;
use keyward::store::{
    Change, Changes, ChangesError, CommitTag, Cursor, Epoch, KeyStore, Revision, Row, RowKey,
};

/// Writes nine commits of three tenants, with several rows per commit, changed rows and removed keys.
async fn history<S: KeyStore>(fixture: &mut StoreFixture<S>) -> ClauseResult {
    let batch = fixture
        .batch("acme")
        .provision()
        .owner(owner("ann"))
        .put(key(1))
        .put(key(2));
    fixture.commit(batch).await?;
    let batch = fixture.batch("globex").put(imported(3, "old token"));
    fixture.commit(batch).await?;
    let batch = fixture
        .batch("acme")
        .put(key(4))
        .put(key(5))
        .put(key(6))
        .owner(owner("bob"));
    fixture.commit(batch).await?;
    let batch = fixture.batch("acme/web").provision().put(key(7));
    fixture.commit(batch).await?;
    let batch = fixture
        .batch("acme")
        .remove(id(5))
        .remove(id(1))
        .put(renamed(2));
    fixture.commit(batch).await?;
    let batch = fixture
        .batch("globex")
        .put(key(8))
        .put(key(9))
        .remove(id(3));
    fixture.commit(batch).await?;
    let batch = fixture
        .batch("acme")
        .owner(owner("ann"))
        .put(renamed(4))
        .put(key(10));
    fixture.commit(batch).await?;
    let batch = fixture
        .batch("acme/web")
        .put(renamed(7))
        .put(key(11))
        .put(key(12));
    fixture.commit(batch).await?;
    let batch = fixture.batch("globex").put(key(13));
    fixture.commit(batch).await?;
    Ok(())
}

/// 40 changes: a page with this limit contains the whole history of any check in this file.
const ALL: usize = 40;

fn renamed(n: u64) -> KeyRecord {
    key(n).with(|key| key.name = text("renamed"))
}

/// The change feed is ordered by revision, oldest first, both within a page and from page to page.
pub async fn changes_come_oldest_first<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "changes_come_oldest_first");
    let start = fixture.head().await?;
    history(&mut fixture).await?;
    for limit in [1, 3, ALL] {
        let mut after = start.revision;
        for page in fixture.follow(start, limit).await? {
            let mut last = after;
            for change in &page.changes {
                fixture.ensure(change.revision > after && change.revision >= last, || {
                    format!("revision {} came after revision {last}", change.revision)
                })?;
                last = change.revision;
            }
            fixture.ensure(last <= page.upto.revision, || {
                format!(
                    "a page up to revision {} contains revision {last}",
                    page.upto.revision
                )
            })?;
            after = page.upto.revision;
        }
    }
    Ok(())
}

/// A follower that applies all changes in order ends with the same rows as the store. Each row has the
/// revision that last wrote it.
pub async fn changes_end_at_the_rows_of_the_store<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "changes_end_at_the_rows_of_the_store");
    let start = fixture.head().await?;
    history(&mut fixture).await?;
    for limit in [1, 2, ALL] {
        let pages = fixture.follow(start, limit).await?;
        let mut rows: BTreeMap<RowKey, Change> = BTreeMap::new();
        for change in pages.into_iter().flat_map(|page| page.changes) {
            rows.insert(change.row.key(), change);
        }
        rows.retain(|_, change| !matches!(change.row, Row::Removed { .. }));
        let what = format!("rows after following by {limit}");
        fixture.same(&what, rows, fixture.expected.live_rows())?;
    }
    Ok(())
}

/// All changes of one revision are on the same page, even if the page then has more changes than its limit.
pub async fn a_revision_is_never_split_across_pages<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_revision_is_never_split_across_pages");
    let start = fixture.head().await?;
    history(&mut fixture).await?;
    for limit in 1..=ALL {
        let pages = fixture.follow(start, limit).await?;
        for page in &pages {
            for revision in page.changes.iter().map(|change| change.revision) {
                let before = Revision(revision.0 - 1);
                let want = fixture.expected.between(before, revision);
                let mine = page
                    .changes
                    .iter()
                    .filter(|change| change.revision == revision);
                let received: Vec<_> = mine.cloned().collect();
                let received = rows_of(&received);
                let missing: Vec<_> = want.keys().filter(|row| !received.contains(*row)).collect();
                fixture.ensure(missing.is_empty(), || {
                    format!("a page of {limit} contains revision {revision} without {missing:?}")
                })?;
            }
        }
    }
    Ok(())
}

/// After a page, a follower is at the page's `upto`. So no change up to `upto` may be missing from this page
/// and the pages before it.
pub async fn nothing_up_to_upto_is_missing<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "nothing_up_to_upto_is_missing");
    let start = fixture.head().await?;
    history(&mut fixture).await?;
    for limit in 1..=ALL {
        let mut after = start;
        for page in fixture.follow(start, limit).await? {
            complete(&fixture, after, &page, limit)?;
            after = page.upto;
        }
        let reached = after.revision;
        fixture.same(
            "where the last page ends",
            reached,
            fixture.expected.revision,
        )?;
    }
    // Repeats the check with every revision of the history as the starting point.
    for (revision, tag) in fixture.expected.tags.clone() {
        let after = Cursor {
            revision,
            tag,
            ..start
        };
        let page = fixture.changes(after, 2).await?;
        complete(&fixture, after, &page, 2)?;
    }
    Ok(())
}

fn complete<S: KeyStore>(
    fixture: &StoreFixture<S>,
    after: Cursor,
    page: &Changes,
    limit: usize,
) -> ClauseResult {
    let upto = page.upto.revision;
    let want = fixture.expected.between(after.revision, upto);
    let received = rows_of(&page.changes);
    let missing: Vec<_> = want.keys().filter(|row| !received.contains(*row)).collect();
    fixture.ensure(missing.is_empty(), || {
        let after = after.revision;
        format!("a page of {limit} after {after} ends at {upto} and lacks {missing:?}")
    })
}

/// The feed returns an empty page only to a follower that has caught up. The `upto` of an empty page is the
/// head, which includes every commit that returned before the call.
pub async fn an_empty_page_means_caught_up<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "an_empty_page_means_caught_up");
    let mut after = fixture.head().await?;
    for n in 1..=4 {
        let batch = fixture.batch("acme").put(key(n));
        let revision = fixture.commit(batch).await?;
        let page = fixture.changes(after, 10).await?;
        fixture.ensure(!page.changes.is_empty(), || {
            format!("no page contains revision {revision}, whose commit returned")
        })?;
        fixture.same("head of a page", page.head.revision, revision)?;
        after = page.upto;
        let page = fixture.changes(after, 10).await?;
        fixture.ensure(page.changes.is_empty(), || {
            "the feed did not end at its head".to_owned()
        })?;
        fixture.same("upto of an empty page", page.upto, page.head)?;
        fixture.same("head of an empty page", page.head.revision, revision)?;
    }
    // A commit without rows moves the head. The next page is empty, but its `upto` must be the new head.
    let action = keyward::audit::Action::KeyDisabled;
    let batch = fixture.batch("acme").entry(action, Some(id(1)));
    let revision = fixture.commit(batch).await?;
    let page = fixture.changes(after, 10).await?;
    fixture.ensure(page.changes.is_empty(), || {
        "a commit without rows has a change in the feed".to_owned()
    })?;
    fixture.same(
        "upto after a commit without rows",
        page.upto.revision,
        revision,
    )?;
    fixture.same("head after a commit without rows", page.head, page.upto)
}

/// The feed reports the removal of a key as a tombstone.
pub async fn tombstones_are_in_the_feed<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "tombstones_are_in_the_feed");
    let start = fixture.head().await?;
    history(&mut fixture).await?;
    for limit in [1, ALL] {
        let pages = fixture.follow(start, limit).await?;
        let received: Vec<_> = pages.into_iter().flat_map(|page| page.changes).collect();
        let removed = |change: &&Change| matches!(change.row, Row::Removed { .. });
        for tombstone in fixture.expected.rows.values().filter(removed) {
            let last = received
                .iter()
                .rfind(|change| change.row.key() == tombstone.row.key());
            fixture.same("last change of a removed key", last, Some(tombstone))?;
        }
    }
    Ok(())
}

/// The feed refuses a cursor ahead of the store's head with `Diverged`. After a backup was copied back, the store
/// lacks commits that its followers have applied.
pub async fn a_cursor_ahead_of_the_head_has_diverged<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_cursor_ahead_of_the_head_has_diverged");
    history(&mut fixture).await?;
    let head = fixture.head().await?;
    let ahead = |by: u64| Cursor {
        revision: Revision(head.revision.0 + by),
        ..head
    };
    fixture
        .diverged("a cursor one ahead of the head", ahead(1))
        .await?;
    fixture
        .diverged("a cursor far ahead of the head", ahead(1 << 40))
        .await
}

/// The feed refuses a cursor of another epoch with `Compacted`, so that the follower starts over with a scan.
pub async fn a_cursor_of_another_epoch_is_compacted<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_cursor_of_another_epoch_is_compacted");
    history(&mut fixture).await?;
    let head = fixture.head().await?;
    let other = Cursor {
        epoch: Epoch(!head.epoch.0),
        ..head
    };
    fixture.compacted("a cursor of another epoch", other).await
}

/// The feed refuses a cursor with `Diverged` if the cursor's tag differs from the tag of its revision. After a
/// failover that lost commits, other commits have the lost revisions. At revision zero, the tag must be zero.
pub async fn a_cursor_with_another_tag_has_diverged<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_cursor_with_another_tag_has_diverged");
    let start = fixture.head().await?;
    history(&mut fixture).await?;
    let head = fixture.head().await?;
    let other = |cursor: Cursor| Cursor {
        tag: CommitTag(!cursor.tag.0),
        ..cursor
    };
    fixture
        .diverged("a cursor at the head with another tag", other(head))
        .await?;
    fixture
        .diverged("a cursor at the start with a tag", other(start))
        .await?;
    for (revision, tag) in fixture.expected.tags.clone() {
        let cursor = Cursor {
            revision,
            tag,
            ..head
        };
        let what = format!("a cursor at revision {revision} with another tag");
        fixture.diverged(&what, other(cursor)).await?;
    }
    Ok(())
}

/// Every cursor that the store returns has the tag of the commit at its revision, or zero before the first
/// commit. The feed accepts every such cursor.
pub async fn cursors_carry_the_tag_of_their_commit<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "cursors_carry_the_tag_of_their_commit");
    let start = fixture.head().await?;
    fixture.same(
        "revision before the first commit",
        start.revision,
        Revision::ZERO,
    )?;
    fixture.same("tag before the first commit", start.tag, CommitTag(0))?;
    history(&mut fixture).await?;
    for limit in [1, 2, 3, ALL] {
        for page in fixture.follow(start, limit).await? {
            for cursor in [page.upto, page.head] {
                let tag = fixture.expected.tags.get(&cursor.revision).copied();
                let what = format!("tag at revision {}", cursor.revision);
                fixture.same(&what, Some(cursor.tag), tag)?;
                fixture.same("epoch", cursor.epoch, start.epoch)?;
                fixture.changes(cursor, 1).await?;
            }
        }
    }
    let head = fixture.head().await?;
    fixture.same("tag of the scan's head", head.tag, fixture.expected.tag)
}

/// `changes_now` may return `None`. If it returns a page, that page is equal to the page from `changes`.
pub async fn changes_now_returns_what_changes_returns<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "changes_now_returns_what_changes_returns");
    let start = fixture.head().await?;
    let foreign = Cursor {
        epoch: Epoch(!start.epoch.0),
        ..start
    };
    for n in 1..=4 {
        let path: TenantId = text(if n % 2 == 0 { "acme" } else { "globex" });
        let batch = fixture.batch(path.as_str()).put(key(n)).put(key(n + 10));
        fixture.commit(batch).await?;
        let head = fixture.head().await?;
        let ahead = Cursor {
            revision: Revision(head.revision.0 + 1),
            ..head
        };
        for (after, limit) in [
            (start, 1),
            (start, 3),
            (start, ALL),
            (head, 1),
            (foreign, 1),
            (ahead, 1),
        ] {
            let Some(at_once) = fixture.store.changes_now(after, count(limit)) else {
                return Ok(());
            };
            let waited = fixture.store.changes(after, count(limit)).await;
            match (at_once, waited) {
                (Ok(at_once), Ok(waited)) => {
                    fixture.same("the page of changes_now", at_once, waited)?
                }
                (Err(ChangesError::Compacted), Err(ChangesError::Compacted))
                | (Err(ChangesError::Diverged), Err(ChangesError::Diverged)) => {}
                (at_once, waited) => {
                    let (at_once, waited) = (brief(&at_once), brief(&waited));
                    let detail =
                        format!("changes_now returned {at_once}, changes returned {waited}");
                    return Err(fixture.fail(detail));
                }
            }
        }
    }
    Ok(())
}
