//! A model of the strict mode of `PostgresStore`, checked in every order of events.
//!
//! The model has a primary, a synchronous standby, one revocation and one verifier. Waits for the standby may
//! be cancelled. The standby may be promoted at any time, while the former primary still answers. Time
//! advances by at most two ticks. `protocol.rs` models how a verification uses a confirmation.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// The number of ticks for which a confirmation is valid: 1, so that the model's two ticks of time can exceed
/// it.
const BOUND: u8 = 1;

const LIVE: &str = "now and then a key is accepted after its revocation returned";
const MOVED: &str = "now and then a promoted server confirms";

/// The condition under which a poll confirms that the verifier is up to date.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Rule {
    /// Requires that a heartbeat on the same server began after the read and was acknowledged.
    Strict,

    /// Confirms every answered poll, without any heartbeat.
    None,
    /// Like `Strict`, but also accepts a heartbeat that was in flight during the read.
    OneOnItsWay,
    /// Like `Strict`, but accepts a heartbeat on either server.
    AnyServer,
    /// Counts a cancelled wait for the standby as an acknowledgement by the standby.
    CancelledCounts,
    /// Reports a commit as done although its wait for the standby was cancelled.
    CancelledIsReported,
    /// Starts the lease when the heartbeat is acknowledged, not when the poll is sent.
    LeaseFromAnswer,
    /// Confirms the previous poll's read if another node's heartbeat has advanced since that poll.
    OneFurther,
    /// Like `OneFurther`, but starts the lease when the current poll is sent.
    OneFurtherFromNow,
}

const BROKEN: [Rule; 8] = [
    Rule::None,
    Rule::OneOnItsWay,
    Rule::AnyServer,
    Rule::CancelledCounts,
    Rule::CancelledIsReported,
    Rule::LeaseFromAnswer,
    Rule::OneFurther,
    Rule::OneFurtherFromNow,
];

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Server {
    Former,
    Promoted,
}

/// The number of events of each kind that may still happen.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Budget {
    ticks: u8,
    polls: u8,
    beats: u8,
    cancels: u8,
    /// The number of polls and heartbeats that may be lost.
    losses: u8,
}

const BUDGET: Budget = Budget {
    ticks: 2,
    polls: 2,
    beats: 3,
    cancels: 1,
    losses: 1,
};

