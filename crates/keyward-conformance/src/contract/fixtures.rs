//! The tools that all checks share. These tools build sample records and commits, compare a store with its
//! expected contents, and poll futures step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use super::ClauseViolation;
use keyward::audit::{Action, AuditEntry, AuditHash, AuditHead};
use keyward::command::CommandId;
use keyward::key::{
    Author, Credential, Digest, Environment, Fingerprint, ImportScheme, KeyFacts, KeyRecord,
    KeyState, KeyType, LastAction, Lineage, Owner, Stamp,
};
use keyward::store::{
    AuditPage, AuditQuery, AuditRow, Change, Changes, ChangesError, Commit, CommitError, CommitTag,
    Cursor, Effects, Epoch, FoundKey, Guard, KeyPage, KeyQuery, KeyStore, LoadRequest, Locator,
    OwnerRecord, Revision, Row, RowKey, ScanPage, TenantRecord, TenantView,
};
use keyward::{KeyId, Reason, Role, ScopeSet, TenantId, Timestamp};

pub(super) type ClauseResult = Result<(), ClauseViolation>;

/// 1,000 pages: if a query returns more, the check fails. The store then probably returns pages without end.
const MAX_PAGES: usize = 1_000;

/// 8 polls: the largest number of times that a check polls a future before it drops the future or runs
/// another one.
pub(super) const STEPS: usize = 8;

/// Parses a literal, and panics if the literal is invalid.
pub(super) fn text<T>(constant: &str) -> T
where
    T: for<'a> TryFrom<&'a str>,
{
    let Ok(value) = T::try_from(constant) else {
        unreachable!("{constant:?} is a valid constant of the kit")
    };
    value
}

pub(super) fn tenant(path: &str) -> TenantId {
    text(path)
}

/// Returns the instant that is `seconds` after a fixed start. The start is not a whole second, so that a
/// store that rounds instants fails.
pub(super) fn at(seconds: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH.saturating_add(Duration::from_micros(
        1_700_000_000_123_457 + seconds * 1_000_000,
    ))
}

pub(super) fn stamp(seconds: u64) -> Stamp {
    Stamp {
        at: at(seconds),
        by: Author::Principal(text("alice")),
    }
}

pub(super) const fn id(n: u64) -> KeyId {
    KeyId::from_u128(((n as u128) << 80) | n as u128)
}

pub(super) fn digest(of: &str) -> Digest {
    Digest::sha256(of)
}

/// Returns the key with the number `n` and only the required fields. [`CommitBuilder::put`] sets the key's
/// tenant.
pub(super) fn key(n: u64) -> KeyRecord {
    KeyRecord {
        facts: KeyFacts {
            id: id(n),
            tenant: tenant("nobody"),
            class: text("server"),
            key_type: KeyType::Secret,
            environment: Environment::LIVE,
            name: text(&format!("key {n}")),
            description: None,
            purpose: None,
            metadata: Default::default(),
            owner: Owner::Tenant,
            bound: BTreeSet::new(),
            manages: false,
            scopes: ScopeSet::none(),
            allowlist: Default::default(),
            resource: None,
            exposed_at: None,
            created: stamp(n),
            updated: stamp(n),
            last_action: LastAction::Created,
            expires_at: None,
            legacy: false,
            predecessor: None,
            succession: None,
            hint: text(&format!("sk_live_…{n:04}")),
            fingerprint: Fingerprint::of_token(format!("token {n}")),
            published: None,
        },
        prefix: Some(text("sk_live_")),
        makers: Vec::new(),
        lineage: Lineage {
            first: id(n),
            since: at(n),
            created_by: None,
        },
        state: KeyState::Enabled,
        credential: Credential::Peppered {
            pepper: text("p1"),
            digest: digest(&format!("peppered {n}")),
        },
    }
}

