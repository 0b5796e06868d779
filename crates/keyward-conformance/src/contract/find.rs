//! Clauses of `find`, which looks up one key by its id or its imported digest.

use super::ClauseViolation;
use super::fixtures::{StoreFixture, digest, id, imported, key, tenant, text};
use keyward::store::{Change, KeyStore, Locator, Row};

/// `find` returns a key by its id, with the revision of the commit that wrote it. For an unknown id, `find`
/// returns `None`.
pub async fn find_returns_a_key_by_its_id<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "find_returns_a_key_by_its_id");
    fixture.same(
        "on an empty store",
        fixture.find(Locator::Id(id(1))).await?,
        None,
    )?;
    let batch = fixture
        .batch("acme")
        .put(key(1))
        .put(imported(2, "old token"));
    fixture.commit(batch).await?;
    let batch = fixture.batch("globex").put(key(3));
    fixture.commit(batch).await?;
    for change in fixture.expected.rows.values() {
        let Row::Key(record) = &change.row else {
            continue;
        };
        let found = fixture.find(Locator::Id(record.id)).await?;
        fixture.same(
            "by id",
            found.map(|found| found.change).as_ref(),
            Some(change),
        )?;
    }
    fixture.same(
        "an unknown id",
        fixture.find(Locator::Id(id(4))).await?,
        None,
    )
}

/// `find` returns an imported key by its digest. For the digest of a peppered key, `find` returns `None`.
pub async fn find_returns_a_key_by_its_imported_digest<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "find_returns_a_key_by_its_imported_digest");
    let batch = fixture
        .batch("acme")
        .put(key(1))
        .put(imported(2, "one"))
        .put(imported(3, "two"));
    fixture.commit(batch).await?;
    for (n, token) in [(2, "one"), (3, "two")] {
        let found = fixture.find(Locator::Imported(digest(token))).await?;
        let stored = fixture.find(Locator::Id(id(n))).await?;
        fixture.ensure(found.is_some(), || {
            format!("key {} was not found by its digest", id(n))
        })?;
        fixture.same("by imported digest", found, stored)?;
    }
    for of in ["three", "peppered 1"] {
        let found = fixture.find(Locator::Imported(digest(of))).await?;
        fixture.same("a digest that was never imported", found, None)?;
    }
    Ok(())
}

/// `find` is as fresh as `load`: it reflects every commit that returned before the call began.
pub async fn find_reflects_every_commit_that_returned<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "find_reflects_every_commit_that_returned");
    for name in ["first", "second", "third"] {
        let record = imported(1, "old token").with(|key| key.name = text(name));
        let batch = fixture.batch("acme").put(record);
        let revision = fixture.commit(batch).await?;
        for locator in [Locator::Id(id(1)), Locator::Imported(digest("old token"))] {
            let found = fixture.find(locator).await?.map(|found| found.change);
            let seen = match &found {
                Some(Change {
                    revision,
                    row: Row::Key(record),
                }) => Some((*revision, record.name.as_str())),
                _ => None,
            };
            fixture.same("after a commit", seen, Some((revision, name)))?;
        }
    }
    Ok(())
}

/// `find` returns the tombstone of a removed key, by its id and by its imported digest.
pub async fn find_returns_the_tombstone_of_a_removed_key<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "find_returns_the_tombstone_of_a_removed_key");
    let batch = fixture
        .batch("acme")
        .put(imported(1, "old token"))
        .put(key(2));
    fixture.commit(batch).await?;
    let batch = fixture.batch("acme").remove(id(1));
    let revision = fixture.commit(batch).await?;
    let batch = fixture.batch("acme").put(key(3));
    fixture.commit(batch).await?;
    let row = Row::Removed {
        key: id(1),
        tenant: tenant("acme"),
    };
    for locator in [Locator::Id(id(1)), Locator::Imported(digest("old token"))] {
        let found = fixture.find(locator).await?.map(|found| found.change);
        let tombstone = Change {
            revision,
            row: row.clone(),
        };
        fixture.same("a removed key", found, Some(tombstone))?;
    }
    Ok(())
}

/// `find` returns a key together with the store's head, which includes every commit that returned. The feed
/// accepts this head as a cursor, and then reports every later change of the key.
pub async fn find_returns_a_head_that_can_be_followed<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "find_returns_a_head_that_can_be_followed");
    let batch = fixture.batch("acme").put(key(1));
    fixture.commit(batch).await?;
    let batch = fixture.batch("globex").put(key(2));
    fixture.commit(batch).await?;
    let Some(found) = fixture.find(Locator::Id(id(1))).await? else {
        return Err(fixture.fail("the key was not found"));
    };
    fixture.ensure(found.head.revision <= fixture.expected.revision, || {
        format!(
            "head {} is ahead of the last commit {}",
            found.head.revision, fixture.expected.revision
        )
    })?;
    fixture.ensure(found.head.revision >= fixture.expected.revision, || {
        format!(
            "head {} is behind the last commit {}",
            found.head.revision, fixture.expected.revision
        )
    })?;
    let batch = fixture.batch("acme").remove(id(1));
    let revision = fixture.commit(batch).await?;
    let pages = fixture.follow(found.head, 10).await?;
    let later = pages.iter().flat_map(|page| &page.changes);
    let later = later.filter(|change| change.revision == revision).count();
    fixture.same("changes of the removal after the head", later, 1)
}
