//! API keys for your own service: create, verify, rotate, revoke and audit them, over storage of
//! your choice.
//!
//! ```
//! # pollster::block_on(async {
//! use keyward::store::MemoryStore;
//! use keyward::{Actor, Keyward, Need, CreateKey, PepperRing, Reason, Role, days};
//!
//! let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate()?).build().await?;
//!
//! let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
//! let export = CreateKey::new("nightly export").scope("reports:read").expires_in(days(90));
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
//! - [`Keyward`] is the facade: one method for every command and every query. It combines a
//!   [`KeyManager`](node::KeyManager) (changes), a [`Replica`](node::Replica) (follows the store) and a
//!   [`Verifier`](node::Verifier) (no I/O), which can also be used alone.
//! - [`store`] is the contract for storage, with [`MemoryStore`](store::MemoryStore). Features add a store in
//!   an SQLite file and a store in a PostgreSQL database.
//! - [`policy`] holds the rules of a tenant's keys as data; [`profiles`] are ready-made policies.
//! - [`rules`] are the same rules as plain functions: no async, no I/O, no clock.
//! - [`audit`] is the trail of all changes, and [`rotation`] reports the progress of a rotation.
//! - [`events`] reports changes, and keys that expire soon, for webhooks and mails.
//!
//! # Actors
//!
//! Every change is made by an [`Actor`]: a principal with a role, bound to a tenant. All three come from your
//! own login, never from a request body. A key outside the actor's tenant is [`NotFound`](Denial::NotFound).
//! No actor creates a key with more reach than its own. A verified key can be an actor too: [`Grant::actor`].
//!
//! # Verifying
//!
//! [`Keyward::verify`] checks a presented token against a [`Need`], and returns a [`Grant`] or a
//! [`VerifyError`]. Log the error, and send the client its [`public_message`](VerifyError::public_message)
//! with the status of its [`kind`](VerifyError::kind):
//!
//! ```
//! use keyward::VerifyError;
//!
//! let error = VerifyError::Unknown;
//! assert_eq!(error.kind().http_status(), 401); // 403, 429 for a flood, 503 for an outage
//! assert_eq!(error.public_code(), "invalid-key");
//! assert_eq!(error.public_message(), "invalid API key");
//! ```
//!
//! [`Keyward::verify_or_fetch`] reads a key from the store if this node does not know the key yet, or if the
//! staleness bound of the key's class is zero. Concurrent callers with the same key share one read.
//! [`ReadThroughLimits`](node::ReadThroughLimits) bounds the reads, so that a flood of invented keys causes
//! no flood of reads. Refusals are not cached.
//!
//! # Errors
//!
//! Every error that reaches a client or a front end has a stable `code`, a `kind` and a `public_message`. The
//! [`ErrorKind`] gives the HTTP status. `docs/errors.md` in the repository lists all codes. The `Display` text of an
//! error is for the service's own logs.
//!
//! ```
//! use keyward::{CommandError, Denial};
//!
//! let error = CommandError::from(Denial::NotFound);
//! assert_eq!(error.code(), "key-not-found");
//! assert_eq!(error.kind().http_status(), 404);
//! assert_eq!(error.public_message(), "no such key");
//! ```
//!
//! # HTTP
//!
//! Feature `http` adds a tower layer that verifies the key of each request. Feature `axum` adds extractors
//! for the [`Grant`]. See `keyward::web`.
//!
//! # Following
//!
//! A node that shares its store with other processes must follow the store. [`KeywardBuilder::build`] starts a
//! follower on a thread of its own, which ends with the last clone of the [`Keyward`]. With [`Follow`] the
//! follower runs on a tokio runtime instead (feature `tokio`), or your own timer calls [`Keyward::sync`].
//! [`Keyward::follow_status`] returns the state of the follower. Call [`Keyward::close`] when the process
//! stops.
//!
//! A node that has not synced within the staleness bound of a key's class
//! ([`Propagation`](policy::Propagation)) fails closed: it refuses the key as [`Stale`](VerifyError::Stale).
//! With [`OnStale::ReadThrough`](node::OnStale::ReadThrough) the node reads the key from the store instead.
//! [`Keyward::freshness`] returns the staleness of the node.
//!
//! # What processes share
//!
//! The store remembers the policies in use and a check value of each pepper, so that all processes agree. A
//! process with another policy of the same version, or with other peppers, gets a [`BuildError`]. A process
//! that names no policy uses the policy of the store.
//!
//! [`Keyward::lease`] lets one process at a time do a job, such as sending webhooks, with a fencing number.
//!
//! # Watching
//!
//! Log events go to [`tracing`]. Each sync is logged at debug. A new cause of a follower's failure is logged at
//! warn, with the number of consecutive failures. A repeated cause is logged at debug, and the recovery at info.
//! Feature `metrics` exports these metrics through the `metrics` crate:
//!
//! | Metric | Meaning |
//! |---|---|
//! | `keyward_freshness_age_seconds` | the time since the node was last confirmed, measured when a sync begins and ends; infinite before the first confirmation |
//! | `keyward_clock_offset_seconds` | the seconds by which the node's clock is ahead of the clock that differs most, among the database server's and the other nodes' |
//! | `keyward_index_keys` | the keys in the node's index, including removed ones |
//! | `keyward_keys_by_pepper` | the keys that are neither revoked nor expired, by the `pepper` of this process that they need and its `state`: `current`, `next`, `live`, `audit`; counted when a sync ends, at most once a minute |
//! | `keyward_unverifiable_keys` | the keys among them that this process refuses, because it lacks their pepper or has it for audit entries only |
//! | `keyward_store_diverged` | 1 if the store went back in time, so that the node accepts no key: see [`Freshness::diverged`](node::Freshness::diverged); else 0 |
//! | `keyward_syncs_total` | syncs, with `outcome`: `confirmed`, `failed`, `abandoned` (dropped before it ended) |
//! | `keyward_resyncs_total` | complete reads of the store, because the store's history was lost |
//! | `keyward_read_throughs_total` | reads of a single key from the store, with `outcome`: `found`, `missing`, `corrupt`, `failed`; also calls that `joined` a read in flight, or were `refused` because of too many reads |
//! | `keyward_http_requests_total` | requests at the layer (feature `http`), each counted once, when its response begins or when it is cancelled. The final `outcome` is `accepted`, `anonymous` (passed without a key), or the outcome of the refusal by a layer or an extractor: its code, such as `invalid-key`, or `no-peer-address` or `no-client-address` |
//!
//! The age is only updated by syncs: also alert if `keyward_syncs_total` stops growing.
//!
//! # Confirmations
//!
//! A [`Receipt`] holds the time by which a change has reached every node. With [`KeywardBuilder::registry`]
//! nodes report the changes that they have applied. [`Keyward::confirmations`] returns the nodes that have
//! applied a change, and those that may still act without it. [`Keyward::wait_confirmed`] waits until no node
//! may act without the change. A node that died or is cut off fails closed, so no receipt waits longer than
//! its bound.
//!
//! # Time and tests
//!
//! Time is injected. In tests, [`ManualClock`] does not move until the test moves it:
//!
//! ```
//! # pollster::block_on(async {
//! use std::sync::Arc;
//! use keyward::store::MemoryStore;
//! use keyward::{Actor, Keyward, ManualClock, Need, CreateKey, PepperRing, VerifyError, Role, days};
//!
//! let clock = Arc::new(ManualClock::at("2026-01-01T00:00:00Z".parse()?));
//! let builder = Keyward::builder(MemoryStore::new(), PepperRing::generate()?);
//! let keys = builder.clock(clock.clone()).build().await?;
//! let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
//! let key = keys.create(&admin, CreateKey::new("short").expires_in(days(90))).await?;
//!
//! clock.advance(days(90));
//! let refusal = keys.verify(key.secret.expose(), &Need::any()).unwrap_err();
//! assert!(matches!(refusal, VerifyError::Expired { .. }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # Maintenance
//!
//! Verification writes nothing. It queues pending writes, such as the first use of a successor or a digest
//! under an old pepper. [`Keyward::run_maintenance`] makes these writes. Call it from your own timer, or let
//! a follower call it.
//!
//! # Peppers
//!
//! Secrets are stored as HMAC-SHA-256 digests under a [`Pepper`](pepper::Pepper), a key of the service that must
//! be stored separately from the records. To replace the pepper without refusing any key, first give every process
//! the new pepper as [`with_next`](PepperRing::with_next). Then give every process the rotated ring, with the old
//! pepper as [`with_retired`](PepperRing::with_retired). Old secrets still verify, and their digests move to the
//! new pepper at the next use. A digest moves only to a pepper that became current later. So a process that has
//! not restarted moves no digest back. Keys that are never used never move.
//!
//! [`Keyward::keys_by_pepper`] counts the keys that still need the old pepper. Revoke the last ones with
//! [`BulkFilter::pepper`](command::BulkFilter::pepper). Then keep the old pepper as
//! [`audit_only`](PepperRing::with_audit_only) for the audit entries that it sealed. `PepperFile` stores a
//! ring in a file that only its owner may read, and changes its states.
//!
//! # Restoring
//!
//! In a store that was restored from a backup, keys that were revoked after the backup would verify again. Before
//! the store serves requests, call [`Keyward::recover`]. Either the call disables every key, or it repeats the
//! commands that ended or narrowed keys after the backup. It reads these commands from the audit trail of the lost
//! store, and disables the keys of each tenant that the trail does not cover. See
//! [`Recovery`](recovery::Recovery).
//!
//! # Features
//!
//! No feature is on by default, and no feature changes the behaviour of another one.
//!
//! | Feature | Adds |
//! |---|---|
//! | `sqlite` | [`SqliteStore`](store::SqliteStore): keys in a file that several processes share |
//! | `postgres` | [`PostgresStore`](store::PostgresStore): keys in a database that any number of nodes share |
//! | `tokio` | [`Keyward::follow`] and [`Follow::Tokio`]: the follower as a task on tokio |
//! | `metrics` | gauges and counters through the `metrics` crate |
//! | `http` | `keyward::web`: a tower layer that lets only requests with a suitable key through |
//! | `axum` | extractors for axum, in addition to that layer |
//! | `testing` | [`SeededEntropy`](entropy::SeededEntropy): deterministic key material from a seed |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
mod core;
pub mod entropy;
pub mod events;
mod joint;
mod keyward;
mod live_policies;
mod manager;
mod observe;
#[cfg(unix)]
mod pepper_file;
mod replica;
pub mod store;
mod timekeeper;
mod verifier;
#[cfg(feature = "http")]
pub mod web;

