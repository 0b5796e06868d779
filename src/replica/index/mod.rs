//! The index that verification reads: keys by id and by imported digest, and the data that keys
//! share.
//!
//! Readers take no lock and never wait for the writer to finish a batch; one writer at a time
//! applies changes. A key consists of three parts:
//!
//! - a slot of 32 bytes, by which it is found and compared;
//! - a row, read only if the key is not simply valid;
//! - an entry that it shares with all keys of its holder and shape.
//!
//! `docs/verify.md` documents the alternatives that were tried.

mod chunks;
mod floors;
mod hashing;
mod ledger;
mod prefetch;
mod rows;
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
pub(crate) use self::ledger::{Facts, HolderAt, Parts};
use self::ledger::{Ledger, Shared};
pub(crate) use self::rows::Kept;
use self::rows::{Content, Row};
pub(crate) use self::table::Half;
use self::table::{Directory, Found, Hash, Search, SlotValue, Table};
use self::tally::Tally;
use self::uses::{Counted, Usage};
use crate::core::id::KeyId;
use crate::core::owner::{OwnerStatus, TenantRecord};
use crate::core::record::{Credential, KeyRecord};
use crate::core::secret::Digest;
use crate::core::subject::{Course, Life};
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{Change, Row as StoreRow, RowKey};

/// Keys, the data they share, and the writer's own notes.
#[derive(Default)]
pub(crate) struct Index {
    /// Drawn at random for each index, so that nobody can choose ids that collide.
    hashing: Hashing,
    rows: Chunks<Row>,
    /// The use count of each row.
    tallies: Chunks<Tally>,
    shared: Shared,
    uses: Usage,
    /// The number of rows.
    count: AtomicU32,
    imported: AtomicUsize,
    /// True if a successor may have been used whose first use is not recorded.
    first_used: AtomicBool,
    floors: Floors,
    /// The store's revision when the scan that filled this index began.
    base: AtomicU64,
    writer: Mutex<Writer>,
}

#[derive(Default)]
struct Writer {
    table: Table,
    ledger: Ledger,
    rows: u32,
    /// The rows of successors whose first use is not recorded.
    unused: BTreeSet<u32>,
}

/// An index, with the directory through which its table is read.
#[derive(Clone)]
pub(crate) struct View {
    index: Arc<Index>,
    directory: Directory,
}

/// The key whose secret was presented.
#[derive(Clone, Copy)]
pub(crate) struct Hit {
    pub(crate) id: KeyId,
    row: u32,
    pub(crate) parts: Parts,
    course: Course,
    /// Whether `course` is complete. If not, it only says that the key is valid until its end.
    exact: bool,
}

/// The index's answer to a presented key.
pub(crate) enum Answer {
    Hit(Hit),
    /// The presented secret is not the key's. Holds the parts that the key shares with others. With
    /// a probability of number of keys / 2³², the id is unknown and the parts belong to another key
    /// with the same hash; [`View::known`] compares the id.
    WrongSecret(Parts),
    /// The key's record is unreadable.
    Corrupt(KeyId),
    /// The key was removed.
    Removed,
    Unknown,
}

/// The state of a row, independent of any presented secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Known {
    Key,
    Removed,
    Corrupt,
}

/// A search by id that has begun: the memory it needs is being prefetched.
#[derive(Clone, Copy)]
pub(crate) struct Sought(Hash);

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

impl View {
    pub(crate) fn of(index: Arc<Index>) -> Self {
        let directory = index.writer().table.directory();
        Self { index, directory }
    }

    pub(crate) const fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Begins a search. Prefetches the slot, so that the memory arrives while the caller computes
    /// the digest.
    #[inline]
    pub(crate) fn begin(&self, id: KeyId) -> Sought {
        let hash = self.index.hash_of_id(id);
        self.directory.probe(hash).approach();
        Sought(hash)
    }

    /// Ends a search: returns the key of this id, if its digest has this half.
    #[inline]
    pub(crate) fn end(&self, id: KeyId, Sought(hash): Sought, half: Half) -> Answer {
        match self.directory.probe(hash).search(half) {
            Search::Match(found) => self.hit(found, Some(id)),
            Search::NoMatch(Found { value, .. }) if value != SlotValue::ROW => {
                Answer::WrongSecret(value.parts)
            }
            Search::NoMatch(_) => match self.content(id) {
                Some(Content { key, parts, .. }) => match key {
                    Kept::Known(_) => Answer::WrongSecret(parts),
                    Kept::Corrupt => Answer::Corrupt(id),
                    Kept::Removed => Answer::Removed,
                },
                None => Answer::Unknown,
            },
            Search::Nothing => {
                self.index.look_at_any_facts(id);
                Answer::Unknown
            }
        }
    }