/// Returns the imported key with the number `n`. Its digest is the hash of the text `of`.
pub(super) fn imported(n: u64, of: &str) -> KeyRecord {
    key(n).with(|key| {
        key.prefix = None;
        key.last_action = LastAction::Imported;
        key.credential = Credential::Imported {
            scheme: ImportScheme::Sha256,
            digest: digest(of),
        };
    })
}

pub(super) fn owned_by(owner: &str, record: KeyRecord) -> KeyRecord {
    record.with(|key| {
        key.owner = Owner::Principal(text(owner));
        key.bound = BTreeSet::from([Role::ADMIN]);
    })
}

pub(super) fn revoked(record: KeyRecord) -> KeyRecord {
    record.with(|key| {
        key.state = KeyState::Revoked {
            stamp: stamp(5),
            reason: Reason::Lost,
        };
        key.last_action = LastAction::Revoked;
    })
}

/// Returns an owner's row. [`CommitBuilder::owner`] sets its tenant.
pub(super) fn owner(name: &str) -> OwnerRecord {
    OwnerRecord {
        tenant: tenant("nobody"),
        owner: text(name),
        role: Some(Role::DEVELOPER),
        removed_at: None,
        raised_from: Default::default(),
        updated: stamp(1),
    }
}

/// A builder of commits, which sets the tenant of every added row and adds an audit entry for the row.
#[derive(Clone)]
pub(super) struct CommitBuilder {
    pub(super) commit: Commit,
    head: AuditHead,
}

impl CommitBuilder {
    pub(super) fn put(mut self, record: KeyRecord) -> Self {
        let tenant = self.commit.tenant.clone();
        let (key, class) = (record.id, record.class.clone());
        self.commit
            .effects
            .puts
            .push(record.with(|key| key.tenant = tenant));
        self.entry(Action::KeyCreated { class }, Some(key))
    }

    pub(super) fn remove(mut self, key: KeyId) -> Self {
        self.commit.effects.removes.push(key);
        self.entry(Action::KeyDeleted, Some(key))
    }

    pub(super) fn owner(mut self, row: OwnerRecord) -> Self {
        let tenant = self.commit.tenant.clone();
        let owner = row.owner.clone();
        let owners = &mut self.commit.effects.owners;
        owners.push(OwnerRecord { tenant, ..row });
        let role = Role::DEVELOPER;
        self.entry(Action::OwnerAdded { owner, role }, None)
    }

    /// Writes the tenant's own row.
    pub(super) fn provision(mut self) -> Self {
        self.commit.effects.tenant = Some(TenantRecord {
            tenant: self.commit.tenant.clone(),
            provisioned: Some(stamp(1)),
            closed: None,
            sweeps: Vec::new(),
            updated: stamp(1),
            time_repair: None,
        });
        self.entry(Action::TenantProvisioned, None)
    }

    /// Adds an audit entry to the commit, without a row.
    pub(super) fn entry(mut self, action: Action, key: Option<KeyId>) -> Self {
        let sequence = self.head.sequence + 1;
        let seal = format!("{:?} {} {sequence}", self.commit.tag, self.commit.tenant);
        let entry = AuditEntry {
            tenant: self.commit.tenant.clone(),
            sequence,
            at: self.commit.decided_at,
            actor: Author::Principal(text("alice")),
            role: Some(Role::ADMIN),
            command: text(&format!("command-{:x}", self.commit.tag.0)),
            command_mark: sequence.to_be_bytes(),
            action,
            evidence: None,
            key,
            pepper: text("p1"),
            previous: self.head.hash,
            hash: AuditHash::from_bytes(*digest(&seal).as_bytes()),
        };
        self.head = entry.head();
        self.commit.effects.audit.push(entry);
        self
    }

    /// Removes the tenant's audit entries up to a number.
    pub(super) fn prune(mut self, through: u64) -> Self {
        self.commit.effects.prune = Some(through);
        self
    }

    /// Sets the actor and the command id of all audit entries that were added before.
    pub(super) fn by(mut self, actor: &str, command: &str) -> Self {
        for entry in &mut self.commit.effects.audit {
            entry.actor = Author::Principal(text(actor));
            entry.command = text::<CommandId>(command);
        }
        self
    }

