//! The keys of several products of one company, by product (seed 001).

use std::collections::{BTreeMap, BTreeSet};

use super::{class_name, entitlement, key_name, policy_name, prefix, resource_kind, scopes};
use crate::core::policy::{
    Access, ActiveKeyCap, Deletion, KeyClass, LegacyRule, PolicySpec, Propagation, ProvisionRule,
    Revocation, Rotation, TenantReach, Trigger,
};
use crate::core::scope::ScopeSet;
use crate::core::text::Role;

/// The keys of an organisation's products. A tenant is a project, and an organisation is the tenant
/// above its projects; keys for a whole organisation or account are created there.
///
/// | Class | Prefix | Public | Rotated | Ends by | Reaches |
/// |---|---|---|---|---|---|
/// | `project-api-key` | `project_` | yes | no | support | `ingest:write` |
/// | `project-secret-key` | `secret_` | no | support | support | `project:*` |
/// | `deployment-client` | `client-` | yes | yes | deletion | `variants:read` |
/// | `deployment-server` | `server-` | no | yes | deletion, if unreferenced | `variants:read` |
/// | `management-api-key` | `management_` | no | yes | deletion | `flags:*`, `experiments:*` |
/// | `data-api-token` | `data_` | no | yes | revocation | what its owner may do, all projects |
/// | `scim-key` | `scim_` | no | yes | revocation | `users:*`, all projects |
/// | `org-api-key` | `org_api_` | see below | support | support | `organization:identify` |
/// | `org-secret-key` | `org_secret_` | no | support | support | everything, all projects |
///
/// - Both project keys come with each tenant, belong to it, and are made in no other way (A2-09 to
///   A2-16). Whoever provisions must reach `project:*`, since the secret is shown to them: have the
///   host do it, or an admin. The organisation gets the two as well; they work in no project.
/// - A deployment's key comes with it (A2-21, A2-22): name the resource `deployment.client` or
///   `deployment.server`. More can be created by hand (A2-23 to A2-29). An old server key keeps
///   working for 90 days after a rotation, since the change over is ended by deleting it (A2-28).
///   Neither these nor management keys are revoked: that would go round the references.
/// - A token for the data product does what its owner may do at that moment, in every project
///   (A2-17 to A2-20). Any of the roles creates its own.
/// - SCIM keys need the entitlement `enterprise` (A2-38 to A2-41).
/// - Organisation keys are a pair, made, rotated and ended by support only (A2-34 to A2-37): the
///   table of the document has one row for both, which makes a ninth class here. The pair is
///   verified together and the secret key's scopes apply. The API key is publishable, since it
///   identifies and never authenticates: by itself it reaches nothing but `organization:identify`.
///   The row calls the pair private (A2-08): the half that gives access is, and the customer is to
///   keep the other to themselves.
///
/// Roles: `admin` and `support` reach everything, `developer` everything but users and the
/// organisation, `member` reads the same. Admins and support administer tenants and owners, so
/// that what support makes can belong to the organisation and not to a person who leaves. No cap;
/// no legacy key; a revocation holds everywhere within 10 seconds.
#[must_use]
pub fn amplitude_products() -> PolicySpec {
    let provision = |on, class, name, reach: &[&'static str]| ProvisionRule {
        on,
        class: class_name(class),
        name: key_name(name),
        scopes: scopes(reach),
    };
    let deployment = |side| Trigger::Resource(resource_kind(side));
    PolicySpec {
        name: policy_name("amplitude-products"),
        classes: classes(),
        default_class: class_name("management-api-key"),
        roles: BTreeMap::from([
            (Role::ADMIN, ScopeSet::all()),
            (Role::SUPPORT, ScopeSet::all()),
            (
                Role::DEVELOPER,
                scopes(&[
                    "data:*",
                    "experiments:*",
                    "flags:*",
                    "ingest:*",
                    "project:*",
                    "variants:*",
                ]),
            ),
            (
                Role::MEMBER,
                scopes(&[
                    "data:read",
                    "experiments:read",
                    "flags:read",
                    "project:read",
                    "variants:read",
                ]),
            ),
        ]),
        administrators: BTreeSet::from([Role::ADMIN, Role::SUPPORT]),
        auditors: BTreeSet::new(),
        active_keys: ActiveKeyCap::Unlimited,
        legacy: LegacyRule::None,
        provision: vec![
            provision(
                Trigger::Tenant,
                "project-api-key",
                "Project API Key",
                &["ingest:write"],
            ),
            provision(
                Trigger::Tenant,
                "project-secret-key",
                "Project Secret Key",
                &["project:*"],
            ),
            provision(
                deployment("deployment.client"),
                "deployment-client",
                "Deployment Key (client-side)",
                &["variants:read"],
            ),
            provision(
                deployment("deployment.server"),
                "deployment-server",
                "Deployment Key (server-side)",
                &["variants:read"],
            ),
        ],
        first_use_wait: Rotation::DEFAULT_WAIT,
        propagation: Propagation::default(),
        purpose_required: false,
    }
}

