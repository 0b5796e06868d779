//! A failover to an asynchronous standby that lost revocations, under a running node, and its recovery with the
//! commands of `docs/operating-postgresql.md`.

use std::sync::Arc;

use keyward::clocks::SystemClock;
use keyward::command::Created;
use keyward::store::PostgresStore;
use keyward::{
    BuildError, Clock, CommandError, Keyward, KeywardBuilder, ManualClock, PepperFile, Reason,
    VerifyError, WithSources,
};

use support::captured::Captured;
use support::postgres::{Server, TestSchema, open};
use support::*;

use crate::page::{PageReader, page, section, steps};

/// A primary and its asynchronous standby, and the operator of a service that uses them.
struct Cluster {
    primary: Server,
    standby: Server,
    operator: PageReader,
    clock: Arc<ManualClock>,
}

impl Cluster {
    fn new() -> Self {
        let primary = Server::start("fsync = off");
        let standby = Server::standby_of(&primary);
        let operator = PageReader::new("first_service");
        // `keyctl` uses the clock of the system. No key expires and no report ages while the test runs.
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let both = primary.url_or(&standby);
        operator.run(&format!("export KEYWARD_STORE='{both}'; umask 077"));
        operator.run("keyctl --pepper-file pepper init --tenant acme");
        Self {
            primary,
            standby,
            operator,
            clock,
        }
    }

    fn at(&self, url: &str) -> TestSchema {
        TestSchema {
            url: url.to_owned(),
            schema: "keyward".to_owned(),
        }
    }

    fn store(&self, url: &str) -> PostgresStore {
        open(self.at(url).options()).unwrap()
    }

    /// Builds a node that reports its position.
    fn node(&self, url: &str) -> Result<Keyward, BuildError> {
        wait(self.builder(url).registry(self.store(url)).build())
    }

    fn builder(&self, url: &str) -> KeywardBuilder {
        let peppers = PepperFile::open(self.operator.file("pepper")).unwrap();
        Keyward::builder(self.store(url), peppers.ring()).clock(self.clock.clone())
    }

    /// Ends the replication, so that the standby lacks every later commit.
    fn cut(&self, after: &Created) {
        let standby = self.at(&self.standby.url());
        let reached = after.receipt.revision().to_string();
        standby.until("SELECT revision::text FROM $s.head", &reached);
        standby.run("ALTER SYSTEM SET primary_conninfo = ''");
        standby.run("SELECT pg_reload_conf()");
        let primary = self.at(&self.primary.url());
        primary.until("SELECT count(*)::text FROM pg_stat_replication", "0");
    }

    fn fail_over(&self) {
        self.primary.kill();
        self.at(&self.standby.url()).run("SELECT pg_promote()");
    }
}

fn create(keys: &Keyward, name: &str) -> Created {
    wait(keys.create(&admin(), reader(name))).unwrap()
}

fn verify(keys: &Keyward, key: &Created) -> Result<(), VerifyError> {
    keys.verify(key.secret.expose(), &reading()).map(drop)
}

/// Calls `sync` until the error is no longer that of a lost connection.
fn refused_sync(keys: &Keyward) -> String {
    let errors = (0..20).map(|_| WithSources(&wait(keys.sync()).unwrap_err()).to_string());
    let mut errors = errors.skip_while(|error| error.contains("connection"));
    errors.next().expect("the promoted server answers")
}

#[test]
fn revocations_that_an_asynchronous_failover_lost_are_recovered_as_the_page_states() {
    let mut cluster = Cluster::new();
    let both = cluster.primary.url_or(&cluster.standby);
    let keys = cluster.node(&both).unwrap();
    let [revoked, kept] = ["revoked", "kept"].map(|name| create(&keys, name));
    let export = "keyctl --pepper-file pepper --json audit --all > trail.jsonl";
    assert!(page("operating-postgresql.md").contains(export));
    cluster.operator.run(export);
    cluster.cut(&kept);
    wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    wait(keys.sync()).unwrap();
    verify(&keys, &kept).unwrap();
    cluster.fail_over();

    let (log, subscriber) = Captured::start();
    let error = refused_sync(&keys);
    assert!(
        error.contains("went back in time") && error.contains("keyctl recover"),
        "{error}"
    );
    let errors = log.lines("it lacks a commit");
    assert!(
        errors.len() == 1 && errors[0].contains("ERROR"),
        "{errors:?}"
    );
    assert!(errors[0].contains("keyctl start-new-epoch"), "{errors:?}");
    drop(subscriber);
    assert!(keys.freshness().diverged.is_some());
    let refuses_everything = || {
        for key in [&revoked, &kept] {
            let refused = verify(&keys, key).unwrap_err();
            assert!(matches!(refused, VerifyError::Stale { .. }), "{refused:?}");
            let presented = key.secret.expose();
            let refused = wait(keys.verify_fresh(presented, &reading())).unwrap_err();
            assert_eq!(refused, VerifyError::StoreUnavailable);
        }
        let refused = wait(keys.create(&admin(), reader("new"))).unwrap_err();
        assert!(matches!(refused, CommandError::Store(_)), "{refused:?}");
    };
    refuses_everything();
    // A node that starts now compares the promoted server with the report of the node that runs.
    let error = cluster.node(&both).unwrap_err();
    let text = WithSources(&error).to_string();
    assert!(text.contains("went back in time"), "{text}");

    // New commits on the promoted server do not end the refusal.
    let careless = wait(cluster.builder(&both).build()).unwrap();
    (0..3).for_each(|_| drop(create(&careless, "filler")));
    assert!(refused_sync(&keys).contains("went back in time"));
    refuses_everything();

    for step in steps(section(&page("operating-postgresql.md"), "Failover")) {
        cluster.operator.follow(&step);
    }
    let started = cluster.node(&both).unwrap();
    wait(keys.sync()).unwrap();
    for (keys, key) in [(&keys, &revoked), (&keys, &kept), (&started, &revoked)] {
        let refused = verify(keys, key).unwrap_err();
        assert!(
            matches!(refused, VerifyError::Disabled { .. }),
            "{refused:?}"
        );
    }
    let enable = format!("keyctl --pepper-file pepper enable {}", kept.id);
    cluster.operator.run(&enable);
    for keys in [&keys, &started] {
        wait(keys.sync()).unwrap();
        verify(keys, &kept).unwrap();
        assert!(verify(keys, &revoked).is_err());
        create(keys, "after the recovery");
    }
}

#[test]
fn the_former_primary_repeats_the_revocations_that_an_asynchronous_failover_lost() {
    let cluster = Cluster::new();
    let [former, promoted] = [&cluster.primary, &cluster.standby].map(Server::url);
    let keys = cluster.node(&former).unwrap();
    let [revoked, kept] = ["revoked", "kept"].map(|name| create(&keys, name));
    cluster.cut(&kept);
    wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    drop(keys);
    cluster.fail_over();
    cluster.operator.run(&format!(
        "export KEYWARD_STORE='{promoted}'; keyctl start-new-epoch --yes"
    ));
    cluster.primary.resume();
    let printed = cluster.operator.run(&format!(
        "keyctl --pepper-file pepper recover --replay-from '{former}'"
    ));
    assert!(
        printed.contains("recovered: 0 keys disabled, 1 revoked"),
        "{printed}"
    );
    let keys = cluster.node(&promoted).unwrap();
    verify(&keys, &kept).unwrap();
    let refused = verify(&keys, &revoked).unwrap_err();
    assert!(
        matches!(refused, VerifyError::Revoked { .. }),
        "{refused:?}"
    );
}
