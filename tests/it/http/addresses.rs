//! The client's address, for keys that are restricted to certain addresses.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use keyward::store::MemoryStore;
use keyward::usage::{Day, UseOutcome};
use keyward::web::{KeywardLayer, TrustedProxies};
use keyward::{Keyward, ManualClock};

use crate::http::nodes::Nodes;
use crate::http::server::Server;
use support::*;

fn layer(world: &TestService) -> KeywardLayer {
    KeywardLayer::new(world.keys.clone())
}

fn key_for(world: &TestService, networks: &[&str]) -> String {
    let key = reader("tied").allow_addresses(networks.iter().copied());
    let key = world.create(&admin(), key).unwrap();
    key.secret.expose().to_owned()
}

/// Returns the status of a request with a key and additional headers, such as those of a proxy or a forger.
fn status(server: &Server, key: &str, headers: &[(&str, &str)]) -> u16 {
    let mut all = vec![("x-api-key", key)];
    all.extend(headers);
    server.get("/", &all).status
}

#[test]
fn the_client_address_is_the_peer_of_the_socket() {
    let world = TestService::new();
    let (near, far) = (
        key_for(&world, &["127.0.0.0/8"]),
        key_for(&world, &["203.0.113.0/24"]),
    );
    let server = Server::with(layer(&world));
    assert_eq!(status(&server, &near, &[]), 200);
    assert_eq!(status(&server, &far, &[]), 403);
    // Here the closure `peer_addr` supplies the client address, which would otherwise come from the socket.
    let elsewhere = layer(&world).peer_addr(|_| Some(IpAddr::from([203, 0, 113, 9])));
    let server = Server::with(elsewhere);
    assert_eq!(status(&server, &near, &[]), 403);
    assert_eq!(status(&server, &far, &[]), 200);
    let nowhere = Server::with(layer(&world).peer_addr(|_| None));
    assert_eq!(status(&nowhere, &near, &[]), 403);
}

/// The layer first verifies such a key without an address. Fails if that counts as a refusal.
#[test]
fn a_key_with_an_allowlist_counts_once_for_a_request() {
    let (clock, store) = (Arc::new(ManualClock::at(at(START))), MemoryStore::new());
    let builder = Keyward::builder(store.clone(), peppers()).clock(clock);
    let keys = wait(builder.usage(store).build()).unwrap();
    let key = reader("tied").allow_addresses(["127.0.0.0/8"]);
    let key = wait(keys.create(&admin(), key)).unwrap();
    let near = KeywardLayer::new(keys.clone());
    for (layer, expected) in [
        (near.clone(), 200),
        (near.clone().require(reading()), 200),
        (
            near.clone()
                .peer_addr(|_| Some(IpAddr::from([203, 0, 113, 9]))),
            403,
        ),
        (near.peer_addr(|_| None), 403),
    ] {
        let found = status(&Server::with(layer), key.secret.expose(), &[]);
        assert_eq!(found, expected);
    }
    wait(keys.flush_usage()).unwrap();
    let usage = wait(keys.key_usage(&admin(), key.id, Day::FIRST, Day::LAST)).unwrap();
    assert_eq!(usage.count(UseOutcome::Accepted), 2);
    assert_eq!(usage.count(UseOutcome::WrongAddress), 2);
}

/// Sends a request that is refused, and returns the outcome and the log text of the refusal.
fn reason(layer: KeywardLayer, key: &str, headers: &[(&str, &str)]) -> String {
    let seen = Arc::new(Mutex::new(String::new()));
    let own = seen.clone();
    let layer = layer.on_refusal(move |refusal, _, answer| {
        *own.lock().unwrap() = format!("{}: {refusal}", refusal.outcome());
        answer
    });
    assert_eq!(status(&Server::with(layer), key, headers), 403);
    let seen = seen.lock().unwrap();
    seen.clone()
}

