//! A vendor-neutral guide to managing API keys well (seed 002).

use std::collections::{BTreeMap, BTreeSet};

use super::{class_name, policy_name, prefix, scopes};
use crate::core::policy::{
    ActiveKeyCap, Deletion, KeyClass, LegacyRule, Lifetime, PolicySpec, Propagation, Revocation,
    Rotation,
};
use crate::core::scope::ScopeSet;
use crate::core::text::{Environment, Role};
use crate::core::time;

/// The guide's advice, made rules: secret keys (class `api-key`) in the environments `live`
/// (`key_live_`) and `test` (`key_test_`), so that one is never taken for the other (G-36).
///
/// - A revocation must be confirmed, holds at once everywhere, and is for ever; the key stays in
///   the list and is never deleted (G-03, G-20 to G-24). Verify with
///   [`verify_or_fetch`](crate::Keyward::verify_or_fetch), which asks a remote store each time.
/// - Whoever manages a key rotates it; the old one works beside the new one for 7 days unless the
///   command names another grace, and is ended earlier by finishing the rotation (G-12 to G-19). 7
///   days is a judgement: the guide says "gradually".
/// - Keys live for 90 days unless their creator names another end, so that rotating is a habit and
///   an end to be checked exists (G-07, G-34). 90 days is a judgement; there is no maximum.
/// - Every key says what it is for (G-38): the guide advises it, this profile insists. Set
///   `purpose_required` to false to advise only.
/// - A key has the scopes it is given and none otherwise (G-37); the class allows any.
///
/// Admins and developers create keys; they, and each key's owner, rotate and revoke them. Roles:
/// `admin` and `developer` reach everything, `member` reads (`*:read`). Only admins administer
/// tenants and owners, and remove unused keys in bulk (G-33). No cap; no legacy key.
#[must_use]
pub fn guide() -> PolicySpec {
    let api_key = KeyClass {
        prefixes: BTreeMap::from([
            (Environment::LIVE, prefix("key_live_")),
            (Environment::TEST, prefix("key_test_")),
        ]),
        lifetime: Lifetime {
            default: Some(time::days(90)),
            max: None,
        },
        rotation: Rotation::SelfService(time::days(7)),
        revocation: Revocation::Allowed {
            confirm: true,
            keep: None,
        },
        deletion: Deletion::None,
        ..KeyClass::secret(
            prefix("key_live_"),
            ScopeSet::all(),
            [Role::ADMIN, Role::DEVELOPER],
        )
    };
    PolicySpec {
        name: policy_name("guide"),
        classes: BTreeMap::from([(class_name("api-key"), api_key)]),
        default_class: class_name("api-key"),
        roles: BTreeMap::from([
            (Role::ADMIN, ScopeSet::all()),
            (Role::DEVELOPER, ScopeSet::all()),
            (Role::MEMBER, scopes(&["*:read"])),
        ]),
        administrators: BTreeSet::from([Role::ADMIN]),
        auditors: BTreeSet::new(),
        active_keys: ActiveKeyCap::Unlimited,
        legacy: LegacyRule::None,
        provision: Vec::new(),
        first_use_wait: Rotation::DEFAULT_WAIT,
        propagation: Propagation::IMMEDIATE,
        purpose_required: true,
    }
}
