//! Round trips: the store sends the requests of a call together, and does not wait for one answer before the
//! next request.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use keyward::key::Digest;
use keyward::store::{KeyStore, LoadRequest, Locator, NodeRegistry, PostgresStore, Revision};
use tempfile::TempDir;

use support::postgres::{Server, TestSchema, open};
use support::raw::{ALL, beginning, next};
use support::*;

/// A proxy between a store and its server. Within a transaction, it withholds the server's answers until the
/// store has sent a given number of requests.
struct Between {
    folder: TempDir,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of requests that the store must send in a transaction before the proxy forwards an answer.
    at_once: usize,
    /// The number of requests that are still missing on each connection, by the number of the connection.
    missing: HashMap<usize, usize>,
    /// True if the call that is measured has returned.
    over: bool,
}

impl Gate {
    fn asked(&self, connection: usize, begins: bool) {
        let mut state = self.state.lock().unwrap();
        if begins {
            let at_once = state.at_once;
            state.missing.insert(connection, at_once);
        }
        if let Some(missing) = state.missing.get_mut(&connection) {
            *missing = missing.saturating_sub(1);
        }
        self.moved.notify_all();
    }

    fn until(&self, reached: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = self.state.lock().unwrap();
        self.moved
            .wait_while(state, |state| !reached(state))
            .unwrap()
    }

    fn until_answered(&self, connection: usize) {
        drop(self.until(|state| state.missing.get(&connection).is_none_or(|left| *left == 0)));
    }

    fn set(&self, at_once: usize, over: bool) {
        let missing = HashMap::new();
        *self.state.lock().unwrap() = State {
            at_once,
            missing,
            over,
        };
        self.moved.notify_all();
    }

    /// Returns whether `call` sends exactly `expected` requests and then waits for an answer. Panics if the
    /// call fails.
    fn sends_at_once<E: std::fmt::Debug + Send>(
        &self,
        expected: usize,
        call: impl FnOnce() -> Result<(), E> + Send,
    ) -> bool {
        self.set(expected + 1, false);
        std::thread::scope(|scope| {
            let call = scope.spawn(|| {
                let done = call();
                self.set(0, true);
                done
            });
            let one_more = |state: &State| state.missing.values().any(|left| *left == 1);
            let state = self.until(|state| state.over || one_more(state));
            let waits = one_more(&state);
            drop(state);
            self.set(0, false);
            call.join().unwrap().unwrap();
            waits
        })
    }
}

/// Forwards the messages of the store to the server, one at a time, and counts the requests.
fn to_server(connection: usize, mut from: UnixStream, mut to: UnixStream, gate: &Gate) {
    // Unlike later messages, the first message of a connection has no type byte.
    let mut begun = false;
    loop {
        let mut head = [0; 5];
        let head = &mut head[usize::from(!begun)..];
        if from.read_exact(head).is_err() {
            break;
        }
        let (kind, length) = head.split_at(head.len() - 4);
        let length = u32::from_be_bytes(length.try_into().unwrap());
        let mut body = vec![0; length as usize - 4];
        from.read_exact(&mut body).unwrap();
        // A `Q` message is a simple query. An `S` (Sync) message is the end of an extended query.
        if matches!(kind, b"Q" | b"S") {
            gate.asked(connection, body.starts_with(b"START TRANSACTION"));
        }
        begun = true;
        let message = [&*head, &body].concat();
        if to.write_all(&message).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
}

fn to_node(connection: usize, mut from: UnixStream, mut to: UnixStream, gate: &Gate) {
    let mut some = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut some) {
        gate.until_answered(connection);
        if to.write_all(&some[..read]).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
}

impl Between {
    fn new(server: PathBuf) -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let gate = Arc::new(Gate::default());
        let gates = gate.clone();
        std::thread::spawn(move || {
            for (number, node) in listener.incoming().enumerate() {
                let (node, server) = (node.unwrap(), UnixStream::connect(&server).unwrap());
                let (back, forth) = (server.try_clone().unwrap(), node.try_clone().unwrap());
                let (there, gate) = (gates.clone(), gates.clone());
                std::thread::spawn(move || to_server(number, node, server, &there));
                std::thread::spawn(move || to_node(number, back, forth, &gate));
            }
        });
        Self { folder, gate }
    }

    fn url(&self) -> String {
        let folder = self.folder.path().display();
        format!("host={folder} user=postgres dbname=postgres")
    }
}

#[test]
fn a_read_takes_one_round_trip() {
    let server = Server::start("fsync = off");
    let between = Between::new(server.file(".s.PGSQL.5432"));
    let place = TestSchema::at(server.url());
    let options = PostgresStore::options(between.url()).schema(&place.schema);
    let store = open(options.max_connections(1.try_into().unwrap())).unwrap();
    let (key, commit) = next(&tenant("acme"), Revision::ZERO);
    let mut at = wait(store.commit(commit)).unwrap();
    let start = beginning(&store);
    let everything = LoadRequest {
        keys: vec![key],
        live: [("secret".parse().unwrap(), support::at(START))].into(),
        legacy: true,
        owners: Vec::new(),
        commands: vec![command("some")],
    };
    let imported = Locator::Imported(Digest::sha256("imported"));
    let loading = |select| wait(store.load(&tenant("acme"), &select)).map(drop);
    // The expected numbers include the two requests with which each transaction begins and reads the store's
    // position.
    let sent = |expected, call: &mut (dyn FnMut() -> Result<(), String> + Send)| {
        // The first call also prepares its statements, which takes more requests, so only the second call is
        // measured.
        call().unwrap();
        assert!(
            between.gate.sends_at_once(expected, call),
            "{expected} requests"
        );
    };
    let plainly = |error: &dyn std::fmt::Debug| format!("{error:?}");
    let select = LoadRequest::none();
    sent(5, &mut || {
        loading(select.clone()).map_err(|error| plainly(&error))
    });
    sent(9, &mut || {
        loading(everything.clone()).map_err(|error| plainly(&error))
    });
    for locator in [Locator::Id(key), imported] {
        sent(4, &mut || {
            let found = wait(store.find(&locator)).map(drop);
            found.map_err(|error| plainly(&error))
        });
    }
    for cursor in [start, wait(store.scan(None, ALL)).unwrap().head] {
        sent(5, &mut || {
            let found = wait(store.changes(cursor, ALL)).map(drop);
            found.map_err(|error| plainly(&error))
        });
    }
    sent(3, &mut || {
        let moved = wait(store.wait_past(start));
        moved.map_err(|error| plainly(&error))
    });
    sent(3, &mut || {
        let nodes = wait(store.nodes()).map(drop);
        nodes.map_err(|error| plainly(&error))
    });
    // A commit waits after its first four requests: the settings, two locks, and the version of the tables.
    sent(4, &mut || {
        let commit = next(&tenant("acme"), at).1;
        at = wait(store.commit(commit)).map_err(|error| plainly(&error))?;
        Ok(())
    });
}
