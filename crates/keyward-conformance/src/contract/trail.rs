//! Clauses of `audit`. The expected results come from the function `oracle`, a second implementation of audit
//! queries.

use super::ClauseViolation;
use super::fixtures::{ClauseResult, StoreFixture, at, count, id, key, owner, text};
use keyward::audit::Action;
use keyward::store::{AuditPosition, AuditQuery, AuditRow, KeyStore, LoadRequest};

/// Writes audit entries in three tenants, by several actors and commands. Some entries are about a key, and
/// others are not.
async fn trail<S: KeyStore>(fixture: &mut StoreFixture<S>) -> ClauseResult {
    let batch = fixture
        .batch("acme")
        .provision()
        .owner(owner("ann"))
        .put(key(1))
        .put(key(2));
    fixture
        .commit(batch.by("ann", "setup").decided_at(at(100)))
        .await?;
    let batch = fixture.batch("globex").put(key(3)).by("ann", "setup");
    fixture.commit(batch.decided_at(at(110))).await?;
    let batch = fixture
        .batch("acme")
        .remove(id(1))
        .entry(Action::KeyDisabled, Some(id(2)));
    fixture
        .commit(batch.by("bob", "tidy").decided_at(at(120)))
        .await?;
    let batch = fixture
        .batch("acme/web")
        .put(key(4))
        .by("annette", "setup-2");
    fixture.commit(batch.decided_at(at(120))).await?;
    // This commit has an earlier decision time than the commit before it, as if its node's clock were slow.
    // The audit trail must still be in the order of the commits.
    let batch = fixture
        .batch("globex")
        .entry(Action::KeyDisabled, Some(id(3)));
    fixture
        .commit(batch.by("bob", "tidy").decided_at(at(90)))
        .await?;
    let batch = fixture
        .batch("acme")
        .put(key(5))
        .entry(Action::KeyEnabled, Some(id(2)));
    fixture
        .commit(batch.by("ann", "setup-2").decided_at(at(130)))
        .await?;
    Ok(())
}

/// Audit entries are in the order of their commits, across all tenants. Within a commit they are in the order
/// of the tenant's chain. Each entry has the revision of its commit.
pub async fn the_audit_trail_comes_oldest_first<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "the_audit_trail_comes_oldest_first");
    let page = fixture.audit(&AuditQuery::all()).await?;
    fixture.same("entries of an empty store", page.rows, Vec::new())?;
    trail(&mut fixture).await?;
    let page = fixture.audit(&AuditQuery::all()).await?;
    let places: Vec<_> = page.rows.iter().map(AuditRow::position).collect();
    let want = fixture
        .expected
        .audit
        .iter()
        .map(AuditRow::position)
        .collect();
    fixture.same("places of all entries", places, want)?;
    fixture.same("all entries", page.rows, fixture.expected.audit.clone())?;
    for path in ["acme", "globex"] {
        let page = fixture.audit(&AuditQuery::tenant(text(path))).await?;
        let chain: Vec<_> = page.rows.iter().map(|row| row.entry.sequence).collect();
        let want = (1..=chain.len() as u64).collect();
        fixture.same(&format!("chain of {path}"), chain, want)?;
    }
    Ok(())
}

/// `audit` returns exactly the entries that match the query. The check tries each condition alone, and
/// several together.
pub async fn the_audit_trail_holds_exactly_what_matches<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "the_audit_trail_holds_exactly_what_matches");
    trail(&mut fixture).await?;
    let all = AuditQuery::all;
    let mut queries = vec![all()];
    let tenants = ["acme", "acme/web", "globex", "acm", "initech"];
    queries.extend(tenants.map(|path| AuditQuery::tenant(text(path))));
    queries.extend((1..=6).map(|n| all().about(id(n))));
    let actors = ["ann", "bob", "annette", "nobody"];
    queries.extend(actors.map(|actor| all().with(|query| query.actor = Some(text(actor)))));
    let commands = ["setup", "setup-2", "tidy", "set"];
    queries.extend(commands.map(|command| all().with(|query| query.command = Some(text(command)))));
    for instant in [90, 91, 110, 120, 121, 131] {
        let from = Some(at(instant));
        queries.push(all().with(|query| query.from = from));
        queries.push(all().with(|query| query.before = from));
        queries.push(all().with(|query| {
            query.from = from;
            query.before = Some(at(120));
        }));
    }
    let tenant = AuditQuery::tenant(text("acme"));
    queries.push(tenant.with(|query| {
        query.actor = Some(text("ann"));
        query.from = Some(at(101));
    }));
    for query in queries {
        let page = fixture.audit(&query).await?;
        fixture.same(
            &format!("entries of {query:?}"),
            page.rows,
            oracle(&fixture, &query),
        )?;
        fixture.same("whether there is more", page.next, None)?;
    }
    Ok(())
}

