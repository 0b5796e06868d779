//! The attributes that keys share: traits (settings that many keys have in common), key owners (a tenant and
//! an owner), and owner statuses. Lowering a role changes one entry, which immediately narrows all keys of
//! that owner.
//!
//! Readers take no lock, so no entry is removed while its index exists. A copy of the index leaves out the
//! entries that no key uses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};

use super::chunks::Chunks;
use super::status_ids::{FIT_IN_SLOT, StatusIds};
use crate::core::owner::{OwnerRecord, OwnerStatus, TenantRecord};
use crate::core::principal::Owner;
use crate::core::record::KeyRecord;
use crate::core::subject::{KeyOwner, KeyTraits, OwnerSource};
use crate::core::tenant::TenantId;
use crate::core::text::{PepperId, PrincipalId, Role};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// The tables that readers use. Entries are added, and never removed.
#[derive(Default)]
pub(crate) struct AttributeTables {
    traits: Chunks<OnceLock<Arc<KeyTraits>>>,
    key_owners: Chunks<OnceLock<Arc<KeyOwner>>>,
    /// For each key owner, the index in `statuses` of the owner's current status. Changing this index narrows
    /// all keys of the owner. Slots have copies.
    status_ids: StatusIds,
    statuses: Chunks<OnceLock<Arc<InternedStatus>>>,
    /// The rows of tenants that have a parent. A key of an ancestor tenant may act in such a tenant, and
    /// these rows then limit that key too.
    descendants: RwLock<DescendantRows>,
}

/// Owner and tenant rows of tenants that have a parent. Only verifications for another tenant than the key's
/// own read these rows.
#[derive(Clone, Default)]
struct DescendantRows {
    owners: HashMap<KeyOwner, DescendantOwner>,
    /// Tenants that are closed, or whose row is unreadable.
    tenants: HashMap<TenantId, Tenancy>,
    unfinished: BTreeSet<TenantId>,
}

/// The row of an owner in a tenant that has a parent. `Known` holds the owner's role, the time of the owner's
/// removal, and the lower roles that the row had earlier. The role is `None` if the owner was removed.
#[derive(Clone)]
enum DescendantOwner {
    Unreadable,
    Known(Option<Role>, Option<Timestamp>, BTreeSet<Role>),
}

/// An owner status that is stored once, for all key owners that have it.
#[derive(Eq, Hash, PartialEq)]
struct InternedStatus {
    /// True if the owner is a principal. A principal without a role can do nothing with its keys. A key that
    /// a tenant owns needs no role.
    persons: bool,
    status: OwnerStatus,
}

const NONE: u32 = u32::MAX;

/// 256 bytes: the approximate size of a key owner's entries in all tables.
const KEY_OWNER_SIZE: usize = 256;
/// 192 bytes: the approximate size of an owner status with its entries.
const STATUS_SIZE: usize = 192;

/// The indices of a key's shared entries in [`AttributeTables`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct AttributeIds {
    pub(crate) key_owner: u32,
    pub(crate) traits: u32,
    /// A copy of the number of the owner's status, which may have changed. `None` in the ids of a row, and in those of a
    /// slot if the number does not fit.
    pub(super) status: Option<u32>,
}

/// The attributes of one key, as they were at one instant.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub(crate) traits: &'a KeyTraits,
    pub(crate) key_owner: OwnerRef<'a>,
    pub(crate) persons: bool,
    pub(crate) status: &'a OwnerStatus,
    /// The index of `status` in `AttributeTables::statuses`. A caller keeps this index to find the same
    /// status again later. A principal and a tenant never share an entry.
    pub(crate) status_id: u32,
}

/// A key owner, either as a reference or as an index to look up later. Most verifications do not need the
/// owner. With an index, they do not read the owner's memory.
#[derive(Clone, Copy)]
pub(crate) enum OwnerRef<'a> {
    Direct(&'a KeyOwner),
    Numbered(&'a AttributeTables, u32),
}

impl<'a> OwnerRef<'a> {
    pub(crate) fn get(self) -> &'a KeyOwner {
        match self {
            Self::Direct(key_owner) => key_owner,
            Self::Numbered(tables, number) => {
                let key_owner = tables.key_owners.get(number).and_then(OnceLock::get);
                key_owner.expect(
                    "a key is published after its owner entry, and owner entries are never removed",
                )
            }
        }
    }
}

