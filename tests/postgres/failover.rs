//! Failovers: to a synchronous standby, while the former primary keeps running and still answers, and to an
//! asynchronous one. `tests/programs/failover.rs` loses commits in a failover, and recovers them.

use std::error::Error as _;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::TryFutureExt;
use futures_util::future::{join3, join4};
use keyward::command::Created;
use keyward::policy::Policy;
use keyward::store::postgres::ConnectError;
use keyward::store::postgres::deadpool_postgres::{Manager, Pool};
use keyward::store::{
    CommitError, KeyStore, LoadRequest, Locator, NodeRegistry, PostgresStore, Revision, StoreError,
    StoreErrorKind,
};
use keyward::{CommandError, Denial, Keyward, ManualClock, Need, Reason, VerifyError, hours};
use tokio_postgres::NoTls;

use support::captured::Captured;
use support::postgres::{Server, TestSchema, on_runtime, open};
use support::raw::{ALL, beginning, next};
use support::recorder::Kept;
use support::*;

/// 2 s until a request times out, because some tests wait for the timeout.
const PATIENCE: Duration = Duration::from_secs(2);

/// The default report allowance.
const MINUTE: Duration = Duration::from_secs(60);

/// Counts the sessions whose `COMMIT` waits for the standby.
const WAITING: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

/// 10 s, the staleness bound of the standard policy.
const BOUND: Duration = Duration::from_secs(10);

/// A primary with a store, and a standby that replicates it.
struct Cluster {
    primary: Server,
    standby: Server,
    place: TestSchema,
    clock: Arc<ManualClock>,
}

impl Cluster {
    /// Starts a cluster with a synchronous standby.
    fn new() -> Self {
        Self::with_standby(joined)
    }

    fn with_standby(join: impl FnOnce(&Server, &TestSchema) -> Server) -> Self {
        let primary = Server::start("fsync = off");
        let place = TestSchema::at(primary.url());
        drop(place.connect());
        let standby = join(&primary, &place);
        Self {
            primary,
            standby,
            place,
            clock: Arc::new(ManualClock::at(at(START))),
        }
    }

    fn node(&self, store: impl KeyStore) -> Arc<Keyward> {
        Arc::new(node(store, &self.clock, Policy::new(capped(50)).unwrap()))
    }

    fn strict(&self) -> Arc<Keyward> {
        self.node(strict(&self.place))
    }

    /// Builds a node that reports its position.
    fn registered(&self, store: PostgresStore) -> Keyward {
        self.registered_for(MINUTE, store)
    }

    /// Builds a node that reports its position, with this report allowance.
    fn registered_for(&self, allowance: Duration, store: PostgresStore) -> Keyward {
        let builder = Keyward::builder(store.clone(), peppers())
            .registry(store)
            .policy(Policy::new(capped(50)).unwrap())
            .report_allowance(allowance)
            .clock(self.clock.clone());
        wait(builder.build()).unwrap()
    }

    /// Returns the schema of the store, at a URL that names both servers. The store connects to the first one that
    /// accepts writes.
    fn both(&self) -> TestSchema {
        TestSchema {
            url: self.primary.url_or(&self.standby),
            schema: self.place.schema.clone(),
        }
    }

    /// Returns the schema of the store, but on the standby.
    fn other(&self) -> TestSchema {
        TestSchema {
            url: self.standby.url(),
            schema: self.place.schema.clone(),
        }
    }

    /// Ends the replication from the primary to the standby. Both keep running.
    fn cut(&self) {
        let standby = self.other();
        standby.run("ALTER SYSTEM SET primary_conninfo = ''");
        standby.run("SELECT pg_reload_conf()");
        self.place
            .until("SELECT count(*)::text FROM pg_stat_replication", "0");
    }

    /// Ends the replication and promotes the standby to a primary. The former primary keeps running.
    fn fail_over(&self) -> TestSchema {
        self.cut();
        let standby = self.other();
        standby.run("SELECT pg_promote()");
        standby
    }
}

/// Adds a synchronous standby to `primary`, so that every later commit waits until the standby has it.
fn joined(primary: &Server, place: &TestSchema) -> Server {
    let standby = Server::standby_of(primary);
    primary.reconfigure("synchronous_standby_names = 'walreceiver'");
    place.until("SELECT sync_state FROM pg_stat_replication", "sync");
    standby
}

fn strict(place: &TestSchema) -> PostgresStore {
    open(place.options().strict().request_timeout(PATIENCE)).unwrap()
}

fn some_key(keys: &Keyward) -> Created {
    wait(keys.create(&admin(), reader("some key"))).unwrap()
}

