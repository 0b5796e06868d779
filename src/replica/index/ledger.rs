//! The data that keys share: shapes (settings that many keys have in common), holders (a tenant and an
//! owner), and standings (the status of a holder's owner). Lowering a role changes one entry, which
//! immediately narrows all keys of the holder.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};

use super::chunks::Chunks;
use crate::core::owner::{OwnerRecord, OwnerStatus, TenantRecord};
use crate::core::principal::Owner;
use crate::core::record::KeyRecord;
use crate::core::subject::{Holder, Shape, Whose};
use crate::core::tenant::TenantId;
use crate::core::text::{PrincipalId, Role};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// The readers' side. Entries are added and never removed.
#[derive(Default)]
pub(crate) struct Shared {
    shapes: Chunks<OnceLock<Arc<Shape>>>,
    holders: Chunks<OnceLock<Arc<Holder>>>,
    /// The number of each holder's current standing. One change narrows all keys of the holder. Stored apart
    /// from the holders, so that the entries of many holders share a cache line.
    stands: Chunks<AtomicU32>,
    standings: Chunks<OnceLock<Arc<Stand>>>,
    /// The number of holders.
    count: AtomicU32,
    /// Rows of descendant tenants. They apply to keys of ancestor tenants that reach down.
    below: RwLock<Below>,
}

/// Rows of descendant tenants. Read only by verifications for a tenant other than the key's own.
#[derive(Default)]
struct Below {
    owners: HashMap<Holder, OwnerSays>,
    /// Tenants that are closed, or whose row is unreadable.
    tenants: HashMap<TenantId, Tenancy>,
    unfinished: BTreeSet<TenantId>,
}

/// The row of an owner. The role is `None` if the owner was removed.
#[derive(Clone)]
enum OwnerSays {
    Unreadable,
    Stands(Option<Role>, Option<Timestamp>, BTreeSet<Role>),
}

/// A standing, for either kind of holder.
#[derive(Eq, Hash, PartialEq)]
struct Stand {
    /// True if the holder is a person. A person's keys reach nothing without a role. A tenant's own keys need
    /// no role.
    persons: bool,
    standing: OwnerStatus,
}

const NONE: u32 = u32::MAX;

/// The numbers of the entries that a key shares with others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Parts {
    pub(crate) holder: u32,
    pub(crate) shape: u32,
}

/// The data that a key shares with others, at one instant.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) holder: HolderAt<'a>,
    pub(crate) persons: bool,
    pub(crate) standing: &'a OwnerStatus,
    /// The number of `standing`. A later read finds the same standing by this number. A person and a tenant
    /// never share a number.
    pub(crate) standing_id: u32,
}

/// A holder, either at hand or looked up when needed. Holders lie outside the memory that every
/// verification reads.
#[derive(Clone, Copy)]
pub(crate) enum HolderAt<'a> {
    Here(&'a Holder),
    Shared(&'a Shared, u32),
}

impl<'a> HolderAt<'a> {
    pub(crate) fn get(self) -> &'a Holder {
        match self {
            Self::Here(holder) => holder,
            Self::Shared(shared, number) => {
                let holder = shared.holders.get(number).and_then(OnceLock::get);
                holder.expect("a key is published after its holder, and holders are never removed")
            }
        }
    }
}

impl Whose for HolderAt<'_> {
    fn holder(&self) -> &Holder {
        self.get()
    }
}

impl Shared {
    /// Picks the parts of an arbitrary key. Equal numbers pick equal parts.
    pub(super) fn any(&self, number: u32) -> Parts {
        let holder = number % self.count.load(Ordering::Relaxed).max(1);
        Parts { holder, shape: 0 }
    }

