//! Clauses of `list`. The expected results come from the function `oracle`, a second implementation of key
//! queries. The oracle does not call [`KeyQuery::page`], because a store may use that function itself.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::ClauseViolation;
use super::fixtures::{
    ClauseResult, StoreFixture, at, count, id, imported, key, owned_by, revoked, stamp, tenant,
    text,
};
use keyward::Timestamp;
use keyward::key::{
    Environment, KeyRecord, KeyState, Resource, RotationReason, Status, Succession,
};
use keyward::store::{KeyPosition, KeyQuery, KeySort, KeyStore};

const SORTS: [KeySort; 4] = [
    KeySort::Created,
    KeySort::Newest,
    KeySort::Name,
    KeySort::Expiry,
];

/// Writes keys of six tenants in every status, with similar names and paths.
async fn write_keys<S: KeyStore>(fixture: &mut StoreFixture<S>) -> ClauseResult {
    let named = |name: &str, record: KeyRecord| record.with(|key| key.name = text(name));
    let ends = |at, record: KeyRecord| record.with(|key| key.expires_at = Some(at));
    let of = |kind: &str, id: &str, record: KeyRecord| {
        record.with(|key| {
            key.resource = Some(Resource {
                kind: text(kind),
                id: text(id),
            })
        })
    };
    let disabled = |record: KeyRecord| record.with(|key| key.state = KeyState::Disabled(stamp(5)));
    let retiring = |record: KeyRecord| {
        record.with(|key| {
            key.succession = Some(Succession {
                successor: id(1),
                since: at(3),
                reason: RotationReason::Routine,
                own_expiry: None,
                grace_from_first_use: None,
            })
        })
    };
    let test = |record: KeyRecord| {
        record.with(|key| {
            key.environment = Environment::TEST;
            key.class = text("client");
        })
    };
    let batch = fixture.batch("acme");
    let batch = batch
        .put(named("Export", key(1)))
        .put(named("export", owned_by("ann", key(2))));
    let batch = batch
        .put(named("100% ready", disabled(key(3))))
        .put(named("100 ready", key(4)));
    let batch = batch
        .put(named("Ärger", ends(at(100), key(5))))
        .put(named("a_b", key(6)));
    fixture
        .commit(batch.put(named("axb", retiring(ends(at(200), key(7))))))
        .await?;
    let batch = fixture
        .batch("acme/web")
        .put(named("export", ends(at(100), key(8))));
    let batch = batch
        .put(revoked(ends(at(300), key(9))))
        .put(owned_by("ann", test(key(10))));
    fixture
        .commit(batch.put(of("app", "dep/7", imported(11, "old token"))))
        .await?;
    let batch = fixture
        .batch("acme-two")
        .put(named("Zeta", key(12)))
        .put(test(key(13)));
    fixture.commit(batch).await?;
    let batch = fixture.batch("a_me").put(of("app", "dep/70", key(14)));
    fixture
        .commit(batch.put(ends(Timestamp::MAX, key(15))))
        .await?;
    let batch = fixture
        .batch("a_me/web")
        .put(owned_by("annette", named("ärger", key(16))));
    fixture
        .commit(batch.put(owned_by("ANN", of("job", "dep/7", key(17)))))
        .await?;
    // Renames one key and removes another, because a query must find neither the old name nor the removed
    // key.
    let batch = fixture
        .batch("Acme")
        .put(named("export once", key(18)))
        .put(named("export", key(19)));
    fixture.commit(batch.put(key(20))).await?;
    let batch = fixture
        .batch("Acme")
        .put(named("omega", ends(at(200), key(18))))
        .remove(id(19));
    fixture.commit(batch).await?;
    Ok(())
}

fn all() -> KeyQuery {
    KeyQuery::all(at(150))
}

