//! The reference model: the rules told a second time, naively, and what must agree with them.
//!
//! [`Model`] keeps plain structs and loops over all of them; it calls none of the rules. For every
//! command it tells for which reasons it may be refused, and afterwards which of all secrets ever
//! handed out work, and for what. [`run`] plays [`Step`]s on a [`System`] and on the model, and
//! reports where they part, by the invariant that is broken (numbered as in the design).

mod rules;
mod system;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

pub use self::rules::{Model, Why};
pub use self::system::{Asker, Facade, Given, Listed, System, policy};

/// The tenants of the model. Two are above and below each other; two share a beginning only.
pub const TENANTS: [&str; 4] = ["acme", "acme/web", "other", "acme-two"];

/// Who asks.
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
    /// Administers `acme` with a credential that reads reports for 30 days.
    Narrow,
    /// Whoever holds this key, as far as it works.
    Holder(usize),
}

/// How long a key is to live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Life {
    /// As its class says: for ever.
    Class,
    /// For so long.
    For(Duration),
    /// For ever.
    Ever,
}

/// How a key is replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// The old key ends at once.
    Now,
    /// It works for so long.
    Grace(Duration),
    /// It works until the successor is first used, and for so long after that.
    FirstUse(Duration),
}

/// What is asked. Keys are told by number, modulo how many there are; tenants by their place in
/// [`TENANTS`].
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
    /// The key it is about, if it is about one.
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

    /// The same about the key of this number.
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

/// One thing that happens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Somebody asks for something.
    Ask(Who, Ask),
    /// An earlier command is given again, by its number among those that landed.
    Again(usize),
    /// A key is used, and what that leaves to do is done.
    Use(usize),
    /// Time passes.
    Wait(Duration),
    /// Time passes until this key ends, less so many microseconds.
    WaitForEnd(usize, u8),
    /// The wall clock jumps back.
    JumpBack(Duration),
}

/// Where system and model part.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The invariant that is broken, as the design numbers them; zero for none in particular.
    pub invariant: u8,
    /// What happened.
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

/// Plays `steps` on `system` and on a model with the same cap, and compares them after each.
///
/// # Errors
///
/// The first [`Violation`].
pub fn run(system: &mut dyn System, cap: usize, steps: &[Step]) -> Result<(), Violation> {
    let mut model = Model::new(cap, system.clock());
    let mut landed: Vec<(Asker, String, Ask)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        // Every step has an instant of its own, unless the wall clock stands behind.
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
            let told = given.as_ref().map(|_| ()).map_err(|why| *why);
            let wanted = match ask {
                // What landed has landed, whatever became of the asker.
                Ask::Create { .. } | Ask::Import { .. } | Ask::Rotate { .. } => Err(Why::Already),
                _ => Ok(()),
            };
            if told != wanted {
                let message = format!("{ask:?} again was {told:?}, not {wanted:?}");
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
        // What happens below the tenant depends on each place; left to the rules' own tests.
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
    /// Whether giving it again is to change nothing. Commands over many keys go on instead.
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
        // Below a closed tenant its row refuses the keys, ended or not.
        if !model.is_closed(number) && legacy != usize::from(model.is_open(number)) {
            return Err(broken(3, format!("{tenant} has {legacy} legacy keys")));
        }
    }
    Ok(())
}