    pub(super) fn decided_at(mut self, instant: Timestamp) -> Self {
        self.commit.decided_at = instant;
        for entry in &mut self.commit.effects.audit {
            entry.at = instant;
        }
        self
    }

    pub(super) fn expecting(mut self, revision: Revision) -> Self {
        self.commit.expected = revision;
        self
    }

    /// Sets the epoch that the commit expects the store to have.
    pub(super) fn in_history(mut self, epoch: Epoch) -> Self {
        self.commit.epoch = Some(epoch);
        self
    }

    /// Adds a guard: the store must refuse the commit unless `row` is at `revision`.
    pub(super) fn guarded(mut self, row: RowKey, revision: Revision) -> Self {
        self.commit.guards.push(Guard { row, revision });
        self
    }

    /// Claims the digest of the text `of` for a key, without writing the key itself.
    pub(super) fn claim(mut self, of: &str, key: KeyId) -> Self {
        self.commit.effects.digests.push((digest(of), key));
        self.entry(Action::KeyDisabled, Some(key))
    }
}

#[derive(Clone, Default)]
struct ExpectedTenant {
    revision: Revision,
    audit_head: AuditHead,
    decided_at: Option<Timestamp>,
}

/// The expected contents of a store.
#[derive(Clone, Default)]
pub(super) struct ExpectedContents {
    pub(super) rows: BTreeMap<RowKey, Change>,
    pub(super) audit: Vec<AuditRow>,
    pub(super) revision: Revision,
    pub(super) tag: CommitTag,
    pub(super) tags: BTreeMap<Revision, CommitTag>,
    tenants: BTreeMap<TenantId, ExpectedTenant>,
}

impl ExpectedContents {
    fn apply(&mut self, commit: &Commit, revision: Revision) {
        self.revision = revision;
        self.tag = commit.tag;
        self.tags.insert(revision, commit.tag);
        for row in commit.rows() {
            self.rows.insert(row.key(), Change { revision, row });
        }
        let known = self.tenants.entry(commit.tenant.clone()).or_default();
        known.revision = revision;
        known.decided_at = Some(commit.newest_after(known.decided_at));
        for entry in &commit.effects.audit {
            known.audit_head = entry.head();
            let entry = entry.clone();
            self.audit.push(AuditRow { revision, entry });
        }
        self.audit.retain(|AuditRow { entry, .. }| {
            entry.tenant != commit.tenant || Some(entry.sequence) > commit.effects.prune
        });
    }

    /// Returns the revision of the commit that last wrote a row, or zero for a row that was never written.
    pub(super) fn row_at(&self, row: &RowKey) -> Revision {
        let change = self.rows.get(row);
        change.map_or(Revision::ZERO, |change| change.revision)
    }

    /// Returns the records of all keys that were not removed, by id.
    pub(super) fn records(&self) -> impl Iterator<Item = &KeyRecord> {
        self.rows.values().filter_map(|change| match &change.row {
            Row::Key(record) => Some(&**record),
            _ => None,
        })
    }

    /// Returns the rows that a scan must return, which are all rows except tombstones.
    pub(super) fn live_rows(&self) -> BTreeMap<RowKey, Change> {
        let gone = |change: &Change| matches!(change.row, Row::Removed { .. });
        let rows = self.rows.iter().filter(|(_, change)| !gone(change));
        rows.map(|(key, change)| (key.clone(), change.clone()))
            .collect()
    }

    /// Returns the rows that were last written after the revision `after`, up to and including `upto`.
    pub(super) fn between(&self, after: Revision, upto: Revision) -> BTreeMap<RowKey, Change> {
        let within = |change: &Change| change.revision > after && change.revision <= upto;
        let rows = self.rows.iter().filter(|(_, change)| within(change));
        rows.map(|(key, change)| (key.clone(), change.clone()))
            .collect()
    }
}

