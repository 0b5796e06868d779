//! The newest instant of each tenant, by its rows. Each commit leaves its instant in a row that stays.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::core::owner::TimeRepair;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// The floors of all tenants. Read by verifications alone whose key ends between their time and the newest
/// commit of the store.
#[derive(Default)]
pub(super) struct Floors {
    of: RwLock<HashMap<TenantId, Floor>>,
    /// The newest of all, in microseconds.
    newest: AtomicI64,
}

#[derive(Clone, Copy)]
struct Floor {
    at: Timestamp,
    /// The commit that it comes from.
    by: Revision,
    /// Instants up to this commit say nothing.
    void: Revision,
}

impl Floors {
    /// Takes the instant of a row over that the commit `by` wrote.
    pub(super) fn saw(&self, tenant: &TenantId, at: Timestamp, by: Revision) {
        let news = |floor: &Floor| by > floor.void && (at, by) > (floor.at, floor.by);
        let known = self.of(tenant, |floor| !news(floor)).unwrap_or(false);
        if known {
            return;
        }
        let first = Floor {
            at,
            by,
            void: Revision::ZERO,
        };
        let mut of = self.of.write().unwrap_or_else(PoisonError::into_inner);
        let floor = of.entry(tenant.clone()).or_insert(first);
        if news(floor) {
            (floor.at, floor.by) = (at, by);
        }
        self.newest.fetch_max(at.as_micros(), Ordering::AcqRel);
    }

    /// Takes over that a tenant's newest instant was set back. `at` and `by` are those of the row that says
    /// so, which may have changed since.
    pub(super) fn repaired(
        &self,
        tenant: &TenantId,
        repair: TimeRepair,
        (at, by): (Timestamp, Revision),
    ) {
        let void = repair.through;
        if self.of(tenant, |floor| floor.void >= void).unwrap_or(false) {
            return;
        }
        let mut of = self.of.write().unwrap_or_else(PoisonError::into_inner);
        let first = Floor { at, by, void };
        let floor = of.entry(tenant.clone()).or_insert(first);
        let before = floor.at;
        if floor.by <= void {
            *floor = first;
        }
        floor.void = void;
        let lowered = floor.at < before && before >= self.newest();
        if lowered {
            let newest = of.values().map(|floor| floor.at).max().unwrap_or(at);
            self.newest.store(newest.as_micros(), Ordering::Release);
        }
        self.newest.fetch_max(at.as_micros(), Ordering::AcqRel);
    }

    /// The newest instant of a tenant; `None` if it has no rows here.
    pub(super) fn at(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.of(tenant, |floor| floor.at)
    }

    /// The newest instant of any tenant.
    #[inline]
    pub(super) fn newest(&self) -> Timestamp {
        Timestamp::clamped(self.newest.load(Ordering::Acquire))
    }

    /// The tenants whose newest instant is later than `than`.
    pub(super) fn later(&self, than: Timestamp) -> Vec<(TenantId, Timestamp)> {
        let of = self.of.read().unwrap_or_else(PoisonError::into_inner);
        let later = of.iter().filter(|(_, floor)| floor.at > than);
        let mut later: Vec<_> = later.map(|(own, floor)| (own.clone(), floor.at)).collect();
        later.sort();
        later
    }

    fn of<T>(&self, tenant: &TenantId, take: impl FnOnce(&Floor) -> T) -> Option<T> {
        let of = self.of.read().unwrap_or_else(PoisonError::into_inner);
        of.get(tenant).map(take)
    }
}
