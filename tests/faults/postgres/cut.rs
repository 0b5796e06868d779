//! Connections that are cut or become silent in the middle of a commit. The store must never report a wrong
//! outcome. A retry with the same command id must return the true one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use keyward::command::Created;
use keyward::policy::Policy;
use keyward::store::postgres::PostgresOptions;
use keyward::store::{
    CommitError, KeyQuery, KeyStore, LoadRequest, PostgresStore, Revision, StoreError,
    StoreErrorKind,
};
use keyward::{CommandError, Denial, KeyId, Keyward, ManualClock, Role};

use crate::postgres::proxy::{Fate, Point, Proxy, Side, lengths};
use support::postgres::{Server, TestSchema, on_runtime, open, pool};
use support::process::rounds;
use support::raw::{beginning, next};
use support::*;

/// The store's answer to a commit, and whether the commit was in fact written.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Outcome {
    Done,
    NotDone,
    UnknownAndThere,
    UnknownAndNotThere,
}

impl Outcome {
    /// Checks that the answer agrees with the store. The argument `there` is true if the store contains the
    /// commit.
    #[track_caller]
    fn of(answer: Result<(), StoreError>, there: bool, when: &str) -> Self {
        let kind = answer.as_ref().map_err(StoreError::kind);
        match (kind, there) {
            (Ok(()), true) => Self::Done,
            (Err(StoreErrorKind::Unavailable), false) => Self::NotDone,
            (Err(StoreErrorKind::Indeterminate), true) => Self::UnknownAndThere,
            (Err(StoreErrorKind::Indeterminate), false) => Self::UnknownAndNotThere,
            _ => panic!("{when}: written: {there}, answer: {answer:?}"),
        }
    }
}

/// A schema that a test reaches through a proxy, and also directly.
struct Ground {
    proxy: Proxy,
    place: TestSchema,
    direct: PostgresStore,
}

impl Ground {
    fn new() -> Self {
        // The tests start a server of their own here, because the proxy needs the path of the server's
        // socket.
        static SHARED: OnceLock<Server> = OnceLock::new();
        let server = SHARED.get_or_init(|| Server::start("fsync = off"));
        let place = TestSchema::at(server.url());
        Self {
            proxy: Proxy::before(server.folder()),
            direct: place.connect(),
            place,
        }
    }

    /// Returns options for a store that connects through the proxy, with one connection for reads and one for
    /// commits.
    fn options(&self) -> PostgresOptions {
        PostgresStore::options(self.proxy.url())
            .schema(&self.place.schema)
            .max_connections(1.try_into().unwrap())
            .server_clock(false)
    }

    /// Returns whether a tenant has a commit. Waits first until every commit in progress has ended.
    fn is_there(&self, name: &str) -> bool {
        self.place.until_free();
        let view = wait(self.direct.load(&tenant(name), &LoadRequest::none())).unwrap();
        view.revision != Revision::ZERO
    }

    fn keys_of(&self, name: &str) -> Vec<KeyId> {
        let query = KeyQuery::tenant(tenant(name), at(START));
        let page = wait(self.direct.list(&query)).unwrap();
        page.keys.iter().map(|key| key.id).collect()
    }
}

/// Commits once, so that the connection for commits is the newest one. The proxy disturbs only the newest
/// connection.
fn warm(store: &PostgresStore) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // Connecting may time out on a busy machine, so the commit is repeated.
    for again in 0.. {
        if raw(store, &format!("warm-{number}-{again}")).is_ok() {
            return;
        }
    }
}

fn raw(store: &PostgresStore, name: &str) -> Result<(), StoreError> {
    match wait(store.commit(next(&tenant(name), Revision::ZERO).1)) {
        Ok(_) => Ok(()),
        Err(CommitError::Store(error)) => Err(error),
        Err(other) => panic!("{name}: nobody else commits to this tenant: {other:?}"),
    }
}

fn service(store: PostgresStore) -> Keyward {
    let clock = Arc::new(ManualClock::at(at(START)));
    node(store, &clock, Policy::new(capped(5)).unwrap())
}

fn create(keys: &Keyward, name: &str) -> Result<Created, CommandError> {
    let admin = actor(name, "alice", Role::ADMIN);
    let by = admin.with_command_id(command(name));
    wait(keys.create(&by, reader("key")))
}

