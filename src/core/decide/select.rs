//! Selects the rows that a decision needs from the store.

use std::collections::BTreeMap;

use crate::core::audit::AuditEntry;
use crate::core::command::{Command, ImportKey, NewOwner, Request};
use crate::core::id::KeyId;
use crate::core::policy::Policy;
use crate::core::text::{ClassName, PrincipalId};
use crate::core::time::Timestamp;
use crate::core::view::{LoadRequest, TenantView};

/// Returns a load request for the tenant's rows that the decision on `request` needs.
#[must_use]
pub fn select(request: &Request, policy: &Policy, now: Timestamp) -> LoadRequest {
    let mut select = LoadRequest {
        commands: vec![request.id.clone()],
        ..LoadRequest::none()
    };
    select.keys.extend(request.command.key());
    select.keys.extend(&request.sweep.keys);
    // The decision also depends on the row of the actor, or of the acting key's owner.
    select.owners.extend(request.actor.principal().cloned());
    if *request.actor.tenant() == request.tenant {
        select.keys.extend(request.actor.key_id());
    }
    select.owners.extend(owner_named(&request.command));
    match &request.command {
        Command::Create(key) | Command::Import(ImportKey { key, .. }) => {
            let class = key.class.as_ref().unwrap_or(&policy.spec().default_class);
            // If the tenant is unknown, the command also provisions keys of other classes. It has no keys yet.
            select.live = counted_with(policy, class, now);
        }
        Command::ProvisionTenant
        | Command::ProvisionResource(_)
        | Command::Rotate { .. }
        | Command::CancelRotation { .. } => {
            let classes = policy.spec().classes.keys();
            let capped = classes.filter(|class| policy.caps(class).next().is_some());
            select.live = capped.map(|class| (class.clone(), now)).collect();
        }
        _ => {}
    }
    select
}

/// Returns the classes whose keys count towards the same caps as keys of `class`, for a load of their keys that
/// are live at `now`.
///
/// The caps bound the number of these keys. Keys of other classes have no bound, and no decision depends on all
/// of them.
fn counted_with(
    policy: &Policy,
    class: &ClassName,
    now: Timestamp,
) -> BTreeMap<ClassName, Timestamp> {
    let caps = policy.caps(class);
    let counted = caps.flat_map(|cap| {
        let classes = policy.spec().classes.keys();
        classes.filter(|class| cap.counts(class))
    });
    counted.map(|class| (class.clone(), now)).collect()
}

/// Returns the keys that the decision needs, but that are not loaded yet. These are predecessors and
/// successors of the affected keys, and keys that an earlier attempt of the command changed. The caller loads
/// these keys too, and calls again until the result is empty.
#[must_use]
pub fn links(view: &TenantView, request: &Request) -> Vec<KeyId> {
    let swept: &[KeyId] = match &request.command {
        Command::CloseTenant | Command::RevokeMany { .. } | Command::RemoveOwner { .. } => {
            &request.sweep.keys
        }
        _ => &[],
    };
    let asked = swept.iter().copied().chain(request.command.key());
    let linked = asked.filter_map(|id| view.record(id)).flat_map(|record| {
        let before = record.predecessor.as_ref().map(|old| old.key);
        let after = record.succession.as_ref().map(|new| new.successor);
        before.into_iter().chain(after)
    });
    linked
        .chain(changed_before(view, request))
        .filter(|id| !view.knows(*id))
        .collect()
}

/// Returns the keys that an earlier attempt of this command changed, in a commit on another node or with a
/// lost reply. Links between records do not always lead to these keys: a cancelled rotation leaves no link to
/// its successor.
fn changed_before<'a>(
    view: &'a TenantView,
    request: &'a Request,
) -> impl Iterator<Item = KeyId> + 'a {
    let own = |entry: &&AuditEntry| entry.command == request.id && !request.command.is_bulk();
    view.applied
        .iter()
        .filter(own)
        .filter_map(|entry| entry.key)
}

/// Returns the owner that the command names, if the command names an owner.
fn owner_named(command: &Command) -> Option<PrincipalId> {
    match command {
        Command::Create(key) | Command::Import(ImportKey { key, .. }) => match &key.owner {
            NewOwner::Creator | NewOwner::Tenant => None,
            NewOwner::Principal(owner, _) => Some(owner.clone()),
        },
        Command::ChangeOwnerRole { owner, .. }
        | Command::RemoveOwner { owner, .. }
        | Command::SyncOwnerRole { owner, .. } => Some(owner.clone()),
        _ => None,
    }
}
