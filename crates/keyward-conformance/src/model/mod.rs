//! A naive reference implementation of the rules, to compare a system with.
//!
//! [`ReferenceModel`] keeps plain structs, loops over all of them, and calls none of the crate's rules. For
//! each command, the model returns the allowed reasons to refuse it. After each command, the model knows
//! which secrets work, and for which scopes. [`run`] plays [`ModelStep`]s on a [`System`] and on the model.
//! It reports the first difference, with the number of the broken invariant.

mod rules;
mod system;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

pub use self::rules::{ReferenceModel, RefusalReason};
pub use self::system::{Facade, IssuedSecrets, ListedKey, ModelActor, System, policy};

/// The tenants of the model. `acme/web` is a child of `acme`. `acme-two` is unrelated to `acme` despite its
/// name.
pub const TENANTS: [&str; 4] = ["acme", "acme/web", "other", "acme-two"];

/// The actor of a command: a person, or the holder of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Persona {
    /// An administrator of `acme` and its descendants.
    Alice,
    /// A developer in `acme`.
    Dev,
    /// A member of `acme`.
    Mem,
    /// A support employee of `acme`.
    Support,
    /// An administrator of `acme/web` only.
    WebAdmin,
    /// An administrator of `other`.
    Eve,
    /// An administrator of `acme` whose credential only reads reports, and expires after 30 days.
    Narrow,
    /// The holder of the key with this number. A step is skipped if the key does not work.
    Holder(usize),
}

/// The requested lifetime of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestedLifetime {
    /// The default of the key's class: no expiry.
    Class,
    /// The key expires after this duration.
    For(Duration),
    /// The key never expires.
    Ever,
}

/// The end of the old key in a rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RotationTiming {
    /// The old key ends immediately.
    Now,
    /// The old key works for this grace period.
    Grace(Duration),
    /// The old key works until the successor's first use, and then for this grace period.
    FirstUse(Duration),
}

/// A command of the model. `key` is the number of a key, modulo the number of keys. `tenant` is a position in
/// [`TENANTS`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "each variant is the command of the same name")]
pub enum ModelCommand {
    Create {
        tenant: usize,
        scopes: Vec<&'static str>,
        lifetime: RequestedLifetime,
    },
    Import {
        tenant: usize,
        token: u8,
        scopes: Vec<&'static str>,
        lifetime: RequestedLifetime,
    },
    Update {
        key: usize,
        scopes: Option<Vec<&'static str>>,
        lifetime: Option<RequestedLifetime>,
    },
    Revoke {
        key: usize,
    },
    Disable {
        key: usize,
    },
    Enable {
        key: usize,
    },
    Delete {
        key: usize,
    },
    Rotate {
        key: usize,
        mode: RotationTiming,
    },
    Finish {
        key: usize,
    },
    Cancel {
        key: usize,
    },
    ChangeRole {
        tenant: usize,
        owner: &'static str,
        role: &'static str,
    },
    RemoveOwner {
        tenant: usize,
        owner: &'static str,
    },
    Close {
        tenant: usize,
    },
    Provision {
        tenant: usize,
    },
}

impl ModelCommand {
    /// Returns the number of the key that the command changes, if any.
    #[must_use]
    pub const fn key(&self) -> Option<usize> {
        match self {
            Self::Update { key, .. }
            | Self::Revoke { key }
            | Self::Disable { key }
            | Self::Enable { key }
            | Self::Delete { key }
            | Self::Rotate { key, .. }
            | Self::Finish { key }
            | Self::Cancel { key } => Some(*key),
            _ => None,
        }
    }

    /// Returns the command for another key.
    #[must_use]
    pub fn about(mut self, number: usize) -> Self {
        match &mut self {
            Self::Update { key, .. }
            | Self::Revoke { key }
            | Self::Disable { key }
            | Self::Enable { key }
            | Self::Delete { key }
            | Self::Rotate { key, .. }
            | Self::Finish { key }
            | Self::Cancel { key } => *key = number,
            _ => {}
        }
        self
    }
}

/// One step of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ModelStep {
    /// An actor executes a command.
    Command(Persona, ModelCommand),
    /// An earlier successful command is repeated. The number selects one of the commands recorded so far.
    Repeat(usize),
    /// A key is verified, and maintenance runs afterwards.
    Use(usize),
    /// Time passes.
    Wait(Duration),
    /// Time passes until this many microseconds before the expiry of the key with this number.
    WaitForEnd(usize, u8),
    /// The wall clock jumps back.
    JumpBack(Duration),
}

/// A difference between the system and the model.
#[derive(Clone, Debug)]
pub struct ModelMismatch {
    /// The number of the broken invariant; zero if no specific invariant is broken.
    pub invariant: u8,
    /// A description of the difference.
    pub message: String,
}

impl fmt::Display for ModelMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.invariant, self.message)
    }
}

impl std::error::Error for ModelMismatch {}

fn broken(invariant: u8, message: String) -> ModelMismatch {
    ModelMismatch { invariant, message }
}

/// Plays `steps` on `system` and on a model with the same cap, and compares them after each step.
///
/// # Errors
///
/// The first [`ModelMismatch`].
pub fn run(system: &mut dyn System, cap: usize, steps: &[ModelStep]) -> Result<(), ModelMismatch> {
    let mut model = ReferenceModel::new(cap, system.clock());
    let mut landed: Vec<(ModelActor, String, ModelCommand)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        // Gives each step a distinct instant, unless the wall clock was set back.
        system.wait(Duration::from_millis(1));
        model.clock = system.clock();
        play(system, &mut model, &mut landed, number, step)
            .and_then(|()| compare(system, &model))
            .map_err(|wrong| broken(wrong.invariant, format!("{} at {step:?}", wrong.message)))?;
    }
    Ok(())
}

