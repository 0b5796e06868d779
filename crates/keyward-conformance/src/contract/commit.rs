//! Clauses of `commit`: the commits that a store must refuse, and the effects of a commit.

use super::ClauseViolation;
use super::fixtures::{
    ClauseResult, PolledFuture, STEPS, StoreFixture, digest, id, imported, key, owner, tenant, text,
};
use keyward::audit::Action;
use keyward::key::Credential;
use keyward::store::{CommitError, Epoch, KeyStore, LoadRequest, Locator, Revision, Row};

/// A commit is applied only if the tenant is at exactly the expected revision.
pub async fn a_commit_on_another_revision_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_commit_on_another_revision_is_a_conflict");
    let ahead = fixture.batch("acme").put(key(1)).expecting(Revision(1));
    fixture
        .conflicts("an unknown tenant expected at revision 1", ahead)
        .await?;
    let batch = fixture.batch("acme").put(key(1));
    let first = fixture.commit(batch).await?;
    let again = fixture.batch("acme").put(key(2)).expecting(Revision::ZERO);
    fixture
        .conflicts("a known tenant expected at zero", again)
        .await?;
    let batch = fixture.batch("globex").put(key(3));
    let elsewhere = fixture.commit(batch).await?;
    let batch = fixture.batch("acme").put(key(4)).expecting(elsewhere);
    fixture
        .conflicts("a tenant expected at the store's head", batch)
        .await?;
    // Commits of other tenants leave the revision of `acme` unchanged, so its expected revision still
    // matches.
    let batch = fixture.batch("acme").put(key(5));
    let second = fixture.commit(batch).await?;
    let old = fixture.batch("acme").put(key(6)).expecting(first);
    fixture
        .conflicts("a tenant expected at its revision before", old)
        .await?;
    let ahead = fixture
        .batch("acme")
        .put(key(7))
        .expecting(Revision(second.0 + 1));
    fixture.conflicts("a tenant expected ahead", ahead).await?;
    // A commit with audit entries but no rows also raises the tenant's revision.
    let batch = fixture
        .batch("acme")
        .entry(Action::KeyDisabled, Some(id(1)));
    fixture.commit(batch).await?;
    let old = fixture
        .batch("acme")
        .entry(Action::KeyEnabled, Some(id(1)))
        .expecting(second);
    fixture
        .conflicts("a tenant expected before its last audit entry", old)
        .await
}

/// A store refuses a commit that names another epoch than the store's, even if its expected revision matches.
/// A commit with the store's epoch or no epoch is not refused for this reason.
pub async fn a_commit_on_another_history_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_commit_on_another_history_is_a_conflict");
    let own = fixture.head().await?.epoch;
    for (n, path) in (1..).zip(["acme", "acme", "globex"]) {
        let full = fixture
            .batch(path)
            .put(key(n))
            .owner(owner("eve"))
            .provision();
        let other = full.clone().in_history(Epoch(own.0 ^ 1));
        fixture
            .conflicts(&format!("{path} on another history"), other)
            .await?;
        fixture.check_contents("after the conflict").await?;
        fixture.commit(full.in_history(own)).await?;
        let batch = fixture.batch(path).put(key(n + 10));
        fixture.commit(batch).await?;
    }
    fixture.check_contents("after the commits").await
}

/// A commit that is refused as a conflict writes nothing: no key, owner, tenant row, audit entry or change.
/// The ids and digests of the refused commit stay free.
pub async fn a_conflict_writes_nothing<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_conflict_writes_nothing");
    let batch = fixture.batch("acme").put(key(1)).put(key(2));
    fixture.commit(batch).await?;
    let full = fixture
        .batch("acme")
        .provision()
        .owner(owner("ann"))
        .remove(id(2));
    let full = full.put(key(3)).put(imported(4, "old token"));
    let old = full.clone().expecting(Revision::ZERO);
    fixture.conflicts("a tenant expected at zero", old).await?;
    fixture.check_contents("after a conflict").await?;
    let found = fixture.find(Locator::Imported(digest("old token"))).await?;
    fixture.same("the digest of a refused commit", found, None)?;
    fixture.commit(full).await?;
    fixture
        .check_contents("after the same batch at the right revision")
        .await
}

