//! Recovery of a restored store before it serves.

use keyward::KeyId;
use keyward::audit::AuditEntry;
use keyward::recovery::{Recovery, RecoveryReport};
use keyward::store::AuditQuery;
use serde_json::{Value, json};

use crate::args::Recover;
use crate::desk::Desk;
use crate::failure::{Answer, Failure};
use crate::output::Output;
use crate::store::{self, Expected, Place};

pub(crate) async fn run(desk: &Desk, asked: &Recover, output: &Output) -> Answer<()> {
    if !desk.is_host() {
        return Err(Failure::usage(
            "only the host itself recovers a store: leave out --as",
        ));
    }
    let how = match &asked.replay_from {
        Some(store) => Recovery::Replay(trail(desk, store).await?),
        None if asked.trust_backup => Recovery::TrustBackup,
        None => Recovery::DisableAll,
    };
    let report = desk.keys.recover(how).await?;
    desk.whole.finish_recovery().await?;
    output.done(&words(&report), &document(&report))
}

/// Reads the whole audit trail of another store, even if the other store is waiting for recovery too.
async fn trail(desk: &Desk, place: &Place) -> Answer<Vec<AuditEntry>> {
    let common = desk.common();
    let store = store::open_at(place, &common.schema, common, Expected::Existing).await?;
    let store = store.keys();
    let mut query = AuditQuery::all();
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
