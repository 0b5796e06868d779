use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::core::profiles::standard;
use crate::core::text::{ResourceId, ResourceKind};

fn policy() -> Policy {
    let mut spec = standard();
    let role = |name: &str| Role::new(name).unwrap();
    let set = |scopes: &[&'static str]| ScopeSet::parse(scopes.iter().copied()).unwrap();
    // Neither `reader` nor `reporter` contains the other. Both contain `clerk`.
    spec.roles.insert(role("reader"), set(&["*:read"]));
    spec.roles.insert(role("reporter"), set(&["reports:*"]));
    spec.roles.insert(role("clerk"), set(&["reports:read"]));
    spec.auditors.insert(role("reporter"));
    Policy::new(spec).unwrap()
}

fn roles() -> impl Strategy<Value = BTreeSet<Role>> {
    const NAMES: [&str; 8] = [
        "admin",
        "developer",
        "member",
        "reader",
        "reporter",
        "clerk",
        "support",
        "other",
    ];
    let role = select(&NAMES[..]).prop_map(|name| Role::new(name).unwrap());
    btree_set(role, 0..3)
}

fn scope_sets() -> impl Strategy<Value = ScopeSet> {
    const SCOPES: [&str; 6] = [
        "*:*",
        "reports:*",
        "*:read",
        "reports:read",
        "users:read",
        "users:write",
    ];
    vec(select(&SCOPES[..]), 0..3).prop_map(|scopes| ScopeSet::parse(scopes).unwrap())
}

fn networks() -> impl Strategy<Value = AddressAllowlist> {
    const NETWORKS: [&str; 5] = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3",
        "2001:db8::/32",
    ];
    vec(select(&NETWORKS[..]), 0..3).prop_map(|list| AddressAllowlist::parse(list).unwrap())
}

fn tenants() -> impl Strategy<Value = Tenants> {
    const PATHS: [&str; 4] = ["acme", "acme/web", "acme/web/eu", "acme-two"];
    (select(&PATHS[..]), any::<bool>()).prop_map(|(path, descendants)| Tenants {
        path: TenantId::new(path).unwrap(),
        descendants,
    })
}

fn classes() -> impl Strategy<Value = Classes> {
    let class = select(&["secret", "publishable", "wide"][..]);
    let some = btree_set(class.prop_map(|name| ClassName::new(name).unwrap()), 0..3);
    prop_oneof![1 => Just(Classes::All), 4 => some.prop_map(Classes::These)]
}

fn reaches() -> impl Strategy<Value = EffectiveReach> {
    let environment = select(&["live", "test"][..]).prop_map(|e| Environment::new(e).unwrap());
    let resource = select(&["a", "b"][..]).prop_map(|id| Resource {
        kind: ResourceKind::new("deployment").unwrap(),
        id: ResourceId::new(id).unwrap(),
    });
    let instant = select(&[1_u32, 2, 3][..])
        .prop_map(|s| Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(s.into())));
    let some_of = (
        prop::option::of(instant),
        prop::option::of(environment),
        prop::option::of(resource),
    );
    let key_type = prop_oneof![Just(KeyType::Secret), Just(KeyType::Publishable)];
    let propagation = select(&[0_u64, 10, 60][..]).prop_map(Duration::from_secs);
    let rest = (tenants(), networks(), key_type, classes(), propagation);
    (scope_sets(), roles(), some_of, rest).prop_map(|(scopes, roles, some_of, rest)| {
        let (until, environment, resource) = some_of;
        let (tenants, addresses, key_type, classes, propagation) = rest;
        EffectiveReach {
            scopes,
            role: RoleReach::of(&roles, &policy()),
            until,
            renewable_until: until,
            tenants,
            environment,
            resource,
            addresses,
            key_type,
            classes,
            propagation,
        }
    })
}

/// Generates three reaches that share many dimensions, because independent random reaches are rarely
/// comparable.
fn neighbours() -> impl Strategy<Value = (EffectiveReach, EffectiveReach, EffectiveReach)> {
    (
        reaches(),
        reaches(),
        reaches(),
        0_u32..1 << 10,
        0_u32..1 << 10,
    )
        .prop_map(|(a, b, c, from_b, from_c)| {
            let b = mixed(&a, &b, from_b);
            let c = mixed(&b, &c, from_c & from_b.rotate_left(3));
            (a, b, c)
        })
}

