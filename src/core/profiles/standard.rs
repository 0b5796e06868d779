//! The policy to start from.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use super::{class_name, policy_name, prefix};
use crate::core::policy::{ActiveKeyCap, KeyClass, LegacyRule, PolicySpec, Propagation, Rotation};
use crate::core::scope::ScopeSet;
use crate::core::text::{Environment, Role};

/// Secret keys (class `secret`: `sk_live_`, `sk_test_`) and publishable ones (class `publishable`:
/// `pk_live_`, `pk_test_`), each in the environments `live` and `test`.
///
/// Admins and developers create keys; they, and each key's owner, rotate and revoke them. Up to 100
/// active keys a tenant; revoked keys are kept for ever; no legacy key; a revocation holds
/// everywhere within 10 seconds. Roles: `admin` and `developer` reach everything, `member` reads
/// (`*:read`). Only admins administer tenants and owners.
#[must_use]
pub fn standard() -> PolicySpec {
    let managers = [Role::ADMIN, Role::DEVELOPER];
    let all = ScopeSet::all;
    let environments = |live, test| {
        BTreeMap::from([
            (Environment::LIVE, prefix(live)),
            (Environment::TEST, prefix(test)),
        ])
    };
    let secret = KeyClass {
        prefixes: environments("sk_live_", "sk_test_"),
        ..KeyClass::secret(prefix("sk_live_"), all(), managers.clone())
    };
    let publishable = KeyClass {
        prefixes: environments("pk_live_", "pk_test_"),
        ..KeyClass::publishable(prefix("pk_live_"), all(), managers)
    };
    PolicySpec {
        name: policy_name("standard"),
        classes: BTreeMap::from([
            (class_name("secret"), secret),
            (class_name("publishable"), publishable),
        ]),
        default_class: class_name("secret"),
        roles: BTreeMap::from([
            (Role::ADMIN, all()),
            (Role::DEVELOPER, all()),
            (Role::MEMBER, super::scopes(&["*:read"])),
        ]),
        administrators: BTreeSet::from([Role::ADMIN]),
        auditors: BTreeSet::new(),
        active_keys: ActiveKeyCap::Limited {
            limit: NonZeroU32::new(100).unwrap_or(NonZeroU32::MIN),
            classes: BTreeSet::new(),
        },
        legacy: LegacyRule::None,
        provision: Vec::new(),
        first_use_wait: Rotation::DEFAULT_WAIT,
        propagation: Propagation::default(),
        purpose_required: false,
    }
}
