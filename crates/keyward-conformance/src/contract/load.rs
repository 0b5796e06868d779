//! Clauses of `load`, which returns the parts of one tenant that a command needs.

use std::collections::BTreeSet;

use super::ClauseViolation;
use super::fixtures::{
    ClauseResult, CommitBuilder, StoreFixture, at, id, imported, key, owned_by, owner, revoked,
    stamp, text,
};
use keyward::audit::{Action, AuditEntry};
use keyward::key::{KeyRecord, KeyState, RotationReason, Succession};
use keyward::store::{KeyStore, LoadRequest, Revision, Row, RowKey, TenantView};
use keyward::{KeyId, Timestamp};

/// For a tenant that never had a commit, `load` returns an empty view at revision zero, whatever the request
/// asks for.
pub async fn an_unknown_tenant_is_empty_at_revision_zero<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "an_unknown_tenant_is_empty_at_revision_zero");
    let everything = || LoadRequest {
        keys: vec![id(1)],
        live: [(text("server"), at(0))].into(),
        legacy: true,
        owners: vec![text("ann")],
        commands: vec![text("command-1")],
    };
    let nothing = |view: &TenantView| TenantView {
        epoch: view.epoch,
        server_time: view.server_time,
        ..TenantView::default()
    };
    let view = fixture.load("acme", everything()).await?;
    fixture.same("an empty store", view.clone(), nothing(&view))?;
    let batch = fixture
        .batch("acme")
        .provision()
        .owner(owner("ann"))
        .put(key(1));
    fixture.commit(batch).await?;
    for path in ["acme/web", "acm", "acme-two", "Acme"] {
        let view = fixture.load(path, everything()).await?;
        let expected = nothing(&view);
        fixture.same(&format!("{path}, beside acme"), view, expected)?;
    }
    Ok(())
}

/// `load` returns the epoch of the store with every view, even for a tenant that never had a commit.
pub async fn load_returns_the_epoch<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_returns_the_epoch");
    let epoch = fixture.head().await?.epoch;
    let batch = fixture.batch("acme").put(key(1));
    fixture.commit(batch).await?;
    for path in ["acme", "globex"] {
        let view = fixture.load(path, LoadRequest::none()).await?;
        fixture.same(path, view.epoch, epoch)?;
    }
    Ok(())
}

/// `load` reflects every commit that returned before the call began.
pub async fn load_reflects_every_commit_that_returned<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_reflects_every_commit_that_returned");
    for name in ["first", "second", "third"] {
        let record = key(1).with(|key| key.name = text(name));
        let batch = fixture.batch("acme").put(record);
        let revision = fixture.commit(batch).await?;
        let view = fixture.load("acme", LoadRequest::key(id(1))).await?;
        fixture.same("revision after a commit", view.revision, revision)?;
        let seen = view.record(id(1)).map(|record| record.name.as_str());
        fixture.same("name after a commit", seen, Some(name))?;
    }
    let batch = fixture.batch("acme").remove(id(1));
    fixture.commit(batch).await?;
    let view = fixture.load("acme", LoadRequest::key(id(1))).await?;
    fixture.same("keys after the removal", view.records, Vec::new())
}

/// `load` returns the keys that the request names by id, even if they are revoked or disabled. Unknown ids
/// are skipped.
pub async fn load_returns_keys_by_id<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_returns_keys_by_id");
    let ended = key(3).with(|key| key.expires_at = Some(at(1)));
    let batch = fixture
        .batch("acme")
        .put(key(1))
        .put(revoked(key(2)))
        .put(ended)
        .put(key(4));
    fixture.commit(batch).await?;
    let asked = vec![id(3), id(1), id(99), id(2)];
    let select = LoadRequest {
        keys: asked.clone(),
        ..LoadRequest::none()
    };
    let view = fixture.load("acme", select).await?;
    holds(&fixture, &view, &[id(1), id(2), id(3)])
}