#[test]
fn a_refused_address_is_named_and_an_unknown_one_names_its_cause() {
    let nodes = Nodes::new();
    let key = reader("tied").allow_addresses(["203.0.113.0/24"]);
    let key = nodes.create(key);
    let layer = KeywardLayer::new(nodes.here.clone());
    let proxies = TrustedProxies::x_forwarded_for(["127.0.0.1/32".parse().unwrap()]);
    let behind = layer.clone().trusted_proxies(proxies);
    let forgotten = layer.clone().peer_addr(|_| None);
    let junk = [("x-forwarded-for", "203.0.113.7, unknown")];
    // In the first round the node reads the key from the store, and in the second from its index.
    for _ in 0..2 {
        let refused = reason(layer.clone(), &key, &[]);
        assert!(refused.starts_with("key-not-allowed: "), "{refused}");
        assert!(refused.ends_with(" from address 127.0.0.1"), "{refused}");
        let unreadable = reason(behind.clone(), &key, &junk);
        assert!(
            unreadable.starts_with("no-client-address: "),
            "{unreadable}"
        );
        assert!(unreadable.contains("x-forwarded-for from the trusted proxy 127.0.0.1"));
        let missing = reason(forgotten.clone(), &key, &[]);
        assert!(missing.starts_with("no-peer-address: "), "{missing}");
        assert!(missing.contains("PeerAddr"), "{missing}");
        wait(nodes.here.sync()).unwrap();
    }
}

#[test]
fn trap_23_no_header_forges_the_clients_address() {
    let world = TestService::new();
    let key = key_for(&world, &["203.0.113.0/24"]);
    let list = |text| ("x-forwarded-for", text);
    let standard = |text| ("forwarded", text);

    // Neither layer trusts this peer as a proxy: the first one trusts no proxy, and the second one trusts
    // another network.
    let others = TrustedProxies::x_forwarded_for(["10.0.0.0/8".parse().unwrap()]);
    for layer in [layer(&world), layer(&world).trusted_proxies(others)] {
        let server = Server::with(layer);
        for lie in [
            list("203.0.113.7"),
            standard("for=203.0.113.7"),
            ("x-real-ip", "203.0.113.7"),
        ] {
            assert_eq!(status(&server, &key, &[lie]), 403, "{lie:?}");
        }
    }

    // The peer is a trusted proxy. A proxy appends its entry at the right end of the list.
    let loopback = || ["127.0.0.1/32".parse().unwrap()];
    let server =
        Server::with(layer(&world).trusted_proxies(TrustedProxies::x_forwarded_for(loopback())));
    for (headers, expected) in [
        (vec![list("203.0.113.7")], 200),
        (vec![list("198.51.100.1, 203.0.113.7")], 200),
        (
            vec![list("198.51.100.1"), list("203.0.113.7, 127.0.0.1")],
            200,
        ),
        (vec![list("203.0.113.7, 198.51.100.1")], 403),
        (vec![list("203.0.113.7"), list("198.51.100.1")], 403),
        (vec![list("203.0.113.7, unknown")], 403),
        (vec![list("203.0.113.7, ")], 403),
        (vec![standard("for=203.0.113.7")], 403),
        (vec![], 403),
    ] {
        assert_eq!(status(&server, &key, &headers), expected, "{headers:?}");
    }
    let server = Server::with(layer(&world).trusted_proxies(TrustedProxies::forwarded(loopback())));
    for (headers, expected) in [
        (
            vec![standard(
                "for=198.51.100.1, for=\"203.0.113.7:4711\";proto=https",
            )],
            200,
        ),
        (vec![standard("for=203.0.113.7, for=198.51.100.1")], 403),
        (
            vec![standard("for=203.0.113.7;x=\", for=198.51.100.1")],
            403,
        ),
        (vec![list("203.0.113.7")], 403),
    ] {
        assert_eq!(status(&server, &key, &headers), expected, "{headers:?}");
    }
}
