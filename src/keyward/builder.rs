//! The builder of a [`Keyward`].

use std::any::TypeId;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_lock::Mutex as AsyncMutex;

use super::build_error::BuildError;
use super::follow::{Follow, FollowOptions, OwnFollower};
use super::usage::UsageSender;
use super::{Inner, Keyward, shared};
use crate::clock::{Clock, SystemClock};
use crate::core::checked_time::CheckedTime;
use crate::core::pepper::PepperRing;
use crate::core::policy::Policies;
use crate::core::text::NodeLabel;
use crate::entropy::{Entropy, SystemEntropy};
use crate::live_policies::LivePolicies;
use crate::manager::KeyManager;
use crate::observe::GaugePeriod;
use crate::replica::Replica;
use crate::store::usage::UsageStore;
use crate::store::{KeyStore, NodeProcess, NodeRegistry, NodeReport};
use crate::timekeeper::Timekeeper;
use crate::verifier::{OnStale, ReadThroughLimits, Verifier};

/// Builds a [`Keyward`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct KeywardBuilder {
    store: Arc<dyn KeyStore>,
    peppers: PepperRing,
    replaces_lost_peppers: bool,
    policies: Option<Policies>,
    clock: Arc<dyn Clock>,
    is_system_clock: bool,
    entropy: Arc<dyn Entropy>,
    registry: Option<Arc<dyn NodeRegistry>>,
    label: Option<NodeLabel>,
    report_allowance: Duration,
    read_through: ReadThroughLimits,
    on_stale: OnStale,
    clock_allowance: Duration,
    follow: Option<Follow>,
    follow_options: FollowOptions,
    usage: Option<Arc<dyn UsageStore>>,
    counts_uses: bool,
}

impl KeywardBuilder {
    pub(super) fn new(store: Arc<dyn KeyStore>, peppers: PepperRing) -> Self {
        Self {
            store,
            peppers,
            replaces_lost_peppers: false,
            policies: None,
            clock: Arc::new(SystemClock),
            is_system_clock: true,
            entropy: Arc::new(SystemEntropy),
            registry: None,
            label: None,
            report_allowance: NodeReport::ALLOWANCE,
            read_through: ReadThroughLimits::default(),
            on_stale: OnStale::default(),
            clock_allowance: CheckedTime::ALLOWANCE,
            follow: None,
            follow_options: FollowOptions::default(),
            usage: None,
            counts_uses: false,
        }
    }

    /// Sets the policy, or the policies of several tenants.
    ///
    /// The store remembers them with their [`version`](crate::policy::PolicySpec::version), so that all
    /// processes agree. A process with a newer version replaces them. A process with an older one logs a
    /// warning, which is usual during a deployment. A process with other policies of the same version is
    /// refused. A tenant that only the store names keeps its policy here too. To give it other rules, name it
    /// here with a higher version, or with a policy of another name.
    ///
    /// Defaults to the policies that the store remembers, or to [`standard`](crate::profiles::standard) for
    /// every tenant if it remembers none.
    pub fn policy(mut self, policies: impl Into<Policies>) -> Self {
        self.policies = Some(policies.into());
        self
    }

    /// Accepts a ring that shares no pepper with the peppers that the store's keys were created with. Use it
    /// once, after the pepper was lost: no existing secret verifies with the new ring.
    pub const fn replace_lost_peppers(mut self) -> Self {
        self.replaces_lost_peppers = true;
        self
    }

    /// Sets the way in which the node stays up to date.
    ///
    /// Defaults to [`Follow::Thread`] if the store is outside this process and the clocks are the system's.
    /// Otherwise defaults to [`Follow::Manual`]: a store in this process needs no follower, and a test moves
    /// its own clock.
    pub fn follow(mut self, follow: Follow) -> Self {
        self.follow = Some(follow);
        self
    }

    /// Sets the intervals and timeouts of the follower that [`build`](Self::build) starts.
    pub const fn follow_options(mut self, options: FollowOptions) -> Self {
        self.follow_options = options;
        self
    }

