//! Verification allocates nothing, for any token and any verdict.
//!
//! Allocations are counted per thread, so that concurrent tests do not disturb the counts.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

use keyward::command::ImportKey;
use keyward::key::Digest;
use keyward::policy::Propagation;
use keyward::{Keyward, Need, Reason, VerifyError, days, profiles, token};

use support::{TestService, admin, host, reader, reading, wait, with_other_secret};

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

#[test]
fn an_allocating_call_is_counted() {
    let (world, token) = service();
    let counted = allocation_counter::measure(|| {
        let grant = world.keys.verify(&token, &reading()).unwrap();
        std::hint::black_box(grant.scopes());
    });
    assert!(counted.count_total > 0);
}
