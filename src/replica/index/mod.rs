//! The index that verification reads. It finds keys by id or by imported digest, and stores the attributes
//! that keys share.
//!
//! A lookup takes no lock, and never waits for the writer to finish a batch. Only one writer at a time
//! applies changes.
//!
//! ```text
//!  hash of the id
//!    │
//!    ▼
//!  directory ─► segment ─► slot, 32 bytes, with the widths of its fields in bits
//!                ┌────────┬─────────┬────────────┬──────────┬──────────┬──────────┬───────────┐
//!                │ row 32 │ hash 32 │ digest 128 │ until 18 │ status 5 │ owner 24 │ traits 17 │
//!                └───┬────┴─────────┴────────────┴──────────┴────┬─────┴────┬─────┴─────┬─────┘
//!                ┌───┴───────────┐                               │          │           │
//!                ▼               ▼                               ▼          ▼           ▼
//!          row, 48 bytes:   tally, 8 bytes:               role, removal,  1 bit:   class, scopes,
//!          state, times     uses, last use                tenant          changed? addresses, pepper
//! ```
//!
//! - A lookup finds the slot by the hash, and compares the digest prefix. `until` is the time up to which the slot
//!   alone proves the key valid.
//! - It reads the row only if the slot does not prove the key valid.
//! - The status in a slot is a copy. Lowering a role, or removing an owner, sets the owner's bit, and all keys of the
//!   owner then get the status that is stored for the owner.
//! - Uses go to a ring of the thread, and from there to the tallies, many at a time.
//!
//! The number of a row is also the place of its key in any other list, such as the tallies.
//!
//! `docs/verify.md` documents the alternatives that were tried.

mod chunks;
mod floors;
mod hashing;
mod ledger;
mod memory;
mod rows;
mod status_ids;
mod sync;
mod table;
mod tally;
mod uses;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::chunks::Chunks;
use self::floors::Floors;
use self::hashing::Hashing;
pub(crate) use self::ledger::{AttributeIds, Attributes, OwnerRef};
use self::ledger::{AttributeTables, AttributeWriter, CarriedIds};
pub(crate) use self::rows::RowState;
use self::rows::{Content, IndexRow};
pub(crate) use self::table::DigestPrefix;
use self::table::{Directory, Hash, SlotValue, Table};
pub(crate) use self::table::{FoundSlot, Search};
use self::tally::{TakenUses, Tallies, Tally, Tick};
use self::uses::{Use, UseRings};
use crate::core::id::KeyId;
use crate::core::owner::{OwnerStatus, TenantRecord};
use crate::core::record::{Credential, KeyRecord};
use crate::core::secret::Digest;
use crate::core::subject::{KeyTraits, Lifecycle, LifecyclePhase};
use crate::core::tenant::TenantId;
use crate::core::text::PepperId;
use crate::core::time::Timestamp;
use crate::core::usage::outcome::UseOutcome;
use crate::core::view::Revision;
use crate::store::{Change, Row as StoreRow, RowKey};

/// All keys of a store, the attributes that keys share, and the private state of the writer.
#[derive(Default)]
pub(crate) struct Index {
    /// The hash function, drawn at random for each index. An attacker does not know the draw, and so cannot
    /// choose ids whose hashes collide.
    hashing: Hashing,
    rows: Chunks<IndexRow>,
    /// The use counts of the rows.
    tallies: Tallies,
    attribute_tables: AttributeTables,
    uses: UseRings,
    /// The number of rows.
    count: AtomicU32,
    imported: AtomicUsize,
    /// True if a rotation successor may have been used for the first time while the store has no record of
    /// this first use.
    first_used: AtomicBool,
    floors: Floors,
    /// The store's revision at the start of the scan that filled this index. The index contains every change
    /// up to this revision.
    base: AtomicU64,
    writer: Mutex<WriterState>,
}

#[derive(Default)]
struct WriterState {
    table: Table,
    attributes: AttributeWriter,
    rows: u32,
    /// The row numbers of rotation successors whose first use is not recorded in the store.
    unused: BTreeSet<u32>,
    /// The approximate size of the index when it was filled, in bytes.
    filled: usize,
}

/// 128 bytes: the approximate size of a row with its slot and its use count.
const ROW_SIZE: usize = 128;
/// 64 KiB that an index may grow beyond twice its size, so that a small index is not copied often.
const SPARE: usize = 64 << 10;

impl WriterState {
    fn size(&self) -> usize {
        self.attributes.size() + self.rows as usize * ROW_SIZE
    }
}

/// An index, with a directory: a snapshot of its table's segments, through which readers find slots.
#[derive(Clone)]
pub(crate) struct View {
    index: Arc<Index>,
    directory: Directory,
}

