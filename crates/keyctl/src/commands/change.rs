//! Commands that disable, enable, revoke or delete a key.

use std::io::{self, IsTerminal};

use keyward::command::{BulkFilter, DeleteKey, RevokeKey};
use keyward::key::Status;
use keyward::policy::Deletion;
use keyward::{Actor, CommandError, Denial, KeyId, KeyInfo, Reason, Receipt};
use serde_json::{Value, json};

use super::nodes;
use crate::args::{DeleteArgs, KeyArgs, RevokeArgs};
use crate::desk::{CliContext, invocation, key_id, receipt};
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::{Output, draw, escaped};
use crate::words::counted;

pub(crate) async fn revoke(
    context: &CliContext,
    args: &RevokeArgs,
    output: &Output,
) -> CliResult<()> {
    let key = key_id(&args.key)?;
    let actor = context.actor_for(key).await?;
    if args.dry_run {
        let made = made_by(context, &actor, key).await?;
        let message = format!("made and still in use: {}", list(&made));
        return output.done(&message, &json!({"id": key, "made": made}));
    }
    let reason = args.reason.into();
    let how = RevokeKey {
        reason,
        confirmed: args.yes,
    };
    let done = match context
        .keys
        .revoke(invocation(&actor, &args.named)?, key, how)
        .await
    {
        Err(CommandError::Denied(Denial::ConfirmationRequired)) => {
            let message =
                "keys of this class are revoked permanently: repeat the command with --yes";
            return Err(CliError::new(CliErrorKind::Refused, message));
        }
        done => done?,
    };
    let by = nodes::time_limit(context, &done).await;
    let mut message = format!("revoked key {key}; every process refuses it {by}");
    let mut answer = receipt(key, "revoked", &done);
    if args.with_made {
        let filter = BulkFilter::all().made_by(key);
        let swept = context
            .keys
            .revoke_many(&actor, actor.tenant(), filter, reason);
        let swept = swept.await.map_err(|error| {
            CliError::from(error).after(format!(
                "key {key} is revoked, but not all keys that it made"
            ))
        })?;
        let ended = swept.ended;
        answer["revoked_with_it"] = ended.into();
        // The sweep is the later of the two changes.
        answer["revision"] = json!(swept.receipt.revision().0);
        answer["decided_at"] = json!(swept.receipt.decided_at());
        answer["no_later_than"] = json!(swept.receipt.no_later_than());
        let by = nodes::time_limit(context, &swept.receipt).await;
        let made = counted(ended, "key");
        let message =
            format!("revoked key {key}, and {made} that it made; every process refuses them {by}");
        return nodes::done(
            context,
            &args.wait,
            &swept.receipt,
            (&message, answer),
            output,
        )
        .await;
    }
    let made = match reason {
        Reason::Compromised | Reason::Leaked => {
            let made = made_by(context, &actor, key).await;
            made.map_err(|error| {
                error.after(format!("{message}; the keys that it made are unknown"))
            })?
        }
        _ => Vec::new(),
    };
    if !made.is_empty() {
        answer["made"] = json!(made);
        let made = list(&made);
        message +=
            &format!("\nnot revoked, although it made them: {made}; --with-made revokes them too");
    }
    nodes::done(context, &args.wait, &done, (&message, answer), output).await
}

/// Returns the keys that `key` made and that are neither revoked nor expired.
async fn made_by(context: &CliContext, actor: &Actor, key: KeyId) -> CliResult<Vec<KeyId>> {
    let made = context.keys.made_by(actor, actor.tenant(), key).await?;
    let live = |key: &KeyInfo| !matches!(key.status, Status::Revoked | Status::Expired);
    let live = made.into_iter().filter(live);
    Ok(live.map(|made| made.id).filter(|id| *id != key).collect())
}

/// Formats the number of keys and their ids.
fn list(keys: &[KeyId]) -> String {
    let ids = keys.iter().map(|id| format!(" {id}"));
    counted(keys.len(), "key") + &ids.collect::<String>()
}

pub(crate) async fn disable(
    context: &CliContext,
    args: &KeyArgs,
    output: &Output,
) -> CliResult<()> {
    let key = key_id(&args.key)?;
    let actor = context.actor_for(key).await?;
    let done = context
        .keys
        .disable(invocation(&actor, &args.named)?, key)
        .await?;
    let by = nodes::time_limit(context, &done).await;
    let mut message = format!("disabled key {key}; every process refuses it {by}");
    let mut answer = receipt(key, "disabled", &done);
    let given = [Status::Disabled, Status::Expired];
    if let Some(status) = replaced_by(context, &actor, key, &given).await {
        (message, answer) = repeated(key, status, &done);
    }
    nodes::done(context, &args.wait, &done, (&message, answer), output).await
}

