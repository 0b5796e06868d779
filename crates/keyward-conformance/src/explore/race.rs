//! Races between key managers on separate nodes, and the invariants that must survive them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::watch::{Landings, Rows, Watch};
use super::{Choice, Explorer, Failure, Report, World, block_on};
use keyward::command::{Command, IssuedKey, Outcome, Request};
use keyward::entropy::SeededEntropy;
use keyward::key::KeyState;
use keyward::node::{KeyManager, Replica, Verifier};
use keyward::pepper::{Pepper, PepperId};
use keyward::policy::{LivePolicies, Policy};
use keyward::store::{KeyStore, Row, RowKey};
use keyward::{Actor, CommandError, Denial, ManualClock, Need, PepperRing, Timestamp, VerifyError};

/// A store and a manager, to prepare a race with.
#[derive(Debug)]
pub struct Bench {
    nodes: Arc<Nodes>,
    store: Arc<dyn KeyStore>,
    manager: KeyManager,
}

impl Bench {
    /// Carries out a command before the race. The command takes no step and loses no reply.
    ///
    /// # Errors
    ///
    /// [`CommandError`] as from [`KeyManager::execute`].
    pub fn land(&self, request: Request) -> Result<Outcome, CommandError> {
        block_on(self.manager.execute(request)).map(|landed| landed.outcome)
    }

    /// Returns the actor that a key authenticates before the race.
    ///
    /// # Errors
    ///
    /// [`VerifyError`] if the key is refused.
    pub fn actor(&self, token: impl AsRef<[u8]>) -> Result<Actor, VerifyError> {
        let verifier = self.nodes.verifier(self.store.clone());
        let verifier = verifier.map_err(|_| VerifyError::StoreUnavailable)?;
        Ok(verifier.verify(token.as_ref(), &Need::any())?.actor())
    }

    /// Returns the store before the race, for reading.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn KeyStore> {
        &self.store
    }
}

type Prepare = dyn Fn(&Bench) -> Result<Vec<Request>, CommandError>;

/// A race: a prepared store, and requests that several managers carry out concurrently.
///
/// Each request has its own manager, as if on a separate node.
///
/// These invariants hold after every step:
///
/// - No tenant has more active keys than its cap, or more live keys than twice its cap.
/// - Every open tenant has exactly the legacy key that its policy requires.
/// - A key that was revoked or removed never comes back.
/// - A follower that continues from any earlier head misses no change.
///
/// These invariants hold at the end:
///
/// - Every audit chain verifies.
/// - No command landed twice, and no refused command landed.
/// - No actor made a key after a command in the tenant or an ancestor took away the actor's
///   authority.
/// - The verifier knows every secret that was returned, whatever the state of its key.
/// - A key whose end was acknowledged is ended, in descendant tenants too.
///
/// # Examples
///
/// ```
/// use keyward::Actor;
/// use keyward::command::{Command, CommandId, Request};
/// use keyward_conformance::explore::{Explorer, Race};
/// use keyward::policy::Policy;
/// use keyward::store::MemoryStore;
///
/// let race = Race::new(Policy::default(), |_| {
///     let provision = |id: &str| {
///         let tenant: keyward::TenantId = "acme".try_into()?;
///         let actor = Actor::application(tenant.clone());
///         let command = Command::ProvisionTenant;
///         Ok::<_, keyward::CommandError>(Request::new(CommandId::new(id)?, actor, tenant, command))
///     };
///     Ok(vec![provision("one")?, provision("two")?])
/// });
/// let report = race.explore(&Explorer::new().lost_replies(1), MemoryStore::new)?;
/// assert!(report.complete && report.executions > 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Race {
    policy: Policy,
    prepare: Box<Prepare>,
}