/// A list contains exactly the keys that match the query. The check tries each condition alone, and several
/// together.
pub async fn a_list_holds_exactly_what_matches<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_list_holds_exactly_what_matches");
    let page = fixture.list(&all()).await?;
    fixture.same("keys of an empty store", page.keys, Vec::new())?;
    write_keys(&mut fixture).await?;
    for query in queries(&fixture) {
        let page = fixture.list(&query).await?;
        let listed: BTreeSet<_> = page.keys.iter().map(|record| record.id).collect();
        let want = oracle(&fixture, &query)
            .into_iter()
            .map(|record| record.id)
            .collect();
        fixture.same(&format!("keys of {query:?}"), listed, want)?;
        fixture.same(
            "keys on a page",
            page.keys.len(),
            oracle(&fixture, &query).len(),
        )?;
        fixture.same("corrupt keys", page.corrupt, Vec::new())?;
        for record in &page.keys {
            let stored = fixture.expected.records().find(|own| own.id == record.id);
            fixture.same("a listed key", Some(record), stored)?;
        }
    }
    Ok(())
}

/// Returns three queries on expiring keys: one by status, one by status and expiry, and one by expiry.
fn ending() -> [KeyQuery; 3] {
    let unrevoked = all().with(|query| {
        query.statuses = BTreeSet::from([
            Status::Active,
            Status::Retiring,
            Status::Disabled,
            Status::Expired,
        ])
    });
    let span = unrevoked.clone().with(|query| {
        query.expires_from = Some(at(100));
        query.expires_before = Some(at(301));
    });
    let with_revoked = span.clone().with(|query| query.statuses = BTreeSet::new());
    [unrevoked, span, with_revoked]
}

fn queries<S: KeyStore>(fixture: &StoreFixture<S>) -> Vec<KeyQuery> {
    let mut queries = vec![all(), all().live()];
    let paths = [
        "acme", "acme/web", "acme-two", "a_me", "Acme", "acm", "acme/we",
    ];
    for (path, below) in paths
        .into_iter()
        .flat_map(|path| [(path, false), (path, true)])
    {
        let query = KeyQuery::tenant(text(path), at(150));
        queries.push(query.with(|query| query.below = below));
    }
    let statuses = [
        Status::Active,
        Status::Retiring,
        Status::Disabled,
        Status::Expired,
        Status::Revoked,
    ];
    // These instants include the exact expiry of some keys, at which a key already counts as expired.
    for instant in [at(0), at(99), at(100), at(200), at(300), Timestamp::MAX] {
        queries.extend(statuses.map(|status| {
            KeyQuery::all(instant).with(|query| query.statuses = BTreeSet::from([status]))
        }));
        queries.push(KeyQuery::all(instant).live());
        let (from, before) = (Some(instant), Some(at(201)));
        queries.push(all().with(|query| query.expires_from = from));
        queries.push(all().with(|query| query.expires_before = from));
        queries.push(all().with(|query| {
            query.expires_from = from;
            query.expires_before = before;
        }));
    }
    let names = [
        "export", "EXPORT", "100%", "a_b", "äRGER", "key 1", "\\", "'", "once", " ",
    ];
    queries.extend(names.map(|name| all().with(|query| query.name = Some(name.to_owned()))));
    let hints = ["0001", "sk_live_…", "SK", "%", "_live", "__"];
    queries.extend(hints.map(|hint| all().with(|query| query.hint = Some(hint.to_owned()))));
    let owners = ["ann", "ANN", "annette", "nobody"];
    queries.extend(owners.map(|owner| all().with(|query| query.owner = Some(text(owner)))));
    let classes = ["server", "client", "serve"];
    queries.extend(classes.map(|class| all().with(|query| query.class = Some(text(class)))));
    let environments = [Environment::LIVE, Environment::TEST];
    queries.extend(environments.map(|one| all().with(|query| query.environment = Some(one))));
    let resources = ["dep/7", "dep/70", "dep"];
    queries.extend(resources.map(|one| all().with(|query| query.resource = Some(text(one)))));
    let marks = fixture
        .expected
        .records()
        .take(2)
        .map(|record| record.fingerprint);
    queries.extend(marks.map(|mark| all().with(|query| query.fingerprint = Some(mark))));
    let together = KeyQuery::tenant(text("acme"), at(150)).with(|query| {
        query.below = true;
        query.name = Some("E".to_owned());
        query.expires_before = Some(at(500));
        query.statuses = BTreeSet::from([Status::Expired, Status::Revoked]);
        query.class = Some(text("server"));
    });
    queries.push(together);
    queries
}

