//! A sender of webhooks for key events: `cargo run --example webhooks`.
//!
//! The example prints each request instead of sending it: the body as JSON, with the headers of Standard
//! Webhooks (<https://www.standardwebhooks.com>). The sender crashes once, and another process takes over from
//! its last saved cursor.

use std::num::NonZeroUsize;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use keyward::events::{Event, EventCursor, Events, EventsError, ExpiryWindows};
use keyward::lease::Lease;
use keyward::store::{DocumentName, DocumentWrite, Documents, MemoryStore};
use keyward::{
    Actor, Clock, CreateKey, Keyward, ManualClock, PepperRing, Reason, Role, RotateKey, days, hours,
};
use sha2::Sha256;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const BATCH_SIZE: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// Sends every event at least once. Only the holder of a lease sends, so any number of processes may run a
/// sender. The store keeps the cursor, and refuses the cursor of a former holder.
struct Sender {
    events: Events,
    documents: MemoryStore,
    lease: Lease,
    clock: Arc<dyn Clock>,
    /// The secret with which the receiver checks signatures.
    key: Vec<u8>,
}

impl Sender {
    /// Returns the cursor, and the version of its document.
    async fn cursor(&self) -> Fallible<(u64, EventCursor)> {
        let read = self.documents.document(&cursor_name()?).await?;
        let Some(document) = read.document else {
            return Ok((0, EventCursor::BEGINNING));
        };
        let text = String::from_utf8(document.body)?;
        Ok((document.version, text.parse()?))
    }

    /// Sends all pending events. Returns `false` if another process holds the lease. If `crash` is set,
    /// simulates a crash after that many batches, before the last cursor is saved.
    async fn run(&mut self, crash: Option<usize>) -> Fallible<bool> {
        for batches in 1.. {
            // Renews the lease before each batch. A batch must take less time than the lease's term.
            let Some(fence) = self.lease.hold().await? else {
                return Ok(false);
            };
            let (version, cursor) = self.cursor().await?;
            let keep = async |cursor: &EventCursor| {
                let body = cursor.to_string().into_bytes();
                let write = fence.guard(DocumentWrite::new(cursor_name()?, version, body));
                self.documents.write_document(write).await?;
                Fallible::Ok(())
            };
            let batch = match self.events.next_batch(&cursor, BATCH_SIZE).await {
                Ok(batch) => batch,
                Err(EventsError::HistoryReplaced { resume }) => {
                    // A real service alerts an operator here: the store was restored from a backup.
                    keep(&resume).await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for event in &batch.events {
                self.post(event)?; // after an error, the next run sends these events again
            }
            if crash == Some(batches) {
                println!("  (the sender crashes before it notes how far it came)");
                break;
            }
            keep(&batch.cursor).await?;
            if !batch.more {
                break; // a real service polls again in a few seconds
            }
        }
        Ok(true)
    }

    fn post(&self, event: &Event) -> Fallible<()> {
        let body = serde_json::to_string(event)?;
        let sent = self.clock.now().as_micros() / 1_000_000;
        println!("  webhook-id: {}", event.id);
        println!("  webhook-timestamp: {sent}");
        println!("  webhook-signature: {}", self.sign(event, sent, &body)?);
        println!("  {body}\n");
        Ok(())
    }

    fn sign(&self, event: &Event, sent: i64, body: &str) -> Fallible<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key)?;
        mac.update(format!("{}.{sent}.{body}", event.id).as_bytes());
        Ok(format!("v1,{}", base64(&mac.finalize().into_bytes())))
    }
}

#[pollster::main]
async fn main() -> Fallible<()> {
    let clock = Arc::new(ManualClock::at("2026-01-01T09:00:00Z".parse()?));
    let store = MemoryStore::new();
    let builder = Keyward::builder(store.clone(), PepperRing::generate()?);
    let keys = builder.clock(clock.clone()).build().await?;
    let alice = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    let sender = |host: &str| {
        Fallible::Ok(Sender {
            events: keys.events(ExpiryWindows::default()),
            documents: store.clone(),
            lease: keys.lease("webhooks", host.try_into()?)?,
            clock: clock.clone(),
            key: b"a secret of sender and receiver".to_vec(),
        })
    };
    let (mut first, mut second) = (sender("host-1")?, sender("host-2")?);

    println!("Alice creates two keys and rotates one of them:");
    let export = CreateKey::new("export").scope("reports:read");
    let export = keys.create(&alice, export.expires_in(days(90))).await?;
    let nightly = keys
        .create(&alice, CreateKey::new("nightly").never_expires())
        .await?;
    let grace = RotateKey::grace(hours(24));
    keys.rotate(&alice, nightly.id, grace).await?;
    first.run(Some(2)).await?;

    println!("\nAnother process waits until the lease of the first one has lapsed, then goes on.");
    println!("What had not been noted comes again, under the same id:");
    while !second.run(None).await? {
        clock.advance(Lease::DEFAULT_TERM);
    }

    println!("A day later the old key has ended:");
    clock.advance(days(1));
    second.run(None).await?;

    println!("83 days after its creation nobody has renewed the other key yet:");
    clock.advance(days(82));
    second.run(None).await?;

    println!("Alice revokes it, so that no expiry notice is sent:");
    keys.revoke(&alice, export.id, Reason::NoLongerNeeded)
        .await?;
    clock.advance(days(30));
    second.run(None).await?;
    Ok(())
}

/// Returns the name of the document that holds the cursor. Names that begin with `app.` are the application's.
fn cursor_name() -> Fallible<DocumentName> {
    Ok("app.webhooks.cursor".try_into()?)
}

/// Base64 as in section 4 of RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, n| {
            bits << 8 | usize::from(*three.get(n).unwrap_or(&0))
        });
        for n in 0..4 {
            let digit = char::from(DIGITS[bits >> (18 - 6 * n) & 63]);
            text.push(if n <= three.len() { digit } else { '=' });
        }
    }
    text
}
