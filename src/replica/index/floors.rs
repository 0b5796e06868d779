//! The newest commit time of each tenant, derived from the times in the tenant's rows. The time of a commit
//! stays known, because each commit writes it to a row that is not deleted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::core::owner::TimeRepair;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// The newest commit time of each tenant and of the whole store. Verification reads them only for a key that
/// expires between the current time and the store's newest commit time.
#[derive(Default)]
pub(super) struct Floors {
    by_tenant: RwLock<HashMap<TenantId, Floor>>,
    /// The newest commit time of any tenant, in microseconds. If a time repair lowered it, this field holds
    /// the old, later time until [`settle`](Self::settle) runs.
    newest: AtomicI64,
    /// Set while a time repair has lowered the newest commit time since [`settle`](Self::settle) last ran.
    lowered: AtomicBool,
}

#[derive(Clone, Copy)]
struct Floor {
    at: Timestamp,
    /// The revision of the commit whose time is `at`.
    revision: Revision,
    /// The revision up to which commit times are ignored, because a time repair has voided the times of these
    /// commits.
    void_through: Revision,
}

impl Clone for Floors {
    fn clone(&self) -> Self {
        let by_tenant = self
            .by_tenant
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Self {
            by_tenant: RwLock::new(by_tenant),
            newest: AtomicI64::new(self.newest.load(Ordering::Acquire)),
            lowered: AtomicBool::new(self.lowered.load(Ordering::Relaxed)),
        }
    }
}

impl Floors {
    /// Records `at` as the commit time of a row that was written at `revision`.
    pub(super) fn record(&self, tenant: &TenantId, at: Timestamp, revision: Revision) {
        let news = |floor: &Floor| {
            revision > floor.void_through && (at, revision) > (floor.at, floor.revision)
        };
        let known = self
            .with_floor(tenant, |floor| !news(floor))
            .unwrap_or(false);
        if known {
            return;
        }
        let first = Floor {
            at,
            revision,
            void_through: Revision::ZERO,
        };
        let mut by_tenant = self
            .by_tenant
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let floor = by_tenant.entry(tenant.clone()).or_insert(first);
        if news(floor) {
            (floor.at, floor.revision) = (at, revision);
        }
        self.newest.fetch_max(at.as_micros(), Ordering::AcqRel);
    }

    /// Records a time repair, which sets a tenant's newest commit time back. `at` and `revision` are the time
    /// and the revision of the tenant's row, which contains the repair. A later commit than the repair may
    /// have written this row.
    pub(super) fn record_repair(
        &self,
        tenant: &TenantId,
        repair: TimeRepair,
        (at, revision): (Timestamp, Revision),
    ) {
        let void_through = repair.through;
        if self
            .with_floor(tenant, |floor| floor.void_through >= void_through)
            .unwrap_or(false)
        {
            return;
        }
        let mut by_tenant = self
            .by_tenant
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let first = Floor {
            at,
            revision,
            void_through,
        };
        let floor = by_tenant.entry(tenant.clone()).or_insert(first);
        let before = floor.at;
        if floor.revision <= void_through {
            *floor = first;
        }
        floor.void_through = void_through;
        if floor.at < before && before >= self.newest() {
            self.lowered.store(true, Ordering::Relaxed);
        }
        self.newest.fetch_max(at.as_micros(), Ordering::AcqRel);
    }

    /// Recomputes the newest commit time of all tenants, if a time repair lowered it. The computation visits
    /// every tenant, so the writer calls this method only once for each page of rows.
    pub(super) fn settle(&self) {
        if self.lowered.swap(false, Ordering::Relaxed) {
            let by_tenant = self
                .by_tenant
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(newest) = by_tenant.values().map(|floor| floor.at).max() {
                self.newest.store(newest.as_micros(), Ordering::Release);
            }
        }
    }

    /// Returns the newest commit time of a tenant; `None` if no row of the tenant is known.
    pub(super) fn at(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.with_floor(tenant, |floor| floor.at)
    }

    /// Returns the newest commit time of any tenant.
    #[inline]
    pub(super) fn newest(&self) -> Timestamp {
        Timestamp::clamped(self.newest.load(Ordering::Acquire))
    }

    /// Returns the tenants with a newest commit time later than `than`, each with that time.
    pub(super) fn later(&self, than: Timestamp) -> Vec<(TenantId, Timestamp)> {
        let by_tenant = self
            .by_tenant
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let later = by_tenant.iter().filter(|(_, floor)| floor.at > than);
        let mut later: Vec<_> = later.map(|(own, floor)| (own.clone(), floor.at)).collect();
        later.sort();
        later
    }

    fn with_floor<T>(&self, tenant: &TenantId, take: impl FnOnce(&Floor) -> T) -> Option<T> {
        let by_tenant = self
            .by_tenant
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        by_tenant.get(tenant).map(take)
    }
}
