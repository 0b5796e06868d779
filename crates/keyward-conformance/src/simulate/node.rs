//! The interface of a node in the simulation, and its implementation for [`Keyward`].

use std::sync::Arc;

use async_trait::async_trait;

use super::sketch::{NaiveNode, NodeDefect};
use super::world::SimulatedWorld;
use keyward::command::{Command, CommandOutcome, Committed, Request};
use keyward::entropy::SeededEntropy;
use keyward::node::KeyManager;
use keyward::policy::Policy;
use keyward::store::{KeyStore, StoreError, StoreErrorKind};
use keyward::{BuildError, CommandError, KeyId, Keyward, Need, PepperRing, VerifyError};

use super::clock::{ClockFault, SimulatedClock};

/// The source of the rows with which a node verifies a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum VerifyPath {
    /// The node reads only its local rows.
    Local,
    /// The node reads its local rows. If they do not contain the key, it reads the store.
    OrFetch,
    /// The node reads the store for every verification.
    Fresh,
}

/// A node that can run in a simulation.
#[async_trait]
pub(super) trait Node: Send + Sync {
    /// Reads the changes from the store that the node lacks.
    async fn sync(&self) -> Result<(), StoreError>;

    /// Executes a command, which may be a bulk command.
    async fn execute(&self, request: Request) -> Result<Committed, CommandError>;

    /// Verifies a token, and returns the id of its key.
    async fn verify(
        &self,
        presented: &str,
        need: &Need,
        path: VerifyPath,
    ) -> Result<KeyId, VerifyError>;

    /// Runs the maintenance that an application schedules, such as recording first uses.
    async fn upkeep(&self);
}

/// The parts from which a node is built.
pub(super) struct NodeParts {
    pub(super) world: Arc<SimulatedWorld>,
    pub(super) machine: usize,
    pub(super) store: Arc<dyn KeyStore>,
    pub(super) peppers: PepperRing,
    pub(super) policy: Policy,
    pub(super) seed: u64,
}

impl NodeParts {
    pub(super) fn clock(&self, fault: Option<ClockFault>) -> SimulatedClock {
        SimulatedClock::new(self.world.clone(), self.machine, fault)
    }
}

/// A node that is the crate's own [`Keyward`].
pub(super) struct KeywardNode(Keyward);

impl KeywardNode {
    pub(super) async fn start(
        parts: NodeParts,
        fault: Option<ClockFault>,
    ) -> Result<Self, StoreError> {
        let clock = parts.clock(fault);
        let builder = Keyward::builder(parts.store, parts.peppers)
            .policy(parts.policy)
            .clock(clock)
            .entropy(SeededEntropy::new(parts.seed));
        let built = builder.build().await.map(Self);
        built.map_err(|error| match error {
            BuildError::Store(error) => error,
            // The link has no documents, so a build fails only if the store does.
            other => {
                StoreError::new(StoreErrorKind::Unavailable, "building a node").with_source(other)
            }
        })
    }
}

#[async_trait]
impl Node for KeywardNode {
    async fn sync(&self) -> Result<(), StoreError> {
        self.0.sync().await
    }

    async fn execute(&self, request: Request) -> Result<Committed, CommandError> {
        execute(self.0.manager(), request).await
    }

    async fn verify(
        &self,
        presented: &str,
        need: &Need,
        path: VerifyPath,
    ) -> Result<KeyId, VerifyError> {
        let grant = match path {
            VerifyPath::Local => self.0.verify(presented, need),
            VerifyPath::OrFetch => self.0.verify_or_fetch(presented, need).await,
            VerifyPath::Fresh => self.0.verify_fresh(presented, need).await,
        };
        grant.map(|grant| grant.key_id())
    }

    async fn upkeep(&self) {
        // An error is ignored, because a later call of `upkeep` does the work again.
        let _ = self.0.run_maintenance().await;
    }
}

pub(super) async fn execute(
    manager: &KeyManager,
    request: Request,
) -> Result<Committed, CommandError> {
    let bulk = matches!(
        request.command,
        Command::ChangeOwnerRole { .. } | Command::RemoveOwner { .. } | Command::CloseTenant
    );
    if !bulk {
        return manager.execute(request).await;
    }
    let receipt = manager.execute_bulk(request).await?.receipt;
    let outcome = CommandOutcome::Done;
    Ok(Committed { outcome, receipt })
}

/// Starts a node of the given kind from its parts.
pub(super) async fn start(
    parts: NodeParts,
    subject: super::NodeUnderTest,
) -> Result<Arc<dyn Node>, StoreError> {
    use super::NodeUnderTest;

    Ok(match subject {
        NodeUnderTest::Keyward => Arc::new(KeywardNode::start(parts, None).await?),
        NodeUnderTest::KeywardWithWallClock => {
            Arc::new(KeywardNode::start(parts, Some(ClockFault::Wall)).await?)
        }
        NodeUnderTest::KeywardWithSleepyClock => {
            Arc::new(KeywardNode::start(parts, Some(ClockFault::Stops)).await?)
        }
        NodeUnderTest::Naive => Arc::new(NaiveNode::new(parts, None)),
        NodeUnderTest::Broken(defect) => Arc::new(NaiveNode::new(parts, Some(defect))),
    })
}

impl NodeDefect {
    /// Returns the clock fault that this defect stands for. `None` if the defect is not in the clock.
    pub(super) fn clock(self) -> Option<ClockFault> {
        match self {
            Self::UsesWallTime => Some(ClockFault::Wall),
            Self::ClockStopsInSuspend => Some(ClockFault::Stops),
            _ => None,
        }
    }
}
