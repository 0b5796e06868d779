//! The reference model: a second, naive implementation of the rules, and its comparison with a
//! system.
//!
//! [`Model`] keeps plain structs and loops over all of them; it calls none of the rules. The model
//! returns the reasons for which a command may be refused. After each command, the model knows
//! which secrets work, and for which scopes. [`run`] plays [`Step`]s on a [`System`] and on the
//! model. The first difference is reported with the broken invariant, by its number in the design.

mod rules;
mod system;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

pub use self::rules::{Model, Why};
pub use self::system::{Asker, Facade, Given, Listed, System, policy};

/// The tenants of the model. `acme/web` is below `acme`; `acme-two` only shares the beginning of
/// its name.
pub const TENANTS: [&str; 4] = ["acme", "acme/web", "other", "acme-two"];

/// The asker of a command: a person, or the holder of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Who {
    /// Administers `acme` and below.
    Alice,
    /// A developer in `acme`.
    Dev,
    /// A member of `acme`.
    Mem,
    /// Support staff bound to `acme`.
    Support,
    /// Administers `acme/web` alone.
    WebAdmin,
    /// Administers `other`.
    Eve,
    /// An administrator of `acme` whose credential only reads reports, and expires after 30 days.
    Narrow,
    /// The holder of the key with this number, if the key works.
    Holder(usize),
}

/// The lifetime that is requested for a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Life {
    /// The default of the key's class: no expiry.
    Class,
    /// A lifetime.
    For(Duration),
    /// No expiry.
    Ever,
}

/// The mode of a rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// The old key ends immediately.
    Now,
    /// The old key works for this grace.
    Grace(Duration),
    /// The old key works until the successor's first use, and for this grace after that.
    FirstUse(Duration),
}

/// A command of the model. A key is given by number, modulo the number of keys; a tenant by its
/// position in [`TENANTS`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "each is the command of its name")]
pub enum Ask {
    Create {
        tenant: usize,
        scopes: Vec<&'static str>,
        life: Life,
    },
    Import {
        tenant: usize,
        token: u8,
        scopes: Vec<&'static str>,
        life: Life,
    },
    Update {
        key: usize,
        scopes: Option<Vec<&'static str>>,
        life: Option<Life>,
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
        mode: Mode,
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

impl Ask {
    /// Returns the number of the key that the command is about, if there is one.
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

    /// Returns the same command about another key.
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
pub enum Step {
    /// An asker gives a command.
    Ask(Who, Ask),
    /// A command that landed earlier is repeated. The number is the command's position among the
    /// commands that landed.
    Again(usize),
    /// A key is used, and the maintenance after it runs.
    Use(usize),
    /// Time passes.
    Wait(Duration),
    /// Time passes until this many microseconds before the key with this number expires.
    WaitForEnd(usize, u8),
    /// The wall clock jumps back.
    JumpBack(Duration),
}

/// A difference between system and model.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The broken invariant, as numbered in the design. Zero if no particular invariant is broken.
    pub invariant: u8,
    /// The difference.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.invariant, self.message)
    }
}

impl std::error::Error for Violation {}

fn broken(invariant: u8, message: String) -> Violation {
    Violation { invariant, message }
}

/// Plays `steps` on `system` and on a model with the same cap, and compares them after each step.
///
/// # Errors
///
/// The first [`Violation`].
pub fn run(system: &mut dyn System, cap: usize, steps: &[Step]) -> Result<(), Violation> {
    let mut model = Model::new(cap, system.clock());
    let mut landed: Vec<(Asker, String, Ask)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        // Each step gets a distinct instant, unless the wall clock was set back.
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
    model: &mut Model,
    landed: &mut Vec<(Asker, String, Ask)>,
    number: usize,
    step: &Step,
) -> Result<(), Violation> {
    let count = model.keys.len();
    let chosen = |key: usize| (count > 0).then(|| key % count);
    match step {
        Step::Wait(by) => system.wait(*by),
        Step::JumpBack(by) => {
            let before = system.clock();
            system.jump_back(*by);
            model.behind += before.since(system.clock());
        }
        Step::WaitForEnd(key, before) => {
            let end = chosen(*key).and_then(|key| model.keys[key].expires);
            if let Some(end) = end {
                let left = end.since(model.now());
                system.wait(left.saturating_sub(Duration::from_micros(u64::from(*before))));
            }
        }
        Step::Use(key) => {
            if let Some(key) = chosen(*key) {
                system.use_key(&model.keys[key].secret);
                model.used(key);
            }
        }
        Step::Again(_) if landed.is_empty() => {}
        Step::Again(which) => {
            let (asker, id, ask) = &landed[which % landed.len()];
            let given = system.ask(model, asker, id, ask);
            let answer = given.as_ref().map(|_| ()).map_err(|why| *why);
            let wanted = match ask {
                // A command that landed stays landed, even if its asker has lost its authority.
                Ask::Create { .. } | Ask::Import { .. } | Ask::Rotate { .. } => Err(Why::Already),
                _ => Ok(()),
            };
            if answer != wanted {
                let message = format!("{ask:?} again was {answer:?}, not {wanted:?}");
                return Err(broken(0, message));
            }
        }
        Step::Ask(who, ask) => {
            let ask = match ask.key().map(chosen) {
                None => ask.clone(),
                Some(Some(key)) => ask.clone().about(key),
                Some(None) => return Ok(()),
            };
            let Some(asker) = model.asker(*who) else {
                return Ok(());
            };
            let id = format!("step-{number}");
            answer(system, model, landed, asker, id, ask)?;
        }
    }
    model.clock = system.clock();
    Ok(())
}

fn answer(
    system: &mut dyn System,
    model: &mut Model,
    landed: &mut Vec<(Asker, String, Ask)>,
    asker: Asker,
    id: String,
    ask: Ask,
) -> Result<(), Violation> {
    if model.parts_below(&asker, &ask) {
        // In the descendant tenant the outcome differs for each key. The tests of the rules cover
        // these outcomes.
        return Ok(());
    }
    let reasons: BTreeSet<Why> = model.refusals(&asker, &ask);
    match system.ask(model, &asker, &id, &ask) {
        Ok(given) if reasons.is_empty() => {
            if model.apply(&asker, &ask, given) && asker.key.is_none() && ask.repeats() {
                landed.push((asker, id, ask));
            }
            Ok(())
        }
        Err(why) if reasons.contains(&why) => Ok(()),
        Ok(_) => {
            let invariant = reasons.iter().map(|why| why.invariant()).max().unwrap_or(0);
            let message = format!("accepted, though {reasons:?}, by {asker:?}: {ask:?}");
            Err(broken(invariant, message))
        }
        Err(why) => {
            let message = format!("refused for {why:?}, not {reasons:?}, by {asker:?}: {ask:?}");
            Err(broken(why.invariant(), message))
        }
    }
}

impl Ask {
    /// Returns whether repeating the command must change nothing. A repeated bulk command continues
    /// instead.
    const fn repeats(&self) -> bool {
        !matches!(
            self,
            Self::ChangeRole { .. } | Self::RemoveOwner { .. } | Self::Close { .. }
        )
    }
}

fn compare(system: &mut dyn System, model: &Model) -> Result<(), Violation> {
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
        // Below a closed tenant, the closed tenant's row refuses all keys, ended or not. The number
        // of legacy keys does not matter there.
        if !model.is_closed(number) && legacy != usize::from(model.is_open(number)) {
            return Err(broken(3, format!("{tenant} has {legacy} legacy keys")));
        }
    }
    Ok(())
}
