//! Faults that chance alone produces too rarely: changes at the worst moment for a lease protocol.

use std::sync::Arc;

use super::drive::{Held, Run, WRITE};
use super::fate::{Asked, give};
use super::node::Way;
use super::world::{Instant, MILLI, SECOND, Weather};
use keyward::command::{Command, DeleteKey};
use keyward::store::RowKey;
use keyward::{KeyId, Reason};

/// Revokes a key just after a node has synced, and then cuts the node off. The node may accept the
/// key until its lease ends, and not an instant longer.
pub(super) async fn at_the_edge(run: Arc<Run>, place: usize, held: Held) {
    let Some(asked_at) = served(&run, place).await else {
        return;
    };
    let (elsewhere, bound) = {
        let mut state = run.world.state();
        let bound = state.ledger.bound();
        let until = state.now + 2 * bound;
        state.log(|| format!("node {place} hears of nothing more until {until}"));
        state.places[place].cut_off = until;
        let elsewhere = other(run.setup.nodes, place, state.dice.next());
        (elsewhere, bound)
    };
    change(&run, elsewhere, &held, |key| Command::Revoke {
        key,
        revocation: Reason::Lost.into(),
    });
    for _ in 0..16 {
        let mut state = run.world.state();
        let around = state.dice.between(0, 40 * MILLI);
        let at = (asked_at + bound + around).saturating_sub(10 * MILLI);
        drop(state);
        let (run, held) = (run.clone(), held.clone());
        run.world.clone().spawn(None, async move {
            run.world.until(at).await;
            let world = run.world.clone();
            world.spawn(Some(place), run.verify(place, held, None, Way::Known));
        });
    }
}

/// Removes a key while a node is reading it through the store. Before the reply arrives, the store
/// compacts the tombstone and the node starts over.
pub(super) async fn late_reply(run: Arc<Run>, place: usize, held: Held) {
    let elsewhere = {
        let mut state = run.world.state();
        state.places[place].weather = Weather {
            usual: 100 * MILLI,
            most: SECOND,
            loss: 5,
        };
        other(run.setup.nodes, place, state.dice.next())
    };
    // This command changes nothing, but the node's manager reports the loaded rows to the node.
    change(&run, place, &held, |key| Command::Enable { key });
    for _ in 0..3 {
        let verify = run
            .clone()
            .verify(place, held.clone(), Some(WRITE), Way::Fresh);
        run.world.spawn(Some(place), verify);
    }
    let soon = run.world.state().dice.between(50 * MILLI, 300 * MILLI);
    run.world.sleep(soon).await;
    change(&run, elsewhere, &held, |key| Command::Delete {
        key,
        deletion: DeleteKey::plain(),
    });
    let soon = run.world.state().dice.between(10 * MILLI, 100 * MILLI);
    run.world.sleep(soon).await;
    run.world
        .log(|| "the store forgets, as a reply is late".to_owned());
    (run.setup.ground.compact)();
}

/// Ends a key while a node has a backlog, and changes the key again before the node has caught up.
pub(super) async fn twice(run: Arc<Run>, place: usize, held: Held) {
    let (elsewhere, bound) = {
        let mut state = run.world.state();
        let bound = state.ledger.bound();
        state.places[place].cut_off = state.now + bound + bound / 2;
        state.places[place].weather = Weather {
            usual: 30 * MILLI,
            most: 300 * MILLI,
            loss: 0,
        };
        (other(run.setup.nodes, place, state.dice.next()), bound)
    };
    change(&run, elsewhere, &held, |key| Command::Disable { key });
    let around = run.world.state().dice.between(0, SECOND);
    run.world.sleep(bound + bound / 2 + around).await;
    change(&run, elsewhere, &held, |key| Command::Revoke {
        key,
        revocation: Reason::Lost.into(),
    });
    for step in 0..10 {
        let (run, held) = (run.clone(), held.clone());
        run.world.clone().spawn(None, async move {
            run.world.sleep(step * 100 * MILLI).await;
            let world = run.world.clone();
            world.spawn(Some(place), run.verify(place, held, None, Way::Known));
        });
    }
}

/// Waits until the store has answered a node's request for changes. Returns the send time of that
/// request.
async fn served(run: &Arc<Run>, place: usize) -> Option<Instant> {
    let before = run.world.state().places[place].served;
    for _ in 0..400 {
        run.world.sleep(3 * MILLI).await;
        let state = run.world.state();
        if state.calm {
            return None;
        }
        if state.places[place].served != before {
            return state.places[place].served;
        }
    }
    None
}

/// Makes another node change a key.
fn change(run: &Arc<Run>, place: usize, held: &Held, command: impl FnOnce(KeyId) -> Command) {
    let Some(key) = held.id else {
        return;
    };
    let asked = Asked::about(run, RowKey::Key(key), held, command(key));
    if let Ok(asked) = asked {
        let give = give(run.clone(), place, asked);
        run.world.spawn(Some(place), give);
    }
}

/// Returns a node other than the node `than`.
fn other(nodes: usize, than: usize, draw: u64) -> usize {
    let step = 1 + usize::try_from(draw % (nodes as u64 - 1)).unwrap_or_default();
    (than + step) % nodes
}
