//! Nodes that do not know a key yet, and nodes that have become stale.

use std::sync::Arc;
use std::time::Duration;

use keyward::policy::Policy;
use keyward::store::MemoryStore;
use keyward::web::KeywardLayer;
use keyward::{CreateKey, Keyward, ManualClock, profiles};
use keyward_conformance::Call;

use crate::http::server::{Server, basic};
use support::gated::GatedStore;
use support::*;

/// A node that follows a store, and another node that creates keys.
pub(crate) struct Nodes {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) link: GatedStore,
    pub(crate) here: Keyward,
    pub(crate) there: Keyward,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = MemoryStore::new();
        let policy = Policy::new(profiles::standard()).unwrap();
        let link = GatedStore::new(store.clone());
        let there = node(store, &clock, policy.clone());
        let here = node(link.clone(), &clock, policy);
        Self {
            clock,
            link,
            here,
            there,
        }
    }

    pub(crate) fn create(&self, key: CreateKey) -> String {
        let created = wait(self.there.create(&admin(), key)).unwrap();
        created.secret.expose().to_owned()
    }
}

#[test]
fn a_node_accepts_a_new_key_before_it_has_synced() {
    let nodes = Nodes::new();
    let sources = keyward::web::CredentialSources::default().with_basic();
    let server = Server::with(KeywardLayer::new(nodes.here.clone()).sources(sources));
    let stranger = TestService::new().some_key();
    assert_eq!(
        server.bearer("/", stranger.secret.expose()).code(),
        "invalid-key"
    );
    let (key, other) = (nodes.create(reader("new")), nodes.create(reader("beside")));
    assert_eq!(server.bearer("/", &key).status, 200);
    assert_eq!(nodes.link.asked(Call::Find), 2);

    // The user name and the password are one key each, and the node knows neither of them.
    let page = CreateKey::new("page")
        .class("publishable")
        .scope("reports:read");
    let pair = basic(&nodes.create(page), &other);
    assert_eq!(server.get("/", &[("authorization", &pair)]).status, 200);
    assert_eq!(nodes.link.asked(Call::Find), 4);
    let forged = basic(stranger.secret.expose(), &other);
    let refused = server.get("/", &[("authorization", &forged)]);
    assert_eq!(refused.code(), "invalid-key");

    wait(nodes.here.sync()).unwrap();
    let before = nodes.link.asked(Call::Find);
    assert_eq!(server.bearer("/", &key).status, 200);
    assert_eq!(server.get("/", &[("authorization", &pair)]).status, 200);
    assert_eq!(
        nodes.link.asked(Call::Find),
        before,
        "known keys cause no store read"
    );
}

#[test]
fn an_outage_does_not_look_like_a_bad_key() {
    let nodes = Nodes::new();
    let known = nodes.create(reader("known"));
    wait(nodes.here.sync()).unwrap();
    let new = nodes.create(reader("new"));
    let layer = KeywardLayer::new(nodes.here.clone()).retry_after(Duration::from_secs(7));
    let server = Server::with(layer);
    nodes.link.link.partition(true);
    assert_eq!(server.bearer("/", &known).status, 200, "within the bound");
    let refused = |key: &str| {
        let answer = server.bearer("/", key);
        assert_eq!((answer.status, &*answer.code()), (503, "unavailable"));
        assert_eq!(answer.header("retry-after"), "7");
        assert_eq!(answer.header("www-authenticate"), "");
        let title = "API keys cannot be verified at the moment";
        assert_eq!(answer.json()["title"], title);
        assert_eq!(answer.json()["detail"], serde_json::Value::Null);
    };
    refused(&new);
    nodes.clock.advance(Duration::from_secs(11));
    refused(&known);
    nodes.link.link.partition(false);
    wait(nodes.here.sync()).unwrap();
    assert_eq!(server.bearer("/", &known).status, 200);
    assert_eq!(server.bearer("/", &new).status, 200);
}
