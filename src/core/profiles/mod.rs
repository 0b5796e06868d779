//! Ready policies: one to start from, and one for each of the systems that this project studied.
//!
//! Each profile is a JSON document in this folder, in the format of a policy file, so that it also serves as
//! an example. The profiles are never merged: they contradict each other on purpose. To change a profile,
//! edit the returned [`PolicySpec`] or a copy of the document, then check the result with [`Policy::new`].

use super::policy::{Policy, PolicySpec};

impl Default for Policy {
    /// Returns the policy of the [`standard`] profile.
    fn default() -> Self {
        Self::new(standard()).expect("the standard profile is a valid policy")
    }
}

/// Returns the policy to start from: secret keys (class `secret`: `sk_live_`, `sk_test_`) and publishable
/// keys (class `publishable`: `pk_live_`, `pk_test_`), each in the environments `live` and `test`.
///
/// Admins and developers create keys. Admins, developers and each key's owner rotate and revoke keys. A
/// tenant has up to 100 active keys and no legacy key. Revoked keys are never purged. A revocation holds
/// everywhere within 10 seconds. Roles: `admin` and `developer` reach everything, `member` reads (`*:read`).
/// Only admins administer tenants and owners.
#[must_use]
pub fn standard() -> PolicySpec {
    shipped(include_str!("standard.json"))
}

/// Returns the policy of a self-service page for a project's API keys and secret keys (seed 000), managed
/// by managers and admins. The tenant is the project.
///
/// - `api-key` (`api_`, publishable) names the project that data is sent to, and does nothing else
///   (`ingest:write`; A1-08, A1-14). It is revoked after a confirmation, never purged and never deleted
///   (A1-15 to A1-17). A rotation has no grace, so the old key ends within the bound (A1-12).
/// - `secret-key` (`secret_`, stage `beta`: A1-28) reads and changes the project (`project:*`; A1-18). It
///   ends only by deletion, after a person typed `DELETE` (A1-22, A1-23). It is not rotated: in the document,
///   people generate another key and delete the first.
///
/// The document lets people "create, revoke, or delete both" kinds (A1-01), and then gives each kind one way
/// to end. This policy does the same, because a second way would bypass the record or the confirmation of the
/// first.
///
/// Only managers and admins look at, create, change, rotate and end keys, including those of another owner
/// (A1-01). Every project has a legacy key of class `api-key` (A1-09 to A1-12). A project has up to 50
/// active keys over both classes, including the legacy key (A1-24). A revocation holds everywhere within 6
/// hours (A1-26, A1-27): the bound of 21,578 seconds is the longest one whose
/// [worst case](crate::policy::Propagation::worst_case) keeps that promise on a slow clock. Roles: `admin`
/// and `manager` reach everything, `member` reads (`project:read`). Only admins administer tenants and
/// owners: a project is provisioned before its managers create keys.
#[must_use]
pub fn amplitude() -> PolicySpec {
    shipped(include_str!("amplitude.json"))
}

/// Returns the policy for the keys of several products of one organisation (seed 001). A tenant is a project,
/// and an organisation is the tenant above its projects. Keys for a whole organisation or account are created
/// in the organisation's tenant.
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
/// - Each tenant is provisioned with both project keys. They belong to the tenant and are created in no other
///   way (A2-09 to A2-16). The provisioning actor must reach `project:*`, because it receives the secret: use
///   the host or an admin. The organisation's tenant gets both keys too, but these work in no project.
/// - A deployment is provisioned with its key (A2-21, A2-22): name the resource kind `deployment.client` or
///   `deployment.server`. More deployment keys can be created by hand (A2-23 to A2-29). An old server key
///   keeps working for 90 days after a rotation, because its deletion completes the rotation (A2-28).
///   Deployment keys and management keys are never revoked: a revocation would bypass the references.
/// - A data API token does what its owner may do at that moment, in every project (A2-17 to A2-20). Admins,
///   developers and members create their own tokens.
/// - SCIM keys need the entitlement `enterprise` (A2-38 to A2-41).
/// - Organisation keys come in pairs, which only support creates, rotates and ends (A2-34 to A2-37). The
///   document's table has one row for the pair. This profile has one class for each half, so it has nine
///   classes. The pair is verified together, and the scopes of the secret key apply. The API key is
///   publishable, because it identifies and never authenticates: alone it reaches only
///   `organization:identify`. The table calls the pair private (A2-08). Only the secret half is; customers
///   are asked not to publish the other half.
///
/// Roles: `admin` and `support` reach everything, `developer` everything but users and the organisation,
/// `member` reads the same. Admins and support administer tenants and owners, so that keys created by
/// support can belong to the organisation and not to a person who leaves. No cap; no legacy key; a
/// revocation holds everywhere within 10 seconds.
#[must_use]
pub fn amplitude_products() -> PolicySpec {
    shipped(include_str!("amplitude_products.json"))
}