/// A request with `live` loads every key of the named classes that is neither revoked nor expired at the class's
/// instant. Disabled and retiring keys are live.
pub async fn load_returns_keys_live_at_an_instant<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_returns_keys_live_at_an_instant");
    let ends = |n, at| key(n).with(|key| key.expires_at = Some(at));
    let disabled = key(2).with(|key| key.state = KeyState::Disabled(stamp(5)));
    let retiring = key(3).with(|key| {
        key.succession = Some(Succession {
            successor: id(1),
            since: at(3),
            reason: RotationReason::Routine,
            own_expiry: None,
            grace_from_first_use: None,
        })
    });
    let now = at(100);
    let soon = Timestamp::from_micros(now.as_micros() + 1).unwrap_or(now);
    let batch = fixture
        .batch("acme")
        .put(key(1))
        .put(disabled)
        .put(retiring);
    let batch = batch
        .put(ends(4, soon))
        .put(ends(5, now))
        .put(ends(6, at(50)));
    let batch = batch.put(ends(7, Timestamp::MAX)).put(revoked(key(8)));
    let mobile = ends(9, at(50)).with(|key| key.class = text("mobile"));
    fixture.commit(batch.put(mobile)).await?;
    let select = |live: &[(&str, Timestamp)]| LoadRequest {
        live: live.iter().map(|(class, at)| (text(class), *at)).collect(),
        ..LoadRequest::none()
    };
    let view = fixture.load("acme", select(&[("server", now)])).await?;
    holds(&fixture, &view, &[1, 2, 3, 4, 7].map(id))?;
    let view = fixture.load("acme", select(&[("server", at(49))])).await?;
    holds(&fixture, &view, &[1, 2, 3, 4, 5, 6, 7].map(id))?;
    // Each class has an instant of its own.
    let both = [("mobile", at(49)), ("server", now)];
    let view = fixture.load("acme", select(&both)).await?;
    holds(&fixture, &view, &[1, 2, 3, 4, 7, 9].map(id))?;
    let both = [("mobile", at(100)), ("none", now), ("server", now)];
    let view = fixture.load("acme", select(&both)).await?;
    holds(&fixture, &view, &[1, 2, 3, 4, 7].map(id))
}

/// A request with `legacy` loads the legacy key, even if that key is revoked.
pub async fn load_returns_the_legacy_key<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_returns_the_legacy_key");
    let legacy = |record: KeyRecord| record.with(|key| key.legacy = true);
    for (path, record, other) in [
        ("acme", legacy(key(1)), key(2)),
        ("globex", legacy(revoked(key(3))), key(4)),
    ] {
        let asked = record.id;
        let batch = fixture.batch(path).put(other).put(record);
        fixture.commit(batch).await?;
        let select = LoadRequest {
            legacy: true,
            ..LoadRequest::none()
        };
        let view = fixture.load(path, select).await?;
        holds(&fixture, &view, &[asked])?;
    }
    Ok(())
}

/// `load` returns the rows of the owners that the request names.
pub async fn load_returns_rows_of_owners<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_returns_rows_of_owners");
    let batch = fixture
        .batch("acme")
        .owner(owner("ann"))
        .owner(owner("bob"))
        .owner(owner("cid"));
    fixture.commit(batch).await?;
    let select = LoadRequest {
        owners: vec![text("cid"), text("nobody"), text("ann")],
        ..LoadRequest::none()
    };
    let view = fixture.load("acme", select).await?;
    owners(&fixture, &view, &["ann", "cid"])
}

/// `load` also returns the owner's row of each loaded key, without an explicit request.
pub async fn load_returns_rows_of_the_owners_of_loaded_keys<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_returns_rows_of_the_owners_of_loaded_keys");
    let batch = fixture
        .batch("acme")
        .owner(owner("ann"))
        .owner(owner("bob"))
        .owner(owner("cid"));
    let batch = batch
        .put(owned_by("ann", key(1)))
        .put(owned_by("bob", key(2)));
    let orphan = owned_by("gone", revoked(key(4)));
    fixture
        .commit(batch.put(owned_by("ann", key(3))).put(orphan))
        .await?;
    let view = fixture.load("acme", LoadRequest::key(id(1))).await?;
    owners(&fixture, &view, &["ann"])?;
    let view = fixture.load("acme", LoadRequest::key(id(4))).await?;
    holds(&fixture, &view, &[id(4)])?;
    let live = LoadRequest {
        live: [(text("server"), at(0))].into(),
        ..LoadRequest::none()
    };
    let view = fixture
        .load("acme", live.and(LoadRequest::owner(text("cid"))))
        .await?;
    owners(&fixture, &view, &["ann", "bob", "cid"])
}

