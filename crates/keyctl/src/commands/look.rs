//! Commands that list keys or show one.

use std::collections::BTreeMap;

use keyward::key::Owner;
use keyward::store::{KeyPosition, KeyQuery, KeyStore};
use keyward::usage::LastUse;
use keyward::{Actor, CommandError, Denial, KeyId, KeyInfo, Timestamp, WithSources};
use serde::Serialize;
use serde_json::Value;

use crate::args::ListArgs;
use crate::desk::{CliContext, key_id, position};
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::{Output, cell};

const HEAD: [&str; 10] = [
    "ID",
    "STATUS",
    "CLASS",
    "ENV",
    "NAME",
    "TENANT",
    "OWNER",
    "ENDS",
    "LAST USED",
    "HINT",
];

pub(crate) async fn list(context: &CliContext, args: ListArgs, output: &Output) -> CliResult<()> {
    let all = args.all;
    let mut query = query(context, args, output).await?;
    let mut corrupt = Vec::new();
    let mut first = true;
    let mut is_readable = true;
    loop {
        let page = page(context, &query).await?;
        corrupt.extend(page.corrupt);
        let last_uses = last_uses(context, &page.keys, &mut is_readable, output).await;
        print(&page.keys, &last_uses, first, output)?;
        first = false;
        match page.next {
            Some(next) if all => query.after = Some(next),
            Some(next) => {
                output.more("keys", &next);
                break;
            }
            None => break,
        }
    }
    if corrupt.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = corrupt.iter().map(ToString::to_string).collect();
    let message = format!(
        "records left out because they are corrupt: {}",
        ids.join(", ")
    );
    Err(CliError::new(CliErrorKind::Corrupt, message))
}

async fn query(context: &CliContext, args: ListArgs, output: &Output) -> CliResult<KeyQuery> {
    let now = context.keys.now();
    let mut query = KeyQuery::all(now);
    query.tenant = context.some_tenant().await?;
    if query.tenant.is_none() && !context.is_host() {
        return Err(CliError::usage(
            "--as needs the principal's tenant: --tenant <TENANT>",
        ));
    }
    if query.tenant.is_none() && args.below {
        output.warning("--below has no effect without --tenant: all tenants are listed");
    }
    query.below = args.below;
    query.statuses = args.status.into_iter().map(Into::into).collect();
    query.class = args.class.map(TryInto::try_into).transpose()?;
    query.owner = args.owner.map(TryInto::try_into).transpose()?;
    query.name = args.name;
    query.hint = args.hint;
    query.fingerprint = args.fingerprint.map(|text| text.parse()).transpose()?;
    if let Some(within) = args.expiring {
        query.expires_from = Some(now);
        query.expires_before = Some(now.saturating_add(within));
    }
    query.sort = args.sort.into();
    query.after = args.after.as_deref().map(position).transpose()?;
    query.limit = args.limit;
    Ok(query)
}

struct KeyInfoPage {
    keys: Vec<KeyInfo>,
    corrupt: Vec<KeyId>,
    next: Option<KeyPosition>,
}

/// Reads a page of the keys that the actor may see. Only the host itself can query all tenants together.
async fn page(context: &CliContext, query: &KeyQuery) -> CliResult<KeyInfoPage> {
    if let Some(tenant) = &query.tenant {
        let list = context.keys.list(&context.actor(tenant)?, query).await?;
        return Ok(KeyInfoPage {
            keys: list.keys,
            corrupt: list.corrupt,
            next: list.next,
        });
    }
    let page = context.store.list(query).await?;
    let mut keys = Vec::new();
    for record in page.keys {
        let host = Actor::application(record.tenant.clone());
        match context.keys.key(&host, record.id).await {
            Ok(info) => keys.push(info),
            // The key was deleted after the page was read.
            Err(CommandError::Denied(Denial::NotFound)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(KeyInfoPage {
        keys,
        corrupt: page.corrupt,
        next: page.next,
    })
}

/// Reads the last uses of keys. After a failure, warns, sets `is_readable` to false, and reads no more last uses.
async fn last_uses(
    context: &CliContext,
    keys: &[KeyInfo],
    is_readable: &mut bool,
    output: &Output,
) -> BTreeMap<KeyId, LastUse> {
    if !*is_readable {
        return BTreeMap::new();
    }
    let ids: Vec<_> = keys.iter().map(|key| key.id).collect();
    match context.backend.usage().last_uses(&ids).await {
        Ok(last_uses) => last_uses,
        Err(error) => {
            *is_readable = false;
            let error = WithSources(&error);
            output.warning(&format!("cannot read when keys were last used: {error}"));
            BTreeMap::new()
        }
    }
}

fn print(
    keys: &[KeyInfo],
    last_uses: &BTreeMap<KeyId, LastUse>,
    first: bool,
    output: &Output,
) -> CliResult<()> {
    let last_used = |key: &KeyInfo| last_uses.get(&key.id).map(|last| last.at);
    if output.json {
        return keys.iter().try_for_each(|key| {
            output.document(&KeyWithLastUse {
                key,
                last_used: last_used(key),
            })
        });
    }
    let row = |key: &KeyInfo| {
        vec![
            key.id.to_string(),
            key.status.to_string(),
            key.class.to_string(),
            key.environment.to_string(),
            key.name.to_string(),
            key.tenant.to_string(),
            owner(key),
            cell(key.expires_at),
            cell(last_used(key)),
            key.hint.to_string(),
        ]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    let head: &[&str] = if first { &HEAD } else { &[] };
    output.table(head, &rows)
}

/// A key as a JSON document, with the time of its last counted use.
#[derive(Serialize)]
pub(super) struct KeyWithLastUse<'a> {
    #[serde(flatten)]
    pub(super) key: &'a KeyInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_used: Option<Timestamp>,
}

pub(super) fn owner(key: &KeyInfo) -> String {
    match &key.owner {
        Owner::Tenant => "(tenant)".to_owned(),
        Owner::Principal(principal) => principal.to_string(),
    }
}

pub(crate) async fn show(context: &CliContext, key: &str, output: &Output) -> CliResult<()> {
    let key = key_id(key)?;
    let actor = context.actor_for(key).await?;
    let info = context.keys.key(&actor, key).await?;
    if output.json {
        return output.document(&info);
    }
    let Ok(Value::Object(fields)) = serde_json::to_value(&info) else {
        return Err(CliError::new(
            CliErrorKind::Unavailable,
            "cannot write the key's fields",
        ));
    };
    let present = fields.iter().filter(|(_, value)| !is_empty(value));
    let row = |(name, value): (&String, &Value)| vec![name.replace('_', " "), text_of(value)];
    output.table(&[], &present.map(row).collect::<Vec<_>>())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Formats a value for people.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let present = fields.iter().filter(|(_, value)| !is_empty(value));
            let each = present.map(|(name, value)| format!("{name} {}", text_of(value)));
            each.collect::<Vec<_>>().join(", ")
        }
        value => value.to_string(),
    }
}