pub(crate) async fn enable(context: &CliContext, args: &KeyArgs, output: &Output) -> CliResult<()> {
    let key = key_id(&args.key)?;
    let actor = context.actor_for(key).await?;
    let done = context
        .keys
        .enable(invocation(&actor, &args.named)?, key)
        .await?;
    let (mut message, mut answer) = (format!("enabled key {key}"), receipt(key, "enabled", &done));
    let given = [Status::Active, Status::Retiring, Status::Expired];
    if let Some(status) = replaced_by(context, &actor, key, &given).await {
        (message, answer) = repeated(key, status, &done);
    }
    nodes::done(context, &args.wait, &done, (&message, answer), output).await
}

/// Returns the status of a key, if it is none of those that its change gives it. The change was then carried out
/// earlier, under the same command id, and a later change has replaced it.
async fn replaced_by(
    context: &CliContext,
    actor: &Actor,
    key: KeyId,
    given: &[Status],
) -> Option<Status> {
    // A key that was removed since is not accepted either.
    let info = context.keys.key(actor, key).await.ok()?;
    Some(info.status).filter(|status| !given.contains(status))
}

fn repeated(key: KeyId, status: Status, done: &Receipt) -> (String, Value) {
    let message = format!(
        "the command was carried out before, and changes nothing now: key {key} is {status}"
    );
    let mut answer = receipt(key, "nothing", done);
    answer["status"] = json!(status);
    (message, answer)
}

pub(crate) async fn delete(
    context: &CliContext,
    args: DeleteArgs,
    output: &Output,
) -> CliResult<()> {
    let key = key_id(&args.key)?;
    let actor = context.actor_for(key).await?;
    let deletion = DeleteKey {
        typed: Some(confirmed(context, &actor, key, args.confirm).await?),
        references: args.references,
    };
    let done = context
        .keys
        .delete(invocation(&actor, &args.named)?, key, deletion)
        .await?;
    let by = nodes::time_limit(context, &done).await;
    let message = format!("deleted key {key}; every process refuses it {by}");
    let answer = receipt(key, "deleted", &done);
    nodes::done(context, &args.wait, &done, (&message, answer), output).await
}

/// Returns the confirmation text, if the operator typed it exactly. The text to type is the one that the policy
/// sets, or the key's name if the policy sets none.
async fn confirmed(
    context: &CliContext,
    actor: &Actor,
    key: KeyId,
    given: Option<String>,
) -> CliResult<String> {
    let info = match (context.keys.key(actor, key).await, &given) {
        // The key does not exist. Runs the command anyway, because a repeated command reports its earlier
        // outcome.
        (Err(CommandError::Denied(Denial::NotFound)), Some(text)) => return Ok(text.clone()),
        (info, _) => info?,
    };
    let policy = context.policies.of(&info.tenant);
    let wanted = match policy.class(&info.class).map(|class| &class.deletion) {
        Some(Deletion::Typed(text)) => text.as_str(),
        _ => info.name.as_str(),
    };
    let typed = match given {
        Some(text) => text,
        None => ask(&format!(
            "Deletes key {key} ({}) of {} permanently. Type {wanted} to confirm: ",
            info.name, info.tenant
        ))
        .map_err(|failure| failure.about(format!("type {wanted} to confirm")))?,
    };
    if typed == wanted {
        return Ok(typed);
    }
    let message = format!("not deleted: to confirm, type {wanted} exactly");
    Err(CliError::new(CliErrorKind::Refused, message))
}

/// Asks for a line on the terminal. Fails if stdin is not a terminal.
pub(super) fn ask(message: &str) -> CliResult<String> {
    if !io::stdin().is_terminal() {
        let message = "stdin is not a terminal; in a script, pass --confirm <TEXT>";
        return Err(CliError::new(CliErrorKind::Refused, message));
    }
    draw(&escaped(message));
    let mut typed = String::new();
    let read = io::stdin().read_line(&mut typed);
    read.map_err(|error| {
        CliError::new(
            CliErrorKind::Unavailable,
            format!("cannot read stdin: {error}"),
        )
    })?;
    Ok(typed.trim_end_matches(['\r', '\n']).to_owned())
}
