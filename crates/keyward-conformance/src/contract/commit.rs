//! Clauses of `commit`: which commits are refused, and that a refusal writes nothing.

use super::Violation;
use super::fixtures::{
    Checked, Desk, Running, STEPS, digest, id, imported, key, owner, tenant, text,
};
use keyward::audit::Action;
use keyward::key::Credential;
use keyward::store::{CommitError, Epoch, KeyStore, LoadRequest, Locator, Revision, Row};

/// A commit is applied only if the tenant is at exactly the expected revision.
pub async fn a_commit_on_another_revision_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_commit_on_another_revision_is_a_conflict");
    let ahead = desk.batch("acme").put(key(1)).expecting(Revision(1));
    desk.conflicts("an unknown tenant expected at revision 1", ahead)
        .await?;
    let batch = desk.batch("acme").put(key(1));
    let first = desk.land(batch).await?;
    let again = desk.batch("acme").put(key(2)).expecting(Revision::ZERO);
    desk.conflicts("a known tenant expected at zero", again)
        .await?;
    let batch = desk.batch("globex").put(key(3));
    let elsewhere = desk.land(batch).await?;
    let batch = desk.batch("acme").put(key(4)).expecting(elsewhere);
    desk.conflicts("a tenant expected at the store's head", batch)
        .await?;
    // A commit of another tenant does not advance `acme`.
    let batch = desk.batch("acme").put(key(5));
    let second = desk.land(batch).await?;
    let old = desk.batch("acme").put(key(6)).expecting(first);
    desk.conflicts("a tenant expected at its revision before", old)
        .await?;
    let ahead = desk
        .batch("acme")
        .put(key(7))
        .expecting(Revision(second.0 + 1));
    desk.conflicts("a tenant expected ahead", ahead).await?;
    // A commit that only has audit entries advances the tenant too.
    let batch = desk.batch("acme").entry(Action::KeyDisabled, Some(id(1)));
    desk.land(batch).await?;
    let old = desk
        .batch("acme")
        .entry(Action::KeyEnabled, Some(id(1)))
        .expecting(second);
    desk.conflicts("a tenant expected before its last audit entry", old)
        .await
}

/// A commit that was decided on another history of the store is a conflict at any revision. A
/// commit that was decided on the store's own history is not a conflict. A commit that names no
/// history is not a conflict either.
pub async fn a_commit_on_another_history_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_commit_on_another_history_is_a_conflict");
    let own = desk.head().await?.epoch;
    for (n, path) in (1..).zip(["acme", "acme", "globex"]) {
        let full = desk.batch(path).put(key(n)).owner(owner("eve")).provision();
        let other = full.clone().in_history(Epoch(own.0 ^ 1));
        desk.conflicts(&format!("{path} on another history"), other)
            .await?;
        desk.agrees("after the conflict").await?;
        desk.land(full.in_history(own)).await?;
        let batch = desk.batch(path).put(key(n + 10));
        desk.land(batch).await?;
    }
    desk.agrees("after the commits").await
}

/// A conflict writes nothing: no record, owner, tenant row, audit entry or change. A refused commit
/// takes no id and no digest.
pub async fn a_conflict_writes_nothing<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_conflict_writes_nothing");
    let batch = desk.batch("acme").put(key(1)).put(key(2));
    desk.land(batch).await?;
    let full = desk
        .batch("acme")
        .provision()
        .owner(owner("ann"))
        .remove(id(2));
    let full = full.put(key(3)).put(imported(4, "old token"));
    let old = full.clone().expecting(Revision::ZERO);
    desk.conflicts("a tenant expected at zero", old).await?;
    desk.agrees("after a conflict").await?;
    let found = desk.find(Locator::Imported(digest("old token"))).await?;
    desk.same("the digest of a refused commit", found, None)?;
    desk.land(full).await?;
    desk.agrees("after the same batch at the right revision")
        .await
}

/// A batch that is refused because of one id or digest writes nothing.
pub async fn a_refused_batch_writes_nothing<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_refused_batch_writes_nothing");
    let batch = desk.batch("acme").put(key(1)).put(key(2));
    desk.land(batch).await?;
    let batch = desk.batch("globex").put(key(3)).put(imported(4, "taken"));
    desk.land(batch).await?;
    let full = desk
        .batch("acme")
        .provision()
        .owner(owner("ann"))
        .remove(id(2));
    let full = full.put(key(5)).put(imported(6, "old token"));
    let first = desk
        .batch("acme")
        .put(key(3))
        .put(key(5))
        .put(imported(6, "old token"));
    desk.id_taken(
        "a taken id that comes last",
        full.clone().put(key(3)),
        id(3),
    )
    .await?;
    desk.agrees("after a taken id that comes last").await?;
    desk.id_taken("a taken id that comes first", first, id(3))
        .await?;
    desk.agrees("after a taken id that comes first").await?;
    desk.digest_taken("a taken digest", full.clone().put(imported(7, "taken")))
        .await?;
    desk.agrees("after a taken digest").await?;
    desk.land(full).await?;
    desk.agrees("after the batch without what was refused")
        .await
}