/// `load` returns the audit entries of the requested commands, oldest first. A command may have more than
/// [`LoadRequest::APPLIED_MAX`] entries; only the first ones are required.
pub async fn load_returns_what_commands_did<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_returns_what_commands_did");
    let longest = LoadRequest::APPLIED_MAX as u64;
    let batch = fixture
        .batch("acme")
        .put(key(1))
        .put(key(2))
        .by("ann", "import");
    fixture.commit(batch).await?;
    let batch = fixture.batch("acme").put(key(3)).by("bob", "other");
    fixture.commit(batch).await?;
    // A later commit of the same command writes more entries than `load` has to return.
    let batch = (4..=longest + 4).fold(fixture.batch("acme"), |batch, n| batch.put(key(n)));
    fixture.commit(batch.by("ann", "import")).await?;
    let elsewhere = fixture.batch("globex").put(key(90)).by("ann", "import");
    fixture.commit(elsewhere).await?;
    let select = LoadRequest {
        commands: vec![text("import"), text("never"), text("other")],
        ..LoadRequest::none()
    };
    let view = fixture.load("acme", select).await?;
    for command in ["import", "never", "other"] {
        let mine = |entry: &&AuditEntry| entry.command.as_str() == command;
        let seen: Vec<_> = view
            .applied
            .iter()
            .filter(mine)
            .map(|entry| entry.sequence)
            .collect();
        let trail = fixture.expected.audit.iter().map(|row| &row.entry);
        let trail = trail
            .filter(|entry| entry.tenant.as_str() == "acme")
            .filter(mine);
        let want: Vec<_> = trail
            .map(|entry| entry.sequence)
            .take(LoadRequest::APPLIED_MAX)
            .collect();
        // Compares only the entries that `load` must return, because a store may return more than
        // `APPLIED_MAX`.
        let seen = seen.into_iter().take(want.len()).collect();
        fixture.same(&format!("entries of the command {command:?}"), seen, want)?;
    }
    let foreign = view
        .applied
        .iter()
        .any(|entry| entry.tenant.as_str() != "acme");
    fixture.ensure(!foreign, || {
        "an entry of another tenant's chain was loaded".to_owned()
    })
}

/// `load` returns rows of the requested tenant only, even if the request names a key of another tenant by id.
pub async fn load_stays_within_the_tenant<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_stays_within_the_tenant");
    for (n, path) in (1..).zip(["acme", "globex", "acme/web"]) {
        let batch = fixture.batch(path).provision().owner(owner("ann"));
        let legacy = owned_by("ann", imported(n + 10, path)).with(|key| key.legacy = true);
        fixture
            .commit(batch.put(owned_by("ann", key(n))).put(legacy))
            .await?;
    }
    let select = LoadRequest {
        keys: (1..=13).map(id).collect(),
        live: [(text("server"), at(0))].into(),
        legacy: true,
        owners: vec![text("ann")],
        commands: Vec::new(),
    };
    let view = fixture.load("acme", select).await?;
    holds(&fixture, &view, &[id(1), id(11)])?;
    let tenants = (view.records.iter().map(|record| &record.tenant))
        .chain(view.owners.iter().map(|row| &row.tenant))
        .chain(view.tenant.iter().map(|row| &row.tenant));
    let foreign: BTreeSet<_> = tenants.filter(|tenant| tenant.as_str() != "acme").collect();
    fixture.same("other tenants in the view", foreign, BTreeSet::new())
}