/// An empty store with its expected contents, which each commit updates. Every failure names the clause under
/// test.
pub(super) struct StoreFixture<S> {
    pub(super) store: S,
    pub(super) expected: ExpectedContents,
    clause: &'static str,
    drafts: u64,
}

impl<S: KeyStore> StoreFixture<S> {
    pub(super) fn new(make: &impl Fn() -> S, clause: &'static str) -> Self {
        Self {
            store: make(),
            expected: ExpectedContents::default(),
            clause,
            drafts: 0,
        }
    }

    /// Begins a commit without rows, with the tenant's last revision as its expected revision. Each commit
    /// has its own tag and decision time.
    pub(super) fn batch(&mut self, path: &str) -> CommitBuilder {
        self.drafts += 1;
        let tenant = tenant(path);
        let known = self
            .expected
            .tenants
            .get(&tenant)
            .cloned()
            .unwrap_or_default();
        let tag = u128::from(self.drafts).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        CommitBuilder {
            commit: Commit {
                tenant,
                epoch: None,
                expected: known.revision,
                guards: Vec::new(),
                tag: CommitTag(tag),
                decided_at: at(self.drafts),
                effects: Effects::default(),
            },
            head: known.audit_head,
        }
    }

    pub(super) fn fail(&self, detail: impl Into<String>) -> ClauseViolation {
        ClauseViolation {
            clause: self.clause,
            detail: detail.into(),
        }
    }

    pub(super) fn ensure(&self, holds: bool, detail: impl FnOnce() -> String) -> ClauseResult {
        if holds {
            return Ok(());
        }
        Err(self.fail(detail()))
    }

    pub(super) fn same<T: PartialEq + fmt::Debug>(
        &self,
        what: &str,
        got: T,
        want: T,
    ) -> ClauseResult {
        if got == want {
            return Ok(());
        }
        let (got, want) = (brief(&got), brief(&want));
        Err(self.fail(format!("{what}: got {got}, want {want}")))
    }

    fn answered<T, E: fmt::Display>(
        &self,
        method: &str,
        answer: Result<T, E>,
    ) -> Result<T, ClauseViolation> {
        answer.map_err(|error| self.fail(format!("{method} failed: {error}")))
    }

    pub(super) async fn tenants(&self) -> Result<BTreeSet<TenantId>, ClauseViolation> {
        self.answered("tenants", self.store.tenants().await)
    }

    pub(super) async fn restored_from(&self) -> Result<Option<Epoch>, ClauseViolation> {
        self.answered("restored_from", self.store.restored_from().await)
    }

    /// Executes a commit. Fails the check if the store refuses it.
    pub(super) async fn commit(
        &mut self,
        batch: CommitBuilder,
    ) -> Result<Revision, ClauseViolation> {
        let commit = batch.commit;
        let answer = self.store.commit(commit.clone()).await;
        let revision = self.answered("commit", answer)?;
        self.expected.apply(&commit, revision);
        Ok(revision)
    }

    /// Adds a commit to the expected contents. For a check that has called the store's `commit` directly.
    pub(super) fn record_commit(&mut self, batch: &CommitBuilder, revision: Revision) {
        self.expected.apply(&batch.commit, revision);
    }

    /// Adds those of several concurrent commits to the expected contents that the store has applied. Fails if
    /// the store applied a commit although a guarded row had changed before.
    pub(super) fn record_outcomes(
        &mut self,
        answers: impl IntoIterator<Item = (CommitBuilder, Result<Revision, CommitError>)>,
    ) -> ClauseResult {
        let mut landed = BTreeMap::new();
        for (batch, answer) in answers {
            match answer {
                Ok(revision) => drop(landed.insert(revision, batch)),
                Err(CommitError::Conflict) if !batch.commit.guards.is_empty() => {}
                Err(error) => return Err(self.fail(format!("commit failed: {error}"))),
            }
        }
        for (revision, batch) in landed {
            for guard in &batch.commit.guards {
                let stands = self.expected.row_at(&guard.row);
                self.ensure(stands == guard.revision, || {
                    format!(
                        "a commit landed at revision {revision}, guarded by {:?} at revision {}, \
                         which had moved to {stands}",
                        guard.row, guard.revision
                    )
                })?;
            }
            self.record_commit(&batch, revision);
        }
        Ok(())
    }