/// A key that a lookup found, and whose secret matches the presented secret.
#[derive(Clone, Copy)]
pub(crate) struct Hit {
    pub(crate) id: KeyId,
    row: u32,
    pub(crate) attribute_ids: AttributeIds,
    lifecycle: Lifecycle,
    /// True if `lifecycle` is complete. If false, `lifecycle` is derived from the slot alone, and proves only
    /// that the key is valid until `expires_at`.
    exact: bool,
}

/// A key whose secret matches the presented secret, and which its slot proves to be enabled until `end`.
pub(crate) struct ProvenKey {
    pub(crate) row: u32,
    pub(crate) attribute_ids: AttributeIds,
    /// The number of the owner's status.
    pub(crate) status: u32,
    /// `None` if the key never expires.
    pub(crate) end: Option<Timestamp>,
}

/// The result of looking up a presented key.
pub(crate) enum IndexLookup {
    Hit(Hit),
    /// The presented secret does not match. Holds the row and the attribute ids of the key.
    ///
    /// Rarely the presented id is unknown, and these are the attribute ids of another key with the same hash.
    /// The probability is (number of keys) / 2³². [`View::row_kind`] compares the id itself.
    WrongSecret(u32, AttributeIds),
    /// The key's record is unreadable.
    Corrupt(KeyId),
    /// The key was removed.
    Removed,
    Unknown,
}

/// Uses of one key with one outcome in one hour.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct CountedUses {
    pub(crate) key: KeyId,
    pub(crate) tenant: TenantId,
    /// The code of the outcome.
    pub(crate) outcome: u8,
    pub(crate) count: u64,
    /// The time of the last of these uses.
    pub(crate) last: Timestamp,
}

/// The kind of a row, independent of any presented secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RowKind {
    Key,
    Removed,
    Corrupt,
}

/// The hash of a key id whose slot the processor is loading into its cache.
#[derive(Clone, Copy)]
pub(crate) struct Prefetched(Hash);

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("keys", &self.count)
            .field("newest", &self.newest())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("View").field(&self.index).finish()
    }
}

impl Index {
    /// Creates an empty index that counts uses by hour and outcome, for a usage store.
    pub(crate) fn counting_by_hour() -> Self {
        Self {
            tallies: Tallies::by_hour(),
            ..Self::default()
        }
    }

    /// Returns whether the index counts uses by hour and outcome.
    pub(crate) const fn counts_by_hour(&self) -> bool {
        self.tallies.is_by_hour()
    }

    /// Creates an empty index that counts uses as this one does.
    pub(crate) fn empty_like(&self) -> Self {
        Self {
            tallies: self.tallies.like(),
            ..Self::default()
        }
    }
}

impl View {
    pub(crate) fn of(index: Arc<Index>) -> Self {
        let directory = index.writer().table.directory();
        Self { index, directory }
    }

    pub(crate) const fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Hashes an id and prefetches its slot, so that the memory arrives while the caller computes the digest.
    #[inline]
    pub(crate) fn prefetch(&self, id: KeyId) -> Prefetched {
        let hash = self.index.hash_of_id(id);
        self.directory.probe(hash).prefetch();
        Prefetched(hash)
    }

    /// Searches for the key with this hash and this digest prefix. [`answer`](Self::answer) reads what was found.
    #[inline]
    pub(crate) fn search(
        &self,
        Prefetched(hash): Prefetched,
        digest_prefix: DigestPrefix,
    ) -> Search {
        self.directory.probe(hash).search(digest_prefix)
    }

    /// Returns the key that a search found, if its slot alone proves it enabled and not expired. The number of its
    /// owner's status is not older than the search.
    #[inline]
    pub(crate) fn proven(&self, found: &Search) -> Option<ProvenKey> {
        let Search::Match(FoundSlot { row, value }) = *found else {
            return None;
        };
        let attribute_ids = value.attribute_ids;
        let status = self.index.attribute_tables.status_id(attribute_ids)?;
        (value.until != SlotValue::ASK).then(|| ProvenKey {
            row,
            attribute_ids,
            status,
            end: value.end(),
        })
    }

    /// Returns the traits with this number.
    #[inline]
    pub(crate) fn traits(&self, number: u32) -> Option<&KeyTraits> {
        self.index.attribute_tables.traits(number)
    }

    /// Returns the key with this id, if its digest starts with `digest_prefix`.
    pub(crate) fn lookup(
        &self,
        id: KeyId,
        prefetched: Prefetched,
        digest_prefix: DigestPrefix,
    ) -> IndexLookup {
        self.answer(id, self.search(prefetched, digest_prefix))
    }