/// Ids are unique across tenants: no commit overwrites another tenant's key.
pub async fn ids_are_unique_across_tenants<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "ids_are_unique_across_tenants");
    let batch = desk.batch("acme").put(key(1));
    desk.land(batch).await?;
    for path in ["globex", "acme/web"] {
        let batch = desk.batch(path).put(key(1));
        desk.id_taken(&format!("{path} puts a key of acme"), batch, id(1))
            .await?;
    }
    desk.agrees("after the refusals").await?;
    let again = desk
        .batch("acme")
        .put(key(1).with(|key| key.name = text("renamed")));
    desk.land(again).await?;
    desk.agrees("after the tenant changed its own key").await
}

/// A removed key never comes back, in any tenant.
pub async fn a_removed_key_never_comes_back<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_removed_key_never_comes_back");
    let batch = desk.batch("acme").put(key(1)).put(key(2));
    desk.land(batch).await?;
    let batch = desk.batch("acme").remove(id(1));
    desk.land(batch).await?;
    for path in ["acme", "globex"] {
        let batch = desk.batch(path).put(key(1));
        desk.id_taken(&format!("{path} puts a removed key"), batch, id(1))
            .await?;
    }
    desk.agrees("after the refusals").await
}

/// The removal of a key that was never stored makes the key's id unusable. A key that is created
/// and deleted in one commit leaves only the removal.
pub async fn removing_a_key_never_stored_takes_its_id<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "removing_a_key_never_stored_takes_its_id");
    let batch = desk.batch("acme").put(key(1)).remove(id(2));
    desk.land(batch).await?;
    for path in ["acme", "globex"] {
        let batch = desk.batch(path).put(key(2));
        desk.id_taken(&format!("{path} puts a removed key"), batch, id(2))
            .await?;
    }
    let found = desk.find(Locator::Id(id(2))).await?;
    let tombstone = Row::Removed {
        key: id(2),
        tenant: tenant("acme"),
    };
    desk.same(
        "the removed key",
        found.map(|found| found.change.row),
        Some(tombstone),
    )
}

/// Imported digests are unique across tenants. A key may keep its own digest.
pub async fn imported_digests_are_unique_across_tenants<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "imported_digests_are_unique_across_tenants");
    let batch = desk.batch("acme").put(imported(1, "one"));
    desk.land(batch).await?;
    for path in ["acme", "globex"] {
        let batch = desk.batch(path).put(imported(2, "one"));
        desk.digest_taken(&format!("{path} imports a digest again"), batch)
            .await?;
    }
    desk.agrees("after the refusals").await?;
    // A peppered digest does not count as imported, even if its bytes are the same.
    let same_bytes = key(4).with(|key| {
        key.credential = Credential::Peppered {
            pepper: text("p1"),
            digest: digest("one"),
        }
    });
    let renamed = imported(1, "one").with(|key| key.name = text("renamed"));
    let batch = desk.batch("acme").put(renamed).put(same_bytes);
    desk.land(batch).await?;
    desk.agrees("after the key itself was changed").await
}

/// Two keys of one batch cannot have the same imported digest.
pub async fn imported_digests_are_unique_within_a_batch<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "imported_digests_are_unique_within_a_batch");
    let batch = desk
        .batch("acme")
        .put(imported(2, "two"))
        .put(imported(3, "two"));
    desk.digest_taken("a batch that imports one digest twice", batch)
        .await?;
    desk.agrees("after the refusal").await?;
    let batch = desk
        .batch("acme")
        .put(imported(2, "two"))
        .put(imported(3, "three"));
    desk.land(batch).await?;
    desk.agrees("after a batch of two digests").await
}

/// The imported digest of a removed key stays taken permanently.
pub async fn the_digest_of_a_removed_key_stays_taken<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "the_digest_of_a_removed_key_stays_taken");
    let batch = desk.batch("acme").put(imported(1, "one"));
    desk.land(batch).await?;
    let batch = desk.batch("acme").remove(id(1));
    desk.land(batch).await?;
    for path in ["acme", "globex"] {
        let batch = desk.batch(path).put(imported(2, "one"));
        desk.digest_taken(
            &format!("{path} imports the digest of a removed key"),
            batch,
        )
        .await?;
    }
    desk.agrees("after the refusals").await
}

