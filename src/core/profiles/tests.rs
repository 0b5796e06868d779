use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::core::policy::{
    Access, ActiveKeyCap, Deletion, KeyClass, LegacyRule, Lifetime, Propagation, ProvisionOn,
    Revocation, Rotation, TenantReach,
};
use crate::core::record::KeyType;
use crate::core::scope::{Scope, ScopeSet};
use crate::core::text::{Entitlement, Environment, ResourceKind, Role, Stage};
use crate::core::time;
use crate::core::token::TokenPrefix;

fn prefix(text: &str) -> TokenPrefix {
    TokenPrefix::new(text).unwrap()
}

fn scopes(scopes: &[&str]) -> ScopeSet {
    ScopeSet::parse(scopes.iter().copied()).unwrap()
}

fn shipped() -> [PolicySpec; 6] {
    [
        standard(),
        amplitude(),
        amplitude_products(),
        guide(),
        idenfy(),
        yugabytedb(),
    ]
}

fn class(spec: &PolicySpec, name: &str) -> KeyClass {
    spec.classes.get(name).expect(name).clone()
}

fn cap(spec: &PolicySpec) -> Option<u32> {
    match &spec.caps[..] {
        [] => None,
        [cap] => {
            assert_eq!(*cap, ActiveKeyCap::new(cap.limit), "every class counts");
            Some(cap.limit.get())
        }
        several => panic!("{several:?}"),
    }
}

fn reaches(spec: PolicySpec, role: &Role, scope: &str) -> bool {
    let policy = Policy::new(spec).unwrap();
    policy.role_allows(role, &Scope::new(scope).unwrap())
}

#[test]
fn no_shipped_profile_contradicts_itself() {
    for spec in shipped() {
        let name = spec.name.clone();
        assert_eq!(Policy::new(spec).map(drop), Ok(()), "{name}");
    }
}

#[test]
fn every_shipped_profile_has_a_name_of_its_own() {
    let names: BTreeSet<_> = shipped().into_iter().map(|spec| spec.name).collect();
    assert_eq!(names.len(), shipped().len());
}

#[test]
fn every_shipped_profile_survives_a_policy_file() {
    for spec in shipped() {
        let file = serde_json::to_string_pretty(&spec).unwrap();
        assert_eq!(serde_json::from_str::<PolicySpec>(&file).unwrap(), spec);
        let policy = Policy::new(spec).unwrap();
        let file = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&file).unwrap(), policy);
    }
}

#[test]
fn every_class_whose_keys_rotate_has_somebody_who_rotates_them() {
    for spec in shipped() {
        for (name, class) in &spec.classes {
            let by_role = !class.rotate.roles.is_empty();
            let rotates = class.rotation != Rotation::None;
            assert!(!rotates || by_role, "{} {name}", spec.name);
        }
    }
}

#[test]
fn in_amplitude_only_managers_and_admins_manage_keys_even_those_they_do_not_own() {
    for class in amplitude().classes.into_values() {
        for access in [class.create, class.update, class.rotate, class.revoke] {
            assert_eq!(access.roles, BTreeSet::from([Role::ADMIN, Role::MANAGER]));
            assert!(!access.owner);
        }
    }
}

#[test]
fn in_amplitude_an_api_key_only_ingests_and_a_secret_key_never_does() {
    let api_key = class(&amplitude(), "api-key");
    assert_eq!(api_key.key_type, KeyType::Publishable);
    assert_eq!(api_key.ceiling, scopes(&["ingest:write"]));
    let secret_key = class(&amplitude(), "secret-key");
    assert_eq!(secret_key.key_type, KeyType::Secret);
    assert_eq!(secret_key.ceiling, scopes(&["project:*"]));
    assert_eq!(secret_key.stage, Some(Stage::new("beta").unwrap()));
}

#[test]
fn in_amplitude_api_keys_are_revoked_and_kept_and_secret_keys_deleted_once_delete_was_typed() {
    let api_key = class(&amplitude(), "api-key");
    let kept = Revocation::Allowed {
        confirm: true,
        keep: None,
    };
    assert_eq!(api_key.revocation, kept);
    assert_eq!(api_key.deletion, Deletion::None);
    let secret_key = class(&amplitude(), "secret-key");
    assert_eq!(secret_key.revocation, Revocation::None);
    assert_eq!(secret_key.deletion, Deletion::Typed("DELETE".to_owned()));
    assert_eq!(secret_key.rotation, Rotation::None);
}

