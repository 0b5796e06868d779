//! A proxy in front of a server's socket, which cuts connections, or swallows what comes over them,
//! after a given part of a conversation.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

const SOCKET: &str = ".s.PGSQL.5432";

/// Whose bytes are meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    Client,
    Server,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It is closed to both ends. Others are made as before.
    Cut,
    /// It is closed to both ends, and so is whatever connects after it.
    Down,
    /// Nothing comes through any more, either way, not even its end, and nothing new is answered.
    Silent,
}

/// How much of one side's part of a conversation comes through: whole messages, and bytes of the next.
pub type Point = (usize, usize);

/// When something happens to what one side says.
#[derive(Clone, Copy, Debug)]
enum When {
    At(Side, Point),
    /// Before this query of the client, which comes at once.
    Before(&'static str),
}

/// Messages of the protocol: a letter, four bytes of length that count themselves, the rest.
#[derive(Debug, Default)]
struct Messages {
    header: Vec<u8>,
    left: usize,
    /// What came so far.
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

/// The lengths of the messages that `bytes` are.
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
    /// What is to happen, when, and to which connection.
    plan: Option<(When, Fate, usize)>,
    /// How many connections were made.
    made: usize,
    came: Messages,
    /// What either side said since recording began.
    recorded: Option<(Vec<u8>, Vec<u8>)>,
    /// What happened, if it was to last.
    fate: Option<Fate>,
    /// How many of the connections, the first ones, are silent in any case.
    silent: usize,
    /// All connections that were made, both ends.
    ends: Vec<UnixStream>,
}

impl State {
    /// How much of it comes through, if that is not all.
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
                // A letter and its length stand before it, a zero after it.
                let query = [query.as_bytes(), b"\0"].concat();
                let found = said.windows(query.len()).position(|part| part == query);
                found.map(|at| at - 5)
            }
            _ => None,
        }
    }
}

/// A proxy. Connections last no longer than it does.
#[derive(Debug)]
pub struct Proxy {
    folder: TempDir,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// In front of a server whose socket is in `folder`.
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

    /// Lets what `side` says on the newest connection come through up to `point`, counted from now on; at
    /// the byte after that there is `fate`.
    pub fn arm(&self, side: Side, point: Point, fate: Fate) {
        self.plan(When::At(side, point), fate);
    }

    /// Lets everything on the newest connection come through up to this query.
    pub fn arm_before(&self, query: &'static str, fate: Fate) {
        self.plan(When::Before(query), fate);
    }

    fn plan(&self, when: When, fate: Fate) {
        let mut state = self.state.lock().unwrap();
        state.came = Messages::default();
        state.plan = Some((when, fate, state.made));
    }

    /// Whether what was planned has happened.
    pub fn is_over(&self) -> bool {
        self.state.lock().unwrap().plan.is_none()
    }

    /// Makes connections as before; those that were silent are closed.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.plan = None;
        state.fate = None;
        for end in state.ends.drain(..) {
            // It may be closed already.
            drop(end.shutdown(Shutdown::Both));
        }
    }

    /// Has everything swallowed that comes over the connections there are. New ones are made as before.
    pub fn silence(&self) {
        let mut state = self.state.lock().unwrap();
        state.silent = state.made;
    }

    /// Records what `conversation` makes both sides say on the newest connection.
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

/// Passes on what one side says, until there is no more.
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
        // With the lock: what happens next to this connection happens after this.
        let written = to.write_all(&said[..through]);
        let over = read == 0 || written.is_err() || fate.is_some_and(|fate| fate != Fate::Silent);
        drop(held);
        if over {
            // What came through before still arrives.
            drop(to.shutdown(Shutdown::Both));
            drop(from.shutdown(Shutdown::Both));
            return;
        }
    }
}

#[test]
fn messages_are_told_apart() {
    let messages = [&b"Q\0\0\0\x08abc\0"[..], b"S\0\0\0\x04", b"D\0\0\0\x05x"];
    assert_eq!(lengths(&messages.concat()), [9, 5, 6]);
    assert_eq!(lengths(b"Q\0\0\0\x08ab"), [0; 0]);
}
