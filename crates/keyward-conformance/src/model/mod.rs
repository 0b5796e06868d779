//! A naive reference implementation of the rules, with which a test compares a real system.
//!
//! [`ReferenceModel`] keeps all state in plain structs, and calls none of the crate's rules. For each
//! command, the model returns the reasons for which a system may refuse the command. After each command, the
//! model knows which secrets work, and for which scopes. The function [`run`] executes the same
//! [`ModelStep`]s on a [`System`] and on the model. The result is the first difference, with the number of
//! the broken invariant.

mod rules;
mod system;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

pub use self::rules::{ReferenceModel, RefusalReason};
pub use self::system::{Facade, IssuedSecrets, ListedKey, ModelActor, System, policy};

/// The tenants of the model. `acme/web` is a child of `acme`. The tenant `acme-two` is no descendant of
/// `acme`; only their names begin alike.
pub const TENANTS: [&str; 4] = ["acme", "acme/web", "other", "acme-two"];

/// The classes of the model's keys. Both have the same rules. The second one also has a
/// [cap of its own](class_cap).
pub const CLASSES: [&str; 2] = ["secret", "extra"];

/// Returns the cap on active keys of the second class, under a cap of `cap` active keys of both classes. It is
/// two lower, so that it is reached first: one of the `cap` keys is the legacy key, of the first class.
#[must_use]
pub fn class_cap(cap: usize) -> usize {
    cap.saturating_sub(2).max(1)
}

/// The actor of a command: a person with a fixed role, or the holder of a key.
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
    /// An administrator of `acme` whose session allows only `reports:read`, and expires 30 days after the
    /// start of the run.
    Narrow,
    /// The holder of the key with this number. If the key does not work at that step, the step is skipped.
    Holder(usize),
}

/// The requested lifetime of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestedLifetime {
    /// The default lifetime of the key's class. In the model's policy, such keys never expire.
    Class,
    /// The key expires after this duration.
    For(Duration),
    /// The key never expires.
    Ever,
}

/// The time at which a rotation ends the old key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RotationTiming {
    /// The old key stops working immediately.
    Now,
    /// The old key stops working after this grace period.
    Grace(Duration),
    /// The old key stops working this grace period after the successor's first use.
    FirstUse(Duration),
}

/// A command of the model. The field `key` is the number of a key; numbers beyond the last key wrap around.
/// The field `tenant` is an index into [`TENANTS`], and `class` is an index into [`CLASSES`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "each variant is the command of the same name")]
pub enum ModelCommand {
    Create {
        tenant: usize,
        class: usize,
        scopes: Vec<&'static str>,
        lifetime: RequestedLifetime,
    },
    Import {
        tenant: usize,
        class: usize,
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
    /// Returns the number of the key that the command changes. `None` if the command changes no existing key.
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

    /// Returns the same command, but for the key with this number.
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

/// One step that [`run`] executes on the system and on the model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ModelStep {
    /// An actor executes a command.
    Command(Persona, ModelCommand),
    /// A command that succeeded earlier is sent again with the same command id. This number selects the
    /// command among those recorded so far.
    Repeat(usize),
    /// A key is verified, and then the node's maintenance runs.
    Use(usize),
    /// Time passes.
    Wait(Duration),
    /// Time passes until shortly before a key expires. The fields are the key's number, and the remaining
    /// microseconds.
    WaitForEnd(usize, u8),
    /// The wall clock is set back by this duration.
    JumpBack(Duration),
}

/// A difference between the system and the model.
#[derive(Clone, Debug)]
pub struct ModelMismatch {
    /// The number that the repository's `docs/design.md` gives the broken invariant. Zero if the difference
    /// concerns no numbered invariant.
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

/// Executes `steps` on a system and on a new model, and compares the two after each step. The system's policy
/// must have the same cap on active keys.
///
/// Returns the commands that the system accepted. A test over many runs should note them in a
/// [`Reached`](crate::Reached): a system that refuses every command differs from the model only if the model
/// would accept one.
///
/// # Errors
///
/// [`ModelMismatch`]: the first difference.
pub fn run(
    system: &mut dyn System,
    cap: usize,
    steps: &[ModelStep],
) -> Result<Vec<ModelCommand>, ModelMismatch> {
    let mut model = ReferenceModel::new(cap, system.clock());
    let mut landed = AcceptedCommands::default();
    for (number, step) in steps.iter().enumerate() {
        // Moves the clock, so that each step has its own instant. A step may still repeat an instant after
        // the wall clock was set back.
        system.wait(Duration::from_millis(1));
        model.clock = system.clock();
        play(system, &mut model, &mut landed, number, step)
            .and_then(|()| compare(system, &model))
            .map_err(|wrong| broken(wrong.invariant, format!("{} at {step:?}", wrong.message)))?;
    }
    Ok(landed.all)
}

/// The commands that the system accepted so far.
#[derive(Default)]
struct AcceptedCommands {
    all: Vec<ModelCommand>,
    /// The commands that [`ModelStep::Repeat`] may send again, each with its actor and its id.
    repeatable: Vec<(ModelActor, String, ModelCommand)>,
}

fn play(
    system: &mut dyn System,
    model: &mut ReferenceModel,
    landed: &mut AcceptedCommands,
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
        ModelStep::Repeat(_) if landed.repeatable.is_empty() => {}
        ModelStep::Repeat(which) => {
            let (actor, id, command) = &landed.repeatable[which % landed.repeatable.len()];
            let given = system.execute(model, actor, id, command);
            let answer = given.as_ref().map(|_| ()).map_err(|reason| *reason);
            let wanted = match command {
                // The system does not check a repeated command for authority again. A repeated command
                // succeeds, or returns `Already` if it created a key.
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
    landed: &mut AcceptedCommands,
    actor: ModelActor,
    id: String,
    command: ModelCommand,
) -> Result<(), ModelMismatch> {
    if model.may_fail_below(&actor, &command) {
        // The command may succeed in its own tenant and fail in a descendant. The model skips it, because
        // other tests cover partial outcomes.
        return Ok(());
    }
    let reasons: BTreeSet<RefusalReason> = model.refusals(&actor, &command);
    match system.execute(model, &actor, &id, &command) {
        Ok(given) if reasons.is_empty() => {
            landed.all.push(command.clone());
            if model.apply(&actor, &command, given) && actor.key.is_none() && command.repeats() {
                landed.repeatable.push((actor, id, command));
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
    /// Returns whether repeating the command changes nothing. A repeated bulk command may change more keys,
    /// because it continues its work.
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
        let live = || listed.iter().filter(|key| key.live);
        for (class, cap) in model.caps() {
            let of_cap = || live().filter(|key| class.is_none_or(|class| key.class == class));
            let active = of_cap().filter(|key| !key.retiring).count();
            let alive = of_cap().count();
            if active > cap || alive > 2 * cap {
                let of_class = class.map(|class| CLASSES[class]);
                let message = format!(
                    "{tenant} has {active} active and {alive} live keys of {of_class:?}, the cap is {cap}"
                );
                return Err(broken(1, message));
            }
        }
        let legacy = live().filter(|key| key.legacy).count();
        // A closed tenant may have any number of legacy keys, because all of its keys are refused.
        if !model.is_closed(number) && legacy != usize::from(model.is_open(number)) {
            return Err(broken(3, format!("{tenant} has {legacy} legacy keys")));
        }
    }
    Ok(())
}
