//! A search for privilege escalation. An attacker has a role, some secrets, and all actors made from them.
//! The attacker tries every command, and must never exceed the rights that others granted.
//!
//! Episodes are random and reproducible by seed. `KEYWARD_EPISODES` sets their number. With `--cfg
//! keyward_hole`, as in the long test tier, known holes are reopened, and the search must find each hole.

mod episode;
mod policy;
mod potential;
mod store;

use episode::Episode;

/// Steps per episode: 40, enough for a chain of attacks.
const STEPS: usize = 40;

fn play(seed: u64) -> Result<(), String> {
    let mut episode = Episode::new(seed);
    for step in 0..STEPS {
        let done = episode.step();
        episode
            .check()
            .and(episode.broken.take().map_or(Ok(()), Err))
            .map_err(|wrong| format!("seed {seed}, step {step}, after {done}: {wrong}"))?;
    }
    Ok(())
}

/// Returns the number of episodes to run.
fn episodes() -> u64 {
    let set = std::env::var("KEYWARD_EPISODES").ok();
    let long = cfg!(keyward_hole) || std::env::var("KEYWARD_LONG").is_ok();
    let episodes = set.and_then(|set| set.parse().ok());
    episodes.unwrap_or(if long { 20_000 } else { 400 })
}

#[cfg(not(keyward_hole))]
#[test]
fn no_attacker_exceeds_what_others_gave_it() {
    let (episodes, mut accepted) = (episodes(), 0);
    for seed in 0..episodes {
        play(seed).unwrap_or_else(|wrong| panic!("{wrong}"));
        accepted += episode::accepted();
    }
    // If no attack was accepted, the search tested only refusals and would prove nothing.
    assert!(
        accepted as u64 > episodes,
        "{accepted} attacks were accepted"
    );
}

/// The holes that the search must find. Each one alone lets an attacker exceed the rights that others
/// granted.
///
/// If a second check backs up a check, the check is not listed here, because removing it alone opens no hole.
/// For example, a key's bound also narrows a request beyond the key's scopes. `tests/it/authority` tests such
/// checks one by one.
#[cfg(keyward_hole)]
const HOLES: &[&str] = &[
    "role",
    "lifetime",
    "tenants",
    "environment",
    "addresses",
    "classes",
    "propagation bound",
    "update",
    "dead key acts",
    "publishable key acts",
    "narrow key manages",
    "key owns its owner's keys",
    "stored role is not heeded",
    "secret rises with its owner",
    "anybody looks",
    "anybody provisions",
    "keys renew themselves for ever",
    "a tenant below has no say",
    "nothing is guarded",
];

#[cfg(keyward_hole)]
#[test]
fn every_reopened_hole_is_found() {
    let mut missed = Vec::new();
    for hole in HOLES {
        keyward::open_hole(Some(hole));
        let found = (0..episodes()).find_map(|seed| play(seed).err());
        keyward::open_hole(None);
        match found {
            Some(wrong) => println!("{hole}: {}", wrong.lines().next().unwrap_or_default()),
            None => missed.push(*hole),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