    pub(super) fn standing_in(&self, facts: &Facts<'_>, tenant: &TenantId) -> Option<OwnerStatus> {
        let home = facts.holder.get();
        if home.tenant == *tenant || !home.tenant.contains(tenant) {
            return None;
        }
        let below = self.below.read().unwrap_or_else(PoisonError::into_inner);
        let (mut rows, mut closed, mut unreadable) = (Vec::new(), false, false);
        let mut raised = Vec::new();
        for path in tenant.lineage().take_while(|path| *path != home.tenant) {
            match below.tenants.get(&path) {
                Some(Tenancy::Closed) => closed = true,
                Some(Tenancy::Unreadable) => unreadable = true,
                Some(Tenancy::Open) | None => {}
            }
            let owner = home.owner.clone();
            let holder = Holder {
                tenant: path,
                owner,
            };
            match below.owners.get(&holder) {
                Some(OwnerSays::Unreadable) => unreadable = true,
                Some(OwnerSays::Stands(role, removed_at, raised_from)) => {
                    rows.push((role.as_ref(), *removed_at));
                    raised.extend(raised_from.iter().cloned());
                }
                None => {}
            }
        }
        let mut further = OwnerStatus {
            unreadable,
            ..OwnerStatus::of(rows, closed)
        };
        if !facts.shape.bound.is_empty() {
            further.roles.extend(raised);
        }
        facts.standing.and_further(&further)
    }

    pub(super) fn unfinished(&self) -> Vec<TenantId> {
        let below = self.below.read().unwrap_or_else(PoisonError::into_inner);
        below.unfinished.iter().cloned().collect()
    }

    fn below(&self) -> RwLockWriteGuard<'_, Below> {
        self.below.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current facts of these parts.
    #[inline]
    pub(super) fn facts(&self, parts: Parts) -> Option<Facts<'_>> {
        let standing = self.stands.get(parts.holder)?.load(Ordering::Acquire);
        self.facts_with(parts, standing)
    }

    /// Returns the facts of these parts with the standing that an earlier read returned.
    #[inline]
    pub(super) fn facts_with(&self, parts: Parts, standing_id: u32) -> Option<Facts<'_>> {
        let stand = self.standings.get(standing_id)?.get()?;
        Some(Facts {
            shape: self.shapes.get(parts.shape)?.get()?,
            holder: HolderAt::Shared(self, parts.holder),
            persons: stand.persons,
            standing: &stand.standing,
            standing_id,
        })
    }
}

/// The writer's side: the number of each entry, and the rows that standings are derived from.
#[derive(Default)]
pub(super) struct Ledger {
    shapes: HashMap<Arc<Shape>, u32>,
    last_shape: u32,
    holders: HashMap<Arc<Holder>, u32>,
    standings: HashMap<Arc<Stand>, u32>,
    roles: Vec<Role>,
    /// Indexed by the holder's number.
    own: Vec<Own>,
    tenants: HashMap<TenantId, (Revision, Tenancy)>,
}

/// The writer's notes on one holder.
struct Own {
    /// Whether the holder has keys, and therefore a standing.
    linked: bool,
    /// The next of the same owner's holders in a linked list, or [`NONE`] at its end. The list
    /// starts at the holder in the topmost tenant of the path.
    below: u32,
    row: Option<OwnerRow>,
}

/// The contents of an owner's row.
#[derive(Clone, Copy)]
struct OwnerRow {
    revision: Revision,
    role: OwnRole,
    removed_at: Option<Timestamp>,
}

#[derive(Clone, Copy)]
enum OwnRole {
    Unreadable,
    Removed,
    Role(u32),
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Tenancy {
    Open,
    Closed,
    Unreadable,
}

impl Ledger {
    /// Returns the parts of a key, and adds those that are new.
    pub(super) fn parts(&mut self, shared: &Shared, record: &KeyRecord) -> Parts {
        let shape = self.shape(shared, record);
        let holder = self.holder(shared, Holder::of(record));
        self.link(shared, holder);
        Parts { holder, shape }
    }

    fn shape(&mut self, shared: &Shared, record: &KeyRecord) -> u32 {
        let last = shared.shapes.get(self.last_shape).and_then(OnceLock::get);
        if last.is_none_or(|last| !last.is_of(record)) {
            let new = number(self.shapes.len());
            self.last_shape = intern(&mut self.shapes, Shape::of(record), |shape| {
                shared.shapes.at(new).get_or_init(|| shape);
            });
        }
        self.last_shape
    }

