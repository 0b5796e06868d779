//! The life cycle of a key: `cargo run --example quickstart`.

use std::sync::Arc;

use keyward::policy::{ActiveKeyCap, Policy};
use keyward::store::{AuditQuery, SqliteStore};
use keyward::{
    Actor, CommandError, CreateKey, Denial, Keyward, ManualClock, Need, PepperFile, Reason, Role,
    RotateKey, TenantId, VerifyError, days, hours, profiles, token,
};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    pollster::block_on(story())
}

async fn story() -> Fallible<()> {
    println!("A service sets keyward up: where keys are kept, and the pepper that protects them.");
    let folder = tempfile::tempdir()?; // a real service uses a permanent folder
    let store = SqliteStore::open(folder.path().join("keys.db")).await?;
    let peppers = PepperFile::open_or_create(folder.path().join("pepper"))?.ring();
    let clock = Arc::new(ManualClock::at("2026-01-01T09:00:00Z".parse()?));
    let at_most_two = ActiveKeyCap::new(2.try_into()?);
    let policy = Policy::new(profiles::standard().with_cap(at_most_two))?;
    let keys = Keyward::builder(store, peppers)
        .policy(policy)
        .clock(clock.clone())
        .build()
        .await?;
    let acme: TenantId = "acme".try_into()?;
    let alice = Actor::new(acme.clone(), "alice".try_into()?, Role::ADMIN);
    keys.provision_tenant(&alice, &acme).await?;
    println!("  tenant acme is known; its policy allows 2 active keys\n");

    println!("Alice, an admin, creates a key that may read reports for 90 days.");
    let export = CreateKey::new("nightly export")
        .scope("reports:read")
        .expires_in(days(90));
    let first = keys.create(&alice, export).await?;
    println!("  shown once:       {}", first.secret.expose());
    println!(
        "  shown from now on: {}  (fingerprint {})\n",
        first.hint, first.fingerprint
    );

    println!("A request comes in with it.");
    let reading = Need::scope("reports:read")?;
    let grant = keys.verify(first.secret.expose(), &reading)?;
    println!(
        "  accepted: key {} of {}, may do {}",
        grant.key_id(),
        grant.tenant(),
        grant.scopes()
    );
    let refusal = keys.verify(first.secret.expose(), &Need::scope("billing:write")?);
    println!("  asked for more:   {}", refused(&refusal)?);
    let mistyped = first.secret.expose().to_lowercase();
    println!(
        "  mistyped:         {}",
        refused(&keys.verify(&mistyped, &reading))?
    );
    let forged = forge(first.secret.expose());
    println!(
        "  forged secret:    {}\n",
        refused(&keys.verify(&forged, &reading))?
    );

    println!("A second key is fine, a third is one too many.");
    let second = keys
        .create(&alice, CreateKey::new("dashboard").scope("reports:read"))
        .await?;
    match keys
        .create(&alice, CreateKey::new("one more").scope("reports:read"))
        .await
    {
        Err(CommandError::Denied(denied @ Denial::CapReached { .. })) => {
            println!("  refused: {denied}\n")
        }
        other => return Err(format!("the cap did not hold: {other:?}").into()),
    }

    println!("Even at the cap the first key can be rotated; the old one works for a day.");
    let rotated = keys
        .rotate(&alice, first.id, RotateKey::grace(hours(24)))
        .await?;
    println!(
        "  successor {} shown once: {}",
        rotated.id,
        rotated.secret.expose()
    );
    println!(
        "  old key: {}, works until {}",
        keys.key(&alice, first.id).await?.status,
        rotated.until
    );
    keys.verify(first.secret.expose(), &reading)?;
    keys.verify(rotated.secret.expose(), &reading)?;
    println!("  both are accepted now\n");

    clock.advance(hours(24));
    // Reads changes that other processes made. Without a sync within its staleness bound, a verifier fails
    // closed.
    keys.sync().await?;
    println!("A day later:");
    println!(
        "  old key:   {}",
        refused(&keys.verify(first.secret.expose(), &reading))?
    );
    keys.verify(rotated.secret.expose(), &reading)?;
    println!("  successor: accepted\n");

    println!("The dashboard key is lost, so Alice revokes it.");
    let receipt = keys.revoke(&alice, second.id, Reason::Lost).await?;
    println!(
        "  here:       {}",
        refused(&keys.verify(second.secret.expose(), &reading))?
    );
    println!("  everywhere: no later than {}\n", receipt.no_later_than());

    println!("Everything that happened is in the audit trail.");
    for row in keys
        .audit(&alice, &AuditQuery::tenant(acme.clone()))
        .await?
        .rows
    {
        let entry = row.entry;
        let key = entry
            .key
            .map_or_else(|| "-".to_owned(), |key| key.to_string());
        println!(
            "  {:>2}  {}  {:<5}  {key:<22}  {:?}",
            entry.sequence, entry.at, entry.actor, entry.action
        );
    }
    let head = keys.verify_audit(&alice, &acme, None).await?;
    println!(
        "  the chain is intact: {} entries, head {}…",
        head.sequence,
        &head.hash.to_string()[..16]
    );
    Ok(())
}

/// Formats a refusal as a service would log it.
fn refused<T: std::fmt::Debug>(result: &Result<T, VerifyError>) -> Fallible<String> {
    match result {
        Err(rejection) => Ok(format!("refused: {rejection}")),
        Ok(granted) => Err(format!("should have been refused: {granted:?}").into()),
    }
}

/// Forges a token with the id of an existing key, another secret, and a valid checksum, which anybody can
/// compute.
fn forge(token: &str) -> String {
    let (before, _) = token.split_at(token.len() - 6);
    let (kept, last) = before.split_at(before.len() - 1);
    let forged = format!("{kept}{}", if last == "A" { 'B' } else { 'A' });
    let checksum = token::checksum(&forged);
    forged + &checksum
}
