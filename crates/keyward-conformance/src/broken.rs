//! Stores that each break one clause of the [`KeyStore`] contract, to prove that the contract's checks find
//! violations.

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

            /// Returns the name of a clause whose check must find the defect. Other checks may find the
            /// defect too.
            #[must_use]
            pub const fn caught_by(self) -> &'static str {
                match self {
                    $(Self::$name => $clause,)*
                }
            }
        }
    };
}

mod documents;
mod nodes;
mod usage;

pub use self::documents::{BrokenDocuments, DocumentDefect};
pub use self::nodes::{BrokenRegistry, RegistryDefect};
pub use self::usage::{BrokenUsage, UsageDefect};

defects! {
    /// One deliberate mistake of a store. Most of these mistakes were found in real stores.
    enum StoreDefect;

    /// Returns the revision of the whole store, not zero, for a tenant that never had a commit.
    UnknownTenantHasRevision => "an_unknown_tenant_is_empty_at_revision_zero",
    /// Returns tenant views with an empty epoch instead of the store's epoch.
    LoadsWithoutEpoch => "load_returns_the_epoch",
    /// Stores the epoch with each tenant. The view of a tenant without commits then has an empty epoch.
    LoadsNoEpochOfUnknownTenants => "load_returns_the_epoch",
    /// Caches the first view of a tenant, and returns that view even after the tenant has changed.
    LoadsFromCache => "load_reflects_every_commit_that_returned",
    /// Leaves revoked keys out of a view, even if the request names them by id.
    LoadsOnlyLiveKeysById => "load_returns_keys_by_id",
    /// Leaves disabled keys out of a view, although a disabled key counts as live.
    LoadsNoDisabledKeys => "load_returns_keys_live_at_an_instant",
    /// Loads the live keys of only the first of the requested classes.
    LoadsOneClass => "load_returns_keys_live_at_an_instant",
    /// Leaves the legacy key out of a view if that key is revoked.
    LoadsNoRevokedLegacyKey => "load_returns_the_legacy_key",
    /// Leaves the row of an owner out of a view, although the request names the owner.
    LoadsNoOwnersAskedFor => "load_returns_rows_of_owners",
    /// Loads keys without the rows of their owners.
    LoadsNoOwnersOfKeys => "load_returns_rows_of_the_owners_of_loaded_keys",
    /// Returns the audit entries of a command newest first, instead of oldest first.
    LoadsNewestOfCommands => "load_returns_what_commands_did",
    /// Loads only the first audit entry of each requested command.
    LoadsOneEntryOfCommands => "load_returns_what_commands_did",
    /// Loads a key that is requested by id even if the key belongs to another tenant.
    LoadsAcrossTenants => "load_stays_within_the_tenant",
    /// Leaves the tenant's own row out of a view that contains no keys.
    LoadsTenantRowWithKeysOnly => "load_always_returns_the_tenants_row",
    /// Returns the head after the first audit entry of the last commit, although that commit may have more
    /// entries.
    AuditHeadOfFirstEntry => "the_audit_head_is_that_of_the_newest_entry",
    /// Returns the decision time of the last commit as `decided_at`, even if an earlier commit was decided
    /// later.
    DecidedAtOfLastCommit => "decided_at_never_goes_back",
    /// Keeps the latest `decided_at`, even after a commit that repairs the tenant's time and must lower it.
    DecidedAtStaysInRepairs => "decided_at_goes_back_in_a_repair",
    /// Returns the tenant's revision for every loaded row, instead of the revision that wrote the row.
    LoadsRowsAtTenantRevision => "load_returns_the_revision_of_each_row",
    /// Loads the rows of owners without the revisions that wrote them.
    LoadsOwnersWithoutRevision => "load_returns_the_revision_of_each_row",
    /// Returns a found key with the revision of the store's head, instead of the revision that wrote the key.
    FindsAtHeadRevision => "find_returns_a_key_by_its_id",
    /// Keeps no index of imported digests, so `find` returns `None` for every digest.
    FindsNoDigests => "find_returns_a_key_by_its_imported_digest",
    /// Caches the first result for a key, and returns it even after the key has changed.
    FindsFromCache => "find_reflects_every_commit_that_returned",
    /// Returns `None` for a removed key instead of its tombstone.
    FindsNoTombstones => "find_returns_the_tombstone_of_a_removed_key",
    /// Returns a found key with a head whose tag is zero, so the feed refuses this head as a cursor.
    FindsHeadWithoutTag => "find_returns_a_head_that_can_be_followed",
    /// Returns a found key with a head that is one revision ahead of the store's head.
    FindsHeadAhead => "find_returns_a_head_that_can_be_followed",
    /// Returns a found key with the position of the commit that wrote the key, not with the store's head.
    FindsHeadOfTheRow => "find_returns_a_head_that_can_be_followed",
    /// Applies a commit even if the tenant is not at the commit's expected revision.
    IgnoresExpected => "a_commit_on_another_revision_is_a_conflict",
    /// Refuses a commit whose expected revision is too low, but accepts one that is too high.
    AcceptsExpectedAhead => "a_commit_on_another_revision_is_a_conflict",
    /// Applies a commit even if it names another epoch than the store's.
    IgnoresEpochs => "a_commit_on_another_history_is_a_conflict",
    /// Applies the first commit of a tenant even if it names another epoch than the store's.
    IgnoresEpochsOfNewTenants => "a_commit_on_another_history_is_a_conflict",
    /// Writes audit entries outside the transaction, so that they remain although the commit is refused as a
    /// conflict.
    ConflictLeavesAudit => "a_conflict_writes_nothing",
    /// Writes the owners' rows before it detects a conflict, so that these rows remain although the commit is
    /// refused.
    ConflictLeavesOwners => "a_conflict_writes_nothing",
    /// Refuses a commit with a taken id, but writes all of its other rows.
    RefusalLeavesTheRest => "a_refused_batch_writes_nothing",
    /// Reports success for a key whose id another tenant uses, but does not write the key.
    IdsPerTenant => "ids_are_unique_across_tenants",
    /// Reports success for a key whose id belonged to a removed key, but does not write the key.
    ForgetsRemovedIds => "a_removed_key_never_comes_back",
    /// Ignores the removal of a key that was never stored, so that the key's id stays free.
    RemovesOnlyWhatIsThere => "removing_a_key_never_stored_takes_its_id",
    /// Reports success for a key whose imported digest another tenant uses, but does not write the key.
    DigestsPerTenant => "imported_digests_are_unique_across_tenants",
    /// Refuses every change of an imported key, because it finds the key's own digest and considers it taken.
    DigestTakenByItself => "imported_digests_are_unique_across_tenants",
    /// Compares an imported digest with stored digests, but not with the other digests of the same commit.
    DigestsNotComparedInBatch => "imported_digests_are_unique_within_a_batch",
    /// Reports success for a key that imports the digest of a removed key, although that digest stays taken.
    RemovalFreesDigest => "the_digest_of_a_removed_key_stays_taken",
    /// Drops the digests that a commit claims without a record, so that another key can take them.
    ForgetsClaimedDigests => "a_claimed_digest_stays_taken",
    /// Frees the digests that a key claimed once the key is removed, although they stay taken.
    RemovalFreesClaimedDigests => "a_claimed_digest_stays_taken",
    /// Checks a claimed digest and stores the claim in two steps, so that two concurrent claims can both
    /// succeed.
    ClaimsInTwoSteps => "concurrent_claims_of_one_digest_have_one_winner",
    /// Refuses every guard on a row that does not exist. The store must accept a guard at revision zero for
    /// such a row.
    AbsentRowsNeverStand => "a_commit_whose_guards_hold_is_applied",
    /// Applies a commit even if one of its guarded rows has changed.
    IgnoresGuards => "a_commit_whose_guarded_row_moved_is_a_conflict",
    /// Checks only the first guard of a commit.
    ChecksOneGuard => "a_commit_whose_guarded_row_moved_is_a_conflict",
    /// Refuses a guard that is behind its row, but accepts a guard that is ahead of its row.
    AcceptsGuardsAhead => "a_commit_whose_guarded_row_moved_is_a_conflict",
    /// Accepts a guard as soon as the tenant of the guarded row has reached the guard's revision. The row
    /// itself may have changed.
    AcceptsGuardsTheTenantPassed => "a_commit_whose_guarded_row_moved_is_a_conflict",
    /// Accepts a guard at revision zero even if the guarded row exists.
    AbsentRowsAlwaysStand => "a_commit_whose_guarded_row_appeared_is_a_conflict",
    /// Accepts any guard on a row that does not exist now, so that the removal of a guarded key goes
    /// undetected.
    RemovedKeysStand => "a_commit_whose_guarded_key_was_removed_is_a_conflict",
    /// Compares a guard with the tenant's revision, so that every commit of the tenant breaks the guard.
    GuardsWholeTenants => "a_guard_holds_while_its_tenant_changes",
    /// Checks guards before it takes the lock that orders commits, so that a guarded row can change in
    /// between.
    GuardsBeforeTheLock => "a_guard_holds_until_its_commit_is_applied",
    /// Counts revisions for each tenant separately, so that commits of different tenants have no common
    /// order.
    RevisionsPerTenant => "revisions_increase_in_commit_order",
    /// Draws the revision of a commit before readers can see the commit. A lower revision can then appear
    /// after a higher one.
    SequenceBeforeCommit => "nothing_appears_behind_a_revision_seen",
    /// Compares the expected revision and writes the commit in two steps, so that two concurrent commits can
    /// both succeed.
    CheckThenWrite => "concurrent_commits_have_one_winner",
    /// Writes keys first, and the other rows and audit entries in a second step. A dropped commit can be half
    /// written.
    CommitsInTwoSteps => "a_dropped_commit_is_all_or_nothing",
    /// Truncates long texts.
    CutsLongTexts => "records_come_back_as_they_were_written",
    /// Stores instants in whole seconds.
    KeepsWholeSeconds => "records_come_back_as_they_were_written",
    /// Drops `removed_at` of an owner's row, the instant at which the owner was removed.
    ForgetsWhenOwnersLeft => "other_rows_come_back_as_they_were_written",
    /// Keeps the old description of a key if the new record has none, although a put replaces the whole
    /// record.
    MergesRecords => "a_put_replaces_the_whole_record",
    /// Returns the changes of a page newest first.
    FeedNewestFirst => "changes_come_oldest_first",
    /// Leaves the rows of owners out of the change feed.
    FeedWithoutOwners => "changes_end_at_the_rows_of_the_store",
    /// Ends a page of the feed after `limit` changes, even in the middle of a revision.
    FeedSplitsRevisions => "a_revision_is_never_split_across_pages",
    /// Sets `upto` of each page to the head, although changes beyond `limit` are still missing.
    FeedClaimsTheHead => "nothing_up_to_upto_is_missing",
    /// Returns a feed that lacks the last commit.
    FeedLags => "an_empty_page_means_caught_up",
    /// Returns the requested cursor as `upto` of an empty page, although commits without rows have moved the
    /// head.
    FeedStaysBehind => "an_empty_page_means_caught_up",
    /// Leaves tombstones out of the change feed, so that followers keep removed keys.
    FeedWithoutTombstones => "tombstones_are_in_the_feed",
    /// Returns an empty page for a cursor ahead of the head, instead of refusing the cursor.
    AcceptsCursorsAhead => "a_cursor_ahead_of_the_head_has_diverged",
    /// Refuses a cursor ahead of the head as compacted, so that followers silently start over.
    CompactsCursorsAhead => "a_cursor_ahead_of_the_head_has_diverged",
    /// Accepts a cursor of another epoch.
    AcceptsOtherEpochs => "a_cursor_of_another_epoch_is_compacted",
    /// Refuses a cursor of another epoch as diverged, so that followers of a recovered store never start over.
    DivergesOnOtherEpochs => "a_cursor_of_another_epoch_is_compacted",
    /// Accepts a cursor whose tag differs from the tag of its revision.
    AcceptsOtherTags => "a_cursor_with_another_tag_has_diverged",
    /// Refuses a cursor with another tag as compacted, so that followers silently start over.
    CompactsOtherTags => "a_cursor_with_another_tag_has_diverged",
    /// Returns cursors with the tag zero, and accepts cursors with any tag.
    CursorsWithoutTags => "cursors_carry_the_tag_of_their_commit",
    /// Answers `changes_now` from a copy of the store that lacks the last commit.
    ChangesNowLags => "changes_now_returns_what_changes_returns",
    /// Refuses a cursor ahead of the head as compacted in `changes_now`, but as diverged in `changes`.
    ChangesNowCompacts => "changes_now_returns_what_changes_returns",
    /// Scans keys first, although owners and tenants precede keys in the order of [`RowKey`].
    ScansKeysFirst => "a_scan_returns_every_row_in_order",
    /// Leaves out the first row of every page of a scan, except on the first page.
    ScanSkipsRows => "a_scan_returns_every_row_in_order",
    /// Continues a scan at the number of rows already returned, not after the last row. Rows written or
    /// removed in between shift that position.
    ScansByOffset => "a_scan_and_its_changes_lead_to_the_store",
    /// Reads the head of a page after its rows, so that a commit in between is in neither the page nor the
    /// later changes.
    ScanReadsHeadLast => "a_scan_reads_its_head_before_its_rows",
    /// Makes `scan_all` return keys only, without the rows of owners and tenants.
    ScanOfAllLeavesOutOwners => "a_scan_of_all_returns_every_row_once",
    /// Ends `scan_all` before the last page.
    ScanOfAllLosesItsEnd => "a_scan_of_all_returns_every_row_once",
    /// Makes `scan_all` return no page at all if the store is empty, although a page with the head is
    /// required.
    ScanOfNothingHasNoPage => "a_scan_of_all_returns_every_row_once",
    /// Reads the head that `scan_all` returns after all rows, so that a commit in between goes unnoticed.
    ScanOfAllReadsHeadLast => "a_scan_of_all_reads_its_head_before_its_rows",
    /// Makes `scan_all` continue with the next page after its callback has failed.
    ScanOfAllIgnoresTheError => "a_scan_of_all_returns_the_consumers_error",
    /// Stops `scan_all` if its callback fails, but returns `Ok` instead of the error.
    ScanOfAllHidesTheError => "a_scan_of_all_returns_the_consumers_error",
    /// Compares the requested part of a name case-sensitively, although a list ignores case.
    ListMindsCase => "a_list_holds_exactly_what_matches",
    /// Compares tenant paths as text, so that `acme-two` counts as a descendant of `acme`.
    ListComparesPathsByText => "a_list_holds_exactly_what_matches",
    /// Lists a key that expires exactly at `expires_before`, although the key must expire earlier to match.
    ListIncludesTheEnd => "a_list_holds_exactly_what_matches",
    /// Sorts keys without an expiry first, as some databases sort nulls, although keys without an expiry must
    /// come last.
    ListPutsEndlessKeysFirst => "a_list_comes_in_the_querys_order",
    /// Sorts names case-insensitively, although the order by name is case-sensitive.
    ListOrdersNamesByLowerCase => "a_list_comes_in_the_querys_order",
    /// Leaves out the first key of every page of a list, except on the first page.
    ListSkipsAKey => "pages_of_a_list_neither_repeat_nor_skip",
    /// Repeats the last key of the previous page as the first key of a page.
    ListRepeatsAKey => "pages_of_a_list_neither_repeat_nor_skip",
    /// Returns `next` even on the last page of a list.
    ListHasNoLastPage => "pages_of_a_list_neither_repeat_nor_skip",
    /// Returns an empty page if the key at the requested position was removed.
    ListNeedsThePreviousKey => "a_list_goes_on_after_a_key_that_is_gone",
    /// Lists removed keys.
    ListsRemovedKeys => "a_list_reflects_every_commit_that_returned",
    /// Leaves out tenants without rows.
    TenantsNeedRows => "tenants_have_committed",
    /// Claims that a new store was restored from itself.
    NewStoreIsRestored => "a_new_store_is_not_restored",
    /// Returns the audit trail newest first.
    AuditNewestFirst => "the_audit_trail_comes_oldest_first",
    /// Includes audit entries at exactly the end of the requested time span, although the end is exclusive.
    AuditIncludesTheEnd => "the_audit_trail_holds_exactly_what_matches",
    /// Ignores the actor in an audit query, and returns the entries of all actors.
    AuditIgnoresActors => "the_audit_trail_holds_exactly_what_matches",
    /// Continues an audit query with the next commit, although the previous page ended in the middle of a
    /// commit.
    AuditSkipsRestOfCommit => "pages_of_the_audit_trail_neither_repeat_nor_skip",
    /// Keeps only the last audit entry of each commit, as if the entries shared a primary key.
    AuditKeepsOnePerCommit => "the_audit_trail_reflects_every_commit_that_returned",
    /// Leaves old audit entries where they are.
    PrunesNothing => "a_commit_prunes_the_oldest_entries_of_its_own_trail",
    /// Also removes the first entry that should stay.
    PrunesOneMore => "a_commit_prunes_the_oldest_entries_of_its_own_trail",
    /// Fails every call of `wait_past`.
    WaitFails => "waiting_does_not_fail",
    /// Holds the store's only connection while a call of `wait_past` is pending, so that commits fail.
    WaitHoldsTheConnection => "waiting_holds_up_no_commit",
}

