//! A recorder between clients and a PostgreSQL server: the result columns of every prepared statement. A client
//! reads at most two messages of the server at once, as over a slow network.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tempfile::TempDir;

const SOCKET: &str = ".s.PGSQL.5432";

/// The result columns of a statement: the body of the server's description, or `None` without columns.
type Shape = Option<Vec<u8>>;

/// The shapes of each statement: its text, and the types of its parameters.
type Shapes = BTreeMap<Vec<u8>, BTreeSet<Shape>>;

/// A running recorder.
#[derive(Debug)]
pub struct WireRecorder {
    folder: TempDir,
    shapes: Arc<Mutex<Shapes>>,
}

impl WireRecorder {
    /// Starts a recorder for the server with a socket in the folder `server`.
    pub fn before(server: &Path) -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let shapes = Arc::new(Mutex::new(Shapes::new()));
        let (server, shared) = (server.join(SOCKET), shapes.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                connect(
                    client.unwrap(),
                    UnixStream::connect(&server).unwrap(),
                    &shared,
                );
            }
        });
        Self { folder, shapes }
    }

    /// Returns the URL of the database behind the recorder.
    pub fn url(&self) -> String {
        let host = self.folder.path().display();
        format!("host={host} user=postgres dbname=postgres")
    }

    /// Returns the text of every prepared statement, with the number of its shapes.
    pub fn shapes(&self) -> BTreeMap<String, usize> {
        let shapes = self.shapes.lock().unwrap();
        let texts = shapes.iter().map(|(parse, shapes)| {
            let text = parse.split(|byte| *byte == 0).next().unwrap();
            (String::from_utf8_lossy(text).into_owned(), shapes.len())
        });
        texts.collect()
    }
}

/// The statements of one connection.
#[derive(Debug, Default)]
struct Prepared {
    by_name: HashMap<Vec<u8>, Vec<u8>>,
    /// The statements whose description the server has not sent yet.
    asked: VecDeque<Vec<u8>>,
}

fn connect(client: UnixStream, server: UnixStream, shapes: &Arc<Mutex<Shapes>>) {
    let prepared = Arc::new(Mutex::new(Prepared::default()));
    // The smallest buffer that there is. It is writable while it has no more than one small message.
    set_socket_send_buffer_size(&client, 0).unwrap();
    let (to_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let asking = prepared.clone();
    thread::spawn(move || {
        // The first message of a client has no type.
        pass(client, to_server, 0, |kind, body| {
            asking.lock().unwrap().ask(kind, body)
        });
    });
    let shapes = shapes.clone();
    thread::spawn(move || {
        // The description of the parameters precedes the one of the columns.
        let mut described = false;
        pass(server, to_client, 1, |kind, body| {
            let shape = match kind {
                b'T' => Some(body.to_vec()),
                _ => None,
            };
            if described && matches!(kind, b'T' | b'n') {
                let statement = prepared.lock().unwrap().asked.pop_front().unwrap();
                let mut shapes = shapes.lock().unwrap();
                shapes.entry(statement).or_default().insert(shape);
            }
            described = kind == b't';
        });
    });
}

impl Prepared {
    fn ask(&mut self, kind: u8, body: &[u8]) {
        let rest = |body: &[u8]| {
            let end = body.iter().position(|byte| *byte == 0).unwrap();
            (body[..end].to_vec(), body[end + 1..].to_vec())
        };
        match (kind, body) {
            (b'P', body) => {
                let (name, statement) = rest(body);
                self.by_name.insert(name, statement);
            }
            (b'D', [b'S', name @ ..]) => {
                let (name, _) = rest(name);
                self.asked.push_back(self.by_name[&name].clone());
            }
            _ => {}
        }
    }
}

/// Passes messages on until one side closes the connection. `look` sees each message before the receiver does.
/// The first message has a type of `first` bytes, every other one a type of one byte.
fn pass(mut from: UnixStream, mut to: UnixStream, first: usize, mut look: impl FnMut(u8, &[u8])) {
    let mut typed = first;
    while let Ok(message) = read(&mut from, typed) {
        look(*message.first().unwrap(), &message[typed + 4..]);
        poll(&mut [PollFd::new(&to, PollFlags::OUT)], None).unwrap();
        if to.write_all(&message).is_err() {
            break;
        }
        typed = 1;
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn read(from: &mut UnixStream, typed: usize) -> Result<Vec<u8>, ErrorKind> {
    let mut message = vec![0; typed + 4];
    from.read_exact(&mut message)
        .map_err(|error| error.kind())?;
    let length: [u8; 4] = message[typed..].try_into().unwrap();
    message.resize(typed + u32::from_be_bytes(length) as usize, 0);
    from.read_exact(&mut message[typed + 4..])
        .map_err(|error| error.kind())?;
    Ok(message)
}