/// A commit with one id or digest that is already taken is refused, and none of its other rows are written.
pub async fn a_refused_batch_writes_nothing<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_refused_batch_writes_nothing");
    let batch = fixture.batch("acme").put(key(1)).put(key(2));
    fixture.commit(batch).await?;
    let batch = fixture
        .batch("globex")
        .put(key(3))
        .put(imported(4, "taken"));
    fixture.commit(batch).await?;
    let full = fixture
        .batch("acme")
        .provision()
        .owner(owner("ann"))
        .remove(id(2));
    let full = full.put(key(5)).put(imported(6, "old token"));
    let first = fixture
        .batch("acme")
        .put(key(3))
        .put(key(5))
        .put(imported(6, "old token"));
    fixture
        .id_taken(
            "a taken id that comes last",
            full.clone().put(key(3)),
            id(3),
        )
        .await?;
    fixture
        .check_contents("after a taken id that comes last")
        .await?;
    fixture
        .id_taken("a taken id that comes first", first, id(3))
        .await?;
    fixture
        .check_contents("after a taken id that comes first")
        .await?;
    fixture
        .digest_taken("a taken digest", full.clone().put(imported(7, "taken")))
        .await?;
    fixture.check_contents("after a taken digest").await?;
    fixture.commit(full).await?;
    fixture
        .check_contents("after the batch without what was refused")
        .await
}

/// Ids are unique across tenants: no commit may overwrite another tenant's key.
pub async fn ids_are_unique_across_tenants<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "ids_are_unique_across_tenants");
    let batch = fixture.batch("acme").put(key(1));
    fixture.commit(batch).await?;
    for path in ["globex", "acme/web"] {
        let batch = fixture.batch(path).put(key(1));
        fixture
            .id_taken(&format!("{path} puts a key of acme"), batch, id(1))
            .await?;
    }
    fixture.check_contents("after the refusals").await?;
    let again = fixture
        .batch("acme")
        .put(key(1).with(|key| key.name = text("renamed")));
    fixture.commit(again).await?;
    fixture
        .check_contents("after the tenant changed its own key")
        .await
}

/// The id of a removed key stays taken: no tenant can store a key with that id again.
pub async fn a_removed_key_never_comes_back<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_removed_key_never_comes_back");
    let batch = fixture.batch("acme").put(key(1)).put(key(2));
    fixture.commit(batch).await?;
    let batch = fixture.batch("acme").remove(id(1));
    fixture.commit(batch).await?;
    for path in ["acme", "globex"] {
        let batch = fixture.batch(path).put(key(1));
        fixture
            .id_taken(&format!("{path} puts a removed key"), batch, id(1))
            .await?;
    }
    fixture.check_contents("after the refusals").await
}

/// If a commit removes a key that was never stored, the key's id is taken permanently. This happens if one
/// commit both creates and deletes a key: the commit then contains only the removal.
pub async fn removing_a_key_never_stored_takes_its_id<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "removing_a_key_never_stored_takes_its_id");
    let batch = fixture.batch("acme").put(key(1)).remove(id(2));
    fixture.commit(batch).await?;
    for path in ["acme", "globex"] {
        let batch = fixture.batch(path).put(key(2));
        fixture
            .id_taken(&format!("{path} puts a removed key"), batch, id(2))
            .await?;
    }
    let found = fixture.find(Locator::Id(id(2))).await?;
    let tombstone = Row::Removed {
        key: id(2),
        tenant: tenant("acme"),
    };
    fixture.same(
        "the removed key",
        found.map(|found| found.change.row),
        Some(tombstone),
    )
}

