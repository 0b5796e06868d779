//! Commands that end a key, temporarily or permanently.

use std::io::{self, IsTerminal, Write};

use keyward::command::{BulkFilter, DeleteKey, RevokeKey};
use keyward::key::Status;
use keyward::policy::Deletion;
use keyward::{Actor, CommandError, Denial, KeyId, KeyInfo, Reason};
use serde_json::json;

use crate::args::{Delete, Revoke, Target};
use crate::desk::{Desk, invocation, key_id, receipt};
use crate::failure::{Answer, Failure, Kind};
use crate::output::Output;

pub(crate) async fn revoke(desk: &Desk, asked: &Revoke, output: &Output) -> Answer<()> {
    let key = key_id(&asked.key)?;
    let actor = desk.actor_for(key).await?;
    if asked.dry_run {
        let made = made_by(desk, &actor, key).await?;
        let words = format!("{} that it made still work: {}", count(&made), names(&made));
        return output.done(&words, &json!({"id": key, "made": made}));
    }
    let reason = asked.reason.into();
    let how = RevokeKey {
        reason,
        confirmed: asked.yes,
    };
    let done = match desk
        .keys
        .revoke(invocation(&actor, &asked.named)?, key, how)
        .await
    {
        Err(CommandError::Denied(Denial::ConfirmationRequired)) => {
            let words = "keys of this class are revoked for ever: repeat the command with --yes";
            return Err(Failure::new(Kind::Refused, words));
        }
        done => done?,
    };
    let by = done.no_later_than();
    let words = format!("revoked key {key}; every process refuses it no later than {by}");
    let mut answer = receipt(key, "revoked", &done);
    if asked.with_made {
        let filter = BulkFilter::all().made_by(key);
        let swept = desk
            .keys
            .revoke_many(&actor, actor.tenant(), filter, reason);
        let ended = swept.await?.ended;
        answer["revoked_with_it"] = ended.into();
        return output.done(
            &format!("{words}; {ended} that it made are revoked"),
            &answer,
        );
    }
    let made = match reason {
        Reason::Compromised | Reason::Leaked => made_by(desk, &actor, key).await?,
        _ => Vec::new(),
    };
    if made.is_empty() {
        return output.done(&words, &answer);
    }
    answer["made"] = json!(made);
    let (count, names) = (count(&made), names(&made));
    let more = format!("{count} that it made still work: {names}; --with-made revokes them too");
    output.done(&format!("{words}\n{more}"), &answer)
}

/// Returns the keys that `key` made, if they still work or can be enabled.
async fn made_by(desk: &Desk, actor: &Actor, key: KeyId) -> Answer<Vec<KeyId>> {
    let made = desk.keys.made_by(actor, actor.tenant(), key).await?;
    let live = |key: &KeyInfo| !matches!(key.status, Status::Revoked | Status::Expired);
    let live = made.into_iter().filter(live);
    Ok(live.map(|made| made.id).filter(|id| *id != key).collect())
}

fn count(keys: &[KeyId]) -> String {
    match keys.len() {
        1 => "1 key".to_owned(),
        many => format!("{many} keys"),
    }
}

fn names(keys: &[KeyId]) -> String {
    let names: Vec<_> = keys.iter().map(ToString::to_string).collect();
    names.join(" ")
}

pub(crate) async fn disable(desk: &Desk, asked: &Target, output: &Output) -> Answer<()> {
    let key = key_id(&asked.key)?;
    let actor = desk.actor_for(key).await?;
    let done = desk
        .keys
        .disable(invocation(&actor, &asked.named)?, key)
        .await?;
    let by = done.no_later_than();
    let words = format!("disabled key {key}; every process refuses it no later than {by}");
    output.done(&words, &receipt(key, "disabled", &done))
}

pub(crate) async fn enable(desk: &Desk, asked: &Target, output: &Output) -> Answer<()> {
    let key = key_id(&asked.key)?;
    let actor = desk.actor_for(key).await?;
    let done = desk
        .keys
        .enable(invocation(&actor, &asked.named)?, key)
        .await?;
    output.done(
        &format!("enabled key {key}"),
        &receipt(key, "enabled", &done),
    )
}

pub(crate) async fn delete(desk: &Desk, asked: Delete, output: &Output) -> Answer<()> {
    let key = key_id(&asked.key)?;
    let actor = desk.actor_for(key).await?;
    let deletion = DeleteKey {
        typed: Some(confirmed(desk, &actor, key, asked.confirm).await?),
        references: asked.references,
    };
    let done = desk
        .keys
        .delete(invocation(&actor, &asked.named)?, key, deletion)
        .await?;
    output.done(
        &format!("deleted key {key}"),
        &receipt(key, "deleted", &done),
    )
}

/// Returns the confirmation text, if the operator typed the policy's text or else the key's name.
async fn confirmed(
    desk: &Desk,
    actor: &Actor,
    key: KeyId,
    given: Option<String>,
) -> Answer<String> {
    let info = match (desk.keys.key(actor, key).await, &given) {
        // The key is gone. The command still runs, because a repeated command reports its earlier outcome.
        (Err(CommandError::Denied(Denial::NotFound)), Some(text)) => return Ok(text.clone()),
        (info, _) => info?,
    };
    let policy = desk.policies.of(&info.tenant);
    let wanted = match policy.class(&info.class).map(|class| &class.deletion) {
        Some(Deletion::Typed(text)) => text.as_str(),
        _ => info.name.as_str(),
    };
    let typed = match given {
        Some(text) => text,
        None => ask(&format!(
            "Deletes key {key} ({}) of {} for ever. Type {wanted} to confirm: ",
            info.name, info.tenant
        ))
        .map_err(|failure| failure.about(format!("type {wanted} to confirm")))?,
    };
    if typed == wanted {
        return Ok(typed);
    }
    let words = format!("not deleted: to confirm, type {wanted} exactly");
    Err(Failure::new(Kind::Refused, words))
}

/// Asks the person at the terminal. Piped input does not count as typed.
fn ask(words: &str) -> Answer<String> {
    if !io::stdin().is_terminal() {
        let words = "nobody is here to ask; scripts say it with --confirm <TEXT>";
        return Err(Failure::new(Kind::Refused, words));
    }
    let mut err = io::stderr().lock();
    let _ = write!(err, "{words}").and_then(|()| err.flush());
    let mut typed = String::new();
    let read = io::stdin().read_line(&mut typed);
    read.map_err(|error| Failure::new(Kind::Unavailable, format!("cannot read stdin: {error}")))?;
    Ok(typed.trim_end_matches(['\r', '\n']).to_owned())
}
