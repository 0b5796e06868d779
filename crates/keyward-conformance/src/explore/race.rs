//! Races between key managers on separate nodes, and the invariants that must hold in every race.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::watch::{CommandTraces, RaceChecker, StoreRows};
use super::{Choice, ExplorationReport, Explorer, FailedSchedule, Scenario, block_on};
use keyward::command::{Command, CommandOutcome, IssuedKey, Request};
use keyward::entropy::SeededEntropy;
use keyward::key::KeyState;
use keyward::node::{KeyManager, Replica, Verifier};
use keyward::pepper::{Pepper, PepperId};
use keyward::policy::{LivePolicies, Policy};
use keyward::store::{KeyStore, Row, RowKey};
use keyward::{Actor, CommandError, Denial, ManualClock, Need, PepperRing, Timestamp, VerifyError};

/// The store of a race and a key manager, with which a test executes commands before the race.
#[derive(Debug)]
pub struct RaceSetup {
    nodes: Arc<NodeFactory>,
    store: Arc<dyn KeyStore>,
    manager: KeyManager,
}

impl RaceSetup {
    /// Executes a command before the race. The explorer loses no request and no reply of this command.
    ///
    /// # Errors
    ///
    /// [`CommandError`], as [`KeyManager::execute`] returns it.
    pub fn execute(&self, request: Request) -> Result<CommandOutcome, CommandError> {
        block_on(self.manager.execute(request)).map(|landed| landed.outcome)
    }

    /// Verifies a key before the race, and returns the actor that its holder is.
    ///
    /// # Errors
    ///
    /// [`VerifyError`] if the verifier refuses the key.
    pub fn actor(&self, token: impl AsRef<[u8]>) -> Result<Actor, VerifyError> {
        let verifier = self.nodes.verifier(self.store.clone());
        let verifier = verifier.map_err(|_| VerifyError::StoreUnavailable)?;
        Ok(verifier.verify(token.as_ref(), &Need::any())?.actor())
    }

    /// Returns the store, so that a test can read its contents before the race.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn KeyStore> {
        &self.store
    }
}

type PrepareFn = dyn Fn(&RaceSetup) -> Result<Vec<Request>, CommandError>;

/// A prepared store, and requests that several key managers execute concurrently.
///
/// Each request has its own manager, as if on a separate node.
///
/// These invariants hold after every step:
///
/// - No tenant has more active keys than its cap, or more live keys than twice its cap.
/// - Every open tenant has exactly the legacy key that its policy requires.
/// - A revoked or removed key never comes back.
/// - A follower that reads the change feed from any earlier head misses no change.
///
/// These invariants hold at the end:
///
/// - Every audit chain verifies.
/// - No command was committed twice, and no refused command was committed.
/// - No actor created a key after another command had taken away the actor's authority.
/// - A verifier recognises every returned secret, even if its key has ended.
/// - A successful command has ended every key that it should end, in descendant tenants too.
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
    prepare: Box<PrepareFn>,
}

impl fmt::Debug for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Race")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Race {
    /// Creates a race under `policy`. The function `prepare` fills the store and returns the racing requests.
    /// `prepare` runs before every execution, so it must always return the same requests.
    pub fn new(
        policy: Policy,
        prepare: impl Fn(&RaceSetup) -> Result<Vec<Request>, CommandError> + 'static,
    ) -> Self {
        Self {
            policy,
            prepare: Box::new(prepare),
        }
    }

    /// Runs the race in every possible order. The function `store` returns a fresh, empty store for each
    /// execution.
    ///
    /// # Errors
    ///
    /// [`FailedSchedule`]: the first sequence of choices that breaks an invariant.
    pub fn explore<S: KeyStore>(
        &self,
        explorer: &Explorer,
        store: impl Fn() -> S,
    ) -> Result<ExplorationReport, FailedSchedule> {
        explorer.explore(|| self.scenario(Arc::new(store())))
    }

    /// Runs the race once on an empty store, with the given sequence of choices.
    ///
    /// # Errors
    ///
    /// [`FailedSchedule`] if an invariant is broken, or if the race does not allow a choice of `schedule`.
    pub fn replay<S: KeyStore>(
        &self,
        explorer: &Explorer,
        store: S,
        schedule: &[Choice],
    ) -> Result<(), FailedSchedule> {
        explorer.replay(self.scenario(Arc::new(store)), schedule)
    }

    fn scenario(&self, store: Arc<dyn KeyStore>) -> Scenario {
        let nodes = Arc::new(NodeFactory::new(self.policy.clone()));
        let setup = RaceSetup {
            nodes: nodes.clone(),
            manager: nodes.manager(store.clone(), 0),
            store: store.clone(),
        };
        let scenario = Scenario::over(store.clone());
        let requests = match (self.prepare)(&setup) {
            Ok(requests) => requests,
            Err(error) => {
                let message = format!("cannot prepare the race: {error}");
                return scenario.check_each_step(move || Err(message.clone()));
            }
        };
        let results: Arc<Mutex<Vec<(Request, RaceResult)>>> = Arc::default();
        let racing = (1..).zip(requests);
        let scenario = racing.fold(scenario, |scenario, (node, request)| {
            let (nodes, results) = (nodes.clone(), results.clone());
            scenario.writer(move |store| async move {
                let manager = nodes.manager(store, node);
                let answer = execute(&manager, request.clone()).await;
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                results.push((request, answer));
            })
        });
        let policy = self.policy.clone();
        let checker = RaceChecker::new(store.clone(), policy.clone(), nodes.start);
        let checker = Arc::new(Mutex::new(checker));
        let at_end = checker.clone();
        scenario
            .check_each_step(move || {
                let mut checker = checker.lock().unwrap_or_else(PoisonError::into_inner);
                checker.look()
            })
            .check_end(move || {
                let checker = at_end.lock().unwrap_or_else(PoisonError::into_inner);
                let results = results.lock().unwrap_or_else(PoisonError::into_inner);
                let (_, rows) = checker.read()?;
                let tenants = results.iter().map(|(request, _)| request.tenant.clone());
                let traces = checker.audit(&tenants.collect(), &nodes.peppers)?;
                let verifier = nodes.verifier(store.clone())?;
                let requests: Vec<_> = results.iter().map(|(request, _)| request).collect();
                check_order(&requests, &traces, &policy)?;
                results.iter().try_for_each(|(request, answer)| {
                    // Two requests with the same command id count as one command, so one request returns the
                    // outcome of the other.
                    let same = |other: &&(Request, RaceResult)| other.0.id == request.id;
                    let alone = results.iter().filter(same).count() == 1;
                    check_result(request, answer, &rows, &traces, &verifier, alone)
                        .map_err(|wrong| format!("{:?} {wrong}", request.command))
                })
            })
    }
}