impl OwnerSource for OwnerRef<'_> {
    fn key_owner(&self) -> &KeyOwner {
        self.get()
    }
}

impl AttributeTables {
    pub(super) fn status_in(
        &self,
        attributes: &Attributes<'_>,
        tenant: &TenantId,
    ) -> Option<OwnerStatus> {
        let home = attributes.key_owner.get();
        if home.tenant == *tenant || !home.tenant.contains(tenant) {
            return None;
        }
        let descendants = self
            .descendants
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let (mut rows, mut closed, mut unreadable) = (Vec::new(), false, false);
        let mut raised = Vec::new();
        for path in tenant.lineage().take_while(|path| *path != home.tenant) {
            match descendants.tenants.get(&path) {
                Some(Tenancy::Closed) => closed = true,
                Some(Tenancy::Unreadable) => unreadable = true,
                Some(Tenancy::Open) | None => {}
            }
            let owner = home.owner.clone();
            let key_owner = KeyOwner {
                tenant: path,
                owner,
            };
            match descendants.owners.get(&key_owner) {
                Some(DescendantOwner::Unreadable) => unreadable = true,
                Some(DescendantOwner::Known(role, removed_at, raised_from)) => {
                    rows.push((role.as_ref(), *removed_at));
                    raised.extend(raised_from.iter().cloned());
                }
                None => {}
            }
        }
        let mut lower = OwnerStatus {
            unreadable,
            ..OwnerStatus::of(rows, closed)
        };
        if !attributes.traits.bound.is_empty() {
            lower.roles.extend(raised);
        }
        attributes.status.and_further(&lower)
    }

    /// Returns the pepper of the traits with this number. `None` if their keys were imported.
    pub(super) fn pepper_of(&self, traits: u32) -> Option<&PepperId> {
        let traits = self.traits.get(traits)?.get()?;
        traits.pepper.as_ref()
    }

    pub(super) fn unfinished(&self) -> Vec<TenantId> {
        let descendants = self
            .descendants
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        descendants.unfinished.iter().cloned().collect()
    }

    fn write_descendants(&self) -> RwLockWriteGuard<'_, DescendantRows> {
        self.descendants
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current attributes for these ids.
    #[inline]
    pub(super) fn attributes(&self, attribute_ids: AttributeIds) -> Option<Attributes<'_>> {
        let status = self.status_id(attribute_ids)?;
        self.attributes_with(attribute_ids, status)
    }

    /// Returns the number of the current status of the key owner.
    #[inline]
    pub(super) fn status_id(&self, attribute_ids: AttributeIds) -> Option<u32> {
        let AttributeIds {
            key_owner, status, ..
        } = attribute_ids;
        self.status_ids.get(key_owner, status)
    }

    /// Returns the number of a key owner's current status.
    pub(super) fn current_status(&self, key_owner: u32) -> Option<u32> {
        self.status_ids.get(key_owner, None)
    }

    /// Returns the number of owners whose status has changed, so that slots may have old copies.
    pub(super) fn changed_statuses(&self) -> u32 {
        self.status_ids.changed()
    }

    /// Returns the traits with this number.
    #[inline]
    pub(super) fn traits(&self, number: u32) -> Option<&KeyTraits> {
        self.traits.get(number)?.get().map(|traits| &**traits)
    }

    /// Returns the attributes for these ids, but with the owner status that an earlier read returned instead
    /// of the current one.
    #[inline]
    pub(super) fn attributes_with(
        &self,
        attribute_ids: AttributeIds,
        status_id: u32,
    ) -> Option<Attributes<'_>> {
        let interned = self.statuses.get(status_id)?.get()?;
        Some(Attributes {
            traits: self.traits.get(attribute_ids.traits)?.get()?,
            key_owner: OwnerRef::Numbered(self, attribute_ids.key_owner),
            persons: interned.persons,
            status: &interned.status,
            status_id,
        })
    }
}