/// A store with one [`StoreDefect`]. Apart from the defect, it behaves like `inner`.
#[derive(Debug)]
pub struct BrokenStore<S> {
    inner: S,
    defect: StoreDefect,
    state: Mutex<DefectState>,
}

/// The data that a [`BrokenStore`] remembers for its defect.
#[derive(Debug, Default)]
struct DefectState {
    views: HashMap<TenantId, TenantView>,
    found: HashMap<Locator, FoundKey>,
    tags: BTreeMap<Revision, CommitTag>,
    lasts: HashMap<TenantId, Commit>,
    latest: HashMap<TenantId, Timestamp>,
    /// The store's head before the last commit, for defects that return outdated pages.
    behind: Option<Cursor>,
    unseen: BTreeSet<Revision>,
    records: BTreeMap<KeyId, KeyRecord>,
    counted: HashMap<TenantId, u64>,
    /// The digests that commits have claimed without a record, each with the key that owns it.
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
    /// Wraps `inner` in a store with the given defect.
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

    /// Returns the tenant of a row, and the revision of the commit that wrote it. For a removed key, returns
    /// no tenant and revision zero.
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

    /// Returns whether a store with the defect would accept this guard.
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

    /// Changes a commit as the defect requires, before the inner store executes it.
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
            StoreDefect::PrunesNothing => commit.effects.prune = None,
            StoreDefect::PrunesOneMore => {
                commit.effects.prune = commit.effects.prune.map(|through| through + 1);
            }
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