/// A list is in the query's order. Keys that compare equal are ordered by id.
pub async fn a_list_comes_in_the_querys_order<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_list_comes_in_the_querys_order");
    write_keys(&mut fixture).await?;
    for sort in SORTS {
        let some = [all(), all().live(), KeyQuery::tenant(text("acme"), at(150))];
        for query in some.into_iter().chain(ending()) {
            let query = query.with(|query| query.sort = sort);
            let listed: Vec<_> = fixture
                .list(&query)
                .await?
                .keys
                .into_iter()
                .map(|k| k.id)
                .collect();
            let want = oracle(&fixture, &query)
                .into_iter()
                .map(|record| record.id)
                .collect();
            fixture.same(&format!("order by {sort:?}"), listed, want)?;
        }
    }
    Ok(())
}

/// The pages of a list together contain every matching key exactly once. No page has more keys than its
/// limit, and `next` is `None` only on the last page.
pub async fn pages_of_a_list_neither_repeat_nor_skip<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "pages_of_a_list_neither_repeat_nor_skip");
    write_keys(&mut fixture).await?;
    let queries = [all()].into_iter().chain(ending());
    for (sort, query) in queries.flat_map(|query| SORTS.map(|sort| (sort, query.clone()))) {
        let matching = oracle(&fixture, &query).len();
        for limit in [1, 2, 3, matching - 1, matching, matching + 1] {
            let query = query.clone().with(|query| {
                query.sort = sort;
                query.limit = count(limit);
            });
            let listed = fixture.list_all(query.clone()).await?;
            let listed: Vec<_> = listed.into_iter().map(|record| record.id).collect();
            let want = oracle(&fixture, &query)
                .into_iter()
                .map(|record| record.id)
                .collect();
            fixture.same(&format!("pages of {limit} by {sort:?}"), listed, want)?;
            let more = fixture.list(&query).await?.next.is_some();
            let what = format!("whether pages of {limit} go on after the first");
            fixture.same(&what, more, limit < matching)?;
        }
    }
    Ok(())
}

/// A list continues after a key even if that key was removed since the previous page.
pub async fn a_list_goes_on_after_a_key_that_is_gone<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_list_goes_on_after_a_key_that_is_gone");
    for n in 1..=SORTS.len() as u64 {
        let batch = (0..5).fold(fixture.batch("acme"), |batch, k| batch.put(key(n * 10 + k)));
        fixture.commit(batch).await?;
    }
    for sort in SORTS {
        let query = KeyQuery::tenant(text("acme"), at(150)).with(|query| {
            query.sort = sort;
            query.limit = count(3);
        });
        let page = fixture.list(&query).await?;
        let Some(last) = page.keys.last() else {
            return Err(fixture.fail("a list of keys is empty"));
        };
        let rest: Vec<_> = oracle(&fixture, &query)
            .into_iter()
            .skip(3)
            .map(|k| k.id)
            .collect();
        let batch = fixture.batch("acme").remove(last.id);
        fixture.commit(batch).await?;
        let query = query.with(|query| {
            query.after = Some(KeyPosition::of(last));
            query.limit = count(100);
        });
        let listed: Vec<_> = fixture
            .list(&query)
            .await?
            .keys
            .into_iter()
            .map(|k| k.id)
            .collect();
        fixture.same(
            &format!("what follows a removed key by {sort:?}"),
            listed,
            rest,
        )?;
    }
    Ok(())
}

/// A list reflects every commit that returned before the call, and leaves out removed keys.
pub async fn a_list_reflects_every_commit_that_returned<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "a_list_reflects_every_commit_that_returned");
    for name in ["first", "second"] {
        let record = key(1).with(|key| key.name = text(name));
        let batch = fixture.batch("acme").put(record);
        fixture.commit(batch).await?;
        let names: Vec<_> = fixture
            .list(&all())
            .await?
            .keys
            .into_iter()
            .map(|k| k.facts.name)
            .collect();
        fixture.same("names after a commit", names, vec![text(name)])?;
    }
    let batch = fixture.batch("acme").remove(id(1)).put(key(2));
    fixture.commit(batch).await?;
    let keys: Vec<_> = fixture
        .list(&all())
        .await?
        .keys
        .into_iter()
        .map(|k| k.id)
        .collect();
    fixture.same("keys after a removal", keys, vec![id(2)])
}