fn accepts(keys: &Keyward, key: &Created) -> Result<(), VerifyError> {
    keys.verify(key.secret.expose(), &reading()).map(drop)
}

fn cause(error: &StoreError) -> String {
    error.source().unwrap().to_string()
}

/// Without the standby, neither a commit nor a report of a node returns. Reads still confirm, until the last report
/// that the standby has is too old for receipts to count on the node.
#[test]
fn a_registered_node_verifies_for_a_minute_without_the_synchronous_standby() {
    verifies_without_the_standby(MINUTE);
}

#[test]
fn a_registered_node_verifies_for_its_report_allowance_without_the_synchronous_standby() {
    verifies_without_the_standby(hours(4));
}

/// Runs a node with this report allowance until its keys are refused, and until the standby returns.
fn verifies_without_the_standby(allowance: Duration) {
    let cluster = Cluster::new();
    let options = cluster.place.options().request_timeout(PATIENCE);
    let options = options.max_connections(2.try_into().unwrap());
    let store = open(options.lock_timeout(Duration::from_millis(100))).unwrap();
    let (log, _subscriber) = Captured::start();
    let metrics = Kept::default();
    metrics::with_local_recorder(&metrics, || {
        let keys = cluster.registered_for(allowance, store);
        let key = some_key(&keys);
        wait(keys.sync()).unwrap();
        cluster.standby.kill();
        let alice = admin();
        let once = alice.with_command_id(command("late"));
        let unknown = wait(keys.create(&once, reader("late"))).unwrap_err();
        let CommandError::Store(error) = &unknown else {
            panic!("{unknown:?}")
        };
        assert_eq!(error.kind(), StoreErrorKind::Indeterminate);
        cluster.clock.advance(allowance - MINUTE);
        wait(keys.sync()).unwrap();
        let step = Duration::from_secs(9);
        for _ in 0..6 {
            cluster.clock.advance(step);
            wait(keys.sync()).unwrap();
            accepts(&keys, &key).unwrap();
        }
        // The gauge and both lines come before the first refusal.
        let age = (allowance - MINUTE).as_secs_f64() + 54.0;
        assert_eq!(metrics.gauge("keyward_report_age_seconds"), age);
        assert!(!log.lines("last report to the registry is old").is_empty());
        // Later reports wait for the row of the first one and give up, so only one waits beside the commit. They do not
        // use up the server's connections.
        assert_eq!(cluster.place.ask(WAITING), ["2"]);
        cluster.clock.advance(step);
        assert!(wait(keys.sync()).is_err(), "3 s after the allowance");
        assert_eq!(metrics.gauge("keyward_seconds_until_refusal"), 1.0);
        let announced = log.lines("keys will be refused as stale");
        assert!(announced[0].contains("ERROR"), "{announced:?}");
        accepts(&keys, &key).unwrap();
        cluster.clock.advance(step);
        let refused = accepts(&keys, &key).unwrap_err();
        assert!(matches!(refused, VerifyError::Stale { .. }), "{refused:?}");
        cluster.standby.resume();
        cluster.place.until(WAITING, "0");
        wait(keys.sync()).unwrap();
        accepts(&keys, &key).unwrap();
        // The commit took effect when the standby returned, and is not repeated.
        let landed = denied(wait(keys.create(&once, reader("late"))));
        assert!(matches!(landed, Denial::AlreadyCreated { .. }), "{landed}");
    });
}

#[test]
fn a_node_goes_on_after_an_asynchronous_failover_that_lost_nothing() {
    let cluster = Cluster::with_standby(|primary, _| Server::standby_of(primary));
    let keys = cluster.registered(open(cluster.both().options()).unwrap());
    let [revoked, kept] = [some_key(&keys), some_key(&keys)];
    let receipt = wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    let reached = receipt.revision().to_string();
    (cluster.other()).until("SELECT revision::text FROM $s.head", &reached);
    cluster.primary.kill();
    cluster.other().run("SELECT pg_promote()");
    // The first calls fail, because their connections were lost.
    assert!((0..20).any(|_| wait(keys.sync()).is_ok()));
    let later = some_key(&keys);
    let started = cluster.registered(open(cluster.both().options()).unwrap());
    for keys in [&keys, &started] {
        wait(keys.sync()).unwrap();
        assert_eq!(keys.freshness().diverged, None);
        accepts(keys, &kept).unwrap();
        accepts(keys, &later).unwrap();
        let refused = accepts(keys, &revoked).unwrap_err();
        assert!(
            matches!(refused, VerifyError::Revoked { .. }),
            "{refused:?}"
        );
    }
}

