//! Copying a store into another store.

use keyward::store::transfer::{self, CopyPhase, CopyProgress, Counts, Part};
use serde_json::{Value, json};

use crate::args::{CommonArgs, MigrateStoreArgs};
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::Output;
use crate::store::{self, Expected};

pub(crate) async fn run(
    common: &CommonArgs,
    args: &MigrateStoreArgs,
    output: &Output,
) -> CliResult<()> {
    let MigrateStoreArgs {
        from,
        to,
        to_schema,
    } = args;
    let source = store::open_at(from, &common.schema, common, Expected::Source).await?;
    let to_schema = to_schema.as_deref().unwrap_or(&common.schema);
    let checking = output.show_elapsed(format!("checking {from}"));
    let report = source.check_integrity().await;
    drop(checking);
    if let Some(first) = report?.faults.first() {
        let message = format!("{from} is corrupt, and was not copied: {first}");
        return Err(CliError::new(CliErrorKind::Corrupt, message));
    }
    let target = store::open_at(to, to_schema, common, Expected::CopyTarget).await?;
    let mut line = output.progress_line();
    let progress = |at: CopyProgress| line.step(&at.to_string(), is_last(&at));
    let copied = transfer::copy(source.source(), target.target(), transfer::PAGE, progress).await;
    drop(line);
    let copied = copied?;
    let revision = copied.head.revision;
    let mut message = format!(
        "copied {from} to {to} as of revision {revision}, and compared them. From now on they are two \
         stores: what is revoked in one works in the other. Let every node use the copy, with the pepper \
         that it used before, and set the other aside"
    );
    if copied.unrecovered {
        message += ". It opens only once `keyctl recover` has put it right, as its source would";
    }
    output.done(
        &message,
        &json!({
            "from": from.to_string(),
            "to": to.to_string(),
            "head": super::upkeep::cursor(&copied.head),
            "recovered": !copied.unrecovered,
            "copied": counts(&copied.counts),
        }),
    )
}

fn is_last(at: &CopyProgress) -> bool {
    at.phase == CopyPhase::Comparing && at.done >= at.total
}

fn counts(counts: &Counts) -> Value {
    let count = |part: Part| (part.to_string(), json!(counts.of(part)));
    Value::Object(Part::ALL.map(count).into_iter().collect())
}
