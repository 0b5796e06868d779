//! Repair of the effects of a wrong clock.

use keyward::Timestamp;
use keyward::key::{KeyRecord, KeyState};
use keyward::store::KeyQuery;
use serde_json::json;

use crate::args::CommandIdArgs;
use crate::desk::{CliContext, invocation};
use crate::failure::CliResult;
use crate::output::Output;

pub(crate) async fn repair(
    context: &CliContext,
    named: &CommandIdArgs,
    output: &Output,
) -> CliResult<()> {
    let tenant = context.named_tenant()?;
    let actor = context.actor(&tenant)?;
    let repaired = context
        .keys
        .repair_time(invocation(&actor, named)?, &tenant)
        .await?;
    let Some((from, to)) = repaired.set_back else {
        let message = format!("the newest commit of tenant {tenant} is not in the future");
        return output.done(
            &message,
            &json!({"tenant": tenant, "set_back": null, "later": []}),
        );
    };
    let mut message = format!("the newest instant of tenant {tenant} is {to}, it was {from}");
    let later = later(context, KeyQuery::tenant(tenant.clone(), to), to).await;
    let later = later.map_err(|error| {
        error.after(format!("{message}; the keys with later times are unknown"))
    })?;
    for (record, at) in &later {
        let ends = record
            .expires_at
            .map_or("never".to_owned(), |end| end.to_string());
        message += &format!(
            "\nkey {} has an instant of {at}, and ends {ends}",
            record.id
        );
    }
    let later: Vec<_> = (later.iter())
        .map(|(record, at)| json!({"key": record.id, "at": at, "expires_at": record.expires_at}))
        .collect();
    let document = json!({"tenant": tenant, "set_back": {"from": from, "to": to}, "later": later});
    output.done(&message, &document)
}

/// Returns the keys that were created, changed, disabled or revoked after `to`, each with the latest of these
/// times.
async fn later(
    context: &CliContext,
    mut query: KeyQuery,
    to: Timestamp,
) -> CliResult<Vec<(KeyRecord, Timestamp)>> {
    let mut later = Vec::new();
    loop {
        let page = context.store.list(&query).await?;
        later.extend(page.keys.into_iter().filter_map(|record| {
            let ended = match &record.state {
                KeyState::Disabled(stamp) | KeyState::Revoked { stamp, .. } => Some(stamp.at),
                _ => None,
            };
            let at = record
                .created
                .at
                .max(record.updated.at)
                .max(ended.unwrap_or(to));
            (at > to).then_some((record, at))
        }));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(later),
        }
    }
}
