//! Keys that do what their creator may do, as a bearer token (seed 004).

use std::collections::{BTreeMap, BTreeSet};

use super::{class_name, policy_name, prefix, scopes};
use crate::core::policy::{
    Access, ActiveKeyCap, Deletion, KeyClass, LegacyRule, Lifetime, PolicySpec, Propagation,
    Revocation, Rotation,
};
use crate::core::scope::ScopeSet;
use crate::core::text::Role;

/// An account's API keys (class `api-key`, `yb_`), each linked to the user who created it.
///
/// Only admins create, change and revoke keys; a key's creator who is no admin any more does not
/// (Y-03, Y-07, Y-08). A key expires when its creator says, or never, which is also the default
/// (Y-16, Y-17). Revoked keys stay in the list, for ever; none is deleted. A lost or compromised
/// key is revoked and another created (Y-05, Y-20), which is why there is no rotation.
///
/// A key does what its creator may do at that moment (Y-23 to Y-26). Roles: `admin` reaches
/// everything. `developer` reaches `backups:*`, `clusters:*`, `databases:*` and `networks:*`.
/// Scopes only ever add, so what needs an admin is whatever is not among these, by convention
/// `account:*`, `billing:*`, `keys:*` and `users:*`: name the scopes of your own API likewise.
///
/// The document is silent about the rest: no cap, no legacy key, no confirmation, and a revocation
/// holds everywhere within 10 seconds. Only admins administer tenants and owners.
#[must_use]
pub fn yugabytedb() -> PolicySpec {
    let admins = Access::roles([Role::ADMIN]);
    let api_key = KeyClass {
        lifetime: Lifetime {
            default: None,
            max: None,
        },
        rotation: Rotation::None,
        revocation: Revocation::Allowed {
            confirm: false,
            keep: None,
        },
        deletion: Deletion::None,
        update: admins.clone(),
        rotate: admins.clone(),
        revoke: admins,
        ..KeyClass::secret(prefix("yb_"), ScopeSet::all(), [Role::ADMIN])
    };
    PolicySpec {
        name: policy_name("yugabytedb"),
        classes: BTreeMap::from([(class_name("api-key"), api_key)]),
        default_class: class_name("api-key"),
        roles: BTreeMap::from([
            (Role::ADMIN, ScopeSet::all()),
            (
                Role::DEVELOPER,
                scopes(&["backups:*", "clusters:*", "databases:*", "networks:*"]),
            ),
        ]),
        administrators: BTreeSet::from([Role::ADMIN]),
        auditors: BTreeSet::new(),
        active_keys: ActiveKeyCap::Unlimited,
        legacy: LegacyRule::None,
        provision: Vec::new(),
        first_use_wait: Rotation::DEFAULT_WAIT,
        propagation: Propagation::default(),
        purpose_required: false,
    }
}