    /// Applies the row of an owner; `None` if the row is unreadable.
    pub(super) fn take_owner(
        &mut self,
        shared: &Shared,
        revision: Revision,
        (tenant, owner): (TenantId, PrincipalId),
        row: Option<&OwnerRecord>,
    ) {
        let holder = Holder {
            tenant: tenant.clone(),
            owner: Owner::Principal(owner.clone()),
        };
        let holder = self.holder(shared, holder);
        if self.own[holder as usize]
            .row
            .is_some_and(|own| own.revision >= revision)
        {
            return;
        }
        if !is_top(&tenant) {
            let owner = Owner::Principal(owner.clone());
            let place = Holder {
                tenant: tenant.clone(),
                owner,
            };
            let says = row.map_or(OwnerSays::Unreadable, |row| {
                OwnerSays::Stands(row.role.clone(), row.removed_at, row.raised_from.clone())
            });
            shared.below().owners.insert(place, says);
        }
        let role = match row {
            None => OwnRole::Unreadable,
            Some(row) => match &row.role {
                None => OwnRole::Removed,
                Some(role) => OwnRole::Role(self.role(role)),
            },
        };
        self.own[holder as usize].row = Some(OwnerRow {
            revision,
            role,
            removed_at: row.and_then(|row| row.removed_at),
        });
        self.renew(shared, holder, &tenant);
        let top = self.top(shared, &tenant, owner);
        let mut below = self.own[top as usize].below;
        while below != NONE {
            self.renew(shared, below, &tenant);
            below = self.own[below as usize].below;
        }
    }

    /// Applies the row of a tenant; `None` if the row is unreadable.
    pub(super) fn take_tenant(
        &mut self,
        shared: &Shared,
        revision: Revision,
        tenant: &TenantId,
        row: Option<&TenantRecord>,
    ) {
        let known = self.tenants.get(tenant);
        if known.is_some_and(|(own, _)| *own >= revision) {
            return;
        }
        let before = known.map_or(Tenancy::Open, |(_, own)| *own);
        let tenancy = match row {
            None => Tenancy::Unreadable,
            Some(row) if row.closed.is_some() => Tenancy::Closed,
            Some(_) => Tenancy::Open,
        };
        self.tenants.insert(tenant.clone(), (revision, tenancy));
        let unfinished = row.is_some_and(|row| !row.sweeps.is_empty());
        let mut below = shared.below();
        if unfinished {
            below.unfinished.insert(tenant.clone());
        } else {
            below.unfinished.remove(tenant);
        }
        if tenancy != Tenancy::Open && !is_top(tenant) {
            below.tenants.insert(tenant.clone(), tenancy);
        } else {
            below.tenants.remove(tenant);
        }
        drop(below);
        if before != tenancy {
            for holder in 0..number(self.own.len()) {
                self.renew(shared, holder, tenant);
            }
        }
    }

    fn holder(&mut self, shared: &Shared, holder: Holder) -> u32 {
        if let Some(known) = self.holders.get(&holder) {
            return *known;
        }
        let holder = Holder {
            tenant: shared_key(&self.tenants, holder.tenant),
            owner: holder.owner,
        };
        let new = number(self.holders.len());
        self.own.push(Own {
            linked: false,
            below: NONE,
            row: None,
        });
        shared.count.store(new.saturating_add(1), Ordering::Relaxed);
        intern(&mut self.holders, holder, |holder| {
            shared.holders.at(new).get_or_init(|| holder);
        })
    }

    /// Makes a holder with keys follow the rows of its owner. A change of an owner's row then skips the
    /// holders without keys. An owner with many tenants has many holders without keys.
    fn link(&mut self, shared: &Shared, number: u32) {
        if self.own[number as usize].linked {
            return;
        }
        let Some(holder) = shared.holders.at(number).get() else {
            return;
        };
        if let Owner::Principal(owner) = &holder.owner
            && !is_top(&holder.tenant)
        {
            let top = self.top(shared, &holder.tenant, owner.clone()) as usize;
            self.own[number as usize].below = std::mem::replace(&mut self.own[top].below, number);
        }
        self.own[number as usize].linked = true;
        let standing = self.standing(shared, holder);
        shared.stands.at(number).store(standing, Ordering::Release);
    }