/// No two tenants can import the same digest. A later commit may write an imported key again with the key's
/// own digest.
pub async fn imported_digests_are_unique_across_tenants<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "imported_digests_are_unique_across_tenants");
    let batch = fixture.batch("acme").put(imported(1, "one"));
    fixture.commit(batch).await?;
    for path in ["acme", "globex"] {
        let batch = fixture.batch(path).put(imported(2, "one"));
        fixture
            .digest_taken(&format!("{path} imports a digest again"), batch)
            .await?;
    }
    fixture.check_contents("after the refusals").await?;
    // A peppered digest is never compared with imported digests, so equal bytes are no conflict.
    let same_bytes = key(4).with(|key| {
        key.credential = Credential::Peppered {
            pepper: text("p1"),
            digest: digest("one"),
        }
    });
    let renamed = imported(1, "one").with(|key| key.name = text("renamed"));
    let batch = fixture.batch("acme").put(renamed).put(same_bytes);
    fixture.commit(batch).await?;
    fixture
        .check_contents("after the key itself was changed")
        .await
}

/// A commit with two keys that have the same imported digest is refused.
pub async fn imported_digests_are_unique_within_a_batch<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "imported_digests_are_unique_within_a_batch");
    let batch = fixture
        .batch("acme")
        .put(imported(2, "two"))
        .put(imported(3, "two"));
    fixture
        .digest_taken("a batch that imports one digest twice", batch)
        .await?;
    fixture.check_contents("after the refusal").await?;
    let batch = fixture
        .batch("acme")
        .put(imported(2, "two"))
        .put(imported(3, "three"));
    fixture.commit(batch).await?;
    fixture.check_contents("after a batch of two digests").await
}

/// The imported digest of a removed key stays taken permanently, so no other key can import it.
pub async fn the_digest_of_a_removed_key_stays_taken<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "the_digest_of_a_removed_key_stays_taken");
    let batch = fixture.batch("acme").put(imported(1, "one"));
    fixture.commit(batch).await?;
    let batch = fixture.batch("acme").remove(id(1));
    fixture.commit(batch).await?;
    for path in ["acme", "globex"] {
        let batch = fixture.batch(path).put(imported(2, "one"));
        fixture
            .digest_taken(
                &format!("{path} imports the digest of a removed key"),
                batch,
            )
            .await?;
    }
    fixture.check_contents("after the refusals").await
}

/// A digest that a commit claims for a key stays taken, as if the key had imported it. No other key in any
/// tenant can take it, even if the claiming key was removed or never written.
pub async fn a_claimed_digest_stays_taken<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_claimed_digest_stays_taken");
    let batch = fixture.batch("acme").put(imported(1, "one"));
    fixture.commit(batch.claim("mark of one", id(1))).await?;
    // Claims a digest for a key that is never written.
    let batch = fixture.batch("globex").claim("blocked", id(8));
    fixture.commit(batch).await?;
    let taken = ["mark of one", "blocked", "one"];
    claims_are_refused(&mut fixture, &taken).await?;
    // A commit that writes a key again may repeat the key's claims and add new ones.
    let renamed = imported(1, "one").with(|key| key.name = text("renamed"));
    let batch = fixture.batch("acme").put(renamed);
    let batch = batch.claim("mark of one", id(1)).claim("another", id(1));
    fixture.commit(batch).await?;
    let batch = fixture.batch("acme").put(imported(2, "two"));
    fixture
        .digest_taken(
            "a batch that imports a digest of another key in it",
            batch.claim("two", id(3)),
        )
        .await?;
    let batch = fixture.batch("acme").claim("three", id(2));
    fixture
        .digest_taken(
            "a batch that claims one digest for two keys",
            batch.claim("three", id(3)),
        )
        .await?;
    fixture.check_contents("after the refusals").await?;
    let batch = fixture.batch("acme").remove(id(1));
    fixture.commit(batch).await?;
    let taken = ["mark of one", "another", "blocked", "one"];
    claims_are_refused(&mut fixture, &taken).await
}

