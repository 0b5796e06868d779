//! Policies in use, which may be changed at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use super::Policies;

/// The policies that managers and verifiers go by: changed in one place, seen by all that share it.
#[derive(Debug)]
pub struct LivePolicies {
    current: ArcSwap<Policies>,
    version: AtomicU64,
}

impl LivePolicies {
    /// Begins with these policies.
    pub fn new(policies: impl Into<Policies>) -> Self {
        Self {
            current: ArcSwap::from_pointee(policies.into()),
            version: AtomicU64::new(0),
        }
    }

    /// Has these policies hold from now on.
    pub fn set(&self, policies: impl Into<Policies>) {
        self.current.store(Arc::new(policies.into()));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The policies that hold now.
    #[must_use]
    pub fn get(&self) -> Arc<Policies> {
        self.current.load_full()
    }

    /// The shortest staleness bound that is not zero, if there is one.
    #[must_use]
    pub fn shortest_bound(&self) -> Option<Duration> {
        self.current.load().shortest_bound()
    }

    pub(crate) fn load(&self) -> Guard<Arc<Policies>> {
        self.current.load()
    }

    /// How often they were changed.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}