    /// Returns the same owner's holder in the topmost tenant of the path. The list of that owner's
    /// other holders starts there, so applying an owner's row visits no other customer.
    fn top(&mut self, shared: &Shared, tenant: &TenantId, owner: PrincipalId) -> u32 {
        let tenant = tenant.ancestors().last().unwrap_or_else(|| tenant.clone());
        let owner = Owner::Principal(owner);
        self.holder(shared, Holder { tenant, owner })
    }

    fn role(&mut self, role: &Role) -> u32 {
        let known = self.roles.iter().position(|own| own == role);
        number(known.unwrap_or_else(|| {
            self.roles.push(role.clone());
            self.roles.len() - 1
        }))
    }

    /// Recomputes a holder's standing, if the holder's tenant is `above` or a descendant of `above`.
    fn renew(&mut self, shared: &Shared, holder: u32, above: &TenantId) {
        let linked = self.own[holder as usize].linked;
        if let Some(place) = shared.holders.at(holder).get().filter(|_| linked)
            && above.contains(&place.tenant)
        {
            let standing = self.standing(shared, place);
            shared.stands.at(holder).store(standing, Ordering::Release);
        }
    }

    /// Returns the holder's standing, derived from the known rows.
    fn standing(&mut self, shared: &Shared, holder: &Holder) -> u32 {
        let stand = Stand {
            persons: holder.is_person(),
            standing: self.resolve(holder),
        };
        let new = number(self.standings.len());
        intern(&mut self.standings, stand, |stand| {
            shared.standings.at(new).get_or_init(|| stand);
        })
    }

    fn resolve(&self, holder: &Holder) -> OwnerStatus {
        let mut unreadable = false;
        let mut rows = Vec::new();
        for tenant in holder
            .tenant
            .lineage()
            .filter(|_| holder.owner.principal().is_some())
        {
            let owner = holder.owner.clone();
            let number = self.holders.get(&Holder { tenant, owner });
            let row = number.and_then(|number| self.own.get(*number as usize)?.row);
            let Some(row) = row else { continue };
            let role = match row.role {
                OwnRole::Unreadable => {
                    unreadable = true;
                    continue;
                }
                OwnRole::Removed => None,
                OwnRole::Role(role) => self.roles.get(role as usize),
            };
            rows.push((role, row.removed_at));
        }
        let tenancy = |tenancy| {
            let mut above = holder.tenant.paths();
            above.any(|path| self.tenants.get(path).is_some_and(|own| own.1 == tenancy))
        };
        OwnerStatus {
            unreadable: unreadable || tenancy(Tenancy::Unreadable),
            ..OwnerStatus::of(rows, tenancy(Tenancy::Closed))
        }
    }
}

/// Returns the number of `item`. Calls `show` first if the item is new, so that readers find the item before
/// anything refers to the item's number.
fn intern<T: Eq + Hash>(
    numbers: &mut HashMap<Arc<T>, u32>,
    item: T,
    show: impl FnOnce(Arc<T>),
) -> u32 {
    if let Some(known) = numbers.get(&item) {
        return *known;
    }
    let (item, new) = (Arc::new(item), number(numbers.len()));
    show(item.clone());
    numbers.insert(item, new);
    new
}

fn is_top(tenant: &TenantId) -> bool {
    tenant.ancestors().next().is_none()
}

/// Returns the map's own copy of `key` if it has one, so that its text is stored once.
fn shared_key<K: Clone + Eq + Hash, V>(map: &HashMap<K, V>, key: K) -> K {
    match map.get_key_value(&key) {
        Some((own, _)) => own.clone(),
        None => key,
    }
}

/// Converts a count to a number of 32 bits. Memory runs out long before these numbers do.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(NONE)
}