type RaceResult = Result<CommandOutcome, CommandError>;

async fn execute(manager: &KeyManager, request: Request) -> RaceResult {
    // A role change is executed as a bulk command, because it also applies to keys in descendant tenants.
    let roles = matches!(
        request.command,
        Command::ChangeOwnerRole { .. } | Command::SyncOwnerRole { .. }
    );
    if roles || request.command.is_bulk() {
        let receipt = manager.execute_bulk(request).await?;
        let (ended, skipped) = (receipt.ended, receipt.skipped);
        return Ok(CommandOutcome::Swept { ended, skipped });
    }
    manager.execute(request).await.map(|landed| landed.outcome)
}

fn check_result(
    request: &Request,
    answer: &RaceResult,
    rows: &StoreRows,
    traces: &CommandTraces,
    verifier: &Verifier,
    alone: bool,
) -> Result<(), String> {
    let trace = traces.get(&request.id);
    let landed = trace.map_or(0, |trace| trace.commits.len());
    let outcome = match answer {
        Ok(outcome) => outcome,
        Err(CommandError::Denied(Denial::AlreadyCreated { .. })) if landed == 1 => return Ok(()),
        Err(CommandError::Denied(denied)) if landed > 0 => {
            return Err(format!("landed, though it was refused: {denied}"));
        }
        Err(CommandError::Denied(_)) => return Ok(()),
        Err(error) => return Err(format!("failed: {error}")),
    };
    let many = matches!(outcome, CommandOutcome::Swept { .. });
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
        CommandOutcome::Issued { key, .. } => key.is_some(),
        CommandOutcome::Rotated { .. } => true,
        _ => false,
    };
    if fresh && landed != 1 {
        return Err("was acknowledged and did not land".to_owned());
    }
    if let CommandOutcome::Issued { provisioned, .. } = outcome {
        let came = trace.map_or(0, |trace| trace.provisioned);
        if alone && provisioned.len() != came {
            let returned = provisioned.len();
            return Err(format!(
                "made {came} keys with the tenant and returned {returned}"
            ));
        }
    }
    check_ended(request, rows)
}

/// Checks that no actor creates a key after another command has taken away its authority to create keys.
fn check_order(
    requests: &[&Request],
    traces: &CommandTraces,
    policy: &Policy,
) -> Result<(), String> {
    let commits = |request: &Request| Some(&traces.get(&request.id)?.commits);
    for taking in requests {
        // A bulk command has several commits. The first commit takes away the authority, and the others only
        // revoke keys.
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

/// Returns whether the request `making` creates a key, and the request `taking` takes away its actor's
/// authority to do so.
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

/// Returns whether the request `giving` may restore the authority of the actor of the request `making`.
fn gives_authority(giving: &Request, making: &Request) -> bool {
    match &giving.command {
        Command::Enable { key } => making.actor.key_id() == Some(*key),
        Command::ChangeOwnerRole { owner, .. } | Command::SyncOwnerRole { owner, .. } => {
            making.actor.principal() == Some(owner)
        }
        _ => false,
    }
}

fn made(outcome: &CommandOutcome) -> impl Iterator<Item = &IssuedKey> {
    let (first, others) = match outcome {
        CommandOutcome::Issued { key, provisioned } => (key.as_ref(), provisioned.as_slice()),
        CommandOutcome::Rotated { successor, .. } => (Some(successor), &[][..]),
        _ => (None, &[][..]),
    };
    first.into_iter().chain(others)
}

/// Checks that a successful request has revoked or removed every key that it should.
fn check_ended(request: &Request, rows: &StoreRows) -> Result<(), String> {
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

/// Creates the nodes of a race. All nodes share one policy, one clock and one pepper. Each node has its own
/// random seed, which is the same in every execution.
#[derive(Debug)]
struct NodeFactory {
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    clock: Arc<ManualClock>,
    start: Timestamp,
}

impl NodeFactory {
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
