//! A restored store is put right before it serves.

use std::path::Path;

use keyward::audit::AuditEntry;
use keyward::store::{AuditQuery, KeyStore, SqliteStore};
use keyward::{KeyId, Recovery, RecoveryReport};
use serde_json::{Value, json};

use crate::args::Recover;
use crate::desk::Desk;
use crate::failure::{Answer, Failure};
use crate::output::Output;

pub(crate) async fn run(desk: &Desk, asked: &Recover, output: &Output) -> Answer<()> {
    if !desk.is_host() {
        return Err(Failure::usage(
            "only the host itself recovers a store: leave out --as",
        ));
    }
    let how = match &asked.replay_from {
        Some(store) => Recovery::Replay(trail(store).await?),
        None if asked.trust_backup => Recovery::TrustBackup,
        None => Recovery::DisableAll,
    };
    let report = desk.keys.recover(how).await?;
    desk.store.finish_recovery().await?;
    output.done(&words(&report), &document(&report))
}

/// All that another file still tells of what happened.
async fn trail(store: &Path) -> Answer<Vec<AuditEntry>> {
    let options = SqliteStore::options(store).must_exist();
    let store = options.allow_unrecovered().open().await?;
    let mut query = AuditQuery::everything();
    let mut entries = Vec::new();
    loop {
        let page = store.audit(&query).await?;
        entries.extend(page.rows.into_iter().map(|row| row.entry));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(entries),
        }
    }
}

fn words(report: &RecoveryReport) -> String {
    let counts = [
        (report.disabled, "keys disabled"),
        (report.revoked, "revoked"),
        (report.removed, "removed"),
        (report.changed, "narrowed"),
        (report.owners, "owners set again"),
        (report.closed, "tenants closed"),
    ];
    let counts = counts.map(|(count, what)| format!("{count} {what}"));
    let lists = [
        (&report.legacy, "disabled legacy keys, to rotate or enable"),
        (&report.to_review, "disabled, to look at"),
        (&report.lost, "lost, to create anew"),
        (&report.unknown, "not in the backup"),
        (&report.corrupt, "corrupt"),
    ];
    let mut words = format!("recovered: {}", counts.join(", "));
    for (keys, what) in lists {
        for key in keys {
            words += &format!("\n  {key} {what}");
        }
    }
    words
}

fn document(report: &RecoveryReport) -> Value {
    let keys = |keys: &[KeyId]| keys.iter().map(KeyId::to_string).collect::<Vec<_>>();
    json!({
        "recovered": true,
        "disabled": report.disabled,
        "revoked": report.revoked,
        "removed": report.removed,
        "changed": report.changed,
        "owners": report.owners,
        "closed": report.closed,
        "legacy": keys(&report.legacy),
        "to_review": keys(&report.to_review),
        "lost": keys(&report.lost),
        "unknown": keys(&report.unknown),
        "corrupt": keys(&report.corrupt),
    })
}
