//! The policies that all processes of a store share: their document, and the comparison of a process's own
//! policies with it.
//!
//! Pure: no I/O and no clock.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Policies, Policy, PolicyName};
use crate::core::tenant::TenantId;

/// The format of the document. A build refuses any other number.
const FORMAT: u32 = 1;

/// Two different policies with the same version, so that neither is the newer one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "policy {name}{} differs from the policy that the store holds at version {version}: give the changed \
     policy a higher version, or use the policy of the store",
    of(tenant.as_ref())
)]
pub struct PolicyConflict {
    /// The name of this process's policy.
    pub name: PolicyName,
    /// The version of both policies.
    pub version: u32,
    /// The tenant whose policies differ. `None` if the default policies differ.
    pub tenant: Option<TenantId>,
}

fn of(tenant: Option<&TenantId>) -> String {
    tenant.map_or_else(String::new, |tenant| format!(" of tenant {tenant}"))
}

/// A policy of this process that is older than the policy of the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct OutdatedPolicy {
    pub(crate) name: PolicyName,
    pub(crate) tenant: Option<TenantId>,
    pub(crate) own: u32,
    pub(crate) stored: u32,
}

/// The result of merging a process's policies into those of the store.
#[derive(Clone, Debug)]
pub(crate) struct MergedPolicies {
    /// The policies for the store: the newer one for each tenant.
    pub(crate) policies: Policies,
    /// The policies of this process that the store holds in a newer version.
    pub(crate) outdated: Vec<OutdatedPolicy>,
}

/// Compares the policies of this process with those of the store, tenant by tenant, and keeps the newer ones.
/// A tenant without a policy of its own has the policy of its nearest ancestor, or the default.
///
/// # Errors
///
/// [`PolicyConflict`] for the first tenant whose two policies differ at the same version.
pub(crate) fn merge(stored: &Policies, own: &Policies) -> Result<MergedPolicies, PolicyConflict> {
    let mut outdated = Vec::new();
    let mut newer = |tenant: Option<&TenantId>, stored: &Arc<Policy>, own: &Arc<Policy>| {
        if stored == own {
            return Ok(stored.clone());
        }
        let (stored_at, own_at) = (stored.spec().version, own.spec().version);
        let (name, tenant) = (own.spec().name.clone(), tenant.cloned());
        match stored_at.cmp(&own_at) {
            Ordering::Less => Ok(own.clone()),
            Ordering::Equal => Err(PolicyConflict {
                name,
                version: own_at,
                tenant,
            }),
            Ordering::Greater => {
                outdated.push(OutdatedPolicy {
                    name,
                    tenant,
                    own: own_at,
                    stored: stored_at,
                });
                Ok(stored.clone())
            }
        }
    };
    let mut policies = Policies::shared(newer(None, &stored.default, &own.default)?);
    let tenants: BTreeSet<_> = stored.tenants.keys().chain(own.tenants.keys()).collect();
    for tenant in tenants {
        let chosen = newer(Some(tenant), stored.of(tenant), own.of(tenant))?;
        policies.insert(tenant.clone(), chosen);
    }
    Ok(MergedPolicies { policies, outdated })
}

/// The document, with each distinct policy once: a service has many tenants and few policies.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PolicyDocument {
    keyward_policies: u32,
    policies: Vec<Policy>,
    /// The place of the default in `policies`.
    default: usize,
    tenants: BTreeMap<TenantId, usize>,
}

/// Writes policies as the JSON document of the store.
///
/// # Errors
///
/// The problem in words, for example a staleness bound with a fraction of a second.
pub(crate) fn to_document(policies: &Policies) -> Result<Vec<u8>, String> {
    let mut distinct: Vec<Policy> = Vec::new();
    let mut place = |policy: &Arc<Policy>| {
        let known = distinct.iter().position(|other| *other == **policy);
        known.unwrap_or_else(|| {
            distinct.push(Policy::clone(policy));
            distinct.len() - 1
        })
    };
    let default = place(&policies.default);
    let tenants = policies.tenants.iter();
    let tenants = tenants.map(|(tenant, policy)| (tenant.clone(), place(policy)));
    let tenants = tenants.collect();
    let document = PolicyDocument {
        keyward_policies: FORMAT,
        policies: distinct,
        default,
        tenants,
    };
    serde_json::to_vec(&document).map_err(|error| error.to_string())
}

