//! Clauses of guards. A guard names a row of any tenant, and the revision at which a commit has read that
//! row. The store refuses the commit if the row has changed since.

use super::ClauseViolation;
use super::fixtures::{
    CommitBuilder, PolledFuture, STEPS, StoreFixture, id, key, owned_by, owner, owner_row,
    tenant_row, text,
};
use keyward::audit::Action;
use keyward::key::KeyRecord;
use keyward::store::{KeyStore, Revision, RowKey};

/// A function that adds a change to a commit.
type CommitEdit = fn(CommitBuilder) -> CommitBuilder;

/// The store applies a commit if each guarded row still has the revision that its guard names. The row may
/// belong to any tenant. A row that never existed has revision zero.
pub async fn a_commit_whose_guards_hold_is_applied<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_commit_whose_guards_hold_is_applied");
    acme(&mut fixture).await?;
    let batch = fixture.batch("globex").put(key(3));
    fixture.commit(batch).await?;
    let rows = [
        tenant_row("acme"),
        owner_row("acme", "ann"),
        RowKey::Key(id(1)),
        RowKey::Key(id(3)),
        // These rows do not exist, so guards at revision zero must hold for them.
        tenant_row("globex"),
        tenant_row("initech"),
        owner_row("acme", "cid"),
        owner_row("initech", "ann"),
        RowKey::Key(id(99)),
    ];
    for (n, row) in (10..).zip(&rows) {
        for (n, path) in [(n, "acme/web"), (n + 20, "acme")] {
            let stands = fixture.expected.row_at(row);
            let batch = fixture.batch(path).put(key(n)).guarded(row.clone(), stands);
            fixture.commit(batch).await?;
        }
    }
    let batch = fixture.batch("acme/web").put(key(50));
    let batch = rows.into_iter().fold(batch, |batch, row| {
        let stands = fixture.expected.row_at(&row);
        batch.guarded(row, stands)
    });
    fixture.commit(batch).await?;
    // A commit may have a guard on a row that it writes itself.
    let own = fixture.expected.row_at(&RowKey::Key(id(1)));
    let batch = fixture.batch("acme").put(renamed(1));
    fixture
        .commit(batch.guarded(RowKey::Key(id(1)), own))
        .await?;
    fixture.check_contents("after the commits").await
}

/// If one of a commit's guarded rows has changed, the store refuses the commit as a conflict, and writes
/// nothing. It also refuses a guard whose revision is higher than that of its row.
pub async fn a_commit_whose_guarded_row_moved_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_commit_whose_guarded_row_moved_is_a_conflict");
    acme(&mut fixture).await?;
    let moves: [(RowKey, CommitEdit); 3] = [
        (tenant_row("acme"), CommitBuilder::provision),
        (owner_row("acme", "ann"), |batch| batch.owner(owner("ann"))),
        (RowKey::Key(id(1)), |batch| batch.put(renamed(1))),
    ];
    for (n, (row, change)) in (10..).zip(moves) {
        let before = fixture.expected.row_at(&row);
        let batch = change(fixture.batch("acme"));
        let moved = fixture.commit(batch).await?;
        let others = [
            owner_row("acme", "bob"),
            RowKey::Key(id(2)),
            RowKey::Key(id(99)),
        ];
        for path in ["acme/web", "globex", "acme"] {
            let full = fixture
                .batch(path)
                .put(key(n))
                .owner(owner("eve"))
                .provision();
            for (revision, how) in [
                (before, "at its revision before"),
                (Revision(moved.0 + 1), "ahead"),
                (Revision::ZERO, "as absent"),
            ] {
                let what = format!("{path} on {row:?} {how}");
                let alone = full.clone().guarded(row.clone(), revision);
                fixture.conflicts(&what, alone).await?;
                // Put the failing guard at each position among guards that hold, because a faulty store may
                // check only some guards.
                for place in 0..=others.len() {
                    let stands = |own: &RowKey| (own.clone(), fixture.expected.row_at(own));
                    let mut all: Vec<_> = others.iter().map(stands).collect();
                    all.insert(place, (row.clone(), revision));
                    let batch = (all.into_iter()).fold(full.clone(), |batch, (row, revision)| {
                        batch.guarded(row, revision)
                    });
                    fixture
                        .conflicts(&format!("{what}, in place {place}"), batch)
                        .await?;
                }
            }
        }
        fixture.check_contents("after the conflicts").await?;
        let batch = fixture.batch("acme/web").put(key(n)).guarded(row, moved);
        fixture.commit(batch).await?;
    }
    fixture
        .check_contents("after commits with current guards")
        .await
}