    /// Returns the key that was imported with this digest.
    pub(crate) fn imported(&self, digest: &Digest) -> Answer {
        let half = half_of_import(digest);
        match self
            .directory
            .probe(self.index.hash_of_half(half))
            .search(half)
        {
            Search::Match(found) => self.hit(found, None),
            Search::NoMatch(_) | Search::Nothing => Answer::Unknown,
        }
    }

    /// Returns the state of an id's row. Compares no secret.
    pub(crate) fn known(&self, id: KeyId) -> Option<Known> {
        Some(match self.content(id)?.key {
            Kept::Known(_) => Known::Key,
            Kept::Removed => Known::Removed,
            Kept::Corrupt => Known::Corrupt,
        })
    }

    /// Returns the state of the row of a key that was imported with this digest.
    pub(crate) fn known_import(&self, digest: &Digest) -> Option<Known> {
        Some(match self.imported(digest) {
            Answer::Hit(_) => Known::Key,
            Answer::Corrupt(_) => Known::Corrupt,
            Answer::Removed => Known::Removed,
            Answer::WrongSecret(_) | Answer::Unknown => return None,
        })
    }

    fn content(&self, id: KeyId) -> Option<Content> {
        Some(self.index.rows.get(self.row_of(id)?)?.read())
    }

    fn row_of(&self, id: KeyId) -> Option<u32> {
        let mut named = self.directory.probe(self.index.hash_of_id(id)).named();
        let own = |found: &Found| {
            let row = self.index.rows.get(found.row);
            row.is_some_and(|row| row.id() == id)
        };
        named.find(own).map(|found| found.row)
    }

