//! A key and its secret, at most two at the same time (seed 003).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use super::{class_name, policy_name, prefix};
use crate::core::policy::{
    ActiveKeyCap, Deletion, KeyClass, LegacyRule, PolicySpec, Propagation, Revocation, Rotation,
};
use crate::core::scope::ScopeSet;
use crate::core::text::Role;

/// An account's API keys, each a Key ID and a secret that is shown once (class `api-key`, `key_`;
/// I-02, I-04): verify the two as a pair, or the secret alone.
///
/// Up to 2 active keys at the same time, and any number over time (I-05 to I-07). Keys are deleted,
/// for ever, with no more than a click; they are not revoked (I-08 to I-10). Nor are they rotated:
/// the document knows creating and deleting, and a third key in its grace would be one more than
/// "only 2 at the same time".
///
/// What the document is silent about is as in [`standard`](super::standard()): admins and
/// developers create keys; they, and each key's owner, delete them; both roles reach everything;
/// only admins administer tenants and owners; a deletion holds everywhere within 10 seconds.
#[must_use]
pub fn idenfy() -> PolicySpec {
    let api_key = KeyClass {
        rotation: Rotation::None,
        revocation: Revocation::None,
        deletion: Deletion::Plain,
        ..KeyClass::secret(
            prefix("key_"),
            ScopeSet::all(),
            [Role::ADMIN, Role::DEVELOPER],
        )
    };
    PolicySpec {
        name: policy_name("idenfy"),
        classes: BTreeMap::from([(class_name("api-key"), api_key)]),
        default_class: class_name("api-key"),
        roles: BTreeMap::from([
            (Role::ADMIN, ScopeSet::all()),
            (Role::DEVELOPER, ScopeSet::all()),
        ]),
        administrators: BTreeSet::from([Role::ADMIN]),
        auditors: BTreeSet::new(),
        active_keys: ActiveKeyCap::Limited {
            limit: NonZeroU32::new(2).unwrap_or(NonZeroU32::MIN),
            classes: BTreeSet::new(),
        },
        legacy: LegacyRule::None,
        provision: Vec::new(),
        first_use_wait: Rotation::DEFAULT_WAIT,
        propagation: Propagation::default(),
        purpose_required: false,
    }
}
