//! Measures the cost of counting uses for a usage store: per verification, and per flush.

use std::hint::black_box;
use std::sync::Arc;

use keyward::policy::{Policy, Propagation};
use keyward::store::MemoryStore;
use keyward::{Follow, Keyward, Need, days, profiles};
use pollster::block_on;

use super::Workload;
use shared::batch::Batch;
use shared::clock::timed;
use shared::keys::{KeyKind, Keys};
use shared::served::{TokenKind, need};
use shared::store::{Feed, SyntheticStore};
use shared::table::{Goal, Table};
use shared::turns::{Subject, cpu, ratio, take_turns};

fn service(keys: &Keys, count: u64, usage: bool) -> Keyward {
    let store = Arc::new(SyntheticStore::new(keys.clone(), count, Feed::Mixed));
    let mut spec = profiles::standard();
    // The staleness bound is so long that no verification during a run is refused as stale.
    spec.propagation = Propagation { bound: days(1) };
    let builder = Keyward::builder(store, keys.peppers())
        .policy(Policy::new(spec).unwrap())
        .follow(Follow::Manual);
    let builder = match usage {
        true => builder.usage(MemoryStore::new()),
        false => builder,
    };
    block_on(builder.build()).unwrap()
}

/// Verifies the tokens of a batch one after another, each after the verdict of the last one.
fn run(keys: &Keyward, batch: &Batch, need: &Need) -> usize {
    let nothing = black_box(0);
    let (mut at, mut granted) = (0, 0);
    while at < batch.len() {
        let verdict = black_box(keys.verify(batch.at(at), need));
        granted += usize::from(verdict.is_ok());
        let word = verdict.map_or(0, |grant| grant.key_id().to_u128() as usize);
        at += 1 + (word & nothing);
    }
    granted
}

/// Measures verifications with and without a usage store, and the flush after them.
pub(crate) fn usage(size: &Workload, table: &mut Table) {
    for count in [1_000, size.typical] {
        eprintln!("usage: {count} keys");
        let keys = Keys::new(KeyKind::Secret, count);
        let (on, off) = (service(&keys, count, true), service(&keys, count, false));
        for what in [TokenKind::Valid, TokenKind::WrongSecret] {
            let subject = |name: &str, service| {
                let (need, keys) = (need(), &keys);
                Subject {
                    name: name.to_owned(),
                    goal: None,
                    batch: Box::new(move |random: &mut _| {
                        what.batch(keys, count, size.batch, random)
                    }),
                    run: Box::new(move |batch: &Batch| {
                        black_box(run(service, batch, &need));
                    }),
                }
            };
            let mut subjects = [subject("on", &on), subject("off", &off)];
            let taken = take_turns(size.rounds, &mut subjects);
            let line = format!("with usage : without, {}, {count} keys", what.name());
            let note = format!("{:.0} ns : {:.0} ns", cpu(&taken[0]), cpu(&taken[1]));
            let goal = Goal::AtMost(1.08);
            table.add(line, ratio(&taken[0], &taken[1]), goal, note);
        }
        let (took, flush) = timed(|| block_on(on.flush_usage()).unwrap());
        let line = format!("flush to memory, CPU ns a key, {count} keys");
        let sent = flush.sent.max(1) as f64;
        let note = format!("{} rows, {:.1} ms", flush.sent, took.cpu / 1e6);
        table.add(line, took.cpu / sent, None, note);
        let (took, flush) = timed(|| block_on(on.flush_usage()).unwrap());
        assert_eq!(flush.sent, 0);
        let line = format!("flush without uses, CPU us, {count} keys");
        table.add(line, took.cpu / 1e3, None, String::new());
    }
}