/// Returns the keys that `list` must return, in the query's order. The function compares every record with
/// the query in plain loops.
fn oracle<'a, S: KeyStore>(fixture: &'a StoreFixture<S>, query: &KeyQuery) -> Vec<&'a KeyRecord> {
    let mut found: Vec<&KeyRecord> = Vec::new();
    for record in fixture.expected.records() {
        if meets(record, query) {
            let place = found
                .iter()
                .position(|other| precedes(record, other, query.sort));
            found.insert(place.unwrap_or(found.len()), record);
        }
    }
    found
}

fn meets(record: &KeyRecord, query: &KeyQuery) -> bool {
    if let Some(tenant) = &query.tenant {
        let (wanted, path) = (tenant.as_str(), record.tenant.as_str());
        let below = path.starts_with(&format!("{wanted}/"));
        if path != wanted && !(query.below && below) {
            return false;
        }
    }
    if !query.statuses.is_empty() && !query.statuses.contains(&status(record, query.at)) {
        return false;
    }
    if let Some(part) = &query.name
        && !lower(record.name.as_str()).contains(&lower(part))
    {
        return false;
    }
    if let Some(owner) = &query.owner
        && record.owner != keyward::key::Owner::Principal(owner.clone())
    {
        return false;
    }
    if let Some(resource) = &query.resource
        && record.resource.as_ref().map(|own| &own.id) != Some(resource)
    {
        return false;
    }
    let end = record.expires_at;
    if let Some(from) = query.expires_from
        && end.is_some_and(|end| end < from)
    {
        return false;
    }
    if let Some(before) = query.expires_before
        && end.is_none_or(|end| end >= before)
    {
        return false;
    }
    query.class.as_ref().unwrap_or(&record.class) == &record.class
        && query.environment.as_ref().unwrap_or(&record.environment) == &record.environment
        && query.fingerprint.unwrap_or(record.fingerprint) == record.fingerprint
        && record
            .hint
            .as_str()
            .contains(query.hint.as_deref().unwrap_or(""))
}

/// `tenants` returns every tenant with a commit, also a closed one, and one whose only row was removed.
pub async fn tenants_have_committed<S: KeyStore>(make: &impl Fn() -> S) -> ClauseResult {
    let mut fixture = StoreFixture::new(make, "tenants_have_committed");
    let none = fixture.tenants().await?;
    fixture.same("the tenants of an empty store", none, BTreeSet::new())?;
    for (path, number) in [("acme", 1), ("acme/web", 2), ("other", 3)] {
        let batch = fixture.batch(path).put(key(number));
        fixture.commit(batch).await?;
    }
    let batch = fixture.batch("other").remove(id(3));
    fixture.commit(batch).await?;
    let expected = ["acme", "acme/web", "other"].map(tenant);
    let found = fixture.tenants().await?;
    fixture.same("the tenants", found, BTreeSet::from(expected))
}

/// `restored_from` of a new store returns `None`, because there is nothing to recover.
pub async fn a_new_store_is_not_restored<S: KeyStore>(make: &impl Fn() -> S) -> ClauseResult {
    let fixture = StoreFixture::new(make, "a_new_store_is_not_restored");
    let restored = fixture.restored_from().await?;
    fixture.same("the epoch that was backed up", restored, None)
}

fn lower(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

fn status(record: &KeyRecord, now: Timestamp) -> Status {
    if matches!(record.state, KeyState::Revoked { .. }) {
        return Status::Revoked;
    }
    if record.expires_at.is_some_and(|end| end <= now) {
        return Status::Expired;
    }
    match (&record.state, &record.succession) {
        (KeyState::Enabled, None) => Status::Active,
        (KeyState::Enabled, Some(_)) => Status::Retiring,
        _ => Status::Disabled,
    }
}

fn precedes(a: &KeyRecord, b: &KeyRecord, sort: KeySort) -> bool {
    if sort == KeySort::Newest {
        return a.id > b.id;
    }
    let first = match (sort, a.expires_at, b.expires_at) {
        (KeySort::Name, ..) => a.name.as_str().as_bytes().cmp(b.name.as_str().as_bytes()),
        (KeySort::Expiry, Some(a), Some(b)) => a.cmp(&b),
        (KeySort::Expiry, Some(_), None) => Ordering::Less,
        (KeySort::Expiry, None, Some(_)) => Ordering::Greater,
        _ => Ordering::Equal,
    };
    first.then(a.id.cmp(&b.id)).is_lt()
}