/// Returns the points of a recorded conversation at which a test cuts the connection.
///
/// If `every` is 1, each byte is such a point. Otherwise the points are the start and the middle of each
/// message, and only one in `every` points is used. In the last messages all points are used, because these
/// messages contain the commit.
fn points(said: &(Vec<u8>, Vec<u8>), every: usize) -> Vec<(Side, Point)> {
    let of = |side, bytes: &[u8]| {
        let lengths = lengths(bytes).into_iter().enumerate();
        lengths.flat_map(move |(number, length)| {
            let within: Vec<_> = match every {
                1 => (0..length).collect(),
                _ => vec![0, length / 2],
            };
            within.into_iter().map(move |bytes| (side, (number, bytes)))
        })
    };
    let all = of(Side::Client, &said.0).chain(of(Side::Server, &said.1));
    let all: Vec<_> = all.collect();
    let near = |place: &(usize, &(Side, Point))| {
        let (_, (side, (number, _))) = place;
        let bytes = match side {
            Side::Client => &said.0,
            Side::Server => &said.1,
        };
        number + 4 > lengths(bytes).len()
    };
    let some = all.iter().enumerate();
    let some = some.filter(|place| place.0 % every == 0 || near(place));
    some.map(|(_, point)| *point).collect()
}

fn print(what: &str, outcomes: &BTreeMap<Outcome, usize>) {
    println!(
        "{what}, cut at {} points: {outcomes:?}",
        outcomes.values().sum::<usize>()
    );
}