/// Checks that every tenant is refused if it imports or claims one of the digests in `taken`.
async fn claims_are_refused<S: KeyStore>(
    fixture: &mut StoreFixture<S>,
    taken: &[&str],
) -> ClauseResult {
    for of in taken {
        for path in ["acme", "globex", "acme/web"] {
            let batch = fixture.batch(path).put(imported(20, of));
            let what = format!("{path} imports {of:?}");
            fixture.digest_taken(&what, batch).await?;
            let batch = fixture
                .batch(path)
                .put(imported(20, "free"))
                .claim(of, id(20));
            let what = format!("{path} claims {of:?} for its key");
            fixture.digest_taken(&what, batch).await?;
        }
    }
    fixture.check_contents("after digests were refused").await
}

/// If several concurrent commits claim one digest, exactly one of them is applied.
pub async fn concurrent_claims_of_one_digest_have_one_winner<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "concurrent_claims_of_one_digest_have_one_winner");
    // In the first rounds, poll the first commit a few times before the second commit starts, one poll more
    // in each round, up to 8. In later rounds, start both commits together.
    for round in 0..=3 * STEPS {
        let mut claims = |path: &str, number: u64| {
            let key = 10 * round as u64 + number;
            let batch = fixture
                .batch(path)
                .put(imported(key, &format!("token {key}")));
            batch.claim(&format!("mark {round}"), id(key))
        };
        let batches = [claims("acme", 1), claims("globex", 2)];
        let [slow, quick] = batches.clone();
        let answers = {
            let mut running = PolledFuture::new(fixture.store.commit(slow.commit));
            let passed = fixture.store.commit(quick.commit);
            if round <= STEPS {
                running.steps(round).await;
                let passed = running.let_pass(passed).await;
                vec![running.finish().await, passed]
            } else {
                PolledFuture::finish_all(vec![running, PolledFuture::new(passed)]).await
            }
        };
        let mut winners = 0;
        for (batch, answer) in batches.iter().zip(&answers) {
            match answer {
                Ok(revision) => {
                    winners += 1;
                    fixture.record_commit(batch, *revision);
                }
                Err(CommitError::DigestTaken) => {}
                Err(other) => return Err(fixture.fail(format!("commit failed: {other}"))),
            }
        }
        fixture.ensure(winners == 1, || {
            format!("{winners} of two commits got one digest, in round {round}")
        })?;
    }
    fixture.check_contents("after the races").await
}

/// Each commit gets a higher revision than all earlier commits of all tenants. Views, rows and audit entries
/// carry the revision of the commit that wrote them.
pub async fn revisions_increase_in_commit_order<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "revisions_increase_in_commit_order");
    let mut last = Revision::ZERO;
    for (n, path) in (1..).zip(["acme", "globex", "acme", "acme/web", "globex", "acme"]) {
        let batch = fixture.batch(path).put(key(n));
        let revision = fixture.commit(batch).await?;
        fixture.ensure(revision > last, || {
            format!("{path} got revision {revision} after revision {last}")
        })?;
        let view = fixture.load(path, LoadRequest::none()).await?;
        fixture.same("revision of the tenant", view.revision, revision)?;
        last = revision;
    }
    fixture.check_contents("after the commits").await
}

