//! Scenarios that random faults produce too rarely: each changes a key at the worst moment for a node that
//! relies on a lease.

use std::sync::Arc;

use super::drive::{HeldKey, Run, WRITE};
use super::fate::{PlannedCommand, execute};
use super::node::VerifyPath;
use super::world::{MILLI, NetworkQuality, SECOND, SimInstant};
use keyward::command::{Command, DeleteKey};
use keyward::store::RowKey;
use keyward::{KeyId, Reason};

/// Disconnects a node just after a sync, and revokes a key on another node. The first node may accept the key
/// until its lease ends, but no longer.
pub(super) async fn at_the_edge(run: Arc<Run>, machine: usize, held: HeldKey) {
    let Some(synced_at) = served(&run, machine).await else {
        return;
    };
    let (elsewhere, bound) = {
        let mut state = run.world.state();
        let bound = state.ledger.bound();
        let until = state.now + 2 * bound;
        state.log(|| format!("node {machine} is cut off until {until}"));
        state.machines[machine].cut_off = until;
        let elsewhere = other(run.setup.nodes, machine, state.dice.next());
        (elsewhere, bound)
    };
    change(&run, elsewhere, &held, |key| Command::Revoke {
        key,
        revocation: Reason::Lost.into(),
    });
    for _ in 0..16 {
        let mut state = run.world.state();
        let around = state.dice.between(0, 40 * MILLI);
        let at = (synced_at + bound + around).saturating_sub(10 * MILLI);
        drop(state);
        let (run, held) = (run.clone(), held.clone());
        run.world.clone().spawn(None, async move {
            run.world.until(at).await;
            let world = run.world.clone();
            world.spawn(
                Some(machine),
                run.verify(machine, held, None, VerifyPath::Local),
            );
        });
    }
}

/// Removes a key while a slow node reads the key from the store. The store compacts the tombstone before the
/// node gets the reply, so the node must start over with a scan.
pub(super) async fn late_reply(run: Arc<Run>, machine: usize, held: HeldKey) {
    let elsewhere = {
        let mut state = run.world.state();
        state.machines[machine].network = NetworkQuality {
            usual: 100 * MILLI,
            most: SECOND,
            loss: 5,
        };
        other(run.setup.nodes, machine, state.dice.next())
    };
    // `Enable` changes nothing here. But to decide that, the node's manager loads the key's rows, and passes
    // them to the node.
    change(&run, machine, &held, |key| Command::Enable { key });
    for _ in 0..3 {
        let verify = run
            .clone()
            .verify(machine, held.clone(), Some(WRITE), VerifyPath::Fresh);
        run.world.spawn(Some(machine), verify);
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
        .log(|| "the store compacts while a reply is in flight".to_owned());
    (run.setup.backend.compact)();
}

/// Disables a key while a node is disconnected, and revokes the key just when the node reconnects and catches
/// up.
pub(super) async fn twice(run: Arc<Run>, machine: usize, held: HeldKey) {
    let (elsewhere, bound) = {
        let mut state = run.world.state();
        let bound = state.ledger.bound();
        state.machines[machine].cut_off = state.now + bound + bound / 2;
        state.machines[machine].network = NetworkQuality {
            usual: 30 * MILLI,
            most: 300 * MILLI,
            loss: 0,
        };
        (other(run.setup.nodes, machine, state.dice.next()), bound)
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
            world.spawn(
                Some(machine),
                run.verify(machine, held, None, VerifyPath::Local),
            );
        });
    }
}

/// Waits until the store has executed a node's next request for changes. Returns the time at which the node
/// sent that request.
async fn served(run: &Arc<Run>, machine: usize) -> Option<SimInstant> {
    let before = run.world.state().machines[machine].served;
    for _ in 0..400 {
        run.world.sleep(3 * MILLI).await;
        let state = run.world.state();
        if state.faults_ended {
            return None;
        }
        if state.machines[machine].served != before {
            return state.machines[machine].served;
        }
    }
    None
}

/// Executes a command on a known key, on the node of the given machine.
fn change(run: &Arc<Run>, machine: usize, held: &HeldKey, command: impl FnOnce(KeyId) -> Command) {
    let Some(key) = held.id else {
        return;
    };
    let planned = PlannedCommand::about(run, RowKey::Key(key), held, command(key));
    if let Ok(planned) = planned {
        let execute = execute(run.clone(), machine, planned);
        run.world.spawn(Some(machine), execute);
    }
}

/// Returns the number of a node other than `than`. The random number `draw` decides which one.
fn other(nodes: usize, than: usize, draw: u64) -> usize {
    let step = 1 + usize::try_from(draw % (nodes as u64 - 1)).unwrap_or_default();
    (than + step) % nodes
}
