//! Commands that list keys or show one.

use keyward::key::Owner;
use keyward::store::{KeyPosition, KeyQuery, KeyStore};
use keyward::{Actor, CommandError, Denial, KeyId, KeyInfo};
use serde_json::Value;

use crate::args::List;
use crate::desk::{Desk, key_id};
use crate::failure::{Answer, Failure, Kind};
use crate::output::{Output, cell, warn};

const HEAD: [&str; 9] = [
    "ID", "STATUS", "CLASS", "ENV", "NAME", "TENANT", "OWNER", "ENDS", "HINT",
];

pub(crate) async fn list(desk: &Desk, asked: List, output: &Output) -> Answer<()> {
    let (all, after) = (asked.all, asked.after.clone());
    let mut query = query(desk, asked)?;
    if let Some(after) = after {
        query.after = Some(place(desk, &after).await?);
    }
    let mut corrupt = Vec::new();
    let mut first = true;
    loop {
        let page = page(desk, &query).await?;
        corrupt.extend(page.corrupt);
        print(&page.keys, first, output)?;
        first = false;
        match page.next {
            Some(next) if all => query.after = Some(next),
            Some(last) => {
                let id = last.id;
                output.note(&format!(
                    "more keys match: --after {id} goes on from here, --all lists them"
                ));
                break;
            }
            None => break,
        }
    }
    if corrupt.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = corrupt.iter().map(ToString::to_string).collect();
    let words = format!(
        "records left out because they are corrupt: {}",
        ids.join(", ")
    );
    Err(Failure::new(Kind::Corrupt, words))
}

fn query(desk: &Desk, asked: List) -> Answer<KeyQuery> {
    let now = desk.keys.now();
    let mut query = KeyQuery::all(now);
    query.tenant = desk.tenant()?;
    if query.tenant.is_none() && !desk.is_host() {
        return Err(Failure::usage(
            "--as needs the principal's tenant: --tenant <TENANT>",
        ));
    }
    if query.tenant.is_none() && asked.below {
        warn("keyctl: --below says nothing without --tenant: all tenants are listed");
    }
    query.below = asked.below;
    query.statuses = asked.status.into_iter().map(Into::into).collect();
    query.class = asked.class.map(TryInto::try_into).transpose()?;
    query.owner = asked.owner.map(TryInto::try_into).transpose()?;
    query.name = asked.name;
    query.hint = asked.hint;
    query.fingerprint = asked.fingerprint.map(|text| text.parse()).transpose()?;
    if let Some(within) = asked.expiring {
        query.expires_from = Some(now);
        query.expires_before = Some(now.saturating_add(within));
    }
    query.sort = asked.sort.into();
    query.limit = asked.limit;
    Ok(query)
}

/// Returns a key's position in every sort order.
async fn place(desk: &Desk, key: &str) -> Answer<KeyPosition> {
    let id = key_id(key)?;
    let info = desk.keys.key(&desk.actor_for(id).await?, id).await?;
    Ok(KeyPosition {
        name: info.name.clone(),
        expires_at: info.expires_at,
        id,
    })
}

struct Page {
    keys: Vec<KeyInfo>,
    corrupt: Vec<KeyId>,
    next: Option<KeyPosition>,
}

/// Reads a page of the keys that the actor may see. Only the host itself can query all tenants together.
async fn page(desk: &Desk, query: &KeyQuery) -> Answer<Page> {
    if let Some(tenant) = &query.tenant {
        let list = desk.keys.list(&desk.actor(tenant)?, query).await?;
        return Ok(Page {
            keys: list.keys,
            corrupt: list.corrupt,
            next: list.next,
        });
    }
    let page = desk.store.list(query).await?;
    let mut keys = Vec::new();
    for record in page.keys {
        let host = Actor::application(record.tenant.clone());
        match desk.keys.key(&host, record.id).await {
            Ok(info) => keys.push(info),
            // Deleted since the page was read.
            Err(CommandError::Denied(Denial::NotFound)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Page {
        keys,
        corrupt: page.corrupt,
        next: page.next,
    })
}

fn print(keys: &[KeyInfo], first: bool, output: &Output) -> Answer<()> {
    if output.json {
        return keys.iter().try_for_each(|key| output.document(key));
    }
    let row = |key: &KeyInfo| {
        let owner = match &key.owner {
            Owner::Tenant => "(tenant)".to_owned(),
            Owner::Principal(principal) => principal.to_string(),
        };
        vec![
            key.id.to_string(),
            key.status.to_string(),
            key.class.to_string(),
            key.environment.to_string(),
            key.name.to_string(),
            key.tenant.to_string(),
            owner,
            cell(key.expires_at),
            key.hint.to_string(),
        ]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    let head: &[&str] = if first { &HEAD } else { &[] };
    output.table(head, &rows)
}

pub(crate) async fn show(desk: &Desk, key: &str, output: &Output) -> Answer<()> {
    let key = key_id(key)?;
    let actor = desk.actor_for(key).await?;
    let info = desk.keys.key(&actor, key).await?;
    if output.json {
        return output.document(&info);
    }
    let Ok(Value::Object(fields)) = serde_json::to_value(&info) else {
        return Err(Failure::new(
            Kind::Unavailable,
            "cannot write the key's fields",
        ));
    };
    let present = fields.iter().filter(|(_, value)| !is_empty(value));
    let row = |(name, value): (&String, &Value)| vec![name.replace('_', " "), words(value)];
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
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let present = fields.iter().filter(|(_, value)| !is_empty(value));
            let each = present.map(|(name, value)| format!("{name} {}", words(value)));
            each.collect::<Vec<_>>().join(", ")
        }
        value => value.to_string(),
    }
}
