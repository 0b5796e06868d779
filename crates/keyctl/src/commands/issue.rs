//! Commands that issue keys. Without `--json`, stdout gets the secrets and nothing else.

use keyward::command::{IssuedKey, RotationMode};
use keyward::key::{ClassName, KeyType, Resource};
use keyward::policy::{
    KeyClass, LegacyRule, Policy, PolicySpec, ProvisionOn, Revocation, Rotation,
};
use keyward::{CreateKey, KeyId, RotateKey, Secret, TenantId};
use serde_json::{Value, json};

use crate::args::{CreateArgs, RotateArgs};
use crate::desk::{CliContext, invocation, key_id};
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::{Output, cell, ready_for_secrets};

pub(crate) async fn create(
    context: &CliContext,
    args: CreateArgs,
    output: &Output,
) -> CliResult<()> {
    let tenant = context.named_tenant()?;
    let actor = context.actor(&tenant)?;
    let scopeless = args.scope.is_empty();
    let by = invocation(&actor, &args.named)?;
    ready_for_secrets()?;
    let is_new = !context.knows(&tenant).await?;
    let created = context.keys.create(by, draft(args)?).await?;
    let id = created.id;
    let new = if is_new { ", a new tenant" } else { "" };
    let mut fresh = vec![FreshKey {
        id,
        class: Some(&created.class),
        secret: &created.secret,
        announcement: format!(
            "created key {id} of {tenant}{new}, ends {}; its secret follows:",
            cell(created.expires_at)
        ),
    }];
    fresh.extend(provisioned(&created.provisioned));
    let document = || {
        json!({
            "id": id,
            "tenant": tenant,
            "new_tenant": is_new,
            "class": created.class,
            "secret": created.secret.expose(),
            "hint": created.hint,
            "fingerprint": created.fingerprint,
            "expires_at": created.expires_at,
            "provisioned": issued(&created.provisioned),
            "revision": created.receipt.revision().0,
            "decided_at": created.receipt.decided_at(),
        })
    };
    let made = format!("key {id} of {tenant} was created");
    hand_out(context, (&tenant, &made), &fresh, document, output)?;
    let policy = context.policies.of(&tenant);
    let class = policy.class(&created.class);
    // A publishable key identifies its tenant, and is of use without scopes.
    let is_secret = class.is_some_and(|class| class.key_type == KeyType::Secret);
    if is_secret && created.reach.is_empty() {
        let reason = match scopeless {
            true => "it has no scopes; give it some, such as --scope reports:read",
            false => "its owner's role allows none of its scopes",
        };
        output.warning(&format!("key {} may do nothing: {reason}", created.id));
    }
    Ok(())
}

fn draft(args: CreateArgs) -> CliResult<CreateKey> {
    let metadata = args.metadata.iter().map(|text| pair(text));
    let metadata = metadata.collect::<CliResult<Vec<_>>>()?;
    let mut draft = CreateKey::new(args.name)
        .metadata(metadata)
        .scopes(args.scope.iter().map(String::as_str))
        .allow_addresses(args.allow.iter().map(String::as_str));
    if let Some(class) = args.class {
        draft = draft.class(class);
    }
    if let Some(environment) = args.environment {
        draft = draft.environment(environment);
    }
    if let Some(description) = args.description {
        draft = draft.description(description);
    }
    if let Some(purpose) = args.purpose {
        draft = draft.purpose(purpose);
    }
    if let Some(resource) = &args.resource {
        draft = draft.resource(thing(resource)?);
    }
    if let (Some(owner), Some(role)) = (args.owner, args.owner_role) {
        draft = draft.owned_by(owner.try_into()?, role.try_into()?);
    }
    if args.owned_by_tenant {
        draft = draft.owned_by_tenant();
    }
    if let Some(lifetime) = args.expires_in {
        draft = draft.expires_in(lifetime);
    }
    if let Some(end) = args.expires_at {
        draft = draft.expires_at(end.parse()?);
    }
    if args.never_expires {
        draft = draft.never_expires();
    }
    Ok(draft)
}

fn pair(text: &str) -> CliResult<(&str, &str)> {
    let expected = || CliError::usage("--metadata must be NAME=VALUE");
    text.split_once('=').ok_or_else(expected)
}

fn thing(text: &str) -> CliResult<Resource> {
    let expected = || CliError::usage("--resource must be KIND:ID, such as project:4711");
    let (kind, id) = text.split_once(':').ok_or_else(expected)?;
    Ok(Resource {
        kind: kind.try_into()?,
        id: id.try_into()?,
    })
}