    /// Executes a commit that the store must refuse. Returns the error, and fails the check if the store
    /// applies the commit.
    pub(super) async fn refused(
        &self,
        batch: CommitBuilder,
    ) -> Result<CommitError, ClauseViolation> {
        match self.store.commit(batch.commit).await {
            Ok(revision) => Err(self.fail(format!("commit was accepted at revision {revision}"))),
            Err(error) => Ok(error),
        }
    }

    pub(super) async fn conflicts(&self, what: &str, batch: CommitBuilder) -> ClauseResult {
        match self.refused(batch).await? {
            CommitError::Conflict => Ok(()),
            other => Err(self.fail(format!("{what}: refused as `{other}`, not as a conflict"))),
        }
    }

    pub(super) async fn id_taken(
        &self,
        what: &str,
        batch: CommitBuilder,
        key: KeyId,
    ) -> ClauseResult {
        match self.refused(batch).await? {
            CommitError::IdTaken(named) => self.same(what, named, key),
            other => Err(self.fail(format!("{what}: refused as `{other}`, not for its id"))),
        }
    }

    pub(super) async fn digest_taken(&self, what: &str, batch: CommitBuilder) -> ClauseResult {
        match self.refused(batch).await? {
            CommitError::DigestTaken => Ok(()),
            other => Err(self.fail(format!("{what}: refused as `{other}`, not for its digest"))),
        }
    }

    pub(super) async fn load(
        &self,
        path: &str,
        select: LoadRequest,
    ) -> Result<TenantView, ClauseViolation> {
        let answer = self.store.load(&tenant(path), &select).await;
        self.answered("load", answer)
    }

    pub(super) async fn find(&self, locator: Locator) -> Result<Option<FoundKey>, ClauseViolation> {
        let answer = self.store.find(&locator).await;
        self.answered("find", answer)
    }

    pub(super) async fn list(&self, query: &KeyQuery) -> Result<KeyPage, ClauseViolation> {
        let answer = self.store.list(query).await;
        self.answered("list", answer)
    }

    pub(super) async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, ClauseViolation> {
        let answer = self.store.audit(query).await;
        self.answered("audit", answer)
    }

    pub(super) async fn scan(
        &self,
        after: Option<RowKey>,
        limit: usize,
    ) -> Result<ScanPage, ClauseViolation> {
        let answer = self.store.scan(after, count(limit)).await;
        self.answered("scan", answer)
    }

    /// Returns all pages that `scan_all` of the store passes to its callback.
    pub(super) async fn pages_of_all(
        &self,
        limit: usize,
    ) -> Result<Vec<ScanPage>, ClauseViolation> {
        let mut pages = Vec::new();
        let mut take = |page| {
            pages.push(page);
            Ok(())
        };
        let answer = self.store.scan_all(count(limit), &mut take).await;
        self.answered("scan_all", answer)?;
        self.ensure(!pages.is_empty(), || {
            "a scan of everything has no page".to_owned()
        })?;
        Ok(pages)
    }

    pub(super) async fn changes(
        &self,
        after: Cursor,
        limit: usize,
    ) -> Result<Changes, ClauseViolation> {
        let answer = self.store.changes(after, count(limit)).await;
        self.answered("changes", answer)
    }

    /// Checks that the feed refuses a cursor with `Compacted`.
    pub(super) async fn compacted(&self, what: &str, after: Cursor) -> ClauseResult {
        match self.store.changes(after, count(1)).await {
            Err(ChangesError::Compacted) => Ok(()),
            Err(other) => Err(self.fail(format!("{what}: refused as `{other}`, not compacted"))),
            Ok(page) => Err(self.fail(format!("{what}: answered {}", brief(&page)))),
        }
    }

