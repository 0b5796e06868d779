//! The policies that all processes of a store share: their document, and the comparison of a process's own
//! policies with it.
//!
//! Pure: no I/O and no clock.

use std::cmp::Ordering;
use std::collections::BTreeMap;
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

/// A tenant that has another policy in this process than in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MovedTenant {
    pub(crate) tenant: TenantId,
    pub(crate) from: PolicyName,
    pub(crate) to: PolicyName,
}

/// The result of merging a process's policies into those of the store.
#[derive(Clone, Debug)]
pub(crate) struct MergedPolicies {
    /// The policies for the store.
    pub(crate) stored: Policies,
    /// The policies for this process: its own, and those of the store for tenants that it does not name.
    pub(crate) in_use: Policies,
    /// The policies of this process that the store holds in a newer version.
    pub(crate) outdated: Vec<OutdatedPolicy>,
    /// The tenants to which this process gives a policy of another name.
    pub(crate) moved: Vec<MovedTenant>,
}

/// Merges the policies of this process into those of the store.
///
/// - Of two defaults, the store keeps the one with the higher version. The same holds for two policies of the
///   same name for one tenant. This process uses its own.
/// - If the names of a tenant's two policies differ, the tenant was moved: the policy of this process counts.
/// - If only one side names a tenant, that policy counts for both.
///
/// # Errors
///
/// [`PolicyConflict`] for two different policies of one version.
pub(crate) fn merge(stored: &Policies, own: &Policies) -> Result<MergedPolicies, PolicyConflict> {
    let (mut outdated, mut moved) = (Vec::new(), Vec::new());
    let mut newer = |tenant: Option<&TenantId>, stored: &Arc<Policy>, own: &Arc<Policy>| {
        let (before, now) = (stored.spec(), own.spec());
        let name = now.name.clone();
        match before.version.cmp(&now.version) {
            _ if stored == own => Ok(own.clone()),
            Ordering::Less => Ok(own.clone()),
            Ordering::Equal => Err(PolicyConflict {
                name,
                version: now.version,
                tenant: tenant.cloned(),
            }),
            Ordering::Greater => {
                outdated.push(OutdatedPolicy {
                    name,
                    tenant: tenant.cloned(),
                    own: now.version,
                    stored: before.version,
                });
                Ok(stored.clone())
            }
        }
    };
    let mut for_store = Policies::shared(newer(None, &stored.default, &own.default)?);
    let mut in_use = own.clone();
    for (tenant, before) in &stored.tenants {
        let Some(now) = own.tenants.get(tenant) else {
            for_store.insert(tenant.clone(), before.clone());
            in_use.insert(tenant.clone(), before.clone());
            continue;
        };
        let (from, to) = (&before.spec().name, &now.spec().name);
        let kept = if from == to {
            newer(Some(tenant), before, now)?
        } else {
            let (from, to) = (from.clone(), to.clone());
            let tenant = tenant.clone();
            moved.push(MovedTenant { tenant, from, to });
            now.clone()
        };
        for_store.insert(tenant.clone(), kept);
    }
    for (tenant, policy) in &own.tenants {
        if !stored.tenants.contains_key(tenant) {
            for_store.insert(tenant.clone(), policy.clone());
        }
    }
    Ok(MergedPolicies {
        stored: for_store,
        in_use,
        outdated,
        moved,
    })
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
        let own = Policies::new(policy(2, true))
            .with_tenant(tenant("acme"), policy(3, false))
            .with_tenant(tenant("globex"), policy(9, false));
        let merged = merge(&stored, &own).unwrap();
        assert_eq!(version_of(&merged.stored, "other"), 2);
        assert_eq!(version_of(&merged.stored, "acme"), 5);
        assert_eq!(version_of(&merged.stored, "globex"), 9);
        assert_eq!(
            version_of(&merged.in_use, "acme"),
            3,
            "a process uses its own"
        );
        let [outdated] = &*merged.outdated else {
            panic!("{:?}", merged.outdated);
        };
        assert_eq!(
            (outdated.tenant.clone(), outdated.own, outdated.stored),
            (Some(tenant("acme")), 3, 5)
        );
    }

    #[test]
    fn a_tenant_that_a_process_does_not_name_keeps_its_policy_in_both() {
        let stored = Policies::new(policy(1, false)).with_tenant(tenant("acme"), policy(1, true));
        for default in [policy(1, false), policy(7, false)] {
            let merged = merge(&stored, &Policies::new(default)).unwrap();
            for policies in [&merged.stored, &merged.in_use] {
                assert!(policies.of(&tenant("acme/web")).spec().purpose_required);
            }
        }
    }

    #[test]
    fn a_tenant_that_moves_to_a_policy_of_another_name_moves_whatever_the_versions_are() {
        let other = Policy::new(profiles::guide()).unwrap();
        let stored = Policies::new(policy(1, false)).with_tenant(tenant("acme"), policy(9, false));
        let own = Policies::new(policy(1, false)).with_tenant(tenant("acme"), other);
        let merged = merge(&stored, &own).unwrap();
        assert_eq!(
            merged.stored.of(&tenant("acme")).spec().name.as_str(),
            "guide"
        );
        assert_eq!(merged.moved.len(), 1);
        assert!(merged.outdated.is_empty());
    }

    #[test]
    fn different_policies_of_one_version_conflict_and_equal_ones_do_not() {
        let one = Policies::new(policy(3, false)).with_tenant(tenant("acme"), policy(3, false));
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
                let version = |policy: &Arc<Policy>| policy.spec().version;
                let default = version(&one.default).max(version(&other.default));
                let mut named = BTreeMap::new();
                for (tenant, policy) in one.tenants.iter().chain(&other.tenants) {
                    let newest = named.entry(tenant.as_str()).or_insert(0);
                    *newest = version(policy).max(*newest);
                }
                for path in ["a", "a/b", "a/x", "c", "d"] {
                    let parent = path.split('/').next().unwrap();
                    let expected = named.get(path).or(named.get(parent)).unwrap_or(&default);
                    let path = tenant(path);
                    prop_assert_eq!(version(first.stored.of(&path)), *expected);
                    prop_assert_eq!(first.stored.of(&path), second.stored.of(&path));
                }
                let again = merge(&first.stored, &first.stored).unwrap();
                prop_assert!(again.stored.same_as(&first.stored));
                prop_assert!(again.outdated.is_empty() && again.moved.is_empty());
            }
        }
    }
}