impl fmt::Debug for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Race")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Race {
    /// Creates a race under `policy`. `prepare` prepares the store and returns the requests that
    /// race. `prepare` must do the same on every call.
    pub fn new(
        policy: Policy,
        prepare: impl Fn(&Bench) -> Result<Vec<Request>, CommandError> + 'static,
    ) -> Self {
        Self {
            policy,
            prepare: Box::new(prepare),
        }
    }

    /// Runs the race in every order over the empty stores that `store` creates.
    ///
    /// # Errors
    ///
    /// [`Failure`]: an order that breaks an invariant.
    pub fn explore<S: KeyStore>(
        &self,
        explorer: &Explorer,
        store: impl Fn() -> S,
    ) -> Result<Report, Failure> {
        explorer.explore(|| self.world(Arc::new(store())))
    }

    /// Runs the race in the order of `schedule` over an empty store.
    ///
    /// # Errors
    ///
    /// The same [`Failure`] that [`explore`](Self::explore) found in this order, or a `Failure` if
    /// `schedule` does not fit the race.
    pub fn replay<S: KeyStore>(
        &self,
        explorer: &Explorer,
        store: S,
        schedule: &[Choice],
    ) -> Result<(), Failure> {
        explorer.replay(self.world(Arc::new(store)), schedule)
    }

    fn world(&self, store: Arc<dyn KeyStore>) -> World {
        let nodes = Arc::new(Nodes::new(self.policy.clone()));
        let bench = Bench {
            nodes: nodes.clone(),
            manager: nodes.manager(store.clone(), 0),
            store: store.clone(),
        };
        let world = World::over(store.clone());
        let requests = match (self.prepare)(&bench) {
            Ok(requests) => requests,
            Err(error) => {
                let message = format!("cannot prepare the race: {error}");
                return world.check_each_step(move || Err(message.clone()));
            }
        };
        let results: Arc<Mutex<Vec<(Request, Answer)>>> = Arc::default();
        let racing = (1..).zip(requests);
        let world = racing.fold(world, |world, (node, request)| {
            let (nodes, results) = (nodes.clone(), results.clone());
            world.writer(move |store| async move {
                let manager = nodes.manager(store, node);
                let answer = carry_out(&manager, request.clone()).await;
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                results.push((request, answer));
            })
        });
        let policy = self.policy.clone();
        let watch = Watch::new(store.clone(), policy.clone(), nodes.start);
        let watch = Arc::new(Mutex::new(watch));
        let at_end = watch.clone();
        world
            .check_each_step(move || {
                let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
                watch.look()
            })
            .check_end(move || {
                let watch = at_end.lock().unwrap_or_else(PoisonError::into_inner);
                let results = results.lock().unwrap_or_else(PoisonError::into_inner);
                let (_, rows) = watch.read()?;
                let tenants = results.iter().map(|(request, _)| request.tenant.clone());
                let landings = watch.audit(&tenants.collect(), &nodes.peppers)?;
                let verifier = nodes.verifier(store.clone())?;
                let requests: Vec<_> = results.iter().map(|(request, _)| request).collect();
                check_order(&requests, &landings, &policy)?;
                results.iter().try_for_each(|(request, answer)| {
                    // If two requests have the same id, one request gets the outcome of the other.
                    let same = |other: &&(Request, Answer)| other.0.id == request.id;
                    let alone = results.iter().filter(same).count() == 1;
                    check_answer(request, answer, &rows, &landings, &verifier, alone)
                        .map_err(|wrong| format!("{:?} {wrong}", request.command))
                })
            })
    }
}

type Answer = Result<Outcome, CommandError>;

async fn carry_out(manager: &KeyManager, request: Request) -> Answer {
    // A role applies in descendant tenants too.
    let roles = matches!(
        request.command,
        Command::ChangeOwnerRole { .. } | Command::SyncOwnerRole { .. }
    );
    if roles || request.command.is_bulk() {
        let receipt = manager.execute_bulk(request).await?;
        let (ended, skipped) = (receipt.ended, receipt.skipped);
        return Ok(Outcome::Swept { ended, skipped });
    }
    manager.execute(request).await.map(|landed| landed.outcome)
}

fn check_answer(
    request: &Request,
    answer: &Answer,
    rows: &Rows,
    landings: &Landings,
    verifier: &Verifier,
    alone: bool,
) -> Result<(), String> {
    let landing = landings.get(&request.id);
    let landed = landing.map_or(0, |landing| landing.commits.len());
    let outcome = match answer {
        Ok(outcome) => outcome,
        Err(CommandError::Denied(Denial::AlreadyCreated { .. })) if landed == 1 => return Ok(()),
        Err(CommandError::Denied(denied)) if landed > 0 => {
            return Err(format!("landed, though it was refused: {denied}"));
        }
        Err(CommandError::Denied(_)) => return Ok(()),
        Err(error) => return Err(format!("failed: {error}")),
    };
    let many = matches!(outcome, Outcome::Swept { .. });
    if landed > 1 && !many {
        return Err(format!("landed {landed} times"));
    }
    for key in made(outcome) {
        let Some(token) = &key.token else { continue };
        let known = verifier.verify(token.expose(), &Need::any().or_publishable());
        if let Err(
            rejection @ (VerifyError::Unknown
            | VerifyError::WrongSecret
            | VerifyError::Malformed(_)),
        ) = known
        {
            return Err(format!(
                "returned a secret that does not verify: {rejection}"
            ));
        }
    }
    let fresh = match outcome {
        Outcome::Issued { key, .. } => key.is_some(),
        Outcome::Rotated { .. } => true,
        _ => false,
    };
    if fresh && landed != 1 {
        return Err("was acknowledged and did not land".to_owned());
    }
    if let Outcome::Issued { provisioned, .. } = outcome {
        let came = landing.map_or(0, |landing| landing.provisioned);
        if alone && provisioned.len() != came {
            let returned = provisioned.len();
            return Err(format!(
                "made {came} keys with the tenant and returned {returned}"
            ));
        }
    }
    check_ended(request, rows)
}

