//! Stores that each break one clause of the contract, to test checks against.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use async_trait::async_trait;

use keyward::key::{Description, Digest, KeyRecord, KeyState, Owner};
use keyward::store::{
    AuditPage, AuditQuery, Change, Changes, ChangesError, Commit, CommitError, CommitTag, Cursor,
    Effects, Epoch, FoundKey, Guard, KeyPage, KeyQuery, KeySort, KeyStore, LoadRequest, Locator,
    Revision, Row, RowKey, ScanPage, StoreError, StoreErrorKind, TakePage, TenantView,
    scan_by_pages,
};
use keyward::{KeyId, PrincipalId, TenantId, Timestamp};

/// Defines an enum of defects, each with the clause that catches it.
macro_rules! defects {
    (
        $(#[$about:meta])*
        enum $defect:ident;
        $($(#[$doc:meta])* $name:ident => $clause:literal,)*
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[non_exhaustive]
        pub enum $defect {
            $($(#[$doc])* $name,)*
        }

        impl $defect {
            /// Every defect.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the clause that catches the defect. Other clauses may catch it too.
            #[must_use]
            pub const fn caught_by(self) -> &'static str {
                match self {
                    $(Self::$name => $clause,)*
                }
            }
        }
    };
}

mod nodes;

pub use self::nodes::{BrokenRegistry, RegistryDefect};

defects! {
    /// One deliberate mistake of a store. Most were found in real stores.
    enum StoreDefect;

    /// Returns the store's head as the revision of an unknown tenant.
    UnknownTenantHasRevision => "an_unknown_tenant_is_empty_at_revision_zero",
    /// Returns views without an epoch.
    LoadsWithoutEpoch => "load_returns_the_epoch",
    /// Stores the epoch with each tenant, so an unknown tenant has none.
    LoadsNoEpochOfUnknownTenants => "load_returns_the_epoch",
    /// Returns a cached view of a tenant after the tenant has changed.
    LoadsFromCache => "load_reflects_every_commit_that_returned",
    /// Leaves out keys that are not live, even if they are requested by id.
    LoadsOnlyLiveKeysById => "load_returns_keys_by_id",
    /// Takes "live" to mean enabled, and leaves out disabled keys.
    LoadsNoDisabledKeys => "load_returns_keys_live_at_an_instant",
    /// Leaves out a legacy key that was revoked.
    LoadsNoRevokedLegacyKey => "load_returns_the_legacy_key",
    /// Leaves out the rows of owners that are requested.
    LoadsNoOwnersAskedFor => "load_returns_rows_of_owners",
    /// Leaves out the rows of the owners of loaded keys.
    LoadsNoOwnersOfKeys => "load_returns_rows_of_the_owners_of_loaded_keys",
    /// Loads the newest entries of a command instead of its first.
    LoadsNewestOfCommands => "load_returns_what_commands_did",
    /// Loads only the first audit entry of each command.
    LoadsOneEntryOfCommands => "load_returns_what_commands_did",
    /// Loads a key requested by id from any tenant.
    LoadsAcrossTenants => "load_stays_within_the_tenant",
    /// Loads the tenant's row only together with keys.
    LoadsTenantRowWithKeysOnly => "load_always_returns_the_tenants_row",
    /// Returns the first entry of a commit as the audit head.
    AuditHeadOfFirstEntry => "the_audit_head_is_that_of_the_newest_entry",
    /// Returns `decided_at` of the last commit, even if that commit's clock went back.
    DecidedAtOfLastCommit => "decided_at_never_goes_back",
    /// Never lets `decided_at` go back, not even in a repair.
    DecidedAtStaysInRepairs => "decided_at_goes_back_in_a_repair",
    /// Loads rows with the tenant's revision instead of their own.
    LoadsRowsAtTenantRevision => "load_returns_the_revision_of_each_row",
    /// Loads rows of owners without a revision.
    LoadsOwnersWithoutRevision => "load_returns_the_revision_of_each_row",
    /// Returns a found key with the store's revision instead of the key's own.
    FindsAtHeadRevision => "find_returns_a_key_by_its_id",
    /// Keeps no index of imported digests.
    FindsNoDigests => "find_returns_a_key_by_its_imported_digest",
    /// Returns a cached key after the key has changed.
    FindsFromCache => "find_reflects_every_commit_that_returned",
    /// Does not find removed keys.
    FindsNoTombstones => "find_returns_the_tombstone_of_a_removed_key",
    /// Returns a found key together with a head that has no tag.
    FindsHeadWithoutTag => "find_returns_a_head_that_can_be_followed",
    /// Returns a found key together with a head that is one revision ahead of the store's head.
    FindsHeadAhead => "find_returns_a_head_that_can_be_followed",
    /// Ignores the expected revision.
    IgnoresExpected => "a_commit_on_another_revision_is_a_conflict",
    /// Refuses an expected revision only if it is too old.
    AcceptsExpectedAhead => "a_commit_on_another_revision_is_a_conflict",
    /// Ignores the history that a commit was decided on.
    IgnoresEpochs => "a_commit_on_another_history_is_a_conflict",
    /// Checks the history that a commit was decided on for known tenants only.
    IgnoresEpochsOfNewTenants => "a_commit_on_another_history_is_a_conflict",
    /// Writes audit entries outside the transaction, so they remain after a conflict.
    ConflictLeavesAudit => "a_conflict_writes_nothing",
    /// Notices a conflict when it writes records, after it has written the owners' rows.
    ConflictLeavesOwners => "a_conflict_writes_nothing",
    /// Writes the valid part of a refused batch.
    RefusalLeavesTheRest => "a_refused_batch_writes_nothing",
    /// Accepts an id that another tenant uses, without writing its record.
    IdsPerTenant => "ids_are_unique_across_tenants",
    /// Accepts the id of a removed key, without writing its record.
    ForgetsRemovedIds => "a_removed_key_never_comes_back",
    /// Ignores the removal of a key that was never stored.
    RemovesOnlyWhatIsThere => "removing_a_key_never_stored_takes_its_id",
    /// Accepts an imported digest that another tenant uses, without writing its record.
    DigestsPerTenant => "imported_digests_are_unique_across_tenants",
    /// Refuses to change an imported key, because its own digest is taken.
    DigestTakenByItself => "imported_digests_are_unique_across_tenants",
    /// Compares imported digests with stored digests, but not within a commit.
    DigestsNotComparedInBatch => "imported_digests_are_unique_within_a_batch",
    /// Frees the digest of a removed key.
    RemovalFreesDigest => "the_digest_of_a_removed_key_stays_taken",
    /// Drops digests that are claimed without a record.
    ForgetsClaimedDigests => "a_claimed_digest_stays_taken",
    /// Frees the claimed digests of a removed key.
    RemovalFreesClaimedDigests => "a_claimed_digest_stays_taken",
    /// Looks up a claimed digest and stores it in two steps.
    ClaimsInTwoSteps => "concurrent_claims_of_one_digest_have_one_winner",
    /// Refuses a guard on an absent row, even at revision zero.
    AbsentRowsNeverStand => "a_commit_whose_guards_hold_is_applied",
    /// Ignores guards.
    IgnoresGuards => "a_commit_whose_guarded_row_moved_is_a_conflict",
    /// Checks only the first of several guards.
    ChecksOneGuard => "a_commit_whose_guarded_row_moved_is_a_conflict",
    /// Refuses a guard that is behind its row, but accepts a guard that is ahead of its row.
    AcceptsGuardsAhead => "a_commit_whose_guarded_row_moved_is_a_conflict",
    /// Accepts a guard if the tenant of the guarded row has reached the guard's revision.
    AcceptsGuardsTheTenantPassed => "a_commit_whose_guarded_row_moved_is_a_conflict",
    /// Ignores a guard at revision zero.
    AbsentRowsAlwaysStand => "a_commit_whose_guarded_row_appeared_is_a_conflict",
    /// Ignores a guard on a row that is absent now.
    RemovedKeysStand => "a_commit_whose_guarded_key_was_removed_is_a_conflict",
    /// Compares a guard with the tenant's revision, so every commit of the tenant breaks it.
    GuardsWholeTenants => "a_guard_holds_while_its_tenant_changes",
    /// Compares guards before it takes the lock that orders commits.
    GuardsBeforeTheLock => "a_guard_holds_until_its_commit_is_applied",
    /// Counts revisions per tenant.
    RevisionsPerTenant => "revisions_increase_in_commit_order",
    /// Draws revisions from a sequence before the commit becomes visible.
    SequenceBeforeCommit => "nothing_appears_behind_a_revision_seen",
    /// Compares the revision and writes the batch in two steps.
    CheckThenWrite => "concurrent_commits_have_one_winner",
    /// Writes records first, then owners and audit entries, in two steps.
    CommitsInTwoSteps => "a_dropped_commit_is_all_or_nothing",
    /// Truncates long texts.
    CutsLongTexts => "records_come_back_as_they_were_written",
    /// Stores instants in whole seconds.
    KeepsWholeSeconds => "records_come_back_as_they_were_written",
    /// Drops the instant at which an owner was removed.
    ForgetsWhenOwnersLeft => "other_rows_come_back_as_they_were_written",
    /// Keeps the old value of a field that a new record leaves empty.
    MergesRecords => "a_put_replaces_the_whole_record",
    /// Returns changes newest first.
    FeedNewestFirst => "changes_come_oldest_first",
    /// Returns a feed without owners' rows.
    FeedWithoutOwners => "changes_end_at_the_rows_of_the_store",
    /// Cuts a page at `limit`, in the middle of a revision.
    FeedSplitsRevisions => "a_revision_is_never_split_across_pages",
    /// Cuts a page at `limit`, and sets its `upto` to the head.
    FeedClaimsTheHead => "nothing_up_to_upto_is_missing",
    /// Returns a feed that is one commit behind.
    FeedLags => "an_empty_page_means_caught_up",
    /// Ends an empty page at the requested cursor, although commits without rows followed.
    FeedStaysBehind => "an_empty_page_means_caught_up",
    /// Drops removed keys from the feed.
    FeedWithoutTombstones => "tombstones_are_in_the_feed",
    /// Answers a cursor ahead of the head with an empty page.
    AcceptsCursorsAhead => "a_cursor_ahead_of_the_head_is_compacted",
    /// Does not compare epochs.
    AcceptsOtherEpochs => "a_cursor_of_another_epoch_is_compacted",
    /// Does not compare tags.
    AcceptsOtherTags => "a_cursor_with_another_tag_is_compacted",
    /// Returns cursors without their tags, and does not compare tags.
    CursorsWithoutTags => "cursors_carry_the_tag_of_their_commit",
    /// Answers `changes_now` from a copy that lags.
    ChangesNowLags => "changes_now_returns_what_changes_returns",
    /// Scans keys before owners and tenants.
    ScansKeysFirst => "a_scan_returns_every_row_in_order",
    /// Skips the first row of every page after the first.
    ScanSkipsRows => "a_scan_returns_every_row_in_order",
    /// Continues a scan by the number of rows returned, not after the last row.
    ScansByOffset => "a_scan_and_its_changes_lead_to_the_store",
    /// Reads a page's head after its rows.
    ScanReadsHeadLast => "a_scan_reads_its_head_before_its_rows",
    /// Leaves out owners and tenants from a scan of everything.
    ScanOfAllLeavesOutOwners => "a_scan_of_all_returns_every_row_once",
    /// Ends a scan of everything before its last page.
    ScanOfAllLosesItsEnd => "a_scan_of_all_returns_every_row_once",
    /// Returns no page from a scan of an empty store.
    ScanOfNothingHasNoPage => "a_scan_of_all_returns_every_row_once",
    /// Reads the head of a scan of everything after all rows.
    ScanOfAllReadsHeadLast => "a_scan_of_all_reads_its_head_before_its_rows",
    /// Continues a scan of everything after its callback has failed.
    ScanOfAllIgnoresTheError => "a_scan_of_all_returns_the_consumers_error",
    /// Stops a scan of everything at an error of its callback, but does not return the error.
    ScanOfAllHidesTheError => "a_scan_of_all_returns_the_consumers_error",
    /// Compares names case-sensitively.
    ListMindsCase => "a_list_holds_exactly_what_matches",
    /// Compares tenant paths as text: treats `acme-two` as a descendant of `acme`.
    ListComparesPathsByText => "a_list_holds_exactly_what_matches",
    /// Lists a key that expires at an instant as expiring before it.
    ListIncludesTheEnd => "a_list_holds_exactly_what_matches",
    /// Lists keys without an expiry first, as some databases order nulls.
    ListPutsEndlessKeysFirst => "a_list_comes_in_the_querys_order",
    /// Orders names case-insensitively.
    ListOrdersNamesByLowerCase => "a_list_comes_in_the_querys_order",
    /// Starts a page one key too late.
    ListSkipsAKey => "pages_of_a_list_neither_repeat_nor_skip",
    /// Starts a page with the last key of the previous page.
    ListRepeatsAKey => "pages_of_a_list_neither_repeat_nor_skip",
    /// Returns a position for a further page even on the last page.
    ListHasNoLastPage => "pages_of_a_list_neither_repeat_nor_skip",
    /// Continues a list after a key only if the key still exists.
    ListNeedsThePreviousKey => "a_list_goes_on_after_a_key_that_is_gone",
    /// Lists removed keys.
    ListsRemovedKeys => "a_list_reflects_every_commit_that_returned",
    /// Returns the audit trail newest first.
    AuditNewestFirst => "the_audit_trail_comes_oldest_first",
    /// Includes entries at the exact end of a time span.
    AuditIncludesTheEnd => "the_audit_trail_holds_exactly_what_matches",
    /// Ignores the actor in a query.
    AuditIgnoresActors => "the_audit_trail_holds_exactly_what_matches",
    /// Continues with the next commit after a page that ended within a commit.
    AuditSkipsRestOfCommit => "pages_of_the_audit_trail_neither_repeat_nor_skip",
    /// Keeps only the last entry of a commit, as if entries shared a primary key.
    AuditKeepsOnePerCommit => "the_audit_trail_reflects_every_commit_that_returned",
    /// Fails every wait.
    WaitFails => "waiting_does_not_fail",
    /// Holds the only connection during a wait.
    WaitHoldsTheConnection => "waiting_holds_up_no_commit",
}

/// A store with one [`StoreDefect`]. Otherwise behaves like `inner`.
#[derive(Debug)]
pub struct BrokenStore<S> {
    inner: S,
    defect: StoreDefect,
    state: Mutex<DefectState>,
}

/// The state that defects need.
#[derive(Debug, Default)]
struct DefectState {
    views: HashMap<TenantId, TenantView>,
    found: HashMap<Locator, FoundKey>,
    tags: BTreeMap<Revision, CommitTag>,
    lasts: HashMap<TenantId, Commit>,
    latest: HashMap<TenantId, Timestamp>,
    /// The head before the last commit.
    behind: Option<Cursor>,
    unseen: BTreeSet<Revision>,
    records: BTreeMap<KeyId, KeyRecord>,
    counted: HashMap<TenantId, u64>,
    /// The digests that commits claimed without a record.
    claimed: HashMap<Digest, KeyId>,
    scanned: usize,
    waiting: usize,
}

impl DefectState {
    fn is_free(&self, (digest, key): &(Digest, KeyId)) -> bool {
        let holder = self.claimed.get(digest);
        holder.is_none_or(|holder| holder == key)
    }
}

impl<S: KeyStore> BrokenStore<S> {
    /// Wraps `inner` with a defect.
    pub fn new(inner: S, defect: StoreDefect) -> Self {
        let state = Mutex::default();
        Self {
            inner,
            defect,
            state,
        }
    }

    fn state(&self) -> MutexGuard<'_, DefectState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, defect: StoreDefect) -> bool {
        self.defect == defect
    }

    async fn head(&self) -> Result<Cursor, StoreError> {
        Ok(self.inner.scan(None, NonZeroUsize::MIN).await?.head)
    }

    async fn revision(&self, tenant: &TenantId) -> Result<Revision, StoreError> {
        Ok(self
            .inner
            .load(tenant, &LoadRequest::none())
            .await?
            .revision)
    }

    async fn stored(&self, id: KeyId) -> Result<Option<Row>, StoreError> {
        let found = self.inner.find(&Locator::Id(id)).await?;
        Ok(found.map(|found| found.change.row))
    }

    /// Returns the row's tenant, and the revision of the commit that wrote the row. Tombstones count as
    /// absent.
    async fn row_at(&self, row: &RowKey) -> Result<(Option<TenantId>, Revision), StoreError> {
        let (tenant, select) = match row {
            RowKey::Tenant(tenant) => (tenant, LoadRequest::none()),
            RowKey::Owner(tenant, owner) => (tenant, LoadRequest::owner(owner.clone())),
            RowKey::Key(id) => {
                let found = self.inner.find(&Locator::Id(*id)).await?;
                return Ok(match found.map(|found| found.change) {
                    Some(Change {
                        revision,
                        row: Row::Key(record),
                    }) => (Some(record.facts.tenant), revision),
                    _ => (None, Revision::ZERO),
                });
            }
        };
        let view = self.inner.load(tenant, &select).await?;
        let revision = view.revisions.get(row).copied().unwrap_or_default();
        Ok((Some(tenant.clone()), revision))
    }

    /// Returns whether a guard holds in a store with the defect.
    async fn stands(&self, guard: &Guard) -> Result<bool, StoreError> {
        let (tenant, at) = self.row_at(&guard.row).await?;
        let absent = at == Revision::ZERO;
        let tenant_at = match &tenant {
            Some(tenant) => self.revision(tenant).await?,
            None => Revision::ZERO,
        };
        Ok(match self.defect {
            StoreDefect::AbsentRowsNeverStand => !absent && at == guard.revision,
            StoreDefect::AcceptsGuardsAhead => at <= guard.revision,
            StoreDefect::RemovedKeysStand => absent || at == guard.revision,
            StoreDefect::GuardsWholeTenants => tenant_at == guard.revision,
            StoreDefect::AcceptsGuardsTheTenantPassed => guard.revision <= tenant_at,
            _ => at == guard.revision,
        })
    }

    /// Applies the defect to a commit before the commit is written.
    async fn spoil(&self, commit: &mut Commit) -> Result<(), CommitError> {
        let guards = &mut commit.guards;
        let Effects {
            puts,
            removes,
            owners,
            digests,
            audit,
            ..
        } = &mut commit.effects;
        match self.defect {
            StoreDefect::IgnoresExpected => commit.expected = self.revision(&commit.tenant).await?,
            StoreDefect::IgnoresEpochs => commit.epoch = None,
            StoreDefect::IgnoresEpochsOfNewTenants if commit.expected == Revision::ZERO => {
                commit.epoch = None;
            }
            StoreDefect::AcceptsExpectedAhead => {
                commit.expected = commit.expected.min(self.revision(&commit.tenant).await?);
            }
            StoreDefect::CheckThenWrite => {
                if self.revision(&commit.tenant).await? != commit.expected {
                    return Err(CommitError::Conflict);
                }
                pause().await;
                commit.expected = self.revision(&commit.tenant).await?;
            }
            StoreDefect::RemovesOnlyWhatIsThere => {
                let mut there = Vec::new();
                for key in removes.iter() {
                    if matches!(self.stored(*key).await?, Some(Row::Key(_))) {
                        there.push(*key);
                    }
                }
                *removes = there;
            }
            StoreDefect::DigestTakenByItself => {
                for record in puts.iter() {
                    let known = self.stored(record.id).await?.is_some();
                    if known && record.credential.imported().is_some() {
                        return Err(CommitError::DigestTaken);
                    }
                }
            }
            StoreDefect::ForgetsClaimedDigests => digests.clear(),
            StoreDefect::ClaimsInTwoSteps => {
                if !digests.iter().all(|claim| self.state().is_free(claim)) {
                    return Err(CommitError::DigestTaken);
                }
                pause().await;
                let mut state = self.state();
                digests.retain(|claim| state.is_free(claim));
                state.claimed.extend(digests.iter().copied());
            }
            StoreDefect::IgnoresGuards => guards.clear(),
            StoreDefect::ChecksOneGuard => guards.truncate(1),
            StoreDefect::AbsentRowsAlwaysStand => {
                guards.retain(|guard| guard.revision != Revision::ZERO);
            }
            StoreDefect::AbsentRowsNeverStand
            | StoreDefect::AcceptsGuardsAhead
            | StoreDefect::RemovedKeysStand
            | StoreDefect::GuardsWholeTenants
            | StoreDefect::AcceptsGuardsTheTenantPassed
            | StoreDefect::GuardsBeforeTheLock => {
                for guard in guards.drain(..) {
                    if !self.stands(&guard).await? {
                        return Err(CommitError::Conflict);
                    }
                }
                if self.is(StoreDefect::GuardsBeforeTheLock) {
                    pause().await;
                }
            }
            StoreDefect::CutsLongTexts => {
                for record in puts {
                    let cut = |text: &Description| {
                        Description::new(text.as_str().chars().take(255).collect::<String>()).ok()
                    };
                    record.description = record.description.as_ref().and_then(cut);
                }
            }
            StoreDefect::KeepsWholeSeconds => {
                for record in puts {
                    let seconds = record.created.at.as_micros() / 1_000_000;
                    record.created.at =
                        Timestamp::from_unix_seconds(seconds).unwrap_or(record.created.at);
                }
            }
            StoreDefect::ForgetsWhenOwnersLeft => {
                for row in owners {
                    row.removed_at = None;
                }
            }
            StoreDefect::MergesRecords => {
                for record in puts {
                    if let Some(Row::Key(old)) = self.stored(record.id).await? {
                        record.description = record.description.take().or(old.facts.description);
                    }
                }
            }
            StoreDefect::AuditKeepsOnePerCommit => {
                if let Some(last) = audit.pop() {
                    *audit = vec![last];
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Handles a refusal of the inner store as a store with the defect would.
    async fn after_refusal(
        &self,
        mut commit: Commit,
        refusal: CommitError,
    ) -> Result<Revision, CommitError> {
        match (self.defect, &refusal) {
            (StoreDefect::ConflictLeavesAudit, CommitError::Conflict) => {
                commit.expected = self.revision(&commit.tenant).await?;
                commit.effects = Effects {
                    audit: commit.effects.audit,
                    ..Effects::default()
                };
                self.inner.commit(commit).await?;
            }
            (StoreDefect::ConflictLeavesOwners, CommitError::Conflict) => {
                commit.expected = self.revision(&commit.tenant).await?;
                commit.effects = Effects {
                    owners: commit.effects.owners,
                    ..Effects::default()
                };
                self.inner.commit(commit).await?;
            }
            (StoreDefect::RefusalLeavesTheRest, CommitError::IdTaken(taken)) => {
                commit.effects.puts.retain(|record| record.id != *taken);
                self.inner.commit(commit).await?;
            }
            (
                StoreDefect::IdsPerTenant | StoreDefect::ForgetsRemovedIds,
                CommitError::IdTaken(taken),
            ) => {
                let removed = matches!(self.stored(*taken).await?, Some(Row::Removed { .. }));
                if removed == self.is(StoreDefect::ForgetsRemovedIds) {
                    commit.effects.puts.retain(|record| record.id != *taken);
                    return self.inner.commit(commit).await;
                }
            }
            (
                StoreDefect::DigestsPerTenant
                | StoreDefect::RemovalFreesDigest
                | StoreDefect::DigestsNotComparedInBatch,
                CommitError::DigestTaken,
            ) => {
                let mut kept = Vec::new();
                let mut passes = false;
                for record in std::mem::take(&mut commit.effects.puts) {
                    let Some(digest) = record.credential.imported() else {
                        kept.push(record);
                        continue;
                    };
                    let other = self.inner.find(&Locator::Imported(*digest)).await?;
                    let other = other.map(|found| found.change.row);
                    passes |= match (&other, self.defect) {
                        (Some(Row::Key(other)), StoreDefect::DigestsPerTenant) => {
                            other.tenant != commit.tenant
                        }
                        (Some(Row::Removed { .. }), StoreDefect::RemovalFreesDigest)
                        | (None, StoreDefect::DigestsNotComparedInBatch) => true,
                        _ => false,
                    };
                }
                commit.effects.puts = kept;
                if passes {
                    return self.inner.commit(commit).await;
                }
            }
            (StoreDefect::RemovalFreesClaimedDigests, CommitError::DigestTaken) => {
                let mut freed = HashSet::new();
                for (digest, _) in commit.imported() {
                    let holder = self.state().claimed.get(&digest).copied();
                    if let Some(holder) = holder
                        && matches!(self.stored(holder).await?, Some(Row::Removed { .. }))
                    {
                        freed.insert(digest);
                    }
                }
                let Effects { puts, digests, .. } = &mut commit.effects;
                digests.retain(|(digest, _)| !freed.contains(digest));
                let kept = |digest: &Digest| !freed.contains(digest);
                puts.retain(|record| record.credential.imported().is_none_or(kept));
                if !freed.is_empty() {
                    return self.inner.commit(commit).await;
                }
            }
            _ => {}
        }
        Err(refusal)
    }

    async fn commit_in_two_steps(&self, commit: Commit) -> Result<Revision, CommitError> {
        let mut first = commit.clone();
        first.effects = Effects {
            puts: commit.effects.puts,
            removes: commit.effects.removes,
            ..Effects::default()
        };
        let mut second = Commit {
            effects: Effects {
                puts: Vec::new(),
                removes: Vec::new(),
                ..commit.effects
            },
            ..first.clone()
        };
        second.expected = self.inner.commit(first).await?;
        pause().await;
        self.inner.commit(second).await
    }

    fn remember(&self, commit: &Commit, revision: Revision) {
        let mut state = self.state();
        state.tags.insert(revision, commit.tag);
        let latest = state.latest.entry(commit.tenant.clone());
        let latest = latest.or_insert(commit.decided_at);
        *latest = commit.decided_at.max(*latest);
        state.lasts.insert(commit.tenant.clone(), commit.clone());
        state.claimed.extend(commit.effects.digests.iter().copied());
        for record in &commit.effects.puts {
            state.records.insert(record.id, record.clone());
        }
    }

    /// Returns the cursor for the inner store. Some defects change `after`, so that the inner store accepts
    /// it.
    fn lenient(&self, mut after: Cursor, head: Cursor) -> Cursor {
        match self.defect {
            StoreDefect::AcceptsCursorsAhead if after.revision > head.revision => return head,
            StoreDefect::AcceptsOtherEpochs => after.epoch = head.epoch,
            StoreDefect::AcceptsOtherTags | StoreDefect::CursorsWithoutTags => {
                after.tag = self
                    .state()
                    .tags
                    .get(&after.revision)
                    .copied()
                    .unwrap_or_default();
            }
            _ => {}
        }
        after
    }

    fn spoil_page(&self, mut page: Changes, after: Cursor, limit: NonZeroUsize) -> Changes {
        let state = self.state();
        match self.defect {
            StoreDefect::SequenceBeforeCommit => {
                page.changes
                    .retain(|change| !state.unseen.contains(&change.revision));
            }
            StoreDefect::FeedNewestFirst => page.changes.reverse(),
            StoreDefect::FeedWithoutOwners => {
                page.changes
                    .retain(|change| !matches!(change.row, Row::Owner(_)));
            }
            StoreDefect::FeedSplitsRevisions if page.changes.len() > limit.get() => {
                page.changes.truncate(limit.get());
                if let Some(last) = page.changes.last() {
                    page.upto.revision = last.revision;
                    page.upto.tag = state.tags.get(&last.revision).copied().unwrap_or_default();
                }
            }
            StoreDefect::FeedClaimsTheHead if !page.changes.is_empty() => page.upto = page.head,
            StoreDefect::FeedLags => lag(&mut page, state.behind),
            StoreDefect::FeedStaysBehind if page.changes.is_empty() => page.upto = after,
            StoreDefect::FeedWithoutTombstones => {
                page.changes
                    .retain(|change| !matches!(change.row, Row::Removed { .. }));
            }
            StoreDefect::CursorsWithoutTags => {
                page.upto.tag = CommitTag(0);
                page.head.tag = CommitTag(0);
            }
            _ => {}
        }
        page
    }
}

/// Removes the last commit from a page, as a lagging copy of the store would.
fn lag(page: &mut Changes, behind: Option<Cursor>) {
    let Some(behind) = behind else { return };
    page.changes
        .retain(|change| change.revision <= behind.revision);
    page.head = behind;
    if page.upto.revision > behind.revision {
        page.upto = behind;
    }
}

/// Yields once, as I/O would.
async fn pause() {
    let mut paused = false;
    poll_fn(|cx| {
        if paused {
            return Poll::Ready(());
        }
        paused = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Counts a pending wait, until the wait ends or is dropped.
struct WaitCounter<'a>(&'a Mutex<DefectState>);

impl<'a> WaitCounter<'a> {
    fn new(state: &'a Mutex<DefectState>) -> Self {
        state.lock().unwrap_or_else(PoisonError::into_inner).waiting += 1;
        Self(state)
    }
}

impl Drop for WaitCounter<'_> {
    fn drop(&mut self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiting -= 1;
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: KeyStore> KeyStore for BrokenStore<S> {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        let mut view = self.inner.load(tenant, select).await?;
        match self.defect {
            StoreDefect::UnknownTenantHasRevision if view.revision == Revision::ZERO => {
                view.revision = self.head().await?.revision;
            }
            StoreDefect::LoadsWithoutEpoch => view.epoch = Epoch::default(),
            StoreDefect::LoadsNoEpochOfUnknownTenants if view.revision == Revision::ZERO => {
                view.epoch = Epoch::default();
            }
            StoreDefect::LoadsFromCache => {
                let mut state = self.state();
                view = state.views.entry(tenant.clone()).or_insert(view).clone();
            }
            StoreDefect::LoadsOnlyLiveKeysById => {
                view.records
                    .retain(|r| !matches!(r.state, KeyState::Revoked { .. }));
            }
            StoreDefect::LoadsNoDisabledKeys => {
                view.records
                    .retain(|r| !matches!(r.state, KeyState::Disabled(_)));
            }
            StoreDefect::LoadsNoRevokedLegacyKey => {
                let gone = |r: &KeyRecord| matches!(r.state, KeyState::Revoked { .. });
                view.records.retain(|r| !r.legacy || !gone(r));
            }
            StoreDefect::LoadsNoOwnersAskedFor | StoreDefect::LoadsNoOwnersOfKeys => {
                let asked = |owner: &PrincipalId| select.owners.contains(owner);
                let of_keys = |owner: &PrincipalId| {
                    let owner = Owner::Principal(owner.clone());
                    view.records.iter().any(|record| record.owner == owner)
                };
                let first = self.is(StoreDefect::LoadsNoOwnersAskedFor);
                let keeps = |owner: &PrincipalId| if first { of_keys(owner) } else { asked(owner) };
                view.owners.retain(|row| keeps(&row.owner));
            }
            StoreDefect::LoadsNewestOfCommands => view.applied.reverse(),
            StoreDefect::LoadsOneEntryOfCommands => {
                let mut known = BTreeSet::new();
                view.applied
                    .retain(|entry| known.insert(entry.command.clone()));
            }
            StoreDefect::LoadsAcrossTenants => {
                for id in &select.keys {
                    if let Some(Row::Key(record)) = self.stored(*id).await?
                        && view.record(*id).is_none()
                    {
                        view.records.push(*record);
                    }
                }
            }
            StoreDefect::LoadsTenantRowWithKeysOnly if view.records.is_empty() => {
                view.tenant = None
            }
            StoreDefect::LoadsRowsAtTenantRevision => {
                let at = view.revision;
                view.revisions.values_mut().for_each(|row| *row = at);
            }
            StoreDefect::LoadsOwnersWithoutRevision => {
                let owners = |row: &RowKey| matches!(row, RowKey::Owner(..));
                view.revisions.retain(|row, _| !owners(row));
            }
            StoreDefect::AuditHeadOfFirstEntry => {
                if let Some(commit) = self.state().lasts.get(tenant)
                    && let Some(entry) = commit.effects.audit.first()
                {
                    view.audit_head = entry.head();
                }
            }
            StoreDefect::DecidedAtStaysInRepairs => {
                view.decided_at = self.state().latest.get(tenant).copied();
            }
            StoreDefect::DecidedAtOfLastCommit => {
                view.decided_at = self
                    .state()
                    .lasts
                    .get(tenant)
                    .map(|commit| commit.decided_at);
            }
            _ => {}
        }
        Ok(view)
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        let Some(mut found) = self.inner.find(locator).await? else {
            return Ok(None);
        };
        let removed = matches!(found.change.row, Row::Removed { .. });
        match self.defect {
            StoreDefect::FindsAtHeadRevision => found.change.revision = found.head.revision,
            StoreDefect::FindsNoDigests if matches!(locator, Locator::Imported(_)) => {
                return Ok(None);
            }
            StoreDefect::FindsFromCache => {
                let mut state = self.state();
                found = state.found.entry(*locator).or_insert(found).clone();
            }
            StoreDefect::FindsNoTombstones if removed => return Ok(None),
            StoreDefect::FindsHeadWithoutTag => found.head.tag = CommitTag(0),
            StoreDefect::FindsHeadAhead => found.head.revision.0 += 1,
            _ => {}
        }
        Ok(Some(found))
    }

    async fn commit(&self, mut commit: Commit) -> Result<Revision, CommitError> {
        if self.is(StoreDefect::WaitHoldsTheConnection) && self.state().waiting > 0 {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "committing").into());
        }
        self.spoil(&mut commit).await?;
        let head = self.head().await?;
        if self.is(StoreDefect::CommitsInTwoSteps) {
            return self.commit_in_two_steps(commit).await;
        }
        let revision = match self.inner.commit(commit.clone()).await {
            Ok(revision) => revision,
            Err(refusal) => return self.after_refusal(commit, refusal).await,
        };
        self.remember(&commit, revision);
        self.state().behind = Some(head);
        match self.defect {
            StoreDefect::SequenceBeforeCommit => {
                // Hides the commit from readers until this future is polled again. Its revision is already
                // drawn.
                self.state().unseen.insert(revision);
                pause().await;
                self.state().unseen.remove(&revision);
            }
            StoreDefect::RevisionsPerTenant => {
                let mut state = self.state();
                let counted = state.counted.entry(commit.tenant).or_default();
                *counted += 1;
                return Ok(Revision(*counted));
            }
            _ => {}
        }
        Ok(revision)
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let asked = self.lenient(after, self.head().await?);
        let page = self.inner.changes(asked, limit).await?;
        Ok(self.spoil_page(page, asked, limit))
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        let first = after.is_none();
        let mut page = self.inner.scan(after, limit).await?;
        match self.defect {
            StoreDefect::ScansKeysFirst => {
                page.rows
                    .sort_by_key(|change| std::cmp::Reverse(rank(&change.row)));
            }
            StoreDefect::ScanSkipsRows if !first && !page.rows.is_empty() => {
                page.rows.remove(0);
            }
            StoreDefect::ScansByOffset => {
                let mut all = self.inner.scan(None, NonZeroUsize::MAX).await?.rows;
                all.retain(|change| !matches!(change.row, Row::Removed { .. }));
                let mut state = self.state();
                let offset = if first { 0 } else { state.scanned };
                state.scanned = offset + limit.get();
                let more = all.len() > state.scanned;
                page.rows = all.into_iter().skip(offset).take(limit.get()).collect();
                let last = page.rows.last().map(|change| change.row.key());
                page.next = last.filter(|_| more);
            }
            StoreDefect::ScanReadsHeadLast => {
                pause().await;
                page.head = self.head().await?;
            }
            _ => {}
        }
        Ok(page)
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        let mut pages = Vec::new();
        let mut keep = |page| {
            pages.push(page);
            Ok(())
        };
        match self.defect {
            StoreDefect::ScanOfAllReadsHeadLast => {
                scan_by_pages(self, limit, &mut keep).await?;
                pause().await;
                let head = self.head().await?;
                pages.iter_mut().for_each(|page| page.head = head);
            }
            StoreDefect::ScanOfAllLeavesOutOwners => {
                scan_by_pages(self, limit, &mut keep).await?;
                let is_key = |change: &Change| matches!(change.row.key(), RowKey::Key(_));
                pages.iter_mut().for_each(|page| page.rows.retain(is_key));
            }
            StoreDefect::ScanOfAllLosesItsEnd => {
                scan_by_pages(self, limit, &mut keep).await?;
                let more = pages.len() > 1;
                pages.pop_if(|_| more);
            }
            StoreDefect::ScanOfNothingHasNoPage => {
                scan_by_pages(self, limit, &mut keep).await?;
                pages.retain(|page| !page.rows.is_empty());
            }
            StoreDefect::ScanOfAllIgnoresTheError => {
                scan_by_pages(self, limit, &mut keep).await?;
                let taken: Vec<_> = pages.into_iter().map(take).collect();
                return taken.into_iter().collect();
            }
            StoreDefect::ScanOfAllHidesTheError => {
                scan_by_pages(self, limit, &mut keep).await?;
                let _ended = pages.into_iter().try_for_each(take);
                return Ok(());
            }
            _ => return scan_by_pages(self, limit, take).await,
        }
        pages.into_iter().try_for_each(take)
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let everything = || query.clone().with(|query| query.limit = NonZeroUsize::MAX);
        match self.defect {
            StoreDefect::ListComparesPathsByText if query.below => {
                let all = query.clone().with(|query| query.tenant = None);
                let mut page = self.inner.list(&all).await?;
                let above = query.tenant.as_ref().map_or("", TenantId::as_str);
                page.keys
                    .retain(|record| record.tenant.as_str().starts_with(above));
                return Ok(page);
            }
            StoreDefect::ListIncludesTheEnd => {
                let later = query
                    .clone()
                    .with(|query| query.expires_before = query.expires_before.map(just_after));
                return self.inner.list(&later).await;
            }
            StoreDefect::ListPutsEndlessKeysFirst if query.sort == KeySort::Expiry => {
                let mut page = self.inner.list(&everything()).await?;
                page.keys.sort_by_key(|record| record.expires_at);
                return Ok(page);
            }
            StoreDefect::ListOrdersNamesByLowerCase if query.sort == KeySort::Name => {
                let mut page = self.inner.list(&everything()).await?;
                page.keys
                    .sort_by_key(|record| record.name.as_str().to_lowercase());
                return Ok(page);
            }
            StoreDefect::ListNeedsThePreviousKey => {
                if let Some(place) = &query.after
                    && !matches!(self.stored(place.id).await?, Some(Row::Key(_)))
                {
                    return Ok(KeyPage::default());
                }
            }
            _ => {}
        }
        let mut page = self.inner.list(query).await?;
        match self.defect {
            StoreDefect::ListMindsCase => {
                let part = query.name.as_deref().unwrap_or_default();
                page.keys
                    .retain(|record| record.name.as_str().contains(part));
            }
            StoreDefect::ListSkipsAKey if query.after.is_some() && !page.keys.is_empty() => {
                page.keys.remove(0);
            }
            StoreDefect::ListRepeatsAKey => {
                let again = match &query.after {
                    Some(place) => self.stored(place.id).await?,
                    None => None,
                };
                if let Some(Row::Key(record)) = again {
                    page.keys.insert(0, *record);
                    page.keys.truncate(query.limit.get().max(2));
                }
            }
            StoreDefect::ListHasNoLastPage => {
                let last = page.keys.last().map(keyward::store::KeyPosition::of);
                page.next = page.next.or(last);
            }
            StoreDefect::ListsRemovedKeys => {
                let state = self.state();
                let listed: BTreeSet<_> = page.keys.iter().map(|record| record.id).collect();
                let gone = state.records.values().filter(|r| !listed.contains(&r.id));
                page.keys.extend(gone.filter(|r| query.matches(r)).cloned());
            }
            _ => {}
        }
        Ok(page)
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let mut query = query.clone();
        match self.defect {
            StoreDefect::AuditIncludesTheEnd => query.before = query.before.map(just_after),
            StoreDefect::AuditIgnoresActors => query.actor = None,
            StoreDefect::AuditSkipsRestOfCommit => {
                if let Some(place) = &mut query.after {
                    place.sequence = u64::MAX;
                }
            }
            _ => {}
        }
        let mut page = self.inner.audit(&query).await?;
        if self.is(StoreDefect::AuditNewestFirst) {
            page.rows.reverse();
        }
        Ok(page)
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        if self.is(StoreDefect::WaitFails) {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "waiting"));
        }
        let _waiting = WaitCounter::new(&self.state);
        self.inner.wait_past(after).await
    }

    fn changes_now(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Option<Result<Changes, ChangesError>> {
        let answer = self.inner.changes_now(after, limit)?;
        Some(answer.map(|mut page| {
            if self.is(StoreDefect::ChangesNowLags) {
                lag(&mut page, self.state().behind);
            }
            page
        }))
    }
}

fn rank(row: &Row) -> u8 {
    match row {
        Row::Tenant(_) | Row::Corrupt(RowKey::Tenant(_)) => 0,
        Row::Owner(_) | Row::Corrupt(RowKey::Owner(..)) => 1,
        Row::Key(_) | Row::Removed { .. } | Row::Corrupt(RowKey::Key(_)) => 2,
    }
}

fn just_after(instant: Timestamp) -> Timestamp {
    Timestamp::from_micros(instant.as_micros() + 1).unwrap_or(instant)
}
