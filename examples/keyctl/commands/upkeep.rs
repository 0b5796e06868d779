//! The store as a whole: set up, copied, looked over.

use std::path::{Path, PathBuf};

use keyward::store::Cursor;
use serde_json::{Value, json};

use super::issue;
use crate::args::{Common, Repeatable};
use crate::desk::{Desk, invocation};
use crate::failure::{Answer, Failure, Kind};
use crate::output::Output;
use crate::store::{self, Expected};

pub(crate) async fn init(common: Common, named: &Repeatable, output: &Output) -> Answer<()> {
    // The pepper first: interrupted after it, the same command goes on from there.
    let peppers = store::first_peppers(&common)?;
    let opened = store::open(&common, Expected::New).await?;
    let (path, file) = (common.store.clone(), store::pepper_path(&common));
    let pepper = peppers.current().id().clone();
    let desk = Desk::over(common, opened, peppers).await?;
    let mut keys = Vec::new();
    if let Some(tenant) = desk.tenant()? {
        let actor = desk.actor(&tenant)?;
        keys = desk
            .keys
            .provision_tenant(invocation(&actor, named)?, &tenant)
            .await?;
    }
    if output.json {
        return output.document(&json!({
            "store": path,
            "pepper_file": file,
            "pepper": pepper,
            "provisioned": issue::issued(&keys),
        }));
    }
    let file = file.display();
    output.note(&format!(
        "set up {} under pepper {pepper} in {file}",
        path.display()
    ));
    output.note("keep a copy of the pepper file, but never where the store's copies are");
    issue::provisioned(&keys, output)
}

pub(crate) async fn backup(common: &Common, to: PathBuf, output: &Output) -> Answer<()> {
    let store = store::open(common, Expected::Existing).await?;
    if to.exists() {
        let words = format!("{} exists already, and was left as it is", to.display());
        return Err(Failure::new(Kind::Refused, words));
    }
    let going_on = output.going_on(format!("backing up to {}", to.display()));
    let head = store.backup(to.clone()).await;
    drop(going_on);
    let head = head?;
    let (path, revision) = (to.display(), head.revision);
    let words = format!("wrote {path} as of revision {revision}, without the pepper");
    output.done(&words, &json!({ "backup": to, "head": cursor(&head) }))
}

pub(crate) async fn restore(common: &Common, backup: &Path, output: &Output) -> Answer<()> {
    let going_on = output.going_on(format!("restoring {}", backup.display()));
    let restored = store::restore(backup, &common.store).await;
    drop(going_on);
    restored?;
    let words = format!(
        "made {} from {}. What was revoked since the backup is not revoked in it, so that it opens \
         only once `keyctl recover` has put it right",
        common.store.display(),
        backup.display()
    );
    output.done(
        &words,
        &json!({ "store": common.store, "backup": backup, "recovered": false }),
    )
}

pub(crate) async fn check(common: &Common, output: &Output) -> Answer<()> {
    let store = store::open(common, Expected::Existing).await?;
    let going_on = output.going_on(format!("checking {}", common.store.display()));
    let report = store.check_integrity().await;
    drop(going_on);
    let report = report?;
    let (rows, audit, faults) = (report.rows, report.audit, report.faults);
    if output.json {
        let intact = faults.is_empty();
        let told = json!({ "intact": intact, "rows": rows, "audit": audit, "faults": faults });
        output.document(&told)?;
    } else {
        output.line(&format!(
            "{rows} rows, {audit} audit entries, {} faults",
            faults.len()
        ))?;
        faults.iter().try_for_each(|fault| output.line(fault))?;
    }
    if faults.is_empty() {
        return Ok(());
    }
    let words = format!("{} is corrupt; restore a backup", common.store.display());
    Err(Failure::new(Kind::Corrupt, words))
}

pub(crate) async fn stats(common: &Common, output: &Output) -> Answer<()> {
    let stats = store::open(common, Expected::Existing)
        .await?
        .stats()
        .await?;
    if output.json {
        return output.document(&json!({
            "head": cursor(&stats.head),
            "keys": stats.keys,
            "removed": stats.removed,
            "owners": stats.owners,
            "tenants": stats.tenants,
            "audit": stats.audit,
            "file_bytes": stats.file_bytes,
            "journal": stats.journal,
            "sqlite": stats.sqlite,
        }));
    }
    let row = |name: &str, value: &dyn ToString| vec![name.to_owned(), value.to_string()];
    output.table(
        &[],
        &[
            row("revision", &stats.head.revision),
            row("keys", &stats.keys),
            row("removed keys", &stats.removed),
            row("owners", &stats.owners),
            row("tenants", &stats.tenants),
            row("audit entries", &stats.audit),
            row("bytes on disk", &stats.file_bytes),
            row("journal", &stats.journal),
            row("sqlite", &stats.sqlite),
        ],
    )
}

fn cursor(head: &Cursor) -> Value {
    json!({
        "epoch": format!("{:032x}", head.epoch.0),
        "revision": head.revision.0,
        "tag": format!("{:032x}", head.tag.0),
    })
}
