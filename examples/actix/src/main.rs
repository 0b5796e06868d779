//! A service in actix-web that requires API keys: `cargo run` in this folder.
//!
//! The module `keyed` contains the middleware, and this file contains the routes. The first argument is the
//! address and port to listen on, by default 127.0.0.1:3000.

mod keyed;
#[cfg(test)]
mod tests;

use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, Responder, web};
use keyward::store::MemoryStore;
use keyward::web::KeywardLayer;
use keyward::{Actor, CreateKey, Grant, Keyward, Need, PepperRing, Role, Scope, days};

use crate::keyed::keyed;

const REPORTS_READ: Scope = Scope::from_static("reports:read");

/// Registers the routes, each with the scope that a request needs.
fn routes(config: &mut web::ServiceConfig, keys: &Keyward) {
    let reading = KeywardLayer::new(keys.clone()).require(Need::from(REPORTS_READ));
    let reports = web::resource("/reports")
        .route(web::get().to(reports))
        .route(web::head().to(reports))
        .wrap(from_fn(move |request, next| {
            keyed(reading.clone(), request, next)
        }));
    config
        .route("/health", web::get().to(health))
        .service(reports);
}

async fn health() -> impl Responder {
    "up\n"
}

/// Returns the reports of one tenant. The tenant comes from the key, never from the request.
async fn reports(grant: web::ReqData<Grant>) -> impl Responder {
    format!("reports of {}\n", grant.tenant())
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1);
    let address = address.as_deref().unwrap_or("127.0.0.1:3000");
    let store = MemoryStore::new();
    let keys = Keyward::builder(store, PepperRing::generate()?);
    let keys = keys.build().await?;
    let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    let reader = CreateKey::new("reader").scope("reports:read");
    let reader = keys.create(&admin, reader.expires_in(days(90))).await?;

    let server = HttpServer::new(move || App::new().configure(|config| routes(config, &keys)));
    let server = server.bind(address)?;
    for address in server.addrs() {
        println!("Anybody may ask how it is; reports need a key:\n");
        println!("    curl -sS http://{address}/health");
        println!("    curl -sSw '\\n' http://{address}/reports");
        let key = reader.secret.expose();
        println!("    curl -sS http://{address}/reports -H 'X-API-Key: {key}'\n");
    }
    server.run().await?;
    Ok(())
}
