//! The code that the child processes of the PostgreSQL tests run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::future::{join, join_all};
use keyward::policy::Policy;
use keyward::store::postgres::PostgresOptions;
use keyward::store::{CommitError, KeyStore, LoadRequest, PostgresStore, Revision, StoreErrorKind};
use keyward::{CommandError, Denial, KeyId, Keyward, ManualClock, Reason, Role};

use support::postgres::{on_runtime, open, runtime};
use support::process::{report, wait_for_parent};
use support::raw::next;
use support::*;

/// 5 active keys in each shared tenant, so few that the writers reach this cap.
pub const CAP: u32 = 5;

/// 1,000,000 active keys, a cap that no child reaches.
const NO_CAP: u32 = 1_000_000;

/// 4 writers in each process.
pub const TASKS: usize = 4;

/// 8 tenants for each writer alone. The writer commits to all of them concurrently.
pub const STREAMS: usize = 8;

/// 64 tenants that all writers share. `HOT` is one more shared tenant, in which a writer creates a key at
/// every step.
pub const TENANTS: usize = 64;
pub const HOT: &str = "hot";

pub fn run(part: &str) {
    // A panic in any thread must end this process. Otherwise the thread would be gone, and the parent would
    // wait for its reports forever.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panicked| {
        hook(panicked);
        std::process::exit(101);
    }));
    match part {
        "writes" => writes(),
        "numbers" => numbers(),
        "goes_on" => goes_on(),
        "verifies" => crate::postgres::spread::verifies(),
        other => panic!("unknown part {other}"),
    }
}

pub fn text(name: &str) -> String {
    std::env::var(name).unwrap()
}

pub fn number(name: &str) -> usize {
    text(name).parse().unwrap()
}

/// Returns the options for connecting to the schema that the parent created.
pub fn options() -> PostgresOptions {
    PostgresStore::options(text("CHILD_PATH"))
        .schema(text("CHILD_SCHEMA"))
        .max_connections(4.try_into().unwrap())
        .server_clock(false)
}

fn service(store: PostgresStore) -> Keyward {
    let clock = Arc::new(ManualClock::at(at(START)));
    node(store, &clock, Policy::new(capped(CAP)).unwrap())
}

/// Reports that this process is ready, waits for the parent's signal, and then runs all of its writers
/// concurrently.
fn at_once(writer: impl Fn(usize) + Sync) {
    report("ready");
    assert!(wait_for_parent());
    together(writer);
}

fn together(writer: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for task in 0..TASKS {
            let writer = &writer;
            scope.spawn(move || writer(task));
        }
    });
}

/// Creates keys in the shared tenants until their caps are reached, and revokes these keys. Concurrently,
/// each writer commits to tenants of its own.
fn writes() {
    let store = open(options()).unwrap();
    let keys = service(store.clone());
    let (me, passes, rounds) = (
        number("CHILD_NUMBER"),
        number("CHILD_PASSES"),
        number("CHILD_ROUNDS"),
    );
    at_once(|task| {
        let streams = (0..STREAMS).map(|stream| stream_of(&store, me, task, stream, rounds));
        let streams = join_all(streams);
        let churn = async {
            for _ in 0..passes {
                churn(&keys, &format!("key of {me}/{task}")).await;
            }
        };
        wait(join(streams, churn));
    });
}

async fn stream_of(store: &PostgresStore, me: usize, task: usize, stream: usize, rounds: usize) {
    let tenant = tenant(&format!("own-{me}-{task}-{stream}"));
    let mut at = Revision::ZERO;
    for _ in 0..rounds {
        let (key, commit) = next(&tenant, at);
        at = store.commit(commit).await.unwrap();
        report_change(at, "removed", key, tenant.as_str());
    }
}

fn report_change(revision: Revision, what: &str, key: KeyId, tenant: &str) {
    report(format_args!(
        "{} {what} {} {tenant}",
        revision.0,
        key.to_u128()
    ));
}

