//! Clauses of guards. A guard names a row that a commit depends on, in the commit's own tenant or
//! in another tenant. The commit is refused if a guarded row has moved.

use super::Violation;
use super::fixtures::{
    Batch, Desk, Running, STEPS, id, key, owned_by, owner, owner_row, tenant_row, text,
};
use keyward::audit::Action;
use keyward::key::KeyRecord;
use keyward::store::{KeyStore, Revision, RowKey};

/// A change that a batch makes.
type Change = fn(Batch) -> Batch;

/// A commit is applied if each guarded row is at the guard's revision, in any tenant. A row that
/// never existed is at revision zero.
pub async fn a_commit_whose_guards_hold_is_applied<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_commit_whose_guards_hold_is_applied");
    acme(&mut desk).await?;
    let batch = desk.batch("globex").put(key(3));
    desk.land(batch).await?;
    let rows = [
        tenant_row("acme"),
        owner_row("acme", "ann"),
        RowKey::Key(id(1)),
        RowKey::Key(id(3)),
        // None of these rows exists.
        tenant_row("globex"),
        tenant_row("initech"),
        owner_row("acme", "cid"),
        owner_row("initech", "ann"),
        RowKey::Key(id(99)),
    ];
    for (n, row) in (10..).zip(&rows) {
        for (n, path) in [(n, "acme/web"), (n + 20, "acme")] {
            let stands = desk.truth.row_at(row);
            let batch = desk.batch(path).put(key(n)).guarded(row.clone(), stands);
            desk.land(batch).await?;
        }
    }
    let batch = desk.batch("acme/web").put(key(50));
    let batch = rows.into_iter().fold(batch, |batch, row| {
        let stands = desk.truth.row_at(&row);
        batch.guarded(row, stands)
    });
    desk.land(batch).await?;
    // A commit may write its own guarded row.
    let own = desk.truth.row_at(&RowKey::Key(id(1)));
    let batch = desk.batch("acme").put(renamed(1));
    desk.land(batch.guarded(RowKey::Key(id(1)), own)).await?;
    desk.agrees("after the commits").await
}

/// A commit is a conflict and writes nothing if one of its guarded rows has moved. The row may be
/// of the commit's own tenant, of an ancestor or of any other tenant. A guard ahead of its row is a
/// conflict too.
pub async fn a_commit_whose_guarded_row_moved_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_commit_whose_guarded_row_moved_is_a_conflict");
    acme(&mut desk).await?;
    let moves: [(RowKey, Change); 3] = [
        (tenant_row("acme"), Batch::provision),
        (owner_row("acme", "ann"), |batch| batch.owner(owner("ann"))),
        (RowKey::Key(id(1)), |batch| batch.put(renamed(1))),
    ];
    for (n, (row, change)) in (10..).zip(moves) {
        let before = desk.truth.row_at(&row);
        let batch = change(desk.batch("acme"));
        let moved = desk.land(batch).await?;
        let others = [
            owner_row("acme", "bob"),
            RowKey::Key(id(2)),
            RowKey::Key(id(99)),
        ];
        for path in ["acme/web", "globex", "acme"] {
            let full = desk.batch(path).put(key(n)).owner(owner("eve")).provision();
            for (revision, how) in [
                (before, "as it stood before"),
                (Revision(moved.0 + 1), "ahead"),
                (Revision::ZERO, "as one that is not there"),
            ] {
                let what = format!("{path} on {row:?} {how}");
                let alone = full.clone().guarded(row.clone(), revision);
                desk.conflicts(&what, alone).await?;
                // Puts the guard at each position among guards that hold.
                for place in 0..=others.len() {
                    let stands = |own: &RowKey| (own.clone(), desk.truth.row_at(own));
                    let mut all: Vec<_> = others.iter().map(stands).collect();
                    all.insert(place, (row.clone(), revision));
                    let batch = (all.into_iter()).fold(full.clone(), |batch, (row, revision)| {
                        batch.guarded(row, revision)
                    });
                    desk.conflicts(&format!("{what}, in place {place}"), batch)
                        .await?;
                }
            }
        }
        desk.agrees("after the conflicts").await?;
        let batch = desk.batch("acme/web").put(key(n)).guarded(row, moved);
        desk.land(batch).await?;
    }
    desk.agrees("after the same on rows as they stand").await
}

/// A commit that depends on the absence of a row is a conflict once the row exists.
pub async fn a_commit_whose_guarded_row_appeared_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_commit_whose_guarded_row_appeared_is_a_conflict");
    let comes: [(RowKey, Change); 3] = [
        (RowKey::Key(id(1)), |batch| batch.put(key(1))),
        (owner_row("acme", "ann"), |batch| batch.owner(owner("ann"))),
        (tenant_row("acme"), Batch::provision),
    ];
    for (n, (row, change)) in (10..).zip(comes) {
        let absent = desk.batch("acme/web").put(key(n));
        let absent = absent.guarded(row.clone(), Revision::ZERO);
        let batch = change(desk.batch("acme"));
        desk.land(batch).await?;
        desk.conflicts(&format!("{row:?}, which appeared"), absent.clone())
            .await?;
        desk.agrees("after the conflict").await?;
        // Commits of other tenants do not change the outcome.
        let batch = desk.batch("globex").put(key(n + 20));
        desk.land(batch).await?;
        desk.conflicts(&format!("{row:?}, which is there"), absent)
            .await?;
        let stands = desk.truth.row_at(&row);
        let batch = desk.batch("acme/web").put(key(n)).guarded(row, stands);
        desk.land(batch).await?;
    }
    desk.agrees("after the same on rows as they stand").await
}

