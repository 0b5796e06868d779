//! A sender of webhooks for key events: `cargo run --example webhooks`.
//!
//! The example prints each request instead of sending it: the body as JSON, with the headers of Standard
//! Webhooks (<https://www.standardwebhooks.com>). The sender crashes once, and resumes from its last saved
//! cursor.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use keyward::events::{Event, EventCursor, Events, EventsError, ExpiryWindows};
use keyward::store::MemoryStore;
use keyward::{
    Actor, Clock, CreateKey, Keyward, ManualClock, PepperRing, Reason, Role, RotateKey, days, hours,
};
use sha2::Sha256;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const BATCH_SIZE: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// Sends every event at least once, and keeps its cursor in a file.
struct Sender {
    events: Events,
    clock: Arc<dyn Clock>,
    cursor_file: PathBuf,
    /// The secret with which the receiver checks signatures.
    key: Vec<u8>,
}

impl Sender {
    fn cursor(&self) -> Fallible<EventCursor> {
        match std::fs::read_to_string(&self.cursor_file) {
            Ok(text) => Ok(text.parse()?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(EventCursor::BEGINNING)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends all pending events. If `crash` is set, simulates a crash after that many batches, before the
    /// last cursor is saved.
    async fn run(&self, crash: Option<usize>) -> Fallible<()> {
        for batches in 1.. {
            let batch = match self.events.next_batch(&self.cursor()?, BATCH_SIZE).await {
                Ok(batch) => batch,
                Err(EventsError::HistoryReplaced { resume }) => {
                    // A real service alerts an operator here: the store was restored from a backup.
                    self.keep(&resume)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for event in &batch.events {
                self.post(event)?; // after an error, the next run sends these events again
            }
            if crash == Some(batches) {
                println!("  (the sender crashes before it notes how far it came)");
                return Ok(());
            }
            self.keep(&batch.cursor)?;
            if !batch.more {
                break; // a real service polls again in a few seconds
            }
        }
        Ok(())
    }

    fn keep(&self, cursor: &EventCursor) -> Fallible<()> {
        // Writes a second file and renames it, so that a crash leaves either the old cursor or the new one.
        let aside = self.cursor_file.with_extension("new");
        std::fs::write(&aside, cursor.to_string())?;
        Ok(std::fs::rename(aside, &self.cursor_file)?)
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
    let builder = Keyward::builder(MemoryStore::new(), PepperRing::generate()?);
    let keys = builder.clock(clock.clone()).build().await?;
    let alice = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    let folder = tempfile::tempdir()?; // a real service uses a permanent folder
    let sender = || Sender {
        events: keys.events(ExpiryWindows::default()),
        clock: clock.clone(),
        cursor_file: Path::new(folder.path()).join("webhooks.cursor"),
        key: b"a secret of sender and receiver".to_vec(),
    };

    println!("Alice creates two keys and rotates one of them:");
    let export = CreateKey::new("export").scope("reports:read");
    let export = keys.create(&alice, export.expires_in(days(90))).await?;
    let nightly = keys
        .create(&alice, CreateKey::new("nightly").never_expires())
        .await?;
    let grace = RotateKey::grace(hours(24));
    keys.rotate(&alice, nightly.id, grace).await?;
    sender().run(Some(2)).await?;

    println!("\nAnother process goes on; what had not been noted comes again, under the same id:");
    sender().run(None).await?;

    println!("A day later the old key has ended:");
    clock.advance(days(1));
    sender().run(None).await?;

    println!("83 days after its creation nobody has renewed the other key yet:");
    clock.advance(days(82));
    sender().run(None).await?;

    println!("Alice revokes it, so that no expiry notice is sent:");
    keys.revoke(&alice, export.id, Reason::NoLongerNeeded)
        .await?;
    clock.advance(days(30));
    sender().run(None).await
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