/// Creates one key in each shared tenant that is below its cap, and then revokes all of these keys.
async fn churn(keys: &Keyward, name: &str) {
    let mut mine = Vec::new();
    for number in 0..TENANTS {
        for tenant in [HOT, &format!("t{number}")] {
            let admin = actor(tenant, "alice", Role::ADMIN);
            match keys.create(&admin, reader(name)).await {
                Ok(made) => {
                    report_change(made.receipt.revision(), "created", made.id, tenant);
                    mine.push((admin, made.id));
                }
                Err(CommandError::Denied(Denial::CapReached { .. })) => {}
                Err(CommandError::Contended { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    for (admin, key) in mine {
        let receipt = loop {
            match keys.revoke(&admin, key, Reason::Lost).await {
                Ok(receipt) => break receipt,
                Err(CommandError::Contended { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        };
        report_change(receipt.revision(), "revoked", key, admin.tenant().as_str());
    }
}

/// Inserts rows into a table whose order is broken. A row gets its sequence number before its commit, so a
/// lower number can appear later.
fn numbers() {
    let (url, table, rounds) = (
        text("CHILD_PATH"),
        text("CHILD_SCHEMA"),
        number("CHILD_ROUNDS"),
    );
    at_once(|_| {
        let (url, table) = (url.clone(), table.clone());
        on_runtime(async move {
            let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
            let (mut client, connection) = connected.unwrap();
            tokio::spawn(connection);
            for _ in 0..rounds {
                let tx = client.transaction().await.unwrap();
                let sql = format!("INSERT INTO {table} DEFAULT VALUES RETURNING id");
                let drawn: i64 = tx.query_one(&sql, &[]).await.unwrap().get(0);
                tx.batch_execute("SELECT pg_sleep(random() * 0.002)")
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
                report(format_args!("{drawn}"));
            }
        });
    });
}

/// Commits and reports the answer to each commit, until the parent closes the pipe. The process continues
/// after a failed commit.
fn goes_on() {
    let me = number("CHILD_NUMBER");
    let short = Duration::from_millis(500);
    let options = options().request_timeout(short).connection_timeout(short);
    // Connecting may time out on a busy machine, so it is repeated.
    let store = loop {
        if let Ok(store) = open(options.clone()) {
            break store;
        }
    };
    let clock = Arc::new(ManualClock::at(at(START)));
    let keys = node(store.clone(), &clock, Policy::new(capped(NO_CAP)).unwrap());
    report("ready");
    assert!(wait_for_parent());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            wait_for_parent();
            over.store(true, Ordering::SeqCst);
        });
        let going = || !over.load(Ordering::SeqCst);
        together(|task| {
            let streams = (0..STREAMS).map(|stream| commits(&store, me, task, stream, &going));
            let both = join(join_all(streams), creations(&keys, me, task, &going));
            wait(both);
        });
    });
}

/// Waits 10 ms before the next attempt, so that a process does not use a whole processor while the server is
/// unavailable.
async fn pause() {
    let pause = async { tokio::time::sleep(Duration::from_millis(10)).await };
    runtime().spawn(pause).await.unwrap();
}

async fn commits(
    store: &PostgresStore,
    me: usize,
    task: usize,
    stream: usize,
    going: &impl Fn() -> bool,
) {
    let tenant = tenant(&format!("own-{me}-{task}-{stream}"));
    let mut at = Revision::ZERO;
    while going() {
        let (key, commit) = next(&tenant, at);
        let answer = |what| report(format_args!("{what} {me} {tenant} {}", key.to_u128()));
        match store.commit(commit).await {
            Ok(revision) => {
                answer("Done");
                at = revision;
                continue;
            }
            Err(CommitError::Store(error)) => match error.kind() {
                StoreErrorKind::Unavailable => answer("Unavailable"),
                StoreErrorKind::Indeterminate => answer("Indeterminate"),
                other => panic!("{other:?}"),
            },
            // An earlier commit of this writer was reported as `Indeterminate`, and has in fact succeeded.
            Err(CommitError::Conflict) => answer("Conflict"),
            Err(other) => panic!("{other:?}"),
        }
        at = loop {
            match store.load(&tenant, &LoadRequest::none()).await {
                Ok(view) => break view.revision,
                Err(_) if going() => pause().await,
                Err(_) => return,
            }
        };
    }
}

/// Creates keys one after another. Repeats each creation until its outcome is known, except the last one,
/// which the end of the run may interrupt.
async fn creations(keys: &Keyward, me: usize, task: usize, going: &impl Fn() -> bool) {
    let tenant = format!("made-{me}-{task}");
    let admin = actor(&tenant, "alice", Role::ADMIN);
    let mut number = 0;
    while going() {
        number += 1;
        let by = admin.with_command_id(command(&format!("create-{number}")));
        let (what, key) = loop {
            match keys.create(&by, reader("key")).await {
                Ok(made) => break ("Created", made.id),
                Err(CommandError::Denied(Denial::AlreadyCreated { id })) => break ("Found", id),
                Err(CommandError::Store(_) | CommandError::Contended { .. }) if going() => {
                    pause().await
                }
                Err(CommandError::Store(_) | CommandError::Contended { .. }) => {
                    report(format_args!("Open {me} {tenant} -"));
                    return;
                }
                Err(other) => panic!("{other:?}"),
            }
        };
        report(format_args!("{what} {me} {tenant} {key}"));
    }
}
