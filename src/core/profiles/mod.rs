//! Ready policies: one to start from, and one for each of the systems that this project studied.
//!
//! Each is a JSON document in this folder, in the format of any policy file, so it is an example too. The
//! profiles are never merged: they contradict each other on purpose. To change one, edit the returned
//! [`PolicySpec`] or a copy of its document, then check the result with [`Policy::new`].

use super::policy::{Policy, PolicySpec};

impl Default for Policy {
    /// The [`standard`] profile.
    fn default() -> Self {
        Self::new(standard()).expect("the standard profile is a valid policy")
    }
}

/// Returns the policy to start from: secret keys (class `secret`: `sk_live_`, `sk_test_`) and publishable
/// keys (class `publishable`: `pk_live_`, `pk_test_`), each in the environments `live` and `test`.
///
/// Admins and developers create keys; they, and each key's owner, rotate and revoke them. A tenant has up
/// to 100 active keys and no legacy key. Revoked keys are never purged. A revocation holds everywhere
/// within 10 seconds. Roles: `admin` and `developer` reach everything, `member` reads (`*:read`). Only
/// admins administer tenants and owners.
#[must_use]
pub fn standard() -> PolicySpec {
    shipped(include_str!("standard.json"))
}

/// Returns the policy of a self-service page for a project's API keys and secret keys (seed 000), managed
/// by managers and admins. The tenant is the project.
///
/// - `api-key` (`api_`, publishable) names the project that data is sent to, and does nothing else
///   (`ingest:write`; A1-08, A1-14). It is revoked after a confirmation, never purged and never deleted
///   (A1-15 to A1-17). A rotation has no grace, so the old value ends within the bound (A1-12).
/// - `secret-key` (`secret_`, stage `beta`: A1-28) reads and changes the project (`project:*`; A1-18). It is
///   deleted after `DELETE` was typed (A1-22, A1-23), and ends in no easier way. It is not rotated: the
///   document replaces a key by generating another one and deleting the first.
///
/// The document lets people "create, revoke, or delete both" kinds (A1-01) and then gives each kind one way
/// to end. So does this policy, because a second way would bypass what the first one keeps or asks for.
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

/// Returns the policy for the keys of several products of one organisation (seed 001). A tenant is a
/// project, and an organisation is the tenant above its projects. Keys for a whole organisation or account
/// are created there.
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
/// - Both project keys come with each tenant, belong to it, and are created in no other way (A2-09 to
///   A2-16). The actor that provisions must reach `project:*`, because it sees the secret: use the host or
///   an admin. The organisation gets both keys as well; they work in no project.
/// - A deployment's key comes with the deployment (A2-21, A2-22): name the resource `deployment.client` or
///   `deployment.server`. More can be created by hand (A2-23 to A2-29). An old server key keeps working for
///   90 days after a rotation, because deleting it ends the change over (A2-28). Neither these keys nor
///   management keys are revoked: a revocation would bypass the references.
/// - A token for the data product does what its owner may do at that moment, in every project (A2-17 to
///   A2-20). Each of the roles creates its own.
/// - SCIM keys need the entitlement `enterprise` (A2-38 to A2-41).
/// - Organisation keys are a pair, created, rotated and ended by support only (A2-34 to A2-37). The table of
///   the document has one row for both, which makes a ninth class here. The pair is verified together and
///   the secret key's scopes apply. The API key is publishable, because it identifies and never
///   authenticates: alone it reaches only `organization:identify`. The row calls the pair private (A2-08):
///   the half that gives access is, and customers are asked not to publish the other half.
///
/// Roles: `admin` and `support` reach everything, `developer` everything but users and the organisation,
/// `member` reads the same. Admins and support administer tenants and owners, so that keys created by
/// support can belong to the organisation and not to a person who leaves. No cap; no legacy key; a
/// revocation holds everywhere within 10 seconds.
#[must_use]
pub fn amplitude_products() -> PolicySpec {
    shipped(include_str!("amplitude_products.json"))
}

/// Returns the advice of a vendor-neutral guide to API keys (seed 002), as rules: secret keys (class
/// `api-key`) in the environments `live` (`key_live_`) and `test` (`key_test_`), so that neither passes for
/// the other (G-36).
///
/// - A revocation must be confirmed, holds everywhere immediately, and is final. The key stays in the list
///   and is never deleted (G-03, G-20 to G-24). Verify with
///   [`verify_or_fetch`](crate::Keyward::verify_or_fetch), which asks a remote store each time.
/// - An actor that manages a key rotates it. The old key works beside the new one for 7 days unless the
///   command names another grace, and ends earlier if the rotation is finished (G-12 to G-19). 7 days is a
///   judgement: the guide says "gradually".
/// - Keys live for 90 days unless their creator names another end, so that rotation is a habit and an end
///   to check exists (G-07, G-34). 90 days is a judgement; there is no maximum.
/// - Every key states its purpose (G-38): the guide advises it, this profile requires it. Set
///   `purpose_required` to false to advise only.
/// - A key has only the scopes that it is given (G-37); the class allows any.
///
/// Admins and developers create keys; they, and each key's owner, rotate and revoke them. Roles: `admin`
/// and `developer` reach everything, `member` reads (`*:read`). Only admins administer tenants and owners,
/// and remove unused keys in bulk (G-33). No cap; no legacy key.
#[must_use]
pub fn guide() -> PolicySpec {
    shipped(include_str!("guide.json"))
}

/// Returns the policy of an account's API keys, at most two at the same time (seed 003). Each is a key id
/// and a secret that is shown once (class `api-key`, `key_`; I-02, I-04): verify the two as a pair, or the
/// secret alone.
///
/// Up to 2 active keys at the same time, and any number over time (I-05 to I-07). Keys are deleted for good,
/// by a click; they are not revoked (I-08 to I-10). They are not rotated either: the document has creation
/// and deletion only, and a third key in its grace would break "only 2 at the same time".
///
/// Where the document is silent, this profile is like [`standard`]: admins and developers create keys; they,
/// and each key's owner, delete them; both roles reach everything; only admins administer tenants and
/// owners; a deletion holds everywhere within 10 seconds.
#[must_use]
pub fn idenfy() -> PolicySpec {
    shipped(include_str!("idenfy.json"))
}

/// Returns the policy of an account's API keys (class `api-key`, `yb_`; seed 004), bearer tokens that do
/// what their creator may do.
///
/// Only admins create, change and revoke keys; a key's creator who is no longer an admin does not (Y-03,
/// Y-07, Y-08). A key expires when its creator says, or never, which is the default (Y-16, Y-17). Revoked
/// keys stay in the list and are never deleted. A lost or compromised key is revoked and another one
/// created (Y-05, Y-20), so there is no rotation.
///
/// A key does what its creator may do at that moment (Y-23 to Y-26). Roles: `admin` reaches everything.
/// `developer` reaches `backups:*`, `clusters:*`, `databases:*` and `networks:*`. Scopes only add, so all
/// other scopes need an admin, by convention `account:*`, `billing:*`, `keys:*` and `users:*`. Name the
/// scopes of your own API likewise.
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
