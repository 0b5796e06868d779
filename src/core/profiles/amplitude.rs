//! A self-service page for a project's API keys and secret keys (seed 000).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use super::{class_name, key_name, policy_name, prefix, scopes, stage};
use crate::core::policy::{
    Access, ActiveKeyCap, Deletion, KeyClass, LegacyRule, PolicySpec, Propagation, Revocation,
    Rotation,
};
use crate::core::scope::ScopeSet;
use crate::core::text::Role;

/// The longest bound, in whole seconds, whose [worst case](Propagation::worst_case) is within the 6
/// hours that the document promises: a node's clock may run slow.
const STALENESS_BOUND: Duration = Duration::from_secs(21_578);

/// A project's API keys and secret keys, managed by managers and admins. The tenant is the project.
///
/// - `api-key` (`api_`, publishable): says into which project data goes, and does nothing but that
///   (`ingest:write`; A1-08, A1-14). Revoked once that was confirmed, kept for ever and never
///   deleted (A1-15 to A1-17). Rotated without grace, so that the old value ends within the bound
///   (A1-12).
/// - `secret-key` (`secret_`, stage `beta`: A1-28): reads and changes the project (`project:*`;
///   A1-18). Deleted once `DELETE` was typed (A1-22, A1-23), and ended in no easier way. Not
///   rotated: the document replaces one by another that is generated, and then deletes the first.
///
/// The document lets people "create, revoke, or delete both" kinds (A1-01) and then gives each kind
/// one way to end; so does this policy, since a second way would go round what the first keeps or
/// asks for.
///
/// Only managers and admins look at, create, change, rotate and end keys, even those that somebody else
/// owns (A1-01). Every project has a legacy key of class `api-key` (A1-09 to A1-12). Up to 50 active
/// keys over both classes, the legacy key among them (A1-24). A revocation holds everywhere within
/// 6 hours (A1-26, A1-27). Roles: `admin` and `manager` reach everything, `member` reads
/// (`project:read`). Only admins administer tenants and owners: a project is provisioned before its
/// managers create keys.
#[must_use]
pub fn amplitude() -> PolicySpec {
    let managers = Access::roles([Role::MANAGER, Role::ADMIN]);
    let managed = |class: KeyClass| KeyClass {
        create: managers.clone(),
        look: managers.clone(),
        update: managers.clone(),
        rotate: managers.clone(),
        revoke: managers.clone(),
        ..class
    };
    let ingest = || scopes(&["ingest:write"]);
    let api_key = KeyClass {
        rotation: Rotation::SelfService(Duration::ZERO),
        revocation: Revocation::Allowed {
            confirm: true,
            keep: None,
        },
        deletion: Deletion::None,
        ..managed(KeyClass::publishable(prefix("api_"), ingest(), []))
    };
    let secret_key = KeyClass {
        stage: Some(stage("beta")),
        rotation: Rotation::None,
        revocation: Revocation::None,
        deletion: Deletion::Typed("DELETE".to_owned()),
        ..managed(KeyClass::secret(
            prefix("secret_"),
            scopes(&["project:*"]),
            [],
        ))
    };
    PolicySpec {
        name: policy_name("amplitude"),
        classes: BTreeMap::from([
            (class_name("api-key"), api_key),
            (class_name("secret-key"), secret_key),
        ]),
        default_class: class_name("secret-key"),
        roles: BTreeMap::from([
            (Role::ADMIN, ScopeSet::all()),
            (Role::MANAGER, ScopeSet::all()),
            (Role::MEMBER, scopes(&["project:read"])),
        ]),
        administrators: BTreeSet::from([Role::ADMIN]),
        auditors: BTreeSet::new(),
        active_keys: ActiveKeyCap::Limited {
            limit: NonZeroU32::new(50).unwrap_or(NonZeroU32::MIN),
            classes: BTreeSet::new(),
        },
        legacy: LegacyRule::One {
            class: class_name("api-key"),
            name: key_name("Legacy API key"),
            scopes: ingest(),
        },
        provision: Vec::new(),
        first_use_wait: Rotation::DEFAULT_WAIT,
        propagation: Propagation {
            bound: STALENESS_BOUND,
        },
        purpose_required: false,
    }
}