/// `load` returns the tenant's own row with every view, without an explicit request.
pub async fn load_always_returns_the_tenants_row<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_always_returns_the_tenants_row");
    let batch = fixture.batch("acme").provision();
    let row = batch.commit.effects.tenant.clone();
    fixture.commit(batch).await?;
    let batch = fixture.batch("acme").put(key(1));
    fixture.commit(batch).await?;
    for select in [LoadRequest::none(), LoadRequest::key(id(1))] {
        let view = fixture.load("acme", select).await?;
        fixture.same("the tenant's row", view.tenant.as_ref(), row.as_ref())?;
    }
    Ok(())
}

/// `load` always returns the tenant's audit head: the number and the hash of the tenant's newest audit entry.
pub async fn the_audit_head_is_that_of_the_newest_entry<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "the_audit_head_is_that_of_the_newest_entry");
    for n in 1..=3 {
        let batch = fixture
            .batch("acme")
            .put(key(n))
            .entry(Action::KeyDisabled, Some(id(n)));
        let head = batch.commit.effects.audit.last().map(|entry| entry.head());
        fixture.commit(batch).await?;
        let elsewhere = fixture.batch("globex").put(key(n + 10));
        fixture.commit(elsewhere).await?;
        let view = fixture.load("acme", LoadRequest::none()).await?;
        fixture.same("audit head", Some(view.audit_head), head)?;
    }
    Ok(())
}

/// `decided_at` in a view is the latest decision time of all commits of the tenant. A later commit with an
/// earlier decision time does not lower it.
pub async fn decided_at_never_goes_back<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "decided_at_never_goes_back");
    for (n, (instant, latest)) in (1..).zip([(500, 500), (400, 500), (600, 600), (1, 600)]) {
        let batch = fixture.batch("acme").put(key(n)).decided_at(at(instant));
        fixture.commit(batch).await?;
        let elsewhere = fixture
            .batch("globex")
            .put(key(n + 10))
            .decided_at(at(9_000));
        fixture.commit(elsewhere).await?;
        let view = fixture.load("acme", LoadRequest::none()).await?;
        let what = format!("decided_at after a commit decided at {}", at(instant));
        fixture.same(&what, view.decided_at, Some(at(latest)))?;
    }
    let view = fixture.load("initech", LoadRequest::none()).await?;
    fixture.same(
        "revision of an unknown tenant",
        view.revision,
        Revision::ZERO,
    )
}

/// A commit that repairs a tenant's time sets the tenant's `decided_at` to its own decision time, even if
/// that is earlier. After a repair, commits can only raise `decided_at` again.
pub async fn decided_at_goes_back_in_a_repair<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "decided_at_goes_back_in_a_repair");
    let batch = fixture.batch("globex").put(key(9)).decided_at(at(8_000));
    fixture.commit(batch).await?;
    for (n, (instant, repairs, latest)) in (1..).zip([
        (9_000, false, 9_000),
        (500, true, 500),
        (400, false, 500),
        (600, false, 600),
        (550, true, 550),
        (700, true, 700),
    ]) {
        let batch = fixture.batch("acme").put(key(n)).decided_at(at(instant));
        let (from, to) = (at(9_000), at(instant));
        let batch = match repairs {
            true => batch.entry(Action::TimeRepaired { from, to }, None),
            false => batch,
        };
        fixture.commit(batch).await?;
        let view = fixture.load("acme", LoadRequest::none()).await?;
        let what = format!("decided_at after a commit decided at {}", at(instant));
        fixture.same(&what, view.decided_at, Some(at(latest)))?;
        let beside = fixture.load("globex", LoadRequest::none()).await?;
        fixture.same(
            "decided_at of another tenant",
            beside.decided_at,
            Some(at(8_000)),
        )?;
    }
    Ok(())
}

