//! Completeness: which periods were counted by every process. Pure.

use std::time::Duration;

use super::{UsageGap, UsageLedger};
use crate::core::time::Timestamp;
use crate::core::view::Epoch;
use crate::store::NodeId;

/// The periods for which a usage store has the uses of every process.
///
/// A proof that a key was not used needs a period without a gap, between [`counted_since`](Self::counted_since) and
/// [`complete_until`](Self::complete_until).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Completeness {
    /// The time since which uses are counted. `None` if no process ever counted.
    pub counted_since: Option<Timestamp>,
    /// The time until which every live process has sent its uses. `None` if no process ever counted.
    pub complete_until: Option<Timestamp>,
    /// The periods of which uses may be missing, merged and in order. The last one can still be growing, if a process
    /// went silent.
    pub gaps: Vec<UsageGap>,
    /// Live nodes of the registry that have no open boot, so their uses are not counted at all.
    pub uncounted: Vec<NodeId>,
    /// True if it is unknown which processes verify keys, or if the counts belong to another history of the key store,
    /// for example of before a restore. Then nothing is proven.
    pub is_unknown: bool,
}

impl Completeness {
    /// 5 minutes: a process that has sent nothing for longer, and for the allowance between clocks, no longer holds the
    /// horizon. What it has not sent is a gap, which grows until the process sends again, or its boot is closed.
    pub const SILENCE: Duration = Duration::from_secs(5 * 60);

    /// Judges a ledger at the time `now`.
    ///
    /// `allowance` is the largest difference between two clocks: each period is shortened by it, and each gap widened.
    /// `history` is the epoch of the key store now. `live` are the live nodes of the registry. `None` if there is no
    /// registry, so that it is unknown which processes verify keys.
    #[must_use]
    pub fn of(
        ledger: &UsageLedger,
        (now, allowance): (Timestamp, Duration),
        history: Epoch,
        live: Option<&[NodeId]>,
    ) -> Self {
        let mut horizon = now;
        let mut gaps = ledger.gaps.clone();
        let open = || ledger.boots.iter().filter(|boot| boot.closed_at.is_none());
        let silence = Self::SILENCE.saturating_add(allowance);
        for boot in open() {
            if boot.sent_until.saturating_add(silence) >= now {
                horizon = horizon.min(boot.sent_until);
            } else {
                gaps.push(UsageGap {
                    from: boot.sent_until,
                    until: now,
                    boot: Some(boot.id),
                });
            }
        }
        for gap in &mut gaps {
            gap.from = gap.from.saturating_sub(allowance);
            gap.until = gap.until.saturating_add(allowance);
        }
        let counts = |node: &NodeId| open().any(|boot| boot.node == Some(*node));
        let uncounted = live.unwrap_or_default().iter().filter(|node| !counts(node));
        let counted_since = ledger.counted_since;
        Self {
            counted_since: counted_since.map(|since| since.saturating_add(allowance)),
            complete_until: counted_since.map(|_| horizon.saturating_sub(allowance)),
            gaps: merged(gaps),
            uncounted: uncounted.copied().collect(),
            is_unknown: live.is_none()
                || open().any(|boot| boot.node.is_none())
                || ledger.history.is_some_and(|own| own != history),
        }
    }

    /// Returns whether every use between `from` and `until` was counted and sent.
    #[must_use]
    pub fn proves(&self, from: Timestamp, until: Timestamp) -> bool {
        let within = |(since, upto)| since <= from && until <= upto;
        let counted = self
            .counted_since
            .zip(self.complete_until)
            .is_some_and(within);
        let touches = |gap: &UsageGap| gap.from <= until && from <= gap.until;
        counted && !self.is_unknown && self.uncounted.is_empty() && !self.gaps.iter().any(touches)
    }
}

