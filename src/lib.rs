//! API keys for your own service.

mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod core;
mod entropy;
mod keyward;
mod manager;
mod replica;
pub mod store;
mod verifier;

pub use crate::clock::{Clock, ManualClock, SystemClock};
pub use crate::core::actor::{Actor, Invocation};
pub use crate::core::address::AddressAllowlist;
pub use crate::core::check::{Need, Rejection, RejectionKind};
pub use crate::core::command::{
    ActorBound, BulkFilter, Command, Confirmed, DeleteKey, Denied, Expiry, ImportKey, IssuedKey,
    KeySpec, KeyUpdate, NewKey, Outcome, OwnerSpec, Replacement, Request, RevokeKey, RotationMode,
    UpdateSpec,
};
pub use crate::core::id::KeyId;
pub use crate::core::info::KeyInfo;
pub use crate::core::invalid::{Invalid, Problem};
pub use crate::core::metadata::Metadata;
pub use crate::core::owner::{Owner, OwnerRecord, TenantRecord};
pub use crate::core::pepper::{Pepper, PepperRing};
pub use crate::core::record::{
    Credential, ImportScheme, KeyRecord, KeyState, LastAction, Predecessor, Reason, Resource,
    RotationReason, Stamp, Status, Succession, Visibility,
};
pub use crate::core::scope::{Scope, ScopeSet};
pub use crate::core::secret::{Digest, Fingerprint, KeyMaterial, Secret};
pub use crate::core::tenant::TenantId;
pub use crate::core::text::{
    ClassName, CommandId, Description, Entitlement, Environment, Hint, KeyName, LeakSource,
    PepperId, PolicyName, PrincipalId, Purpose, ResourceId, ResourceKind, Role, Stage,
};
pub use crate::core::time::{Timestamp, days, hours};
pub use crate::core::{audit, policy, profiles, rotation, token};
#[cfg(feature = "testing")]
pub use crate::entropy::SeededEntropy;
pub use crate::entropy::{Entropy, EntropyError, SystemEntropy};
pub use crate::keyward::{
    AuditError, Builder, Created, Imported, KeyList, Keyward, LeakReport, Rotated,
};
pub use crate::manager::{BulkReceipt, Error, KeyManager, Landed, LandedListener, Receipt};
pub use crate::replica::{Freshness, Replica};
pub use crate::verifier::{Grant, Verifier};
pub use async_trait::async_trait;

/// The rules as plain functions over plain data, for those who bring their own machinery and for
/// property tests. The manager and the verifier call nothing else.
pub mod rules {
    pub use crate::core::check::{Presented, check};
    pub use crate::core::decide::{
        Context, Decision, SWEEP_MAX, decide, keys_needed, links, select,
    };
    pub use crate::core::owner::Standing;
    pub use crate::core::view::Ancestry;
}