    /// Returns the key with this id, if a search for it found its digest prefix.
    #[inline]
    pub(crate) fn answer(&self, id: KeyId, search: Search) -> IndexLookup {
        match search {
            Search::Match(found) => self.hit(found, Some(id)),
            Search::NoMatch(FoundSlot { row, value }) if value != SlotValue::ROW => {
                IndexLookup::WrongSecret(row, value.attribute_ids)
            }
            Search::NoMatch(FoundSlot { row, .. }) => match self.content(id) {
                Some(Content {
                    key, attribute_ids, ..
                }) => match key {
                    RowState::Key(_) => IndexLookup::WrongSecret(row, attribute_ids),
                    RowState::Corrupt => IndexLookup::Corrupt(id),
                    RowState::Removed => IndexLookup::Removed,
                },
                None => IndexLookup::Unknown,
            },
            Search::Nothing => IndexLookup::Unknown,
        }
    }

    /// Returns the key that was imported with this digest.
    pub(crate) fn imported(&self, digest: &Digest) -> IndexLookup {
        let digest_prefix = import_prefix(digest);
        match self
            .directory
            .probe(self.index.hash_of_prefix(digest_prefix))
            .search(digest_prefix)
        {
            Search::Match(found) => self.hit(found, None),
            Search::NoMatch(_) | Search::Nothing => IndexLookup::Unknown,
        }
    }

    /// Returns the kind of the row with this id, without comparing a secret. `None` if the id is unknown.
    pub(crate) fn row_kind(&self, id: KeyId) -> Option<RowKind> {
        Some(match self.content(id)?.key {
            RowState::Key(_) => RowKind::Key,
            RowState::Removed => RowKind::Removed,
            RowState::Corrupt => RowKind::Corrupt,
        })
    }

    /// Returns the revision of the row with this id.
    pub(crate) fn revision_of(&self, id: KeyId) -> Option<Revision> {
        Some(self.content(id)?.revision)
    }

    /// Returns the kind of the row of the key that was imported with this digest. `None` if no such key is
    /// known.
    pub(crate) fn row_kind_of_import(&self, digest: &Digest) -> Option<RowKind> {
        Some(match self.imported(digest) {
            IndexLookup::Hit(_) => RowKind::Key,
            IndexLookup::Corrupt(_) => RowKind::Corrupt,
            IndexLookup::Removed => RowKind::Removed,
            IndexLookup::WrongSecret(..) | IndexLookup::Unknown => return None,
        })
    }

    fn content(&self, id: KeyId) -> Option<Content> {
        Some(self.index.rows.get(self.row_of(id)?)?.read())
    }

    fn row_of(&self, id: KeyId) -> Option<u32> {
        let mut candidates = self.directory.probe(self.index.hash_of_id(id)).candidates();
        let own = |found: &FoundSlot| {
            let row = self.index.rows.get(found.row);
            row.is_some_and(|row| row.id() == id)
        };
        candidates.find(own).map(|found| found.row)
    }