/// A commit that depends on a key is a conflict once the key was removed. The store chooses the
/// revision of a removed key's row, because its tombstone may be compacted.
pub async fn a_commit_whose_guarded_key_was_removed_is_a_conflict<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_commit_whose_guarded_key_was_removed_is_a_conflict");
    acme(&mut desk).await?;
    let stood = desk.truth.row_at(&RowKey::Key(id(1)));
    let batch = desk.batch("acme").remove(id(1));
    desk.land(batch).await?;
    for path in ["acme/web", "globex", "acme"] {
        let batch = desk.batch(path).put(key(10)).provision();
        let alone = batch.clone().guarded(RowKey::Key(id(1)), stood);
        desk.conflicts(&format!("{path} on a removed key"), alone)
            .await?;
        let stands = desk.truth.row_at(&RowKey::Key(id(2)));
        let other = batch.guarded(RowKey::Key(id(2)), stands);
        let both = other.guarded(RowKey::Key(id(1)), stood);
        desk.conflicts(
            &format!("{path} on a removed key and one that stands"),
            both,
        )
        .await?;
    }
    desk.agrees("after the conflicts").await
}

/// A guard covers its row alone: it holds while other rows of the row's tenant change. Otherwise
/// commits to a busy organisation would starve its projects.
pub async fn a_guard_holds_while_its_tenant_changes<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "a_guard_holds_while_its_tenant_changes");
    acme(&mut desk).await?;
    let rows = [
        tenant_row("acme"),
        owner_row("acme", "ann"),
        RowKey::Key(id(1)),
        owner_row("acme", "nobody"),
        RowKey::Key(id(99)),
    ];
    let others: [Change; 5] = [
        |batch| batch.put(renamed(2)),
        |batch| batch.put(key(5)),
        |batch| batch.owner(owner("bob")),
        |batch| batch.entry(Action::KeyDisabled, Some(id(1))),
        |batch| batch.remove(id(2)),
    ];
    for (n, change) in (10..).zip(others) {
        let batch = change(desk.batch("acme"));
        desk.land(batch).await?;
        for (m, row) in (0..).zip(&rows) {
            let stands = desk.truth.row_at(row);
            let batch = desk.batch("acme/web").put(key(n * 10 + m));
            desk.land(batch.guarded(row.clone(), stands)).await?;
        }
    }
    desk.agrees("after the commits").await
}

/// No guarded row moves between the check of the guard and the commit. The clause covers concurrent
/// commits, and commits that the store batches together.
pub async fn a_guard_holds_until_its_commit_is_applied<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let clause = "a_guard_holds_until_its_commit_is_applied";
    for guarded_first in [true, false] {
        let mut desk = Desk::new(make, clause);
        acme(&mut desk).await?;
        // In the last rounds both commits start together. By then the store has finished its
        // preparations.
        for round in 0..=3 * STEPS {
            let row = RowKey::Key(id(1));
            let stands = desk.truth.row_at(&row);
            let guarded = desk.batch("acme/web").put(key(10 + round as u64));
            let guarded = guarded.guarded(row, stands);
            let moves = desk.batch("acme").put(renamed(1));
            let (slow, quick) = match guarded_first {
                true => (guarded, moves),
                false => (moves, guarded),
            };
            let answers = {
                let mut running = Running::new(desk.store.commit(slow.commit.clone()));
                let passed = desk.store.commit(quick.commit.clone());
                if round <= STEPS {
                    running.steps(round).await;
                    let passed = running.let_pass(passed).await;
                    vec![running.finish().await, passed]
                } else {
                    Running::finish_all(vec![running, Running::new(passed)]).await
                }
            };
            desk.settle([slow, quick].into_iter().zip(answers))?;
        }
        desk.agrees("after the races").await?;
    }
    let mut desk = Desk::new(make, clause);
    acme(&mut desk).await?;
    // The first commit keeps the store busy, so that the others may queue up and be batched.
    let mut batches = vec![
        desk.batch("globex").put(key(3)),
        desk.batch("acme").put(renamed(1)).remove(id(2)).put(key(4)),
        desk.batch("initech").provision().owner(owner("ann")),
    ];
    let rows = [
        RowKey::Key(id(1)),
        RowKey::Key(id(2)),
        RowKey::Key(id(4)),
        tenant_row("initech"),
        owner_row("initech", "ann"),
    ];
    for (n, row) in (10..).zip(rows) {
        let stands = desk.truth.row_at(&row);
        let batch = desk.batch(&format!("acme/{n}")).put(key(n));
        batches.push(batch.guarded(row, stands));
    }
    let answers = {
        let commits = batches.iter().map(|batch| batch.commit.clone());
        let running = commits.map(|commit| Running::new(desk.store.commit(commit)));
        Running::finish_all(running.collect()).await
    };
    desk.settle(batches.into_iter().zip(answers))?;
    desk.agrees("after commits that ran together").await
}

/// Writes a tenant with its row, two owners and two keys.
async fn acme<S: KeyStore>(desk: &mut Desk<S>) -> Result<Revision, Violation> {
    let batch = desk.batch("acme").provision();
    let batch = batch.owner(owner("ann")).owner(owner("bob"));
    desk.land(batch.put(owned_by("ann", key(1))).put(key(2)))
        .await
}

fn renamed(n: u64) -> KeyRecord {
    key(n).with(|key| key.name = text("renamed"))
}
