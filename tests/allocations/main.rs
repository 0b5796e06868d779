//! Verification allocates nothing, for any token and any verdict. The HTTP layer allocates once for a request. A
//! follower keeps no memory for what no key uses any more.
//!
//! Allocations are counted per thread, so that concurrent tests do not disturb the counts.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use keyward::clocks::SystemClock;
use keyward::command::ImportKey;
use keyward::key::{Digest, KeyRecord, Owner};
use keyward::node::Replica;
use keyward::policy::Propagation;
use keyward::store::{
    AuditPage, AuditQuery, Change, Changes, ChangesError, Commit, CommitError, CommitTag, Cursor,
    Epoch, FoundKey, KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, Revision, Row, RowKey,
    ScanPage, StoreError, StoreErrorKind, TenantView, async_trait,
};
use keyward::{
    Grant, KeyId, Keyward, Need, Reason, ScopeSet, TenantId, UpdateKey, VerifyError, days,
    profiles, token,
};

use support::{TestService, admin, host, reader, reading, wait, with_other_secret};

/// A store whose feed returns each pushed row once, and which keeps nothing.
#[derive(Debug, Default)]
struct FeedStore {
    head: AtomicU64,
    row: Mutex<Option<Row>>,
}

fn missing() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "reading what is not kept")
}

impl FeedStore {
    fn head(&self) -> Cursor {
        Cursor {
            epoch: Epoch(1),
            revision: Revision(self.head.load(Ordering::Relaxed)),
            tag: CommitTag(0),
        }
    }