/// Checks that no actor makes a key after a command took away the actor's authority.
fn check_order(requests: &[&Request], landings: &Landings, policy: &Policy) -> Result<(), String> {
    let commits = |request: &Request| Some(&landings.get(&request.id)?.commits);
    for taking in requests {
        // Only the first commit of a bulk command takes away authority.
        let Some(taken) = commits(taking).and_then(BTreeSet::first) else {
            continue;
        };
        for making in requests {
            let made = commits(making).and_then(BTreeSet::last);
            let Some(made) = made.filter(|_| takes_authority(taking, making, policy)) else {
                continue;
            };
            let given_back = requests.iter().any(|giving| {
                let mut landed = commits(giving).into_iter().flatten();
                gives_authority(giving, making) && landed.any(|at| taken < at && at < made)
            });
            if made > taken && !given_back {
                return Err(format!(
                    "{:?} landed at revision {taken}, and {:?} after it, at {made}",
                    taking.command, making.command
                ));
            }
        }
    }
    Ok(())
}

/// Returns whether `making` makes a key that its actor may not make once `taking` has landed.
fn takes_authority(taking: &Request, making: &Request, policy: &Policy) -> bool {
    let makes = matches!(
        making.command,
        Command::Create { .. } | Command::Import { .. }
    );
    let actor = &making.actor;
    let above = taking.tenant.contains(&making.tenant);
    makes
        && match &taking.command {
            Command::Revoke { key, .. }
            | Command::Disable { key }
            | Command::Delete { key, .. } => actor.key_id() == Some(*key),
            Command::RemoveOwner { owner, .. } => above && actor.principal() == Some(owner),
            Command::ChangeOwnerRole { owner, role } => {
                let mut classes = policy.spec().classes.values();
                let creates = classes.any(|class| class.create.roles.contains(role));
                above && actor.principal() == Some(owner) && !creates
            }
            Command::CloseTenant => above,
            _ => false,
        }
}

/// Returns whether `giving` may restore the authority of the actor of `making`.
fn gives_authority(giving: &Request, making: &Request) -> bool {
    match &giving.command {
        Command::Enable { key } => making.actor.key_id() == Some(*key),
        Command::ChangeOwnerRole { owner, .. } | Command::SyncOwnerRole { owner, .. } => {
            making.actor.principal() == Some(owner)
        }
        _ => false,
    }
}

fn made(outcome: &Outcome) -> impl Iterator<Item = &IssuedKey> {
    let (first, others) = match outcome {
        Outcome::Issued { key, provisioned } => (key.as_ref(), provisioned.as_slice()),
        Outcome::Rotated { successor, .. } => (Some(successor), &[][..]),
        _ => (None, &[][..]),
    };
    first.into_iter().chain(others)
}

/// Checks that every key is ended if the end of the key was acknowledged.
fn check_ended(request: &Request, rows: &Rows) -> Result<(), String> {
    for change in rows.values() {
        let Row::Key(record) = &change.row else {
            continue;
        };
        let here = record.tenant == request.tenant;
        let below = request.tenant.contains(&record.tenant);
        let concerned = match &request.command {
            Command::Revoke { key, .. } | Command::Delete { key, .. } => here && record.id == *key,
            Command::RemoveOwner { owner, .. } => below && record.owner.principal() == Some(owner),
            Command::CloseTenant => below,
            _ => false,
        };
        if concerned && !matches!(record.state, KeyState::Revoked { .. }) {
            return Err(format!(
                "was acknowledged, and key {} is not ended",
                record.id
            ));
        }
    }
    match &request.command {
        Command::Delete { key, .. } if rows.contains_key(&RowKey::Key(*key)) => {
            Err("was acknowledged, and the key is still there".to_owned())
        }
        _ => Ok(()),
    }
}

/// The shared parts of all nodes of a race: one policy, one clock, one pepper. Each node has its
/// own seed, which is the same in every execution.
#[derive(Debug)]
struct Nodes {
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    clock: Arc<ManualClock>,
    start: Timestamp,
}

impl Nodes {
    fn new(policy: Policy) -> Self {
        let id = PepperId::new("race").expect("a valid pepper id literal");
        let pepper =
            Pepper::new(id, &[7; Pepper::MIN_LEN]).expect("a pepper of the minimum length");
        let start = Timestamp::from_unix_seconds(1_800_000_000).unwrap_or(Timestamp::MAX);
        Self {
            policies: Arc::new(LivePolicies::new(policy)),
            peppers: Arc::new(PepperRing::new(pepper)),
            clock: Arc::new(ManualClock::at(start)),
            start,
        }
    }

    fn manager(&self, store: Arc<dyn KeyStore>, node: u64) -> KeyManager {
        KeyManager::new(
            store,
            self.policies.clone(),
            self.peppers.clone(),
            self.clock.clone(),
            Arc::new(SeededEntropy::new(node)),
        )
    }

    fn verifier(&self, store: Arc<dyn KeyStore>) -> Result<Verifier, String> {
        let replica = Arc::new(Replica::new(store.clone(), self.clock.clone()));
        block_on(replica.sync()).map_err(|error| error.to_string())?;
        Ok(Verifier::new(
            replica,
            store,
            self.policies.clone(),
            self.peppers.clone(),
        ))
    }
}
