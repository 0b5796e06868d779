//! A proxy between a store and the socket of its server. A test can make it cut or silence a connection after
//! a certain byte.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

const SOCKET: &str = ".s.PGSQL.5432";

/// The side of a connection whose bytes are counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    Client,
    Server,
}

/// The disturbance that the proxy causes on a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// Closes the connection on both sides. Connections that are opened later work.
    Cut,
    /// Closes the connection on both sides, and every connection that is opened later.
    Down,
    /// Forwards nothing any more in either direction, not even that one side has closed the connection. Later
    /// connections get no answer either.
    Silent,
}

/// A position in the bytes of one side: the number of complete messages, and the number of bytes in the next
/// message.
pub type Point = (usize, usize);

/// The moment at which the proxy causes the disturbance.
#[derive(Clone, Copy, Debug)]
enum When {
    At(Side, Point),
    /// Just before the client's query with this text, which must arrive in one read.
    Before(&'static str),
}

/// Splits the bytes of one side into messages of the PostgreSQL protocol. A message consists of a type byte,
/// four bytes with its length, and its body. The length includes its own four bytes.
#[derive(Debug, Default)]
struct Messages {
    header: Vec<u8>,
    left: usize,
    /// The position after the bytes that have been taken.
    at: Point,
}

impl Messages {
    fn take(&mut self, byte: u8) {
        self.at.1 += 1;
        if self.left > 0 {
            self.left -= 1;
        } else {
            self.header.push(byte);
            if self.header.len() < 5 {
                return;
            }
            let length: [u8; 4] = self.header.split_off(1).try_into().unwrap();
            self.left = u32::from_be_bytes(length) as usize - 4;
            self.header.clear();
        }
        if self.left == 0 {
            self.at = (self.at.0 + 1, 0);
        }
    }
}

/// Returns the length of each complete message in `bytes`.
pub fn lengths(bytes: &[u8]) -> Vec<usize> {
    let mut messages = Messages::default();
    let (mut lengths, mut length) = (Vec::new(), 0);
    for byte in bytes {
        messages.take(*byte);
        length += 1;
        if messages.at.1 == 0 {
            lengths.push(length);
            length = 0;
        }
    }
    lengths
}

#[derive(Debug, Default)]
struct State {
    /// The planned disturbance: when it begins, what it does, and the number of the connection that it
    /// affects.
    plan: Option<(When, Fate, usize)>,
    /// The number of connections that the proxy has accepted so far, which is also the number of the newest
    /// one.
    made: usize,
    came: Messages,
    /// The bytes of the client and those of the server, since `record` began. `None` outside of `record`.
    recorded: Option<(Vec<u8>, Vec<u8>)>,
    /// The disturbance that has begun, if it also affects later connections.
    fate: Option<Fate>,
    /// The number of the last connection that `silence` has silenced. All earlier connections are silent too.
    silent: usize,
    /// Both sockets of every connection, so that `heal` can close them.
    ends: Vec<UnixStream>,
}

impl State {
    /// Returns how many bytes of `said` the proxy still forwards before the disturbance begins. `None` if the
    /// disturbance does not begin within these bytes.
    fn comes_through(&mut self, who: Side, said: &[u8], when: When) -> Option<usize> {
        match when {
            When::At(side, point) if side == who => said.iter().position(|byte| {
                let over = self.came.at >= point;
                if !over {
                    self.came.take(*byte);
                }
                over
            }),
            When::Before(query) if who == Side::Client => {
                // A type byte and four length bytes precede the text of a query, and a zero byte follows it.
                let query = [query.as_bytes(), b"\0"].concat();
                let found = said.windows(query.len()).position(|part| part == query);
                found.map(|at| at - 5)
            }
            _ => None,
        }
    }
}

/// A running proxy, which closes all of its connections on drop.
#[derive(Debug)]
pub struct Proxy {
    folder: TempDir,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts a proxy for the server whose socket is in the folder `server`.
    pub fn before(server: &Path) -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (server, shared) = (server.join(SOCKET), Arc::downgrade(&state));
        thread::spawn(move || {
            for client in listener.incoming() {
                let Some(state) = shared.upgrade() else {
                    return;
                };
                connect(&state, client.unwrap(), &server);
            }
        });
        Self { folder, state }
    }

    pub fn url(&self) -> String {
        format!(
            "host={} user=postgres dbname=postgres",
            self.folder.path().display()
        )
    }

