//! A policy with classes of your own, and a cap per class: `cargo run --example policy`.

use keyward::policy::{ActiveKeyCap, KeyClass, Lifetime, Policy, PolicySpec};
use keyward::store::MemoryStore;
use keyward::token::TokenPrefix;
use keyward::{
    Actor, CommandError, CreateKey, Denial, Keyward, Need, PepperRing, Role, ScopeSet, TenantId,
    VerifyError, days,
};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    pollster::block_on(story())
}

/// Returns the policy of a shop: servers change orders, and apps on phones read the catalogue.
fn shop() -> Fallible<Policy> {
    let orders = ScopeSet::parse(["orders:*", "catalogue:read"])?;
    let server = TokenPrefix::new("shop_sk_")?;
    let server = KeyClass::secret(server, orders.clone(), [Role::ADMIN]).with(|class| {
        class.lifetime = Lifetime {
            default: Some(days(90)),
            max: Some(days(365)),
        };
    });
    let catalogue = ScopeSet::parse(["catalogue:read"])?;
    let mobile = TokenPrefix::new("shop_pk_")?;
    let mobile = KeyClass::publishable(mobile, catalogue.clone(), [Role::ADMIN, Role::MEMBER]);
    let spec = PolicySpec::new("shop", "server", server)?
        .with_class("mobile", mobile)?
        .with_cap(ActiveKeyCap::of_class("server".parse()?, 1.try_into()?))
        .with_cap(ActiveKeyCap::of_class("mobile".parse()?, 2.try_into()?))
        .with_role(Role::ADMIN, orders)
        .with_role(Role::MEMBER, catalogue)
        .with_administrators([Role::ADMIN]);
    Ok(Policy::new(spec)?) // refuses a policy that contradicts itself
}

async fn story() -> Fallible<()> {
    let policy = shop()?;
    println!("As a policy file:\n{}\n", serde_json::to_string(&policy)?);
    let builder = Keyward::builder(MemoryStore::new(), PepperRing::generate()?);
    let keys = builder.policy(policy).build().await?;
    let acme: TenantId = "acme".try_into()?;
    let ann = Actor::new(acme.clone(), "ann".try_into()?, Role::ADMIN);
    let max = Actor::new(acme, "max".try_into()?, Role::MEMBER);

    let backend = CreateKey::new("backend").scope("orders:write");
    let backend = keys.create(&ann, backend).await?;
    println!("Ann, an admin, creates a server key: {}", backend.hint);
    let end = backend.expires_at.ok_or("the class has a lifetime")?;
    println!("  it ends by itself: {end}");
    let second = keys.create(&ann, CreateKey::new("second")).await;
    let full = |error: &CommandError| {
        matches!(error, CommandError::Denied(Denial::CapReached { limit, classes })
            if limit.get() == 1 && classes.len() == 1)
    };
    let refusal = second.err().filter(full).ok_or("the class is full")?;
    println!("  a second one is refused: {refusal}\n");

    let app = |name: &str| CreateKey::new(name).class("mobile").scope("catalogue:read");
    let android = keys.create(&max, app("Android")).await?;
    keys.create(&max, app("iOS")).await?;
    let token = android.secret.expose();
    println!("Max, a member, creates two mobile keys, such as {token}");
    let refusal = keys.create(&max, app("Web")).await.err();
    let refusal = refusal.ok_or("two mobile keys are the cap")?;
    println!("  a third one is refused: {refusal}");
    let refusal = keys.create(&max, CreateKey::new("server")).await.err();
    let refusal = refusal.ok_or("only admins create server keys")?;
    println!("  a server key is refused: {refusal}\n");

    let reading = Need::scope("catalogue:read")?.or_publishable();
    let grant = keys.verify(token, &reading)?;
    println!("The app's key identifies it, and may do {}", grant.scopes());
    match keys.verify(token, &Need::scope("catalogue:read")?) {
        Err(refusal @ VerifyError::Publishable { .. }) => {
            println!("  as a secret it is refused: {refusal}")
        }
        other => return Err(format!("a publishable key authenticates nobody: {other:?}").into()),
    }
    Ok(())
}
