//! Clauses of `scan`, and of the change feed that a follower reads after a scan.

use std::collections::BTreeMap;

use super::ClauseViolation;
use super::fixtures::{
    CommitBuilder, PolledFuture, STEPS, StoreFixture, count, id, imported, key, owner, text,
};
use keyward::KeyId;
use keyward::audit::Action;
use keyward::store::{Change, KeyStore, Row, RowKey, StoreError, StoreErrorKind};

/// A scan returns every row exactly once, in the order of [`RowKey`], whatever the limit of a page.
pub async fn a_scan_returns_every_row_in_order<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_scan_returns_every_row_in_order");
    let (_, rows) = fixture.scan_all(1).await?;
    fixture.same("rows of an empty store", rows, Vec::new())?;
    // Ids are unsigned, so ids with the highest bit set must come last. A store that keeps ids as signed
    // numbers would return them first.
    let edge = |id| key(1).with(|key| key.id = KeyId::from_u128(id));
    let batch = fixture
        .batch("globex")
        .owner(owner("zoe"))
        .put(key(2))
        .put(edge(u128::MAX));
    fixture.commit(batch.put(edge(1 << 127))).await?;
    let batch = fixture
        .batch("acme/web")
        .provision()
        .owner(owner("ann"))
        .put(key(3));
    fixture
        .commit(batch.put(edge((1 << 64) - 1)).put(edge(1 << 63)))
        .await?;
    let batch = fixture
        .batch("acme")
        .provision()
        .owner(owner("bob"))
        .owner(owner("Ann"));
    fixture
        .commit(batch.put(key(5)).put(imported(4, "old token")).put(edge(0)))
        .await?;
    let batch = fixture.batch("acme").remove(id(5)).put(key(6));
    fixture.commit(batch).await?;
    let want: Vec<_> = fixture.expected.live_rows().into_values().collect();
    for limit in 1..=want.len() + 2 {
        let (_, rows) = fixture.scan_all(limit).await?;
        let got: Vec<_> = rows.iter().map(|change| change.row.key()).collect();
        let keys: Vec<_> = want.iter().map(|change| change.row.key()).collect();
        fixture.same(&format!("names of the rows in pages of {limit}"), got, keys)?;
        fixture.same(&format!("rows in pages of {limit}"), &rows, &want)?;
    }
    Ok(())
}

/// The pages of a scan may come from different snapshots. After the scan, a follower applies the changes
/// since the first page's head. It must then have the same rows as the store.
pub async fn a_scan_and_its_changes_lead_to_the_store<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_scan_and_its_changes_lead_to_the_store");
    let keys = (1..=9).map(|n| key(n * 2));
    let batch = fixture.batch("acme").owner(owner("bob"));
    fixture.commit(keys.fold(batch, CommitBuilder::put)).await?;
    let renamed = key(18).with(|key| key.name = text("renamed"));
    let mut rows = BTreeMap::new();
    let mut page = fixture.scan(None, 1).await?;
    let first = page.head;
    for taken in 1.. {
        take(&mut rows, page.rows);
        let Some(after) = page.next else { break };
        let batch = fixture.batch("acme");
        // Change the store between two pages: at rows that the scan has already returned, and at rows that it
        // has not returned yet.
        let batch = match taken {
            1 => batch.put(key(20)).put(renamed.clone()),
            4 => batch.remove(id(2)).remove(id(4)),
            5 => batch
                .owner(owner("ann"))
                .put(key(1))
                .put(imported(31, "old token")),
            6 => batch.owner(owner("bob")).remove(id(16)),
            _ => batch.entry(Action::KeyDisabled, Some(id(18))),
        };
        fixture.commit(batch).await?;
        page = fixture.scan(Some(after), 1).await?;
    }
    for page in fixture.follow(first, 3).await? {
        take(&mut rows, page.changes);
    }
    rows.retain(|_, change| !matches!(change.row, Row::Removed { .. }));
    fixture.same(
        "rows after scan and changes",
        rows,
        fixture.expected.live_rows(),
    )
}

/// A store must read the head of a page before the rows. A concurrent commit is then either on the page or in
/// the changes after its head.
pub async fn a_scan_reads_its_head_before_its_rows<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let clause = "a_scan_reads_its_head_before_its_rows";
    for steps in 0..=STEPS {
        let mut fixture = StoreFixture::new(make, clause);
        let batch = fixture.batch("acme").put(key(1)).put(key(3));
        fixture.commit(batch).await?;
        let beside = fixture.batch("acme").put(key(2)).remove(id(3));
        let (revision, page) = {
            let mut running = PolledFuture::new(fixture.scan(None, 10));
            running.steps(steps).await;
            let commit = fixture.store.commit(beside.commit.clone());
            let landed = running.let_pass(commit).await;
            let landed = landed.map_err(|error| fixture.fail(format!("commit failed: {error}")))?;
            (landed, running.finish().await?)
        };
        fixture.record_commit(&beside, revision);
        let mut rows = BTreeMap::new();
        take(&mut rows, page.rows);
        for page in fixture.follow(page.head, 10).await? {
            take(&mut rows, page.changes);
        }
        rows.retain(|_, change| !matches!(change.row, Row::Removed { .. }));
        let what = format!("rows after a scan with a commit beside it, {steps} polls apart");
        fixture.same(&what, rows, fixture.expected.live_rows())?;
    }
    Ok(())
}