pub use crate::clock::{Clock, ManualClock};
pub use crate::core::actor::Actor;
pub use crate::core::command::{CreateKey, Denial, RotateKey, UpdateKey};
pub use crate::core::id::KeyId;
pub use crate::core::info::KeyInfo;
pub use crate::core::kind::ErrorKind;
pub use crate::core::pepper::PepperRing;
pub use crate::core::record::Reason;
pub use crate::core::rejection::VerifyError;
pub use crate::core::scope::{Scope, ScopeSet};
pub use crate::core::secret::Secret;
pub use crate::core::tenant::TenantId;
pub use crate::core::text::{PrincipalId, Role};
pub use crate::core::time::{Timestamp, days, hours};
pub use crate::core::{profiles, rotation, token};
pub use crate::keyward::{BuildError, Follow, Keyward, KeywardBuilder};
pub use crate::manager::{CommandError, Receipt};
pub use crate::observe::WithSources;
#[cfg(unix)]
pub use crate::pepper_file::PepperFile;
pub use crate::verifier::{Credentials, Grant, Need};

/// The audit trail: its entries, and the chain that seals them.
pub mod audit {
    pub use crate::core::audit::*;
    pub use crate::keyward::{AuditError, PrunedAudit, RetentionReport};
}

/// Clock readings. [`Clock`] and [`ManualClock`] are at the root.
pub mod clocks {
    pub use crate::clock::{Reading, SystemClock};
    /// The type of the `time` crate that a [`Timestamp`](crate::Timestamp) converts from and to.
    pub use time::OffsetDateTime;
}