/// A guard at revision zero requires that its row does not exist. The store refuses the commit once the row
/// exists.
pub async fn a_commit_whose_guarded_row_appeared_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_commit_whose_guarded_row_appeared_is_a_conflict");
    let comes: [(RowKey, CommitEdit); 3] = [
        (RowKey::Key(id(1)), |batch| batch.put(key(1))),
        (owner_row("acme", "ann"), |batch| batch.owner(owner("ann"))),
        (tenant_row("acme"), CommitBuilder::provision),
    ];
    for (n, (row, change)) in (10..).zip(comes) {
        let absent = fixture.batch("acme/web").put(key(n));
        let absent = absent.guarded(row.clone(), Revision::ZERO);
        let batch = change(fixture.batch("acme"));
        fixture.commit(batch).await?;
        fixture
            .conflicts(&format!("{row:?}, which appeared"), absent.clone())
            .await?;
        fixture.check_contents("after the conflict").await?;
        // After a commit of an unrelated tenant, the guard must still fail.
        let batch = fixture.batch("globex").put(key(n + 20));
        fixture.commit(batch).await?;
        fixture
            .conflicts(&format!("{row:?}, which exists"), absent)
            .await?;
        let stands = fixture.expected.row_at(&row);
        let batch = fixture.batch("acme/web").put(key(n)).guarded(row, stands);
        fixture.commit(batch).await?;
    }
    fixture
        .check_contents("after commits with current guards")
        .await
}

/// If a commit has a guard on a key, and the key was removed, the store refuses the commit. The check uses
/// the revision that the key had before its removal, because the tombstone may be compacted.
pub async fn a_commit_whose_guarded_key_was_removed_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture =
        StoreFixture::new(make, "a_commit_whose_guarded_key_was_removed_is_a_conflict");
    acme(&mut fixture).await?;
    let stood = fixture.expected.row_at(&RowKey::Key(id(1)));
    let batch = fixture.batch("acme").remove(id(1));
    fixture.commit(batch).await?;
    for path in ["acme/web", "globex", "acme"] {
        let batch = fixture.batch(path).put(key(10)).provision();
        let alone = batch.clone().guarded(RowKey::Key(id(1)), stood);
        fixture
            .conflicts(&format!("{path} on a removed key"), alone)
            .await?;
        let stands = fixture.expected.row_at(&RowKey::Key(id(2)));
        let other = batch.guarded(RowKey::Key(id(2)), stands);
        let both = other.guarded(RowKey::Key(id(1)), stood);
        fixture
            .conflicts(
                &format!("{path} on a removed key and an unchanged key"),
                both,
            )
            .await?;
    }
    fixture.check_contents("after the conflicts").await
}