    fn push(&self, row: Row) {
        *self.row.lock().unwrap() = Some(row);
        self.head.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl KeyStore for FeedStore {
    async fn load(&self, _: &TenantId, _: &LoadRequest) -> Result<TenantView, StoreError> {
        Err(missing())
    }

    async fn find(&self, _: &Locator) -> Result<Option<FoundKey>, StoreError> {
        Err(missing())
    }

    async fn commit(&self, _: Commit) -> Result<Revision, CommitError> {
        Err(missing().into())
    }

    async fn changes(&self, _: Cursor, _: NonZeroUsize) -> Result<Changes, ChangesError> {
        let head = self.head();
        let revision = head.revision;
        let row = self.row.lock().unwrap().take();
        let changes = row.into_iter().map(|row| Change { revision, row });
        Ok(Changes {
            changes: changes.collect(),
            upto: head,
            head,
            server_time: None,
        })
    }

    async fn scan(&self, _: Option<RowKey>, _: NonZeroUsize) -> Result<ScanPage, StoreError> {
        Ok(ScanPage {
            head: self.head(),
            rows: Vec::new(),
            next: None,
        })
    }

    async fn list(&self, _: &KeyQuery) -> Result<KeyPage, StoreError> {
        Err(missing())
    }

    async fn audit(&self, _: &AuditQuery) -> Result<AuditPage, StoreError> {
        Err(missing())
    }
}

/// Returns the memory in bytes that a follower keeps for rows. The rows derive from a real record.
fn kept(rows: impl Fn(&KeyRecord, u32) -> Vec<Row>) -> i64 {
    let world = TestService::new();
    world.create(&admin(), reader("nightly export")).unwrap();
    let query = KeyQuery::all(keyward::Timestamp::MAX);
    let record = wait(world.store.list(&query)).unwrap().keys.remove(0);
    let store = Arc::new(FeedStore::default());
    let replica = Arc::new(Replica::new(store.clone(), Arc::new(SystemClock)));
    wait(replica.sync()).unwrap();
    let counted = allocation_counter::measure(|| {
        for number in 0..4_000 {
            for row in rows(&record, number) {
                store.push(row);
                wait(replica.sync()).unwrap();
            }
        }
    });
    counted.bytes_current
}

/// Returns the largest amount of memory in use while a trail of at least `entries` entries is verified.
fn peak_of_verifying(entries: usize) -> u64 {
    let world = TestService::new();
    let key = world.create(&admin(), reader("nightly export")).unwrap();
    for _ in 0..entries / 2 {
        wait(world.keys.disable(&admin(), key.id)).unwrap();
        wait(world.keys.enable(&admin(), key.id)).unwrap();
    }
    let verify = || wait(world.keys.verify_audit(&admin(), &key_tenant(), None)).unwrap();
    let mut end = None;
    let counted = allocation_counter::measure(|| end = Some(verify()));
    assert!(end.is_some_and(|end| end.sequence > entries as u64));
    counted.bytes_max
}

fn key_tenant() -> TenantId {
    admin().tenant().clone()
}

#[test]
fn verifying_an_audit_trail_takes_constant_memory() {
    let (short, long) = (peak_of_verifying(1_500), peak_of_verifying(4_500));
    assert!(long < short * 3 / 2, "{short} and {long} bytes");
}

/// Half a megabyte, which 4,000 rows of a hundred bytes or more would exceed if they stayed.
const FEW: i64 = 500_000;

#[test]
fn scopes_that_no_key_has_any_more_leave_memory() {
    let bytes = kept(|record, number| {
        let scopes: Vec<_> = (0..50).map(|other| format!("r{number}:a{other}")).collect();
        let record = record.clone().with(|key| {
            key.scopes = ScopeSet::parse(scopes.iter().map(String::as_str)).unwrap();
        });
        vec![Row::Key(Box::new(record))]
    });
    assert!(bytes < FEW, "{bytes}");
}

#[test]
fn removed_keys_and_their_owners_leave_memory() {
    let bytes = kept(|record, number| {
        let key = KeyId::from_u128(record.id.to_u128() + u128::from(number));
        let tenant = record.tenant.clone();
        let record = record.clone().with(|own| {
            own.id = key;
            own.owner = Owner::Principal(format!("owner-{number}").parse().unwrap());
        });
        vec![Row::Key(Box::new(record)), Row::Removed { key, tenant }]
    });
    assert!(bytes < FEW, "{bytes}");
}

/// Returns a service with one key that has every field set, and the key's token.
fn service() -> (TestService, String) {
    let world = TestService::new();
    let key = reader("nightly export")
        .description("Reads last night's reports for the warehouse")
        .scopes(["exports:write", "reports:read", "events:read"])
        .metadata([("team", "data"), ("ticket", "OPS-1234")])
        .expires_in(days(90));
    let token = world.create(&admin(), key).unwrap();
    let token = token.secret.expose().to_owned();
    (world, token)
}

/// Returns the memory in bytes that 200 grants keep. Between them, another key gets other scopes.
fn kept_by_grants(hold: impl Fn(Grant) -> Option<Grant>) -> i64 {
    let (world, token) = service();
    let other = world.create(&admin(), reader("other")).unwrap();
    let mut grants = Vec::with_capacity(200);
    let counted = allocation_counter::measure(|| {
        for number in 0..200 {
            let grant = world.keys.verify(&token, &reading());
            grants.push(hold(grant.unwrap()));
            let scopes: Vec<_> = (0..50).map(|scope| format!("r{number}:a{scope}")).collect();
            let change = UpdateKey::new().scopes(scopes.iter().map(String::as_str));
            wait(world.keys.update(&admin(), other.id, change)).unwrap();
        }
    });
    let mut held = grants.iter().flatten();
    assert!(held.all(|grant| grant.tenant() == &key_tenant()));
    counted.bytes_current
}

/// Half a kilobyte for each detached grant, which no version of the index is as small as.
#[test]
fn detached_grants_keep_no_version_of_the_index() {
    let nothing = kept_by_grants(|_| None);
    let detached = kept_by_grants(|grant| Some(grant.detach())) - nothing;
    let borrowed = kept_by_grants(Some) - nothing;
    assert!(detached < 200 * 1024, "{detached} bytes");
    assert!(borrowed > 4 * detached, "{borrowed} and {detached} bytes");
}

/// Returns the number of allocations in a hundred verifications, each of which must have the expected
/// verdict.
fn allocations(
    keys: &Keyward,
    presented: &str,
    need: &Need,
    right: fn(Option<&VerifyError>) -> bool,
) -> u64 {
    let verify = || {
        let verdict = keys.verify(presented, need);
        assert!(right(verdict.as_ref().err()), "{verdict:?}");
    };
    // The first verification on a thread makes allocations that later ones do not repeat.
    verify();
    allocation_counter::measure(|| (0..100).for_each(|_| verify())).count_total
}

#[test]
fn a_valid_key_allocates_nothing() {
    let (world, token) = service();
    let count = allocations(&world.keys, &token, &reading(), |refused| refused.is_none());
    assert_eq!(count, 0);
}

/// Under a staleness bound of zero, each verification asks the in-process store for new changes. Fails if a
/// verification reads anything else from the store.
#[test]
fn a_valid_key_confirmed_at_the_moment_of_use_allocates_nothing() {
    let mut spec = profiles::standard();
    spec.propagation = Propagation::IMMEDIATE;
    let world = TestService::with_policy(spec);
    let key = world.create(&admin(), reader("nightly export")).unwrap();
    let token = key.secret.expose();
    let count = allocations(&world.keys, token, &reading(), |refused| refused.is_none());
    assert_eq!(count, 0);
}

#[test]
fn a_wrong_secret_allocates_nothing() {
    let (world, token) = service();
    let wrong = with_other_secret(&token);
    let count = allocations(&world.keys, &wrong, &reading(), |refused| {
        refused == Some(&VerifyError::WrongSecret)
    });
    assert_eq!(count, 0);
}

#[test]
fn an_unknown_id_allocates_nothing() {
    let ((world, _), (_, elsewhere)) = (service(), service());
    let count = allocations(&world.keys, &elsewhere, &reading(), |refused| {
        refused == Some(&VerifyError::Unknown)
    });
    assert_eq!(count, 0);
}

#[test]
fn text_that_is_not_a_token_allocates_nothing() {
    let (world, token) = service();
    let broken = token.replace("live_", "live+");
    let mistyped = token.to_ascii_lowercase();
    let huge = "x".repeat(10_000);
    for presented in ["", "hunter2", "Bearer x", &broken, &mistyped, &huge] {
        let count = allocations(&world.keys, presented, &reading(), |refused| {
            matches!(refused, Some(VerifyError::Malformed(_)))
        });
        assert_eq!(count, 0, "{presented:.80}");
    }
}

#[test]
fn a_revoked_key_allocates_nothing() {
    let (world, token) = service();
    let id = token::parse(token.as_bytes()).unwrap().id();
    wait(world.keys.revoke(&admin(), id, Reason::Lost)).unwrap();
    let count = allocations(&world.keys, &token, &reading(), |refused| {
        matches!(refused, Some(VerifyError::Revoked { .. }))
    });
    assert_eq!(count, 0);
}

#[test]
fn an_imported_key_allocates_nothing() {
    let (world, _) = service();
    let import = ImportKey::sha256(Digest::sha256("old-1234"), reader("from elsewhere"));
    wait(world.keys.import(&host(), import)).unwrap();
    let count = allocations(&world.keys, "old-1234", &reading(), |refused| {
        refused.is_none()
    });
    assert_eq!(count, 0);
}

/// Returns the number of allocations of a service in a hundred requests. Each request has an extension and
/// four headers, and each response has a header, as with a real server.
#[cfg(feature = "http")]
fn allocations_of_requests<S, B>(service: &mut S, token: &str) -> u64
where
    S: tower::Service<
            http::Request<()>,
            Response = http::Response<B>,
            Error = std::convert::Infallible,
        >,
{
    use std::net::Ipv4Addr;

    let request = || {
        let request = http::Request::get("/reports")
            .header("host", "api.example.com")
            .header("accept", "*/*")
            .header("user-agent", "test")
            .header("authorization", format!("Bearer {token}"))
            .extension(keyward::web::PeerAddr(Ipv4Addr::LOCALHOST.into()));
        request.body(()).unwrap()
    };
    let mut serve = |request| {
        let answer = wait(service.call(request)).unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/plain");
    };
    serve(request());
    let requests: Vec<_> = (0..100).map(|_| request()).collect();
    allocation_counter::measure(|| requests.into_iter().for_each(&mut serve)).count_total
}

/// The allocation is that of the grant in the request's extensions. Fails if the layer inserts a second
/// extension, or opens a span at INFO.
#[cfg(feature = "http")]
#[test]
fn the_layer_allocates_once_for_a_request_with_a_key() {
    use keyward::web::KeywardLayer;
    use tower::Layer;

    let subscriber = tracing_subscriber::fmt().with_writer(std::io::sink);
    let _subscriber = tracing::subscriber::set_default(subscriber.finish());
    let (world, token) = service();
    let mut inner = tower::service_fn(|_: http::Request<()>| {
        let answer = http::Response::builder().header("content-type", "text/plain");
        std::future::ready(Ok::<_, std::convert::Infallible>(answer.body(()).unwrap()))
    });
    let mut keyed = KeywardLayer::new(world.keys.clone())
        .require(reading())
        .layer(inner);
    let plain = allocations_of_requests(&mut inner, &token);
    assert_eq!(allocations_of_requests(&mut keyed, &token), plain + 100);
}

#[test]
fn an_allocating_call_is_counted() {
    let (world, token) = service();
    let counted = allocation_counter::measure(|| {
        let grant = world.keys.verify(&token, &reading()).unwrap();
        std::hint::black_box(grant.scopes());
    });
    assert!(counted.count_total > 0);
}
