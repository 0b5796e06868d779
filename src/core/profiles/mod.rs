//! Ready-made policies: one to start from, and one for each of the systems that this project studied.
//!
//! Each profile is a JSON document in this folder, in the format of a policy file, so it also serves as an
//! example. The profiles contradict each other on purpose, and are never merged. To change a profile, edit
//! the returned [`PolicySpec`] or a copy of the JSON document, then check the result with [`Policy::new`]. For
//! classes of your own, start from [`PolicySpec::new`].
//!
//! In the text of a profile, "the document" is the description of the system that the profile follows.

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
/// tenant has up to 100 active keys and no legacy key. Revoked keys are never purged. A revocation takes
/// effect everywhere within 10 seconds. The roles `admin` and `developer` reach everything, `member` reads
/// (`*:read`). Only admins administer tenants and owners.
#[must_use]
pub fn standard() -> PolicySpec {
    shipped(include_str!("standard.json"))
}

/// Returns the policy of a self-service page for a project's API keys and secret keys. Managers and admins
/// manage the keys. The tenant is the project.
///
/// - `api-key` (`api_`, publishable) identifies the project that data is sent to, and does nothing else
///   (`ingest:write`). It is revoked after a confirmation, never purged and never deleted. A rotation has no
///   grace, so the old key ends within the staleness bound.
/// - `secret-key` (`secret_`, stage `beta`) reads and changes the project (`project:*`). It ends only by
///   deletion, after a person typed `DELETE`. It is not rotated: in the document, people generate another key
///   and delete the first one.
///
/// The document first lets people "create, revoke, or delete both" kinds, but then describes only one way to
/// end each kind. This policy allows only that way, because a second way would bypass the record or the
/// confirmation of the first.
///
/// Only managers and admins view, create, change, rotate and end keys, including those of another owner.
/// Every project has a legacy key of class `api-key`. A project has up to 50 active keys over both classes,
/// including the legacy key.
///
/// A revocation takes effect everywhere within 6 hours. The bound of 21,578 seconds is the longest one whose
/// [worst case](crate::policy::Propagation::worst_case) keeps that promise on a slow clock. The roles `admin`
/// and `manager` reach everything, `member` reads (`project:read`). Only admins administer tenants and
/// owners: a project is provisioned before its managers create keys.
#[must_use]
pub fn amplitude() -> PolicySpec {
    shipped(include_str!("amplitude.json"))
}

/// Returns the policy for the keys of several products of one organisation. A tenant is a project, and an
/// organisation is the parent tenant of its projects. Keys for a whole organisation or account are created in
/// the organisation's tenant.
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
/// - Each tenant is provisioned with both project keys. They belong to the tenant and cannot be created in
///   any other way. The provisioning actor receives the secret, so it must reach `project:*`: use the host or
///   an admin. The organisation's tenant gets both keys too, but they work in no project.
/// - A deployment is provisioned with its key. The resource kind is `deployment.client` or
///   `deployment.server`. More deployment keys can be created by hand. An old server key keeps working for 90
///   days after a rotation, because its deletion completes the rotation. Deployment keys and management keys
///   are never revoked, because a revocation would bypass the check for references.
/// - A data API token does what its owner may do at the time of the request, in every project. Admins,
///   developers and members create their own tokens.
/// - SCIM keys need the entitlement `enterprise`.
/// - Organisation keys come in pairs. Only support creates, rotates and ends them. The document's table has
///   one row for the pair, but this profile has one class for each half, so it has nine classes. The pair is
///   verified together, and the scopes of the secret key apply. The API key is publishable, because it only
///   identifies: alone it reaches only `organization:identify`. The table calls the pair private. Only the
///   secret half is; customers are asked not to publish the other half.
///
/// The roles `admin` and `support` reach everything. `developer` reaches everything except users and the
/// organisation, and `member` reads the same. Admins and support administer tenants and owners, so that keys
/// created by support can belong to the organisation and not to a person who leaves. There is no cap and no
/// legacy key. A revocation takes effect everywhere within 10 seconds.
#[must_use]
pub fn amplitude_products() -> PolicySpec {
    shipped(include_str!("amplitude_products.json"))
}

/// Returns the policy that turns the advice of a vendor-neutral guide to API keys into rules. Its secret keys
/// (class `api-key`) are for the environments `live` (`key_live_`) and `test` (`key_test_`). A key of one
/// environment is never accepted in the other.
///
/// - A revocation must be confirmed, takes effect everywhere immediately, and is final. The key stays in the
///   list and is never deleted. Verify with [`verify_or_fetch`](crate::Keyward::verify_or_fetch), which reads
///   a remote store each time.
/// - An actor that manages a key rotates it. The old key works beside the new one for 7 days, unless the
///   command sets another grace or the rotation is finished earlier. The guide only says "gradually"; 7 days
///   are this profile's choice.
/// - Keys live for 90 days unless their creator sets another expiry, so that rotation becomes a habit. 90
///   days are this profile's choice; there is no maximum.
/// - Every key states its purpose: the guide recommends it, this profile requires it. Set `purpose_required`
///   to false to make the purpose optional.
/// - A key has only the scopes that it is given; the class allows any.
///
/// Admins and developers create keys. Admins, developers and each key's owner rotate and revoke keys. The
/// roles `admin` and `developer` reach everything, `member` reads (`*:read`). Only admins administer tenants
/// and owners, and remove unused keys in bulk. There is no cap and no legacy key.
#[must_use]
pub fn guide() -> PolicySpec {
    shipped(include_str!("guide.json"))
}

/// Returns the policy of an account's API keys, of which at most two are active at the same time. An API key
/// (class `api-key`, `key_`) consists of a key id and a secret that is shown once. Verify the two as a pair,
/// or the secret alone.
///
/// There is no limit on the number of keys over time. Keys are permanently deleted with one click, and never
/// revoked. Keys are not rotated either: the document only has creation and deletion. During a rotation the
/// old key would be a third key, which breaks "only 2 at the same time".
///
/// All rules that the document does not mention are as in [`standard`]. Admins and developers create keys and
/// reach everything. Admins, developers and each key's owner delete keys. Only admins administer tenants and
/// owners. A deletion takes effect everywhere within 10 seconds.
#[must_use]
pub fn idenfy() -> PolicySpec {
    shipped(include_str!("idenfy.json"))
}

/// Returns the policy of an account's API keys (class `api-key`, `yb_`). The keys are bearer tokens that may
/// do what their creator may do.
///
/// Only admins create, change and revoke keys. The creator of a key who is no longer an admin may not. The
/// creator sets the expiry of a key. By default a key never expires. Revoked keys stay in the list and are
/// never deleted. For a lost or compromised key, an admin revokes the key and creates another, so there is no
/// rotation.
///
/// A key may do what its creator may do at the time of the request. The role `admin` reaches everything. The
/// role `developer` reaches `backups:*`, `clusters:*`, `databases:*` and `networks:*`. All other scopes need
/// an admin; by convention these are `account:*`, `billing:*`, `keys:*` and `users:*`. Name the scopes of
/// your own API in the same way.
///
/// The document does not mention the rest. There is no cap, no legacy key and no confirmation. A revocation
/// takes effect everywhere within 10 seconds. Only admins administer tenants and owners.
#[must_use]
pub fn yugabytedb() -> PolicySpec {
    shipped(include_str!("yugabytedb.json"))
}

/// Parses a JSON document of this folder, as a host parses its own policy file.
fn shipped(document: &'static str) -> PolicySpec {
    serde_json::from_str(document).expect("every document of this folder is a policy file")
}

#[cfg(test)]
mod tests;