/// A guard depends on its own row, not on other rows of the same tenant. Otherwise frequent commits to a
/// parent tenant would starve commits to its children.
pub async fn a_guard_holds_while_its_tenant_changes<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_guard_holds_while_its_tenant_changes");
    acme(&mut fixture).await?;
    let rows = [
        tenant_row("acme"),
        owner_row("acme", "ann"),
        RowKey::Key(id(1)),
        owner_row("acme", "nobody"),
        RowKey::Key(id(99)),
    ];
    let others: [CommitEdit; 5] = [
        |batch| batch.put(renamed(2)),
        |batch| batch.put(key(5)),
        |batch| batch.owner(owner("bob")),
        |batch| batch.entry(Action::KeyDisabled, Some(id(1))),
        |batch| batch.remove(id(2)),
    ];
    for (n, change) in (10..).zip(others) {
        let batch = change(fixture.batch("acme"));
        fixture.commit(batch).await?;
        for (m, row) in (0..).zip(&rows) {
            let stands = fixture.expected.row_at(row);
            let batch = fixture.batch("acme/web").put(key(n * 10 + m));
            fixture.commit(batch.guarded(row.clone(), stands)).await?;
        }
    }
    fixture.check_contents("after the commits").await
}

/// No guarded row can change between the check of its guard and the commit, even if the store runs commits
/// concurrently or in batches.
pub async fn a_guard_holds_until_its_commit_is_applied<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let clause = "a_guard_holds_until_its_commit_is_applied";
    for guarded_first in [true, false] {
        let mut fixture = StoreFixture::new(make, clause);
        acme(&mut fixture).await?;
        // In the first rounds, poll the first commit a few times before the second commit starts, one poll
        // more in each round, up to 8. In later rounds, start both commits together.
        for round in 0..=3 * STEPS {
            let row = RowKey::Key(id(1));
            let stands = fixture.expected.row_at(&row);
            let guarded = fixture.batch("acme/web").put(key(10 + round as u64));
            let guarded = guarded.guarded(row, stands);
            let moves = fixture.batch("acme").put(renamed(1));
            let (slow, quick) = match guarded_first {
                true => (guarded, moves),
                false => (moves, guarded),
            };
            let answers = {
                let mut running = PolledFuture::new(fixture.store.commit(slow.commit.clone()));
                let passed = fixture.store.commit(quick.commit.clone());
                if round <= STEPS {
                    running.steps(round).await;
                    let passed = running.let_pass(passed).await;
                    vec![running.finish().await, passed]
                } else {
                    PolledFuture::finish_all(vec![running, PolledFuture::new(passed)]).await
                }
            };
            fixture.record_outcomes([slow, quick].into_iter().zip(answers))?;
        }
        fixture.check_contents("after the races").await?;
    }
    let mut fixture = StoreFixture::new(make, clause);
    acme(&mut fixture).await?;
    // The first commit keeps the store busy. So a store that batches commits puts all the other commits into
    // one batch.
    let mut batches = vec![
        fixture.batch("globex").put(key(3)),
        fixture
            .batch("acme")
            .put(renamed(1))
            .remove(id(2))
            .put(key(4)),
        fixture.batch("initech").provision().owner(owner("ann")),
    ];
    let rows = [
        RowKey::Key(id(1)),
        RowKey::Key(id(2)),
        RowKey::Key(id(4)),
        tenant_row("initech"),
        owner_row("initech", "ann"),
    ];
    for (n, row) in (10..).zip(rows) {
        let stands = fixture.expected.row_at(&row);
        let batch = fixture.batch(&format!("acme/{n}")).put(key(n));
        batches.push(batch.guarded(row, stands));
    }
    let answers = {
        let commits = batches.iter().map(|batch| batch.commit.clone());
        let running = commits.map(|commit| PolledFuture::new(fixture.store.commit(commit)));
        PolledFuture::finish_all(running.collect()).await
    };
    fixture.record_outcomes(batches.into_iter().zip(answers))?;
    fixture
        .check_contents("after commits that ran together")
        .await
}

/// Writes the tenant `acme` with a tenant row, two owners and two keys.
async fn acme<S: KeyStore>(fixture: &mut StoreFixture<S>) -> Result<Revision, ClauseViolation> {
    let batch = fixture.batch("acme").provision();
    let batch = batch.owner(owner("ann")).owner(owner("bob"));
    fixture
        .commit(batch.put(owned_by("ann", key(1))).put(key(2)))
        .await
}

fn renamed(n: u64) -> KeyRecord {
    key(n).with(|key| key.name = text("renamed"))
}