    /// Returns the shared attributes of the key with this id.
    pub(crate) fn attributes_of(&self, id: KeyId) -> Option<Attributes<'_>> {
        let content = self.content(id)?;
        match content.key {
            RowState::Key(_) => self
                .index
                .attribute_tables
                .attributes(content.attribute_ids),
            RowState::Removed | RowState::Corrupt => None,
        }
    }

    /// Returns the current shared attributes for these ids.
    #[inline]
    pub(crate) fn attributes(&self, attribute_ids: AttributeIds) -> Option<Attributes<'_>> {
        self.index.attribute_tables.attributes(attribute_ids)
    }

    /// Returns the status of a key's owner in another tenant, which may differ from the status in the key's
    /// own tenant. `None` unless `tenant` is a descendant of the key's tenant, and rows there change the
    /// status. Blocks only while the writer changes such a row.
    pub(crate) fn status_in(
        &self,
        attributes: &Attributes<'_>,
        tenant: &TenantId,
    ) -> Option<Box<OwnerStatus>> {
        self.index
            .attribute_tables
            .status_in(attributes, tenant)
            .map(Box::new)
    }

    /// Returns the tenants whose rows name bulk commands that are not finished.
    pub(crate) fn unfinished(&self) -> Vec<TenantId> {
        self.index.attribute_tables.unfinished()
    }

    /// Returns the shared attributes for these ids, but with the owner status that an earlier read returned
    /// instead of the current one.
    pub(crate) fn attributes_with(
        &self,
        attribute_ids: AttributeIds,
        status_id: u32,
    ) -> Option<Attributes<'_>> {
        self.index
            .attribute_tables
            .attributes_with(attribute_ids, status_id)
    }

    /// Returns the lifecycle that decides whether the key is valid at `now`.
    ///
    /// Reads the row only if the lifecycle in `hit` does not suffice. In this case the row may show that the
    /// key was removed or became unreadable after the lookup.
    #[inline]
    pub(crate) fn state_for(&self, hit: &Hit, status: &OwnerStatus, now: Timestamp) -> RowState {
        let good = hit.lifecycle.expires_at.is_none_or(|end| now < end);
        if hit.exact || (good && status.removed_at.is_none()) {
            return RowState::Key(hit.lifecycle);
        }
        self.row_state(hit.row)
    }

    /// Returns the current state of a row.
    pub(crate) fn row_state(&self, row: u32) -> RowState {
        let row = self.index.rows.get(row);
        row.map_or(RowState::Removed, |row| row.read().key)
    }

    #[inline]
    pub(crate) fn count(&self, row: u32, now: Timestamp) {
        self.index.note_use(row, UseOutcome::Accepted, now);
    }

    /// Records that some rotation successor was used, and that the store has no record of its first use. Call
    /// this method after [`count`](Self::count).
    ///
    /// The Release store pairs with the Acquire swap in [`Index::unrecorded`]. So a maintenance run that
    /// takes the flag also sees the count.
    #[inline]
    pub(crate) fn note_first_use(&self) {
        self.index.first_used.store(true, Ordering::Release);
    }

    /// Counts one use of a key whose verification read the key from the store instead of the index. Returns false if the
    /// index does not have the key.
    pub(crate) fn count_id(&self, id: KeyId, outcome: UseOutcome, now: Timestamp) -> bool {
        let row = self.row_of(id);
        row.inspect(|row| self.index.note_use(*row, outcome, now))
            .is_some()
    }

    /// Counts a refusal of the key in a row. Row 0, of an unknown key, takes as long and counts for nobody.
    pub(crate) fn count_refusal(&self, row: u32, outcome: UseOutcome, now: Timestamp) {
        self.index.note_use(row, outcome, now);
    }

    /// Returns how often the key was used, as counted by this index and not taken, and the Unix time of the last use in
    /// seconds. `None` if the key was not used, or the index does not have the key.
    pub(crate) fn uses(&self, id: KeyId) -> Option<Option<(u64, u32)>> {
        self.index.settle_uses();
        Some(self.index.tallies.get(self.row_of(id)?)?.uses())
    }

    /// Takes the uses that were counted since the last call, in any order. The times of last uses stay. Also returns the
    /// number of uses that were counted for no key, because too many counts waited.
    pub(crate) fn take_uses(&self) -> (Vec<CountedUses>, u64) {
        let mut dropped = self.index.tallies.take_dropped();
        let taken = self.index.take_uses();
        let named = taken.into_iter().filter_map(|taken| {
            let key = self.index.rows.get(taken.row)?.id();
            let Some(attributes) = self.attributes_of(key) else {
                // A removed key has no usage any more. The tenant of a damaged row is unknown.
                if self.row_kind(key) == Some(RowKind::Corrupt) {
                    dropped = dropped.saturating_add(taken.count);
                }
                return None;
            };
            let tenant = attributes.key_owner.get().tenant.clone();
            Some(CountedUses {
                key,
                tenant,
                outcome: taken.outcome,
                count: taken.count,
                last: Timestamp::from_unix_seconds(taken.second.into()).ok()?,
            })
        });
        let named = named.collect();
        (named, dropped)
    }

    /// Returns the keys among `keys` for which this index has counted at least one use.
    pub(crate) fn used_of(&self, keys: &[KeyId]) -> BTreeSet<KeyId> {
        self.index.settle_uses();
        let used = |key: &KeyId| {
            let tally = self
                .row_of(*key)
                .and_then(|row| self.index.tallies.get(row));
            tally.is_some_and(|tally| tally.uses().is_some())
        };
        keys.iter().copied().filter(used).collect()
    }

    /// Returns the rotation successors that were used, but for which the store has no record of a first use.
    /// The list takes one key of each tenant in turn, so that no tenant waits for all keys of another.
    pub(crate) fn first_uses(&self) -> Vec<(TenantId, KeyId)> {
        let mut used = BTreeMap::<_, Vec<_>>::new();
        for row in self.index.unrecorded() {
            let id = self.index.rows.get(row).map(IndexRow::id);
            let attributes = id.and_then(|id| Some((id, self.attributes_of(id)?)));
            if let Some((id, attributes)) = attributes {
                let tenant = attributes.key_owner.get().tenant.clone();
                used.entry(tenant).or_default().push(id);
            }
        }
        let numbered = used.into_iter().flat_map(|(tenant, keys)| {
            let keys = keys.into_iter().enumerate();
            keys.map(move |(number, key)| (number, tenant.clone(), key))
        });
        let mut turns: Vec<_> = numbered.collect();
        turns.sort_by_key(|(number, ..)| *number);
        let turns = turns.into_iter();
        turns.map(|(_, tenant, key)| (tenant, key)).collect()
    }

    /// Moves the use counts of an index that this index has replaced, and that a verification counted there since
    /// [`inherit_uses`](Self::inherit_uses).
    pub(super) fn inherit_later_uses(&self, of: &Index) {
        if of.has_later_uses() {
            self.inherit_uses(of);
        }
    }

    /// Moves the use counts of an index that this index replaces to this index.
    pub(super) fn inherit_uses(&self, of: &Index) {
        self.note_first_use();
        let own = |row: u32| of.rows.get(row).and_then(|row| self.row_of(row.id()));
        let tallies = &self.index.tallies;
        for taken in of.take_uses() {
            // This index may get the key later. The next call tries again.
            let (to, row) = own(taken.row).map_or((&of.tallies, taken.row), |own| (tallies, own));
            to.add(row, taken.outcome, taken.count, Tick::of(taken.second));
            to.note_new();
        }
        tallies.add_dropped(of.tallies.take_dropped());
        for row in 1..=of.count.load(Ordering::Acquire) {
            let last = of.tallies.get(row).and_then(Tally::uses);
            if let Some(((_, last), own)) = last.and_then(|last| Some((last, own(row)?))) {
                tallies.raise(own, last);
            }
        }
        tallies.note_new();
    }

    /// Returns the key of a slot whose digest prefix matches. `id` is `None` if the slot was found by an
    /// imported digest.
    #[inline]
    fn hit(&self, found: FoundSlot, id: Option<KeyId>) -> IndexLookup {
        let FoundSlot { row, value } = found;
        if let Some(id) = id.filter(|_| value.until != SlotValue::ASK) {
            return IndexLookup::Hit(Hit {
                id,
                row,
                attribute_ids: value.attribute_ids,
                lifecycle: Lifecycle {
                    phase: LifecyclePhase::Enabled,
                    // The slot does not hold the creation time of the key. A caller that needs this time must
                    // read the row.
                    created_at: Timestamp::MAX,
                    expires_at: value.end(),
                    awaits_first_use: false,
                },
                exact: false,
            });
        }
        let Some(entry) = self.index.rows.get(row) else {
            return IndexLookup::Unknown;
        };
        let Content {
            key, attribute_ids, ..
        } = entry.read();
        let id = entry.id();
        match key {
            RowState::Key(lifecycle) => IndexLookup::Hit(Hit {
                id,
                row,
                attribute_ids,
                lifecycle,
                exact: true,
            }),
            RowState::Removed => IndexLookup::Removed,
            RowState::Corrupt => IndexLookup::Corrupt(id),
        }
    }
}

