//! A model of the propagation protocol, checked in every order of events.
//!
//! The model has two nodes, one writer and two keys. The store answers one row at a time and compacts its
//! history. Messages get lost, replies are late, and a node restarts. Time is a few ticks. Each step of a
//! poll and of a verification is a separate event.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// The number of ticks for which a confirmation is valid: 1, so that the model's few ticks of time can exceed
/// it.
const BOUND: u8 = 1;

const ACCEPTED: &str = "now and then a key is accepted";
const STARTED_OVER: &str = "now and then a node starts over";

/// The variant of the nodes: sound, or with one defect that the model must find.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Variant {
    Sound,
    AppliesAnything,
    ConfirmsFirst,
    ConfirmsFirstHead,
    ConfirmsFirstPage,
    ForgetsTombstones,
    LeaseFromAnswer,
    LooksUpFirst,
    NeverStartsOver,
    ReadsClockFirst,
    /// Starts over if the store went back in time.
    ResyncsSilently,
    /// Fails one poll if the store went back in time, and then starts over.
    ResyncsLater,
    /// Continues once the store has some commit at the node's revision again.
    ComparesRevisions,
}

const BROKEN: [Variant; 12] = [
    Variant::AppliesAnything,
    Variant::ConfirmsFirst,
    Variant::ConfirmsFirstHead,
    Variant::ConfirmsFirstPage,
    Variant::ForgetsTombstones,
    Variant::LeaseFromAnswer,
    Variant::LooksUpFirst,
    Variant::NeverStartsOver,
    Variant::ReadsClockFirst,
    Variant::ResyncsSilently,
    Variant::ResyncsLater,
    Variant::ComparesRevisions,
];

/// The number of events of each kind that may still happen.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Budget {
    ticks: u8,
    writes: u8,
    losses: u8,
    fetches: u8,
    compactions: u8,
    restarts: u8,
    polls: u8,
    /// The number of times that the store returns to its initial state.
    backs: u8,
}

/// The state of a key, as a row records it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, PartialOrd)]
enum Life {
    #[default]
    Unknown,
    Live,
    Ended,
    Removed,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct Row {
    revision: u8,
    life: Life,
}

/// A position in the store's history: a revision, and the history that its commit belongs to. The histories
/// before and after the store went back share the initial commits.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct Place {
    revision: u8,
    history: u8,
}

/// The revision of the store's initial state.
const INITIAL: u8 = 2;

/// Rows of both keys, and the store's head when the rows were scanned.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct Rows {
    rows: [Row; 2],
    base: u8,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Store {
    rows: [Row; 2],
    head: u8,
    /// The revision up to which the history is compacted.
    floor: u8,
    /// The tick at which the first key was ended. `None` again if the store went back in time, because a node
    /// that has not read the end cannot know it.
    ended: Option<u8>,
    /// The number of times that the store went back in time.
    history: u8,
    /// True if the store has a new epoch, which all followers notice.
    renewed: bool,
}

/// An answer from the store.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Page {
    Changes {
        row: Option<(usize, Row)>,
        upto: Place,
        head: Place,
    },
    Compacted,
    Diverged,
    Scan {
        rows: [Row; 2],
        head: Place,
    },
}