    /// Handles a commit that the inner store refused. Some defects write a part of the refused commit, or
    /// report success.
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

    /// Returns the cursor to send to the inner store. A defect that accepts an invalid cursor `after` must
    /// make it valid first.
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

    /// Refuses a cursor with another error than the inner store.
    fn spoil_refusal(&self, refused: ChangesError, after: Cursor) -> ChangesError {
        // The test of a tag uses revisions that the store has.
        let is_known =
            after.revision == Revision::ZERO || self.state().tags.contains_key(&after.revision);
        match (self.defect, &refused) {
            (StoreDefect::CompactsCursorsAhead, ChangesError::Diverged) if !is_known => {
                ChangesError::Compacted
            }
            (StoreDefect::CompactsOtherTags, ChangesError::Diverged) if is_known => {
                ChangesError::Compacted
            }
            (StoreDefect::DivergesOnOtherEpochs, ChangesError::Compacted) => ChangesError::Diverged,
            _ => refused,
        }
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

/// Removes the changes of the last commit from a page, as an outdated copy of the store would.
fn lag(page: &mut Changes, behind: Option<Cursor>) {
    let Some(behind) = behind else { return };
    page.changes
        .retain(|change| change.revision <= behind.revision);
    page.head = behind;
    if page.upto.revision > behind.revision {
        page.upto = behind;
    }
}

/// Yields once, as a call that waits for I/O would, so that a concurrent call can run in between.
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

/// Counts a pending call of `wait_past` in `waiting`, until the call returns or is dropped.
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
            StoreDefect::LoadsOneClass => {
                let first = select.live.keys().next();
                view.records.retain(|r| {
                    select.keys.contains(&r.id) || first.is_none_or(|class| r.class == *class)
                });
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
            StoreDefect::FindsHeadOfTheRow => {
                let tags = &self.state().tags;
                found.head.revision = found.change.revision;
                found.head.tag = tags.get(&found.head.revision).copied().unwrap_or_default();
            }
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
                // The commit has its revision, but readers cannot see it until this future is polled again.
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
        match self.inner.changes(asked, limit).await {
            Ok(page) => Ok(self.spoil_page(page, asked, limit)),
            Err(refused) => Err(self.spoil_refusal(refused, asked)),
        }
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

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        if self.is(StoreDefect::TenantsNeedRows) {
            let all = NonZeroUsize::new(1000).unwrap_or(NonZeroUsize::MAX);
            let rows = self.inner.scan(None, all).await?.rows;
            let written = rows
                .iter()
                .filter(|change| !matches!(change.row, Row::Removed { .. }));
            let written = written.filter_map(|change| change.row.written_at());
            return Ok(written.map(|(tenant, _)| tenant.clone()).collect());
        }
        self.inner.tenants().await
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        if self.is(StoreDefect::NewStoreIsRestored) {
            let head = self.inner.scan(None, NonZeroUsize::MIN).await?.head;
            return Ok(Some(head.epoch));
        }
        self.inner.restored_from().await
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        self.inner.known_loss().await
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
        if self.is(StoreDefect::ChangesNowCompacts) && matches!(answer, Err(ChangesError::Diverged))
        {
            return Some(Err(ChangesError::Compacted));
        }
        Some(answer.map(|mut page| {
            if self.is(StoreDefect::ChangesNowLags) {
                lag(&mut page, self.state().behind);
            }
            page
        }))
    }

    fn documents(&self) -> Option<&dyn keyward::store::Documents> {
        self.inner.documents()
    }

    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
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
