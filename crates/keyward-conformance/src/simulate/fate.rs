//! The random events of a run: faults, commands, and keys that clients present.

use std::sync::Arc;
use std::time::Duration;

use super::ambush;
use super::drive::{HeldKey, READ, Run, WRITE, any_jump, any_network, any_rate};
use super::node::VerifyPath;
use super::world::{MILLI, SECOND, SimInstant, WorldState};
use keyward::command::{
    Command, CommandId, CommandOutcome, DeleteKey, ImportKey, Invalid, Request,
};
use keyward::key::Digest;
use keyward::store::{RowKey, StoreErrorKind};
use keyward::{
    Actor, CommandError, CreateKey, PrincipalId, Reason, Role, RotateKey, Secret, TenantId,
    UpdateKey,
};

/// 3 attempts to execute a command. All have the same command id: a failed attempt may have been committed,
/// and the next attempt must then change nothing.
const MOST_ATTEMPTS: usize = 3;

/// Injects random faults, one after another, until the run ends its faults.
pub(super) async fn inject_faults(run: Arc<Run>) {
    loop {
        let gap = {
            let mut state = run.world.state();
            let bound = state.ledger.bound();
            state.dice.between(0, 2 * bound)
        };
        run.world.sleep(gap).await;
        if run.world.state().faults_ended {
            return;
        }
        inject_fault(&run);
        start_ambush(&run);
    }
}

/// Injects one random fault.
fn inject_fault(run: &Arc<Run>) {
    let mut state = run.world.state();
    let machine = state.dice.index(run.setup.nodes);
    match state.dice.between(0, 20) {
        0..6 => {
            let until = fault_end(&mut state);
            state.report.partitions += 1;
            state.log(|| format!("node {machine} is cut off until {until}"));
            state.machines[machine].cut_off = until;
        }
        6..10 => {
            let until = fault_end(&mut state);
            let now = state.now;
            let suspended = state.dice.chance(500);
            state.report.pauses += 1;
            state.log(|| format!("node {machine} stops until {until}, suspended: {suspended}"));
            state.machines[machine].paused = until;
            if suspended {
                state.machines[machine].clock.suspend(now, until);
            }
        }
        10..12 => {
            state.report.restarts += 1;
            state.log(|| format!("node {machine} restarts"));
            drop(state);
            run.world.kill(machine);
            run.boot(machine);
        }
        12..15 => {
            let by = any_jump(&mut state.dice);
            state.report.jumps += 1;
            state.log(|| format!("wall clock of {machine} jumps by {by}"));
            state.machines[machine].clock.jump(by);
        }
        15 => {
            let (now, rate) = (state.now, any_rate(&mut state.dice));
            state.report.jumps += 1;
            state.machines[machine].clock.drift(now, rate);
        }
        16..18 => {
            let network = any_network(&mut state.dice);
            state.log(|| format!("node {machine} has {network:?}"));
            state.machines[machine].network = network;
        }
        18 => {
            state.report.compactions += 1;
            state.log(|| "the store compacts".to_owned());
            drop(state);
            (run.setup.backend.compact)();
        }
        _ => {}
    }
}

/// Starts a random scenario of [`ambush`] with a probability of 40 %, if there is a live key for it.
fn start_ambush(run: &Arc<Run>) {
    let held = run.observations().held.clone();
    let mut state = run.world.state();
    let live = |held: &HeldKey| held.id.is_some_and(|key| !state.ledger.is_ended(key));
    let live: Vec<_> = held.into_iter().filter(live).collect();
    if live.is_empty() || !state.dice.chance(400) {
        return;
    }
    let held = state.dice.pick(&live).clone();
    let machine = state.dice.index(run.setup.nodes);
    let kind = state.dice.between(0, 3);
    drop(state);
    let (world, run) = (&run.world, run.clone());
    match kind {
        0 => world.spawn(None, ambush::at_the_edge(run, machine, held)),
        1 => world.spawn(None, ambush::late_reply(run, machine, held)),
        _ => world.spawn(None, ambush::twice(run, machine, held)),
    }
}