/// Commands, their parameters and their results.
pub mod command {
    pub use crate::core::actor::Invocation;
    pub use crate::core::command::{
        Command, CommandOutcome, DeleteKey, Expiry, ImportKey, IssuedKey, Request, RevokeKey,
        RotationMode,
    };
    pub use crate::core::invalid::{Invalid, Problem};
    pub use crate::core::sweep::{BulkFilter, MadeBy, PendingSweep, SweepKind};
    pub use crate::core::text::{CommandId, LeakSource};
    pub use crate::keyward::{Created, ImportedKey, LeakReport, Rotated, TimeRepaired};
    pub use crate::manager::{BulkReceipt, CommitListener, Committed};
}

/// Keys as they are stored and shown, and the types of their fields.
pub mod key {
    pub use crate::core::address::AddressAllowlist;
    pub use crate::core::info::KeyRevocation;
    pub use crate::core::metadata::Metadata;
    pub use crate::core::principal::{Author, Owner};
    pub use crate::core::reach::Dimension;
    pub use crate::core::record::{
        Credential, ImportScheme, KeyFacts, KeyRecord, KeyState, KeyType, LastAction, Lineage,
        Maker, Predecessor, Resource, RotationReason, Status, Succession,
    };
    pub use crate::core::secret::{Digest, DigestMark, Fingerprint, KeyMaterial};
    pub use crate::core::stamp::Stamp;
    pub use crate::core::text::{
        ClassName, Description, Entitlement, Environment, Hint, KeyName, Purpose, ResourceId,
        ResourceKind, Stage, is_hidden,
    };
    pub use crate::keyward::KeyList;
    /// The type of a network in an [`AddressAllowlist`].
    pub use ipnet::IpNet;
    /// The constant-time comparison of [`Digest`]s.
    pub use subtle::{Choice, ConstantTimeEq};
}