/// Reads policies from the JSON document of the store.
///
/// # Errors
///
/// The problem in words.
pub(crate) fn from_document(text: &[u8]) -> Result<Policies, String> {
    let document: PolicyDocument =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let PolicyDocument {
        keyward_policies,
        policies,
        default,
        tenants,
    } = document;
    if keyward_policies != FORMAT {
        return Err(format!("has format {keyward_policies}, expected {FORMAT}"));
    }
    let policies: Vec<_> = policies.into_iter().map(Arc::new).collect();
    let at = |place: usize| {
        let found = policies.get(place).cloned();
        found.ok_or_else(|| format!("names policy {place} of {}", policies.len()))
    };
    let mut read = Policies::shared(at(default)?);
    for (tenant, place) in tenants {
        read.insert(tenant, at(place)?);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::policy::PolicySpec;
    use crate::core::profiles;

    fn tenant(path: &str) -> TenantId {
        TenantId::new(path).unwrap()
    }

    /// Returns a policy whose version is `version`. Policies with the same version and another `variant`
    /// differ.
    fn policy(version: u32, variant: bool) -> Policy {
        let spec = profiles::standard().with(|spec: &mut PolicySpec| {
            spec.version = version;
            spec.purpose_required = variant;
        });
        Policy::new(spec).unwrap()
    }

    fn version_of(policies: &Policies, path: &str) -> u32 {
        policies.of(&tenant(path)).spec().version
    }

    #[test]
    fn the_newer_policy_of_each_tenant_is_kept() {
        let stored = Policies::new(policy(1, false)).with_tenant(tenant("acme"), policy(5, false));
        let own = Policies::new(policy(2, true)).with_tenant(tenant("globex"), policy(9, false));
        let merged = merge(&stored, &own).unwrap();
        assert_eq!(version_of(&merged.policies, "other"), 2);
        assert_eq!(version_of(&merged.policies, "acme"), 5);
        assert_eq!(version_of(&merged.policies, "globex"), 9);
        let [outdated] = &*merged.outdated else {
            panic!("{:?}", merged.outdated);
        };
        assert_eq!(
            (outdated.tenant.clone(), outdated.own, outdated.stored),
            (Some(tenant("acme")), 2, 5)
        );
    }

    #[test]
    fn different_policies_of_one_version_conflict_and_equal_ones_do_not() {
        let one = Policies::new(policy(3, false));
        let conflict = merge(&one, &Policies::new(policy(3, true))).unwrap_err();
        assert_eq!(
            conflict.to_string(),
            "policy standard differs from the policy that the store holds at version 3: give the changed \
             policy a higher version, or use the policy of the store"
        );
        assert!(merge(&one, &Policies::new(policy(3, false))).is_ok());
        let own = one.clone().with_tenant(tenant("acme"), policy(3, true));
        assert_eq!(merge(&one, &own).unwrap_err().tenant, Some(tenant("acme")));
    }

    #[test]
    fn a_document_holds_each_distinct_policy_once() {
        let many = (0..100).fold(Policies::new(policy(1, false)), |all, n| {
            all.with_tenant(tenant(&format!("t{n}")), policy(2, n % 2 == 0))
        });
        let document = to_document(&many).unwrap();
        let three = to_document(&Policies::new(policy(1, false))).unwrap().len() * 3;
        assert!(document.len() < three + 100 * 16, "{}", document.len());
        assert!(from_document(&document).unwrap().same_as(&many));
    }

    #[test]
    fn a_document_of_another_format_is_refused() {
        let document = to_document(&Policies::new(policy(1, false))).unwrap();
        let text = String::from_utf8(document).unwrap();
        let later = text.replace("\"keyward_policies\":1", "\"keyward_policies\":2");
        assert!(from_document(later.as_bytes()).is_err());
        let beyond = text.replace("\"default\":0", "\"default\":1");
        assert!(from_document(beyond.as_bytes()).is_err());
        for cut in 0..text.len() {
            assert!(from_document(&text.as_bytes()[..cut]).is_err());
        }
    }

    prop_compose! {
        fn policies()(
            default in (1..4_u32, any::<bool>()),
            tenants in proptest::collection::btree_map(
                prop::sample::select(vec!["a", "a/b", "c"]),
                (1..4_u32, any::<bool>()),
                0..3,
            ),
        ) -> Policies {
            let all = Policies::new(policy(default.0, default.1));
            tenants.into_iter().fold(all, |all, (path, (version, variant))| {
                all.with_tenant(tenant(path), policy(version, variant))
            })
        }
    }

    proptest! {
        #[test]
        fn a_merge_gives_every_tenant_the_newer_policy_whoever_merges_first(
            one in policies(),
            other in policies(),
        ) {
            let (first, second) = (merge(&one, &other), merge(&other, &one));
            prop_assert_eq!(first.is_ok(), second.is_ok());
            if let (Ok(first), Ok(second)) = (first, second) {
                for path in ["a", "a/b", "a/x", "c", "d"] {
                    let path = tenant(path);
                    let version = |all: &Policies| all.of(&path).spec().version;
                    let newer = version(&one).max(version(&other));
                    prop_assert_eq!(version(&first.policies), newer);
                    prop_assert_eq!(first.policies.of(&path), second.policies.of(&path));
                }
                let again = merge(&first.policies, &first.policies).unwrap();
                prop_assert!(again.policies.same_as(&first.policies));
                prop_assert!(again.outdated.is_empty());
            }
        }
    }
}