/// Returns the prefix under which the table stores an imported key: the prefix of the SHA-256 *of* the key's
/// digest.
///
/// An importer can choose a digest that starts like another key's digest. But nobody can choose the digest of
/// a digest, so two imported keys do not get the same prefix.
fn import_prefix(digest: &Digest) -> DigestPrefix {
    DigestPrefix::of(Digest::sha256(digest.as_bytes()).as_bytes())
}

/// Returns the Unix time in seconds, or `u32::MAX` if the time does not fit.
#[inline]
fn second_of(at: Timestamp) -> u32 {
    u32::try_from(at.as_micros() / 1_000_000).unwrap_or(u32::MAX)
}

impl Hit {
    pub(crate) const fn row(&self) -> u32 {
        self.row
    }
}

impl SlotValue {
    /// Returns the value of the table slot for a key with this lifecycle.
    fn of(lifecycle: &Lifecycle, imported: bool, attribute_ids: AttributeIds) -> Self {
        let plain =
            lifecycle.phase == LifecyclePhase::Enabled && !lifecycle.awaits_first_use && !imported;
        let until = match lifecycle.expires_at {
            _ if !plain => Self::ASK,
            None => Self::NEVER,
            // A slot stores the expiry as an hour. From the hour in which the key expires, lookups read the
            // exact expiry from the row. An expiry after the last hour that fits becomes that hour. For an expiry
            // before the first one, lookups always read the row.
            Some(end) => {
                let hour = end.as_micros() / (Self::HOUR * 1_000_000) - Self::FIRST_HOUR;
                let hour = hour.clamp(Self::ASK.into(), i64::from(Self::NEVER) - 1);
                u32::try_from(hour).unwrap_or(Self::ASK)
            }
        };
        Self {
            until,
            attribute_ids,
        }
    }