#[test]
fn in_amplitude_the_legacy_key_is_an_api_key_that_rotates_without_grace() {
    let LegacyRule::One { class: name, .. } = amplitude().legacy else {
        panic!("there is a legacy key");
    };
    assert_eq!(name.as_str(), "api-key");
    let rotation = class(&amplitude(), "api-key").rotation;
    assert_eq!(rotation, Rotation::SelfService(Duration::ZERO));
}

#[test]
fn in_amplitude_the_cap_is_50_over_both_classes_and_the_bound_6_hours() {
    assert_eq!(cap(&amplitude()), Some(50));
    let promised = amplitude().propagation.worst_case();
    let second = Duration::from_secs(1);
    assert!(promised <= time::hours(6) && promised > time::hours(6) - second);
}

#[test]
fn in_amplitude_products_each_kind_is_public_and_rotated_as_the_table_says() {
    let table = [
        ("project-api-key", KeyType::Publishable, "no"),
        ("project-secret-key", KeyType::Secret, "support"),
        ("deployment-client", KeyType::Publishable, "yes"),
        ("deployment-server", KeyType::Secret, "yes"),
        ("management-api-key", KeyType::Secret, "yes"),
        ("data-api-token", KeyType::Secret, "yes"),
        ("scim-key", KeyType::Secret, "yes"),
        ("org-api-key", KeyType::Publishable, "support"),
        ("org-secret-key", KeyType::Secret, "support"),
    ];
    let spec = amplitude_products();
    assert_eq!(spec.classes.len(), table.len());
    for (name, key_type, rotated) in table {
        let class = class(&spec, name);
        let rotates = match class.rotation {
            Rotation::None => "no",
            Rotation::SupportOnly(_) => "support",
            Rotation::SelfService(_) => "yes",
        };
        assert_eq!((class.key_type, rotates), (key_type, rotated), "{name}");
    }
}

#[test]
fn in_amplitude_products_public_keys_reach_the_bare_minimum() {
    let reach = |name| class(&amplitude_products(), name).ceiling;
    assert_eq!(reach("project-api-key"), scopes(&["ingest:write"]));
    assert_eq!(reach("deployment-client"), scopes(&["variants:read"]));
    assert_eq!(reach("org-api-key"), scopes(&["organization:identify"]));
}

#[test]
fn in_amplitude_products_analytics_keys_come_with_each_tenant_and_in_no_other_way() {
    let policy = Policy::new(amplitude_products()).unwrap();
    let given: Vec<_> = policy
        .provisioned(&ProvisionOn::Tenant)
        .map(|rule| rule.class.as_str())
        .collect();
    assert_eq!(given, ["project-api-key", "project-secret-key"]);
    for name in given {
        let class = class(policy.spec(), name);
        assert_eq!(class.create, Access::host_only());
        assert_eq!(class.tenant_reach, TenantReach::Own);
    }
}

#[test]
fn in_amplitude_products_the_side_of_a_deployment_decides_the_class_of_its_key() {
    let policy = Policy::new(amplitude_products()).unwrap();
    for (side, prefix_text) in [("client", "client-"), ("server", "server-")] {
        let on = ProvisionOn::Resource(ResourceKind::new(format!("deployment.{side}")).unwrap());
        let rules: Vec<_> = policy.provisioned(&on).collect();
        let [rule] = rules.as_slice() else {
            panic!("one key comes with a deployment");
        };
        assert_eq!(rule.class.as_str(), format!("deployment-{side}"));
        let prefixes = policy.class(&rule.class).unwrap().prefixes.values();
        assert!(prefixes.eq([&prefix(prefix_text)]));
    }
}

#[test]
fn in_amplitude_products_a_server_key_is_ended_only_once_nothing_refers_to_it() {
    let server = class(&amplitude_products(), "deployment-server");
    assert_eq!(server.deletion, Deletion::Unreferenced);
    assert_eq!(server.revocation, Revocation::None);
}