fn play(
    system: &mut dyn System,
    model: &mut ReferenceModel,
    landed: &mut Vec<(ModelActor, String, ModelCommand)>,
    number: usize,
    step: &ModelStep,
) -> Result<(), ModelMismatch> {
    let count = model.keys.len();
    let chosen = |key: usize| (count > 0).then(|| key % count);
    match step {
        ModelStep::Wait(by) => system.wait(*by),
        ModelStep::JumpBack(by) => {
            let before = system.clock();
            system.jump_back(*by);
            model.behind += before.since(system.clock());
        }
        ModelStep::WaitForEnd(key, before) => {
            let end = chosen(*key).and_then(|key| model.keys[key].expires);
            if let Some(end) = end {
                let left = end.since(model.now());
                system.wait(left.saturating_sub(Duration::from_micros(u64::from(*before))));
            }
        }
        ModelStep::Use(key) => {
            if let Some(key) = chosen(*key) {
                system.use_key(&model.keys[key].secret);
                model.used(key);
            }
        }
        ModelStep::Repeat(_) if landed.is_empty() => {}
        ModelStep::Repeat(which) => {
            let (actor, id, command) = &landed[which % landed.len()];
            let given = system.execute(model, actor, id, command);
            let answer = given.as_ref().map(|_| ()).map_err(|reason| *reason);
            let wanted = match command {
                // A repetition does not fail for lost authority: it succeeds, or returns `Already`.
                ModelCommand::Create { .. }
                | ModelCommand::Import { .. }
                | ModelCommand::Rotate { .. } => Err(RefusalReason::Already),
                _ => Ok(()),
            };
            if answer != wanted {
                let message = format!("{command:?} again was {answer:?}, not {wanted:?}");
                return Err(broken(0, message));
            }
        }
        ModelStep::Command(persona, command) => {
            let command = match command.key().map(chosen) {
                None => command.clone(),
                Some(Some(key)) => command.clone().about(key),
                Some(None) => return Ok(()),
            };
            let Some(actor) = model.actor(*persona) else {
                return Ok(());
            };
            let id = format!("step-{number}");
            answer(system, model, landed, actor, id, command)?;
        }
    }
    model.clock = system.clock();
    Ok(())
}

fn answer(
    system: &mut dyn System,
    model: &mut ReferenceModel,
    landed: &mut Vec<(ModelActor, String, ModelCommand)>,
    actor: ModelActor,
    id: String,
    command: ModelCommand,
) -> Result<(), ModelMismatch> {
    if model.may_fail_below(&actor, &command) {
        // The command can fail in a descendant tenant only. The tests of the rules cover partial outcomes.
        return Ok(());
    }
    let reasons: BTreeSet<RefusalReason> = model.refusals(&actor, &command);
    match system.execute(model, &actor, &id, &command) {
        Ok(given) if reasons.is_empty() => {
            if model.apply(&actor, &command, given) && actor.key.is_none() && command.repeats() {
                landed.push((actor, id, command));
            }
            Ok(())
        }
        Err(reason) if reasons.contains(&reason) => Ok(()),
        Ok(_) => {
            let invariant = reasons
                .iter()
                .map(|reason| reason.invariant())
                .max()
                .unwrap_or(0);
            let message = format!("accepted, though {reasons:?}, by {actor:?}: {command:?}");
            Err(broken(invariant, message))
        }
        Err(reason) => {
            let message =
                format!("refused for {reason:?}, not {reasons:?}, by {actor:?}: {command:?}");
            Err(broken(reason.invariant(), message))
        }
    }
}

impl ModelCommand {
    /// Returns whether a repetition of the command changes nothing. A repeated bulk command continues
    /// instead.
    const fn repeats(&self) -> bool {
        !matches!(
            self,
            Self::ChangeRole { .. } | Self::RemoveOwner { .. } | Self::Close { .. }
        )
    }
}

fn compare(system: &mut dyn System, model: &ReferenceModel) -> Result<(), ModelMismatch> {
    for (number, key) in model.keys.iter().enumerate() {
        let wanted = model.sees(number);
        let found = system.sees(&key.secret);
        let here = wanted.is_none() && system.accepts_here(&key.secret);
        if wanted == found && !here {
            continue;
        }
        let invariant = if key.revoked || key.deleted {
            2
        } else if key.expires.is_some_and(|end| {
            let off = end.since(model.now()).max(model.now().since(end));
            wanted.is_none() || off <= Duration::from_millis(1)
        }) {
            8
        } else if wanted.is_some() && found.is_some() || wanted.is_none() {
            4
        } else if key.legacy {
            3
        } else {
            2
        };
        let place = if here { "here" } else { "elsewhere" };
        let message = format!("key {number} is seen {place} as {found:?}, not {wanted:?}: {key:?}");
        return Err(broken(invariant, message));
    }
    for (number, tenant) in TENANTS.iter().enumerate() {
        let listed = system.list(tenant);
        let live: Vec<_> = listed.iter().filter(|key| key.live).collect();
        let active = live.iter().filter(|key| !key.retiring).count();
        if active > model.cap || live.len() > 2 * model.cap {
            let message = format!("{tenant} has {active} active and {} live keys", live.len());
            return Err(broken(1, message));
        }
        let legacy = live.iter().filter(|key| key.legacy).count();
        // In a closed tenant all keys are refused in any state, so the number of legacy keys does not matter.
        if !model.is_closed(number) && legacy != usize::from(model.is_open(number)) {
            return Err(broken(3, format!("{tenant} has {legacy} legacy keys")));
        }
    }
    Ok(())
}
