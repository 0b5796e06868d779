//! The snapshot that a verification reads.

use std::sync::Arc;

use super::kinds::{Generation, Kind};
use crate::clock::micros;
use crate::core::policy::Policies;
use crate::live_policies::LivePolicies;
use crate::replica::{Replica, View};

/// Everything that a verification reads, behind one atomic pointer.
pub(super) struct Snapshot {
    pub(super) view: Arc<View>,
    pub(super) policies: Arc<Policies>,
    /// In microseconds. An index that was confirmed within this bound is fresh for the keys of each class whose
    /// bound is not zero.
    pub(super) shortest_bound: i64,
    /// The versions of the view and of the policies.
    pub(super) versions: (u64, u64),
    /// The number of this snapshot. `None` if keys have no kinds, because tenants have different policies, or
    /// because all numbers are used up.
    generation: Option<Generation>,
}

impl Snapshot {
    pub(super) fn of(replica: &Replica, policies: &LivePolicies) -> Self {
        let (version, view) = replica.view();
        // Load the version before the policies. The policies may then be newer than the version, but never
        // older.
        let policies_version = policies.version();
        let policies = policies.get();
        let generation = policies.is_one().then(Generation::draw).flatten();
        Self {
            view,
            shortest_bound: policies.shortest_bound().map_or(0, micros),
            policies,
            versions: (version, policies_version),
            generation,
        }
    }

    /// Returns the kind of keys with these traits and this owner status in the view. Keys of one kind either
    /// all meet a need, or none of them does. The kind of a principal's key always differs from the kind of a
    /// tenant's key, because they never share a status.
    #[inline]
    pub(super) fn kind(&self, traits: u32, status: u32) -> Option<Kind> {
        self.generation?.kind(traits, status)
    }
}