fn mixed(one: &EffectiveReach, other: &EffectiveReach, which: u32) -> EffectiveReach {
    fn pick<T: Clone>(one: &T, other: &T, which: u32, bit: u32) -> T {
        if which >> bit & 1 == 0 {
            one.clone()
        } else {
            other.clone()
        }
    }
    EffectiveReach {
        scopes: pick(&one.scopes, &other.scopes, which, 0),
        role: pick(&one.role, &other.role, which, 1),
        until: pick(&one.until, &other.until, which, 2),
        renewable_until: pick(&one.renewable_until, &other.renewable_until, which, 2),
        tenants: pick(&one.tenants, &other.tenants, which, 3),
        environment: pick(&one.environment, &other.environment, which, 4),
        resource: pick(&one.resource, &other.resource, which, 5),
        addresses: pick(&one.addresses, &other.addresses, which, 6),
        key_type: pick(&one.key_type, &other.key_type, which, 7),
        classes: pick(&one.classes, &other.classes, which, 8),
        propagation: pick(&one.propagation, &other.propagation, which, 9),
    }
}

fn within(a: &EffectiveReach, b: &EffectiveReach) -> bool {
    a.excess(b).is_none()
}

proptest! {
    #[test]
    fn a_reach_is_within_itself(a in reaches()) {
        prop_assert!(within(&a, &a));
    }

    #[test]
    fn what_is_within_what_is_within_a_third_is_within_the_third((a, b, c) in neighbours()) {
        for (a, b, c) in [(&a, &b, &c), (&b, &a, &c), (&c, &b, &a), (&a, &c, &b)] {
            if within(a, b) && within(b, c) {
                prop_assert!(within(a, c), "{a:?}\n{b:?}\n{c:?}");
            }
        }
    }

    /// Two reaches that are within each other give the same result against any third reach, even if their
    /// fields differ.
    #[test]
    fn two_that_are_within_each_other_compare_alike((a, b, c) in neighbours()) {
        if within(&a, &b) && within(&b, &a) {
            prop_assert_eq!(a.excess(&c), b.excess(&c));
            prop_assert_eq!(c.excess(&a), c.excess(&b));
        }
    }

    /// Adding a role to a bound never widens the reach.
    #[test]
    fn more_roles_in_a_bound_never_allow_more(fewer in roles(), more in roles()) {
        prop_assume!(!fewer.is_empty());
        let all: BTreeSet<_> = fewer.union(&more).cloned().collect();
        let policy = policy();
        prop_assert!(RoleReach::of(&all, &policy).is_within(&RoleReach::of(&fewer, &policy)));
    }

    /// The functions `reaches` and `scopes` agree on every scope of a key.
    #[test]
    fn a_key_reaches_a_scope_if_its_scopes_say_so(
        own in scope_sets(),
        bound in roles(),
        live in roles(),
        persons in any::<bool>(),
    ) {
        let policy = policy();
        let class = policy.spec().classes.values().next().unwrap();
        let owner_status = OwnerStatus { roles: live.into_iter().collect(), ..OwnerStatus::default() };
        let bounds = Bounds { scopes: &own, persons, bound: &bound };
        let all = scopes(bounds, &policy, class, &owner_status);
        for scope in ["reports:read", "reports:write", "users:read", "users:write", "other:other"] {
            let scope = Scope::new(scope).unwrap();
            let one = super::reaches(bounds, &policy, class, &owner_status, &scope);
            prop_assert_eq!(one, all.allows(&scope), "{} of {:?}", scope, all);
        }
    }
}