/// `scan_all` returns every row exactly once, in any order, with the store's head. An empty store still
/// returns one page, without rows.
pub async fn a_scan_of_all_returns_every_row_once<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_scan_of_all_returns_every_row_once");
    for round in 0..4 {
        let want: Vec<_> = fixture.expected.live_rows().into_values().collect();
        let at = fixture.scan(None, 1).await?;
        for limit in 1..=want.len() + 2 {
            let pages = fixture.pages_of_all(limit).await?;
            let what = |part: &str| format!("{part} of a scan of everything, {limit} at a time");
            let first = &pages[0];
            fixture.same(&what("the head"), first.head, at.head)?;
            let rows = pages.into_iter().flat_map(|page| page.rows);
            let standing = |change: &Change| !matches!(change.row, Row::Removed { .. });
            let mut rows: Vec<_> = rows.filter(standing).collect();
            rows.sort_by_key(|change| change.row.key());
            fixture.same(&what("rows"), &rows, &want)?;
        }
        let batch = match round {
            0 => fixture
                .batch("acme")
                .provision()
                .owner(owner("bob"))
                .put(key(1)),
            1 => fixture
                .batch("acme/web")
                .owner(owner("ann"))
                .put(imported(4, "old token"))
                .put(key(3))
                .put(key(2)),
            _ => fixture.batch("acme").put(key(5)).remove(id(1)),
        };
        fixture.commit(batch).await?;
    }
    Ok(())
}

/// `scan_all` reads the head of its first page before any row. A concurrent commit is then on a page or in
/// the changes after that head.
pub async fn a_scan_of_all_reads_its_head_before_its_rows<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let clause = "a_scan_of_all_reads_its_head_before_its_rows";
    for steps in 0..=STEPS {
        let mut fixture = StoreFixture::new(make, clause);
        let batch = fixture.batch("acme").put(key(1)).put(key(3)).put(key(5));
        fixture.commit(batch).await?;
        let beside = fixture.batch("acme").put(key(2)).put(key(6)).remove(id(3));
        let (revision, pages) = {
            let mut running = PolledFuture::new(fixture.pages_of_all(2));
            running.steps(steps).await;
            let commit = fixture.store.commit(beside.commit.clone());
            let landed = running.let_pass(commit).await;
            let landed = landed.map_err(|error| fixture.fail(format!("commit failed: {error}")))?;
            (landed, running.finish().await?)
        };
        fixture.record_commit(&beside, revision);
        let mut rows = BTreeMap::new();
        let head = pages[0].head;
        pages
            .into_iter()
            .for_each(|page| take(&mut rows, page.rows));
        for page in fixture.follow(head, 10).await? {
            take(&mut rows, page.changes);
        }
        rows.retain(|_, change| !matches!(change.row, Row::Removed { .. }));
        let what = format!("rows after everything was read beside a commit, {steps} polls apart");
        fixture.same(&what, rows, fixture.expected.live_rows())?;
    }
    Ok(())
}

/// If the callback of `scan_all` returns an error, `scan_all` stops and returns this error.
pub async fn a_scan_of_all_returns_the_consumers_error<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_scan_of_all_returns_the_consumers_error");
    let batch = fixture.batch("acme").provision();
    fixture
        .commit((1..=9).map(key).fold(batch, CommitBuilder::put))
        .await?;
    for taken in 1..=3 {
        let mut received = 0;
        let refused = || StoreError::new(StoreErrorKind::Corrupt, "taking a page of the kit");
        let mut take = |_| {
            received += 1;
            if received < taken {
                Ok(())
            } else {
                Err(refused())
            }
        };
        let ended = fixture.store.scan_all(count(2), &mut take).await;
        fixture.same("pages returned", received, taken)?;
        let ended = ended.err().map(|error| (error.kind(), error.to_string()));
        let want = refused();
        fixture.same("the end", ended, Some((want.kind(), want.to_string())))?;
    }
    // A scan that was stopped by an error must not block later commits.
    let batch = fixture.batch("acme").put(key(10));
    fixture.commit(batch).await.map(drop)
}

fn take(rows: &mut BTreeMap<RowKey, Change>, changes: Vec<Change>) {
    for change in changes {
        let row = change.row.key();
        if rows
            .get(&row)
            .is_none_or(|own| own.revision <= change.revision)
        {
            rows.insert(row, change);
        }
    }
}