/// The progress of a poll. `sent` is the tick of its first request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Poll {
    Idle,
    Asked {
        sent: u8,
        from: Option<Place>,
        goal: Option<Place>,
        aside: Option<Rows>,
    },
    Answered {
        sent: u8,
        goal: Option<Place>,
        aside: Option<Rows>,
        page: Page,
        /// True if the node already counts the poll as a confirmation before it applies the page. Only the
        /// variant `ConfirmsFirst` does so.
        confirmed: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Node {
    live: Rows,
    cursor: Option<Place>,
    confirmed: Option<u8>,
    poll: Poll,
    /// The row of the first key, in a reply that is in flight.
    fetched: Option<Row>,
    /// True once the node has applied the end of the first key. It must then never accept this key.
    learnt: bool,
    /// True if the node has noticed that the store went back in time.
    diverged: bool,
}

/// The progress of the only verification, which verifies the first key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Verification {
    Not,
    /// The verification is running. Each `Option` is `None` until its step is done.
    On {
        place: usize,
        /// True if the node itself had ended the key, and applied the change, before the verification began.
        knew: bool,
        /// True if the node had applied the end of the key before the verification began.
        learnt: bool,
        confirmed: Option<Option<u8>>,
        live: Option<bool>,
        read: Option<u8>,
    },
    Done {
        accepted: bool,
        knew: bool,
        learnt: bool,
        at: u8,
    },
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct State {
    now: u8,
    left: Budget,
    store: Store,
    nodes: [Node; 2],
    /// A row that the first node has committed but not applied yet.
    landing: Option<(usize, Row)>,
    verification: Verification,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Tick,
    End(usize),
    Remove(usize),
    Learn,
    Forget,
    GoBack,
    Restart(usize),
    Send(usize),
    Serve(usize),
    Receive(usize),
    Lose(usize),
    Ask(usize),
    Hear(usize),
    Verify(usize),
    Load,
    LookUp,
    ReadClock,
}

struct Protocol {
    variant: Variant,
    budget: Budget,
}

const NOTHING: Node = Node {
    live: Rows {
        rows: [Row {
            revision: 0,
            life: Life::Unknown,
        }; 2],
        base: 0,
    },
    cursor: None,
    confirmed: None,
    poll: Poll::Idle,
    fetched: None,
    learnt: false,
    diverged: false,
};

impl Rows {
    fn apply(&mut self, (key, row): (usize, Row), variant: Variant) {
        let known = self.rows[key];
        let newest = if known.life == Life::Unknown {
            self.base
        } else {
            known.revision
        };
        if row.revision > newest || variant == Variant::AppliesAnything {
            let gone = row.life == Life::Removed && variant == Variant::ForgetsTombstones;
            self.rows[key] = if gone { Row::default() } else { row };
        }
    }
}

impl Store {
    fn write(&mut self, key: usize, life: Life) -> Row {
        self.head += 1;
        let revision = self.head;
        self.rows[key] = Row { revision, life };
        self.rows[key]
    }

    /// Returns the next page of changes: one row per page, and only the newest row of each key.
    fn changes(&self, after: Place, variant: Variant) -> Page {
        if after.revision < self.floor || self.renewed {
            return Page::Compacted;
        }
        let other = after != self.place(after.revision) && variant != Variant::ComparesRevisions;
        if other || after.revision > self.head {
            return Page::Diverged;
        }
        let later = |key: &usize| self.rows[*key].revision > after.revision;
        let first = (0..2)
            .filter(later)
            .min_by_key(|key| self.rows[*key].revision);
        let next = first.map(|key| (key, self.rows[key]));
        let others = (0..2).filter(later).count();
        let upto = next.filter(|_| others > 1).map(|(_, row)| row.revision);
        Page::Changes {
            row: next,
            upto: self.place(upto.unwrap_or(self.head)),
            head: self.place(self.head),
        }
    }

    /// Returns the position of the commit at a revision.
    fn place(&self, revision: u8) -> Place {
        let history = if revision > INITIAL { self.history } else { 0 };
        Place { revision, history }
    }

    /// Returns to the initial state, within the epoch.
    fn go_back(&mut self) {
        *self = Self {
            history: self.history + 1,
            ..Self::INITIAL
        };
    }

    const INITIAL: Self = {
        const fn live(revision: u8) -> Row {
            let life = Life::Live;
            Row { revision, life }
        }
        Self {
            rows: [live(1), live(2)],
            head: INITIAL,
            floor: 0,
            ended: None,
            history: 0,
            renewed: false,
        }
    };

    fn forget(&mut self) {
        self.floor = self.head;
        for row in &mut self.rows {
            if row.life == Life::Removed {
                *row = Row::default();
            }
        }
    }
}

impl Node {
    fn confirm(&mut self, sent: u8) {
        self.confirmed = self.confirmed.max(Some(sent));
    }

    fn send(&mut self, now: u8) {
        self.poll = Poll::Asked {
            sent: now,
            from: self.cursor,
            goal: None,
            aside: None,
        };
    }

    fn serve(&mut self, store: &Store, variant: Variant) {
        if let Poll::Asked {
            sent,
            from,
            goal,
            aside,
        } = self.poll
        {
            let page = match from {
                Some(from) => store.changes(from, variant),
                None => Page::Scan {
                    rows: store.rows,
                    head: store.place(store.head),
                },
            };
            self.poll = Poll::Answered {
                sent,
                goal,
                aside,
                page,
                confirmed: false,
            };
        }
    }

    fn receive(&mut self, now: u8, variant: Variant) {
        let Poll::Answered {
            sent,
            goal,
            mut aside,
            page,
            confirmed,
        } = self.poll
        else {
            return;
        };
        let sent = if variant == Variant::LeaseFromAnswer && !confirmed {
            now
        } else {
            sent
        };
        match page {
            Page::Changes { .. } if variant == Variant::ConfirmsFirst && !confirmed => {
                if aside.is_none() {
                    self.confirm(sent);
                }
                self.poll = Poll::Answered {
                    sent,
                    goal,
                    aside,
                    page,
                    confirmed: true,
                };
            }
            Page::Changes { row, upto, head } => {
                let rows = aside.as_mut().unwrap_or(&mut self.live);
                row.into_iter().for_each(|row| rows.apply(row, variant));
                let goal = goal.unwrap_or(head);
                self.learnt |= aside.is_none() && self.live.rows[0].life >= Life::Ended;
                let done = match variant {
                    Variant::ConfirmsFirstHead => upto.revision >= goal.revision,
                    Variant::ConfirmsFirstPage => true,
                    _ => upto == head,
                };
                if done {
                    if let Some(aside) = aside {
                        self.live = aside;
                        self.learnt |= self.live.rows[0].life >= Life::Ended;
                    }
                    self.diverged = false;
                    self.cursor = Some(upto);
                    self.confirm(sent);
                    self.poll = Poll::Idle;
                } else {
                    self.poll = Poll::Asked {
                        sent,
                        from: Some(upto),
                        goal: Some(goal),
                        aside,
                    };
                }
            }
            Page::Compacted => {
                self.confirmed = None;
                if variant != Variant::NeverStartsOver {
                    self.cursor = None;
                }
                self.poll = Poll::Idle;
            }
            Page::Diverged => {
                self.confirmed = None;
                let starts_over = match variant {
                    Variant::ResyncsSilently => true,
                    Variant::ResyncsLater => self.diverged,
                    _ => false,
                };
                if starts_over {
                    self.cursor = None;
                }
                self.diverged = true;
                self.poll = Poll::Idle;
            }
            Page::Scan { rows, head } => {
                // The method `learn` adds the rows that this process commits during the scan.
                let base = head.revision;
                let rows = Rows { rows, base };
                self.poll = Poll::Asked {
                    sent: now,
                    from: Some(head),
                    goal: None,
                    aside: Some(rows),
                };
            }
        }
    }

    /// Applies a row that the process committed itself.
    fn learn(&mut self, row: (usize, Row), variant: Variant) {
        self.live.apply(row, variant);
        self.learnt |= row.0 == 0;
        let (Poll::Asked { aside, .. } | Poll::Answered { aside, .. }) = &mut self.poll else {
            return;
        };
        if let Some(aside) = aside {
            aside.apply(row, variant);
        }
    }
}

impl Protocol {
    fn verify(&self, mut state: State, step: Step) -> Option<State> {
        let Verification::On {
            place,
            knew,
            learnt,
            mut confirmed,
            mut live,
            mut read,
        } = state.verification
        else {
            return None;
        };
        let node = &state.nodes[place];
        match step {
            Step::Load => confirmed = Some(node.confirmed),
            Step::LookUp => live = Some(node.live.rows[0].life == Life::Live),
            _ => read = Some(state.now),
        }
        state.verification = match (confirmed, live, read) {
            (Some(confirmed), Some(live), Some(read)) => {
                let fresh = confirmed.is_some_and(|sent| read.saturating_sub(sent) <= BOUND);
                let at = state.now;
                let accepted = fresh && live;
                Verification::Done {
                    accepted,
                    knew,
                    learnt,
                    at,
                }
            }
            _ => Verification::On {
                place,
                knew,
                learnt,
                confirmed,
                live,
                read,
            },
        };
        Some(state)
    }

    /// Returns the next step of a verification.
    fn next(&self, confirmed: bool, live: bool, read: bool) -> Step {
        let order = match self.variant {
            Variant::ReadsClockFirst => [Step::ReadClock, Step::Load, Step::LookUp],
            Variant::LooksUpFirst => [Step::LookUp, Step::Load, Step::ReadClock],
            _ => [Step::Load, Step::LookUp, Step::ReadClock],
        };
        let done = usize::from(confirmed) + usize::from(live) + usize::from(read);
        order[done.min(2)]
    }

    /// Returns whether every node reaches the store's state if no more faults occur.
    fn recovers(&self, state: &State) -> bool {
        let mut state = *state;
        if let Some(row) = state.landing.take() {
            state.nodes[0].learn(row, self.variant);
        }
        let now = state.now + 1;
        // A store that went back in time gets a new epoch.
        state.store.renewed |= state.store.history > 0;
        state.nodes.iter_mut().all(|node| {
            // From here on no more faults occur: requests in flight are dropped, and each node polls again.
            node.poll = Poll::Idle;
            for _ in 0..2 {
                node.send(now);
                while node.poll != Poll::Idle {
                    // The new epoch is noticed once.
                    let scanned = matches!(node.poll, Poll::Asked { aside: Some(_), .. });
                    let mut store = state.store;
                    store.renewed &= !scanned && node.confirmed != Some(now);
                    node.serve(&store, self.variant);
                    node.receive(now, self.variant);
                }
            }
            let same =
                |(own, row): (&Row, &Row)| (own.life == Life::Live) == (row.life == Life::Live);
            let knows = node.live.rows.iter().zip(&state.store.rows).all(same);
            knows && node.confirmed == Some(now)
        })
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let store = Store::INITIAL;
        let node = Node {
            live: Rows {
                rows: store.rows,
                base: 0,
            },
            cursor: Some(store.place(INITIAL)),
            confirmed: Some(0),
            ..NOTHING
        };
        vec![State {
            now: 0,
            left: self.budget,
            store,
            nodes: [node; 2],
            landing: None,
            verification: Verification::Not,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        match state.verification {
            Verification::Done { .. } => return,
            Verification::Not => steps.extend([Step::Verify(0), Step::Verify(1)]),
            Verification::On {
                confirmed,
                live,
                read,
                ..
            } => steps.push(self.next(confirmed.is_some(), live.is_some(), read.is_some())),
        }
        let left = state.left;
        let mut may = |step: Step, budget: u8| (budget > 0).then(|| steps.push(step));
        may(Step::Tick, left.ticks);
        may(Step::Forget, left.compactions);
        may(Step::GoBack, left.backs);
        for key in 0..2 {
            // The first node runs one command at a time, so it starts no write before it has applied the last
            // one.
            let writes = if state.landing.is_none() {
                left.writes
            } else {
                0
            };
            match state.store.rows[key].life {
                Life::Live => may(Step::End(key), writes),
                Life::Ended => may(Step::Remove(key), writes),
                Life::Unknown | Life::Removed => None,
            };
        }
        if state.landing.is_some() {
            steps.push(Step::Learn);
        }
        for place in 0..2 {
            let node = &state.nodes[place];
            match node.poll {
                Poll::Idle if left.polls > 0 => steps.push(Step::Send(place)),
                Poll::Idle => {}
                Poll::Asked { .. } => steps.push(Step::Serve(place)),
                Poll::Answered { .. } => steps.push(Step::Receive(place)),
            }
            if node.poll != Poll::Idle && left.losses > 0 {
                steps.push(Step::Lose(place));
            }
            if left.restarts > 0 {
                steps.push(Step::Restart(place));
            }
            match node.fetched {
                Some(_) => steps.push(Step::Hear(place)),
                None if left.fetches > 0 => steps.push(Step::Ask(place)),
                None => {}
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
            Step::End(key) | Step::Remove(key) => {
                state.left.writes -= 1;
                let ends = matches!(step, Step::End(_));
                let life = if ends { Life::Ended } else { Life::Removed };
                let row = state.store.write(key, life);
                if ends && key == 0 {
                    state.store.ended = Some(state.now);
                }
                state.landing = Some((key, row));
            }
            Step::Learn => {
                let row = state.landing.take()?;
                state.nodes[0].learn(row, self.variant);
            }
            Step::Forget => {
                state.left.compactions -= 1;
                state.store.forget();
            }
            Step::GoBack => {
                state.left.backs -= 1;
                state.store.go_back();
            }
            Step::Restart(place) => {
                state.left.restarts -= 1;
                state.nodes[place] = NOTHING;
                if place == 0 {
                    state.landing = None;
                }
                if matches!(state.verification, Verification::On { place: on, .. } if on == place) {
                    state.verification = Verification::Not;
                }
            }
            Step::Send(place) => {
                state.left.polls -= 1;
                state.nodes[place].send(state.now);
            }
            Step::Serve(place) => state.nodes[place].serve(&last.store, self.variant),
            Step::Receive(place) => state.nodes[place].receive(state.now, self.variant),
            Step::Lose(place) => {
                state.left.losses -= 1;
                state.nodes[place].poll = Poll::Idle;
            }
            Step::Ask(place) => {
                state.left.fetches -= 1;
                state.nodes[place].fetched = Some(state.store.rows[0]);
            }
            Step::Hear(place) => {
                let node = &mut state.nodes[place];
                let row = node.fetched.take()?;
                // The reply is ignored if the node is starting over, or if the store did not know the key.
                if node.cursor.is_some() && row.life != Life::Unknown {
                    node.live.apply((0, row), self.variant);
                }
            }
            Step::Verify(place) => {
                let ended = state.store.ended.is_some();
                let landing = matches!(state.landing, Some((0, _)));
                let learnt = state.nodes[place].learnt;
                let knew =
                    place == 0 && ended && !landing && state.left.restarts == self.budget.restarts;
                state.verification = Verification::On {
                    place,
                    knew,
                    learnt,
                    confirmed: None,
                    live: None,
                    read: None,
                };
            }
            Step::Load | Step::LookUp | Step::ReadClock => return self.verify(state, step),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "nothing is accepted past the bound",
                |_, state: &State| match (state.verification, state.store.ended) {
                    (Verification::Done { accepted, at, .. }, Some(ended)) => {
                        !accepted || at <= ended + BOUND
                    }
                    _ => true,
                },
            ),
            Property::always(
                "a change holds at once where it was made",
                |_, state: &State| {
                    !matches!(
                        state.verification,
                        Verification::Done {
                            accepted: true,
                            knew: true,
                            ..
                        }
                    )
                },
            ),
            Property::always(
                "no node accepts a key whose end it has applied",
                |_, state: &State| {
                    !matches!(
                        state.verification,
                        Verification::Done {
                            accepted: true,
                            learnt: true,
                            ..
                        }
                    )
                },
            ),
            Property::always(
                "no node is stale for ever",
                |model: &Self, state: &State| model.recovers(state),
            ),
            Property::sometimes(ACCEPTED, |_, state: &State| {
                matches!(
                    state.verification,
                    Verification::Done { accepted: true, .. }
                )
            }),
            Property::sometimes(STARTED_OVER, |_, state: &State| {
                state
                    .nodes
                    .iter()
                    .any(|node| matches!(node.poll, Poll::Asked { aside: Some(_), .. }))
            }),
        ]
    }
}

/// Budgets that take only seconds to explore. Together they are large enough to find every broken variant.
const SMALL: [Budget; 6] = [
    // Explores leases and lost messages.
    Budget {
        ticks: 3,
        writes: 1,
        losses: 1,
        polls: 2,
        ..NONE
    },
    // Explores rows that change again while they are read page by page.
    Budget {
        ticks: 2,
        writes: 4,
        polls: 1,
        ..NONE
    },
    // Explores a store that compacts, and a late reply.
    Budget {
        ticks: 2,
        writes: 2,
        fetches: 1,
        compactions: 1,
        polls: 1,
        ..NONE
    },
    // Explores a node that restarts.
    Budget {
        ticks: 2,
        writes: 2,
        compactions: 1,
        restarts: 1,
        polls: 1,
        ..NONE
    },
    // Explores a store that goes back in time, and then moves on.
    Budget {
        writes: 1,
        backs: 1,
        polls: 4,
        ..NONE
    },
    Budget {
        ticks: 2,
        writes: 2,
        backs: 1,
        polls: 2,
        ..NONE
    },
];

const NONE: Budget = Budget {
    ticks: 0,
    writes: 0,
    losses: 0,
    fetches: 0,
    compactions: 0,
    restarts: 0,
    polls: 0,
    backs: 0,
};

fn check(variant: Variant, budget: Budget) -> impl Checker<Protocol> {
    let model = Protocol { variant, budget };
    let checker = model.checker().threads(2);
    checker
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join()
}

/// Returns the names of the violated properties.
fn broken(checked: &impl Checker<Protocol>) -> Vec<&'static str> {
    let mut found: Vec<_> = checked.discoveries().into_keys().collect();
    found.retain(|name| !name.starts_with("now and then"));
    found
}

#[test]
fn no_order_of_steps_breaks_the_protocol() {
    let mut accepts = false;
    let mut starts_over = false;
    for budget in SMALL {
        let checked = check(Variant::Sound, budget);
        println!("{budget:?}: {} states", checked.unique_state_count());
        assert_eq!(broken(&checked), Vec::<&str>::new());
        let happened = checked.discoveries();
        accepts |= happened.contains_key(ACCEPTED);
        starts_over |= happened.contains_key(STARTED_OVER);
    }
    assert!(
        accepts && starts_over,
        "the model reaches acceptance and starting over"
    );
}

#[test]
fn every_broken_protocol_is_found() {
    for variant in BROKEN {
        let found = SMALL.into_iter().find_map(|budget| {
            let checked = check(variant, budget);
            let found = broken(&checked).first().copied();
            found.map(|what| (what, checked.unique_state_count()))
        });
        let (what, states) = found.unwrap_or_else(|| panic!("{variant:?} passes"));
        println!("{variant:?}: not so that {what}, within {states} states");
    }
}