    /// Checks that the feed refuses a cursor with `Diverged`.
    pub(super) async fn diverged(&self, what: &str, after: Cursor) -> ClauseResult {
        match self.store.changes(after, count(1)).await {
            Err(ChangesError::Diverged) => Ok(()),
            Err(other) => Err(self.fail(format!("{what}: refused as `{other}`, not diverged"))),
            Ok(page) => Err(self.fail(format!("{what}: answered {}", brief(&page)))),
        }
    }

    /// Returns the store's head.
    pub(super) async fn head(&self) -> Result<Cursor, ClauseViolation> {
        Ok(self.scan(None, 1).await?.head)
    }

    /// Reads the feed from `after` until an empty page shows that the head is reached. Returns the pages
    /// before the empty page.
    pub(super) async fn follow(
        &self,
        mut after: Cursor,
        limit: usize,
    ) -> Result<Vec<Changes>, ClauseViolation> {
        let mut pages = Vec::new();
        while pages.len() < MAX_PAGES {
            let page = self.changes(after, limit).await?;
            if page.changes.is_empty() {
                return Ok(pages);
            }
            let moves = page.upto.revision > after.revision;
            self.ensure(moves, || {
                format!(
                    "a page after revision {} ends at {}",
                    after.revision, page.upto.revision
                )
            })?;
            after = page.upto;
            pages.push(page);
        }
        Err(self.fail(format!("the feed did not end within {MAX_PAGES} pages")))
    }

    /// Scans the whole store page by page. Returns the head of the first page, and all rows except
    /// tombstones.
    pub(super) async fn scan_all(
        &self,
        limit: usize,
    ) -> Result<(Cursor, Vec<Change>), ClauseViolation> {
        let first = self.scan(None, limit).await?;
        let (head, mut rows, mut next) = (first.head, first.rows, first.next);
        for _ in 0..MAX_PAGES {
            let Some(after) = next else {
                rows.retain(|change| !matches!(change.row, Row::Removed { .. }));
                return Ok((head, rows));
            };
            let page = self.scan(Some(after), limit).await?;
            rows.extend(page.rows);
            next = page.next;
        }
        Err(self.fail(format!("the scan did not end within {MAX_PAGES} pages")))
    }

    pub(super) async fn list_all(
        &self,
        mut query: KeyQuery,
    ) -> Result<Vec<KeyRecord>, ClauseViolation> {
        let mut keys = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = self.list(&query).await?;
            self.ensure(page.keys.len() <= query.limit.get(), || {
                format!(
                    "a page of at most {} has {} keys",
                    query.limit,
                    page.keys.len()
                )
            })?;
            keys.extend(page.keys);
            if page.next.is_none() {
                return Ok(keys);
            }
            query.after = page.next;
        }
        Err(self.fail(format!("the list did not end within {MAX_PAGES} pages")))
    }

    pub(super) async fn audit_all(
        &self,
        mut query: AuditQuery,
    ) -> Result<Vec<AuditRow>, ClauseViolation> {
        let mut rows = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = self.audit(&query).await?;
            self.ensure(page.rows.len() <= query.limit.get(), || {
                format!(
                    "a page of at most {} has {} entries",
                    query.limit,
                    page.rows.len()
                )
            })?;
            rows.extend(page.rows);
            if page.next.is_none() {
                return Ok(rows);
            }
            query.after = page.next;
        }
        Err(self.fail(format!("the trail did not end within {MAX_PAGES} pages")))
    }

    /// Checks that scans, lists, views and the audit trail of the store return exactly the expected contents.
    pub(super) async fn check_contents(&self, when: &str) -> ClauseResult {
        let expected = &self.expected;
        let (head, rows) = self.scan_all(50).await?;
        let standing: Vec<_> = expected.live_rows().into_values().collect();
        self.same(&format!("rows {when}"), rows, standing)?;
        let stands = (head.revision, head.tag);
        self.same(
            &format!("head {when}"),
            stands,
            (expected.revision, expected.tag),
        )?;
        let trail = self.audit_all(AuditQuery::all()).await?;
        self.same(
            &format!("audit trail {when}"),
            trail,
            expected.audit.clone(),
        )?;
        let listed = self.list_all(KeyQuery::all(at(0))).await?;
        let records = expected.records().cloned().collect();
        self.same(&format!("list {when}"), listed, records)?;
        for (path, known) in &expected.tenants {
            let view = self.load(path.as_str(), LoadRequest::none()).await?;
            let seen = (view.revision, view.audit_head, view.decided_at);
            let want = (known.revision, known.audit_head, known.decided_at);
            self.same(&format!("heads of {path} {when}"), seen, want)?;
            let row = expected.rows.get(&RowKey::Tenant(path.clone()));
            let row = row.map(|change| &change.row);
            let seen = view.tenant.map(Row::Tenant);
            self.same(&format!("row of {path} {when}"), seen.as_ref(), row)?;
        }
        Ok(())
    }
}