/// Returns a random time at which a fault ends. Many faults last longer than the staleness bound.
fn fault_end(state: &mut WorldState) -> SimInstant {
    let bound = state.ledger.bound();
    state.now + state.dice.between(bound / 10, 3 * bound)
}

/// Presents random keys to random nodes until the faults end.
pub(super) async fn present_keys(run: Arc<Run>) {
    loop {
        let gap = {
            let mut state = run.world.state();
            state.dice.between(0, 2 * run.setup.between.0)
        };
        run.world.sleep(gap).await;
        let held = run.observations().held.clone();
        let mut state = run.world.state();
        if state.faults_ended {
            return;
        }
        if held.is_empty() {
            continue;
        }
        let machine = state.dice.index(run.setup.nodes);
        // Prefers the four newest keys, because most commands change new keys.
        let newest = held.len().min(4);
        let among = if state.dice.chance(600) {
            newest
        } else {
            held.len()
        };
        let held = held[held.len() - 1 - state.dice.index(among)].clone();
        let path = *state.dice.pick(&[
            VerifyPath::Local,
            VerifyPath::Local,
            VerifyPath::Local,
            VerifyPath::Local,
            VerifyPath::OrFetch,
            VerifyPath::OrFetch,
            VerifyPath::OrFetch,
            VerifyPath::Fresh,
        ]);
        let needs = *state
            .dice
            .pick(&[Some(READ), Some(WRITE), Some(WRITE), None]);
        drop(state);
        let verify = run.clone().verify(machine, held, needs, path);
        run.world.spawn(Some(machine), verify);
    }
}

/// Presents a key once to every node. The time is random: before the staleness bound has passed, just
/// afterwards, or much later.
fn probe(run: &Arc<Run>, held: &HeldKey) {
    for machine in 0..run.setup.nodes {
        let mut state = run.world.state();
        let bound = state.ledger.bound();
        let at = state.now
            + match state.dice.between(0, 4) {
                0 => state.dice.between(0, bound),
                1 | 2 => bound + state.dice.between(0, bound / 10),
                _ => bound + state.dice.between(0, 3 * bound),
            };
        let needs = *state.dice.pick(&[Some(READ), Some(WRITE), None]);
        drop(state);
        let (run, held) = (run.clone(), held.clone());
        let world = run.world.clone();
        world.spawn(None, async move {
            run.world.until(at).await;
            let world = run.world.clone();
            world.spawn(
                Some(machine),
                run.verify(machine, held, needs, VerifyPath::Local),
            );
        });
    }
}

/// Executes random commands until the faults end.
pub(super) async fn issue_commands(run: Arc<Run>) {
    loop {
        let gap = {
            let mut state = run.world.state();
            state.dice.between(0, 2 * run.setup.between.1)
        };
        run.world.sleep(gap).await;
        if run.world.state().faults_ended {
            return;
        }
        // The error never occurs, because every name that `plan_command` parses is valid.
        let Ok(planned) = plan_command(&run) else {
            continue;
        };
        let machine = run.world.state().dice.index(run.setup.nodes);
        let execute = execute(run.clone(), machine, planned);
        run.world.spawn(Some(machine), execute);
        if run.world.state().dice.chance(200) {
            let upkeep = run.clone();
            run.world.spawn(Some(machine), async move {
                if let Some((node, _)) = upkeep.node(machine) {
                    upkeep.world.begin_command(machine).await;
                    node.upkeep().await;
                    upkeep.world.state().machines[machine].busy = false;
                }
            });
        }
    }
}

/// A command to execute, with the row that it changes, and the key to present afterwards.
pub(super) struct PlannedCommand {
    request: Request,
    /// The row that the command changes. `None` for a command that creates a key.
    row: Option<RowKey>,
    /// The key to present after the command has returned.
    about: Option<HeldKey>,
    /// The token of the key that the command imports, if it imports one.
    imports: Option<String>,
}