    /// Returns the data that the key of this id shares with others.
    pub(crate) fn facts_of(&self, id: KeyId) -> Option<Facts<'_>> {
        let content = self.content(id)?;
        match content.key {
            Kept::Known(_) => self.index.shared.facts(content.parts),
            Kept::Removed | Kept::Corrupt => None,
        }
    }

    /// Returns the current data that a key shares with others.
    #[inline]
    pub(crate) fn facts(&self, parts: Parts) -> Option<Facts<'_>> {
        self.index.shared.facts(parts)
    }

    /// Returns the status of these facts' owner in `tenant`. `None` unless `tenant` is a descendant
    /// of the holder's tenant and rows there change the status. Blocks only while such a row is
    /// being written.
    pub(crate) fn standing_in(
        &self,
        facts: &Facts<'_>,
        tenant: &TenantId,
    ) -> Option<Box<OwnerStatus>> {
        self.index.shared.standing_in(facts, tenant).map(Box::new)
    }

    /// Returns the tenants whose rows name bulk commands that have not finished.
    pub(crate) fn unfinished(&self) -> Vec<TenantId> {
        self.index.shared.unfinished()
    }

    /// Returns the facts of these parts with the standing that an earlier read returned.
    pub(crate) fn facts_with(&self, parts: Parts, standing_id: u32) -> Option<Facts<'_>> {
        self.index.shared.facts_with(parts, standing_id)
    }

    /// Returns the data that decides whether the key works at `now`. Returns `Removed` or `Corrupt`
    /// if the key was removed or became unreadable.
    #[inline]
    pub(crate) fn course(&self, hit: &Hit, standing: &OwnerStatus, now: Timestamp) -> Kept {
        let good = hit.course.expires_at.is_none_or(|end| now < end);
        if hit.exact || (good && standing.removed_at.is_none()) {
            return Kept::Known(hit.course);
        }
        self.kept(hit.row)
    }

    /// Returns the current state of a key that was found before.
    pub(crate) fn kept(&self, row: u32) -> Kept {
        let row = self.index.rows.get(row);
        row.map_or(Kept::Removed, |row| row.read().key)
    }

    #[inline]
    pub(crate) fn count(&self, hit: &Hit, now: Timestamp) {
        if let Some(displaced) = self.index.uses.count(hit.row, second_of(now)) {
            // Prefetch this key's tally: its own count is added there once another key displaces
            // it.
            let own = self.index.tallies.get(hit.row);
            own.into_iter().for_each(Tally::approach);
            self.index.add_uses(displaced);
        }
    }

    /// Notes that a successor was used whose first use is not recorded. Call it after counting the
    /// use. The Release store pairs with the swap in [`Index::unrecorded`], so a maintenance run
    /// that takes the note sees the count.
    #[inline]
    pub(crate) fn note_first_use(&self) {
        self.index.first_used.store(true, Ordering::Release);
    }

    /// Counts a use of a key that was read from the store.
    pub(crate) fn count_id(&self, id: KeyId, now: Timestamp) {
        if let Some(row) = self.row_of(id) {
            let (uses, last) = (1, second_of(now));
            self.index.add_uses(Counted { row, uses, last });
        }
    }

    /// Returns how often a key was used, as far as this index knows, and the second of the last
    /// use.
    pub(crate) fn uses(&self, id: KeyId) -> Option<(u64, u32)> {
        self.index.settle_uses();
        Some(self.index.tallies.get(self.row_of(id)?)?.uses())
    }

    /// Returns the keys among `keys` that were used, as far as this index knows.
    pub(crate) fn used_of(&self, keys: &[KeyId]) -> BTreeSet<KeyId> {
        self.index.settle_uses();
        let used = |key: &KeyId| {
            let tally = self
                .row_of(*key)
                .and_then(|row| self.index.tallies.get(row));
            tally.is_some_and(|tally| tally.uses().0 > 0)
        };
        keys.iter().copied().filter(used).collect()
    }

    /// Returns the successors that were used and whose first use is not recorded. Takes one key of
    /// each tenant in turn, so that no tenant waits for all keys of another.
    pub(crate) fn first_uses(&self) -> Vec<(TenantId, KeyId)> {
        let mut used = BTreeMap::<_, Vec<_>>::new();
        for (row, ..) in self.index.unrecorded() {
            let id = self.index.rows.get(row).map(Row::id);
            let facts = id.and_then(|id| Some((id, self.facts_of(id)?)));
            if let Some((id, facts)) = facts {
                let tenant = facts.holder.get().tenant.clone();
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

    /// Adds the first uses that another index counted after its uses were inherited.
    pub(super) fn inherit_first_uses(&self, of: &Index) {
        for (row, uses, last) in of.unrecorded() {
            let own = of.rows.get(row).and_then(|row| self.row_of(row.id()));
            let own = own.and_then(|row| self.index.tallies.get(row));
            if let Some(own) = own.filter(|own| own.uses().0 == 0) {
                own.count(uses, last);
                self.note_first_use();
            }
        }
    }

    /// Adds the uses that another index counted.
    pub(super) fn inherit_uses(&self, of: &Index) {
        self.note_first_use();
        of.settle_uses();
        let rows = 1..=of.count.load(Ordering::Acquire);
        for (row, old) in rows.filter_map(|row| Some((row, of.rows.get(row)?))) {
            if let Some((uses, last)) = of.tallies.get(row).map(Tally::uses)
                && uses > 0
                && let Some(row) = self.row_of(old.id())
                && let Some(own) = self.index.tallies.get(row)
            {
                own.count(uses, last);
            }
        }
    }

    /// Returns the key that a slot leads to. `id` is set if the slot was found by id.
    #[inline]
    fn hit(&self, found: Found, id: Option<KeyId>) -> Answer {
        let Found { row, value } = found;
        if let Some(id) = id.filter(|_| value.until != SlotValue::ASK) {
            return Answer::Hit(Hit {
                id,
                row,
                parts: value.parts,
                course: Course {
                    life: Life::Enabled,
                    // A caller that needs the time of creation reads the row.
                    created_at: Timestamp::MAX,
                    expires_at: value.end(),
                    awaits_first_use: false,
                },
                exact: false,
            });
        }
        let Some(stands) = self.index.rows.get(row) else {
            return Answer::Unknown;
        };
        let Content { key, parts, .. } = stands.read();
        let id = stands.id();
        match key {
            Kept::Known(course) => Answer::Hit(Hit {
                id,
                row,
                parts,
                course,
                exact: true,
            }),
            Kept::Removed => Answer::Removed,
            Kept::Corrupt => Answer::Corrupt(id),
        }
    }
}

/// Returns the half by which an imported key is found: half of a digest *of* its digest. An
/// importer may choose any digest, also one that shares a half with another key's. Nobody can
/// choose the digest of a digest.
fn half_of_import(digest: &Digest) -> Half {
    Half::of(Digest::sha256(digest.as_bytes()).as_bytes())
}

/// Returns the second since the epoch, capped at `u32::MAX`.
fn second_of(at: Timestamp) -> u32 {
    u32::try_from(at.as_micros() / 1_000_000).unwrap_or(u32::MAX)
}

impl Hit {
    pub(crate) const fn row(&self) -> u32 {
        self.row
    }
}

impl SlotValue {
    /// Returns the slot's value for a key with this course.
    fn of(course: &Course, imported: bool, parts: Parts) -> Self {
        let plain = course.life == Life::Enabled && !course.awaits_first_use && !imported;
        let until = match course.expires_at {
            _ if !plain => Self::ASK,
            None => Self::NEVER,
            // The row decides in the hour in which the key ends, and after the last hour that fits
            // in the word.
            Some(end) => {
                let hour = end.as_micros() / (Self::HOUR * 1_000_000);
                u32::try_from(hour).map_or(Self::NEVER - 1, |hour| hour.min(Self::NEVER - 1))
            }
        };
        Self { until, parts }
    }

    fn end(self) -> Option<Timestamp> {
        let micros = i64::from(self.until) * Self::HOUR * 1_000_000;
        (self.until != Self::NEVER)
            .then(|| Timestamp::from_micros(micros).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl Index {
    /// Returns the number of keys that have a row, removed ones included.
    pub(super) fn keys(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns whether any key was imported, so that a string that is not one of our tokens may
    /// still be a key.
    pub(crate) fn has_imported(&self) -> bool {
        self.imported.load(Ordering::Acquire) > 0
    }

    /// Returns the newest instant of any tenant, as far as this index knows.
    #[inline]
    pub(crate) fn newest(&self) -> Timestamp {
        self.floors.newest()
    }

    /// Returns the newest instant of one tenant, as far as this index knows.
    #[cold]
    pub(crate) fn floor(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.floors.at(tenant)
    }

    /// Returns the tenants whose newest instant is later than `than`.
    pub(crate) fn later(&self, than: Timestamp) -> Vec<(TenantId, Timestamp)> {
        self.floors.later(than)
    }

    /// Records when a row was written, and the time repair of a tenant's row.
    fn note_instant(&self, revision: Revision, row: &StoreRow) {
        let Some((tenant, at)) = row.written_at() else {
            return;
        };
        if let StoreRow::Tenant(TenantRecord {
            time_repair: Some(repair),
            ..
        }) = row
        {
            self.floors.repaired(tenant, *repair, (at, revision));
        }
        self.floors.saw(tenant, at, revision);
    }

    /// Notes that every row with a revision up to `base` has been applied.
    pub(super) fn filled(&self, base: Revision) {
        self.base.store(base.0, Ordering::Release);
    }

    /// Returns whether a new directory should be published, because many segments were replaced.
    /// Until it is published, the old and the new segments are both kept.
    pub(super) fn wants_view(&self) -> bool {
        let writer = self.writer();
        writer.table.replaced() > 8 + writer.table.segments() / 8
    }

    /// Applies rows that are newer than the known rows. One writer at a time.
    pub(super) fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let mut writer = self.writer();
        let writer = &mut *writer;
        let base = Revision(self.base.load(Ordering::Acquire));
        for Change { revision, row } in changes {
            self.note_instant(revision, &row);
            let ledger = &mut writer.ledger;
            match row {
                StoreRow::Tenant(row) => {
                    ledger.take_tenant(&self.shared, revision, &row.tenant, Some(&row));
                }
                StoreRow::Owner(row) => {
                    let place = (row.tenant.clone(), row.owner.clone());
                    ledger.take_owner(&self.shared, revision, place, Some(&row));
                }
                StoreRow::Corrupt(RowKey::Tenant(tenant)) => {
                    ledger.take_tenant(&self.shared, revision, &tenant, None);
                }
                StoreRow::Corrupt(RowKey::Owner(tenant, owner)) => {
                    ledger.take_owner(&self.shared, revision, (tenant, owner), None);
                }
                StoreRow::Key(record) => self.put(writer, revision, base, &record),
                StoreRow::Removed { key, .. } => {
                    self.withdraw(writer, revision, base, key, Kept::Removed);
                }
                StoreRow::Corrupt(RowKey::Key(key)) => {
                    self.withdraw(writer, revision, base, key, Kept::Corrupt);
                }
            }
        }
    }

    fn put(&self, writer: &mut Writer, revision: Revision, base: Revision, record: &KeyRecord) {
        let (id, course) = (record.id, Course::of(record));
        let hash = self.hash_of_id(id);
        let known = self.row_of(&writer.table, hash, id);
        if self.is_stale(known, revision, base) {
            return;
        }
        let (half, imported) = match &record.credential {
            Credential::Peppered { digest, .. } => (Half::of(digest.as_bytes()), None),
            Credential::Imported { digest, .. } => (Half::NONE, Some(*digest)),
        };
        let parts = writer.ledger.parts(&self.shared, record);
        let value = SlotValue::of(&course, imported.is_some(), parts);
        let content = Content {
            revision,
            key: Kept::Known(course),
            parts,
        };
        let awaits = course.awaits_first_use;
        let row = match known {
            Some(row) => {
                let place = self.rows.at(row);
                if writer.table.has(hash, row, half) {
                    place.write(content);
                    writer.table.set_value(hash, row, value);
                } else {
                    // The row is written after the new slot exists: a reader that finds the new
                    // pepper in the row finds the key under it.
                    let publish = || place.write(content);
                    writer.table.replace(hash, row, half, value, publish);
                }
                row
            }
            None => self.add(writer, hash, id, content, (half, value)),
        };
        if awaits {
            writer.unused.insert(row);
        } else {
            writer.unused.remove(&row);
        }
        if let Some(digest) = imported {
            let half = half_of_import(&digest);
            let hash = self.hash_of_half(half);
            if !writer.table.has(hash, row, half) {
                writer.table.insert(hash, row, half, value);
                self.imported.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Makes the index reject a key from now on, known or not.
    fn withdraw(
        &self,
        writer: &mut Writer,
        revision: Revision,
        base: Revision,
        id: KeyId,
        key: Kept,
    ) {
        let hash = self.hash_of_id(id);
        let known = self.row_of(&writer.table, hash, id);
        // A removal is final, so a removal from before the scan is recorded too, even though the
        // scan did not return the key.
        let is_news = known.is_none() && key == Kept::Removed;
        if !is_news && self.is_stale(known, revision, base) {
            return;
        }
        let value = SlotValue::ROW;
        let content = Content {
            revision,
            key,
            parts: value.parts,
        };
        match known {
            Some(row) => {
                self.rows.at(row).write(content);
                writer.table.set_value(hash, row, value);
                writer.unused.remove(&row);
            }
            None => {
                self.add(writer, hash, id, content, (Half::NONE, value));
            }
        }
    }

    fn add(
        &self,
        writer: &mut Writer,
        hash: Hash,
        id: KeyId,
        content: Content,
        (half, value): (Half, SlotValue),
    ) -> u32 {
        // Numbers start at 1: row 0 means no row.
        writer.rows += 1;
        self.count.store(writer.rows, Ordering::Relaxed);
        self.tallies.at(writer.rows);
        let row = self.rows.at(writer.rows);
        row.name(id);
        row.write(content);
        writer.table.insert(hash, writer.rows, half, value);
        writer.rows
    }

    fn is_stale(&self, known: Option<u32>, revision: Revision, base: Revision) -> bool {
        match known {
            Some(row) => self.rows.at(row).read().revision >= revision,
            // The scan did not return this key: the key had been removed, and its tombstone
            // compacted. A change read before the scan must not bring it back.
            None => revision <= base,
        }
    }

    fn row_of(&self, table: &Table, hash: Hash, id: KeyId) -> Option<u32> {
        let own = |found: &Found| self.rows.at(found.row).id() == id;
        table.named(hash).find(own).map(|found| found.row)
    }

    /// Does the same work for an unknown id as for a known id, so that timing does not reveal
    /// whether the id is known (trap 6).
    fn look_at_any_facts(&self, id: KeyId) {
        let any = self.shared.any(id.to_u128() as u32);
        std::hint::black_box(self.shared.facts(any).map(|facts| facts.standing_id));
    }

    /// Returns the rows of successors that were used and whose first use is not recorded, each with
    /// its number of uses and the second of the last use.
    fn unrecorded(&self) -> Vec<(u32, u64, u32)> {
        // Many successors may be unused; they are visited only after some successor was used.
        if !self.first_used.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        self.settle_uses();
        let uses = |row: &u32| {
            let (uses, last) = self.tallies.get(*row)?.uses();
            (uses > 0).then_some((*row, uses, last))
        };
        let found: Vec<_> = self.writer().unused.iter().filter_map(uses).collect();
        // The note stays until a commit has recorded the uses.
        if !found.is_empty() {
            self.first_used.store(true, Ordering::Release);
        }
        found
    }

    fn settle_uses(&self) {
        self.uses.take().for_each(|counted| self.add_uses(counted));
    }

    fn add_uses(&self, counted: Counted) {
        if let Some(tally) = self.tallies.get(counted.row) {
            tally.count(counted.uses.into(), counted.last);
        }
    }

    #[inline]
    fn hash_of_id(&self, id: KeyId) -> Hash {
        self.hashing.of(id.to_u128())
    }

    fn hash_of_half(&self, half: Half) -> Hash {
        self.hashing.of(half.to_u128())
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(keyward_loom)]
mod under_loom;