/// Merges gaps that overlap. A merged gap names a boot only if all its parts do.
fn merged(mut gaps: Vec<UsageGap>) -> Vec<UsageGap> {
    gaps.sort_unstable();
    let mut merged: Vec<UsageGap> = Vec::new();
    for gap in gaps {
        match merged.last_mut().filter(|last| gap.from <= last.until) {
            Some(last) => {
                last.until = last.until.max(gap.until);
                last.boot = last.boot.filter(|boot| gap.boot == Some(*boot));
            }
            None => merged.push(gap),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::usage::{
        BootClosing, BootId, BootOpening, LedgerChange, LostBoot, UsageBatch, UsageError,
    };

    /// 1 minute: the largest difference between two clocks of a simulation.
    const ALLOWANCE: Duration = Duration::from_secs(60);

    /// The start of a simulation. Every clock is ahead of true time by at most [`ALLOWANCE`].
    const START: i64 = 1_800_000_000_000_000;

    fn at(micros: i64) -> Timestamp {
        Timestamp::clamped(START + micros)
    }

    fn node(n: u64) -> NodeId {
        NodeId::from_u128(n.into())
    }

    /// A use of any key.
    #[derive(Clone, Copy, Debug)]
    struct CountedUse {
        /// The true time, in microseconds since the start.
        time: i64,
        /// The time by the clock of the process.
        clock: Timestamp,
        is_stored: bool,
    }

    /// A batch that a process has sent, and has no reply to.
    #[derive(Clone, Debug)]
    struct SimulatedBatch {
        batch: UsageBatch,
        uses: Vec<usize>,
    }

    #[derive(Debug)]
    struct Process {
        node: u64,
        boot: BootId,
        /// The clock's advance before true time, in microseconds.
        ahead: i64,
        sequence: u64,
        acknowledged: Timestamp,
        /// The time from which uses may be missing if the store does not know the boot.
        counted_from: Timestamp,
        pending: Vec<usize>,
        in_flight: Option<SimulatedBatch>,
    }

    #[derive(Clone, Debug)]
    enum Act {
        Start {
            ahead: i64,
        },
        Use(prop::sample::Index),
        Send(prop::sample::Index, Network),
        Stop(prop::sample::Index),
        Die(prop::sample::Index),
        /// Closes the boots of all processes that are not live.
        Reap {
            ahead: i64,
        },
        BackUp,
        /// Restores the last backup, after which a new process opens the first boot.
        Restore {
            ahead: i64,
        },
        Prune {
            share: i64,
        },
    }

    #[derive(Clone, Copy, Debug)]
    enum Network {
        Works,
        LosesCall,
        LosesReply,
    }

    fn act() -> impl Strategy<Value = (i64, Act)> {
        let ahead = || 0..=ALLOWANCE.as_micros() as i64;
        let any = any::<prop::sample::Index>;
        let network = prop_oneof![
            6 => Just(Network::Works),
            1 => Just(Network::LosesCall),
            1 => Just(Network::LosesReply),
        ];
        let act = prop_oneof![
            3 => ahead().prop_map(|ahead| Act::Start { ahead }),
            12 => any().prop_map(Act::Use),
            10 => (any(), network).prop_map(|(process, network)| Act::Send(process, network)),
            1 => any().prop_map(Act::Stop),
            1 => any().prop_map(Act::Die),
            1 => ahead().prop_map(|ahead| Act::Reap { ahead }),
            1 => Just(Act::BackUp),
            1 => ahead().prop_map(|ahead| Act::Restore { ahead }),
            1 => (0_i64..100).prop_map(|share| Act::Prune { share }),
        ];
        // Up to 200 seconds, so that a process without two or three turns is silent.
        (1_i64..200_000_000, act)
    }

    /// Processes that count, send, stop and die, and a usage store.
    ///
    /// A process opens a boot before its first use. The boot of another process is closed only if that process is no
    /// longer live, or if a backup was restored. After that, no process dies, and no backup is taken, before each process
    /// has noticed the restore.
    #[derive(Debug, Default)]
    struct World {
        now: i64,
        ledger: UsageLedger,
        uses: Vec<CountedUse>,
        processes: Vec<Process>,
        backup: Option<(UsageLedger, Vec<bool>)>,
        history: u128,
        opened: u64,
    }

    impl World {
        fn open(&mut self, node_number: u64, ahead: i64, replaces: Option<LostBoot>) -> BootId {
            self.opened += 1;
            let boot = BootId::from_u128(self.opened.into());
            let change = self.ledger.open(&BootOpening {
                boot,
                node: Some(node(node_number)),
                history: Epoch(self.history),
                at: at(self.now + ahead),
                unsent_since: at(self.now + ahead),
                replaces,
            });
            self.ledger.apply(change.unwrap_or_default());
            boot
        }

        fn start(&mut self, ahead: i64) {
            let own = self.opened;
            let boot = self.open(own, ahead, None);
            self.processes.push(Process {
                node: own,
                boot,
                ahead,
                sequence: 0,
                acknowledged: at(self.now + ahead),
                counted_from: at(self.now + ahead),
                pending: Vec::new(),
                in_flight: None,
            });
        }

        fn add(&mut self, sent: &SimulatedBatch) -> Result<(), UsageError> {
            let id = sent.batch.boot;
            let boot = self.ledger.boots.iter().find(|boot| boot.id == id);
            let boot = boot.ok_or(UsageError::UnknownBoot { boot: id })?;
            if let Some(boot) = boot.admit(&sent.batch)? {
                self.ledger.apply(LedgerChange {
                    boots: vec![boot],
                    ..LedgerChange::default()
                });
                for place in &sent.uses {
                    self.uses[*place].is_stored = true;
                }
            }
            Ok(())
        }

        fn count(&mut self, place: usize) {
            let process = &mut self.processes[place];
            process.pending.push(self.uses.len());
            self.uses.push(CountedUse {
                time: self.now,
                clock: at(self.now + process.ahead),
                is_stored: false,
            });
        }

        /// Sends the batch in flight again, or all uses since the last batch. Opens a new boot if the store refuses it.
        fn send(&mut self, place: usize, network: Network) {
            let process = &mut self.processes[place];
            let clock = at(self.now + process.ahead);
            let sent = process.in_flight.take().unwrap_or_else(|| SimulatedBatch {
                batch: UsageBatch {
                    boot: process.boot,
                    sequence: process.sequence + 1,
                    sent_until: clock,
                    uses: Vec::new(),
                },
                uses: std::mem::take(&mut process.pending),
            });
            let added = match network {
                Network::LosesCall => None,
                Network::LosesReply => {
                    self.add(&sent).ok();
                    None
                }
                Network::Works => Some(self.add(&sent)),
            };
            let process = &mut self.processes[place];
            match added {
                None => process.in_flight = Some(sent),
                Some(Ok(())) => {
                    process.sequence += 1;
                    process.acknowledged = sent.batch.sent_until;
                }
                Some(Err(error)) => {
                    let since = match error {
                        UsageError::UnknownBoot { .. } => process.counted_from,
                        _ => process.acknowledged,
                    };
                    let boot = process.boot;
                    let lost = LostBoot { boot, since };
                    let (own, ahead) = (process.node, process.ahead);
                    let boot = self.open(own, ahead, Some(lost));
                    let process = &mut self.processes[place];
                    process.pending.clear();
                    (process.boot, process.sequence) = (boot, 0);
                    process.acknowledged = clock;
                    process.counted_from = since;
                }
            }
        }

        fn is_closed(&self, place: usize) -> bool {
            let own = self.processes[place].boot;
            let mut boots = self.ledger.boots.iter();
            !boots.any(|boot| boot.id == own && boot.closed_at.is_none())
        }

        fn stop(&mut self, place: usize) {
            // The batch in flight, and then all later uses.
            while self.processes[place].in_flight.is_some() {
                self.send(place, Network::Works);
            }
            self.send(place, Network::Works);
            let process = self.processes.remove(place);
            self.close(process.boot, process.sequence, process.ahead, true);
        }

        fn close(&mut self, boot: BootId, sequence: u64, ahead: i64, is_complete: bool) {
            let change = self.ledger.close(&BootClosing {
                boot,
                sequence,
                at: at(self.now + ahead),
                is_complete,
            });
            self.ledger.apply(change.unwrap_or_default());
        }

        fn reap(&mut self, ahead: i64) {
            let live: Vec<_> = self.live();
            let is_dead = |node: Option<NodeId>| node.is_none_or(|node| !live.contains(&node));
            for boot in self.ledger.boots.clone() {
                if boot.closed_at.is_none() && is_dead(boot.node) {
                    self.close(boot.id, boot.sequence, ahead, false);
                }
            }
        }

        fn live(&self) -> Vec<NodeId> {
            let processes = self.processes.iter();
            processes.map(|process| node(process.node)).collect()
        }

        fn act(&mut self, act: &Act) {
            let any = |index: &prop::sample::Index, all: &[Process]| {
                (!all.is_empty()).then(|| index.index(all.len()))
            };
            match act {
                Act::Start { ahead } if self.processes.len() < 4 => self.start(*ahead),
                Act::Start { .. } => {}
                Act::Use(index) => {
                    if let Some(place) = any(index, &self.processes) {
                        self.count(place);
                    }
                }
                Act::Send(index, network) => {
                    if let Some(place) = any(index, &self.processes) {
                        self.send(place, *network);
                    }
                }
                Act::Stop(index) => {
                    if let Some(place) = any(index, &self.processes) {
                        self.stop(place);
                    }
                }
                Act::Die(index) => {
                    if let Some(place) = any(index, &self.processes) {
                        // A batch in flight may be the last one that the store has, which is no refusal.
                        while self.is_closed(place) {
                            self.send(place, Network::Works);
                        }
                        self.processes.remove(place);
                    }
                }
                Act::Reap { ahead } => self.reap(*ahead),
                Act::BackUp if (0..self.processes.len()).any(|place| self.is_closed(place)) => {}
                Act::BackUp => {
                    let stored = self.uses.iter().map(|own| own.is_stored);
                    self.backup = Some((self.ledger.clone(), stored.collect()));
                }
                Act::Restore { ahead } => {
                    if let Some((ledger, stored)) = self.backup.clone() {
                        self.ledger = ledger;
                        let stored = stored.into_iter().chain(std::iter::repeat(false));
                        for (own, stored) in self.uses.iter_mut().zip(stored) {
                            own.is_stored = stored;
                        }
                        self.history += 1;
                        self.start(*ahead);
                    }
                }
                Act::Prune { share } => {
                    let since = at(self.now / 100 * share);
                    self.ledger.prune(since, since);
                    for own in self.uses.iter_mut().filter(|own| own.clock < since) {
                        own.is_stored = false;
                    }
                }
            }
        }

        /// Judges the ledger as a process whose clock is `ahead`.
        fn completeness(&self, ahead: i64) -> Completeness {
            let now = at(self.now + ahead);
            Completeness::of(
                &self.ledger,
                (now, ALLOWANCE),
                Epoch(self.history),
                Some(&self.live()),
            )
        }
    }

    /// Checks that no use is missing in a period that is proven. A period is proven only if each instant in it is, so
    /// it suffices to check the instants of the missing uses.
    fn check(world: &World) -> Result<(), TestCaseError> {
        for ahead in [0, ALLOWANCE.as_micros() as i64] {
            let found = world.completeness(ahead);
            for own in world.uses.iter().filter(|own| !own.is_stored) {
                let time = at(own.time + ahead);
                let is_proven = found.proves(time, time);
                prop_assert!(!is_proven, "{own:?} is missing: {found:?} of {world:#?}");
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn no_use_is_missing_in_a_period_that_is_proven(
            acts in prop::collection::vec(act(), 0..80),
        ) {
            let mut world = World::default();
            for (wait, act) in acts {
                world.now += wait;
                // Just before the act, when open boots may have become silent, and just after it.
                check(&world)?;
                world.act(&act);
                check(&world)?;
            }
            // Everything that is stored is proven in the end, except close to a gap.
            while !world.processes.is_empty() {
                world.stop(0);
            }
            world.reap(0);
            world.now += 5 * ALLOWANCE.as_micros() as i64;
            let found = world.completeness(0);
            let margin = ALLOWANCE * 2;
            for own in &world.uses {
                let (from, until) = (own.clock.saturating_sub(margin), own.clock.saturating_add(margin));
                let mut gaps = world.ledger.gaps.iter();
                let is_near = gaps.any(|gap| gap.from <= until && from <= gap.until);
                let is_counted = world.ledger.counted_since.is_some_and(|since| since <= from);
                if is_counted && !is_near {
                    prop_assert!(own.is_stored, "{own:?} of {world:#?}");
                    prop_assert!(found.proves(at(own.time), at(own.time)), "{own:?} of {found:?}");
                }
            }
        }

        /// While all processes send and none has left a gap, each period up to the last batches is proven, without the
        /// allowance at its ends.
        #[test]
        fn live_processes_that_send_prove_every_period(
            boots in prop::collection::vec((0_i64..100_000_000, 0_i64..300_000_000), 1..5),
            now in 0_i64..300_000_000,
            period in (0_i64..600_000_000, 0_i64..600_000_000),
        ) {
            let mut ledger = UsageLedger::default();
            let mut live = Vec::new();
            let (mut first, mut last) = (None, at(i64::MAX / 2));
            // The longest time without a batch that is no silence, from the earliest possible batch.
            for (n, (opened, sent)) in (0..).zip(&boots) {
                let boot = BootId::from_u128(n);
                let opening = BootOpening {
                    boot,
                    node: Some(NodeId::from_u128(n)),
                    history: Epoch(1),
                    at: at(*opened),
                    unsent_since: at(*opened),
                    replaces: None,
                };
                ledger.apply(ledger.open(&opening).unwrap());
                let batch = UsageBatch {
                    boot,
                    sequence: 1,
                    sent_until: at(300_000_000 + *sent),
                    uses: Vec::new(),
                };
                let sent = ledger.boots.last().and_then(|boot| boot.admit(&batch).unwrap());
                ledger.apply(LedgerChange {
                    boots: Vec::from_iter(sent),
                    ..LedgerChange::default()
                });
                live.push(NodeId::from_u128(n));
                first = first.or(Some(at(*opened)));
                last = last.min(batch.sent_until);
            }
            let now = at(300_000_000 + now);
            let last = last.min(now);
            let (from, until) = (at(period.0.min(period.1)), at(period.0.max(period.1)));
            let found = Completeness::of(&ledger, (now, ALLOWANCE), Epoch(1), Some(&live));
            let since = first.unwrap().saturating_add(ALLOWANCE);
            let is_within = since <= from && until <= last.saturating_sub(ALLOWANCE);
            prop_assert_eq!(found.proves(from, until), is_within, "{:?}", found);
            prop_assert!(found.gaps.is_empty());

            live.push(NodeId::from_u128(100));
            let uncounted = Completeness::of(&ledger, (now, ALLOWANCE), Epoch(1), Some(&live));
            prop_assert!(!uncounted.proves(from, until));
            prop_assert_eq!(uncounted.uncounted, [NodeId::from_u128(100)]);
            let other = Completeness::of(&ledger, (now, ALLOWANCE), Epoch(2), Some(&live[..boots.len()]));
            prop_assert!(other.is_unknown && !other.proves(from, until));
            let unknown = Completeness::of(&ledger, (now, ALLOWANCE), Epoch(1), None);
            prop_assert!(unknown.is_unknown && !unknown.proves(from, until));
        }

        /// A part of a period that is proven is proven. The merged gaps are in order, do not overlap, and contain the
        /// same instants.
        #[test]
        fn gaps_are_merged(
            gaps in prop::collection::vec((0_i64..60, 0_i64..20, prop::option::of(0_u128..2)), 0..8),
            period in (0_i64..80, 0_i64..80, 0_i64..80, 0_i64..80),
        ) {
            let gaps: Vec<_> = gaps
                .into_iter()
                .map(|(from, length, boot)| UsageGap {
                    from: at(from),
                    until: at(from + length),
                    boot: boot.map(BootId::from_u128),
                })
                .collect();
            let merged = merged(gaps.clone());
            prop_assert!(merged.is_sorted_by(|one, other| one.until < other.from));
            let covers = |gaps: &[UsageGap], time| {
                gaps.iter().any(|gap| gap.from <= time && time <= gap.until)
            };
            for time in (0..100).map(at) {
                prop_assert_eq!(covers(&merged, time), covers(&gaps, time));
            }
            for gap in &merged {
                let parts = gaps.iter().filter(|part| gap.from <= part.from && part.until <= gap.until);
                let boots: std::collections::BTreeSet<_> = parts.map(|part| part.boot).collect();
                let only = boots.first().copied().flatten().filter(|_| boots.len() == 1);
                prop_assert_eq!(gap.boot, only);
            }
            let mut times = [period.0, period.1, period.2, period.3].map(at);
            times.sort_unstable();
            let found = Completeness {
                counted_since: Some(at(10)),
                complete_until: Some(at(70)),
                gaps: merged,
                ..Completeness::default()
            };
            let [first, from, until, last] = times;
            prop_assert!(!found.proves(first, last) || found.proves(from, until));
        }
    }

    #[test]
    fn a_silent_process_leaves_a_growing_gap_and_no_longer_holds_the_horizon() {
        let second = 1_000_000;
        let mut world = World::default();
        world.start(0);
        world.start(0);
        world.now = 100 * second;
        world.send(0, Network::Works);
        world.send(1, Network::Works);
        world.now = 460 * second;
        world.send(1, Network::Works);
        let found = world.completeness(0);
        assert_eq!(found.complete_until, Some(at(40 * second)));
        assert!(found.gaps.is_empty());
        world.now += 1;
        let found = world.completeness(0);
        assert_eq!(found.complete_until, Some(at(400 * second)));
        let gap = UsageGap {
            from: at(40 * second),
            until: at(520 * second + 1),
            boot: Some(world.processes[0].boot),
        };
        assert_eq!(found.gaps, [gap]);
        assert!(!found.proves(at(300 * second), at(340 * second)));
        world.send(0, Network::Works);
        let found = world.completeness(0);
        assert!(found.gaps.is_empty());
        assert!(found.proves(at(300 * second), at(340 * second)));
    }

    #[test]
    fn a_slow_clock_that_closes_a_boot_hides_no_missing_use() {
        let second = 1_000_000;
        let mut world = World::default();
        world.start(50 * second);
        world.now = 200 * second;
        world.send(0, Network::Works);
        world.now = 201 * second;
        world.count(0);
        world.processes.clear();
        world.now = 202 * second;
        world.reap(0);
        let gap = at(250 * second);
        let found: Vec<_> = world
            .ledger
            .gaps
            .iter()
            .map(|gap| (gap.from, gap.until))
            .collect();
        assert_eq!(found, [(gap, gap)]);
        world.now = 500 * second;
        let found = world.completeness(0);
        assert!(!found.proves(at(201 * second), at(201 * second)));
        assert!(found.proves(at(120 * second), at(189 * second)));
        assert!(found.proves(at(311 * second), at(440 * second)));
    }

    #[test]
    fn a_store_without_a_boot_proves_nothing() {
        let found = Completeness::of(
            &UsageLedger::default(),
            (at(1000), ALLOWANCE),
            Epoch(1),
            Some(&[]),
        );
        assert_eq!(found, Completeness::default());
        assert!(!found.proves(at(0), at(0)));
    }
}