/// Leases: jobs of which a deployment runs one at a time.
pub mod lease {
    pub use crate::keyward::lease::{Fence, Lease, LeaseError};
}

/// The nodes of a deployment: their freshness, and their confirmations of changes. Also the components of a
/// [`Keyward`], for tools that combine them differently.
pub mod node {
    pub use crate::core::text::NodeLabel;
    pub use crate::keyward::{FollowError, FollowOptions, FollowStatus};
    #[cfg(feature = "tokio")]
    pub use crate::keyward::{FollowStartError, Follower};
    pub use crate::manager::KeyManager;
    pub use crate::replica::{
        Confirmations, Freshness, Lag, NodeAnswer, NodeConfirmation, Replica,
    };
    pub use crate::timekeeper::Timekeeper;
    pub use crate::verifier::{OnStale, ReadThroughLimits, Usage, Verifier};
}

/// Peppers: the service's own keys, under which secrets are digested.
pub mod pepper {
    pub use crate::core::pepper::{Pepper, PepperCount, PepperState};
    pub use crate::core::pepper_document::PepperDocumentError;
    pub use crate::core::text::PepperId;
    pub use crate::keyward::StoredPeppers;
    #[cfg(unix)]
    pub use crate::pepper_file::PepperFileError;
}

/// Policies: the rules of a tenant's keys, as data. A [`Policy`](policy::Policy) is a
/// [`PolicySpec`](policy::PolicySpec) without contradictions. A host reads a spec from a policy file, and may
/// use a different policy for each tenant.
pub mod policy {
    pub use crate::core::policy::*;
    pub use crate::live_policies::LivePolicies;
}

/// Recovery of a store that was restored from a backup.
pub mod recovery {
    pub use crate::core::recovery::{TrailEnd, TrailReach};
    pub use crate::keyward::{
        Recovery, RecoveryError, RecoveryProgress, RecoveryReport, ReplayedTrail,
    };
}

/// The rules as plain functions over plain data, for property tests and for hosts with their own
/// infrastructure. The manager and the verifier use these functions and no other rules.
pub mod rules {
    pub use crate::core::check::Presented;
    pub use crate::core::checked_time::CheckedTime;
    pub use crate::core::decide::{
        Context, Decision, SWEEP_MAX, decide, keys_needed, links, select,
    };
    pub use crate::core::owner::OwnerStatus;
    pub use crate::core::view::Ancestry;
    pub use crate::verifier::check;
}

/// Usage of keys: what a [`Keyward`] with a [usage store](KeywardBuilder::usage) answers. Also plain functions over plain
/// data: outcomes, the counts of a day, and the judgement of unusual use.
pub mod usage {
    pub use crate::core::usage::day::{Day, DayCounts, DayError, HOURS_PER_DAY};
    pub use crate::core::usage::outcome::UseOutcome;
    pub use crate::core::usage::unusual::{Direction, Episode, Sensitivity, unusual_use};
    pub use crate::keyward::{
        FlushError, KeyUsage, UnusedKeys, UsageFlush, UsageQueryError, UsedKeyList,
    };
    pub use crate::store::usage::{Completeness, KeyDay, LastUse, UsageGap, UsageStore};
}

#[cfg(keyward_hole)]
pub use crate::core::hole::open as open_hole;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../docs/http.md")]
struct HttpPage;