/// A digest that a commit claims for a key stays taken permanently, like the digest of a record.
/// The digest stays taken across tenants, within a batch, after the key is removed, and if the key
/// never existed.
pub async fn a_claimed_digest_stays_taken<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_claimed_digest_stays_taken");
    let batch = desk.batch("acme").put(imported(1, "one"));
    desk.land(batch.claim("mark of one", id(1))).await?;
    // A claim without a record.
    let batch = desk.batch("globex").claim("blocked", id(8));
    desk.land(batch).await?;
    let taken = ["mark of one", "blocked", "one"];
    claims_are_refused(&mut desk, &taken).await?;
    // A key that is written again keeps its claims, and may get more claims.
    let renamed = imported(1, "one").with(|key| key.name = text("renamed"));
    let batch = desk.batch("acme").put(renamed);
    let batch = batch.claim("mark of one", id(1)).claim("another", id(1));
    desk.land(batch).await?;
    let batch = desk.batch("acme").put(imported(2, "two"));
    desk.digest_taken(
        "a batch that imports a digest of another key in it",
        batch.claim("two", id(3)),
    )
    .await?;
    let batch = desk.batch("acme").claim("three", id(2));
    desk.digest_taken(
        "a batch that says of one digest that it is two keys'",
        batch.claim("three", id(3)),
    )
    .await?;
    desk.agrees("after the refusals").await?;
    let batch = desk.batch("acme").remove(id(1));
    desk.land(batch).await?;
    let taken = ["mark of one", "another", "blocked", "one"];
    claims_are_refused(&mut desk, &taken).await
}

/// Checks that no tenant gets any of these digests, either in a record or by a claim.
async fn claims_are_refused<S: KeyStore>(desk: &mut Desk<S>, taken: &[&str]) -> Checked {
    for of in taken {
        for path in ["acme", "globex", "acme/web"] {
            let batch = desk.batch(path).put(imported(20, of));
            let what = format!("{path} imports {of:?}");
            desk.digest_taken(&what, batch).await?;
            let batch = desk.batch(path).put(imported(20, "free")).claim(of, id(20));
            let what = format!("{path} says that {of:?} is its key's");
            desk.digest_taken(&what, batch).await?;
        }
    }
    desk.agrees("after digests were refused").await
}

/// If several concurrent commits claim one digest, exactly one of them is applied.
pub async fn concurrent_claims_of_one_digest_have_one_winner<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "concurrent_claims_of_one_digest_have_one_winner");
    // In the last rounds both commits start together. By then the store has finished its
    // preparations.
    for round in 0..=3 * STEPS {
        let mut claims = |path: &str, number: u64| {
            let key = 10 * round as u64 + number;
            let batch = desk.batch(path).put(imported(key, &format!("token {key}")));
            batch.claim(&format!("mark {round}"), id(key))
        };
        let batches = [claims("acme", 1), claims("globex", 2)];
        let [slow, quick] = batches.clone();
        let answers = {
            let mut running = Running::new(desk.store.commit(slow.commit));
            let passed = desk.store.commit(quick.commit);
            if round <= STEPS {
                running.steps(round).await;
                let passed = running.let_pass(passed).await;
                vec![running.finish().await, passed]
            } else {
                Running::finish_all(vec![running, Running::new(passed)]).await
            }
        };
        let mut winners = 0;
        for (batch, answer) in batches.iter().zip(&answers) {
            match answer {
                Ok(revision) => {
                    winners += 1;
                    desk.landed(batch, *revision);
                }
                Err(CommitError::DigestTaken) => {}
                Err(other) => return Err(desk.fail(format!("commit failed: {other}"))),
            }
        }
        desk.ensure(winners == 1, || {
            format!("{winners} of two commits got one digest, in round {round}")
        })?;
    }
    desk.agrees("after the races").await
}

/// Every commit's revision is above all earlier revisions, across tenants. Views, rows and audit
/// entries contain the revision of their commit.
pub async fn revisions_increase_in_commit_order<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "revisions_increase_in_commit_order");
    let mut last = Revision::ZERO;
    for (n, path) in (1..).zip(["acme", "globex", "acme", "acme/web", "globex", "acme"]) {
        let batch = desk.batch(path).put(key(n));
        let revision = desk.land(batch).await?;
        desk.ensure(revision > last, || {
            format!("{path} got revision {revision} after revision {last}")
        })?;
        let view = desk.load(path, LoadRequest::none()).await?;
        desk.same("revision of the tenant", view.revision, revision)?;
        last = revision;
    }
    desk.agrees("after the commits").await
}