/// A heartbeat in flight.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Beat {
    server: Server,
    /// The heartbeat's position in the former primary's log.
    place: u8,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Poll {
    Idle,
    Sent {
        at: u8,
    },
    Read {
        sent: u8,
        server: Server,
        revoked: bool,
        /// The number of the last heartbeat that is too old to confirm the read.
        after: u8,
    },
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct State {
    now: u8,
    left: Budget,
    promoted: bool,
    /// The number of entries in the former primary's log.
    log: u8,
    /// The number of log entries that the standby has.
    shipped: u8,
    /// The revocation's position in the former primary's log, and whether the revocation still waits for the
    /// standby.
    revocation: Option<(u8, bool)>,
    /// True if the key was revoked on the promoted server.
    revoked_there: bool,
    /// The tick at which the revocation returned.
    returned: Option<u8>,
    beat: Option<Beat>,
    /// The number of heartbeats that have begun.
    beats: u8,
    /// The number and the server of the last acknowledged heartbeat.
    counted: Option<(u8, Server)>,
    poll: Poll,
    /// The previous poll: its tick, the number of the last heartbeat it saw, and the server it read.
    before: Option<(u8, u8, Server)>,
    /// True if the verifier has read the revocation.
    knows: bool,
    confirmed: u8,
    moved: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Tick,
    Ship,
    Promote,
    Revoke(Server),
    /// Delivers the standby's acknowledgement to the waiting revocation.
    ReleaseRevocation,
    CancelRevocation,
    Begin(Server),
    ReleaseBeat,
    CancelBeat,
    LoseBeat,
    Send,
    Read(Server),
    Confirm,
    LosePoll,
}

struct Failover {
    rule: Rule,
}

impl State {
    fn revoked(&self, server: Server) -> bool {
        match server {
            Server::Former => self.revocation.is_some_and(|(_, waits)| !waits),
            Server::Promoted => {
                let shipped = |(place, _): (u8, bool)| place <= self.shipped;
                self.revoked_there || self.revocation.is_some_and(shipped)
            }
        }
    }

    fn accepts(&self) -> bool {
        !self.knows && self.now - self.confirmed <= BOUND
    }

    fn confirm(&mut self, sent: u8, revoked: bool, server: Server) {
        self.knows |= revoked;
        self.confirmed = self.confirmed.max(sent);
        self.moved |= server == Server::Promoted;
    }

    /// Acknowledges the heartbeat in flight.
    fn count(&mut self) {
        if let Some(beat) = self.beat.take() {
            self.counted = Some((self.beats, beat.server));
        }
    }

    fn acknowledged(&self, place: u8) -> bool {
        place <= self.shipped
    }
}

impl Failover {
    /// Returns whether the rule accepts heartbeats that other nodes sent.
    fn shares(&self) -> bool {
        matches!(self.rule, Rule::OneFurther | Rule::OneFurtherFromNow)
    }

    fn read(&self, state: &mut State, server: Server) -> Option<()> {
        let Poll::Sent { at: sent } = state.poll else {
            return None;
        };
        let revoked = state.revoked(server);
        if !self.shares() {
            let joins = self.rule == Rule::OneOnItsWay && state.beat.is_some();
            state.poll = Poll::Read {
                sent,
                server,
                revoked,
                after: state.beats - u8::from(joins),
            };
            return Some(());
        }
        let here = state.counted.filter(|(_, on)| *on == server);
        let seen = here.map_or(0, |(number, _)| number);
        if let Some((earlier, was, there)) = state.before
            && there == server
            && seen > was
        {
            let from = match self.rule {
                Rule::OneFurtherFromNow => sent,
                _ => earlier,
            };
            state.confirm(from, revoked, server);
        }
        state.before = Some((sent, seen, server));
        state.poll = Poll::Idle;
        Some(())
    }

    /// Returns whether the answered poll confirms the verifier under the rule.
    fn proven(&self, state: &State) -> bool {
        let Poll::Read { server, after, .. } = state.poll else {
            return false;
        };
        let counts =
            |(number, on)| number > after && (on == server || self.rule == Rule::AnyServer);
        self.rule == Rule::None || state.counted.is_some_and(counts)
    }

    /// Returns whether the verifier becomes fresh again without further faults.
    fn recovers(&self, state: &State) -> bool {
        let mut state = *state;
        let primary = match state.promoted {
            true => Server::Promoted,
            false => Server::Former,
        };
        (state.poll, state.beat) = (Poll::Idle, None);
        for _ in 0..3 {
            state.poll = Poll::Sent { at: state.now };
            if self.read(&mut state, primary).is_none() {
                return false;
            }
            for _ in 0..2 {
                state.beats += 1;
                state.counted = Some((state.beats, primary));
            }
            if let Poll::Read { sent, revoked, .. } = state.poll
                && self.proven(&state)
            {
                state.confirm(sent, revoked, primary);
            }
        }
        state.confirmed == state.now
    }
}

impl Model for Failover {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: 0,
            left: BUDGET,
            promoted: false,
            log: 0,
            shipped: 0,
            revocation: None,
            revoked_there: false,
            returned: None,
            beat: None,
            beats: 0,
            counted: None,
            poll: Poll::Idle,
            before: None,
            knows: false,
            confirmed: 0,
            moved: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let left = state.left;
        let mut may = |step, so: bool| so.then(|| steps.push(step));
        may(Step::Tick, left.ticks > 0);
        may(Step::Ship, !state.promoted && state.shipped < state.log);
        may(Step::Promote, !state.promoted);
        may(Step::Revoke(Server::Former), state.revocation.is_none());
        may(
            Step::Revoke(Server::Promoted),
            state.promoted && state.returned.is_none(),
        );
        if let Some((place, true)) = state.revocation {
            may(Step::ReleaseRevocation, state.acknowledged(place));
            may(Step::CancelRevocation, left.cancels > 0);
        }
        match state.beat {
            None => {
                may(Step::Begin(Server::Former), left.beats > 0);
                may(
                    Step::Begin(Server::Promoted),
                    left.beats > 0 && state.promoted,
                );
            }
            Some(beat) => {
                let there = beat.server == Server::Promoted || state.acknowledged(beat.place);
                may(Step::ReleaseBeat, there);
                may(Step::CancelBeat, left.cancels > 0);
                may(Step::LoseBeat, left.losses > 0);
            }
        }
        match state.poll {
            Poll::Idle => {
                may(Step::Send, left.polls > 0);
            }
            Poll::Sent { .. } => {
                may(Step::Read(Server::Former), true);
                may(Step::Read(Server::Promoted), state.promoted);
            }
            Poll::Read { .. } => {
                may(Step::Confirm, self.proven(state));
                may(Step::LosePoll, left.losses > 0);
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = *last;
        match step {
            Step::Tick => {
                state.left.ticks -= 1;
                state.now += 1;
            }
            Step::Ship => state.shipped = state.log,
            Step::Promote => state.promoted = true,
            Step::Revoke(Server::Former) => {
                state.log += 1;
                state.revocation = Some((state.log, true));
            }
            Step::Revoke(Server::Promoted) => {
                state.revoked_there = true;
                state.returned = Some(state.now);
            }
            Step::ReleaseRevocation => {
                state.revocation = state.revocation.map(|(place, _)| (place, false));
                state.returned = state.returned.or(Some(state.now));
            }
            Step::CancelRevocation => {
                state.left.cancels -= 1;
                state.revocation = state.revocation.map(|(place, _)| (place, false));
                if self.rule == Rule::CancelledIsReported {
                    state.returned = state.returned.or(Some(state.now));
                }
            }
            Step::Begin(server) => {
                state.left.beats -= 1;
                state.beats += 1;
                state.log += u8::from(server == Server::Former);
                let place = state.log;
                state.beat = Some(Beat { server, place });
            }
            Step::ReleaseBeat => state.count(),
            Step::CancelBeat => {
                state.left.cancels -= 1;
                if self.rule == Rule::CancelledCounts {
                    state.count();
                }
                state.beat = None;
            }
            Step::LoseBeat => {
                state.left.losses -= 1;
                state.beat = None;
            }
            Step::Send => {
                state.left.polls -= 1;
                state.poll = Poll::Sent { at: state.now };
            }
            Step::Read(server) => self.read(&mut state, server)?,
            Step::Confirm => {
                let Poll::Read {
                    sent,
                    server,
                    revoked,
                    ..
                } = state.poll
                else {
                    return None;
                };
                let from = match self.rule {
                    Rule::LeaseFromAnswer => state.now,
                    _ => sent,
                };
                state.confirm(from, revoked, server);
                state.poll = Poll::Idle;
            }
            Step::LosePoll => {
                state.left.losses -= 1;
                state.poll = Poll::Idle;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let late = |_: &Self, state: &State| {
            let late = |returned| state.now > returned + BOUND;
            !(state.accepts() && state.returned.is_some_and(late))
        };
        vec![
            Property::always("nothing is accepted past the bound", late),
            Property::always("the primary makes fresh again", |model: &Self, state| {
                model.recovers(state)
            }),
            Property::sometimes(LIVE, |_, state: &State| {
                state.accepts() && state.returned.is_some_and(|at| at < state.now)
            }),
            Property::sometimes(MOVED, |_, state: &State| state.moved),
        ]
    }
}

fn check(rule: Rule) -> impl Checker<Failover> {
    let checker = Failover { rule }.checker().threads(2);
    checker
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join()
}

/// Returns the names of the violated properties.
fn broken(checked: &impl Checker<Failover>) -> Vec<&'static str> {
    let mut found: Vec<_> = checked.discoveries().into_keys().collect();
    found.retain(|name| !name.starts_with("now and then"));
    found
}

#[test]
fn no_order_of_steps_lets_a_former_primary_confirm_past_the_bound() {
    let checked = check(Rule::Strict);
    println!("{} states", checked.unique_state_count());
    assert_eq!(broken(&checked), Vec::<&str>::new());
    let happened = checked.discoveries();
    for name in [LIVE, MOVED] {
        assert!(happened.contains_key(name), "never that {name}");
    }
}

#[test]
fn every_broken_rule_is_found() {
    for rule in BROKEN {
        let checked = check(rule);
        let found = broken(&checked);
        assert_eq!(found, ["nothing is accepted past the bound"], "{rule:?}");
        println!(
            "{rule:?}: found within {} states",
            checked.unique_state_count()
        );
    }
}