    /// Disturbs the newest connection. The proxy forwards the bytes of `side` up to `point`, counted from
    /// this call, and the next byte triggers `fate`.
    pub fn arm(&self, side: Side, point: Point, fate: Fate) {
        self.plan(When::At(side, point), fate);
    }

    /// Disturbs the newest connection. The proxy forwards everything until the client sends `query`, which
    /// triggers `fate`.
    pub fn arm_before(&self, query: &'static str, fate: Fate) {
        self.plan(When::Before(query), fate);
    }

    fn plan(&self, when: When, fate: Fate) {
        let mut state = self.state.lock().unwrap();
        state.came = Messages::default();
        state.plan = Some((when, fate, state.made));
    }

    /// Returns whether the planned disturbance has begun.
    pub fn is_over(&self) -> bool {
        self.state.lock().unwrap().plan.is_none()
    }

    /// Ends every disturbance: cancels the plan, closes all connections, and lets new connections work.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.plan = None;
        state.fate = None;
        for end in state.ends.drain(..) {
            // The socket may be closed already, so an error is ignored.
            drop(end.shutdown(Shutdown::Both));
        }
    }

    /// Silences all connections that exist now. Connections that are opened later work.
    pub fn silence(&self) {
        let mut state = self.state.lock().unwrap();
        state.silent = state.made;
    }

    /// Calls `conversation`, and returns the bytes that the client and the server sent on the newest
    /// connection during the call.
    pub fn record<T>(&self, conversation: impl FnOnce() -> T) -> (Vec<u8>, Vec<u8>) {
        self.state.lock().unwrap().recorded = Some(Default::default());
        conversation();
        self.state.lock().unwrap().recorded.take().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.heal();
    }
}

fn connect(state: &Arc<Mutex<State>>, client: UnixStream, server: &PathBuf) {
    let mut held = state.lock().unwrap();
    match held.fate {
        None | Some(Fate::Cut) => {}
        Some(Fate::Down) => return,
        Some(Fate::Silent) => {
            held.ends.push(client);
            return;
        }
    }
    let Ok(server) = UnixStream::connect(server) else {
        return;
    };
    held.made += 1;
    let number = held.made;
    held.ends.push(client.try_clone().unwrap());
    held.ends.push(server.try_clone().unwrap());
    drop(held);
    let ways = [
        (Side::Client, client.try_clone(), server.try_clone()),
        (Side::Server, Ok(server), Ok(client)),
    ];
    for (side, from, to) in ways {
        let (from, to, state) = (from.unwrap(), to.unwrap(), state.clone());
        thread::spawn(move || pass(&state, (number, side), from, to));
    }
}

/// Forwards the bytes of one side of a connection until the connection ends.
fn pass(
    state: &Mutex<State>,
    (number, side): (usize, Side),
    mut from: UnixStream,
    mut to: UnixStream,
) {
    let mut buffer = [0; 8192];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        let mut held = state.lock().unwrap();
        if held.fate == Some(Fate::Silent) || number <= held.silent {
            if read == 0 {
                return;
            }
            continue;
        }
        let said = &buffer[..read];
        let newest = number == held.made;
        if let Some((client, server)) = held.recorded.as_mut().filter(|_| newest) {
            match side {
                Side::Client => client.extend(said),
                Side::Server => server.extend(said),
            }
        }
        let mut fate = None;
        let mut through = read;
        if let Some((when, planned, _)) = held.plan.filter(|plan| plan.2 == number)
            && let Some(before) = held.comes_through(side, said, when)
        {
            through = before;
            fate = Some(planned);
            held.plan = None;
            held.fate = fate.filter(|fate| *fate != Fate::Cut);
        }
        // The lock is held during this write. The write thus happens-before every event on this connection
        // that another thread handles later.
        let written = to.write_all(&said[..through]);
        let over = read == 0 || written.is_err() || fate.is_some_and(|fate| fate != Fate::Silent);
        drop(held);
        if over {
            // Bytes that were written before `shutdown` still reach the other side.
            drop(to.shutdown(Shutdown::Both));
            drop(from.shutdown(Shutdown::Both));
            return;
        }
    }
}

#[test]
fn messages_are_split_correctly() {
    let messages = [&b"Q\0\0\0\x08abc\0"[..], b"S\0\0\0\x04", b"D\0\0\0\x05x"];
    assert_eq!(lengths(&messages.concat()), [9, 5, 6]);
    assert_eq!(lengths(b"Q\0\0\0\x08ab"), [0; 0]);
}