fn plan_command(run: &Arc<Run>) -> Result<PlannedCommand, Invalid> {
    let held = run.observations().held.clone();
    let mut state = run.world.state();
    let ended = |held: &HeldKey| held.id.is_some_and(|key| state.ledger.is_ended(key));
    let (ended, live): (Vec<_>, Vec<_>) = held.into_iter().partition(ended);
    state.planned += 1;
    let number = state.planned;
    let dice = &mut state.dice;
    // In 10 % of the cases, the command is for a key that has already ended, if there is one.
    let held = if dice.chance(900) { live } else { ended };
    let acme = TenantId::new("acme")?;
    let below = TenantId::new("acme/web")?;
    let tenant = if dice.chance(700) {
        acme.clone()
    } else {
        below.clone()
    };
    let owner = PrincipalId::new(*dice.pick(&["bob", "carol"]))?;
    let roles = [Role::DEVELOPER, Role::DEVELOPER, Role::MEMBER];
    let role = dice.pick(&roles).clone();
    let newest = held.len().min(6);
    let about = (newest > 0).then(|| held[held.len() - 1 - dice.index(newest)].clone());
    let key = about.as_ref().and_then(|held| held.id);
    let mut imports = None;
    let mut row = key.map(RowKey::Key);
    let kind = if key.is_none() {
        0
    } else {
        dice.between(0, 100)
    };
    let command = match (kind, key) {
        (28..46, Some(key)) => Command::Revoke {
            key,
            revocation: Reason::Lost.into(),
        },
        (46..54, Some(key)) => Command::Disable { key },
        (54..62, Some(key)) => Command::Enable { key },
        (62..70, Some(key)) => Command::Delete {
            key,
            deletion: DeleteKey::plain(),
        },
        (70..80, Some(key)) => Command::Rotate {
            key,
            how: rotation(dice.between(0, 4)),
        },
        (80..82, Some(key)) => Command::FinishRotation { key },
        (82..84, Some(key)) => Command::CancelRotation { key },
        (84..87, Some(key)) => UpdateKey::new().scopes([READ]).into_command(key)?,
        (87..95, _) => {
            row = Some(RowKey::Owner(tenant.clone(), owner.clone()));
            Command::ChangeOwnerRole { owner, role }
        }
        (95..98, _) => {
            row = Some(RowKey::Owner(tenant.clone(), owner.clone()));
            Command::RemoveOwner { owner }
        }
        (98, _) if number > 30 => {
            row = Some(RowKey::Tenant(below.clone()));
            Command::CloseTenant
        }
        (_, _) => {
            row = None;
            let mut key = CreateKey::new(format!("key {number}").as_str())
                .scopes([READ, WRITE])
                .environment("live")
                .owned_by(owner, Role::DEVELOPER);
            if dice.chance(250) {
                key = key.expires_in(Duration::from_secs(dice.between(1, 60)));
            }
            if dice.chance(150) {
                let token = format!("imported-{number}");
                let import = ImportKey::sha256(Digest::sha256(&token), key);
                imports = Some(token);
                import.into_command()?
            } else {
                key.into_command()?
            }
        }
    };
    // A command on an existing key runs in the tenant of that key, not in the tenant drawn above.
    let tenant = match (&row, &command) {
        (Some(RowKey::Key(key)), _) => state.ledger.tenant_of(*key).unwrap_or(tenant),
        (_, Command::CloseTenant) => below,
        _ => tenant,
    };
    let id = CommandId::new(format!("c{number}"))?;
    let request = keyward::command::Request::new(id, admin()?, tenant, command);
    Ok(PlannedCommand {
        request,
        row,
        about,
        imports,
    })
}

fn admin() -> Result<Actor, Invalid> {
    let alice = PrincipalId::new("alice")?;
    Ok(Actor::new(TenantId::new("acme")?, alice, Role::ADMIN))
}

