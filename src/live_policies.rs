//! The policies in use, which a host may replace at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use crate::core::policy::Policies;

/// The policies in use. Managers and verifiers share them, so a replacement takes effect in all of them.
#[derive(Debug)]
pub struct LivePolicies {
    current: ArcSwap<Policies>,
    version: AtomicU64,
}

impl LivePolicies {
    /// Creates shared policies.
    pub fn new(policies: impl Into<Policies>) -> Self {
        Self {
            current: ArcSwap::from_pointee(policies.into()),
            version: AtomicU64::new(0),
        }
    }

    /// Replaces the policies.
    pub fn set(&self, policies: impl Into<Policies>) {
        self.current.store(Arc::new(policies.into()));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns the current policies.
    #[must_use]
    pub fn get(&self) -> Arc<Policies> {
        self.current.load_full()
    }

    /// Returns the shortest non-zero staleness bound of any class; `None` if all bounds are zero.
    #[must_use]
    pub fn shortest_bound(&self) -> Option<Duration> {
        self.current.load().shortest_bound()
    }

    pub(crate) fn load(&self) -> Guard<Arc<Policies>> {
        self.current.load()
    }

    /// Returns the number of times that the policies were replaced.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}