fn classes() -> BTreeMap<crate::core::text::ClassName, KeyClass> {
    let builders = [Role::ADMIN, Role::DEVELOPER];
    let everybody = [Role::ADMIN, Role::DEVELOPER, Role::MEMBER];
    let project_api_key = KeyClass {
        rotation: Rotation::None,
        ..supported(
            Access::host_only(),
            KeyClass::publishable(prefix("project_"), scopes(&["ingest:write"]), []),
        )
    };
    let project_secret_key = supported(
        Access::host_only(),
        KeyClass::secret(prefix("secret_"), scopes(&["project:*"]), []),
    );
    let deployment_client = deleted(
        Deletion::Plain,
        KeyClass::publishable(
            prefix("client-"),
            scopes(&["variants:read"]),
            builders.clone(),
        ),
    );
    let deployment_server = KeyClass {
        rotation: Rotation::SelfService(Rotation::MAX_GRACE),
        ..deleted(
            Deletion::Unreferenced,
            KeyClass::secret(
                prefix("server-"),
                scopes(&["variants:read"]),
                builders.clone(),
            ),
        )
    };
    let management_api_key = deleted(
        Deletion::Plain,
        KeyClass::secret(
            prefix("management_"),
            scopes(&["experiments:*", "flags:*"]),
            builders,
        ),
    );
    let data_api_token = KeyClass {
        deletion: Deletion::None,
        create: Access::roles(everybody),
        tenant_reach: TenantReach::Below,
        ..KeyClass::secret(prefix("data_"), ScopeSet::all(), [Role::ADMIN])
    };
    let scim_key = KeyClass {
        deletion: Deletion::None,
        tenant_reach: TenantReach::Below,
        entitlement: Some(entitlement("enterprise")),
        ..KeyClass::secret(prefix("scim_"), scopes(&["users:*"]), [Role::ADMIN])
    };
    let org_api_key = KeyClass {
        tenant_reach: TenantReach::Below,
        ..supported(
            Access::support_only(),
            KeyClass::publishable(prefix("org_api_"), scopes(&["organization:identify"]), []),
        )
    };
    let org_secret_key = KeyClass {
        tenant_reach: TenantReach::Below,
        ..supported(
            Access::support_only(),
            KeyClass::secret(prefix("org_secret_"), ScopeSet::all(), []),
        )
    };
    BTreeMap::from([
        (class_name("project-api-key"), project_api_key),
        (class_name("project-secret-key"), project_secret_key),
        (class_name("deployment-client"), deployment_client),
        (class_name("deployment-server"), deployment_server),
        (class_name("management-api-key"), management_api_key),
        (class_name("data-api-token"), data_api_token),
        (class_name("scim-key"), scim_key),
        (class_name("org-api-key"), org_api_key),
        (class_name("org-secret-key"), org_secret_key),
    ])
}

/// What customers cannot change: only support updates, rotates and revokes, and nobody deletes.
fn supported(create: Access, class: KeyClass) -> KeyClass {
    KeyClass {
        rotation: Rotation::SupportOnly(Rotation::DEFAULT_GRACE),
        deletion: Deletion::None,
        create,
        look: Access::roles([Role::ADMIN, Role::DEVELOPER, Role::SUPPORT]),
        update: Access::support_only(),
        rotate: Access::support_only(),
        revoke: Access::support_only(),
        ..class
    }
}

/// What is deleted and not revoked.
fn deleted(deletion: Deletion, class: KeyClass) -> KeyClass {
    KeyClass {
        revocation: Revocation::None,
        deletion,
        ..class
    }
}
