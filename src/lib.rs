//! API keys for your own service: create, verify, rotate, revoke and audit them, over storage of
//! your choice.
//!
//! ```
//! # pollster::block_on(async {
//! use keyward::store::MemoryStore;
//! use keyward::{Actor, Keyward, Need, NewKey, PepperRing, Reason, Role, days};
//!
//! let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
//!
//! let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
//! let export = NewKey::new("nightly export").scope("reports:read").expires_in(days(90));
//! let created = keys.create(&admin, export).await?;
//! println!("{}", created.secret.expose()); // the only time it is shown
//!
//! let grant = keys.verify(created.secret.expose(), &Need::scope("reports:read")?)?; // no I/O
//! println!("{} for {}", grant.key_id(), grant.tenant());
//!
//! keys.revoke(&admin, created.id, Reason::Lost).await?; // refused here from now on
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # The parts
//!
//! - [`Keyward`] is the facade: every command and every question in one call. It wires a
//!   [`KeyManager`] (changes), a [`Replica`] (follows the store) and a [`Verifier`] (no I/O); each
//!   also stands alone.
//! - [`store`] is the contract for storage, with [`MemoryStore`](store::MemoryStore) and, behind a
//!   feature, a store in a file.
//! - [`policy`] holds the rules of a tenant's keys as data; [`profiles`] are ready ones.
//! - [`rules`] are the same rules as plain functions: no async, no I/O, no clock.
//! - [`audit`] and [`rotation`] tell what happened, and where a rotation stands.
//! - [`events`] hands on what happened, and which keys end soon, to webhooks and mails.
//!
//! # Who asks
//!
//! Every change is asked for by an [`Actor`]: who it is, with which role, bound to which tenant. All
//! of that comes from your own login, never from a request body. A key outside the actor's tenant is
//! [`NotFound`](Denied::NotFound), and nobody hands out more than they have. A verified key makes an
//! actor too: [`Grant::actor`].
//!
//! # Verifying
//!
//! [`Keyward::verify`] takes what was presented and a [`Need`], and gives a [`Grant`] or a
//! [`Rejection`]. Log the rejection, and tell the client its
//! [`public_message`](Rejection::public_message) with the status of its [`kind`](Rejection::kind):
//!
//! ```
//! use keyward::{Rejection, RejectionKind};
//!
//! fn status(rejection: &Rejection) -> u16 {
//!     match rejection.kind() {
//!         RejectionKind::Invalid => 401,
//!         RejectionKind::Forbidden => 403,
//!         RejectionKind::Unavailable => 503, // an outage never looks like a bad key
//!     }
//! }
//! # assert_eq!(status(&Rejection::Unknown), 401);
//! ```
//!
//! [`Keyward::verify_or_fetch`] asks the store for a key that this node has not heard of yet, and for
//! classes whose bound is zero. Callers who ask for the same key at once share a read, and
//! [`ReadThrough`] bounds how many there are, so that a flood of made-up keys is no flood of reads; no
//! refusal is remembered.
//!
//! # HTTP
//!
//! Feature `http` is a tower layer that does all of this for requests, and feature `axum` has extractors
//! for what it found: see `keyward::http`.
//!
//! # Following
//!
//! A node whose store is shared with other processes follows it, with [`Keyward::sync`] from a timer
//! of yours or, on tokio, with a task of the crate's own (feature `tokio`):
//!
//! ```
//! # #[cfg(feature = "tokio")]
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! # use keyward::store::MemoryStore;
//! # use keyward::{FollowOptions, Keyward, PepperRing};
//! # let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
//! let follower = keys.follow(FollowOptions::default())?; // stops when dropped
//! println!("{:?} behind", follower.status().lag().time);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Once a node could not confirm for longer than the bound of a key's class
//! ([`Propagation`](policy::Propagation)) that it is up to date, it refuses the key, as
//! [`Stale`](Rejection::Stale); or it reads the key through the store, where the deployment chose
//! [`PastBound::ReadThrough`]. [`Keyward::freshness`] tells how far it is.
//!
//! # Watching
//!
//! Events go to [`tracing`]: each sync at debug, a follower's failures at warn with how many there
//! were in a row, its recovery at info. Feature `metrics` tells the facade of that name:
//!
//! | Metric | What it tells |
//! |---|---|
//! | `keyward_freshness_age_seconds` | how long ago the node was confirmed, as of when a sync last began or ended; infinite if it never was |
//! | `keyward_clock_offset_seconds` | by how much the node's clock is ahead of the one that differs most: the database server's, or another node's |
//! | `keyward_index_keys` | how many keys it knows, removed ones included |
//! | `keyward_syncs_total` | syncs, with `outcome`: `confirmed`, `failed`, `abandoned` (dropped before it ended) |
//! | `keyward_resyncs_total` | how often everything was read again, since the store's history was lost |
//! | `keyward_read_throughs_total` | reads of one key, with `outcome`: `found`, `missing`, `corrupt`, `failed`; and calls that were `joined` to one or `refused` for being too many |
//! | `keyward_http_requests_total` | requests at the layer (feature `http`), with `outcome`: `accepted`, `anonymous` (passed without a key), or the code of the refusal, such as `invalid-key` |
//!
//! The age stands still where nothing syncs any more: watch that `keyward_syncs_total` grows.
//!
//! # Who has a change
//!
//! A [`Receipt`] tells until when a change may not have reached every node. With
//! [`Builder::registry`] nodes say what they have applied, and [`Keyward::confirmations`] tells who
//! has a change and who may still act without it; [`Keyward::confirmed`] waits until nobody does. A
//! node that died or is cut off refuses by itself, so that no receipt waits longer than its bound.
//!
//! # Time and tests
//!
//! Time is injected. In tests, [`ManualClock`] stands still until it is moved:
//!
//! ```
//! # pollster::block_on(async {
//! use std::sync::Arc;
//! use keyward::store::MemoryStore;
//! use keyward::{Actor, Keyward, ManualClock, Need, NewKey, PepperRing, Rejection, Role, days};
//!
//! let clock = Arc::new(ManualClock::at("2026-01-01T00:00:00Z".parse()?));
//! let builder = Keyward::builder(MemoryStore::new(), PepperRing::generate()?);
//! let keys = builder.clock(clock.clone()).build().await?;
//! let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
//! let key = keys.create(&admin, NewKey::new("short").expires_in(days(90))).await?;
//!
//! clock.advance(days(90));
//! let refusal = keys.verify(key.secret.expose(), &Need::any()).unwrap_err();
//! assert!(matches!(refusal, Rejection::Expired { .. }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # Upkeep
//!
//! Verification writes nothing. What it notices (the first use of a successor, a digest under an old
//! pepper) waits until [`Keyward::run_upkeep`] is called, from a timer of yours or by a follower.
//!
//! # Peppers
//!
//! Secrets are stored as HMAC-SHA-256 digests under a [`Pepper`], a key of the service's own that
//! must not live where the records do. To replace it, [`rotate`](PepperRing::rotate) the ring: old
//! secrets go on verifying, and move to the new pepper when they are next used. Keys that are never
//! used never move; end them with [`BulkFilter::pepper`] before dropping the old pepper, and keep it
//! as [`audit_only`](PepperRing::with_audit_only) for the audit entries it sealed. `PepperFile` keeps
//! a ring in a file that only its owner may read.
//!
//! # Restoring
//!
//! A store that was restored from a backup has gone back in time: keys that were revoked since would
//! verify again. Before it serves, call [`Keyward::recover`]: it disables every key, or repeats what
//! ended or narrowed keys since, from audit entries that were kept elsewhere. See [`Recovery`].
//!
//! # References
//!
//! "Rule A1-15" and the like name rules of the documents that the crate was measured against; the
//! repository lists them in `tests/seed_rules/rules`, and its `docs/design.md` numbers the traps and
//! the invariants.
//!
//! # Features
//!
//! None is on by default, and none changes what the others do.
//!
//! | Feature | Adds |
//! |---|---|
//! | `sqlite` | [`SqliteStore`](store::SqliteStore): keys in a file that several processes share |
//! | `postgres` | [`PostgresStore`](store::PostgresStore): keys in a database that any number of nodes share |
//! | `tokio` | [`Keyward::follow`]: a task that keeps a node up to date by itself |
//! | `metrics` | gauges and counters through the `metrics` facade |
//! | `http` | `keyward::http`: a tower layer that lets only requests with a fitting key through |
//! | `axum` | extractors for axum, beside that layer |
//! | `testing` | [`SeededEntropy`]: key material that a seed repeats |