/// Commits become visible in the order of their revisions. After a reader has seen a revision, no commit with
/// a lower or equal revision appears.
pub async fn nothing_appears_behind_a_revision_seen<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let clause = "nothing_appears_behind_a_revision_seen";
    for steps in 0..=STEPS {
        let mut fixture = StoreFixture::new(make, clause);
        let start = fixture.head().await?;
        let slow = fixture.batch("acme").put(key(1));
        let quick = fixture.batch("globex").put(key(2));
        let mut running = PolledFuture::new(fixture.store.commit(slow.commit.clone()));
        running.steps(steps).await;
        let passed = running
            .let_pass(fixture.store.commit(quick.commit.clone()))
            .await;
        let seen = running.let_pass(fixture.follow(start, 10)).await?;
        let landed = running.finish().await;
        let refused = |error: CommitError| fixture.fail(format!("commit failed: {error}"));
        landed.map_err(refused)?;
        passed.map_err(refused)?;
        let upto = seen.last().map_or(start, |page| page.upto);
        let mut received: Vec<_> = seen.into_iter().flat_map(|page| page.changes).collect();
        for page in fixture.follow(upto, 10).await? {
            received.extend(page.changes);
        }
        let rows: Vec<_> = received.iter().map(|change| change.row.key()).collect();
        fixture.ensure(rows.len() == 2, || {
            format!(
                "two commits, one begun {steps} polls before the other; a follower that read in \
                 between saw {rows:?}"
            )
        })?;
        let ordered = received.is_sorted_by(|a, b| a.revision < b.revision);
        fixture.ensure(ordered, || {
            format!("a later page returned an earlier commit: {rows:?}")
        })?;
    }
    Ok(())
}

/// Of several concurrent commits on one tenant with the same expected revision, exactly one is applied. The
/// others are refused as conflicts.
pub async fn concurrent_commits_have_one_winner<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let clause = "concurrent_commits_have_one_winner";
    for steps in 0..=STEPS {
        let mut fixture = StoreFixture::new(make, clause);
        let batch = fixture.batch("acme").provision();
        fixture.commit(batch).await?;
        let batches = [
            fixture.batch("acme").put(key(1)),
            fixture.batch("acme").put(key(2)),
        ];
        let [slow, quick] = batches.clone();
        let answers = {
            let mut running = PolledFuture::new(fixture.store.commit(slow.commit));
            running.steps(steps).await;
            let quick = running.let_pass(fixture.store.commit(quick.commit)).await;
            [running.finish().await, quick]
        };
        let mut winners = 0;
        for (batch, answer) in batches.iter().zip(&answers) {
            match answer {
                Ok(revision) => {
                    winners += 1;
                    fixture.record_commit(batch, *revision);
                }
                Err(CommitError::Conflict) => {}
                Err(other) => return Err(fixture.fail(format!("commit failed: {other}"))),
            }
        }
        fixture.ensure(winners == 1, || {
            format!("{winners} of two commits on one revision were applied ({steps} polls apart)")
        })?;
        fixture.check_contents("after the race").await?;
    }
    Ok(())
}

/// A commit is applied completely or not at all, even if the caller drops its future after any number of
/// polls.
pub async fn a_dropped_commit_is_all_or_nothing<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let clause = "a_dropped_commit_is_all_or_nothing";
    for steps in 0..=STEPS {
        let mut fixture = StoreFixture::new(make, clause);
        let batch = fixture.batch("acme").put(key(1)).put(key(2));
        fixture.commit(batch).await?;
        let full = fixture
            .batch("acme")
            .provision()
            .owner(owner("ann"))
            .remove(id(2));
        let full = full.put(key(3)).put(imported(4, "old token"));
        let answer = {
            let mut running = PolledFuture::new(fixture.store.commit(full.commit.clone()));
            running.steps(steps).await;
            running.output()
        };
        if let Some(Err(error)) = &answer {
            return Err(fixture.fail(format!("commit failed: {error}")));
        }
        // `fence` is a commit with the same expected revision as the dropped commit. If `fence` is applied,
        // the dropped commit can no longer be applied. If `fence` conflicts, the dropped commit was applied.
        let fence = fixture.batch("acme").put(key(9));
        match fixture.store.commit(fence.commit.clone()).await {
            Ok(revision) => fixture.record_commit(&fence, revision),
            Err(CommitError::Conflict) => {
                let revision = fixture.load("acme", LoadRequest::none()).await?.revision;
                fixture.record_commit(&full, revision);
            }
            Err(other) => return Err(fixture.fail(format!("commit failed: {other}"))),
        }
        fixture
            .check_contents(&format!("after a commit was dropped after {steps} polls"))
            .await?;
    }
    Ok(())
}