/// Compares the smallest reach with reaches that exceed it in exactly one dimension each.
#[test]
fn each_dimension_is_compared_by_itself() {
    let policy = policy();
    let least = EffectiveReach {
        scopes: Scope::new("reports:read").unwrap().into(),
        role: RoleReach::of(&[Role::MEMBER], &policy),
        until: Some(Timestamp::UNIX_EPOCH),
        renewable_until: Some(Timestamp::UNIX_EPOCH),
        tenants: Tenants {
            path: TenantId::new("acme/web").unwrap(),
            descendants: false,
        },
        environment: Some(Environment::TEST),
        resource: Some(Resource {
            kind: ResourceKind::new("deployment").unwrap(),
            id: ResourceId::new("a").unwrap(),
        }),
        addresses: AddressAllowlist::parse(["10.0.0.0/8"]).unwrap(),
        key_type: KeyType::Publishable,
        classes: Classes::These(BTreeSet::from([ClassName::new("secret").unwrap()])),
        propagation: Duration::ZERO,
    };
    let most = EffectiveReach {
        role: RoleReach::of(&[Role::ADMIN], &policy),
        ..EffectiveReach::unlimited(&TenantId::new("acme").unwrap())
    };
    assert_eq!(least.excess(&most), None);
    let dimensions = [
        Dimension::Scopes,
        Dimension::Role,
        Dimension::Lifetime,
        Dimension::Tenants,
        Dimension::Environment,
        Dimension::Resource,
        Dimension::Addresses,
        Dimension::KeyType,
        Dimension::Class,
        Dimension::Propagation,
    ];
    for (bit, dimension) in dimensions.into_iter().enumerate() {
        let wider = mixed(&least, &most, 1 << bit);
        assert_eq!(wider.excess(&least), Some(dimension));
        assert_eq!(least.excess(&wider), None, "{dimension}");
    }
}

#[test]
fn an_own_tenant_key_exceeds_neither_itself_nor_its_tenant_alone() {
    let own = |path: &str, descendants| Tenants {
        path: TenantId::new(path).unwrap(),
        descendants,
    };
    assert!(own("acme/web", true).is_within(&own("acme", true)));
    assert!(!own("acme", true).is_within(&own("acme", false)));
    assert!(!own("acme/web", false).is_within(&own("acme", false)));
    assert!(!own("acme-two", false).is_within(&own("acme", true)));
}

#[test]
fn a_network_that_several_only_cover_together_is_not_within_them() {
    let list = |entries: &[&'static str]| AddressAllowlist::parse(entries.iter().copied()).unwrap();
    assert!(list(&["10.1.0.0/16"]).is_within(&list(&["10.0.0.0/8"])));
    assert!(!list(&["10.0.0.0/8"]).is_within(&list(&["10.0.0.0/9", "10.128.0.0/9"])));
    assert!(
        !list(&[]).is_within(&list(&["0.0.0.0/0", "::/0"])),
        "an empty list allows all"
    );
    assert!(list(&["10.0.0.0/8"]).is_within(&list(&[])));
}

#[test]
fn roles_that_the_policy_does_not_name_and_no_roles_may_do_nothing() {
    let policy = policy();
    let unknown = RoleReach::of(&[Role::new("other").unwrap()], &policy);
    assert_eq!(unknown, RoleReach::default());
    assert_eq!(RoleReach::of(&[], &policy), RoleReach::default());
    let with_admin = RoleReach::of(&[Role::ADMIN, Role::new("other").unwrap()], &policy);
    assert_eq!(with_admin, RoleReach::default(), "all of them must allow");
}

#[test]
fn a_key_acts_with_no_role_if_nobody_owns_it_or_its_owner_has_none() {
    let bound = BTreeSet::from([Role::ADMIN]);
    let owner_status = |roles: &[Role]| OwnerStatus {
        roles: roles.to_vec(),
        ..OwnerStatus::default()
    };
    let alice = Owner::Principal("alice".try_into().unwrap());
    assert!(roles_of(&Owner::Tenant, &bound, &owner_status(&[Role::ADMIN])).is_empty());
    assert!(roles_of(&alice, &bound, &owner_status(&[])).is_empty());
    let both = roles_of(&alice, &bound, &owner_status(&[Role::MEMBER]));
    assert_eq!(both, BTreeSet::from([Role::ADMIN, Role::MEMBER]));
}