mod clock;
mod core;
mod entropy;
pub mod events;
#[cfg(feature = "tokio")]
mod follow;
#[cfg(feature = "http")]
pub mod http;
mod keyward;
mod manager;
mod observe;
#[cfg(unix)]
mod pepper_file;
mod replica;
pub mod store;
mod timekeeper;
mod verifier;

pub use crate::clock::{Clock, ManualClock, Reading, SystemClock};
pub use crate::core::actor::{Actor, Invocation};
pub use crate::core::address::AddressAllowlist;
pub use crate::core::command::{
    Command, DeleteKey, Denied, Expiry, ImportKey, IssuedKey, KeyUpdate, NewKey, Outcome,
    Replacement, Request, RevokeKey, RotationMode,
};
pub use crate::core::id::KeyId;
pub use crate::core::info::{KeyInfo, KeyRevocation};
pub use crate::core::invalid::{Invalid, Problem};
pub use crate::core::metadata::Metadata;
pub use crate::core::need::Need;
pub use crate::core::owner::{OwnerRecord, TenantRecord, TimeRepair};
pub use crate::core::pepper::{Pepper, PepperRing};
pub use crate::core::principal::{Author, Owner};
pub use crate::core::reach::Dimension;
pub use crate::core::record::{
    Credential, ImportScheme, KeyFacts, KeyRecord, KeyState, LastAction, Lineage, Maker,
    Predecessor, Reason, Resource, RotationReason, Status, Succession, Visibility,
};
pub use crate::core::rejection::{Rejection, RejectionKind};
pub use crate::core::scope::{Scope, ScopeSet};
pub use crate::core::secret::{Digest, DigestMark, Fingerprint, KeyMaterial, Secret};
pub use crate::core::stamp::Stamp;
pub use crate::core::sweep::{BulkFilter, MadeBy, PendingSweep, SweepKind};
pub use crate::core::tenant::TenantId;
pub use crate::core::text::{
    ClassName, CommandId, Description, Entitlement, Environment, Hint, KeyName, LeakSource,
    NodeLabel, PepperId, PolicyName, PrincipalId, Purpose, ResourceId, ResourceKind, Role, Stage,
};
pub use crate::core::time::{Timestamp, days, hours};
pub use crate::core::{audit, policy, profiles, rotation, token};
#[cfg(feature = "testing")]
pub use crate::entropy::SeededEntropy;
pub use crate::entropy::{Entropy, EntropyError, SystemEntropy};
#[cfg(feature = "tokio")]
pub use crate::follow::{FollowError, FollowOptions, FollowStatus, Follower, NoRuntime};
pub use crate::keyward::{
    AuditError, Builder, Created, Imported, KeyList, Keyward, LeakReport, Recovery, RecoveryError,
    RecoveryReport, Rotated, TimeRepaired,
};
pub use crate::manager::{BulkReceipt, Error, KeyManager, Landed, LandedListener, Receipt};
#[cfg(unix)]
pub use crate::pepper_file::{PepperFile, PepperFileError};
pub use crate::replica::{Confirmations, Freshness, Lag, NodeAnswer, NodeConfirmation, Replica};
pub use crate::verifier::{Credentials, Grant, PastBound, ReadThrough, Uses, Verifier};
pub use async_trait::async_trait;

/// The rules as plain functions over plain data, for those who bring their own machinery and for
/// property tests. The manager and the verifier call nothing else.
pub mod rules {
    pub use crate::core::check::{Presented, check};
    pub use crate::core::checked_time::CheckedTime;
    pub use crate::core::decide::{
        Context, Decision, SWEEP_MAX, decide, keys_needed, links, select,
    };
    pub use crate::core::owner::Standing;
    pub use crate::core::view::Ancestry;
}

/// The parts that [`Keyward`] wires into a node, for tools that wire them differently: a simulator, say.
pub mod node {
    pub use crate::timekeeper::Timekeeper;
}

#[cfg(keyward_hole)]
#[doc(hidden)]
pub use crate::core::hole::open as open_hole;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../docs/http.md")]
struct HttpPage;
