//! How a [`Keyward`] is put together.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Keyward};
use crate::clock::{Clock, SystemClock};
use crate::core::checked_time::CheckedTime;
use crate::core::pepper::PepperRing;
use crate::core::policy::{LivePolicies, Policies, Policy};
use crate::core::text::NodeLabel;
use crate::entropy::{Entropy, SystemEntropy};
use crate::manager::KeyManager;
use crate::replica::Replica;
use crate::store::{KeyStore, NodeRegistry, StoreError};
use crate::timekeeper::Timekeeper;
use crate::verifier::{PastBound, ReadThrough, Verifier};

/// Puts a [`Keyward`] together.
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct Builder {
    store: Arc<dyn KeyStore>,
    peppers: PepperRing,
    policies: Policies,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    registry: Option<Arc<dyn NodeRegistry>>,
    label: Option<NodeLabel>,
    read_through: ReadThrough,
    past_bound: PastBound,
    clock_allowance: Duration,
}

impl Builder {
    pub(super) fn new(store: Arc<dyn KeyStore>, peppers: PepperRing) -> Self {
        Self {
            store,
            peppers,
            policies: Policies::new(Policy::default()),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            registry: None,
            label: None,
            read_through: ReadThrough::default(),
            past_bound: PastBound::default(),
            clock_allowance: CheckedTime::ALLOWANCE,
        }
    }

    /// Sets the policy, or the policies of several tenants. Defaults to
    /// [`standard`](crate::profiles::standard) for everybody.
    pub fn policy(mut self, policies: impl Into<Policies>) -> Self {
        self.policies = policies.into();
        self
    }

    /// Sets the clocks. Defaults to the machine's own.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the randomness. Defaults to the operating system's.
    pub fn entropy(mut self, entropy: impl Entropy) -> Self {
        self.entropy = Arc::new(entropy);
        self
    }

    /// Registers this node, so that the receipts of others can tell whether it has confirmed a
    /// change: see [`Keyward::confirmations`]. All nodes over one store must take the same registry,
    /// or those without it are not waited for. Every shipped store is one as well. Defaults to none: a
    /// receipt knows the bound alone then.
    ///
    /// The node reports whenever [`sync`](Keyward::sync) finds something new, and every ten seconds or
    /// so. Once its reports have failed for a minute, nothing is confirmed until one succeeds.
    pub fn registry(mut self, registry: impl NodeRegistry) -> Self {
        self.registry = Some(Arc::new(registry));
        self
    }

    /// Sets what people call this node in a registry: a host name, say. Defaults to nothing.
    pub fn node_label(mut self, label: NodeLabel) -> Self {
        self.label = Some(label);
        self
    }

    /// Sets how many keys are read through the store. Defaults to [`ReadThrough::default`].
    pub const fn read_through(mut self, bounds: ReadThrough) -> Self {
        self.read_through = bounds;
        self
    }

    /// Sets what [`verify_or_fetch`](Keyward::verify_or_fetch) does once the staleness bound of a
    /// key's class is passed without a confirmation. Defaults to [`PastBound::Refuse`].
    pub const fn past_bound(mut self, past_bound: PastBound) -> Self {
        self.past_bound = past_bound;
        self
    }

    /// Sets by how much clocks may differ before one is doubted: two minutes at least. Defaults to five
    /// minutes. A node whose clock differs by more from that of the database server, or from those of most
    /// other nodes of a [registry](Self::registry), issues and prolongs nothing; see `docs/time.md`.
    pub const fn clock_allowance(mut self, allowance: Duration) -> Self {
        self.clock_allowance = allowance;
        self
    }

    /// Reads the store's keys and starts.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot be read, or this node cannot register.
    pub async fn build(self) -> Result<Keyward, StoreError> {
        let Self {
            store,
            peppers,
            policies,
            clock,
            entropy,
            registry,
            label,
            read_through,
            past_bound,
            clock_allowance,
        } = self;
        let peppers = Arc::new(peppers);
        let policies = Arc::new(LivePolicies::new(policies));
        let time = Arc::new(Timekeeper::new(clock.clone(), clock_allowance));
        let replica = Replica::new(store.clone(), clock.clone());
        let mut replica = replica.with_time(time.clone());
        if let Some(registry) = registry {
            let bound = policies.get().longest_bound();
            replica = replica.with_registry(registry, entropy.clone(), bound, label);
        }
        let replica = Arc::new(replica);
        let (learns, counts) = (replica.clone(), replica.clone());
        let manager = KeyManager::new(
            store.clone(),
            policies.clone(),
            peppers.clone(),
            clock.clone(),
            entropy.clone(),
        )
        .with_time(time.clone())
        .with_listener(move |learnt| learns.apply_landed(learnt))
        .with_uses(move |keys| counts.used_of(keys));
        let verifier = Verifier::new(
            replica.clone(),
            store.clone(),
            policies.clone(),
            peppers.clone(),
        )
        .with_read_through(read_through)
        .with_past_bound(past_bound);
        replica.sync().await?;
        let inner = Inner {
            manager,
            replica,
            verifier,
            store,
            policies,
            peppers,
            time,
            #[cfg(feature = "tokio")]
            entropy,
        };
        Ok(Keyward {
            inner: Arc::new(inner),
        })
    }
}