    /// Sets the clocks. Defaults to the system's clocks.
    pub fn clock<C: Clock>(mut self, clock: C) -> Self {
        let system = [
            TypeId::of::<SystemClock>(),
            TypeId::of::<Arc<SystemClock>>(),
        ];
        self.is_system_clock = system.contains(&TypeId::of::<C>());
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the source of randomness. Defaults to the operating system's.
    pub fn entropy(mut self, entropy: impl Entropy) -> Self {
        self.entropy = Arc::new(entropy);
        self
    }

    /// Sets the registry in which this node reports the changes that it has applied: see
    /// [`Keyward::confirmations`]. All nodes over one store must use the same registry: a receipt does not
    /// wait for a node that is not registered. Every store of this crate is also a registry. Defaults to
    /// none: receipts then rely on the staleness bound alone.
    ///
    /// After its commit, each command reads the registry for at most a second, because a node may have another
    /// staleness bound. See [`Receipt::no_later_than`](crate::Receipt::no_later_than).
    ///
    /// The node reports whenever [`sync`](Keyward::sync) finds changes, and about every ten seconds. If the
    /// node's reports fail for its [report allowance](Self::report_allowance), its syncs no longer count as
    /// confirmations. After the staleness bound the node fails closed, until a report succeeds.
    pub fn registry(mut self, registry: impl NodeRegistry) -> Self {
        self.registry = Some(Arc::new(registry));
        self
    }

    /// Sets the store to which this process sends the uses of keys that it counted. Defaults to none: uses are then
    /// counted in memory only, without refusals.
    ///
    /// Every store of this crate is also a usage store. Uses can be kept in another store than the keys. All processes of
    /// a service must use the same usage store and the same [registry](Self::registry): otherwise nothing proves that a
    /// key is unused.
    ///
    /// A verification writes nothing. A [follower](Self::follow) sends the counts every ten seconds. See
    /// [`Keyward::flush_usage`]. [`build`](Self::build) announces this process to the usage store. If that fails, it logs a
    /// warning, and the first flush announces the process.
    pub fn usage(mut self, store: impl UsageStore) -> Self {
        self.usage = Some(Arc::new(store));
        self.counts_uses = true;
        self
    }

    /// Sets the [usage store](Self::usage) for questions alone: this process sends no uses. For tools that verify no keys.
    pub fn usage_for_queries(mut self, store: impl UsageStore) -> Self {
        self.usage = Some(Arc::new(store));
        self.counts_uses = false;
        self
    }

    /// Sets a name for this node that people see in the registry, such as the host name. Defaults to none.
    pub fn node_label(mut self, label: NodeLabel) -> Self {
        self.label = Some(label);
        self
    }

    /// Sets how long this node goes on without a report to the [registry](Self::registry), at least a minute.
    /// Defaults to a minute: [`NodeReport::ALLOWANCE`].
    ///
    /// Within the allowance, a sync confirms the node although its reports fail, for example because a synchronous
    /// standby of PostgreSQL is gone and every write waits. After a crash, the node counts as live for the
    /// allowance and its staleness bound. Until then [`wait_confirmed`](Keyward::wait_confirmed) waits for the node
    /// until the bound has passed since the change, and `keyctl` asks before a step that the node would not
    /// survive. No change takes effect later because of the allowance.
    pub const fn report_allowance(mut self, allowance: Duration) -> Self {
        self.report_allowance = allowance;
        self
    }

    /// Sets the limits for verifications that read the store. Defaults to [`ReadThroughLimits::default`].
    pub const fn read_through(mut self, bounds: ReadThroughLimits) -> Self {
        self.read_through = bounds;
        self
    }

    /// Sets whether [`verify_or_fetch`](Keyward::verify_or_fetch) refuses a known key or reads the store, if
    /// this node has not synced within the staleness bound of the key's class. Defaults to
    /// [`OnStale::Reject`].
    pub const fn on_stale(mut self, on_stale: OnStale) -> Self {
        self.on_stale = on_stale;
        self
    }

    /// Sets the largest tolerated difference between clocks, at least two minutes. Defaults to five minutes.
    /// If a node's clock differs by more, the node refuses to issue or prolong keys. It compares its clock
    /// with the database server's clock and with those of other nodes of a [registry](Self::registry); see
    /// `docs/time.md`.
    pub const fn clock_allowance(mut self, allowance: Duration) -> Self {
        self.clock_allowance = allowance;
        self
    }

    /// Builds the [`Keyward`], reads the store's keys into its index, and starts its [follower](Self::follow).
    /// The follower ends with the last clone of the [`Keyward`]. With [`Follow::Never`] there is no index.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the store cannot be read, or if this process has another policy or another pepper than
    /// the other processes of the store. A refused process has changed no key.
    ///
    /// If this process lacks the pepper of some keys, the call succeeds, because the other keys verify. Each such
    /// pepper is logged at error, with the number of its keys: see [`Keyward::keys_by_pepper`].
    pub async fn build(self) -> Result<Keyward, BuildError> {
        let Self {
            store,
            peppers,
            replaces_lost_peppers,
            policies,
            clock,
            is_system_clock,
            entropy,
            registry,
            label,
            report_allowance,
            read_through,
            on_stale,
            clock_allowance,
            follow,
            follow_options,
            usage,
            counts_uses,
        } = self;
        let own = policies.as_ref();
        let (peppers, policies) =
            shared::agree(&*store, peppers, replaces_lost_peppers, own).await?;
        let peppers = Arc::new(peppers);
        let policies = Arc::new(LivePolicies::new(policies));
        let time = Arc::new(Timekeeper::new(clock.clone(), clock_allowance));
        let replica = Replica::new(store.clone(), clock.clone());
        let mut replica = replica
            .with_time(time.clone())
            .with_policies(policies.clone());
        if let Some(registry) = registry {
            let bound = policies.get().longest_bound();
            let process = NodeProcess::new(&peppers, clock.now());
            replica = replica
                .with_registry(registry, entropy.clone(), bound, label)
                .with_reports(process, report_allowance);
        }
        if counts_uses {
            replica = replica.with_uses_by_hour();
        }
        let reads_ahead = !matches!(follow, Some(Follow::Never));
        if !reads_ahead {
            replica = replica.without_index();
        }
        let replica = Arc::new(replica);
        let (learns, counts, checks) = (replica.clone(), replica.clone(), replica.clone());
        let manager = KeyManager::new(
            store.clone(),
            policies.clone(),
            peppers.clone(),
            clock.clone(),
            entropy.clone(),
        )
        .with_time(time.clone())
        .with_listener(move |learnt| learns.apply_landed(learnt))
        .with_uses(move |keys| counts.used_of(keys))
        .with_history_check(move || checks.check_history());
        let verifier = Verifier::new(
            replica.clone(),
            store.clone(),
            policies.clone(),
            peppers.clone(),
        )
        .with_manager(&manager)
        .with_read_through(read_through)
        .with_on_stale(on_stale);
        let synced = match reads_ahead {
            true => replica.sync().await,
            false => replica.read_head().await,
        };
        if synced.is_err() && replica.report_age().is_some() {
            // No receipt and no operator must wait for a node that never ran.
            let _ = replica.leave().await;
        }
        synced?;
        let counted = usage.clone().filter(|_| counts_uses);
        let sender = counted.map(|store| UsageSender::new(store, time.judged().1));
        let inner = Inner {
            manager,
            replica,
            verifier,
            store,
            policies,
            peppers,
            time,
            entropy,
            follower: OnceLock::new(),
            replacing: AsyncMutex::new(()),
            pepper_gauges: GaugePeriod::default(),
            usage: sender,
            usage_store: usage,
        };
        let keys = Keyward {
            inner: Arc::new(inner),
        };
        // Before the first verification: a process that nobody knows to count would leave no gap if it were killed.
        keys.announce_usage().await;
        keys.log_unverifiable();
        keys.show_peppers();
        let follow =
            follow.unwrap_or_else(
                || match is_system_clock && !keys.inner.replica.answers_now() {
                    true => Follow::Thread,
                    false => Follow::Manual,
                },
            );
        let started = OwnFollower::start(&keys, follow, follow_options);
        let no_thread = |error: std::io::Error| BuildError::NoThread {
            problem: error.to_string(),
        };
        if started.is_err() {
            let _ = keys.inner.replica.leave().await;
        }
        if let Some(follower) = started.map_err(no_thread)? {
            // The cell is empty, because nobody else has this `Keyward` yet.
            let _ = keys.inner.follower.set(follower);
        }
        Ok(keys)
    }
}