impl PlannedCommand {
    /// Plans a command on a row that exists.
    pub(super) fn about(
        run: &Arc<Run>,
        row: RowKey,
        held: &HeldKey,
        command: Command,
    ) -> Result<Self, Invalid> {
        let mut state = run.world.state();
        state.planned += 1;
        let tenant = command.key().and_then(|key| state.ledger.tenant_of(key));
        let id = CommandId::new(format!("c{}", state.planned))?;
        let tenant = tenant.unwrap_or(TenantId::new("acme")?);
        let request = keyward::command::Request::new(id, admin()?, tenant, command);
        Ok(Self {
            request,
            row: Some(row),
            about: Some(held.clone()),
            imports: None,
        })
    }
}

fn rotation(kind: u64) -> RotateKey {
    match kind {
        0 => RotateKey::immediate(),
        1 => RotateKey::grace(Duration::from_secs(3)),
        2 => RotateKey::grace(Duration::from_secs(20)),
        _ => RotateKey::on_first_use(Duration::from_secs(5)),
    }
}

pub(super) async fn execute(run: Arc<Run>, machine: usize, planned: PlannedCommand) {
    let PlannedCommand {
        request,
        row,
        about,
        imports,
    } = planned;
    if let Some(token) = &imports {
        // Clients may present the token of an imported key even before the import.
        run.observations().held.push(HeldKey {
            token: token.clone(),
            id: None,
        });
    }
    for _ in 0..MOST_ATTEMPTS {
        let Some((node, incarnation)) = run.node(machine) else {
            return;
        };
        let patience = {
            let mut state = run.world.state();
            state.report.commands += 1;
            state.log(|| {
                format!(
                    "node {machine} executes {}: {:?}",
                    request.id, request.command
                )
            });
            3 * run.setup.patience + state.dice.between(0, SECOND)
        };
        run.world.begin_command(machine).await;
        let done = run
            .world
            .within(patience, node.execute(request.clone()))
            .await;
        run.world.state().machines[machine].busy = false;
        let faults_ended = {
            let mut state = run.world.state();
            state.log(|| format!("node {machine} returns {}: {done:?}", request.id));
            if state.machines[machine].incarnation != incarnation {
                return;
            }
            state.report.returned += u64::from(matches!(done, Some(Ok(_))));
            state.faults_ended
        };
        match done {
            Some(Ok(landed)) => {
                let revision = landed.receipt.revision();
                if let Some(row) = &row {
                    run.returned(machine, incarnation, row, (&request.id, revision));
                }
                run.made(landed.outcome, imports.as_deref());
                about.iter().for_each(|held| probe(&run, held));
                return;
            }
            Some(Err(CommandError::Store(error))) if error.kind() == StoreErrorKind::Corrupt => {
                return;
            }
            Some(Err(CommandError::Store(_) | CommandError::Contended { .. })) | None
                if !faults_ended =>
            {
                run.world.sleep(50 * MILLI).await;
            }
            _ => return,
        }
    }
}

impl Run {
    /// Records the tokens of the keys that a command created. Presents each to a random node immediately.
    fn made(self: &Arc<Self>, outcome: CommandOutcome, imported: Option<&str>) {
        let keys = match outcome {
            CommandOutcome::Issued { key, provisioned } => {
                key.into_iter().chain(provisioned).collect()
            }
            CommandOutcome::Rotated { successor, .. } => vec![successor],
            _ => Vec::new(),
        };
        for key in keys {
            let text = key.token.as_ref().map(Secret::expose).or(imported);
            let Some(token) = text.map(str::to_owned) else {
                continue;
            };
            let id = Some(key.id);
            let held = HeldKey { token, id };
            {
                let mut observations = self.observations();
                observations.held.retain(|other| other.token != held.token);
                observations.held.push(held.clone());
            }
            let other = self.world.state().dice.index(self.setup.nodes);
            for path in [VerifyPath::Local, VerifyPath::OrFetch] {
                let verify = self.clone().verify(other, held.clone(), Some(READ), path);
                self.world.spawn(Some(other), verify);
            }
        }
    }
}