pub(crate) async fn rotate(
    context: &CliContext,
    args: &RotateArgs,
    output: &Output,
) -> CliResult<()> {
    let old = key_id(&args.key)?;
    let actor = context.actor_for(old).await?;
    let mode = match (args.immediate, args.grace, args.on_first_use) {
        (true, ..) => RotationMode::Immediate,
        (_, Some(grace), _) => RotationMode::Grace(grace),
        (.., Some(grace)) => RotationMode::OnFirstUse(grace),
        _ => RotationMode::Class,
    };
    let mut how = RotateKey::from(mode).because(args.reason.into());
    if let Some(wait) = args.no_later_than {
        how = how.no_later_than(wait);
    }
    ready_for_secrets()?;
    let rotated = context
        .keys
        .rotate(invocation(&actor, &args.named)?, old, how)
        .await?;
    let (id, until) = (rotated.id, rotated.until);
    let latest = match mode {
        RotationMode::OnFirstUse(_) => " at the latest",
        _ => "",
    };
    let made = format!("created key {id}; old key {old} works until {until}{latest}");
    let successor = FreshKey {
        id,
        class: None,
        secret: &rotated.secret,
        announcement: format!("{made}; the secret follows:"),
    };
    let document = || {
        json!({
            "id": id,
            "predecessor": rotated.predecessor,
            "secret": rotated.secret.expose(),
            "expires_at": rotated.expires_at,
            "predecessor_until": until,
            "revision": rotated.receipt.revision().0,
            "decided_at": rotated.receipt.decided_at(),
        })
    };
    let tenant = actor.tenant();
    hand_out(context, (tenant, &made), &[successor], document, output)
}

/// A key whose secret only the command that created the key can print.
pub(crate) struct FreshKey<'a> {
    id: KeyId,
    /// The class of the key. `None` for a successor, whose class can be rotated.
    class: Option<&'a ClassName>,
    secret: &'a Secret,
    /// The line on stderr before the secret.
    announcement: String,
}

/// Returns whether a secret key comes with each tenant of the policy. A publishable key can be shown again.
pub(crate) fn provisions_secrets(policy: &Policy) -> bool {
    let PolicySpec {
        provision, legacy, ..
    } = policy.spec();
    let legacy = match legacy {
        LegacyRule::None => None,
        LegacyRule::One { class, .. } => Some(class),
    };
    let rules = provision
        .iter()
        .filter(|rule| rule.on == ProvisionOn::Tenant);
    let mut classes = rules.map(|rule| &rule.class).chain(legacy);
    let is_secret = |class: &KeyClass| class.key_type == KeyType::Secret;
    classes.any(|name| policy.class(name).is_some_and(is_secret))
}

/// Returns the keys that were created with a tenant and have a secret.
pub(crate) fn provisioned(keys: &[IssuedKey]) -> impl Iterator<Item = FreshKey<'_>> {
    keys.iter().filter_map(|key| {
        let IssuedKey { id, class, .. } = key;
        Some(FreshKey {
            id: *id,
            class: Some(class),
            secret: key.token.as_ref()?,
            announcement: format!(
                "with the tenant came key {id} of class {class}; its secret follows:"
            ),
        })
    })
}

pub(crate) fn issued(keys: &[IssuedKey]) -> Vec<Value> {
    let document = |key: &IssuedKey| {
        let secret = key.token.as_ref().map(Secret::expose);
        json!({ "id": key.id, "class": key.class, "secret": secret, "expires_at": key.expires_at })
    };
    keys.iter().map(document).collect()
}

/// Prints the secrets of new keys of `tenant`: `document` in JSON mode, otherwise one secret per line.
///
/// If a secret cannot be printed, the error states what was made, and how to replace each lost secret. Without it,
/// the keys would stay valid unnoticed.
pub(crate) fn hand_out(
    context: &CliContext,
    (tenant, made): (&TenantId, &str),
    keys: &[FreshKey<'_>],
    document: impl FnOnce() -> Value,
    output: &Output,
) -> CliResult<()> {
    let mut unprinted = keys;
    let printed = match output.json {
        true => output.secret_document(&document()),
        false => keys.iter().try_for_each(|key| {
            output.note(&key.announcement);
            output.secret(key.secret.expose())?;
            unprinted = &unprinted[1..];
            Ok(())
        }),
    };
    printed.map_err(|failure| {
        let policy = context.policies.of(tenant);
        let steps = unprinted.iter().map(|FreshKey { id, class, .. }| {
            let class = class.and_then(|class| policy.class(class));
            let step = match class.map(|class| (class.rotation, class.revocation)) {
                Some((Rotation::None, Revocation::None)) => format!("keyctl delete {id}, then create another"),
                Some((Rotation::None, _)) => {
                    format!("keyctl revoke {id} --reason lost, then create another")
                }
                _ => format!("keyctl rotate {id} --immediate prints a new one"),
            };
            format!("\nthe secret of key {id} is lost, and repeating the command does not print it: {step}")
        });
        let steps: String = steps.collect();
        CliError::new(CliErrorKind::InPart, format!("{}. {made}{steps}", failure.message))
    })
}
