//! Commands that issue keys. Without `--json`, stdout gets the secrets and nothing else.

use keyward::command::{IssuedKey, RotationMode};
use keyward::key::{KeyType, Resource};
use keyward::{CreateKey, KeyId, RotateKey, Secret};
use serde_json::{Value, json};

use crate::args::{CreateArgs, RotateArgs};
use crate::desk::{CliContext, invocation, key_id};
use crate::failure::{CliError, CliResult};
use crate::output::{Output, cell, ready_for_secrets, warn};

pub(crate) async fn create(
    context: &CliContext,
    args: CreateArgs,
    output: &Output,
) -> CliResult<()> {
    let tenant = context.named_tenant()?;
    let actor = context.actor(&tenant)?;
    let named = args.named.command_id.is_some();
    let scopeless = args.scope.is_empty();
    let by = invocation(&actor, &args.named)?;
    ready_for_secrets()?;
    let created = context.keys.create(by, draft(args)?).await?;
    let printed = if output.json {
        output.document(&json!({
            "id": created.id,
            "tenant": tenant,
            "class": created.class,
            "secret": created.secret.expose(),
            "hint": created.hint,
            "fingerprint": created.fingerprint,
            "expires_at": created.expires_at,
            "provisioned": issued(&created.provisioned),
            "revision": created.receipt.revision().0,
            "decided_at": created.receipt.decided_at(),
        }))
    } else {
        let (id, ends) = (created.id, cell(created.expires_at));
        output.note(&format!(
            "created key {id} of {tenant}, ends {ends}; its secret follows:"
        ));
        secret(&created.secret, output).and_then(|()| provisioned(&created.provisioned, output))
    };
    printed.map_err(|failure| lost(created.id, named, &failure))?;
    let policy = context.policies.of(&tenant);
    let class = policy.class(&created.class);
    // A publishable key identifies its tenant, and is of use without scopes.
    let is_secret = class.is_some_and(|class| class.key_type == KeyType::Secret);
    if is_secret && created.reach.is_empty() {
        let reason = match scopeless {
            true => "it has no scopes; give it some, such as --scope reports:read",
            false => "its owner's role allows none of its scopes",
        };
        warn(&format!(
            "keyctl: key {} may do nothing: {reason}",
            created.id
        ));
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
    let printed = if output.json {
        output.document(&json!({
            "id": rotated.id,
            "predecessor": rotated.predecessor,
            "secret": rotated.secret.expose(),
            "expires_at": rotated.expires_at,
            "predecessor_until": rotated.until,
            "revision": rotated.receipt.revision().0,
            "decided_at": rotated.receipt.decided_at(),
        }))
    } else {
        let (id, until) = (rotated.id, rotated.until);
        let latest = match mode {
            RotationMode::OnFirstUse(_) => " at the latest",
            _ => "",
        };
        output.note(&format!(
            "created key {id}; old key {old} works until {until}{latest}; the secret follows:"
        ));
        secret(&rotated.secret, output)
    };
    printed.map_err(|failure| lost(rotated.id, args.named.command_id.is_some(), &failure))
}

/// Prints the secrets of the keys that were created with a tenant, one per line, in the order announced on
/// stderr. No later command can show them.
pub(crate) fn provisioned(keys: &[IssuedKey], output: &Output) -> CliResult<()> {
    for key in keys {
        let Some(token) = &key.token else { continue };
        let IssuedKey { id, class, .. } = key;
        output.note(&format!(
            "with the tenant came key {id} of class {class}; its secret follows:"
        ));
        secret(token, output)?;
    }
    Ok(())
}

pub(crate) fn issued(keys: &[IssuedKey]) -> Vec<Value> {
    let document = |key: &IssuedKey| {
        let secret = key.token.as_ref().map(Secret::expose);
        json!({ "id": key.id, "class": key.class, "secret": secret, "expires_at": key.expires_at })
    };
    keys.iter().map(document).collect()
}

fn secret(secret: &Secret, output: &Output) -> CliResult<()> {
    output.line(secret.expose())
}

/// Returns the error for a key that was created but whose secret could not be printed. Without this message,
/// the key would stay valid unnoticed.
fn lost(id: KeyId, named: bool, failure: &CliError) -> CliError {
    let again = if named {
        "; the same command id cannot show it again"
    } else {
        ""
    };
    let message = format!(
        "{}. Key {id} was created and its secret is lost{again}: revoke it with keyctl revoke {id} --reason \
         lost, and create another",
        failure.message
    );
    CliError::new(failure.kind, message)
}
