//! The newest instant of each tenant, derived from its rows. Each commit writes its instant to a
//! row that stays.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::core::owner::TimeRepair;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// The newest instants of all tenants. Verification reads them only for a key that ends between the
/// current time and the store's newest commit.
#[derive(Default)]
pub(super) struct Floors {
    of: RwLock<HashMap<TenantId, Floor>>,
    /// The newest instant of any tenant, in microseconds.
    newest: AtomicI64,
}

#[derive(Clone, Copy)]
struct Floor {
    at: Timestamp,
    /// The commit that wrote the instant.
    by: Revision,
    /// Instants of commits up to this one do not count: a repair has voided them.
    void: Revision,
}

impl Floors {
    /// Records the instant of a row that the commit `by` wrote.
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

    /// Records that a tenant's newest instant was set back. `at` and `by` belong to the row that
    /// contains the repair; the row may have changed since.
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

    /// Returns the newest instant of a tenant; `None` if no row of the tenant is known.
    pub(super) fn at(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.of(tenant, |floor| floor.at)
    }

    /// Returns the newest instant of any tenant.
    #[inline]
    pub(super) fn newest(&self) -> Timestamp {
        Timestamp::clamped(self.newest.load(Ordering::Acquire))
    }

    /// Returns the tenants with a newest commit instant later than `than`, each with that instant.
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
