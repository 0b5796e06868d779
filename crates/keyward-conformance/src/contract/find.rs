//! Clauses of `find`.

use super::Violation;
use super::fixtures::{Desk, digest, id, imported, key, tenant, text};
use keyward::store::{Change, KeyStore, Locator, Row};

/// A key is found by its id, with the commit that wrote it. An unknown id is not found.
pub async fn find_returns_a_key_by_its_id<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "find_returns_a_key_by_its_id");
    desk.same(
        "on an empty store",
        desk.find(Locator::Id(id(1))).await?,
        None,
    )?;
    let batch = desk.batch("acme").put(key(1)).put(imported(2, "old token"));
    desk.land(batch).await?;
    let batch = desk.batch("globex").put(key(3));
    desk.land(batch).await?;
    for change in desk.truth.rows.values() {
        let Row::Key(record) = &change.row else {
            continue;
        };
        let found = desk.find(Locator::Id(record.id)).await?;
        desk.same(
            "by id",
            found.map(|found| found.change).as_ref(),
            Some(change),
        )?;
    }
    desk.same("an unknown id", desk.find(Locator::Id(id(4))).await?, None)
}

/// An imported key is found by its digest. A peppered key is not.
pub async fn find_returns_a_key_by_its_imported_digest<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "find_returns_a_key_by_its_imported_digest");
    let batch = desk
        .batch("acme")
        .put(key(1))
        .put(imported(2, "one"))
        .put(imported(3, "two"));
    desk.land(batch).await?;
    for (n, token) in [(2, "one"), (3, "two")] {
        let found = desk.find(Locator::Imported(digest(token))).await?;
        let stored = desk.find(Locator::Id(id(n))).await?;
        desk.ensure(found.is_some(), || {
            format!("key {} was not found by its digest", id(n))
        })?;
        desk.same("by imported digest", found, stored)?;
    }
    for of in ["three", "peppered 1"] {
        let found = desk.find(Locator::Imported(digest(of))).await?;
        desk.same("a digest that was never imported", found, None)?;
    }
    Ok(())
}

/// `find` is as fresh as `load`: it reflects every commit that returned before the call began.
pub async fn find_reflects_every_commit_that_returned<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "find_reflects_every_commit_that_returned");
    for name in ["first", "second", "third"] {
        let record = imported(1, "old token").with(|key| key.name = text(name));
        let batch = desk.batch("acme").put(record);
        let revision = desk.land(batch).await?;
        for locator in [Locator::Id(id(1)), Locator::Imported(digest("old token"))] {
            let found = desk.find(locator).await?.map(|found| found.change);
            let seen = match &found {
                Some(Change {
                    revision,
                    row: Row::Key(record),
                }) => Some((*revision, record.name.as_str())),
                _ => None,
            };
            desk.same("after a commit", seen, Some((revision, name)))?;
        }
    }
    Ok(())
}

/// A removed key is found as its tombstone, by its id and by its imported digest.
pub async fn find_returns_the_tombstone_of_a_removed_key<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "find_returns_the_tombstone_of_a_removed_key");
    let batch = desk.batch("acme").put(imported(1, "old token")).put(key(2));
    desk.land(batch).await?;
    let batch = desk.batch("acme").remove(id(1));
    let revision = desk.land(batch).await?;
    let batch = desk.batch("acme").put(key(3));
    desk.land(batch).await?;
    let row = Row::Removed {
        key: id(1),
        tenant: tenant("acme"),
    };
    for locator in [Locator::Id(id(1)), Locator::Imported(digest("old token"))] {
        let found = desk.find(locator).await?.map(|found| found.change);
        let tombstone = Change {
            revision,
            row: row.clone(),
        };
        desk.same("a removed key", found, Some(tombstone))?;
    }
    Ok(())
}

/// The head that is returned with a key is the store's head at the time of the read, or an earlier
/// head. The head is a valid cursor, and the feed after the head contains every later change of the
/// key.
pub async fn find_returns_a_head_that_can_be_followed<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "find_returns_a_head_that_can_be_followed");
    let batch = desk.batch("acme").put(key(1));
    desk.land(batch).await?;
    let batch = desk.batch("globex").put(key(2));
    desk.land(batch).await?;
    let Some(found) = desk.find(Locator::Id(id(1))).await? else {
        return Err(desk.fail("the key was not found"));
    };
    desk.ensure(found.head.revision <= desk.truth.revision, || {
        format!(
            "head {} is ahead of the last commit {}",
            found.head.revision, desk.truth.revision
        )
    })?;
    desk.ensure(found.head.revision >= found.change.revision, || {
        format!(
            "head {} is behind the row's own commit",
            found.head.revision
        )
    })?;
    let batch = desk.batch("acme").remove(id(1));
    let revision = desk.land(batch).await?;
    let pages = desk.follow(found.head, 10).await?;
    let later = pages.iter().flat_map(|page| &page.changes);
    let later = later.filter(|change| change.revision == revision).count();
    desk.same("changes of the removal after the head", later, 1)
}