    #[inline]
    fn end(self) -> Option<Timestamp> {
        let micros = (i64::from(self.until) + Self::FIRST_HOUR) * Self::HOUR * 1_000_000;
        (self.until != Self::NEVER)
            .then(|| Timestamp::from_micros(micros).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl Index {
    /// Returns the number of rows, including those of removed keys.
    pub(super) fn keys(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns whether this index contains an imported key. If so, even a string that is not a keyward token
    /// may be a key.
    pub(crate) fn has_imported(&self) -> bool {
        self.imported.load(Ordering::Acquire) > 0
    }

    /// Returns the newest commit time of any tenant, as far as this index knows.
    #[inline]
    pub(crate) fn newest(&self) -> Timestamp {
        self.floors.newest()
    }

    /// Returns the newest commit time of one tenant, as far as this index knows.
    #[cold]
    pub(crate) fn floor(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.floors.at(tenant)
    }

    /// Returns the number of keys that are neither revoked nor expired at `now`, by the pepper of their digest.
    pub(super) fn keys_by_pepper(&self, now: Timestamp) -> BTreeMap<PepperId, u64> {
        let mut by_traits: Vec<u64> = Vec::new();
        for row in (1..=self.keys()).filter_map(|row| self.rows.get(row)) {
            let content = row.read();
            if matches!(content.key, RowState::Key(lifecycle) if lifecycle.is_live(now)) {
                let traits = content.attribute_ids.traits as usize;
                if by_traits.len() <= traits {
                    by_traits.resize(traits + 1, 0);
                }
                by_traits[traits] += 1;
            }
        }
        let mut counts = BTreeMap::new();
        for (traits, keys) in (0..).zip(by_traits).filter(|(_, keys)| *keys > 0) {
            if let Some(pepper) = self.attribute_tables.pepper_of(traits) {
                *counts.entry(pepper.clone()).or_insert(0) += keys;
            }
        }
        counts
    }

    /// Returns the tenants with a newest commit time later than `than`.
    pub(crate) fn later(&self, than: Timestamp) -> Vec<(TenantId, Timestamp)> {
        self.floors.later(than)
    }

    /// Records when a row was last written. Also records a time repair, if the row is a tenant's row that
    /// contains one.
    fn note_instant(&self, revision: Revision, row: &StoreRow) {
        let Some((tenant, at)) = row.written_at() else {
            return;
        };
        if let StoreRow::Tenant(TenantRecord {
            time_repair: Some(repair),
            ..
        }) = row
        {
            self.floors.record_repair(tenant, *repair, (at, revision));
        }
        self.floors.record(tenant, at, revision);
    }

    /// Records that the scan that fills this index has applied every row with a revision up to `base`, and writes the
    /// current statuses to all slots. No reader may have this index yet.
    pub(super) fn set_scan_base(&self, base: Revision) {
        self.base.store(base.0, Ordering::Release);
        let mut writer = self.writer();
        writer.filled = writer.size();
        let tables = &self.attribute_tables;
        // Rows may have changed statuses since slots got copies of them.
        if tables.changed_statuses() > 0 {
            writer.attributes.forget_changes(tables);
            let current = |key_owner| tables.current_status(key_owner);
            writer.table.copy_statuses(current);
        }
    }

    /// Returns whether the index has more than doubled since it was filled. Most of it may then belong to
    /// removed keys, or to attributes that no key uses. Copying at each doubling takes constant time per change.
    pub(super) fn has_doubled(&self) -> bool {
        let writer = self.writer();
        writer.size() > 2 * writer.filled + SPARE
    }

    /// Returns a copy without removed keys, and without attributes that no key uses. The index must contain
    /// every change up to the revision `upto`: the copy drops the tombstones up to it, and ignores changes of
    /// unknown keys up to it, as after a scan.
    pub(super) fn compacted(&self, upto: Revision) -> Self {
        let copy = Self {
            hashing: self.hashing,
            floors: self.floors.clone(),
            tallies: self.tallies.like(),
            ..Self::default()
        };
        let base = self.base.load(Ordering::Acquire).max(upto.0);
        let imported = self.imported.load(Ordering::Acquire);
        copy.imported.store(imported, Ordering::Release);
        let old = self.writer();
        let mut guard = copy.writer();
        let new = &mut *guard;
        let (from, tables) = (&self.attribute_tables, &copy.attribute_tables);
        new.attributes = old.attributes.without_keys(from, tables);
        let mut known = CarriedIds::default();
        // The new row and attribute ids of each old row; row 0 for a row that is left out.
        let mut moved = vec![(0, AttributeIds::default()); old.rows as usize + 1];
        for row in 1..=old.rows {
            let entry = self.rows.at(row);
            let mut content = entry.read();
            match content.key {
                RowState::Removed if content.revision <= upto => continue,
                RowState::Removed | RowState::Corrupt => {}
                RowState::Key(_) => {
                    let ids = content.attribute_ids;
                    let carried = new.attributes.carry(tables, (from, &mut known), ids);
                    content.attribute_ids =
                        carried.expect("an index has the attributes of each of its keys");
                }
            }
            let own = copy.add_row(new, entry.id(), content);
            moved[row as usize] = (own, content.attribute_ids);
            if old.unused.contains(&row) {
                new.unused.insert(own);
            }
        }
        for (hash, digest_prefix, FoundSlot { row, value }) in old.table.slots() {
            let (own, attribute_ids) = moved[row as usize];
            let value = match value {
                SlotValue::ROW => value,
                SlotValue { until, .. } => SlotValue {
                    until,
                    attribute_ids,
                },
            };
            if own != 0 {
                new.table.insert(hash, own, digest_prefix, value);
            }
        }
        drop(guard);
        copy.set_scan_base(Revision(base));
        copy
    }

    /// Returns whether a new view should be published, because the current one keeps replaced table segments in memory.
    pub(super) fn needs_new_view(&self) -> bool {
        self.writer().table.needs_new_directory()
    }

    /// Applies each row whose revision is newer than the revision of the row in the index. Only one writer at
    /// a time can apply rows.
    pub(super) fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let mut writer = self.writer();
        let writer = &mut *writer;
        let base = Revision(self.base.load(Ordering::Acquire));
        for Change { revision, row } in changes {
            self.note_instant(revision, &row);
            let attributes = &mut writer.attributes;
            match row {
                StoreRow::Tenant(row) => {
                    attributes.apply_tenant(
                        &self.attribute_tables,
                        revision,
                        &row.tenant,
                        Some(&row),
                    );
                }
                StoreRow::Owner(row) => {
                    let place = (row.tenant.clone(), row.owner.clone());
                    attributes.apply_owner(&self.attribute_tables, revision, place, Some(&row));
                }
                StoreRow::Corrupt(RowKey::Tenant(tenant)) => {
                    attributes.apply_tenant(&self.attribute_tables, revision, &tenant, None);
                }
                StoreRow::Corrupt(RowKey::Owner(tenant, owner)) => {
                    attributes.apply_owner(&self.attribute_tables, revision, (tenant, owner), None);
                }
                StoreRow::Key(record) => self.put(writer, revision, base, &record),
                StoreRow::Removed { key, .. } => {
                    self.withdraw(writer, revision, base, key, RowState::Removed);
                }
                StoreRow::Corrupt(RowKey::Key(key)) => {
                    self.withdraw(writer, revision, base, key, RowState::Corrupt);
                }
            }
        }
        self.floors.settle();
    }

    fn put(
        &self,
        writer: &mut WriterState,
        revision: Revision,
        base: Revision,
        record: &KeyRecord,
    ) {
        let (id, lifecycle) = (record.id, Lifecycle::of(record));
        let hash = self.hash_of_id(id);
        let known = self.row_of(&writer.table, hash, id);
        if self.is_stale(known, revision, base) {
            return;
        }
        let (digest_prefix, imported) = match &record.credential {
            Credential::Peppered { digest, .. } => (DigestPrefix::of(digest.as_bytes()), None),
            Credential::Imported { digest, .. } => (DigestPrefix::NONE, Some(*digest)),
        };
        let attribute_ids = writer.attributes.ids_of(&self.attribute_tables, record);
        let value = SlotValue::of(&lifecycle, imported.is_some(), attribute_ids);
        let content = Content {
            revision,
            key: RowState::Key(lifecycle),
            attribute_ids,
        };
        let awaits = lifecycle.awaits_first_use;
        let row = match known {
            Some(row) => {
                let place = self.rows.at(row);
                if writer.table.has(hash, row, digest_prefix) {
                    place.write(content);
                    writer.table.set_value(hash, row, value);
                } else {
                    // Write the row after inserting the new slot. A reader that reads the new pepper from the
                    // row then also finds the slot with the new digest. In the other order, the reader would
                    // find no slot with the new digest, and reject a valid key.
                    let publish = || place.write(content);
                    writer
                        .table
                        .replace(hash, row, digest_prefix, value, publish);
                }
                row
            }
            None => self.add(writer, hash, id, content, (digest_prefix, value)),
        };
        if awaits {
            writer.unused.insert(row);
        } else {
            writer.unused.remove(&row);
        }
        if let Some(digest) = imported {
            let digest_prefix = import_prefix(&digest);
            let hash = self.hash_of_prefix(digest_prefix);
            if !writer.table.has(hash, row, digest_prefix) {
                writer.table.insert(hash, row, digest_prefix, value);
                self.imported.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Marks a key as removed or as unreadable, so that lookups reject the key. If the index does not contain
    /// the key, adds a row for it.
    fn withdraw(
        &self,
        writer: &mut WriterState,
        revision: Revision,
        base: Revision,
        id: KeyId,
        key: RowState,
    ) {
        let hash = self.hash_of_id(id);
        let known = self.row_of(&writer.table, hash, id);
        // A removal is final. So if the index does not contain the key, its removal is recorded, even if the
        // removal is older than the scan.
        let is_news = known.is_none() && key == RowState::Removed;
        if !is_news && self.is_stale(known, revision, base) {
            return;
        }
        let value = SlotValue::ROW;
        let content = Content {
            revision,
            key,
            attribute_ids: value.attribute_ids,
        };
        match known {
            Some(row) => {
                self.rows.at(row).write(content);
                writer.table.set_value(hash, row, value);
                writer.unused.remove(&row);
            }
            None => {
                self.add(writer, hash, id, content, (DigestPrefix::NONE, value));
            }
        }
    }

    fn add(
        &self,
        writer: &mut WriterState,
        hash: Hash,
        id: KeyId,
        content: Content,
        (digest_prefix, value): (DigestPrefix, SlotValue),
    ) -> u32 {
        let row = self.add_row(writer, id, content);
        writer.table.insert(hash, row, digest_prefix, value);
        row
    }

    /// Adds a row, which no lookup finds before it has a slot.
    fn add_row(&self, writer: &mut WriterState, id: KeyId, content: Content) -> u32 {
        // Row numbers start at 1: row 0 means no row.
        writer.rows += 1;
        self.count.store(writer.rows, Ordering::Relaxed);
        self.tallies.reserve(writer.rows);
        let row = self.rows.at(writer.rows);
        row.set_id(id);
        row.write(content);
        writer.rows
    }

    fn is_stale(&self, known: Option<u32>, revision: Revision, base: Revision) -> bool {
        match known {
            Some(row) => self.rows.at(row).read().revision >= revision,
            // The index does not contain this key, although its scan returned every key with a revision up to
            // `base`. So the key was removed and its tombstone compacted. A change that is older than the
            // scan must not bring the key back.
            None => revision <= base,
        }
    }

    fn row_of(&self, table: &Table, hash: Hash, id: KeyId) -> Option<u32> {
        let own = |found: &FoundSlot| self.rows.at(found.row).id() == id;
        table.candidates(hash).find(own).map(|found| found.row)
    }

    /// Returns the rows of rotation successors that were used, but for which the store has no record of a
    /// first use.
    fn unrecorded(&self) -> Vec<u32> {
        // There may be many successors without a recorded first use. Search them only if some successor was
        // used since the last search.
        if !self.first_used.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        self.settle_uses();
        let was_used = |row: &u32| self.tallies.get(*row).and_then(Tally::uses).is_some();
        let unused = &self.writer().unused;
        let found: Vec<_> = unused.iter().copied().filter(was_used).collect();
        // Set the flag again, so that the next call finds these successors too. Only commits that record
        // their first uses remove them.
        if !found.is_empty() {
            self.first_used.store(true, Ordering::Release);
        }
        found
    }

    fn settle_uses(&self) {
        self.uses.drain(&self.tallies);
    }

    /// Returns whether uses were counted since they were taken.
    fn has_later_uses(&self) -> bool {
        self.settle_uses();
        self.tallies.has_new()
    }

    /// Takes the uses that were counted since the last call.
    fn take_uses(&self) -> Vec<TakenUses> {
        self.settle_uses();
        self.tallies.take(|| self.count.load(Ordering::Acquire))
    }

    #[inline]
    fn note_use(&self, row: u32, outcome: UseOutcome, now: Timestamp) {
        let used = Use::new(row, outcome.code(), second_of(now));
        self.uses.note(used, &self.tallies);
    }

    #[inline]
    fn hash_of_id(&self, id: KeyId) -> Hash {
        self.hashing.of(id.to_u128())
    }

    fn hash_of_prefix(&self, digest_prefix: DigestPrefix) -> Hash {
        self.hashing.of(digest_prefix.to_u128())
    }

    fn writer(&self) -> MutexGuard<'_, WriterState> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;
