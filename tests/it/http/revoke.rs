//! Revoking a key while requests are in flight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use keyward::Reason;
use keyward::web::KeywardLayer;

use crate::http::server::{Server, answer, client};
use support::*;

const CLIENTS: usize = 4;
const ROUNDS: usize = 10;
/// The number of refusals after which a client stops: 5, so that a later acceptance would be noticed.
const REFUSED: usize = 5;

/// Returns the number of accepted requests, and the number of those sent after the revocation returned.
fn ask_until_refused(
    url: &str,
    key: &str,
    revoked: &AtomicBool,
    accepted_once: &mpsc::Sender<()>,
) -> (usize, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = client();
    let (mut accepted, mut late, mut refused) = (0, 0, 0);
    while refused < REFUSED {
        // Reads the flag before sending. If the flag is set, the request is sent after the revocation
        // returned.
        let after = revoked.load(Ordering::SeqCst);
        let got = runtime.block_on(answer(client.get(url).bearer_auth(key)));
        match got.status {
            200 => {
                accepted += 1;
                late += usize::from(after);
                if accepted == 1 {
                    accepted_once.send(()).unwrap();
                }
                assert!(late == 0, "accepted after the revocation had returned");
            }
            401 => refused += 1,
            other => panic!("{other}"),
        }
    }
    (accepted, late)
}

#[test]
fn no_request_sent_after_a_revocation_returned_is_accepted() {
    let world = TestService::new();
    let server = Server::with(KeywardLayer::new(world.keys.clone()));
    let url = server.url("/");
    for _ in 0..ROUNDS {
        let key = world.some_key();
        let revoked = AtomicBool::new(false);
        let (accepted_once, accepts) = mpsc::channel();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let accepted_once = accepted_once.clone();
                    let (url, key, revoked) = (&url, key.secret.expose(), &revoked);
                    scope.spawn(move || ask_until_refused(url, key, revoked, &accepted_once))
                })
                .collect();
            for _ in 0..CLIENTS {
                accepts.recv().unwrap();
            }
            wait(world.keys.revoke(&admin(), key.id, Reason::Compromised)).unwrap();
            revoked.store(true, Ordering::SeqCst);
            for client in clients {
                let (accepted, late) = client.join().unwrap();
                assert!(accepted > 0 && late == 0);
            }
        });
    }
}