#[test]
fn in_amplitude_products_only_account_wide_kinds_reach_below_their_tenant() {
    let wide: Vec<_> = amplitude_products()
        .classes
        .into_iter()
        .filter(|(_, class)| class.tenant_reach == TenantReach::Descendants)
        .map(|(name, _)| name.to_string())
        .collect();
    let expected = [
        "data-api-token",
        "org-api-key",
        "org-secret-key",
        "scim-key",
    ];
    assert_eq!(wide, expected);
}

#[test]
fn in_amplitude_products_only_support_makes_organisation_keys_and_can_give_them_reach() {
    for name in ["org-api-key", "org-secret-key"] {
        assert!(class(&amplitude_products(), name).create.is_support_only());
    }
    assert!(reaches(amplitude_products(), &Role::SUPPORT, "a:b"));
}

#[test]
fn in_amplitude_products_a_scim_key_needs_the_enterprise_plan() {
    let scim = class(&amplitude_products(), "scim-key");
    assert_eq!(
        scim.entitlement,
        Some(Entitlement::new("enterprise").unwrap())
    );
    assert_eq!(scim.ceiling, scopes(&["users:*"]));
}

#[test]
fn in_amplitude_products_everybody_makes_data_tokens_and_revokes_their_own() {
    let token = class(&amplitude_products(), "data-api-token");
    assert!(token.create.roles.contains(&Role::MEMBER));
    assert!(token.revoke.owner);
}

#[test]
fn in_the_guide_environments_have_prefixes_of_their_own() {
    let expected = BTreeMap::from([
        (Environment::LIVE, prefix("key_live_")),
        (Environment::TEST, prefix("key_test_")),
    ]);
    assert_eq!(class(&guide(), "api-key").prefixes, expected);
}

#[test]
fn in_the_guide_a_revocation_is_confirmed_immediate_and_kept() {
    assert_eq!(guide().propagation, Propagation::IMMEDIATE);
    let class = class(&guide(), "api-key");
    let kept = Revocation::Allowed {
        confirm: true,
        keep: None,
    };
    assert_eq!((class.revocation, class.deletion), (kept, Deletion::None));
}

#[test]
fn in_the_guide_keys_rotate_with_a_grace_expire_and_say_what_they_are_for() {
    let class = class(&guide(), "api-key");
    assert_eq!(class.rotation, Rotation::SelfService(time::days(7)));
    assert_eq!(class.lifetime.default, Some(time::days(90)));
    assert_eq!(class.lifetime.max, None);
    assert!(guide().purpose_required);
}

#[test]
fn in_idenfy_two_keys_exist_at_a_time_and_are_deleted_not_revoked_or_rotated() {
    assert_eq!(cap(&idenfy()), Some(2));
    let class = class(&idenfy(), "api-key");
    assert_eq!(class.key_type, KeyType::Secret);
    assert_eq!(class.deletion, Deletion::Plain);
    assert_eq!(class.revocation, Revocation::None);
    assert_eq!(class.rotation, Rotation::None);
}

#[test]
fn in_yugabytedb_only_admins_manage_keys_not_even_their_owner() {
    let class = class(&yugabytedb(), "api-key");
    for access in [class.create, class.update, class.rotate, class.revoke] {
        assert_eq!(access.roles, BTreeSet::from([Role::ADMIN]));
        assert!(!access.owner);
    }
}

#[test]
fn in_yugabytedb_keys_may_live_for_ever_and_are_revoked_and_kept() {
    let class = class(&yugabytedb(), "api-key");
    assert_eq!(class.lifetime, Lifetime::default());
    let kept = Revocation::Allowed {
        confirm: false,
        keep: None,
    };
    assert_eq!((class.revocation, class.deletion), (kept, Deletion::None));
}

#[test]
fn in_yugabytedb_a_developer_reaches_nothing_of_an_admin() {
    for scope in [
        "clusters:write",
        "networks:read",
        "backups:create",
        "databases:read",
    ] {
        assert!(reaches(yugabytedb(), &Role::DEVELOPER, scope), "{scope}");
    }
    for scope in [
        "account:read",
        "users:write",
        "billing:read",
        "keys:create",
        "*:*",
    ] {
        assert!(!reaches(yugabytedb(), &Role::DEVELOPER, scope), "{scope}");
        assert!(reaches(yugabytedb(), &Role::ADMIN, scope), "{scope}");
    }
}
