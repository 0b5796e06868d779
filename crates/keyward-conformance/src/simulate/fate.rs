//! Random faults, commands and presentations.

use std::sync::Arc;
use std::time::Duration;

use super::ambush;
use super::drive::{Held, READ, Run, WRITE, any_jump, any_rate, any_weather};
use super::node::Way;
use super::world::{Instant, MILLI, SECOND, State};
use keyward::command::{Command, CommandId, DeleteKey, ImportKey, Invalid, Outcome, Request};
use keyward::key::Digest;
use keyward::store::{RowKey, StoreErrorKind};
use keyward::{
    Actor, CommandError, CreateKey, PrincipalId, Reason, Role, RotateKey, Secret, TenantId,
    UpdateKey,
};

/// 3 attempts at a command. A command with an unknown outcome is repeated under the same id.
const MOST_ATTEMPTS: usize = 3;

/// Injects faults until the world is calm.
pub(super) async fn befall(run: Arc<Run>) {
    loop {
        let gap = {
            let mut state = run.world.state();
            let bound = state.ledger.bound();
            state.dice.between(0, 2 * bound)
        };
        run.world.sleep(gap).await;
        if run.world.state().calm {
            return;
        }
        strike(&run);
        ambush_somebody(&run);
    }
}

/// Injects one fault.
fn strike(run: &Arc<Run>) {
    let mut state = run.world.state();
    let place = state.dice.index(run.setup.nodes);
    match state.dice.between(0, 20) {
        0..6 => {
            let until = lasting(&mut state);
            state.report.partitions += 1;
            state.log(|| format!("node {place} is cut off until {until}"));
            state.places[place].cut_off = until;
        }
        6..10 => {
            let until = lasting(&mut state);
            let now = state.now;
            let suspended = state.dice.chance(500);
            state.report.pauses += 1;
            state.log(|| format!("node {place} stops until {until}, suspended: {suspended}"));
            state.places[place].paused = until;
            if suspended {
                state.places[place].hands.suspend(now, until);
            }
        }
        10..12 => {
            state.report.restarts += 1;
            state.log(|| format!("node {place} is started anew"));
            drop(state);
            run.world.kill(place);
            run.boot(place);
        }
        12..15 => {
            let by = any_jump(&mut state.dice);
            state.report.jumps += 1;
            state.log(|| format!("wall clock of {place} jumps by {by}"));
            state.places[place].hands.jump(by);
        }
        15 => {
            let (now, rate) = (state.now, any_rate(&mut state.dice));
            state.report.jumps += 1;
            state.places[place].hands.drift(now, rate);
        }
        16..18 => {
            let weather = any_weather(&mut state.dice);
            state.log(|| format!("node {place} has {weather:?}"));
            state.places[place].weather = weather;
        }
        18 => {
            state.report.compactions += 1;
            state.log(|| "the store forgets".to_owned());
            drop(state);
            (run.setup.ground.compact)();
        }
        _ => {}
    }
}

/// Starts a random ambush with a probability of 40 %.
fn ambush_somebody(run: &Arc<Run>) {
    let held = run.book().held.clone();
    let mut state = run.world.state();
    let live = |held: &Held| held.id.is_some_and(|key| !state.ledger.is_ended(key));
    let live: Vec<_> = held.into_iter().filter(live).collect();
    if live.is_empty() || !state.dice.chance(400) {
        return;
    }
    let held = state.dice.pick(&live).clone();
    let place = state.dice.index(run.setup.nodes);
    let kind = state.dice.between(0, 3);
    drop(state);
    let (world, run) = (&run.world, run.clone());
    match kind {
        0 => world.spawn(None, ambush::at_the_edge(run, place, held)),
        1 => world.spawn(None, ambush::late_reply(run, place, held)),
        _ => world.spawn(None, ambush::twice(run, place, held)),
    }
}

/// Draws the instant at which a fault ends. Faults often last longer than the bound.
fn lasting(state: &mut State) -> Instant {
    let bound = state.ledger.bound();
    state.now + state.dice.between(bound / 10, 3 * bound)
}

/// Presents keys until the faults end.
pub(super) async fn present(run: Arc<Run>) {
    loop {
        let gap = {
            let mut state = run.world.state();
            state.dice.between(0, 2 * run.setup.between.0)
        };
        run.world.sleep(gap).await;
        let held = run.book().held.clone();
        let mut state = run.world.state();
        if state.calm {
            return;
        }
        if held.is_empty() {
            continue;
        }
        let place = state.dice.index(run.setup.nodes);
        // The newest keys are presented more often, because commands change the newest keys most.
        let newest = held.len().min(4);
        let among = if state.dice.chance(600) {
            newest
        } else {
            held.len()
        };
        let held = held[held.len() - 1 - state.dice.index(among)].clone();
        let way = *state.dice.pick(&[
            Way::Known,
            Way::Known,
            Way::Known,
            Way::Known,
            Way::OrFetch,
            Way::OrFetch,
            Way::OrFetch,
            Way::Fresh,
        ]);
        let needs = *state
            .dice
            .pick(&[Some(READ), Some(WRITE), Some(WRITE), None]);
        drop(state);
        let verify = run.clone().verify(place, held, needs, way);
        run.world.spawn(Some(place), verify);
    }
}

/// Presents a key to every node once: before, just after or long after the bound within which a
/// change must arrive.
fn probe(run: &Arc<Run>, held: &Held) {
    for place in 0..run.setup.nodes {
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
            world.spawn(Some(place), run.verify(place, held, needs, Way::Known));
        });
    }
}