#[test]
fn the_answer_to_a_commit_is_true_wherever_its_connection_is_cut() {
    let ground = Ground::new();
    let store = open(ground.options()).unwrap();
    warm(&store);
    let said = ground.proxy.record(|| raw(&store, "recorded").unwrap());
    let mut outcomes = BTreeMap::new();
    for (number, (side, point)) in points(&said, rounds(2, 1)).into_iter().enumerate() {
        let (name, when) = (format!("t{number}"), format!("{side:?} {point:?}"));
        let store = open(ground.options()).unwrap();
        warm(&store);
        ground.proxy.arm(side, point, Fate::Cut);
        let answer = raw(&store, &name);
        ground.proxy.heal();
        drop(store);
        let outcome = Outcome::of(answer, ground.is_there(&name), &when);
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    print("commits", &outcomes);
    for outcome in [
        Outcome::NotDone,
        Outcome::UnknownAndThere,
        Outcome::UnknownAndNotThere,
    ] {
        assert!(outcomes.contains_key(&outcome), "{outcome:?}: {outcomes:?}");
    }
}

#[test]
fn the_outcome_of_a_cut_creation_is_found_by_its_command_id() {
    let ground = Ground::new();
    let store = open(ground.options()).unwrap();
    warm(&store);
    let keys = service(store);
    let said = ground.proxy.record(|| create(&keys, "recorded").unwrap());
    let mut outcomes = BTreeMap::new();
    for (number, (side, point)) in points(&said, rounds(2, 1)).into_iter().enumerate() {
        let (name, when) = (format!("t{number}"), format!("{side:?} {point:?}"));
        let store = open(ground.options()).unwrap();
        warm(&store);
        let keys = service(store);
        ground.proxy.arm(side, point, Fate::Down);
        let answer = match create(&keys, &name) {
            Ok(_) => Ok(()),
            Err(CommandError::Store(error)) => Err(error),
            Err(other) => panic!("{when}: {other:?}"),
        };
        ground.proxy.heal();
        let there = ground.is_there(&name);
        let outcome = Outcome::of(answer, there, &when);
        *outcomes.entry(outcome).or_insert(0) += 1;
        // The first attempts may fail, because the store detects a lost connection only when a call on it
        // fails.
        let again = loop {
            match create(&keys, &name) {
                Err(CommandError::Store(error)) if error.kind() == StoreErrorKind::Unavailable => {}
                answer => break answer,
            }
        };
        let found = ground.keys_of(&name);
        match (there, again) {
            (false, Ok(made)) => assert_eq!(found, [made.id], "{when}"),
            (true, Err(CommandError::Denied(Denial::AlreadyCreated { id }))) => {
                assert_eq!(found, [id], "{when}");
            }
            answer => panic!("{when}: {answer:?}"),
        }
    }
    print("creations", &outcomes);
    assert!(outcomes.contains_key(&Outcome::NotDone), "{outcomes:?}");
    // A short run may reach only one of the two unknown outcomes, depending on how the conversation splits
    // into messages. A long run cuts at each byte, and reaches both.
    let unknown = [Outcome::UnknownAndThere, Outcome::UnknownAndNotThere];
    let seen = unknown.iter().filter(|one| outcomes.contains_key(one));
    assert!(seen.count() >= rounds(1, 2), "{outcomes:?}");
}

#[test]
fn a_commit_on_a_silent_connection_times_out_with_a_true_answer() {
    let ground = Ground::new();
    let store = open(ground.options()).unwrap();
    warm(&store);
    let said = ground.proxy.record(|| raw(&store, "recorded").unwrap());
    let mut outcomes = BTreeMap::new();
    for (number, (side, point)) in points(&said, rounds(40, 4)).into_iter().enumerate() {
        let (name, when) = (format!("t{number}"), format!("{side:?} {point:?}"));
        let short = Duration::from_millis(150);
        let options = ground.options().connection_timeout(short);
        // Connecting may time out on a busy machine, so it is repeated.
        let store = loop {
            if let Ok(store) = open(options.clone().request_timeout(short)) {
                break store;
            }
        };
        warm(&store);
        ground.proxy.arm(side, point, Fate::Silent);
        let answer = raw(&store, &name);
        ground.proxy.heal();
        drop(store);
        let outcome = Outcome::of(answer, ground.is_there(&name), &when);
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    print("commits, silently", &outcomes);
    let unknown = outcomes.keys().any(|outcome| *outcome > Outcome::NotDone);
    assert!(
        unknown && outcomes.contains_key(&Outcome::NotDone),
        "{outcomes:?}"
    );
}

#[test]
fn a_node_silent_within_a_commit_blocks_others_only_until_its_timeout() {
    let ground = Ground::new();
    let long = Duration::from_secs(60);
    let other = ground.place.options().lock_timeout(long);
    let other = other.statement_timeout(long).request_timeout(long);
    let other = open(other).unwrap();
    let silent = loop {
        let options = ground.options().request_timeout(long);
        let idle = Duration::from_millis(500);
        let store = open(options.idle_in_transaction_timeout(idle)).unwrap();
        warm(&store);
        ground.proxy.arm_before("COMMIT", Fate::Silent);
        let silent = std::thread::spawn(move || raw(&store, "silent"));
        while !ground.proxy.is_over() && !silent.is_finished() {
            ground.place.run("SELECT 1");
        }
        if ground.proxy.is_over() {
            break silent;
        }
        // `COMMIT` never reached the proxy: on a busy machine, the server may end an idle transaction before.
        // The test then tries again.
        silent.join().unwrap().unwrap_err();
    };
    raw(&other, "other").unwrap();
    assert!(!silent.is_finished(), "the silent commit is still waiting");
    ground.proxy.heal();
    let answer = silent.join().unwrap();
    let outcome = Outcome::of(answer, ground.is_there("silent"), "silent");
    assert_eq!(outcome, Outcome::UnknownAndNotThere);
}

#[test]
fn a_listener_on_a_silent_connection_moves_to_another_one() {
    let ground = Ground::new();
    let short = Duration::from_millis(200);
    let options = ground.options().connection_timeout(short);
    let store = loop {
        if let Ok(store) = open(options.clone().request_timeout(short)) {
            break store;
        }
    };
    let start = beginning(&ground.direct);
    std::thread::spawn(move || while wait(store.wait_past(start)).is_err() {});
    let listening = "SELECT pid::text FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    ground.place.until_found(listening);
    ground.proxy.silence();
    let before = ground.place.ask(listening).join(", ");
    let another = format!("{listening} AND pid NOT IN ({before})");
    let found = (0..3000).any(|_| !ground.place.ask(&another).is_empty());
    assert!(found, "the store still listens on the silenced connection");
}

#[test]
fn commits_end_with_an_answer_while_readers_hold_every_connection() {
    const CONNECTIONS: usize = 4;
    let place = TestSchema::new();
    let long = Duration::from_secs(60);
    let pool = pool(&place.url, CONNECTIONS);
    // Opens all connections before the measurement. Otherwise the measured calls could time out while they
    // connect.
    on_runtime({
        let pool = pool.clone();
        async move {
            let all = join_all((0..CONNECTIONS).map(|_| pool.get())).await;
            assert!(all.iter().all(Result::is_ok));
        }
    });
    let options = PostgresStore::from_pool(pool).schema(&place.schema);
    let options = options.connection_timeout(Duration::from_millis(50));
    let options = options.lock_timeout(long).statement_timeout(long);
    let store = open(options.request_timeout(long)).unwrap();
    let lock = place.hold("LOCK TABLE $s.rows IN ACCESS EXCLUSIVE MODE");
    let scan = || {
        let store = store.clone();
        std::thread::spawn(move || wait(store.scan(None, support::raw::ALL)))
    };
    let readers: Vec<_> = (0..16).map(|_| scan()).collect();
    place.until_found(&format!(
        "SELECT 'all' FROM pg_locks WHERE NOT granted AND relation = '$s.rows'::regclass \
         HAVING count(*) = {CONNECTIONS}"
    ));
    for number in 0..8 {
        let answer = raw(&store, &format!("t{number}")).unwrap_err();
        assert_eq!(answer.kind(), StoreErrorKind::Unavailable, "{answer:?}");
    }
    drop(lock);
    let answer = readers.into_iter().map(|reader| reader.join().unwrap());
    let (served, refused): (Vec<_>, Vec<_>) = answer.partition(Result::is_ok);
    assert!(served.len() >= CONNECTIONS, "{}", served.len());
    for answer in refused {
        assert_eq!(answer.unwrap_err().kind(), StoreErrorKind::Unavailable);
    }
    raw(&store, "afterwards").unwrap();
}