/// The pages of an audit query together contain every matching entry exactly once. A page may begin after any
/// entry, even in the middle of a commit.
pub async fn pages_of_the_audit_trail_neither_repeat_nor_skip<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "pages_of_the_audit_trail_neither_repeat_nor_skip");
    trail(&mut fixture).await?;
    let tenant = AuditQuery::tenant(text("acme"));
    let ann = AuditQuery::all().with(|query| query.actor = Some(text("ann")));
    for query in [AuditQuery::all(), tenant, ann] {
        let want = oracle(&fixture, &query);
        for limit in 1..=want.len() + 1 {
            let query = query.clone().with(|query| query.limit = count(limit));
            let rows = fixture.audit_all(query.clone()).await?;
            fixture.same(&format!("pages of {limit} of {query:?}"), &rows, &want)?;
            let more = fixture.audit(&query).await?.next.is_some();
            let what = format!("whether pages of {limit} go on after the first");
            fixture.same(&what, more, limit < want.len())?;
        }
        let places = fixture.expected.audit.iter().map(AuditRow::position);
        for place in places.chain([AuditPosition::default()]) {
            let query = query.clone().with(|query| query.after = Some(place));
            let page = fixture.audit(&query).await?;
            fixture.same(
                &format!("entries after {place:?}"),
                page.rows,
                oracle(&fixture, &query),
            )?;
        }
    }
    Ok(())
}

/// Once a commit has returned, the audit trail contains all of its entries.
pub async fn the_audit_trail_reflects_every_commit_that_returned<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture =
        StoreFixture::new(make, "the_audit_trail_reflects_every_commit_that_returned");
    for n in 1..=3 {
        let batch = fixture
            .batch("acme")
            .put(key(n))
            .entry(Action::KeyDisabled, Some(id(n)));
        let revision = fixture
            .commit(batch.entry(Action::KeyEnabled, Some(id(n))))
            .await?;
        let page = fixture.audit(&AuditQuery::all().about(id(n))).await?;
        let revisions: Vec<_> = page.rows.iter().map(|row| row.revision).collect();
        fixture.same(
            "commits of a key's three entries",
            revisions,
            vec![revision; 3],
        )?;
    }
    Ok(())
}

fn oracle<S: KeyStore>(fixture: &StoreFixture<S>, query: &AuditQuery) -> Vec<AuditRow> {
    let mut found = Vec::new();
    for row in &fixture.expected.audit {
        let entry = &row.entry;
        let place = (row.revision, entry.sequence);
        let skipped = query
            .after
            .is_some_and(|after| place <= (after.revision, after.sequence))
            || query
                .tenant
                .as_ref()
                .is_some_and(|tenant| entry.tenant != *tenant)
            || query.key.is_some() && entry.key != query.key
            || query
                .actor
                .as_ref()
                .is_some_and(|actor| entry.actor.principal() != Some(actor))
            || query
                .command
                .as_ref()
                .is_some_and(|command| entry.command != *command)
            || query.from.is_some_and(|from| entry.at < from)
            || query.before.is_some_and(|before| entry.at >= before);
        if !skipped {
            found.push(row.clone());
        }
    }
    found
}

/// A commit with `prune` removes its tenant's entries up to that number, and no others. The head of the trail stays,
/// and `load` returns the remaining entries of a command.
pub async fn a_commit_prunes_the_oldest_entries_of_its_own_trail<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture =
        StoreFixture::new(make, "a_commit_prunes_the_oldest_entries_of_its_own_trail");
    trail(&mut fixture).await?;
    // First entries of commands that have later ones, then everything before the commit itself.
    for through in [5, 9] {
        let batch = fixture
            .batch("acme")
            .entry(Action::KeyDisabled, Some(id(2)))
            .by("ann", "setup-2");
        fixture.commit(batch.prune(through)).await?;
        fixture
            .check_contents("after old entries were removed")
            .await?;
        for command in ["setup", "tidy", "setup-2"] {
            let select = LoadRequest {
                commands: vec![text(command)],
                ..LoadRequest::none()
            };
            let view = fixture.load("acme", select).await?;
            let own = |row: &&AuditRow| {
                row.entry.command.as_str() == command && row.entry.tenant.as_str() == "acme"
            };
            let rows = fixture.expected.audit.iter().filter(own);
            let want: Vec<_> = rows.map(|row| row.entry.clone()).collect();
            fixture.same(&format!("entries of {command}"), view.applied, want)?;
        }
    }
    Ok(())
}
