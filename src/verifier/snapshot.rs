//! The snapshot that a verification reads.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::policy::{LivePolicies, Policies};
use crate::replica::{AttributeIds, Attributes, Replica, View};

/// Everything that a verification reads, behind one atomic pointer.
pub(super) struct Snapshot {
    pub(super) view: Arc<View>,
    pub(super) policies: Arc<Policies>,
    /// The versions of the view and of the policies.
    pub(super) versions: (u64, u64),
    /// The number of this snapshot, unique within the process. `None` once all numbers are used up.
    generation: Option<NonZeroU64>,
}

/// The bit widths in the word that `Snapshot::kind` returns: 18 bits of traits, 24 of owner status and 22 of
/// generation.
const TRAITS_BITS: u32 = 18;
const STATUS_BITS: u32 = 24;
const GENERATION_BITS: u32 = 22;
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

impl Snapshot {
    pub(super) fn of(replica: &Replica, policies: &LivePolicies) -> Self {
        let (version, view) = replica.view();
        // Load the version before the policies. The policies may then be newer than the version, but never
        // older.
        let policies_version = policies.version();
        Self {
            view,
            policies: policies.get(),
            versions: (version, policies_version),
            generation: {
                let next = GENERATIONS.fetch_add(1, Ordering::Relaxed);
                NonZeroU64::new(next).filter(|next| next.get() >> GENERATION_BITS == 0)
            },
        }
    }

    /// Returns a number that stands for the key's policy, traits and owner status. Keys with the same number
    /// either all meet a need, or none of them does. The number of a principal's key always differs from the
    /// number of a tenant's key.
    ///
    /// Returns `None` if tenants have different policies, or if the number does not fit in one word.
    #[inline]
    pub(super) fn kind(
        &self,
        attribute_ids: AttributeIds,
        attributes: &Attributes<'_>,
    ) -> Option<NonZeroU64> {
        let (traits, status) = (attribute_ids.traits, attributes.status_id);
        let fits = traits >> TRAITS_BITS == 0 && status >> STATUS_BITS == 0;
        if !fits || !self.policies.is_one() {
            return None;
        }
        let status = u64::from(status) << TRAITS_BITS;
        let generation = self.generation?.get() << (STATUS_BITS + TRAITS_BITS);
        NonZeroU64::new(generation | status | u64::from(traits))
    }
}