pub(super) fn count(limit: usize) -> NonZeroUsize {
    NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN)
}

pub(super) fn rows_of(changes: &[Change]) -> BTreeSet<RowKey> {
    changes.iter().map(|change| change.row.key()).collect()
}

/// Formats a value with `Debug`, truncated to 600 characters.
pub(super) fn brief(value: &impl fmt::Debug) -> String {
    const LONGEST: usize = 600;
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write!(text, "{value:?}");
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Returns the row key of a tenant's row.
pub(super) fn tenant_row(path: &str) -> RowKey {
    RowKey::Tenant(tenant(path))
}

/// Returns the row key of an owner's row.
pub(super) fn owner_row(path: &str, name: &str) -> RowKey {
    RowKey::Owner(tenant(path), text(name))
}

/// A future that a check can poll a chosen number of times, and then finish or drop, on any executor.
pub(super) struct PolledFuture<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + 'a>>,
    output: Option<T>,
}

impl<'a, T> PolledFuture<'a, T> {
    pub(super) fn new(future: impl Future<Output = T> + 'a) -> Self {
        Self {
            future: Box::pin(future),
            output: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        if self.output.is_none()
            && let Poll::Ready(output) = self.future.as_mut().poll(cx)
        {
            self.output = Some(output);
        }
    }

    /// Polls this future up to `steps` times, and stops if it completes. Between two polls, waits until its
    /// task is woken.
    pub(super) async fn steps(&mut self, steps: usize) {
        for step in 1..=steps {
            let mut first = true;
            poll_fn(|cx| {
                if !first {
                    return Poll::Ready(());
                }
                first = false;
                self.poll(cx);
                // Return immediately after the last poll, without waiting to be woken. The check can then run
                // another future first.
                if self.output.is_some() || step == steps {
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
            if self.output.is_some() {
                return;
            }
        }
    }

    /// Runs `other` to completion. Also polls this future whenever `other` is pending, because `other` may
    /// wait for it.
    pub(super) async fn let_pass<O>(&mut self, other: impl Future<Output = O>) -> O {
        let mut other = pin!(other);
        poll_fn(|cx| {
            let polled = other.as_mut().poll(cx);
            if polled.is_pending() {
                self.poll(cx);
            }
            polled
        })
        .await
    }

    /// Runs all futures concurrently until each has completed. Polls them in order, one after another, in
    /// every round.
    pub(super) async fn finish_all(mut all: Vec<Self>) -> Vec<T> {
        poll_fn(|cx| {
            all.iter_mut().for_each(|running| running.poll(cx));
            let over = all.iter().all(|running| running.output.is_some());
            if over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        all.into_iter().filter_map(Self::output).collect()
    }

    /// Returns the output of a completed future, or `None` if the future is still pending.
    pub(super) fn output(self) -> Option<T> {
        self.output
    }

    /// Runs the future to completion.
    pub(super) async fn finish(mut self) -> T {
        match self.output {
            Some(output) => output,
            None => self.future.as_mut().await,
        }
    }
}
