//! Commands that issue keys. In plain mode stdout gets the secrets and nothing else.

use std::collections::BTreeMap;

use keyward::command::{IssuedKey, RotationMode};
use keyward::key::Resource;
use keyward::{CreateKey, KeyId, RotateKey, Secret};
use serde_json::{Value, json};

use crate::args::{Create, Rotate};
use crate::desk::{Desk, invocation, key_id};
use crate::failure::{Answer, Failure};
use crate::output::{Output, cell};

pub(crate) async fn create(desk: &Desk, asked: Create, output: &Output) -> Answer<()> {
    let tenant = desk.named_tenant()?;
    let actor = desk.actor(&tenant)?;
    let named = asked.named.command_id.is_some();
    let by = invocation(&actor, &asked.named)?;
    let created = desk.keys.create(by, draft(asked)?).await?;
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
    printed.map_err(|failure| lost(created.id, named, &failure))
}

fn draft(asked: Create) -> Answer<CreateKey> {
    let mut metadata = BTreeMap::new();
    for text in &asked.metadata {
        let (name, value) = pair(text)?;
        if metadata.insert(name, value).is_some() {
            return Err(Failure::usage("--metadata has the same name twice"));
        }
    }
    let mut draft = CreateKey::new(asked.name)
        .metadata(metadata)
        .scopes(asked.scope.iter().map(String::as_str))
        .allow_addresses(asked.allow.iter().map(String::as_str));
    if let Some(class) = asked.class {
        draft = draft.class(class);
    }
    if let Some(environment) = asked.environment {
        draft = draft.environment(environment);
    }
    if let Some(description) = asked.description {
        draft = draft.description(description);
    }
    if let Some(purpose) = asked.purpose {
        draft = draft.purpose(purpose);
    }
    if let Some(resource) = &asked.resource {
        draft = draft.resource(thing(resource)?);
    }
    if let (Some(owner), Some(role)) = (asked.owner, asked.owner_role) {
        draft = draft.owned_by(owner.try_into()?, role.try_into()?);
    }
    if asked.owned_by_tenant {
        draft = draft.owned_by_tenant();
    }
    if let Some(lifetime) = asked.expires_in {
        draft = draft.expires_in(lifetime);
    }
    if let Some(end) = asked.expires_at {
        draft = draft.expires_at(end.parse()?);
    }
    if asked.never_expires {
        draft = draft.never_expires();
    }
    Ok(draft)
}

fn pair(text: &str) -> Answer<(&str, &str)> {
    let expected = || Failure::usage("--metadata must be NAME=VALUE");
    text.split_once('=').ok_or_else(expected)
}

fn thing(text: &str) -> Answer<Resource> {
    let expected = || Failure::usage("--resource must be KIND:ID, such as project:4711");
    let (kind, id) = text.split_once(':').ok_or_else(expected)?;
    Ok(Resource {
        kind: kind.try_into()?,
        id: id.try_into()?,
    })
}

pub(crate) async fn rotate(desk: &Desk, asked: &Rotate, output: &Output) -> Answer<()> {
    let old = key_id(&asked.key)?;
    let actor = desk.actor_for(old).await?;
    let mode = match (asked.immediate, asked.grace, asked.on_first_use) {
        (true, ..) => RotationMode::Immediate,
        (_, Some(grace), _) => RotationMode::Grace(grace),
        (.., Some(grace)) => RotationMode::OnFirstUse(grace),
        _ => RotationMode::Class,
    };
    let mut how = RotateKey::from(mode).because(asked.reason.into());
    if let Some(wait) = asked.no_later_than {
        how = how.no_later_than(wait);
    }
    let rotated = desk
        .keys
        .rotate(invocation(&actor, &asked.named)?, old, how)
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
    printed.map_err(|failure| lost(rotated.id, asked.named.command_id.is_some(), &failure))
}

/// Prints the secrets of keys created along with a tenant, one a line, in the order announced on stderr. No
/// later command can show them.
pub(crate) fn provisioned(keys: &[IssuedKey], output: &Output) -> Answer<()> {
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

fn secret(secret: &Secret, output: &Output) -> Answer<()> {
    output.line(secret.expose())
}

/// Reports that a key exists but its secret is lost. Without this message the key would stay valid unnoticed.
fn lost(id: KeyId, named: bool, failure: &Failure) -> Failure {
    let again = if named {
        "; the same command id cannot show it again"
    } else {
        ""
    };
    let words = format!(
        "{}. Key {id} was created and its secret is lost{again}: revoke it, and create another",
        failure.words
    );
    Failure::new(failure.kind, words)
}