/// Returns the policy that turns the advice of a vendor-neutral guide to API keys (seed 002) into rules. Its
/// secret keys (class `api-key`) are for the environments `live` (`key_live_`) and `test` (`key_test_`). No
/// key of one environment passes for a key of the other (G-36).
///
/// - A revocation must be confirmed, holds everywhere immediately, and is final. The key stays in the list
///   and is never deleted (G-03, G-20 to G-24). Verify with
///   [`verify_or_fetch`](crate::Keyward::verify_or_fetch), which asks a remote store each time.
/// - An actor that manages a key rotates it. The old key works beside the new one for 7 days unless the
///   command names another grace, and ends earlier if the rotation is finished (G-12 to G-19). 7 days is a
///   judgement: the guide says "gradually".
/// - Keys live for 90 days unless their creator names another end. Rotation becomes a habit, and there is an
///   end to check (G-07, G-34). 90 days is a judgement; there is no maximum.
/// - Every key states its purpose (G-38): the guide advises it, this profile requires it. Set
///   `purpose_required` to false to make the purpose optional.
/// - A key has only the scopes that it is given (G-37); the class allows any.
///
/// Admins and developers create keys. Admins, developers and each key's owner rotate and revoke keys. Roles:
/// `admin` and `developer` reach everything, `member` reads (`*:read`). Only admins administer tenants and
/// owners, and remove unused keys in bulk (G-33). No cap; no legacy key.
#[must_use]
pub fn guide() -> PolicySpec {
    shipped(include_str!("guide.json"))
}

/// Returns the policy of an account's API keys, at most two at the same time (seed 003). An API key (class
/// `api-key`, `key_`) consists of a key id and a secret that is shown once (I-02, I-04). Verify the two as a
/// pair, or the secret alone.
///
/// Up to 2 keys are active at the same time, and the number over time is unlimited (I-05 to I-07). Keys are
/// permanently deleted with one click, and never revoked (I-08 to I-10). Keys are not rotated either: the
/// document has creation and deletion only. An old key in its grace would be a third key and break "only 2 at
/// the same time".
///
/// Like [`standard`] in all that the document does not mention. Admins and developers create keys and
/// reach everything. Admins, developers and each key's owner delete keys. Only admins administer tenants and
/// owners. A deletion holds everywhere within 10 seconds.
#[must_use]
pub fn idenfy() -> PolicySpec {
    shipped(include_str!("idenfy.json"))
}

/// Returns the policy of an account's API keys (class `api-key`, `yb_`; seed 004), bearer tokens that do
/// what their creator may do.
///
/// Only admins create, change and revoke keys; a key's creator who is no longer an admin may not (Y-03, Y-07,
/// Y-08). A key expires at an instant that its creator sets. By default it never expires (Y-16, Y-17).
/// Revoked keys stay in the list and are never deleted. For a lost or compromised key, an admin revokes the
/// key and creates another (Y-05, Y-20), so there is no rotation.
///
/// A key does what its creator may do at that moment (Y-23 to Y-26). Roles: `admin` reaches everything.
/// `developer` reaches `backups:*`, `clusters:*`, `databases:*` and `networks:*`. Scopes only add, so all
/// other scopes need an admin, by convention `account:*`, `billing:*`, `keys:*` and `users:*`. Name the
/// scopes of your own API in the same way.
///
/// The document is silent about the rest: no cap, no legacy key, no confirmation, and a revocation holds
/// everywhere within 10 seconds. Only admins administer tenants and owners.
#[must_use]
pub fn yugabytedb() -> PolicySpec {
    shipped(include_str!("yugabytedb.json"))
}

/// Reads a document of this folder, as a host reads its own policy file.
fn shipped(document: &'static str) -> PolicySpec {
    serde_json::from_str(document).expect("every document of this folder is a policy file")
}

#[cfg(test)]
mod tests;