/// The writer's state: the index of each entry in [`AttributeTables`], and the rows from which the writer
/// derives owner statuses.
#[derive(Default)]
pub(super) struct AttributeWriter {
    traits: HashMap<Arc<KeyTraits>, u32>,
    last_traits: u32,
    key_owners: HashMap<Arc<KeyOwner>, u32>,
    statuses: HashMap<Arc<InternedStatus>, u32>,
    /// The number of statuses that have the numbers below [`FIT_IN_SLOT`].
    common: u32,
    /// The state of each key owner, at the owner's index in [`AttributeTables::key_owners`].
    owner_states: Vec<KeyOwnerState>,
    /// The tenants by name. Sorted, so that applying a tenant's row visits only the tenant and its
    /// descendants.
    tenants: BTreeMap<TenantId, TenantState>,
    /// The approximate size of all entries in bytes, including those that no key uses any more.
    size: usize,
    /// The number of tenants and key owners that rows have visited. A row visits those at or below its tenant.
    #[cfg(test)]
    pub(super) visited: usize,
}

/// The numbers in a new index of the entries of an old one.
#[derive(Default)]
pub(super) struct CarriedIds {
    traits: HashMap<u32, u32>,
    key_owners: HashMap<u32, u32>,
}

/// The writer's state for one key owner.
struct KeyOwnerState {
    /// Set once the owner has keys in this tenant. An entry without keys has no status, and only connects entries of
    /// the same principal in other tenants.
    linked: bool,
    /// Set once the parent tenant's entry for the same principal lists this entry in `below`.
    attached: bool,
    /// The first entry of a linked list, or [`NONE`]. The list contains the same principal's entries in child
    /// tenants, if the principal has keys in the child tenant or below it.
    ///
    /// A change of an owner's row follows these lists downwards. So it visits no other owner, and no tenant
    /// outside the row's tenant.
    below: u32,
    /// The next entry in the parent entry's `below` list, or [`NONE`] at the end of the list.
    beside: u32,
    /// The next owner with keys in the same tenant, or [`NONE`] at the end of the list.
    next_in_tenant: u32,
    row: Option<(Revision, OwnerRow)>,
}

/// The part of an owner's row that decides about keys.
#[derive(Clone, Eq, PartialEq)]
enum OwnerRow {
    Unreadable,
    Readable {
        /// `None` if the owner was removed.
        role: Option<Role>,
        removed_at: Option<Timestamp>,
    },
}

/// The writer's state for one tenant.
struct TenantState {
    /// The revision of the tenant's row. Zero if the index has received no row of the tenant.
    revision: Revision,
    tenancy: Tenancy,
    /// The first owner that has keys in the tenant, or [`NONE`] if no owner has.
    first_owner: u32,
}

