//! Events for webhooks and mails, which a host reads in order from a cursor that it stores.
//!
//! A webhook or mail sender reads a batch, delivers the events, and only then stores the cursor of the batch.
//! If the sender crashes in between, no event is lost. Delivered events may then be emitted again, with the
//! same [`EventId`].
//!
//! # Kinds of events
//!
//! Every audit entry is one event, in commit order.
//!
//! Expiry causes no commit, so a sweep over the keys emits notices instead. A key causes one notice when it
//! enters each of the [`ExpiryWindows`], and one notice when it expires. A key that was revoked, removed,
//! extended or replaced before then causes no notice.
//!
//! The id of a notice contains the expiry, so a key whose expiry changed causes new notices. If the clock is
//! set back, a notice that was emitted too early is emitted again when it falls due, with the same id.
//!
//! # Order
//!
//! Entries come first. If an entry sets an expiry whose notice is already due, the notice follows the entry:
//! a key created for two hours is immediately within the window of a day. All other notices follow the last
//! entry of the trail, ordered by the instant at which they fell due, then by window, then by key. If a
//! change commits while a batch is read, the notice of the change may precede its entry.
//!
//! # Examples
//!
//! ```
//! # pollster::block_on(async {
//! # use std::num::NonZeroUsize;
//! # use std::sync::Arc;
//! use keyward::events::{EventCursor, EventKind, ExpiryWindows};
//! # use keyward::store::MemoryStore;
//! # use keyward::{Actor, Keyward, ManualClock, CreateKey, PepperRing, Role, days};
//! # let clock = Arc::new(ManualClock::at("2026-01-01T00:00:00Z".parse()?));
//! # let builder = Keyward::builder(MemoryStore::new(), PepperRing::generate()?);
//! # let keys = builder.clock(clock.clone()).build().await?;
//! # let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
//! # keys.create(&admin, CreateKey::new("short").expires_in(days(90))).await?;
//! # clock.advance(days(84));
//! # let limit = NonZeroUsize::new(100).ok_or("100 is not zero")?;
//! # let mut kept = EventCursor::BEGINNING.to_string();
//!
//! let events = keys.events(ExpiryWindows::new([days(7)])?);
//! let batch = events.next_batch(&kept.parse()?, limit).await?;
//! for event in &batch.events {
//!     println!("{} {:?}", event.id, event.kind); // send it
//! }
//! kept = batch.cursor.to_string(); // only now
//! # let last = batch.events.last().ok_or("events")?;
//! # assert!(matches!(last.kind, EventKind::ExpiringSoon { .. }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod cursor;
mod event;
mod id;
mod notice;
mod reader;

pub use self::cursor::EventCursor;
pub use self::event::{Event, EventKind};
pub use self::id::EventId;
pub use self::notice::ExpiryWindows;
pub use self::reader::{EventBatch, Events, EventsError};