#[test]
fn strict_nodes_work_normally_while_the_standby_follows() {
    let cluster = Cluster::new();
    let (service, operator) = (cluster.strict(), cluster.strict());
    let key = some_key(&operator);
    wait(service.sync()).unwrap();
    accepts(&service, &key).unwrap();
    for _ in 0..3 {
        cluster.clock.advance(BOUND);
        wait(service.sync()).unwrap();
        accepts(&service, &key).unwrap();
    }
    wait(service.verify_fresh(key.secret.expose(), &reading())).unwrap();
    let store = strict(&cluster.place);
    let head = wait(store.scan(None, ALL)).unwrap().head;
    wait(store.wait_past(beginning(&store))).unwrap();
    assert!(wait(store.changes(head, ALL)).unwrap().changes.is_empty());
    wait(operator.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    wait(service.sync()).unwrap();
    let refused = accepts(&service, &key).unwrap_err();
    assert!(
        matches!(refused, VerifyError::Revoked { .. }),
        "{refused:?}"
    );
    // Strict mode must work for a role that has only the privileges that the store needs in any mode.
    cluster
        .place
        .run("CREATE ROLE plain LOGIN; GRANT CREATE ON DATABASE postgres TO plain");
    let plain = TestSchema::at(cluster.primary.url().replace("user=postgres", "user=plain"));
    wait(strict(&plain).commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    // The store proves with heartbeats that the standby follows. Heartbeats are not commits, so they leave
    // the revision unchanged.
    let after = wait(store.scan(None, ALL)).unwrap().head;
    assert_eq!(after.revision, Revision(head.revision.0 + 1));
}

#[test]
fn verifiers_that_see_only_a_former_primary_refuse_within_the_bound() {
    let cluster = Cluster::new();
    let store = strict(&cluster.both());
    let service = cluster.node(store.clone());
    let careless = cluster.node(cluster.place.connect());
    let key = some_key(&careless);
    for keys in [&service, &careless] {
        wait(keys.sync()).unwrap();
        accepts(keys, &key).unwrap();
    }
    let promoted = cluster.fail_over();
    let operator = cluster.node(promoted.connect());
    wait(operator.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let mut since = Duration::ZERO;
    for step in [Duration::ZERO, BOUND, Duration::from_millis(1), BOUND] {
        since += step;
        cluster.clock.advance(step);
        let error = wait(service.sync()).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        let verdict = accepts(&service, &key);
        assert!(
            verdict.is_ok() == (since <= BOUND),
            "{since:?}: {verdict:?}"
        );
        // A node without strict mode does not detect the failover, and still accepts the revoked key.
        wait(careless.sync()).unwrap();
        accepts(&careless, &key).unwrap();
    }
    let refused = accepts(&service, &key).unwrap_err();
    assert!(matches!(refused, VerifyError::Stale { .. }), "{refused:?}");
    // The strict node also refuses every other read from the former primary.
    let presented = key.secret.expose();
    let refused = wait(service.verify_fresh(presented, &Need::any())).unwrap_err();
    assert!(
        matches!(refused, VerifyError::StoreUnavailable),
        "{refused:?}"
    );
    wait(careless.verify_fresh(presented, &Need::any())).unwrap();
    let (id, acme, none) = (Locator::Id(key.id), tenant("acme"), LoadRequest::none());
    let results = wait(join4(
        store.find(&id).map_ok(drop),
        store.load(&acme, &none).map_ok(drop),
        store.scan(None, ALL).map_ok(drop),
        store.nodes().map_ok(drop),
    ));
    let results = [results.0, results.1, results.2, results.3];
    assert!(results.iter().all(Result::is_err), "{results:?}");
    // The new primary needs a standby too, for strict mode. The nodes connect to it once the former primary
    // is stopped.
    let _third = joined(&cluster.standby, &promoted);
    cluster.primary.kill();
    let reached = (0..20).any(|_| wait(service.sync()).is_ok());
    assert!(reached, "the new primary is not reached");
    let refused = accepts(&service, &key).unwrap_err();
    assert!(
        matches!(refused, VerifyError::Revoked { .. }),
        "{refused:?}"
    );
    cluster.primary.resume();
}

#[test]
fn a_wait_that_ends_without_the_standby_confirms_nothing() {
    let cluster = Cluster::new();
    // The first setting hides the warning about a cancelled wait. The second makes commits of this role wait
    // for no standby, unless the store overrides it.
    cluster.place.run(
        "ALTER ROLE postgres SET client_min_messages = error; \
         ALTER ROLE postgres SET synchronous_commit = off",
    );
    let service = cluster.strict();
    let key = some_key(&service);
    accepts(&service, &key).unwrap();
    let promoted = cluster.fail_over();
    let operator = cluster.node(promoted.connect());
    wait(operator.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    cluster.clock.advance(BOUND + Duration::from_secs(1));
    let while_it_waits = |then: &dyn Fn()| {
        let syncing = service.clone();
        let sync = thread::spawn(move || wait(syncing.sync()));
        then();
        let error = sync.join().unwrap().unwrap_err();
        let refused = accepts(&service, &key).unwrap_err();
        assert!(matches!(refused, VerifyError::Stale { .. }), "{refused:?}");
        error
    };
    let place = &cluster.place;
    while_it_waits(&|| place.on_who_waits("pg_cancel_backend"));
    while_it_waits(&|| place.on_who_waits("pg_terminate_backend"));
    while_it_waits(&|| {
        place.on_who_waits("abs");
        cluster.primary.kill();
        cluster.primary.resume();
    });
    wait(service.sync()).unwrap_err();
    let error = while_it_waits(&|| {
        place.on_who_waits("abs");
        let nobody = "synchronous_standby_names = ''";
        cluster.primary.reconfigure(nobody);
    });
    assert!(cause(&error).contains("standby"), "{error:?}");
    let error = wait(service.sync()).unwrap_err();
    assert!(cause(&error).contains("is empty"), "{error:?}");
}

#[test]
fn a_heartbeat_of_one_server_confirms_nothing_about_another() {
    let cluster = Cluster::new();
    let store = strict(&cluster.both());
    let reads = || wait(join3(store.nodes(), store.nodes(), store.nodes()));
    // Opens several connections to the primary. The test terminates some of them below, and at least one of
    // them must stay open.
    reads().2.unwrap();
    let promoted = cluster.fail_over();
    let _third = joined(&cluster.standby, &promoted);
    cluster.place.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_conf_load%' \
         AND pid <> pg_backend_pid()",
    );
    cluster.primary.hide();
    let mut causes = Vec::new();
    for _ in 0..20 {
        match wait(store.nodes()) {
            Ok(_) => break,
            Err(error) => causes.push(cause(&error)),
        }
    }
    assert!(
        causes.len() < 20,
        "the new primary is not reached: {causes:?}"
    );
    assert!(
        causes
            .iter()
            .any(|cause| cause.contains("not the one whose")),
        "{causes:?}"
    );
}

#[test]
fn a_commit_without_the_standbys_acknowledgement_is_not_reported_as_done() {
    let cluster = Cluster::new();
    let acme = tenant("acme");
    let (store, careless) = (strict(&cluster.place), cluster.place.connect());
    let at = wait(store.commit(next(&acme, Revision::ZERO).1)).unwrap();
    cluster.cut();
    let cancelled = |store: &PostgresStore, expected| {
        let (store, commit) = (store.clone(), next(&acme, expected).1);
        let commit = thread::spawn(move || wait(store.commit(commit)));
        cluster.place.on_who_waits("pg_cancel_backend");
        commit.join().unwrap()
    };
    let result = cancelled(&store, at).unwrap_err();
    let CommitError::Store(error) = &result else {
        panic!("{result:?}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Indeterminate);
    // A store without strict mode cannot detect that the wait for the standby was cancelled, so it reports
    // success.
    let head = wait(careless.scan(None, ALL)).unwrap().head;
    assert_eq!(cancelled(&careless, head.revision).unwrap().0, 3);
}

#[test]
fn strict_mode_requires_a_synchronous_standby_and_a_url() {
    let server = Server::start("fsync = off");
    let place = TestSchema::at(server.url());
    drop(place.connect());
    let options = || place.options().strict().request_timeout(PATIENCE);
    let refused = open(options()).unwrap_err();
    assert!(matches!(refused, ConnectError::NoStandby), "{refused:?}");
    server.reconfigure("synchronous_standby_names = 'nobody'");
    // The restart makes sure that the setting applies to the first commit already.
    server.kill();
    server.resume();
    let refused = open(options()).unwrap_err();
    assert!(
        matches!(refused, ConnectError::Unacknowledged),
        "{refused:?}"
    );
    let manager = Manager::new(place.url.parse().unwrap(), NoTls);
    let pool = Pool::builder(manager).build().unwrap();
    let refused = on_runtime(PostgresStore::from_pool(pool).strict().connect()).unwrap_err();
    assert!(matches!(refused, ConnectError::StrictPool), "{refused:?}");
}