impl Default for TenantState {
    fn default() -> Self {
        Self {
            revision: Revision::ZERO,
            tenancy: Tenancy::Open,
            first_owner: NONE,
        }
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Tenancy {
    Open,
    Closed,
    Unreadable,
}

impl AttributeWriter {
    /// Returns the indices of a key's owner and traits. Adds an entry to the tables for each of them that is
    /// missing.
    pub(super) fn ids_of(&mut self, tables: &AttributeTables, record: &KeyRecord) -> AttributeIds {
        let traits = self.traits(tables, record);
        let key_owner = self.key_owner(tables, KeyOwner::of(record));
        self.link(tables, key_owner);
        AttributeIds {
            key_owner,
            traits,
            status: tables.current_status(key_owner),
        }
    }

    fn traits(&mut self, tables: &AttributeTables, record: &KeyRecord) -> u32 {
        let last = tables.traits.get(self.last_traits).and_then(OnceLock::get);
        if last.is_none_or(|last| !last.is_of(record)) {
            let new = number(self.traits.len());
            let size = &mut self.size;
            self.last_traits = intern(&mut self.traits, KeyTraits::of(record), |traits| {
                *size += size_of(&traits);
                tables.traits.at(new).get_or_init(|| traits);
            });
        }
        self.last_traits
    }

    /// Forgets which statuses have changed. Before any reader gets the index, the caller must write the current numbers
    /// to all slots.
    pub(super) fn forget_changes(&self, tables: &AttributeTables) {
        tables
            .status_ids
            .forget_changes(number(self.owner_states.len()));
    }

    /// Returns the approximate size of all entries in bytes, including those that no key uses any more.
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// Returns a copy of the rows of tenants and owners, with empty tables of what keys share. Call
    /// [`carry`](Self::carry) for each key.
    pub(super) fn without_keys(&self, from: &AttributeTables, tables: &AttributeTables) -> Self {
        let mut copy = Self::default();
        let known = self.tenants.iter();
        let known = known.filter(|(_, own)| own.revision > Revision::ZERO);
        copy.tenants = known
            .map(|(tenant, own)| {
                let first_owner = NONE;
                (
                    tenant.clone(),
                    TenantState {
                        first_owner,
                        ..*own
                    },
                )
            })
            .collect();
        for (number, state) in (0..).zip(&self.owner_states) {
            let place = from.key_owners.get(number).and_then(OnceLock::get);
            if let (Some(place), Some(row)) = (place, &state.row) {
                let own = copy.key_owner(tables, KeyOwner::clone(place));
                copy.owner_states[own as usize].row = Some(row.clone());
            }
        }
        let descendants = from
            .descendants
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        tables.write_descendants().clone_from(&descendants);
        copy
    }

    /// Adds the entries of a key of another index. `known` holds the new ids of entries that were added before.
    /// Returns `None` if the other index lacks an entry.
    pub(super) fn carry(
        &mut self,
        tables: &AttributeTables,
        (from, known): (&AttributeTables, &mut CarriedIds),
        ids: AttributeIds,
    ) -> Option<AttributeIds> {
        let traits = match known.traits.get(&ids.traits) {
            Some(own) => *own,
            None => {
                let traits = from.traits.get(ids.traits)?.get()?;
                let own = number(self.traits.len());
                self.size += size_of(traits);
                tables.traits.at(own).get_or_init(|| traits.clone());
                self.traits.insert(traits.clone(), own);
                known.traits.insert(ids.traits, own);
                own
            }
        };
        let key_owner = match known.key_owners.get(&ids.key_owner) {
            Some(own) => *own,
            None => {
                let place = from.key_owners.get(ids.key_owner)?.get()?;
                let own = self.key_owner(tables, KeyOwner::clone(place));
                self.link(tables, own);
                known.key_owners.insert(ids.key_owner, own);
                own
            }
        };
        Some(AttributeIds {
            key_owner,
            traits,
            status: tables.current_status(key_owner),
        })
    }

    /// Applies the row of an owner; `None` if the row is unreadable.
    pub(super) fn apply_owner(
        &mut self,
        tables: &AttributeTables,
        revision: Revision,
        (tenant, owner): (TenantId, PrincipalId),
        row: Option<&OwnerRecord>,
    ) {
        let place = KeyOwner {
            tenant,
            owner: Owner::Principal(owner),
        };
        let key_owner = self.key_owner(tables, place.clone());
        let state = &mut self.owner_states[key_owner as usize];
        if state.row.as_ref().is_some_and(|(own, _)| *own >= revision) {
            return;
        }
        let new = row.map_or(OwnerRow::Unreadable, |row| OwnerRow::Readable {
            role: row.role.clone(),
            removed_at: row.removed_at,
        });
        let changed = state.row.as_ref().is_none_or(|(_, known)| *known != new);
        state.row = Some((revision, new));
        if !is_top(&place.tenant) {
            let descendant = row.map_or(DescendantOwner::Unreadable, |row| {
                DescendantOwner::Known(row.role.clone(), row.removed_at, row.raised_from.clone())
            });
            tables.write_descendants().owners.insert(place, descendant);
        }
        if changed {
            self.recompute_below(tables, key_owner);
        }
    }

    /// Recomputes the status of a principal in one tenant, and in each descendant of the tenant in which the
    /// principal has keys.
    fn recompute_below(&mut self, tables: &AttributeTables, key_owner: u32) {
        let mut pending = vec![key_owner];
        while let Some(key_owner) = pending.pop() {
            self.visit();
            self.recompute_status(tables, key_owner);
            let mut next = self.owner_states[key_owner as usize].below;
            while next != NONE {
                pending.push(next);
                next = self.owner_states[next as usize].beside;
            }
        }
    }

    /// Applies the row of a tenant. `row` is `None` if the stored row is unreadable.
    pub(super) fn apply_tenant(
        &mut self,
        tables: &AttributeTables,
        revision: Revision,
        tenant: &TenantId,
        row: Option<&TenantRecord>,
    ) {
        let known = self.tenants.entry(tenant.clone()).or_default();
        if known.revision >= revision {
            return;
        }
        let tenancy = match row {
            None => Tenancy::Unreadable,
            Some(row) if row.closed.is_some() => Tenancy::Closed,
            Some(_) => Tenancy::Open,
        };
        let before = std::mem::replace(&mut known.tenancy, tenancy);
        known.revision = revision;
        let unfinished = row.is_some_and(|row| !row.sweeps.is_empty());
        let mut descendants = tables.write_descendants();
        if unfinished {
            descendants.unfinished.insert(tenant.clone());
        } else {
            descendants.unfinished.remove(tenant);
        }
        if tenancy != Tenancy::Open && !is_top(tenant) {
            descendants.tenants.insert(tenant.clone(), tenancy);
        } else {
            descendants.tenants.remove(tenant);
        }
        drop(descendants);
        if before == tenancy {
            return;
        }
        let below = tenant.range_in(&self.tenants);
        for first in below.map(|(_, own)| own.first_owner).collect::<Vec<_>>() {
            self.visit();
            let mut next = first;
            while next != NONE {
                self.visit();
                self.recompute_status(tables, next);
                next = self.owner_states[next as usize].next_in_tenant;
            }
        }
    }

    #[inline]
    fn visit(&mut self) {
        #[cfg(test)]
        {
            self.visited += 1;
        }
    }

    fn key_owner(&mut self, tables: &AttributeTables, key_owner: KeyOwner) -> u32 {
        if let Some(known) = self.key_owners.get(&key_owner) {
            return *known;
        }
        let key_owner = KeyOwner {
            tenant: stored_copy(&self.tenants, key_owner.tenant),
            owner: key_owner.owner,
        };
        let new = number(self.key_owners.len());
        self.owner_states.push(KeyOwnerState {
            linked: false,
            attached: false,
            below: NONE,
            beside: NONE,
            next_in_tenant: NONE,
            row: None,
        });
        self.size += KEY_OWNER_SIZE;
        intern(&mut self.key_owners, key_owner, |key_owner| {
            tables.key_owners.at(new).get_or_init(|| key_owner);
        })
    }

    /// Adds a key owner to the lists that a change of a tenant's or an owner's row follows. Called once the
    /// owner has keys. An owner without keys is in no list, because a principal may have such entries in many
    /// tenants.
    fn link(&mut self, tables: &AttributeTables, entry: u32) {
        if self.owner_states[entry as usize].linked {
            return;
        }
        let Some(key_owner) = tables.key_owners.at(entry).get() else {
            return;
        };
        self.attach(tables, entry, key_owner);
        let tenant = self.tenants.entry(key_owner.tenant.clone()).or_default();
        let next = std::mem::replace(&mut tenant.first_owner, entry);
        let state = &mut self.owner_states[entry as usize];
        state.next_in_tenant = next;
        state.linked = true;
        self.recompute_status(tables, entry);
    }

    /// Adds a principal's entry to the `below` list of the same principal's entry in the parent tenant. Then
    /// adds that entry to the list of its own parent, and so on up to the root tenant.
    fn attach(&mut self, tables: &AttributeTables, entry: u32, key_owner: &KeyOwner) {
        if key_owner.owner.principal().is_none() {
            return;
        }
        let mut below = entry as usize;
        for tenant in key_owner.tenant.ancestors() {
            if std::mem::replace(&mut self.owner_states[below].attached, true) {
                return;
            }
            let owner = key_owner.owner.clone();
            let above = self.key_owner(tables, KeyOwner { tenant, owner }) as usize;
            let first = number(below);
            self.owner_states[below].beside =
                std::mem::replace(&mut self.owner_states[above].below, first);
            below = above;
        }
    }

    /// Recomputes the status of a key owner. Does nothing if the owner has no keys.
    fn recompute_status(&mut self, tables: &AttributeTables, key_owner: u32) {
        let linked = self.owner_states[key_owner as usize].linked;
        if let Some(place) = tables.key_owners.at(key_owner).get().filter(|_| linked) {
            let status = self.status(tables, place);
            tables.status_ids.set(key_owner, status);
        }
    }

    /// Returns the index in `statuses` of the owner's status, which this method derives from the rows
    /// received so far.
    fn status(&mut self, tables: &AttributeTables, key_owner: &KeyOwner) -> u32 {
        let interned = InternedStatus {
            persons: key_owner.is_person(),
            status: self.resolve(key_owner),
        };
        // Few statuses contain no instant. They get the numbers that fit in a slot.
        let is_common = interned.status.removed_at.is_none() && self.common < FIT_IN_SLOT;
        let new = match is_common {
            true => self.common,
            false => FIT_IN_SLOT.saturating_add(number(self.statuses.len()) - self.common),
        };
        if let Some(known) = self.statuses.get(&interned) {
            return *known;
        }
        self.size += STATUS_SIZE;
        let interned = Arc::new(interned);
        tables.statuses.at(new).get_or_init(|| interned.clone());
        self.statuses.insert(interned, new);
        self.common += u32::from(is_common);
        new
    }

    fn resolve(&self, key_owner: &KeyOwner) -> OwnerStatus {
        let mut unreadable = false;
        let mut rows = Vec::new();
        for tenant in key_owner
            .tenant
            .lineage()
            .filter(|_| key_owner.owner.principal().is_some())
        {
            let owner = key_owner.owner.clone();
            let number = self.key_owners.get(&KeyOwner { tenant, owner });
            let state = number.and_then(|number| self.owner_states.get(*number as usize));
            match state.and_then(|state| state.row.as_ref()) {
                Some((_, OwnerRow::Unreadable)) => unreadable = true,
                Some((_, OwnerRow::Readable { role, removed_at })) => {
                    rows.push((role.as_ref(), *removed_at));
                }
                None => {}
            }
        }
        let mut closed = false;
        for path in key_owner.tenant.paths() {
            match self.tenants.get(path).map(|own| own.tenancy) {
                Some(Tenancy::Unreadable) => unreadable = true,
                Some(Tenancy::Closed) => closed = true,
                Some(Tenancy::Open) | None => {}
            }
        }
        OwnerStatus {
            unreadable,
            ..OwnerStatus::of(rows, closed)
        }
    }
}

/// Returns the index of `item`. If the item is new, calls `publish` first. So readers find the item in its
/// table before any reader can see its index.
fn intern<T: Eq + Hash>(
    numbers: &mut HashMap<Arc<T>, u32>,
    item: T,
    publish: impl FnOnce(Arc<T>),
) -> u32 {
    if let Some(known) = numbers.get(&item) {
        return *known;
    }
    let (item, new) = (Arc::new(item), number(numbers.len()));
    publish(item.clone());
    numbers.insert(item, new);
    new
}

fn is_top(tenant: &TenantId) -> bool {
    tenant.ancestors().next().is_none()
}

/// Returns the map's own copy of `key` if the map contains the key. So the text of the key is stored only
/// once.
fn stored_copy<K: Clone + Ord, V>(map: &BTreeMap<K, V>, key: K) -> K {
    match map.get_key_value(&key) {
        Some((own, _)) => own.clone(),
        None => key,
    }
}

/// Returns the approximate size of traits with their entries, in bytes.
fn size_of(traits: &KeyTraits) -> usize {
    /// 96 bytes: the approximate size of an item in a set, besides its text.
    const ITEM: usize = 96;
    let scopes = traits
        .scopes
        .iter()
        .map(|scope| ITEM + scope.as_str().len());
    let items = traits.bound.len() + traits.allowlist.iter().len();
    std::mem::size_of::<KeyTraits>() + scopes.sum::<usize>() + ITEM * (items + 1)
}

/// Converts an index to 32 bits. Memory runs out long before 2³² entries exist.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(NONE)
}
