//! The interface of a node in the simulation: it syncs, takes commands, and verifies.

use std::sync::Arc;

use async_trait::async_trait;

use super::sketch::{Defect, Sketch};
use super::world::World;
use keyward::command::{Command, Committed, Outcome, Request};
use keyward::entropy::SeededEntropy;
use keyward::node::KeyManager;
use keyward::policy::Policy;
use keyward::store::{KeyStore, StoreError};
use keyward::{CommandError, KeyId, Keyward, Need, PepperRing, VerifyError};

use super::clock::{Fault, PlaceClock};

/// The way in which a key is presented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// Verified by the node's own knowledge.
    Known,
    /// Verified by the node's own knowledge, and read through the store if the node does not know
    /// the key.
    OrFetch,
    /// Read through the store.
    Fresh,
}

/// A node that can run in a simulation.
#[async_trait]
pub(super) trait Node: Send + Sync {
    /// Catches up with the store.
    async fn sync(&self) -> Result<(), StoreError>;

    /// Carries out a command, bulk commands included.
    async fn give(&self, request: Request) -> Result<Committed, CommandError>;

    /// Verifies a token, and returns its key.
    async fn verify(&self, presented: &str, need: &Need, way: Way) -> Result<KeyId, VerifyError>;

    /// Runs the maintenance that follows verifications.
    async fn upkeep(&self);
}

/// The dependencies of a node.
pub(super) struct Parts {
    pub(super) world: Arc<World>,
    pub(super) place: usize,
    pub(super) store: Arc<dyn KeyStore>,
    pub(super) peppers: PepperRing,
    pub(super) policy: Policy,
    pub(super) seed: u64,
}

impl Parts {
    pub(super) fn clock(&self, fault: Option<Fault>) -> PlaceClock {
        PlaceClock::new(self.world.clone(), self.place, fault)
    }
}

/// The crate's own node.
pub(super) struct Real(Keyward);

impl Real {
    pub(super) async fn start(parts: Parts, fault: Option<Fault>) -> Result<Self, StoreError> {
        let clock = parts.clock(fault);
        let builder = Keyward::builder(parts.store, parts.peppers)
            .policy(parts.policy)
            .clock(clock)
            .entropy(SeededEntropy::new(parts.seed));
        builder.build().await.map(Self)
    }
}

#[async_trait]
impl Node for Real {
    async fn sync(&self) -> Result<(), StoreError> {
        self.0.sync().await
    }

    async fn give(&self, request: Request) -> Result<Committed, CommandError> {
        give(self.0.manager(), request).await
    }

    async fn verify(&self, presented: &str, need: &Need, way: Way) -> Result<KeyId, VerifyError> {
        let grant = match way {
            Way::Known => self.0.verify(presented, need),
            Way::OrFetch => self.0.verify_or_fetch(presented, need).await,
            Way::Fresh => self.0.verify_fresh(presented, need).await,
        };
        grant.map(|grant| grant.key_id())
    }

    async fn upkeep(&self) {
        // A later call retries what failed.
        let _ = self.0.run_maintenance().await;
    }
}

pub(super) async fn give(
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
    let outcome = Outcome::Done;
    Ok(Committed { outcome, receipt })
}

/// Starts a node of the requested kind.
pub(super) async fn start(
    parts: Parts,
    subject: super::Subject,
) -> Result<Arc<dyn Node>, StoreError> {
    use super::Subject;

    Ok(match subject {
        Subject::Keyward => Arc::new(Real::start(parts, None).await?),
        Subject::KeywardWithWallClock => Arc::new(Real::start(parts, Some(Fault::Wall)).await?),
        Subject::KeywardWithSleepyClock => Arc::new(Real::start(parts, Some(Fault::Stops)).await?),
        Subject::Sketch => Arc::new(Sketch::new(parts, None)),
        Subject::Broken(defect) => Arc::new(Sketch::new(parts, Some(defect))),
    })
}

impl Defect {
    /// Returns the fault of the node's clock, if the defect is a clock fault.
    pub(super) fn clock(self) -> Option<Fault> {
        match self {
            Self::UsesWallTime => Some(Fault::Wall),
            Self::ClockStopsInSuspend => Some(Fault::Stops),
            _ => None,
        }
    }
}