/// Once any reader has seen a revision, no commit at or below it appears later: commits become
/// visible in the order of their revisions.
pub async fn nothing_appears_behind_a_revision_seen<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let clause = "nothing_appears_behind_a_revision_seen";
    for steps in 0..=STEPS {
        let mut desk = Desk::new(make, clause);
        let start = desk.head().await?;
        let slow = desk.batch("acme").put(key(1));
        let quick = desk.batch("globex").put(key(2));
        let mut running = Running::new(desk.store.commit(slow.commit.clone()));
        running.steps(steps).await;
        let passed = running
            .let_pass(desk.store.commit(quick.commit.clone()))
            .await;
        let seen = running.let_pass(desk.follow(start, 10)).await?;
        let landed = running.finish().await;
        let refused = |error: CommitError| desk.fail(format!("commit failed: {error}"));
        landed.map_err(refused)?;
        passed.map_err(refused)?;
        let upto = seen.last().map_or(start, |page| page.upto);
        let mut received: Vec<_> = seen.into_iter().flat_map(|page| page.changes).collect();
        for page in desk.follow(upto, 10).await? {
            received.extend(page.changes);
        }
        let rows: Vec<_> = received.iter().map(|change| change.row.key()).collect();
        desk.ensure(rows.len() == 2, || {
            format!(
                "two commits, one begun {steps} polls before the other; a follower that read in \
                 between saw {rows:?}"
            )
        })?;
        let ordered = received.is_sorted_by(|a, b| a.revision < b.revision);
        desk.ensure(ordered, || {
            format!("a later page returned an earlier commit: {rows:?}")
        })?;
    }
    Ok(())
}

/// If several commits on one tenant at the same revision run concurrently, exactly one is applied;
/// the others are conflicts.
pub async fn concurrent_commits_have_one_winner<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let clause = "concurrent_commits_have_one_winner";
    for steps in 0..=STEPS {
        let mut desk = Desk::new(make, clause);
        let batch = desk.batch("acme").provision();
        desk.land(batch).await?;
        let batches = [
            desk.batch("acme").put(key(1)),
            desk.batch("acme").put(key(2)),
        ];
        let [slow, quick] = batches.clone();
        let answers = {
            let mut running = Running::new(desk.store.commit(slow.commit));
            running.steps(steps).await;
            let quick = running.let_pass(desk.store.commit(quick.commit)).await;
            [running.finish().await, quick]
        };
        let mut winners = 0;
        for (batch, answer) in batches.iter().zip(&answers) {
            match answer {
                Ok(revision) => {
                    winners += 1;
                    desk.landed(batch, *revision);
                }
                Err(CommitError::Conflict) => {}
                Err(other) => return Err(desk.fail(format!("commit failed: {other}"))),
            }
        }
        desk.ensure(winners == 1, || {
            format!("{winners} of two commits on one revision were applied ({steps} polls apart)")
        })?;
        desk.agrees("after the race").await?;
    }
    Ok(())
}

/// A commit whose future is dropped after any number of polls is applied completely or not at all.
pub async fn a_dropped_commit_is_all_or_nothing<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let clause = "a_dropped_commit_is_all_or_nothing";
    for steps in 0..=STEPS {
        let mut desk = Desk::new(make, clause);
        let batch = desk.batch("acme").put(key(1)).put(key(2));
        desk.land(batch).await?;
        let full = desk
            .batch("acme")
            .provision()
            .owner(owner("ann"))
            .remove(id(2));
        let full = full.put(key(3)).put(imported(4, "old token"));
        let answer = {
            let mut running = Running::new(desk.store.commit(full.commit.clone()));
            running.steps(steps).await;
            running.output()
        };
        if let Some(Err(error)) = &answer {
            return Err(desk.fail(format!("commit failed: {error}")));
        }
        // A commit at the same revision settles the question: afterwards, the dropped commit has
        // landed or never will. This commit may have to wait for the dropped commit's locks.
        let fence = desk.batch("acme").put(key(9));
        match desk.store.commit(fence.commit.clone()).await {
            Ok(revision) => desk.landed(&fence, revision),
            Err(CommitError::Conflict) => {
                let revision = desk.load("acme", LoadRequest::none()).await?.revision;
                desk.landed(&full, revision);
            }
            Err(other) => return Err(desk.fail(format!("commit failed: {other}"))),
        }
        desk.agrees(&format!("after a commit was dropped after {steps} polls"))
            .await?;
    }
    Ok(())
}