/// Gives commands until the faults end.
pub(super) async fn command(run: Arc<Run>) {
    loop {
        let gap = {
            let mut state = run.world.state();
            state.dice.between(0, 2 * run.setup.between.1)
        };
        run.world.sleep(gap).await;
        if run.world.state().calm {
            return;
        }
        // Never fails: names and drafts of this file are well-formed.
        let Ok(asked) = ask(&run) else {
            continue;
        };
        let place = run.world.state().dice.index(run.setup.nodes);
        let give = give(run.clone(), place, asked);
        run.world.spawn(Some(place), give);
        if run.world.state().dice.chance(200) {
            let upkeep = run.clone();
            run.world.spawn(Some(place), async move {
                if let Some((node, _)) = upkeep.node(place) {
                    upkeep.world.turn(place).await;
                    node.upkeep().await;
                    upkeep.world.state().places[place].busy = false;
                }
            });
        }
    }
}

/// A command to give, with its row and its key.
pub(super) struct Asked {
    request: Request,
    /// The row that the command changes; `None` if it creates one.
    row: Option<RowKey>,
    /// The key to present after the command has returned.
    about: Option<Held>,
    /// The token of an imported key.
    imports: Option<String>,
}

fn ask(run: &Arc<Run>) -> Result<Asked, Invalid> {
    let held = run.book().held.clone();
    let mut state = run.world.state();
    let ended = |held: &Held| held.id.is_some_and(|key| state.ledger.is_ended(key));
    let (ended, live): (Vec<_>, Vec<_>) = held.into_iter().partition(ended);
    state.asked += 1;
    let number = state.asked;
    let dice = &mut state.dice;
    // Chooses mostly a key that can still be changed.
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
    // An existing key stays in its tenant.
    let place = match (&row, &command) {
        (Some(RowKey::Key(key)), _) => state.ledger.tenant_of(*key).unwrap_or(tenant),
        (_, Command::CloseTenant) => below,
        _ => tenant,
    };
    let id = CommandId::new(format!("c{number}"))?;
    let request = keyward::command::Request::new(id, admin()?, place, command);
    Ok(Asked {
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

impl Asked {
    /// Creates a command about an existing key.
    pub(super) fn about(
        run: &Arc<Run>,
        row: RowKey,
        held: &Held,
        command: Command,
    ) -> Result<Self, Invalid> {
        let mut state = run.world.state();
        state.asked += 1;
        let tenant = command.key().and_then(|key| state.ledger.tenant_of(key));
        let id = CommandId::new(format!("c{}", state.asked))?;
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

pub(super) async fn give(run: Arc<Run>, place: usize, asked: Asked) {
    let Asked {
        request,
        row,
        about,
        imports,
    } = asked;
    if let Some(token) = &imports {
        // A client may present the token before it is imported.
        run.book().held.push(Held {
            token: token.clone(),
            id: None,
        });
    }
    for _ in 0..MOST_ATTEMPTS {
        let Some((node, life)) = run.node(place) else {
            return;
        };
        let patience = {
            let mut state = run.world.state();
            state.report.commands += 1;
            state.log(|| {
                format!(
                    "node {place} is asked {}: {:?}",
                    request.id, request.command
                )
            });
            3 * run.setup.patience + state.dice.between(0, SECOND)
        };
        run.world.turn(place).await;
        let done = run.world.within(patience, node.give(request.clone())).await;
        run.world.state().places[place].busy = false;
        let calm = {
            let mut state = run.world.state();
            state.log(|| format!("node {place} answers {}: {done:?}", request.id));
            if state.places[place].life != life {
                return;
            }
            state.report.returned += u64::from(matches!(done, Some(Ok(_))));
            state.calm
        };
        match done {
            Some(Ok(landed)) => {
                let revision = landed.receipt.revision();
                if let Some(row) = &row {
                    run.returned(place, life, row, (&request.id, revision));
                }
                run.made(landed.outcome, imports.as_deref());
                about.iter().for_each(|held| probe(&run, held));
                return;
            }
            Some(Err(CommandError::Store(error))) if error.kind() == StoreErrorKind::Corrupt => {
                return;
            }
            Some(Err(CommandError::Store(_) | CommandError::Contended { .. })) | None if !calm => {
                run.world.sleep(50 * MILLI).await;
            }
            _ => return,
        }
    }
}

impl Run {
    /// Records the tokens that the command returned, and immediately presents them to another node.
    fn made(self: &Arc<Self>, outcome: Outcome, imported: Option<&str>) {
        let keys = match outcome {
            Outcome::Issued { key, provisioned } => key.into_iter().chain(provisioned).collect(),
            Outcome::Rotated { successor, .. } => vec![successor],
            _ => Vec::new(),
        };
        for key in keys {
            let text = key.token.as_ref().map(Secret::expose).or(imported);
            let Some(token) = text.map(str::to_owned) else {
                continue;
            };
            let id = Some(key.id);
            let held = Held { token, id };
            {
                let mut book = self.book();
                book.held.retain(|other| other.token != held.token);
                book.held.push(held.clone());
            }
            let other = self.world.state().dice.index(self.setup.nodes);
            for way in [Way::Known, Way::OrFetch] {
                let verify = self.clone().verify(other, held.clone(), Some(READ), way);
                self.world.spawn(Some(other), verify);
            }
        }
    }
}