/// `load` returns each row with the revision of the commit that wrote the row, not with the tenant's
/// revision. Guards need the row's revision.
pub async fn load_returns_the_revision_of_each_row<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "load_returns_the_revision_of_each_row");
    let batch = fixture.batch("acme").provision();
    fixture.commit(batch).await?;
    let batch = fixture
        .batch("acme")
        .owner(owner("ann"))
        .owner(owner("bob"));
    fixture.commit(batch).await?;
    let batch = fixture
        .batch("acme")
        .put(owned_by("ann", key(1)))
        .put(key(2));
    fixture.commit(batch).await?;
    let batch = fixture.batch("globex").put(key(3));
    fixture.commit(batch).await?;
    // Every commit except the last one writes a row. The last commit has only an audit entry, and raises only
    // the tenant's revision.
    let last = [
        |batch: CommitBuilder| batch.put(key(2)),
        |batch: CommitBuilder| batch.owner(owner("bob")),
        |batch: CommitBuilder| batch.provision(),
        |batch: CommitBuilder| batch.put(owned_by("ann", key(1))).owner(owner("cid")),
        |batch: CommitBuilder| batch.entry(Action::KeyDisabled, Some(id(1))),
    ];
    for change in last {
        let batch = change(fixture.batch("acme"));
        fixture.commit(batch).await?;
        for select in [
            LoadRequest::none(),
            LoadRequest::key(id(1)),
            LoadRequest {
                keys: vec![id(2), id(3), id(99)],
                live: [(text("server"), at(0))].into(),
                owners: vec![text("bob"), text("nobody")],
                ..LoadRequest::none()
            },
        ] {
            let view = fixture.load("acme", select).await?;
            revisions(&fixture, &view)?;
        }
    }
    // The store must apply a commit whose guards have the revisions from a fresh view.
    let view = fixture.load("acme", LoadRequest::key(id(2))).await?;
    let above = view.revisions.into_iter();
    let batch = above.fold(fixture.batch("acme/web"), |batch, (row, revision)| {
        batch.guarded(row, revision)
    });
    fixture.commit(batch.put(key(4))).await.map(drop)
}

/// Checks that the view has the right revision for every row in it. Revisions of rows outside the view are
/// allowed if they are right too.
fn revisions<S: KeyStore>(fixture: &StoreFixture<S>, view: &TenantView) -> ClauseResult {
    let tenants = view.tenant.iter().cloned().map(Row::Tenant);
    let owners = view.owners.iter().cloned().map(Row::Owner);
    let keys = view.records.iter().map(|record| RowKey::Key(record.id));
    let rows = tenants.chain(owners).map(|row| row.key()).chain(keys);
    for row in rows {
        let known = view.revisions.get(&row).copied();
        let what = format!("revision of {row:?}");
        fixture.same(&what, known, Some(fixture.expected.row_at(&row)))?;
    }
    for (row, revision) in &view.revisions {
        let what = format!("revision of {row:?}");
        fixture.same(&what, *revision, fixture.expected.row_at(row))?;
    }
    Ok(())
}

/// Checks that the view contains every key in `asked`. Each key in the view must appear once, with its stored
/// contents.
fn holds<S: KeyStore>(
    fixture: &StoreFixture<S>,
    view: &TenantView,
    asked: &[KeyId],
) -> ClauseResult {
    let mut seen = BTreeSet::new();
    for record in &view.records {
        fixture.ensure(seen.insert(record.id), || {
            format!("key {} was loaded twice", record.id)
        })?;
        let stored = fixture.expected.records().find(|own| own.id == record.id);
        fixture.same(&format!("key {}", record.id), Some(record), stored)?;
    }
    for key in asked {
        fixture.ensure(seen.contains(key), || {
            format!("key {key} was requested but not loaded; loaded were {seen:?}")
        })?;
    }
    fixture.same("corrupt keys", view.corrupt.as_slice(), &[])
}

fn owners<S: KeyStore>(
    fixture: &StoreFixture<S>,
    view: &TenantView,
    asked: &[&str],
) -> ClauseResult {
    let seen: Vec<_> = view.owners.iter().map(|row| row.owner.as_str()).collect();
    let unique: BTreeSet<_> = seen.iter().collect();
    fixture.same(
        "rows of owners without repetition",
        seen.len(),
        unique.len(),
    )?;
    for name in asked {
        fixture.ensure(seen.contains(name), || {
            format!("the row of owner {name} was not loaded; loaded were {seen:?}")
        })?;
    }
    Ok(())
}
