//! Concurrent loads share one transaction, but each caller gets the answer to its own load.

use std::time::Duration;

use futures_util::future::{join_all, poll_immediate};
use keyward::store::{
    KeyStore, LoadRequest, PostgresStore, StoreError, StoreErrorKind, TenantView,
};
use keyward::{KeyId, Role, TenantId};

use crate::damage::service;
use support::postgres::{Server, TestSchema, open};
use support::*;

const TENANTS: usize = 20;

/// Creates 20 tenants with keys, and returns one load for each tenant. There are five kinds of loads.
fn tenants(place: &TestSchema) -> Vec<(TenantId, LoadRequest)> {
    let keys = service(place);
    let mut made: Vec<KeyId> = Vec::new();
    let mut asked = Vec::new();
    for number in 0..TENANTS {
        let name = format!("t{number}");
        let alice = actor(&name, "alice", Role::ADMIN);
        for key in 0..=number % 3 {
            let id = command(&format!("command {key}").replace(' ', "-"));
            let created = wait(keys.create(&alice.with_command_id(id), reader("key")));
            made.push(created.unwrap().id);
        }
        let select = match number % 5 {
            0 => LoadRequest::none(),
            // Requests a key of the first tenant too, which a load of this tenant must not return.
            1 => LoadRequest {
                keys: vec![made[0], made[made.len() - 1]],
                ..LoadRequest::none()
            },
            2 => LoadRequest {
                live: [("secret".parse().unwrap(), at(START))].into(),
                ..LoadRequest::none()
            },
            3 => LoadRequest {
                legacy: true,
                owners: vec![who("alice")],
                ..LoadRequest::none()
            },
            _ => LoadRequest {
                commands: vec![command("command-0")],
                ..LoadRequest::none()
            },
        };
        asked.push((tenant(&name), select));
    }
    asked
}

type Answer = Result<TenantView, StoreError>;

/// Starts all loads while a table is locked, so that they wait together. Then releases the lock, and returns
/// all answers.
fn at_once(
    place: &TestSchema,
    store: &PostgresStore,
    asked: &[(TenantId, LoadRequest)],
) -> Vec<Answer> {
    let lock = place.hold("LOCK TABLE $s.tenants IN ACCESS EXCLUSIVE MODE");
    let mut all = join_all((asked.iter()).map(|(tenant, select)| store.load(tenant, select)));
    assert!(
        wait(poll_immediate(&mut all)).is_none(),
        "all loads wait for the lock"
    );
    drop(lock);
    wait(all)
}

fn one_by_one(store: &PostgresStore, asked: &[(TenantId, LoadRequest)]) -> Vec<TenantView> {
    let one =
        |(tenant, select): &(TenantId, LoadRequest)| wait(store.load(tenant, select)).unwrap();
    asked.iter().map(one).collect()
}

/// Asserts that the load with the number `failing` fails with `kind`, and that all other loads return the
/// expected views.
fn fails_alone(
    answers: Vec<Answer>,
    expected: &[TenantView],
    (failing, kind): (usize, StoreErrorKind),
) {
    for (number, (answer, expected)) in answers.into_iter().zip(expected).enumerate() {
        match number == failing {
            true => assert_eq!(answer.unwrap_err().kind(), kind),
            false => assert_eq!(&answer.unwrap(), expected, "{number}"),
        }
    }
}

#[test]
fn concurrent_loads_share_transactions_and_each_gets_its_own_answer() {
    let server = Server::start("fsync = off\nlog_statement = 'all'");
    let place = TestSchema::at(server.url());
    let asked = tenants(&place);
    let store = place.connect();
    let expected = one_by_one(&store, &asked);
    let total = |part: fn(&TenantView) -> usize| expected.iter().map(part).sum::<usize>();
    assert!(total(|view| view.records.len()) > 8 && total(|view| view.applied.len()) >= 4);
    for ((tenant, _), view) in asked.iter().zip(&expected) {
        assert!(view.records.iter().all(|record| record.tenant == *tenant));
    }
    let from = server.log().len();
    let answers = at_once(&place, &store, &asked);
    let log = server.log();
    let begun = log[from..].matches("START TRANSACTION").count();
    assert!((1..=4).contains(&begun), "{begun} transactions");
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, expected);
}

#[test]
fn concurrent_loads_of_one_tenant_each_get_their_own_answer() {
    let place = TestSchema::new();
    let asked = tenants(&place);
    let asked: Vec<_> = (asked.into_iter())
        .map(|(_, select)| (tenant("t2"), select))
        .collect();
    let store = place.connect();
    let expected = one_by_one(&store, &asked);
    let answers = at_once(&place, &store, &asked);
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, expected);
}

#[test]
fn a_tenant_that_cannot_be_loaded_fails_alone() {
    let place = TestSchema::new();
    let asked = tenants(&place);
    let store = place.connect();
    let expected = one_by_one(&store, &asked);
    // Makes the statement fail in the server whenever it reads a row of the tenant `t7`.
    place.run(
        "ALTER TABLE $s.rows RENAME TO read_before; CREATE VIEW $s.rows AS \
         SELECT place, kind, tenant, name, id, class, ends, legacy, fingerprint, \
         CASE WHEN tenant = 't7' THEN convert_to((1 / (length(tenant) - 2))::text, 'UTF8') \
         ELSE body END AS body, seal FROM $s.read_before",
    );
    let answers = at_once(&place, &store, &asked);
    fails_alone(answers, &expected, (7, StoreErrorKind::Unavailable));
    place.run("DROP VIEW $s.rows; ALTER TABLE $s.read_before RENAME TO rows");
    // Damages a row of the tenant `t8`. The server returns it normally, and only the store detects the
    // damage.
    place.run("UPDATE $s.tenants SET seal = seal + 1 WHERE tenant = 't8'");
    let answers = at_once(&place, &store, &asked);
    fails_alone(answers, &expected, (8, StoreErrorKind::Corrupt));
}

#[test]
fn a_load_accepts_the_longest_possible_timeout() {
    let place = TestSchema::new();
    let store = open(place.options().request_timeout(Duration::MAX)).unwrap();
    let view = wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap();
    let nothing = TenantView {
        epoch: view.epoch,
        ..TenantView::default()
    };
    assert_eq!(view, nothing);
}

#[test]
fn a_load_fails_immediately_once_the_runtime_is_gone() {
    let place = TestSchema::new();
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
    let store = runtime.block_on(place.options().connect()).unwrap();
    drop(runtime);
    for _ in 0..3 {
        let (acme, nothing) = (tenant("acme"), LoadRequest::none());
        let load = store.load(&acme, &nothing);
        let answer =
            wait(poll_immediate(load)).expect("a load without a runtime is ready immediately");
        assert_eq!(answer.unwrap_err().kind(), StoreErrorKind::Unavailable);
    }
}
